"""Which runs belong together, what they are called, and what is read from where."""

import re

import msgspec
import numpy as np
import pytest

from mlserve.errors import RunFileError
from mlserve.report.conditions import conditions_of, differences
from mlserve.report.measurement import group, read_runs
from mlserve.report.names import Names
from mlserve.runs.lock import Lock, LockedFile


@pytest.fixture
def one(made_runs):
    """A run, changed as a test wishes."""

    def make(**changes):
        return made_runs.record(made_runs.Load(), duration_s=2.0, warm_up_s=0.0, **changes)

    return make


def names_of(measurements):
    return Names([m.identity for m in measurements], [m.conditions for m in measurements])


def test_runs_are_read_from_folders_and_from_folders_of_folders_each_once(tmp_path, made_runs):
    for number, name in enumerate("ba"):
        made_runs.save(tmp_path / "runs" / name, made_runs.Load(), duration_s=1.0, minute=number)
    runs = read_runs([tmp_path / "runs", tmp_path / "runs" / "a", tmp_path / "runs" / ".." / "runs" / "b"])
    assert [one.directory.name for one in runs] == ["b", "a"]  # as they were made


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(RunFileError, match="holds no run"):
        read_runs([tmp_path])


def test_repeats_belong_together_whatever_their_seed_label_and_time(one):
    runs = [
        one(seed=1, minute=1),
        one(seed=2, minute=2, label="again"),
        one(payload="sentences.txt (sha256 4f1a), 252 bodies"),
    ]
    assert len(group(runs)) == 1


def test_another_seed_is_the_same_load(one):
    def made_up(seed):
        run = one().run
        payload = "synthetic rows, 32 bodies"
        return msgspec.structs.replace(run, plan=msgspec.structs.replace(run.plan, payload=payload, seed=seed))

    assert conditions_of(made_up(1)) == conditions_of(made_up(2))
    assert conditions_of(made_up(1)) != conditions_of(one().run)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"protocol": "grpc"}, "protocol rest against grpc"),
        ({"rate_per_s": 80.0}, "rate per s 60 against 80"),
        ({"batch_rows": 8}, "batch rows 1 against 8"),
        ({"arrivals": "constant"}, "arrivals poisson against constant"),
        ({"payload": "other.txt"}, r"payload sentences.txt .* against other.txt"),
        ({"server": None}, "workers 1 against unknown"),
    ],
)
def test_runs_under_other_conditions_do_not_belong_together(one, changes, difference):
    first, second = group([one(), one(**changes)])
    assert any(re.search(difference, found) for found in differences(first.conditions, second.conditions))


def test_runs_on_another_machine_do_not_belong_together(one, made_runs):
    other = msgspec.structs.replace(made_runs.MACHINE, cpu="another", cores=4)
    first, second = group([one(), one(machine=other)])
    assert differences(first.conditions, second.conditions) == [
        "cpu AMD EPYC 9B14 against another",
        "cores 2 against 4",
    ]


def test_another_model_does_not_belong_to_them_but_another_port_does(one, made_runs):
    moved = msgspec.structs.replace(made_runs.FP32, url="http://127.0.0.1:50505")
    assert len(group([one(), one(model=moved)])) == 1
    assert len(group([one(), one(model=made_runs.INT8)])) == 2


def test_bare_files_of_one_name_are_told_apart_by_their_content(one, made_runs):
    bare = msgspec.structs.replace(made_runs.FP32, sha256="", variant="", version="1")

    def of_file(digest, *beside):
        files = (LockedFile("model", "model.onnx", digest * 64), *beside)
        lock = Lock(where="model.onnx", name="model.onnx", store="store", files=files)
        made = one(model=bare)
        return msgspec.structs.replace(made, run=msgspec.structs.replace(made.run, lock=lock))

    weights, rows = LockedFile("model", "model.data", "c" * 64), LockedFile("data", "rows.npz", "d" * 64)
    assert len(group([of_file("a"), of_file("a", rows)])) == 1
    measurements = group([of_file("a"), of_file("b"), of_file("b", weights)])
    assert len(measurements) == 3
    assert names_of(measurements).model(measurements[0].identity) == "minilm@1 aaaaaaaaaaaa"


def test_servers_that_were_not_ours_are_told_apart_by_their_address(one, made_runs):
    bare = msgspec.structs.replace(made_runs.FP32, sha256="", variant="", version="")
    moved = msgspec.structs.replace(bare, url="http://127.0.0.1:50505")
    measurements = group([one(model=bare, server=None), one(model=moved, server=None)])
    assert [names_of(measurements).model(m.identity) for m in measurements] == [
        "minilm http://127.0.0.1:40001",
        "minilm http://127.0.0.1:50505",
    ]


def test_names_are_as_short_as_tells_models_apart(one, made_runs):
    newer = msgspec.structs.replace(made_runs.INT8, version="3", sha256="c" * 64)
    short = group([one(), one(model=made_runs.INT8)])
    longer = group([one(), one(model=made_runs.INT8), one(model=newer)])
    assert [names_of(short).model(m.identity) for m in short] == ["fp32", "int8"]
    assert [names_of(longer).model(m.identity) for m in longer] == ["minilm@1 fp32", "minilm@2 int8", "minilm@3 int8"]


def test_loads_are_named_by_what_differs(one, made_runs):
    slower = msgspec.structs.replace(made_runs.SERVER, max_delay_ms=2.5)
    alike = group([one(), one(protocol="grpc", batch_rows=8, arrivals="constant")])
    unlike = group([one(), one(server=slower)])
    assert [names_of(alike).load(m.conditions) for m in alike] == [
        "60 requests/s over REST",
        "60 requests/s of 8 rows over gRPC, constant arrivals",
    ]
    assert [names_of(unlike).load(m.conditions) for m in unlike] == [
        "60 requests/s over REST; max delay ms 0",
        "60 requests/s over REST; max delay ms 2.5",
    ]


def test_only_valid_runs_are_believed_where_there_are_any(one, made_runs):
    (mixed,) = group([one(), one(checks=(made_runs.LATE,))])
    (spoilt,) = group([one(checks=(made_runs.LATE,))])
    assert mixed.valid
    assert len(mixed.believed) == 1
    assert not spoilt.valid
    assert len(spoilt.believed) == 1


def test_blocks_are_twentieths_of_the_run_and_hold_every_request(made_runs):
    run = made_runs.record(made_runs.Load(failed=0.1), duration_s=10.0, rate_per_s=200.0)
    assert len(run.latency_blocks) == len(run.failure_blocks) == 20
    assert np.array_equal(np.concatenate(run.latency_blocks), run.samples.latency_s)
    assert sum(block.sum() for block in run.failure_blocks) == (~run.samples.ok).sum() > 0
