"""What is said of settings that were not chosen. Pure."""

import math
from collections.abc import Sequence

import numpy as np

from mlserve.tuning.choosing.attempt import Attempt
from mlserve.tuning.choosing.belief import Belief
from mlserve.tuning.choosing.contest import Contest, label_of
from mlserve.units import format_bytes, format_duration, format_rate

__all__ = ["missed_words", "needed_words", "unmeasured_words"]


def missed_words(contest: Contest, attempts: Sequence[Attempt], *, with_label: bool = True) -> str:
    """Of the run that came nearest to the objective: by how much it missed it; "" where there is none."""
    ran = [one for one in attempts if not one.failure and not one.met]
    if not ran:
        return ""
    limit_s = contest.aim.objective.limit_s
    nearest = min(ran, key=lambda one: one.percentile_s or math.inf)
    label = f"{label_of(contest.settings[nearest.number], contest.settings)}: " if with_label else ""
    if nearest.why == "memory" and nearest.memory_bytes and contest.aim.max_memory_bytes:
        taken, allowed = format_bytes(nearest.memory_bytes), format_bytes(contest.aim.max_memory_bytes)
        return f"{label}its server took {taken}, allowed are {allowed}"
    errors = f", {nearest.error_rate:.2%} errors" if nearest.error_rate > contest.aim.objective.max_errors else ""
    if nearest.percentile_s is None:
        return (
            f"{label}no {contest.aim.objective.name} at {format_rate(nearest.rate_per_s)}: too few good answers{errors}"
        )
    found = format_duration(nearest.percentile_s)
    times = nearest.percentile_s / limit_s
    grows = ", the queue grows" if "queue grows" in nearest.why else ""
    return (
        f"{label}{contest.aim.objective.name} {found} at {format_rate(nearest.rate_per_s)}, "
        f"{times:.2f} times the limit{errors}{grows}"
    )


def needed_words(contest: Contest, attempts: Sequence[Attempt]) -> str:
    """What would have to be different for the objective to be met."""
    ran = [one for one in attempts if one.percentile_s and not one.failure]
    if not ran:
        return "look into the reasons above: no setting could be measured"
    if all(one.why == "memory" for one in ran):
        smallest = min(one.memory_bytes for one in ran if one.memory_bytes)
        return f"allow {format_bytes(1.05 * smallest)} with --max-memory, or tune a smaller model"
    nearest = min(ran, key=lambda one: one.percentile_s or math.inf)
    assert nearest.percentile_s is not None
    looser = f"--slo {contest.aim.objective.name}={1000 * 1.1 * nearest.percentile_s:.3g}ms"
    if contest.seeks_rate:
        return f"{looser} could be met, a faster model, or a faster machine"
    rates = [one.max_rate_per_s for one in contest.predictions]
    fits = max(rates, default=0.0)
    lower = f" or --rps {fits:.3g} (foretold)," if 0 < fits < nearest.rate_per_s else ""
    return f"{looser},{lower} a faster model, or more machines that share the load"


def unmeasured_words(contest: Contest, attempts: Sequence[Attempt], belief: Belief) -> dict[str, str]:
    """Of each setting that was never run, by its label: what is believed of it."""
    tried = {one.number for one in attempts}
    found = {}
    for number, setting in enumerate(contest.settings):
        if number not in tried:
            middle, spread = float(belief.mean[number]), float(belief.spread[number])
            low, high = np.exp([middle - 1.96 * spread, middle + 1.96 * spread])
            if contest.seeks_rate:
                words = f"expected {format_rate(low)} to {format_rate(high)}"
            else:
                words = f"expected {contest.aim.objective.name} {format_duration(low)} to {format_duration(high)}"
            found[label_of(setting, contest.settings)] = words
    return found
