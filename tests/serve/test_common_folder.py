"""The folder of one server: kept while one of its processes lives, whoever that is, and then removed by the next."""

import os
import signal
import subprocess
import sys
import tempfile

import psutil
import pytest

from mlserve.serve.common_folder import open_common_folder

# A supervisor that is killed, while the worker it started goes on.
_SUPERVISOR = """
import os, subprocess, sys
from mlserve.serve.common_folder import open_common_folder

with open_common_folder() as folder:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    worker = subprocess.Popen(command, pass_fds=(folder.lock,), stdout=subprocess.DEVNULL)
    print(worker.pid, flush=True)
    os._exit(9)
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_there_while_it_is_open_and_gone_afterwards(temporary):
    with open_common_folder() as folder:
        assert folder.path.parent == temporary
        assert folder.path.stat().st_mode & 0o777 == 0o700
        assert {part.name for part in folder.path.iterdir()} == {"lock", "metrics", "control"}
        with open_common_folder() as other:
            assert other.path != folder.path
        assert folder.metrics.is_dir()
    assert not list(temporary.iterdir())


def test_a_folder_is_kept_while_a_worker_outlives_its_supervisor_and_removed_afterwards(temporary):
    environment = {"TMPDIR": str(temporary)}
    ended = subprocess.run([sys.executable, "-c", _SUPERVISOR], stdout=subprocess.PIPE, env=environment, check=False)
    assert ended.returncode == 9
    worker = psutil.Process(int(ended.stdout))
    (theirs,) = temporary.iterdir()
    try:
        with open_common_folder():
            assert theirs.is_dir()
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait(30)
    with open_common_folder():
        assert not theirs.exists()


def test_what_somebody_else_put_beside_the_folders_stays(temporary):
    """Nothing is followed out of the folder, and nothing without a lock file of ours is touched."""
    (temporary / "mlserve-run-strange").mkdir()
    (temporary / "mine").mkdir()
    (temporary / "mine" / "lock").touch()
    (temporary / "mlserve-run-link").mkdir()
    (temporary / "mlserve-run-link" / "lock").symlink_to(temporary / "mine" / "lock")
    with open_common_folder():
        pass
    assert {path.name for path in temporary.iterdir()} == {"mlserve-run-strange", "mlserve-run-link", "mine"}


def test_a_pipe_in_the_place_of_a_lock_keeps_nobody_waiting(temporary):
    """To open it as a file waits for who reads it, as long as nobody does."""
    (temporary / "mlserve-run-pipe").mkdir()
    os.mkfifo(temporary / "mlserve-run-pipe" / "lock", 0o666)
    opens = "from mlserve.serve.common_folder import open_common_folder\nwith open_common_folder(): pass"
    subprocess.run([sys.executable, "-c", opens], env={"TMPDIR": str(temporary)}, check=True, timeout=30)
    assert {path.name for path in temporary.iterdir()} == {"mlserve-run-pipe"}


@pytest.mark.skipif(os.geteuid() != 0, reason="nobody else gives a folder away")
def test_what_belongs_to_another_user_stays(temporary):
    for name, owner in (("mlserve-run-theirs", 65534), ("mlserve-run-ours", os.geteuid())):
        (temporary / name).mkdir()
        (temporary / name / "lock").touch()
        os.chown(temporary / name, owner, -1)
    with open_common_folder():
        assert not (temporary / "mlserve-run-ours").exists()
    assert {path.name for path in temporary.iterdir()} == {"mlserve-run-theirs"}
