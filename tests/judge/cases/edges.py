"""At the edge of a domain, and where f saturates: few steps are usable, or none."""

import numpy as np

from ..case import Problem, at, normal, positive, right, rule, spoil, times, wrong

# ---- edges of a domain ----------------------------------------------------------------------------------------------


def quiet(f):
    """f with NaN and inf outside its domain, as NumPy gives them, but no warning."""

    def silent(*arrays):
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return f(*arrays)

    return silent


def near_edge(f, derivative, places):
    """An elementwise f at ordinary points between 0.1 and 0.7, and at `places`."""
    return lambda rng: Problem(quiet(f), rule(derivative), [at(rng.uniform(0.1, 0.7, size=5), places)],
                               elementwise=True)


log_at_the_edge = near_edge(np.log, lambda x: 1 / x, {0: 1e-8, 3: 3e-8})
sqrt_at_the_edge = near_edge(np.sqrt, lambda x: 0.5 / np.sqrt(x), {1: 1e-10, 2: 4e-12})
arcsin_at_the_edge = near_edge(np.arcsin, lambda x: 1 / np.sqrt((1 - x) * (1 + x)), {0: 1 - 1e-8, 4: -1 + 1e-9})


@right("edge", "log at 1e-8: a step of 1e-6 leaves the domain")
def log_near_zero(rng):
    return log_at_the_edge(rng)


@right("edge", "log at 1e-300, with a gradient of 1e300", exact="pass ill")
def log_very_near_zero(rng):
    return near_edge(np.log, lambda x: 1 / x, {2: 1e-300})(rng)


@right("edge", "sqrt at 1e-10")
def sqrt_near_zero(rng):
    return sqrt_at_the_edge(rng)


@right("edge", "arcsin at 1 - 1e-8 and -1 + 1e-9")
def arcsin_near_one(rng):
    return arcsin_at_the_edge(rng)


@right("edge", "arctanh at 1 - 1e-9")
def arctanh_near_one(rng):
    return near_edge(np.arctanh, lambda x: 1 / ((1 - x) * (1 + x)), {2: 1 - 1e-9})(rng)


@right("edge", "x ** 2.5 at 1e-9: the third derivative is not bounded")
def power_near_zero(rng):
    return near_edge(lambda x: x**2.5, lambda x: 2.5 * x**1.5, {1: 1e-9})(rng)


@right("edge", "x log x at 1e-12, as in an entropy")
def entropy_near_zero(rng):
    return near_edge(lambda x: x * np.log(x), lambda x: np.log(x) + 1, {0: 1e-12})(rng)


@right("edge", "1 / x at 1e-9 and -1e-9: a large step jumps over the pole")
def reciprocal_near_pole(rng):
    return near_edge(lambda x: 1 / x, lambda x: -1 / x**2, {0: 1e-9, 2: -1e-9})(rng)


@right("edge", "log1p at -1 + 1e-9")
def log1p_near_minus_one(rng):
    return near_edge(np.log1p, lambda x: 1 / (1 + x), {1: -1 + 1e-9})(rng)


@right("edge", "(x - 1) ** 1.5 exactly at 1: defined on one side only, with slope 0 there", exact="pass kink ill",
       error=1e-6)
def defined_on_one_side(rng):
    x = at(rng.uniform(1.5, 2.0, size=5), {2: 1.0})
    return Problem(quiet(lambda x: (x - 1) ** 1.5), rule(lambda x: 1.5 * (x - 1) ** 0.5), [x],
                   twin=lambda x: np.maximum(x - 1, 0) ** 1.5)


@right("edge", "sqrt that raises outside its domain, at 1e-10")
def raises_outside(rng):
    def root(x):
        if (x < 0).any():
            raise ValueError("sqrt of a negative number")
        return np.sqrt(x)

    return Problem(root, rule(lambda x: 0.5 / np.sqrt(x)), sqrt_at_the_edge(rng).arrays)


@right("edge", "a Cholesky factor close to losing definiteness; np.linalg raises beyond", error=1e-8)
def log_det_near_singular(rng):
    q = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    a = (q * [1.0, 0.5, 1e-7]) @ q.T

    def f(a):
        return 2 * np.sum(np.log(np.diagonal(np.linalg.cholesky((a + a.T) / 2))))

    def twin(a):
        (p, q, r), (_, s, t), (_, _, u) = (a + a.T) / 2
        return np.log(p * (s * u - t * t) - q * (q * u - t * r) + r * (q * t - s * r))

    return Problem(f, lambda g, a: (g * np.linalg.inv((a + a.T) / 2),), [a], twin=twin)


