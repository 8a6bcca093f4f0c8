"""B. Two inputs, three hidden units, one output, sigmoid; one gradient with every digit (reference document 001)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import arrays, value_and_grad
from . import Notebook
from .loops import Session, Weights

SIZES, SAMPLES = (2, 3, 1), 1000
REPORTED = {
    "L": "0.1332476222330792",
    "W1": "[[ 0.00244596  0.00262019], [-0.00030765 -0.00024188], [-0.00034768 -0.000372  ]]",
    "b1": "[ 0.00492577 -0.00058023 -0.00065977]",
    "W2": "[0.02216011 0.02433097 0.01797174]",
    "b2": "0.029249230265318685",
}


def initial(rng: Any, sizes: tuple[int, ...] = SIZES) -> Weights:
    inputs, hidden, _ = sizes
    return {
        "W1": rng.randn(hidden, inputs), "b1": np.zeros(hidden),
        "W2": rng.randn(hidden), "b2": np.zeros(()),  # `b2 = 0` there, which could have no gradient
    }  # fmt: skip


def forward(W1, b1, W2, b2, X, Y):
    Z1 = np.dot(X, W1.T) + b1
    H = 1 / (1 + np.exp(-Z1))
    Z2 = np.dot(H, W2.T) + b2
    P = 1 / (1 + np.exp(-Z2))
    L = 1 / (2 * len(X)) * np.sum(np.square(P - Y))
    return L


def s(z):
    return 1 / (1 + np.exp(-z))


def backward(W1, b1, W2, b2, X, Y):
    Z1 = np.dot(X, W1.T) + b1
    H = s(Z1)
    Z2 = np.dot(H, W2.T) + b2
    P = s(Z2)
    dP = (P - Y) / len(X)
    dZ2 = dP * s(Z2) * (1 - s(Z2))
    dW2 = H.T @ dZ2
    db2 = np.sum(dZ2)
    dH = np.outer(dZ2, W2)
    dZ1 = dH * s(Z1) * (1 - s(Z1))
    dW1 = dZ1.T @ X
    db1 = np.sum(dZ1, 0)
    return {"P": dP, "Z2": dZ2, "W2": dW2, "b2": db2, "H": dH, "Z1": dZ1, "W1": dW1, "b1": db1}


def points(rng: Any) -> tuple[Any, Any]:
    return rng.rand(SAMPLES, 2), rng.randint(low=0, high=2, size=(SAMPLES,))


def printed(value: Any) -> str:
    """As the notebook prints it, in one line."""
    if np.ndim(value) == 0:
        return repr(float(value))
    with np.printoptions(precision=8, suppress=False):
        return ", ".join(str(value).split("\n ")).replace("\n", "")


def run(session: Session) -> None:
    rng = np.random.RandomState(session.seed)
    weights = initial(rng)
    X, Y = points(rng)
    placed = [arrays.move(a, session.device) for a in (*weights.values(), X, Y)]
    with arrays.computing_on(session.device):
        L, gradients = value_and_grad(forward, (0, 1, 2, 3))(*placed)
    by_hand = backward(**weights, X=X, Y=Y)
    session.figure("L", REPORTED["L"], printed(arrays.to_host(L)))
    for name, gradient in zip(weights, map(arrays.to_host, gradients), strict=True):
        difference = np.max(np.abs(gradient - by_hand[name]) / np.abs(by_hand[name]))
        session.figure(f"d{name}", REPORTED[name], printed(gradient), f"by hand: {difference:.0e} off")


NOTEBOOK = Notebook(
    letter="B", name="mse-2-3-1", model="2-3-1, sigmoid", data="1000 random points",
    said=f"L = {REPORTED['L']}, and its gradient", initial=initial, samples=points, forward=forward, backward=backward,
    run=run,
)
