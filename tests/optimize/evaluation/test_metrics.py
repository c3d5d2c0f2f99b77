"""Every metric, against scikit-learn; what each is defined for, and which output it reads."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax
from scipy.stats import spearmanr

from mlserve.errors import DataFileError, Refused, UsageError
from mlserve.model.tensors import TensorSpec
from mlserve.optimize.evaluation.comparison import Comparison
from mlserve.optimize.evaluation.metrics import default_metric, judged_output, parse_metric

SEED = st.integers(0, 10_000)


def comparison(found, labels=None, expected=None, **more):
    found = np.asarray(found)
    return Comparison(found, found if expected is None else np.asarray(expected), "test rows", labels, **more)


def value(name, *sides, **more):
    """The metric `name` of the answers, every row counted once."""
    compared = comparison(*sides, **more)
    return float(parse_metric(name).figures(compared).found(np.ones((1, len(compared))))[0])


def scores_and_labels(seed, classes, rows=40):
    """Scores with ties, and labels of which some classes may be missing, but not all but one."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=rows)
    labels[:2] = 0, 1
    scores = np.round(8 * (rng.standard_normal((rows, classes)) + 2 * np.eye(classes)[labels])) / 8
    return scores.astype(np.float32), labels


@settings(deadline=None)  # scikit-learn's first call takes its time
@given(SEED, st.integers(2, 8))
def test_accuracy_and_f1_are_scikit_learns(seed, classes):
    scores, labels = scores_and_labels(seed, classes)
    predicted = scores.argmax(1)
    assert value("accuracy", scores, labels) == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    assert value("f1", scores, labels) == pytest.approx(sklearn.metrics.f1_score(labels, predicted, average="macro"))


@settings(deadline=None)
@given(SEED, st.integers(6, 12))
def test_top5_is_scikit_learns(seed, classes):
    rng = np.random.default_rng(seed)
    scores, labels = rng.standard_normal((30, classes)), rng.integers(classes, size=30)
    expected = sklearn.metrics.top_k_accuracy_score(labels, scores, k=5, labels=range(classes))
    assert value("top5", scores, labels) == pytest.approx(expected)


@settings(deadline=None)
@given(SEED)
def test_auc_of_two_classes_is_scikit_learns(seed):
    scores, labels = scores_and_labels(seed, 2)
    expected = sklearn.metrics.roc_auc_score(labels, scores[:, 1] - scores[:, 0])
    assert value("auc", scores, labels) == pytest.approx(expected)
    one_column = (scores[:, 1:] - scores[:, :1]).astype(np.float32)
    assert value("auc", one_column, labels) == pytest.approx(expected)


@settings(deadline=None)
@given(SEED, st.integers(3, 6))
def test_auc_of_several_classes_is_scikit_learns(seed, classes):
    scores, labels = scores_and_labels(seed, classes, rows=60)
    assume(len(set(labels.tolist())) == classes)
    shares = softmax(scores.astype(np.float64), axis=1)
    expected = sklearn.metrics.roc_auc_score(labels, shares, multi_class="ovr", average="macro")
    assert value("auc", scores, labels) == pytest.approx(expected)
    assert value("auc", shares, labels) == pytest.approx(expected)


@settings(deadline=None)
@given(arrays(np.float64, (20, 2), elements=st.floats(-100, 100)), SEED)
def test_errors_and_explained_variance_are_scikit_learns(truth, seed):
    assume(np.ptp(truth, axis=0).min() > 1e-3)
    found = truth + np.random.default_rng(seed).standard_normal(truth.shape)
    mae, rmse = sklearn.metrics.mean_absolute_error, sklearn.metrics.root_mean_squared_error
    assert value("mae", found, truth) == pytest.approx(mae(truth, found))
    assert value("r2", found, truth) == pytest.approx(sklearn.metrics.r2_score(truth, found))
    assert value("rmse", found[:, :1], truth[:, 0]) == pytest.approx(rmse(truth[:, 0], found[:, 0]))


def test_r2_where_nothing_varies_is_scikit_learns():
    for found in (np.ones((5, 1)), np.zeros((5, 1))):
        assert value("r2", found, np.ones(5)) == sklearn.metrics.r2_score(np.ones(5), found)


@settings(deadline=None)
@given(SEED)
def test_spearman_is_scipys_ties_included(seed):
    rng = np.random.default_rng(seed)
    found, truth = np.round(rng.standard_normal((2, 30)), 1)
    assert value("spearman", found[:, None], truth) == pytest.approx(spearmanr(found, truth).statistic)


