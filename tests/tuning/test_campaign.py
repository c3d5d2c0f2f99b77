"""A folder of many runs: it is what was asked, and nothing in it is lost."""

import json

import msgspec
import pytest

from mlserve.errors import UsageError
from mlserve.runs.load import Plan
from mlserve.tuning.campaign import is_finished, make_room, open_campaign
from mlserve.tuning.evidence import parse_slo
from mlserve.tuning.find_max import MAX_FILE, Quest
from mlserve.tuning.grid import Axis, Sweep
from mlserve.tuning.serving import ServerOptions
from mlserve.tuning.source import Contender
from mlserve.tuning.sweep import SWEEP_FILE

PLAN = Plan(rate_per_s=100.0, duration_s=2.0, warm_up_s=0.5)


def test_the_same_again_goes_on_and_another_is_refused_by_what_differs(tmp_path):
    assert not open_campaign(tmp_path / "deep" / "out", "asked.json", PLAN)
    assert open_campaign(tmp_path / "deep" / "out", "asked.json", PLAN)
    other = Plan(rate_per_s=200.0, duration_s=2.0, warm_up_s=0.5)
    with pytest.raises(UsageError, match=r"holds another asked: --rps 100/s there, 200/s now; ask for the same"):
        open_campaign(tmp_path / "deep" / "out", "asked.json", other)


CONTENDERS = (Contender("m@1", "m"), Contender("n@1", "n"))
QUEST = Quest(contender=CONTENDERS[0], plan=PLAN, objective=parse_slo("p99=50ms"))
SWEEP = Sweep(contenders=CONTENDERS, axes=(Axis("rps", (100.0, 200.0)),), plan=PLAN, options=ServerOptions())


@pytest.mark.parametrize(("file", "asked"), [(MAX_FILE, QUEST), (SWEEP_FILE, SWEEP)])
def test_a_file_of_an_older_mlserve_goes_on_where_its_missing_fields_are_as_by_default(tmp_path, file, asked):
    open_campaign(tmp_path, file, asked)
    document = json.loads((tmp_path / file).read_text())
    for unknown in ("engine", "compute_type", "python"):
        del document["options"][unknown]
    (tmp_path / file).write_text(json.dumps(document))
    assert open_campaign(tmp_path, file, asked)
    other = msgspec.structs.replace(asked, options=ServerOptions(engine="openvino"))
    with pytest.raises(UsageError, match="--engine not set there, openvino now"):
        open_campaign(tmp_path, file, other)
    (tmp_path / file).write_text(json.dumps(document | {"later": 1}))
    with pytest.raises(UsageError, match="later 1 there, not set now"):
        open_campaign(tmp_path, file, asked)
    (tmp_path / file).write_text(json.dumps({"format_version": 1}))
    with pytest.raises(UsageError, match=r"holds another \w+: "):
        open_campaign(tmp_path, file, asked)


def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="holds something else"):
        open_campaign(tmp_path, "asked.json", PLAN)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "asked.json").write_text("{")
    with pytest.raises(UsageError, match=r"asked\.json is damaged"):
        open_campaign(tmp_path, "asked.json", PLAN)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        open_campaign(tmp_path / "file" / "out", "asked.json", PLAN)


def test_an_interrupted_run_is_set_aside_and_kept(tmp_path):
    folder = tmp_path / "one"
    for rows in (b"first", b"second"):
        make_room(folder)
        assert not any(folder.iterdir())
        (folder / "samples.arrow").write_bytes(rows)
    assert not is_finished(folder)
    make_room(folder)
    kept = sorted(path.read_bytes() for path in tmp_path.glob("*/samples.arrow"))
    assert kept == [b"first", b"second"]
