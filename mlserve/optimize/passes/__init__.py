"""What can be done to an artifact: one frozen struct a pass, its fields the parameters, calling it does the work."""

from mlserve.optimize.passes.cast import Cast
from mlserve.optimize.passes.fuse import Fuse
from mlserve.optimize.passes.openvino import QuantizeOpenvino, ToOpenvino
from mlserve.optimize.passes.quantize import Quantize
from mlserve.optimize.passes.smooth import SmoothQuant
from mlserve.optimize.passes.static import QuantizeStatic
from mlserve.optimize.passes.weight_only import WeightOnly

__all__ = [
    "Cast",
    "Fuse",
    "Pass",
    "Quantize",
    "QuantizeOpenvino",
    "QuantizeStatic",
    "SmoothQuant",
    "ToOpenvino",
    "WeightOnly",
]

Pass = Fuse | SmoothQuant | Cast | Quantize | QuantizeStatic | WeightOnly | ToOpenvino | QuantizeOpenvino
"""Every pass. msgspec decodes a recipe's table straight into one of them, by its `pass` key."""
