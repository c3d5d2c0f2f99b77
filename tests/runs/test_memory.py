"""What memory a process may have where control groups hold it to less than the machine has."""

import psutil
import pytest

from mlserve.runs.memory import free_memory_bytes, total_memory_bytes

MIB = 1 << 20
UNLIMITED = 9223372036854771712  # version 1 has no word for it

_VERSION_2 = {
    "proc/self/cgroup": "0::/pod/inner",
    "sys/fs/cgroup/pod/inner/memory.max": "max",
    "sys/fs/cgroup/pod/memory.max": 64 * MIB,
    "sys/fs/cgroup/pod/memory.current": 60 * MIB,
    "sys/fs/cgroup/pod/memory.stat": f"anon 1\ninactive_file {5 * MIB}\nactive_file {7 * MIB}",
}
_VERSION_1 = {
    "proc/self/cgroup": "4:memory:/elsewhere\n1:cpu:/",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": 64 * MIB,
    "sys/fs/cgroup/memory/memory.usage_in_bytes": 60 * MIB,
    "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {5 * MIB}\ntotal_active_file {7 * MIB}",
}


@pytest.fixture
def root(tmp_path):
    """`root(files)`: a folder with what the system's files say."""

    def make(files):
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{content}\n")
        return tmp_path

    return make


@pytest.mark.parametrize("files", [_VERSION_2, _VERSION_1], ids=["version 2, a group around", "version 1, a container"])
def test_the_limit_of_a_control_group_counts_and_pages_of_files_are_free(root, files):
    at = root(files)
    assert (total_memory_bytes(at), free_memory_bytes(at)) == (64 * MIB, 16 * MIB)


def test_nothing_is_free_where_a_group_is_over_its_limit(root):
    assert free_memory_bytes(root(_VERSION_2 | {"sys/fs/cgroup/pod/memory.current": 90 * MIB})) == 0


@pytest.mark.parametrize("limit", [UNLIMITED, 1 << 59], ids=["none", "beyond the machine"])
def test_without_a_tighter_group_the_machine_counts(root, limit):
    at = root(_VERSION_1 | {"sys/fs/cgroup/memory/memory.limit_in_bytes": limit})
    assert total_memory_bytes(at) == psutil.virtual_memory().total
    assert 0 < free_memory_bytes(at) < psutil.virtual_memory().total
