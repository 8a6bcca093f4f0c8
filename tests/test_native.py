"""Native loops: many steps in one call, with the results of the steps one by one but for rounding.

Most tests run the text of a loop as plain Python, in which each access is checked (see `interpreted`); those from
"compiled" on run what Numba makes of it.
"""

import os
import re
import subprocess
import sys
import threading
import warnings

import interpreted
import numpy as np
import pytest
import small
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_mnist
from tinygrad_mnist import Tensor, capture, functional, losses, native, nn, optim
from tinygrad_mnist import compiled as compiled_module
from tinygrad_mnist.core import F
from tinygrad_mnist.data import Preprocess
from tinygrad_mnist.native import batch, blas, cache, preamble, products, units

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=f"{native.missing()}")

OPTIMIZERS = {
    **small.OPTIMIZERS,
    "schedule": lambda p: optim.SGD(p, optim.one_cycle(0.1, 60)),
}
LENGTH = 40
BATCHES = [1, 7, 64, 20]  # with blocks of 8 rows: one row, one block, several, a short last one


def data(classes=3, features=6, seed=0, n=LENGTH, dtype="float64"):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features)) * (rng.random((n, features)) < 0.6)
    return x.astype(dtype), rng.integers(0, classes, n)


def orders(size, steps=4, n=LENGTH, seed=1):
    return np.random.default_rng(seed).integers(0, n, (steps, size))


def training(loss=None, *, optimizer="sgd", sizes=(6, 5, 4, 3), dtype="float64", shows=lambda z, y: (), **options):
    """make() -> (a training step, what it changes)."""

    def make():
        model = nn.MLP(sizes, rng=np.random.default_rng(1), dtype=dtype, **options)
        opt = OPTIMIZERS[optimizer](model.parameters())

        def step(x, y):
            opt.zero_grad()
            z = model(x)
            found = loss(z, y, model) if loss else losses.softmax_cross_entropy(z, y)
            found.backward()
            opt.step()
            return found, *shows(z, y)

        return step, [*model.parameters(), *opt.state.values()]

    return make


def by_hand(loss, *shapes, optimizer="sgd"):
    """The same of a loss of arguments and weights."""

    def make():
        rng = np.random.default_rng(3)
        weights = [Tensor(rng.normal(size=shape) * 0.5, requires_grad=True) for shape in shapes]
        opt = OPTIMIZERS[optimizer](weights)

        def step(*arguments):
            opt.zero_grad()
            found = loss(*arguments, *weights)
            found.backward()
            opt.step()
            return found

        return step, [*weights, *opt.state.values()]

    return make


def flat(found):
    if isinstance(found, (list, tuple)):
        return [a for part in found for a in flat(part)]
    return [np.asarray(found.data if isinstance(found, Tensor) else found)]


def close(actual, expected, tolerance):
    for a, b in zip(flat(actual), flat(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(initial=0), 1e-30))


def agree(make, arrays, order, tolerance=1e-12, calls=True):
    """Steps run as they are, in a scan and in single calls; returns the compiled function of the scan."""
    step, expected = make()
    steps = [flat(step(*(a[rows] for a in arrays))) for rows in order]
    step, state = make()
    scanned = tinygrad_mnist.compile(step, backend="numba")
    found = scanned.scan(arrays, order)
    assert scanned.backend == "numba", scanned.reason
    close(found, [np.stack(outputs) for outputs in zip(*steps, strict=True)], tolerance)
    close(state, expected, tolerance)
    if calls:
        step, state = make()
        compiled = tinygrad_mnist.compile(step, backend="numba")
        for rows, outputs in zip(order, steps, strict=True):
            close(compiled(*(a[rows] for a in arrays)), outputs, tolerance)
        assert compiled.backend == "numba", compiled.reason
        close(state, expected, tolerance)
        gradients = [[t.grad for t in s if isinstance(t, Tensor)] for s in (state, expected)]
        close(*gradients, tolerance)
    return scanned


def reason(make, arrays, order):
    """Why steps run on NumPy, which they do with the same results."""
    step, expected = make()
    steps = [flat(step(*(a[rows] for a in arrays))) for rows in order]
    step, state = make()
    compiled = tinygrad_mnist.compile(step)
    close(compiled.scan(arrays, order), [np.stack(outputs) for outputs in zip(*steps, strict=True)], 0)
    close(state, expected, 0)
    assert compiled.backend == "numpy"
    return compiled.reason


@pytest.fixture
def checked(monkeypatch):
    """Loops run as plain Python, in blocks of 8 rows."""
    interpreted.instead(monkeypatch)
    monkeypatch.setattr(units, "BLOCK", 8)


# ---- what is computed


