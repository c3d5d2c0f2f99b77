"""Measurements: the runs of one model under the same conditions."""

from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec
import numpy as np

from mlserve.report.conditions import Conditions, conditions_of
from mlserve.report.names import ModelIdentity, identity_of
from mlserve.report.readings import Readings, read_readings
from mlserve.runs.percentiles import block_numbers, latency_blocks
from mlserve.runs.run import Run, ServedModel, find_runs, read_run
from mlserve.runs.samples import Samples, read_samples
from mlserve.runs.window import Window
from mlserve.stats import Blocks, Floats, split_blocks

__all__ = ["Measurement", "Recorded", "group", "read_runs"]


class Recorded(msgspec.Struct, frozen=True):
    """One run as it was read. `samples` are the rows of its measured part, `warm_up` those before it, `readings` what
    its processes used; None where nobody asked, or the run has none.
    """

    directory: Path
    run: Run
    samples: Samples
    warm_up: Samples | None = None
    readings: Readings | None = None

    @property
    def due_s(self) -> Floats:
        """When each request was due, since the start of the measured part."""
        return self.samples.scheduled_s - self.run.window.start_s

    @property
    def answered_at_s(self) -> Floats:
        """When each good answer was complete, since the start of the measured part."""
        return self.samples.done_s[self.samples.ok] - self.run.window.start_s

    @property
    def latency_blocks(self) -> Blocks:
        """Latencies of the requests answered well, one block for each twentieth of the run (seconds)."""
        return latency_blocks(self.samples, self.run.window)

    @property
    def failure_blocks(self) -> Blocks:
        """1 for each request that was not answered well, dropped ones included, 0 for each other."""
        failed: Floats = (~self.samples.ok).astype(np.float64)
        return split_blocks(failed, block_numbers(self.samples.scheduled_s, self.run.window))


class Measurement(msgspec.Struct, frozen=True):
    """Runs of one model under the same conditions, in the order they were made. `proof` are those of them that
    confirmed what the others were looked at to choose; empty where all count alike.
    """

    model: ServedModel
    conditions: Conditions
    runs: tuple[Recorded, ...]
    proof: tuple[Recorded, ...] = ()

    @property
    def identity(self) -> ModelIdentity:
        """What tells its model from others."""
        return identity_of(self.runs[0].run)

    @property
    def counted(self) -> tuple[Recorded, ...]:
        """The runs that figures are taken of."""
        return self.proof or self.runs

    @property
    def valid(self) -> bool:
        """Whether at least one run that counts may be believed."""
        return any(recorded.run.certificate.valid for recorded in self.counted)

    @property
    def believed(self) -> tuple[Recorded, ...]:
        """Of the runs that count the VALID ones; where there are none, all, so that there is something to show beside
        the reason.
        """
        return tuple(recorded for recorded in self.counted if recorded.run.certificate.valid) or self.counted


def read_runs(paths: Iterable[Path]) -> list[Recorded]:
    """The runs that `paths` mean, directories or folders of them, each once, by the time they were made.

    Raises RunFileError when one holds no run or cannot be read.
    """
    directories = {directory.resolve(): directory for path in paths for directory in find_runs(path)}
    return sorted(map(_read, directories.values()), key=lambda one: one.run.started_at)


def _read(directory: Path) -> Recorded:
    run = read_run(directory)
    warm_up = read_samples(directory, Window(0.0, run.window.start_s)) if run.window.start_s else None
    return Recorded(directory, run, read_samples(directory, run.window), warm_up, read_readings(directory))


def group(runs: Iterable[Recorded], confirming: Collection[str] = ()) -> list[Measurement]:
    """`runs` as measurements, in the order in which each first appears. Runs in a folder of `confirming`, which are
    names, are the proof of theirs.
    """
    groups: dict[tuple[ModelIdentity, Conditions], list[Recorded]] = {}
    for recorded in runs:
        groups.setdefault((identity_of(recorded.run), conditions_of(recorded.run)), []).append(recorded)
    return [
        Measurement(
            model=same[0].run.model,
            conditions=conditions,
            runs=tuple(same),
            proof=tuple(one for one in same if one.directory.name in confirming),
        )
        for (_, conditions), same in groups.items()
    ]
