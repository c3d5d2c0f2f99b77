"""One of the two that a gate compares: what it is, and how it is served."""

from pathlib import Path

import msgspec

from mlserve.errors import UsageError
from mlserve.model.onnx_file import inspect_onnx
from mlserve.runs.production import Production
from mlserve.tuning.opening import Contender, settled
from mlserve.tuning.serving import ServerOptions

__all__ = ["Side", "production_side", "side_of"]


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured. `options` are None for a server that runs already; `store` is where a model's name means
    something.
    """

    contender: Contender
    store: str
    options: ServerOptions | None = None

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.contender.name


def side_of(where: str, store: Path, options: ServerOptions) -> Side:
    """A URL, NAME[@VERSION|@ALIAS] or FILE.onnx; a name is settled to the version that it means now.

    Raises StoreError, or the error of a model file, for what there is not, before anything is measured.
    """
    contender = settled(Contender(where, where), store)
    if contender.is_file:
        inspect_onnx(Path(where))
    if contender.running:
        return Side(contender=contender, store=str(store))
    return Side(contender=contender, store=str(store), options=options)


def production_side(production: Production, path: Path, options: ServerOptions) -> Side:
    """What `production`, read from `path`, says is served; of `options` stay the cores and the interpreter.

    Raises UsageError for a file with several models, StoreError for what there is not.
    """
    chosen = production.serve
    if len(chosen.models) != 1:
        raise UsageError(f"{path} serves {len(chosen.models)} models; a gate compares one with one")
    store = Path(chosen.store)
    told = msgspec.structs.replace(
        options,
        workers=chosen.workers,
        threads=chosen.threads,
        max_batch_rows=chosen.max_batch_rows,
        max_delay_ms=chosen.max_delay_ms,
        device=chosen.device,
        engine=chosen.engine,
        compute_type=chosen.compute_type,
    )
    contender = settled(Contender(chosen.models[0], chosen.models[0]), store)
    return Side(contender=contender, store=str(store), options=told)
