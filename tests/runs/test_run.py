"""`run.json`: read back as written; anything else is refused with what to do."""

import msgspec
import pytest

from mlserve.errors import RunFileError
from mlserve.runs.load import Plan
from mlserve.runs.machine import package_version, read_machine
from mlserve.runs.run import (
    RUN_FILE,
    Certificate,
    Check,
    Counts,
    Run,
    ServedModel,
    ServerSettings,
    find_runs,
    read_run,
    write_run,
)
from mlserve.runs.window import Window

HOLDS = Check(name="samples", ok=True, found="1000", limit="459", advice="")
FAILS = Check(name="lag", ok=False, found="9 ms", limit="1 ms", advice="use more generators")
RUN = Run(
    label="m@1",
    started_at="2025-01-01T00:00:00+00:00",
    plan=Plan(rate_per_s=100.0, duration_s=10.0, warm_up_s=2.0, arrivals="constant", protocol="grpc"),
    window=Window(2.0, 12.0),
    model=ServedModel(url="127.0.0.1:8001", name="m", version="1"),
    server=ServerSettings(workers=1, threads=1, max_batch_rows=32, max_delay_ms=0.0, device="cpu", cpus=(0,)),
    machine=read_machine(),
    counts=Counts(scheduled=1000, ok=999, failed=1, dropped=0, generator_cpu=0.4),
    certificate=Certificate((HOLDS, FAILS)),
)


def test_a_run_is_read_back_as_it_was_written_and_nothing_else_is_left(tmp_path):
    write_run(tmp_path, RUN)
    assert read_run(tmp_path) == RUN
    assert [path.name for path in tmp_path.iterdir()] == [RUN_FILE]


def test_a_certificate_is_valid_when_every_check_holds():
    assert Certificate((HOLDS,)).valid
    assert not RUN.certificate.valid
    assert RUN.certificate.faults == [FAILS]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no run: run.json cannot be read .*give a folder that mlserve bench wrote"),
        (b"", "is damaged"),
        (b"{", "is damaged"),
        (b"[]", "is damaged"),
        (b"\xff", "is damaged"),
        (b"{}", "has format 0, this mlserve reads 1"),
        (b'{"format_version": 3}', "has format 3"),
        (b'{"format_version": 2}', "is damaged: .*missing required field"),
        (b'{"format_version": 1}', "is damaged: it has no 'plan'"),
    ],
)
def test_what_is_no_run_is_refused_with_the_reason(tmp_path, content, message):
    if content is not None:
        (tmp_path / RUN_FILE).write_bytes(content)
    with pytest.raises(RunFileError, match=message):
        read_run(tmp_path)


def test_a_run_of_format_1_is_read_with_the_window_of_its_plan(tmp_path):
    document = msgspec.to_builtins(RUN) | {"format_version": 1}
    for field in ("window", "calibration", "resources", "ended"):
        del document[field]
    (tmp_path / RUN_FILE).write_bytes(msgspec.json.encode(document))
    found = read_run(tmp_path)
    assert found.window == Window(2.0, 12.0)
    assert found == RUN


def test_a_run_cut_short_on_disk_is_refused_at_every_length(tmp_path):
    write_run(tmp_path, RUN)
    content = (tmp_path / RUN_FILE).read_bytes().rstrip()
    for length in range(0, len(content), 97):
        (tmp_path / RUN_FILE).write_bytes(content[:length])
        with pytest.raises(RunFileError):
            read_run(tmp_path)


def test_a_value_of_another_type_is_refused(tmp_path):
    document = msgspec.to_builtins(RUN) | {"plan": {"rate_per_s": "fast"}}
    (tmp_path / RUN_FILE).write_bytes(msgspec.json.encode(document))
    with pytest.raises(RunFileError, match="plan"):
        read_run(tmp_path)


def test_a_path_means_the_run_it_is_or_those_inside_it(tmp_path):
    with pytest.raises(RunFileError, match=r"holds no run .*mlserve bench NAME --out"):
        find_runs(tmp_path)
    with pytest.raises(RunFileError, match=r"--out '.*/my runs'$"):
        find_runs(tmp_path / "my runs")
    for name in ("b", "a", "unfinished"):
        (tmp_path / name).mkdir()
        if name != "unfinished":
            write_run(tmp_path / name, RUN)
    assert find_runs(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert find_runs(tmp_path / "a") == [tmp_path / "a"]


def test_the_machine_says_what_matters_for_a_comparison():
    machine = read_machine()
    assert machine.cores >= 1
    assert machine.memory_bytes > 2**28
    assert machine.cpu
    assert {"mlserve", "numpy"} <= machine.packages.keys()
    assert package_version("no-such-package") == ""
