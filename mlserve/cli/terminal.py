"""What every verb shares: the two consoles, JSON output, and how an error ends the program."""

import functools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mlserve.errors import MlserveError

__all__ = ["JsonFlag", "StoreOption", "ending_well", "err", "is_said", "out", "print_json", "steps"]

out = Console()
err = Console(stderr=True)

_COUNTED_EVERY_S = 10.0
_NUMBER = re.compile(r"[0-9.,]+")

Verb = TypeVar("Verb", bound=Callable[..., None])

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
StoreOption = Annotated[
    Path, typer.Option("--store", envvar="MLSERVE_STORE", help="Folder that holds the models.", show_default=True)
]


def print_json(value: Any) -> None:
    """One indented JSON document on stdout, for programs."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
    sys.stdout.flush()


def is_said(context: typer.Context, name: str) -> bool:
    """Whether a parameter has its value from the command line or the environment, and not by default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


@contextmanager
def steps(task: str) -> Iterator[Callable[[str], None]]:
    """Shows what is being done and for how long: a live line in a terminal, one line a step in a log, all on stderr.

    A step that counts ("calibrating: 8 of 128 rows") is told in a log when it begins and every ten seconds.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        shown = progress.add_task(task, total=None)
        told, told_at_s = "", 0.0

        def on_step(step: str) -> None:
            nonlocal told, told_at_s
            progress.update(shown, description=step)
            kind = _NUMBER.sub("", step)
            if not err.is_terminal and (kind != told or time.monotonic() - told_at_s > _COUNTED_EVERY_S):
                told, told_at_s = kind, time.monotonic()
                err.print(f"{task}: {step}", highlight=False, markup=False)

        yield on_step


def ending_well(verb: Verb) -> Verb:
    """Turns the errors a user can mend into one clear line and their exit code; Ctrl-C ends with 130.

    Anything else is a bug and keeps its traceback.
    """

    @functools.wraps(verb)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            verb(*args, **kwargs)
        except MlserveError as error:
            err.print("[bold red]error:[/] ", end="")
            err.print(" ".join(str(error).split("\n")), markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as interrupt:
            # Another console: `err` may have been interrupted between a line and forgetting it, and would repeat it.
            Console(stderr=True).print("stopped", style="yellow")
            raise typer.Exit(128 + signal.SIGINT) from interrupt
        except BrokenPipeError:
            # The reader of our output has gone (`| head`): nothing is left to say, not even at interpreter exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return wrapped  # type: ignore[return-value]  # the wrapper has the verb's signature
