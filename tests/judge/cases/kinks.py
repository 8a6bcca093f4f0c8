"""Kinks: near one, at one, tied ones, jumps. A kink may leave a choice; it excuses nothing outside that choice.

At a kink every element of the subdifferential is a right answer, and `kink` is the precise verdict; where the answer
equals the central difference (the middle of the interval), `pass` is as precise.
"""

import numpy as np

from ..case import Problem, at, normal, right, rule, spoil, times, wrong

BESIDE = {1: 3e-8, 3: -1e-7, 4: 7e-8}
"""Entries that every step of 1e-6 carries across zero."""
AT = {1: 0.0, 4: 0.0}


def relu(x):
    return np.maximum(x, 0)


def relu_with(slope_at_zero):
    """The rule of relu, with a choice at 0."""
    return rule(lambda x: np.where(x == 0, slope_at_zero, x > 0))


def leaky_relu(x):
    return np.where(x > 0, x, 0.01 * x)


def leaky_relu_with(slope_at_zero):
    return rule(lambda x: np.where(x == 0, slope_at_zero, np.where(x > 0, 1.0, 0.01)))


def sign_rule(g, x):
    return (g * np.sign(x),)


def tied(rng, n=6, copies=2, extreme=np.max):
    """n numbers, the extreme one of which occurs `copies` times, at the first places."""
    x = rng.normal(size=n)
    top = extreme(x) * 1.0
    others = x[x != top][: n - copies]
    return np.concatenate([np.full(copies, top), others])


def share(reduce, *shares):
    """The rule of max or min: the places of the extreme value get these shares of g, in order."""

    def vjp(g, x):
        gradient = np.zeros_like(x)
        places = np.flatnonzero(x == reduce(x))
        gradient[places] = g * np.array(shares[: len(places)])
        return (gradient,)

    return vjp


# ---- near a kink: smooth, at a small enough step --------------------------------------------------------------------


@right("near", "relu with entries 3e-8 to 1e-7 from 0", accept="kink ill")
def relu_beside_zero(rng):
    return Problem(relu, rule(lambda x: 1.0 * (x > 0)), [at(*normal(rng, (6,)), BESIDE)])


@right("near", "|x| with entries 3e-8 to 1e-7 from 0", accept="kink ill")
def abs_beside_zero(rng):
    return Problem(np.abs, sign_rule, [at(*normal(rng, (6,)), BESIDE)])


@right("near", "relu at the smallest positive numbers", exact="pass kink")
def relu_one_ulp_from_zero(rng):
    return Problem(relu, rule(lambda x: 1.0 * (x > 0)), [at(*normal(rng, (6,)), {0: 5e-324, 3: -5e-324, 5: 1e-300})])


@right("near", "max of two numbers 1e-9 apart", accept="kink ill")
def max_almost_tied(rng):
    x = normal(rng, (6,))[0]
    x[2] = np.delete(x, 2).max() + 1e-9
    return Problem(np.max, share(np.max, 1), [x])


@right("near", "clip with entries 1e-8 from both bounds", accept="kink ill")
def clip_beside_bounds(rng):
    x = at(*normal(rng, (7,)), {0: 1 - 1e-8, 2: 1 + 1e-8, 3: -1 + 1e-8, 6: -1 - 1e-8})
    return Problem(lambda x: np.clip(x, -1, 1), rule(lambda x: 1.0 * (np.abs(x) < 1)), [x])


@right("near", "sort with a gap of 1e-9", accept="kink ill")
def sort_small_gap(rng):
    x = normal(rng, (5,))[0]
    return Problem(np.sort, lambda g, x: (g[np.argsort(np.argsort(x))],), [at(x, {3: x[1] + 1e-9})])


@right("near", "floor 1e-7 above an integer: gradient 0, any larger step sees a jump", accept="kink ill")
def floor_beside_jump(rng):
    return Problem(np.floor, lambda g, x: (np.zeros_like(x),), [at(*normal(rng, (5,)), {2: 2 + 1e-7})])


@wrong("near", "relu with a mask that starts at 1e-6: entries of 3e-8 and 7e-8 get 0")
def relu_mask_starts_late(rng):
    return Problem(relu, rule(lambda x: 1.0 * (x > 1e-6)), [at(*normal(rng, (6,)), BESIDE)])


