"""Real model files of every kind; through the importing process where it is the process that is looked at."""

import gc
import json
import subprocess
import sys
import warnings
from functools import partial

import msgspec
import numpy as np
import pytest
import torch

from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import DataFileError, ModelFileError, Refused, UnknownInputError, UsageError
from mlserve.model.artifact import MODEL_FILE
from mlserve.model.tensors import TensorSpec, parse_input_flag
from mlserve.optimize.importers.request import Imported
from mlserve.optimize.importing import Source, import_model


def import_it(path, out, run=import_model, **hints):
    """Imports in the importing process."""
    out.mkdir()
    steps = []
    kind, imported = run(Source(path=path, **hints), out, steps.append)
    assert steps
    return kind, imported


@pytest.fixture
def bring_it(import_here):
    """Imports in the process of the tests."""
    return partial(import_it, run=import_here)


def specs(imported):
    return [str(spec) for spec in imported.inputs], [str(spec) for spec in imported.outputs]


_NETWORKS = [
    ("mlp", ["input:float32:batch,30"], ["output:float32:batch,2"]),
    ("fixed_length", ["tokens:int64:batch,20"], ["output:float32:batch,3"]),
    ("causal", ["tokens:int64:batch,sequence"], ["output:float32:batch,sequence,50"]),
    ("bag", ["tokens:int64:batch,sequence"], ["output:float32:batch,2"]),
    ("double", ["input:float64:batch,30"], ["output:float64:batch,2"]),
    ("fields", ["x:float32:batch,4"], ["mean:float32:batch,2", "spread:float32:batch,2"]),
    ("series", ["series:float32:batch,sequence,7"], ["output:float32:batch,2"]),
    (
        "masked",
        ["input_ids:int64:batch,sequence", "attention_mask:int64:batch,sequence"],
        ["logits:float32:batch,3", "states:float32:batch,sequence,16"],
    ),
]


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [_NETWORKS[0], *(pytest.param(*network, marks=pytest.mark.slow) for network in _NETWORKS[1:])],
)
def test_the_inputs_of_a_common_network_are_inferred_and_said(weights, home, name, inputs, outputs, bring_it):
    kind, imported = bring_it(weights(name), home / "out", model_class=f"zoo:{name}")
    assert kind == "state-dict"
    assert specs(imported) == (inputs, outputs)
    assert inputs[0] in imported.assumed[0]


def test_the_inputs_of_a_transformer_are_inferred_and_its_onnx_file_answers_like_the_module(
    weights, home, zoo, bring_it
):
    path = weights("tokens")
    _, imported = bring_it(path, home / "out", model_class="zoo:tokens")
    assert specs(imported) == (["tokens:int64:batch,sequence"], ["output:float32:batch,3"])
    assert "tokens:int64:batch,sequence" in imported.assumed[0]
    assert imported.inputs[0].below == 50  # integers stay below the table they select from
    module = zoo.tokens().eval()
    module.load_state_dict(torch.load(path))
    engine = OnnxEngine(home / "out" / MODEL_FILE)
    for rows, length in ((1, 20), (5, 3)):
        tokens = np.random.default_rng(0).integers(50, size=(rows, length))
        with torch.inference_mode():
            expected = module(torch.from_numpy(tokens)).numpy()
        np.testing.assert_allclose(engine.run({"tokens": tokens})["output"], expected, atol=1e-5)


def test_what_cannot_be_inferred_is_asked_for_by_flag(weights, home, bring_it):
    path = weights("pair")
    with pytest.raises(UnknownInputError, match=r"--input .*left, right"):
        bring_it(path, home / "out", model_class="zoo:pair")
    stated = (parse_input_flag("left:float32:batch,4"), parse_input_flag("right:float32:batch,6"))
    _, imported = bring_it(path, home / "out2", model_class="zoo:pair", inputs=stated)
    assert imported.inputs == stated
    assert not imported.assumed


@pytest.mark.parametrize(
    ("name", "words"),
    [("nested", "'output_1' of the model is a tuple"), ("named_by_text", "is a str"), ("complex_numbers", "complex64")],
)
def test_outputs_that_cannot_be_served_are_named(weights, home, name, words, bring_it):
    with pytest.raises(ModelFileError, match=words):
        bring_it(weights(name), home / "out", model_class=f"zoo:{name}")


