"""Whether two sides may be compared, and what a reader should know of how they were made. Pure."""

from collections.abc import Sequence

from mlserve.errors import UsageError
from mlserve.report.conditions import LOAD_FIELDS, SERVER_FIELDS, Conditions, differences
from mlserve.report.measurement import Measurement, Recorded, group

__all__ = ["cautions", "faults", "in_turn", "one_measurement", "unlike", "unlike_loads"]

_COMPARABLE = tuple(field for field in Conditions.__struct_fields__ if field not in SERVER_FIELDS)


def one_measurement(runs: Sequence[Recorded], side: str) -> Measurement:
    """`runs` as repeats of one measurement. Raises UsageError when they are of different models or conditions."""
    measurements = group(runs)
    if len(measurements) == 1:
        return measurements[0]
    first, second = measurements[:2]
    found = differences(first.conditions, second.conditions) or [
        f"{first.identity.full} against {second.identity.full}"
    ]
    raise UsageError(
        f"the {side} mixes {len(measurements)} measurements ({'; '.join(found)}); "
        "give a folder with repeats of one of them"
    )


def unlike(baseline: Measurement, candidate: Measurement, *, ignore_differences: bool) -> list[str]:
    """Notes on what differs of load and machine. Raises UsageError for it, unless `ignore_differences`."""
    found = differences(baseline.conditions, candidate.conditions, _COMPARABLE)
    if found and not ignore_differences:
        raise UsageError(
            f"baseline and candidate cannot be compared: {'; '.join(found)}. Measure both alike, "
            "or give --ignore-differences"
        )
    return [f"compared although they differ: {difference}" for difference in found]


def unlike_loads(baseline: Measurement, candidate: Measurement) -> None:
    """Raises UsageError where the loads differ; that machines do is a matter of their fingerprints."""
    found = differences(baseline.conditions, candidate.conditions, (*LOAD_FIELDS, "payload", "generators"))
    if found:
        raise UsageError(
            f"baseline and candidate cannot be compared: {'; '.join(found)}. Measure the candidate under the "
            "baseline's load: mlserve bench --like REPORT"
        )


def cautions(baseline: Measurement, candidate: Measurement) -> list[str]:
    """What differs of settings and software, which is what a gate is for."""
    notes = [
        f"the server's settings differ: {difference}"
        for difference in differences(baseline.conditions, candidate.conditions, SERVER_FIELDS)
    ]
    before, after = baseline.runs[0].run.machine.packages, candidate.runs[0].run.machine.packages
    return notes + [
        f"the software differs: {name} {before.get(name, 'none')} against {after.get(name, 'none')}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def in_turn(before: Sequence[Recorded], after: Sequence[Recorded]) -> bool:
    """Whether each run of the one side has one of the other beside it: A B A B, or A B B A."""
    if len(before) != len(after):
        return False
    sides = [(one.run.started_at, side) for side, runs in (("A", before), ("B", after)) for one in runs]
    order = [side for _, side in sorted(sides)]
    return all(one != other for one, other in zip(order[::2], order[1::2], strict=True))


def faults(runs: Sequence[Recorded], side: str) -> list[str]:
    """Why runs among them are INVALID, each with its advice."""
    return [
        f"{side} {one.run.label} ({one.directory}) is INVALID: {check.name}: {check.found}, limit: {check.limit}. "
        f"{check.advice}"
        for one in runs
        for check in one.run.certificate.faults
    ]
