"""Quantities as people type and read them."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import UsageError
from mlserve.units import (
    format_bytes,
    format_duration,
    format_exit,
    format_rate,
    format_ratio,
    parse_bytes,
    parse_duration_s,
    parse_fraction,
    parse_limits,
)

POSITIVE = st.floats(1e-6, 1e6, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("20s", 20.0), ("1.5m", 90.0), ("250ms", 0.25), ("3", 3.0), (" 2 h ", 7200.0), ("10us", 1e-5), (".5s", 0.5)],
)
def test_a_duration_is_a_number_and_a_unit(text, seconds):
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "0", "0s", "-1s", "s", "1 d", "1m30s", "nan", "inf", "1e400s", "9" * 5000, "1,5s"]
)
def test_what_is_no_duration_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match="is no duration; write a number above zero and a unit, such as 20s"):
        parse_duration_s(text)


@given(st.floats(1e-5, 1e5), st.sampled_from(["us", "ms", "s", "m", "h", ""]))
def test_a_duration_is_its_number_times_its_unit(number, unit):
    scale = {"us": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600, "": 1}[unit]
    written = f"{number:.12f}"
    assert parse_duration_s(written + unit) == pytest.approx(float(written) * scale)


def _tried(parse, text):
    """`(value, "")`, or None and what the UsageError says."""
    try:
        return parse(text), ""
    except UsageError as error:
        return None, str(error)


@given(st.text(max_size=12))
def test_any_text_is_a_duration_above_zero_or_a_usage_error(text):
    value, message = _tried(parse_duration_s, text)
    assert repr(text) in message if value is None else 0 < value < math.inf


@pytest.mark.parametrize(
    ("text", "count"),
    [("2GB", 2_000_000_000), ("1.5 GiB", 1_610_612_736), ("512mb", 512_000_000), ("90", 90), ("7 B", 7)],
)
def test_a_size_is_a_number_and_a_unit(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "0", "GB", "2TBs", "5PB", "-1MB", "2iB", "nan", "1e9GB"])
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match="such as 2GB"):
        parse_bytes(text)


@pytest.mark.parametrize(("text", "value"), [("10%", 0.1), ("0.1", 0.1), ("0", 0.0), (" 250% ", 2.5)])
def test_a_fraction_is_a_percentage_or_a_plain_number(text, value):
    assert parse_fraction(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "%", "-1%", "ten", "nan", "inf", "1e999"])
def test_what_is_no_fraction_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match="such as 10%"):
        parse_fraction(text)


def test_a_bare_number_that_may_have_been_meant_as_a_percentage_is_asked_about():
    assert parse_fraction("5") == 5.0
    assert parse_fraction("500%", most_bare=1.0) == 5.0
    with pytest.raises(UsageError, match=r"'5' would be 500%; did you mean 5%\?"):
        parse_fraction("5", most_bare=1.0)


@given(st.text(max_size=12))
def test_any_text_is_a_fraction_of_at_least_zero_or_a_usage_error(text):
    value, message = _tried(parse_fraction, text)
    assert repr(text) in message if value is None else 0 <= value < math.inf


def test_limits_are_names_and_values():
    assert parse_limits("p99=10%, p50 = 5ms") == {"p99": "10%", "p50": "5ms"}


@pytest.mark.parametrize("text", ["", "p99", "p99=", "=10%", "p99=10%,", "p99=10%,p99=20%"])
def test_what_is_no_limit_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match="p99"):
        parse_limits(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (math.nan, "-"),
        (0.0, "0.00 us"),
        (152e-6, "152 us"),
        (3.4e-3, "3.40 ms"),
        (0.9999e-3, "1.00 ms"),
        (9.999e-3, "10.0 ms"),
        (99.96e-3, "100 ms"),
        (0.99996, "1.00 s"),
        (1.25, "1.25 s"),
        (99.96, "1 m 40 s"),
        (125, "2 m 05 s"),
    ],
)
def test_a_duration_is_written_in_the_unit_a_person_would_choose(seconds, text):
    assert format_duration(seconds) == text


@given(POSITIVE)
def test_a_written_duration_is_within_half_of_its_last_digit(seconds):
    text = format_duration(seconds)
    if " m " in text:
        minutes, rest = re.fullmatch(r"(\d+) m (\d\d) s", text).groups()
        assert abs(int(minutes) * 60 + int(rest) - seconds) <= 0.51
    else:
        assert len(re.sub(r"\D", "", text)) == 3
        assert parse_duration_s(text) == pytest.approx(seconds, rel=0.0051)


@pytest.mark.parametrize(
    ("rate", "text"), [(1234.4, "1,234/s"), (98.54, "98.5/s"), (99.96, "100/s"), (9.996, "10.0/s"), (0.5, "0.50/s")]
)
def test_a_rate_has_three_digits_or_all_its_whole_ones(rate, text):
    assert format_rate(rate) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (812, "812 B"), (90_400_000, "90.4 MB"), (999_999, "1.00 MB"), (2.5e9, "2.50 GB")]
)
def test_bytes_are_counted_in_thousands(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(("ratio", "text"), [(1.824, "1.82x"), (0.25, "0.25x"), (12.34, "12.3x"), (math.nan, "-")])
def test_a_ratio_says_how_many_times(ratio, text):
    assert format_ratio(ratio) == text


@pytest.mark.parametrize(
    ("status", "said"), [(0, "status 0"), (3, "status 3"), (-11, "signal SIGSEGV"), (-40, "signal 40")]
)
def test_the_end_of_a_process_is_its_status_or_its_signal(status, said):
    assert format_exit(status) == said
