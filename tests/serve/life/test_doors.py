"""Who connects while a worker dies, or leaves, is let in by another: real servers, and the doors by themselves."""

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress

import psutil
import pytest
import uvloop

from mlserve.serve.life.doors import MOST_DOORS, Doors, open_doors, shut
from mlserve.serve.settings import BatchSettings

ASKED = b"GET /v2/health/live HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
# Enough connections that the kernel, which picks a door for each by chance, picks both.
MANY = 32


@contextmanager
def stopped(pid):
    """Nobody notices what happens meanwhile."""
    psutil.Process(pid).suspend()
    try:
        yield
    finally:
        psutil.Process(pid).resume()


def killed(pid):
    """Kills a worker, and returns when it is dead; its parent may not have collected it."""
    worker = psutil.Process(pid)
    worker.kill()
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.001)


def workers_of(server):
    """Those that it has now."""
    return [child.pid for child in psutil.Process(server.process.pid).children()]


def answer_of(connection):
    connection.settimeout(20)
    received = b""
    while part := connection.recv(1 << 16):
        received += part
    return received


def is_refused(server):
    try:
        server.connect().close()
    except ConnectionError:
        return True
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere one door takes all")
def test_who_comes_to_a_dead_workers_door_before_anybody_knows_is_let_in_all_the_same(serving, tiny_onnx):
    with serving(tiny_onnx, "--workers", 2) as server:
        with stopped(server.process.pid):
            killed(server.workers[0])
            waiting = [server.connect() for _ in range(MANY)]
            for connection in waiting:
                connection.sendall(ASKED)
        answers = [answer_of(connection) for connection in waiting]
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers), answers
        for connection in waiting:
            connection.close()


def test_a_worker_that_is_alone_takes_its_door_along(serving, tiny_onnx, until):
    """The negative control."""
    with serving(tiny_onnx, "--workers", 1) as server, stopped(server.process.pid):
        killed(server.workers[0])
        until(lambda: is_refused(server))


def test_who_connects_all_the_time_sees_no_connection_refused_or_reset_while_workers_die(serving, tiny_onnx, until):
    found, ended = [], threading.Event()

    def ask(server):
        while not ended.is_set():
            try:
                with server.connect() as connection:
                    connection.sendall(ASKED)
                    found.append(answer_of(connection)[:12])
            except OSError as error:
                found.append(repr(error))

    with serving(tiny_onnx, "--workers", 2) as server:
        asking = [threading.Thread(target=ask, args=[server]) for _ in range(3)]
        for thread in asking:
            thread.start()
        try:
            for round_ in range(2):
                until(lambda: len(workers_of(server)) == 2 and server.counted("mlserve_model_loaded") == 2)
                killed(workers_of(server)[round_ % 2])
                until(lambda: server.log.count("another takes its place") == round_ + 1)  # noqa: B023
        finally:
            ended.set()
            for thread in asking:
                thread.join()
    assert len(found) > 100
    # 503 is told who was let in already by the one that died.
    assert set(found) <= {b"HTTP/1.1 200", b"HTTP/1.1 503"}, set(found)


def test_a_worker_that_leaves_by_itself_shuts_its_door_and_the_next_one_opens_it(serving_settings, slow_onnx, until):
    with serving_settings(slow_onnx, batch=BatchSettings(1, 0.001), workers=2) as server:
        with server.connect() as busy:
            body = b'{"inputs":[{"name":"turns","datatype":"FP32","shape":[1,1],"data":[4000]}]}'
            head = b"POST /v2/models/slow/infer HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n\r\n"
            busy.sendall(head % len(body) + body)
            here = busy.getsockname()
            listening = {pid: _listening(pid, server.http_port) for pid in server.workers}
            until(lambda: any(_holds(pid, here) for pid in server.workers))
            leaving = next(pid for pid in server.workers if _holds(pid, here))
            psutil.Process(leaving).send_signal(signal.SIGTERM)
            until(lambda: not _listening(leaving, server.http_port))
            for _ in range(MANY):  # it still computes, and lets nobody in
                assert server.get_json("/v2/health/live") is not None
            assert psutil.pid_exists(leaving)
        until(lambda: f"worker {leaving} ended with status 0" in server.log)
        until(lambda: server.counted("mlserve_model_loaded") == 2)
        (successor,) = set(workers_of(server)) - set(server.workers)

        def comes_to_the_successor():
            with server.connect() as connection:
                connection.sendall(ASKED.replace(b"close", b"keep-alive"))
                assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
                return _holds(successor, connection.getsockname())

        until(comes_to_the_successor)
        # Who stood in meanwhile does so no more.
        (other,) = set(server.workers) - {leaving}
        until(lambda: _listening(other, server.http_port) == listening[other])


def test_where_all_leave_the_door_of_one_that_was_killed_is_shut_too(serving_settings, slow_onnx, until):
    with serving_settings(slow_onnx, batch=BatchSettings(1, 0.001), workers=2) as server:
        with server.connect() as busy:
            body = b'{"inputs":[{"name":"turns","datatype":"FP32","shape":[1,1],"data":[9000]}]}'
            head = b"POST /v2/models/slow/infer HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n\r\n"
            busy.sendall(head % len(body) + body)
            here = busy.getsockname()
            until(lambda: any(_holds(pid, here) for pid in server.workers))
            (idle,) = [pid for pid in server.workers if not _holds(pid, here)]
            with stopped(server.process.pid):
                killed(idle)
                server.process.send_signal(signal.SIGTERM)
            until(lambda: is_refused(server))
            for _ in range(MANY):  # the other still computes
                assert is_refused(server)
            assert server.process.poll() is None
            assert answer_of(busy).startswith(b"HTTP/1.1 200 ")
        assert server.process.wait(30) == 0


