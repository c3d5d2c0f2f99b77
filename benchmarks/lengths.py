"""What batching by length brings: one server that batches texts by length beside one that takes them as they arrive.

    python benchmarks/lengths.py [--model STORE_REF] [--store FOLDER] [--in-flight N] [--json OUT]

Both are `mlserve serve` with the same model and the same settings but one, on the same core, and take turns. Arrival
order pads a batch to its longest text, as servers do that know nothing of lengths. The texts are real sentences of
WordNet, joined or cut to lengths that are drawn from a log-normal distribution (seeded, 4 to 256 tokens). So many
requests are kept in flight, one text each, over REST; the table shows medians over the turns. Before anything is timed,
both must give the same answers.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
from closed_loop import WARM_UP_S, err, fail
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mlserve.errors import MlserveError
from mlserve.model.artifact import Artifact
from mlserve.model.store import Store
from mlserve.model.tokens import TOKENIZER_FILE, open_tokenizer
from mlserve.runs.machine import Machine, read_machine
from mlserve.serve.settings import BatchSettings, ModelSource, ServeSettings
from mlserve.serve.supervisor import run_server
from mlserve.stats import quantile
from mlserve.units import format_duration, format_rate

SENTENCES = Path(__file__).parent.parent / "recipes" / "sentences.txt"
FEWEST_TOKENS, MOST_TOKENS = 4, 256
MEDIAN_TOKENS, SPREAD = 20.0, 0.9
TEXTS = 2048
WAYS = {"by length": True, "in order of arrival": False}
# Cosine of two answers to one text: one less what rounding brings.
SAME_FROM = 0.999


class Turn(msgspec.Struct, frozen=True):
    """One turn of one way; latencies are of requests as the client saw them."""

    way: str
    texts_per_s: float
    p50_s: float
    p99_s: float


class Result(msgspec.Struct, frozen=True):
    """What `--json` writes. `tokens` are those of every text, in the order they are sent."""

    machine: Machine
    model: str
    in_flight: int
    seconds: float
    load_average: float
    tokens: list[int]
    turns: list[Turn]
    ratio: float


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(msgspec.json.decode(sys.argv[2], type=ServeSettings))
        return
    options = parse_options()
    server_core, load_core = choose_cores()
    load_average = os.getloadavg()[0]
    os.sched_setaffinity(0, {load_core})
    artifact = find(options)
    texts, tokens = long_tailed(artifact, options.seed)
    with (
        serving(artifact, server_core, by_length=True) as ours,
        serving(artifact, server_core, by_length=False) as other,
    ):
        servers = dict(zip(WAYS, (ours, other), strict=True))
        check_answers(servers, texts)
        turns = measure(servers, texts, options)
    result = Result(
        read_machine(), artifact.ref, options.in_flight, options.seconds, load_average, tokens, turns, ratio(turns)
    )
    show(result)
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm", help="a text model of the store")
    parser.add_argument("--store", type=Path, default=Path("store"), help="folder that holds the models")
    parser.add_argument("--in-flight", type=int, default=32, help="requests kept in flight")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of one turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each way")
    parser.add_argument("--seed", type=int, default=0, help="of the lengths and the order of the texts")
    parser.add_argument("--json", type=Path, help="file to write every turn to")
    options = parser.parse_args()
    if options.seconds < 1 or options.repeats < 1 or options.in_flight < 1:
        fail("--seconds, --repeats and --in-flight must be at least 1")
    return options


def choose_cores() -> tuple[int, int]:
    """One core for the servers, another for the load."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        fail("this needs two cores: one for the servers, one for the load")
    return cores[0], cores[1]


def find(options: argparse.Namespace) -> Artifact:
    try:
        artifact = Store(options.store.resolve()).resolve(options.model)
    except MlserveError as error:
        fail(f"{error}; the demo makes it: make demo, then --store demo/store")
    if not artifact.manifest.rows_independent:
        fail(f"the rows of {artifact.ref} run one by one, for each would change the others' answers; take fp32")
    return artifact


def long_tailed(artifact: Artifact, seed: int) -> tuple[list[str], list[int]]:
    """Texts of log-normal length, and how many tokens each has."""
    tokenizer = open_tokenizer(artifact.directory / TOKENIZER_FILE, MOST_TOKENS)
    tokenizer.no_padding()
    lines = [line.strip() for line in SENTENCES.read_text().splitlines()]
    words = " ".join(line for line in lines if line and not line.startswith("#")).split()
    rng = np.random.default_rng(seed)
    wanted = np.clip(MEDIAN_TOKENS * np.exp(SPREAD * rng.standard_normal(TEXTS)), FEWEST_TOKENS, MOST_TOKENS).astype(
        int
    )
    texts = []
    for length in wanted.tolist():
        start = int(rng.integers(len(words) - MOST_TOKENS))
        end = start + length
        while end > start + 1 and len(tokenizer.encode(" ".join(words[start:end])).ids) > length:
            end -= 1
        texts.append(" ".join(words[start:end]))
    return texts, [len(tokenizer.encode(text).ids) for text in texts]


