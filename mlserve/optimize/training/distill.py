"""Distillation."""

import msgspec

from mlserve.optimize.training.fit import Schedule

__all__ = ["Distill"]


class Distill(msgspec.Struct, frozen=True, tag_field="pass", tag="distill", forbid_unknown_fields=True):
    """Trains a smaller student to answer as the model does.

    The student is made by `student` (`package.module:factory`), or is the teacher with `layers` of its layers and
    `width` of its channels.
    """

    student: str = ""
    layers: int = 0
    width: float = 1.0
    schedule: Schedule = Schedule()
    seed: int = 0
