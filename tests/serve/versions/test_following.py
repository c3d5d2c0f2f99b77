"""One worker that follows a store, in this process: what retires when, and what a request that came late finds."""

import asyncio
import shutil
from contextlib import asynccontextmanager, suppress

import msgspec
import numpy as np
import pytest

from mlserve.errors import EngineError, NotServing
from mlserve.serve.answering import Answering
from mlserve.serve.application import application
from mlserve.serve.batching.future import run
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.catalog import Catalog
from mlserve.serve.dialects import CALLS, http_dialects
from mlserve.serve.life.slate import open_slate
from mlserve.serve.service import Service
from mlserve.serve.settings import Follow, ServeSettings, StoreChoice
from mlserve.serve.versions.agreement import Agreement, Applied
from mlserve.serve.versions.following import Follower, initially_asked
from mlserve.serve.versions.policy import Words
from mlserve.wire import messages
from mlserve.wire.signature import InferRequest


@pytest.fixture
def following(scaling, tmp_path):
    """`async with following("default") as (service, turn)`: a worker that serves the model m by a policy."""
    (tmp_path / "run" / "control").mkdir(parents=True)

    @asynccontextmanager
    async def start(policy, *, resumes=False):
        choice = StoreChoice(str(scaling.root), (Follow("m", policy),), every_s=0.02)
        settings = ServeSettings(store=choice, run_directory=str(tmp_path / "run"))
        turn, service = LoopTurn(asyncio.get_running_loop()), Service(Catalog())
        follower = Follower(service, settings, turn, Agreement(tmp_path / "run", initially_asked(settings)))
        await follower.start(resumes=resumes)
        task = asyncio.create_task(follower.follow())
        try:
            yield service, turn
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            service.close()

    return start


async def ask(model, turn):
    request = InferRequest({"x": np.ones((1, 2), np.float32)}, 1)
    return (await run(model.batcher, request, model.signature, turn, "test")).outputs["y"][0, 0]


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def states(service):
    return {entry.version: entry.state for entry in service.catalog.index}


def test_a_request_that_found_a_version_before_the_swap_is_answered_by_it_and_then_it_is_freed(following, scaling):
    scaling.publish()
    scaling.promote(1)

    async def swap():
        async with following("default") as (service, turn):
            found = service.find("m")
            scaling.promote(2)
            await until(lambda: service.find("m") is not found)
            assert states(service) == {"1": "UNLOADING", "2": "READY"}
            assert await ask(found, turn) == 10  # submitted after the swap
            assert await ask(service.find("m"), turn) == 20
            await until(lambda: states(service) == {"2": "READY"})
            # The control: what was freed could not have answered.
            with pytest.raises(NotServing):
                await ask(found, turn)

    asyncio.run(swap())


def test_a_version_on_its_way_out_that_is_wanted_again_comes_back_without_a_load(following, scaling):
    scaling.publish()
    scaling.promote(1)

    async def swap():
        async with following("default") as (service, turn):
            first = service.find("m")
            scaling.promote(2)
            await until(lambda: service.find("m") is not first)
            scaling.promote(1)
            await until(lambda: service.find("m") is first)
            await until(lambda: states(service) == {"1": "READY"})
            assert await ask(first, turn) == 10

    asyncio.run(swap())


def test_another_version_in_the_place_of_one_is_loaded_and_takes_its_place(following, scaling):
    async def swap():
        async with following("all") as (service, turn):
            scaling.publish()
            await until(lambda: states(service) == {"1": "READY", "2": "READY"})
            shutil.copytree(scaling.root / "m" / "2", scaling.root / "m" / ".new")
            (scaling.root / "m" / "1").rename(scaling.root / "m" / ".old")
            (scaling.root / "m" / ".new").rename(scaling.root / "m" / "1")
            async with asyncio.timeout(20):
                while await ask(service.find("m", "1"), turn) != 20:
                    await asyncio.sleep(0.02)

    asyncio.run(swap())


