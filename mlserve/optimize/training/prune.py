"""Pruning."""

from typing import Annotated, Literal

import msgspec

from mlserve.optimize.training.fit import Schedule

__all__ = ["Prune"]


class Prune(msgspec.Struct, frozen=True, tag_field="pass", tag="prune", forbid_unknown_fields=True):
    """Takes away `amount` of the weights (`unstructured`), two of every four (`2:4`), or whole parts."""

    what: Literal["unstructured", "2:4", "channels", "heads", "layers"]
    amount: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.5
    tuning: Schedule = Schedule()
    seed: int = 0
