import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.bench.payload.payload import check_batch, data_payload, synthetic_payload
from mlserve.bench.target import Target
from mlserve.errors import DataFileError, UsageError
from mlserve.model.tensors import TensorSpec
from mlserve.wire import grpc, rest
from mlserve.wire.signature import Signature

REST = Target(protocol="rest", host="h", port=1, model="m")
GRPC = Target(protocol="grpc", host="h", port=1, model="m", version="2")
TOKENS = (
    TensorSpec("input_ids", "int64", ("batch", "sequence"), below=50),
    TensorSpec("attention_mask", "int64", ("batch", "sequence")),
)
VECTOR = (TensorSpec("x", "float32", ("batch", 3)),)


def decode(body, target, specs):
    signature = Signature("m", "2", specs, [])
    if target.protocol == "grpc":
        return grpc.decode_request(grpc.parse_request(body), signature)
    return rest.decode_request(body, signature)


@pytest.mark.parametrize("target", [REST, GRPC])
@given(rows=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_synthetic_bodies_are_requests_of_so_many_rows(target, rows, seed):
    payload = synthetic_payload(target, TOKENS, rows, seed)
    requests = [decode(body, target, TOKENS) for body in payload.bodies]
    assert {request.rows for request in requests} == {rows}
    assert all(request.inputs["input_ids"].max() < 50 for request in requests)
    assert payload == synthetic_payload(target, TOKENS, rows, seed)


def test_bodies_differ_so_that_no_cache_can_answer():
    assert len(set(synthetic_payload(REST, VECTOR, 1, 0).bodies)) == len(synthetic_payload(REST, VECTOR, 1, 0).bodies)
    assert synthetic_payload(REST, VECTOR, 1, 0).bodies != synthetic_payload(REST, VECTOR, 1, 1).bodies


@pytest.mark.parametrize("target", [REST, GRPC])
def test_rows_of_a_file_are_sent_in_their_order(target, tmp_path):
    values = np.arange(21, dtype=np.float32).reshape(7, 3)
    np.save(tmp_path / "rows.npy", values)
    payload = data_payload(target, VECTOR, 2, tmp_path / "rows.npy", None)
    sent = np.concatenate([decode(body, target, VECTOR).inputs["x"] for body in payload.bodies])
    assert np.array_equal(sent, values[:6])  # whole requests only
    assert payload.source.startswith("rows.npy (sha256 ")


def test_a_large_file_is_not_encoded_whole(tmp_path):
    np.save(tmp_path / "rows.npy", np.zeros((5000, 3), np.float32))
    assert len(data_payload(REST, VECTOR, 1, tmp_path / "rows.npy", None).bodies) == 1024


def test_a_file_with_fewer_rows_than_a_request_is_refused(tmp_path):
    np.save(tmp_path / "rows.npy", np.zeros((3, 3), np.float32))
    with pytest.raises(DataFileError, match="has 3 rows, a request takes 4"):
        data_payload(REST, VECTOR, 4, tmp_path / "rows.npy", None)
    assert len(data_payload(REST, VECTOR, 3, tmp_path / "rows.npy", None).bodies) == 1


def test_a_file_of_other_columns_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"other": [1, 2]}) + "\n")
    with pytest.raises(DataFileError, match=r"rows\.jsonl"):
        data_payload(REST, VECTOR, 1, tmp_path / "rows.jsonl", None)


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
