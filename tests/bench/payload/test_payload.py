import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlserve.bench.load.trace import Kind, Trace, replay_plan
from mlserve.bench.payload.payload import PayloadWish, check_batch, make_payload
from mlserve.bench.payload.sizes import parse_lengths, parse_row_mix
from mlserve.bench.target import Target
from mlserve.errors import DataFileError, UsageError
from mlserve.model.processing import ImageInput, Processing
from mlserve.model.tensors import TensorSpec
from mlserve.runs.load import Plan
from mlserve.wire import grpc, rest
from mlserve.wire.signature import Signature

REST = Target(protocol="rest", host="h", port=1, model="m")
GRPC = Target(protocol="grpc", host="h", port=1, model="m", version="2")
TOKENS = (
    TensorSpec("input_ids", "int64", ("batch", "sequence"), below=50),
    TensorSpec("attention_mask", "int64", ("batch", "sequence")),
)
VECTOR = (TensorSpec("x", "float32", ("batch", 3)),)
IMAGES = (TensorSpec("image", "float32", ("batch", 3, "dim2", "dim3")),)
TIMING = ("mlserve-timing", "1")


def payload_of(target, specs, rows="1", seed=0, plan=None, **wish):
    mix = parse_row_mix(rows)
    plan = plan or Plan(
        rate_per_s=100,
        duration_s=1,
        warm_up_s=0,
        seed=seed,
        batch_rows=mix[-1].rows,
        row_mix=mix if len(mix) > 1 else (),
    )
    return make_payload(target, specs, plan, PayloadWish(**({"timed": "none"} | wish)))


def decode(request, target, specs):
    signature = Signature("m", "2", specs, [])
    if target.protocol == "grpc":
        return grpc.decode_request(grpc.parse_request(request.body), signature)
    return rest.decode_request(request.body, signature)


def inputs_of(payload, specs, name, target=REST):
    return [decode(request, target, specs).inputs[name] for request in payload.requests]


@pytest.mark.parametrize("target", [REST, GRPC])
@settings(max_examples=20)
@given(rows=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_synthetic_bodies_are_requests_of_so_many_rows(target, rows, seed):
    payload = payload_of(target, TOKENS, str(rows), seed)
    requests = [decode(request, target, TOKENS) for request in payload.requests]
    assert {request.rows for request in requests} == {request.rows for request in payload.requests} == {rows}
    assert all(request.inputs["input_ids"].max() < 50 for request in requests)
    assert payload == payload_of(target, TOKENS, str(rows), seed)
    assert payload.order == tuple(range(32))


def test_bodies_differ_so_that_no_cache_can_answer():
    bodies = {request.body for request in payload_of(REST, VECTOR).requests}
    assert len(bodies) == 32
    assert bodies.isdisjoint(request.body for request in payload_of(REST, VECTOR, seed=1).requests)


@pytest.mark.parametrize("target", [REST, GRPC])
def test_rows_of_a_file_are_sent_in_their_order(target, tmp_path):
    values = np.arange(21, dtype=np.float32).reshape(7, 3)
    np.save(tmp_path / "rows.npy", values)
    payload = payload_of(target, VECTOR, "2", data=tmp_path / "rows.npy")
    assert np.array_equal(np.concatenate(inputs_of(payload, VECTOR, "x", target)), values[:6])  # whole requests only
    assert payload.source.startswith("rows.npy (sha256 ")


def test_a_large_file_is_not_encoded_whole(tmp_path):
    np.save(tmp_path / "rows.npy", np.zeros((5000, 3), np.float32))
    assert len(payload_of(REST, VECTOR, data=tmp_path / "rows.npy").requests) == 1024
    mixed = payload_of(REST, VECTOR, "1,8", data=tmp_path / "rows.npy")
    assert Counter(request.rows for request in mixed.requests) == {1: 512, 8: 512}


def test_a_file_with_fewer_rows_than_a_request_is_refused(tmp_path):
    np.save(tmp_path / "rows.npy", np.zeros((3, 3), np.float32))
    with pytest.raises(DataFileError, match="has 3 rows, a request takes 4"):
        payload_of(REST, VECTOR, "1,4", data=tmp_path / "rows.npy")
    assert len(payload_of(REST, VECTOR, "3", data=tmp_path / "rows.npy").requests) == 1


def test_a_file_of_other_columns_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"other": [1, 2]}) + "\n")
    with pytest.raises(DataFileError, match=r"rows\.jsonl"):
        payload_of(REST, VECTOR, data=tmp_path / "rows.jsonl")


