"""Plays cases, each in a process of its own, so that neither its crash nor its hang is the end of the others."""

import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
from scorecard.case import Case, Form, Outcome, Stage
from scorecard.catalogue import TIMELESS, UNHURRIED

__all__ = ["CutShort", "Played", "play", "play_all", "play_here", "run_child"]

# Several times what a case may take; a case that is still there then hangs.
_PATIENCE_S: dict[Form, float] = {"seconds": 180.0, "short": 900.0, "long": 10 * 3600.0}
# What a case needs to end its servers after Ctrl-C.
_CLEANING_S = 15.0
_LOOKS_EVERY_S = 0.1
# Of those that bear company so many are played at a time; of the others one.
_BESIDE = 2


class CutShort(Exception):
    """A case that was ended before it had an outcome, because nobody waits for it any more."""


class Played(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a case. `fault` says why there is no outcome: it broke down, hung, was cut short or is not built."""

    id: str
    title: str
    criterion: str
    source: str = ""
    outcome: Outcome | None = None
    fault: str = ""
    took_s: float = 0.0
    foreign: bool = False

    @property
    def passed(self) -> bool:
        """Whether its criterion holds and its control was found out; a foreign server has none."""
        return self.outcome is not None and self.outcome.passed and (self.foreign or self.outcome.control_failed)

    @property
    def reason(self) -> str:
        """Why it did not pass; empty where it did."""
        if self.passed:
            return ""
        if self.outcome is None:
            return self.fault
        if not self.outcome.passed:
            return self.outcome.found
        return f"its control was not found out, so that the test says nothing: {self.outcome.control}"


def play_all(cases: Sequence[Case], form: Form, url: str, begins: Callable[[Case], None]) -> Iterator[Played]:
    """Plays `cases`: those that judge nothing by the clock two at a time, then those that mostly wait, and then the
    others one by one; as they end.

    Against the server of a `url`, which they would share, all one by one. `begins` is called, by another thread, when
    one begins. Never raises but what is raised at its caller, such as KeyboardInterrupt; it then ends what it started.
    """
    timeless, unhurried = ([case for case in cases if case.id in ids and not url] for ids in (TIMELESS, UNHURRIED))
    others = [case for case in cases if case not in timeless and case not in unhurried]
    ending = threading.Event()

    def one(case: Case) -> Played:
        if case.run is not None:
            begins(case)
        return play(case, form, url, ending)

    for part, beside in ((timeless, _BESIDE), (unhurried, _BESIDE), (others, 1)):
        with ThreadPoolExecutor(beside) as threads:
            playing = [threads.submit(one, case) for case in part]
            try:
                yield from (each.result() for each in as_completed(playing))
            except BaseException:  # Ctrl-C, or a caller that wants no more
                ending.set()
                threads.shutdown(cancel_futures=True)
                raise


def play(case: Case, form: Form, url: str = "", ending: threading.Event | None = None) -> Played:
    """Plays `case` in a child process. Raises CutShort when `ending` is set meanwhile, and ends the child first."""
    told = Played(id=case.id, title=case.title, criterion=case.criterion, source=case.source, foreign=bool(url))
    if case.run is None:
        return msgspec.structs.replace(told, fault=case.missing or "not built yet")
    if url and not case.foreign:
        return msgspec.structs.replace(told, fault="it cannot be played against a server that somebody else started")
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"scorecard-{case.id}-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        outcome, fault = _play_child(case.id, form, url, folder, ending or threading.Event())
    return msgspec.structs.replace(told, outcome=outcome, fault=fault, took_s=time.monotonic() - started_s)


def play_here(case: Case, stage: Stage) -> Outcome:
    """Plays `case` in this process. Raises whatever it raises."""
    assert case.run is not None, case.missing
    return case.run(stage)


def run_child(arguments: Sequence[str]) -> None:
    """What the child does: `ID FORM URL FOLDER` -> the outcome as JSON in FOLDER/outcome.json."""
    from scorecard.catalogue import find_cases

    case_id, form, url, folder = arguments
    (case,) = find_cases([case_id])
    stage = msgspec.convert({"form": form, "folder": Path(folder, "stage"), "url": url}, Stage)
    stage.folder.mkdir()
    outcome = play_here(case, stage)
    # What could not be measured is no number, and JSON has none for it.
    figures = tuple(figure for figure in outcome.figures if math.isfinite(figure.value))
    outcome = msgspec.structs.replace(outcome, figures=figures)
    Path(folder, "outcome.json").write_bytes(msgspec.json.encode(outcome))


def _play_child(
    case_id: str, form: Form, url: str, folder: Path, ending: threading.Event
) -> tuple[Outcome | None, str]:
    log = folder / "log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent), "--child", case_id, form, url, str(folder)],
            stdout=output,
            stderr=output,
            process_group=0,  # Ctrl-C reaches us alone; the child then gets its own, and the time to end its servers
            env={**os.environ, "GRPC_VERBOSITY": "NONE"},
        )
    try:
        if not _wait(child, _PATIENCE_S[form], ending):
            return None, f"it hung: no outcome after {_PATIENCE_S[form]:g} s"
    except BaseException:
        child.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            child.wait(_CLEANING_S)
        raise
    finally:
        _end(child)
    path = folder / "outcome.json"
    if not path.exists():
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        return None, f"it broke down (status {child.returncode}): {' '.join(last)[:500]}"
    return msgspec.json.decode(path.read_bytes(), type=Outcome), ""


def _wait(child: "subprocess.Popen[bytes]", seconds: float, ending: threading.Event) -> bool:
    """Whether the child ended within `seconds`. Raises CutShort when `ending` is set."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        if ending.is_set():
            raise CutShort
        with suppress(subprocess.TimeoutExpired):
            child.wait(_LOOKS_EVERY_S)
            return True
    return False


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Kills what is left of the child and of everything that it started."""
    with suppress(psutil.Error):
        for each in psutil.Process(child.pid).children(recursive=True):
            with suppress(psutil.Error):
                each.kill()
    if child.poll() is None:
        child.kill()
    child.wait()
