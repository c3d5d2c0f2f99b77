"""The seam for dialects that change what is served: load, unload, move an alias; whoever follows the store does it."""

from typing import Protocol

__all__ = ["Control"]


class Control(Protocol):
    """Changes what all workers serve.

    Each returns once every worker has done it. They raise Forbidden where the server was not started with
    `--model-control explicit`, UnknownModelError for a name or version that the store does not have, and ModelFailed,
    saying why, for a version that does not load (what was served before still is).
    """

    async def load(self, name: str, version: str = "") -> None: ...

    async def unload(self, name: str, version: str = "") -> None: ...

    async def set_default(self, name: str, version: str) -> None: ...
