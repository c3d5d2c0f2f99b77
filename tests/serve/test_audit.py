"""The log of admin calls: every one of them, whoever made it and whatever came of it, and never a credential."""

import asyncio
import json
import logging
import os

import grpc
import pytest

from mlserve.errors import Forbidden, TooManyRequests, Unauthenticated, UnknownModelError
from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest
from mlserve.model.store import Store
from mlserve.model.tensors import TensorSpec
from mlserve.serve.audit import Audit, AuditedControl
from mlserve.serve.keys import add_key, new_key
from mlserve.wire import messages

NASTY = 'a\n{"who":"root"}\r\x1b[31m\x7f\u2028' + "x" * 600


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_line_says_who_asked_for_what_and_what_came_of_it(tmp_path):
    path = tmp_path / "audit"
    audit = Audit(str(path))
    with audit.call("POST /models", who="ci", remote="127.0.0.1:5") as line:
        line["status"] = 200
    with pytest.raises(Forbidden), audit.call(NASTY, who=NASTY, remote="", model=NASTY):
        raise Forbidden("no: " + NASTY)
    with pytest.raises(asyncio.CancelledError), audit.call("x", who="", remote=""):
        raise asyncio.CancelledError
    done, refused, left = lines(path)
    assert {name: value for name, value in done.items() if name != "time"} == {
        "action": "POST /models",
        "who": "ci",
        "remote": "127.0.0.1:5",
        "outcome": "ok",
        "status": 200,
        "worker": os.getpid(),
    }
    assert (refused["outcome"], refused["who"], len(refused["why"])) == ("Forbidden", NASTY[:256], 256)
    assert left["outcome"] == "CancelledError"
    content = path.read_bytes()
    assert len(content.splitlines()) == content.count(b"\n") == 3
    assert not any((byte < 32 and byte != 10) or byte > 126 for byte in content)
    assert path.stat().st_mode & 0o777 == 0o600


def test_strangers_do_not_fill_the_disk(tmp_path):
    now = [5.0]
    audit = Audit(str(tmp_path / "audit"), now=lambda: now[0])

    def call(who, error):
        with pytest.raises(error), audit.call("POST /models", who=who, remote=""):
            raise error("no")

    for _ in range(100):
        call("", Unauthenticated)
    for _ in range(30):
        call("ci", UnknownModelError)  # who may do it is told of with every call
    told = lines(tmp_path / "audit")
    assert len(told) == 20 + 30
    assert [line.get("left_out") for line in told[19:22]] == [None, 80, None]
    now[0] = 6.0
    call("", Unauthenticated)
    assert len(lines(tmp_path / "audit")) == 51


@pytest.mark.parametrize("error", [Unauthenticated, Forbidden, TooManyRequests])
def test_nor_do_those_whose_keys_do_not_allow_it_and_nobody_hides_another(tmp_path, error):
    now = [5.0]
    audit = Audit(str(tmp_path / "audit"), now=lambda: now[0])

    def call(who):
        with pytest.raises(error), audit.call("POST /models", who=who, remote=""):
            raise error("no", 1.0) if error is TooManyRequests else error("no")

    for _ in range(100):
        call("loud")
    call("quiet")
    told = lines(tmp_path / "audit")
    assert [line["who"] for line in told] == ["loud"] * 20 + ["quiet"]
    assert told[-1]["left_out"] == 80
    now[0] = 6.0
    for number in range(1000):  # names without end are no way around it
        call(f"name {number}")
    assert len(lines(tmp_path / "audit")) < 21 + 60
    now[0] = 7.0
    call("loud")
    assert lines(tmp_path / "audit")[-1]["who"] == "loud"


def test_a_file_that_was_renamed_is_made_anew_and_one_that_cannot_be_is_done_without(tmp_path, caplog):
    path = tmp_path / "audit"
    audit = Audit(str(path))
    audit.write({"action": "first"})
    path.rename(tmp_path / "audit.1")
    audit.write({"action": "second"})
    assert [line["action"] for line in lines(path)] == ["second"]
    path.unlink()
    path.mkdir()
    with caplog.at_level(logging.INFO, "mlserve.audit"):
        audit.write({"action": "third"})
    assert "cannot be written" in caplog.messages[0]
    assert json.loads(caplog.messages[1])["action"] == "third"


def test_a_disk_that_is_full_tears_one_line_at_most(tmp_path, monkeypatch, caplog):
    audit, write = Audit(str(tmp_path / "audit")), os.write
    with caplog.at_level(logging.INFO, "mlserve.audit"):
        monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:20]))
        audit.write({"action": "torn"})
        monkeypatch.setattr(os, "write", write)
        audit.write({"action": "whole"})
    torn, whole = (tmp_path / "audit").read_bytes().splitlines()
    assert len(torn) == 20
    assert json.loads(whole)["action"] == "whole"
    assert json.loads(caplog.messages[-1])["action"] == "torn"


