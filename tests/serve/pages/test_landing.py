"""The page at `/`: what it shows runs as it stands, whatever names and labels say is text, and it is a page for all."""

import gzip
import json
import re
import subprocess
import sys
from itertools import pairwise

import msgspec
import pytest

from mlserve.serve.batching.turn import Turn
from mlserve.serve.catalog import Catalog, IndexEntry
from mlserve.serve.loading import load_model
from mlserve.serve.pages.landing import landing_page
from mlserve.serve.pages.snippets import Address
from mlserve.serve.service import Service
from mlserve.serve.settings import ModelSource, ServeSettings
from mlserve.wire.signature import Signature

CONTRAST_OF_TEXT = 4.5  # WCAG 2.2, AA: 1.4.3
RUN_ALL = """
import contextlib, io, json, sys
printed = []
for code in json.load(sys.stdin):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "example", "exec"), {})
    printed.append(out.getvalue())
json.dump(printed, sys.stdout)
"""


def html_of(server, path="/", **headers):
    status, answered, body = server.request("GET", path, headers={"accept": "text/html", **headers})
    assert status == 200, body
    assert answered["content-type"] == "text/html; charset=utf-8"
    return body.decode()


def run_python(codes, **environment):
    import os

    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        input=json.dumps(codes),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_curl_command_on_the_page_is_answered(store_server, commands_of, run_shell):
    commands = commands_of(html_of(store_server), "shell")
    assert len(commands) == 7  # one for each of four models, and V2's for those that are not too wide for it
    for command in commands:
        exit_status, statuses, output = run_shell(command)
        assert (exit_status, set(statuses)) == (0, {"200"}), f"{command}\n{statuses}\n{output}"
        assert json.loads(output)


def test_every_python_example_on_the_page_runs_and_prints_an_answer(store_server, commands_of):
    codes = commands_of(html_of(store_server), "python")
    assert len(codes) == 4 * 3  # requests, tritonclient over HTTP and over gRPC
    assert {re.search(r"import (tritonclient\.\w+|requests)", code)[1] for code in codes} == {
        "requests",
        "tritonclient.http",
        "tritonclient.grpc",
    }
    assert all(run_python(codes))


def test_an_example_that_does_not_run_would_be_seen(store_server, commands_of, run_shell):
    """The negative control of the two above."""
    html = html_of(store_server)
    command = commands_of(html, "shell")[0].replace("/predict", "/no-such-page")
    exit_status, statuses, _ = run_shell(command)
    assert exit_status == 22
    assert "404" in statuses
    with pytest.raises(AssertionError, match="HTTPError"):
        run_python([commands_of(html, "python")[0].replace("/predict", "/no-such-page")])


def test_with_keys_the_examples_take_the_key_from_a_variable(keyed_server, commands_of, run_shell):
    secret = keyed_server.secrets["both"]
    html = html_of(keyed_server, authorization=f"Bearer {secret}")
    assert secret not in html
    for command in commands_of(html, "shell"):
        assert run_shell(command, MLSERVE_KEY=secret)[0] == 0, command
        assert "401" in run_shell(command, MLSERVE_KEY="wrong")[1]
    assert all(run_python(commands_of(html, "python"), MLSERVE_KEY=secret))


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/v1/models", "/v1/models/spam/example"])
def test_without_a_key_a_page_says_that_one_is_needed_and_nothing_else(keyed_server, path):
    for headers in ({}, {"accept": "text/html"}, {"authorization": "Bearer wrong"}):
        status, answered, body = keyed_server.request("GET", path, headers=headers)
        assert status == 401
        assert answered["www-authenticate"] == "Bearer"
        assert set(json.loads(body)) == {"error"}
        assert b"spam" not in body
    key = {"authorization": f"Bearer {keyed_server.secrets['infer']}"}
    assert keyed_server.request("GET", path, headers=key)[0] == 403
    key = {"authorization": f"Bearer {keyed_server.secrets['metadata']}"}
    assert keyed_server.request("GET", path, headers=key)[0] == 200


