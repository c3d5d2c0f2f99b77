"""What is foretold of times that are given: nothing here is measured, so that other work may go on beside it."""

import json
import math
import shutil

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlserve.engines.opening import open_onnx_file
from mlserve.model.synthesis import synthesize
from mlserve.model.tensors import TensorSpec
from mlserve.runs.load import Plan
from mlserve.runs.machine import read_machine
from mlserve.tuning.evidence import parse_slo
from mlserve.tuning.prediction.hollow import write_hollow
from mlserve.tuning.prediction.predict import Predictor
from mlserve.tuning.prediction.service_times import engine_key
from mlserve.tuning.prediction.times import (
    EngineTimes,
    Pace,
    PathTimes,
    Phase,
    RowTimes,
    ServiceTimes,
    write_times,
)
from mlserve.tuning.prediction.version import open_version

PLAN = Plan(rate_per_s=100.0, duration_s=10.0, warm_up_s=0.0)
SLO = parse_slo("p50=2s")


def with_options(setting, **options):
    return msgspec.structs.replace(setting, options=msgspec.structs.replace(setting.options, **options))


def made_up(version, options, run_s, outside_s=0.001, turn_s=1e-4, cold_s=0.0):
    """Times as they might have been measured: `run_s` of the rows, and 1 ms outside."""
    key = engine_key(version, options)
    rows = [RowTimes(kind=0, rows=n, busy_s=(run_s(n),), rested_s=(run_s(n) + cold_s,)) for n in (1, 2, 4, 8, 16, 32)]
    engine = EngineTimes(key=key, together=True, kinds=(0,) * len(version.payload.requests), times=tuple(rows))
    phase = Phase(gap_s=0.001, outside_s=(outside_s,))
    paths = tuple(
        PathTimes(
            protocol="rest", interface=version.interface, inline=inline, phases=(phase,),
            turn_s=turn_s, request_s=1e-5, client_s=0.0,
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


def test_a_rate_without_end_is_infinite_and_a_tight_limit_costs_rate(setting, source):
    version = open_version(setting.model, source, PLAN)
    predicts = Predictor(made_up(version, setting.options, lambda rows: 0.01 * rows), [version], PLAN)
    (over,) = predicts([setting], SLO, 150.0)
    assert over.p50_s == over.p99_s == over.objective_s == math.inf
    rates = [predicts([setting], parse_slo(slo), None)[0].max_rate_per_s for slo in ("p99=30ms", "p99=60ms")]
    assert 0 < rates[0] < rates[1] < 100


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


def test_a_turn_at_a_busy_pace_costs_what_was_measured_there(setting, source):
    version = open_version(setting.model, source, PLAN)
    times = made_up(version, setting.options, lambda _: 0.0001, turn_s=0.002)
    busy, rested = Phase(gap_s=0.003, outside_s=(0.001,), turn_s=0.0002), Phase(gap_s=0.01, outside_s=(0.001,))
    paths = tuple(msgspec.structs.replace(path, phases=(busy, rested)) for path in times.paths)
    quicker = msgspec.structs.replace(times, paths=paths)
    cold, warm = (Predictor(each, [version], PLAN) for each in (times, quicker))
    assert warm([setting], SLO, 400.0)[0].p50_s < 0.8 * cold([setting], SLO, 400.0)[0].p50_s
    assert warm([setting], SLO, 5.0)[0].p50_s == pytest.approx(cold([setting], SLO, 5.0)[0].p50_s, rel=0.02)


def test_a_narrow_table_cuts_nothing_and_shows_what_is_the_same_once(setting, source, tmp_path, what_if):
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
    said = ("--store", source.store, "--times", file, "--rps", "20", "--duration", "2s", "--threads", "1")
    flags = (*said, "--slo", "p90=40ms", "--workers", "1,2", "--max-batch-rows", "1,8,32")
    found = what_if(*paths, *flags, columns=80)
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(found.stdout.split())
    assert text.count("batch 1, 8, 32: the same here") == 1  # in what all have in common
    for name in ("...secondsecond.onnx", "...stfirstfirst.onnx"):
        assert text.count(name) == 2  # one line for each number of workers
    rates = [each["max_rate_per_s"] for each in json.loads(what_if(*paths, *flags, "--json").stdout)["predictions"]]
    assert len(rates) == 12
    assert all(f"{rate:,.0f}/s" in text for rate in rates)
