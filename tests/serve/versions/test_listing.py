"""What a store holds, looked at again and again while others write into it."""

import os
import shutil
import threading

import pytest

from mlserve.model.artifact import MANIFEST
from mlserve.serve.versions.listing import StoreListing, fingerprint


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def store(tmp_path):
    root = tmp_path / "store"
    for version in (1, 2):
        add(root, "m", version)
    return root


def add(root, name, version):
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text("{}")


def point(root, name, alias, version):
    folder = root / name / "aliases"
    folder.mkdir(exist_ok=True)
    (folder / f".{alias}").write_text(f"{version}\n")
    (folder / f".{alias}").rename(folder / alias)


def replace_by_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def versions_of(found):
    return {name: sorted(known.versions) for name, known in found.items()}


def test_versions_and_aliases_are_seen_as_they_come_and_go(store):
    listing = StoreListing(store)
    assert versions_of(listing.look()) == {"m": ["1", "2"]}
    add(store, "m", 3)
    add(store, "other", 1)
    point(store, "m", "production", 1)
    found = listing.look()
    assert versions_of(found) == {"m": ["1", "2", "3"], "other": ["1"]}
    assert found["m"].aliases == {"production": "1"}
    shutil.rmtree(store / "m" / "2")
    shutil.rmtree(store / "other")
    point(store, "m", "production", 3)
    found = listing.look()
    assert versions_of(found) == {"m": ["1", "3"]}
    assert found["m"].aliases == {"production": "3"}
    assert versions_of(listing.look(["other", "m"])) == {"m": ["1", "3"]}


def test_an_alias_is_not_seen_before_the_version_it_was_pointed_at(store):
    listing, published, stop = StoreListing(store), [2], threading.Event()

    def publish():
        while not stop.is_set() and published[-1] < 500:
            published.append(published[-1] + 1)
            add(store, "m", published[-1])
            point(store, "m", "production", published[-1])
            shutil.rmtree(store / "m" / str(published[-1] - 100), ignore_errors=True)

    point(store, "m", "production", 2)
    writer = threading.Thread(target=publish)
    writer.start()
    try:
        while writer.is_alive():
            known = listing.look()["m"]
            assert int(known.aliases["production"]) <= max(map(int, known.versions))
    finally:
        stop.set()
        writer.join()
    assert published[-1] == 500


def test_a_folder_that_comes_and_goes_has_a_fingerprint(tmp_path):
    stop, folder = threading.Event(), tmp_path / "1"
    made = fingerprint(folder)

    def come_and_go():
        while not stop.is_set():
            for name in ("a", "b/c"):
                (folder / name).mkdir(parents=True)
            shutil.rmtree(folder)

    writer = threading.Thread(target=come_and_go)
    writer.start()
    try:
        assert len({fingerprint(folder) for _ in range(2000)} | {made}) > 1
    finally:
        stop.set()
        writer.join()


def test_a_version_is_seen_when_its_manifest_comes_and_staging_folders_never(store):
    listing, folder = StoreListing(store), store / "m" / "3"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"half")
    (store / ".staging-1234").mkdir()
    assert versions_of(listing.look()) == {"m": ["1", "2"]}
    (folder / MANIFEST).write_text("{}")
    assert versions_of(listing.look()) == {"m": ["1", "2", "3"]}


def test_a_name_is_read_again_only_a_moment_after_a_change_and_when_it_changes(store):
    clock = Clock()
    listing = StoreListing(store, clock)
    first = listing.look()["m"]
    second = listing.look()["m"]
    assert second is not first  # stamps may be equal though something changed a moment ago
    clock.now_s = 10.0
    assert listing.look()["m"] is second
    add(store, "m", 3)
    assert versions_of(listing.look()) == {"m": ["1", "2", "3"]}


def test_another_version_in_the_place_of_one_has_another_mark(store):
    listing = StoreListing(store)
    before = listing.look()["m"].versions["2"]
    shutil.rmtree(store / "m" / "2")
    (store / "m" / "2").mkdir()
    (store / "m" / "2" / MANIFEST).write_text("{ }")
    after = listing.look()["m"].versions["2"]
    assert before.path == after.path
    assert before.mark != after.mark


@pytest.mark.parametrize(
    "damage", [lambda path: path.write_text("not a number"), replace_by_a_pipe], ids=["words", "pipe"]
)
def test_a_damaged_alias_leaves_the_name_as_it_was_and_is_told_once(store, caplog, damage):
    point(store, "m", "production", 1)
    listing = StoreListing(store)
    assert listing.look()["m"].aliases == {"production": "1"}
    damage(store / "m" / "aliases" / "production")
    for _ in range(3):
        assert listing.look()["m"].aliases == {"production": "1"}
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "the store's model m stays as it was"
    ]
    point(store, "m", "production", 2)
    assert listing.look()["m"].aliases == {"production": "2"}


def test_a_store_that_is_not_there_holds_nothing(tmp_path):
    assert StoreListing(tmp_path / "nowhere").look() == {}
    assert StoreListing(tmp_path / "nowhere").look(["m", "..", "a/b"]) == {}


def test_a_fingerprint_changes_with_any_file(store):
    folder = store / "m" / "1"
    before = fingerprint(folder)
    assert fingerprint(folder) == before
    (folder / "weights.bin").write_bytes(b"")
    assert fingerprint(folder) != before
    assert fingerprint(store / "nothing") == fingerprint(store / "nothing")
