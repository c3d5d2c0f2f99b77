"""Where a request's time went, as its server says: the standard header `server-timing`.

W3C, Server Timing: `queue;dur=0.120, compute;dur=1.934, batch;desc="8 rows"`, durations in milliseconds.
"""

import math
import re

__all__ = ["ServerTiming", "read_server_timing"]

ServerTiming = tuple[int | None, int | None, int | None]
"""(queue_ns, compute_ns, batch_rows), each None where the header does not say it."""

# As mlserve's own server writes it: every answer may hold one, and taking it apart entry by entry costs 7 us.
_OURS = re.compile(
    r"queue;dur=(\d+\.\d+), compute;dur=(\d+\.\d+)(?:, [a-z]+;dur=\d+\.\d+)*, batch;desc=\"(\d+) rows?\""
)
# What a row can hold: no server computes for a year, or runs so many rows together.
_MOST_NS, _MOST_ROWS = 1 << 55, (1 << 31) - 1
_ENTRY = re.compile(r"([A-Za-z0-9_-]+)((?:\s*;[^,;\"]*(?:\"[^\"]*\")?)*)")


def read_server_timing(header: str) -> ServerTiming:
    """What a `server-timing` header says; whatever else it holds is passed over."""
    if ours := _OURS.fullmatch(header):
        return _ns(ours[1]), _ns(ours[2]), _rows(ours[3])
    durations: dict[str, str] = {}
    rows = None
    for name, parameters in _ENTRY.findall(header):
        if found := re.search(r"dur=\"?([0-9.]+)", parameters):
            durations[name] = found[1]
        if name == "batch" and (found := re.search(r"desc=\"?(\d+)", parameters)):
            rows = _rows(found[1])
    return _ns(durations.get("queue")), _ns(durations.get("compute")), rows


def _ns(milliseconds: str | None) -> int | None:
    try:
        found_ns = math.nan if milliseconds is None else float(milliseconds) * 1e6
    except ValueError:
        return None
    return round(found_ns) if found_ns < _MOST_NS else None


def _rows(text: str) -> int | None:
    return found if len(text) < 12 and (found := int(text)) <= _MOST_ROWS else None
