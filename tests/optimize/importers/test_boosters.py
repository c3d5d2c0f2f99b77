"""XGBoost's and LightGBM's own files, of every kind of objective, held against their own predictions.

Both are imported by the tests: all workers collect this file, and one runs it.
"""

import sys

import numpy as np
import pytest

from mlserve.errors import ModelFileError, UsageError


def with_holes(rows):
    rows = rows.copy()
    rows[np.random.default_rng(0).random(rows.shape) < 0.1] = np.nan
    return rows


@pytest.mark.parametrize(
    ("objective", "data", "settings"),
    [
        ("binary:logistic", "cancer", {}),
        ("binary:logistic", "cancer", {"booster": "dart", "rate_drop": 0.3}),
        ("multi:softprob", "digits", {"num_class": 10, "num_parallel_tree": 2, "subsample": 0.5}),
        ("reg:logistic", "cancer", {}),
        ("count:poisson", "diabetes", {}),
        ("rank:pairwise", "cancer", {}),
    ],
)
def test_an_xgboost_model_answers_as_in_xgboost(home, tables, bring_here, objective, data, settings):
    import pandas as pd
    import xgboost

    rows, answers = tables[data]
    rows = with_holes(rows)
    table = xgboost.DMatrix(rows, label=answers)
    if objective.startswith("rank"):
        table.set_group([300, 269])
    booster = xgboost.train({"objective": objective, "max_depth": 3, **settings}, table, 8)
    booster.save_model(home / "model.ubj")
    pd.DataFrame(rows).assign(label=answers).to_csv(home / "data.csv", index=False)
    kind, imported, engine = bring_here(home / "model.ubj", data=home / "data.csv")
    assert kind == "xgboost"
    found = engine.run({"input": rows.astype(np.float32)})
    expected = booster.predict(table)
    if objective in ("binary:logistic", "multi:softprob"):
        assert [spec.name for spec in imported.outputs] == ["probabilities", "label"]
        expected = np.stack([1 - expected, expected], axis=1) if expected.ndim == 1 else expected
        np.testing.assert_array_equal(found["label"], expected.argmax(axis=1))
    first = next(iter(found.values()))
    np.testing.assert_allclose(first, expected.reshape(first.shape), rtol=1e-4, atol=1e-5)


