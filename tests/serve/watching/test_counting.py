"""Numbers that several processes count and any of them reads."""

import subprocess
import sys
from collections import Counter

import pytest

from mlserve.serve.watching.counting import CountDirectory

_WORKER = """
import sys, time
from pathlib import Path
from mlserve.serve.watching.counting import CountDirectory

directory = CountDirectory(Path(sys.argv[1]))
counts = directory.open("m", "1")
counts.numbers("answers", ("m", "1", "rest"), 1)[0] += 5.0
counts.numbers("loaded", ("m", "1"), 1, level=True)[0] = 1.0
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def worker(tmp_path):
    """`with worker() as process`: a process that has counted 5 answers and serves."""
    started = []

    def start():
        command = [sys.executable, "-c", _WORKER, str(tmp_path)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def totals(directory):
    found = Counter()
    for _, records in directory.read():
        for record in records:
            found[record.name, record.labels] += record.numbers[0]
    return dict(found)


def test_what_workers_count_is_read_together_and_levels_go_with_their_worker(tmp_path, worker):
    one, other = worker(), worker()
    reader = CountDirectory(tmp_path)
    answers, loaded = ("answers", ("m", "1", "rest")), ("loaded", ("m", "1"))
    assert totals(reader) == {answers: 10.0, loaded: 2.0}
    assert {one.pid, other.pid} < set(reader.living())
    one.kill()
    one.wait()
    assert totals(reader) == {answers: 10.0, loaded: 1.0}
    assert one.pid not in reader.living()


def test_a_new_worker_takes_over_what_the_dead_counted(tmp_path, worker):
    for _ in range(4):
        process = worker()
        process.kill()
        process.wait()
    assert len(list(tmp_path.glob("*.counts"))) == 1  # the last to die had taken over from the others
    reader = CountDirectory(tmp_path)
    assert totals(reader) == {("answers", ("m", "1", "rest")): 20.0}
    assert len(list(tmp_path.glob("*.alive"))) == 1


def test_a_version_that_is_loaded_again_counts_on_and_has_no_levels_meanwhile(tmp_path):
    directory = CountDirectory(tmp_path)
    for turn in range(3):
        counts = directory.open("m", "1")
        counts.numbers("answers", ("m", "1"), 1)[0] += 1.0
        counts.numbers("loaded", ("m", "1"), 1, level=True)[0] = 1.0
        assert totals(directory) == {("answers", ("m", "1")): turn + 1.0, ("loaded", ("m", "1")): 1.0}
        directory.close("m", "1")
        assert totals(directory) == {("answers", ("m", "1")): turn + 1.0}
    assert len(list(tmp_path.glob("*.counts"))) == 1


def test_a_version_opened_twice_lives_until_both_have_closed_it(tmp_path):
    directory = CountDirectory(tmp_path)
    counts = [directory.open("m", "1"), directory.open("m", "1")]
    assert counts[0] is counts[1]
    counts[0].numbers("loaded", ("m", "1"), 1, level=True)[0] = 1.0
    directory.close("m", "1")
    assert totals(directory) == {("loaded", ("m", "1")): 1.0}
    directory.close("m", "1")
    assert totals(directory) == {}


def test_a_thousand_versions_leave_the_files_of_the_last_ones(tmp_path):
    directory = CountDirectory(tmp_path, most_retired=8)
    for version in range(1000):
        directory.open("m", str(version)).numbers("answers", ("m", str(version)), 1)[0] = 1.0
        directory.close("m", str(version))
    assert totals(directory) == {("answers", ("m", str(version))): 1.0 for version in range(992, 1000)}
    assert len(list(tmp_path.glob("*.counts"))) == 8


def test_numbers_beyond_one_file_go_on_in_another(tmp_path):
    directory = CountDirectory(tmp_path)
    counts = directory.open("m", "1")
    for number in range(500):
        counts.numbers("seconds", ("m", "1", f"outcome {number}"), 20)[19] = number
    found = [record.numbers[19] for _, records in directory.read() for record in records]
    assert sorted(found) == list(range(500))
    assert len(list(tmp_path.glob("*.counts"))) > 1


def test_a_directory_that_cannot_be_written_costs_metrics_and_nothing_else(tmp_path, caplog):
    place = tmp_path / "metrics"
    place.mkdir()
    directory = CountDirectory(place)
    for file in place.iterdir():
        file.unlink()
    place.rmdir()
    counts = directory.open("m", "1")
    counts.numbers("answers", ("m", "1"), 1)[0] += 1.0
    assert "metrics of this worker will be missing" in caplog.text
    directory.close("m", "1")


def test_without_a_directory_a_process_reads_what_it_counted_itself():
    directory = CountDirectory(None)
    directory.open("m", "1").numbers("answers", ("m", "1"), 2)[0] = 3.0
    assert totals(directory) == {("answers", ("m", "1")): 3.0}


def test_a_file_that_a_killed_worker_had_only_just_made_is_passed_over(tmp_path, worker):
    process = worker()
    process.kill()
    process.wait()
    (alive,) = tmp_path.glob("*.alive")
    (tmp_path / f"{alive.stem}.2.counts").touch()
    reader = CountDirectory(tmp_path)
    assert totals(reader) == {("answers", ("m", "1", "rest")): 5.0}
    (own,) = tmp_path.glob("*.alive")
    (tmp_path / f"{own.stem}.7.counts").touch()
    assert totals(reader) == {("answers", ("m", "1", "rest")): 5.0}
