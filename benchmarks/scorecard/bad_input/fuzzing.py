"""D2: random requests, by the server's own description of itself and by spoiling what is right, for as long as told."""

import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

from scorecard.bad_input.asking import Asker, Heard, connect, read_to_end, tell_long
from scorecard.bad_input.mutating import mutated, raw_http, raw_http2
from scorecard.bad_input.wrong_requests import RIGHT, Question
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.server import Endpoints, Server, serving_both

__all__ = ["CASE"]

_SECONDS = {"seconds": 2.5, "short": 30.0, "long": 600.0}
_SEED = 7
_CONTROL_S = 15.0
_HANG_S = 1.0
_MOST_GROWTH_BYTES = 32 << 20
# What is loaded, remembered and compiled once is no growth.
_WARM_SHARE = 0.2
_ROUND = 40
# Of a round, so many are raw bytes on a connection of their own.
_RAW = 8
# What is made from the description takes a hundred times as long.
_DESCRIBED_EVERY = 4
# To read the description takes seconds by itself; in less time it is left to the tests of the pages.
_LEAST_DESCRIBED_S = 20.0

# A type that nobody has heard of is looked up in a table.
_LOOKS_UP = """
import mlserve.wire.signature as signature
right, known = signature.Signature.field, {"BOOL", "BYTES", "FP16", "FP32", "FP64", "INT32", "INT64"}
def field(self, name, datatype, shape, *more):
    if datatype not in known:
        raise KeyError(datatype)
    return right(self, name, datatype, shape, *more)
signature.Signature.field = field
"""


def run(stage: Stage) -> Outcome:
    seconds = _SECONDS[stage.form]
    with serving_both(stage.folder, plant=_LOOKS_UP) as (sound, broken):
        outcome = _play(sound, seconds)
        spoilt = _play(broken, _CONTROL_S, until_fault=True)
    return Outcome(
        passed=outcome.passed,
        found=outcome.found,
        figures=outcome.figures,
        control=f"a server that looks an unknown type up in a table: {spoilt.found}",
        control_failed=not spoilt.passed,
    )


class _Found:
    """What was sent, and what was not as it should be."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.faults: list[str] = []
        self.longest_s = 0.0

    def note(self, heard: Heard, kind: str, what: str) -> None:
        self.asked[kind] += 1
        self.answers[heard.status or "none"] += 1
        if heard.server_fault:
            self.faults.append(f"{kind} {what}: {heard.status or 'no answer'} {heard.body[:200]!r}")


def _play(server: Server, seconds: float, *, until_fault: bool = False) -> Outcome:
    workers = {worker.pid for worker in server.workers}
    found = _Found()
    with Asker(server.endpoints) as asker:
        for question in RIGHT:
            _ask(asker, question)
        growth_bytes = _fuzz(server, asker, seconds, found, until_fault=until_fault)
        found.faults += [f"afterwards {one.dialect} is not right" for one in RIGHT if not _ask(asker, one).good]
    if workers != {worker.pid for worker in server.workers}:
        found.faults.append("a worker died")
    if server.traceback:
        found.faults.append(f"the log has a traceback: {_last_line(server.log)}")
    if growth_bytes > _MOST_GROWTH_BYTES:
        found.faults.append(f"it grew by {growth_bytes / 2**20:.0f} MiB")
    count = sum(found.asked.values())
    told = ", ".join(f"{name} {number:,}" for name, number in found.asked.most_common())
    answers = ", ".join(f"{status} {number:,}" for status, number in found.answers.most_common())
    verdict = tell_long(f"{len(found.faults)} faults: " + "; ".join(found.faults), 2000) if found.faults else "no fault"
    return Outcome(
        passed=not found.faults,
        found=f"{count:,} requests in {seconds:g} s ({told}), answered {answers}: {verdict}",
        figures=(
            Figure("requests", count),
            Figure("5xx, crashes and hangs", len(found.faults), limit="0"),
            Figure("longest answer", round(found.longest_s, 3), "s", f"{_HANG_S:g}"),
            Figure("growth", round(growth_bytes / 2**20, 1), "MiB", "32"),
        ),
    )


def _fuzz(server: Server, asker: Asker, seconds: float, found: _Found, *, until_fault: bool) -> int:
    """Asks for so long, or until the first fault; by how many bytes the server's memory has grown since it was warm."""
    chance, warm_bytes = random.Random(_SEED), 0
    spoiled, rounds = mutated(chance), itertools.count()
    described = _described(server.endpoints, found) if seconds >= _LEAST_DESCRIBED_S else itertools.repeat(None)
    began_s = time.monotonic()
    while (passed_s := time.monotonic() - began_s) < seconds and not (until_fault and found.faults):
        if not warm_bytes and passed_s > _WARM_SHARE * seconds:
            warm_bytes = server.rss_bytes()
        for question in itertools.islice(spoiled, _ROUND):
            _ask_spoiled(asker, question, found)
        for _ in range(_RAW):
            _send_raw(server.endpoints, chance, found)
        if next(rounds) % _DESCRIBED_EVERY == 0:
            next(described)
    return max(0, server.rss_bytes() - warm_bytes) if warm_bytes else 0


