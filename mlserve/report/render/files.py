"""Where a report goes: one folder, one file a format. What draws or makes tables is loaded only when asked for."""

import os
from collections.abc import Sequence
from pathlib import Path

from mlserve.errors import UsageError
from mlserve.report.render.formats import USUAL_FORMATS
from mlserve.report.report import Report

__all__ = ["check_folder", "write_files", "write_report"]

_ASSETS = "report-assets"


def write_report(report: Report, folder: Path, formats: Sequence[str] = USUAL_FORMATS) -> list[Path]:
    """Writes `formats` into `folder` and returns what a reader opens: a file a format, two of tables, and for PNG the
    folder of the pictures. The pictures that `report.md` shows lie in that folder too.

    Raises UsageError when the folder cannot be written.
    """
    contents = {name: content for chosen in formats for name, content in _contents(report, chosen).items()}
    write_files(folder, contents)
    opened = [folder / name for name in contents if not name.startswith(f"{_ASSETS}/")]
    return [*opened, folder / _ASSETS] if "png" in formats else opened


def write_files(folder: Path, contents: dict[str, bytes]) -> None:
    """Writes each name below `folder`, by rename: what exists is whole. Raises UsageError when it cannot be written."""
    try:
        for name, content in contents.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
            try:
                partial.write_bytes(content)
                partial.rename(path)
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}; choose another folder") from error


def check_folder(folder: Path) -> None:
    """Raises UsageError where nothing could be written into `folder`, before any work is done for it; makes nothing."""
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"{folder} cannot be written: {there} is a file; choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{folder} cannot be written: no permission for {there}; choose another folder")


def _contents(report: Report, chosen: str) -> dict[str, bytes]:
    """Path below the folder -> content, of one format."""
    match chosen:
        case "html":
            from mlserve.report.render.html import render_html

            return {"report.html": render_html(report).encode()}
        case "md":
            return _markdown(report)
        case "json":
            from mlserve.report.render.json import render_json

            return {"report.json": render_json(report).encode()}
        case "csv" | "parquet":
            from mlserve.report.render.tables import csv, parquet, result_table, run_table

            write = csv if chosen == "csv" else parquet
            return {f"report.{chosen}": write(result_table(report)), f"report.runs.{chosen}": write(run_table(report))}
    from mlserve.report.render.images import pictures, png

    return {f"{_ASSETS}/{picture.name}.png": png(picture) for picture in pictures(report)}


def _markdown(report: Report) -> dict[str, bytes]:
    from mlserve.report.render.images import chosen, pictures, svg
    from mlserve.report.render.markdown import Drawing, render_markdown

    shown = chosen(pictures(report))
    text = render_markdown(report, [Drawing(f"{_ASSETS}/{picture.name}.svg", picture.description) for picture in shown])
    return {"report.md": text.encode()} | {f"{_ASSETS}/{picture.name}.svg": svg(picture).encode() for picture in shown}
