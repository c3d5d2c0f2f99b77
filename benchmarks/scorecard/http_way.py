"""V2 over HTTP/1.1, as JSON: on connections that are kept, one request at a time each, or a connection for each."""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, cast
from urllib.parse import quote

import msgspec
from scorecard.judging import Question, Said
from scorecard.known import payload

__all__ = ["HttpWay", "read_said", "write_request"]

Done = Callable[[Said], None]


class HttpWay:
    """The connections of one load. No more than `most` are open: what finds none waits for one."""

    def __init__(
        self, address: str, model: str, headers: Mapping[str, str], most: int, context: ssl.SSLContext | None = None
    ) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port, self._most = host.strip("[]"), int(port), most
        self._model, self._fields = model, "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._authority = address
        self._tls: dict[str, Any] = {"ssl": context, "server_hostname": "localhost"} if context else {}
        self._free: list[_Connection] = []
        self._waiting: deque[tuple[bytes, Done]] = deque()
        self._all: set[_Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()

    async def open(self, count: int) -> None:
        """Opens some connections in advance; a server that takes none is found out by the requests."""
        for _ in range(count):
            self._begin_opening(keep=True)
        await asyncio.gather(*self._opening)

    def send(self, question: Question, done: Done) -> None:
        """On a connection that is kept."""
        request = write_request(question, self._model, self._authority, self._fields)
        while self._free:
            connection = self._free.pop()
            if connection.usable:
                connection.ask(request, done)
                return
        self._waiting.append((request, done))
        if len(self._all) + len(self._opening) < self._most:
            self._begin_opening(keep=True)

    def send_new(self, question: Question, done: Done) -> None:
        """On a connection of its own, which the server is told to close."""
        fields = self._fields + "connection: close\r\n"
        self._begin_opening((write_request(question, self._model, self._authority, fields), done), keep=False)

    def close(self) -> None:
        for task in self._opening:
            task.cancel()
        for connection in list(self._all):
            connection.transport.abort()

    def free(self, connection: "_Connection") -> None:
        """The connection has had its answer."""
        if self._waiting:
            connection.ask(*self._waiting.popleft())
        else:
            self._free.append(connection)

    def gone(self, connection: "_Connection") -> None:
        """The connection is closed."""
        self._all.discard(connection)
        if connection in self._free:
            self._free.remove(connection)
        if self._waiting and len(self._all) + len(self._opening) < self._most:
            self._begin_opening(keep=True)

    def _begin_opening(self, first: tuple[bytes, Done] | None = None, *, keep: bool) -> None:
        task = asyncio.get_running_loop().create_task(self._open_one(first, keep=keep))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open_one(self, first: tuple[bytes, Done] | None, *, keep: bool) -> None:
        loop = asyncio.get_running_loop()
        try:
            made: Any = await loop.create_connection(
                lambda: _Connection(self, keep=keep), self._host, self._port, **self._tls
            )
        except OSError as error:
            # What waits for any connection loses its turn only when there is none left to wait for.
            refused = first or (self._waiting.popleft() if self._waiting and not self._all else None)
            if refused:
                refused[1](Said(fault=f"no connection: {error}"))
            return
        connection = made[1]
        self._all.add(connection)
        if first:
            connection.ask(*first)
        else:
            self.free(connection)


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    transport: asyncio.Transport

    def __init__(self, pool: HttpWay, *, keep: bool) -> None:
        self._pool, self._keep, self._received = pool, keep, b""
        self._done: Done | None = None

    @property
    def usable(self) -> bool:
        return not self.transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none of asyncio's

    def ask(self, request: bytes, done: Done) -> None:
        self._done = done
        if not self.transport.is_closing():
            self.transport.write(request)
        if self._received:  # a server that goes away tells whoever connects, asked or not
            self.data_received(b"")
        if self._done is not None and self.transport.is_closing():
            self.connection_lost(None)

    def data_received(self, data: bytes) -> None:
        self._received = received = self._received + data if self._received else data
        if self._done is None and not self._keep:
            return
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = received[:end].lower()
        length = _field(head, b"content-length")
        body = received[end + 4 :]
        if len(body) < int(length or b"0"):
            return
        self._received = b""
        done, self._done = self._done, None
        if not self._keep or _field(head, b"connection") == b"close":
            self.transport.close()
        elif done is not None:
            self._pool.free(self)
        if done is not None:
            done(read_said(head, body))

    def connection_lost(self, error: Exception | None) -> None:
        done, self._done = self._done, None
        self._pool.gone(self)
        if done is not None:
            cut = f" after {len(self._received)} bytes" if self._received else ""
            done(Said(fault=f"the connection ended{cut} without an answer: {error or 'EOF'}"))


def write_request(question: Question, model: str, authority: str, fields: str = "") -> bytes:
    """The whole request; `fields` are further lines of its head."""
    version = f"/versions/{quote(question.asked, safe='')}" if question.asked else ""
    first = question.number * question.rows
    numbers = ",".join(f"{value:.0f}" for row in range(question.rows) for value in payload(first + row))
    body = (
        f'{{"id":"{question.id}","inputs":[{{"name":"x","datatype":"FP32","shape":[{question.rows},2],'
        f'"data":[{numbers}]}}]}}'
    )
    return (
        f"POST /v2/models/{quote(model, safe='')}{version}/infer HTTP/1.1\r\nhost: {authority}\r\n{fields}"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    ).encode()


class _Output(msgspec.Struct):
    data: list[float]


class _Document(msgspec.Struct):
    id: str = ""
    model_version: str | None = ""
    outputs: list[_Output] = []


class _Flat(msgspec.Struct):
    """An output of rows in rows, as some servers write them."""

    data: list[list[float]]


class _Nested(msgspec.Struct):
    id: str = ""
    model_version: str | None = ""
    outputs: list[_Flat] = []


_documents, _nested = msgspec.json.Decoder(_Document), msgspec.json.Decoder(_Nested)


def read_said(head: bytes, body: bytes) -> Said:
    """The answer; `head` in lower case, without its empty line."""
    status = head[9:12].decode("latin-1")
    if status != "200":
        return Said(
            status,
            retry_after=b"\r\nretry-after:" in head,
            text=body[:500].decode(errors="replace"),
            explained=_is_json(body),
        )
    try:
        document: Any = _documents.decode(body)
        values = document.outputs[0].data if document.outputs else None
    except msgspec.ValidationError:
        try:
            document = _nested.decode(body)
            values = [value for row in document.outputs[0].data for value in row]
        except msgspec.MsgspecError as error:
            return Said(status, text=f"{error}: {body[:200]!r}")
    except msgspec.MsgspecError as error:
        return Said(status, text=f"{error}: {body[:200]!r}")
    return Said(status, document.id, document.model_version or "", values)


def _is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body)
    except msgspec.MsgspecError:
        return False
    return True


def _field(head: bytes, name: bytes) -> bytes:
    """The value of a field of a head in lower case; empty without it."""
    _, found, rest = head.partition(b"\r\n" + name + b":")
    return rest.partition(b"\r\n")[0].strip() if found else b""
