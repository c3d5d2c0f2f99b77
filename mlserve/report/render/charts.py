"""The charts of a page as Vega-Lite. Colours are CSS variables, so that light, dark and paper are the page's matter."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import msgspec

from mlserve.report.report import Report, Result
from mlserve.units import format_duration, format_rate

__all__ = ["Chart", "ChartGroup", "chart_groups", "series_colour"]

_COLOURS = 8
_HEIGHT = 230
_FAINT = 0.35
# Of the axis that gives each further nine of a percentile the same room.
_NINES = {0.0: "0", -math.log10(0.5): "50", 1.0: "90", 2.0: "99", 3.0: "99.9", 4.0: "99.99", 5.0: "99.999"}
_SOFT, _GRID, _DUE = "var(--soft)", "var(--grid)", "var(--due)"
# Beyond this ratio of the slowest to the fastest, a scale from zero would show nothing but the slowest.
_MOST_LINEAR = 50


class Chart(msgspec.Struct, frozen=True):
    """One drawing: where it stands (`element`), what is above it, what it says to who cannot see it."""

    element: str
    title: str
    description: str
    spec: dict[str, Any]


class ChartGroup(msgspec.Struct, frozen=True):
    """Drawings of one kind, one a load, on the same scale."""

    title: str
    note: str
    charts: tuple[Chart, ...]


def series_colour(number: int) -> str:
    """The CSS colour of the variant with this number."""
    return f"var(--series-{number % _COLOURS + 1})"


def chart_groups(report: Report) -> list[ChartGroup]:
    """Every chart of the page."""
    variants = list(dict.fromkeys(result.variant for result in report.results))
    by_load: dict[str, list[Result]] = {}
    for result in report.results:
        by_load.setdefault(result.load, []).append(result)
    return [_distributions(by_load, variants), _timelines(by_load, variants), _throughputs(by_load, variants)]


def _distributions(by_load: dict[str, list[Result]], variants: Sequence[str]) -> ChartGroup:
    axis = _LatencyAxis.holding(
        latency_s for results in by_load.values() for one in results for latency_s in one.distribution.latency_s
    )
    charts = [
        _chart(
            f"distribution-{number}",
            load,
            f"Latency by percentile, {load}. {_percentiles(results)}",
            _distribution(results, variants, axis),
        )
        for number, (load, results) in enumerate(by_load.items())
    ]
    return ChartGroup(
        "Latency by percentile",
        "How long the slowest requests wait. A step to the right is ten times as rare; a curve ends where there are "
        "too few answers to go on.",
        tuple(charts),
    )


def _timelines(by_load: dict[str, list[Result]], variants: Sequence[str]) -> ChartGroup:
    lines = [
        line for results in by_load.values() for one in results for line in (one.timeline.p50_s, one.timeline.p99_s)
    ]
    axis = _LatencyAxis.holding(latency_s for line in lines for latency_s in line if latency_s is not None)
    charts = [
        _chart(
            f"timeline-{number}",
            load,
            f"p50 and p99 latency over the run, {load}. {_percentiles(results)}",
            _timeline(results, variants, axis),
        )
        for number, (load, results) in enumerate(by_load.items())
    ]
    return ChartGroup(
        "Latency over time",
        "p99 solid, p50 dashed; repeats are laid over each other. A slope means that the server did not keep up or was "
        "still warming up.",
        tuple(charts),
    )


def _throughputs(by_load: dict[str, list[Result]], variants: Sequence[str]) -> ChartGroup:
    charts = [
        _chart(
            f"throughput-{number}",
            load,
            f"Requests due and requests answered a second over the run, {load}. "
            + "; ".join(
                f"{one.variant}: {format_rate(one.summary.answered_per_s)} of {format_rate(one.summary.offered_per_s)}"
                for one in results
            ),
            _throughput(results, variants),
        )
        for number, (load, results) in enumerate(by_load.items())
    ]
    return ChartGroup(
        "Throughput", "Requests answered a second; what was due is the broad grey line behind.", tuple(charts)
    )


class _LatencyAxis(msgspec.Struct, frozen=True):
    """One scale for all charts of a group: from zero, or logarithmic where the slowest would flatten all else."""

    unit: str
    factor: float
    least: float
    most: float

    @classmethod
    def holding(cls, latencies_s: Iterable[float]) -> "_LatencyAxis":
        """A scale that holds every one of `latencies_s`."""
        values = [latency_s for latency_s in latencies_s if latency_s > 0] or [1e-3]
        unit, factor = next(
            ((unit, factor) for unit, factor in (("us", 1e6), ("ms", 1e3)) if max(values) * factor < 1000), ("s", 1.0)
        )
        return cls(unit, factor, min(values) * factor, max(values) * factor)

    def encoding(self, field: str) -> Any:
        """The y channel that shows `field`."""
        if self.most > _MOST_LINEAR * self.least:
            scale = alt.Scale(type="log", domain=[self.least, self.most], nice=True)
        else:
            scale = alt.Scale(domain=[0, self.most], nice=True)
        return alt.Y(f"{field}:Q", title=f"latency ({self.unit})", scale=scale, axis=alt.Axis(tickCount=5))


def _distribution(results: Sequence[Result], variants: Sequence[str], axis: _LatencyAxis) -> Any:
    values = [
        {
            "variant": one.variant,
            "nines": -math.log10(1 - q),
            "percentile": f"p{100 * q:.6g}",
            "latency": latency_s * axis.factor,
            "shown": format_duration(latency_s),
            "opacity": 1.0 if one.valid else _FAINT,
        }
        for one in results
        for q, latency_s in zip(one.distribution.q, one.distribution.latency_s, strict=True)
    ]
    deepest = max((-math.log10(1 - q) for one in results for q in one.distribution.q), default=1.0)
    labels = " : ".join(f"datum.value < {nines + 0.01:.4f} ? '{text}%'" for nines, text in _NINES.items()) + " : ''"
    return _lines(values, variants, tooltip=("variant", "percentile", "shown")).encode(
        x=alt.X(
            "nines:Q",
            title="share of requests that are faster",
            axis=alt.Axis(values=list(_NINES), labelExpr=labels),
            scale=alt.Scale(domain=[0, deepest], nice=False),
        ),
        y=axis.encoding("latency"),
    )


def _timeline(results: Sequence[Result], variants: Sequence[str], axis: _LatencyAxis) -> Any:
    values = [
        {
            "variant": one.variant,
            "figure": figure,
            "at": at_s,
            "latency": None if latency_s is None else latency_s * axis.factor,
            "shown": "none answered" if latency_s is None else format_duration(latency_s),
            "opacity": 1.0 if one.valid else _FAINT,
        }
        for one in results
        for figure, line in (("p50", one.timeline.p50_s), ("p99", one.timeline.p99_s))
        for at_s, latency_s in zip(one.timeline.at_s, line, strict=True)
    ]
    return _lines(values, variants, tooltip=("variant", "figure", "at", "shown")).encode(
        x=_seconds_axis(results),
        y=axis.encoding("latency"),
        strokeDash=alt.StrokeDash(
            "figure:N", scale=alt.Scale(domain=["p99", "p50"], range=[[1, 0], [4, 3]]), legend=None
        ),
    )


def _throughput(results: Sequence[Result], variants: Sequence[str]) -> Any:
    answered = [
        {
            "variant": one.variant,
            "at": at_s,
            "rate": rate,
            "shown": format_rate(rate),
            "opacity": 1.0 if one.valid else _FAINT,
        }
        for one in results
        for at_s, rate in zip(one.timeline.at_s, one.timeline.answered_per_s, strict=True)
    ]
    offered = [
        {"variant": one.variant, "at": at_s, "rate": rate}
        for one in results
        for at_s, rate in zip(one.timeline.at_s, one.timeline.offered_per_s, strict=True)
    ]
    rate = alt.Y("rate:Q", title="requests/s", scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=5))
    x = _seconds_axis(results)
    due = alt.Chart(alt.Data(values=offered)).mark_line(color=_DUE, strokeWidth=6)
    return due.encode(x=x, y=rate, detail="variant:N") + _lines(
        answered, variants, tooltip=("variant", "at", "shown")
    ).encode(x=x, y=rate)


def _lines(values: list[dict[str, Any]], variants: Sequence[str], *, tooltip: Sequence[str]) -> Any:
    """One line a variant, in its colour; INVALID results are faint. Unseen points carry the tooltips."""
    colours = alt.Scale(domain=list(variants), range=[series_colour(number) for number in range(len(variants))])
    return (
        alt.Chart(alt.Data(values=values))
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(opacity=0, size=90))
        .encode(
            color=alt.Color("variant:N", scale=colours, legend=None),
            strokeOpacity=alt.StrokeOpacity("opacity:Q", scale=None),
            tooltip=[alt.Tooltip(field=field, type="nominal") for field in tooltip],
        )
    )


def _seconds_axis(results: Sequence[Result]) -> Any:
    last = max(one.timeline.stretch_s * len(one.timeline.at_s) for one in results)
    scale = alt.Scale(domain=[0, last], nice=False)
    return alt.X("at:Q", title="seconds into the measured part", scale=scale, axis=alt.Axis(tickCount=6))


def _percentiles(results: Sequence[Result]) -> str:
    """What the curves say, for who cannot see them."""
    return " ".join(
        f"{one.variant}: "
        + ", ".join(
            f"{p.name} {format_duration(p.latency_s)}" for p in one.summary.percentiles if p.latency_s is not None
        )
        + "."
        for one in results
    )


def _chart(element: str, title: str, description: str, drawing: Any) -> Chart:
    axis = {
        "labelColor": _SOFT,
        "titleColor": _SOFT,
        "gridColor": _GRID,
        "domainColor": _GRID,
        "tickColor": _GRID,
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "labelFlush": True,
    }
    config = {"background": "transparent", "font": "system-ui, sans-serif", "axis": axis, "view": {"stroke": None}}
    drawing = drawing.properties(width="container", height=_HEIGHT, description=description).configure(**config)
    return Chart(element, title, description, drawing.to_dict())
