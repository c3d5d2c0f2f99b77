"""API keys on disk: what is kept, what is refused, and how a change is noticed."""

import json
import logging
import os
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mlserve.errors import Forbidden, Unauthenticated, UsageError
from mlserve.serve.access import Access, digest
from mlserve.serve.followed_file import LastGood
from mlserve.serve.keys import KeyFile, add_key, new_key, read_keys, remove_key


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


def record(**changes):
    return {"name": "ci", "sha256": "a" * 64, "scopes": ["infer"], "expires_at": "", **changes}


def write(path, *records, version=1):
    path.write_text(json.dumps({"format_version": version, "keys": list(records)}))


def test_a_key_is_random_and_only_its_hash_is_kept(path):
    made = [new_key(f"k{number}", ["infer"]) for number in range(50)]
    assert len({new.secret for new in made}) == 50
    assert all(len(new.secret) == 43 for new in made)  # 256 bits in base64
    for new in made:
        add_key(path, new.key)
    content = path.read_text()
    assert not any(new.secret in content for new in made)
    assert [key.sha256 for key in read_keys(path)] == [digest(new.secret.encode()) for new in made]


def test_only_the_owner_may_read_a_new_file_and_a_change_keeps_its_mode(path):
    add_key(path, new_key("a", ["infer"]).key)
    for mode in (0o600, 0o640, 0o644):
        path.chmod(mode)
        add_key(path, new_key(f"k{mode}", ["infer"]).key)
        remove_key(path, f"k{mode}")
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert [each.name for each in path.parent.iterdir()] == ["keys.json"]


AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
SERVER, GROUP, OTHER = 61001, 61002, 61003


@AS_ROOT
def test_a_change_by_root_keeps_the_owner_so_that_the_server_sees_a_key_revoked(path):
    for name in ("a", "leaked"):
        add_key(path, new_key(name, ["infer"]).key)
    os.chown(path, SERVER, GROUP)
    path.chmod(0o640)
    remove_key(path, "leaked")
    add_key(path, new_key("b", ["infer"]).key)
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (SERVER, GROUP, 0o640)


@AS_ROOT
def test_who_cannot_keep_the_owner_changes_nothing():
    with tempfile.TemporaryDirectory() as folder:  # another user does not get into those of pytest
        path = Path(folder) / "keys.json"
        add_key(path, new_key("leaked", ["infer"]).key)
        os.chown(path, SERVER, GROUP)
        path.chmod(0o644)
        os.chown(folder, OTHER, OTHER)
        before = path.read_bytes(), path.stat()
        os.seteuid(OTHER)
        try:
            with pytest.raises(UsageError, match=f"user {SERVER} and group {GROUP}.*nothing was changed: run"):
                remove_key(path, "leaked")
        finally:
            os.seteuid(0)
        assert (path.read_bytes(), path.stat()) == before
        assert [each.name for each in path.parent.iterdir()] == ["keys.json"]


def test_a_link_to_the_file_stays_a_link(path, tmp_path):
    link = tmp_path / "link.json"
    link.symlink_to(path)
    add_key(link, new_key("a", ["infer"]).key)
    assert link.is_symlink()
    assert [key.name for key in read_keys(path)] == ["a"]


def test_no_key_is_lost_when_several_are_made_at_once(path):
    names = [f"k{number}" for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: add_key(path, new_key(name, ["infer"]).key), names))
    assert sorted(key.name for key in read_keys(path)) == sorted(names)


def test_a_key_that_is_made_is_one_that_the_server_knows(path):
    made = new_key("ci", ["infer", "metadata", "infer"], (datetime.now(UTC) + timedelta(days=1)).isoformat())
    add_key(path, made.key)
    access = Access(read_keys(path))
    access.check("infer", b"Bearer " + made.secret.encode())
    access.check("metadata", made.secret.encode())
    with pytest.raises(Forbidden):
        access.check("admin", made.secret.encode())
    with pytest.raises(Unauthenticated):
        access.check("infer", digest(made.secret.encode()).encode())  # the hash is no key
    remove_key(path, "ci")
    access.replace(read_keys(path))
    with pytest.raises(Unauthenticated):
        access.check("infer", made.secret.encode())


def test_a_name_is_taken_once_and_must_be_there_to_be_revoked(path):
    with pytest.raises(UsageError, match="cannot be read"):
        remove_key(path, "ci")
    assert not path.exists()
    add_key(path, new_key("ci", ["infer"]).key)
    with pytest.raises(UsageError, match="has a key 'ci' already"):
        add_key(path, new_key("ci", ["admin"]).key)
    with pytest.raises(UsageError, match="no key 'cd'; it has: ci"):
        remove_key(path, "cd")
    assert [key.scopes for key in read_keys(path)] == [{"infer"}]


