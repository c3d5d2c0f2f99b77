"""What is done to a PyTorch model before it is exported: one frozen struct a pass, its fields the parameters."""

from mlserve.optimize.training.distill import Distill
from mlserve.optimize.training.prune import Prune

__all__ = ["Distill", "Prune", "TrainingPass"]

TrainingPass = Prune | Distill
"""Every training pass; msgspec decodes a recipe's table into one of them, by its `pass` key."""
