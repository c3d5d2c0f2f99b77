"""A user's own locustfile as the thing that is sent: each arrival of the schedule lets one of its users run one task.

What Locust would make of the file holds: the classes' weights, the tasks' weights, nested task sets, `on_start` and
`on_stop`, listeners. But the dispatcher decides when a task runs: a user's wait time, and a call of `self.wait()`, last
until the next arrival that falls to that user. `fixed_count` is not heeded, nor are a file's load shapes.

Every request that a task reports through Locust's `events.request` is a row. The first is due at the arrival's instant,
and each later one when the last that was over before it began was done: what a task does between two requests counts
for the later, and what it asks at once is due at once. A task that reports none is a row of its own, and so is an error
that a task raises. In these rows `version` is the name of the request (or, of a task, of its User class), `body`
numbers these names in the order in which they first appeared, and `rows` is 1.
"""

import math
import random
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import msgspec
from gevent.event import Event
from gevent.pool import Group
from gevent.queue import Queue
from locust import TaskSet
from locust.event import EventHook
from locust.exception import CatchResponseError
from locust.util.load_locustfile import load_locustfile

from mlserve.bench.clients.client import Answered, Reply, Request
from mlserve.bench.generator.generator import Share, Sink, Total
from mlserve.bench.generator.job import Job, Tick
from mlserve.bench.progress import count_latencies
from mlserve.errors import BenchError
from mlserve.runs.samples import DROPPED, OK, Sample

__all__ = ["UserScenario", "load_user_classes"]

_MAKE_USERS_S = 2.0
_LOOK_EVERY_S = 0.1
_LONGEST_STATUS = 60
_SEAT = "mlserve_seat"
# What the dispatcher is told of every task; its rows are replaced.
_RAN = Reply("ran")


def load_user_classes(path: Path, environment: Any) -> list[Any]:
    """The User classes of a locustfile, whose listeners hear of `init` and `test_start` now, as both are over.

    Raises BenchError when the file cannot be imported, or has no User class with a task.
    """
    events = environment.events
    over = events.init, events.test_start
    events.init, events.test_start = EventHook(), EventHook()
    if (folder := str(path.parent)) not in sys.path:
        sys.path.insert(0, folder)  # for what its tasks import later, too
    try:
        found, _ = load_locustfile(str(path))
        events.init.fire(environment=environment, runner=environment.runner, web_ui=environment.web_ui)
        events.test_start.fire(environment=environment)
    except (Exception, SystemExit) as error:
        raise BenchError(
            f"--locustfile {path} cannot be imported: {type(error).__name__}: {error}; try: python {path}"
        ) from error
    finally:
        events.init, events.test_start = over
    classes = [user_class for user_class in found.values() if user_class.weight > 0]
    if not classes:
        raise BenchError(f"--locustfile {path} has no User class; define one, with a @task")
    for user_class in classes:
        if not user_class.tasks:
            raise BenchError(f"--locustfile {path}: {user_class.__name__} has no task; mark a method with @task")
    return classes


class _Reported(NamedTuple):
    """One request of a task, its times on the monotonic clock."""

    name: str
    begun_ns: int
    done_ns: int
    status: str


class _Turn:
    """One arrival, and what was reported while a user ran its task."""

    def __init__(self, answered: Answered) -> None:
        self.answered = answered
        self.begun_s = time.monotonic()
        self.requests: list[_Reported] = []
        self.fault = ""


