"""grad, value_and_grad, vjp, jvp, jacobian, hessian, hvp: containers, orders, closures, and what they refuse.

Tests that take `array`, which makes arrays of a backend, hold on all of them.
"""

import gc
import weakref
from typing import Any, NamedTuple

import numpy as np
import pytest

from tinygrad_mnist import (
    Tensor,
    functional,
    grad,
    hessian,
    hvp,
    jacobian,
    jvp,
    nn,
    no_grad,
    softmax_cross_entropy,
    value_and_grad,
    vjp,
)
from tinygrad_mnist.arrays import extent, to_host


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def array(backend):
    return lambda values, dtype=None: backend.array(np.array(values, dtype))


@pytest.fixture
def leaf(array):
    return lambda values: Tensor(array(values, np.float64), requires_grad=True)


def host(value):
    """An array or a Tensor, wherever it is, as an array on the host."""
    return to_host(value.data if isinstance(value, Tensor) else value)


def differences(f, x, h=1e-5):
    """The Jacobian of `f` (array to array) at `x` by central differences: f(x).shape + x.shape."""
    columns = []
    for place in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[place] = h
        columns.append((np.asarray(f(x + step)) - np.asarray(f(x - step))) / (2 * h))
    out = np.stack(columns, -1)
    return out.reshape(out.shape[:-1] + x.shape)


def along(f, xs, vs, h=1e-5):
    """The derivative of `f(*xs)` along vs by central differences."""
    ahead = f(*[x + h * v for x, v in zip(xs, vs, strict=True)])
    behind = f(*[x - h * v for x, v in zip(xs, vs, strict=True)])
    return (np.asarray(ahead) - np.asarray(behind)) / (2 * h)


# ---- arrays in, arrays out ----------------------------------------------------------------------------------------


def test_grad_of_an_array_is_an_array_like_it(array):
    for dtype in (np.float16, np.float32, np.float64):
        for shape in ((), (3,), (2, 0), (2, 3)):
            x = array(np.full(shape, 0.5, dtype))
            g = grad(lambda x: np.sum(x * x))(x)
            assert type(g) is type(x)
            assert (g.dtype, g.shape) == (dtype, shape)
            assert (g == 1).all()


def test_value_and_grad_gives_both(array):
    x = array([1.0, 2.0])
    value, g = value_and_grad(lambda x: np.sum(x**3))(x)
    assert type(value) is type(g) is type(x)
    assert value == 9
    assert g.tolist() == [3, 12]


def test_python_numbers_are_float32():
    g = grad(lambda x: x * x)(3.0)
    assert g.dtype == np.float32
    assert g == 6


def test_further_arguments_are_passed_on(array):
    def f(x, power, *, scale=1.0):
        return np.sum(x**power) * scale

    x = array([1.0, 2.0])
    assert grad(f)(x, 3).tolist() == [3, 12]
    assert grad(f)(x, 2, scale=0.5).tolist() == [1, 2]
    assert grad(f, 0)(x, power=2).tolist() == [2, 4]


def test_argnums(array):
    def f(x, y, z):
        return np.sum(x * y + z)

    x, y, z = array([1.0, 2.0]), array([3.0, 4.0]), array([5.0, 6.0])
    assert grad(f, 1)(x, y, z).tolist() == [1, 2]
    assert grad(f, -1)(x, y, z).tolist() == [1, 1]
    both = grad(f, (1, 0))(x, y, z)
    assert type(both) is tuple
    assert [g.tolist() for g in both] == [[1, 2], [3, 4]]
    (only,) = grad(f, [2])(x, y, z)
    assert only.tolist() == [1, 1]
    assert grad(f, np.int64(1))(x, y, z).tolist() == [1, 2]
    for argnums in ((0, 0), (1, -2)):
        with pytest.raises(TypeError, match="names an argument twice"):
            grad(f, argnums)(x, y, z)
    for argnums in (3, (0, 3), -4):
        with pytest.raises(TypeError, match=r"argnums=.* does not fit a call with 3 positional arguments"):
            grad(f, argnums)(x, y, z)


