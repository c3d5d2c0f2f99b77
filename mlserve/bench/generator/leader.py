"""The process that leads the generators: gives each its share, lets all begin at one instant, and adds up what they
send.
"""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import gevent
import msgspec
from gevent.event import Event
from gevent.queue import Empty, Queue

from mlserve import __version__
from mlserve.bench.generator.crew import (
    HELLO,
    NEWS,
    ORDER,
    REFUSED,
    Assignment,
    Begin,
    Done,
    Left,
    News,
    Order,
    Ping,
    Pong,
    Ready,
    Rows,
    boot_id,
    decode_news,
    encode,
)
from mlserve.bench.generator.ending import told_over
from mlserve.bench.generator.file_sink import FileSink
from mlserve.bench.generator.generator import Share
from mlserve.bench.generator.job import (
    Calibrated,
    Command,
    Finished,
    Job,
    Listening,
    Started,
    Stop,
    Tick,
    Waiting,
)
from mlserve.bench.generator.pipe import Pipe
from mlserve.errors import BenchError

__all__ = ["Leader"]

# Every member must have heard of the first instant, and of the last, before it comes.
_NOTICE_S = 0.5
_PINGS = 5
# Loading a model's worth of requests, or a user's locustfile, may hold up a member's heartbeat.
_SILENT_BEFORE_S, _SILENT_S = 120.0, 8.0
# What the members' farewell needs to leave this process.
_FAREWELL_S = 0.1

_UNKNOWN = 2**31

_Kind = TypeVar("_Kind", Ready, Pong, Done)


class _Member:
    """One of the generators. `same_clock`: its monotonic clock is ours. Those we started know their numbers; the others
    come after them.
    """

    def __init__(self, client: str, said: dict[str, Any]) -> None:
        self.client, self.pid, self.host = client, int(said["pid"]), said["host"]
        self.number = int(said.get("number", _UNKNOWN))
        self.same_clock = bool(boot_id()) and said["boot_id"] == boot_id()
        self.heard_s = time.monotonic()
        self.tick: Tick | None = None

    @property
    def name(self) -> str:
        return f"generator {self.number + 1} (process {self.pid} on {self.host})"


