"""What `mlserve tune` shows: while it searches, and at its end."""

import re
import shlex
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from mlserve.cli.bench_sweep import Line
from mlserve.cli.terminal import err, out
from mlserve.units import format_duration, format_rate

if TYPE_CHECKING:
    from mlserve.bench.progress import Progress as Moment
    from mlserve.report.choice import Tried, Verdict
    from mlserve.tuning.choosing.attempt import Attempt, Trial
    from mlserve.tuning.choosing.contest import Contest
    from mlserve.tuning.choosing.space import Space
    from mlserve.tuning.choosing.tune import Tuning

__all__ = ["Watching", "document", "print_verdict", "value_text"]

_MOST_KNOBS, _LEAST_SHARE = 4, 0.02
_NUMBER = re.compile(r"\d+")
_TOLD_EVERY_S = 10.0


class Watching:
    """What a search tells, on the terminal."""

    def __init__(self, line: Line, budget_s: float) -> None:
        self._line, self._budget_s = line, budget_s
        self._best = self._told = ""
        self._told_at_s = 0.0
        self._dead: Counter[int] = Counter()

    def opens(self, space: "Space", *, kept: bool) -> None:
        """What is searched, and how long foretelling it takes; `kept`: that was done before."""
        from mlserve.tuning.choosing.foretelling import most_s

        models = ", ".join(dict.fromkeys(f"{one.model} ({one.variant})" for one in space.settings))
        self._line.say(f"{len(space.settings)} settings of {models}")
        if not kept:
            whole = format_duration(most_s(space))
            self._line.say(f"foretelling them first, beside --budget: about {whole}, less where times are kept")

    def prepares(self, step: str) -> None:
        """What is done before the first run; in a log, when something else begins, and every ten seconds."""
        self._line.show(step)
        kind = _NUMBER.sub("", step)
        if not err.is_terminal and (kind != self._told or time.monotonic() - self._told_at_s > _TOLD_EVERY_S):
            self._told, self._told_at_s = kind, time.monotonic()
            self._line.say(step)

    def foretold(self, contest: "Contest", left_out: dict[str, str]) -> None:
        """What is expected before anything was served, and what is not searched."""
        from mlserve.cli.what_if import disturbed_words

        for which, reason in left_out.items():
            self._line.say(f"left out: {which}: {reason}", "yellow")
        if disturbed := max(one.disturbed for one in contest.predictions):
            self._line.say(disturbed_words(disturbed), "yellow")
        self._line.say(f"foretold: {_foretold_words(contest)}")

    def begins(self, trial: "Trial", label: str, spent_s: float) -> None:
        left_s = self._budget_s - spent_s
        left = f"{format_duration(left_s)} left" if left_s > 0 else "over the budget"
        best = f", best so far {self._best}" if self._best else ""
        self._line.show(
            f"{left}{best}; {trial.why}: {label} at {format_rate(trial.rate_per_s)}",
            round(min(spent_s, self._budget_s)),
            round(self._budget_s),
        )

    def moves(self, progress: "Moment") -> None:
        self._line.moves(progress)

    def ends(self, attempt: "Attempt", label: str, best: str) -> None:
        what = f"{attempt.folder[:3]} {label} at {format_rate(attempt.rate_per_s)}"
        if attempt.failure:
            self._line.say(f"{what}: failed: {attempt.failure}{self._after_death(attempt)}", "red")
        else:
            verdict = "meets it" if attempt.met else "does not meet it"
            found = f", {format_duration(attempt.percentile_s)}" if attempt.percentile_s is not None else ""
            faults = "" if attempt.valid else f" (INVALID: {', '.join(attempt.faults)})"
            grows = ", the queue grows" if "queue grows" in attempt.why else ""
            self._line.say(f"{what}: {verdict}{found}{grows}{faults}", "" if attempt.valid else "yellow")
        if best != self._best:
            self._best = best
            self._line.say(f"best so far: {best}" if best else "nothing meets the objective yet", "bold")

    def _after_death(self, attempt: "Attempt") -> str:
        """What follows from a server that died; "" where none did."""
        if not attempt.died:
            return ""
        self._dead[attempt.number] += 1
        first = self._dead[attempt.number] == 1
        return "; a fresh server is asked once more" if first else "; that was twice, so this setting is out"


def print_verdict(
    contest: "Contest", verdict: "Verdict", spent_s: float, directory: Path, files: dict[str, str]
) -> None:
    """The pick in a sentence, what it rests on, and every setting that was measured."""
    _say(_sentence(contest, verdict), "bold green" if verdict.valid else "bold yellow")
    if verdict.pick is not None and not verdict.valid:
        _say("not proven   do not rely on it: no VALID fresh run says that it meets the objective", "red")
        _say(f"             {_proof_words(verdict)}", "red")
    for text in _remarks(contest, verdict):
        _say(text)
    out.print(_table(contest, verdict))
    _say(f"searched     {len(contest.settings)} settings, {len(verdict.tried)} measured, in {format_duration(spent_s)}")
    if "production" in files:
        config = shlex.quote(files["production"])
        _say(
            f"serve it     mlserve serve --config {config}"
            if verdict.valid
            else f"kept in      {config}, valid = false"
        )
    for kind in ("html", "md"):
        if kind in files:
            _say(f"{'report' if kind == 'html' else '':13}{files[kind]}")
    _say(f"runs         {directory}")


