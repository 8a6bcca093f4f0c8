"""Random distortions of images, so that a network never sees the same image twice.

They are those of Simard, Steinkraus and Platt, "Best Practices for Convolutional Neural Networks Applied to Visual
Document Analysis" (ICDAR 2003).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import arrays
from ..arrays import Array

FAINTEST = 1e-4
"""Of the variance of the strongest wave of a displacement field: what is fainter is left out."""


@dataclass(frozen=True)
class Distortion:
    """Affine and elastic distortions: called with images, it gives new ones, each distorted in its own random way.

    The pixel at p = (row, column), counted from the centre of the image, gets the value that the image has at

        M p + t + u(p),    M = [[cos a, -sin a], [sin a, cos a]] @ [[1, s], [0, 1]] @ [[1 + b, 0], [0, 1 + c]]

    by bilinear interpolation, where the image is 0 outside its edges. The angle a, s, b, c and both parts of t are
    uniform between minus and plus `rotation` (in degrees), `shear`, `scale` (b and c) and `shift` (in pixels).

    `elastic` and `sigma` are the paper's alpha and sigma, 34 and 4 there: each part of u is noise, uniform from -1 to 1
    in every pixel, smoothed by a Gaussian with a standard deviation of `sigma` pixels, times `elastic`. Being a sum of
    many small terms, that is a normal field, with the standard deviation elastic / (sigma sqrt(12 pi)), 1.4 pixels in
    the paper, and the correlation exp(-d^2 / 4 sigma^2) at the distance d. As such it is drawn, from few numbers: the
    amplitudes of the waves that survive the smoothing.
    """

    elastic: float = 0.0
    sigma: float = 4.0
    rotation: float = 0.0
    shear: float = 0.0
    scale: float = 0.0
    shift: float = 0.0

    def __call__(self, images: Array, rng: np.random.Generator, part: slice = slice(None)) -> Array:
        """uint8 images `(n, height, width)`, distorted, on the device of `images`: those of `part`, which are what they
        are among all. `rng` draws on the host, so that the numbers are the same for every device."""
        n, height, width = images.shape
        down, across = _functions(height, self.sigma), _functions(width, self.sigma)
        coefficients = np.zeros((n, 2, down.shape[1], across.shape[1]), np.float32)
        self._draw(coefficients, rng)
        images, coefficients = images[part], coefficients[part]
        coefficients[:, :, 0, 0] += (height - 1) / 2, (width - 1) / 2
        with arrays.on_device_of(images):
            down, coefficients, across = (arrays.place(a, images) for a in (down, coefficients, across.T))
            return _sampled(images, down @ coefficients @ across)

    def _draw(self, coefficients: NDArray[np.float32], rng: np.random.Generator) -> None:
        """Set `[i, k]` so that `down @ [i, k] @ across` is M p + t + u(p), for k = 0 its row, for k = 1 its column."""
        n, _, *waves = coefficients.shape
        angle = np.radians(rng.uniform(-1, 1, n) * self.rotation)
        s = rng.uniform(-1, 1, n) * self.shear
        b, c = 1 + rng.uniform(-1, 1, (2, n)) * self.scale
        sin, cos = np.sin(angle), np.cos(angle)
        coefficients[:, :, 0, 0] = rng.uniform(-1, 1, (n, 2)) * self.shift
        coefficients[:, :, 1, 0] = np.stack([cos * b, sin * b], 1)
        coefficients[:, :, 0, 1] = np.stack([(cos * s - sin) * c, (sin * s + cos) * c], 1)
        if self.elastic:
            deviation = self.elastic / (self.sigma * math.sqrt(12 * math.pi))
            normal = rng.standard_normal((n, 2, waves[0] - 2, waves[1] - 2), np.float32)
            coefficients[:, :, 2:, 2:] = np.float32(deviation) * normal


@functools.lru_cache(maxsize=16)
def _functions(n: int, sigma: float) -> NDArray[np.float32]:
    """Functions of n pixels in a line, one in each column: 1, the place counted from the centre, and waves, of which a
    sum with normal amplitudes has variance 1 everywhere and the correlation exp(-d^2 / 4 sigma^2)."""
    place = np.arange(n) - (n - 1) / 2
    variances, waves = np.linalg.eigh(np.exp(-(((place[:, None] - place) / (2 * sigma)) ** 2)))
    heard = variances > FAINTEST * variances[-1]
    functions = np.column_stack([np.ones(n), place, waves[:, heard] * np.sqrt(variances[heard])])
    return functions.astype(np.float32)


def _sampled(images: Array, places: Array) -> Array:
    """The values of each image at its places `(n, 2, height, width)`, between pixels by bilinear interpolation."""
    xp = arrays.namespace(type(images))
    n, height, width = images.shape
    stride = width + 3  # in a frame of zeros, so that the four pixels around a place on the edge are there
    framed = xp.zeros((n, height + 3, stride), places.dtype)
    framed[:, 1:-2, 1:-2] = images
    row, column = xp.clip(places[:, 0] + 1, 0, height + 1), xp.clip(places[:, 1] + 1, 0, width + 1)
    top, left = xp.floor(row), xp.floor(column)
    row -= top
    column -= left
    corner = (top * stride + left).astype("int64")
    corner += xp.arange(n)[:, None, None] * framed[0].size
    flat = framed.reshape(-1)
    upper, right, lower, opposite = (flat[k:].take(corner) for k in (0, 1, stride, stride + 1))
    upper += column * (right - upper)
    lower += column * (opposite - lower)
    upper += row * (lower - upper)
    return xp.rint(upper).astype("uint8")
