"""What a live gate is asked for, as its folder keeps it."""

import msgspec

from mlserve.errors import UsageError
from mlserve.report.gating.limits import Limit
from mlserve.runs.load import Plan
from mlserve.stats import minimum_samples
from mlserve.tuning.evidence import Objective
from mlserve.tuning.gating.side import Side

__all__ = ["GATE_FILE", "LiveGate", "check_gate"]

GATE_FILE = "gate.json"
# 1: first format
FORMAT_VERSION = 1

# A Poisson load has more or less than it should; a run is refused only where it never could hold enough.
_LEAST_SHARE = 0.9


class LiveGate(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, as `gate.json` keeps it. `objective` and `resolution` are those of the search for the highest
    rate, where that is limited. With `keep_servers` they stay up from run to run. The runs of a pair take turns of
    `slot_s`; for 0 one is made after the other.
    """

    format_version: int = FORMAT_VERSION
    base: Side
    candidate: Side
    plan: Plan
    limits: tuple[Limit, ...]
    objective: Objective | None = None
    resolution: float = 0.05
    keep_servers: bool = False
    slot_s: float = 0.0

    @property
    def one_process_a_side(self) -> bool:
        """Whether the runs of a side all ask the same process."""
        return self.keep_servers or None in (self.base.options, self.candidate.options)


def check_gate(asked: LiveGate) -> None:
    """Raises UsageError for what contradicts itself."""
    metrics = {limit.metric for limit in asked.limits}
    if "max_rate" in metrics and asked.objective is None:
        raise UsageError("max_rate is the highest rate that meets an objective; give it with --slo p99=50ms")
    if "max_rate" in metrics and asked.plan.closed:
        raise UsageError("max_rate is sought with an open loop; leave out --users, or the limit on max_rate")
    if "start_up" in metrics and asked.keep_servers:
        raise UsageError(
            "start_up needs a server that starts for every run; leave out --keep-servers, or the limit on start_up"
        )
    running = [side.name for side in (asked.base, asked.candidate) if side.options is None]
    if "start_up" in metrics and running:
        raise UsageError(f"start_up of {running[0]} is not known, for it runs already; give a model, or no such limit")
    plan = asked.plan
    enough = minimum_samples(plan.percentile)
    if not plan.closed and not plan.precision and plan.rate_per_s * plan.duration_s < _LEAST_SHARE * enough:
        raise UsageError(
            f"{plan.rate_per_s:g} requests/s for {plan.duration_s:g} s are {plan.rate_per_s * plan.duration_s:g} "
            f"requests a run, and p{100 * plan.percentile:g} takes {enough}; raise --rps or --duration, or limit a "
            "lower percentile"
        )
