"""The measurement behind the protocol tax: every way to ask in turn, round by round."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import numpy as np

from mlserve.bench.clients.client import Request
from mlserve.bench.dialects.dialect import Dialect
from mlserve.bench.dialects.find import find_dialect
from mlserve.bench.generator.job import Address
from mlserve.bench.null_server.opening import open_null_server
from mlserve.bench.payload.payload import make_payload
from mlserve.bench.subject import Subject
from mlserve.engines.engine import Engine, EngineSettings
from mlserve.engines.opening import open_engine, open_onnx_file
from mlserve.errors import UsageError
from mlserve.model.store import Store
from mlserve.model.tensors import Tensors
from mlserve.runs.load import Plan, Protocol
from mlserve.runs.run import ServerSettings
from mlserve.serve.transports.server_timing import WANTS_TIMING
from mlserve.tuning.opening import Contender, Source, SubjectOf, opener
from mlserve.tuning.plain_clients import PlainClient, open_plain_client
from mlserve.tuning.serving import ServerOptions
from mlserve.tuning.tax import Asked, Floor, TaxReport, read_entries, tax_row
from mlserve.wire import grpc
from mlserve.wire.signature import Signature

__all__ = ["TaxPlan", "measure_tax"]

_WAYS: dict[str, Protocol] = {"gRPC": "grpc", "REST binary": "rest-binary", "REST JSON": "rest"}
_IN_PROCESS = "in process"
_ROUNDS = 10
_WARM_UP = 10


class TaxPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. `duration_s` is for all ways and rounds together; `rate_per_s` 0.0: one after the other."""

    contender: Contender
    options: ServerOptions = ServerOptions()
    batch_rows: int = 1
    duration_s: float = 20.0
    rate_per_s: float = 0.0
    seed: int = 0


def measure_tax(plan: TaxPlan, source: Source, on_round: Callable[[int, int], None]) -> TaxReport:
    """The tax of every protocol on a model that is served meanwhile. `on_round` is told (round from 1, of how many).

    Raises UsageError for a server that runs already: it could not be asked in process.
    """
    if plan.contender.running:
        raise UsageError(f"--tax opens the model in process too, and {plan.contender.where} is a URL; give the model")
    with ExitStack() as stack:
        subject_of = stack.enter_context(opener(source)(plan.contender, plan.options))
        subject = subject_of("grpc")
        assert subject.server is not None, "it is ours"
        server_cpus, own_cpus = subject.server.cpus, subject.cpus
        with _held_to(server_cpus):
            engine = _open_engine(plan.contender, source.store, subject.server)
            stack.callback(engine.close)
        rows = _rows(subject, plan, engine)
        ways = {_IN_PROCESS: _Way(lambda number: _run(engine, rows[number]), server_cpus)}
        for name, protocol in _WAYS.items():
            with _held_to(own_cpus):  # what a client starts stays there
                real, null = stack.enter_context(_asking(subject_of, protocol, rows, engine, server_cpus))
            ways[name], ways[f"{name} floor"] = _Way(real, own_cpus), _Way(null, own_cpus)
        _take_turns(ways, plan, len(rows), on_round)
    inside = ways[_IN_PROCESS].asked
    return TaxReport(
        model=subject.model.name + (f"@{subject.model.version}" if subject.model.version else ""),
        batch_rows=plan.batch_rows,
        rate_per_s=plan.rate_per_s,
        rows=(
            tax_row(_IN_PROCESS, inside, None, inside),
            *(tax_row(name, ways[name].asked, ways[f"{name} floor"].floor, inside) for name in _WAYS),
        ),
    )


Asks = Callable[[int], Asked]
"""Asks with rows number n; the round is filled in later."""


class _Way:
    """One way to ask, on its cores, and what came of it."""

    def __init__(self, ask: Asks, cpus: Sequence[int]) -> None:
        self._ask, self._cpus = ask, cpus
        self.asked: list[Asked] = []
        self._cpu_s = 0.0

    @property
    def floor(self) -> Floor:
        """What it costs without coding, as of a way to the null server."""
        without_s = np.array([one.total_s - one.coding_s for one in self.asked])
        coding_s = float(np.mean([one.coding_s for one in self.asked]))
        cpu_s = max(0.0, self._cpu_s / len(self.asked) - coding_s)
        return Floor(mean_s=float(without_s.mean()), median_s=float(np.median(without_s)), cpu_s=cpu_s)

    def take(self, number: int, bodies: int, turn_s: float, rate_per_s: float) -> None:
        """One turn: at least one request, and as many as fit into `turn_s`."""
        with _held_to(self._cpus):
            for body in range(_WARM_UP if number == 1 else 1):
                self._ask(body % bodies)
            began_s = due_s = time.perf_counter()
            while True:
                if rate_per_s:
                    time.sleep(max(0.0, due_s - time.perf_counter()))
                    due_s += 1 / rate_per_s
                cpu_s = time.process_time()
                asked = self._ask(len(self.asked) % bodies)
                self._cpu_s += time.process_time() - cpu_s
                self.asked.append(msgspec.structs.replace(asked, round=number))
                if time.perf_counter() - began_s >= turn_s:
                    return


