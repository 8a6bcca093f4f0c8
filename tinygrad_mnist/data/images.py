"""One digit from a picture file, brought into the form of an MNIST image.

The form is that of LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document Recognition" (1998):
bright ink on black, its longer side scaled to 20 pixels, its centre of mass put at the centre of 28 x 28.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .files import DataError, damage, open_file

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 50_000_000

MIN_CONTRAST = 32
"""Of 255: what varies by less is a page without ink."""

FAINTEST_INK = 0.3
"""Of the strongest ink: what is fainter is noise, or paper in shade, as light falls on it unevenly in a photograph."""

SIDE = 28
INK_SIDE = 20
CENTRE = 14
"""The row and column of MNIST's centres of mass, to within half a pixel."""


def digit(path: str | os.PathLike[str]) -> tuple[NDArray[np.uint8], str]:
    """Read a PNG or JPEG of one digit, dark on light or light on dark.

    Returns a uint8 image `(28, 28)` as MNIST has them, and a description of what was done to get it. A 28 x 28 picture
    with a dark background is returned as it is. Raises DataError if the file is no such picture, or blank.
    """
    path = Path(path)
    gray, steps = _read_gray(path)
    contrast = gray.max() - gray.min()
    if contrast < MIN_CONTRAST:
        raise DataError(path, "a digit that stands out from its background", f"a contrast of {contrast:.0f} in 255")
    background = np.median(np.concatenate((gray[0], gray[-1], gray[:, 0], gray[:, -1])))
    if background >= 128:
        ink = background - gray
        steps.append("inverted the light background")
    elif gray.shape == (SIDE, SIDE):
        return np.rint(gray).astype(np.uint8), "; ".join([*steps, "left as it is: 28 x 28 on a dark background"])
    else:
        ink = gray - background
    image, step = _normalise(ink)
    return image, "; ".join([*steps, step])


def _read_gray(path: Path) -> tuple[NDArray[np.float32], list[str]]:
    """The picture upright, as float32 from 0 (black) to 255 (white), and what had to be done for that."""
    from PIL import Image, UnidentifiedImageError

    limit = f"at most {MAX_PIXELS // 1_000_000} million pixels"
    with open_file(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged metadata and of sizes that are refused here anyway
        try:
            picture = Image.open(file, formats=("PNG", "JPEG"))
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(path, limit, f"{picture.width} x {picture.height}")
            return _decode(picture)
        except DataError:
            raise
        except Image.DecompressionBombError as error:
            raise DataError(path, limit, "far more") from error
        except UnidentifiedImageError as error:
            raise DataError(path, "a PNG or JPEG picture", "another kind of file") from error
        except Exception as error:  # Pillow's decoders answer damage with whatever they stumble upon
            raise DataError(path, "an intact PNG or JPEG picture", damage(error)) from error


def _decode(picture: Image) -> tuple[NDArray[np.float32], list[str]]:
    from PIL import ExifTags, ImageOps

    steps = []
    if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
        steps.append("turned upright as its EXIF data says")
    if picture.mode.startswith("I"):  # 16 bits, which Pillow's own conversion would clip to 8
        return np.asarray(picture, np.float32) / np.float32(257), steps
    gray, alpha = np.moveaxis(np.asarray(picture.convert("LA"), np.float32), -1, 0)
    if alpha.min() < 255:
        dark = (gray * alpha).sum() < 128 * alpha.sum()
        paper = 255 if dark else 0
        gray += (paper - gray) * (1 - alpha / 255)
        steps.append(f"laid on {'white' if dark else 'black'} where transparent")
    return gray, steps


def _normalise(ink: NDArray[np.float32]) -> tuple[NDArray[np.uint8], str]:
    """MNIST's own normalisation, of ink that is 0 or less where there is none."""
    from PIL import Image

    ink = np.where(ink < FAINTEST_INK * ink.max(), 0, ink)
    rows = np.flatnonzero(ink.any(axis=1))
    columns = np.flatnonzero(ink.any(axis=0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = ink.shape
    longer = max(height, width)
    h, w = (max(1, round(INK_SIDE * side / longer)) for side in (height, width))
    small = np.asarray(Image.fromarray(ink).resize((w, h), Image.Resampling.BOX))
    small = np.rint(small * (255 / small.max())).astype(np.uint8)  # thin strokes fade when many pixels become one

    top = _offset(small.sum(axis=1), h)
    left = _offset(small.sum(axis=0), w)
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[top : top + h, left : left + w] = small
    return image, f"cropped to {width} x {height}, scaled to {w} x {h}, centred by mass in {SIDE} x {SIDE}"


def _offset(mass: NDArray[Any], length: int) -> int:
    """Where ink of this mass in each row (or column) begins, so that its centre of mass is central and none is cut."""
    centre = mass @ np.arange(length) / mass.sum()
    return min(max(round(CENTRE - float(centre)), 0), SIDE - length)