@pytest.mark.slow
def test_half_precision_is_widened_and_said(weights, home, bring_it):
    _, imported = bring_it(weights("half"), home / "out", model_class="zoo:half")
    assert specs(imported)[0] == ["image:float32:batch,1,8,8"]
    assert "float16" in imported.assumed[0]


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(
            lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}, "epoch": 3},
            marks=pytest.mark.slow,
        ),
        pytest.param(lambda state: {"net": state, "accuracy": 0.9}, marks=pytest.mark.slow),
        pytest.param(lambda state: {f"module.{name}": value for name, value in state.items()}, marks=pytest.mark.slow),
        lambda state: {"state_dict": {f"model._orig_mod.{name}": value for name, value in state.items()}},
    ],
)
def test_the_weights_of_a_checkpoint_are_found(home, zoo, wrap, bring_it):
    torch.save(wrap(zoo.digits().state_dict()), home / "checkpoint.pt")
    _, imported = bring_it(home / "checkpoint.pt", home / "out", model_class="zoo:digits")
    assert specs(imported) == (["image:float32:batch,1,8,8"], ["output:float32:batch,10"])
    assert "image:float32:batch,1,8,8" in imported.assumed[0]


def test_weights_that_belong_to_nothing_in_the_model_are_refused(home, zoo, bring_it):
    torch.save(zoo.digits().state_dict() | {"extra.weight": torch.zeros(1)}, home / "more.pt")
    with pytest.raises(ModelFileError, match=r"extra\.weight"):
        bring_it(home / "more.pt", home / "out", model_class="zoo:digits")


def test_code_that_asks_a_question_finds_nobody(weights, home):
    with pytest.raises(UsageError, match="EOFError"):
        import_it(weights("mlp"), home / "out", model_class="zoo:asking")


def test_rows_that_come_second_are_not_guessed(weights, home, bring_it):
    path = weights("series_first")
    with pytest.raises(UnknownInputError, match="--input"):
        bring_it(path, home / "out", model_class="zoo:series_first")


def test_an_example_function_states_the_inputs(weights, home, bring_it):
    _, imported = bring_it(weights("pair"), home / "out", model_class="zoo:pair", example="zoo:pair_example")
    assert specs(imported)[0] == ["left:float32:batch,4", "right:float32:batch,6"]


@pytest.mark.parametrize(
    ("hints", "error", "words"),
    [
        ({"example": "zoo:nothing"}, UsageError, "zoo:nothing"),
        ({"example": "zoo"}, UsageError, "package.module:function"),
        ({"model_class": "zoo:no_tensor"}, UsageError, "not a torch.nn.Module"),
        ({"model_class": "zoo:digits"}, ModelFileError, "do not fit"),
        ({"inputs": (TensorSpec("left", "float32", ("batch", 5)),)}, UsageError, "does not run"),
    ],
)
def test_what_the_user_states_wrongly_is_named(weights, home, hints, error, words, bring_it):
    with pytest.raises(error, match=words):
        bring_it(weights("pair"), home / "out", **({"model_class": "zoo:pair"} | hints))


@pytest.mark.slow
def test_a_dimension_said_to_be_open_must_be(weights, home, bring_it):
    path = weights("fixed_length")
    wrong = (parse_input_flag("tokens:int64:batch,length"),)
    with pytest.raises(UsageError, match="does not run"):
        bring_it(path, home / "out", model_class="zoo:fixed_length", inputs=wrong)
    right = (parse_input_flag("tokens:int64:batch,20"),)
    _, imported = bring_it(path, home / "out2", model_class="zoo:fixed_length", inputs=right)
    assert specs(imported)[0] == ["tokens:int64:batch,20"]


def test_rows_of_data_state_the_inputs(weights, home, bring_it):
    rng = np.random.default_rng(0)
    np.savez(home / "pair.npz", left=rng.random((9, 4)), right=rng.random((9, 6)), label=rng.integers(2, size=9))
    _, imported = bring_it(weights("pair"), home / "out", model_class="zoo:pair", data=home / "pair.npz")
    assert specs(imported)[0] == ["left:float32:batch,4", "right:float32:batch,6"]
    (home / "words.csv").write_text("text\nhello\n")
    with pytest.raises(DataFileError, match="left, right"):
        bring_it(weights("pair"), home / "out2", model_class="zoo:pair", data=home / "words.csv")


