"""`mlserve record`: what a running server is asked, kept as a trace for `mlserve bench --replay`."""

import http.client
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
import typer

from mlserve.cli.terminal import JsonFlag, ending_well, err, out, print_json, steps
from mlserve.errors import BenchError, UsageError
from mlserve.units import format_duration, parse_duration_s, parse_fraction

__all__ = ["record"]

_LOOK_EVERY_S = 0.5
_WAIT_S = 30.0


@ending_well
def record(
    url: Annotated[str, typer.Argument(metavar="URL", help="A running mlserve server: http://HOST:PORT.")],
    lasts: Annotated[str, typer.Option("--for", help="How long; Ctrl-C ends it earlier, and keeps it.")] = "1m",
    file: Annotated[Path, typer.Option("--out", help="The trace to write.")] = Path("trace.parquet"),
    model: Annotated[str, typer.Option(help="Only requests for this model.", show_default="all")] = "",
    bodies: Annotated[
        str,
        typer.Option(help="none, hash (tells equal requests), keep, or keep:1% (of the requests chosen by chance)."),
    ] = "none",
    most_requests: Annotated[int, typer.Option(help="A worker of the server takes no more than this.")] = 1_000_000,
    key: Annotated[
        str,
        typer.Option(envvar="MLSERVE_KEY", help="An API key with the scope admin.", show_default=False),
    ] = "",
    json: JsonFlag = False,
) -> None:
    """Record when requests arrive at a running server, and how large they are.

    The trace is Parquet, one row a request. Without --bodies nothing of what clients sent is kept; with it, whoever has
    the file has their data.

    [bold]Examples[/]

      mlserve record http://127.0.0.1:8000 --for 10m --out monday.parquet

      mlserve bench minilm@candidate --replay monday.parquet
    """
    wish = {"for_s": parse_duration_s(lasts), "model": model, "most_requests": most_requests, **_parse_bodies(bodies)}
    if file.exists():
        raise UsageError(f"--out {file} exists already; choose another name, or remove it")
    if not file.parent.is_dir():
        raise UsageError(f"--out {file} cannot be written: there is no folder {file.parent}")
    server = _Server(url, key)
    number, cut_short = -1, False
    with steps("recording") as on_step:
        try:
            number = server.ask("POST", "/recording", msgspec.json.encode(wish)).number
            cut_short = not _follow(server, number, wish["for_s"], on_step)
        except KeyboardInterrupt:
            if number < 0:  # nothing has begun, or nobody knows what
                raise
            err.print("ended early", style="yellow")
        status = server.ask("DELETE", f"/recording/{number}")
    _write(file, server.fetch(f"/recording/{number}/trace"), f"{url.rstrip('/')}/recording/{number}/trace")
    full = status.full or cut_short
    if json:
        print_json({"file": str(file), "requests": status.requests, "full": full})
    else:
        out.print(f"{status.requests:,} requests recorded in {file}", highlight=False, soft_wrap=True)
    if full:
        err.print(
            "it ended early: a worker had taken as much as it may (--most-requests, or 256 MB of bodies), or the "
            "server's disk is full",
            style="yellow",
            soft_wrap=True,
        )
    if not status.requests:
        raise typer.Exit(1)


def _parse_bodies(text: str) -> Mapping[str, Any]:
    kind, _, share = text.partition(":")
    if kind not in ("none", "hash", "keep") or (share and kind != "keep"):
        raise UsageError(f"--bodies {text!r} is unknown; use none, hash, keep or keep:1%")
    return {"bodies": kind, "keep_share": parse_fraction(share) if share else 1.0}


def _follow(server: "_Server", number: int, for_s: float, on_step: Any) -> bool:
    """Whether it went on until its time was over."""
    ends_s = time.monotonic() + for_s
    while (left_s := ends_s - time.monotonic()) > 0:
        status = server.ask("GET", f"/recording/{number}")
        on_step(f"{status.requests:,} requests, {format_duration(left_s)} left")
        if not status.going_on:
            return ends_s - time.monotonic() < _LOOK_EVERY_S
        time.sleep(min(_LOOK_EVERY_S, left_s))
    return True


def _write(file: Path, content: bytes, kept_at: str) -> None:
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_bytes(content)
        partial.rename(file)
    except OSError as error:
        raise UsageError(
            f"--out {file} cannot be written: {error.strerror}; the trace is still at {kept_at}"
        ) from error


class _Status(msgspec.Struct, frozen=True):
    """How far a recording is."""

    number: int
    going_on: bool
    requests: int
    full: bool


class _Server:
    """The server's pages. Raises UsageError for a URL that is none, BenchError for what the server answers."""

    def __init__(self, url: str, key: str) -> None:
        try:
            parts = urlsplit(url)
            self._address = (parts.hostname or "", parts.port or 80)
        except ValueError as error:
            raise UsageError(f"{url} is no URL: {error}; write http://HOST:PORT") from error
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
            raise UsageError(f"{url} is no address of a server; write http://HOST:PORT")
        self._url = url
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def ask(self, method: str, path: str, body: bytes = b"") -> "_Status":
        """What a page says of a recording."""
        try:
            return msgspec.json.decode(self.fetch(path, method, body), type=_Status)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BenchError(f"{self._url} is no mlserve server: its answer to {path} is something else") from error

    def fetch(self, path: str, method: str = "GET", body: bytes = b"") -> bytes:
        """What a page answers."""
        try:
            connection = http.client.HTTPConnection(*self._address, timeout=_WAIT_S)
            connection.request(method, path, body, self._headers)
            reply = connection.getresponse()
            answer = reply.read()
            connection.close()
        except (OSError, http.client.HTTPException) as error:
            raise BenchError(f"{self._url} cannot be reached: {error}; check host and port") from error
        if reply.status == 404:
            raise BenchError(f"{self._url} is no mlserve server that can record; start one with: mlserve serve")
        if reply.status in (401, 403):
            raise BenchError(f"{self._url} asks for a key with the scope admin; give it with --key")
        if reply.status != 200:
            raise BenchError(f"{self._url} answered {path} with HTTP {reply.status}: {_reason(answer)}")
        return answer


def _reason(answer: bytes) -> str:
    try:
        return str(msgspec.json.decode(answer)["error"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return "it gave no reason"
