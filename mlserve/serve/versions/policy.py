"""Which versions of a name are served, and what its words (aliases, no version at all) mean. Pure.

    what the store holds + what was asked for -> Wanted          (`want`)
    Wanted + what is loaded + what the words meant -> Words      (`settle`)

**Laws:** a word never means a version that is not loaded; a word that meant a loaded version goes on meaning it until
the version it should mean is loaded; no version that a word means is retired.
"""

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import msgspec

from mlserve.errors import UsageError
from mlserve.model.store import PRODUCTION

__all__ = ["Choice", "Known", "Published", "Wanted", "Words", "by_age", "check_policy", "kept", "settle", "want"]

_LATEST = re.compile(r"latest:([1-9][0-9]{0,3})")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_ALIAS = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,63}")


class Published(msgspec.Struct, frozen=True):
    """A version on disk: its folder or file, and a mark that differs when another was put in its place."""

    path: str
    mark: tuple[int, ...] = ()


class Known(msgspec.Struct, frozen=True):
    """One name: its published versions, and which version each alias points at (it may be missing)."""

    versions: Mapping[str, Published] = {}
    aliases: Mapping[str, str] = {}


class Choice(msgspec.Struct, frozen=True):
    """What was asked of one name.

    `versions` are policy words, separated by commas (`default`, `all`, `latest:N`, a version, an alias); `without` are
    versions that are not to be served all the same. `default` is what a request without a version means, "" for what
    the store says. `asked` is the number of the command that said so.
    """

    versions: str = "default"
    without: tuple[str, ...] = ()
    default: str = ""
    asked: int = 0


class Wanted(msgspec.Struct, frozen=True):
    """The versions to serve, what the words should mean, and which may stand in while a version is not loaded.

    `stand_ins` are known versions, newest first; `without` must go even where a word means it.
    """

    versions: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = {}
    default: str = ""
    stand_ins: tuple[str, ...] = ()
    without: frozenset[str] = frozenset()


class Words(msgspec.Struct, frozen=True):
    """What the words of one name mean now: only versions that are loaded."""

    aliases: Mapping[str, str] = {}
    default: str = ""

    @property
    def versions(self) -> frozenset[str]:
        """The versions that a word means."""
        return frozenset([*self.aliases.values(), *filter(None, [self.default])])


def check_policy(versions: str) -> str:
    """`versions` itself. Raises UsageError for what is no policy."""
    for word in versions.split(","):
        if not (word in ("default", "all") or any(kind.fullmatch(word) for kind in (_LATEST, _VERSION, _ALIAS))):
            raise UsageError(
                f"{versions!r} does not say which versions; use default, all, latest:N, or versions and aliases "
                "separated by commas (3,production)"
            )
    return versions


def by_age(versions: AbstractSet[str] | Sequence[str]) -> list[str]:
    """Oldest first: versions are numbers, published in order."""
    return sorted(versions, key=lambda version: (len(version), version))


def want(known: Known, choice: Choice) -> Wanted:
    """What `choice` asks of a name of which the store knows `known`.

    `all` and `latest:N` bring what the aliases mean with them. Without `choice.default`, a request that names no
    version is for the alias `production` if that is among the versions asked for, else for the newest of them.
    """
    without = frozenset(choice.without)
    newest_first = by_age(known.versions.keys())[::-1]
    production = known.aliases.get(PRODUCTION, newest_first[0] if newest_first else "")
    versions: set[str] = set()
    stand_ins: list[str] = []
    for word in choice.versions.split(","):
        latest = _LATEST.fullmatch(word)
        if word == "default":
            versions.add(production)
        elif word == "all" or latest:
            count = int(latest[1]) if latest else len(newest_first)
            versions |= {*newest_first[:count], *known.aliases.values()}
            stand_ins = newest_first[count:]
        else:
            versions.add(known.aliases.get(word, word))
    if choice.default:
        versions.add(choice.default)
    chosen = frozenset(version for version in versions if version in known.versions and version not in without)
    default = choice.default or known.aliases.get(PRODUCTION, "")
    if default in without or default not in versions:
        default = by_age(chosen)[-1] if chosen else ""
    aliases = {alias: version for alias, version in known.aliases.items() if version in versions - without}
    return Wanted(chosen, aliases, default, tuple(stand_ins), without)


def settle(wanted: Wanted | None, loaded: AbstractSet[str], before: Words) -> Words:
    """What the words mean when `loaded` versions can answer and the words meant `before`.

    `wanted` is None for a name that nobody asks for any more.
    """
    if wanted is None:
        return Words()
    usable = loaded - wanted.without
    aliases = {}
    for alias, version in wanted.aliases.items():
        meant = version if version in usable else before.aliases.get(alias, "")
        if meant in usable:
            aliases[alias] = meant
    promoted = wanted.default == wanted.aliases.get(PRODUCTION)
    default = next((version for version in (wanted.default, before.default) if version in usable), "")
    if not default and not promoted:  # a version that nobody promoted must not take the place of one that was
        default = next(iter(by_age(wanted.versions & usable)[::-1]), "")
    return Words(aliases, default)


def kept(wanted: Wanted | None, loaded: AbstractSet[str], words: Words) -> frozenset[str]:
    """Which of `loaded` go on being served: those wanted, those a word means, and stand-ins for what is missing."""
    if wanted is None:
        return frozenset()
    missing = len(wanted.versions - loaded)
    stand_ins = [version for version in wanted.stand_ins if version in loaded - wanted.versions][:missing]
    return (frozenset(loaded) & (wanted.versions | words.versions | set(stand_ins))) - wanted.without
