"""B6: a label that moves, forward and back again, under load: it always means a version, and soon the new one."""

import time

import numpy as np
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.driver import Driven, Load, Running, driving
from scorecard.known import MODEL, publish
from scorecard.server import Server, serving_both

from mlserve.model.store import PRODUCTION, Store
from mlserve.stats import quantile

__all__ = ["CASE"]

_MOVES = {"seconds": 8, "short": 60, "long": 1000}
_PER_S = 500.0
_MOST_EFFECT_S = 0.1
_PATIENCE_S = 5.0
_VERSIONS = 3
_LABEL = "stable"

# A look at the store that finds something new first takes the old away, as a move in two steps would.
_TWO_STEPS = """
import asyncio
import mlserve.serve.service as service
from mlserve.serve.catalog import Catalog

right = service.Service.install

def in_two_steps(self, catalog):
    if self.catalog.models:
        right(self, Catalog(catalog.models, {}, {}, catalog.others))
        asyncio.get_running_loop().call_later(0.02, right, self, catalog)
    else:
        right(self, catalog)

service.Service.install = in_two_steps
"""


def run(stage: Stage) -> Outcome:
    store = publish(stage.folder / "store", versions=range(1, _VERSIONS + 1))
    store.promote(MODEL, 1, _LABEL)
    with serving_both(stage.folder, "--versions", "all", plant=_TWO_STEPS) as (sound, broken):
        outcome = _play(sound, store, _MOVES[stage.form])
        spoilt = _play(broken, store, 4)
    return Outcome(
        passed=outcome.passed and not sound.traceback,
        found=outcome.found + sound.traceback,
        figures=outcome.figures,
        control=f"a server that moves a label in two steps: {spoilt.found}",
        control_failed=not spoilt.passed,
    )


def _play(server: Server, store: Store, moves: int) -> Outcome:
    """Promotes twice and rolls back once, again and again, the label and production in turn."""
    load = Load(per_s=_PER_S, seconds=moves * _PATIENCE_S, ways=("http", "grpc"), versions=(_LABEL, "", PRODUCTION))
    with driving(server.endpoints, load) as running:
        time.sleep(0.5)
        effects_s = [_move(running, store, (_LABEL, PRODUCTION)[number % 2], number) for number in range(moves)]
        running.stop()
    return _judge(running.driven, np.array(effects_s))


def _move(running: Running, store: Store, label: str, number: int) -> float:
    """How long after a move the last answer came that was not by the new version, in seconds."""
    if number // 2 % 3 == 2:
        _, version = store.rollback(MODEL, label)
    else:
        version = store.aliases(MODEL)[label] % _VERSIONS + 1
        store.promote(MODEL, version, label)
    moved_s = running.now_s
    asked = (label,) if label == _LABEL else ("", label)
    time.sleep(max(3 * _MOST_EFFECT_S, 0.3))
    others = [one.done_s for one in running.newest_since(moved_s) if one.asked in asked and one.version != str(version)]
    return max(others, default=moved_s) - moved_s


def _judge(driven: Driven, effects_s: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> Outcome:
    slow = int((effects_s > _MOST_EFFECT_S).sum())
    faults = [
        driven.not_ok,
        f"after {slow} of {len(effects_s)} moves the old version still answered beyond 100 ms, the longest for "
        f"{1e3 * effects_s.max():.0f} ms"
        if slow
        else "",
    ]
    fault = "; ".join(filter(None, faults))
    return Outcome(
        passed=not fault,
        found=fault or f"{len(effects_s)} moves, {driven.count('ok')} answers, none without a version",
        figures=(
            Figure("moves", len(effects_s)),
            Figure("requests", driven.count()),
            Figure("not ok", driven.count() - driven.count("ok"), limit="0"),
            Figure("median effect", 1e3 * quantile(effects_s, 0.5), "ms"),
            Figure("longest effect", 1e3 * float(effects_s.max()), "ms", "at most 100"),
        ),
    )


CASE = Case(
    id="B6",
    title="Rollback and labels that move under load",
    criterion="no request meets a label without a version, no errors; at most 100 ms until the new version answers "
    "everything, where both are loaded",
    source="TensorFlow Serving's labels",
    run=run,
)
