"""Versions swapped under load: nothing lost, nothing wrong, and what a swap costs the requests beside it.

    .venv/bin/python benchmarks/swaps.py [--swaps 100] [--json FILE]

A model of several versions (version v multiplies by 10 v) is served by `mlserve serve` on one core; REST and gRPC
clients on the other first find how much the two can do together (closed loop), and then send 70% of it at a fixed
rate (open loop), whether or not answers come. Half of the clients ask the bare name, a quarter the alias
`production`, a quarter always version 1. Every answer is checked: it must be what the version it names makes of the
numbers that were sent, and a request for version 1 must be answered by version 1.

    loaded     every version is in memory and a swap moves an alias
    loading    only version 1 and the promoted version are; every swap loads one and frees another

Stretches with swaps and without take turns. Latency counts from the moment a request was due.
Exit status 1 when a request was lost or answered wrongly.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import uvloop
from closed_loop import err, fail, on_core
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest
from mlserve.model.store import Store
from mlserve.model.tensors import TensorSpec
from mlserve.runs.machine import Machine, read_machine
from mlserve.stats import quantile
from mlserve.units import format_duration, format_rate
from mlserve.wire import messages

INFER = "/inference.GRPCInferenceService/ModelInfer"
# So many versions that the next swap to one comes after it was freed.
VERSIONS = 8
CONNECTIONS = 16
GRPC_PER_S = 100.0
SHARE_OF_CAPACITY = 0.7
QUIET_LOAD = 1.0
BLOCKS = 10
# Who asks for what: the bare name, the alias, always the first version.
ASKED = ("", "", "production", "1")
POLICIES = {"loaded": "all", "loading": "default,1"}


class Phase(msgspec.Struct):
    """One part of the open loop: how long each answer took, counted from when its request was due."""

    latency_s: list[float] = msgspec.field(default_factory=list)


class Swap(msgspec.Struct, frozen=True):
    """How long after the alias moved the first answer was the new version's, and the last one that of another."""

    first_new_s: float
    last_old_s: float


class Outcome(msgspec.Struct):
    """One way of swapping. `lost` and `wrong` hold the first of each in words, `versions` counts answers."""

    way: str
    capacity_per_s: float = 0.0
    offered_per_s: float = 0.0
    sent: int = 0
    lost: int = 0
    wrong: int = 0
    examples: list[str] = msgspec.field(default_factory=list)
    versions: dict[str, int] = msgspec.field(default_factory=dict)
    steady_p50_s: float = 0.0
    steady_p99_s: float = 0.0
    swapping_p50_s: float = 0.0
    swapping_p99_s: float = 0.0
    swaps: list[Swap] = msgspec.field(default_factory=list)


class Result(msgspec.Struct, frozen=True):
    """What `--json` writes."""

    machine: Machine
    load_average: float
    outcomes: list[Outcome]


def main() -> None:
    options = parse_options()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        fail("this needs two cores, one for the server and one for the load")
    machine, load_average = read_machine(), os.getloadavg()[0]
    if load_average > QUIET_LOAD:
        err.print(f"[yellow]warning:[/] the load average is {load_average:.1f}: other work blurs these figures")
    os.sched_setaffinity(0, {cores[-1]})
    outcomes = []
    for way, policy in POLICIES.items():
        err.print(f"{way}: {options.swaps} swaps")
        with tempfile.TemporaryDirectory() as folder:
            store = publish(Path(folder) / "store")
            with serving(store, policy, options.workers, cores[0]) as (http, target):
                outcomes.append(uvloop.run(swap_under_load(way, store, http, target, options)))
    show(outcomes)
    if options.json:
        result = Result(machine, load_average, outcomes)
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    sys.exit(1 if any(each.lost or each.wrong for each in outcomes) else 0)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=100, help="swaps of each way")
    parser.add_argument("--workers", type=int, default=1, help="worker processes, all on one core")
    parser.add_argument("--seconds", type=float, default=20.0, help="time without swaps, between blocks of swaps")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    return parser.parse_args()


# What is served


