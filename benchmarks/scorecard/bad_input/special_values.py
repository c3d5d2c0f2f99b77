"""D7: numbers that are no ordinary ones, and texts that are no ordinary ones, come back as they went."""

import base64
import io
import json
import math
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from scorecard.bad_input.asking import Asker, Heard, tell_long
from scorecard.bad_input.echo import write_echo
from scorecard.bad_input.wrong_requests import INFER_CALL, PREDICT_CALL
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.server import Server, serving_both

from mlserve.wire import messages, tensorflow_messages

__all__ = ["CASE"]

# NaN, NaN with something in it, both infinities, both zeros, the smallest and the largest subnormal of either sign, the
# smallest normal number, the largest, one third; as bits.
_BITS = {
    "FP16": (0x7E00, 0x7E55, 0x7C00, 0xFC00, 0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0x3555),
    "BF16": (0x7FC0, 0x7FD5, 0x7F80, 0xFF80, 0x0000, 0x8000, 0x0001, 0x807F, 0x0080, 0x7F7F, 0x3EAB),
    "FP32": (
        0x7FC00000, 0x7FC12345, 0x7F800000, 0xFF800000, 0x00000000, 0x80000000, 0x00000001, 0x807FFFFF, 0x00800000,
        0x7F7FFFFF, 0x3EAAAAAB,
    ),
    "FP64": (
        0x7FF8000000000000, 0x7FF8000000012345, 0x7FF0000000000000, 0xFFF0000000000000, 0x0, 0x8000000000000000, 0x1,
        0x800FFFFFFFFFFFFF, 0x0010000000000000, 0x7FEFFFFFFFFFFFFF, 0x3FD5555555555555,
    ),
}  # fmt: skip
_NUMPY: dict[str, Any] = {"FP16": np.float16, "BF16": ml_dtypes.bfloat16, "FP32": np.float32, "FP64": np.float64}
_UNSIGNED: dict[int, Any] = {2: np.uint16, 4: np.uint32, 8: np.uint64}
_TENSORFLOW = {"FP16": 19, "BF16": 14, "FP32": 1, "FP64": 2}
_LISTS = {"FP16": "half_val", "BF16": "half_val", "FP32": "float_val", "FP64": "double_val"}
_TEXTS = (b"", b"\0", b"a\0b\0", "é漢🂡".encode(), b"\x7f", b"-1", b"NaN", b"x" * 1000, b"\xef\xbb\xbf")
_NOT_UTF8 = b"\xff\xfe\0\x80"

# Zeros lose their signs, and what is very small is taken for nothing.
_TIDIES = """
import numpy as np
import mlserve.wire.raw as raw
right = raw.to_raw
def tidy(array):
    if array.dtype.kind == "f":
        array = np.where(np.abs(array) < np.finfo(array.dtype).tiny, array.dtype.type(0), array)
    return right(array)
raw.to_raw = tidy
"""


class _Trip(NamedTuple):
    """A way there and back; "" when what came back is what went, or else what is wrong with it."""

    name: str
    go: Callable[[], str]


def run(stage: Stage) -> Outcome:
    for name in (*_BITS, "BYTES"):
        write_echo(stage.folder / f"{name}.onnx", (name,))
    models = [stage.folder / f"{name}.onnx" for name in (*_BITS, "BYTES")]
    with serving_both(stage.folder, *models, plant=_TIDIES) as (sound, broken):
        outcome, spoilt = _play(sound), _play(broken)
    return Outcome(
        passed=outcome.passed,
        found=outcome.found,
        figures=outcome.figures,
        control=f"a server that takes the very small for nothing: {spoilt.found}",
        control_failed=not spoilt.passed,
    )


def _play(server: Server) -> Outcome:
    with Asker(server.endpoints) as asker:
        trips = [*_numbers(asker), *_texts(asker)]
        faults = [f"{trip.name}: {fault}" for trip in trips if (fault := trip.go())]
    if server.traceback:
        faults.append(server.traceback[:200])
    told = tell_long("; ".join(faults), 1500)
    return Outcome(
        passed=not faults,
        found=f"{len(trips)} ways there and back: "
        + (
            told
            or "bit for bit as bytes and over gRPC; in JSON finite numbers too, null for the rest (TensorFlow: words)"
        ),
        figures=(
            Figure("ways", len(trips)),
            Figure("that changed something", len(faults), limit="0"),
        ),
    )


