"""`mlserve tune` as a user types it: one real search, cut short and gone on with; and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mlserve.cli.tune_wishes import parse_bytes, parse_price_per_h
from mlserve.errors import UsageError
from mlserve.model.artifact import Artifact, Manifest, Step
from mlserve.model.store import Store
from mlserve.model.tensors import TensorSpec
from mlserve.runs.production import read_production

PATIENCE_S = 150


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_onnx):
    """A store with `tiny`, which only one request at a time is given to."""
    made = Store(tmp_path_factory.mktemp("tune") / "store")
    with made.staging() as folder:
        directory = folder / "1"
        directory.mkdir()
        (directory / "model.onnx").write_bytes(tiny_onnx.read_bytes())
        manifest = Manifest(
            variant="fp32",
            inputs=(TensorSpec("x", "float32", ("batch", 30)),),
            outputs=(TensorSpec("scores", "float32", ("batch", 2)),),
            lineage=(Step("import"), Step("quantize")),
            rows_independent=False,
        )
        accuracy = {"metric": "accuracy", "value": 1.0, "loss": 0.0, "rows": 9, "data": "x", "reference": "fp32"}
        metrics = type(manifest.metrics)(accuracy=_accuracy(accuracy))
        made.add(Artifact(directory, _with(manifest, metrics)), "tiny")
    return made.root


def _accuracy(fields):
    from mlserve.model.artifact import Accuracy

    return Accuracy(**fields)


def _with(manifest, metrics):
    import msgspec

    return msgspec.structs.replace(manifest, metrics=metrics)


def test_a_search_is_cut_short_with_the_best_kept_and_goes_on_to_a_file_that_can_be_served(
    store, tmp_path, mlserve, runner
):
    """Where other work makes a run INVALID, the pick says so, and is one all the same: the objective is an easy one."""
    out = tmp_path / "out"
    flags = [
        "tune",
        "tiny",
        "--slo",
        "p90=400ms",
        "--errors",
        "1%",
        "--rps",
        "50",
        "--protocol",
        "rest",
        "--store",
        store,
    ]
    flags += ["--budget", "60s", "--duration", "4s", "--out", out]
    command = [sys.executable, "-m", "mlserve", *map(str, flags)]
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    deadline_s = time.monotonic() + PATIENCE_S
    while not list(out.glob("001-*/run.json")) and time.monotonic() < deadline_s and process.poll() is None:
        time.sleep(0.1)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, said
    assert "the same command goes on with them" in said
    assert "best so far, not confirmed: fp32 rest" in said
    assert not read_production(out / "production.toml").evidence.valid
    first = (out / "service-times.json").read_bytes()

    ended = mlserve(*flags, "--json")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["verdict"]["confirmed"]
    assert found["setting"]["model"] == "tiny@1"
    assert found["verdict"]["pick"]["label"] in ended.stderr
    assert (out / "service-times.json").read_bytes() == first
    made = read_production(out / "production.toml")
    assert made.serve.models == ("tiny@1",)
    assert made.serve.engine == "onnxruntime"
    assert made.expected.rate_per_s == 50
    assert made.evidence.model_sha256
    assert {"production", "html", "md", "json"} <= found["files"].keys()
    other = runner(*flags[1:], "--seed", 3)
    assert (other.exit_code, "holds another search: plan.seed 0 there, 3 now" in other.stderr) == (2, True)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--slo", "p99"], "is no limit"),
        (["--slo", "p99=20ms", "--maximize", "throughput", "--minimize", "cost"], "are two goals; give one"),
        (["--slo", "p99=20ms", "--maximize", "throughput", "--rps", "5"], "leave --rps out"),
        (["--slo", "p99=20ms", "--minimize", "latency"], "--minimize latency needs a load to measure it at"),
        (["--slo", "p99=20ms", "--rps", "-1"], "--rps -1 cannot be offered"),
        (["--slo", "p99=20ms", "--budget", "5s"], "--budget 5s is less than one run of 20s"),
        (["--slo", "p99=20ms", "--protocol", "soap"], "soap"),
        (["--slo", "p99=20ms", "--protocol", "rest,rest"], "one is given twice"),
        (["--slo", "p99=20ms", "--variants", "int9"], "--variants int9: tiny has fp32"),
        (["--slo", "p99=20ms", "--max-memory", "1kB"], "larger than --max-memory"),
        (["--slo", "p99=20ms", "--max-drop", "200%"], "--max-drop 200%"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line_and_leaves_nothing(flags, says, store, tmp_path, runner):
    found = runner("tiny", *flags, "--store", store, "--out", tmp_path / "out")
    assert (found.exit_code, says in found.stderr) == (2, True), found.stderr
    assert found.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_named(store, tmp_path, runner):
    found = runner("none/model.pt", "--slo", "p99=20ms", "--store", store)
    assert (found.exit_code, "none/model.pt: there is no such file" in found.stderr) == (2, True)
    found = runner("unknown", "--slo", "p99=20ms", "--store", store)
    assert (found.exit_code, "unknown" in found.stderr) == (2, True)


def test_sizes_and_prices_are_read_and_others_refused():
    assert parse_bytes("2GB", "--max-memory") == 2_000_000_000
    assert parse_bytes("1.5 GiB", "--max-memory") == 1_610_612_736
    assert parse_price_per_h("1.20/h") == 1.2
    assert parse_price_per_h(".5") == 0.5
    for text in ("", "0", "GB", "2TBs"):
        with pytest.raises(UsageError, match="--max-memory"):
            parse_bytes(text, "--max-memory")
    for text in ("", "0/h", "1.20/day", "cheap"):
        with pytest.raises(UsageError, match="--price"):
            parse_price_per_h(text)


@pytest.fixture
def runner():
    """Runs `mlserve tune ARGUMENTS...` in this process."""
    from typer.testing import CliRunner

    from mlserve.cli.main import app

    return lambda *arguments: CliRunner().invoke(app, ["tune", *map(str, arguments)], env={"COLUMNS": "1000"})
