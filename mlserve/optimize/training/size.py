"""How large a PyTorch model is, and how much work one answer takes."""

import msgspec
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mlserve.optimize.training.trainee import Trainee

__all__ = ["ModelSize", "measure_size"]


class ModelSize(msgspec.Struct, frozen=True):
    """Numbers held as parameters, and floating point operations for one row (a multiplication and its addition: two).

    Counted are matrix products and convolutions, as torch's FlopCounterMode does.
    """

    parameters: int
    flops: int

    def since(self, before: "ModelSize") -> tuple[str, ...]:
        """What changed, in words."""
        return (
            f"parameters: {_change(before.parameters, self.parameters)}",
            f"FLOPs for one row: {_change(before.flops, self.flops)}",
        )


def measure_size(trainee: Trainee) -> ModelSize:
    """The size of the module as it stands."""
    module = trainee.module
    training = module.training
    module.eval()
    # The plain form of attention is made of products the counter knows; the fused one for the CPU it does not.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trainee.answer(module, trainee.example(1))
    module.train(training)
    return ModelSize(sum(weight.numel() for weight in module.parameters()), int(counter.get_total_flops()))


def _change(before: int, after: int) -> str:
    if before == after:
        return f"{after:,}, as before"
    return f"{before:,} -> {after:,} ({after / max(before, 1):.0%})"
