"""The search on real servers, in a folder that keeps every run and goes on where it stopped."""

import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from mlserve import __version__
from mlserve.bench.course import Decide
from mlserve.bench.generator.job import Stop
from mlserve.bench.progress import Progress
from mlserve.errors import MlserveError, UsageError
from mlserve.report.choice import SEARCH_FILE, Verdict
from mlserve.report.measurement import Recorded
from mlserve.runs.load import Plan
from mlserve.runs.run import RUN_FILE
from mlserve.runs.samples import Samples
from mlserve.stats import minimum_samples
from mlserve.tuning.calibrated import CalibratedRuns, Runs
from mlserve.tuning.campaign import is_finished, make_room, open_campaign
from mlserve.tuning.choosing.at_once import made_at_once
from mlserve.tuning.choosing.attempt import Attempt, Trial, failed_attempt, judge_attempt
from mlserve.tuning.choosing.choose import Pace, next_trial
from mlserve.tuning.choosing.contest import Contest, label_of
from mlserve.tuning.choosing.foretelling import OpensPredictor, foretell
from mlserve.tuning.choosing.record import Record, Search, as_written, read_record, write_record
from mlserve.tuning.choosing.servers import Servers
from mlserve.tuning.choosing.space import Space
from mlserve.tuning.choosing.verdict import best_so_far, conclude_search
from mlserve.tuning.find_max import Judge
from mlserve.tuning.measuring import read_recorded
from mlserve.tuning.opening import Opens
from mlserve.tuning.setting import Setting

if TYPE_CHECKING:
    from mlserve.tuning.choosing.standing import Settled

__all__ = ["Tuning", "Watcher"]

_FAILURE_FILE = "failure.json"
# Far from those of the runs that chose, so that what confirms them has arrivals of its own.
_CONFIRMING_SEEDS = 10_000


class Watcher(Protocol):
    """Told of everything as it comes. `spent_s` is how much of the budget is gone."""

    def begins(self, trial: Trial, label: str, spent_s: float) -> None: ...

    def moves(self, progress: Progress) -> None: ...

    def ends(self, attempt: Attempt, label: str, best: str) -> None: ...