def test_what_a_call_changes_is_told_where_it_is_done(tmp_path):
    class Control:
        async def load(self, name, version=""):
            await asyncio.sleep(0)

        unload = set_default = load

    control, audit = AuditedControl(Control()), Audit(str(tmp_path / "audit"))

    async def call(name):
        with audit.call("POST /x", who=name, remote=""):
            await control.load(name, "3")

    async def calls():
        await asyncio.gather(*(call(f"m{number}") for number in range(20)))
        await control.unload("nobody asked")

    asyncio.run(calls())
    told = lines(tmp_path / "audit")
    assert {(line["who"], line["model"], line["change"], line["version"]) for line in told} == {
        (f"m{number}", f"m{number}", "load", "3") for number in range(20)
    }


@pytest.fixture
def store(tmp_path, tiny_onnx):
    made = Store(tmp_path / "store")
    with made.staging() as folder:
        (folder / "made").mkdir()
        (folder / "made" / MODEL_FILE).write_bytes(tiny_onnx.read_bytes())
        x, scores = TensorSpec("x", "float32", ("batch", 30)), TensorSpec("scores", "float32", ("batch", 2))
        made.add(Artifact(folder / "made", Manifest(variant="fp32", inputs=(x,), outputs=(scores,))), "tiny")
    return made


def test_a_server_tells_of_every_admin_call(serving, store, tmp_path, until):
    file, audit = tmp_path / "keys.json", tmp_path / "audit"
    made = {name: new_key(name, [scope]) for name, scope in (("root", "admin"), ("ci", "infer"))}
    for new in made.values():
        add_key(file, new.key)
    secrets = {name: new.secret for name, new in made.items()}
    flags = ("--model-control", "explicit", "--keys", file, "--audit-log", audit, "--management-port", 0)
    with serving("tiny", "--store", store.root, *flags) as server:

        def ask(method, path, who=None, body=None, port=None):
            before = server.http_port
            server.http_port = port or before
            try:
                return server.request(method, path, body, {"authorization": f"Bearer {secrets[who]}"} if who else {})[0]
            finally:
                server.http_port = before

        load = "/v2/repository/models/tiny/load"
        assert ask("POST", load, "root") == 200
        assert ask("POST", load, "ci") == 403
        assert ask("POST", load) == 401
        assert ask("POST", "/v2/repository/models/ab%0Asent/load?key=secret-in-query", "root") == 404
        assert ask("POST", "/recording", "root", "{}") == 200
        assert ask("DELETE", "/recording/1", "root") == 200
        assert ask("POST", "/models", "root", json.dumps({"model_name": "tiny"})) == 409
        assert ask("PUT", "/models/tiny/1/set-default", "root", port=server.management_port) == 200
        assert ask("GET", "/v2/models/tiny", "ci") == 403  # no admin call: not told
        with grpc.insecure_channel(server.grpc) as channel:
            unload = channel.unary_unary(f"/{messages.SERVICE}/RepositoryModelUnload")
            request = messages.RepositoryModelUnloadRequest(model_name="tiny").SerializeToString()
            unload(request, metadata=(("authorization", f"Bearer {secrets['root']}"),), timeout=30)
            with pytest.raises(grpc.RpcError) as refused:
                unload(request, metadata=(("authorization", f"Bearer {secrets['ci']}"),), timeout=30)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        add_key(file, new_key("late", ["infer"]).key)
        until(lambda: any(line["action"] == "keys changed" for line in lines(audit)))
        assert not any(secret in server.log for secret in secrets.values())
    told = [
        (line["action"], line.get("who"), line.get("change"), line.get("model"), line["outcome"])
        for line in lines(audit)
    ]
    assert told == [
        (f"POST {load}", "root", "load", "tiny", "ok"),
        (f"POST {load}", "ci", None, "tiny", "Forbidden"),
        (f"POST {load}", None, None, "tiny", "Unauthenticated"),
        ("POST /v2/repository/models/ab%0Asent/load", "root", "load", "ab\nsent", "UnknownModelError"),
        ("POST /recording", "root", None, None, "ok"),
        ("DELETE /recording/1", "root", None, None, "ok"),
        ("POST /models", "root", None, None, "refused"),
        ("PUT /models/tiny/1/set-default", "root", "set-default", "tiny", "ok"),
        (f"/{messages.SERVICE}/RepositoryModelUnload", "root", "unload", "tiny", "ok"),
        (f"/{messages.SERVICE}/RepositoryModelUnload", "ci", None, None, "Forbidden"),
        ("keys changed", None, None, None, "ok"),
    ]
    content = audit.read_text()
    assert not any(secret in content for secret in (*secrets.values(), "secret-in-query"))
    assert all(line["remote"].startswith("127.0.0.1:") for line in lines(audit) if line["action"].startswith("P"))


def test_without_a_file_it_is_told_on_stderr(serving, store):
    with serving("tiny", "--store", store.root) as server:
        assert server.request("POST", "/v2/repository/models/tiny/unload")[0] == 403
        (line,) = [line for line in server.log.splitlines() if "mlserve.audit" in line]
        told = json.loads(line.partition("mlserve.audit: ")[2])
        assert (told["action"], told["outcome"]) == ("POST /v2/repository/models/tiny/unload", "Forbidden")
