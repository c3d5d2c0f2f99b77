"""Where a report goes: one folder, one file a format."""

import os
from collections.abc import Callable
from pathlib import Path

from mlserve.errors import UsageError
from mlserve.report.render.html import render_html
from mlserve.report.render.json import render_json
from mlserve.report.render.markdown import render_markdown
from mlserve.report.report import Report

__all__ = ["write_report"]

_FORMATS: dict[str, Callable[[Report], str]] = {
    "report.html": render_html,
    "report.md": render_markdown,
    "report.json": render_json,
}


def write_report(report: Report, folder: Path) -> list[Path]:
    """Writes every format into `folder`, each by rename, and returns their paths.

    Raises UsageError when the folder cannot be written.
    """
    texts = {name: render(report) for name, render in _FORMATS.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            partial = folder / f".{name}.{os.getpid()}.partial"
            partial.write_text(text, encoding="utf-8")
            partial.rename(folder / name)
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be written: {error.strerror}; choose another folder") from error
    return [folder / name for name in texts]
