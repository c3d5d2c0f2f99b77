"""Texts and images over the wire, to a real server: an answer or a reason, never a failure of the server."""

import json

import pytest


@pytest.fixture(scope="module")
def server(serving, spam, digits):
    """Both models of one store."""
    with serving("--store", spam.directory.parent.parent, "spam", "digits") as running:
        yield running


def ask(server, body, content_type="application/json"):
    status, _, answer = server.request("POST", "/v1/models/spam/predict", body, {"content-type": content_type})
    return status, json.loads(answer)


def test_a_text_is_answered_over_http(server):
    status, answer = ask(server, '{"text": "win money now"}')
    assert (status, answer["label"]) == (200, "spam")
    assert answer["score"] > 0.5


def test_an_image_is_answered_over_http(server, png):
    status, _, body = server.request(
        "POST", "/v1/models/digits/predict", png([[0] * 8] * 8), {"content-type": "image/png"}
    )
    assert (status, sorted(json.loads(body).keys() & {"label", "score"})) == (200, ["label", "score"])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"text": ""}', 200),
        (b'{"text": "win\\u0000money"}', 200),
        (b'{"text": "' + b"win " * 250_000 + b'"}', 200),
        (b'{"text": ["win", "lunch"]}', 200),
        (b'{"text": "\\ud800"}', 400),
        (b'{"text": "\xff"}', 400),
        (b'{"text": []}', 400),
        (b'{"text": 7}', 400),
        (b'{"text": null}', 400),
        (b'{"text": ["win", 7]}', 400),
        (b'{"image": "aGVsbG8="}', 400),
        (b'{"text": [' + b'"",' * 5000 + b'""]}', 413),
    ],
)
def test_every_text_is_answered_or_refused_with_a_reason(server, body, expected):
    status, answer = ask(server, body)
    assert status == expected, answer
    assert (status == 200) == ("error" not in answer)
