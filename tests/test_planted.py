"""Wrong rules, planted: the checks that the operations pass must catch every one, and pass the right rule beside it, on
every backend."""

import re

import checks
import numpy as np
import pytest
from checks import check

from tinygrad_mnist.arrays import Namespace
from tinygrad_mnist.core import F, is_tracked
from tinygrad_mnist.ops import primitive
from tinygrad_mnist.testing import Op
from tinygrad_mnist.testing.optable import BINARY, POSITIVE, REAL, UNARY, shaped


@pytest.fixture
def planted():
    """Registers `kernel` with `rules` as a row of a table of its own; takes them out of the namespaces afterwards."""
    names = []

    def plant(kernel, rules, *, operands=1, reference=None, samples=None, **properties):
        signature = ", ".join("ab"[:operands])
        space = {"kernel": kernel}
        exec(f"def planted_{len(names)}(xp, {signature}): return kernel(xp, {signature})", space)
        names.append(f"planted_{len(names)}")
        function = primitive(*rules)(space[names[-1]])
        return Op(
            names[-1],
            lambda _xp, *values: function(*values),
            samples or shaped(*(UNARY if operands == 1 else BINARY), domains=[POSITIVE]),
            reference=reference or (lambda *values: kernel(np, *values)),
            **properties,
        )

    yield plant
    for name in names:
        delattr(F, name)
        del Namespace.kernels[name]


def spoil(xp, g, y, a):
    """Writes into its cotangent and returns it."""
    g *= xp.cos(a)
    return g


def spoil_operand(xp, g, y, a):
    a += 0.0 * a + 1.0
    return g * xp.cos(a - 1.0)


UNARY_RULES = {  # of sin
    "off by 0.001": lambda xp, g, y, a: g * xp.cos(a) * 1.001,
    "off by 1e-7": lambda xp, g, y, a: g * xp.cos(a) * (1 + 1e-7),
    "missing factor": lambda xp, g, y, _a: g,
    "wrong sign": lambda xp, g, y, a: -g * xp.cos(a),
    "another function": lambda xp, g, y, a: g * xp.sin(a),
    "g is ignored": lambda xp, g, y, a: xp.cos(a),
    "g is ignored but for its size": lambda xp, g, y, a: xp.ones_like(g) * xp.cos(a),
    "|g|": lambda xp, g, y, a: xp.absolute(g) * xp.cos(a),
    "g clipped": lambda xp, g, y, a: xp.clip(g, -1, 1) * xp.cos(a),
    "g squared": lambda xp, g, y, a: g * g * xp.cos(a),
    "mean of g": lambda xp, g, y, a: (0 * g + xp.mean(g) if y.size else g) * xp.cos(a),
    "reversed": lambda xp, g, y, a: xp.flip(g * xp.cos(a)),
    "first element only": lambda xp, g, y, a: g * xp.cos(xp.reshape(a, -1)[0] if y.size else a),
    "one element lost": lambda xp, g, y, a: g * xp.cos(a) * (a != xp.max(a)) if y.size else g * xp.cos(a),
    "nothing": lambda xp, g, y, a: xp.zeros_like(g),
    "no array": lambda xp, g, y, a: 0.0,
    "None": lambda xp, g, y, a: None,
    "one axis too many": lambda xp, g, y, a: xp.stack([g * xp.cos(a)] * 2),
    "one axis too few": lambda xp, g, y, a: xp.sum(g * xp.cos(a)),
    "writes into g": spoil,
    "writes into its operand": spoil_operand,
    "float64 creep": lambda xp, g, y, a: g * xp.cos(a) * np.float64(1),
    "float32 throughout": lambda xp, g, y, a: xp.astype(g * xp.cos(a), dtype=np.float32),
    "right once, wrong twice": lambda xp, g, y, a: g * xp.cos(a.detach() if hasattr(a, "detach") else a),
    "a step of differences": lambda xp, g, y, a: g * (xp.sin(a + 1e-6) - xp.sin(a - 1e-6)) / 2e-6,
}


def caught(backend, op):
    """The first check's complaint about `op`; a rule may also make the array library or the walk raise."""
    with pytest.raises((AssertionError, TypeError, ValueError, AttributeError, np.exceptions.ComplexWarning)) as error:
        check(backend, op)
    return error


def test_the_right_rule_passes(backend, planted):
    check(backend, planted(lambda xp, a: xp.sin(a), [lambda xp, g, _y, a: g * xp.cos(a)], analytic=True))


@pytest.mark.parametrize("name", UNARY_RULES)
def test_a_wrong_rule_is_caught(backend, planted, name):
    caught(backend, planted(lambda xp, a: xp.sin(a), [UNARY_RULES[name]], analytic=True))


def test_float64_creep_is_an_assertion_of_the_walk(backend, planted):
    def rule(xp, g, _y, a):
        return xp.astype(g * xp.cos(a), dtype=np.float64)

    error = caught(backend, planted(lambda xp, a: xp.sin(a), [rule], samples=shaped((3,))))
    assert error.type is AssertionError
    assert re.search("rule for operand 0 returned float64.*float32.*use Python numbers", str(error.value))


def left(xp, g, y, a, b):
    return g * b


def right(xp, g, y, a, b):
    return g * a


