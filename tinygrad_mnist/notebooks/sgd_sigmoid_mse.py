"""A. Sigmoid after each of four layers, the output too; squared error; one sample a step (reference document 000)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from . import Notebook
from .loops import Loop, Session, Weights, accuracy, mnist, own_loop, sample

SIZES = 784, 150, 100, 50, 10
SAMPLES, RATE, EPOCHS = 2000, 0.2, 20  # in order, not shuffled
REPORTED = {"seconds": 134.8}


def initial(rng: Any, sizes: tuple[int, ...] = SIZES) -> Weights:
    return {f"W{k}": rng.randn(*shape) for k, shape in enumerate(pairwise(sizes), start=1)}


def forward(W1, W2, W3, W4, x, y):
    Z1 = 1 / (1 + np.exp(-np.dot(W1.T, x)))
    Z2 = 1 / (1 + np.exp(-np.dot(W2.T, Z1)))
    Z3 = 1 / (1 + np.exp(-np.dot(W3.T, Z2)))
    Z4 = 1 / (1 + np.exp(-np.dot(W4.T, Z3)))
    loss = 0.5 * np.sum((Z4 - y) ** 2)
    return loss


def backward(W1, W2, W3, W4, x, y):
    Z1 = 1 / (1 + np.exp(-np.dot(W1.T, x)))
    Z2 = 1 / (1 + np.exp(-np.dot(W2.T, Z1)))
    Z3 = 1 / (1 + np.exp(-np.dot(W3.T, Z2)))
    Z4 = 1 / (1 + np.exp(-np.dot(W4.T, Z3)))
    return from_error(Z4 - y, x, Z1, Z2, Z3, Z4, W2, W3, W4)


def from_error(e, x, Z1, Z2, Z3, Z4, W2, W3, W4):
    """The notebook's own lines. `e` is a column, B, C and D are rows."""
    T1 = np.ones_like(Z3) @ (Z4 * (1 - Z4)).T
    gW4 = e.T * (T1 * Z3)
    B = e.T @ (W4 * T1).T
    T2 = np.ones_like(Z2) @ (Z3 * (1 - Z3)).T
    gW3 = B * (T2 * Z2)
    C = B @ (T2 * W3).T
    T3 = np.ones_like(Z1) @ (Z2 * (1 - Z2)).T
    gW2 = C * (T3 * Z1)
    D = C @ (T3 * W2).T
    T4 = np.ones_like(x) @ (Z1 * (1 - Z1)).T
    gW1 = D * (T4 * x)  # lost in the document's text, and taken from A'
    return {"Z4": e, "W4": gW4, "Z3": B, "W3": gW3, "Z2": C, "W2": gW2, "Z1": D, "W1": gW1}


def output(W1, W2, W3, W4, x):
    for W in (W1, W2, W3, W4):
        x = 1 / (1 + np.exp(-np.dot(W.T, x)))
    return x


def run(session: Session) -> None:
    images = mnist(session.length(SAMPLES, 200))
    weights = initial(np.random.RandomState(session.seed))
    in_order = np.arange(len(images.x))[:, None]
    loop = Loop(forward, weights, images[:2], RATE, columns=True, device=session.device)
    for epoch, _ in session.epochs(session.length(EPOCHS, 2), "A"):
        losses = loop.run(in_order)
        right = accuracy(output(**loop.weights, x=images.x_test.T), images.labels_test)
        session.row("", epoch, train_loss=losses.mean(), test_accuracy=right)
    scores = output(**loop.weights, x=images.x_test[:2000].T)
    share = epoch * len(in_order) / (EPOCHS * SAMPLES)
    session.seconds(f"{epoch * len(in_order)} steps, with compilation", share * REPORTED["seconds"], loop.seconds)
    session.figure("cost of the last epoch, mean", None, losses.mean())
    session.figure("accuracy on the first 2000 test images", None, accuracy(scores, images.labels_test[:2000]))
    session.compare("", images.labels_test[:2000], scores)
    if session.timed:
        times(session, weights)


def times(session: Session, weights: Weights) -> None:
    few, all_ = np.arange(100)[:, None], np.arange(session.length(SAMPLES, 200))[:, None]
    contenders = {}
    for dtype in ("float64", "float32"):
        samples = mnist(len(all_), dtype=dtype)[:2]
        start = {name: W.astype(dtype) for name, W in weights.items()}
        loop = Loop(forward, start, samples, RATE, columns=True, device=session.device)
        contenders[f"own, {dtype}"] = sample(own_loop(backward, start, samples, RATE), few)
        contenders[f"eager, {dtype}"] = sample(loop.eager, few)
        contenders[f"compiled, {dtype}"] = sample(loop.run, all_)
    taken = session.in_turns(contenders)
    own = taken["own, float64"]
    session.seconds("a step of the notebook's own loop, here", REPORTED["seconds"] / (EPOCHS * SAMPLES), own)
    for dtype, aim in (("float64", 60), ("float32", 100)):
        session.faster(f"a step, own loop / compiled in {dtype}", own, taken[f"compiled, {dtype}"], aim)
        session.faster(f"a step, own loop / eager Tensors in {dtype}", own, taken[f"eager, {dtype}"])
    session.faster("a step, own loop / compiled, both float32", taken["own, float32"], taken["compiled, float32"])


NOTEBOOK = Notebook(
    letter="A", name="sgd-sigmoid-mse", model="784-150-100-50-10, sigmoid", data="2000 MNIST images, one a step",
    said=f"{REPORTED['seconds']} s", columns=True,
    initial=initial, samples=lambda rng: mnist(1)[:2], forward=forward, backward=backward, run=run,
)
