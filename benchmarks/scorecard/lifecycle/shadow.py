"""B8: a shadow that is dead, slow or erring. What it tests is not built."""

from scorecard.case import Case

__all__ = ["CASE"]

CASE = Case(
    id="B8",
    title="Shadow target dead, slow, erring",
    criterion="the primary's p99 stays within 5% of that without a shadow, its errors at 0; the shadow's queue is "
    "bounded and what it drops is counted",
    source="Envoy's and Istio's mirroring",
    missing="mlserve cannot send copies of requests to a shadow yet",
)
