"""Many elements: one wrong among 1000 or 100 000, errors that cancel in a direction, kinks by the thousand."""

import numpy as np

from ..case import Problem, away, matmul_rule, right, rule, spoil, times, wrong
from .edges import logsumexp, logsumexp_rule, softmax, softmax_rule
from .functions import layernorm, layernorm_rule

K1, K100 = 1000, 100_000


def sines(rng, n, change=lambda a: a, where=None):
    """sin of n elements, its gradient changed."""
    return Problem(np.sin, spoil(rule(np.cos), change), [away(rng, n, 0.05, 1.4)], where=where, elementwise=True)


def one_wrong(rng, n, factor):
    """One element of the gradient of sin multiplied by `factor`."""
    index = int(rng.integers(n))
    return sines(rng, n, times(factor, index), (0, (index,)))


def relus(rng, n, share, slope_at_zero=0.0):
    """relu of n elements, a `share` of which is exactly 0; what is 0, and the problem."""
    x = away(rng, n, 0.05, 3.0)
    x[rng.random(n) < share] = 0.0
    vjp = rule(lambda x: np.where(x == 0, slope_at_zero, x > 0))
    return Problem(lambda x: np.where(x > 0, x, 0), vjp, [x], elementwise=True)


def sum_of_squares(rng, n):
    return Problem(lambda x: np.sum(x * x), lambda g, x: (2 * g * x,), [away(rng, n, 0.05, 3.0)])


def two_leaves(rng, n):
    """Two leaves of n elements; the second's gradient is 1e-6 of the first's."""
    weights = rng.uniform(0.5, 1.5, size=n)
    return Problem(
        lambda x, y: np.array([np.sum(weights * np.sin(x)), 1e-6 * np.sum(weights * y * y)]),
        lambda g, x, y: (g[0] * weights * np.cos(x), 2e-6 * g[1] * weights * y),
        [away(rng, n, 0.05, 1.4), away(rng, n, 0.05, 1.4)],
    )


# ---- right ----------------------------------------------------------------------------------------------------------


@right("1000", "sin of 1000 elements")
def k1_sin(rng):
    return sines(rng, K1)


@right("1000", "x ** 3 of 1000 elements from 1e-6 to 1e6")
def k1_of_all_sizes(rng):
    x = away(rng, K1, 0.5, 1.4) * 10.0 ** rng.uniform(-6, 6, size=K1)
    return Problem(lambda x: x**3, rule(lambda x: 3 * x * x), [x], elementwise=True)


@right("1000", "relu of 1000 elements, 100 of them exactly 0", exact="kink", accept="pass ill")
def k1_relu(rng):
    return relus(rng, K1, 0.1)


@right("1000", "the product of two 40 x 40 matrices")
def k1_matmul(rng):
    return Problem(np.matmul, matmul_rule, [rng.normal(size=(40, 40)), rng.normal(size=(40, 40))])


@right("1000", "softmax over rows of 40 x 40")
def k1_softmax(rng):
    return Problem(softmax, softmax_rule, [rng.normal(size=(40, 40))])


@right("1000", "logsumexp of 1000 numbers: one output, gradients of about 1e-3")
def k1_logsumexp(rng):
    return Problem(logsumexp, logsumexp_rule, [rng.normal(size=K1)])


@right("1000", "3000 reads of a table of 1000 rows, some never read")
def k1_gather(rng):
    def vjp(g, x, index):
        return (np.bincount(index, weights=g, minlength=K1) * np.cos(x),)

    return Problem(lambda x, index: np.sin(x)[index], vjp, [away(rng, K1, 0.05, 1.4), rng.integers(K1, size=3 * K1)])


@right("1000", "layer normalisation over rows of 40 x 40")
def k1_layernorm(rng):
    return Problem(layernorm, layernorm_rule, [rng.normal(size=(40, 40))])


