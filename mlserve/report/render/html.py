"""A report as one page that needs nothing else: no network, no other file, light and dark, on paper too.

**Law:** every text in it comes from files that others may have written. The template escapes them, data is JSON in
which no `<` is left, and the page's own policy lets nothing run but its two scripts and nothing be fetched.

A few results are all shown at once. Of many, the tables can be sorted and filtered, each kind of chart shows one panel
at a time, of a search the pick's beside the runner-up's, and what is long is collapsed: the page of 200 runs opens as
fast as that of one.
"""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mlserve.report.pivots import pivots
from mlserve.report.render import figures
from mlserve.report.render.chart import Chart, ChartGroup, Key, variant_colours
from mlserve.report.render.charts import chart_groups
from mlserve.report.render.leading import leading_charts
from mlserve.report.render.promise import kept
from mlserve.report.report import Report
from mlserve.report.summary import PERCENTILES
from mlserve.units import format_duration, format_ratio

__all__ = ["render_html"]

_MOST_ROWS = 24  # results, beyond which they are one table to sort and filter instead of one a load
_LEAST_FILTERED = 16  # results, from which on nobody finds one at a glance
_MOST_UNFOLDED = 3  # INVALID runs, beyond which each certificate is folded: what does not hold is said above them
_MOST_PRINTED = 1  # runs, beyond which paper has what does not hold, in how many, and not each certificate
_MOST_OPEN = 24  # runs, beyond which the certificates of the VALID ones are behind one more step, on paper too


class _Section(msgspec.Struct, frozen=True):
    """The charts of one kind as the page shows them. `first` are shown at first, where `chosen` says that others can be
    chosen in their place; `legend` is theirs together, empty where each has its own, or where there is nothing to tell
    apart.
    """

    element: str
    group: ChartGroup
    first: tuple[Chart, ...]
    legend: tuple[Key, ...]
    chosen: bool


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
    vega = _vega()
    script = environment.get_template("report.js").render()
    rows = figures.rows(report)
    runs = [(result.load, run) for result in report.results for run in result.runs]
    return environment.get_template("report.html").render(
        report=report,
        rows=rows,
        most_rows=_MOST_ROWS,
        least_filtered=_LEAST_FILTERED,
        many=len(rows) > _MOST_ROWS or 2 < len(rows) == len({row.load for row in rows}),
        kept=kept(report),
        many_runs=len(runs) > _MOST_OPEN,
        run_count=len(runs),
        most_printed=_MOST_PRINTED,
        most_unfolded=_MOST_UNFOLDED,
        invalid_runs=[(load, run) for load, run in runs if not run.valid],
        valid_runs=[(load, run) for load, run in runs if run.valid],
        faults=figures.faults(report) if len(runs) > _MOST_PRINTED else [],
        percentiles=list(PERCENTILES),
        percentile_rows=figures.percentile_rows(report),
        highlights=figures.highlights(report),
        pivots=pivots(report),
        title=figures.title(report),
        overview=figures.overview(report),
        method=figures.METHOD,
        machines=[figures.describe_machine(machine) for machine in report.machines],
        moment=figures.moment,
        describe_server=figures.describe_server,
        knob_shares=figures.knob_shares,
        duration=format_duration,
        ratio=format_ratio,
        strips=strips,
        longest=format_duration(longest_s),
        sections=[_section(number, group, report) for number, group in enumerate(groups)],
        series=variant_colours(report),
        charts=_json(_charts([chart for group in groups for chart in group.charts])),
        vega=Markup(vega),  # noqa: S704  # a library's source, not data
        script=Markup(script),  # noqa: S704  # our own file, without data
        script_hashes=" ".join(map(_source_hash, (vega, script))),
    )


@cache
def _vega() -> str:
    """What draws the charts. Putting it together takes a second: once is enough for a page that is made again."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle


def _section(number: int, group: ChartGroup, report: Report) -> _Section:
    first = leading_charts(group.charts, report)
    legends = list(dict.fromkeys(chart.legend for chart in group.charts))
    longest = max(legends, key=len)
    alike = all(set(legend) <= set(longest) for legend in legends)
    many = len(first) < len(group.charts)
    return _Section(f"charts-{number}", group, first, longest if alike and not many else (), many)


def _charts(charts: Sequence[Chart]) -> dict[str, Any]:
    """What the page's script draws: each chart by its element, and once what all have in common. Rows of data become
    columns, those of one value just that value.
    """
    config = charts[0].spec["config"] if charts else {}
    drawn = {
        chart.element: {"title": chart.title, "legend": chart.legend, "spec": _compact(chart.spec)} for chart in charts
    }
    return {"config": config, "charts": drawn}


def _compact(spec: dict[str, Any]) -> dict[str, Any]:
    shared = ("config", "$schema")
    datasets = {
        name: {"rows": len(rows), "columns": {column: _column([row[column] for row in rows]) for column in rows[0]}}
        for name, rows in spec["datasets"].items()
        if rows
    }
    return {name: part for name, part in spec.items() if name not in shared} | {"datasets": datasets}


def _column(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else values


def _strips(report: Report) -> tuple[list[dict[str, float] | None], float]:
    """Where p99 and the ends of its interval lie on one scale from 0 to 100, for each result that has them; and the
    latency at 100.
    """
    p99s = [one.summary.percentile("p99") for one in report.results]
    places = [(p99.latency_s, p99.low_s, p99.high_s) for p99 in p99s]
    # One that broke down under its load would press all others to the left.
    told = [place for place, one in zip(places, report.results, strict=True) if one.valid] or places
    longest_s = max((value for place in told for value in place if value is not None), default=1.0)
    strips: list[dict[str, float] | None] = [
        None
        if p99 is None or low is None or high is None
        else {name: min(100.0, 100 * value / longest_s) for name, value in (("p99", p99), ("low", low), ("high", high))}
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
