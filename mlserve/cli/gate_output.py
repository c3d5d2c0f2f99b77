"""What is told of a gate's result: on the terminal, in files for CI, and to GitHub where it runs us."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mlserve.cli.terminal import err, out, print_json
from mlserve.errors import MlserveError, UsageError

if TYPE_CHECKING:
    from mlserve.report.gating.result import GateResult
    from mlserve.report.render.gate_figures import GateFigures

__all__ = ["EXIT_CODES", "Outputs", "check_outputs", "check_writable", "tell", "telling_of_errors"]

EXIT_CODES = {"pass": 0, "fail": 1, "inconclusive": 3}
_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


class Outputs(msgspec.Struct, frozen=True, kw_only=True):
    """Which files are written; None for those that are not. `json`: JSON instead of words on stdout."""

    json: bool = False
    junit: Path | None = None
    badge: Path | None = None
    comment: Path | None = None


def check_outputs(outputs: Outputs, *, calibrates: bool) -> None:
    """Raises UsageError where a file could not be written, before anything is measured, or would tell of no verdict."""
    files = (("--junit", outputs.junit), ("--badge", outputs.badge), ("--comment", outputs.comment))
    if calibrates and (said := [flag for flag, path in files if path is not None]):
        raise UsageError(f"--calibrate comes to no verdict that {said[0]} could tell; leave it out")
    if outputs.badge is not None and outputs.badge.suffix not in (".svg", ".json"):
        raise UsageError(f"--badge {outputs.badge} is of no known kind; give FILE.svg, or FILE.json for shields.io")
    for flag, path in files:
        if path is not None:
            check_writable(flag, path)


def check_writable(flag: str, path: Path) -> None:
    """Makes the folder of a file that is to be written. Raises UsageError where it could not be."""
    if path.is_dir():
        raise UsageError(f"{flag} {path} is a folder; give a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{flag} {path} cannot be written: {error.strerror}; choose another file") from error
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{flag} {path} cannot be written: no permission for its folder; choose another file")


@contextmanager
def telling_of_errors(outputs: Outputs, base: str, candidate: str) -> Iterator[None]:
    """Whatever ends the gate before it has a verdict is told in the files and to GitHub too, so that none of them is
    missing, or of an earlier gate.
    """
    from mlserve.report.render.gate_figures import gate_error

    began_s = time.monotonic()
    try:
        yield
    except (MlserveError, KeyboardInterrupt) as error:
        message = str(error) or "stopped before it was decided"
        figures = gate_error(message, base, candidate, took_s=time.monotonic() - began_s)
        _write_files(figures, outputs)
        _tell_github(figures)
        raise


def tell(result: "GateResult", base: str, candidate: str, outputs: Outputs, *, took_s: float = 0.0) -> None:
    """Tells `result` everywhere it was asked for, the terminal first."""
    from mlserve.report.render.gate_figures import gate_figures

    if base == candidate:
        base, candidate = f"{base} (base)", f"{candidate} (candidate)"
    figures = gate_figures(result, base, candidate, took_s=took_s)
    if outputs.json:
        print_json(result)
    else:
        _print(figures)
    _write_files(figures, outputs)
    _tell_github(figures)


def _print(figures: "GateFigures") -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "base", "candidate", "change", "interval", "limit", "verdict"):
        names = heading in ("", "verdict")
        table.add_column(heading, justify="left" if names else "right", no_wrap=names)
    for row in figures.rows:
        texts = (row.metric, row.base, row.candidate, row.change, row.interval, row.limit)
        table.add_row(*map(Text, texts), Text(row.verdict, _COLOURS[row.verdict]))
    if figures.rows:
        out.print(table)
    for fact in figures.facts:
        out.print(Text(fact), style="dim", soft_wrap=True)
    out.print()
    out.print(Text(figures.verdict), style=f"bold {_COLOURS[figures.verdict]}")
    for sentence in (*figures.reasons, *(f"note: {note}" for note in figures.notes)):
        out.print(Padding(Text(sentence), (0, 0, 0, 2), expand=False))


def _write_files(figures: "GateFigures", outputs: Outputs) -> None:
    from mlserve.report.render.badge import render_badge, render_endpoint
    from mlserve.report.render.github import render_comment
    from mlserve.report.render.junit import render_junit

    if outputs.junit is not None:
        _write("--junit", outputs.junit, render_junit(figures))
    if outputs.badge is not None:
        badge = render_badge(figures) if outputs.badge.suffix == ".svg" else render_endpoint(figures)
        _write("--badge", outputs.badge, badge)
    if outputs.comment is not None:
        _write("--comment", outputs.comment, render_comment(figures))


def _write(flag: str, path: Path, text: str) -> None:
    try:
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.rename(path)
    except OSError as error:
        raise UsageError(f"{flag} {path} cannot be written: {error.strerror}; choose another file") from error


def _tell_github(figures: "GateFigures") -> None:
    """Annotations on stderr, where the runner reads them as well, so that stdout stays what was asked for."""
    from mlserve.report.render.github import render_annotations, render_comment

    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in render_annotations(figures):
            sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if not summary:
        return
    try:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(render_comment(figures))
    except OSError as error:
        err.print(
            f"the step's summary {summary} cannot be written: {error.strerror}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
