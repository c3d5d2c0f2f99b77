"""Data files as rows for a model: every format, and every way in which a file does not fit."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from mlserve.errors import DataFileError
from mlserve.model.rows import ArrayRows, SyntheticRows, TextRows, fit_rows, read_columns, read_rows
from mlserve.model.tensors import DATATYPE_OF, TensorSpec

X = TensorSpec("x", "float32", ("batch", 3))
VALUES = np.arange(12, dtype=np.float64).reshape(4, 3) / 2
LABELS = np.array([0, 1, 1, 0])


def write(path, columns):
    """`columns` (arrays [rows] or [rows, n]) in the format that the file's ending names."""
    match path.suffix:
        case ".npz":
            np.savez(path, **columns)
        case ".npy":
            np.save(path, next(iter(columns.values())))
        case ".csv":
            pd.DataFrame(columns).to_csv(path, index=False)
        case ".parquet":
            pd.DataFrame({name: list(column) for name, column in columns.items()}).to_parquet(path)
        case ".jsonl":
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            pd.DataFrame(rows).to_json(path, orient="records", lines=True)
        case ".txt":
            path.write_text("\n".join(columns["text"]) + "\n")
    return path


@pytest.fixture
def tokenizer(tmp_path):
    """One token a word: a = 1, b = 2, c = 3, all else 0."""
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "a": 1, "b": 2, "c": 3}, unk_token="[PAD]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path / "tokenizer.json"
    words.save(str(path))
    return path


IDS = [TensorSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask")]


@pytest.mark.parametrize("ending", ["npz", "npy", "parquet", "jsonl"])
def test_a_matrix_in_one_column_is_the_one_input(tmp_path, ending):
    rows = read_rows(write(tmp_path / f"data.{ending}", {"x": VALUES}), [X])
    assert len(rows) == 4
    batch = rows.batch(1, 3)["x"]
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch, VALUES[1:3])
    assert rows.labels is None
    assert rows.source.startswith(f"data.{ending} (sha256 ")


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl", "npz"])
def test_number_columns_side_by_side_are_the_one_input_and_the_label_is_kept_apart(tmp_path, ending):
    columns = {"a": VALUES[:, 0], "b": VALUES[:, 1], "c": VALUES[:, 2], "target": LABELS}
    rows = read_rows(write(tmp_path / f"data.{ending}", columns), [X])
    np.testing.assert_array_equal(rows.batch(0, 4)["x"], VALUES)
    np.testing.assert_array_equal(rows.labels, LABELS)


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl", "npz"])
def test_columns_named_like_the_inputs_are_those_inputs(tmp_path, ending):
    specs = [TensorSpec("age", "int64", ("batch",)), TensorSpec("weight", "float32", ("batch",))]
    columns = {"weight": VALUES[:, 0], "age": np.arange(4), "other": np.zeros(4)}
    batch = read_rows(write(tmp_path / f"data.{ending}", columns), specs).batch(2, 4)
    assert list(batch) == ["age", "weight"]
    assert batch["age"].tolist() == [2, 3]
    assert batch["age"].dtype == np.int64


def test_one_number_column_is_a_matrix_where_the_model_takes_one(tmp_path):
    path = write(tmp_path / "data.csv", {"x": VALUES[:, 0], "y": LABELS})
    rows = read_rows(path, [TensorSpec("input", "float32", ("batch", 1))])
    np.testing.assert_array_equal(rows.batch(0, 4)["input"], VALUES[:, :1])
    assert read_rows(path, [TensorSpec("x", "float32", ("batch",))]).batch(0, 4)["x"].shape == (4,)


def test_a_column_named_label_that_is_an_input_is_no_label(tmp_path):
    specs = [TensorSpec("label", "int64", ("batch",))]
    rows = read_rows(write(tmp_path / "data.csv", {"label": LABELS, "y": LABELS}), specs)
    assert rows.batch(0, 4)["label"].tolist() == LABELS.tolist()
    np.testing.assert_array_equal(rows.labels, LABELS)