def test_a_worker_that_comes_back_serves_what_its_siblings_serve_while_the_promoted_version_does_not_load(
    following, scaling, tmp_path
):
    scaling.publish()
    scaling.promote(2)
    scaling.model_file(2).write_bytes(b"damaged")

    async def come_back(*, resumes):
        async with following("default", resumes=resumes) as (service, _):
            assert service.find("m").signature.version == "1"
            assert states(service) == {"1": "READY", "2": "UNAVAILABLE"}

    with pytest.raises(EngineError, match="m@2 does not match its manifest"):
        asyncio.run(come_back(resumes=True))
    told = msgspec.json.encode(Applied(words={"m": Words({"production": "1"}, "1")}))
    control = tmp_path / "run" / "control"
    for source in ("worker-1.json", "ended.json"):  # process 1 lives as long as the machine; the other has died
        for before in control.iterdir():
            before.unlink()
        (control / source).write_bytes(told)
        asyncio.run(come_back(resumes=True))
    with pytest.raises(EngineError, match="m@2 does not match its manifest"):
        asyncio.run(come_back(resumes=False))


@pytest.fixture
def hold():
    """`hold(*versions)` of the model m, and no others: what a supervisor says when workers die of them."""
    slate = open_slate(-1)
    yield lambda *versions: slate.hold({("m", each): "held back: workers died of it" for each in versions})
    slate.hold({})


async def get(pages, path, method="GET", body=b""):
    """`(status, document)` of a page, in this process."""
    told, label = [], [(b"content-type", b"application/json")]
    scope = {"type": "http", "http_version": "1.1", "method": method, "scheme": "http", "root_path": ""}
    scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "headers": label, "client": None}

    async def receive():
        return {"type": "http.request", "body": body}

    async def send(message):
        told.append(message)

    await pages(scope, receive, send)
    return told[0]["status"], msgspec.json.decode(b"".join(each.get("body", b"") for each in told[1:]))


def grpc_ready(service, version=""):
    (call,) = [each for each in CALLS if each.path.endswith("/ModelReady")]
    payload = messages.ModelReadyRequest(name="m", version=version).SerializeToString()
    return call.answer(service, payload).ready


def test_words_for_a_version_that_is_held_back_say_so_and_spoil_no_list(following, scaling, hold):
    scaling.publish()
    scaling.promote(2)

    async def serve():
        async with following("all") as (service, turn):
            answering, settings = Answering(service, turn), ServeSettings()
            dialects = http_dialects(service, answering, settings)
            pages, management = (application(service, answering, dialects, management=each) for each in (False, True))
            assert (await get(management, "/models"))[1]["models"] == [{"modelName": "m", "modelUrl": "m@2"}]
            hold("2")
            await until(lambda: "2" not in service.versions("m"))
            for word in ("", "production", "2"):
                with pytest.raises(NotServing, match="workers died of it"):
                    service.find("m", word)
                assert not grpc_ready(service, word)
            assert grpc_ready(service, "1")
            assert service.find("m", "1").signature.version == "1"
            for path in ("/v2/models/m/ready", "/v2/models/m", "/models/m"):
                status, answer = await get(pages, path)
                assert (status, "workers died of it" in answer["error"]) == (503, True)
            assert (await get(pages, "/v1/models/m/labels/production:predict", "POST", b"{}"))[0] == 503
            assert (await get(pages, "/v1/models/m/labels/canary:predict", "POST", b"{}"))[0] == 400
            for each in (pages, management):
                assert await get(each, "/models") == (200, {"models": []})
            assert [one["modelVersion"] for one in (await get(management, "/models/m/all"))[1]] == ["1"]
            assert (await get(pages, "/v1/models"))[0] == (await get(pages, "/openapi.json"))[0] == 200
            hold("1", "2")
            await until(lambda: not service.catalog.models)
            for path in ("/invocations", "/v1/predict"):
                status, answer = await get(pages, path, "POST", b'{"rows": [[1, 2]]}')
                assert (path, status, "workers died of it" in str(answer)) == (path, 503, True)
            scaling.publish()
            scaling.promote(3)  # what is promoted meanwhile is served
            await until(lambda: service.catalog.defaults.get("m") == "3")
            assert (await get(pages, "/models"))[1]["models"] == [{"modelName": "m", "modelUrl": "m@3"}]

    asyncio.run(serve())
