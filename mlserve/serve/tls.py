"""TLS: the server's certificate and the clients' authority, followed as their files change.

A context of Python's ssl module, once made, is never changed: each change makes new ones, and whoever begins a
handshake is given those of the moment. Connections that are open keep what they were opened with. The files that were
last good are kept for a worker that takes another's place, all of them as one, so that they fit each other.
"""

import asyncio
import logging
import ssl
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast
from weakref import WeakSet

import msgspec

from mlserve.errors import UsageError
from mlserve.serve.followed_file import LastGood
from mlserve.serve.settings import TlsSettings

__all__ = ["Certificates", "CurrentContext", "listening"]

# Who does not say goodbye within this, once the server did, is cut.
_SHUTDOWN_S = 2.0

_MEND = "give PEM files: the certificate with its chain, and its key without a passphrase"

# A change is noticed within this.
_LOOK_EVERY_S = 0.2

_log = logging.getLogger("mlserve.serve")

_Stamps = tuple[tuple[int, ...], ...]


class _ServerSide(ssl.SSLObject):
    """The server's side of one connection; it is `under_way` until its handshake is over."""

    under_way: "WeakSet[_ServerSide]"

    def do_handshake(self) -> None:
        """Raises ssl.SSLError for a session taken up again by a client whose certificate has expired meanwhile.

        TLS 1.2 knows sessions by their ids, which Python's ssl module cannot turn off, and looks at no dates then.
        """
        super().do_handshake()
        self.under_way.discard(self)
        if self.session_reused and _has_expired(self.getpeercert()):
            raise ssl.SSLError("the client's certificate has expired")


class CurrentContext(ssl.SSLContext):
    """Begins every handshake with `current`. For asyncio and uvloop, which keep the context a server was made with."""

    current: ssl.SSLContext

    def __init__(self, _: int) -> None:
        # An event loop alone holds those that are under way, and lets go of them when they fail, or take too long.
        self._under_way: WeakSet[_ServerSide] = WeakSet()
        self._connections: Collection[Any] = ()
        self._most = float("inf")

    def limit(self, connections: Collection[Any], most: int) -> None:
        """Lets in no more than `most`, those of `connections` and of handshakes that are under way together."""
        self._connections, self._most = connections, most

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        """Raises ConnectionRefusedError for one too many, at which the event loop cuts it."""
        if len(self._under_way) + len(self._connections) >= self._most:
            raise ConnectionRefusedError(f"there are {self._most:g} connections already")
        begun = cast("_ServerSide", self.current.wrap_bio(*arguments, **named))
        begun.under_way = self._under_way
        self._under_way.add(begun)
        return begun


class _Pair(NamedTuple):
    http: ssl.SSLContext
    grpc: ssl.SSLContext


