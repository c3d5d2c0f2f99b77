"""A server that is none of ours, a real process, measured as any other."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlserve.bench.dialects.find import find_dialect
from mlserve.bench.driver import Subject, run_bench
from mlserve.bench.local_server import listening_pids
from mlserve.bench.probe import ask_once, describe_model, find_model
from mlserve.bench.target import parse_header, parse_target
from mlserve.errors import BenchError
from mlserve.model.tensors import TensorSpec
from mlserve.runs.load import Plan
from mlserve.runs.run import ServedModel
from mlserve.runs.samples import read_samples

FEATURES = TensorSpec("features", "float32", ("batch", 2))
OUTPUTS = {"sum": TensorSpec("sum", "float64", ("batch",)), "larger": TensorSpec("larger", "int64", ("batch",))}


@pytest.fixture(scope="module")
def foreign():
    """`(process, port)` of the application in `app.py`."""
    command = [sys.executable, str(Path(__file__).with_name("app.py"))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    yield process, int(process.stdout.readline())
    process.terminate()
    process.wait(30)
    process.stdout.close()


def target_of(foreign, key="sEcReT"):
    headers = [parse_header(f"X-Api-Key: {key}")]
    template = '{"features": {{input:features}}}'
    url = f"http://127.0.0.1:{foreign[1]}/predict"
    return parse_target(url, protocol="json", template=template, answer="result", headers=headers)


def test_it_is_asked_by_a_template_and_its_answers_are_read(foreign):
    target = find_model(target_of(foreign))
    rows = np.array([[1, 2], [4, 3]], np.float32)
    request = find_dialect("json").encode(target, {"features": rows}, (FEATURES,))
    answer = find_dialect("json", target.answer).decode(ask_once(target, request), OUTPUTS)
    assert answer["sum"].tolist() == [3, 7]
    assert answer["larger"].tolist() == [1, 0]
    with pytest.raises(BenchError, match="does not say what 'predict' takes; say it with --inputs"):
        describe_model(target)
    assert listening_pids(target) == (foreign[0].pid,)


def bench(foreign, directory, key="sEcReT"):
    directory.mkdir()
    target = target_of(foreign, key)
    subject = Subject(target=target, model=ServedModel(url=target.url, name=target.title), inputs=(FEATURES,))
    plan = Plan(rate_per_s=100, duration_s=0.7, warm_up_s=0.2, protocol="json", batch_rows=2)
    return run_bench(subject, plan, directory, "foreign", lambda _: None)


def test_it_is_loaded_by_the_same_schedule_and_its_key_stays_out_of_the_run(foreign, tmp_path):
    run = bench(foreign, tmp_path / "run")
    assert run.counts.ok == run.counts.scheduled > 0
    assert (run.model.name, run.plan.protocol) == ("predict", "json")
    samples = read_samples(tmp_path / "run", run.window)
    assert set(samples.status) == {"ok"}
    for file in (tmp_path / "run").iterdir():
        assert b"sEcReT" not in file.read_bytes()


def test_a_wrong_key_gets_no_load(foreign, tmp_path):
    with pytest.raises(BenchError, match="HTTP 401: no key"):
        bench(foreign, tmp_path / "run", "guessed")
    assert list((tmp_path / "run").iterdir()) == []
