"""From a text to an answer: labels, embeddings, numbers; and every text that is none."""

import asyncio

import msgspec
import numpy as np
import pytest

from mlserve.errors import InvalidRequest, PayloadTooLarge, RequestError
from mlserve.model.processing import AnswerForm, Processing, TextInput
from mlserve.model.tensors import TensorSpec
from mlserve.serve.batching.future import run
from mlserve.serve.batching.lengths import LadderSignature
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.tasks.answers import Answers
from mlserve.wire.signature import InferRequest

TEXT = TextInput()


def table_of(width):
    return np.random.default_rng(1).normal(size=(14, width))


def publish_bag(publish, bag, form, width=3, **manifest):
    return publish(
        "bag", lambda path: bag(path, table_of(width)), processing=Processing(text=TEXT, answer=form), **manifest
    )


def test_a_text_gets_its_label_and_its_score(spam, asked):
    answers = asked(spam, ["win money now", "thanks, see you at lunch", "free prize"])
    assert [answer["label"] for answer in answers] == ["spam", "ham", "spam"]
    assert all(0.5 < answer["score"] < 1 and answer.keys() == {"label", "score"} for answer in answers)


def test_below_the_threshold_there_is_no_label():
    form = AnswerForm(kind="label", activation="softmax", threshold=0.9999)
    sure = msgspec.structs.replace(form, threshold=0.5)
    scores = {"scores": np.array([[0.0, 4.0]], np.float32)}
    assert Answers(form, ["ham", "spam"])(scores) == [{"label": None, "score": pytest.approx(0.98201376)}]
    assert Answers(sure, ["ham", "spam"])(scores)[0]["label"] == "spam"


def test_a_classifier_of_several_labels_gives_all_that_apply_best_first(publish, bag, asked):
    form = AnswerForm(kind="labels", activation="sigmoid", threshold=0.0)
    artifact = publish_bag(publish, bag, form, labels=("a", "b", "c"))
    (answer,) = asked(artifact, ["win money"])
    logits = table_of(3)[[2, 4, 5, 3]].mean(0)
    scores = 1 / (1 + np.exp(-logits))
    assert [each["label"] for each in answer["labels"]] == ["abc"[number] for number in np.argsort(-scores)]
    np.testing.assert_allclose([each["score"] for each in answer["labels"]], np.sort(scores)[::-1], rtol=1e-5)


