"""How a request to a server of no protocol is written: a JSON text with holes for the model's inputs.

{"inputs": {{columns}}}           every input by name, [rows, ...]
{"instances": {{rows}}}           by row: plain values of a single input, or objects by the inputs' names
{"features": {{row}}}             the one row of a request of one row
{"ids": {{input:ids}}, "k": 3}    one input, [rows, ...]
"""

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from mlserve.errors import UsageError
from mlserve.model.tensors import Tensors, TensorSpec
from mlserve.wire.plain import to_columns, to_rows, write_json

__all__ = ["check_template", "fill_template", "read_template"]

_HOLE = re.compile(r"\{\{\s*([^{}]+?)\s*\}\}")
_INPUT = "input:"
_KNOWN = "{{rows}}, {{row}}, {{columns}} and {{input:NAME}}"


def read_template(text: str) -> str:
    """The template that `--template` means: `text` itself where it has a hole, else the content of that file.

    Raises UsageError for a file that cannot be read, and for a template that is none.
    """
    if _HOLE.search(text):
        return check_template(text)
    try:
        return check_template(Path(text).read_text())
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"--template {text[:80]!r} is neither a file to read nor a text with {_KNOWN}") from error


def check_template(template: str) -> str:
    """`template` itself. Raises UsageError when it has no hole, an unknown one, or is no JSON once they are filled."""
    holes = _HOLE.findall(template)
    unknown = [hole for hole in holes if hole not in ("rows", "row", "columns") and not hole.startswith(_INPUT)]
    if unknown or not holes:
        fault = f"has {{{{{unknown[0]}}}}}" if unknown else "has no place for the inputs"
        raise UsageError(f"--template {fault}; it may have {_KNOWN}")
    try:
        msgspec.json.decode(_HOLE.sub("null", template))
    except msgspec.DecodeError as error:
        raise UsageError(
            f"--template is no JSON once it is filled: {error}; do not quote what stands in {{{{}}}}"
        ) from error
    return template


def fill_template(template: str, tensors: Tensors, specs: Sequence[TensorSpec]) -> bytes:
    """A request's body. Raises UsageError for an input that the model has not, and for {{row}} with several rows."""
    names = [spec.name for spec in specs]

    def value(hole: re.Match[str]) -> str:
        return write_json(_value(hole[1], tensors, names)).decode()

    return _HOLE.sub(value, template).encode()


def _value(hole: str, tensors: Tensors, names: Sequence[str]) -> object:
    match hole:
        case "rows":
            return to_rows(tensors, names)
        case "columns":
            return to_columns(tensors, names)
        case "row":
            rows = to_rows(tensors, names)
            if len(rows) != 1:
                raise UsageError(
                    f"--template has {{{{row}}}} for one row, a request has {len(rows)}; use --batch 1 or {{{{rows}}}}"
                )
            return rows[0]
    name = hole.removeprefix(_INPUT)
    if name not in names:
        raise UsageError(f"--template has {{{{{hole}}}}}, the model takes {', '.join(names)}")
    return to_columns(tensors, [name])[name]
