"""The device array: a NumPy array that only the double looks at, behind CuPy's methods and rules."""

from __future__ import annotations

import builtins
import functools
import itertools
import json
import math
import operator
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy

from ..cupy_api import SNAPSHOT
from .device import Device, Host, Memory, MemoryPointer, Unmodelled
from .record import note_dispatch, recorder

np: Any = numpy  # called with whatever is passed on from outside, which its stubs cannot know
Dtype = numpy.dtype[Any]

API: dict[str, Any] = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
NUMBERS = "?bBhHiIlLqQefdFD"  # CuPy's dtypes, by NumPy's letters
library: dict[str, Any] = {}  # what `xp` has; the other modules fill it
UNMODELLED: set[str] = set()  # what of that raises when it is called


# ---- operands: what may stand beside a device array ---------------------------------------------------------------


class Scalar(NamedTuple):
    """A number among device arrays."""

    value: Any
    dtype: Dtype
    weak: Any  # the Python type, if its dtype gives way to that of arrays
    shape: tuple[int, ...] = ()


def dtype_of(spec: Any) -> Dtype:
    """The dtype, if CuPy has it; else ValueError."""
    dtype: Dtype = np.dtype(spec)
    if dtype.char not in NUMBERS or not dtype.isnative:
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


def device_array(value: Any) -> ndarray | None:
    """The value as a device array, if it is one or holds one."""
    if isinstance(value, ndarray):
        return value
    return value.__cupy_get_ndarray__() if hasattr(value, "__cupy_get_ndarray__") else None


def operand(value: Any) -> ndarray | Scalar:
    """TypeError for host arrays (0-d ones too), lists, and all else."""
    array = device_array(value)
    if array is not None:
        return array
    kind = type(value)  # not isinstance: as in CuPy, a subclass of float is no float
    if kind is bool:
        return Scalar(value, np.dtype(bool), None)
    if kind in (float, complex):
        return Scalar(value, np.dtype(kind), kind)
    if kind is int:
        return Scalar(value, np.array(value, np.uint64 if value >= 2**63 else np.int64).dtype, int)
    if isinstance(value, np.generic):
        return Scalar(value, value.dtype, None)
    raise TypeError(f"Unsupported type {kind}")


def typed(value: Any, name: str) -> ndarray:
    """The value, which must be a device array; else the error of an argument that is declared with this type."""
    if not isinstance(value, ndarray):
        raise TypeError(f"Argument {name!r} has incorrect type (expected cupy.ndarray, got {type(value).__name__})")
    return value


def broadcast(operands: Sequence[Any]) -> tuple[int, ...]:
    """The shape of all of them together."""
    shapes = [a.shape for a in operands]
    longest: tuple[int, ...] = max(shapes, key=len)
    if all(shape in ((), longest) for shape in shapes):
        return longest  # the usual case, without NumPy's 10 us
    try:
        return tuple(np.broadcast_shapes(*shapes))
    except ValueError:
        text = " ".join(map(str, shapes))
        raise ValueError(f"operands could not be broadcast together with shapes {text}") from None


def check_race(name: str, host: Host, out: Host, elementwise: bool) -> None:
    """The threads of a kernel run in any order, so it must not read what it writes, unless each element its own."""
    same = host.strides == out.strides and _address(host) == _address(out)
    if not (elementwise and same) and np.shares_memory(host, out):
        raise ValueError(f"{name} overlaps what is written: on a GPU the result would depend on the order of threads")


def _address(host: Host) -> int:
    address: int = host.__array_interface__["data"][0]
    return address


# ---- device arrays of NumPy arrays --------------------------------------------------------------------------------


def owner(host: Any, cls: type[ndarray] | None = None) -> ndarray:
    """A device array whose memory is this NumPy array, which nobody else holds."""
    host = np.asarray(host)
    dtype_of(host.dtype)
    return _make(cls or ndarray, host, Memory(host), None)


def view(host: Host, of: ndarray, cls: type[ndarray] | None = None) -> ndarray:
    """A device array that looks at the memory of another."""
    return _make(cls or type(of), host, of._memory, of if of._base is None else of._base)


def _make(cls: type[ndarray], host: Host, memory: Memory, base: ndarray | None) -> ndarray:
    array: ndarray = object.__new__(cls)
    array._host, array._memory, array._base = host, memory, base
    if cls is not ndarray:
        array.__array_finalize__(base)
    return array


def wrap(result: Any, sources: Sequence[ndarray]) -> Any:
    """What NumPy returned, on the device: a view of the source in whose memory it lies, else an array of its own."""
    if isinstance(result, (list, tuple)):
        return type(result)(wrap(part, sources) for part in result)
    host = np.asarray(result)
    root = _root(host)
    for source in sources:
        if _root(source._host) is root:
            return view(host, source)
    return owner(host)


def _root(host: Host) -> Host:
    while isinstance(host.base, np.ndarray):
        host = host.base
    return host


