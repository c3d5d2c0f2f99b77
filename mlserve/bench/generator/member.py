"""A generator that shares the schedule with others: it does what the leader of the run says, and tells it what came of
it.
"""

import os
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gevent
import msgspec

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
    Ping,
    Pong,
    Ready,
    Rows,
    decode_order,
    describe_self,
    encode,
)
from mlserve.bench.generator.job import Failed, Job, Joined, Stop, Tick
from mlserve.bench.generator.part import Part
from mlserve.bench.generator.pipe import Pipe
from mlserve.errors import MlserveError
from mlserve.runs.samples import Sample

__all__ = ["Member"]

_GREET_EVERY_S = 0.5


class Member:
    """Under a Locust worker. `pipe` leads to whoever started this process, which only hears that it has joined.
    `number` is which of the generators it is; None lets the leader decide.
    """

    def __init__(self, environment: Any, pipe: Pipe, number: int | None) -> None:
        self._environment, self._runner, self._pipe = environment, environment.runner, pipe
        self._number = number
        environment.process_exit_code = 0  # what the load found is no fault of this process
        self._part: Part | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="mlserve-bench-")
        self._runner.register_message(ORDER, self._obey)
        self._runner.register_message(REFUSED, self._give_up)
        environment.events.quitting.add_listener(lambda **_: self._quit())
        pipe.follow(lambda _: None)
        self._greeting = gevent.spawn(self._greet)

    def take(self, rows: Sequence[Sample], tick: Tick) -> None:
        """Sends rows to the leader: this is the sink of the member's part."""
        self._tell(Rows(rows=list(rows), tick=tick))

    def _greet(self) -> None:
        """Until the leader answers: it may not listen yet."""
        while True:
            self._runner.send_message(HELLO, describe_self(os.getpid(), self._number))
            gevent.sleep(_GREET_EVERY_S)

    def _obey(self, msg: Any, **_: Any) -> None:
        arrival_ns = time.monotonic_ns()
        match order := decode_order(msg.data):
            case Assignment():
                if not self._greeting.dead:  # else it is the answer to a second greeting
                    self._greeting.kill()
                    self._pipe.send(Joined())
                    gevent.spawn(self._prepare, order)
            case Ping():
                self._tell(Pong(order.stamp_ns))
            case Begin():
                gevent.spawn(self._run, order.start_ns + (arrival_ns if order.from_arrival else 0))
            case Stop():
                if self._part is not None:
                    self._part.stop(order.at_s)

    def _give_up(self, msg: Any, **_: Any) -> None:
        self._greeting.kill()
        reason = (
            f"the leader of the run has mlserve {msg.data['version']} and this machine has {__version__}; "
            "install the same version on both"
        )
        self._pipe.send(Failed(reason=reason))
        self._pipe.close()
        self._runner.quit()

    def _prepare(self, assignment: Assignment) -> None:
        try:
            job = msgspec.msgpack.decode(assignment.job, type=Job)
            if job.locustfile:
                job = msgspec.structs.replace(job, locustfile=str(self._locate(job, assignment.scenario)))
            self._part = Part(self._environment, job, assignment.share, self)
            calibration = self._part.prepare()
        except Exception as error:
            self._leave(error)
        else:
            self._tell(Ready(calibration=calibration))

    def _locate(self, job: Job, scenario: bytes) -> Path:
        """The user's locustfile: where it is said to be, if this machine has the same one there; else a copy."""
        path = Path(job.locustfile)
        if path.is_file() and path.read_bytes() == scenario:
            return path
        copy = Path(self._scratch.name) / path.name
        copy.write_bytes(scenario)
        return copy

    def _run(self, start_ns: int) -> None:
        assert self._part is not None, "the leader waits until it is ready"
        try:
            total = self._part.run(start_ns)
        except Exception as error:
            self._leave(error)
        else:
            self._tell(Done(total=total))

    def _leave(self, error: Exception) -> None:
        traceback.print_exc()
        reason = str(error) if isinstance(error, MlserveError) else f"{type(error).__name__}: {error}"
        self._tell(Left(reason=reason))

    def _quit(self) -> None:
        if self._part is not None:
            self._part.flush()
        self._tell(Left(reason="it was ended from outside"))
        self._scratch.cleanup()

    def _tell(self, news: News) -> None:
        self._runner.send_message(NEWS, encode(news))
