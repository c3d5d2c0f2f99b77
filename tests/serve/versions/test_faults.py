"""Versions that are half written, damaged or missing, stores that go away, workers that die: what was served stays."""

import json
import re
import shutil
import time

import psutil
import pytest

from mlserve.model.artifact import MANIFEST


@pytest.fixture(scope="module")
def shared(serving, scaling_of, tmp_path_factory):
    """`(root, server)`: two workers that serve all of a store, in which one model is touched by no test."""
    root = tmp_path_factory.mktemp("shared") / "store"
    scaling_of(root, "untouched").publish()
    with serving("--store", root, "--workers", 2) as server:
        yield root, server


@pytest.fixture
def server(shared):
    return shared[1]


@pytest.fixture
def model(shared, scaling_of, request, scale_everywhere):
    """A model of the shared store for this test alone, with version 1 promoted and served."""
    made = scaling_of(shared[0], re.sub(r"[^a-z0-9]+", "-", request.node.name)[-40:].strip("-"))
    made.publish()
    made.promote(1)
    scale_everywhere(made.name, 10)
    yield made
    scale_everywhere("untouched", 10)


@pytest.fixture
def scale_everywhere(shared, everywhere, scale_of):
    """`scale_everywhere(path, answer)`: waits until all workers answer so."""
    return lambda path, answer: everywhere(lambda: scale_of(shared[1], path), answer)


def copy_slowly(made, folder, order):
    """As `cp -r` over a slow line: file by file, each in pieces."""
    folder.mkdir()
    for path in sorted(made.iterdir(), key=order):
        content = path.read_bytes()
        step = len(content) // 4 + 1
        with (folder / path.name).open("wb") as file:
            for start in range(0, len(content), step):
                file.write(content[start : start + step])
                file.flush()
                time.sleep(0.12)


@pytest.mark.parametrize("first", ["manifest.json", "model.onnx"])
def test_a_half_written_version_is_never_served_and_a_finished_one_is(
    server, model, steady_load, scale_everywhere, first
):
    made, folder = model.folder / ".made", model.folder / "2"
    model.publish()
    folder.rename(made)
    model.promote(1)
    with steady_load(server, ["", "1"], model.name) as load:
        copy_slowly(made, folder, lambda path: path.name != first)
        scale_everywhere(f"{model.name}/versions/2", 20)
    assert (load.lost, load.wrong) == ([], [])
    assert set(load.answers) == {"1"}
    path = f"{model.name}@2"
    assert f"{path} cannot be loaded: {path} does not match its manifest" in server.log or first == "model.onnx"


def change_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def make_newer(path):
    manifest = path.with_name(MANIFEST)
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": 99}))


def cut_manifest(path):
    manifest = path.with_name(MANIFEST)
    manifest.write_text(manifest.read_text()[:100])


# What is done to a version, given its model file, and what the index says of it.
DAMAGES = {
    "changed": (change_a_byte, "model.onnx was changed"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:40]), "model.onnx was changed"),
    "empty": (lambda path: path.write_bytes(b""), "model.onnx was changed"),
    "missing": (lambda path: path.unlink(), "model.onnx is missing"),
    "extra": (lambda path: path.with_name("more.bin").write_bytes(b"1"), "more.bin is not in the manifest"),
    "newer": (make_newer, "has format 99, this mlserve reads 1"),
    "cut manifest": (cut_manifest, "manifest.json is damaged"),
}