@wrong("near", "|x| smoothed to x / sqrt(x**2 + 1e-14), at entries of 1e-7")
def abs_smoothed(rng):
    return Problem(np.abs, rule(lambda x: x / np.sqrt(x**2 + 1e-14)), [at(*normal(rng, (6,)), BESIDE)])


@wrong("near", "max of two numbers 1e-9 apart: each gets half, as at a tie")
def max_almost_tied_shared(rng):
    p = max_almost_tied(rng)

    def vjp(g, x):
        tied = x >= x.max() - 1e-6
        return (g * tied / tied.sum(),)

    return Problem(p.f, vjp, p.arrays)


@right("near", "a sum of 1000 |x - c|, with c 1e-4 apart: at 0.05 as many are below as above, slope 0; at 0.08, 600",
       exact="pass ill", accept="kink")
def among_many_kinks(rng):
    corners = 1e-4 * (np.arange(1000) + 0.37)
    x = np.array([0.05, 0.08]) + 1e-4 * rng.uniform(-0.5, 0.3, size=2)
    return Problem(lambda x: sum(np.abs(x - c) for c in corners),
                   rule(lambda x: sum(np.sign(x - c) for c in corners)), [x])


# ---- at a kink ------------------------------------------------------------------------------------------------------


@right("kink", "relu'(0) = 0, the usual choice", exact="kink", accept="pass ill", curvature="bent")
def relu_at_zero(rng):
    return Problem(relu, relu_with(0.0), [at(*normal(rng, (6,)), AT)])


@right("kink", "relu'(0) = 1 is as right", exact="kink", accept="pass ill", curvature="bent")
def relu_at_zero_one(rng):
    return Problem(relu, relu_with(1.0), [at(*normal(rng, (6,)), AT)])


@right("kink", "relu'(0) = 1/2, which the central difference confirms", exact="kink pass", curvature="bent")
def relu_at_zero_half(rng):
    return Problem(relu, relu_with(0.5), [at(*normal(rng, (6,)), AT)])


@right("kink", "every entry is 0: a dead layer", exact="kink", accept="pass ill", curvature="bent")
def relu_all_zero(rng):
    return Problem(relu, relu_with(0.0), [np.zeros(6)])


@right("kink", "|x| at 0 with sign(0) = 0, the middle", exact="kink pass", curvature="bent")
def abs_at_zero(rng):
    return Problem(np.abs, sign_rule, [at(*normal(rng, (6,)), AT)])


@right("kink", "leaky relu at 0 takes the left slope, 0.01", exact="kink", accept="pass ill", curvature="bent")
def leaky_relu_at_zero(rng):
    return Problem(leaky_relu, leaky_relu_with(0.01), [at(*normal(rng, (6,)), AT)])


@right("kink", "clip exactly at both bounds, 1 inside and at them", exact="kink", accept="pass ill", curvature="bent")
def clip_at_bounds(rng):
    x = at(*normal(rng, (6,)), {0: 1.0, 3: -1.0})
    return Problem(lambda x: np.clip(x, -1, 1), rule(lambda x: 1.0 * (np.abs(x) <= 1)), [x])


@right("kink", "hinge loss exactly at the margin", exact="kink", accept="pass ill", curvature="bent")
def hinge_at_margin(rng):
    y = np.array([1.0, -1, 1, -1, 1, -1])
    x = at(*normal(rng, (6,)), {1: -1.0, 2: 1.0})
    return Problem(lambda x: np.sum(np.maximum(0, 1 - y * x)), lambda g, x: (g * -y * (y * x < 1),), [x])


@right("kink", "the norm of the zero vector, subgradient 0, the middle", exact="kink pass", curvature="bent")
def norm_at_zero(rng):
    def vjp(g, x):
        return (np.zeros_like(x),)

    return Problem(lambda x: np.sqrt(np.sum(x * x)), vjp, [np.zeros(3)])


@right("kink", "the standard deviation of a constant, subgradient 0", exact="kink pass", curvature="bent")
def std_of_constant(rng):
    return Problem(np.std, lambda g, x: (np.zeros_like(x),), [np.full(4, 3.0)])


@right("kink", "a kink in one element, and every output depends on every element", exact="kink", accept="pass ill")
def relu_then_matmul(rng):
    x, w = normal(rng, (2, 3), (3, 2))
    x[1, 2] = 0.0
    return Problem(lambda x, w: relu(x) @ w, lambda g, x, w: ((g @ w.T) * (x > 0), relu(x).T @ g), [x, w])


