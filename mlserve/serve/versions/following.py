"""One worker keeps in step with the store, and with what clients asked for: it looks, loads what is missing, retires.

    look (a thread) -> plan -> load the next missing version (a thread) -> install a new catalog -> retire

Everything but looking and loading happens on the event loop, so it needs no lock; nothing there takes long.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Coroutine, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec

from mlserve.errors import EngineError, MlserveError
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.catalog import Catalog, ServedModel
from mlserve.serve.life.slate import open_slate
from mlserve.serve.loading import load_model, unload_model
from mlserve.serve.service import Service
from mlserve.serve.settings import EVERY_NAME, ModelSource, ServeSettings
from mlserve.serve.versions.agreement import Agreement, Applied, Asked
from mlserve.serve.versions.attempts import Attempts, Failure, Key
from mlserve.serve.versions.listing import StoreListing, fingerprint
from mlserve.serve.versions.plan import Plan, choices, index_entries, make_plan
from mlserve.serve.versions.policy import Choice, Known, Published, Words

__all__ = ["Follower", "initially_asked"]

# A request that found a version in the catalog has submitted itself long before this is over.
_GRACE_S = 1.0
_IDLE_LOOK_S = 0.02

_FOLDERS = re.compile(r"(?<![\w:/])/(?:[^\s/'\";:,]+/)*")
_MOST_LETTERS = 300

_log = logging.getLogger("mlserve.serve")


class _Loaded(msgspec.Struct, eq=False):
    """A version in memory, and the mark of what it was loaded from."""

    model: ServedModel
    mark: tuple[int, ...]


class _Leaving(msgspec.Struct, eq=False):
    """A version that is no longer served but may still have requests. `closing`: too late to come back."""

    key: Key
    loaded: _Loaded
    closing: bool = False


class _Seen(msgspec.Struct, frozen=True):
    """What one look found: what is asked for, what there is, and the files of what did not load."""

    asked: Asked = Asked()
    known: dict[str, Known] = {}
    files: Mapping[Key, Hashable] = {}


def initially_asked(settings: ServeSettings) -> Asked:
    """What the command line asks for."""
    names = {source.name: Choice("all", default=settings.defaults.get(source.name, "")) for source in settings.models}
    follow = settings.store.follow if settings.store else ()
    return Asked({each.name: Choice(each.versions) for each in follow} | names)


class Follower:
    """Keeps `service.catalog` in step. All of it runs on the event loop of `turn`."""

    def __init__(self, service: Service, settings: ServeSettings, turn: LoopTurn, agreement: Agreement) -> None:
        self._service, self._settings, self._turn, self._agreement = service, settings, turn, agreement
        self._fixed = _fixed(settings.models)
        self._listing = StoreListing(Path(settings.store.root)) if settings.store else None
        self._every_s = settings.store.every_s if settings.store else 0.2
        self._whole = settings.model_control == "explicit"
        self._looking, self._working = ThreadPoolExecutor(1, "versions"), ThreadPoolExecutor(1, "loading")
        self._wake = asyncio.Event()
        self._seen, self._plan = _Seen(), Plan()
        self._words: dict[str, Words] = {}
        self._loaded: dict[Key, _Loaded] = {}
        self._leaving: list[_Leaving] = []
        self._attempts = Attempts()
        self._slate, self._held = open_slate(settings.slate), dict[Key, str]()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading: asyncio.Task[None] | None = None
        self._store_gone, self._started, self._fault = False, False, ""

    # Called by the worker and by the control.

    async def start(self, *, resumes: bool) -> None:
        """Loads and serves what is asked for now.

        A version that was asked for by name must load, and of the others one. `resumes`: this worker takes another's
        place, so what its siblings still serve because its successor does not load will do.
        Raises EngineError with the reason.
        """
        await self._look()
        self._replan()
        while (key := self._next()) is not None:
            await self._load(key)
            await self._look()
            self._replan()
        if resumes:
            await self._load_what_siblings_serve()
        named = self._seen.asked.names.keys() - {EVERY_NAME}
        for (name, _), failure in self._attempts.failures.items():
            if (name in named and not resumes) or not self._loaded:
                raise EngineError(failure.error)
        for (name, version), failure in self._attempts.failures.items():
            _log.warning("%s@%s cannot be loaded: %s", name, version, failure.error)
        self._started = True
        self._settle()

    async def follow(self) -> None:
        """Looks again and again, for as long as the task lives."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._every_s)
            self._wake.clear()
            try:
                await self._look()
                self._settle()
                self._load_next()
                self._fault = ""
            except Exception as error:  # what is served stays; the next look may do better
                if repr(error) != self._fault:
                    told = _log.warning if isinstance(error, OSError) else _log.exception
                    told("looking at what is to be served failed: %s", error)
                self._fault = repr(error)

    def wake(self) -> None:
        """Looks at once."""
        self._wake.set()

    def versions(self, name: str) -> list[str]:
        """The versions of `name` that there were at the last look, served or not."""
        return list(self._seen.known.get(name, Known()).versions)

    @property
    def busy(self) -> bool:
        """Whether a thread loads a version, which cannot be told to stop."""
        return self._loading is not None and not self._loading.done()

    # Looking

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._seen = await loop.run_in_executor(self._looking, self._look_now, list(self._attempts.failures))
        self._held = dict(self._slate.held())

    def _look_now(self, failed: list[Key]) -> _Seen:
        asked = self._agreement.asked()
        known = self._known(asked) | self._fixed
        paths = {key: known[key[0]].versions.get(key[1]) for key in failed if key[0] in known}
        files = {key: fingerprint(Path(published.path)) for key, published in paths.items() if published}
        return _Seen(asked, known, files)

    def _known(self, asked: Asked) -> dict[str, Known]:
        """What the store has; where it has nothing at all, or no more of a name that was asked for, what it had."""
        if self._listing is None:
            return {}
        everything = EVERY_NAME in asked.names or self._whole
        found = self._listing.look(None if everything else asked.names.keys() - self._fixed.keys())
        before = {name: known for name, known in self._seen.known.items() if name not in self._fixed}
        gone = bool(before) and not found
        if gone and not self._store_gone:
            _log.warning("the store holds no model any more; what is served stays as it is")
        self._store_gone = gone
        return before if gone else {name: known for name, known in before.items() if name in asked.names} | found

    # Loading

    def _load_next(self) -> None:
        if not self.busy and (key := self._next()) is not None:
            self._loading = self._spawn(self._load(key), "loading")
            self._loading.add_done_callback(lambda _: self._wake.set())

    def _next(self) -> Key | None:
        """The version to load now."""
        asked, now_s = self._choices(), time.monotonic()
        due = (
            key
            for key in self._plan.missing
            if key not in self._held and self._attempts.due(key, self._seen.files.get(key), asked[key[0]].asked, now_s)
        )
        return next(due, None)

    async def _load(self, key: Key) -> None:
        """Loads one version; what goes wrong is remembered, and told in the log if it is news."""
        published, command = self._seen.known[key[0]].versions[key[1]], self._seen.asked.command
        path = Path(published.path)
        loop = asyncio.get_running_loop()
        files = await loop.run_in_executor(self._looking, fingerprint, path)
        source = ModelSource(*key, published.path)
        try:
            # The first load may end the process; later ones have others to answer.
            load = partial(load_model, trial=self._started or self._settings.resumes, gently=self._started)
            model = await loop.run_in_executor(self._working, load, source, self._settings, self._turn)
        except Exception as error:
            failure = Failure(str(error), _reason(error, path), files, command)
            news = self._attempts.failed(key, failure, time.monotonic())
            if not isinstance(error, (MlserveError, OSError)):
                _log.exception("%s@%s cannot be loaded", *key)
            elif news and self._started:
                _log.warning("%s@%s cannot be loaded: %s", *key, error)
            return
        self._attempts.forget([key])
        if key in self._loaded:
            self._retire(key)
        self._loaded[key] = _Loaded(model, published.mark)

    async def _load_what_siblings_serve(self) -> None:
        """What words meant to the other workers, and to the one before, where what they should mean does not load."""
        for told in self._agreement.words():
            for name, words in told.items():
                wanted, known = self._plan.wants.get(name), self._seen.known.get(name, Known())
                if wanted is None or wanted.versions <= {version for each, version in self._loaded if each == name}:
                    continue
                for version in words.versions & known.versions.keys():
                    if (name, version) not in self._loaded and (name, version) not in self._attempts.failures:
                        await self._load((name, version))
                self._words[name] = words

    # Serving and retiring

    def _settle(self) -> None:
        """Serves what follows from what is loaded now, and tells the other workers."""
        for key in self._loaded.keys() & self._held.keys():
            self._retire(key)
        self._replan()
        plan = self._plan
        self._words = dict(plan.words)
        for key in self._loaded.keys() - plan.keep:
            self._retire(key)
        served = self._service.catalog
        catalog = Catalog(
            {key: loaded.model for key, loaded in self._loaded.items()},
            {name: words.default for name, words in plan.words.items() if words.default},
            {name: dict(words.aliases) for name, words in plan.words.items() if words.aliases},
            index_entries(
                plan,
                self._seen.known,
                self._failures(),
                [leaving.key for leaving in self._leaving],
                whole=self._whole,
            ),
            self._held,
            {name: {**wanted.aliases, "": wanted.default} for name, wanted in plan.wants.items()},
        )
        if _content(catalog) != _content(served):
            self._service.install(catalog)
            _tell_changes(served, catalog)
        self._tell()

    def _replan(self) -> None:
        """What follows from what is seen and loaded now. A version on its way out that is wanted again comes back."""
        self._plan = self._make_plan()
        missing = set(self._plan.missing) - self._held.keys()
        for leaving in [each for each in self._leaving if each.key in missing and not each.closing]:
            name, version = leaving.key
            if leaving.key not in self._loaded and leaving.loaded.mark == self._seen.known[name].versions[version].mark:
                self._loaded[leaving.key] = leaving.loaded
                self._leaving.remove(leaving)
                self._service.retiring.remove(leaving.loaded.model)
                self._plan = self._make_plan()
        self._attempts.forget(self._attempts.failures.keys() - set(self._plan.missing))

    def _make_plan(self) -> Plan:
        marks = {key: loaded.mark for key, loaded in self._loaded.items()}
        return make_plan(self._seen.asked, self._seen.known, marks, self._words)

    def _failures(self) -> dict[Key, Failure]:
        """Why versions are not served that should be: they do not load, or are held back."""
        held = {key: Failure(reason, reason, None, 0) for key, reason in self._held.items()}
        return self._attempts.failures | held

    def _choices(self) -> dict[str, Choice]:
        return choices(self._seen.asked, self._seen.known.keys())

    def _tell(self) -> None:
        asked = self._choices()
        failures: dict[str, dict[str, str]] = {}
        for (name, version), failure in self._failures().items():
            failures.setdefault(name, {})[version] = failure.reason
        loading = {
            key[0]
            for key in self._plan.missing
            if key not in self._held and self._attempts.untried(key, asked[key[0]].asked)
        }
        self._agreement.tell(Applied(self._seen.asked.command, frozenset(loading), failures, self._words))

    def _retire(self, key: Key) -> None:
        leaving = _Leaving(key, self._loaded.pop(key))
        self._leaving.append(leaving)
        self._service.retiring.append(leaving.loaded.model)
        self._spawn(self._close_when_idle(leaving), f"retiring {key[0]}@{key[1]}")

    async def _close_when_idle(self, leaving: _Leaving) -> None:
        """Frees a version once every request that had found it is answered."""
        await asyncio.sleep(_GRACE_S)
        while leaving in self._leaving and not leaving.loaded.model.idle:
            await asyncio.sleep(_IDLE_LOOK_S)
        if leaving not in self._leaving:  # it is wanted again
            return
        leaving.closing = True
        self._service.retiring.remove(leaving.loaded.model)  # it has nothing to drain, and is closed here alone
        await asyncio.get_running_loop().run_in_executor(self._working, unload_model, leaving.loaded.model)
        self._leaving.remove(leaving)
        self._wake.set()

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _fixed(sources: Sequence[ModelSource]) -> dict[str, Known]:
    """What is served as it is, as if a store had it."""
    names = {source.name for source in sources}
    return {
        name: Known({source.version: Published(source.path) for source in sources if source.name == name})
        for name in names
    }


def _content(catalog: Catalog) -> tuple[object, ...]:
    return catalog.models, catalog.defaults, catalog.aliases, catalog.others, catalog.held, catalog.wanted


def _reason(error: Exception, path: Path) -> str:
    """Why a version does not load, for clients: no folder of this machine is told."""
    if not isinstance(error, (MlserveError, OSError)):
        return "it cannot be loaded; the server's log says why"
    text = str(error).replace(f"{path}/", "").replace(str(path), path.name)
    return _FOLDERS.sub("", text)[:_MOST_LETTERS]


def _tell_changes(before: Catalog, after: Catalog) -> None:
    """One line in the log for every change; the first catalog is told by whoever started the server."""
    if not before.models:
        return
    for name, version in after.models.keys() - before.models.keys():
        _log.info("%s@%s is served", name, version)
    for name, version in before.models.keys() - after.models.keys():
        _log.info("%s@%s is served no more", name, version)
    for name, version in after.defaults.items():
        if before.defaults.get(name, version) != version:
            _log.info("%s means version %s", name, version)
    for name, aliases in after.aliases.items():
        for alias, version in aliases.items():
            if before.aliases.get(name, {}).get(alias, version) != version:
                _log.info("%s@%s means version %s", name, alias, version)
