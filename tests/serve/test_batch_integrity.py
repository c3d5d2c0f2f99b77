"""No answer is crossed and none is lost, whoever shares a batch with whom; and a crossed one would be seen."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
REQUESTS = 2000
CLIENTS = 64


@pytest.fixture(scope="module")
def integrity():
    """The benchmark that asks a hundred thousand times; here it asks a few thousand times."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield importlib.import_module("integrity")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def models(integrity, tmp_path_factory):
    return integrity.make_models(tmp_path_factory.mktemp("integrity"), REQUESTS * integrity.CELLS)


def test_64_clients_each_get_their_own_answers_and_bad_requests_fail_alone(integrity, models, tmp_path):
    questions = integrity.make_questions(REQUESTS)
    with integrity.serving(models, tmp_path) as endpoints:
        tally = integrity.ask_all(endpoints, questions, CLIENTS)
    assert tally.faults == []
    assert "Traceback" not in (tmp_path / "server.log").read_text()
    bad = sum(question.bad for question in questions)
    assert bad > REQUESTS / 100
    assert {verdict: tally.total(verdict) for verdict in ("right", "refused", "crossed", "lost")} == {
        "right": REQUESTS - bad,
        "refused": bad,
        "crossed": 0,
        "lost": 0,
    }
    assert {way for way, verdict in tally.counts if verdict == "right"} == {way.__name__ for way in integrity.WAYS}


def test_a_server_that_crosses_answers_is_caught_over_every_protocol(integrity, models, tmp_path):
    """The negative control: it also shows that these requests do share batches, for only there can answers cross."""
    with integrity.serving(models, tmp_path, crossed=True) as endpoints:
        tally = integrity.ask_all(endpoints, integrity.make_questions(1000, 1, REQUESTS * integrity.CELLS), CLIENTS)
    assert {way for way, verdict in tally.counts if verdict == "crossed"} == {way.__name__ for way in integrity.WAYS}
    assert tally.total("lost") == 0
    assert tally.total("crossed") > 100


def test_no_two_questions_hold_the_same_value(integrity):
    for model in ("lookup", "texts"):
        values = [
            value
            for question in integrity.make_questions(500)
            if question.model == model
            for value in question.values.ravel().tolist()
        ]
        assert len(values) == len(set(values)) > 500


def test_the_judge_tells_verdicts_apart(integrity):
    answer_of = importlib.import_module("integrity_questions").Answer
    questions = integrity.make_questions(500)
    good = [question for question in questions if question.model == "lookup" and not question.bad]
    bad = next(question for question in questions if question.bad)
    mine, other = good[0], next(each for each in good[1:] if (each.rows, each.wide) == (good[0].rows, good[0].wide))

    def verdict(question, values=None, **more):
        return integrity.judge(question, answer_of(values, **more))

    assert verdict(mine, mine.answer) == "right"
    assert verdict(mine, other.answer) == "crossed"
    assert verdict(mine, mine.answer[:, :0]) == "crossed"
    assert verdict(mine, mine.answer, version="3") == "crossed"
    assert verdict(mine, refused=True) == "crossed"
    assert verdict(mine, fault="no answer") == "lost"
    assert verdict(bad, refused=True) == "refused"
    assert verdict(bad, np.zeros((1, 1))) == "crossed"
    swapped = mine.answer.copy()
    swapped.flat[-1] += 1
    assert verdict(mine, swapped) == "crossed"
