"""How the rule treats g. A rule is linear in g; tests that only send ones, or positive numbers, see none of this."""

import numpy as np

from ..case import Problem, normal, right, rule, wrong


def sine(use):
    """sin with the rule g' = use(g) * cos(x)."""
    return lambda rng: Problem(np.sin, lambda g, x: (use(g) * np.cos(x),), normal(rng, (40,)), elementwise=True)


@right("upstream", "the rule that all others of this family spoil")
def g_used_as_is(rng):
    return sine(lambda g: g)(rng)


@right("upstream", "g enters twice and is divided out: linear, with rounding")
def g_through_a_detour(rng):
    return sine(lambda g: (3 * g + g * 4.1) / 7.1)(rng)


@right("upstream", "g times a vector that is orthogonal to ones: the answer to g = ones is rounding, not exactly 0")
def cancels_for_ones(rng):
    c = rng.normal(size=7)
    c -= c.mean()
    return Problem(lambda x: c * np.sum(np.sin(x)), lambda g, x: (np.sum(g * c) * np.cos(x),), normal(rng, (5,)))


@right("upstream", "a constant: f does not move, and the gradient is exactly 0")
def constant(rng):
    return Problem(lambda x: 0 * x + 3, lambda g, x: (0 * g,), normal(rng, (5,)), elementwise=True)


@right("upstream", "the sum of a softmax is 1: the gradient is 0, and f moves by rounding alone", exact="pass ill")
def softmax_sums_to_one(rng):
    return Problem(lambda x: np.sum(np.exp(x) / np.sum(np.exp(x))), lambda g, x: (np.zeros_like(x),),
                   normal(rng, (5,)), twin=lambda x: 1 + np.sum(0 * x))


@right("upstream", "a linear map with coefficients from 1e-8 to 1e8")
def linear_of_all_sizes(rng):
    c = 10.0 ** np.arange(-8, 9, 4)
    return Problem(lambda x: c * x, lambda g, x: (c * g,), normal(rng, (5,)), elementwise=True)


@right("upstream", "the sign of the gradient is that of x, g only scales it")
def even_function(rng):
    return Problem(np.cosh, rule(np.sinh), normal(rng, (5,)), twin=lambda x: (np.exp(x) + np.exp(-x)) / 2)


@wrong("upstream", "g is ignored: right for ones", reason="zero linearity")
def g_ignored(rng):
    return sine(np.ones_like)(rng)


@wrong("upstream", "mean(g) for g: linear, and right for ones")
def g_averaged(rng):
    return sine(np.mean)(rng)


@wrong("upstream", "sum(g) for g")
def g_summed(rng):
    return sine(np.sum)(rng)


@wrong("upstream", "g[0] for all: right for ones", error=1e-2)
def g_first_for_all(rng):
    return sine(lambda g: g.flat[0])(rng)


@wrong("upstream", "g shifted by one place: linear, right for ones")
def g_rolled(rng):
    return sine(lambda g: np.roll(g, 1))(rng)


@wrong("upstream", "|g|: right for every positive g", reason="linearity")
def g_absolute(rng):
    return sine(np.abs)(rng)


@wrong("upstream", "max(g, 0): a relu mask of the wrong array", reason="linearity")
def g_positive_part(rng):
    return sine(lambda g: np.maximum(g, 0))(rng)


@wrong("upstream", "g clipped to [-1, 1]: right for a one-hot g, and for uniform numbers", reason="linearity")
def g_clipped_at_1(rng):
    return sine(lambda g: np.clip(g, -1, 1))(rng)


@wrong("upstream", "g clipped to [-5, 5], where a g of normal size seldom goes", reason="linearity")
def g_clipped_at_5(rng):
    return sine(lambda g: np.clip(g, -5, 5))(rng)


@wrong("upstream", "g ** 3: right for one-hot", reason="linearity")
def g_cubed(rng):
    return sine(lambda g: g**3)(rng)


@wrong("upstream", "g |g|: even keeps the sign", reason="linearity")
def g_times_its_size(rng):
    return sine(lambda g: g * np.abs(g))(rng)


@wrong("upstream", "each g multiplied by its neighbour: right for ones", reason="linearity")
def g_times_neighbour(rng):
    return sine(lambda g: g * np.roll(g, 1))(rng)


@wrong("upstream", "max(g) for g: homogeneous for positive factors, not for negative ones", reason="linearity")
def g_maximum(rng):
    return sine(np.max)(rng)


@wrong("upstream", "sort(g): homogeneous for positive factors and zero for zero", reason="linearity")
def g_sorted(rng):
    return sine(np.sort)(rng)


@wrong("upstream", "g scaled to length 1, as gradient clipping does; 0 / 0 for g = 0", reason="zero linearity")
def g_normalised(rng):
    def unit(g):
        with np.errstate(invalid="ignore"):
            return g / np.sqrt(np.sum(g * g))

    return sine(unit)(rng)


@wrong("upstream", "g * g / g: NaN where g is 0, as padding makes it, right elsewhere", reason="zero")
def nan_where_g_is_zero(rng):
    def detour(g):
        with np.errstate(invalid="ignore"):
            return g * g / g

    return sine(detour)(rng)


@wrong("upstream", "a constant 0.001 is added: g = 0 gives 0.001", reason="zero", error=1e-6)
def g_with_offset(rng):
    return sine(lambda g: g + 1e-3)(rng)


@wrong("upstream", "negative g are 0.1 % too small", reason="linearity", error=9e-4)
def g_negative_smaller(rng):
    return sine(lambda g: np.where(g > 0, g, 0.999 * g))(rng)


@wrong("upstream", "g stored in float16: factors of two pass unchanged, sums do not", reason="linearity", error=1e-5)
def g_through_float16(rng):
    return sine(lambda g: np.asarray(g).astype(np.float16).astype(np.float64))(rng)


@wrong("upstream", "entries of g below 0.5 are dropped, as a sparse exchange of gradients does", reason="linearity")
def g_small_entries_dropped(rng):
    return sine(lambda g: np.where(np.abs(g) < 0.5, 0.0, g))(rng)


@wrong("upstream", "a loss that assumes it is the last: sum(x * x) without its g", reason="zero linearity")
def loss_forgets_g(rng):
    return Problem(lambda x: np.sum(x * x), lambda g, x: (2 * x,), normal(rng, (5,)))


@wrong("upstream", "the right gradient is multiplied by sign(sum(g)): right for every positive g", reason="linearity")
def g_sign_of_sum(rng):
    return sine(lambda g: -g if np.sum(g) < 0 else g)(rng)


@wrong("upstream", "g clipped to a norm of 50, where all but three outputs are masked with -inf", reason="linearity")
def g_norm_clipped(rng):
    mask = np.where(np.arange(40) % 14 == 0, 0.0, -np.inf)

    def vjp(g, x, mask):
        return (g * np.isfinite(mask) * 50 / max(50, np.sqrt(np.sum(g * g))),)

    return Problem(np.add, vjp, [*normal(rng, (40,)), mask], wrt=(0,))
