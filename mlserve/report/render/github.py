"""A gate's result as GitHub shows it: annotations beside a run, and Markdown for its summary or a comment."""

import re

from mlserve.report.render.gate_figures import GateFigures, GateRow

__all__ = ["render_annotations", "render_comment"]

# What would start markup of some kind, HTML among it, anywhere in a line.
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&])")
_LEVELS = {"fail": "error", "inconclusive": "warning", "pass": "notice", "error": "error"}
_SIGNS = {"fail": "❌", "inconclusive": "❔", "pass": "✅", "error": "❗"}
# So that a comment is found again, and replaced instead of added to; whoever has several gates puts the name of each
# above it, as latency-gate.yml does.
_MARK = "<!-- mlserve gate -->"


def render_annotations(figures: GateFigures) -> list[str]:
    """Workflow commands, one a line: https://docs.github.com/actions/reference/workflow-commands-for-github-actions.

    Every metric that did not pass has one, and the whole has one.
    """
    title = f"mlserve gate: {figures.verdict}"
    told = [_command(_LEVELS[figures.verdict], title, "\n".join([figures.headline, *figures.reasons]))]
    told += [
        _command(_LEVELS[row.verdict], f"{row.metric}: {row.verdict}", f"{row.sentence}\n{row.reason}".strip())
        for row in figures.rows
        if row.verdict != "pass"
    ]
    return told


def render_comment(figures: GateFigures) -> str:
    """Markdown for a step's summary or a pull request's comment."""
    heading = f"### {_SIGNS[figures.verdict]} mlserve gate: {figures.verdict}"
    parts = [_MARK, heading, _text(figures.headline), *([_table(figures.rows)] if figures.rows else [])]
    parts += ["\n".join(f"- {_text(reason)}" for reason in figures.reasons)] if figures.reasons else []
    details = [f"- {_text(note)}" for note in (*figures.facts, *figures.notes)]
    if details:
        parts.append("\n".join(["<details><summary>How it was measured</summary>", "", *details, "", "</details>"]))
    return "\n\n".join(parts) + "\n"


def _table(rows: tuple[GateRow, ...]) -> str:
    headings = ("metric", "base", "candidate", "change", "interval", "limit", "verdict")
    lines = [
        (
            row.metric,
            row.base,
            row.candidate,
            row.change,
            row.interval,
            row.limit,
            f"{_SIGNS[row.verdict]} {row.verdict}",
        )
        for row in rows
    ]
    texts = [" | ".join(map(_text, line)) for line in (headings, *lines)]
    rule = " | ".join(["---"] + ["--:"] * 5 + ["---"])
    return "\n".join(f"| {line} |" for line in (texts[0], rule, *texts[1:]))


def _text(text: str) -> str:
    """`text` on one line, as itself: no markup, and nobody called by an @ in it."""
    return _SPECIAL.sub(r"\\\1", " ".join(_printable(text).split())).replace("@", "@\u200b")


def _command(level: str, title: str, message: str) -> str:
    return f"::{level} title={_property(title)}::{_message(message)}"


def _message(text: str) -> str:
    """Escaped as the runner undoes it; what it does not undo cannot end the line."""
    return _printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() or letter in "\r\n" else " " for letter in text)
