"""Imports into an empty folder: in the importing process, as a user makes them, or in that of the tests."""

import itertools
from functools import partial

import pytest

from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.model.artifact import MODEL_FILE
from mlserve.optimize.importing import Source, import_model


@pytest.fixture
def bring(home):
    """Imports `path` in the importing process and returns its kind, what came of it, and an engine of the file."""
    return bringing(home, import_model)


@pytest.fixture
def bring_here(home, import_here):
    """As `bring`, in the process of the tests: for what any process shows alike."""
    return bringing(home, import_here)


@pytest.fixture
def bring_by(home):
    """`bring_by(run)`: as `bring`, where `run` imports in the manner of import_model."""
    return partial(bringing, home)


def bringing(home, run):
    def bring(path, **hints):
        places = (home / f"out-{number}" for number in itertools.count())
        out = next(place for place in places if not place.exists())
        out.mkdir()
        kind, imported = run(Source(path=path, **hints), out, lambda _: None)
        assert [each.name for each in out.iterdir()] == [MODEL_FILE]
        engine = OnnxEngine(out / MODEL_FILE)
        assert [spec.name for spec in engine.inputs] == [spec.name for spec in imported.inputs]
        assert [spec.name for spec in engine.outputs] == [spec.name for spec in imported.outputs]
        return kind, imported, engine

    return bring


@pytest.fixture(scope="session")
def tables():
    """The real data sets that come with scikit-learn: name -> (rows [n, features], answers [n])."""
    from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine

    loaders = {"cancer": load_breast_cancer, "diabetes": load_diabetes, "digits": load_digits, "wine": load_wine}
    return {name: load(return_X_y=True) for name, load in loaders.items()}


@pytest.fixture
def as_csv(home, tables):
    """Writes a data set as a table and returns its path."""
    import pandas as pd

    def write(name):
        rows, answers = tables[name]
        path = home / f"{name}.csv"
        pd.DataFrame(rows, columns=[f"f{number}" for number in range(rows.shape[1])]).assign(label=answers).to_csv(
            path, index=False
        )
        return path

    return write
