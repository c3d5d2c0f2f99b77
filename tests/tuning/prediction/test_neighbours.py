"""Cores beside those that are timed are busy meanwhile, and idle again afterwards."""

import time

import psutil
import pytest

from mlserve.bench.cores import own_cores
from mlserve.tuning.prediction.neighbours import busy_neighbours
from mlserve.tuning.prediction.processor import used_s


def neighbours(before):
    return [child for child in psutil.Process().children() if child not in before]


def test_each_core_has_a_process_that_works_without_end():
    cpus, before = own_cores(), psutil.Process().children()
    with busy_neighbours(cpus):
        found = neighbours(before)
        assert len(found) == len(cpus)
        until_s = time.monotonic() + 20
        while any(used_s([each.pid]) < 0.2 for each in found):
            assert time.monotonic() < until_s
            time.sleep(0.01)
        assert sorted(each.cpu_affinity()[0] for each in found) == cpus
    assert neighbours(before) == []


def test_without_a_core_to_spare_nothing_is_started():
    before = psutil.Process().children()
    with busy_neighbours(()):
        assert neighbours(before) == []


def test_what_fails_meanwhile_leaves_none_behind():
    before = psutil.Process().children()
    with pytest.raises(KeyError), busy_neighbours(own_cores()[-1:]):
        raise KeyError
    assert neighbours(before) == []
