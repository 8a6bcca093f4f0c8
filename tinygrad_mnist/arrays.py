"""Array libraries behind one door: which library an array belongs to, and where the libraries differ.

A rule or a kernel never imports NumPy; it receives `xp`, a `Namespace`. Everything that one library does otherwise than
another, or does better in another way, lives here, so that the rest of the code is written once.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

Array = Any  # an array of one of the supported libraries
Dtype = np.dtype[Any]


class Namespace:
    """The functions of one array library as rules see them (`xp`): its own, and what it lacks or does slowly.

    `Namespace(module, extras)`: `xp.name` is `extras[name]`, else the library's own function, else a kernel written
    in terms of `xp` that a primitive brought. Looked up once a name.
    """

    kernels: ClassVar[dict[str, Callable[..., Array]]] = {}  # of primitives: softmax(xp, a, axis), relu(xp, a), ...

    def __init__(self, module: Any, extras: dict[str, Callable[..., Array]]) -> None:
        self._module = module
        self._extras = extras

    def __getattr__(self, name: str) -> Any:
        kernel = None if hasattr(self._module, name) else Namespace.kernels.get(name)
        value = self.bind(name, kernel)
        if kernel is None:
            self.__dict__[name] = value  # a primitive may be defined again, a library's function stays
        return value

    def bind(self, name: str, kernel: Callable[..., Array] | None) -> Callable[..., Array]:
        """The function `name` of these arrays: `kernel(xp, *arrays, **params)` where there is no better one."""
        function = self._extras.get(name)
        if function is not None:
            return function
        if kernel is None:
            return getattr(self._module, name)
        return lambda *arrays, **params: kernel(self, *arrays, **params)


# ---- NumPy: the same values as the library's own function, by a shorter way

_add: Any = np.add.reduce  # by position: the stubs know these only by keyword, which costs time
_maximum: Any = np.maximum.reduce
_minimum: Any = np.minimum.reduce


def _sum(a: Array, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Array:
    return _add(a, axis, dtype, None, keepdims)  # np.sum costs 1 us more to get here


def _max(a: Array, axis: Any = None, keepdims: bool = False) -> Array:
    if a.ndim == 2 and axis in (1, -1) and 1 < a.shape[1] < 32 < a.shape[0]:  # short rows: along columns it is SIMD
        top = _maximum(a.T.copy(), 0)
        return top[:, None] if keepdims else top
    return _maximum(a, axis, None, None, keepdims)


def _min(a: Array, axis: Any = None, keepdims: bool = False) -> Array:
    return _minimum(a, axis, None, None, keepdims)


def _mean(a: Array, axis: Any = None, keepdims: bool = False) -> Array:
    if a.dtype.kind != "f" or a.dtype.itemsize < 4 or not a.size:
        return np.mean(a, axis=axis, keepdims=keepdims)  # accumulates float16 in float32, warns on the empty mean
    total = _add(a, axis, None, None, keepdims)
    return total / (a.size // total.size)


def _astype(a: Array, *, dtype: Any) -> Array:
    return a.astype(dtype)


_BITS: dict[str, Any] = {"e": np.dtype(np.int16), "f": np.dtype(np.int32), "d": np.dtype(np.int64)}


def _where(condition: Array, a: Any, b: Any) -> Array:
    if type(b) is int and not b and type(a) is type(condition) is np.ndarray and a.shape == condition.shape:
        bits = _BITS.get(a.dtype.char)
        if bits is not None and condition.dtype.char == "?" and a.flags.c_contiguous:
            # the bits times 0 or 1: a third of the time, and as exact for NaN and infinity
            return (a.view(bits) * condition).view(a.dtype)
    return np.where(condition, a, b)


def _relu(a: Array) -> Array:
    a = np.asarray(a)  # a Python number has no shape
    # NumPy's loop for two arrays takes a third of that for an array and a scalar; zeros of one row spare memory
    return np.maximum(a, np.zeros(a.shape if a.size < 65536 else a.shape[-1:], a.dtype))


def _matmul(a: Array, b: Array) -> Array:
    if type(a) is type(b) is np.ndarray and a.ndim == b.ndim == 2 and a.shape[1] == 1 == b.shape[0]:
        return np.multiply(a, b)  # an outer product: BLAS takes about four times as long with inner dimension 1
    return np.matmul(a, b)


def _broadcast_to(a: Array, shape: tuple[int, ...]) -> Array:
    if a.size == 1 and a.ndim <= len(shape):  # by far the commonest: the gradient of a full sum; np needs 4 us
        view: Array = np.ndarray(shape, a.dtype, np.asarray(a), strides=(0,) * len(shape))
        view.flags.writeable = False
        return view
    return np.broadcast_to(a, shape)


def _reshape(a: Array, shape: Any) -> Array:
    return a.reshape(shape)


def _transpose(a: Array, axes: Any) -> Array:
    return a.transpose(axes)


def _swapaxes(a: Array, axis1: int, axis2: int) -> Array:
    return a.swapaxes(axis1, axis2)


def _expand_dims(a: Array, axis: int) -> Array:
    return a[..., None] if axis in (-1, a.ndim) else np.expand_dims(a, axis)


def _scatter_add(g: Array, *, index: Any, shape: tuple[int, ...]) -> Array:
    out = np.zeros(shape, g.dtype)
    index = tuple(np.asarray(i) if hasattr(i, "__array__") else i for i in _as_tuple(index))  # Tensors of integers too
    if any(not isinstance(i, _BASIC) and np.asarray(i).dtype != bool for i in index):
        np.add.at(out, index, g)  # integer arrays may name an element twice
    else:
        out[index] = g
    return out


_BASIC = (int, slice, type(None), type(Ellipsis))  # indices that name no element twice


def _as_tuple(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


NUMPY = Namespace(
    np,
    {
        "sum": _sum,
        "max": _max,
        "min": _min,
        "mean": _mean,
        "astype": _astype,
        "where": _where,
        "relu": _relu,
        "matmul": _matmul,
        "broadcast_to": _broadcast_to,
        "reshape": _reshape,
        "transpose": _transpose,
        "swapaxes": _swapaxes,
        "expand_dims": _expand_dims,
        "scatter_add": _scatter_add,
    },
)
_spaces: dict[type, Namespace] = dict.fromkeys((np.ndarray, np.float16, np.float32, np.float64), NUMPY)
# the classes that enter a kernel as they are
PLAIN = frozenset({int, float, bool, np.ndarray} | {t for t in np.sctypeDict.values() if np.dtype(t).kind in "fiub"})
AxisError = np.exceptions.AxisError


def namespace(cls: type) -> Namespace:
    """The namespace of an array class (or of the scalars that its reductions give)."""
    try:
        return _spaces[cls]
    except KeyError:
        raise TypeError(f"{cls.__module__}.{cls.__qualname__} is not an array type that Tensors can hold") from None


def class_of(values: Iterable[Any]) -> type:
    """The array class that computes where no Tensor says so."""
    return np.ndarray


def box(value: Any, cls: type) -> Array:
    """An array of class `cls` from what a kernel returned: NumPy's full reductions give scalars, not 0-d arrays."""
    return np.asarray(value) if cls is np.ndarray else value


