"""Clients that load and unload over the network: every worker does it, and the last command wins."""

import concurrent.futures
import json
import random

import psutil
import pytest


@pytest.fixture
def explicit(serving, scaling):
    """`explicit(ARGUMENTS...)`: a server whose clients choose; two workers unless told otherwise."""

    def start(*arguments, workers=2):
        flags = ["--store", scaling.root, "--model-control", "explicit", "--workers", workers]
        return serving(*flags, *arguments)

    return start


def change(server, what, name="m"):
    status, _, body = server.request("POST", f"/v2/repository/models/{name}/{what}", b"{}")
    return status, json.loads(body or b"{}")


def test_the_server_starts_with_nothing_and_clients_load_and_unload(explicit, scaling, scale_of, index_of):
    with explicit() as server:
        assert scale_of(server) == 404
        assert index_of(server) == {("m", "1"): ("UNAVAILABLE", "unloaded")}
        for _ in range(3):
            assert change(server, "load") == (200, {})
            assert [scale_of(server) for _ in range(8)] == [10] * 8  # both workers, at once
            assert change(server, "unload") == (200, {})
            assert [scale_of(server) for _ in range(8)] == [404] * 8
        assert change(server, "unload") == (200, {})


def test_it_starts_with_the_named_models_and_follows_their_alias(explicit, scaling, everywhere, scale_of):
    scaling.publish("other")
    scaling.promote(1)
    with explicit("m") as server:
        assert [scale_of(server), scale_of(server, "other")] == [10, 404]
        assert change(server, "load", "other") == (200, {})
        assert [scale_of(server), scale_of(server, "other")] == [10, 10]
        scaling.publish()
        scaling.promote(2)
        everywhere(lambda: scale_of(server), 20)


def test_what_cannot_be_loaded_says_why_and_what_was_served_stays(explicit, scaling, scale_of, index_of):
    scaling.promote(1)
    with explicit("m") as server:
        status, answer = change(server, "load", "nobody")
        assert status == 404
        assert "failed to load 'nobody', failed to poll from model repository" in answer["error"]
        scaling.publish()
        scaling.model_file(2).write_bytes(b"damaged")
        scaling.promote(2)
        status, answer = change(server, "load")
        assert status == 400
        assert answer["error"].startswith("failed to load 'm': m@2 does not match its manifest: model.onnx was changed")
        assert "/" not in answer["error"]
        assert [scale_of(server) for _ in range(6)] == [10] * 6
        assert index_of(server)["m", "2"][0] == "UNAVAILABLE"


def test_loading_is_forbidden_where_the_store_decides(serving, scaling):
    with serving("--store", scaling.root) as server:
        for what in ("load", "unload"):
            status, answer = change(server, what)
            assert (status, "explicit model load / unload is not allowed" in answer["error"]) == (403, True)


def test_parallel_loads_and_unloads_of_one_model_end_as_the_last_command_says(explicit, scaling, scale_of):
    with explicit() as server:
        rng = random.Random(0)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(change, server, rng.choice(["load", "unload"])) for _ in range(32)]
            assert [each.result()[0] for each in asked] == [200] * 32
        for what, expected in (("load", 10), ("unload", 404), ("load", 10)):
            assert change(server, what)[0] == 200
            assert [scale_of(server) for _ in range(8)] == [expected] * 8


def test_a_worker_that_comes_back_serves_what_clients_asked_for(explicit, scaling, scale_of, everywhere, until):
    scaling.publish("other")
    with explicit("other") as server:
        assert change(server, "load")[0] == 200
        assert change(server, "unload", "other")[0] == 200
        psutil.Process(server.workers[0]).kill()
        until(lambda: "another takes its place" in server.log)
        until(lambda: server.counted("mlserve_model_loaded", model="m") == 2)
        everywhere(lambda: (scale_of(server), scale_of(server, "other")), (10, 404))


def test_memory_is_freed_when_models_are_unloaded(explicit, scaling, scale_of, until, index_of):
    large_bytes = 4 * (16 << 20)
    scaling.publish("large", layers=4)
    with explicit("m", workers=1) as server:
        worker = psutil.Process(server.workers[0])

        def cycle():
            assert change(server, "load", "large")[0] == 200
            assert scale_of(server, "large") == 10
            loaded_bytes = worker.memory_info().rss
            assert change(server, "unload", "large")[0] == 200
            until(lambda: index_of(server)["large", "1"] == ("UNAVAILABLE", "unloaded"))
            return loaded_bytes, worker.memory_info().rss

        cycles = [cycle() for _ in range(8)]
        # A leak would add a model a cycle. The control: a loaded one is seen.
        assert cycles[-1][0] - cycles[-1][1] > large_bytes / 2
        assert cycles[-1][1] - cycles[2][1] < large_bytes