class Leader:
    """Under a Locust master. `pipe` leads to `mlserve bench`, which sees one stream of messages, as from one generator.

    Latencies are always of one member's own clock; between machines only the first instant differs, by what is wrong
    with half the round trip of a message.
    """

    def __init__(self, environment: Any, job: Job, pipe: Pipe) -> None:
        self._environment, self._runner, self._job, self._pipe = environment, environment.runner, job, pipe
        self._sink = FileSink(Path(job.directory), pipe.send)
        self._members: dict[str, _Member] = {}
        self._inbox: Queue[tuple[_Member, News]] = Queue()
        self._all_joined, self._spawned = Event(), Event()
        self._refusal = ""
        self._start_ns: int | None = None
        self._stop_at_s: float | None = None
        self._over = False
        self._runner.register_message(HELLO, self._welcome)
        self._runner.register_message(NEWS, self._hear)
        events = environment.events
        events.heartbeat_sent.add_listener(self._heartbeat)
        # Locust clears its statistics when it starts its users, so the load begins afterwards.
        events.spawning_complete.add_listener(lambda **_: self._spawned.set())
        events.test_start.add_listener(lambda **_: self._begun())
        events.test_stopping.add_listener(lambda **_: self.stop(0.0))
        events.quitting.add_listener(lambda **_: self._sink.close())
        pipe.follow(self._obey)
        pipe.send(Listening(port=self._runner.server.port))
        pipe.send(Waiting(joined=0, expected=job.plan.generators))
        gevent.spawn(self._lead_on)

    def _obey(self, command: Command) -> None:
        """A leader begins when its members are there; it is never told to."""
        if isinstance(command, Stop):
            self.stop(command.at_s)

    def stop(self, at_s: float) -> None:
        """Lets all stop at `at_s` since the first instant, or at the next that all of them can keep."""
        if self._over:
            return
        if self._start_ns is None:
            self._stop_at_s = at_s
            return
        elapsed_s = (time.monotonic_ns() - self._start_ns) / 1e9
        at_s = min(max(at_s, elapsed_s + _NOTICE_S), self._job.plan.end_s)
        self._order_all(Stop(at_s=at_s))

    def _lead_on(self) -> None:
        with told_over(self._environment, self._pipe):
            try:
                self._lead()
            except BenchError:
                self._sink.close()
                self._dismiss()
                raise
            finally:
                self._over = True

    def _lead(self) -> None:
        self._gather()
        self._prepare()
        self._begin()
        totals = [done.total for done in self._await(Done, _SILENT_S)]
        self._over = True
        self._sink.close()
        if self._environment.web_ui is None:
            self._dismiss()
        self._pipe.send(
            Finished(
                end_s=min(total.end_s for total in totals),
                cpus=tuple(total.cpu for total in totals),
                ok=sum(total.ok for total in totals),
                failed=sum(total.failed for total in totals),
            )
        )
        self._pipe.close()

    def _gather(self) -> None:
        self._all_joined.wait()
        if self._refusal:
            raise BenchError(self._refusal)
        for number, member in enumerate(self._in_turn()):
            member.number = number

    def _prepare(self) -> None:
        """Gives every member its share, and waits until all are ready."""
        scenario = Path(self._job.locustfile).read_bytes() if self._job.locustfile else b""
        job = msgspec.msgpack.encode(self._job)
        for member in self._in_turn():
            share = Share(member.number, len(self._members))
            self._order(member, Assignment(job=job, share=share, scenario=scenario))
        ready = self._await(Ready, _SILENT_BEFORE_S)
        calibrations = [answer.calibration for answer in ready if answer.calibration is not None]
        if calibrations:
            from mlserve.bench.generator.calibration import combine

            self._pipe.send(Calibrated(calibration=combine(calibrations)))
        self._spawned.wait()

    def _begin(self) -> None:
        """Lets all begin at one instant."""
        ways_ns = self._way_there_ns()
        now_ns = time.monotonic_ns()
        start_ns = now_ns + round(_NOTICE_S * 1e9)
        for member in self._in_turn():
            if member.same_clock:
                self._order(member, Begin(start_ns=start_ns, from_arrival=False))
            else:
                left_ns = start_ns - time.monotonic_ns() - ways_ns[member.number]
                self._order(member, Begin(start_ns=left_ns, from_arrival=True))
        self._start_ns = start_ns
        self._elapsed_s = float("-inf")
        pids = tuple(member.pid for member in self._in_turn() if member.same_clock)
        started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._pipe.send(Started(started_at=started_at, pids=pids, lead_s=(start_ns - time.monotonic_ns()) / 1e9))
        if self._stop_at_s is not None:
            self.stop(self._stop_at_s)

    def _way_there_ns(self) -> list[int]:
        """How long a message to each member takes: half the quickest of a few round trips."""
        if all(member.same_clock for member in self._members.values()):
            return [0] * len(self._members)
        quickest_ns = [2**62] * len(self._members)
        for _ in range(_PINGS):
            self._order_all(Ping(time.monotonic_ns()))
            for number, pong in enumerate(self._await(Pong, _SILENT_S)):
                quickest_ns[number] = min(quickest_ns[number], pong.stamp_ns)
        return [round_trip_ns // 2 for round_trip_ns in quickest_ns]

    def _await(self, kind: type[_Kind], silent_s: float) -> list[_Kind]:
        """Waits until every member has sent news of this kind, which come in the order of their numbers; meanwhile
        takes their rows. Raises BenchError when one leaves, or is not heard of for `silent_s`.
        """
        answers: dict[int, _Kind] = {}
        while len(answers) < len(self._members):
            for member in self._members.values():
                if member.number not in answers and time.monotonic() - member.heard_s > silent_s:
                    raise BenchError(f"{member.name} was not heard of for {silent_s:.0f} s; see whether it still runs")
            try:
                member, news = self._inbox.get(timeout=1.0)
            except Empty:
                continue
            if isinstance(news, Rows):
                self._take(member, news)
            elif isinstance(news, Left):
                raise BenchError(f"{member.name} left: {news.reason}")
            elif isinstance(news, kind):
                answers[member.number] = news
        return [answers[number] for number in sorted(answers)]

    def _take(self, member: _Member, news: Rows) -> None:
        """Writes a member's rows, and tells how far all are: as far as the slowest."""
        member.tick = news.tick
        ticks = [each.tick for each in self._members.values() if each.tick is not None]
        self._elapsed_s = max(self._elapsed_s, min(tick.elapsed_s for tick in ticks))
        tick = Tick(
            elapsed_s=self._elapsed_s,
            sent=sum(tick.sent for tick in ticks),
            ok=sum(tick.ok for tick in ticks),
            failed=sum(tick.failed for tick in ticks),
            dropped=sum(tick.dropped for tick in ticks),
            in_flight=sum(tick.in_flight for tick in ticks),
            latencies=news.tick.latencies,
        )
        self._sink.take([row._replace(generator=member.number) for row in news.rows], tick)

    def _welcome(self, msg: Any, **_: Any) -> None:
        """A member's greeting."""
        said, client = msg.data, msg.node_id
        if said["version"] != __version__:
            self._runner.send_message(REFUSED, {"version": __version__}, client)
            self._refusal = (
                f"the generator on {said['host']} has mlserve {said['version']} and this machine has {__version__}; "
                "install the same version on both"
            )
            self._all_joined.set()
        elif client not in self._members and not self._all_joined.is_set():
            self._members[client] = _Member(client, said)
            joined, expected = len(self._members), self._job.plan.generators
            self._pipe.send(Waiting(joined=joined, expected=expected))
            if joined == expected:
                self._all_joined.set()

    def _hear(self, msg: Any, **_: Any) -> None:
        member = self._members.get(msg.node_id)
        if member is None:
            return  # it joined when all were there
        member.heard_s = time.monotonic()
        news = decode_news(msg.data)
        if isinstance(news, Pong):
            news = Pong(time.monotonic_ns() - news.stamp_ns)
        self._inbox.put((member, news))

    def _heartbeat(self, client_id: str, **_: Any) -> None:
        if client_id in self._members:
            self._members[client_id].heard_s = time.monotonic()

    def _begun(self) -> None:
        """Locust has started a test: by itself, or, when ours is over, because somebody pressed its button."""
        if self._over:
            gevent.spawn_later(_NOTICE_S, self._runner.stop)

    def _in_turn(self) -> list[_Member]:
        return sorted(self._members.values(), key=lambda member: member.number)

    def _order(self, member: _Member, order: Order) -> None:
        self._runner.send_message(ORDER, encode(order), member.client)

    def _order_all(self, order: Order) -> None:
        for member in self._in_turn():
            self._order(member, order)

    def _dismiss(self) -> None:
        """Ends the members' processes."""
        self._runner.send_message("quit")
        gevent.sleep(_FAREWELL_S)
