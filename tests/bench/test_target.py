import pytest

from mlserve.bench.target import Target, parse_target
from mlserve.errors import UsageError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", Target(protocol="rest", host="127.0.0.1", port=8000)),
        ("http://127.0.0.1:8000/", Target(protocol="rest", host="127.0.0.1", port=8000)),
        ("http://127.0.0.1:8000/v2", Target(protocol="rest", host="127.0.0.1", port=8000)),
        ("HTTP://Host:80/v2/models/m", Target(protocol="rest", host="host", port=80, model="m")),
        ("http://h:80/v2/models/m/infer", Target(protocol="rest", host="h", port=80, model="m")),
        ("http://h:80/v2/models/infer", Target(protocol="rest", host="h", port=80, model="infer")),
        ("http://h:80/v2/models/m/versions/3", Target(protocol="rest", host="h", port=80, model="m", version="3")),
        ("http://h:80/v2/models/a%20b", Target(protocol="rest", host="h", port=80, model="a b")),
        ("http://[::1]:80", Target(protocol="rest", host="::1", port=80)),
        ("grpc://h:9", Target(protocol="grpc", host="h", port=9)),
        ("grpc://h:9/m", Target(protocol="grpc", host="h", port=9, model="m")),
    ],
)
def test_a_url_names_protocol_address_and_model(url, expected):
    assert parse_target(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "https://h:443",
        "grpcs://h:443",
        "ftp://h:21",
        "http://h",
        "http://:80",
        "http://h:0",
        "http://h:70000",
        "http://h:port",
        "http://h:80/v3",
        "http://h:80/v2/models",
        "http://h:80/v2/models/m/versions",
        "http://h:80?x=1",
        "http://user@h:80",
        "http://[::1:80",
        "grpc://h:9/a/b",
    ],
)
def test_a_url_of_another_form_is_refused(url):
    with pytest.raises(UsageError, match="h"):
        parse_target(url)


def test_the_scheme_the_protocol_and_the_model_must_agree():
    assert parse_target("grpc://h:9/m", "m", "grpc").model == "m"
    with pytest.raises(UsageError, match="contradicts"):
        parse_target("grpc://h:9", "", "rest")
    with pytest.raises(UsageError, match="contradicts"):
        parse_target("grpc://h:9/m", "other")


def test_paths_quote_what_a_url_cannot_hold():
    target = Target(protocol="rest", host="::1", port=80, model="a/b c", version="1")
    assert target.infer_path == "/v2/models/a%2Fb%20c/versions/1/infer"
    assert target.url == "http://[::1]:80"
