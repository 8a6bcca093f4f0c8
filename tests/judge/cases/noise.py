"""Determinism and state: what differs from call to call, what merely rounds differently, what is remembered."""

import numpy as np

from ..case import Problem, matmul_rule, normal, right, rule, spoil, times, wrong


def jitter(rng, size):
    """Numbers within `size` of 1, new at every call."""
    return lambda shape: 1 + size * rng.uniform(-1, 1, size=shape)


def noisy_sine(rng, forward=0.0, backward=0.0):
    """sin whose value and gradient carry relative noise of these sizes."""
    x = normal(rng, (6,))[0]
    noise = {"f": jitter(rng, forward), "vjp": jitter(rng, backward)}
    return Problem(
        lambda x: np.sin(x) * noise["f"](x.shape),
        lambda g, x: (g * np.cos(x) * noise["vjp"](x.shape),),
        [x],
        twin=np.sin,
    )


def dropout(rng, forward, backward):
    """Dropout of sin(x), with a mask that is new at every call of f, of the rule, or fixed."""
    x = normal(rng, (30,))[0]
    fixed = rng.random(30) < 0.5

    def mask(fresh):
        return 2.0 * (rng.random(30) < 0.5) if fresh else 2.0 * fixed

    return Problem(
        lambda x: np.sin(x) * mask(forward), lambda g, x: (g * np.cos(x) * mask(backward),), [x],
        twin=lambda x: np.sin(x) * mask(False),
        elementwise=True,
    )


# ---- right: what rounds, and what is remembered without harm ---------------------------------------------------------


@right("noise", "two ulps of noise in the forward pass, as from threads that add in another order")
def forward_two_ulps(rng):
    return noisy_sine(rng, forward=4e-16)


@right("noise", "two ulps of noise in the backward pass")
def backward_two_ulps(rng):
    return noisy_sine(rng, backward=4e-16)


@right("noise", "a sum that adds its 30 numbers in a random order")
def random_order_of_summation(rng):
    return Problem(lambda x: sum(x[i] * x[i] for i in rng.permutation(len(x))), lambda g, x: (2 * g * x,),
                   normal(rng, (30,)), twin=lambda x: np.sum(x * x))


@right("noise", "a deterministic error of 1e-9 in f, as a solver with a tolerance leaves it", exact="pass ill",
       error=1e-9)
def solver_noise(rng):
    return with_solver_noise(rng)


@right("state", "dropout with a mask that is fixed")
def dropout_fixed(rng):
    return dropout(rng, False, False)


@right("state", "dropout whose mask is drawn at the first call and kept")
def dropout_drawn_once(rng):
    drawn = []

    def mask(x):
        if not drawn:
            drawn.append(2.0 * (rng.random(x.shape) < 0.5))
        return drawn[0]

    return Problem(lambda x: np.sin(x) * mask(x), lambda g, x: (g * np.cos(x) * mask(x),), normal(rng, (6,)))


@right("state", "f counts its calls, and its running mean moves; the output is that of the batch")
def running_statistics(rng):
    state = {"calls": 0, "mean": 0.0}

    def f(x):
        state["calls"] += 1
        state["mean"] = 0.9 * state["mean"] + 0.1 * x.mean()
        return x - x.mean(axis=0)

    return Problem(f, lambda g, x: (g - g.mean(axis=0),), normal(rng, (4, 3)))


@right("state", "a notebook's layer keeps its input from the last forward pass, and its backward pass reads it there")
def layer_with_a_cache(rng):
    kept = {}

    def forward(x, w):
        kept["x"], kept["w"] = x, w
        return x @ w

    return Problem(forward, lambda g, x, w: matmul_rule(g, kept["x"], kept["w"]), normal(rng, (2, 3), (3, 2)))


@right("state", "f remembers its results by the contents of its input")
def memo_by_contents(rng):
    memo = {}

    def f(x):
        return memo.setdefault(x.tobytes(), np.sin(x)).copy()

    return Problem(f, rule(np.cos), normal(rng, (5,)), twin=np.sin, elementwise=True)


@right("noise", "float32 with an ulp of noise in both passes")
def float32_one_ulp(rng):
    def noise(x):
        return (1 + np.finfo(x.dtype).eps * rng.uniform(-1, 1, size=x.shape)).astype(x.dtype)

    x = normal(rng, (6,))[0].astype(np.float32)
    return Problem(lambda x: np.sin(x) * noise(x), lambda g, x: (g * np.cos(x) * noise(x),), [x], twin=np.sin)