def garbage(shape: Any, dtype: Dtype, order: Any = "C") -> Host:
    """Memory that was never written, so that nobody relies on it: NaN, or 77."""
    host: Host = np.empty(shape, dtype, order)
    host.fill(np.nan if dtype.kind in "fc" else 77)
    return host


def upload(host: Host, what: str, order: Any = "K") -> ndarray:
    """A copy of a host array on the device. A single number is an argument of a kernel: that is no transfer."""
    dtype = dtype_of(host.dtype.newbyteorder("="))
    if host.ndim and host.size:
        recorder.add("h2d", what, host.nbytes)
    return owner(np.array(host, dtype, order=order))


def convert(
    obj: Any,
    dtype: Any = None,
    copy: bool | None = True,
    order: Any = "K",
    ndmin: int = 0,
    blocking: bool = False,
    what: str = "array()",
) -> ndarray:
    """A device array of anything that CuPy makes one of: numbers, host arrays, lists, lists of device arrays."""
    array = device_array(obj)
    parts = None if array is not None else _parts(obj)
    if array is not None:
        result = array._astype(array.dtype if dtype is None else dtype, order, copy)
    elif parts is not None:
        note_tables([part.reshape(1) if not part.ndim else part for part in parts], 0, None)
        host = np.stack([part._host for part in parts]).reshape(_shape_of_list(obj))
        result = owner(host.astype(host.dtype if dtype is None else dtype_of(dtype), copy=False))
    else:
        result = upload(np.array(obj, dtype, copy=None, ndmin=ndmin), what, order)
        if blocking:
            recorder.add("sync", what)
    return result.reshape((1,) * (ndmin - result.ndim) + result.shape) if result.ndim < ndmin else result


def _parts(obj: Any) -> list[Any] | None:
    """The device arrays, all of one shape, in a list (of lists) of such; None for all else."""
    if not isinstance(obj, (list, tuple)) or not obj:
        return None
    parts = [[part] if isinstance(part, ndarray) else _parts(part) for part in obj]
    flat = [*itertools.chain.from_iterable(part or [None] for part in parts)]
    return flat if all(a is not None and a.shape == flat[0].shape for a in flat) else None


def _shape_of_list(obj: Any) -> tuple[int, ...]:
    return obj.shape if isinstance(obj, ndarray) else (len(obj), *_shape_of_list(obj[0]))


def note_tables(arrays: Sequence[ndarray], axis: int, dtype: Any) -> None:
    """More than 8 arrays that are not large are joined by one kernel, for which CuPy uploads their addresses."""
    n, dtypes = len(arrays), {a.dtype for a in arrays}
    if n > 8 and len(dtypes) == 1 and dtype in (None, *dtypes) and sum(a.nbytes for a in arrays) < n << 21:
        alike = all(a.flags.c_contiguous and a.shape[axis] == arrays[0].shape[axis] for a in arrays)
        for rows in (1,) if alike else (1, 1, arrays[0].ndim):  # and, where they differ, places and strides
            recorder.add("h2d", f"table of the {n} arrays to join", 8 * n * rows)


# ---- indices ------------------------------------------------------------------------------------------------------


def _select(a: ndarray, index: Any) -> tuple[tuple[Any, ...], Host, bool]:
    """The index as NumPy is to have it, what it selects there, and whether that is a copy: for arrays in the index.

    Lists and host arrays are uploaded; how many elements a boolean mask selects, the host must wait to learn.
    """
    key: list[Any] = []
    arrays = []
    for part in index if isinstance(index, tuple) else (index,):
        if part is None or part is Ellipsis:
            key.append(part)
        elif isinstance(part, slice):
            key.append(slice(*(None if k is None else _bound(k) for k in (part.start, part.stop, part.step))))
        elif np.isscalar(part) and not isinstance(part, (bool, np.bool_)):
            key.append(int(part))
        else:
            arrays.append(_index_array(part))
            key.append(arrays[-1]._host)
    if not any(part is Ellipsis for part in key):
        key.append(Ellipsis)  # so that NumPy gives an array, even of a single element
    selected = a._host[tuple(key)]
    for array in arrays:
        if array.dtype.kind == "b" and array.size:
            recorder.wait("index with a boolean mask")
    return tuple(key), selected, bool(arrays)


def _bound(k: Any) -> int:
    return operator.index(k) if hasattr(k, "__index__") else int(k)  # of a device array too, which waits


def _index_array(part: Any) -> ndarray:
    try:
        array = convert(part, copy=None, what="index")
    except ValueError:
        np.asarray(part)  # a list of lists of different lengths: the error says so
        raise IndexError(
            "only integers, slices (`:`), ellipsis (`...`), numpy.newaxis (`None`) and integer or boolean arrays are "
            "valid indices"
        ) from None
    if isinstance(part, (list, tuple)) and not array.size:
        return owner(np.empty(array.shape, np.int32))
    if array.dtype.kind not in "biu":
        raise IndexError(f"arrays used as indices must be of integer or boolean type. (actual: {array.dtype.type})")
    return array


