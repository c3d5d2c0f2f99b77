"""How the variants of a model are shown: ranked in a table, drawn, and with what is to be said of each."""

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from mlserve.cli.scatter import Dot, scatter
from mlserve.cli.terminal import err, out
from mlserve.units import format_bytes, format_duration, format_ratio

if TYPE_CHECKING:
    from mlserve.model.artifact import Accuracy, Artifact, Latency
    from mlserve.optimize.evaluation.search import Trial
    from mlserve.optimize.variants import Outcome

__all__ = ["facts", "print_outcome"]

_MARKS = "0123456789abcdefghijklmnopqrstuvwxyz" + 1000 * "*"
_FEWEST_DRAWN = 3


def facts(outcome: "Outcome") -> dict[str, object]:
    """The outcome for programs."""
    return {
        "published": [{"ref": artifact.ref, **_facts(artifact)} for artifact in outcome.published],
        "measured": [_facts(artifact) for artifact in outcome.measured],
        "refused": outcome.refused,
        "dominated_by": outcome.beaten,
        "trade_offs": outcome.trade_offs,
    }


def print_outcome(outcome: "Outcome") -> None:
    """The table, the fastest first after the model as imported; the chart; then remarks."""
    from mlserve.optimize.auto import speed_of

    baseline, *others = outcome.measured
    ranked = [baseline, *sorted(others, key=speed_of, reverse=True)]
    _print_table(ranked, outcome)
    if len(ranked) >= _FEWEST_DRAWN:
        _print_chart(ranked)
    for variant, trials in outcome.trade_offs.items():
        _print_trade_off(variant, trials)
    for variant, reason in outcome.refused.items():
        err.print(f"[yellow]left out:[/] {escape(variant)}: {escape(reason)}", highlight=False)
    _print_remarks(outcome)


def _facts(artifact: "Artifact") -> dict[str, object]:
    manifest = artifact.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "variant": manifest.variant,
        "format": manifest.format,
        "engine": manifest.engine,
        "compute_type": manifest.compute_type,
        "directory": str(artifact.directory) if manifest.version else "",
        "size_bytes": artifact.size_bytes,
        "inputs": manifest.inputs,
        "outputs": manifest.outputs,
        "labels": manifest.labels,
        "rows_independent": manifest.rows_independent,
        "assumed": manifest.assumed,
        "lineage": manifest.lineage,
        "metrics": manifest.metrics,
    }


def _print_table(ranked: list["Artifact"], outcome: "Outcome") -> None:
    baseline = ranked[0]
    accuracy, latencies = baseline.manifest.metrics.accuracy, baseline.manifest.metrics.latency
    reference = baseline.manifest.variant
    title = f"{outcome.published[0].manifest.name}: in process, times and speed against {reference}"
    table = Table(title=title, title_justify="left")
    for heading in ("", "variant", "size", accuracy.metric if accuracy else "accuracy", "loss\nat most"):
        table.add_column(heading, no_wrap=True)
    for latency in latencies:
        table.add_column(f"{latency.batch_rows} row{'s' * (latency.batch_rows > 1)}", no_wrap=True)
    for mark, artifact in zip(_MARKS, ranked, strict=False):
        table.add_row(mark, _named(artifact, outcome), *_row(artifact, baseline))
    out.print(table)
    if accuracy:
        rows = accuracy.split or f"{accuracy.rows} rows"
        where = baseline.manifest.metrics.machine
        text = f"{accuracy.basis} on {accuracy.data}, {rows}; timed on {where}"
        out.print(text, style="dim", markup=False, highlight=False)


def _named(artifact: "Artifact", outcome: "Outcome") -> str:
    """The variant, and what became of it."""
    variant = artifact.manifest.variant
    published = next((one.ref for one in outcome.published if one.manifest.variant == variant), "")
    beaten_by = outcome.beaten.get(variant, "")
    return f"{variant}\n[dim]{published or (f'{beaten_by} is better' if beaten_by else 'not the fastest')}[/]"


def _row(artifact: "Artifact", baseline: "Artifact") -> list[str]:
    metrics, reference = artifact.manifest.metrics, artifact is baseline
    accuracy, size = metrics.accuracy, format_bytes(artifact.size_bytes)
    return [
        size if reference else f"{size}\n{format_ratio(artifact.size_bytes / baseline.size_bytes)}",
        f"{accuracy.value:.4f}" if accuracy else "-",
        _loss(accuracy, reference=reference),
        *(_time(latency, reference=reference) for latency in metrics.latency),
    ]


def _loss(accuracy: "Accuracy | None", *, reference: bool) -> str:
    if accuracy is None or reference:
        return "-"
    bound = "?" if accuracy.loss_high is None else f"{accuracy.loss_high:.4f}"
    return f"{accuracy.loss:.4f}\n{bound}"


def _time(latency: "Latency", *, reference: bool) -> str:
    text = format_duration(latency.p50_s)
    return text if reference else f"{text}\n{format_ratio(1 / latency.against_fp32)}"


def _print_chart(ranked: list["Artifact"]) -> None:
    """Accuracy lost against speed: the upper left corner is where one wants to be."""
    from mlserve.optimize.auto import speed_of

    dots = [
        Dot(mark, accuracy.loss, speed_of(artifact))
        for mark, artifact in zip(_MARKS, ranked, strict=False)
        if (accuracy := artifact.manifest.metrics.accuracy)
    ]
    reference = ranked[0].manifest.variant
    out.print(scatter(dots, "loss", f"speed (times {reference}'s)"), highlight=False, markup=False)


def _print_trade_off(variant: str, trials: tuple["Trial", ...]) -> None:
    table = Table(
        "layers kept",
        "loss",
        "at most (95%)",
        "size",
        "",
        title=f"{variant}: accuracy for size, on the rows set aside",
        title_justify="left",
    )
    for trial in trials:
        verdict = "holds" if trial.holds else "loses too much"
        table.add_row(
            str(len(trial.kept)), f"{trial.loss:.4f}", f"{trial.loss_high:.4f}", format_bytes(trial.size_bytes), verdict
        )
    out.print(table)


def _print_remarks(outcome: "Outcome") -> None:
    baseline = outcome.published[0]
    for assumed in baseline.manifest.assumed:
        err.print(f"[yellow]assumed:[/] {escape(assumed)}", highlight=False)
    if not baseline.manifest.rows_independent:
        err.print(
            "[yellow]note:[/] requests for this model are not batched: its rows cannot run together", highlight=False
        )
    reference = baseline.manifest.variant
    for artifact in outcome.published:
        lineage = artifact.manifest.lineage
        for step in lineage if artifact is baseline else lineage[len(baseline.manifest.lineage) :]:
            notes = f"  {artifact.manifest.variant}: {step.step}: {'; '.join(step.notes)}"
            out.print(notes, style="dim", highlight=False, markup=False)
        latencies = artifact.manifest.metrics.latency
        if artifact is not baseline and latencies and all(latency.against_fp32 > 1.0 for latency in latencies):
            err.print(
                f"[yellow]note:[/] {artifact.manifest.variant} is not faster than {reference} here; see why with: "
                f"mlserve diagnose {artifact.ref}",
                highlight=False,
            )
    out.print(f"serve it with: [bold]mlserve serve {outcome.published[-1].ref}[/]", highlight=False)
