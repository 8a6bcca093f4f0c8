"""The functions of networks and of linear algebra, with the slips that are made in deriving them by hand."""

import numpy as np

from ..case import Problem, at, normal, positive, right, rule, spoil, times, wrong
from .edges import gelu, gelu_slope, logsumexp, logsumexp_rule, sigmoid, softmax, softmax_rule, softplus
from .scales import cramer, cross, cross_entropy, norm, norm_rule

EPSILON = 1e-5

# ---- normalisation --------------------------------------------------------------------------------------------------


def standardised(x, axis):
    """(deviations / s, s) with s = sqrt(variance + EPSILON)."""
    deviations = x - x.mean(axis=axis, keepdims=True)
    s = np.sqrt((deviations * deviations).mean(axis=axis, keepdims=True) + EPSILON)
    return deviations / s, s


def normalise(axis):
    return lambda x: standardised(x, axis)[0]


def normalise_rule(axis, projection=True, centring=True):
    """The rule of `normalise`, whole, or without one of the two terms that come from the statistics."""

    def vjp(g, x):
        y, s = standardised(x, axis)
        a = g - g.mean(axis=axis, keepdims=True) if centring else g
        if projection:
            a = a - y * (g * y).mean(axis=axis, keepdims=True)
        return (a / s,)

    return vjp


layernorm, layernorm_rule = normalise(-1), normalise_rule(-1)


def by_std(x):
    """Layer normalisation as a notebook has it; np.std of a complex array takes |.|, which blinds the complex step."""
    return (x - x.mean(axis=-1, keepdims=True)) / np.std(x, axis=-1, keepdims=True)


def by_std_rule(projection):
    def vjp(g, x):
        y, s = by_std(x), np.std(x, axis=-1, keepdims=True)
        a = g - g.mean(axis=-1, keepdims=True)
        return ((a - projection * y * (g * y).mean(axis=-1, keepdims=True)) / s,)

    return vjp


def variance_rule(ddof):
    """Of np.var, which divides by n; with ddof = 1 the wrong n - 1."""
    return lambda g, x: (2 * g * (x - x.mean()) / x.dtype.type(x.size - ddof),)


@right("normalisation", "layer normalisation")
def layer_normalisation(rng):
    return Problem(layernorm, layernorm_rule, normal(rng, (2, 5)))


@right("normalisation", "batch normalisation with scale and shift")
def batch_normalisation(rng):
    def vjp(g, x, scale, shift):
        y, _ = standardised(x, 0)
        return normalise_rule(0)(g * scale, x)[0], (g * y).sum(axis=0), g.sum(axis=0)

    return Problem(lambda x, scale, shift: normalise(0)(x) * scale + shift, vjp, normal(rng, (5, 2), (2,), (2,)))


@right("normalisation", "the variance of a constant: smooth, with gradient 0")
def variance_of_constant(rng):
    return Problem(np.var, variance_rule(0), [np.full(5, 2.5)])


@right("normalisation", "x divided by its root mean square")
def root_mean_square(rng):
    def vjp(g, x):
        s = np.sqrt((x * x).mean(axis=-1, keepdims=True))
        return ((g - x * (g * x).mean(axis=-1, keepdims=True) / s**2) / s,)

    return Problem(lambda x: x / np.sqrt((x * x).mean(axis=-1, keepdims=True)), vjp, normal(rng, (2, 4)))


@right("normalisation", "a direction, x / norm(x), of a vector of length 1e-6")
def direction_of_small(rng):
    return Problem(lambda x: x / norm(x), lambda g, x: ((g - x * (g @ x) / norm(x) ** 2) / norm(x),),
                   [1e-6 * normal(rng, (4,))[0]])


@wrong("normalisation", "layer normalisation without the projection onto its output")
def layer_normalisation_unprojected(rng):
    return Problem(layernorm, normalise_rule(-1, projection=False), normal(rng, (2, 5)))


@wrong("normalisation", "layer normalisation without the term of the mean")
def layer_normalisation_uncentred(rng):
    return Problem(layernorm, normalise_rule(-1, centring=False), normal(rng, (2, 5)))