@pytest.mark.parametrize("size", BATCHES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers(checked, optimizer, size):
    agree(training(optimizer=optimizer, activation="tanh"), data(), orders(size), calls=size != 20)


@pytest.mark.parametrize("size", [1, 20])
@pytest.mark.parametrize("activation", nn.ACTIVATIONS)
def test_activations(checked, activation, size):
    agree(training(activation=activation), data(), orders(size, 3))


def squares(model):
    return sum((p * p).sum() for p in model.parameters())


OPTIONS = {
    "dropout": {"dropout": 0.5},
    "dropout, adam": {"dropout": 0.5, "optimizer": "adam"},
    "no bias": {"bias": False},
    "one layer": {"sizes": (6, 3)},
    "width 1": {"sizes": (6, 1, 3)},
    "widths 1": {"sizes": (6, 1, 1, 3), "optimizer": "adam"},
    "as wide as the batch": {"sizes": (6, 20, 20, 3)},
    "inputs as many as the batch": {"sizes": (6, 7, 3), "optimizer": "momentum"},
    "l2": {"loss": lambda z, y, model: losses.softmax_cross_entropy(z, y) + 0.1 * squares(model)},
    "logits": {"shows": lambda z, y: (z,)},
    "right answers": {"shows": lambda z, y: (np.count_nonzero(z.argmax(axis=1) == y),)},
    "several": {"shows": lambda z, y: (z.max(axis=1), y, z * 2, z.mean(), z.sum(axis=0), F.argmax(z, axis=1))},
    "a sum": {"loss": lambda z, y, model: losses.softmax_cross_entropy(z, y, reduction="sum")},
    "rows": {"loss": lambda z, y, model: losses.softmax_cross_entropy(z, y, reduction="none").mean()},
}  # fmt: skip


@pytest.mark.parametrize("size", [1, 7, 20])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(checked, options, size):
    agree(training(**options), data(), orders(size, 3))


@pytest.mark.parametrize("size", [1, 7, 20])
@pytest.mark.parametrize("width", [1, 3])
def test_squared_errors(checked, width, size):
    x, _ = data()
    y = np.random.default_rng(4).normal(size=(LENGTH, width))
    agree(training(lambda z, y, model: losses.mse(z, y), sizes=(6, 5, width)), (x, y), orders(size))


@pytest.mark.parametrize("size", [1, 7, 20])
def test_probabilities(checked, size):
    p = np.random.default_rng(4).random((LENGTH, 3))
    agree(training(), (data()[0], p / p.sum(axis=1, keepdims=True)), orders(size))


@pytest.mark.parametrize("labels", ["uint8", "int32", "int64"])
@pytest.mark.parametrize("size", [1, 20])
def test_images(checked, size, labels):
    rng = np.random.default_rng(5)
    images = (rng.integers(0, 256, (LENGTH, 2, 3)) * (rng.random((LENGTH, 2, 3)) < 0.5)).astype(np.uint8)
    images.flags.writeable = False
    for preprocess in (Preprocess(), Preprocess(mean=0.13, std=0.3)):

        def make(preprocess=preprocess):
            step, state = training(optimizer="adam")()
            scale, shift = preprocess.scale / preprocess.std, preprocess.mean / preprocess.std
            return lambda x, y: step((x.astype("float64") * scale - shift).reshape(len(x), -1), y), state

        agree(make, (images, data()[1].astype(labels)), orders(size))


@pytest.mark.parametrize("size", [1, 7, 20])
def test_float32(checked, size):
    agree(training(dtype="float32", optimizer="adam"), data(dtype="float32"), orders(size), 1e-3)
    agree(training(dtype="float32", dropout=0.3), data(dtype="float32"), orders(size), 1e-5)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def rows_of_gathers(x, y, W, b):
    z = x @ W + b
    p = F.exp(z - z.max(axis=1, keepdims=True))
    p = p / p.sum(axis=1, keepdims=True)
    return -F.log(p[np.arange(len(x)), y]).mean()


def gathers_of_logits(x, y, W, b):
    z = x @ W + b
    return (F.log(F.exp(z).sum(axis=1)) - z[np.arange(len(x)), y]).mean()


def notebook_b(x, y, W1, b1, W2, b2):
    H = sigmoid(np.dot(x, W1.T) + b1)
    P = sigmoid(np.dot(H, W2.T) + b2)
    return 1 / (2 * len(x)) * np.sum(np.square(P - y))


def late_values_of_weights(x, y, W, b, s):
    first = losses.softmax_cross_entropy(x @ W + b, y)
    penalty = (W * W).sum() * 0.1 + first
    return penalty + losses.softmax_cross_entropy((x @ W) * F.exp(s), y)


def layer_norm(x, y, W):
    z = x @ W
    z = z - z.mean(axis=1, keepdims=True)
    return losses.softmax_cross_entropy(z / F.sqrt((z * z).mean(axis=1, keepdims=True) + 1e-5), y)


def parts(x, y, W):
    h = x.reshape(-1, 2, 3)
    return losses.softmax_cross_entropy(h.sum(axis=1) @ W[:3] + h.max(axis=2) @ W[3:5], y)


LOSSES = {
    "gather": (rows_of_gathers, (6, 3), (3,)),
    "gather of logits": (gathers_of_logits, (6, 3), (3,)),
    "vectors": (lambda x, y, *w: notebook_b(x, y * 0.3, *w), (3, 6), (3,), (3,), ()),
    "tied": (lambda x, y, W: losses.mse(F.tanh(x @ W) @ W.T, x), (6, 4)),
    "columns of the input": (
        lambda x, y, W, V: losses.softmax_cross_entropy(x[:, :3] @ W + x[:, 3:] @ V, y), (3, 3), (3, 3),
    ),
    "columns of a layer": (
        lambda x, y, W, V: losses.softmax_cross_entropy(F.tanh(x @ W)[:, 1:] @ V, y), (6, 4), (3, 3),
    ),
    "raw and in a product": (
        lambda x, y, W, V: losses.softmax_cross_entropy((x * 2) @ W + F.tanh(x) @ V + x.sum(axis=1, keepdims=True), y),
        (6, 3), (6, 3),
    ),
    "factors": (lambda x, y, W, V: ((W @ V) ** 2).sum() + losses.softmax_cross_entropy(x @ W @ V, y), (6, 4), (4, 3)),
    "weights alone": (lambda x, y, W, V: (W @ V).sum(), (6, 4), (4, 3)),
    "late": (late_values_of_weights, (6, 3), (3,), (3,)),
    "norm": (lambda x, y, W: losses.softmax_cross_entropy(x @ (W / F.sqrt((W * W).sum())), y), (6, 3)),
    "rows of ones": (
        lambda x, y, W: losses.softmax_cross_entropy((x @ W) * np.ones((len(x), 1)) + np.arange(3.0), y), (6, 3),
    ),
    "power": (lambda x, y, W: ((x @ W) ** 2 + 0.5 * F.absolute(x @ W) ** 1.5).mean(), (6, 3)),
    "layer norm": (layer_norm, (6, 3)),
    "parts": (parts, (5, 3)),
    "maximum": (lambda x, y, W: F.maximum(x @ W, 0.1).sum(axis=1).mean() + F.minimum(x @ W, y[:, None]).mean(), (6, 3)),
}  # fmt: skip


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("size", [1, 6, 20])
@pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES)
def test_losses_by_hand(checked, case, size, optimizer):
    loss, *shapes = case
    agree(by_hand(loss, *shapes, optimizer=optimizer), data(), orders(size, 3))


