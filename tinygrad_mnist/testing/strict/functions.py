"""CuPy's functions: those with rules of their own, those that call methods, and those that NumPy computes alike."""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from .array import (
    API,
    axes_of,
    broadcast,
    convert,
    device_array,
    dtype_of,
    garbage,
    library,
    ndarray,
    note_tables,
    np,
    operand,
    owner,
    product,
    stub,
    typed,
    unmodelled,
    view,
    wrap,
)
from .device import Host, Unmodelled, pool
from .record import recorder
from .ufuncs import output


def function(f: Callable[..., Any]) -> Callable[..., Any]:
    """Register a function under its name."""
    library[f.__name__] = f
    return f


# ---- making arrays ------------------------------------------------------------------------------------------------


@function
def array(
    obj: Any,
    dtype: Any = None,
    copy: bool | None = True,
    order: Any = "K",
    subok: bool = False,
    ndmin: int = 0,
    *,
    blocking: bool = False,
) -> ndarray:
    if subok:
        raise NotImplementedError("cupy.array(subok=True)")
    return convert(obj, dtype, copy, order, ndmin, blocking)


@function
def asarray(a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, blocking: bool = False) -> ndarray:
    return convert(a, dtype, copy, order, blocking=blocking, what="asarray()")


@function
def asnumpy(a: Any, stream: Any = None, order: Any = "C", out: Any = None, *, blocking: bool = True) -> Host:
    if isinstance(a, ndarray):
        return a._download("asnumpy()", order, out, blocking)
    host = np.asarray(a, order=order)
    if out is None:
        return host
    out[...] = host
    return out


def _contiguous(a: Any, dtype: Any, order: str) -> ndarray:
    host = np.array(typed(a, "a")._host, dtype or a.dtype, copy=None, order=order, ndmin=1)
    return a if host is a._host else wrap(host, [a])


def _filled(result: ndarray, value: Any) -> ndarray:
    result._host.fill(value)
    return result