@wrong("normalisation", "layer normalisation along the other axis of a square")
def layer_normalisation_other_axis(rng):
    return Problem(layernorm, normalise_rule(0), normal(rng, (3, 3)))


@wrong("normalisation", "batch normalisation with its statistics taken for constants")
def batch_normalisation_detached(rng):
    return Problem(normalise(0), normalise_rule(0, False, False), normal(rng, (5, 2)))


@wrong("normalisation", "the epsilon of 1e-5 left out of the gradient: 1e-3 where the variance is small", error=1e-4)
def epsilon_left_out(rng):
    x = 0.1 * normal(rng, (2, 5))[0]
    return Problem(layernorm, spoil(layernorm_rule, lambda a: a * np.sqrt(1 + EPSILON / x.var(-1, keepdims=True))), [x])


@wrong("normalisation", "a variance with n - 1 in its gradient and n in its value")
def variance_of_a_sample(rng):
    return Problem(np.var, variance_rule(1), normal(rng, (6,)))


# ---- traps for the complex step -------------------------------------------------------------------------------------


@right("complex", "layer normalisation by np.std, which is not analytic as NumPy computes it")
def std_right(rng):
    return Problem(by_std, by_std_rule(1), normal(rng, (2, 5)))


@wrong("complex", "the same without the projection, which is what the complex step finds: |.| hides it")
def std_unprojected(rng):
    return Problem(by_std, by_std_rule(0), normal(rng, (2, 5)))


@right("complex", "a norm by np.linalg.norm, which takes |.| of a complex array")
def linalg_norm(rng):
    return Problem(np.linalg.norm, norm_rule, normal(rng, (4,)), twin=norm)


@wrong("complex", "a norm with gradient 0, which is what the complex step finds")
def linalg_norm_zero(rng):
    return Problem(np.linalg.norm, lambda g, x: (g * np.zeros_like(x),), normal(rng, (4,)), twin=norm)


@right("complex", "the power spectrum |fft(x)| ** 2")
def power_spectrum(rng):
    return spectrum(2)(rng)


@wrong("complex", "the power spectrum without the 2 of the square")
def power_spectrum_halved(rng):
    return spectrum(1)(rng)


def spectrum(factor):
    angles = 2 * np.pi * np.outer(np.arange(5), np.arange(5)) / 5
    c, s = np.cos(angles), np.sin(angles)
    return lambda rng: Problem(
        lambda x: np.abs(np.fft.fft(x)) ** 2,
        lambda g, x: (factor * np.real(np.fft.fft(g * np.conj(np.fft.fft(x)))),),
        normal(rng, (5,)),
        twin=lambda x: (c @ x) ** 2 + (s @ x) ** 2,
    )


# ---- softmax and losses ---------------------------------------------------------------------------------------------


def log_softmax(x):
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@right("loss", "softmax")
def softmax_right(rng):
    return Problem(softmax, softmax_rule, normal(rng, (2, 4)))


@right("loss", "log-softmax")
def log_softmax_right(rng):
    return Problem(log_softmax, lambda g, x: (g - softmax(x) * g.sum(axis=-1, keepdims=True),), normal(rng, (2, 4)))


@right("loss", "logsumexp")
def logsumexp_right(rng):
    return Problem(logsumexp, logsumexp_rule, normal(rng, (5,)))


@right("loss", "cross-entropy with integer targets")
def cross_entropy_right(rng):
    return cross_entropy(normal(rng, (2, 4))[0])


@right("loss", "a mean squared error, both sides differentiated")
def squared_error(rng):
    return Problem(lambda x, y: np.mean((x - y) ** 2),
                   lambda g, x, y: (2 * g * (x - y) / x.size, 2 * g * (y - x) / x.size), normal(rng, (4,), (4,)))


@right("loss", "binary cross-entropy of logits, targets between 0 and 1")
def binary_cross_entropy(rng):
    t = rng.uniform(size=5)
    return Problem(lambda x: np.mean(softplus(x) - t * x), lambda g, x: (g * (sigmoid(x) - t) / x.size,),
                   normal(rng, (5,)))


