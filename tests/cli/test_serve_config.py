"""`mlserve serve --config production.toml`: the file is served, flags win over it, and another model is refused."""

import json
import signal
import subprocess
import sys

import msgspec
import pytest
from typer.testing import CliRunner

from mlserve.cli.main import app
from mlserve.model.artifact import Artifact, FileRecord, Manifest, sha256_of
from mlserve.model.digest import model_sha256
from mlserve.model.store import Store
from mlserve.runs.production import Evidence, Expected, Production, ServeChoice, serve_digest, write_production

EXPECTED = Expected(
    protocol="rest",
    rate_per_s=500.0,
    batch_rows=1,
    p50_ms=1.5,
    p99_ms=4.0,
    p99_low_ms=3.5,
    p99_high_ms=4.5,
    slo="p99=20ms",
    max_rate_per_s=900.0,
)


@pytest.fixture
def production(tiny_onnx, tmp_path):
    """Writes a production.toml of the tiny model on free ports, and returns its path."""

    def write(sha256=None, edited=None, **choice):
        path = tmp_path / "production.toml"
        usual = {"models": (str(tiny_onnx),), "http_port": 0, "grpc_port": 0, "max_batch_rows": 4, "cache": False}
        serve = ServeChoice(**usual | choice)
        evidence = Evidence(
            runs=("runs/1",),
            valid=True,
            cpu="abacus",
            cores=2,
            model_sha256=sha256_of(tiny_onnx) if sha256 is None else sha256,
            serve_sha256=serve_digest(serve),
            mlserve="0.1.0",
            measured_at="2026-11-22",
        )
        serve = msgspec.structs.replace(serve, **edited or {})
        write_production(path, Production(serve=serve, expected=EXPECTED, evidence=evidence))
        return path

    return write


def served(folder, *arguments):
    """`(stdout, stderr)` of `mlserve serve ARGUMENTS...`, stopped once it serves."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mlserve", "serve", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    )
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("}") or "drains and stops" in line:
                break
        process.send_signal(signal.SIGTERM)
        rest, complaint = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, complaint
    return "".join(lines) + rest, complaint


def test_the_file_is_served_with_what_may_be_expected(production, tmp_path):
    printed, complaint = served(tmp_path, "--config", production())
    assert "tiny@1" in printed
    assert "expected  p50 1.50 ms, p99 4.00 ms (3.50 ms to 4.50 ms) at 500/s over rest" in printed
    assert "up to 900/s within p99=20ms" in printed
    assert "measured  2026-11-22 on abacus, 2 cores; VALID" in printed
    assert "wins" not in complaint


def test_a_flag_wins_says_so_and_takes_the_expectation_away(production, tmp_path):
    path = production(sha256="0" * 64, workers=2)
    printed, complaint = served(
        tmp_path, "--config", path, "--workers", 1, "--max-batch-rows", 4, "--allow-changed", "--json"
    )
    document = json.loads(printed)
    assert len(document["workers"]) == 1
    assert (document["config"], document["expected"]) == (str(path), None)
    assert document["unlike"] == ["workers", "model"]
    assert "--workers 1 wins over workers = 2 of" in complaint.replace("\n", " ")
    assert "max_batch_rows" not in complaint


def test_an_edited_file_promises_nothing_of_what_was_measured_before(production, tmp_path):
    path = production(edited={"max_batch_rows": 8, "drain": "5s"})
    printed, _ = served(tmp_path, "--config", path)
    assert f"expected  unknown: {path} was measured with other settings" in printed
    assert "VALID" not in printed
    printed, _ = served(tmp_path, "--config", path, "--json")
    assert (json.loads(printed)["expected"], json.loads(printed)["unlike"]) == (None, ["settings"])


@pytest.fixture
def refused(monkeypatch):
    """The one line of `mlserve serve ARGUMENTS...`, which exits with 2."""
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments):
        done = CliRunner().invoke(app, ["serve", *map(str, arguments)])
        assert done.exit_code == 2, done.stderr
        (line,) = done.stderr.splitlines()
        return line

    return run


def test_another_model_than_the_one_that_was_measured_is_refused(production, refused):
    line = refused("--config", production(sha256="0" * 64))
    assert "was measured with the model of SHA-256 000000000000" in line
    assert "--allow-changed" in line


@pytest.mark.parametrize("names", [("model.xml", "model.bin"), ("model.onnx", "model.onnx.data"), ("model.pt2",)])
def test_the_model_is_checked_whatever_files_it_is_kept_in(names, production, refused, tmp_path):
    made = Store(tmp_path / "store")
    with made.staging() as folder:
        directory = folder / "1"
        directory.mkdir()
        for name in names:
            (directory / name).write_bytes(b"weights")
        made.add(Artifact(directory, Manifest(variant="fp32", inputs=(), outputs=())), "tiny")
    files = made.resolve("tiny@1").manifest.files
    other = {**files, names[-1]: FileRecord("f" * 64, 7)}
    line = refused("--config", production(sha256=model_sha256(other), models=("tiny@1",), store=str(made.root)))
    assert f"was measured with the model of SHA-256 {model_sha256(other)[:12]}" in line
    assert f"tiny@1 has {model_sha256(files)[:12]}" in line


def test_what_the_file_cannot_mean_is_refused(production, refused, tmp_path):
    assert "serve.keys: there is no file gone.json" in refused("--config", production(keys="gone.json"))
    assert "production.toml: serve.models: there is no file gone.onnx" in refused(
        "--config", production(models=("gone.onnx",))
    )
    assert "is no duration" in refused("--config", production(drain="soon"))
    assert "can be reached from other machines" in refused("--config", production(host="0.0.0.0"))
    assert "cannot be read" in refused("--config", tmp_path / "missing.toml")
    model = refused("--config", tmp_path / "m.onnx")
    assert "m.onnx is a model, and no production.toml" in model
    assert "mlserve serve" in model
    assert "--allow-changed says something of --config" in refused("--allow-changed")
