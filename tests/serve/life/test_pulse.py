"""For how long a heart has been still, by a clock that stops while its reader sleeps."""

import pytest

from mlserve.serve.life.pulse import Pulse


def test_silence_adds_up_until_the_next_beat():
    pulse = Pulse(0.0)
    assert not pulse.beaten
    for tenth in range(1, 31):
        pulse.look(0, tenth / 10)
    assert pulse.quiet_s == pytest.approx(3.0)
    pulse.look(1, 3.1)
    assert (pulse.quiet_s, pulse.beaten) == (0.0, True)


def test_time_in_which_the_reader_was_stopped_itself_hardly_counts():
    pulse = Pulse(0.0)
    pulse.look(5, 0.1)
    pulse.look(5, 3600.0)
    assert pulse.quiet_s == 0.5
    pulse.look(6, 3600.1)
    assert pulse.quiet_s == 0.0