class _Seat:
    """One user of class `number`, from its `on_start` to its end. `call` wakes it for its turn."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.call: Queue[None] = Queue()
        self.turn: _Turn | None = None
        self.greenlet: Any = None
        self.is_up = False
        self.settled = Event()  # it is up, or never will be
        self.error: BaseException | None = None


class UserScenario:
    """The client of a run whose job has a locustfile. `job` is that job as the generator has to see it, `start_ns` the
    run's first instant on the monotonic clock, to be set before the run.

    A task that takes longer than the plan's timeout is ended with its user, and its row says "timeout".
    """

    def __init__(self, environment: Any, job: Job, share: Share) -> None:
        plan, address = job.plan, job.address
        self._environment, self._timeout_s = environment, plan.timeout_s
        host = f"[{address.host}]" if ":" in address.host else address.host
        classes = load_user_classes(Path(job.locustfile), environment)
        self._classes = [self._governed(each, f"http://{host}:{address.port}") for each in classes]
        self._weights = [float(each.weight) for each in classes]
        self._random = random.Random(plan.seed * share.of + share.number)  # noqa: S311  # which user is no secret
        random.seed(self._random.random())  # Locust draws tasks from this one
        self._at_most = len(range(share.number, plan.users, share.of)) if plan.closed else plan.max_in_flight
        self._idle: list[list[_Seat]] = [[] for _ in classes]
        self._made = [0] * len(classes)
        self._users, self._busy = Group(), dict[_Seat, None]()
        self._observed: Sample | None = None
        self._names: dict[str, int] = {}
        self._rows: list[Sample] = []
        self._ok = self._failed = 0
        self._looking = gevent.spawn(self._keep_ending_the_late)
        self.start_ns = 0
        alone = {"requests": (Request(b""),), "order": (0,), "expected": (), "outputs": (), "null_server": None}
        self.job = msgspec.structs.replace(job, **alone)
        environment.events.request.add_listener(self._note_request)
        environment.events.user_error.add_listener(self._note_error)

    def make_users(self) -> None:
        """Makes users before the load, one after the other: as many as may ever run, or what two seconds allow.

        Raises BenchError when one cannot be made, or its `on_start` raises.
        """
        deadline_s = time.monotonic() + _MAKE_USERS_S
        while sum(self._made) < self._at_most and (left_s := deadline_s - time.monotonic()) > 0:
            number = min(range(len(self._classes)), key=lambda each: (self._made[each] + 1) / self._weights[each])
            seat = self._make_user(number, None)
            seat.settled.wait(left_s)
            if seat.settled.is_set() and not seat.is_up:
                why = "it stopped its user" if seat.error is None else f"{type(seat.error).__name__}: {seat.error}"
                raise BenchError(f"a user of the scenario's {self._classes[number].__name__} did not start: {why}")

    def send(self, number: int, answered: Answered) -> None:
        """Lets a user run a task: an idle one of a class drawn by weight, or else a new one."""
        turn = _Turn(answered)
        (drawn,) = self._random.choices(range(len(self._classes)), self._weights)
        if self._idle[drawn]:
            self._give(self._idle[drawn].pop(), turn)
        else:
            gevent.spawn(self._make_user, drawn, turn)

    def close(self) -> None:
        """Ends the users, each with its `on_stop`."""
        self._looking.kill()
        self._users.kill(timeout=self._timeout_s)

    def observe(self, sample: Sample) -> None:
        """Sees the dispatcher's row of each arrival."""
        if sample.status != DROPPED:
            self._observed = sample

    def into(self, sink: Sink) -> Sink:
        """A sink that hands the scenario's rows to `sink` instead of the dispatcher's."""
        return _ScenarioSink(self, sink)

    def take_rows(self) -> list[Sample]:
        """The rows since the last call."""
        rows, self._rows = self._rows, []
        return rows

    def tick_of(self, tick: Tick, rows: Sequence[Sample]) -> Tick:
        """`tick`, of tasks, as one of requests, of which `rows` are the new ones."""
        answered_ns = [row.done_ns - row.scheduled_ns for row in rows if row.status == OK and row.done_ns is not None]
        return msgspec.structs.replace(tick, ok=self._ok, failed=self._failed, latencies=count_latencies(answered_ns))

    def total_of(self, total: Total) -> Total:
        """`total`, of tasks, as one of requests."""
        return msgspec.structs.replace(total, ok=self._ok, failed=self._failed)

    def _governed(self, user_class: Any, url: str) -> Any:
        """`user_class`, but that its users wait for their turn where they would wait for their time."""

        def on_start(user: Any) -> None:
            user_class.on_start(user)
            self._await_turn()

        def wait_time(_: Any) -> float:
            self._await_turn()
            return 0.0

        for task_set in _task_sets(user_class.tasks):
            task_set.wait_time = TaskSet.wait_time  # which asks the user
        body = {"on_start": on_start, "wait_time": wait_time, "__module__": user_class.__module__}
        if user_class.host is None:
            body["host"] = url
        return type(user_class)(user_class.__name__, (user_class,), body)

    def _make_user(self, number: int, turn: _Turn | None) -> _Seat:
        """A new user, whose first turn is `turn`."""
        seat = _Seat(number)
        self._made[number] += 1
        if turn is not None:
            self._give(seat, turn)
        try:
            user = self._classes[number](self._environment)
        except Exception as error:  # the user's own code
            self._let_go(seat, error)
        else:
            seat.greenlet = user.start(self._users)
            # Greenlets that a task starts share this, so their requests are known as the task's.
            seat.greenlet.spawn_tree_locals = {_SEAT: seat}
            seat.greenlet.link(lambda greenlet: self._let_go(seat, greenlet.exception))
        return seat

    def _give(self, seat: _Seat, turn: _Turn) -> None:
        seat.turn = turn
        self._busy[seat] = None
        seat.call.put(None)

    def _await_turn(self) -> None:
        """In a user's greenlet: its task, if any, is over; waits until it may run another."""
        seat: _Seat = gevent.getcurrent().spawn_tree_locals[_SEAT]
        over = None
        if seat.is_up:
            over, seat.turn = seat.turn, None
        seat.is_up = True
        seat.settled.set()
        if seat.turn is None:
            self._idle[seat.number].append(seat)
        if over is not None:
            self._end(seat, over)
        seat.call.get()

    def _let_go(self, seat: _Seat, error: BaseException | None) -> None:
        """A user is no more: its task, or Locust, has stopped it, or its own code failed."""
        self._made[seat.number] -= 1
        if seat in self._idle[seat.number]:
            self._idle[seat.number].remove(seat)
        seat.error = error
        seat.settled.set()
        turn, seat.turn = seat.turn, None
        if turn is not None:
            if error is not None:
                turn.fault = turn.fault or type(error).__name__
            self._end(seat, turn)

    def _end(self, seat: _Seat, turn: _Turn) -> None:
        """Answers for the arrival, and makes its rows."""
        self._busy.pop(seat, None)
        turn.answered(_RAN)
        observed, self._observed = self._observed, None
        if observed is None or observed.done_ns is None:
            return  # the run has failed and says why
        reported = turn.requests
        if turn.fault or not reported:
            done_ns = observed.done_ns + self.start_ns
            reported.append(_Reported(self._classes[seat.number].__name__, done_ns, done_ns, turn.fault or OK))
        over_ns: list[int] = []
        for name, begun_ns, done_ns, status in reported:
            before_ns = [each for each in over_ns if each <= begun_ns]
            due_ns = max(before_ns) - self.start_ns if before_ns else observed.scheduled_ns
            sent_ns = due_ns if before_ns else observed.sent_ns
            over_ns.append(done_ns)
            number = self._names.setdefault(name, len(self._names))
            row = Sample(due_ns, sent_ns, None, max(due_ns, done_ns - self.start_ns), 1, number, status, name)
            self._rows.append(row)
            if status == OK:
                self._ok += 1
            else:
                self._failed += 1

    def _keep_ending_the_late(self) -> None:
        while True:
            gevent.sleep(_LOOK_EVERY_S)
            for seat in list(self._busy):  # in the order in which their turns came
                turn = seat.turn
                if turn is None or time.monotonic() - turn.begun_s < self._timeout_s:
                    break
                seat.turn, turn.fault = None, "timeout"
                self._end(seat, turn)
                if seat.greenlet is not None:
                    seat.greenlet.kill(block=False)

    def _note_request(
        self,
        name: str,
        response_time: float | None = None,
        exception: BaseException | None = None,
        response: Any = None,
        start_time: float | None = None,
        **_: Any,
    ) -> None:
        """A request was done: just now or, where a task looked at the answer first, when Locust's clock says."""
        turn = _current_turn()
        if turn is None:
            return
        begun_ns = done_ns = time.monotonic_ns()
        if response_time is not None and math.isfinite(response_time):
            took_ns = round(response_time * 1e6)
            since_begun_ns = took_ns if start_time is None else round((time.time() - start_time) * 1e9)
            begun_ns = done_ns - since_begun_ns
            done_ns = min(done_ns, begun_ns + took_ns)
        turn.requests.append(_Reported(str(name), begun_ns, done_ns, _status_of(exception, response)))

    def _note_error(self, exception: BaseException, **_: Any) -> None:
        turn = _current_turn()
        if turn is not None:
            turn.fault = type(exception).__name__


