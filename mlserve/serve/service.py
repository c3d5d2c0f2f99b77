"""The one thing behind every dialect: which models are served, and whether the server is ready."""

import msgspec

from mlserve.errors import NotServing, UnknownModelError
from mlserve.serve.batching.batcher import Batcher
from mlserve.serve.metrics import ModelMeter
from mlserve.wire.signature import Signature

__all__ = ["EXTENSIONS", "PLATFORM", "SERVER_NAME", "ServedModel", "Service"]

SERVER_NAME = "mlserve"
EXTENSIONS = ["binary_tensor_data"]
PLATFORM = "onnx_onnxv1"


class ServedModel(msgspec.Struct, frozen=True):
    """One loaded version and what runs it."""

    signature: Signature
    batcher: Batcher
    meter: ModelMeter


class Service:
    """The models of one worker, by name and version.

    `defaults` says which version a request that names none is for. A server is live from start to end; it is ready
    once its models are loaded and until it drains.
    """

    def __init__(self, models: list[ServedModel], defaults: dict[str, str]) -> None:
        self._models = {(model.signature.name, model.signature.version): model for model in models}
        self._defaults = defaults
        self.draining = False

    @property
    def ready(self) -> bool:
        return not self.draining

    @property
    def models(self) -> list[ServedModel]:
        """Every served version, by name and then by age."""
        return [self._models[key] for key in sorted(self._models, key=lambda key: (key[0], len(key[1]), key[1]))]

    def default_version(self, name: str) -> str:
        """The version that a request for `name` alone is answered by. Raises UnknownModelError."""
        return self.find(name).signature.version

    def versions(self, name: str) -> list[str]:
        """The served versions of `name`, oldest first."""
        return [model.signature.version for model in self.models if model.signature.name == name]

    def find(self, name: str, version: str = "") -> ServedModel:
        """The served version; an empty `version` means the default one. Raises UnknownModelError."""
        chosen = version or self._defaults.get(name, "")
        model = self._models.get((name, chosen))
        if model is None:
            # The words Triton's clients look for.
            which = f" version {version[:64]} is not found" if chosen and name in self._defaults else " is not found"
            raise UnknownModelError(f"Request for unknown model: '{name[:128]}'{which}")
        return model

    def check_serving(self) -> None:
        """Raises NotServing while the server drains: what was accepted before is still answered."""
        if self.draining:
            raise NotServing("the server is shutting down; send the request again, it will reach another one")

    @property
    def idle(self) -> bool:
        """Whether every accepted request has been run."""
        return all(model.batcher.idle for model in self._models.values())

    def close(self) -> None:
        """Runs what still waits, then stops every batcher's thread."""
        for model in self._models.values():
            model.batcher.close()
