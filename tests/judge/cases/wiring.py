"""Where gradients go: broadcasting, axes, permutations, indices, sharing, several outputs."""

from itertools import pairwise

import numpy as np

from ..case import Problem, at, matmul_rule, normal, positive, right, rule, spoil, times, wrong

# ---- broadcasting ---------------------------------------------------------------------------------------------------


def outer_sum(x, y):
    """(n, 1) with (n,): both are stretched."""
    return np.sin(x + 2 * y)


def outer_sum_rule(g, x, y):
    g = g * np.cos(x + 2 * y)
    return g.sum(axis=1, keepdims=True), 2 * g.sum(axis=0)


def scale_rows(x, c):
    return x * c


def scale_rows_rule(reduce):
    return lambda g, x, c: (g * c, reduce(g * x, axis=0))


@right("broadcast", "(3, 1) with (3,): each operand sums over the other's axis")
def two_sided(rng):
    return Problem(outer_sum, outer_sum_rule, normal(rng, (3, 1), (3,)))


@right("broadcast", "a 0-d operand sums over everything")
def scalar_with_array(rng):
    return Problem(np.multiply, lambda g, c, x: (np.sum(g * x), g * c), normal(rng, (), (3, 2)))


@right("broadcast", "a bias over the middle axis of three")
def bias_in_the_middle(rng):
    return Problem(lambda x, b: np.tanh(x + b[:, None]),
                   lambda g, x, b: (d := g * (1 - np.tanh(x + b[:, None]) ** 2), d.sum(axis=(0, 2))),
                   normal(rng, (2, 3, 2), (3,)))


@right("broadcast", "the mean over two of three axes")
def mean_over_two_axes(rng):
    return Problem(lambda x: x.mean(axis=(0, 2)), lambda g, x: (np.broadcast_to(g[:, None] / 4, x.shape),),
                   normal(rng, (2, 3, 2)))


@wrong("broadcast", "the mean over the stretched axis instead of the sum")
def mean_for_sum(rng):
    return Problem(scale_rows, scale_rows_rule(np.mean), normal(rng, (4, 3), (3,)))


@wrong("broadcast", "the first row instead of the sum over rows")
def first_row_for_sum(rng):
    return Problem(scale_rows, scale_rows_rule(lambda a, axis: a[0]), normal(rng, (4, 3), (3,)))


@wrong("broadcast", "the sum over the wrong axis of a square: the shape is right")
def wrong_axis_of_a_square(rng):
    return Problem(scale_rows, scale_rows_rule(lambda a, axis: a.sum(axis=1)), normal(rng, (3, 3), (3,)))


@wrong("broadcast", "(3, 1) with (3,): the two sums are exchanged, and reshaped to fit")
def two_sided_exchanged(rng):
    def vjp(g, x, y):
        gx, gy = outer_sum_rule(g, x, y)
        return gy.reshape(3, 1) / 2, 2 * gx.reshape(3)

    return Problem(outer_sum, vjp, normal(rng, (3, 1), (3,)))


@wrong("broadcast", "the mean of a mean: divided by the rows, the columns are forgotten")
def mean_over_one_axis(rng):
    return Problem(np.mean, lambda g, x: (np.full(x.shape, g / x.shape[0]),), normal(rng, (4, 3)))


# ---- axes and orders ------------------------------------------------------------------------------------------------


def weight(shape):
    """Fixed weights, all different: no symmetry hides an exchange."""
    return np.cos(1.0 + np.arange(np.prod(shape, dtype=int))).reshape(shape)


W33 = weight((3, 3))
TRIANGLE = np.tri(3, dtype=bool)


@right("order", "a permutation of three axes that is not its own inverse")
def permuted_axes(rng):
    return Problem(lambda x: np.sin(x).transpose(1, 2, 0), lambda g, x: (g.transpose(2, 0, 1) * np.cos(x),),
                   normal(rng, (2, 2, 2)))


@right("order", "reshape in Fortran's order")
def fortran_reshape(rng):
    return Problem(lambda x: np.exp(x).reshape((3, 2), order="F"),
                   lambda g, x: (g.reshape((2, 3), order="F") * np.exp(x),), normal(rng, (2, 3)))


@right("order", "a cumulative sum, whose gradient accumulates from the end")
def cumulative_sum(rng):
    return Problem(np.cumsum, lambda g, x: (np.cumsum(g[::-1])[::-1],), normal(rng, (5,)))


@right("order", "a sort without ties")
def sorting(rng):
    return Problem(np.sort, lambda g, x: (g[np.argsort(np.argsort(x))],), normal(rng, (6,)))