@wrong("edge", "log at 1e-8, 1 % off there only", error=9e-3)
def log_near_zero_off(rng):
    p = log_at_the_edge(rng)
    return Problem(p.f, spoil(p.vjp, times(1.01, 0)), p.arrays, where=(0, (0,)))


@wrong("edge", "1 / (x + 1e-9) for log at 1e-8: the constant that was to prevent a division by zero", error=1e-2)
def log_with_epsilon(rng):
    p = log_at_the_edge(rng)
    return Problem(p.f, rule(lambda x: 1 / (x + 1e-9)), p.arrays)


@wrong("edge", "sqrt with its gradient capped at 1e4")
def sqrt_near_zero_capped(rng):
    p = sqrt_at_the_edge(rng)
    return Problem(p.f, rule(lambda x: np.minimum(0.5 / np.sqrt(x), 1e4)), p.arrays)


@wrong("edge", "arcsin near 1 by sqrt(2 (1 - x)), good to the eye at 1 and wrong elsewhere")
def arcsin_near_one_expanded(rng):
    p = arcsin_at_the_edge(rng)
    return Problem(p.f, rule(lambda x: 1 / np.sqrt(2 * (1 - np.abs(x)))), p.arrays)


@wrong("edge", "arcsin near 1 by 1 / sqrt(1 - x), which is 1.4 times too large there")
def arcsin_near_one_factor(rng):
    p = arcsin_at_the_edge(rng)
    return Problem(p.f, rule(lambda x: 1 / np.sqrt(1 - np.abs(x))), p.arrays)


@wrong("edge", "x log x without its + 1: at 1e-12 that is 4 %")
def entropy_without_one(rng):
    x = at(rng.uniform(1e-13, 1e-12, size=4), {0: 1e-12})
    return Problem(quiet(lambda x: x * np.log(x)), rule(np.log), [x])


@wrong("edge", "1 / x at 1e-9 with the sign lost: -1 / (x |x|)")
def reciprocal_sign_lost(rng):
    f = quiet(lambda x: 1 / x)
    return Problem(f, rule(lambda x: -1 / (x * np.abs(x))), [at(*normal(rng, (4,)), {0: 1e-9, 2: -1e-9})])


@wrong("edge", "a function that raises outside its domain, and 0.1 % off at 1e-10", error=9e-4)
def raises_outside_off(rng):
    p = raises_outside(rng)
    return Problem(p.f, spoil(p.vjp, times(1.001, 1)), p.arrays, where=(0, (1,)))


@wrong("edge", "(x - 1) ** 1.5 at 1, defined on one side with slope 0 there: the rule says 1", exact="fail ill")
def defined_on_one_side_wrong(rng):
    p = defined_on_one_side(rng)
    return Problem(p.f, rule(lambda x: np.where(x == 1, 1.0, 1.5 * (x - 1) ** 0.5)), p.arrays, twin=p.twin)


# ---- saturation -----------------------------------------------------------------------------------------------------


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_rule(g, x):
    y = softmax(x)
    return (y * (g - (g * y).sum(axis=-1, keepdims=True)),)


def logsumexp(x):
    return x.max() + np.log(np.sum(np.exp(x - x.max())))


