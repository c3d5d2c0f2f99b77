"""The runs that a path names: a run, a folder of them, or a file that says which runs it rests on."""

import shlex
from collections.abc import Iterable
from pathlib import Path

import msgspec

from mlserve.errors import RunFileError
from mlserve.runs.production import is_production, read_production
from mlserve.runs.run import RUN_FILE, read_run

__all__ = ["PRODUCTION_FILE", "named_runs"]

PRODUCTION_FILE = "production.toml"
_REPORT_FILE = "report.json"
# That of mlserve/report/report.py, which is above this layer.
_REPORT_FORMAT = 2


class _RunOfReport(msgspec.Struct):
    directory: str


class _Result(msgspec.Struct):
    runs: tuple[_RunOfReport, ...] = ()


class _FormatOnly(msgspec.Struct):
    format_version: int = 1


class _Report(msgspec.Struct):
    results: tuple[_Result, ...]


def named_runs(path: Path) -> list[Path]:
    """The directories of the runs that `path` means, in the order they were made.

        a run's folder or its run.json   that run
        production.toml                  the runs it rests on
        report.json                      the runs it shows
        a folder                         those of the production.toml in it, else the runs anywhere inside it, else
                                         those of its report.json

    Folders that a file names are sought from the working directory, and then from each folder above the file. Raises
    RunFileError where there are none, one that is named is not there, or a report is of a format that is not read;
    UsageError for a production.toml of another form.
    """
    found = _from_folder(path) if path.is_dir() else _from_file(path)
    return sorted(dict.fromkeys(found), key=lambda directory: read_run(directory).started_at)


def _from_folder(path: Path) -> list[Path]:
    if (path / RUN_FILE).is_file():
        return [path]
    if (path / PRODUCTION_FILE).is_file():
        return _from_file(path / PRODUCTION_FILE)
    inside = sorted(file.parent for file in path.rglob(RUN_FILE))
    if inside:
        return inside
    if (path / _REPORT_FILE).is_file():
        return _from_file(path / _REPORT_FILE)
    raise RunFileError(
        f"{path} holds no run ({RUN_FILE}); write one with: mlserve bench NAME --out {shlex.quote(str(path))}"
    )


def _from_file(path: Path) -> list[Path]:
    if not path.is_file():
        raise RunFileError(f"there is no {path}; give a run, a folder of runs, a {_REPORT_FILE} or a {PRODUCTION_FILE}")
    if path.name == RUN_FILE:
        return [path.parent]
    if is_production(path):
        evidence = read_production(path).evidence
        directories: Iterable[str] = evidence.runs if evidence else ()
    else:
        directories = [run.directory for result in _read_report(path).results for run in result.runs]
    found = [_sought(directory, path) for directory in directories]
    if not found:
        raise RunFileError(f"{path} names no runs; give the folder of a run that mlserve bench wrote")
    return found


def _read_report(path: Path) -> _Report:
    try:
        content = path.read_bytes()
        found = msgspec.json.decode(content, type=_FormatOnly).format_version
        if not 1 <= found <= _REPORT_FORMAT:
            raise RunFileError(
                f"{path} has format {found}, this mlserve reads 1 to {_REPORT_FORMAT}; use the mlserve that wrote it, "
                "or give the runs themselves"
            )
        return msgspec.json.decode(content, type=_Report)
    except (msgspec.DecodeError, OSError) as error:
        raise RunFileError(
            f"{path} names no runs ({error}); give a run, a folder of runs, a {_REPORT_FILE} or a {PRODUCTION_FILE}"
        ) from error


def _sought(directory: str, path: Path) -> Path:
    for folder in (Path(), *path.resolve().parents):
        if (folder / directory / RUN_FILE).is_file():
            return folder / directory
    raise RunFileError(f"{path} names the run {directory}, which is not there; bring it back, or run from its folder")
