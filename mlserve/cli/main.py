"""`mlserve`: the verbs, in the order a model meets them."""

from typing import Annotated

import typer

from mlserve import __version__
from mlserve.cli import keys, models, report
from mlserve.cli.bench import bench
from mlserve.cli.diagnose import diagnose
from mlserve.cli.doctor import doctor
from mlserve.cli.gate import gate
from mlserve.cli.optimize import optimize
from mlserve.cli.plan import plan
from mlserve.cli.record import record
from mlserve.cli.serve import serve
from mlserve.cli.tune import tune
from mlserve.cli.what_if import what_if

__all__ = ["app", "main"]

app = typer.Typer(
    name="mlserve",
    help="Give it a model and a service-level objective; get the production configuration back, with the proof.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(optimize)
app.command()(diagnose)
app.add_typer(models.app, name="models")
app.command()(serve)
app.add_typer(keys.app, name="keys")
app.command()(bench)
app.command()(record)
app.command("what-if")(what_if)
app.command()(tune)
app.add_typer(report.app, name="report")
app.command()(plan)
app.command()(gate)
app.command()(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mlserve {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Parses the command line and runs the verb it names."""
    app()
