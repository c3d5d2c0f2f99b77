"""The generators' processes: as many as the plan asks for, here or on other machines, and what they tell."""

import os
import selectors
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from mlserve.bench.generator.job import Command, Failed, Finished, Job, Joined, Listening, Message, Report, write_job
from mlserve.bench.generator.locust_process import LocustProcess, all_ended
from mlserve.bench.scratch import scratch_folder
from mlserve.errors import BenchError, UsageError

__all__ = ["Leader", "Page", "drive", "join"]

Heed = Callable[[Message, Callable[[Command], None]], None]

_HERE = "127.0.0.1"
_ANY = "*"  # Locust's name for all addresses of a machine
_JOIN_WITHIN_S = 60.0
# A generator ends with the run; its leader says so within this time, or it was no good end.
_GONE_S = 2.0


class Leader(msgspec.Struct, frozen=True):
    """Where `members` of the plan's generators, which other machines (or terminals) start by `join`, find the run.

    Nobody is asked who he is: whoever reaches the port gets the job, with every request in it, and may answer for a
    generator. So `bind_host` is this machine alone unless told otherwise; elsewhere, use a network that you trust.
    """

    members: int
    bind_host: str = _HERE
    bind_port: int = 5557

    @property
    def reached_at(self) -> str:
        """Its address for a process of this machine."""
        return _HERE if self.bind_host in {_ANY, "0.0.0.0"} else self.bind_host  # noqa: S104  # nothing is bound here


class Page(msgspec.Struct, frozen=True):
    """Locust's web page. When the run is over, `hold` is called, and the page stays until it returns.

    Nobody is asked who he is there either; the page can stop the run.
    """

    hold: Callable[[], None]
    host: str = _HERE
    port: int = 8089


def drive(
    job: Job, cpus: Sequence[int], heed: Heed, leader: Leader | None = None, page: Page | None = None
) -> Finished:
    """Runs `job` in processes of its own and returns when its rows are on the disk.

    A generator that is alone is held to `cpus` if any; of several, each is held to one of them, in turn. `heed` is
    called with every message that comes, and with what hands commands back; it cannot tell one generator from several.
    Raises BenchError, with the process's last words, when one ends before the job does; UsageError when the page's port
    is taken. However this function ends, its processes have ended too; cut short, they still close the file of rows.
    """
    job = _checked(job, leader, page)
    alone = leader is None and job.plan.generators == 1
    leader = leader or Leader(0, bind_port=0)
    processes: list[LocustProcess] = []
    with scratch_folder() as folder, _keeping_off(cpus), all_ended(processes):
        write_job(folder / "job", job)
        arguments = ["--mlserve-plan", str(folder / "job"), *_page_arguments(page)]

        def start_members(port: int) -> None:
            for number in range(job.plan.generators - leader.members):
                own = [cpus[number % len(cpus)]] if cpus else []
                member = [*_member_arguments(leader.reached_at, port), "--mlserve-number", str(number)]
                processes.append(LocustProcess(f"generator {number + 1}", member, own, folder))

        if alone:
            processes.append(LocustProcess("generator", arguments, cpus, folder))
        else:
            arguments += _leader_arguments(leader, job.plan.generators)
            processes.append(LocustProcess("leader", arguments, (), folder))
        finished = _follow(processes, job, heed, start_members)
        if page is not None:
            page.hold()
            processes[0].terminate()
        elif not alone:
            # Its work is done; Locust would wait a second and a half for last figures that nobody reads.
            processes[0].kill()
    return finished


def join(
    host: str,
    port: int,
    cpus: Sequence[int],
    within_s: float = _JOIN_WITHIN_S,
    on_joined: Callable[[], None] = lambda: None,
) -> None:
    """Is a generator of the runs that a leader at `host` and `port` begins, one after the other, held to `cpus` if any.

    `on_joined` is called for each of them. Returns when no further run has come `within_s` after the last. Raises
    BenchError when none has come at all, or when the leader has another version of mlserve.
    """
    served = 0
    while True:
        processes: list[LocustProcess] = []
        with scratch_folder() as folder, all_ended(processes):
            processes.append(LocustProcess("generator", _member_arguments(host, port), cpus, folder))
            if not _serve(processes[0], within_s, on_joined):
                processes[0].terminate()
                break
        served += 1
    if not served:
        raise BenchError(f"no run began at {host}:{port} within {within_s:.0f} s; start it there with --master")


