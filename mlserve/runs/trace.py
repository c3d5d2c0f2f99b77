"""A recorded trace: what a server was asked, one row a request, in the order of arrival. `mlserve record` writes it and
`mlserve bench --replay` sends it again.

    at_ns       int64    when the request had arrived, since the recording began
    rows        int32    rows of input it carried
    model       string   the model it asked for
    protocol    string   how it was written: "v2_rest", "v2_grpc"...; "" where unknown
    shapes      string   JSON: input's name -> its shape [rows, ...], `{"input_ids": [4, 128]}`; "{}" where unknown
    body_hash   string   SHA-256 of `body` in hex, which tells equal requests; null where not asked for
    body        binary   its inputs as one ModelInferRequest of V2 with raw contents, whatever protocol they came by, so
                         that they can be sent by any; null where they were not kept

The file is Parquet. Its metadata say `mlserve_trace` (the format's version) and `started_at` (ISO 8601, with the zone).
"""

import pyarrow as pa

__all__ = ["FORMAT_VERSION", "SCHEMA", "STARTED_KEY", "VERSION_KEY", "trace_schema"]

# 1: first format
FORMAT_VERSION = 1

VERSION_KEY, STARTED_KEY = b"mlserve_trace", b"started_at"

SCHEMA = pa.schema(
    [
        pa.field("at_ns", pa.int64(), nullable=False),
        pa.field("rows", pa.int32(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("protocol", pa.string(), nullable=False),
        pa.field("shapes", pa.string(), nullable=False),
        pa.field("body_hash", pa.string()),
        pa.field("body", pa.binary()),
    ]
)


def trace_schema(started_at: str) -> pa.Schema:
    """`SCHEMA` with the metadata that a trace's file carries."""
    return SCHEMA.with_metadata({VERSION_KEY: str(FORMAT_VERSION).encode(), STARTED_KEY: started_at.encode()})