@right("order", "x / y")
def division(rng):
    return Problem(np.divide, lambda g, x, y: (g / y, -g * x / y**2), normal(rng, (4,), (4,)))


@right("order", "a roll, undone by the opposite roll")
def rolling(rng):
    return Problem(lambda x: np.roll(np.sin(x), 2), lambda g, x: (np.roll(g, -2) * np.cos(x),), normal(rng, (5,)))


@right("order", "a lower triangle with fixed weights, its zeros exact")
def triangle(rng):
    return Problem(lambda x: np.where(TRIANGLE, W33 * np.sin(x), 0), rule(lambda x: TRIANGLE * W33 * np.cos(x)),
                   normal(rng, (3, 3)), elementwise=True)


@right("order", "a cumulative product, by its definition")
def cumulative_product(rng):
    def vjp(g, x):
        y = np.cumprod(x)
        return (np.cumsum((g * y)[::-1])[::-1] / x,)

    return Problem(np.cumprod, vjp, normal(rng, (5,)))


@right("order", "a product of stacks of matrices, one of them stretched over the stack")
def stacked_matmul(rng):
    return Problem(np.matmul, lambda g, a, b: (g @ b.T, np.sum(a.transpose(0, 2, 1) @ g, axis=0)),
                   normal(rng, (2, 2, 3), (3, 2)))


@wrong("order", "three axes permuted by the permutation itself, not by its inverse")
def permuted_axes_again(rng):
    p = permuted_axes(rng)
    return Problem(p.f, lambda g, x: (g.transpose(1, 2, 0) * np.cos(x),), p.arrays)


@wrong("order", "reshape in Fortran's order, undone in C's")
def fortran_reshape_undone_in_c(rng):
    p = fortran_reshape(rng)
    return Problem(p.f, lambda g, x: (g.reshape(2, 3) * np.exp(x),), p.arrays)


@wrong("order", "a square gradient transposed")
def transposed(rng):
    return Problem(lambda x: W33 * np.sin(x), lambda g, x: ((g * W33 * np.cos(x)).T,), normal(rng, (3, 3)))


@wrong("order", "a gradient rolled by one place")
def rolled(rng):
    return Problem(np.sin, spoil(rule(np.cos), lambda a: np.roll(a, 1)), normal(rng, (5,)))


@wrong("order", "a gradient in reverse order")
def flipped(rng):
    return Problem(np.sin, spoil(rule(np.cos), lambda a: a[::-1]), normal(rng, (5,)))


@wrong("order", "two neighbours exchanged")
def two_exchanged(rng):
    return Problem(np.sin, spoil(rule(np.cos), lambda a: a[[0, 1, 3, 2, 4]]), normal(rng, (5,)))


@wrong("order", "a cumulative sum for a cumulative sum: not reversed")
def cumulative_sum_forward(rng):
    return Problem(np.cumsum, lambda g, x: (np.cumsum(g),), normal(rng, (5,)))


@wrong("order", "sort applies its permutation where the inverse is due")
def sorting_uninverted(rng):
    x = np.array([3.0, 1.0, 2.0, 5.0]) + 0.1 * rng.normal(size=4)
    return Problem(np.sort, lambda g, x: (g[np.argsort(x)],), [x])


@wrong("order", "a matrix product on squares: the transposes are on the wrong factors")
def matmul_transposes(rng):
    return Problem(np.matmul, lambda g, a, b: (b.T @ g, g @ a.T), normal(rng, (3, 3), (3, 3)))


@wrong("order", "a matrix product on squares: no transpose at all")
def matmul_untransposed(rng):
    return Problem(np.matmul, lambda g, a, b: (g @ b, a @ g), normal(rng, (3, 3), (3, 3)))


@wrong("order", "x / y: the two gradients exchanged")
def exchanged_operands(rng):
    return Problem(np.divide, lambda g, x, y: (-g * x / y**2, g / y), positive(rng, (4,), (4,)))


@wrong("order", "x - y: both get g")
def difference_without_sign(rng):
    return Problem(np.subtract, lambda g, x, y: (g.copy(), g.copy()), normal(rng, (4,), (4,)))


# ---- sharing --------------------------------------------------------------------------------------------------------


@right("sharing", "x is used three times, and the paths add up")
def three_paths(rng):
    return Problem(lambda x: x * x + np.sin(x), rule(lambda x: x + x + np.cos(x)), normal(rng, (5,)))


