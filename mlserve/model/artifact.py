"""An artifact: the files of one model variant, and the manifest that says what they are and where they came from."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import msgspec

from mlserve.errors import StoreError
from mlserve.model.plain_files import FileRecord
from mlserve.model.processing import Processing
from mlserve.model.tensors import TensorSpec

__all__ = [
    "MANIFEST",
    "MODEL_FILE",
    "PROGRAM_FILE",
    "Accuracy",
    "Artifact",
    "FileRecord",
    "Format",
    "Latency",
    "Manifest",
    "Metrics",
    "Step",
    "is_model_file",
    "read_manifest",
    "record_files",
    "sha256_of",
    "write_manifest",
]

MANIFEST = "manifest.json"
MODEL_FILE = "model.onnx"
PROGRAM_FILE = "model.pt2"

Format = Literal["onnx", "openvino", "torch"]
"""What the model itself is kept as: an ONNX file, OpenVINO IR (`model.xml`, `model.bin`), a torch.export program."""

_MODEL_FILES: dict[Format, str] = {"onnx": MODEL_FILE, "openvino": "model.xml", "torch": PROGRAM_FILE}

# 1: first format (0.1.0)
FORMAT_VERSION = 1


class Step(msgspec.Struct, frozen=True):
    """One step of an artifact's lineage: what was done (`import`, or a pass's tag), with which parameters."""

    step: str
    parameters: dict[str, Any] = {}
    notes: tuple[str, ...] = ()


class Accuracy(msgspec.Struct, frozen=True):
    """How well a variant does on `rows` rows, and what it lost of that against its reference.

    `metric` names the headline figure `value`. `loss` is what was lost of it: points, or for an error such as mae its
    growth relative to the reference's; `loss_low` to `loss_high` is its 95% interval, None where there is none.
    `basis` says in words what the answers were held against (`labels`, `agreement with fp32`), `split` which rows of
    the data these were. `details` holds every figure that was computed.
    """

    metric: str
    value: float
    loss: float
    rows: int
    data: str
    reference: str
    details: dict[str, float] = {}
    basis: str = ""
    split: str = ""
    loss_low: float | None = None
    loss_high: float | None = None


class Latency(msgspec.Struct, frozen=True):
    """In-process time of one `Engine.run`, medians of interleaved repeats (seconds).

    `against_fp32` is the median ratio to the reference's time in the same turn, `against_fp32_low` to
    `against_fp32_high` its 95% interval, None where there is none.
    """

    batch_rows: int
    p50_s: float
    rows_per_s: float
    against_fp32: float
    against_fp32_low: float | None = None
    against_fp32_high: float | None = None


class Metrics(msgspec.Struct, frozen=True):
    """What was measured of a variant when it was made."""

    accuracy: Accuracy | None = None
    latency: tuple[Latency, ...] = ()
    machine: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `manifest.json`. `name` and `version` are empty until the store publishes the artifact.

    `engine` is what the variant was made and measured for (`onnxruntime`, `openvino`, `torch`, `torch-compiled`),
    `compute_type` the type that engine computes in where it is not that of the weights (`bf16`), and `split_batches`
    whether large batches run as pieces side by side, one thread each. `labels` are the names of the classes, by class
    number, and `processing` is what leads from a text or an image to an answer; None where nothing says.
    """

    format_version: int = FORMAT_VERSION
    name: str = ""
    version: int = 0
    variant: str
    format: Format = "onnx"
    engine: str = "onnxruntime"
    compute_type: str = ""
    split_batches: bool = False
    task: str = "unknown"
    labels: tuple[str, ...] = ()
    processing: Processing | None = None
    created_at: str = ""
    parent: str = ""
    files: dict[str, FileRecord] = {}
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    rows_independent: bool = True
    lineage: tuple[Step, ...] = ()
    assumed: tuple[str, ...] = ()
    metrics: Metrics = Metrics()


class Artifact(msgspec.Struct, frozen=True):
    """The files in `directory` and what they are. A version in the store, or one still being made."""

    directory: Path
    manifest: Manifest

    @property
    def model_path(self) -> Path:
        """The file an engine opens; its weights may lie in others beside it."""
        return self.directory / _MODEL_FILES[self.manifest.format]

    @property
    def size_bytes(self) -> int:
        """Size of the model itself: the graph and its weights, without tokenizer and labels."""
        files = self.manifest.files or record_files(self.directory)
        return sum(record.size_bytes for name, record in files.items() if is_model_file(name))

    @property
    def ref(self) -> str:
        """`name@version`."""
        return f"{self.manifest.name}@{self.manifest.version}"


def is_model_file(name: str) -> bool:
    """Whether `name` is part of the model itself: its graph, or weights beside it."""
    return name.startswith("model.")


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_files(directory: Path) -> dict[str, FileRecord]:
    """Every file under `directory` but the manifest, by its path relative to it."""
    return {
        path.relative_to(directory).as_posix(): FileRecord(sha256_of(path), path.stat().st_size)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path != directory / MANIFEST
    }


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` into `directory`, indented, as people read it."""
    (directory / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")


def read_manifest(directory: Path) -> Manifest:
    """The manifest in `directory`. Raises StoreError when it is missing, damaged or of a newer format."""
    path = directory / MANIFEST
    # A pipe would never be read to its end.
    if path.exists() and not path.is_file():
        raise StoreError(f"{path} is no plain file; remove the version and optimize again")
    try:
        content = path.read_bytes()
        format_version = msgspec.json.decode(content, type=_FormatOnly).format_version
        if format_version != FORMAT_VERSION:
            raise StoreError(
                f"{path} has format {format_version}, this mlserve reads {FORMAT_VERSION}; upgrade mlserve "
                "or optimize the model again"
            )
        return msgspec.json.decode(content, type=Manifest)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}; the version is incomplete") from error
    except msgspec.DecodeError as error:
        raise StoreError(f"{path} is damaged: {error}; remove the version and optimize again") from error


class _FormatOnly(msgspec.Struct):
    format_version: int
