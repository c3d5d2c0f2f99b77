"""What saved runs, or a production.toml, say of the load that one replica bears."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from mlserve.errors import RunFileError, UsageError
from mlserve.report.capacity import Bears, Seen, bears
from mlserve.report.choice import TUNE_FILE
from mlserve.report.conditions import Conditions, conditions_of
from mlserve.report.measurement import Recorded, read_runs
from mlserve.report.names import ModelIdentity, identity_of
from mlserve.runs.naming import PRODUCTION_FILE, named_runs
from mlserve.runs.production import Evidence, Expected, Production, is_production, read_production
from mlserve.runs.run import RUN_FILE, Run, read_run
from mlserve.stats import minimum_samples
from mlserve.tuning.evidence import Objective, conclude, parse_slo, weigh
from mlserve.tuning.find_max import blame_of, settled_requests

__all__ = ["Replica", "replicas_of"]

_Family = tuple[ModelIdentity, Conditions]


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """One way to serve a model that was measured. `what` is the model and how it was asked, `how` its server and its
    machine; `rows` are those of a request, on average. `bears` is None where not one rate was met, and `lacking` then
    says why. `runs` are those that it rests on.
    """

    what: str
    how: str
    rows: float
    bears: Bears | None
    lacking: str = ""
    caveats: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()


def replicas_of(path: Path, objective: Objective) -> tuple[Replica, ...]:
    """Everything that `path` holds evidence of (see `named_runs`), in the order in which it was measured first.

    The run that a production.toml rests on is one of a search, whose other runs of the same setting say where it ends:
    they count too. A production.toml whose runs are gone is taken at its word. Raises RunFileError and UsageError where
    there is nothing to go by.
    """
    production = _production(path)
    try:
        directories = named_runs(path)
    except RunFileError:
        if production is None or production.expected is None or production.evidence is None:
            raise
        return (_promised(production, production.expected, production.evidence, objective),)
    if production is not None:
        directories = [*directories, *_searched_with(directories)]
    families: dict[_Family, list[Recorded]] = {}
    for recorded in read_runs(directories):
        if _is_steady(recorded):
            families.setdefault(_family(recorded.run), []).append(recorded)
    if not families:
        raise UsageError(
            f"{path} holds no open-loop run at a steady rate, and no other shows what a replica bears; make some with: "
            f"mlserve bench NAME --find-max --slo {objective.text}"
        )
    return tuple(_measured(model.full, alike, runs, objective) for (model, alike), runs in families.items())


def _family(run: Run) -> _Family:
    """What runs of one replica have in common: all but the rate."""
    return identity_of(run), msgspec.structs.replace(conditions_of(run), rate_per_s=0.0)


def _searched_with(directories: Sequence[Path]) -> list[Path]:
    """The runs that searches made of the same replicas as in `directories`: what chose a setting missed faster rates,
    which the run that confirmed it does not show.
    """
    wanted = {_family(read_run(directory)) for directory in directories}
    searches = {directory.parent for directory in directories if (directory.parent / TUNE_FILE).is_file()}
    made = [file.parent for folder in searches for file in folder.glob(f"*/{RUN_FILE}")]
    return [directory for directory in made if _family(read_run(directory)) in wanted]


def _production(path: Path) -> Production | None:
    file = path / PRODUCTION_FILE if path.is_dir() else path
    return read_production(file) if is_production(file) and file.is_file() else None


def _is_steady(recorded: Recorded) -> bool:
    plan, conditions = recorded.run.plan, conditions_of(recorded.run)
    return not plan.closed and not conditions.shape and len(recorded.samples) > 0


def _measured(name: str, conditions: Conditions, runs: Sequence[Recorded], objective: Objective) -> Replica:
    seen = [found for recorded in runs if (found := _seen(recorded, objective)) is not None]
    borne = bears(seen)
    plan = runs[0].run.plan
    rows = sum(size.rows * size.share for size in plan.row_mix) if plan.row_mix else float(plan.batch_rows)
    over = conditions.load.removeprefix("0 requests/s ")
    return Replica(
        what=", ".join([f"{name} {over}", *([conditions.payload] if conditions.payload else [])]),
        how=_how(conditions),
        rows=rows,
        bears=borne,
        lacking="" if borne else _lacking(runs, seen, objective),
        caveats=tuple(_caveats(conditions)),
        runs=tuple(str(recorded.directory) for recorded in runs),
    )


def _seen(recorded: Recorded, objective: Objective) -> Seen | None:
    """What a run says; None for one that is no evidence. An INVALID run can show a miss, where neither generator nor
    machine is to blame: a server that is asked too much makes its runs INVALID. It never shows that a rate is met.
    """
    run, samples = recorded.run, recorded.samples
    verdict = conclude(weigh(settled_requests(samples, samples.scheduled_s), objective), objective)
    too_few = not verdict.sure and len(samples) < minimum_samples(objective.percentile)
    if blame_of(run) or (verdict.met and (too_few or not run.certificate.valid)):
        return None
    energy_j, duration_s = run.resources.energy_j, run.window.duration_s
    return Seen(
        rate_per_s=run.plan.rate_per_s,
        met=verdict.met,
        sure=verdict.sure,
        power_w=energy_j / duration_s if energy_j else None,
    )


def _lacking(runs: Sequence[Recorded], seen: Sequence[Seen], objective: Objective) -> str:
    needed = minimum_samples(objective.percentile)
    slowest = min((one.rate_per_s for one in seen), default=math.inf)
    slower = [one for one in runs if one.run.certificate.valid and one.run.plan.rate_per_s < slowest]
    if any(len(one.samples) < needed for one in slower):
        return (
            f"its runs are too short for {objective.name}, which takes {needed:,} requests; measure for longer "
            "(--duration)"
        )
    if seen:
        return f"not even {slowest:g}/s keeps {objective.words}"
    faults = dict.fromkeys(check.name for recorded in runs for check in recorded.run.certificate.faults)
    which = f"none of its {len(runs)} runs can" if len(runs) > 1 else "its run cannot"
    return f"{which} be believed, INVALID by {', '.join(faults)}"


def _caveats(conditions: Conditions) -> Iterator[str]:
    if conditions.arrivals == "constant":
        yield "requests arrived evenly spaced, which is easier to bear than what independent users send"
    if conditions.workers is None:
        yield "a replica is a server like the one that ran already, on a machine like its own, which no run names"
    if conditions.server_cores is not None and conditions.server_cores < conditions.cores:
        held = _counted(conditions.server_cores, "core")
        yield (
            f"a replica uses {held} of the {conditions.cores} of its machine, as the one that was measured; the rest "
            "made the load, and is paid for"
        )


def _how(conditions: Conditions) -> str:
    """`1 worker, 2 threads, batches of 32 rows, cpu, 1 core; AMD EPYC, 2 cores`."""
    machine = ", ".join([conditions.cpu, _counted(conditions.cores, "core"), *conditions.gpus])
    if conditions.workers is None or conditions.threads is None:
        return f"a server that ran already, asked from {machine}"
    words = [
        _counted(conditions.workers, "worker"),
        _counted(conditions.threads, "thread"),
        f"batches of {conditions.max_batch_rows}",
        *([f"delay {conditions.max_delay_ms:g} ms"] if conditions.max_delay_ms else []),
        *(word for word in (conditions.engine, conditions.compute_type, conditions.device) if word),
        *([f"held to {_counted(conditions.server_cores, 'core')}"] if conditions.server_cores else []),
    ]
    return f"{', '.join(words)}; {machine}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _promised(production: Production, expected: Expected, evidence: Evidence, objective: Objective) -> Replica:
    """What a production.toml says by itself: its p99 at its rate, and the highest rate for its own objective."""
    found = None
    lacking = "its figures rest on INVALID runs"
    if production.is_edited:
        lacking = "its figures were measured with other settings than its [serve] has by now"
    elif evidence.valid:
        found = bears(list(_told(expected, objective)))
        lacking = f"it says nothing of {objective.words}, only of its p99 and of {expected.slo or 'no objective'}"
    serve = production.serve
    size = f" of {expected.batch_rows} rows" if expected.batch_rows > 1 else ""
    return Replica(
        what=f"{', '.join(serve.models)}{size} over {expected.protocol}",
        how=f"{_counted(serve.workers, 'worker')}, {serve.device}; {evidence.cpu}, {_counted(evidence.cores, 'core')}",
        rows=float(expected.batch_rows),
        bears=found,
        lacking="" if found else lacking,
        caveats=("its runs are not here, so that the figures of the file stand for them",),
    )


def _told(expected: Expected, objective: Objective) -> Iterator[Seen]:
    limit_ms = 1000 * objective.limit_s
    if objective.percentile == 0.99:
        sure = expected.p99_high_ms is not None and expected.p99_high_ms <= limit_ms
        yield Seen(rate_per_s=expected.rate_per_s, met=expected.p99_ms <= limit_ms, sure=sure)
    if expected.max_rate_per_s is not None and expected.slo and _same(expected.slo, objective):
        yield Seen(rate_per_s=expected.max_rate_per_s, met=True, sure=False)


def _same(slo: str, objective: Objective) -> bool:
    """Whether `slo`, which people may have edited, is that objective, whatever share of errors it allows."""
    try:
        own = parse_slo(slo)
    except UsageError:
        return False
    return (own.percentile, own.limit_s) == (objective.percentile, objective.limit_s)
