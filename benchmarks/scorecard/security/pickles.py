"""E3: files that run code when they are unpickled, offered wherever a model, rows or a request come in."""

import base64
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.known import MODEL
from scorecard.server import Server, serving_known

from mlserve.errors import MlserveError
from mlserve.model.artifact import MODEL_FILE
from mlserve.optimize.importing import Source, import_model

__all__ = ["CASE"]

_TYPES = (
    "application/x-npy", "application/octet-stream", "application/x-npz", "application/x-pickle", "application/pickle",
    "application/python-pickle", "application/vnd.pickle", "application/x-python-serialize", "application/json",
    "text/csv", "",
)  # fmt: skip

_UNPICKLES = """
import sys
import numpy, joblib
path = sys.argv[1]
for load in (joblib.load, lambda path: numpy.load(path, allow_pickle=True)):
    try:
        load(path)
    except Exception:
        pass
"""
_KERAS = """
import sys, keras
x = keras.layers.Input((4,))
code = f"lambda value: [open({sys.argv[1]!r}, 'w'), value][1]"
model = keras.Model(x, keras.layers.Lambda(eval(code))(x))
import os
model.save("lambda.keras")
model.save("lambda.h5")
os.path.exists(sys.argv[1]) and os.remove(sys.argv[1])
"""

_SERVED = ("model.pkl", "model.pt", "named.onnx", "program.pt2")


