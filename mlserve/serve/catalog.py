"""What is served at one moment: an immutable view that is replaced whole, so that no request sees half a change."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from mlserve.engines.engine import Engine
from mlserve.errors import NotServing, UnknownModelError
from mlserve.serve.batching.batcher import Batcher
from mlserve.serve.metrics import ModelMeter
from mlserve.serve.tasks.task import Task
from mlserve.wire.signature import Signature

__all__ = ["Catalog", "IndexEntry", "ModelFacts", "ServedModel", "State"]

State = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]


class ModelFacts(msgspec.Struct, frozen=True):
    """What pages tell of a served version beside its signature.

    `platform` is V2's name for its format (`onnxruntime_onnx`, `openvino`, `pytorch_pt2`), `engine` what runs it,
    `provider` and `precision` what the engine itself says it runs it on and in (engine.Execution),
    `max_rows` the most rows that run together, `labels` the names of the classes, `loaded_at` ISO 8601.
    """

    platform: str = "onnxruntime_onnx"
    engine: str = ""
    device: str = "cpu"
    provider: str = ""
    precision: str = ""
    variant: str = ""
    size_bytes: int = 0
    max_rows: int = 1
    labels: tuple[str, ...] = ()
    loaded_at: str = ""


class ServedModel(msgspec.Struct, frozen=True, eq=False):
    """One loaded version and what runs it. It owns `engine`, which `batcher` runs."""

    signature: Signature
    batcher: Batcher
    meter: ModelMeter
    facts: ModelFacts = ModelFacts()
    task: Task | None = None
    engine: Engine | None = None

    @property
    def idle(self) -> bool:
        """Whether every request it accepted has been run."""
        return self.batcher.idle and (self.task is None or self.task.idle)

    def close(self) -> None:
        """Runs what still waits, then stops its threads and frees the model."""
        if self.task is not None:
            self.task.close()
        self.batcher.close()
        self.meter.close()
        if self.engine is not None:
            self.engine.close()


class IndexEntry(msgspec.Struct, frozen=True):
    """One version as the repository index tells of it; `reason` says why it is not ready."""

    name: str
    version: str
    state: State
    reason: str = ""


class Catalog(msgspec.Struct, frozen=True, eq=False):
    """The served versions by (name, version), and the words that lead to them.

    `defaults` says which version a request that names none is for, `aliases` which version each alias of a name means
    (only versions that are served), `others` what is known but not served, and why. `held` are the versions that are
    held back for now, and why; `wanted` is what each alias of a name, and "" for its default, should mean, served or
    not. `routes` is the fast lane's memory of what a path means; it goes with the catalog.
    """

    models: dict[tuple[str, str], ServedModel] = {}
    defaults: dict[str, str] = {}
    aliases: dict[str, dict[str, str]] = {}
    others: tuple[IndexEntry, ...] = ()
    held: Mapping[tuple[str, str], str] = {}
    wanted: Mapping[str, Mapping[str, str]] = {}
    routes: dict[bytes, Any] = msgspec.field(default_factory=dict)

    @property
    def served(self) -> list[ServedModel]:
        """Every served version, by name and then by age."""
        return [self.models[key] for key in sorted(self.models, key=lambda key: (key[0], len(key[1]), key[1]))]

    @property
    def names(self) -> list[str]:
        """The names with a served version, sorted."""
        return sorted({name for name, _ in self.models})

    @property
    def by_default(self) -> list[ServedModel]:
        """What each name means by itself, by name; without those of which only other versions are served."""
        return [model for name in self.names if (model := self.look_up(name)) is not None]

    def versions(self, name: str) -> list[str]:
        """The served versions of `name`, oldest first."""
        return sorted((version for each, version in self.models if each == name), key=lambda text: (len(text), text))

    def find(self, name: str, version: str = "") -> ServedModel:
        """The served version; `version` may be an alias, and empty means the default one.

        Raises UnknownModelError, and NotServing for one that is held back.
        """
        model = self.look_up(name, version)
        if model is None:
            self.check_held(name, version)
            raise UnknownModelError(f"Request for unknown model: '{name[:128]}'{self._missing(name, version)}")
        return model

    def look_up(self, name: str, version: str = "") -> ServedModel | None:
        """As `find`, but None for what is not served."""
        chosen = version or self.defaults.get(name, "")
        model = self.models.get((name, chosen))
        return model or self.models.get((name, self.aliases.get(name, {}).get(chosen, "")))

    def check_held(self, name: str, version: str) -> None:
        """Raises NotServing where what `version`, an alias or empty as well, should mean is held back."""
        reason = self.held.get((name, self.wanted.get(name, {}).get(version, version)))
        if reason is not None:
            raise NotServing(reason)

    def check_any(self) -> None:
        """Raises UnknownModelError where nothing is served, NotServing where that is because it is held back."""
        if not self.models:
            for name in sorted(self.wanted):
                self.check_held(name, "")
            raise UnknownModelError("no model is served")

    def _missing(self, name: str, version: str) -> str:
        """What of it there is not, in the words that Triton's clients look for."""
        if version and any(served == name for served, _ in self.models):
            return f" version {version[:64]} is not found"
        known = any(entry.name == name for entry in self.others)
        return " has no available versions" if known else " is not found"

    @property
    def index(self) -> list[IndexEntry]:
        """Every version, served or not, by name and then by age."""
        ready = [IndexEntry(model.signature.name, model.signature.version, "READY") for model in self.models.values()]
        known = {(entry.name, entry.version) for entry in ready}
        others = [entry for entry in self.others if (entry.name, entry.version) not in known]
        return sorted([*ready, *others], key=lambda entry: (entry.name, len(entry.version), entry.version))
