"""What is read of a machine's files about how much memory is left."""

import os
import resource
import subprocess
import sys

import pytest

from mlserve.serve.life.memory import memory_use

MIB = 1 << 20


@pytest.fixture
def machine(tmp_path):
    """`machine(line, files)`: what `/proc/self/cgroup` says, and files below `/sys/fs/cgroup`; the root of all."""

    def make(line, files):
        proc = tmp_path / "proc" / "self"
        proc.mkdir(parents=True)
        (proc / "cgroup").write_text(line)
        for name, content in files.items():
            path = tmp_path / "sys/fs/cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")
        return tmp_path

    return make


def test_version_2_counts_what_cannot_be_given_up(machine):
    files = {
        "pod/memory.max": 1000 * MIB,
        "pod/memory.current": 990 * MIB,
        "pod/memory.stat": f"anon 1\ninactive_file {20 * MIB}\nactive_file {10 * MIB}",
    }
    use = memory_use([os.getpid()], machine("0::/pod\n", files))
    assert (use.used_bytes, use.limit_bytes, use.whom) == (960 * MIB, 1000 * MIB, "the control group")
    assert use.share == 0.96


def test_the_tightest_of_the_groups_around_counts(machine):
    files = {
        "pod/inner/memory.max": "max",
        "pod/inner/memory.current": 1,
        "pod/inner/memory.stat": "anon 1",
        "pod/memory.max": 100 * MIB,
        "pod/memory.current": 99 * MIB,
        "pod/memory.stat": "anon 1",
        "memory.max": 900 * MIB,
        "memory.current": 99 * MIB,
        "memory.stat": "anon 1",
    }
    assert memory_use([os.getpid()], machine("0::/pod/inner\n", files)).share == 0.99


def test_version_1(machine):
    files = {
        "memory/pod/memory.limit_in_bytes": 200 * MIB,
        "memory/pod/memory.usage_in_bytes": 199 * MIB,
        "memory/pod/memory.stat": f"cache 3\ntotal_inactive_file 0\ntotal_active_file {MIB}",
        "memory/memory.limit_in_bytes": 9223372036854771712,
        "memory/memory.usage_in_bytes": 300 * MIB,
        "memory/memory.stat": "total_inactive_file 0",
    }
    assert memory_use([os.getpid()], machine("4:memory:/pod\n1:cpu:/\n", files)).share == 0.99


def test_without_groups_the_machine_counts_what_is_free_as_ours(tmp_path):
    use = memory_use([os.getpid()], tmp_path)
    assert use.whom == "the machine"
    assert 0 < use.share < 1


def test_a_limit_of_one_process_counts():
    child = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        child.stdout.readline()
        resource.prlimit(child.pid, resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))
        use = memory_use([child.pid, 2**22 - 1])
        assert use.share > 1
        assert use.whom == f"worker {child.pid} (RLIMIT_AS)"
    finally:
        child.kill()
        child.communicate()
