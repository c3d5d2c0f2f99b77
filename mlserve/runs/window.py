"""The measured part of a run."""

import math

import msgspec

__all__ = ["WHOLE", "Window"]


class Window(msgspec.Struct, frozen=True):
    """From `start_s` up to, and without, `end_s`, since the run's first instant. A request belongs to it that was due
    in it. What lies before it was warm-up.
    """

    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        """How long was measured."""
        return self.end_s - self.start_s


WHOLE = Window(0.0, math.inf)
"""For rows of which nobody knows what was warm-up, such as those of an interrupted run."""
