"""Plain JSON and tensors: what is written is what is read, what does not fit is refused, and non-numbers have words."""

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import DATATYPE_OF, TensorSpec
from mlserve.wire.plain import from_columns, from_rows, parse_json, to_columns, to_rows, write_json
from mlserve.wire.signature import Signature

# JSON carries text as UTF-8, which has no lone surrogates.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
X = TensorSpec("x", "float32", ("batch", 2))


def signature_of(*specs):
    return Signature("m", "1", specs, [])


@st.composite
def tensors(draw, *, finite=False):
    """`(specs, arrays)`: one to three tensors that share their rows."""
    specs, arrays = [], {}
    rows = draw(st.integers(1, 4))
    for number in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from(sorted(DATATYPE_OF)))
        inner = draw(st.lists(st.integers(1, 3), max_size=2))
        elements = TEXTS if dtype == "object" else None
        if dtype.startswith("float"):
            elements = npst.from_dtype(np.dtype(dtype), allow_nan=not finite, allow_infinity=not finite)
        specs.append(TensorSpec(f"t{number}", dtype, ("batch", *inner)))
        arrays[f"t{number}"] = draw(npst.arrays(np.dtype(dtype), (rows, *inner), elements=elements))
    return specs, arrays


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@given(tensors())
def test_columns_arrive_as_they_were_written(made):
    specs, arrays = made
    body = write_json(to_columns(arrays, list(arrays)), non_finite=True)
    assert_same(from_columns(parse_json(body, non_finite=True), signature_of(*specs)), arrays)


@given(tensors())
def test_rows_arrive_as_they_were_written(made):
    specs, arrays = made
    body = write_json(to_rows(arrays, list(arrays)), non_finite=True)
    assert_same(from_rows(parse_json(body, non_finite=True), signature_of(*specs)), arrays)


@given(tensors(finite=True))
def test_finite_numbers_are_written_alike_with_and_without_words_for_others(made):
    _, arrays = made
    columns = to_columns(arrays, list(arrays))
    assert write_json(columns) == write_json(columns, non_finite=True)
    assert json.loads(write_json(columns)) == parse_json(write_json(columns))


@given(tensors())
def test_python_s_own_json_reads_the_words(made):
    """An independent reader: the values are the same, and strict JSON says null in their places."""
    _, arrays = made
    columns = to_columns(arrays, list(arrays))
    loose = json.loads(write_json(columns, non_finite=True))
    strict = parse_json(write_json(columns))
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            np.testing.assert_array_equal(np.array(loose[name], array.dtype), array)
            nulls = np.array(strict[name], object) == np.array(None)
            np.testing.assert_array_equal(nulls, ~np.isfinite(array))


# NaN and infinity


def test_the_words_are_read_where_they_are_allowed():
    document = parse_json(b'{"x": [[NaN, Infinity], [-Infinity, 1]], "note": "NaN, \\"Infinity"}', non_finite=True)
    assert document["note"] == 'NaN, "Infinity'
    found = from_columns({"x": document["x"]}, signature_of(X))["x"]
    np.testing.assert_array_equal(found, np.array([[np.nan, np.inf], [-np.inf, 1]], np.float32))


@pytest.mark.parametrize("body", [b'{"x": [NaN]}', b"[Infinity]", b"[-Infinity]"])
def test_the_words_are_refused_where_they_are_not_allowed(body):
    with pytest.raises(InvalidRequest, match="not JSON"):
        parse_json(body)
    assert parse_json(body, non_finite=True)  # the negative control


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[NaN",
        b"[NaN]]",
        b"[nan]",
        b"[+Infinity]",
        b"[NaN, 1e400]",
        b'[NaN, "\\ud800"]',
        b'[NaN, "\xff"]',
        b"[NaN, " + b"9" * 5000 + b"]",
        b"NaN" + b"[" * 100_000,
        b"[" * 100_000,
        b"[" * 100_000 + b"NaN" + b"]" * 100_000,
        b"1" * 5000,
        b'"\xff"',
    ],
)
def test_what_is_not_json_is_refused(body):
    with pytest.raises(InvalidRequest, match="not JSON"):
        parse_json(body, non_finite=True)


