"""A V2 request's parameters: the few that mean something here, those that are refused, and all others, which are not
looked at.

Refused is what asks for something that this server does not do and whose absence a client would not notice: sequences,
shared memory, names that belong to Triton.
"""

from collections.abc import Mapping
from typing import Any

from mlserve.errors import InvalidRequest
from mlserve.wire.signature import Field, InferRequest

__all__ = ["check_tensor_parameters", "read_classes", "read_flag", "read_parameters"]

_MICROSECOND_S = 1e-6
_LARGEST = (1 << 63) - 1
# Streams answer every request once, so each answer is a final one; the stream's dialect says so when it is asked to.
_FINAL_RESPONSE = "triton_enable_empty_final_response"


def read_parameters(parameters: Mapping[str, Any], request: InferRequest) -> None:
    """Sets what `parameters` of a whole request mean: `timeout` (microseconds), `priority` and `timing`.

    Raises InvalidRequest for a value of the wrong kind and for a parameter that is reserved.
    """
    for name, value in parameters.items():
        if name == "timeout":
            request.timeout_s = _whole_number(name, value) * _MICROSECOND_S
        elif name == "priority":
            request.priority = _whole_number(name, value)
        elif name == "timing":
            request.timing = read_flag(name, value)
        elif name.startswith("sequence_") and value:
            raise InvalidRequest(f"parameter '{name[:64]}' is refused: this server keeps no state between requests")
        elif (name.startswith("triton_") and name != _FINAL_RESPONSE) or name == "headers":
            raise InvalidRequest(f"parameter '{name[:64]}' is a reserved parameter and cannot be specified")


def read_flag(name: str, value: Any) -> bool:
    """`value` if it is true or false. Raises InvalidRequest for anything else."""
    if not isinstance(value, bool):
        raise InvalidRequest(f"parameter '{name}' must be true or false")
    return value


def read_classes(field: Field, parameters: Mapping[str, Any]) -> int:
    """How many of the best elements of the output `field` are wanted, by `classification`; 0 when all are, as numbers.

    Raises InvalidRequest for a value that is no such number, and for a type without an order.
    """
    wanted = _whole_number("classification", parameters.get("classification", 0))
    if wanted and field.dtype.kind in "bO":
        raise InvalidRequest(
            f"class result not available for output '{field.name}' due to unsupported type '{field.datatype}'"
        )
    return wanted


def check_tensor_parameters(name: str, parameters: Mapping[str, Any]) -> None:
    """Raises InvalidRequest when the tensor `name` lies, or is to lie, in shared memory."""
    if "shared_memory_region" in parameters:
        raise InvalidRequest(f"tensor '{name[:64]}': shared memory is not supported; send the tensor's bytes")


def _whole_number(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LARGEST:
        raise InvalidRequest(f"parameter '{name}' must be a whole number from 0 to {_LARGEST}")
    return value
