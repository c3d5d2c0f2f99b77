"""Where rows end: on the disk, as they come; and progress: at whoever started the generators."""

import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import gevent

from mlserve.bench.generator.job import Tick
from mlserve.runs.samples import OK, Sample, SampleWriter

__all__ = ["FileSink"]

# Written at once they take 0.2 ms, for which every request waits that is due meanwhile.
_AT_ONCE = 200
_PAUSE_S = 0.0005


class FileSink:
    """Writes rows to the run's directory, a few at a time, and hands ticks to `report`."""

    def __init__(self, directory: Path, report: Callable[[Tick], None]) -> None:
        self._report = report
        self._writer: SampleWriter | None = _open_writer(directory)
        self._waiting: deque[Sequence[Sample]] = deque()

    def take(self, rows: Sequence[Sample], tick: Tick) -> None:
        """Lets others go on between a few rows and the next."""
        self._waiting.extend(rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE))
        self._report(tick)
        while self._waiting:
            gevent.sleep(_PAUSE_S)
            self._write()

    def close(self) -> None:
        """Turns the rows so far into a finished file; also where a run is cut short."""
        if self._writer is not None:
            while self._waiting:
                self._write()
            writer, self._writer = self._writer, None
            with writer:
                pass

    def _write(self) -> None:
        if self._waiting and self._writer is not None:
            self._writer.append(self._waiting.popleft())


def _open_writer(directory: Path) -> SampleWriter:
    """A writer whose first rows will not be slow: Arrow's own first use takes a quarter of a second."""
    with tempfile.TemporaryDirectory() as scratch, SampleWriter(Path(scratch)) as trial:
        trial.append([Sample(0, None, None, None, 1, 0, OK, "")])
    return SampleWriter(directory)