@pytest.mark.parametrize("rim", [0, 2, 6], ids=["none", "some", "all"])
@pytest.mark.parametrize("size", [3, 7, 20, 64])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_inputs_that_are_zero_in_a_whole_batch(checked, monkeypatch, optimizer, size, rim):
    for name, value in {"WIDE": 3, "TALL": 5}.items():
        monkeypatch.setattr(products, name, value)
    x, y = data()
    x[:, :rim] = 0
    agree(training(optimizer=optimizer), (x, y), orders(size))
    images = (255 * np.abs(x)).clip(0, 255).astype(np.uint8).reshape(-1, 2, 3)
    make = by_hand(lambda x, y, W: losses.softmax_cross_entropy(Preprocess()(x, "float64") @ W, y), (6, 3))
    agree(make, (images, y), orders(size))


def test_inputs_that_are_zero_in_a_batch_but_for_what_is_no_number(checked, monkeypatch):
    for name, value in {"WIDE": 3, "TALL": 5}.items():
        monkeypatch.setattr(products, name, value)
    x, y = data()
    x[:, :2], x[3, 0] = 0, np.nan
    found = []
    for compiled in (False, True):
        step, weights = training()()
        if compiled:
            tinygrad_mnist.compile(step, backend="numba").scan((x, y), np.arange(20).reshape(1, 20))
        else:
            with np.errstate(all="ignore"):
                step(x[:20], y[:20])
        found.append([np.isnan(p.data) for p in weights])
    assert found[0][0].any()
    assert not found[0][0].all()
    for eager, native_ in zip(*found, strict=True):
        np.testing.assert_array_equal(native_, eager)


@pytest.mark.parametrize("size", [1, 20])
def test_gathers_from_the_end(checked, size):
    x, y = data()
    agree(by_hand(rows_of_gathers, (6, 3), (3,)), (x, (y - 3).astype("int8")), orders(size))


@pytest.mark.parametrize("size", [1, 7, 20])
def test_embeddings(checked, size):
    """Rows of a table, whose gradient adds up where a row was taken twice."""
    rows = np.random.default_rng(6).integers(0, 4, LENGTH)
    make = by_hand(lambda i, y, E, W: losses.softmax_cross_entropy(E[i] @ W, y), (4, 5), (5, 3))
    agree(make, (rows, data()[1]), orders(size))


def test_columns_one_sample_a_step(checked):
    """Notebook A, word for word: each sample is a column."""

    def loss(x, y, W1, W2, W3):
        Z = sigmoid(np.dot(W3.T, sigmoid(np.dot(W2.T, sigmoid(np.dot(W1.T, x.T))))))
        return 0.5 * np.sum((Z - y.T) ** 2)

    agree(by_hand(loss, (6, 5), (5, 4), (4, 3)), (data()[0], np.eye(3)[data()[1]]), orders(1, 8))


def columns(x, y, W1, W2):
    """Notebook A', its batch along the second axis."""
    Z = sigmoid(np.dot(W2.T, sigmoid(np.dot(W1.T, x.T))))
    return np.mean(0.5 * np.sum((Z - y.T) ** 2, axis=0))


def columns_with_biases(x, y, W1, b1, W2, b2):
    z = W2 @ F.relu(W1 @ x.T + b1) + b2
    e = F.exp(z - z.max(axis=0, keepdims=True))
    p = e / e.sum(axis=0, keepdims=True)
    return -(y.T * F.log(p)).sum(axis=0).mean() + 0.01 * (W1 * W1).sum()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("size", [1, 3, 6, 20])
def test_samples_as_columns(checked, size, optimizer):
    x, y = data()
    y = np.eye(3)[y]
    agree(by_hand(columns, (6, 5), (5, 3), optimizer=optimizer), (x, y), orders(size))
    make = by_hand(columns_with_biases, (5, 6), (5, 1), (3, 5), (3, 1), optimizer=optimizer)
    agree(make, (x, y), orders(size))


def test_as_many_rows_as_pixels(checked):
    rng = np.random.default_rng(7)
    agree(training(sizes=(30, 4, 3)), (rng.normal(size=(LENGTH, 30)), data()[1]), orders(30, 3))


def test_arguments_of_any_layout(checked):
    x, y = data(features=12)
    wide = np.zeros((LENGTH, 24))
    wide[:, ::2] = x
    for form in (np.asfortranarray(x), wide[:, ::2], x[::-1][::-1]):
        agree(training(sizes=(12, 5, 3)), (form, y), orders(7))


# ---- random programs

