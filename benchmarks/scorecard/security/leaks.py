"""E5: whatever goes wrong, neither an error nor a log tells of paths, tracebacks, keys, the environment or tensors."""

import http.client
import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import grpc
import numpy as np
from scorecard.bad_input.wrong_requests import wrong_requests
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.known import MODEL
from scorecard.security.route_list import pages_of_the_code, rpcs_of_the_code
from scorecard.server import Server, serving_both

from mlserve.serve.keys import add_key, new_key
from mlserve.serve.settings import NamedRoute, ServeSettings

__all__ = ["CASE"]

_PATIENCE_S = 30.0
_LONGEST_BYTES = 1024
_LEAST_ERRORS = 500
_MOST = {"seconds": 850, "short": 2000, "long": 1_000_000}
_SERVED = ServeSettings(routes=(NamedRoute("/named/predict", MODEL),))
# Said to nobody: in the environment, as tensors, and as what may be taken for a line or a command of a terminal.
_ENVIRONMENT, _TENSOR, _NUMBER = "canary-of-the-environment", "canary-of-a-tensor", 87654.328125
_INJECTED = "x\nERROR mlserve.serve: injected\r\x1b[2J\x1b]0;injected\x07\x7f\u2028\x85"
_ALL_LEVELS = """
import logging
right = logging.basicConfig
logging.basicConfig = lambda **options: right(**{**options, "level": logging.DEBUG})
"""
# Errors that say where in the code they were raised, and a log that shows names as they are.
_TALKATIVE = (
    _ALL_LEVELS
    + """
import traceback
import mlserve.errors as errors
plain = errors.RequestError.__str__
errors.RequestError.__str__ = lambda self: plain(self) + " " + "".join(traceback.format_tb(self.__traceback__))
import mlserve.serve.watching.request_log as request_log
request_log.encode_line = lambda fields: " ".join(map(str, fields.values())).encode() + b"\\n"
"""
)
_LEAKS = {
    "a path": re.compile(
        rb"(?:/[\w.+-]+){2,}\.(?:py|so|json|onnx|log|binpb)|/(?:tmp|home|root|usr|opt|var|work|proc)/"
    ),
    "a traceback": re.compile(rb'Traceback|File \\?"|, line \d+|\bin <module>'),
    "an address": re.compile(rb"0x[0-9a-f]{8,}|<[\w.]+ object at"),
    "the environment": re.compile(rb"canary-of-the-environment"),
    "a tensor": re.compile(rb"canary-of-a-tensor|87654"),
}
_CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2\x85|\xe2\x80\xa8")


_BODIES = (
    b"",
    b"{",
    b"\xff\xfe" * 20,
    json.dumps({"inputs": _TENSOR, "instances": [[_NUMBER] * 7], "rows": [_TENSOR], "query": _INJECTED}).encode(),
    json.dumps({"inputs": [{"name": _INJECTED, "shape": [1, 9], "datatype": "FP32", "data": [_NUMBER] * 9}]}).encode(),
)


