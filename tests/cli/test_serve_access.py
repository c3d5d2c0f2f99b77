"""`mlserve serve`: flags say who may ask, what they cannot mean is told in one line, and nothing is open by itself."""

import json
import socket
import time

import psutil
import pytest

from mlserve.serve.keys import add_key, new_key

jwt = pytest.importorskip("jwt")
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402

PORTS = ("--http-port", 0, "--grpc-port", 0)
TOKENS = ("--jwt-issuer", "https://id.example", "--jwt-audience", "mlserve")


def jwks(path, kid="k", private=None):
    """A key to sign tokens with; its public half goes to a JWKS file."""
    private = private or ec.generate_private_key(ec.SECP256R1())
    public = jwt.get_algorithm_by_name("ES256").to_jwk(private.public_key(), as_dict=True)
    path.write_text(json.dumps({"keys": [{**public, "kid": kid}]}))
    return private


def token(private, scope="infer metadata", kid="k", **changes):
    now = int(time.time())
    claims = {"iss": "https://id.example", "aud": "mlserve", "sub": "ci", "exp": now + 60, "nbf": now, "scope": scope}
    return jwt.encode(claims | changes, private, "ES256", {"kid": kid})


@pytest.fixture
def until():
    """`until(condition)` waits for a truth; the test fails when it does not come."""

    def wait(condition, limit_s=30.0):
        deadline_s = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline_s, "it did not come about"
            time.sleep(0.05)

    return wait


@pytest.fixture
def refused(mlserve_here, tiny_onnx):
    """`refused(ARGUMENTS...)` -> the one line that `mlserve serve TINY ARGUMENTS...` ends with."""

    def run(*arguments):
        ended = mlserve_here("serve", tiny_onnx, *PORTS, *arguments)
        assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
        (line,) = ended.stderr.splitlines()
        return line

    return run


def own_addresses():
    """Addresses of this machine that are not loopback, and those that mean all of them."""
    found = {
        each.address for group in psutil.net_if_addrs().values() for each in group if each.family == socket.AF_INET
    }
    return ["0.0.0.0", "::", "0", "00.0", *sorted(each for each in found if not each.startswith("127."))]


@pytest.mark.parametrize("host", own_addresses())
def test_no_address_that_others_can_reach_is_listened_on_without_keys(refused, host):
    line = refused("--host", host)
    assert "can be reached from other machines, and without keys everybody there may ask" in line
    assert "--allow-anonymous" in line
    assert "can be reached" in refused("--host", host, "--management-port", 0, "--allowed-host", "*")


def test_a_name_is_looked_up_once_and_listened_on_as_it_was_then(refused, monkeypatch):
    from mlserve.serve import supervisor

    told = iter(["127.0.0.1", *["0.0.0.0"] * 9])
    asked = []
    monkeypatch.setattr(supervisor, "resolve_host", lambda host: (asked.append(host), next(told))[1])
    monkeypatch.setattr(supervisor, "run_server", lambda settings, _: (_ for _ in ()).throw(ValueError(settings.host)))
    with pytest.raises(ValueError, match=r"^127\.0\.0\.1$"):
        refused("--host", "rebinding.example")
    assert asked.count("rebinding.example") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jwks", "JWKS"], "give --jwt-issuer, --jwt-audience, too"),
        (["--jwks", "JWKS", "--jwt-issuer", "x"], "give --jwt-audience, too"),
        ([*TOKENS], "give --jwks, too"),
        (["--allowed-origin", "shop.example"], "--allowed-origin 'shop.example' is no site"),
        (["--allowed-origin", "https://shop.example/cart"], "is no site"),
        (["--audit-log", "absent/audit"], "there is no folder"),
    ],
)
def test_what_cannot_be_meant_is_told_in_one_line(refused, tmp_path, arguments, message):
    jwks(tmp_path / "jwks.json")
    assert message in refused(*[tmp_path / "jwks.json" if each == "JWKS" else each for each in arguments])


@pytest.fixture
def serving(tiny_onnx, tmp_path):
    """`serving(ARGUMENTS...)` -> `(process, document)` of `mlserve serve TINY ARGUMENTS...`; every one is ended."""
    import subprocess
    import sys

    started = []

    def run(*arguments):
        command = [sys.executable, "-m", "mlserve", "serve", tiny_onnx, *PORTS, "--json", *arguments]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen([str(each) for each in command], stdout=subprocess.PIPE, stderr=log)
        started.append(process)
        text = b""
        for line in process.stdout:
            text += line
            if line.startswith(b"}"):
                return process, json.loads(text)
        raise AssertionError((tmp_path / "log").read_text())

    yield run
    for process in started:
        process.terminate()
        process.communicate(timeout=60)


def test_tokens_and_keys_open_both_protocols_and_a_removed_key_closes_them(serving, tmp_path, until):
    import urllib.error
    import urllib.request

    import grpc

    from mlserve.wire import messages

    file = tmp_path / "jwks.json"
    private = jwks(file)
    made = new_key("ci", ["metadata"])
    add_key(tmp_path / "keys.json", made.key)
    # Beyond this machine: that tokens are asked for is reason enough to be let.
    process, document = serving("--host", "0.0.0.0", "--jwks", file, *TOKENS, "--keys", tmp_path / "keys.json")
    http, grpc_address = (document[each].replace("0.0.0.0", "127.0.0.1") for each in ("http", "grpc"))

    def status(credential, path="/v2"):
        request = urllib.request.Request(http + path, headers={"authorization": f"Bearer {credential}"})
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return reply.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def code(credential):
        with grpc.insecure_channel(grpc_address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            ask = channel.unary_unary(f"/{messages.SERVICE}/ServerMetadata")
            try:
                ask(b"", metadata=(("authorization", f"Bearer {credential}"),), timeout=30)
            except grpc.RpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    for good in (made.secret, token(private)):
        assert (status(good), code(good)) == (200, grpc.StatusCode.OK)
        assert status(good, "/metrics") == 403
    late = int(time.time()) - 60
    stranger = ec.generate_private_key(ec.SECP256R1())
    for bad in (token(private, exp=late), token(private, aud="x"), token(private, iss="x"), token(stranger), "a.b.c"):
        assert (status(bad), code(bad)) == (401, grpc.StatusCode.UNAUTHENTICATED)
    assert (status(token(private, scope="infer")), code(token(private, scope="infer"))) == (
        403,
        grpc.StatusCode.PERMISSION_DENIED,
    )
    before = token(private)
    assert status(before) == 200
    another = jwks(file)
    until(lambda: status(before) == 401)
    assert status(token(another)) == 200
    assert status(made.secret) == 200
    assert psutil.pid_exists(process.pid)