def publish(root: Path) -> Store:
    """A store with the model `m` in all versions, the first promoted."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    store = Store(root)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy")
    specs = [(TensorSpec(name, "float32", ("batch", 2)),) for name in "xy"]
    for version in range(1, VERSIONS + 1):
        factor = numpy_helper.from_array(np.float32(10 * version), "factor")
        graph = helper.make_graph([helper.make_node("Mul", ["x", "factor"], ["y"])], "m", [x], [y], [factor])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        with store.staging() as folder:
            (folder / "made").mkdir()
            save_model(model, folder / "made" / MODEL_FILE)
            store.add(Artifact(folder / "made", Manifest(variant="fp32", inputs=specs[0], outputs=specs[1])), "m")
    store.promote("m", 1)
    return store


@contextmanager
def serving(store: Store, policy: str, workers: int, core: int) -> Iterator[tuple[str, str]]:
    """`(host:port, host:port)` of REST and gRPC of `mlserve serve` on one core."""
    flags = ["--http-port", "0", "--grpc-port", "0", "--threads", "1", "--workers", str(workers), "--json"]
    command = [sys.executable, "-m", "mlserve", "serve", "m", "--versions", policy, "--store", str(store.root), *flags]
    with on_core(core):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with process:
        try:
            assert process.stdout is not None
            lines: list[str] = []
            while "}\n" not in lines[-1:]:
                lines.append(process.stdout.readline())
                if not lines[-1]:
                    fail("the server did not start")
            ready = json.loads("".join(lines))
            yield ready["http"].removeprefix("http://"), ready["grpc"]
        finally:
            process.terminate()


# The load


async def swap_under_load(way: str, store: Store, http: str, target: str, options: argparse.Namespace) -> Outcome:
    outcome = Outcome(way)
    host, _, port = http.rpartition(":")
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(lambda: Rest(host, outcome), host, int(port)))[1] for _ in range(CONNECTIONS)
    ]
    outcome.capacity_per_s = await closed_loop(clients, 3.0)
    outcome.offered_per_s = SHARE_OF_CAPACITY * outcome.capacity_per_s
    outcome.versions.clear()
    async with grpc.aio.insecure_channel(target) as channel:
        load = OpenLoop(clients, outcome.offered_per_s - GRPC_PER_S, outcome)
        tasks = [asyncio.create_task(load.run()), asyncio.create_task(ask_grpc(channel, load, outcome))]
        await asyncio.sleep(1.0)
        steady, swapping = Phase(), Phase()
        for block in range(BLOCKS):  # in turns, so that a disturbance meets both
            load.phase, load.watched = steady, ""
            await asyncio.sleep(options.seconds / BLOCKS)
            load.phase = swapping
            for number in range(block * options.swaps // BLOCKS, (block + 1) * options.swaps // BLOCKS):
                outcome.swaps.append(await swap(store, load, (number + 1) % VERSIONS + 1))
        load.ending = True
        await asyncio.gather(*tasks)
    outcome.steady_p50_s, outcome.steady_p99_s = (quantile(np.array(steady.latency_s), share) for share in (0.5, 0.99))
    outcome.swapping_p50_s, outcome.swapping_p99_s = (
        quantile(np.array(swapping.latency_s), share) for share in (0.5, 0.99)
    )
    return outcome


async def swap(store: Store, load: "OpenLoop", version: int) -> Swap:
    """Promotes `version` and waits until it has answered for a while."""
    load.watched, load.first_new_s, load.last_old_s = str(version), 0.0, 0.0
    started_s = time.perf_counter()
    await asyncio.to_thread(store.promote, "m", version)
    while not load.first_new_s:
        if time.perf_counter() - started_s > 30:
            fail(f"version {version} did not answer within 30 s of its promotion")
        await asyncio.sleep(0.005)
    await asyncio.sleep(random.uniform(0.2, 0.4))
    return Swap(load.first_new_s - started_s, max(load.last_old_s - started_s, 0.0))


async def closed_loop(clients: "list[Rest]", seconds: float) -> float:
    """Answers a second when every connection asks again at once."""
    done, until_s = 0, time.perf_counter() + seconds

    def again(client: Rest) -> None:
        nonlocal done
        done += 1
        if time.perf_counter() < until_s:
            client.ask("", done % 1000, lambda _: again(client))

    for client in clients:
        client.ask("", 1, lambda _, client=client: again(client))
    await asyncio.sleep(seconds + 0.5)
    return done / seconds


class OpenLoop:
    """Sends at a fixed rate; a request that finds no free connection waits for one, and its wait counts."""

    def __init__(self, clients: "list[Rest]", per_s: float, outcome: Outcome) -> None:
        self.phase, self.ending = Phase(), False
        self.watched, self.first_new_s, self.last_old_s = "", 0.0, 0.0
        self._free, self._due = deque(clients), deque[float]()
        self._per_s, self._outcome, self._number = per_s, outcome, 0

    async def run(self) -> None:
        started_s, sent = time.perf_counter(), 0
        while not self.ending:
            now_s = time.perf_counter()
            while started_s + sent / self._per_s <= now_s:
                self._due.append(started_s + sent / self._per_s)
                sent += 1
            self._send()
            await asyncio.sleep(0.0005)
        deadline_s = time.perf_counter() + 10
        while len(self._free) < CONNECTIONS and time.perf_counter() < deadline_s:
            await asyncio.sleep(0.01)
        unanswered = CONNECTIONS - len(self._free) + len(self._due)
        if unanswered:
            self._outcome.lost += unanswered
            self._outcome.examples.append(f"{unanswered} requests had no answer after 10 s")

    def _send(self) -> None:
        while self._free and self._due:
            client, due_s = self._free.popleft(), self._due.popleft()
            self._number += 1
            asked = ASKED[self._number % len(ASKED)]
            client.ask(
                asked, self._number % 1000, lambda version, c=client, d=due_s, a=asked: self._done(c, d, a, version)
            )

    def _done(self, client: "Rest", due_s: float, asked: str, version: str) -> None:
        self._free.append(client)
        self.note(due_s, asked, version)
        self._send()

    def note(self, due_s: float, asked: str, version: str) -> None:
        """One answer, of `version`, to a request that was due at `due_s`."""
        now_s = time.perf_counter()
        self.phase.latency_s.append(now_s - due_s)
        if asked != "1" and self.watched:
            if version == self.watched:
                self.first_new_s = self.first_new_s or now_s
            else:
                self.last_old_s = now_s


class Rest(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, host: str, outcome: Outcome) -> None:
        self._outcome = outcome
        paths = {asked: f"/v2/models/m/versions/{asked}/infer" if asked else "/v2/models/m/infer" for asked in ASKED}
        self._heads = {asked: f"POST {path} HTTP/1.1\r\nhost: {host}\r\n".encode() for asked, path in paths.items()}
        self._received = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def ask(self, asked: str, number: int, done: Any) -> None:
        self._asked, self._number, self._answered = asked, number, done
        tensor = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[%d,%d]}]}' % (number, -number)
        self._outcome.sent += 1
        self._transport.write(self._heads[asked] + b"content-length: %d\r\n\r\n" % len(tensor) + tensor)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, body = self._received.partition(b"\r\n\r\n")
        if not blank:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self._received = b""
        if not head.startswith(b"HTTP/1.1 200"):
            lose(self._outcome, f"{head[:40]!r} {body[:120]!r}")
            self._answered("")
            return
        document = json.loads(body)
        version = document["model_version"]
        check(self._outcome, self._asked, self._number, version, document["outputs"][0]["data"])
        self._answered(version)

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            lose(self._outcome, repr(error))


async def ask_grpc(channel: Any, load: OpenLoop, outcome: Outcome) -> None:
    """Asks at its own fixed rate, beside the REST clients."""
    infer, number, waiting = channel.unary_unary(INFER), 0, set()
    started_s = time.perf_counter()

    async def ask(number: int, due_s: float) -> None:
        asked = ASKED[number % len(ASKED)]
        request = messages.ModelInferRequest(model_name="m", model_version=asked)
        request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
        request.raw_input_contents.append(np.float32([number, -number]).tobytes())
        outcome.sent += 1
        try:
            answer = messages.ModelInferResponse.FromString(await infer(request.SerializeToString(), timeout=20))
        except grpc.RpcError as error:
            lose(outcome, f"{error.code()}: {error.details()}")
            return
        found = np.frombuffer(answer.raw_output_contents[0], np.float32)
        check(outcome, asked, number, answer.model_version, found.tolist())
        load.note(due_s, asked, answer.model_version)

    while not load.ending:
        due_s = started_s + number / GRPC_PER_S
        await asyncio.sleep(max(due_s - time.perf_counter(), 0))
        number += 1
        task = asyncio.create_task(ask(number % 1000, due_s))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    await asyncio.gather(*waiting)


# Checking, showing


def check(outcome: Outcome, asked: str, number: int, version: str, values: list[float]) -> None:
    outcome.versions[version] = outcome.versions.get(version, 0) + 1
    expected = 10.0 * int(version) * number
    if values != [expected, -expected] or (asked == "1" and version != "1"):
        outcome.wrong += 1
        outcome.examples.append(f"{asked or 'm'} of {number}: version {version} answered {values}")


def lose(outcome: Outcome, what: str) -> None:
    outcome.lost += 1
    if len(outcome.examples) < 10:
        outcome.examples.append(what)


def show(outcomes: list[Outcome]) -> None:
    table = Table(title="swaps under load", title_justify="left", box=SIMPLE_HEAD)
    headings = (
        "way",
        "swaps",
        "capacity",
        "offered",
        "requests",
        "lost",
        "wrong",
        "p50",
        "p99",
        "p50",
        "p99",
        "effect",
    )
    beneath = ("", "", "", "", "", "", "", "steady", "steady", "swapping", "swapping", "median, most")
    for heading, below in zip(headings, beneath, strict=True):
        table.add_column(f"{heading}\n{below}", justify="left" if heading == "way" else "right", no_wrap=True)
    for each in outcomes:
        effect_s = np.array([swap.first_new_s for swap in each.swaps])
        latencies = (each.steady_p50_s, each.steady_p99_s, each.swapping_p50_s, each.swapping_p99_s)
        table.add_row(
            each.way,
            str(len(each.swaps)),
            format_rate(each.capacity_per_s),
            format_rate(each.offered_per_s),
            str(each.sent),
            str(each.lost),
            str(each.wrong),
            *map(format_duration, latencies),
            f"{format_duration(float(np.median(effect_s)))}, {format_duration(float(effect_s.max()))}",
        )
    console = Console(width=160)
    console.print(table)
    for each in outcomes:
        for example in each.examples[:10]:
            console.print(f"{each.way}: {example}", markup=False)


if __name__ == "__main__":
    main()
