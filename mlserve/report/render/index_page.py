"""The index of a folder of reports as a page and as Markdown. The page has a report's look and none of its scripts."""

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from mlserve.report.index import Index, Series
from mlserve.report.render.figures import moment
from mlserve.report.render.markdown import code, plain, table
from mlserve.units import format_duration, format_ratio

__all__ = ["index_html", "index_markdown"]

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH, _HEIGHT = 160, 28
_MARGIN = 3
_MOST_OPEN = 60  # entries, beyond which the older ones are folded
_FEW_POINTS = 30  # beyond which points would hide their line, and bars and words would go on for ever
_NOTE = (
    "Newest first. Figures of shared machines are noisy: compare ways within one report, never across two. A range "
    "goes from the least to the most in the file."
)


def index_html(index: Index) -> str:
    """One page that needs no other file, no network and no script."""
    environment = Environment(
        loader=PackageLoader("mlserve.report.render"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("index.html").render(
        index=index,
        note=_NOTE,
        moment=moment,
        trend=_trend,
        duration=format_duration,
        line=_line,
        size=(_WIDTH, _HEIGHT),
        told=_told,
        few=_FEW_POINTS,
        most=_MOST_OPEN,
    )


def index_markdown(index: Index) -> str:
    """The same as Markdown, for where the repository is read."""
    sections = ["# Reports over time", plain(_NOTE), _entries(index)]
    if index.series:
        lines = [(one.name, one.machine, _bars(one), *_trend(one)) for one in index.series]
        sections += [
            "## p99 over time",
            table(("What", "Machine", f"Oldest to newest, the last {_FEW_POINTS}", "Oldest", "Newest", "Ratio"), lines),
        ]
    return "\n\n".join(sections) + "\n"


def _entries(index: Index) -> str:
    rule = "| Made | Report | Verdict | Figures | Machine | Made by |\n| --- | --- | --- | --- | --- | --- |"
    lines = [
        " | ".join(
            (
                plain(moment(entry.made_at)) or "unknown",
                f"{plain(entry.title)} ({_link(entry.page or entry.path)})",
                plain(entry.verdict) or "-",
                "<br>".join(f"{plain(name)}: {plain(value)}" for name, value in entry.figures) or "-",
                plain(entry.machine) or "-",
                _cell_code(entry.command),
            )
        )
        for entry in index.entries
    ]
    return "\n".join([rule, *(f"| {line} |" for line in lines)])


def _link(path: str) -> str:
    """A link to a file of the folder; angle brackets hold whatever else its name has in it."""
    target = path.replace("\\", "%5C").replace("<", "%3C").replace(">", "%3E").replace("|", "%7C").replace("\n", "%0A")
    return f"[{plain(path)}](<{target}>)"


def _cell_code(command: str) -> str:
    return code(command).replace("|", "\\|") if command else "-"


def _trend(series: Series) -> tuple[str, str, str]:
    """The oldest p99, the newest, and their ratio."""
    first_s, last_s = series.points[0].p99_s, series.points[-1].p99_s
    return format_duration(first_s), format_duration(last_s), format_ratio(last_s / first_s)


def _told(series: Series) -> str:
    """A drawing for who cannot see it: its points, or the ends of many."""
    points = series.points if len(series.points) <= _FEW_POINTS else (series.points[0], series.points[-1])
    words = [f"{moment(point.made_at)} {format_duration(point.p99_s)}" for point in points]
    between = ", " if len(points) == len(series.points) else " to "
    return f"{len(series.points)} reports: {between.join(words)}"


def _bars(series: Series) -> str:
    """The last of them as bars."""
    return "".join(_BLOCKS[round(place * (len(_BLOCKS) - 1))] for place in _places(series)[-_FEW_POINTS:])


def _line(series: Series) -> list[tuple[float, float]]:
    """Where each p99 stands in a drawing, the oldest left, zero at the bottom."""
    places = _places(series)
    step = (_WIDTH - 2 * _MARGIN) / (len(places) - 1)
    height = _HEIGHT - 2 * _MARGIN
    return [
        (round(_MARGIN + number * step, 1), round(_MARGIN + (1 - place) * height, 1))
        for number, place in enumerate(places)
    ]


def _places(series: Series) -> Sequence[float]:
    """Each p99 as a share of the longest."""
    longest_s = max(point.p99_s for point in series.points)
    return [point.p99_s / longest_s for point in series.points]
