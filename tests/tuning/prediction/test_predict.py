import json
import math
import shutil
import time

import msgspec
import numpy as np
import pytest

from mlserve.errors import EngineError, UsageError
from mlserve.model.tensors import TensorSpec
from mlserve.runs.load import Plan, Spikes
from mlserve.runs.machine import read_machine
from mlserve.tuning.evidence import parse_slo
from mlserve.tuning.opening import Source
from mlserve.tuning.prediction.hollow import write_hollow
from mlserve.tuning.prediction.predict import Budget, Predictor, open_predictor
from mlserve.tuning.prediction.service_times import measure_engine
from mlserve.tuning.prediction.times import (
    FORMAT_VERSION,
    LEVELS,
    ServiceTimes,
    read_times,
    write_times,
)
from mlserve.tuning.prediction.transport import way_of
from mlserve.tuning.prediction.version import open_version
from mlserve.tuning.serving import ServerOptions

PLAN = Plan(rate_per_s=100.0, duration_s=10.0, warm_up_s=0.0)
# So lax that what else runs on the machine does not decide.
SLO = parse_slo("p50=2s")
QUICK = Budget(engine_s=0.3, protocol_s=1.2)


@pytest.fixture(scope="module")
def measured(setting, source, tmp_path_factory):
    """What was measured of the tiny model and REST: (file, what was told, predictor)."""
    file, told = tmp_path_factory.mktemp("times") / "times.json", []
    predictor = open_predictor([setting], source, PLAN, file, told.append, QUICK)
    calm(file, waited=0.0)
    return file, told, predictor


def calm(file, waited):
    """As if the machine had been quiet, or not, while runs were timed: these tests run beside others."""
    times = read_times(file, read_machine())
    engines = tuple(msgspec.structs.replace(each, waited=waited) for each in times.engines)
    paths = tuple(msgspec.structs.replace(each, waited=waited) for each in times.paths)
    write_times(file, msgspec.structs.replace(times, engines=engines, paths=paths))


def with_options(setting, **options):
    return msgspec.structs.replace(setting, options=msgspec.structs.replace(setting.options, **options))


def test_a_real_model_and_a_real_server_are_measured_and_kept(measured, setting):
    file, told, _ = measured
    assert len(told) == 2
    times = read_times(file, read_machine())
    (engine,) = times.engines
    assert engine.together
    assert [each.rows for each in engine.times] == [1, 2, 4, 8]
    assert all(0 < each.busy_s[0] <= each.busy_s[-1] and len(each.busy_s) == LEVELS for each in engine.times)
    assert {(path.protocol, path.inline) for path in times.paths} == {("rest", True), ("rest", False)}
    for path in times.paths:
        assert 1e-6 < path.request_s < 0.1
        assert way_of(path).request_s == path.request_s


def test_what_was_measured_is_not_measured_again(measured, setting, source):
    told = []
    open_predictor([setting, with_options(setting, max_batch_rows=2)], source, PLAN, measured[0], told.append, QUICK)
    assert told == []
    with pytest.raises(UsageError, match="device"):  # the negative control: another device is another measurement
        open_predictor([with_options(setting, device="abacus")], source, PLAN, measured[0], raising, QUICK)


def test_what_was_timed_beside_other_work_is_timed_again(measured, setting, source, tmp_path):
    file = tmp_path / "times.json"
    shutil.copyfile(measured[0], file)
    calm(file, waited=0.3)
    disturbed = read_times(file, read_machine())
    assert disturbed.disturbed == 0.3
    now_s = time.time()
    assert disturbed.quiet(now_s) == ServiceTimes(machine=disturbed.machine)
    assert disturbed.quiet(now_s - 3600) == disturbed  # taken since then
    write_times(file, msgspec.structs.replace(read_times(measured[0], read_machine()), engines=disturbed.engines))
    told = []
    open_predictor([setting], source, PLAN, file, told.append, QUICK)
    assert [step.partition(" of ")[0] for step in told] == ["timing runs"]
    times = read_times(measured[0], read_machine())
    assert times.quiet(now_s) == times  # the negative control
    for times_of, share in ((times, 0.0), (disturbed, 0.3)):
        (found,) = Predictor(times_of, [open_version(setting.model, source, PLAN)], PLAN)([setting], SLO, 20.0)
        assert found.disturbed == share


def raising(step):
    raise UsageError(f"would measure a device: {step}")


def test_times_of_another_machine_and_of_another_format_are_left_out(measured):
    machine = read_machine()
    older = measured[0].with_name("older.json")
    older.write_text('{"format_version": 1, "engines": 7}')
    assert read_times(older, machine) == ServiceTimes(machine=machine)
    assert read_times(measured[0], msgspec.structs.replace(machine, cores=machine.cores + 1)).engines == ()
    assert read_times(measured[0].with_name("missing.json"), machine).engines == ()
    damaged = measured[0].with_name("damaged.json")
    damaged.write_text(f'{{"format_version": {FORMAT_VERSION}, "engines": 7}}')
    with pytest.raises(UsageError, match=r"holds no measured times.*delete it"):
        read_times(damaged, machine)


def test_a_rate_is_foretold_and_one_beyond_the_highest_grows(measured, setting):
    predicts = measured[2]
    (found,) = predicts([setting], SLO, None)
    assert found.rate_per_s == found.max_rate_per_s > 100
    assert found.objective_s <= SLO.limit_s < math.inf
    (rare,), (flood,) = predicts([setting], SLO, 20.0), predicts([setting], SLO, 20 * found.max_rate_per_s)
    assert 0 < rare.p50_s <= rare.p99_s < math.inf
    assert rare.max_rate_per_s == found.max_rate_per_s
    assert rare.utilization < found.utilization
    assert flood.objective_s > SLO.limit_s