class _ScenarioSink:
    """Hands on a scenario's rows, and the generator's of what was dropped."""

    def __init__(self, scenario: UserScenario, sink: Sink) -> None:
        self._scenario, self._sink = scenario, sink

    def take(self, rows: Sequence[Sample], tick: Tick) -> None:
        own = self._scenario.take_rows()
        dropped = [row for row in rows if row.status == DROPPED]
        self._sink.take([*dropped, *own], self._scenario.tick_of(tick, own))


def _current_turn() -> _Turn | None:
    """The turn that the greenlet that asks belongs to; none while a user starts or stops."""
    seat: _Seat | None = getattr(gevent.getcurrent(), "spawn_tree_locals", {}).get(_SEAT)
    return seat.turn if seat is not None and seat.is_up else None


def _status_of(exception: BaseException | None, response: Any) -> str:
    if exception is None:
        return OK
    if isinstance(exception, CatchResponseError):
        return f"failed: {exception}"[:_LONGEST_STATUS]
    code = getattr(response, "status_code", None)
    return f"HTTP {code}" if isinstance(code, int) and code >= 400 else type(exception).__name__


def _task_sets(tasks: Iterable[Any]) -> Iterator[Any]:
    """The task sets among `tasks`, and those nested in them."""
    nested = [task for task in tasks if isinstance(task, type) and issubclass(task, TaskSet)]
    for task_set in nested:
        yield task_set
        yield from _task_sets(vars(task_set)["tasks"])
