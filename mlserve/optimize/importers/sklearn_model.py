"""scikit-learn models to ONNX, by skl2onnx: skops files, and pickles of those who made them are trusted."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlserve.errors import ModelFileError
from mlserve.model.tensors import Array, Tensors, TensorSpec
from mlserve.optimize.importers.agreement import first_line
from mlserve.optimize.importers.converted import Converted, keep_converted
from mlserve.optimize.importers.extras import need
from mlserve.optimize.importers.interface import ROWS, drop_zipmap, give_columns, name_outputs, negate
from mlserve.optimize.importers.request import Imported, ImportRequest
from mlserve.optimize.importers.sklearn_inputs import TableInputs, sklearn_inputs, sklearn_steps

__all__ = ["import_sklearn"]

_OPSETS = {"": 18, "ai.onnx.ml": 3}


def import_sklearn(request: ImportRequest, on_step: Callable[[str], None]) -> Imported:
    """Writes the model to `request.out` and says what it takes and gives: scores first, then the label.

    Raises ModelFileError for what cannot be loaded or converted, UnknownInputError, and Refused when the ONNX file
    answers otherwise.
    """
    path = Path(request.source)
    need("sklearn", ["sklearn", "skl2onnx", "skops.io", "joblib"], path)
    on_step("loading the model")
    model, assumed = _load(request)
    library = type(model).__module__.partition(".")[0]
    if library in ("xgboost", "lightgbm"):
        raise ModelFileError(
            f"{path} holds a pickled {type(model).__name__}; write it as its own library does: "
            + ("save_model('model.ubj')" if library == "xgboost" else "booster_.save_model('model.txt')")
        )
    if not hasattr(model, "fit"):
        raise ModelFileError(f"{path} holds a {type(model).__name__}, not a scikit-learn model")
    inputs = sklearn_inputs(model, request.inputs, str(path))
    answers = _Answers(model, inputs)
    on_step("converting by skl2onnx")
    proto = _convert(model, inputs, path)
    answers.name(proto, path)
    labels = getattr(model, "classes_", ())
    return keep_converted(
        Converted(
            proto,
            answers.run,
            inputs.specs,
            feature_names=() if inputs.columns else inputs.names,
            choices=inputs.choices,
            task=answers.task,
            labels=tuple(str(label) for label in labels) if isinstance(labels, np.ndarray) else (),
            assumed=(*assumed, *inputs.assumed),
            notes=("skl2onnx",),
        ),
        request,
        on_step,
    )


def _load(request: ImportRequest) -> tuple[Any, tuple[str, ...]]:
    """The fitted model, and what scikit-learn warned of while it was loaded."""
    import joblib

    path = Path(request.source)
    sys.path.insert(0, str(Path.cwd()))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            model = _load_skops(path, trust=request.trust_pickle) if request.kind == "skops" else joblib.load(path)
        except (MemoryError, PermissionError, ModelFileError):
            raise
        except Exception as error:  # a damaged or foreign file raises anything
            raise ModelFileError(f"{path} cannot be loaded: {first_line(error)}; save the model again") from error
    old = [str(warning.message) for warning in heard if type(warning.message).__name__ == "InconsistentVersionWarning"]
    return model, tuple(text.split(". This")[0] for text in old[:1])


def _load_skops(path: Path, *, trust: bool) -> Any:
    from skops.io import get_untrusted_types, load

    unknown = get_untrusted_types(file=path)
    if unknown and not trust:
        raise ModelFileError(
            f"{path} names types that skops does not know to be safe ({', '.join(unknown[:5])}); if you trust who made "
            "it, pass --trust-pickle"
        )
    return load(path, trusted=unknown)


def _convert(model: Any, inputs: TableInputs, path: Path) -> Any:
    import skl2onnx
    from onnx import helper
    from skl2onnx.common import data_types

    kinds = {
        "float32": data_types.FloatTensorType, "float64": data_types.DoubleTensorType,
        "int64": data_types.Int64TensorType, "int32": data_types.Int32TensorType,
        "bool": data_types.BooleanTensorType, "object": data_types.StringTensorType,
    }  # fmt: skip
    unknown = next((spec for spec in inputs.specs if spec.dtype not in kinds), None)
    if unknown:
        raise ModelFileError(f"skl2onnx takes no {unknown.dtype} ({unknown}); use one of {', '.join(kinds)}")
    types = [(spec.name, kinds[spec.dtype]([None, _width(spec)])) for spec in inputs.specs]
    last = sklearn_steps(model)[-1]
    try:
        try:
            proto = skl2onnx.to_onnx(model, initial_types=types, target_opset=_OPSETS)
        except NameError:  # skl2onnx asks a LinearSVC in a pipeline for an option it lacks, unless it has others
            proto = skl2onnx.to_onnx(
                model, initial_types=types, target_opset=_OPSETS, options={type(last): {"nocl": False}}
            )
    except Exception as error:  # a converter fails in as many ways as there are estimators
        raise ModelFileError(f"{path} cannot be converted by skl2onnx: {first_line(error)}") from error
    drop_zipmap(proto)
    for node in proto.graph.node:
        if node.op_type == "StringNormalizer":  # by default en_US, which few servers have
            node.attribute.append(helper.make_attribute("locale", "C.UTF-8"))
    single = [spec.name for spec in inputs.specs if len(spec.shape) == 1]
    for value in proto.graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = ROWS
    give_columns(proto, single)
    return proto


def _width(spec: TensorSpec) -> int:
    last = spec.shape[-1] if len(spec.shape) > 1 else 1
    return last if isinstance(last, int) else 1


class _Answers:
    """What the model says to rows, under the names its ONNX file gives it."""

    def __init__(self, model: Any, inputs: TableInputs) -> None:
        from sklearn.base import is_classifier, is_outlier_detector

        self._inputs = inputs
        self.task = "unknown"
        self._asked: dict[str, Callable[[Any], Array]] = {}
        if is_classifier(model):
            self.task = "tabular-classification"
            if hasattr(model, "predict_proba"):
                self._asked["probabilities"] = model.predict_proba
            elif hasattr(model, "decision_function"):
                self._asked["scores"] = model.decision_function
            self._asked["label"] = model.predict
        elif is_outlier_detector(model):
            self._asked = {"scores": model.decision_function, "label": model.predict}
        elif hasattr(model, "predict") and hasattr(model, "transform"):  # clusters: the number of the nearest
            self._asked = {"label": model.predict, "scores": model.transform}
        elif hasattr(model, "predict"):
            self.task = "tabular-regression"
            self._asked["output"] = model.predict
        else:
            self._asked["output"] = model.transform
        self._order = list(self._asked)

    def name(self, proto: Any, path: Path) -> None:
        """Names the outputs of `proto`; skl2onnx puts the label first, and everything else alone."""
        found = [output.name for output in proto.graph.output]
        ours = sorted(self._order, key=lambda name: name != "label")
        if len(found) != len(ours):
            raise ModelFileError(
                f"{path} becomes a file with the outputs {', '.join(found)}, expected {', '.join(ours)}"
            )
        there = dict(zip(ours, found, strict=True))
        name_outputs(proto, {there[name]: name for name in self._order})
        if "scores" in there and any(node.op_type == "SVMClassifier" for node in proto.graph.node):
            negate(proto, "scores", classes=2)
        self._widths = {output.name: _dims(output) for output in proto.graph.output}

    def run(self, inputs: Tensors) -> Tensors:
        table = self._inputs.table(inputs)
        return {name: self._shaped(name, ask(table)) for name, ask in self._asked.items()}

    def _shaped(self, name: str, answer: Any) -> Array:
        """scikit-learn gives [rows] where the file gives [rows, 1], or one margin where it gives both classes'."""
        array = np.asarray(answer.toarray() if hasattr(answer, "toarray") else answer)
        if array.ndim == 1 and len(self._widths[name]) == 2:
            array = array[:, None]
            if self._widths[name][1] == 2:
                array = np.hstack([-array, array])
        return array


def _dims(output: Any) -> list[int]:
    return [dim.dim_value for dim in output.type.tensor_type.shape.dim]
