import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.bench.generator.server_timing import read_server_timing


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ('queue;dur=0.120, compute;dur=1.934, batch;desc="8 rows"', (120_000, 1_934_000, 8)),
        (
            'queue;dur=0.120, compute;dur=1.934, parse;dur=0.010, wait;dur=0.000, batch;desc="1 row"',
            (120_000, 1_934_000, 1),
        ),
        ("compute;dur=3", (None, 3_000_000, None)),
        ('compute ; desc="a, b" ; dur=3,queue; dur="1"', (1_000_000, 3_000_000, None)),
        ('batch;desc=8;dur=1, cache;desc="hit"', (None, None, 8)),
        ("total;dur=1.2.3, queue;dur=1.2.3", (None, None, None)),
        ("compute;dur=-1, queue", (None, None, None)),
        (f'queue;dur={"9" * 400}.0, compute;dur=1.0, batch;desc="{"9" * 20} rows"', (None, 1_000_000, None)),
        (f"compute;dur={'9' * 400}, batch;desc={'9' * 6000}", (None, None, None)),
        ("", (None, None, None)),
    ],
)
def test_what_a_header_says_is_read_and_the_rest_passed_over(header, said):
    assert read_server_timing(header) == said


@given(st.text(max_size=60))
def test_no_header_is_an_error(header):
    assert len(read_server_timing(header)) == 3


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.integers(1, 999), st.booleans())
def test_the_quick_way_and_the_long_way_say_the_same(queue_us, compute_us, rows, tax):
    entries = [f"queue;dur={queue_us / 1e3:.3f}", f"compute;dur={compute_us / 1e3:.3f}"]
    entries += ["parse;dur=0.100"] * tax + [f'batch;desc="{rows} rows"']
    quick = read_server_timing(", ".join(entries))
    assert quick == read_server_timing(" , ".join(reversed(entries)))
    assert quick == (queue_us * 1000, compute_us * 1000, rows)
