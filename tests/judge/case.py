"""What a case is, how one is declared, and the few helpers that the families share."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

VERDICTS = frozenset({"pass", "kink", "ill", "nondet", "fail"})
REASONS = frozenset({"shape", "dtype", "hygiene", "zero", "linearity", "determinism"})


@dataclass(frozen=True)
class Problem:
    """One function, one gradient rule and one point: what `check_vjp(f, vjp, arrays, wrt=wrt)` is given."""

    f: Callable
    """`f(*arrays) -> array`, or a tuple of arrays."""
    vjp: Callable
    """`vjp(cotangent, *arrays) -> tuple of arrays`, one per input in `wrt`; the cotangent is built like f's output."""
    arrays: Sequence[np.ndarray]
    wrt: tuple[int, ...] | None = None
    """The inputs that `vjp` answers for; None: every input with a float dtype."""
    twin: Callable | None = None
    """The same function of arithmetic and ufuncs alone, for the 60-digit numbers of `truth.py`, where f is not."""
    where: tuple[int, tuple[int, ...]] | None = None
    """(place in `wrt`, index) of the one wrong element, where there is exactly one."""
    elementwise: bool = False
    """Output i depends on element i of the only input alone: lets `truth.py` judge 100 000 elements at once."""

    @property
    def inputs(self):
        """The indices of the inputs that are differentiated."""
        floats = tuple(i for i, a in enumerate(self.arrays) if a.dtype.kind == "f")
        return floats if self.wrt is None else self.wrt


@dataclass(frozen=True)
class Case:
    name: str
    family: str
    correct: bool
    """The rule is right. Then `fail` is a false alarm; otherwise `pass` is a miss."""
    accept: frozenset[str]
    """The verdicts that are neither a false alarm nor a miss."""
    exact: frozenset[str]
    """Those of `accept` that are precisely right."""
    reason: frozenset[str]
    """Where a test of structure must be what names the mistake: the words, any one of which will do."""
    why: str
    error: float
    """Verified by `test_cases.py`: the relative error of a right rule is at most this, and that of a wrong rule, if it
    has no `reason`, is above it."""
    curvature: str | None
    """"bent": every output is locally convex or concave, so that tied kinks can be judged jointly."""
    build: Callable[[np.random.Generator], Problem] = field(repr=False)

    def problem(self, seed):
        """A fresh problem. Each case has its own stream, so that a new case moves no other."""
        return self.build(np.random.default_rng([zlib.crc32(self.name.encode()), seed]))


CASES: dict[str, Case] = {}


def words(given, allowed):
    found = frozenset(given.split())
    assert found <= allowed, f"unknown: {sorted(found - allowed)}"
    return found


def declare(family, correct, exact, accept, why, *, reason="", error, curvature=None):
    def decorator(build):
        exactly = words(exact, VERDICTS)
        accepted = exactly | words(accept, VERDICTS)
        assert build.__name__ not in CASES, f"two cases are called {build.__name__}"
        assert not accepted & ({"fail", "nondet"} if correct else {"pass", "kink"}), build.__name__
        name = build.__name__
        CASES[name] = Case(
            name, family, correct, accepted, exactly, words(reason, REASONS), why, error, curvature, build
        )
        return build

    return decorator


def right(family, why, *, exact="pass", accept="ill", error=1e-9, curvature=None):
    """Declare a case whose rule is right: by default the precise verdict is `pass`, and `ill` is no false alarm."""
    return declare(family, True, exact, accept, why, error=error, curvature=curvature)


def wrong(family, why, *, exact="fail", accept="", reason="", error=1e-2, curvature=None):
    """Declare a case whose rule is wrong: by default nothing but `fail` will do."""
    return declare(family, False, exact, accept, why, reason=reason, error=error, curvature=curvature)


# ---- points --------------------------------------------------------------------------------------------------------


def normal(rng, *shapes):
    """Standard normal arrays, at least 0.05 from zero: no kink, no vanishing factor by chance."""
    return [away(rng, shape, 0.05, 4.0) for shape in shapes]


def away(rng, shape, low, high):
    """Both signs, `low` to `high` in magnitude, normal in between."""
    x = rng.normal(size=shape)
    return np.copysign(np.clip(np.abs(x), low, high) + 0.01 * rng.uniform(size=shape), x)


def positive(rng, *shapes):
    """Between 0.5 and 2."""
    return [rng.uniform(0.5, 2.0, size=shape) for shape in shapes]


def at(x, places):
    """A copy of x with the values of `places`, {index: value}, put in."""
    x = x.copy()
    for index, value in places.items():
        x[index] = value
    return x


# ---- rules ---------------------------------------------------------------------------------------------------------


def rule(derivative):
    """The rule of an elementwise function of one input."""
    return lambda g, x: (g * derivative(x),)


def spoil(vjp, change, which=0):
    """A right rule whose gradient number `which` then goes through `change`."""

    def spoiled(g, *arrays):
        gradients = list(vjp(g, *arrays))
        gradients[which] = change(gradients[which])
        return tuple(gradients)

    return spoiled


def times(factor, index=...):
    """A change: the elements at `index` multiplied."""

    def change(gradient):
        gradient = np.array(gradient)
        gradient[index] *= factor
        return gradient

    return change


def matmul_rule(g, a, b):
    return g @ b.T, a.T @ g
