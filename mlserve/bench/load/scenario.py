"""MLPerf Inference's four scenarios as plans.

MLCommons, Inference Rules, "Scenarios" (github.com/mlcommons/inference_policies, inference_rules.adoc):

    scenario        a query leaves                              rows a query    what is claimed
    single-stream   when the one before it is answered          1               p90 of the latency
    multi-stream    when the one before it is answered          8               p99 of the latency
    server          by a Poisson process                        1               p99 of the latency at the rate
    offline         with all others, at the beginning           any             throughput

An MLPerf result also holds to its models, its data and at least ten minutes; these are loads of the same kind.
"""

from collections.abc import Collection
from typing import Any

import msgspec

from mlserve.errors import UsageError
from mlserve.runs.load import Flat, Plan, Scenario

__all__ = ["SCENARIOS", "apply_scenario"]

SCENARIOS: tuple[Scenario, ...] = ("single-stream", "multi-stream", "server", "offline")

# Offline: enough rows wait at any time for full batches of several workers, and fewer than a queue of ours holds.
_OFFLINE_USERS, _OFFLINE_ROWS = 64, 32

_FLAG_OF = {
    "arrivals": "--arrivals",
    "batch_rows": "--batch",
    "percentile": "--percentile",
    "rate_per_s": "--rps",
    "row_mix": "--batch",
    "shape": "--shape",
    "users": "--users",
}


def apply_scenario(name: str, plan: Plan, given: Collection[str] = ()) -> Plan:
    """`plan` as the scenario `name` wants it; `given` are the fields of it that the user asked for in so many words.

    A scenario decides the arrivals, how many rows a request has and which percentile is claimed; `server` leaves the
    rate to the user, `offline` the rows and how many requests are in flight. Raises UsageError for an unknown name, and
    for a given field that it contradicts.
    """
    chosen = next((scenario for scenario in SCENARIOS if scenario == name), None)
    if chosen is None:
        raise UsageError(f"--scenario {name!r} is unknown; use one of {', '.join(SCENARIOS)}")
    fixed = _fixed(chosen)
    for field, value in fixed.items():
        if field in given and getattr(plan, field) != value:
            raise UsageError(f"{_FLAG_OF[field]} contradicts --scenario {name}, which {_law(chosen)}; leave one out")
    free = {field: value for field, value in _free(chosen).items() if field not in given}
    return msgspec.structs.replace(plan, scenario=chosen, **fixed, **free)


def _fixed(scenario: Scenario) -> dict[str, Any]:
    closed = {"arrivals": "closed", "rate_per_s": 0.0, "shape": Flat()}
    match scenario:
        case "single-stream":
            return {**closed, "users": 1, "batch_rows": 1, "row_mix": (), "percentile": 0.9}
        case "multi-stream":
            return {**closed, "users": 1, "batch_rows": 8, "row_mix": (), "percentile": 0.99}
        case "server":
            one_row = {"batch_rows": 1, "row_mix": ()}
            return {"arrivals": "poisson", "shape": Flat(), "users": 0, "percentile": 0.99, **one_row}
    return {**closed, "row_mix": ()}


def _free(scenario: Scenario) -> dict[str, Any]:
    return {"users": _OFFLINE_USERS, "batch_rows": _OFFLINE_ROWS} if scenario == "offline" else {}


def _law(scenario: Scenario) -> str:
    match scenario:
        case "single-stream":
            return "sends one row when the one before it is answered, and claims p90"
        case "multi-stream":
            return "sends 8 rows when those before them are answered, and claims p99"
        case "server":
            return "sends one row at a time as a Poisson process at --rps, and claims p99"
    return "has as many large requests waiting as --users says, and claims the throughput"
