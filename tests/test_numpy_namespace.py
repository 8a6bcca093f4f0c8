"""`tinygrad_mnist.numpy`: NumPy's namespace for code that was written with `cp.`."""

import inspect

import numpy as np
import pytest

import tinygrad_mnist
import tinygrad_mnist.numpy as cp
from tinygrad_mnist import Tensor, numpy_api
from tinygrad_mnist.core import F


def leaf(values):
    return Tensor(np.array(values, np.float64), requires_grad=True)


def test_every_function_on_tensors_is_there():
    for function in numpy_api.TABLE:
        name = function.__name__
        if function is not np.linalg.norm:
            assert getattr(cp, name) is getattr(np, name)


@pytest.mark.parametrize(
    "f",
    [
        lambda xp, t: xp.dot(t, t.T),
        lambda xp, t: 1 / (1 + xp.exp(-t)),
        lambda xp, t: xp.maximum(0, t - 0.5),
        lambda xp, t: xp.sum(t, axis=0, keepdims=True),
        lambda xp, t: xp.where(t > 0.5, t, t * t),
        lambda xp, t: xp.concatenate([t, xp.ones((1, 3))], axis=0),
        lambda xp, t: xp.einsum("ij,kj->ik", t, t),
        lambda xp, t: xp.linalg.norm(t, axis=1),
        lambda xp, t: xp.clip(xp.mean(t, axis=1), 0.2, 0.8),
        lambda xp, t: xp.log(xp.square(t) + 1e-8) * xp.pi,
        lambda xp, t: xp.matmul(xp.eye(2), t)[xp.arange(2), [0, 2]],
        lambda xp, t: xp.expand_dims(t, -1) * xp.arange(4.0),
        lambda xp, t: xp.nansum(t),
    ],
)
def test_functions_record_and_give_what_numpys_give(f):
    values = np.array([[0.2, 0.4, 0.6], [0.8, 0.1, 0.3]])
    mine, theirs = leaf(values), leaf(values)
    y, z = f(cp, mine), f(np, theirs)
    assert isinstance(y, Tensor)
    assert y.requires_grad
    assert np.array_equal(y.data, f(np, values))
    y.backward(np.ones(y.shape))
    z.backward(np.ones(z.shape))
    assert np.array_equal(mine.grad, theirs.grad)


def test_arrays_stay_arrays():
    a = cp.array([[1.0, 2.0], [3.0, 4.0]])
    assert type(a) is np.ndarray
    assert type(cp.dot(a, a)) is np.ndarray
    assert cp.asarray([1, 2]).dtype == np.int64
    assert cp.float32 is np.float32
    assert cp.random.default_rng(0).random(2).shape == (2,)


def test_asnumpy_gives_a_copy_on_the_host():
    w = leaf([1.0, 2.0])
    for source in (w, w * 1, Tensor([1.0, 2.0]), np.array([1.0, 2.0]), [1.0, 2.0]):
        host = cp.asnumpy(source)
        assert type(host) is np.ndarray
        assert host.tolist() == [1, 2]
        host[0] = 9
    assert w.data.tolist() == [1, 2]


def test_names_that_numpy_does_not_have():
    with pytest.raises(AttributeError, match="no_such_function"):
        _ = cp.no_such_function
    assert "asnumpy" in dir(cp)
    assert "dot" in dir(cp)


def test_nothing_drops_silently():
    w = leaf([1.0, 2.0])
    for f, message in [
        (lambda: cp.asarray(w), "untracked array"),
        (lambda: cp.array([w, w]), "untracked array"),
        (lambda: cp.linalg.inv(w), "np.linalg.inv has no gradient rule"),
        (lambda: cp.exp(w, out=np.ones(2)), "out="),
    ]:
        with pytest.raises(TypeError, match=message):
            f()


def test_the_package_itself_has_the_functions_under_numpys_names():
    w = leaf([[1.0, -2.0], [3.0, 4.0]])
    for y, z in [
        (tinygrad_mnist.where(w > 0, w, 0), np.where(w > 0, w, 0)),
        (tinygrad_mnist.concatenate([w, w]), np.concatenate([w, w])),
        (tinygrad_mnist.stack([w, w], axis=1), np.stack([w, w], axis=1)),
        (tinygrad_mnist.sum(w, axis=0), np.sum(w, axis=0)),
        (tinygrad_mnist.maximum(0, w), np.maximum(0, w)),
    ]:
        assert isinstance(y, Tensor)
        assert np.array_equal(y.data, z.data)
    for name in ("relu", "sigmoid", "tanh", "softmax", "log_softmax", "logsumexp", "where", "exp", "einsum"):
        assert getattr(tinygrad_mnist, name) is getattr(F, name)
        assert name in dir(tinygrad_mnist)
    with pytest.raises(AttributeError, match="no_such_function"):
        _ = tinygrad_mnist.no_such_function
    with pytest.raises(AttributeError, match="no function 'no_such_function' on Tensors"):
        _ = F.no_such_function


def test_functions_of_the_package_take_arrays_and_numbers_too():
    """They return Tensors all the same: the caller asked this library."""
    for y in (tinygrad_mnist.exp(np.zeros(2)), tinygrad_mnist.where([True], 1.0, 0.0), tinygrad_mnist.relu(-1.0)):
        assert isinstance(y, Tensor)
        assert not y.requires_grad


def test_every_function_has_a_docstring():
    for name, f in vars(F).items():
        if inspect.isfunction(f) and f.__module__.startswith(tinygrad_mnist.__name__) and not name.startswith("_"):
            assert f.__doc__, name
