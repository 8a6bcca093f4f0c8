"""`audit`: hand-derived backward passes, right ones, planted mistakes at every link, and those of five notebooks.

The notebooks' passes are those of the package, at small sizes. C's backward stands here in its author's matrices, and
D's passes in fewer names than there.
"""

import functools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_mnist import Tensor, arrays
from tinygrad_mnist.gradcheck import audit
from tinygrad_mnist.gradcheck.statements import Source
from tinygrad_mnist.notebooks import batch_gd_sigmoid_mse as notebook_a_batch
from tinygrad_mnist.notebooks import digits_relu_softmax as notebook_c
from tinygrad_mnist.notebooks import full_batch_500_150 as notebook_e
from tinygrad_mnist.notebooks import mse_2_3_1 as notebook_b
from tinygrad_mnist.notebooks import sgd_sigmoid_mse as notebook_a


def s(z):
    return 1 / (1 + np.exp(-z))


def softmax(z):
    return np.exp(z) / np.sum(np.exp(z), axis=0)


def one_hot(labels, classes):
    """As columns."""
    return np.eye(classes)[labels].T


def verdicts(report):
    return {claim.name: claim.verdict for claim in report.claims}


def drawn(rng, *shapes, scale=0.5):
    return [rng.normal(0, scale, shape) for shape in shapes]


@pytest.fixture
def rng():
    return np.random.default_rng(5)


# ---- A: sigmoid on all layers, squared error ----------------------------------------------------------------------


SHAPES_A = (12, 9), (9, 8), (8, 6), (6, 4)


def test_notebook_a_is_right_for_all_four_weights(rng):
    inputs = *drawn(rng, *SHAPES_A, scale=1), rng.random((12, 1)), one_hot([2], 4)
    report = audit(notebook_a.forward, notebook_a.backward, *inputs)
    assert set(verdicts(report).values()) == {"pass"}
    assert report.ok
    assert report.pitfalls == report.sentences == report.hints == report.wrong == []


def test_notebook_a_in_batches_is_the_gradient_of_neither_cost(rng):
    inputs = *drawn(rng, *SHAPES_A, scale=1), rng.random((12, 20)), one_hot(rng.integers(0, 4, 20), 4)
    report = audit(notebook_a_batch.forward, notebook_a_batch.backward, *inputs)
    assert verdicts(report)["Z4"] == "shape"
    assert "has shape (4, 1); Z4 has (4, 20)" in report.sentences[0]
    weights = [report[name] for name in ("W4", "W3", "W2", "W1")]
    assert {claim.verdict for claim in weights} == {"fail"}
    assert all(claim.error > 0.01 and claim.cosine < 1 and claim.follows is None for claim in weights)

    def weights_alone(*inputs):
        return {name: a for name, a in notebook_a_batch.backward(*inputs).items() if name[0] == "W"}

    for cost in notebook_a_batch.forward, notebook_a_batch.reported_cost:
        report = audit(cost, weights_alone, *inputs)
        assert set(verdicts(report).values()) == {"fail"}
        assert report.numeric.verdict == "pass"


# ---- B: two layers in rows ----------------------------------------------------------------------------------------


def test_notebook_b_is_right(rng):
    W1, W2 = drawn(rng, (3, 2), 3)
    X, Y = rng.random((30, 2)), rng.integers(0, 2, 30)
    report = audit(notebook_b.forward, notebook_b.backward, W1, np.zeros(3), W2, np.float64(0), X, Y)
    assert set(verdicts(report).values()) == {"pass"}
    assert [claim.kind for claim in report.claims if claim.name in ("W1", "b1", "W2", "b2")] == ["parameter"] * 4


# ---- C: the softmax of a softmax, and the slope of a softmax for that of a relu -------------------------------------


