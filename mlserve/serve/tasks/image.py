"""From images to answers: decoded in batches on a thread of its own, run in batches, and told what it means."""

import asyncio
import io
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from mlserve.errors import InvalidRequest, Overloaded
from mlserve.model.pixels import BadImage, open_image, pixels
from mlserve.model.processing import ImageInput
from mlserve.model.tensors import Array
from mlserve.serve.batching.batcher import Batcher
from mlserve.serve.batching.future import run
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.tasks.answers import Answers
from mlserve.serve.tasks.reading import Reader
from mlserve.serve.tasks.task import TaskAnswer, TaskKind
from mlserve.wire.signature import InferRequest, Signature

__all__ = ["ImageTask"]

# Images that are decoded before any of them goes on; each is unpacked alone.
_READ_ROWS = 8
# What decoded images may take while they wait: a small file becomes a large array.
_MOST_DECODED_BYTES = 512 << 20


class ImageTask:
    """What a model that reads images does for a person."""

    kind: TaskKind = "image"
    example: str | bytes

    def __init__(
        self, form: ImageInput, signature: Signature, batcher: Batcher, turn: LoopTurn, answers: Answers,
        *, max_rows: int, most_values: int,
    ) -> None:  # fmt: skip
        """At most `max_rows` images run together, and `most_values` may come in one request, or wait."""
        self._signature, self._batcher, self._turn = signature, batcher, turn
        self._answers, self._max_rows = answers, max_rows
        (self._input,) = signature.inputs.values()
        image_bytes = int(np.prod(form.shape)) * self._input.dtype.itemsize
        self._most = max(1, min(most_values, _MOST_DECODED_BYTES // image_bytes))
        # No method: the task would hold itself through its reader, until the collector comes.
        decode = partial(_decoded, form, self._input.spec.dtype)
        self._reader = Reader(signature.name, decode, turn, _READ_ROWS, self._most)
        self._asked = self._held = 0
        self.example = _example(form)

    @property
    def idle(self) -> bool:
        """Whether nothing that was asked is still being answered."""
        return not self._asked

    async def answer(self, values: Sequence[str] | Sequence[bytes]) -> list[TaskAnswer]:
        """One answer for each of `values`, in order.

        Raises InvalidRequest for what is no image, Overloaded where too many wait, and what the batchers raise.
        """
        if self._held and self._held + len(values) > self._most:
            raise Overloaded(f"{self._held} images wait, the limit is {self._most}; retry later")
        self._asked += 1
        self._held += len(values)
        try:
            images: list[Array] = await self._reader.read(values)
            parts = [images[start : start + self._max_rows] for start in range(0, len(images), self._max_rows)]
            found = await asyncio.gather(*[self._run(part) for part in parts])
        finally:
            self._asked -= 1
            self._held -= len(values)
        return [answer for part in found for answer in part]

    def close(self) -> None:
        """Stops decoding."""
        self._reader.close()

    async def _run(self, images: Sequence[Array]) -> list[TaskAnswer]:
        request = InferRequest({self._input.name: np.stack(images)}, len(images) if self._signature.together else 1)
        answered = await run(self._batcher, request, self._signature, self._turn)
        return self._answers(answered.outputs)


def _decoded(form: ImageInput, dtype: str, values: Sequence[Any]) -> list[Array | InvalidRequest]:
    """What each value became, or why it became nothing."""
    return [_pixels(form, dtype, value) for value in values]


def _pixels(form: ImageInput, dtype: str, value: Any) -> Array | InvalidRequest:
    if not isinstance(value, bytes | bytearray | memoryview):
        return InvalidRequest("this model takes images; send the bytes of an image file")
    try:
        with open_image(io.BytesIO(value)) as image:
            return pixels(image, form, dtype)
    except (BadImage, OSError) as error:
        return InvalidRequest(f"the image cannot be read: {error}"[:300])


def _example(form: ImageInput) -> bytes:
    """A gray image of the model's size, as a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (form.width, form.height), 128).save(file, "PNG")
    return file.getvalue()
