"""Model files of the zoo, and its source where a user would keep it: in the folder mlserve is started from."""

import importlib.util
import os
import shutil
import sys
import warnings
from pathlib import Path

import pytest

HERE = Path(__file__).parent
os.environ.setdefault("USE_TF", "0")  # as in the importing process: else transformers loads TensorFlow as well


@pytest.fixture(scope="session")
def zoo():
    spec = importlib.util.spec_from_file_location("zoo", HERE / "zoo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """The working folder, with zoo.py in it."""
    shutil.copy(HERE / "zoo.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def import_here(home, monkeypatch):
    """As import_model, but in the process of the tests, where the libraries are loaded already.

    That the importing process does the same, and how it shields us, is for the tests that start it. So is TorchScript,
    for which it teaches torch's exporter what cannot be taken back here.
    """
    from mlserve.optimize.importers.worker import import_asked
    from mlserve.optimize.importing import import_model, request_of

    def bring(source, out, on_step, *training):
        request = request_of(source, out, *training)
        if request.kind == "onnx":
            return import_model(source, out, on_step, *training)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as the importing process does
            return request.kind, import_asked(request, on_step)

    monkeypatch.setattr(sys, "path", [*sys.path])
    torch = sys.modules.get("torch")
    if torch is not None:  # what an import changes of it is as before when the test is over
        fused = torch.backends.mha.get_fastpath_enabled()
        transformer = torch.nn.modules.transformer
        monkeypatch.setattr(transformer, "_detect_is_causal_mask", transformer._detect_is_causal_mask)
    yield bring
    if torch is not None:
        torch.backends.mha.set_fastpath_enabled(fused)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(f"{home}/"):
            del sys.modules[name]


@pytest.fixture
def weights(home, zoo):
    """Saves the state dict of a zoo model and returns its path."""
    import torch

    def save(name: str) -> Path:
        torch.manual_seed(0)
        path = home / f"{name}.pt"
        torch.save(getattr(zoo, name)().state_dict(), path)
        return path

    return save
