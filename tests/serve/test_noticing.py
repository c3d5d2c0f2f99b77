"""A change of the store is noticed at once, whichever it is; nothing else is taken for one."""

import asyncio
import sys

import pytest

from mlserve.serve.versions.noticing import notice_changes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells; elsewhere the store is looked at")

_SOON_S = 2.0


def _noticed(root, *changes):
    """How many of the changes, made one after the other, each woke somebody within the time."""

    async def play():
        woken = asyncio.Event()
        task = asyncio.create_task(notice_changes(root, woken.set))
        await asyncio.sleep(0.05)
        count = 0
        for change in changes:
            woken.clear()
            change()
            try:
                await asyncio.wait_for(woken.wait(), _SOON_S)
            except TimeoutError:
                break
            await asyncio.sleep(0.05)  # what one change does in several steps belongs to it
            count += 1
        woken.clear()
        await asyncio.sleep(0.1)
        quiet = not woken.is_set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return count, quiet

    return asyncio.run(play())


def test_a_new_version_an_alias_and_what_comes_to_a_new_name_are_noticed(tmp_path):
    root = tmp_path / "store"
    (root / "old" / "1").mkdir(parents=True)
    (root / "old" / "aliases").mkdir()

    def move_alias():
        (root / "old" / "aliases" / ".new").write_text("1\n")
        (root / "old" / "aliases" / ".new").rename(root / "old" / "aliases" / "production")

    def publish_version():
        (root / ".staging-x").mkdir()
        (root / ".staging-x").rename(root / "old" / "2")

    changes = [
        move_alias,
        publish_version,
        (root / "new").mkdir,
        (root / "new" / "1").mkdir,
        (root / "new" / "aliases").mkdir,
        (root / "new" / "aliases" / "candidate").touch,
        (root / "old" / "2").rmdir,
    ]
    assert _noticed(root, *changes) == (len(changes), True)


def test_a_folder_that_was_made_anew_is_watched_again(tmp_path):
    root = tmp_path / "store"
    (root / "m").mkdir(parents=True)
    changes = [(root / "m").rmdir, (root / "m").mkdir, (root / "m" / "1").mkdir]
    assert _noticed(root, *changes) == (3, True)


def test_what_is_written_inside_a_version_wakes_nobody(tmp_path):
    root = tmp_path / "store"
    (root / "m" / "1").mkdir(parents=True)
    assert _noticed(root, (root / "m" / "1" / "model.onnx").touch) == (0, True)


def test_without_a_store_nothing_breaks(tmp_path):
    assert _noticed(tmp_path / "none") == (0, True)
