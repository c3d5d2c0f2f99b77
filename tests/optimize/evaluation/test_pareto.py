"""Which variants are beaten in everything."""

from hypothesis import given
from hypothesis import strategies as st

from mlserve.optimize.evaluation.pareto import Point, dominated

SMALL = st.integers(0, 3)
POINTS = st.lists(st.tuples(SMALL, SMALL, SMALL, SMALL), max_size=8).map(
    lambda costs: [Point(f"v{number}", a, (b, c), d) for number, (a, b, c, d) in enumerate(costs)]
)


def beats(one, other):
    return one.costs != other.costs and all(mine <= theirs for mine, theirs in zip(one.costs, other.costs, strict=True))


@given(POINTS)
def test_exactly_those_are_dominated_that_another_beats(points):
    found = dominated(points)
    assert set(found) == {point.name for point in points if any(beats(other, point) for other in points)}


@given(POINTS)
def test_the_one_that_dominates_is_itself_undominated(points):
    by_name = {point.name: point for point in points}
    for loser, winner in dominated(points).items():
        assert winner not in dominated(points)
        assert beats(by_name[winner], by_name[loser])


@given(POINTS.filter(bool))
def test_some_variant_is_always_left(points):
    assert len(dominated(points)) < len(points)


def test_a_variant_that_is_best_in_anything_stays():
    fp32 = Point("fp32", 0.0, (4.0, 40.0), 100)
    int8 = Point("int8", 0.02, (2.0, 20.0), 25)
    slow = Point("slow", 0.03, (5.0, 20.0), 25)
    assert dominated([fp32, int8, slow]) == {"slow": "int8"}
