"""Distorted images, held to a bilinear interpolation in plain loops and to Simard's recipe for the displacements."""

import math
from itertools import product

import numpy as np
import pytest
from small import dataset

from tinygrad_mnist.data import Distortion
from tinygrad_mnist.data.distortions import _functions
from tinygrad_mnist.testing import strict

STRONG = Distortion(elastic=34.0, sigma=4.0, rotation=15.0, shear=0.2, scale=0.2, shift=2.0)


class Extreme:
    """In place of a generator: every uniform number is the largest (or, with -1, the smallest), every normal one 0."""

    def __init__(self, sign=1):
        self.sign = sign

    def uniform(self, low, high, size):
        return np.full(size, self.sign * high, float)

    def standard_normal(self, size, dtype):
        return np.zeros(size, dtype)


def rng(seed=0):
    return np.random.default_rng(seed)


def dot(row, column, value=255, shape=(28, 28)):
    image = np.zeros((1, *shape), np.uint8)
    image[0, row, column] = value
    return image


def reference(image, matrix, offset):
    """The image with, at each p from its centre, its value at matrix p + offset."""
    height, width = image.shape
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    result = np.zeros((height, width))
    for place in product(range(height), range(width)):
        row, column = matrix @ (place - centre) + offset + centre
        top, left = math.floor(row), math.floor(column)
        for i, j in product((top, top + 1), (left, left + 1)):
            if 0 <= i < height and 0 <= j < width:
                result[place] += image[i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return result


@pytest.mark.parametrize("shape", [(28, 28), (1, 1), (3, 7)])
def test_without_strength_images_come_back_bit_for_bit(backend, shape):
    images = rng().integers(0, 256, (5, *shape), np.uint8)
    assert np.array_equal(backend.host(Distortion()(backend.array(images), rng())), images)


def test_a_dot_is_moved_by_whole_pixels():
    assert np.array_equal(Distortion(shift=3.0)(dot(10, 12), Extreme()), dot(7, 9))
    assert np.array_equal(Distortion(shift=3.0)(dot(10, 12), Extreme(-1)), dot(13, 15))
    assert np.array_equal(Distortion(shift=3.0)(dot(10, 1), Extreme()), np.zeros((1, 28, 28)))


def test_a_dot_between_pixels_is_shared_among_four():
    found = Distortion(shift=0.25)(dot(10, 12, 160), Extreme())
    expected = dot(10, 12, 90) + dot(9, 12, 30) + dot(10, 11, 30) + dot(9, 11, 10)
    assert np.array_equal(found, expected)


def test_a_quarter_turn():
    images = dataset()[0][:20]
    assert np.array_equal(Distortion(rotation=90.0)(images, Extreme()), np.rot90(images, -1, axes=(1, 2)))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("shape", [(28, 28), (9, 14)])
def test_affine_distortions_are_those_of_the_formula(shape, sign):
    image = rng().integers(0, 256, shape, np.uint8)
    found = Distortion(rotation=20.0, shear=0.3, scale=0.2, shift=1.3)(image[None], Extreme(sign))[0]
    angle = math.radians(sign * 20)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ [[1, sign * 0.3], [0, 1]] * (1 + sign * 0.2)
    np.testing.assert_allclose(found, reference(image, matrix, sign * 1.3), atol=0.51)


@pytest.mark.parametrize("sigma", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("n", [1, 5, 28])
def test_a_sum_of_waves_has_variance_1_and_a_correlation_that_falls_with_the_distance(n, sigma):
    one, place, *waves = _functions(n, sigma).T
    assert np.array_equal(one, np.ones(n))
    assert np.array_equal(place, np.arange(n) - (n - 1) / 2)
    distance = np.subtract.outer(place, place)
    covariance = sum(np.outer(wave, wave) for wave in waves)
    np.testing.assert_allclose(covariance, np.exp(-(distance**2) / (4 * sigma**2)), atol=2e-3)


def test_displacements_are_those_of_simard():
    elastic, sigma = 34.0, 4.0
    # As the paper says it: noise from -1 to 1, a Gaussian of sum 1, alpha
    place = np.arange(200)
    gaussian = np.exp(-(np.subtract.outer(place, place) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    simard = elastic * (gaussian @ rng().uniform(-1, 1, (200, 200)) @ gaussian)[20:-20, 20:-20]
    # Of an image that rises by 9 from column to column, a value tells from where it came
    ramp = np.broadcast_to(9 * np.arange(28, dtype=np.uint8), (2000, 28, 28))
    moved = Distortion(elastic, sigma)(ramp, rng())[:, 14, 11:18].astype(float) / 9 - np.arange(11, 18)
    assert simard.std() == pytest.approx(elastic / (sigma * math.sqrt(12 * math.pi)), rel=0.05)
    assert moved.std() == pytest.approx(simard.std(), rel=0.05)
    for d in (1, 4, 6):
        expected = np.corrcoef(simard[:, d:].ravel(), simard[:, :-d].ravel())[0, 1]
        assert np.corrcoef(moved[:, d:].ravel(), moved[:, :-d].ravel())[0, 1] == pytest.approx(expected, abs=0.06)


def test_digits_keep_type_shape_range_and_most_of_their_ink():
    images = dataset()[0][:256]
    found = STRONG(images, rng())
    assert (found.dtype, found.shape) == (np.uint8, images.shape)
    assert not np.shares_memory(found, images)
    assert found.mean() == pytest.approx(images.mean(), rel=0.1)
    assert (found.max(axis=(1, 2)) <= images.max(axis=(1, 2))).all()
    assert all(np.abs(a.astype(float) - b).mean() > 1 for a, b in zip(images, found, strict=True))


def test_a_seed_decides_the_distortions_and_each_image_has_its_own():
    images = dataset()[0][:8]
    assert np.array_equal(STRONG(images, rng()), STRONG(images, rng()))
    assert not np.array_equal(STRONG(images, rng(1)), STRONG(images, rng()))
    same = np.broadcast_to(images[0], (8, 28, 28))
    assert len({image.tobytes() for image in STRONG(same, rng())}) == 8


def test_every_device_distorts_alike(backend):
    images = dataset()[0][:40]
    there = backend.array(images)
    found = STRONG(there, rng())
    assert type(found) is type(there)
    difference = np.abs(backend.host(found).astype(int) - STRONG(images, rng()))
    assert difference.max() <= 1  # products are summed in another order
    assert np.mean(difference > 0) < 1e-3


@pytest.mark.parametrize("backend", ["strict"], indirect=True)
def test_a_device_is_not_waited_for(backend):
    images = backend.array(dataset()[0][:4])
    strict.recorder.clear()
    with strict.no_sync():
        STRONG(images, rng())
    # the functions of rows and of columns, and the random numbers
    assert [kind for kind, *_ in strict.recorder.events] == ["h2d"] * 3


def test_images_stay_as_they_are(backend):
    there = backend.array(dataset()[0][:4].copy())
    STRONG(there, rng())
    assert np.array_equal(backend.host(there), dataset()[0][:4])


@pytest.mark.parametrize("extreme", [{"elastic": 1000.0, "sigma": 1.0}, {"shift": 1000.0}, {"shear": 10.0}])
def test_what_comes_from_far_outside_is_black(extreme):
    found = Distortion(**extreme)(np.full((50, 28, 28), 255, np.uint8), rng())
    assert (found == 0).mean() > 0.5
