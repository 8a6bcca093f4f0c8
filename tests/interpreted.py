"""Native loops without Numba: the same source as plain Python, in which every access is checked.

An index outside an array is an error, and memory that nobody has written holds NaN. So this finds what compiled code
would get away with, and takes no seconds to compile.
"""

import math
import types

import numpy as np

from tinygrad_mnist.native import cache, places


class Memory:
    """A flat array of a loop, with bounds."""

    def __init__(self, array):
        self.array = array.reshape(-1)

    def _check(self, index):
        if not 0 <= index < self.array.size:
            raise IndexError(f"{index} of {self.array.size}")
        return index

    def __getitem__(self, index):
        return self.array[self._check(index)]

    def __setitem__(self, index, value):
        self.array[self._check(index)] = value


def memory(buffer, rows):
    """A buffer for blocks of so many rows. What nobody has written is no number that a result could come from."""
    size = buffer.size * (rows if buffer.rows else 1)
    filler = np.nan if buffer.dtype.kind == "f" else 1 if buffer.dtype == bool else -(2**30)
    return np.full(size, 0 if buffer.zeros else filler, buffer.dtype)


def _range(*bounds):
    return range(*map(int, bounds))


def _matrix(turned, memory, rows, columns, step):
    array, start = memory
    rows, columns = (columns, rows) if turned else (rows, columns)
    assert step >= max(columns, 1)
    assert start >= 0
    assert rows == 0 or columns == 0 or start + (rows - 1) * step + columns <= array.array.size
    size = array.array.itemsize
    found = np.lib.stride_tricks.as_strided(array.array[start:], (rows, columns), (step * size, size))
    return found.T if turned else found


def _gemm(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    assert order == 101
    a, b = _matrix(ta == 112, a, m, k, lda), _matrix(tb == 112, b, k, n, ldb)
    c = _matrix(False, c, m, n, ldc)
    assert {a.dtype, b.dtype, c.dtype} == {alpha.dtype}
    c[...] = alpha * (a @ b) + (beta * c if beta else 0)  # as the BLAS: with beta 0, c need not be a number


def _exp(x):
    return np.exp(x)


class _Types:
    """Numba's types, of which the signature of a loop is made: they do not matter here."""

    def __call__(self, *_):
        return self

    __getattr__ = __getitem__ = __call__


NAMES = {
    "f32": np.float32, "f64": np.float64, "i64": np.int64, "b1": np.bool_,
    "ROW": 101, "KEEP": 111, "TURN": 112, "range": _range, "sgemm": _gemm, "dgemm": _gemm,
    "ptr": lambda array, place: (array, int(place)), "exp32": _exp, "exp64": _exp,
    "np": types.SimpleNamespace(
        inf=np.inf, nan=np.nan, int32=np.int32, float32=np.float32, float64=np.float64,
    ),
    "njit": lambda *_, **__: lambda f: f, "types": _Types(),
    "math": types.SimpleNamespace(**{name: getattr(np, name) for name in (*math.__dict__,) if hasattr(np, name)}),
}  # fmt: skip


def function(source):
    """The loop of a source, and the numbers before it; not the imports and the exponentials."""
    names = dict(NAMES)
    exec(source[source.index("\n# numbers\n") :], names)

    def loop(steps, n, *arrays):
        with np.errstate(all="ignore"):
            names["loop"](steps, n, *map(Memory, arrays))

    return loop


def instead(monkeypatch):
    """Have all loops run so."""
    monkeypatch.setattr(cache, "function", function)
    monkeypatch.setattr(places.Buffer, "make", memory)