@right("sharing", "the same weights at three steps of a recurrence")
def recurrence(rng):
    return Problem(unrolled, lambda g, w, h: unrolled_rule(g, w, h, steps=3), [0.5 * normal(rng, (2, 2))[0],
                                                                               *normal(rng, (2,))])


@right("sharing", "one matrix in both places of a product")
def both_slots(rng):
    return Problem(lambda x: x @ x, lambda g, x: (sum(matmul_rule(g, x, x)),), normal(rng, (3, 3)))


@right("sharing", "(x - mean) ** 3, the path through the mean counted")
def mean_attached(rng):
    def vjp(g, x):
        d = 3 * g * (x - x.mean()) ** 2
        return (d - d.mean(),)

    return Problem(lambda x: (x - x.mean()) ** 3, vjp, normal(rng, (5,)))


@wrong("sharing", "x is used twice, the last path wins")
def last_path_wins(rng):
    return Problem(lambda x: x * x + np.sin(x), rule(np.cos), normal(rng, (5,)))


@wrong("sharing", "x * x as if the factors were two inputs: one share is lost")
def both_slots_one_share(rng):
    return Problem(lambda x: x @ x, lambda g, x: (matmul_rule(g, x, x)[1],), normal(rng, (3, 3)))


@wrong("sharing", "a recurrence whose gradient stops one step early", error=1e-3)
def recurrence_truncated(rng):
    p = recurrence(rng)
    return Problem(p.f, lambda g, w, h: (unrolled_rule(g, w, h, steps=2)[0], unrolled_rule(g, w, h, steps=3)[1]),
                   p.arrays)


@wrong("sharing", "a path that was detached: x - x.mean() with the mean taken for a constant")
def mean_detached(rng):
    return Problem(lambda x: (x - x.mean()) ** 3, rule(lambda x: 3 * (x - x.mean()) ** 2), normal(rng, (5,)))


def unrolled(w, h):
    for _ in range(3):
        h = np.tanh(h @ w)
    return h


def unrolled_rule(g, w, h, steps):
    """The gradient through the last `steps` of the three steps."""
    states = [h]
    for _ in range(3):
        states.append(np.tanh(states[-1] @ w))
    gw = np.zeros_like(w)
    for before, after in list(pairwise(states))[::-1][:steps]:
        d = g * (1 - after**2)
        gw, g = gw + np.outer(before, d), d @ w.T
    return gw, g


# ---- indices --------------------------------------------------------------------------------------------------------


def gather(x, index):
    return np.sin(x)[index]


def gather_rule(g, x, index):
    gradient = np.zeros_like(x)
    np.add.at(gradient, index, g)
    return (gradient * np.cos(x),)


def gather_assigned(g, x, index):
    gradient = np.zeros_like(x)
    gradient[index] = g
    return (gradient * np.cos(x),)


@right("index", "a gather with repeated and negative indices, beside the float input an integer one")
def gather_repeated(rng):
    return Problem(gather, gather_rule, [*normal(rng, (5,)), np.array([0, 3, 3, -1, 3])])


@right("index", "an embedding: rows of a table, some of them twice")
def embedding(rng):
    return Problem(gather, gather_rule, [*normal(rng, (4, 2)), np.array([[1, 1], [0, 3]])])


@right("index", "where() with a boolean input")
def where_with_mask(rng):
    return Problem(lambda mask, x, y: np.where(mask, x, y), lambda g, mask, x, y: (g * mask, g * ~mask),
                   [rng.random(6) < 0.5, *normal(rng, (6,), (6,))])


@right("index", "a slice with a negative step")
def slice_backwards(rng):
    def vjp(g, x):
        gradient = np.zeros_like(x)
        gradient[5:1:-2] = g
        return (gradient,)

    return Problem(lambda x: x[5:1:-2], vjp, normal(rng, (7,)))


@right("index", "a concatenation")
def concatenation(rng):
    return Problem(lambda x, y: np.concatenate([x, y]), lambda g, x, y: (g[:2], g[2:]), normal(rng, (2,), (3,)))


@right("index", "repeat: every element receives the sum of its copies")
def repeating(rng):
    return Problem(lambda x: np.repeat(x, 2), lambda g, x: (g.reshape(3, 2).sum(axis=1),), normal(rng, (3,)))


@right("index", "a boolean input selects: the size of the output depends on it")
def boolean_selection(rng):
    mask = np.array([True, False, True, True, False])

    def vjp(g, x, mask):
        gradient = np.zeros_like(x)
        gradient[mask] = g
        return (gradient * np.cos(x),)

    return Problem(gather, vjp, [*normal(rng, (5,)), mask])


