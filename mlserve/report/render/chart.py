"""What all charts share: their form, their colours, their scales. Colours are CSS variables, so that light, dark and
paper are the page's matter; `templates/report.css` defines each, for light first.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import altair as alt
import msgspec

from mlserve.report.report import Report, Result
from mlserve.report.slo import Slo
from mlserve.units import format_duration

__all__ = [
    "FAINT",
    "MOST_BESIDE",
    "SOFT",
    "Chart",
    "ChartGroup",
    "Key",
    "LatencyAxis",
    "Layer",
    "Panel",
    "axes",
    "colour",
    "finish",
    "hints",
    "limit_line",
    "lines",
    "panels",
    "percentiles_said",
    "rounded",
    "series_colour",
    "variant_colours",
]

FAINT = 0.35
SOFT = "var(--soft)"
MOST_BESIDE = 6  # charts of a kind, beyond which a page shows them one at a time
_COLOURS = 8
_HEIGHT = 240
_GRID = "var(--grid)"
# Beyond this ratio of the slowest to the fastest, a scale from zero would show nothing but the slowest.
_MOST_LINEAR = 50
_FEW_DECADES = 500
# A limit farther beyond all latencies than this is marked at the edge: a line there would flatten what was measured.
_MOST_HEADROOM = 1.3
# Room above a limit that is the highest of all, so that it is seen to be a line.
_ABOVE_LIMIT = 1.06
# Nearer to the top or to the right than this share of the scale, there is no room for words beyond a line.
_HIGH = 0.85
_HELD = "held"
_CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "axis": {
        "labelColor": SOFT,
        "titleColor": SOFT,
        "gridColor": _GRID,
        "domainColor": _GRID,
        "tickColor": _GRID,
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "labelFlush": True,
        "labelLimit": 220,
    },
    "view": {"stroke": None},
}
# Without a key a wheel scrolls the page, as everywhere else.
_WHEEL = "wheel![event.ctrlKey || event.metaKey || event.shiftKey]"


class Key(msgspec.Struct, frozen=True):
    """One colour and what it stands for."""

    name: str
    colour: str


class Chart(msgspec.Struct, frozen=True):
    """One drawing: where it stands (`element`), what is above it, what it says to who cannot see it, its colours.

    `spec` is Vega-Lite with its data inlined, "container" for its width, and `var(--name)` for its colours: to draw it
    outside the page, replace both.
    """

    element: str
    title: str
    description: str
    spec: dict[str, Any]
    legend: tuple[Key, ...] = ()


class ChartGroup(msgspec.Struct, frozen=True):
    """Drawings of one kind, one a panel, on the same scale."""

    title: str
    note: str
    charts: tuple[Chart, ...]


class Panel(msgspec.Struct, frozen=True):
    """What one drawing shows: up to eight results of one load, each in the colour of its variant. Those that `lead` are
    read side by side, however many there are.
    """

    title: str
    results: tuple[Result, ...]
    colours: dict[str, str]
    leads: bool = False

    @property
    def legend(self) -> tuple[Key, ...]:
        """Its variants and their colours."""
        return tuple(Key(variant, colour) for variant, colour in self.colours.items())


def series_colour(number: int) -> str:
    """The CSS colour of the series with this number."""
    return f"var(--series-{number % _COLOURS + 1})"


def variant_colours(report: Report) -> dict[str, str]:
    """The colour of each variant; beyond eight they come again."""
    variants = dict.fromkeys(result.variant for result in report.results)
    return {variant: series_colour(number) for number, variant in enumerate(variants)}


def panels(report: Report) -> list[Panel]:
    """A panel a load; several where more than eight variants were measured under it, the recommended one in each."""
    by_load: dict[str, list[Result]] = {}
    for result in report.results:
        by_load.setdefault(result.load, []).append(result)
    shared = variant_colours(report)
    if len(shared) <= _COLOURS:
        return [
            Panel(
                load,
                tuple(results),
                {variant: shared[variant] for variant in _variants(results)},
                leads=load in report.leading_loads,
            )
            for load, results in by_load.items()
        ]
    return [panel for load, results in by_load.items() for panel in _pages(load, results)]


def _pages(load: str, results: Sequence[Result]) -> list[Panel]:
    """Fastest first, so that the first page is the one to read."""
    picked = [one for one in results if one.recommended]
    others = sorted((one for one in results if not one.recommended), key=_slowness)
    room = _COLOURS - len(picked)
    pages = [others[start : start + room] for start in range(0, len(others), room)] or [[]]
    panels_: list[Panel] = []
    for number, page in enumerate(pages):
        shown = (*picked, *page)
        title = load if len(pages) == 1 else f"{load}: {number * room + 1} to {number * room + len(page)} by p99"
        colours = {variant: series_colour(place) for place, variant in enumerate(_variants(shown))}
        panels_.append(Panel(title, shown, colours))
    return panels_


def _variants(results: Iterable[Result]) -> list[str]:
    return list(dict.fromkeys(one.variant for one in results))


def _slowness(result: Result) -> float:
    latency_s = result.summary.percentile("p99").latency_s
    return math.inf if latency_s is None else latency_s


def axes(panels_: Sequence[Panel], read: Callable[[Result], Iterable[float | None]], slo: Slo | None) -> list[Any]:
    """An axis a panel that holds what `read` finds in its results: the same for all while they are read side by side,
    each its own where there are too many for that, but for those that lead.
    """
    found = [[latency_s for one in panel.results for latency_s in read(one)] for panel in panels_]
    if len(panels_) <= MOST_BESIDE:
        return [LatencyAxis.holding((latency_s for every in found for latency_s in every), slo)] * len(panels_)
    leading = [latency_s for panel, every in zip(panels_, found, strict=True) if panel.leads for latency_s in every]
    return [
        LatencyAxis.holding(leading if panel.leads else every, slo) for panel, every in zip(panels_, found, strict=True)
    ]


class Layer(msgspec.Struct, frozen=True):
    """A drawing without its data, and the rows it draws: Altair copies and checks whatever it is given, many times."""

    drawing: Any
    rows: list[dict[str, Any]]


class LatencyAxis(msgspec.Struct, frozen=True):
    """One scale for all charts of a group: from zero, or logarithmic where the slowest would flatten all else.

    `limit` is where an objective's line goes, None without one; `beyond` where it is off this scale: above it or below.
    """

    unit: str
    factor: float
    least: float
    most: float
    limit: float | None = None
    beyond: Literal["", "above", "below"] = ""

    @classmethod
    def holding(cls, latencies_s: Iterable[float | None], slo: Slo | None = None) -> "LatencyAxis":
        """A scale that holds every one of `latencies_s`, and the limit of `slo` where it is near."""
        values = [latency_s for latency_s in latencies_s if latency_s is not None and latency_s > 0] or [1e-3]
        beyond = _beyond(values, slo.limit_s) if slo else ""
        values += [slo.limit_s * _ABOVE_LIMIT] if slo and slo.limit_s > max(values) and not beyond else []
        # Of decades, the unit of the middle one: 10 to 1,000 ms is read more easily than 0.01 to 1 s.
        wide = max(values) > _MOST_LINEAR * min(values)
        usual_s = math.sqrt(min(values) * max(values)) if wide else max(values)
        unit, factor = next(
            ((unit, factor) for unit, factor in (("us", 1e6), ("ms", 1e3)) if usual_s * factor < 1000), ("s", 1.0)
        )
        limit = slo.limit_s * factor if slo else None
        return cls(unit, factor, min(values) * factor, max(values) * factor, limit, beyond)

    def roomier(self) -> "LatencyAxis":
        """The same with room for a word beside the slowest."""
        return msgspec.structs.replace(self, most=self.most * 1.18)

    @property
    def title(self) -> str:
        """`latency (ms)`."""
        return f"latency ({self.unit})"

    def value(self, latency_s: float | None) -> float | None:
        """`latency_s` on this scale."""
        return None if latency_s is None else rounded(latency_s * self.factor)

    @property
    def logarithmic(self) -> bool:
        """Whether the slowest would flatten all else."""
        return self.most > _MOST_LINEAR * self.least

    def share(self, value: float) -> float:
        """How far up the scale `value` is, of 1."""
        if self.logarithmic:
            return math.log(value / self.least) / math.log(self.most / self.least)
        return value / self.most

    @property
    def scale(self) -> Any:
        """The scale itself."""
        if self.logarithmic:
            return alt.Scale(type="log", domain=[rounded(self.least / 1.15), rounded(self.most * 1.15)], nice=False)
        return alt.Scale(domain=[0, rounded(self.most)], nice=True)

    def encoding(self, field: str, channel: type[Any] = alt.Y, title: str = "") -> Any:
        """The channel that shows `field`."""
        # Logarithmic scales draw a line for each digit unless told which.
        decades = [10.0**n for n in range(math.floor(math.log10(self.least)), math.ceil(math.log10(self.most)) + 1)]
        steps = (1, 2, 5) if self.most < _FEW_DECADES * self.least else (1,)
        axis = (
            alt.Axis(values=[rounded(step * decade) for decade in decades for step in steps], format=",~g")
            if self.logarithmic
            else alt.Axis(tickCount=5)
        )
        return channel(f"{field}:Q", title=title or self.title, scale=self.scale, axis=axis)

    def tooltip(self, field: str = "latency", title: str = "") -> Any:
        """`field` in a tooltip."""
        return alt.Tooltip(field=field, type="quantitative", format=".3~r", title=title or self.title)


def rounded(value: float) -> float:
    """Four digits: finer than a screen, and a tenth of the page."""
    return float(f"{value:.4g}")


def _colour_scale(colours: dict[str, str]) -> Any:
    """Each variant in its colour."""
    return alt.Scale(domain=list(colours), range=list(colours.values()))


def colour(colours: dict[str, str], channel: type[Any] = alt.Color) -> Any:
    """The channel that gives each variant its colour. The page has the key, so the drawing has none."""
    return channel("variant:N", scale=_colour_scale(colours), legend=None)


def lines(panel: Panel, tooltip: Sequence[Any]) -> Any:
    """One line a variant, in its colour; INVALID results are faint. Unseen points carry the tooltips."""
    return (
        alt.Chart()
        .mark_line(strokeWidth=2, strokeJoin="round", clip=True, point=alt.OverlayMarkDef(opacity=0, size=90))
        .encode(
            color=colour(panel.colours),
            strokeOpacity=alt.StrokeOpacity("opacity:Q", scale=None),
            tooltip=hints(tooltip),
        )
    )


def hints(tooltip: Sequence[Any]) -> list[Any]:
    """The fields of a tooltip; texts are shorthands. Altair takes a hundred times as long over one given as a text."""
    return [alt.Tooltip(one) if isinstance(one, str) else one for one in tooltip]


def _beyond(latencies_s: Sequence[float], limit_s: float) -> Literal["", "above", "below"]:
    if limit_s > _MOST_HEADROOM * max(latencies_s):
        return "above"
    wide = max(latencies_s) > _MOST_LINEAR * min(latencies_s)
    return "below" if wide and _MOST_HEADROOM * limit_s < min(latencies_s) else ""


def limit_line(axis: LatencyAxis, slo: Slo | None, *, upright: str = "") -> list[Layer]:
    """The line of the objective and its name, at the edge where the line is off the scale; across the x axis of the
    title `upright`, where that is given.
    """
    if slo is None or axis.limit is None:
        return []
    arrow = {"": "", "above": " →" if upright else " ↑", "below": " ←" if upright else " ↓"}[axis.beyond]
    words = f"SLO: {slo.name} within {format_duration(slo.limit_s)}{arrow}"
    rows = [{"limit": rounded(axis.limit), "slo": words}]
    line = {"x": axis.encoding("limit", alt.X, upright)} if upright else {"y": axis.encoding("limit")}
    rule = alt.Chart().mark_rule(color="var(--bad)", strokeDash=[6, 4], strokeWidth=1.5, clip=True)
    text = alt.Chart().mark_text(color="var(--bad)", fontSize=11, **_beside(axis, upright=bool(upright)))
    edge = {"above": "width" if upright else 0, "below": 0 if upright else "height"}
    at = {"x" if upright else "y": alt.value(edge[axis.beyond])} if axis.beyond else line
    there = {"y": alt.value(4)} if upright else {"x": alt.value(6)}
    return [
        Layer(rule.encode(**line, tooltip=alt.Tooltip(field="slo", type="nominal", title=" ")), rows),
        Layer(text.encode(**at, **there, text=alt.Text("slo:N")), rows),
    ]


def _beside(axis: LatencyAxis, *, upright: bool) -> dict[str, Any]:
    """The words' place beside the line, on its side where there is room."""
    high = axis.beyond == "above" or (not axis.beyond and axis.share(axis.limit or 0.0) > _HIGH)
    if upright:
        left = high or (not axis.beyond and axis.share(axis.limit or 0.0) > 1 / 2)
        return {"align": "right" if left else "left", "baseline": "top", "dx": -5 if left else 5}
    return {"align": "left", "baseline": "top" if high else "bottom", "dy": 4 if high else -4}