def test_one_array_as_two_arguments_is_two(array):
    x = array([2.0, 3.0])
    for pair in (x, Tensor(x), Tensor(x, requires_grad=True)):
        gx, gy = grad(lambda a, b: np.sum(a * a * b), (0, 1))(pair, pair)
        assert (gx.tolist(), gy.tolist()) == ([8, 18], [4, 9])
    _, pull = vjp(lambda a, b: a * a * b, x, x)
    assert [g.tolist() for g in pull(array([1.0, 1.0]))] == [[8, 18], [4, 9]]
    _, pushed = jvp(lambda a, b: a * a * b, (x, x), (array([1.0, 1.0]), array([0.0, 0.0])))
    assert pushed.tolist() == [8, 18]
    assert [np.diag(host(J)).tolist() for J in jacobian(lambda a, b: a * a * b, (0, 1))(x, x)] == [[8, 18], [4, 9]]


def test_one_array_twice_in_a_container_is_two(array):
    x = array([2.0])
    g = grad(lambda p: np.sum(p[0] * p[0] * p[1]))([x, x])
    assert [a.tolist() for a in g] == [[8], [4]]


def test_results_independent_of_an_input_give_zeros(array):
    x, y = array(np.ones((2, 3), np.float32)), array(np.ones(4))
    gx, gy = grad(lambda x, y: np.sum(y), (0, 1))(x, y)
    assert (gx.shape, gx.dtype) == ((2, 3), np.float32)
    assert not gx.any()
    assert gy.all()
    for f in (lambda x: Tensor(array(1.0)), lambda x: 1.0, lambda x: np.float64(2), lambda x: np.argmax(x) * 1.0):
        value, g = value_and_grad(f)(y)
        assert value.shape == ()
        assert not g.any()
        assert g.shape == (4,)
    assert not jacobian(lambda x: array(np.ones(3)))(y).any()
    assert jacobian(lambda x: array(np.ones(3)))(y).shape == (3, 4)
    assert not hessian(lambda x: np.sum(x))(y).any()
    assert not hvp(lambda x: np.sum(3 * x), y, y).any()
    value, pushed = jvp(lambda x: array(np.ones(3)), (y,), (y,))
    assert pushed.shape == (3,)
    assert not pushed.any()
    assert not grad(grad(lambda x: 3 * x))(array(1.0)).any()


def test_a_function_of_the_shape_alone_is_constant(array):
    assert not grad(lambda x: np.sum(x.detach() * 2))(array(np.ones(2))).any()


# ---- containers ---------------------------------------------------------------------------------------------------

TREE = {"layers": [(np.array([[1.0, 2.0]]), np.array(3.0)), [np.array([4.0])]], "scale": np.float32([2.0])}


def of_tree(p):
    (W, b), [c] = p["layers"]
    return np.sum(W * W * b) * c[0] + np.sum(p["scale"] ** 3)


def check_tree(g):
    g = functional.tree_map(host, g)
    assert type(g) is dict
    assert list(g) == ["layers", "scale"]
    (W, b), [c] = g["layers"]
    assert type(g["layers"]) is list
    assert type(g["layers"][0]) is tuple
    assert type(g["layers"][1]) is list
    assert W.tolist() == [[24, 48]]
    assert b == 20
    assert c.tolist() == [15]
    assert g["scale"].tolist() == [12]
    assert g["scale"].dtype == np.float32


def test_containers_come_back_as_they_went_in(array):
    tree = functional.tree_map(array, TREE)
    check_tree(grad(of_tree)(tree))
    value, g = value_and_grad(of_tree)(tree)
    assert value == 68
    check_tree(g)
    _, pull = vjp(of_tree, tree)
    check_tree(pull(array(1.0))[0])
    tensors = functional.tree_map(Tensor, tree)
    g = grad(of_tree)(tensors)
    assert isinstance(g["scale"], Tensor)
    check_tree(g)
    two = grad(lambda p, q: np.sum(p[0] * q["a"]), (0, 1))
    assert two([array([1.0])], {"a": array([2.0])}) == ([2], {"a": 1})


def test_named_tuples(array):
    class Layer(NamedTuple):
        W: Any
        b: Any

    g = grad(lambda p: np.sum(p.W * p.b))(Layer(array([1.0, 2.0]), array(3.0)))
    assert type(g) is Layer
    assert g.W.tolist() == [3, 3]
    assert g.b == 3


