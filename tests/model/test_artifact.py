"""The manifest: what it says is what is read back, and every file but itself is in it."""

import hashlib
import os

import pytest

from mlserve.errors import StoreError
from mlserve.model.artifact import (
    MANIFEST,
    MODEL_FILE,
    Accuracy,
    Artifact,
    FileRecord,
    Latency,
    Manifest,
    Metrics,
    Step,
    read_manifest,
    record_files,
    write_manifest,
)
from mlserve.model.tensors import TensorSpec


def test_a_manifest_is_read_back_as_it_was_written(tmp_path):
    manifest = Manifest(
        name="m",
        version=3,
        variant="int8",
        task="embedding",
        inputs=(TensorSpec("ids", "int64", ("batch", "sequence"), below=30522),),
        outputs=(TensorSpec("y", "float32", ("batch", 2)),),
        files={MODEL_FILE: FileRecord("0" * 64, 5)},
        lineage=(Step("import", {"source": "a.onnx"}, ("note",)),),
        assumed=("the first dimension is the batch",),
        metrics=Metrics(
            Accuracy("cosine", 0.99, 0.01, 200, "data", "m@1", {"min": 0.9}), (Latency(1, 0.1, 10.0, 1.5),)
        ),
    )
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


def test_every_file_is_recorded_by_path_size_and_hash_but_the_manifest(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, content in ((MODEL_FILE, b"model"), ("sub/weights.bin", b"weights"), (MANIFEST, b"{}")):
        (tmp_path / name).write_bytes(content)
    assert record_files(tmp_path) == {
        MODEL_FILE: FileRecord(hashlib.sha256(b"model").hexdigest(), 5),
        "sub/weights.bin": FileRecord(hashlib.sha256(b"weights").hexdigest(), 7),
    }


def test_the_size_of_a_model_is_its_graph_and_weights(tmp_path):
    for name, content in ((MODEL_FILE, b"12345"), (f"{MODEL_FILE}.data", b"67"), ("tokenizer.json", b"890")):
        (tmp_path / name).write_bytes(content)
    assert Artifact(tmp_path, Manifest(variant="fp32", inputs=(), outputs=())).size_bytes == 7


@pytest.mark.parametrize(("content", "message"), [(b"[]", "is damaged"), (b'{"format_version": 99}', "has format 99")])
def test_a_manifest_of_another_form_is_refused(tmp_path, content, message):
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(StoreError, match=message):
        read_manifest(tmp_path)


def test_a_manifest_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(StoreError, match="no plain file"):
        read_manifest(tmp_path)
