"""The works: what every tool computes, as data. Weights, images and order are drawn here, once for all tools."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from .. import data

Array = Any


class Bar(NamedTuple):
    """What is asked of the best of our tools: at most `limit` times the best tool whose name begins with `against`, or
    at most `limit` seconds. `quantity`: "time" or "memory". `tool`: the beginning of the names of ours that count."""

    against: str
    limit: float
    quantity: str = "time"
    tool: str = ""


@dataclass(frozen=True)
class Work:
    """A training (or, with the loss "mean", a forward pass) on MNIST: `steps` at most, each on `batch` rows."""

    key: str
    sizes: tuple[int, ...]
    batch: int
    steps: int
    lr: float
    optimizer: str = "sgd"  # or "adam", or "none"
    activation: str = "relu"  # or "sigmoid", then after the last layer too
    loss: str = "cross-entropy"  # of labels; "squares": 0.5 sum((out - one-hot)^2); "mean" of the outputs, no backward
    bias: bool = True
    dtype: str = "float32"
    part: str = "train"
    rows: int = 60_000
    order: str = "shuffled"  # or "in turn", or "whole": every step takes all rows, and gathers none
    near_identity: bool = False  # square weights are 1 + noise: signals survive 1000 layers
    bars: tuple[Bar, ...] = ()

    @property
    def title(self) -> str:
        """The work in words."""
        what = {"sgd": "SGD", "adam": "Adam", "none": "forward only"}[self.optimizer]
        sizes, extra = "-".join(map(str, self.sizes)), "" if self.bias else ", no biases"
        layers = f" ({len(self.sizes) - 1} layers)" if len(self.sizes) > 8 else ""
        sizes = sizes if not layers else "-".join(map(str, self.sizes[:3])) + "-...-" + str(self.sizes[-1])
        return f"{sizes}{layers} {self.activation}{extra}, batch {self.batch}, {what}, {self.dtype}"


NET, WIDE = (784, 128, 64, 10), (784, 500, 250, 100, 10)
NOTEBOOK = Work(
    "notebook-a", (784, 150, 100, 50, 10), 1, 40_000, 0.2, activation="sigmoid", loss="squares", bias=False, rows=2000,
    order="in turn", bars=(Bar("seconds", 0.5),),
)
WORKS = {
    work.key: work
    for work in (
        Work("adam128", NET, 128, 468, 1e-3, "adam", bars=(Bar("jax scan", 0.85), Bar("torch eager", 0.55))),
        Work("sgd1", NET, 1, 10_000, 0.01, bars=(Bar("jax scan", 0.55), Bar("torch eager", 0.025))),
        Work("sgd64", WIDE, 64, 400, 0.1, bars=(Bar("jax scan", 0.98), Bar("bare products", 1.12))),
        Work(
            "gd60000", (784, 500, 150, 10), 60_000, 1, 0.1, order="whole",
            bars=(Bar("jax", 1.0), Bar("bare products", 1.08), Bar("jax", 0.5, "memory")),
        ),
        NOTEBOOK,
        replace(NOTEBOOK, key="notebook-a64", dtype="float64", bars=(Bar("seconds", 0.8),)),
        Work(
            "infer", WIDE, 10_000, 5, 0.0, "none", loss="mean", part="test", rows=10_000, order="whole",
            bars=(Bar("bare products", 1.05),),
        ),
    )
}
TRAIN_BARS = (Bar("seconds", 4.0, tool="train, cached"), Bar("seconds", 7.0, tool="train, first run"))
CAPTURE_BARS = (
    Bar("seconds", 0.05, tool="capture, numpy"),
    Bar("seconds", 3.0, tool="native compile, cold"),
    Bar("seconds", 0.3, tool="native compile, cached"),
)
CHECK_STEPS = 20


def checked(work: Work) -> Work:
    """The same arithmetic, small enough to check in float64 in every tool."""
    batch = min(work.batch, 512)
    rows = batch if work.order == "whole" else min(work.rows, 4096)
    return replace(work, batch=batch, rows=rows, steps=CHECK_STEPS, dtype="float64")


class Problem(NamedTuple):
    """What a tool gets: (weight `(n_in, n_out)`, bias or None) of each layer, the rows, and which of them each step
    takes, `(steps, batch)`."""

    work: Work
    weights: list[tuple[Array, Array | None]]
    x: Array
    y: Array
    order: Array


def problem(work: Work) -> Problem:
    """The work with its arrays; the same call gives the same numbers, whatever tool it is for."""
    rng = np.random.default_rng(0)
    weights = []
    for n_in, n_out in pairwise(work.sizes):
        scale = 1.0 if work.activation == "sigmoid" else np.sqrt(2 / n_in)
        if work.near_identity and n_in == n_out:
            weight = np.eye(n_in) + rng.normal(0, 0.01 / np.sqrt(n_in), (n_in, n_out))
        else:
            weight = rng.normal(0, scale, (n_in, n_out))
        bias = rng.normal(0, 0.01, n_out).astype(work.dtype) if work.bias else None
        weights.append((weight.astype(work.dtype), bias))
    x, labels = _images(work.part, work.rows, work.dtype)
    y = np.eye(10, dtype=work.dtype)[labels] if work.loss == "squares" else labels
    if work.order == "whole":
        order = np.broadcast_to(np.arange(work.rows), (work.steps, work.rows))
    else:
        wanted = work.steps * work.batch
        row_of = rng.permutation if work.order == "shuffled" else np.arange
        epochs = [row_of(work.rows) for _ in range(-(-wanted // work.rows))]
        order = np.concatenate(epochs)[:wanted].reshape(work.steps, work.batch)
    return Problem(work, weights, x, y, order)


@lru_cache(1)
def _images(part: str, rows: int, dtype: str) -> tuple[Array, Array]:
    """Pixels 0 to 1 `(rows, 784)`, and labels as the integers that every tool takes."""
    train, train_labels, test, test_labels = data.mnist()
    images, labels = (train, train_labels) if part == "train" else (test, test_labels)
    x = images[:rows].reshape(-1, 784).astype(dtype)
    x /= 255
    return x, labels[:rows].astype(np.int64)
