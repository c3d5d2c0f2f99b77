"""A tiny model, where it is looked for, and `mlserve what-if` on it."""

import pytest
import typer
from typer.testing import CliRunner

from mlserve.cli.what_if import what_if as command
from mlserve.tuning.opening import Source
from mlserve.tuning.serving import ServerOptions
from mlserve.tuning.setting import Setting


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return Source(store=tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def setting(tiny_onnx):
    return Setting(model=str(tiny_onnx), variant="tiny", options=ServerOptions(threads=1, max_batch_rows=8))


@pytest.fixture(scope="session")
def what_if():
    """Runs `mlserve what-if ARGUMENTS...` in this process."""
    app = typer.Typer()
    app.command()(command)

    def run(*arguments, columns=200):
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": str(columns)})

    return run
