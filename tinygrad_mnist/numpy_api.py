"""NumPy's functions on Tensors, in NumPy's signatures, and the dispatch that makes `np.dot(x, t.T)` record into the
graph.

`@function` puts a function into the namespace `F` and under NumPy's function of the same name. Most are written in
terms of the primitives in `ops`, so their gradients are derived too. A NumPy function that is not here raises, and
says so: nothing ever drops silently to an untracked array.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from operator import index as as_int
from typing import Any

import numpy as np

from . import arrays, ops
from .arrays import Array
from .core import F, Tensor, is_tracked


def function(f: Callable[..., Any]) -> Callable[..., Any]:
    """Register `f` as the function of its name on Tensors, and as what NumPy's function of that name does with them."""
    setattr(F, f.__name__, f)
    return f


def _operand(a: Any, dtype: Any, out: Any = None) -> Any:
    """`a` with the dtype that the caller asked for, if any."""
    if out is not None:
        raise TypeError("out= cannot take a Tensor's result: the graph is out of place; use the return value")
    return a if dtype is None else astype(a, dtype)


def _shape(a: Any) -> tuple[int, ...]:
    return a.shape if hasattr(a, "shape") else np.shape(a)


def _axis(axis: Any) -> Any:
    return tuple(map(as_int, axis)) if isinstance(axis, (tuple, list)) else axis


def _ints(x: Any) -> tuple[int, ...]:
    """One integer or several, in whatever NumPy takes for them, as a tuple."""
    if isinstance(x, int):
        return (x,)
    return tuple(map(as_int, x if isinstance(x, (tuple, list)) or np.ndim(x) else (x,)))


def _front(axis: Any, ndim: int) -> int:
    """An axis counted from the front."""
    if not -ndim <= as_int(axis) < ndim:
        raise np.exceptions.AxisError(as_int(axis), ndim)
    return as_int(axis) % ndim


# ---- reductions ---------------------------------------------------------------------------------------------------


