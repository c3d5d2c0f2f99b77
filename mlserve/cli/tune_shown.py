"""What `mlserve tune` shows: while it searches, and at its end."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from mlserve.cli.bench_sweep import Line
from mlserve.cli.terminal import out
from mlserve.units import format_duration, format_rate

if TYPE_CHECKING:
    from mlserve.bench.progress import Progress as Moment
    from mlserve.tuning.choosing.attempt import Attempt, Trial
    from mlserve.tuning.choosing.contest import Contest
    from mlserve.tuning.choosing.space import Space
    from mlserve.tuning.choosing.verdict import Tried, Verdict

__all__ = ["Watching", "document", "print_verdict", "value_text"]

_MOST_KNOBS, _LEAST_SHARE = 4, 0.02


class Watching:
    """What a search tells, on the terminal."""

    def __init__(self, line: Line, budget_s: float) -> None:
        self._line, self._budget_s = line, budget_s
        self._best = ""

    def opens(self, space: "Space") -> None:
        """What is searched."""
        models = ", ".join(dict.fromkeys(f"{one.model} ({one.variant})" for one in space.settings))
        self._line.say(f"{len(space.settings)} settings of {models}")
        self._line.show("foretelling")

    def foretold(self, contest: "Contest", left_out: dict[str, str]) -> None:
        """What is expected before anything was served, and what is not searched."""
        from mlserve.tuning.choosing.contest import label_of

        for which, reason in left_out.items():
            self._line.say(f"left out: {which}: {reason}", "yellow")
        best = min(contest.predictions, key=lambda one: (-one.max_rate_per_s, one.objective_s))
        self._line.say(
            f"foretold: up to {format_rate(best.max_rate_per_s)} with {label_of(best.setting, contest.settings)}"
        )

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
            self._line.say(f"{what}: failed: {attempt.failure}", "red")
        else:
            verdict = "meets it" if attempt.met else "does not meet it"
            found = f", {format_duration(attempt.percentile_s)}" if attempt.percentile_s is not None else ""
            faults = "" if attempt.valid else f" (INVALID: {', '.join(attempt.faults)})"
            self._line.say(f"{what}: {verdict}{found}{faults}", "" if attempt.valid else "yellow")
        if best != self._best:
            self._best = best
            self._line.say(f"best so far: {best}" if best else "nothing meets the objective yet", "bold")


def print_verdict(
    contest: "Contest", verdict: "Verdict", spent_s: float, directory: Path, files: dict[str, str]
) -> None:
    """The pick in a sentence, what it rests on, and every setting that was measured."""
    _say(_sentence(contest, verdict), "bold green" if verdict.confirmed else "bold yellow")
    if verdict.pick is not None and not verdict.valid:
        _say("certificate  INVALID: do not decide by these figures; see the report for what to change", "red")
    for text in _remarks(contest, verdict):
        _say(text)
    out.print(_table(contest, verdict))
    _say(f"searched     {len(contest.settings)} settings, {len(verdict.tried)} measured, in {format_duration(spent_s)}")
    if "production" in files:
        _say(f"serve it     mlserve serve --config {files['production']}")
    for kind in ("html", "md"):
        if kind in files:
            _say(f"{'report' if kind == 'html' else '':13}{files[kind]}")
    _say(f"runs         {directory}")


def value_text(contest: "Contest", one: "Tried") -> str:
    """`812/s (800/s to 824/s)`, `4.05 ms (3.90 ms to 4.21 ms)`, `0.00042`; "-" where there is none."""
    if one.value is None:
        return "-"
    write = _writer(contest)
    if one.low is None or one.high is None or one.low == one.high:
        return write(one.value)
    return f"{write(one.value)} ({write(one.low)} to {write(one.high)})"


def document(
    contest: "Contest", verdict: "Verdict", spent_s: float, directory: Path, files: dict[str, str]
) -> dict[str, Any]:
    """The outcome for programs."""
    import msgspec

    setting = contest.settings[verdict.pick.number] if verdict.pick is not None else None
    return {
        "format_version": 1,
        "directory": str(directory),
        "aim": msgspec.to_builtins(contest.aim),
        "setting": msgspec.to_builtins(setting),
        "verdict": msgspec.to_builtins(verdict),
        "settings": len(contest.settings),
        "spent_s": round(spent_s, 1),
        "files": files,
    }


def _sentence(contest: "Contest", verdict: "Verdict") -> str:
    objective, pick = contest.aim.objective, verdict.pick
    if pick is None:
        return f"Nothing was found that meets {objective.words}: {verdict.why}"
    proof = "confirmed by a fresh run" if verdict.confirmed else f"not confirmed: {verdict.why}"
    load = f" at {format_rate(verdict.rate_per_s)}"
    figure = f"{verdict.figure} {value_text(contest, pick)}"
    return f"Serve {pick.label}: {figure}, {objective.words}{load}; {proof}"


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
            return lambda value: f"{3600 * value:.3g} s of a machine"
        case _:
            return lambda value: f"{value:.3g}"


def _say(text: str, style: str = "") -> None:
    out.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
