"""From what is known, asked for and loaded to what is served next, what to load, and what the index tells. Pure."""

from collections.abc import Collection, Iterator, Mapping

import msgspec

from mlserve.serve.catalog import IndexEntry
from mlserve.serve.settings import EVERY_NAME
from mlserve.serve.versions.agreement import Asked
from mlserve.serve.versions.attempts import Failure, Key
from mlserve.serve.versions.policy import Choice, Known, Wanted, Words, by_age, kept, settle, want

__all__ = ["Plan", "choices", "index_entries", "make_plan"]


class Plan(msgspec.Struct, frozen=True):
    """What follows for one worker.

    `wants` and `words` are by name, `keep` are the loaded versions that are served, `missing` the versions to be
    loaded, in that order: those that a request without a version is for come first.
    """

    wants: Mapping[str, Wanted] = {}
    words: Mapping[str, Words] = {}
    keep: frozenset[Key] = frozenset()
    missing: tuple[Key, ...] = ()


def choices(asked: Asked, known: Collection[str]) -> dict[str, Choice]:
    """What was asked of every name, `*` told apart."""
    named = {name: choice for name, choice in asked.names.items() if name != EVERY_NAME}
    rest = asked.names.get(EVERY_NAME)
    return ({} if rest is None else dict.fromkeys(known, rest)) | named


def make_plan(
    asked: Asked, known: Mapping[str, Known], loaded: Mapping[Key, tuple[int, ...]], before: Mapping[str, Words]
) -> Plan:
    """`loaded` are the loaded versions and the marks of what they were loaded from; `before` is what words mean now."""
    wants = {name: want(known.get(name, Known()), choice) for name, choice in choices(asked, known.keys()).items()}
    words: dict[str, Words] = {}
    keep: set[Key] = set()
    for name in sorted(wants.keys() | {name for name, _ in loaded}):
        wanted = wants.get(name)
        versions = {version for each, version in loaded if each == name}
        words[name] = settle(wanted, versions, before.get(name, Words()))
        keep |= {(name, version) for version in kept(wanted, versions, words[name])}
    missing = [
        (name, version)
        for name, wanted in sorted(wants.items())
        for version in _by_need(wanted)
        if loaded.get((name, version)) != known[name].versions[version].mark
    ]
    return Plan(wants, words, frozenset(keep), tuple(missing))


def index_entries(
    plan: Plan, known: Mapping[str, Known], failures: Mapping[Key, Failure], leaving: Collection[Key], *, whole: bool
) -> tuple[IndexEntry, ...]:
    """What the index tells of versions that do not answer; `whole`: also of those that nobody asked for."""
    entries: dict[Key, IndexEntry] = {key: IndexEntry(*key, "UNLOADING") for key in leaving}
    if whole:
        entries = {key: IndexEntry(*key, "UNAVAILABLE", "unloaded") for key in _all(known)} | entries
    for name, wanted in plan.wants.items():
        for alias, version in wanted.aliases.items():
            if version not in known[name].versions:
                reason = f"the alias '{alias}' means it, but the store does not have it"
                entries[name, version] = IndexEntry(name, version, "UNAVAILABLE", reason)
    for key in plan.missing:
        failure = failures.get(key)
        entries[key] = IndexEntry(*key, "UNAVAILABLE", failure.reason) if failure else IndexEntry(*key, "LOADING")
    return tuple(entry for key, entry in sorted(entries.items()) if key not in plan.keep)


def _by_need(wanted: Wanted) -> list[str]:
    """The version that a request without one is for, then the newest first."""
    newest_first = by_age(wanted.versions)[::-1]
    return sorted(newest_first, key=lambda version: version != wanted.default)


def _all(known: Mapping[str, Known]) -> Iterator[Key]:
    return ((name, version) for name, each in known.items() for version in each.versions)
