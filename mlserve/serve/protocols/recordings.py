"""Pages of our own to record what the server is asked: begin, look, end, and fetch the trace (`mlserve record`)."""

import asyncio
import time
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from mlserve.errors import InvalidRequest
from mlserve.serve.protocols.dialect import Dialect, Documentation, Page, json_response
from mlserve.serve.recording.recorder import LOOK_EVERY_S
from mlserve.serve.recording.recordings import Recording, RecordingFolder, Wish
from mlserve.serve.settings import ServeSettings

__all__ = ["dialect"]

_WAIT_S = 5.0
_STATUS = {
    "type": "object",
    "required": ["number", "going_on", "requests", "full"],
    "properties": {
        "number": {"type": "integer"},
        "going_on": {"type": "boolean"},
        "requests": {"type": "integer"},
        "full": {"type": "boolean"},
    },
}
_WISH = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "for_s": {"type": "number", "exclusiveMinimum": 0},
        "model": {"type": "string"},
        "bodies": {"enum": ["none", "hash", "keep"]},
        "keep_share": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "most_requests": {"type": "integer", "minimum": 1},
        "most_bytes": {"type": "integer", "minimum": 0},
    },
}


def dialect(settings: ServeSettings) -> Dialect:
    """The pages; all ask for the scope `admin`, for what clients send is nobody else's business."""
    pages = _Pages(RecordingFolder(Path(settings.run_directory)))
    number = Documentation(response={"type": "string", "format": "binary"}, statuses=(400,))
    return Dialect(
        "recordings",
        (
            Page(
                "/recording",
                ("POST",),
                "admin",
                pages.begin,
                "Begins to record what is asked",
                Documentation(request=_WISH, response=_STATUS, statuses=(400,)),
            ),
            Page(
                "/recording/{number:int}",
                ("DELETE",),
                "admin",
                pages.end,
                "Ends a recording",
                Documentation(response=_STATUS, statuses=(400,)),
            ),
            Page(
                "/recording/{number:int}",
                ("GET",),
                "admin",
                pages.status,
                "How far a recording is",
                Documentation(response=_STATUS, statuses=(400,)),
            ),
            Page(
                "/recording/{number:int}/trace", ("GET",), "admin", pages.trace, "What was recorded, as Parquet", number
            ),
        ),
    )


class _Pages:
    """One method a page."""

    def __init__(self, folder: RecordingFolder) -> None:
        self._folder = folder

    async def begin(self, request: Request) -> Response:
        body = await request.body()
        try:
            wish = msgspec.json.decode(body, type=Wish) if body else Wish()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"the wish cannot be read: {error}") from error
        return self._status(self._folder.begin(wish).number)

    async def status(self, request: Request) -> Response:
        return self._status(request.path_params["number"])

    async def end(self, request: Request) -> Response:
        """Answers once every worker has written what it took."""
        number = request.path_params["number"]
        self._folder.parts(number)
        self._folder.end(number)
        deadline_s = time.monotonic() + _WAIT_S
        while not all(part.ended for part in self._folder.parts(number).values()) and time.monotonic() < deadline_s:
            await asyncio.sleep(LOOK_EVERY_S / 2)
        return self._status(number)

    async def trace(self, request: Request) -> Response:
        content = await asyncio.to_thread(self._trace, request.path_params["number"])
        return Response(content, media_type="application/vnd.apache.parquet")

    def _trace(self, number: int) -> bytes:
        """In memory, where it is anyway: the recording may have ended because the disk is full."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from mlserve.runs.trace import trace_schema

        table = self._folder.collect(number)
        schema = trace_schema(self._folder.started_at(number))
        file = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata(schema.metadata), file, compression="zstd")
        content: bytes = file.getvalue().to_pybytes()
        return content

    def _is_now(self, number: int) -> bool:
        now: Recording | None = self._folder.now()
        return now is not None and now.number == number

    def _status(self, number: int) -> Response:
        parts = self._folder.parts(number).values()
        return json_response(
            {
                "number": number,
                "going_on": self._is_now(number),
                "requests": sum(part.requests for part in parts),
                "full": any(part.full for part in parts),
            }
        )
