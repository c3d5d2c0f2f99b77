"""What limits an operation, from its work, its bytes and the machine's peaks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.optimize.diagnose.facts import Peaks
from mlserve.optimize.diagnose.roofline import bound, by_operator, roof_s

PEAKS = Peaks(100e9, 400e9, 10e9)


@pytest.mark.parametrize(
    ("self_us", "flops", "moved_bytes", "precision", "expected"),
    [
        (1200, 100_000_000, 1_000_000, "fp32", "compute"),
        (1200, 1_000_000, 10_000_000, "fp32", "memory"),
        (10_000, 100_000_000, 1_000_000, "fp32", "overhead"),
        (300, 100_000_000, 1_000, "int8", "compute"),
        (5, 0, 0, "int64", "overhead"),
    ],
)
def test_an_operation_is_limited_by_the_roof_it_is_near(made, self_us, flops, moved_bytes, precision, expected):
    operation = made.operation("MatMul", self_us, flops=flops, moved_bytes=moved_bytes, precision=precision)
    assert bound([operation], PEAKS) == expected
    assert bound([operation], None) is None


def test_nothing_is_claimed_of_what_the_profiler_does_not_tell(made):
    assert bound([made.operation("copy_", 100, moved_bytes=None)], PEAKS) is None
    assert bound([made.operation("addmm", 100, moved_bytes=None, flops=9_000_000)], PEAKS) == "compute"


def test_int8_has_a_roof_of_its_own_where_there_is_a_kernel(made):
    operation = made.operation("MatMulInteger", 1, flops=400_000_000, precision="int8")
    assert roof_s([operation], PEAKS) == pytest.approx(1e-3)
    assert roof_s([operation], Peaks(100e9, None, 10e9)) == pytest.approx(4e-3)


operations = st.lists(
    st.tuples(st.sampled_from(["MatMul", "Add", "Cast"]), st.integers(1, 10_000), st.integers(0, 10**9)), min_size=1
)


@given(operations)
def test_nothing_is_lost_by_operator_and_the_most_comes_first(made, given_operations):
    profile = made.profile([made.operation(kind, us, flops=work) for kind, us, work in given_operations])
    rows = by_operator(profile, PEAKS)
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert sum(row.self_s for row in rows) == pytest.approx(profile.operations_s)
    assert sum(row.flops for row in rows) == profile.flops
    assert sum(row.count for row in rows) == len(given_operations)
    assert [row.self_s for row in rows] == sorted((row.self_s for row in rows), reverse=True)
