"""Operations that users register with `@primitive`: what they may do, and what stops them early."""

import math

import numpy as np
import pytest

from tinygrad_mnist import Tensor, grad, primitive

pytestmark = pytest.mark.usefixtures("forget_what_tests_register")


def test_a_primitive_may_bear_the_name_of_a_library_function_that_it_uses(backend):
    @primitive(lambda xp, g, *_: g * (math.pi / 180))
    def deg2rad(xp, a):
        return xp.deg2rad(a)

    there = backend.array(np.array([0.5, 90.0]))
    np.testing.assert_allclose(backend.host(deg2rad(there).data), [math.pi / 360, math.pi / 2], rtol=1e-15)
    for f in deg2rad, np.deg2rad:
        slope = backend.host(grad(lambda a, f=f: np.sum(f(a) ** 2))(there))
        np.testing.assert_allclose(slope, np.array([1, 180]) * (math.pi / 180) ** 2, rtol=1e-14)


def test_a_primitive_with_two_operands_and_a_parameter(backend):
    @primitive(
        lambda xp, g, _y, a, b, *, p: g * p * xp.sign(a - b) * xp.power(xp.absolute(a - b), p - 1),
        lambda xp, g, _y, a, b, *, p: -g * p * xp.sign(a - b) * xp.power(xp.absolute(a - b), p - 1),
    )
    def distance(xp, a, b, *, p=3.0):
        return xp.power(xp.absolute(a - b), p)

    a, b = np.array([[1.0, 2.0], [3.0, 5.0]]), np.array([0.5, 7.0])
    for p in 2.0, 3.0:
        first, second = (
            backend.host(g)
            for g in grad(lambda a, b, p=p: np.sum(distance(a, b, p=p)), (0, 1))(backend.array(a), backend.array(b))
        )
        slope = p * np.sign(a - b) * abs(a - b) ** (p - 1)
        np.testing.assert_allclose(first, slope, rtol=1e-14)
        np.testing.assert_allclose(second, -slope.sum(0), rtol=1e-14)
    curvature = grad(lambda a: np.sum(grad(lambda a: np.sum(distance(a, backend.array(b))))(a)))(backend.array(a))
    np.testing.assert_allclose(backend.host(curvature), 6 * abs(a - b), rtol=1e-13)


def test_a_primitive_of_any_number_of_operands(backend):
    @primitive(lambda xp, g, _y, i, *_operands: (i + 1) * g, variadic=True)
    def weighed(xp, *operands):
        return sum((i + 1) * a for i, a in enumerate(operands))

    values = [np.array([1.0, 2.0]), np.array(3.0), np.array([[4.0], [5.0]])]
    tensors = [Tensor(backend.array(v), requires_grad=True) for v in values]
    y = weighed(tensors)
    y.backward(backend.array(np.ones((2, 2))))
    np.testing.assert_array_equal(backend.host(y.data), values[0] + 2 * values[1] + 3 * values[2])
    assert [backend.host(t.grad).tolist() for t in tensors] == [[2, 2], 8, [[6], [6]]]


def test_a_primitive_may_call_a_kernel_of_the_device(device):
    """In CUDA C++, for what the functions of the library do not say: `xp` is the library itself."""

    @primitive(lambda xp, g, _y, a: 3 * g * a * a)
    def cube(xp, a):
        return xp.ElementwiseKernel("T a", "T y", "y = a * a * a", "cube")(a)

    t = Tensor(np.array([1.0, -2.0, 3.0]), device=device, requires_grad=True)
    y = cube(t)
    y.sum().backward()
    assert (y.tolist(), t.grad.tolist()) == ([1, -8, 27], [3, 12, 27])


@pytest.mark.parametrize("name", ["exp", "ravel", "mean", "dot", "mse"])
def test_functions_of_the_package_cannot_be_replaced(name):
    def kernel(xp, a):
        return a

    kernel.__name__ = name
    with pytest.raises(ValueError, match=f"'{name}' is a function of this package: choose another name"):
        primitive(lambda xp, g, *_: g)(kernel)


def test_a_primitive_may_be_defined_again_as_a_notebook_cell_does(backend):
    for factor in (2.0, 3.0):

        @primitive(lambda xp, g, *_, factor=factor: factor * g)
        def scaled(xp, a, *, factor=factor):
            return factor * a

        assert grad(lambda x: np.sum(scaled(x)))(backend.array(np.ones(2))).tolist() == [factor, factor]


def test_the_number_of_rules_is_checked_at_once():
    with pytest.raises(TypeError, match="'twice' has 2 operands but 1 rules; None stands for no rule"):

        @primitive(lambda xp, g, *_: g)
        def twice(xp, a, b):
            return a + b


def test_an_error_inside_a_rule_says_where(backend):
    @primitive(lambda xp, g, y, _a: xp.reshape(g, (7,)))
    def broken(xp, a):
        return a * 1

    y = np.sum(broken(Tensor(backend.array(np.ones((2, 3))), requires_grad=True)))
    with pytest.raises(ValueError, match="cannot reshape") as caught:
        y.backward()
    assert caught.value.__notes__[0].startswith("in the rule of broken for operand 0, recorded")
    with pytest.raises(RuntimeError, match="or run the forward pass again if it stopped with an error"):
        y.backward()


def test_an_error_inside_a_kernel_keeps_its_traceback(backend):
    @primitive(lambda xp, g, *_: g)
    def bad(xp, a):
        return len(3)

    with pytest.raises(TypeError, match="bad: cannot compute it on") as caught:
        bad(Tensor(backend.array(np.ones(1))))
    assert "object of type 'int' has no len()" in str(caught.value.__cause__)


def test_a_parameter_that_a_rule_returns_is_not_written_to(backend):
    @primitive(lambda xp, g, y, _a, *, w: w)
    def weighted(xp, a, *, w):
        return xp.sum(a * w)

    x, w = Tensor(backend.array(np.ones(2)), requires_grad=True), backend.array(np.ones(2))
    (weighted(x, w=w) + weighted(x, w=w)).backward()
    x.grad[...] = 7  # nobody else's memory
    assert w.tolist() == [1, 1]
