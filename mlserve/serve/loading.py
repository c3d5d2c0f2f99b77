"""From a version on disk to a model that is served: checked, loaded, warmed up. And back."""

import ctypes
import logging
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mlserve.engines.engine import Engine
from mlserve.engines.independence import rows_independent
from mlserve.engines.opening import open_engine, open_onnx_file
from mlserve.errors import StoreError
from mlserve.model.artifact import MANIFEST, Artifact, Format
from mlserve.model.private_copy import private_onnx, private_version
from mlserve.model.signing import check_meant, signature_path, verify_signature
from mlserve.serve.batching.lengths import batcher_for
from mlserve.serve.batching.share import device_share
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.batching.window import BatchWindow
from mlserve.serve.catalog import ModelFacts, ServedModel
from mlserve.serve.life.noted import NotedEngine
from mlserve.serve.life.slate import open_slate
from mlserve.serve.recording.recorder import Recorded, open_recorder
from mlserve.serve.settings import ModelSource, ServeSettings, SignatureSettings
from mlserve.serve.tasks.carried import Carried
from mlserve.serve.tasks.opening import open_task
from mlserve.serve.tasks.signing import open_signature
from mlserve.serve.trial import note_loaded, try_model
from mlserve.serve.warming import check_interface, warm_up
from mlserve.serve.watching.resources import measured_load
from mlserve.serve.watching.watched import open_meter
from mlserve.wire.signature import Signature

if TYPE_CHECKING:
    from mlserve.serve.batching.ticket import Ticket

__all__ = ["load_model", "unload_model"]

# Of this process; a new one each time would be left to the collector.
_LIBC = ctypes.CDLL(None)

_log = logging.getLogger("mlserve.serve")

# V2's names for them, as Triton's clients know them.
_PLATFORM: dict[Format, str] = {"onnx": "onnxruntime_onnx", "openvino": "openvino", "torch": "pytorch_libtorch"}


def load_model(
    source: ModelSource, settings: ServeSettings, turn: LoopTurn, *, trial: bool = False, gently: bool = False
) -> ServedModel:
    """The model in `source`, ready to answer.

    Before an engine sees it, it is copied to where nobody else can write, a version checked against its manifest and
    its signature, ONNX by `inspect_onnx`; for a `trial` it is loaded and run in a process of its own first, so that
    what crashes there does not crash a server that serves. `gently` warms it up with rests, for what this process
    serves meanwhile. Raises StoreError, ModelFileError or EngineError.
    """
    with measured_load() as cost, open_slate(settings.slate).noted(source.name, source.version):
        served = _load(source, settings, turn, trial=trial, gently=gently)
    served.meter.loaded(served.facts.size_bytes, cost)
    return served


def unload_model(model: ServedModel) -> None:
    """Closes `model` and lets the system have its memory back: glibc would keep it for the next model.

    Nothing of it waits for the collector, which may never come to it: the worker has frozen what it began with.
    """
    model.close()
    with suppress(AttributeError):  # another C library
        _LIBC.malloc_trim(0)


def _load(source: ModelSource, settings: ServeSettings, turn: LoopTurn, *, trial: bool, gently: bool) -> ServedModel:
    path = Path(source.path)
    if (path / MANIFEST).exists():
        with private_version(path, settings.run_directory) as artifact:
            _check_signature(source, settings.signatures, artifact)
            if trial:
                _try(artifact.directory, settings)
            served = _load_version(source, artifact, settings, turn, gently=gently)
            if not trial and settings.run_directory:
                note_loaded(artifact.directory, settings.engine, settings.batch.max_rows, settings.run_directory)
            return served
    _check_signature(source, settings.signatures)
    if trial:
        with private_onnx(path, settings.run_directory) as (copy, _):
            _try(copy, settings)
            return _load_file(source, copy, settings, gently=gently)
    return _load_file(source, path, settings, gently=gently)


def _try(path: Path, settings: ServeSettings) -> None:
    try_model(path, settings.engine, settings.batch.max_rows, settings.run_directory, settings.trial_s)


def _check_signature(source: ModelSource, wanted: SignatureSettings, artifact: Artifact | None = None) -> None:
    """Tells what the signature of a version lacks, or raises StoreError, as is `wanted`; a bare file can have none."""
    if wanted.require == "off":
        return
    try:
        if artifact is None:
            raise StoreError("a bare file has no signature; serve a version of the store")
        verify_signature(artifact.directory, signature_path(Path(source.path)), [*map(Path, wanted.trusted_keys)])
        check_meant(artifact.manifest, source.name, source.version)
    except StoreError as error:
        if wanted.require == "enforce":
            raise StoreError(f"{source.name}@{source.version} is refused: {error}") from error
        _log.warning("%s@%s is served though nobody vouches for it: %s", source.name, source.version, error)


def _load_file(source: ModelSource, path: Path, settings: ServeSettings, *, gently: bool) -> ServedModel:
    engine = open_onnx_file(path, settings.engine, settings.run_directory)
    try:
        together = rows_independent(engine, engine.inputs)
        signature = Signature(source.name, source.version, engine.inputs, engine.outputs, together=together)
        facts = ModelFacts(engine="onnxruntime", size_bytes=path.stat().st_size)
        return _behind_batcher(engine, signature, settings, facts, gently=gently)
    except BaseException:
        engine.close()
        raise


def _load_version(
    source: ModelSource, artifact: Artifact, settings: ServeSettings, turn: LoopTurn, *, gently: bool
) -> ServedModel:
    manifest = artifact.manifest
    engine = open_engine(artifact, settings.engine)
    try:
        check_interface(engine, manifest)
        carried = Carried(artifact)
        signature = open_signature(source.name, source.version, carried, engine, by_length=settings.batch.by_length)
        facts = ModelFacts(
            platform=_PLATFORM[manifest.format],
            engine=settings.engine.engine or manifest.engine,
            variant=manifest.variant,
            size_bytes=artifact.size_bytes,
            labels=manifest.labels,
        )
        served = _behind_batcher(engine, signature, settings, facts, gently=gently)
    except BaseException:  # its memory is not to wait for the next try
        engine.close()
        raise
    try:
        task = open_task(carried, signature, served.batcher, turn, settings.batch)
    except BaseException:  # or each further try would leave a thread and a meter behind
        served.close()
        raise
    return msgspec.structs.replace(served, task=task)


def _behind_batcher(
    engine: Engine, signature: Signature, settings: ServeSettings, facts: ModelFacts, *, gently: bool
) -> ServedModel:
    max_rows = settings.batch.max_rows if signature.together else 1
    batch = settings.batch
    window: BatchWindow[Ticket] = BatchWindow(
        max_rows, batch.max_delay_s, batch.max_waiting_rows, settings.batch_wait_s
    )
    inputs = [field.spec for field in signature.inputs.values()]
    single_s, typical_s = warm_up(engine, inputs, max_rows, gently=gently)
    share = device_share(settings.engine, settings.workers)
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
    engine = NotedEngine(engine, open_slate(settings.slate).place(signature.name, signature.version))
    batcher = batcher_for(signature, engine, window, observer, typical_s=typical_s, single_s=single_s, share=share)
    return ServedModel(signature, batcher, meter, facts, engine=engine)
