"""E6: who shows a bad certificate or a bad token is refused, over HTTP and gRPC; a new certificate costs no request."""

import http.client
import socket
import ssl
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import grpc
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.driver import Driven, Load, driving
from scorecard.grpc_way import INFER, write_message
from scorecard.http_way import write_request
from scorecard.judging import Question
from scorecard.known import MODEL
from scorecard.security.authority import Authority, Pair
from scorecard.security.forgery import AUDIENCE, ISSUER, Issuer
from scorecard.server import Server, Tls, serving_both

__all__ = ["CASE"]

_RELOADS = {"seconds": 3, "short": 20, "long": 300}
_PER_S = {"seconds": 150.0, "short": 300.0, "long": 300.0}
_MOST_EFFECT_S = 1.0
_PATIENCE_S = 5.0
_HOSTS = ("localhost", "127.0.0.1")
_QUESTION = Question(1)
_CREDENTIALS_REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)

# A server that takes every certificate and every token, and keeps to the certificate it began with.
_LAX = """
import ssl
import mlserve.serve.access as access
import mlserve.serve.tls as tls

right = tls._context

def lax(settings, protocols):
    context = right(settings, protocols)
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1_1
    return context

tls._context = lax
tls.Certificates.look = lambda self: None
access.Access.check = lambda self, scope, credential: None
"""


class _Attempt(NamedTuple):
    """To ask for inference as `tls` says, with a `token`. `host`: the name that the client expects of the server."""

    tls: Tls
    token: str = ""
    host: str = "localhost"
    version: ssl.TLSVersion | None = None


