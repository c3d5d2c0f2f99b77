"""A report for programs: every value, full precision. `docs/stability.md` says what may change."""

import msgspec

from mlserve.report.report import Report

__all__ = ["render_json"]


def render_json(report: Report) -> str:
    """One indented JSON document."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"
