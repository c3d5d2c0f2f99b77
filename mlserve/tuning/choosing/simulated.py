"""A system whose truth is known: settings, what they really do, how runs of them scatter, and predictions that err.

What a search finds in it can be held against what there is to find. No server, no clock: `attempt` costs nothing and
says how long a real run would have taken.
"""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np

from mlserve.stats import Floats
from mlserve.tuning.choosing.aim import Aim
from mlserve.tuning.choosing.attempt import Attempt, Trial
from mlserve.tuning.choosing.choose import Pace
from mlserve.tuning.choosing.contest import Contest
from mlserve.tuning.evidence import Objective
from mlserve.tuning.prediction.prediction import Prediction
from mlserve.tuning.serving import ServerOptions
from mlserve.tuning.setting import Setting

__all__ = ["SimulatedSystem"]

_CORES = 2


class SimulatedSystem:
    """60 settings. Each serves at most `capacity[i]` requests a second, and its latency at the percentile is
    `base_s[i] / (1 - rate / capacity[i])`, as behind one queue. Both are drawn from `seed`, the parts by which
    predictions err too: shared by a variant and by a protocol, and one of each setting's own, `error` times as large
    as usual. From run to run the machine differs by `run_to_run`, as a share; runs that are made at once share that.
    """

    def __init__(self, seed: int, aim: Aim, pace: Pace, error: float = 1.0, run_to_run: float = 0.03) -> None:
        self.aim, self.pace, self._run_to_run = aim, pace, run_to_run
        self._rng = np.random.default_rng(seed)
        self.settings = _settings()
        count = len(self.settings)
        self.capacity = 500 * np.exp(self._shared(0.3, 0.2, 0.25))
        self.base_s = 0.004 * np.exp(self._shared(0.3, 0.1, 0.2))
        wrong = error * self._shared(0.2, 0.1, 0.08), error * self._shared(0.2, 0.1, 0.08)
        self._foretold = self.capacity * np.exp(wrong[0]), self.base_s * np.exp(wrong[1])
        self.spent_s, self.measured_s = 0.0, 0.0
        self._machine, self._duration_s, self._beside = 0.0, 0.0, False
        assert count == 60

    def predict(self, settings: Sequence[Setting], objective: Objective, rate_per_s: float | None) -> list[Prediction]:
        """What a model of the system would foretell: `Predicts`."""
        capacity, base_s = self._foretold
        found = []
        for setting in settings:
            number = self.settings.index(setting)
            highest = _highest(capacity[number], base_s[number], objective)
            rate = rate_per_s or max(highest, 1.0)
            latency = _latency_s(capacity[number], base_s[number], rate)
            found.append(
                Prediction(
                    setting=setting,
                    rate_per_s=rate,
                    p50_s=latency / 3,
                    p99_s=latency,
                    objective_s=latency,
                    mean_batch_rows=1.0,
                    utilization=min(rate / float(capacity[number]), 1.0),
                    max_rate_per_s=highest,
                )
            )
        return found

    def contest(self) -> Contest:
        """What there is to search."""
        predictions = self.predict(self.settings, self.aim.objective, self.aim.rate_per_s)
        return Contest(predictions=tuple(predictions), aim=self.aim, cores=_CORES)

    def attempt(self, trial: Trial, number: int) -> Attempt:
        """A run: the truth, and chance, which is less the more requests it has, and what the machine did then."""
        in_turns = self._beside or bool(trial.beside)
        if not self._beside:
            self._machine = self._rng.normal(0.0, self._run_to_run)
            self._duration_s = self.pace.duration_s(trial, 459)
        self._beside = bool(trial.beside)
        duration_s = self._duration_s
        objective = self.aim.objective
        latency_s = self.latency_s(trial.number, trial.rate_per_s)
        requests = max(10, round(trial.rate_per_s * duration_s))
        error = 0.3 / math.sqrt(requests * (1 - objective.percentile))
        found_s = latency_s * math.exp(self._machine + self._rng.normal(0.0, error))
        met = found_s <= objective.limit_s
        # A run of which the outcome is plain is ended early.
        clear = not 0.5 < found_s / objective.limit_s < 2 and self.aim.rate_per_s is None
        duration_s *= 0.4 if clear and trial.fidelity == "short" else 1.0
        seconds = self.pace.warm_up_s + duration_s + self.pace.overhead_s
        self.spent_s += seconds
        self.measured_s += self.pace.warm_up_s + duration_s
        infinite = math.isinf(found_s)
        return Attempt(
            trial=trial,
            folder=f"run-{number:03}",
            seconds=seconds,
            met=met,
            sure=clear,
            percentile_s=None if infinite else found_s,
            low_s=None if infinite else found_s * math.exp(-1.96 * error),
            high_s=None if infinite else found_s * math.exp(1.96 * error),
            good_per_s=trial.rate_per_s if met else 0.0,
            requests=requests,
            valid=True,
            in_turns=in_turns,
        )

    def latency_s(self, number: int, rate_per_s: float) -> float:
        """The truth."""
        return _latency_s(self.capacity[number], self.base_s[number], rate_per_s)

    def highest_per_s(self, number: int) -> float:
        """The truth."""
        return _highest(self.capacity[number], self.base_s[number], self.aim.objective)

    def _shared(self, by_variant: float, by_protocol: float, own: float) -> Floats:
        """[n] a sum of normal parts that settings share."""
        variants = list(dict.fromkeys(one.variant for one in self.settings))
        protocols = list(dict.fromkeys(one.protocol for one in self.settings))
        of_variant = self._rng.normal(0, by_variant, len(variants))
        of_protocol = self._rng.normal(0, by_protocol, len(protocols))
        return np.array(
            [
                of_variant[variants.index(one.variant)] + of_protocol[protocols.index(one.protocol)]
                + self._rng.normal(0, own)
                for one in self.settings
            ]
        )  # fmt: skip


def _settings() -> tuple[Setting, ...]:
    layouts = ((1, 1), (1, 2), (2, 1))
    batches = ((1, 0.0), (8, 0.0), (32, 0.0), (8, 2.0), (32, 2.0))
    return tuple(
        Setting(
            model=f"simulated@{1 + ('fp32', 'int8').index(variant)}",
            variant=variant,
            options=ServerOptions(workers=workers, threads=threads, max_batch_rows=rows, max_delay_ms=delay_ms),
            protocol=protocol,  # type: ignore[arg-type]  # one of the two written here
        )
        for variant, protocol, (workers, threads), (rows, delay_ms) in product(
            ("fp32", "int8"), ("rest", "grpc"), layouts, batches
        )
    )


def _latency_s(capacity: float, base_s: float, rate_per_s: float) -> float:
    return float(base_s / (1 - rate_per_s / capacity)) if rate_per_s < capacity else math.inf


def _highest(capacity: float, base_s: float, objective: Objective) -> float:
    """Where the latency is the limit."""
    return max(0.0, float(capacity * (1 - base_s / objective.limit_s)))
