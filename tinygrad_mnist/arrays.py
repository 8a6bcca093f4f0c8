"""Array libraries behind one door: which library an array belongs to, and where the libraries differ.

A rule or a kernel never imports NumPy; it receives `xp`, a `Namespace`. Everything that one library does otherwise than
another, or does better in another way, lives here, so that the rest of the code is written once.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import numpy as np

Array = Any  # an array of one of the supported libraries
Dtype = np.dtype[Any]


class Namespace:
    """The functions of one array library as rules see them (`xp`): its own, and what it lacks or does otherwise.

    `Namespace(module, extras, device)`: `xp.name` is `extras[name]`, else the library's own function, else a kernel
    written in terms of `xp` that a primitive brought. Looked up once a name. `device` is where its arrays live.
    """

    kernels: ClassVar[dict[str, Callable[..., Array]]] = {}  # of primitives: softmax(xp, a, axis), relu(xp, a), ...
    several = False  # True where its arrays may lie on one of several devices
    records = False  # True where its arrays are symbols of a program that is being captured

    def __init__(self, module: Any, extras: dict[str, Callable[..., Array]], device: str = "cpu") -> None:
        self._module = module
        self._extras = extras
        self.device = device

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

    def uploaded(self, a: Any, device: str) -> Array:
        """An array of the host on this device, which is the current one."""
        return self._module.asarray(a)

    def home(self, a: Array) -> str:
        """The device of one of its arrays."""
        return _named(self.device, a.device.id) if self.several else self.device


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


def _ones_like(a: Array, **options: Any) -> Array:
    if options:
        return np.ones_like(a, **options)
    ones = np.empty_like(a)  # np.ones_like takes 2 us
    ones.fill(1)
    return ones


Make = Callable[..., Callable[..., None]]  # (xp, *numbers) -> the formula of an update


def _unfused(make: Make, state: Sequence[str], numbers: Sequence[float]) -> Callable[..., None]:
    return make(NUMPY, *numbers)


def _worth_joining(size: int) -> bool:
    return size < 16384  # below, more calls of a formula cost more than joining gradients


# ---- what libraries share


def _scatter_add(library: Any, g: Array, *, index: Any, shape: tuple[int, ...]) -> Array:
    out = library.zeros(shape, g.dtype)
    if any(is_array(i) and i.dtype != bool for i in index):
        library.add.at(out, index, g)  # integer arrays may name an element twice
    else:
        out[index] = g
    return out


# ---- CuPy, and what has its interface

_HERE = nullcontext()  # one for all: making one at every step costs more than entering it


def _where_on(library: Any, condition: Any, a: Any, b: Any) -> Array:
    return library.where(condition if is_array(condition) else library.asarray(condition), a, b)


def _getitem(a: Array, *, index: Any) -> Array:
    part = a[index]
    return part if part.ndim else part.copy()  # CuPy's is a view: later writes would reach it, as they do not in NumPy


_C = {"add": "{} + {}", "subtract": "{} - {}", "multiply": "{} * {}", "divide": "{} / {}", "sqrt": "sqrt({})"}


class _Kernel:
    """A namespace whose functions do not compute: each writes down its call as a line of C on one element."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., str]:
        if name not in _C:
            raise TypeError(f"a GPU's kernel of an update cannot call {name}: it can {', '.join(_C)}")

        def call(*operands: Any, out: str) -> str:
            terms = [a if isinstance(a, str) else f"(T){a!r}" for a in operands]
            self.lines.append(f"{out} = {_C[name].format(*terms)};")
            return out

        return call


@functools.lru_cache(maxsize=64)
def _compiled(library: Any, lines: tuple[str, ...], numbers: int, changed: tuple[str, ...]) -> Any:
    constants = "".join(f", T c{i}" for i in range(numbers))
    outputs = ", ".join(f"T {name}" for name in changed)
    return library.ElementwiseKernel(f"T g{constants}", outputs, " ".join(("T a, b;", *lines)), "tinygrad_mnist_step")


