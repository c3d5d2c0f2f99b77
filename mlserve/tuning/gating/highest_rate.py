"""The highest rate of each side that meets an objective, sought once in every pair."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from mlserve.bench.progress import Progress
from mlserve.runs.load import Plan
from mlserve.tuning.evidence import Objective
from mlserve.tuning.find_max import Found, Quest, StepRun, find_max
from mlserve.tuning.gating.side import Side
from mlserve.tuning.gating.turn import Turn, pair_plan
from mlserve.tuning.measuring import Measure, OnProgress
from mlserve.tuning.opening import SubjectOf
from mlserve.tuning.serving import ServerOptions

__all__ = ["RateSearch"]

# More than a search has, with those of its curve.
_SEEDS_OF_SEARCH = 10_000


class RateSearch(msgspec.Struct, frozen=True, kw_only=True):
    """`asked` opens a side by its name for as long as its search lasts; what is measured goes into folders of
    `directory`.
    """

    sides: Mapping[str, Side]
    plan: Plan
    objective: Objective
    resolution: float
    directory: Path
    asked: Callable[[str], AbstractContextManager[SubjectOf]]
    on_progress: OnProgress
    measure: Measure

    def highest(self, name: str, turn: Turn) -> tuple[float, bool]:
        """The highest rate of the side called `name` (requests/s), and whether it is that at most: where none met the
        objective, it is the lowest that did not. 0.0 where runs that can be believed are too few to tell. Each search,
        and so each pair's, has arrivals of its own.
        """
        side = self.sides[name]
        quest = Quest(
            contender=side.contender,
            plan=msgspec.structs.replace(self.plan, seed=_seed(self.plan, turn)),
            options=side.options or ServerOptions(),
            objective=self.objective,
            resolution=self.resolution,
            start_per_s=self.plan.rate_per_s,
            curve=False,
        )
        found = find_max(
            quest,
            self.directory / f"{turn.folder(name)}-max",
            lambda _contender, _options: self.asked(name),
            _Listener(self.on_progress),
            self.measure,
        )
        return _rate_of(found)


def _seed(plan: Plan, turn: Turn) -> int:
    """The first of a search's seeds: its steps count on from it."""
    own = pair_plan(plan, turn).seed - plan.seed
    return plan.seed + own * _SEEDS_OF_SEARCH + 1


def _rate_of(found: Found) -> tuple[float, bool]:
    """What a search found. A rate so low that nothing was due in its run meets every objective, and shows nothing."""
    if any(one.samples.ok.any() for one in found.best):
        return found.passed_per_s, False
    failed = [step.rate_per_s for step in found.steps if not step.verdict.met and not step.blame]
    return (min(failed), True) if failed and found.end != "spoilt" else (0.0, False)


class _Listener:
    """Hears of a search what a gate tells of it: that something is going on."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress

    def begins(self, purpose: str, plan: Plan) -> None: ...

    def moves(self, progress: Progress) -> None:
        self._on_progress(progress)

    def ends(self, step: StepRun) -> None: ...