class _Canary:
    """Makes the file at `path` when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self._path, "w")


def run(stage: Stage) -> Outcome:
    canary, files = stage.folder / "canary", stage.folder / "files"
    files.mkdir()
    with serving_known(stage.folder) as server:
        offered = dict(_files(files, canary))
        if stage.form != "seconds":
            offered |= _slow_files(files, canary)
        faults = list(_play(server, offered, canary, stage))
        faults += [server.traceback] if server.traceback else []
    control = _control(offered, canary)
    return Outcome(
        passed=not faults,
        found="; ".join(faults[:5])
        or f"{len(offered)} files offered to serve, to optimize and as requests of {len(_TYPES)} content types: "
        "nothing of them ran",
        figures=(Figure("files", len(offered)), Figure("that ran", len(faults), limit="0")),
        control=f"a program that unpickles what it is given: {control or 'nothing ran'}",
        control_failed=bool(control),
    )


def _files(folder: Path, canary: Path) -> Iterator[tuple[str, Path]]:
    """A canary in every wrapping that is quick to make."""
    raw = pickle.dumps(_Canary(canary))
    rows = io.BytesIO()
    np.save(rows, np.array([_Canary(canary)], object), allow_pickle=True)
    contents = {
        "model.pkl": raw,
        "model.joblib": raw,
        "text.pkl": pickle.dumps(_Canary(canary), protocol=0),
        "model.pt": _archive(raw),
        "old.pt": pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + raw,
        "named.safetensors": raw,
        "named.onnx": raw,
        "rows.npy": rows.getvalue(),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        yield name, folder / name
    np.savez(folder / "rows.npz", x=np.array([_Canary(canary)], object))
    yield "rows.npz", folder / "rows.npz"


def _slow_files(folder: Path, canary: Path) -> dict[str, Path]:
    """Those that take PyTorch, TensorFlow or another large library to make, or to refuse."""
    import torch

    program = folder / "program.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(3, 2).eval(), (torch.ones(2, 3),)), program)
    sample = io.BytesIO()
    torch.save(((_Canary(canary),), {}), sample)
    with zipfile.ZipFile(program) as archive:
        entries = {
            name: sample.getvalue() if "sample_inputs" in name else archive.read(name) for name in archive.namelist()
        }
    program.write_bytes(_zipped(entries))
    subprocess.run([sys.executable, "-c", _KERAS, canary], cwd=folder, check=True, capture_output=True)
    canary.unlink(missing_ok=True)
    (folder / "estimator.skops").write_bytes(
        _zipped({"schema.json": _skops(), "canary.npy": (folder / "rows.npy").read_bytes()})
    )
    home = folder / "hub"
    home.mkdir()
    (home / "config.json").write_text(json.dumps({"architectures": ["Evil"], "auto_map": {"AutoConfig": "evil.Evil"}}))
    (home / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    (home / "pytorch_model.bin").write_bytes((folder / "model.pt").read_bytes())
    return {name: folder / name for name in ("program.pt2", "lambda.keras", "lambda.h5", "estimator.skops", "hub")}


def _archive(content: bytes) -> bytes:
    """As torch.save writes it."""
    return _zipped({"archive/data.pkl": content, "archive/version": b"3\n", "archive/byteorder": b"little"})


def _zipped(entries: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _skops() -> bytes:
    """A file that names a function to be called."""
    return json.dumps(
        {
            "__class__": "call", "__module__": "subprocess", "__loader__": "ReduceNode", "__id__": 1,
            "protocol": 2, "_skops_version": "0.16",
        }
    ).encode()  # fmt: skip


def _play(server: Server, offered: dict[str, Path], canary: Path, stage: Stage) -> Iterator[str]:
    for name, path in offered.items():
        doors: dict[str, Callable[[], str]] = {
            "optimize": lambda path=path: _optimize(path, stage.folder),
            "a request": lambda path=path: _as_requests(server, path),
        }
        if stage.form != "seconds" or name.startswith("rows"):
            doors["optimize --data"] = lambda path=path: _as_data(path, stage.folder)
        if stage.form == "long" or (stage.form == "short" and name in _SERVED):
            doors["serve"] = lambda path=path: _serve(path, stage.folder)
        for door, offer in doors.items():
            fault = offer()
            if canary.exists():
                canary.unlink()
                yield f"{name}: it ran when it was offered to {door}"
            if fault:
                yield f"{name}: {fault}"


def _optimize(path: Path, folder: Path) -> str:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    try:
        import_model(Source(path=path), out, lambda _: None)
    except MlserveError:
        return ""
    return "it was imported"


def _as_data(path: Path, folder: Path) -> str:
    """As the rows that a sound model is compared on."""
    out, model = folder / "out", folder / "store" / MODEL / "1" / MODEL_FILE
    out.mkdir(exist_ok=True)
    try:
        import_model(Source(path=model, data=path), out, lambda _: None)
    except MlserveError:
        return ""
    return "its rows were read"


def _serve(path: Path, folder: Path) -> str:
    command = [sys.executable, "-m", "mlserve", "serve", path, "--http-port", "0", "--grpc-port", "0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=60, check=False)
    return "" if done.returncode == 2 else f"mlserve serve ends with {done.returncode}"


def _as_requests(server: Server, path: Path) -> str:
    """As the body of requests, of every content type that somewhere means a pickle, and inside of JSON."""
    if path.is_dir():
        return ""
    body = path.read_bytes()
    paths = (f"/models/{MODEL}/invoke", f"/v2/models/{MODEL}/infer", f"/predictions/{MODEL}", "/invocations")
    for where in paths:
        for kind in _TYPES:
            reply = server.request("POST", where, body, {"Content-Type": kind} if kind else {})
            if not 400 <= reply.status < 500 and not (where == "/predictions/known" and reply.status == 200):
                return f"{where} answers {reply.status} to {kind or 'no content type'}: {reply.body[:100]!r}"
    inside = json.dumps({"instances": [{"b64": base64.b64encode(body).decode()}]})
    reply = server.request("POST", f"/v1/models/{MODEL}:predict", inside)
    return "" if 400 <= reply.status < 500 else f"b64 is answered {reply.status}"


def _control(offered: dict[str, Path], canary: Path) -> str:
    """What runs when they are simply loaded: that they are what they are said to be."""
    ran = []
    for name in ("model.pkl", "rows.npy"):
        subprocess.run(
            [sys.executable, "-c", _UNPICKLES, offered[name]], check=True, capture_output=True, env=dict(os.environ)
        )
        if canary.exists():
            canary.unlink()
            ran.append(f"{name} ran")
    return ", ".join(ran)


CASE = Case(
    id="E3",
    title="Pickles and other code in files",
    criterion="the canary file is never made; what converts foreign formats does so in a process of its own",
    source="CVE-2025-32434, CVE-2025-9905, BentoML's CVE-2025-27520",
    run=run,
)
