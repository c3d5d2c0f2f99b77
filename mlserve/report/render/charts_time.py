"""The course of a run: latency with warm-up and stalls, throughput, and what the processes used."""

from collections.abc import Callable, Sequence
from typing import Any

import altair as alt

from mlserve.report.render.chart import (
    FAINT,
    Chart,
    ChartGroup,
    LatencyAxis,
    Layer,
    Panel,
    axes,
    finish,
    limit_line,
    lines,
    percentiles_said,
    rounded,
)
from mlserve.report.report import Report, Result
from mlserve.report.usage import Usage
from mlserve.units import format_bytes, format_duration, format_rate

__all__ = ["resources", "throughputs", "timelines"]

_DUE = "var(--due)"


def timelines(report: Report, panels: Sequence[Panel]) -> ChartGroup:
    """p50 and p99 over the run, one chart a panel."""
    scales = axes(panels, lambda one: [latency_s for _, _, latency_s in _course(one)], report.slo)
    return ChartGroup(
        "Latency over time",
        "p99 solid, p50 dashed; repeats are laid over each other. Grey is the warm-up, which no figure counts; red are "
        "stalls: requests were due, and none was answered. A slope means that the server did not keep up.",
        tuple(
            finish(
                f"timeline-{number}",
                panel.title,
                f"p50 and p99 latency over the run, {panel.title}. {percentiles_said(panel.results)}"
                + "".join(map(_stalls_said, panel.results)),
                [*_marks(panel), *limit_line(axis, report.slo), _timeline(panel, axis)],
                legend=panel.legend,
            )
            for number, (panel, axis) in enumerate(zip(panels, scales, strict=True))
        ),
    )


def throughputs(panels: Sequence[Panel]) -> ChartGroup | None:
    """Requests due and answered a second over the run, one chart a panel; None where no run has two stretches."""
    panels = [panel for panel in panels if any(len(one.timeline.at_s) > 1 for one in panel.results)]
    if not panels:
        return None
    return ChartGroup(
        "Throughput over time",
        "Requests answered a second; what was due is the broad grey line behind.",
        tuple(
            finish(
                f"throughput-{number}",
                panel.title,
                f"Requests due and requests answered a second over the run, {panel.title}. "
                + "; ".join(
                    f"{one.variant}: {format_rate(one.summary.answered_per_s)} of "
                    f"{format_rate(one.summary.offered_per_s)}"
                    for one in panel.results
                ),
                _throughput(panel),
                legend=panel.legend,
            )
            for number, panel in enumerate(panels)
        ),
    )


def resources(panels: Sequence[Panel]) -> ChartGroup | None:
    """Cores, memory and GPU over the run, one chart each for each panel; None where no run has readings."""
    charts = [
        chart
        for number, panel in enumerate(panels)
        for chart in (_cores(number, panel), _memory(number, panel), _gpu(number, panel))
        if chart is not None
    ]
    if not charts:
        return None
    return ChartGroup(
        "Resources over time",
        "What all processes of the server used together, warm-up included; repeats are averaged.",
        tuple(charts),
    )


def _course(result: Result) -> list[tuple[str, float, float | None]]:
    """Figure, instant, latency; the warm-up first, so that a line goes on from it."""
    line, before = result.timeline, result.timeline.warm_up
    points: list[tuple[str, float, float | None]] = []
    for figure, earlier, later in (
        ("p50", before.p50_s if before else (), line.p50_s),
        ("p99", before.p99_s if before else (), line.p99_s),
    ):
        at_s = (*(before.at_s if before else ()), *line.at_s)
        points += [(figure, at, latency_s) for at, latency_s in zip(at_s, (*earlier, *later), strict=True)]
    return points


def _timeline(panel: Panel, axis: LatencyAxis) -> Layer:
    values = [
        {
            "variant": one.variant,
            "figure": figure,
            "at": rounded(at_s),
            "latency": axis.value(latency_s),
            "opacity": 1.0 if one.valid else FAINT,
        }
        for one in panel.results
        for figure, at_s, latency_s in _course(one)
    ]
    drawing = lines(panel, ("variant:N", "figure:N", _second(), axis.tooltip())).encode(
        x=_seconds_axis(panel),
        y=axis.encoding("latency"),
        strokeDash=alt.StrokeDash(
            "figure:N", scale=alt.Scale(domain=["p99", "p50"], range=[[1, 0], [4, 3]]), legend=None
        ),
    )
    return Layer(drawing, values)


def _marks(panel: Panel) -> list[Layer]:
    """Where the warm-up was, and the stalls."""
    x = _seconds_axis(panel)
    marks: list[Layer] = []
    warm_s = _warm_up_s(panel)
    if warm_s:
        band = alt.Chart().mark_rect(color="var(--band)", clip=True)
        tooltip = alt.Tooltip(field="what", type="nominal", title=" ")
        rows = [{"at": -rounded(warm_s), "end": 0, "what": "warm-up"}]
        marks.append(Layer(band.encode(x=x, x2=alt.X2("end:Q"), tooltip=tooltip), rows))
    stalls = [
        {
            "at": rounded(stall.at_s),
            "end": rounded(stall.at_s + stall.duration_s),
            "stall": f"{format_duration(stall.duration_s)}, {stall.due:,} requests due",
            "variant": one.variant,
        }
        for one in panel.results
        for stall in one.timeline.stalls
    ]
    if stalls:
        told = [alt.Tooltip("variant:N"), alt.Tooltip(field="stall", type="nominal")]
        look = {"color": "var(--bad)", "clip": True}
        rect = alt.Chart().mark_rect(**look, opacity=0.18).encode(x=x, x2=alt.X2("end:Q"), tooltip=told)
        edge = alt.Chart().mark_rule(**look, opacity=0.6, strokeWidth=1).encode(x=x, tooltip=told)
        marks += [Layer(rect, stalls), Layer(edge, stalls)]
    return marks


