"""The house holds: imports only point downward, nothing imports in a circle, and only `cli` faces the terminal."""

import ast
import gc
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import mlserve

ROOT = Path(mlserve.__file__).parent

# docs/design: a module imports from layers below its own, and from its own room.
LAYER = {
    "__main__": 8,
    "cli": 7,
    "tuning": 6,
    "deploy": 5,
    "optimize": 4,
    "serve": 4,
    "bench": 4,
    "report": 4,
    "engines": 3,
    "wire": 3,
    "model": 2,
    "runs": 2,
    "errors": 1,
    "units": 1,
    "stats": 1,
    "locked_folder": 1,
    "__init__": 0,
}
SAME_LAYER = {
    ("units", "errors"): "a quantity that cannot be read is a UsageError",
    ("runs", "model"): "a run says which artifact answered, in the artifact's own words",
}
# Outside cli: what reads the environment, prints or exits, and why it may.
FACES_OUTSIDE = {
    ("serve/worker.py", "sys.exit"): "the main of a process of its own",
    ("serve/worker.py", "os._exit"): "the main of a process of its own",
    ("serve/worker.py", "sys.stdout"): "its one line to the supervisor",
    ("serve/trial.py", "sys.stdout"): "its one line to the worker",
    ("serve/trial.py", "os._exit"): "the main of a process of its own",
    ("serve/life/last_words.py", "os._exit"): "the end of a process of its own",
    ("serve/supervisor.py", "os.environ"): "hands its environment to the workers",
    ("serve/metrics.py", "os.environ"): "prometheus-client itself is told by the environment",
    ("optimize/importers/worker.py", "sys.exit"): "the main of a process of its own",
    ("optimize/importers/worker.py", "os._exit"): "the main of a process of its own",
    ("optimize/importers/worker.py", "sys.stdout"): "its answers to the importer",
    ("optimize/importing.py", "os.environ"): "hands its environment to the worker",
    ("bench/generator/locust_process.py", "os.environ"): "hands its environment to Locust, without Locust's settings",
    ("bench/generator/user_scenario.py", "SystemExit"): "a user's locustfile may raise it while it is imported",
    ("bench/null_server/__main__.py", "sys.stdout"): "its one line to who started it",
    ("bench/leash.py", "sys.exit"): "ends a Locust process whose parent has gone",
}


def modules(root):
    """Dotted name below `root` -> path, of every module; a package is its `__init__`."""
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts)] = path
    return found


KINDS = (ast.Import, ast.ImportFrom, ast.Attribute, ast.Name)


@cache
def nodes(path):
    """The nodes of the module `path` that a rule looks at; three rules look at the same ones."""
    gc.disable()  # it would go through the half of a tree again and again
    try:
        return [node for node in ast.walk(ast.parse(path.read_text(), str(path))) if isinstance(node, KINDS)]
    finally:
        gc.enable()


def imports(path, known):
    """The modules of `known` that `path` imports: at the top, in functions, and for type checkers alike."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.partition(".")[0] == "mlserve":
                yield _module(name, known)


def _module(name, known):
    """`mlserve.wire.rest.decode_request` -> `wire.rest`; `mlserve.wire` -> `wire.__init__`."""
    parts = name.split(".")[1:]
    for end in range(len(parts), -1, -1):
        for candidate in (".".join(parts[:end]), ".".join([*parts[:end], "__init__"])):
            if candidate in known:
                return candidate
    raise AssertionError(f"{name} is no module")


def upward_imports(root):
    """`(importer, imported)` of every import that does not point downward."""
    known = modules(root)
    wrong = []
    for importer, path in known.items():
        for imported in imports(path, known):
            rooms = importer.partition(".")[0], imported.partition(".")[0]
            if rooms[0] != rooms[1] and rooms not in SAME_LAYER and LAYER[rooms[0]] <= LAYER[rooms[1]]:
                wrong.append((importer, imported))
    return wrong


def cycle(root):
    """The modules of one circle of imports; empty when there is none."""
    known = modules(root)
    graph = {
        importer: {other for other in imports(path, known) if other != importer} for importer, path in known.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def faces_outside(root):
    """`(file, what)` of every use of the terminal, the environment or the exit outside cli."""
    used = set()
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        if not name.startswith("cli/"):
            used |= {(name, what) for what in _outside(path)}
    return used


def _outside(path):
    for node in nodes(path):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            what = f"{node.value.id}.{node.attr}"
            if what in {"sys.exit", "sys.stdout", "os._exit", "os.environ", "os.getenv", "os.putenv"}:
                yield what
        elif isinstance(node, ast.Name) and node.id in {
            "print",
            "exit",
            "quit",
            "SystemExit",
            "environ",
            "getenv",
            "input",
        }:
            yield node.id
        elif isinstance(node, ast.ImportFrom) and node.module in {"sys", "os"}:
            yield from (
                f"{node.module}.{alias.name}" for alias in node.names if alias.name in {"exit", "environ", "stdout"}
            )
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (name for name in names if name.partition(".")[0] in {"typer", "rich", "click"})


def test_imports_point_downward():
    assert upward_imports(ROOT) == []


def test_no_modules_import_in_a_circle():
    assert cycle(ROOT) == []


def test_every_room_has_a_layer():
    assert {name.partition(".")[0] for name in modules(ROOT)} <= LAYER.keys()


def test_only_cli_prints_exits_and_reads_the_environment_and_every_exception_is_needed():
    assert faces_outside(ROOT) == FACES_OUTSIDE.keys()


def _house(root, **files):
    for name, content in files.items():
        path = root / f"{name.replace('__in__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_the_rules_would_find_what_breaks_them(tmp_path):
    """The negative control: a house that breaks each rule in each way an import can be written."""
    house = _house(
        tmp_path,
        __init__="",
        errors="",
        units="from mlserve.errors import UsageError",
        runs__in__run="from mlserve.model.store import Store",
        model__in__store="from mlserve import errors\nimport os",
        model__in__rows="def read():\n    from mlserve.runs import run\n",
        serve__in__worker="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import mlserve.bench.driver\n",
        bench__in__driver="from mlserve.cli import main\nimport os\nprint(os.environ)",
        report__in__page="from rich.console import Console\nfrom mlserve.report import part\nraise SystemExit",
        report__in__part="from mlserve.report.page import Console",
        cli__in__main="from mlserve.serve.worker import x\nprint(1)",
    )
    assert sorted(upward_imports(house)) == [
        ("bench.driver", "cli.main"),
        ("model.rows", "runs.run"),
        ("serve.worker", "bench.driver"),
    ]
    assert set(cycle(house)) in ({"report.page", "report.part"}, {"cli.main", "serve.worker", "bench.driver"})
    assert faces_outside(house) == {
        ("bench/driver.py", "print"),
        ("bench/driver.py", "os.environ"),
        ("report/page.py", "rich.console"),
        ("report/page.py", "SystemExit"),
    }
