"""Whether the generators made the load they were asked for, and had a machine to make it on."""

from mlserve.bench.certificate.facts import Facts
from mlserve.runs.load import Plan
from mlserve.runs.resources import Resources
from mlserve.runs.run import Check
from mlserve.runs.samples import Samples
from mlserve.runs.window import Window
from mlserve.stats import minimum_samples, quantile
from mlserve.units import format_duration, format_rate

__all__ = [
    "calibrated_latency",
    "calibrated_rate",
    "generator_idle_enough",
    "generator_on_time",
    "left_alone",
    "not_stolen",
    "own_cores",
]

_CLAIMED = 0.99
_LAG_FLOOR_S, _LAG_SHARE = 1e-3, 0.1
_MOST_CPU = 0.8
_LEAST_RATE = 0.95
_NULL_FLOOR_S, _NULL_SHARE = {0.5: 1e-3, 0.99: 2e-3}, 0.2
_MOST_STEAL = 0.02
_MOST_SHARED = 0.1
_MOST_OTHERS = 0.05
_TICKS_PER_S = 250


def generator_on_time(samples: Samples, plan: Plan) -> Check | None:
    """The generator's own lateness is at most 10% of the latency claimed, at the same percentile, or 1 ms where that is
    more.

    Latency counts from the scheduled instant, so lateness is in the figures: it must be too small to matter in them.
    A millisecond is what a busy machine's scheduler costs any generator. p99 is always shown, so always claimed.
    """
    lag_s = samples.dispatch_lag_s
    if plan.closed or not len(lag_s) or not samples.ok.any():
        return None
    q = max(_CLAIMED, plan.percentile)
    found_s, claimed_s = quantile(lag_s, q), quantile(samples.latency_s, q)
    limit_s = max(_LAG_FLOOR_S, _LAG_SHARE * claimed_s)
    return Check(
        name="generator on time",
        ok=found_s <= limit_s,
        found=f"p{100 * q:g} of requests left {format_duration(found_s)} late",
        limit=f"at most {format_duration(limit_s)}, of a latency of {format_duration(claimed_s)}",
        advice=(
            "Stop other work on this machine, give the generator a core of its own, share the load among more of them "
            "(--workers), or lower --rps."
        ),
    )


def generator_idle_enough(facts: Facts) -> Check:
    """Each generator used at most 80% of its core: one that is busier queues requests itself."""
    busiest = max(range(len(facts.generator_cpus)), key=lambda number: facts.generator_cpus[number])
    cpu = facts.generator_cpus[busiest]
    which = f" by generator {busiest + 1} of {len(facts.generator_cpus)}" if len(facts.generator_cpus) > 1 else ""
    return Check(
        name="generator CPU",
        ok=cpu <= _MOST_CPU,
        found=f"{cpu:.0%} of a core{which}",
        limit=f"at most {_MOST_CPU:.0%}",
        advice="So few generators cannot make this load: give --workers more of them, or lower --rps.",
    )


def own_cores(facts: Facts) -> Check | None:
    """Server and generators run on different cores. A server that has others, too, may leave those of the generators
    alone all the same.

    On one core either waits for the other to leave it, and that wait looks like the server's.
    """
    servers = _cores_of("server", facts.resources, facts.server_cpus)
    generators = _cores_of("generator", facts.resources, facts.generator_cores)
    if servers is None or generators is None:
        return None
    shared = not servers or not generators or bool(set(servers) & set(generators))
    used = facts.resources.shared_cpu
    confined = bool(servers) and set(servers) <= set(generators)
    left_alone = not confined and used is not None and used <= _MOST_SHARED
    found = f"server on {_named(servers)}, generator on {_named(generators)}"
    if shared and used is not None:
        found += f", of which {used:.0%} of a core went to others"
    return Check(
        name="own cores",
        ok=not shared or left_alone,
        found=found,
        limit="none shared, or hardly used",
        advice="Hold the server to cores that the generator does not use, as `taskset -c` does.",
    )


def not_stolen(facts: Facts) -> Check | None:
    """The hypervisor kept the cores from running at most 2% of the time."""
    steal = facts.resources.steal
    if steal is None:
        return None
    return Check(
        name="steal",
        ok=steal <= _MOST_STEAL,
        found=f"{steal:.1%} of the cores' time given to other machines",
        limit=f"at most {_MOST_STEAL:.0%}",
        advice="The host has too little to give: repeat the run at a quieter time, or on a machine of your own.",
    )


