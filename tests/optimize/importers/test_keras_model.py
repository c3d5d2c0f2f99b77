"""Real Keras files and SavedModels, through the importing process or in the one that made them."""

import os
import shutil
import subprocess
import sys

import msgspec
import numpy as np
import pytest

import mlserve.errors
from mlserve.errors import ModelFileError
from mlserve.optimize.importers.request import Answer, Fault
from mlserve.optimize.importers.source import identify

_MAKE = """
import keras
from keras import layers as L

keras.utils.set_random_seed(0)
image = keras.Sequential(
    [L.Input((8, 8, 1)), L.Conv2D(4, 3), L.BatchNormalization(), L.ReLU(), L.Flatten(), L.Dense(10)]
)
image.save("image.h5")
image.save_weights("only.weights.h5")
left, right = L.Input((4,), name="left"), L.Input((6,), name="right")
both = L.Concatenate()([L.Dense(3)(left), L.Dense(3)(right)])
pair = keras.Model([left, right], {"score": L.Dense(2, name="score")(both), "side": L.Dense(1, name="side")(both)})
pair.save("pair.keras")
x = L.Input((4,))
keras.Model(x, L.Lambda(lambda value: value * 2)(x)).save("code.keras")
"""
_IMPORT = """
import warnings
from pathlib import Path

import msgspec

from mlserve.errors import MlserveError
from mlserve.optimize.importers.request import Fault
from mlserve.optimize.importers.worker import import_asked
from mlserve.optimize.importing import Source, request_of

warnings.simplefilter("ignore")  # as the importing process does
for name in ("image.h5", "code.keras", "only.weights.h5"):
    out = Path(f"{name}.out")
    out.mkdir()
    try:
        answer = import_asked(request_of(Source(path=Path(name).resolve()), out), lambda _: None)
    except MlserveError as error:
        answer = Fault(type(error).__name__, str(error))
    Path(f"{name}.answer").write_bytes(msgspec.json.encode(answer))
"""
_EXPORT = """
import keras
from keras import layers as L

tokens = L.Input((None,), dtype="int32", name="tokens")
keras.Model(tokens, L.Dense(2)(L.LSTM(8)(L.Embedding(50, 8)(tokens)))).export("text", verbose=False)
"""


def made(code, folder):
    """`folder` with what `code` writes there: TensorFlow is not started in the process of the tests."""
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, env=environment)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of Keras, and what importing some of them gave where TensorFlow was loaded already: loading is the most."""
    return made(_MAKE + _IMPORT, tmp_path_factory.mktemp("keras"))


@pytest.fixture
def bring_there(bring_by):
    """As `bring`, of what was imported in the process that made the files."""

    def imported(source, out, _):
        answer = msgspec.json.decode(source.path.with_name(f"{source.path.name}.answer").read_bytes(), type=Answer)
        if isinstance(answer, Fault):
            raise getattr(mlserve.errors, answer.error)(answer.message)
        shutil.copytree(source.path.with_name(f"{source.path.name}.out"), out, dirs_exist_ok=True)
        return identify(source.path), answer

    return bring_by(imported)


def test_an_image_network_in_hdf5_takes_any_number_of_rows(files, bring_there):
    kind, imported, engine = bring_there(files / "image.h5")
    assert kind == "keras"
    (spec,) = imported.inputs
    assert spec.shape == ("batch", 8, 8, 1)
    assert [str(output) for output in imported.outputs] == ["output:float32:batch,10"]
    assert engine.run({spec.name: np.zeros((5, 8, 8, 1), np.float32)})["output"].shape == (5, 10)


@pytest.mark.slow
def test_a_functional_model_keeps_the_names_of_its_inputs_and_outputs(files, bring):
    _, imported, _ = bring(files / "pair.keras")
    assert [str(spec) for spec in imported.inputs] == ["left:float32:batch,4", "right:float32:batch,6"]
    assert sorted(str(spec) for spec in imported.outputs) == ["score:float32:batch,2", "side:float32:batch,1"]


@pytest.mark.slow
def test_a_saved_model_keeps_its_length_open_and_its_vocabulary_known(tmp_path, bring):
    kind, imported, _ = bring(made(_EXPORT, tmp_path) / "text")
    assert kind == "savedmodel"
    (spec,) = imported.inputs
    assert str(spec) == "tokens:int32:batch,sequence"
    assert spec.below == 50


def test_a_layer_of_code_runs_only_when_it_is_trusted(files, bring, bring_there):
    with pytest.raises(ModelFileError, match="--trust-pickle"):
        bring_there(files / "code.keras")
    _, _, engine = bring(files / "code.keras", trust_pickle=True)
    name = engine.inputs[0].name
    np.testing.assert_array_equal(engine.run({name: np.ones((2, 4), np.float32)})["output"], np.full((2, 4), 2.0))


def test_weights_alone_are_no_model(files, bring_there):
    with pytest.raises(ModelFileError, match="cannot be loaded by Keras"):
        bring_there(files / "only.weights.h5")
