"""Signed tokens: what is let in, and each way in which one may not be trusted."""

import base64
import json
import time

import pytest

jwt = pytest.importorskip("jwt")
from cryptography.hazmat.primitives import serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: E402

from mlserve.errors import Forbidden, Unauthenticated, UsageError  # noqa: E402
from mlserve.serve.access import Access, Grant  # noqa: E402
from mlserve.serve.tokens import TokenFile, TokenKeys  # noqa: E402

ISSUER, AUDIENCE = "https://id.example", "mlserve"
RSA = rsa.generate_private_key(65537, 2048)
KEYS = {"RS256": RSA, "PS256": RSA, "ES256": ec.generate_private_key(ec.SECP256R1())}
KEYS["EdDSA"] = ed25519.Ed25519PrivateKey.generate()


def jwk(private, **fields):
    """The public half of a key, as a JWKS has it."""
    algorithm = {"rsa": "RS256", "ec": "ES256", "ed25519": "EdDSA"}[type(private).__module__.rpartition(".")[2]]
    return {**jwt.get_algorithm_by_name(algorithm).to_jwk(private.public_key(), as_dict=True), **fields}


# `PS256` and `RS256` are one key under two names; only the first says what it is for.
LISTED = [jwk(key, kid=name) for name, key in KEYS.items() if name != "PS256"] + [jwk(RSA, kid="PS256", alg="PS256")]


def parsed(*listed, issuer=ISSUER, audience=AUDIENCE, path="jwks.json"):
    return TokenKeys.parse(json.dumps({"keys": listed}).encode(), path, issuer, audience)


def claims(**changes):
    now = int(time.time())
    usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ci", "exp": now + 60, "nbf": now - 1, "scope": "infer metadata x"}
    return {name: value for name, value in {**usual, **changes}.items() if value is not None}


def signed(algorithm="ES256", headers=None, key=None, kid=None, **changes):
    header = {"kid": kid or algorithm, **(headers or {})}
    return jwt.encode(claims(**changes), key or KEYS[algorithm], algorithm, header).encode()


def by_hand(header, payload, signature=b"x"):
    """A token whose parts are put together without a library that would refuse to."""
    parts = (json.dumps(header).encode(), payload if isinstance(payload, bytes) else json.dumps(payload).encode())
    return b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (*parts, signature))


@pytest.fixture(scope="module")
def keys():
    return parsed(*LISTED)


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "EdDSA"])
def test_a_token_grants_the_scopes_that_it_names(keys, algorithm):
    grant = keys.verify(signed(algorithm))
    assert (grant.name, grant.scopes) == ("ci", {"infer", "metadata"})
    assert grant.until_s == pytest.approx(time.time() + 65, abs=2)
    assert grant.allowance is None


@pytest.mark.parametrize("scope", [None, "", "root", ["infer"], 7, {"infer": 1}])
def test_a_token_without_a_scope_grants_none(keys, scope):
    assert keys.verify(signed(scope=scope)).scopes == frozenset()


def test_an_audience_among_several_will_do(keys):
    assert keys.verify(signed(aud=["other", AUDIENCE])).name == "ci"


PUBLIC_PEM = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
HS = {"alg": "HS256", "typ": "JWT"}


def _hs256(secret, kid):
    import hashlib
    import hmac

    body = by_hand({**HS, "kid": kid}, claims(), b"").rpartition(b".")[0]
    signature = hmac.new(secret, body, hashlib.sha256).digest()
    return body + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")


UNTRUSTED = {
    "expired": (lambda: signed(exp=int(time.time()) - 30), "the token has expired"),
    "not yet": (lambda: signed(nbf=int(time.time()) + 60), "is not valid yet"),
    "made in the future": (lambda: signed(iat=int(time.time()) + 60), "is not valid yet"),
    "no end": (lambda: signed(exp=None), "lacks a claim"),
    "endless": (lambda: by_hand({"alg": "ES256", "kid": "ES256"}, b'{"exp": 1e999}'), "signature|cannot be read"),
    "no audience": (lambda: signed(aud=None), "lacks a claim"),
    "another audience": (lambda: signed(aud="other"), "another audience"),
    "no issuer": (lambda: signed(iss=None), "lacks a claim"),
    "another issuer": (lambda: signed(iss="https://evil.example"), "another issuer"),
    "nobody": (lambda: signed(sub=None), "lacks a claim"),
    "a number for a name": (lambda: signed(sub=7), "cannot be read"),
    "another key": (lambda: signed(key=ec.generate_private_key(ec.SECP256R1())), "signature"),
    "no kid": (lambda: jwt.encode(claims(), KEYS["ES256"], "ES256").encode(), "names no key"),
    "an unknown kid": (lambda: signed(kid="other"), "names no key"),
    "a kid that is none": (lambda: by_hand({"alg": "ES256", "kid": ["ES256"]}, claims()), "cannot be read"),
    "none": (lambda: by_hand({"alg": "none", "kid": "RS256"}, claims(), b""), "algorithm"),
    "None": (lambda: by_hand({"alg": "None", "kid": "RS256"}, claims(), b""), "algorithm"),
    "HS256 with the public key": (lambda: _hs256(PUBLIC_PEM, "RS256"), "algorithm"),
    "HS256 with the kid": (lambda: _hs256(b"RS256", "RS256"), "algorithm"),
    "the key of another type": (lambda: signed("RS256", kid="ES256"), "algorithm"),
    "PS256 for RS256's key said so": (lambda: signed("RS256", kid="PS256"), "algorithm"),
    "a key of its own in the head": (
        lambda: signed(
            headers={"jwk": jwk(ec.generate_private_key(ec.SECP256R1()))},
            key=ec.generate_private_key(ec.SECP256R1()),
        ),
        "signature",
    ),
    "a critical extension": (lambda: signed(headers={"crit": ["b64"], "b64": False}), "cannot be read|signature"),
    "two parts": (lambda: b"a.b", "cannot be read"),
    "no base64": (lambda: b"!.!.!", "cannot be read"),
    "no JSON": (lambda: by_hand({"alg": "ES256", "kid": "ES256"}, b"[" * 3000), "signature|cannot be read"),
    "deep": (lambda: base64.urlsafe_b64encode(b"[" * 5000) + b".x.x", "cannot be read"),
    "long": (lambda: b"x" * 9000 + b".x.x", "longer than 8192 bytes"),
    "bytes": (lambda: b"\xff\xfe.\x80.\x81", "cannot be read"),
}


