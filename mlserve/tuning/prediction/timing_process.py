"""The process that times runs of one engine, as a server of ours would make them.

    python -m mlserve.tuning.prediction.timing_process JOB RESULT    (started by `service_times`)

Its core, and nothing else that could disturb it, is what a server would have. It reads the file JOB and writes RESULT.
"""

import sys
import threading
import time
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from mlserve.engines.engine import Engine, EngineSettings
from mlserve.engines.independence import rows_independent
from mlserve.engines.opening import open_engine, open_onnx_file
from mlserve.errors import MlserveError
from mlserve.model.artifact import MANIFEST, Artifact, read_manifest
from mlserve.model.tensors import Tensors
from mlserve.serve.batching.lengths import LadderSignature
from mlserve.serve.tasks.carried import Carried
from mlserve.serve.tasks.signing import open_signature
from mlserve.stats import Floats
from mlserve.tuning.prediction.processor import MOST_WAITED, waited_s
from mlserve.tuning.prediction.times import Pace, RowTimes, levels_of
from mlserve.wire import grpc
from mlserve.wire.signature import Signature

__all__ = ["TimingJob", "TimingResult", "main"]

# After so long a pause, caches and clocks are what they are where a request comes now and then.
_PAUSE_S = 0.01
_FEWEST, _MOST = 5, 400
# Shorter ones vary by what they find in the caches more than by what happens to the machine.
_TELLING_S = 1e-3
_WAITS, _WAIT_S = 400, 1e-3


class TimingJob(msgspec.Struct, frozen=True, kw_only=True):
    """Runs of up to `most_rows` rows of the model in `path`, a version's folder or an ONNX file, for `budget_s`.

    `bodies` are the requests that rows are taken from, as gRPC writes them.
    """

    path: str
    settings: EngineSettings
    bodies: tuple[bytes, ...]
    most_rows: int
    budget_s: float


class TimingResult(msgspec.Struct, frozen=True, kw_only=True):
    """See EngineTimes; `fault` says why there is nothing."""

    fault: str = ""
    together: bool = True
    kinds: tuple[int, ...] = ()
    times: tuple[RowTimes, ...] = ()
    pace: Pace = Pace()
    late_s: tuple[float, ...] = (0.0,)
    waited: float = 0.0


class _Opened(NamedTuple):
    engine: Engine
    signature: Signature


