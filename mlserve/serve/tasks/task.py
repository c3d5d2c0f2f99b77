"""The seam between dialects and what a model means: a person's texts or images in, labels or embeddings out."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import msgspec

__all__ = ["Asked", "Task", "TaskAnswer", "TaskKind"]

TaskKind = Literal["text", "image"]

TaskAnswer = dict[str, Any]
"""One row's answer, as JSON values: `{"label": "spam", "score": 0.95}`, `{"embedding": [...]}`."""


class Asked(msgspec.Struct):
    """What a person has, one value a row: texts, or images as the bytes of a PNG, JPEG, WebP, GIF or BMP file.

    `form` is for the dialect to remember how it was asked (one value or a list, by row or by column).
    """

    values: Sequence[str] | Sequence[bytes]
    id: str = ""
    form: Any = None


class Task(Protocol):
    """What a served model does for a person.

    `answer` gives one answer a value, in order; reading (tokenizing, decoding) is batched over requests and happens off
    the event loop. It raises InvalidRequest for a value that cannot be read, and what the batcher raises.
    `example` is a value that it takes. `idle`: nothing of it waits or runs, though the model itself may run for others.
    """

    kind: TaskKind
    example: str | bytes

    @property
    def idle(self) -> bool: ...

    async def answer(self, values: Sequence[str] | Sequence[bytes]) -> list[TaskAnswer]: ...

    def close(self) -> None: ...
