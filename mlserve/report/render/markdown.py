"""A report as Markdown, for a pull request or a wiki: the decision and the results, and folded below what proves them.

GitHub takes 65,536 characters as a comment. So only the results are all there however many they are; of what is folded
there are the first few, those of the pick before all others.
"""

import re
from collections.abc import Sequence

import msgspec

from mlserve.report.choice import Choice
from mlserve.report.render import figures
from mlserve.report.render.promise import promise
from mlserve.report.report import Report, Result
from mlserve.report.summary import PERCENTILES

__all__ = ["Drawing", "code", "plain", "render_markdown", "table"]

# What would start markup of some kind, HTML among it, anywhere in a line.
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&])")
_MOST_FOLDED = 24


class Drawing(msgspec.Struct, frozen=True):
    """A chart as a file beside the Markdown: its path from there, and what it shows, for who cannot see it."""

    path: str
    description: str


def render_markdown(report: Report, drawings: Sequence[Drawing] = ()) -> str:
    """The report with `drawings` for its charts."""
    sections = [
        f"# {plain(figures.title(report))}\n\n{plain(figures.overview(report))}",
        _decision(report),
        _search(report.choice) if report.choice else "",
        f"## Results\n\n{_results(report)}",
        *(f"![{plain(drawing.description)}]({drawing.path})" for drawing in drawings),
        _faults(report),
        _folded("All percentiles", _percentiles(report)),
        _folded("Runs", _runs(report)),
        _folded("Machine", _machines(report)),
        _folded("How to repeat it", _commands(report)),
        plain(figures.METHOD),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _folded(summary: str, content: str) -> str:
    return f"<details>\n<summary>{summary}</summary>\n\n{content}\n\n</details>"


def _decision(report: Report) -> str:
    advice = report.recommendation
    spoken = [promise(report), report.verdict.sentence if report.verdict else "", advice.reason]
    lines = [f"## {plain(advice.headline)}", *(plain(sentence) for sentence in spoken if sentence)]
    if advice.evidence:
        lines.append("\n".join(f"- {plain(sentence)}" for sentence in advice.evidence))
    lines += [f"**Note** {plain(sentence)}" for sentence in advice.caveats]
    if advice.next_step:
        lines.append(f"Next: {code(advice.next_step)}")
    return "\n\n".join(lines)


def _search(choice: Choice) -> str:
    lines = [
        (
            f"{one.label} (the pick)" if one.state == "picked" and choice.valid else one.label,
            choice.written(one) or one.state,
            choice.foretold(one.predicted),
            choice.foretold(one.measured),
            one.why,
        )
        for one in choice.tried
    ]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in figures.knob_shares(choice))
    mattered = (
        f"\n\nOf the differences between all settings, each of these by itself explains: {plain(shares)}."
        if shares
        else ""
    )
    return f"## The search\n\n{_few(lines, ('Setting', choice.figure, 'Foretold', 'Measured', 'Why not'))}{mattered}"


def _results(report: Report) -> str:
    return table(
        ("Load", "Variant", "p50", "p99 (95% interval)", "Answered", "Errors", "Size", "Accuracy", "Certificate"),
        [
            (
                row.load,
                f"{row.variant} (recommended)" if row.recommended else row.variant,
                row.p50,
                f"{row.p99} ({row.interval})" if row.interval else row.p99,
                row.answered,
                f"{row.errors} ({row.failed})" if row.failed else row.errors,
                row.size,
                f"{row.accuracy}, {row.loss}" if row.loss else row.accuracy,
                row.certificate,
            )
            for row in figures.rows(report)
        ],
    )


def _faults(report: Report) -> str:
    lines = [
        (
            run.label,
            run.directory,
            " ".join(
                f"{check.name}: {check.found}, limit: {check.limit}. {check.advice}" for check in run.certificate.faults
            ),
        )
        for result in report.results
        for run in result.runs
        if not run.valid
    ]
    if not lines:
        return ""
    return f"## INVALID runs\n\n{_few(lines, ('Run', 'Folder', 'What does not hold'))}"


def _percentiles(report: Report) -> str:
    every = zip(report.results, figures.percentile_rows(report), strict=True)
    found = [row for _, row in sorted(every, key=lambda pair: not pair[0].recommended)]
    lines = [(row.load, row.variant, *map(_over, row.latencies, row.service)) for row in found]
    refused: dict[str, list[str]] = {}
    for row in found[:_MOST_FOLDED]:
        if row.refused:
            refused.setdefault(row.refused, []).append(f"{row.variant}, {row.load}")
    notes = "\n".join(f"- {plain(reason)}: {plain('; '.join(names))}" for reason, names in refused.items())
    about = "Each with its 95% interval; after it, the service time."
    return "\n\n".join(part for part in (about, _few(lines, ("Load", "Variant", *PERCENTILES)), notes) if part)


def _over(latency: str, service: str) -> str:
    return latency if service == latency else f"{latency}; {service}"


def _runs(report: Report) -> str:
    lines = [
        (run.label, run.directory, figures.moment(run.started_at), "VALID" if run.valid else "INVALID")
        for result in _pick_first(report)
        for run in result.runs
    ]
    return _few(lines, ("Run", "Folder", "Started", "Certificate"))


def _pick_first(report: Report) -> list[Result]:
    return sorted(report.results, key=lambda result: not result.recommended)


def _few(lines: Sequence[Sequence[str]], headings: Sequence[str]) -> str:
    """A table of the first few `lines`, and how many there are beyond."""
    return table(headings, lines[:_MOST_FOLDED]) + _beyond(len(lines))


def _beyond(count: int) -> str:
    more = count - _MOST_FOLDED
    return f"\n\n{more:,} more are in the report's other formats." if more > 0 else ""


def _machines(report: Report) -> str:
    servers = dict.fromkeys(figures.describe_server(run.server) for result in report.results for run in result.runs)
    facts = [fact for machine in report.machines for fact in figures.describe_machine(machine).items()]
    return "\n".join(
        f"- {plain(name)}: {plain(value)}" for name, value in (*facts, *(("Server", server) for server in servers))
    )


def _commands(report: Report) -> str:
    every = [run.command for result in _pick_first(report) for run in result.runs]
    commands = "\n".join(every[:_MOST_FOLDED])
    fence = _fence(commands, 3)
    return f"{fence}sh\n{commands}\n{fence}{_beyond(len(every))}"


def table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of texts, each as itself and not as markup."""
    texts = [[plain(cell) for cell in line] for line in (headings, *lines)]
    rule = ["---"] * len(headings)
    return "\n".join("| " + " | ".join(line) + " |" for line in (texts[0], rule, *texts[1:]))


def plain(text: str) -> str:
    """`text` on one line, as itself and not as markup."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """`text` as code; a backtick in it cannot end it."""
    fence = _fence(text, 1)
    return f"{fence} {' '.join(text.split())} {fence}" if "`" in text else f"`{text}`"


def _fence(text: str, least: int) -> str:
    """More backticks than there are in a row in `text`."""
    return "`" * max([least, *(1 + len(run) for run in re.findall(r"`+", text))])
