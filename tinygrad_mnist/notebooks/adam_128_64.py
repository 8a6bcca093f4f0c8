"""B'. The Keras model that a user would otherwise reach for (reference document 001, part 2); nothing is by hand.

As printed, its first layer has no activation. Its log fits a model with relu there: both are run.
"""

from __future__ import annotations

import statistics
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from .. import optim, plots, softmax_cross_entropy
from ..bench.works import Work
from . import Notebook
from .loops import FEW, Images, Loop, Session, Weights, accuracy, mnist, sample, spread

SIZES = 784, 128, 64, 10
TRAIN, BATCH, RATE, EPSILON, EPOCHS, SEEDS = 54_000, 144, 1e-3, 1e-7, 10, 5  # the other 6000 images, drawn, validate
REPORTED = {  # of train: means over the epoch; of validation: after it
    1: {"train_loss": 0.3666, "train_accuracy": 0.8961, "validation_loss": 0.2034, "validation_accuracy": 0.9409},
    10: {"train_loss": 0.0240, "train_accuracy": 0.9930, "validation_loss": 0.0954, "validation_accuracy": 0.9749},
}
TEST = {"loss": 0.0849, "accuracy": 0.9754}
PARAMETERS, SECONDS_AN_EPOCH = 109_386, (1.0, 4.0)
VARIANTS = {"relu": {"first": "relu"}, "linear": {"first": "linear"}}


def initial(rng: Any, sizes: tuple[int, ...] = SIZES) -> Weights:
    """Glorot-uniform weights, zero biases."""
    weights = {}
    for k, (n_in, n_out) in enumerate(pairwise(sizes), start=1):
        limit = np.sqrt(6 / (n_in + n_out))
        weights[f"W{k}"] = rng.uniform(-limit, limit, (n_in, n_out)).astype("float32")
        weights[f"b{k}"] = np.zeros(n_out, "float32")
    return weights


def output(W1, b1, W2, b2, W3, b3, X, first="relu"):
    H1 = np.dot(X, W1) + b1
    if first == "relu":
        H1 = np.maximum(0, H1)
    H2 = np.maximum(0, np.dot(H1, W2) + b2)
    Z3 = np.dot(H2, W3) + b3
    return Z3


def forward(W1, b1, W2, b2, W3, b3, X, y, first="relu"):
    """Softmax and cross-entropy in one, as Keras computes them; `y` are labels, one-hot there."""
    return softmax_cross_entropy(output(W1, b1, W2, b2, W3, b3, X, first), y)


def right(W1, b1, W2, b2, W3, b3, X, y, first="relu"):
    """The number of right answers."""
    return (output(W1, b1, W2, b2, W3, b3, X, first).data.argmax(axis=1) == y).sum()


def few(rng: Any) -> tuple[Any, Any]:
    images = mnist(FEW, dtype="float32")
    return images.x, images.labels


def run(session: Session) -> None:
    images = mnist(session.length(60_000, 6000), dtype="float32")
    seeds = range(session.seed, session.seed + session.length(SEEDS, 1))
    table(session)
    losses = {}
    for title, options in VARIANTS.items():
        found = [train(session, images, title, seed, **options) for seed in seeds]
        for epoch, figures in REPORTED.items():
            for name, figure in figures.items():
                after = min(epoch, len(found[0]))
                ours = [history[after - 1][name] for history in found]
                what = f"{title}: {name.replace('_', ' ')} after epoch {after}"
                session.figure(what, figure, statistics.median(ours), spread(ours))
        losses[title] = statistics.median(history[-1]["train_loss"] for history in found)
        for name, figure in TEST.items():
            ours = [history[-1][f"test_{name}"] for history in found]
            session.figure(f"{title}: test {name}", figure, statistics.median(ours), spread(ours))
    if not session.quick:
        log = REPORTED[EPOCHS]["train_loss"]
        closest = min(losses, key=lambda title: abs(losses[title] - log))
        session.remark(f"The log fits the model with the first layer {closest}: train loss {log:.4f} in the end.")
    if session.timed:
        times(session, images)


