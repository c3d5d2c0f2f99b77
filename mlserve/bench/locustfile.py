"""The one place that knows Locust: a user whose single task is a whole run.

    locust -f mlserve/bench/locustfile.py --mlserve-plan FILE     (started by `mlserve bench`; not a command for people)

Importing Locust patches the whole process for gevent, so this file runs in a process of its own. Locust brings the
runner, its web page and its statistics, which every request is reported to; the dispatcher alone decides when a request
goes. The figures mlserve reports never come from Locust, which rounds times to a millisecond and, above 100 ms, to two
digits.
"""

import traceback
from pathlib import Path
from typing import Any

from locust import User, events
from locust.exception import StopUser

from mlserve.bench.generator import Generator, open_client
from mlserve.bench.job import read_job
from mlserve.runs.samples import DROPPED, OK, Sample

__all__ = ["OpenLoop"]


class _NotAnswered(Exception):
    """What Locust is told of a request that was not answered well."""


def _add_arguments(parser: Any, **_: Any) -> None:
    parser.add_argument("--mlserve-plan", type=Path, required=True, include_in_web_ui=False, help="The job to run.")
    parser.add_argument("--mlserve-report-fd", type=int, include_in_web_ui=False, help="Where progress is written.")


def _run_job(user: User) -> None:
    """Runs the job to its end, then ends Locust (or, under its web page, the test)."""
    environment = user.environment
    options = environment.parsed_options
    job = read_job(options.mlserve_plan)
    generator = Generator(job, open_client(job), _observer(environment, job.target.model), options.mlserve_report_fd)
    environment.events.quitting.add_listener(lambda **_: generator.close())
    try:
        generator.run()
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


def _observer(environment: Any, model: str) -> Any:
    """Reports each request to Locust: 3 us, which is a small part of what a request costs the generator."""
    fire = environment.events.request.fire
    context: dict[str, Any] = {}
    faults: dict[str, _NotAnswered] = {}

    def observe(sample: Sample) -> None:
        if sample.status == DROPPED or sample.done_ns is None:
            return
        fault = None if sample.status == OK else faults.setdefault(sample.status, _NotAnswered(sample.status))
        fire(
            request_type="V2",
            name=model,
            response_time=(sample.done_ns - sample.scheduled_ns) / 1e6,
            response_length=0,
            exception=fault,
            context=context,
        )

    return observe


events.init_command_line_parser.add_listener(_add_arguments)