def test_a_function_may_change_the_containers_that_it_is_given(array):
    def f(p):
        p["W"] = p["W"] * p["layers"].pop()
        p["h"] = np.sum(p["W"])
        return p["h"]

    p = {"W": array([1.0, 2.0]), "layers": [array(3.0)]}
    g = grad(f)(p)
    assert list(p) == list(g) == ["W", "layers"]
    assert g["W"].tolist() == [3, 3]
    assert g["layers"] == [3]


def test_empty_containers(array):
    assert grad(lambda p: np.sum(p["w"]) * 2)({"w": array(np.ones(1)), "none": [], "nothing": {}}) == {
        "w": 2, "none": [], "nothing": {},
    }


def test_jacobian_of_containers(array):
    J = jacobian(lambda p: np.outer(p["a"], p["b"][0]))({"a": array([1.0, 2.0]), "b": [array([3.0, 4.0, 5.0])]})
    assert J["a"].shape == (2, 3, 2)
    assert J["b"][0].shape == (2, 3, 3)
    assert J["a"][0, :, 0].tolist() == [3, 4, 5]
    assert J["b"][0][1, 2].tolist() == [0, 0, 2]


def test_directions_in_dicts_are_matched_by_key_not_by_order(array):
    def f(p):
        return 2 * np.sum(p["a"] ** 2) + np.sum(p["b"] ** 3)

    x = {"a": array(np.ones(1)), "b": array(np.ones(1))}
    v = {"b": array([10.0]), "a": array(np.ones(1))}
    assert hvp(f, x, v) == {"a": 4, "b": 60}
    assert jvp(f, (x,), (v,))[1] == 34


def test_directions_of_other_shapes_or_structure_raise():
    def f(x):
        return np.sum(x**3)

    for direction in (np.ones(1), np.array(1.0), 1.0, np.ones((2, 2))):
        with pytest.raises(ValueError, match=r"direction has shape .* where the argument has \(2,\)"):
            jvp(f, (np.ones(2),), (direction,))
        with pytest.raises(ValueError, match=r"direction has shape .* where the argument has \(2,\)"):
            hvp(f, np.ones(2), direction)
    with pytest.raises(ValueError):  # noqa: PT011  (zip's own message)
        jvp(f, (np.ones(2),), (np.ones(2), np.ones(2)))
    with pytest.raises(KeyError):
        jvp(lambda p: p["a"], ({"a": np.ones(2)},), ({"b": np.ones(2)},))


# ---- Tensors in, Tensors out --------------------------------------------------------------------------------------


def test_tensors_in_tensors_out(array):
    x = Tensor(array([1.0, 2.0]))
    value, g = value_and_grad(lambda x: np.sum(x**3))(x)
    assert isinstance(value, Tensor)
    assert isinstance(g, Tensor)
    assert g.data.tolist() == [3, 12]
    for y in (
        jacobian(lambda x: x**3)(x),
        hessian(lambda x: np.sum(x**3))(x),
        hvp(lambda x: np.sum(x**3), x, x),
        *jvp(lambda x: x**3, (x,), (x,)),
        vjp(lambda x: x**3, x)[0],
        *vjp(lambda x: x**3, x)[1](x),
    ):
        assert isinstance(y, Tensor)


def test_results_of_untracked_tensors_are_untracked(array, leaf):
    """Nobody can ask for their gradients, so they keep no graph: a loop of x = x - eta * grad(f)(x) stays small."""
    x = Tensor(array([1.0, 2.0]))

    def f(x):
        return np.sum(x**3)

    for y in (
        *value_and_grad(f)(x),
        *jvp(f, (x,), (x,)),
        vjp(f, x)[0],
        *vjp(f, x)[1](1.0),
        hvp(f, x, x),
        hessian(f)(x),
        jacobian(lambda x: x**2)(x),
        grad(lambda x: np.sum(grad(f)(x)))(x),
    ):
        assert not y.requires_grad
    w = leaf([3.0, 4.0])
    with no_grad():
        assert not grad(f)(w).requires_grad
        assert not value_and_grad(f)(w)[0].requires_grad
    assert grad(f)(w).requires_grad
    assert grad(lambda x: np.sum(x * x * w))(x).requires_grad
    assert jvp(f, (x,), (w,))[1].requires_grad
    assert vjp(lambda x: x**2, x)[1](w)[0].requires_grad
    assert hvp(f, x, w).requires_grad


