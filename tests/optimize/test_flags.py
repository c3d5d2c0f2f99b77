"""Flags to recipes."""

import pytest

from mlserve.errors import UsageError
from mlserve.optimize.flags import parse_distill, parse_engine, parse_prune, recipe_of
from mlserve.optimize.passes import Cast, Fuse, Quantize, QuantizeOpenvino, QuantizeStatic
from mlserve.optimize.recipe import INT8, Variant, check_order
from mlserve.optimize.training import Distill, Prune
from mlserve.optimize.training.schedule import Schedule


def test_a_flag_alone_is_the_recipe_that_is_shipped():
    assert recipe_of(["int8"]).variants == INT8.variants


def test_no_flag_asks_for_nothing():
    assert recipe_of([]).variants == ()


def test_every_precision_is_pruned_and_distilled_alike():
    prune, distill = parse_prune("channels=0.5,epochs=3"), parse_distill("width=0.5")
    first, second = recipe_of(["int8", "fp16"], [prune, distill]).variants
    assert [variant.name for variant in (first, second)] == ["pruned-distilled-int8", "pruned-distilled-fp16"]
    assert first.training == second.training == (prune, distill)
    assert isinstance(second.graph_passes[-1], Cast)


def test_pruning_alone_is_a_variant_of_its_own():
    (variant,) = recipe_of([], [parse_prune("2:4")]).variants
    assert (variant.name, variant.graph_passes) == ("pruned", ())


def test_an_engine_alone_runs_the_model_as_it_is():
    (variant,) = recipe_of([], (), "openvino").variants
    assert (variant.engine, variant.passes) == ("openvino", ())


@pytest.mark.parametrize(("precision", "last"), [("int8-static", QuantizeOpenvino), ("bf16", None)])
def test_an_engine_makes_a_precision_its_own_way(precision, last):
    (variant,) = recipe_of([precision], (), "openvino").variants
    assert variant.engine == "openvino"
    assert [type(one) for one in variant.passes] == ([last] if last else [])
    assert variant.compute_type == ("" if last else precision)


def test_a_precision_that_an_engine_lacks_is_refused():
    with pytest.raises(UsageError, match="torch has no int8"):
        recipe_of(["int8"], (), "torch")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("channels=0.5", Prune("channels", 0.5)),
        ("2:4", Prune("2:4")),
        ("unstructured=0.8,per_layer=true", Prune("unstructured", 0.8, per_layer=True)),
        (
            "layers=0.33, epochs=7, learning_rate=0.01",
            Prune("layers", 0.33, tuning=Schedule(epochs=7, learning_rate=0.01)),
        ),
    ],
)
def test_prune_in_words(text, wanted):
    assert parse_prune(text) == wanted


def test_distill_in_words():
    assert parse_distill("layers=3,width=0.5,temperature=4") == Distill(layers=3, width=0.5, temperature=4)
    assert parse_distill("student=zoo:small") == Distill(student="zoo:small")


@pytest.mark.parametrize(
    "text",
    ["", "chanels=0.5", "channels=1.5", "channels=half", "channels=0.5,epoch=3", "2:4=0.3", "channels=0.5,,", "=1"],
)
def test_a_mistake_in_prune_is_named(text):
    with pytest.raises(UsageError, match="--prune"):
        parse_prune(text)


@pytest.mark.parametrize("text", ["layers=three", "width=2", "student", "student=a:b,layers=2", "depth=3"])
def test_a_mistake_in_distill_is_named(text):
    with pytest.raises(UsageError, match="--distill"):
        parse_distill(text)


def test_an_unknown_engine_is_named():
    assert parse_engine("") == ""
    with pytest.raises(UsageError, match="'tflite' is unknown"):
        parse_engine("tflite")


@pytest.mark.parametrize(
    ("passes", "words"),
    [
        ((Quantize(), Prune("channels")), "prune cannot come after quantize"),
        ((Quantize(), Fuse()), "fuse cannot come after quantize"),
        ((Quantize(), QuantizeStatic()), "quantize-static after quantize"),
        ((QuantizeOpenvino(), Quantize()), "quantize cannot come after quantize-openvino"),
        ((), "it would be fp32 again"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(passes, words):
    with pytest.raises(UsageError, match=words):
        check_order(Variant("wrong", passes))


def test_orders_that_make_sense_are_not():
    check_order(Variant("all", (Prune("channels"), Distill(width=0.5), Fuse(), Quantize())))
