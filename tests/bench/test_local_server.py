import socket
import subprocess
import sys

import pytest

from mlserve.bench.local_server import listening_pids
from mlserve.bench.target import parse_target

LISTEN = """
import socket, subprocess, sys
listener = socket.create_server(("127.0.0.1", 0))
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
print(listener.getsockname()[1], child.pid, flush=True)
input()
child.communicate(b"\\n")
"""


@pytest.fixture
def listener():
    """`(port, its process, that process's child)`."""
    process = subprocess.Popen([sys.executable, "-c", LISTEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    port, child = map(int, process.stdout.readline().split())
    yield port, process.pid, child
    process.communicate(b"\n", timeout=30)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS shows the sockets of processes to root only")
def test_a_server_here_is_the_process_that_listens_and_its_children(listener):
    port, pid, child = listener
    for host in ("127.0.0.1", "localhost", "[::1]"):
        assert listening_pids(parse_target(f"http://{host}:{port}")) == tuple(sorted((pid, child)))


def test_a_server_elsewhere_has_no_processes_here(listener):
    port = listener[0]
    for host in ("example.org", "192.0.2.1"):
        assert listening_pids(parse_target(f"http://{host}:{port}")) == ()


def test_a_port_where_nobody_listens_has_no_processes():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert listening_pids(parse_target(f"http://127.0.0.1:{unused.getsockname()[1]}")) == ()