def _stalls_said(result: Result) -> str:
    stalls = result.timeline.stalls
    if not stalls:
        return ""
    longest_s = max(stall.duration_s for stall in stalls)
    return f" {result.variant}: {len(stalls)} stalls, the longest {format_duration(longest_s)}."


def _throughput(panel: Panel) -> list[Layer]:
    answered: list[dict[str, Any]] = [
        {
            "variant": one.variant,
            "at": rounded(at_s),
            "rate": rounded(rate),
            "due": rounded(due),
            "opacity": 1.0 if one.valid else FAINT,
        }
        for one in panel.results
        for at_s, rate, due in zip(
            one.timeline.at_s, one.timeline.answered_per_s, one.timeline.offered_per_s, strict=True
        )
    ]
    highest = max((max(one["rate"], one["due"]) for one in answered), default=1.0)
    x = _seconds_axis(panel, warm_up=False)
    due = alt.Chart().mark_line(color=_DUE, strokeWidth=6, clip=True)
    rates = [alt.Tooltip(field=name, type="quantitative", title=f"{name} (1/s)") for name in ("rate", "due")]
    shown = due.encode(x=x, y=_from_zero("due:Q", "requests/s", highest), detail=alt.Detail("variant:N"))
    drawing = lines(panel, ("variant:N", _second(), *rates)).encode(x=x, y=_from_zero("rate:Q", "requests/s", highest))
    return [Layer(shown, answered), Layer(drawing, answered)]


def _cores(number: int, panel: Panel) -> Chart | None:
    return _used(
        f"cores-{number}", "cores in use", panel, lambda used: used.server_cores, lambda cores: f"{cores:.2f} cores"
    )


def _memory(number: int, panel: Panel) -> Chart | None:
    return _used(
        f"memory-{number}", "memory", panel, lambda used: used.server_bytes, format_bytes, scale=1e-6, unit="MB"
    )


def _gpu(number: int, panel: Panel) -> Chart | None:
    return _used(
        f"gpu-{number}",
        "GPU in use",
        panel,
        lambda used: used.gpu_utilization,
        lambda share: f"{share:.0%}",
        scale=100,
        unit="%",
    )


def _used(
    element: str,
    what: str,
    panel: Panel,
    read: Callable[[Usage], tuple[float | None, ...]],
    said: Callable[[float], str],
    *,
    scale: float = 1.0,
    unit: str = "",
) -> Chart | None:
    used = [(one, one.usage.at_s, read(one.usage)) for one in panel.results if one.usage is not None]
    values = [
        {
            "variant": one.variant,
            "at": rounded(at_s),
            "value": rounded(value * scale),
            "opacity": 1.0 if one.valid else FAINT,
        }
        for one, every_s, read_values in used
        for at_s, value in zip(every_s, read_values, strict=True)
        if value is not None
    ]
    if not values:
        return None
    title = f"{what} ({unit})" if unit else what
    highest = "; ".join(
        f"{one.variant}: at most {said(max(known))}"
        for one, _, read_values in used
        if (known := [value for value in read_values if value is not None])
    )
    drawing = lines(
        panel, ("variant:N", _second(), alt.Tooltip(field="value", type="quantitative", title=title))
    ).encode(
        x=_seconds_axis(panel),
        y=_from_zero("value:Q", title, max(float(str(one["value"])) for one in values)),
    )
    caption = f"{what[:1].upper()}{what[1:]}, {panel.title}"
    return finish(
        element,
        caption,
        f"{caption}. {highest}.",
        [*_marks(panel)[:1], Layer(drawing, values)],
        legend=panel.legend,
        height=160,
    )


def _from_zero(field: str, title: str, highest: float) -> Any:
    """From zero, with room above the highest: a scale that can be zoomed is not rounded up to the next tick."""
    scale = alt.Scale(domain=[0, rounded(1.12 * highest or 1.0)], nice=False)
    return alt.Y(field, title=title, scale=scale, axis=alt.Axis(tickCount=5))


def _second() -> Any:
    return alt.Tooltip(field="at", type="quantitative", format=".1f", title="second")


def _warm_up_s(panel: Panel) -> float:
    """How far before the measured part anything is known."""
    starts = [one.timeline.warm_up.at_s[0] for one in panel.results if one.timeline.warm_up]
    widths = [one.timeline.warm_up.at_s[-1] for one in panel.results if one.timeline.warm_up]
    # Each is the middle of its stretch, and the last one ends at 0.
    return max((-(start + width) for start, width in zip(starts, widths, strict=True)), default=0.0)


def _seconds_axis(panel: Panel, *, warm_up: bool = True) -> Any:
    last = max(one.timeline.stretch_s * len(one.timeline.at_s) for one in panel.results)
    first = -_warm_up_s(panel) if warm_up else 0.0
    scale = alt.Scale(domain=[rounded(first), rounded(last)], nice=False)
    return alt.X("at:Q", title="seconds into the measured part", scale=scale, axis=alt.Axis(tickCount=6))
