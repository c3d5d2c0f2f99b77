"""What is foretold of a setting."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from mlserve.tuning.evidence import Objective
from mlserve.tuning.setting import Setting

__all__ = ["Prediction", "Predicts"]


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """Of `setting` at `rate_per_s`: latency percentiles from the scheduled instant (infinite where the queue grows
    without end), mean rows a batch, the share of their time that its workers compute. `max_rate_per_s` is the highest
    rate at which the objective holds, as far as it was sought (see Predictor), 0 where there is none; where that rate
    was asked for, the rest is then what requests see that hardly meet, which miss the objective too. `alone_per_s` is
    what it would bear if each request ran by itself, whatever its latency. `disturbed` is the share of the time in
    which others had the cores while the times that it rests on were taken, 0 on a quiet machine.
    """

    setting: Setting
    rate_per_s: float
    p50_s: float
    p99_s: float
    objective_s: float
    mean_batch_rows: float
    utilization: float
    max_rate_per_s: float
    alone_per_s: float = 0.0
    disturbed: float = 0.0


class Predicts(Protocol):
    """A model of the system: what it foretells of each setting at a rate, or of each at its own highest rate where
    `rate_per_s` is None. Raises UsageError for a setting of a version that it was not made for.
    """

    def __call__(
        self, settings: Sequence[Setting], objective: Objective, rate_per_s: float | None
    ) -> list[Prediction]: ...
