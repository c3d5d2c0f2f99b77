"""Every chart of a report, in the page's order."""

from altair.utils.schemapi import debug_mode

from mlserve.report.render.chart import ChartGroup, panels
from mlserve.report.render.charts_choice import breakdowns, trade_offs
from mlserve.report.render.charts_latency import distributions, throughput_curves
from mlserve.report.render.charts_search import predictions
from mlserve.report.render.charts_time import resources, throughputs, timelines
from mlserve.report.report import Report

__all__ = ["chart_groups"]


def chart_groups(report: Report) -> list[ChartGroup]:
    """The groups that the report has data for. A `Chart.spec` is Vega-Lite that takes its colours from CSS variables
    and its width from its container: who draws it elsewhere replaces them (`images`).
    """
    shown = panels(report)
    # Checking every part against Vega-Lite's schema takes most of a large report's time; a test checks each kind.
    with debug_mode(False):
        groups = [
            predictions(report),
            throughput_curves(report),
            *trade_offs(report, shown),
            distributions(report, shown),
            timelines(report, shown),
            throughputs(shown),
            breakdowns(report, shown),
            resources(shown),
        ]
    return [group for group in groups if group is not None]
