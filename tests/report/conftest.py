"""What the tests of the report share: runs made from numbers."""

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
