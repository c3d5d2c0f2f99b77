"""Whether a run's figures may be believed: conditions that hold or do not, each with what was found. Pure."""

import msgspec
import numpy as np

from mlserve.runs.load import Plan
from mlserve.runs.resources import Resources
from mlserve.runs.run import Calibration, Certificate, Check
from mlserve.runs.samples import DROPPED, OK, Samples
from mlserve.runs.window import Window
from mlserve.stats import minimum_samples, quantile
from mlserve.units import format_duration

__all__ = ["Facts", "certify"]

_CLAIMED = 0.99
_LAG_FLOOR_S, _LAG_SHARE = 1e-3, 0.1
_MOST_CPU = 0.8
_MOST_FAILED = 0.01
_GROWTH, _GROWTH_FLOOR_S = 2.0, 1e-3


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the rows cannot tell.

    `generator_cpus` are the shares of one core that each generator used. `ok` and `failed` count the whole run, warm-up
    included; `counted_ok` is what the server counted meanwhile, None where it does not tell. `device` is the one the
    server was held to, "" where it is not ours; `provider` and `precision` are what it says it really runs on and in.
    `server_cpus` and `generator_cores` are the cores the two are held to, empty where nobody knows.
    """

    generator_cpus: tuple[float, ...]
    ok: int
    failed: int
    counted_ok: int | None = None
    device: str = ""
    provider: str = ""
    precision: str = ""
    variant: str = ""
    server_cpus: tuple[int, ...] = ()
    generator_cores: tuple[int, ...] = ()
    calibration: Calibration | None = None
    resources: Resources = Resources()


def certify(samples: Samples, plan: Plan, window: Window, facts: Facts) -> Certificate:
    """The certificate of a run that measured `samples`.

    A check that cannot be made is left out; none passes for want of evidence.
    """
    checks = [
        _schedule_kept(samples, plan),
        _answered(samples),
        _enough_samples(samples),
        _generator_on_time(samples),
        _generator_idle_enough(facts),
        _steady(samples, window),
        _counters_agree(facts),
        _device(facts),
    ]
    return Certificate(tuple(check for check in checks if check is not None))


def _schedule_kept(samples: Samples, plan: Plan) -> Check:
    """Every request that was due was sent: a dropped one is a latency that is missing from the figures."""
    dropped = int(np.sum(samples.status == DROPPED))
    return Check(
        name="schedule kept",
        ok=dropped == 0,
        found=f"{dropped} of {len(samples)} requests dropped",
        limit="none",
        advice=f"{plan.max_in_flight} requests were waiting already: lower --rps, or raise --max-in-flight.",
    )


def _answered(samples: Samples) -> Check:
    """At most 1% of the requests that were sent failed."""
    failed = int(np.sum((samples.status != OK) & (samples.status != DROPPED)))
    sent = int(np.sum(samples.status != DROPPED))
    share = failed / sent if sent else 1.0
    return Check(
        name="answered",
        ok=share <= _MOST_FAILED,
        found=f"{share:.1%} of the requests sent failed",
        limit=f"at most {_MOST_FAILED:.0%}",
        advice="Look into the server's log for the failures, or lower --rps.",
    )


def _enough_samples(samples: Samples) -> Check:
    """As many answers as a claim about p99 needs (stats.minimum_samples)."""
    needed, found = minimum_samples(_CLAIMED), int(np.sum(samples.ok))
    return Check(
        name="enough samples",
        ok=found >= needed,
        found=f"{found} answers",
        limit=f"at least {needed} for p99",
        advice="Measure for longer (--duration), or at a higher --rps.",
    )


def _generator_on_time(samples: Samples) -> Check | None:
    """The generator's own lateness at p99 is at most 10% of the p99 latency claimed, or 1 ms where that is more.

    Latency counts from the scheduled instant, so lateness is in the figures: it must be too small to matter in them.
    A millisecond is what a busy machine's scheduler costs any generator.
    """
    lag_s = samples.dispatch_lag_s
    if not len(lag_s) or not samples.ok.any():
        return None
    found_s = quantile(lag_s, _CLAIMED)
    limit_s = max(_LAG_FLOOR_S, _LAG_SHARE * quantile(samples.latency_s, _CLAIMED))
    return Check(
        name="generator on time",
        ok=found_s <= limit_s,
        found=f"p99 of requests left {format_duration(found_s)} late",
        limit=f"at most {format_duration(limit_s)}",
        advice="Stop other work on this machine, give the generator a core of its own, or lower --rps.",
    )


def _generator_idle_enough(facts: Facts) -> Check:
    """The generator used at most 80% of its core: one that is busier queues requests itself."""
    return Check(
        name="generator CPU",
        ok=max(facts.generator_cpus) <= _MOST_CPU,
        found=f"{max(facts.generator_cpus):.0%} of a core",
        limit=f"at most {_MOST_CPU:.0%}",
        advice="One generator process cannot make this load: lower --rps.",
    )


def _steady(samples: Samples, window: Window) -> Check | None:
    """The median latency of the last third is neither twice that of the first third nor half of it.

    Where requests arrive faster than they are served the queue grows without end: from the start of a run, latency
    then grows in proportion to time, and the last third's median is five times the first third's. In simulated
    queues (M/M/1 and M/D/1, 1,000 to 10,000 requests) 10% too much load is found in 87% of runs or more, while at
    half load fewer than 1% alarm. Between 90% load and all of it, many alarm: there a queue wanders so slowly that
    the figures depend on when one looks. Differences below a millisecond are none.
    """
    third_s = window.duration_s / 3
    since_s = samples.scheduled_s[samples.ok] - window.start_s
    early, late = samples.latency_s[since_s < third_s], samples.latency_s[since_s >= 2 * third_s]
    if min(len(early), len(late)) < minimum_samples(0.5):
        return None
    early_s, late_s = quantile(early, 0.5), quantile(late, 0.5)
    grown = late_s > max(_GROWTH * early_s, early_s + _GROWTH_FLOOR_S)
    shrunk = early_s > max(_GROWTH * late_s, late_s + _GROWTH_FLOOR_S)
    return Check(
        name="steady",
        ok=not (grown or shrunk),
        found=f"median {format_duration(early_s)} in the first third, {format_duration(late_s)} in the last",
        limit=f"within a factor of {_GROWTH:g}, or {format_duration(_GROWTH_FLOOR_S)}",
        advice=(
            "The server did not keep up, or was still warming up: lower --rps, or lengthen --warm-up and --duration."
        ),
    )


def _counters_agree(facts: Facts) -> Check | None:
    """The server counted the requests that the generator saw answered.

    It may have counted some of the failed ones too: those it answered after the generator had given them up.
    """
    if facts.counted_ok is None:
        return None
    most = facts.ok + facts.failed
    return Check(
        name="server counters",
        ok=facts.ok <= facts.counted_ok <= most,
        found=f"the server counted {facts.counted_ok} answers",
        limit=f"{facts.ok}" if most == facts.ok else f"{facts.ok} to {most}",
        advice="Something else used the server, or answers were lost on the way: give it to the bench alone.",
    )


def _device(facts: Facts) -> Check | None:
    """The server ran on the device asked for. It refuses to start otherwise, so that it served is the proof."""
    if not facts.device:
        return None
    return Check(
        name="device",
        ok=True,
        found=facts.device,
        limit=facts.device,
        advice="",
    )
