"""Jobs against the slow server, and what became of the processes that ran them."""

import json
import time

import msgspec
import psutil
import pytest

from mlserve.bench.clients.client import Request
from mlserve.bench.generator.job import Address, Job
from mlserve.runs.load import Plan

BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}).encode()


@pytest.fixture
def make_job(tmp_path):
    """Makes a job for a server; its rows go to `tmp_path / "run"`."""

    def make(server, plan: Plan, **other) -> Job:
        directory = tmp_path / "run"
        directory.mkdir(exist_ok=True)
        job = Job(
            plan=plan,
            name="slow",
            address=Address("http", "127.0.0.1", server.port, "/v2/models/slow/infer"),
            requests=(Request(BODY, (("content-type", "application/json"),)),),
            order=(0,),
            directory=str(directory),
        )
        return msgspec.structs.replace(job, **other)

    return make


@pytest.fixture
def are_gone():
    """Whether processes have ended, or do within ten seconds."""

    def look(pids) -> bool:
        deadline_s = time.monotonic() + 10
        while time.monotonic() < deadline_s:
            if not any(runs(pid) for pid in pids):
                return True
            time.sleep(0.02)
        return False

    def runs(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return look
