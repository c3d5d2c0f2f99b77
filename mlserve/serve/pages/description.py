"""What is served, in the words of the friendly dialect: names, versions, aliases, and what each takes and gives."""

import msgspec

from mlserve.serve.catalog import Catalog, IndexEntry, ModelFacts, ServedModel, State
from mlserve.wire.signature import Field

__all__ = ["ModelDescription", "TensorDescription", "VersionDescription", "describe_model", "describe_models"]


class TensorDescription(msgspec.Struct, frozen=True):
    """One input or output; a word in `shape` is a dimension of any size."""

    name: str
    datatype: str
    shape: tuple[int | str, ...]


class VersionDescription(msgspec.Struct, frozen=True):
    """One version; `reason` says why it is not ready. What only a loaded version tells is empty for the others."""

    version: str
    state: State
    reason: str
    aliases: tuple[str, ...]
    engine: str
    device: str
    variant: str
    size_bytes: int
    loaded_at: str


class ModelDescription(msgspec.Struct, frozen=True):
    """One name. `task`, `labels`, `inputs` and `outputs` are the default version's, or the newest one's.

    `default` is the version that a request which names none is for; `task` is `text`, `image` or `tensors`.
    """

    name: str
    state: State
    default: str
    aliases: dict[str, str]
    task: str
    inputs: tuple[TensorDescription, ...]
    outputs: tuple[TensorDescription, ...]
    labels: tuple[str, ...]
    versions: tuple[VersionDescription, ...]


def describe_models(catalog: Catalog) -> dict[str, list[ModelDescription]]:
    """Every name, served or only known, sorted."""
    entries: dict[str, list[IndexEntry]] = {}
    for entry in catalog.index:
        entries.setdefault(entry.name, []).append(entry)
    return {"models": [_describe(name, entries[name], catalog) for name in sorted(entries)]}


def describe_model(catalog: Catalog, name: str) -> ModelDescription | None:
    """The name, served or only known; None for any other."""
    entries = [entry for entry in catalog.index if entry.name == name]
    return _describe(name, entries, catalog) if entries else None


def _describe(name: str, entries: list[IndexEntry], catalog: Catalog) -> ModelDescription:
    aliases = catalog.aliases.get(name, {})
    ready = [entry for entry in entries if entry.state == "READY"]
    shown = _shown(catalog, name, ready)
    return ModelDescription(
        name,
        "READY" if ready else entries[-1].state,
        catalog.defaults.get(name, ""),
        dict(sorted(aliases.items())),
        shown.task.kind if shown is not None and shown.task is not None else "tensors",
        _tensors(shown.signature.inputs) if shown is not None else (),
        _tensors(shown.signature.outputs) if shown is not None else (),
        shown.facts.labels if shown is not None else (),
        tuple(_version(entry, aliases, catalog.models.get((name, entry.version))) for entry in entries),
    )


def _shown(catalog: Catalog, name: str, ready: list[IndexEntry]) -> ServedModel | None:
    """The version whose inputs and outputs stand for the name's."""
    return catalog.look_up(name) or (catalog.models[name, ready[-1].version] if ready else None)


def _version(entry: IndexEntry, aliases: dict[str, str], model: ServedModel | None) -> VersionDescription:
    facts = model.facts if model is not None else ModelFacts(device="")
    meant_by = tuple(sorted(alias for alias, version in aliases.items() if version == entry.version))
    return VersionDescription(
        entry.version,
        entry.state,
        entry.reason,
        meant_by,
        engine=facts.engine,
        device=facts.device,
        variant=facts.variant,
        size_bytes=facts.size_bytes,
        loaded_at=facts.loaded_at,
    )


def _tensors(fields: dict[str, Field]) -> tuple[TensorDescription, ...]:
    return tuple(TensorDescription(field.name, field.datatype, field.dims) for field in fields.values())
