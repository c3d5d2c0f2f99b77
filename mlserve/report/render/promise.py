"""Whether what was promised is kept, in words: the same in every format."""

from typing import Literal

from mlserve.report.report import Report
from mlserve.report.verdict import keeps

__all__ = ["Kept", "kept", "promise"]

Kept = Literal["kept", "missed", "not shown", "kept by some"]

_WORDS: dict[bool | None, Kept] = {None: "not shown", True: "kept", False: "missed"}


def promise(report: Report) -> str:
    """`SLO kept: p99 within 50.0 ms, at most 0.1% errors`; "" where nothing was promised."""
    return f"SLO {kept(report)}: {report.slo.words}" if report.slo else ""


def kept(report: Report) -> Kept:
    """What is shown of what was promised: by the verdict, or without one by every VALID result together."""
    if report.verdict:
        return _WORDS[report.verdict.meets]
    if report.slo is None:
        return "not shown"
    if report.choice and report.choice.slo == report.slo:
        every_valid = all(one.valid for one in report.results)
        return "missed" if report.choice.all_missed and every_valid else "not shown"
    found = {keeps(one.summary, report.slo) for one in report.results if one.valid} - {None}
    return "kept by some" if len(found) > 1 else _WORDS[next(iter(found), None)]
