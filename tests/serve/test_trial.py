"""A model is loaded and run in a process of its own before a server that serves others loads it."""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper, save_model

from mlserve.engines.engine import EngineSettings
from mlserve.errors import EngineError
from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest
from mlserve.model.store import Store
from mlserve.model.tensors import TensorSpec
from mlserve.serve import trial
from mlserve.serve.batching.turn import Turn
from mlserve.serve.loading import load_model
from mlserve.serve.settings import BatchSettings, ModelSource, ServeSettings
from mlserve.serve.trial import try_model
from mlserve.serve.warming import check_interface, warm_up

SETTINGS = EngineSettings()


def write(path, nodes, constants=()):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy")
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(constants).items()]
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def sound(tmp_path):
    return write(tmp_path / "sound.onnx", [helper.make_node("Identity", ["x"], ["y"])])


@pytest.fixture
def endless(tmp_path):
    """Turns a loop 2**62 times."""
    given = [
        helper.make_tensor_value_info("turn", TensorProto.INT64, []),
        helper.make_tensor_value_info("on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("before", TensorProto.FLOAT, ["batch", 2]),
    ]
    made = [
        helper.make_tensor_value_info("still", TensorProto.BOOL, []),
        helper.make_tensor_value_info("after", TensorProto.FLOAT, ["batch", 2]),
    ]
    inner = [helper.make_node("Identity", ["on"], ["still"]), helper.make_node("Neg", ["before"], ["after"])]
    body = helper.make_graph(inner, "body", given, made)
    loop = helper.make_node("Loop", ["turns", "yes", "x"], ["y"], body=body)
    return write(tmp_path / "endless.onnx", [loop], {"turns": np.int64(2**62), "yes": np.bool_(True)})


@pytest.fixture
def greedy(tmp_path):
    """Repeats its input 2**36 times."""
    nodes = [
        helper.make_node("Expand", ["x", "often"], ["repeated"]),
        helper.make_node("ReduceMax", ["repeated"], ["y"], axes=[0], keepdims=0),
    ]
    return write(tmp_path / "greedy.onnx", nodes, {"often": np.array([2**36, 1, 1], np.int64)})


def test_a_sound_model_stands_it_once_for_all_workers(sound, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    try_model(sound, SETTINGS, 32, str(run), 30.0)
    monkeypatch.setattr(trial, "_run", lambda _: pytest.fail("it was tried twice"))
    try_model(sound, SETTINGS, 32, str(run), 30.0)
    with pytest.raises(pytest.fail.Exception, match="tried twice"):
        try_model(sound, SETTINGS, 64, str(run), 30.0)


@pytest.fixture
def faulty(sound, tmp_path, monkeypatch):
    """`(paths, run, tried)`: two workers' copies of a model whose trial fails, and the paths that were tried."""
    run, tried = tmp_path / "run", []
    paths = [run / worker / MODEL_FILE for worker in ("first", "second")]
    for path in paths:
        path.parent.mkdir(parents=True)
        shutil.copy(sound, path)

    def fail(asked):
        tried.append(asked.path)
        time.sleep(0.5)
        raise EngineError(f"{asked.path} hangs")

    monkeypatch.setattr(trial, "_run", fail)
    return paths, run, tried


def test_what_is_wrong_with_a_model_is_found_once_for_all_workers_that_ask(faulty):
    paths, run, tried = faulty

    def fault(path):
        with pytest.raises(EngineError) as caught:
            try_model(path, SETTINGS, 4, str(run), 30.0)
        return str(caught.value)

    with ThreadPoolExecutor() as workers:
        assert [*workers.map(fault, paths)] == [f"{path} hangs" for path in paths]
    assert len(tried) == 1
    time.sleep(trial._FAULT_HOLDS_S + 0.1)
    assert fault(paths[1]) == f"{paths[1]} hangs"
    assert tried[1:] == [str(paths[1])]


@pytest.mark.parametrize("content", [b"", b'{"fau'])
def test_a_finding_that_there_was_no_room_for_is_found_again(sound, tmp_path, content):
    run = tmp_path / "run"
    run.mkdir()
    try_model(sound, SETTINGS, 1, str(run), 30.0)
    (found,) = [path for path in (run / "tried").iterdir() if path.suffix != ".lock"]
    found.write_bytes(content)
    try_model(sound, SETTINGS, 1, str(run), 30.0)
    assert found.read_bytes().startswith(b'{"fault":""')


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_it_ends_with_the_worker_that_asked_for_it(endless):
    asks = f"""
from pathlib import Path
from mlserve.engines.engine import EngineSettings
from mlserve.serve.trial import try_model
try_model(Path({str(endless)!r}), EngineSettings(), 1, "", 60.0)
"""
    worker = subprocess.Popen([sys.executable, "-c", asks])
    try:
        deadline_s = time.monotonic() + 60
        while not (tried := psutil.Process(worker.pid).children()) or tried[0].cpu_times().user < 1.5:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
    finally:
        worker.kill()
        worker.wait()
    assert psutil.wait_procs(tried, timeout=5)[1] == []


def test_one_that_never_returns_is_ended(endless):
    started_s = time.monotonic()
    with pytest.raises(EngineError, match=r"takes more than 1 s of a core to load|within 1\.5 s"):
        try_model(endless, SETTINGS, 1, "", 1.5)
    assert time.monotonic() - started_s < 20


def test_one_that_takes_more_memory_than_there_is_says_so(greedy):
    with pytest.raises(EngineError, match="made-up rows takes more memory than there is"):
        try_model(greedy, SETTINGS, 4, "", 30.0)


def test_one_that_crashes_is_told_by_its_signal(sound, monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, mlserve.engines.opening as opening\nopening.open_onnx_file = lambda *_: os.abort()\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    with pytest.raises(EngineError, match=r"crashes the process \(signal SIGABRT\)"):
        try_model(sound, SETTINGS, 1, "", 30.0)


@pytest.fixture
def held_to(sound, tmp_path, monkeypatch):
    """`held_to(lines)`: what the trial of a process that ran `lines` before is held to: `{"nice": 10, ...}`."""
    planted = """
import json, os, resource
from pathlib import Path
import mlserve.engines.opening as opening
from mlserve.errors import EngineError

def tell(*_):
    limits = {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in ("CORE", "CPU", "DATA")}
    oom = Path("/proc/self/oom_score_adj")
    more = {"nice": os.getpriority(os.PRIO_PROCESS, 0), "oom": int(oom.read_text()) if oom.exists() else 1000}
    raise EngineError(json.dumps(limits | more))

opening.open_onnx_file = tell
"""
    asks = f"""
from mlserve.engines.engine import EngineSettings
from mlserve.errors import EngineError
from mlserve.serve.trial import try_model
try:
    try_model(Path({str(sound)!r}), EngineSettings(), 1, "", 300.0)
except EngineError as error:
    print(error)
"""
    (tmp_path / "sitecustomize.py").write_text(planted)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))

    def ask(lines):
        code = f"import os, resource\nfrom pathlib import Path\n{lines}\n{asks}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    return ask


def test_a_trial_yields_and_is_what_the_system_ends_first(held_to):
    told = held_to("")
    assert (told["nice"], told["oom"], told["CORE"], told["CPU"]) == (trial._NICENESS, 1000, [0, 0], [200, 201])
    assert 0 < told["DATA"][1] < psutil.virtual_memory().total


def test_a_server_that_is_held_to_less_than_a_trial_is_tries_models_all_the_same(held_to):
    limits = "".join(
        f"resource.setrlimit(resource.RLIMIT_{name}, ({soft}, {hard}))\n"
        for name, soft, hard in (("CPU", 60, 70), ("DATA", 1 << 30, 1 << 30))
    )
    told = held_to(f"os.nice(15)\n{limits}")
    assert (told["nice"], told["CPU"], told["DATA"]) == (15, [60, 70], [1 << 30, 1 << 30])


def test_a_trial_may_take_what_the_control_group_has_left(held_to, memory_group):
    assert held_to(memory_group(1 << 30))["DATA"][1] < 1 << 30


def test_a_run_that_lacks_memory_is_no_reason_to_serve_without_a_warm_up(greedy):
    from mlserve.engines.opening import open_onnx_file

    engine = open_onnx_file(greedy)
    with pytest.raises(EngineError, match="fewer --max-batch-rows"):
        warm_up(engine, engine.inputs, 2)


@pytest.mark.parametrize(
    ("inputs", "outputs", "told"),
    [
        ([("x", "float32", ("batch", 2))], [("y", "float32", ("batch", 2))], ""),
        ([("x", "float32", ("rows", 2))], [("y", "float32", ("rows", "n"))], ""),
        ([("x", "float32", ("batch", 3))], [("y", "float32", ("batch", 2))], "says that it takes x:float32:batch,3"),
        ([("x", "float32", ("batch",))], [("y", "float32", ("batch", 2))], "takes x:float32:batch, but"),
        ([("x", "float64", ("batch", 2))], [("y", "float32", ("batch", 2))], "takes x:float64"),
        ([("z", "float32", ("batch", 2))], [("y", "float32", ("batch", 2))], "but the model takes no such tensor"),
        ([], [("y", "float32", ("batch", 2))], "of which its manifest says nothing"),
        ([("x", "float32", ("batch", 2))], [("z", "float32", ("batch", 2))], "but the model gives no such tensor"),
        ([("x", "float32", ("batch", 2))], [], ""),
    ],
)
def test_what_was_loaded_takes_and_gives_what_its_manifest_says(sound, inputs, outputs, told):
    from mlserve.engines.opening import open_onnx_file

    engine = open_onnx_file(sound)
    specs = [tuple(TensorSpec(*each) for each in side) for side in (inputs, outputs)]
    manifest = Manifest(variant="fp32", inputs=specs[0], outputs=specs[1])
    if not told:
        check_interface(engine, manifest)
        return
    with pytest.raises(EngineError, match=told):
        check_interface(engine, manifest)


def test_a_version_is_tried_as_its_manifest_has_it(sound, tmp_path):
    store = Store(tmp_path / "store")
    with store.staging() as folder:
        (folder / "made").mkdir()
        sound.rename(folder / "made" / MODEL_FILE)
        specs = [(TensorSpec(name, "float32", ("batch", size)),) for name, size in (("x", 3), ("y", 2))]
        manifest = Manifest(variant="fp32", inputs=specs[0], outputs=specs[1])
        artifact = store.add(Artifact(folder / "made", manifest), "m")
    with pytest.raises(EngineError, match="its manifest says that it takes x:float32:batch,3"):
        try_model(artifact.directory, SETTINGS, 4, "", 30.0)


@pytest.fixture
def version(sound, tmp_path):
    """`sound` as a version of a store."""
    store = Store(tmp_path / "store")
    with store.staging() as folder:
        (folder / "made").mkdir()
        sound.rename(folder / "made" / MODEL_FILE)
        inputs, outputs = ((TensorSpec(name, "float32", ("batch", 2)),) for name in "xy")
        return store.add(Artifact(folder / "made", Manifest(variant="fp32", inputs=inputs, outputs=outputs)), "m")


def test_a_version_that_was_loaded_and_run_without_a_trial_needs_none(version, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    settings = ServeSettings(models=(), defaults={}, run_directory=str(run))
    source = ModelSource("m", "1", str(version.directory))
    load_model(source, settings, Turn()).close()
    monkeypatch.setattr(trial, "_run", lambda _: pytest.fail("it was tried"))
    load_model(source, settings, Turn(), trial=True).close()
    larger = msgspec.structs.replace(settings, batch=BatchSettings(max_rows=settings.batch.max_rows + 1))
    with pytest.raises(pytest.fail.Exception, match="it was tried"):
        load_model(source, larger, Turn(), trial=True)
