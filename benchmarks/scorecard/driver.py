"""Open-loop load whose every answer is judged: requests leave at the instants of a schedule, whatever became of those
before them, each with an id and numbers that no other has, and the answer must be what numpy makes of them.

    with driving(server.endpoints, Load(per_s=500, seconds=5)) as load:
        ...                                   # what is done to the server meanwhile
    load.driven.count("lost"), load.driven.quantile_s(0.99)

Latency counts from the moment a request was due.
"""

import asyncio
import os
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import uvloop
from known_server import PreciseTimer
from scorecard.grpc_way import GrpcWay
from scorecard.http_way import HttpWay
from scorecard.judging import Answered, Kind, Question, Said, judge
from scorecard.known import MODEL
from scorecard.server import Endpoints, load_cores

from mlserve.stats import quantile

__all__ = ["Driven", "Load", "Running", "Way", "drive", "driving"]

Way = Literal["http", "http-new", "grpc"]
"""HTTP on connections that are kept, HTTP with a connection for each request, and gRPC."""

# What is due within this time of now is sent at once: a timer for each would cost more than it brings.
_SENT_AT_ONCE = 64
_SWEEP_S = 0.1
_BAD: tuple[Kind, ...] = ("shed", "error", "wrong", "lost")


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """`per_s` requests a second for `seconds`, at equal distances or as Poisson has it.

    `ways` share the requests in turn: `("http", "http", "grpc")` is two thirds of HTTP. So do `versions`, where `""`
    asks no version, and an alias is asked as one; a number must be answered by that version. `rows` may be many. An
    answer that has not come after `timeout_s` is lost. No more than `connections` are open over HTTP: what finds none
    free waits, and its wait counts. `headers` go with every request, as metadata over gRPC. Loads of another `seed`, 0
    to 15, ask other numbers.
    """

    per_s: float
    seconds: float
    arrivals: Literal["constant", "poisson"] = "constant"
    ways: tuple[Way, ...] = ("http",)
    model: str = MODEL
    versions: tuple[str, ...] = ("",)
    rows: int = 1
    timeout_s: float = 10.0
    connections: int = 2000
    headers: dict[str, str] = {}
    seed: int = 0


class Driven(msgspec.Struct):
    """What became of every request of a load, in the order of their ends. `cpu_share` is of the driver's core."""

    load: Load
    answers: list[Answered]
    took_s: float
    cpu_share: float

    def count(self, *kinds: Kind) -> int:
        """How many ended so; all without `kinds`."""
        return sum(answer.kind in kinds for answer in self.answers) if kinds else len(self.answers)

    def of(self, kind: Kind, way: Way | None = None) -> list[Answered]:
        """Those that ended so."""
        return [answer for answer in self.answers if answer.kind == kind and way in (None, answer.way)]

    def quantile_s(self, share: float, kind: Kind = "ok", from_s: float = 0.0, until_s: float = np.inf) -> float:
        """Of the latencies of requests that were due in that part of the load; nan where there are none."""
        found = [one.latency_s for one in self.answers if one.kind == kind and from_s <= one.due_s < until_s]
        return quantile(np.array(found), share) if found else float("nan")

    def per_s(self, kind: Kind = "ok", from_s: float = 0.0, until_s: float | None = None) -> float:
        """How many ended so in a second, by when they ended."""
        until_s = self.load.seconds if until_s is None else until_s
        return sum(one.kind == kind and from_s <= one.done_s < until_s for one in self.answers) / (until_s - from_s)

    def examples(self, *kinds: Kind) -> list[str]:
        """The first few of them, in words."""
        return [f"{one.way} request {one.number}: {one.told}" for one in self.answers if one.kind in kinds][:3]

    def versions(self) -> Counter[str]:
        """How many good answers each version gave."""
        return Counter(one.version for one in self.answers if one.kind == "ok")

    @property
    def fault(self) -> str:
        """What is never allowed: a lost or wrong answer, in words; empty for none."""
        lost, wrong = self.count("lost"), self.count("wrong")
        return f"{lost} lost, {wrong} wrong: {'; '.join(self.examples('lost', 'wrong'))}" if lost or wrong else ""

    @property
    def not_ok(self) -> str:
        """Whatever was not answered well, in words; empty for nothing, and nothing sent is something."""
        counts = {kind: self.count(kind) for kind in _BAD if self.count(kind)}
        told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        return f"{told}: {'; '.join(self.examples(*_BAD))}" if counts else "" if self.answers else "nothing was sent"


