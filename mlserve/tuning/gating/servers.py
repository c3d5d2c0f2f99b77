"""The servers of a gate's two sides: a fresh one for every run, or two that stay up."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Self

from mlserve.errors import BenchError, MlserveError, UsageError
from mlserve.tuning.gating.side import Side
from mlserve.tuning.opening import SubjectOf

__all__ = ["OpensSide", "Servers", "SideBroke"]

OpensSide = Callable[[Side], AbstractContextManager[SubjectOf]]
"""How a side is opened for as long as a block lasts."""


class SideBroke(BenchError):
    """The server of `side`, "base" or "candidate", did not start, crashed, or could not be asked."""

    def __init__(self, side: str, message: str) -> None:
        super().__init__(message)
        self.side = side


class Servers:
    """Opens `sides`. What one process is lucky in, such as where its memory lies, lasts as long as it: so that every
    run has a process of its own, unless `keep` leaves both up. They share the cores, and one is loaded at a time,
    if only for a tenth of a second.

    Raises SideBroke for whatever goes wrong with a server, and UsageError for what was asked of it wrongly; both name
    the side.
    """

    def __init__(self, opens: OpensSide, sides: Mapping[str, Side], *, keep: bool) -> None:
        self._opens, self._sides, self._keep = opens, sides, keep
        self._stack = ExitStack()
        self._open: dict[str, SubjectOf] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.restart()

    def restart(self) -> None:
        """Stops what is up; the next run starts it again."""
        self._open.clear()
        self._stack.close()

    @contextmanager
    def asked(self, name: str) -> Iterator[SubjectOf]:
        """The side called `name`, for one run."""
        with ExitStack() as stack, self.blaming(name):
            yield self._kept(name) if self._keep else stack.enter_context(self._opens(self._sides[name]))

    @contextmanager
    def blaming(self, name: str) -> Iterator[None]:
        """Whatever goes wrong in the block is that side's; what is another's already stays so."""
        try:
            yield
        except SideBroke:
            raise
        except UsageError as error:
            raise UsageError(f"{name} ({self._sides[name].name}): {error}") from error
        except MlserveError as error:
            raise SideBroke(name, f"{name} ({self._sides[name].name}): {error}") from error

    def _kept(self, name: str) -> SubjectOf:
        if name not in self._open:
            self._open[name] = self._stack.enter_context(self._opens(self._sides[name]))
        return self._open[name]
