"""The forward code of the five notebooks, in their own words, on Tensor weights; and what they derived by hand.

Nothing is changed in a forward but what had to be: `*` between matrices became `@` (C), `b2 = 0` a float64 zero (B),
and `cp` is the drop-in namespace (E). The gradients are compared with the notebooks' own formulas where these are
right, and with central differences where they are not.
"""

import numpy as np
import pytest
from small import notebook

from tinygrad_mnist import Tensor, grad, notebooks, value_and_grad
from tinygrad_mnist.notebooks import batch_gd_sigmoid_mse, deep_500_250_100, mse_2_3_1

RIGHT = ["A", "B", "D relu", "E"]
WRONG = {  # what of their weights' gradients is nevertheless right
    "A'": set(), "C": set(), "D sigmoid": {"W4", "b4"}, "D tanh": {"W4", "b4"},
}  # fmt: skip


def case(name):
    """(notebook, weights, samples, keywords) of a notebook, or of one of its variants as 'D tanh'."""
    letter, _, variant = name.partition(" ")
    found, weights, samples = notebook(letter)
    return found, weights, samples, found.variants[variant or next(iter(found.variants))]


def derived(f, weights, samples, **keywords):
    """(value, gradients by name)."""
    places = tuple(range(len(weights)))
    value, gradients = value_and_grad(lambda *args: f(*args, **keywords), places)(*weights.values(), *samples.values())
    return value, dict(zip(weights, gradients, strict=True))


def close(actual, expected, rtol=1e-12):
    scale = np.abs(expected).max()
    assert scale > 0
    assert np.shape(actual) == np.shape(expected)
    assert np.abs(actual - expected).max() <= rtol * scale


def check_differences(f, weights, samples, h=1e-5, rtol=1e-6, count=12, **keywords):
    """Derived gradients against central differences in some of their elements."""
    rng = np.random.default_rng(5)
    for name, gradient in derived(f, weights, samples, **keywords)[1].items():
        scale = np.abs(gradient).max()
        assert scale > 0
        for place in {tuple(rng.integers(0, n) for n in gradient.shape) for _ in range(count)}:
            sides = []
            for step in (h, -h):
                moved = weights[name].copy()
                moved[place] += step
                sides.append(float(f(**{**weights, name: moved}, **samples, **keywords)))
            assert abs(gradient[place] - (sides[0] - sides[1]) / (2 * h)) <= rtol * scale


@pytest.mark.parametrize("name", [*notebooks.MODULES, "B' linear", "D tanh", "D relu"])
def test_forward_gives_arrays_and_tensors_the_same_and_its_gradients_are_right(name):
    found, weights, samples, keywords = case(name)
    value, _ = derived(found.forward, weights, samples, **keywords)
    assert float(found.forward(**weights, **samples, **keywords)) == float(value)
    check_differences(found.forward, weights, samples, **keywords)


@pytest.mark.parametrize("name", RIGHT)
def test_what_was_derived_by_hand_and_is_right(name):
    found, weights, samples, keywords = case(name)
    by_hand = found.backward(**weights, **samples, **keywords)
    for weight, gradient in derived(found.forward, weights, samples, **keywords)[1].items():
        close(by_hand[weight], gradient, rtol=1e-12)


@pytest.mark.parametrize("name", WRONG)
def test_what_was_derived_by_hand_and_is_wrong(name):
    found, weights, samples, keywords = case(name)
    by_hand = found.backward(**weights, **samples, **keywords)
    for weight, gradient in derived(found.forward, weights, samples, **keywords)[1].items():
        assert np.shape(by_hand[weight]) == np.shape(gradient)
        off = np.abs(by_hand[weight] - gradient).max() / np.abs(gradient).max()
        assert (off < 1e-12) if weight in WRONG[name] else (off > 0.01)


# ---- A'


def test_notebook_a_in_full_batches():
    """What A' means to do: the gradient of the mean over the samples is the mean of theirs."""
    found, weights, samples = notebook("A'")
    single = notebooks.load("A").forward
    _, gradients = derived(found.forward, weights, samples)
    columns = [{"x": x[:, None], "y": y[:, None]} for x, y in zip(samples["X"].T, samples["Y"].T, strict=True)]
    each = [derived(single, weights, column)[1] for column in columns]
    for name, gradient in gradients.items():
        close(gradient, np.mean([g[name] for g in each], axis=0))


def test_notebook_a_prime_reports_the_squares_of_running_sums():
    found, weights, samples = notebook("A'")
    X, Y = samples.values()
    errors = batch_gd_sigmoid_mse.output(**weights, x=X) - Y
    E = LES = 0
    for k in range(X.shape[1]):
        E = E + errors[:, [k]]
        LES = LES + E**2
    close(found.reported_cost(**weights, **samples), np.sum(LES) / (2 * X.shape[1]))
    check_differences(found.reported_cost, weights, samples)


def test_notebook_a_prime_by_hand_is_the_same_without_its_loop():
    found, weights, samples = notebook("A'")
    by_hand, at_once = (f(**weights, **samples) for f in (found.backward, batch_gd_sigmoid_mse.at_once))
    assert list(by_hand) == list(at_once)
    for name in by_hand:
        close(at_once[name], by_hand[name])


# ---- B


