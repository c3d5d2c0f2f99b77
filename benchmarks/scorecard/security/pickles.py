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
_COMPUTES = """
import sys
import torch
try:
    torch.export.load(sys.argv[1]).module()(torch.ones(4, 3))
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

_SERVED = ("model.pkl", "model.pt", "named.onnx", "program.pt2", "sizes.pt2", "guards.pt2")


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
        control=f"a program that loads what it is given: {control or 'nothing ran'}",
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
    rows = torch.export.Dim("rows", min=2, max=64)
    example = (torch.ones(4, 3),)
    exported = torch.export.export(torch.nn.Linear(3, 2).eval(), example, dynamic_shapes=({0: rows},))
    torch.export.save(exported, program)
    sample = io.BytesIO()
    torch.save(((_Canary(canary),), {}), sample)
    with zipfile.ZipFile(program) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    for name, (record, content) in _spoilt_programs(entries, sample.getvalue(), canary).items():
        (folder / name).write_bytes(_zipped({**entries, record: content}))
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
    names = ("program.pt2", "sizes.pt2", "guards.pt2", "lambda.keras", "lambda.h5", "estimator.skops", "hub")
    return {name: folder / name for name in names}


def _spoilt_programs(entries: dict[str, bytes], sample: bytes, canary: Path) -> dict[str, tuple[str, bytes]]:
    """By the name of a file what in it differs from a sound program: a pickle, a size and a guard that are code."""
    samples = next(name for name in entries if "sample_inputs" in name)
    text = next(name for name in entries if name.endswith("models/model.json"))
    code = f"open('{canary}', 'w')"
    sizes, guards = json.loads(entries[text]), json.loads(entries[text])
    for value in sizes["graph_module"]["graph"]["tensor_values"].values():
        for size in value["sizes"]:
            size.get("as_expr", {})["expr_str"] = code
    guards["guards_code"] = [f"{code} is not None"]
    return {
        "program.pt2": (samples, sample),
        "sizes.pt2": (text, json.dumps(sizes).encode()),
        "guards.pt2": (text, json.dumps(guards).encode()),
    }


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
    programs = [name for name in ("program.pt2", "sizes.pt2", "guards.pt2") if name in offered]
    for name, script in {"model.pkl": _UNPICKLES, "rows.npy": _UNPICKLES, **dict.fromkeys(programs, _COMPUTES)}.items():
        subprocess.run(
            [sys.executable, "-c", script, offered[name]], check=True, capture_output=True, env=dict(os.environ)
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
