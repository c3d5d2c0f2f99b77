import pytest

from mlserve.bench.load.shape import first_rate_per_s, parse_shape, peak_rate_per_s, shape_name
from mlserve.errors import UsageError
from mlserve.runs.load import Bursts, Flat, Ramp, Replay, Spikes, Steps


@pytest.mark.parametrize(
    ("text", "shape", "name"),
    [
        ("flat", Flat(), ""),
        ("ramp:2000", Ramp(2000.0), "ramp to 2,000/s"),
        ("ramp:4x", Ramp(400.0), "ramp to 400/s"),
        ("steps:100,200,400", Steps((100.0, 200.0, 400.0)), "steps of 100/s, 200/s, 400/s"),
        ("steps:1x, 0.5x", Steps((100.0, 50.0)), "steps of 100/s, 50.0/s"),
        ("spikes:5x1s/10s", Spikes(5.0, 1.0, 10.0), "spikes of 5.00x for 1.00 s every 10.0 s"),
        ("bursts:500ms/4s", Bursts(0.5, 4.0), "bursts of 500 ms, 4.00 s apart"),
    ],
)
def test_a_shape_is_read_and_named(text, shape, name):
    assert parse_shape(text, 100.0) == shape
    assert shape_name(shape) == name


def test_a_replay_is_named_by_its_file():
    assert shape_name(Replay("t.parquet", "ab", 2.0)) == "replay of t.parquet at 2.00x its speed"
    assert shape_name(Replay("t.parquet", "ab")) == "replay of t.parquet"


@pytest.mark.parametrize(
    "text",
    ["", "wave", "flat:1", "ramp", "ramp:", "ramp:0", "ramp:-1", "ramp:nan", "ramp:inf", "ramp:x", "steps:",
     "steps:1,,2", "spikes:5", "spikes:5x1s", "spikes:x1s/10s", "spikes:5x10s/10s", "spikes:5x0s/1s", "bursts:1s",
     "bursts:1s/0", "bursts:a/b"],
)  # fmt: skip
def test_another_form_is_refused_with_the_forms_there_are(text):
    with pytest.raises(UsageError, match=r"--shape .*steps:100,200,400"):
        parse_shape(text, 100.0)


def test_the_first_and_the_highest_rate_of_each_shape():
    shapes = [Flat(), Ramp(20.0), Ramp(200.0), Steps((50.0, 300.0)), Spikes(5.0, 1.0, 2.0), Spikes(0.5, 1.0, 2.0)]
    assert [first_rate_per_s(shape, 100.0) for shape in shapes] == [100, 100, 100, 50, 100, 100]
    assert [peak_rate_per_s(shape, 100.0) for shape in shapes] == [100, 100, 200, 300, 500, 100]
