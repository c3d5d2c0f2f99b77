import numpy as np
import pytest

from mlserve.bench.watching.clock import ClockReading
from mlserve.bench.watching.cores import CoreTimes
from mlserve.bench.watching.energy import EnergyReading
from mlserve.bench.watching.gpus import GpuReading
from mlserve.bench.watching.processes import Everyone, ProcessReading
from mlserve.bench.watching.usage import Reading, busiest_others, resources_between
from mlserve.runs.resources import ProcessUse, Resources

SERVER, GENERATOR, BENCH = 10, 11, 12


def course(
    ticks=11, every_s=0.5, *, hog=0.0, steal=0.0, gone_from=None, server_cpus=(0,), generator_cpus=(1,), bench_cpus=(0,)
):
    """Readings of a machine with three cores: the server uses 40% of core 0 and the generator 30% of core 1, the bench
    5% of core 0, somebody else `hog` of core 0 and all of core 2; `steal` of every core goes to other machines.
    """
    found = []
    for tick in range(ticks):
        at_s = 100 + tick * every_s
        t = tick * every_s
        busy_s = {0: (0.45 + hog) * t, 1: 0.3 * t, 2: t}
        processes = [
            ProcessReading(SERVER, "server", 5 + 0.4 * t, 1000 + tick, server_cpus),
            ProcessReading(BENCH, "bench", 1 + 0.05 * t, 100, bench_cpus),
        ]
        if gone_from is None or tick < gone_from:
            processes.append(ProcessReading(GENERATOR, "generator", 0.3 * t, 500, generator_cpus))
        found.append(
            Reading(
                at_s=at_s,
                clocks=ClockReading(int(at_s * 1e9), int(at_s * 1e9) + 10**18, int(at_s * 1e9)),
                processes=tuple(processes),
                cores={core: CoreTimes(busy, steal * t, 7 + t) for core, busy in busy_s.items()},
            )
        )
    return found


def test_what_each_process_used_is_in_cores():
    uses = {use.pid: use for use in resources_between(course(), 101, 104).processes}
    assert uses[SERVER] == ProcessUse(role="server", pid=SERVER, cpu=pytest.approx(0.4), rss_max_bytes=1008, cpus=(0,))
    assert uses[GENERATOR].cpu == pytest.approx(0.3)
    assert uses[BENCH].cpu == pytest.approx(0.05)


def test_instants_between_readings_are_read_off_the_line():
    readings = course()
    # the server works twice as hard from 102 on
    late = [
        ProcessReading(SERVER, "server", 5 + 0.4 * t + 0.4 * max(0, t - 2), 1000, (0,))
        for t in np.arange(len(readings)) * 0.5
    ]
    changed = [
        Reading(at_s=one.at_s, clocks=one.clocks, processes=(use,)) for one, use in zip(readings, late, strict=True)
    ]
    assert resources_between(changed, 101.75, 102.25).processes[0].cpu == pytest.approx(0.6)


def test_others_are_what_is_left_of_the_cores_in_use():
    quiet, hogged = resources_between(course(), 101, 104), resources_between(course(hog=0.5), 101, 104)
    assert (quiet.cores_in_use, hogged.cores_in_use) == (2, 2)
    assert quiet.others_cpu == pytest.approx(0, abs=1e-9)
    assert hogged.others_cpu == pytest.approx(0.5)
    assert hogged.shared_cpu == pytest.approx(0, abs=1e-9)


def test_a_bench_on_other_cores_takes_nothing_from_those_in_use():
    assert resources_between(course(bench_cpus=(2,)), 101, 104).others_cpu == pytest.approx(0.05)


def test_a_server_that_may_run_anywhere_has_all_cores_in_use():
    found = resources_between(course(server_cpus=()), 101, 104)
    assert found.cores_in_use == 3
    assert found.others_cpu == pytest.approx(1.0)
    assert found.shared_cpu == pytest.approx(0, abs=1e-9)


