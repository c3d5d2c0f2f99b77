"""Training passes on models of every form they come in, and within an import.

That the importing process trains as well is shown where every pass is done to a model, and from the command line.
"""

import warnings

import msgspec
import numpy as np
import pytest
import torch

from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import Refused, UsageError
from mlserve.model.artifact import MODEL_FILE
from mlserve.model.rows import read_rows
from mlserve.optimize.evaluation.split import split_rows
from mlserve.optimize.importers.inputs import find_inputs
from mlserve.optimize.importers.original import load_original
from mlserve.optimize.importers.request import ImportRequest
from mlserve.optimize.importing import Source, Training
from mlserve.optimize.training.prune import Prune
from mlserve.optimize.training.schedule import Schedule
from mlserve.optimize.training.training import train, tuning_rows

SHORT = Schedule(epochs=2, batch_rows=16, learning_rate=1e-3)
UNTUNED = Schedule(epochs=0)


@pytest.fixture(autouse=True)
def torch_as_it_was(monkeypatch):
    """Loading a model turns torch's fused attention off, for the whole process. Small batches need one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformer = torch.nn.modules.transformer
    monkeypatch.setattr(transformer, "_detect_is_causal_mask", transformer._detect_is_causal_mask)
    yield
    torch.backends.mha.set_fastpath_enabled(True)
    torch.set_num_threads(threads)


@pytest.fixture
def images(home):
    """Made-up images with labels that can be told from them: 60 rows."""
    rng = np.random.default_rng(0)
    labels = rng.integers(10, size=60)
    pictures = rng.standard_normal((60, 1, 8, 8)).astype(np.float32)
    pictures[:, 0, 0, 0] = labels
    np.savez(home / "images.npz", image=pictures, label=labels)
    return home / "images.npz"


def trained(path, kind, passes, data=None, on_step=lambda _: None, **more):
    """The model in `path` after `passes`, and what they said, all in this process."""
    request = ImportRequest(
        source=str(path), kind=kind, out="", training=passes, data=str(data) if data else "", **more
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = load_original(request)
        inputs = find_inputs(original, request)
        return train(original, inputs, request, on_step)


def exported_digits(home, zoo):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("rows")},)
        program = torch.export.export(zoo.digits().eval(), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=shapes)
        torch.export.save(program, home / "program.pt2")
    return home / "program.pt2"


def scripted_digits(home, zoo):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(zoo.digits().eval()).save(home / "scripted.pt")
    return home / "scripted.pt"


def zeros(module):
    weights = [weight for weight in module.parameters() if weight.ndim > 1]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def distance(one, other, pictures):
    return float(np.abs(one.run({"image": pictures})["output"] - other.run({"image": pictures})["output"]).mean())


def test_a_fixed_graph_can_have_zeros_among_its_weights(home, zoo, images):
    for path, kind in ((exported_digits(home, zoo), "exported"), (scripted_digits(home, zoo), "torchscript")):
        original, notes = trained(path, kind, (Prune("unstructured", 0.5, tuning=SHORT),), data=images)
        assert zeros(original.module) == 0.5
        assert "fine-tuned towards the labels" in " ".join(notes[0])
        if original.program is not None:  # it is what gets exported
            assert zeros(original.program.module()) == 0.5


def test_a_fixed_graph_without_labels_is_tuned_towards_itself(home, zoo, images):
    pictures = np.load(images)["image"]
    np.savez(images, image=pictures)
    longer = msgspec.structs.replace(SHORT, epochs=20, learning_rate=1e-2)
    for path, kind in ((exported_digits(home, zoo), "exported"), (scripted_digits(home, zoo), "torchscript")):
        as_it_was, _ = trained(path, kind, ())
        untuned, _ = trained(path, kind, (Prune("unstructured", 0.9, tuning=UNTUNED),), data=images)
        tuned, notes = trained(path, kind, (Prune("unstructured", 0.9, tuning=longer),), data=images)
        assert "towards the answers of the model as it was" in notes[0][-1]
        assert distance(tuned, as_it_was, pictures) < 0.8 * distance(untuned, as_it_was, pictures)


@pytest.mark.parametrize("what", ["channels", "heads", "layers"])
def test_nothing_can_be_taken_out_of_a_fixed_graph(home, zoo, what):
    with pytest.raises(Refused, match=rf"{what} cannot be taken out of TorchScript.*--model-class"):
        trained(scripted_digits(home, zoo), "torchscript", (Prune(what),))
    with pytest.raises(Refused, match=rf"{what} cannot be taken out of a torch.export program.*--model-class"):
        trained(exported_digits(home, zoo), "exported", (Prune(what),))


def test_passes_are_done_in_order_and_each_says_what_it_did(weights, images):
    passes = (Prune("channels", 0.5, tuning=SHORT), Prune("unstructured", 0.25, tuning=UNTUNED))
    original, notes = trained(weights("digits"), "state-dict", passes, data=images, model_class="zoo:digits")
    assert notes[0][0].startswith("channels: 8 -> 4")
    assert notes[1][0] == "25.0% of 676 weights are zero"
    assert not any(weight.requires_grad for weight in original.module.parameters())
    assert not original.module.training


def test_zeros_that_a_later_pass_would_fill_are_not_made(weights):
    passes = (Prune("2:4"), Prune("channels"))
    with pytest.raises(UsageError, match=r"prune \(2:4\) stands before prune.*put it last"):
        trained(weights("digits"), "state-dict", passes, model_class="zoo:digits")


def test_held_out_rows_are_not_learnt_from(images, weights):
    path = weights("digits")
    request = ImportRequest(source=str(path), kind="state-dict", out="", model_class="zoo:digits", data=str(images))
    specs = find_inputs(load_original(request), request).specs
    used = tuning_rows(request, specs)
    _, held_out = split_rows(read_rows(images, specs), request.split)
    everything = np.load(images)["image"]
    found = [picture.tobytes() for rows in (used, held_out) for picture in rows.batch(0, len(rows))["image"]]
    assert sorted(found) == sorted(picture.tobytes() for picture in everything)
    assert used.labels.shape == (len(used),)
    assert tuning_rows(msgspec.structs.replace(request, data=""), specs) is None


def test_what_the_models_own_code_froze_stays_as_it_is(home, zoo, images, weights):
    (home / "frozen.py").write_text(
        "import zoo\n"
        "def digits():\n"
        "    module = zoo.digits()\n"
        "    module.layers[0].weight.requires_grad_(False)\n"
        "    return module\n"
        "def all_frozen():\n"
        "    return zoo.digits().requires_grad_(False)\n"
    )
    path = weights("digits")
    before = torch.load(path)
    passes = (Prune("unstructured", 0.01, tuning=SHORT),)
    original, _ = trained(path, "state-dict", passes, data=images, model_class="frozen:digits")
    found = original.module.layers[0].weight
    assert torch.equal(found[found != 0], before["layers.0.weight"][found != 0])
    assert not torch.equal(original.module.layers[5].bias, before["layers.5.bias"])
    original, _ = trained(path, "state-dict", passes, data=images, model_class="frozen:all_frozen")
    assert not torch.equal(original.module.layers[0].bias, before["layers.0.bias"])


def test_half_precision_is_trained_as_float32(home, zoo, images, weights):
    original, notes = trained(
        weights("half"), "state-dict", (Prune("channels", tuning=SHORT),), data=images, model_class="zoo:half"
    )
    assert original.widened_from == "float16"
    assert {weight.dtype for weight in original.module.parameters()} == {torch.float32}
    assert "fine-tuned" in notes[0][-1]


def test_the_same_seed_gives_the_same_weights(weights, images):
    def run(seed):
        passes = (Prune("channels", tuning=SHORT, seed=seed),)
        original, _ = trained(weights("digits"), "state-dict", passes, data=images, model_class="zoo:digits")
        return original.module.state_dict()

    first, second, other = run(1), run(1), run(2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_tuning_that_was_interrupted_goes_on(weights, images, tmp_path):
    passes = (Prune("channels", tuning=UNTUNED), Prune("2:4", tuning=msgspec.structs.replace(SHORT, epochs=4)))
    more = {"data": images, "model_class": "zoo:digits"}
    whole, _ = trained(weights("digits"), "state-dict", passes, **more)

    def interrupt(step):
        if step.startswith("epoch 3/4"):
            raise KeyboardInterrupt

    more["checkpoints"] = str(tmp_path / "checkpoints")
    with pytest.raises(KeyboardInterrupt):
        trained(weights("digits"), "state-dict", passes, on_step=interrupt, **more)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2-prune"]
    resumed, notes = trained(weights("digits"), "state-dict", passes, **more)
    assert "went on from a checkpoint" in " ".join(notes[1])
    expected, found = whole.module.state_dict(), resumed.module.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not list((tmp_path / "checkpoints").rglob("*.pt"))


def test_a_pruned_state_dict_is_published_as_it_was_trained(weights, home, images, import_here):
    (home / "out").mkdir()
    steps = []
    source = Source(path=weights("digits"), model_class="zoo:digits", data=images)
    passes = (Prune("channels", tuning=SHORT), Prune("2:4", tuning=SHORT))
    kind, imported = import_here(source, home / "out", steps.append, Training(passes))
    assert kind == "state-dict"
    first, second = imported.trained
    assert first[0].startswith("channels: 8 -> 4")
    assert second[0] == "left as they are, their inputs being no multiple of four: layers.0.weight"
    assert "prune (1 of 2)" in steps
    assert any(step.startswith("epoch 2/2") for step in steps)
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(home / "out" / MODEL_FILE).graph
    head = next(numpy_helper.to_array(tensor) for tensor in graph.initializer if 64 in tensor.dims)
    head = head if head.shape[1] == 64 else head.T
    assert ((head.reshape(10, 16, 4) == 0).sum(-1) == 2).all()
    engine = OnnxEngine(home / "out" / MODEL_FILE)
    assert engine.run({"image": np.zeros((2, 1, 8, 8), np.float32)})["output"].shape == (2, 10)


def test_a_pruned_hugging_face_folder_keeps_its_labels_and_its_interface(home, monkeypatch, import_here):
    monkeypatch.setenv("USE_TF", "0")
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 200}
    config = BertConfig(**sizes, num_hidden_layers=4, id2label={0: "bad", 1: "so so", 2: "good"})
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(home / "bert")
    rng = np.random.default_rng(0)
    tokens = rng.integers(200, size=(24, 7))
    columns = {"attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}
    np.savez(home / "rows.npz", input_ids=tokens, label=tokens[:, 0] % 3, **columns)
    (home / "out").mkdir()
    passes = (Prune("layers", tuning=SHORT), Prune("heads", tuning=UNTUNED), Prune("channels", tuning=UNTUNED))
    source = Source(path=home / "bert", data=home / "rows.npz")
    _, imported = import_here(source, home / "out", lambda _: None, Training(passes))
    assert imported.labels == ("bad", "so so", "good")
    assert imported.trained[0][0].startswith("layers: 4 -> 2; kept ")
    assert imported.trained[1][0] == "attention heads: 8 -> 4"
    assert imported.trained[2][0].startswith("channels: 160 -> 80")
    assert [str(spec) for spec in imported.outputs] == ["logits:float32:batch_size,3"]
    assert msgspec.json.decode((home / "out" / "config.json").read_bytes())["num_hidden_layers"] == 2
    engine = OnnxEngine(home / "out" / MODEL_FILE)
    assert engine.run({"input_ids": tokens, **columns})["logits"].shape == (24, 3)
