"""Clients that load and unload over the network: every worker does it, and the last command wins."""

import concurrent.futures
import json
import random
from contextlib import contextmanager

import psutil
import pytest


@pytest.fixture(scope="module")
def explicit(serving, scaling_of, tmp_path_factory):
    """`with explicit(REFERENCES..., workers=N) as (server, model)`: its clients choose what of its store is served.

    `model(name)` is one of the store, with version 1.
    """

    @contextmanager
    def start(*references, workers):
        root = tmp_path_factory.mktemp("explicit") / "store"

        def model(name):
            made = scaling_of(root, name)
            made.publish()
            return made

        for name in ("first", *references):
            model(name).promote(1)
        with serving("--store", root, "--model-control", "explicit", "--workers", workers, *references) as server:
            yield server, model

    return start


@pytest.fixture(scope="module")
def pair(explicit, scale_of, index_of):
    """Two workers that started with nothing."""
    with explicit(workers=2) as (server, model):
        assert scale_of(server, "first") == 404
        assert index_of(server) == {("first", "1"): ("UNAVAILABLE", "unloaded")}
        yield server, model


@pytest.fixture(scope="module")
def one(explicit):
    """One worker that started with the model `named`."""
    with explicit("named", workers=1) as started:
        yield started


def change(server, what, name):
    status, _, body = server.request("POST", f"/v2/repository/models/{name}/{what}", b"{}")
    return status, json.loads(body or b"{}")


def test_the_server_starts_with_nothing_and_clients_load_and_unload(pair, scale_of, index_of, until):
    server, model = pair
    model("m")
    until(lambda: index_of(server).get(("m", "1")) == ("UNAVAILABLE", "unloaded"))
    assert scale_of(server) == 404
    for _ in range(3):
        assert change(server, "load", "m") == (200, {})
        assert [scale_of(server) for _ in range(8)] == [10] * 8  # both workers, at once
        assert change(server, "unload", "m") == (200, {})
        assert [scale_of(server) for _ in range(8)] == [404] * 8
    assert change(server, "unload", "m") == (200, {})


def test_it_starts_with_the_named_models_and_follows_their_alias(one, scaling_of, everywhere, scale_of):
    server, model = one
    root = model("other").root
    assert [scale_of(server, "named"), scale_of(server, "other")] == [10, 404]
    assert change(server, "load", "other") == (200, {})
    assert [scale_of(server, "named"), scale_of(server, "other")] == [10, 10]
    named = scaling_of(root, "named")
    named.publish()
    named.promote(2)
    everywhere(lambda: scale_of(server, "named"), 20)


def test_what_cannot_be_loaded_says_why_and_what_was_served_stays(pair, scale_of, index_of):
    server, model = pair
    spoiled = model("spoiled")
    spoiled.promote(1)
    assert change(server, "load", "spoiled") == (200, {})
    status, answer = change(server, "load", "nobody")
    assert status == 404
    assert "failed to load 'nobody', failed to poll from model repository" in answer["error"]
    spoiled.publish()
    spoiled.model_file(2).write_bytes(b"damaged")
    spoiled.promote(2)
    status, answer = change(server, "load", "spoiled")
    assert status == 400
    told = "failed to load 'spoiled': spoiled@2 does not match its manifest: model.onnx was changed"
    assert answer["error"].startswith(told)
    assert "/" not in answer["error"]
    assert [scale_of(server, "spoiled") for _ in range(6)] == [10] * 6
    assert index_of(server)["spoiled", "2"][0] == "UNAVAILABLE"


def test_parallel_loads_and_unloads_of_one_model_end_as_the_last_command_says(pair, scale_of):
    server, model = pair
    model("hurried")
    rng = random.Random(0)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(change, server, rng.choice(["load", "unload"]), "hurried") for _ in range(32)]
        assert [each.result()[0] for each in asked] == [200] * 32
    for what, expected in (("load", 10), ("unload", 404), ("load", 10)):
        assert change(server, what, "hurried")[0] == 200
        assert [scale_of(server, "hurried") for _ in range(8)] == [expected] * 8


def test_a_worker_that_comes_back_serves_what_clients_asked_for(pair, scale_of, everywhere, until):
    server, model = pair
    for name in ("loaded", "unloaded"):
        model(name)
        assert change(server, "load", name)[0] == 200
    assert change(server, "unload", "unloaded")[0] == 200
    psutil.Process(server.workers[0]).kill()
    until(lambda: "another takes its place" in server.log)
    until(lambda: server.counted("mlserve_model_loaded", model="loaded") == 2)
    everywhere(lambda: (scale_of(server, "loaded"), scale_of(server, "unloaded")), (10, 404))


def test_memory_is_freed_when_models_are_unloaded(one, scale_of, until, index_of):
    server, model = one
    large_bytes = 2 * (16 << 20)
    model("small").publish("large", layers=2)
    worker = psutil.Process(server.workers[0])
    # With more arenas it depends on which of them a layer lies in, and shows in one of ten unloads.
    assert worker.environ()["MALLOC_ARENA_MAX"] == "1"

    def cycle():
        assert change(server, "load", "large")[0] == 200
        assert scale_of(server, "large") == 10
        loaded_bytes = worker.memory_info().rss
        assert change(server, "unload", "large")[0] == 200
        until(lambda: index_of(server)["large", "1"] == ("UNAVAILABLE", "unloaded"))
        unloaded_bytes = worker.memory_info().rss
        assert loaded_bytes - unloaded_bytes > 0.75 * large_bytes
        return unloaded_bytes

    # A leak would add a model a cycle, and what the allocator keeps one of its layers.
    unloaded_bytes = [cycle() for _ in range(6)]
    assert max(unloaded_bytes) - min(unloaded_bytes) < large_bytes / 4
