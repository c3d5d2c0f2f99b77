"""What TensorFlow Serving's words mean here: the signatures of a served model, its versions' labels and states.

A SavedModel has signatures by name. Of a served model these are made up: `serving_default`, its tensors as they are;
`text` or `image`, what a person has, where it carries a task; and for `classify` and `regress`, where an output has
their shape, signatures by the names of these methods.
"""

from typing import Any, Literal

import msgspec
import numpy as np

from mlserve.errors import InvalidRequest, UnknownModelError
from mlserve.model.tensors import Array
from mlserve.serve.catalog import IndexEntry, State
from mlserve.serve.service import ServedModel, Service
from mlserve.serve.tasks.task import TaskKind
from mlserve.wire.signature import Field, Signature
from mlserve.wire.tensorflow import TYPE_OF
from mlserve.wire.tensorflow_messages import DataType, SignatureDefMap

__all__ = [
    "DEFAULT_SIGNATURE",
    "Method",
    "VersionState",
    "check_signature",
    "describe_signatures",
    "find_model",
    "labelled_scores",
    "result_output",
    "version_states",
]

Method = Literal["predict", "classify", "regress"]

DEFAULT_SIGNATURE = "serving_default"

# TensorFlow's names of the methods: tensorflow/cc/saved_model/signature_constants.h
_METHOD_NAME: dict[Method, str] = {
    "predict": "tensorflow/serving/predict",
    "classify": "tensorflow/serving/classify",
    "regress": "tensorflow/serving/regress",
}
_NOUN: dict[Method, str] = {"classify": "classification", "regress": "regression"}
_INPUT_OF: dict[TaskKind, str] = {"text": "text", "image": "image_bytes"}
_STATE_OF: dict[State, str] = {
    "READY": "AVAILABLE",
    "LOADING": "LOADING",
    "UNLOADING": "UNLOADING",
    "UNAVAILABLE": "END",
}
_OK, _UNKNOWN = "OK", "UNKNOWN"
# Of several outputs with the shape of scores, the one of the first of these names.
_SCORES = ("scores", "probabilities", "output_probability", "logits")


class VersionState(msgspec.Struct, frozen=True):
    """The state of one version, in TensorFlow Serving's words."""

    version: str
    state: str
    error_code: str = _OK
    error_message: str = ""


def find_model(service: Service, name: str, version: str = "", label: str = "") -> ServedModel:
    """The version of `name`, or the one that the alias `label` means, or the default one.

    Raises UnknownModelError, and InvalidRequest for an unknown label, in TensorFlow Serving's words; NotServing for one
    that is held back.
    """
    if label and service.catalog.versions(name):
        version = service.catalog.aliases.get(name, {}).get(label, "")
        if not version:
            service.catalog.check_held(name, label)
            raise InvalidRequest(f"no served version has the label '{label[:64]}'")
    try:
        return service.find(name, version)
    except UnknownModelError as error:
        asked = f"Specific({name[:128]}, {version[:64]})" if version else f"Latest({name[:128]})"
        raise UnknownModelError(f"Servable not found for request: {asked}") from error


def check_signature(model: ServedModel, name: str, method: Method, words: str) -> None:
    """Raises InvalidRequest, `words` with `{name}` filled in, unless `method` may be asked of the signature `name`."""
    if name not in ("", DEFAULT_SIGNATURE, _METHOD_NAME[method]) and not (
        model.task is not None and name == model.task.kind
    ):
        raise InvalidRequest(words.format(name=name[:64]))


def result_output(signature: Signature, method: Method) -> str:
    """The output that `classify` reads its scores from, [rows, classes], or `regress` its values, [rows] or [rows, 1].

    Raises InvalidRequest for a model without one.
    """
    fits = [field.name for field in signature.outputs.values() if _fits(field, method)]
    for name in _SCORES if method == "classify" else ():
        if name in fits:
            return name
    if len(fits) == 1:
        return fits[0]
    wanted = "scores [rows, classes]" if method == "classify" else "values [rows] or [rows, 1]"
    raise InvalidRequest(
        f"model '{signature.name}' cannot {method}: that needs one output of {wanted}, it has {len(fits)}; use predict"
    )


def labelled_scores(model: ServedModel, scores: Array) -> list[list[tuple[str, Any]]]:
    """For each row of `scores` [rows, classes], every class: its label, empty where the model has none, and score."""
    if scores.dtype.itemsize < 4:  # half floats, which JSON's writer does not know
        scores = scores.astype(np.float32)
    labels = model.facts.labels if len(model.facts.labels) == scores.shape[1] else ("",) * scores.shape[1]
    return [list(zip(labels, row, strict=True)) for row in scores]


def describe_signatures(model: ServedModel) -> Any:
    """The SignatureDefMap of a served model."""
    signature = model.signature
    found = {
        DEFAULT_SIGNATURE: {
            "inputs": {field.name: _tensor(field) for field in signature.inputs.values()},
            "outputs": {field.name: _tensor(field) for field in signature.outputs.values()},
            "method_name": _METHOD_NAME["predict"],
        }
    }
    if model.task is not None:
        texts = _INPUT_OF[model.task.kind]
        found[model.task.kind] = {
            "inputs": {texts: _info(texts, "BYTES", [-1])},
            "method_name": _METHOD_NAME["predict"],
        }
    for method in _NOUN:
        try:
            field = signature.outputs[result_output(signature, method)]
        except InvalidRequest:
            continue
        found[_METHOD_NAME[method]] = {
            "inputs": {"inputs": _info("inputs", "BYTES", [-1])},
            "outputs": {"scores" if method == "classify" else "outputs": _tensor(field)},
            "method_name": _METHOD_NAME[method],
        }
    return SignatureDefMap(signature_def=found)


def version_states(service: Service, name: str, version: str = "") -> list[VersionState]:
    """The state of every version of `name`, or of `version` alone. Raises UnknownModelError when there is none."""
    found = [entry for entry in service.catalog.index if entry.name == name and version in ("", entry.version)]
    if not found:
        which = f"version {version[:64]}" if version else "version"
        raise UnknownModelError(f"model '{name[:128]}' has no {which} that is served")
    return [_state(entry) for entry in found]


def _fits(field: Field, method: Method) -> bool:
    if field.datatype not in ("FP16", "BF16", "FP32", "FP64"):
        return False
    if method == "classify":
        return len(field.dims) == 2
    return len(field.dims) == 1 or (len(field.dims) == 2 and field.dims[1] == 1)


def _state(entry: IndexEntry) -> VersionState:
    failed = entry.state == "UNAVAILABLE" and entry.reason
    return VersionState(entry.version, _STATE_OF[entry.state], _UNKNOWN if failed else _OK, entry.reason)


def _tensor(field: Field) -> dict[str, Any]:
    return _info(field.name, field.datatype, field.spec.wire_shape)


def _info(name: str, datatype: str, shape: list[int]) -> dict[str, Any]:
    return {
        "name": name,
        "dtype": DataType[TYPE_OF[datatype]],
        "tensor_shape": {"dim": [{"size": size} for size in shape]},
    }
