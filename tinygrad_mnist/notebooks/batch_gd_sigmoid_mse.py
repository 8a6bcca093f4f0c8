"""A'. A's network, meant to descend all 2000 samples at once (reference document 000).

One update an epoch, with A's backward lines: but the error in them is the mean of all samples, and the input and the
activations are those of the last sample alone. So it is no gradient of the loss of all samples, nor of any other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import grad
from . import Notebook
from .loops import FEW, Loop, Session, Weights, accuracy, mnist, own_loop, sample
from .sgd_sigmoid_mse import from_error, initial, output

SAMPLES, RATE, EPOCHS = 2000, 0.2, 2000
REPORTED = {"seconds": 507.0, "seconds of 20 000 epochs": 4948.7}


def forward(W1, W2, W3, W4, X, Y):
    """What it means to descend; a column for each sample."""
    Z1 = 1 / (1 + np.exp(-np.dot(W1.T, X)))
    Z2 = 1 / (1 + np.exp(-np.dot(W2.T, Z1)))
    Z3 = 1 / (1 + np.exp(-np.dot(W3.T, Z2)))
    Z4 = 1 / (1 + np.exp(-np.dot(W4.T, Z3)))
    loss = np.mean(0.5 * np.sum((Z4 - Y) ** 2, axis=0))
    return loss


def reported_cost(W1, W2, W3, W4, X, Y):
    """Squares of sums: errors of one sample cancel those of others before they are squared."""
    Z1 = 1 / (1 + np.exp(-np.dot(W1.T, X)))
    Z2 = 1 / (1 + np.exp(-np.dot(W2.T, Z1)))
    Z3 = 1 / (1 + np.exp(-np.dot(W3.T, Z2)))
    Z4 = 1 / (1 + np.exp(-np.dot(W4.T, Z3)))
    LES = np.sum(np.cumsum(Z4 - Y, axis=1) ** 2, axis=1)  # over the samples, of the running sum of errors
    return np.sum(LES) / (2 * X.shape[1])


def backward(W1, W2, W3, W4, X, Y):
    E = 0
    for k in range(X.shape[1]):
        x, y = X[:, k : k + 1], Y[:, k : k + 1]
        Z1 = 1 / (1 + np.exp(-np.dot(W1.T, x)))
        Z2 = 1 / (1 + np.exp(-np.dot(W2.T, Z1)))
        Z3 = 1 / (1 + np.exp(-np.dot(W3.T, Z2)))
        Z4 = 1 / (1 + np.exp(-np.dot(W4.T, Z3)))
        E = E + (Z4 - y)
    E = E / X.shape[1]
    return from_error(E, x, Z1, Z2, Z3, Z4, W2, W3, W4)


def at_once(W1, W2, W3, W4, X, Y):
    """`backward` without its loop over the samples, for a compiled step: the same but for the order of the sum."""
    Z1 = 1 / (1 + np.exp(-np.dot(W1.T, X)))
    Z2 = 1 / (1 + np.exp(-np.dot(W2.T, Z1)))
    Z3 = 1 / (1 + np.exp(-np.dot(W3.T, Z2)))
    Z4 = 1 / (1 + np.exp(-np.dot(W4.T, Z3)))
    E = np.sum(Z4 - Y, axis=1, keepdims=True) / X.shape[1]
    x, z1, z2, z3, z4 = (A[:, -1:] for A in (X, Z1, Z2, Z3, Z4))
    return from_error(E, x, z1, z2, z3, z4, W2, W3, W4)


def run(session: Session) -> None:
    images = mnist(session.length(SAMPLES, 200))
    weights = initial(np.random.RandomState(session.seed))
    epochs, everything = session.length(EPOCHS, 20), np.arange(len(images.x))[None]
    for title, by_hand in (("as it stands", at_once), ("true gradient", None)):
        loop = Loop(forward, weights, images[:2], RATE, by_hand=by_hand, columns=True, device=session.device)
        for epoch, look in session.epochs(epochs, f"A', {title}"):
            (loss,) = loop.run(everything)
            if look:
                right = accuracy(output(**loop.weights, x=images.x_test.T), images.labels_test)
                session.row(title, epoch, train_loss=loss, test_accuracy=right)
        share = epochs * len(images.x) / (EPOCHS * SAMPLES)
        session.seconds(f"{title}: {epochs} epochs, with compilation", share * REPORTED["seconds"], loop.seconds)
        session.figure(f"{title}: mean squared error / 2, at the end", None, loss)
        cost = reported_cost(**loop.weights, X=images.x.T, Y=images.y.T)
        session.figure(f"{title}: the cost that it reports", None, cost)
        session.figure(f"{title}: accuracy on all 10 000 test images", None, right)
        session.compare(title, images.labels_test, output(**loop.weights, x=images.x_test.T))
        if by_hand:
            for when, W in (("first", weights), ("last", loop.weights)):
                cosine = agreement(W, images.x.T, images.y.T)
                session.figure(f"cosine of its {when} update and the true gradient", None, cosine)
    session.remark(
        'The result "is not like SGD": the update as it stands is that of one image, the last, with the mean error of '
        "all in place of its own. It moves every output towards the mean label, which is the same for all images."
    )
    if session.timed:
        times(session, weights)


def agreement(weights: Weights, X: Any, Y: Any) -> float:
    """The cosine of the angle between the update as it stands and the gradient of the loss."""
    derived = grad(forward, (0, 1, 2, 3))(*weights.values(), X, Y)
    by_hand = at_once(**weights, X=X, Y=Y)
    one = np.concatenate([g.ravel() for g in derived])
    other = np.concatenate([by_hand[name].ravel() for name in weights])
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def times(session: Session, weights: Weights) -> None:
    everything = np.arange(session.length(SAMPLES, 200))[None]
    contenders = {}
    for dtype in ("float64", "float32"):
        samples = mnist(everything.size, dtype=dtype)[:2]
        start = {name: W.astype(dtype) for name, W in weights.items()}
        if dtype == "float64":
            contenders["own"] = sample(own_loop(backward, start, samples, RATE), everything)
        for name, by_hand in (("as it stands", at_once), ("true gradient", None)):
            loop = Loop(forward, start, samples, RATE, by_hand=by_hand, columns=True, device=session.device)
            contenders[f"{name}, {dtype}"] = sample(loop.run, everything.repeat(session.length(10, 2), axis=0))
    taken = session.in_turns(contenders)
    reported = REPORTED["seconds"] / EPOCHS * everything.size / SAMPLES
    session.seconds("an epoch of the notebook's own loop, here", reported, taken["own"])
    for dtype, aim in (("float64", 6), ("float32", 15)):
        for name in ("as it stands", "true gradient"):
            session.faster(f"an epoch, own loop / {name} in {dtype}", taken["own"], taken[f"{name}, {dtype}"], aim)


NOTEBOOK = Notebook(
    letter="A'", name="batch-gd-sigmoid-mse", model="784-150-100-50-10, sigmoid", data="2000 MNIST images at once",
    said=f'{REPORTED["seconds"]} s; "not like SGD"', columns=True,
    initial=initial, samples=lambda rng: mnist(FEW)[:2], forward=forward, backward=backward,
    reported_cost=reported_cost, run=run,
)
