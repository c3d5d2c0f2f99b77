"""Arrow streams that grow while they are read, and may end in the middle."""

from pathlib import Path
from typing import Any

import pyarrow as pa

__all__ = ["read_stream"]


def read_stream(path: Path, schema: pa.Schema) -> pa.Table:
    """Every whole batch of a stream that may end in the middle of one. Raises ArrowInvalid for an empty file."""
    batches: list[Any] = []
    with path.open("rb") as file:
        try:
            reader = pa.ipc.open_stream(file)
            batches.extend(reader)
        except (pa.ArrowInvalid, OSError):
            if not path.stat().st_size:
                raise
    return pa.Table.from_batches(batches, schema)
