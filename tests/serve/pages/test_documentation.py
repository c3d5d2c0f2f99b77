"""The page at `/docs`: all of every dialect, examples that run as they stand, and a form that sends."""

import json
import re

from mlserve.serve.dialects import CALLS, SLOW_CALLS


def html_of(server, path="/docs", port=None):
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port or server.http_port, timeout=30)
    try:
        connection.request("GET", path, headers={"accept": "text/html"})
        reply = connection.getresponse()
        body = reply.read().decode()
    finally:
        connection.close()
    assert reply.status == 200, body
    return body


def shown(html):
    """`(method, path)` of everything listed."""
    found = re.findall(r'<span class="method \w+">(\w+)</span> <code>([^<]*)</code>', html)
    assert len(found) == len(set(found))
    return set(found)


def test_every_curl_command_on_the_page_is_answered(store_server, commands_of, run_shell):
    answered = 0
    for model in ("spam", "tiny"):
        for command in commands_of(html_of(store_server, f"/docs?model={model}"), "shell"):
            exit_status, statuses, output = run_shell(command)
            assert (exit_status, statuses) == (0, ["200"]), f"{command}\n{statuses}\n{output}"
            answered += 1
    assert answered > 60


def test_every_page_is_told_as_in_openapi(store_server):
    document = store_server.get_json("/openapi.json")
    listed = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert shown(html_of(store_server)) == listed
    assert {("POST", "/v1/predict"), ("POST", "/graphql"), ("POST", "/spam/detect"), ("GET", "/")} <= listed


def test_every_grpc_call_is_told_with_its_scope(store_server):
    html = html_of(store_server)
    for call in (*CALLS, *SLOW_CALLS):
        service, _, method = call.path[1:].rpartition("/")
        assert f"<h3><code>{service}</code></h3>" in html
        assert f"<code>{method}</code>" in html
    assert re.search(r"<code>ModelInfer</code></th><td>infer</td><td>no</td>", html)


def test_management_is_told_on_its_own_port_alone(store_server):
    here = shown(html_of(store_server))
    there = shown(html_of(store_server, port=store_server.management))
    assert ("GET", "/docs") in here & there
    assert ("PUT", "/models/{name}") in there - here
    assert ("POST", "/v1/predict") in here - there
    assert "gRPC" not in html_of(store_server, port=store_server.management)


def test_a_request_is_sent_from_the_page(store_server, open_page, browser):
    page = open_page(f"http://{store_server.http}/docs?model=spam#friendly-POST--v1-predict")
    assert page.run("return document.getElementById('friendly-POST--v1-predict').open")
    answer = browser.execute_async_script(
        """const done = arguments[0];
           const form = document.querySelector("#friendly-POST--v1-predict .try");
           form.querySelector(".body").value = '{"model": "spam", "text": "free prize"}';
           form.querySelector(".send").click();
           const look = () => form.querySelector(".answer").hidden ? setTimeout(look, 20)
             : done([form.querySelector(".status").value, form.querySelector(".answer").textContent]);
           look();"""
    )
    assert answer[0].startswith("200 ")
    assert json.loads(answer[1])["label"] == "spam"
    assert page.faults() == []


def test_a_request_to_another_server_is_not_sent_from_the_page(store_server, open_page, browser):
    page = open_page(f"http://{store_server.http}/docs")
    said = browser.execute_async_script(
        """const done = arguments[0];
           const form = document.querySelector(".try");
           form.querySelector(".path").value = "//example.org/health";
           form.querySelector(".send").click();
           setTimeout(() => done(form.querySelector(".status").value), 300);"""
    )
    assert said == "not sent: the path is of another server"
    assert page.fetched() == []


def test_an_unknown_model_is_not_found(store_server):
    assert store_server.request("GET", "/docs?model=nobody")[0] == 404
    assert store_server.request("GET", "/openapi.json?model=nobody")[0] == 404


def test_where_one_model_is_served_paths_that_name_none_are_answered_too(
    serving_settings, tiny_onnx, commands_of, run_shell
):
    with serving_settings(tiny_onnx) as server:
        commands = [command for command in commands_of(html_of(server), "shell") if "/models/" not in command]
        assert any("/v1/predict" in command for command in commands)
        for command in commands:
            assert run_shell(command)[:2] == (0, ["200"]), command
