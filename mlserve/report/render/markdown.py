"""A report as Markdown, for a pull request or a wiki."""

import re
from collections.abc import Sequence

import msgspec

from mlserve.report.render import figures
from mlserve.report.report import Report
from mlserve.report.summary import PERCENTILES

__all__ = ["Drawing", "code", "plain", "render_markdown", "table"]

# What would start markup of some kind, HTML among it, anywhere in a line.
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&])")


class Drawing(msgspec.Struct, frozen=True):
    """A chart as a file beside the Markdown: its path from there, and what it shows, for who cannot see it."""

    path: str
    description: str


def render_markdown(report: Report, drawings: Sequence[Drawing] = ()) -> str:
    """The report with `drawings` for its charts."""
    sections = [
        f"# {plain(figures.title(report))}\n\n{plain(figures.overview(report))}",
        _recommendation(report),
        f"## Results\n\n{_results(report)}",
        *(f"![{plain(drawing.description)}]({drawing.path})" for drawing in drawings),
        f"### All percentiles\n\n{_percentiles(report)}",
        f"## Certificates\n\n{_certificates(report)}",
        f"## Machine\n\n{_machines(report)}",
        f"## How to repeat it\n\n{_commands(report)}",
        plain(figures.METHOD),
    ]
    return "\n\n".join(sections) + "\n"


def _recommendation(report: Report) -> str:
    advice = report.recommendation
    lines = [f"## {plain(advice.headline)}", plain(advice.reason)]
    if advice.evidence:
        lines.append("\n".join(f"- {plain(sentence)}" for sentence in advice.evidence))
    lines += [f"**Note** {plain(sentence)}" for sentence in advice.caveats]
    if advice.next_step:
        lines.append(f"Next: {code(advice.next_step)}")
    return "\n\n".join(lines)


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


def _percentiles(report: Report) -> str:
    found = figures.percentile_rows(report)
    lines: list[tuple[str, ...]] = []
    for row in found:
        lines += [(row.load, row.variant, *row.latencies), ("", "service time", *row.service)]
    refused = sorted({f"{row.variant}, {row.load}: {row.refused}" for row in found if row.refused})
    notes = "\n".join(f"- {plain(reason)}" for reason in refused)
    return "\n\n".join(part for part in (table(("Load", "Variant", *PERCENTILES), lines), notes) if part)


def _certificates(report: Report) -> str:
    runs = [run for result in report.results for run in result.runs]
    return table(
        ("Run", "Folder", "Started", "Certificate", "What does not hold"),
        [
            (
                run.label,
                run.directory,
                figures.moment(run.started_at),
                "VALID" if run.valid else "INVALID",
                " ".join(
                    f"{check.name}: {check.found}, limit: {check.limit}. {check.advice}"
                    for check in run.certificate.faults
                ),
            )
            for run in runs
        ],
    )


def _machines(report: Report) -> str:
    servers = dict.fromkeys(figures.describe_server(run.server) for result in report.results for run in result.runs)
    facts = [fact for machine in report.machines for fact in figures.describe_machine(machine).items()]
    return "\n".join(
        f"- {plain(name)}: {plain(value)}" for name, value in (*facts, *(("Server", server) for server in servers))
    )


def _commands(report: Report) -> str:
    commands = "\n".join(run.command for result in report.results for run in result.runs)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", commands)), default=0))
    return f"{fence}sh\n{commands}\n{fence}"


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
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence} {' '.join(text.split())} {fence}" if "`" in text else f"`{text}`"
