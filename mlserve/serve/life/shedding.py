"""Requests are refused before the system kills for want of memory; a worker that keeps what nobody uses is given up."""

import logging
from collections.abc import Sequence

from mlserve.serve.life.memory import memory_use
from mlserve.serve.life.process import WorkerProcess

__all__ = ["Shedding"]

# Far from the limit there is no hurry.
_LOOK_EVERY_S, _NEAR_EVERY_S, _NEAR = 0.3, 0.1, 0.8
# Where memory stays short for so long though nothing is let in, the largest worker is replaced; then not for a while.
_PATIENCE_S, _REST_S = 5.0, 60.0
_MIB = 1 << 20

_log = logging.getLogger("mlserve.serve")


class Shedding:
    """Tells the workers of one server whether memory is short: whether its use is at `most_share` or above; 0 never."""

    def __init__(self, most_share: float) -> None:
        self._most_share = most_share
        self._looked_s, self._short_since_s, self._rests_until_s = 0.0, 0.0, 0.0
        self._short, self._every_s = False, _NEAR_EVERY_S

    def look(self, workers: Sequence[WorkerProcess], now_s: float) -> None:
        """Looks, now and then; `now_s` is a monotonic clock's."""
        if not self._most_share or not workers or now_s - self._looked_s < self._every_s:
            return
        self._looked_s = now_s
        try:
            use = memory_use([worker.pid for worker in workers])
        except OSError:  # no file to be had; what was found last goes on
            return
        short = use.share >= self._most_share
        self._every_s = _NEAR_EVERY_S if use.share > _NEAR * self._most_share else _LOOK_EVERY_S
        if short and not self._short:
            self._short_since_s = now_s
            _log.warning(
                "memory is short: %d of %d MiB of %s are in use; new requests are refused until it is less than %g%%",
                use.used_bytes // _MIB, use.limit_bytes // _MIB, use.whom, 100 * self._most_share,
            )  # fmt: skip
        elif self._short and not short:
            _log.warning("memory suffices again, after %.1f s", now_s - self._short_since_s)
        self._short = short
        for worker in workers:
            worker.slate.short_of_memory = short
        if short and now_s - self._short_since_s > _PATIENCE_S and now_s > self._rests_until_s:
            self._rests_until_s = now_s + _REST_S
            self._give_up_largest(workers)

    def _give_up_largest(self, workers: Sequence[WorkerProcess]) -> None:
        """An engine's arena gives nothing back: to refuse everything for ever would be no better than to die."""
        import psutil

        sizes = {}
        for worker in workers:
            try:
                sizes[worker] = psutil.Process(worker.pid).memory_info().rss
            except (psutil.Error, OSError):  # it has just ended, or there is no file to be had
                continue
        if sizes:
            largest = max(sizes, key=lambda worker: sizes[worker])
            _log.warning("worker %d holds %d MiB and is replaced", largest.pid, sizes[largest] // _MIB)
            largest.terminate(hurry=True)
