"""The files that say who may ask: read at the start, and followed for as long as the server lives."""

import asyncio
from pathlib import Path
from typing import TypeVar

from mlserve.serve.access import Access
from mlserve.serve.allowance import Ledger
from mlserve.serve.audit import Audit
from mlserve.serve.followed_file import FollowedFile, LastGood
from mlserve.serve.identities import IdentityFile
from mlserve.serve.keys import KeyFile
from mlserve.serve.settings import ServeSettings
from mlserve.serve.tokens import TokenFile

__all__ = ["Credentials"]

# A change is noticed within this.
_LOOK_EVERY_S = 0.2

T = TypeVar("T")


class Credentials:
    """API keys, the keys of signed tokens and the identities of certificates, and the `access` that rests on them.

    Raises UsageError for a file that cannot be read; one that became so while the server ran does not keep a worker
    that takes another's place from starting.
    """

    def __init__(self, settings: ServeSettings, audit: Audit) -> None:
        told = settings.access
        self._audit = audit
        self._key_file = KeyFile(Path(settings.keys_file)) if settings.keys_file else None
        self._token_file = (
            TokenFile(Path(told.jwks_file), told.jwt_issuer, told.jwt_audience) if told.jwks_file else None
        )
        identities = settings.tls.identities if settings.tls else ""
        self._identity_file = IdentityFile(Path(identities)) if identities else None

        def begin(file: FollowedFile[T], what: str) -> T:
            return file.begin(LastGood.within(settings.run_directory, what), resumes=settings.resumes)

        self._keys = begin(self._key_file, "keys") if self._key_file else None
        self._tokens = begin(self._token_file, "jwks") if self._token_file else None
        ledger = Ledger(Path(settings.run_directory) / "used" if settings.run_directory else None)
        self.access = Access(self._keys, self._tokens, ledger)
        if self._identity_file:
            self.access.replace_certified(begin(self._identity_file, "identities"))

    async def follow(self) -> None:
        """Takes what the files say as they change, for ever."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            keys = self._key_file.changed() if self._key_file else None
            tokens = self._token_file.changed() if self._token_file else None
            identities = self._identity_file.changed() if self._identity_file else None
            if identities is not None:
                self.access.replace_certified(identities)
                self._audit.write({"action": "identities changed", "outcome": "ok", "identities": len(identities)})
            if keys is None and tokens is None:
                continue
            if keys is not None:
                self._keys = keys
                self._audit.write({"action": "keys changed", "outcome": "ok", "keys": len(keys)})
            if tokens is not None:
                self._tokens = tokens
                self._audit.write({"action": "keys of tokens changed", "outcome": "ok", "keys": len(tokens)})
            self.access.replace(self._keys, self._tokens)
