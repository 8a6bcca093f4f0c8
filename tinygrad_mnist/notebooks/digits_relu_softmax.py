"""C. relu, relu, softmax on 8 x 8 digits; one sample a step, all matrices columns (reference document 002).

Its backward takes softmax of what is softmax already, divides by the number of classes, and goes through the second
relu as if it were a sigmoid of a softmax. It holds a finite-difference check, for another network and switched off.
"""

from __future__ import annotations

import importlib.util
import statistics
from itertools import pairwise
from typing import Any

import numpy as np

from ..runs import Row
from . import Notebook
from .loops import Loop, Session, Weights, accuracy, own_loop, sample, spread
from .mse_2_3_1 import s

SIZES = 64, 200, 150, 10
RATE, EPOCHS, SPLIT = 0.002, 500, {"test_size": 0.33, "random_state": 42}
STOPPED, SEEDS = 112, 3
"""It stops when the summed loss of an epoch rises. Which epoch that is, is luck: compare at this one, over seeds."""
REPORTED = {"loss at epoch 0": 2888.9, "loss at epoch 111": 951.7, "accuracy": 0.7054}


def initial(rng: Any, sizes: tuple[int, ...] = SIZES) -> Weights:
    weights = {}
    for k, (n_in, n_out) in enumerate(pairwise(sizes), start=1):
        weights[f"W{k}"] = rng.normal(0, 0.1, (n_in, n_out))
        weights[f"b{k}"] = rng.normal(0, 0.1, (n_out, 1))
    return weights


def forward(W1, b1, W2, b2, W3, b3, x, y):
    z1 = W1.T @ x + b1
    a1 = np.maximum(0, z1)
    z2 = W2.T @ a1 + b2
    a2 = np.maximum(0, z2)
    z3 = W3.T @ a2 + b3
    a3 = np.exp(z3) / sum(np.exp(z3))
    loss = -np.sum(np.multiply(y, np.log(a3)))
    return loss


def softmax(z):
    return np.exp(z) / sum(np.exp(z))


def backward(W1, b1, W2, b2, W3, b3, x, y):
    z1 = W1.T @ x + b1
    a1 = np.maximum(0, z1)
    z2 = W2.T @ a1 + b2
    a2 = np.maximum(0, z2)
    z3 = W3.T @ a2 + b3
    a3 = softmax(z3)
    q = softmax(a3)
    q = np.where(q == np.sum(q * y), q - 1, q)  # the true class, and any whose probability ties with it
    delta3 = q / 10
    delta2 = softmax(z2) * (1 - softmax(z2)) * (W3 @ delta3)
    delta1 = (z1 > 0) * (W2 @ delta2)
    if False:  # its check, of one weight in another network: sigmoids throughout, and a binary loss
        eps, J = 1e-4, []
        for step in (eps, -eps):
            W = W1.copy()
            W[0, 0] += step
            p = s(W3.T @ s(W2.T @ s(W.T @ x + b1) + b2) + b3)
            J.append(-np.sum(y * np.log(p) + (1 - y) * np.log(1 - p)))
        print((J[0] - J[1]) / (2 * eps), (x @ delta1.T)[0, 0])
    return {
        "z3": delta3, "z2": delta2, "z1": delta1,
        "W3": a2 @ delta3.T, "b3": delta3, "W2": a1 @ delta2.T, "b2": delta2, "W1": x @ delta1.T, "b1": delta1,
    }  # fmt: skip


def output(W1, b1, W2, b2, W3, b3, x):
    a1 = np.maximum(0, W1.T @ x + b1)
    a2 = np.maximum(0, W2.T @ a1 + b2)
    return W3.T @ a2 + b3


def digits() -> list[Any]:
    """Pixels to train and to test on, from 0 to 1, then their labels; split as in the notebook."""
    if importlib.util.find_spec("sklearn") is None:
        raise ValueError("notebook C needs scikit-learn's digits: pip install 'tinygrad-mnist[notebooks]'")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    split: list[Any] = train_test_split(found.data / found.data.max(), found.target, **SPLIT)
    return split


