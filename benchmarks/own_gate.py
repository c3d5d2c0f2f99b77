"""Did our own server get slower? The working tree against another revision, both serving the same model, in turn.

    .venv/bin/python benchmarks/own_gate.py [--base REVISION] [--model FILE.onnx] [-- FLAGS OF mlserve gate]

The base revision is checked out into a worktree of its own; both servers run in this interpreter's environment, so that
nothing but our own code differs. Without `--model` it is a tiny MLP, of which the server is most of the cost. What
stands behind `--` goes to `mlserve gate`, and wins over what is chosen here. The exit status is that of the gate.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from subjects import write_tiny

ROOT = Path(__file__).resolve().parents[1]
LIMITS = ("--max-regression", "p50=5%,p99=10%,error_rate=0.1%,memory=10%")
CHOSEN = ("--rps", "500", "--duration", "10s", "--budget", "15m")


def main() -> int:
    wish = _arguments()
    with tempfile.TemporaryDirectory(prefix="own-gate-") as made, _worktree(wish.base, Path(made)) as base:
        folder = Path(made)
        model = wish.model or write_tiny(folder / "tiny.onnx")
        pythons = [_python(folder / name, code) for name, code in (("base", base), ("candidate", ROOT))]
        limits = (
            () if {"--max-regression", "--limit"} & set(wish.flags) else LIMITS
        )  # they add up, the rest is replaced
        command = [
            *(sys.executable, "-m", "mlserve", "gate", str(model), str(model)),
            *("--base-python", str(pythons[0]), "--candidate-python", str(pythons[1]), *CHOSEN, *limits, *wish.flags),
        ]
        return subprocess.run(command, check=False, cwd=wish.cwd).returncode


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="HEAD", help="revision to compare with (HEAD: what is not committed yet)")
    parser.add_argument("--model", type=Path, help="what both serve (a tiny MLP)")
    parser.add_argument("--cwd", type=Path, default=Path.cwd(), help="where the runs go")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="-- and flags of mlserve gate")
    wish = parser.parse_args()
    wish.flags = wish.flags[1:] if wish.flags[:1] == ["--"] else wish.flags
    wish.model = wish.model.resolve() if wish.model else None
    return wish


@contextmanager
def _worktree(revision: str, folder: Path) -> Iterator[Path]:
    """The files of `revision`, for as long as the block lasts."""
    place = folder / "tree"
    _git("worktree", "add", "--detach", str(place), revision)
    try:
        yield place
    finally:
        _git("worktree", "remove", "--force", str(place))


def _git(*words: str) -> None:
    done = subprocess.run(["git", "-C", str(ROOT), *words], check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"git {words[0]} {words[1]} failed: {done.stderr.strip()}")


def _python(path: Path, code: Path) -> Path:
    """An interpreter that is ours, with the mlserve of `code`: PYTHONPATH comes before what is installed, and the safe
    path keeps out the folder that the gate is started in.
    """
    words: Sequence[str] = (
        "#!/bin/sh",
        f'PYTHONSAFEPATH=1 PYTHONPATH="{code}" exec "{sys.executable}" "$@"',
        "",
    )
    path.write_text("\n".join(words))
    path.chmod(0o755)
    return path


if __name__ == "__main__":
    sys.exit(main())
