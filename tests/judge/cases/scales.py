"""Large and small inputs, gradients and values, together and apart: no absolute step or tolerance fits them all."""

import numpy as np

from ..case import Problem, at, normal, positive, right, rule, spoil, times, wrong
from .edges import softmax

# ---- scales of inputs -----------------------------------------------------------------------------------------------


def norm(x):
    return np.sqrt(np.sum(x * x))


def norm_rule(g, x):
    return (g * x / norm(x),)


@right("scale", "x of order 1e6, where the step 1e-6 is four digits above an ulp")
def inputs_1e6(rng):
    return Problem(lambda x: x * x, rule(lambda x: 2 * x), [1e6 * normal(rng, (5,))[0]])


@right("scale", "the norm of a vector of length 1e-7: curvature 1e7, smooth at the scale of x")
def inputs_1e7th(rng):
    return Problem(norm, norm_rule, [1e-7 * normal(rng, (4,))[0]])


@right("scale", "x of order 1e-150, whose square is at the end of the range")
def inputs_1e150th(rng):
    return Problem(lambda x: x * x, rule(lambda x: 2 * x), [1e-150 * normal(rng, (5,))[0]])


@right("scale", "subnormal inputs, which have few digits", exact="pass ill")
def inputs_subnormal(rng):
    return Problem(lambda x: 3 * x, lambda g, x: (3 * g,), [np.array([1e-310, -3e-312, 2e-315])])


@right("scale", "elements from 1e-6 to 1e6 in one array")
def inputs_of_all_sizes(rng):
    x = normal(rng, (7,))[0] * 10.0 ** np.arange(-6, 7, 2)
    return Problem(lambda x: x**3 - x, rule(lambda x: 3 * x * x - 1), [x])


@right("scale", "a zero beside 1e6: a step taken from the largest element carries sin over many periods")
def zero_beside_1e6(rng):
    return Problem(np.sin, rule(np.cos), [np.array([0.0, 1e6, 0.5 + rng.uniform()])])


@right("scale", "sin(1e4 x): ordinary steps are many periods")
def fast_oscillation(rng):
    return Problem(lambda x: np.sin(1e4 * x), rule(lambda x: 1e4 * np.cos(1e4 * x)), normal(rng, (5,)))


@right("scale", "sin at 1e8, where an ulp of x is 1.5e-8")
def sine_at_1e8(rng):
    return Problem(np.sin, rule(np.cos), [1e8 + 10 * normal(rng, (4,))[0]])


@right("scale", "sin with a period of 2**-10 at 1: every power-of-two step above it sees no change at all")
def steps_of_whole_periods(rng):
    w = 2 * np.pi * 1024
    return Problem(lambda x: np.sin(w * x), rule(lambda x: w * np.cos(w * x)), [np.array([1.0, 0.5, 2.0])])


@wrong("scale", "the same, with gradient 0, which all those steps confirm")
def steps_of_whole_periods_zero(rng):
    p = steps_of_whole_periods(rng)
    return Problem(p.f, lambda g, x: (np.zeros_like(x),), p.arrays)


@wrong("scale", "sin(1e4 x) with the slope of sin(x) times 1e4")
def fast_oscillation_wrong(rng):
    return Problem(fast_oscillation(rng).f, rule(lambda x: 1e4 * np.cos(x)), normal(rng, (5,)))


@wrong("scale", "sin at 1e8, 1 % off", error=9e-3)
def sine_at_1e8_off(rng):
    p = sine_at_1e8(rng)
    return Problem(p.f, spoil(p.vjp, times(1.01)), p.arrays)


@wrong("scale", "a zero beside 1e6, 1 % off at the zero", error=9e-3)
def zero_beside_1e6_off(rng):
    p = zero_beside_1e6(rng)
    return Problem(p.f, spoil(p.vjp, times(1.01, 0)), p.arrays, where=(0, (0,)))


@wrong("scale", "the norm of a vector of length 1e-7 with an epsilon of 1e-8 in the denominator")
def norm_with_epsilon(rng):
    p = inputs_1e7th(rng)
    return Problem(p.f, lambda g, x: (g * x / (norm(x) + 1e-8),), p.arrays)


@wrong("scale", "elements from 1e-6 to 1e6: the smallest gets the slope 1 - 3 x**2, sign turned")
def smallest_sign_turned(rng):
    p = inputs_of_all_sizes(rng)
    return Problem(p.f, spoil(p.vjp, times(-1, 0)), p.arrays, where=(0, (0,)))


# ---- scales of gradients --------------------------------------------------------------------------------------------


