"""What is loaded: one model behind one protocol of one server, and the URLs that name it."""

import re
from collections.abc import Iterable, Sequence
from typing import get_args
from urllib.parse import quote, unquote, urlsplit

import msgspec

from mlserve.bench.dialects.json_template import read_template
from mlserve.bench.trust import Trust
from mlserve.errors import UsageError
from mlserve.runs.load import Protocol

__all__ = [
    "Header",
    "Target",
    "check_protocol",
    "is_url",
    "parse_header",
    "parse_target",
    "spoken_protocol",
]

Header = tuple[str, str]

_V2: tuple[Protocol, ...] = ("rest", "rest-binary")
_OVER_GRPC: tuple[Protocol, ...] = ("grpc", "tfserving-grpc")
_INVOCATIONS = "/invocations"
# A protocol's own path of inference where the URL names none; V2's and TensorFlow Serving's hold the model.
_PATHS: dict[Protocol, str] = {"sagemaker": _INVOCATIONS, "mlflow": _INVOCATIONS}
_FORMS = """write one of
  http://HOST:PORT[/v2/models/NAME[/versions/VERSION]]        the Open Inference Protocol (V2)
  grpc://HOST:PORT[/NAME]                                     the same over gRPC, or with --protocol tfserving-grpc
  http://HOST:PORT/v1/models/NAME[/versions/VERSION]:predict  TensorFlow Serving
  http://HOST:PORT/predictions/NAME[/VERSION]                 TorchServe
  http://HOST:PORT/invocations                                with --protocol sagemaker or mlflow
  http://HOST:PORT/ANY/PATH                                   with --protocol json and --template
or the same over TLS with https:// and grpcs://"""
# RFC 9110, 5.6.2: what a header's name is made of.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\t]+")
# What says where a request ends; a second word on it would break the connection.
_FRAMING = frozenset(("connection", "content-length", "expect", "keep-alive", "te", "transfer-encoding", "upgrade"))
# gRPC's "Requests": names that end in -bin have values in base64.
_METADATA_NAME = re.compile(r"(?!grpc-)[0-9a-z_.-]+(?<!-bin)")
_PATH = re.compile(r"[\x21-\x7e]*")


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A server's address and the model asked for. An empty `model` is the only one it serves; an empty `version` is
    the one it answers with by default.

    `path` is where a server of no protocol is asked, query included; `template` is how it is asked (json_template.py)
    and `answer` where in its answers the outputs lie: `outputs.scores`, "" for the whole answer.

    `headers` go with every question and every request. They may hold keys: they are never written into a run, and a
    target's `repr` does not show their values. `trust` says how a server's certificate is judged; without, there is no
    TLS.
    """

    protocol: Protocol
    host: str
    port: int
    model: str = ""
    version: str = ""
    path: str = ""
    template: str = ""
    answer: str = ""
    headers: tuple[Header, ...] = ()
    trust: Trust | None = None

    @property
    def authority(self) -> str:
        """`host:port`, with an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The server, without the model."""
        scheme = "grpc" if self.protocol in _OVER_GRPC else "http"
        return f"{scheme}{'' if self.trust is None else 's'}://{self.authority}"

    @property
    def title(self) -> str:
        """What to call it: the model, or the path where no model has a name."""
        return self.model or self.path.strip("/") or self.authority

    @property
    def model_path(self) -> str:
        """The REST path of the model's metadata in V2."""
        version = f"/versions/{quote(self.version, safe='')}" if self.version else ""
        return f"/v2/models/{quote(self.model, safe='')}{version}"

    @property
    def infer_path(self) -> str:
        """The REST path of inference in V2."""
        return f"{self.model_path}/infer"

    def with_headers(self, own: Iterable[Header]) -> tuple[Header, ...]:
        """A protocol's `own` headers and the target's, which win where both have one."""
        given = {name for name, _ in self.headers}
        return (*(header for header in own if header[0] not in given), *self.headers)

    def header(self, name: str) -> str:
        """The value of one of the target's headers, "" without it."""
        return dict(self.headers).get(name, "")

    def __repr__(self) -> str:
        fields = {name: getattr(self, name) for name in self.__struct_fields__ if getattr(self, name)}
        fields |= {"headers": [name for name, _ in self.headers]} if self.headers else {}
        return f"Target({', '.join(f'{name}={value!r}' for name, value in fields.items())})"


