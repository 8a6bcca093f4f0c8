"""A data set and a recipe on which a run takes a moment, optimizers for a few steps, and the notebooks in small."""

import inspect
from dataclasses import replace
from functools import cache

import numpy as np

from tinygrad_mnist import data, notebooks, optim
from tinygrad_mnist.recipe import Recipe

RECIPE = Recipe(layers=(784, 16, 10), dropout=0.1, batch=64, epochs=4, validation=0.2)
"""With all that must survive an interruption: dropout, schedule, optimizer state, split, a last batch that is short."""

DISTORTED = replace(RECIPE, elastic=20.0, sigma=3.0, rotation=5.0, shear=0.1, scale=0.1, shift=1.0)

TIMES = ("seconds", "images_per_second")

OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, 0.1),
    "decay": lambda p: optim.SGD(p, 0.1, weight_decay=0.01),
    "momentum": lambda p: optim.SGD(p, 0.1, momentum=0.9),
    "nesterov": lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: optim.Adam(p, 0.01),
    "adam_l2": lambda p: optim.Adam(p, 0.01, weight_decay=0.1),
    "adamw": lambda p: optim.AdamW(p, 0.01),
}
"""Every form that an update can take: makers of an optimizer for some parameters."""


@cache
def dataset():
    """The first images of MNIST: 500 to train, 200 to test."""
    x_train, y_train, x_test, y_test = data.mnist()
    return x_train[:500].copy(), y_train[:500].copy(), x_test[:200].copy(), y_test[:200].copy()


def save_npz(path):
    """Write the data set as a user's own file."""
    np.savez(path, **dict(zip(("x_train", "y_train", "x_test", "y_test"), dataset(), strict=True)))
    return path


def without_times(history):
    """A history in which only what the recipe decides is left."""
    return [{name: value for name, value in row.items() if name not in TIMES} for row in history]


NOTEBOOKS = {  # units of the layers, and samples
    "A": ((20, 15, 12, 11, 10), 1),
    "A'": ((20, 15, 12, 11, 10), 7),
    "B": ((2, 3, 1), 100),
    "B'": ((30, 12, 8, 10), 14),
    "C": ((16, 20, 15, 10), 1),
    "D": ((12, 9, 7, 6, 10), 8),
    "E": ((49, 32, 16, 10), 64),
}


def notebook(letter, seed=5):
    """A notebook with (weights, samples) that its functions take by name: biases too are random, and nothing is near a
    kink by chance of being zero."""
    found = notebooks.load(letter)
    sizes, count = NOTEBOOKS[letter]
    rng = np.random.RandomState(seed)
    weights = {name: np.asarray(W + 0.1 * rng.randn(*W.shape)) for name, W in found.initial(rng, sizes).items()}
    x, labels = rng.rand(count, sizes[0]), rng.randint(sizes[-1], size=count)
    y = rng.randint(2, size=count) if letter == "B" else labels if letter == "B'" else np.eye(10)[labels]
    samples = (x.T, y.T) if found.columns else (x, y)
    names = list(inspect.signature(found.forward).parameters)[len(weights) :]
    return found, weights, dict(zip(names, samples, strict=False))
