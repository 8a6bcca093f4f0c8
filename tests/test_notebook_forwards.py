"""The forward code of five notebooks that derived their gradients by hand, in their own words, on Tensor weights.

Nothing is changed in it but what had to be: `*` between matrices became `@` (C), `b2 = 0` a float64 zero (B), and `cp`
is the drop-in namespace (E). The gradients are compared with the notebooks' own formulas where these are right, and
with central differences where they are not.
"""

import numpy as np
import pytest

import tinygrad_mnist.numpy as cp
from tinygrad_mnist import Tensor, grad, softmax_cross_entropy


def weights(*values):
    return [Tensor(np.array(v), requires_grad=True) for v in values]


def one_hot(labels, classes):
    return np.eye(classes)[labels]


def s(z):
    return 1 / (1 + np.exp(-z))


def close(actual, expected, rtol=1e-12):
    scale = np.abs(expected).max()
    assert scale > 0
    assert np.shape(actual) == np.shape(expected)
    assert np.abs(actual - expected).max() <= rtol * scale


def check_differences(loss, tensors, rng, h=1e-5, rtol=1e-6, count=12):
    """`.grad` of the Tensors against central differences of `loss()` in some of their elements."""
    for t in tensors:
        scale = np.abs(t.grad).max()
        assert scale > 0
        for place in {tuple(rng.integers(0, n) for n in t.shape) for _ in range(count)}:
            value = t.data[place]
            sides = []
            for step in (h, -h):
                t.data[place] = value + step
                sides.append(float(loss()))
            t.data[place] = value
            assert abs(t.grad[place] - (sides[0] - sides[1]) / (2 * h)) <= rtol * scale


@pytest.fixture
def rng():
    return np.random.default_rng(5)


# ---- A: sigmoid on all layers, squared error, one sample a step, columns -----------------------------------------


def test_notebook_a_sigmoid_mse(rng):
    x, y = rng.random((784, 1)), one_hot([3], 10).T
    W1, W2, W3, W4 = weights(*(rng.normal(size=n) for n in ((784, 150), (150, 100), (100, 50), (50, 10))))

    Z1 = 1 / (1 + np.exp(-np.dot(W1.T, x)))
    Z2 = 1 / (1 + np.exp(-np.dot(W2.T, Z1)))
    Z3 = 1 / (1 + np.exp(-np.dot(W3.T, Z2)))
    Z4 = 1 / (1 + np.exp(-np.dot(W4.T, Z3)))
    loss = 0.5 * np.sum((Z4 - y) ** 2)
    loss.backward()

    Z1, Z2, Z3, Z4 = (t.numpy() for t in (Z1, Z2, Z3, Z4))
    e = Z4 - y
    T1 = np.ones((50, 1)) @ (Z4 * (1 - Z4)).T
    close(W4.grad, e.T * (T1 * Z3))
    B = e.T @ (W4.data * T1).T
    T2 = np.ones((100, 1)) @ (Z3 * (1 - Z3)).T
    close(W3.grad, B * (T2 * Z2))
    C = B @ (T2 * W3.data).T
    T3 = np.ones((150, 1)) @ (Z2 * (1 - Z2)).T
    close(W2.grad, C * (T3 * Z1))
    D = C @ (T3 * W2.data).T
    T4 = np.ones((784, 1)) @ (Z1 * (1 - Z1)).T
    close(W1.grad, D * (T4 * x))


def test_notebook_a_in_full_batches(rng):
    """What A' meant to do: the gradient of the mean over the samples is the mean of theirs."""
    X, Y = rng.random((20, 30)), one_hot(rng.integers(0, 4, 30), 4).T
    values = [rng.normal(size=n) for n in ((20, 8), (8, 4))]
    W1, W2 = weights(*values)

    def cost(W1, W2, X, Y):
        Z = s(np.dot(W2.T, s(np.dot(W1.T, X))))
        return np.mean(0.5 * np.sum((Z - Y) ** 2, axis=0))

    cost(W1, W2, X, Y).backward()
    single = [grad(cost, (0, 1))(*values, X[:, [k]], Y[:, [k]]) for k in range(30)]
    close(W1.grad, np.mean([g[0] for g in single], axis=0))
    close(W2.grad, np.mean([g[1] for g in single], axis=0))


