"""Which charts of a kind a page opens with."""

from collections.abc import Sequence

from mlserve.report.render.chart import MOST_BESIDE, Chart
from mlserve.report.report import Report

__all__ = ["leading_charts"]

_MOST_OF_SEARCH = 2  # of a search, whose settings are each a load of its own: the pick's and the runner-up's


def leading_charts(charts: Sequence[Chart], report: Report) -> tuple[Chart, ...]:
    """Those of `charts`, all of a kind, that are open at first: all of a few; of many the one of the verdict's load,
    and of a search that of the pick beside that of the runner-up.
    """
    few = MOST_BESIDE if report.choice is None else _MOST_OF_SEARCH
    found = _of(charts, report.leading_loads) if len(charts) > few else ()
    return found or tuple(charts)[: len(charts) if len(charts) <= MOST_BESIDE else 1]


def _of(charts: Sequence[Chart], loads: Sequence[str]) -> tuple[Chart, ...]:
    """The first chart of each of `loads` that has one."""
    firsts = (next((chart for chart in charts if _shows(chart, load)), None) for load in loads)
    return tuple({chart.element: chart for chart in firsts if chart is not None}.values())


def _shows(chart: Chart, load: str) -> bool:
    """Whether `chart` is of `load`: its title is that, or ends with it, but for which of several pages it is."""
    title = chart.title.partition(": ")[0] if f"{load}: " in chart.title else chart.title
    return title == load or title.endswith(f", {load}")
