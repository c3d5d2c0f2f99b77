"""`mlserve report`: saved runs to a page that says which variant to serve."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mlserve.cli.report_diff import diff
from mlserve.cli.report_index import index, schema
from mlserve.cli.report_live import open_page, watch
from mlserve.cli.report_verb import OF_RUNS, ReportVerb
from mlserve.cli.terminal import JsonFlag, ending_well, err, out, print_json
from mlserve.errors import UsageError
from mlserve.report.render.formats import FORMATS, USUAL_FORMATS, parse_formats
from mlserve.units import parse_fraction

if TYPE_CHECKING:
    from mlserve.report.measurement import Recorded
    from mlserve.report.report import Report
    from mlserve.report.slo import Slo

__all__ = ["app", "report"]

app = typer.Typer(cls=ReportVerb, help="Saved runs to a page that says which variant to serve, and why.")


@app.command(OF_RUNS)
@ending_well
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Folders that mlserve bench wrote, or folders of them.", show_default=False),
    ],
    folder: Annotated[Path, typer.Option("--out", help="Folder for report.html, report.md and report.json.")] = Path(
        "report"
    ),
    formats: Annotated[
        str, typer.Option(help=f"What is written: {', '.join(FORMATS)}, with commas between them.")
    ] = ",".join(USUAL_FORMATS),
    slo: Annotated[
        str, typer.Option(metavar="P=TIME", help="What was promised, such as p99=50ms.", show_default=False)
    ] = "",
    max_accuracy_loss: Annotated[
        str, typer.Option(help="Most a variant may lose of its accuracy to be recommended.")
    ] = "1%",
    opening: Annotated[bool, typer.Option("--open", help="Show the page in the browser.")] = False,
    watching: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Go on: show every run that comes, until Ctrl-C or, of a search or a sweep, until its end. RUN may be "
            "empty yet. Takes a tenth of a core.",
        ),
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Compare saved runs, recommend a variant, and write a page, Markdown and JSON that say why.

    Repeats of one measurement (the same model, load, machine and server settings) are taken together.
    Two more: mlserve report diff A B says what changed; mlserve report index FOLDER lists the reports of a folder;
    mlserve report schema prints the JSON Schema of report.json.

    [bold]Examples[/]

      mlserve report runs/ --open

      mlserve report runs/fp32 runs/int8 --out reports/monday --max-accuracy-loss 0.5%

      mlserve report sweep/ --watch --open --slo p99=50ms
    """
    from mlserve.report.render.files import check_folder

    wanted = _Wanted(folder, parse_formats(formats), parse_fraction(max_accuracy_loss), _slo(slo))
    check_folder(folder)
    if watching:
        _check_watch(wanted.formats, json=json)
        watch(runs, wanted.write_page, open_it=opening)
        return
    made, files = wanted.report_on(runs)
    if json:
        print_json(_document(made, files))
    else:
        _print_results(made)
        _print_decision(made)
        for path in files:
            out.print(str(path), highlight=False, markup=False, soft_wrap=True)
    if opening:
        open_page(next((path for path in files if path.suffix == ".html"), files[0]).resolve().as_uri())


app.command()(diff)
app.command()(index)
app.command()(schema)


class _Wanted:
    """What the flags ask for."""

    def __init__(self, folder: Path, formats: Sequence[str], max_accuracy_loss: float, slo: "Slo | None") -> None:
        self._folder, self.formats = folder, formats
        self._max_accuracy_loss, self._slo = max_accuracy_loss, slo

    def report_on(self, paths: Sequence[Path]) -> "tuple[Report, list[Path]]":
        """The report on the runs that `paths` hold, and the files it was written to."""
        from mlserve.report.measurement import read_runs

        recorded = read_runs(paths)
        with err.status(f"reporting on {len(recorded)} run{'s' if len(recorded) > 1 else ''}"):
            return self._write(recorded)

    def write_page(self, runs: "Sequence[Recorded]") -> Path:
        """Writes the report on `runs`; its page."""
        _, files = self._write(runs)
        return next(path for path in files if path.suffix == ".html")

    def _write(self, runs: "Sequence[Recorded]") -> "tuple[Report, list[Path]]":
        # What draws takes a second to load: not before there is something to draw.
        from mlserve.report.render.files import write_report
        from mlserve.report.report import build_report

        now = datetime.now(UTC).isoformat(timespec="seconds")
        made = build_report(runs, max_accuracy_loss=self._max_accuracy_loss, created_at=now, slo=self._slo)
        return made, write_report(made, self._folder, self.formats)


def _slo(text: str) -> "Slo | None":
    if not text:
        return None
    from mlserve.report.slo import Slo
    from mlserve.report.summary import PERCENTILES
    from mlserve.tuning.evidence import parse_slo

    objective = parse_slo(text)
    if objective.name not in PERCENTILES:
        raise UsageError(
            f"--slo {text}: a report gives {', '.join(PERCENTILES)} of every run, with intervals, and cannot judge "
            f"{objective.name}; give one of these (mlserve bench --slo takes any)"
        )
    return Slo(percentile=objective.percentile, limit_s=objective.limit_s, max_errors=objective.max_errors)


def _document(made: "Report", files: Sequence[Path]) -> dict[str, Any]:
    return {
        "format_version": 1,
        "recommendation": made.recommendation,
        "slo": made.slo,
        "verdict": made.verdict,
        "files": {path.name.removeprefix("report.").removeprefix("report-"): str(path) for path in files},
    }


def _check_watch(formats: Sequence[str], *, json: bool) -> None:
    if json:
        raise UsageError("--watch shows run after run and has no one result to print; leave out --json or --watch")
    if "html" not in formats:
        raise UsageError(f"--watch shows the page, and --formats {','.join(formats)} makes none; add html")


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


def _print_decision(made: "Report") -> None:
    from mlserve.report.render.promise import kept, promise

    advice = made.recommendation
    good = advice.variant or (made.slo and kept(made) == "kept")
    out.print(advice.headline, style="bold green" if good else "bold yellow", highlight=False, markup=False)
    spoken = [made.verdict.sentence] if made.verdict else []
    for sentence in (promise(made), *spoken, advice.reason, *(f"note: {caveat}" for caveat in advice.caveats)):
        if sentence:
            out.print(Padding(Text(sentence), (0, 0, 0, 2), expand=False))
    if advice.next_step:
        out.print(f"  next: {advice.next_step}", highlight=False, markup=False, soft_wrap=True)
    out.print()
