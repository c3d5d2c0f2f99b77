"""What may be said to `mlserve gate`, beside the load, which is said as to `mlserve bench`."""

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "Against", "Append", "Badge", "Base", "BasePython", "Budget", "Calibrate", "Calibration", "Candidate",
    "CandidatePython", "Comment", "Commit", "Config", "History", "IgnoreDifferences", "InTurn", "Junit", "KeepServers",
    "Limits", "MayDiffer", "Out", "Percentile", "Resolution", "Slo", "Times",
]  # fmt: skip


def _option(panel: str, *names: str, **said: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **said)


_DECIDED, _MEASURED, _SAVED, _TOLD = "What is decided", "How it is measured", "Against what was saved", "For CI"

Base = Annotated[
    str | None,
    typer.Argument(
        metavar="[BASE]",
        help="What it is compared with: NAME[@VERSION|@ALIAS], FILE.onnx, a URL, a production.toml, or a folder of "
        "runs.",
        show_default=False,
    ),
]
Candidate = Annotated[
    str | None,
    typer.Argument(metavar="[CANDIDATE]", help="The same, of what may have become worse.", show_default=False),
]

Limits = Annotated[
    list[str] | None,
    _option(
        _DECIDED,
        "--max-regression",
        "--limit",
        metavar="METRIC=RATIO",
        help="How much worse it may be: p50 to p99.9, mean, memory, size, start_up and max_rate by a ratio (p99=10%), "
        "error_rate and accuracy by points (error_rate=0.5%); or what it must keep: 'p99<=50ms'. Repeatable, or with "
        "commas.",
        show_default=False,
    ),
]
Slo = Annotated[
    str,
    _option(
        _DECIDED,
        help="An objective that the candidate must meet, p99=50ms; the one under which max_rate is sought.",
        show_default=False,
    ),
]
Config = Annotated[
    Path | None, _option(_DECIDED, help="All of this in a file, gate.toml; flags win over it.", show_default=False)
]
IgnoreDifferences = Annotated[
    bool, _option(_DECIDED, "--ignore-differences", help="Compare runs of unlike loads or machines all the same.")
]

Percentile = Annotated[
    str,
    _option(
        _MEASURED,
        help="What each run must hold requests enough for: p50 to p99.9.",
        show_default="the highest that is limited",
    ),
]
Budget = Annotated[str, _option(_MEASURED, help="The most time that measuring may take.")]
KeepServers = Annotated[
    bool,
    _option(
        _MEASURED,
        "--keep-servers",
        help="Leave both servers up, instead of a fresh one for every run: quicker for a model that loads slowly.",
    ),
]
InTurn = Annotated[
    bool,
    _option(
        _MEASURED,
        "--in-turn",
        help="Make one run after the other. Without it both servers are up and take turns of a tenth of a second, or "
        "of ten requests, so that both see the same machine; a closed loop or several generators never do.",
    ),
]
BasePython = Annotated[
    str,
    _option(
        _MEASURED, help="Interpreter whose mlserve serves the base: another version of the server.", show_default="ours"
    ),
]
CandidatePython = Annotated[str, _option(_MEASURED, help="The same for the candidate.", show_default="ours")]
Resolution = Annotated[
    str,
    _option(
        _MEASURED,
        help="How near the search for max_rate comes to the highest rate.",
        show_default="as the limit on max_rate wants, 5% at most",
    ),
]
Calibrate = Annotated[
    bool,
    _option(
        _MEASURED,
        "--calibrate",
        help="Hold BASE against itself, --times times: how often does this machine raise a false alarm?",
    ),
]
Times = Annotated[int, _option(_MEASURED, help="How many gates --calibrate runs; --budget is for each.")]
Calibration = Annotated[
    Path | None,
    _option(
        _MEASURED,
        help="Where --calibrate writes what it found, and every gate reads it.",
        show_default="reports/gate/calibration.json",
    ),
]

Against = Annotated[
    Path | None,
    _option(
        _SAVED,
        help="Hold the runs BASE against this: a history (reports/history), or a run or report of another day.",
        show_default=False,
    ),
]
MayDiffer = Annotated[
    list[str] | None,
    _option(
        _SAVED,
        "--may-differ",
        metavar="NAME",
        help="With --against: what may differ between the machines, such as onnxruntime or cpu_flags. Repeatable, or "
        "with commas.",
        show_default=False,
    ),
]
History = Annotated[
    Path | None,
    _option(
        _SAVED,
        help="With --against a run or report: the history that shows how much sessions differ.",
        show_default="reports/history",
    ),
]
Append = Annotated[
    Path | None,
    _option(
        _SAVED,
        help="Add the runs BASE to this history (reports/history), unless they fail; without --against just that.",
        show_default=False,
    ),
]
Commit = Annotated[str, _option(_SAVED, envvar="GITHUB_SHA", help="What the history calls them.", show_default=False)]

Junit = Annotated[Path | None, _option(_TOLD, help="Write JUnit XML.", show_default=False)]
Badge = Annotated[
    Path | None,
    _option(_TOLD, help="Write a badge: FILE.svg, or FILE.json for shields.io's endpoint.", show_default=False),
]
Comment = Annotated[
    Path | None, _option(_TOLD, help="Write Markdown for a pull request's comment.", show_default=False)
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for the runs.", show_default="a new one in runs/")]
