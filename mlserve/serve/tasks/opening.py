"""Which task a version carries, by the files and facts of its artifact."""

from mlserve.model.processing import takes_text
from mlserve.serve.batching.batcher import Batcher
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.settings import BatchSettings
from mlserve.serve.tasks.answers import Answers
from mlserve.serve.tasks.carried import Carried
from mlserve.serve.tasks.task import Task
from mlserve.wire.signature import Signature

__all__ = ["open_task"]


def open_task(
    carried: Carried, signature: Signature, batcher: Batcher, turn: LoopTurn, limits: BatchSettings
) -> Task | None:
    """What the version does for a person; None when it takes tensors only. `batcher` runs the model itself.

    Neither the tokenizer's library nor that of images is loaded for a model that does without. Raises DataFileError for
    a tokenizer that cannot be read.
    """
    processing = carried.processing
    specs = [field.spec for field in signature.inputs.values()]
    rows = specs[0].shape[0] if specs and specs[0].shape else 0
    if rows != 1 and not isinstance(rows, str):  # a person's values seldom come in just that number
        return None
    answers = Answers(processing.answer, carried.labels)
    max_rows = limits.max_rows if signature.together else 1
    if processing.text is not None and takes_text(specs):
        from mlserve.serve.tasks.text import TextTask

        return TextTask(
            carried.tokenizer, signature, batcher, turn, answers,
            max_rows=max_rows, most_values=limits.max_waiting_rows,
        )  # fmt: skip
    if processing.image is not None and len(specs) == 1:
        from mlserve.serve.tasks.image import ImageTask

        return ImageTask(
            processing.image, signature, batcher, turn, answers,
            max_rows=max_rows, most_values=limits.max_waiting_rows,
        )  # fmt: skip
    return None