def left_alone(facts: Facts, window: Window) -> Check | None:
    """Other processes used at most a twentieth of the cores that server and generators run on.

    The kernel counts ticks: a short run sees few, and is given three times their scatter (a binomial share of them).
    """
    resources = facts.resources
    if resources.others_cpu is None or not resources.cores_in_use:
        return None
    cores = resources.cores_in_use
    scatter = 0.5 * (cores / (_TICKS_PER_S * window.duration_s)) ** 0.5
    limit = max(_MOST_OTHERS * cores, 3 * scatter)
    named = ", ".join(
        f"{process.name} (pid {process.pid}) {process.cpu:.0%}"
        for process in resources.processes
        if process.role == "other"
    )
    return Check(
        name="other work",
        ok=resources.others_cpu <= limit,
        found=f"{resources.others_cpu:.0%} of a core" + (f"; busiest on this machine: {named}" if named else ""),
        limit=f"at most {limit:.0%} of a core, on {cores} cores",
        advice="Stop other work on this machine, or move it to other cores.",
    )


def calibrated_rate(plan: Plan, facts: Facts) -> Check | None:
    """Against a server that answers at once, the generators reach 95% of the rate asked for, or as near to it as chance
    lets so few arrivals come (three standard deviations of a Poisson count).
    """
    found = facts.calibration
    if found is None or plan.closed:
        return None
    least_per_s = plan.rate_per_s * (1 - max(1 - _LEAST_RATE, 3 / max(1, found.requests) ** 0.5))
    return Check(
        name="calibration rate",
        ok=found.achieved_per_s >= least_per_s,
        found=f"{format_rate(found.achieved_per_s)} against the null server",
        limit=f"at least {format_rate(least_per_s)}",
        advice="The generators cannot make this load on this machine: give --workers more of them, or lower --rps.",
    )


def calibrated_latency(samples: Samples, plan: Plan, facts: Facts) -> Check | None:
    """Against a server that answers at once, requests take at most a fifth of what is claimed: what generator, client
    and kernel cost by themselves. The medians are compared, and p99 where the null server was asked enough for one.

    Where a fifth is less, the median may be 1 ms and p99 2 ms. On a quiet machine of two cores they are 0.12 to 0.46 ms
    and 0.42 to 1.4 ms (28 calibrations, 300 to 1,000 requests/s over REST and gRPC); beside other work, p99 is 2 to 10.
    """
    found = facts.calibration
    if found is None or plan.closed or not samples.ok.any():
        return None
    limits_s = {q: max(floor_s, _NULL_SHARE * quantile(samples.latency_s, q)) for q, floor_s in _NULL_FLOOR_S.items()}
    asked_enough = found.requests >= minimum_samples(0.99)
    judged = {"p50": (found.p50_s, limits_s[0.5])} | ({"p99": (found.p99_s, limits_s[0.99])} if asked_enough else {})
    return Check(
        name="calibration latency",
        ok=all(found_s <= limit_s for found_s, limit_s in judged.values()),
        found=", ".join(f"{name} {format_duration(one)}" for name, (one, _) in judged.items()) + " of the null server",
        limit="at most " + ", ".join(f"{name} {format_duration(limit_s)}" for name, (_, limit_s) in judged.items()),
        advice=(
            "The generator's own cost is too large a part of the latency: lower --rps, give --workers more generators, "
            "or stop other work on this machine."
        ),
    )


def _cores_of(role: str, resources: Resources, told: tuple[int, ...]) -> tuple[int, ...] | None:
    """The cores that the processes of a role are held to, empty for any; None where nobody knows."""
    held = [process.cpus for process in resources.processes if process.role == role]
    if not held:
        return told or None
    return tuple(sorted({cpu for cpus in held for cpu in cpus})) if all(held) else ()


def _named(cpus: tuple[int, ...]) -> str:
    """`core 3`, `cores 0-3, 8`, `any core`."""
    if not cpus:
        return "any core"
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    named = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"core {named}" if len(cpus) == 1 else f"cores {named}"