class Tuning:
    """A search under way in `directory`. `run` ends it; cut short, what it has by then is a verdict all the same.

    Raises UsageError where the folder holds another search, or none that can be read.
    """

    def __init__(self, search: Search, pace: Pace, directory: Path, opens: Opens, runs: Runs | None = None) -> None:
        self.attempts: list[Attempt] = []
        self.left_out: dict[str, str] = {}
        self.settled: Settled | None = None
        self._search, self._pace, self._directory = search, pace, directory
        self._opens, self._runs = opens, runs or CalibratedRuns()
        open_campaign(directory, SEARCH_FILE, search)
        _sweep(directory)
        self._before = read_record(directory)
        self._contest: Contest | None = None
        self._cores = 0

    @property
    def contest(self) -> Contest:
        """What is searched, once it is foretold."""
        assert self._contest is not None
        return self._contest

    @property
    def spent_s(self) -> float:
        """How much of the budget is gone."""
        return sum(one.seconds for one in self.attempts)

    @property
    def is_foretold(self) -> bool:
        """Whether the folder has predictions that `foretell` takes, on as many cores as then."""
        before = self._before
        return before is not None and bool(before.predictions) and (bool(before.attempts) or before.quiet)

    def foretell(
        self,
        space: Space,
        opens: OpensPredictor,
        cores: int,
        on_step: Callable[[str], None],
        *,
        machine_cores: int = 0,
    ) -> None:
        """Has every setting foretold, or takes what was foretold before: then nothing is measured for it again, unless
        the machine was busy then and no run rests on it yet.

        `cores` are those that a server has, `machine_cores` those of the whole machine; 0 for as many.
        """
        aim, before = self._search.aim, self._before
        if before is not None and self.is_foretold and before.cores == cores:
            predictions, failed = before.predicted(), before.left_out
        else:
            predictions, failed = foretell(space, aim, opens, on_step)
        self._cores = cores
        self._contest = Contest(predictions=predictions, aim=aim, cores=machine_cores or cores)
        self.left_out = {**space.left_out, **failed}
        if before is None or not before.attempts:
            self._write(None)

    def run(self, watcher: Watcher) -> Verdict:
        """Makes the runs that are not there yet, until enough is known or the budget is spent."""
        if self._before is not None and self._before.verdict is not None:
            # Who looks on sees that it goes on.
            write_record(self._directory, msgspec.structs.replace(self._before, verdict=None))
        with Servers(self._opens) as servers:
            while isinstance(found := self._next(), Trial):
                self._make(found, servers, watcher)
        self.settled = found
        verdict = self.verdict()
        self._write(verdict)
        return verdict

    def make(self, trials: Iterable[Trial], watcher: Watcher) -> list[Attempt]:
        """Runs that no search asked for, one after the other; what is there already is not made again."""
        with Servers(self._opens) as servers:
            return [self._make(trial, servers, watcher) for trial in trials]

    def verdict(self) -> Verdict:
        """What is known by now."""
        return conclude_search(self.contest, self.attempts, self.settled)

    def keep(self) -> Verdict | None:
        """The verdict of a search that was cut short, written as that of one that ended is.

        None while it is not yet as far as it was before: then all stays as it was.
        """
        if self._before is not None and len(self.attempts) < len(self._before.attempts):
            write_record(self._directory, self._before)
            return None
        if not self.attempts:
            return None
        verdict = self.verdict()
        self._write(verdict)
        return verdict

    def read(self, folder: str) -> Recorded:
        """The run in a folder of this search."""
        return read_recorded(self._directory / folder)

    def runs(self) -> list[Recorded]:
        """Every run there is."""
        return [self.read(one.folder) for one in self.attempts if not one.failure]

    def _next(self) -> "Trial | Settled":
        """The run to make, or what all come to. First those of before are read again, as they came: a larger budget
        would have put off the run that confirmed the best, and what it proved is not to be lost.
        """
        number = len(self.attempts)
        before = self._before.attempts[number:] if self._before else ()
        if before and before[0].number < len(self.contest.settings):
            trial = before[0].trial
            if _folder(number, trial, self.contest.settings[trial.number]) == before[0].folder:
                return trial
        return next_trial(self.contest, self._pace, self.attempts)

    def _make(self, trial: Trial, servers: Servers, watcher: Watcher) -> Attempt:
        attempt = self._attempt(trial, servers, watcher)
        if self._is_past(attempt.folder):
            attempt = msgspec.structs.replace(attempt, past=True)
        self.attempts.append(attempt)
        if len(self.attempts) > len(self._before.attempts if self._before else ()):
            self._write(None)
        watcher.ends(attempt, self._label(trial.number), self._best())
        return attempt

    def _attempt(self, trial: Trial, servers: Servers, watcher: Watcher) -> Attempt:
        """The run of `trial`: read where it is there already, else made."""
        number = len(self.attempts)
        name = _folder(number, trial, self.contest.settings[trial.number])
        folder = self._directory / name
        if (failed := _read_failure(folder)) is not None:
            return failed_attempt(trial, name, failed.reason, self._seconds_before(name), died=failed.died)
        if is_finished(folder):
            found = judge_attempt(trial, self.read(name), self._search.aim, 0.0)
            return msgspec.structs.replace(found, seconds=self._seconds_before(name, found))
        began_s = time.monotonic()
        watcher.begins(trial, self._label(trial.number), self.spent_s)
        setting, plan = self.contest.settings[trial.number], self._plan(trial, number)
        if len(at_once := self._at_once(trial)) > 1:
            servers.close()
            if made_at_once(at_once, plan, self._opens, self._runs, watcher.moves):
                return judge_attempt(trial, self.read(name), self._search.aim, time.monotonic() - began_s)
        make_room(folder)
        if trial.fidelity == "confirm":  # what production rests on rests on nothing of another run
            self._runs.forget()
        fault = ""
        try:
            self._runs.one(servers.open(setting), plan, folder, name, watcher.moves, self._decide(trial, plan))
        except UsageError:
            raise  # every run would say so
        except MlserveError as error:
            fault = str(error)
        ended = servers.ended()
        if fault or ended:
            servers.close()
            failed = _Failure(reason=ended or fault, died=bool(ended))
            _write_failure(folder, failed)
            return failed_attempt(trial, name, failed.reason, time.monotonic() - began_s, died=failed.died)
        return judge_attempt(trial, self.read(name), self._search.aim, time.monotonic() - began_s)

    def _at_once(self, trial: Trial) -> dict[Path, Setting]:
        """The folders of the runs to make at once, beginning with `trial`; of those there are some of already, each is
        made by itself.
        """
        if self.attempts and self.attempts[-1].trial.beside:
            return {}
        found: dict[Path, Setting] = {}
        one: Trial | None = trial
        while one is not None:
            setting = self.contest.settings[one.number]
            found[self._directory / _folder(len(self.attempts) + len(found), one, setting)] = setting
            one = one.next_beside
        return found

    def _plan(self, trial: Trial, number: int) -> Plan:
        objective = self._search.aim.objective
        confirms = trial.fidelity == "confirm"
        return msgspec.structs.replace(
            self._search.plan,
            rate_per_s=trial.rate_per_s,
            duration_s=self._pace.duration_s(trial, minimum_samples(objective.percentile)),
            warm_up_s=self._pace.warm_up_s,
            protocol=self.contest.settings[trial.number].protocol,
            seed=self._search.plan.seed + 1 + number + (_CONFIRMING_SEEDS if confirms else 0),
            percentile=objective.percentile,
            max_errors=max(objective.max_errors, 1e-6),
            find_warm_up=False,
            precision=0.0,
            max_duration_s=0.0,
        )

    def _decide(self, trial: Trial, plan: Plan) -> Decide | None:
        """Short runs end as soon as they prove what they are to show: at a given rate, only that they miss it."""
        if trial.fidelity != "short":
            return None
        judge = Judge(self._search.aim.objective, plan)
        return judge if self.contest.seeks_rate else _OnlyMissed(judge)

    def _is_past(self, name: str) -> bool:
        """Whether the search has ended without a proof since that run was made: who asks once more has a larger budget,
        or a quieter machine.
        """
        settled = self._before.settled if self._before else None
        unproven = settled is not None and not settled.confirmed
        known = {one.folder: unproven or one.past for one in self._before.attempts} if self._before else {}
        return known.get(name, False)

    def _seconds_before(self, name: str, found: Attempt | None = None) -> float:
        """What a run took that was made earlier; where nobody wrote that down, what such a run usually takes. Of those
        that are made at once the first takes all the time.
        """
        known = {one.folder: one.seconds for one in self._before.attempts} if self._before else {}
        usual_s = self._pace.warm_up_s + self._pace.short_s + self._pace.overhead_s
        if found is not None and found.in_turns:
            is_first = not (self.attempts and self.attempts[-1].trial.beside)
            usual_s *= 1 + len(found.trial.beside) if is_first else 0
        return known.get(name, usual_s)

    def _label(self, number: int) -> str:
        return label_of(self.contest.settings[number], self.contest.settings)

    def _best(self) -> str:
        """The best so far in a few words, "" for none."""
        best = best_so_far(self.contest, self.attempts)
        return "" if best is None else self._label(best)

    def _write(self, verdict: Verdict | None) -> None:
        record = Record(
            mlserve=__version__,
            cores=self._cores,
            budget_s=self._pace.budget_s,
            predictions=as_written(self.contest.predictions),
            left_out=self.left_out,
            attempts=tuple(self.attempts),
            settled=self.settled,
            verdict=verdict,
        )
        write_record(self._directory, record)