class _Cell:
    """Runs of so many rows of one kind, and how long they took."""

    def __init__(self, kind: int, rows: int, choices: Sequence[Tensors]) -> None:
        self.kind, self.rows, self.choices = kind, rows, choices
        self.busy_s: list[float] = []
        self.rested_s: list[float] = []
        self.waited_s: list[float] = []
        self.began_s: list[float] = []
        self.spent_s = 0.0

    def time(self, engine: Engine) -> None:
        """One run after a pause and one right after another."""
        inputs = self.choices[len(self.busy_s) % len(self.choices)]
        began_s, before_s = time.perf_counter(), waited_s()
        time.sleep(_PAUSE_S)
        self.rested_s.append(_timed_s(engine, inputs))
        self.busy_s.append(_timed_s(engine, inputs))
        self.waited_s.append(waited_s() - before_s)
        self.began_s.append(began_s)
        self.spent_s += time.perf_counter() - began_s

    def took_s(self) -> Floats:
        """How long each pause and both runs took, without what came between."""
        took_s: Floats = np.array(self.busy_s) + self.rested_s + _PAUSE_S
        return took_s

    def calm(self) -> "_Cell":
        """Without the half that waited longest, if threads waited for a core to an extent that shows."""
        took_s = self.took_s()
        if sum(self.waited_s) <= MOST_WAITED * took_s.sum():
            return self
        calmest = np.argsort(np.array(self.waited_s) / took_s, kind="stable")[: max(_FEWEST, len(took_s) // 2)]
        calm = _Cell(self.kind, self.rows, self.choices)
        calm.busy_s, calm.rested_s, calm.waited_s, calm.began_s = (
            [values[number] for number in calmest]
            for values in (self.busy_s, self.rested_s, self.waited_s, self.began_s)
        )
        return calm

    def told(self) -> Iterator[tuple[float, float, float]]:
        """(when its pair began, how long it took, how long its like typically takes) of each run."""
        for took_s in (self.rested_s, self.busy_s):
            typical_s = float(np.median(took_s))
            yield from ((began_s, each_s, typical_s) for began_s, each_s in zip(self.began_s, took_s, strict=True))


def main() -> None:
    """Times what the job says."""
    job = msgspec.msgpack.decode(Path(sys.argv[1]).read_bytes(), type=TimingJob)
    try:
        result = _timed(job)
    except MlserveError as error:
        result = TimingResult(fault=str(error))
    Path(sys.argv[2]).write_bytes(msgspec.msgpack.encode(result))


def _timed(job: TimingJob) -> TimingResult:
    opened = _open(Path(job.path), job.settings)
    requests = [grpc.decode_request(grpc.parse_request(body), opened.signature).inputs for body in job.bodies]
    kinds = _kinds(requests, opened.signature)
    cells = list(_cells(requests, kinds, opened.signature, job.most_rows))
    late_s = _late_s()
    for cell in cells:
        opened.engine.run(cell.choices[0])
    share_s = job.budget_s / len(cells)
    while (behind := _behind(cells, share_s)) is not None:
        behind.time(opened.engine)
    opened.engine.close()
    cells = [cell.calm() for cell in cells]
    took_s = sum(float(cell.took_s().sum()) for cell in cells)
    return TimingResult(
        together=opened.signature.together,
        kinds=tuple(kinds),
        times=tuple(
            RowTimes(kind=cell.kind, rows=cell.rows, busy_s=levels_of(cell.busy_s), rested_s=levels_of(cell.rested_s))
            for cell in cells
        ),
        pace=_pace(cells),
        late_s=levels_of(late_s),
        waited=min(1.0, sum(sum(cell.waited_s) for cell in cells) / took_s),
    )


def _late_s() -> list[float]:
    """How much longer than it should a thread waits, as one of a batcher does for others to come along."""
    late_s, never = [], threading.Event()
    for _ in range(_WAITS):
        before_s = time.perf_counter()
        never.wait(_WAIT_S)
        late_s.append(max(0.0, time.perf_counter() - before_s - _WAIT_S))
    return late_s


def _pace(cells: Sequence[_Cell]) -> Pace:
    """All runs that are long enough to show it, in the order in which they were made."""
    told = sorted((each for cell in cells for each in cell.told() if each[2] >= _TELLING_S), key=lambda each: each[0])
    return Pace(
        took_s=tuple(round(took_s, 6) for _, took_s, _ in told),
        typical_s=tuple(round(typical_s, 6) for *_, typical_s in told),
    )


def _open(path: Path, settings: EngineSettings) -> _Opened:
    """The engine and the signature that a server would have: see serve/loading.py."""
    if not (path / MANIFEST).is_file():
        engine = open_onnx_file(path, settings)
        together = rows_independent(engine, engine.inputs)
        return _Opened(engine, Signature(path.stem, "1", engine.inputs, engine.outputs, together=together))
    artifact = Artifact(path, read_manifest(path))
    engine = open_engine(artifact, settings)
    return _Opened(engine, open_signature(path.parent.name, path.name, Carried(artifact), engine))


def _kinds(requests: Sequence[Tensors], signature: Signature) -> list[int]:
    """The number of each request's batch key."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(signature.batch_key(inputs), len(numbers)) for inputs in requests]


def _cells(requests: Sequence[Tensors], kinds: Sequence[int], signature: Signature, most_rows: int) -> "list[_Cell]":
    cells = []
    for kind in range(max(kinds) + 1):
        own = [inputs for inputs, each in zip(requests, kinds, strict=True) if each == kind]
        if not signature.together:
            cells.append(_Cell(kind, 1, own))
            continue
        cells += [_Cell(kind, rows, _choices(own, rows, signature)) for rows in _row_counts(own, most_rows)]
    return cells


def _row_counts(requests: Sequence[Tensors], most_rows: int) -> list[int]:
    """1, 2, 4, 8, ... and the most; where a request alone has more, it runs alone."""
    most = max(most_rows, *(len(next(iter(inputs.values()))) for inputs in requests))
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]


def _choices(requests: Sequence[Tensors], rows: int, signature: Signature) -> list[Tensors]:
    """Several batches of `rows` rows, each begun with another of `requests`."""
    return [_joined(requests, start, rows, signature) for start in range(min(len(requests), 8))]


def _joined(requests: Sequence[Tensors], start: int, rows: int, signature: Signature) -> Tensors:
    parts: list[Tensors] = []
    held = 0
    while held < rows:
        parts.append(requests[(start + len(parts)) % len(requests)])
        held += len(next(iter(parts[-1].values())))
    if isinstance(signature, LadderSignature):
        whole = signature.padding.joined(parts)
    else:
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: array[:rows] for name, array in whole.items()}


def _behind(cells: Sequence[_Cell], share_s: float) -> _Cell | None:
    """The one that is farthest from its end, so that what happens to the machine falls on all of them alike; None where
    all are done.
    """
    progress, place = min((_progress(cell, share_s), place) for place, cell in enumerate(cells))
    return cells[place] if progress < 1 else None


def _progress(cell: _Cell, share_s: float) -> float:
    """From 0 to 1, where it is done."""
    done = len(cell.busy_s)
    return min(done / _FEWEST, max(done / _MOST, cell.spent_s / share_s))


def _timed_s(engine: Engine, inputs: Tensors) -> float:
    before_s = time.perf_counter()
    engine.run(inputs)
    return time.perf_counter() - before_s


if __name__ == "__main__":
    main()
