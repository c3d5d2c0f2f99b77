"""`mlserve report index`: the page over a folder of reports; and `mlserve report schema`."""

import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from shutil import which
from typing import Annotated

import typer

from mlserve.cli.terminal import ending_well, out
from mlserve.errors import UsageError

__all__ = ["index", "schema"]


@ending_well
def index(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of reports, however deep.", show_default=False)
    ] = Path("reports"),
) -> None:
    """Write index.html and index.md into a folder of reports: all of them, newest first, and p99 over time.

    A file that does not say when it was made has the date of its commit, or of itself where it is in none.

    [bold]Examples[/]

      mlserve report index reports/
    """
    from mlserve.report.index import build_index, report_files
    from mlserve.report.render.files import write_files
    from mlserve.report.render.index_page import index_html, index_markdown

    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; give one that holds reports, such as reports/")
    found = build_index(folder, _dates(folder, report_files(folder)))
    write_files(folder, {"index.html": index_html(found).encode(), "index.md": index_markdown(found).encode()})
    out.print(f"{len(found.entries)} reports, {len(found.series)} followed over time", highlight=False)
    for name in ("index.html", "index.md"):
        out.print(str(folder / name), highlight=False, markup=False, soft_wrap=True)


@ending_well
def schema(
    name: Annotated[
        str, typer.Argument(metavar="FILE", help="report for report.json, run for run.json.", show_default=True)
    ] = "report",
) -> None:
    """Print the JSON Schema of report.json or run.json."""
    from mlserve.report.render.schema import SCHEMAS, schema_text

    if name not in SCHEMAS:
        raise UsageError(f"{name!r} has no schema; choose among {', '.join(SCHEMAS)}")
    sys.stdout.write(schema_text(name))


def _dates(folder: Path, files: Sequence[Path]) -> dict[Path, str]:
    """When each file was last committed; when it was written, where it never was or has changed since."""
    committed, changed = _committed(folder), _changed(folder)
    return {path: _written(path) if path in changed or path not in committed else committed[path] for path in files}


def _committed(folder: Path) -> dict[Path, str]:
    """File -> the instant of its last commit (UTC); empty where git does not know the folder."""
    dates: dict[Path, str] = {}
    date = ""
    # Newest first: the first commit that names a file is its last.
    for line in _git(folder, "log", "--format=%x00%ct", "--name-only", "--relative", "--", "."):
        if line.startswith("\0"):
            date = _utc(float(line[1:]))
        elif line:
            dates.setdefault(folder / line, date)
    return dates


def _changed(folder: Path) -> set[Path]:
    return {folder / line for line in _git(folder, "diff", "--name-only", "--relative", "HEAD", "--", ".")}


def _git(folder: Path, *words: str) -> list[str]:
    git = which("git")
    if git is None:
        return []
    done = subprocess.run(
        [git, "-C", str(folder), "-c", "core.quotePath=false", *words], capture_output=True, text=True, check=False
    )
    # Outside a repository git refuses: then no date is known from it.
    return done.stdout.splitlines() if done.returncode == 0 else []


def _written(path: Path) -> str:
    return _utc(path.stat().st_mtime)


def _utc(instant_s: float) -> str:
    return datetime.fromtimestamp(instant_s, UTC).isoformat(timespec="seconds")
