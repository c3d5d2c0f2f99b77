"""What can be done to an artifact: one frozen struct a pass, its fields the parameters, calling it does the work."""

from mlserve.optimize.passes.fuse import Fuse
from mlserve.optimize.passes.quantize import Quantize

__all__ = ["Fuse", "Pass", "Quantize"]

Pass = Fuse | Quantize
"""Every pass. msgspec decodes a recipe's table straight into one of them, by its `pass` key."""
