"""Our own server, measured once more: a session for `reports/history`, and the report of it as the baseline.

    .venv/bin/python benchmarks/own_baseline.py [--sessions N] [--history DIR] [--report DIR] [--out DIR]
                                                [-- FLAGS OF mlserve gate]

A session is three runs of a tiny MLP, of which the server is most of the cost. It is held against those before it once
there are enough to know how much sessions differ, and is added unless that fails, which is the exit status 1.
"""

import argparse
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from subjects import write_tiny

from mlserve.report.gating.change_points import LEAST_ENTRIES
from mlserve.report.gating.history import read_history

ROOT = Path(__file__).resolve().parents[1]
LOAD = ("--rps", "500", "--duration", "10s", "--warm-up", "2s", "--repeats", "3")
LIMITS = ("--max-regression", "p50=20%,p99=50%,memory=10%")
UNDECIDED = 3


def main() -> int:
    wish = _arguments()
    with ExitStack() as stack:
        folder = wish.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="own-baseline-")))
        folder.mkdir(parents=True, exist_ok=True)
        model = write_tiny(folder / "tiny.onnx")
        for number in range(wish.sessions):
            runs = folder / f"session-{number}"
            status = _measure(model, runs) or _add(runs, wish.history, wish.flags)
            if status:
                return status
        return _mlserve("report", runs, "--out", wish.report)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--history", type=Path, default=ROOT / "reports" / "history")
    parser.add_argument("--report", type=Path, default=ROOT / "reports" / "baseline", help="folder for the last one's")
    parser.add_argument("--out", type=Path, help="folder that keeps the runs")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="-- and flags of mlserve gate")
    wish = parser.parse_args()
    if wish.sessions < 1:
        parser.error(f"--sessions {wish.sessions}: at least one is measured")
    wish.flags = wish.flags[1:] if wish.flags[:1] == ["--"] else wish.flags
    return wish


def _measure(model: Path, runs: Path) -> int:
    return _mlserve("bench", model, *LOAD, "--out", runs)


def _add(runs: Path, history: Path, flags: list[str]) -> int:
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    known = len(read_history(history)) >= LEAST_ENTRIES if history.is_dir() else False
    against = ("--against", history, *LIMITS) if known else ()
    status = _mlserve("gate", runs, *against, "--append", history, "--commit", commit, *flags)
    # Too few sessions to tell, or too different ones: what was measured is a session all the same.
    return 0 if status == UNDECIDED else status


def _mlserve(*words: object) -> int:
    return subprocess.run([sys.executable, "-m", "mlserve", *map(str, words)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
