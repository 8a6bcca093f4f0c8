"""Differences along a line, with an error that is estimated and not assumed.

All works on the *residual*: what a central difference of <g, f> gives beyond what the rule predicts,

    r(h) = (<g, f(x + h d) - f(x - h d)> - <a, (x + h d) - (x - h d)>) / 2h,    a = the rule's answer to g,

with the step that floating point really took. It is zero for a right rule, whatever the size of its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from .problem import Array, Problem, norm
from .report import Derivative

TOP, RATIO, LEVELS = 0.25, 4.0, 24
"""The ladder of steps: 0.25 * 4^-j of the scale, over 14 decades: down to some ulps."""
FAR = 4.0  # a candidate that a smaller step misses by more than this many errors of both is discarded
TAIL = 5  # steps that show the noise: at the smallest even sin at 1e12 is smooth
BURIED = 1e6  # roundings: an output whose last movement is smaller may go on moving below its rounding
COARSEST = 1e-2  # spacing, as a fraction of the scale, at which noise is looked for
COARSE = 1e-3  # of <g, f>: rounding inside f is finer; what is coarser is a kink or a jump
TINY = 5e-324  # the quantum of subnormal numbers


@dataclass(frozen=True)
class Pair:
    """f on both sides of x."""

    plus: Array
    minus: Array
    width: float  # 2h, as it was taken
    moved: Array  # (x + h d) - (x - h d) at the places that move

    @cached_property
    def delta(self) -> Array:
        return self.plus - self.minus

    @cached_property
    def moves(self) -> Array:
        """The outputs that are not the same on both sides."""
        return np.flatnonzero(self.delta)

    def size(self, places: Array) -> Array:
        """The larger magnitude of these outputs."""
        return np.maximum(np.abs(self.plus[places]), np.abs(self.minus[places]))


class Line:
    """x + h d through input k: d is 0 but at the flat indices `places`."""

    def __init__(self, problem: Problem, k: int, places: Array, d: Array) -> None:
        self.problem, self.k, self.places, self.d = problem, k, places, d
        self.x = problem.arrays[k]
        self.at = self.x.flat[places]

    def part(self, places: slice, positive: bool = False) -> Line:
        """The same direction through a part of the places."""
        d = self.d[places]
        return Line(self.problem, self.k, self.places[places], np.abs(d) if positive else d)

    def value(self, h: float) -> tuple[Array | None, Array]:
        """(f at x + h d, the coordinates there); None where f raises or is not finite."""
        y, there = self._value(h)
        return (y if y is not None and np.isfinite(y).all() else None), there

    def _value(self, h: float) -> tuple[Array | None, Array]:
        x = self.x.copy(order="K")
        x.flat[self.places] = self.at + h * self.d
        there = x.flat[self.places]
        try:
            y = self.problem.moved(self.k, x)
        except Exception:  # outside its domain a function may raise what it likes
            return None, there
        return (y if y.size == self.problem.base.size else None), there

    def pair(self, h: float) -> Pair | None:
        """Both sides of x at distance h; None where f is not defined there."""
        plus, right = self._value(h)
        minus, left = self._value(-h) if plus is not None else (None, right)
        if plus is None or minus is None:
            return None
        moved = right.astype(np.float64) - left
        width = 2 * h if moved.size > 1 else float(moved[0] / self.d[0])
        pair = Pair(plus, minus, width, moved)
        return pair if width and np.isfinite(pair.delta).all() else None


def rounding(unit: float, g: Array, size: Array) -> float:
    """How far rounding moves <g, y> for outputs of these sizes: errors of different outputs are independent."""
    return unit * norm(g * size) + TINY if g.size else 0.0


# ---- the ladder ----------------------------------------------------------------------------------------------------


@dataclass
class Estimate:
    """r +- error, and what it rests on."""

    value: float
    error: float
    step: float  # the smallest step of the candidate, as a fraction of the scale
    noise: float  # of one evaluation of <g, f>
    capacity: float  # the rounding of the outputs that the line moves: a change that could not be seen
    falls: bool  # |r| falls with the step, down to its noise: it tends to 0
    steps: list[float] = field(default_factory=list)

    @property
    def known(self) -> bool:
        return bool(np.isfinite(self.error))


def ladder(line: Line, a: Array, g: Array) -> Estimate:
    """The residual by the best step and the best order of extrapolation among 24 steps.

    The error of a candidate is its distance from its neighbour plus noise over step. Noise is the rounding of the
    outputs or the scatter of the smallest steps. A candidate that is contradicted by any smaller step is discarded, so
    that an agreement among steps that are too large (whole periods, the far side of a kink) is never believed. Nor is
    an agreement among steps that are too small: where rounding inside f makes it a staircase, a small step sees one
    tread. Then larger steps leave the plateau abruptly, and f is rough there.
    """
    steps = [TOP * RATIO**-j for j in range(LEVELS)]
    rho, width, noise = (np.full(LEVELS, np.nan) for _ in range(3))
    base, unit = line.problem.base, line.problem.unit
    ever = np.zeros(base.size, bool)
    least, last = np.zeros(base.size), base  # the smallest movement of each output, the last of all
    for j, h in enumerate(steps):
        if (pair := line.pair(h)) is None:
            continue
        last, moves = pair.delta, pair.moves
        delta = last[moves]
        ever[moves], least[moves] = True, np.abs(delta)
        rho[j], width[j] = g[moves] @ delta - a @ pair.moved, pair.width
        noise[j] = rounding(unit, g[moves], pair.size(moves))
    if not (valid := np.isfinite(rho)).any():
        return Estimate(np.nan, np.inf, np.nan, np.nan, 0.0, False, steps)
    still, natural = ever & (last == 0), np.nanmax(noise) / unit
    # An output that stands still at small steps may go on moving below its rounding. It does not if it stopped far
    # above that, and the rule agrees that it stopped.
    least = np.where(least <= BURIED * unit * np.abs(base), np.maximum(least, unit * np.abs(base)), 0)
    hidden = norm((g * (np.maximum(least, unit * np.abs(base)) if a.any() else least))[still])
    noise = np.hypot(np.maximum(noise, scatter(rho[valid])), hidden)
    r, span = rho / width, np.abs(width)
    value, error, j = best(r, noise / span)
    if j > 0 and (i := exit_of(r, noise / span, value, error, j)) >= 0 and leaps(line, g, a, value, steps[i]):
        rough = roughness(line, g, steps[i])
        if 8 * noise[i] < rough <= COARSE * natural:
            noise = np.hypot(noise, 6 * rough)
            value, error, j = best(r, noise / span)
    capacity = rounding(unit, g[ever], base[ever]) if ever.any() else rounding(unit, g, base)
    step = steps[j] if j >= 0 else np.nan
    tends = falls(r[valid], (noise / span)[valid])
    return Estimate(value, error, step, float(np.nanmin(noise)), capacity, tends, steps)


def scatter(rho: Array) -> float:
    """The noise of <g, f> that the smallest steps show: where f is smooth, terms of h and h^3 cancel in this sum."""
    tail, first, third = rho[-TAIL:], RATIO, RATIO**3
    if tail.size < 3:
        return 0.0
    left = tail[:-2] - (first + third) * tail[1:-1] + first * third * tail[2:]
    return 2 * float(np.median(np.abs(left))) / (first * third)


def falls(r: Array, noise: Array) -> bool:
    """Whether |r| falls with the step, by more than 3 from each step to the next, over four steps at least, and then
    stays within its noise."""
    above = np.abs(r) > 8 * noise
    n = int(above.argmin()) if not above.all() else len(r)
    size = np.abs(r[:n])
    return n >= 5 and not above[n:].any() and bool((size[1:] < size[:-1] / 3).all())


def leaps(line: Line, g: Array, a: Array, value: float, h: float) -> bool:
    """Whether f leaves the plateau of `value` between h / 4 and h by a jump: by bisection for the place. Behind a kink
    it leaves by nothing at first."""

    def away(step: float) -> float:
        pair = line.pair(step)
        return np.inf if pair is None else abs(float(g @ pair.delta) - float(a @ pair.moved) - value * pair.width)

    top, low, high = away(h), h / RATIO, h
    for _ in range(18):
        middle = (low + high) / 2
        low, high = (low, middle) if away(middle) > 0.02 * top else (middle, high)
    return away(high) > 0.1 * top


def exit_of(r: Array, noise: Array, value: float, error: float, j: int) -> int:
    """The smallest step above step j at which the differences abruptly leave the plateau of `value`; -1 if they do not,
    or smoothly: truncation falls by 16 from step to step."""
    away = np.abs(r - value)
    out = np.flatnonzero(away[:j] > FAR * (error + 2 * noise[:j]))
    if not out.size:
        return -1
    i = int(out[-1])
    return i if away[i + 1] < 0.01 * away[i] else -1


PLACES = np.arange(-8, 9) + 0.8 * (np.arange(17) * 0.618 % 1 - 0.5)  # uneven: treads keep no step with them
DIVIDED = np.array(
    [[1 / np.prod([a - b for b in PLACES[i : i + 5] if b != a]) for a in PLACES[i : i + 5]] for i in range(13)]
)
"""Weights of the fourth divided differences of five neighbours, each row of length 1: noise keeps its size."""
DIVIDED /= np.linalg.norm(DIVIDED, axis=1, keepdims=True)


def roughness(line: Line, g: Array, step: float) -> float:
    """The noise of <g, f> about this step: fourth differences of 17 values, at six spacings (after More and Wild 2011,
    Estimating computational noise).

    Their median sees what is everywhere, the treads of a staircase or random digits; a single kink or jump touches only
    a few of them. Many kinks are told from noise by their growth with the spacing.
    """
    found: list[float] = []
    for h in (step * 8**m for m in range(6)):
        if h > COARSEST:
            break
        values = [line.value(float(t) * h)[0] for t in PLACES]
        if any(v is None for v in values):
            break
        phi = np.array([g @ (v - line.problem.base) for v in values if v is not None])
        windows = np.lib.stride_tricks.sliding_window_view(phi, 5)
        found.append(float(np.median(np.abs((windows * DIVIDED).sum(axis=1)))))
    return max((a for a, b in pairwise(found) if b < 3 * a), default=0.0)


def best(r: Array, noise: Array) -> tuple[float, float, int]:
    """(value, error, index of its smallest step) of the best of all candidates; error inf where none is left.

    Candidates are Richardson's extrapolations of order 2, 4 and 6 from neighbouring steps.
    """
    four = (RATIO**2 * r[1:] - r[:-1]) / (RATIO**2 - 1)
    six = (RATIO**4 * four[1:] - four[:-1]) / (RATIO**4 - 1)
    winner = np.nan, np.inf, -1
    n = len(r)
    settled = np.append(np.abs(np.diff(r)) + 2 * noise[:-1], 4 * noise[-1])  # how far a plain difference may be off
    for depth, values in enumerate((r, four, six)):
        j = np.arange(len(values)) + depth  # the smallest step in each
        truncation = np.abs(np.diff(values, append=np.nan))
        errors = truncation + 2.2 * noise[j]
        gap = np.abs(values[:, None] - r[None, :]) > FAR * (errors[:, None] + settled[None, :])
        contradicted = (gap & (np.arange(n)[None, :] > j[:, None])).any(axis=1)
        errors = np.where(contradicted | ~np.isfinite(errors), np.inf, errors)
        i = int(np.argmin(errors))
        if errors[i] < winner[1]:
            winner = float(values[i]), float(errors[i]), int(j[i])
    return winner


# ---- one-sided slopes ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slopes:
    """One-sided derivatives of every output along d (row 0 left, row 1 right) with their errors; `jumps`: the outputs
    that have none on one side. Where f is defined on one side only, that side stands for both."""

    slopes: Array
    errors: Array
    jumps: Array
    step: float

    @property
    def kinked(self) -> Array:
        """The outputs whose slopes differ, beyond their errors."""
        doubt = 10 * self.errors.sum(axis=0) + 1e-6 * np.abs(self.slopes).max(axis=0)
        return self.jumps | (np.abs(self.slopes[1] - self.slopes[0]) > doubt)

    def interval(self, g: Array) -> tuple[float, float]:
        """The least and the largest <g, s> for slopes s between left and right, widened by their errors."""
        ends, doubt = g * self.slopes, 10 * float(np.abs(g) @ self.errors.max(axis=0))
        return float(ends.min(axis=0).sum()) - doubt, float(ends.max(axis=0).sum()) + doubt


SIDE = tuple(RATIO**-j for j in range(8, 16))  # 1.5e-5 to 9e-10 of the scale: curvature is gone, rounding not yet there


def one_sided(line: Line, g: Array) -> Slopes | None:
    """The slopes on both sides at the best of eight steps, extrapolated once. None where f has no value on a side."""
    base, unit = line.problem.base, line.problem.unit
    found, least = None, np.inf
    before: tuple[Array, Array] | None = None
    for h in SIDE:
        (plus, there), (minus, _) = line.value(h), line.value(-h)
        if (plus is None and minus is None) or norm(there - line.at - h * line.d) > 0.01 * norm(h * line.d):
            continue  # not defined, or a step below the spacing of numbers
        left = plus - base if minus is None else base - minus
        right = left if plus is None else plus - base
        rises = np.stack([left, right])
        size = np.abs(base) + np.abs(rises).max(axis=0)
        noise = 2 * unit * size * (rises != 0).any(axis=0)
        slopes = rises / h
        if before is not None:
            value = (RATIO * slopes - before[0]) / (RATIO - 1)
            errors = np.abs(value - slopes) + (RATIO + 1) * noise / h
            total = float(np.abs(g) @ errors.sum(axis=0))
            if total < least:
                high = np.abs(rises)
                steady = high > 0.7 * np.abs(before[1])  # a rise that does not shrink with the step
                jumps = (steady & (high > 100 * noise) & (high > 1e-3 * high.max())).any(axis=0)
                found, least = Slopes(value, errors, jumps, h), total
        before = slopes, rises
    return found


# ---- for its own sake ------------------------------------------------------------------------------------------------


def derivative(f: Callable[..., Any], x: Any, d: Any = None) -> Derivative:
    """The derivative of f, a function of one array to one number, at x along d (default: ones), in float64.

    `value` +- `error`; `left` and `right` are the one-sided slopes, which differ at a kink. `error` is inf where no
    step can be trusted. No step size to choose: 24 of them, from 0.25 max|x| downwards, are tried.
    """
    at = np.asarray(x, np.float64)
    along = np.ones(at.shape) if d is None else np.broadcast_to(np.asarray(d, np.float64), at.shape)
    scale = float(np.abs(at).max(initial=0)) or 1.0
    with np.errstate(all="ignore"):
        problem = Problem(f, lambda g, x: (np.zeros_like(x),), [at], [0])
        if problem.base.size != 1:
            raise ValueError(f"f gives {problem.base.size} numbers; a derivative along d is that of one")
        line = Line(problem, 0, np.arange(at.size), scale * along.ravel())
        estimate = ladder(line, np.zeros(at.size), np.ones(1))
        slopes = one_sided(line, np.ones(1))
    left, right = (np.nan, np.nan) if slopes is None else (float(s[0]) / scale for s in slopes.slopes)
    steps = tuple(scale * h for h in estimate.steps)
    return Derivative(estimate.value / scale, estimate.error / scale, steps, estimate.noise, left, right)
