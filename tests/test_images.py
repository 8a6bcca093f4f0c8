"""Pictures of digits come back as MNIST has them."""

import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tinygrad_mnist.data import DataError, digit, images, mnist

NEAREST, BICUBIC = Image.Resampling.NEAREST, Image.Resampling.BICUBIC


@pytest.fixture(scope="module")
def digits():
    """Ten test images, one of each digit."""
    _, _, x_test, y_test = mnist()
    return [x_test[np.flatnonzero(y_test == label)[0]] for label in range(10)]


def enlarged(image, side, resample=NEAREST):
    return np.asarray(Image.fromarray(image).resize((side, side), resample))


def saved(path, pixels, mode=None, **options):
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def difference(a, b):
    """The mean absolute difference of two uint8 images, in levels of 255."""
    return np.abs(a.astype(float) - b).mean()


def difference_but_for_a_step(a, b):
    """The same when the centre of mass lay between two pixels, and may have been put on either."""
    steps = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return min(difference(np.roll(a, step, axis=(0, 1)), b) for step in steps)


def test_an_mnist_image_is_left_as_it_is(tmp_path, digits):
    for original in digits:
        image, description = digit(saved(tmp_path / "digit.png", original))
        assert np.array_equal(image, original)
        assert description == "left as it is: 28 x 28 on a dark background"


def test_enlarged_inverted_and_off_centre(tmp_path, digits):
    for original in digits:
        pixels = np.pad(255 - enlarged(original, 224), ((30, 90), (60, 10)), constant_values=255)
        image, description = digit(saved(tmp_path / "digit.png", pixels))
        assert (image.dtype, image.shape) == (np.uint8, (28, 28))
        assert difference_but_for_a_step(image, original) < 3
        assert re.fullmatch(
            r"inverted the light background; cropped to \d+ x \d+, scaled to \d+ x \d+, centred by mass in 28 x 28",
            description,
        )


@pytest.mark.parametrize("side", [60, 204, 1000])
def test_smoothly_enlarged(tmp_path, digits, side):
    for original in digits:
        image, _ = digit(saved(tmp_path / "digit.png", enlarged(original, side, BICUBIC)))
        assert difference_but_for_a_step(image, original) < 14


def test_gray_pencil_on_grayish_paper_as_jpeg(tmp_path, digits):
    rng = np.random.default_rng(0)
    for original in digits:
        pixels = 210 - 0.6 * enlarged(original, 150, BICUBIC) + rng.normal(0, 3, (150, 150))
        path = saved(tmp_path / "digit.jpg", np.clip(pixels, 0, 255).astype(np.uint8), quality=75)
        image, _ = digit(path)
        assert difference_but_for_a_step(image, original) < 14
        assert np.count_nonzero(image[0]) == 0


def test_a_photograph_with_one_side_in_shade(tmp_path, digits):
    rng = np.random.default_rng(0)
    light = np.linspace(1, 0.8, 204)
    for original in digits:
        pixels = (230 - 0.75 * enlarged(original, 204, BICUBIC)) * light + rng.normal(0, 3, (204, 204))
        path = saved(tmp_path / "digit.jpg", np.clip(pixels, 0, 255).astype(np.uint8), quality=75)
        image, _ = digit(path)
        assert difference_but_for_a_step(image, original) < 14


def test_the_form_of_mnist(tmp_path):
    """A bar of 300 x 60 becomes one of 20 x 4, about pixel 14, wherever it stood."""
    pixels = np.full((400, 500), 255, np.uint8)
    pixels[20:320, 400:460] = 0
    image, description = digit(saved(tmp_path / "one.png", pixels))
    rows, columns = np.nonzero(image)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 23, 12, 15)
    assert np.all(image[4:24, 12:16] == 255)
    assert description == (
        "inverted the light background; cropped to 60 x 300, scaled to 4 x 20, centred by mass in 28 x 28"
    )


def test_ink_is_never_cut_off(tmp_path):
    """A heavy foot pulls the centre of mass down by more than there is room above."""
    pixels = np.zeros((200, 200), np.uint8)
    pixels[0:200, 95:105] = 80
    pixels[180:200, 0:200] = 255
    image, _ = digit(saved(tmp_path / "digit.png", pixels))
    assert np.count_nonzero(image.any(axis=1)) == 20


