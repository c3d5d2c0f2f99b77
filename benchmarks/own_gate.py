"""Did our own server get slower? The working tree against another revision, both serving the same model, in turn.

    .venv/bin/python benchmarks/own_gate.py [--base REVISION] [--model FILE.onnx] [--out DIR] [--report DIR]
                                            [-- FLAGS OF mlserve gate]

Both servers run in this interpreter's environment, so that nothing but our own code differs. Without `--model` they
serve a tiny MLP, of which the server is most of the cost. With `--out` the runs are kept there, and the same command
goes on where it was stopped. `--report` writes junit.xml, summary.md and badge.svg. What stands behind `--` goes to
`mlserve gate`, and wins over what is chosen here. The exit status is that of the gate.
"""

import argparse
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from revisions import ROOT, interpreter, take_out
from subjects import write_tiny

LIMITS = ("--max-regression", "p50=5%,p99=10%,error_rate=0.1%,memory=10%")
CHOSEN = ("--rps", "500", "--duration", "10s", "--budget", "15m")


def main() -> int:
    wish = _arguments()
    with ExitStack() as stack:
        folder = wish.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="own-gate-")))
        folder.mkdir(parents=True, exist_ok=True)
        code = take_out(wish.base, folder)
        base, candidate = interpreter(folder / f"{code.name}.sh", code), interpreter(folder / "candidate.sh", ROOT)
        model = wish.model or write_tiny(folder / "tiny.onnx")
        # Limits add up, where any other flag that is given again is replaced.
        limits = () if {"--max-regression", "--limit"} & set(wish.flags) else LIMITS
        command = [
            *(sys.executable, "-m", "mlserve", "gate", str(model), str(model)),
            *("--base-python", str(base), "--candidate-python", str(candidate), *CHOSEN, *limits),
            *(("--out", str(folder / "runs")) if wish.out else ()),
            *_report_flags(wish.report),
            *wish.flags,
        ]
        return subprocess.run(command, check=False).returncode


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="HEAD", help="revision to compare with (HEAD: what is not committed yet)")
    parser.add_argument("--model", type=_path, help="what both serve (a tiny MLP)")
    parser.add_argument("--out", type=_path, help="folder that keeps the runs, so that this can be gone on with")
    parser.add_argument("--report", type=_path, help="folder for junit.xml, summary.md and the badges")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="-- and flags of mlserve gate")
    wish = parser.parse_args()
    wish.flags = wish.flags[1:] if wish.flags[:1] == ["--"] else wish.flags
    return wish


def _path(text: str) -> Path:
    return Path(text).absolute()


def _report_flags(folder: Path | None) -> list[str]:
    files = {"--junit": "junit.xml", "--comment": "summary.md", "--badge": "badge.svg"} if folder else {}
    return [word for flag, name in files.items() for word in (flag, f"{folder}/{name}")]


if __name__ == "__main__":
    sys.exit(main())
