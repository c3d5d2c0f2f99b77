"""The command that makes a run again."""

import shlex

from mlserve.runs.load import Bursts, Flat, Plan, Ramp, Replay, Shape, Spikes, Steps
from mlserve.runs.run import Run

__all__ = ["bench_command"]


def bench_command(run: Run) -> str:
    """The command that makes `run` again. Files it cannot know by path are named as they were."""
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
    if plan.precision:
        flags |= {"--precision": f"{100 * plan.precision:g}%", "--max-duration": f"{plan.max_duration_s:g}s"}
    if plan.generators > 1:
        flags["--workers"] = plan.generators
    if plan.locustfile:
        flags["--locustfile"] = plan.locustfile
    elif not plan.payload.startswith("synthetic") and plan.arrivals != "replay":
        flags["--data"] = plan.payload.partition(" (")[0]
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
