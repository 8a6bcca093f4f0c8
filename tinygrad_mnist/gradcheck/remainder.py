"""The Taylor test: how fast f(x + h d) - f(x) - h <gradient, d> falls with h. An explanation, not a verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .problem import scales
from .report import TaylorReport

Array = np.ndarray[Any, Any]

STEPS = tuple(0.25 * 4.0**-k for k in range(15))
ROUNDINGS = 8  # of the terms of <g, f>: below this, a remainder is noise
STRAIGHT = 0.05  # largest distance of a straight stretch from its line, in decades
LEAST = 3  # points of a stretch


def taylor_vjp(
    f: Callable[..., Any],
    vjp: Callable[..., Any],
    arrays: Sequence[Array],
    wrt: Sequence[int] | None = None,
    seed: int = 0,
) -> TaylorReport:
    """The remainders of <g, f> along one random direction over all inputs in `wrt` (default: every float input), for
    one random cotangent g; inputs in float64. The slope is that of the straight stretch of the log-log curve at the
    smallest steps that are above rounding (Boumal 2023, section 4.8, and Manopt's checkgradient): there the term of
    lowest order rules."""
    rng = np.random.default_rng(seed)
    values = [a.astype(float) if a.dtype.kind == "f" else a for a in map(np.asarray, arrays)]
    chosen = [i for i, a in enumerate(values) if a.dtype.kind == "f"] if wrt is None else list(wrt)

    def run(inputs: Sequence[Array]) -> tuple[Any, list[Array]]:
        with np.errstate(all="ignore"):
            y = f(*[a.copy() for a in inputs])
        return y, [np.array(part) for part in (y if isinstance(y, (tuple, list)) else (y,))]

    result, at = run(values)
    g = [np.asarray(2 * rng.standard_normal(y.shape), dtype=y.dtype) for y in at]
    gradients = vjp(tuple(g) if isinstance(result, (tuple, list)) else g[0], *[a.copy() for a in values])
    directions = [scales(values[i]) * rng.standard_normal(values[i].shape) for i in chosen]
    noise = ROUNDINGS * max(
        (float(np.finfo(y.dtype).eps) * float(np.abs(y * gy).sum()) for y, gy in zip(at, g, strict=True)), default=0.0
    )
    remainders, floors = [], []
    for h in STEPS:
        moved, predicted, terms = list(values), 0.0, 0.0
        for i, d, a in zip(chosen, directions, gradients, strict=True):
            moved[i] = values[i] + h * d
            product = np.asarray(a, dtype=float) * (moved[i] - values[i])  # the step that was taken, not h d
            predicted, terms = predicted + float(product.sum()), terms + float(np.abs(product).sum())
        change = sum(float((gy * (after - y)).sum()) for gy, after, y in zip(g, run(moved)[1], at, strict=True))
        remainders.append(abs(change - predicted))
        floors.append(noise + ROUNDINGS * 2.0**-53 * terms)
    return _judged(np.array(remainders), np.array(floors))


def _judged(remainders: Array, floors: Array) -> TaylorReport:
    steps = np.array(STEPS)
    with np.errstate(all="ignore"):
        slopes = np.diff(np.log(remainders)) / np.diff(np.log(steps))
    above = np.isfinite(remainders) & (remainders > floors)
    slope = _best_slope(np.log10(steps), remainders, above)
    if np.isfinite(remainders).all() and above.sum() < LEAST:
        verdict = "pass"
    else:
        verdict = "fail" if abs(slope - 1) < 0.2 else "pass" if slope > 1.8 else "ill"
    return TaylorReport(STEPS, tuple(remainders.tolist()), tuple(slopes.tolist()), slope, verdict)


def _best_slope(x: Array, remainders: Array, above: Array) -> float:
    """The slope of the longest straight stretch that ends at the smallest step above rounding; NaN if there is none."""
    last = len(x)
    while last and not above[last - 1]:
        last -= 1
    slope = np.nan
    for end in range(last, LEAST - 1, -1):
        for first in range(end - LEAST, -1, -1):
            if not above[first:end].all():
                break
            y = np.log10(remainders[first:end])
            line = np.polyfit(x[first:end], y, 1)
            if np.abs(np.polyval(line, x[first:end]) - y).max() > STRAIGHT:
                break
            slope = float(line[0])
        if np.isfinite(slope):
            break
    return slope
