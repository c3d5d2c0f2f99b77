"""gate.toml: what it says, and that nothing in it is overlooked."""

import pytest

from mlserve.errors import UsageError
from mlserve.report.gating.gate_file import GateLoad, read_gate_file
from mlserve.report.gating.limits import parse_gate_limits

WHOLE = """
base = "digits@1"
candidate = "digits@2"
limits = ["p99=5%", "p99<=50ms"]
budget = "10m"
store = "models"
[load]
rps = 200
duration = "5s"
"""
LEAST = 'base = "a"\ncandidate = "b"\nlimits = ["p99=5%"]\n'


def test_a_whole_file_is_read(tmp_path):
    path = tmp_path / "gate.toml"
    path.write_text(WHOLE)
    file = read_gate_file(path)
    assert (file.base, file.candidate, file.mode, file.budget_s, file.store) == (
        "digits@1",
        "digits@2",
        "relative",
        600.0,
        "models",
    )
    assert file.limits == parse_gate_limits(["p99=5%,p99<=50ms"])
    assert file.load == GateLoad(rps=200.0, duration="5s")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LEAST + 'limit = "p50"\n', "there is no key limit; did you mean limits\\?"),
        (LEAST + "[load]\nrate = 4\n", r"there is no key rate in \[load\]"),
        (LEAST + 'mode = "relativ"\n', r"relativ.*\$\.mode"),
        (LEAST + 'budget = "soon"\n', "'soon' is no duration"),
        (LEAST + "[load]\nrps = 4\nusers = 2\n", "load has rps and users"),
        ('candidate = "b"\nlimits = ["p99=5%"]\n', 'mode = "relative" needs base'),
        ('base = "a"\nlimits = ["p99=5%"]\n', "missing required field `candidate`"),
        ('base = "a"\ncandidate = "b"\nlimits = ["p99"]\n', "'p99' is no limit"),
        ('base = "a"\ncandidate = "b"\nlimits = []\n', "nothing is limited; give limits"),
        (LEAST + 'mode = "history"\n', "needs history"),
        (LEAST + 'mode = "history"\nhistory = "reports/history"\n', "has no base"),
        ("base = [", "gate.toml: "),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path, text, message):
    path = tmp_path / "gate.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_gate_file(path)
    assert "gate.toml" in str(caught.value)


def test_the_least_file_is_enough_and_one_that_is_not_there_or_no_text_is_refused(tmp_path):
    path = tmp_path / "gate.toml"
    with pytest.raises(UsageError, match="cannot be read"):
        read_gate_file(path)
    path.write_bytes(b'base = "\xff"')
    with pytest.raises(UsageError, match=r"see docs/gating\.md"):
        read_gate_file(path)
    path.write_text(LEAST)
    assert read_gate_file(path).load == GateLoad()
