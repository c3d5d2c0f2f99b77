"""What `report.json` and `run.json` look like, as JSON Schema. Kept in `docs/`; a test holds it to the code."""

from typing import Any

import msgspec

from mlserve.report.report import Report
from mlserve.report.saved import newest_format
from mlserve.runs.run import Run

__all__ = ["SCHEMAS", "schema_text"]

SCHEMAS: dict[str, type[msgspec.Struct]] = {"report": Report, "run": Run}
"""Name of the file without `.json` -> the value it holds."""


def schema_text(name: str) -> str:
    """The schema of one of `SCHEMAS`, as indented JSON."""
    kind = SCHEMAS[name]
    document: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:mlserve:{name}:{newest_format(kind)}",
        **msgspec.json.schema(kind),
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"