class Running:
    """A load under way. `driven` and `all_driven` (of several loads, in their order) are there when it has ended."""

    def __init__(self) -> None:
        self.all_driven: list[Driven] = []
        self.started_s = 0.0
        self._ending = threading.Event()
        self._loads: list[_Course] = []

    @property
    def driven(self) -> Driven:
        """Of the first load, or the only one."""
        return self.all_driven[0]

    @property
    def now_s(self) -> float:
        """Since the first request was due."""
        return time.perf_counter() - self.started_s

    def so_far(self, *kinds: Kind) -> int:
        """How many requests of all loads have ended so by now; all without `kinds`."""
        return sum(not kinds or one.kind in kinds for course in self._loads for one in course.answers[:])

    def newest(self) -> Iterator[Answered]:
        """What has ended, of the first load, from the newest to the oldest of now."""
        answers = self._loads[0].answers
        return (answers[place] for place in range(len(answers) - 1, -1, -1))

    def newest_since(self, from_s: float) -> list[Answered]:
        """What has ended since then, of the first load."""
        return list(takewhile(lambda one: one.done_s >= from_s, self.newest()))

    def stop(self) -> None:
        """Sends nothing more. What is under way is waited for."""
        self._ending.set()


def drive(endpoints: Endpoints, *loads: Load) -> Driven:
    """Sends all of it and waits for every answer. Returns what became of the first load."""
    with driving(endpoints, *loads) as running:
        pass
    return running.driven


@contextmanager
def driving(endpoints: Endpoints, *loads: Load) -> Iterator[Running]:
    """The loads, beside each other, in a thread on a core of its own; leaving waits until every request has ended.

    Raises what broke the driver itself.
    """
    running, broken = Running(), list[BaseException]()
    ready = threading.Event()

    def work() -> None:
        try:
            if load_cores():
                os.sched_setaffinity(0, load_cores())
            uvloop.run(_drive_all(endpoints, loads, running, ready))
        except BaseException as error:
            broken.append(error)
        finally:
            ready.set()

    _allow_descriptors()
    thread = threading.Thread(target=work, name="driver")
    thread.start()
    try:
        ready.wait()
        yield running
        thread.join()
    except BaseException:  # Ctrl-C while the load runs its course, too
        running.stop()
        raise
    finally:
        thread.join()
    if broken:
        raise broken[0]


async def _drive_all(endpoints: Endpoints, loads: Sequence[Load], running: Running, ready: threading.Event) -> None:
    courses = [_Course(endpoints, load) for load in loads]
    running._loads = courses  # noqa: SLF001  # one object in two halves
    for course in courses:
        await course.warm_up()
    running.started_s = time.perf_counter()
    ready.set()
    used_s = time.thread_time()
    try:
        await asyncio.gather(*(course.run(running.started_s, running._ending) for course in courses))  # noqa: SLF001
    finally:
        for course in courses:
            await course.close()
    took_s = time.perf_counter() - running.started_s
    cpu_share = (time.thread_time() - used_s) / took_s
    running.all_driven = [Driven(course.load, course.answers, took_s, cpu_share) for course in courses]


class _Asked(NamedTuple):
    """One request under way."""

    question: Question
    way: Way
    due_s: float
    sent_s: float


