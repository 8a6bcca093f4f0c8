"""The BLAS that NumPy itself uses: its matrix product, so that SciPy is not needed and there is one pool of threads;
and the number of these."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

_SYMBOLS = (
    "scipy_cblas_{}gemm64_",  # the OpenBLAS of NumPy's wheels
    "cblas_{}gemm64_",
    "cblas_{}gemm$NEWLAPACK$ILP64",  # Apple's Accelerate
    "cblas_{}gemm",  # what distributions build NumPy with; this one takes 32-bit integers
)
_THREADS = ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads64_", "openblas_set_num_threads")
NAMES = {f"{kind}gemm": f"tinygrad_mnist_{kind}gemm" for kind in "sd"}
"""What compiled code calls them, wherever they are."""


class Gemm(NamedTuple):
    """Where the functions are, and the type of their integers."""

    addresses: dict[str, int]  # of "s" and "d": float32 and float64
    integer: str


@functools.cache
def find() -> Gemm | None:
    """The products of NumPy's BLAS; None where it has none that could be called."""
    for library in _loaded():
        for symbol in _SYMBOLS:
            try:
                functions = {kind: getattr(library, symbol.format(kind)) for kind in "sd"}
            except AttributeError:
                continue
            addresses = {kind: ctypes.cast(f, ctypes.c_void_p).value or 0 for kind, f in functions.items()}
            return Gemm(addresses, "int64" if "64" in symbol else "int32")
    return None


def share_cores(processes: int) -> None:
    """Let this process, one of so many on this machine, use its part of the cores, unless a variable says how many
    threads the BLAS has."""
    if not any(name in os.environ for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")):
        limit_threads(max(1, len(cores()) // processes))


def cores() -> list[int]:
    """Those that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def limit_threads(n: int) -> None:
    """Let an OpenBLAS use at most so many threads; another BLAS stays as it is."""
    for library in _loaded():
        for symbol in _THREADS:
            if hasattr(library, symbol):
                getattr(library, symbol)(n)
                return


def _loaded() -> Iterator[ctypes.CDLL]:
    for path in _libraries():
        with suppress(OSError):
            yield ctypes.CDLL(path)


def _libraries() -> Iterator[str]:
    """NumPy's extension module, through which the system finds what that is linked with; then the library in the wheel,
    for Windows, which does not look further."""
    core = sys.modules["numpy._core._multiarray_umath"]
    yield str(core.__file__)
    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        yield from map(str, sorted(folder.glob("*openblas*")))
