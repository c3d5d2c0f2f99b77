"""Work that was stopped goes on; work that ended leaves nothing."""

import os
import time

import pytest

from mlserve.errors import Refused
from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest
from mlserve.optimize.unfinished import content_key, unfinished_work


def made(folder, content: bytes = b"weights") -> Artifact:
    folder.mkdir(parents=True)
    (folder / MODEL_FILE).write_bytes(content)
    return Artifact(folder, Manifest(variant="int8", inputs=(), outputs=()))


def end_with(ending: BaseException, tmp_path) -> None:
    """Keeps one variant, then ends as told."""
    with unfinished_work(tmp_path / "store", "key") as unfinished:
        unfinished.keep("int8", made(tmp_path / "staging"))
        raise ending


def stop_after_keeping(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        end_with(KeyboardInterrupt(), tmp_path)


def test_what_was_finished_before_a_stop_is_found_again(tmp_path):
    stop_after_keeping(tmp_path)
    with unfinished_work(tmp_path / "store", "key") as unfinished:
        kept = unfinished.kept("int8")
        assert kept is not None
        assert kept.manifest.variant == "int8"
        assert kept.model_path.read_bytes() == b"weights"
        assert unfinished.kept("other") is None
    assert not list((tmp_path / "store").iterdir())


def test_other_work_does_not_find_it(tmp_path):
    stop_after_keeping(tmp_path)
    with unfinished_work(tmp_path / "store", "another") as unfinished:
        assert unfinished.kept("int8") is None


def test_an_error_that_would_come_again_leaves_nothing(tmp_path):
    with pytest.raises(Refused):
        end_with(Refused("no"), tmp_path)
    assert not list((tmp_path / "store").iterdir())


def test_a_stop_before_anything_was_finished_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), unfinished_work(tmp_path / "store", "key"):
        raise KeyboardInterrupt
    assert not list((tmp_path / "store").iterdir())


def test_two_at_the_same_work_do_not_share_a_folder(tmp_path):
    with unfinished_work(tmp_path / "store", "key") as one, unfinished_work(tmp_path / "store", "key") as other:
        one.keep("int8", made(tmp_path / "staging"))
        assert other.kept("int8") is None
        assert one.kept("int8") is not None


def test_a_damaged_leftover_is_made_again(tmp_path):
    stop_after_keeping(tmp_path)
    (tmp_path / "store" / ".unfinished" / "key" / "int8" / "manifest.json").write_bytes(b"\xff")
    with unfinished_work(tmp_path / "store", "key") as unfinished:
        assert unfinished.kept("int8") is None
        unfinished.keep("int8", made(tmp_path / "again"))
        assert unfinished.kept("int8") is not None


@pytest.mark.parametrize("days", [1, 30])
def test_what_nobody_went_on_with_is_forgotten_after_two_weeks(tmp_path, days):
    stop_after_keeping(tmp_path)
    folder = tmp_path / "store" / ".unfinished" / "key"
    then_s = time.time() - days * 24 * 3600
    os.utime(folder, (then_s, then_s))
    with unfinished_work(tmp_path / "store", "another"):
        assert folder.exists() == (days == 1)


def test_a_key_is_the_content_not_the_place(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "weights").write_bytes(b"same")
    assert content_key(one, "x") == content_key(other, "x")
    assert content_key(one / "weights") == content_key(other / "weights")
    assert content_key(one, "x") != content_key(one, "y")
    (other / "weights").write_bytes(b"else")
    assert content_key(one, "x") != content_key(other, "x")
