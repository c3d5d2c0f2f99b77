"""LightGBM's native model files to ONNX; the trees by onnxmltools."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlserve.errors import ModelFileError
from mlserve.model.tensors import Tensors, TensorSpec
from mlserve.optimize.importers.agreement import first_line
from mlserve.optimize.importers.booster_graph import INPUT, Link, Margins, booster_graph
from mlserve.optimize.importers.converted import Converted, keep_converted
from mlserve.optimize.importers.extras import need
from mlserve.optimize.importers.interface import ROWS
from mlserve.optimize.importers.request import Imported, ImportRequest
from mlserve.optimize.importers.tabular import Range

__all__ = ["import_lightgbm"]

_OPSET = 15  # the newest that onnxmltools writes; the trees are the same in ours

# https://github.com/microsoft/LightGBM/tree/v4.6.0/src/objective: ConvertOutput of each; others are identity.
_LINKS: dict[str, Link] = {
    "binary": "sigmoid", "multiclass": "softmax", "multiclassova": "sigmoid", "cross_entropy": "sigmoid",
    "cross_entropy_lambda": "log1pexp", "poisson": "exp", "gamma": "exp", "tweedie": "exp",
}  # fmt: skip
_DECISIONS = re.compile(r"^decision_type=(.*)$", re.MULTILINE)
_ZERO_IS_MISSING = 1  # in bits 2 and 3 of a decision's type: include/LightGBM/tree.h
_CLASSIFIERS = ("binary", "multiclass", "multiclassova")


def import_lightgbm(request: ImportRequest, on_step: Callable[[str], None]) -> Imported:
    """Writes the model to `request.out` and says what it takes and gives; NaN stands for a missing value.

    Raises ModelFileError for what cannot be loaded or converted, and Refused when the ONNX file answers otherwise.
    """
    path = Path(request.source)
    need("boosting", ["lightgbm", "onnxmltools"], path)
    on_step("loading the model")
    text = path.read_text(encoding="utf-8", errors="replace")
    booster = _booster(text, path)
    if re.search(r"^is_linear=1", text, re.MULTILINE):
        raise ModelFileError(f"{path} has a linear model in each leaf (linear_tree), which trees in ONNX have not")
    if any(int(kind) >> 2 & 3 == _ZERO_IS_MISSING for line in _DECISIONS.findall(text) for kind in line.split()):
        raise ModelFileError(f"{path} takes zeros for missing values (zero_as_missing), which trees in ONNX cannot")
    on_step("converting by onnxmltools")
    features = booster.num_feature()
    margins = _margins(text, booster)
    try:
        proto = booster_graph(_trees(text, path, features), margins, features)
    except Exception as error:  # a converter fails in as many ways as there are models
        raise ModelFileError(f"{path} cannot be converted by onnxmltools: {first_line(error)}") from error

    def original(inputs: Tensors) -> Tensors:
        answer = np.asarray(booster.predict(inputs[INPUT]))
        if not margins.classes:
            return {"output": answer.reshape(len(answer), -1)}
        both = np.stack([1 - answer, answer], axis=1) if answer.ndim == 1 else answer
        return {"probabilities": both, "label": both.argmax(axis=1)}

    return keep_converted(
        Converted(
            proto,
            original,
            (TensorSpec(INPUT, "float32", (ROWS, features)),),
            feature_names=booster.feature_name(),
            ranges={INPUT: _range(booster)},
            task="tabular-classification" if margins.classes else "tabular-regression",
            notes=(f"onnxmltools, {_header(text, 'objective') or 'no objective'}",),
        ),
        request,
        on_step,
    )


def _booster(text: str, path: Path) -> Any:
    import lightgbm

    try:
        return lightgbm.Booster(model_str=text)
    except lightgbm.basic.LightGBMError as error:
        raise ModelFileError(f"{path} cannot be loaded by LightGBM: {first_line(error)}") from error


def _header(text: str, name: str) -> str:
    """A line `name=value` before the first tree, or its bare name; empty when there is none."""
    head = text.partition("\nTree=")[0]
    found = re.search(rf"^{name}(?:=(.*))?$", head, re.MULTILINE)
    return (found[1] or name).strip() if found else ""


def _margins(text: str, booster: Any) -> Margins:
    objective, *options = _header(text, "objective").split(" ")
    settings = dict(option.split(":", 1) for option in options if ":" in option)
    count, trees = booster.num_model_per_iteration(), booster.num_trees()
    mean = 1 / (trees // count) if _header(text, "average_output") else 1.0
    link = "square" if "sqrt" in options else _LINKS.get(objective, "identity")
    return Margins(
        groups=[tree % count for tree in range(trees)],
        start=[0.0] * count,
        link=link,
        weights=[mean] * trees,
        factor=float(settings.get("sigmoid", 1.0)) if link == "sigmoid" else 1.0,
        classes=objective in _CLASSIFIERS,
    )


def _range(booster: Any) -> Range:
    """Where the features lay that it was trained on; those of categories are whole numbers."""
    low, high = np.full(booster.num_feature(), -1.0), np.ones(booster.num_feature())
    whole: list[int] = []
    names = booster.feature_name()
    for name, info in booster.dump_model(num_iteration=1)["feature_infos"].items():
        position = names.index(name)
        low[position], high[position] = info["min_value"], info["max_value"]
        if info["values"]:
            whole.append(position)
    return Range(low, high, tuple(whole))


def _trees(text: str, path: Path, features: int) -> Any:
    """What onnxmltools makes of the trees, as a regression; it is shown nothing of the objective."""
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    head, tree, rest = text.partition("\nTree=")
    for name, value in (("objective", "regression"), ("num_class", "1"), ("num_tree_per_iteration", "1")):
        head = re.sub(rf"^{name}=.*$", f"{name}={value}", head, flags=re.MULTILINE)
    head = re.sub(r"^average_output\n", "", head, flags=re.MULTILINE)
    if not re.search(r"^objective=", head, re.MULTILINE):
        head = f"{head}\nobjective=regression\n"
    rest = re.sub(r"^\[objective: .*\]$", "[objective: regression]", rest, flags=re.MULTILINE)
    plain = _booster(head + tree + rest, path)
    return convert_lightgbm(plain, initial_types=[(INPUT, FloatTensorType([None, features]))], target_opset=_OPSET)
