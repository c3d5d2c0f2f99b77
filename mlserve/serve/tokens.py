"""Signed tokens (JWT) beside API keys: checked against the public keys of a JWKS file, which is followed.

Which algorithm a key is for follows from the key, never from the token: a token cannot choose `none`, nor have a public
key taken for a shared secret (HS256).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from mlserve.errors import Unauthenticated, UsageError
from mlserve.serve.access import Grant, Scope
from mlserve.serve.followed_file import FollowedFile

__all__ = ["TokenFile", "TokenKeys"]

# The clocks of who signs and of who checks may be apart by so much.
_LEEWAY_S = 5
_LONGEST_TOKEN_BYTES, _MOST_KEYS, _LONGEST_NAME = 8192, 64, 128
_LEAST_RSA_BITS = 2048
# By type and curve of a key: what it may sign with.
_ALGORITHMS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("RSA", ""): ("RS256", "PS256"),
    ("EC", "P-256"): ("ES256",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
_SCOPES = get_args(Scope)


class _PublicKey(NamedTuple):
    """A key as `cryptography` has it, and what tokens may be signed with by it."""

    key: Any
    algorithms: tuple[str, ...]


class TokenKeys:
    """The keys of one JWKS file; tokens must be from `issuer` and for `audience`."""

    def __init__(self, keys: Mapping[str, _PublicKey], issuer: str, audience: str) -> None:
        """`keys` are by their `kid`; `parse` reads them."""
        self._keys, self._issuer, self._audience = keys, issuer, audience

    @classmethod
    def parse(cls, content: bytes, path: Path, issuer: str, audience: str) -> "TokenKeys":
        """The keys of a JWKS document. What it holds for other purposes is passed over.

        Raises UsageError, naming the file and the key, for a document that is none, holds no key that can be used,
        names two alike, or holds a private one.
        """
        try:
            listed = json.loads(content)["keys"]
            described = [dict(each) for each in listed]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UsageError(f"{path} is no JWKS file: it must be JSON with a list of keys") from error
        if len(described) > _MOST_KEYS:
            raise UsageError(f"{path} has {len(described)} keys; at most {_MOST_KEYS} are read")
        keys: dict[str, _PublicKey] = {}
        for each in described:
            kid = each.get("kid")
            key = _key(each, f"{path}: the key {str(kid)[:64]!r}")
            if key is None or not isinstance(kid, str) or not kid:
                continue
            if kid in keys:
                raise UsageError(f"{path} has two keys {kid[:64]!r}; each needs a 'kid' of its own")
            keys[kid] = key
        if not keys:
            raise UsageError(
                f"{path} has no key to check tokens with: it takes a 'kid', and RSA, EC P-256 or OKP Ed25519"
            )
        return cls(keys, issuer, audience)

    def __len__(self) -> int:
        return len(self._keys)

    def verify(self, token: bytes) -> Grant:
        """What `token` grants: the words of its claim `scope` that are scopes here, in the name of its `sub`.

        Raises Unauthenticated for a token that this server does not trust; the message repeats nothing of it.
        """
        import jwt

        if len(token) > _LONGEST_TOKEN_BYTES:
            raise Unauthenticated(f"the token is longer than {_LONGEST_TOKEN_BYTES} bytes")
        try:
            header = jwt.get_unverified_header(token)
            found = self._keys.get(header.get("kid", ""))
            if found is None:
                raise Unauthenticated("the token names no key ('kid') that this server knows")
            if header.get("alg") not in found.algorithms:
                raise Unauthenticated("the token is signed by an algorithm that its key is not for")
            claims = jwt.decode(
                token,
                found.key,
                algorithms=list(found.algorithms),
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            until_s = float(claims["exp"]) + _LEEWAY_S
        except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
            raise Unauthenticated(_why_not(error)) from None
        scopes = claims.get("scope", "")
        words = scopes.split() if isinstance(scopes, str) else []
        allowed: frozenset[Scope] = frozenset(scope for scope in _SCOPES if scope in words)
        return Grant(str(claims["sub"])[:_LONGEST_NAME], allowed, until_s)


class TokenFile(FollowedFile[TokenKeys]):
    """A JWKS file that a server follows. Raises UsageError where the library for it is not installed."""

    def __init__(self, path: Path, issuer: str, audience: str) -> None:
        try:
            import cryptography  # noqa: F401
            import jwt  # noqa: F401
        except ImportError as error:
            raise UsageError("--jwks needs an extra that is not installed: pip install 'mlserve[jwt]'") from error
        super().__init__(
            path, lambda content, where: TokenKeys.parse(content, where, issuer, audience), "keys of tokens"
        )


def _key(described: Mapping[str, Any], which: str) -> _PublicKey | None:
    """One key of a JWKS; None for one that is not for checking tokens here."""
    import jwt

    algorithms = _ALGORITHMS.get((str(described.get("kty")), str(described.get("crv", ""))), ())
    if "d" in described or "k" in described:
        raise UsageError(f"{which} is a secret one; a server checks tokens with public keys alone")
    if "alg" in described:
        algorithms = tuple(each for each in algorithms if each == described["alg"])
    if not algorithms or described.get("use", "sig") != "sig":
        return None
    try:
        key = jwt.PyJWK(dict(described), algorithm=algorithms[0]).key
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise UsageError(f"{which} cannot be read; ask its issuer for the JWKS document") from error
    if described["kty"] == "RSA" and key.key_size < _LEAST_RSA_BITS:
        raise UsageError(f"{which} has {key.key_size} bits; RSA keys need at least {_LEAST_RSA_BITS}")
    return _PublicKey(key, algorithms)


def _why_not(error: Exception) -> str:
    """In our words: the library's may hold what the token said."""
    import jwt

    reasons: dict[type[Exception], str] = {
        jwt.ExpiredSignatureError: "the token has expired; ask for another",
        jwt.ImmatureSignatureError: "the token is not valid yet; compare the clocks",
        jwt.InvalidAudienceError: "the token is for another audience than this server",
        jwt.InvalidIssuerError: "the token is from another issuer than the one this server trusts",
        jwt.InvalidSignatureError: "the token's signature is not that of its key",
        jwt.MissingRequiredClaimError: "the token lacks a claim; it needs exp, iss, aud and sub",
    }
    return reasons.get(type(error), "the token cannot be read")
