"""The tools that verify the cases are themselves right, and see what is planted."""

import numpy as np
import pytest

from . import truth
from .case import Problem, rule


def along_first(f, *arrays, **kw):
    """(left, right) slopes of f along the first element of its first input."""
    index = (0,) * arrays[0].ndim
    return truth.Slopes(Problem(f, None, list(arrays), **kw)).along({0: (index, 1)})


@pytest.mark.parametrize(("f", "x", "slope"), [
    (np.sin, 1.0, np.cos(1.0)),
    (np.exp, -700.0, np.exp(-700.0)),
    (np.log, 1e-300, 1e300),
    (lambda x: 1e8 + x * x, 3.0, 6.0),
    (lambda x: np.tanh(x) - 1, 25.0, 1 / np.cosh(25.0) ** 2),
    (lambda x: np.where(x > 0, x, 0), 5e-324, 1.0),
])
def test_slopes_of_smooth_functions_are_exact_on_both_sides(f, x, slope):
    left, right = along_first(f, np.array([x]))
    assert left == right
    assert left[0] == pytest.approx(slope, rel=4e-16)


@pytest.mark.parametrize("size", [1, truth.MANY + 1])
def test_slopes_at_a_kink_are_those_of_the_two_sides(size):
    for f, expected in ((lambda x: np.where(x > 0, 3 * x, x), (1, 3)), (lambda x: np.maximum(x, 0), (0, 1))):
        left, right = along_first(f, np.zeros(size))
        assert (left[0], right[0]) == expected


def test_a_function_that_rounds_to_floats_is_refused():
    def rounds(x):
        y = np.zeros(2)
        y[0] = x[0]
        return y

    with pytest.raises(TypeError, match="twin"):
        along_first(rounds, np.ones(2))


def test_intervals_and_errors_at_a_kink():
    problem = Problem(lambda x: np.maximum(x, 0), None, [np.array([0.0, 1.0])])
    right = list(truth.intervals(problem, np.array([-2.0, 1.0]), np.random.default_rng(0)))
    assert [right[0][1].tolist(), right[0][2].tolist()] == [[-2, 1], [0, 1]]
    for gradient, expected in (([-1, 1], [0, 0]), ([-3, 1], [0.5, 0]), ([1, np.nan], [0.5, np.inf])):
        assert truth.errors([np.array(gradient)], right)[0].tolist() == expected


def test_the_joint_test_tells_subgradients_from_others():
    problem, rng = Problem(np.max, None, [np.zeros(2)]), np.random.default_rng(0)
    for sign in (1.0, -1.0):
        for a, is_one in (([1, 0], True), ([0.3, 0.7], True), ([1, 1], False), ([0.25, 0.25], False)):
            error = truth.joint_error(problem, sign, [sign * np.array(a)], rng)
            assert (error < 1e-12) == is_one


def test_a_right_rule_breaks_no_promise_and_a_linear_wrong_one_neither():
    for slope in (np.cos, np.sin):
        assert truth.broken(Problem(np.sin, rule(slope), [np.arange(1.0, 4)]), np.random.default_rng(0)) == set()
