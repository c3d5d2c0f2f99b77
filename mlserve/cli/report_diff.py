"""`mlserve report diff`: what changed between two reports, or two folders of runs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from mlserve.cli.terminal import JsonFlag, ending_well, err, out, print_json
from mlserve.errors import UsageError

if TYPE_CHECKING:
    from mlserve.report.diff import Change, Diff, ResultDiff

__all__ = ["diff"]

_COLOURS = {"better": "green", "worse": "red"}
_SIDE = "A report.json, a folder with one, a run, or a folder of runs."


@ending_well
def diff(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help=_SIDE, show_default=False)],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="The same, of what came later.", show_default=False)],
    markdown: Annotated[bool, typer.Option("--md", help="Print it as Markdown, for a pull request.")] = False,
    json: JsonFlag = False,
) -> None:
    """Say what changed from BEFORE to AFTER: the pick, the conditions, the certificates, and each figure.

    Each ratio has its interval where rows or intervals are there on both sides. Nothing is decided: mlserve gate does.

    [bold]Examples[/]

      mlserve report diff runs/main runs/branch

      mlserve report diff reports/monday/report.json reports/friday/report.json --md
    """
    if json and markdown:
        raise UsageError("--json and --md are two ways to print one result; give one of them")
    with err.status("comparing"):
        from mlserve.report.diff import diff as compare
        from mlserve.report.diff import read_side

        found = compare(read_side(before), read_side(after))
    if json:
        print_json(found)
    elif markdown:
        from mlserve.report.render.changes import diff_markdown

        sys.stdout.write(diff_markdown(found))
    else:
        _print(found)


def _print(found: "Diff") -> None:
    from mlserve.report.render.changes import SHARED, arrow, method

    _say(f"{found.before} → {found.after}", style="bold")
    _say(arrow(found.pick))
    _print_conditions(SHARED.lower(), found.conditions)
    for one in found.results:
        _print_result(one)
    for name in found.only_before:
        _say(f"only before: {name}")
    for name in found.only_after:
        _say(f"only after: {name}")
    _say(method(found), style="dim")


def _print_result(one: "ResultDiff") -> None:
    from mlserve.report.render.changes import HEADINGS, OWN, arrow, figure_words

    out.print()
    _say(f"{one.variant}, {one.load}", style="bold")
    _say(f"certificate: {arrow(one.certificate)}")
    _print_conditions(OWN.lower(), one.conditions)
    table = Table(box=None, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading.lower(), justify="left" if heading in ("Figure", "Finding") else "right")
    for figure in one.figures:
        *cells, finding = msgspec.structs.astuple(figure_words(figure))
        table.add_row(*map(Text, cells), Text(finding, _COLOURS.get(figure.finding, "")))
    out.print(table)


def _print_conditions(heading: str, changes: "Sequence[Change]") -> None:
    if not changes:
        return
    _say(f"{heading}:")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2), show_header=False)
    for change in changes:
        # Text: what comes from files is no markup.
        table.add_row(Text(change.name), Text(change.before), Text("→"), Text(change.after))
    out.print(table)


def _say(text: str, style: str = "") -> None:
    out.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
