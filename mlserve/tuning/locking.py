"""What a run is made of, written down; and from that, the same run once more."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from mlserve.bench.load.trace import read_trace
from mlserve.bench.payload.payload import PayloadWish
from mlserve.bench.payload.sizes import Lengths
from mlserve.bench.subject import Subject
from mlserve.bench.target import Header
from mlserve.bench.trust import Trust
from mlserve.errors import MlserveError, UsageError
from mlserve.model.artifact import is_model_file
from mlserve.model.onnx_file import inspect_onnx
from mlserve.model.rows import TOKENIZER_FILE
from mlserve.model.store import Store
from mlserve.report.conditions import conditions_of, differences, shown
from mlserve.runs.load import Plan
from mlserve.runs.lock import Lock, LockedFile, Role, digest_of, locked_file
from mlserve.runs.machine import Machine
from mlserve.runs.run import Run
from mlserve.tuning.serving import ServerOptions
from mlserve.tuning.source import Contender, Source

__all__ = ["Again", "Moved", "lock_of", "made_again", "unlike"]

_FLAG: dict[Role, str] = {
    "data": "--data",
    "expected": "--expected",
    "inputs": "--inputs",
    "locustfile": "--locustfile",
    "trace": "--replay",
}


def lock_of(contender: Contender, source: Source) -> Lock:
    """What runs of `contender` are made of; hashes every file that they read, but for versions of the store, whose
    manifests say it.
    """
    wish = source.wish
    return Lock(
        where=contender.where,
        name=contender.name,
        store=str(source.store),
        model=source.model,
        inputs=source.inputs,
        template=source.template,
        answer=source.answer,
        metrics=source.metrics,
        headers=tuple(name for name, _ in source.headers),
        lengths=None if wish.lengths is None else msgspec.to_builtins(wish.lengths),
        image_sizes=wish.image_sizes,
        timed=wish.timed,
        files=(*_model_files(contender, source), *_payload_files(source)),
    )


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """What is elsewhere than it was: `where` is what to load instead ("" for the same), `files` where a file lies now,
    `store` the store now (None for that of the run). `headers` are all those that go with requests, and `trust` is
    how a server of TLS is judged.
    """

    where: str = ""
    store: Path | None = None
    files: Mapping[Role, str] = {}
    headers: tuple[Header, ...] = ()
    trust: Trust | None = None


class Again(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is to be made again. `options` are None for a server that runs already; `other` says that another
    model than that of the run is asked, by name.
    """

    run: Run
    directory: Path
    contender: Contender
    source: Source
    plan: Plan
    options: ServerOptions | None
    other: bool

    @property
    def server(self) -> bytes:
        """Runs for which this is the same can share a running server, and all that is read for it."""
        return msgspec.json.encode((self.contender, self.options, lock_of(self.contender, self.source)))

    def held(self, subject: Subject) -> Subject:
        """`subject`, whose requests have to be those of the run. For another model they may be written otherwise: its
        name is in them; the instants are the same for all.
        """
        lock = self.run.lock
        if lock is None or subject.lock is None:
            return subject
        requests_sha256 = "" if self.other else lock.requests_sha256
        held = msgspec.structs.replace(
            subject.lock, schedule_sha256=lock.schedule_sha256, requests_sha256=requests_sha256
        )
        return msgspec.structs.replace(subject, lock=held)

    @property
    def ends_at_s(self) -> float | None:
        """When the run ended, since its first instant, where its plan alone does not say it."""
        end_s = self.run.window.end_s
        return end_s if self.plan.open_ended or end_s < self.plan.end_s - 1e-6 else None


def made_again(run: Run, directory: Path, moved: Moved) -> Again:
    """`run`, which lies in `directory`, once more: the same plan, the same requests, the same settings of the server.

    Raises UsageError where that cannot be: the run did not keep what it was made of, a file is not there or is another
    than it was, the model is another and nobody said so, or a header is missing.
    """
    lock = run.lock
    if lock is None:
        raise UsageError(
            f"{directory} was written by an mlserve that did not keep what a run is made of, so that it cannot be made "
            "again; make a new run, and that again"
        )
    _check_headers(lock, moved, directory)
    files = dict(_found(lock, moved, directory))
    contender = _contender(lock, moved)
    wish = PayloadWish(
        data=files.get("data"),
        expected=files.get("expected"),
        lengths=None if lock.lengths is None else msgspec.convert(lock.lengths, Lengths),
        image_sizes=lock.image_sizes,
        timed=lock.timed,
        trace=read_trace(files["trace"], lock.model) if "trace" in files else None,
    )
    source = Source(
        store=moved.store if moved.store is not None else Path(lock.store),
        wish=wish,
        model=lock.model if contender.running else "",
        inputs=str(files.get("inputs", moved.files.get("inputs", lock.inputs))),
        template=lock.template,
        answer=lock.answer,
        headers=moved.headers,
        trust=moved.trust,
        metrics=lock.metrics if contender.where == lock.where else "",
    )
    other = _is_other(lock, contender, source, moved, directory)
    plan = msgspec.structs.replace(run.plan, payload="", locustfile=str(files.get("locustfile", "")))
    return Again(
        run=run,
        directory=directory,
        contender=contender,
        source=source,
        plan=plan,
        options=None if contender.running else _options(run, directory),
        other=other,
    )


