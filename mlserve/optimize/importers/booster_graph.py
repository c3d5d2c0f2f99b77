"""Boosted trees as ONNX: what onnxmltools makes of the trees, and what we put behind them.

Its converters guess the objective, and guess wrong for rankers, one-against-all classes, random forests and logistic
regression. So they are only asked for the trees, as a regression that adds up leaves; the start value, the sums of
each class and the link from margins to answers are written here.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from mlserve.optimize.importers.interface import ROWS, open_dims

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["INPUT", "Link", "Margins", "booster_graph"]

INPUT = "input"
_OPSET = 18
_IR_VERSION = 10

Link = Literal["identity", "sigmoid", "softmax", "exp", "log1pexp", "square", "step"]
"""From a margin to the answer. `square` keeps the sign, `step` is 1 above zero."""


_OPERATORS = {"sigmoid": "Sigmoid", "exp": "Exp", "log1pexp": "Softplus"}


class Margins(msgspec.Struct, frozen=True):
    """What turns leaves into answers.

    `groups` says which margin each tree adds to, `weights` by how much; a margin starts at its `start`. The answer is
    `link(factor * margin)`. `classes` tells a classifier, whose answers get a label beside them.
    """

    groups: Sequence[int]
    start: Sequence[float]
    link: Link
    weights: Sequence[float] = ()
    factor: float = 1.0
    classes: bool = False


def booster_graph(trees: "ModelProto", margins: Margins, features: int) -> "ModelProto":
    """The whole model: `input` float32 [rows, features] -> `output` [rows, margins].

    A classifier gives `probabilities` [rows, classes] and `label` int64 [rows] instead.
    """
    from onnx import TensorProto, helper

    count = len(margins.start)
    ensemble = next(node for node in trees.graph.node if node.op_type == "TreeEnsembleRegressor")
    _regroup(ensemble, margins)
    ensemble.input[:], ensemble.output[:] = [INPUT], ["margin"]
    link = _Nodes()
    answer = link.after("margin", margins)
    outputs = [("output", TensorProto.FLOAT, [ROWS, count])]
    if margins.classes:
        classes = max(count, 2)
        if count == 1:
            other = link.add("Sub", link.constant(1.0), answer)
            answer = link.add("Concat", other, answer, axis=1)
        label = link.add("ArgMax", answer, axis=1, keepdims=0)
        link.name(label, "label")
        outputs = [("probabilities", TensorProto.FLOAT, [ROWS, classes]), ("label", TensorProto.INT64, [ROWS])]
    link.name(answer, outputs[0][0])
    values = [helper.make_tensor_value_info(*output) for output in outputs]
    taken = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [ROWS, features])
    graph = helper.make_graph([ensemble, *link.nodes], "trees", [taken], values, link.constants)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    open_dims(model, {INPUT: (ROWS, features)})
    return model


def _regroup(ensemble: "NodeProto", margins: Margins) -> None:
    """Sends each tree's leaves to its own margin, with its own weight; margins begin at their start."""
    from onnx import helper

    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in ensemble.attribute}
    trees = np.array(values["target_treeids"])
    values["target_ids"] = np.array(margins.groups)[trees].tolist()
    if margins.weights:
        values["target_weights"] = (np.array(values["target_weights"]) * np.array(margins.weights)[trees]).tolist()
    values["base_values"] = [float(value) for value in margins.start]
    values["n_targets"] = len(margins.start)
    values["post_transform"] = "NONE"
    del ensemble.attribute[:]
    ensemble.attribute.extend(helper.make_attribute(name, value) for name, value in values.items())


class _Nodes:
    """Operators written one after another; each result has a name of its own until it is given another."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[Any] = []

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, value: float) -> str:
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, np.float32), name))
        return name

    def name(self, value: str, name: str) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node("Identity", [value], [name]))

    def after(self, margin: str, margins: Margins) -> str:
        """The link of `margins` behind the value `margin`."""
        if margins.factor != 1.0:
            margin = self.add("Mul", margin, self.constant(margins.factor))
        match margins.link:
            case "square":
                return self.add("Mul", margin, self.add("Abs", margin))
            case "step":
                return self.add("Cast", self.add("Greater", margin, self.constant(0.0)), to=1)
            case "identity":
                return margin
            case "softmax":
                return self.add("Softmax", margin, axis=1)
            case _:
                return self.add(_OPERATORS[margins.link], margin)