def fused_source(make: Make, state: Sequence[str], numbers: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The formula `make(xp, *numbers)`, called as `formula(p, g, *state, a, b)`: its lines in C, where the numbers are
    arguments `c0`, `c1`, ..., for they change from step to step; and the names of the arrays that it changes."""
    kernel = _Kernel()
    make(kernel, *(f"c{i}" for i in range(numbers)))("p", "g", *state, "a", "b")
    return tuple(kernel.lines), ("p", *state)


def _fused(library: Any, make: Make, state: Sequence[str], numbers: Sequence[float]) -> Callable[..., None]:
    """That formula as one kernel: its scratch is registers."""
    lines, changed = fused_source(make, state, len(numbers))
    step = _compiled(library, lines, len(numbers), changed)
    return lambda p, g, *rest: step(g, *numbers, p, *rest[: len(state)])


def _on_its_device(kernel: Callable[..., Array]) -> Callable[..., Array]:
    """CuPy computes on the current device: make it that of the operands."""

    def call(*operands: Any, **params: Any) -> Array:
        flat = [a for part in operands for a in (part if isinstance(part, (list, tuple)) else (part,)) if is_array(a)]
        if problem := mixed(flat):
            raise ValueError(problem)
        with on_device_of(flat[0]) if flat else _HERE:
            return kernel(*operands, **params)

    return call


class _Several(Namespace):
    """The namespace of a library whose arrays may lie on one of several devices."""

    several = True

    def bind(self, name: str, kernel: Callable[..., Array] | None) -> Callable[..., Array]:
        return _on_its_device(super().bind(name, kernel))


# ---- the table of namespaces

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
        "ones_like": _ones_like,
        "scatter_add": functools.partial(_scatter_add, np),
        "fused": _unfused,
        "worth_joining": _worth_joining,
        "scratch": np.empty,
        "check_labels": lambda labels, classes: check_labels(labels, classes),
    },
)
_spaces: dict[type, Namespace] = dict.fromkeys((np.ndarray, np.float16, np.float32, np.float64), NUMPY)
_remote: Any = ()  # the array classes of devices
_classes: tuple[type, ...] = (np.ndarray,)  # all array classes
# the classes that enter a kernel as they are
PLAIN = frozenset({int, float, bool, np.ndarray} | {t for t in np.sctypeDict.values() if np.dtype(t).kind in "fiub"})
AxisError = np.exceptions.AxisError


def cupy() -> Any:
    """The module cupy, imported on first use."""
    import cupy

    return cupy


def register(device: str, library: Any) -> Namespace:
    """Let Tensors hold the arrays of a library that has CuPy's interface; `device` names where they live."""
    global _classes, _remote
    known = _spaces.get(library.ndarray)
    if known is not None:
        if known.device != device:
            raise ValueError(f"arrays of this library are on device {known.device!r} already")
        return known
    several = library.cuda.runtime.getDeviceCount() > 1
    space = _spaces[library.ndarray] = (_Several if several else Namespace)(
        library,
        {
            "astype": _astype,
            "where": functools.partial(_where_on, library),
            "getitem": _getitem,
            "scatter_add": functools.partial(_scatter_add, library),
            "fused": functools.partial(_fused, library),
            "worth_joining": lambda size: False,  # one kernel for each gradient, as the formula itself
            "scratch": lambda size, dtype: library.empty(0, dtype),
        },
        device,
    )
    _remote = (*_remote, library.ndarray)
    _classes = (np.ndarray, *_remote)
    return space


def register_symbols(cls: type, space: Namespace) -> None:
    """Let Tensors hold symbols of a program that is being captured; `space` records what is computed of them."""
    global _classes, _remote
    _spaces[cls] = space
    _remote = (*_remote, cls)
    _classes = (np.ndarray, *_remote)


def namespace(cls: type) -> Namespace:
    """The namespace of an array class (or of the scalars that its reductions give)."""
    try:
        return _spaces[cls]
    except KeyError:
        if cls.__module__ == "cupy":
            return register("gpu", cupy())
        raise TypeError(f"{cls.__module__}.{cls.__qualname__} is not an array type that Tensors can hold") from None


def is_array(value: Any) -> bool:
    """True for an array; False for numbers, scalars, nodes and the like."""
    return isinstance(value, _classes)


def class_of(values: Iterable[Any]) -> type:
    """The array class that computes where no Tensor says so."""
    return next((type(a) for a in values if isinstance(a, _remote)), np.ndarray)


def box(value: Any) -> Array:
    """An array from what a kernel returned: NumPy's full reductions give scalars, not 0-d arrays."""
    return value if isinstance(value, _remote) else np.asarray(value)


def operand(value: Any) -> Any:
    """What may enter a kernel beside a Tensor and `PLAIN`: lists and NumPy's matrices become arrays."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError("a masked array would lose its mask: use where(mask, a, b)")
    if isinstance(value, (np.ndarray, list, tuple)):
        return np.asarray(value)
    if value is None or isinstance(value, (str, bytes, dict, set)):
        raise TypeError(f"expected a Tensor, an array or a number, got {type(value).__name__}: {value!r:.40}")
    if type(value).__module__ == "cupy":
        namespace(type(value))
    return value


# ---- devices


def gpu_number(device: str) -> int | None:
    """The number of the GPU that a device names, 0 for "gpu"; None where it names no GPU."""
    match = re.fullmatch(r"gpu(?::([0-9]+))?", str(device))
    return int(match[1] or 0) if match else None


def _named(device: str, number: int) -> str:
    return f"{device}:{number}" if number else device


def canonical(device: str) -> str:
    """The one name of a device that has several: "gpu" for "gpu:0"."""
    number = gpu_number(device)
    return device if number is None else _named("gpu", number)


def _device(name: str) -> tuple[Namespace, int]:
    """The library and the number of a device: "cpu", "gpu", "gpu:1"."""
    if name == "cpu":
        return NUMPY, 0
    for space in _spaces.values():
        if space.device == name:
            return space, 0
    number = gpu_number(name)
    if number is None:
        raise ValueError(f"device must be 'cpu', 'gpu' or 'gpu:N', not {name!r}")
    try:
        library = cupy()
        found = library.cuda.runtime.getDeviceCount()
    except Exception as error:  # no CuPy, or CuPy without a driver: it has several classes of error for that
        reason = f"{error}".partition("\n")[0]
        raise ValueError(
            f"device {name!r} is not available, 'cpu' is: {reason}; `tinygrad-mnist info` says what is missing"
        ) from None
    if number >= found:
        raise ValueError(f"device {name!r} is not available, the last one is 'gpu:{found - 1}'")
    return register("gpu", library), number


def device_of(a: Array) -> str:
    """`"cpu"` for NumPy arrays, `"gpu"` for those of the first GPU, `"gpu:1"` for those of the second."""
    return _spaces.get(type(a), NUMPY).home(a)


def library(device: str) -> Any:
    """The array library of a device."""
    return _device(device)[0]._module


def computing_on(device: str) -> AbstractContextManager[Any]:
    """A context in which this device makes new arrays and computes."""
    space, number = _device(device)
    return space._module.cuda.Device(number) if space.several else _HERE


def on_device_of(a: Array) -> AbstractContextManager[Any]:
    """A context in which the device of an array is that on which new arrays are made."""
    space = _spaces.get(type(a), NUMPY)
    if space.records:
        return on_device_of(concrete(a))
    return space._module.cuda.Device(a.device.id) if space.several else _HERE


def move(a: Array, device: str) -> Array:
    """The array on another device; itself where it is there already. To and from the host this copies."""
    if canonical(device) == device_of(a):
        return a
    space, number = _device(device)
    if namespace(type(a)).records and device_of(a) == "cpu":
        return namespace(type(a)).uploaded(a, device)
    if space is NUMPY:
        return to_host(a)
    with space._module.cuda.Device(number), explaining(f"moving {a.dtype} {a.shape}", device):
        return a.copy() if space is namespace(type(a)) else space._module.asarray(to_host(a))


def beside(a: Array, f: Callable[..., Any]) -> Callable[..., Any]:
    """`f`, computing on the device of an array: what is written with operators uses whatever is the current one."""

    def on_its_device(*args: Any, **kwargs: Any) -> Any:
        with on_device_of(a):
            return f(*args, **kwargs)

    return on_its_device


def plus(a: Array, b: Array, in_place: bool = False) -> Array:
    """The sum of two arrays of one device."""
    with on_device_of(a):
        if in_place and not namespace(type(a)).records:
            a += b  # a scalar is not changed in place
            return a
        return a + b


def copy(a: Array) -> Array:
    """A copy beside the array, wherever that is."""
    with on_device_of(a):
        return a.copy()


def replica(a: Array) -> Array:
    """A copy beside the array that lies in memory as it does."""
    with on_device_of(a):
        return a.copy(order="K")


def to_host(a: Array) -> np.ndarray[Any, Any]:
    """A copy in host memory. It waits for the device."""
    return a.get() if isinstance(a, _remote) else np.array(a)


def place(values: Any, like: Array) -> Array:
    """Host values on the device of another array; numbers, and arrays that are there, as they are."""
    if not is_array(values) or (type(values) is type(like) and device_of(values) == device_of(like)):
        return values
    if device_of(values) != "cpu":
        raise ValueError(f"{mixed([like, values])}; move one with .to(device)")
    with on_device_of(like), explaining(f"moving {values.dtype} {values.shape}", device_of(like)):
        return namespace(type(like)).uploaded(values, device_of(like))


def mixed(values: Iterable[Any]) -> str:
    """For an error message: arrays that lie on different devices; empty where they do not."""
    where = {f"{a.dtype} {a.shape} on {device_of(a)}": device_of(a) for a in values if is_array(a)}
    return f"operands on different devices: {' and '.join(where)}" if len(set(where.values())) > 1 else ""


def from_host(values: Any, like: Array) -> Array:
    """Host values (or an array there already) as an array of the dtype, and on the device, of another."""
    if isinstance(values, _remote):
        with on_device_of(like):
            return place(values, like).astype(like.dtype, copy=False)
    return place(np.asarray(values, dtype=like.dtype), like)


def asarray(data: Any, dtype: Any = None, device: str | None = None) -> Array:
    """The array of a new Tensor: arrays keep their dtype and memory, Python floats become float32, integers int64."""
    array: Array
    if type(data).__module__ == "cupy":
        namespace(type(data))
    if isinstance(data, (np.ndarray, np.generic)):
        array = np.asarray(data, dtype=dtype)
    elif isinstance(data, _remote):
        with on_device_of(data):
            array = data if dtype is None else data.astype(dtype, copy=False)
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
    return array if device is None else move(array, device)


def put(a: Array, index: Any, values: Any) -> None:
    """`a[index] = values`, also where the values are on the host and `a` is not."""
    check_writable(a)
    with on_device_of(a):
        a[index] = place(values, a)


def check_writable(a: Array) -> None:
    """Raise where elements share their memory, as those of `broadcast_to` do: NumPy refuses to write there, CuPy does
    not."""
    stretched = (n > 1 and not stride for n, stride in zip(a.shape, a.strides, strict=True))
    if isinstance(a, _remote) and a.size and any(stretched):
        raise ValueError("a broadcast array is read-only: its elements share their memory; change a copy")


def index(parts: tuple[Any, ...], a: Array) -> tuple[Any, ...]:
    """An index of `a` as the graph may keep it: copies of its arrays, so that no later write to them reaches backward,
    on the device of `a`. Those on the host are checked there against its shape: a GPU wraps what is out of range."""
    if all(isinstance(part, _BASIC) for part in parts):
        return parts
    space = namespace(type(a))
    if space.records:
        return tuple(space.lifted(part).copy() if is_array(part) else part for part in parts)
    found = tuple(map(_own, parts))
    if isinstance(a, np.ndarray):
        return tuple(place(part, a) for part in found)
    seen = tuple(map(_in_range, found))
    if not any(isinstance(part, _remote) for part in seen):
        check_places(seen, a)
    return tuple(place(part, a) for part in found)


def check_places(parts: tuple[Any, ...], a: Array) -> None:
    """Raise IndexError for an index of the host that is no index of an array."""
    try:
        np.broadcast_to(False, a.shape)[parts]
    except IndexError as error:
        raise IndexError(f"getitem: cannot index {a.dtype} {a.shape}: {error}") from None


def _in_range(part: Any) -> Any:
    """Integers on a device count as in range: looking at them would wait."""
    return np.zeros(part.shape, int) if isinstance(part, _remote) and part.dtype != bool else part


def take(group: tuple[Array, Array], rows: Any) -> tuple[Array, Array]:
    """These rows of two arrays that lie on one device."""
    with on_device_of(group[0]):
        return group[0][rows], group[1][rows]


def _own(part: Any) -> Any:
    """A part of an index in memory of its own."""
    if isinstance(part, (list, tuple)):
        return np.array(part, None if np.size(part) else int)
    return copy(part) if is_array(part) else part


_BASIC = (int, slice, type(None), type(Ellipsis))  # parts of an index that name no element twice


def ones_like(a: Array) -> Array:
    """Ones of the shape, the dtype and the device of an array."""
    with on_device_of(a):
        return namespace(type(a)).ones_like(a)


def generator(rng: Any) -> np.random.Generator:
    """The NumPy generator of a seed, or the generator itself. All random numbers are drawn on the host."""
    return np.random.default_rng(rng)


def joined(parts: Sequence[Array]) -> Array:
    """One flat array of all the elements, which have one dtype."""
    return namespace(type(parts[0])).concatenate([a.reshape(-1) for a in parts], dtype=parts[0].dtype)


def result_type(*dtypes: Any) -> Dtype:
    """The dtype that all of them promote to."""
    return np.result_type(*dtypes)


# ---- memory


def owns_memory(a: Array) -> bool:
    """True where nobody else can be looking at this array's memory through a base array."""
    return a.base is None


def extent(a: Array) -> tuple[int, int]:
    """First and one-past-last byte address that the array can touch."""
    start: int = a.__array_interface__["data"][0] if isinstance(a, np.ndarray) else a.data.ptr
    if a.flags.c_contiguous:  # the general way takes 2 us more, at every parameter of every step
        return start, start + a.nbytes
    reach = [(n - 1) * stride for n, stride in zip(a.shape, a.strides, strict=True)]
    return start + sum(k for k in reach if k < 0), start + sum(k for k in reach if k > 0) + a.itemsize


def concrete(a: Array) -> Array:
    """The array itself, of a symbol the one that it stands for now."""
    return a.example if namespace(type(a)).records else a


def owner(a: Array) -> Array:
    """The array at the bottom of a chain of views."""
    while is_array(a.base):
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
    for such operands, GPUs do not."""
    if isinstance(a, np.ndarray):
        a[np.abs(a) < np.finfo(a.dtype).tiny] = 0


def checksum(a: Array) -> bytes:
    """A digest of the values, to notice a raw write."""
    return hashlib.blake2b(np.ascontiguousarray(to_host(a)).data, digest_size=16).digest()


def synchronize(a: Array) -> None:
    """Wait until the device of an array has done all that was asked of it so far."""
    with on_device_of(a):
        namespace(type(a))._module.cuda.get_current_stream().synchronize()


def all_finite(a: Array) -> bool:
    """True where no element is NaN or infinite (always, for integers). It waits for the device."""
    with on_device_of(a):
        return bool(namespace(type(a)).isfinite(a).all()) if a.dtype.kind == "f" else True


def available(device: str) -> int:
    """Bytes that can still be allocated on a device."""
    library = _device(device)[0]._module
    with computing_on(device):
        pool = library.get_default_memory_pool()
        free: int = library.cuda.runtime.memGetInfo()[0] + pool.free_bytes()
        return max(0, min(free, pool.get_limit() - pool.used_bytes())) if pool.get_limit() else free


def requested(error: MemoryError) -> int | None:
    """Bytes that a device could not allocate; None where it was the host that could not."""
    found = re.search(r"Out of memory allocating ([\d,]+) bytes", str(error))
    return int(found[1].replace(",", "")) if found else None


def size(n: int) -> str:
    """Bytes for a message."""
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.1f} MiB" if n >= 2**20 else f"{n} bytes"


@contextmanager
def explaining(what: str, device: str) -> Iterator[None]:
    """Say of a device's lack of memory what it was that found none."""
    try:
        yield
    except MemoryError as error:
        raise _lacking(what, error, device) from None


def out_of_memory(what: str, error: MemoryError, cls: type) -> MemoryError:
    """The error to raise for one that an allocation for arrays of this class raised."""
    return _lacking(what, error, namespace(cls).device)


def _lacking(what: str, error: MemoryError, device: str) -> MemoryError:
    asked = requested(error)
    if asked is None:
        return error  # NumPy's own says all there is to say
    room = size(available(device))
    return MemoryError(f"{what}: out of memory on {device}: {size(asked)} asked for, {room} available")


def uploads(batches: Iterable[Sequence[Any]], like: Array) -> Iterator[tuple[Array, ...]]:
    """Host batches, one after the other on the device of an array: for data that does not fit there as a whole.

    They pass through pinned memory, from which a GPU copies without the host. Two buffers take turns: the host fills
    one while the device computes on the other. Copies and kernels share a stream, so no kernel runs ahead of its data.
    """
    library = namespace(type(like))._module
    with on_device_of(like):
        copied = [library.cuda.Event(), library.cuda.Event()]
    buffers: list[Any] = [None, None]
    for i, batch in enumerate(batches):
        turn = i % 2
        copied[turn].synchronize()  # until the copies out of this buffer are done; at first there are none
        with on_device_of(like):
            if buffers[turn] is None:
                buffers[turn] = [pinned(library, part) for part in batch]  # the first batches are the largest
            found = tuple(_upload(library, part, buffer) for part, buffer in zip(batch, buffers[turn], strict=True))
            copied[turn].record()
        yield found


def pinned(library: Any, like: Array) -> np.ndarray[Any, Any]:
    """An array of the host, of the shape and dtype of another, in memory from and to which a GPU copies by itself."""
    memory = library.cuda.alloc_pinned_memory(like.nbytes)
    return np.frombuffer(memory, like.dtype, like.size).reshape(like.shape)


def _upload(library: Any, part: np.ndarray[Any, Any], buffer: np.ndarray[Any, Any]) -> Array:
    buffer[: len(part)] = part
    there = library.empty(part.shape, part.dtype)
    there.set(buffer[: len(part)])
    return there


# ---- labels


@functools.lru_cache(maxsize=16)
def _places(classes: int, dtype: Dtype | None, device: str) -> Array:
    places = np.arange(classes, dtype=dtype)
    places.flags.writeable = False
    return move(places, device)


def check_labels(labels: Array, classes: int) -> None:
    """Raise IndexError for a label outside 0 ... classes - 1."""
    labels = labels if isinstance(labels, np.ndarray) else to_host(labels)
    # unsigned labels need only one of the two comparisons
    if labels.size and ((labels.dtype.kind == "i" and labels.min() < 0) or np.maximum.reduce(labels, None) >= classes):
        row = np.argwhere((labels < 0) | (labels >= classes))[0]
        where = f" in row {', '.join(map(str, row))}" if labels.ndim else ""  # a single label is in no row
        raise IndexError(
            f"label {labels[tuple(row)]}{where} is out of range: there are {classes} classes, 0 to {classes - 1}"
        )


def one_hot(labels: Array, like: Array, axis: int) -> Array:
    """Booleans of the shape and on the device of the logits `like`, true at the label's place along `axis`.

    Labels on the host are range-checked there. Those on a device are not, for that would wait for it: a row whose label
    is out of range has no place that is true.
    """
    classes = like.shape[axis]
    labels = box(labels)  # one label may be a scalar of NumPy
    if device_of(labels) == "cpu":
        namespace(type(labels)).check_labels(labels, classes)
    labels = place(labels, like)
    places = _places(classes, labels.dtype if classes <= 128 else None, device_of(like))  # one dtype: no conversion
    with on_device_of(like):
        if axis == labels.ndim:
            return labels[..., None] == places
        return labels[(slice(None),) * axis + (None,)] == places.reshape((-1,) + (1,) * (labels.ndim - axis))