CHAINS = {
    "tanh": F.tanh,
    "relu": F.relu,
    "exp": lambda a: F.exp(F.tanh(a)),
    "root": lambda a: F.sqrt(F.absolute(a) + 0.5),
    "log": lambda a: F.log(a * a + 1),
    "sine": F.sin,
    "shifted": lambda a: 1 - a / 3,
    "where": lambda a: F.where(a > 0.2, a, a * 0.1),
    "clipped": lambda a: F.minimum(F.maximum(a, -1.0), 1.0),
    "softmax": F.softmax,
    "centred": lambda a: a - a.mean(axis=1, keepdims=True),
    "normed": lambda a: a / (1 + (a * a).sum(axis=1, keepdims=True)),
    "part": lambda a: a[:, : max(a.shape[1] - 1, 1)],
    "backwards": lambda a: a[:, ::-1],
    "twice": lambda a: a * a + a,
    "boxed": lambda a: a.reshape(len(a), -1, 1).sum(axis=2),
    "largest": lambda a: a + a.max(axis=1, keepdims=True),
}


@given(
    layers=st.lists(
        st.tuples(st.integers(1, 5), st.lists(st.sampled_from(sorted(CHAINS)), max_size=3)), min_size=1, max_size=3
    ),
    size=st.sampled_from([1, 2, 5, 11]),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    end=st.sampled_from(["ce", "mse", "sum"]),
)  # fmt: skip
def test_random_networks(layers, size, optimizer, end):
    x, y = data(n=20)

    def make():
        rng = np.random.default_rng(8)
        weights, width = [], 6

        def grow(*shape):
            weights.append(Tensor(rng.normal(size=shape) * 0.4, requires_grad=True))
            return weights[-1]

        def forward(x, grow):
            h = x
            for n, chain in (*layers, (3, [])):
                h = h @ grow(h.shape[1], n) + grow(n)
                for name in chain:
                    h = CHAINS[name](h)
            return h

        forward(np.zeros((2, width)), grow)
        opt = OPTIMIZERS[optimizer](weights)

        def step(x, y):
            opt.zero_grad()
            queue = iter(weights)
            z = forward(x, lambda *shape: next(queue))
            loss = {
                "ce": lambda: losses.softmax_cross_entropy(z, y),
                "mse": lambda: (z * z).mean(),
                "sum": lambda: F.tanh(z).sum() / len(x),
            }[end]()
            loss.backward()
            opt.step()
            return loss, z

        return step, weights

    with pytest.MonkeyPatch.context() as patch:
        interpreted.instead(patch)
        patch.setattr(units, "BLOCK", 4)
        agree(make, (x, y), orders(size, 2, 20), 1e-9, calls=False)


# ---- what is not native, and says so


def mixing(kind):
    def loss(x, y, W):
        z = x @ W
        if kind == "sort":
            z = F.sort(z, axis=0)
        elif kind == "batch norm":
            z = z - z.mean(axis=0)
        return losses.softmax_cross_entropy(z, y)

    return by_hand(loss, (6, 3))


def clipped():
    _, state = training()()
    model = state[:6]

    def clips(x, y):
        for p in model:
            p.grad = None
        loss = losses.softmax_cross_entropy(x @ model[0], y)
        loss.backward()
        return loss, optim.clip_grad_norm(model[:1], 1.0)

    return clips, state


def accumulating():
    W = Tensor(np.ones((6, 3)), requires_grad=True)

    def step(x, y):
        loss = losses.softmax_cross_entropy(x @ W, y)
        loss.backward()
        return loss

    W.grad = np.zeros((6, 3))
    return step, [W]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (mixing("sort"), "argsort at .* has no native loop"),
        (mixing("batch norm"), "mixes the rows of a batch"),
        (clipped, "runs on the host at every step"),
    ],
    ids=["sort", "batch norm", "clip_grad_norm"],
)
def test_reasons(checked, make, message):
    assert re.search(message, reason(make, data(), orders(7)))