@given(
    st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from(sorted(DATATYPE_OF)),
    st.integers(0, 2),
)
def test_arbitrary_bytes_are_tensors_or_invalid_requests(body, dtype, rank):
    signature = signature_of(TensorSpec("x", dtype, ("batch", "more")[:rank]))
    for text in (body, b"[" + body + b"]", b"[[" + body + b", NaN]]"):
        try:
            from_columns({"x": parse_json(text, non_finite=True)}, signature)
        except InvalidRequest:
            continue


@pytest.mark.parametrize("digits", [20, 30, 310, 4000])
def test_integers_of_many_digits_are_tensors_or_invalid_requests(digits):
    signature = signature_of(TensorSpec("x", "float64", ("batch",)))
    for body in (b"[%b]", b"[NaN, %b]"):
        try:
            found = from_columns({"x": parse_json(body % (b"9" * digits), non_finite=True)}, signature)
        except InvalidRequest:
            continue
        assert found["x"][-1] == float("9" * digits)


def test_a_non_number_is_no_integer_text_or_flag():
    for dtype in ("int64", "bool", "object"):
        with pytest.raises(InvalidRequest, match="cannot be read"):
            from_columns({"x": [float("nan")]}, signature_of(TensorSpec("x", dtype, ("batch",))))


# What does not fit


