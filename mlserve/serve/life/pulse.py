"""For how long a worker's heart has not beaten. Pure: the supervisor brings what it saw, and when."""

__all__ = ["Pulse"]

# Between two looks of a supervisor that is awake lies less than this. Where it was more, it was stopped, or
# the machine slept, and so did its workers, which shall not pay for that.
_LONGEST_LOOK_S = 0.5


class Pulse:
    """One worker's. `quiet_s` is how long its heart has been still while the supervisor was awake."""

    def __init__(self, now_s: float) -> None:
        self.quiet_s = 0.0
        self._beats, self._looked_s = 0, now_s

    @property
    def beaten(self) -> bool:
        """Whether it ever beat."""
        return self._beats > 0

    def look(self, beats: int, now_s: float) -> None:
        """At `now_s` (a monotonic clock) the heart had beaten so often."""
        if beats != self._beats:
            self._beats, self.quiet_s = beats, 0.0
        else:
            self.quiet_s += min(now_s - self._looked_s, _LONGEST_LOOK_S)
        self._looked_s = now_s