@pytest.mark.parametrize("ending", ["txt", "csv", "parquet", "jsonl"])
def test_texts_are_tokenized_a_batch_at_a_time(tmp_path, tokenizer, ending):
    texts = np.array(["a", "b c", "c b a a", "a"], object)
    rows = read_rows(write(tmp_path / f"data.{ending}", {"text": texts}), IDS, tokenizer)
    assert isinstance(rows, TextRows)
    assert rows.batch(0, 2)["input_ids"].tolist() == [[1, 0], [2, 3]]
    assert rows.batch(0, 2)["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert rows.batch(2, 4)["input_ids"].shape == (2, 4)


def test_empty_lines_and_comments_of_a_text_file_are_no_rows(tmp_path, tokenizer):
    (tmp_path / "data.txt").write_text("# who wrote this\n\n a \n\nb\n")
    assert read_rows(tmp_path / "data.txt", IDS, tokenizer).texts == ["a", "b"]


def test_text_without_a_tokenizer_says_which_inputs_to_give(tmp_path):
    path = write(tmp_path / "data.txt", {"text": ["a"]})
    with pytest.raises(
        DataFileError, match=r"came without a tokenizer; give its inputs \['input_ids', 'attention_mask'\]"
    ):
        read_rows(path, IDS)


def test_an_input_that_no_tokenizer_gives_is_named(tmp_path, tokenizer):
    path = write(tmp_path / "data.txt", {"text": ["a"]})
    with pytest.raises(DataFileError, match="a tokenizer gives no position_ids"):
        read_rows(path, [*IDS, TensorSpec("position_ids", "int64", ("batch", "sequence"))], tokenizer)


def test_a_model_that_reads_text_itself_gets_it_as_it_is(tmp_path):
    path = write(tmp_path / "data.csv", {"text": np.array(["a b", "c"], object)})
    rows = read_rows(path, [TensorSpec("text", "object", ("batch",))])
    assert rows.batch(0, 2)["text"].tolist() == ["a b", "c"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data", b"1,2", "cannot be read as data; use one of .npz, .npy, .csv"),
        ("data.xlsx", b"", "cannot be read as data"),
        ("data.csv", None, "cannot be read: No such file"),
        ("data.csv", b"", "cannot be read as csv"),
        ("data.csv", b"a,b\n", "holds no rows"),
        ("data.csv", b"a,b\n1,2\n1,2,3\n", "cannot be read as csv"),
        ("data.csv", b'text\na\n""\n', "column 'text' has an empty cell in row 2"),
        ("data.csv", b"\xff\xfe,\n1,2\n", "cannot be read as csv"),
        ("data.npz", b"PK", "cannot be read as npz"),
        ("data.npy", b"\x93NUMPY", "cannot be read as npy"),
        ("data.npy", b"", "cannot be read as npy"),
        ("data.parquet", b"PAR1PAR1", "cannot be read as parquet"),
        ("data.jsonl", b"", "holds no rows"),
        ("data.jsonl", b"{", "cannot be read as jsonl"),
        ("data.jsonl", b"[1]\n", "cannot be read as jsonl"),
        ("data.jsonl", b'{"x":1}\n{"z":1}\n', r"line 2 has the keys \['z'\], line 1 has \['x'\]"),
        ("data.jsonl", b'{"x":[1]}\n{"x":[1,2]}\n', "rows of column 'x' have different shapes"),
        ("data.jsonl", b'{"x":' + b"[" * 5000, "cannot be read as jsonl"),
        ("data.txt", b"# only a comment\n", "holds no rows"),
        ("data.txt", b"\xff", "cannot be read as txt"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataFileError, match=message):
        read_rows(tmp_path / name, [X])


def test_a_pickle_in_a_numpy_file_is_never_loaded(tmp_path):
    np.save(tmp_path / "data.npy", np.array([{"a": 1}], object), allow_pickle=True)
    np.savez(tmp_path / "data.npz", x=np.array([{"a": 1}], object))
    for name in ("data.npy", "data.npz"):
        with pytest.raises(DataFileError, match="allow_pickle=False"):
            read_rows(tmp_path / name, [X])


@pytest.mark.parametrize(
    ("columns", "spec", "message"),
    [
        ({"x": np.zeros((4, 2))}, X, r"have shape \[2\], the model takes \[3\]"),
        ({"x": np.zeros(4)}, X, r"have shape \[\], the model takes \[3\]"),
        ({"a": np.zeros(4), "b": np.zeros(4)}, X, r"has the columns a, b; the model takes x:float32:batch,3"),
        ({"a": np.zeros(4), "b": np.array(["t"] * 4, object)}, TensorSpec("x", "float32", ("batch", 2)), "the columns"),
        ({"x": np.array(["t"] * 4, object)}, TensorSpec("x", "float32", ("batch",)), "has text or objects for it"),
        ({"x": np.array([1.5])}, TensorSpec("x", "int64", ("batch",)), "do not fit int64"),
        ({"x": np.array([np.nan])}, TensorSpec("x", "int64", ("batch",)), "do not fit int64"),
        ({"x": np.array([300])}, TensorSpec("x", "uint8", ("batch",)), "do not fit uint8"),
        ({"x": np.array([-1])}, TensorSpec("x", "uint64", ("batch",)), "do not fit uint64"),
        ({"x": np.array([2])}, TensorSpec("x", "bool", ("batch",)), "do not fit bool"),
        ({"x": np.array([1e300])}, TensorSpec("x", "float32", ("batch",)), "do not fit float32"),
    ],
)
def test_values_that_do_not_fit_the_inputs_are_refused_with_both_sides(columns, spec, message):
    with pytest.raises(DataFileError, match=message):
        fit_rows(columns, [spec], "data")


@pytest.mark.parametrize("dtype", [dtype for dtype in DATATYPE_OF if dtype != "object"])
def test_zeros_and_ones_fit_every_type(dtype):
    rows = fit_rows({"x": np.array([0, 1])}, [TensorSpec("x", dtype, ("batch",))], "data")
    assert rows.batch(0, 2)["x"].dtype == dtype
    assert rows.batch(0, 2)["x"].tolist() == [0, 1]


def test_missing_and_infinite_numbers_stay_what_they_are():
    values = np.array([np.nan, np.inf, -np.inf, 1.0])
    rows = fit_rows({"x": values}, [TensorSpec("x", "float16", ("batch",))], "data")
    np.testing.assert_array_equal(rows.batch(0, 4)["x"], values)


def test_columns_of_different_length_are_refused(tmp_path):
    np.savez(tmp_path / "data.npz", a=np.zeros(3), b=np.zeros(4))
    with pytest.raises(DataFileError, match=r"different numbers of rows: \{'a': 3, 'b': 4\}"):
        read_columns(tmp_path / "data.npz")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A sound file of every format."""
    folder = tmp_path_factory.mktemp("files")
    np.savez_compressed(folder / "packed.npz", x=np.zeros((50, 30)), y=np.arange(50))
    columns = {"a": VALUES[:, 0], "b": LABELS, "text": np.array(list("abcd"), object)}
    for ending in ("npz", "npy", "csv", "parquet", "jsonl", "txt"):
        plain = {name: column for name, column in columns.items() if name != "text" or ending not in ("npz", "npy")}
        write(folder / f"data.{ending}", plain)
    return sorted(folder.iterdir())


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_or_raises_data_file_error(files, tmp_path, data):
    source = data.draw(st.sampled_from(files))
    content = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / source.name
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    columns, told = {}, str(path)
    try:
        columns = read_columns(path)
    except DataFileError as error:
        told = str(error)
    assert str(path) in told
    assert len({len(column) for column in columns.values()}) <= 1


def test_every_sound_file_is_read(files):
    for path in files:
        assert len(next(iter(read_columns(path).values()))) in (4, 50)


def test_made_up_rows_are_the_same_for_the_same_seed():
    specs = [X, TensorSpec("fixed", "float32", (1, 2))]
    first, again, other = (SyntheticRows(specs, 5, seed) for seed in (1, 1, 2))
    assert len(first) == 5
    np.testing.assert_array_equal(first.batch(1, 3)["x"], again.batch(1, 3)["x"])
    assert not np.array_equal(first.batch(1, 3)["x"], other.batch(1, 3)["x"])
    assert first.batch(1, 3)["x"].shape == (2, 3)
    assert first.batch(1, 3)["fixed"].shape == (1, 2)


def test_rows_in_memory_are_sliced_by_column():
    rows = ArrayRows({"a": np.arange(5), "b": np.arange(5) * 2}, "memory")
    assert rows.batch(1, 3)["b"].tolist() == [2, 4]
