"""From an image to an answer: every format, the model's own form, and every file that is none."""

import asyncio
import io
import struct
import zlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mlserve.errors import InvalidRequest, Overloaded, PayloadTooLarge

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def pictures():
    """Digits as gray images [rows, 8, 8] of 0 to 255, and what they show."""
    data = load_digits()
    return (data.images * 255 / 16).round().astype(np.uint8), data.target


def huge_png(side):
    """A few hundred bytes that say they are `side` x `side` pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")


def test_an_image_gets_its_label_in_every_format(digits, asked, png, pictures):
    images, truth = pictures
    lossless = {"PNG": {}, "BMP": {}, "GIF": {}, "WEBP": {"lossless": True}}
    for kind, options in {**lossless, "JPEG": {"quality": 100}}.items():
        answers = asked(digits, [png(image, kind, **options) for image in images[:30]])
        right = [answer["label"] == NAMES[number] for answer, number in zip(answers, truth[:30], strict=True)]
        assert sum(right) >= 28, kind
        assert all(0 < answer["score"] <= 1 for answer in answers)


def test_colour_size_and_sixteen_bits_are_brought_to_what_the_model_takes(digits, asked, png, pictures):
    from PIL import Image

    image = pictures[0][0]
    deep = io.BytesIO()
    Image.fromarray(image.astype(np.uint16) * 257).save(deep, "PNG")
    plain, colour, sixteen = asked(digits, [png(image), png(np.stack([image] * 3, -1)), deep.getvalue()])
    assert plain == sixteen
    assert colour["score"] == pytest.approx(plain["score"], abs=0.01)
    assert colour["label"] == plain["label"] == "zero"
    small, large, other = asked(digits, [png(np.full(shape, level)) for shape, level in
                                         (((8, 8), 90), ((300, 201), 90), ((8, 8), 200))])  # fmt: skip
    assert small == large
    assert other["score"] != small["score"]


def test_a_photo_is_turned_upright_as_its_camera_says(digits, asked, png, pictures):
    from PIL import Image

    image = pictures[0][4]
    turned = Image.fromarray(np.rot90(image))  # a quarter to the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    marked, unmarked = io.BytesIO(), io.BytesIO()
    turned.save(marked, "PNG", exif=exif)
    turned.save(unmarked, "PNG")
    upright, as_marked, as_it_lies = asked(digits, [png(image), marked.getvalue(), unmarked.getvalue()])
    assert upright == as_marked
    assert as_it_lies != upright


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda _: b"", "none of PNG, JPEG, WEBP, GIF, BMP"),
        (lambda _: b"no image at all", "none of PNG, JPEG, WEBP, GIF, BMP"),
        (lambda file: file[: len(file) // 2], "the image cannot be read"),
        (lambda _: huge_png(20_000), "400000000 pixels"),
        (lambda _: huge_png(9_000), "9000 x 9000 pixels, at most"),
        (lambda _: huge_png(2**31 - 1), "cannot be read"),
        (lambda _: "a string", "this model takes images"),
        (lambda _: b"%PDF-1.4 " + b"0" * 500, "none of PNG"),
    ],
)
def test_a_file_that_is_no_whole_image_is_refused_before_it_is_unpacked(digits, asked, png, pictures, spoil, told):
    whole = png(np.random.default_rng(0).integers(256, size=(40, 40)), "JPEG")
    assert len(asked(digits, [whole])) == 1
    with pytest.raises(InvalidRequest, match=told):
        asked(digits, [spoil(whole)])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_half_a_file_is_refused_in_every_format(digits, asked, png, kind):
    whole = png(np.random.default_rng(0).integers(256, size=(40, 40)), kind)
    with pytest.raises(InvalidRequest, match="the image cannot be read"):
        asked(digits, [whole[: len(whole) // 2]])


def test_flipped_bits_never_do_more_than_refuse(digits, opened, png):
    rng = np.random.default_rng(5)
    files = []
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        whole = png(rng.integers(256, size=(24, 24)), kind)
        for _ in range(40):
            spoilt = bytearray(whole)
            for position in rng.integers(len(whole), size=4):
                spoilt[position] ^= 1 << int(rng.integers(8))
            files.append(bytes(spoilt))

    async def work(model):
        return await asyncio.gather(*[model.task.answer([file]) for file in files], return_exceptions=True)

    answers = opened(digits, work)
    refused = [answer for answer in answers if isinstance(answer, InvalidRequest)]
    assert 10 < len(refused) < len(answers)
    assert all(answer[0]["label"] in NAMES for answer in answers if answer not in refused)


def test_an_image_too_long_and_narrow_to_resize_is_refused():
    from PIL import Image

    from mlserve.model.pixels import BadImage, pixels
    from mlserve.model.processing import ImageInput

    form = ImageInput(height=224, width=224, resize=256)
    assert pixels(Image.new("RGB", (300, 250)), form, "float32").shape == (3, 224, 224)
    with pytest.raises(BadImage, match="too long and narrow"):
        pixels(Image.new("RGB", (300_000, 1)), form, "float32")


def test_one_bad_image_in_a_batch_fails_its_own_request_alone(digits, opened, png, pictures):
    good = png(pictures[0][3])

    async def work(model):
        asking = [model.task.answer([value]) for value in (good, b"bad", good)]
        return await asyncio.gather(*asking, return_exceptions=True)

    first, bad, last = opened(digits, work)
    assert isinstance(bad, InvalidRequest)
    assert first == last == [{"label": "three", "score": first[0]["score"]}]


def test_the_place_of_a_bad_image_in_its_request_is_told(digits, asked, png, pictures):
    with pytest.raises(InvalidRequest, match="value 12 of 13: the image cannot be read"):
        asked(digits, [*[png(pictures[0][0])] * 11, b"bad", png(pictures[0][0])])


def test_more_images_than_may_wait_are_refused(digits, opened, png, pictures):
    one = png(pictures[0][0])

    async def work(model):
        with pytest.raises(PayloadTooLarge):
            await model.task.answer([one] * 9)
        asking = [model.task.answer([one] * 5) for _ in range(2)]
        return await asyncio.gather(*asking, return_exceptions=True)

    first, second = opened(digits, work, max_waiting_rows=8)
    assert len(first) == 5
    assert isinstance(second, Overloaded)


def test_its_example_is_an_image_that_it_takes(digits, opened):
    async def work(model):
        return await model.task.answer([model.task.example]), model.task.kind

    answers, kind = opened(digits, work)
    assert (len(answers), kind) == (1, "image")