def test_what_uses_the_generators_core_is_seen():
    found = resources_between(course(generator_cpus=(0, 1)), 101, 104)
    assert found.shared_cpu == pytest.approx(0.45)  # the server and the bench on core 0
    assert resources_between(course(generator_cpus=()), 101, 104).shared_cpu is None


def test_a_generator_that_has_ended_does_not_look_like_somebody_else():
    found = resources_between(course(gone_from=7), 101, 104)
    assert found.others_cpu == pytest.approx(0, abs=1e-9)


def test_steal_is_a_share_of_the_cores_in_use():
    assert resources_between(course(steal=0.03), 101, 104).steal == pytest.approx(0.03)
    assert resources_between(course(), 101, 104).steal == 0


def test_too_short_a_time_says_nothing_of_the_cores():
    found = resources_between(course(), 101, 101.5)
    assert (found.steal, found.others_cpu, found.shared_cpu, found.cores_in_use) == (None, None, None, 0)
    assert found.processes


def test_without_readings_nothing_is_known():
    assert resources_between([], 0, 1) == Resources()
    assert resources_between(course(ticks=1), 100, 101) == Resources()
    assert resources_between(course(), 104, 101) == Resources()


def test_a_core_that_was_switched_off_meanwhile_makes_the_cores_unknown():
    readings = course()
    readings[5] = Reading(at_s=readings[5].at_s, clocks=readings[5].clocks, cores={0: CoreTimes(0, 0, 9)})
    assert resources_between(readings, 101, 104).others_cpu is None


def test_the_clocks_are_judged_over_the_whole_run():
    readings = course()
    first = readings[0]
    stepped = ClockReading(first.clocks.monotonic_ns, first.clocks.wall_ns - 10**9, first.clocks.raw_ns)
    assert resources_between(readings, 101, 104).clock_step_s == 0
    readings[0] = Reading(at_s=first.at_s, clocks=stepped, processes=first.processes, cores=first.cores)
    assert resources_between(readings, 101, 104).clock_step_s == 1


def with_devices(readings, *, package_w=None, gpu_w=None):
    """The same readings on a machine whose package and GPU draw so much."""
    return [
        Reading(
            at_s=one.at_s,
            clocks=one.clocks,
            energy={} if package_w is None else {"package": EnergyReading(round(one.at_s * package_w * 1e6), 10**12)},
            gpus=()
            if gpu_w is None
            else (
                GpuReading(
                    number=0,
                    name="H200",
                    utilization=0.5,
                    memory_bytes=round(one.at_s),
                    power_w=gpu_w,
                    energy_j=one.at_s * gpu_w,
                ),
            ),
        )
        for one in readings
    ]


@pytest.mark.parametrize(
    ("package_w", "gpu_w", "energy_j", "energy_of"),
    [(None, None, None, ()), (20, None, 60, ("cpu",)), (None, 100, 300, ("gpu",)), (20, 100, 360, ("cpu", "gpu"))],
)
def test_energy_is_of_what_tells_and_says_of_what(package_w, gpu_w, energy_j, energy_of):
    found = resources_between(with_devices(course(), package_w=package_w, gpu_w=gpu_w), 101, 104)
    assert found.energy_j == (None if energy_j is None else pytest.approx(energy_j))
    assert found.energy_of == energy_of


def test_a_gpus_use_is_the_mean_and_its_memory_the_most():
    (device,) = resources_between(with_devices(course(), gpu_w=100), 101, 104).devices
    assert (device.name, device.utilization, device.power_w, device.memory_max_bytes) == ("H200", 0.5, 100, 104)


def test_the_busiest_others_are_named_and_ours_are_not():
    before = Everyone(10.0, {1: 5.0, 2: 1.0, 3: 0.0}, {1: "idle", 2: "hog", 3: "ours"})
    after = Everyone(20.0, {1: 5.4, 2: 9.0, 3: 9.0, 4: 2.0}, {1: "idle", 2: "hog2", 3: "ours", 4: "new"})
    found = busiest_others(before, after, {3})
    assert [(use.role, use.pid, use.name, use.cpu) for use in found] == [
        ("other", 2, "hog2", 0.8),
        ("other", 4, "new", 0.2),
    ]
