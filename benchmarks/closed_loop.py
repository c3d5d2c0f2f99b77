"""Closed-loop load at full speed: wrk for REST and h2load for gRPC, each kept to so many requests in flight."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import msgspec
import numpy as np
import psutil
from rich.console import Console

from mlserve.stats import quantile

__all__ = [
    "WARM_UP_S",
    "Timing",
    "err",
    "fail",
    "on_core",
    "require_tools",
    "run_h2load",
    "run_wrk",
    "wide_console",
    "wrk_script",
]

WARM_UP_S = 1.0

err = Console(stderr=True)


def wide_console() -> Console:
    """Where tables go; into a file or a pipe they are as wide as they need."""
    found = Console()
    return found if found.is_terminal else Console(width=160)


class Timing(msgspec.Struct, frozen=True):
    """One turn. `p50_s` and `p99_s` are of a request, in process of a run; `busy` is the share of the server's core."""

    rows_per_s: float
    p50_s: float
    p99_s: float
    busy: float = 1.0


def fail(message: str) -> NoReturn:
    """Ends the program with one clear line."""
    err.print("[bold red]error:[/] ", end="")
    err.print(message, markup=False, highlight=False, soft_wrap=True)
    sys.exit(2)


def require_tools() -> None:
    """Ends the program unless both load generators are installed."""
    for tool, package in (("wrk", "wrk"), ("h2load", "nghttp2-client")):
        if shutil.which(tool) is None:
            fail(f"{tool} is not installed; install it with: apt-get install {package}")


@contextmanager
def on_core(*cores: int) -> Iterator[None]:
    """Holds this thread, and the processes it starts meanwhile, to `cores`."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def wrk_script(body: bytes, headers: Mapping[str, str] | None = None) -> str:
    """What wrk sends, and one line of JSON about how it went."""
    fields = "".join(f"wrk.headers['{name}'] = '{value}'\n" for name, value in (headers or {}).items())
    text = body.decode().replace("\\", "\\\\").replace("'", "\\'")
    return f"""wrk.method = 'POST'
wrk.headers['content-type'] = 'application/json'
{fields}wrk.body = '{text}'
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\n{{"requests":%d,"took_us":%d,"p50_us":%.1f,"p99_us":%.1f,"errors":%d}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def run_wrk(script: Path, url: str, in_flight: int, worker: psutil.Process, seconds: float) -> Timing:
    """POSTs what `wrk_script` wrote to `url` for `seconds`; `worker` is the process that answers, with its children."""
    command = ["wrk", "-t1", f"-c{in_flight}", f"-d{round(seconds)}s", "--timeout", "30s", "-s", str(script), url]
    with _core_share(worker) as busy:
        output = _run(command)
    found = json.loads(output.rstrip().rpartition("\n")[2])
    if found["errors"]:
        fail(f"{found['errors']} of {found['requests']} requests failed: {' '.join(command)}")
    rate = found["requests"] / found["took_us"] * 1e6
    return Timing(rate, found["p50_us"] / 1e6, found["p99_us"] / 1e6, busy())


def run_h2load(
    message: Path,
    url: str,
    in_flight: int,
    worker: psutil.Process,
    seconds: float,
    headers: Mapping[str, str] | None = None,
) -> Timing:
    """Calls `url` with the framed `message` for `seconds`, one stream a connection; `worker` as in `run_wrk`.

    h2load prints no percentiles, but writes how long each request took: start, status, microseconds. Writing costs it
    a sixth of its rate at one request in flight, so the rate is that of a run without, and the times are of another.
    """
    log = message.with_suffix(".log")
    log.unlink(missing_ok=True)
    timed = [f"-D{round(seconds)}", f"--warm-up-time={WARM_UP_S:g}"]
    fields = {"content-type": "application/grpc", "te": "trailers", **(headers or {})}
    given = [word for name, value in fields.items() for word in ("-H", f"{name}: {value}")]
    command = ["h2load", "-t1", f"-c{in_flight}", "-m1", *timed, "-d", str(message), *given, url]
    with _core_share(worker) as busy:
        count = _succeeded(command)
    _succeeded([*command[:-1], f"--log-file={log}", url])
    took_s = np.loadtxt(log, usecols=2, ndmin=1) / 1e6
    return Timing(count / round(seconds), quantile(took_s, 0.5), quantile(took_s, 0.99), busy())


def _succeeded(command: list[str]) -> int:
    """How many requests h2load made; ends the program if one of them failed."""
    output = _run(command)
    counts = re.search(r"requests: (\d+) total, .* (\d+) succeeded", output)
    if counts is None or counts[1] != counts[2]:
        fail(f"not every request succeeded: {' '.join(command)}\n{output}")
    return int(counts[2])


def _run(command: list[str]) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        fail(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr.strip()}")
    return ended.stdout


@contextmanager
def _core_share(process: psutil.Process) -> Iterator[Callable[[], float]]:
    """`share()`: how much of one core `process` and its children used inside the block."""
    before_s, started_s = _used_s(process), time.perf_counter()
    share: list[float] = []
    yield lambda: share[0]
    share.append((_used_s(process) - before_s) / (time.perf_counter() - started_s))


def _used_s(process: psutil.Process) -> float:
    used_s = 0.0
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):
            times = each.cpu_times()
            used_s += times.user + times.system
    return used_s