def one(rng: Any) -> tuple[Any, Any]:
    """The first of its training samples, and its label as a row."""
    x, _, labels, _ = digits()
    return x[:1], np.eye(10)[labels[:1]]


def run(session: Session) -> None:
    x, x_test, labels, labels_test = digits()
    y = np.eye(10)[labels]
    seeds = range(session.seed, session.seed + session.length(SEEDS, 1))
    found = [train(session, x, y, x_test, labels_test, "as it stands", seed) for seed in seeds]
    epochs = len(found[0])
    for epoch, reported in ((0, REPORTED["loss at epoch 0"]), (epochs - 1, REPORTED["loss at epoch 111"])):
        middle(session, f"as it stands: loss at epoch {epoch}", reported, [rows[epoch]["train_loss"] for rows in found])
    last = [rows[-1]["test_accuracy"] for rows in found]
    middle(session, f"as it stands: accuracy after {epochs} epochs", REPORTED["accuracy"], last)
    for seed, rows in zip(seeds, found, strict=True):
        rise = rises(rows)
        where = f"for the first time at epoch {rise}" if rise else f"in none of {epochs} epochs"
        session.remark(f"As it stands, seed {seed}: the summed loss rises {where}.")
    row = train(session, x, y, x_test, labels_test, "derived gradient", session.seed)[-1]
    session.figure("derived gradient: loss in the end", None, row["train_loss"], f"at epoch {row['epoch']}")
    session.figure("derived gradient: accuracy", REPORTED["accuracy"], row["test_accuracy"], "asked for: 0.96")
    if session.timed:
        times(session, x, y)


def train(session: Session, x: Any, y: Any, x_test: Any, labels_test: Any, title: str, seed: int) -> list[Row]:
    """The history: of the notebook's own gradient to where it stopped, of the derived one to where the loss rises."""
    by_hand = backward if title == "as it stands" else None
    rng = np.random.RandomState(seed)
    loop = Loop(forward, initial(rng), (x, y), RATE, by_hand=by_hand, columns=True, device=session.device)
    rows: list[Row] = []
    for epoch, _ in session.epochs(session.length(STOPPED if by_hand else EPOCHS, 2), f"C, {title}, seed {seed}"):
        loss = float(loop.run(rng.permutation(len(x))[:, None]).sum())
        scores = output(**loop.weights, x=x_test.T)
        rows.append({"epoch": epoch, "train_loss": loss, "test_accuracy": accuracy(scores, labels_test)})
        if by_hand is None and rises(rows):
            break
    if seed == session.seed:
        session.history[title] = rows
        session.compare(title, labels_test, scores)
    return rows


def rises(rows: list[Row]) -> int | None:
    """The epoch, from 0, at which the notebook stops: the loss rises for the first time."""
    losses = [row["train_loss"] for row in rows]
    return next((k for k, (a, b) in enumerate(pairwise(losses), start=1) if b > a), None)


def middle(session: Session, what: str, reported: float, ours: list[float]) -> None:
    session.figure(what, reported, statistics.median(ours), spread(ours))


def times(session: Session, x: Any, y: Any) -> None:
    weights, order = initial(np.random.RandomState(session.seed)), np.arange(session.length(len(x), 50))[:, None]
    loop = Loop(forward, weights, (x, y), RATE, columns=True, device=session.device)
    own = own_loop(backward, weights, (x, y), RATE)
    taken = session.in_turns({"own": sample(own, order[:50]), "compiled": sample(loop.run, order)})
    session.faster("a step, own loop / derived gradient, compiled", taken["own"], taken["compiled"])


NOTEBOOK = Notebook(
    letter="C", name="digits-relu-softmax", model="64-200-150-10, relu, softmax", data="1797 digits of scikit-learn",
    said=f"accuracy {REPORTED['accuracy']:.2%} after {STOPPED} epochs", columns=True,
    initial=initial, samples=one, forward=forward, backward=backward, run=run,
)