def two_leaves(x, y):
    """y moves the sum a million times less than x."""
    return np.sum(np.sin(x)) + 1e-6 * np.sum(np.cos(y))


def two_leaves_rule(g, x, y):
    return g * np.cos(x), -1e-6 * g * np.sin(y)


def weighted(weights):
    """sum(weights * sin(x)): one output, and gradients of very different sizes."""
    return lambda x: np.sum(weights * np.sin(x)), lambda g, x: (g * weights * np.cos(x),)


@right("small", "a gradient of 1e-7")
def gradient_1e7th(rng):
    return Problem(lambda x: 1e-7 * np.sin(x), rule(lambda x: 1e-7 * np.cos(x)), normal(rng, (5,)))


@right("small", "a gradient of 1e-100")
def gradient_1e100th(rng):
    return Problem(lambda x: 1e-100 * np.sin(x), rule(lambda x: 1e-100 * np.cos(x)), normal(rng, (5,)))


@right("small", "a leaf whose gradient is 1e-6 of the other's")
def small_leaf(rng):
    return Problem(two_leaves, two_leaves_rule, normal(rng, (4,), (4,)))


@right("small", "x ** 20 at 1e-3: values of 1e-60")
def high_power_of_small(rng):
    return Problem(lambda x: x**20, rule(lambda x: 20 * x**19), [1e-3 * positive(rng, (4,))[0]])


@wrong("small", "a gradient of 1e-7, returned as 0")
def gradient_1e7th_zero(rng):
    p = gradient_1e7th(rng)
    return Problem(p.f, lambda g, x: (np.zeros_like(x),), p.arrays)


@wrong("small", "a gradient of 1e-7, of opposite sign")
def gradient_1e7th_negated(rng):
    p = gradient_1e7th(rng)
    return Problem(p.f, spoil(p.vjp, times(-1)), p.arrays)


@wrong("small", "a gradient of 1e-100, returned as 0")
def gradient_1e100th_zero(rng):
    p = gradient_1e100th(rng)
    return Problem(p.f, lambda g, x: (np.zeros_like(x),), p.arrays)


@wrong("small", "the leaf whose gradient is 1e-6 of the other's is dropped")
def small_leaf_dropped(rng):
    return Problem(two_leaves, spoil(two_leaves_rule, times(0), 1), normal(rng, (4,), (4,)))


@wrong("small", "one element, whose gradient is 1e-6 of its neighbours', is dropped")
def small_element_dropped(rng):
    f, vjp = weighted(np.array([1.0, 1e-6, 1.0, 2.0]))
    return Problem(f, spoil(vjp, times(0, 1)), normal(rng, (4,)), where=(0, (1,)))


@wrong("small", "everything is off by 1e-6 of its size", error=0.9e-6)
def all_off_by_1e6th(rng):
    return Problem(np.exp, spoil(rule(np.exp), times(1 + 1e-6)), normal(rng, (6,)))


@wrong("small", "everything is off by 1e-4", error=0.9e-4)
def all_off_by_1e4th(rng):
    return Problem(np.tanh, rule(lambda x: (1 - np.tanh(x) ** 2) * (1 + 1e-4)), normal(rng, (6,)))


@wrong("small", "one of two products is off by 5e-4", error=4e-4)
def matmul_off_by_5e4th(rng):
    return Problem(np.matmul, lambda g, a, b: (1.0005 * g @ b.T, a.T @ g), normal(rng, (2, 3), (3, 2)))


# ---- scales of values -----------------------------------------------------------------------------------------------


@right("value", "1e8 + sin(x): the change sits in the last digits", accept="ill")
def offset_1e8(rng):
    return Problem(lambda x: 1e8 + np.sin(x), rule(np.cos), normal(rng, (5,)))


@right("value", "1e12 + x * x: little of the change survives", exact="pass ill")
def offset_1e12(rng):
    return Problem(lambda x: 1e12 + x * x, rule(lambda x: 2 * x), positive(rng, (5,)))


@right("value", "(1e8 + x) - 1e8 is a staircase of height 1.5e-8 and slope 1: at small steps f stands still",
       exact="pass ill")
def staircase(rng):
    return Problem(lambda x: (1e8 + x) - 1e8, lambda g, x: (g,), normal(rng, (5,)))


@right("value", "exp at 30")
def exp_30(rng):
    return Problem(np.exp, rule(np.exp), [30 + normal(rng, (4,))[0]])


@right("value", "exp at 700: 1e304, where x + 0.1 x overflows")
def exp_700(rng):
    def f(x):
        with np.errstate(over="ignore"):
            return np.exp(x)

    return Problem(f, rule(np.exp), [np.array([700.0, 1.0, -700.0])])


