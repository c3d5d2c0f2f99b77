"""Hugging Face folders, exported by optimum, checked against the model that transformers loads."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlserve.engines.engine import EngineSettings
from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import ModelFileError
from mlserve.model.artifact import MODEL_FILE
from mlserve.model.onnx_file import inspect_onnx
from mlserve.model.rows import TOKENIZER_FILE, Rows, SyntheticRows, read_rows
from mlserve.model.tensors import Tensors
from mlserve.optimize.importers.export import check_parity
from mlserve.optimize.importers.onnx_model import keep_outputs, known_specs, write_model
from mlserve.optimize.importers.pretrained_inputs import processing_of
from mlserve.optimize.importers.request import Imported, ImportRequest
from mlserve.optimize.importers.shapes import Run, Sizes, default_sizes, fix_rigid_dims, output_specs

__all__ = ["import_folder"]

_OPSET = 17
_KEPT_FILES = (TOKENIZER_FILE, "tokenizer_config.json", "special_tokens_map.json", "config.json")
_SENTENCE = "sentence_embedding"


def import_folder(request: ImportRequest, out: Path, on_step: Callable[[str], None]) -> Imported:
    """Writes `out/model.onnx`, the tokenizer and the configuration.

    A sentence-transformers folder keeps its pooling, and of its outputs only the embedding of the sentence. Raises
    ModelFileError when optimum cannot export it, and Refused when the file does not give the model's answers.
    """
    source = Path(request.source)
    library = "sentence_transformers" if (source / "modules.json").is_file() else "transformers"
    with _as_model_file_error(source):
        task = "feature-extraction" if library == "sentence_transformers" else _task_of(source)
    model: Any = None
    trained: tuple[tuple[str, ...], ...] = ()
    if request.training:
        from mlserve.optimize.training.pretrained import train_pretrained

        on_step(f"loading the model ({library})")
        with _as_model_file_error(source):
            model = _load(source, library, task)
        model, trained = train_pretrained(model, library, task, request, on_step)
    on_step(f"exporting with optimum ({library})")
    with tempfile.TemporaryDirectory(dir=out) as folder:
        path = _export(source, model, Path(folder), library, task)
        if library == "sentence_transformers":
            keep_outputs(path, [_SENTENCE])
        inspect_onnx(path)
        write_model(path, out)
    for name in _KEPT_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    if model is not None:
        (out / "config.json").write_text(model.config.to_json_string())
    engine = OnnxEngine(out / MODEL_FILE, EngineSettings())
    inputs = known_specs(out / MODEL_FILE, engine.inputs)
    sizes = default_sizes(inputs) | _image_size(source)
    on_step("comparing with the original")
    model = model or _load(source, library, task)
    original = _original(model, library, [spec.name for spec in engine.outputs])
    inputs = fix_rigid_dims(original, inputs, sizes)
    outputs = output_specs(engine.run, inputs, sizes)
    engine.close()
    labels = _labels(source, task)
    processing, untold = processing_of(source, _config(source), task, labels, inputs, outputs)
    rows: Rows = SyntheticRows(inputs, 8)
    if request.data:
        images = processing.image if processing else None
        rows = read_rows(Path(request.data), inputs, source / TOKENIZER_FILE, images)
    agreement = check_parity(original, out / MODEL_FILE, inputs, sizes, rows)
    return Imported(
        inputs=inputs,
        outputs=outputs,
        task=task,
        labels=labels,
        processing=processing,
        notes=(f"optimum ({library}), opset {_OPSET}", agreement, *untold),
        trained=trained,
    )


def _export(source: Path, model: Any, folder: Path, library: str, task: str) -> Path:
    """The one ONNX file that optimum makes of `source`, or of `model`, which was loaded from it and changed."""
    from optimum.exporters.onnx import main_export, onnx_export_from_model
    from optimum.utils.save_utils import maybe_load_preprocessors

    with _as_model_file_error(source):
        if model is None:
            main_export(
                str(source), folder, task=task, library_name=library, do_validation=False, opset=_OPSET, device="cpu",
                local_files_only=True,
            )  # fmt: skip
        else:
            if hasattr(model.config, "use_cache"):
                model.config.use_cache = False  # as main_export has it for a task without past keys
            onnx_export_from_model(
                model, folder, task=task, do_validation=False, opset=_OPSET, device="cpu",
                preprocessors=maybe_load_preprocessors(source),
            )  # fmt: skip
    files = sorted(folder.rglob("*.onnx"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise ModelFileError(
            f"{source} becomes several ONNX files ({found}); only models that are one graph are served"
        )
    return files[0]


@contextlib.contextmanager
def _as_model_file_error(source: Path) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ModelFileError(
            f"{source} needs another package: {error}; install it with: pip install 'mlserve[text]'"
        ) from error
    except Exception as error:  # optimum and transformers raise whatever the model's code does
        raise ModelFileError(f"{source} cannot be exported by optimum: {_first_line(error)}") from error


def _task_of(source: Path) -> str:
    """The task of the class that the folder's configuration names; plain features when it names none."""
    import transformers
    from optimum.exporters.tasks import TasksManager

    named = _config(source).architectures or []
    model_class = getattr(transformers, named[0], None) if named else None
    return str(TasksManager.infer_task_from_model(model_class)) if model_class else "feature-extraction"


def _image_size(source: Path) -> Sizes:
    """Height and width of the images that the configuration was made for, by optimum's words; empty for no images."""
    size = getattr(_config(source), "image_size", None)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return {"height": height, "width": width} if height else {}


def _labels(source: Path, task: str) -> tuple[str, ...]:
    """The names of the classes by number; empty when the configuration names none of its own."""
    names = getattr(_config(source), "id2label", None) or {}
    ordered = tuple(str(names[number]) for number in sorted(names))
    made_up = tuple(f"LABEL_{number}" for number in range(len(ordered)))
    return ordered if "classification" in task and ordered != made_up else ()


def _config(source: Path) -> Any:
    import transformers

    return transformers.AutoConfig.from_pretrained(source, local_files_only=True)


def _load(source: Path, library: str, task: str) -> Any:
    """The model by its own library, in inference mode."""
    if library == "sentence_transformers":
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(source), device="cpu").eval()
    from optimum.exporters.tasks import TasksManager

    return TasksManager.get_model_class_for_task(task).from_pretrained(source, local_files_only=True).eval()


def _original(model: Any, library: str, names: list[str]) -> Run:
    """The model as its own library runs it."""

    def run(inputs: Tensors) -> Tensors:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
        with torch.inference_mode():
            outputs = model(tensors) if library == "sentence_transformers" else model(**tensors)
        return {name: outputs[name].detach().numpy() for name in names}

    return run


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
