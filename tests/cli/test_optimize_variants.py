"""`mlserve optimize` making several variants, as a user types it: flags, recipes, accuracy floors, --auto, resuming."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper, save_model

from mlserve.model.store import Store

RECIPES = Path(__file__).parents[2] / "recipes"
NETWORK = """
import torch
def make():
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(512, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10),
    )
def metric(predictions, labels):
    return float((predictions.argmax(1) == labels).mean())
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small CNN trained on scikit-learn's digits, as a state dict and as ONNX, and 797 rows with labels it has not
    seen.
    """
    import warnings

    import torch
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("cnn")
    (folder / "network.py").write_text(NETWORK)
    names: dict = {}
    exec(NETWORK, names)
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    torch.manual_seed(0)
    module = names["make"]()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.003)
    x, y = torch.from_numpy(images[:1000]), torch.from_numpy(labels[:1000])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more would only wait for each other, at full speed
    for _ in range(8):
        for start in range(0, 1000, 50):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(x[start : start + 50]), y[start : start + 50]).backward()
            optimizer.step()
    torch.set_num_threads(threads)
    torch.save(module.state_dict(), folder / "cnn.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), (x[:2],), folder / "cnn.onnx", dynamo=False, input_names=["image"], output_names=["scores"],
            dynamic_axes={"image": {0: "batch"}, "scores": {0: "batch"}}, opset_version=17,
        )  # fmt: skip
    np.savez(folder / "rows.npz", image=images[1000:], label=labels[1000:])
    return folder


@pytest.fixture
def optimize_onnx(mlserve_here, trained):
    """Runs `mlserve optimize` on the CNN's ONNX file with its rows: no network has to be loaded and exported."""
    return lambda *arguments: mlserve_here("optimize", trained / "cnn.onnx", "--data", trained / "rows.npz", *arguments)


@pytest.fixture
def optimize(mlserve_here, trained, tmp_path):
    """Runs `mlserve optimize` on the CNN with its rows, beside its code."""
    (tmp_path / "network.py").write_text(NETWORK)

    def run(*arguments, data: bool = True) -> subprocess.CompletedProcess[str]:
        return mlserve_here(*command(trained, data=data)[3:], *arguments)

    return run


def command(trained: Path, *, data: bool = True) -> list[str]:
    rows = ["--data", str(trained / "rows.npz")] if data else []
    return [
        sys.executable, "-m", "mlserve", "optimize", str(trained / "cnn.pt"), "--model-class", "network:make",
        "--input", "image:float32:batch,1,8,8", *rows,
    ]  # fmt: skip


