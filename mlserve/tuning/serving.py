"""A server of our own for as long as it is measured: `mlserve serve` as a child process, on cores of its own."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from mlserve.bench.cores import own_cores, split_cores
from mlserve.bench.leash import leashed
from mlserve.bench.payload.payload import PayloadWish
from mlserve.bench.subject import Subject, url_subject
from mlserve.bench.target import parse_target
from mlserve.errors import EngineError
from mlserve.model.artifact import Artifact
from mlserve.model.digest import model_sha256
from mlserve.model.onnx_file import inspect_onnx
from mlserve.model.rows import TOKENIZER_FILE
from mlserve.model.tensors import TensorSpec
from mlserve.runs.load import Protocol
from mlserve.runs.run import ServerSettings

__all__ = ["Served", "ServerOptions", "artifact_subject", "file_subject", "serving"]

_DRAIN_S = 5
_STOP_S = 15.0


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `mlserve serve` is told. `threads` 0 are as many as the server's cores over its workers.

    `engine` "" is the one the version was made for, `compute_type` "" that of its weights. `spare_cores` are left to
    the generators, as far as the server keeps one. `python` is the interpreter whose mlserve serves, "" for ours.
    """

    workers: int = 1
    threads: int = 0
    max_batch_rows: int = 32
    max_delay_ms: float = 0.0
    device: str = "cpu"
    engine: str = ""
    compute_type: str = ""
    spare_cores: int = 1
    python: str = ""


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A running server of one model version. `http` and `grpc` are URLs; `spare_cpus` are the cores it leaves.

    `pids` are its processes: the supervisor first, then the workers. `start_up_s` is how long it took until it served.
    """

    http: str
    grpc: str
    model: str
    version: str
    settings: ServerSettings
    spare_cpus: tuple[int, ...]
    pids: tuple[int, ...] = ()
    start_up_s: float | None = None


@contextmanager
def serving(ref: str, store: Path, options: ServerOptions) -> Iterator[Served]:
    """Serves `ref` (NAME, NAME@VERSION, NAME@ALIAS or FILE.onnx) on free ports; stops the server with the block.

    Raises EngineError, in the server's own words, when it does not start. The server ends with us, even if we are
    killed (see `leashed`).
    """
    cpus, spare_cpus = split_cores(own_cores(), options.spare_cores)
    settings = ServerSettings(
        workers=options.workers,
        threads=options.threads or max(1, (len(cpus) or os.cpu_count() or 1) // options.workers),
        max_batch_rows=options.max_batch_rows,
        max_delay_ms=options.max_delay_ms,
        device=options.device,
        engine=options.engine,
        compute_type=options.compute_type,
        python=options.python,
        cpus=cpus,
    )
    with tempfile.TemporaryFile() as log:
        began_s = time.monotonic()
        process = subprocess.Popen(
            leashed([options.python or sys.executable, *_arguments(ref, store, settings)], cpus),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            process_group=0,  # so that Ctrl-C in a terminal reaches us alone, and the server outlives its load
        )
        try:
            ready = _wait_ready(process, ref, log)
            yield Served(
                http=ready.http,
                grpc=f"grpc://{ready.grpc}",
                model=ready.models[0].name,
                version=ready.models[0].version,
                settings=settings,
                spare_cpus=spare_cpus,
                pids=(process.pid, *ready.workers),
                start_up_s=time.monotonic() - began_s,
            )
        finally:
            _stop(process)


def artifact_subject(served: Served, artifact: Artifact, protocol: Protocol, wish: PayloadWish) -> Subject:
    """A version of the store behind `served`, to be load-tested by what its manifest says."""
    manifest = artifact.manifest
    subject = _subject(served, protocol, wish, artifact.directory)
    return msgspec.structs.replace(
        subject,
        model=msgspec.structs.replace(
            subject.model,
            variant=manifest.variant,
            sha256=model_sha256(manifest.files),
            size_bytes=artifact.size_bytes,
            accuracy=manifest.metrics.accuracy,
        ),
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        wish=msgspec.structs.replace(subject.wish, processing=manifest.processing, outputs=manifest.outputs),
        compute_type=manifest.compute_type,
    )


def file_subject(served: Served, path: Path, protocol: Protocol, wish: PayloadWish) -> Subject:
    """A bare ONNX file behind `served`: inputs as the server describes them, bounds as the file's graph shows them."""
    bounds = inspect_onnx(path).bounds
    subject = _subject(served, protocol, wish, path.parent)
    inputs = tuple(TensorSpec(spec.name, spec.dtype, spec.shape, bounds.get(spec.name)) for spec in subject.inputs)
    return msgspec.structs.replace(subject, inputs=inputs)


class _Model(msgspec.Struct):
    name: str
    version: str


class _Ready(msgspec.Struct):
    """What `mlserve serve --json` prints once it serves."""

    http: str
    grpc: str
    models: list[_Model]
    workers: tuple[int, ...] = ()


def _subject(served: Served, protocol: Protocol, wish: PayloadWish, folder: Path) -> Subject:
    """What the server says of itself, which it says in V2, asked over `protocol`."""
    described = url_subject(parse_target(served.http, served.model))
    target = parse_target(_url(served, protocol), served.model, protocol)
    tokenizer = folder / TOKENIZER_FILE
    return msgspec.structs.replace(
        described,
        target=target,
        model=msgspec.structs.replace(described.model, url=target.url, version=served.version),
        wish=msgspec.structs.replace(
            wish, tokenizer=tokenizer if tokenizer.is_file() else None, outputs=described.outputs
        ),
        metrics_url=served.http,
        server=served.settings,
        cpus=served.spare_cpus,
        pids=served.pids,
        start_up_s=served.start_up_s,
    )


def _url(served: Served, protocol: Protocol) -> str:
    return served.grpc if protocol in ("grpc", "tfserving-grpc") else served.http


def _arguments(ref: str, store: Path, settings: ServerSettings) -> list[str]:
    flags = {
        "--store": store,
        "--http-port": 0,
        "--grpc-port": 0,
        "--workers": settings.workers,
        "--threads": settings.threads,
        "--max-batch-rows": settings.max_batch_rows,
        "--max-delay-ms": settings.max_delay_ms,
        "--device": settings.device,
        "--drain": f"{_DRAIN_S}s",
    }
    # Left out where they say nothing: an older mlserve of another interpreter may not know them.
    chosen = {"--engine": settings.engine, "--compute-type": settings.compute_type}
    flags |= {flag: value for flag, value in chosen.items() if value}
    said = [str(part) for pair in flags.items() for part in pair]
    return ["-m", "mlserve", "serve", *said, "--json", "--", ref]


def _wait_ready(process: "subprocess.Popen[bytes]", ref: str, log: BinaryIO) -> _Ready:
    """The server's one JSON document, which comes over several lines. Raises EngineError when it ends without it."""
    assert process.stdout is not None
    document = b""
    for line in process.stdout:
        document += line
        with suppress(msgspec.DecodeError):  # it is not whole yet
            return msgspec.json.decode(document, type=_Ready)
    status = process.wait()
    log.seek(0)
    raise EngineError(_fault(log.read().decode("utf-8", "replace")) or f"the server of {ref} ended with {status}")


def _fault(log: str) -> str:
    """The server's own error line, or the last it said."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    return (errors or lines or [""])[-1]


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.stdout is not None
    process.stdout.close()
