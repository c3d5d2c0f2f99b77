"""The program: what the console script and `python -m mlserve` start."""

import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command line. Imported here, so that Ctrl-C while it is being imported ends like any other."""
    try:
        from mlserve.cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