def percentiles_said(results: Sequence[Result]) -> str:
    """What the curves say, for who cannot see them."""
    return " ".join(
        f"{one.variant}: "
        + ", ".join(
            f"{p.name} {format_duration(p.latency_s)}" for p in one.summary.percentiles if p.latency_s is not None
        )
        + "."
        for one in results
    )


def finish(
    element: str,
    title: str,
    description: str,
    layers: Sequence[Layer],
    *,
    legend: tuple[Key, ...] = (),
    zoom: Sequence[str] = ("x", "y"),
    height: int = _HEIGHT,
) -> Chart:
    """The chart of `layers`, lowest first; the last one is what zooming and panning holds on to.

    Altair makes each layer; they are put together here, for its own `layer` copies and checks all of them several
    times, which took most of the time of a report on many runs.
    """
    names = {
        identity: f"rows-{number}" for number, identity in enumerate(dict.fromkeys(id(one.rows) for one in layers))
    }
    for layer in layers:
        layer.drawing.data = alt.NamedData(name=names[id(layer.rows)])
    drawn = [layer.drawing.to_dict(validate=False, context={"top_level": False}) for layer in layers]
    drawn[-1]["name"] = _HELD
    spec: dict[str, Any] = {
        "$schema": alt.SCHEMA_URL,
        "config": _CONFIG,
        "width": "container",
        "height": height,
        "description": description,
        "layer": drawn,
        "datasets": {names[id(layer.rows)]: layer.rows for layer in layers},
    }
    if zoom:
        select = {"type": "interval", "encodings": list(zoom), "zoom": _WHEEL}
        spec["params"] = [{"name": "zoom", "select": select, "bind": "scales", "views": [_HELD]}]
    return Chart(element, title, description, spec, legend)
