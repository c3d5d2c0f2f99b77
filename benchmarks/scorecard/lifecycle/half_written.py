"""B5: a version that is still being written is not loaded, whatever of it is there already."""

import shutil
import time
from pathlib import Path

import msgspec
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.driver import Load, driving
from scorecard.known import MODEL, publish
from scorecard.lifecycle.failed_loads import wait_for_state
from scorecard.server import Server, serving_both
from scorecard.spoilt_versions import WEIGHTS, keep_weights_beside, make_version

from mlserve.model.artifact import MANIFEST, MODEL_FILE, Manifest, read_manifest, record_files, write_manifest

__all__ = ["CASE", "UNCHECKED"]

_STEP_S = {"seconds": 0.25, "short": 1.0, "long": 10.0}
_ORDERS = {"seconds": 1, "short": 3, "long": 3}
_PER_S = {"seconds": 60.0, "short": 200.0, "long": 200.0}
_PATIENCE_S = 60.0
_CONTROL_PATIENCE_S = 15.0

UNCHECKED = """
import shutil
import mlserve.model.private_copy as private_copy

def unchecked(folder, recorded, *, but, copy_to=None):
    for name in recorded:
        if (folder / name).exists():
            (copy_to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, copy_to / name)
    return []

private_copy.differences = unchecked
"""
"""Loads whatever files there are, unchecked: to be planted into a server."""


def run(stage: Stage) -> Outcome:
    publish(stage.folder / "store")
    # Without it, a request that names no version is for the newest.
    shutil.rmtree(stage.folder / "store" / MODEL / "aliases")
    with serving_both(stage.folder, "--versions", "latest:1", "--no-cache", plant=UNCHECKED) as (sound, broken):
        return _play(stage, [sound, broken])


def _play(stage: Stage, servers: list[Server]) -> Outcome:
    """Both servers look at the same store; a load for each."""
    orders, step_s, folder = range(_ORDERS[stage.form]), _STEP_S[stage.form], stage.folder
    store, early, complaints, complete_s = folder / "store", 0, [], []
    load = Load(per_s=_PER_S[stage.form], seconds=_PATIENCE_S * len(orders) * 2, ways=("http", "grpc"))
    with driving(servers[0].endpoints, load) as running, driving(servers[1].endpoints, load) as control:
        time.sleep(0.2)
        for number in orders:
            version = 2 + number
            _write_slowly(folder, store, version, number, step_s, servers[1])
            complete_s.append(running.now_s)
            entry = wait_for_state(servers[0], version, "READY", _PATIENCE_S)
            complaints += [] if entry else [f"version {version} was complete and never served"]
            wait_for_state(servers[1], version, "READY", _PATIENCE_S)
        time.sleep(0.3)
        running.stop()
        control.stop()
    driven = running.driven
    for number, at_s in enumerate(complete_s):
        early += sum(one.version == str(2 + number) and one.done_s < at_s for one in driven.answers)
    if early:
        complaints.append(f"{early} answers were by a version that was not complete")
    fault = "; ".join(filter(None, [driven.not_ok, *complaints]))
    found = f"{len(orders)} versions were written in steps of {step_s:g} s and served once complete; "
    return Outcome(
        passed=not fault and not servers[0].traceback,
        found=fault + servers[0].traceback or f"{found}all {driven.count()} requests were answered right meanwhile",
        figures=(
            Figure("requests", driven.count()),
            Figure("answers before it was complete", early, limit="0"),
            Figure("requests not answered well", driven.count() - driven.count("ok"), limit="0"),
        ),
        control=f"a server that loads the files there are: {control.driven.not_ok or 'nothing wrong'}",
        control_failed=bool(control.driven.not_ok),
    )


def _write_slowly(folder: Path, store: Path, version: int, order: int, step_s: float, broken: Server) -> None:
    """The files of a version, one after another, each in two pieces.

    First as tools copy that make room for a file before they fill it: what is not there yet reads as zeros; that goes
    on until the `broken` server has loaded it. Then with the manifest first, then with the manifest last.
    """
    source = make_version(folder / f"made-{version}", version)
    keep_weights_beside(source)
    write_manifest(source, _with_files(source))
    target = store / MODEL / str(version)
    target.mkdir()
    names = {
        0: (MANIFEST, MODEL_FILE, WEIGHTS),
        1: (MANIFEST, WEIGHTS, MODEL_FILE),
        2: (WEIGHTS, MODEL_FILE, MANIFEST),
    }[order]
    if order == 0:
        for name in names[:2]:
            shutil.copyfile(source / name, target / name)
        names = names[2:]
    for name in names:
        content = (source / name).read_bytes()
        with (target / name).open("wb") as file:
            if order == 0:
                file.truncate(len(content))
                file.flush()
                time.sleep(2 * step_s)
                wait_for_state(broken, version, "READY", _CONTROL_PATIENCE_S)
                time.sleep(step_s)
            file.write(content[: len(content) // 2])
            file.flush()
            time.sleep(step_s)
            file.write(content[len(content) // 2 :])
    shutil.rmtree(source)


def _with_files(folder: Path) -> Manifest:
    return msgspec.structs.replace(read_manifest(folder), files=record_files(folder))


CASE = Case(
    id="B5",
    title="A version that appears slowly",
    criterion="never loaded until it is complete, served then; no request fails",
    source="Triton warns of its own POLL mode",
    run=run,
)
