"""Who takes part in a search: settings, what is foretold of each, and what is wanted. Pure."""

from collections.abc import Sequence

import msgspec
import numpy as np

from mlserve.stats import Floats
from mlserve.tuning.choosing.aim import Aim
from mlserve.tuning.prediction.prediction import Prediction
from mlserve.tuning.serving import ServerOptions
from mlserve.tuning.setting import Setting

__all__ = ["Contest", "cores_taken", "cost_per_1000", "cost_per_h", "label_of"]

# A queue without end has no latency, and a setting that never meets the objective no rate; both have logarithms here.
_LONGEST, _LOWEST = 30.0, 0.01
# Of what a server bears: so much that it is an easy load, and not so little that its end is many runs away.
_EASY = 0.1
# A price for want of another: then what something costs is its seconds of a machine.
_ONE_A_SECOND = 3600.0


class Contest(msgspec.Struct, frozen=True, kw_only=True):
    """What is searched. `predictions[i]` is of the setting with number i. `cores` are the whole machine's, which is
    what is paid for; those of the generator are among them.

    Where `aim.rate_per_s` is None, the highest rate of each setting is sought; else all are measured at that rate.
    """

    predictions: tuple[Prediction, ...]
    aim: Aim
    cores: int

    @property
    def settings(self) -> tuple[Setting, ...]:
        """By number."""
        return tuple(prediction.setting for prediction in self.predictions)

    @property
    def seeks_rate(self) -> bool:
        """Whether the rate is what is sought."""
        return self.aim.rate_per_s is None

    def cores_of(self, number: int) -> int:
        """How many of the machine's cores a setting takes: all of them where it takes a device too."""
        return cores_taken(self.settings[number].options, self.cores)

    def cost_at(self, number: int, rate_per_s: float) -> float:
        """What 1,000 requests cost there (see `cost_per_1000`); in seconds of the machine where no price is known."""
        price_per_h = self.aim.price_per_h or _ONE_A_SECOND
        return cost_per_1000(price_per_h, self.cores_of(number) / self.cores, rate_per_s)

    def log_latency_s(self) -> Floats:
        """[n] the logarithm of the foretold percentile at the aim's rate."""
        longest_s = _LONGEST * self.aim.objective.limit_s
        return np.log([min(max(one.objective_s, 1e-7), longest_s) for one in self.predictions])

    def log_rate_per_s(self) -> Floats:
        """[n] the logarithm of the foretold highest rate; where none is foretold of any setting, a rate from which a
        search comes to theirs soon.
        """
        highest = max((one.max_rate_per_s for one in self.predictions), default=0.0)
        if not highest:
            return np.log([max(_EASY * one.alone_per_s, 1.0) for one in self.predictions])
        return np.log([max(one.max_rate_per_s, _LOWEST * highest) for one in self.predictions])

    def log_energy_j(self) -> Floats:
        """[n] the logarithm of what a request takes, up to a factor that is the same for all: of the cores in use."""
        used = [one.utilization * self.cores_of(number) for number, one in enumerate(self.predictions)]
        return np.log(np.maximum(used, 1e-3))

    def handicap(self) -> Floats:
        """[n] what is taken off the logarithm of a rate, so that rates compare: their cost, where that is the goal."""
        if self.aim.goal != "cost":
            return np.zeros(len(self.predictions))
        return np.log([float(self.cores_of(number)) for number in range(len(self.predictions))])

    def knobs(self) -> dict[str, list[str]]:
        """Each knob's value in every setting, for the knobs that differ at all."""
        values: dict[str, list[str]] = {
            "variant": [one.variant for one in self.settings],
            "engine": [one.options.engine for one in self.settings],
            "device": [one.options.device for one in self.settings],
            "protocol": [one.protocol for one in self.settings],
            "workers": [str(one.options.workers) for one in self.settings],
            "threads": [str(one.options.threads) for one in self.settings],
            "max_batch_rows": [str(one.options.max_batch_rows) for one in self.settings],
            "max_delay_ms": [f"{one.options.max_delay_ms:g}" for one in self.settings],
        }
        return {name: column for name, column in values.items() if len(set(column)) > 1}


def cores_taken(options: ServerOptions, cores: int) -> int:
    """How many of a machine's `cores` such a server takes: all of them where it takes a device too."""
    return cores if options.device != "cpu" else min(options.workers * max(options.threads, 1), cores)


def cost_per_h(price_per_h: float, share: float) -> float:
    """What the `share` of a machine that a setting takes costs an hour."""
    return price_per_h * share


def cost_per_1000(price_per_h: float, share: float, rate_per_s: float) -> float:
    """What 1,000 requests cost at `rate_per_s` on that share of a machine."""
    return cost_per_h(price_per_h, share) / 3600 * 1000 / rate_per_s


def label_of(setting: Setting, among: Sequence[Setting] = ()) -> str:
    """`int8 openvino cuda grpc 2x1 batch 32 delay 2 ms`: workers x threads; engine and device where they differ."""
    options = setting.options
    engines, devices = ({getattr(one.options, field) for one in among} for field in ("engine", "device"))
    words = [setting.variant]
    words += [options.engine] if len(engines) > 1 else []
    words += [options.device] if len(devices) > 1 or options.device != "cpu" else []
    words += [setting.protocol, f"{options.workers}x{options.threads}", f"batch {options.max_batch_rows}"]
    words += [f"delay {options.max_delay_ms:g} ms"] if options.max_delay_ms else []
    return " ".join(words)