_ATOMIC = {  # the dtypes for which a GPU has the operation of `ufunc.at`
    "add": "iIlLqQefd",
    "subtract": "iI",
    "maximum": "iIlLqQfd",
    "minimum": "iIlLqQfd",
    "bitwise_and": "iIlLqQ",
    "bitwise_or": "iIlLqQ",
    "bitwise_xor": "iIlLqQ",
}


def _fill_value(value: Any, dtype: Dtype) -> Host:
    host: Host = np.asarray(value, dtype)
    if host.shape:
        raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
    return host


def _copy(source: ndarray, target: Host) -> None:
    """The elements of a device array into device memory, stretched and cast."""
    host = _without_leading_ones(source._host)
    if broadcast([host, target]) != target.shape:
        raise ValueError("Out shape is mismatched")
    with np.errstate(all="ignore"):
        target[...] = host.astype(target.dtype, copy=False)


def _without_leading_ones(host: Host) -> Host:
    ones = next((i for i, n in enumerate(host.shape) if n != 1), host.ndim)
    return host.reshape(host.shape[ones:])


# ---- reductions ---------------------------------------------------------------------------------------------------


def axes_of(axis: Any, ndim: int) -> tuple[int, ...]:
    """Axes counted from the front. AxisError for one that is not there, ValueError for one that is named twice."""
    axes = [operator.index(k) for k in (axis if np.iterable(axis) else (axis,))]
    for k in axes:
        if not -ndim <= k < ndim:
            raise np.exceptions.AxisError(k, ndim)
    axes = [k % ndim for k in axes]
    if len({*axes}) < len(axes):
        raise ValueError("duplicate value in 'axis'")
    return tuple(axes)


def wide(dtype: Dtype) -> Dtype:
    """The dtype in which sums are accumulated: float32 for float16."""
    return np.dtype(np.float32) if dtype.char == "e" else dtype


def _float(dtype: Dtype) -> Dtype:
    return dtype if dtype.kind in "fc" else np.dtype(float)


def _mean(a: Host, axes: tuple[int, ...], keepdims: bool, dtype: Dtype) -> Any:
    dtype = wide(_float(dtype))
    count = math.prod(a.shape[k] for k in axes)
    return np.true_divide(np.add.reduce(a, axes, dtype, keepdims=keepdims), count, dtype=dtype)


def _var(a: Host, axes: tuple[int, ...], keepdims: bool, dtype: Dtype, ddof: int) -> Any:
    dtype = wide(_float(dtype))
    away = np.abs(a - _mean(a, axes, True, dtype))
    count = max(math.prod(a.shape[k] for k in axes) - ddof, 0) or np.nan
    return np.true_divide(np.add.reduce(away * away, axes, dtype, keepdims=keepdims), count, dtype=dtype)


def _place(find: Any, a: Host, axes: tuple[int, ...], keepdims: bool) -> Any:
    if len(axes) not in (1, a.ndim):
        raise Unmodelled("argmax and argmin over some axes of several")
    return find(a, axes[0] if len(axes) == 1 else None, keepdims=keepdims)


def product(function: Any, a: ndarray, b: ndarray) -> Host:
    """A matrix product, accumulated in `wide`."""
    dtype = np.promote_types(a.dtype, b.dtype)
    with np.errstate(all="ignore"):
        result: Host = np.asarray(function(*(x._host.astype(wide(dtype), copy=False) for x in (a, b))))
    return result.astype(dtype, copy=False)


# ---- operators ----------------------------------------------------------------------------------------------------


def _defers(x: ndarray, other: Any) -> bool:
    """Whether `x + other` is left to `other.__radd__`. If not, NumPy's ufunc asks both for their `__array_ufunc__`."""
    try:
        return other.__array_ufunc__ is None
    except AttributeError:
        return bool(x.__array_priority__ < getattr(other, "__array_priority__", 0))


def _operators(name: str) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """`x + y`, `y + x` where y does not know how, and `x += y`."""

    def forward(self: ndarray, other: Any) -> Any:
        if isinstance(other, ndarray):
            return library[name](self, other)
        return NotImplemented if _defers(self, other) else getattr(np, name)(self, other)

    def reflected(self: ndarray, other: Any) -> Any:
        return library[name](other, self)

    def in_place(self: ndarray, other: Any) -> Any:
        return library[name](self, other, self)

    return forward, reflected, in_place


_COMPARISONS = ("less", "less_equal", "equal", "not_equal", "greater", "greater_equal")


