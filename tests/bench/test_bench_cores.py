import os

import pytest

from mlserve.bench.cores import own_cores, split_cores


@pytest.mark.parametrize(
    ("cpus", "server", "generator"),
    [((), (), ()), ((3,), (3,), ()), ((0, 1), (0,), (1,)), ((2, 5, 7), (2, 5), (7,))],
)
def test_the_generator_gets_the_last_core_where_there_is_another(cpus, server, generator):
    assert split_cores(cpus) == (server, generator)


@pytest.mark.parametrize(("generators", "server"), [(2, (0, 1)), (3, (0,)), (9, (0,))])
def test_each_generator_gets_a_core_as_long_as_the_server_keeps_one(generators, server):
    assert split_cores((0, 1, 2, 3), generators) == (server, (0, 1, 2, 3)[len(server) :])


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux tells")
def test_own_cores_are_those_this_process_is_held_to():
    held = os.sched_getaffinity(0)
    assert own_cores() == sorted(held)
    os.sched_setaffinity(0, {max(held)})
    try:
        assert own_cores() == [max(held)]
    finally:
        os.sched_setaffinity(0, held)
