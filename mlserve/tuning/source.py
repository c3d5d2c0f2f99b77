"""What is loaded, and where models and rows come from."""

from pathlib import Path

import msgspec

from mlserve.bench.payload.payload import PayloadWish
from mlserve.bench.target import Header, Target, is_url, parse_target
from mlserve.bench.trust import Trust
from mlserve.runs.load import Protocol

__all__ = ["Contender", "Source"]


class Contender(msgspec.Struct, frozen=True):
    """What is loaded: a URL, NAME[@VERSION|@ALIAS] or FILE.onnx. `name` is what tables call it."""

    where: str
    name: str

    @property
    def running(self) -> bool:
        """Whether it is a server that runs already."""
        return is_url(self.where)

    @property
    def is_file(self) -> bool:
        """Whether it is a file, and no name of the store."""
        return not self.running and (self.where.endswith(".onnx") or Path(self.where).is_file())


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where models and rows come from.

    Where a server runs already, `model` is the one asked for if its URL names none, `inputs` the model or file that
    says what it takes if it does not; `template`, `answer`, `headers` and `trust` say how it is asked, and `metrics` is
    the page of its counters.
    """

    store: Path
    wish: PayloadWish = PayloadWish()
    model: str = ""
    inputs: str = ""
    template: str = ""
    answer: str = ""
    headers: tuple[Header, ...] = ()
    trust: Trust | None = None
    metrics: str = ""

    def target(self, where: str, protocol: Protocol | None = None) -> Target:
        """The server behind the URL `where`. Raises UsageError as `parse_target` does."""
        return parse_target(
            where,
            self.model,
            protocol,
            template=self.template,
            answer=self.answer,
            headers=self.headers,
            trust=self.trust,
        )
