"""C3: a model whose every run is the end of the process that runs it."""

import http.client
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
from scorecard.case import Case, Figure, Outcome, Stage
from scorecard.driver import Driven, Load, driving
from scorecard.faults.killed_worker import listens
from scorecard.known import MODEL, write_known
from scorecard.server import Server, serving

__all__ = ["CASE", "write_deadly"]

_WATCHED_S = {"seconds": 8.0, "short": 22.0, "long": 600.0}
_PER_S, _DEADLY_EVERY_S = 50.0, 0.15
_DEADLY = 5000.0
_HELD, _PATIENCE_S = "held back", 30.0
# Until it opens, and once for every trial.
_MOST_DEATHS = 6

_TRUSTING = """
import mlserve.serve.life.breaker as breaker

breaker.Breaker.died = lambda *_: None
"""


def write_deadly(path: Path) -> Path:
    """`x` float32 [batch, 1] -> `y`: 1, and for an `x` above 1000 the end of the process.

    The smallest int32 is divided by -1, which has no answer in 32 bits; the processor raises SIGFPE.
    """
    from onnx import TensorProto, helper, numpy_helper, save_model

    constants = {
        "limit": np.float32(1000),
        "one": np.int32(1),
        "smallest": np.int32(-(2**31)),
        "minus_one": np.int32(-1),
    }
    nodes = [
        helper.make_node("Greater", ["x", "limit"], ["deadly"]),
        helper.make_node("Where", ["deadly", "smallest", "one"], ["dividend"]),
        helper.make_node("Where", ["deadly", "minus_one", "one"], ["divisor"]),
        helper.make_node("Div", ["dividend", "divisor"], ["quotient"]),
        helper.make_node("Cast", ["quotient"], ["y"], to=TensorProto.FLOAT),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1]) for name in "xy")
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "deadly", [x], [y], initializers)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def run(stage: Stage) -> Outcome:
    known, deadly = write_known(stage.folder / f"{MODEL}.onnx"), write_deadly(stage.folder / "deadly.onnx")
    seconds = _WATCHED_S[stage.form]
    with serving(stage.folder, known, deadly, "--workers", "2") as server:
        outcome = _play(server, seconds, _PATIENCE_S)
        traceback = server.traceback
    with serving(stage.folder, known, deadly, "--workers", "2", plant=_TRUSTING) as trusting:
        spoilt = _play(trusting, min(seconds, 8.0))
    return Outcome(
        passed=outcome.passed and not traceback,
        found=outcome.found + traceback,
        figures=outcome.figures,
        control=f"a server that holds nothing back: {spoilt.found}",
        control_failed=not spoilt.passed,
    )


def _play(server: Server, seconds: float, patience_s: float = 0.0) -> Outcome:
    """Asks the deadly model again and again, beside a load for the other one."""
    said, most_processes, index = Counter[str](), 0, dict[str, dict[str, str]]()
    with driving(server.endpoints, Load(per_s=_PER_S, seconds=3600.0)) as running:
        began_s = time.monotonic()
        # On a slow machine new workers take their time.
        while time.monotonic() - began_s < (seconds if said[_HELD] >= _MOST_DEATHS else seconds + patience_s):
            answer = _ask_deadly(server)
            said[answer] += 1
            if answer == _HELD:
                index = _index(server) or index
            most_processes = max(most_processes, len(server.workers))
            time.sleep(_DEADLY_EVERY_S)
        _until_all_serve(server)
        opened_s = running.now_s
        time.sleep(1.0)
        index = index or _index(server)
        running.stop()
    return _judge(running.driven, server, said, most_processes, index, opened_s)


def _index(server: Server) -> dict[str, dict[str, str]]:
    """What the repository index says of every model; nothing where it cannot be asked just now."""
    try:
        return {entry["name"]: entry for entry in server.request("POST", "/v2/repository/index", "{}").json()}
    except (OSError, http.client.HTTPException, ValueError):
        return {}


def _until_all_serve(server: Server) -> None:
    """Waits until two workers have their ports open; the one that nobody replaces is not waited for for ever."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while sum(map(listens, server.workers)) < 2 and time.monotonic() < deadline_s:
        time.sleep(0.05)


def _ask_deadly(server: Server) -> str:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [_DEADLY]}
    try:
        reply = server.request("POST", "/v2/models/deadly/infer", json.dumps({"inputs": [tensor]}))
        return _HELD if reply.status == 503 and b"is held back" in reply.body else str(reply.status)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__


def _judge(
    driven: Driven,
    server: Server,
    said: Counter[str],
    most_processes: int,
    index: dict[str, dict[str, str]],
    until_s: float,
) -> Outcome:
    deaths = server.log.count("another takes its place")
    pauses = [line for line in server.log.splitlines() if "is held back for" in line]
    entry = index.get("deadly", {})
    # What dies takes the other model's requests in the same process with it; once held back it dies seldom.
    last = [one for one in driven.answers if one.due_s > until_s]
    bad = [one for one in last if one.kind != "ok"]
    faults = [
        f"{deaths} workers died" if deaths > _MOST_DEATHS else "",
        f"the index says {entry}"
        if entry.get("state") != "UNAVAILABLE" or "died of it" not in entry.get("reason", "")
        else "",
        f"no request for it was refused: {dict(said)}" if not said[_HELD] else "",
        f"{most_processes} workers at once" if most_processes > 2 else "",
        f"of {len(last)} requests for the other model {len(bad)} failed while it was held back"
        if bad or not last
        else "",
        f"{driven.count('wrong')} wrong answers" if driven.count("wrong") else "",
    ]
    fault = "; ".join(filter(None, faults))
    return Outcome(
        passed=not fault,
        found=fault
        or f"{deaths} workers died, then it was held back ({len(pauses)} times, ever longer); the other goes on",
        figures=(
            Figure("deaths", deaths, limit=f"at most {_MOST_DEATHS}"),
            Figure("times held back", len(pauses)),
            Figure("requests refused as held back", said[_HELD]),
            Figure("the other model's requests", driven.count()),
            Figure("of them answered", driven.count("ok")),
            Figure("of them failed once it was held back", len(bad), limit="0"),
        ),
    )


CASE = Case(
    id="C3",
    title="A model that kills its process",
    criterion="after a few deaths the model is UNAVAILABLE, with the reason in the index, and refused with 503; other "
    "models go on; trials come ever more seldom; no fork storm",
    source="TorchServe's maxRetryTimeoutInSec",
    run=run,
)
