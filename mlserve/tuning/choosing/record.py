"""`tune.json`: what a search knows so far. Written anew after each run, so that a search can go on where it stopped."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from mlserve.errors import UsageError
from mlserve.report.choice import FORMAT_VERSION, SEARCH_FILE, TUNE_FILE, Verdict
from mlserve.runs.load import Plan, Protocol
from mlserve.tuning.choosing.aim import Aim
from mlserve.tuning.choosing.attempt import Attempt
from mlserve.tuning.choosing.standing import Settled
from mlserve.tuning.prediction.prediction import Prediction
from mlserve.tuning.setting import Setting

__all__ = [
    "Foretold",
    "Made",
    "Making",
    "Record",
    "Search",
    "as_written",
    "read_record",
    "read_search",
    "write_record",
]

File = TypeVar("File", bound=msgspec.Struct)


class Making(msgspec.Struct, frozen=True, kw_only=True):
    """Of what variants were made: a model's file, the digests of its content and of the rows it was judged by ("" for
    made-up ones), and which variants were asked for, none for what is sensible.
    """

    file: str
    content: str
    data: str = ""
    variants: tuple[str, ...] = ()


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """The versions that were made for a search, and of each variant that was not kept why."""

    asked: Making
    versions: tuple[str, ...]
    refused: dict[str, str] = {}


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, as `search.json` keeps it: a search in the same folder goes on only if it asks for the same.

    `models` are the versions that may be served, `digests` those of their files, `made` where they were made for this
    search; `plan` says what requests hold, in which order, and the first seed, `data` is the digest of their rows, ""
    for made-up ones.
    """

    format_version: int = FORMAT_VERSION
    models: tuple[str, ...]
    digests: tuple[str, ...] = ()
    made: Made | None = None
    protocols: tuple[Protocol, ...]
    aim: Aim
    plan: Plan
    data: str = ""
    short_s: float
    long_s: float


class Foretold(msgspec.Struct, frozen=True, kw_only=True):
    """A prediction as JSON has it: what is without end is null."""

    setting: Setting
    rate_per_s: float
    p50_s: float | None
    p99_s: float | None
    objective_s: float | None
    mean_batch_rows: float
    utilization: float
    max_rate_per_s: float
    alone_per_s: float = 0.0
    disturbed: float = 0.0


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file. A setting's number is its place in `predictions`; `left_out` says of each version, or engine,
    that no setting has why; `settled` and `verdict` are None until the search is over.
    """

    format_version: int = FORMAT_VERSION
    mlserve: str
    cores: int
    budget_s: float
    predictions: tuple[Foretold, ...]
    left_out: dict[str, str] = {}
    attempts: tuple[Attempt, ...] = ()
    settled: Settled | None = None
    verdict: Verdict | None = None

    @property
    def quiet(self) -> bool:
        """Whether nothing else ran when what predictions rest on was timed."""
        return not any(one.disturbed for one in self.predictions)

    def predicted(self) -> tuple[Prediction, ...]:
        """What was foretold."""
        return tuple(_prediction(one) for one in self.predictions)


def as_written(predictions: Sequence[Prediction]) -> tuple[Foretold, ...]:
    """`predictions` as the file has them."""
    return tuple(
        Foretold(
            setting=one.setting,
            rate_per_s=one.rate_per_s,
            p50_s=_finite(one.p50_s),
            p99_s=_finite(one.p99_s),
            objective_s=_finite(one.objective_s),
            mean_batch_rows=one.mean_batch_rows,
            utilization=one.utilization,
            max_rate_per_s=one.max_rate_per_s,
            alone_per_s=one.alone_per_s,
            disturbed=one.disturbed,
        )
        for one in predictions
    )


def write_record(directory: Path, record: Record) -> None:
    """Writes `tune.json` by rename."""
    partial = directory / f"{TUNE_FILE}.partial"
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    partial.rename(directory / TUNE_FILE)


def read_record(directory: Path) -> Record | None:
    """What `tune.json` in `directory` says; None where there is none. Raises UsageError for one that is damaged, or
    of another mlserve.
    """
    return _read(directory / TUNE_FILE, Record)


def read_search(directory: Path) -> Search | None:
    """What `search.json` in `directory` says; None where there is none. Raises UsageError for one that is damaged, or
    of another mlserve.
    """
    return _read(directory / SEARCH_FILE, Search)


def _read(path: Path, type_: type[File]) -> File | None:
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=type_)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path} is of another mlserve than this one: {error}; choose another folder") from error
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is damaged: {error}; remove it, or choose another folder for --out") from error


def _prediction(one: Foretold) -> Prediction:
    return Prediction(
        setting=one.setting,
        rate_per_s=one.rate_per_s,
        p50_s=_or_endless(one.p50_s),
        p99_s=_or_endless(one.p99_s),
        objective_s=_or_endless(one.objective_s),
        mean_batch_rows=one.mean_batch_rows,
        utilization=one.utilization,
        max_rate_per_s=one.max_rate_per_s,
        alone_per_s=one.alone_per_s,
        disturbed=one.disturbed,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _or_endless(value: float | None) -> float:
    return math.inf if value is None else value
