"""From a version on disk to a model that is served: checked, loaded, warmed up."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from mlserve.engines.engine import Engine
from mlserve.engines.independence import rows_independent
from mlserve.engines.opening import open_engine, open_onnx_file
from mlserve.errors import EngineError, RequestError
from mlserve.model.artifact import MANIFEST, Artifact, Format, read_manifest
from mlserve.model.store import verify
from mlserve.model.synthesis import synthesize
from mlserve.model.tensors import TensorSpec
from mlserve.serve.batching.lengths import batcher_for
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.batching.window import BatchWindow
from mlserve.serve.catalog import ModelFacts, ServedModel
from mlserve.serve.recording.recorder import Recorded, open_recorder
from mlserve.serve.settings import ModelSource, ServeSettings
from mlserve.serve.tasks.carried import Carried
from mlserve.serve.tasks.opening import open_task
from mlserve.serve.tasks.signing import open_signature
from mlserve.serve.watching.resources import measured_load
from mlserve.serve.watching.watched import open_meter
from mlserve.wire.signature import Signature

if TYPE_CHECKING:
    from mlserve.serve.batching.batcher import Ticket

__all__ = ["load_model"]

# V2's names for them, as Triton's clients know them.
_PLATFORM: dict[Format, str] = {"onnx": "onnxruntime_onnx", "openvino": "openvino", "torch": "pytorch_libtorch"}


def load_model(source: ModelSource, settings: ServeSettings, turn: LoopTurn) -> ServedModel:
    """The model in `source`, ready to answer.

    A version folder is checked against its manifest, a bare ONNX file by `inspect_onnx`, before an engine sees it.
    Raises StoreError, ModelFileError or EngineError.
    """
    with measured_load() as cost:
        served = _load(source, settings, turn)
    served.meter.loaded(served.facts.size_bytes, cost)
    return served


def _load(source: ModelSource, settings: ServeSettings, turn: LoopTurn) -> ServedModel:
    path = Path(source.path)
    if (path / MANIFEST).is_file():
        return _load_version(source, Artifact(path, read_manifest(path)), settings, turn)
    engine = open_onnx_file(path, settings.engine)
    together = rows_independent(engine, engine.inputs)
    signature = Signature(source.name, source.version, engine.inputs, engine.outputs, together=together)
    facts = ModelFacts(engine="onnxruntime", size_bytes=path.stat().st_size)
    return _behind_batcher(engine, signature, settings, facts)


def _load_version(source: ModelSource, artifact: Artifact, settings: ServeSettings, turn: LoopTurn) -> ServedModel:
    verify(artifact)
    manifest = artifact.manifest
    engine = open_engine(artifact, settings.engine)
    carried = Carried(artifact)
    signature = open_signature(source.name, source.version, carried, engine, by_length=settings.batch.by_length)
    facts = ModelFacts(
        platform=_PLATFORM[manifest.format],
        engine=settings.engine.engine or manifest.engine,
        variant=manifest.variant,
        size_bytes=artifact.size_bytes,
        labels=manifest.labels,
    )
    served = _behind_batcher(engine, signature, settings, facts)
    try:
        task = open_task(carried, signature, served.batcher, turn, settings.batch)
    except BaseException:  # or each further try would leave a thread and a meter behind
        served.close()
        raise
    return msgspec.structs.replace(served, task=task)


def _behind_batcher(engine: Engine, signature: Signature, settings: ServeSettings, facts: ModelFacts) -> ServedModel:
    max_rows = settings.batch.max_rows if signature.together else 1
    window: BatchWindow[Ticket] = BatchWindow(max_rows, settings.batch.max_delay_s, settings.batch.max_waiting_rows)
    typical_s = _warm_up(engine, [field.spec for field in signature.inputs.values()], max_rows)
    facts = msgspec.structs.replace(
        facts,
        device=settings.engine.device,
        provider=engine.execution.provider,
        precision=engine.execution.precision,
        max_rows=max_rows,
        loaded_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    meter = open_meter(signature.name, signature.version, settings.watch)
    observer = Recorded(meter, signature, open_recorder(settings.run_directory))
    batcher = batcher_for(signature, engine, window, observer, typical_s=typical_s)
    return ServedModel(signature, batcher, meter, facts, engine=engine)


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
