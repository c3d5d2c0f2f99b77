"""What a reader calls each model and each set of conditions in one report."""

from collections.abc import Sequence
from typing import NamedTuple

from mlserve.model.digest import files_sha256
from mlserve.report.conditions import LOAD_FIELDS, Conditions, shown, words
from mlserve.runs.run import Run

__all__ = ["ModelIdentity", "Names", "identity_of"]


class ModelIdentity(NamedTuple):
    """What tells one model from another. `where` is the start of the SHA-256 of its content, else the address that was
    loaded, else "" where only its name is known.
    """

    name: str
    version: str
    variant: str
    where: str

    @property
    def ref(self) -> str:
        """`minilm@2`."""
        return f"{self.name}@{self.version}" if self.version else self.name

    @property
    def full(self) -> str:
        """`minilm@2 int8`."""
        return f"{self.ref} {self.variant}".strip()


def identity_of(run: Run) -> ModelIdentity:
    """Which model answered `run`."""
    model = run.model
    where = (model.sha256 or _locked_sha256(run))[:12] or ("" if run.server else model.url)
    return ModelIdentity(model.name, model.version, model.variant, where)


def _locked_sha256(run: Run) -> str:
    """Of a bare file's content, which only the lock of its run knows: the same name may be another model's."""
    files = run.lock.files if run.lock else ()
    return files_sha256({file.path: file.sha256 for file in files if file.role == "model"})


class Names:
    """What a reader calls each model and each set of conditions: as short as tells them apart."""

    def __init__(self, models: Sequence[ModelIdentity], every: Sequence[Conditions]) -> None:
        self._models = _model_names(list(dict.fromkeys(models)))
        self._loads = _load_names(list(dict.fromkeys(every)))

    def model(self, identity: ModelIdentity) -> str:
        """`int8`; `minilm@2 int8` where there are several."""
        return self._models[identity]

    def load(self, conditions: Conditions) -> str:
        """`60 requests/s over gRPC`, and what else differs where that is not enough."""
        return self._loads[conditions]


def _model_names(models: Sequence[ModelIdentity]) -> dict[ModelIdentity, str]:
    short = {model: model.variant or model.ref for model in models}
    full = {model: model.full for model in models}
    for names in (short, full):
        if len(set(names.values())) == len(models):
            return names
    return {model: f"{model.full} {model.where}".strip() for model in models}


def _load_names(every: Sequence[Conditions]) -> dict[Conditions, str]:
    loads = [conditions.load for conditions in every]
    if len(set(loads)) == len(loads):
        return dict(zip(every, loads, strict=True))
    varying = [
        field
        for field in Conditions.__struct_fields__
        if field not in LOAD_FIELDS and len({getattr(conditions, field) for conditions in every}) > 1
    ]
    return {
        conditions: "; ".join(
            [conditions.load, *(f"{words(field)} {shown(getattr(conditions, field))}" for field in varying)]
        )
        for conditions in every
    }
