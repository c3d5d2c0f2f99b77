"""`mlserve report`: saved runs to a page that says which variant to serve."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mlserve.cli.terminal import JsonFlag, ending_well, err, out, print_json
from mlserve.units import parse_fraction

if TYPE_CHECKING:
    from mlserve.report.recommendation import Recommendation
    from mlserve.report.report import Report

__all__ = ["report"]


@ending_well
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Folders that mlserve bench wrote, or folders of them.", show_default=False),
    ],
    folder: Annotated[Path, typer.Option("--out", help="Folder for report.html, report.md and report.json.")] = Path(
        "report"
    ),
    max_accuracy_loss: Annotated[
        str, typer.Option(help="Most a variant may lose of its accuracy to be recommended.")
    ] = "1%",
    json: JsonFlag = False,
) -> None:
    """Compare saved runs, recommend a variant, and write a page, Markdown and JSON that say why.

    Repeats of one measurement (the same model, load, machine and server settings) are taken together.

    [bold]Examples[/]

      mlserve report runs/

      mlserve report runs/fp32 runs/int8 --out reports/monday --max-accuracy-loss 0.5%
    """
    from mlserve.report.measurement import read_runs

    limit = parse_fraction(max_accuracy_loss)
    recorded = read_runs(runs)
    with err.status(f"reporting on {len(recorded)} run{'s' if len(recorded) > 1 else ''}"):
        # The drawing library takes seconds to load: not before there is something to draw.
        from mlserve.report.render.files import write_report
        from mlserve.report.report import build_report

        now = datetime.now(UTC).isoformat(timespec="seconds")
        made = build_report(recorded, max_accuracy_loss=limit, created_at=now)
        files = write_report(made, folder)
    if json:
        print_json({"recommendation": made.recommendation, "files": {path.suffix[1:]: str(path) for path in files}})
        return
    _print_results(made)
    _print_recommendation(made.recommendation)
    for path in files:
        out.print(str(path), highlight=False, markup=False, soft_wrap=True)


def _print_results(made: "Report") -> None:
    from mlserve.report.render.figures import rows

    every = rows(made)
    for load in dict.fromkeys(row.load for row in every):
        # Text: what comes from files is no markup.
        table = Table(title=Text(load), title_justify="left", box=None, pad_edge=False)
        table.add_column("variant", min_width=10)
        for heading, width in (("p50", 8), ("p99", 8), ("95% interval", 18), ("errors", 7)):
            table.add_column(heading, justify="right", no_wrap=True, min_width=width)
        table.add_column("certificate")
        for row in every:
            if row.load == load:
                figures = (row.variant, row.p50, row.p99, row.interval, row.errors)
                table.add_row(*map(Text, figures), Text(row.certificate, "green" if row.valid else "red"))
        out.print(table)
        out.print()


def _print_recommendation(advice: "Recommendation") -> None:
    out.print(advice.headline, style="bold green" if advice.variant else "bold yellow", highlight=False, markup=False)
    for sentence in (advice.reason, *(f"note: {caveat}" for caveat in advice.caveats)):
        out.print(Padding(Text(sentence), (0, 0, 0, 2), expand=False))
    if advice.next_step:
        out.print(f"  next: {advice.next_step}", highlight=False, markup=False, soft_wrap=True)
    out.print()
