"""What was asked, what was said to it, and whether that is right. Pure.

ok      the values, the id and a version that may answer
shed    refused because there is too much to do: 503 or 429 with Retry-After, RESOURCE_EXHAUSTED
error   refused or failed in so many words: any other status with a body in JSON, any other code from the server
wrong   an answer, but not that one
lost    no answer: reset, closed, timed out, or not to be read
"""

from typing import Literal, NamedTuple

from scorecard.known import expected

__all__ = ["Answered", "Kind", "Question", "Said", "judge"]

Kind = Literal["ok", "shed", "error", "wrong", "lost"]
"""ok: the values, the id and a version that may answer. shed: refused because there is too much to do, by 503 or 429
with Retry-After, or RESOURCE_EXHAUSTED. error: refused or failed in so many words, by any other status with a body in
JSON, or any other code that the server sent. wrong: an answer, but not that one. lost: no answer; reset, closed, timed
out, or not to be read.
"""


class Question(NamedTuple):
    """Request `number` asks version `asked` ("" for none, or an alias) for `rows` rows that no other request has."""

    number: int
    asked: str = ""
    rows: int = 1

    @property
    def id(self) -> str:
        """What goes with the request and must come back with its answer."""
        return f"q{self.number}"

    def expected(self, version: str) -> list[float]:
        """What that version must answer, row by row; nothing for what is no version."""
        if not version.isdecimal():
            return []
        return [value for row in range(self.rows) for value in expected(self.number * self.rows + row, int(version))]


class Said(NamedTuple):
    """What came back. `status` is HTTP's, or gRPC's by name (`OK`); `fault` says why nothing came."""

    status: str = ""
    id: str = ""
    version: str = ""
    values: list[float] | None = None
    retry_after: bool = False
    text: str = ""
    explained: bool = True
    fault: str = ""


class Answered(NamedTuple):
    """What became of one request; times in seconds since the load's first instant. `told` says what is not ok."""

    number: int
    way: str
    asked: str
    due_s: float
    sent_s: float
    done_s: float
    kind: Kind
    status: str
    version: str
    told: str

    @property
    def latency_s(self) -> float:
        """From when it was due to its end."""
        return self.done_s - self.due_s


_GOOD = ("200", "OK")


def judge(question: Question, said: Said) -> tuple[Kind, str]:
    """The kind, and for all but `ok` what was seen."""
    if said.fault:
        return "lost", said.fault
    if said.status not in _GOOD:
        busy = said.status == "RESOURCE_EXHAUSTED" or (said.status in ("503", "429") and said.retry_after)
        return "shed" if busy else "error" if said.explained else "lost", f"{said.status}: {said.text[:200]}"
    if said.values is None:
        return "lost", f"{said.status}, but no tensor: {said.text[:200]}"
    fault = _fault(question, said, said.values)
    return ("wrong", fault) if fault else ("ok", "")


def _fault(question: Question, said: Said, values: list[float]) -> str:
    """What is wrong with an answer, if anything. One that names no version is of the one asked for, or the first."""
    if said.id != question.id:
        return f"the answer is for {said.id!r}, the question was {question.id}"
    if question.asked.isdecimal() and said.version not in ("", question.asked):
        return f"asked of version {question.asked}, answered by {said.version}"
    wanted = question.expected(said.version or question.asked or "1")
    if values != wanted:
        return f"version {said.version!r} made {values[:4]} of {question.id}, not {wanted[:4]}"
    return ""
