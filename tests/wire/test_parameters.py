"""Which parameters of a request mean something, which are refused, and that all others do no harm."""

import numpy as np
import pytest

from mlserve.errors import InvalidRequest
from mlserve.wire.parameters import read_parameters
from mlserve.wire.signature import InferRequest


def read(**parameters):
    request = InferRequest({"x": np.zeros(1)}, 1)
    read_parameters(parameters, request)
    return request


def test_timeouts_are_microseconds():
    assert read(timeout=1_500).timeout_s == pytest.approx(0.0015)
    assert read(timeout=0).timeout_s == 0.0


@pytest.mark.parametrize("name", ["timeout", "priority"])
@pytest.mark.parametrize("value", [-1, 1.5, "5", True, None, [], 2**63])
def test_a_number_that_is_none_is_refused(name, value):
    with pytest.raises(
        InvalidRequest, match=f"parameter '{name}' must be a whole number from 0 to 9223372036854775807"
    ):
        read(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sequence_id", 42),
        ("sequence_id", "a"),
        ("sequence_start", True),
        ("sequence_end", True),
        ("headers", {}),
        ("triton_anything", 0),
        ("triton_final_response", True),
    ],
)
def test_what_asks_for_more_than_this_server_does_is_refused(name, value):
    with pytest.raises(InvalidRequest, match=f"parameter '{name}' is"):
        read(**{name: value})


def test_a_long_name_is_not_told_back_whole():
    with pytest.raises(InvalidRequest) as caught:
        read(**{"triton_" + "x" * 10_000: 1})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [1, "a", None, [1], {"a": 1}])
def test_a_parameter_that_nobody_knows_changes_nothing(value):
    request = read(my_own=value, sequence_id=0, sequence_start=False, triton_enable_empty_final_response=True)
    assert (request.timeout_s, request.priority, request.timing) == (0.0, 0, False)