def test_an_embedding_is_the_output_of_length_one_where_asked_for(publish, bag, asked):
    artifact = publish_bag(publish, bag, AnswerForm(kind="embedding", normalize=True), width=5)
    (answer,) = asked(artifact, ["win money"])
    expected = table_of(5)[[2, 4, 5, 3]].mean(0)
    np.testing.assert_allclose(answer["embedding"], expected / np.linalg.norm(expected), rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_what_is_padded_is_not_pooled(publish, bag, asked, pooling):
    form = AnswerForm(kind="embedding", output="tokens", pooling=pooling)
    artifact = publish(
        "bag", lambda path: bag(path, table_of(5), per_token=True), processing=Processing(text=TEXT, answer=form)
    )
    texts = ["win", "win money now free", "lunch tomorrow " * 4]
    rows = table_of(5)[[2, 4, 3]]
    expected = {"mean": rows.mean(0), "cls": rows[0], "max": rows.max(0)}[pooling]
    np.testing.assert_allclose(asked(artifact, texts)[0]["embedding"], expected, rtol=1e-5)


def test_a_regression_gives_a_value(publish, bag, asked):
    artifact = publish_bag(publish, bag, AnswerForm(kind="value"), width=1)
    (answer,) = asked(artifact, ["win money"])
    assert answer == {"value": pytest.approx(table_of(1)[[2, 4, 5, 3]].mean(), rel=1e-5)}


def test_outputs_that_nothing_explains_are_given_as_they_are_with_the_tokens_they_are_of(publish, bag, asked):
    artifact = publish("bag", lambda path: bag(path, table_of(2), per_token=True), processing=Processing(text=TEXT))
    answers = asked(artifact, ["win", "win money now", "lunch"])
    assert answers[0]["tokens"] == ["[CLS]", "win", "[SEP]"]
    np.testing.assert_allclose(answers[0]["outputs"]["tokens"], table_of(2)[[2, 4, 3]], rtol=1e-5)
    assert [len(answer["outputs"]["tokens"]) for answer in answers] == [3, 5, 3]
    assert [len(answer["outputs"]["scores"]) for answer in answers] == [2, 2, 2]


def test_a_version_without_processing_says_by_its_files_that_it_takes_text(publish, bag, asked):
    artifact = publish("bag", lambda path: bag(path, table_of(5)), task="feature-extraction")
    assert artifact.manifest.processing is None
    assert len(asked(artifact, ["win"])[0]["embedding"]) == 5


def test_a_version_without_a_tokenizer_has_no_task(publish, bag, opened):
    artifact = publish("bag", lambda path: bag(path, table_of(5)), tokenizer=False, task="feature-extraction")

    async def look(model):
        return model.task, type(model.signature)

    task, signature = opened(artifact, look)
    assert task is None
    assert signature is not LadderSignature


def test_the_end_of_a_long_text_is_cut_and_that_is_told(spam, asked):
    short, long, huge = asked(spam, ["lunch", "lunch " * 31, "lunch " * 200_000])
    assert "truncated" not in short
    assert long["truncated"] is True
    assert huge == long


def test_text_that_people_send_by_accident_is_answered(spam, asked):
    odd = ["", " ", "\0", "\n\t", "\ufeff", "win\0money", "\U0001f600" * 50, "x" * 1_000_000, "\u202e"]
    assert all(answer["label"] in ("ham", "spam") for answer in asked(spam, odd))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (["\ud800"], "character 0 of the text is half of a surrogate pair"),
        (["good", "win \udfff"], "value 2 of 2: character 4 of the text is half of a surrogate pair"),
        ([b"win"], "this model takes texts; send strings"),
        ([7], "this model takes texts; send strings"),
        ([], "holds no value"),
    ],
)
def test_what_is_no_text_is_refused_with_the_reason(spam, asked, values, told):
    with pytest.raises(InvalidRequest, match=told):
        asked(spam, values)


def test_a_text_without_any_token_is_refused(publish, bag, asked):
    artifact = publish("bag", lambda path: bag(path, table_of(2)), special=False, processing=Processing(text=TEXT))
    assert len(asked(artifact, ["win"])) == 1
    with pytest.raises(InvalidRequest, match="no token that the model knows"):
        asked(artifact, [""])


def test_more_texts_than_may_wait_are_refused_before_they_are_read(spam, asked):
    assert len(asked(spam, ["win"] * 16, max_waiting_rows=16)) == 16
    with pytest.raises(PayloadTooLarge, match="holds 17 values, at most 16"):
        asked(spam, ["win"] * 17, max_waiting_rows=16)


def test_answers_come_in_order_and_are_those_of_the_texts_alone(spam, opened):
    rng = np.random.default_rng(3)
    words = ["win", "money", "now", "free", "prize", "meeting", "lunch", "report", "tomorrow", "thanks", "other"]
    texts = [" ".join(rng.choice(words, rng.integers(1, 28))) for _ in range(150)]

    async def work(model):
        together = await model.task.answer(texts)
        one_by_one = [(await model.task.answer([text]))[0] for text in texts]
        at_once = await asyncio.gather(*[model.task.answer([text]) for text in texts])
        return together, one_by_one, [answer for (answer,) in at_once]

    together, one_by_one, at_once = opened(spam, work, max_rows=8)
    expected = [answer["score"] for answer in one_by_one]
    for found in (together, at_once):
        assert [answer["label"] for answer in found] == [answer["label"] for answer in one_by_one]
        np.testing.assert_allclose([answer["score"] for answer in found], expected, rtol=1e-5)


