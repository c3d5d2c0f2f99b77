"""What the tests of the report share: runs made from numbers."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def demo_runs(tmp_path_factory, made_runs):
    """The runs of `make demo`, made up; nothing may be written there."""
    return made_runs.save_demo(tmp_path_factory.mktemp("demo") / "runs")


@pytest.fixture(scope="session")
def demo_report(demo_runs):
    """The report on them."""
    from mlserve.report.measurement import read_runs
    from mlserve.report.report import build_report

    return build_report(read_runs([demo_runs]), max_accuracy_loss=0.01, created_at="2026-11-21T13:00:00+00:00")


@pytest.fixture(scope="session")
def made_search():
    """Makes what `mlserve tune` leaves behind."""
    spec = importlib.util.spec_from_file_location("made_search", Path(__file__).parent / "made_search.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def search_folder(tmp_path_factory, made_search, made_runs):
    """A search with a pick; nothing may be written there."""
    return made_search.save_search(tmp_path_factory.mktemp("search") / "tune", made_runs)