def operand(value: Any) -> Any:
    """What may enter a kernel beside a Tensor and `PLAIN`: lists and NumPy's matrices become arrays."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError("a masked array would lose its mask: use where(mask, a, b)")
    if isinstance(value, (np.ndarray, list, tuple)):
        return np.asarray(value)
    if value is None or isinstance(value, (str, bytes, dict, set)):
        raise TypeError(f"expected a Tensor, an array or a number, got {type(value).__name__}: {value!r:.40}")
    return value


def asarray(data: Any, dtype: Any = None, device: str | None = None) -> Array:
    """The array of a new Tensor: arrays keep their dtype and memory, Python floats become float32, integers int64."""
    if device not in (None, "cpu"):
        raise ValueError(f"device {device!r} is not available: this version computes on 'cpu'")
    if isinstance(data, (np.ndarray, np.generic)):
        array = np.asarray(data, dtype=dtype)
    else:
        try:
            array = np.asarray(data)
        except ValueError as error:
            raise ValueError(f"Tensor: cannot make an array of {type(data).__name__}: {error}") from None
        if dtype is None and array.dtype == np.float64:
            dtype = np.float32
        array = array if dtype is None else array.astype(dtype)
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise TypeError(f"Tensor: dtype {array.dtype} is not supported; use floats, integers or booleans")
    return array


def to_host(a: Array) -> np.ndarray[Any, Any]:
    """A copy in host memory."""
    return np.array(a)


def from_host(values: np.ndarray[Any, Any], like: Array) -> Array:
    """Host values as an array of the dtype, and on the device, of another."""
    return np.asarray(values, dtype=like.dtype)


def ones_like(a: Array) -> Array:
    """Ones of the shape, the dtype and the device of an array."""
    ones = np.empty_like(a)  # np.ones_like takes 2 us
    ones.fill(1)
    return ones


def generator(rng: Any) -> np.random.Generator:
    """The NumPy generator of a seed, or the generator itself. All random numbers are drawn on the host."""
    return np.random.default_rng(rng)


def joined(parts: Sequence[Array]) -> Array:
    """One flat array of all the elements, which have one dtype."""
    return namespace(type(parts[0])).concatenate([a.reshape(-1) for a in parts], dtype=parts[0].dtype)


def result_type(*dtypes: Any) -> Dtype:
    """The dtype that all of them promote to."""
    return np.result_type(*dtypes)


def device_of(a: Array) -> str:
    """`"cpu"` for NumPy arrays."""
    return "cpu"


def is_array(value: Any) -> bool:
    """True for an array; False for numbers, scalars, nodes and the like."""
    return isinstance(value, np.ndarray)


def owns_memory(a: Array) -> bool:
    """True where nobody else can be looking at this array's memory through a base array."""
    return a.base is None