def is_url(text: str) -> bool:
    """Whether `text` names a running server rather than a model."""
    return "://" in text


def check_protocol(protocol: str) -> Protocol:
    """`protocol` itself. Raises UsageError when it is none that mlserve speaks."""
    for known in get_args(Protocol):
        if protocol == known:
            return known  # type: ignore[no-any-return]  # get_args tells no types
    raise UsageError(f"--protocol {protocol!r} is unknown; use {' or '.join(get_args(Protocol))}")


def parse_header(text: str) -> Header:
    """`"Authorization: Bearer KEY"` -> `("authorization", "Bearer KEY")`.

    Raises UsageError for another form; its message never shows the value.
    """
    name, colon, value = text.partition(":")
    name, value = name.strip().lower(), value.strip()
    if not colon or not _HEADER_NAME.fullmatch(name):
        raise UsageError("--header cannot be read; write it as --header 'authorization: Bearer KEY'")
    if name in _FRAMING:
        raise UsageError(f"--header {name} cannot be chosen: it says where a request ends")
    if not _HEADER_VALUE.fullmatch(value):
        raise UsageError(f"--header {name}: its value is empty, or holds what no header can")
    return name, value


def spoken_protocol(url: str) -> Protocol:
    """The protocol that a URL says by its scheme or its path. Raises UsageError where neither does."""
    plain, spoken, _ = _protocol_of(url, None)
    return spoken or _protocol_by_path(_split(plain)[2], url)


def parse_target(
    url: str,
    model: str = "",
    protocol: str | None = None,
    *,
    template: str = "",
    answer: str = "",
    headers: Sequence[Header] = (),
    trust: Trust | None = None,
) -> Target:
    """What `url` names. `model` adds a name that it lacks, `protocol` says what neither its scheme nor its path does.

    `mlflow+http://HOST:PORT/invocations` says the protocol too, for where several targets have one each. `template` is
    a text or a file (json_template.py); `trust` is for a server of TLS, which is judged by what the system trusts
    without. Raises UsageError for a URL of another form, and where two of these contradict each other.
    """
    url, spoken, secure = _protocol_of(url, protocol)
    if trust is not None and not secure:
        raise UsageError(f"--ca-file and --client-cert are for TLS, and {url} is without; write https:// or grpcs://")
    host, port, path, query = _split(url)
    if spoken is None:
        spoken = _protocol_by_path(path, url)
    if spoken in _OVER_GRPC:
        _check_metadata(headers)
    if query and spoken != "json":
        raise UsageError(f"{url} holds more than mlserve understands; {_FORMS}")
    named, version = _model_in(path, spoken, url)
    if model and named and model != named:
        raise UsageError(f"--model {model} contradicts {url}, which names {named}; give one of them")
    if spoken != "json" and (template or answer):
        raise UsageError(f"--template and --answer are for --protocol json; {url} is asked by {spoken}")
    if spoken == "json" and not template:
        raise UsageError(
            f"{url}: say with --template how a request is written, such as "
            """--template '{"inputs": {{columns}}}' or a file that holds it"""
        )
    return Target(
        protocol=spoken,
        host=host,
        port=port,
        model=named or model,
        version=version,
        path=_own_path(path, query, spoken),
        template=read_template(template) if template else "",
        answer=answer,
        headers=tuple(headers),
        trust=(trust or Trust()) if secure else None,
    )


