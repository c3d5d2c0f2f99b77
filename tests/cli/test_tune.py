"""`mlserve tune` as a user types it: one real search, cut short and gone on with; and what is refused."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mlserve.bench.watching.energy import read_energy
from mlserve.bench.watching.gpus import Gpus, load_nvml
from mlserve.cli.price import Price, parse_price
from mlserve.cli.tune_made import make_variants
from mlserve.cli.tune_shown import value_text
from mlserve.cli.tune_wishes import plan_of
from mlserve.errors import UsageError
from mlserve.model.artifact import Artifact, Manifest, Step
from mlserve.model.store import Store
from mlserve.model.tensors import TensorSpec
from mlserve.report.choice import SEARCH_FILE, Tried
from mlserve.runs.load import Plan
from mlserve.runs.machine import read_machine
from mlserve.runs.production import read_production
from mlserve.tuning.campaign import open_campaign
from mlserve.tuning.choosing.aim import Aim
from mlserve.tuning.choosing.contest import Contest
from mlserve.tuning.choosing.record import Search
from mlserve.tuning.choosing.space import settings_of, this_machine, versions_for
from mlserve.tuning.evidence import parse_slo
from mlserve.tuning.opening import Source
from mlserve.tuning.prediction.prediction import Prediction
from mlserve.tuning.prediction.service_times import engine_key
from mlserve.tuning.prediction.times import EngineTimes, PathTimes, Phase, RowTimes, ServiceTimes, write_times
from mlserve.tuning.prediction.version import open_version
from mlserve.tuning.serving import ServerOptions
from mlserve.tuning.setting import Setting

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


@pytest.fixture
def times(store, tmp_path):
    """A file of times as they might have been measured: 1 ms a run, and 1 ms beside it. Real ones: test_predict."""
    source, plan = Source(store=store), plan_of(1, 0)
    version = open_version("tiny@1", source, plan)
    aim = Aim(objective=parse_slo("p90=400ms"), rate_per_s=50.0, goal="latency")
    (setting,) = settings_of(versions_for(Store(store), ["tiny"], aim, ())[0], ("rest",), aim, this_machine()).settings
    engine = EngineTimes(
        key=engine_key(version, setting.options),
        together=False,
        kinds=(0,) * len(version.payload.requests),
        times=(RowTimes(kind=0, rows=1, busy_s=(0.001,), rested_s=(0.001,)),),
    )
    phase = Phase(gap_s=0.001, outside_s=(0.001,))
    costs = {"turn_s": 1e-4, "request_s": 1e-5, "client_s": 0.0}
    fields = {"protocol": "rest", "interface": version.interface, **costs}
    paths = tuple(PathTimes(**fields, inline=inline, phases=(phase,)) for inline in (True, False))
    file = tmp_path / "times.json"
    write_times(file, ServiceTimes(machine=read_machine(), engines=(engine,), paths=paths))
    return file


def test_a_search_is_cut_short_with_the_best_kept_and_goes_on_to_a_file_that_can_be_served(
    store, times, tmp_path, mlserve, runner
):
    """The objective is an easy one. Where other work makes every run INVALID, nobody may rely on the pick."""
    out = tmp_path / "out"
    flags = [
        "tune",
        "tiny",
        "--slo",
        "p90=2s",
        "--errors",
        "1%",
        "--rps",
        "50",
        "--protocol",
        "rest",
        "--store",
        store,
    ]
    flags += ["--budget", "40s", "--duration", "2s", "--out", out, "--times", times]
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
    first = times.read_bytes()

    ended = mlserve(*flags, "--json")
    assert ended.returncode in (0, 1), ended.stderr
    found = json.loads(ended.stdout)
    proven = ended.returncode == 0
    assert (found["verdict"]["confirmed"], found["verdict"]["valid"]) == (proven, proven)
    assert proven or "INVALID" in found["verdict"]["why"]
    assert found["setting"]["model"] == "tiny@1"
    assert found["verdict"]["pick"]["label"] in ended.stderr
    assert times.read_bytes() == first
    made = read_production(out / "production.toml")
    assert made.serve.models == ("tiny@1",)
    assert made.serve.engine == "onnxruntime"
    assert made.evidence.valid == proven
    assert made.expected.rate_per_s == 50
    assert made.evidence.model_sha256
    assert {"production", "html", "md", "json"} <= found["files"].keys()
    other = runner(*flags[1:], "--seed", 3)
    assert (other.exit_code, "holds another search: --seed 0 there, 3 now" in other.stderr) == (2, True)
    np.savez(tmp_path / "rows.npz", x=np.zeros((4, 30), np.float32))
    other = runner(*flags[1:], "--data", tmp_path / "rows.npz")
    assert (other.exit_code, "holds another search: --data not set there, " in other.stderr) == (2, True)


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
        (["--slo", "p99=20ms", "--max-memory", "1MB"], "a server takes more than 30.0 MB whatever it serves"),
        (["--slo", "p99=20ms", "--max-cost", "0.40/h"], "--max-cost 0.40/h says nothing without what a whole machine"),
        (["--slo", "p99=20ms", "--price", "1/h", "--max-cost", "little"], "--max-cost 'little' is no cost; write"),
        (["--slo", "p99=20ms", "--price", "$1/h", "--max-cost", "1EUR/h"], "is in EUR, and --price in $; write both"),
        (["--slo", "p99=20ms", "--price", "9/h", "--max-cost", "0.01/h"], "every setting costs more, the cheapest"),
        (["--slo", "p99=20ms", "--rps", "20", "--budget", "15s", "--duration", "3s"], "give at least --budget 36s"),
        (["--slo", "p99.9=20ms", "--rps", "30", "--budget", "1m"], "to confirm p99.9, which takes 4,603 requests"),
        (["--slo", "p99=20ms", "--data", "nofile.npz"], "--data nofile.npz: there is no such file"),
        (["--slo", "p99=20ms", "--max-drop", "200%"], "--max-drop 200%"),
        (["--slo", "p99=20ms", "--budget", "soon"], "--budget: 'soon' is no duration"),
        (["--slo", "p99=20ms", "--times", "/tmp"], "--times /tmp is a folder; name the file in it"),
        (["--slo", "p99=20ms", "--batch", "5000"], "--batch 5000: a server lets at most 4,096 rows wait"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line_and_leaves_nothing(flags, says, store, tmp_path, runner):
    found = runner("tiny", *flags, "--store", store, "--out", tmp_path / "out")
    assert (found.exit_code, says in found.stderr) == (2, True), found.stderr
    assert found.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_named_and_one_that_stands_where_a_folder_is_to_be(store, tmp_path, runner):
    found = runner("tiny", "--slo", "p99=20ms", "--store", store, "--out", __file__)
    assert (found.exit_code, "test_tune.py is a file; choose a folder" in found.stderr) == (2, True)
    found = runner("none/model.pt", "--slo", "p99=20ms", "--store", store)
    assert (found.exit_code, "none/model.pt: there is no such file" in found.stderr) == (2, True)
    (tmp_path / "notes.txt").write_text("ours")
    found = runner(Path(__file__).with_name("no.onnx"), "--slo", "p99=20ms", "--store", store, "--out", tmp_path)
    assert (found.exit_code, "holds something else; choose another folder" in found.stderr) == (2, True)
    found = runner("unknown", "--slo", "p99=20ms", "--store", store)
    assert (found.exit_code, "unknown" in found.stderr) == (2, True)


def test_a_search_of_a_file_goes_on_with_the_variants_that_it_began_with(tiny_onnx, tmp_path, capsys):
    file, store, out = tmp_path / "tiny.onnx", tmp_path / "store", tmp_path / "out"
    shutil.copyfile(tiny_onnx, file)
    made = make_variants(file, ["int8"], None, 1.0, store, out)
    assert made.versions == ("tiny@1", "tiny@2")
    aim = Aim(objective=parse_slo("p99=20ms"))
    plan = Plan(rate_per_s=1.0, duration_s=1.0, warm_up_s=0.0)
    search = Search(
        models=made.versions, made=made, protocols=("rest",), aim=aim, plan=plan, short_s=1.0, long_s=2.0
    )  # fmt: skip
    open_campaign(out, SEARCH_FILE, search)
    assert make_variants(file, ["int8"], None, 1.0, store, out) == made
    assert "goes on with tiny@1, tiny@2" in capsys.readouterr().err
    assert Store(store).versions("tiny") == [1, 2]
    with pytest.raises(UsageError, match="was begun with --variants int8; choose"):
        make_variants(file, [], None, 1.0, store, out)
    with pytest.raises(UsageError, match="--variants bogus: of a file, tune makes"):
        make_variants(file, ["int8", "bogus"], None, 1.0, store, out)
    file.write_bytes(file.read_bytes() + b"\x72\x00")
    with pytest.raises(UsageError, match=r"was begun with another content of tiny\.onnx"):
        make_variants(file, ["int8"], None, 1.0, store, out)
    assert make_variants(file, ["int8"], None, 1.0, store, tmp_path / "new").versions == ("tiny@3", "tiny@4")


def test_a_file_that_tune_has_no_flags_for_is_sent_to_optimize(tmp_path):
    from sklearn.linear_model import LogisticRegression

    file = tmp_path / "lr.pkl"
    file.write_bytes(pickle.dumps(LogisticRegression()))
    with pytest.raises(UsageError, match=r"That takes mlserve optimize .*lr\.pkl with --trust-pickle") as refused:
        make_variants(file, [], None, 1.0, tmp_path / "store", tmp_path / "out")
    assert str(refused.value).endswith("and then mlserve tune lr")


def test_a_cost_without_a_price_is_told_in_seconds_of_a_machine_as_in_the_report():
    options = ServerOptions(threads=1)
    setting = Setting(model="tiny@1", variant="fp32", options=options)
    foretold = Prediction(
        setting=setting, rate_per_s=1.0, p50_s=1.0, p99_s=1.0, objective_s=1.0, mean_batch_rows=1.0, utilization=0.5,
        max_rate_per_s=1.0,
    )  # fmt: skip
    aim = Aim(objective=parse_slo("p99=20ms"), goal="cost", rate_per_s=100.0)
    contest = Contest(predictions=(foretold,), aim=aim, cores=2)
    tried = Tried(number=0, label="fp32", state="picked", value=contest.cost_at(0, 100.0))
    assert value_text(contest, tried) == "5 s"


def test_energy_is_refused_where_nothing_counts_it(store, tmp_path, runner):
    if read_energy() or any(one.energy_j is not None for one in Gpus(load_nvml()).read()):
        pytest.skip("this machine counts its energy")
    found = runner("tiny", "--slo", "p99=20ms", "--rps", "50", "--minimize", "energy", "--store", store)
    assert (found.exit_code, "does not tell how much it uses" in found.stderr) == (2, True), found.stderr


def test_prices_are_read_and_others_refused():
    assert parse_price("1.20/h") == Price(1.2)
    assert parse_price("$.5 / h") == Price(0.5, before="$")
    assert parse_price("3 EUR/h") == Price(3.0, behind="EUR")
    for text in ("", "0/h", "1.20", "-1/h", "$3 EUR/h", "1.20/day", "cheap"):
        with pytest.raises(UsageError, match="--price"):
            parse_price(text)


@pytest.fixture
def runner():
    """Runs `mlserve tune ARGUMENTS...` in this process."""
    from typer.testing import CliRunner

    from mlserve.cli.main import app

    return lambda *arguments: CliRunner().invoke(app, ["tune", *map(str, arguments)], env={"COLUMNS": "1000"})