def backward_c(W1, b1, W2, b2, W3, b3, x, y):  # on matrices: * is the matrix product
    m = 10
    z1 = W1.T * x + b1
    a1 = np.maximum(0, z1)
    z2 = W2.T * a1 + b2
    a2 = np.maximum(0, z2)
    z3 = W3.T * a2 + b3
    a3 = softmax(z3)
    q = softmax(a3)
    q = q - (q == q[np.argmax(y), 0])
    delta3 = q / m
    delta2 = np.multiply(np.multiply(softmax(z2), 1 - softmax(z2)), W3 * delta3)
    delta1 = np.multiply(z1 > 0, W2 * delta2)
    if False:
        epsilon = 1e-4
        W1[0, 0] += epsilon
    dW3, dW2, dW1 = a2 * delta3.T, a1 * delta2.T, x * delta1.T
    return {
        "z3": delta3, "z2": delta2, "z1": delta1,
        "W3": dW3, "b3": delta3, "W2": dW2, "b2": delta2, "W1": dW1, "b1": delta1,
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_notebook_c_is_wrong_at_two_lines(rng):
    shapes = (16, 20), (20, 1), (20, 15), (15, 1), (15, 10), (10, 1)
    inputs = [np.asmatrix(a) for a in (*drawn(rng, *shapes), rng.random((16, 1)), one_hot([4], 10))]
    report = audit(notebook_c.forward, backward_c, *inputs)
    assert set(verdicts(report).values()) == {"fail"}
    assert report.first == "z3"
    assert report.wrong == ["z3", "z2"]
    first, second, *_ = report.sentences
    assert "`delta3 = q / m` with `q = softmax(a3); q = q - (q == q[np.argmax(y), 0])` is not the gradient" in first
    assert "`delta2 = np.multiply(np.multiply(softmax(z2), 1 - softmax(z2)), W3 * delta3)` is wrong too" in second
    assert any("`if False:` is never run" in pitfall for pitfall in report.pitfalls)


# ---- D: three activations, batches in columns, a cost that is another function -------------------------------------


def tanh(x):
    return (np.exp(x) - np.exp(-x)) / (np.exp(x) + np.exp(-x))


def relu(x):
    return np.maximum(0, x)


ACTIVATIONS = {"sigmoid": s, "tanh": tanh, "relu": relu}
SLOPES = {"sigmoid": lambda v: s(v) * (1 - s(v)), "tanh": lambda v: 1 - np.tanh(v) ** 2, "relu": lambda v: v > 0}


def forward_d(W1, b1, W2, b2, W3, b3, W4, b4, X, Y, activation):
    g = ACTIVATIONS[activation]
    Z1 = np.dot(W1, X) + b1
    Z2 = np.dot(W2, g(Z1)) + b2
    Z3 = np.dot(W3, g(Z2)) + b3
    Z4 = np.dot(W4, g(Z3)) + b4
    A4 = softmax(Z4)
    return np.sum(-np.log(A4) * Y) / X.shape[1]


def reported_d(W1, b1, W2, b2, W3, b3, W4, b4, X, Y, activation):
    g = ACTIVATIONS[activation]
    Z1 = np.dot(W1, X) + b1
    Z2 = np.dot(W2, g(Z1)) + b2
    Z3 = np.dot(W3, g(Z2)) + b3
    Z4 = np.dot(W4, g(Z3)) + b4
    A4 = softmax(Z4)
    return np.nansum(-np.log(A4) * Y - np.log(1 - A4) * (1 - Y)) / X.shape[1]


def backward_d(W1, b1, W2, b2, W3, b3, W4, b4, X, Y, activation):
    g, d, m = ACTIVATIONS[activation], SLOPES[activation], X.shape[1]
    A1 = g(np.dot(W1, X) + b1)
    A2 = g(np.dot(W2, A1) + b2)
    A3 = g(np.dot(W3, A2) + b3)
    A4 = softmax(np.dot(W4, A3) + b4)
    dZ4 = A4 - Y
    dW4 = dZ4 @ A3.T / m
    db4 = np.sum(dZ4, axis=1, keepdims=True) / m
    dZ3 = (W4.T @ dZ4) * d(A3)
    dW3 = dZ3 @ A2.T / m
    db3 = np.sum(dZ3, axis=1, keepdims=True) / m
    dZ2 = (W3.T @ dZ3) * d(A2)
    dW2 = dZ2 @ A1.T / m
    db2 = np.sum(dZ2, axis=1, keepdims=True) / m
    dZ1 = (W2.T @ dZ2) * d(A1)
    dW1 = dZ1 @ X.T / m
    db1 = np.sum(dZ1, axis=1, keepdims=True) / m
    return {
        "Z4": dZ4, "W4": dW4, "b4": db4, "Z3": dZ3, "W3": dW3, "b3": db3,
        "Z2": dZ2, "W2": dW2, "b2": db2, "Z1": dZ1, "W1": dW1, "b1": db1,
    }  # fmt: skip


def inputs_d(rng, activation, m=8):
    shapes = (9, 12), (9, 1), (7, 9), (7, 1), (6, 7), (6, 1), (4, 6), (4, 1)
    return *drawn(rng, *shapes, scale=0.6), rng.random((12, m)), one_hot(rng.integers(0, 4, m), 4), activation


def test_notebook_d_is_right_with_relu_and_its_chain_is_m_times_the_adjoints(rng):
    report = audit(forward_d, backward_d, *inputs_d(rng, "relu"))
    assert set(verdicts(report).values()) == {"pass"}
    factors = {claim.name: claim.factor for claim in report.claims}
    assert all(np.isclose(factors[f"Z{k}"], 8) and factors[f"W{k}"] == factors[f"b{k}"] == 1 for k in (1, 2, 3, 4))


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_notebook_d_takes_slopes_of_activations_at_the_activations(rng, activation):
    report = audit(forward_d, backward_d, *inputs_d(rng, activation))
    found = verdicts(report)
    assert [name for name in found if found[name] == "pass"] == ["Z4", "W4", "b4"]
    assert report.first == "Z3"
    assert report.wrong == ["Z3", "Z2", "Z1"]
    assert "`dZ3 = (W4.T @ dZ4) * d(A3)` with `A3 = g(np.dot(W3, A2) + b3)` is not the" in report.sentences[0]
    assert "Z4 before it is right" in report.sentences[0]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_notebook_d_reports_another_cost_than_it_descends(rng, activation):
    report = audit(reported_d, backward_d, *inputs_d(rng, activation))
    assert {claim.verdict for claim in report.claims if claim.kind == "parameter"} == {"fail"}
    assert report.first == report.wrong[0] == "Z4"
    assert not {"W4", "b4"} & {*report.wrong}


def test_notebook_d_overflows_on_the_pixels_that_it_is_tested_on(rng):
    *parameters, X, Y, activation = inputs_d(rng, "tanh")
    report = audit(forward_d, backward_d, *parameters, X, Y, activation, tested_on={"X": 2550 * X})
    text = "\n".join(report.pitfalls)
    assert "overflow in tanh, line" in text
    assert "`return (np.exp(x) - np.exp(-x)) / (np.exp(x) + np.exp(-x))`, on what it was tested on" in text
    assert f"X: trained on {X.min():.4g}..{X.max():.4g}, tested on {2550 * X.min():.4g}" in text
    assert verdicts(report)["W4"] == "pass"  # a pitfall is no verdict


# ---- E: the drop-in namespace ---------------------------------------------------------------------------------------


def test_notebook_e_is_right(rng):
    W1, W2, W3 = drawn(rng, (12, 20), (9, 12), (5, 9), scale=0.1)
    zeros = [np.zeros((n, 1)) for n in (12, 9, 5)]
    X, E = rng.random((20, 16)), one_hot(rng.integers(0, 5, 16), 5)
    report = audit(notebook_e.forward, notebook_e.backward, W1, zeros[0], W2, zeros[1], W3, zeros[2], X, E)
    assert set(verdicts(report).values()) == {"pass"}


# ---- planted mistakes ---------------------------------------------------------------------------------------------


def forward(W1, b1, W2, b2, W3, b3, x, y):
    z1 = W1 @ x + b1
    a1 = np.tanh(z1)
    z2 = W2 @ a1 + b2
    a2 = np.maximum(0, z2)
    z3 = W3 @ a2 + b3
    p = softmax(z3)
    return -np.mean(np.sum(y * np.log(p), axis=0))


def planting(factor=1.0, where=None, mistake=None):
    """A backward pass with a factor on the whole chain, taken out again at the parameters, and one mistake in it."""

    def backward(W1, b1, W2, b2, W3, b3, x, y):
        m = x.shape[1]
        a1 = np.tanh(W1 @ x + b1)
        a2 = np.maximum(0, W2 @ a1 + b2)
        values = {"W1": W1, "W2": W2, "W3": W3, "x": x, "y": y, "a1": a1, "a2": a2, "m": m}

        def made(name, value):
            values[name] = mistake(value, values) if name == where else value
            return values[name]

        d = {}
        d["z3"] = made("z3", factor * (softmax(W3 @ a2 + b3) - y) / m)
        d["W3"] = made("W3", d["z3"] @ a2.T / factor)
        d["b3"] = made("b3", d["z3"].sum(axis=1, keepdims=True) / factor)
        d["a2"] = made("a2", W3.T @ d["z3"])
        d["z2"] = made("z2", d["a2"] * (a2 > 0))
        d["W2"] = made("W2", d["z2"] @ a1.T / factor)
        d["b2"] = made("b2", d["z2"].sum(axis=1, keepdims=True) / factor)
        d["a1"] = made("a1", W2.T @ d["z2"])
        d["z1"] = made("z1", d["a1"] * (1 - a1**2))
        d["W1"] = made("W1", d["z1"] @ x.T / factor)
        d["b1"] = made("b1", d["z1"].sum(axis=1, keepdims=True) / factor)
        return d

    return backward


PARAMETERS = "W3", "b3", "W2", "b2", "W1", "b1"
CHAIN = "z3", "a2", "z2", "a1", "z1"
AFTER = {
    "z3": ("z3", "W3", "b3", "a2", "z2", "W2", "b2", "a1", "z1", "W1", "b1"),
    "a2": ("a2", "z2", "W2", "b2", "a1", "z1", "W1", "b1"),
    "z2": ("z2", "W2", "b2", "a1", "z1", "W1", "b1"),
    "a1": ("a1", "z1", "W1", "b1"),
    "z1": ("z1", "W1", "b1"),
    **{name: (name,) for name in PARAMETERS},
}
"""What is wrong where one quantity is."""


def points(rng, m=7, n=5):
    """Square where something might be transposed unseen."""
    shapes = (n, n), (n, 1), (n, n), (n, 1), (4, n), (4, 1)
    return *drawn(rng, *shapes), rng.normal(size=(n, m)), one_hot(rng.integers(0, 4, m), 4)


def one_element(v, _):
    v = v.copy()
    v.flat[v.argmax()] *= 1.001
    return v


EVERYWHERE = {
    "sign": lambda v, _: -v,
    "doubled": lambda v, _: 2 * v,
    "0.01 % too large": lambda v, _: 1.0001 * v,
    "one element": one_element,
    "rows rolled": lambda v, _: np.roll(v, 1, axis=0),
    "a constant added": lambda v, _: v + v.max(),
    "nothing": lambda v, _: 0 * v,
    "NaN": lambda v, _: v * np.nan,
    "one column for all": lambda v, _: 0 * v + v[:, :1] if v.shape[1] > 1 else v[::-1],
}


@pytest.mark.parametrize("where", [*CHAIN, *PARAMETERS])
@pytest.mark.parametrize("kind", EVERYWHERE)
def test_a_planted_mistake_is_named_where_it_is(rng, where, kind):
    if where == "z3" and kind in ("sign", "doubled", "0.01 % too large"):
        return  # a factor on the whole chain: below
    report = audit(forward, planting(1.0, where, EVERYWHERE[kind]), *points(rng))
    assert report.wrong == [where]
    assert report.first == where
    bad = [claim.name for claim in report.claims if not claim.ok]
    assert bad == [name for name in verdicts(report) if name in AFTER[where]]
    assert report.numeric.verdict == "pass"


SPECIAL = {
    "the slope of tanh taken at tanh": ("z1", lambda _, at: at["W2"].T @ at["z2"] * (1 - np.tanh(at["a1"]) ** 2)),
    "the slope of tanh forgotten": ("z1", lambda _, at: at["W2"].T @ at["z2"]),
    "a factor lost in the slope of tanh": ("z1", lambda _, at: at["W2"].T @ at["z2"] * (1 - at["a1"])),
    "the slope of relu forgotten": ("z2", lambda _, at: at["W3"].T @ at["z3"]),
    "the slope of a sigmoid for relu": ("z2", lambda _, at: at["W3"].T @ at["z3"] * at["a2"] * (1 - at["a2"])),
    "weights not transposed": ("a1", lambda _, at: at["W2"] @ at["z2"]),
    "the weights of another layer": ("a1", lambda _, at: at["W1"].T @ at["z2"]),
    "labels forgotten": ("z3", lambda v, at: v + at["y"] / at["m"]),
    "softmax of softmax": ("z3", lambda v, at: (softmax(v * at["m"] + at["y"]) - at["y"]) / at["m"]),
    "the gradient transposed": ("W2", lambda v, _: v.T),
    "the inputs of another layer": ("W2", lambda _, at: at["z2"] @ at["x"].T),
    "a mean for a sum": ("b2", lambda v, at: v / at["m"]),
    "the first sample alone": ("b1", lambda _, at: at["z1"][:, :1]),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_mistake_of_derivation_is_named_where_it_is(rng, kind):
    where, mistake = SPECIAL[kind]
    report = audit(forward, planting(7.0, where, mistake), *points(rng))
    assert report.wrong == [where]
    assert report.first == where


@pytest.mark.parametrize("where", ["b3", "b2", "b1"])
def test_a_sum_that_was_forgotten_is_a_verdict_on_the_shape(rng, where):
    delta = "z" + where[1]
    report = audit(forward, planting(1.0, where, lambda _, at: at[delta]), *points(rng))
    assert report.wrong == [where]
    assert verdicts(report)[where] == "shape"
    assert report.hints == [f"{where}: un-broadcast axis 1 missing: the sum would fit"]


@pytest.mark.parametrize("factor", [7, -1, 2, 1 / 7, -0.3])
def test_a_factor_may_be_on_the_chain_if_the_parameters_take_it_out(rng, factor):
    report = audit(forward, planting(factor), *points(rng))
    assert set(verdicts(report).values()) == {"pass"}
    assert np.allclose([report[name].factor for name in CHAIN], factor)


@pytest.mark.parametrize(("factor", "verdict"), [(7, "factor"), (-1, "fail"), (1.0001, "factor")])
def test_a_factor_that_stays_is_said_of_all_parameters_at_once(rng, factor, verdict):
    report = audit(forward, planting(1.0, "z3", lambda v, _: v * factor), *points(rng))
    assert report.wrong == []
    assert {verdicts(report)[name] for name in PARAMETERS} == {verdict}
    assert {verdicts(report)[name] for name in CHAIN} == {"pass"}
    assert report.first == "W3"
    (sentence,) = report.sentences
    assert sentence.startswith("W3, b3, W2, b2, W1 and b1 are")
    assert f"{factor:.4g} times the gradient: the factor comes in with line" in sentence or factor == 1.0001


def test_a_division_by_m_made_twice_is_said_of_every_line_that_makes_it(rng):
    def backward(*inputs):
        found = planting()(*inputs)
        return {name: a / 7 if name in PARAMETERS else a for name, a in found.items()}

    report = audit(forward, backward, *points(rng))
    assert report.wrong == [*PARAMETERS]
    assert {verdicts(report)[name] for name in PARAMETERS} == {"factor"}
    assert all("it is 0.1429 times that" in sentence for sentence in report.sentences)
    assert "a mean for a sum? (7 = size of axis 1 of an array (5, 7))" in report.hints[0]


@pytest.mark.parametrize("where", ["z2", "z1"])
def test_a_second_mistake_further_down_is_named_too(rng, where):
    def backward(*inputs):
        found = planting(1.0, "z3", lambda v, at: v + at["y"])(*inputs)
        again = planting(1.0, where, lambda v, at: planted(v, found, where, at))(*inputs)
        return {**found, **{name: again[name] for name in AFTER[where]}}

    def planted(_, found, where, at):
        return found["a" + where[1]] * 0.5

    report = audit(forward, backward, *points(rng))
    assert report.wrong == ["z3", where]
    assert "is wrong too: it is not what follows from" in report.sentences[1]


def test_rows_may_stand_for_columns(rng):
    def backward(*inputs):
        found = planting(7.0)(*inputs)
        return {name: a.T if name in CHAIN else a for name, a in found.items()}

    for m in (7, 5):  # 5: all are square
        report = audit(forward, backward, *points(rng, m))
        assert set(verdicts(report).values()) == {"pass"}


@given(
    seed=st.integers(0, 2**32 - 1), m=st.integers(1, 6), n=st.integers(1, 5), scale=st.floats(-3, 0.3),
    factor=st.floats(-3, 3), where=st.sampled_from([None, "a", "z", "W1", "b1", "W2"]), off=st.floats(-4, 0),
)  # fmt: skip
def test_at_any_point_what_is_right_is_not_blamed_and_a_mistake_of_any_size_is(seed, m, n, scale, factor, where, off):
    rng = np.random.default_rng(seed)

    def forward(W1, b1, W2, x, y):
        z = W1 @ x + b1
        a = np.tanh(z)
        p = W2 @ a
        return np.mean((p - y) ** 2)

    def backward(W1, b1, W2, x, y):
        def made(name, value):
            noise = np.random.default_rng(seed).normal(size=value.shape)
            return value + (name == where) * 10**off * np.abs(value).max() * noise / np.abs(noise).max()

        k = 10**factor
        a = np.tanh(W1 @ x + b1)
        p = k * 2 * (W2 @ a - y) / y.size
        da = made("a", W2.T @ p)
        dz = made("z", da * (1 - a * a))
        W1, b1, W2 = (made(n, g / k) for n, g in (("W1", dz @ x.T), ("b1", dz.sum(1, keepdims=True)), ("W2", p @ a.T)))
        return {"p": p, "W2": W2, "a": da, "z": dz, "W1": W1, "b1": b1}

    report = audit(forward, backward, *drawn(rng, (n, 3), (n, 1), (2, n), (3, m), (2, m), scale=10**scale))
    if report.numeric.verdict == "pass":
        assert report.wrong == ([] if where is None else [where])
        assert report.ok == (where is None)
    assert report.numeric.verdict in ("pass", "ill")


# ---- where differences have no simple answer ------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
def test_at_a_kink_every_slope_between_is_right_and_no_other_is(rng, slope):
    def forward(W, x):
        z = W @ x
        return np.sum(np.maximum(0, z) * z + np.maximum(0, z))

    def backward(W, x):
        z = W @ x
        d = 2 * np.maximum(0, z) + np.where(z == 0, slope * factor, z > 0)
        return {"z": d, "W": d @ x.T}

    W, x = rng.normal(size=(3, 4)), rng.normal(size=(4, 1))
    W[1] = 0
    factor = 1
    report = audit(forward, backward, W, x)
    assert report.ok
    assert verdicts(report)["W"] == "kink"
    factor = 100
    if slope:
        assert verdicts(audit(forward, backward, W, x))["W"] == "fail"


def test_saturated_units_are_no_mistake(rng):
    inputs = *drawn(rng, *SHAPES_A, scale=8), rng.random((12, 1)), one_hot([2], 4)
    assert audit(notebook_a.forward, notebook_a.backward, *inputs).verdict in ("pass", "ill")


def test_where_differences_decide_nothing_nothing_is_judged():
    def forward(w, b):
        z = 1e20 + w
        return z + 0 * b

    report = audit(forward, lambda w, b: {"z": 3.0, "w": np.float64(1)}, np.float64(1), np.float64(1))
    assert set(verdicts(report).values()) == {"ill"}
    assert not report.ok
    assert report.first is None
    assert "z and w: differences do not confirm the derived gradient" in report.sentences[0]


def test_a_derived_gradient_that_differences_contradict_is_not_held_against_the_author():
    def forward(w):
        h = w.detach() * w  # half of the gradient is cut off
        return np.sum(h)

    report = audit(forward, lambda w: {"w": 2 * w}, np.array([1.0, 2.0]))
    assert report.numeric.verdict == "fail"
    assert verdicts(report) == {"w": "ill"}


def test_a_loss_that_is_not_finite_decides_nothing():
    report = audit(lambda w: np.sum(np.log(w)), lambda w: {"w": 1 / w}, np.array([1.0, 0.0]))
    assert verdicts(report) == {"w": "ill"}
    assert any("divide by zero" in pitfall for pitfall in report.pitfalls)


def test_passes_that_draw_numbers_of_their_own_are_not_judged(rng):
    def dropout(w):
        return np.sum(w * rng.random(w.shape))

    w = np.ones(4)
    report = audit(dropout, lambda w: {"w": np.ones(4)}, w)
    assert verdicts(report) == {"w": "nondet"}
    (sentence,) = report.sentences
    assert sentence == "forward gives another answer when it is asked again: seed its random numbers; nothing is judged"
    report = audit(lambda w: np.sum(w), lambda w: {"w": rng.random(4)}, w)
    assert verdicts(report) == {"w": "nondet"}
    assert report.sentences[0].startswith("backward gives another answer")


# ---- the ways to write the two passes -------------------------------------------------------------------------------


def test_inputs_may_be_lists_dicts_numbers_labels_and_tensors(rng):
    def forward(params, x, labels, options):
        (W1, b1), (W2, b2) = params
        h = np.tanh(x @ W1 + b1)
        z = h @ W2 + b2
        loss = np.mean(np.log(np.sum(np.exp(z), axis=1)) - z[np.arange(len(labels)), labels])
        return loss + options["decay"] * np.sum(W1 * W1)

    def backward(params, x, labels, options):
        (W1, b1), (W2, b2) = params
        h = np.tanh(x @ W1 + b1)
        d = softmax((h @ W2 + b2).T).T
        d[np.arange(len(labels)), labels] -= 1
        d /= len(labels)
        e = d @ W2.T * (1 - h * h)
        gradients = dict(z=d, W2=h.T @ d)  # noqa: C408
        gradients["b2"] = d.sum(axis=0)
        gradients["W1"] = x.T @ e + 2 * options["decay"] * W1
        return gradients

    W1, W2 = drawn(rng, (3, 4), (4, 2))
    params = [(Tensor(W1), np.zeros(4)), (W2, np.zeros(2))]
    report = audit(forward, backward, params, rng.normal(size=(6, 3)), rng.integers(0, 2, 6), {"decay": 0.1})
    assert set(verdicts(report).values()) == {"pass"}
    assert {claim.kind for claim in report.claims if claim.name != "z"} == {"parameter"}
    assert [claim.source.partition(": ")[2] for claim in report.claims] == [
        "`d = softmax((h @ W2 + b2).T).T; d[np.arange(len(labels)), labels] -= 1; d /= len(labels)`",
        "`h.T @ d`", "`d.sum(axis=0)`", "`x.T @ e + 2 * options[\"decay\"] * W1` with `e = d @ W2.T * (1 - h * h)`",
    ]  # fmt: skip


def test_quantities_may_come_from_a_function_that_forward_calls(rng):
    def layer(W, a):
        z = W @ a
        return np.tanh(z), z

    def forward(W1, W2, x):
        a1, z1 = layer(W1, x)  # noqa: RUF059
        a2, z2 = layer(W2, a1)  # noqa: RUF059
        return np.sum(a2)

    def backward(W1, W2, x):
        a1 = np.tanh(W1 @ x)
        d2 = 1 - np.tanh(W2 @ a1) ** 2
        d1 = W2.T @ d2 * (1 - a1)  # its square
        return {"z2": d2, "W2": d2 @ a1.T, "z1": d1, "W1": d1 @ x.T}

    report = audit(forward, backward, *drawn(rng, (3, 4), (2, 3), (4, 5)))
    assert verdicts(report) == {"z2": "pass", "W2": "pass", "z1": "fail", "W1": "fail"}
    assert report.wrong == ["z1"]


def test_passes_may_be_methods_partial_functions_and_objects(rng):
    class Model:
        def forward(self, power, w):
            z = np.sin(w)
            return np.sum(z**power)

        def __call__(self, w):
            return {"z": 3 * np.sin(w) ** 2, "w": 3 * np.sin(w) ** 2 * np.cos(w)}

    w = rng.normal(size=3)
    assert verdicts(audit(functools.partial(Model().forward, 3), Model(), w)) == {"z": "pass", "w": "pass"}
    report = audit(Model().forward, lambda power, w: Model()(w), 3, w)
    assert verdicts(report) == {"z": "pass", "w": "pass"}


def test_parameters_need_no_chain(rng):
    report = audit(lambda w, x: np.sum(np.exp(w * x)), lambda w, x: {"w": np.exp(w * x)}, *drawn(rng, 4, 4))
    assert verdicts(report) == {"w": "fail"}
    assert report["w"].kind == "parameter"


def test_a_chain_needs_no_parameters(rng):
    def forward(x):
        z = x * x
        return np.sum(np.exp(z))

    report = audit(forward, lambda x: {"z": np.exp(x * x)}, rng.normal(size=3))
    assert verdicts(report) == {"z": "pass"}


def test_paths_around_a_quantity_count(rng):
    def forward(W, V, x):
        h = np.tanh(W @ x)
        z = V @ h + h  # around
        return np.mean(z * z) + 0.5 * np.sum(W * W)

    def backward(W, V, x):
        h = np.tanh(W @ x)
        z = V @ h + h
        d = factor * z  # of 2 z / z.size
        e = V.T @ d + around * d
        return {"z": d, "V": d @ h.T / scale, "h": e, "W": e * (1 - h * h) @ x.T / scale + W}

    inputs = drawn(rng, (3, 3), (3, 3), (3, 4))
    factor, scale, around = 1, 6, 1
    assert audit(forward, backward, *inputs).ok
    around = 0
    report = audit(forward, backward, *inputs)
    assert report.wrong == ["h"]


def test_a_function_without_source_is_named_by_its_quantities(rng):
    space = {"np": np}
    exec("def backward(w):\n    return {'w': 2 * w}", space)
    report = audit(lambda w: np.sum(w), space["backward"], rng.normal(size=3))
    assert report["w"].line is None
    assert report.sentences[0].startswith("the array for w is not the gradient by w")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_low_precision_is_judged_in_float64_and_seen_in_its_own(rng, dtype):
    inputs = [a.astype(dtype) for a in points(rng)]
    assert set(verdicts(audit(forward, planting(), *inputs)).values()) == {"pass"}
    wrong = audit(forward, planting(1.0, "z2", EVERYWHERE["0.01 % too large"]), *inputs)
    assert wrong.wrong == ["z2"]

    def backward(*inputs):
        return {name: a.astype(np.float32) for name, a in planting(3.0)(*inputs).items()}

    assert set(verdicts(audit(forward, backward, *inputs)).values()) == {"pass"}
    large = audit(lambda w: np.exp(w), lambda w: {"w": np.exp(w)}, dtype(100))
    assert large.ok
    assert len([pitfall for pitfall in large.pitfalls if "overflow" in pitfall]) == 1


def test_arrays_may_lie_on_a_device(rng, backend):
    def forward(W, b, x, y):
        z = W @ x + b
        a = np.tanh(z)
        return np.mean((a - y) ** 2)

    def hand(W, b, x, y):
        a = xp.tanh(W @ x + b)
        d = 2 * (a - y) / y.size
        e = d * (1 - a * a)
        return {"a": d, "z": e, "W": e @ x.T, "b": e.sum(axis=1, keepdims=True)}

    xp = arrays.library(backend.device)
    inputs = [backend.array(a) for a in drawn(rng, (3, 4), (3, 1), (4, 5), (3, 5))]
    assert set(verdicts(audit(forward, hand, *inputs)).values()) == {"pass"}
    report = audit(forward, lambda *inputs: {**hand(*inputs), "z": inputs[0] @ inputs[2]}, *inputs)
    assert report.wrong == ["z"]


# ---- what a caller may get wrong -------------------------------------------------------------------------------------


def square(w, n):
    z = w * w
    k = n + 1  # noqa: F841
    unused = np.exp(w)  # noqa: F841
    return np.sum(z)


ERRORS = {
    "no dict": ([2.0], "backward must return a dict, such as {'z1': delta1, 'W1': dW1}, not list"),
    "an empty dict": ({}, "backward returns an empty dict"),
    "a name that is none": ({"dz": 1.0}, "'dz', which is neither an argument nor a local variable of forward"),
    "a key that is no name": ({1: 1.0}, "the keys of backward's dict are names of quantities in forward, not 1"),
    "an integer": ({"n": 1.0}, "'n' is int in forward, and depends on no float input"),
    "made of integers": ({"k": 1.0}, "'k' is int in forward, and depends on no float input"),
    "not on the way to the loss": ({"unused": 1.0}, "the loss does not depend on 'unused': leave it out"),
    "complex": ({"w": 1j}, "backward gives complex128 for 'w': it must be an array of real numbers"),
    "None": ({"w": None}, "backward gives NoneType for 'w': it must be an array of real numbers"),
    "a ragged list": ({"w": [[1.0], [1.0, 2.0]]}, "backward gives list for 'w': it must be an array of real numbers"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_what_backward_returns_wrongly_is_said(what):
    found, message = ERRORS[what]
    with pytest.raises((TypeError, ValueError)) as error:
        audit(square, lambda w, n: found, np.ones(3), 1)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("forward", "inputs", "message"),
    [
        (lambda w: w * w, [np.ones(3)], "forward must return the loss, a Tensor of one element, not a Tensor of shape"),
        (lambda w: 1.0, [np.ones(3)], "forward must return the loss, a Tensor of one element, not float"),
        (lambda w: np.sum(Tensor(w)), [np.ones(3, int)], "the loss depends on no float input: write 0.0 instead of 0"),
        (lambda w: np.sum(w), [np.ones(3, complex)], "the input w is complex128; only real floats can be"),
        (3, [np.ones(3)], "audit needs two functions, then inputs: audit(forward, backward, W1, ...), not 3"),
    ],
)
def test_what_forward_does_wrongly_is_said(forward, inputs, message):
    with pytest.raises((TypeError, ValueError)) as error:
        audit(forward, lambda w: {"w": 2 * w}, *inputs)
    assert message in str(error.value)


def test_tested_on_names_arguments():
    with pytest.raises(ValueError, match="tested_on names 'X'; forward's arguments are w"):
        audit(lambda w: np.sum(w), lambda w: {"w": np.ones(3)}, np.ones(3), tested_on={"X": np.ones(3)})


# ---- pitfalls, reports, sources --------------------------------------------------------------------------------------


def test_the_same_range_in_training_and_in_testing_is_no_pitfall(rng):
    w, x = rng.random(3), rng.random(3)
    report = audit(lambda w, x: np.sum(w * x), lambda w, x: {"w": x}, w, x, tested_on={"x": 2 * x})
    assert report.pitfalls == []


def test_training_may_change_the_range_of_parameters(rng):
    b, x = np.zeros(3), rng.random(3)
    tested_on = {"b": np.ones(3), "x": 10 * x}
    report = audit(lambda b, x: np.sum(b * x), lambda b, x: {"b": x}, b, x, tested_on=tested_on)
    assert [pitfall.partition(":")[0] for pitfall in report.pitfalls] == ["x"]


def test_a_gradient_that_would_widen_its_parameter_is_right_and_a_pitfall(rng):
    b, x = drawn(rng, (3, 1), (3, 5))
    report = audit(lambda b, x: np.sum(b * x), lambda b, x: {"b": x.sum(axis=1)}, b, x)
    assert report.ok
    assert report.pitfalls == ["b has shape (3, 1), its gradient (3,): their difference would have shape (3, 3)"]


def test_a_pitfall_is_reported_once_and_inputs_stay_as_they_were(rng):
    def backward(w):
        w *= 2  # its own
        for _ in range(3):
            np.log(0 * w)
        return {"w": np.ones(3)}

    w = np.ones(3)
    report = audit(lambda w: np.sum(w), backward, w)
    assert len(report.pitfalls) == 1
    assert "divide by zero in backward, line" in report.pitfalls[0]
    assert "`np.log(0 * w)`" in report.pitfalls[0]
    assert (w == 1).all()


def test_a_report_is_a_table_sentences_and_json(rng):
    report = audit(forward, planting(1.0, "z2", EVERYWHERE["doubled"]), *points(rng))
    text = str(report).splitlines()
    assert text[0] == "audit: FAIL: 4 of 11 hand-derived arrays are gradients; wrong from z2 on"
    assert text[1].split() == ["gradient", "by", "kind", "verdict", "error", "cosine", "factor", "follows", "line"]
    assert text[2].split()[:6] == ["z3", "intermediate", "pass", *text[2].split()[3:6]]
    assert report.sentences[0].endswith("it is 2 times that; a2 before it is right")
    assert report.sentences[1] == "W2, b2, a1, z1, W1 and b1 are wrong because z2 is: their own lines are right"
    assert f"hint: {report.hints[0]}" in text
    assert "resolution" in text[-1]
    data = json.loads(report.to_json())
    assert (data["verdict"], data["first"], data["wrong"], data["ok"]) == ("fail", "z2", ["z2"], False)
    assert data["claims"][4]["name"] == "z2"
    assert data["claims"][4]["factor"] == pytest.approx(2)
    assert data["numeric"]["verdict"] == "pass"
    with pytest.raises(TypeError, match=r"use report\.ok"):
        assert report
    with pytest.raises(KeyError, match="z9"):
        report["z9"]


def test_the_same_seed_gives_the_same_report(rng):
    inputs = points(rng)
    first, again = (audit(forward, planting(), *inputs, seed=3).to_json() for _ in "ab")
    assert first == again


def made(function, **known):
    return {name: str(statement).partition(": ")[2] for name, statement in Source(function).makers(**known).items()}


def test_sources_say_which_statement_made_what():
    def f(x, w):
        cache = {"a": x}
        a, b = w * 2, w
        a += 1
        t = np.exp(b)
        c: float = t * 3
        e = (
            c +
            t
        )
        d = {"a": a, "b": b, "e": e}
        d["w"] = w
        return d, cache

    assert made(f) == {
        "a": "`a, b = w * 2, w; a += 1`",
        "b": "`a, b = w * 2, w`",
        "e": "`e = ( c + t )` with `t = np.exp(b)`",
        "w": "`w`",
    }
    assert made(f, known=["t"])["e"] == "`e = ( c + t )`"
    line = f.__code__.co_firstlineno
    assert [Source(f).makers()[name].line - line for name in "ab"] == [2, 2]
    assert [made(function) for function in (len, np.exp, 3)] == [{}, {}, {}]


def handed(e, w, *, rate):
    scaled = rate * w
    g = e * scaled
    return {"e": e, "w": w, "g": g, "rate": rate}


def test_sources_follow_what_is_handed_over():
    def f(x, w):
        error = x - w
        return handed(error, w, rate=0.5 * w)

    assert made(f) == {
        "e": "`error = x - w`", "w": "`w`", "g": "`g = e * scaled` with `scaled = rate * w`", "rate": "`0.5 * w`",
    }  # fmt: skip
    line = f.__code__.co_firstlineno
    assert Source(f).makers()["e"].line == line + 1
    assert Source(f).makers()["g"].line == handed.__code__.co_firstlineno + 2

    def g(*arrays):
        return handed(*arrays, rate=1.0)

    assert made(g)["e"] == "`e`"


def test_sources_show_what_never_runs():
    def f(x):
        if False:
            x = 1
        while 0:
            x = 2
        if x or False:
            x = 3
        return x

    first = f.__code__.co_firstlineno
    assert [(s.line - first, s.text) for s in Source(f).never_run()] == [(1, "if False:"), (3, "while 0:")]
