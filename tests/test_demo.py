"""`make demo`: what it says at its end, whatever became of the search."""

import runpy
from pathlib import Path

import pytest

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "demo.py"


@pytest.fixture(scope="module")
def demo():
    """The names of the recipe, which runs only as a program."""
    return runpy.run_path(str(RECIPE), run_name="demo")


def test_a_plan_that_cannot_be_made_is_no_end_of_the_demo(demo, tmp_path, capfd):
    asked = ("plan", "--report", tmp_path, "--rps", 10, "--slo", "p99=20ms")
    assert demo["mlserve"](*asked, accepted=(0, 2)) == 2
    assert "holds no run" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        demo["mlserve"](*asked)


@pytest.mark.parametrize(
    ("confirmed", "planned", "says"),
    [
        (True, True, []),
        (False, False, ["no VALID run confirmed the pick", "how many replicas 2,000/s take is not known"]),
        (False, True, ["no VALID run confirmed the pick"]),
        (True, False, ["how many replicas 2,000/s take is not known"]),
    ],
)
def test_the_last_lines_say_what_happened_and_how_to_serve_the_pick(demo, confirmed, planned, says):
    text = demo["ending"](Path("demo/tune/production.toml"), confirmed=confirmed, planned=planned)
    assert all(words in text for words in says)
    assert text.splitlines()[-1].startswith("serve what was picked: ")
    assert len(text.splitlines()) == (2 if says else 1)
