"""E2: files, names and parameters that reach for what is not theirs, at every door where a model comes in."""

import json
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import grpc
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.known import MODEL, publish
from scorecard.lifecycle.half_written import UNCHECKED
from scorecard.security.hostile_onnx import HOSTILE, SECRET, secret_bytes
from scorecard.server import Server, serving

from mlserve.engines.opening import open_onnx_file
from mlserve.errors import MlserveError
from mlserve.model.artifact import MODEL_FILE, Manifest, record_files, write_manifest
from mlserve.model.tensors import TensorSpec
from mlserve.optimize.importing import Source, import_model
from mlserve.wire import messages

__all__ = ["CASE", "NAMES"]

NAMES = (
    "..", ".", "...", "../secret", "..%2fsecret", "%2e%2e%2fsecret", "/etc/passwd", "known/../../outside",
    "..\\secret", "known\0.txt", "n" * 300,
)  # fmt: skip

_CARELESS = (
    UNCHECKED
    + """
import mlserve.engines.opening as opening
opening._inspect = lambda path: None
"""
)
_ANSWER_LIMIT_BYTES = 1024


def run(stage: Stage) -> Outcome:
    outside = stage.folder / "outside" / "secret.bin"
    outside.parent.mkdir()
    outside.write_bytes(secret_bytes())
    publish(stage.folder / "store")
    _publish_hostile(stage.folder / "store", outside)
    arguments = ["--store", stage.folder / "store", "--model-control", "explicit", "--no-cache", "--threads", "1"]
    with ExitStack() as stack, ThreadPoolExecutor(2) as threads:
        starting = [
            threads.submit(stack.enter_context, serving(stage.folder, *arguments, *more, plant=plant))
            for more, plant in (((MODEL, "--management-port", "0"), ""), ((MODEL,), _CARELESS))
        ]
        sound, careless = (each.result() for each in starting)
        before = _listing(stage.folder)
        faults = [*_offer_versions(sound, list(HOSTILE)), *_offer_names(sound), *_offer_overrides(sound)]
        faults += [*_offer_files(stage.folder / "files", outside), *_offer_archives(stage)]
        faults += [f"it has made {', '.join(sorted(made))}"] if (made := _listing(stage.folder) - before) else []
        faults += [sound.traceback] if sound.traceback else []
        control = _offer_versions(careless, list(HOSTILE)[:2])
    return Outcome(
        passed=not faults,
        found="; ".join(faults[:5])
        or f"{len(HOSTILE)} hostile models in the store, as files and to be optimized, {len(NAMES)} names in every "
        "dialect that loads by name, parameters that would change a model, and archives: all refused, nothing read, "
        "nothing made",
        figures=(
            Figure("hostile models", len(HOSTILE)),
            Figure("names", len(NAMES)),
            Figure("let in", len(faults), limit="0"),
        ),
        control=f"a server that does not look into what it loads: {'; '.join(control) or 'nothing let in'}",
        control_failed=bool(control),
    )


def _publish_hostile(root: Path, outside: Path) -> None:
    for number, make in enumerate(HOSTILE.values()):
        folder = root / f"evil-{number}" / "1"
        folder.mkdir(parents=True)
        make(folder, outside)
        specs = [(TensorSpec(name, "float32", (1, 6)),) for name in "xy"]
        files = record_files(folder)
        write_manifest(folder, Manifest(variant="fp32", inputs=specs[0], outputs=specs[1], files=files))


def _offer_versions(server: Server, kinds: list[str]) -> list[str]:
    """Has each loaded by a client, and asks it: what was let in."""
    faults = []
    inputs = [{"name": "x", "datatype": "FP32", "shape": [1, 6], "data": [0.0] * 6}]
    for number, kind in enumerate(kinds):
        loaded = server.request("POST", f"/v2/repository/models/evil-{number}/load", b"{}")
        asked = server.request("POST", f"/v2/models/evil-{number}/infer", json.dumps({"inputs": inputs}))
        faults += [f"{kind}: loaded, {loaded.status}"] if loaded.status == 200 else []
        faults += [f"{kind}: the secret was told: {asked.body[:120]!r}"] if _tells(asked.body + loaded.body) else []
        faults += [f"{kind}: a load is answered {loaded.status}"] if loaded.status >= 500 else []
    return faults


def _tells(body: bytes) -> bool:
    return str(SECRET[0]).encode() in body or secret_bytes()[:8] in body


def _offer_names(server: Server) -> Iterator[str]:
    """Every name in every dialect that takes one, to load and to infer."""
    for name in NAMES:
        for what, answer in _asked_with(server, name):
            status, body = answer
            refused = 400 <= status < 500
            if not refused or len(body) > _ANSWER_LIMIT_BYTES or b"/tmp" in body or _tells(body):
                yield f"{what} of {name[:24]!r} is answered {status}: {body[:120]!r}"
        for call, code in _called_with(server, name):
            if code not in ("NOT_FOUND", "INVALID_ARGUMENT", "PERMISSION_DENIED"):
                yield f"{call} of {name[:24]!r} is answered {code}"


