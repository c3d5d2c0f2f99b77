"""Every module says what it offers: `__all__` is sorted, real and complete, and nobody takes what is not offered."""

import ast
import gc
import importlib
import re
from pathlib import Path

import pytest

import mlserve

ROOT = Path(mlserve.__file__).parent
# A program of its own, which nobody imports.
PROGRAMS = {"__main__"}
# Importing Locust patches the whole process: these are for a process of its own.
IN_LOCUST = {"bench.generator.locustfile", "bench.generator.user_scenario"}


def _modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = [part for part in path.relative_to(ROOT).with_suffix("").parts if part != "__init__"]
        yield ".".join(parts), path


@pytest.fixture(scope="module")
def trees():
    """The tree of every module, by its dotted name."""
    gc.disable()  # it would go through all the trees so far again and again
    try:
        return {name: ast.parse(path.read_text()) for name, path in _modules()}
    finally:
        gc.enable()


def offered(tree):
    """The `__all__` of a module; None when it has none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return ast.literal_eval(node.value)
    return None


def defined(tree):
    """The public functions and classes at the top of a module."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def taken(trees):
    """`(module, name)` of every name that another module imports."""
    return {
        (node.module.removeprefix("mlserve").removeprefix("."), alias.name)
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "mlserve"
        for alias in node.names
    }


def order(name):
    """ruff's RUF022: constants, then classes, then the rest; numbers inside names by their value."""
    kind = 0 if name.isupper() else 1 if name[:1].isupper() else 2
    return kind, [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def faults(trees):
    """What is wrong with the public names of `trees` (dotted name -> tree), one sentence each."""
    found = []
    for module, tree in trees.items():
        names = offered(tree)
        public = defined(tree)
        if names is None:
            if public and module not in PROGRAMS:
                found.append(f"{module} defines {public[0].name} and has no __all__")
            continue
        if names != sorted(set(names), key=order):
            found.append(f"{module}.__all__ is not sorted")
        found += [
            f"{module}.{node.name} is documented and not in __all__"
            for node in public
            if node.name not in names and ast.get_docstring(node)
        ]
    for module, name in sorted(taken(trees)):
        is_module = f"{module}.{name}".lstrip(".") in trees
        if not is_module and module in trees and name not in (offered(trees[module]) or ["__version__"]):
            found.append(f"{module}.{name} is imported elsewhere and not in __all__")
    return found


def test_every_module_offers_what_it_documents_and_what_others_take_sorted(trees):
    assert faults(trees) == []


def test_every_offered_name_exists(trees):
    missing = []
    for module, tree in trees.items():
        if module not in IN_LOCUST and offered(tree):
            loaded = importlib.import_module(f"mlserve.{module}".rstrip("."))
            missing += [f"{module}.{name}" for name in offered(tree) if not hasattr(loaded, name)]
    assert missing == []


def test_the_rules_would_find_what_breaks_them():
    """The negative control."""
    sources = {
        "a": "__all__ = ['zeta', 'Alpha', 'MOST']\ndef zeta(): ...\nclass Alpha: ...\nMOST = 1",
        "b": "from mlserve.c import hidden\nfrom mlserve import c",
        "c": "__all__ = ['shown']\ndef shown():\n    '''Shown.'''\ndef hidden(): ...\ndef told():\n    '''Told.'''",
        "d": "def alone(): ...",
        "e": "__all__ = ['MOST', 'Alpha', 'v2', 'v10']\nfrom mlserve.c import shown",
    }
    assert faults({name: ast.parse(text) for name, text in sources.items()}) == [
        "a.__all__ is not sorted",
        "c.told is documented and not in __all__",
        "d defines alone and has no __all__",
        "c.hidden is imported elsewhere and not in __all__",
    ]
