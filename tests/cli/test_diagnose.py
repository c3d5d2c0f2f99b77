"""`mlserve diagnose` as a user types it: real files, real processes."""

import json
import logging

import pytest
from onnxruntime.quantization import quantize_dynamic

from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest
from mlserve.model.store import Store
from mlserve.model.tensors import TensorSpec


@pytest.fixture
def two_versions(tmp_path, tiny_onnx):
    """A store in the working folder with tiny@1, float32, and tiny@2, int8 made of it."""
    store = Store(tmp_path / "store")
    int8 = tmp_path / "int8.onnx"
    logging.disable(logging.WARNING)
    quantize_dynamic(tiny_onnx, int8)
    logging.disable(logging.NOTSET)
    inputs, outputs = TensorSpec("x", "float32", ("batch", 30)), TensorSpec("scores", "float32", ("batch", 2))
    with store.staging() as staging:
        for variant, source, parent in (("fp32", tiny_onnx, ""), ("int8", int8, "tiny@1")):
            folder = staging / variant
            folder.mkdir()
            (folder / MODEL_FILE).write_bytes(source.read_bytes())
            manifest = Manifest(variant=variant, inputs=(inputs,), outputs=(outputs,))
            store.add(Artifact(folder, manifest), "tiny", parent)


def one_line_error(done, *words, code=2):
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert all(word in line for word in words), line


def test_the_whole_document_is_json_with_facts_operators_and_findings(mlserve, tiny_onnx):
    done = mlserve("diagnose", tiny_onnx, "--json", "--batch-rows", "1,8", "--threads", "8", "--device", "cuda")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == {"facts", "operators", "findings"}
    facts = found["facts"]
    assert [profile["batch_rows"] for profile in facts["profiles"]] == [1, 8]
    work = 2 * (30 * 64 + 64 * 32 + 32 * 2)
    assert [sum(each["flops"] for each in profile["operations"]) for profile in facts["profiles"]] == [work, 8 * work]
    assert facts["conditions"]["threads"] == 8
    assert {1, 8} <= {timing["threads"] for timing in facts["threads"]}
    assert all(row["share"] <= 1 for table in found["operators"] for row in table["operators"])
    names = [finding["name"] for finding in found["findings"]]
    assert "too-small-to-matter" in names
    if facts["conditions"]["cuda_fault"]:
        assert names[0] == "stuck-on-the-cpu"
    saved = [finding["saves_at_most"] for finding in found["findings"]]
    assert saved == sorted(saved, reverse=True)
    assert "profiling every operator" in done.stderr


def test_the_tables_and_findings_are_printed_for_a_version_in_the_store(mlserve, two_versions):
    done = mlserve("diagnose", "tiny@2", "--threads", "1")
    assert done.returncode == 0, done.stderr
    for words in (
        "tiny@2",
        "tiny@1",
        "one run",
        "time by operator, 1 row(s)",
        "time by operator, 32 row(s)",
        "slowest nodes",
        "threads, 32 row(s)",
        "(beyond the cores)",
        "the model is too small to matter",
        "mlserve serve tiny@2 --workers",
        "(an upper bound)",
        "memory",
    ):
        assert words in done.stdout, (words, done.stdout)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("unknown",), ("no model 'unknown'",)),
        (("missing.onnx",), ("missing.onnx",)),
        (("MODEL", "--device", "tpu"), ("tpu", "cuda")),
        (("MODEL", "--batch-rows", "1,many"), ("--batch-rows", "1,32")),
        (("MODEL", "--batch-rows", "0"), ("--batch-rows",)),
        (("MODEL", "--against", "unknown@1"), ("unknown",)),
        (("MODEL", "--data", "missing.npz"), ("missing.npz",)),
    ],
)
def test_a_wrong_question_is_one_line(mlserve_here, tiny_onnx, arguments, words):
    one_line_error(mlserve_here("diagnose", *(tiny_onnx if word == "MODEL" else word for word in arguments)), *words)
