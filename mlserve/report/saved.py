"""Reports that were written: `report.json` as the value it was."""

from pathlib import Path

import msgspec

from mlserve.errors import RunFileError
from mlserve.report.report import Report

__all__ = ["REPORT_FILE", "decode_report", "newest_format", "read_report"]

REPORT_FILE = "report.json"


class _FormatOnly(msgspec.Struct):
    format_version: int = 0


def newest_format(kind: type[msgspec.Struct]) -> int:
    """The format in which this version writes `kind`, a value with a `format_version`."""
    number: int = next(field.default for field in msgspec.structs.fields(kind) if field.name == "format_version")
    return number


def read_report(path: Path) -> Report:
    """The report in the file `path`. Raises RunFileError when there is none, or none that this version reads."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunFileError(
            f"{path} cannot be read ({error.strerror}); give a report.json, or a folder with one or with runs"
        ) from error
    return decode_report(content, path)


def decode_report(content: bytes, path: Path) -> Report:
    """The report whose JSON is `content`; `path` is where it came from. Raises RunFileError as `read_report` does."""
    try:
        found = msgspec.json.decode(content, type=_FormatOnly).format_version
        newest = newest_format(Report)
        if not 1 <= found <= newest:
            raise RunFileError(
                f"{path} has format {found}, this mlserve reads 1 to {newest}; use the mlserve that wrote "
                "it, or make the report again with: mlserve report RUNS"
            )
        return msgspec.json.decode(content, type=Report)
    except msgspec.DecodeError as error:
        raise RunFileError(f"{path} is no report: {error}; make it again with: mlserve report RUNS") from error