@function
def empty_like(prototype: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    if subok is not None:
        raise TypeError("subok is not supported yet")
    dtype = dtype_of(prototype.dtype if dtype is None else dtype)
    model = prototype._host if isinstance(prototype, ndarray) else prototype  # a host array passes in CuPy too
    host = np.empty_like(model, dtype, order, shape=shape or None)
    host[...] = garbage((), dtype)
    return owner(host)


@function
def full_like(
    a: Any, fill_value: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> ndarray:
    result = empty_like(a, dtype, order, subok, shape)
    copyto(result, fill_value, casting="unsafe")
    return result


@function
def full(shape: Any, fill_value: Any, dtype: Any = None, order: Any = "C") -> ndarray:
    if dtype is None:
        dtype = fill_value.dtype if isinstance(fill_value, ndarray) else np.array(fill_value).dtype
    result = ndarray(shape, dtype, order=order)
    copyto(result, fill_value, casting="unsafe")
    return result


@function
def copyto(dst: Any, src: Any, casting: Any = "same_kind", where: Any = None) -> None:
    if isinstance(src, np.ndarray):
        if src.size != 1:
            raise ValueError("non-scalar numpy.ndarray cannot be used for copyto")
        src = src.squeeze()[()]
    if type(src) in (bool, int, float, complex):
        np.copyto(np.empty((), dst.dtype), src, casting=casting)  # raises where the number does not fit
    elif not np.can_cast(src.dtype, dst.dtype, casting):
        raise TypeError(f"Cannot cast {src.dtype} to {dst.dtype} in {casting} casting mode")
    if not isinstance(dst, ndarray):
        raise AttributeError("cupy.copyto() writes to device arrays only")
    mask = True if where is None else typed(where, "where")._host.astype(bool)
    with np.errstate(all="ignore"):
        np.copyto(dst._host, src._host if isinstance(src, ndarray) else src, "unsafe", where=mask)


@function
def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> ndarray:
    if dtype is None:
        dtype = float if any(np.dtype(type(k)).kind == "f" for k in (start, stop, step)) else int
    dtype = dtype_of(dtype)
    if dtype.kind == "b":
        raise Unmodelled("cupy.arange(dtype=bool)")
    start, stop = (0, start) if stop is None else (start, stop)
    step = 1 if step is None else step
    size = max(int(np.ceil((stop - start) / step)), 0)
    return owner((dtype.type(start) + np.arange(size) * dtype.type(step)).astype(dtype))


@function
def diag(v: Any, k: int = 0) -> ndarray:
    if np.ndim(v) not in (1, 2):
        raise ValueError("Input must be 1- or 2-d.")
    return owner(np.diag(convert(v, copy=None, what="diag()")._host, k).copy())


# ---- joining and stretching them ----------------------------------------------------------------------------------


@function
def concatenate(tup: Any, axis: Any = 0, out: Any = None, *, dtype: Any = None, casting: Any = "same_kind") -> ndarray:
    if axis is None:
        tup, axis = [m.ravel() for m in tup], 0
    if out is not None:
        typed(out, "out")
    arrays: list[Any] = [operand(a) for a in tup]
    if not arrays:
        raise ValueError("Cannot concatenate from empty tuple")
    if not all(isinstance(a, ndarray) for a in arrays):
        raise TypeError("Only cupy arrays can be concatenated")
    if not all(a.ndim for a in arrays):
        raise TypeError("zero-dimensional arrays cannot be concatenated")
    if len({a.ndim for a in arrays}) > 1:
        raise ValueError("All arrays to concatenate must have the same ndim")
    (axis,) = axes_of(axis, arrays[0].ndim)
    if out is not None and dtype is not None:
        raise TypeError("concatenate() only takes `out` or `dtype` as an argument, but both were provided.")
    dtype = dtype if out is None else out.dtype
    note_tables(arrays, axis, dtype)
    host = np.concatenate([a._host for a in arrays], axis, dtype=dtype, casting=casting)
    if out is None:
        return owner(host)
    if host.shape != out.shape:
        raise ValueError("Output array is the wrong shape")
    out._host[...] = host
    return out


@function
def stack(tup: Any, axis: Any = 0, out: Any = None, *, dtype: Any = None, casting: Any = "same_kind") -> ndarray:
    return concatenate([expand_dims(x, axis) for x in tup], axis, out, dtype=dtype, casting=casting)


@function
def hstack(tup: Any, *, dtype: Any = None, casting: Any = "same_kind") -> ndarray:
    arrays = [_at_least(1, [a]) for a in tup]
    return concatenate(arrays, int(arrays[0].ndim > 1), dtype=dtype, casting=casting)


@function
def vstack(tup: Any, *, dtype: Any = None, casting: Any = "same_kind") -> ndarray:
    return concatenate([_at_least(2, [a]) for a in tup], dtype=dtype, casting=casting)


def _column(a: Any) -> ndarray:
    if not isinstance(a, ndarray):
        raise TypeError("Only cupy arrays can be column stacked")
    if a.ndim not in (1, 2):
        raise ValueError("Only 1 or 2 dimensional arrays can be column stacked")
    return a[:, None] if a.ndim == 1 else a


def _at_least(ndim: int, arrays: Sequence[Any]) -> Any:
    raised = (np.atleast_1d, np.atleast_2d, np.atleast_3d)[ndim - 1]
    found = [convert(a, copy=None, what=f"atleast_{ndim}d()") for a in arrays]
    found = [a if a.ndim >= ndim else wrap(raised(a._host), [a]) for a in found]
    return found[0] if len(found) == 1 else found


@function
def expand_dims(a: Any, axis: Any) -> ndarray:
    return view(np.expand_dims(typed(a, "a")._host, axis), a)


@function
def broadcast_to(array: Any, shape: Any) -> ndarray:
    shape = tuple(shape) if np.iterable(shape) else (shape,)
    return view(np.broadcast_to(typed(array, "array")._host, shape), array)  # read-only, other than in CuPy


@function
def broadcast_arrays(*args: Any) -> tuple[Any, ...]:
    shape = broadcast([a for a in args if isinstance(a, ndarray)])
    return tuple(broadcast_to(a, shape) if isinstance(a, ndarray) and a.shape != shape else a for a in args)


@function
def array_split(ary: Any, indices_or_sections: Any, axis: int = 0) -> list[Any]:
    return [view(part, ary) for part in np.array_split(typed(ary, "ary")._host, indices_or_sections, axis)]


@function
def split(ary: Any, indices_or_sections: Any, axis: int = 0) -> list[Any]:
    if ary.ndim <= axis:
        raise IndexError("Axis exceeds ndim")
    if np.isscalar(indices_or_sections) and ary.shape[axis] % indices_or_sections:
        raise ValueError("indices_or_sections must divide the size along the axes.")
    return array_split(ary, indices_or_sections, axis)


# ---- choices and comparisons --------------------------------------------------------------------------------------


def _checked(a: Any) -> ndarray:
    if not isinstance(a, ndarray):
        raise TypeError(f"'a' must be a cupy.ndarray object, not {type(a)}.")
    return a


@function
def where(condition: Any, x: Any = None, y: Any = None) -> Any:
    if (x is None) != (y is None):
        raise ValueError("Must provide both 'x' and 'y' or neither.")
    if x is None:
        return _checked(condition).nonzero()
    return library["_where"](condition.astype("?", copy=False), x, y)


@function
def select(condlist: Any, choicelist: Any, default: Any = 0) -> ndarray:
    if len(condlist) != len(choicelist):
        raise ValueError("list of cases must be same length as list of conditions")
    if not all(isinstance(choice, ndarray) for choice in choicelist):
        raise TypeError("choicelist only accepts lists of cupy ndarrays")
    if any(condition.dtype != bool for condition in condlist):
        raise ValueError("invalid entry in condlist: should be boolean ndarray")
    return owner(np.select([c._host for c in condlist], [c._host for c in choicelist], default))


@function
def take_along_axis(a: Any, indices: Any, axis: Any) -> ndarray:
    if indices.dtype.kind not in "iu":
        raise IndexError("`indices` must be an integer array")
    return owner(np.take_along_axis(a._host, typed(indices, "indices")._host, axis))


@function
def isclose(a: Any, b: Any, rtol: Any = 1e-05, atol: Any = 1e-08, equal_nan: bool = False) -> ndarray:
    a, b = (convert(x, copy=None, what="operand of isclose()") for x in (a, b))
    return owner(np.isclose(a._host, b._host, rtol, atol, equal_nan))


@function
def array_equal(a1: Any, a2: Any, equal_nan: bool = False) -> ndarray:
    if equal_nan:
        raise Unmodelled("cupy.array_equal(equal_nan=True)")
    return (a1 == a2).all() if a1.shape == a2.shape else owner(False)


@function
def array_equiv(a1: Any, a2: Any) -> ndarray:
    try:
        broadcast([a1, a2])
    except ValueError:
        return owner(False)
    return (a1 == a2).all()


@function
def may_share_memory(a: Any, b: Any, max_work: Any = None) -> bool:
    return bool(np.may_share_memory(typed(a, "a")._host, typed(b, "b")._host))


@function
def shares_memory(a: Any, b: Any, max_work: Any = None) -> bool:
    if typed(a, "a").size and typed(b, "b").size and a is not b:
        recorder.wait("shares_memory()")
    return bool(np.shares_memory(a._host, b._host))


# ---- products -----------------------------------------------------------------------------------------------------


@function
def matmul(
    *args: Any,
    axes: Any = None,
    axis: Any = None,
    keepdims: bool = False,
    casting: Any = "same_kind",
    dtype: Any = None,
    signature: Any = None,
    order: Any = "K",
    out: Any = None,
) -> ndarray:
    if keepdims or not axes is axis is signature is None:
        raise Unmodelled("cupy.matmul(axes=, axis=, keepdims=, signature=)")
    if len(args) != 2:
        raise TypeError(f"matmul() takes 2 operands, {len(args)} were given; write out=")
    a, b = typed(args[0], "a"), typed(args[1], "b")
    if not a.ndim or not b.ndim:
        raise ValueError("Scalar operands are not allowed, use '*' instead")
    if a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ValueError("Axis dimension mismatch")
    host = product(np.matmul, a, b)
    if dtype is not None:
        host = host.astype(dtype_of(dtype))
    if out is not None and host.shape != typed(out, "out").shape:
        raise ValueError("Output array has an invalid size")
    result = output(out, host.shape, host.dtype, casting)
    result._host[...] = host
    return result


def _scalars(a: Any, b: Any) -> bool:
    return a.ndim == 0 or b.ndim == 0  # AttributeError for what has no dimensions: a list, a number


@function
def tensordot(a: Any, b: Any, axes: Any = 2) -> ndarray:
    if _scalars(a, b):
        return library["multiply"](a, b)
    return owner(product(lambda x, y: np.tensordot(x, y, axes), typed(a, "a"), typed(b, "b")))


@function
def inner(a: Any, b: Any) -> ndarray:
    if _scalars(a, b):
        return library["multiply"](a, b)
    if a.shape[-1] != b.shape[-1]:
        raise ValueError("Axis dimension mismatch")
    return owner(product(np.inner, typed(a, "a"), typed(b, "b")))


@function
def vdot(a: Any, b: Any) -> ndarray:
    if a.size != b.size:
        raise ValueError("Axis dimension mismatch")
    return owner(product(np.vdot, typed(a, "a"), typed(b, "b")))


@function
def kron(a: Any, b: Any) -> ndarray:
    if _scalars(a, b):
        return library["multiply"](a, b)
    return owner(product(np.kron, typed(a, "a"), typed(b, "b")))


@function
def einsum(*operands: Any, **kwargs: Any) -> ndarray:
    unknown = sorted({*kwargs} - {"optimize", "dtype", "casting"})
    if unknown:
        raise TypeError(f"Did not understand the following kwargs: {unknown}")
    places = range(1, len(operands)) if isinstance(operands[0], str) else range(0, len(operands) - 1, 2)
    arrays = {i: convert(operands[i], copy=None, what="operand of einsum()") for i in places}
    with np.errstate(all="ignore"):
        host = np.einsum(*(arrays[i]._host if i in arrays else a for i, a in enumerate(operands)), **kwargs)
    return wrap(host, [*arrays.values()])


def _norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> ndarray:
    if not hasattr(x, "dtype"):
        raise AttributeError(f"{type(x).__name__!r} object has no attribute 'dtype'")
    return owner(np.linalg.norm(x._host if isinstance(x, ndarray) else x, ord, axis, keepdims))


def _matrix_power(M: Any, n: int) -> ndarray:
    return owner(np.linalg.matrix_power(typed(M, "M")._host, n))


# ---- reductions and the like --------------------------------------------------------------------------------------


def _accumulated(compute: Any, a: Any, axis: Any, dtype: Any, out: Any) -> ndarray:
    if out is not None:
        raise Unmodelled("cumsum and cumprod with out=")
    return owner(compute(typed(a, "a")._host, axis, dtype))


@function
def average(a: Any, axis: Any = None, weights: Any = None, returned: bool = False, *, keepdims: bool = False) -> Any:
    if weights is not None or returned:
        raise Unmodelled("cupy.average(weights=, returned=)")
    return convert(a, copy=None, what="average()").mean(axis, keepdims=keepdims)


@function
def histogram(x: Any, bins: Any = 10, range: Any = None, density: bool = False, weights: Any = None) -> Any:
    if weights is not None:
        raise Unmodelled("cupy.histogram(weights=)")
    if not isinstance(x, ndarray):
        raise ValueError("x must be a cupy.ndarray")
    if isinstance(bins, ndarray):
        recorder.wait("histogram(): are the edges sorted?")
        bins = bins._host
    elif np.ndim(bins):
        bins = convert(bins, what="bins")._host
    elif range is None:
        recorder.wait("histogram(): the least and the greatest", 4)
    return wrap(np.histogram(x._host, bins, range, density), [])


@function
def round_(a: Any, decimals: int = 0, out: Any = None) -> Any:
    warnings.warn("Please use `round` instead.", DeprecationWarning, stacklevel=2)
    return library["around"](a, decimals, out)


def _sorted(a: Any, axis: Any, kind: Any) -> Any:
    result = a.flatten() if axis is None else a.copy()
    result.sort(axis=-1 if axis is None else axis, kind=kind)
    return result


def _dtype_or_self(a: Any) -> Any:
    return a.dtype if isinstance(a, ndarray) else a


# Those that call a method of their first argument, whatever it is; those of one line; those of the host.
library.update(
    all=lambda a, axis=None, out=None, keepdims=False: _checked(a).all(axis=axis, out=out, keepdims=keepdims),
    any=lambda a, axis=None, out=None, keepdims=False: _checked(a).any(axis=axis, out=out, keepdims=keepdims),
    sum=lambda a, axis=None, dtype=None, out=None, keepdims=False: a.sum(axis, dtype, out, keepdims),
    prod=lambda a, axis=None, dtype=None, out=None, keepdims=False: a.prod(axis, dtype, out, keepdims),
    max=lambda a, axis=None, out=None, keepdims=False: a.max(axis=axis, out=out, keepdims=keepdims),
    min=lambda a, axis=None, out=None, keepdims=False: a.min(axis=axis, out=out, keepdims=keepdims),
    ptp=lambda a, axis=None, out=None, keepdims=False: a.ptp(axis=axis, out=out, keepdims=keepdims),
    mean=lambda a, axis=None, dtype=None, out=None, keepdims=False: (
        a.mean(axis=axis, dtype=dtype, out=out, keepdims=keepdims)
    ),
    var=lambda a, axis=None, dtype=None, out=None, ddof=0, keepdims=False: (
        a.var(axis=axis, dtype=dtype, out=out, ddof=ddof, keepdims=keepdims)
    ),
    std=lambda a, axis=None, dtype=None, out=None, ddof=0, keepdims=False: (
        a.std(axis=axis, dtype=dtype, out=out, ddof=ddof, keepdims=keepdims)
    ),
    argmax=lambda a, axis=None, dtype=None, out=None, keepdims=False: (
        a.argmax(axis=axis, dtype=dtype, out=out, keepdims=keepdims)
    ),
    argmin=lambda a, axis=None, dtype=None, out=None, keepdims=False: (
        a.argmin(axis=axis, dtype=dtype, out=out, keepdims=keepdims)
    ),
    cumsum=lambda a, axis=None, dtype=None, out=None: _accumulated(np.cumsum, a, axis, dtype, out),
    cumprod=lambda a, axis=None, dtype=None, out=None: _accumulated(np.cumprod, a, axis, dtype, out),
    trace=lambda a, offset=0, axis1=0, axis2=1, dtype=None, out=None: a.trace(offset, axis1, axis2, dtype, out),
    clip=lambda a, a_min, a_max, out=None: a.clip(a_min, a_max, out=out),
    around=lambda a, decimals=0, out=None: convert(a, copy=None).round(decimals, out=out),
    dot=lambda a, b, out=None: a.dot(b, out),
    outer=lambda a, b, out=None: library["multiply"](a.ravel()[:, None], b.ravel()[None, :], out=out),
    take=lambda a, indices, axis=None, out=None: a.take(indices, axis, out),
    put=lambda a, ind, v, mode="wrap": a.put(ind, v, mode=mode),
    repeat=lambda a, repeats, axis=None: a.repeat(repeats, axis),
    diagonal=lambda a, offset=0, axis1=0, axis2=1: a.diagonal(offset, axis1, axis2),
    nonzero=lambda a: _checked(a).nonzero(),
    flatnonzero=lambda a: _checked(a).ravel().nonzero()[0],
    sort=lambda a, axis=-1, kind=None: _sorted(a, axis, kind),
    argsort=lambda a, axis=-1, kind=None: a.argsort(axis=axis, kind=kind),
    argpartition=lambda a, kth, axis=-1: a.argpartition(kth, axis=axis),
    copy=lambda a, order="K": a.copy(order=order),
    reshape=lambda a, newshape, order="C", *, copy=None: a.reshape(newshape, order=order, copy=copy),
    ravel=lambda a, order="C": a.ravel(order),
    transpose=lambda a, axes=None: a.transpose(axes),
    permute_dims=lambda a, axes=None: a.transpose(axes),
    matrix_transpose=lambda x, /: x.swapaxes(-1, -2),
    swapaxes=lambda a, axis1, axis2: a.swapaxes(axis1, axis2),
    squeeze=lambda a, axis=None: a.squeeze(axis),
    real=lambda val: (val if isinstance(val, ndarray) else convert(val)).real,
    imag=lambda val: (val if isinstance(val, ndarray) else convert(val)).imag,
    atleast_1d=lambda *arys: _at_least(1, arys),
    atleast_2d=lambda *arys: _at_least(2, arys),
    atleast_3d=lambda *arys: _at_least(3, arys),
    dstack=lambda tup: concatenate([_at_least(3, [a]) for a in tup], 2),
    column_stack=lambda tup: concatenate([_column(a) for a in tup], 1),
    append=lambda arr, values, axis=None: concatenate(
        [convert(arr, copy=None, what="append()"), convert(values, copy=None, what="append()")], axis
    ),
    allclose=lambda a, b, rtol=1e-05, atol=1e-08, equal_nan=False: isclose(a, b, rtol, atol, equal_nan).all(),
    tril=lambda m, k=0: owner(np.tril(convert(m, copy=None, what="tril()")._host, k)),
    triu=lambda m, k=0: owner(np.triu(convert(m, copy=None, what="triu()")._host, k)),
    empty=lambda shape, dtype=float, order="C": ndarray(shape, dtype, order=order),
    zeros=lambda shape, dtype=float, order="C": _filled(ndarray(shape, dtype, order=order), 0),
    ones=lambda shape, dtype=float, order="C": _filled(ndarray(shape, dtype, order=order), 1),
    zeros_like=lambda a, dtype=None, order="K", subok=None, shape=None: (
        _filled(empty_like(a, dtype, order, subok, shape), 0)
    ),
    ones_like=lambda a, dtype=None, order="K", subok=None, shape=None: (
        _filled(empty_like(a, dtype, order, subok, shape), 1)
    ),
    identity=lambda n, dtype=float: owner(np.identity(n, dtype_of(dtype))),
    ascontiguousarray=lambda a, dtype=None: _contiguous(a, dtype, "C"),
    asfortranarray=lambda a, dtype=None: _contiguous(a, dtype, "F"),
    asanyarray=lambda a, dtype=None, order=None, *, copy=None, blocking=False: (
        asarray(a, dtype, order, copy=copy, blocking=blocking)
    ),
    get_array_module=lambda *args: library["module"] if any(isinstance(a, ndarray) for a in args) else np,
    array_repr=lambda arr, max_line_width=None, precision=None, suppress_small=None: (
        np.array_repr(asnumpy(arr), max_line_width, precision, suppress_small)
    ),
    array_str=lambda arr, max_line_width=None, precision=None, suppress_small=None: (
        np.array_str(asnumpy(arr), max_line_width, precision, suppress_small)
    ),
    shape=lambda a: a.shape if isinstance(a, ndarray) else np.shape(a),
    ndim=lambda a: a.ndim if hasattr(a, "ndim") else np.ndim(a),
    size=lambda a, axis=None: np.size(typed(a, "a")._host, axis),
    byte_bounds=lambda a: np.lib.array_utils.byte_bounds(typed(a, "a")._host),
    can_cast=lambda from_, to, casting="safe": np.can_cast(_dtype_or_self(from_), to, casting),
    min_scalar_type=lambda a: a.dtype if isinstance(a, ndarray) else np.min_scalar_type(a),
    result_type=lambda *arrays_and_dtypes: np.result_type(*map(_dtype_or_self, arrays_and_dtypes)),
    common_type=lambda *arrays: np.common_type(*(a._host for a in arrays)),
    iscomplexobj=lambda x: np.iscomplexobj(x._host if isinstance(x, ndarray) else x),
    isrealobj=lambda x: np.isrealobj(x._host if isinstance(x, ndarray) else x),
    isscalar=lambda element: np.isscalar(element),
    is_available=lambda: True,
    get_default_memory_pool=lambda: pool,
    get_default_pinned_memory_pool=lambda: types.SimpleNamespace(free_all_blocks=lambda: None, n_free_blocks=lambda: 0),
)


@function
def astype(x: Any, dtype: Any, /, *, copy: bool = True) -> ndarray:
    if not isinstance(x, ndarray):
        raise TypeError(f"Input should be a CuPy array. It is a {type(x)} instead.")
    return x.astype(dtype, copy=copy)


library.update(amax=library["max"], amin=library["min"], round=library["around"], concat=concatenate)
for _name, _value in [*library.items()]:
    if getattr(_value, "__name__", "") == "<lambda>":
        _value.__name__ = _value.__qualname__ = _name


# ---- those that NumPy computes as CuPy does -----------------------------------------------------------------------

# By the number of times that the host waits, for a size or to check something.
_BY_NUMPY = {
    0: """
        angle count_nonzero cross diag_indices diagflat diff dsplit ediff1d eye fill_diagonal flip fliplr flipud hsplit
        indices isin isneginf isposinf linspace logspace median meshgrid moveaxis nan_to_num nanmean nanprod nanstd
        nansum nanvar pad percentile quantile roll rollaxis rot90 searchsorted tile trapezoid tri unwrap vander vsplit
    """,
    1: "argwhere compress extract nanmax nanmin unique",
    2: "bincount tril_indices triu_indices unravel_index",
}
_OF_NUMBERS = "diag_indices eye indices linspace logspace tri tril_indices triu_indices"  # these take no arrays
_OF_THE_HOST = "broadcast_shapes promote_types isdtype issubdtype iterable"


def _by_numpy(name: str, signature: str, waits: int) -> Callable[..., Any]:
    check, compute = stub(name, signature), getattr(np, name)

    @functools.wraps(check)
    def call(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        if name not in _OF_NUMBERS.split() and not isinstance(args[0], (ndarray, np.ndarray, list, tuple)):
            raise AttributeError(f"{type(args[0]).__name__!r} object has no attribute 'ndim'")
        sources: list[ndarray] = []
        hosts = [_lowered(arg, sources) for arg in args]
        options = {key: _lowered(value, sources) for key, value in kwargs.items()}
        if kwargs.get("retstep") or kwargs.get("return_counts"):
            raise Unmodelled("cupy.linspace(retstep=True) and cupy.unique(return_counts=True)")
        recorder.wait(f"{name}()", waits)
        with np.errstate(all="ignore"):
            result = compute(*hosts, **options)
        if result is None or kwargs.get("out") is not None:
            return kwargs.get("out")
        return wrap(result, sources)

    return call


def _lowered(value: Any, sources: list[ndarray]) -> Any:
    """An argument as NumPy is to have it; TypeError for host arrays and for foreign objects."""
    array = device_array(value)
    if array is not None:
        sources.append(array)
        return array._host
    if isinstance(value, (list, tuple)):
        return type(value)(_lowered(part, sources) for part in value)
    if value is None or isinstance(value, (int, float, complex, str, np.generic, np.dtype, type)):
        return value
    raise TypeError(f"Unsupported type {type(value)}")


_waits = {name: n for n, names in _BY_NUMPY.items() for name in names.split()}
for _name, _signature in API["functions"].items():
    if _name in _waits:
        library[_name] = _by_numpy(_name, _signature, _waits[_name])
    elif _name in _OF_THE_HOST.split():
        library[_name] = getattr(np, _name)
    elif _name not in library:
        library[_name] = unmodelled(_name, _signature)

linalg = {"norm": _norm, "matrix_power": _matrix_power, "matmul": matmul, "LinAlgError": np.linalg.LinAlgError}
