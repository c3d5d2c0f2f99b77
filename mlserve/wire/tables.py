"""Tables and a model's tensors: CSV, and rows under named columns as data frames are written in JSON.

A table fits a model in one of three ways, tried in this order:

    its columns are named as the inputs are        each column is one input, whatever its place
    the model has one input [rows, n]              the columns are that input's elements, in their order
    it has as many columns as the model inputs     each column is one input, in their order (a table without names)

An element that is missing (an empty field of CSV, null in a data frame: so pandas writes NaN) is NaN in a floating
input and refused in any other.
"""

import csv
import io
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec

from mlserve.errors import InvalidRequest, PayloadTooLarge
from mlserve.model.tensors import Array, Tensors
from mlserve.wire.plain import from_columns
from mlserve.wire.signature import Field, Signature

__all__ = ["Table", "check_table", "from_table", "read_csv", "write_csv"]

# A cell costs some fifty bytes once it is a Python object; this many is a quarter of a gigabyte.
_MOST_CELLS = 1 << 22
_MISSING = (None, "")


class Table(msgspec.Struct, frozen=True):
    """Rows of cells, all of one width. `names` are the columns' names; empty where the table tells none.

    `texts`: every cell is a text that still has to be read as the model's type (CSV).
    """

    rows: list[list[Any]]
    names: tuple[str, ...] = ()
    texts: bool = False

    @property
    def width(self) -> int:
        """How many cells a row has."""
        return len(self.rows[0])


def read_csv(body: bytes) -> Table:
    """The rows of comma-separated values (RFC 4180, UTF-8); a first line that holds no number at all names the columns.

    Raises InvalidRequest for what is no such text, for rows of unlike widths and for no rows, and PayloadTooLarge for
    more cells than may be held at once.
    """
    cells = body.count(b",") + body.count(b"\n") + 1
    if cells > _MOST_CELLS:
        raise PayloadTooLarge(f"the table has {cells} cells, which exceeds the {_MOST_CELLS} that one request may hold")
    try:
        text = io.StringIO(body.decode("utf-8-sig"), newline="")
        rows = [row for row in csv.reader(text, strict=True, skipinitialspace=True) if row]
    except UnicodeDecodeError as error:
        raise InvalidRequest("the CSV is no UTF-8") from error
    except csv.Error as error:
        raise InvalidRequest(f"the CSV cannot be read: {error}") from error
    headed = bool(rows) and not any(map(_is_number, rows[0]))
    names, rows = (tuple(rows[0]), rows[1:]) if headed else ((), rows)
    return check_table(Table(rows, names, texts=True))


def check_table(table: Table) -> Table:
    """`table`, once it was found to have rows, all of one width, and names that differ. Raises InvalidRequest."""
    if not table.rows:
        raise InvalidRequest("the table holds no rows; send at least one")
    width = len(table.names) or table.width
    for number, row in enumerate(table.rows):
        if len(row) != width:
            raise InvalidRequest(f"row {number} of the table has {len(row)} cells, expected {width}")
    if len(set(table.names)) != len(table.names):
        raise InvalidRequest("two columns of the table have the same name")
    return table


def from_table(table: Table, signature: Signature) -> Tensors:
    """Every input of the model from `table`. Raises InvalidRequest when the table does not fit the model."""
    check_table(table)
    fields = list(signature.inputs.values())
    if set(table.names) == signature.inputs.keys():
        places = [table.names.index(field.name) for field in fields]
    elif len(fields) == 1 and len(fields[0].dims) > 1:
        return _tensors({fields[0].name: table.rows}, table, signature)
    elif table.width == len(fields) and not (table.names and len(fields) > 1):
        places = list(range(len(fields)))
    else:
        takes = ", ".join(f"'{field.name}' {field.spec.wire_shape}" for field in fields)
        raise InvalidRequest(
            f"a table of {table.width} columns does not fit model '{signature.name}'; it takes {takes}: "
            "name each column as an input"
        )
    columns = {
        field.name: _column([row[place] for row in table.rows], field)
        for field, place in zip(fields, places, strict=True)
    }
    return _tensors(columns, table, signature)


def write_csv(outputs: Tensors, names: Sequence[str]) -> bytes:
    """`names` of `outputs` as comma-separated values (RFC 4180), a row a line, without a line of names.

    `outputs` are arrays [rows, ...] of equally many rows; what a row holds is written flat, output after output.
    """
    flat = [_cells(outputs[name]) for name in names]
    text = io.StringIO(newline="")
    # Only cells with a character of the line's end are quoted for it: with "\n" alone, a text with "\r" would break.
    csv.writer(text, lineterminator="\r\n").writerows(chain.from_iterable(parts) for parts in zip(*flat, strict=True))
    return text.getvalue().encode()


def _cells(array: Array) -> list[list[Any]]:
    """What every row of `array` holds, flat, as values that `csv` writes."""
    if array.dtype == object:
        rows = array.reshape(len(array), -1).tolist()
        return [[cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell for cell in row] for row in rows]
    if array.dtype.kind != "f" or array.dtype.itemsize == 8:
        return array.reshape(len(array), -1).tolist()
    # str() of a narrow numpy float has its shortest digits; as a Python float it would have those of a double.
    return [list(map(str, row)) for row in array.reshape(len(array), -1)]


def _column(cells: list[Any], field: Field) -> list[Any]:
    """One column as the values of one input: [rows] as it stands, [rows, 1] with every cell in a list of its own."""
    if len(field.dims) == 2 and not isinstance(cells[0], list):
        return [[cell] for cell in cells]
    return cells


def _tensors(columns: dict[str, list[Any]], table: Table, signature: Signature) -> Tensors:
    """The inputs from their columns: missing elements made NaN, texts read as the numbers they spell."""
    values: dict[str, Any] = {}
    for name, column in columns.items():
        field = signature.inputs[name]
        filled = _filled(column) if field.dtype.kind == "f" else column
        values[name] = _from_texts(filled, field) if table.texts else filled
    return from_columns(values, signature)


def _filled(values: list[Any]) -> list[Any]:
    """`values`, [rows] or [rows, n], with NaN for every element that is missing."""
    if not isinstance(values[0], list):
        return [math.nan if cell in _MISSING else cell for cell in values]
    return [[math.nan if cell in _MISSING else cell for cell in row] for row in values]


def _from_texts(values: list[Any], field: Field) -> Any:
    element: Any = field.nested_json.type
    if field.dtype.kind == "f":  # whose bounds are checked later, and let no NaN pass
        element = float
        for _ in field.dims:
            element = list[element]
    try:
        return msgspec.convert(values, element, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"input '{field.name}' cannot be read as {field.datatype}: {error}") from error


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return not cell  # an empty field is a missing number
    return True
