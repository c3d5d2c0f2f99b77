"""B7: a canary's share of the requests. What it tests is not built."""

from scorecard.case import Case

__all__ = ["CASE"]

CASE = Case(
    id="B7",
    title="Canary and A/B split with sticky keys",
    criterion="the observed share lies within 99.9% binomial bounds at 10,000 requests; a sticky key never flips; a "
    "canary that errs is rolled back by itself",
    source="KServe's canary tests",
    missing="mlserve cannot split requests between versions yet",
)
