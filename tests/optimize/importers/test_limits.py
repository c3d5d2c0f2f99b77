"""What a model's own code may not do while it is imported, and that it leaves nothing behind."""

import socket
import subprocess
import sys
import time

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
