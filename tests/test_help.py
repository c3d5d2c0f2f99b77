"""Asking for help is quick: it imports none of the heavy libraries, whichever verb it is about."""

import json
import subprocess
import sys

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from mlserve.cli.main import app

HEAVY = (
    "altair",
    "gevent",
    "grpc",
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
import contextlib, io, json, sys
known = set()
for code, words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    status = "it did not exit"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            exec(code)
        except SystemExit as end:
            status = end.code
    new = {name.partition(".")[0] for name in sys.modules} - known
    known |= new
    print(json.dumps([status, printed.getvalue(), sorted(new)]))
"""
_MAIN = "from mlserve.cli.main import main; sys.argv[0] = 'mlserve'; main()"


def imported(*steps):
    """`(exit status, what was printed, the libraries newly imported)` of each (code, arguments), in one new process."""
    command = [sys.executable, "-c", _PROBE, json.dumps(steps)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    for line in ended.stdout.splitlines():
        status, text, libraries = json.loads(line)
        yield status, text, set(libraries)


def verbs(command, path=()):
    """Every path of words that names a verb: `()`, `("serve",)`, `("models", "list")`."""
    yield path
    if isinstance(command, TyperGroup):
        for name, verb in command.commands.items():
            yield from verbs(verb, (*path, name))


VERBS = list(verbs(get_command(app)))


@pytest.fixture(scope="module")
def helped():
    """What each verb's --help did, by its words, in one process: what any imports, some verb is blamed for."""
    return dict(zip(VERBS, imported(*((_MAIN, [*verb, "--help"]) for verb in VERBS)), strict=True))


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_imports_nothing_heavy(helped, verb):
    status, text, libraries = helped[verb]
    assert status == 0
    assert "Usage: mlserve" in text
    assert " ".join(verb) in text
    assert libraries.isdisjoint(HEAVY), sorted(libraries & set(HEAVY))


def test_the_version_is_printed_without_anything_heavy():
    ((status, text, libraries),) = imported((_MAIN, ["--version"]))
    assert (status, text.strip()) == (0, "mlserve 0.1.0")
    assert libraries.isdisjoint(HEAVY)


def test_the_probe_sees_what_is_imported_and_blames_who_imports_it():
    """The negative control."""
    first, second, third = imported(("import json", []), ("import onnxruntime; sys.exit(3)", []), (_MAIN, ["--help"]))
    assert "onnxruntime" not in first[2] | third[2]
    assert "onnxruntime" in second[2]
    assert (first[0], second[0], third[0]) == ("it did not exit", 3, 0)
