"""A version of a model as predictions see it: where it lies, what it takes and gives, and what requests of it hold."""

import hashlib
from functools import cached_property
from pathlib import Path

import msgspec

from mlserve.bench.payload.payload import Payload, PayloadWish, make_payload
from mlserve.bench.probe import inputs_of
from mlserve.bench.target import parse_target
from mlserve.engines.compiled_cache import model_digest
from mlserve.model.artifact import Artifact
from mlserve.model.rows import TOKENIZER_FILE
from mlserve.model.store import Store
from mlserve.model.tensors import TensorSpec
from mlserve.runs.load import Plan
from mlserve.tuning.opening import Contender, Source, settled

__all__ = ["Version", "open_version"]

# Nothing is asked there: the requests are only written.
_NOWHERE = "grpc://127.0.0.1:9"


class Version:
    """What `path`, a version's folder or an ONNX file, takes and gives; `name` is `name@version`, or the file.

    `payload` are the requests that a load by the plan sends, as gRPC writes them.
    """

    def __init__(
        self, name: str, path: Path, sha256: str, specs: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
    ) -> None:
        self.name, self.path, self.sha256 = name, path, sha256
        self.inputs, self.outputs = specs
        self.wish = PayloadWish()
        self.payload = Payload(requests=(), order=(), source="")

    @cached_property
    def requests(self) -> str:
        """The digest of what requests hold."""
        digest = hashlib.sha256()
        for request in self.payload.requests:
            digest.update(hashlib.sha256(request.body).digest())
        return digest.hexdigest()

    @cached_property
    def interface(self) -> str:
        """The digest of what goes over the wire: requests, and the form of answers."""
        outputs = msgspec.json.encode(self.outputs)
        return hashlib.sha256(self.requests.encode() + outputs).hexdigest()


def open_version(model: str, source: Source, plan: Plan) -> Version:
    """The version that `model` names, with the requests of `plan`.

    Raises StoreError for what there is not, ModelFileError for a file that is no model, UsageError and DataFileError
    for requests that it cannot have.
    """
    contender = settled(Contender(model, model), source.store)
    if Path(contender.where).is_file():
        version = _file(Path(contender.where), model, source)
    else:
        version = _artifact(Store(source.store).resolve(contender.where), model, source.wish)
    over_grpc = msgspec.structs.replace(plan, protocol="grpc", check_answers=False)
    wish = msgspec.structs.replace(version.wish, timed="none", expected=None)
    version.payload = make_payload(parse_target(_NOWHERE, "model", "grpc"), version.inputs, over_grpc, wish)
    return version


def _file(path: Path, name: str, source: Source) -> Version:
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    version = Version(name, path.resolve(), sha256, inputs_of(str(path), source.store))
    version.wish = _wish(source.wish, path.parent, version.outputs)
    return version


def _artifact(artifact: Artifact, name: str, wish: PayloadWish) -> Version:
    manifest = artifact.manifest
    specs = (manifest.inputs, manifest.outputs)
    version = Version(name, artifact.directory, model_digest(manifest.files), specs)
    version.wish = msgspec.structs.replace(
        _wish(wish, artifact.directory, manifest.outputs), processing=manifest.processing
    )
    return version


def _wish(wish: PayloadWish, folder: Path, outputs: tuple[TensorSpec, ...]) -> PayloadWish:
    tokenizer = folder / TOKENIZER_FILE
    return msgspec.structs.replace(wish, tokenizer=tokenizer if tokenizer.is_file() else None, outputs=outputs)
