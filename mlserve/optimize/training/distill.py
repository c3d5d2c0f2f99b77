"""Distillation: a smaller model is trained to answer as the model does."""

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from mlserve.errors import DataFileError
from mlserve.optimize.training.fit import fit, split_validation
from mlserve.optimize.training.schedule import FitReport, Schedule

if TYPE_CHECKING:
    from mlserve.model.rows import Rows
    from mlserve.optimize.training.trainee import Trainee

__all__ = ["Distill"]

_SCHEDULE = Schedule()
_CHECKPOINT = "distill.pt"

Weight = Annotated[float, msgspec.Meta(ge=0)]


class Distill(msgspec.Struct, frozen=True, tag_field="pass", tag="distill", forbid_unknown_fields=True):
    """Trains a smaller student on the user's rows to answer as the model, its teacher, does; labels are not needed.

    The student is what `student` (`package.module:factory`) makes, or a copy of the teacher that keeps `layers` of its
    layers and the share `width` of its channels. It has the teacher's inputs and outputs.

    What is made small is `soft_weight` times the distance from the teacher's answers (class scores softened by
    `temperature`), `hard_weight` times the one from the labels where there are any, and, when layers were dropped and
    `hidden` is not "none", the distance of what is left between the layers. A `schedule` without epochs leaves the
    student as it was made. Raises Refused for a student that does not fit, DataFileError without rows to learn from.
    """

    student: str = ""
    layers: Annotated[int, msgspec.Meta(ge=0)] = 0
    width: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    temperature: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    soft_weight: Weight = 1.0
    hard_weight: Weight = 1.0
    hidden: Literal["auto", "none"] = "auto"
    schedule: Schedule = _SCHEDULE
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        thinner = bool(self.layers) or self.width < 1
        if self.student and thinner:
            raise ValueError("student makes a network of its own; layers and width are for a copy of the teacher")
        if not self.student and not thinner:
            raise ValueError('no student; give student = "package.module:factory", layers = N, or width below 1')
        if not self.soft_weight and not self.hard_weight:
            raise ValueError("soft_weight and hard_weight are both 0; there is nothing to learn")

    def __call__(self, trainee: "Trainee") -> tuple[str, ...]:
        import torch

        from mlserve.optimize.training.size import measure_size
        from mlserve.optimize.training.students import make_student
        from mlserve.optimize.training.teaching import Aims, Teaching

        rows = _rows(trainee)
        trainee.module.eval()
        before = measure_size(trainee)
        student = make_student(trainee, self.student, layers=self.layers, width=self.width, seed=self.seed)
        aims = Aims(self.temperature, self.soft_weight, self.hard_weight, self.hidden == "auto", self.seed)
        with Teaching(trainee, student, rows, aims) as teaching:
            report = fit(
                torch.nn.ModuleList([student.module, teaching.bridges]),
                rows,
                teaching,
                self.schedule,
                seed=self.seed,
                checkpoint=trainee.checkpoints / _CHECKPOINT if trainee.checkpoints else None,
                on_step=lambda step: trainee.on_step(f"distill: {step}"),
            )
            _, validation = split_validation(len(rows), self.schedule.validation_share, self.seed)
            likeness = teaching.likeness(validation)
        trainee.module = student.module
        return (student.made, *measure_size(trainee).since(before), *_told(report), likeness)


def _rows(trainee: "Trainee") -> "Rows":
    if trainee.rows is None:
        raise DataFileError("distillation needs rows to learn from; give them with --data (labels are not needed)")
    return trainee.rows


def _told(report: FitReport) -> tuple[str, ...]:
    """What the training did, in words."""
    trained = f"trained on {report.train_rows} rows, epochs: {report.epochs}"
    if not report.epochs:
        return ("not trained: epochs = 0",)
    if report.validation_rows:
        trained += f" (kept: {report.best_epoch}), validation loss {report.first_loss:.4g} -> {report.best_loss:.4g}"
    return trained, *report.notes
