"""How `mlserve report RUN...` and `mlserve report diff A B` are one verb."""

from typing import Any

from typer.core import TyperGroup

__all__ = ["OF_RUNS", "ReportVerb"]

OF_RUNS = "of runs"
"""The command that is meant where none is named. Nobody can type it as one word by chance."""


class ReportVerb(TyperGroup):
    """A group whose first word may be missing: then the arguments are those of the command `OF_RUNS`.

    A folder that is called like a command is written `./diff`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._of_runs = self.commands.pop(OF_RUNS)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the group where a command is named, else that of `OF_RUNS` in its place."""
        if args and args[0] in self.commands:
            return super().make_context(info_name, args, parent=parent, **extra)
        return self._of_runs.make_context(info_name, args, parent=parent, **extra)
