"""The judge: only the right values, of a version that may answer, with the request's own id, are ok."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scorecard.http_way import read_said, write_request
from scorecard.judging import Question, Said, judge
from scorecard.known import expected, factor_of, payload

NUMBERS = st.integers(0, 2**28 - 1)
VERSIONS = st.integers(1, 900)
QUESTIONS = st.builds(Question, st.integers(0, 2**25), st.just(""), st.integers(1, 5))


def right(question, version="1"):
    return Said("200", question.id, version, question.expected(version))


@given(NUMBERS, NUMBERS)
def test_no_two_numbers_ask_the_same(one, other):
    assert (payload(one) == payload(other)) == (one == other)


@given(NUMBERS, VERSIONS)
def test_what_is_expected_is_what_numpy_multiplies_and_exact(number, version):
    row = np.array(payload(number), np.float32)
    assert (row * np.float32(factor_of(version))).tolist() == list(expected(number, version))
    assert expected(number, version)[0] == payload(number)[0] * factor_of(version)


@given(QUESTIONS, VERSIONS)
def test_the_right_answer_of_any_version_is_ok(question, version):
    assert judge(question, right(question, str(version))) == ("ok", "")


@given(QUESTIONS, QUESTIONS)
def test_another_questions_answer_is_wrong(question, other):
    kind, _ = judge(question, right(other))
    assert kind == ("ok" if (question.number, question.rows) == (other.number, other.rows) else "wrong")
    # Nor does it help to claim the id.
    kind, _ = judge(question, right(other)._replace(id=question.id))
    assert kind == ("ok" if question.expected("1") == other.expected("1") else "wrong")


@given(QUESTIONS, st.data())
def test_one_changed_value_is_wrong(question, data):
    values = question.expected("1")
    place = data.draw(st.integers(0, len(values) - 1))
    values[place] = float(np.nextafter(np.float32(values[place]), np.float32(np.inf)))
    assert judge(question, right(question)._replace(values=values))[0] == "wrong"
    assert judge(question, right(question)._replace(values=values[:place]))[0] == "wrong"


@given(QUESTIONS, VERSIONS, VERSIONS)
def test_a_version_that_was_asked_for_must_answer(question, asked, answered):
    question = question._replace(asked=str(asked))
    assert judge(question, right(question, str(answered)))[0] == ("ok" if asked == answered else "wrong")
    # What one version computed and another signs is wrong, too.
    signed = right(question, str(answered))._replace(version=str(asked))
    same = factor_of(asked) == factor_of(answered)
    assert judge(question, signed)[0] == ("ok" if same else "wrong")


@given(QUESTIONS, st.sampled_from(["400", "404", "429", "500", "503", "504", "UNAVAILABLE", "INTERNAL"]), st.booleans())
def test_refusals_are_told_apart_and_never_ok(question, status, retry_after):
    kind, told = judge(question, Said(status, retry_after=retry_after, text="because"))
    assert kind == ("shed" if retry_after and status in ("429", "503") else "error")
    assert "because" in told
    assert judge(question, Said(status, explained=False, text="<html>"))[0] == "lost"


def test_what_is_exhausted_is_shed_and_silence_is_lost():
    assert judge(Question(1), Said("RESOURCE_EXHAUSTED"))[0] == "shed"
    assert judge(Question(1), Said(fault="EOF")) == ("lost", "EOF")
    assert judge(Question(1), Said("200"))[0] == "lost"


def test_answers_are_read_as_servers_write_them():
    question = Question(7)
    body = b'{"model_name":"known","model_version":"1","id":"q7","outputs":[{"name":"y","datatype":"FP32",'
    flat, rows = body + b'"shape":[1,2],"data":[16,-2.0]}]}', body + b'"shape":[1,2],"data":[[16.0,-2]]}]}'
    assert judge(question, read_said(b"http/1.1 200 ok", flat)) == ("ok", "")
    assert judge(question, read_said(b"http/1.1 200 ok", rows)) == ("ok", "")
    assert judge(question, read_said(b"http/1.1 200 ok", flat[:-1]))[0] == "lost"
    assert judge(question, read_said(b"http/1.1 200 ok", b'{"outputs":[]}'))[0] == "lost"
    busy = b"http/1.1 503 service unavailable\r\nretry-after: 1"
    assert judge(question, read_said(busy, b'{"error":"full"}'))[0] == "shed"
    assert judge(question, read_said(b"http/1.1 503 service unavailable", b'{"error":"full"}'))[0] == "error"
    assert judge(question, read_said(b"http/1.1 502 bad gateway", b"<html>"))[0] == "lost"
    assert b'"data":[8,-1]' in write_request(question, "known", "host")
