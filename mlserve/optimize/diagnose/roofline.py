"""What limits an operation: the arithmetic units, the memory, or neither.

The roofline model: S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for
multicore architectures", Communications of the ACM 52(4), 2009. No operation ends sooner than its work over the peak of
the arithmetic units, or its bytes over the bandwidth of the memory.
"""

from collections.abc import Iterable
from itertools import groupby
from typing import Literal

import msgspec

from mlserve.optimize.diagnose.facts import Operation, Peaks, Profile

__all__ = ["Bound", "OperatorTime", "bound", "by_operator", "roof_s"]

Bound = Literal["compute", "memory", "overhead"]
"""`overhead`: far from both roofs, so the time goes into starting the operation, or its kernel is a poor one."""

_FAR_FROM_ROOF = 4.0


class OperatorTime(msgspec.Struct, frozen=True, kw_only=True):
    """All operations of one kind and precision together."""

    operator: str
    precision: str
    count: int
    self_s: float
    share: float
    flops: int
    flops_per_s: float
    moved_bytes: int
    bound: Bound | None


def roof_s(operations: Iterable[Operation], peaks: Peaks) -> float:
    """The least time these operations can take on this machine, one after the other."""
    return sum(max(_compute_s(operation, peaks), _memory_s(operation, peaks)) for operation in operations)


def bound(operations: Iterable[Operation], peaks: Peaks | None) -> Bound | None:
    """What limits these operations together; None where the peaks are not known, or neither work nor bytes.

    The bandwidth is that of the main memory; what stays in a cache may beat it, so "memory" is said too seldom rather
    than too often.
    """
    these = list(operations)
    if peaks is None or any(operation.moved_bytes is None and not operation.flops for operation in these):
        return None
    compute_s = sum(_compute_s(operation, peaks) for operation in these)
    memory_s = sum(_memory_s(operation, peaks) for operation in these)
    if sum(operation.self_s for operation in these) > _FAR_FROM_ROOF * roof_s(these, peaks):
        return "overhead"
    return "compute" if compute_s >= memory_s else "memory"


def by_operator(profile: Profile, peaks: Peaks | None) -> tuple[OperatorTime, ...]:
    """The time of one run by operator and precision, the most first."""

    def kind(operation: Operation) -> tuple[str, str]:
        return operation.operator, operation.precision

    rows = []
    for (operator, precision), group in groupby(sorted(profile.operations, key=kind), key=kind):
        these = list(group)
        self_s = sum(operation.self_s for operation in these)
        work = sum(operation.flops for operation in these)
        rows.append(
            OperatorTime(
                operator=operator,
                precision=precision,
                count=len(these),
                self_s=self_s,
                share=profile.time_share(these),
                flops=work,
                flops_per_s=work / self_s if self_s else 0.0,
                moved_bytes=sum(operation.moved_bytes or 0 for operation in these),
                bound=bound(these, peaks),
            )
        )
    return tuple(sorted(rows, key=lambda row: -row.self_s))


def _compute_s(operation: Operation, peaks: Peaks) -> float:
    integer = operation.precision == "int8" and peaks.int8_ops_per_s
    return operation.flops / (integer or peaks.fp32_flops_per_s)


def _memory_s(operation: Operation, peaks: Peaks) -> float:
    return (operation.moved_bytes or 0) / peaks.bytes_per_s