def test_several_sizes_are_mixed_in_exactly_their_shares():
    payload = payload_of(REST, VECTOR, "1:0.7,8:0.2,32:0.1")
    sent = Counter(payload.requests[number].rows for number in payload.order)
    assert {rows: count / len(payload.order) for rows, count in sent.items()} == {1: 0.7, 8: 0.2, 32: 0.1}
    assert set(payload.order) == set(range(96))
    assert [decode(request, REST, VECTOR).rows for request in payload.requests] == [r.rows for r in payload.requests]


def test_sequences_have_the_lengths_asked_for():
    payload = payload_of(REST, TOKENS, "2", lengths=parse_lengths("16:0.75,64:0.25"))
    shapes = Counter(ids.shape for ids in inputs_of(payload, TOKENS, "input_ids"))
    assert shapes == {(2, 16): 192, (2, 64): 64}
    masks = Counter(mask.shape for mask in inputs_of(payload, TOKENS, "attention_mask"))
    assert masks == shapes
    assert payload.source == "synthetic rows of 16, 64 tokens, 256 bodies"


def test_images_have_the_sizes_asked_for_and_three_colours_where_nothing_says():
    open_channels = (TensorSpec("image", "float32", ("batch", "dim1", "dim2", "dim3")),)
    payload = payload_of(GRPC, open_channels, image_sizes=((8, 8), (6, 4)))
    shapes = Counter(image.shape for image in inputs_of(payload, open_channels, "image", GRPC))
    assert shapes == {(1, 3, 8, 8): 16, (1, 3, 6, 4): 16}


def save_images(folder, count=3):
    folder.mkdir()
    for number in range(count):
        Image.fromarray(np.full((10, 12, 3), 20 * number, np.uint8)).save(folder / f"{number}.png")
    return folder


def test_a_folder_of_images_is_sent_as_the_model_takes_them(tmp_path):
    folder = save_images(tmp_path / "images")
    nhwc = (TensorSpec("image", "uint8", ("batch", 4, 5, 3)),)
    images = inputs_of(payload_of(GRPC, nhwc, data=folder), nhwc, "image", GRPC)
    assert [(image.shape, int(image.max())) for image in images] == [((1, 4, 5, 3), 20 * number) for number in range(3)]
    form = Processing(image=ImageInput(height=6, width=6, scale=1.0, mean=(20.0, 20.0, 20.0)))
    images = inputs_of(payload_of(GRPC, IMAGES, data=folder, processing=form), IMAGES, "image", GRPC)
    assert [(image.shape, float(image.max())) for image in images] == [
        ((1, 3, 6, 6), 20.0 * number - 20) for number in range(3)
    ]
    sized = payload_of(GRPC, IMAGES, data=folder, image_sizes=((4, 4), (8, 6)))
    assert Counter(image.shape for image in inputs_of(sized, IMAGES, "image", GRPC)) == {
        (1, 3, 4, 4): 3,
        (1, 3, 8, 6): 3,
    }


def test_a_folder_of_images_for_a_model_that_takes_none_is_refused(tmp_path):
    with pytest.raises(DataFileError, match="holds images, the model takes x:float32"):
        payload_of(REST, VECTOR, data=save_images(tmp_path / "images"))


@pytest.mark.parametrize(
    ("specs", "wish", "fault"),
    [
        (VECTOR, {"lengths": parse_lengths("8")}, "--lengths: the model leaves no length open"),
        (TOKENS, {"image_sizes": ((8, 8),)}, "--image-sizes: the model leaves no size"),
        (IMAGES, {"lengths": parse_lengths("8")}, "--lengths: the model leaves no length open"),
        (TOKENS, {"lengths": parse_lengths("8"), "data": "rows.npy"}, "--lengths contradicts --data"),
        (VECTOR, {"image_sizes": ((8, 8),), "data": "rows.npy"}, r"--image-sizes: .*rows\.npy"),
        (VECTOR, {"expected": "y.npy"}, "--expected .* give --data too"),
    ],
)
def test_wishes_that_cannot_be_had_are_refused_by_name(tmp_path, specs, wish, fault):
    np.save(tmp_path / "rows.npy", np.zeros((3, 3), np.float32))
    wish = {name: tmp_path / value if isinstance(value, str) else value for name, value in wish.items()}
    with pytest.raises(UsageError, match=fault):
        payload_of(REST, specs, **wish)


