"""B9: eight clients load and unload one model at once, then one client does so again and again."""

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.driver import Driven, Load, driving
from scorecard.known import publish
from scorecard.server import Server, serving

__all__ = ["CASE"]

_CLIENTS = 8
_STORM_S = {"seconds": 1.5, "short": 15.0, "long": 60.0}
# Rounds of so many cycles, each of a model of its own: a freed model takes a second to go.
_TOGETHER = 8
_ROUNDS = {"seconds": 1, "short": 8, "long": 125}
# The first fills what is kept for good: pools of memory, caches, threads.
_WARMING = 1
_MOST_GROWTH_BYTES = 50 << 20
_MOST_FDS = 4
_FREED_S = 20.0
_STORMY, _STEADY = "stormy", "steady"
_CYCLED = tuple(f"cycled{number}" for number in range(_TOGETHER))
_PER_S = 100.0

# Every load keeps something of what it loaded: memory that is touched, and a descriptor.
_KEEPS = """
import os
import mlserve.serve.versions.following as following

right, kept = following.load_model, []

def keeping(*given, **named):
    kept.append((bytearray(os.urandom(1 << 20) * 10), os.open(os.devnull, os.O_RDONLY)))
    return right(*given, **named)

following.load_model = keeping
"""


def run(stage: Stage) -> Outcome:
    root = stage.folder / "store"
    for name in (_STORMY, _STEADY, *_CYCLED):
        publish(root, name)
    # Nothing here is timed, so the two may go beside each other.
    with ThreadPoolExecutor(2) as threads:
        sound = threads.submit(_play, stage.folder, root, "", _STORM_S[stage.form], _ROUNDS[stage.form])
        broken = threads.submit(_play, stage.folder, root, _KEEPS, 0.2, 1)
    outcome, spoilt = sound.result(), broken.result()
    return Outcome(
        passed=outcome.passed,
        found=outcome.found,
        figures=outcome.figures,
        control=f"a server that keeps 10 MiB and a descriptor of every load: {spoilt.found}",
        control_failed=not spoilt.passed,
    )


def _play(folder: Path, root: Path, plant: str, storm_s: float, rounds: int) -> Outcome:
    flags = ("--store", root, "--model-control", "explicit", "--threads", "1")
    with serving(folder, _STORMY, _STEADY, *flags, plant=plant) as server:
        load = Load(per_s=_PER_S, seconds=3600.0, model=_STEADY, ways=("http", "grpc"))
        with driving(server.endpoints, load) as running:
            told = _storm(server, storm_s)
            misled = _ends_as_told(server)
            running.stop()
        for _ in range(_WARMING):
            misled += _cycle(server)
        rss_bytes, fds = server.rss_bytes(), server.fds()
        for _ in range(rounds):
            misled += _cycle(server)
        grown_bytes, more_fds = server.rss_bytes() - rss_bytes, server.fds() - fds
        cycles = rounds * _TOGETHER
        return _judge(running.driven, told, misled, cycles, grown_bytes, more_fds, server.traceback)


def _storm(server: Server, seconds: float) -> Counter[int]:
    """What all the commands were answered, by status; 0 for none."""
    told: Counter[int] = Counter()
    until_s = time.monotonic() + seconds

    def shout(seed: int) -> None:
        chooser = random.Random(seed)
        while time.monotonic() < until_s:
            try:
                told[_command(server, chooser.choice(("load", "unload")))] += 1
            except OSError:
                told[0] += 1

    threads = [threading.Thread(target=shout, args=(seed,)) for seed in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def _ends_as_told(server: Server) -> int:
    """How often a command alone, after all others, did not have its effect."""
    misled = 0
    for change in ("unload", "load", "unload"):
        accepted = _command(server, change) == 200
        misled += not accepted or _is_ready(server) != (change == "load")
    return misled


def _cycle(server: Server) -> int:
    """Every cycled model loaded, unloaded and freed; how many commands had no effect."""
    misled = sum(_command(server, "load", name) != 200 or not _is_ready(server, name) for name in _CYCLED)
    misled += sum(_command(server, "unload", name) != 200 or _is_ready(server, name) for name in _CYCLED)
    until_s = time.monotonic() + _FREED_S
    while left := _unfreed(server):
        if time.monotonic() > until_s:
            return misled + left
        time.sleep(0.1)
    return misled


def _unfreed(server: Server) -> int:
    """How many of the cycled models are still in memory."""
    index = server.request("POST", "/v2/repository/index", b"{}").json()
    return sum(entry["name"] in _CYCLED and entry.get("state") in ("READY", "UNLOADING") for entry in index)


def _command(server: Server, change: str, name: str = _STORMY) -> int:
    return server.request("POST", f"/v2/repository/models/{name}/{change}", b"{}").status


def _is_ready(server: Server, name: str = _STORMY) -> bool:
    return server.request("GET", f"/v2/models/{name}/ready").status == 200


def _judge(
    beside: Driven,
    told: Counter[int],
    misled: int,
    cycles: int,
    grown_bytes: int,
    more_fds: int,
    traceback: str,
) -> Outcome:
    # A load that another client's unload overtook may be refused in so many words.
    strange = {status: count for status, count in told.items() if status not in (200, 400, 404, 503)}
    faults = [
        f"beside the storm: {beside.not_ok}" if beside.not_ok else "",
        f"commands were answered {strange}" if strange else "",
        f"{misled} commands that nothing contradicted had no effect" if misled else "",
        f"{grown_bytes / 2**20:.1f} MiB more after {cycles} cycles" if grown_bytes > _MOST_GROWTH_BYTES else "",
        f"{more_fds} descriptors more after {cycles} cycles" if more_fds > _MOST_FDS else "",
        traceback,
    ]
    fault = "; ".join(filter(None, faults))
    good = (
        f"{sum(told.values())} commands at once, none stuck; the last one counted; {cycles} cycles left nothing behind"
    )
    return Outcome(
        passed=not fault,
        found=fault or good,
        figures=(
            Figure("commands at once", sum(told.values())),
            Figure("answered 200", told[200]),
            Figure("requests beside", beside.count()),
            Figure("not ok", beside.count() - beside.count("ok"), limit="0"),
            Figure("cycles", cycles),
            Figure("memory grown", grown_bytes / 2**20, "MiB", "below 50"),
            Figure("descriptors more", more_fds, limit="at most 4"),
        ),
    )


CASE = Case(
    id="B9",
    title="A storm of loads and unloads of one model",
    criterion="8 clients at once: no deadlock, the last accepted command counts, another model is served without an "
    "error; cycles one after the other: memory grows by less than 50 MiB, descriptors stay",
    source="Triton's test_concurrent_same_model_load_unload_stress",
    run=run,
)
