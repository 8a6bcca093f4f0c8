"""Operations that users register with `@primitive`: what they may do, and what stops them early."""

import gc

import numpy as np
import pytest

from tinygrad_mnist import Tensor, grad, primitive
from tinygrad_mnist.core import F


@pytest.fixture(autouse=True)
def forget_what_tests_register():
    before = dict(vars(F))
    yield
    vars(F).clear()
    vars(F).update(before)
    gc.collect()


def test_a_primitive_may_bear_the_name_of_a_library_function_that_it_uses():
    @primitive(lambda xp, g, y, a: g * (xp.cos(np.pi * a) - y) / a)
    def sinc(xp, a):
        return xp.sinc(a)

    a = np.array([0.3, 1.7])
    step = 1e-6
    assert np.array_equal(sinc(a).data, np.sinc(a))
    assert np.allclose(grad(lambda a: np.sum(sinc(a)))(a), (np.sinc(a + step) - np.sinc(a - step)) / (2 * step))
    assert np.array_equal(grad(lambda a: np.sum(np.sinc(a)))(a), grad(lambda a: np.sum(sinc(a)))(a))


@pytest.mark.parametrize("name", ["exp", "ravel", "mean", "dot", "mse"])
def test_functions_of_the_package_cannot_be_replaced(name):
    def kernel(xp, a):
        return a

    kernel.__name__ = name
    with pytest.raises(ValueError, match=f"'{name}' is a function of this package: choose another name"):
        primitive(lambda xp, g, *_: g)(kernel)


def test_a_primitive_may_be_defined_again_as_a_notebook_cell_does():
    for factor in (2.0, 3.0):

        @primitive(lambda xp, g, *_, factor=factor: factor * g)
        def scaled(xp, a, *, factor=factor):
            return factor * a

        assert grad(lambda x: np.sum(scaled(x)))(np.ones(2)).tolist() == [factor, factor]


def test_the_number_of_rules_is_checked_at_once():
    with pytest.raises(TypeError, match="'twice' has 2 operands but 1 rules; None stands for no rule"):

        @primitive(lambda xp, g, *_: g)
        def twice(xp, a, b):
            return a + b


def test_an_error_inside_a_rule_says_where():
    @primitive(lambda xp, g, y, a: g @ xp.sum(a))
    def broken(xp, a):
        return a * 1

    y = np.sum(broken(Tensor(np.ones((2, 3)), requires_grad=True)))
    with pytest.raises(ValueError, match="matmul") as caught:
        y.backward()
    assert caught.value.__notes__[0].startswith("in the rule of broken for operand 0, recorded")
    with pytest.raises(RuntimeError, match="or run the forward pass again if it stopped with an error"):
        y.backward()


def test_an_error_inside_a_kernel_keeps_its_traceback():
    @primitive(lambda xp, g, *_: g)
    def bad(xp, a):
        return len(3)

    with pytest.raises(TypeError, match="bad: cannot compute it on") as caught:
        bad(Tensor([1.0]))
    assert "object of type 'int' has no len()" in str(caught.value.__cause__)


def test_a_parameter_that_a_rule_returns_is_not_written_to():
    @primitive(lambda xp, g, y, _a, *, w: w)
    def weighted(xp, a, *, w):
        return xp.sum(a * w)

    x, w = Tensor(np.ones(2), requires_grad=True), np.ones(2)
    (weighted(x, w=w) + weighted(x, w=w)).backward()
    assert w.tolist() == [1, 1]
    assert not np.shares_memory(x.grad, w)