def _numbers(asker: Asker) -> Iterator[_Trip]:
    for datatype, bits in _BITS.items():
        array = _array(datatype, bits)
        # JSON has no words for what is not finite.
        finite = array[:, np.isfinite(array.astype(np.float64))[0]]
        yield _Trip(f"{datatype} V2 binary", lambda d=datatype, a=array: _v2_binary(asker, d, a))
        yield _Trip(f"{datatype} V2 gRPC raw", lambda d=datatype, a=array: _v2_grpc(asker, d, a, typed=False))
        if datatype in ("FP32", "FP64"):
            yield _Trip(f"{datatype} V2 gRPC typed", lambda d=datatype, a=array: _v2_grpc(asker, d, a, typed=True))
        yield _Trip(f"{datatype} TensorFlow gRPC", lambda d=datatype, a=array: _tensorflow_grpc(asker, d, a))
        yield _Trip(f"{datatype} V2 JSON, finite", lambda d=datatype, a=finite: _v2_json(asker, d, a))
        yield _Trip(f"{datatype} V2 JSON out of bytes", lambda d=datatype, a=array: _json_out(asker, d, a))
        if datatype != "BF16":  # npy has no name for it
            yield _Trip(f"{datatype} npy", lambda d=datatype, a=array: _npy(asker, d, a))
        yield _Trip(f"{datatype} TensorFlow REST", lambda d=datatype, a=array: _tensorflow_rest(asker, d, a))
        for path in (f"/predictions/{datatype}", "/invocations", "/v1/predict"):
            yield _Trip(f"{datatype} JSON {path}", lambda d=datatype, a=finite, p=path: _rows(asker, d, a, p))


def _texts(asker: Asker) -> Iterator[_Trip]:
    yield _Trip("texts V2 binary", lambda: _texts_binary(asker, _TEXTS))
    yield _Trip("texts V2 gRPC raw", lambda: _texts_grpc(asker, _TEXTS, typed=False))
    yield _Trip("texts V2 gRPC typed", lambda: _texts_grpc(asker, _TEXTS, typed=True))
    yield _Trip("texts TensorFlow gRPC", lambda: _texts_tensorflow(asker, _TEXTS))
    yield _Trip("texts V2 JSON", lambda: _texts_json(asker))
    yield _Trip("texts TensorFlow REST", lambda: _texts_b64(asker))
    # onnxruntime's texts are Unicode: other bytes are refused, and never changed.
    wrong = (b"a", _NOT_UTF8)
    for name, go in (
        ("binary", lambda: _texts_binary(asker, wrong)),
        ("gRPC raw", lambda: _texts_grpc(asker, wrong, typed=False)),
        ("gRPC typed", lambda: _texts_grpc(asker, wrong, typed=True)),
        ("TensorFlow gRPC", lambda: _texts_tensorflow(asker, wrong)),
    ):
        yield _Trip(f"no UTF-8 {name}", lambda g=go: "" if "UTF-8" in g() else "changed, or not told why not")


def _array(datatype: str, bits: tuple[int, ...]) -> Any:
    dtype = np.dtype(_NUMPY[datatype])
    return np.array([bits], _UNSIGNED[dtype.itemsize]).view(dtype)


def _differs(found: bytes, array: Any) -> str:
    width = array.dtype.itemsize
    if found == array.tobytes():
        return ""
    sent = array.tobytes()
    changed = [
        f"{sent[at : at + width][::-1].hex()} -> {found[at : at + width][::-1].hex()}"
        for at in range(0, len(sent), width)
        if sent[at : at + width] != found[at : at + width]
    ]
    return f"changed {', '.join(changed[:4])}"


def _refused(heard: Heard) -> str:
    return f"{heard.status} {heard.body[:200]!r}"


def _binary(asker: Asker, datatype: str, shape: tuple[int, ...], raw: bytes, *, binary: bool) -> tuple[Heard, int]:
    tensor = {
        "name": f"in_{datatype}", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)},
    }  # fmt: skip
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": binary}}).encode()
    sized = {"inference-header-content-length": str(len(head))}
    heard = asker.http(f"/v2/models/{datatype}/infer", head + raw, sized)
    return heard, heard.body.rfind(b"}") + 1