@right("kink", "two layers and a row of zeros, where every unit is at its kink at once: 0 from each is what "
       "any framework answers", exact="kink ill", accept="pass")
def relu_layer_of_zero_row(rng):
    x, w, almost, v = normal(rng, (2, 4), (4, 12), (4, 12), (24, 256))
    x[1] = 0.0
    w = np.concatenate([w, 0.2 * almost - w], axis=1)
    v[12:] = v[:12]
    return Problem(lambda x, w, v: relu(x @ w) @ v, lambda g, x, w, v: (((g @ v.T) * (x @ w > 0)) @ w.T,), [x, w, v],
                   wrt=(0,))


@right("kink", "|x0| - |x1| at 0 with (1, 1), as automatic differentiation may give: not convex, so that the "
       "subgradient inequality says nothing", exact="kink", accept="pass ill")
def difference_of_convex(rng):
    c = np.array([1.0, -1, 2])
    return Problem(lambda x: np.sum(c * np.abs(x)), rule(lambda x: c * np.where(x >= 0, 1.0, -1.0)),
                   [at(*normal(rng, (3,)), {0: 0.0, 1: 0.0})])


@right("kink", "no kink at all: x |x| and max(x, 0) ** 2 have slope 0 on both sides of 0", accept="ill kink")
def kinked_only_in_the_second_derivative(rng):
    return Problem(lambda x: x * np.abs(x) + relu(x) ** 2, rule(lambda x: 2 * np.abs(x) + 2 * relu(x)),
                   [at(*normal(rng, (6,)), AT)])


@right("kink", "Huber's loss exactly at its corner, where only the second derivative jumps", accept="ill kink")
def huber_at_corner(rng):
    return Problem(lambda x: np.where(np.abs(x) <= 1, x * x / 2, np.abs(x) - 0.5), rule(lambda x: np.clip(x, -1, 1)),
                   [at(*normal(rng, (6,)), {0: 1.0, 4: -1.0})])


@right("kink", "a squared hinge exactly at its corner, in a sum with others: gradient 0, and a slope that falls to 0 "
       "with the step", accept="ill kink")
def squared_hinge_at_corner(rng):
    y = np.array([1.0, -1, 1, -1])
    x = y * np.array([1, 1, -rng.uniform(), rng.uniform()])
    return Problem(lambda x: 5 + np.sum(relu(1 - y * x) ** 2), lambda g, x: (-2 * g * y * relu(1 - y * x),), [x])


@wrong("kink", "relu'(0) = 2: outside [0, 1]")
def relu_at_zero_two(rng):
    return Problem(relu, relu_with(2.0), [at(*normal(rng, (6,)), AT)])


@wrong("kink", "relu'(0) = -1/2")
def relu_at_zero_negative(rng):
    return Problem(relu, relu_with(-0.5), [at(*normal(rng, (6,)), AT)])


@wrong("kink", "leaky relu'(0) = 1.01, 1 % beyond the larger slope", error=9e-3)
def leaky_relu_at_zero_slopes_added(rng):
    return Problem(leaky_relu, leaky_relu_with(1.01), [at(*normal(rng, (6,)), AT)])


@wrong("kink", "leaky relu'(0) = 0, below the smaller slope of 0.01", error=9e-3)
def leaky_relu_at_zero_none(rng):
    return Problem(leaky_relu, leaky_relu_with(0.0), [at(*normal(rng, (6,)), AT)])


@wrong("kink", "|x|'(0) = 3/2")
def abs_at_zero_beyond(rng):
    return Problem(np.abs, rule(lambda x: np.where(x == 0, 1.5, np.sign(x))), [at(*normal(rng, (6,)), AT)])


@wrong("kink", "|x|'(0) = 3/2 for |x| and small multiples of both signs: outside for each, but inside if each could "
       "choose its side")
def abs_at_zero_beyond_in_many_outputs(rng):
    c = 1e-6 * np.array([[1.0], [-1], [1], [-1], [1], [-1]])

    def vjp(g, x):
        return ((g[0] + (c * g[1]).sum(axis=0)) * np.where(x == 0, 1.5, np.sign(x)),)

    return Problem(lambda x: (np.abs(x), c * np.abs(x)), vjp, [np.array([0.0, 1 + rng.uniform()])])


