"""Reading and writing quantities people type and read: durations, ratios, sizes. Formatting happens only here."""

import math
import re
import signal

from mlserve.errors import UsageError

__all__ = [
    "format_bytes",
    "format_duration",
    "format_exit",
    "format_rate",
    "format_ratio",
    "parse_bytes",
    "parse_duration_s",
    "parse_fraction",
    "parse_limits",
]

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s|m|h)?")
_BYTES = {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_SIZE = re.compile(r"(\d+(?:\.\d*)?)\s*((?:[kmg]i?)?b)?")


def parse_duration_s(text: str) -> float:
    """`"20s"` -> 20.0, `"1.5m"` -> 90.0, `"250ms"` -> 0.25, `"3"` -> 3.0 (seconds).

    Raises UsageError for anything else, zero included: no duration mlserve asks for may be empty.
    """
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * _SECONDS[match[2] or "s"] if match else 0.0
    if not 0.0 < seconds < math.inf:
        raise UsageError(f"{text!r} is no duration; write a number above zero and a unit, such as 20s, 500ms or 1.5m")
    return seconds


def parse_bytes(text: str) -> int:
    """`"2GB"` -> 2_000_000_000, `"512MiB"` -> 536_870_912, `"90"` -> 90. Raises UsageError for anything else, zero
    included.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    count = float(match[1]) * _BYTES[match[2] or ""] if match else 0.0
    if not 1 <= count < math.inf:
        raise UsageError(f"{text!r} is no size; write a number above zero and a unit, such as 2GB or 512MiB")
    return round(count)


def parse_fraction(text: str, *, most_bare: float = math.inf) -> float:
    """`"10%"` -> 0.1, `"0.1"` -> 0.1. Raises UsageError unless the value is a number of at least zero, and for one
    above `most_bare` without the sign: who writes 5 may well mean 5%, and would get 500%.
    """
    stripped = text.strip()
    try:
        value = float(stripped[:-1]) / 100 if stripped.endswith("%") else float(stripped)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < math.inf:
        raise UsageError(f"{text!r} is no ratio; write a percentage such as 10% or a fraction such as 0.1")
    if value > most_bare and not stripped.endswith("%"):
        raise UsageError(f"{text!r} would be {100 * value:g}%; did you mean {value:g}%? Write the % sign")
    return value


def parse_limits(text: str, example: str = "p99=10%") -> dict[str, str]:
    """`"p99=10%,p50=5%"` -> `{"p99": "10%", "p50": "5%"}`. Raises UsageError for a part without a name or a value,
    and for a name given twice; `example` is what it advises.
    """
    limits: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise UsageError(f"{part!r} is no limit; write NAME=VALUE, such as {example}")
        if name.strip() in limits:
            raise UsageError(f"{text!r} limits {name.strip()} twice; give each name once, such as {example}")
        limits[name.strip()] = value.strip()
    return limits


def format_duration(seconds: float) -> str:
    """Three significant digits in the unit a person would choose: `152 us`, `3.40 ms`, `1.25 s`, `2 m 05 s`."""
    if math.isnan(seconds):
        return "-"
    shown = _rounded(seconds)
    if shown >= 100:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} m {rest:02d} s"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if shown >= scale or unit == "us":
            return f"{_three_digits(shown / scale)} {unit}"
    raise AssertionError(seconds)


def format_exit(status: int) -> str:
    """How a process ended, from its `returncode`: 3 -> `"status 3"`, -11 -> `"signal SIGSEGV"`."""
    if status >= 0:
        return f"status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        return f"signal {-status}"


def format_rate(per_second: float) -> str:
    """`1,234/s`, `98.5/s`."""
    return f"{per_second:,.0f}/s" if per_second >= 100 else f"{_three_digits(per_second)}/s"


def format_bytes(count: float) -> str:
    """Decimal units, as disks and networks count: `90.4 MB`, `812 B`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if _rounded(count) >= scale:
            return f"{_three_digits(count / scale)} {unit}"
    return f"{count:.0f} B"


def format_ratio(ratio: float) -> str:
    """How many times: `1.82x`, `0.25x`."""
    return "-" if math.isnan(ratio) else f"{_three_digits(ratio)}x"


def _rounded(value: float) -> float:
    """`value` to three significant digits: 999.9 us is 1.00 ms, not 1,000 us."""
    return float(f"{value:.3g}")


def _three_digits(value: float) -> str:
    rounded = _rounded(value)
    if rounded >= 100:
        return f"{value:,.0f}"
    return f"{rounded:.1f}" if rounded >= 10 else f"{rounded:.2f}"