def _v2_binary(asker: Asker, datatype: str, array: Any) -> str:
    heard, _ = _binary(asker, datatype, array.shape, array.tobytes(), binary=True)
    return _differs(heard.body[-array.nbytes :], array) if heard.good else _refused(heard)


def _json_out(asker: Asker, datatype: str, array: Any) -> str:
    heard, _ = _binary(asker, datatype, array.shape, array.tobytes(), binary=False)
    if not heard.good:
        return _refused(heard)
    return _same_numbers(json.loads(heard.body)["outputs"][0]["data"], array)


def _same_numbers(found: list[Any], array: Any) -> str:
    """Whether numbers read out of JSON are those of `array`, with null for what is not finite."""
    wanted = array.ravel().astype(np.float64).tolist()
    if len(found) != len(wanted):
        return f"{len(found)} numbers of {len(wanted)}"
    for one, number in zip(found, wanted, strict=True):
        if not math.isfinite(number):
            if one is not None:
                return f"{number} became {one!r}"
        elif one is None or np.array(one, array.dtype).tobytes() != np.array(number, array.dtype).tobytes():
            return f"{number!r} became {one!r}"
    return ""


def _v2_json(asker: Asker, datatype: str, array: Any) -> str:
    data = array.ravel().astype(np.float64).tolist()
    tensor = {"name": f"in_{datatype}", "datatype": datatype, "shape": array.shape, "data": data}
    heard = asker.http(f"/v2/models/{datatype}/infer", json.dumps({"inputs": [tensor]}).encode())
    return _same_numbers(json.loads(heard.body)["outputs"][0]["data"], array) if heard.good else _refused(heard)


def _v2_grpc(asker: Asker, datatype: str, array: Any, *, typed: bool) -> str:
    tensor: dict[str, Any] = {"name": f"in_{datatype}", "datatype": datatype, "shape": array.shape}
    content: dict[str, Any] = {"raw_input_contents": [array.tobytes()]}
    if typed:
        tensor["contents"] = {f"{datatype.lower()}_contents": array.ravel().tolist()}
        content = {}
    message = messages.ModelInferRequest(model_name=datatype, inputs=[tensor], **content)
    heard = asker.grpc(INFER_CALL, message.SerializeToString())
    if not heard.good:
        return _refused(heard)
    return _differs(messages.ModelInferResponse.FromString(heard.body).raw_output_contents[0], array)


def _tensorflow_grpc(asker: Asker, datatype: str, array: Any) -> str:
    tensor = tensorflow_messages.TensorProto(
        dtype=_TENSORFLOW[datatype], tensor_shape=_shape(array.shape), tensor_content=array.tobytes()
    )
    heard = _predict(asker, datatype, tensor)
    if not heard.good:
        return _refused(heard)
    answer = tensorflow_messages.PredictResponse.FromString(heard.body).outputs[f"out_{datatype}"]
    values = getattr(answer, _LISTS[datatype])
    bits = np.array(list(values), np.uint16 if datatype in ("FP16", "BF16") else array.dtype)
    return _differs(bits.tobytes() or answer.tensor_content, array)


def _shape(shape: tuple[int, ...]) -> dict[str, Any]:
    return {"dim": [{"size": size} for size in shape]}


def _predict(asker: Asker, datatype: str, tensor: Any) -> Heard:
    request = tensorflow_messages.PredictRequest(model_spec={"name": datatype})
    request.inputs[f"in_{datatype}"].CopyFrom(tensor)
    return asker.grpc(PREDICT_CALL, request.SerializeToString())


def _tensorflow_rest(asker: Asker, datatype: str, array: Any) -> str:
    """Its JSON knows NaN and Infinity, both ways (python's does, too); what stands in a NaN is not said."""
    rows = array.astype(np.float64).tolist()
    heard = asker.http(f"/v1/models/{datatype}:predict", json.dumps({"instances": rows}).encode())
    if not heard.good:
        return _refused(heard)
    found = np.array(json.loads(heard.body)["predictions"], np.float64).astype(array.dtype)
    plain = np.where(np.isnan(array), array.dtype.type(math.nan), array).astype(array.dtype)
    found = np.where(np.isnan(found), array.dtype.type(math.nan), found).astype(array.dtype)
    return _differs(found.tobytes(), plain)


