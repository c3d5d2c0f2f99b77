"""Real scikit-learn models, trained on real data; through the importing process where code of theirs runs.

scikit-learn and skops are imported by the tests: all workers collect this file, and one runs it.
"""

import importlib
import warnings

import numpy as np
import pytest

from mlserve.errors import DataFileError, ModelFileError, Refused, UnknownInputError, UsageError
from mlserve.model.tensors import parse_input_flag


def trained(model, table):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps that did not converge
        return model.fit(*table)


def saved(model, path):
    import joblib

    joblib.dump(model, path)
    return path


def scaled(model):
    """`model`, behind a scaler of its inputs."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), model)


def classifier(name):
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import SVC

    return {
        "LogisticRegression": LogisticRegression(max_iter=100),
        "RandomForestClassifier": RandomForestClassifier(30, random_state=0),
        "HistGradientBoostingClassifier": HistGradientBoostingClassifier(max_iter=20, random_state=0),
        "Pipeline": scaled(SVC(random_state=0)),
        "MLPClassifier": MLPClassifier((16,), max_iter=30, random_state=0),
    }[name]


@pytest.mark.parametrize(
    ("name", "data", "first"),
    [
        ("LogisticRegression", "digits", "predict_proba"),
        ("RandomForestClassifier", "cancer", "predict_proba"),
        pytest.param("HistGradientBoostingClassifier", "cancer", "predict_proba", marks=pytest.mark.slow),
        pytest.param("Pipeline", "wine", "decision_function", marks=pytest.mark.slow),
        pytest.param("MLPClassifier", "wine", "predict_proba", marks=pytest.mark.slow),
    ],
)
def test_a_classifier_gives_its_scores_first_and_then_the_label(home, tables, as_csv, bring_here, name, data, first):
    model = trained(classifier(name), tables[data])
    kind, imported, engine = bring_here(saved(model, home / "m.joblib"), trust_pickle=True, data=as_csv(data))
    rows, answers = tables[data]
    assert kind == "sklearn"
    assert imported.task == "tabular-classification"
    assert imported.labels == tuple(str(label) for label in model.classes_)
    assert [str(spec) for spec in imported.inputs] == [f"input:float32:batch,{rows.shape[1]}"]
    found = engine.run({"input": rows.astype(np.float32)})
    scores, label = found.values()
    assert list(found) == ["probabilities" if first == "predict_proba" else "scores", "label"]
    assert np.mean(label == model.predict(rows)) > 0.98
    assert np.mean(np.isclose(scores, getattr(model, first)(rows), atol=1e-3).all(axis=1)) > 0.97
    assert np.mean(scores.argmax(axis=1) == answers) == pytest.approx(model.score(rows, answers), abs=0.02)


def test_the_two_margins_of_a_binary_svc_name_the_class_it_predicts(home, tables, bring_here):
    """onnxruntime alone gives them with their signs swapped."""
    from sklearn.svm import SVC

    rows, _ = tables["cancer"]
    model = trained(scaled(SVC(random_state=0)), tables["cancer"])
    _, _, engine = bring_here(saved(model, home / "m.pkl"), trust_pickle=True)
    found = engine.run({"input": rows.astype(np.float32)})
    np.testing.assert_array_equal(found["scores"].argmax(axis=1), model.predict(rows))


@pytest.mark.slow
def test_a_linear_svc_in_a_pipeline_is_converted(home, tables, bring_here):
    from sklearn.svm import LinearSVC

    model = trained(scaled(LinearSVC(random_state=0)), tables["cancer"])
    _, imported, _ = bring_here(saved(model, home / "m.pkl"), trust_pickle=True)
    assert [str(spec) for spec in imported.outputs] == ["scores:float32:batch,1", "label:int64:batch"]


@pytest.mark.slow
def test_a_regressor_of_trees_answers_as_the_original(home, tables, as_csv, bring_here):
    from sklearn.ensemble import HistGradientBoostingRegressor

    model = trained(HistGradientBoostingRegressor(random_state=0), tables["diabetes"])
    _, imported, engine = bring_here(saved(model, home / "m.pkl"), trust_pickle=True, data=as_csv("diabetes"))
    rows, _ = tables["diabetes"]
    assert [str(spec) for spec in imported.outputs] == ["output:float32:batch,1"]
    np.testing.assert_allclose(
        engine.run({"input": rows.astype(np.float32)})["output"][:, 0], model.predict(rows), rtol=1e-4
    )


@pytest.mark.slow
def test_clusters_give_their_number_first(home, tables, bring_here):
    from sklearn.cluster import KMeans

    model = trained(KMeans(4, n_init=1, random_state=0), tables["wine"])
    _, imported, _ = bring_here(saved(model, home / "m.pkl"), trust_pickle=True)
    assert [str(spec) for spec in imported.outputs] == ["label:int64:batch", "scores:float32:batch,4"]


@pytest.fixture(scope="module")
def people():
    """A table of numbers, texts and categories, and whether each row says yes."""
    import pandas as pd

    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "age": rng.normal(40, 10, 300),
            "city": rng.choice(["rome", "oslo", "lima"], 300),
            "plan": rng.choice([1, 2, 3], 300),
            "income": rng.normal(5e4, 1e4, 300),
        }
    )
    return table, ((table.age > 40) ^ (table.city == "oslo")).map({True: "yes", False: "no"})


@pytest.fixture(scope="module")
def by_column(people):
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["age", "income"]),
            ("categories", OneHotEncoder(handle_unknown="ignore"), ["city", "plan"]),
        ]
    )
    return make_pipeline(columns, LogisticRegression()).fit(*people)


def test_a_column_transformer_takes_one_input_a_column(home, people, by_column, bring_here):
    import pandas as pd

    table, answers = people
    table.assign(label=answers).to_csv(home / "people.csv", index=False)
    _, imported, engine = bring_here(saved(by_column, home / "m.joblib"), trust_pickle=True, data=home / "people.csv")
    assert [str(spec) for spec in imported.inputs] == [
        "age:float32:batch",
        "city:object:batch",
        "plan:int64:batch",
        "income:float32:batch",
    ]
    assert imported.labels == ("no", "yes")
    row = {"age": np.float32([31.5]), "city": np.array(["oslo"], object), "plan": np.array([2])}
    found = engine.run(row | {"income": np.float32([4e4])})
    asked = pd.DataFrame({"age": [31.5], "city": ["oslo"], "plan": [2], "income": [4e4]})
    np.testing.assert_allclose(found["probabilities"], by_column.predict_proba(asked), atol=1e-5)
    assert found["label"].tolist() == by_column.predict(asked).tolist()


def test_a_reader_of_text_takes_one_text_a_row(home, bring_here):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts, answers = ["good film", "bad film", "nice day here", "awful bad day"] * 3, [1, 0, 1, 0] * 3
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, answers)
    _, imported, engine = bring_here(saved(model, home / "m.pkl"), trust_pickle=True)
    assert [str(spec) for spec in imported.inputs] == ["text:object:batch"]
    found = engine.run({"text": np.array(["a bad film", "nice"], object)})
    np.testing.assert_allclose(found["probabilities"], model.predict_proba(["a bad film", "nice"]), atol=1e-5)


def test_a_skops_file_needs_no_trust_unless_it_names_unknown_types(home, tables, bring_here):
    import skops.io
    from sklearn.naive_bayes import GaussianNB
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    model = trained(GaussianNB(), tables["wine"])
    skops.io.dump(model, home / "m.skops")
    kind, imported, _ = bring_here(home / "m.skops")
    assert kind == "skops"
    assert imported.labels == ("0", "1", "2")
    own = make_pipeline(FunctionTransformer(np.polyfit), GaussianNB())
    skops.io.dump(own, home / "own.skops")
    with pytest.raises(ModelFileError, match=r"polyfit.*--trust-pickle"):
        bring_here(home / "own.skops")


def test_a_pickle_is_not_loaded_without_trust(home, bring, bring_here, monkeypatch):
    (home / "mine.py").write_text(
        "from sklearn.linear_model import LinearRegression\n"
        "class Own(LinearRegression):\n"
        "    def __setstate__(self, state):\n        raise RuntimeError('its code ran')\n"
    )
    monkeypatch.syspath_prepend(home)
    saved(trained(importlib.import_module("mine").Own(), (np.eye(3), [1, 2, 3])), home / "m.pkl")
    with pytest.raises(ModelFileError, match=r"mine\.Own.*skops.*--trust-pickle"):
        bring_here(home / "m.pkl")
    with pytest.raises(ModelFileError, match="its code ran"):  # the negative control: trusted, it runs
        bring(home / "m.pkl", trust_pickle=True)


def test_what_float32_cannot_tell_apart_is_refused(home, bring_here):
    """A time in seconds since 1970, to the second: float32 knows it to two minutes."""
    import pandas as pd
    from sklearn.linear_model import LinearRegression

    rng = np.random.default_rng(0)
    times = 1.7e9 + rng.uniform(0, 3600, (200, 1))
    for name, rows in (("seconds", times), ("since", times - 1.7e9)):
        pd.DataFrame({"time": rows[:, 0]}).to_csv(home / f"{name}.csv", index=False)
        saved(scaled(LinearRegression()).fit(rows, np.sin(rows[:, 0] / 500)), home / name)
    with pytest.raises(Refused, match=r"of \d+ rows come out otherwise.*at most 2% may"):
        bring_here(home / "seconds", trust_pickle=True, data=home / "seconds.csv")
    bring_here(home / "since", trust_pickle=True, data=home / "since.csv")


def test_columns_in_another_order_are_not_mistaken(home, tables, bring_here):
    import pandas as pd
    from sklearn.linear_model import LogisticRegression

    rows, answers = tables["wine"]
    table = pd.DataFrame(rows, columns=[f"c{number}" for number in range(13)])
    model = trained(scaled(LogisticRegression()), (table, answers))
    table[table.columns[::-1]].to_csv(home / "turned.csv", index=False)
    table.to_csv(home / "right.csv", index=False)
    with pytest.raises(DataFileError, match="another order; write them as c0, c1"):
        bring_here(saved(model, home / "m.pkl"), trust_pickle=True, data=home / "turned.csv")
    bring_here(home / "m.pkl", trust_pickle=True, data=home / "right.csv")


@pytest.mark.slow
def test_inputs_may_be_stated(home, tables, bring_here):
    from sklearn.linear_model import LinearRegression

    model = trained(scaled(LinearRegression()), tables["wine"])
    stated = (parse_input_flag("wine:float64:batch,13"),)
    _, imported, _ = bring_here(saved(model, home / "m.pkl"), trust_pickle=True, inputs=stated)
    assert imported.inputs == stated
    with pytest.raises(UsageError, match="--example is for PyTorch"):
        bring_here(home / "m.pkl", trust_pickle=True, example="zoo:pair_example")


def test_what_is_no_model_says_what_it_is(home, bring_here):
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    saved({"model": np.zeros(3), "scaler": StandardScaler()}, home / "m.pkl")
    with pytest.raises(ModelFileError, match="holds a dict, not a scikit-learn model"):
        bring_here(home / "m.pkl", trust_pickle=True)
    saved(FunctionTransformer(), home / "f.pkl")
    with pytest.raises(UnknownInputError, match="--input input:float32:batch,N"):
        bring_here(home / "f.pkl", trust_pickle=True)
