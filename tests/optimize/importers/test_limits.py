"""What a model's own code may not do while it is imported, and that it leaves nothing behind."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mlserve.errors import ModelFileError, UsageError
from mlserve.optimize.importers.limits import Limits, Watch, end

_CONNECT = "socket.create_connection(('127.0.0.1', {port}), timeout=5)"
_GIGABYTE = 1_000_000_000


def importing():
    """The importing processes of ours that still run."""
    return [
        child for child in psutil.Process().children(recursive=True) if "mlserve.optimize.importers" in child.cmdline()
    ]


@pytest.fixture
def listener():
    """A server that would hear a connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def heard(server):
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def factory(home, name, body):
    """Code of a model that does `body` before it makes the digits network."""
    lines = "\n    ".join(["import socket, subprocess, zoo", *body, "return zoo.digits()"])
    (home / f"{name}.py").write_text(f"def make():\n    {lines}\n")
    return f"{name}:make"


def test_a_model_that_opens_a_connection_is_refused(weights, home, bring, listener):
    connect = _CONNECT.format(port=listener.getsockname()[1])
    with pytest.raises((ModelFileError, UsageError), match=r"may not reach the network.*127\.0\.0\.1"):
        bring(weights("digits"), model_class=factory(home, "caller", [connect]))
    assert not heard(listener)
    assert not importing()


@pytest.mark.slow
def test_a_connection_whose_failure_is_swallowed_is_said(weights, home, bring, listener):
    connect = _CONNECT.format(port=listener.getsockname()[1])
    body = ["try:", f"    {connect}", "except OSError:", "    pass"]
    _, imported, _ = bring(weights("digits"), model_class=factory(home, "quiet", body))
    assert any("tried to reach the network" in line for line in imported.assumed)
    assert not heard(listener)
    _, imported, _ = bring(weights("digits"), model_class="zoo:digits")
    assert not any("network" in line for line in imported.assumed)
    assert any(note.startswith("loaded without a network") for note in imported.notes)


def test_the_listener_would_have_heard_it(listener):
    """The negative control: the same connection from here is heard."""
    socket.create_connection(listener.getsockname(), timeout=5).close()
    assert heard(listener)


# As AppArmor does in Ubuntu 24.04, the system lets it leave for other users and another network, but not say who it is
# there: root may not be carried over without CAP_SETFCAP (31), and without CAP_SYS_ADMIN (21) there is no other way.
_UNNAMED = """
import ctypes, os, sys
from pathlib import Path

libc = ctypes.CDLL(None)
user, group = os.getuid(), os.getgid()
if user != 0:
    assert libc.unshare(0x10000000) == 0
    for name, line in (("setgroups", "deny"), ("gid_map", f"0 {group} 1"), ("uid_map", f"0 {user} 1")):
        Path("/proc/self", name).write_text(line)
assert libc.prctl(24, 31, 0, 0, 0) == libc.prctl(24, 21, 0, 0, 0) == 0
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
_LEAVE = """
import os, sys
from pathlib import Path
from mlserve.optimize.importers.confinement import shut_network

print("started", flush=True)
wall, mine = shut_network(), Path(sys.argv[1])
mine.write_text(mine.read_text() + ", mine")
devices = [line.partition(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]]
print(wall, os.getuid(), devices)
"""


def test_where_it_may_not_keep_its_name_it_leaves_without_one(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("read")
    mine.chmod(0o600)
    done = subprocess.run(
        [sys.executable, "-c", _UNNAMED, "-c", _LEAVE, mine], capture_output=True, text=True, timeout=60
    )
    if not done.stdout.startswith("started") or "an audit hook alone" in done.stdout:
        pytest.skip("this system lets nobody leave for a network of its own")
    unnamed = Path("/proc/sys/kernel/overflowuid").read_text().strip()
    assert done.stdout == f"started\na network of its own {unnamed} ['lo']\n", done.stderr
    assert mine.read_text() == "read, mine"


def test_the_memory_of_a_control_group_is_what_an_import_may_take_four_fifths_of(memory_group):
    code = """
from mlserve.optimize.importers.limits import Limits, Watch
print(Watch(None, Limits())._memory_bytes)
"""
    done = subprocess.run(
        [sys.executable, "-c", memory_group(_GIGABYTE) + code], capture_output=True, text=True, timeout=60
    )
    assert abs(int(done.stdout) - 0.8 * _GIGABYTE) < 4096, done.stderr


def test_a_model_that_eats_memory_is_stopped_at_the_limit(weights, home, bring):
    limits = Limits(memory_bytes=_GIGABYTE)
    body = ["hoard = []", "while True:", "    hoard.append(b'x' * 50_000_000)"]
    with pytest.raises(ModelFileError, match=r"more than 1\.00 GB of memory"):
        bring(weights("digits"), model_class=factory(home, "hungry", body), limits=limits)
    assert not importing()
    # The control: less is no reason to stop it, it comes to its own end.
    body = ["hoard = [b'x' * 200_000_000]", "raise RuntimeError(f'had enough of {len(hoard)}')"]
    with pytest.raises(UsageError, match="had enough of 1"):
        bring(weights("digits"), model_class=factory(home, "modest", body), limits=limits)


def test_a_model_that_never_ends_is_stopped_with_all_it_started(weights, home, bring):
    body = ["subprocess.Popen(['sleep', '613'])", "while True:", "    __import__('time').sleep(1)"]
    with pytest.raises(ModelFileError, match=r"took longer than 8\.00 s"):
        bring(weights("digits"), model_class=factory(home, "endless", body), limits=Limits(time_s=8))
    assert not importing()
    assert not [process for process in psutil.process_iter() if sleeping(process)]


def sleeping(process):
    try:
        return process.cmdline() == ["sleep", "613"]
    except psutil.Error:
        return False


@pytest.mark.parametrize(("code", "stopped"), [("import time; time.sleep(60)", True), ("", False)])
def test_the_watch_ends_only_what_takes_too_long(code, stopped):
    process = subprocess.Popen([sys.executable, "-c", code], process_group=0)
    with process, Watch(process, Limits(time_s=5)) as watch:
        try:
            process.wait(timeout=30)
        finally:
            end(process)
    assert bool(watch.exceeded) == stopped


def test_a_process_may_end_while_it_is_watched():
    process = subprocess.Popen([sys.executable, "-c", ""], process_group=0)
    with process, Watch(process, Limits(memory_bytes=1, time_s=0)) as watch:
        time.sleep(1)
        end(process)
    assert process.returncode is not None
    assert watch.exceeded in ("", "it took more than 1 B of memory")
