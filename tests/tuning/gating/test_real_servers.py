"""The gate of real servers: one of ours, as it is and made slower. A client that asks one request after the other takes
the place of the load generator, whose runs take seconds each, and are INVALID on a machine that does other work.
"""

import http.client
import json
import time
from urllib.parse import urlsplit

import msgspec
import psutil
import pytest

from mlserve.cli.gate_live import opens_side
from mlserve.report.gating.limits import parse_gate_limits
from mlserve.runs.load import Plan
from mlserve.runs.production import Production, ServeChoice, read_production, write_production
from mlserve.runs.run import write_run
from mlserve.runs.samples import OK, Sample, SampleWriter
from mlserve.runs.window import Window
from mlserve.tuning.gating.asked import LiveGate
from mlserve.tuning.gating.live import run_gate
from mlserve.tuning.gating.side import production_side, side_of
from mlserve.tuning.opening import Source
from mlserve.tuning.serving import ServerOptions, serving

REQUESTS = 20


class OneByOne:
    """Measures a run, and keeps the processes of the servers that it asked."""

    def __init__(self, usual):
        self._usual, self.asked = usual, []

    def one(self, subject_of, plan, folder, label, on_progress, decide):
        subject = subject_of(plan.protocol)
        self.asked.append(subject.pids)
        rows = ask(subject.target.url, subject.model.name)
        with SampleWriter(folder) as writer:
            writer.append(rows)
        run = msgspec.structs.replace(
            self._usual,
            label=label,
            started_at=f"2026-11-22T00:{len(self.asked) // 60:02}:{len(self.asked) % 60:02}+00:00",
            plan=plan,
            window=Window(0.0, rows[-1].done_ns / 1e9),
            model=subject.model,
            server=subject.server,
            start_up_s=subject.start_up_s,
        )
        write_run(folder, run)
        return run


@pytest.fixture
def one_by_one(made_runs):
    return OneByOne(made_runs.record(made_runs.Load(), rate_per_s=10.0).run)


def ask(url, model):
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname, place.port)
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 30], "data": [0.5] * 30}]})
    began_ns, rows = time.monotonic_ns(), []
    for _ in range(REQUESTS):
        sent_ns = time.monotonic_ns() - began_ns
        connection.request("POST", f"/v2/models/{model}/infer", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        done_ns = time.monotonic_ns() - began_ns
        rows.append(Sample(sent_ns, sent_ns, done_ns - 1, done_ns, 1, 0, OK, "1"))
    connection.close()
    return rows


def gate(base, candidate, *limits):
    plan = Plan(rate_per_s=10.0, duration_s=1.0, warm_up_s=0.0, percentile=0.5)
    return LiveGate(base=base, candidate=candidate, plan=plan, limits=parse_gate_limits(limits), keep_servers=True)


def test_a_server_made_slower_fails_after_both_were_started_again(tiny_onnx, tmp_path, told, one_by_one):
    slower = Production(serve=ServeChoice(models=(str(tiny_onnx),), threads=1, max_delay_ms=8.0))
    write_production(tmp_path / "production.toml", slower)
    options = ServerOptions(threads=1)
    file = tmp_path / "production.toml"
    base, candidate = side_of(str(tiny_onnx), tmp_path, options), production_side(read_production(file), file, options)
    asked = gate(base, candidate, "p50=50%")
    opens = opens_side(Source(store=tmp_path))
    result = run_gate(asked, tmp_path / "out", opens, told, 600.0, runs=one_by_one)
    assert result.verdict == "fail", result
    p50 = next(one for one in result.metrics if one.metric == "p50")
    assert (result.about, p50.was_suspected, p50.difference.change > 1.5) == ("processes", True, True)
    assert len(set(one_by_one.asked)) == 4  # a base and a candidate, and both again
    assert not any(psutil.pid_exists(pid) for pids in one_by_one.asked for pid in pids)


def test_a_server_that_runs_already_does_not_fail_against_itself(tiny_onnx, tmp_path, told, one_by_one):
    """The negative control of the one above."""
    with serving(str(tiny_onnx), tmp_path, ServerOptions(threads=1)) as served:
        side = side_of(served.http, tmp_path, ServerOptions())
        assert side.options is None
        asked = gate(side, side, "p50=200%")
        opens = opens_side(Source(store=tmp_path))
        result = run_gate(asked, tmp_path / "out", opens, told, 1.5, runs=one_by_one)
    assert result.verdict in {"pass", "inconclusive"}
    assert not any(one.confirmed for one in result.metrics)
    assert len(one_by_one.asked) >= 2
