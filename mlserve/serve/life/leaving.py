"""The end of a worker: it says that it is not ready, takes what comes for a while, answers all it took, and stops."""

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, cast

import uvicorn

from mlserve.serve.answering import Answering
from mlserve.serve.life.slate import Slate
from mlserve.serve.service import Service
from mlserve.serve.settings import ServeSettings

if TYPE_CHECKING:
    from mlserve.serve.transports.http import HttpLane

__all__ = ["LAST_ANSWERS_S", "leave", "live"]

LAST_ANSWERS_S = 2
"""What is told that it is given up answers within this, or is cut."""
# The last answers are on their way to the socket; what is given up over gRPC is told by a thread of its own.
_LAST_WRITES_S, _LAST_WORDS_S = 0.05, 0.2
_BEAT_EVERY_S = 0.1
# A lame duck leaves at least so much of the time for what it then still has.
_MOST_LAME = 0.5

_log = logging.getLogger("mlserve.serve")


class _Stoppable(Protocol):
    async def stop(self) -> None: ...


async def live(slate: Slate, service: Service) -> None:
    """Shows that the event loop turns, and takes up what the supervisor says of memory, for ever."""
    while True:
        slate.beat()
        service.short_of_memory = slate.short_of_memory
        await asyncio.sleep(_BEAT_EVERY_S)


async def leave(
    service: Service,
    answering: Answering,
    http_servers: Sequence[uvicorn.Server],
    grpc_server: _Stoppable,
    serving: Iterable[Awaitable[Any]],
    settings: ServeSettings,
    *,
    hurry: bool,
) -> bool:
    """Returns when every port is closed; whether all that was accepted has been answered.

    All of it takes `limits.drain_s` at most, and the lame duck's time is a part of that; `hurry`: it has none.
    """
    loop = asyncio.get_running_loop()
    gives_up_s = loop.time() + settings.limits.drain_s
    service.leaving = True
    if not hurry and settings.life.lame_duck_s:
        await asyncio.sleep(min(settings.life.lame_duck_s, _MOST_LAME * settings.limits.drain_s))
    service.draining = True
    for server in http_servers:
        server.should_exit = True
    with suppress(TimeoutError):
        async with asyncio.timeout_at(gives_up_s):
            while not service.idle:
                await asyncio.sleep(0.01)
    if not service.idle:
        answering.abandon()
        for connection in [each for server in http_servers for each in server.server_state.connections]:
            cast("HttpLane", connection).abandon()
    await asyncio.gather(*serving)
    await asyncio.sleep(_LAST_WRITES_S)
    await grpc_server.stop()
    if not service.idle:
        await asyncio.sleep(_LAST_WORDS_S)
        _log.warning("gave up what still ran after the drain limit of %g s", settings.limits.drain_s)
    return service.idle