# ---- wrong -----------------------------------------------------------------------------------------------------------


@wrong("noise", "a new dropout mask at every forward pass", exact="nondet", accept="fail", reason="determinism")
def dropout_fresh_forward(rng):
    return dropout(rng, True, False)


@wrong("noise", "a new dropout mask at every backward pass", exact="nondet", accept="fail", reason="determinism")
def dropout_fresh_backward(rng):
    return dropout(rng, False, True)


@wrong("noise", "a new dropout mask at every pass", exact="nondet", accept="fail", reason="determinism")
def dropout_fresh_both(rng):
    return dropout(rng, True, True)


@wrong("noise", "noise of 1e-6 in the forward pass: far above rounding", exact="nondet", accept="fail",
       reason="determinism")
def forward_noise(rng):
    return noisy_sine(rng, forward=1e-6)


@wrong("noise", "noise of 1e-5 in the backward pass", exact="nondet", accept="fail", reason="determinism")
def backward_noise(rng):
    return noisy_sine(rng, backward=1e-5)


@wrong("noise", "the output drifts: it is normalised with a running mean that every call moves", exact="nondet",
       accept="fail", reason="determinism")
def forward_drifts(rng):
    mean = np.zeros(3)

    def f(x):
        mean[...] = 0.9 * mean + 0.1 * x.mean(axis=0)
        return x - mean

    return Problem(f, lambda g, x: (g,), [normal(rng, (4, 3))[0] + 2], twin=lambda x: x - 0)


@wrong("state", "gradients accumulate from call to call: the first is right", exact="nondet", accept="fail",
       reason="determinism")
def accumulates(rng):
    total = np.zeros(5)

    def vjp(g, x):
        total[...] += g * np.cos(x)
        return (total.copy(),)

    return Problem(np.sin, vjp, normal(rng, (5,)))


@wrong("state", "every call answers with the g of the call before", exact="nondet fail",
       reason="determinism zero linearity")
def answers_late(rng):
    before = [np.ones(5)]

    def vjp(g, x):
        late, before[0] = before[0], g.copy()
        return (late * np.cos(x),)

    return Problem(np.sin, vjp, normal(rng, (5,)))


@wrong("state", "every second call returns twice the gradient", exact="nondet", accept="fail", reason="determinism")
def every_second_call_doubled(rng):
    calls = [0]

    def vjp(g, x):
        calls[0] += 1
        return (g * np.cos(x) * (2 - calls[0] % 2),)

    return Problem(np.sin, vjp, normal(rng, (5,)))


@wrong("state", "f is cached by shape: it answers every point with the value at the first; its gradient is that of sin")
def forward_cached_by_shape(rng):
    cache = {}
    x = normal(rng, (5,))[0]
    first = np.sin(x)

    def f(x):
        return cache.setdefault(x.shape, np.sin(x)).copy()

    return Problem(f, rule(np.cos), [x], twin=lambda x: first + 0 * x)


@wrong("noise", "two ulps of noise do not excuse 1 %", error=9e-3)
def forward_two_ulps_off(rng):
    p = noisy_sine(rng, forward=4e-16)
    return Problem(p.f, spoil(p.vjp, times(1.01, 2)), p.arrays, twin=p.twin, where=(0, (2,)))


@wrong("noise", "an error of 1e-9 in f does not excuse 10 %", error=9e-2)
def solver_noise_off(rng):
    p = with_solver_noise(rng)
    return Problem(p.f, spoil(p.vjp, times(1.1)), p.arrays, twin=p.twin)


@wrong("state", "dropout with a fixed mask that the gradient forgets to scale by 2")
def dropout_not_scaled(rng):
    p = dropout(rng, False, False)
    return Problem(p.f, spoil(p.vjp, times(0.5)), p.arrays, twin=p.twin, elementwise=True)


def with_solver_noise(rng):
    """exp(x / 2), the root of y**2 = exp(x), with an error of 1e-9 that the last bit of x decides."""

    def f(x):
        return np.exp(x / 2) * (1 + 1e-9 * np.sin(1e20 * x))

    return Problem(f, rule(lambda x: np.exp(x / 2) / 2), normal(rng, (5,)), twin=lambda x: np.exp(x / 2))
