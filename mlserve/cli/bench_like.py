"""`mlserve bench --like`: runs that were made, made again with the same requests at the same instants."""

from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from mlserve.cli.bench_one import document, keeping_rows, print_run, watching
from mlserve.cli.bench_sweep import Line, many_runs, run_text
from mlserve.cli.terminal import err, out, print_json
from mlserve.units import format_duration

if TYPE_CHECKING:
    from mlserve.bench.driver import Decide
    from mlserve.report.measurement import Recorded
    from mlserve.runs.run import Run
    from mlserve.tuning.locking import Again, Moved

__all__ = ["bench_like"]

_LIKE_FILE = "like.json"


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder of runs that are made again was asked for, as `like.json` keeps it."""

    format_version: int = 1
    runs: tuple[str, ...]
    where: tuple[str, ...]


def bench_like(named: Path, moved: "Moved", directory: Path | None, label: str, *, json: bool) -> None:
    """Makes the runs that `named` means again, into `directory`; exits with 1 where no request was answered."""
    from mlserve.runs.naming import named_runs
    from mlserve.runs.run import read_run
    from mlserve.tuning.locking import made_again

    runs = [made_again(read_run(each), each, moved) for each in named_runs(named)]
    notes = _notes([again.run for again in runs])
    for note in (*notes, *dict.fromkeys(_other_note(again) for again in runs if again.other)):
        err.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    if len(runs) == 1:
        answered = _one(runs[0], directory, label, notes, json=json)
    else:
        load_s = sum(again.run.window.end_s for again in runs)
        said = f"{len(runs)} runs are made again, {format_duration(load_s)} of load in all"
        err.print(said, highlight=False, soft_wrap=True)
        answered = _many(runs, directory, notes, json=json)
    if not answered:
        raise typer.Exit(1)


def _one(again: "Again", directory: Path | None, label: str, notes: list[str], *, json: bool) -> bool:
    from mlserve.bench.driver import run_bench
    from mlserve.bench.run_directory import default_directory, run_directory
    from mlserve.tuning.measuring import read_recorded
    from mlserve.tuning.opening import open_again

    with ExitStack() as stack:
        if directory is not None:
            stack.enter_context(run_directory(directory))
        with err.status(f"opening {again.contender.name}"):
            subject = again.held(stack.enter_context(open_again(again))(again.plan.protocol))
        if directory is None:
            directory = default_directory(subject.model, again.plan, datetime.now(UTC))
            stack.enter_context(run_directory(directory))
        with keeping_rows(directory), watching(subject, again.plan) as show:
            run_bench(subject, again.plan, directory, label or again.run.label, show, _ending(again))
    before, now = read_recorded(again.directory), read_recorded(directory)
    if json:
        print_json(document(now) | {"like": {"directory": str(again.directory), "other": again.other, "notes": notes}})
    else:
        print_run(now)
        out.print(f"like        {again.directory}: {run_text(before)}", highlight=False, markup=False, soft_wrap=True)
    return bool(now.run.counts.ok)


def _many(runs: "Sequence[Again]", directory: Path | None, notes: list[str], *, json: bool) -> bool:
    """All into one folder, in the order they were made; what of them is there already is not made once more."""
    from mlserve.tuning.campaign import open_campaign

    directory = directory or Path("runs") / f"like-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    folders = [f"{number:02}-{again.directory.name}" for number, again in enumerate(runs, 1)]
    asked = _Asked(
        runs=tuple(str(again.directory.resolve()) for again in runs),
        where=tuple(again.contender.where for again in runs),
    )
    made: list[Recorded] = []
    with many_runs(directory) as line:
        open_campaign(directory, _LIKE_FILE, asked)
        turns = list(zip(runs, (directory / folder for folder in folders), strict=True))
        for _, group in groupby(turns, key=lambda turn: turn[0].server):
            made += _group(list(group), line)
    if json:
        print_json(_document(runs, made, directory, notes))
    else:
        for again, recorded in zip(runs, made, strict=True):
            out.print(str(recorded.directory), highlight=False, markup=False, soft_wrap=True)
            out.print(f"  was       {run_text(_read(again.directory))}", highlight=False, markup=False, soft_wrap=True)
            out.print(f"  is        {run_text(recorded)}", highlight=False, markup=False, soft_wrap=True)
        said = f"runs        {directory}   (mlserve report {directory})"
        out.print(said, highlight=False, markup=False, soft_wrap=True)
    return any(recorded.run.counts.ok for recorded in made)


def _group(turns: "list[tuple[Again, Path]]", line: Line) -> "list[Recorded]":
    """Runs that one server answers; it is opened for the first that is to be made."""
    from mlserve.bench.driver import run_bench
    from mlserve.tuning.campaign import is_finished, make_room
    from mlserve.tuning.opening import open_again

    with ExitStack() as stack:
        subject_of = None
        for again, folder in turns:
            if is_finished(folder):
                continue
            line.show(f"{again.run.label}, like {again.directory}")
            subject_of = subject_of or stack.enter_context(open_again(again))
            make_room(folder)
            subject = again.held(subject_of(again.plan.protocol))
            run_bench(subject, again.plan, folder, again.run.label, line.moves, _ending(again))
            line.say(f"{again.run.label}: {run_text(_read(folder))}")
    return [_read(folder) for _, folder in turns]


def _ending(again: "Again") -> "Decide | None":
    """Ends a run when the one that it is like ended, where that was decided by what was measured."""
    from mlserve.bench.generator.job import Stop

    end_s = again.ends_at_s
    return None if end_s is None else lambda samples, elapsed_s: Stop(at_s=end_s)  # noqa: ARG005  # what a Decide takes


def _read(directory: Path) -> "Recorded":
    from mlserve.tuning.measuring import read_recorded

    return read_recorded(directory)


def _notes(runs: "Sequence[Run]") -> list[str]:
    """How this machine differs from those where `runs` were made, each difference once."""
    from mlserve.runs.machine import read_machine
    from mlserve.tuning.locking import unlike

    now = read_machine()
    return [f"{note} now" for note in dict.fromkeys(note for run in runs for note in unlike(run, now))]


def _other_note(again: "Again") -> str:
    was = again.run.lock.where if again.run.lock else again.run.model.name
    return f"{again.contender.where} is asked instead of {was}: the instants are the same, the requests need not be"


def _document(runs: "Sequence[Again]", made: "Sequence[Recorded]", directory: Path, notes: list[str]) -> dict[str, Any]:
    return {
        "format_version": 1,
        "directory": str(directory),
        "notes": notes,
        "runs": [
            {
                "directory": str(recorded.directory),
                "like": str(again.directory),
                "other": again.other,
                "valid": recorded.run.certificate.valid,
                "faults": [check.name for check in recorded.run.certificate.faults],
            }
            for again, recorded in zip(runs, made, strict=True)
        ],
    }