def _rows(asker: Asker, datatype: str, array: Any, path: str) -> str:
    rows = array.astype(np.float64).tolist()
    headers = {"content-type": "application/json", "x-amzn-sagemaker-target-model": datatype}
    question: Any = {"instances": rows}
    if path == "/v1/predict":
        question = {"model": datatype, "inputs": {f"in_{datatype}": rows}}
    elif path != "/invocations":
        question = rows
    heard = asker.http(path, json.dumps(question).encode(), headers)
    return _same_numbers(_flat(json.loads(heard.body)), array) if heard.good else _refused(heard)


def _flat(found: Any) -> list[Any]:
    """The numbers of an answer, however it wraps them."""
    if isinstance(found, dict):
        inner = [found[key] for key in ("predictions", "outputs", f"{next(iter(found))}") if key in found]
        return _flat(inner[0]) if inner else []
    if isinstance(found, list):
        return [number for each in found for number in (_flat(each) if isinstance(each, list | dict) else [each])]
    return []


def _npy(asker: Asker, datatype: str, array: Any) -> str:
    written = io.BytesIO()
    np.save(written, array)
    kind = "application/x-npy"
    headers = {"content-type": kind, "accept": kind, "x-amzn-sagemaker-target-model": datatype}
    heard = asker.http("/invocations", written.getvalue(), headers)
    return _differs(heard.body[-array.nbytes :], array) if heard.good else _refused(heard)


def _texts_binary(asker: Asker, texts: tuple[bytes, ...]) -> str:
    raw = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    heard, _ = _binary(asker, "BYTES", (1, len(texts)), raw, binary=True)
    return ("" if heard.body.endswith(raw) else "changed") if heard.good else _refused(heard)


def _texts_grpc(asker: Asker, texts: tuple[bytes, ...], *, typed: bool) -> str:
    raw = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    tensor: dict[str, Any] = {"name": "in_BYTES", "datatype": "BYTES", "shape": (1, len(texts))}
    content: dict[str, Any] = {"raw_input_contents": [raw]}
    if typed:
        tensor["contents"] = {"bytes_contents": texts}
        content = {}
    message = messages.ModelInferRequest(model_name="BYTES", inputs=[tensor], **content)
    heard = asker.grpc(INFER_CALL, message.SerializeToString())
    if not heard.good:
        return _refused(heard)
    return "" if messages.ModelInferResponse.FromString(heard.body).raw_output_contents[0] == raw else "changed"


def _texts_tensorflow(asker: Asker, texts: tuple[bytes, ...]) -> str:
    tensor = tensorflow_messages.TensorProto(dtype=7, tensor_shape=_shape((1, len(texts))), string_val=texts)
    heard = _predict(asker, "BYTES", tensor)
    if not heard.good:
        return _refused(heard)
    answer = tensorflow_messages.PredictResponse.FromString(heard.body).outputs["out_BYTES"]
    return "" if tuple(answer.string_val) == texts else "changed"


def _texts_json(asker: Asker) -> str:
    texts = [text.decode() for text in _TEXTS]
    tensor = {"name": "in_BYTES", "datatype": "BYTES", "shape": (1, len(texts)), "data": texts}
    heard = asker.http("/v2/models/BYTES/infer", json.dumps({"inputs": [tensor]}).encode())
    if not heard.good:
        return _refused(heard)
    return "" if json.loads(heard.body)["outputs"][0]["data"] == texts else "changed"


def _texts_b64(asker: Asker) -> str:
    texts = [{"b64": base64.b64encode(text).decode()} for text in _TEXTS]
    heard = asker.http("/v1/models/BYTES:predict", json.dumps({"instances": [texts]}).encode())
    if not heard.good:
        return _refused(heard)
    found = json.loads(heard.body)["predictions"][0]
    plain = [base64.b64decode(one["b64"]) if isinstance(one, dict) else one.encode() for one in found]
    return "" if tuple(plain) == _TEXTS else "changed"


CASE = Case(
    id="D7",
    title="Numbers and texts that are not ordinary",
    criterion="bit for bit as bytes and over gRPC; in JSON by the documented rule: null for what is not finite, words"
    " in TensorFlow's; bytes that are no UTF-8 refused",
    source="Triton L0_nan_inf; TF Serving's JSON conformance",
    run=run,
)
