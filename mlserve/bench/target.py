"""What is loaded: one model behind one protocol of one server, and the URLs that name it."""

from typing import get_args
from urllib.parse import quote, unquote, urlsplit

import msgspec

from mlserve.errors import UsageError
from mlserve.runs.load import Protocol

__all__ = ["Target", "check_protocol", "is_url", "parse_target"]

_PROTOCOL_OF: dict[str, Protocol] = {"http": "rest", "grpc": "grpc"}
_OVER_GRPC: tuple[Protocol, ...] = ("grpc", "tfserving-grpc")
_FORMS = (
    "write http://HOST:PORT, http://HOST:PORT/v2/models/NAME[/versions/VERSION], grpc://HOST:PORT or "
    "grpc://HOST:PORT/NAME"
)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A server's address and the model asked for. An empty `model` is the only one it serves; an empty `version` is
    the one it answers with by default.
    """

    protocol: Protocol
    host: str
    port: int
    model: str = ""
    version: str = ""

    @property
    def authority(self) -> str:
        """`host:port`, with an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The server, without the model."""
        return f"{'grpc' if self.protocol in _OVER_GRPC else 'http'}://{self.authority}"

    @property
    def model_path(self) -> str:
        """The REST path of the model's metadata."""
        version = f"/versions/{quote(self.version, safe='')}" if self.version else ""
        return f"/v2/models/{quote(self.model, safe='')}{version}"

    @property
    def infer_path(self) -> str:
        """The REST path of inference."""
        return f"{self.model_path}/infer"


def is_url(text: str) -> bool:
    """Whether `text` names a running server rather than a model."""
    return "://" in text


def check_protocol(protocol: str) -> Protocol:
    """`protocol` itself. Raises UsageError when it is none that mlserve speaks."""
    for known in get_args(Protocol):
        if protocol == known:
            return known  # type: ignore[no-any-return]  # get_args tells no types
    raise UsageError(f"--protocol {protocol!r} is unknown; use {' or '.join(get_args(Protocol))}")


def parse_target(url: str, model: str = "", protocol: str | None = None) -> Target:
    """What `url` names. `model` adds a name that it lacks; `protocol` may only repeat what its scheme says.

    Raises UsageError for a URL of another form, and where two of the three contradict each other.
    """
    scheme = url.partition("://")[0].lower()
    if scheme in ("https", "grpcs"):
        raise UsageError(f"{url}: TLS is not supported yet; give the server's plain http:// or grpc:// address")
    if scheme not in _PROTOCOL_OF:
        raise UsageError(f"{url}: {scheme}:// is no protocol of mlserve; {_FORMS}")
    spoken = _PROTOCOL_OF[scheme]
    if protocol is not None and (check_protocol(protocol) in _OVER_GRPC) != (spoken in _OVER_GRPC):
        raise UsageError(f"--protocol {protocol} contradicts {url}; leave it out, or give the {protocol} address")
    host, port, path = _split(url)
    named, version = _model_in(path, spoken, url)
    if model and named and model != named:
        raise UsageError(f"--model {model} contradicts {url}, which names {named}; give one of them")
    return Target(
        protocol=spoken if protocol is None else check_protocol(protocol),
        host=host,
        port=port,
        model=named or model,
        version=version,
    )


def _split(url: str) -> tuple[str, int, str]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{url} is no URL: {error}; {_FORMS}") from error
    if not host or not port or parts.query or parts.fragment or parts.username is not None:
        fault = "names no host" if not host else "names no port" if not port else "holds more than mlserve understands"
        raise UsageError(f"{url} {fault}; {_FORMS}")
    return host, port, parts.path


def _model_in(path: str, protocol: Protocol, url: str) -> tuple[str, str]:
    """The model and the version that a URL's path names."""
    parts = [unquote(part) for part in path.split("/") if part]
    match (protocol, *parts):
        case [_] | ["rest", "v2"]:
            return "", ""
        case ["grpc", name] | ["rest", "v2", "models", name] | ["rest", "v2", "models", name, "infer"]:
            return name, ""
        case ["rest", "v2", "models", name, "versions", version] | [
            "rest",
            "v2",
            "models",
            name,
            "versions",
            version,
            "infer",
        ]:
            return name, version
    raise UsageError(f"{url}: the path {path} names no model; {_FORMS}")
