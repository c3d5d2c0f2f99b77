"""The store: versions appear whole and never change, aliases move, and a crash leaves nothing half done."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mlserve.errors import StoreError
from mlserve.model.artifact import MODEL_FILE, Accuracy, Artifact, Manifest, Metrics
from mlserve.model.store import PRODUCTION, Store, check_name, verify
from mlserve.model.tensors import TensorSpec

MANIFEST = Manifest(variant="fp32", inputs=(TensorSpec("x", "float32", ("batch", 2)),), outputs=())


def add(store, name="m", content=b"model", **changes):
    """Publishes a version that holds `content` as its model file."""
    with store.staging() as folder:
        made = folder / "made"
        made.mkdir()
        (made / MODEL_FILE).write_bytes(content)
        manifest = Manifest(variant="fp32", inputs=MANIFEST.inputs, outputs=(), **changes)
        return store.add(Artifact(made, manifest), name, parent="p")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_an_empty_store_is_empty_and_asking_creates_nothing(store):
    assert store.names() == []
    assert store.versions("m") == []
    assert store.aliases("m") == {}
    assert not store.root.exists()


def test_versions_count_up_from_one_and_are_verified(store):
    added = [add(store, content=bytes([number])) for number in range(3)]
    assert [artifact.ref for artifact in added] == ["m@1", "m@2", "m@3"]
    assert store.names() == ["m"]
    assert store.versions("m") == [1, 2, 3]
    for artifact in added:
        verify(artifact)
        assert store.get("m", artifact.manifest.version) == artifact
        assert artifact.manifest.parent == "p"


def test_the_same_content_is_not_published_twice_and_other_content_is(store):
    accuracy = Accuracy("cosine", 1.0, 0.0, 10, "data", "m@1")
    first = add(store)
    assert add(store) == first
    assert add(store, metrics=Metrics(accuracy)).ref == "m@2"
    assert add(store, content=b"other").ref == "m@3"
    assert add(store, "n").ref == "n@1"


def test_nothing_is_published_when_the_work_fails_and_its_folder_is_gone(store):
    def fail():
        with store.staging() as folder:
            (folder / "half").write_bytes(b"half")
            raise RuntimeError("the export failed")

    with pytest.raises(RuntimeError):
        fail()
    assert store.names() == []
    assert list(store.root.iterdir()) == []
    add(store)  # negative control: a finished one is published
    assert [path.name for path in store.root.iterdir()] == ["m"]


_STAGE = """
import sys, time
from pathlib import Path
from mlserve.model.store import Store
with Store(Path(sys.argv[1])).staging() as folder:
    (folder / "half").write_bytes(b"half")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_works_on_is_not(store):
    processes = [
        subprocess.Popen([sys.executable, "-c", _STAGE, str(store.root)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        killed, living = [Path(process.stdout.readline().strip()) for process in processes]
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait(30)
        assert killed.is_dir()
        with store.staging() as mine:
            assert mine.is_dir()
            assert not killed.exists()
            assert (living / "half").is_file()
        assert not mine.exists()
    finally:
        for process in processes:
            process.kill()
            process.communicate()


_ADD = """
import sys
import tempfile
from pathlib import Path
from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest
from mlserve.model.store import Store
store = Store(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    with store.staging() as folder:
        (folder / "made").mkdir()
        (folder / "made" / MODEL_FILE).write_text(f"{sys.argv[2]} {number}")
        print(store.add(Artifact(folder / "made", Manifest(variant="fp32", inputs=(), outputs=())), "m").ref)
"""


def test_processes_that_add_at_once_each_get_a_version_of_their_own(store):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _ADD, str(store.root), str(number), "10"], stdout=subprocess.PIPE, text=True
        )
        for number in range(4)
    ]
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(ref for output in outputs for ref in output) == sorted(f"m@{number}" for number in range(1, 41))
    for version in store.versions("m"):
        verify(store.get("m", version))
    assert sorted(path.name for path in store.root.iterdir()) == ["m"]


@pytest.mark.parametrize(
    ("ref", "version"), [("m", 2), ("m@", 2), ("m@1", 1), ("m@3", 3), ("m@production", 2), ("m@next", 3)]
)
def test_a_reference_means_a_version_an_alias_or_production(store, ref, version):
    for number in range(3):
        add(store, content=bytes([number]))
    store.promote("m", 2)
    store.promote("m", 3, "next")
    assert store.resolve(ref).manifest.version == version


def test_without_production_a_name_means_its_newest_version(store):
    for number in range(11):
        add(store, content=bytes([number]))
    assert store.resolve("m").manifest.version == 11