def _comparison(name: str) -> Callable[..., Any]:
    def compare(self: ndarray, other: Any) -> Any:
        if isinstance(other, ndarray):
            return library[name](self, other)
        if _defers(self, other):
            return NotImplemented
        if _by_identity(other, name):
            return owner(np.full(self.shape, name == "not_equal"))  # equal to itself alone: so to no element
        return getattr(np, name)(self, other.item() if isinstance(other, np.ndarray) and not other.ndim else other)

    return compare


def _by_identity(other: Any, name: str) -> bool:
    """Whether a comparison is one that `other` leaves to Python, which compares identities."""
    cls: Any = type(other)
    plain = other is None or (cls.__eq__ is object.__eq__ and (name == "equal" or cls.__ne__ is object.__ne__))
    return plain and name in ("equal", "not_equal")


# ---- the class ----------------------------------------------------------------------------------------------------


class Flags:
    """The memory layout of an array."""

    def __init__(self, array: ndarray) -> None:
        self.c_contiguous: bool = array._host.flags.c_contiguous
        self.f_contiguous: bool = array._host.flags.f_contiguous
        self.owndata = array._base is None
        self.fnc = self.f_contiguous and not self.c_contiguous
        self.forc = self.f_contiguous or self.c_contiguous

    def __getitem__(self, name: str) -> Any:
        if name in ("C_CONTIGUOUS", "F_CONTIGUOUS", "OWNDATA"):
            return getattr(self, name.lower())
        raise KeyError(f"{name} is not defined for cupy.ndarray.flags")