@wrong("kink", "clip gives 2 at a bound: inside and beyond it are counted")
def clip_at_bounds_twice(rng):
    p = clip_at_bounds(rng)
    return Problem(p.f, rule(lambda x: 1.0 * (np.abs(x) <= 1) + 1.0 * (np.abs(x) == 1)), p.arrays)


@wrong("kink", "clip lets g through beyond its bounds, with an entry at a bound beside it")
def clip_not_masked(rng):
    x = at(*normal(rng, (6,)), {0: 1.0, 3: -1.0, 5: 2.5})
    return Problem(lambda x: np.clip(x, -1, 1), lambda g, x: (g,), [x])


@wrong("kink", "the norm of the zero vector: 0 / 0")
def norm_at_zero_nan(rng):
    def vjp(g, x):
        with np.errstate(invalid="ignore"):
            return (g * x / np.sqrt(np.sum(x * x)),)

    return Problem(lambda x: np.sqrt(np.sum(x * x)), vjp, [np.zeros(3)])


@wrong("kink", "one smooth element of relu is 1 % off, with exact zeros beside it", error=9e-3)
def smooth_wrong_beside_kinks(rng):
    x = at(*normal(rng, (6,)), {0: 1.3, **AT})
    return Problem(relu, spoil(relu_with(0.0), times(1.01, 0)), [x], where=(0, (0,)))


@wrong("kink", "the same, where all go into one sum: the output is kinked, the wrong element is not", error=9e-4)
def smooth_wrong_in_a_kinked_sum(rng):
    x = at(*normal(rng, (6,)), {0: 1.3, **AT})

    def vjp(g, x):
        return (g * 2 * np.sum(relu(x)) * (x > 0),)

    return Problem(lambda x: np.sum(relu(x)) ** 2, spoil(vjp, times(1.001, 0)), [x], where=(0, (0,)))


@wrong("kink", "relu(x) - relu(-x) is x, with slope 1 on both sides of 0; two right choices at 0 add up to 0")
def kinks_that_cancel(rng):
    return Problem(lambda x: relu(x) - relu(-x), rule(lambda x: 1.0 * (x > 0) + 1.0 * (x < 0)),
                   [at(*normal(rng, (6,)), AT)])


@wrong("kink", "|x0| - |x1| at 0 with (2, 1): the first is outside [-1, 1]")
def difference_of_convex_beyond(rng):
    p = difference_of_convex(rng)
    return Problem(p.f, spoil(p.vjp, times(2, 0)), p.arrays)


@wrong("kink", "the mask of a relu taken from another layer, with exact zeros in both")
def mask_of_the_other(rng):
    x, y = at(*normal(rng, (6,)), {0: 1.0, 1: 0.0}), at(*normal(rng, (6,)), {0: -1.0, 2: 0.0})
    return Problem(lambda x, y: relu(x) + 2 * relu(y), lambda g, x, y: (g * (y > 0), 2 * g * (y > 0)), [x, y])


# ---- ties -----------------------------------------------------------------------------------------------------------


@right("tie", "max with two equal entries: the first takes all", exact="kink", accept="pass ill", curvature="bent")
def max_tie_first(rng):
    return Problem(np.max, share(np.max, 1, 0), [tied(rng)])


@right("tie", "max with two equal entries: half each, the middle", exact="kink pass", curvature="bent")
def max_tie_half(rng):
    return Problem(np.max, share(np.max, 0.5, 0.5), [tied(rng)])


@right("tie", "max with three equal entries: a third each", exact="kink", accept="pass ill", curvature="bent")
def max_tie_thirds(rng):
    return Problem(np.max, share(np.max, *[1 / 3] * 3), [tied(rng, copies=3)])


@right("tie", "min, concave: a quarter and three quarters", exact="kink", accept="pass ill", curvature="bent")
def min_tie_uneven(rng):
    return Problem(np.min, share(np.min, 0.25, 0.75), [tied(rng, extreme=np.min)])


@right("tie", "maximum(x, y) where they are equal: x takes all", exact="kink", accept="pass ill", curvature="bent")
def maximum_of_equals(rng):
    x, y = normal(rng, (5,), (5,))
    return Problem(np.maximum, lambda g, x, y: (g * (x >= y), g * (x < y)), [x, at(y, {1: x[1], 4: x[4]})])


@right("tie", "sort with two equal entries, in the order of argsort", exact="kink", accept="pass ill")
def sort_tie(rng):
    x = normal(rng, (5,))[0]
    return Problem(np.sort, lambda g, x: (g[np.argsort(np.argsort(x, kind="stable"))],), [at(x, {3: x[1]})])


