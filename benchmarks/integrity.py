"""Batch integrity: does every client get the answer to its own request, whoever shares a batch with it?

    python benchmarks/integrity.py [--requests 100000] [--clients 64] [--workers 1]

Clients ask at the same time, each on connections of its own, over V2 (JSON, binary, gRPC) and TensorFlow Serving's API
(REST by row and by column, gRPC), for two models, one of them in two versions, with requests of different shapes. No
two requests hold the same number or text anywhere, and the answer to each is known beforehand. One request in fifty
holds an id that the model cannot look up: it must be refused, and those that shared its batch answered.

Before that, the same questions are put to a server that hands every answer to its neighbour in the batch. Nothing is
said about the real one unless those are caught.

The exit status is 1 when an answer was crossed or lost, 2 when nothing could be shown.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from integrity_clients import WAYS, Client, Endpoints, ask
from integrity_questions import CELLS, DEFAULTS, Question, Verdict, judge, make_models, make_questions
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mlserve.serve.settings import BatchSettings, ModelSource, ServeSettings

# Long enough for clients that share two cores with the server to meet in a batch.
DELAY_S = 0.002

_SERVE = """
import sys, msgspec
from mlserve.serve.settings import ServeSettings
from mlserve.serve.supervisor import run_server

def ready(endpoints):
    sys.stdout.buffer.write(msgspec.json.encode(endpoints) + b"\\n")
    sys.stdout.flush()

if __name__ == "__main__":
    run_server(msgspec.json.decode(sys.argv[1], type=ServeSettings), ready)
"""

_CROSSED = """
import mlserve.serve.batching.batcher as batcher

right = batcher.split

def crossed(tickets, outputs):
    results = right(tickets, outputs)
    answers = [answer for _, answer in results]
    return [(ticket, answers[position - 1]) for position, (ticket, _) in enumerate(results)]

batcher.split = crossed
"""


@contextmanager
def serving(
    models: tuple[ModelSource, ...], folder: Path, *, workers: int = 1, crossed: bool = False
) -> Iterator[Endpoints]:
    """A server on free ports, its log in `folder`; a `crossed` one gives every answer to its neighbour in the batch."""
    settings = ServeSettings(
        models=models,
        defaults=DEFAULTS,
        http_port=0,
        grpc_port=0,
        workers=workers,
        batch=BatchSettings(max_delay_s=DELAY_S),
    )
    environment = dict(os.environ)
    if crossed:
        (folder / "sitecustomize.py").write_text(_CROSSED)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), environment.get("PYTHONPATH")]))
    log = folder / f"server{'-crossed' * crossed}.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, msgspec.json.encode(settings).decode()],
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with {process.wait(30)}: {log.read_text()}")
        told = json.loads(line)
        if "Error in sitecustomize" in log.read_text():  # a control that controls nothing
            raise RuntimeError(f"the fault could not be planted: {log.read_text()}")
        yield Endpoints(told["http"].removeprefix("http://"), told["grpc"])
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


class Tally:
    """How many verdicts there were of each kind, by way; and the first few faults, in words."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, Verdict]] = Counter()
        self.faults: list[str] = []

    def add(self, way: str, verdict: Verdict, told: str) -> None:
        """Counts one answer; `told` says what was wrong with it."""
        self.counts[way, verdict] += 1
        if verdict in ("crossed", "lost") and len(self.faults) < 5:
            self.faults.append(told)

    def total(self, verdict: Verdict | None = None) -> int:
        """Of all ways together."""
        return sum(count for (_, each), count in self.counts.items() if verdict in (None, each))


def ask_all(
    endpoints: Endpoints,
    questions: Sequence[Question],
    clients: int,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Tally:
    """Lets `clients` ask all `questions`, each its share of them, one after the other, the ways in turn."""
    tally, lock = Tally(), threading.Lock()

    def ask_share(first: int) -> None:
        client = Client(endpoints)
        for question in questions[first::clients]:
            way = WAYS[(question.number // clients + first) % len(WAYS)]
            answer = ask(client, way, question)
            verdict = judge(question, answer)
            told = f"{way.__name__}: {question} was answered {answer}"
            with lock:
                tally.add(way.__name__, verdict, told)
        client.close()

    threads = [threading.Thread(target=ask_share, args=(first,), daemon=True) for first in range(clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.05)
        with lock:
            on_progress(tally.total())
    missing = len(questions) - tally.total()
    for _ in range(missing):  # whose client broke down
        tally.add("unknown", "lost", "a client ended before it had asked all its questions")
    return tally


def main() -> None:
    arguments = _arguments()
    console = Console()
    ids = arguments.requests * CELLS
    control = make_questions(min(arguments.requests, 2000), seed=1, ids=ids)
    questions = make_questions(arguments.requests)
    with tempfile.TemporaryDirectory(prefix="mlserve-integrity-") as name:
        folder = Path(name)
        models = make_models(folder, ids)
        seen = _run(models, folder, control, arguments, "crossed on purpose", crossed=True)
        if not seen.total("crossed"):
            console.print("[bold red]nothing is shown:[/] no answer of a server that crosses them was caught")
            sys.exit(2)
        started_s = time.perf_counter()
        tally = _run(models, folder, questions, arguments, "asking", crossed=False)
        took_s = time.perf_counter() - started_s
    _show(console, tally)
    console.print(
        f"{tally.total():,} requests from {arguments.clients} clients in {took_s:.0f} s, "
        f"{arguments.workers} worker{'s' * (arguments.workers > 1)}. The control: of {seen.total():,} answers of a "
        f"server that crosses them in every shared batch, {seen.total('crossed'):,} were caught."
    )
    if tally.total("crossed") or tally.total("lost"):
        console.print("[bold red]some answers were crossed or lost:[/]")
        for fault in tally.faults:
            console.print(fault, markup=False, highlight=False)
        sys.exit(1)
    console.print("[bold green]no answer was crossed or lost, and every bad request was refused alone[/]")


def _run(
    models: tuple[ModelSource, ...],
    folder: Path,
    questions: Sequence[Question],
    arguments: argparse.Namespace,
    title: str,
    *,
    crossed: bool,
) -> Tally:
    with (
        serving(models, folder, workers=arguments.workers, crossed=crossed) as endpoints,
        Progress(transient=True) as progress,
    ):
        task = progress.add_task(title, total=len(questions))
        return ask_all(endpoints, questions, arguments.clients, lambda done: progress.update(task, completed=done))


def _show(console: Console, tally: Tally) -> None:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("way")
    verdicts: tuple[Verdict, ...] = ("right", "refused", "crossed", "lost")
    for verdict in verdicts:
        table.add_column(verdict, justify="right")
    ways = [way.__name__ for way in WAYS]
    ways += [way for way, _ in tally.counts if way not in ways]
    for way in dict.fromkeys(ways):
        table.add_row(way, *(f"{tally.counts[way, verdict]:,}" for verdict in verdicts))
    table.add_row("all", *(f"{tally.total(verdict):,}" for verdict in verdicts), style="bold")
    console.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000, help="how many (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=64, help="who ask at the same time (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="worker processes of the server (default: %(default)s)")
    arguments = parser.parse_args()
    if min(arguments.requests, arguments.clients, arguments.workers) < 1:
        parser.error("--requests, --clients and --workers are at least 1")
    return arguments


if __name__ == "__main__":
    main()