class _Course:
    """One load, from its first request to its last answer."""

    def __init__(self, endpoints: Endpoints, load: Load) -> None:
        self.load = load
        self.answers: list[Answered] = []
        self._under_way: dict[int, _Asked] = {}
        self._send: dict[Way, Callable[[Question, Callable[[Said], None]], None]] = {}
        context = endpoints.tls.context() if endpoints.tls else None
        self._http = HttpWay(endpoints.http, load.model, load.headers, load.connections, context)
        self._grpc = None
        if "grpc" in load.ways:
            credentials = endpoints.tls.credentials() if endpoints.tls else None
            self._grpc = GrpcWay(endpoints.grpc, load.model, load.headers, load.timeout_s, credentials)
        self._due_s = _instants(load)
        self._next, self._started_s = 0, 0.0
        self._over = asyncio.Event()
        for way in load.ways:
            self._send[way] = self._sender(way)

    def _sender(self, way: Way) -> Callable[[Question, Callable[[Said], None]], None]:
        if way == "grpc":
            assert self._grpc is not None
            return self._grpc.send
        return self._http.send if way == "http" else self._http.send_new

    async def warm_up(self) -> None:
        """Opens a few connections, so that the first requests do not all wait for theirs."""
        if "http" in self.load.ways:
            await self._http.open(min(8, self.load.connections))
        if self._grpc is not None:
            await self._grpc.open()

    async def run(self, started_s: float, ending: threading.Event) -> None:
        self._started_s = started_s
        self._ending = ending
        self._timer = PreciseTimer(asyncio.get_running_loop(), self._send_due)
        self._send_due()
        await self._all_ended(ending)
        self._timer.close()

    async def _all_ended(self, ending: threading.Event) -> None:
        while not self._over.is_set() or self._under_way:
            await asyncio.sleep(_SWEEP_S if not self._over.is_set() else 0.005)
            self._sweep()
            if ending.is_set():
                self._over.set()

    async def close(self) -> None:
        self._http.close()
        if self._grpc is not None:
            await self._grpc.close()

    def _send_due(self, _: int = 0) -> None:
        for _ in range(_SENT_AT_ONCE):
            if self._next == len(self._due_s) or self._ending.is_set():
                self._over.set()
                return
            due_s = self._due_s[self._next]
            if due_s > time.perf_counter() - self._started_s:
                break
            self._ask(self._next, due_s)
            self._next += 1
        wait_s = self._started_s + self._due_s[self._next % len(self._due_s)] - time.perf_counter()
        self._timer.set(time.monotonic_ns() + max(round(wait_s * 1e9), 1))

    def _ask(self, number: int, due_s: float) -> None:
        load = self.load
        # Every way meets every version: the second turns once the first has gone round.
        way = load.ways[number % len(load.ways)]
        asked = load.versions[number // len(load.ways) % len(load.versions)]
        question = Question((load.seed << 24) + number, asked, load.rows)
        self._under_way[number] = _Asked(question, way, due_s, time.perf_counter() - self._started_s)
        self._send[way](question, lambda said: self._end(number, said))

    def _end(self, number: int, said: Said) -> None:
        found = self._under_way.pop(number, None)
        if found is None:  # it was given up
            return
        done_s = time.perf_counter() - self._started_s
        kind, told = judge(found.question, said)
        self.answers.append(
            Answered(number, found.way, found.question.asked, found.due_s, found.sent_s, done_s, kind, said.status,
                     said.version, told)
        )  # fmt: skip

    def _sweep(self) -> None:
        """Gives up what has waited too long."""
        now_s = time.perf_counter() - self._started_s
        late = [number for number, one in self._under_way.items() if now_s - one.due_s > self.load.timeout_s]
        for number in late:
            self._end(number, Said(fault=f"no answer within {self.load.timeout_s:g} s"))


def _instants(load: Load) -> list[float]:
    """When each request is due, in seconds since the first instant."""
    if load.arrivals == "constant":
        return list((np.arange(int(load.per_s * load.seconds)) / load.per_s).tolist())
    rng = np.random.default_rng(load.seed)
    gaps_s = rng.exponential(1 / load.per_s, int(load.per_s * load.seconds * 1.5 + 50))
    found_s = np.cumsum(gaps_s)
    return list(found_s[found_s < load.seconds].tolist())


def _allow_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16) if hard > 0 else 1 << 16, hard))
