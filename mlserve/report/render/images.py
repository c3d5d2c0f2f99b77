"""The charts of a report as pictures that stand alone: SVG for a pull request, PNG for slides, drawn without a browser.

A page's charts take their colours from its CSS, their width from its columns, their keys from its legend, and what to
see in them stands above. Here they bring all that along. Paper is always light, so that they read on a dark page too.
"""

import re
import textwrap
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
import vl_convert
from jinja2 import Environment, PackageLoader

from mlserve.report.render.charts import chart_groups
from mlserve.report.report import Report

__all__ = ["Picture", "chosen", "pictures", "png", "svg"]

_WIDTH = 640
_SCALE = 2
_NOTE_COLUMNS = 100  # characters of a subtitle that fit into the width
# More of them would hide a pull request's text; the page has all.
_MOST_SHOWN, _MOST_OF_A_KIND = 4, 1
_VARIABLE = re.compile(r"var\((--[\w-]+)\)")
_DEFINITION = re.compile(r"(--[\w-]+):\s*(#[0-9a-fA-F]{3,8})\b")
_KEYED = ("color", "strokeDash", "shape")


class Picture(msgspec.Struct, frozen=True):
    """One chart. `name` is a file's without its suffix, `spec` Vega-Lite that needs nothing of a page."""

    name: str
    kind: str
    title: str
    description: str
    spec: dict[str, Any]


def pictures(report: Report) -> list[Picture]:
    """Every chart of the report, in the page's order."""
    return [
        Picture(
            chart.element,
            group.title,
            chart.title,
            chart.description,
            _alone(chart.spec, group.title, [chart.title, *textwrap.wrap(group.note, _NOTE_COLUMNS)]),
        )
        for group in chart_groups(report)
        for chart in group.charts
    ]


def chosen(every: Sequence[Picture]) -> list[Picture]:
    """The few that a pull request shows: the first of each kind."""
    kinds = dict.fromkeys(picture.kind for picture in every)
    firsts = [[one for one in every if one.kind == kind][:_MOST_OF_A_KIND] for kind in kinds]
    return [picture for first in firsts for picture in first][:_MOST_SHOWN]


def svg(picture: Picture) -> str:
    """The picture as an SVG document."""
    drawn: str = vl_convert.vegalite_to_svg(picture.spec, allowed_base_urls=[])
    return drawn


def png(picture: Picture) -> bytes:
    """The picture as a PNG of two pixels a CSS pixel."""
    drawn: bytes = vl_convert.vegalite_to_png(picture.spec, scale=_SCALE, allowed_base_urls=[])
    return drawn


def _alone(spec: dict[str, Any], kind: str, below: Sequence[str]) -> dict[str, Any]:
    """`spec` with the colours, the width, the title, what is said `below` it and the keys that a page gives it."""
    colours = _light_colours()
    text = _VARIABLE.sub(lambda found: colours[found[1]], msgspec.json.encode(spec).decode())
    alone: dict[str, Any] = msgspec.json.decode(text)
    alone |= {
        "title": {
            "text": kind,
            "subtitle": below,
            "anchor": "start",
            "limit": _WIDTH,
            "subtitleColor": colours["--soft"],
        },
        "background": colours["--paper"],
        "padding": 12,
    }
    if alone.get("width") == "container":
        alone["width"] = _WIDTH
    _make_still(alone)
    return alone


def _make_still(part: Any) -> None:
    """Turns on every legend that is off because the page has one of its own, and drops what is there for a pointer:
    zooming, and unseen points.
    """
    if isinstance(part, dict):
        if isinstance(part.get("params"), list):
            part["params"] = [one for one in part["params"] if one.get("bind") != "scales"]
        for channel in _KEYED:
            encoding = part.get(channel)
            if isinstance(encoding, dict) and "field" in encoding and encoding.get("legend", ...) is None:
                encoding["legend"] = {"orient": "bottom", "title": None, "labelLimit": 0, "symbolOpacity": 1}
        if isinstance(part.get("point"), dict) and part["point"].get("opacity") == 0:
            del part["point"]
        for inner in part.values():
            _make_still(inner)
    elif isinstance(part, list):
        for inner in part:
            _make_still(inner)


@cache
def _light_colours() -> dict[str, str]:
    """The page's colours on paper: its style sheet says them first, what is for dark screens after."""
    # Nothing here is HTML: the style sheet is ours, and no data is in it.
    style = Environment(loader=PackageLoader("mlserve.report.render")).get_template("report.css").render()  # noqa: S701
    return dict(reversed(_DEFINITION.findall(style)))
