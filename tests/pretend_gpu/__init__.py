"""The real CuPy wheel on a pretend CUDA device: host memory, and kernels that g++ compiled.

    import pretend_gpu

    cupy = pretend_gpu.load()
    with pretend_gpu.record() as events:
        float(cupy.arange(6).sum())
    print(events)

README.md beside this file tells what that proves and what it cannot. Settings are environment variables:

    PRETEND_GPU_DIR      where build.py built it, if not in the default folder
    PRETEND_GPU_MODE     cpu: kernels run (default); null: NVRTC compiles them, and launches are only counted
    PRETEND_GPU_CC       compute capability, such as 90 (default 80): what NVRTC compiles for in mode null
    PRETEND_GPU_DEVICES  number of devices (default 1)
    PRETEND_GPU_MEMORY   bytes of memory of each device (default 8 GiB); may be changed at any time
"""

import collections
import contextlib
import ctypes
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from . import build

DEVICE_NAME = "pretend device (host memory)"

# What the device does not have, and what CuPy raises there. It never returns made-up numbers.
CANNOT = {
    "cupy.random": "cuRAND is not emulated: draw on the host and upload",
    "cupy.fft": "cuFFT is not emulated",
    "cupy.linalg": "cuSOLVER is not emulated (svd, qr, cholesky, eigh, solve, inv, det): products and norms run",
    "cupyx.scipy.sparse": "cuSPARSE is not emulated",
    "cupy.i0": "CUDA's own special functions are not emulated",
    "cupy.ndarray.byteswap": "its kernel has the name of another function, which g++ cannot tell apart",
    "cupy.cuda.Stream.begin_capture": "CUDA graphs are not emulated",
    "cupy.cuda.malloc_managed": "managed memory is not emulated",
    "cupy.cuda.malloc_async": "stream-ordered memory is not emulated",
    "cupy.cuda.cub": "CUB is not emulated: CuPy's own kernels reduce",
}


class Unavailable(Exception):
    """Why there is no pretend GPU in this process, and what to do about it."""


# ----------------------------------------------------------------------------------------------------------------------
# Where it lies
# ----------------------------------------------------------------------------------------------------------------------


def find() -> Path | None:
    """The folder of a finished build of these sources for this Python; None if there is none."""
    folder = Path(os.environ.get("PRETEND_GPU_DIR") or build.default_folder())
    return folder.resolve() if build.built_key(folder) == build.key() else None


def folder() -> Path:
    """As `find`; `Unavailable` if there is none."""
    found = find()
    if found is None:
        where = os.environ.get("PRETEND_GPU_DIR", "")
        raise Unavailable(f"the pretend GPU is not built: python tests/pretend_gpu/build.py {where}".rstrip())
    return found


def wheels() -> Path:
    """The folder of the wheels as published: before all else on the path, it is CuPy on a machine without a driver."""
    return folder() / "wheels"


def published() -> dict[str, str]:
    """The environment of a process that is to import CuPy as published, with NVRTC and the headers but no device."""
    cuda = wheels() / "nvidia/cu13"
    return os.environ | {
        "PYTHONPATH": str(wheels()),
        "LD_LIBRARY_PATH": str(cuda / "lib"),
        "CUDA_PATH": str(cuda),
        "CUDA_VISIBLE_DEVICES": "",  # where there is a real one
    }


# ----------------------------------------------------------------------------------------------------------------------
# Loading it
# ----------------------------------------------------------------------------------------------------------------------

_libcuda: ctypes.CDLL | None = None


def load() -> ModuleType:
    """The module `cupy` on the pretend device; the same one again when called again.

    Raises `Unavailable`, before anything is imported, where the device is not built or does not fit this process.
    """
    global _libcuda
    if _libcuda is None:
        root = folder()
        check_process()
        from . import device

        _libcuda = device.load(root)
    import cupy

    return cupy


def check_process() -> None:
    """Raise `Unavailable` if this process cannot have the device."""
    low, high = build.NUMPY
    version = tuple(int(part) for part in np.__version__.split(".")[:2])
    if not low <= version < high:
        raise Unavailable(f"CuPy {build.CUPY} does not fit NumPy {np.__version__}: use one below {high[0]}.{high[1]}")
    if "cupy" in sys.modules:
        raise Unavailable(f"another CuPy was imported before: {sys.modules['cupy'].__file__}")
    if shutil.which("g++") is None:
        raise Unavailable("no C++ compiler for the kernels: install g++ 12 or newer")


def _library() -> ctypes.CDLL:
    load()
    assert _libcuda is not None
    return _libcuda


# ----------------------------------------------------------------------------------------------------------------------
# What the device was asked for
# ----------------------------------------------------------------------------------------------------------------------

# In the order of the enumeration in cuda.cpp.
KINDS = ("h2d", "d2h", "d2d", "h2h", "launch", "sync", "event_sync", "malloc", "free", "memset")


class Event(NamedTuple):
    """One thing that the device was asked for."""

    kind: str  # one of KINDS
    what: str  # the kernel, or the function of CUDA
    size: int  # bytes; or the threads of a kernel, or the multiplications of a product


_HOOK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_longlong)
_recordings: list[list[Event]] = []


@_HOOK
def _hook(kind: int, what: bytes, size: int) -> None:
    event = Event(KINDS[kind], what.decode(), size)
    for recording in _recordings:
        recording.append(event)


@contextlib.contextmanager
def record() -> Iterator[list[Event]]:
    """The list to which the device's events go inside the block, in order."""
    hook = ctypes.c_void_p.in_dll(_library(), "pretend_hook")
    hook.value = ctypes.cast(_hook, ctypes.c_void_p).value
    events: list[Event] = []
    _recordings.append(events)
    try:
        yield events
    finally:
        _recordings[:] = [recording for recording in _recordings if recording is not events]
        if not _recordings:
            hook.value = None


def counts(events: Iterable[Event] | None = None) -> Mapping[str, int]:
    """How many events of each kind there are; without a list, since the process began."""
    if events is not None:
        return collections.Counter(event.kind for event in events)
    totals = (ctypes.c_longlong * len(KINDS)).in_dll(_library(), "pretend_counts")
    return collections.Counter(dict(zip(KINDS, totals, strict=True)))