def _holds(pid, client):
    return any(tuple(each.raddr) == client for each in psutil.Process(pid).net_connections("tcp") if each.raddr)


def _listening(pid, port):
    """How many descriptors it has of sockets that listen there."""
    found = psutil.Process(pid).net_connections("tcp")
    return sum(each.status == "LISTEN" and each.laddr.port == port for each in found)


# The doors by themselves


@pytest.fixture
def free():
    """An address that sockets may share."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()


class Porch:
    """Who lets clients in, and what was asked of it; `broken`: it cannot."""

    def __init__(self):
        self.open, self.broken = [], False

    async def let_in(self, listener):
        if self.broken:
            listener.close()
            raise OSError(24, "Too many open files")
        server = await asyncio.get_running_loop().create_server(Greets, sock=listener)
        self.open.append(server)
        return server

    @property
    def serving(self):
        return [server.is_serving() for server in self.open]


def copies(doors):
    """As a child inherits them."""
    return [os.dup(door.fileno()) for door in doors]


@pytest.mark.parametrize(("workers", "doors"), [(1, 0), (2, 2), (3, 3), (MOST_DOORS, MOST_DOORS), (MOST_DOORS + 1, 0)])
def test_there_is_a_door_a_worker_and_none_for_one_that_is_alone(free, workers, doors):
    with open_doors(free, workers) as found:
        assert len({door.fileno() for door in found}) == doors


def test_a_worker_stands_in_at_the_doors_of_those_that_are_away_and_at_no_others(free):
    async def live(found):
        doors, porch = Doors(copies(found), 1), Porch()
        await doors.stand_in(0b111, porch.let_in)
        assert porch.serving == [True, True]  # its own is not among them
        await doors.stand_in(0b111, porch.let_in)
        assert porch.serving == [True, True]
        await doors.stand_in(0b001, porch.let_in)
        assert porch.serving == [True, False]
        await doors.stand_in(0b000, porch.let_in)
        assert porch.serving == [False, False]
        doors.leave()

    with open_doors(free, 3) as found:
        asyncio.run(live(found))


def is_let_in(address):
    """Whether a connection is let in, and is not shut itself."""
    try:
        with socket.create_connection(address, timeout=5) as connection:
            connection.settimeout(0.2)
            with suppress(TimeoutError):
                return connection.recv(1) == b"!"
    except ConnectionError:
        pass
    return False


class Greets(asyncio.Protocol):
    """Says `!` to everybody."""

    def connection_made(self, transport):
        transport.write(b"!")


def test_a_door_that_is_shut_refuses_whoever_else_has_a_copy_until_one_listens_anew(free):
    async def live(found):
        doors, porch = Doors(copies(found), 0), Porch()
        own = await porch.let_in(doors.own())
        assert await asyncio.to_thread(is_let_in, free)
        own.close()
        doors.leave()
        assert not await asyncio.to_thread(is_let_in, free)
        shut(found[0])  # once more, at which nobody listens: that leaves nothing behind
        again = await porch.let_in(found[0].dup())
        assert await asyncio.to_thread(is_let_in, free)
        again.close()

    with open_doors(free, 2) as found:
        asyncio.run(live(found))


def test_who_leaves_shuts_no_door_where_it_stood_in_for_another_may_be_there_by_now(free):
    async def live(found):
        first, second, porch = Doors(copies(found), 1), Doors(copies(found), 2), Porch()
        for each in (first, second):
            await each.stand_in(0b001, porch.let_in)
        first.leave()
        assert await asyncio.to_thread(is_let_in, free)
        successor = await porch.let_in(found[0].dup())
        second.leave()
        assert await asyncio.to_thread(is_let_in, free)
        successor.close()

    with open_doors(free, 3) as found:
        asyncio.run(live(found))


def test_a_listener_that_the_loop_has_closed_is_noticed(free):
    """It closes one at which it cannot accept, such as where the whole system has no file left."""

    async def live(found):
        doors, porch = Doors(copies(found), 0), Porch()
        assert not doors.lost
        await porch.let_in(doors.own())
        await doors.stand_in(0b10, porch.let_in)
        assert (doors.lost, porch.serving) == (False, [True, True])
        for server in porch.open:
            server.close()
        await asyncio.sleep(0.1)
        assert doors.lost
        await doors.stand_in(0b10, porch.let_in)
        assert porch.serving == [False, False, True]
        doors.leave()

    with open_doors(free, 2) as found, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(live(found))


def test_without_a_file_to_be_had_nobody_stands_in_until_there_is_one(free, caplog):
    async def live(found):
        doors, porch = Doors(copies(found), 0), Porch()
        porch.broken = True
        for _ in range(3):
            await doors.stand_in(0b10, porch.let_in)
        assert porch.serving == []
        assert caplog.text.count("nobody stands in for a worker that ended: Too many open files") == 1
        porch.broken = False
        await doors.stand_in(0b10, porch.let_in)
        assert porch.serving == [True]
        doors.leave()

    with open_doors(free, 2) as found:
        asyncio.run(live(found))
