"""What the arguments of `mlserve serve` mean: files as they are, and which versions of a store's names are followed."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mlserve.errors import UsageError

if TYPE_CHECKING:
    from mlserve.model.store import Store
    from mlserve.serve.settings import Follow, ModelSource, StoreChoice

__all__ = ["Chosen", "choose_models", "follow_models"]


class Chosen(msgspec.Struct, frozen=True):
    """Files that are served as they are, and what of a store is followed (None: nothing of it)."""

    files: "tuple[ModelSource, ...]" = ()
    store: "StoreChoice | None" = None


def follow_models(refs: list[str], root: Path, versions: str | None, *, explicit: bool) -> Chosen:
    """What each of `refs` means; everything in the store when there is none and clients do not choose themselves.

    `versions` is the policy for names without a version, by default `default`, and `all` for a whole store. Raises
    UsageError and StoreError for what there is not.
    """
    from mlserve.model.store import Store
    from mlserve.serve.settings import StoreChoice
    from mlserve.serve.versions.policy import check_policy

    store, given = Store(root), None if versions is None else check_policy(versions)
    files = tuple(_file(ref) for ref in refs if _is_file(ref))
    names = [ref for ref in refs if not _is_file(ref)]
    if given is not None and refs and all("@" in name for name in names):
        raise UsageError(f"--versions {given} is for names without a version, or for the whole store")
    follow = _followed(names, store, given or "default")
    if not refs and not explicit:
        follow = _whole_store(store, given or "all")
    _check_names(files, follow)
    followed = StoreChoice(str(root.resolve()), follow) if follow or explicit else None
    return Chosen(tuple({source.name: source for source in files}.values()), followed)


def choose_models(refs: list[str], root: Path) -> list["ModelSource"]:
    """The one version that each of `refs` means at this moment."""
    from mlserve.model.store import Store
    from mlserve.serve.settings import ModelSource

    store = Store(root)
    sources = []
    for ref in refs:
        if _is_file(ref):
            sources.append(_file(ref))
        else:
            artifact = store.resolve(ref)
            manifest = artifact.manifest
            sources.append(ModelSource(manifest.name, str(manifest.version), str(artifact.directory.resolve())))
    return sources


def _followed(refs: list[str], store: "Store", policy: str) -> "tuple[Follow, ...]":
    from mlserve.serve.settings import Follow

    words: dict[str, dict[str, None]] = {}
    for ref in refs:
        name, _, version = ref.partition("@")
        store.resolve(ref)  # says what there is, if there is not this
        words.setdefault(name, {}).update(dict.fromkeys([version] if version else policy.split(",")))
    return tuple(Follow(name, ",".join(each)) for name, each in words.items())


def _whole_store(store: "Store", policy: str) -> "tuple[Follow, ...]":
    from mlserve.serve.settings import EVERY_NAME, Follow

    if not store.names():
        raise UsageError(
            f"the store {store.root} holds no model; add one with: mlserve optimize SOURCE, or serve a file: "
            "mlserve serve FILE.onnx"
        )
    return (Follow(EVERY_NAME, policy),)


def _check_names(files: "tuple[ModelSource, ...]", follow: "tuple[Follow, ...]") -> None:
    taken = {each.name: "a model of the store" for each in follow}
    for source in files:
        other = taken.setdefault(source.name, source.path)
        if other != source.path:
            raise UsageError(f"{other} and {source.path} would both be served as {source.name}; rename one")


def _is_file(ref: str) -> bool:
    try:
        return Path(ref).suffix == ".onnx" or Path(ref).is_file()
    except OSError:  # no path can be so long
        return False


def _file(ref: str) -> "ModelSource":
    from mlserve.serve.settings import ModelSource

    path = Path(ref)
    if not path.is_file():
        raise UsageError(f"there is no file {ref}; give an .onnx file or the name of a model in the store")
    return ModelSource(re.sub(r"[^A-Za-z0-9._-]", "_", path.stem).lstrip(".-") or "model", "1", str(path.resolve()))
