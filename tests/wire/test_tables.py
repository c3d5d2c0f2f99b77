"""Tables: CSV and data frames as a model's tensors, and tensors as CSV."""

import csv
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import InvalidRequest, PayloadTooLarge
from mlserve.model.tensors import TensorSpec
from mlserve.wire.signature import Signature
from mlserve.wire.tables import Table, from_table, read_csv, write_csv

SCORES = [TensorSpec("scores", "float32", ("batch", 2))]
MATRIX = Signature("matrix", "1", [TensorSpec("x", "float32", ("batch", 3))], SCORES)
COLUMN = Signature("column", "1", [TensorSpec("n", "int64", ("batch",))], SCORES)
MIXED = Signature(
    "mixed",
    "1",
    [
        TensorSpec("age", "float32", ("batch", 1)),
        TensorSpec("city", "object", ("batch",)),
        TensorSpec("member", "bool", ("batch",)),
    ],
    SCORES,
)


def tensors(csv_text, signature):
    return from_table(read_csv(csv_text.encode()), signature)


def test_the_columns_of_a_model_of_one_input_are_its_elements_in_their_order():
    found = tensors("a,b,c\n1,2,3\n4,5,-0.5\n", MATRIX)
    np.testing.assert_array_equal(found["x"], np.array([[1, 2, 3], [4, 5, -0.5]], np.float32))
    assert found["x"].dtype == np.float32


def test_columns_named_as_the_inputs_may_stand_in_any_order():
    found = tensors('member,city,age\ntrue,"Rome, Italy",40\nFalse,Oslo,2.5\n', MIXED)
    assert found["city"].tolist() == ["Rome, Italy", "Oslo"]
    assert found["member"].tolist() == [True, False]
    assert found["age"].tolist() == [[40.0], [2.5]]


def test_a_table_without_names_gives_each_input_a_column():
    found = tensors("40,Rome,1\n2.5,Oslo,0\n", MIXED)
    assert found["age"].tolist() == [[40.0], [2.5]]
    assert found["city"].tolist() == ["Rome", "Oslo"]


def test_one_column_is_an_input_of_one_dimension():
    assert tensors("3\n4\n", COLUMN)["n"].tolist() == [3, 4]
    assert from_table(Table([[3], [4]], ("whatever",)), COLUMN)["n"].tolist() == [3, 4]


def test_what_is_missing_is_nan_in_a_floating_input():
    found = tensors("a,b,c\n1,,3\n,nan,6\n", MATRIX)["x"]
    np.testing.assert_array_equal(found, np.array([[1, np.nan, 3], [np.nan, np.nan, 6]], np.float32))
    frame = Table([[None, "Rome", True]], ("age", "city", "member"))
    assert np.isnan(from_table(frame, MIXED)["age"]).all()


def test_cells_of_a_data_frame_may_hold_a_whole_row_of_an_input():
    found = from_table(Table([[[1, 2, 3]], [[4, 5, 6]]], ("x",)), MATRIX)
    assert found["x"].tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("text", "signature", "message"),
    [
        ("", MATRIX, "no rows"),
        ("a,b,c\n", MATRIX, "no rows"),
        ("1,2,3\n4,5\n", MATRIX, "row 1 of the table has 2 cells, expected 3"),
        ("a,b,c\n1,2\n", MATRIX, "row 0 of the table has 2 cells, expected 3"),
        ("1,2\n", MATRIX, "shape"),
        ("1,2,x3\n", MATRIX, "cannot be read as FP32"),
        ("1,2,1_000\n", MATRIX, "cannot be read as FP32"),
        ("1,2,3e39\n", MATRIX, "FP32"),
        ("1,2,1e999\n", MATRIX, "cannot be read as FP32"),
        ("1.5\n", COLUMN, "cannot be read as INT64"),
        ("1\n\n2,\n", COLUMN, "expected 1"),
        ('"a,b\n1,2', MATRIX, "cannot be read"),
        ("40,Rome\n", MIXED, "name each column as an input"),
        ("age,town,member\n40,Rome,1\n", MIXED, "name each column as an input"),
        ("age,city,member\n40,Rome,perhaps\n", MIXED, "cannot be read as BOOL"),
        ("age,age,member\n40,Rome,1\n", MIXED, "same name"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(text, signature, message):
    with pytest.raises(InvalidRequest, match=message):
        tensors(text, signature)


def test_a_text_that_is_no_utf_8_is_refused():
    with pytest.raises(InvalidRequest, match="UTF-8"):
        read_csv(b"a\n\xff\xfe\n")


def test_more_cells_than_fit_are_refused_before_they_are_made():
    with pytest.raises(PayloadTooLarge, match="cells"):
        read_csv(b"1,\n" * (3 << 20))
    assert read_csv(b"1,\n" * 3).width == 2  # the negative control


def test_a_missing_element_of_an_integer_is_refused():
    with pytest.raises(InvalidRequest, match="INT64"):
        from_table(Table([[None]], ("n",)), COLUMN)


@given(
    st.lists(
        st.tuples(st.floats(width=32, allow_nan=False, allow_infinity=False), st.text(max_size=5), st.booleans()),
        min_size=1,
        max_size=5,
    )
)
def test_what_is_written_as_csv_is_read_again_as_it_was(rows):
    ages, cities, members = zip(*rows, strict=True)
    outputs = {
        "age": np.array(ages, np.float32)[:, None],
        "city": np.array([city.replace("\0", "").strip() or "x" for city in cities], object),
        "member": np.array(members, bool),
    }
    lines = write_csv(outputs, list(outputs)).decode()
    names = io.StringIO(newline="")
    csv.writer(names).writerow(outputs)
    found = tensors(names.getvalue() + lines, MIXED)
    for name, expected in outputs.items():
        np.testing.assert_array_equal(found[name], expected)


def test_a_row_is_written_flat_output_after_output():
    outputs = {"a": np.arange(8, dtype=np.float16).reshape(2, 2, 2) / 10, "b": np.array([b"x", 'y,"z'], object)}
    assert write_csv(outputs, ["b", "a"]) == b'x,0.0,0.1,0.2,0.3\r\n"y,""z",0.4,0.5,0.6,0.7\r\n'