BINARY_RULES = {  # of a * b
    "exchanged": (right, left),
    "both the first": (left, left),
    "second off by 0.001": (left, lambda xp, g, y, a, b: 1.001 * g * a),
    "second lost": (left, lambda xp, g, y, a, b: xp.zeros_like(g)),
    "second without a rule": (left, None),
    "summed over an axis by itself": (lambda xp, g, y, a, b: xp.sum(g * b, axis=0) if y.ndim else g * b, right),
    "mean for sum": (lambda xp, g, y, a, b: g * b if a.shape == y.shape else xp.mean(g * b) + 0 * g, right),
    "does not keep what it reads": (lambda xp, g, y, _a, _b: g * _b, right),
}


def test_the_right_rules_pass(backend, planted):
    check(backend, planted(lambda xp, a, b: a * b, [left, right], operands=2, analytic=True))


@pytest.mark.parametrize("name", BINARY_RULES)
def test_a_wrong_rule_of_two_operands_is_caught(backend, planted, name):
    caught(backend, planted(lambda xp, a, b: a * b, BINARY_RULES[name], operands=2, analytic=True))


PLACES = {  # what the rule returns, of the kernel beside it
    "untransposed": (lambda xp, a: xp.transpose(a), lambda xp, g, _y, _a: g),
    "reshaped for transposed": (lambda xp, a: xp.transpose(a), lambda xp, g, _y, _a: xp.reshape(g, _a.shape)),
    "reduced axis not given back": (lambda xp, a: xp.sum(a, axis=1), lambda xp, g, _y, _a: g),
    "sum spread over the other axis": (
        lambda xp, a: xp.sum(a, axis=1),
        lambda xp, g, _y, _a: xp.reshape(xp.broadcast_to(g, _a.shape[::-1]), _a.shape),
    ),
    "mean as sum": (
        lambda xp, a: xp.mean(a, axis=0, keepdims=True),
        lambda xp, g, _y, _a: xp.broadcast_to(g, _a.shape),
    ),
    "slice put back beside its place": (lambda xp, a: a[:1] * 2, lambda xp, g, _y, _a: 2 * xp.pad(g, ((1, 0), (0, 0)))),
    "cumsum forwards": (lambda xp, a: xp.cumsum(a, axis=0), lambda xp, g, _y, _a: xp.cumsum(g, axis=0)),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_gradient_in_the_wrong_place_is_caught(backend, planted, name):
    kernel, rule = PLACES[name]
    caught(backend, planted(kernel, [rule], samples=shaped((2, 3), (3, 3), domains=[REAL]), analytic=True))


KERNELS = {  # wrong forward, right rule of the right forward
    "wrong value": lambda xp, a: xp.sin(a) + 1e-10,
    "wrong shape": lambda xp, a: xp.reshape(xp.sin(a), (1, *a.shape)),
    "wrong dtype": lambda xp, a: xp.astype(xp.sin(a), dtype=np.float64),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_wrong_kernel_is_caught(backend, planted, name):
    op = planted(KERNELS[name], [lambda xp, g, _y, a: g * xp.cos(a)], reference=np.sin)
    assert caught(backend, op).type is AssertionError


def op(call, shapes=UNARY, **properties):
    return Op("planted", call, shaped(*shapes), **properties)


def sine(rule):
    return lambda plant: plant(lambda xp, a: xp.sin(a), [rule], analytic=True)


def through_float16(xp, g, _y, a):
    slope = xp.cos(a)
    return g * (xp.astype(xp.astype(slope, dtype=np.float16), dtype=g.dtype) if g.dtype == np.float32 else slope)


ONE_MISTAKE = {  # for each check, what it must see by itself
    checks.check_values: lambda plant: op(lambda xp, a: xp.sin(a) + 1e-14 * (xp is F)),
    checks.check_gradient: sine(lambda xp, g, _y, a: g * xp.cos(a) * (1 + 1e-7)),
    checks.check_complex_step: sine(lambda xp, g, _y, a: g * xp.cos(a) * (1 + 1e-12)),
    checks.check_dtypes: sine(through_float16),
    checks.check_second_order: sine(UNARY_RULES["right once, wrong twice"]),
    checks.check_unchanged: sine(spoil),
    checks.check_each_alone: lambda plant: op(
        lambda xp, a, b: a * b * (1 if is_tracked(a) and is_tracked(b) else 1 + 1e-13), BINARY
    ),
    checks.check_same_operand_twice: lambda plant: op(lambda xp, a, b: a * b + (a is b) * 1e-13 * a, BINARY),
    checks.check_numpy_spelling: lambda plant: op(lambda xp, a: xp.sin(a) * (1 if xp is F else 1 + 1e-15)),
    checks.check_mixed_dtypes: lambda plant: op(
        lambda xp, a, b: a * xp.astype(b, dtype=a.dtype), BINARY, reference=np.multiply
    ),
    checks.check_float32_closure: lambda plant: op(
        lambda xp, a: xp.astype(xp.sin(xp.astype(a, dtype=np.float64)), dtype=a.dtype)
    ),
}


@pytest.mark.parametrize("one", ONE_MISTAKE, ids=lambda one: one.__name__)
def test_every_check_sees_its_mistake_by_itself(backend, planted, one):
    with pytest.raises(AssertionError):
        one(backend, ONE_MISTAKE[one](planted))


def test_no_check_is_without_a_mistake_that_it_sees():
    every = {f for name, f in vars(checks).items() if name.startswith("check_")}
    assert set(ONE_MISTAKE) == every
