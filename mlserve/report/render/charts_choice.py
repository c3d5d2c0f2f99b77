"""What there is to choose between: latency, accuracy, size and cost of each variant, and where its time
goes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import altair as alt
import msgspec

from mlserve.report.breakdown import Parts
from mlserve.report.front import pareto
from mlserve.report.render.chart import (
    SOFT,
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
    variant_colours,
)
from mlserve.report.report import Report, Result
from mlserve.report.slo import Slo
from mlserve.units import format_bytes, format_duration, format_rate

__all__ = ["breakdowns", "trade_offs"]

_ON_FRONT = "on the front"
_MOST_NAMED = 8

_PARTS = {
    "before sending": "var(--part-1)",
    "waiting for a batch": "var(--part-2)",
    "model": "var(--part-3)",
    "network, reading, writing": "var(--part-4)",
}


class _Way(msgspec.Struct, frozen=True):
    """What latency is weighed against: `read` gives it in the axis' unit, None where it is unknown."""

    element: str
    title: str
    what: str
    axis: str
    lower: str
    read: Callable[[Result], float | None]


def trade_offs(report: Report, panels: Sequence[Panel]) -> list[ChartGroup]:
    """p99 against accuracy, or against size where no accuracy is known; and against what a request costs, where the
    server's CPU time is known. None of what fewer than two variants or settings tell.
    """
    accurate = any(one.model.accuracy is not None and one.model.accuracy.loss > 0 for one in report.results)
    ways = [_ACCURACY if accurate else _SIZE, _cost_way(report)]
    groups = [_group(report, _comparable(report, panels), way) for way in ways]
    return [group for group in groups if group is not None]


def _comparable(report: Report, panels: Sequence[Panel]) -> Sequence[Panel]:
    """A search at one rate measured settings to choose between, so they stand in one panel; else a panel a load."""
    if report.choice is None or report.choice.rate_per_s is None:
        return panels
    title = f"Every setting that was measured at {format_rate(report.choice.rate_per_s)}"
    return [Panel(title, report.results, variant_colours(report))]


def _group(report: Report, panels: Sequence[Panel], way: _Way) -> ChartGroup | None:
    choices = [(panel, _candidates(panel, way)) for panel in panels]
    choices = [(panel, found) for panel, found in choices if len({(one.variant, one.load) for one in found}) > 1]
    if not choices:
        return None
    every = [one for _, found in choices for one in found]
    axis = LatencyAxis.holding((one.summary.percentile("p99").latency_s for one in every), report.slo).roomier()
    figures = ["p99", *(name for name, read in _FIGURES.items() if _known_of_all(read, every))]
    return ChartGroup(
        way.title,
        f"Left is faster, down is {way.lower}"
        + (", a small dot is a small model" if way is _ACCURACY else "")
        + f". Full dots are the Pareto front: no other VALID result is as good in {_listed(figures)} and better in one "
        "of them.",
        tuple(_trade_off(number, panel, found, axis, report.slo, way) for number, (panel, found) in enumerate(choices)),
    )


def _candidates(panel: Panel, way: _Way) -> list[Result]:
    return [
        one
        for one in panel.results
        if one.valid and one.summary.percentile("p99").latency_s is not None and way.read(one) is not None
    ]


def _loss(result: Result) -> float | None:
    if result.model.accuracy is not None:
        return result.model.accuracy.loss
    return 0.0 if result.model.variant == "fp32" else None


def _size_bytes(result: Result) -> float | None:
    return float(result.model.size_bytes) if result.model.size_bytes else None


def _cpu_s(result: Result) -> float | None:
    """Of all the server's processes, for each request answered well in the measured part."""
    used, answered = result.usage, result.summary.answered_per_s
    if used is None or not answered:
        return None
    cores = [value for at_s, value in zip(used.at_s, used.server_cores, strict=True) if at_s > 0 and value is not None]
    return sum(cores) / len(cores) / answered if cores else None


_FIGURES: dict[str, Callable[[Result], float | None]] = {
    "accuracy": _loss,
    "size": _size_bytes,
    "CPU time a request": _cpu_s,
}


def _times(read: Callable[[Result], float | None], factor: float) -> Callable[[Result], float | None]:
    def scaled(result: Result) -> float | None:
        value = read(result)
        return None if value is None else factor * value

    return scaled


_ACCURACY = _Way(
    "choice", "Speed against accuracy", "accuracy lost", "accuracy lost (%)", "more accurate", _times(_loss, 100)
)
_SIZE = _Way("choice", "Speed against size", "size", "size (MB)", "smaller", _times(_size_bytes, 1e-6))