def _take_turns(ways: dict[str, _Way], plan: TaxPlan, bodies: int, on_round: Callable[[int, int], None]) -> None:
    """Every way in every round, in an order that the seed shuffles, so that what drifts hits all alike."""
    turn_s = plan.duration_s / (_ROUNDS * len(ways))
    rng = np.random.default_rng(plan.seed)
    every = list(ways.values())
    for number in range(1, _ROUNDS + 1):
        on_round(number, _ROUNDS)
        for position in rng.permutation(len(every)):
            every[position].take(number, bodies, turn_s, plan.rate_per_s)


def _run(engine: Engine, rows: Tensors) -> Asked:
    began_s = time.perf_counter()
    engine.run(rows)
    return Asked(0, time.perf_counter() - began_s, 0.0)


@contextmanager
def _asking(
    subject_of: SubjectOf, protocol: Protocol, rows: Sequence[Tensors], engine: Engine, null_cpus: Sequence[int]
) -> Iterator[tuple[Asks, Asks]]:
    """How a protocol's server is asked, and a null server that answers with the same bytes."""
    subject, dialect = subject_of(protocol), find_dialect(protocol)
    target = subject.target
    address = Address(dialect.transport, target.host, target.port, dialect.path(target))
    with ExitStack() as stack:
        real = open_plain_client(address)
        stack.callback(real.close)
        answer, _ = real.ask(_timed(dialect.encode(target, rows[0], subject.inputs), protocol))
        null = open_plain_client(stack.enter_context(open_null_server(address, answer, null_cpus)))
        stack.callback(null.close)
        yield _asks(real, dialect, subject, rows, engine), _asks(null, dialect, subject, rows, engine)


def _asks(client: PlainClient, dialect: Dialect, subject: Subject, rows: Sequence[Tensors], engine: Engine) -> Asks:
    """Encodes rows, asks, and decodes the answer, as a caller would who has tensors and wants tensors."""
    target, inputs, protocol = subject.target, subject.inputs, subject.target.protocol
    outputs = {spec.name: spec for spec in engine.outputs}

    def ask(number: int) -> Asked:
        began_s = time.perf_counter()
        request = dialect.encode(target, rows[number], inputs)
        encoded_s = time.perf_counter()
        request = _timed(request, protocol)
        sent_s = time.perf_counter()
        answer, timing = client.ask(request)
        answered_s = time.perf_counter()
        dialect.decode(answer, outputs)
        decoded_s = time.perf_counter()
        coding_s = encoded_s - began_s + decoded_s - answered_s
        return Asked(0, coding_s + answered_s - sent_s, coding_s, read_entries(timing))

    return ask


def _timed(request: Request, protocol: Protocol) -> Request:
    """The same, asking where its time went: by a header, or by a parameter of the message."""
    if protocol != "grpc":
        return msgspec.structs.replace(request, headers=(*request.headers, (WANTS_TIMING.decode(), "1")))
    return msgspec.structs.replace(request, body=grpc.ask_timing(request.body))


def _rows(subject: Subject, plan: TaxPlan, engine: Engine) -> list[Tensors]:
    """The tensors of the requests that a bench would send."""
    load = Plan(rate_per_s=1.0, duration_s=1.0, warm_up_s=0.0, batch_rows=plan.batch_rows, seed=plan.seed)
    wish = msgspec.structs.replace(subject.wish, timed="none")
    payload = make_payload(subject.target, subject.inputs, load, wish)
    signature = Signature(subject.target.model, "", subject.inputs, engine.outputs)
    return [grpc.decode_request(grpc.parse_request(request.body), signature).inputs for request in payload.requests]


def _open_engine(contender: Contender, store: Path, server: ServerSettings) -> Engine:
    settings = EngineSettings(device=server.device, threads=server.threads)
    if contender.where.endswith(".onnx") or Path(contender.where).is_file():
        return open_onnx_file(Path(contender.where), settings)
    return open_engine(Store(store).resolve(contender.where), settings)


@contextmanager
def _held_to(cpus: Sequence[int]) -> Iterator[None]:
    """This thread, and what it starts, on `cpus`; on any where there are none."""
    before = os.sched_getaffinity(0) if cpus and hasattr(os, "sched_setaffinity") else set()
    if before:
        os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        if before:
            os.sched_setaffinity(0, before)