@pytest.mark.parametrize(
    ("name", "scopes", "expires_at", "message"),
    [
        ("ci", ["infer", "everything"], "", "has the scope 'everything'; use infer, metadata, admin, metrics"),
        ("ci", [], "", "has no scope"),
        ("a b", ["infer"], "", "a key's name"),
        ("", ["infer"], "", "a key's name"),
        ("ci", ["infer"], "2027-01-31", "no time with a zone"),
        ("ci", ["infer"], "soon", "no time with a zone"),
        ("ci", ["infer"], "0001-01-01T00:00:00+23:00", "no time with a zone"),
    ],
)
def test_a_key_that_makes_no_sense_is_not_made(name, scopes, expires_at, message):
    with pytest.raises(UsageError, match=message):
        new_key(name, scopes, expires_at)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no keys file"),
        ("[]", "is no keys file"),
        ("{", "is no keys file"),
        ('{"format_version": 1, "keys": {}}', "is no keys file"),
        ('{"format_version": 2, "keys": []}', "format version 2"),
    ],
)
def test_what_is_no_keys_file_is_refused(path, content, message):
    path.write_text(content)
    with pytest.raises(UsageError, match=message) as refused:
        read_keys(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (record(scopes=["root"]), "key 'ci' has the scope 'root'"),
        (record(scopes="infer"), "key 'ci' cannot be read"),
        (record(scopes=[["infer"]]), "key 'ci' has the scope"),
        (record(sha256="b" * 63), "key 'ci' has no SHA-256"),
        (record(sha256="B" * 64), "key 'ci' has no SHA-256"),
        (record(sha256=7), "key 'ci' cannot be read"),
        (record(expires_at="2027-01-31T00:00:00"), "key 'ci' expires at '2027-01-31T00:00:00'"),
        (record(expires_at=None), "key 'ci' cannot be read"),
        (record(name=None), "key number 2 cannot be read"),
        (record(name="other"), "two keys named 'other'"),
        ({"name": "ci", "scopes": ["infer"]}, "key 'ci' cannot be read"),
    ],
)
def test_a_bad_entry_is_named_and_its_hash_is_not_told(path, bad, message):
    write(path, record(name="other", sha256="c" * 64), bad)
    with pytest.raises(UsageError, match=message) as refused:
        read_keys(path)
    assert str(path) in str(refused.value)
    assert all(letter * 20 not in str(refused.value) for letter in "abcB")


def test_a_missing_file_is_refused_at_the_start(path):
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        KeyFile(path).read()


def test_a_change_is_told_once(path):
    add_key(path, new_key("a", ["infer"]).key)
    file = KeyFile(path)
    assert [key.name for key in file.read()] == ["a"]
    assert file.changed() is None
    add_key(path, new_key("b", ["infer"]).key)
    assert [key.name for key in file.changed()] == ["a", "b"]
    assert file.changed() is None
    remove_key(path, "a")
    remove_key(path, "b")
    assert file.changed() == []


@pytest.mark.parametrize(
    "damage", [lambda path: path.write_text("{"), os.unlink, lambda path: write(path, record(scopes=["x"]))]
)
def test_a_damaged_file_changes_nothing_and_is_told_once(path, damage, caplog):
    add_key(path, new_key("a", ["infer"]).key)
    file = KeyFile(path)
    file.read()
    damage(path)
    with caplog.at_level(logging.WARNING, "mlserve.serve"):
        assert file.changed() is None
        assert file.changed() is None
    (told,) = caplog.messages
    assert told.startswith("the keys stay as they were")
    assert str(path) in told
    path.unlink(missing_ok=True)
    add_key(path, new_key("b", ["infer"]).key)
    assert [key.name for key in file.changed()] == ["b"]


DAMAGES = [lambda path: path.write_text("{"), os.unlink]


@pytest.mark.parametrize("damage", DAMAGES, ids=["damaged", "gone"])
def test_a_worker_that_takes_anothers_place_begins_with_what_was_last_good(path, damage, caplog):
    add_key(path, new_key("revoked", ["infer"]).key)
    good = LastGood.within(str(path.parent), "keys")
    before = KeyFile(path)
    before.begin(good, resumes=False)
    remove_key(path, "revoked")
    add_key(path, new_key("a", ["infer"]).key)
    before.changed()
    damage(path)
    before.changed()
    with pytest.raises(UsageError, match=r"cannot be read|is no keys file"):
        KeyFile(path).begin(good, resumes=False)
    caplog.clear()
    successor = KeyFile(path)
    assert [key.name for key in successor.begin(good, resumes=True)] == ["a"]
    assert successor.changed() is None
    (told,) = caplog.messages
    assert told.startswith("the keys stay as they were")
    path.unlink(missing_ok=True)
    add_key(path, new_key("b", ["infer"]).key)
    assert [key.name for key in successor.changed()] == ["b"]


def test_what_is_kept_is_for_the_servers_user_alone_and_goes_where_it_cannot_be_renewed(path, caplog):
    good = LastGood.within(str(path.parent), "keys")
    kept = path.parent / "good-keys"
    assert good.read() is None
    good.keep(b"first")
    assert (good.read(), stat.S_IMODE(kept.stat().st_mode)) == (b"first", 0o600)
    blocking = path.parent / f".good-keys.{os.getpid()}.partial"
    blocking.mkdir()  # as a full disk would
    good.keep(b"second")
    assert good.read() is None  # the first may know a key that the second did not
    assert "cannot be kept" in caplog.text
    blocking.rmdir()
    good.keep(b"third")
    assert good.read() == b"third"
    assert not blocking.exists()
