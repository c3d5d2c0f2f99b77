"""Questions whose answers are known: no two hold the same number or text, so that a crossed answer shows."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from mlserve.model.tensors import Array, TensorSpec
from mlserve.serve.settings import ModelSource

__all__ = [
    "CELLS",
    "DEFAULTS",
    "INPUT",
    "OUTPUT",
    "Answer",
    "Question",
    "Verdict",
    "judge",
    "make_models",
    "make_questions",
]

MOST_ROWS, MOST_WIDE = 3, 4
CELLS = MOST_ROWS * MOST_WIDE  # so many ids belong to one request
ONE_BAD_IN = 50

LOOKUP, TEXTS = "lookup", "texts"
# What the versions of `lookup` answer for an id: id * factor + offset.
FORMULA = {"1": (7, 3), "2": (11, 5)}
DEFAULTS = {LOOKUP: "2", TEXTS: "1"}
INPUT = {LOOKUP: TensorSpec("ids", "int64", ("batch", "wide")), TEXTS: TensorSpec("text", "object", ("batch", "wide"))}
OUTPUT = {
    LOOKUP: TensorSpec("found", "int64", ("batch", "wide")),
    TEXTS: TensorSpec("same", "object", ("batch", "wide")),
}

Verdict = Literal["right", "refused", "crossed", "lost"]


class Question(NamedTuple):
    """One request. `version` is empty for the default one; a `bad` one holds an id that there is not."""

    number: int
    model: str
    version: str
    rows: int
    wide: int
    bad: bool
    ids: int  # how many the model knows

    @property
    def values(self) -> Array:
        """What is asked, [rows, wide]: ids or texts that no other question holds."""
        shape = self.rows, self.wide
        ids = np.arange(self.number * CELLS, self.number * CELLS + self.rows * self.wide).reshape(shape)
        if self.model == LOOKUP:
            if self.bad:
                ids[-1, -1] += self.ids
            return ids
        return np.array([f"{cell:x}" * (1 + cell % 3) for cell in ids.ravel().tolist()], object).reshape(shape)

    @property
    def answer(self) -> Array:
        """What a server must answer."""
        if self.model == TEXTS:
            return self.values
        factor, offset = FORMULA[self.version or DEFAULTS[LOOKUP]]
        return self.values * factor + offset


class Answer(NamedTuple):
    """What came back: the values and the version that gave them (empty where the protocol does not say), or a fault."""

    values: Array | None = None
    version: str = ""
    refused: bool = False
    fault: str = ""


def make_questions(count: int, seed: int = 0, ids: int = 0) -> list[Question]:
    """`count` questions of all kinds, in a random order of kinds; the same ones for the same seed.

    The model knows `ids` ids, 0 for those of these questions.
    """
    rng = np.random.default_rng(seed)
    return [
        Question(
            number=number,
            model=TEXTS if texts else LOOKUP,
            version="" if texts else ("", "1", "2")[version],
            rows=rows,
            wide=wide,
            bad=bool(bad == 0 and not texts),
            ids=ids or count * CELLS,
        )
        for number, (texts, version, rows, wide, bad) in enumerate(
            zip(
                (rng.random(count) < 0.25).tolist(),
                rng.integers(3, size=count).tolist(),
                rng.integers(1, MOST_ROWS + 1, count).tolist(),
                rng.integers(1, MOST_WIDE + 1, count).tolist(),
                rng.integers(ONE_BAD_IN, size=count).tolist(),
                strict=True,
            )
        )
    ]


def judge(question: Question, answer: Answer) -> Verdict:
    """Whether `answer` is the one to `question`. A refusal that another question earned is a crossed answer, too."""
    if answer.fault:
        return "lost"
    if question.bad or answer.refused:
        return "refused" if question.bad and answer.refused else "crossed"
    expected_version = question.version or DEFAULTS[question.model]
    if answer.version not in ("", expected_version):
        return "crossed"
    assert answer.values is not None
    same = answer.values.shape == question.answer.shape and bool((answer.values == question.answer).all())
    return "right" if same else "crossed"


def make_models(folder: Path, ids: int) -> tuple[ModelSource, ...]:
    """`lookup` in two versions, which know `ids` ids, and `texts`, which gives back what it gets."""
    from onnx import helper, numpy_helper, save_model

    sources = []
    for name, version in ((LOOKUP, "1"), (LOOKUP, "2"), (TEXTS, "1")):
        table, node = [], helper.make_node("Identity", [INPUT[name].name], [OUTPUT[name].name])
        if name == LOOKUP:
            factor, offset = FORMULA[version]
            table = [numpy_helper.from_array(np.arange(ids, dtype=np.int64) * factor + offset, "table")]
            node = helper.make_node("Gather", ["table", INPUT[name].name], [OUTPUT[name].name])
        values = [
            [
                helper.make_tensor_value_info(
                    spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), spec.shape
                )
            ]
            for spec in (INPUT[name], OUTPUT[name])
        ]
        graph = helper.make_graph([node], name, *values, table)
        path = folder / f"{name}-{version}.onnx"
        save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        sources.append(ModelSource(name, version, str(path)))
    return tuple(sources)