def unlike(run: Run, now: Machine) -> list[str]:
    """In which ways `now`, where `run` is made again, is not where it was made: notes, for none of them changes what is
    sent.
    """
    here = msgspec.structs.replace(run, machine=now)
    found = differences(conditions_of(run), conditions_of(here))
    for field in ("system", "python", "governor", "turbo"):
        was, is_now = getattr(run.machine, field), getattr(now, field)
        found += [f"{field} {shown(was)} against {shown(is_now)}"] if was != is_now else []
    packages = run.machine.packages | now.packages
    return found + [
        f"{name} {run.machine.packages.get(name, 'none')} against {now.packages.get(name, 'none')}"
        for name in packages
        if run.machine.packages.get(name) != now.packages.get(name)
    ]


def _model_files(contender: Contender, source: Source) -> Iterator[LockedFile]:
    """The graph, its weights, and the tokenizer beside it; nothing of a server that runs already."""
    if contender.is_file:
        path = Path(contender.where)
        names = (path.name, *inspect_onnx(path.resolve()).external_files, TOKENIZER_FILE)
        for file in (path.parent / name for name in names):
            if file.is_file():
                yield LockedFile("model", file.name, digest_of(file))
    elif not contender.running:
        for name, record in sorted(Store(source.store).resolve(contender.where).manifest.files.items()):
            if is_model_file(name) or name == TOKENIZER_FILE:
                yield LockedFile("model", name, record.sha256)


def _payload_files(source: Source) -> Iterator[LockedFile]:
    wish = source.wish
    if wish.data is not None:
        yield locked_file("data", wish.data)
    if wish.expected is not None:
        yield locked_file("expected", wish.expected)
    if source.inputs and Path(source.inputs).is_file():
        yield locked_file("inputs", Path(source.inputs))
    if wish.trace is not None and wish.trace.path:
        yield LockedFile("trace", wish.trace.path, wish.trace.sha256)


def _check_headers(lock: Lock, moved: Moved, directory: Path) -> None:
    missing = [name for name in lock.headers if name not in dict(moved.headers)]
    if missing:
        raise UsageError(
            f"the requests of {directory} had the header {missing[0]}, whose value is kept nowhere; give it with "
            f"--header '{missing[0]}: VALUE'"
        )


def _found(lock: Lock, moved: Moved, directory: Path) -> Iterator[tuple[Role, Path]]:
    """Where each file of the run lies now. Raises UsageError for one that is not there, or is another than it was."""
    for file in lock.files:
        if file.role == "model":
            continue
        flag, path = _FLAG[file.role], Path(moved.files.get(file.role, file.path))
        if not path.exists():
            raise UsageError(f"{directory} read {path}, which is not there; say with {flag} where it lies now")
        now = digest_of(path)
        if now != file.sha256:
            raise UsageError(
                f"{path} is not what {directory} read: it has the SHA-256 {now[:12]}, and had {file.sha256[:12]}; say "
                f"with {flag} where the same file lies, or make a new run without --like"
            )
        yield file.role, path
    for role, said in moved.files.items():
        if lock.file(role) is None and not (role == "inputs" and (lock.inputs or moved.where)):
            raise UsageError(f"{_FLAG[role]} {said} contradicts {directory}, which read no such file; leave it out")


def _contender(lock: Lock, moved: Moved) -> Contender:
    if not moved.where:
        return Contender(lock.where, lock.name)
    return Contender(moved.where, moved.where)


def _is_other(lock: Lock, contender: Contender, source: Source, moved: Moved, directory: Path) -> bool:
    """Whether another model is asked, which somebody named. Raises UsageError where nobody did."""
    if contender.running:
        return contender.where != lock.where
    try:
        now = {(file.path, file.sha256) for file in _model_files(contender, source)}
    except MlserveError as error:
        if moved.where:
            raise
        raise UsageError(
            f"{directory} asked {contender.where}, which cannot be had: {error}. Bring it back, say with --store where "
            "it lies now, or name another model: mlserve bench NAME --like ..."
        ) from error
    held = {(file.path, file.sha256) for file in lock.files if file.role == "model"}
    if {sha256 for _, sha256 in now} == {sha256 for _, sha256 in held}:
        return False
    if moved.where:
        return True
    name, sha256 = min(held - now or now - held)
    raise UsageError(
        f"{contender.where} is not the model that {directory} asked: its {name} had the SHA-256 {sha256[:12]}; bring "
        "that back, or mean another one and name it: mlserve bench NAME --like ..."
    )


def _options(run: Run, directory: Path) -> ServerOptions:
    """As the server was set; by default where it ran already and a model of ours takes its place.

    Raises UsageError where another interpreter served it, which is not there.
    """
    server = run.server
    if server is None:
        return ServerOptions(spare_cores=run.plan.generators)
    if server.python and not Path(server.python).is_file():
        raise UsageError(
            f"{directory} was served by the mlserve of {server.python}, which is not there; bring that interpreter "
            "back, or make a new run without --like"
        )
    return ServerOptions(
        workers=server.workers,
        threads=server.threads,
        max_batch_rows=server.max_batch_rows,
        max_delay_ms=server.max_delay_ms,
        device=server.device,
        engine=server.engine,
        compute_type=server.compute_type,
        python=server.python,
        spare_cores=run.plan.generators,
    )