@settings(deadline=None)
@given(SEED)
def test_cosine_is_scikit_learns(seed):
    found, truth = np.random.default_rng(seed).standard_normal((2, 10, 4))
    expected = np.diag(sklearn.metrics.pairwise.cosine_similarity(found, truth)).mean()
    assert value("cosine", found, truth) == pytest.approx(expected)


FIGURES = ("accuracy", "auc", "cosine", "f1", "mae", "r2", "rmse", "spearman", "top5")


@pytest.mark.parametrize("name", FIGURES)
@settings(deadline=None)
@given(seed=SEED)
def test_a_row_that_counts_twice_is_as_two_such_rows(name, seed):
    """What the bootstrap rests on."""
    rng = np.random.default_rng(seed)
    if name in {"accuracy", "auc", "f1", "top5"}:
        found, labels = scores_and_labels(seed, 7)
    else:
        found, labels = rng.standard_normal((2, 40, 3 if name == "cosine" else 1))
    counts = rng.integers(0, 3, size=(4, 40))
    counts[:, :2] += 1  # so that two classes are left
    once = parse_metric(name).figures(comparison(found, labels)).found(counts.astype(np.float64))
    for row, figure in zip(counts, once, strict=True):
        drawn = np.repeat(np.arange(40), row)
        assert figure == pytest.approx(value(name, found[drawn], labels[drawn]))


def test_the_order_of_pairs_counts_every_row_as_often_as_it_was_drawn():
    rng = np.random.default_rng(0)
    found = rng.standard_normal((12, 4))
    truth = found + rng.standard_normal((12, 4))
    figures = parse_metric("spearman").figures(comparison(found, None, truth))
    counts = rng.integers(0, 2, size=(3, 12)).astype(np.float64)
    for row, figure in zip(counts, figures.found(counts), strict=True):
        chosen = np.flatnonzero(row)
        first, second = np.triu_indices(len(chosen), k=1)
        similar = [
            np.diag(sklearn.metrics.pairwise.cosine_similarity(side[chosen][first], side[chosen][second]))
            for side in (found, truth)
        ]
        assert figure == pytest.approx(spearmanr(*similar).statistic)


def test_labels_may_be_names_of_classes():
    scores = np.eye(3)[[0, 1, 2, 2]]
    labels = np.array(["cat", "dog", "emu", "cat"], object)
    assert value("accuracy", scores, labels, names=("cat", "dog", "emu")) == 0.75
    with pytest.raises(DataFileError, match="cat, dog, emu"):
        value("accuracy", scores, np.array(["cat", "dog", "emu", "fox"], object), names=("cat", "dog", "emu"))


def test_numbers_that_are_the_classes_names_are_names():
    scores = np.eye(3)[[0, 1, 2]]
    assert value("accuracy", scores, np.array([1, 2, 3]), names=("1", "2", "3")) == 1.0
    assert value("accuracy", scores, np.array([0.0, 1.0, 2.0])) == 1.0


def test_scores_of_a_convolution_that_was_not_flattened_are_scores():
    assert value("accuracy", np.eye(3)[:, :, None, None], np.array([0, 1, 1])) == pytest.approx(2 / 3)


def test_a_model_that_answers_labels_is_compared_by_label():
    answers = np.array(["a", "b", "a", "b"], object)
    labels = np.array(["a", "b", "b", "b"], object)
    assert value("accuracy", answers, labels) == 0.75
    assert value("f1", answers, labels) == pytest.approx(sklearn.metrics.f1_score(labels, answers, average="macro"))
    with pytest.raises(DataFileError, match=r"labels are 0, 1.*answers a, b"):
        value("accuracy", answers, np.array([0, 1, 1, 0]))


def test_without_labels_the_references_answers_are_the_truth():
    expected = np.eye(4)
    found = expected[[0, 1, 2, 2]]
    assert value("accuracy", found, None, expected) == 0.75
    assert value("mae", found, None, expected) == pytest.approx(2 / 16)


@pytest.mark.parametrize(
    ("name", "found", "labels", "said"),
    [
        ("top5", np.eye(5), np.arange(5), "5 classes"),
        ("auc", np.eye(3), np.zeros(3, int), "at least two classes"),
        ("accuracy", np.eye(3), np.arange(1, 4), "0 to 2"),
        ("accuracy", np.zeros((3, 4, 5)), np.zeros(3, int), "another --metric"),
        ("mae", np.eye(3), np.arange(3), "3 numbers for each"),
        ("mae", np.array(["a"], object), np.array(["a"], object), "compares numbers"),
        ("mae", np.ones((2, 1)), np.array([1, np.nan]), "not finite"),
        ("cosine", np.ones((3, 1)), None, "several numbers"),
        ("spearman", np.ones((3, 1)), np.ones(3), "that differ"),
        ("accuracy", np.eye(3), np.zeros((3, 2), int), "one label each"),
    ],
)
def test_data_a_metric_is_not_defined_for_is_told(name, found, labels, said):
    with pytest.raises(DataFileError, match=said):
        value(name, found, labels)


