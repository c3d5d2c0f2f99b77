"""What a worker does for a recording: notes every request that reached a queue, and writes them down in the background.

While nothing is recorded this costs a batch one look at an attribute.
"""

import asyncio
import hashlib
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mlserve.errors import RequestError
from mlserve.model.tensors import Tensors
from mlserve.serve.batching.batcher import Batch, BatchObserver, Ticket
from mlserve.serve.recording.recordings import Part, Recording, RecordingFolder
from mlserve.serve.watching.sampling import Sampler
from mlserve.wire.signature import Signature

__all__ = ["LOOK_EVERY_S", "Recorded", "Recorder", "open_recorder"]

LOOK_EVERY_S = 0.2
"""A worker notices within this that a recording begins or ends."""

_log = logging.getLogger("mlserve.serve")


@cache
def open_recorder(run_directory: str) -> "Recorder":
    """The recorder of this process: the same one for every model."""
    return Recorder(RecordingFolder(Path(run_directory)))


class _Noted(NamedTuple):
    """One request as it was when it was answered. `inputs` are None where its body is of no interest."""

    arrived_s: float
    rows: int
    signature: Signature
    protocol: str
    shapes: dict[str, tuple[int, ...]]
    inputs: Tensors | None


class Recorder:
    """`recording` is the one that goes on, None for none. `take` may be called by any thread."""

    def __init__(self, folder: RecordingFolder) -> None:
        self.folder = folder
        self.recording: Recording | None = None
        self._lock = threading.Lock()
        self._noted: list[_Noted] = []
        self._chosen = Sampler(0.0)
        self._stream: Any = None
        self._requests = self._body_bytes = 0
        self._full = False

    def take(self, signature: Signature, tickets: Sequence[Ticket]) -> None:
        """Notes the requests of `tickets`, which have just been answered or failed."""
        recording = self.recording
        if recording is None or (recording.wish.model and recording.wish.model != signature.name):
            return
        with self._lock:
            chosen = self._chosen.choose(len(tickets))
            self._noted += [
                _Noted(
                    ticket.arrived_s,
                    ticket.rows,
                    signature,
                    ticket.protocol,
                    {name: array.shape for name, array in ticket.inputs.items()},
                    ticket.inputs if position in chosen else None,
                )
                for position, ticket in enumerate(tickets)
                if ticket.arrived_s >= recording.began_s
            ]

    async def follow(self) -> None:
        """Records whenever a recording goes on, for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                found = self.folder.now()
            except OSError:  # no file can be opened at the moment; serving goes on, and so does the recording
                continue
            if self.recording is not None and (found is None or found.number != self.recording.number):
                await self._end(self.recording)
            if self.recording is None and found is not None:
                self._begin(found)
            if self.recording is not None:
                await self._write(self.recording, ended=False)

    def _begin(self, recording: Recording) -> None:
        wish = recording.wish
        self._noted, self._requests, self._body_bytes, self._full = [], 0, 0, False
        self._chosen = Sampler({"none": 0.0, "hash": 1.0, "keep": wish.keep_share}[wish.bodies])
        self.recording = recording

    async def _end(self, recording: Recording) -> None:
        # First no more is noted, then what was is written.
        self.recording = None
        await self._write(recording, ended=True)
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.close()
            except OSError as error:
                _log.warning("a recording lacks its end: %s", error.strerror)

    async def _write(self, recording: Recording, *, ended: bool) -> None:
        with self._lock:
            noted, self._noted = self._noted, []
        wish = recording.wish
        room = wish.most_requests - self._requests
        try:
            if noted and not self._full:  # behind what could not be written nothing could be read
                if room:
                    await asyncio.to_thread(self._append, recording, noted[:room])
                self._full = len(noted) > room or self._body_bytes > wish.most_bytes
            self.folder.tell(recording.number, Part(self._requests, full=self._full, ended=ended))
        except OSError as error:  # serving goes on
            _log.warning("a recording ends early, it cannot be written: %s", error.strerror)
            self._full = True
        if self._full:
            with suppress(OSError):  # it ends when its time is up
                self.folder.end(recording.number)

    def _append(self, recording: Recording, noted: Sequence[_Noted]) -> None:
        import pyarrow as pa

        from mlserve.runs.trace import SCHEMA

        if self._stream is None:
            self._stream = _Stream(self.folder.stream_of(recording.number), SCHEMA)
        rows = [self._row(recording, each) for each in noted]
        self._stream.append(
            pa.RecordBatch.from_arrays(
                [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)],
                schema=SCHEMA,
            )
        )
        self._requests += len(rows)

    def _row(self, recording: Recording, noted: _Noted) -> tuple[Any, ...]:
        digest = body = None
        if noted.inputs is not None:
            body = _body(noted.signature, noted.inputs)
            digest = hashlib.sha256(body).hexdigest()
            if recording.wish.bodies == "keep":
                self._body_bytes += len(body)
            if recording.wish.bodies == "hash" or self._body_bytes > recording.wish.most_bytes:
                body = None
        at_ns = round((noted.arrived_s - recording.began_s) * 1e9)
        shapes = msgspec.json.encode(noted.shapes).decode()
        return at_ns, noted.rows, noted.signature.name, noted.protocol, shapes, digest, body


class Recorded:
    """An observer that also hands the requests of one model to the recorder."""

    def __init__(self, observer: BatchObserver, signature: Signature, recorder: Recorder) -> None:
        self._observer, self._signature, self._recorder = observer, signature, recorder
        self.ran = observer.ran

    def answered(self, tickets: Sequence[Ticket], batch: Batch) -> None:
        self._observer.answered(tickets, batch)
        if self._recorder.recording is not None:
            self._recorder.take(self._signature, tickets)

    def failed(self, protocol: str, error: RequestError, ticket: Ticket) -> None:
        self._observer.failed(protocol, error, ticket)
        if self._recorder.recording is not None:
            self._recorder.take(self._signature, [ticket])


class _Stream:
    """An Arrow stream that is on the disk after every batch."""

    def __init__(self, path: Path, schema: Any) -> None:
        import pyarrow as pa

        self._file = path.open("wb")
        self._stream = pa.ipc.new_stream(self._file, schema)

    def append(self, batch: Any) -> None:
        self._stream.write_batch(batch)
        self._file.flush()

    def close(self) -> None:
        with self._file:
            self._stream.close()


def _body(signature: Signature, inputs: Tensors) -> bytes:
    """The tensors as one message of V2, whatever protocol they came by: equal tensors make equal bodies."""
    from mlserve.wire import grpc

    return grpc.encode_request(signature.name, "", inputs, [field.spec for field in signature.inputs.values()])
