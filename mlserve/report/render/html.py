"""A report as one page that needs nothing else: no network, no other file, light and dark, on paper too.

**Law:** every text in it comes from files that others may have written. The template escapes them, data is JSON in
which no `<` is left, and the page's own policy lets nothing run but its two scripts and nothing be fetched.
"""

import base64
import hashlib
from typing import Any

import msgspec
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mlserve.report.render import figures
from mlserve.report.render.charts import chart_groups, series_colour
from mlserve.report.report import Report
from mlserve.report.summary import PERCENTILES
from mlserve.units import format_duration

__all__ = ["render_html"]


def render_html(report: Report) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("mlserve.report.render"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    groups = chart_groups(report)
    strips, longest_s = _strips(report)
    vega = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    script = environment.get_template("report.js").render()
    variants = list(dict.fromkeys(result.variant for result in report.results))
    return environment.get_template("report.html").render(
        report=report,
        rows=figures.rows(report),
        percentiles=list(PERCENTILES),
        percentile_rows=figures.percentile_rows(report),
        title=figures.title(report),
        overview=figures.overview(report),
        method=figures.METHOD,
        machines=[figures.describe_machine(machine) for machine in report.machines],
        moment=figures.moment,
        describe_server=figures.describe_server,
        strips=strips,
        longest=format_duration(longest_s),
        groups=groups,
        series={variant: series_colour(number) for number, variant in enumerate(variants)},
        specs=_json({chart.element: chart.spec for group in groups for chart in group.charts}),
        vega=Markup(vega),  # noqa: S704  # a library's source, not data
        script=Markup(script),  # noqa: S704  # our own file, without data
        script_hashes=" ".join(map(_source_hash, (vega, script))),
    )


def _strips(report: Report) -> tuple[list[dict[str, float] | None], float]:
    """Where p99 and the ends of its interval lie on one scale from 0 to 100, for each result that has them; and the
    latency at 100.
    """
    p99s = [one.summary.percentile("p99") for one in report.results]
    places = [(p99.latency_s, p99.low_s, p99.high_s) for p99 in p99s]
    longest_s = max((value for place in places for value in place if value is not None), default=1.0)
    strips: list[dict[str, float] | None] = [
        None
        if p99 is None or low is None or high is None
        else {"p99": 100 * p99 / longest_s, "low": 100 * low / longest_s, "high": 100 * high / longest_s}
        for p99, low, high in places
    ]
    return strips, longest_s


def _json(value: Any) -> Markup:
    """JSON that ends no script element and starts no comment, whatever texts are in it."""
    text = msgspec.json.encode(value).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704  # escaped just above


def _source_hash(script: str) -> str:
    """What a Content-Security-Policy names a script by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
