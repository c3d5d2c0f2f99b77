"""B4: a version that does not load is never served, and costs the one before it nothing."""

import time
from http import HTTPStatus
from http.client import HTTPException

from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.driver import Driven, Load, driving
from scorecard.known import MODEL
from scorecard.server import Server, serving_both
from scorecard.spoilt_versions import FAULTS, put_version

from mlserve.model.store import Store

__all__ = ["CASE", "index_entry", "wait_for_state"]

_ASKED = {"seconds": 2, "short": 7, "long": 7}
_FAULTS = tuple(FAULTS)[:7]
_ROUNDS = {"seconds": 1, "short": 1, "long": 30}
_PER_S = {"seconds": 60.0, "short": 200.0, "long": 200.0}
_PATIENCE_S = 30.0
# Both servers follow the same store: the broken one may still be at what the other was asked.
_CONTROL_TRIES = 3
_MOST_GROWTH_BYTES = 32 << 20

_TAKES_AWAY = """
import asyncio
import mlserve.serve.versions.following as following
from mlserve.serve.catalog import Catalog

right = following.Follower._load

async def first_unload(self, key):
    if self._started:
        self._service.install(Catalog())
        await asyncio.sleep(0.3)
    await right(self, key)

following.Follower._load = first_unload
"""


def run(stage: Stage) -> Outcome:
    with serving_both(stage.folder, plant=_TAKES_AWAY) as (sound, broken):
        store = Store(stage.folder / "store")
        faults = _FAULTS[: _ASKED[stage.form]] * _ROUNDS[stage.form]
        per_s = _PER_S[stage.form]
        outcome = _play(sound, store, faults, 2, per_s)
        first = 2 + len(faults)
        for version in range(first, first + _CONTROL_TRIES):
            store.promote(MODEL, 1)
            wait_for_state(broken, 1, "READY", _PATIENCE_S)
            spoilt = _play(broken, store, _FAULTS[:1], version, per_s)
            if not spoilt.passed:
                break
    return Outcome(
        passed=outcome.passed and not sound.traceback,
        found=outcome.found + sound.traceback,
        figures=outcome.figures,
        control=f"a server that unloads the old version before the new one has loaded: {spoilt.found}",
        control_failed=not spoilt.passed,
    )


def _play(server: Server, store: Store, faults: tuple[str, ...], first: int, per_s: float) -> Outcome:
    complaints, before_bytes, refused_s = [], _worker_bytes(server), []
    load = Load(per_s=per_s, seconds=_PATIENCE_S * (1 + len(faults)), ways=("http", "grpc"))
    with driving(server.endpoints, load) as running:
        time.sleep(0.2)
        for version, fault in enumerate(faults, first):
            put_version(store.root, version, fault)
            started_s = time.monotonic()
            store.promote(MODEL, version)
            entry = wait_for_state(server, version, "UNAVAILABLE", _PATIENCE_S)
            refused_s.append(time.monotonic() - started_s)
            complaints += [f"{fault}: {each}" for each in _faults_of(server, entry, str(store.root))]
        time.sleep(0.2)
        running.stop()
    grown_bytes = max(_worker_bytes(server) - before_bytes, 0)
    return _judge(running.driven, faults, complaints, max(refused_s), grown_bytes)


def _faults_of(server: Server, entry: dict[str, str] | None, root: str) -> list[str]:
    """What is wrong with how the index tells of it, and with what the server says of itself."""
    if entry is None:
        return ["the index never called it UNAVAILABLE"]
    reason = entry.get("reason", "")
    found = []
    if not reason or root in reason or "/tmp" in reason or "Traceback" in reason:  # what must not be told
        found.append(f"the index gives as its reason {reason!r}")
    for path in ("/v2/health/ready", f"/v2/models/{MODEL}/ready"):
        status = server.request("GET", path).status
        if status != 200:
            found.append(f"{path} answers {status}")
    return found


def _judge(
    driven: Driven, faults: tuple[str, ...], complaints: list[str], refused_s: float, grown_bytes: int
) -> Outcome:
    strangers = driven.versions().keys() - {"1"}
    too_much = f"the workers' memory grew by {grown_bytes / 1e6:.0f} MB" if grown_bytes > _MOST_GROWTH_BYTES else ""
    served = f"versions {', '.join(sorted(strangers))} answered" if strangers else ""
    fault = "; ".join(filter(None, [driven.not_ok, *complaints, served, too_much]))
    return Outcome(
        passed=not fault,
        found=fault
        or f"{len(faults)} versions that do not load ({', '.join(dict.fromkeys(faults))}) were refused while "
        f"version 1 answered all {driven.count()} requests",
        figures=(
            Figure("versions refused", len(faults)),
            Figure("requests not answered well", driven.count() - driven.count("ok"), limit="0"),
            Figure("longest until refused", refused_s, "s"),
            Figure("memory the workers kept", grown_bytes / (1 << 20), "MiB", "at most 32"),
        ),
    )


def wait_for_state(server: Server, version: int, state: str, within_s: float) -> dict[str, str] | None:
    """The index entry of `version` once it is in `state`; None when that does not come about."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        entry = index_entry(server, version)
        if entry is not None and entry["state"] == state:
            return entry
        time.sleep(0.05)
    return None


def index_entry(server: Server, version: int, name: str = MODEL) -> dict[str, str] | None:
    """What the index tells of `version`. Raises HTTPException where it tells nothing, as while workers are replaced."""
    answer = server.request("POST", "/v2/repository/index", b"{}")
    if answer.status != HTTPStatus.OK:
        raise HTTPException(f"the index was answered with {answer.status}: {answer.body[:200]!r}")
    entries = answer.json()
    return next((one for one in entries if (one["name"], one["version"]) == (name, str(version))), None)


def _worker_bytes(server: Server) -> int:
    return sum(worker.memory_info().rss for worker in server.workers)


CASE = Case(
    id="B4",
    title="Loads that fail",
    criterion="the old version answers everything meanwhile; the index tells UNAVAILABLE and why, without a path; "
    "readiness stays; the workers' memory is back within 32 MiB",
    source="Triton's test_model_reload_fail, TensorFlow Serving's AspireErrorDontUnload",
    run=run,
)