def test_notebook_b_golden_numbers_to_every_printed_digit():
    found = notebooks.load("B")
    rng = np.random.RandomState(0)
    weights = {name: Tensor(W, requires_grad=True) for name, W in found.initial(rng).items()}
    X, Y = rng.rand(1000, 2), rng.randint(low=0, high=2, size=(1000,))
    L = found.forward(**weights, X=X, Y=Y)
    L.backward()
    assert mse_2_3_1.printed(L.item()) == mse_2_3_1.REPORTED["L"] == "0.1332476222330792"
    for name, W in weights.items():
        assert mse_2_3_1.printed(W.grad) == mse_2_3_1.REPORTED[name]


# ---- B'


@pytest.mark.parametrize("first", ["linear", "relu"])
def test_notebook_b_prime_softmax_crossentropy(first):
    """With softmax and logarithm written out, and by hand."""
    found, weights, samples = notebook("B'")
    X, labels = samples.values()
    Y = np.eye(10)[labels]

    def written_out(W1, b1, W2, b2, W3, b3, X, y):
        H1 = np.dot(X, W1) + b1
        if first == "relu":
            H1 = np.maximum(0, H1)
        H2 = np.maximum(0, np.dot(H1, W2) + b2)
        Z3 = np.dot(H2, W3) + b3
        P = np.exp(Z3) / np.sum(np.exp(Z3), axis=1, keepdims=True)
        return -np.mean(np.sum(Y * np.log(P), axis=1)), H1, H2, P

    value, gradients = derived(lambda *args: written_out(*args)[0], weights, samples)
    _, H1, H2, P = written_out(*weights.values(), *samples.values())
    d3 = (P - Y) / len(X)
    d2 = (d3 @ weights["W3"].T) * (H2 > 0)
    d1 = (d2 @ weights["W2"].T) * ((H1 > 0) if first == "relu" else 1)
    by_hand = [X.T @ d1, d1.sum(0), H1.T @ d2, d2.sum(0), H2.T @ d3, d3.sum(0)]
    stable, same = derived(found.forward, weights, samples, first=first)
    assert np.isclose(stable, value, rtol=1e-14)
    for name, expected in zip(weights, by_hand, strict=True):
        close(gradients[name], expected)
        close(same[name], expected)


# ---- C


def test_notebook_c_on_matrices():
    """There, all data are np.matrix."""
    found, weights, samples = notebook("C")
    x, y = (a.view(np.matrix) for a in samples.values())
    matrices = {name: Tensor(W.view(np.matrix), requires_grad=True) for name, W in weights.items()}
    loss = found.forward(**matrices, x=x, y=y)
    loss.backward()
    value, gradients = derived(found.forward, weights, samples)
    assert loss.item() == value
    for name, W in matrices.items():
        assert type(W.grad) is np.ndarray
        close(W.grad, gradients[name], rtol=1e-15)


def test_notebook_c_subtracts_1_from_every_class_that_ties_with_the_true_one():
    found, weights, samples = notebook("C")
    weights = {**weights, "W3": np.zeros_like(weights["W3"]), "b3": np.zeros_like(weights["b3"])}
    assert np.allclose(found.backward(**weights, **samples)["z3"], (0.1 - 1) / 10)


# ---- D


@pytest.mark.parametrize("activation", deep_500_250_100.VARIANTS)
def test_notebook_d_cost_and_penalty(activation):
    found, weights, samples, keywords = case(f"D {activation}")
    check_differences(found.reported_cost, weights, samples, **keywords)
    penalised, gradients = derived(found.forward, weights, samples, penalty=0.7, **keywords)
    value, plain = derived(found.forward, weights, samples, **keywords)
    share = 0.7 / len(samples["X"].T)
    squares = [np.linalg.norm(W) ** 2 for name, W in weights.items() if name.startswith("W")]
    assert np.isclose(penalised, value + share / 2 * sum(squares), rtol=1e-13)
    for name, W in weights.items():
        close(gradients[name], plain[name] + (share * W if name.startswith("W") else 0))


def test_notebook_d_cost_counts_nan_as_zero():
    """`log(0) * 0` in its cost is NaN where the softmax saturates; nansum hides it."""
    found, weights, samples, keywords = case("D relu")
    weights["W4"][:], weights["b4"][:] = 0, 0
    weights["b4"][3] = 600.0  # exp(-600) is so small that 1 - A4 of class 3 is 0
    samples["Y"][:] = np.eye(10)[:, [3]]
    with np.errstate(all="ignore"):
        assert np.isnan(np.log(0.0) * 0)
        assert abs(float(found.reported_cost(**weights, **samples, **keywords))) < 1e-12


# ---- E


def test_notebook_e_may_draw_its_own_weights_in_the_namespace():
    import tinygrad_mnist.numpy as cp

    found, _, samples = notebook("E")
    cp.random.seed(0)
    weights = [Tensor(cp.random.randn(*n) * 0.3, requires_grad=True) for n in ((32, 49), (32, 1), (16, 32), (16, 1))]
    weights += [Tensor(a, requires_grad=True) for a in (cp.random.randn(10, 16), cp.zeros((10, 1)))]
    loss = found.forward(*weights, *samples.values())
    loss.backward()
    expected = grad(found.forward, tuple(range(6)))(*(W.data for W in weights), *samples.values())
    for W, gradient in zip(weights, expected, strict=True):
        close(W.grad, gradient)
    assert cp.asnumpy(W).shape == (10, 1)
