"""Where rows end: on the disk, as they come; and progress: at whoever started the generators."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from mlserve.bench.generator.job import Tick
from mlserve.runs.samples import OK, Sample, SampleWriter

__all__ = ["FileSink"]


class FileSink:
    """Writes rows to the run's directory and hands ticks to `report`."""

    def __init__(self, directory: Path, report: Callable[[Tick], None]) -> None:
        self._report = report
        self._writer: SampleWriter | None = _open_writer(directory)

    def take(self, rows: Sequence[Sample], tick: Tick) -> None:
        if self._writer is not None:
            self._writer.append(rows)
        self._report(tick)

    def close(self) -> None:
        """Turns the rows so far into a finished file; also where a run is cut short."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with writer:
                pass


def _open_writer(directory: Path) -> SampleWriter:
    """A writer whose first rows will not be slow: Arrow's own first use takes a quarter of a second."""
    with tempfile.TemporaryDirectory() as scratch, SampleWriter(Path(scratch)) as trial:
        trial.append([Sample(0, None, None, None, 1, 0, OK, "")])
    return SampleWriter(directory)