def _serve(process: LocustProcess, within_s: float, on_joined: Callable[[], None]) -> bool:
    """One run of the leader's, to its end; False when none has begun within the time."""
    deadline_s = time.monotonic() + within_s
    joined = False
    with selectors.DefaultSelector() as selector:
        selector.register(process, selectors.EVENT_READ)
        while joined or time.monotonic() < deadline_s:
            if not selector.select(None if joined else max(0.0, deadline_s - time.monotonic())):
                continue
            reports = process.read()
            if reports is None:
                if not joined:
                    raise BenchError(f"the load generator broke down: {process.last_words()}")
                return True
            for report in reports:
                if isinstance(report, Failed):
                    raise BenchError(report.reason)
                if isinstance(report, Joined):
                    joined = True
                    on_joined()
    return False


def _follow(processes: list[LocustProcess], job: Job, heed: Heed, start_members: Callable[[int], None]) -> Finished:
    """Heeds `processes` until the job of the first is finished; starts others for it when it is a leader."""
    for report in _reports(processes, job):
        match report:
            case Failed():
                raise BenchError(report.reason)
            case Listening():
                start_members(report.port)
            case Joined():
                pass
            case _:
                heed(report, processes[0].tell)
        if isinstance(report, Finished):
            return report
    raise AssertionError("unreachable: the reports end with an error")


def _reports(processes: list[LocustProcess], job: Job) -> Iterator[Report]:
    """What `processes` report, with those that are added meanwhile. Raises BenchError when one has broken down."""
    gone, patience_s, watched = None, _GONE_S, 0
    with selectors.DefaultSelector() as selector:
        while True:
            for process in processes[watched:]:
                selector.register(process, selectors.EVENT_READ, process)
            watched = len(processes)
            before_s = time.monotonic()
            for key, _ in selector.select(patience_s if gone else None):
                reports = key.data.read()
                if reports is None:
                    selector.unregister(key.fileobj)
                    if key.data.failed():
                        raise _broke_down(key.data, job)
                    gone = gone or key.data
                else:
                    yield from reports
            if gone is not None:
                patience_s -= time.monotonic() - before_s
                if gone is processes[0] or patience_s <= 0:
                    raise _broke_down(gone, job)


def _leader_arguments(leader: Leader, expected: int) -> list[str]:
    bind = ["--master-bind-host", leader.bind_host, "--master-bind-port", str(leader.bind_port)]
    users = ["--users", str(expected), "--spawn-rate", str(expected)]
    return ["--master", "--expect-workers", str(expected), *bind, *users]


def _member_arguments(host: str, port: int) -> list[str]:
    return ["--worker", "--headless", "--master-host", host, "--master-port", str(port)]


def _page_arguments(page: Page | None) -> list[str]:
    if page is None:
        return ["--headless"]
    return ["--autostart", "--web-host", page.host, "--web-port", str(page.port)]


def _checked(job: Job, leader: Leader | None, page: Page | None) -> Job:
    """`job`, whose scenario's path now means the same in every folder. Raises UsageError for what cannot be run."""
    expected = job.plan.generators
    if leader is not None and not 0 <= leader.members <= expected:
        raise UsageError(f"{leader.members} generators are to join, but only {expected} share the load; ask for more")
    if leader is not None:
        _check_free("the leader of the generators", leader.bind_host, leader.bind_port)
    if page is not None:
        _check_free("Locust's page", page.host, page.port)
    if not job.locustfile:
        return job
    path = Path(job.locustfile).resolve()
    if not path.is_file():
        raise UsageError(f"--locustfile {job.locustfile}: there is no such file; give a Python file with a Locust User")
    return msgspec.structs.replace(job, locustfile=str(path))


def _check_free(what: str, host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("" if host == _ANY else host, port))
        except OSError as error:
            raise UsageError(f"{what} cannot listen at {host}:{port} ({error.strerror}); give another port") from error


def _broke_down(process: LocustProcess, job: Job) -> BenchError:
    kept = shutil.copy(process.log, job.directory)
    which = "the load generator" if process.name == "generator" else f"{process.name} (process {process.pid})"
    return BenchError(f"{which} broke down: {process.last_words()}; all it said is in {kept}")


@contextmanager
def _keeping_off(cpus: Sequence[int]) -> Iterator[None]:
    """Leaves the generators' cores to them: whoever follows their progress on one of them makes requests leave late."""
    own = os.sched_getaffinity(0) if cpus else set()
    if own - set(cpus):
        os.sched_setaffinity(0, own - set(cpus))
    try:
        yield
    finally:
        if own:
            os.sched_setaffinity(0, own)
