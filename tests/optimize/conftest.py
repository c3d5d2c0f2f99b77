"""Model files of the zoo, and its source where a user would keep it: in the folder mlserve is started from."""

import importlib.util
import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).parent


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
def weights(home, zoo):
    """Saves the state dict of a zoo model and returns its path."""
    import torch

    def save(name: str) -> Path:
        torch.manual_seed(0)
        path = home / f"{name}.pt"
        torch.save(getattr(zoo, name)().state_dict(), path)
        return path

    return save
