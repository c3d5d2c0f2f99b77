"""The one authorization point in front of every dialect: who may do what, by an API key's scopes.

Every page and every rpc names the scope it needs, or that it is public; the transports ask `Access.check` before
anything else happens. A server without keys lets everybody do everything.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec

from mlserve.errors import Forbidden, Unauthenticated

__all__ = ["Access", "Key", "Scope", "digest"]

Scope = Literal["infer", "metadata", "admin", "metrics"]
"""What a key may do: ask for answers; read what is served; load, unload and move; read the metrics."""

# So many different credentials are remembered; each is one entry of a dictionary.
_MOST_REMEMBERED = 4096


class Key(msgspec.Struct, frozen=True):
    """An API key as the server keeps it: never the key itself, only its SHA-256 (keys have 256 random bits).

    `expires_at` is ISO 8601 with a time zone; empty for never.
    """

    name: str
    sha256: str
    scopes: frozenset[Scope]
    expires_at: str = ""


def digest(key: bytes) -> str:
    """What is kept of a key: its SHA-256, in hexadecimal."""
    return hashlib.sha256(key).hexdigest()


class Access:
    """Checks credentials against the keys of one server. `keys` None: everybody may do everything.

    The price of a check on the hot path is one lookup in a dictionary of the credentials seen before.
    """

    def __init__(self, keys: Sequence[Key] | None = None, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self.replace(keys)

    def replace(self, keys: Sequence[Key] | None) -> None:
        """Takes `keys` in place of those before, at once."""
        self.open = keys is None
        self._by_digest = {key.sha256: key for key in keys or ()}
        self._seen: dict[bytes, tuple[frozenset[Scope], float]] = {}

    def check(self, scope: Scope | None, credential: bytes | None) -> None:
        """Raises unless `credential` allows `scope`; a `scope` of None is public.

        `credential` is the value of the header `authorization` (`Bearer KEY`) or of `x-api-key`, None for neither.
        Raises Unauthenticated for none, an unknown or an expired one, and Forbidden for one without the scope.
        """
        if self.open or scope is None:
            return
        if not credential:
            raise Unauthenticated("this server asks for a key: send the header 'authorization: Bearer KEY'")
        known = self._seen.get(credential) or self._look_up(credential)
        if self._now() >= known[1]:
            raise Unauthenticated("the key has expired; ask for another")
        if scope not in known[0]:
            raise Forbidden(f"the key does not allow this: it lacks the scope '{scope}'")

    def _look_up(self, credential: bytes) -> tuple[frozenset[Scope], float]:
        kind, _, rest = credential.partition(b" ")
        key = self._by_digest.get(digest(rest.strip() if kind.lower() == b"bearer" else credential.strip()))
        if key is None:
            raise Unauthenticated("the key is not known to this server")
        until_s = datetime.fromisoformat(key.expires_at).astimezone(UTC).timestamp() if key.expires_at else float("inf")
        if len(self._seen) >= _MOST_REMEMBERED:
            self._seen.clear()
        self._seen[credential] = (key.scopes, until_s)
        return self._seen[credential]
