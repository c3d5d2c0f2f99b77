"""The folders of workers' Unix sockets: their paths fit into a socket's, and they go though their worker was killed."""

import os
import shutil
import socket
from pathlib import Path

import pytest

from mlserve.serve.life.sockets_folder import make_sockets_folder, remove_sockets_folders

MOST_PROCESSES = 1 << 22  # the largest number that Linux gives a process


@pytest.fixture(params=[40, 81, 82, 150])
def run_directory(request, tmp_path_factory):
    """A folder whose path has so many characters."""
    root = tmp_path_factory.mktemp("r")
    path = root / "mlserve-run-abc"
    missing = request.param - len(f"{root}//mlserve-run-abc")
    if missing > 0:
        path = root / ("d" * missing) / "mlserve-run-abc"
        assert len(str(path)) == request.param
    path.mkdir(parents=True)
    return str(path)


def test_it_takes_a_socket_and_goes_with_its_worker_alone(run_directory):
    own = Path(make_sockets_folder(run_directory))
    others = own.with_name(own.name.replace(f"-{os.getpid()}-", f"-{MOST_PROCESSES}-"))
    others.mkdir()
    try:
        assert own.stat().st_mode & 0o777 == 0o700
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{others}/n")
        remove_sockets_folders(run_directory, os.getpid())
        assert not own.exists()
        assert others.exists()
        remove_sockets_folders(run_directory, MOST_PROCESSES)
        assert not others.exists()
    finally:
        shutil.rmtree(others, ignore_errors=True)


def test_two_servers_that_share_the_other_place_keep_apart(tmp_path):
    far = [str(tmp_path / ("d" * 80) / f"mlserve-run-{name}") for name in "ab"]
    folders = [Path(make_sockets_folder(each)) for each in far]
    remove_sockets_folders(far[0], os.getpid())
    assert [folder.exists() for folder in folders] == [False, True]
    remove_sockets_folders(far[1], os.getpid())
    assert not folders[1].exists()
