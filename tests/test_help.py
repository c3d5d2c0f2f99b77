"""Asking for help is quick: it imports none of the heavy libraries, whichever verb it is about."""

import subprocess
import sys

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from mlserve.cli.main import app

HEAVY = (
    "altair",
    "gevent",
    "locust",
    "onnx",
    "onnxruntime",
    "optimum",
    "pandas",
    "pyarrow",
    "scipy",
    "sklearn",
    "tokenizers",
    "torch",
    "transformers",
    "uvicorn",
)

_PROBE = """
import sys
try:
    exec(sys.argv.pop(1))
except SystemExit as end:
    status = end.code
else:
    status = "it did not exit"
print()
print(status, *sorted({name.partition(".")[0] for name in sys.modules}))
"""
_MAIN = "from mlserve.cli.main import main; sys.argv[0] = 'mlserve'; main()"


def imported(code, *arguments):
    """`(exit status, what was printed, the libraries imported)` of `code` in a process of its own."""
    ended = subprocess.run([sys.executable, "-c", _PROBE, code, *arguments], capture_output=True, text=True, check=True)
    text, _, last = ended.stdout.rstrip("\n").rpartition("\n")
    status, *libraries = last.split()
    return status, text, set(libraries)


def verbs(command, path=()):
    """Every path of words that names a verb: `()`, `("serve",)`, `("models", "list")`."""
    yield path
    if isinstance(command, TyperGroup):
        for name, verb in command.commands.items():
            yield from verbs(verb, (*path, name))


@pytest.mark.parametrize("verb", list(verbs(get_command(app))), ids=" ".join)
def test_help_imports_nothing_heavy(verb):
    status, text, libraries = imported(_MAIN, *verb, "--help")
    assert status == "0"
    assert "Usage: mlserve" in text
    assert libraries.isdisjoint(HEAVY), sorted(libraries & set(HEAVY))


def test_the_version_is_printed_without_anything_heavy():
    status, text, libraries = imported(_MAIN, "--version")
    assert (status, text.strip()) == ("0", "mlserve 0.1.0")
    assert libraries.isdisjoint(HEAVY)


def test_the_probe_sees_what_is_imported():
    """The negative control."""
    assert "onnxruntime" in imported("import onnxruntime; sys.exit(3)")[2]
