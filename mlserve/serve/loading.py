"""From a version on disk to a model that is served: checked, loaded, warmed up."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlserve.engines.engine import Engine
from mlserve.engines.independence import rows_independent
from mlserve.engines.opening import open_engine, open_onnx_file
from mlserve.errors import EngineError, RequestError
from mlserve.model.artifact import MANIFEST, Artifact, read_manifest
from mlserve.model.store import verify
from mlserve.model.synthesis import synthesize
from mlserve.model.tensors import TensorSpec
from mlserve.serve.batching.batcher import Batcher, Ticket
from mlserve.serve.batching.window import BatchWindow
from mlserve.serve.metrics import ModelMeter
from mlserve.serve.service import ServedModel
from mlserve.serve.settings import ModelSource, ServeSettings
from mlserve.wire.signature import Signature

__all__ = ["load_model"]


def load_model(source: ModelSource, settings: ServeSettings) -> ServedModel:
    """The model in `source`, ready to answer.

    A version folder is checked against its manifest, a bare ONNX file by `inspect_onnx`, before an engine sees it.
    Raises StoreError, ModelFileError or EngineError.
    """
    path = Path(source.path)
    if (path / MANIFEST).is_file():
        artifact = Artifact(path, read_manifest(path))
        verify(artifact)
        engine = open_engine(artifact, settings.engine)
        inputs, outputs = artifact.manifest.inputs, artifact.manifest.outputs
        together = artifact.manifest.rows_independent
    else:
        engine = open_onnx_file(path, settings.engine)
        inputs, outputs = engine.inputs, engine.outputs
        together = rows_independent(engine, inputs)
    signature = Signature(source.name, source.version, inputs, outputs, together=together)
    return _behind_batcher(engine, signature, inputs, settings)


def _behind_batcher(
    engine: Engine, signature: Signature, inputs: Sequence[TensorSpec], settings: ServeSettings
) -> ServedModel:
    meter = ModelMeter(signature.name, signature.version)
    max_rows = settings.batch.max_rows if signature.together else 1
    window: BatchWindow[Ticket] = BatchWindow(max_rows, settings.batch.max_delay_s, settings.batch.max_waiting_rows)
    typical_s = _warm_up(engine, inputs, max_rows)
    return ServedModel(signature, Batcher(signature.name, engine, window, meter, typical_s=typical_s), meter)


def _warm_up(engine: Engine, inputs: Sequence[TensorSpec], max_rows: int) -> float:
    """Runs one row and a full batch, twice each; how long the last full batch took.

    0.0 for a model that cannot run made-up rows: its first real requests will tell.
    """
    rng = np.random.default_rng(0)
    elapsed_s = 0.0
    try:
        for rows in (1, max_rows, 1, max_rows):
            tensors = synthesize(inputs, rows, rng)
            started_s = time.perf_counter()
            engine.run(tensors)
            elapsed_s = time.perf_counter() - started_s
    except (EngineError, RequestError):
        return 0.0
    return elapsed_s