def test_programs_get_a_short_answer_with_links_that_all_lead_somewhere(store_server):
    for headers in ({}, {"accept": "*/*"}, {"accept": "application/json"}):
        status, answered, body = store_server.request("GET", "/", headers=headers)
        assert status == 200
        assert answered["vary"] == "accept"
        document = json.loads(body)
        assert document["models"] == ["digits", "odd_name-1.0", "spam", "tiny"]
    for name, path in document["links"].items():
        assert store_server.request("GET", path)[0] == (405 if name == "predict" else 200), name


def test_versions_aliases_states_and_labels_are_told(store_server):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html_of(store_server)))
    assert "4 models, 5 versions" in text
    assert re.search(r"2 ready candidate onnxruntime, cpu fp32", text)
    assert re.search(r"1 ready default , production onnxruntime", text)
    assert "a label with a score: ham, spam" in text
    assert "input_ids INT64 [batch, sequence]" in text


def test_what_labels_say_is_text(store_server, open_page, made_store):
    html = html_of(store_server)
    assert made_store.EVIL_LABEL not in html
    assert "&lt;script&gt;window.pwned=1&lt;/script&gt;" in html
    page = open_page(f"http://{store_server.http}/")
    assert page.run("return window.pwned") is None
    assert made_store.EVIL_LABEL in page.run("return document.body.textContent")


@pytest.mark.parametrize("host", ["a';touch pwned;'", '<img src=x onerror="x">', "x" * 300, "[::1]x", ""])
def test_a_host_that_is_none_is_not_repeated(store_server, host):
    html = html_of(store_server, host=host)
    assert f"curl -s http://127.0.0.1:{store_server.http_port}/v1/models/" in html
    assert not host or host not in html


def test_the_address_is_the_one_the_client_used(store_server):
    html = html_of(store_server, host="models.example.org")
    assert "curl -s http://models.example.org/v1/models/spam/predict" in html
    assert f"models.example.org:{store_server.grpc_port}" in html


def test_the_page_carries_its_policy(store_server):
    for path in ("/", "/docs"):
        _, headers, _ = store_server.request("GET", path, headers={"accept": "text/html"})
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"


def test_pages_are_packed_for_those_who_take_them_so(store_server):
    for path in ("/", "/docs", "/openapi.json"):
        plain = store_server.request("GET", path, headers={"accept": "text/html"})
        packed = store_server.request("GET", path, headers={"accept": "text/html", "accept-encoding": "gzip"})
        assert gzip.decompress(packed[2]) == plain[2]
        assert len(packed[2]) < len(plain[2]) / 2


def test_a_model_by_its_name_and_a_name_that_is_none(store_server):
    html = html_of(store_server, "/?model=spam")
    assert 'id="model-spam"' in html
    assert 'id="model-digits"' not in html
    html = html_of(store_server, "/?model=%3Cscript%3E")
    assert "There is no model <code>&lt;script&gt;</code> here." in html


@pytest.mark.parametrize("path", ["/", "/docs"])
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("dark", 400)])
def test_the_console_is_silent_nothing_is_fetched_and_it_fits(store_server, open_page, path, scheme, width):
    page = open_page(f"http://{store_server.http}{path}", scheme=scheme, width=width)
    assert page.faults() == []
    assert page.fetched() == []
    assert page.run("return document.documentElement.scrollWidth") <= width
    light = page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light == (scheme == "light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_what_is_behind_them(store_server, open_page, scheme):
    for path in ("/", "/docs"):
        page = open_page(f"http://{store_server.http}{path}", scheme=scheme)
        page.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        least = page.run(
            """const seen = [...document.querySelectorAll("p,li,th,td,h1,h2,h3,pre,a,span,figcaption,button")]
                 .filter(one => one.textContent.trim() && one.checkVisibility() && !one.classList.contains("skip"));
               const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
               const bright = colour => numbers(colour).slice(0, 3).map(c => c / 255)
                 .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
                 .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
               const behind = one => { const colour = getComputedStyle(one).backgroundColor;
                 return numbers(colour)[3] === 0 && one.parentElement ? behind(one.parentElement) : colour; };
               return Math.min(...seen.map(one => {
                 const [a, b] = [bright(getComputedStyle(one).color), bright(behind(one))];
                 return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); }));"""
        )
        assert least >= CONTRAST_OF_TEXT, path


def test_it_is_read_without_scripts_and_scripts_add_buttons_that_copy(store_server, open_page, browser):
    url = f"http://{store_server.http}/"
    page = open_page(url, scripts=False)
    # What is run here is the driver's, not the page's.
    assert page.run("return document.documentElement.classList.contains('scripted')") is False
    assert page.run("return document.querySelectorAll('button').length") == 0
    assert "curl -s" in page.run("return document.querySelector('main').innerText")
    page = open_page(url)
    browser.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite"], "origin": url.rstrip("/")}
    )
    page.run("document.querySelector('figcaption button').click()")
    copied = browser.execute_async_script(
        "const done = arguments[0]; setTimeout(() => navigator.clipboard.readText().then(done, done), 200)"
    )
    assert copied == page.run("return document.querySelector('figure code').textContent")
    assert page.run("return document.getElementById('said').textContent") == "Copied"