def quietly(make):
    """torch warns of its own future while it traces and scripts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = make()
        gc.collect()
        return result


_IMPORT_THERE = """
import sys, warnings
from pathlib import Path
import msgspec
from mlserve.optimize.importers.worker import import_asked
from mlserve.optimize.importing import Source, request_of

warnings.simplefilter("ignore")  # as the importing process does
for path in map(Path, sys.argv[1:]):
    out = path.with_suffix(".out")
    out.mkdir()
    request = request_of(Source(path=path), out)
    answer = request.kind, import_asked(request, lambda _: None)
    path.with_suffix(".answer").write_bytes(msgspec.json.encode(answer))
"""


@pytest.fixture(scope="module")
def torchscript(zoo, tmp_path_factory):
    """`torchscript(name)`: kind and specs of a TorchScript file, imported in one process that has loaded torch once.

    That the importing process does the same is shown where every pass is done to such a file.
    """
    folder = tmp_path_factory.mktemp("torchscript")
    tokens = torch.zeros(2, 9, dtype=torch.int64)
    quietly(lambda: torch.jit.trace(zoo.mlp().eval(), torch.zeros(3, 30)).save(folder / "traced.pt"))
    quietly(lambda: torch.jit.script(zoo.series().eval()).save(folder / "scripted.pt"))
    quietly(lambda: torch.jit.trace(zoo.tokens().eval(), tokens, check_trace=False).save(folder / "transformer.pt"))
    subprocess.run([sys.executable, "-c", _IMPORT_THERE, *folder.glob("*.pt")], check=True)
    return lambda name: msgspec.json.decode((folder / f"{name}.answer").read_bytes(), type=tuple[str, Imported])


def test_a_traced_module_keeps_the_shapes_it_was_traced_with(torchscript):
    kind, imported = torchscript("traced")
    assert kind == "torchscript"
    assert specs(imported)[0] == ["input:float32:batch,30"]
    assert not imported.assumed


def test_a_scripted_module_is_imported(torchscript):
    _, imported = torchscript("scripted")
    assert specs(imported)[0] == ["series:float32:batch,sequence,7"]


@pytest.mark.slow
def test_a_scripted_transformer_is_replayed_at_one_size(home, zoo):
    quietly(lambda: torch.jit.script(zoo.tokens().eval()).save(home / "scripted.pt"))
    _, imported = import_it(home / "scripted.pt", home / "out")
    assert specs(imported)[0] == ["tokens:int64:1,16"]
    assert any("only so could it be exported" in line for line in imported.assumed)


def test_a_traced_transformer_keeps_its_dimensions_open(torchscript):
    _, imported = torchscript("transformer")
    assert specs(imported) == (["tokens:int64:batch,sequence"], ["output:float32:batch,3"])


@pytest.mark.slow
def test_a_transformer_that_was_traced_without_gradients_keeps_its_dimensions_open(home, zoo):
    """Without gradients torch traces its encoder layers as one operator."""
    with torch.no_grad():
        example = torch.zeros(2, 9, dtype=torch.int64)
        quietly(lambda: torch.jit.trace(zoo.tokens().eval(), example, check_trace=False).save(home / "traced.pt"))
    _, imported = import_it(home / "traced.pt", home / "out")
    assert specs(imported) == (["tokens:int64:batch,sequence"], ["output:float32:batch,3"])


@pytest.mark.slow
def test_a_traced_dictionary_keeps_its_rows_open(home, zoo):
    module = zoo.dictionary().eval()
    quietly(lambda: torch.jit.trace(module, torch.zeros(2, 4), strict=False).save(home / "traced.pt"))
    _, imported = import_it(home / "traced.pt", home / "out")
    assert specs(imported)[1] == ["mean:float32:batch,2", "spread:float32:batch,2"]


@pytest.mark.slow
def test_a_program_that_was_exported_with_keywords_is_imported(home, zoo, bring_it):
    keywords = {name: torch.ones(2, 9, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    shapes = {name: {0: torch.export.Dim("rows"), 1: torch.export.Dim("length")} for name in keywords}
    program = quietly(lambda: torch.export.export(zoo.masked().eval(), (), keywords, dynamic_shapes=shapes))
    quietly(lambda: torch.export.save(program, home / "program.pt2"))
    _, imported = bring_it(home / "program.pt2", home / "out")
    assert [spec.name for spec in imported.inputs] == ["input_ids", "attention_mask"]
    assert all(isinstance(dim, str) for spec in imported.inputs for dim in spec.shape)


@pytest.mark.parametrize("open_rows", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_exported_program_keeps_its_dimensions(home, zoo, open_rows, bring_it):
    shapes = ({0: torch.export.Dim("rows")},) if open_rows else None
    program = quietly(
        lambda: torch.export.export(zoo.digits().eval(), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=shapes)
    )
    quietly(lambda: torch.export.save(program, home / "program.pt2"))
    kind, imported = bring_it(home / "program.pt2", home / "out")
    assert kind == "exported"
    assert specs(imported)[0] == [f"image:float32:{'batch' if open_rows else 2},1,8,8"]


def test_an_onnx_file_is_kept(tiny_onnx, tmp_path):
    kind, imported = import_it(tiny_onnx, tmp_path / "out")
    assert kind == "onnx"
    assert specs(imported) == (["x:float32:batch,30"], ["scores:float32:batch,2"])


@pytest.mark.slow
def test_a_hugging_face_folder_takes_the_images_it_was_made_for(home, bring_it):
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=4)
    ViTForImageClassification(config).save_pretrained(home / "vit")
    _, imported = bring_it(home / "vit", home / "out")
    assert specs(imported) == (["pixel_values:float32:batch_size,3,32,32"], ["logits:float32:batch_size,4"])


def test_code_that_came_with_a_hugging_face_folder_does_not_run(home, bring_it):
    (home / "custom").mkdir()
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (home / "custom" / "config.json").write_text(json.dumps(config))
    (home / "custom" / "mine.py").write_text(f"open({str(home / 'ran')!r}, 'w').close()")
    with pytest.raises(ModelFileError, match="custom code"):
        bring_it(home / "custom", home / "out")
    assert not (home / "ran").exists()


@pytest.mark.parametrize(("inputs", "outputs"), [("", "y"), ("x", "")])
def test_an_onnx_file_must_take_and_give_something(tmp_path, inputs, outputs):
    from onnx import TensorProto, helper, numpy_helper, save_model

    node = helper.make_node("Identity", [inputs or "w"], ["y"])
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in names] for names in (inputs, outputs)
    ]
    graph = helper.make_graph([node], "g", *values, [numpy_helper.from_array(np.ones(1, np.float32), "w")])
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "g.onnx")
    with pytest.raises(ModelFileError, match="takes and gives something"):
        import_it(tmp_path / "g.onnx", tmp_path / "out")


def test_an_export_that_answers_otherwise_is_refused(weights, home, bring_it):
    with pytest.raises(Refused, match=r"nothing was published.*output 'output' differs"):
        bring_it(weights("undecided"), home / "out", model_class="zoo:undecided")


def test_a_pickled_module_runs_only_when_it_is_trusted(home, zoo, monkeypatch, bring_it):
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "zoo", zoo)  # so the file names its class
        torch.save(zoo.digits().eval(), home / "module.pt")
    with pytest.raises(ModelFileError, match=r"zoo\.Digits.*--trust-pickle"):
        bring_it(home / "module.pt", home / "out")
    kind, imported = import_it(home / "module.pt", home / "out2", trust_pickle=True)
    assert kind == "pickle"
    assert specs(imported)[0] == ["image:float32:batch,1,8,8"]


def test_the_importing_process_may_die(weights, home):
    (home / "killer.py").write_text("import os\ndef make():\n    os._exit(9)\n")
    with pytest.raises(ModelFileError, match=r"cannot be loaded: the importing process ended with status 9$"):
        import_it(weights("mlp"), home / "out", model_class="killer:make")
