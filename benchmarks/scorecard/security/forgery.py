"""Tokens (JWT) as an issuer makes them, and as somebody makes them who would like to be one."""

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

__all__ = ["AUDIENCE", "ISSUER", "Issuer"]

ISSUER, AUDIENCE = "https://issuer.example", "mlserve"
_KID = "first"


class Issuer:
    """Signs with a key of its own, whose public half is in the JWKS file at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._key, self._strange_key = (rsa.generate_private_key(65537, 2048) for _ in range(2))
        public = jwt.algorithms.RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        path.write_text(json.dumps({"keys": [{**public, "kid": _KID, "alg": "RS256", "use": "sig"}]}))

    def good(self) -> str:
        """A token for inference."""
        return self._signed()

    def bad(self) -> dict[str, str]:
        """What is wrong -> a token that has just this wrong."""
        now_s = int(time.time())
        header, claims, signature = self._signed().split(".")
        return {
            "alg none": jwt.encode(_claims(), None, "none", {"kid": _KID}),
            "alg none, signature kept": f"{_encoded({'alg': 'none', 'kid': _KID})}.{claims}.{signature}",
            "HS256 with the public key": self._confused(),
            "another's key": jwt.encode(_claims(), self._strange_key, "RS256", {"kid": _KID}),
            "unknown kid": jwt.encode(_claims(), self._key, "RS256", {"kid": "second"}),
            "no kid": jwt.encode(_claims(), self._key, "RS256"),
            "another algorithm of the key": jwt.encode(_claims(), self._key, "RS512", {"kid": _KID}),
            "bad audience": self._signed(aud="other"),
            "no audience": self._signed(aud=None),
            "bad issuer": self._signed(iss="https://other.example"),
            "expired": self._signed(exp=now_s - 60),
            "never expires": self._signed(exp=None),
            "not valid yet": self._signed(nbf=now_s + 600),
            "claims changed": f"{header}.{_encoded({**_claims(), 'scope': 'admin infer'})}.{signature}",
            "no signature": f"{header}.{claims}.",
        }

    def _signed(self, **changes: Any) -> str:
        claims = {name: value for name, value in {**_claims(), **changes}.items() if value is not None}
        return jwt.encode(claims, self._key, "RS256", {"kid": _KID})

    def _confused(self) -> str:
        """Signed with what everybody can know, as if that were a secret shared with the server."""
        public = self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        signed = f"{_encoded({'alg': 'HS256', 'typ': 'JWT', 'kid': _KID})}.{_encoded(_claims())}"
        return f"{signed}.{_base64(hmac.new(public, signed.encode(), hashlib.sha256).digest())}"


def _claims() -> dict[str, Any]:
    return {"iss": ISSUER, "aud": AUDIENCE, "sub": "somebody", "scope": "infer", "exp": int(time.time()) + 600}


def _encoded(document: dict[str, Any]) -> str:
    return _base64(json.dumps(document).encode())


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