@pytest.mark.parametrize("scan", [True, False])
def test_what_runs_on_the_host_runs_once_a_step(monkeypatch, scan):
    """Other processes may take part in it: to find out whether a loop can be native, it must not be tried."""
    calls = []
    monkeypatch.setattr(optim, "_clip", lambda *args, clip=optim._clip: calls.append(1) or clip(*args))
    compiled = tinygrad_mnist.compile(clipped()[0])
    if scan:
        compiled.scan(data(), orders(7))
        assert len(calls) == len(orders(7))
    else:
        x, y = (np.concatenate([a] * (native.ROWS // len(a) + 1)) for a in data())
        for done in range(1, 5):
            compiled(x, y)
            assert len(calls) == done


def test_a_program_that_would_take_minutes_to_compile_runs_on_numpy():
    step, _ = training(sizes=(6, *[4] * 60, 3))()
    compiled = tinygrad_mnist.compile(step)
    compiled.scan(data(), orders(7))
    assert compiled.backend == "numpy"
    assert re.fullmatch(r"\d+ instructions would take long to compile", compiled.reason)


def test_gradients_that_add_up_run_on_numpy():
    step, _ = accumulating()
    compiled = tinygrad_mnist.compile(step)
    x, y = data()
    for _ in range(3):
        compiled(x, y)
    assert native.unsupported(compiled.program) == "gradients that add up over the calls"


def test_asking_for_what_is_not_possible_warns_once():
    native.warn_once.cache_clear()
    make = mixing("sort")
    compiled = tinygrad_mnist.compile(make()[0], backend="numba")
    with pytest.warns(UserWarning, match="NumPy runs instead: argsort") as caught:
        compiled.scan(data(), orders(7))
    compiled.scan(data(), orders(7))  # a second warning would be an error
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_without_numba(no_numba):
    native.warn_once.cache_clear()
    assert "Numba is not installed" in reason(training(), data(), orders(7))
    compiled = tinygrad_mnist.compile(training()()[0], backend="numba")
    with pytest.warns(UserWarning, match="Numba is not installed"):
        compiled.scan(data(), orders(7))
    compiled.scan(data(), orders(7))


def test_a_numba_that_does_not_work(monkeypatch):
    def broken(source):
        raise ImportError("Numba needs NumPy 1.0 or less")

    monkeypatch.setattr(cache, "function", broken)
    assert reason(training(), data(), orders(7)) == "Numba failed: ImportError: Numba needs NumPy 1.0 or less"


def test_the_choice():
    step, _ = training()()
    compiled = tinygrad_mnist.compile(step)
    x, y = data()
    for _ in range(3):
        compiled(x, y)
    assert compiled.backend == "numpy"
    assert compiled.reason == f"batch {LENGTH} in a single call: the BLAS does most of it"


def test_memory_whose_values_were_taken_for_granted(checked):
    """An array of a closure that counts is the loop's own index, until somebody changes it."""
    rows, W = np.arange(7), Tensor(np.ones((6, 3)), requires_grad=True)
    compiled = tinygrad_mnist.compile(lambda x, y: F.exp(x @ W)[rows, y])
    x, y = data()
    order = orders(7)
    expected = np.stack([np.exp(x[k] @ W.data)[rows, y[k]] for k in order])
    close(compiled.scan((x, y), order), expected, 1e-12)
    assert compiled.backend == "numba"
    rows[:2] = 1, 0
    expected = np.stack([np.exp(x[k] @ W.data)[rows, y[k]] for k in order])
    close(compiled.scan((x, y), order), expected, 1e-12)
    assert "does not hold" in compiled.reason


def test_arguments_in_the_memory_of_weights_run_on_numpy(checked):
    W = Tensor(np.random.default_rng(9).normal(size=(6, 6)), requires_grad=True)
    opt = optim.SGD([W], 0.1)

    def step(x):
        opt.zero_grad()
        loss = ((x @ W) ** 2).mean()
        loss.backward()
        opt.step()
        return loss

    compiled = tinygrad_mnist.compile(step)
    compiled.scan((W.data,), np.array([[0, 1], [2, 3]]))
    assert compiled.reason == "an argument lies in memory that the steps change"


# ---- errors change nothing


@pytest.mark.parametrize("loss", [None, "gather"])
@pytest.mark.parametrize("label", [-4, 3])
def test_labels_out_of_range(checked, loss, label):
    x, y = data()
    order = orders(7)
    step, state = by_hand(rows_of_gathers, (6, 3), (3,))() if loss else training(optimizer="adam")()
    compiled = tinygrad_mnist.compile(step)
    compiled.scan((x, y), order)
    before = [a.copy() for a in flat(state)]
    y[order[-1, -1]] = label
    with pytest.raises(IndexError, match=r"out of (range|bounds)"):
        compiled.scan((x, y), order)
    close(state, before, 0)
    y[order[-1, -1]] = 0
    unused = next(k for k in range(LENGTH) if k not in order)
    y[unused] = label  # which no step reads
    compiled.scan((x, y), order)
    assert compiled.backend == "numba"


def test_order_out_of_range(checked):
    step, state = training()()
    compiled = tinygrad_mnist.compile(step)
    compiled.scan(data(), orders(7))
    before = [a.copy() for a in flat(state)]
    with pytest.raises(IndexError, match=f"row {LENGTH} of arrays"):
        compiled.scan(data(), [[0, LENGTH]])
    close(state, before, 0)


# ---- the text


def sources(make, *sizes):
    x, y = data()
    found = []
    for size in sizes:
        compiled = tinygrad_mnist.compile(make()[0])
        compiled.scan((x, y), orders(size, 1))
        found.append(compiled._last.loop.source)
    return found


@pytest.mark.parametrize("options", [{}, {"optimizer": "adam", "dropout": 0.5}, {"sizes": (6, 1, 3)}], ids=str)
def test_a_rest_batch_has_the_same_text(checked, monkeypatch, options):
    monkeypatch.setattr(units, "BLOCK", 16)
    full, rest = sources(training(**options), 12, 5)
    assert full == rest


def test_a_rest_batch_of_other_losses(checked):
    for loss, shapes in [(rows_of_gathers, ((6, 3), (3,))), (LOSSES["rows of ones"][0], ((6, 3),))]:
        first, second = sources(by_hand(loss, *shapes), 7, 5)
        assert first == second


def test_products_are_left_to_the_updates(checked):
    (source,) = sources(training(sizes=(6, 5, 3)), 1)
    assert "-= x0 *" in source
    assert f"np.zeros({6 * 5}" not in source  # no gradient of the weights in memory


@pytest.mark.parametrize("size", [1, 7, 20])
def test_an_optimizer_is_one_pass(checked, size):
    """Over all parameters at once: each of them is written once."""
    (source,) = sources(training(optimizer="adam", sizes=(6, 5, 3)), size)
    passes = [part for part in source.split("for j0 in range(53)")[1:] if "math.sqrt" in part]
    assert len(passes) == 1
    assert source.count("range(53)") == 1


def test_random_numbers_are_drawn_in_portions(checked, monkeypatch):
    monkeypatch.setattr(native, "DRAWS", 100)
    agree(training(dropout=0.5), data(), orders(7, 6))


def test_numbers_that_decay_are_flushed(checked, monkeypatch):
    monkeypatch.setattr(optim, "FLUSH", 4)
    x, y = data()
    for scans in (True, False):
        step, state = training(optimizer="adam")()
        compiled = tinygrad_mnist.compile(step, backend="numba")
        compiled.scan((x, y), orders(7, 2))
        state[-1][0] = 1e-310
        if scans:
            compiled.scan((x, y), orders(7, 4))
        else:
            for rows in orders(7, 6):
                compiled(x[rows], y[rows])
        assert compiled.backend == "numba"
        assert np.abs(state[-1][state[-1] != 0]).min() > np.finfo(float).tiny


# ---- compiled: Numba's own


@pytest.fixture(scope="module")
def mnist():
    rng = np.random.default_rng(10)
    x = rng.random((600, 30)) * (rng.random((600, 30)) < 0.3)
    return x, np.argmax(x @ rng.normal(size=(30, 4)), axis=1)


COMPILED = {"sgd1": ("sgd", 1), "adam64": ("adam", 64)}


def network(optimizer, dtype="float64", **options):
    return training(optimizer=optimizer, sizes=(30, 16, 8, 4), dtype=dtype, **options)


@pytest.mark.parametrize(("optimizer", "size"), COMPILED.values(), ids=COMPILED)
def test_a_thousand_steps_in_float64(mnist, optimizer, size):
    agree(network(optimizer), mnist, orders(size, 1000, 600), 1e-9, calls=False)


@pytest.mark.parametrize(("optimizer", "size"), COMPILED.values(), ids=COMPILED)
def test_pieces_of_a_scan_give_the_same_bits(mnist, optimizer, size):
    order, found = orders(size, 40, 600), []
    for cuts in ([40], [1, 2, 40], [13, 14, 40]):
        step, state = network(optimizer)()
        compiled = tinygrad_mnist.compile(step, backend="numba")
        start = 0
        for stop in cuts:
            compiled.scan(mnist, order[start:stop])
            start = stop
        found.append([a.tobytes() for a in flat(state)])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(("size", "bar"), [(1, 1e-4), (64, 1e-5)])
def test_gradients_in_float32_at_a_hundred_points(mnist, size, bar):
    """From equal weights, the gradient is that of eager; a step of a large rate shows it to all digits."""
    x, y = mnist[0].astype("float32"), mnist[1]
    order = orders(size, 100, 600)

    def make():
        model = nn.MLP((30, 16, 8, 4), rng=np.random.default_rng(1))
        opt = optim.SGD(model.parameters(), lambda step: 2.0**20)

        def step(x, y):
            opt.zero_grad()
            loss = losses.softmax_cross_entropy(model(x), y)
            loss.backward()
            opt.step()
            return loss

        return model, step

    model, step = make()
    run, walk = make()
    compiled = tinygrad_mnist.compile(step, backend="numba")
    for rows in order:
        start = run.flat.copy()
        model.flat[...] = start
        compiled.scan((x, y), rows[None])
        assert compiled.backend == "numba"
        walk(x[rows], y[rows])
        found, expected = ((start - m.flat.astype("float64")) / 2.0**20 for m in (model, run))
        assert np.linalg.norm(found - expected) <= bar * np.linalg.norm(expected)
        run.flat[...] = start - 0.1 * expected.astype("float32")


def test_compiled_forms(mnist):
    """One of each kind of text, by Numba: a dropout, several blocks, gathers, images as they are on disk."""
    x, y = mnist
    agree(network("adam", dropout=0.4), mnist, orders(8, 4, 600), calls=False)
    agree(network("sgd"), mnist, np.tile(np.arange(600), (2, 5)), calls=False)
    agree(by_hand(rows_of_gathers, (30, 4), (4,)), (x, y.astype("uint8")), orders(9, 3, 600), calls=False)
    images = (x * 255).astype(np.uint8).reshape(600, 5, 6)
    images.flags.writeable = False

    def make():
        step, state = network("sgd", "float32", shows=OPTIONS["right answers"]["shows"])()
        return lambda x, y: step((x.astype("float32") / 255).reshape(len(x), -1), y), state

    agree(make, (images, y), orders(1, 20, 600), 1e-4)


def special(dtype):
    info = np.finfo(dtype)
    values = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, info.max, info.tiny, -info.max]
    return np.array([*values, 88.0, 88.7, 709.7, 710.0, -87.5, *np.linspace(-90, 90, 50)], dtype)


FUNCTIONS = {
    "exp": F.exp,
    "log": F.log,
    "relu": F.relu,
    "maximum": lambda a: F.maximum(a, 1.0),
    "where": lambda a: F.where(a > 0, a, -a),
    "sign": F.sign,
    "max": lambda a: a.max(axis=1),
    "argmax": lambda a: F.argmax(a, axis=1),
}


@pytest.fixture(scope="module", params=["float32", "float64"])
def functions(request):
    """dtype, and a compiled function of rows that returns all of FUNCTIONS."""
    compiled = tinygrad_mnist.compile(lambda x: {name: f(Tensor(x)) for name, f in FUNCTIONS.items()}, backend="numba")
    return request.param, compiled


def check_functions(compiled, rows):
    order = np.arange(len(rows))[None]
    with np.errstate(all="ignore"):
        expected = {name: flat(f(Tensor(rows)))[0] for name, f in FUNCTIONS.items()}
        found = compiled.scan((rows,), order)
    assert compiled.backend == "numba", compiled.reason
    info = np.finfo(rows.dtype)
    for name, values in expected.items():
        actual = flat(found[name])[0][0]
        if values.dtype.kind == "f":
            values = np.where(np.abs(values) < 2 * info.tiny, 0, values)  # exp is 0 there
            actual = np.where(np.abs(actual) < 2 * info.tiny, 0, actual)
        np.testing.assert_allclose(actual, values, rtol=2.5 * info.eps, atol=0, err_msg=name)


def test_special_values(functions):
    dtype, compiled = functions
    values = special(dtype)
    check_functions(compiled, values[: len(values) // 5 * 5].reshape(5, -1).repeat(2, axis=0))


@given(st.lists(st.floats(width=32), min_size=13, max_size=13))
def test_functions_of_any_value(functions, values):
    dtype, compiled = functions
    check_functions(compiled, np.array([values] * 10, dtype))


def test_exponentials_are_precise():
    """To 1 ulp of the exact value, over all of the range in which results are normal numbers."""
    for dtype, low, high, wide in (("float32", -86.9, 88.722, np.float64), ("float64", -707.9, 709.78, np.longdouble)):
        compiled = tinygrad_mnist.compile(lambda x: F.exp(Tensor(x)), backend="numba")
        x = np.linspace(low, high, 40000).astype(dtype).reshape(-1, 4)
        found = compiled.scan((x,), np.arange(len(x))[None]).data[0]
        exact = np.exp(x.astype(wide))
        assert (np.abs(found - exact) / exact).max() < 1.3 * np.finfo(dtype).eps


def test_a_weight_that_is_not_finite_under_a_zero():
    """With one row a step, zeros of the input are skipped: 0 * infinity counts as 0 there. With more, it is NaN."""
    W = Tensor(np.ones((30, 4)), requires_grad=True)
    W.data[3] = np.inf
    x = np.ones((5, 30))
    x[:, 3] = 0
    compiled = tinygrad_mnist.compile(lambda x: x @ W, backend="numba")
    with np.errstate(invalid="ignore"):  # of the capture
        assert (compiled.scan((x,), [[0]]).data == 29).all()
        assert np.isnan(compiled.scan((x,), [[0, 1]]).data).all()


def test_threads_share_a_loop(mnist):
    found = []

    def work():
        step, state = network("sgd")()
        tinygrad_mnist.compile(step, backend="numba").scan(mnist, orders(1, 300, 600))
        found.append([a.tobytes() for a in flat(state)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(f == found[0] for f in found)


# ---- one row: an update in the loop of a product

TOGETHER = re.compile(r" = s\n +x0 = .*\n +for j in range")


def reads_later(z, y, model):
    """A loss that reads the second weight after its product with the cotangent: by a derivative of its own."""
    first = losses.softmax_cross_entropy(z, y)
    return first + 0.1 * (model.layers[1].weight ** 2).sum()


@pytest.mark.parametrize(
    ("count", "loss", "options"),
    [
        (2, None, {"activation": "sigmoid"}),
        (2, None, {"activation": "tanh", "bias": False}),
        (0, None, {"activation": "relu"}),  # half of a column is zero
        (1, reads_later, {"activation": "sigmoid"}),  # it is no step of plain gradient descent
        (0, None, {"activation": "sigmoid", "optimizer": "momentum"}),
    ],
)
def test_an_update_shares_the_loop_of_a_product(checked, count, loss, options):
    """Where nothing reads the weight between the two: of all layers but the first, whose product has no such loop."""
    compiled = agree(training(loss, **options), data(), orders(1))
    assert len(TOGETHER.findall(compiled._last.loop.source)) == count


def test_an_update_waits_for_who_reads_the_weight_before_it(checked):
    def make():
        W, V = (Tensor(np.random.default_rng(k).normal(size=(5, 5)), requires_grad=True) for k in (0, 1))
        opt = optim.SGD([W, V], 0.1)

        def step(x):
            h = F.tanh(x @ W)
            loss = (F.tanh(h @ V) @ V).sum()  # V twice
            opt.zero_grad()
            loss.backward()
            opt.step()
            return loss

        return step, [W, V]

    agree(make, (np.random.default_rng(2).normal(size=(LENGTH, 5)),), orders(1))


# ---- large results on the way, while a loop is captured


def captures(step, x):
    """What becomes of calls of a step, and the same as it is."""
    compiled = tinygrad_mnist.compile(step, backend="numba")
    return flat([compiled(x), compiled(x)]), flat([step(x), step(x)]), compiled


@pytest.mark.parametrize("large", [1, 1 << 25])
def test_a_first_call_of_many_rows_is_native_and_right(monkeypatch, large):
    monkeypatch.setattr(capture, "LARGE", large)
    W = Tensor(np.linspace(-1, 1, 12).reshape(4, 3), requires_grad=True)
    x = np.random.default_rng(0).random((native.ROWS, 4)) + 0.5

    def step(x):  # of zeros, the logarithm and the quotient are no numbers: nobody is to hear of that
        z = F.log(F.exp(x @ W))
        return (z / z * z).mean(axis=0)

    found, expected, compiled = captures(step, x)
    close(found, expected, 1e-12)
    assert (compiled.backend, len(compiled._reasons)) == ("numba", 0)


def test_zeros_that_stand_for_large_results_keep_only_their_shape(monkeypatch):
    monkeypatch.setattr(capture, "LARGE", 1)
    seen = []
    real = capture.Recorder.make

    def make(*args):
        symbol = real(*args)
        seen.append(symbol.example.tolist())
        return symbol

    monkeypatch.setattr(capture.Recorder, "make", make)
    for keep, numbers in ((False, [[0, 0, 0], [0, 0, 0], 0]), (True, [[2, 2, 2], [3, 3, 3], 9])):
        seen.clear()
        capture.record(lambda x: (x * 2 + 1).sum(), (Tensor(np.ones(3)),), {}, keep=keep)
        assert seen == numbers


def test_a_function_that_zeros_mislead(monkeypatch):
    """It is captured with all numbers: a mask that is true in as many places, and an index within its range."""
    monkeypatch.setattr(capture, "LARGE", 1)
    x = np.random.default_rng(0).normal(size=(native.ROWS, 2))
    table = Tensor(np.arange(10.0))
    for step in (lambda x: (x * 2)[x * 3 > 0].sum(), lambda x: table[(x * 0 - 3).astype(int) + 3 - 3].sum()):
        compiled = tinygrad_mnist.compile(step)
        for _ in range(3):
            close(compiled(Tensor(x)), step(Tensor(x)), 1e-12)


def test_a_mistake_in_a_large_call_is_raised_once_and_undone(monkeypatch):
    monkeypatch.setattr(capture, "LARGE", 1)
    W = Tensor(np.ones((2, 3)), requires_grad=True)
    opt = optim.SGD([W], 0.1)

    def step(x):
        loss = (x @ W).sum()
        loss.backward()
        opt.step()
        return loss.reshape(7)

    with pytest.raises(ValueError, match="reshape"):
        tinygrad_mnist.compile(step)(np.ones((native.ROWS, 2)))
    assert (W.data == 1).all()
    assert opt.steps == 0


def test_a_scan_past_the_limit_of_captures_makes_its_steps_once(monkeypatch):
    monkeypatch.setattr(compiled_module, "LIMIT", 3)
    W = Tensor(np.zeros(2), requires_grad=True)
    count = iter(range(1000))

    def step(x):
        loss = ((x @ W) * float(next(count))).sum()  # new at every call
        W.data += 1
        return loss

    compiled = tinygrad_mnist.compile(step)
    for k in range(1, 4):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled.scan((np.ones((4, 2)),), [[0, 1], [2, 3]])
        assert W.data.tolist() == [2.0 * k, 2.0 * k]
    assert compiled.reason == "captured too often"


# ---- the cache

SCRIPT = """
import sys
import numpy as np, tinygrad_mnist
from tinygrad_mnist import Tensor
W = Tensor(np.ones((3, 2)), requires_grad=True)
f = tinygrad_mnist.compile(lambda x: (x @ W).sum(axis=1), backend="numba")
found = f.scan((np.ones((4, 3)),), [[0, 1]])
print(f.backend, found.data.tolist(), "compiled" if "numba" in sys.modules else "loaded")
"""
COMPILED, LOADED = (f"numba [[6.0, 6.0]] {how}" for how in ("compiled", "loaded"))


def run(folder, **more):
    env = {**os.environ, "TINYGRAD_MNIST_CACHE": str(folder), "PYTHONWARNINGS": "error", **more}
    return subprocess.Popen([sys.executable, "-c", SCRIPT], env=env, stdout=subprocess.PIPE, text=True)


def output(process):
    found = process.communicate()[0].strip()
    assert process.returncode == 0
    return found


def state_of(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.is_file()}


def test_the_cache(tmp_path):
    """Two processes at once; a third that compiles nothing and needs no Numba; and what becomes of damaged files."""
    folder = tmp_path / "cache"
    assert [output(p) for p in (run(folder), run(folder))] == [COMPILED] * 2
    before = state_of(folder)
    assert {path.suffix for path in before} == {".o"}
    assert output(run(folder)) == LOADED
    assert state_of(folder) == before
    for damage in (lambda b: b"", lambda b: b[:40], lambda b: b[:-1], lambda b: b[:99] + bytes([b[99] ^ 1]) + b[100:]):
        for path in before:
            (folder / path).write_bytes(damage((folder / path).read_bytes()))
        assert output(run(folder)) == COMPILED
        assert state_of(folder).keys() == before.keys()


def test_a_cache_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way of a folder")
    assert output(run(file, TMPDIR=str(tmp_path))) == COMPILED
    assert [*tmp_path.glob("tinygrad_mnist_*/loop_*.o")]


def test_old_files_go(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYGRAD_MNIST_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "KEEP", 3)
    for k in range(5):
        cache._keep(f"loop_{k}.o", b"code")
        os.utime(tmp_path / f"loop_{k}.o", (k, k))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loop_2.o", "loop_3.o", "loop_4.o"]
    assert cache._kept("loop_4.o") == b"code"


def test_code_that_calls_what_only_numba_has(tmp_path, monkeypatch):
    """Without Numba it would end the process."""
    monkeypatch.setenv("TINYGRAD_MNIST_CACHE", str(tmp_path))
    text = "def loop(n, a):\n    a[0] = math.gamma(a[0])\n"
    with pytest.raises(NotImplementedError, match="compiled code calls .*gamma"):
        cache.function.__wrapped__(preamble.source(text, ["int64", "float64*"], set(), "int64"))
    assert not [*tmp_path.iterdir()]


# ---- the BLAS


def test_names_of_blas(monkeypatch):
    found = blas.find()
    assert found.integer in ("int32", "int64")
    assert all(found.addresses[kind] for kind in "sd")
    monkeypatch.setattr(blas, "_libraries", lambda: iter([__file__]))
    assert blas.find.__wrapped__() is None


def test_a_blas_of_small_integers_compiles(tmp_path, monkeypatch):
    """The text for such a library; it is not called."""
    monkeypatch.setenv("TINYGRAD_MNIST_CACHE", str(tmp_path))
    call = "sgemm(ROW, KEEP, TURN, n, 3, n, f32(1), ptr(a, 0), 3, ptr(a, 0), n, f32(0), ptr(a, 0), 3)"
    cache.function.__wrapped__(preamble.source(f"def loop(n, a):\n    {call}\n", ["int64", "float32*"], set(), "int32"))


def test_roles_in_words():
    assert batch.holds(np.arange(3)[:, None], batch.COUNTS)
    assert not batch.holds(np.array([0]), batch.COUNTS)
    assert batch.holds(np.ones((3, 2)), batch.ALIKE)


def test_many_steps_of_second_derivatives(checked):
    """A program that optimizers know nothing of."""

    def step(x):
        return functional.grad(lambda x: (F.tanh(x) ** 2).sum())(x)

    x, _ = data()
    compiled = tinygrad_mnist.compile(step)
    found = compiled.scan((Tensor(x),), orders(7))
    assert compiled.backend == "numba", compiled.reason
    close(found, np.stack([step(Tensor(x[k])).data for k in orders(7)]), 1e-12)


def test_no_warnings_where_nothing_is_wrong(checked):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agree(training(), data(), orders(7))
