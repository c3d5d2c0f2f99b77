"""`mlserve optimize` as a user types it: real files, real processes."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest

from mlserve.model.artifact import MODEL_FILE
from mlserve.model.store import Store, verify


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A network trained on scikit-learn's digits, as TorchScript and as ONNX, and rows with labels it has not seen.

    ONNX is read at once; for TorchScript a process of its own has to load PyTorch.
    """
    import warnings

    import torch
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits")
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    x, y = torch.from_numpy(images[:1400]), torch.from_numpy(labels[:1400])
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(module.eval(), torch.zeros(1, 64)).save(folder / "digits.pt")
        torch.onnx.export(
            module, (torch.zeros(2, 64),), folder / "digits.onnx", dynamo=False, input_names=["input"],
            output_names=["output"], dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}}, opset_version=17,
        )  # fmt: skip
    np.savez(folder / "held-out.npz", input=images[1400:], label=labels[1400:])
    return folder


@pytest.fixture(scope="module")
def made(digits, tmp_path_factory):
    """A store that holds the network and its int8 variant, and what was printed of it."""
    folder = tmp_path_factory.mktemp("made")
    arguments = ["optimize", digits / "digits.onnx", "--int8"]
    done = subprocess.run(
        [sys.executable, "-m", "mlserve", *arguments],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "store", done.stdout


@pytest.fixture
def store(made, tmp_path):
    """A copy of that store where mlserve looks for it."""
    return shutil.copytree(made[0], tmp_path / "store")


def test_int8_of_a_trained_network_keeps_its_accuracy(mlserve, digits, tmp_path):
    done = mlserve("optimize", digits / "digits.pt", "--int8", "--data", digits / "held-out.npz", "--json")
    assert done.returncode == 0, done.stderr
    fp32, int8 = json.loads(done.stdout)["published"]
    assert (fp32["ref"], fp32["variant"]) == ("digits@1", "fp32")
    assert (int8["ref"], int8["variant"]) == ("digits@2", "int8")
    accuracy = int8["metrics"]["accuracy"]
    assert accuracy["metric"] == "accuracy"
    assert fp32["metrics"]["accuracy"]["value"] > 0.85
    assert accuracy["loss"] == pytest.approx(fp32["metrics"]["accuracy"]["value"] - accuracy["value"])
    assert abs(accuracy["loss"]) < 0.02
    assert accuracy["rows"] == 397
    assert [latency["batch_rows"] for latency in int8["metrics"]["latency"]] == [1, 32]
    store = Store(tmp_path / "store")
    for version in (1, 2):
        verify(store.get("digits", version))
    assert store.get("digits", 2).manifest.parent == "digits@1"
    assert not list((tmp_path / "store").glob(".staging*"))


def test_the_table_shows_both_variants_and_what_comes_next(made):
    for words in ("digits@1", "digits@2", "int8", "speed", "mlserve serve digits@2", "synthetic rows"):
        assert words in made[1]


def test_the_same_model_is_not_published_twice_and_a_name_is_taken(mlserve_here, digits, store):
    assert mlserve_here("optimize", digits / "digits.onnx").returncode == 0
    assert Store(store).versions("digits") == [1, 2]
    assert mlserve_here("optimize", digits / "digits.onnx", "--name", "five").returncode == 0
    assert Store(store).versions("five") == [1]


def one_line_error(done, code=2):
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.strip().splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return lines[0]


def test_files_that_are_no_models_get_one_line_and_publish_nothing(mlserve_here, digits, tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "cut.pt").write_bytes((digits / "digits.pt").read_bytes()[:500])
    (tmp_path / "text.onnx").write_text("hello")
    for name, words in (
        ("text.pt", "no model mlserve knows"),
        ("cut.pt", "cut short"),
        ("text.onnx", "no ONNX"),
        ("none.pt", "No such file"),
    ):
        assert words in one_line_error(mlserve_here("optimize", name))
    assert not (tmp_path / "store").exists() or not Store(tmp_path / "store").names()


def test_external_data_outside_the_folder_is_refused(mlserve_here, tmp_path, tiny_onnx):
    import onnx

    inside = tmp_path / "inside"
    inside.mkdir()
    model = onnx.load(tiny_onnx)
    onnx.save(model, inside / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    assert mlserve_here("optimize", inside / "m.onnx").returncode == 0
    (tmp_path / "m.data").write_bytes((inside / "m.data").read_bytes())
    model = onnx.load(inside / "m.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../m.data"
    onnx.save(model, inside / "outside.onnx")
    assert "outside the model's folder" in one_line_error(mlserve_here("optimize", inside / "outside.onnx"))


def test_a_store_that_cannot_be_written_is_named(mlserve_here, digits, tmp_path):
    (tmp_path / "file").write_text("in the way")
    line = one_line_error(mlserve_here("optimize", digits / "digits.onnx", "--store", tmp_path / "file" / "store"))
    assert "cannot be written" in line
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--input", "x:float33:batch,3"), "float33"),
        (("--input", "x"), "name:dtype:dims"),
        (("--name", "../up"), "cannot be a model's name"),
        (("--int8", "--recipe", "r.toml"), "one of them"),
        (("--recipe", "none.toml"), "cannot be read"),
        (("--data", "none.npz"), "cannot be read"),
        (("--data", "some.xyz"), "cannot be read as data"),
    ],
)
def test_flags_that_cannot_be_used_are_named(mlserve_here, digits, flags, words):
    assert words in one_line_error(mlserve_here("optimize", digits / "digits.onnx", *flags))


@pytest.mark.slow
def test_a_half_precision_model_is_called_what_it_is(mlserve, tmp_path):
    from onnx import TensorProto, helper, numpy_helper, save_model

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["batch", 8]) for name in "xy"]
    weight = numpy_helper.from_array(np.eye(8, dtype=np.float16), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weight])
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "h.onnx")
    (made,) = json.loads(mlserve("optimize", "h.onnx", "--json").stdout)["published"]
    assert made["variant"] == "fp16"
    assert made["metrics"]["accuracy"]["reference"] == "fp16"
    assert "against fp16" in mlserve("optimize", "h.onnx").stdout
    assert "fp16" in one_line_error(mlserve("optimize", "h.onnx", "--int8"), code=1)
    assert Store(tmp_path / "store").versions("h") == [1]


