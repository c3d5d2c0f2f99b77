"""How much a key may ask: so many requests a second with bursts, and so many a day; counted by all workers together.

What a key has used is one cell of a small file in the workers' common folder. The kernel hands connections to workers,
not requests, so a share of the rate for each worker would be a fraction of it for a client with one connection. A cell
costs a few microseconds, which only requests of limited keys pay.
"""

import fcntl
import logging
import math
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

from mlserve.errors import TooManyRequests

__all__ = ["Allowance", "Ledger", "Used", "spend"]

_DAY_S = 86_400
_CELL = Struct("=16sdqq")  # whose it is, and what `Used` holds
_NOBODY = bytes(16)
# Keys with an allowance beyond three quarters of this are counted by each worker alone.
_MOST_CELLS = 8192
# A worker may be stopped while it counts. The others wait for it so long, once; then they count without the lock for a
# while: to lose a request or two of the count is better than to stop as well.
_PATIENCE_S, _HURRY_S = 0.02, 1.0
_NAP_S = 5e-5

_log = logging.getLogger("mlserve.serve")


class Allowance(NamedTuple):
    """`rate_per_s` requests a second in the long run, `burst` of them at once; `quota_per_day` from one midnight (UTC)
    to the next. A rate or quota of 0 is none.
    """

    rate_per_s: float = 0.0
    burst: int = 0
    quota_per_day: int = 0


class Used(NamedTuple):
    """What was asked so far: the bucket is full again at `full_at_s`; so many `requests` came on `day`, since 1970."""

    full_at_s: float = 0.0
    day: int = 0
    requests: int = 0


def spend(allowance: Allowance, used: Used, now_s: float, date_s: float) -> tuple[Used, float]:
    """One more request: what is used afterwards, and how many seconds it has to wait for its turn, 0 if it may go on.

    `now_s` is of a clock that never jumps, `date_s` counts from 1970. What may not go on uses nothing.
    """
    full_at_s = used.full_at_s
    if allowance.rate_per_s:  # a token bucket, kept as the instant at which it is full (GCRA)
        token_s = 1.0 / allowance.rate_per_s
        full_at_s = max(full_at_s, now_s) + token_s
        wait_s = full_at_s - now_s - allowance.burst * token_s
        if wait_s > token_s * 1e-6:  # what is less is rounding
            return used, wait_s
    day = int(date_s // _DAY_S)
    count = used.requests if day == used.day else 0
    if allowance.quota_per_day and count >= allowance.quota_per_day:
        return used, (day + 1) * _DAY_S - date_s
    return Used(full_at_s, day, count + 1), 0.0


class Ledger:
    """Who has used how much, in one file that the workers share; `path` None, or one that cannot be had: in memory.

    It lives as long as the server: a server that is started anew begins its day anew.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
        date: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._now, self._date = path, now, date
        self._lock = threading.Lock()
        self._file: int | None = None
        self._cells: mmap.mmap | None = None
        self._hurry_until_s = 0.0
        self._own: dict[bytes, Used] = {}
        self._places: dict[bytes, int] = {}

    def charge(self, who: bytes, allowance: Allowance) -> None:
        """Counts one request of `who` (16 bytes). Raises TooManyRequests, which says when to come again."""
        with self._lock:
            if self._cells is None and self._path is not None:
                self._open(self._path)
            place, date_s = self._place(who), self._date()
            if place is None:
                used, wait_s = spend(allowance, self._own.get(who, Used()), self._now(), date_s)
                self._own[who] = used
            else:
                with self._alone():
                    _, *fields = _CELL.unpack_from(self._mapped, place)
                    used, wait_s = spend(allowance, Used(*fields), self._now(), date_s)
                    _CELL.pack_into(self._mapped, place, who, *used)
        if not wait_s:
            return
        if 0 < allowance.quota_per_day <= used.requests and used.day == date_s // _DAY_S:
            why = f"has used up its {allowance.quota_per_day} requests of today; ask again after midnight UTC"
        else:
            why = f"may ask {allowance.rate_per_s:g} times a second; ask again in {math.ceil(wait_s * 1000)} ms"
        raise TooManyRequests(f"the key {why}", wait_s)

    @property
    def _mapped(self) -> Any:
        return self._cells

    def _open(self, path: Path) -> None:
        """Maps the file, which whoever comes first makes."""
        size_bytes = _MOST_CELLS * _CELL.size
        try:
            if not path.exists():
                _make_whole(path, size_bytes)
            self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            self._cells = mmap.mmap(self._file, size_bytes)
        except (OSError, ValueError) as error:
            _log.warning("each worker counts by itself what keys have used: %s", error)
            self._path = None

    def _place(self, who: bytes) -> int | None:
        """Where the cell of `who` is, taken if there was none; None where there is no room."""
        if self._cells is None:
            return None
        place = self._places.get(who)
        if place is None:
            with self._alone():
                first = int.from_bytes(who[:4], "little")
                for step in range(_MOST_CELLS * 3 // 4):
                    found = (first + step) % _MOST_CELLS * _CELL.size
                    owner = self._cells[found : found + 16]
                    if owner == _NOBODY:
                        _CELL.pack_into(self._mapped, found, who, *Used())
                    if owner in (_NOBODY, who):
                        place = self._places[who] = found
                        break
        return place

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps the other workers out, unless one of them keeps us out for too long."""
        assert self._file is not None
        give_up_s = 0.0
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                now_s = time.monotonic()
                give_up_s = give_up_s or now_s + _PATIENCE_S
                if now_s < self._hurry_until_s:
                    break
                if now_s > give_up_s:
                    self._hurry_until_s = now_s + _HURRY_S
                    break
                time.sleep(_NAP_S)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


def _make_whole(path: Path, size_bytes: int) -> None:
    """Makes the file with all its room, so that a full disk fails here and not later, unless another is faster.

    It gets its name when it is whole: who finds it needs no lock, which a worker that is stopped may hold.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}-") as made:
        made.write(bytes(size_bytes))
        made.flush()
        with suppress(FileExistsError):
            os.link(made.name, path)
