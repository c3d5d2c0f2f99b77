"""SageMaker's container for several models: loaded by name from the store, asked by path or by a target header."""

import json

import pytest

ASK = json.dumps([[1, 1]])


def test_models_come_and_go(managed_unchanged):
    def ask(method, path, body=None):
        return managed_unchanged.ask(method, path, body, public=True)

    spam = {"modelName": "spam", "modelUrl": "spam@1"}
    assert ask("POST", "/models/spam/invoke", ASK)[0] == 404
    assert ask("POST", "/models", '{"model_name": "spam"}') == (200, spam)
    assert ask("POST", "/models/spam/invoke", ASK) == (200, [[10.0, 10.0]])
    assert ask("GET", "/models/spam") == (200, spam)
    twice = {"modelName": "twice", "modelUrl": "twice@1"}
    assert ask("GET", "/models") == (200, {"models": [spam, twice]})
    assert ask("GET", "/models?limit=1") == (200, {"models": [spam], "nextPageToken": "1"})
    assert ask("POST", "/models", '{"model_name": "spam"}') == (409, {"error": "model 'spam' is loaded already"})
    assert ask("DELETE", "/models/spam") == (200, {"status": "model 'spam' is unloaded"})
    assert ask("GET", "/models/spam")[0] == 404
    assert ask("DELETE", "/models/spam")[0] == 404
    assert ask("POST", "/models", '{"model_name": "spam", "url": "spam@1"}') == (200, spam)
    assert ask("DELETE", "/models/spam")[0] == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ('{"model_name": "spam", "url": "/opt/ml/models/spam/model"}', 400),
        ('{"model_name": "spam", "url": "https://example.com/spam.tar.gz"}', 400),
        ('{"model_name": "../spam"}', 400),
        ('{"model_name": "spam", "url": "twice@2"}', 400),
        ('{"url": "spam"}', 400),
        ('{"model_name": 7}', 400),
        ("[]", 400),
        ("", 400),
        ('{"model_name": "nothing"}', 404),
        ('{"model_name": "spam", "url": "spam@7"}', 404),
    ],
)
def test_nothing_but_models_of_the_store_is_loaded(managed_unchanged, body, status):
    found, answer = managed_unchanged.ask("POST", "/models", body, public=True)
    assert (found, answer.keys()) == (status, {"error"})
    assert [model["modelName"] for model in managed_unchanged.ask("GET", "/models", public=True)[1]["models"]] == [
        "twice"
    ]


def test_without_explicit_control_nothing_is_loaded(rows_server, posted):
    forbidden = "explicit model load / unload is not allowed"
    for method, path in (("POST", "/models"), ("DELETE", "/models/tiny")):
        status, answer = posted(rows_server, path, {"model_name": "tiny"}, method)
        assert (status, answer["error"].partition(";")[0]) == (403, forbidden)
    assert rows_server.request("GET", "/models/tiny")[0] == 200


@pytest.mark.parametrize("target", ["mixed", "mixed.tar.gz", "/mixed.tar.gz", "mixed@1", "mixed@1.tar.gz"])
def test_the_target_header_says_which_model_is_meant(rows_server, posted, target):
    row = {"age": [1.0], "city": ["a"], "visits": 2}
    same = {f"same_{name}": value for name, value in row.items()}
    status, answer = posted(rows_server, "/invocations", [row], x_amzn_sagemaker_target_model=target)
    assert (status, answer) == (200, [same])


def test_without_it_the_models_are_listed_where_there_are_several(rows_server, lone_server, posted):
    status, answer = posted(rows_server, "/invocations", [[0.0] * 30])
    assert (status, answer["error_code"]) == (400, "BAD_REQUEST")
    assert "3 models are served (echo, mixed, tiny)" in answer["message"]
    status, answer = posted(rows_server, "/invocations", "[]", x_amzn_sagemaker_target_model="nothing")
    assert (status, answer["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")
    assert posted(lone_server, "/invocations", [[0.0] * 30])[0] == 200


def test_a_named_route_speaks_so(lone_server, posted, reference):
    status, answer = posted(lone_server, "/sm/tiny", [[0.0] * 30])
    assert (status, answer) == (200, [pytest.approx(reference([[0.0] * 30])[0].tolist(), rel=1e-4)])


def test_ping_is_healthy(lone_server):
    assert lone_server.request("GET", "/ping")[0] == 200
