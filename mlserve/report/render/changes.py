"""What changed between two reports, as a reader sees it: the same words on the terminal and in Markdown."""

from collections.abc import Sequence

import msgspec

from mlserve.report.diff import Change, Diff, FigureChange, ResultDiff
from mlserve.report.render.markdown import plain, table
from mlserve.units import format_bytes, format_duration, format_rate, format_ratio

__all__ = ["HEADINGS", "OWN", "SHARED", "FigureWords", "arrow", "diff_markdown", "figure_words", "method"]

SHARED, OWN = "Conditions that differ", "Conditions of its own"
HEADINGS = ("Figure", "Before", "After", "Change", "Interval", "Finding")


class FigureWords(msgspec.Struct, frozen=True):
    """One figure as texts, in the order of `HEADINGS`; `finding` says why where nothing was found."""

    name: str
    before: str
    after: str
    change: str
    interval: str
    finding: str


def figure_words(figure: FigureChange) -> FigureWords:
    """Latencies, rates and sizes change by a ratio, shares by points."""
    shown = {"s": format_duration, "share": lambda share: f"{share:.2%}", "per_s": format_rate, "bytes": format_bytes}
    changed = (lambda share: f"{100 * share:+.2f} pt") if figure.unit == "share" else format_ratio
    before, after = ("-" if value is None else shown[figure.unit](value) for value in (figure.before, figure.after))
    bounds = [changed(value) for value in (figure.low, figure.high) if value is not None]
    return FigureWords(
        figure.name,
        before,
        after,
        "-" if figure.change is None else changed(figure.change),
        " to ".join(bounds) or "-",
        f"{figure.finding} ({figure.remark})" if figure.remark else figure.finding,
    )


def arrow(change: Change) -> str:
    """`Keep fp32 → Serve int8`; `VALID (2 of 2 runs), as before`."""
    same = change.before == change.after
    return f"{change.before}, as before" if same else f"{change.before} → {change.after}"


def method(diff: Diff) -> str:
    """What the intervals hold for."""
    confidences = {figure.confidence for one in diff.results for figure in one.figures if figure.confidence}
    if not confidences:
        return "No figure has an interval on both sides."
    if max(confidences) <= 0.9:
        return (
            "Each interval, from the ends of those in the two reports, holds with at least 90%. Give the folders of "
            "the runs for narrower ones."
        )
    return "The intervals, from the rows of all runs, hold together with 95%. Whether it got worse: mlserve gate."


def diff_markdown(diff: Diff) -> str:
    """What changed, for a pull request."""
    sections = [
        f"# {plain(diff.before)} → {plain(diff.after)}",
        f"**{plain(arrow(diff.pick))}**",
        _changes(SHARED, diff.conditions) or "No condition differs for all results.",
        *(_result(one) for one in diff.results),
        *(f"Only before: {plain(name)}." for name in diff.only_before),
        *(f"Only after: {plain(name)}." for name in diff.only_after),
        plain(method(diff)),
    ]
    return "\n\n".join(sections) + "\n"


def _result(one: ResultDiff) -> str:
    figures = [msgspec.structs.astuple(figure_words(figure)) for figure in one.figures]
    parts = [
        f"## {plain(one.variant)}, {plain(one.load)}",
        f"Certificate: {plain(arrow(one.certificate))}",
        _changes(OWN, one.conditions),
        table(HEADINGS, figures),
    ]
    return "\n\n".join(part for part in parts if part)


def _changes(heading: str, changes: Sequence[Change]) -> str:
    if not changes:
        return ""
    lines = [(change.name, change.before, change.after) for change in changes]
    return f"{heading}:\n\n{table(('Condition', 'Before', 'After'), lines)}"
