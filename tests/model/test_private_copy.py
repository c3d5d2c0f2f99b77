"""What is loaded is a private copy of plain files, and the copy is what was checked."""

import os
import socket
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlserve.errors import EngineError, ModelFileError, StoreError
from mlserve.model.artifact import MANIFEST, Manifest, record_files, write_manifest
from mlserve.model.private_copy import private_onnx, private_version, remove_copies
from mlserve.model.tensors import TensorSpec


def write_model(folder, *, beside=False):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    weights = [numpy_helper.from_array(np.array([1, 2], np.float32), "w")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=beside, location="w.bin", size_threshold=0)
    return path


@pytest.fixture
def version(tmp_path):
    folder = tmp_path / "store" / "m" / "1"
    folder.mkdir(parents=True)
    write_model(folder, beside=True)
    (folder / "sub").mkdir()
    (folder / "sub" / "labels.txt").write_text("a\nb\n")
    specs = [(TensorSpec(name, "float32", (2,)),) for name in "xy"]
    files = record_files(folder)
    manifest = Manifest(variant="fp32", name="m", version=1, inputs=specs[0], outputs=specs[1], files=files)
    write_manifest(folder, manifest)
    return folder


def test_the_copy_has_every_file_and_is_for_this_user_alone_and_goes(version, tmp_path):
    with private_version(version, str(tmp_path)) as artifact:
        assert artifact.directory.parent == tmp_path
        assert artifact.directory.stat().st_mode & 0o077 == 0
        assert record_files(artifact.directory) == artifact.manifest.files == record_files(version)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_of_a_process_that_was_ended_the_copies_go_and_no_others(version, tmp_path):
    within = tmp_path / "run"
    within.mkdir()
    loads = f"""
import os
from pathlib import Path
from mlserve.model.private_copy import private_version
with private_version(Path({str(version)!r}), {str(within)!r}):
    os.kill(os.getpid(), 9)
"""
    killed = subprocess.Popen([sys.executable, "-c", loads])
    assert killed.wait(60) == -9
    (left,) = within.iterdir()
    with private_version(version, str(within)) as artifact:
        remove_copies(killed.pid, within)
        assert [*within.iterdir()] == [artifact.directory]
        assert artifact.directory != left
    assert not [*within.iterdir()]


def test_what_happens_to_the_original_meanwhile_does_not_reach_the_copy(version):
    before = (version / "model.onnx").read_bytes()
    with private_version(version) as artifact:
        (version / "model.onnx").write_bytes(b"exchanged")
        assert artifact.model_path.read_bytes() == before
    with pytest.raises(StoreError, match=r"model\.onnx was changed"), private_version(version):
        pass


def test_errors_name_the_original(version):
    with pytest.raises(EngineError) as caught, private_version(version) as artifact:
        raise EngineError(f"{artifact.model_path} cannot be loaded")
    assert str(caught.value) == f"{version / 'model.onnx'} cannot be loaded"


def _exchange(path, put):
    content = path.read_bytes()
    path.unlink()
    put(path, content)


def _link(path, content):
    other = path.parent.parent / "elsewhere"
    other.write_bytes(content)
    path.symlink_to(other)


def _hard_link(path, content):
    other = path.parent.parent / "elsewhere"
    other.write_bytes(content)
    os.link(other, path)


def _socket(path, _):
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (_link, "w.bin is a link"),
        (_hard_link, "w.bin has a second name"),
        (lambda path, _: os.mkfifo(path), "w.bin is no plain file"),
        (_socket, "w.bin is no plain file"),
    ],
)
def test_what_is_no_plain_file_of_one_name_is_refused_though_its_bytes_are_right(version, put, message, monkeypatch):
    monkeypatch.chdir(version)  # a socket's name may not be long
    _exchange(version.joinpath("w.bin").relative_to(version), put) if put is _socket else _exchange(
        version / "w.bin", put
    )
    with pytest.raises(StoreError, match=message), private_version(version):
        pass


def test_a_folder_that_is_a_link_and_a_second_manifest_are_refused(version):
    (version / "sub").rename(version.parent / "moved")
    (version / "sub").symlink_to(version.parent / "moved")
    with (
        pytest.raises(StoreError, match=r"sub/labels.txt is missing; sub is not in the manifest"),
        private_version(version),
    ):
        pass
    (version / "sub").unlink()
    (version.parent / "moved").rename(version / "sub")
    (version / "sub" / MANIFEST).write_text("{}")
    with pytest.raises(StoreError, match=r"sub/manifest.json is not in the manifest"), private_version(version):
        pass


def test_a_manifest_that_is_a_link_or_names_files_outside_is_refused(version):
    path = version / MANIFEST
    document = path.read_text()
    path.write_text(document.replace('"w.bin"', '"../../../secret"'))
    with pytest.raises(StoreError, match="secret is missing"), private_version(version):
        pass
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(StoreError, match="is a link"), private_version(version):
        pass


def test_a_bare_file_may_be_a_link_but_its_weights_may_not(tmp_path):
    path = write_model(tmp_path, beside=True)
    named = tmp_path / "named.onnx"
    named.symlink_to(path)
    with private_onnx(named) as (copy, file):
        assert copy.read_bytes() == path.read_bytes()
        assert file.external_files == ("w.bin",)
        assert (copy.parent / "w.bin").read_bytes() == (tmp_path / "w.bin").read_bytes()
    _exchange(tmp_path / "w.bin", _hard_link)
    with pytest.raises(ModelFileError, match=rf"{named} is refused: .*plain file with one name"), private_onnx(named):
        pass


@pytest.mark.parametrize("name", ["missing.onnx", "folder"])
def test_a_bare_file_that_cannot_be_read_is_named(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelFileError, match=rf"{name} cannot be read"), private_onnx(tmp_path / name):
        pass
