"""What every test may use: a tiny real model, and the command line as a user runs it."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("COLUMNS", None)  # a console that is made while it is set heeds no other width afterwards
if "PYTEST_XDIST_WORKER" in os.environ:  # what waits for its share of a product leaves its core to the tests beside it
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
TESTS = Path(__file__).parent

# How long an example takes says more of what else runs on the machine than of the code.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# Begun first where files run beside each other: begun last, each would let the other cores wait for it.
LONGEST = (
    "cli/test_bench.py",
    "cli/test_optimize_variants.py",
    "cli/test_tune.py",
    "scorecard/test_timeless.py",
    "serve/test_loading.py",
    "optimize/test_importing.py",
    "cli/test_optimize.py",
    "cli/test_serve.py",
)


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew instead of comparing")
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, and only them")


def pytest_collection_modifyitems(config, items):
    """Tests marked slow repeat for one more kind of model what a quicker one shows: they have a run of their own.

    The files that take longest come first, with `--no-loadscope-reorder` among several workers, too.
    """
    wanted = config.getoption("--slow")
    config.hook.pytest_deselected(items=[item for item in items if _is_slow(item) != wanted])
    items[:] = sorted((item for item in items if _is_slow(item) == wanted), key=_place)


def _place(item):
    named = [place for place, name in enumerate(LONGEST) if str(item.path).endswith(name)]
    return named[0] if named else len(LONGEST)


def _is_slow(item):
    return item.get_closest_marker("slow") is not None


@pytest.fixture(scope="session")
def made_runs():
    """The module that makes runs from numbers instead of from a server."""
    return _module(TESTS / "report" / "made_runs.py")


@pytest.fixture(scope="session")
def authorities():
    """The module that makes authorities, and certificates by them."""
    return _module(TESTS.parent / "benchmarks" / "scorecard" / "security" / "authority.py")


def _module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory) -> Path:
    """A small MLP: `x` float32 [batch, 30] -> `scores` float32 [batch, 2]."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    rng = np.random.default_rng(0)
    nodes, initializers, current = [], [], "x"
    for number, (wide, narrow) in enumerate([(30, 64), (64, 32), (32, 2)]):
        weight = rng.standard_normal((wide, narrow)).astype(np.float32) / np.sqrt(wide).astype(np.float32)
        bias = rng.standard_normal(narrow).astype(np.float32)
        initializers += [numpy_helper.from_array(weight, f"w{number}"), numpy_helper.from_array(bias, f"b{number}")]
        last = number == 2
        linear = "scores" if last else f"linear{number}"
        nodes.append(helper.make_node("Gemm", [current, f"w{number}", f"b{number}"], [linear]))
        if not last:
            nodes.append(helper.make_node("Relu", [linear], [f"relu{number}"]))
            current = f"relu{number}"
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 30])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2])],
        initializers,
    )
    path = tmp_path_factory.mktemp("models") / "tiny.onnx"
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def memory_group():
    """`memory_group(limit_bytes)`: Python lines by which a process enters a new control group with that limit."""
    made = []

    def make(limit_bytes):
        for root, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
            folder = Path("/sys/fs/cgroup", root, f"mlserve-test-{os.getpid()}-{len(made)}")
            try:
                folder.mkdir()
            except OSError:
                continue
            made.append(folder)
            if (folder / limit).exists():
                (folder / limit).write_text(str(limit_bytes))
                return f"from pathlib import Path\nPath({str(folder / 'cgroup.procs')!r}).write_text('0')\n"
        pytest.skip("no control group with a limit can be made here")

    yield make
    for folder in made:
        folder.rmdir()


@pytest.fixture
def mlserve(tmp_path):
    """Runs `mlserve ARGUMENTS...` in an empty folder and returns the finished process, its output as text."""

    def run(*arguments, timeout_s: float = 240, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mlserve", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=cwd,
            env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        )

    return run


@pytest.fixture
def mlserve_here(tmp_path, monkeypatch):
    """As `mlserve`, but in this process: for what is told before a process or a heavy library has work to do."""
    from typer.testing import CliRunner

    from mlserve.cli.main import app

    monkeypatch.chdir(tmp_path)
    heeded = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments) -> subprocess.CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        try:
            done = CliRunner().invoke(app, words, env={"COLUMNS": "200", "NO_COLOR": "1"}, catch_exceptions=False)
        finally:
            for number, handler in heeded.items():
                signal.signal(number, handler)
        return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)

    return run
