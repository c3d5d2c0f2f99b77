import pytest

from mlserve.bench.target import Target, parse_header, parse_target
from mlserve.bench.trust import Trust
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
        ("http://h:80/v1/models/m:predict", Target(protocol="tfserving", host="h", port=80, model="m")),
        (
            "http://h:80/v1/models/m/versions/3:predict",
            Target(protocol="tfserving", host="h", port=80, model="m", version="3"),
        ),
        ("http://h:80/predictions/m", Target(protocol="torchserve", host="h", port=80, model="m")),
        ("http://h:80/predictions/m/2.0", Target(protocol="torchserve", host="h", port=80, model="m", version="2.0")),
        (
            "http://h:80/models/m/invoke",
            Target(protocol="sagemaker", host="h", port=80, model="m", path="/models/m/invoke"),
        ),
        (
            "mlflow+http://h:80/invocations",
            Target(protocol="mlflow", host="h", port=80, path="/invocations"),
        ),
        ("rest-binary+http://h:80/v2/models/m", Target(protocol="rest-binary", host="h", port=80, model="m")),
        ("tfserving-grpc+grpc://h:9/m", Target(protocol="tfserving-grpc", host="h", port=9, model="m")),
    ],
)
def test_a_url_names_protocol_address_and_model(url, expected):
    assert parse_target(url) == expected


@pytest.mark.parametrize(
    ("url", "protocol", "path"),
    [
        ("http://h:80", "sagemaker", "/invocations"),
        ("http://h:80/invocations", "sagemaker", "/invocations"),
        ("http://h:80/invocations", "mlflow", "/invocations"),
        ("http://h:80", "torchserve", ""),
        ("http://h:80/v1/models/m", "tfserving", ""),
        ("http://h:80/v2/models/m/infer", "rest-binary", ""),
        ("grpc://h:9/m", "tfserving-grpc", ""),
    ],
)
def test_the_protocol_says_what_a_path_does_not(url, protocol, path):
    target = parse_target(url, "", protocol)
    assert (target.protocol, target.path) == (protocol, path)


def test_any_path_is_asked_by_a_template(tmp_path):
    text = '{"rows": {{rows}}}'
    target = parse_target("http://h:80/a/b?model=cats", "", "json", template=text, answer="outputs.y")
    assert (target.path, target.template, target.answer) == ("/a/b?model=cats", text, "outputs.y")
    assert (target.model, target.title) == ("", "a/b?model=cats")
    (tmp_path / "template.json").write_text(text)
    assert parse_target("http://h:80", "", "json", template=str(tmp_path / "template.json")).template == text


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("", "say with --template how a request is written"),
        ("{}", "neither a file to read nor a text with"),
        ("no-such-file.json", "neither a file to read nor a text with"),
        ('{"x": {{tensor}}}', r"has \{\{tensor\}\}; it may have"),
        ('{"x": {{rows}}', "is no JSON once it is filled"),
        ('{"x": a{{rows}}}', "is no JSON once it is filled"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(template, fault):
    with pytest.raises(UsageError, match=fault):
        parse_target("http://h:80/predict", "", "json", template=template)


@pytest.mark.parametrize(
    ("url", "protocol", "fault"),
    [
        ("http://h:80/invocations", None, "add --protocol sagemaker or mlflow"),
        ("http://h:80/predict", None, "Add --protocol json and --template"),
        ("http://h:80/predict", "mlflow", "names no model of mlflow"),
        ("http://h:80/v2/models/m", "tfserving", "names no model of tfserving"),
        ("grpc://h:9/m", "torchserve", "contradicts"),
        ("http://h:80/v1/models/m", "tfserving-grpc", "contradicts"),
        ("mlflow+http://h:80", "sagemaker", "contradicts"),
        ("v3+http://h:80", None, "--protocol 'v3' is unknown"),
        ("mlflow+grpcs://h:443", None, "contradicts"),
    ],
)
def test_a_path_that_does_not_fit_its_protocol_is_refused(url, protocol, fault):
    with pytest.raises(UsageError, match=fault):
        parse_target(url, "", protocol)


def test_a_template_is_for_json_alone():
    with pytest.raises(UsageError, match="--template and --answer are for --protocol json"):
        parse_target("http://h:80/v2/models/m", template="{{rows}}")


@pytest.mark.parametrize("name", ["content-length", "Transfer-Encoding", "connection"])
def test_a_header_that_ends_requests_is_refused(name):
    with pytest.raises(UsageError, match=f"--header {name.lower()} cannot be chosen"):
        parse_header(f"{name}: 1")


@pytest.mark.parametrize("name", ["x!y", "key-bin", "grpc-timeout"])
def test_a_header_that_grpc_does_not_carry_is_refused_for_it_alone(name):
    header = parse_header(f"{name}: 1")
    assert parse_target("http://h:80", headers=[header]).headers == (header,)
    with pytest.raises(UsageError, match="cannot be sent over gRPC"):
        parse_target("grpc://h:80", headers=[header])


def test_headers_go_with_every_request_and_their_values_are_not_shown():
    header = parse_header("Authorization:  Bearer sEcReT ")
    assert header == ("authorization", "Bearer sEcReT")
    target = parse_target("http://h:80", headers=[header])
    assert target.with_headers([("content-type", "a/b")]) == (("content-type", "a/b"), header)
    assert target.with_headers([("authorization", "none")]) == (header,)
    assert "sEcReT" not in f"{target} {target!r}"
    assert "authorization" in repr(target)


@pytest.mark.parametrize("text", ["sEcReT", ": sEcReT", "a b: sEcReT", "x:", "x: sEcReT\r\ny: z", "x: \u2603sEcReT"])
def test_a_header_of_another_form_is_refused_without_its_value(text):
    with pytest.raises(UsageError, match="--header") as caught:
        parse_header(text)
    assert "sEcReT" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://h",
        "grpcs:h:443",
        "httpss://h:443",
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
        "http://h:80/v2/models/a b",
        "http://h:80/v2/models/\u00e9",
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


@pytest.mark.parametrize("url", ["https://h:443", "grpcs://h:443", "mlflow+https://h:443/invocations"])
def test_a_secure_server_is_judged_by_what_is_said_or_by_the_system(url):
    assert parse_target(url).trust == Trust()
    assert parse_target(url).url.split("://")[0] in ("https", "grpcs")
    own = Trust(ca_file="/ca.pem")
    assert parse_target(url, trust=own).trust == own
    assert parse_target(url.replace("s://", "://")).trust is None
    with pytest.raises(UsageError, match="--ca-file and --client-cert are for TLS"):
        parse_target(url.replace("s://", "://"), trust=own)