class _Asked(NamedTuple):
    """One request; `body` over gRPC is a message."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str]
    is_rpc: bool = False
    management: bool = False


def run(stage: Stage) -> Outcome:
    folder = stage.folder
    keys = {name: new_key(name, [name]) for name in ("infer", "metadata", "admin", "metrics")}
    for new in keys.values():
        add_key(folder / "keys.json", new.key)
    secrets = {name: new.secret for name, new in keys.items()}
    (folder / "levels").mkdir()
    (folder / "levels" / "sitecustomize.py").write_text(_ALL_LEVELS)
    flags = (_write_gather(folder / "gather.onnx"), "--keys", folder / "keys.json", "--management-port", "0")
    flags += ("--model-control", "explicit", "--route", f"/named/predict={MODEL}", "--log-requests", "1")
    environment = {"MLSERVE_CANARY": _ENVIRONMENT, "PYTHONPATH": str(folder / "levels")}
    with serving_both(folder, *flags, plant=_TALKATIVE, environment=environment) as (sound, broken):
        outcome = _play(sound, secrets, _MOST[stage.form])
        spoilt = _play(broken, secrets, 200)
    return Outcome(
        passed=outcome.passed,
        found=outcome.found,
        figures=outcome.figures,
        control=f"a server whose errors say where they come from, and that logs names as they are: {spoilt.found}",
        control_failed=not spoilt.passed and "a path" in spoilt.found and "control characters" in spoilt.found,
    )


def _play(server: Server, secrets: Mapping[str, str], most: int) -> Outcome:
    """Asks what goes wrong, up to `most` times, and looks at what is said of it, and at the log."""
    leaks = {**_LEAKS, "a key": re.compile("|".join(map(re.escape, secrets.values())).encode())}
    found: dict[str, str] = {}
    errors = longest_bytes = 0
    with grpc.insecure_channel(server.endpoints.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        for asked in islice(_questions(secrets), most):
            status, said = _call(channel, asked) if asked.is_rpc else _ask(server, asked)
            if status in ("200", "OK"):
                continue
            errors += 1
            longest_bytes = max(longest_bytes, len(said))
            for what in _told(said, leaks):
                found.setdefault(f"{what} in an error", f"{asked.method} {asked.path[:60]!r}: {said[:200]!r}")
            if len(said) > _LONGEST_BYTES:
                found.setdefault("an error is long", f"{asked.method} {asked.path[:60]!r}: {len(said)} bytes")
    log = server.log_path.read_bytes()
    for what in _told(log, leaks):
        found.setdefault(f"{what} in the log", _where(log, leaks[what]))
    if _CONTROL.search(log.replace(b"\x1b[0m", b"")):
        found.setdefault("control characters in the log", _where(log, _CONTROL))
    if any(line.startswith(b"ERROR mlserve.serve: injected") for line in log.splitlines()):
        found.setdefault("an injected line in the log", "")
    verdict = "; ".join(f"{what} ({where})" for what, where in found.items())
    lines = log.count(b"\n")
    return Outcome(
        passed=not found and errors >= min(most, _LEAST_ERRORS),
        found=f"{errors} error replies and {lines} lines of the log at every level: {verdict[:1500] or 'nothing told'}",
        figures=(
            Figure("error replies", errors, limit=f"at least {_LEAST_ERRORS}"),
            Figure("longest", longest_bytes, "bytes", f"at most {_LONGEST_BYTES}"),
            Figure("lines of the log", lines),
            Figure("kinds of leak", len(found), limit="0"),
        ),
    )


def _told(text: bytes, leaks: Mapping[str, re.Pattern[bytes]]) -> list[str]:
    return [what for what, pattern in leaks.items() if pattern.search(text)]


def _where(text: bytes, pattern: re.Pattern[bytes]) -> str:
    match = pattern.search(text)
    return repr(text[max(0, match.start() - 80) : match.end() + 80]) if match else ""


def _ask(server: Server, asked: _Asked) -> tuple[str, bytes]:
    """The status, and all that was said: headers and body."""
    address = server.ready["management" if asked.management else "http"].removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=_PATIENCE_S)
    try:
        connection.request(asked.method, asked.path, asked.body, asked.headers)
        reply = connection.getresponse()
        return str(reply.status), str(reply.headers).encode() + reply.read()
    finally:
        connection.close()


def _call(channel: grpc.Channel, asked: _Asked) -> tuple[str, bytes]:
    metadata = tuple(asked.headers.items())
    try:
        channel.unary_unary(asked.path)(asked.body, timeout=_PATIENCE_S, metadata=metadata)
    except grpc.RpcError as error:
        return error.code().name, f"{error.details()} {error.trailing_metadata()}".encode()
    return "OK", b""


def _questions(secrets: Mapping[str, str]) -> Iterator[_Asked]:
    """Each kind in turn, so that the first of them are of every kind."""
    kinds = [_of_pages(secrets), _of_rpcs(secrets), _wrong(secrets), _of_names(secrets)]
    while kinds:
        for kind in list(kinds):
            asked = next(kind, None)
            if asked is None:
                kinds.remove(kind)
            else:
                yield asked


def _wrong(secrets: Mapping[str, str]) -> Iterator[_Asked]:
    for each in wrong_requests():
        headers = {**each.headers, "x-api-key": secrets["infer"]}
        yield _Asked("POST", each.path, each.body, headers, is_rpc=each.is_grpc)


def _of_pages(secrets: Mapping[str, str]) -> Iterator[_Asked]:
    """Every page, of a model that there is and one that nobody would name so, with bodies that are none."""
    for management in (False, True):
        for (method, template), scope in pages_of_the_code(_SERVED, management=management).items():
            for name in (MODEL, "gather", quote(_INJECTED, safe=""), "..%2f..%2fetc%2fpasswd"):
                filled = {"name": name, "version": "1", "label": "stable", "region": name, "number": "99"}
                path = template.replace(":int}", "}").format(**filled)
                for body in _BODIES:
                    for key in (secrets.get(scope or ""), secrets["metrics" if scope != "metrics" else "infer"]):
                        headers = {"content-type": "application/json"} | (
                            {"authorization": f"Bearer {key}"} if key else {}
                        )
                        yield _Asked(method, path, body, headers, management=management)


def _of_rpcs(secrets: Mapping[str, str]) -> Iterator[_Asked]:
    named = b"\x0a" + bytes([len(_INJECTED.encode())]) + _INJECTED.encode()  # field 1, as most messages have a name
    for path, scope in rpcs_of_the_code().items():
        if scope is None:  # one of them never ends
            continue
        for payload in (b"\xff" * 9, named, named + _TENSOR.encode(), b"\x0a\x05known\x12\x0299"):
            for key in (secrets[scope], "canary"):
                yield _Asked("POST", path, payload, {"x-api-key": key}, is_rpc=True)


def _of_names(secrets: Mapping[str, str]) -> Iterator[_Asked]:
    """Names of tensors, parameters and models in bodies, and values that a model fails of."""
    key = {"x-api-key": secrets["infer"]}
    good = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [_NUMBER] * 2}
    yield _Asked("POST", f"/v2/models/{MODEL}/infer", json.dumps({"id": _INJECTED, "inputs": [good]}).encode(), key)
    for name in (_INJECTED, "no-such", "x" * 5000):
        for field in ("name", "datatype", "output", "id", "parameter"):
            tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [_NUMBER] * 3}
            document = {"id": "1", "inputs": [tensor], "outputs": [{"name": "y"}], "parameters": {}}
            if field in ("name", "datatype"):
                tensor[field] = name
            elif field == "output":
                document["outputs"] = [{"name": name}]
            else:
                document |= {"id": name} if field == "id" else {"parameters": {name: name}}
            yield _Asked("POST", f"/v2/models/{MODEL}/infer", json.dumps(document).encode(), key)
    for path in ("/v2/models/gather/infer", "/v1/models/gather:predict", "/predictions/gather", "/v1/predict"):
        ids = {"name": "ids", "datatype": "INT64", "shape": [1, 4], "data": [87654] * 4}
        bodies = (
            {"inputs": [ids]},
            {"instances": [{"ids": [87654] * 4}]},
            {"model": "gather", "inputs": {"ids": [[87654] * 4]}},
        )
        for body in bodies:
            yield _Asked("POST", path, json.dumps(body).encode(), key)


def _write_gather(path: Path) -> Path:
    """A model that fails while it runs: it looks up rows of a table of ten."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    table = numpy_helper.from_array(np.arange(30, dtype=np.float32).reshape(10, 3), "table")
    nodes = [helper.make_node("Gather", ["table", "ids"], ["rows"])]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 4])]
    outputs = [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", 4, 3])]
    graph = helper.make_graph(nodes, "gather", inputs, outputs, [table])
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


CASE = Case(
    id="E5",
    title="Errors and logs tell nothing",
    criterion="500 error replies over every dialect and the log at every level hold no path, traceback, key, "
    "environment or tensor; what is injected into the log is escaped; errors have at most 1 KiB",
    source="CVE-2025-23320 (Triton), Triton's log_format_test",
    run=run,
)
