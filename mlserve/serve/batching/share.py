"""One device between several models: runs take turns, and a model that is asked little hardly waits for a busy one.

Two runs at a time on the same cores slow each other down, and the longer a busy model's batches are, the longer all
others wait. So runs go one by one; whoever has used the device least is next; and while others use it, too, nobody's
run is longer than the shortest of theirs, as far as fewer rows make it shorter. A model is therefore kept from starting
by one run at most, which is no longer than its own.
"""

import threading
import time
from functools import cache
from math import inf

from mlserve.engines.engine import EngineSettings
from mlserve.runs.machine import usable_cores
from mlserve.serve.batching.pace import Pace

__all__ = ["DeviceShare", "Turns", "device_share"]

# Whoever ran within this many times its longest pause of late is taken to run again soon; for longer than the most
# nobody is. A version that another has replaced is soon nobody's concern.
_PAUSES = 2.0
_MOST_LATELY_S = 5.0
# What each run takes off the longest pause: after some fifty short ones a long one is hardly remembered.
_FADES = 0.02
# Others' runs that cannot be made short are waited for this many times one's own run, and then run beside.
_PATIENCE = 2.0
_LEAST_PATIENCE_S = 0.001


@cache
def device_share(settings: EngineSettings, workers: int) -> "DeviceShare | None":
    """What this process's models on one device share; None for an accelerator, which has a scheduler of its own.

    A run uses `settings.threads` cores, and each of `workers` processes has its part of them.
    """
    if settings.device != "cpu":
        return None
    return DeviceShare(max(1, usable_cores() // workers // settings.threads))


class DeviceShare:
    """What the models of one process share; `slots` runs fit on the device side by side."""

    def __init__(self, slots: int = 1) -> None:
        self._slots = slots
        self._lock = threading.Lock()
        self._members: list[Turns] = []
        self._running: set[Turns] = set()

    def join(self, typical_s: float) -> "Turns":
        """Another model, whose runs take `typical_s` so far."""
        turns = Turns(self, typical_s)
        with self._lock:
            self._members.append(turns)
        return turns

    def leave(self, turns: "Turns") -> None:
        """A model that will not run any more."""
        with self._lock:
            self._members.remove(turns)

    def take(self, turns: "Turns") -> float:
        """Waits for the model's turn; the seconds its run may take, `inf` where nobody else uses the device."""
        others_s = inf
        with self._lock:
            if len(self._members) > 1:
                others_s = self._wait(turns)
            self._running.add(turns)
        return others_s

    def give(self, turns: "Turns", compute_s: float) -> None:
        """Ends the turn, in which the model computed for `compute_s`."""
        with self._lock:
            self._running.discard(turns)
            turns.ran(compute_s, time.perf_counter())
            self._wake_next()

    def _wait(self, turns: "Turns") -> float:
        now_s = time.perf_counter()
        others = [each for each in self._members if each is not turns and each.is_busy(now_s)]
        if not others:
            return inf
        if not turns.is_busy(now_s):  # one that was quiet has saved up nothing
            turns.used_s = max(turns.used_s, min(each.used_s for each in others))
        if len(self._running) >= self._slots or any(each.waiting and each.used_s < turns.used_s for each in others):
            turns.waiting, turns.called = True, False
            patience_s = max(_LEAST_PATIENCE_S, _PATIENCE * turns.typical_s)
            self._wake_next()
            turns.may_run.wait_for(lambda: turns.called, patience_s)
            turns.waiting = False
        return min(each.typical_s for each in others)

    def _wake_next(self) -> None:
        """Calls those who are next, as many as there is room for."""
        room = self._slots - len(self._running) - sum(each.waiting and each.called for each in self._members)
        for each in sorted(self._members, key=lambda each: each.used_s):
            if room <= 0:
                break
            if each.waiting and not each.called:
                each.called = True
                each.may_run.notify()
                room -= 1


class Turns:
    """One model's turns on the device it shares. `typical_s`: how long its runs take."""

    def __init__(self, share: DeviceShare, typical_s: float) -> None:
        self._share = share
        self.typical_s = typical_s
        self.used_s, self.ended_s, self._pause_s = 0.0, -inf, _MOST_LATELY_S / _PAUSES
        self.waiting = self.called = False
        self.may_run = threading.Condition(share._lock)  # noqa: SLF001  # the two are one thing

    def is_busy(self, now_s: float) -> bool:
        """Whether it wants the device, or wanted it lately."""
        return self.waiting or now_s - self.ended_s < min(_MOST_LATELY_S, _PAUSES * self._pause_s)

    def ran(self, compute_s: float, ended_s: float) -> None:
        """Notes a run that ended at `ended_s`; under the lock of the share."""
        pause_s = ended_s - compute_s - self.ended_s
        self._pause_s = max(min(pause_s, _MOST_LATELY_S), (1 - _FADES) * self._pause_s)
        self.used_s += compute_s
        self.ended_s = ended_s

    def take(self, pace: Pace) -> int:
        """Waits for a turn; how many rows its run may have."""
        limit_s = self._share.take(self)
        return pace.max_rows if limit_s == inf else pace.most_rows(limit_s)

    def give(self, compute_s: float) -> None:
        """Ends the turn."""
        self._share.give(self, compute_s)

    def end(self) -> None:
        """The model is not run any more."""
        self._share.leave(self)