@right("loss", "the Kullback-Leibler divergence of two softmaxes")
def divergence(rng):
    def f(x, y):
        return np.sum(softmax(x) * (log_softmax(x) - log_softmax(y)))

    def vjp(g, x, y):
        p = softmax(x)
        return g * p * (log_softmax(x) - log_softmax(y) - f(x, y)), g * (softmax(y) - p)

    return Problem(f, vjp, normal(rng, (4,), (4,)))


@wrong("loss", "softmax with the diagonal of its Jacobian alone")
def softmax_diagonal(rng):
    return Problem(softmax, lambda g, x: (g * softmax(x) * (1 - softmax(x)),), normal(rng, (2, 4)))


@wrong("loss", "softmax with its sum along the other axis of a square")
def softmax_other_axis(rng):
    return Problem(softmax, lambda g, x: (softmax(x) * (g - (g * softmax(x)).sum(axis=0)),), normal(rng, (3, 3)))


@wrong("loss", "log-softmax with g itself where the sum of g is due")
def log_softmax_unsummed(rng):
    return Problem(log_softmax, lambda g, x: (g - softmax(x) * g,), normal(rng, (2, 4)))


@wrong("loss", "cross-entropy, a mean over rows whose gradient is that of the sum")
def cross_entropy_undivided(rng):
    p = cross_entropy(normal(rng, (2, 4))[0])
    return Problem(p.f, spoil(p.vjp, times(2)), p.arrays)


@wrong("loss", "cross-entropy whose gradient takes the targets of the rows in reverse")
def cross_entropy_targets_reversed(rng):
    p = cross_entropy(normal(rng, (2, 4))[0])
    return Problem(p.f, lambda g, x, targets: p.vjp(g, x, targets[::-1]), p.arrays)


@wrong("loss", "a squared error with the derivative of its half", error=0.4)
def squared_error_halved(rng):
    return Problem(lambda x, y: np.mean((x - y) ** 2), lambda g, x, y: (g * (x - y) / x.size, g * (y - x) / x.size),
                   normal(rng, (4,), (4,)))


# ---- elementwise ----------------------------------------------------------------------------------------------------


@right("elementwise", "gelu in its tanh form")
def gelu_right(rng):
    return Problem(gelu, rule(gelu_slope), normal(rng, (6,)))


@right("elementwise", "arctan2 in all quadrants")
def arctan2_right(rng):
    y, x = np.array([1.0, 1.0, -1.0, -1.0]), np.array([1.0, -1.0, 1.0, -1.0])
    y, x = y * positive(rng, (4,))[0], x * positive(rng, (4,))[0]
    # The twin: the half-angle formula, which holds in all quadrants.
    return Problem(np.arctan2, lambda g, y, x: (g * x / (x * x + y * y), -g * y / (x * x + y * y)), [y, x],
                   twin=lambda y, x: 2 * np.arctan(y / (np.sqrt(x * x + y * y) + x)))


@right("elementwise", "sin(x) / x, exactly at 0 as well, where its slope is 0")
def sinc_at_zero(rng):
    def slope(x):
        safe = np.where(x == 0, x + 1, x)
        return np.where(x == 0, 0, (np.cos(safe) - np.sin(safe) / safe) / safe)

    def f(x):
        safe = np.where(x == 0, x + 1, x)
        return np.where(x == 0, 1, np.sin(safe) / safe)

    return Problem(f, rule(slope), [at(*normal(rng, (5,)), {2: 0.0})])


@right("elementwise", "sigmoid")
def sigmoid_right(rng):
    return Problem(sigmoid, rule(lambda x: sigmoid(x) * sigmoid(-x)), normal(rng, (6,)), elementwise=True)


@right("elementwise", "x ** y, by both")
def power_by_both(rng):
    return Problem(np.power, lambda g, x, y: (g * y * x ** (y - 1), g * x**y * np.log(x)), positive(rng, (4,), (4,)),
                   twin=lambda x, y: np.exp(y * np.log(x)))