def _cost_way(report: Report) -> _Way:
    """The price of a thousand requests where an hour of the machine has one, by the share of its CPU that they take."""
    price_per_h = report.choice.price_per_h if report.choice else None
    if price_per_h is None:
        title, axis = "CPU time a request", "CPU time a request (ms)"
        return _Way("cost", "Speed against cost", title, axis, "cheaper", _times(_cpu_s, 1e3))
    by_core = 1000 * price_per_h / 3600 / report.machines[0].cores
    title = "price of 1,000 requests, by CPU time used"
    return _Way("cost", "Speed against cost", title, title, "cheaper", _times(_cpu_s, by_core))


def _known_of_all(read: Callable[[Result], float | None], results: Sequence[Result]) -> bool:
    return all(read(one) is not None for one in results)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _front(results: Sequence[Result]) -> list[bool]:
    """Of p99 and of every other figure that all of `results` have."""
    reads = [read for read in _FIGURES.values() if _known_of_all(read, results)]
    return pareto(
        [(one.summary.percentile("p99").latency_s or 0.0, *(read(one) or 0.0 for read in reads)) for one in results]
    )


def _trade_off(
    number: int, panel: Panel, results: Sequence[Result], axis: LatencyAxis, slo: Slo | None, way: _Way
) -> Chart:
    values = [
        _dot(one, axis.value(one.summary.percentile("p99").latency_s), way.read(one) or 0.0, on_front=best)
        for one, best in zip(results, _front(results), strict=True)
    ]
    highest = max(one["against"] for one in values) or 1.0
    room = 1.15 if slo is None else 1.3  # for the objective's words
    y = alt.Y(
        "against:Q",
        title=way.axis,
        scale=alt.Scale(domain=[rounded(-0.08 * highest), rounded(room * highest)], nice=False),
        axis=alt.Axis(tickCount=5),
    )
    title = f"p99 ({axis.unit})"
    x = axis.encoding("latency", alt.X, title)
    path = alt.Chart().mark_line(color=SOFT, strokeDash=[2, 3], strokeWidth=1, interpolate="step-after", clip=True)
    best = ", ".join(one["variant"] for one in values if one["front"] == _ON_FRONT)
    return finish(
        f"{way.element}-{number}",
        panel.title,
        f"p99 latency against {way.what}, {panel.title}. On the Pareto front: {best}. "
        + " ".join(
            f"{one['variant']}: {one['latency']} {axis.unit}, {one['accuracy']}, {one['size']}, {one['CPU']}."
            for one in values
        ),
        [
            *limit_line(axis, slo, upright=title),
            Layer(path.encode(x=x, y=y), _frontier(values)),
            *_dots(panel, values, x, y, axis.tooltip(title=title), sized=way is _ACCURACY),
        ],
        legend=tuple(key for key in panel.legend if key.name in {one["variant"] for one in values}),
    )


def _dot(result: Result, latency: float | None, against: float, *, on_front: bool) -> dict[str, Any]:
    loss, size_bytes, cpu_s = _loss(result), _size_bytes(result), _cpu_s(result)
    return {
        "variant": result.variant,
        "load": result.load,
        "latency": latency,
        "against": rounded(against),
        "megabytes": rounded((size_bytes or 0.0) / 1e6),
        "accuracy": "accuracy unknown" if loss is None else f"{loss:.2%} lost",
        "size": format_bytes(size_bytes) if size_bytes else "unknown size",
        "CPU": "CPU time unknown" if cpu_s is None else f"{format_duration(cpu_s)} CPU a request",
        "front": _ON_FRONT if on_front else "beaten",
        "filled": 0.85 if on_front else 0.0,
    }


def _dots(panel: Panel, values: list[dict[str, Any]], x: Any, y: Any, latency: Any, *, sized: bool) -> list[Layer]:
    source = alt.Chart().encode(x=x, y=y)
    sizes = alt.Size("megabytes:Q", scale=alt.Scale(range=[90, 500], zero=True), legend=None)
    dots = source.mark_point(filled=True, strokeWidth=2, opacity=1, clip=True).encode(
        color=colour(panel.colours),
        stroke=colour(panel.colours, alt.Stroke),
        fillOpacity=alt.FillOpacity("filled:Q", scale=None),
        tooltip=hints(["variant:N", "load:N", latency, "accuracy:N", "size:N", "CPU:N", "front:N"]),
        **({"size": sizes} if sized else {"size": alt.value(140)}),
    )
    names = source.mark_text(align="left", dx=15, dy=-9, fontSize=11, color="var(--ink)").encode(
        text=alt.Text("variant:N")
    )
    # Of many, the beaten ones would be written over each other.
    named = values if len(values) <= _MOST_NAMED else [one for one in values if one["front"] == _ON_FRONT]
    return [Layer(names, named), Layer(dots, values)]


def _frontier(values: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The line through those that no other beats in the two figures that are drawn."""
    best = pareto([(one["latency"], one["against"]) for one in values])
    return sorted(
        (one for one, drawn in zip(values, best, strict=True) if drawn), key=lambda one: float(one["latency"])
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