@pytest.mark.parametrize("ref", ["m@4", "m@0", "m@01", "m@-1", "m@x", "m@1@1", "m@" + "9" * 5000, "m@٣", "n", "n@1"])
def test_an_unknown_reference_is_refused_with_what_there_is(store, ref):
    add(store)
    store.promote("m", 1, "candidate")
    with pytest.raises(StoreError, match="it has m" if ref.startswith("n") else "it has 1, candidate"):
        store.resolve(ref)


@pytest.mark.parametrize("name", ["", ".m", "-m", "a/b", "../m", "a b", "é", "m" * 129, "a\n", "..", "a\0b"])
def test_a_name_that_is_no_folder_and_no_url_is_refused(store, name):
    with pytest.raises(StoreError, match="cannot be a model's name"):
        check_name(name)
    with pytest.raises(StoreError):
        add(store, name)
    assert store.names() == []
    assert check_name("m" * 128) == "m" * 128


def test_rollback_goes_back_through_every_promotion_and_no_further(store):
    for number in range(3):
        add(store, content=bytes([number]))
    assert [store.promote("m", version) for version in (1, 3, 3, 2)] == [None, 1, 3, 3]
    assert store.rollback("m") == (2, 3)
    assert store.rollback("m") == (3, 1)
    with pytest.raises(StoreError, match="m@production has no earlier version to go back to"):
        store.rollback("m")
    assert store.aliases("m") == {PRODUCTION: 1}


def test_rollback_skips_versions_that_were_deleted(store):
    for number in range(3):
        add(store, content=bytes([number]))
    for version in (1, 2, 3):
        store.promote("m", version)
    shutil.rmtree(store.root / "m" / "2")
    assert store.rollback("m") == (3, 1)


def test_a_promotion_that_was_killed_half_way_does_not_confuse_rollback(store):
    """The history is written first; here the alias itself never followed."""
    for number in range(3):
        add(store, content=bytes([number]))
    store.promote("m", 1)
    store.promote("m", 2)
    (store.root / "m" / "aliases" / ".production.history").write_text("3\n2\n1\n")
    assert store.resolve("m").manifest.version == 2
    assert store.rollback("m") == (2, 1)


@pytest.mark.parametrize("alias", ["", "1", ".x", "a/b", "../x", "x" * 65, "a b"])
def test_an_alias_that_is_no_file_name_or_a_number_is_refused(store, alias):
    add(store)
    with pytest.raises(StoreError, match="is no alias"):
        store.promote("m", 1, alias)
    assert store.aliases("m") == {}


def test_promoting_an_unknown_version_changes_nothing(store):
    add(store)
    store.promote("m", 1)
    with pytest.raises(StoreError, match="has no version or alias '2'"):
        store.promote("m", 2)
    assert store.aliases("m") == {PRODUCTION: 1}


@pytest.mark.parametrize("content", ["", "two", "1\n2", "9" * 5000])
def test_a_damaged_alias_is_named_and_the_advice_mends_it(store, content):
    add(store)
    store.promote("m", 1)
    path = store.root / "m" / "aliases" / PRODUCTION
    path.write_text(content)
    with pytest.raises(StoreError, match="remove it, then promote a version"):
        store.resolve("m")
    path.unlink()
    store.promote("m", 1)
    assert store.resolve("m").ref == "m@1"


def test_a_damaged_history_is_named_and_the_advice_mends_it(store):
    for number in range(2):
        add(store, content=bytes([number]))
        store.promote("m", number + 1)
    path = store.root / "m" / "aliases" / ".production.history"
    path.write_text("two\n")
    with pytest.raises(
        StoreError, match=r"is damaged \(it holds something else than versions\); remove it, then promote m@2 again"
    ):
        store.rollback("m")
    path.unlink()
    store.promote("m", 1)
    assert store.rollback("m") == (1, 2)


def _link(path):
    (path.parent.parent / "elsewhere").write_text("1\n")
    path.symlink_to(path.parent.parent / "elsewhere")


_NO_PLAIN_FILES = [
    pytest.param(os.mkfifo, "is no plain file", id="pipe"),
    pytest.param(os.mkdir, "is no plain file", id="folder"),
    pytest.param(_link, "is a link", id="link"),
    pytest.param(lambda path: path.write_text("1\n" + " " * (1 << 20)), r"has more than \d+ bytes", id="large file"),
]


@pytest.mark.parametrize(("put", "told"), _NO_PLAIN_FILES)
def test_an_alias_that_is_no_small_plain_file_is_named_and_not_waited_for(store, put, told):
    add(store)
    store.promote("m", 1)
    put(store.root / "m" / "aliases" / "next")
    with pytest.raises(StoreError, match=f"aliases/next cannot be read: .*{told}; remove it, then promote a version"):
        store.aliases("m")


