"""What several runs are made of, one after the other: a server that runs already, or a model served meanwhile."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec

from mlserve.bench.local_server import listening_pids
from mlserve.bench.probe import inputs_of
from mlserve.bench.subject import Subject, url_subject
from mlserve.bench.target import spoken_protocol
from mlserve.errors import UsageError
from mlserve.model.onnx_file import inspect_onnx
from mlserve.model.store import Store
from mlserve.runs.load import Protocol
from mlserve.runs.run import ServedModel
from mlserve.tuning.locking import Again, lock_of
from mlserve.tuning.serving import ServerOptions, artifact_subject, file_subject, serving
from mlserve.tuning.source import Contender, Source

__all__ = [
    "Contender",
    "Opens",
    "Source",
    "SubjectOf",
    "contender_protocol",
    "named_contender",
    "open_again",
    "opener",
    "scenario_subject",
    "settled",
]


SubjectOf = Callable[[Protocol], Subject]
"""What is open, as it is loaded over a protocol."""

Opens = Callable[[Contender, ServerOptions | None], AbstractContextManager[SubjectOf]]
"""How a contender is opened for as long as a block lasts; with settings where the server is ours."""


def named_contender(text: str) -> Contender:
    """`ours=http://127.0.0.1:8080` -> that URL, called "ours"; without a name it is called by what it is.

    Raises UsageError for an empty name or place.
    """
    name, equals, where = text.partition("=")
    if not equals or "://" in name:
        name, where = text, text
    if not (name.strip() and where.strip()):
        raise UsageError(f"--target {text!r} names nothing; write NAME=URL, such as triton=http://127.0.0.1:8000")
    return Contender(where.strip(), name.strip())


def contender_protocol(contender: Contender) -> Protocol:
    """What a URL says; REST for a model of our own. Raises UsageError for a URL of another form."""
    return spoken_protocol(contender.where) if contender.running else "rest"


def settled(contender: Contender, store: Path) -> Contender:
    """`contender`, a name of the store as the version that it means now, so that all runs are of one version.

    Raises StoreError for what there is not.
    """
    if contender.running or contender.is_file:
        return contender
    ref = Store(store).resolve(contender.where).ref
    return Contender(ref, ref if contender.name == contender.where else contender.name)


def opener(source: Source) -> Opens:
    """Opens contenders: asks a running server what it serves, or starts a server of our own."""

    @contextmanager
    def opened(contender: Contender, options: ServerOptions | None) -> Iterator[SubjectOf]:
        options = options or ServerOptions()
        lock = lock_of(contender, source)

        def locked(subject: Subject) -> Subject:
            return msgspec.structs.replace(subject, lock=lock)

        if contender.running:
            interface = inputs_of(source.inputs, source.store) if source.inputs else None
            yield lambda protocol: locked(
                _named(
                    url_subject(source.target(contender.where, protocol), source.wish, interface, source.metrics),
                    contender,
                )
            )
        elif contender.is_file:
            path = Path(contender.where).resolve()
            inspect_onnx(path)
            with serving(str(path), source.store, options) as served:
                yield lambda protocol: locked(file_subject(served, path, protocol, source.wish))
        else:
            artifact = Store(source.store).resolve(contender.where)
            with serving(artifact.ref, source.store, options) as served:
                yield lambda protocol: locked(artifact_subject(served, artifact, protocol, source.wish))

    return opened


@contextmanager
def open_again(again: Again) -> Iterator[SubjectOf]:
    """What a run that is made again loads; its subjects know nothing yet of the digests to keep to (`Again.held`)."""
    if again.plan.locustfile and again.contender.running:
        yield lambda protocol: scenario_subject(again.contender, again.source, protocol)
        return
    with opener(again.source)(again.contender, again.options) as subject_of:
        yield subject_of


def scenario_subject(contender: Contender, source: Source, protocol: Protocol) -> Subject:
    """A server that a user's own scenario asks: nobody needs to know what it takes."""
    target = source.target(contender.where, protocol)
    return Subject(
        target=target,
        model=ServedModel(url=target.url, name=target.title, version=target.version),
        inputs=(),
        pids=listening_pids(target),
        lock=lock_of(contender, source),
    )


def _named(subject: Subject, contender: Contender) -> Subject:
    """With its name where a store's model has its variant, so that reports call it so too."""
    if contender.name == contender.where:
        return subject
    return msgspec.structs.replace(subject, model=msgspec.structs.replace(subject.model, variant=contender.name))
