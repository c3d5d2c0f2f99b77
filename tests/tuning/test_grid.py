"""The grid: what may be swept, which cells it makes, and in which order they are taken."""

import re
from collections import Counter
from itertools import groupby

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import UsageError
from mlserve.runs.load import Plan, Replay
from mlserve.tuning.grid import AXES, Axis, Sweep, cells_of, parse_sweep, turns_of
from mlserve.tuning.opening import Contender, contender_protocol, named_contender, settled
from mlserve.tuning.serving import ServerOptions

MODEL = Contender("minilm@1", "minilm@1")
PLAN = Plan(rate_per_s=100.0, duration_s=2.0, warm_up_s=0.5)


def sweep(*axes, contenders=(MODEL,), repeats=1, plan=PLAN, **more):
    return Sweep(contenders=contenders, axes=parse_sweep(axes), plan=plan, repeats=repeats, **more)


def test_every_kind_of_value_is_read_as_its_axis_reads_it():
    axes = parse_sweep(["batch=1,8", "protocol=grpc, rest", "max-delay-ms=0,2.5", "device=cpu,cuda:1", "rps=1e2"])
    assert axes == (
        Axis("batch", (1, 8)),
        Axis("protocol", ("grpc", "rest")),
        Axis("max_delay_ms", (0.0, 2.5)),
        Axis("device", ("cpu", "cuda:1")),
        Axis("rps", (100.0,)),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("batch", "'batch' is no axis; write NAME=VALUE"),
        ("batch=", "is no axis"),
        ("colour=red", "colour: there is no such axis; use arrivals, batch"),
        ("batch=0", "batch='0' cannot be used; write whole numbers from 1"),
        ("batch=1,,8", "batch='' cannot be used"),
        ("batch=1.5", "batch='1.5' cannot be used"),
        ("rps=nan", "rps='nan' cannot be used; write rates above 0"),
        ("rps=inf", "rps='inf' cannot be used"),
        ("device=tpu", "device='tpu' cannot be used; write cpu, cuda"),
        ("engine=steam", "engine='steam' cannot be used; write onnxruntime, openvino"),
        ("compute_type=int3", "compute_type='int3' cannot be used; write bf16, fp16"),
        ("protocol=soap", "protocol=soap: .*unknown"),
        ("arrivals=closed", "a closed loop is swept by its users"),
        ("batch=8,8", "a value is given twice"),
    ],
)
def test_what_is_no_axis_is_refused_in_words_that_help(text, says):
    with pytest.raises(UsageError, match=says):
        parse_sweep([text])


def test_an_axis_given_twice_is_refused():
    with pytest.raises(UsageError, match="batch is given twice"):
        parse_sweep(["batch=1", "batch=8"])


@given(st.text(max_size=30))
def test_no_text_is_worse_than_a_usage_error(text):
    try:
        axes = parse_sweep([text])
    except UsageError:
        return
    assert axes[0].name in AXES


def test_every_combination_is_one_cell_with_a_folder_of_its_own():
    cells = cells_of(sweep("batch=1,8", "protocol=grpc,rest", "threads=1,2"))
    assert len(cells) == 8
    assert {(cell.plan.batch_rows, cell.plan.protocol, cell.options.threads) for cell in cells} == {
        (batch, protocol, threads) for batch in (1, 8) for protocol in ("grpc", "rest") for threads in (1, 2)
    }
    labels = [cell.label for cell in cells]
    assert labels[0] == "batch1-grpc-threads1"
    assert len(set(labels)) == 8
    assert all(re.fullmatch(r"[A-Za-z0-9._@~-]+", label) for label in labels)


def test_open_and_closed_loads_are_one_axis_and_not_a_product():
    cells = cells_of(sweep("rps=100,200", "users=1,4", "arrivals=poisson,constant"))
    loads = sorted((cell.plan.arrivals, cell.plan.rate_per_s, cell.plan.users) for cell in cells)
    assert loads == [
        ("closed", 0.0, 1),
        ("closed", 0.0, 4),
        ("constant", 100.0, 0),
        ("constant", 200.0, 0),
        ("poisson", 100.0, 0),
        ("poisson", 200.0, 0),
    ]


def test_names_that_differ_only_in_what_a_folder_cannot_hold_have_folders_of_their_own():
    twins = (Contender("http://h:1", "a/b"), Contender("http://h:2", "a:b"), Contender("http://h:3", "A_B"))
    labels = [cell.label for cell in cells_of(sweep(contenders=twins))]
    assert len({label.lower() for label in labels}) == 3
    assert not any("/" in label for label in labels)