# ---- B: the golden numbers ----------------------------------------------------------------------------------------


def printed(a):
    """As NumPy prints it by default, without the padding."""
    with np.printoptions(precision=8, suppress=False):
        return np.array2string(a, separator=",").replace(" ", "").replace("\n", "")


def test_notebook_b_golden_numbers_to_every_printed_digit():
    np.random.seed(0)  # noqa: NPY002  (the notebook's numbers come from this generator)
    W1, b1, W2 = weights(np.random.randn(3, 2), np.zeros(3), np.random.randn(3))  # noqa: NPY002
    (b2,) = weights(np.float64(0))
    X = np.random.rand(1000, 2)  # noqa: NPY002
    Y = np.random.randint(low=0, high=2, size=(1000,))  # noqa: NPY002

    H = 1 / (1 + np.exp(-(np.dot(X, W1.T) + b1)))
    P = 1 / (1 + np.exp(-(np.dot(H, W2.T) + b2)))
    L = 1 / (2 * 1000) * np.sum(np.square(P - Y))
    L.backward()

    assert repr(L.item()) == "0.1332476222330792"
    assert printed(W1.grad) == "[[0.00244596,0.00262019],[-0.00030765,-0.00024188],[-0.00034768,-0.000372]]"
    assert printed(W2.grad) == "[0.02216011,0.02433097,0.01797174]"
    assert printed(b1.grad) == "[0.00492577,-0.00058023,-0.00065977]"
    assert repr(b2.grad.item()) == "0.029249230265318685"

    H, P, N = H.numpy(), P.numpy(), 1000
    dP = (P - Y) / N
    Z2 = np.dot(H, W2.data.T) + b2.data
    dZ2 = dP * s(Z2) * (1 - s(Z2))
    close(W2.grad, H.T @ dZ2)
    close(b2.grad, np.sum(dZ2))
    dH = np.outer(dZ2, W2.data)
    Z1 = np.dot(X, W1.data.T) + b1.data
    dZ1 = dH * s(Z1) * (1 - s(Z1))
    close(W1.grad, dZ1.T @ X)
    close(b1.grad, np.sum(dZ1, 0))


# ---- B': 784-128-64-10, the first layer linear as printed or relu as logged ---------------------------------------


@pytest.mark.parametrize("first", ["linear", "relu"])
def test_notebook_b_prime_softmax_crossentropy(rng, first):
    X, labels = rng.random((144, 784)), rng.integers(0, 10, 144)
    Y = one_hot(labels, 10)
    W1, b1, W2, b2, W3, b3 = weights(
        *(rng.uniform(-m, m, n) for n, m in [((784, 128), 0.08), ((128,), 0.1), ((128, 64), 0.18), ((64,), 0.1)]),
        *(rng.uniform(-m, m, n) for n, m in [((64, 10), 0.28), ((10,), 0.1)]),
    )

    H1 = np.dot(X, W1) + b1
    if first == "relu":
        H1 = np.maximum(0, H1)
    H2 = np.maximum(0, np.dot(H1, W2) + b2)
    Z3 = np.dot(H2, W3) + b3
    P = np.exp(Z3) / np.sum(np.exp(Z3), axis=1, keepdims=True)
    loss = -np.mean(np.sum(Y * np.log(P), axis=1))
    loss.backward(retain_graph=True)

    P, H1, H2 = P.numpy(), H1.numpy(), H2.numpy()
    d3 = (P - Y) / 144
    d2 = (d3 @ W3.data.T) * (H2 > 0)
    d1 = (d2 @ W2.data.T) * ((H1 > 0) if first == "relu" else 1)
    expected = [X.T @ d1, d1.sum(0), H1.T @ d2, d2.sum(0), H2.T @ d3, d3.sum(0)]
    for t, g in zip((W1, b1, W2, b2, W3, b3), expected, strict=True):
        close(t.grad, g)
        t.zero_grad()
    stable = softmax_cross_entropy(Z3, labels)
    assert np.isclose(stable.item(), loss.item(), rtol=1e-14)
    stable.backward()
    for t, g in zip((W1, b1, W2, b2, W3, b3), expected, strict=True):
        close(t.grad, g)


