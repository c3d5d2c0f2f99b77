"""What there is to choose between: latency, accuracy and size of each variant, and where its time goes."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from mlserve.report.breakdown import Parts
from mlserve.report.front import pareto
from mlserve.report.render.chart import (
    Chart,
    ChartGroup,
    Key,
    LatencyAxis,
    Layer,
    Panel,
    colour,
    finish,
    hints,
    limit_line,
    rounded,
)
from mlserve.report.report import Report, Result
from mlserve.report.slo import Slo
from mlserve.units import format_bytes, format_duration

__all__ = ["breakdowns", "trade_offs"]

_PARTS = {
    "before sending": "var(--part-1)",
    "waiting for a batch": "var(--part-2)",
    "model": "var(--part-3)",
    "network, reading, writing": "var(--part-4)",
}


def trade_offs(report: Report, panels: Sequence[Panel]) -> ChartGroup | None:
    """p99 against accuracy, or against size where no accuracy is known; None without two variants to choose from."""
    accurate = any(one.model.accuracy is not None and one.model.accuracy.loss > 0 for one in report.results)
    choices = [(panel, _candidates(panel, accurate=accurate)) for panel in panels]
    choices = [(panel, found) for panel, found in choices if len({one.variant for one in found}) > 1]
    if not choices:
        return None
    every = [one for _, found in choices for one in found]
    axis = LatencyAxis.holding((one.summary.percentile("p99").latency_s for one in every), report.slo).roomier()
    against = "accuracy lost" if accurate else "size"
    return ChartGroup(
        "Speed against accuracy" if accurate else "Speed against size",
        f"Left is faster, down is {'more accurate' if accurate else 'smaller'}"
        + (", a small dot is a small model" if accurate else "")
        + ". Full dots are the Pareto front: no other VALID result is as good in everything and better in something.",
        tuple(
            _trade_off(number, panel, found, axis, report.slo, against) for number, (panel, found) in enumerate(choices)
        ),
    )


def _candidates(panel: Panel, *, accurate: bool) -> list[Result]:
    return [
        one
        for one in panel.results
        if one.valid
        and one.summary.percentile("p99").latency_s is not None
        and (_loss(one) is not None if accurate else one.model.size_bytes)
    ]


def _loss(result: Result) -> float | None:
    if result.model.accuracy is not None:
        return result.model.accuracy.loss
    return 0.0 if result.model.variant == "fp32" else None


def _trade_off(
    number: int, panel: Panel, results: Sequence[Result], axis: LatencyAxis, slo: Slo | None, against: str
) -> Chart:
    accurate = against != "size"
    figures = [
        (one.summary.percentile("p99").latency_s or 0.0, _loss(one) or 0.0, float(one.model.size_bytes or 0))
        for one in results
    ]
    on_front = pareto(figures)
    values = [
        {
            "variant": one.variant,
            "latency": axis.value(latency_s),
            "against": rounded(100 * loss if accurate else size_bytes / 1e6),
            "megabytes": rounded(size_bytes / 1e6),
            "accuracy": f"{loss:.2%} lost",
            "size": format_bytes(size_bytes) if size_bytes else "unknown",
            "front": "on the front" if best else "beaten",
            "filled": 0.85 if best else 0.0,
        }
        for one, (latency_s, loss, size_bytes), best in zip(results, figures, on_front, strict=True)
    ]
    highest = max(float(str(one["against"])) for one in values) or 1.0
    y = alt.Y(
        "against:Q",
        title="accuracy lost (%)" if accurate else "size (MB)",
        scale=alt.Scale(domain=[rounded(-0.08 * highest), rounded(1.15 * highest)], nice=False),
        axis=alt.Axis(tickCount=5),
    )
    title = f"p99 ({axis.unit})"
    x = axis.encoding("latency", alt.X, title)
    front = sorted(
        (one for one in values if one["front"] == "on the front"), key=lambda one: float(str(one["latency"]))
    )
    source = alt.Chart().encode(x=x, y=y)
    sizes = alt.Size("megabytes:Q", scale=alt.Scale(range=[90, 500], zero=True), legend=None)
    dots = source.mark_point(filled=True, strokeWidth=2, opacity=1, clip=True).encode(
        color=colour(panel.colours),
        stroke=colour(panel.colours, alt.Stroke),
        fillOpacity=alt.FillOpacity("filled:Q", scale=None),
        tooltip=hints(["variant:N", axis.tooltip(title=title), "accuracy:N", "size:N", "front:N"]),
        **({"size": sizes} if accurate else {"size": alt.value(140)}),
    )
    names = source.mark_text(align="left", dx=15, dy=-9, fontSize=11, color="var(--ink)").encode(
        text=alt.Text("variant:N")
    )
    path = alt.Chart().mark_line(
        color="var(--soft)", strokeDash=[2, 3], strokeWidth=1, interpolate="step-after", clip=True
    )
    best = ", ".join(str(one["variant"]) for one in front)
    return finish(
        f"choice-{number}",
        panel.title,
        f"p99 latency against {against}, {panel.title}. On the Pareto front: {best}. "
        + " ".join(
            f"{one['variant']}: {one['latency']} {axis.unit}, {one['accuracy']}, {one['size']}." for one in values
        ),
        [
            *limit_line(axis, slo, upright=title),
            Layer(path.encode(x=x, y=y), front),
            Layer(names, values),
            Layer(dots, values),
        ],
        legend=panel.legend,
    )


def breakdowns(report: Report, panels: Sequence[Panel]) -> ChartGroup | None:
    """Where the time of the answers went, one chart a panel; None where no server said so."""
    told = [panel for panel in panels if any(one.breakdown for one in panel.results)]
    if not told:
        return None
    parts = [parts for one in report.results for _, parts in _bars(one)]
    axis = LatencyAxis.holding(
        parts.before_sending_s + parts.queue_s + parts.compute_s + parts.elsewhere_s for parts in parts
    )
    return ChartGroup(
        "Where the time went",
        "Means, which add up, of the requests whose server said how long they waited and ran; below, the slowest "
        "twentieth of them, where there are enough.",
        tuple(_breakdown(number, panel, axis) for number, panel in enumerate(told)),
    )


def _bars(result: Result) -> list[tuple[str, Parts]]:
    found = result.breakdown
    if found is None:
        return []
    slowest = [(f"{result.variant}, slowest 5%", found.slowest)] if found.slowest else []
    return [(result.variant, found.every), *slowest]


def _breakdown(number: int, panel: Panel, axis: LatencyAxis) -> Chart:
    bars = [bar for one in panel.results for bar in _bars(one)]
    values: list[dict[str, Any]] = []
    for name, parts in bars:
        times = (parts.before_sending_s, parts.queue_s, parts.compute_s, parts.elsewhere_s)
        values += [
            {"bar": name, "part": part, "place": place, "time": axis.value(time_s), "requests": parts.requests}
            for place, (part, time_s) in enumerate(zip(_PARTS, times, strict=True))
        ]
    drawing = (
        alt.Chart()
        .mark_bar(height={"band": 0.62})
        .encode(
            x=alt.X(
                "time:Q",
                title=f"mean time ({axis.unit})",
                stack="zero",
                axis=alt.Axis(tickCount=5),
                scale=alt.Scale(domain=[0, rounded(axis.most)], nice=True),
            ),
            y=alt.Y("bar:N", title=None, sort=[name for name, _ in bars], axis=alt.Axis(domain=False, ticks=False)),
            color=alt.Color("part:N", scale=alt.Scale(domain=list(_PARTS), range=list(_PARTS.values())), legend=None),
            order=alt.Order("place:Q"),
            tooltip=hints(["bar:N", "part:N", axis.tooltip("time", f"mean ({axis.unit})"), "requests:Q"]),
        )
    )
    said = " ".join(
        f"{name}: {format_duration(parts.queue_s)} waiting, {format_duration(parts.compute_s)} in the model, "
        f"{format_duration(parts.elsewhere_s)} elsewhere."
        for name, parts in bars
    )
    return finish(
        f"parts-{number}",
        panel.title,
        f"Where the time went, {panel.title}. {said}",
        [Layer(drawing, values)],
        legend=tuple(Key(part, colour) for part, colour in _PARTS.items()),
        zoom=(),
        height=30 * len(bars) + 10,
    )