def test_only_the_rounds_that_early_stopping_found_the_best_are_kept(home, tables, bring_here):
    import xgboost

    rows, answers = tables["cancer"]
    held_out = xgboost.DMatrix(rows[400:], label=answers[400:])
    booster = xgboost.train(
        {"objective": "binary:logistic"}, xgboost.DMatrix(rows[:400], label=answers[:400]), 80,
        evals=[(held_out, "held_out")], early_stopping_rounds=3, verbose_eval=False,
    )  # fmt: skip
    booster.save_model(home / "model.json")
    _, imported, engine = bring_here(home / "model.json")
    kept = booster.best_iteration + 1
    assert f"the first {kept} of" in imported.assumed[0]
    expected = booster.predict(held_out, iteration_range=(0, kept))
    found = engine.run({"input": rows[400:].astype(np.float32)})
    np.testing.assert_allclose(found["probabilities"][:, 1], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("objective", "data", "settings"),
    [
        ("binary", "cancer", {"sigmoid": 2.0}),
        ("multiclass", "digits", {"num_class": 10}),
        ("multiclassova", "wine", {"num_class": 3}),
        ("regression", "diabetes", {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}),
        ("cross_entropy", "cancer", {}),
        ("lambdarank", "cancer", {}),
    ],
)
def test_a_lightgbm_model_answers_as_in_lightgbm(home, tables, bring_here, objective, data, settings):
    import lightgbm
    import pandas as pd

    rows, answers = tables[data]
    rows = with_holes(rows)
    settings = {"verbose": -1, "num_threads": 1, **settings}
    group = [300, 269] if objective == "lambdarank" else None
    table = lightgbm.Dataset(rows, label=answers, group=group, params=settings)
    booster = lightgbm.train({"objective": objective, "max_depth": 3, **settings}, table, 8)
    booster.save_model(home / "model.txt")
    pd.DataFrame(rows).assign(label=answers).to_csv(home / "data.csv", index=False)
    kind, _, engine = bring_here(home / "model.txt", data=home / "data.csv")
    assert kind == "lightgbm"
    expected = booster.predict(rows)
    found = next(iter(engine.run({"input": rows.astype(np.float32)}).values()))
    if objective == "binary":
        expected = np.stack([1 - expected, expected], axis=1)
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_splits_by_category_are_kept(home, bring_here, library):
    rng = np.random.default_rng(0)
    rows = np.stack([rng.integers(0, 8, 500), rng.normal(size=500), rng.integers(0, 40, 500)], 1).astype(float)
    answers = rows[:, 0] % 3 + np.sin(rows[:, 2])
    if library == "xgboost":
        import xgboost

        kinds = {"feature_types": ["c", "q", "c"], "enable_categorical": True}
        table = xgboost.DMatrix(rows, label=answers, **kinds)
        booster = xgboost.train({"max_depth": 4}, table, 8)
        expected = booster.predict(table)
    else:
        import lightgbm

        table = lightgbm.Dataset(rows, label=answers, categorical_feature=[0, 2], params={"verbose": -1})
        booster = lightgbm.train({"verbose": -1, "num_threads": 1}, table, 8)
        expected = booster.predict(rows)
    booster.save_model(home / ("model.ubj" if library == "xgboost" else "model.txt"))
    _, _, engine = bring_here(next(home.glob("model.*")))
    np.testing.assert_allclose(engine.run({"input": rows.astype(np.float32)})["output"][:, 0], expected, atol=1e-5)


def train_and_save(home, tables, library, settings):
    rows, answers = tables["diabetes"]
    if library == "xgboost":
        import xgboost

        two = np.stack([answers, -answers], axis=1) if "multi_strategy" in settings else answers
        xgboost.train({"objective": "reg:squarederror", **settings}, xgboost.DMatrix(rows, label=two), 3).save_model(
            home / "model.ubj"
        )
        return home / "model.ubj"
    import lightgbm

    settings = {"verbose": -1, "num_threads": 1, **settings}
    table = lightgbm.Dataset(rows, label=answers, params=settings)
    lightgbm.train({"objective": "regression", **settings}, table, 3).save_model(home / "model.txt")
    return home / "model.txt"


@pytest.mark.parametrize(
    ("library", "settings", "words"),
    [
        ("xgboost", {"booster": "gblinear"}, "gblinear"),
        ("xgboost", {"multi_strategy": "multi_output_tree"}, "multi_output_tree"),
        ("lightgbm", {"linear_tree": True}, "linear_tree"),
        ("lightgbm", {"zero_as_missing": True}, "zero_as_missing"),
    ],
)
def test_what_trees_in_onnx_cannot_say_is_named(home, tables, bring_here, library, settings, words):
    with pytest.raises(ModelFileError, match=words):
        bring_here(train_and_save(home, tables, library, settings))


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_a_file_that_was_cut_short_is_named(home, tables, bring, bring_here, library):
    path = train_and_save(home, tables, library, {})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelFileError, match=r"cannot be loaded|format error"):
        (bring if library == "lightgbm" else bring_here)(path)  # LightGBM takes its process along


def test_a_flag_that_says_what_the_file_says_itself_is_refused(home, tables, bring_here):
    with pytest.raises(UsageError, match="says itself what it takes"):
        bring_here(train_and_save(home, tables, "xgboost", {}), example="zoo:pair_example")


def test_a_missing_extra_is_named_with_its_command(home, tables, bring_here, monkeypatch):
    path = train_and_save(home, tables, "xgboost", {})
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "onnxmltools", None)
        with pytest.raises(ModelFileError, match=r"pip install 'mlserve\[boosting\]'"):
            bring_here(path)
    bring_here(path)  # the control: with it, the same file is imported