@right("elementwise", "log1p at 1e-12, where log(1 + x) would have lost all but four digits")
def log1p_of_small(rng):
    return Problem(np.log1p, rule(lambda x: 1 / (1 + x)), [1e-12 * normal(rng, (5,))[0]], elementwise=True)


@right("elementwise", "x ** 3 + x ** 2 near its flat point -2/3, where the slope is 1e-6", error=1e-8)
def nearly_flat(rng):
    return Problem(lambda x: x**3 + x**2, rule(lambda x: x * (3 * x + 2)), [-2 / 3 + 1e-6 * normal(rng, (4,))[0]],
                   elementwise=True)


@right("elementwise", "exp(-x * x) from 0 to 10: slopes from 1 down to 1e-42")
def bell_curve(rng):
    return Problem(lambda x: np.exp(-x * x), rule(lambda x: -2 * x * np.exp(-x * x)),
                   [np.array([0.0, 1.0, 5.0, 10.0]) + 0.1 * rng.uniform(size=4)], elementwise=True)


@wrong("elementwise", "sigmoid with s (1 + s)")
def sigmoid_sign(rng):
    return Problem(sigmoid, rule(lambda x: sigmoid(x) * (1 + sigmoid(x))), normal(rng, (6,)))


@wrong("elementwise", "tanh with 1 - t")
def tanh_unsquared(rng):
    return Problem(np.tanh, rule(lambda x: 1 - np.tanh(x)), normal(rng, (6,)))


@wrong("elementwise", "gelu with the slope of its sigmoid form, near enough for training", error=1e-3)
def gelu_of_another_form(rng):
    def slope(x):
        s = 1 / (1 + np.exp(-1.702 * x))
        return s + 1.702 * x * s * (1 - s)

    return Problem(gelu, rule(slope), normal(rng, (6,)))


@wrong("elementwise", "x ** 3 with 2 x ** 2: the exponent minus one, twice")
def power_off_by_one(rng):
    return Problem(lambda x: x**3, rule(lambda x: 2 * x**2), normal(rng, (6,)))


@wrong("elementwise", "arctan2 with the sign of its second gradient turned")
def arctan2_sign(rng):
    p = arctan2_right(rng)
    return Problem(p.f, spoil(p.vjp, times(-1), 1), p.arrays, twin=p.twin)


@wrong("elementwise", "x ** y with log y for log x")
def power_log_of_exponent(rng):
    return Problem(np.power, lambda g, x, y: (g * y * x ** (y - 1), g * x**y * np.log(y)), positive(rng, (4,), (4,)),
                   twin=lambda x, y: np.exp(y * np.log(x)))


@wrong("elementwise", "the value of the function in place of its slope")
def value_for_slope(rng):
    return Problem(np.sinh, rule(np.sinh), normal(rng, (6,)))


# ---- linear algebra -------------------------------------------------------------------------------------------------


def solve_rule(g, a, b):
    gb = np.linalg.solve(a.T, g)
    return -np.outer(gb, np.linalg.solve(a, b)), gb


def system(rng):
    return [np.eye(3) * 4 + rng.normal(size=(3, 3)), *normal(rng, (3,))]


def determinant(a):
    return a[0] @ cross(a[1], a[2])


def inverse(a):
    return np.stack([cramer(a, e) for e in np.eye(3)], axis=1)


@right("linear algebra", "solve")
def solve_right(rng):
    return Problem(np.linalg.solve, solve_rule, system(rng), twin=cramer)


@right("linear algebra", "the inverse")
def inverse_right(rng):
    def vjp(g, a):
        b = np.linalg.inv(a)
        return (-b.T @ g @ b.T,)

    return Problem(np.linalg.inv, vjp, system(rng)[:1], twin=inverse)


@right("linear algebra", "the determinant")
def determinant_right(rng):
    return Problem(np.linalg.det, lambda g, a: (g * np.linalg.det(a) * np.linalg.inv(a).T,), system(rng)[:1],
                   twin=determinant)


