"""What the headers of a gRPC call ask for, where that can be answered by the worker's event loop."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from mlserve.serve.protocols.dialect import InferCall
from mlserve.wire.http2_headers import Fields

__all__ = ["Asked", "read_asked"]

_CONTENT_TYPES = ("application/grpc", "application/grpc+proto")
# At most eight digits and a unit (gRPC over HTTP/2, "Timeout").
_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])", re.ASCII)
_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class Asked(NamedTuple):
    """A call of inference. `left_s` is how long its client waits, None for as long as it takes."""

    call: InferCall
    credential: bytes | None
    left_s: float | None


def read_asked(fields: Fields, calls: Mapping[str, InferCall]) -> Asked | None:
    """What `fields` ask for; None for what is not among `calls`, by path, and for what is not as it should be.

    A credential may only be what a client can send as text: a certificate's has a NUL in it (see `access`).
    """
    if not all(text.isascii() and text.isprintable() for field in fields.items() for text in field):
        return None
    call = calls.get(fields.get(":path", ""))
    if call is None or fields.get(":method") != "POST" or fields.get("content-type") not in _CONTENT_TYPES:
        return None
    left_s, timeout = None, fields.get("grpc-timeout")
    if timeout is not None:
        found = _TIMEOUT.fullmatch(timeout)
        if found is None:
            return None
        left_s = int(found[1]) * _UNITS_S[found[2]]
    key = fields.get("authorization") or fields.get("x-api-key")
    return Asked(call, None if key is None else key.encode(), left_s)