def test_several_targets_are_an_axis_and_each_speaks_its_own_protocol():
    targets = (named_contender("ours=grpc://127.0.0.1:1/m"), named_contender("theirs=http://127.0.0.1:2/v2/models/m"))
    cells = cells_of(sweep("batch=1,8", contenders=targets))
    assert [(cell.contender.name, cell.plan.protocol, cell.options) for cell in cells[::2]] == [
        ("ours", "grpc", None),
        ("theirs", "rest", None),
    ]
    assert dict(cells[0].values) == {"target": "ours", "batch": "1"}
    asked_for = cells_of(sweep(contenders=targets[1:], any_protocol=False))
    assert asked_for[0].plan.protocol == "rest"


def test_settings_of_a_server_that_runs_already_are_refused():
    running = Contender("http://127.0.0.1:1", "theirs")
    with pytest.raises(UsageError, match=r"threads: http://127.0.0.1:1 runs already"):
        cells_of(sweep("threads=1,2", contenders=(MODEL, running)))
    assert len(cells_of(sweep("threads=1,2"))) == 2


def test_engine_and_compute_type_are_settings_of_the_server():
    cells = cells_of(sweep("engine=onnxruntime,openvino", "compute-type=bf16,fp32"))
    assert [(cell.options.engine, cell.options.compute_type) for cell in cells] == [
        *(("onnxruntime", "bf16"), ("onnxruntime", "fp32")),
        *(("openvino", "bf16"), ("openvino", "fp32")),
    ]
    assert len({cell.label for cell in cells}) == 4


def test_a_grid_without_end_is_refused():
    numbers = ",".join(map(str, range(1, 200)))
    with pytest.raises(UsageError, match="more than 10,000 cells"):
        cells_of(sweep(f"batch={numbers}", f"threads={numbers}"))


@pytest.mark.parametrize("axis", ["batch=1,8", "rps=1,2", "arrivals=poisson", "users=1,2"])
def test_what_a_trace_says_itself_is_not_swept(axis):
    asked = sweep(axis)
    plan = msgspec.structs.replace(asked.plan, arrivals="replay", shape=Replay("monday.parquet", "0" * 64))
    replayed = msgspec.structs.replace(asked, plan=plan)
    with pytest.raises(UsageError, match="--replay says that itself"):
        cells_of(replayed)
    assert cells_of(msgspec.structs.replace(replayed, axes=parse_sweep(["threads=1,2"])))


def test_each_round_takes_every_cell_once_and_servers_are_shared():
    asked = sweep("threads=1,2,4", "batch=1,8", repeats=3)
    turns = turns_of(asked, cells_of(asked))
    for number in (1, 2, 3):
        assert set(Counter(turn.cell.label for turn in turns if turn.round == number).values()) == {1}
    groups = [server for server, _ in groupby(turns, key=lambda turn: turn.server)]
    assert len(groups) <= 9  # and not 18
    assert len({turn.folder for turn in turns}) == len(turns)


def test_the_order_is_the_seed_s_and_differs_from_round_to_round():
    asked = sweep("batch=1,2,3,4,5,6", repeats=4)
    turns = turns_of(asked, cells_of(asked))
    assert turns == turns_of(asked, cells_of(asked))
    orders = {tuple(turn.cell.label for turn in turns if turn.round == number) for number in (1, 2, 3, 4)}
    assert len(orders) > 1


def test_within_a_round_all_get_the_same_schedule_and_each_round_another():
    asked = sweep("batch=1,8", repeats=2)
    seeds = {(turn.round, turn.plan.seed) for turn in turns_of(asked, cells_of(asked))}
    assert seeds == {(1, 0), (2, 1)}


@pytest.mark.parametrize("text", ["=http://h:1", "name=", ""])
def test_a_target_without_a_name_or_a_place_is_refused(text):
    with pytest.raises(UsageError, match="names nothing"):
        named_contender(text)


def test_a_target_may_go_without_a_name_even_where_its_url_has_an_equals_sign():
    assert named_contender("http://h:1/x?a=b").name == "http://h:1/x?a=b"
    assert named_contender("ours=http://h:1").name == "ours"
    assert contender_protocol(named_contender("minilm")) == "rest"


def test_a_file_and_a_url_are_settled_as_they_are(tiny_onnx, tmp_path):
    for where in (str(tiny_onnx), "http://127.0.0.1:1"):
        assert settled(Contender(where, where), tmp_path) == Contender(where, where)


def test_options_that_no_axis_names_stay_as_they_were_set():
    (cell,) = cells_of(sweep("threads=2", options=ServerOptions(workers=3)))
    assert (cell.options.workers, cell.options.threads) == (3, 2)