@right("1000", "1000 elements with gradient 0, and one with gradient 1: argmax selects, far from a tie")
def k1_max(rng):
    x = rng.normal(size=K1)
    x[rng.integers(K1)] = 7.0
    return Problem(np.max, lambda g, x: (g * (np.arange(K1) == x.argmax()),), [x])


@right("100 000", "sin of 100 000 elements")
def k100_sin(rng):
    return sines(rng, K100)


@right("100 000", "the sum of 100 000 squares: one output, whose rounding is above most single changes")
def k100_sum_of_squares(rng):
    return sum_of_squares(rng, K100)


@right("100 000", "relu of 100 000 elements, a tenth of them exactly 0", exact="kink", accept="pass ill")
def k100_relu(rng):
    return relus(rng, K100, 0.1)


@right("100 000", "two leaves of 50 000, one with a gradient of 1e-6 of the other's")
def k100_two_leaves(rng):
    return two_leaves(rng, K100 // 2)


@right("100 000", "a mean over 100 000 taken off: every output depends on every element")
def k100_centred(rng):
    return Problem(lambda x: x - x.mean(), lambda g, x: (g - g.mean(),), [rng.normal(size=K100)])


# ---- wrong ----------------------------------------------------------------------------------------------------------


@wrong("1000", "one of 1000 doubled")
def k1_one_doubled(rng):
    return one_wrong(rng, K1, 2)


@wrong("1000", "one of 1000 off by 1 %", error=9e-3)
def k1_one_off(rng):
    return one_wrong(rng, K1, 1.01)


@wrong("1000", "one of 1000 of the wrong sign")
def k1_one_negated(rng):
    return one_wrong(rng, K1, -1)


@wrong("1000", "all of 1000 off by 1e-6 of their size", error=0.9e-6)
def k1_all_off(rng):
    return sines(rng, K1, times(1 + 1e-6))


@wrong("1000", "errors of +1 % and -1 % in turn: a direction of positive numbers hardly sees them", error=9e-3)
def k1_alternating(rng):
    return sines(rng, K1, times(1 + 0.01 * (-1.0) ** np.arange(K1)))


@wrong("1000", "two elements with errors of equal size: directions of +1 and -1 cancel them half of the time",
       error=1e-3)
def k1_equal_pair(rng):
    i, j = rng.choice(K1, 2, replace=False)

    def vjp(g, x):
        gradient = g * np.cos(x)
        gradient[[i, j]] += 0.1 * (g[i] + g[j])
        return (gradient,)

    return Problem(np.sin, vjp, [away(rng, K1, 0.05, 1.4)], elementwise=True)


@wrong("1000", "errors of up to 1 % whose sum is exactly what it should be", error=1e-3)
def k1_zero_sum(rng):
    return Problem(lambda x: np.sum(np.sin(x)), lambda g, x: (g * (np.cos(x) + 0.01 * (x - x.mean())),),
                   [away(rng, K1, 0.05, 1.4)])


@wrong("1000", "one of 1000, smooth, off by 1 % among 100 exact kinks", error=9e-3)
def k1_one_off_beside_kinks(rng):
    p = relus(rng, K1, 0.1)
    index = int(np.argmax(p.arrays[0]))
    return Problem(p.f, spoil(p.vjp, times(1.01, index)), p.arrays, where=(0, (index,)), elementwise=True)


@wrong("1000", "the smallest hundred of gradients from 1e-12 to 1e12 dropped")
def k1_smallest_dropped(rng):
    p = k1_of_all_sizes(rng)
    small = np.argsort(np.abs(p.arrays[0]))[:100]
    return Problem(p.f, spoil(p.vjp, times(0, small)), p.arrays, elementwise=True)


@wrong("1000", "gradients from 1e-9 to 1: those below 1e-8 are doubled")
def k1_smallest_doubled(rng):
    weights = 10.0 ** rng.uniform(-9, 0, size=K1)
    return Problem(lambda x: weights * np.sin(x), rule(lambda x: weights * np.where(weights < 1e-8, 2, 1) * np.cos(x)),
                   [away(rng, K1, 0.05, 1.4)], elementwise=True)


@wrong("1000", "max pooling of 100 patches, two of them all 0, as after a relu: each of four tied maxima gets all of g",
       curvature="bent")
def k1_max_pool_all(rng):
    x = rng.uniform(0.5, 2.0, size=(100, 4))
    x[[20, 70]] = 0.0
    return Problem(lambda x: x.max(axis=1), lambda g, x: (g[:, None] * (x == x.max(axis=1, keepdims=True)),), [x])


@wrong("1000", "maximum(x, y) of 300 numbers, equal at two places: both operands get g", curvature="bent", error=1e-4)
def k1_maximum_of_equals_both(rng):
    x, y = away(rng, 300, 0.05, 4.0), away(rng, 300, 0.05, 4.0)
    y[:2] = x[:2]
    return Problem(np.maximum, lambda g, x, y: (g * (x >= y), g * (y >= x)), [x, y])


@wrong("1000", "one entry of the gradient of a 40 x 40 product off by 1 %", error=9e-3)
def k1_matmul_one_off(rng):
    p = k1_matmul(rng)
    index = tuple(map(int, rng.integers(40, size=2)))
    return Problem(p.f, spoil(p.vjp, times(1.01, index)), p.arrays, where=(0, index))


@wrong("1000", "a 40 x 40 product: the second gradient transposed")
def k1_matmul_transposed(rng):
    p = k1_matmul(rng)
    return Problem(p.f, spoil(p.vjp, np.transpose, 1), p.arrays)


@wrong("1000", "softmax over rows of 40 x 40 with its sum along columns")
def k1_softmax_other_axis(rng):
    p = k1_softmax(rng)
    return Problem(p.f, lambda g, x: (softmax(x) * (g - (g * softmax(x)).sum(axis=0)),), p.arrays)


@wrong("100 000", "one of 100 000 doubled")
def k100_one_doubled(rng):
    return one_wrong(rng, K100, 2)


@wrong("100 000", "one of 100 000 off by 1 %", error=9e-3)
def k100_one_off(rng):
    return one_wrong(rng, K100, 1.01)


@wrong("100 000", "one of 100 000 dropped")
def k100_one_dropped(rng):
    return one_wrong(rng, K100, 0)


@wrong("100 000", "all of 100 000 off by 1e-6 of their size", error=0.9e-6)
def k100_all_off(rng):
    return sines(rng, K100, times(1 + 1e-6))


@wrong("100 000", "errors of +1 % and -1 % in turn", error=9e-3)
def k100_alternating(rng):
    return sines(rng, K100, times(1 + 0.01 * (-1.0) ** np.arange(K100)))


@wrong("100 000", "everything from index 65536 on is 0: an index of 16 bits")
def k100_index_of_16_bits(rng):
    return sines(rng, K100, times(0, slice(65_536, None)))


@wrong("100 000", "the last element is 0: a loop that ends one too early")
def k100_last_forgotten(rng):
    return sines(rng, K100, times(0, K100 - 1), (0, (K100 - 1,)))


@wrong("100 000", "one exact kink of 10 000 gets the slope 2")
def k100_one_kink_beyond(rng):
    p = relus(rng, K100, 0.1)
    index = int(rng.choice(np.flatnonzero(p.arrays[0] == 0)))

    def vjp(g, x):
        gradient = p.vjp(g, x)[0]
        gradient[index] = 2 * g[index]
        return (gradient,)

    return Problem(p.f, vjp, p.arrays, where=(0, (index,)), elementwise=True)


@wrong("100 000", "the sum of squares without its 2")
def k100_sum_of_squares_halved(rng):
    p = sum_of_squares(rng, K100)
    return Problem(p.f, spoil(p.vjp, times(0.5)), p.arrays)


@wrong("100 000", "two leaves of 50 000: the one with the small gradient is dropped")
def k100_small_leaf_dropped(rng):
    p = two_leaves(rng, K100 // 2)
    return Problem(p.f, spoil(p.vjp, times(0), 1), p.arrays)
