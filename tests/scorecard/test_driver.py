"""The driver finds every planted fault of a server whose every answer is known, and nothing else."""

import json
import socket
import socketserver
import statistics
import threading
from contextlib import contextmanager
from itertools import pairwise

import pytest
from scorecard.driver import Load, drive, driving
from scorecard.known import factor_of
from scorecard.server import Endpoints

# What the server below does with the requests whose number has this remainder.
PLANTED = {
    "wrong value": "wrong",
    "wrong id": "wrong",
    "wrong version": "wrong",
    "another's answer": "wrong",
    "shed": "shed",
    "refused": "error",
    "refused without a word": "lost",
    "closed": "lost",
    "half an answer": "lost",
    "silence": "lost",
}
WAYS = [*PLANTED, *["right"] * 10]


class Planted(socketserver.StreamRequestHandler):
    """V2 over HTTP/1.1, with faults."""

    def handle(self):
        while self.rfile.readline():
            length = 0
            while (line := self.rfile.readline().strip()) != b"":
                if line.lower().startswith(b"content-length:"):
                    length = int(line[15:])
            document = json.loads(self.rfile.read(length))
            way = WAYS[int(document["id"][1:]) % len(WAYS)]
            with self.server.lock:
                self.server.seen.append(way)
            if not self.answer(way, document):
                return

    def answer(self, way, document):
        """Whether the connection goes on."""
        values = [value * factor_of(1) for value in document["inputs"][0]["data"]]
        said = {"id": document["id"], "model_version": "1", "outputs": [{"data": values}]}
        if way == "wrong value":
            values[-1] -= 1
        elif way == "wrong id":
            said["id"] += "0"
        elif way == "wrong version":
            said["model_version"] = "2"
        elif way == "another's answer":
            values[0] += factor_of(1)
        if way == "closed":
            return False
        if way == "silence":
            self.server.ending.wait(10)
            return False
        if way in ("shed", "refused"):
            extra = b"retry-after: 1\r\n" if way == "shed" else b""
            return self.send(b"503 Service Unavailable\r\n" + extra.rstrip(b"\r\n"), b'{"error":"full"}')
        if way == "refused without a word":
            return self.send(b"500 Internal Server Error", b"oops")
        return self.send(b"200 OK", json.dumps(said).encode(), cut=way == "half an answer")

    def send(self, status, body, *, cut=False):
        head = b"HTTP/1.1 " + status.rstrip() + b"\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.wfile.write(head + (body[: len(body) // 2] if cut else body))
        return not cut


class Leaving(socketserver.BaseRequestHandler):
    """Tells whoever connects, before anything is asked, as a server's last words do."""

    def handle(self):
        self.request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 2\r\n\r\n{}")
        self.request.shutdown(socket.SHUT_WR)
        while self.request.recv(4096):
            pass


@contextmanager
def planted(handler=Planted):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads, server.seen = True, []
        server.endpoints = Endpoints(f"127.0.0.1:{server.server_address[1]}")
        server.lock, server.ending = threading.Lock(), threading.Event()
        server.request_queue_size = 128
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.ending.set()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("way", ["http", "http-new"])
def test_every_planted_fault_is_found_and_every_request_has_one_end(way):
    with planted() as server:
        driven = drive(server.endpoints, Load(per_s=300, seconds=1, ways=(way,), timeout_s=0.5, connections=200))
    assert driven.count() == 300 == len({one.number for one in driven.answers})
    for one in driven.answers:
        planted_way = WAYS[one.number % len(WAYS)]
        assert one.kind == PLANTED.get(planted_way, "ok"), (planted_way, one)
    each = 300 // len(WAYS)
    assert driven.count("ok") == 10 * each
    assert (driven.count("wrong"), driven.count("shed"), driven.count("error")) == (4 * each, each, each)
    assert driven.count("lost") == 4 * each
    assert server.seen.count("right") == 10 * each
    assert driven.fault.startswith(f"{4 * each} lost, {4 * each} wrong")
    assert f"{each} shed" in driven.not_ok


def test_who_is_told_before_it_has_asked_is_told():
    with planted(Leaving) as server:
        driven = drive(server.endpoints, Load(per_s=300, seconds=1, ways=("http-new",), timeout_s=0.5))
    assert driven.count("shed") == driven.count() == 300, driven.fault


def test_where_nobody_listens_all_is_lost():
    with planted() as server:
        address = server.endpoints.http
    driven = drive(Endpoints(address, address), Load(per_s=60, seconds=0.5, ways=("http", "http-new", "grpc")))
    assert driven.count("lost") == driven.count() == 30


@pytest.mark.parametrize("arrivals", ["constant", "poisson"])
def test_requests_leave_when_they_are_due_whatever_became_of_those_before(arrivals):
    with planted() as server:
        load = Load(per_s=200, seconds=1, arrivals=arrivals, timeout_s=0.5, connections=200)
        driven = drive(server.endpoints, load)
    late_s = sorted(one.sent_s - one.due_s for one in driven.answers)
    assert min(late_s) >= 0
    assert statistics.median(late_s) < 0.01
    due_s = sorted(one.due_s for one in driven.answers)
    gaps_s = [after - before for before, after in pairwise(due_s)]
    spread = statistics.stdev(gaps_s) / statistics.mean(gaps_s)
    assert spread < 1e-6 if arrivals == "constant" else 0.7 < spread < 1.3
    assert 140 < driven.count() < 260


def test_a_load_that_is_stopped_ends_what_it_has_begun():
    with planted() as server:
        with driving(server.endpoints, Load(per_s=100, seconds=60, timeout_s=0.5, connections=200)) as running:
            while running.so_far() < 20:
                pass
            running.stop()
        driven = running.driven
    assert 20 <= driven.count() < 400
    assert len(server.seen) == driven.count()


def test_two_loads_run_beside_each_other():
    with planted() as server:
        loads = [Load(per_s=per_s, seconds=0.5, timeout_s=0.5, connections=200) for per_s in (40, 80)]
        with driving(server.endpoints, *loads) as running:
            pass
    assert [driven.count() for driven in running.all_driven] == [20, 40]
    assert running.all_driven[1].took_s < 3