def timed_share(payload):
    timed = [TIMING in payload.requests[number].headers for number in payload.order]
    return np.mean(timed)


def test_an_eighth_of_the_requests_asks_where_its_time_went():
    sampled = payload_of(REST, VECTOR, timed="sampled")
    assert timed_share(sampled) == 1 / 8
    assert timed_share(payload_of(REST, VECTOR, timed="all")) == 1
    assert timed_share(payload_of(REST, VECTOR, timed="none")) == 0
    # What is sent is the same, but for the header.
    plain = payload_of(REST, VECTOR)
    assert [sampled.requests[n].body for n in sampled.order] == [plain.requests[n].body for n in plain.order]
    assert all(set(r.headers) - {TIMING} == set(plain.requests[0].headers) for r in sampled.requests)


def test_one_body_alone_is_timed_at_an_eighth_of_its_places(tmp_path):
    np.save(tmp_path / "rows.npy", np.ones((1, 3), np.float32))
    payload = payload_of(REST, VECTOR, data=tmp_path / "rows.npy", timed="sampled")
    assert timed_share(payload) == 1 / 8
    assert (len(payload.requests), len({request.body for request in payload.requests})) == (2, 1)


def test_expected_answers_go_with_the_rows_they_belong_to(tmp_path):
    np.save(tmp_path / "rows.npy", np.arange(12, dtype=np.float32).reshape(4, 3))
    np.save(tmp_path / "answers.npy", np.arange(4, dtype=np.float32))
    outputs = (TensorSpec("y", "float32", ("batch", 1)),)
    wish = {"data": tmp_path / "rows.npy", "expected": tmp_path / "answers.npy", "outputs": outputs}
    payload = payload_of(REST, VECTOR, "1:0.5,2:0.5", timed="sampled", **wish)
    assert len(payload.expected) == len(payload.requests)
    for request, expected in zip(payload.requests, payload.expected, strict=True):
        first = decode(request, REST, VECTOR).inputs["x"][:, 0]
        assert np.array_equal(expected["y"], first[:, None] / 3)
    assert payload_of(REST, VECTOR, data=tmp_path / "rows.npy").expected == ()


@pytest.mark.parametrize(
    ("answers", "fault"),
    [
        ({"y": np.zeros((3, 1), np.float32)}, "--expected has 3 rows of 'y', .* has 4"),
        ({"y": np.zeros((4, 2), np.float32)}, r"'y' has the shape \[4, 2\]"),
        ({"y": np.zeros((4, 1), np.float32), "z": np.zeros(4)}, "columns y, z"),
        ({"label": np.full((4, 1), 0.5)}, r"'label' .* float64"),
    ],
)
def test_expected_answers_that_do_not_fit_are_refused(tmp_path, answers, fault):
    np.save(tmp_path / "rows.npy", np.zeros((4, 3), np.float32))
    np.savez(tmp_path / "answers.npz", **answers)
    dtype = "int64" if "label" in answers else "float32"
    outputs = (TensorSpec("label" if "label" in answers else "y", dtype, ("batch", 1)),)
    with pytest.raises(DataFileError, match=fault):
        payload_of(REST, VECTOR, data=tmp_path / "rows.npy", expected=tmp_path / "answers.npz", outputs=outputs)


def trace_of(kinds, kind_of, bodies=(), body_of=None):
    return Trace(
        source="t.parquet",
        sha256="ab" * 32,
        arrivals_ns=np.arange(len(kind_of)) * 10_000_000,
        kinds=tuple(kinds),
        kind_of=np.array(kind_of),
        bodies=tuple(bodies),
        body_of=np.full(len(kind_of), -1) if body_of is None else np.array(body_of),
    )


def replayed(target, specs, trace, warm_up_s=0.0, **wish):
    plan = replay_plan(Plan(rate_per_s=1, duration_s=1, warm_up_s=warm_up_s), trace)
    return payload_of(target, specs, plan=plan, trace=trace, **wish)


def shapes_sent(payload, target, specs, name):
    return [decode(payload.requests[number], target, specs).inputs[name].shape for number in payload.order]