@pytest.mark.parametrize(("make", "message"), UNTRUSTED.values(), ids=UNTRUSTED)
def test_a_token_that_is_not_to_be_trusted_is_refused_and_not_repeated(keys, make, message):
    token = make()
    with pytest.raises(Unauthenticated, match=message) as refused:
        keys.verify(token)
    assert len(str(refused.value)) < 120
    assert "evil" not in str(refused.value)


def test_clocks_may_be_a_few_seconds_apart(keys):
    now = int(time.time())
    assert keys.verify(signed(exp=now - 2, nbf=now + 2)).name == "ci"


def test_any_byte_changed_makes_it_worthless(keys):
    token = signed("EdDSA")
    for place in range(0, len(token), 7):
        if token[place : place + 1] == b"." or place == len(token) - 1:  # of the last letter only some bits count
            continue
        spoiled = token[:place] + (b"A" if token[place : place + 1] != b"A" else b"B") + token[place + 1 :]
        with pytest.raises(Unauthenticated):
            keys.verify(spoiled)


P384 = ec.generate_private_key(ec.SECP384R1())


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([], "no key to check tokens with"),
        ([{**LISTED[0], "kid": ""}], "no key to check tokens with"),
        ([{name: value for name, value in LISTED[0].items() if name != "kid"}], "no key to check tokens with"),
        ([{**LISTED[0], "use": "enc"}], "no key to check tokens with"),
        ([{**LISTED[0], "alg": "HS256"}], "no key to check tokens with"),
        ([{**LISTED[0], "alg": "none"}], "no key to check tokens with"),
        ([LISTED[0], LISTED[0]], "two keys 'RS256'"),
        ([{"kty": "oct", "k": "c2VjcmV0LXNlY3JldA", "kid": "s", "alg": "HS256"}], "is a secret one"),
        ([jwt.get_algorithm_by_name("RS256").to_jwk(RSA, as_dict=True) | {"kid": "p"}], "is a secret one"),
        ([{"kty": "RSA", "kid": "broken", "n": "AQ"}], "the key 'broken' cannot be read"),
        ([{"kty": "EC", "crv": "P-256", "kid": "off", "x": "AQ", "y": "AQ"}], "the key 'off' cannot be read"),
        ([jwk(rsa.generate_private_key(65537, 1024), kid="weak")], "has 1024 bits"),
        ([{"kid": str(number)} for number in range(65)], "65 keys"),
    ],
)
def test_a_file_of_keys_that_must_not_be_trusted_is_refused(listed, message):
    with pytest.raises(UsageError, match=message) as refused:
        parsed(*listed)
    assert "secret-secret" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"keys": 7}', b'{"keys": [7]}', b"[" * 100_000, b"\xff"])
def test_what_is_no_jwks_is_told(content):
    with pytest.raises(UsageError, match=r"x\.json is no JWKS file"):
        TokenKeys.parse(content, "x.json", ISSUER, AUDIENCE)


def test_keys_for_other_purposes_are_passed_over():
    keys = parsed({**LISTED[0], "kid": "enc", "use": "enc"}, {"kty": "EC", "crv": "P-384", "kid": "p"}, *LISTED)
    assert len(keys) == len(LISTED)
    with pytest.raises(Unauthenticated, match="names no key"):
        keys.verify(signed("RS256", kid="enc"))


def test_a_token_is_looked_at_once_and_forgotten_with_its_key(tmp_path):
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": LISTED}))
    followed = TokenFile(file, ISSUER, AUDIENCE)
    found, looked = followed.read(), []

    class Counting:
        def verify(self, token):
            looked.append(token)
            return found.verify(token)

    now = [time.time()]
    access = Access(tokens=Counting(), now=lambda: now[0])
    assert not access.open
    credential = b"Bearer " + signed()
    for _ in range(3):
        access.check("infer", credential)
    assert len(looked) == 1
    assert access.name_of(credential) == "ci"
    with pytest.raises(Forbidden, match="lacks the scope 'admin'"):
        access.check("admin", credential)
    now[0] += 66
    with pytest.raises(Unauthenticated, match="expired"):
        access.check("infer", credential)
    now[0] -= 66
    file.write_text(json.dumps({"keys": LISTED[:1]}))
    access.replace(None, followed.changed())
    with pytest.raises(Unauthenticated, match="names no key"):
        access.check("infer", credential)
    assert followed.changed() is None


def test_only_so_many_credentials_are_remembered():
    class Trusting:
        def verify(self, token):
            return Grant(token.decode(), frozenset({"infer"}))

    access = Access(tokens=Trusting())
    for number in range(5000):
        access.check("infer", b"Bearer a.b.%d" % number)
    assert 0 < len(access._rules.seen) <= 4096
