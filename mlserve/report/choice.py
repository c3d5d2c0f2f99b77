"""What a search chose, as `mlserve tune` left it beside its runs in `tune.json` and `search.json`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from mlserve.errors import RunFileError
from mlserve.report.measurement import Recorded
from mlserve.report.slo import Slo
from mlserve.units import format_duration, format_rate

__all__ = ["FORMAT_VERSION", "NEAR", "SEARCH_FILE", "TUNE_FILE", "Choice", "Tried", "Verdict", "read_choice"]

NEAR = 0.2
"""How far from what was measured a prediction may be to count as near."""

SEARCH_FILE, TUNE_FILE = "search.json", "tune.json"
# Of both. 1: first format
FORMAT_VERSION = 1
_File = TypeVar("_File", bound=msgspec.Struct)
Goal = Literal["throughput", "goodput", "latency", "cost", "energy"]


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """A setting that was measured, and why it was not picked. `value`, with an interval where there is one, is what the
    search wanted high or low; None where the objective was not met. `predicted` and `measured` are the objective's
    percentile (seconds) where a rate was given, else the highest rate (a second).
    """

    number: int
    label: str
    state: Literal["picked", "met", "missed", "failed"]
    why: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    predicted: float | None = None
    measured: float | None = None
    runs: int = 0


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The pick, None where nothing met the objective; then `nearest` says what came next to it, and `needed` what would
    help. `figure` names what `value`s are: requests/s, good answers/s, seconds, price or machine seconds of 1,000
    requests, joules.

    `flip` is the probability that the runner-up is better after all, by all that is believed of both; None where there
    is none, or nothing tells. `importance` is the share of the variance over all settings that each knob explains by
    itself. `near` of `compared` predictions were within 20% of what was measured.
    """

    pick: Tried | None
    confirmed: bool
    valid: bool
    rate_per_s: float
    figure: str
    why: str
    runner_up: Tried | None = None
    flip: float | None = None
    tried: tuple[Tried, ...] = ()
    untried: dict[str, str] = {}
    importance: dict[str, float] = {}
    near: int = 0
    compared: int = 0
    nearest: str = ""
    needed: str = ""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What a search among `settings` found for `slo` and `goal`: `pick`, None where nothing met the objective.

    `rate_per_s` is the load to bear, None where the highest was sought; `at_per_s` is where the pick was proven, in the
    runs `folders`; `runner_up_folders` are the runs that met the objective at the runner-up's highest rate. `flip` is
    the probability that the runner-up is better after all. `importance` is the share of the differences that each knob
    explains; `near` of `compared` predictions came within `NEAR` of what was measured.
    """

    slo: Slo
    goal: Goal
    rate_per_s: float | None
    price_per_h: float | None
    settings: int
    figure: str
    pick: Tried | None
    confirmed: bool
    valid: bool
    at_per_s: float
    why: str
    folders: tuple[str, ...] = ()
    runner_up: Tried | None = None
    runner_up_folders: tuple[str, ...] = ()
    flip: float | None = None
    tried: tuple[Tried, ...] = ()
    untried: dict[str, str] = {}
    left_out: dict[str, str] = {}
    importance: dict[str, float] = {}
    near: int = 0
    compared: int = 0
    nearest: str = ""
    needed: str = ""

    def write(self, value: float) -> str:
        """A `value` as a reader reads it."""
        match self.goal:
            case "throughput" | "goodput":
                return format_rate(value)
            case "latency":
                return format_duration(value)
            case "cost" if self.price_per_h is None:
                # What an older mlserve searched is in hours, and says so.
                return f"{3600 * value if self.figure.startswith('machine hours') else value:.3g} s of a machine"
        return f"{value:.3g}"

    def written(self, tried: Tried) -> str:
        """`4.05 ms (3.90 ms to 4.21 ms)`; "" where there is no value."""
        if tried.value is None:
            return ""
        if tried.low is None or tried.high is None or tried.low == tried.high:
            return self.write(tried.value)
        return f"{self.write(tried.value)} ({self.write(tried.low)} to {self.write(tried.high)})"

    @property
    def confirming(self) -> tuple[str, ...]:
        """The runs that confirmed the pick; none where it is not confirmed."""
        return self.folders if self.confirmed else ()

    @property
    def all_missed(self) -> bool:
        """Whether every setting that was measured misses the objective."""
        return bool(self.tried) and all(one.state == "missed" for one in self.tried)

    @property
    def sentence(self) -> str:
        """What the pick does, and how the runner-up compares; "" without a pick."""
        if self.pick is None:
            return ""
        verb = "keeps" if self.valid else "kept, in one run,"
        limit = f"{self.pick.label} {verb} {self.slo.name} within {format_duration(self.slo.limit_s)}"
        value, rate = self.written(self.pick), format_rate(self.at_per_s)
        match self.goal:
            case "throughput":
                found = f"{limit} up to {value}"
            case "goodput":
                found = f"{limit} and gives {value} good answers at {rate}"
            case "latency":
                found = f"{limit} at {rate}: {value}"
            case "cost":
                found = f"{limit} at {rate}, for {value} a thousand requests"
            case "energy":
                found = f"{limit} at {rate}, with {value} J a request"
        if self.runner_up is None:
            return f"{found}."
        chance = "" if self.flip is None else f", which is better after all with a probability of {self.flip:.0%}"
        return f"{found}; the runner-up is {self.runner_up.label} with {self.written(self.runner_up)}{chance}."

    def foretold(self, value: float | None) -> str:
        """What was predicted or measured, as a reader reads it; "-" where that is unknown."""
        if value is None:
            return "-"
        return format_rate(value) if self.rate_per_s is None else format_duration(value)


class _Aim(msgspec.Struct, frozen=True, kw_only=True):
    objective: Slo
    goal: Goal
    rate_per_s: float | None = None
    price_per_h: float | None = None


class _Search(msgspec.Struct, frozen=True, kw_only=True):
    aim: _Aim


class _Trial(msgspec.Struct, frozen=True, kw_only=True):
    number: int
    rate_per_s: float
    fidelity: str


class _Attempt(msgspec.Struct, frozen=True, kw_only=True):
    trial: _Trial
    folder: str
    met: bool = False
    failure: str = ""
    in_turns: bool = False

    @property
    def shows(self) -> bool:
        """Whether it met the objective with the machine to itself."""
        return self.met and not self.in_turns


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    format_version: int = FORMAT_VERSION
    predictions: tuple[msgspec.Raw, ...] = ()
    left_out: dict[str, str] = {}
    attempts: tuple[_Attempt, ...] = ()
    verdict: Verdict | None = None


def read_choice(runs: Sequence[Recorded]) -> Choice | None:
    """What the search that made `runs` chose; None where they are not all runs of one search, or it is not over.

    Raises RunFileError for a file of it that cannot be read.
    """
    folders = {one.directory.parent for one in runs}
    folder = next(iter(folders), None)
    if folder is None or len(folders) > 1 or not (folder / TUNE_FILE).is_file():
        return None
    record = _read(folder / TUNE_FILE, _Record)
    if record.format_version > FORMAT_VERSION:
        raise RunFileError(
            f"{folder / TUNE_FILE} has format {record.format_version}, and this mlserve reads {FORMAT_VERSION}: it "
            "is of a newer one; update mlserve, or move the file away to report on the runs alone"
        )
    names = {one.directory.name for one in runs}
    if record.verdict is None or not names >= {one.folder for one in record.attempts if not one.failure}:
        return None
    aim = _read(folder / SEARCH_FILE, _Search).aim
    return _choice(record, record.verdict, aim)


def _choice(record: _Record, verdict: Verdict, aim: _Aim) -> Choice:
    said = msgspec.structs.asdict(verdict)
    return Choice(
        slo=aim.objective,
        goal=aim.goal,
        rate_per_s=aim.rate_per_s,
        price_per_h=aim.price_per_h,
        settings=len(record.predictions),
        at_per_s=said.pop("rate_per_s"),
        folders=_proof(record.attempts, verdict),
        runner_up_folders=_best(record.attempts, verdict.runner_up),
        left_out=record.left_out,
        **said,
    )


def _proof(attempts: Sequence[_Attempt], verdict: Verdict) -> tuple[str, ...]:
    """The runs of the pick where it was proven, those that confirmed it if there are any."""
    if verdict.pick is None:
        return ()
    place = verdict.pick.number, verdict.rate_per_s
    mine = [one for one in attempts if one.shows and (one.trial.number, one.trial.rate_per_s) == place]
    return tuple(one.folder for one in ([one for one in mine if one.trial.fidelity == "confirm"] or mine))


def _best(attempts: Sequence[_Attempt], tried: Tried | None) -> tuple[str, ...]:
    """The runs of a setting that met the objective at the highest rate at which one did."""
    mine = [one for one in attempts if one.shows and tried is not None and one.trial.number == tried.number]
    highest = max((one.trial.rate_per_s for one in mine), default=0.0)
    return tuple(one.folder for one in mine if one.trial.rate_per_s == highest)


def _read(path: Path, kind: type[_File]) -> _File:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.DecodeError, OSError) as error:
        raise RunFileError(f"{path} is damaged: {error}; move it away to report on the runs alone") from error