@wrong("index", "a gather with repeated indices: = for +=", error=1e-4)
def gather_assigns(rng):
    p = gather_repeated(rng)
    return Problem(p.f, gather_assigned, p.arrays)


@wrong("index", "an embedding: = for +=")
def embedding_assigns(rng):
    p = embedding(rng)
    return Problem(p.f, gather_assigned, p.arrays)


@wrong("index", "where(): the branches exchanged")
def where_exchanged(rng):
    p = where_with_mask(rng)
    return Problem(p.f, lambda g, mask, x, y: (g * ~mask, g * mask), p.arrays)


@wrong("index", "a slice with its start off by one")
def slice_off_by_one(rng):
    def vjp(g, x):
        gradient = np.zeros_like(x)
        gradient[4:0:-2] = g
        return (gradient,)

    return Problem(slice_backwards(rng).f, vjp, normal(rng, (7,)))


@wrong("index", "a concatenation split at the length of the other part, and cut to fit")
def concatenation_split(rng):
    return Problem(lambda x, y: np.concatenate([x, y]), lambda g, x, y: (g[3:5], g[2:]), normal(rng, (2,), (3,)))


@wrong("index", "repeat undone as tile: (a a b b c c) summed as (a b c a b c)")
def repeat_undone_as_tile(rng):
    return Problem(lambda x: np.repeat(x, 2), lambda g, x: (g.reshape(2, 3).sum(axis=0),), normal(rng, (3,)))


# ---- several outputs ------------------------------------------------------------------------------------------------


def sine_and_product(x, y):
    return np.sin(x), x * y


def sine_and_product_rule(g, x, y):
    return g[0] * np.cos(x) + g[1] * y, g[1] * x


@right("outputs", "two outputs of different shape, one of which reduces")
def two_outputs(rng):
    return Problem(lambda x: (np.exp(x), np.sum(x * x)), lambda g, x: (g[0] * np.exp(x) + g[1] * 2 * x,),
                   normal(rng, (4,)))


@right("outputs", "two outputs that share their inputs")
def two_outputs_shared(rng):
    return Problem(sine_and_product, sine_and_product_rule, normal(rng, (3,), (3,)))


@wrong("outputs", "the second output's cotangent is ignored")
def second_output_ignored(rng):
    return Problem(sine_and_product, lambda g, x, y: (g[0] * np.cos(x), g[1] * x), normal(rng, (3,), (3,)))


@wrong("outputs", "the two cotangents are exchanged")
def cotangents_exchanged(rng):
    return Problem(sine_and_product, lambda g, x, y: sine_and_product_rule(g[::-1], x, y), normal(rng, (3,), (3,)))


@wrong("outputs", "the two cotangents multiply each other: right when both are ones", reason="linearity")
def cotangents_multiplied(rng):
    return Problem(sine_and_product, lambda g, x, y: (g[0] * g[1] * (np.cos(x) + y), g[0] * g[1] * x),
                   normal(rng, (3,), (3,)))


@wrong("outputs", "of max with its place, the cotangent is sent to the place of the minimum")
def sent_to_the_minimum(rng):
    def vjp(g, x):
        return (g[:, None] * (np.arange(4) == x.argmin(axis=1)[:, None]),)

    return Problem(lambda x: x.max(axis=1), vjp, normal(rng, (3, 4)))


@wrong("outputs", "a product of all, its gradient by division: right unless an element is 0")
def product_by_division(rng):
    def vjp(g, x):
        with np.errstate(invalid="ignore"):
            return (g * np.prod(x) / x,)

    return Problem(np.prod, vjp, [at(*normal(rng, (4,)), {2: 0.0})])


@right("outputs", "the same product, its gradient from the products of the others")
def product_of_others(rng):
    def vjp(g, x):
        return (g * np.array([np.prod(np.delete(x, i)) for i in range(x.size)]),)

    return Problem(np.prod, vjp, [at(*normal(rng, (4,)), {2: 0.0})])


@wrong("outputs", "one element of a small gradient 1e-3 off, the index to be named", error=0.9e-3)
def one_element_slightly_off(rng):
    p = two_outputs(rng)
    return Problem(p.f, spoil(p.vjp, times(1.001, 2)), p.arrays, where=(0, (2,)))


@wrong("outputs", "two outputs of size 1e9 and 1: the small one's part of the gradient is doubled", error=1e-10)
def small_output_doubled(rng):
    return Problem(lambda x: (1e9 * np.sin(x), np.cos(x)),
                   lambda g, x: (1e9 * g[0] * np.cos(x) - 2 * g[1] * np.sin(x),), normal(rng, (5,)))
