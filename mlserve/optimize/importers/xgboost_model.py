"""XGBoost's native model files to ONNX; the trees by onnxmltools."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlserve.errors import ModelFileError
from mlserve.model.tensors import Array, Tensors, TensorSpec
from mlserve.optimize.importers.agreement import first_line
from mlserve.optimize.importers.booster_graph import INPUT, Link, Margins, booster_graph
from mlserve.optimize.importers.converted import Converted, keep_converted
from mlserve.optimize.importers.extras import need
from mlserve.optimize.importers.interface import ROWS
from mlserve.optimize.importers.request import Imported, ImportRequest
from mlserve.optimize.importers.tabular import Range, Ranges, ranges_of

__all__ = ["import_xgboost"]

_OPSET = 15  # the newest that onnxmltools writes; the trees are the same in ours

# https://github.com/dmlc/xgboost/tree/v3.0.0/src/objective: PredTransform of each; what is not named here is identity.
_LINKS: dict[str, Link] = {
    "binary:logistic": "sigmoid", "reg:logistic": "sigmoid", "binary:hinge": "step",
    "multi:softprob": "softmax", "multi:softmax": "softmax",
    "count:poisson": "exp", "reg:gamma": "exp", "reg:tweedie": "exp", "survival:cox": "exp", "survival:aft": "exp",
}  # fmt: skip
_CLASSIFIERS = ("binary:logistic", "binary:hinge", "multi:softprob", "multi:softmax")


def import_xgboost(request: ImportRequest, on_step: Callable[[str], None]) -> Imported:
    """Writes the model to `request.out` and says what it takes and gives; NaN stands for a missing value.

    Raises ModelFileError for what cannot be loaded or converted, and Refused when the ONNX file answers otherwise.
    """
    path = Path(request.source)
    need("boosting", ["xgboost", "onnxmltools"], path)
    on_step("loading the model")
    booster, assumed = _load(path)
    model = json.loads(bytes(booster.save_raw("json")))["learner"]
    on_step("converting by onnxmltools")
    margins = _margins(model, path)
    features = int(model["learner_model_param"]["num_feature"])
    try:
        proto = booster_graph(_trees(booster), margins, features)
    except Exception as error:  # a converter fails in as many ways as there are models
        raise ModelFileError(f"{path} cannot be converted by onnxmltools: {first_line(error)}") from error
    return keep_converted(
        Converted(
            proto,
            _Original(booster, classes=margins.classes),
            (TensorSpec(INPUT, "float32", (ROWS, features)),),
            feature_names=booster.feature_names or (),
            ranges=_whole_categories(ranges_of(proto), booster.feature_types),
            task="tabular-classification" if margins.classes else "tabular-regression",
            assumed=assumed,
            notes=(f"onnxmltools, {model['objective']['name']}",),
        ),
        request,
        on_step,
    )


def _load(path: Path) -> tuple[Any, tuple[str, ...]]:
    import xgboost

    try:
        booster = xgboost.Booster(model_file=str(path))
        best, rounds = booster.attr("best_iteration"), booster.num_boosted_rounds()
    except xgboost.core.XGBoostError as error:
        raise ModelFileError(f"{path} cannot be loaded by XGBoost: {first_line(error)}") from error
    if best is None or int(best) + 1 >= rounds:
        return booster, ()
    kept = int(best) + 1
    return booster[:kept], (f"the first {kept} of {rounds} rounds, which early stopping found the best",)


def _margins(model: dict[str, Any], path: Path) -> Margins:
    gradient, parameters = model["gradient_booster"], model["learner_model_param"]
    if gradient["name"] == "gblinear":
        raise ModelFileError(f"{path} is a linear booster (gblinear), which has no trees; convert it as a linear model")
    weights = gradient.get("weight_drop", [])  # dart
    inner = gradient.get("gbtree", gradient)["model"]
    if any(int(tree["tree_param"].get("size_leaf_vector", 1)) > 1 for tree in inner["trees"]):
        raise ModelFileError(f"{path} has a vector in each leaf (multi_strategy=multi_output_tree), which ONNX has not")
    objective = model["objective"]["name"]
    link = _LINKS.get(objective, "identity")
    count = max(int(parameters["num_class"]), int(parameters.get("num_target", 1)), 1)
    base = json.loads(parameters["base_score"])
    start = [float(value) for value in (base if isinstance(base, list) else [base])]
    return Margins(
        groups=inner["tree_info"],
        start=[_unlinked(value, link) for value in (start * count if len(start) == 1 else start)],
        link=link,
        weights=weights,
        classes=objective in _CLASSIFIERS,
    )


def _unlinked(score: float, link: Link) -> float:
    """The margin that the answer `score` belongs to; XGBoost keeps its start value as an answer."""
    if link == "sigmoid":
        return float(np.log(score / (1 - score)))
    return float(np.log(score)) if link == "exp" else score


def _trees(booster: Any) -> Any:
    """What onnxmltools makes of the trees, as a regression; it is shown nothing of the objective."""
    import xgboost
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    raw = json.loads(bytes(booster.save_raw("json")))
    learner = raw["learner"]
    gradient = learner["gradient_booster"]
    inner = gradient.get("gbtree", gradient)["model"]
    learner["gradient_booster"] = {"name": "gbtree", "model": inner | {"tree_info": [0] * len(inner["tree_info"])}}
    learner["objective"] = {"name": "reg:squarederror", "reg_loss_param": {"scale_pos_weight": "1"}}
    learner["learner_model_param"] |= {"num_class": "0", "num_target": "1", "base_score": "0"}
    learner["feature_names"], learner["attributes"] = [], {}
    plain = xgboost.Booster(model_file=bytearray(json.dumps(raw).encode()))
    features = int(learner["learner_model_param"]["num_feature"])
    return convert_xgboost(plain, initial_types=[(INPUT, FloatTensorType([None, features]))], target_opset=_OPSET)


def _whole_categories(ranges: Ranges, types: list[str] | None) -> Ranges:
    """`ranges` for made-up rows, in which features of categories are whole numbers."""
    whole = [position for position, kind in enumerate(types or ()) if kind == "c"]
    if not whole:
        return ranges
    return {
        name: Range(np.maximum(found.low, 0), found.high, tuple(each for each in whole if each < len(found.low)))
        for name, found in ranges.items()
    }


class _Original:
    """XGBoost's own prediction, classifiers as probabilities [rows, classes] and label."""

    def __init__(self, booster: Any, *, classes: bool) -> None:
        self._booster, self._classes = booster, classes

    def __call__(self, inputs: Tensors) -> Tensors:
        import xgboost

        table = xgboost.DMatrix(
            inputs[INPUT], feature_names=self._booster.feature_names, feature_types=self._booster.feature_types
        )
        if not self._classes:
            answer = self._booster.predict(table)
            return {"output": answer.reshape(len(answer), -1)}
        return _classified(self._booster, table)


def _classified(booster: Any, table: Any) -> Tensors:
    name = json.loads(booster.save_config())["learner"]["objective"]["name"]
    answer: Array = booster.predict(table)
    if name == "multi:softmax":  # predicts labels; the probabilities behind them come from its margins
        margin = booster.predict(table, output_margin=True)
        exponents = np.exp(margin - margin.max(axis=1, keepdims=True))
        answer = exponents / exponents.sum(axis=1, keepdims=True)
    both = np.stack([1 - answer, answer], axis=1) if answer.ndim == 1 else answer
    return {"probabilities": both, "label": both.argmax(axis=1)}
