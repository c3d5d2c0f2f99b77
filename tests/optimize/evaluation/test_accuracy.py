"""What is said of a variant's quality, and that it is right."""

import msgspec
import numpy as np
import pytest

from mlserve.engines.fake import FakeEngine
from mlserve.errors import DataFileError, Refused
from mlserve.model.artifact import Accuracy
from mlserve.model.rows import ArrayRows
from mlserve.model.tensors import TensorSpec
from mlserve.optimize.evaluation.accuracy import answer_rows, judge
from mlserve.optimize.evaluation.metrics import judged_output, parse_metric

RNG = np.random.default_rng(0)
X = RNG.standard_normal((100, 8)).astype(np.float32)
IN = (TensorSpec("x", "float32", ("batch", 8)),)


def engine(answer, width=8):
    return FakeEngine(IN, (TensorSpec("y", "float32", ("batch", width)),), lambda inputs: {"y": answer(inputs["x"])})


def measure(candidate, reference, labels=None, task="unknown", width=8):
    rows = ArrayRows({"x": X}, "test rows", labels)
    found, expected = (answer_rows(engine(answer, width), rows) for answer in (candidate, reference))
    return judge(found, expected, rows, task=task)


def same(x):
    return x


def test_a_model_agrees_with_itself():
    accuracy = measure(same, same, task="feature-extraction")
    assert (accuracy.metric, accuracy.value, accuracy.loss, accuracy.rows) == (
        "cosine",
        pytest.approx(1),
        pytest.approx(0),
        100,
    )
    assert accuracy.details["pair_spearman"] == pytest.approx(1)
    assert accuracy.details["largest_error"] == 0


def test_noise_costs_cosine_and_rank_correlation():
    noise = RNG.standard_normal(X.shape).astype(np.float32)
    little = measure(lambda x: x + 0.1 * noise[: len(x)], same, task="feature-extraction")
    much = measure(lambda x: x + 1.0 * noise[: len(x)], same, task="feature-extraction")
    assert 1 > little.value > much.value
    assert little.details["pair_spearman"] > much.details["pair_spearman"]
    assert little.details["cosine_min"] <= little.value


def test_labels_decide_where_there_are_labels():
    labels = X.argmax(1)
    accuracy = measure(lambda x: np.where(np.arange(len(x))[:, None] % 2, x, -x), same, labels)
    assert accuracy.metric == "accuracy"
    assert accuracy.details["reference_accuracy"] == 1.0
    assert accuracy.value == pytest.approx(0.5, abs=0.1)
    assert accuracy.loss == pytest.approx(1 - accuracy.value)


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 1.0), (-1.0, 0.0)])
def test_one_output_and_two_classes(scale, expected):
    labels = (X[:, 0] > 0).astype(int)
    accuracy = measure(lambda x: scale * x[:, :1], lambda x: x[:, :1], labels, width=1)
    assert (accuracy.metric, accuracy.value) == ("accuracy", expected)


def test_numbers_are_judged_by_explained_variance():
    accuracy = measure(lambda x: x[:, :1] * 0.5, lambda x: x[:, :1], X[:, 0] * 1.0, width=1)
    assert accuracy.metric == "r2"
    assert accuracy.details["reference_r2"] == pytest.approx(1)
    assert accuracy.value == pytest.approx(0.75, abs=0.05)


def test_labels_that_are_no_classes_are_refused():
    with pytest.raises(DataFileError, match="0 to 7"):
        measure(same, same, np.full(100, 8))
    assert measure(same, same, np.full(100, 7)).metric == "accuracy"


def test_a_variant_that_breaks_down_is_refused():
    with pytest.raises(Refused, match="not finite"):
        measure(lambda x: np.full_like(x, np.nan), same)


def test_fixed_batches_need_enough_rows():
    fixed = FakeEngine(
        (TensorSpec("x", "float32", (128, 8)),), (TensorSpec("y", "float32", (128, 8)),), lambda i: {"y": i["x"]}
    )
    with pytest.raises(DataFileError, match="at least 128"):
        answer_rows(fixed, ArrayRows({"x": X}, "test rows"))


def test_a_score_the_reference_masks_is_left_out():
    accuracy = measure(lambda x: np.where(x > 1, -np.inf, x), lambda x: np.where(x > 1, -np.inf, x))
    assert accuracy.value == pytest.approx(1)
    assert all(np.isfinite(value) for value in accuracy.details.values())


def test_rows_that_are_all_alike_have_no_order():
    accuracy = measure(np.ones_like, np.ones_like, task="feature-extraction")
    assert "pair_spearman" not in accuracy.details


def test_outputs_as_long_as_their_batch_are_compared():
    def answer(x):
        return np.repeat(x[:, :, None], len(x), axis=2)

    assert measure(answer, answer).value == pytest.approx(1)


def test_what_the_answers_are_held_against_is_said():
    labels = X.argmax(1)
    expected = answer_rows(engine(same), ArrayRows({"x": X}, "test rows"))
    found = np.where(np.arange(100)[:, None] % 10 == 0, -expected, expected)
    for given, metric, name, basis in (
        (labels, None, "accuracy", "labels"),
        (labels, "f1", "f1", "labels"),
        (None, None, "cosine", "agreement with base"),
        (None, "accuracy", "accuracy", "agreement with base"),
        (labels, "cosine", "cosine", "agreement with base"),
    ):
        accuracy = judge(
            found,
            expected,
            ArrayRows({"x": X}, "test rows", given),
            task="unknown",
            reference="base",
            metric=parse_metric(metric) if metric else None,
            split="half of them",
        )
        assert (accuracy.metric, accuracy.basis, accuracy.split) == (name, basis, "half of them")
        assert accuracy.loss_low <= accuracy.loss <= accuracy.loss_high
        assert accuracy.loss == pytest.approx(accuracy.details.get(f"reference_{name}", 1.0) - accuracy.value)
        assert msgspec.json.decode(msgspec.json.encode(accuracy), type=Accuracy) == accuracy


def test_a_classifier_of_labels_and_probabilities_is_judged_by_both():
    """As scikit-learn's come out of the importer: a label that is no class number, and a share for each class."""
    names = ("ant", "bee", "cow")
    shares = np.exp(X[:, :3]) / np.exp(X[:, :3]).sum(1, keepdims=True)
    label = TensorSpec("label", "object", ("batch",))
    probabilities = TensorSpec("probabilities", "float32", ("batch", 3))

    def answer(inputs):
        scores = np.exp(inputs["x"][:, :3])
        return {"label": np.array(names, object)[scores.argmax(1)], "probabilities": scores / scores.sum(1)[:, None]}

    model = FakeEngine(IN, (label, probabilities), answer)
    rows = ArrayRows({"x": X}, "test rows", np.array(names, object)[shares.argmax(1)])
    for name, least in (("accuracy", 1.0), ("f1", 1.0), ("auc", 0.99)):
        metric = parse_metric(name)
        answers = answer_rows(model, rows, output=judged_output(model.outputs, metric))
        assert judge(answers, answers, rows, task="unknown", metric=metric, names=names).value >= least
