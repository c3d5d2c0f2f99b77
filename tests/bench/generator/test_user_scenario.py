import subprocess
import sys

import pytest

from mlserve.bench.generator.process import drive
from mlserve.bench.load.schedule import schedule
from mlserve.errors import BenchError
from mlserve.runs.load import Plan
from mlserve.runs.samples import DROPPED, OK, read_samples

SHOP = """
import gevent
from pathlib import Path
from locust import FastHttpUser, HttpUser, TaskSet, User, between, events, task

HEARD = Path(__file__).with_name("heard")


def note(word):
    with HEARD.open("a") as file:
        file.write(word + " ")


events.init.add_listener(lambda environment, runner, **_: note("init"))
events.test_start.add_listener(lambda environment, **_: note("start"))
events.request.add_listener(lambda name, **_: note(name))


class Fast(FastHttpUser):
    weight = 3
    wait_time = between(50, 60)

    def on_start(self):
        self.client.get("/v2/models/slow", name="login")

    def on_stop(self):
        note("stop")

    @task(3)
    def infer(self):
        self.client.post("/v2/models/slow/infer", data="{}", name="infer")

    @task
    def browse(self):
        self.client.get("/v2/models/slow", name="page")
        with self.client.get("/nothing", name="nothing", catch_response=True) as answer:
            answer.failure("no such page")


class WithRequests(HttpUser):
    @task
    def infer(self):
        self.client.get("/missing", name="missing")


class Plain(User):
    @task
    class Nested(TaskSet):
        wait_time = between(50, 60)

        @task
        def own(self):
            gevent.spawn(self.measured).join()

        def measured(self):
            with events.request.measure("own", "own"):
                gevent.sleep(0.001)

        @task
        def nothing(self):
            pass

        @task
        def raising(self):
            raise ValueError("as asked")

        @task
        def leave(self):
            self.interrupt(reschedule=False)
"""

ONE = """
import gevent
from locust import User, events, task


class Sleeper(User):
    @task
    def sleep(self):
        with events.request.measure("own", "sleep"):
            gevent.sleep({sleep_s})
"""

AT_ONCE = """
import gevent
from locust import User, events, task


def ask(name, for_s):
    with events.request.measure("own", name):
        gevent.sleep(for_s)


class Page(User):
    @task
    def open(self):
        gevent.joinall([gevent.spawn(ask, f"part {number}", 0.02 + number / 100) for number in range(3)])
        ask("after", 0.001)
"""


def run(make_job, server, tmp_path, text, plan):
    (tmp_path / "shop.py").write_text(text)
    finished = drive(make_job(server, plan, locustfile=str(tmp_path / "shop.py")), (), lambda *_: None)
    return finished, read_samples(tmp_path / "run")


def test_each_arrival_runs_one_task_of_the_users_file(slow_server, make_job, tmp_path):
    plan = Plan(rate_per_s=200, duration_s=0.8, warm_up_s=0, max_in_flight=300)
    server = slow_server()
    finished, samples = run(make_job, server, tmp_path, SHOP, plan)
    due_ns = schedule(plan).tolist()
    scheduled_ns = (samples.scheduled_s * 1e9).round().astype(int).tolist()
    assert set(due_ns) <= set(scheduled_ns)
    by_name = {name: set(samples.status[samples.version == name]) for name in set(samples.version)}
    assert by_name == {
        "infer": {OK},
        "page": {OK},
        "nothing": {"failed: no such page"},
        "missing": {"HTTP 404"},
        "own": {OK},
        "Plain": {OK, "ValueError"},
    }
    assert (finished.ok, finished.failed) == (int(samples.ok.sum()), int((~samples.ok).sum()))
    count = {name: int((samples.version == name).sum()) for name in by_name}
    assert count["infer"] == server.answered > count["page"] == count["nothing"] > 0
    # What a task does second is due when its first request was done.
    later = {round(done * 1e9) for done in samples.done_s[samples.version == "page"]}
    assert {round(due * 1e9) for due in samples.scheduled_s[samples.version == "nothing"]} == later
    assert len(scheduled_ns) == len(due_ns) + len(later)
    assert {(name, body) for name, body in zip(samples.version, samples.body, strict=True)} == {
        (name, list(dict.fromkeys(read_names(tmp_path))).index(name)) for name in by_name
    }
    heard = (tmp_path / "heard").read_text().split()
    assert heard[:3] == ["init", "start", "login"]
    assert heard.count("infer") == count["infer"]
    assert heard.count("stop") == heard.count("login") > 0