def test_tracked_tensors_in_the_results_reach_the_leaves(leaf):
    w = leaf([1.0, 2.0])
    value, g = value_and_grad(lambda x: np.sum(x**3))(w * 2)
    (value + np.sum(g)).backward()  # 8 w^3 and 12 w^2
    assert np.allclose(host(w.grad), 24 * host(w) ** 2 + 24 * host(w), rtol=1e-14)


def test_derivatives_nest_to_the_fourth_order(array):
    x = 1.3
    there = array(x)
    f, expected = np.sin, np.sin(x)
    for expected in (np.cos(x), -np.sin(x), -np.cos(x), np.sin(x)):
        f = grad(f)
        assert np.isclose(host(f(there)), expected, rtol=1e-13)
        assert type(f(there)) is type(there)
    third = grad(grad(grad(lambda x: x**5)))
    assert np.isclose(host(third(there)), 60 * x**2, rtol=1e-13)
    assert np.isclose(host(third(Tensor(there))), 60 * x**2, rtol=1e-13)


def test_third_order_of_a_vector_function_against_differences(array, rng):
    x, v = rng.normal(size=3), rng.normal(size=3)

    def f(x):
        return np.sum(np.tanh(x) * np.exp(x[::-1] * 0.3)) * np.mean(x * x)

    there = array(v)
    third = host(grad(lambda x: np.sum(there * hvp(f, x, there)))(array(x)))
    assert np.allclose(third, differences(lambda x: v @ hvp(f, x, v), x), rtol=1e-6)


def test_inner_derivatives_see_the_outer_variables(array):
    """d/dy of y * d/dx (x^2 y) at x = y: no perturbation is taken for another."""

    def inner(y):
        return grad(lambda x: x * x * y)(y) * y  # 2 y^3

    assert grad(inner)(array(3.0)) == 54
    assert grad(lambda x: x * grad(lambda y: x + y)(array(1.0)))(array(1.0)) == 1
    assert grad(lambda x: x * grad(lambda y: x + y)(Tensor(array(1.0))))(Tensor(array(1.0))).item() == 1


def test_mixed_second_derivatives_commute(array, rng):
    x, y = array(rng.normal(size=3)), array(rng.normal(size=2))

    def f(x, y):
        return np.sum(np.sin(np.outer(x, y))) * np.sum(x)

    xy = jacobian(grad(f, 0), 1)(x, y)
    yx = jacobian(grad(f, 1), 0)(x, y)
    assert xy.shape == (3, 2)
    assert np.allclose(host(xy), host(yx).T, rtol=1e-13)


# ---- closures over tracked leaves ---------------------------------------------------------------------------------


def test_gradient_penalty_reaches_the_parameters(backend, rng):
    """The gradient with respect to the input, inside a loss that is trained: a Tensor argument keeps it recorded."""
    x = rng.normal(size=(5, 3))
    model = nn.MLP((3, 4, 1), activation="tanh", rng=0, dtype="float64").to(backend.device)

    def penalty(slope):
        return (np.sqrt(np.sum(slope**2, axis=1)) - 1) ** 2

    def loss():
        return np.sum(penalty(grad(lambda x: np.sum(model(x)))(Tensor(backend.array(x)))))

    loss().backward()
    for p in model.parameters():
        if p is model.layers[-1].bias:
            assert p.grad is None  # the slope does not depend on it
            continue
        values = p.numpy()

        def at(v, p=p):
            p.data = v
            return loss().item()

        expected = differences(at, values)
        p.data = values
        assert np.allclose(host(p.grad), expected, rtol=1e-6, atol=1e-8)


