"""The five notebooks that this package grew out of, and what became of them: one module each, in seven trainings.

A module has, in the notebook's own words,
    forward(W1, ..., x, y)          the loss that it trains on, of arrays or Tensors; local names are the notebook's
    backward(W1, ..., x, y)         the gradient as it was derived by hand, as it stands, mistakes included: a dict from
                                    names of the forward to the arrays that claim to be their gradients, as derived
    reported_cost(W1, ..., x, y)    the cost that it prints, where that is another one
    output(W1, ..., x)              the last layer, from which the class is read
    initial(rng, sizes)             the weights at the start, by name, drawn by a `np.random.RandomState`
and the recipe and the figures that it reported as constants. `run(session)` trains and compares.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MODULES = {
    "A": "sgd_sigmoid_mse",
    "A'": "batch_gd_sigmoid_mse",
    "B": "mse_2_3_1",
    "B'": "adam_128_64",
    "C": "digits_relu_softmax",
    "D": "deep_500_250_100",
    "E": "full_batch_500_150",
}
"""By letter. The name of a notebook is that of its module, with hyphens."""


@dataclass(frozen=True, kw_only=True)
class Notebook:
    """A notebook, as the commands need it."""

    letter: str
    name: str
    model: str
    data: str
    said: str  # the figures that it reported, in short
    seed: int = 0
    columns: bool = False  # whether x and y hold a sample in each column, or in each row
    initial: Callable[..., Mapping[str, Any]]  # (rng, sizes)
    samples: Callable[[Any], tuple[Any, Any]]  # (rng) x and y, a row each, of a few samples, or one if a step has one
    forward: Callable[..., Any]
    backward: Callable[..., dict[str, Any]] | None = None  # None where nothing is by hand
    reported_cost: Callable[..., Any] | None = None
    tested_on: Callable[..., Mapping[str, Any]] | None = None  # (weights, x, y, *variant) what it tests on, by name
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})  # arguments after x and y
    run: Callable[..., None]


def load(name: str) -> Notebook:
    """The notebook with this name or letter. ValueError for any other."""
    for letter, module in MODULES.items():
        if name in (letter, letter.lower(), module.replace("_", "-")):
            found: Notebook = importlib.import_module(f".{module}", __name__).NOTEBOOK
            return found
    known = ", ".join(f"{module.replace('_', '-')} ({letter})" for letter, module in MODULES.items())
    raise ValueError(f"no notebook is called {name!r}; there are {known}")
