"""What Locust's own quickest user does against the null server: a closed loop at full speed, for generator.py.

    locust -f benchmarks/stock_locust.py --headless --users 32 --spawn-rate 1000 --host URL
        --body-file FILE --path PATH --seconds 2

Prints one line of JSON at the end: requests answered well, failures, seconds, and the share of a core that it used,
from the moment all users ran.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, constant, events, task

WARM_UP_S = 0.3


@events.init_command_line_parser.add_listener
def add_arguments(parser: Any) -> None:
    parser.add_argument("--body-file", type=Path, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--seconds", type=float, required=True)


@events.init.add_listener
def measure_when_all_run(environment: Any, **_: Any) -> None:
    def measure() -> None:
        gevent.sleep(WARM_UP_S)
        total = environment.stats.total
        requests, failures = total.num_requests, total.num_failures
        wall_s, cpu_s = time.monotonic(), time.process_time()
        gevent.sleep(environment.parsed_options.seconds)
        took_s, used_s = time.monotonic() - wall_s, time.process_time() - cpu_s
        failed = total.num_failures - failures
        answered = total.num_requests - requests - failed
        found = {"answered": answered, "failed": failed, "seconds": took_s, "busy": used_s / took_s}
        sys.stdout.write(json.dumps(found) + "\n")
        environment.runner.quit()

    environment.events.spawning_complete.add_listener(lambda **_: gevent.spawn(measure))


class StockUser(FastHttpUser):
    """Sends when its last request is answered."""

    wait_time = constant(0)

    def on_start(self) -> None:
        options = self.environment.parsed_options
        self.body, self.infer_path = options.body_file.read_bytes(), options.path

    @task
    def infer(self) -> None:
        self.client.post(self.infer_path, data=self.body, headers={"content-type": "application/json"})
