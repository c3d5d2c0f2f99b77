"""`mlserve keys`: a key is shown once, listed without its hash, and revoked by its name."""

import json
import re
import stat
from datetime import UTC, datetime, timedelta

import pytest

from mlserve.serve.access import digest


@pytest.fixture
def keys(mlserve_here):
    """`keys(ARGUMENTS...)`: `mlserve keys ARGUMENTS...` in an empty folder."""
    return lambda *arguments: mlserve_here("keys", *arguments)


def test_a_key_is_printed_alone_on_stdout_and_kept_as_a_hash(mlserve, tmp_path):
    made = mlserve("keys", "create", "--name", "ci", "--scope", "infer", "--scope", "metadata")
    assert made.returncode == 0, made.stderr
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}\n", made.stdout)
    assert "shown only now" in made.stderr
    file = tmp_path / "keys.json"
    content = file.read_text()
    assert made.stdout.strip() not in content
    (entry,) = json.loads(content)["keys"]
    assert entry == {
        "name": "ci",
        "sha256": digest(made.stdout.strip().encode()),
        "scopes": ["infer", "metadata"],
        "expires_at": "",
    }
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_list_tells_scopes_and_expiry_and_no_hash(keys, tmp_path):
    file = tmp_path / "k.json"
    made = json.loads(
        keys("create", "--name", "ci", "--scope", "admin", "--expires", "90d", "--file", file, "--json").stdout
    )
    left = datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=89, hours=23) < left <= timedelta(days=90)
    assert (made["name"], made["scopes"], made["expired"], made["file"]) == ("ci", ["admin"], False, str(file))
    listed = keys("list", "--file", file)
    assert listed.returncode == 0, listed.stderr
    assert all(word in listed.stdout for word in ("ci", "admin", made["expires_at"]))
    content = json.loads(file.read_text())
    assert content["keys"][0]["sha256"] not in listed.stdout
    content["keys"][0]["expires_at"] = "2020-01-01T00:00:00+00:00"
    file.write_text(json.dumps(content))
    assert "(expired)" in keys("list", "--file", file).stdout
    (fact,) = json.loads(keys("list", "--file", file, "--json").stdout)
    limits = {"rate_per_s": 0.0, "burst": 0, "quota_per_day": 0}
    assert fact == {
        "name": "ci",
        "scopes": ["admin"],
        "expires_at": "2020-01-01T00:00:00+00:00",
        "expired": True,
        **limits,
    }


def test_what_a_key_may_ask_is_kept_and_listed(keys, tmp_path):
    limits = ("--rate", "90/min", "--burst", 20, "--quota", "5000/day")
    assert keys("create", "--name", "a", "--scope", "infer", *limits).returncode == 0
    assert keys("create", "--name", "b", "--scope", "infer", "--rate", "2.5/s").returncode == 0
    assert keys("create", "--name", "c", "--scope", "infer").returncode == 0
    kept = {each.pop("name"): each for each in json.loads((tmp_path / "keys.json").read_text())["keys"]}
    assert {name: value for name, value in kept["a"].items() if name not in ("sha256", "scopes", "expires_at")} == {
        "rate_per_s": 1.5,
        "burst": 20,
        "quota_per_day": 5000,
    }
    assert (kept["b"]["rate_per_s"], kept["b"]["burst"]) == (2.5, 3)
    assert not {"rate_per_s", "burst", "quota_per_day"} & kept["c"].keys()
    listed = keys("list").stdout
    assert all(text in listed for text in ("1.5/s, 20 at once; 5000/day", "2.5/s, 3 at once", "any"))


def test_a_revoked_key_is_gone(keys):
    for name in ("a", "b"):
        assert keys("create", "--name", name, "--scope", "infer").returncode == 0
    assert keys("revoke", "a").stdout == "key a is revoked\n"
    assert [key["name"] for key in json.loads(keys("list", "--json").stdout)] == ["b"]
    assert json.loads(keys("revoke", "b", "--json").stdout)["name"] == "b"
    assert "holds no key" in keys("list").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "--name", "ci", "--scope", "root"], "has the scope 'root'; use infer, metadata, admin, metrics"),
        (["create", "--name", "ci"], "Missing option '--scope'"),
        (["create", "--scope", "infer"], "Missing option '--name'"),
        (["create", "--name", "c i", "--scope", "infer"], "a key's name"),
        (["create", "--name", "ci", "--scope", "infer", "--expires", "soon"], "'soon' is no duration"),
        (["create", "--name", "ci", "--scope", "infer", "--expires", "0d"], "'0d' is no duration"),
        (["create", "--name", "ci", "--scope", "infer", "--expires", "999999d0"], "is no duration"),
        (["create", "--name", "ci", "--scope", "infer", "--expires", "999999999d"], "beyond the calendar"),
        (["create", "--name", "ci", "--scope", "infer", "--file", "no/keys.json"], "cannot be written"),
        (["create", "--name", "ci", "--scope", "infer", "--rate", "many"], "--rate 'many' is no number of requests"),
        (["create", "--name", "ci", "--scope", "infer", "--rate", "5"], "write it like 100/s or 100/min or 100/h"),
        (["create", "--name", "ci", "--scope", "infer", "--rate", "0/s"], "--rate '0/s' is no number of requests"),
        (["create", "--name", "ci", "--scope", "infer", "--rate", "9999999/s"], "a rate or quota that is none"),
        (["create", "--name", "ci", "--scope", "infer", "--burst", "5"], "--burst says how many requests of --rate"),
        (["create", "--name", "ci", "--scope", "infer", "--quota", "5/s"], "write it like 100/day"),
        (["list"], "keys.json cannot be read"),
        (["revoke", "ci"], "keys.json cannot be read"),
        (["revoke"], "Missing argument 'NAME'"),
    ],
)
def test_misuse_ends_with_two_and_the_reason(keys, tmp_path, arguments, message):
    done = keys(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