def _protocol_of(url: str, protocol: str | None) -> tuple[str, Protocol | None, bool]:
    """The URL with a plain scheme, the protocol that its scheme or `protocol` says, and whether it is over TLS."""
    scheme, separator, rest = url.partition("://")
    said, plus, written = scheme.lower().rpartition("+")
    if written not in ("http", "https", "grpc", "grpcs"):
        raise UsageError(f"{url}: {scheme}:// is no protocol of mlserve; {_FORMS}")
    transport = written.removesuffix("s")
    spoken = check_protocol(said) if plus else None
    if protocol is not None:
        if spoken not in (None, check_protocol(protocol)):
            raise UsageError(f"--protocol {protocol} contradicts {url}; leave one of them out")
        spoken = check_protocol(protocol)
    if spoken is None and transport == "grpc":
        spoken = "grpc"
    if spoken is not None and (spoken in _OVER_GRPC) != (transport == "grpc"):
        raise UsageError(f"--protocol {spoken} contradicts {url}; leave it out, or give the {spoken} address")
    return f"{transport}{separator}{rest}", spoken, transport != written


def _check_metadata(headers: Sequence[Header]) -> None:
    for name, _ in headers:
        if not _METADATA_NAME.fullmatch(name):
            raise UsageError(f"--header {name} cannot be sent over gRPC; its names are of letters, digits and _ . -")


def _split(url: str) -> tuple[str, int, str, str]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{url} is no URL: {error}; {_FORMS}") from error
    if not _PATH.fullmatch(parts.path + parts.query):
        raise UsageError(f"{url}: write what a path cannot hold as %20 and the like")
    if not host or not port or parts.fragment or parts.username is not None:
        fault = "names no host" if not host else "names no port" if not port else "holds more than mlserve understands"
        raise UsageError(f"{url} {fault}; {_FORMS}")
    return host, port, parts.path, parts.query


def _protocol_by_path(path: str, url: str) -> Protocol:
    match [part for part in path.split("/") if part]:
        case [] | ["v2", *_]:
            return "rest"
        case ["v1", "models", *_, last] if last.endswith(":predict"):
            return "tfserving"
        case ["predictions", *_]:
            return "torchserve"
        case ["models", _, "invoke"]:
            return "sagemaker"
        case ["invocations"]:
            raise UsageError(f"{url}: both SageMaker and MLflow are asked there; add --protocol sagemaker or mlflow")
    raise UsageError(
        f"{url}: the path {path} is of no protocol that mlserve knows. Add --protocol json and --template, or {_FORMS}"
    )


def _model_in(path: str, protocol: Protocol, url: str) -> tuple[str, str]:
    """The model and the version that a URL's path names."""
    parts = [unquote(part) for part in path.split("/") if part]
    if not parts or protocol == "json":
        return "", ""
    shape = "v2" if protocol in _V2 else "grpc" if protocol in _OVER_GRPC else protocol
    if shape == "tfserving":
        parts[-1] = parts[-1].removesuffix(":predict")
    elif shape == "v2" and len(parts) > 3 and parts[-1] == "infer":
        parts.pop()
    match (shape, *parts):
        case ["v2", "v2"] | ["sagemaker" | "mlflow", "invocations"]:
            return "", ""
        case (
            ["grpc", name]
            | ["v2", "v2", "models", name]
            | ["tfserving", "v1", "models", name]
            | ["torchserve", "predictions", name]
            | ["sagemaker", "models", name, "invoke"]
        ):
            return name, ""
        case (
            ["v2", "v2", "models", name, "versions", version]
            | ["tfserving", "v1", "models", name, "versions", version]
            | ["torchserve", "predictions", name, version]
        ):
            return name, version
    raise UsageError(f"{url}: the path {path} names no model of {protocol}; {_FORMS}")


def _own_path(path: str, query: str, protocol: Protocol) -> str:
    """The path that a dialect cannot make by itself."""
    if protocol == "json":
        return (path or "/") + (f"?{query}" if query else "")
    if protocol in _PATHS:
        return path if path.strip("/") else _PATHS[protocol]
    return ""
