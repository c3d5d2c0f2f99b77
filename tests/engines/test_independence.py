"""Whether rows may run together is tried out, with engines that obey the law and engines that break it."""

import numpy as np
import pytest

from mlserve.engines.fake import FakeEngine
from mlserve.engines.independence import rows_independent
from mlserve.errors import EngineError
from mlserve.model.tensors import TensorSpec

X, Y = TensorSpec("x", "float32", ("batch", 4)), TensorSpec("y", "float32", ("batch", 4))


def independent(answer, inputs=(X,), outputs=(Y,)):
    return rows_independent(FakeEngine(inputs, outputs, answer), inputs)


def jitter(inputs):
    """A hundredth of difference, as int8 scales make."""
    return {"y": inputs["x"] * (1 + 0.01 * len(inputs["x"]))}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda inputs: {"y": 2 * inputs["x"]}, True),
        (jitter, True),
        (lambda inputs: {"y": inputs["x"] - inputs["x"].mean(axis=0)}, False),
        (lambda inputs: {"y": inputs["x"][::-1]}, False),
        (lambda inputs: {"y": inputs["x"][:1]}, False),
        (lambda inputs: {"y": np.repeat(inputs["x"], 2, axis=0)}, False),
        (lambda inputs: {"y": inputs["x"].reshape(-1)}, False),
    ],
)
def test_rows_are_independent_when_they_get_the_same_answers_together_as_alone(answer, expected):
    assert independent(answer) is expected


def test_a_model_without_a_row_dimension_has_no_rows_to_run_together():
    fixed = TensorSpec("y", "float32", (3, 4))
    assert not independent(lambda inputs: {"y": inputs["x"]}, outputs=(fixed,))
    assert independent(lambda inputs: {"y": inputs["x"]})


def test_a_model_that_cannot_run_made_up_rows_is_taken_at_its_word():
    def fail(_):
        raise EngineError("no such token")

    assert independent(fail)
