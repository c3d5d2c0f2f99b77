"""Latency by percentile, and latency against throughput."""

import math
from typing import Any

import altair as alt

from mlserve.report.rates import RateCurve, rate_curves
from mlserve.report.render.chart import (
    FAINT,
    Chart,
    ChartGroup,
    Key,
    LatencyAxis,
    Layer,
    Panel,
    axes,
    colour,
    finish,
    hints,
    limit_line,
    lines,
    percentiles_said,
    rounded,
    series_colour,
    variant_colours,
)
from mlserve.report.report import Report
from mlserve.report.slo import Slo
from mlserve.units import format_duration, format_rate

__all__ = ["distributions", "throughput_curves"]

# Of the axis that gives each further nine of a percentile the same room.
_NINES = {0.0: "0", -math.log10(0.5): "50", 1.0: "90", 2.0: "99", 3.0: "99.9", 4.0: "99.99", 5.0: "99.999"}
_MOST_CURVES = 8


def distributions(report: Report, panels: list[Panel]) -> ChartGroup:
    """Latency by percentile, one chart a panel."""
    scales = axes(panels, lambda one: one.distribution.latency_s, report.slo)
    return ChartGroup(
        "Latency by percentile",
        "How long the slowest requests wait. A step to the right is ten times as rare; a curve ends where there are "
        "too few answers to go on.",
        tuple(
            finish(
                f"distribution-{number}",
                panel.title,
                f"Latency by percentile, {panel.title}. {percentiles_said(panel.results)}",
                [*limit_line(axis, report.slo), _distribution(panel, axis)],
                legend=panel.legend,
            )
            for number, (panel, axis) in enumerate(zip(panels, scales, strict=True))
        ),
    )


def _distribution(panel: Panel, axis: LatencyAxis) -> Layer:
    values = [
        {
            "variant": one.variant,
            "nines": rounded(-math.log10(1 - q)),
            "faster": f"{100 * q:.6g}%",
            "latency": axis.value(latency_s),
            "opacity": 1.0 if one.valid else FAINT,
        }
        for one in panel.results
        for q, latency_s in zip(one.distribution.q, one.distribution.latency_s, strict=True)
    ]
    deepest = max((-math.log10(1 - q) for one in panel.results for q in one.distribution.q), default=1.0)
    labels = " : ".join(f"datum.value < {nines + 0.01:.4f} ? '{text}%'" for nines, text in _NINES.items()) + " : ''"
    drawing = lines(panel, ("variant:N", "faster:N", axis.tooltip())).encode(
        x=alt.X(
            "nines:Q",
            title="share of requests that are faster",
            axis=alt.Axis(values=[round(nines, 5) for nines in _NINES], labelExpr=labels),
            scale=alt.Scale(domain=[0, rounded(max(deepest, 1.0))], nice=False),
        ),
        y=axis.encoding("latency"),
    )
    return Layer(drawing, values)


def throughput_curves(report: Report) -> ChartGroup | None:
    """Latency against the rate, one chart for all curves of a kind; None where nothing was measured at two rates."""
    curves = rate_curves(report)
    if not curves:
        return None
    axis = LatencyAxis.holding(
        (
            latency_s
            for curve in curves
            for point in curve.points
            for latency_s in (point.low_s, point.latency_s, point.high_s)
        ),
        report.slo,
    )
    families: dict[str, list[RateCurve]] = {}
    for curve in curves:
        families.setdefault(curve.family, []).append(curve)
    pages = [
        (_paged(family, start, len(every)), every[start : start + _MOST_CURVES])
        for family, every in families.items()
        for start in range(0, len(every), _MOST_CURVES)
    ]
    known = variant_colours(report)
    return ChartGroup(
        "Latency against throughput",
        f"{curves[0].percentile} as the load grows, with its 95% interval. Where a curve turns up, the server is full. "
        "Hollow points are INVALID.",
        tuple(_curves(number, family, page, axis, report.slo, known) for number, (family, page) in enumerate(pages)),
    )


def _paged(family: str, start: int, curves: int) -> str:
    """`over gRPC`; `over gRPC: curves 9 to 12` where there are more than one chart holds."""
    if curves <= _MOST_CURVES:
        return family
    return f"{family}: curves {start + 1} to {min(curves, start + _MOST_CURVES)}"


def _curves(
    number: int, family: str, curves: list[RateCurve], axis: LatencyAxis, slo: Slo | None, known: dict[str, str]
) -> Chart:
    names = list(dict.fromkeys(curve.variant for curve in curves))
    distinct = len({known[name] for name in names}) == len(names)
    colours = {name: known[name] if distinct else series_colour(place) for place, name in enumerate(names)}
    values = _rate_values(curves, axis)
    source = alt.Chart().encode(
        x=alt.X(
            "offered:Q",
            title="requests due a second",
            scale=alt.Scale(nice=True, zero=False, padding=12),
            axis=alt.Axis(tickCount=8),
        ),
        color=colour(colours),
        detail=alt.Detail("curve:N"),
    )
    tooltip = (
        "variant:N",
        alt.Tooltip(field="offered", type="quantitative", title="due (1/s)"),
        alt.Tooltip(field="answered", type="quantitative", title="answered (1/s)"),
        axis.tooltip(title=f"{curves[0].percentile} ({axis.unit})"),
        axis.tooltip("low", "from"),
        axis.tooltip("high", "to"),
        "errors:N",
        "certificate:N",
    )
    y = axis.encoding("latency")
    drawings = [
        source.mark_rule(strokeWidth=5, opacity=0.25, clip=True).encode(y=axis.encoding("low"), y2=alt.Y2("high:Q")),
        source.mark_line(strokeWidth=2, clip=True).encode(y=y),
        source.mark_point(size=55, filled=True, strokeWidth=1.5, opacity=1, clip=True).encode(
            y=y,
            fillOpacity=alt.FillOpacity("filled:Q", scale=None),
            stroke=colour(colours, alt.Stroke),
            tooltip=hints(tooltip),
        ),
    ]
    return finish(
        f"rates-{number}",
        family[:1].upper() + family[1:],
        f"Latency against throughput, {family}. " + " ".join(map(_said, curves)),
        [*limit_line(axis, slo), *(Layer(drawing, values) for drawing in drawings)],
        legend=tuple(Key(name, colour) for name, colour in colours.items()),
        height=320,
    )


def _rate_values(curves: list[RateCurve], axis: LatencyAxis) -> list[dict[str, Any]]:
    return [
        {
            "variant": curve.variant,
            "curve": place,
            "offered": rounded(point.offered_per_s),
            "answered": rounded(point.answered_per_s),
            "latency": axis.value(point.latency_s),
            "low": axis.value(point.low_s),
            "high": axis.value(point.high_s),
            "errors": f"{point.error_rate:.2%}",
            "certificate": "VALID" if point.valid else "INVALID",
            "filled": 1.0 if point.valid else 0.0,
        }
        for place, curve in enumerate(curves)
        for point in curve.points
        if point.latency_s is not None
    ]


def _said(curve: RateCurve) -> str:
    points = ", ".join(
        f"{format_duration(point.latency_s)} at {format_rate(point.offered_per_s)}"
        for point in curve.points
        if point.latency_s is not None
    )
    best = f"; the objective is kept up to {format_rate(curve.best_per_s)}" if curve.best_per_s else ""
    return f"{curve.variant}, {curve.percentile}: {points}{best}."
