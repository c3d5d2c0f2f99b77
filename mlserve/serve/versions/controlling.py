"""Clients load, unload and choose defaults: a command is a file that all workers follow, their reports the answer."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from mlserve.errors import ModelFailed, StoreError, UnknownModelError
from mlserve.model.store import Store
from mlserve.serve.service import Service
from mlserve.serve.versions.agreement import Agreement, Asked
from mlserve.serve.versions.following import Follower
from mlserve.serve.versions.policy import Choice, by_age

__all__ = ["StoreControl"]

_ASK_EVERY_S = 0.02
# The largest models compile for minutes.
_LONGEST_LOAD_S = 1800.0


class StoreControl:
    """Changes what all workers serve of a store; see `Control`."""

    def __init__(self, service: Service, root: str, agreement: Agreement, follower: Follower) -> None:
        self._service, self._store = service, Store(Path(root))
        self._agreement, self._follower = agreement, follower

    async def load(self, name: str, version: str = "") -> None:
        """Serves what a bare `name` means, or `version` (an alias is followed), beside what is served of it."""
        known = await asyncio.to_thread(self._check_known, name, version)
        word = version or "default"

        def change(choice: Choice | None) -> Choice:
            before = choice or Choice("")
            words = dict.fromkeys([*filter(None, before.versions.split(",")), word])
            without = tuple(each for each in before.without if version and each != known)
            return msgspec.structs.replace(before, versions=",".join(words), without=without)

        failures = await self._command(name, change)
        reason = failures.get(known) if version else next(iter(failures.values()), None)
        if reason is not None:
            raise ModelFailed(f"failed to load '{name}'{f' version {version}' if version else ''}: {reason}")

    async def unload(self, name: str, version: str = "") -> None:
        """Serves `name`, or just `version` of it, no more. It is well if it was not served."""
        known = await asyncio.to_thread(self._check_known, name, version)

        def change(choice: Choice | None) -> Choice | None:
            if choice is None or not version:
                return None
            words = [word for word in choice.versions.split(",") if word != version]
            if not words:
                return None
            default = "" if choice.default == known else choice.default
            without = tuple(by_age({*choice.without, known}))
            return msgspec.structs.replace(choice, versions=",".join(words), without=without, default=default)

        await self._command(name, change)

    async def set_default(self, name: str, version: str) -> None:
        """Lets a request for `name` that names no version mean `version`, which must be served."""
        found = self._service.find(name, version).signature.version

        def change(choice: Choice | None) -> Choice:
            return msgspec.structs.replace(choice or Choice(found), default=found)

        await self._command(name, change)

    def _check_known(self, name: str, version: str) -> str:
        """The version that `version` means, "" for none. Raises UnknownModelError for what there is not."""
        missing = f"failed to load '{name[:128]}', failed to poll from model repository"
        try:
            versions = [*map(str, self._store.versions(name)), *self._follower.versions(name)]
            found = str(self._store.aliases(name).get(version, version)) if version else ""
        except StoreError as error:
            raise UnknownModelError(f"{missing}: there is no such model") from error
        if not versions:
            raise UnknownModelError(f"{missing}: there is no such model")
        if version and found not in versions:
            raise UnknownModelError(f"{missing}: it has no version {version[:64]}")
        return found

    async def _command(self, name: str, change: Callable[[Choice | None], Choice | None]) -> dict[str, str]:
        """Asks all workers, and returns when each has done it; what did not load, by version."""

        def changed(asked: Asked) -> Asked:
            names = dict(asked.names)
            choice = change(names.pop(name, None))
            if choice is not None:
                names[name] = msgspec.structs.replace(choice, asked=asked.command)
            return msgspec.structs.replace(asked, names=names)

        command = await asyncio.to_thread(self._agreement.ask, changed)
        self._follower.wake()
        try:
            async with asyncio.timeout(_LONGEST_LOAD_S):
                while True:
                    workers = (await asyncio.to_thread(self._agreement.applied)).values()
                    if all(worker.command >= command and name not in worker.loading for worker in workers):
                        break
                    await asyncio.sleep(_ASK_EVERY_S)
        except TimeoutError as error:
            raise ModelFailed(f"not every worker has loaded '{name}' after {_LONGEST_LOAD_S:g} s") from error
        return {version: reason for worker in workers for version, reason in worker.failures.get(name, {}).items()}
