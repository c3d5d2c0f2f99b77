"""`mlserve report --open` and `--watch`: the page in a browser, and a page that follows runs as they come."""

import subprocess
import sys
import time
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from mlserve.cli.terminal import err
from mlserve.errors import MlserveError, RunFileError
from mlserve.units import format_duration

if TYPE_CHECKING:
    from mlserve.report.measurement import Recorded

__all__ = ["open_page", "watch"]

_LOOK_EVERY_S = 1.0
# What is watched is being measured on this machine, so that drawing must not take the processor from it.
_MOST_OF_A_CORE = 0.1
# A pause that a reader would wonder about.
_LONG_S = 10.0
# A browser that has the page open gets the last one before nobody serves it any more.
_LAST_READ_S = 5.0
Fingerprint = tuple[tuple[Path, int, int], ...]


def open_page(address: str) -> None:
    """Shows `address` in the user's browser without waiting for it; says where it is when there is none."""
    if not _has_browser():
        err.print(f"there is no browser here; open {address}", highlight=False, markup=False, soft_wrap=True)
        return
    # A process of its own: some browsers hold whoever starts them until they are closed, or write to its terminal.
    nowhere = subprocess.DEVNULL
    started = subprocess.Popen(
        [sys.executable, "-m", "webbrowser", address],
        stdin=nowhere,
        stdout=nowhere,
        stderr=nowhere,
        start_new_session=True,
    )
    Thread(target=started.wait, daemon=True).start()


def _has_browser() -> bool:
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def watch(
    paths: Sequence[Path],
    write: Callable[["Sequence[Recorded]"], Path],
    *,
    open_it: bool,
    look_every_s: float = _LOOK_EVERY_S,
) -> None:
    """Writes the report anew whenever runs come or change, and serves its page, until Ctrl-C; or until the searches and
    sweeps that `paths` are have all ended. Waits where there are no runs yet. `write` makes the report of runs and
    returns its page.

    A run that cannot be read is said once, and left out until it changes. What takes long to draw is drawn
    less often, so that it takes a tenth of a core in the long run.

    Raises RunFileError where all have ended and there is no run that can be shown.
    """
    from mlserve.report.render.live import live_page
    from mlserve.tuning.ending import has_ended

    def ended() -> bool:
        return all(map(has_ended, paths))

    runs = _Runs(paths)
    first = _first(runs, ended, look_every_s)
    over = ended()  # looked at before the runs are read: none comes after it
    page = write(runs.changed() or first)
    if over:
        _say(f"{_names(paths)} is over; {page}")
        if open_it:
            open_page(page.resolve().as_uri())
        return
    with live_page(page.read_bytes()) as live:
        _say(f"live at {live.address} (Ctrl-C ends it; {page} stays)")
        if open_it:
            open_page(live.address)
        pause_s = look_every_s
        while not over:
            time.sleep(pause_s)
            began_s = time.process_time()
            over = ended()
            changed = runs.changed(anew=over)
            if changed:
                live.show(write(changed).read_bytes())
                pause_s = max(look_every_s, (time.process_time() - began_s) / _MOST_OF_A_CORE)
                _say(f"{len(changed)} run{'s' if len(changed) > 1 else ''}{'' if over else _until(pause_s)}")
        _say(f"{_names(paths)} is over; the last page is {page}")
        live.wait_read(_LAST_READ_S)


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))


def _until(pause_s: float) -> str:
    return f"; the next look is in {format_duration(pause_s)}" if pause_s > _LONG_S else ""


def _first(runs: "_Runs", ended: Callable[[], bool], look_every_s: float) -> "Sequence[Recorded]":
    """The first runs there are. Raises RunFileError where none will come."""
    waiting = False
    while True:
        over = ended()  # as in `watch`, before the runs are read
        found = runs.changed()
        if found:
            return found
        if over:
            raise RunFileError(
                f"{_names(runs.paths)} is over, and no run of it can be shown; each failure.json in it says why, and "
                "the same command with another --out begins anew"
            )
        if not waiting:
            _say(f"waiting for the first run in {_names(runs.paths)}")
            waiting = True
        time.sleep(look_every_s)


def _say(text: str) -> None:
    err.print(text, highlight=False, markup=False, soft_wrap=True)


class _Runs:
    """The runs below some folders. One that has not changed is not read again."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._seen: Fingerprint = ()
        self._read: dict[tuple[Path, int, int], Recorded] = {}
        self._said: set[str] = set()

    def changed(self, *, anew: bool = False) -> "list[Recorded]":
        """All that can be read, by the time they were made, when any of these has come, gone or changed since last
        asked, or `anew` is asked for; else none.
        """
        from mlserve.report.measurement import read_runs

        present = self._present()
        if present == self._seen and not anew:
            return []
        read: dict[tuple[Path, int, int], Recorded] = {}
        for one in present:
            try:
                read[one] = self._read.get(one) or read_runs([one[0]])[0]
            except MlserveError as error:
                self._complain(str(error))
        before, self._read, self._seen = self._read, read, present
        if before.keys() == read.keys() and not anew:
            return []
        return sorted(self._read.values(), key=lambda one: one.run.started_at)

    def _present(self) -> Fingerprint:
        """Each run's folder, with what changes when its `run.json` is written anew."""
        from mlserve.runs.run import RUN_FILE, find_runs

        folders: dict[Path, Path] = {}
        for path in self.paths:
            try:
                folders |= {folder.resolve(): folder for folder in find_runs(path)}
            except RunFileError:
                # None there yet: whether there is one at all, `_first` says.
                continue
        states = {folder: _state(folder / RUN_FILE) for folder in folders.values()}
        return tuple((folder, *state) for folder, state in states.items() if state)

    def _complain(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            _say(f"not shown: {text}")


def _state(file: Path) -> tuple[int, int] | None:
    """When it was written and how large it is; None where it has just gone."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size
