"""Whether a run's figures may be believed: conditions that hold or do not, each with what was found. Pure."""

from mlserve.bench.certificate.facts import Facts
from mlserve.bench.certificate.generation import (
    calibrated_latency,
    calibrated_rate,
    generator_idle_enough,
    generator_on_time,
    left_alone,
    not_stolen,
    own_cores,
)
from mlserve.bench.certificate.machine import clocks_steady, machine_known
from mlserve.bench.certificate.rows import (
    answered,
    answered_right,
    closed_loop,
    enough_samples,
    rate_reached,
    schedule_kept,
    steady,
    warmed_up,
)
from mlserve.bench.certificate.served import computed_in, counters_agree, ran_on
from mlserve.runs.load import Plan
from mlserve.runs.run import Certificate
from mlserve.runs.samples import Samples
from mlserve.runs.window import Window

__all__ = ["Facts", "certify"]


def certify(samples: Samples, plan: Plan, window: Window, facts: Facts) -> Certificate:
    """The certificate of a run that measured `samples`, the rows that were due in `window`.

    A check that cannot be made is left out; none passes for want of evidence.
    """
    checks = [
        closed_loop(plan),
        schedule_kept(samples, plan),
        rate_reached(samples, plan, window),
        answered(samples, plan),
        answered_right(samples, plan),
        enough_samples(samples, plan),
        warmed_up(samples, plan, window, facts),
        steady(samples, plan, window),
        generator_on_time(samples, plan),
        generator_idle_enough(facts),
        calibrated_rate(plan, facts),
        calibrated_latency(samples, plan, facts),
        own_cores(facts),
        left_alone(facts, window),
        not_stolen(facts),
        clocks_steady(facts),
        ran_on(facts),
        computed_in(facts),
        counters_agree(facts),
        machine_known(facts),
    ]
    return Certificate(tuple(check for check in checks if check is not None))