def test_a_task_is_idle_when_nothing_is_asked_and_its_model_says_so_too(spam, opened):
    async def work(model):
        before = model.idle
        asking = asyncio.create_task(model.task.answer(["win"]))
        await asyncio.sleep(0)
        while_asked = model.task.idle, model.idle
        await asking
        while not model.batcher.idle:
            await asyncio.sleep(0.001)
        return before, while_asked, model.task.idle, model.idle

    assert opened(spam, work) == (True, (False, False), True, True)


def test_the_loop_goes_on_while_texts_are_tokenized(spam, opened):
    async def work(model):
        turns = 0
        asking = asyncio.create_task(model.task.answer(["win money " * 10] * 4000))
        while not asking.done():
            turns += 1
            await asyncio.sleep(0)
        return turns, len(await asking)

    turns, count = opened(spam, work)
    assert count == 4000
    assert turns > 20


def test_a_model_of_one_length_gets_every_text_at_that_length(publish, bag, asked):
    from onnx import load, save

    def write(path):
        bag(path, table_of(3))
        model = load(path)
        for value in model.graph.input:
            value.type.tensor_type.shape.dim[1].dim_value = 6
        save(model, path)
        return [TensorSpec("scores", "float32", ("batch", 3))]

    inputs = [TensorSpec(name, "int64", ("batch", 6), 14) for name in ("input_ids", "attention_mask")]
    form = AnswerForm(kind="embedding")
    artifact = publish("fixed", write, inputs, processing=Processing(text=TEXT, answer=form))
    one, other = asked(artifact, ["win", "win money now free prize"])
    np.testing.assert_allclose(one["embedding"], table_of(3)[[2, 4, 3]].mean(0), rtol=1e-5)
    assert other["truncated"]


def test_raw_tokens_of_unlike_length_share_a_batch_only_where_padding_changes_nothing(publish, bag, opened):
    requests = [np.random.default_rng(length).integers(14, size=(1, length)) for length in (9, 10, 10, 9, 30)]

    async def work(model):
        turn = LoopTurn(asyncio.get_running_loop())

        async def ask(ids):
            inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            answered = await run(model.batcher, InferRequest(inputs, 1), model.signature, turn, "")
            return answered.outputs["scores"], answered.batch.rows

        alone = [(await ask(ids))[0] for ids in requests]
        together = await asyncio.gather(*[ask(ids) for ids in requests])
        return alone, [scores for scores, _ in together], [rows for _, rows in together]

    for masked, by_length, expected in (
        (True, True, [4, 4, 4, 4, 1]),
        (True, False, [5, 5, 5, 5, 5]),
        (False, True, [2, 2, 2, 2, 1]),
    ):
        artifact = publish(
            "bag", lambda path, masked=masked: bag(path, table_of(3), masked=masked), processing=Processing(text=TEXT)
        )
        alone, together, rows = opened(artifact, work, by_length=by_length)
        assert rows == expected
        np.testing.assert_allclose(np.concatenate(together), np.concatenate(alone), rtol=1e-5)


def test_a_damaged_request_in_a_padded_batch_fails_alone(publish, bag, opened):
    async def work(model):
        turn = LoopTurn(asyncio.get_running_loop())

        async def ask(ids):
            ids = np.array([ids])
            inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            return await run(model.batcher, InferRequest(inputs, 1), model.signature, turn, "")

        return await asyncio.gather(ask([1] * 9), ask([99] * 10), ask([2] * 10), return_exceptions=True)

    artifact = publish("bag", lambda path: bag(path, table_of(3)), processing=Processing(text=TEXT))
    good, bad, other = opened(artifact, work)
    assert isinstance(bad, RequestError)
    np.testing.assert_allclose(good.outputs["scores"], table_of(3)[[1]], rtol=1e-5)
    np.testing.assert_allclose(other.outputs["scores"], table_of(3)[[2]], rtol=1e-5)
