"""Training by mini-batches."""

from typing import Annotated

import msgspec

__all__ = ["Schedule"]


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long and how fast to train; `validation_share` of the rows decide when to stop."""

    epochs: Annotated[int, msgspec.Meta(ge=0)] = 20
    batch_rows: Annotated[int, msgspec.Meta(ge=1)] = 32
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1e-3
    warmup_share: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.1
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 0.01
    patience_epochs: Annotated[int, msgspec.Meta(ge=1)] = 5
    validation_share: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.1