def _asked_with(server: Server, name: str) -> Iterator[tuple[str, tuple[int, bytes]]]:
    http, management = server.endpoints.http, urlsplit(server.ready["management"]).netloc
    word = quote(name, safe="")
    infer = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}'
    asked: list[tuple[str, str, str, bytes]] = [
        ("V2 load", http, f"/v2/repository/models/{word}/load", b"{}"),
        ("V2 unload", http, f"/v2/repository/models/{word}/unload", b"{}"),
        ("V2 infer", http, f"/v2/models/{word}/infer", infer),
        ("V2 infer of a version", http, f"/v2/models/{MODEL}/versions/{word}/infer", infer),
        ("SageMaker's load", http, "/models", json.dumps({"model_name": "m", "url": name}).encode()),
        ("SageMaker's load by name", http, "/models", json.dumps({"model_name": name, "url": MODEL}).encode()),
        ("SageMaker's invoke", http, f"/models/{word}/invoke", b"{}"),
        ("TensorFlow's predict", http, f"/v1/models/{word}:predict", b'{"instances": [[1, 2]]}'),
        ("TorchServe's predictions", http, f"/predictions/{word}", b"[[1, 2]]"),
        ("the friendly predict", http, "/v1/predict", json.dumps({"model": name, "rows": [[1, 2]]}).encode()),
        ("TorchServe's register", management, f"/models?url={word}", b""),
    ]
    for what, address, path, body in asked:
        yield what, _post(address, path, body)


def _post(address: str, path: str, body: bytes) -> tuple[int, bytes]:
    connection = HTTPConnection(address, timeout=30)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def _called_with(server: Server, name: str) -> Iterator[tuple[str, str]]:
    requests: dict[str, Any] = {
        "RepositoryModelLoad": messages.RepositoryModelLoadRequest(model_name=name),
        "RepositoryModelUnload": messages.RepositoryModelUnloadRequest(model_name=name),
        "ModelInfer": messages.ModelInferRequest(model_name=name),
        "ModelMetadata": messages.ModelMetadataRequest(name=name),
    }
    with grpc.insecure_channel(server.endpoints.grpc) as channel:
        for call, request in requests.items():
            yield call, _code(channel, call, request.SerializeToString())


def _code(channel: Any, call: str, request: bytes) -> str:
    try:
        channel.unary_unary(f"/inference.GRPCInferenceService/{call}")(request, timeout=30)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def _offer_overrides(server: Server) -> Iterator[str]:
    """Parameters by which Triton's clients bring files and configurations of their own."""
    for parameters in (
        {"file:1/model.onnx": "AAAA"}, {"file:../../outside/made": "AAAA"}, {"config": "{}"},
        {"config": json.dumps({"parameters": {"path": "/etc"}}), "file:1/x": "AA"},
    ):  # fmt: skip
        path = f"/v2/repository/models/{MODEL}/load"
        status, body = _post(server.endpoints.http, path, json.dumps({"parameters": parameters}).encode())
        if not 400 <= status < 500 or b"/tmp" in body:
            yield f"the parameters {parameters} are answered {status}: {body[:120]!r}"


def _offer_files(folder: Path, outside: Path) -> Iterator[str]:
    """As bare files, by what `mlserve serve FILE.onnx` and `mlserve optimize FILE.onnx` load them with."""
    for number, (kind, make) in enumerate(HOSTILE.items()):
        home, out = folder / f"{number}", folder / f"{number}-out"
        home.mkdir(parents=True)
        out.mkdir()
        make(home, outside)
        path = home / MODEL_FILE
        doors: dict[str, Callable[[], object]] = {
            "served": lambda path=path: open_onnx_file(path),
            "optimized": lambda path=path, out=out: import_model(Source(path=path), out, lambda _: None),
        }
        for door, let_in in doors.items():
            try:
                let_in()
            except MlserveError:
                continue
            yield f"{kind}: it could be {door}"


def _offer_archives(stage: Stage) -> Iterator[str]:
    """Archives whose entries would land outside, offered to be optimized."""
    kinds = {
        "model.pt": {"archive/data.pkl": b"\x80\x02N.", "archive/version": b"3"},
        "model.skops": {"schema.json": b"{}"},
        "model.keras": {"metadata.json": b"{}", "config.json": b"{}", "model.weights.h5": b""},
    }
    chosen = list(kinds)[: 1 if stage.form == "seconds" else None]
    for kind in chosen:
        path, out = stage.folder / "files" / kind, stage.folder / "files" / f"{kind}-out"
        out.mkdir()
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in kinds[kind].items():
                archive.writestr(name, content)
            for name in ("../../slipped", "/tmp/mlserve-slipped", "a/../../../slipped"):
                archive.writestr(name, b"slipped")
            link = zipfile.ZipInfo("way")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, str(stage.folder / "outside"))
            archive.writestr("way/slipped", b"slipped")
        try:
            import_model(Source(path=path), out, lambda _: None)
            yield f"{kind}: it was imported"
        except MlserveError:
            pass
        if Path("/tmp/mlserve-slipped").exists():
            yield f"{kind}: it has slipped out"


def _listing(folder: Path) -> set[str]:
    """Every file but those that this test itself makes, and the server's log."""
    time.sleep(0.05)
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if not str(path.relative_to(folder)).startswith(("files", "server-"))
    }


CASE = Case(
    id="E2",
    title="Malicious models, names and archives",
    criterion="all refused, the canary secret never readable through inference, no file made outside",
    source="onnx's ExternalDataSecurity.md, Triton's ModelNameValidationTest, BentoML and TorchServe advisories",
    run=run,
)
