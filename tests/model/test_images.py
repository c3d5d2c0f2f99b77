"""Folders of images as rows: labels from folder names, every layout of an input, and every way not to fit."""

import numpy as np
import pytest
from PIL import Image

from mlserve.errors import DataFileError
from mlserve.model.rows import read_columns, read_rows
from mlserve.model.tensors import TensorSpec

RGB = TensorSpec("image", "float32", ("batch", 3, 8, 8))


def paint(path, colour, size=(8, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def pets(tmp_path):
    paint(tmp_path / "pets" / "dog" / "b.png", (0, 255, 0))
    paint(tmp_path / "pets" / "cat" / "a.png", (255, 0, 0))
    paint(tmp_path / "pets" / "cat" / "c.bmp", (0, 0, 51))
    (tmp_path / "pets" / ".DS_Store").touch()
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("a good cat")
    return tmp_path / "pets"


def test_the_label_is_the_number_of_the_class_among_the_sorted_names(pets):
    rows = read_rows(pets, [RGB])
    assert len(rows) == 3
    assert rows.labels.tolist() == [0, 0, 1]
    batch = rows.batch(0, 3)["image"]
    assert (batch.shape, batch.dtype) == ((3, 3, 8, 8), np.float32)
    np.testing.assert_allclose(batch[:, :, 0, 0], [[1, 0, 0], [0, 0, 0.2], [0, 1, 0]])
    assert rows.source.startswith("pets (3 images, sha256 of names and sizes ")


def test_chosen_rows_keep_their_labels(pets):
    rows = read_rows(pets, [RGB]).take([2, 0])
    assert rows.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(rows.batch(0, 1)["image"][0, :, 0, 0], [0, 1, 0])
    assert rows.take([1]).batch(0, 1)["image"][0, 0, 0, 0] == 1


def test_images_without_classes_have_no_labels(tmp_path):
    paint(tmp_path / "1.png", 7, mode="L")
    paint(tmp_path / "2.jpg", 200, mode="L")
    rows = read_rows(tmp_path, [TensorSpec("x", "uint8", ("batch", 1, 8, 8))])
    assert rows.labels is None
    assert rows.batch(0, 2)["x"][:, 0, 0, 0].tolist() == [7, 200]


@pytest.mark.parametrize(
    ("dims", "shape"),
    [
        (("batch", 3, 4, 6), (3, 4, 6)),
        (("batch", 1, 4, 6), (1, 4, 6)),
        (("batch", 4, 6, 3), (4, 6, 3)),
        (("batch", 4, 6, 1), (4, 6, 1)),
        (("batch", 4, 6), (4, 6)),
        (("batch", 3, "height", "width"), (3, 5, 10)),
        (("batch", "channels", "height", "width"), (3, 5, 10)),
        (("batch", "height", "width", 3), (5, 10, 3)),
        ((1, 3, 4, 4), (3, 4, 4)),
    ],
)
def test_every_layout_gets_its_size(tmp_path, dims, shape):
    paint(tmp_path / "1.png", (255, 255, 255), size=(10, 5))
    paint(tmp_path / "2.png", (255, 255, 255), size=(7, 7))
    batch = read_rows(tmp_path, [TensorSpec("x", "float32", dims)]).batch(0, 2)["x"]
    assert batch.shape == (2, *shape)
    np.testing.assert_allclose(batch, 1.0)


def test_a_picture_keeps_its_left_and_its_top(tmp_path):
    pixels = np.zeros((4, 6), np.uint8)
    pixels[0, 5] = 255
    Image.fromarray(pixels).save(tmp_path / "1.png")
    batch = read_rows(tmp_path, [TensorSpec("x", "float64", ("batch", 1, 4, 6))]).batch(0, 1)["x"]
    np.testing.assert_array_equal(batch[0, 0], pixels / 255)


def test_a_file_that_is_no_image_is_named(pets):
    (pets / "dog" / "broken.png").write_bytes(b"\x89PNG no")
    with pytest.raises(DataFileError, match=r"broken\.png cannot be read as an image"):
        read_rows(pets, [RGB])


def test_an_image_that_was_cut_short_is_named(pets):
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(pets / "dog" / "long.png")
    content = (pets / "dog" / "long.png").read_bytes()
    (pets / "dog" / "long.png").write_bytes(content[: len(content) // 2])
    rows = read_rows(pets, [RGB])
    with pytest.raises(DataFileError, match=r"long\.png cannot be read as an image"):
        rows.batch(0, len(rows))


def test_folders_that_hold_no_images_are_named(tmp_path, pets):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataFileError, match="nothing holds no images"):
        read_rows(tmp_path / "nothing", [RGB])
    (pets / "fish").mkdir()
    with pytest.raises(DataFileError, match="fish holds no images"):
        read_rows(pets, [RGB])


def test_images_beside_classes_belong_to_none(pets):
    paint(pets / "stray.png", 0, mode="L")
    with pytest.raises(DataFileError, match="beside folders of images"):
        read_rows(pets, [RGB])


@pytest.mark.parametrize(
    "specs",
    [
        [RGB, TensorSpec("mask", "int64", ("batch",))],
        [TensorSpec("x", "float32", ("batch", 30))],
        [TensorSpec("x", "int64", ("batch", 3, 8, 8))],
        [TensorSpec("x", "float32", ("batch", 5, 8, 8))],
        [TensorSpec("text", "object", ("batch",))],
    ],
)
def test_a_model_that_takes_no_image_says_what_it_takes(pets, specs):
    with pytest.raises(DataFileError, match=specs[0].name):
        read_rows(pets, specs)


def test_a_folder_is_no_table(pets):
    with pytest.raises(DataFileError, match="is a folder"):
        read_columns(pets)
