"""A7: every client gets the answer to its own request, whoever shares a batch with it; a bad one fails alone."""

from integrity import Tally, ask_all, serving
from integrity_questions import CELLS, make_models, make_questions
from scorecard.case import Case, Figure, Outcome, Stage

__all__ = ["CASE"]

_CLIENTS = 64
# Rounds of so many: the lookup model knows every id of a round, and must stay small enough to load.
_REQUESTS = {"seconds": (1, 1200), "short": (1, 25_000), "long": (100, 100_000)}
_CONTROL = 600


def run(stage: Stage) -> Outcome:
    rounds, requests = _REQUESTS[stage.form]
    ids = max(requests, _CONTROL) * CELLS
    models = make_models(stage.folder, ids)
    tallies, bad = [], 0
    with serving(models, stage.folder) as endpoints:
        for seed in range(rounds):
            questions = make_questions(requests, seed, ids)
            bad += sum(question.bad for question in questions)
            tallies.append(ask_all(endpoints, questions, _CLIENTS))
    outcome = _judge(tallies, bad)
    control = make_questions(_CONTROL, seed=1, ids=ids)
    with serving(models, stage.folder, crossed=True) as endpoints:
        spoilt = _judge([ask_all(endpoints, control, _CLIENTS)], sum(question.bad for question in control))
    return Outcome(
        passed=outcome.passed,
        found=outcome.found,
        figures=outcome.figures,
        control=f"a server that hands every answer to its neighbour in the batch: {spoilt.found}",
        control_failed=not spoilt.passed,
    )


def _judge(tallies: list[Tally], bad: int) -> Outcome:
    total = {verdict: sum(one.total(verdict) for one in tallies) for verdict in ("right", "refused", "crossed", "lost")}
    asked = sum(one.total() for one in tallies)
    passed = total == {"right": asked - bad, "refused": bad, "crossed": 0, "lost": 0} and asked > bad > 0
    examples = [fault for one in tallies for fault in one.faults][:2]
    told = ", ".join(f"{count} {verdict}" for verdict, count in total.items())
    return Outcome(
        passed=passed,
        found=f"of {asked} requests, {bad} of them bad: {told}" + "".join(f"; {each[:200]}" for each in examples),
        figures=(
            Figure("requests", asked),
            Figure("crossed", total["crossed"], limit="0"),
            Figure("lost", total["lost"], limit="0"),
            Figure("bad ones, refused alone", total["refused"], limit=f"{bad}"),
        ),
    )


CASE = Case(
    id="A7",
    title="Batch integrity: 64 clients of mixed shapes, versions and protocols",
    criterion="no answer crossed or lost; every bad request in a batch is refused alone",
    source="Triton's batcher tests, TorchServe's testErrorBatch",
    run=run,
)
