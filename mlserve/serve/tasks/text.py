"""From texts to answers: tokenized in batches, run in batches by length, and told what it means."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import Array, Tensors, TensorSpec
from mlserve.model.tokens import padding_id
from mlserve.serve.batching.batcher import Batcher
from mlserve.serve.batching.future import run
from mlserve.serve.batching.lengths import LadderSignature
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.tasks.answers import Answers
from mlserve.serve.tasks.reading import Reader
from mlserve.serve.tasks.task import TaskAnswer, TaskKind
from mlserve.wire.signature import InferRequest, Signature

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["TextTask", "TokenInputs", "Tokens"]

# Texts that are tokenized at once.
_READ_ROWS = 64
# What is behind so many characters a token is not looked at: no language has words of that length, and a tokenizer
# takes milliseconds for a thousand characters that it cannot part.
_CHARACTERS_PER_TOKEN = 32


class Tokens(NamedTuple):
    """One text: the arrays are [tokens], `words` are the tokens as the tokenizer writes them (empty if not wanted)."""

    ids: Array
    type_ids: Array
    truncated: bool
    words: list[str]


class TokenInputs:
    """A model's inputs from tokens.

    `fixed` is the only length that it takes, None for any; `fill` is what stands behind the end of a text.
    """

    def __init__(self, specs: Sequence[TensorSpec], fill: int) -> None:
        length = specs[0].shape[1]
        self.fixed = length if isinstance(length, int) else None
        self._dtypes = {spec.name: spec.dtype for spec in specs}
        self._fill = fill

    def stacked(self, texts: Sequence[Tokens]) -> Tensors:
        """Every text as a row of each input, padded to the longest: name -> [rows, longest]."""
        length = self.fixed or max(len(text.ids) for text in texts)
        values = {"input_ids": (self._fill, [text.ids for text in texts])}
        if "token_type_ids" in self._dtypes:
            values["token_type_ids"] = (0, [text.type_ids for text in texts])
        if "attention_mask" in self._dtypes:
            values["attention_mask"] = (0, [np.ones(len(text.ids), np.int64) for text in texts])
        return {name: _padded(values[name], length, dtype) for name, dtype in self._dtypes.items()}


class TextTask:
    """What a model that carries a tokenizer does for a person."""

    kind: TaskKind = "text"
    example: str | bytes = "Is this email spam?"

    def __init__(
        self, tokenizer: "Tokenizer", signature: Signature, batcher: Batcher, turn: LoopTurn, answers: Answers,
        *, max_rows: int, most_values: int,
    ) -> None:  # fmt: skip
        """At most `max_rows` texts run together, and `most_values` may come in one request, or wait."""
        self._signature, self._batcher, self._turn, self._answers = signature, batcher, turn, answers
        self._max_rows = max_rows
        self._inputs = TokenInputs([field.spec for field in signature.inputs.values()], padding_id(tokenizer))
        tokenizer.no_padding()
        if self._inputs.fixed:
            tokenizer.enable_truncation(self._inputs.fixed)
        # No method: the task would hold itself through its reader, until the collector comes.
        tokenize = partial(_tokenized, tokenizer, words=answers.as_they_are)
        self._reader = Reader(signature.name, tokenize, turn, _READ_ROWS, most_values)
        self._asked = 0

    @property
    def idle(self) -> bool:
        """Whether nothing that was asked is still being answered."""
        return not self._asked

    async def answer(self, values: Sequence[str] | Sequence[bytes]) -> list[TaskAnswer]:
        """One answer for each of `values`, in order; `truncated` where the end of a text was not looked at.

        Raises InvalidRequest for what is no text, and what the batchers raise.
        """
        self._asked += 1
        try:
            return await self._answer(values)
        finally:
            self._asked -= 1

    def close(self) -> None:
        """Stops tokenizing."""
        self._reader.close()

    async def _answer(self, values: Sequence[str] | Sequence[bytes]) -> list[TaskAnswer]:
        texts: list[Tokens] = await self._reader.read(values)
        groups = self._groups(texts)
        found = await asyncio.gather(*[self._run([texts[number] for number in group]) for group in groups])
        answers: list[TaskAnswer] = [{}] * len(texts)
        for group, part in zip(groups, found, strict=True):
            for number, answer in zip(group, part, strict=True):
                answers[number] = answer
        return answers

    def _groups(self, texts: Sequence[Tokens]) -> list[list[int]]:
        """The numbers of those texts that run as one request: of about one length, or of exactly one where padding
        would change or stay in the answer.
        """
        signature = self._signature
        key: Callable[[int], int] = lambda length: self._inputs.fixed or length  # noqa: E731  # one of two
        if isinstance(signature, LadderSignature) and not self._answers.as_they_are:
            key = signature.step
        numbers: dict[int, list[int]] = {}
        for number, text in enumerate(texts):
            numbers.setdefault(key(len(text.ids)), []).append(number)
        most = self._max_rows
        return [group[start : start + most] for group in numbers.values() for start in range(0, len(group), most)]

    async def _run(self, texts: Sequence[Tokens]) -> list[TaskAnswer]:
        inputs = self._inputs.stacked(texts)
        request = InferRequest(inputs, len(texts) if self._signature.together else 1)
        answered = await run(self._batcher, request, self._signature, self._turn)
        answers = self._answers(answered.outputs, inputs.get("attention_mask"))
        for text, answer in zip(texts, answers, strict=True):
            if text.words:
                answer["tokens"] = text.words
            if text.truncated:
                answer["truncated"] = True
        return answers


def _tokenized(tokenizer: "Tokenizer", values: Sequence[Any], *, words: bool) -> list[Tokens | InvalidRequest]:
    """What each value became, or why it became nothing; with the tokens as `words`, if wanted."""
    most_characters = _CHARACTERS_PER_TOKEN * tokenizer.truncation["max_length"]
    found: list[Tokens | InvalidRequest | None] = [_fault(value) for value in values]
    good = [position for position, fault in enumerate(found) if fault is None]
    texts = [values[position][:most_characters] for position in good]
    for position, text, encoding in zip(good, texts, tokenizer.encode_batch(texts), strict=True):
        if not encoding.ids:
            found[position] = InvalidRequest("the text has no token that the model knows; send some words")
            continue
        found[position] = Tokens(
            np.array(encoding.ids, np.int64),
            np.array(encoding.type_ids, np.int64),
            bool(encoding.overflowing) or len(text) < len(values[position]),
            encoding.tokens if words else [],
        )
    return [item for item in found if item is not None]


def _fault(value: Any) -> InvalidRequest | None:
    """What keeps `value` from being tokenized."""
    if not isinstance(value, str):
        return InvalidRequest("this model takes texts; send strings")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return InvalidRequest(f"character {error.start} of the text is half of a surrogate pair; send whole ones")
    return None


def _padded(value: tuple[int, Sequence[Array]], length: int, dtype: str) -> Array:
    fill, rows = value
    array = np.full((len(rows), length), fill, dtype)
    for position, row in enumerate(rows):
        array[position, : len(row)] = row
    return array
