"""The command that makes a run again."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from mlserve.runs.load import Bursts, Flat, Plan, Ramp, Replay, Shape, Spikes, Steps
from mlserve.runs.run import Run

__all__ = ["bench_command"]

_MADE_UP = re.compile(r"synthetic rows(?: \(seed \d+\))?(?: of (.+?) tokens)?(?: of (.+?) pixels)?(?:, \d+ bodies)?")


def bench_command(run: Run, directory: Path) -> str:
    """The command that makes `run` again, which lies in `directory`: from where that is a path to it.

    The value of a header, which no run keeps, is `VALUE`. Of a run without a lock the plan is written out: its files
    are called by their names alone, and shares that it did not keep are `SHARE` or `SPREAD`, which bench refuses.
    """
    if run.lock is None:
        return _written_out(run)
    headers = [word for name in run.lock.headers for word in ("--header", f"{name}: VALUE")]
    return shlex.join(["mlserve", "bench", "--like", str(directory), *headers])


def _written_out(run: Run) -> str:
    plan, server, model = run.plan, run.server, run.model
    flags: dict[str, object] = _load_flags(plan) | {
        "--protocol": plan.protocol,
        "--duration": f"{plan.duration_s:g}s",
        "--warm-up": "auto" if plan.find_warm_up else f"{plan.warm_up_s:g}s",
        "--batch": ",".join(f"{size.rows}:{size.share:g}" for size in plan.row_mix) or plan.batch_rows,
        "--seed": plan.seed,
        "--max-in-flight": plan.max_in_flight,
        "--timeout": f"{plan.timeout_s:g}s",
    }
    if plan.percentile != 0.99:
        flags["--percentile"] = f"p{100 * plan.percentile:g}"
    if plan.max_errors != 0.01:
        flags["--errors"] = f"{100 * plan.max_errors:.10g}%"
    if plan.precision:
        flags |= {"--precision": f"{100 * plan.precision:g}%", "--max-duration": f"{plan.max_duration_s:g}s"}
    if plan.generators > 1:
        flags["--workers"] = plan.generators
    if plan.locustfile:
        flags["--locustfile"] = plan.locustfile
    elif plan.arrivals != "replay":
        flags |= dict(_row_flags(plan.payload))
    if server is None:
        target = model.url
        flags |= {"--model": model.name} if model.name else {}
    else:
        target = f"{model.name}@{model.version}" if model.sha256 else f"{model.name}.onnx"
        flags |= {
            "--server-workers": server.workers,
            "--threads": server.threads,
            "--max-batch-rows": server.max_batch_rows,
            "--max-delay-ms": f"{server.max_delay_ms:g}",
            "--device": server.device,
        }
        chosen = {"--engine": server.engine, "--compute-type": server.compute_type}
        flags |= {flag: value for flag, value in chosen.items() if value}
    check = ["--check"] if plan.check_answers else []
    return shlex.join(["mlserve", "bench", target, *(str(part) for pair in flags.items() for part in pair), *check])


def _row_flags(payload: str) -> Iterator[tuple[str, str]]:
    """The rows that were sent, by what the run calls them."""
    made_up = _MADE_UP.fullmatch(payload)
    if made_up is None:
        if payload:
            yield "--data", payload.partition(" (")[0]
        return
    lengths, sides = made_up.groups()
    if lengths:
        yield "--lengths", _lengths(lengths)
    if sides:
        yield "--image-sizes", sides.replace(" ", "")


def _lengths(words: str) -> str:
    """`8 to 128` as `--lengths` reads it; a share or spread that the words do not tell is no number."""
    if words.startswith("about "):
        return f"lognormal:{words.removeprefix('about ')},SPREAD"
    if ", " in words:
        return ",".join(f"{length}:SHARE" for length in words.split(", "))
    return words.replace(" to ", "..")


def _load_flags(plan: Plan) -> dict[str, object]:
    match plan.shape:
        case _ if plan.closed:
            return {"--users": plan.users}
        case Replay(source, _, speed):
            faster: dict[str, object] = {} if speed == 1.0 else {"--replay-speed": f"{speed:g}"}
            return {"--replay": source, **faster}
        case Flat():
            return {"--rps": f"{plan.rate_per_s:g}", "--arrivals": plan.arrivals}
    return {"--rps": f"{plan.rate_per_s:g}", "--arrivals": plan.arrivals, "--shape": _written(plan.shape)}


def _written(shape: Shape) -> str:
    """`shape` as `--shape` reads it."""
    match shape:
        case Ramp(to_per_s):
            return f"ramp:{to_per_s:g}"
        case Steps(rates_per_s):
            return f"steps:{','.join(f'{rate:g}' for rate in rates_per_s)}"
        case Spikes(factor, length_s, every_s):
            return f"spikes:{factor:g}x{length_s:g}s/{every_s:g}s"
        case Bursts(on_s, off_s):
            return f"bursts:{on_s:g}s/{off_s:g}s"
    return "flat"
