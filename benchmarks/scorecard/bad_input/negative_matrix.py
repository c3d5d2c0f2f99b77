"""D1: whatever is wrong with a request, the client is told so in short, and the server is as it was."""

from collections import Counter

from scorecard.bad_input.asking import Asker, Heard, fault_of, tell_long
from scorecard.bad_input.wrong_requests import RIGHT, Question, wrong_requests
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.server import Server, serving_both

__all__ = ["CASE"]

# The server takes the blame for what its clients do wrong.
_TAKES_BLAME = """
import mlserve.errors as errors
errors.InvalidRequest.http_status, errors.InvalidRequest.grpc_code = 500, 13
"""
# After so many wrong requests, the right ones are asked again.
_BETWEEN = {"seconds": 100, "short": 10, "long": 1}


def run(stage: Stage) -> Outcome:
    with serving_both(stage.folder, plant=_TAKES_BLAME) as (sound, broken):
        outcome = _play(sound, _BETWEEN[stage.form])
        spoilt = _play(broken, 100)
    return Outcome(
        passed=outcome.passed,
        found=outcome.found,
        figures=outcome.figures,
        control=f"a server that takes the blame for its clients' mistakes: {spoilt.found}",
        control_failed=not spoilt.passed,
    )


def _play(server: Server, between: int) -> Outcome:
    faults: list[str] = []
    asked: Counter[str] = Counter()
    workers = {worker.pid for worker in server.workers}
    with Asker(server.endpoints) as asker:
        faults += _not_right(asker)
        for number, question in enumerate(wrong_requests(), 1):
            asked[question.dialect] += 1
            fault = fault_of(_ask(asker, question))
            if fault:
                faults.append(f"{question.dialect}, {question.what}: {fault}")
            if number % between == 0:
                faults += _not_right(asker)
        faults += _not_right(asker)
    if workers != {worker.pid for worker in server.workers}:
        faults.append("a worker died")
    if server.traceback:
        faults.append(f"the log has a traceback: {server.traceback[:200]}")
    count = sum(asked.values())
    dialects = ", ".join(f"{name} {number}" for name, number in asked.items())
    verdict = (
        tell_long("; ".join(faults), 2000)
        if faults
        else "all told so in at most 1 KiB, and none was the server's fault"
    )
    return Outcome(
        passed=not faults,
        found=f"{count} wrong requests ({dialects}): {verdict}",
        figures=(
            Figure("wrong requests", count),
            Figure("not refused as they should be", len(faults), limit="0"),
        ),
    )


def _ask(asker: Asker, question: Question) -> Heard:
    if question.is_grpc:
        return asker.grpc(question.path, question.body)
    return asker.http(question.path, question.body, question.headers)


def _not_right(asker: Asker) -> list[str]:
    """What is wrong with the answers to what is right."""
    heard = [(question, _ask(asker, question)) for question in RIGHT]
    return [
        f"{one.dialect}, right, then: {found.status} {found.body[:100]!r}" for one, found in heard if not found.good
    ]


CASE = Case(
    id="D1",
    title="Wrong requests of every dialect",
    criterion="always 4xx or a client's code of gRPC, an error of at most 1 KiB, no 5xx; right requests answered after",
    source="Triton http_test.py, TF Serving PredictRequestErrors; Triton answers 500 to negative dimensions",
    run=run,
)