def test_thin_strokes_stay_bright(tmp_path):
    pixels = np.full((1000, 1000), 255, np.uint8)
    pixels[100:900, 500:505] = 0
    pixels[100:105, 300:700] = 0
    assert digit(saved(tmp_path / "digit.png", pixels))[0].max() == 255


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("light", [False, True])
def test_modes_of_png(tmp_path, digits, mode, light):
    pixels = np.where(enlarged(digits[3], 224) > 127, 255, 0).astype(np.uint8)
    if light:
        pixels = 255 - pixels
    expected, description = digit(saved(tmp_path / "gray.png", pixels))
    if mode == "I;16":
        path = saved(tmp_path / "digit.png", pixels.astype(np.uint16) * 257)
    else:
        path = saved(tmp_path / "digit.png", pixels, mode)
    found = digit(path)
    assert np.array_equal(found[0], expected)
    assert found[1] == description


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_modes_of_jpeg(tmp_path, digits, mode):
    original = digits[3]
    image, _ = digit(saved(tmp_path / "digit.jpg", 255 - enlarged(original, 224), mode, quality=90))
    assert difference_but_for_a_step(image, original) < 3


@pytest.mark.parametrize(("ink", "paper"), [(0, "white"), (255, "black")])
def test_ink_on_transparent_ground(tmp_path, digits, ink, paper):
    alpha = enlarged(digits[3], 224)
    path = saved(tmp_path / "digit.png", np.stack((np.full_like(alpha, ink), alpha), axis=-1))
    image, description = digit(path)
    assert difference(image, digits[3]) < 3
    assert description.startswith(f"laid on {paper} where transparent; ")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_orientation(tmp_path, digits, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    lying = np.rot90(enlarged(digits[4], 224))
    image, description = digit(saved(tmp_path / f"digit.{suffix}", np.ascontiguousarray(lying), exif=exif))
    assert difference(image, digits[4]) < 3
    assert description.startswith("turned upright as its EXIF data says; ")


def error_of(path):
    with pytest.raises(DataError) as caught:
        digit(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: expected ")
    assert message.isprintable()
    return message.removeprefix(f"{path}: expected ")


@pytest.mark.parametrize("level", [0, 128, 255])
def test_blank(tmp_path, level):
    pixels = np.full((28, 28), level, np.uint8)
    pixels[3, 4] ^= 16
    path = saved(tmp_path / "blank.png", pixels)
    assert error_of(path) == "a digit that stands out from its background, found a contrast of 16 in 255"


def test_wholly_transparent(tmp_path):
    path = saved(tmp_path / "blank.png", np.zeros((40, 40, 4), np.uint8))
    assert error_of(path) == "a digit that stands out from its background, found a contrast of 0 in 255"


@pytest.mark.parametrize("content", [b"", b"not a picture", b"GIF89a" + bytes(100)])
def test_another_kind_of_file(tmp_path, content):
    path = tmp_path / "digit.png"
    path.write_bytes(content)
    assert error_of(path) == "a PNG or JPEG picture, found another kind of file"


def test_missing_or_a_folder(tmp_path):
    assert error_of(tmp_path) == "a file, found a folder"
    assert error_of(tmp_path / "nowhere.png") == "a readable file, found No such file or directory"


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_damaged_at_any_place(tmp_path, digits, suffix):
    """Nothing but a DataError, with one line, for a picture that was cut or changed anywhere."""
    path = saved(tmp_path / f"digit.{suffix}", 255 - enlarged(digits[5], 112))
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content[: rng.integers(1, len(content))] if rng.random() < 0.3 else content)
        for at in rng.integers(0, len(damaged), 3):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            image, _ = digit(path)
            assert image.shape == (28, 28)
        except DataError:
            error_of(path)
            refused += 1
    assert refused > 20


def test_truncated(tmp_path, digits):
    path = saved(tmp_path / "digit.png", enlarged(digits[5], 224))
    path.write_bytes(path.read_bytes()[:-100])
    assert error_of(path).startswith("an intact PNG or JPEG picture, found damage (")


@pytest.mark.parametrize("side", [8_000, 12_000, 20_000])
def test_a_decompression_bomb(tmp_path, side):
    """Pillow itself says nothing, warns, or refuses, at these sizes; here the header alone decides."""
    path = saved(tmp_path / "bomb.png", np.zeros((1, 1), np.uint8))
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    found = f"{side} x {side}" if side < 20_000 else "far more"
    assert error_of(path) == f"at most 50 million pixels, found {found}"


def test_the_limit_is_inclusive(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    pixels = np.zeros((10, 10), np.uint8)
    pixels[2:8, 4:6] = 255
    assert digit(saved(tmp_path / "digit.png", pixels))[0].any()
    monkeypatch.setattr(images, "MAX_PIXELS", 99)
    assert error_of(tmp_path / "digit.png").endswith("found 10 x 10")
