"""Which models are held back because workers died of them, and when they are tried again. Pure: time is brought along.

closed    everybody serves the model; of some deaths within a while it opens
open      nobody does, for a pause that doubles each time
on trial  one worker does; another death opens it again, good runs or a quiet while, once it is loaded, close it
"""

from collections.abc import Mapping

import msgspec

from mlserve.serve.life.slate import Key

__all__ = ["Breaker", "culprit"]

_WINDOW_S = 300.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0
_TRIAL_S, _TRIAL_RUNS = 10.0, 20
# A model that has behaved for so long has its past forgotten.
_FORGIVEN_AFTER_S = 1800.0


def culprit(runs: Mapping[Key, tuple[bool, int]]) -> Key | None:
    """The model that a worker died of, by what it was running (`Slate.runs`); None if it ran nothing.

    Of several the one that had ended the fewest runs: what kills has few behind it.
    """
    running = {key: ended for key, (runs_now, ended) in runs.items() if runs_now}
    return min(running, key=lambda key: (running[key], key)) if running else None


class _Suspect(msgspec.Struct):
    """`until_s` is when an open one is tried again, None for a closed one.

    While it is `tried`, its `worker` has it loaded since `loaded_s`, after so many `runs`; None while it does not.
    """

    strikes: list[float] = []
    pause_s: float = _FIRST_PAUSE_S
    until_s: float | None = None
    tried: bool = False
    worker: int = 0
    loaded_s: float | None = None
    runs: int = 0
    why: str = ""


class Breaker:
    """All models' breakers, which open at `most_deaths` within five minutes, 0 for never.

    Workers are told apart by their process's number; times are those of a monotonic clock.
    """

    def __init__(self, most_deaths: int) -> None:
        self._most_deaths = most_deaths
        self._suspects: dict[Key, _Suspect] = {}

    @property
    def quiet(self) -> bool:
        """Whether nobody is suspected of anything."""
        return not self._suspects

    def died(self, key: Key, why: str, now_s: float) -> float | None:
        """A worker died of the model, by `why` ("signal SIGSEGV"); for how many seconds it is held back, if it is."""
        if not self._most_deaths:
            return None
        suspect = self._suspects.setdefault(key, _Suspect())
        suspect.strikes = [each for each in suspect.strikes if now_s - each < _WINDOW_S] + [now_s]
        suspect.why = why
        if suspect.until_s is not None or (not suspect.tried and len(suspect.strikes) < self._most_deaths):
            return None
        pause_s = suspect.pause_s
        suspect.until_s, suspect.tried, suspect.strikes = now_s + pause_s, False, []
        suspect.pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return pause_s

    def look(self, runs: Mapping[int, Mapping[Key, tuple[bool, int]]], now_s: float) -> list[str]:
        """Goes on with trials, given what each serving worker runs (`Slate.runs`); what changed, as sentences."""
        told = []
        for key, suspect in list(self._suspects.items()):
            name = f"{key[0]}@{key[1]}"
            if suspect.until_s is not None and now_s >= suspect.until_s and runs:
                suspect.until_s, suspect.tried, suspect.worker, suspect.loaded_s = None, True, min(runs), None
                told.append(f"{name} is tried again, in worker {suspect.worker} alone")
            elif suspect.tried:
                if suspect.worker not in runs:  # it ended of something else
                    suspect.until_s, suspect.tried = now_s, False
                elif _stands(suspect, runs[suspect.worker].get(key), now_s):
                    suspect.tried = False
                    told.append(f"{name} is served by every worker again")
            elif suspect.until_s is None and suspect.strikes and now_s - suspect.strikes[-1] > _FORGIVEN_AFTER_S:
                del self._suspects[key]
        return told

    def held(self, worker: int = 0) -> dict[Key, str]:
        """The models that `worker` shall not serve, and why, for clients to read."""
        return {
            key: f"model '{key[0]}' version {key[1]} is held back: server processes died of it ({suspect.why}); "
            "it is tried again from time to time"
            for key, suspect in self._suspects.items()
            if suspect.until_s is not None or (suspect.tried and suspect.worker != worker)
        }


def _stands(suspect: _Suspect, runs: tuple[bool, int] | None, now_s: float) -> bool:
    """Whether a model on trial has behaved for long enough since its worker has loaded it; `runs` are those there."""
    if runs is None or runs == (True, 0):  # it is being loaded, or at its first run, which tells nothing yet either
        return False
    ended = runs[1]
    if suspect.loaded_s is None:
        suspect.loaded_s, suspect.runs = now_s, ended
    return now_s - suspect.loaded_s > _TRIAL_S or ended - suspect.runs >= _TRIAL_RUNS
