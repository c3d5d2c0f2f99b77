"""`mlserve serve` under test: everything switched on, on a core of its own."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
from closed_loop import fail, on_core
from prometheus_client.parser import text_string_to_metric_families
from subjects import Subject, differing_output

from mlserve.serve.keys import add_key, new_key
from mlserve.wire import grpc as wire_grpc
from mlserve.wire import rest as wire_rest

__all__ = [
    "INFER",
    "Server",
    "check_answers",
    "check_counters",
    "choose_cores",
    "make_key",
    "read_failures",
    "read_total",
    "serving",
]

INFER = "/inference.GRPCInferenceService/ModelInfer"


class Server(NamedTuple):
    """A running server; `worker` is the process that answers, `key` what it asks for, empty for nothing.

    `start_s` is from the command to the first answer.
    """

    http: str
    grpc: str
    worker: psutil.Process
    key: str
    start_s: float
    workers: tuple[psutil.Process, ...] = ()

    @property
    def headers(self) -> dict[str, str]:
        """What every request needs."""
        return {"authorization": f"Bearer {self.key}"} if self.key else {}


def choose_cores() -> tuple[int, int]:
    """The server's core and the load's."""
    if not hasattr(os, "sched_setaffinity"):
        fail("this needs Linux: nothing else holds a process to a core")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        fail("this needs two cores, one for the server and one for the load; this process may use one")
    return cores[0], cores[1]


def make_key(folder: Path) -> str:
    """A key that may do all that the benchmarks do, kept in `folder`/keys.json."""
    made = new_key("benchmark", ("infer", "metadata", "metrics"))
    add_key(folder / "keys.json", made.key)
    return made.secret


@contextmanager
def serving(
    subjects: Sequence[Subject],
    cores: Sequence[int],
    store: Path,
    folder: Path,
    key: str = "",
    *flags: str,
    python: Path | str = sys.executable,
) -> Iterator[Server]:
    """`mlserve serve` of all subjects on `cores`, with one thread for the models; `key` is of `folder`/keys.json.

    `python` is the interpreter that has the mlserve to be served by.
    """
    ports = ["--http-port", "0", "--grpc-port", "0", "--threads", "1", "--store", str(store), "--json"]
    keys = ["--keys", str(folder / "keys.json")] if key else []
    command = [str(python), "-m", "mlserve", "serve", *(subject.ref for subject in subjects), *ports, *keys, *flags]
    started_s = time.perf_counter()
    with on_core(*cores):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            lines: list[str] = []
            while "}\n" not in lines[-1:]:
                lines.append(process.stdout.readline())
                if not lines[-1]:
                    fail("the server did not start; it says why above")
            ready = json.loads("".join(lines))
            workers = tuple(map(psutil.Process, ready["workers"]))
            server = Server(ready["http"], ready["grpc"], workers[0], key, 0.0, workers)
            _ask_rest(server, subjects[0])
            yield server._replace(start_s=time.perf_counter() - started_s)
        finally:
            process.terminate()


def check_answers(subject: Subject, server: Server) -> None:
    """Over both protocols the server must answer what onnxruntime answers."""
    import grpc

    specs = {spec.name: spec for spec in subject.outputs}
    answers = {"REST": wire_rest.decode_response(_ask_rest(server, subject), specs)}
    with grpc.insecure_channel(server.grpc) as channel:
        reply = channel.unary_unary(INFER)(subject.grpc_message, metadata=tuple(server.headers.items()))
        answers["gRPC"] = wire_grpc.decode_response(reply, specs)
    for protocol, found in answers.items():
        name = differing_output(subject, found)
        if name:
            fail(f"{subject.name} over {protocol}: output {name!r} differs from onnxruntime's own")


def read_failures(server: Server) -> frozenset[str]:
    """What the server has counted of failed requests so far, one line a kind.

    Not those that wrk walked away from at the end of its turn, while they waited for their run.
    """
    lines = [line for line in _read_metrics(server).splitlines() if line.startswith("mlserve_requests_total")]
    return frozenset(line for line in lines if 'outcome="ok"' not in line and 'outcome="NotServing"' not in line)


def check_counters(server: Server, before: frozenset[str] = frozenset()) -> None:
    """Errors of gRPC travel inside HTTP's successes, where h2load does not look; the server counts them."""
    failed = read_failures(server) - before
    if failed:
        fail(f"the server counted failed requests: {'; '.join(sorted(failed))}")


def read_total(server: Server, sample_name: str, **labels: str) -> float:
    """The sum of every series of `sample_name` with `labels`."""
    families = text_string_to_metric_families(_read_metrics(server))
    samples = (sample for family in families for sample in family.samples)
    return sum(
        sample.value for sample in samples if sample.name == sample_name and labels.items() <= sample.labels.items()
    )


def _read_metrics(server: Server) -> str:
    with urllib.request.urlopen(urllib.request.Request(f"{server.http}/metrics", headers=server.headers)) as reply:
        return str(reply.read().decode())


def _ask_rest(server: Server, subject: Subject) -> bytes:
    headers = {**server.headers, "content-type": "application/json"}
    request = urllib.request.Request(f"{server.http}/v2/models/{subject.name}/infer", subject.rest_body, headers)
    with urllib.request.urlopen(request) as reply:
        return bytes(reply.read())