@pytest.mark.parametrize(("put", "told"), _NO_PLAIN_FILES)
def test_a_history_that_is_no_small_plain_file_is_named_and_not_waited_for(store, put, told):
    for number in range(2):
        add(store, content=bytes([number]))
        store.promote("m", number + 1)
    path = store.root / "m" / "aliases" / ".production.history"
    path.unlink()
    put(path)
    with pytest.raises(StoreError, match=rf"is damaged \(.*{told}\); remove it, then promote m@2 again"):
        store.rollback("m")


def test_a_copy_of_the_store_made_of_hard_links_leaves_its_aliases_readable(store):
    add(store)
    store.promote("m", 1)
    for path in (store.root / "m" / "aliases").iterdir():
        os.link(path, store.root / path.name)
    assert store.aliases("m") == {PRODUCTION: 1}
    with pytest.raises(StoreError, match="no earlier version"):
        store.rollback("m")


def _change(version):
    (version / MODEL_FILE).write_bytes(b"modeL")


def _shorten(version):
    (version / MODEL_FILE).write_bytes(b"mode")


def _remove(version):
    (version / MODEL_FILE).unlink()


def _add_file(version):
    (version / "sub").mkdir()
    (version / "sub" / "extra.bin").write_bytes(b"x")


def _link(version):
    (version / MODEL_FILE).rename(version.parent / "elsewhere")
    (version / MODEL_FILE).symlink_to(version.parent / "elsewhere")


def _dangling_link(version):
    (version / "extra").symlink_to("/nowhere")


@pytest.mark.parametrize(
    ("tamper", "fault"),
    [
        (_change, "model.onnx was changed"),
        (_shorten, "model.onnx was changed"),
        (_remove, "model.onnx is missing"),
        (_add_file, "sub/extra.bin is not in the manifest"),
        (_link, "model.onnx is a link"),
        (_dangling_link, "extra is not in the manifest"),
    ],
)
def test_a_version_that_is_not_as_published_is_found_out(store, tamper, fault):
    artifact = add(store)
    verify(artifact)
    tamper(artifact.directory)
    with pytest.raises(StoreError, match=f"m@1 does not match its manifest: {fault}"):
        verify(artifact)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged"),
        (b"{}", "is damaged"),
        (b'{"format_version": 1}', "is damaged"),
        (b'{"format_version": 2}', "has format 2, this mlserve reads 1"),
        (b"\xff", "is damaged"),
        (None, "cannot be read: No such file or directory; the version is incomplete"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_named(store, content, message):
    artifact = add(store)
    path = artifact.directory / "manifest.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreError, match=message):
        store.get("m", 1)


def test_a_store_that_cannot_be_written_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"")
    store = Store(file / "store")
    with (
        pytest.raises(StoreError, match="cannot be written: Not a directory; choose another with --store"),
        store.staging(),
    ):
        pass


def test_a_name_taken_by_a_file_is_an_error_not_a_traceback(store):
    store.root.mkdir()
    (store.root / "m").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be written"):
        add(store)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_alias_that_cannot_be_written_is_an_error_not_a_traceback(store):
    artifact = add(store)
    artifact.directory.parent.chmod(0o555)
    with pytest.raises(StoreError, match="cannot be written"):
        store.promote("m", 1)
    artifact.directory.parent.chmod(0o755)
    store.promote("m", 1)


class Aliases(RuleBasedStateMachine):
    """The store against a list: whatever the order of promotions and rollbacks, both agree."""

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.store = Store(self.root)
        for number in range(3):
            add(self.store, content=bytes([number]))
        self.history = []

    @rule(version=st.integers(1, 3))
    def promote(self, version):
        previous = self.store.promote("m", version)
        assert previous == (self.history[0] if self.history else None)
        if previous != version:
            self.history.insert(0, version)

    @precondition(lambda self: len(self.history) > 1)
    @rule()
    def rollback(self):
        assert self.store.rollback("m") == (self.history.pop(0), self.history[0])

    @precondition(lambda self: len(self.history) < 2)
    @rule()
    def refuse_rollback(self):
        with pytest.raises(StoreError):
            self.store.rollback("m")

    @invariant()
    def production_is_the_newest_of_the_history(self):
        assert self.store.resolve("m").manifest.version == (self.history[0] if self.history else 3)

    def teardown(self):
        shutil.rmtree(self.root)


Aliases.TestCase.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)
test_aliases_follow_promotions_and_rollbacks = Aliases.TestCase
