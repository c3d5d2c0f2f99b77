import math
import os
import time

import pytest

from mlserve.bench.course import ByPlan, Course
from mlserve.bench.generator.job import Calibrated, Finished, Started, Stop, Tick, Waiting
from mlserve.bench.watching.watch import watching
from mlserve.runs.load import Plan
from mlserve.runs.run import Calibration
from mlserve.runs.samples import OK, Sample, SampleWriter, read_samples

LONG = Plan(rate_per_s=1000, duration_s=1.0, warm_up_s=1.0, find_warm_up=True)


def tick(elapsed_s, sent=0):
    return Tick(elapsed_s=elapsed_s, sent=sent, ok=sent, failed=0, dropped=0, in_flight=0, latencies={})


def steady_rows(seconds):
    """A thousand requests a second, each answered after a millisecond, give or take a tenth."""
    return [
        Sample(at, at, None, at + 1_000_000 + at * 7919 % 100_000, 1, 0, OK, "")
        for at in range(0, round(seconds * 1e9), 1_000_000)
    ]


@pytest.fixture
def write(tmp_path):
    """Writes rows as the generators' process does."""
    with SampleWriter(tmp_path) as writer:
        yield writer.append


@pytest.fixture
def heeded(tmp_path):
    """A Course that was told some messages: itself, the progress and the commands that came of them."""
    with watching() as watch:

        def tell(messages, decide=None):
            shown, commands = [], []
            course = Course(tmp_path, watch, shown.append, decide)
            for message in messages:
                course.heed(message, commands.append)
            return course, shown, commands

        yield tell


def test_a_run_begins_when_the_generators_say(heeded):
    before_s = time.monotonic()
    course, shown, _ = heeded([Started(started_at="2026-11-22T00:00:00", pids=(os.getpid(),), lead_s=5.0)])
    assert course.started_at == "2026-11-22T00:00:00"
    assert before_s + 5.0 <= course.first_s <= time.monotonic() + 5.0
    assert shown == []


def test_nothing_is_known_before_it_is_told(heeded):
    course, shown, commands = heeded([])
    assert math.isnan(course.first_s)
    assert (course.started_at, course.calibration, shown, commands) == ("", None, [], [])


def test_the_generators_are_looked_at_from_their_start_to_their_end(tmp_path):
    with watching() as watch:
        course = Course(tmp_path, watch, lambda _: None, None)
        course.heed(Started(started_at="", pids=(os.getpid(),), lead_s=0.0), print)
        while time.monotonic() < course.first_s + 0.05:
            time.sleep(0.01)
        course.heed(Finished(end_s=0.1, cpus=(0.1,), ok=1, failed=0), print)
        ended_s = time.monotonic()
    roles = {process.pid: process.role for process in watch.resources(course.first_s, ended_s).processes}
    assert roles[os.getpid()] == "generator"


def test_the_calibration_is_kept_and_who_waits_is_shown(heeded):
    calibration = Calibration(requests=1, p50_s=1.0, p99_s=1.0, lag_p99_s=1.0, achieved_per_s=1.0)
    course, shown, _ = heeded([Waiting(joined=1, expected=3), Calibrated(calibration=calibration)])
    assert course.calibration == calibration
    assert [(moment.joined, moment.expected) for moment in shown] == [(1, 3)]


def test_progress_is_shown_with_every_tick_and_asked_about_twice_a_second(heeded, write):
    write(steady_rows(0.1))
    asked = []
    times_s = [-0.1, 0.1, 0.4, 0.5, 0.6, 0.9, 1.3, 60.0]
    _, shown, commands = heeded(
        [tick(at, number) for number, at in enumerate(times_s)],
        lambda samples, elapsed_s: asked.append((len(samples), elapsed_s)),
    )
    assert [moment.elapsed_s for moment in shown] == times_s
    assert (asked[0][1], asked[-1][1]) == (0.5, 60.0)
    assert len(asked) <= 4
    assert {count for count, _ in asked} == {100}
    assert commands == []


def test_who_has_said_stop_is_asked_no_more(heeded, write):
    write(steady_rows(0.1))
    asked = []

    def decide(samples, elapsed_s):
        asked.append(elapsed_s)
        return Stop(at_s=elapsed_s + 1)

    _, shown, commands = heeded([tick(0.5), tick(1.5), tick(5.0)], decide)
    assert (asked, commands, len(shown)) == ([0.5], [Stop(at_s=1.5)], 3)


def test_nobody_is_asked_about_rows_that_are_not_there_yet(heeded):
    asked = []
    _, shown, _ = heeded([tick(0.5), tick(1.5)], lambda *seen: asked.append(seen))
    assert (asked, len(shown)) == ([], 2)


def test_a_run_by_its_plan_ends_when_that_is_measured(tmp_path, write):
    by_plan = ByPlan(LONG)
    assert by_plan.reason == ""
    write(steady_rows(0.5))
    assert by_plan(read_samples(tmp_path), 0.5) is None
    assert by_plan.reason
    write(steady_rows(1.5)[500:])
    assert by_plan(read_samples(tmp_path), 1.5) == Stop(at_s=2.0)
