"""`production.toml`: what was written is read again, and what cannot be is refused with its place."""

import tomllib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import UsageError
from mlserve.runs.production import (
    MEASURED_KEYS,
    Evidence,
    Expected,
    Production,
    ServeChoice,
    is_production,
    read_production,
    serve_digest,
    write_production,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
FIGURES = st.floats(0, 1e300, allow_subnormal=True)
CHOICES = st.builds(
    ServeChoice,
    models=st.lists(TEXTS, min_size=1, max_size=3).map(tuple),
    store=TEXTS,
    engine=TEXTS,
    workers=st.integers(1, 256),
    threads=st.integers(0, 1024),
    max_delay_ms=st.floats(0, 60_000),
    route=st.lists(TEXTS, max_size=2).map(tuple),
    cache=st.booleans(),
    log_requests=st.floats(0, 1),
    management_port=st.integers(-1, 65_535),
)
EXPECTED = st.builds(
    Expected,
    protocol=st.sampled_from(["rest", "grpc"]),
    rate_per_s=FIGURES,
    batch_rows=st.integers(1, 1000),
    p50_ms=FIGURES,
    p99_ms=FIGURES,
    p99_low_ms=st.none() | FIGURES,
    p99_high_ms=st.none() | FIGURES,
    slo=TEXTS,
    accuracy_loss=st.none() | st.floats(-1, 1),
)
EVIDENCE = st.builds(
    Evidence,
    runs=st.lists(TEXTS, max_size=3).map(tuple),
    valid=st.booleans(),
    cpu=TEXTS,
    cores=st.integers(1, 512),
    mlserve=TEXTS,
    measured_at=TEXTS,
)


@given(serve=CHOICES, expected=st.none() | EXPECTED, evidence=st.none() | EVIDENCE)
def test_what_is_written_is_read_again(tmp_path_factory, serve, expected, evidence):
    path = tmp_path_factory.getbasetemp() / "production.toml"
    production = Production(serve=serve, expected=expected, evidence=evidence)
    write_production(path, production)
    assert read_production(path) == production


@given(serve=CHOICES, other=CHOICES)
def test_a_file_is_edited_once_a_key_that_the_figures_depend_on_is_another(tmp_path_factory, serve, other):
    path = tmp_path_factory.getbasetemp() / "edited.toml"
    evidence = Evidence(runs=(), valid=True, cpu="x", cores=2, mlserve="0", measured_at="now")
    sealed = msgspec.structs.replace(evidence, serve_sha256=serve_digest(serve))
    write_production(path, Production(serve=other, evidence=sealed))
    alike = all(getattr(serve, key) == getattr(other, key) for key in MEASURED_KEYS)
    assert read_production(path).is_edited == (not alike)
    write_production(path, Production(serve=serve, evidence=sealed))
    assert not read_production(path).is_edited
    assert not Production(serve=other, evidence=evidence).is_edited  # of an older mlserve
    for key, value in {"workers": serve.workers % 256 + 1, "http_port": 1, "drain": "1s"}.items():
        changed = msgspec.structs.replace(serve, **{key: value})
        assert Production(serve=changed, evidence=sealed).is_edited == (key == "workers")


def test_it_is_written_for_people_too_and_whole_or_not_at_all(tmp_path):
    path = tmp_path / "production.toml"
    write_production(path, Production(serve=ServeChoice(models=("minilm@2",), workers=2)))
    text = path.read_text()
    assert "mlserve serve --config production.toml" in text
    assert tomllib.loads(text)["serve"] == {
        "models": ["minilm@2"],
        "store": "store",
        "device": "cpu",
        "workers": 2,
        "threads": 0,
        "max_batch_rows": 32,
        "max_delay_ms": 0.0,
    }
    assert [each.name for each in tmp_path.iterdir()] == ["production.toml"]
    with pytest.raises(UsageError, match="cannot be written"):
        write_production(tmp_path / "missing" / "production.toml", Production(serve=ServeChoice(models=("m",))))
    write_production(tmp_path / "my choice.toml", Production(serve=ServeChoice(models=("m",))))
    assert "mlserve serve --config 'my choice.toml' " in (tmp_path / "my choice.toml").read_text()


HEAD = "format_version = 1\n[serve]\nmodels = ['m@1']\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("models =", "is no TOML"),
        ("[serve]\nmodels = ['m']", "has no format_version, as another kind of file; give a production.toml"),
        ("format_version = 2", "has format_version 2"),
        ("format_version = 1", "the whole file: Object missing required field `serve`"),
        (HEAD + "worker = 2", "serve: there is no key worker; was workers meant?"),
        (HEAD + "workers = '2'", 'serve.workers = "2": Expected `int`, got `str`'),
        (HEAD + "workers = 0", "serve.workers = 0: Expected `int` >= 1"),
        (HEAD + "http_port = 70000", "serve.http_port = 70000: Expected `int` <= 65535"),
        (HEAD + "max_delay_ms = nan", "serve.max_delay_ms = nan"),
        (HEAD + "model_control = 'nobody'", "serve.model_control: 'nobody'"),
        (HEAD + "allow_anonymous = true", "serve: there is no key allow_anonymous; mend it"),
        (HEAD + "[wishes]\na = 1", "the whole file: there is no key wishes; mend it"),
        ("format_version = 1\n[serve]\nmodels = []", "serve.models: `models` is empty"),
        (HEAD + "[expected]\nprotocol = 'soap'", "expected.protocol = \"soap\": Invalid enum value 'soap'"),
        (
            HEAD + "[expected]\nprotocol = 'rest'\nrate_per_s = 1\nbatch_rows = 1\np50_ms = -1\np99_ms = 1",
            "expected.p50_ms: -1.0 is no figure",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(tmp_path, content, message):
    (tmp_path / "production.toml").write_text(content)
    with pytest.raises(UsageError) as refused:
        read_production(tmp_path / "production.toml")
    assert message in str(refused.value)


def test_a_file_that_is_right_is_not_refused_and_one_that_is_not_there_is(tmp_path):
    (tmp_path / "production.toml").write_text(HEAD + "max_delay_ms = 2")
    assert read_production(tmp_path / "production.toml").serve.max_delay_ms == 2.0
    with pytest.raises(UsageError, match="cannot be read"):
        read_production(tmp_path / "other.toml")
    assert [is_production(tmp_path / name) for name in ("a.toml", "A.TOML", "report.json")] == [True, True, False]


def test_every_key_of_serve_is_a_flag_of_serve():
    import inspect

    from mlserve.cli.serve import serve

    flags = set(inspect.signature(serve).parameters) | {"route"}
    assert set(ServeChoice.__struct_fields__) <= flags
    assert flags - set(ServeChoice.__struct_fields__) == {
        *("context", "routes", "config", "allow_changed"),
        *("allow_anonymous", "json"),
    }


def test_the_defaults_of_serve_are_those_of_its_flags():
    import inspect

    from mlserve.cli.serve import serve

    defaults = {name: parameter.default for name, parameter in inspect.signature(serve).parameters.items()}
    choice = msgspec.structs.asdict(ServeChoice(models=("m",)))
    for name, default in defaults.items():
        if isinstance(default, str | int | float) and name in choice:
            assert choice[name] == default, name
