"""C6: what is loaded is what was checked and, where signatures are asked for, what somebody trusted has signed."""

import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import msgspec
from scorecard.case import Case, Figure, Form, Outcome, Stage
from scorecard.driver import Driven, Load, driving
from scorecard.known import MODEL, publish, write_known
from scorecard.lifecycle.failed_loads import index_entry, wait_for_state
from scorecard.server import Server, serving
from scorecard.spoilt_versions import put_version

from mlserve.model.artifact import MODEL_FILE, read_manifest, record_files, write_manifest
from mlserve.model.signing import sign_version
from mlserve.model.store import Store

__all__ = ["CASE"]

_PER_S = {"seconds": 50.0, "short": 150.0, "long": 150.0}
_PATIENCE_S = 30.0
_RUNS = {"seconds": 1, "short": 3, "long": 100}

_EXCHANGES = """
import os, shutil
import mlserve.serve.loading as loading

right = loading.open_engine
evil, good = os.environ["EVIL"], os.environ["GOOD"]

def exchange(artifact, settings):
    if artifact.manifest.version == 2:
        os.replace(evil, good)
    return right(artifact, settings)

loading.open_engine = exchange
"""
"""Exchanges the file in the store between the check and the load."""

_IN_PLACE = """
import contextlib, pathlib
import mlserve.serve.loading as loading
from mlserve.model.artifact import Artifact, read_manifest
from mlserve.model.store import verify

@contextlib.contextmanager
def in_place(directory, within=""):
    artifact = Artifact(directory, read_manifest(directory))
    verify(artifact)
    yield artifact

loading.private_version = in_place
"""
"""Checks, and then loads, what lies in the store."""


def run(stage: Stage) -> Outcome:
    folder = stage.folder
    keys = {name: _key(folder, name) for name in ("trusted", "strange")}
    signed = ["--require-signature", "enforce", "--trusted-key", keys["trusted"].with_suffix(".pub")]
    for name in ("enforced", "copied", "in-place"):
        publish(folder / name)
    sign_version(folder / "enforced" / MODEL / "1", keys["trusted"])
    ways: dict[str, tuple[list[str | Path], str]] = {
        "enforced": (signed, ""),
        "copied": ([], _EXCHANGES),
        "in-place": ([], _EXCHANGES + _IN_PLACE),
    }
    with ExitStack() as stack, ThreadPoolExecutor(3) as threads:
        starting = {
            name: threads.submit(stack.enter_context, _served(folder, name, flags, plant))
            for name, (flags, plant) in ways.items()
        }
        servers = {name: each.result() for name, each in starting.items()}
        enforced = _play_refused(servers["enforced"], folder / "enforced", keys, stage.form)
        copied = _play_exchanged(servers["copied"], folder / "copied", stage.form)
        control = _play_exchanged(servers["in-place"], folder / "in-place", stage.form)
    faults = [enforced.fault, copied, *(each.traceback for each in (servers["enforced"], servers["copied"]))]
    fault = "; ".join(filter(None, faults))
    return Outcome(
        passed=not fault,
        found=fault
        or f"{enforced.refused} versions were refused ({', '.join(enforced.kinds)}) while the old one "
        f"answered {enforced.requests} requests; one that was exchanged after the check was served as it was checked",
        figures=(
            Figure("versions refused", enforced.refused),
            Figure("requests not answered well", enforced.bad, limit="0"),
            Figure("longest until refused", enforced.longest_s, "s"),
        ),
        control=f"a server that loads from where it checked: {control or 'nothing wrong'}",
        control_failed=bool(control),
    )


class _Refused(msgspec.Struct):
    fault: str
    refused: int
    requests: int
    bad: int
    longest_s: float
    kinds: tuple[str, ...]


def _served(folder: Path, name: str, flags: list[str | Path], plant: str):  # noqa: ANN202  # a context manager
    environment = {"EVIL": str(folder / f"{name}-evil.onnx"), "GOOD": str(folder / name / MODEL / "2" / MODEL_FILE)}
    arguments = [MODEL, "--store", folder / name, "--threads", "1", "--no-cache", *flags]
    return serving(folder, *arguments, plant=plant, environment=environment)