class _OnlyMissed:
    """Ends a run that surely misses the objective; one that meets it goes on, for its latency is wanted."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def __call__(self, samples: Samples, elapsed_s: float) -> Stop | None:
        if self._judge.verdict is not None and self._judge.verdict.met:
            return None
        stop = self._judge(samples, elapsed_s)
        return None if self._judge.verdict is None or self._judge.verdict.met else stop


def _sweep(directory: Path) -> None:
    """Removes folders of runs that never began."""
    for folder in directory.glob("[0-9][0-9][0-9]-*"):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


class _Failure(msgspec.Struct, frozen=True):
    """What `failure.json` keeps of a run that there is not; see Attempt."""

    reason: str
    died: bool = False


def _read_failure(folder: Path) -> _Failure | None:
    path = folder / _FAILURE_FILE
    return msgspec.json.decode(path.read_bytes(), type=_Failure) if path.is_file() else None


def _write_failure(folder: Path, failure: _Failure) -> None:
    """What a dead server left is no run, and is kept under another name."""
    (folder / _FAILURE_FILE).write_bytes(msgspec.json.encode(failure) + b"\n")
    if is_finished(folder):
        (folder / RUN_FILE).rename(folder / f"{RUN_FILE}.failed")


def _folder(number: int, trial: Trial, setting: Setting) -> str:
    """`007-short-int8-grpc-2x1-32-0ms-800rps`."""
    options = setting.options
    words = [setting.variant, options.engine, "" if options.device == "cpu" else options.device, setting.protocol]
    words += [f"{options.workers}x{options.threads}", str(options.max_batch_rows), f"{options.max_delay_ms:g}ms"]
    told = "-".join(word for word in words if word)
    return re.sub(r"[^A-Za-z0-9._-]+", "_", f"{number + 1:03}-{trial.fidelity}-{told}-{trial.rate_per_s:g}rps")