@right("value", "cross-entropy at logits of 1e3", exact="pass ill")
def cross_entropy_large_logits(rng):
    return cross_entropy(at(1e3 * normal(rng, (2, 4))[0], {(0, 1): -5e3}))  # a target that is far from likely


@right("value", "(1 - cos x) / x**2 at 1e-4: f has lost half its digits, the rule by series has not", exact="pass ill")
def cancellation(rng):
    return Problem(lambda x: (1 - np.cos(x)) / x**2, rule(lambda x: -x / 12 + x**3 / 180),
                   [1e-4 * positive(rng, (4,))[0]])


@right("value", "a linear system with condition number 1e6", exact="pass ill")
def solve_ill_conditioned(rng):
    return ill_conditioned(rng)


@wrong("value", "1e8 + sin(x), 1 % off", error=9e-3)
def offset_1e8_off(rng):
    p = offset_1e8(rng)
    return Problem(p.f, spoil(p.vjp, times(1.01)), p.arrays)


@wrong("value", "1e12 + x * x, twice the slope: that much of the change does survive")
def offset_1e12_doubled(rng):
    p = offset_1e12(rng)
    return Problem(p.f, spoil(p.vjp, times(2)), p.arrays)


@wrong("value", "the staircase of slope 1 with slope 1.01", error=9e-3)
def staircase_off(rng):
    p = staircase(rng)
    return Problem(p.f, spoil(p.vjp, times(1.01)), p.arrays)


@wrong("value", "the staircase with slope 0, which every small step confirms")
def staircase_zero(rng):
    p = staircase(rng)
    return Problem(p.f, spoil(p.vjp, times(0)), p.arrays)


@right("value", "a standard deviation at 1e6, whose gradient computes the mean of squares less the square of the mean: "
       "it keeps four digits, f all", exact="pass ill", error=1e-2)
def std_at_1e6(rng):
    def vjp(g, x):
        mean = np.mean(x)
        return (g * (x - mean) / (x.size * np.sqrt(np.mean(x * x) - mean**2)),)

    return Problem(lambda x: np.sqrt(np.mean((x - np.mean(x)) ** 2)), vjp, [1e6 + normal(rng, (6,))[0]])


@wrong("value", "exp at 30, 5e-4 off", error=4e-4)
def exp_30_off(rng):
    p = exp_30(rng)
    return Problem(p.f, spoil(p.vjp, times(1 + 5e-4)), p.arrays)


@wrong("value", "cross-entropy at logits of 20 and more forgets the target where the probability is above 0.999")
def cross_entropy_forgets_target(rng):
    p = cross_entropy(at(*normal(rng, (2, 4)), {(0, 1): 20.0, (1, 3): 25.0}))

    def vjp(g, x, targets):
        y = softmax(x)
        return (g / len(x) * (y - (y < 0.999) * np.eye(4)[targets]),)

    return Problem(p.f, vjp, p.arrays)


@wrong("value", "a linear system with condition number 1e6, solved with the matrix for its transpose")
def solve_ill_conditioned_transposed(rng):
    p = ill_conditioned(rng)

    def vjp(g, a, b):
        gb = np.linalg.solve(a, g)
        return -np.outer(gb, np.linalg.solve(a, b)), gb

    return Problem(p.f, vjp, p.arrays, twin=p.twin)


def cross_entropy(x, targets=(1, 3)):
    """The mean over rows, with integer targets beside the logits."""
    rows = np.arange(len(x))

    def f(x, targets):
        shifted = x - x.max(axis=1, keepdims=True)
        return np.mean(np.log(np.sum(np.exp(shifted), axis=1)) - shifted[rows, targets])

    return Problem(f, lambda g, x, targets: (g / len(x) * (softmax(x) - np.eye(4)[targets]),), [x, np.array(targets)])


def ill_conditioned(rng):
    """solve(a, b) with singular values 1, 1e-2 and 1e-6."""
    u, v = (np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(2))

    def vjp(g, a, b):
        gb = np.linalg.solve(a.T, g)
        return -np.outer(gb, np.linalg.solve(a, b)), gb

    return Problem(np.linalg.solve, vjp, [(u * [1.0, 1e-2, 1e-6]) @ v, *normal(rng, (3,))], twin=cramer)


def cramer(a, b):
    """The solution of 3 equations by cross products."""
    p, q, r = a.T
    by_cross = np.array([cross(q, r), cross(r, p), cross(p, q)])
    return by_cross @ b / (p @ cross(q, r))


def cross(u, v):
    return np.array([u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]])
