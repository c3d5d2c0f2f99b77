"""PyTorch behind the engine seam: what only it does differently."""

import gc
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest

from mlserve.engines.engine import EngineSettings, Execution
from mlserve.engines.opening import open_engine
from mlserve.engines.torch_engine import TorchEngine, torch_facts
from mlserve.errors import EngineError
from mlserve.model.tensors import TensorSpec

_OPEN_COMPILED = """
import sys
from pathlib import Path
from mlserve.engines.engine import EngineSettings, Execution
from mlserve.engines.torch_engine import TorchEngine
from mlserve.errors import EngineError
from mlserve.model.tensors import TensorSpec
x, y = TensorSpec("x", "float32", ("batch", 12)), TensorSpec("scores", "float32", ("batch", 3))
TorchEngine(Path(sys.argv[1]), EngineSettings(), (x,), (y,)).close()
try:
    TorchEngine(Path(sys.argv[1]), EngineSettings(), (x,), (y,), compiled=True)
except EngineError as error:
    print(error)
"""


def test_everything_is_compiled_at_load_and_nothing_at_a_request(kept, rows_of):
    from torch._dynamo.utils import counters

    engine = open_engine(kept("conv", "torch"), EngineSettings(engine="torch-compiled"))
    compiled = counters["stats"]["unique_graphs"]
    assert compiled >= 1
    for rows in (1, 2, 7, 15, 16, 32, 40):
        engine.run(rows_of("conv", rows))
    assert counters["stats"]["unique_graphs"] == compiled


def test_without_a_compiler_the_error_says_what_to_install(kept, tmp_path):
    command = [sys.executable, "-c", _OPEN_COMPILED, str(kept("mlp", "torch").model_path)]
    environment = {**os.environ, "PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    environment.pop("CXX", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "install a C++ compiler, such as g++, or use --engine torch" in done.stdout


@pytest.mark.parametrize("engine", ["torch", "torch-compiled"])
def test_closing_frees_the_weights_though_modules_refer_to_each_other_and_may_be_frozen(kept, rows_of, engine):
    import torch

    gc.collect()
    before = {id(each) for each in gc.get_objects() if type(each) is torch.nn.Parameter}
    opened = open_engine(kept("conv", "torch"), EngineSettings(engine=engine))
    opened.run(rows_of("conv", 2))
    weights = [each for each in gc.get_objects() if type(each) is torch.nn.Parameter and id(each) not in before]
    left = [weakref.ref(each) for each in weights]
    assert len(left) >= 2
    del weights
    gc.freeze()
    opened.close()
    assert [each for each in left if each() is not None] == []


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_a_manifest_with_another_number_of_tensors_is_refused(kept, side):
    with pytest.raises(EngineError, match=r"model\.pt2 has 1 inputs and 2 outputs, its manifest names \d and \d"):
        open_engine(kept("conv", "torch", **{side: (TensorSpec("a", "float32", (1,)),) * 3}))
    opened = open_engine(kept("conv", "torch"))
    assert opened.execution == Execution("torch cpu")
    opened.close()


def test_a_program_that_writes_to_its_input_leaves_the_caller_s_rows_alone(tmp_path):
    import torch

    class Doubling(torch.nn.Module):
        def forward(self, x):
            x.mul_(2)
            return x + 1

    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(Doubling(), (torch.ones(2, 3),)), path)
    x, y = (TensorSpec(name, "float32", (2, 3)) for name in "xy")
    rows = np.ones((2, 3), np.float32)
    assert (TorchEngine(path, EngineSettings(), (x,), (y,)).run({"x": rows})["y"] == 3).all()
    assert (rows == 1).all()


def test_inputs_by_keyword_and_nested_outputs_are_taken_in_the_manifest_s_order(tmp_path):
    import torch

    class Nested(torch.nn.Module):
        def forward(self, a, *, b):
            return {"sum": a + b, "rest": [a - b, a * b]}

    path = tmp_path / "model.pt2"
    rows = {"a": np.full((2, 2), 5, np.float32), "b": np.full((2, 2), 3, np.float32)}
    a, b = (torch.from_numpy(rows[name]) for name in "ab")
    torch.export.save(torch.export.export(Nested(), (a,), {"b": b}), path)
    specs = [TensorSpec(name, "float32", (2, 2)) for name in ("a", "b", "sum", "difference", "product")]
    answer = TorchEngine(path, EngineSettings(), tuple(specs[:2]), tuple(specs[2:])).run(rows)
    assert {name: array[0, 0] for name, array in answer.items()} == {"sum": 8, "difference": 2, "product": 15}


def test_every_run_uses_the_threads_of_its_own_engine(kept, rows_of):
    import torch

    before = torch.get_num_threads()
    one, two = (open_engine(kept("mlp", "torch"), EngineSettings(threads=threads)) for threads in (1, 2))
    try:
        one.run(rows_of("mlp", 1))
        assert torch.get_num_threads() == 1
        two.run(rows_of("mlp", 1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_load_that_fails_prints_nothing(tmp_path, capfd):
    (tmp_path / "model.pt2").write_bytes(b"no program")
    x = TensorSpec("x", "float32", (1,))
    with pytest.raises(EngineError, match=r"model\.pt2 cannot be loaded"):
        TorchEngine(tmp_path / "model.pt2", EngineSettings(), (x,), (x,))
    assert capfd.readouterr() == ("", "")


def test_the_facts_tell_the_version_and_only_devices_that_can_be_used():
    import torch

    facts = torch_facts()
    assert facts.version == torch.__version__
    assert bool(facts.cuda_devices) is torch.cuda.is_available()


@pytest.mark.gpu
@pytest.mark.skipif(not torch_facts().cuda_devices, reason="PyTorch finds no CUDA device")
@pytest.mark.parametrize("engine", ["torch", "torch-compiled"])
def test_a_cuda_device_answers_what_the_cpu_answers(kept, rows_of, engine):
    artifact = kept("conv", "torch")
    rows = rows_of("conv", 5)
    expected, found = (
        open_engine(artifact, EngineSettings(device, engine=engine)).run(rows) for device in ("cpu", "cuda")
    )
    assert all(np.allclose(found[name], expected[name], rtol=1e-4, atol=1e-5) for name in expected)
