"""The live gate: base and candidate measured in turn, A B B A, until the limits are decided or the time is up. Where
their load allows it, both at once in short turns: a machine is not the same for long.

Every run is kept as it comes; the same gate in the same folder goes on where it stopped. What looks like a regression
is not believed before servers that were started afresh, under schedules of their own, have shown it again. Neither is
a candidate that does not work at all, where the base does, before it was started once more.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mlserve.report.gating.calibration import GateCalibration
from mlserve.report.gating.decision import broken, decide_pairs, with_earlier, with_hiccups
from mlserve.report.gating.figures import KeptFigures
from mlserve.report.gating.result import GateResult
from mlserve.tuning.calibrated import CalibratedRuns, Runs
from mlserve.tuning.campaign import open_campaign
from mlserve.tuning.gating.asked import GATE_FILE, LiveGate, check_gate
from mlserve.tuning.gating.pairs import ENOUGH_BREAKS, Budget, Pairs, Watcher
from mlserve.tuning.gating.servers import OpensSide, Servers
from mlserve.tuning.gating.turn import Turn

if TYPE_CHECKING:
    from mlserve.report.gating.evidence import Pair

__all__ = ["run_gate"]


def run_gate(
    asked: LiveGate,
    directory: Path,
    opens: OpensSide,
    watcher: Watcher,
    budget_s: float,
    *,
    calibration: GateCalibration | None = None,
    runs: Runs | None = None,
    now_s: Callable[[], float] = time.monotonic,
) -> GateResult:
    """Measures into `directory` what is not there yet, and decides.

    It ends when the limits are decided, when the candidate was found twice not to work where the base does, when
    another pair would not fit into `budget_s` seconds of this call, or when a pair stays INVALID however often this
    call takes it. `runs` makes the runs; None for real ones.
    Raises UsageError where the folder cannot be used, BenchError where the base does not start or its run breaks down;
    all finished runs are kept.
    """
    check_gate(asked)
    open_campaign(directory, GATE_FILE, asked)
    sides = {"base": asked.base, "candidate": asked.candidate}
    with Servers(opens, sides, keep=asked.keep_servers) as servers:
        pairs = Pairs(asked, directory, servers, watcher, runs or CalibratedRuns())
        budget = Budget(asked.plan, budget_s, now_s)
        figures = KeptFigures()
        first: list[Pair] = []
        fresh: list[Pair] = []
        result: GateResult | None = None
        earlier = 0
        while result is None or pairs.unconfirmed or not (result.settled or budget.is_out or pairs.spoilt):
            confirming = result is not None and bool(result.suspected)
            taken = fresh if confirming else first
            if confirming and not fresh:
                servers.restart()
            pair = pairs.take(Turn(number=len(taken) + 1, fresh=confirming), budget.course(first, fresh), budget)
            if pair is not None:
                taken.append(pair)
                earlier += not pairs.measured
                budget.pair_ended(measured=pairs.measured)
                result = decide_pairs(
                    first,
                    asked.limits,
                    fresh=fresh,
                    calibration=calibration,
                    figure=figures,
                    resolution=asked.resolution,
                    kept=asked.one_process_a_side,
                )
            if len(pairs.breaks) >= ENOUGH_BREAKS:
                result = broken(result, pairs.breaks)
                break
            assert result is not None
            watcher.judged(result, budget.course(first, fresh))
    return with_earlier(with_hiccups(result, pairs.hiccups), earlier, directory)