def test_closures_over_leaves_do_not_fill_them(array, leaf):
    """grad asks for its arguments' gradients; a leaf inside is a constant to it."""
    w = leaf([2.0, 3.0])
    g = grad(lambda x: np.sum(w * x * x))(array([1.0, 1.0]))
    assert g.tolist() == [4, 6]
    assert w.grad is None


def test_a_leaf_as_an_argument_is_not_filled_either(leaf):
    w = leaf([2.0, 3.0])
    g = grad(lambda w: np.sum(w * w))(w)
    assert g.data.tolist() == [4, 6]
    assert w.grad is None
    np.sum(g * g).backward()
    assert w.grad.tolist() == [16, 24]


def test_works_inside_no_grad(array):
    with no_grad():
        assert grad(lambda x: x * x)(array(3.0)) == 6
        assert grad(grad(lambda x: x**3))(array(3.0)) == 18
        assert hvp(lambda x: x**3, array(1.0), array(1.0)) == 6


# ---- vjp and jvp --------------------------------------------------------------------------------------------------


def test_a_pullback_may_be_called_again(array, rng):
    A = rng.normal(size=(3, 2))
    there = array(A)
    for x in (array(rng.normal(size=2)), Tensor(array(rng.normal(size=2)))):
        y, pull = vjp(lambda x: np.tanh(np.dot(there, x)), x)
        J = (1 - host(y) ** 2)[:, None] * A
        for g in (np.array([1.0, 0, 0]), np.array([0.3, -2, 1]), np.array([1.0, 0, 0])):
            (gx,) = pull(array(g))
            assert np.allclose(host(gx), g @ J, rtol=1e-13)


def test_a_cotangent_may_be_a_list_or_have_another_dtype_but_no_other_shape(array):
    x, like = array(np.ones(2, np.float32)), array([1.0, 2.0])
    for cotangent in ([1, 2], like, Tensor(like), array([1, 2]), np.array([1, 2])):
        for argument in (x, Tensor(x)):
            (g,) = vjp(lambda x: np.tanh(x * 2), argument)[1](cotangent)
            assert g.dtype == np.float32
    for cotangent in (np.ones(3), 1.0, np.ones((1, 2))):
        with pytest.raises(ValueError, match=r"cotangent has shape .* the result \(2,\)"):
            vjp(lambda x: x * 2, x)[1](cotangent)


def test_jvp_against_differences(array, rng):
    A, x, v, y, w = (rng.normal(size=s) for s in ((4, 3), 3, 3, (2, 4), (2, 4)))

    def f(x, y):
        return np.tanh(np.dot(A if type(x) is np.ndarray else array(A), x)) * y + np.sum(x) ** 2

    expected = along(f, (x, y), (v, w))
    xs, vs = tuple(map(array, (x, y))), tuple(map(array, (v, w)))
    value, pushed = jvp(f, xs, vs)
    assert np.allclose(host(value), f(x, y), rtol=1e-15)
    assert pushed.shape == (2, 4)
    assert np.allclose(host(pushed), expected, rtol=1e-7, atol=1e-9)
    x, y, v, w = *xs, *vs
    _, pushed = jvp(lambda p: f(p["x"], p["y"][0]), ({"x": x, "y": [y]},), ({"x": v, "y": [w]},))
    assert np.allclose(host(pushed), expected, rtol=1e-7, atol=1e-9)


def test_jvp_needs_tuples():
    """An array of arguments would be taken apart into its rows."""
    x = np.ones((1, 2))
    for xs, vs in ((x, x), (x, (x,)), ((x,), x), ({"x": x}, {"x": x})):
        with pytest.raises(TypeError, match=r"jvp\(f, \(x,\), \(v,\)\)"):
            jvp(np.sin, xs, vs)


def test_jvp_and_vjp_are_transposes(array, rng):
    x, v, g = (array(rng.normal(size=shape)) for shape in ((2, 3), (2, 3), (3, 2)))

    def f(x):
        return np.exp(x.T * 0.5) @ x @ x.T

    (pulled,) = vjp(f, x)[1](g)
    pushed = jvp(f, (x,), (v,))[1]
    assert np.isclose(np.sum(host(g) * host(pushed)), np.sum(host(pulled) * host(v)), rtol=1e-12)


