"""The scorecard: what a server does under load, faults, bad input and attack, judged by criteria set beforehand.

    python benchmarks/scorecard                         all tests, in the short form, and reports/scorecard.md
    python benchmarks/scorecard --only A4,B1            some of them, or a group: --only E
    python benchmarks/scorecard --form long             as for a release: hours
    python benchmarks/scorecard --url http://HOST:PORT  another server that serves the known model (--write-known)
    python benchmarks/scorecard --peer mlserver         another server that installs by pip, started here

Tests that judge nothing by the clock, or mostly wait, are played two at a time, all others one by one.
Every test comes with a control: the same judgement of a server with the fault planted, which must fail. Exit status 1
when a test did not pass.
"""

import argparse
import os
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    # What all benchmarks share; and not this folder's own modules by their bare names.
    sys.path[:] = [str(here.parent), *(each for each in sys.path if Path(each or ".").resolve() != here)]

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from scorecard.case import Case
from scorecard.catalogue import GROUPS, MODULES, choose, find_cases, group_of
from scorecard.peer import PEERS, serving_peer
from scorecard.playing import Played, play_all, run_child
from scorecard.report import Scorecard, render, show_figure

from mlserve import __version__
from mlserve.runs.machine import read_machine

_REPORT = Path(__file__).resolve().parents[2] / "reports" / "scorecard.md"


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        run_child(sys.argv[2:])
        return
    options = _options()
    if options.write_known:
        from scorecard.known import write_known

        print(write_known(options.write_known))
        return
    console = Console()
    with serving_peer(options.peer) if options.peer else nullcontext(options.url) as options.url:
        card = _play_all(options, console)
    _show(card, console)
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n")
    report = options.report or (None if options.only or options.url else _REPORT)
    if report and card.played:
        report.parent.mkdir(exist_ok=True)
        report.write_text(render(card))
        console.print(f"written: {report}", highlight=False)
    passed, of = card.score
    sys.exit(0 if passed == of and not card.cut_short else 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scorecard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="tests or groups, such as A4,B1 or E,F1")
    parser.add_argument("--form", choices=("seconds", "short", "long"), default="short", help="how thoroughly")
    parser.add_argument("--url", default="", help="a running server to play against: http://HOST:PORT")
    parser.add_argument("--peer", default="", choices=PEERS, help="another server, installed and started here")
    parser.add_argument("--json", type=Path, help="file to write everything found to")
    parser.add_argument(
        "--report", type=Path, help="file to write the report to (of a whole scorecard of ours: reports/scorecard.md)"
    )
    parser.add_argument("--write-known", type=Path, metavar="FILE.onnx", help="write the known model and end")
    options = parser.parse_args()
    try:
        options.ids = choose(options.only)
    except ValueError as error:
        parser.error(str(error))
    return options


def _play_all(options: argparse.Namespace, console: Console) -> Scorecard:
    load_average = os.getloadavg()[0]
    played: list[Played] = []
    cut_short = False
    cases = find_cases(options.ids)
    if options.url:
        cases = [case for case in cases if case.foreign]
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def begins(case: Case) -> None:
            tasks[case.id] = progress.add_task(f"{case.id} {case.title}", total=None)

        try:
            for one in play_all(cases, options.form, options.url, begins):
                played.append(one)
                if one.id in tasks:
                    progress.remove_task(tasks[one.id])
                console.print(f"{len(played)} of {len(cases)}: {_line(one)}", highlight=False)
        except KeyboardInterrupt:
            cut_short = True
    played.sort(key=lambda one: list(MODULES).index(one.id))
    return Scorecard(
        version=__version__,
        commit=_commit(),
        date=time.strftime("%Y-%m-%d"),
        command=" ".join(["python", "benchmarks/scorecard", *sys.argv[1:]]),
        form=options.form,
        url=options.url,
        machine=read_machine(),
        load_average=load_average,
        played=played,
        cut_short=cut_short,
    )


def _line(one: Played) -> str:
    mark = "[green]passed    [/]" if one.passed else "[red]not passed[/]"
    reason = "" if one.passed else f": {one.reason[:300]}"
    return f"{mark} {one.id:>3} {one.title} ({one.took_s:.0f} s){_escape(reason)}"


def _escape(text: str) -> str:
    return text.replace("[", "\\[")


def _show(card: Scorecard, console: Console) -> None:
    table = Table(box=SIMPLE_HEAD)
    for heading, justify in (("group", "left"), ("passed", "right"), ("tests", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]  # a literal by another name
    for letter, title in GROUPS.items():
        members = [one for one in card.played if group_of(one.id) == letter]
        if members:
            table.add_row(f"{letter}. {title}", str(sum(one.passed for one in members)), str(len(members)))
    passed, of = card.score
    table.add_row("all", str(passed), str(of), style="bold")
    for one in card.played:
        if one.outcome and one.outcome.figures:
            console.print(f"{one.id}: " + ", ".join(map(show_figure, one.outcome.figures)), markup=False)
    console.print(table)
    if card.cut_short:
        console.print("cut short: the tests above are all that was played", style="yellow")


def _commit() -> str:
    """Of the working tree, with a + where it holds more; empty without git."""
    folder = Path(__file__).resolve().parent
    with suppress(OSError, subprocess.SubprocessError):
        ask = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(ask, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return ""


if __name__ == "__main__":
    main()
