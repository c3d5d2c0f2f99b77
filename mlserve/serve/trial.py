"""A trial: a model is loaded and run in a process of its own before a server that serves others loads it.

    python -m mlserve.serve.trial < what    (started by the worker; not a command for people)

onnxruntime can be crashed by a file: of 1,500 files whose fields were changed at random, one ended the process that
loaded it (benchmarks/scorecard/bad_input/model_files.py tries it again). Another never returns, or asks for more memory
than there is. None of this can be caught in the process where it happens. What it costs is the start of a process and
one more load, 0.7 s for a small model, once for all workers of a server, in which the model is not served yet.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mlserve.engines.engine import EngineSettings
from mlserve.engines.opening import open_engine, open_onnx_file
from mlserve.errors import EngineError, MlserveError
from mlserve.model.artifact import MANIFEST, Artifact, read_manifest, sha256_of
from mlserve.runs.memory import free_memory_bytes
from mlserve.serve.warming import check_interface, warm_up
from mlserve.units import format_exit

__all__ = ["Trial", "limit_process", "load_and_run", "main", "note_loaded", "try_model"]

# Of the time that a small model has, so much on one core: what it takes of that does not depend on what else the
# machine does. A large one has more; one that came too late is tried again later.
_CPU_SHARE = 2 / 3
_BYTES_A_CPU_S = 20_000_000
_CLOCK_TIMES_CPU = 10
# Behind all that serves, but with a tenth of a core where that takes everything it can get.
_NICENESS = 10
# A batch is tried where it takes no longer, going by a single row: the worker will run it anyway.
_LONGEST_BATCH_S = 2.0
_KEEP_FREE_SHARE = 0.05
# They compile while they load, for minutes, and in languages that do not crash.
_UNTRIED = ("torch", "torch-compiled")
_FOLDER = "tried"
# What one worker found wrong goes for the others that ask while it tries, and so long afterwards. It may pass, such as
# a want of memory: whoever asks again after a pause of a second or more has it tried again.
_FAULT_HOLDS_S = 0.5
# Stands for the model's folder, of which every worker has its own, in what is shared.
_HERE = "\0"
_PR_SET_PDEATHSIG = 1


class Trial(msgspec.Struct, frozen=True):
    """One trial: `path` is a version's folder or an ONNX file, in a folder that nobody else can write. It may take
    `memory_bytes`, `cpu_s` seconds of a core, and `clock_s` on the clock. It ends with the process `parent`, if any.
    """

    path: str
    engine: EngineSettings
    max_rows: int
    memory_bytes: int
    cpu_s: int
    clock_s: float
    parent: int = 0


class _Finding(msgspec.Struct, frozen=True):
    """What a trial found: a fault, "" for none; when it ended, by the clock of `time.monotonic`."""

    fault: str
    ended_s: float


def try_model(path: Path, engine: EngineSettings, max_rows: int, run_directory: str, time_s: float) -> None:
    """Loads the model at `path`, a folder with a manifest or an ONNX file, in a process of its own, and runs it.

    A small one may take `time_s`, a large one more; 0 tries nothing. One worker of those that share `run_directory`
    tries, the others go by what it found; whoever asks for it again later has a model with a fault tried again. Raises
    EngineError for a model that crashes, hangs, takes more memory than is free, or does not load. What is for an
    accelerator is not tried: there it would take other time, and other memory.
    """
    if not time_s or engine.device != "cpu" or _engine_of(path, engine) in _UNTRIED:
        return
    size_bytes = sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
    for_size_s = size_bytes // _BYTES_A_CPU_S
    trial = Trial(
        str(path),
        msgspec.structs.replace(engine, threads=1, streams=1, cache=""),
        max_rows,
        int(free_memory_bytes() * (1 - _KEEP_FREE_SHARE)),
        math.ceil(time_s * _CPU_SHARE) + for_size_s,
        time_s + _CLOCK_TIMES_CPU * for_size_s,
        os.getpid(),
    )
    if not run_directory:
        _run(trial)
        return
    asked_s, here = time.monotonic(), str(path if path.is_dir() else path.parent)
    with _once(path, engine.engine, max_rows, Path(run_directory, _FOLDER)) as done:
        finding = _found(done)
        if finding is None or (finding.fault and finding.ended_s + _FAULT_HOLDS_S < asked_s):
            finding = _try_now(trial, here)
            with contextlib.suppress(OSError):  # where there is no room the next worker finds out for itself
                done.write_bytes(msgspec.json.encode(finding))
    if finding.fault:
        raise EngineError(finding.fault.replace(_HERE, here))


def note_loaded(version: Path, engine: EngineSettings, max_rows: int, run_directory: str) -> None:
    """Notes that the version in the folder `version` was loaded and run without a trial: the workers that share
    `run_directory` need none. It must be a private copy, or what is noted might go for other bytes than were loaded.
    """
    with (
        contextlib.suppress(OSError),  # no room: they try it
        _once(version, engine.engine, max_rows, Path(run_directory, _FOLDER)) as done,
    ):
        done.write_bytes(msgspec.json.encode(_Finding("", time.monotonic())))


def _found(done: Path) -> _Finding | None:
    try:
        return msgspec.json.decode(done.read_bytes(), type=_Finding)
    except (OSError, msgspec.DecodeError):  # nobody has tried it, or could write down all that was found
        return None


def _try_now(trial: Trial, here: str) -> _Finding:
    try:
        _run(trial)
        fault = ""
    except EngineError as error:
        fault = str(error).replace(here, _HERE)
    return _Finding(fault, time.monotonic())


def _engine_of(path: Path, settings: EngineSettings) -> str:
    return settings.engine or (read_manifest(path).engine if path.is_dir() else "onnxruntime")


@contextlib.contextmanager
def _once(path: Path, engine: str, max_rows: int, folder: Path) -> Iterator[Path]:
    """The file of what the trial of a model of these bytes has found, held while one worker tries it."""
    files = {} if not path.is_dir() else read_manifest(path).files
    content = sorted((name, record.sha256) for name, record in files.items()) or [("", sha256_of(path))]
    asked = msgspec.json.encode([content, engine, max_rows])
    folder.mkdir(mode=0o700, exist_ok=True)
    name = hashlib.sha256(asked).hexdigest()[:32]
    with (folder / f"{name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder / name


def _run(trial: Trial) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "mlserve.serve.trial"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        process_group=0,  # Ctrl-C in a terminal is the supervisor's to handle
    ) as process:
        # From its first instruction: what it imports costs more than most models.
        niceness = os.getpriority(os.PRIO_PROCESS, process.pid)
        os.setpriority(os.PRIO_PROCESS, process.pid, max(_NICENESS, niceness))
        try:
            answer, _ = process.communicate(msgspec.json.encode(trial), timeout=trial.clock_s)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise EngineError(f"it did not load and run within {trial.clock_s:g} s, and was not loaded") from error
    if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise EngineError(
            f"it takes more than {trial.cpu_s} s of a core to load and to run, or all memory, and was not loaded"
        )
    if process.returncode < 0:
        raise EngineError(
            f"loading or running it crashes the process ({format_exit(process.returncode)}); it was not loaded"
        )
    fault = msgspec.json.decode(answer, type=str) if answer else "the process that tried it ended without an answer"
    if fault:
        raise EngineError(fault)


def main() -> None:
    """Loads one model and runs it; tells on stdout, as JSON, why that failed, "" for not at all."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):  # Linux ends it with the thread that started it, which waits for it
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    trial = msgspec.json.decode(sys.stdin.buffer.read(), type=Trial)
    if trial.parent and os.getppid() != trial.parent:
        os._exit(1)  # it ended before we asked
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print
    limit_process(trial)
    try:
        load_and_run(trial)
        fault = ""
    except MemoryError:
        fault = "it takes more memory than there is to load it"
    except MlserveError as error:
        fault = str(error)
    answers.write(msgspec.json.encode(fault))
    answers.flush()
    os._exit(0)  # what a library does while it is taken down is not the model's fault


