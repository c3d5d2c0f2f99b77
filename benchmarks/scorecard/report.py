"""The scorecard, written down: what is not passed first, then every test with its figures and its control."""

import math
from collections.abc import Iterable, Sequence

import msgspec
from scorecard.case import Figure, Form
from scorecard.catalogue import GROUPS, group_of
from scorecard.playing import Played

from mlserve.runs.machine import Machine

__all__ = ["Scorecard", "render", "show_figure"]

# Section 4's headline numbers, and the tests that measure them.
_HEADLINES = (
    ("Requests lost over hot swaps", ("B3",)),
    ("Requests lost over SIGTERMs under load", ("B1",)),
    ("Goodput at three times the capacity, and how soon the rest is told", ("A2", "A3")),
    ("A killed worker: recovery, and failed requests", ("C1",)),
    ("Bad input: answers 5xx, and crashes", ("D1", "D2", "D3")),
    ("Ways in without a right to it", ("E1",)),
    ("Memory over time", ("F1",)),
)


class Scorecard(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` holds. `cut_short`: not all that was wanted was played. `command` plays it again."""

    version: str
    commit: str
    date: str
    command: str
    form: Form
    url: str
    machine: Machine
    load_average: float
    played: list[Played]
    cut_short: bool = False

    @property
    def score(self) -> tuple[int, int]:
        """How many passed, of how many."""
        return sum(one.passed for one in self.played), len(self.played)


def render(card: Scorecard) -> str:
    """The report, as Markdown."""
    passed, of = card.score
    lines = [
        "# Scorecard",
        "",
        f"**{passed} of {of} passed**" + (" (cut short: the rest was not played)" if card.cut_short else "") + ".",
        "",
        *_about(card),
        "",
        "| group | passed | tests |",
        "|---|---:|---:|",
        *_groups(card.played),
        "",
        "A test passes when its criterion holds and its control is found out: the same judgement, of a server whose "
        "protection is off or that has the fault planted, must say that it did not pass."
        if not card.url
        else "A server that somebody else started has no controls; what needs one of ours is not played.",
        "",
    ]
    failed = [one for one in card.played if not one.passed]
    lines += ["## Not passed", "", *(_failures(failed) if failed else ["Nothing."]), ""]
    lines += ["## In short", "", *_headlines(card.played), ""]
    for letter, title in GROUPS.items():
        members = [one for one in card.played if group_of(one.id) == letter]
        if members:
            lines += [f"## {letter}. {title}", ""]
            for one in members:
                lines += [*_test(one), ""]
    return "\n".join(lines).rstrip() + "\n"


def show_figure(figure: Figure) -> str:
    """`shed p99 3.1 ms (at most 20)`."""
    value = figure.value
    if math.isnan(value):
        text = "-"
    elif value == int(value) and abs(value) < 1e15:
        text = f"{int(value):,}"
    else:
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return (
        f"{figure.name} {text}"
        + (f" {figure.unit}" if figure.unit else "")
        + (f" ({figure.limit})" if figure.limit else "")
    )


def _about(card: Scorecard) -> list[str]:
    machine = card.machine
    whose = f"a foreign server at {card.url}" if card.url else f"mlserve {card.version} ({card.commit})"
    memory = f"{machine.memory_bytes / 2**30:.0f} GiB"
    where = f"{machine.cpu}, {machine.cores} cores, {memory}, {machine.system}, Python {machine.python}"
    return [
        f"Of {whose}, {card.date}, form `{card.form}`, by `{card.command}`.",
        f"Machine: {where}; load average before: {card.load_average:.1f}.",
    ]


def _groups(played: Sequence[Played]) -> list[str]:
    rows = []
    for letter, title in GROUPS.items():
        members = [one for one in played if group_of(one.id) == letter]
        if members:
            rows.append(f"| {letter}. {title} | {sum(one.passed for one in members)} | {len(members)} |")
    return rows


def _failures(failed: Iterable[Played]) -> list[str]:
    return [f"- **{one.id} {one.title}**: {_one_line(one.reason)}" for one in failed]


def _headlines(played: Sequence[Played]) -> list[str]:
    by_id = {one.id: one for one in played}
    lines = []
    for title, ids in _HEADLINES:
        known = [by_id[each] for each in ids if each in by_id]
        if not known:
            continue
        told = "; ".join(f"{one.id}: {_figures(one) or _one_line(one.reason)}" for one in known)
        lines.append(f"- {title}. {told}")
    return lines


def _test(one: Played) -> list[str]:
    lines = [f"### {one.id} {one.title}: {'passed' if one.passed else 'not passed'}", ""]
    if one.criterion:
        lines.append(f"- Criterion: {_one_line(one.criterion)}" + (f" ({one.source})" if one.source else ""))
    if one.outcome is None:
        return [*lines, f"- {_one_line(one.fault)}"]
    lines.append(f"- Found: {_one_line(one.outcome.found)}")
    if one.outcome.figures:
        lines.append(f"- Figures: {_figures(one)}")
    if one.outcome.control:
        verdict = "not passed, as it must" if one.outcome.control_failed else "PASSED, so the test says nothing"
        lines.append(f"- Control: {_one_line(one.outcome.control)} ({verdict})")
    return [*lines, f"- Took {one.took_s:.0f} s"]


def _figures(one: Played) -> str:
    return ", ".join(map(show_figure, one.outcome.figures)) if one.outcome else ""


def _one_line(text: str) -> str:
    """Safe in a list of Markdown."""
    return " ".join(text.split()).replace("|", "\\|")
