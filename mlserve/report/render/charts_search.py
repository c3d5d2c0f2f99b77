"""What a search foretold of the settings it measured, against what it measured."""

from typing import Any

import altair as alt

from mlserve.report.choice import NEAR, Tried
from mlserve.report.render.chart import SOFT, ChartGroup, Key, LatencyAxis, Layer, finish, hints, rounded
from mlserve.report.report import Report

__all__ = ["predictions"]

_KINDS = {"the pick": "var(--good)", "within the band": "var(--series-1)", "farther off": "var(--series-2)"}


def predictions(report: Report) -> ChartGroup | None:
    """What a search foretold of each setting against what was measured; None without a search that compared any."""
    choice = report.choice
    compared = [one for one in choice.tried if one.predicted and one.measured] if choice else []
    if choice is None or not compared:
        return None
    every = [value for one in compared for value in (one.predicted, one.measured)]
    if choice.rate_per_s is None:
        known = [value for value in every if value]
        axis = LatencyAxis("1/s", 1.0, min(known), max(known)).roomier()
        what = "highest rate (1/s)"
    else:
        axis = LatencyAxis.holding(every).roomier()
        what = f"{choice.slo.name} ({axis.unit})"
    values = [
        {
            "setting": one.label,
            "predicted": axis.value(one.predicted),
            "measured": axis.value(one.measured),
            "ratio": rounded((one.measured or 0.0) / (one.predicted or 1.0)),
            "kind": _kind(one, valid=choice.valid),
        }
        for one in compared
    ]
    kinds = [kind for kind in _KINDS if any(one["kind"] == kind for one in values)]
    return ChartGroup(
        "Prediction against measurement",
        f"{choice.near} of {choice.compared} predictions came within {NEAR:.0%} of what was measured: the grey band. "
        "On the line they are equal; above it, more was measured than foretold.",
        (
            finish(
                "prediction-0",
                f"{what} of each setting that was measured",
                f"What was foretold against what was measured: {what}. "
                + " ".join(
                    f"{one.label}: {choice.foretold(one.predicted)} foretold, {choice.foretold(one.measured)} measured."
                    for one in compared
                ),
                _foretold(axis, what, values),
                legend=tuple(Key(kind, _KINDS[kind]) for kind in kinds),
                height=320,
            ),
        ),
    )


def _kind(tried: Tried, *, valid: bool) -> str:
    if tried.state == "picked" and valid:
        return "the pick"
    ratio = (tried.measured or 0.0) / (tried.predicted or 1.0)
    return "within the band" if abs(ratio - 1) <= NEAR else "farther off"


def _foretold(axis: LatencyAxis, what: str, values: list[dict[str, Any]]) -> list[Layer]:
    x, y = axis.encoding("predicted", alt.X, f"foretold {what}"), axis.encoding("measured", alt.Y, f"measured {what}")
    ends = [axis.least / 2, axis.most * 2]
    edges = [
        {"predicted": rounded(at), "measured": rounded(at * (1 - NEAR)), "high": rounded(at * (1 + NEAR))}
        for at in (ends if axis.logarithmic else [0.0, ends[1]])
    ]
    equal = [{"predicted": one["predicted"], "measured": one["predicted"]} for one in edges]
    band = alt.Chart().mark_area(color="var(--band)", clip=True).encode(x=x, y=y, y2=alt.Y2("high:Q"))
    line = alt.Chart().mark_line(color=SOFT, strokeWidth=1, strokeDash=[4, 3], clip=True).encode(x=x, y=y)
    dots = (
        alt.Chart()
        .mark_point(filled=True, size=110, opacity=0.9, clip=True)
        .encode(
            x=x,
            y=y,
            color=alt.Color("kind:N", scale=alt.Scale(domain=list(_KINDS), range=list(_KINDS.values())), legend=None),
            tooltip=hints(
                [
                    "setting:N",
                    axis.tooltip("predicted", "foretold"),
                    axis.tooltip("measured", "measured"),
                    alt.Tooltip(field="ratio", type="quantitative", title="measured / foretold"),
                ]
            ),
        )
    )
    return [Layer(band, edges), Layer(line, equal), Layer(dots, values)]
