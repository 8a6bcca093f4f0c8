"""The tests that need no difference: shape, dtype, determinism, hygiene, g = 0, linearity in g.

They come first because they are exact and cheap: three calls of f and seven of the rule. A rule that is right for g = 1
alone, that clips g, takes |g| or remembers its last call never reaches the numerics.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .problem import Array, Problem, norm
from .report import STRUCTURE

AGREE = 1e-9  # relative: two answers that should be the same
CANCELLATION = 8e3  # roundings: what a rule that cancels may lose of the size of its terms
NOISE = 2.0**20  # roundings: a call that differs by less from the one before adds in another order; above, it is random


@dataclass
class Structure:
    """What the tests found, and what the numerics need of their calls."""

    results: dict[str, str] = field(default_factory=lambda: dict.fromkeys(STRUCTURE, "not run"))
    where: dict[str, int] = field(default_factory=dict)  # the input that broke a test, -1 for the function
    cotangents: list[Array] = field(default_factory=list)
    gradients: list[list[Array]] = field(default_factory=list)  # of each cotangent, by place in wrt, raveled
    noise: Array = field(default_factory=lambda: np.zeros(0))  # of each output between equal calls

    def record(self, test: str, problem: str, where: int = -1) -> bool:
        """Note the result; True if the test is passed."""
        self.results[test] = problem or "pass"
        if problem:
            self.where[test] = where
        return not problem

    @property
    def sound(self) -> bool:
        """Whether numbers can be compared at all."""
        return self.results["shape"] == "pass" and self.results["determinism"] == "pass"


def examine(problem: Problem, rng: np.random.Generator) -> Structure:
    """Run the tests on `problem`; stop where nothing further would mean anything."""
    found = Structure()
    m = problem.base.size
    weight = _weights(problem)
    first, second, holed = (2 * rng.standard_normal(m) * weight for _ in range(3))
    if m and (top := float(np.abs(first).max())) < 1:
        first /= top  # a rule that clips g is to be seen when g is scaled
    if m > 1:
        holed[rng.random(m) < 0.4] = 0
    values = [problem.base, problem.value()]
    once = problem.pull(first)
    if not found.record("shape", *shapes(problem, once)):
        return found
    values.append(problem.value())
    twice = problem.pull(first)
    if not found.record("determinism", *_determinism(problem, values, _rows(once), _rows(twice))):
        return found
    found.noise = np.max([np.abs(v - values[0]) for v in values[1:]], axis=0)
    found.record("dtype", *dtypes(problem, once))
    zero = problem.pull(np.zeros(m))
    found.record("zero", *_zero(problem, _rows(once), zero))
    scaled, far, other, part = (_rows(problem.pull(g)) for g in (-8 * first, 1024 * first, second, holed))
    mixed = _rows(problem.pull(2.5 * first - 1.5 * holed))
    base = _rows(once)
    jitter = [np.abs(a - b) for a, b in zip(base, _rows(twice), strict=True)]
    slack = _slack(problem, first, jitter)
    claims = [
        ("vjp(-8 g) is not -8 vjp(g)", scaled, [(-8.0, base)]),
        ("vjp(1024 g) is not 1024 vjp(g)", far, [(1024.0, base)]),
        ("vjp(2.5 g - 1.5 h) is not 2.5 vjp(g) - 1.5 vjp(h)", mixed, [(2.5, base), (-1.5, part)]),
    ]
    broken = (_linear(problem, claim, actual, terms, slack) for claim, actual, terms in claims)
    found.record("linearity", *next(filter(None, broken), ("", -1)))
    found.record("hygiene", problem.damage or as_given(problem, first, base, slack))
    found.cotangents, found.gradients = [first, second], [base, other]
    return found


def _weights(problem: Problem) -> Array:
    """1 for a single output; several are brought to the size of the largest, so that none is lost beside another."""
    parts = [y for y in problem.outputs if y.dtype.kind == "f"]
    if len(parts) < 2:
        return np.ones(problem.base.size)
    sizes = [norm(y[np.isfinite(y)].astype(np.float64)) / max(y.size, 1) ** 0.5 for y in parts]
    top = max(sizes)
    weights = np.concatenate([np.full(y.size, top / s if s > 0 else 1.0) for y, s in zip(parts, sizes, strict=True)])
    return weights if problem.finite is None else weights[problem.finite]


def _rows(gradients: Any) -> list[Array]:
    """Gradients of known shapes as flat float64 vectors."""
    return [np.real(np.asarray(a)).astype(np.float64).ravel() for a in gradients]


def shapes(problem: Problem, gradients: Any) -> tuple[str, int]:
    if not isinstance(gradients, tuple | list):
        return f"the rule returned {type(gradients).__name__}, not a tuple with one gradient for each input in wrt", -1
    if len(gradients) != len(problem.wrt):
        return f"{len(gradients)} gradients for {len(problem.wrt)} inputs", -1
    for i, a in zip(problem.wrt, gradients, strict=True):
        shape = problem.arrays[i].shape
        if isinstance(a, tuple | list):
            return f"the gradient of input {i} is a {type(a).__name__}, not an array", i
        if a is None:
            return f"None for the gradient of input {i}, of shape {shape}; zeros say that it does not matter", i
        if np.shape(a) != shape:
            return f"the gradient of input {i} has shape {np.shape(a)}, the input {shape}", i
    return "", -1


def dtypes(problem: Problem, gradients: Any) -> tuple[str, int]:
    for i, a in zip(problem.wrt, gradients, strict=True):
        if np.asarray(a).dtype != problem.arrays[i].dtype:
            return f"the gradient of input {i} is {np.asarray(a).dtype}, the input {problem.arrays[i].dtype}", i
    return "", -1


def _determinism(problem: Problem, values: list[Array], once: list[Array], twice: list[Array]) -> tuple[str, int]:
    allowed = NOISE * 2.0**-53 if problem.unit == 2.0**-53 else 64 * problem.unit
    for later in values[1:]:
        if later.shape != values[0].shape:
            return f"f gives {later.size} numbers where it gave {values[0].size} before", -1
        if norm(later - values[0]) > allowed * norm(values[0]):
            worst = int(np.argmax(np.abs(later - values[0])))
            return f"f at the same point: {values[0][worst]:.17g}, then {later[worst]:.17g} (output {worst})", -1
    for i, a, b in zip(problem.wrt, once, twice, strict=True):
        finite = np.isfinite(a) & np.isfinite(b)
        if norm((a - b)[finite]) > allowed * norm(a[finite]) or not np.array_equal(np.isfinite(a), np.isfinite(b)):
            worst = int(np.argmax(np.where(finite, np.abs(a - b), np.inf)))
            return f"the rule asked twice for input {i}: {a[worst]:.17g}, then {b[worst]:.17g}", i
    return "", -1


def _zero(problem: Problem, base: list[Array], gradients: Any) -> tuple[str, int]:
    for i, a, z in zip(problem.wrt, base, _rows(gradients), strict=True):
        wrong = np.isfinite(a) & (z != 0)  # NaN is not 0 either
        if wrong.any():
            return f"g = 0 gives {z[np.argmax(wrong)]:.6g} for input {i}, not 0", i
    return "", -1


def as_given(problem: Problem, g: Array, base: list[Array], slack: list[float]) -> str:
    """The same on the arrays as they were given, where they are read-only or strided: all other calls get copies."""
    if all(a.flags.writeable and a.flags.c_contiguous for a in problem.given):
        return ""
    arrays = [a.view() for a in problem.given]
    for a in arrays:
        a.flags.writeable = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some libraries warn about read-only arrays
            gradients = _rows(problem.pull_from(g, arrays))
    except ValueError as error:
        return f"read-only or strided inputs: {error}"
    wrong = _linear(problem, "read-only or strided inputs change the gradient", gradients, [(1.0, base)], slack)
    return wrong[0] if wrong else ""


def _slack(problem: Problem, g: Array, jitter: list[Array]) -> list[float]:
    """For each input, what rounding may do to the sum of the terms of its gradient."""
    slack = []
    for i, j in zip(problem.wrt, jitter, strict=True):
        x = problem.arrays[i].astype(np.float64)
        scale = norm(x) / max(x.size, 1) ** 0.5 or 1.0
        natural = float(np.abs(g * problem.base).max(initial=0)) / scale
        rounding = CANCELLATION * 2.0**-53 * natural if np.isfinite(natural) else 0.0
        slack.append(rounding + 20 * float(np.nanmax(j, initial=0)))
    return slack


def _linear(
    problem: Problem, claim: str, actual: list[Array], terms: list[tuple[float, list[Array]]], slack: list[float]
) -> tuple[str, int] | None:
    agree = AGREE if problem.unit == 2.0**-53 else 8 * problem.unit  # the cotangents of float32 outputs are rounded
    for place, i in enumerate(problem.wrt):
        expected = np.sum([c * rows[place] for c, rows in terms], axis=0)
        size = np.sum([abs(c) * np.abs(rows[place]) for c, rows in terms], axis=0)
        with np.errstate(invalid="ignore"):
            off = np.abs(actual[place] - expected)
            finite = size < 1e300  # beyond, g times a number is no longer one
            top = float(size[finite].max(initial=0))
            allowed = agree * size + CANCELLATION * 2.0**-53 * top + 8 * slack[place]
            wrong = finite & ~(off <= allowed)
        if wrong.any():
            worst = int(np.argmax(np.where(wrong, np.nan_to_num(off, nan=np.inf), -1)))
            return f"{claim}: {actual[place][worst]:.6g} for {expected[worst]:.6g} (input {i})", i
    return None