def limit_process(trial: Trial) -> None:
    """Holds this process to what `trial` may take; where it is held to less already, that stays."""
    with contextlib.suppress(OSError):  # not Linux
        # Where memory runs out all the same, the system shall end this process and none that serves.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    _lower(resource.RLIMIT_CORE, 0, 0)
    _lower(resource.RLIMIT_CPU, trial.cpu_s, trial.cpu_s + 1)
    _lower(resource.RLIMIT_DATA, trial.memory_bytes, trial.memory_bytes)


def _lower(limit: int, *asked: int) -> None:
    """Sets `limit` to the softer and the harder one that are `asked`: to raise what is there may not be ours."""
    present = resource.getrlimit(limit)
    soft, hard = (min({*pair} - {resource.RLIM_INFINITY}) for pair in zip(asked, present, strict=True))
    resource.setrlimit(limit, (soft, hard))


def load_and_run(trial: Trial) -> None:
    """Loads and runs it in this process. Raises an error of ours, or MemoryError, where that fails."""
    path = Path(trial.path)
    if (path / MANIFEST).is_file():
        artifact = Artifact(path, read_manifest(path))
        engine = open_engine(artifact, trial.engine)
        check_interface(engine, artifact.manifest)
        inputs, together = artifact.manifest.inputs, artifact.manifest.rows_independent
    else:
        # The copy lies beside it: where this process is killed, it goes with the folder.
        engine = open_onnx_file(path, trial.engine, str(path.parent))
        inputs, together = engine.inputs, True
    single_s, _ = warm_up(engine, inputs, 1)
    if together and single_s * trial.max_rows <= _LONGEST_BATCH_S:
        warm_up(engine, inputs, trial.max_rows)


if __name__ == "__main__":
    main()