def read_names(tmp_path):
    """The names of requests in the order in which their rows were written."""
    import pyarrow.parquet as pq

    return pq.read_table(tmp_path / "run" / "samples.parquet")["version"].to_pylist()


def test_what_cannot_be_sent_is_dropped_and_what_takes_too_long_is_ended(slow_server, make_job, tmp_path):
    plan = Plan(rate_per_s=100, duration_s=1, warm_up_s=0, arrivals="constant", max_in_flight=2, timeout_s=0.3)
    _, samples = run(make_job, slow_server(), tmp_path, ONE.format(sleep_s=60), plan)
    assert len(samples) == 100
    assert set(samples.status) == {DROPPED, "timeout"}
    assert 2 <= int((samples.status == "timeout").sum()) < 20
    taken_s = (samples.done_s - samples.scheduled_s)[samples.status == "timeout"]
    assert taken_s.min() >= 0.3
    assert set(samples.version[samples.status == "timeout"]) == {"Sleeper"}


def test_a_closed_loop_runs_the_next_task_when_one_is_done(slow_server, make_job, tmp_path):
    plan = Plan(rate_per_s=0, duration_s=0.6, warm_up_s=0, arrivals="closed", users=3)
    finished, samples = run(make_job, slow_server(), tmp_path, ONE.format(sleep_s=0.05), plan)
    assert set(samples.status) == {OK}
    assert 3 < len(samples) <= 3 * 12
    assert finished.ok == len(samples)
    overlapping = [int(((samples.sent_s < at) & (samples.done_s > at)).sum()) for at in (0.2, 0.3, 0.4)]
    assert max(overlapping) <= 3


def test_what_a_task_asks_at_once_is_due_at_once(slow_server, make_job, tmp_path):
    plan = Plan(rate_per_s=20, duration_s=0.5, warm_up_s=0, arrivals="constant")
    _, samples = run(make_job, slow_server(), tmp_path, AT_ONCE, plan)
    due_ns = sorted([*schedule(plan).tolist()] * 3)
    asked = samples.version != "after"
    assert sorted(round(due * 1e9) for due in samples.scheduled_s[asked]) == due_ns
    assert (samples.done_s - samples.scheduled_s)[asked].min() >= 0.02
    last = {round(done * 1e9) for done in samples.done_s[asked]}
    assert {round(due * 1e9) for due in samples.scheduled_s[~asked]} < last


def test_a_user_that_does_not_start_gets_no_load(slow_server, make_job, tmp_path):
    server = slow_server()
    text = SHOP.replace('self.client.get("/v2/models/slow", name="login")', 'raise RuntimeError("no account")')
    with pytest.raises(BenchError, match="a user of the scenario's Fast did not start: RuntimeError: no account"):
        run(make_job, server, tmp_path, text, Plan(rate_per_s=10, duration_s=60, warm_up_s=0))
    assert server.answered == 0


CHECK = """
import sys
from locust import events
from locust.env import Environment
from pathlib import Path
from mlserve.bench.generator.user_scenario import load_user_classes
from mlserve.errors import BenchError
environment = Environment(events=events)
environment.create_local_runner()
for path in sys.argv[1:]:
    try:
        print([each.__name__ for each in load_user_classes(Path(path), environment)])
    except BenchError as error:
        print(error)
"""


def test_a_file_that_is_no_scenario_is_told_in_one_line(tmp_path):
    texts = {
        "good.py": ONE.format(sleep_s=1),
        "broken.py": "def (",
        "lacking.py": "import nowhere_at_all",
        "leaving.py": "raise SystemExit(3)",
        "empty.py": "from locust import FastHttpUser",
        "idle.py": "from locust import User\nclass Idle(User):\n    pass",
        "weightless.py": ONE.format(sleep_s=1) + "    weight = 0\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", CHECK, *texts], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    good, broken, lacking, leaving, empty, idle, weightless = done.stdout.splitlines()
    assert good == "['Sleeper']"
    assert broken.startswith("--locustfile broken.py cannot be imported: SyntaxError: invalid syntax")
    assert "ModuleNotFoundError: No module named 'nowhere_at_all'; try: python lacking.py" in lacking
    assert "SystemExit: 3" in leaving
    assert empty == "--locustfile empty.py has no User class; define one, with a @task"
    assert idle == "--locustfile idle.py: Idle has no task; mark a method with @task"
    assert weightless.startswith("--locustfile weightless.py has no User class")