@pytest.mark.parametrize(
    ("dtype", "values", "message"),
    [
        ("float32", [1, True], "Expected `float`, got `bool`"),
        ("float32", ["1"], "Expected `float`, got `str`"),
        ("float32", [None], "Expected `float`, got `null`"),
        ("float32", [1e39], "beyond the largest of FP32"),
        ("float32", [float("nan"), -1e39], "beyond the largest of FP32"),
        ("float16", [65520.0], "beyond the largest of FP16"),
        ("float64", [{"b64": "AA=="}], "Expected `float`, got `object`"),
        ("int64", [1.5], "Expected `int`, got `float`"),
        ("int64", [True], "Expected `int`, got `bool`"),
        ("int8", [128], "Expected `int` <= 127"),
        ("uint8", [-1], "Expected `int` >= 0"),
        ("uint64", [2**64], "cannot be read as UINT64"),
        ("bool", [1], "Expected `bool`, got `int`"),
        ("object", [1], "Expected `str`, got `int`"),
        ("object", [{"b64": "no base64!"}], "not base64"),
        ("object", [{"b64": 5}], "not base64"),
        ("object", [{"b64": "/w=="}], "not base64 of UTF-8"),
        ("object", [{"b64": "AA==", "more": 1}], "Expected `str`, got `object`"),
        ("float32", 5, "Expected `array`, got `int`"),
        ("float32", [], r"has shape \[0\]"),
        ("float32", [[1]], "Expected `float`, got `array`"),
        ("float32", {"0": 1}, "Expected `array`, got `object`"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_what_is_wrong(dtype, values, message):
    with pytest.raises(InvalidRequest, match=message):
        from_columns({"x": values}, signature_of(TensorSpec("x", dtype, ("batch",))))


def test_ragged_rows_and_wrong_shapes_are_refused():
    for values in ([[1, 2], [3]], [[1, 2, 3]], [[]], [[1, 2], 3]):
        with pytest.raises(InvalidRequest, match=r"cannot be read|has shape"):
            from_columns({"x": values}, signature_of(X))
    texts = TensorSpec("x", "object", ("batch", 2))
    with pytest.raises(InvalidRequest, match="has shape"):
        from_columns({"x": [["a", "b"], ["c"]]}, signature_of(texts))


def test_deep_nesting_is_refused_and_no_deeper_than_python_can_follow():
    deep = "a"
    for _ in range(900):
        deep = [deep]
    for dtype in ("object", "float32"):
        with pytest.raises(InvalidRequest, match="cannot be read"):
            from_columns({"x": deep}, signature_of(TensorSpec("x", dtype, ("batch", 2))))


def test_names_must_be_the_model_s():
    signature = signature_of(X, TensorSpec("y", "int64", ("batch",)))
    with pytest.raises(InvalidRequest, match="unexpected input 'z' for model 'm'; it takes 'x', 'y'"):
        from_columns({"x": [[1, 2]], "y": [1], "z": [1]}, signature)
    with pytest.raises(InvalidRequest, match="missing input 'y'"):
        from_columns({"x": [[1, 2]]}, signature)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ({"x": [1, 2]}, "no rows"),
        (None, "no rows"),
        ([[1, 2]], "send every row as an object"),
        ([{"x": [1, 2], "y": 1}, [1, 2]], "send every row as an object"),
        ([{"x": [1, 2], "y": 1}, {"x": [1, 2]}], "do not all have the same names"),
        ([{"b64": "AA=="}], "send every row as an object"),
    ],
)
def test_rows_of_another_kind_are_refused(rows, message):
    with pytest.raises(InvalidRequest, match=message):
        from_rows(rows, signature_of(X, TensorSpec("y", "int64", ("batch",))))


# What is peculiar


def test_scalars_are_scalars_both_ways():
    spec = TensorSpec("x", "float32", ())
    assert_same(from_columns({"x": 2.5}, signature_of(spec)), {"x": np.array(2.5, np.float32)})
    outputs = {"count": np.array(3, np.int64), "name": np.array("a", object), "none": np.array(np.nan)}
    assert write_json(to_columns(outputs, ["count", "name"])) == b'{"count":3,"name":"a"}'
    assert write_json(to_columns(outputs, ["none"]), non_finite=True) == b'{"none":NaN}'


def test_texts_may_come_in_base64():
    texts = [{"b64": base64.b64encode("grüße".encode()).decode()}, "plain"]
    spec = TensorSpec("x", "object", ("batch",))
    assert from_rows(texts, signature_of(spec))["x"].tolist() == ["grüße", "plain"]
    assert from_rows([{"x": text} for text in texts], signature_of(spec))["x"].tolist() == ["grüße", "plain"]


def test_an_input_may_have_the_name_b64_beside_others():
    signature = signature_of(TensorSpec("b64", "object", ("batch",)), TensorSpec("y", "int64", ("batch",)))
    assert from_rows([{"b64": "AA==", "y": 1}], signature)["b64"].tolist() == ["AA=="]


def test_integers_stand_for_floats_and_the_largest_keep_every_digit():
    assert from_rows([[1, -2]], signature_of(X))["x"].dtype == np.float32
    spec = TensorSpec("x", "uint64", ("batch",))
    assert from_rows([2**64 - 1, 0], signature_of(spec))["x"].tolist() == [2**64 - 1, 0]


def test_outputs_without_common_rows_are_one_row():
    boxes = {"boxes": np.zeros((2, 4), np.float32), "score": np.ones((1,), np.float32)}
    assert json.loads(write_json(to_rows(boxes, ["boxes", "score"]))) == [{"boxes": [[0] * 4] * 2, "score": [1]}]
    assert json.loads(write_json(to_rows({"total": np.array(3.0)}, ["total"]))) == [3.0]


def test_bytes_that_are_no_text_and_half_floats_can_be_written():
    outputs = {"t": np.array([[b"\xff"], ["a"]], object), "h": np.array([0.1, np.inf], np.float16)}
    assert json.loads(write_json(to_columns(outputs, ["t"]))) == {"t": [["�"], ["a"]]}
    assert write_json(to_columns(outputs, ["h"]), non_finite=True) == b'{"h":[0.099975586,Infinity]}'


def test_null_in_a_text_is_left_alone():
    assert write_json({"t": ["null", "NaN"]}, non_finite=True) == b'{"t":["null","NaN"]}'


def test_an_engine_s_long_long_is_written_by_row_and_by_column():
    labels = np.array([1, 2], np.longlong)
    assert write_json(to_rows({"label": labels}, ["label"])) == b"[1,2]"
    assert write_json(to_rows({"label": labels, "x": labels[:, None]}, ["label", "x"])) == (
        b'[{"label":1,"x":[1]},{"label":2,"x":[2]}]'
    )
    assert write_json(to_columns({"n": np.array(3, np.longlong)}, ["n"])) == b'{"n":3}'