def test_an_error_stays_on_one_line_whatever_it_names(mlserve_here):
    assert "no such.pt" in one_line_error(mlserve_here("optimize", "no\nsuch.pt"))


@pytest.mark.parametrize(
    ("source", "after_step", "ending"),
    [
        ("digits.pt", "loading the model", signal.SIGINT),
        ("digits.onnx", "int8: quantize", signal.SIGTERM),
        ("digits.onnx", "timing", signal.SIGINT),
    ],
)
def test_stopping_it_leaves_no_half_version_and_no_process(digits, tmp_path, source, after_step, ending):
    process = subprocess.Popen(
        [sys.executable, "-m", "mlserve", "optimize", digits / source, "--int8"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    with process:
        for line in process.stderr:
            if after_step in line:
                break
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(ending)
        rest = process.stderr.read()
    assert process.returncode == 128 + ending
    assert "Traceback" not in rest
    assert _gone(children)
    assert not Store(tmp_path / "store").names()
    finished = [] if after_step == "loading the model" else [".unfinished"]
    assert [path.name for path in (tmp_path / "store").iterdir()] == finished


def test_a_killed_optimize_leaves_no_process_and_its_rest_is_cleaned_up(mlserve_here, digits, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "mlserve", "optimize", digits / "digits.pt"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        for line in process.stderr:
            if "loading" in line:
                break
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.kill()
    assert _gone(children)
    assert list((tmp_path / "store").glob(".staging-*"))
    assert mlserve_here("optimize", digits / "digits.onnx").returncode == 0
    assert not list((tmp_path / "store").glob(".staging-*"))
    assert (tmp_path / "store" / "digits" / "1" / MODEL_FILE).is_file()


def _gone(processes: list[psutil.Process], limit_s: float = 15.0) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=limit_s)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_models_lists_promotes_rolls_back_and_verifies(mlserve_here, store):
    listed = json.loads(mlserve_here("models", "list", "--json").stdout)
    assert [entry["ref"] for entry in listed] == ["digits@1", "digits@2"]
    assert mlserve_here("models", "promote", "digits@1").returncode == 0
    assert mlserve_here("models", "promote", "digits@2").returncode == 0
    assert json.loads(mlserve_here("models", "show", "digits@production", "--json").stdout)["ref"] == "digits@2"
    assert "version 1 again" in mlserve_here("models", "rollback", "digits").stdout
    assert json.loads(mlserve_here("models", "show", "digits", "--json").stdout)["ref"] == "digits@1"
    assert "no earlier version" in one_line_error(mlserve_here("models", "rollback", "digits"))
    assert "no version or alias" in one_line_error(mlserve_here("models", "promote", "digits@9"))
    assert "has no model" in one_line_error(mlserve_here("models", "show", "other"))
    assert mlserve_here("models", "verify").returncode == 0
    model = store / "digits" / "2" / MODEL_FILE
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    assert "was changed" in one_line_error(mlserve_here("models", "verify", "digits@2"))
    assert mlserve_here("models", "verify", "digits@1").returncode == 0


def test_one_damaged_version_does_not_hide_the_others(mlserve_here, digits, store):
    (store / "digits" / "1" / "manifest.json").write_bytes(b"\xff\xfe")
    listed = mlserve_here("models", "list", "--json")
    assert "digits/1/manifest.json" in one_line_error(listed)
    assert [entry["ref"] for entry in json.loads(listed.stdout)] == ["digits@2"]
    verified = mlserve_here("models", "verify", "--json")
    assert "digits/1/manifest.json" in one_line_error(verified)
    assert json.loads(verified.stdout)["digits@2"] == "ok"
    assert mlserve_here("optimize", digits / "digits.onnx").returncode == 0
    assert Store(store).versions("digits") == [1, 2, 3]


def test_a_damaged_alias_is_named(mlserve_here, store):
    assert mlserve_here("models", "promote", "digits").returncode == 0
    (store / "digits" / "aliases" / "production").write_bytes(b"\xff\xfe")
    assert "aliases/production" in one_line_error(mlserve_here("models", "list"))
    assert "aliases/production" in one_line_error(mlserve_here("models", "promote", "digits@1"))


def test_a_store_that_is_a_file_is_not_called_empty(mlserve_here, tmp_path):
    (tmp_path / "file").touch()
    assert "not a store" in one_line_error(mlserve_here("models", "list", "--store", "file"))


def test_an_empty_store_says_what_to_do(mlserve_here):
    done = mlserve_here("models", "list")
    assert done.returncode == 0
    assert "mlserve optimize" in done.stdout


def test_a_variant_that_cannot_be_had_does_not_cost_the_others(mlserve_here, tmp_path):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kernel = numpy_helper.from_array(np.ones((2, 1, 3, 3), np.float32), "kernel")
    values = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8]),
        helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["batch", 2, 6, 6]),
    ]
    node = helper.make_node("Conv", ["image", "kernel"], ["maps"])
    graph = helper.make_graph([node], "conv", values[:1], values[1:], [kernel])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "conv.onnx")
    line = one_line_error(mlserve_here("optimize", "conv.onnx", "--int8"), code=1)
    assert "static quantization" in line
    assert "Published: conv@1" in line
    assert Store(tmp_path / "store").get("conv", 1).manifest.variant == "fp32"
