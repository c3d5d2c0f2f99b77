"""Points in characters."""

from hypothesis import given
from hypothesis import strategies as st

from mlserve.cli.scatter import Dot, scatter

NUMBERS = st.floats(-1e6, 1e6)


def test_the_corners_are_where_they_belong():
    lines = scatter([Dot("a", 0.0, 2.0), Dot("b", 1.0, 0.5)], "loss", "speed").splitlines()
    assert lines[0].strip() == "speed"
    assert lines[1].startswith("  2 |a")
    assert lines[-3].startswith("0.5 |")
    assert lines[-3].endswith("b")
    assert "loss" in lines[-1]


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12))
def test_every_place_holds_the_first_of_its_points(points):
    dots = [Dot("abcdefghijkl"[number], x, y) for number, (x, y) in enumerate(points)]
    drawn = scatter(dots, "x", "y")
    body = "".join(line.partition("|")[2] for line in drawn.splitlines())
    assert "a" in body
    assert set(body.replace(" ", "")) <= {dot.mark for dot in dots}
    assert max(map(len, drawn.splitlines())) <= 80
