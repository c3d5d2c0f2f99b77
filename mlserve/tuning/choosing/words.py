"""What is said of settings that were not chosen. Pure."""

import math
from collections.abc import Sequence

import numpy as np

from mlserve.tuning.choosing.attempt import Attempt
from mlserve.tuning.choosing.belief import Belief
from mlserve.tuning.choosing.contest import Contest, label_of
from mlserve.units import format_bytes, format_duration, format_rate

__all__ = ["blamed_words", "missed_words", "needed_words", "unmeasured_words"]

_MANY = 100


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
        f"{times:,.{0 if times >= _MANY else 2}f} times the limit{errors}{grows}"
    )


def blamed_words(one: Attempt) -> str:
    """Of a run that shows the generator, or other work, and not the server."""
    if one.blame.startswith(("generator", "calibration")):
        return f"the generator could not offer {format_rate(one.rate_per_s)} ({one.blame})"
    return f"its run at {format_rate(one.rate_per_s)} was spoilt ({one.blame})"


def needed_words(contest: Contest, attempts: Sequence[Attempt], *, spent: bool) -> str:
    """What would have to be different for the objective to be met; `spent`: the budget ended the search."""
    ran = [one for one in attempts if not one.failure]
    if not ran:
        return "look into the reasons above: no setting could be measured"
    if all(one.why == "memory" for one in ran):
        smallest = min(one.memory_bytes for one in ran if one.memory_bytes)
        return f"allow {format_bytes(1.05 * smallest)} with --max-memory, or tune a smaller model"
    told = [one for one in ran if not one.blame]
    if spent:
        usual = format_duration(sum(one.seconds for one in ran) / len(ran))
        return f"raise --budget, as a run takes about {usual}, or lower --duration; the same --out goes on"
    if not told:
        return "stop other work on this machine, and run it again: every run shows the generator, not the server"
    if all(one.error_rate > contest.aim.objective.max_errors for one in told):
        return "look into why requests failed, in the report, or allow more of them with --errors"
    return _looser_words(contest, [one for one in told if one.percentile_s])


def _looser_words(contest: Contest, ran: Sequence[Attempt]) -> str:
    """What else could be met, by runs that missed the objective."""
    limit_s = contest.aim.objective.limit_s
    nearest = min(ran, key=lambda one: one.percentile_s or math.inf, default=None)
    found_s = 1.1 * (nearest.percentile_s or 0.0) if nearest is not None else 0.0
    # A run within the limit missed something else: what it was within is no advice.
    looser = [f"--slo {contest.aim.objective.name}={1000 * found_s:.3g}ms"] if found_s > limit_s else []
    if contest.seeks_rate:
        others = ["a faster model", "a faster machine"]
    else:
        fits = max((one.max_rate_per_s for one in contest.predictions), default=0.0)
        lower = [f"--rps {fits:.3g} (foretold)"] if 0 < fits < (contest.aim.rate_per_s or 0.0) else []
        others = [*lower, "a faster model", "more machines that share the load"]
    words = [*looser, *others]
    return f"{', '.join(words[:-1])}, or {words[-1]}"


def unmeasured_words(contest: Contest, attempts: Sequence[Attempt], belief: Belief) -> dict[str, str]:
    """Of each setting that was never run, by its label, the most promising first: what is believed of it."""
    tried = {one.number for one in attempts}
    found = {}
    worst_first = np.argsort(belief.mean if contest.seeks_rate else -belief.mean, kind="stable")
    for number in worst_first[::-1].tolist():
        setting = contest.settings[number]
        if number not in tried:
            middle, spread = float(belief.mean[number]), float(belief.spread[number])
            low, high = np.exp([middle - 1.96 * spread, middle + 1.96 * spread])
            if contest.seeks_rate:
                words = f"expected {format_rate(low)} to {format_rate(high)}"
            else:
                words = f"expected {contest.aim.objective.name} {format_duration(low)} to {format_duration(high)}"
            found[label_of(setting, contest.settings)] = words
    return found