class Certificates:
    """The contexts for handshakes over `http` and `grpc`, from the files of `settings`; those that are good are kept in
    `good`. `resumes`: this worker takes another's place, so what is kept there stands in for what cannot be used.

    Raises UsageError for files that cannot be read, and for a key that is not the certificate's.
    """

    def __init__(self, settings: TlsSettings, good: LastGood | None = None, *, resumes: bool = False) -> None:
        self._settings, self._good = settings, good or LastGood()
        self._paths = [Path(path) for path in (settings.certificate, settings.key, settings.client_ca) if path]
        self._stamps = self._stamps_now()
        self._refused: _Stamps | None = None
        self._told = False
        self.http, self.grpc = CurrentContext(ssl.PROTOCOL_TLS_SERVER), CurrentContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            self.http.current, self.grpc.current = self._read(self._stamps)
        except UsageError as error:
            content = self._good.read() if resumes else None
            if content is None:
                raise
            _log.warning("TLS goes on with the certificate from before: %s", error)
            self.http.current, self.grpc.current = _unpacked(settings, content, self._good.folder)
            self._stamps, self._refused, self._told = (), self._stamps, True

    async def follow(self) -> None:
        """Looks at the files, for ever."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            self.look()

    def look(self) -> None:
        """Takes the files as they are, if they changed since the last look.

        Files that do not fit each other change nothing, and the log says why, once, unless they fit at the next look:
        who replaces two files replaces one after the other.
        """
        stamps = self._stamps_now()
        if stamps == self._stamps or (self._told and stamps == self._refused):
            return
        try:
            self.http.current, self.grpc.current = self._read(stamps)
        except UsageError as error:
            self._told = stamps == self._refused
            self._refused = stamps
            if self._told:
                _log.warning("TLS goes on with the certificate from before: %s", error)
            return
        self._stamps, self._refused, self._told = stamps, None, False
        _log.info("new connections get the certificate that %s holds now", self._settings.certificate)

    def _read(self, stamps: _Stamps) -> _Pair:
        """Those of the files, which are kept unless they change meanwhile: the next look reads them again then."""
        pair = _pair(self._settings)
        content = _packed(self._settings)
        if content is not None and self._stamps_now() == stamps:
            self._good.keep(content)
        return pair

    def _stamps_now(self) -> _Stamps:
        return tuple(map(_stamp, self._paths))


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return (status.st_mtime_ns, status.st_ino, status.st_size, status.st_dev)


def _pair(settings: TlsSettings) -> _Pair:
    return _Pair(_context(settings, ["http/1.1"]), _context(settings, ["h2"]))


def _packed(settings: TlsSettings) -> bytes | None:
    """The files of `settings` in one; None where one of them is gone by now."""
    paths = (settings.certificate, settings.key, settings.client_ca)
    try:
        return msgspec.msgpack.encode([Path(path).read_bytes() if path else b"" for path in paths])
    except OSError:
        return None


def _unpacked(settings: TlsSettings, content: bytes, within: Path | None) -> _Pair:
    """As `_pair`, from what `_packed` made. Python's ssl module reads certificates and keys from files alone: they lie
    in the folder `within` meanwhile, in one that no other user can enter.
    """
    with tempfile.TemporaryDirectory(prefix=".good-tls-", dir=within) as folder:
        paths = [Path(folder, name) for name in ("certificate", "key", "client_ca")]
        contents = msgspec.msgpack.decode(content, type=list[bytes])
        for path, each in zip(paths, contents, strict=True):
            path.write_bytes(each)
        files = {path.name: str(path) for path, each in zip(paths, contents, strict=True) if each}
        return _pair(msgspec.structs.replace(settings, **files))


def _context(settings: TlsSettings, protocols: Sequence[str]) -> ssl.SSLContext:
    """TLS 1.2 and 1.3 with the ciphers that Python's ssl module chooses."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = _ServerSide
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(list(protocols))
    _load_certificate(context, settings.certificate, settings.key)
    if settings.client_ca:
        _load_authority(context, settings.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED if settings.client_required else ssl.CERT_OPTIONAL
        # Who takes up a session again shows no certificate again, and the one from before may have expired meanwhile:
        # there are none of TLS 1.3, and no tickets; `_ServerSide` looks at those that are left.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def _has_expired(certificate: Mapping[str, Any] | None) -> bool:
    return ssl.cert_time_to_seconds(certificate["notAfter"]) <= time.time() if certificate else False


def _load_certificate(context: ssl.SSLContext, certificate: str, key: str) -> None:
    for path, flag in ((certificate, "--tls-cert"), (key, "--tls-key")):
        _check_readable(path, flag)
    try:
        context.load_cert_chain(certificate, key, _no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise UsageError(
                f"--tls-key {key} is not the key of --tls-cert {certificate}; give the two that belong together"
            ) from error
        raise UsageError(
            f"--tls-cert {certificate} and --tls-key {key} cannot be used ({error.reason or 'no PEM'}); {_MEND}"
        ) from error
    except OSError as error:  # gone since it was looked at
        raise UsageError(
            f"--tls-cert {certificate} and --tls-key {key} cannot be read: {error.strerror}; {_MEND}"
        ) from error


def _load_authority(context: ssl.SSLContext, path: str) -> None:
    _check_readable(path, "--tls-client-ca")
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise UsageError(
            f"--tls-client-ca {path} cannot be used ({error.reason or 'no PEM'}); give a PEM file of the certificates "
            "of who signs those of the clients"
        ) from error
    except OSError as error:  # gone since it was looked at
        raise UsageError(f"--tls-client-ca {path} cannot be read: {error.strerror}; give a PEM file") from error


def _check_readable(path: str, flag: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise UsageError(f"{flag} {path} cannot be read: {error.strerror}; {_MEND}") from error


def _no_passphrase() -> str:
    raise UsageError(f"the key of --tls-key is locked with a passphrase; {_MEND}")


def listening(context: ssl.SSLContext | None, handshake_s: float) -> dict[str, Any]:
    """What `loop.create_server` is told so that its connections speak TLS, and end a handshake within `handshake_s`.

    Nothing for a `context` of None: they speak plain text.
    """
    if context is None:
        return {}
    return {"ssl": context, "ssl_handshake_timeout": handshake_s, "ssl_shutdown_timeout": _SHUTDOWN_S}
