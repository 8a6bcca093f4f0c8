"""float32 and float16. The rule is judged in float64; what it returns in its own dtype is judged against that."""

import numpy as np

from ..case import Problem, matmul_rule, normal, positive, right, rule, spoil, times, wrong
from .edges import logsumexp, logsumexp_rule, softmax, softmax_rule
from .functions import layernorm, layernorm_rule, variance_rule


def single(p):
    """The problem at the same point in float32."""
    return stored(p, np.float32)


def half(p):
    return stored(p, np.float16)


def stored(p, dtype):
    return Problem(p.f, p.vjp, [a.astype(dtype) for a in p.arrays], twin=p.twin, where=p.where)


def mean_rule(g, x):
    return (np.broadcast_to(g / x.dtype.type(x.size), x.shape),)


@right("float32", "2 x: exact, and yet a difference with step 1e-6 is off by per cents")
def f32_double(rng):
    return single(Problem(lambda x: 2 * x, lambda g, x: (2 * g,), normal(rng, (5,))))


@right("float32", "a product of matrices")
def f32_matmul(rng):
    return single(Problem(np.matmul, matmul_rule, normal(rng, (2, 3), (3, 2))))


@right("float32", "softmax")
def f32_softmax(rng):
    return single(Problem(softmax, softmax_rule, normal(rng, (2, 4))))


@right("float32", "log")
def f32_log(rng):
    return single(Problem(np.log, rule(lambda x: 1 / x), positive(rng, (5,))))


@right("float32", "a mean, whose gradient is a broadcast view")
def f32_mean(rng):
    return single(Problem(np.mean, mean_rule, normal(rng, (3, 4))))


@right("float32", "a sum of 10 000 numbers: the rounding of f is far above any single element")
def f32_sum_of_10_000(rng):
    return single(Problem(np.sum, lambda g, x: (np.broadcast_to(g, x.shape),), [rng.normal(size=10_000)]))


@right("float32", "logsumexp(10 x): small gradients beside one near 1", exact="pass ill")
def f32_logsumexp(rng):
    return single(Problem(lambda x: logsumexp(10 * x), lambda g, x: (10 * logsumexp_rule(g, 10 * x)[0],),
                          normal(rng, (5,))))


@right("float32", "a variance at 1e3: the cancellation costs three digits in float32")
def f32_variance_at_1e3(rng):
    return single(Problem(np.var, variance_rule(0), [1e3 + normal(rng, (6,))[0]]))


@right("float32", "f computes in float32 whatever it is given: differences see its quantum", exact="pass ill")
def f32_inside(rng):
    def f(x):
        return np.sin(x.astype(np.float32)).astype(x.dtype)

    return Problem(f, rule(np.cos), normal(rng, (5,)), twin=np.sin)


@right("float32", "a float32 and a float64 input: each gradient in its input's dtype")
def f32_beside_float64(rng):
    x, y = normal(rng, (4,), (4,))

    def vjp(g, x, y):
        return (g * y).astype(x.dtype), (g * x).astype(y.dtype)

    return Problem(np.multiply, vjp, [x.astype(np.float32), y])


@right("float32", "inputs of 1e-8")
def f32_tiny_inputs(rng):
    return single(Problem(np.tanh, rule(lambda x: 1 - np.tanh(x) ** 2), [1e-8 * normal(rng, (5,))[0]]))


@right("float16", "a product")
def f16_multiply(rng):
    return half(Problem(np.multiply, lambda g, x, y: (g * y, g * x), normal(rng, (4,), (4,))))


@right("float16", "softmax")
def f16_softmax(rng):
    return half(Problem(softmax, softmax_rule, normal(rng, (2, 4))))


@right("float16", "layer normalisation: three sums that cancel")
def f16_layernorm(rng):
    return half(Problem(layernorm, layernorm_rule, normal(rng, (2, 5))))


@wrong("float32", "a product of matrices, one gradient 1 % too large", error=9e-3)
def f32_matmul_off(rng):
    return single(Problem(np.matmul, spoil(matmul_rule, times(1.01), 1), normal(rng, (2, 3), (3, 2))))


@wrong("float32", "log, 0.1 % too small", error=9e-4)
def f32_log_off(rng):
    return single(Problem(np.log, rule(lambda x: x.dtype.type(0.999) / x), positive(rng, (5,))))


@wrong("float32", "one element of softmax's gradient 0.1 % off", error=9e-4)
def f32_softmax_one_off(rng):
    return single(Problem(softmax, spoil(softmax_rule, times(1.001, (1, 2))), normal(rng, (2, 4)), where=(0, (1, 2))))


@wrong("float32", "a variance with n - 1 in its gradient and n in its value")
def f32_variance_of_a_sample(rng):
    return single(Problem(np.var, variance_rule(1), normal(rng, (6,))))


@wrong("float32", "float32 in, float64 out: a constant array without the input's dtype", reason="dtype")
def f32_gets_float64(rng):
    return single(Problem(np.mean, lambda g, x: (g * np.full(x.shape, 1 / x.size),), normal(rng, (6,))))


@wrong("float32", "a float32 and a float64 input: both gradients in float64", reason="dtype")
def f32_beside_float64_promoted(rng):
    return Problem(np.multiply, lambda g, x, y: (g * y, g * x), f32_beside_float64(rng).arrays)


@wrong("float32", "in float32 alone the rule goes through float16: the float64 gradient is right", error=1e-5)
def f32_through_float16(rng):
    def vjp(g, x):
        if x.dtype == np.float32:
            return (g * np.cos(x.astype(np.float16)).astype(np.float32),)
        return (g * np.cos(x),)

    return single(Problem(np.sin, vjp, normal(rng, (6,))))


@wrong("float32", "a stable logsumexp with a rule that overflows in float32 at 100, but not in float64")
def f32_overflows(rng):
    def vjp(g, x):
        with np.errstate(over="ignore", invalid="ignore"):
            return (g * np.exp(x) / np.sum(np.exp(x)),)

    return single(Problem(logsumexp, vjp, [100 + normal(rng, (4,))[0]]))


@wrong("float16", "a product, 1 % off", error=9e-3)
def f16_multiply_off(rng):
    return half(Problem(np.multiply, lambda g, x, y: (g * y * x.dtype.type(1.01), g * x), normal(rng, (4,), (4,))))


@wrong("float16", "a product, 0.2 % off: two units in float16's last place, plain in float64", error=1e-3)
def f16_multiply_slightly_off(rng):
    return half(Problem(np.multiply, lambda g, x, y: (g * y * x.dtype.type(1.002), g * x), normal(rng, (4,), (4,))))


@wrong("float16", "a mean over 70 000 whose count overflows float16: divided by inf, in float16 alone")
def f16_count_overflows(rng):
    def vjp(g, x):
        with np.errstate(over="ignore"):
            return (np.broadcast_to(g / x.dtype.type(x.size), x.shape),)

    return half(Problem(np.mean, vjp, [rng.uniform(-1, 1, size=70_000)]))
