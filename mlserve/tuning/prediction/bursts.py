"""What a server spends on requests that it finds all at once: it is held still while they arrive.

A generator takes about as long for a request as a server does, so that a server that is merely asked hardly ever has
two of them before it, and what more of them would cost stays unseen.
"""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf

import msgspec
import numpy as np
from gevent.event import Event

from mlserve.bench.clients.client import Client, Reply
from mlserve.bench.generator.generator import open_client
from mlserve.bench.generator.job import Job
from mlserve.bench.generator.server_timing import read_server_timing
from mlserve.runs.samples import OK
from mlserve.tuning.prediction.processor import used_s

__all__ = ["BurstCost", "burst_cost"]

# One comes to a server that runs: to hold it still costs a little by itself, as much for few requests as for many.
_ONE, _FEW, _MANY = _SIZES = (1, 8, 32)
# So many of a size in a row, since some systems tell processor time in hundredths of a second.
_IN_A_ROW = 8
_FEWEST_ROUNDS = 2
# What a server does after its last answer belongs to it.
_SETTLED_S = 0.002
_LEAST_REQUEST_S = 1e-6


class BurstCost(msgspec.Struct, frozen=True, kw_only=True):
    """Processor time (seconds): a turn of the server costs `turn_s`, and each request that it finds `request_s`."""

    turn_s: float
    request_s: float


class _Bursts:
    """Bursts of requests, and what is learnt from their answers: how many runs they took, and the quickest of these."""

    def __init__(self, job: Job, client: Client) -> None:
        self._job, self._client = job, client
        self._left, self._over = 0, Event()
        self._fault = ""
        self.runs, self.quickest_s = 0.0, inf

    def send(self, size: int) -> None:
        """Sends `size` requests at once."""
        self._left = size
        self._over.clear()
        for place in range(size):
            self._client.send(self._job.order[place % len(self._job.order)], self._take)

    def wait(self) -> None:
        """Until all are answered: the client's timeout bounds that. Raises ValueError where an answer is none."""
        self._over.wait()
        if self._fault:
            raise ValueError(self._fault)

    def _take(self, reply: Reply) -> None:
        _, compute_ns, batch_rows = read_server_timing(reply.timing)
        if reply.status != OK or compute_ns is None or not batch_rows:
            self._fault = f"a request was answered with '{reply.status}', or without the time that its run took"
        else:
            self.runs += self._job.requests[0].rows / batch_rows
            self.quickest_s = min(self.quickest_s, compute_ns / 1e9)
        self._left -= 1
        if not self._left:
            self._over.set()


def burst_cost(job: Job, pids: Sequence[int], budget_s: float) -> BurstCost:
    """Asks the server whose processes are `pids` for about `budget_s`: what more requests of a burst cost, and what is
    left of one that comes alone; without what their runs take when nothing disturbs them.

    Raises ValueError where an answer is none.
    """
    client = open_client(job.address, job)
    spent: dict[int, list[float]] = {size: [] for size in _SIZES}
    runs = {}
    bursts = _Bursts(job, client)
    try:
        bursts.send(_MANY)  # opens the connections
        bursts.wait()
        until_s = time.monotonic() + budget_s
        while len(spent[_MANY]) < _FEWEST_ROUNDS or time.monotonic() < until_s:
            for size in _SIZES:
                bursts.runs, before_s = 0.0, used_s(pids)
                for _ in range(_IN_A_ROW):
                    _burst(bursts, size, pids)
                spent[size].append((used_s(pids) - before_s) / _IN_A_ROW)
                runs[size] = bursts.runs / _IN_A_ROW
    finally:
        client.close()
    cost_s = {size: float(np.median(spent[size])) - runs[size] * bursts.quickest_s for size in _SIZES}
    request_s = max(_LEAST_REQUEST_S, (cost_s[_MANY] - cost_s[_FEW]) / (_MANY - _FEW))
    return BurstCost(turn_s=max(0.0, cost_s[_ONE] - request_s), request_s=request_s)


def _burst(bursts: _Bursts, size: int, pids: Sequence[int]) -> None:
    """Has the server find `size` requests at once."""
    with _held_still(pids if size > _ONE else ()):
        bursts.send(size)
    bursts.wait()
    time.sleep(_SETTLED_S)


@contextmanager
def _held_still(pids: Sequence[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
