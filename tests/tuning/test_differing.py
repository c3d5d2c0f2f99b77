"""In what two requests differ: told as they are asked for, and never as raw JSON."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.report.gating.limits import parse_gate_limits
from mlserve.runs.load import Plan, Ramp
from mlserve.tuning.differing import differing
from mlserve.tuning.evidence import parse_slo
from mlserve.tuning.gating.asked import LiveGate
from mlserve.tuning.gating.side import Side
from mlserve.tuning.grid import Axis, Sweep
from mlserve.tuning.serving import ServerOptions
from mlserve.tuning.source import Contender

SIDE = Side(contender=Contender("m@1", "m@1"), store="store", options=ServerOptions())
GATE = LiveGate(
    base=SIDE,
    candidate=SIDE,
    plan=Plan(rate_per_s=100.0, duration_s=10.0, warm_up_s=2.0),
    limits=parse_gate_limits(["p99=5%,p50<=50ms"]),
    objective=parse_slo("p99=50ms"),
)
SWEEP = Sweep(contenders=(SIDE.contender,), axes=(Axis("rps", (100.0, 200.0)),), plan=GATE.plan)


def told(held, wanted):
    return differing(*(msgspec.json.decode(msgspec.json.encode(each)) for each in (held, wanted)))


def but(asked, **changes):
    return msgspec.structs.replace(asked, **changes)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (but(GATE, plan=but(GATE.plan, duration_s=1.5)), "--duration 10.0 s there, 1.50 s now"),
        (but(GATE, plan=but(GATE.plan, percentile=0.999)), "--percentile p99 there, p99.9 now"),
        (but(GATE, plan=but(GATE.plan, shape=Ramp(20.0))), "--shape type flat there, type ramp to_per_s 20.0/s now"),
        (but(GATE, limits=parse_gate_limits(["p99=3%"])), "--max-regression p99=5%, p50<=50ms there, p99=3% now"),
        (but(GATE, objective=parse_slo("p95=50ms")), "--slo p99=50ms there, p95=50ms now"),
        (but(GATE, objective=parse_slo("p99=50ms", "1%")), "--errors 0.1% there, 1% now"),
        (but(GATE, resolution=0.01), "--resolution 5% there, 1% now"),
        (but(GATE, keep_servers=True), "--keep-servers off there, on now"),
        (
            but(GATE, candidate=but(SIDE, options=ServerOptions(workers=2))),
            "candidate: --server-workers 1 there, 2 now",
        ),
        (
            but(GATE, base=but(SIDE, contender=Contender("n@1", "m@1"))),
            "base: what is measured m@1 there, n@1 now",
        ),
    ],
)
def test_each_difference_is_told_by_its_flag(wanted, words):
    assert told(GATE, wanted) == [words]
    assert told(GATE, GATE) == []


def test_other_axes_and_models_are_told_as_they_are_written():
    assert told(SWEEP, but(SWEEP, axes=(Axis("rps", (100.0,)),))) == ["--sweep rps=100,200 there, rps=100 now"]
    (line,) = told(SWEEP, but(SWEEP, contenders=()))
    assert line == "contenders where m@1 name m@1 there, not set now"


_JSON = st.recursive(
    st.booleans() | st.integers(-9, 9) | st.floats(0, 1e6) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["plan", "limits", "objective", "metric", "values", "rate_per_s"]), inner)
    ),
    max_leaves=12,
)


@given(_JSON, _JSON)
def test_whatever_two_files_hold_is_told_where_it_differs_and_only_there(held, wanted):
    assert (differing(held, wanted) == []) == (held == wanted)
    assert differing(held, held) == []
