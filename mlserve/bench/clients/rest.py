"""V2 over REST, by geventhttpclient: one kept-alive connection for each request in flight."""

import time

import gevent
from gevent import socket
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPParseError

from mlserve.bench.clients.client import Reply
from mlserve.bench.target import Target
from mlserve.runs.samples import OK

__all__ = ["RestClient", "model_version"]

_VERSION = b'"model_version":"'
_STATUS_OF: dict[type[BaseException], str] = {
    gevent.Timeout: "timeout",
    ConnectionRefusedError: "connection refused",
    ConnectionError: "connection closed",
    HTTPParseError: "connection closed",
    socket.gaierror: "unknown host",
}
# Servers write the version before the outputs; beyond this, finding it would cost more than it tells.
_HEAD_BYTES = 256


class RestClient:
    """`headers` belong to every body. At most `max_in_flight` requests may be sent at once."""

    def __init__(self, target: Target, headers: dict[str, str], max_in_flight: int, timeout_s: float) -> None:
        self._path, self._timeout_s = target.infer_path, timeout_s
        # The deadline below covers the whole request, so the sockets need none. A request that is cut off while it is
        # being sent keeps its place in the pool (geventhttpclient gives it back only once an answer is read); with
        # that much room no run uses the pool up.
        self._http = HTTPClient(
            target.host,
            target.port,
            headers=headers,
            concurrency=max_in_flight * 1000,
            connection_timeout=None,
            network_timeout=None,
        )

    def send(self, body: bytes) -> Reply:
        deadline = gevent.Timeout.start_new(self._timeout_s)
        try:
            response = self._http.post(self._path, body=body)
            first_byte_ns = time.monotonic_ns()
            answer = response.read()
            if not response.message_complete:
                return Reply("connection closed", "", first_byte_ns)
            status = response.status_code
            return Reply(OK if status == 200 else f"HTTP {status}", model_version(answer), first_byte_ns)
        except (gevent.Timeout, OSError, HTTPParseError) as error:
            return Reply(_status_of(error), "", None)
        finally:
            deadline.close()

    def close(self) -> None:
        self._http.close()


def _status_of(error: BaseException) -> str:
    for kind, status in _STATUS_OF.items():
        if isinstance(error, kind):
            return status
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def model_version(answer: bytes) -> str:
    """The version that a V2 answer names, "" where its beginning does not."""
    start = answer.find(_VERSION, 0, _HEAD_BYTES) + len(_VERSION)
    if start < len(_VERSION):
        return ""
    return answer[start : answer.find(b'"', start)].decode("utf-8", "replace")