def _foretold_words(contest: "Contest") -> str:
    """What the best is expected to do: its highest rate where that is sought, else its latency at the rate asked."""
    from mlserve.tuning.choosing.contest import label_of

    objective, rate_per_s = contest.aim.objective, contest.aim.rate_per_s
    if rate_per_s is None:
        best = max(contest.predictions, key=lambda one: one.max_rate_per_s)
        if not best.max_rate_per_s:
            return "no setting meets it; the likeliest are tried"
        return f"up to {format_rate(best.max_rate_per_s)} with {label_of(best.setting, contest.settings)}"
    best = min(contest.predictions, key=lambda one: one.objective_s)
    if best.objective_s > objective.limit_s:
        return f"no setting meets it at {format_rate(rate_per_s)}; the likeliest are tried"
    meet = sum(one.objective_s <= objective.limit_s for one in contest.predictions)
    found = f"{objective.name} {format_duration(best.objective_s)} with {label_of(best.setting, contest.settings)}"
    return f"{meet} of {len(contest.predictions)} settings meet it at {format_rate(rate_per_s)}, the best {found}"


def value_text(contest: "Contest", one: "Tried") -> str:
    """`812/s (800/s to 824/s)`, `4.05 ms (3.90 ms to 4.21 ms)`, `0.00042`; "-" where there is none."""
    if one.value is None:
        return "-"
    write = _writer(contest)
    if one.low is None or one.high is None or one.low == one.high:
        return write(one.value)
    return f"{write(one.value)} ({write(one.low)} to {write(one.high)})"


def document(tuning: "Tuning", verdict: "Verdict", directory: Path, files: dict[str, str]) -> dict[str, Any]:
    """The outcome for programs."""
    import msgspec

    contest = tuning.contest
    setting = contest.settings[verdict.pick.number] if verdict.pick is not None else None
    return {
        "format_version": 1,
        "directory": str(directory),
        "aim": msgspec.to_builtins(contest.aim),
        "setting": msgspec.to_builtins(setting),
        "verdict": msgspec.to_builtins(verdict),
        "settings": len(contest.settings),
        "left_out": tuning.left_out,
        "spent_s": round(tuning.spent_s, 1),
        "files": files,
    }


def _sentence(contest: "Contest", verdict: "Verdict") -> str:
    objective, pick = contest.aim.objective, verdict.pick
    if pick is None:
        return f"Nothing was found that meets {objective.words}: {verdict.why}"
    proof = verdict.why if verdict.confirmed else f"not confirmed: {verdict.why}"
    load = f" at {format_rate(verdict.rate_per_s)}"
    figure = f"{verdict.figure} {value_text(contest, pick)}"
    return (
        f"{'Serve' if verdict.confirmed else 'Best so far:'} {pick.label}: {figure}, {objective.words}{load}; {proof}"
    )


def _proof_words(verdict: "Verdict") -> str:
    """What would prove a pick that nothing confirmed."""
    from mlserve.tuning.choosing.standing import SPENT

    if SPENT in verdict.why:
        return "go on with the same --out and a larger --budget"
    return "stop what else runs on this machine, and go on with the same --out: the pick is then confirmed anew"


def _remarks(contest: "Contest", verdict: "Verdict") -> list[str]:
    lines = []
    if verdict.nearest:
        lines.append(f"nearest      {verdict.nearest}")
    if verdict.needed:
        lines.append(f"try          {verdict.needed}")
    if verdict.runner_up is not None:
        chance = "" if verdict.flip is None else f"; better after all with a probability of {verdict.flip:.0%}"
        lines.append(f"runner-up    {verdict.runner_up.label}: {value_text(contest, verdict.runner_up)}{chance}")
    knobs = [f"{name} {share:.0%}" for name, share in verdict.importance.items() if share >= _LEAST_SHARE]
    if knobs:
        lines.append(f"what matters {', '.join(knobs[:_MOST_KNOBS])} of the differences between all settings")
    if verdict.untried:
        label, words = next(iter(verdict.untried.items()))
        lines.append(f"not measured {len(verdict.untried)} settings, of which {label} promises most: {words}")
    if verdict.compared:
        lines.append(f"predictions  {verdict.near} of {verdict.compared} within 20% of what was measured")
    return lines


def _table(contest: "Contest", verdict: "Verdict") -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("setting")
    table.add_column(f"{verdict.figure} (interval)", justify="right")
    for heading in ("foretold", "measured"):
        table.add_column(heading, justify="right")
    table.add_column("")
    write = format_rate if contest.seeks_rate else format_duration
    for one in verdict.tried:
        table.add_row(
            Text(one.label),
            value_text(contest, one),
            *("-" if value is None else write(value) for value in (one.predicted, one.measured)),
            Text(one.why or one.state),
            style="bold" if one.state == "picked" else "",
        )
    return table


def _writer(contest: "Contest") -> Callable[[float], str]:
    match contest.aim.goal:
        case "throughput" | "goodput":
            return format_rate
        case "latency":
            return format_duration
        case "cost" if contest.aim.price_per_h is None:
            return lambda value: f"{value:.3g} s"
        case _:
            return lambda value: f"{value:.3g}"


def _say(text: str, style: str = "") -> None:
    out.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
