"""One answer to "why is it not fast?": what was seen, why, what to type next, and what that can bring at most."""

import shlex
from collections.abc import Callable

import msgspec

from mlserve.optimize.diagnose.facts import Facts, Profile

__all__ = ["Finding", "diagnose_again", "largest", "optimize_again", "percent", "serve_it"]

_DEFAULT_STORE = "store"
_ROWS = "ROWS.npz"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """`saves_at_most` is an upper bound: the share of the time of one run of `batch_rows` rows that this concerns, 0 to
    1. What mending it brings in truth is for the next measurement to say.
    """

    name: str
    title: str
    seen: str
    why: str
    commands: tuple[str, ...]
    saves_at_most: float
    batch_rows: int


def largest(facts: Facts, share: Callable[[Profile], float]) -> tuple[float, Profile]:
    """The batch size at which `share` is largest, and that share."""
    profile = max(facts.profiles, key=share)
    return share(profile), profile


def percent(share: float) -> str:
    """`0.354` -> `35%`; what is not nothing never reads as nothing."""
    return "under 1%" if 0 < share < 0.01 else f"{share:.0%}"


def optimize_again(facts: Facts, *flags: str, data: bool = False) -> str:
    """The command that makes other variants from the model's original; with the user's rows where it needs some."""
    subject = facts.subject
    rows = ["--data", subject.data or _ROWS] if data or subject.data else []
    named = ["--name", subject.name] if subject.name else []
    return shlex.join(["mlserve", "optimize", subject.source, *named, *flags, *rows, *_store(facts)])


def serve_it(facts: Facts, *flags: str, ref: str = "") -> str:
    """The command that serves the model, or the one `ref` names, in another way."""
    return shlex.join(["mlserve", "serve", ref or facts.subject.ref, *flags, *_store(facts)])


def diagnose_again(facts: Facts, *flags: str) -> str:
    """The command that looks again under other conditions."""
    return shlex.join(["mlserve", "diagnose", facts.subject.ref, *flags, *_store(facts)])


def _store(facts: Facts) -> list[str]:
    return ["--store", facts.subject.store] if facts.subject.store != _DEFAULT_STORE else []