def test_the_page_has_landmarks_names_and_one_heading_of_each_rank_in_order(store_server, open_page):
    for path in ("/", "/docs"):
        page = open_page(f"http://{store_server.http}{path}")
        page.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        ranks = page.run("return [...document.querySelectorAll('h1, h2, h3')].map(one => Number(one.tagName[1]))")
        assert ranks[0] == 1
        assert ranks.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(ranks))
        assert page.run("return document.documentElement.lang") == "en"
        assert page.run("return document.querySelectorAll('main').length") == 1
        names = page.run("return [...document.querySelectorAll('[id]')].map(one => one.id)")
        assert len(names) == len(set(names))
        nameless = """return [...document.querySelectorAll("input, textarea, nav")]
                        .filter(one => !one.ariaLabel && !(one.labels || []).length).length"""
        assert page.run(nameless) == 0


@pytest.fixture(scope="module")
def crowded(tiny_onnx):
    """A service with 200 names, one of which failed to load."""
    source = ModelSource("tiny", "1", str(tiny_onnx))
    one = load_model(source, ServeSettings(models=(source,)), Turn())
    models = {}
    for number in range(199):
        signature = Signature(f"model-{number:03}", "7", [f.spec for f in one.signature.inputs.values()], [])
        models[signature.name, "7"] = msgspec.structs.replace(one, signature=signature)
    failed = IndexEntry("broken", "1", "UNAVAILABLE", "the file is <truncated>")
    yield Service(Catalog(models, {name: "7" for name, _ in models}, others=(failed,)))
    one.close()


def test_of_many_models_all_are_listed_and_one_is_told_in_full(crowded):
    address = Address("http://127.0.0.1:8000", "127.0.0.1:8001")
    everything = landing_page(crowded, address, "").body.decode()
    assert all(f">{name}</a>" in everything for name, _ in crowded.catalog.models)
    assert 'data-filters="#models"' in everything
    assert "curl -s" not in everything
    assert len(everything) < 200_000
    told = landing_page(crowded, address, "model-042").body.decode()
    assert "curl -s http://127.0.0.1:8000/v1/models/model-042/predict" in told
    assert told.count("Call it") == 1


def test_a_version_that_did_not_load_says_why_and_shows_no_example(crowded):
    html = landing_page(crowded, Address("http://127.0.0.1:8000", "127.0.0.1:8001"), "broken").body.decode()
    assert "the file is &lt;truncated&gt;" in html
    assert "no version of it is ready" in html
    assert "curl -s" not in html


def test_a_server_without_models_says_so():
    page = landing_page(Service(Catalog()), Address("http://127.0.0.1:8000", "127.0.0.1:8001"), "")
    assert b"No model is served" in page.body


def test_names_are_found_by_a_part_of_them(crowded, open_page, tmp_path):
    html = landing_page(crowded, Address("http://127.0.0.1:8000", "127.0.0.1:8001"), "").body
    path = tmp_path / "crowded.html"
    path.write_bytes(html)
    page = open_page(path.as_uri())
    shown = page.run(
        """const box = document.getElementById("filter"); box.value = "MODEL-04";
           box.dispatchEvent(new Event("input"));
           return [...document.querySelectorAll("#models tbody tr")].filter(row => row.checkVisibility()).length"""
    )
    assert shown == 10
    assert page.run("return document.getElementById('said').textContent") == "10 of 200 models"