def _ask(asker: Asker, question: Question) -> Heard:
    if question.is_grpc:
        return asker.grpc(question.path, question.body)
    return asker.http(question.path, question.body, question.headers)


def _ask_spoiled(asker: Asker, question: Question, found: _Found) -> None:
    heard = _asked_again(lambda: _ask(asker, question), found)
    found.note(heard, question.dialect, repr(question.body[:200]))


def _asked_again(ask: Callable[[], Heard], found: _Found) -> Heard:
    """Asks; what took long is asked twice more, for it may have been the machine that was busy."""
    heard = ask()
    if heard.took_s > _HANG_S:
        heard = min(heard, ask(), ask(), key=lambda one: one.took_s)
        if heard.took_s > _HANG_S:
            found.faults.append(f"an answer took {heard.took_s:.1f} s: {heard.status}")
    found.longest_s = max(found.longest_s, heard.took_s)
    return heard


def _send_raw(endpoints: Endpoints, chance: random.Random, found: _Found) -> None:
    """Bytes on a connection of their own, which is then closed in that direction; an answer in words is looked at."""
    is_http = chance.random() < 0.7
    content = raw_http(chance) if is_http else raw_http2(chance)
    said = b""
    with suppress(OSError), connect(endpoints.http if is_http else endpoints.grpc, _HANG_S) as connection:
        connection.sendall(content)
        connection.shutdown(1)
        if is_http:
            said = read_to_end(connection)
    status = said[9:12].decode("ascii", "replace") if said.startswith(b"HTTP/1.1 ") else "closed"
    found.note(Heard(status, said), "raw HTTP" if is_http else "raw HTTP/2", repr(content[:300]))


def _described(endpoints: Endpoints, found: _Found) -> Iterator[None]:
    """Asks what schemathesis makes of the server's OpenAPI document, an operation a step, round after round."""
    import hypothesis
    import schemathesis

    schema = schemathesis.openapi.from_url(f"http://{endpoints.http}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    # A recording is there to keep what it is told to keep, and would be taken for a leak.
    operations = [one for one in operations if not one.path.startswith("/recording")]

    def attempt(case: schemathesis.Case) -> None:
        def ask() -> Heard:
            started_s = time.monotonic()
            reply = case.call(base_url=f"http://{endpoints.http}", timeout=20)
            return Heard(str(reply.status_code), reply.content, time.monotonic() - started_s)

        heard = _asked_again(ask, found)
        # 501 is what the document promises of a page that this server does not have.
        if heard.status != "501":
            found.note(heard, "schemathesis", f"{case.method} {case.formatted_path}")

    for seed in itertools.count(_SEED):
        for operation in operations:
            limits = hypothesis.settings(
                max_examples=5,
                deadline=None,
                database=None,
                phases=[hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            with suppress(hypothesis.errors.Unsatisfiable):
                hypothesis.seed(seed)(limits(hypothesis.given(operation.as_strategy())(attempt)))()
            yield


def _last_line(log: str) -> str:
    """How the first traceback of a log ends: what was raised."""
    lines = log.partition("Traceback")[2].splitlines()[1:]
    return next((line for line in lines if not line.startswith(" ")), "")[:300]


CASE = Case(
    id="D2",
    title="Random requests",
    criterion="no crash, no 5xx, no hang over 1 s, less than 32 MiB of growth",
    source="Triton L0_http_fuzz; schemathesis",
    run=run,
)