@right("tie", "max pooling over patches of zeros, as after a relu: the first of each patch takes all",
       exact="kink", accept="pass ill", curvature="bent")
def max_pool_of_zeros(rng):
    def vjp(g, x):
        first = np.arange(4) == x.argmax(axis=1)[:, None]
        return (g[:, None] * first,)

    return Problem(lambda x: x.max(axis=1), vjp, [relu(normal(rng, (3, 4))[0] - [[0.0], [9.0], [9.0]])])


@wrong("tie", "both tied maxima get all of g: each is inside [0, 1], together they are not a subgradient",
       curvature="bent")
def max_tie_both(rng):
    return Problem(np.max, share(np.max, 1, 1), [tied(rng)])


@wrong("tie", "a quarter each for two tied maxima: their sum must be 1", curvature="bent")
def max_tie_quarters(rng):
    return Problem(np.max, share(np.max, 0.25, 0.25), [tied(rng)])


@wrong("tie", "two of three tied maxima get all of g", curvature="bent")
def max_tie_two_of_three(rng):
    return Problem(np.max, share(np.max, 1, 1, 0), [tied(rng, copies=3)])


@wrong("tie", "nobody gets g", curvature="bent")
def max_tie_nobody(rng):
    return Problem(np.max, share(np.max, 0, 0), [tied(rng)])


@wrong("tie", "both tied minima get all of g: the concave side", curvature="bent")
def min_tie_both(rng):
    return Problem(np.min, share(np.min, 1, 1), [tied(rng, extreme=np.min)])


@wrong("tie", "maximum(x, y) where they are equal: both operands get g", curvature="bent")
def maximum_of_equals_both(rng):
    x, y = normal(rng, (5,), (5,))
    return Problem(np.maximum, lambda g, x, y: (g * (x >= y), g * (y >= x)), [x, at(y, {1: x[1], 4: x[4]})])


@wrong("tie", "half for a tied maximum, half for a smaller entry, which is smooth")
def max_tie_half_astray(rng):
    p = max_tie_half(rng)
    return Problem(p.f, spoil(p.vjp, lambda a: np.roll(a, 1)), p.arrays)


@wrong("tie", "the norm of the zero vector gives (1, 1): each inside [-1, 1], together of length 1.4", curvature="bent")
def norm_at_zero_ones(rng):
    return Problem(lambda x: np.sqrt(np.sum(x * x)), lambda g, x: (g * np.ones_like(x),), [np.zeros(2)])


# ---- jumps ----------------------------------------------------------------------------------------------------------


@right("jump", "floor exactly at an integer: no derivative; 0, as everywhere else, is no error",
       exact="kink ill", accept="pass")
def floor_at_integer(rng):
    return Problem(np.floor, lambda g, x: (np.zeros_like(x),), [at(*normal(rng, (5,)), {2: 2.0})])


@right("jump", "the entry that another array's argmax selects: gradient 0 for the scores, far from a tie")
def argmax_selects(rng):
    x, scores = normal(rng, (5,), (5,))

    def vjp(g, x, scores):
        return np.where(np.arange(5) == scores.argmax(), g * np.cos(x), 0.0), np.zeros_like(scores)

    scores[2] = 4.5
    return Problem(lambda x, scores: np.sin(x)[scores.argmax()], vjp, [x, scores])


@right("jump", "a step function times a smooth one, far from the step")
def step_times_smooth(rng):
    return Problem(lambda x: np.where(x > 0, 3, 1) * np.sin(x), rule(lambda x: np.where(x > 0, 3, 1) * np.cos(x)),
                   normal(rng, (6,)))


@wrong("jump", "the straight-through estimator: round(x) passes g on, its derivative is 0")
def straight_through(rng):
    return Problem(np.round, lambda g, x: (g,), [rng.integers(-3, 4, size=5) + rng.uniform(-0.3, 0.3, size=5)],
                   twin=lambda x: np.floor(x + 0.5))


@wrong("jump", "softmax's gradient for an argmax: the scores get one, f does not move with them")
def argmax_as_if_soft(rng):
    p = argmax_selects(rng)

    def vjp(g, x, scores):
        weights = np.exp(scores - scores.max())
        return p.vjp(g, x, scores)[0], g * weights / weights.sum()

    return Problem(p.f, vjp, p.arrays)