def logsumexp_rule(g, x):
    return (g * softmax(x),)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_slope(x, cubic=0.044715):
    c = np.sqrt(2 / np.pi)
    t = np.tanh(c * (x + cubic * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * cubic * x**2)


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def sigmoid(x):
    """Of full relative precision on both sides."""
    return np.where(x < 0, np.exp(-np.abs(x)), 1) / (1 + np.exp(-np.abs(x)))


@right("saturated", "tanh at 25: 1 - tanh ** 2 is exactly 0, the true slope 8e-22; no difference sees either",
       exact="pass ill")
def tanh_saturated(rng):
    return Problem(np.tanh, rule(lambda x: 1 - np.tanh(x) ** 2), [at(*normal(rng, (5,)), {1: 25.0})])


@right("saturated", "sigmoid at 40: the true slope of 4e-18, under the rounding of f", exact="pass ill")
def sigmoid_saturated(rng):
    return Problem(sigmoid, rule(lambda x: sigmoid(x) * sigmoid(-x)), [at(*normal(rng, (5,)), {1: 40.0, 3: -40.0})])


@right("saturated", "softmax with a dominant entry: gradients from 1 down to 1e-17", exact="pass ill")
def softmax_dominated(rng):
    return Problem(softmax, softmax_rule, [np.array([0.0, -12.0, -25.0, -39.0]) + 0.1 * rng.normal(size=4)])


@right("saturated", "softmax of a row with a dominant entry, whose gradient is a difference of numbers 1e10 times as "
       "large, and of an ordinary row", exact="pass ill", error=1e-7)
def softmax_row_dominated(rng):
    x = np.array([[24.0, 0.0, 0.5, 1.0], [0.0, 1.0, 2.0, -1.0]])
    return Problem(softmax, softmax_rule, [x + 0.1 * rng.normal(size=(2, 4))])


@right("saturated", "softmax with an entry of 1 - 4e-17, which is rounded to 1; its gradient has all digits",
       exact="pass ill")
def softmax_rounded_to_one(rng):
    def vjp(g, x):
        y = softmax(x)
        return (y * ((g[:, None] - g) @ y),)

    return Problem(softmax, vjp, [np.array([40.0, 0.0, 0.5, 1.0]) + 0.1 * rng.normal(size=4)])


@right("saturated", "logsumexp with a dominant entry: the others have gradients of 4e-18 and less", exact="pass ill")
def logsumexp_dominated(rng):
    return Problem(logsumexp, logsumexp_rule, [np.array([0.0, -40.0, -50.0]) + 0.1 * rng.normal(size=3)])


@right("saturated", "softplus at -40: the value itself is 4e-18 and keeps all its digits")
def softplus_tail(rng):
    return Problem(softplus, rule(sigmoid), [at(*normal(rng, (5,)), {0: -40.0, 2: 30.0})])


@right("saturated", "x (1 + tanh x) at -5: 1 + tanh x loses 4 digits, so f carries noise far above its last bit",
       exact="pass ill")
def cancelled_tail(rng):
    def slope(x):
        return 1 + np.tanh(x) + x * (1 - np.tanh(x) ** 2)

    return Problem(lambda x: x * (1 + np.tanh(x)), rule(slope), [at(*normal(rng, (5,)), {1: -5.0, 2: -4.2})])


@right("saturated", "gelu at -6: the slope is all cancellation", exact="pass ill", error=1e-7)
def gelu_tail(rng):
    return Problem(gelu, rule(gelu_slope), [at(*normal(rng, (5,)), {3: -6.0})])


@right("saturated", "exp(-1 / x**2) at 0, where every derivative is 0", exact="pass", accept="ill")
def flat_at_zero(rng):
    def bump(x):
        square = np.where(x == 0, x + 1, x) ** 2
        return np.where(x == 0, 0, np.exp(-1 / square))

    def slope(x):
        return 2 * bump(x) / np.where(x == 0, 1, x) ** 3

    return Problem(quiet(bump), rule(slope), [at(*positive(rng, (4,)), {2: 0.0})])


@wrong("saturated", "sigmoid at 40 with twice its slope of 4e-18: no difference can tell, and `pass` would claim to",
       exact="fail ill")
def sigmoid_saturated_doubled(rng):
    p = sigmoid_saturated(rng)
    return Problem(p.f, spoil(p.vjp, times(2, 1)), p.arrays)


@wrong("saturated", "softmax, where the entry with a gradient of about 1e-17 has its sign turned", exact="fail ill")
def softmax_dominated_sign(rng):
    p = softmax_dominated(rng)
    return Problem(p.f, spoil(p.vjp, times(-1, 3)), p.arrays)


@wrong("saturated", "logsumexp, where entries below 1e-5 get 0 instead of e-12 = 6e-6")
def logsumexp_small_dropped(rng):
    x = np.array([0.0, -12.0, -1.0]) + 0.1 * rng.normal(size=3)
    x[1] = -12.0 + x[0]
    return Problem(logsumexp, spoil(logsumexp_rule, lambda a: np.where(np.abs(a) < 1e-5 * np.abs(a).max(), 0.0, a)),
                   [x], where=(0, (1,)))


@wrong("saturated", "softplus at -40 gets 0 for 4e-18; its value is as small, so the difference sees it")
def softplus_tail_zero(rng):
    p = softplus_tail(rng)
    return Problem(p.f, spoil(p.vjp, times(0, 0)), p.arrays, where=(0, (0,)))


@wrong("saturated", "gelu with 0.0447 for 0.044715 in its slope: often no more than 1e-5", error=1e-6)
def gelu_constant(rng):
    return Problem(gelu, rule(lambda x: gelu_slope(x, 0.0447)), normal(rng, (6,)))