@right("linear algebra", "an einsum over three operands")
def einsum_right(rng):
    def vjp(g, a, b, c):
        return (np.einsum("ik,jk,j->ij", g, b, c), np.einsum("ik,ij,j->jk", g, a, c),
                np.einsum("ik,ij,jk->j", g, a, b))

    return Problem(lambda a, b, c: np.einsum("ij,jk,j->ik", a, b, c), vjp, normal(rng, (2, 3), (3, 2), (3,)))


@right("linear algebra", "x' A x")
def quadratic_form(rng):
    return Problem(lambda a, x: x @ a @ x, lambda g, a, x: (g * np.outer(x, x), g * (a + a.T) @ x),
                   normal(rng, (3, 3), (3,)))


@right("linear algebra", "a trace: zeros off the diagonal, where f does not move")
def trace(rng):
    return Problem(np.trace, lambda g, x: (g * np.eye(3),), normal(rng, (3, 3)))


@right("linear algebra", "cosine similarity")
def cosine(rng):
    def vjp(g, x, y):
        c, n = x @ y / (norm(x) * norm(y)), norm(x) * norm(y)
        return g * (y / n - c * x / norm(x) ** 2), g * (x / n - c * y / norm(y) ** 2)

    return Problem(lambda x, y: x @ y / (norm(x) * norm(y)), vjp, normal(rng, (4,), (4,)))


@wrong("linear algebra", "solve without the transpose of its matrix")
def solve_untransposed(rng):
    def vjp(g, a, b):
        gb = np.linalg.solve(a, g)
        return -np.outer(gb, np.linalg.solve(a, b)), gb

    return Problem(np.linalg.solve, vjp, system(rng), twin=cramer)


@wrong("linear algebra", "the inverse without transposes: right for symmetric matrices")
def inverse_untransposed(rng):
    def vjp(g, a):
        b = np.linalg.inv(a)
        return (-b @ g @ b,)

    return Problem(np.linalg.inv, vjp, system(rng)[:1], twin=inverse)


@wrong("linear algebra", "the determinant with the inverse untransposed")
def determinant_untransposed(rng):
    p = determinant_right(rng)
    return Problem(p.f, spoil(p.vjp, np.transpose), p.arrays, twin=p.twin)


@wrong("linear algebra", "an einsum whose third operand takes the sum of the others for their product")
def einsum_summed(rng):
    p = einsum_right(rng)

    def vjp(g, a, b, c):
        return (*p.vjp(g, a, b, c)[:2], g.sum() * a.sum(axis=0) * b.sum(axis=1))

    return Problem(p.f, vjp, p.arrays)


@wrong("linear algebra", "a trace whose gradient fills the matrix")
def trace_everywhere(rng):
    return Problem(np.trace, lambda g, x: (g * np.ones_like(x),), normal(rng, (3, 3)))


@wrong("linear algebra", "x' A x with 2 A x: right for symmetric A")
def quadratic_form_symmetric(rng):
    return Problem(lambda a, x: x @ a @ x, lambda g, a, x: (g * np.outer(x, x), g * 2 * a @ x),
                   normal(rng, (3, 3), (3,)))


@wrong("linear algebra", "cosine similarity without the terms of the norms")
def cosine_without_norms(rng):
    def vjp(g, x, y):
        return g * y / (norm(x) * norm(y)), g * x / (norm(x) * norm(y))

    return Problem(lambda x, y: x @ y / (norm(x) * norm(y)), vjp, normal(rng, (4,), (4,)))


# ---- layers ---------------------------------------------------------------------------------------------------------


def windows(x, n):
    """The windows of length n, as rows."""
    return np.stack([x[i : i + n] for i in range(len(x) - n + 1)])


def correlate(x, kernel):
    return windows(x, len(kernel)) @ kernel


def correlate_rule(flip=True, shift=0):
    def vjp(g, x, kernel):
        n = len(kernel)
        padded = np.pad(g, n - 1)
        gx = windows(padded, n) @ (kernel[::-1] if flip else kernel)
        return np.roll(gx, shift), g @ windows(x, n)

    return vjp