def test_what_was_not_measured_is_refused(measured, setting):
    predicts = measured[2]
    for unknown, message in (
        (msgspec.structs.replace(setting, model="other@3"), "'other@3' was not measured.*measured: .*tiny.onnx"),
        (msgspec.structs.replace(setting, protocol="grpc"), "grpc was not measured"),
        (with_options(setting, threads=7), "was not measured as"),
        (with_options(setting, max_batch_rows=64), "was not measured as"),
    ):
        with pytest.raises(UsageError, match=message):
            predicts([unknown], SLO, 10.0)


def test_a_load_without_one_rate_is_refused(measured):
    times = read_times(measured[0], read_machine())
    for plan in (
        msgspec.structs.replace(PLAN, arrivals="closed", users=4, rate_per_s=0.0),
        msgspec.structs.replace(PLAN, shape=Spikes(2.0, 1.0, 5.0)),
    ):
        with pytest.raises(UsageError, match="a load of one rate"):
            Predictor(times, [], plan)


def test_a_model_that_cannot_be_opened_says_why(setting, source, tmp_path):
    version = open_version(setting.model, source, PLAN)
    broken = tmp_path / "tiny.onnx"
    shutil.copyfile(setting.model, broken)
    version.path = broken
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(EngineError, match=r"cannot be timed: .*tiny\.onnx"):
        measure_engine(version, setting.options, 2, 0.1)


def test_runs_that_are_long_enough_are_kept_in_their_order(source, tmp_path):
    from onnx import TensorProto, helper, numpy_helper, save_model

    weight, vector = np.eye(1500, dtype=np.float32), helper.make_tensor_value_info
    nodes = [helper.make_node("MatMul", [f"y{n}" if n else "x", "w"], [f"y{n + 1}"]) for n in range(24)]
    ends = [vector(name, TensorProto.FLOAT, ["batch", 1500]) for name in ("x", "y24")]
    graph = helper.make_graph(nodes, "long", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    path = tmp_path / "long.onnx"
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    found = measure_engine(open_version(str(path), source, PLAN), ServerOptions(threads=1), 2, 0.1)
    pairs = len(found.pace.took_s) // 2
    assert 2 * pairs == len(found.pace.took_s) == len(found.pace.typical_s)
    assert pairs >= 10
    # Runs of one row and of two in turns, until the end.
    kinds = [found.pace.typical_s[2 * pair] for pair in range(pairs)]
    assert len({*kinds}) == len({*kinds[: len(kinds) // 2]}) == len({*kinds[len(kinds) // 2 :]}) == 2


def test_requests_of_many_lengths_are_timed_by_length(tmp_path):
    """Rows of another length cannot share a batch, so each length is timed by itself."""
    from mlserve.bench.payload.payload import PayloadWish
    from mlserve.bench.payload.sizes import parse_lengths

    path = tmp_path / "open.onnx"
    spec = TensorSpec("x", "float32", ("batch", "length"))
    write_hollow(path, [spec], [TensorSpec("y", "float32", ("batch", "length"))])
    source = Source(store=tmp_path, wish=PayloadWish(lengths=parse_lengths("4,8")))
    version = open_version(str(path), source, PLAN)
    found = measure_engine(version, ServerOptions(threads=1), 2, 0.1)
    assert set(found.kinds) == {0, 1}
    assert sorted((each.kind, each.rows) for each in found.times) == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_half_a_path_that_was_disturbed_is_measured_again(measured, setting, source, tmp_path):
    file = tmp_path / "times.json"
    times = read_times(measured[0], read_machine())
    inline, queued = times.paths
    write_times(file, msgspec.structs.replace(times, paths=(msgspec.structs.replace(inline, waited=0.3), queued)))
    with pytest.raises(UsageError, match=r"would measure.* what rest costs"):
        open_predictor([setting], source, PLAN, file, raising, QUICK)
    write_times(file, times)
    open_predictor([setting], source, PLAN, file, raising, QUICK)  # the negative control


def test_what_if_foretells_from_what_is_kept_best_first(measured, setting, source, what_if):
    said = ("--store", source.store, "--times", measured[0], "--slo", "p50=2s", "--duration", "2s", "--threads", "1")
    found = what_if(setting.model, *said, "--max-batch-rows", "1,8", "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    rates = [each["max_rate_per_s"] for each in document["predictions"]]
    assert len(rates) == 2
    assert rates == sorted(rates, reverse=True)
    table = what_if(setting.model, *said, "--max-batch-rows", "8", "--rps", "50")
    assert "foretold, not measured" in table.stdout
    assert "tiny.onnx, cpu, rest, 1 worker, 1 thread, batch 8, delay 0 ms" in table.stdout
    none = what_if(setting.model, *said, "--max-batch-rows", "8", "--slo", "p50=1us")
    assert none.exit_code == 1
    assert "no setting is foretold to meet the objective: even where requests hardly meet, p50 is" in none.stdout


def test_what_if_says_what_it_cannot_use(measured, setting, source, what_if):
    said = (setting.model, "--store", source.store, "--times", measured[0])
    for flags, message in (
        (("--workers", "0"), "--workers '0' cannot be used"),
        (("--max-delay-ms", "-1"), "--max-delay-ms '-1' cannot be used"),
        (("--slo", "fast"), "is no limit"),
        (("--rps", "0"), "--rps"),
        (("--lengths", "8..9"), "--lengths: the model leaves no length open"),
    ):
        found = what_if(*said, *flags)
        assert found.exit_code == 2
        assert message in found.output
    assert "cannot be timed" in what_if("http://127.0.0.1:9/m", "--store", source.store).output
