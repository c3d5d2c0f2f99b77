"""The server of the setting that is measured: one at a time, and whether it is still the one that was started."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Self

import psutil

from mlserve.bench.subject import Subject
from mlserve.runs.load import Protocol
from mlserve.tuning.opening import Contender, Opens, SubjectOf
from mlserve.tuning.setting import Setting

__all__ = ["Servers", "ended_words"]


class Servers:
    """The last that was asked for goes on until another is."""

    def __init__(self, opens: Opens) -> None:
        self._opens, self._stack = opens, ExitStack()
        self._key: object = None
        self._subject_of: SubjectOf | None = None
        self._pids: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, setting: Setting) -> SubjectOf:
        """The server of `setting`, started where it is not the present one. Raises EngineError where it cannot be."""
        key = (setting.model, setting.options)
        if key != self._key or self._subject_of is None:
            self.close()
            contender = Contender(setting.model, setting.model)
            self._subject_of = self._stack.enter_context(self._opens(contender, setting.options))
            self._key = key
        return self._noted

    def ended(self) -> str:
        """How the present server, or a part of it, ended by itself; "" while all of it runs."""
        return ended_words(self._pids)

    def close(self) -> None:
        """Ends the present server, if any."""
        self._subject_of, self._key, self._pids = None, None, ()
        self._stack.close()

    def _noted(self, protocol: Protocol) -> Subject:
        assert self._subject_of is not None
        subject = self._subject_of(protocol)
        self._pids = self._pids or subject.pids
        return subject


def ended_words(pids: Sequence[int]) -> str:
    """How the first of a server's processes that runs no more ended: `the server ended with signal 9`; "" for none.

    The first of `pids` is our child, and is left for who started it to reap; others are its own.
    """
    for place, pid in enumerate(pids):
        if place == 0 and (words := _end_of_child(pid)):
            return f"the server ended with {words}"
        if not _runs(pid):
            return "the server ended" if place == 0 else f"the server's worker of pid {pid} ended"
    return ""


def _end_of_child(pid: int) -> str:
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # it is none of ours: all there is to know is whether it runs
        return ""
    if found is None:
        return ""
    return f"{'status' if found.si_code == os.CLD_EXITED else 'signal'} {found.si_status}"


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
