"""B3: versions swapped under load; nobody notices but by the answers' version."""

import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from scorecard.capacity import find_capacity
from scorecard.case import Case, Figure, Form, Outcome, Stage
from scorecard.drift import Judged, compare, judge_twice, middle
from scorecard.driver import Driven, Load, Running, driving
from scorecard.judging import Answered
from scorecard.known import MODEL, publish
from scorecard.server import Server, serving_known

from mlserve.model.store import Store

__all__ = ["CASE", "GAP"]

# A model that takes its time: the driver, which has the other core, could not ask a quicker one at this share.
_RUN_S = 0.002
_FLAGS = ("--max-batch-rows", "8")
_SHARE = 0.7
_SWAPS = {"seconds": 3, "short": 100, "long": 1000}
# The machine may be half as fast a minute later, or for a second: each stretch of so many swaps is compared with what
# was just before it, and what counts is the middle of all stretches.
_SWAPS_A_STRETCH = {"seconds": 3, "short": 10, "long": 50}
_QUIET_S = {"seconds": 0.6, "short": 2.0, "long": 6.0}
# The version that was left last is freed by then.
_SETTLED_S = 1.5
_STEP_S = {"seconds": 0.2, "short": 1.0, "long": 10.0}
# Longer than a freed version's grace, now and then, so that swaps load and free, too.
_REST_S = (0.1, 1.3, 0.3)
_PATIENCE_S = 10.0
_CONTROL_PER_S = 400.0
_MOST_TIMES = 2.0

GAP = """
import asyncio
import mlserve.serve.versions.following as following
from mlserve.serve.catalog import Catalog

load, settle = following.Follower._load, following.Follower._settle

async def load_in_a_gap(self, key):
    if self._started:
        self._service.install(Catalog({}, {}, {}, []))
        self.in_gap = True
        await asyncio.sleep(0.1)
    try:
        await load(self, key)
    finally:
        self.in_gap = False

def settle_later(self):
    if not getattr(self, "in_gap", False):
        settle(self)

following.Follower._load, following.Follower._settle = load_in_a_gap, settle_later
"""
"""Takes every version away while another loads: to be planted into a server."""


def run(stage: Stage) -> Outcome:
    mixed = Load(per_s=1, seconds=1, ways=("http", "http", "grpc"))
    coarse = stage.form == "seconds"
    store = publish(stage.folder / "store", versions=(1, 2), run_s=_RUN_S)
    # One after the other: both would load what is swapped, on the same cores.
    with serving_known(stage.folder, *_FLAGS) as sound:
        capacity = find_capacity(
            sound.endpoints, mixed, _STEP_S[stage.form], first_per_s=800.0, halvings=1 if coarse else 3
        )
        per_s = capacity.share(_SHARE, stage.form)
        outcome = judge_twice(lambda: _play(sound, store, per_s, stage.form))
    store.promote(MODEL, 1)
    with serving_known(stage.folder, *_FLAGS, plant=GAP) as broken:
        spoilt = judge_twice(lambda: _play(broken, store, _CONTROL_PER_S, "seconds"))
    return Outcome(
        passed=outcome.passed and not sound.traceback,
        found=outcome.found + sound.traceback,
        figures=(Figure("capacity", capacity.per_s, "requests/s"), *outcome.figures),
        control=f"a server that takes a version away before the next one is loaded: {spoilt.found}",
        control_failed=not spoilt.passed,
    )