def publish_damaged(model, how):
    """Publishes version 2, damaged before anybody sees it; what the index will say, and what mends it."""
    good, bad, folder = (model.folder / each for each in (".good", ".bad", "2"))
    model.publish()
    folder.rename(good)
    shutil.copytree(good, bad)
    do, told = DAMAGES[how]
    do(bad / "model.onnx")
    bad.rename(folder)

    def mend():
        shutil.rmtree(folder)
        good.rename(folder)

    return told, mend


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_version_is_refused_the_old_one_serves_and_a_mended_one_is_taken(
    shared, server, model, scale_everywhere, until, index_of, scale_of, how
):
    told, mend = publish_damaged(model, how)
    (model.folder / "aliases" / "production").write_text("2\n")

    def refused():
        state, reason = index_of(server).get((model.name, "2"), ("", ""))
        return reason if state == "UNAVAILABLE" else ""

    reason = until(refused)
    assert told in reason
    assert "/" not in reason
    assert [scale_of(server, path) for path in (model.name, f"{model.name}/versions/production")] == [10, 10]
    assert server.request("GET", "/v2/health/ready")[0] == 200
    assert server.request("GET", f"/v2/models/{model.name}/versions/2/ready")[0] == 404
    mend()
    for path in (f"{model.name}/versions/2", f"{model.name}/versions/production", model.name):
        scale_everywhere(path, 20)
    assert 1 <= server.log.count(f"{model.name}@2 cannot be loaded") <= 4  # told once or twice a worker


def test_an_alias_of_a_version_that_is_not_there_goes_on_meaning_the_old_one(
    server, model, until, index_of, scale_of, scale_everywhere
):
    alias, path = model.folder / "aliases" / "production", f"{model.name}/versions/production"
    alias.write_text("7\n")
    told = ("UNAVAILABLE", "the alias 'production' means it, but the store does not have it")
    until(lambda: index_of(server).get((model.name, "7")) == told)
    assert [scale_of(server, model.name), scale_of(server, path)] == [10, 10]
    alias.write_text("not a version\n")
    until(lambda: f"the store's model {model.name} stays as it was" in server.log)
    assert [scale_of(server, model.name), scale_of(server, path)] == [10, 10]
    model.publish()
    alias.write_text("2\n")
    scale_everywhere(path, 20)


def test_models_that_are_removed_and_added_are_followed(model, scale_everywhere):
    shutil.rmtree(model.folder)
    scale_everywhere(model.name, 404)
    model.publish()
    scale_everywhere(model.name, 10)


def test_a_store_that_goes_away_and_comes_back_interrupts_nothing(server, model, steady_load, scale_everywhere, until):
    away = model.root.with_name("away")
    with steady_load(server, ["", "1", "production"], model.name) as load:
        model.root.rename(away)
        until(lambda: "the store holds no model any more; what is served stays as it is" in server.log)
        model.root.mkdir()  # a mount point with nothing mounted
        time.sleep(0.5)
        model.root.rmdir()
        away.rename(model.root)
        model.publish()
        model.promote(2)
        scale_everywhere(model.name, 20)
    assert (load.lost, load.wrong) == ([], [])


def test_a_worker_killed_during_a_swap_comes_back_with_the_new_state(server, model, scale_everywhere, until):
    model.publish()
    model.publish()
    model.promote(3)
    killed = server.workers[0]
    psutil.Process(killed).kill()
    until(lambda: not psutil.pid_exists(killed))  # until then it may have the port
    scale_everywhere(model.name, 30)
    until(lambda: f"worker {killed} ended" in server.log)
    until(lambda: server.counted("mlserve_model_loaded", model=model.name) == 6)
    scale_everywhere(model.name, 30)


def test_clients_may_load_and_unload_nothing_where_the_store_decides(server):
    for what in ("load", "unload"):
        status, _, body = server.request("POST", f"/v2/repository/models/untouched/{what}", b"{}")
        assert (status, b"explicit model load / unload is not allowed" in body) == (403, True)


# At the start


def test_what_loads_is_served_unless_what_does_not_was_named(serving, mlserve, scaling, index_of, scale_of):
    publish_damaged(scaling, "changed")
    with serving("--store", scaling.root) as server:
        assert index_of(server)["m", "1"] == ("READY", "")
        state, reason = index_of(server)["m", "2"]
        assert (state, "model.onnx was changed" in reason) == ("UNAVAILABLE", True)
        assert scale_of(server) == 10
    ended = mlserve("serve", "m@2", "--store", scaling.root, "--http-port", 0, "--grpc-port", 0)
    assert ended.returncode == 2
    assert "m@2 does not match its manifest: model.onnx was changed" in " ".join(ended.stderr.split())
