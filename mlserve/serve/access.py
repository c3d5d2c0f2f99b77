"""The one authorization point in front of every dialect: who may do what, by the scopes of a key or a token.

Every page and every rpc names the scope it needs, or that it is public; the transports ask `Access.check` before
anything else happens. A server without keys lets everybody do everything.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple, Protocol

import msgspec

from mlserve.errors import Forbidden, Unauthenticated
from mlserve.serve.allowance import Allowance, Ledger

__all__ = ["CERTIFICATE", "Access", "Certified", "Grant", "Key", "Scope", "Tokens", "digest"]

Scope = Literal["infer", "metadata", "admin", "metrics"]
"""What a key may do: ask for answers; read what is served; load, unload and move; read the metrics."""

CERTIFICATE = b"\0certificate\0"
"""How a credential begins that is a connection's certificate: no header can hold a NUL, so no client can send one."""

# So many different credentials are remembered, each of them an entry of a dictionary, and none that is longer: that is
# the longest token with the word before it.
_MOST_REMEMBERED, _LONGEST_REMEMBERED_BYTES = 4096, 8300


class Key(msgspec.Struct, frozen=True, omit_defaults=True):
    """An API key as the server keeps it: never the key itself, only its SHA-256 (keys have 256 random bits).

    `expires_at` is ISO 8601 with a time zone; empty for never. `rate_per_s`, `burst` and `quota_per_day` count
    requests as `Allowance` says; 0 is no limit.
    """

    name: str
    sha256: str
    scopes: frozenset[Scope]
    expires_at: str = ""
    rate_per_s: float = 0.0
    burst: int = 0
    quota_per_day: int = 0

    @property
    def allowance(self) -> Allowance | None:
        """How much may be asked with it; None for as much as one likes."""
        if not (self.rate_per_s or self.quota_per_day):
            return None
        return Allowance(self.rate_per_s, self.burst, self.quota_per_day)


class Grant(NamedTuple):
    """What a credential allows, whose it is, and until when (seconds since 1970).

    `allowance` says how much may be asked; what was is kept under `account`.
    """

    name: str
    scopes: frozenset[Scope]
    until_s: float = float("inf")
    allowance: Allowance | None = None
    account: bytes = b""


class Tokens(Protocol):
    """Reads signed tokens (JWT); see `mlserve.serve.tokens`."""

    def verify(self, token: bytes) -> Grant:
        """What `token` grants. Raises Unauthenticated for one that this server does not trust."""
        ...


class Certified(Protocol):
    """Knows clients by the certificates of their connections; see `mlserve.serve.identities`."""

    def verify(self, credential: bytes) -> Grant:
        """What a certificate grants (a credential that begins with CERTIFICATE). Raises Unauthenticated for nothing."""
        ...


class _Rules(NamedTuple):
    """What holds at one moment, and the credentials that were seen under it."""

    keys: dict[str, Key]
    tokens: Tokens | None
    certified: Certified | None
    seen: dict[bytes | None, Grant]


class Access:
    """Checks credentials against the keys and tokens of one server. With neither, everybody may do everything.

    The price of a check on the hot path is one lookup in a dictionary of the credentials seen before. `ledger` is
    where the keys' allowances are counted.
    """

    def __init__(
        self,
        keys: Sequence[Key] | None = None,
        tokens: Tokens | None = None,
        ledger: Ledger | None = None,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._now, self._ledger = now, ledger or Ledger()
        self._certified: Certified | None = None
        self.replace(keys, tokens)

    def replace(self, keys: Sequence[Key] | None, tokens: Tokens | None = None) -> None:
        """Takes `keys` and `tokens` in place of those before, at once; whoever was known is looked at anew."""
        self._rules = _Rules({key.sha256: key for key in keys or ()}, tokens, self._certified, {})
        self.open = keys is None and tokens is None and self._certified is None

    def replace_certified(self, certified: Certified) -> None:
        """Takes what `certified` knows of certificates in place of what was known of them, beside keys and tokens."""
        self._certified = certified
        self._rules = self._rules._replace(certified=certified, seen={})
        self.open = False

    def check(self, scope: Scope | None, credential: bytes | None) -> None:
        """Raises unless `credential` allows `scope` once more; a `scope` of None is public.

        `credential` is the value of the header `authorization` (`Bearer KEY`) or of `x-api-key`, None for neither.
        Raises Unauthenticated for none, an unknown or an expired one, TooManyRequests for one that has asked too much,
        and Forbidden for one without the scope: what is asked counts whether it is allowed or not.
        """
        if self.open or scope is None:
            return
        grant = self._rules.seen.get(credential)
        if grant is None or scope not in grant.scopes or self._now() >= grant.until_s:
            grant = self._grant(credential)
        if grant.allowance is not None:
            self._ledger.charge(grant.account, grant.allowance)
        if scope not in grant.scopes:
            raise Forbidden(f"the key does not allow this: it lacks the scope '{scope}'")

    def check_stream(self, scope: Scope | None, credential: bytes | None) -> None:
        """As `check`, for a stream whose messages are then checked and counted one by one."""
        if not self.open and scope is not None and scope not in self._grant(credential).scopes:
            self.check(scope, credential)  # one that is refused has no messages to count

    def name_of(self, credential: bytes | None) -> str:
        """Whose `credential` is, for those who are to be told; empty for nobody that is known."""
        try:
            return self._known(credential).name if credential else ""
        except Unauthenticated:
            return ""

    def _grant(self, credential: bytes | None) -> Grant:
        """What `credential` allows at this moment."""
        if not credential:
            raise Unauthenticated("this server asks for a key: send the header 'authorization: Bearer KEY'")
        grant = self._known(credential)
        if self._now() >= grant.until_s:
            raise Unauthenticated("the key has expired; ask for another")
        return grant

    def _known(self, credential: bytes) -> Grant:
        rules = self._rules  # they may be replaced meanwhile, and what is found by the old ones must not outlive them
        grant = rules.seen.get(credential)
        if grant is None:
            grant = _look_up(rules, credential)
            if self._now() < grant.until_s and _is_plain(credential):
                if len(rules.seen) >= _MOST_REMEMBERED:
                    rules.seen.clear()
                rules.seen[credential] = grant
        return grant


def digest(key: bytes) -> str:
    """What is kept of a key: its SHA-256, in hexadecimal."""
    return hashlib.sha256(key).hexdigest()


def _secret(credential: bytes) -> bytes:
    """The key or token itself, without the word before it and the spaces around it."""
    kind, _, rest = credential.partition(b" ")
    return rest.strip() if kind.lower() == b"bearer" else credential.strip()


def _is_plain(credential: bytes) -> bool:
    """Whether it may be remembered: short, and without further spaces, by which one key has spellings without end."""
    if len(credential) > _LONGEST_REMEMBERED_BYTES:
        return False
    return _secret(credential) in (credential, credential[len(b"Bearer ") :])


def _look_up(rules: _Rules, credential: bytes) -> Grant:
    secret = _secret(credential)
    key = rules.keys.get(digest(secret))
    if rules.certified is not None and credential.startswith(CERTIFICATE):
        return rules.certified.verify(credential)
    if key is not None:
        until_s = datetime.fromisoformat(key.expires_at).astimezone(UTC).timestamp() if key.expires_at else float("inf")
        return Grant(key.name, key.scopes, until_s, key.allowance, bytes.fromhex(key.sha256)[:16])
    if rules.tokens is not None and secret.count(b".") == 2:
        return rules.tokens.verify(secret)
    raise Unauthenticated("the key is not known to this server")
