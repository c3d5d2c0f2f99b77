"""What was chosen, as `production.toml` has it."""

import math
from collections.abc import Sequence
from pathlib import Path

from mlserve import __version__
from mlserve.report.choice import Verdict
from mlserve.report.measurement import Recorded
from mlserve.runs.production import Evidence, Expected, Production, ServeChoice, serve_digest
from mlserve.stats import bootstrap_interval, quantile, quantile_of
from mlserve.tuning.choosing.attempt import Attempt, memory_of
from mlserve.tuning.choosing.contest import Contest
from mlserve.tuning.choosing.standing import proof_of

__all__ = ["evidence_of", "production_of"]


def evidence_of(attempts: Sequence[Attempt], number: int) -> list[Attempt]:
    """The run that what is said of a setting rests on; see `proof_of`."""
    return proof_of(attempts, number)[-1:]


def production_of(contest: Contest, verdict: Verdict, runs: Sequence[Recorded], store: Path) -> Production:
    """The file of the pick in `verdict`, whose figures are those of `runs`, the runs of `evidence_of`: no figure that
    was looked at to choose it is in them, if one confirmed it.
    """
    assert verdict.pick is not None
    setting, options = contest.settings[verdict.pick.number], contest.settings[verdict.pick.number].options
    last = runs[-1].run
    serve = ServeChoice(
        models=(setting.model,),
        store=str(store),
        engine=options.engine,
        compute_type=options.compute_type,
        device=options.device,
        workers=options.workers,
        threads=options.threads,
        max_batch_rows=options.max_batch_rows,
        max_delay_ms=options.max_delay_ms,
    )
    return Production(
        serve=serve,
        expected=_expected(contest, verdict, runs),
        evidence=Evidence(
            runs=tuple(str(one.directory) for one in runs),
            valid=verdict.valid,
            cpu=last.machine.cpu,
            cores=last.machine.cores,
            gpus=tuple(gpu.name for gpu in last.machine.gpus),
            model_sha256=last.model.sha256,
            serve_sha256=serve_digest(serve),
            mlserve=__version__,
            measured_at=last.started_at,
        ),
    )


def _expected(contest: Contest, verdict: Verdict, runs: Sequence[Recorded]) -> Expected:
    last, objective = runs[-1], contest.aim.objective
    latency_s = last.samples.latency_s
    low, high = bootstrap_interval([last.latency_blocks], quantile_of(0.99))
    accuracy = last.run.model.accuracy
    return Expected(
        protocol=last.run.plan.protocol,
        rate_per_s=last.run.plan.rate_per_s,
        batch_rows=last.run.plan.batch_rows,
        p50_ms=_ms(quantile(latency_s, 0.5)),
        p99_ms=_ms(quantile(latency_s, 0.99)),
        p99_low_ms=_ms(low) if math.isfinite(low) else None,
        p99_high_ms=_ms(high) if math.isfinite(high) else None,
        slo=f"{objective.name}={1000 * objective.limit_s:g}ms",
        max_rate_per_s=verdict.rate_per_s if contest.seeks_rate else None,
        memory_bytes=memory_of(last),
        accuracy_loss=accuracy.loss if accuracy else None,
    )


def _ms(seconds: float) -> float:
    return float(f"{1000 * seconds:.4g}")
