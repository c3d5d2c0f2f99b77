"""How a verb ends."""

import io

import pytest
import typer
from rich.console import Console

from mlserve.cli import terminal


class Interrupted(io.StringIO):
    """Ctrl-C comes when the first line has been written."""

    def flush(self):
        if self.getvalue() == "2 runs\n":
            raise KeyboardInterrupt


def test_ctrl_c_while_a_line_is_said_does_not_repeat_it(monkeypatch):
    written = Interrupted()
    monkeypatch.setattr("sys.stderr", written)
    monkeypatch.setattr(terminal, "err", Console(stderr=True))  # what it keeps is of no other test
    with pytest.raises(typer.Exit) as ended:
        terminal.ending_well(lambda: terminal.err.print("2 runs", highlight=False))()
    assert (ended.value.exit_code, written.getvalue()) == (130, "2 runs\nstopped\n")
