"""`mlserve serve` as a user meets it: what it prints, and one clear line for everything it cannot do."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mlserve.cli.served_models import follow_models
from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest
from mlserve.model.store import Store
from mlserve.model.tensors import TensorSpec
from mlserve.serve.versions.listing import StoreListing
from mlserve.serve.versions.policy import Choice, want

PORTS = ("--http-port", 0, "--grpc-port", 0)


@pytest.fixture
def refused(mlserve_here):
    """`refused(ARGUMENTS...)` -> the one line on stderr of `mlserve serve ARGUMENTS...`, which exits with 2."""
    return lambda *arguments: one_line(mlserve_here("serve", *PORTS, *arguments))


@pytest.fixture
def refused_at_once(mlserve_here):
    """The same in this process: of what is refused before a worker starts."""
    return lambda *arguments: one_line(mlserve_here("serve", *PORTS, *arguments))


def one_line(ended):
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def started():
    """`started(ARGUMENTS...)` -> a running `mlserve serve ARGUMENTS...`; every one is ended."""
    processes = []

    def run(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "mlserve", "serve", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def store(tmp_path, tiny_onnx):
    """A store with the tiny model in one version."""
    made = Store(tmp_path / "store")
    with made.staging() as folder:
        (folder / "made").mkdir()
        (folder / "made" / MODEL_FILE).write_bytes(tiny_onnx.read_bytes())
        x, scores = TensorSpec("x", "float32", ("batch", 30)), TensorSpec("scores", "float32", ("batch", 2))
        made.add(Artifact(folder / "made", Manifest(variant="fp32", inputs=(x,), outputs=(scores,))), "tiny")
    return made


@pytest.fixture
def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def lines_until(process, last):
    lines = []
    while line := process.stdout.readline():
        lines.append(line.rstrip("\n"))
        if last in line:
            return lines
    raise AssertionError(process.stderr.read())


def test_it_prints_its_urls_when_ready_and_that_it_has_drained_when_it_ends(started, tiny_onnx):
    process = started(tiny_onnx, "--http-port", 0, "--grpc-port", 0)
    lines = lines_until(process, "/metrics")
    assert lines[:2] == ["serving 1 model version", "  tiny@1"]
    assert re.fullmatch(r"  REST  http://127\.0\.0\.1:\d+/v2/models/tiny/infer", lines[2])
    assert re.fullmatch(r"  gRPC  127\.0\.0\.1:\d+", lines[3])
    assert re.fullmatch(r"  docs  http://127\.0\.0\.1:\d+/docs", lines[4])
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (0, "", "drained and stopped\n")


def test_with_json_it_prints_one_document_and_serves_everything_in_the_store(started, store):
    process = started("--store", store.root, "--http-port", 0, "--grpc-port", 0, "--json")
    document = json.loads(_document(process))
    assert document["models"] == [{"name": "tiny", "version": "1"}]
    assert len(document["workers"]) == 1
    assert document["http"].startswith("http://127.0.0.1:")


def _document(process):
    text = ""
    while line := process.stdout.readline():
        text += line
        if line == "}\n":
            return text
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_a_host_that_others_can_reach_is_refused_without_keys(refused_at_once, tiny_onnx, host):
    assert refused_at_once(tiny_onnx, "--host", host) == (
        f"error: --host {host} can be reached from other machines, and without keys everybody there may ask; "
        "name a file of keys with --keys, or mean it: --allow-anonymous"
    )


def test_a_host_that_others_can_reach_may_be_meant_and_is_warned_about(started, tiny_onnx):
    process = started(tiny_onnx, "--http-port", 0, "--grpc-port", 0, "--host", "0.0.0.0", "--allow-anonymous")
    lines_until(process, "/metrics")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert errors.splitlines()[0] == ("warning: 0.0.0.0 can be reached from other machines, and everybody may ask")


@pytest.mark.parametrize("flag", ["--http-port", "--grpc-port"])
def test_a_port_in_use_is_named_with_its_flag(refused_at_once, tiny_onnx, taken_port, flag):
    line = refused_at_once(tiny_onnx, flag, taken_port)
    assert line == (
        f"error: {flag} {taken_port}: port {taken_port} on 127.0.0.1 is in use; "
        "stop what listens there, or choose another port"
    )


def test_ports_that_are_free_are_taken(started, tiny_onnx):
    http, grpc = _free_port(), _free_port()
    lines = lines_until(started(tiny_onnx, "--http-port", http, "--grpc-port", grpc), "/metrics")
    assert lines[2].startswith(f"  REST  http://127.0.0.1:{http}/")
    assert lines[3] == f"  gRPC  127.0.0.1:{grpc}"


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_a_second_server_cannot_share_the_ports_of_the_first_by_accident(refused, started, tiny_onnx):
    process = started(tiny_onnx, "--http-port", 0, "--grpc-port", 0)
    lines = lines_until(process, "/metrics")
    for flag, line in (("--http-port", lines[2]), ("--grpc-port", lines[3])):
        port = re.search(r":(\d+)", line)[1]
        assert "is in use" in refused(tiny_onnx, flag, port)


def test_one_port_cannot_be_both(refused_at_once, tiny_onnx):
    port = _free_port()
    assert f"--grpc-port {port}: port {port} on 127.0.0.1 is in use" in refused_at_once(
        tiny_onnx, "--http-port", port, "--grpc-port", port
    )


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("no.such.host.invalid", "--host 'no.such.host.invalid' is no address of this machine"),
        ("192.0.2.1", "on 192.0.2.1 cannot be used: the address is not this machine's"),
        ("a" * 300, "is no address of this machine"),
    ],
)
def test_a_host_that_is_not_this_machine_is_refused(refused_at_once, tiny_onnx, host, message):
    assert message in refused_at_once(tiny_onnx, "--host", host, "--allow-anonymous")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.onnx"], "there is no file missing.onnx; give an .onnx file or the name of a model in the store"),
        (["nobody"], "has no model 'nobody'; it has nothing yet; add a model with: mlserve optimize SOURCE"),
        (["nobody@1"], "has no model 'nobody'"),
        (["../nobody"], "'../nobody' cannot be a model's name"),
        ([], "holds no model; add one with: mlserve optimize SOURCE, or serve a file: mlserve serve FILE.onnx"),
        (["TINY", "--device", "tpu"], "'tpu' is no device; use cpu, cuda or cuda:N"),
        (["TINY", "--drain", "0s"], "'0s' is no duration"),
        (["TINY", "--drain", "soon"], "'soon' is no duration"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(refused_at_once, tiny_onnx, arguments, message):
    assert message in refused_at_once(*[tiny_onnx if argument == "TINY" else argument for argument in arguments])


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("tiny@2", "model 'tiny' has no version or alias '2'; it has 1"),
        ("tiny@production", "has no version or alias 'production'"),
        ("tiny@" + "9" * 5000, "has no version or alias"),
        ("tinny", "has no model 'tinny'; it has tiny"),
    ],
)
def test_an_unknown_reference_is_told_with_what_there_is(refused_at_once, store, reference, message):
    assert message in refused_at_once("--store", store.root, reference)


def test_a_store_that_is_a_file_holds_no_model(refused_at_once, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert "holds no model" in refused_at_once("--store", tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.onnx", b"", "holds no ONNX graph"),
        ("model.onnx", b"this is no model", "is no ONNX model, or it is damaged; export it again"),
        ("model.pt", b"PK\x03\x04", "is no ONNX model, or it is damaged"),
        ("notes.txt", b"hello", "is no ONNX model"),
    ],
)
def test_a_file_that_is_no_model_is_told(refused, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in refused(tmp_path / name)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_model_is_told(refused, tmp_path, tiny_onnx, share):
    content = tiny_onnx.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: int(len(content) * share)])
    assert "cut.onnx" in refused(tmp_path / "cut.onnx")


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("{folder}/outside.bin", "lies outside the model's folder"),
        ("../outside.bin", "lies outside the model's folder"),
        ("link.bin", "is reached through a link (link.bin)"),
        ("missing.bin", "is kept in missing.bin, which is missing"),
        ("inside.bin", None),
    ],
)
def test_weights_outside_the_model_s_folder_are_refused_and_inside_served(
    refused, started, tmp_path, tiny_onnx, location, message
):
    folder = tmp_path / "model"
    folder.mkdir()
    model = onnx.load(tiny_onnx)
    weight = model.graph.initializer[0]
    raw = numpy_helper.to_array(weight).astype(np.float32).tobytes()
    for path in (tmp_path / "outside.bin", folder / "inside.bin"):
        path.write_bytes(raw)
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location.format(folder=tmp_path))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    if message is None:
        lines_until(started(folder / "model.onnx", "--http-port", 0, "--grpc-port", 0), "/metrics")
    else:
        assert message in refused(folder / "model.onnx")


def test_a_version_with_a_changed_byte_is_refused(refused, store):
    """The test above of a document in JSON serves the untouched one."""
    path = store.get("tiny", 1).model_path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "tiny@1 does not match its manifest: model.onnx was changed; restore it or" in refused(
        "--store", store.root, "tiny"
    )


def test_a_damaged_manifest_is_told(mlserve, store):
    (store.get("tiny", 1).directory / "manifest.json").write_bytes(b"{}")
    assert "manifest.json is damaged" in one_line(mlserve("serve", *PORTS, "--store", store.root))


def test_two_files_of_one_name_are_refused_and_one_file_twice_is_served_once(
    refused_at_once, started, tmp_path, tiny_onnx
):
    other = tmp_path / "tiny.onnx"
    other.write_bytes(tiny_onnx.read_bytes())
    assert "would both be served as tiny; rename one" in refused_at_once(tiny_onnx, other)
    lines = lines_until(started(tiny_onnx, tiny_onnx, "--http-port", 0, "--grpc-port", 0), "/metrics")
    assert lines[0] == "serving 1 model version"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--workers", "0"],
        ["--workers", "100000"],
        ["--threads", "0"],
        ["--threads", "100000"],
        ["--max-batch-rows", "0"],
        ["--max-batch-rows", "1000000000"],
        ["--max-delay-ms", "-1"],
        ["--max-delay-ms", "nan"],
        ["--max-delay-ms", "inf"],
        ["--http-port", "65536"],
        ["--http-port", "-1"],
        ["--http-port", "http"],
        ["--no-such-flag"],
    ],
)
def test_a_flag_out_of_range_is_refused_without_a_traceback(mlserve_here, tiny_onnx, arguments):
    ended = mlserve_here("serve", tiny_onnx, *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Usage:" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert arguments[0] in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--versions", "latest:0"], "'latest:0' does not say which versions; use default, all, latest:N, or versions"),
        (["--versions", "all", "tiny@1"], "--versions all is for names without a version, or for the whole store"),
        (["--route", "/spam"], "--route '/spam' is no PATH=NAME[@VERSION|@ALIAS]"),
        (["--route", "spam=tiny"], "--route 'spam=tiny' is no PATH=NAME[@VERSION|@ALIAS]"),
        (["--route", "/v2/models/{name}=tiny"], "/v2/models/{name}"),
    ],
)
def test_what_cannot_be_followed_or_routed_is_told_in_one_line(refused_at_once, store, arguments, message):
    assert message in refused_at_once("--store", store.root, *arguments)


def add_version(store, tiny_onnx, variant):
    with store.staging() as folder:
        (folder / "made").mkdir()
        (folder / "made" / MODEL_FILE).write_bytes(tiny_onnx.read_bytes())
        x, scores = TensorSpec("x", "float32", ("batch", 30)), TensorSpec("scores", "float32", ("batch", 2))
        store.add(Artifact(folder / "made", Manifest(variant=variant, inputs=(x,), outputs=(scores,))), "tiny")


@pytest.fixture
def versions(store, tiny_onnx):
    """The store with two more versions, of which production means the first."""
    for variant in ("second", "third"):
        add_version(store, tiny_onnx, variant)
    store.promote("tiny", 2)
    return store


@pytest.mark.parametrize(
    ("names", "policy", "followed"),
    [
        ([], None, {"1", "2", "3"}),
        ([], "latest:2", {"2", "3"}),
        ([], "latest:1", {"2", "3"}),  # with what production means
        (["tiny"], None, {"2"}),
        (["tiny"], "all", {"1", "2", "3"}),
        (["tiny@1", "tiny"], None, {"1", "2"}),
        (["tiny"], "3,production", {"2", "3"}),
    ],
)
def test_names_and_the_policy_say_which_versions_are_followed(versions, names, policy, followed):
    (follow,) = follow_models(names, versions.root, policy, explicit=False).store.follow
    there = StoreListing(versions.root).look()["tiny"]
    assert want(there, Choice(follow.versions)).versions == followed


@pytest.mark.parametrize(
    ("arguments", "served"),
    [
        ([], ["1", "2", "3"]),
        (["--versions", "latest:1"], ["2", "3"]),
        (["tiny@1", "tiny"], ["1", "2"]),
        (["--model-control", "explicit"], []),
        (["--model-control", "explicit", "tiny@3"], ["3"]),
    ],
)
def test_the_versions_asked_for_are_served(started, versions, arguments, served):
    process = started("--store", versions.root, "--http-port", 0, "--grpc-port", 0, "--json", *arguments)
    document = json.loads(_document(process))
    assert document["models"] == [{"name": "tiny", "version": version} for version in served]


def test_names_routes_and_the_management_port_are_as_asked_for(started, store, tiny_onnx):
    flags = ["--http-port", 0, "--grpc-port", 0, "--management-port", 0, "--server-name", "triton"]
    process = started("--store", store.root, *flags, "--route", "/my/tiny=tiny@1", "--json")
    document = json.loads(_document(process))
    assert _get(f"{document['http']}/v2")["name"] == "triton"
    assert document["management"].startswith("http://127.0.0.1:")
    assert _get(f"{document['management']}/models")["models"][0]["modelName"] == "tiny"
    for url, status in ((document["management"], "403"), (document["http"], "404")):
        with pytest.raises(urllib.error.HTTPError, match=status):
            _get(f"{url}/models/tiny/1/set-default", method="PUT")
    body = json.dumps({"inputs": {"x": [[0.0] * 30]}}).encode()
    assert "outputs" in _get(f"{document['http']}/my/tiny", body)


def _get(url, body=None, method=None):
    request = urllib.request.Request(url, body, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.loads(reply.read())


def test_a_taken_management_port_is_named_with_its_flag(refused_at_once, tiny_onnx, taken_port):
    assert f"--management-port {taken_port}: port {taken_port} on 127.0.0.1 is in use" in refused_at_once(
        tiny_onnx, "--management-port", taken_port
    )


@pytest.mark.parametrize("name", ["SAGEMAKER_BIND_TO_PORT", "AIP_HTTP_PORT"])
def test_a_platform_that_chooses_the_port_gets_it(started, tiny_onnx, monkeypatch, name):
    port = _free_port()
    monkeypatch.setenv(name, str(port))
    lines = lines_until(started(tiny_onnx, "--grpc-port", 0), "/metrics")
    assert lines[2] == f"  REST  http://127.0.0.1:{port}/v2/models/tiny/infer"


def test_vertex_ai_finds_its_paths_and_reaches_the_container(started, refused_at_once, store, monkeypatch):
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/v1/endpoints/7:predict")
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/healthz")
    arguments = ["--store", store.root, "tiny", "--http-port", 0, "--grpc-port", 0]
    assert "--allow-anonymous" in refused_at_once(*arguments)
    assert "Vertex AI asks one model" in refused_at_once("--store", store.root)
    document = json.loads(_document(started(*arguments, "--allow-anonymous", "--json")))
    http = document["http"].replace("0.0.0.0", "127.0.0.1")
    assert _get(f"{http}/healthz") == {"ready": True}
    assert "predictions" in _get(f"{http}/v1/endpoints/7:predict", json.dumps({"instances": [[0.0] * 30]}).encode())
