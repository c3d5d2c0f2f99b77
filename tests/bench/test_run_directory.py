from contextlib import ExitStack
from datetime import UTC, datetime

import pytest

from mlserve.bench.run_directory import default_directory, default_label, run_directory
from mlserve.errors import UsageError
from mlserve.runs.load import Plan
from mlserve.runs.run import ServedModel

NOW = datetime(2026, 7, 31, 12, 0, 0, tzinfo=UTC)
PLAN = Plan(rate_per_s=200, duration_s=1, warm_up_s=0)


def test_a_new_directory_is_made_and_kept_once_it_holds_something(tmp_path):
    with run_directory(tmp_path / "a" / "b") as directory:
        (directory / "samples.parquet").touch()
    assert (tmp_path / "a" / "b" / "samples.parquet").is_file()


def test_a_new_directory_that_stays_empty_is_removed(tmp_path):
    with pytest.raises(KeyError), run_directory(tmp_path / "a" / "b"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_of_the_users_stays(tmp_path):
    with run_directory(tmp_path):
        pass
    assert tmp_path.is_dir()


@pytest.mark.parametrize("name", ["run.json", "samples.parquet", "samples.arrow"])
def test_a_directory_that_holds_a_run_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(UsageError, match="holds a run already"), run_directory(tmp_path):
        pass
    assert (tmp_path / name).read_text() == "precious"


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"), run_directory(tmp_path / "file" / "run"):
        pass


def test_a_run_is_named_after_what_was_loaded_and_how():
    stored = ServedModel(url="", name="minilm", version="2", variant="int8")
    assert default_label(stored, PLAN) == "minilm-int8-rest-200rps"
    assert str(default_directory(stored, PLAN, NOW)) == "runs/minilm-int8-rest-200rps-20260731T120000"
    assert default_label(ServedModel(url="", name="m", version="2"), PLAN) == "m-v2-rest-200rps"
    assert default_label(ServedModel(url="", name="m"), PLAN) == "m-rest-200rps"


def test_two_runs_of_one_second_have_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ServedModel(url="", name="m")
    with ExitStack() as stack:
        found = [stack.enter_context(run_directory(default_directory(model, PLAN, NOW))).name for _ in range(3)]
    first = "m-rest-200rps-20260731T120000"
    assert found == [first, f"{first}-2", f"{first}-3"]


def test_a_directory_that_another_run_has_is_refused_until_it_is_over(tmp_path):
    with run_directory(tmp_path), pytest.raises(UsageError, match="written by another"), run_directory(tmp_path):
        pass
    with run_directory(tmp_path):
        pass


def test_a_name_that_no_folder_can_have_is_made_one():
    path = default_directory(ServedModel(url="", name="../a b/c"), PLAN, NOW)
    assert path.parent.name == "runs"
    assert path.name == ".._a_b_c-rest-200rps-20260731T120000"
