"""A worker's process as its supervisor sees it: what it reports, and what is left where it cannot be started."""

import os
import resource
import time

import pytest

from mlserve.serve.life.process import WorkerProcess
from mlserve.serve.settings import ModelSource, ServeSettings

# Prints a line every millisecond to what is the worker's output at the moment.
_CHATTY = """
import os, threading, time

def chat():
    while True:
        os.write(1, b"this library says hello\\n")
        time.sleep(0.001)

threading.Thread(target=chat, daemon=True).start()
"""


@pytest.fixture
def settings(tmp_path):
    """Of a server whose only model is missing."""
    missing = ModelSource("missing", "1", str(tmp_path / "missing.onnx"))
    return ServeSettings(models=(missing,), defaults={"missing": "1"}, http_port=0, grpc_port=0)


def test_what_libraries_print_is_no_report_and_keeps_none_back(settings, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(_CHATTY)
    with (tmp_path / "lock").open("wb") as lock:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        worker = WorkerProcess(settings, lock.fileno(), environment)
        try:
            deadline_s = time.monotonic() + 60
            while (report := worker.report()) is None:
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
            assert "missing.onnx" in report.fault
            assert worker.report() is None
            assert worker.process.wait(30) == 2
        finally:
            worker.kill()
            worker.process.wait()
            worker.close()


@pytest.mark.parametrize("more", [1, 2])
def test_a_worker_that_cannot_be_started_leaves_no_descriptor(settings, more):
    """A slate takes two itself: with one more it is the slate that cannot be made, with two it is the process."""
    before, free = resource.getrlimit(resource.RLIMIT_NOFILE), lowest_free()
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            WorkerProcess(settings, 0, {})
        assert lowest_free() == free
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def lowest_free():
    number = os.dup(0)
    os.close(number)
    return number
