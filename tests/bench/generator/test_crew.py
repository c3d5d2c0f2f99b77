import signal
import socket
import subprocess
import sys
import threading
import time

import msgpack
import msgspec
import psutil
import pytest
import zmq

from mlserve.bench.clients.client import Request
from mlserve.bench.generator.crew import (
    HELLO,
    NEWS,
    ORDER,
    REFUSED,
    Assignment,
    Begin,
    Done,
    Ping,
    Pong,
    Ready,
    Rows,
    decode_order,
    describe_self,
    encode,
)
from mlserve.bench.generator.generator import Total
from mlserve.bench.generator.job import Address, Calibrated, Finished, Job, Started, Tick, Waiting
from mlserve.bench.generator.process import Leader, drive, join
from mlserve.bench.load.schedule import schedule
from mlserve.errors import BenchError, UsageError
from mlserve.runs.load import Plan
from mlserve.runs.samples import Sample, read_samples

JOIN = "from mlserve.bench.generator.process import join; join('127.0.0.1', {port}, ())"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


class Watch:
    """Notes what a run tells, and acts when so many requests were answered."""

    def __init__(self, when_ok: int = 0, act=lambda: None) -> None:
        self.messages, self.when_ok, self.act = [], when_ok, act

    def __call__(self, message, _) -> None:
        self.messages.append(message)
        if isinstance(message, Tick) and self.when_ok and message.ok > self.when_ok:
            self.when_ok = 0
            self.act()

    def of(self, kind):
        return [message for message in self.messages if isinstance(message, kind)]


def test_two_generators_send_the_schedule_of_one_and_none_outlives_the_other(slow_server, make_job, tmp_path, are_gone):
    server, null_server, port = slow_server(), slow_server(), free_port()
    leader = Leader(1, "127.0.0.1", port)
    plan = Plan(rate_per_s=150, duration_s=0.8, warm_up_s=0.2, generators=2)
    with subprocess.Popen([sys.executable, "-c", JOIN.format(port=port)], stderr=subprocess.PIPE, text=True) as joined:
        watch = Watch()
        null = Address("http", "127.0.0.1", null_server.port, "/v2/models/slow/infer")
        finished = drive(make_job(server, plan, null_server=null), (), watch, leader)
        due_ns = schedule(plan)
        samples = read_samples(tmp_path / "run")
        assert (samples.scheduled_s * 1e9).round().astype(int).tolist() == due_ns.tolist()
        assert samples.generator.tolist() == [k % 2 for k in range(len(due_ns))]
        assert server.answered == finished.ok == len(due_ns)
        assert (finished.end_s, finished.failed, len(finished.cpus)) == (1.0, 0, 2)
        assert watch.of(Waiting)[-1] == Waiting(joined=2, expected=2)
        (started,), (calibrated,), ticks = watch.of(Started), watch.of(Calibrated), watch.of(Tick)
        assert 0 < calibrated.calibration.requests < null_server.answered
        assert len(set(started.pids)) == 2
        assert (ticks[-1].sent, ticks[-1].ok, ticks[-1].in_flight) == (len(due_ns), len(due_ns), 0)
        assert sum(sum(tick.latencies.values()) for tick in ticks) == len(due_ns)
        assert [tick.elapsed_s for tick in ticks] == sorted(tick.elapsed_s for tick in ticks)

        # The one that has joined serves the next run, too; there the other one is killed.
        def kill() -> None:
            psutil.Process(watch.of(Started)[0].pids[0]).kill()

        watch = Watch(30, kill)
        plan = Plan(rate_per_s=150, duration_s=60, warm_up_s=0, generators=2)
        with pytest.raises(BenchError, match=r"generator 1 \(process \d+\) broke down: .*generator-1\.log"):
            drive(make_job(server, plan), (), watch, leader)
        pids = watch.of(Started)[0].pids
        assert 30 < len(read_samples(tmp_path / "run")) < 60 * 150
        own = psutil.Process(joined.pid).children(recursive=True)
        assert own
        joined.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in joined.communicate(timeout=30)[1]
    assert are_gone([*pids, *(child.pid for child in own)])


