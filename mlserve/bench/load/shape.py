"""Shapes of load as people write and read them: `ramp:2000`, `spikes:5x1s/10s`."""

import math

from mlserve.errors import UsageError
from mlserve.runs.load import Bursts, Flat, Ramp, Replay, Shape, Spikes, Steps
from mlserve.units import format_duration, format_rate, format_ratio, parse_duration_s

__all__ = ["FORMS", "first_rate_per_s", "parse_shape", "peak_rate_per_s", "shape_name"]

FORMS = (
    "flat, ramp:2000 (to so many a second), steps:100,200,400 (so many a second, one after the other), "
    "spikes:5x1s/10s (5 times the rate for the last 1s of every 10s) or bursts:1s/4s (1s of load, 4s of none)"
)


def parse_shape(text: str, rate_per_s: float) -> Shape:
    """The shape that `text` says, for a load that starts from `rate_per_s`.

    `"ramp:2000"` -> `Ramp(2000.0)`; `"steps:1x,2x,4x"` at 100/s -> `Steps((100.0, 200.0, 400.0))`: a rate may be
    written as so many times `rate_per_s`. Raises UsageError for another form.
    """
    kind, _, rest = text.strip().partition(":")
    try:
        match kind:
            case "flat" if not rest:
                return Flat()
            case "ramp":
                return Ramp(_rate(rest, rate_per_s))
            case "steps":
                return Steps(tuple(_rate(part, rate_per_s) for part in rest.split(",")))
            case "spikes":
                factor, length_s, every_s = _times(rest)
                return Spikes(factor, length_s, every_s)
            case "bursts":
                return Bursts(*_two_durations(rest))
    except ValueError as error:
        raise UsageError(f"--shape {text!r}: {error}; write {FORMS}") from error
    raise UsageError(f"--shape {text!r} is unknown; write {FORMS}")


def shape_name(shape: Shape) -> str:
    """`shape` in a few words, for labels and reports: `ramp to 2,000/s`; "" for one that is flat."""
    match shape:
        case Flat():
            return ""
        case Ramp(to_per_s):
            return f"ramp to {format_rate(to_per_s)}"
        case Steps(rates_per_s):
            return f"steps of {', '.join(format_rate(rate) for rate in rates_per_s)}"
        case Spikes(factor, length_s, every_s):
            return f"spikes of {format_ratio(factor)} for {format_duration(length_s)} every {format_duration(every_s)}"
        case Bursts(on_s, off_s):
            return f"bursts of {format_duration(on_s)}, {format_duration(off_s)} apart"
        case Replay(source, _, speed):
            return f"replay of {source}" + ("" if speed == 1.0 else f" at {format_ratio(speed)} its speed")


def first_rate_per_s(shape: Shape, rate_per_s: float) -> float:
    """The rate that `shape` begins with, and the warm-up has: the first step's, and else the plan's own."""
    return shape.rates_per_s[0] if isinstance(shape, Steps) else rate_per_s


def peak_rate_per_s(shape: Shape, rate_per_s: float) -> float:
    """The highest rate that `shape` comes to; of a replay its mean."""
    match shape:
        case Ramp(to_per_s):
            return max(rate_per_s, to_per_s)
        case Steps(rates_per_s):
            return max(rates_per_s)
        case Spikes(factor, _, _):
            return rate_per_s * max(1.0, factor)
    return rate_per_s


def _rate(text: str, rate_per_s: float) -> float:
    stripped = text.strip()
    rate = _above_zero(stripped.removesuffix("x"), f"{stripped!r} is no rate")
    return rate * rate_per_s if stripped.endswith("x") else rate


def _times(text: str) -> tuple[float, float, float]:
    factor, times, rest = text.partition("x")
    if not times:
        raise ValueError(f"{text!r} does not say how many times the rate a spike has")
    length_s, every_s = _two_durations(rest)
    if length_s >= every_s:
        raise ValueError(f"a spike of {format_duration(length_s)} does not fit into {format_duration(every_s)}")
    return _above_zero(factor, f"{factor!r} is no number of times"), length_s, every_s


def _two_durations(text: str) -> tuple[float, float]:
    first, slash, second = text.partition("/")
    if not slash:
        raise ValueError(f"{text!r} is not two durations")
    try:
        return parse_duration_s(first), parse_duration_s(second)
    except UsageError as error:
        raise ValueError(str(error)) from error


def _above_zero(text: str, fault: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError(fault) from error
    if not 0 < value < math.inf:
        raise ValueError(fault)
    return value