def attention(q, k, v):
    return softmax(q @ k.T / np.sqrt(q.shape[-1])) @ v


def attention_rule(scale):
    """The rule with the factor `scale` on the scores' gradients: 1 / sqrt(d) is right."""

    def vjp(g, q, k, v):
        scores = q @ k.T / np.sqrt(q.shape[-1])
        s = softmax_rule(g @ v.T, scores)[0] * scale(q.shape[-1])
        return s @ k, s.T @ q, softmax(scores).T @ g

    return vjp


def mlp(x, w1, b1, w2):
    return np.maximum(x @ w1 + b1, 0) @ w2


def mlp_rule(through):
    """The rule with `through(before, after)` as the mask of the relu."""

    def vjp(g, x, w1, b1, w2):
        before = x @ w1 + b1
        after = np.maximum(before, 0)
        d = (g @ w2.T) * through(before, after)
        return d @ w1.T, x.T @ d, d.sum(axis=0), after.T @ g

    return vjp


def mlp_point(rng):
    """A point whose hidden values keep 0.05 from the kink."""
    while True:
        x, w1, b1, w2 = normal(rng, (3, 2), (2, 3), (3,), (3, 2))
        before = x @ w1 + b1
        if np.abs(before).min() > 0.05 and ((before > 0).sum(axis=0) * (before < 0).sum(axis=0)).any():
            return [x, w1, b1, w2]


@right("layer", "a convolution of one dimension")
def convolution(rng):
    return Problem(correlate, correlate_rule(), normal(rng, (6,), (3,)))


@right("layer", "attention")
def attention_right(rng):
    return Problem(attention, attention_rule(lambda d: 1 / np.sqrt(d)), normal(rng, (2, 3), (2, 3), (2, 2)))


@right("layer", "two layers with a relu, away from its kink")
def mlp_right(rng):
    return Problem(mlp, mlp_rule(lambda before, after: after > 0), mlp_point(rng))


@right("layer", "max pooling of overlapping windows, no ties")
def max_pooling(rng):
    def vjp(g, x):
        gradient = np.zeros_like(x)
        np.add.at(gradient, np.arange(g.size) + windows(x, 3).argmax(axis=1), g)
        return (gradient,)

    return Problem(lambda x: windows(x, 3).max(axis=1), vjp, normal(rng, (7,)))


@right("layer", "a gated unit with a residual connection")
def gated_residual(rng):
    def vjp(g, x, w):
        s, t = sigmoid(x @ w), np.tanh(x)
        d = g * s * (1 - s) * t
        return g + g * s * (1 - t * t) + d @ w.T, x.T @ d

    return Problem(lambda x, w: x + sigmoid(x @ w) * np.tanh(x), vjp, normal(rng, (2, 3), (3, 3)))


@wrong("layer", "a convolution whose kernel is not flipped on the way back")
def convolution_unflipped(rng):
    return Problem(correlate, correlate_rule(flip=False), normal(rng, (6,), (3,)))


@wrong("layer", "a convolution whose gradient is shifted by one place")
def convolution_shifted(rng):
    return Problem(correlate, correlate_rule(shift=1), normal(rng, (6,), (3,)))


@wrong("layer", "attention without the 1 / sqrt(d) on the way back")
def attention_unscaled(rng):
    return Problem(attention, attention_rule(lambda d: 1), normal(rng, (2, 3), (2, 3), (2, 2)))


@wrong("layer", "attention divided by d, not by its root")
def attention_scaled_twice(rng):
    return Problem(attention, attention_rule(lambda d: 1 / d), normal(rng, (2, 3), (2, 3), (2, 2)))


@wrong("layer", "two layers: the relu's mask is forgotten on the way back")
def mlp_unmasked(rng):
    return Problem(mlp, mlp_rule(lambda before, after: 1.0), mlp_point(rng))


@wrong("layer", "two layers: the relu's value in place of its mask")
def mlp_value_for_mask(rng):
    return Problem(mlp, mlp_rule(lambda before, after: after), mlp_point(rng))