# ---- C: np.matrix, columns, Python's sum in the softmax -----------------------------------------------------------


def test_notebook_c_matrices_relu_softmax(rng):
    x = rng.random((16, 1)).view(np.matrix)
    y = one_hot([4], 10).T.view(np.matrix)
    W1, b1, W2, b2, W3, b3 = (
        Tensor(rng.normal(0, 0.5, n).view(np.matrix), requires_grad=True)
        for n in ((16, 20), (20, 1), (20, 15), (15, 1), (15, 10), (10, 1))
    )

    def forward():
        z1 = W1.T @ x + b1
        a1 = np.maximum(0, z1)
        z2 = W2.T @ a1 + b2
        a2 = np.maximum(0, z2)
        z3 = W3.T @ a2 + b3
        a3 = np.exp(z3) / sum(np.exp(z3))
        return z1, a1, z2, a2, a3, -np.sum(np.multiply(y, np.log(a3)))

    z1, a1, z2, a2, a3, loss = forward()
    loss.backward()
    check_differences(lambda: forward()[-1], (W1, b1, W2, b2, W3, b3), rng)
    assert all(type(t.grad) is np.ndarray for t in (W1, b1))

    z1, a1, z2, a2, a3 = (t.numpy() for t in (z1, a1, z2, a2, a3))
    x, y = np.asarray(x), np.asarray(y)
    delta3 = a3 - y
    delta2 = (z2 > 0) * (W3.data @ delta3)
    delta1 = (z1 > 0) * (W2.data @ delta2)
    for W, b, a, delta in ((W1, b1, x, delta1), (W2, b2, a1, delta2), (W3, b3, a2, delta3)):
        close(W.grad, a @ delta.T)
        close(b.grad, delta)


# ---- D: batches as columns, naive tanh and softmax, a cost of two terms under nansum ------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def tanh(x):
    return (np.exp(x) - np.exp(-x)) / (np.exp(x) + np.exp(-x))


def relu(x):
    return np.maximum(0, x)


SLOPES = {sigmoid: lambda a: a * (1 - a), tanh: lambda a: 1 - a * a, relu: lambda a: a > 0}  # by the activation's value