def test_jvp_can_be_differentiated(array, leaf):
    x, v = leaf([1.0, 2.0]), leaf([3.0, 5.0])
    _, pushed = jvp(lambda x: x**3, (x,), (v,))
    np.sum(pushed).backward()
    assert np.allclose(host(x.grad), 6 * host(x) * host(v), rtol=1e-14)
    assert np.allclose(host(v.grad), 3 * host(x) ** 2, rtol=1e-14)
    assert grad(lambda x: jvp(lambda x: x**4, (x,), (array(1.0),))[1])(array(2.0)) == 48


def test_dtypes_are_kept_in_every_order(array):
    for dtype in (np.float16, np.float32, np.float64):
        x = array([0.5, 0.25], dtype)

        def f(x):
            return np.sum(np.tanh(x) ** 2 / 3)

        for y in (
            grad(f)(x),
            hvp(f, x, x),
            hvp(f, x, array([1.0, 2.0])),
            hessian(f)(x),
            jacobian(lambda x: x * 2)(x),
            *jvp(f, (x,), (x,)),
            *jvp(lambda x: x * 3, (x,), (array(np.ones(2)),)),
        ):
            assert y.dtype == dtype


# ---- jacobian, hessian, hvp ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "shape"),
    [
        (lambda x: np.tanh(x) @ x.T, (2, 3)),
        (lambda x: x.T, (2, 3)),
        (lambda x: np.transpose(np.sin(x)), (3, 2)),
        (lambda x: np.swapaxes(x[None] * x[:, None], 0, 2), (2, 3)),
        (lambda x: np.sum(x * x), (2, 2)),
        (lambda x: np.outer(x, x), (3,)),
        (lambda x: x * np.ones_like(x, shape=(2, 3)), ()),
        (lambda x: x[::-1] ** 2, (4,)),
        (lambda x: np.broadcast_to(x, (2, 3)), (3,)),
    ],
)
def test_jacobian_against_differences(array, rng, f, shape):
    x = rng.normal(size=shape)
    J = host(jacobian(f)(array(x)))
    assert J.shape == np.shape(f(x)) + shape
    assert np.allclose(J, differences(f, x), rtol=1e-7, atol=1e-8)
    assert np.allclose(host(jacobian(f)(Tensor(array(x)))), J, rtol=1e-14)


def test_jacobian_of_results_and_arguments_without_elements(array):
    assert jacobian(lambda x: x[:0] * 2)(array(np.ones(3))).shape == (0, 3)
    assert jacobian(lambda x: np.sum(x) * array(np.ones(2)))(array(np.ones((0, 3)))).shape == (2, 0, 3)
    assert jacobian(lambda x: x[:0])(Tensor(array(np.ones(3)))).shape == (0, 3)


def test_jacobian_of_several_arguments(array):
    A, x = array([[1.0, 2.0], [3.0, 4.0]]), array([5.0, 6.0])
    JA, Jx = jacobian(np.dot, (0, 1))(A, x)
    assert JA.shape == (2, 2, 2)
    assert JA[1, 1].tolist() == [5, 6]
    assert np.array_equal(host(Jx), host(A))
    assert np.array_equal(host(jacobian(np.dot, 1)(A, x)), host(A))


def test_hessian_of_a_quadratic_form(array):
    A = array([[2.0, 1.0], [0.0, 3.0]])
    H = hessian(lambda x: x @ A @ x)(array([0.3, 0.7]))
    assert np.allclose(host(H), host(A + A.T), rtol=1e-15)
    assert hessian(lambda x: x**3)(array(2.0)) == 12
    second = hessian(lambda y, x: np.sum(y) * np.sum(x**2), 1)
    assert second(array(np.ones(3)), array(np.ones((1, 2)))).shape == (1, 2, 1, 2)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softplus"])
