"""A10: what the server says that it did is what its clients saw: in `/metrics`, V2's statistics and the request log."""

import http.client
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.driver import Load, drive
from scorecard.known import MODEL
from scorecard.server import Server, serving_both

__all__ = ["CASE"]

_SECONDS = {"seconds": 1.0, "short": 15.0, "long": 600.0}
_PER_S = 600.0
# Fewer than the errors that the request log tells in a second.
_BAD = 12
_SETTLED_S = 0.8

_BAD_BODY = json.dumps({"inputs": [{"name": "x", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]}]})

_FORGETS = """
import mlserve.serve.metrics as metrics

right, batches = metrics.ModelMeter.answered, [0]

def forgetful(self, tickets, batch):
    batches[0] += 1
    if batches[0] % 50:
        right(self, tickets, batch)

metrics.ModelMeter.answered = forgetful
"""

Reader = Callable[[Server], "Totals"]
Totals = dict[tuple[str, bool], int]
"""(version, whether it was answered well) -> how many requests."""


def run(stage: Stage) -> Outcome:
    log = stage.folder / "requests.log"
    flags = ("--versions", "all", "--log-requests", "1", "--log-file", log)
    with serving_both(stage.folder, *flags, plant=_FORGETS, versions=2) as (sound, broken):
        outcome = _play(sound, log, _SECONDS[stage.form])
        log.unlink(missing_ok=True)
        spoilt = _play(broken, log, 1.0)
    return Outcome(
        passed=outcome.passed,
        found=outcome.found,
        figures=outcome.figures,
        control=f"a server that forgets to count one batch in fifty: {spoilt.found}",
        control_failed=not spoilt.passed,
    )


def _play(server: Server, log: Path, seconds: float) -> Outcome:
    load = Load(per_s=_PER_S, seconds=seconds, ways=("http", "http-new", "grpc"), versions=("", "1", "2"))
    driven = drive(server.endpoints, load)
    seen: Totals = dict(Counter((one.version, True) for one in driven.answers if one.kind == "ok"))
    seen["1", False] = sum(_refused(server) for _ in range(_BAD))
    wanted = {key: count for key, count in seen.items() if count}
    sources = {"metrics": _from_metrics, "statistics": _from_statistics, "request log": lambda _: _from_log(log)}
    found = {name: _when_settled(read, server, wanted) for name, read in sources.items()}
    off = [f"{name} {_told(told)}" for name, told in found.items() if told != wanted]
    fault = "; ".join(filter(None, [driven.not_ok, *off]))
    return Outcome(
        passed=not fault and wanted.get(("1", False)) == _BAD,
        found=f"clients saw {_told(wanted)}; " + (fault or "so do /metrics, the statistics and the request log"),
        figures=(
            Figure("requests", sum(wanted.values())),
            Figure("difference of /metrics", _difference(found["metrics"], wanted), limit="0"),
            Figure("difference of the statistics", _difference(found["statistics"], wanted), limit="0"),
            Figure("difference of the request log", _difference(found["request log"], wanted), limit="0"),
        ),
    )


def _refused(server: Server) -> bool:
    """Whether a request of the wrong type was refused, as it must be."""
    return server.request("POST", f"/v2/models/{MODEL}/versions/1/infer", _BAD_BODY).status == http.client.BAD_REQUEST


def _when_settled(read: Reader, server: Server, wanted: Totals) -> Totals:
    """What is told once it is as it should be, or has stopped to change: an answer is counted after it has left."""
    found, changed_s = read(server), time.monotonic()
    while found != wanted and time.monotonic() < changed_s + _SETTLED_S:
        time.sleep(0.1)
        before, found = found, read(server)
        if found != before:
            changed_s = time.monotonic()
    return found


def _from_metrics(server: Server) -> Totals:
    found: Counter[tuple[str, bool]] = Counter()
    for family in text_string_to_metric_families(server.request("GET", "/metrics").body.decode()):
        for sample in family.samples:
            if sample.name == "mlserve_requests_total" and sample.labels["model"] == MODEL:
                found[sample.labels["version"], sample.labels["outcome"] == "ok"] += int(sample.value)
    return _without_zeros(found)


def _from_statistics(server: Server) -> Totals:
    found: Counter[tuple[str, bool]] = Counter()
    for model in server.request("GET", f"/v2/models/{MODEL}/stats").json()["model_stats"]:
        for outcome in ("success", "fail"):
            found[model["version"], outcome == "success"] += model["inference_stats"][outcome]["count"]
    return _without_zeros(found)


def _from_log(path: Path) -> Totals:
    found: Counter[tuple[str, bool]] = Counter()
    for line in path.read_text().splitlines() if path.exists() else []:
        told = json.loads(line)
        if told.get("model") == MODEL:
            found[told["version"], told["outcome"] == "ok"] += 1
    return _without_zeros(found)


def _without_zeros(counts: Counter[tuple[str, bool]]) -> Totals:
    return {key: count for key, count in counts.items() if count}


def _difference(found: Totals, wanted: Totals) -> int:
    return sum(abs(found.get(key, 0) - wanted.get(key, 0)) for key in found.keys() | wanted.keys())


def _told(totals: Totals) -> str:
    return ", ".join(f"{n} {'ok' if good else 'refused'} by version {v}" for (v, good), n in sorted(totals.items()))


CASE = Case(
    id="A10",
    title="Counters reconcile",
    criterion="/metrics, V2's statistics and the request log each count exactly what the clients saw, by version and "
    "outcome",
    source="Triton's L0_model_queue and L0_response_statistics",
    run=run,
)
