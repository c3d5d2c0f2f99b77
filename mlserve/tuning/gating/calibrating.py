"""Gates of a server against itself: how often this machine raises a false alarm."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from mlserve.report.gating.result import GateResult
from mlserve.tuning.gating.asked import LiveGate

__all__ = ["gate_against_itself"]

# No two gates share a schedule.
_SEEDS_A_GATE = 10_000_000


def gate_against_itself(
    asked: LiveGate, times: int, directory: Path, run: Callable[[LiveGate, Path], GateResult]
) -> list[GateResult]:
    """The results of `times` gates of `asked`, whose two sides are the same; `run` runs one into a folder."""
    return [
        run(
            msgspec.structs.replace(
                asked, plan=msgspec.structs.replace(asked.plan, seed=asked.plan.seed + number * _SEEDS_A_GATE)
            ),
            directory / f"gate-{number:02}",
        )
        for number in range(1, times + 1)
    ]