def _play_refused(server: Server, root: Path, keys: dict[str, Path], form: Form) -> _Refused:
    store, complaints, longest_s, version = Store(root), list[str](), 0.0, 1
    with driving(server.endpoints, Load(per_s=_PER_S[form], seconds=600.0, ways=("http", "grpc"))) as running:
        time.sleep(0.2)
        for _ in range(_RUNS[form]):
            for what, make in _SPOILT.items():
                version += 1
                make(root, version, keys)
                started_s = time.monotonic()
                store.promote(MODEL, version)
                entry = wait_for_state(server, version, "UNAVAILABLE", _PATIENCE_S)
                longest_s = max(longest_s, time.monotonic() - started_s)
                if entry is None:
                    state = index_entry(server, version)
                    complaints.append(f"{what}: it was not refused, but is {state['state'] if state else 'nowhere'}")
        version += 1
        _sign(put_version(root, version), keys["trusted"])
        store.promote(MODEL, version)
        if wait_for_state(server, version, "READY", _PATIENCE_S) is None:
            complaints.append("a version that is signed as it should be was not served")
        time.sleep(0.2)
        running.stop()
    driven = running.driven
    strangers = driven.versions().keys() - {"1", str(version)}
    complaints += [f"versions {', '.join(sorted(strangers))} answered"] if strangers else []
    return _Refused(
        "; ".join(filter(None, [driven.not_ok, *complaints])),
        version - 2,
        driven.count(),
        driven.count() - driven.count("ok"),
        longest_s,
        tuple(_SPOILT),
    )


def _play_exchanged(server: Server, root: Path, form: Form) -> str:
    """What was wrong when another model took the place of version 2 while it was loaded; empty for nothing."""
    write_known(Path(f"{root}-evil.onnx"), 400)
    put_version(root, 2)
    Store(root).promote(MODEL, 2)
    entry = wait_for_state(server, 2, "READY", _PATIENCE_S)
    driven = _ask(server, form)
    return driven.not_ok or ("" if entry else "version 2 was not served")


def _ask(server: Server, form: Form) -> Driven:
    with driving(server.endpoints, Load(per_s=_PER_S[form], seconds=0.4)) as running:
        pass
    return running.driven


def _sign(version: Path, key: Path) -> None:
    sign_version(version, key)


def _unsigned(root: Path, version: int, _: dict[str, Path]) -> None:
    put_version(root, version)


def _by_a_stranger(root: Path, version: int, keys: dict[str, Path]) -> None:
    _sign(put_version(root, version), keys["strange"])


def _changed_with_its_manifest(root: Path, version: int, keys: dict[str, Path]) -> None:
    """Whoever can write to the store makes the manifest agree with what they put there."""
    folder = put_version(root, version)
    _sign(folder, keys["trusted"])
    write_known(folder / MODEL_FILE, version + 500)
    write_manifest(folder, msgspec.structs.replace(read_manifest(folder), files=record_files(folder)))


def _with_another_signature(root: Path, version: int, _: dict[str, Path]) -> None:
    put_version(root, version)
    signatures = root / MODEL / "signatures"
    (signatures / f"{version}.sig").write_bytes((signatures / "1.sig").read_bytes())


def _spoilt(fault: str) -> Callable[[Path, int, dict[str, Path]], None]:
    def make(root: Path, version: int, keys: dict[str, Path]) -> None:
        _sign(put_version(root, version, fault), keys["trusted"])

    return make


_SPOILT: dict[str, Callable[[Path, int, dict[str, Path]], None]] = {
    "a flipped bit": _spoilt("corrupted"),
    "a flipped bit in external data": _spoilt("a flipped bit in external data"),
    "a file too many": _spoilt("a file too many"),
    "unsigned": _unsigned,
    "signed by a stranger": _by_a_stranger,
    "changed together with its manifest": _changed_with_its_manifest,
    "the signature of another version": _with_another_signature,
}


def _key(folder: Path, name: str) -> Path:
    """A new elliptic key; its public half lies beside it."""
    path = folder / f"{name}.pem"
    subprocess.run(["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", path], check=True)
    subprocess.run(
        ["openssl", "ec", "-in", path, "-pubout", "-out", path.with_suffix(".pub")], check=True, capture_output=True
    )
    return path


CASE = Case(
    id="C6",
    title="Integrity of what is loaded",
    criterion="a flipped bit, an extra file, an exchange after the check, and in enforce mode whatever no trusted key "
    "signed, are refused before they are loaded; the old version stays",
    source="Triton's repository agent (MD5); OpenSSF model signing",
    run=run,
)
