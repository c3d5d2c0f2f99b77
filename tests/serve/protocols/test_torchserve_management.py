"""TorchServe's management API on its own port: models of the store come and go, and nothing else is ever fetched."""

import pytest


def test_a_model_is_registered_described_made_default_and_unregistered(managed):
    assert managed.ask("GET", "/models") == (200, {"models": [{"modelName": "twice", "modelUrl": "twice@1"}]})
    assert managed.ask("POST", "/models?url=spam") == (
        200,
        {"status": 'Model "spam" Version: 1 registered with 1 initial workers'},
    )
    assert managed.factor("spam") == 10
    assert managed.ask("POST", "/models?url=twice@2&model_name=twice&initial_workers=1&synchronous=true")[0] == 200
    assert (managed.factor("twice"), managed.factor("twice/2")) == (10, 20)
    assert managed.ask("PUT", "/models/twice/2/set-default") == (
        200,
        {"status": 'Default version successfully updated for model "twice" to "2"'},
    )
    assert managed.factor("twice") == 20
    status, described = managed.ask("GET", "/models/twice/all")
    assert (status, [each["modelVersion"] for each in described]) == (200, ["1", "2"])
    assert managed.ask("DELETE", "/models/twice/1") == (200, {"status": 'Model "twice" unregistered'})
    assert (managed.factor("twice/1"), managed.factor("twice")) == (404, 20)
    assert managed.ask("DELETE", "/models/spam") == (200, {"status": 'Model "spam" unregistered'})
    assert managed.factor("spam") == 404
    assert managed.ask("GET", "/models/spam")[0] == 404


def test_a_version_is_described_as_torchserve_describes_it(managed_unchanged):
    status, (described,) = managed_unchanged.ask("GET", "/models/twice")
    assert status == 200
    (worker,) = described.pop("workers")
    assert worker["startTime"].startswith("20")
    assert {**worker, "startTime": ""} == {
        "id": "0",
        "startTime": "",
        "status": "READY",
        "gpu": False,
        "memoryUsage": 0,
    }
    assert described == {
        "modelName": "twice",
        "modelVersion": "1",
        "modelUrl": "twice@1",
        "engine": "onnxruntime",
        "runtime": "python",
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": 32,
        "maxBatchDelay": 0,
        "jobQueueStatus": {"remainingCapacity": 4096, "pendingRequests": 0},
    }
    assert managed_unchanged.ask("GET", "/models/twice/1")[1][0]["modelVersion"] == "1"


def test_the_list_comes_in_pages(managed_unchanged):
    managed_unchanged.ask("POST", "/models?url=spam")
    status, first = managed_unchanged.ask("GET", "/models?limit=1")
    assert (status, [model["modelName"] for model in first["models"]]) == (200, ["spam"])
    rest = managed_unchanged.ask("GET", f"/models?limit=1&next_page_token={first['nextPageToken']}")
    assert rest == (200, {"models": [{"modelName": "twice", "modelUrl": "twice@1"}]})
    assert managed_unchanged.ask("GET", "/models?next_page_token=99") == (200, {"models": []})
    for bad in ("limit=0", "limit=-1", "limit=x", "limit=%F0%9D%9F%99", "next_page_token=1e3", "limit=" + "9" * 30):
        status, answer = managed_unchanged.ask("GET", f"/models?{bad}")
        assert (status, answer["type"]) == (400, "BadRequestException")
    assert managed_unchanged.ask("DELETE", "/models/spam")[0] == 200


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/squeezenet.mar",
        "http://127.0.0.1:1/x",
        "file:///etc/passwd",
        "//example.com/x",
        "s3:spam",
        "/opt/ml/models/spam",
        "../spam",
        "..",
        ".spam",
        "spam/1",
        "spam%2F1",
        "spam%5C1",
        "spam%00",
        "spam@../1",
        "spam@1@1",
        "",
        "a" * 129,
    ],
)
def test_no_url_and_no_path_is_loaded(managed_unchanged, url):
    status, answer = managed_unchanged.ask("POST", f"/models?url={url}")
    assert (status, answer["type"]) == (400, "BadRequestException")
    assert "NAME or NAME@VERSION" in answer["message"]
    assert managed_unchanged.ask("GET", "/models")[1]["models"] == [{"modelName": "twice", "modelUrl": "twice@1"}]


def test_what_the_store_does_not_have_is_not_found(managed_unchanged):
    for method, path in (
        ("POST", "/models?url=nothing"),
        ("POST", "/models?url=squeezenet1_1.mar"),
        ("POST", "/models?url=twice@9"),
        ("GET", "/models/nothing"),
        ("GET", "/models/nothing/all"),
        ("GET", "/models/twice/9"),
        ("PUT", "/models/nothing?min_worker=1"),
        ("PUT", "/models/twice/9/set-default"),
        ("DELETE", "/models/nothing"),
        ("DELETE", "/models/twice/9"),
    ):
        status, answer = managed_unchanged.ask(method, path)
        assert (status, answer["type"]) == (404, "ModelNotFoundException"), (method, path)
    assert managed_unchanged.ask("POST", "/models?url=spam&model_name=eggs")[0] == 400
    assert managed_unchanged.factor("twice") == 10


def test_a_version_that_does_not_load_is_told_and_the_served_one_stays(managed_unchanged):
    status, answer = managed_unchanged.ask("POST", "/models?url=twice@3")
    assert (status, answer["type"]) == (500, "InternalServerException")
    assert "failed to load" in answer["message"]
    assert managed_unchanged.factor("twice") == 10


def test_workers_are_the_servers_own(managed_unchanged):
    assert managed_unchanged.ask("PUT", "/models/twice?min_worker=1") == (
        200,
        {"status": "Workers scaled to 1 for model: twice"},
    )
    assert managed_unchanged.ask("PUT", "/models/twice/1?min_worker=1&max_worker=4&synchronous=true") == (
        200,
        {"status": "Workers scaled to 1 for model: twice, version: 1"},
    )
    for query in ("min_worker=3", "min_worker=0&max_worker=0", "min_worker=x"):
        status, answer = managed_unchanged.ask("PUT", f"/models/twice?{query}")
        assert (status, answer["type"]) == (400, "BadRequestException")


def test_the_pages_are_on_the_management_port_alone(managed_unchanged):
    assert managed_unchanged.ask("OPTIONS", "/")[1]["paths"].keys() == {
        "/models",
        "/models/{name}",
        "/models/{name}/{version}",
        "/models/{name}/{version}/set-default",
    }
    for method, path in (
        ("GET", "/models/twice/1"),
        ("GET", "/models/twice/all"),
        ("PUT", "/models/twice/1/set-default"),
    ):
        assert managed_unchanged.ask(method, path)[0] in (200, 404)
        assert managed_unchanged.ask(method, path, public=True)[0] in (404, 405)
    for _ in range(2):  # no inference here, and none by the fast lane that knows the path from the other port
        assert managed_unchanged.ask("POST", "/predictions/twice", "[1, 1]", public=True)[0] == 200
        assert managed_unchanged.ask("POST", "/predictions/twice", "[1, 1]")[0] == 404
    assert managed_unchanged.factor("twice") == 10