def test_a_replay_sends_the_sizes_of_the_trace_in_its_order():
    both = [{"input_ids": (rows, length), "attention_mask": (rows, length)} for rows, length in ((1, 5), (4, 9))]
    trace = trace_of([Kind(1, both[0]), Kind(4, both[1])], [0, 1, 1, 0] * 20)
    payload = replayed(REST, TOKENS, trace)
    assert shapes_sent(payload, REST, TOKENS, "input_ids") == [(1, 5), (4, 9), (4, 9), (1, 5)] * 20
    assert len(set(payload.order)) == 64
    assert payload.source == f"synthetic rows in the sizes of t.parquet (sha256 {'ab' * 6}), 64 bodies"
    assert timed_share(replayed(REST, TOKENS, trace, timed="sampled")) == 1 / 8


def test_the_warm_up_of_a_replay_has_sizes_of_its_own_and_does_not_move_the_traces():
    trace = trace_of([Kind(1), Kind(4)], [0, 1, 1, 1, 1])
    payload = replayed(REST, VECTOR, trace, warm_up_s=1.0)
    rows = [payload.requests[number].rows for number in payload.order]
    assert len(rows) > 50
    assert rows[-5:] == [1, 4, 4, 4, 4]
    assert rows[:7] == [1, 4, 4, 4, 4, 1, 4]


@pytest.mark.parametrize("target", [REST, GRPC])
def test_recorded_inputs_are_sent_again_by_any_protocol(target):
    values = [np.full((1, 3), number, np.float32) for number in range(3)]
    bodies = [grpc.encode_request("m", "", {"x": value}, VECTOR) for value in values]
    trace = trace_of([Kind(1), Kind(2)], [0, 0, 1, 0, 0], bodies, [2, 0, -1, -1, 1])
    payload = replayed(target, VECTOR, trace)
    sent = [decode(payload.requests[number], target, VECTOR).inputs["x"] for number in payload.order]
    assert [sent[place][0, 0] for place in (0, 1, 4)] == [2, 0, 1]
    assert sent[2].shape == (2, 3)  # made up, for nothing of two rows was kept
    assert sent[3].shape == (1, 3)
    assert sent[3][0, 0] in (0, 1, 2)
    assert payload.source.startswith("recorded and synthetic rows in the sizes of t.parquet")


def test_a_replay_with_data_sends_its_rows_in_the_traces_sizes(tmp_path):
    np.save(tmp_path / "rows.npy", np.arange(12, dtype=np.float32).reshape(4, 3))
    payload = replayed(REST, VECTOR, trace_of([Kind(2), Kind(1)], [0, 1, 0, 1]), data=tmp_path / "rows.npy")
    sent = [decode(payload.requests[number], REST, VECTOR).inputs["x"][:, 0].tolist() for number in payload.order]
    assert sent == [[0, 3], [0], [6, 9], [3]]


@pytest.mark.parametrize(
    ("trace", "error", "fault"),
    [
        (trace_of([Kind(1, {"z": (1, 3)})], [0]), DataFileError, "has the inputs z, the model also takes x"),
        (trace_of([Kind(1, {"x": (1, 4)})], [0]), DataFileError, r"'x' has the shape \[1, 4\]"),
        (trace_of([Kind(1)], [0], [b"\xff"], [0]), DataFileError, "recorded request 1 is none that 'm' takes"),
    ],
)
def test_a_trace_of_another_model_is_refused(trace, error, fault):
    with pytest.raises(error, match=fault):
        replayed(REST, VECTOR, trace)


def test_a_replay_contradicts_lengths_and_fixed_rows():
    with pytest.raises(UsageError, match="--lengths contradicts --replay"):
        replayed(REST, TOKENS, trace_of([Kind(1)], [0]), lengths=parse_lengths("8"))
    with pytest.raises(UsageError, match="takes exactly 1 row"):
        replayed(REST, (TensorSpec("x", "float32", (1, 3)),), trace_of([Kind(2)], [0]))


@pytest.mark.parametrize(
    ("shapes", "rows", "fits"),
    [
        ([("batch", 3)], 8, True),
        ([("batch", 3), (1,)], 8, True),
        ([(1, 3)], 1, True),
        ([(1, 3)], 2, False),
        ([(8, 3), (8, 4)], 8, True),
        ([(8, 3)], 1, False),
        ([(8, 3), (2, 3)], 1, True),
        ([()], 1, True),
        ([()], 2, False),
    ],
)
def test_a_batch_must_fit_the_models_fixed_rows(shapes, rows, fits):
    specs = [TensorSpec(f"x{i}", "float32", shape) for i, shape in enumerate(shapes)]
    if fits:
        check_batch(rows, specs, "m")
    else:
        with pytest.raises(UsageError, match=f"--batch {rows}: model 'm' takes exactly"):
            check_batch(rows, specs, "m")