@function
def sum(a: Any, axis: Any = None, dtype: Any = None, out: None = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` (all axes where None)."""
    return ops._sum(_operand(a, dtype, out), axis=_axis(axis), keepdims=keepdims)


@function
def mean(a: Any, axis: Any = None, dtype: Any = None, out: None = None, keepdims: bool = False) -> Tensor:
    """The mean over `axis`."""
    return ops._mean(_operand(a, dtype, out), axis=_axis(axis), keepdims=keepdims)


@function
def prod(a: Any, axis: Any = None, dtype: Any = None, out: None = None, keepdims: bool = False) -> Tensor:
    """The product over `axis`; the gradient is exact where elements are zero."""
    return ops._prod(_operand(a, dtype, out), axis=_axis(axis), keepdims=keepdims)


@function
def max(a: Any, axis: Any = None, out: None = None, keepdims: bool = False) -> Tensor:
    """The maximum over `axis`; equal maxima share the gradient evenly."""
    return ops._max(_operand(a, None, out), axis=_axis(axis), keepdims=keepdims)


@function
def min(a: Any, axis: Any = None, out: None = None, keepdims: bool = False) -> Tensor:
    """The minimum over `axis`; equal minima share the gradient evenly."""
    return ops._min(_operand(a, None, out), axis=_axis(axis), keepdims=keepdims)


@function
def var(
    a: Any, axis: Any = None, dtype: Any = None, out: None = None, ddof: int = 0, keepdims: bool = False
) -> Tensor:
    """The variance over `axis`: sum((a - mean)^2) / (n - ddof)."""
    return ops._var(_operand(a, dtype, out), axis=_axis(axis), ddof=ddof, keepdims=keepdims)


@function
def std(
    a: Any, axis: Any = None, dtype: Any = None, out: None = None, ddof: int = 0, keepdims: bool = False
) -> Tensor:
    """The square root of `var`; the derivative is 0 where it is 0."""
    return ops._std(_operand(a, dtype, out), axis=_axis(axis), ddof=ddof, keepdims=keepdims)


@function
def cumsum(a: Any, axis: Any = None, dtype: Any = None, out: None = None) -> Tensor:
    """The running sum along `axis`, of the flattened array where None."""
    a = _operand(a, dtype, out)
    return ops._cumsum(ravel(a), axis=0) if axis is None else ops._cumsum(a, axis=as_int(axis))


@function
def nansum(a: Any, axis: Any = None, dtype: Any = None, out: None = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` in which NaN counts as zero."""
    a = _operand(a, dtype, out)
    return sum(ops.where(F.isnan(a), 0, a), axis, keepdims=keepdims)


def norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Norms of vectors (`ord`: None or 2, 1, inf, -inf, any p > 0), Frobenius norm of matrices (`ord`: None or
    "fro")."""
    ndim = len(_shape(x))
    axis = _axis(axis)
    matrix = (axis is None and ord is not None and ndim == 2) or (isinstance(axis, tuple) and len(axis) == 2)
    if matrix and ord not in (None, "fro"):
        raise TypeError(f"linalg.norm with ord={ord!r} of a matrix has no gradient rule here; ord='fro' has")
    if ord is not None and axis is None and ndim not in (1, 2):
        raise ValueError(f"linalg.norm: ord={ord!r} needs one or two axes, not shape {_shape(x)}; choose with axis=")
    if matrix or ord is None or ord == 2:
        return ops._norm(x, axis=axis, keepdims=keepdims)
    if ord == 1:
        return sum(ops.absolute(x), axis, keepdims=keepdims)
    if ord in (math.inf, -math.inf):
        return (max if ord > 0 else min)(ops.absolute(x), axis, keepdims=keepdims)
    if isinstance(ord, str) or ord <= 0:
        raise TypeError(f"linalg.norm with ord={ord!r} has no gradient rule; use None, 1, 2, p > 0, inf or -inf")
    return _pow(sum(_pow(ops.absolute(x), ord), axis, keepdims=keepdims), 1 / ord)


def _pow(a: Any, p: float) -> Any:
    """a^p for a >= 0 and p > 0, with derivative 0 at 0, where for p < 1 it is infinite."""
    zero = a == 0
    return ops.where(zero, 0.0, ops.pow(ops.where(zero, 1.0, a), p))


F.norm = norm  # type: ignore[attr-defined]

# ---- products -----------------------------------------------------------------------------------------------------


@function
def dot(a: Any, b: Any, out: None = None) -> Tensor:
    """Matrix product, inner product or scaling, by the number of axes: what `np.dot` does for each combination."""
    _operand(a, None, out)
    m, n = len(_shape(a)), len(_shape(b))
    if not m or not n:
        return ops.multiply(a, b)
    if m == 1 or n <= 2:
        return ops.matmul(a, b)
    return tensordot(a, b, (-1, -2))


@function
def inner(a: Any, b: Any, /) -> Tensor:
    """The sum over the last axes of both."""
    if not _shape(a) or not _shape(b):
        return ops.multiply(a, b)
    return tensordot(a, b, (-1, -1))


@function
def outer(a: Any, b: Any, out: None = None) -> Tensor:
    """All products of an element of a with an element of b: (a.size, b.size)."""
    return ops.multiply(reshape(_operand(a, None, out), (-1, 1)), reshape(b, (1, -1)))


@function
def vdot(a: Any, b: Any, /) -> Tensor:
    """The inner product of the flattened operands."""
    return ops.matmul(ravel(a), ravel(b))


@function
def vecdot(a: Any, b: Any, /) -> Tensor:
    """The inner products of the vectors along the last axes of both; the axes before them broadcast."""
    return ops.matmul(expand_dims(a, -2), expand_dims(b, -1))[..., 0, 0]


@function
def tensordot(a: Any, b: Any, axes: Any = 2) -> Tensor:
    """The sum of products over the given axes of both (or the last and first `axes` of them)."""
    sa, sb = _shape(a), _shape(b)
    if isinstance(axes, (int, np.integer)):
        axes = range(len(sa) - axes, len(sa)), range(axes)
    left, right = axes
    ax, bx = [_front(k, len(sa)) for k in _ints(left)], [_front(k, len(sb)) for k in _ints(right)]
    if [sa[k] for k in ax] != [sb[k] for k in bx]:
        raise ValueError(f"tensordot: axes {ax} of shape {sa} and {bx} of shape {sb} differ in size")
    free_a = [k for k in range(len(sa)) if k not in ax]
    free_b = [k for k in range(len(sb)) if k not in bx]
    n = math.prod(sa[k] for k in ax)
    rows = reshape(transpose(a, free_a + ax), (math.prod(sa[k] for k in free_a), n))
    columns = reshape(transpose(b, bx + free_b), (n, math.prod(sb[k] for k in free_b)))
    return reshape(ops.matmul(rows, columns), [sa[k] for k in free_a] + [sb[k] for k in free_b])


@function
def kron(a: Any, b: Any) -> Tensor:
    """The Kronecker product."""
    sa, sb = _shape(a), _shape(b)
    ndim = builtins.max(len(sa), len(sb))
    sa, sb = (1,) * (ndim - len(sa)) + tuple(sa), (1,) * (ndim - len(sb)) + tuple(sb)
    left = reshape(a, [n for m in sa for n in (m, 1)])
    right = reshape(b, [n for m in sb for n in (1, m)])
    return reshape(ops.multiply(left, right), [m * n for m, n in zip(sa, sb, strict=True)])


@function
def einsum(subscripts: str, /, *operands: Any, out: None = None, optimize: Any = None) -> Tensor:
    """Einstein summation, as NumPy's with subscripts in a string; explicit or implicit output, ellipsis, repeated
    letters. Three or more operands are multiplied pair by pair, in an order that NumPy chooses, unless `optimize` is
    False: one loop over all letters would take the product of all their sizes."""
    _operand(None, None, out)
    if not isinstance(subscripts, str):
        raise TypeError("einsum: give the subscripts as a string: einsum('ij,jk->ik', a, b)")
    inputs, arrow, output = subscripts.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(terms) != len(operands):
        raise ValueError(f"einsum: {len(terms)} terms in {subscripts!r}, but {len(operands)} operands")
    rest = [len(_shape(a)) - len(t.replace("...", "")) for t, a in zip(terms, operands, strict=True)]
    for term, a, n in zip(terms, operands, rest, strict=True):
        if n < 0 or (n and "..." not in term):
            raise ValueError(f"einsum: term {term!r} of {subscripts!r} does not fit an operand of shape {_shape(a)}")
    spare = [c for c in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in subscripts]
    batch = "".join(spare[: builtins.max(n if "..." in t else 0 for t, n in zip(terms, rest, strict=True))])
    terms = [t.replace("...", batch[len(batch) - n :]) for t, n in zip(terms, rest, strict=True)]
    if arrow:
        if batch and "..." not in output:
            raise ValueError(f"einsum: the output of {subscripts!r} has no '...', but its input has axes there")
        output = output.replace("...", batch)
    else:
        letters = "".join(terms)
        output = batch + "".join(sorted(c for c in set(letters) - set(batch) if letters.count(c) == 1))
    parts = list(operands)
    for i, term in enumerate(terms):
        while len(set(term)) < len(term):  # a letter twice: its diagonal
            c = next(c for c in term if term.count(c) > 1)
            first, second = [k for k, d in enumerate(term) if d == c][:2]
            if _shape(parts[i])[first] != _shape(parts[i])[second]:
                raise ValueError(f"einsum: {c!r} stands for axes of different size in shape {_shape(parts[i])}")
            parts[i] = diagonal(parts[i], 0, first, second)
            term = "".join(d for k, d in enumerate(term) if k not in (first, second)) + c
        elsewhere = output + "".join(terms[:i] + terms[i + 1 :])
        alone = tuple(k for k, c in enumerate(term) if c not in elsewhere)
        if alone:
            parts[i] = sum(parts[i], alone)
        terms[i] = "".join(c for c in term if c in elsewhere)
    optimize = len(parts) > 2 if optimize is None else optimize
    return ops._einsum(parts, subscripts=",".join(terms) + "->" + output, optimize=optimize)


# ---- shapes -------------------------------------------------------------------------------------------------------


@function
def reshape(a: Any, /, shape: Any, order: str = "C") -> Tensor:
    """The elements in another shape; one size may be -1."""
    if order != "C":
        raise TypeError(f"reshape: order={order!r} has no rule; transpose before and after instead")
    a = a if hasattr(a, "shape") else np.asarray(a)  # a number among the operands of stack, outer, ...
    return ops._reshape(a, shape=_ints(shape))


@function
def ravel(a: Any, order: str = "C") -> Tensor:
    """All elements along one axis."""
    return reshape(a, -1, order)


@function
def transpose(a: Any, axes: Any = None) -> Tensor:
    """The axes in another order, reversed where None."""
    ndim = len(_shape(a))
    if axes is None:
        axes = range(ndim - 1, -1, -1)
    order = tuple(_front(k, ndim) for k in axes)
    if len(order) != ndim:
        raise ValueError(f"transpose: axes {tuple(axes)} do not fit shape {_shape(a)}")
    return ops._transpose(a, axes=order)


@function
def matrix_transpose(x: Any, /) -> Tensor:
    """The last two axes exchanged."""
    return swapaxes(x, -1, -2)


@function
def swapaxes(a: Any, axis1: int, axis2: int) -> Tensor:
    """Two axes exchanged."""
    ndim = len(_shape(a))
    order = list(range(ndim))
    i, j = _front(axis1, ndim), _front(axis2, ndim)
    order[i], order[j] = order[j], order[i]
    return ops._transpose(a, axes=tuple(order))


@function
def moveaxis(a: Any, source: Any, destination: Any) -> Tensor:
    """Axes moved to other places, the others keeping their order."""
    ndim = len(_shape(a))
    src, dst = ([_front(k, ndim) for k in _ints(axes)] for axes in (source, destination))
    order = [k for k in range(ndim) if k not in src]
    for place, k in sorted(zip(dst, src, strict=True)):
        order.insert(place, k)
    return ops._transpose(a, axes=tuple(order))


@function
def squeeze(a: Any, axis: Any = None) -> Tensor:
    """Without the axes of size 1 (or the named ones of them)."""
    shape = _shape(a)
    if axis is None:
        drop = [k for k, n in enumerate(shape) if n == 1]
    else:
        drop = [_front(k, len(shape)) for k in _ints(axis)]
        if any(shape[k] != 1 for k in drop):
            raise ValueError(f"squeeze: axis {axis} of shape {shape} is not of size 1")
    return reshape(a, [n for k, n in enumerate(shape) if k not in drop])


@function
def expand_dims(a: Any, axis: Any) -> Tensor:
    """With new axes of size 1 at the given places of the result."""
    axes = _ints(axis)
    shape = list(_shape(a))
    ndim = len(shape) + len(axes)
    places = sorted(_front(k, ndim) for k in axes)
    if len(set(places)) < len(places):
        raise ValueError(f"expand_dims: axis {axes} names a place twice")
    for k in places:
        shape.insert(k, 1)
    return reshape(a, shape)


def _atleast(ndim: int, pad: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Callable[..., Any]:
    def atleast(*arys: Any) -> Any:
        out = [a if isinstance(a, Tensor) and a.ndim >= ndim else reshape(a, pad(_shape(a))) for a in arys]
        return out[0] if len(out) == 1 else tuple(out)

    atleast.__name__ = f"atleast_{ndim}d"
    atleast.__doc__ = f"Each operand with at least {ndim} axes."
    return function(atleast)


atleast_1d = _atleast(1, lambda s: s or (1,))
atleast_2d = _atleast(2, lambda s: s if len(s) > 1 else (1, *(s or (1,))))
atleast_3d = _atleast(3, lambda s: s if len(s) > 2 else (*s, 1) if len(s) == 2 else (1, *(s or (1,)), 1))


@function
def broadcast_to(array: Any, shape: Any) -> Tensor:
    """Stretched to `shape`."""
    shape = _ints(shape)
    if builtins.any(n < 0 for n in shape):  # CuPy would make such an array
        raise ValueError(f"broadcast_to: shape {shape} has a negative size")
    return ops._broadcast_to(array, shape=shape)


@function
def full_like(
    a: Any, fill_value: Any, dtype: Any = None, order: Any = "K", subok: bool = True, shape: Any = None
) -> Any:
    """`fill_value` in the shape and the dtype of `a`: recorded where it is a Tensor, a plain array otherwise."""
    a = _untracked(a)  # its values do not matter
    if not isinstance(fill_value, Tensor):
        return np.full_like(a, fill_value, dtype=dtype, shape=shape)
    return broadcast_to(astype(fill_value, a.dtype if dtype is None else dtype), a.shape if shape is None else shape)


@function
def tile(A: Any, reps: Any) -> Tensor:
    """Repeated as a whole, `reps[k]` times along axis k."""
    times = _ints(reps)
    shape = tuple(_shape(A))
    ndim = builtins.max(len(times), len(shape))
    times, shape = (1,) * (ndim - len(times)) + times, (1,) * (ndim - len(shape)) + shape
    stretched = broadcast_to(
        reshape(A, [m for n in shape for m in (1, n)]), [m for t, n in zip(times, shape, strict=True) for m in (t, n)]
    )
    return reshape(stretched, [t * n for t, n in zip(times, shape, strict=True)])


@function
def repeat(a: Any, repeats: Any, axis: int | None = None) -> Tensor:
    """Each element `repeats` times (one number, or one for each element) along `axis`."""
    if axis is None:
        a, axis = ravel(a), 0
    axis = _front(axis, len(_shape(a)))
    return take(a, np.repeat(np.arange(_shape(a)[axis]), repeats), axis)


@function
def roll(a: Any, shift: Any, axis: Any = None) -> Tensor:
    """Shifted along `axis`, what falls off coming in again."""
    shift = _ints(shift) if np.ndim(shift) else as_int(shift)
    return ops._roll(a, shift=shift, axis=_axis(axis))


@function
def flip(m: Any, axis: Any = None) -> Tensor:
    """The elements in reverse order along `axis`."""
    return ops._flip(m, axis=_axis(axis))


@function
def fliplr(m: Any) -> Tensor:
    """Reversed along axis 1."""
    return flip(m, 1)


@function
def flipud(m: Any) -> Tensor:
    """Reversed along axis 0."""
    return flip(m, 0)


@function
def rot90(m: Any, k: int = 1, axes: Sequence[int] = (0, 1)) -> Tensor:
    """Turned by k times 90 degrees from the first axis towards the second."""
    i, j = (_front(k, len(_shape(m))) for k in axes)
    if i == j:
        raise ValueError(f"rot90: the axes {tuple(axes)} are one and the same")
    k %= 4
    if k == 2:
        return flip(m, (i, j))
    if k == 1:
        return swapaxes(flip(m, j), i, j)
    return flip(swapaxes(m, i, j), j) if k == 3 else ops.identity(m)


# ---- joining and splitting ----------------------------------------------------------------------------------------


@function
def concatenate(arrays: Sequence[Any], /, axis: int | None = 0, out: None = None, *, dtype: Any = None) -> Tensor:
    """The operands one after the other along an axis that they have; flattened where it is None."""
    parts = [_operand(a, dtype, out) for a in arrays]
    if axis is None:
        parts, axis = [ravel(a) for a in parts], 0
    if not parts:
        raise ValueError("concatenate: needs at least one array")
    return ops._concatenate(parts, axis=_front(axis, len(_shape(parts[0]))) if _shape(parts[0]) else axis)


@function
def stack(arrays: Sequence[Any], axis: int = 0, out: None = None, *, dtype: Any = None) -> Tensor:
    """The operands, of one shape, one after the other along a new axis."""
    shapes = {tuple(_shape(a)) for a in arrays}
    if len(shapes) > 1:
        raise ValueError(f"stack: the operands must have one shape, not {sorted(shapes)}")
    return concatenate([expand_dims(a, axis) for a in arrays], axis, out, dtype=dtype)


@function
def vstack(tup: Sequence[Any], *, dtype: Any = None) -> Tensor:
    """One below the other: along axis 0, 1-d operands as rows."""
    return concatenate([atleast_2d(a) for a in tup], 0, dtype=dtype)


@function
def hstack(tup: Sequence[Any], *, dtype: Any = None) -> Tensor:
    """Side by side: along axis 1, or 0 for 1-d operands."""
    parts = [atleast_1d(a) for a in tup]
    return concatenate(parts, 0 if parts and parts[0].ndim == 1 else 1, dtype=dtype)


@function
def dstack(tup: Sequence[Any]) -> Tensor:
    """One behind the other: along axis 2."""
    return concatenate([atleast_3d(a) for a in tup], 2)


@function
def column_stack(tup: Sequence[Any]) -> Tensor:
    """1-d operands as columns, 2-d ones as they are, side by side."""
    return concatenate([a if len(_shape(a)) > 1 else reshape(a, (-1, 1)) for a in tup], 1)


@function
def array_split(ary: Any, indices_or_sections: Any, axis: int = 0) -> list[Tensor]:
    """Parts along `axis`: at the given places, or that many of sizes that differ by at most one."""
    axis = _front(axis, len(_shape(ary)))
    n = _shape(ary)[axis]
    if isinstance(indices_or_sections, (int, np.integer)):
        k = as_int(indices_or_sections)
        if k <= 0:
            raise ValueError("array_split: the number of sections must be larger than 0")
        cuts = [i * (n // k) + builtins.min(i, n % k) for i in range(k + 1)]
    else:
        cuts = [0, *map(as_int, indices_or_sections), n]
    t = ary if isinstance(ary, Tensor) else Tensor(ary)
    return [t[(slice(None),) * axis + (slice(i, j),)] for i, j in pairwise(cuts)]


@function
def split(ary: Any, indices_or_sections: Any, axis: int = 0) -> list[Tensor]:
    """Parts along `axis`: at the given places, or that many equal ones."""
    n = _shape(ary)[_front(axis, len(_shape(ary)))]
    if isinstance(indices_or_sections, (int, np.integer)) and n % as_int(indices_or_sections):
        raise ValueError(f"split: {n} elements do not divide into {indices_or_sections} equal parts; use array_split")
    return array_split(ary, indices_or_sections, axis)


@function
def vsplit(ary: Any, indices_or_sections: Any) -> list[Tensor]:
    """Parts along axis 0."""
    return split(ary, indices_or_sections, 0)


@function
def hsplit(ary: Any, indices_or_sections: Any) -> list[Tensor]:
    """Parts along axis 1, or 0 of a 1-d array."""
    return split(ary, indices_or_sections, 1 if len(_shape(ary)) > 1 else 0)


_PAD_BY_GATHER = ("edge", "reflect", "symmetric", "wrap")


@function
def pad(array: Any, pad_width: Any, mode: str = "constant", **kwargs: Any) -> Tensor:
    """Elements around `array`: a constant, or its own elements (mode edge, reflect, symmetric or wrap)."""
    shape = _shape(array)
    width = tuple((as_int(lo), as_int(hi)) for lo, hi in np.broadcast_to(np.asarray(pad_width), (len(shape), 2)))
    if mode == "constant" and set(kwargs) <= {"constant_values"}:
        value = kwargs.get("constant_values", 0.0)
        if isinstance(value, Tensor) or np.ndim(value):
            raise TypeError("pad: constant_values of a Tensor must be one number")
        return ops._pad(array, width=width, value=value)
    if mode in _PAD_BY_GATHER and kwargs in ({}, {"reflect_type": "even"}):
        numbered = np.arange(math.prod(shape)).reshape(shape)
        places = np.pad(numbered, width, mode)  # type: ignore[call-overload]
        return take(ravel(array), places)
    options = "".join(f", {name}={value!r}" for name, value in kwargs.items())
    raise TypeError(f"pad: mode={mode!r}{options} has no rule; use one of constant, {', '.join(_PAD_BY_GATHER)}")


# ---- places -------------------------------------------------------------------------------------------------------


@function
def take(a: Any, indices: Any, axis: int | None = None, out: None = None, mode: str = "raise") -> Tensor:
    """The elements (or slices along `axis`) at `indices`; an index that comes twice gets both gradients."""
    if mode != "raise":
        raise TypeError(f"take: mode={mode!r} has no rule; wrap or clip the indices first")
    if not hasattr(indices, "shape"):
        indices = np.asarray(indices, None if np.size(indices) else int)
    a = _operand(a, None, out)
    if axis is None:
        a, axis = ravel(a), 0
    return _pick(a, (slice(None),) * _front(axis, len(_shape(a))) + (indices,))


def _pick(a: Any, index: tuple[Any, ...]) -> Tensor:
    """a[index], where `a` need be no Tensor."""
    return (a if isinstance(a, Tensor) else Tensor(arrays.operand(a)))[index]


@function
def take_along_axis(arr: Any, indices: Any, axis: int | None = -1) -> Tensor:
    """For each place along the other axes, the elements at `indices` along `axis`; along the others, `arr` and
    `indices` broadcast."""
    if axis is None:
        arr, axis = ravel(arr), 0
    shape = _shape(arr)
    if len(shape) != indices.ndim:
        raise ValueError(f"take_along_axis: indices of shape {indices.shape} need as many axes as the array, {shape}")
    grid: list[Any] = list(np.ogrid[tuple(slice(n) for n in shape)])
    grid[_front(axis, len(shape))] = indices
    return _pick(arr, tuple(grid))


@function
def bincount(x: Any, /, weights: Any = None, minlength: int = 0) -> Any:
    """How often each integer occurs in x, a plain array; with weights, the sum of those of its occurrences."""
    x = _untracked(x)
    if not isinstance(weights, Tensor):
        return np.bincount(x, weights, minlength)
    x = x if hasattr(x, "shape") else np.asarray(x, None if np.size(x) else int)
    shape = np.bincount(x, minlength=minlength).shape
    if x.shape != weights.shape:
        raise ValueError(f"bincount: weights of shape {weights.shape} do not fit integers of shape {x.shape}")
    x = arrays.place(x, weights.data)
    return ops._scatter_add(astype(weights, np.float64), index=(x,), shape=shape)  # float64 as in NumPy


@function
def sort(a: Any, axis: int | None = -1, kind: Any = None, *, stable: bool | None = None) -> Tensor:
    """In ascending order along `axis` (flattened where None); each gradient goes back to where its element came
    from."""
    if axis is None:
        a, axis = ravel(a), 0
    return take_along_axis(a, F.argsort(a, axis=axis, kind="stable"), axis)


@function
def diagonal(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    """The diagonal over two axes, as the last axis of the result."""
    moved = moveaxis(a, (axis1, axis2), (-2, -1))
    rows, columns = _diagonal_places(_shape(moved)[-2:], offset)
    return _pick(moved, (Ellipsis, rows, columns))


def _diagonal_places(shape: Sequence[int], offset: int) -> tuple[Array, Array]:
    m, n = shape
    count = builtins.max(builtins.min(m, n - offset) if offset >= 0 else builtins.min(m + offset, n), 0)
    places = np.arange(count)
    return places + builtins.max(-offset, 0), places + builtins.max(offset, 0)


@function
def diag(v: Any, k: int = 0) -> Tensor:
    """The diagonal of a matrix, or the matrix that has v on its diagonal."""
    shape = _shape(v)
    if len(shape) == 2:
        return diagonal(v, k)
    if len(shape) != 1:
        raise ValueError(f"diag: needs one or two axes, not shape {shape}")
    n = shape[0] + abs(k)
    v = v if isinstance(v, Tensor) else Tensor(v)
    places = tuple(arrays.place(part, v.data) for part in _diagonal_places((n, n), k))
    return ops._scatter_add(v, index=places, shape=(n, n))


@function
def trace(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1, dtype: Any = None, out: None = None) -> Tensor:
    """The sum of a diagonal."""
    return sum(diagonal(a, offset, axis1, axis2), -1, dtype, out)


@function
def tril(m: Any, k: int = 0) -> Tensor:
    """Zero above diagonal k."""
    return ops._tril(m, k=k)


@function
def triu(m: Any, k: int = 0) -> Tensor:
    """Zero below diagonal k."""
    return ops._triu(m, k=k)


# ---- values -------------------------------------------------------------------------------------------------------


@function
def where(condition: Any, *choices: Any) -> Tensor:
    """`where(condition, a, b)`: a where the condition holds, else b."""
    if len(choices) != 2:
        raise TypeError("where: give both choices, where(condition, a, b); np.nonzero(t.data) gives the places")
    condition = condition._data if isinstance(condition, Tensor) else condition
    return ops.where(condition, *choices)


@function
def clip(a: Any, a_min: Any = None, a_max: Any = None, out: None = None, *, min: Any = None, max: Any = None) -> Tensor:
    """min(max(a, a_min), a_max); no gradient where a limit applies, nor at it."""
    low = min if a_min is None else a_min
    high = max if a_max is None else a_max
    a = _operand(a, None, out)
    a = a if low is None else ops.maximum(a, low)
    a = a if high is None else ops.minimum(a, high)
    return ops.identity(a) if low is None and high is None else a


@function
def select(condlist: Sequence[Any], choicelist: Sequence[Any], default: Any = 0) -> Tensor:
    """For each element the first choice whose condition holds."""
    if len(condlist) != len(choicelist):
        raise ValueError(f"select: {len(condlist)} conditions, but {len(choicelist)} choices")
    for condition, choice in zip(reversed(condlist), reversed(choicelist), strict=True):
        default = where(condition, choice, default)
    return default


@function
def nan_to_num(x: Any, copy: bool = True, nan: float = 0.0, posinf: Any = None, neginf: Any = None) -> Tensor:
    """Numbers in place of NaN and the infinities; no gradient there."""
    if not copy:
        raise TypeError("nan_to_num: copy=False would change a Tensor in place")
    if x.dtype.kind != "f":
        return ops.identity(x)  # integers are numbers already
    limits = np.finfo(x.dtype)
    x = where(x == math.inf, float(limits.max) if posinf is None else posinf, x)
    x = where(x == -math.inf, float(limits.min) if neginf is None else neginf, x)
    return where(F.isnan(x), nan, x)


@function
def silu(a: Any) -> Tensor:
    """a sigmoid(a). (Elfwing, Uchibe and Doya 2018.)"""
    return ops.multiply(a, ops.sigmoid(a))


@function
def gelu(a: Any) -> Tensor:
    """a / 2 (1 + tanh u), u = sqrt(2 / pi) (a + 0.044715 a^3): the tanh form of Hendrycks and Gimpel 2016.

    It is computed as a sigmoid(2u), which is the same and keeps its digits where a < 0 and tanh u is near -1.
    """
    z = clip(a, -25.0, 25.0)  # sigmoid(2u) is 0 or 1 beyond, and a^3 would overflow
    k = math.sqrt(8 / math.pi)
    return ops.multiply(a, ops.sigmoid(z * (k + 0.044715 * k * ops.square(z))))


@function
def astype(x: Any, dtype: Any, *, copy: bool = True) -> Tensor:
    """With another dtype, always in memory of its own."""
    return ops.astype(x, dtype=dtype)


@function
def copy(a: Any, order: str = "K", subok: bool = False) -> Tensor:
    """The same values in memory of their own, recorded."""
    return ops.identity(a)


# ---- functions without gradient -----------------------------------------------------------------------------------


def _by_name(name: str) -> None:
    """Let the row take its further arguments by position too, as NumPy does: `argmax(t, None)`, `any(t, (0, 1))`. They
    are parameters, where a row by itself would take them for operands."""
    row, signature = getattr(F, name), functools.cache(lambda: inspect.signature(getattr(np, name)))

    @functools.wraps(row)
    def named(*args: Any, **kwargs: Any) -> Any:
        (_, a), *given = signature().bind(*args, **kwargs).arguments.items()
        params = {name: _untracked(value) for name, value in given}
        return row(_operand(a, None, params.pop("out", None)), **params)

    setattr(F, name, named)


def _untracked(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value._data
    if isinstance(value, (list, tuple)):
        return type(value)(map(_untracked, value))
    return value


for _name in "round", "argmax", "argmin", "argsort", "any", "all", "count_nonzero", "zeros_like", "ones_like":
    _by_name(_name)

# ---- dispatch -----------------------------------------------------------------------------------------------------

for _name, _f in {  # NumPy's second names
    "abs": ops.absolute,
    "fabs": ops.absolute,
    "positive": ops.identity,
    "remainder": ops.mod,
    "amax": max,
    "amin": min,
    "around": F.round,
}.items():
    setattr(F, _name, _f)

# NumPy's function -> ours: everything in F that NumPy has under the same name
TABLE: dict[Any, Callable[..., Any]] = {
    getattr(np, name): f for name, f in vars(F).items() if callable(getattr(np, name, None))
}
TABLE[np.linalg.norm] = norm

# these answer with booleans, integers, text or a dtype (or with memory still to be filled): no gradient could flow
_QUERIES = {
    getattr(np, name)
    for name in [
        "allclose", "isclose", "array_equal", "array_equiv", "shape", "ndim", "size", "result_type", "can_cast",
        "searchsorted", "digitize", "argpartition", "argwhere", "flatnonzero", "nonzero", "isin", "shares_memory",
        "may_share_memory", "array_repr", "array_str", "array2string", "iscomplexobj", "isrealobj", "empty_like",
    ]
}
_ON_VALUES = {np.unique, np.histogram}  # floats come back, and they have no rule: for Tensors outside the graph only

# what NumPy's reductions take and Tensors do not: what to write instead
_INSTEAD = {
    "where": "choose the elements first, t[mask], or write np.where(mask, t, 0) in a sum",
    "initial": "combine it with the result: np.sum(t) + x, np.prod(t) * x, np.maximum(np.max(t), x)",
}


def _any_tracked(values: Any) -> bool:
    return builtins.any(_any_tracked(v) if isinstance(v, (list, tuple)) else is_tracked(v) for v in values)


def _ours(theirs: Any) -> Callable[..., Any] | None:
    """Our function for NumPy's, or what a user has registered under its name since."""
    found = TABLE.get(theirs)
    name: str = theirs.__name__
    return vars(F).get(name) if found is None and getattr(np, name, None) is theirs else found


def _no_rule(name: str) -> TypeError:
    return TypeError(
        f"np.{name} has no gradient rule for Tensors: write it with functions that have one, register it with "
        "@primitive, or apply it to t.data if no gradient shall flow"
    )


def _dispatch_ufunc(ufunc: Any, method: str, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `np.exp(t)` and `array * t` do."""
    name = ufunc.__name__
    if "out" in kwargs:
        raise TypeError(
            f"np.{name}: out= (or an in-place operator on an array) cannot take a Tensor's result; "
            f"write a new name: y = np.{name}(...)"
        )
    if method != "__call__":
        raise _no_rule(f"{name}.{method}")
    ours = _ours(ufunc)
    if ours is None:
        raise _no_rule(name)
    dtype = kwargs.pop("dtype", None)
    if kwargs:
        remedy = "; use where(mask, a, b)" if "where" in kwargs else ""
        raise TypeError(f"np.{name}: {', '.join(kwargs)}= is not supported on Tensors{remedy}")
    if dtype is None:
        return ours(*inputs)
    if hasattr(ours, "prim") and not ours.prim.differentiable:
        y = ours(*inputs)
        return y if y.dtype == dtype else ours(*inputs, dtype=dtype)  # CuPy would compare operands of that dtype
    inputs = tuple(np.asarray(a) if isinstance(a, (list, tuple)) else a for a in inputs)
    if not np.can_cast(np.result_type(*map(_untracked, inputs)), dtype, "same_kind"):
        raise TypeError(f"np.{name}: dtype={np.dtype(dtype)} cannot hold the result; convert it with astype")
    # a Python number takes the dtype of the operand beside it
    return ours(*(a if isinstance(a, (int, float)) else _operand(a, dtype) for a in inputs))


def _dispatch_function(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `np.sum(t, axis=0)` does."""
    name = f"{func.__module__}.{func.__name__}".removeprefix("numpy.")
    ours = _ours(func)
    if ours is not None:
        for key in _INSTEAD:
            if key in kwargs and not hasattr(ours, "prim"):  # any and all, which have no gradient, take a mask
                raise TypeError(f"np.{name}: {key}= is not supported on Tensors; {_INSTEAD[key]}")
        return ours(*args, **kwargs)
    if func in _QUERIES or (func in _ON_VALUES and not _any_tracked((*args, *kwargs.values()))):
        values = _untracked(args)
        if problem := arrays.mixed(values):  # CuPy would move some of them without a word
            raise ValueError(f"np.{name}: {problem}; move one with .to(device)")
        on_device = next(filter(arrays.is_array, values), None)
        return arrays.beside(on_device, func)(*values, **{key: _untracked(value) for key, value in kwargs.items()})
    raise _no_rule(name)


F._dispatch_ufunc = _dispatch_ufunc  # type: ignore[attr-defined]
F._dispatch_function = _dispatch_function  # type: ignore[attr-defined]