class ndarray:
    """A device array, with the attributes, methods and operators of CuPy's."""

    __slots__ = ("__weakref__", "_base", "_host", "_memory")
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    _base: ndarray | None
    _host: Host
    _memory: Memory

    def __new__(
        cls, shape: Any, dtype: Any = float, memptr: Any = None, strides: Any = None, order: str = "C"
    ) -> ndarray:
        if memptr is not None or strides is not None:
            raise Unmodelled("cupy.ndarray(memptr=, strides=): views are made by indexing and reshaping")
        if shape is None:
            raise TypeError("Use () not None as shape arguments")
        shape = tuple(map(operator.index, shape if np.iterable(shape) else (shape,)))
        if min(shape, default=0) < 0:
            raise ValueError("Negative dimensions are not allowed")
        return owner(garbage(shape, dtype_of(dtype), order), cls)

    def __array_finalize__(self, obj: Any) -> None:
        """For subclasses."""

    def __getattr__(self, name: str) -> Any:
        if name in API["methods"]:
            return unmodelled(f"ndarray.{name}", API["methods"][name])
        known = " in the strict double" if name in API["attributes"] else ""
        raise AttributeError(f"'cupy.ndarray' object has no attribute {name!r}{known}")

    # ---- attributes

    @property
    def shape(self) -> tuple[int, ...]:
        return self._host.shape

    @shape.setter
    def shape(self, shape: Any) -> None:
        host = self._host.reshape(shape)
        if host.size and not np.shares_memory(host, self._host):
            raise AttributeError("Incompatible shape for in-place modification. Use `.reshape()` to make a copy.")
        self._host = host

    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides if self._host.size else (0,) * self._host.ndim)
    base = property(lambda self: self._base)
    flags = property(Flags)
    device = property(lambda self: Device(0))
    data = property(lambda self: MemoryPointer(self._memory, _address(self._host)))
    T = property(lambda self: self.transpose() if self.ndim > 1 else self)

    @property
    def mT(self) -> ndarray:
        if self.ndim < 2:
            raise ValueError("matrix transpose with ndim < 2 is undefined")
        return self.swapaxes(-1, -2)

    @property
    def real(self) -> ndarray:
        return view(self._host.real, self) if self.dtype.kind == "c" else self

    @real.setter
    def real(self, value: Any) -> None:
        self.real[...] = value

    @property
    def imag(self) -> ndarray:
        return view(self._host.imag, self) if self.dtype.kind == "c" else owner(np.zeros(self.shape, self.dtype))

    @imag.setter
    def imag(self, value: Any) -> None:
        if self.dtype.kind != "c":
            raise TypeError("cupy.ndarray does not have imaginary part to set")
        self.imag[...] = value

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self._host.__array_interface__, "data": (_address(self._host), False), "stream": 1, "version": 3}

    # ---- to the host and back

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> Host:
        return self._download("get()", order, out, blocking)

    def _download(self, what: str, order: str = "C", out: Any = None, blocking: bool = True) -> Host:
        if out is not None:
            if not isinstance(out, np.ndarray):
                raise TypeError("Only numpy.ndarray can be obtained from cupy.ndarray")
            if out.dtype != self.dtype:
                raise TypeError(f"{out.dtype} array cannot be obtained from {self.dtype} array")
            if out.shape != self.shape:
                raise ValueError(f"Shape mismatch. Expected shape: {self.shape}, actual shape: {out.shape}")
            if not out.flags.forc:
                raise RuntimeError("`out` cannot be specified when copying to non-contiguous ndarray")
        if self.size or out is not None:
            recorder.add("d2h", what if blocking else "get(blocking=False)", self.nbytes, waits=blocking)
        if out is None:
            return np.array(self._host, order=order)
        out[...] = self._host
        return out

    def set(self, arr: Any, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not self._host.flags.forc:
            raise RuntimeError("Cannot set to non-contiguous array")
        recorder.add("h2d", "set()", self.nbytes)
        self._host[...] = arr

    def item(self) -> Any:
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self._download("item()").item()

    def tolist(self) -> Any:
        return self._download("tolist()").tolist()

    def tobytes(self, order: Any = "C") -> bytes:
        return self._download("tobytes()").tobytes(order)

    def __float__(self) -> float:
        return float(self._download("float()"))

    def __int__(self) -> int:
        return int(self._download("int()"))

    def __complex__(self) -> complex:
        return complex(self._download("complex()"))

    def __bytes__(self) -> bytes:
        return bytes(self._download("bytes()"))

    def __bool__(self) -> bool:
        if self.size > 1:
            raise ValueError(
                "The truth value of an array with more than one element is ambiguous. Use a.any() or a.all()"
            )
        if not self.size:
            warnings.warn("The truth value of an empty array is ambiguous", DeprecationWarning, stacklevel=2)
            return False
        return bool(self._download("bool() (if, while, and, or, not)"))

    def __repr__(self) -> str:
        return repr(self._download("repr()"))

    def __str__(self) -> str:
        return str(self._download("str()"))

    def __format__(self, spec: str) -> str:
        return format(self._download("format()"), spec)

    def __reduce__(self) -> Any:
        return _unpickled, (self._download("pickle", order="A"),)

    def __array__(self, dtype: Any = None) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array "
            "explicitly."
        )

    def __dlpack__(self, **kwargs: Any) -> Any:
        raise RuntimeError("Unsupported device in DLTensor.")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    # ---- NumPy's functions

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        note_dispatch(function.__name__)
        operands = inputs
        if "out" in kwargs:
            if len(kwargs["out"]) != 1:
                raise ValueError("The 'out' parameter must have exactly one array value")
            operands += kwargs["out"]
            kwargs["out"] = kwargs["out"][0]
        own = library.get(function.__name__)
        if method != "__call__":
            own = getattr(own, method, None)
        if own is None or not all(map(_takes_part, operands)):
            return NotImplemented
        if function.__name__ in _COMPARISONS:
            inputs = tuple(v.item() if isinstance(v, np.ndarray) and not v.ndim else v for v in inputs)
        return own(*inputs, **kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        note_dispatch(function.__name__)
        first, *rest = f"{function.__module__}.{function.__name__}".split(".")[1:]
        own = functools.reduce(lambda found, name: getattr(found, name, None), rest, library.get(first))
        if own in (None, function) or not all(issubclass(t, (ndarray, np.ndarray)) for t in types):
            return NotImplemented
        return own(*args, **kwargs)

    # ---- operators

    __add__, __radd__, __iadd__ = _operators("add")
    __sub__, __rsub__, __isub__ = _operators("subtract")
    __mul__, __rmul__, __imul__ = _operators("multiply")
    __truediv__, __rtruediv__, __itruediv__ = _operators("true_divide")
    __floordiv__, __rfloordiv__, __ifloordiv__ = _operators("floor_divide")
    __mod__, __rmod__, __imod__ = _operators("remainder")
    _power, __rpow__, __ipow__ = _operators("power")
    __lshift__, __rlshift__, __ilshift__ = _operators("left_shift")
    __rshift__, __rrshift__, __irshift__ = _operators("right_shift")
    __and__, __rand__, __iand__ = _operators("bitwise_and")
    __or__, __ror__, __ior__ = _operators("bitwise_or")
    __xor__, __rxor__, __ixor__ = _operators("bitwise_xor")
    __divmod__, __rdivmod__ = _operators("divmod")[:2]
    __matmul__, __rmatmul__ = _operators("matmul")[:2]

    __lt__ = _comparison("less")
    __le__ = _comparison("less_equal")
    __eq__ = _comparison("equal")
    __ne__ = _comparison("not_equal")
    __gt__ = _comparison("greater")
    __ge__ = _comparison("greater_equal")

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        short = {2: "square", 0.5: "sqrt", -1.0: "reciprocal"}.get(other) if type(other) in (int, float) else None
        if short is None or (type(other) is int and other != 2):
            return self._power(other)
        keeps = self.dtype.kind in ("ifc" if type(other) is int else "fc")
        return library[short](self, dtype=None if keeps else np.result_type(self.dtype, other))

    def __neg__(self) -> ndarray:
        return library["negative"](self)

    def __pos__(self) -> ndarray:
        if self.dtype.kind == "b":
            warnings.warn("Applying '+' to a non-numerical array is ill-defined", DeprecationWarning, stacklevel=2)
            return self.copy()
        return library["positive"](self)

    def __abs__(self) -> ndarray:
        return library["absolute"](self)

    def __invert__(self) -> ndarray:
        return library["invert"](self)

    # ---- elements

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of unsized object")
        return len(self._host)

    def __iter__(self) -> Iterator[ndarray]:
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> ndarray:
        _key, host, copied = _select(self, index)
        if not copied:
            return view(host, self)
        return owner(host.copy() if _root(host) is _root(self._host) else host)  # NumPy's 0-d integers give a view

    def __setitem__(self, index: Any, value: Any) -> None:
        key, target, copied = _select(self, index)
        array = device_array(value)
        if copied:
            self._host[key] = self._values(key, value)
        elif array is None:
            target[...] = _fill_value(value, self.dtype)
        else:
            _copy(array, target)

    def __delitem__(self, index: Any) -> None:
        raise NotImplementedError("Subscript deletion not supported by ndarray")

    def _values(self, key: tuple[Any, ...], value: Any) -> Host:
        """Values for the elements at an index with arrays: uploaded if they are a list or a host array."""
        for part in key:
            if isinstance(part, np.ndarray):
                check_race("the index", part, self._host, elementwise=False)
        array = device_array(value)
        if array is None:
            return convert(value, self.dtype, what="values to assign")._host
        check_race("the value", array._host, self._host, elementwise=False)
        with np.errstate(all="ignore"):
            return _without_leading_ones(array._host.astype(self.dtype, copy=False))

    def _scatter_op(self, index: Any, value: Any, function: Any) -> None:
        """`ufunc.at`"""
        key, target, copied = _select(self, index)
        if not copied:
            array = view(target, self)
            function(array, value, array)
            return
        host = self._values(key, value)
        name = function.__name__.removeprefix("cupy_")
        masked = any(isinstance(part, np.ndarray) and part.dtype == bool for part in key)
        if self.dtype.char not in _ATOMIC[name] and not masked:
            raise TypeError(f"cupy.{name}.at does not support {self.dtype}")
        getattr(np, name).at(self._host, key, host)

    def fill(self, value: Any) -> None:
        array = device_array(value)
        if array is None:
            self._host[...] = _fill_value(value, self.dtype)
            return
        if array.shape:
            raise ValueError("non-scalar cupy.ndarray cannot be used for fill")
        if self._host.flags.c_contiguous:
            recorder.wait("fill() with a device value")
        _copy(array, self._host)

    def take(self, indices: Any, axis: Any = None, out: Any = None) -> ndarray:
        if np.isscalar(indices):
            indices = int(indices)
        else:
            indices = (indices if isinstance(indices, ndarray) else convert(indices, int, what="indices"))._host
        host = np.take(self._host, indices, None if axis is None else axes_of(axis, max(self.ndim, 1))[0])
        if out is None:
            return owner(host)
        if out.dtype != self.dtype:
            raise TypeError("Output dtype mismatch")
        if out.shape != host.shape:
            raise ValueError("Output shape mismatch")
        out._host[...] = host
        return out

    def put(self, indices: Any, values: Any, mode: str = "wrap") -> None:
        if mode not in ("raise", "wrap", "clip"):
            raise ValueError("clipmode not understood")
        indices = indices if isinstance(indices, ndarray) else convert(indices, what="indices")
        values = values if isinstance(values, ndarray) else convert(values, self.dtype, what="values to assign")
        np.put(self._host, indices._host, values._host, mode)

    def nonzero(self) -> tuple[ndarray, ...]:
        if self.size:
            recorder.wait("nonzero()")
        if not self.ndim:
            raise ValueError("Calling nonzero on 0d arrays is not allowed. Use cp.atleast_1d(scalar).nonzero() instead")
        return tuple(map(owner, self._host.nonzero()))

    def repeat(self, repeats: Any, axis: Any = None) -> ndarray:
        if isinstance(repeats, np.ndarray):
            raise TypeError("'repeats' does not accept numpy.ndarray; convert with cupy.array() first")
        if not hasattr(repeats, "__index__"):
            if not hasattr(repeats, "__getitem__"):
                raise ValueError(f"'repeats' should be int or sequence: {repeats}")
            array = repeats if isinstance(repeats, ndarray) else convert(repeats, int, what="repeats")
            recorder.wait("repeat() by a device array", min(array.size, 2))
            repeats = array._host
        return owner(np.repeat(self._host, repeats, axis))

    def diagonal(self, offset: int = 0, axis1: int = 0, axis2: int = 1) -> ndarray:
        host = self._host.diagonal(offset, axis1, axis2)
        host.flags.writeable = self._host.flags.writeable
        return view(host, self)

    def sort(self, axis: int = -1, kind: Any = None) -> None:
        _check_stable(kind)
        self._host.sort(axis, "stable")

    def argsort(self, axis: Any = -1, kind: Any = None) -> ndarray:
        _check_stable(kind)
        return owner(np.argsort(self._host, axis, "stable"))

    def argpartition(self, kth: Any, axis: Any = -1) -> ndarray:
        length = self.size if axis is None else self.shape[axes_of(axis, self.ndim)[0]]
        for k in (kth,) if isinstance(kth, int) else kth:
            if not -length <= k < length:
                raise ValueError(f"kth(={k}) out of bounds {length}")
        recorder.wait("argpartition()", 2)
        return self.argsort(axis)

    def scatter_add(self, slices: Any, value: Any) -> None:
        warnings.warn("`ndarray.scatter_add` is deprecated. Please use `cupy.add.at` instead.", DeprecationWarning, 2)
        library["add"].at(self, slices, value)

    # ---- copies and views

    def astype(
        self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: bool | None = True
    ) -> ndarray:
        if casting is not None:
            raise TypeError("casting is not supported yet")
        if subok is not None:
            raise TypeError("subok is not supported yet")
        return self._astype(dtype, order, True if copy else None)

    def _astype(self, dtype: Any, order: Any, copy: bool | None) -> ndarray:
        """`copy`: True always copies, None where it must, False raises where it must."""
        with np.errstate(all="ignore"):
            host = self._host.astype(dtype_of(dtype), order or "K", copy=bool(copy))
        if host is self._host:
            return self
        if copy is False:
            raise ValueError("Unable to avoid copy while creating an array as requested.")
        return owner(host)

    def copy(self, order: str = "C") -> ndarray:
        return self.astype(self.dtype, order)

    def __copy__(self) -> ndarray:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> ndarray:
        return self.copy()

    def view(self, dtype: Any = None, type: Any = None) -> ndarray:
        if isinstance(dtype, builtins.type) and issubclass(dtype, ndarray):
            dtype, type = None, dtype
        return view(self._host.view() if dtype is None else self._host.view(np.dtype(dtype)), self, type)

    def reshape(self, *shape: Any, order: Any = "C", copy: bool | None = None) -> ndarray:
        (shape,) = shape if len(shape) == 1 else (shape,)
        result = wrap(self._host.reshape(shape, order=order), [self])
        if copy is False and result._base is None:
            raise ValueError("Unable to avoid creating a copy while reshaping.")
        return result.copy() if copy and result._base is not None else result

    def ravel(self, order: Any = "C") -> ndarray:
        return wrap(self._host.ravel(order), [self])

    def flatten(self, order: Any = "C") -> ndarray:
        return owner(self._host.flatten(order))

    def transpose(self, *axes: Any) -> ndarray:
        return wrap(self._host.transpose(*axes), [self])

    def swapaxes(self, axis1: int, axis2: int) -> ndarray:
        try:
            return wrap(self._host.swapaxes(axis1, axis2), [self])
        except np.exceptions.AxisError:
            raise ValueError("Axis out of range") from None

    def squeeze(self, axis: Any = None) -> ndarray:
        host = self._host.squeeze(axis)
        return self if host.ndim == self.ndim else wrap(host, [self])

    def conj(self) -> ndarray:
        return library["conjugate"](self) if self.dtype.kind == "c" else self

    conjugate = conj

    # ---- reductions and the like

    def _reduced(self, compute: Callable[..., Any], axis: Any, out: Any, keepdims: Any, dtype: Any = None) -> ndarray:
        """`compute(host, axes, keepdims)`, as an array or written to `out`, to which it is cast."""
        if out is not None:
            typed(out, "out")
        axes = tuple(range(self.ndim)) if axis is None else axes_of(axis, self.ndim)
        with np.errstate(all="ignore"):
            host = np.asarray(compute(self._host, axes, bool(keepdims)))
        if dtype is not None:
            host = host.astype(dtype, copy=False)
        if out is None:
            return owner(host)
        if out.shape != host.shape:
            raise ValueError("Out shape is mismatched")
        out._host[...] = host
        return out

    def _folded(self, function: Any, axis: Any, dtype: Any, out: Any, keepdims: Any) -> ndarray:
        dtype = None if dtype is None else np.dtype(dtype)
        return self._reduced(lambda a, axes, keep: function.reduce(a, axes, dtype, keepdims=keep), axis, out, keepdims)

    def sum(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False) -> ndarray:
        return self._folded(np.add, axis, dtype, out, keepdims)

    def prod(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = None) -> ndarray:
        return self._folded(np.multiply, axis, dtype, out, keepdims)

    def max(self, axis: Any = None, out: Any = None, keepdims: Any = False) -> ndarray:
        return self._folded(np.maximum, axis, None, out, keepdims)

    def min(self, axis: Any = None, out: Any = None, keepdims: Any = False) -> ndarray:
        return self._folded(np.minimum, axis, None, out, keepdims)

    def ptp(self, axis: Any = None, out: Any = None, keepdims: Any = False) -> ndarray:
        result = self.max(axis, out, keepdims)
        result -= self.min(axis, None, keepdims)
        return result

    def all(self, axis: Any = None, out: Any = None, keepdims: Any = False) -> ndarray:
        return self._folded(np.logical_and, axis, bool, out, keepdims)

    def any(self, axis: Any = None, out: Any = None, keepdims: Any = False) -> ndarray:
        return self._folded(np.logical_or, axis, bool, out, keepdims)

    def mean(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False) -> ndarray:
        dtype = np.dtype(dtype or _float(self.dtype))
        return self._reduced(lambda a, axes, keep: _mean(a, axes, keep, dtype), axis, out, keepdims, dtype)

    def var(
        self, axis: Any = None, dtype: Any = None, out: Any = None, ddof: int = 0, keepdims: Any = False
    ) -> ndarray:
        dtype = np.dtype(dtype or _float(self.dtype))
        return self._reduced(lambda a, axes, keep: _var(a, axes, keep, dtype, ddof), axis, out, keepdims, dtype)

    def std(
        self, axis: Any = None, dtype: Any = None, out: Any = None, ddof: int = 0, keepdims: Any = False
    ) -> ndarray:
        dtype = np.dtype(dtype or _float(self.dtype))
        return self._reduced(
            lambda a, axes, keep: np.sqrt(_var(a, axes, keep, dtype, ddof)), axis, out, keepdims, dtype
        )

    def argmax(self, axis: Any = None, out: Any = None, dtype: Any = None, keepdims: Any = False) -> ndarray:
        return self._reduced(lambda a, axes, keep: _place(np.argmax, a, axes, keep), axis, out, keepdims, dtype)

    def argmin(self, axis: Any = None, out: Any = None, dtype: Any = None, keepdims: Any = False) -> ndarray:
        return self._reduced(lambda a, axes, keep: _place(np.argmin, a, axes, keep), axis, out, keepdims, dtype)

    def cumsum(self, axis: Any = None, dtype: Any = None, out: Any = None) -> ndarray:
        return library["cumsum"](self, axis, dtype, out)

    def cumprod(self, axis: Any = None, dtype: Any = None, out: Any = None) -> ndarray:
        return library["cumprod"](self, axis, dtype, out)

    def trace(self, offset: int = 0, axis1: int = 0, axis2: int = 1, dtype: Any = None, out: Any = None) -> ndarray:
        return self.diagonal(offset, axis1, axis2).sum(-1, dtype, out)

    def clip(self, min: Any = None, max: Any = None, out: Any = None) -> ndarray:
        limits = np.iinfo(self.dtype) if self.dtype.kind in "iu" else types.SimpleNamespace(min=-np.inf, max=np.inf)
        low, high = (limits.min if min is None else min), (limits.max if max is None else max)
        return library["_clip"](self, low, high, out=out)

    def round(self, decimals: int = 0, out: Any = None) -> ndarray:
        return library["_round"](self, decimals, out=out)

    def dot(self, b: Any, out: Any = None) -> ndarray:
        typed(b, "b")
        if out is not None:
            typed(out, "out")
            if out.dtype != np.result_type(self.dtype, b.dtype):
                raise ValueError("Not supported dtype combination.")
            if not out.flags.c_contiguous:
                raise ValueError("Output array must be C-contiguous")
        if not self.ndim or not b.ndim:
            return library["multiply"](self, b, out=out)
        if self.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
            raise ValueError("Axis dimension mismatch")
        host = product(np.dot, self, b)
        if out is None:
            return owner(host)
        if out.size != host.size:
            raise ValueError("Output array has an invalid size")
        out._host[...] = host.reshape(out.shape)
        return out


def _unpickled(host: Host) -> ndarray:
    return upload(host, "unpickling")


def _takes_part(value: Any) -> bool:
    """Whether CuPy's `__array_ufunc__` knows this class of operands."""
    if type(value) in (bool, int, float, complex) or isinstance(value, (ndarray, np.ndarray)):
        return True
    return hasattr(value, "__cupy_get_ndarray__") or (isinstance(value, np.generic) and value.dtype.char in NUMBERS)


def _check_stable(kind: Any) -> None:
    if kind not in (None, "stable"):
        raise ValueError("kind can only be None or 'stable'")


def stub(name: str, signature: str) -> Any:
    """A function that does nothing: Python itself checks the arguments of a call to it."""
    namespace: dict[str, Any] = {}
    exec(f"def {name}{signature}: ...", namespace)
    return namespace[name]


def unmodelled(name: str, signature: str, reason: str = "the strict double does not model it") -> Any:
    """A function of CuPy that raises when it is called."""
    UNMODELLED.add(name)
    check = stub(name.rpartition(".")[2], signature)

    @functools.wraps(check)
    def refuse(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        raise Unmodelled(f"cupy.{name} exists, but {reason}")

    return refuse