class Peer:
    """A generator far away, whose clock is its own: it speaks with the leader as Locust does, and sends two rows."""

    def __init__(self, port: int, **differs) -> None:
        self._hello = describe_self(1, None) | {"host": "far", "boot_id": "another"} | differs
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, b"far_1")
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(f"tcp://127.0.0.1:{port}")
        self.job: Job | None = None
        self.scenario, self.begin, self.refused, self.pings = b"", None, None, 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._thread.join()
        self._socket.close()

    def _send(self, kind: str, data) -> None:
        self._socket.send(msgpack.dumps((kind, data, "far_1")))

    def _run(self) -> None:
        self._send("client_ready", "2.43.4")
        while self._socket.poll(20_000):
            kind, data, _ = msgpack.loads(self._socket.recv(), strict_map_key=False)
            if kind == "ack":
                self._send(HELLO, self._hello)
            elif kind == "spawn":
                self._send("spawning_complete", {"user_classes_count": {"OpenLoop": 1}, "user_count": 1})
            elif kind == REFUSED:
                self.refused = data["version"]
            elif kind == ORDER:
                self._obey(decode_order(data))
            elif kind == "quit":
                return

    def _obey(self, order) -> None:
        match order:
            case Assignment():
                self.job, self.scenario = msgspec.msgpack.decode(order.job, type=Job), order.scenario
                self._send(NEWS, encode(Ready(calibration=None)))
            case Ping():
                self.pings += 1
                time.sleep(0.02)
                self._send(NEWS, encode(Pong(order.stamp_ns)))
            case Begin():
                self.begin = order
                rows = [Sample(n, n, None, n + 5, 1, 0, "ok", "7") for n in (10, 20)]
                tick = Tick(elapsed_s=1.0, sent=2, ok=2, failed=0, dropped=0, in_flight=0, latencies={1: 2})
                self._send(NEWS, encode(Rows(rows=rows, tick=tick)))
                self._send(NEWS, encode(Done(total=Total(end_s=1.0, cpu=0.25, ok=2, failed=0))))


def test_a_generator_on_another_machine_gets_64_megabytes_and_begins_half_a_round_trip_earlier(
    slow_server, make_job, tmp_path
):
    port, scenario = free_port(), tmp_path / "scenario.py"
    scenario.write_text("a scenario")
    requests = (Request(bytes(64 << 20)),)
    plan = Plan(rate_per_s=10, duration_s=1, warm_up_s=0)
    job = make_job(slow_server(), plan, requests=requests, locustfile=str(scenario))
    watch = Watch()
    with Peer(port) as far:
        finished = drive(job, (), watch, Leader(1, "127.0.0.1", port))
    assert (far.job, far.scenario) == (job, b"a scenario")
    assert far.begin.from_arrival
    assert far.pings == 5
    assert far.begin.start_ns <= 0.5e9 - 0.02e9 / 2
    assert watch.of(Started)[0].pids == ()
    assert finished == Finished(end_s=1.0, cpus=(0.25,), ok=2, failed=0)
    assert len(read_samples(tmp_path / "run")) == 2


def test_a_generator_of_another_version_is_refused_on_both_sides(slow_server, make_job):
    port = free_port()
    plan = Plan(rate_per_s=10, duration_s=1, warm_up_s=0)
    with (
        Peer(port, version="0.0.1") as old,
        pytest.raises(BenchError, match=r"generator on far has mlserve 0\.0\.1 .* install the same version on both"),
    ):
        drive(make_job(slow_server(), plan), (), Watch(), Leader(1, "127.0.0.1", port))
    assert old.refused == describe_self(1, None)["version"]


def test_more_generators_cannot_join_than_share_the_schedule(slow_server, make_job):
    plan = Plan(rate_per_s=10, duration_s=1, warm_up_s=0)
    with pytest.raises(UsageError, match="2 generators are to join, but only 1 share the load"):
        drive(make_job(slow_server(), plan), (), Watch(), Leader(2))


def test_who_joins_where_nobody_leads_is_told_so():
    port, before = free_port(), set(psutil.Process().children())
    with pytest.raises(BenchError, match=rf"no run began at 127\.0\.0\.1:{port} within 0 s; start it there"):
        join("127.0.0.1", port, (), within_s=0.2)
    assert set(psutil.Process().children()) <= before
