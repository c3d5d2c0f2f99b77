"""Triton's pages and calls that this server does not have, each answered with the reason instead of silence.

No client names a piece of the server's memory: that way a name told in an error message once led to running code
(CVE-2025-23319). Traces and logs are set where the server is started, for a client may not choose where files go.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mlserve.errors import UnsupportedContent
from mlserve.serve.protocols.dialect import Call, Documentation, Page, error_body
from mlserve.serve.service import Service
from mlserve.wire import messages

__all__ = ["CALLS", "refusal_pages"]

_MEMORY = "shared memory is not supported; send tensors as raw bytes"
_SETTINGS = "is set where the server is started, see: mlserve serve --help"
_DOCUMENTATION = Documentation(statuses=(404,))
_TRACES, _LOGS = f"tracing {_SETTINGS}", f"logging {_SETTINGS}"

_REASON_OF_PAGE = {
    **{
        f"/v2/{kind}sharedmemory{page}": _MEMORY
        for kind in ("system", "cuda")
        for page in (
            "/status",
            "/unregister",
            "/region/{region}/status",
            "/region/{region}/register",
            "/region/{region}/unregister",
        )
    },
    "/v2/trace/setting": _TRACES,
    "/v2/models/{name}/trace/setting": _TRACES,
    "/v2/logging": _LOGS,
}
_REASON_OF_CALL = {
    **{
        f"{kind}SharedMemory{action}": _MEMORY
        for kind in ("System", "Cuda")
        for action in ("Status", "Register", "Unregister")
    },
    "TraceSetting": _TRACES,
    "LogSettings": _LOGS,
}


def refusal_pages() -> tuple[Page, ...]:
    """A 404 for each, as where there is no page, but with the reason."""
    return tuple(
        Page(path, ("GET", "POST"), "admin", _page(reason), "Not offered: answers why", _DOCUMENTATION)
        for path, reason in _REASON_OF_PAGE.items()
    )


def _page(reason: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        return Response(error_body(404, reason), 404, media_type="application/json")

    return answer


def _call(reason: str) -> Callable[[Service, bytes], Any]:
    def answer(_: Service, __: bytes) -> Any:
        raise UnsupportedContent(reason)

    return answer


CALLS = tuple(Call(f"/{messages.SERVICE}/{name}", "admin", _call(reason)) for name, reason in _REASON_OF_CALL.items())