def run(stage: Stage) -> Outcome:
    folder = stage.folder / "tls"
    root, issuer = Authority(folder / "root"), Issuer(stage.folder / "jwks.json")
    identities = stage.folder / "identities.toml"
    identities.write_text('format_version = 1\n[[identity]]\ncertificate = "CN:known"\nscopes = ["infer"]\n')
    placed = root.issue("localhost", _HOSTS).copy_to(folder)
    flags = ("--tls-cert", placed.certificate, "--tls-key", placed.key, "--tls-client-ca", root.path)
    flags = (*flags, "--tls-client-required", "--tls-identities", identities)
    flags = (*flags, "--jwks", issuer.path, "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE)
    known = _client(root, root.issue("known"))
    good, bad = _attempts(root, Authority(folder / "other"), issuer, known)
    with serving_both(stage.folder, *flags, plant=_LAX) as (sound, broken):
        asked = len(bad) * 2
        let_in = _let_in(sound, bad)
        locked_out = [name for name, works in _answers(sound, good) if not works]
        driven, effects_s = _reload(sound, root, folder, known, stage)
        lax_in = _let_in(broken, bad)
        lax_effects_s = _effects(broken, root, folder, 1)
        told = sound.traceback
    faults = [
        f"let in: {', '.join(let_in)}" if let_in else "",
        f"not let in: {', '.join(locked_out)}" if locked_out else "",
        driven.not_ok,
        f"a new certificate was shown after {max(effects_s):.2f} s" if max(effects_s) > _MOST_EFFECT_S else "",
        told,
    ]
    fault = "; ".join(filter(None, faults))
    return Outcome(
        passed=not fault,
        found=fault
        or f"{asked} of {asked} bad certificates and tokens refused, {2 * len(good)} good ones let in; "
        f"{len(effects_s)} certificates in turn under {driven.count()} requests, none lost",
        figures=(
            Figure("bad ones refused", asked - len(let_in), f"of {asked}", "all"),
            Figure("new certificates under load", len(effects_s)),
            Figure("requests lost by them", driven.count() - driven.count("ok"), limit="0"),
            Figure("longest until a new one is shown", 1e3 * max(effects_s), "ms", "at most 1000"),
        ),
        control=f"a server that looks at no certificate, token or change let in {len(lax_in)} of {asked}, and "
        f"{'never showed' if lax_effects_s[0] > _MOST_EFFECT_S else 'showed'} the new certificate",
        control_failed=bool(lax_in) and lax_effects_s[0] > _MOST_EFFECT_S,
    )


def _client(root: Authority, pair: Pair | None) -> Tls:
    return Tls(root.path, *(pair or ()))


def _attempts(
    root: Authority, other: Authority, issuer: Issuer, known: Tls
) -> tuple[dict[str, _Attempt], dict[str, _Attempt]]:
    """What is to be let in, and what is not."""
    stranger = _client(root, root.issue("stranger"))
    good = {
        "a known certificate": _Attempt(known),
        "a good token": _Attempt(stranger, issuer.good()),
        "TLS 1.2": _Attempt(known, version=ssl.TLSVersion.TLSv1_2),
    }
    bad = {
        "no certificate": _Attempt(_client(root, None)),
        "an expired certificate": _Attempt(_client(root, root.issue("known", valid=timedelta(minutes=-1)))),
        "a certificate of another root": _Attempt(_client(root, other.issue("known"))),
        "a self-signed certificate": _Attempt(_client(root, root.issue_self_signed("known"))),
        "a certificate of nobody known": _Attempt(stranger),
        "TLS 1.1": _Attempt(known, version=ssl.TLSVersion.TLSv1_1),
        # These are for the client to refuse; the server has shown what it was given, and nothing else.
        "a server of another name": _Attempt(known, host="other.example"),
        "a server of another root": _Attempt(Tls(other.path, known.certificate, known.key)),
    }
    return good, bad | {f"token: {name}": _Attempt(stranger, token) for name, token in issuer.bad().items()}


def _let_in(server: Server, attempts: dict[str, _Attempt]) -> list[str]:
    return [name for name, works in _answers(server, attempts) if works]


def _answers(server: Server, attempts: dict[str, _Attempt]) -> Iterator[tuple[str, bool]]:
    """Whether each was answered, over HTTP and over gRPC."""
    ways: dict[str, Callable[[Server, _Attempt], bool]] = {"HTTP": _by_http, "gRPC": _by_grpc}
    for name, attempt in attempts.items():
        for way, ask in ways.items():
            yield f"{name} over {way}", ask(server, attempt)


def _by_http(server: Server, attempt: _Attempt) -> bool:
    try:
        connection = _handshake(server.endpoints.http, attempt, "http/1.1")
    except OSError:
        return False
    with connection:
        fields = f"authorization: Bearer {attempt.token}\r\n" if attempt.token else ""
        try:
            connection.sendall(write_request(_QUESTION, MODEL, "localhost", fields))
            reply = http.client.HTTPResponse(connection)
            reply.begin()
            return reply.status == 200
        except (OSError, http.client.HTTPException):
            return False


def _by_grpc(server: Server, attempt: _Attempt) -> bool:
    if attempt.version is not None:  # grpcio cannot be told which; the handshake is all there is to it
        return _shakes_hands(server.endpoints.grpc, attempt)
    options = [("grpc.ssl_target_name_override", attempt.host)]
    metadata = [("authorization", f"Bearer {attempt.token}")] if attempt.token else []
    with grpc.secure_channel(server.endpoints.grpc, attempt.tls.credentials(), options) as channel:
        try:
            channel.unary_unary(INFER)(write_message(_QUESTION, MODEL), timeout=_PATIENCE_S, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() not in (*_CREDENTIALS_REFUSED, grpc.StatusCode.UNAVAILABLE):
                raise
            return False
    return True


def _shakes_hands(address: str, attempt: _Attempt) -> bool:
    try:
        _handshake(address, attempt, "h2").close()
    except OSError:
        return False
    return True


def _handshake(address: str, attempt: _Attempt, protocol: str) -> ssl.SSLSocket:
    context = attempt.tls.context()
    context.set_alpn_protocols([protocol])
    if attempt.version is not None:
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # else OpenSSL itself would not speak the old one
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = attempt.version
    host, _, port = address.rpartition(":")
    raw = socket.create_connection((host, int(port)), _PATIENCE_S)
    try:
        return context.wrap_socket(raw, server_hostname=attempt.host)
    except OSError:
        raw.close()
        raise


def _reload(server: Server, root: Authority, folder: Path, known: Tls, stage: Stage) -> tuple[Driven, list[float]]:
    """One new certificate after another, under load on old connections and new ones."""
    reloads = _RELOADS[stage.form]
    load = Load(per_s=_PER_S[stage.form], seconds=reloads * _PATIENCE_S, ways=("http", "http-new", "grpc"))
    with driving(server.endpoints._replace(tls=known), load) as running:
        effects_s = _effects(server, root, folder, reloads)
        running.stop()
    return running.driven, effects_s


def _effects(server: Server, root: Authority, folder: Path, reloads: int) -> list[float]:
    """How long after each of so many replacements both ports show the new certificate, in seconds."""
    return [_effect(server, root.issue("localhost", _HOSTS), folder) for _ in range(reloads)]


def _effect(server: Server, pair: Pair, folder: Path) -> float:
    pair.copy_to(folder)
    began_s = time.monotonic()
    wanted = ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())
    waiting = [(server.endpoints.http, "http/1.1"), (server.endpoints.grpc, "h2")]
    while waiting and time.monotonic() - began_s < _MOST_EFFECT_S + 0.2:
        waiting = [(address, protocol) for address, protocol in waiting if _shown(address, protocol) != wanted]
        time.sleep(0.01)
    return time.monotonic() - began_s


def _shown(address: str, protocol: str) -> bytes | None:
    """The certificate that a handshake is given now, in DER."""
    trusting = ssl._create_unverified_context()  # noqa: SLF001  # what is shown is looked at, not believed
    trusting.set_alpn_protocols([protocol])
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), _PATIENCE_S) as raw, trusting.wrap_socket(raw) as connection:
        return connection.getpeercert(binary_form=True)


CASE = Case(
    id="E6",
    title="Certificates and tokens, bad ones and new ones",
    criterion="every bad certificate and token is refused, over HTTP and gRPC; a new one is shown within a second "
    "and costs no request",
    source="the practice of KServe and Envoy",
    run=run,
)
