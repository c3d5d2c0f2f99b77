"""HTTP/1.1, by geventhttpclient: one kept-alive connection for each request in flight."""

import time
from collections.abc import Sequence

import gevent
from gevent import socket
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPParseError

from mlserve.bench.clients.client import Answered, Reply, Request
from mlserve.runs.samples import OK

__all__ = ["HttpClient"]

_STATUS_OF: dict[type[BaseException], str] = {
    gevent.Timeout: "timeout",
    ConnectionRefusedError: "connection refused",
    ConnectionError: "connection closed",
    HTTPParseError: "connection closed",
    socket.gaierror: "unknown host",
}


class HttpClient:
    """Every status but 200 is a failure."""

    def __init__(self, host: str, port: int, path: str, requests: Sequence[Request], timeout_s: float) -> None:
        self._path, self._requests, self._timeout_s = path, requests, timeout_s
        self._http = HTTPClient(host, port, concurrency=1_000_000, connection_timeout=None, network_timeout=None)

    def send(self, number: int, answered: Answered) -> None:
        gevent.spawn(lambda: answered(self._ask(self._requests[number])))

    def _ask(self, request: Request) -> Reply:
        deadline = gevent.Timeout.start_new(self._timeout_s)
        try:
            response = self._http.post(self._path, body=request.body, headers=dict(request.headers))
            first_byte_ns = time.monotonic_ns()
            answer = bytes(response.read())
            if not response.message_complete:
                return Reply("connection closed", b"", first_byte_ns)
            status = response.status_code
            return Reply(
                OK if status == 200 else f"HTTP {status}", answer, first_byte_ns, response.get("server-timing", "")
            )
        except (gevent.Timeout, OSError, HTTPParseError) as error:
            return Reply(_status_of(error))
        finally:
            deadline.close()

    def close(self) -> None:
        self._http.close()


def _status_of(error: BaseException) -> str:
    for kind, status in _STATUS_OF.items():
        if isinstance(error, kind):
            return status
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
