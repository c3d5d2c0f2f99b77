"""Which worker of a server gets a request: the one that accepted its connection, by a hash that nobody can foretell."""

from heapq import heappop, heappush

import numpy as np

__all__ = ["Connections"]

# As clients of ours over gRPC: bench/clients/http2_pool.py.
_SHARED = 4


class Connections:
    """The clients' connections to `workers`; `shared`: many requests over a few of them, else one for each in flight,
    of which the one used last is used next.
    """

    def __init__(self, workers: int, rng: np.random.Generator, *, shared: bool) -> None:
        self._workers, self._rng, self._shared = workers, rng, shared
        self._worker_of: list[int] = rng.integers(workers, size=_SHARED).tolist() if shared else []
        self._idle: list[int] = []
        self._busy: list[tuple[float, int]] = []
        self._sent = 0
        self.matter = workers > 1 and not shared
        """Whether it must be told when each is free again."""

    def send(self, now_s: float) -> tuple[int, int]:
        """The connection that the next request takes, and the number of its worker."""
        if self._workers == 1:
            return 0, 0
        if self._shared:
            connection = self._sent % _SHARED
            self._sent += 1
            return connection, self._worker_of[connection]
        while self._busy and self._busy[0][0] <= now_s:
            self._idle.append(heappop(self._busy)[1])
        if self._idle:
            connection = self._idle.pop()
        else:
            connection = len(self._worker_of)
            self._worker_of.append(int(self._rng.integers(self._workers)))
        return connection, self._worker_of[connection]

    def answered(self, connection: int, at_s: float) -> None:
        """`connection` is free from `at_s` on."""
        if self.matter:
            heappush(self._busy, (at_s, connection))
