"""What answers gRPC fastest: the guard with its fast lane, pygrpc-native without a guard, or grpcio?

    python benchmarks/grpc_transports.py [--turns N] [--json OUT]

All serve the tiny MLP of `serving.py`, with keys, on the same core; the load (h2load, one stream a connection) has
another. The guard is asked in turns with each of the others, A B B A, as in `serving_before.py`, and each pair of turns
gives a ratio. Processor time is the server's: all of its threads.
"""

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

import msgspec
from closed_loop import fail
from rich.progress import track
from served import check_answers, check_counters, make_key, read_failures, serving
from serving import begin, err, ways_to_ask
from serving_before import Compared, compare, show
from subjects import describe, write_tiny

from mlserve.runs.machine import Machine

GUARDED, RIVALS = "guarded", ("native", "grpcio")


class Result(msgspec.Struct, frozen=True):
    """What `--json` writes: for each rival, it before and the guard after."""

    machine: Machine
    turns: int
    load_average: float
    compared: dict[str, list[Compared]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=8, help="pairs of turns of every way")
    parser.add_argument("--json", type=Path, help="file to write what was found to")
    options = parser.parse_args()
    if options.turns < 6:
        fail(f"--turns {options.turns}: an interval takes at least 6 pairs")
    server_core, machine, load_average = begin()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        subject = describe(str(write_tiny(folder / "tiny.onnx")), folder)
        key, ways, servers = make_key(folder), {}, []
        for transport in (GUARDED, *RIVALS):
            (folder / transport).mkdir()
            flags = ("--grpc-transport", transport)
            server = stack.enter_context(serving([subject], (server_core,), folder, folder, key, *flags))
            check_answers(subject, server)
            asked = ways_to_ask(subject, server, server_core, folder / transport)
            ways[transport] = [way for way in asked if way.name == "gRPC"]
            servers.append((server, read_failures(server)))
        compared = {
            rival: [
                compare(before, after, options.turns)
                for before, after in track(list(zip(ways[rival], ways[GUARDED], strict=True)), rival, console=err)
            ]
            for rival in RIVALS
        }
        for server, failed in servers:
            check_counters(server, failed)
    for rival, found in compared.items():
        show(found, f"the guard with its fast lane against {rival}", rival, GUARDED)
    if options.json:
        result = Result(machine, options.turns, load_average, compared)
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


if __name__ == "__main__":
    main()