def test_hessian_of_a_two_layer_network_equals_differences_of_its_gradient(array, rng, activation):
    x, labels = array(rng.normal(size=(6, 3))), np.array([0, 1, 2, 1, 0, 2])
    act = getattr(Tensor, activation, None) or nn.ACTIVATIONS[activation]
    sizes = [(3, 4), (4,), (4, 3), (3,)]
    cuts = np.cumsum([int(np.prod(s)) for s in sizes])
    theta = 0.5 * rng.normal(size=cuts[-1])

    def loss(theta):
        W1, b1, W2, b2 = (np.reshape(p, s) for p, s in zip(np.split(theta, cuts[:-1]), sizes, strict=True))
        return softmax_cross_entropy(act(x @ W1 + b1) @ W2 + b2, labels)

    H = host(hessian(loss)(array(theta)))
    assert H.shape == (31, 31)
    assert np.abs(H).max() > 0.05
    assert np.allclose(H, differences(lambda theta: host(grad(loss)(array(theta))), theta), rtol=0, atol=1e-9)
    assert np.allclose(H, H.T, rtol=0, atol=1e-15)
    v = rng.normal(size=31)
    assert np.allclose(host(hvp(loss, array(theta), array(v))), H @ v, rtol=0, atol=1e-14)


def test_hvp_of_containers_is_a_container_like_them(array, rng):
    p = {"W": rng.normal(size=(2, 2)), "b": [rng.normal(size=2)]}
    v = {"W": rng.normal(size=(2, 2)), "b": [rng.normal(size=2)]}

    def f(p):
        return np.sum(np.tanh(p["W"] @ p["b"][0]) ** 2)

    Hv = functional.tree_map(host, hvp(f, functional.tree_map(array, p), functional.tree_map(array, v)))
    h = 1e-5
    ahead = grad(f)({"W": p["W"] + h * v["W"], "b": [p["b"][0] + h * v["b"][0]]})
    behind = grad(f)({"W": p["W"] - h * v["W"], "b": [p["b"][0] - h * v["b"][0]]})
    assert np.allclose(Hv["W"], (ahead["W"] - behind["W"]) / (2 * h), atol=1e-8)
    assert np.allclose(Hv["b"][0], (ahead["b"][0] - behind["b"][0]) / (2 * h), atol=1e-8)


# ---- memory -------------------------------------------------------------------------------------------------------

ALIASING = [
    lambda x: x,
    lambda x: x + 0.0,
    lambda x: np.reshape(x, (2, 2)),
    lambda x: x.T,
    lambda x: np.broadcast_to(x, (2, 2)),
    lambda x: x[:],
    lambda x: np.copy(x),
    lambda x: x * 2,
]


def apart(a, b):
    (start, end), (other, last) = extent(a), extent(b)
    return end <= other or last <= start


@pytest.mark.parametrize("f", ALIASING)
@pytest.mark.parametrize("kind", [lambda a: a, Tensor, lambda a: Tensor(a, requires_grad=True)])
def test_results_never_alias_inputs_or_the_cotangent(array, f, kind):
    x = kind(array([[1.0, 2.0], [3.0, 4.0]]))
    y, pull = vjp(f, x)
    g = array(np.ones(y.shape))
    seeds = (g, Tensor(g)) if isinstance(x, Tensor) else (g,)
    for seed in seeds:
        first, second = pull(seed)[0], pull(seed)[0]
        arrays = [a.data if isinstance(a, Tensor) else a for a in (first, second, x)] + [g]
        for i, a in enumerate(arrays):
            assert all(apart(a, b) for b in arrays[:i])
        arrays[0][...] = 7  # and may be written to
        assert (g == 1).all()


def test_gradients_of_two_arguments_do_not_alias_each_other(array):
    ones = array(np.ones(2))
    for kind in (lambda a: a, Tensor):
        x, y = kind(ones), kind(array(np.ones(2)))
        a, b = vjp(lambda x, y: x + y, x, y)[1](ones)
        assert apart(*[g.data if isinstance(g, Tensor) else g for g in (a, b)])
        a, b = grad(lambda p: np.sum(p[0] + p[1]))([x, y])
        assert apart(*[g.data if isinstance(g, Tensor) else g for g in (a, b)])


def test_inputs_and_cotangents_are_not_written_to(backend, rng):
    arrays = [backend.array(rng.normal(size=(2, 2))) for _ in range(3)]
    before = [a.tobytes() for a in arrays]
    for a in arrays:
        backend.freeze(a)
    x, v, g = arrays
    vjp(lambda x: np.tanh(x) @ x, x)[1](g)
    jvp(lambda x: np.tanh(x) @ x, (x,), (v,))
    hvp(lambda x: np.sum(np.tanh(x) @ x), x, v)
    assert [a.tobytes() for a in arrays] == before


