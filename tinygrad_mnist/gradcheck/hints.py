"""What a wrong gradient looks like beside the right one: a factor, a transpose, a lost term, one wrong row."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_FIT = 0.01  # the part of each element's error that a pattern may leave unexplained
_NUMERIC = 3e-8  # what the numeric gradient may itself be off by, relative
_ROLLS = 64  # rolls along longer axes are not tried: each costs a pass over the array


def hints(
    analytic: Array,
    numeric: Array,
    *,
    others: Mapping[int, Array] | None = None,
    shapes: Sequence[tuple[int, ...]] = (),
) -> list[str]:
    """What the wrong gradient `analytic` of one input has in common with the right one, `numeric`; best first.

    `others`: right gradients of other inputs, by their number. `shapes`: those of f's inputs and outputs, whose sizes
    may explain a factor. The two gradients may differ in shape; the pattern is then what mends the shape.
    """
    analytic, numeric = analytic.astype(float), numeric.astype(float)
    if not analytic.size or not numeric.size or not (np.isfinite(analytic).all() and np.isfinite(numeric).all()):
        return []
    if analytic.shape != numeric.shape:
        near = _FIT * np.abs(numeric).max()
        found = [text for text, mended in _reshaped(analytic, numeric.shape) if np.abs(mended - numeric).max() <= near]
        return found[:1]
    if (wrong := _wrong(analytic, numeric)).any():
        return [*_everywhere(analytic, numeric, others or {}, shapes)] or [*_somewhere(analytic, numeric, wrong)]
    return []


def shape_hint(given: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """What would make a gradient of shape `given` one of shape `wanted`; "" where nothing simple does."""
    return next((text for text, _ in _reshaped(np.broadcast_to(0.0, given), wanted)), "")


def _everywhere(
    analytic: Array, numeric: Array, others: Mapping[int, Array], shapes: Sequence[tuple[int, ...]]
) -> Iterator[str]:
    """At most one pattern that explains every element."""
    size = np.maximum(np.abs(analytic), np.abs(numeric))
    tolerance = _FIT * np.abs(analytic - numeric) + _NUMERIC * size + 1e-13 * size.max()

    def fits(mended: Array) -> bool:
        return bool((np.abs(mended - numeric) <= tolerance).all())

    if not analytic.any():
        yield "analytic is zero everywhere"
        return
    if text := _factor(analytic, numeric, [numeric.shape, *shapes]):
        yield text
        return
    for i, other in others.items():
        if other.shape == analytic.shape and _close(analytic, other):
            yield f"analytic is the gradient of input {i}: exchanged operands"
            return
    for text, mended in itertools.chain(_moved(analytic), _with_term(analytic, numeric)):
        if fits(mended):
            yield text
            return


def _factor(analytic: Array, numeric: Array, shapes: Sequence[tuple[int, ...]]) -> str:
    """"analytic = c x numeric", if one c will do; of one or two elements only a c that means something."""
    if not numeric.any():
        return ""
    place = np.argmax(np.abs(numeric))
    c = float(analytic.flat[place] / numeric.flat[place])
    if not c or not (np.abs(analytic - c * numeric) <= _FIT * np.abs(analytic - numeric) + _precision(numeric)).all():
        return ""
    if abs(c + 1) < 1e-6:
        return "analytic = -1 x numeric: a sign"
    digits = 3 if abs(c - 1) > 0.01 else 2 - round(math.log10(abs(c - 1)))
    text = f"analytic = {c:.{digits}f} x numeric" if 0.01 <= abs(c) < 1000 else f"analytic = {c:.3e} x numeric"
    if meaning := _meaning(c, shapes):
        return f"{text}: {meaning}"
    plain = any(abs(k - round(k)) < 1e-6 * abs(k) for k in (c, 1 / c))
    return text if plain or numeric.size > 2 else ""


def _meaning(c: float, shapes: Sequence[tuple[int, ...]]) -> str:
    """What a factor has to do with the sizes of the arrays."""
    for shape in shapes:
        for axes in _subsets(len(shape)):
            n = math.prod(shape[axis] for axis in axes)
            where = "all elements" if len(axes) == len(shape) else _axes(axes)
            cases = {1 / n: "a mean for a sum", n: "a sum for a mean"} if n > 1 else {}
            if n > 2:
                cases |= {n / (n - 1): "n - 1 for n", (n - 1) / n: "n for n - 1"}
            for factor, text in cases.items():
                if abs(c - factor) <= 1e-6 * factor:
                    return f"{text}? ({n} = size of {where} of an array {shape})"
    return ""


def _moved(a: Array) -> Iterator[tuple[str, Array]]:
    """The same elements elsewhere."""
    for axes in itertools.permutations(range(a.ndim)) if 2 <= a.ndim <= 4 else ():
        if tuple(a.shape[axis] for axis in axes) == a.shape and list(axes) != sorted(axes):
            yield _transposing(axes), a.transpose(axes)
    for axis in range(a.ndim):
        yield f"the gradient is flipped along axis {axis}", np.flip(a, axis)
    for axis, n in enumerate(a.shape):
        for k in sorted(range(1 - n, n), key=abs) if 2 < n <= _ROLLS else ():
            if k:
                yield f"np.roll(gradient, {k}, axis={axis}) would fit", np.roll(a, k, axis)


def _with_term(analytic: Array, numeric: Array) -> Iterator[tuple[str, Array]]:
    """Something added that is constant, over all or along an axis."""
    missing = numeric - analytic
    if missing.size > 2:
        term = float(np.median(missing))
        yield f"numeric = analytic + {term:.4g} everywhere: a term is missing", analytic + term
    for axis, n in enumerate(missing.shape):
        if missing.ndim > 1 and missing.size - missing.size // n > 1:
            term = np.median(missing, axis, keepdims=True)
            yield f"numeric - analytic is constant along axis {axis}: a term summed over it is missing", analytic + term


def _somewhere(analytic: Array, numeric: Array, wrong: Array) -> Iterator[str]:
    """Where the wrong elements are, if not everywhere, and what is common to them."""
    places = np.argwhere(wrong)
    count, total = len(places), wrong.size
    if count == total:
        return
    if count == 2 and _close(analytic[wrong][::-1], numeric[wrong]):
        first, second = (tuple(map(int, place)) for place in places)
        yield f"the elements {first} and {second} are exchanged"
        return
    text = f"errors in {count} of {total:,} elements" if count > 1 else f"an error in one of {total:,} elements"
    common = ""
    for axis, n in enumerate(wrong.shape):
        if count > 1 and n > 1 and (places[:, axis] == places[0, axis]).all():
            where = ("row", "column")[axis] if wrong.ndim == 2 else f"slice of axis {axis}, index"
            common += f", all in {where} {places[0, axis]}"
    if not analytic[wrong].any():
        common += ", where analytic is zero"
    elif factor := _factor(analytic[wrong], numeric[wrong], ()):
        common += f", where {factor}"
    if common or 2 * count <= total:  # that nearly all are wrong is no pattern
        yield text + common


def _reshaped(a: Array, wanted: tuple[int, ...]) -> Iterator[tuple[str, Array]]:
    """What has the wanted shape."""
    for axes in _subsets(a.ndim):
        for keepdims in (False, True):
            kept = tuple(1 if axis in axes else n for axis, n in enumerate(a.shape) if keepdims or axis not in axes)
            if kept == wanted:
                yield f"un-broadcast {_axes(axes)} missing: the sum would fit", a.sum(axes, keepdims=keepdims)
    for axes in itertools.permutations(range(a.ndim)) if 2 <= a.ndim <= 4 else ():
        if tuple(a.shape[axis] for axis in axes) == wanted:
            yield _transposing(axes), a.transpose(axes)
    if a.size == math.prod(wanted):
        yield f"gradient.reshape({wanted}) would fit", a.reshape(wanted)
    with suppress(ValueError):
        yield f"np.broadcast_to(gradient, {wanted}) would fit", np.broadcast_to(a, wanted)


def _transposing(axes: tuple[int, ...]) -> str:
    return "the transpose would fit" if len(axes) == 2 else f"gradient.transpose{axes} would fit"


def _subsets(ndim: int) -> Iterator[tuple[int, ...]]:
    """Non-empty sets of axes, small ones first; of many axes only those of one."""
    for k in range(1, (ndim if ndim <= 4 else 1) + 1):
        yield from itertools.combinations(range(ndim), k)


def _axes(axes: tuple[int, ...]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {axes}"


def _precision(numeric: Array) -> Array:
    """How far each element of the numeric gradient may be off."""
    return _NUMERIC * np.abs(numeric) + 1e-13 * np.abs(numeric).max()


def _close(a: Array, b: Array) -> bool:
    return bool((np.abs(a - b) <= 1e-6 * np.abs(b) + 1e-12 * np.abs(b).max()).all())


def _wrong(analytic: Array, numeric: Array) -> Array:
    size = np.maximum(np.abs(analytic), np.abs(numeric))
    return np.abs(analytic - numeric) > 3e-7 * size + 1e-12 * size.max()
