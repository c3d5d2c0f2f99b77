"""Which integers a device computes with, fast and exactly."""

from typing import Literal

import msgspec

__all__ = ["Device", "Int8Types", "int8_types"]

Device = Literal["cpu", "cuda", "tensorrt"]


class Int8Types(msgspec.Struct, frozen=True):
    """How integers are made: `symmetric` activations have their zero at 0; `reduce_range` keeps weights to 7 bits."""

    activations: Literal["u8", "s8"]
    weights: Literal["u8", "s8"]
    symmetric: bool
    reduce_range: bool
    reason: str


def int8_types(device: Device, architecture: str, cpu_flags: tuple[str, ...]) -> Int8Types:
    """What int8 kernels of `device` are fast and exact with (onnxruntime's quantization guide).

    x86 without VNNI adds two products of u8 and s8 in 16 bits, which saturates: 7-bit weights keep it from that.
    """
    if device != "cpu":
        return Int8Types("s8", "s8", symmetric=True, reduce_range=False, reason=f"{device}: symmetric")
    if architecture.lower() in ("aarch64", "arm64"):
        return Int8Types("s8", "s8", symmetric=False, reduce_range=False, reason="ARM")
    vnni = any("vnni" in flag for flag in cpu_flags)
    reason = "x86 with VNNI" if vnni else "x86 without VNNI: 7-bit weights, so that sums of products do not saturate"
    return Int8Types("u8", "s8", symmetric=False, reduce_range=not vnni, reason=reason)