def test_loops_over_tensors_keep_no_graph():
    x = Tensor(np.array([1.0, 2.0]))
    gc.disable()
    try:
        seen = []
        for _ in range(5):
            nodes = []

            def f(x, nodes=nodes):
                y = np.sum(x**4)
                nodes.append(weakref.ref(y._node))
                return y

            x = x - 0.01 * grad(f)(x)
            seen += nodes
        assert [r() for r in seen] == [None] * 5
    finally:
        gc.enable()


# ---- what they refuse ---------------------------------------------------------------------------------------------


def test_integers_have_no_derivatives():
    def square(x):
        return np.sum(x * x)

    for call in (
        lambda: grad(square)(np.arange(3)),
        lambda: grad(square)(3),
        lambda: grad(square)(Tensor([1, 2])),
        lambda: grad(square, (0,))([1, 2]),
        lambda: vjp(square, np.arange(3)),
        lambda: jvp(square, (np.arange(3),), (np.ones(3),)),
        lambda: jacobian(square)(np.array([True])),
        lambda: hessian(square)(np.uint8([1])),
        lambda: hvp(square, np.arange(3), np.ones(3)),
    ):
        with pytest.raises(TypeError, match=r"derivatives need float arguments, not .*write 0\.0 instead of 0"):
            call()


def test_integer_arguments_that_are_not_asked_about_are_fine(array):
    assert grad(lambda x, n: np.sum(x) * n)(array(np.ones(2)), 3).tolist() == [3, 3]
    assert grad(lambda x, i: np.sum(x[i]))(array(np.ones(3)), array([0, 0])).tolist() == [2, 0, 0]


def test_grad_needs_a_scalar(array):
    with pytest.raises(TypeError, match=r"grad needs a scalar result, but its shape is \(2,\): use jacobian or vjp"):
        grad(lambda x: x * 2)(array(np.ones(2)))
    assert grad(lambda x: np.sum(x, keepdims=True))(array(np.ones((1, 2)))).shape == (1, 2)


def test_a_function_returns_one_tensor():
    for f in (lambda x: (np.sum(x), x), lambda x: [np.sum(x)], lambda x: {"loss": np.sum(x)}):
        for call in (grad(f), lambda x, f=f: vjp(f, x), jacobian(f)):
            with pytest.raises(TypeError, match="returns one Tensor, not a (tuple|list|dict)"):
                call(np.ones(2))


# ---- derivatives inside derivatives -------------------------------------------------------------------------------


def test_an_inner_derivative_sees_the_outer_variable():
    """d/dx [x d/dy (x y)] = 2 x: the program of Siskind and Pearlmutter 2005, Perturbation Confusion."""
    assert grad(lambda x: x * grad(lambda y: x * y)(1.0))(2.0) == 4.0
    assert grad(lambda x: grad(lambda y: x * y * y)(np.float64(1)))(np.float64(3)) == 2.0
    assert grad(lambda x: grad(lambda y: grad(lambda z: x * y * z)(1.0))(1.0))(5.0) == 1.0
    x = Tensor(2.0, requires_grad=True)
    assert grad(lambda x: x * grad(lambda y: x * y)(1.0))(x).item() == 4.0


def test_tracked_cotangents_and_directions_are_differentiated(array):
    x, ones = array([1.0, 2.0]), array(np.ones(2))
    _, pull = vjp(lambda x: x * x, x)
    assert grad(lambda g: np.sum(pull(g)[0]))(ones).tolist() == [2, 4]
    assert grad(lambda v: np.sum(jvp(lambda x: x * x, (x,), (v,))[1]))(ones).tolist() == [2, 4]
    assert grad(lambda v: np.sum(hvp(lambda x: np.sum(x**3), x, v)))(ones).tolist() == [6, 12]
    direction = Tensor(ones, requires_grad=True)
    np.sum(hvp(lambda x: np.sum(x**3), x, direction)).backward()
    assert direction.grad.tolist() == [6, 12]