@pytest.mark.parametrize("activation", SLOPES)
@pytest.mark.parametrize("cost", ["cross-entropy", "reported", "with L2"])
def test_notebook_d_deep(rng, activation, cost):
    m, sizes = 8, [(12, 9), (9, 7), (7, 6), (6, 4)]
    X, Y = rng.random((12, m)), one_hot(rng.integers(0, 4, m), 4).T
    limits = [np.sqrt(6 / sum(n)) for n in sizes]
    parameters = weights(
        *(rng.uniform(-limit, limit, n[::-1]) for n, limit in zip(sizes, limits, strict=True)),
        *(rng.uniform(-0.1, 0.1, (n[1], 1)) for n in sizes),
    )
    W1, W2, W3, W4, b1, b2, b3, b4 = parameters

    def forward():
        A1 = activation(np.dot(W1, X) + b1)
        A2 = activation(np.dot(W2, A1) + b2)
        A3 = activation(np.dot(W3, A2) + b3)
        Z4 = np.dot(W4, A3) + b4
        A4 = np.exp(Z4) / np.sum(np.exp(Z4), axis=0)
        if cost == "cross-entropy":
            J = np.nansum(-np.log(A4) * Y) / m
        else:
            J = np.nansum(-np.log(A4) * Y - np.log(1 - A4) * (1 - Y)) / m
        if cost == "with L2":
            J = J + 0.7 / (2 * m) * (np.sum(W1**2) + np.sum(np.square(W2)) + np.linalg.norm(W3) ** 2 + (W4 * W4).sum())
        return A1, A2, A3, A4, J

    A1, A2, A3, A4, J = forward()
    J.backward()
    check_differences(lambda: forward()[-1], parameters, rng)

    if cost == "cross-entropy":  # what the notebook's formulas differentiate; its slopes are right for relu alone
        A1, A2, A3, A4 = (t.numpy() for t in (A1, A2, A3, A4))
        slope = SLOPES[activation]
        dZ4 = A4 - Y
        dZ3 = W4.data.T @ dZ4 * slope(A3)
        dZ2 = W3.data.T @ dZ3 * slope(A2)
        dZ1 = W2.data.T @ dZ2 * slope(A1)
        rows = [(W1, b1, X, dZ1), (W2, b2, A1, dZ2), (W3, b3, A2, dZ3), (W4, b4, A3, dZ4)]
        for W, b, A, dZ in rows:
            close(W.grad, dZ @ A.T / m)
            close(b.grad, np.sum(dZ, axis=1, keepdims=True) / m)


def test_notebook_d_cost_counts_nan_as_zero():
    """`log(0) * 0` in its cost is NaN where the softmax saturates; nansum hides it."""
    A, Y = Tensor(np.array([[1.0, 0.5], [0.0, 0.5]])), np.array([[1.0, 0.0], [0.0, 1.0]])
    with np.errstate(all="ignore"):
        J = np.nansum(-np.log(A) * Y - np.log(1 - A) * (1 - Y)) / 2
    assert np.isclose(J.item(), np.log(2))


# ---- E: CuPy's namespace, the whole set as one matrix -------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_notebook_e_cupy_full_batch(eps):
    cp.random.seed(0)
    m = 64
    X = cp.random.rand(49, m)
    labels = cp.random.randint(0, 10, m)
    E = cp.zeros((10, m))
    E[labels, cp.arange(m)] = 1
    W1 = Tensor(cp.random.randn(32, 49) * 0.1, requires_grad=True)
    W2 = Tensor(cp.random.randn(16, 32) * 0.3, requires_grad=True)
    W3 = Tensor(cp.random.randn(10, 16) * 0.3, requires_grad=True)
    b1, b2, b3 = (Tensor(cp.zeros((n, 1)), requires_grad=True) for n in (32, 16, 10))

    A1 = cp.dot(W1, X) + b1
    H1 = cp.maximum(A1, 0)
    A2 = cp.dot(W2, H1) + b2
    H2 = cp.maximum(A2, 0)
    A3 = cp.dot(W3, H2) + b3
    H3 = cp.exp(A3) / cp.sum(cp.exp(A3), axis=0)
    loss = -cp.mean(cp.sum(E * cp.log(H3 + eps), axis=0))
    loss.backward()
    assert isinstance(loss, Tensor)
    accuracy = cp.mean(cp.argmax(H3, axis=0) == labels)
    assert 0 <= float(accuracy) <= 1

    A1, H1, A2, H2, H3 = (cp.asnumpy(t) for t in (A1, H1, A2, H2, H3))
    dA3 = (H3 - E) / m
    dA2 = np.dot(W3.data.T, dA3) * (A2 > 0)
    dA1 = np.dot(W2.data.T, dA2) * (A1 > 0)
    for W, b, H, dA in ((W1, b1, X, dA1), (W2, b2, H1, dA2), (W3, b3, H2, dA3)):
        close(W.grad, dA @ H.T, rtol=1e-6 if eps else 1e-12)
        close(b.grad, np.sum(dA, axis=1, keepdims=True), rtol=1e-6 if eps else 1e-12)