@pytest.mark.parametrize("name", FIGURES)
def test_answers_that_are_not_finite_are_refused(name):
    labels = np.arange(8) if name not in {"mae", "rmse", "r2", "cosine", "spearman"} else None
    with pytest.raises(Refused, match="not finite"):
        value(name, np.full((8, 8), np.nan), labels, np.eye(8))


def test_auc_needs_labels_and_says_how_to_give_them():
    with pytest.raises(DataFileError, match="label, labels, target or y"):
        parse_metric("auc").settle(comparison(np.eye(3)))
    assert parse_metric("f1").settle(comparison(np.eye(3))).labels is None


def test_labels_that_a_cosine_cannot_use_are_left_out():
    classes = comparison(np.eye(3), np.arange(3))
    vectors = comparison(np.eye(3), np.eye(3))
    assert parse_metric("cosine").settle(classes).labels is None
    assert parse_metric("cosine").settle(vectors).labels is not None


@pytest.mark.parametrize("text", ["", "Accuracy", "accuracy ", "mean"])
def test_an_unknown_metric_is_told_with_those_there_are(text):
    with pytest.raises(UsageError, match="accuracy, top5, f1, auc, mae, rmse, r2, cosine, spearman"):
        parse_metric(text)


@pytest.mark.parametrize(
    ("found", "labels", "name"),
    [
        (np.eye(3), None, "cosine"),
        (np.ones((3, 1)), None, "r2"),
        (np.arange(3), None, "agreement"),
        (np.eye(3), np.arange(3), "accuracy"),
        (np.ones((3, 1)), np.array([0, 1, 1]), "accuracy"),
        (np.ones((3, 1)), np.array([0.5, 1, 2]), "r2"),
        (np.ones((3, 2)), np.ones((3, 2)), "r2"),
        (np.arange(3), np.arange(3), "accuracy"),
    ],
)
def test_the_metric_fits_the_output_unless_it_is_chosen(found, labels, name):
    assert default_metric(comparison(found, labels)).name == name


def test_a_classifier_of_labels_and_probabilities_is_judged_by_what_the_metric_reads():
    label, shares = TensorSpec("label", "int64", ("n",)), TensorSpec("probabilities", "float32", ("n", 3))
    for name, output in (("accuracy", "label"), ("f1", "label"), ("auc", "probabilities"), ("top5", "probabilities")):
        assert judged_output((label, shares), parse_metric(name)) == output
    assert judged_output((label, shares)) == "label"
    assert judged_output((shares, label), parse_metric("mae")) == "probabilities"
    with pytest.raises(UsageError, match="only label:int64"):
        judged_output((label,), parse_metric("auc"))


@pytest.fixture
def own_metrics(tmp_path, monkeypatch):
    """A module of the user's, in the folder mlserve is started from."""
    (tmp_path / "own_metrics.py").write_text(
        "import numpy as np\n"
        "def within_one(predictions, labels):\n    return np.mean(np.abs(predictions[:, 0] - labels) <= 1)\n"
        "def broken(predictions, labels):\n    return 1 / 0\n"
        "def nothing(predictions, labels):\n    return float('nan')\n"
        "LIMIT = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_metrics"


def test_a_function_of_the_users_is_a_metric(own_metrics):
    found, labels = np.array([[0.0], [5.0], [9.0]]), np.array([1, 5, 3])
    assert value(f"{own_metrics}:within_one", found, labels) == pytest.approx(2 / 3)
    with pytest.raises(DataFileError, match="needs true answers"):
        parse_metric(f"{own_metrics}:within_one").settle(comparison(found))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("broken", "ZeroDivisionError"),
        ("nothing", "gives nan"),
        ("missing", "AttributeError"),
        ("LIMIT", "is a int"),
        ("", "package.module:function"),
    ],
)
def test_a_function_that_cannot_be_used_is_told(own_metrics, function, said):
    with pytest.raises(UsageError, match=said):
        value(f"{own_metrics}:{function}", np.ones((3, 1)), np.ones(3))


def test_a_module_that_is_not_there_is_told():
    with pytest.raises(UsageError, match="no_such_module_here:f: ModuleNotFoundError"):
        parse_metric("no_such_module_here:f")