def _play(server: Server, store: Store, per_s: float, form: Form) -> Judged:
    # The load ends when the swaps have; no swap takes as long as this.
    quiet = -(-_SWAPS[form] // _SWAPS_A_STRETCH[form])
    seconds = quiet * (_SETTLED_S + _QUIET_S[form]) + _SWAPS[form] * (max(_REST_S) + _PATIENCE_S)
    load = Load(per_s=per_s, seconds=seconds, ways=("http", "http", "http-new", "grpc"), versions=("", "production"))
    effects_s, stretches, late = [], list[_Stretch](), 0
    with driving(server.endpoints, load) as running:
        for number in range(_SWAPS[form]):
            if number % _SWAPS_A_STRETCH[form] == 0:
                stretches.append(_without_swaps(running, _SETTLED_S if number else 0.0, _QUIET_S[form]))
            before = int(_answering(running))
            effect_s = _swap(running, store, 3 - before)
            late += effect_s is None
            effects_s.append(_PATIENCE_S if effect_s is None else effect_s)
            if late:
                break
            time.sleep(_REST_S[number % len(_REST_S)])
        running.stop()
    return _judge(running.driven, stretches, effects_s, late, form)


class _Stretch(NamedTuple):
    """From `began_s` on nothing was swapped, and from `swaps_s` on much."""

    began_s: float
    swaps_s: float


def _without_swaps(running: Running, settled_s: float, quiet_s: float) -> _Stretch:
    """Waits until the last swap is over, and then on."""
    time.sleep(settled_s)
    began_s = running.now_s
    time.sleep(quiet_s)
    return _Stretch(began_s, running.now_s)


def _swap(running: Running, store: Store, version: int) -> float | None:
    """Promotes `version`; how long until it first answers, in seconds, or None when it does not."""
    started_s = running.now_s
    store.promote(MODEL, version)
    while running.now_s - started_s < _PATIENCE_S:
        if _answering(running) == str(version):
            return running.now_s - started_s
        time.sleep(0.005)
    return None


def _answering(running: Running) -> str:
    """The version that gave the newest good answer; the first before there is one."""
    return next((one.version for one in running.newest() if one.kind == "ok"), "1")


def _judge(driven: Driven, stretches: Sequence[_Stretch], effects_s: list[float], late: int, form: Form) -> Judged:
    good = [one for one in driven.answers if one.kind == "ok"]
    parted = list(_parted(good, stretches))
    slower = middle([compare(*parts) for parts in parted])
    together = compare(*([one for parts in parted for one in parts[side]] for side in (0, 1)))
    worse = "; ".join(filter(None, (driven.not_ok, f"{late} swaps never took effect" if late else "")))
    slow = f"the p99 while swapping is {slower} the steady one" if slower.exceeds(_MOST_TIMES, form) else ""
    fault = "; ".join(filter(None, (worse, slow)))
    versions = ", ".join(f"{count} by version {version}" for version, count in sorted(driven.versions().items()))
    outcome = Outcome(
        passed=not fault,
        found=fault
        or f"{len(effects_s)} swaps, {len(good)} answers, all right: {versions}; p99 {slower} the steady one",
        figures=(
            Figure("swaps", len(effects_s)),
            Figure("requests", driven.count()),
            Figure("offered", driven.count() / driven.took_s, "requests/s"),
            Figure("lost", driven.count("lost"), limit="0"),
            Figure("wrong", driven.count("wrong"), limit="0"),
            Figure("shed or refused", driven.count("shed", "error"), limit="0"),
            Figure("p99", 1000 * driven.quantile_s(0.99), "ms"),
            Figure("p99 while swapping", slower.ratio, "times the steady one", "at most 2"),
            Figure("p99 of all stretches together", together.ratio, "times the steady one"),
            Figure("longest until the new version answers", max(effects_s), "s"),
        ),
    )
    return Judged(outcome, only_slow=bool(slow) and not worse)


def _parted(
    answers: Sequence[Answered], stretches: Sequence[_Stretch]
) -> Iterator[tuple[list[Answered], list[Answered]]]:
    """Of each stretch the answers before and while versions were swapped."""
    for stretch, next_one in zip(stretches, [*stretches[1:], _Stretch(math.inf, math.inf)], strict=True):
        yield (
            [one for one in answers if stretch.began_s <= one.due_s < stretch.swaps_s],
            [one for one in answers if stretch.swaps_s <= one.due_s < next_one.began_s],
        )


CASE = Case(
    id="B3",
    title="Hot swap at 70% of capacity",
    criterion="lost = wrong = shed = 0; every answer right for the version it names; p99 while swapping is at most "
    "twice the one just before, in the middle of ten stretches of ten swaps (in the form of seconds: not shown to be "
    "more, by a 95% interval over blocks of time)",
    source="KServe's canary test asserts zero errors at 2 requests/s",
    run=run,
)