def serve(settings: ServeSettings) -> None:
    """A server of its own process, as `mlserve serve` runs it."""

    def ready(endpoints: object) -> None:
        print(msgspec.json.encode(endpoints).decode(), flush=True)

    run_server(settings, ready)


@contextmanager
def serving(artifact: Artifact, core: int, *, by_length: bool) -> Iterator[int]:
    """The HTTP port of a server on `core`."""
    settings = ServeSettings(
        models=(ModelSource("m", "1", str(artifact.directory)),),
        defaults={"m": "1"},
        http_port=0,
        grpc_port=0,
        batch=BatchSettings(by_length=by_length),
    )
    command = ["taskset", "-c", str(core), sys.executable, __file__, "--serve", msgspec.json.encode(settings).decode()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        document = b""
        while line := process.stdout.readline():
            document += line
            if document.count(b"{") and document.count(b"{") == document.count(b"}"):
                break
        if not document:
            fail("the server did not start")
        yield int(json.loads(document)["http"].rpartition(":")[2])
    finally:
        process.terminate()
        process.wait(60)


def request_of(text: str) -> bytes:
    """The bytes of one request."""
    body = msgspec.json.encode({"text": text})
    head = b"POST /v1/models/m/predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)


async def ask(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], request: bytes) -> bytes:
    """The body of the answer."""
    reader, writer = streams
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        fail(f"the server answered {head.splitlines()[0].decode()}")
    size = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return await reader.readexactly(int(size.partition(b":")[2]))


def check_answers(servers: dict[str, int], texts: list[str]) -> None:
    """Ends the program unless all servers give the same embeddings, to many requests at once."""

    async def answers(port: int) -> list[list[float]]:
        async def one(text: str) -> list[float]:
            streams = await asyncio.open_connection("127.0.0.1", port)
            answer: list[float] = json.loads(await ask(streams, request_of(text)))["embedding"]
            streams[1].close()
            return answer

        return await asyncio.gather(*[one(text) for text in texts[:48]])

    ours, others = (np.array(asyncio.run(answers(port))) for port in servers.values())
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(others, axis=1)
    if ((ours * others).sum(1) / lengths < SAME_FROM).any():
        err.print("[yellow]warning:[/] the two servers' answers differ by more than rounding: int8 scales differ")


def measure(servers: dict[str, int], texts: list[str], options: argparse.Namespace) -> list[Turn]:
    """Turns of every way, interleaved, the first of each in turn; one of each before is not counted."""
    requests = [request_of(text) for text in texts]
    turns: list[Turn] = []
    for repeat in track(range(options.repeats + 1), "taking turns", console=err):
        order = list(servers) if repeat % 2 else list(servers)[::-1]
        for way in order:
            seconds = options.seconds if repeat else WARM_UP_S
            took = asyncio.run(closed_loop(servers[way], requests, options.in_flight, seconds))
            if repeat:
                turns.append(Turn(way, len(took) / seconds, quantile(took, 0.5), quantile(took, 0.99)))
    return turns


async def closed_loop(port: int, requests: list[bytes], in_flight: int, seconds: float) -> list[float]:
    """How long each request took (seconds), of those answered within `seconds`."""
    took: list[float] = []
    numbers = iter(range(10**9))
    until = time.perf_counter() + seconds

    async def client() -> None:
        streams = await asyncio.open_connection("127.0.0.1", port)
        while (sent := time.perf_counter()) < until:
            await ask(streams, requests[next(numbers) % len(requests)])
            done = time.perf_counter()
            if done <= until:
                took.append(done - sent)
        streams[1].close()

    await asyncio.gather(*[client() for _ in range(in_flight)])
    return took


def ratio(turns: list[Turn]) -> float:
    """Throughput by length over throughput in order of arrival, the median over pairs of turns."""
    ours, others = ([turn.texts_per_s for turn in turns if turn.way == way] for way in WAYS)
    return median(one / other for one, other in zip(ours, others, strict=True))


def show(result: Result) -> None:
    lengths = np.array(result.tokens)
    title = (
        f"{result.model}, {result.in_flight} in flight; tokens: mean {lengths.mean():.0f}, "
        f"p50 {np.median(lengths):.0f}, p99 {np.quantile(lengths, 0.99):.0f}"
    )
    table = Table(title=title, box=SIMPLE_HEAD)
    for column in ("batched", "texts/s", "p50", "p99"):
        table.add_column(column, justify="left" if column == "batched" else "right")
    for way in WAYS:
        turns = [turn for turn in result.turns if turn.way == way]
        rate, p50_s, p99_s = (
            median(getattr(turn, name) for turn in turns) for name in ("texts_per_s", "p50_s", "p99_s")
        )
        table.add_row(way, format_rate(rate), format_duration(p50_s), format_duration(p99_s))
    console = Console()
    console.print(table)
    console.print(f"by length: {result.ratio:.2f}x the throughput (median over turns of the same moment)")


if __name__ == "__main__":
    main()