def extent(a: Array) -> tuple[int, int]:
    """First and one-past-last byte address that the array can touch."""
    if a.flags.c_contiguous:  # the general way takes 2 us more, at every parameter of every step
        start: int = a.__array_interface__["data"][0]
        return start, start + a.nbytes
    return np.lib.array_utils.byte_bounds(a)


def owner(a: Array) -> Array:
    """The array at the bottom of a chain of views."""
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a


def joint_view(parts: Sequence[Array]) -> Array | None:
    """One flat view of arrays that lie one after the other in one flat buffer of their dtype; None where they do not.
    A single array need only be contiguous."""
    if len(parts) == 1:
        return parts[0].reshape(-1) if parts[0].flags.c_contiguous else None
    buffer = owner(parts[0])
    if buffer.ndim != 1 or not buffer.flags.c_contiguous:
        return None
    first = extent(buffer)[0]
    start = end = extent(parts[0])[0]
    for a in parts:
        if owner(a) is not buffer or a.dtype != buffer.dtype or not a.flags.c_contiguous or extent(a)[0] != end:
            return None
        end = extent(a)[1]
    if (start - first) % buffer.itemsize:
        return None  # through a view of another dtype: no slice of the buffer lies there
    return buffer[(start - first) // buffer.itemsize : (end - first) // buffer.itemsize]


def flush_subnormal(a: Array) -> None:
    """Set to zero, in place, what has decayed below the normal numbers: many processors take a hundred times as long
    for such operands."""
    a[np.abs(a) < np.finfo(a.dtype).tiny] = 0


def checksum(a: Array) -> bytes:
    """A digest of the values, to notice a raw write."""
    return hashlib.blake2b(np.ascontiguousarray(a).data, digest_size=16).digest()


def all_finite(a: Array) -> bool:
    """True where no element is NaN or infinite (always, for integers)."""
    return bool(np.isfinite(a).all()) if a.dtype.kind == "f" else True


@functools.lru_cache(maxsize=16)
def _places(classes: int, dtype: Dtype | None) -> Array:
    places = np.arange(classes, dtype=dtype)
    places.flags.writeable = False
    return places


def one_hot(labels: Array, classes: int, axis: int) -> Array:
    """Booleans with a new axis of size `classes` at `axis`, true at the label's place; checks the labels' range."""
    # unsigned labels need only one of the two comparisons
    if labels.size and ((labels.dtype.kind == "i" and labels.min() < 0) or np.maximum.reduce(labels, None) >= classes):
        row = np.argwhere((labels < 0) | (labels >= classes))[0]
        where = f" in row {', '.join(map(str, row))}" if labels.ndim else ""  # a single label is in no row
        raise IndexError(
            f"label {labels[tuple(row)]}{where} is out of range: there are {classes} classes, 0 to {classes - 1}"
        )
    places = _places(classes, labels.dtype if classes <= 128 else None)  # one dtype: nothing to convert
    if axis == labels.ndim:
        return labels[..., None] == places
    return np.expand_dims(labels, axis) == places.reshape((-1,) + (1,) * (labels.ndim - axis))
