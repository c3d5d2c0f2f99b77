"""What counts as rounding and what as a wrong conversion, on a tree of one split."""

import numpy as np
import pytest

from mlserve.engines.fake import FakeEngine
from mlserve.errors import EngineError, ModelFileError, Refused
from mlserve.model.tensors import TensorSpec
from mlserve.optimize.importers.agreement import check_agreement

X = (TensorSpec("x", "float32", ("batch", 2)),)
Y = (TensorSpec("y", "float32", ("batch", 1)), TensorSpec("label", "int64", ("batch",)))
THRESHOLD = 0.1  # float32(0.1) lies above it
EDGE = 0.10000000001


def tree(inputs, threshold=THRESHOLD):
    """1 where the first feature lies above the threshold."""
    above = inputs["x"][:, :1] > threshold
    return {"y": above.astype(inputs["x"].dtype), "label": above[:, 0].astype(np.int64)}


def engine(answer):
    return FakeEngine(X, Y, answer)


def in_float32(inputs):
    return tree(inputs, np.float32(THRESHOLD))


def rows(count, edges=0):
    values = np.random.default_rng(0).random((count, 2)).astype(np.float32).astype(np.float64)
    values[:edges, 0] = EDGE
    return {"x": values}


def test_rows_on_a_threshold_are_rounding_and_counted():
    agreement = check_agreement(tree, engine(in_float32), [rows(500, edges=3)])
    assert (agreement.rows, agreement.rounded_rows) == (497, 3)
    assert "3 of 500 rows (0.6%)" in agreement.warning


def test_no_row_on_a_threshold_is_no_warning():
    agreement = check_agreement(tree, engine(in_float32), [rows(500)])
    assert (agreement.rows, agreement.rounded_rows, agreement.warning) == (500, 0, "")


def test_many_rows_on_a_threshold_are_refused():
    with pytest.raises(Refused, match="50 of 500 rows"):
        check_agreement(tree, engine(in_float32), [rows(500, edges=50)])


def test_a_threshold_elsewhere_is_a_wrong_conversion():
    with pytest.raises(Refused, match=r"output '(y|label)'|of output '(y|label)' differs"):
        check_agreement(tree, engine(lambda inputs: tree(inputs, 0.15)), [rows(500)])


def test_one_wrong_number_names_the_worst_output():
    def off(inputs):
        answer = tree(inputs)
        answer["y"][7] += 0.1
        return answer

    with pytest.raises(Refused, match=r"output 'y' differs by 0\.1 of its size"):
        check_agreement(tree, engine(off), [rows(20)])


def test_labels_that_tie_may_come_out_either_way():
    def scored(inputs, sign=1):
        value = inputs["x"][:, :1] * 0 + 0.5
        scores = np.hstack([value, value + sign * 1e-9])
        return {"y": scores, "label": scores.argmax(axis=1)}

    other = FakeEngine(X, Y, lambda inputs: scored({"x": inputs["x"].astype(np.float64)}, -1))
    assert check_agreement(scored, other, [rows(1)]).rounded_rows == 1


def test_another_shape_is_refused():
    with pytest.raises(Refused, match="has shape"):
        check_agreement(tree, engine(lambda inputs: tree(inputs) | {"y": np.zeros((1, 2))}), [rows(5)])


def test_who_does_not_run_is_said():
    def broken(_):
        raise ValueError("no such column")

    def failing(_):
        raise EngineError("out of bounds")

    with pytest.raises(ModelFileError, match=r"the model itself does not run on x \[5, 2\]: ValueError: no such"):
        check_agreement(broken, engine(tree), [rows(5)])
    with pytest.raises(Refused, match="onnxruntime does not run the ONNX file"):
        check_agreement(tree, engine(failing), [rows(5)])
