"""What is wanted of a production configuration."""

from typing import Literal

import msgspec

from mlserve.tuning.evidence import Objective

__all__ = ["Aim", "Goal"]

Goal = Literal["throughput", "goodput", "latency", "cost", "energy"]
"""What is best: the highest rate that meets the objective; the most good answers within its limit; or, at the rate
asked for, the lowest percentile, the lowest price, or the least energy a request."""


class Aim(msgspec.Struct, frozen=True, kw_only=True):
    """The objective holds in every case. `rate_per_s` is the load to be borne; None where the rate is what is sought.

    A version may lose at most the share `max_accuracy_loss`; its server may take at most `max_memory_bytes`.
    `price_per_h` is what one machine like this costs, in any currency, and `max_cost_per_h` the most that the share of
    it that a setting takes may cost.
    """

    objective: Objective
    goal: Goal = "throughput"
    rate_per_s: float | None = None
    max_accuracy_loss: float = 0.01
    max_memory_bytes: int | None = None
    price_per_h: float | None = None
    max_cost_per_h: float | None = None
