"""One test of the scorecard: what it asks, and what came of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

__all__ = ["Case", "Figure", "Form", "Outcome", "Stage"]

Form = Literal["seconds", "short", "long"]
"""How thoroughly: in a few seconds (`make test`), within half a minute or so (`make scorecard`), as for a release."""


class Figure(msgspec.Struct, frozen=True):
    """A number worth telling, and what it may be: `shed p99`, 3.1, `ms`, `at most 20`."""

    name: str
    value: float
    unit: str = ""
    limit: str = ""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """`found` says in a sentence what was seen. `control` says what was broken on purpose and what the same test then
    found; `control_failed` whether that was a failure, as it must be for the test to be worth anything.
    """

    passed: bool
    found: str
    figures: tuple[Figure, ...] = ()
    control: str = ""
    control_failed: bool = False


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """Where a case is played: `folder` is its own, empty, and removed afterwards. `url` is that of a foreign server to
    be asked in place of ours (V2 over REST), empty for ours.
    """

    form: Form
    folder: Path
    url: str = ""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """`id` is its name in the list (`A2`), `criterion` when it passes, `source` where that is from.

    `run` None: what it tests is not built yet, for the reason `missing`, and it counts as not passed. `foreign`: it can
    be played against a server that somebody else has started, by its URL.
    """

    id: str
    title: str
    criterion: str
    source: str = ""
    run: Callable[[Stage], Outcome] | None = None
    missing: str = ""
    foreign: bool = False
