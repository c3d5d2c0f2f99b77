"""The one place that knows Locust: a user whose single task is a whole run.

    locust -f mlserve/bench/generator/locustfile.py --mlserve-plan FILE     (started by `mlserve bench`; not for people)

Importing Locust patches the whole process for gevent, so this file runs in a process of its own. Locust brings the
runner, its web page and its statistics, which every request is reported to; the dispatcher alone decides when a request
goes. The figures mlserve reports never come from Locust, which rounds times to a millisecond and, above 100 ms, to two
digits.
"""

import os
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from locust import User, events
from locust.exception import StopUser

from mlserve.bench.generator.file_sink import FileSink
from mlserve.bench.generator.generator import Generator, Share, open_client
from mlserve.bench.generator.job import Finished, Job, Started, read_job
from mlserve.bench.generator.pipe import Pipe
from mlserve.runs.samples import DROPPED, OK, Sample

__all__ = ["OpenLoop"]

_LEAD_S = 0.3


class _NotAnswered(Exception):
    """What Locust is told of a request that was not answered well."""


def _add_arguments(parser: Any, **_: Any) -> None:
    parser.add_argument("--mlserve-plan", type=Path, required=True, include_in_web_ui=False, help="The job to run.")
    parser.add_argument("--mlserve-report-fd", type=int, include_in_web_ui=False, help="Where progress is written.")
    parser.add_argument("--mlserve-command-fd", type=int, include_in_web_ui=False, help="Where commands come from.")


def _run_job(user: User) -> None:
    """Runs the job to its end, then ends Locust (or, under its web page, the test)."""
    environment = user.environment
    options = environment.parsed_options
    job = read_job(options.mlserve_plan)
    pipe = Pipe(options.mlserve_report_fd, options.mlserve_command_fd)
    sink = FileSink(Path(job.directory), pipe.send)
    generator = Generator(job, Share(), open_client(job.address, job), _observer(environment, job), sink)

    def close() -> None:
        generator.flush()
        sink.close()

    environment.events.quitting.add_listener(lambda **_: close())
    try:
        pipe.send(
            Started(started_at=datetime.now(UTC).isoformat(timespec="seconds"), pids=(os.getpid(),), lead_s=_LEAD_S)
        )
        pipe.follow(lambda command: generator.stop(command.at_s))
        total = generator.run(time.monotonic_ns() + round(_LEAD_S * 1e9))
        close()
        pipe.send(Finished(end_s=total.end_s, cpus=(total.cpu,), ok=total.ok, failed=total.failed))
        pipe.close()
    except Exception:
        # Locust would log it and call the task again.
        traceback.print_exc()
        environment.process_exit_code = 1
    if options.headless:
        environment.runner.quit()
    raise StopUser


class OpenLoop(User):  # type: ignore[misc]  # Locust ships no types
    """One dispatcher, however many users Locust is asked for."""

    fixed_count = 1
    tasks = (_run_job,)


def _observer(environment: Any, job: Job) -> Any:
    """Reports each request to Locust: 3 us, which is a small part of what a request costs the generator."""
    fire = environment.events.request.fire
    context: dict[str, Any] = {}
    faults: dict[str, _NotAnswered] = {}

    def observe(sample: Sample) -> None:
        if sample.status == DROPPED or sample.done_ns is None:
            return
        fault = None if sample.status == OK else faults.setdefault(sample.status, _NotAnswered(sample.status))
        fire(
            request_type=job.plan.protocol,
            name=job.name,
            response_time=(sample.done_ns - sample.scheduled_ns) / 1e6,
            response_length=0,
            exception=fault,
            context=context,
        )

    return observe


events.init_command_line_parser.add_listener(_add_arguments)