def end_before_publishing(arguments: list[str], folder: Path, ending: signal.Signals) -> None:
    """Starts the command and ends it when its static int8 variant is made."""
    process = subprocess.Popen(
        arguments, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    with process:
        for line in process.stderr:
            if "int8-static: accuracy" in line:
                break
        process.send_signal(ending)
        process.stderr.read()


def test_an_unseen_network_with_open_dimensions_and_several_inputs_and_outputs_goes_through_at_once(
    mlserve_here, tmp_path
):
    import torch
    from torch import nn

    class Unseen(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.side = nn.Embedding(200, 48), nn.Sequential(nn.Linear(9, 48), nn.GELU(), nn.LayerNorm(48))
            self.convolution = nn.Conv1d(48, 64, 3, padding=1)
            self.mix = nn.MultiheadAttention(64, 4, batch_first=True)
            self.scores, self.out = nn.Linear(112, 5), nn.Linear(112, 32)

        def forward(self, words, numbers):
            states = self.convolution(self.embed(words).transpose(1, 2)).relu().transpose(1, 2)
            mixed, _ = self.mix(states, states, states, need_weights=False)
            both = torch.cat([mixed.mean(1), self.side(numbers)], 1)
            return {"scores": self.scores(both), "embedding": nn.functional.normalize(self.out(both), dim=-1)}

    torch.manual_seed(0)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2, max=64)
    shapes = {"words": {0: batch, 1: length}, "numbers": {0: batch}}
    example = (torch.randint(0, 200, (3, 7)), torch.randn(3, 9))
    torch.export.save(torch.export.export(Unseen().eval(), example, dynamic_shapes=shapes), tmp_path / "unseen.pt2")
    done = mlserve_here("optimize", "unseen.pt2", "--int8", "--json")
    assert done.returncode == 0, done.stderr
    _, int8 = json.loads(done.stdout)["published"]
    words, numbers = int8["inputs"]
    assert (words["name"], numbers["name"], numbers["shape"][1]) == ("words", "numbers", 9)
    assert all(isinstance(dim, str) for dim in (*words["shape"], numbers["shape"][0]))
    assert [spec["name"] for spec in int8["outputs"]] == ["scores", "embedding"]
    assert int8["metrics"]["accuracy"]["loss"] < 0.05


def test_static_int8_is_judged_on_rows_it_was_not_calibrated_on(optimize_onnx):
    done = optimize_onnx("--int8-static", "--json")
    assert done.returncode == 0, done.stderr
    fp32, int8 = json.loads(done.stdout)["published"]
    accuracy = int8["metrics"]["accuracy"]
    assert accuracy["split"] == "398 of 797 rows held out, seed 0"
    assert (accuracy["rows"], accuracy["basis"]) == (398, "labels")
    assert accuracy["loss_low"] <= accuracy["loss"] <= accuracy["loss_high"] < 0.03
    assert [step["step"] for step in int8["lineage"]] == ["import", "fuse", "smooth", "quantize-static"]
    assert fp32["metrics"]["accuracy"]["loss"] == 0


def test_static_int8_without_data_says_what_is_missing_and_publishes_the_rest(mlserve_here, trained):
    done = mlserve_here("optimize", trained / "cnn.onnx", "--int8", "--int8-static")
    assert done.returncode == 1
    assert "--data" in done.stderr
    assert "Published: cnn@1, cnn@2" in " ".join(done.stderr.split())


def test_pruned_then_quantized_says_what_each_did(optimize):
    done = optimize("--prune", "channels=0.5,epochs=4", "--int8-static", "--max-drop", "5%", "--json")
    assert done.returncode == 0, done.stderr
    fp32, small = json.loads(done.stdout)["published"]
    assert [step["step"] for step in small["lineage"]] == ["import", "prune", "fuse", "smooth", "quantize-static"]
    assert small["variant"] == "pruned-int8-static"
    assert small["size_bytes"] < fp32["size_bytes"] / 5
    assert "parameters" in " ".join(small["lineage"][1]["notes"])


def test_a_variant_that_loses_too_much_is_not_published(mlserve_here, tmp_path):
    """One weight is so large that the others are nothing beside it in 8 bits, and no row uses it."""
    rng = np.random.default_rng(0)
    weight, rows = rng.standard_normal((31, 4)).astype(np.float32), rng.standard_normal((400, 31)).astype(np.float32)
    weight[30], rows[:, 30] = 1e6, 0
    x, y = (helper.make_tensor_value_info(name, 1, ["batch", wide]) for name, wide in (("x", 31), ("y", 4)))
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "far", [x], [y], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save_model(model, tmp_path / "far.onnx")
    np.savez(tmp_path / "rows.npz", x=rows, label=(rows @ weight).argmax(1))
    done = mlserve_here("optimize", "far.onnx", "--data", "rows.npz", "--int8", "--max-drop", "1%", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert [artifact["variant"] for artifact in told["published"]] == ["fp32"]
    assert "more than the 1% allowed" in told["refused"]["int8"]


@pytest.mark.slow
def test_a_variant_for_another_engine_is_kept_in_its_format(optimize, tmp_path):
    engine = "torch-compiled"
    done = optimize("--engine", engine, "--json")
    assert done.returncode == 0, done.stderr
    fp32, other = json.loads(done.stdout)["published"]
    assert (other["engine"], other["format"]) == (engine, "torch")
    assert [path.name for path in sorted((tmp_path / other["directory"]).iterdir())] == ["manifest.json", "model.pt2"]
    assert other["metrics"]["accuracy"]["value"] == fp32["metrics"]["accuracy"]["value"]


@pytest.mark.slow
def test_other_rows_held_out_are_other_work(trained, tmp_path):
    """What an attempt made with one split must not be judged with another."""
    (tmp_path / "network.py").write_text(NETWORK)
    arguments = [*command(trained), "--int8-static"]
    end_before_publishing(arguments, tmp_path, signal.SIGINT)
    again = subprocess.run([*arguments, "--seed", "1"], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "finished by an earlier attempt" not in again.stderr


@pytest.mark.slow
def test_a_metric_of_ones_own_decides(optimize):
    done = optimize("--int8", "--metric", "network:metric", "--max-drop", "2%", "--json")
    assert done.returncode == 0, done.stderr
    _, int8 = json.loads(done.stdout)["published"]
    assert int8["metrics"]["accuracy"]["metric"] == "network:metric"


def test_auto_publishes_the_best_of_what_it_tried(optimize_onnx):
    done = optimize_onnx("--auto", "--max-drop", "3%", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    tried = {artifact["variant"] for artifact in told["measured"]} | set(told["refused"])
    assert {"fp32", "fused", "int8", "int8-static", "openvino"} <= tried
    assert len(told["published"]) <= 2
    for artifact in told["published"][1:]:
        assert artifact["variant"] not in told["dominated_by"]
        assert artifact["metrics"]["accuracy"]["loss_high"] <= 0.03


def test_auto_says_when_there_is_nothing_to_try(mlserve_here, tmp_path):
    from xgboost import XGBClassifier

    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((200, 6)), rng.integers(2, size=200)
    XGBClassifier(n_estimators=5).fit(x, labels).save_model(tmp_path / "trees.json")
    done = mlserve_here("optimize", "trees.json", "--auto")
    assert done.returncode == 0, done.stderr
    assert "nothing was tried" in done.stderr
    assert Store(tmp_path / "store").versions("trees") == [1]


@pytest.mark.slow
def test_auto_prints_a_ranking_and_a_chart(optimize):
    done = optimize("--auto", "--max-drop", "3%", data=False)
    assert done.returncode == 0, done.stderr
    assert "speed (times fp32's)" in done.stdout
    assert "serve it with: mlserve serve cnn@" in done.stdout


@pytest.mark.slow
def test_the_shipped_recipes_for_any_cpu_can_be_made(optimize):
    for name in ("baseline", "cpu-int8-dynamic", "cpu-int8-static", "cpu-openvino", "fused", "edge-small"):
        done = optimize("--recipe", RECIPES / f"{name}.toml", "--json")
        assert done.returncode == 0, f"{name}: {done.stderr}"
        assert len(json.loads(done.stdout)["published"]) >= (1 if name == "baseline" else 2)


def test_a_stopped_attempt_is_gone_on_with(trained, tmp_path):
    arguments = [sys.executable, "-m", "mlserve", "optimize", str(trained / "cnn.onnx")]
    arguments += ["--data", str(trained / "rows.npz"), "--int8", "--int8-static"]
    end_before_publishing(arguments, tmp_path, signal.SIGKILL)
    assert not Store(tmp_path / "store").names()
    again = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "int8: finished by an earlier attempt" in again.stderr
    assert "reading the ONNX file" not in again.stderr
    assert Store(tmp_path / "store").versions("cnn") == [1, 2, 3]
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["cnn"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--auto", "--int8"], "--auto and flags"),
        (["--recipe", "x.toml", "--fp16"], "--recipe and flags"),
        (["--prune", "chanels=0.5"], "--prune 'chanels=0.5'"),
        (["--distill", "width=7"], "--distill 'width=7'"),
        (["--engine", "tflite", "--int8"], "'tflite' is unknown"),
        (["--bf16"], "add --engine openvino"),
        (["--max-drop", "lots"], "--max-drop"),
        (["--metric", "bleu"], "'bleu' is unknown"),
    ],
)
def test_a_wrong_wish_is_one_clear_line(mlserve_here, trained, flags, words):
    done = mlserve_here(*command(trained)[3:], *flags)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
