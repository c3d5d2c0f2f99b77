import json
import math
import shutil
import time

import msgspec
import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from mlserve.cli.what_if import what_if
from mlserve.engines.opening import open_onnx_file
from mlserve.errors import EngineError, UsageError
from mlserve.model.synthesis import synthesize
from mlserve.model.tensors import TensorSpec
from mlserve.runs.load import Plan, Spikes
from mlserve.runs.machine import read_machine
from mlserve.tuning.evidence import parse_slo
from mlserve.tuning.opening import Source
from mlserve.tuning.prediction.hollow import write_hollow
from mlserve.tuning.prediction.predict import Budget, Predictor, open_predictor
from mlserve.tuning.prediction.service_times import engine_key, measure_engine
from mlserve.tuning.prediction.times import (
    FORMAT_VERSION,
    LEVELS,
    EngineTimes,
    Pace,
    PathTimes,
    Phase,
    RowTimes,
    ServiceTimes,
    read_times,
    write_times,
)
from mlserve.tuning.prediction.transport import way_of
from mlserve.tuning.prediction.version import open_version
from mlserve.tuning.serving import ServerOptions
from mlserve.tuning.setting import Setting

PLAN = Plan(rate_per_s=100.0, duration_s=10.0, warm_up_s=0.0)
# So lax that what else runs on the machine does not decide.
SLO = parse_slo("p50=2s")
QUICK = Budget(engine_s=0.3, protocol_s=1.2)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return Source(store=tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def setting(tiny_onnx):
    return Setting(model=str(tiny_onnx), variant="tiny", options=ServerOptions(threads=1, max_batch_rows=8))


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


def made_up(version, options, run_s, outside_s=0.001, turn_s=1e-4, cold_s=0.0):
    """Times as they might have been measured: `run_s` of the rows, and 1 ms outside."""
    key = engine_key(version, options)
    rows = [RowTimes(kind=0, rows=n, busy_s=(run_s(n),), rested_s=(run_s(n) + cold_s,)) for n in (1, 2, 4, 8, 16, 32)]
    engine = EngineTimes(key=key, together=True, kinds=(0,) * len(version.payload.requests), times=tuple(rows))
    phase = Phase(gap_s=0.001, outside_s=(outside_s,))
    paths = tuple(
        PathTimes(
            protocol="rest", interface=version.interface, inline=inline, phases=(phase,),
            turn_s=turn_s, request_s=1e-5,
        )
        for inline in (True, False)
    )  # fmt: skip
    return ServiceTimes(machine=read_machine(), engines=(engine,), paths=paths)


def test_the_highest_rate_is_what_the_parts_bear(setting, source):
    """10 ms a run however many rows: one at a time 100/s at most, up to eight together 800/s."""
    version = open_version(setting.model, source, PLAN)
    predicts = Predictor(made_up(version, setting.options, lambda _: 0.01), [version], PLAN)
    found = predicts([with_options(setting, max_batch_rows=n) for n in (1, 8)], parse_slo("p99=80ms"), None)
    assert 70 < found[0].max_rate_per_s < 100
    assert 500 < found[1].max_rate_per_s < 800
    (none,) = predicts([setting], parse_slo("p99=5ms"), None)
    assert none.rate_per_s == none.max_rate_per_s == 0
    assert 0.01 < none.objective_s < 0.1  # what it is instead, where requests hardly meet


def test_a_higher_rate_is_sought_only_where_it_is_wanted(setting, source):
    version = open_version(setting.model, source, PLAN)
    times, slo = made_up(version, setting.options, lambda _: 0.01), parse_slo("p99=80ms")
    wanted, unwanted = (Predictor(times, [version], PLAN, highest=highest) for highest in (True, False))
    borne, sought = unwanted([setting], slo, 50.0)[0], wanted([setting], slo, 50.0)[0]
    assert borne == msgspec.structs.replace(sought, max_rate_per_s=50.0)
    assert sought.max_rate_per_s > 500
    assert unwanted([setting], slo, 900.0) == wanted([setting], slo, 900.0)  # not borne: advice needs it


def test_what_slowed_the_machine_is_foretold_of_all_engines_on_such_cores(setting, source):
    version = open_version(setting.model, source, PLAN)
    times = made_up(version, setting.options, lambda _: 0.01)
    (calm,) = times.engines
    slow = Pace(took_s=(0.01,) * 300 + (0.03,) * 100, typical_s=(0.01,) * 400)
    own = msgspec.structs.replace(calm, pace=Pace(took_s=(0.01,), typical_s=(0.01,)))

    def p99_s(*engines):
        held = msgspec.structs.replace(times, engines=engines)
        return Predictor(held, [version], PLAN, highest=False)([setting], SLO, 20.0)[0].p99_s

    def other(**knobs):
        return msgspec.structs.replace(calm, key=msgspec.structs.replace(calm.key, **knobs), pace=slow)

    assert p99_s(calm) == p99_s(own) == p99_s(own, other(threads=7)) == p99_s(own, other(device="cuda"))
    assert p99_s(own, msgspec.structs.replace(other(model="other"), waited=0.3)) == p99_s(own)
    assert p99_s(own, other(model="other")) > 1.5 * p99_s(own)
    assert p99_s(calm, other(model="other")) == p99_s(calm)  # a short one has no pace, and its own quantiles


def test_runs_that_are_long_enough_are_kept_in_their_order(source, tmp_path):
    from onnx import TensorProto, helper, numpy_helper, save_model

    weight, vector = np.ones((1500, 1500), np.float32), helper.make_tensor_value_info
    nodes = [helper.make_node("MatMul", [f"y{n}" if n else "x", "w"], [f"y{n + 1}"]) for n in range(9)]
    ends = [vector(name, TensorProto.FLOAT, ["batch", 1500]) for name in ("x", "y9")]
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


def test_a_rate_without_end_is_infinite_and_a_tight_limit_costs_rate(setting, source):
    version = open_version(setting.model, source, PLAN)
    predicts = Predictor(made_up(version, setting.options, lambda rows: 0.01 * rows), [version], PLAN)
    (over,) = predicts([setting], SLO, 150.0)
    assert over.p50_s == over.p99_s == over.objective_s == math.inf
    rates = [predicts([setting], parse_slo(slo), None)[0].max_rate_per_s for slo in ("p99=30ms", "p99=60ms")]
    assert 0 < rates[0] < rates[1] < 100


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


def test_a_hollow_model_gives_what_the_other_gives(tmp_path):
    inputs = [TensorSpec("ids", "int64", ("batch", "sequence")), TensorSpec("mask", "int64", ("batch", "sequence"))]
    outputs = [
        TensorSpec("embedding", "float32", ("batch", 384)),
        TensorSpec("tokens", "float16", ("batch", "sequence", 3)),
        TensorSpec("label", "int64", ("rows",)),
        TensorSpec("text", "object", ("batch", 2)),
    ]
    write_hollow(tmp_path / "hollow.onnx", inputs, outputs)
    engine = open_onnx_file(tmp_path / "hollow.onnx")
    answer = engine.run(synthesize(inputs, 3, np.random.default_rng(0), {"sequence": 5}))
    engine.close()
    assert {name: array.shape for name, array in answer.items()} == {
        "embedding": (3, 384), "tokens": (3, 5, 3), "label": (3,), "text": (3, 2),
    }  # fmt: skip
    assert [answer[spec.name].dtype.name for spec in outputs] == ["float32", "float16", "int64", "object"]


def invoke(*arguments, columns=200):
    app = typer.Typer()
    app.command()(what_if)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": str(columns)})


@settings(max_examples=5, deadline=None)
@given(
    run_s=st.floats(0.0005, 0.02),
    cold_s=st.sampled_from([0.0, 0.01, 0.05]),
    rows=st.sampled_from([1, 8]),
    workers=st.integers(1, 2),
    share=st.floats(0.02, 0.9),
)
def test_whoever_bears_a_rate_keeps_the_limit_at_every_lower_one(setting, source, run_s, cold_s, rows, workers, share):
    """A run takes `cold_s` longer after a pause: what is too slow where requests are rare bears no rate."""
    version = open_version(setting.model, source, PLAN)
    setting = with_options(setting, max_batch_rows=rows, workers=workers)
    options = setting.options
    times = made_up(version, options, lambda _: run_s, cold_s=cold_s)
    predicts, slo = Predictor(times, [version], PLAN), parse_slo("p90=40ms")
    (highest,) = predicts([setting], slo, None)
    assert (highest.max_rate_per_s > 0) == (highest.objective_s <= slo.limit_s)
    for rate in (share * highest.alone_per_s, 0.5 * highest.max_rate_per_s, 0.9 * highest.max_rate_per_s):
        if rate:
            (found,) = predicts([setting], slo, rate)
            assert (found.max_rate_per_s >= rate) == (found.objective_s <= slo.limit_s)
            if rate < 0.95 * highest.max_rate_per_s:
                assert found.objective_s <= 1.1 * slo.limit_s


def test_a_batch_that_is_never_filled_is_foretold_once_and_one_that_is_is_not(setting, source):
    version = open_version(setting.model, source, PLAN)
    times = made_up(version, setting.options, lambda rows: 0.002 + 0.001 * rows)
    alike = [with_options(setting, max_batch_rows=rows) for rows in (8, 16, 32)]
    together = Predictor(times, [version], PLAN)(alike, SLO, 50.0)
    alone = [Predictor(times, [version], PLAN)([each], SLO, 50.0)[0] for each in alike]
    assert together == alone
    assert len({each.p99_s for each in together}) == 1
    full = Predictor(times, [version], PLAN)(alike, SLO, 700.0)
    assert full == [Predictor(times, [version], PLAN)([each], SLO, 700.0)[0] for each in alike]
    assert len({each.p99_s for each in full}) == 3


def test_one_slow_answer_of_few_is_not_the_tail_of_all():
    quick, slow = [0.001] * 198 + [0.002] * 2, [0.001] * 199 + [0.056]
    busy, rested = (Phase(gap_s=gap_s, outside_s=tuple(each)) for gap_s, each in ((0.001, quick), (0.01, slow)))
    times = PathTimes(
        protocol="rest", interface="", inline=True, turn_s=0.0, request_s=0.0, phases=(busy, rested),
    )  # fmt: skip
    assert max(way_of(times).after[1].outside_s) == pytest.approx(0.002)
    spread = Phase(gap_s=0.01, outside_s=tuple(np.linspace(0.001, 0.021, LEVELS).tolist()))  # no single one: kept
    assert max(way_of(msgspec.structs.replace(times, phases=(busy, spread))).after[1].outside_s) > 0.019


def test_a_turn_at_a_busy_pace_costs_what_was_measured_there(setting, source):
    version = open_version(setting.model, source, PLAN)
    times = made_up(version, setting.options, lambda _: 0.0001, turn_s=0.002)
    busy, rested = Phase(gap_s=0.003, outside_s=(0.001,), turn_s=0.0002), Phase(gap_s=0.01, outside_s=(0.001,))
    paths = tuple(msgspec.structs.replace(path, phases=(busy, rested)) for path in times.paths)
    quicker = msgspec.structs.replace(times, paths=paths)
    cold, warm = (Predictor(each, [version], PLAN) for each in (times, quicker))
    assert warm([setting], SLO, 400.0)[0].p50_s < 0.8 * cold([setting], SLO, 400.0)[0].p50_s
    assert warm([setting], SLO, 5.0)[0].p50_s == pytest.approx(cold([setting], SLO, 5.0)[0].p50_s, rel=0.02)


def test_half_a_path_that_was_disturbed_is_measured_again(measured, setting, source, tmp_path):
    file = tmp_path / "times.json"
    times = read_times(measured[0], read_machine())
    inline, queued = times.paths
    write_times(file, msgspec.structs.replace(times, paths=(msgspec.structs.replace(inline, waited=0.3), queued)))
    with pytest.raises(UsageError, match=r"would measure.* what rest costs"):
        open_predictor([setting], source, PLAN, file, raising, QUICK)
    write_times(file, times)
    open_predictor([setting], source, PLAN, file, raising, QUICK)  # the negative control


def test_what_if_foretells_from_what_is_kept_best_first(measured, setting, source):
    said = ("--store", source.store, "--times", measured[0], "--slo", "p50=2s", "--duration", "2s", "--threads", "1")
    found = invoke(setting.model, *said, "--max-batch-rows", "1,8", "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    rates = [each["max_rate_per_s"] for each in document["predictions"]]
    assert len(rates) == 2
    assert rates == sorted(rates, reverse=True)
    table = invoke(setting.model, *said, "--max-batch-rows", "8", "--rps", "50")
    assert "foretold, not measured" in table.stdout
    assert "tiny.onnx, cpu, rest, 1 worker, 1 thread, batch 8, delay 0 ms" in table.stdout
    none = invoke(setting.model, *said, "--max-batch-rows", "8", "--slo", "p50=1us")
    assert none.exit_code == 1
    assert "no setting is foretold to meet the objective: even where requests hardly meet, p50 is" in none.stdout


def test_a_narrow_table_cuts_nothing_and_shows_what_is_the_same_once(setting, source, tmp_path):
    """A model that takes one request at a time: no batch makes a difference, and every other knob does."""
    paths = [tmp_path / folder / f"{folder * 9}.onnx" for folder in ("first", "second")]
    times = ServiceTimes(machine=read_machine())
    for path, run_s in zip(paths, (0.00015, 0.003), strict=True):
        path.parent.mkdir()
        shutil.copyfile(setting.model, path)
        version = open_version(str(path), source, PLAN)
        made = made_up(version, setting.options, lambda _, run_s=run_s: run_s)
        times = times.with_engine(msgspec.structs.replace(made.engines[0], together=False))
        for each in made.paths:
            times = times.with_path(each)
    file = tmp_path / "times.json"
    write_times(file, times)
    said = ("--store", source.store, "--times", file, "--rps", "20", "--threads", "1", "--slo", "p90=40ms")
    flags = (*said, "--workers", "1,2", "--max-batch-rows", "1,8,32")
    found = invoke(*paths, *flags, columns=80)
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(found.stdout.split())
    assert text.count("batch 1, 8, 32: the same here") == 1  # in what all have in common
    for name in ("...secondsecond.onnx", "...stfirstfirst.onnx"):
        assert text.count(name) == 2  # one line for each number of workers
    rates = [each["max_rate_per_s"] for each in json.loads(invoke(*paths, *flags, "--json").stdout)["predictions"]]
    assert len(rates) == 12
    assert all(f"{rate:,.0f}/s" in text for rate in rates)


def test_what_if_says_what_it_cannot_use(measured, setting, source):
    said = (setting.model, "--store", source.store, "--times", measured[0])
    for flags, message in (
        (("--workers", "0"), "--workers '0' cannot be used"),
        (("--max-delay-ms", "-1"), "--max-delay-ms '-1' cannot be used"),
        (("--slo", "fast"), "is no limit"),
        (("--rps", "0"), "--rps"),
        (("--lengths", "8..9"), "--lengths: the model leaves no length open"),
    ):
        found = invoke(*said, *flags)
        assert found.exit_code == 2
        assert message in found.output
    assert "cannot be timed" in invoke("http://127.0.0.1:9/m", "--store", source.store).output
