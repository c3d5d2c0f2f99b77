"""TorchServe's inference API, spoken as its documentation shows it: JSON, files, forms, and every wrong way."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

ROWS = np.random.default_rng(0).standard_normal((2, 30)).astype(np.float32)
ONE, TWO = ROWS[0].tolist(), ROWS.tolist()
NESTED_DEEP = "[" * 600 + "]" * 600


def curl(server, path, *arguments, **options):
    command = shutil.which("curl")
    assert command is not None, "there is no curl; make test installs it"
    done = subprocess.run(
        [command, "-sS", *map(str, arguments), f"http://{server.http}{path}"],
        capture_output=True,
        check=True,
        **options,
    )
    return json.loads(done.stdout)


def form(*parts, boundary="bound"):
    """A multipart body of `(name, content, content type)`."""
    lines = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n{told}\r\n{content}\r\n'
        for name, content, told in parts
    ]
    return "".join(lines) + f"--{boundary}--\r\n"


@pytest.fixture
def still_right(rows_server, posted, reference):
    """After the test, the same server answers the right request rightly: the negative control of every bad one."""
    yield
    status, answer = posted(rows_server, "/predictions/tiny", ONE)
    assert status == 200
    np.testing.assert_allclose(answer, reference(ROWS)[0], rtol=1e-5)


def test_ping_is_healthy(rows_server):
    assert rows_server.get_json("/ping") == {"status": "Healthy"}


def test_options_describes_the_inference_pages(rows_server):
    status, _, body = rows_server.request("OPTIONS", "/")
    document = json.loads(body)
    assert status == 200
    assert document["openapi"].startswith("3.0")
    assert document["paths"]["/predictions/{name}/{version}"].keys() == {"post", "put"}
    assert "/models" not in document["paths"]


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        (ONE, 0),
        (TWO, [0, 1]),
        ([ONE], [0]),
        ({"data": ONE}, 0),
        ({"data": TWO}, [0, 1]),
        ({"body": ONE}, 0),
        ({"x": ONE}, 0),
        ({"x": TWO}, [0, 1]),
        ([{"x": ONE}, {"x": ONE}], [0, 0]),
    ],
)
def test_one_row_is_answered_by_one_answer_and_several_by_a_list(rows_server, posted, reference, body, rows):
    status, answer = posted(rows_server, "/predictions/tiny", body, content_type="application/json")
    assert status == 200
    assert np.shape(answer) == np.shape(reference(ROWS)[rows])
    np.testing.assert_allclose(answer, reference(ROWS)[rows], rtol=1e-4)


def test_the_json_envelope_is_answered_in_kind(rows_server, posted, reference):
    status, answer = posted(rows_server, "/predictions/tiny/1", {"instances": TWO})
    assert status == 200
    np.testing.assert_allclose(answer["predictions"], reference(ROWS), rtol=1e-4)


def test_a_row_of_several_inputs_is_an_object(rows_server, posted):
    row = {"age": [40.5], "city": ["Rome"], "visits": 3}
    same = {f"same_{name}": value for name, value in row.items()}
    assert posted(rows_server, "/predictions/mixed", row) == (200, same)
    assert posted(rows_server, "/predictions/mixed", [row, row]) == (200, [same, same])
    assert posted(rows_server, "/predictions/mixed", {"instances": [row]}) == (200, {"predictions": [same]})


@pytest.mark.parametrize("flags", [["-T"], ["--data-binary", "@"], ["-F", "data=@"], ["-F", "body=@"]])
def test_curl_sends_a_file_each_way_the_documentation_shows(rows_server, reference, tmp_path, flags):
    file = tmp_path / "row.json"
    file.write_text(json.dumps(ONE))
    *first, last = flags
    arguments = [*flags, file] if flags == ["-T"] else [*first, f"{last}{file}"]
    np.testing.assert_allclose(curl(rows_server, "/predictions/tiny", *arguments), reference(ROWS)[0], rtol=1e-4)


def test_a_table_is_read_by_row(rows_server, posted, reference):
    body = "\n".join(",".join(map(repr, map(float, row))) for row in TWO)
    status, answer = posted(rows_server, "/predictions/tiny", body, content_type="text/csv")
    assert status == 200
    np.testing.assert_allclose(answer, reference(ROWS), rtol=1e-4)


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        ("[]", {}, 400, "no rows"),
        ("{}", {}, 400, "missing input 'x'"),
        ("[1, 2", {}, 400, "not JSON"),
        (b"\xff\xfe", {"content_type": "application/json"}, 400, "not JSON"),
        (json.dumps(ONE[:29]), {}, 400, "shape"),
        (json.dumps([*ONE[:29], "a"]), {}, 400, "cannot be read as FP32"),
        (json.dumps([*ONE[:29], True]), {}, 400, "cannot be read as FP32"),
        (json.dumps([*ONE[:29], 1e39]), {}, 400, "FP32"),
        (json.dumps([TWO]), {}, 400, "cannot be read"),
        (json.dumps({"instances": ONE}), {}, 400, "cannot be read"),
        (json.dumps({"instances": []}), {}, 400, "no rows"),
        (json.dumps({"instances": None}), {}, 400, "no rows"),
        (json.dumps({"data": None}), {}, 400, "cannot be read"),
        (json.dumps({"y": ONE}), {}, 400, "missing input|unexpected input"),
        (json.dumps({"data": "hello"}), {}, 400, "cannot be read"),
        ("null", {"content_type": "application/json"}, 400, "cannot be read"),
        (NESTED_DEEP, {}, 400, ""),
        ("hello", {}, 400, "carries no tokenizer"),
        ("hello", {"content_type": "text/plain"}, 400, "carries no tokenizer"),
        (b"\x80\x04\x95", {"content_type": "application/octet-stream"}, 400, "no UTF-8"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), {}, 400, "carries no tokenizer and reads no images"),
        (b"\xff\xd8\xff" + bytes(20), {"content_type": "image/jpeg"}, 400, "reads no images"),
        (b"\x80\x04\x95", {"content_type": "application/x-pickle"}, 415, "is not read"),
        ("1", {"content_type": "application/x-python-serialize"}, 415, "is not read"),
        (json.dumps(ONE), {"content_encoding": "br"}, 415, "encoding"),
        ("1,2", {"content_type": "text/csv"}, 400, "shape"),
        ("x", {"content_type": "multipart/form-data"}, 400, "lacks its boundary"),
        ("x", {"content_type": "multipart/form-data; boundary=bound"}, 400, "no multipart form"),
        (form(("data", "[", "")), {"content_type": "multipart/form-data; boundary=bound"}, 400, "not JSON"),
        (form(("other", "1", "")), {"content_type": "multipart/form-data; boundary=bound"}, 400, "0 parts"),
        (
            form(("data", "1", ""), ("body", "2", "")),
            {"content_type": "multipart/form-data; boundary=bound"},
            400,
            "2 parts",
        ),
        (
            form(("data", json.dumps(ONE), ""))[:-30],
            {"content_type": "multipart/form-data; boundary=bound"},
            400,
            "no multipart form|parts",
        ),
        (
            form(("data", json.dumps(ONE), "Content-Type: application/x-pickle\r\n")),
            {"content_type": "multipart/form-data; boundary=bound"},
            415,
            "is not read",
        ),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_bad_body_is_refused_in_torchserves_words(
    rows_server, posted, still_right, method, body, headers, status, message
):
    found, answer = posted(rows_server, "/predictions/tiny", body, method, **headers)
    assert found == status, answer
    assert answer.keys() == {"code", "type", "message"}
    assert (answer["code"], answer["type"]) == (status, "BadRequestException")
    assert re.search(message, answer["message"])
    assert len(json.dumps(answer)) <= 1024
    assert "Traceback" not in answer["message"]
    assert ".py" not in answer["message"]


@pytest.mark.parametrize(
    "path", ["/predictions/nothing", "/predictions/tiny/7", "/predictions/..%2f..", "/predictions/a@b"]
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_an_unknown_model_is_not_found(rows_server, posted, path, method):
    status, answer = posted(rows_server, path, ONE, method)
    assert (status, answer["code"], answer["type"]) == (404, 404, "ModelNotFoundException")
    assert answer["message"].startswith("Request for unknown model")


@pytest.mark.parametrize(
    "body", [form(("data", "\r\n--boundX" * 100_000, "")), form(*[("other", "1", "")] * 100)], ids=["lines", "parts"]
)
def test_a_form_made_to_keep_the_server_busy_is_not_parsed(rows_server, posted, still_right, body):
    status, answer = posted(rows_server, "/predictions/tiny", body, content_type="multipart/form-data; boundary=bound")
    assert (status, answer["message"].partition(",")[0]) == (400, "the form has more than 64 parts")


def test_a_form_may_have_other_parts_beside(rows_server, posted, reference):
    body = form(*[("other", "1", "")] * 60, ("data", json.dumps(ONE), "Content-Type: application/json\r\n"))
    status, answer = posted(
        rows_server, "/predictions/tiny", body, content_type='multipart/form-data; boundary="bound"'
    )
    assert status == 200
    np.testing.assert_allclose(answer, reference(ROWS)[0], rtol=1e-4)


def test_requests_and_refusals_are_counted_under_the_dialects_name(rows_server, posted):
    before = rows_server.counted("mlserve_requests_total", model="mixed", protocol="torchserve")
    posted(rows_server, "/predictions/mixed", {"age": [1], "city": ["a"], "visits": 1})
    posted(rows_server, "/predictions/mixed", {"age": [1], "city": ["a"], "visits": 1}, "PUT")
    posted(rows_server, "/predictions/mixed", {"age": [1]})
    posted(rows_server, "/predictions/mixed", {"age": [1]}, "PUT")
    assert rows_server.counted("mlserve_requests_total", model="mixed", protocol="torchserve") - before == 4
