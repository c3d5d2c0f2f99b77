"""A share of a stream, whatever pieces it comes in."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlserve.serve.watching.sampling import Allowance, Sampler


@settings(deadline=None)
@given(st.floats(0.001, 1.0), st.integers(0, 2**32), st.lists(st.integers(0, 50), max_size=60), st.integers(1, 40))
def test_the_sample_does_not_depend_on_how_the_stream_is_cut(share, seed, pieces, width):
    total = sum(pieces)

    def sample(counts):
        sampler = Sampler(share, random.Random(seed).random)
        chosen, start = [], 0
        for count in counts:
            found = sampler.choose(count)
            assert all(0 <= position < count for position in found)
            chosen += [start + position for position in found]
            start += count
        return chosen

    even = [width] * (total // width) + [total % width]
    chosen = sample(pieces)
    assert chosen == sample(even)
    assert chosen == sorted(set(chosen))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_the_sample_has_the_share_asked_for(share):
    sampler = Sampler(share, random.Random(0).random)
    count = 200_000
    found = sum(len(sampler.choose(7)) for _ in range(count // 7))
    spread = (count * share * (1 - share)) ** 0.5
    assert abs(found - count * share) < 5 * spread


def test_all_and_nothing_are_exact():
    everything, nothing = Sampler(1.0), Sampler(0.0)
    assert list(everything.choose(3)) == [0, 1, 2]
    assert all(not nothing.choose(1000) for _ in range(1000))


def test_an_allowance_is_so_many_a_second_and_tells_what_it_refused():
    allowance = Allowance(2)
    assert [allowance.take(0.1), allowance.take(0.2), allowance.take(0.9)] == [True, True, False]
    assert allowance.refused == 1
    assert allowance.take(1.1)
