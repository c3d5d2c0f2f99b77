"""How often does the gate err, and after how many runs does it decide? Simulated gates; real ones: gating_real.py.

    .venv/bin/python benchmarks/gating.py --simulated [--gates 1000] [--json FILE]

Each row is one kind of candidate and limit. The machine has latencies that wander as behind a queue, runs that differ
by themselves, and a drift (mlserve/report/gating/simulated.py). A p99 that is worse by 5% must be caught in 95% of
gates, the same server may fail in 1%, whatever is allowed, and 2% worse with 5% allowed must pass.

Exit status 1 when one of them does not hold.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

from mlserve.report.gating.limits import parse_gate_limits
from mlserve.report.gating.result import Verdict
from mlserve.report.gating.simulated import Rig, simulate_gate


class Case(NamedTuple):
    """`verdict` must come in at least the share `least`, or, where `most` is given, in at most that."""

    name: str
    limits: str
    slower: float
    rig: Rig
    verdict: Verdict
    least: float = 0.0
    most: float = 1.0


QUICK, USUAL, NOISY = Rig(requests=100), Rig(requests=3000), Rig(requests=3000, run_spread=0.03)
CASES = (
    Case("the same server", "p50=0%,p90=0%", 1.0, QUICK, "fail", most=0.01),
    Case("the same server", "p99=2%", 1.0, QUICK, "fail", most=0.01),
    Case("the same server", "p50=5%,p99=5%", 1.0, USUAL, "pass", least=0.95),
    Case("5% slower", "p99=0%", 1.05, USUAL, "fail", least=0.95),
    Case("5% slower", "p99=2%", 1.05, USUAL, "fail", least=0.95),
    Case("5% slower, noisy runs", "p99=0%", 1.05, NOISY, "fail", least=0.95),
    Case("2% slower", "p99=5%", 1.02, USUAL, "pass", least=0.90),
    Case("2% slower", "p99=5%", 1.02, USUAL, "fail", most=0.0),
    Case("as slow as is allowed", "p99=5%", 1.05, USUAL, "fail", most=0.01),
    Case("as slow as is allowed", "p99=5%", 1.05, USUAL, "pass", most=0.08),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulated", action="store_true", help="what this does; real gates: gating_real.py")
    parser.add_argument("--gates", type=int, default=200)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = [measure(case, asked.gates) for case in CASES]
    show(rows, asked.gates)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if all(row["holds"] for row in rows) else 1


def measure(case: Case, gates: int) -> dict[str, Any]:
    limits = parse_gate_limits([case.limits])
    ended = [simulate_gate(limits, case.slower, case.rig, seed) for seed in range(gates)]
    count = Counter(one.verdict for one in ended)
    low, high = binomtest(count[case.verdict], gates).proportion_ci(0.95, method="exact")
    share = count[case.verdict] / gates
    return {
        "candidate": case.name,
        "limits": case.limits,
        "wanted": f"{case.verdict} {f'>= {case.least:.0%}' if case.least else f'<= {case.most:.0%}'}",
        "found": f"{share:.1%} ({low:.1%} to {high:.1%})",
        "verdicts": dict(count),
        "suspected": sum(one.suspected for one in ended),
        "pairs": [float(value) for value in np.percentile([one.pairs for one in ended], [50, 95])],
        "holds": case.least <= share <= case.most,
    }


def show(rows: list[dict[str, Any]], gates: int) -> None:
    table = Table(box=SIMPLE_HEAD, title=f"{gates} simulated gates each")
    for heading in ("candidate", "limits", "wanted", "found", "suspected", "pairs (median, 95%)", ""):
        table.add_column(heading)
    for row in rows:
        pairs = " ".join(f"{value:.0f}" for value in row["pairs"])
        verdict = "holds" if row["holds"] else "FAILS"
        table.add_row(
            row["candidate"], row["limits"], row["wanted"], row["found"], str(row["suspected"]), pairs, verdict
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
