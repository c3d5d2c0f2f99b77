"""All tests of the scorecard, in order: every one is named here, so that none is forgotten."""

from collections.abc import Iterable
from importlib import import_module

from scorecard.case import Case

__all__ = ["GROUPS", "MODULES", "TIMELESS", "UNHURRIED", "choose", "find_cases", "group_of"]

GROUPS = {
    "A": "Load and overload",
    "B": "Lifecycle",
    "C": "Faults",
    "D": "Bad input",
    "E": "Security",
    "F": "Soak",
}

MODULES = {
    "A1": "load.steady",
    "A2": "load.overload",
    "A3": "load.rejection",
    "A4": "load.queue_bound",
    "A5": "load.deadlines",
    "A6": "load.disconnects",
    "A7": "load.batch_integrity",
    "A8": "load.neighbours",
    "A9": "load.connections",
    "A10": "load.counters",
    "B1": "lifecycle.draining",
    "B2": "lifecycle.forced_end",
    "B3": "lifecycle.hot_swap",
    "B4": "lifecycle.failed_loads",
    "B5": "lifecycle.half_written",
    "B6": "lifecycle.rollback",
    "B7": "lifecycle.canary",
    "B8": "lifecycle.shadow",
    "B9": "lifecycle.load_storm",
    "C1": "faults.killed_worker",
    "C2": "faults.hung_worker",
    "C3": "faults.crash_loop",
    "C4": "faults.disk_full",
    "C5": "faults.exhaustion",
    "C6": "faults.integrity",
    "C7": "faults.network",
    "D1": "bad_input.negative_matrix",
    "D2": "bad_input.fuzzing",
    "D3": "bad_input.model_files",
    "D4": "bad_input.size_limits",
    "D5": "bad_input.slow_senders",
    "D6": "bad_input.http2_abuse",
    "D7": "bad_input.special_values",
    "E1": "security.doors",
    "E2": "security.malicious_models",
    "E3": "security.pickles",
    "E4": "security.defaults",
    "E5": "security.leaks",
    "E6": "security.certificates",
    "F1": "soak.mixed",
}
"""Where each test is written, below this folder: a module with its `CASE`."""

TIMELESS = (
    "A7", "A9", "A10", "B4", "B5", "B9", "C3", "C6", "D1", "D2", "D3", "D4", "D6", "D7",
    "E1", "E2", "E3", "E4", "E5", "E6",
)  # fmt: skip
"""Those that judge nothing by the clock, or by ten seconds where one is usual: other work may go on beside them."""

UNHURRIED = ("A4", "A5", "A6", "B2", "C4", "C5")
"""Those that mostly wait, and judge by times that one or two of their kind beside them do not change."""


def find_cases(ids: Iterable[str] = MODULES) -> list[Case]:
    """The cases of `ids`. One whose module is not there is not built, and says so; a module that breaks says that."""
    return [_find(one) for one in ids]


def choose(only: str) -> list[str]:
    """`"A4,B1"` or `"A,F1"` -> the ids it means, in order; all for "". Raises ValueError for what there is not."""
    wanted = [word.strip().upper() for word in only.split(",") if word.strip()]
    unknown = [word for word in wanted if word not in MODULES and word not in GROUPS]
    if unknown:
        raise ValueError(f"there is no test {unknown[0]!r}; there are {', '.join(MODULES)}, and the groups A to F")
    return [one for one in MODULES if not wanted or one in wanted or group_of(one) in wanted]


def group_of(case_id: str) -> str:
    """`A10` -> `A`."""
    return case_id[0]


def _find(case_id: str) -> Case:
    name = f"scorecard.{MODULES[case_id]}"
    try:
        case = import_module(name).CASE
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            return _unbuilt(case_id, f"its module cannot be imported: {error}")
        return _unbuilt(case_id, "this test is not written yet")
    except Exception as error:  # one broken module does not take the others with it
        return _unbuilt(case_id, f"its module cannot be imported: {type(error).__name__}: {error}")
    if not isinstance(case, Case) or case.id != case_id:
        return _unbuilt(case_id, f"{name} holds no case {case_id}")
    return case


def _unbuilt(case_id: str, missing: str) -> Case:
    noun = MODULES[case_id].rpartition(".")[2].replace("_", " ")
    return Case(id=case_id, title=noun.capitalize(), criterion="", missing=missing)
