"""Where a model runs: `cpu`, or a kind of accelerator and the number of one."""

import msgspec

from mlserve.errors import EngineError

__all__ = ["Device", "parse_device"]

# Of a device's number: more than any machine has, and what fits the 32 bits that the libraries give it.
_MOST_DIGITS = 3


class Device(msgspec.Struct, frozen=True):
    """`Device("cuda", 1)`  # the second CUDA device. The CPU has no number."""

    kind: str
    number: int = 0


def parse_device(text: str, engine: str, accelerators: tuple[str, ...]) -> Device:
    """`"cpu"` -> `Device("cpu")`, `"cuda:1"` -> `Device("cuda", 1)`, `"cuda"` -> `Device("cuda", 0)`.

    Raises EngineError for anything that is neither the CPU nor one of the `accelerators` of `engine`, naming them.
    """
    kind, colon, number = text.partition(":")
    if text == "cpu" or (kind in accelerators and not colon):
        return Device(kind)
    if kind in accelerators and number.isdecimal() and len(number) <= _MOST_DIGITS:
        return Device(kind, int(number))
    forms = [f"{accelerator} or {accelerator}:N" for accelerator in accelerators]
    raise EngineError(f"{text!r} is no device; use {', '.join(['cpu', *forms])} with {engine}")