def table(session: Session) -> None:
    """Layer, output shape and parameters, as Keras prints them."""
    total = 0
    for k, (n_in, n_out) in enumerate(pairwise(SIZES), start=1):
        total += (n_in + 1) * n_out
        session.remark(f"dense_{k} (Dense)  (None, {n_out:3})  {(n_in + 1) * n_out:7}")
    session.figure("parameters", PARAMETERS, total)


def train(session: Session, images: Images, title: str, seed: int, **options: Any) -> list[dict[str, float]]:
    """The history of one seed; the first seed's is drawn."""
    rng = np.random.RandomState(seed)
    loop = Loop(
        partial(forward, **options), initial(rng), (images.x, images.labels), RATE,
        optimizer=partial(optim.Adam, eps=EPSILON), watch=partial(right, **options), device=session.device,
    )
    history = []
    train_rows, rows = np.split(rng.permutation(len(images.x)), [len(images.x) * 9 // 10 // BATCH * BATCH])
    for epoch, _ in session.epochs(session.length(EPOCHS, 2), f"B', {title}, seed {seed}"):
        losses, hits = loop.run(rng.permutation(train_rows).reshape(-1, BATCH))
        row = {"epoch": epoch, "train_loss": float(losses.mean()), "train_accuracy": hits.sum() / len(train_rows)}
        held_out = (images.x[rows], images.labels[rows])
        for part, (x, y) in {"validation": held_out, "test": (images.x_test, images.labels_test)}.items():
            row[f"{part}_loss"] = float(forward(**loop.weights, X=x, y=y, **options))
            row[f"{part}_accuracy"] = accuracy(output(**loop.weights, X=x, **options), y, axis=1)
        history.append(row)
    if seed == session.seed:
        session.history[title] = history
        session.compare(title, images.labels_test, output(**loop.weights, X=images.x_test, **options), axis=1)
        pictures(session, title, images, output(**loop.weights, X=images.x_test[:50], **options).argmax(axis=1))
    return history


def pictures(session: Session, title: str, images: Images, predicted: Any) -> None:
    """Five images of each class; 50 test images with label and prediction."""
    five = np.concatenate([np.flatnonzero(images.labels == digit)[:5] for digit in range(10)])
    pixels = np.rint(255 * images.x[five]).astype(np.uint8).reshape(-1, 28, 28)
    session.pictures["classes.png"] = plots.gallery(pixels, [str(images.labels[i]) for i in five], columns=5)
    pixels = np.rint(255 * images.x_test[:50]).astype(np.uint8).reshape(-1, 28, 28)
    captions = [f"{label} read as {said}" for label, said in zip(images.labels_test[:50], predicted, strict=True)]
    session.pictures[f"predictions-{title}.png"] = plots.gallery(pixels, captions, columns=10)


def times(session: Session, images: Images) -> None:
    steps = TRAIN // BATCH
    rng = np.random.RandomState(session.seed)
    loop = Loop(
        forward, initial(rng), (images.x, images.labels), RATE, optimizer=partial(optim.Adam, eps=EPSILON),
        device=session.device,
    )
    order = rng.randint(len(images.x), size=(session.length(steps, 20), BATCH))
    work = Work("adam-128-64", SIZES, BATCH, steps, RATE, "adam", rows=TRAIN)
    taken = session.in_turns({"ours": sample(loop.run, order)}, work)
    epoch = {name: steps * seconds for name, seconds in taken.items()}
    for reported in SECONDS_AN_EPOCH:
        session.seconds("an epoch", reported, epoch["ours"])
    session.against_pytorch("an epoch", epoch, epoch["ours"], 1.8)


NOTEBOOK = Notebook(
    letter="B'", name="adam-128-64", model="784-128-64-10, relu, softmax", data="60 000 MNIST images, batches of 144",
    said=f"test accuracy {TEST['accuracy']:.2%}, loss {REPORTED[10]['train_loss']:.4f}",
    initial=initial, samples=few, forward=forward, variants=VARIANTS, run=run,
)
