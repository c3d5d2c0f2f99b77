"""Locust's side of a run: it brings the processes and the messages between them, the web page and the statistics.

    locust -f mlserve/bench/generator/locustfile.py --mlserve-plan FILE     (started by `mlserve bench`; not for people)

Importing Locust patches the whole process for gevent, so this file runs in a process of its own. The dispatcher alone
decides when a request goes: Locust's one user here does nothing but stand for the run. The figures mlserve reports
never come from Locust, which rounds times to a millisecond and, above 100 ms, to two digits.
"""

from pathlib import Path
from typing import Any

from gevent.event import Event
from locust import User, events, runners
from locust.runners import MasterRunner, WorkerRunner

from mlserve.bench.generator.job import read_job
from mlserve.bench.generator.leader import Leader
from mlserve.bench.generator.member import Member
from mlserve.bench.generator.pipe import Pipe
from mlserve.bench.generator.solo import Solo
from mlserve.errors import UsageError

__all__ = ["OpenLoop"]

# A minute's load for a leader that has gone would be a minute too much.
runners.MASTER_HEARTBEAT_TIMEOUT = 10


def _add_arguments(parser: Any, **_: Any) -> None:
    # Of types that Locust's messages can carry: a master sends its own to the workers.
    parser.add_argument("--mlserve-plan", include_in_web_ui=False, help="The job to run.")
    parser.add_argument("--mlserve-number", type=int, include_in_web_ui=False, help="Which generator this one is.")
    parser.add_argument("--mlserve-report-fd", type=int, include_in_web_ui=False, help="Where progress is written.")
    parser.add_argument("--mlserve-command-fd", type=int, include_in_web_ui=False, help="Where commands come from.")


def _take_part(environment: Any, **_: Any) -> None:
    """Once Locust is up: this process's part in the run."""
    options = environment.parsed_options
    pipe = Pipe(options.mlserve_report_fd, options.mlserve_command_fd)
    if isinstance(environment.runner, WorkerRunner):
        Member(environment, pipe, options.mlserve_number)
        return
    if options.mlserve_plan is None:
        raise UsageError("--mlserve-plan is missing: this locustfile is started by `mlserve bench`")
    job = read_job(Path(options.mlserve_plan))
    if isinstance(environment.runner, MasterRunner):
        OpenLoop.fixed_count = job.plan.generators
        Leader(environment, job, pipe)
    else:
        Solo(environment, job, pipe)


def _stand_by(_: User) -> None:
    Event().wait()


class OpenLoop(User):  # type: ignore[misc]  # Locust ships no types
    """Stands for a generator on Locust's page; waits until Locust ends it."""

    fixed_count = 1
    tasks = (_stand_by,)


events.init_command_line_parser.add_listener(_add_arguments)
events.init.add_listener(_take_part)
