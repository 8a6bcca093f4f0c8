"""Import CuPy so that it finds the pretend device, and replace what lies outside CUDA's programming interface."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import CANNOT, KINDS, compiler

# NVIDIA's libraries that CuPy may load. NVRTC and the version of cudart are the real ones, from the wheels.
LIBRARIES = {"cudart", "nvrtc", "cublas", "cublasLt"}
REASONS = {"curand": "cupy.random", "cufft": "cupy.fft", "cusolver": "cupy.linalg", "cusparse": "cupyx.scipy.sparse"}


def load(root: Path) -> ctypes.CDLL:
    """Import CuPy from a build; gives the device's libcuda."""
    mode = os.environ.get("PRETEND_GPU_MODE", "cpu")
    if mode not in ("cpu", "null"):
        raise ValueError(f"PRETEND_GPU_MODE is {mode!r}: it must be 'cpu' or 'null'")
    pretend, wheels = root / "pretend", root / "wheels"
    sys.path[:0] = [str(pretend), str(wheels)]
    # Once loaded, a library is found under its name, whatever else is installed. Kernels and cuBLAS look into libcuda.
    libcuda = ctypes.CDLL(str(pretend / "libcuda.so.1"), ctypes.RTLD_GLOBAL)
    for library in ("libcublasLt.so.13", "libcublas.so.13"):
        ctypes.CDLL(str(pretend / library), ctypes.RTLD_GLOBAL)
    for library in ("libnvrtc.so.13", "libcudart.so.13"):
        ctypes.CDLL(str(wheels / "nvidia/cu13/lib" / library))

    with environment(CUDA_PATH=str(wheels / "nvidia/cu13"), CUPY_CACHE_DIR=str(root / "kernels" / mode)):
        import cupy
        from cupy._core import core

        include = core.assemble_cupy_compiler_options(())  # looks for the headers, once for all
    # CUB comes compiled, with a CUDA runtime of its own that knows no such device.
    cupy._core.set_reduction_accelerators([])
    cupy._core.set_routine_accelerators([])
    refuse(cupy)
    if mode == "cpu":
        replace_compiler(include, pretend)
    replace_thrust(libcuda)
    poison()
    return libcuda


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Environment variables inside the block: CuPy reads them while it is imported, subprocesses shall not."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# ----------------------------------------------------------------------------------------------------------------------
# What is not there
# ----------------------------------------------------------------------------------------------------------------------


def refuse(cupy: Any) -> None:
    """Make the rest of NVIDIA's libraries missing, even where they are installed: they would look for a real device."""
    from cuda import pathfinder

    find = pathfinder.load_nvidia_dynamic_lib

    def load_nvidia_dynamic_lib(name: str) -> Any:
        if name not in LIBRARIES:
            reason = CANNOT[REASONS[name]] if name in REASONS else f"{name} is not emulated"
            raise pathfinder.DynamicLibNotFoundError(f"the pretend GPU: {reason}")  # CuPy makes it an ImportError
        return find(name)

    pathfinder.load_nvidia_dynamic_lib = load_nvidia_dynamic_lib

    # These ask for no library: device code is compiled into them, and would leave their results as memory was.
    def refusing(name: str) -> Callable[..., None]:
        def refuse(*_: Any, **__: Any) -> None:
            raise ImportError(f"the pretend GPU: {CANNOT[name]}")

        return refuse

    cupy.random._bit_generator._cuRANDGenerator.__init__ = refusing("cupy.random")
    for function in ("device_reduce", "device_segmented_reduce", "device_scan", "device_histogram",
                     "cub_reduction", "cub_scan", "cub_histogram"):
        setattr(cupy.cuda.cub, function, refusing("cupy.cuda.cub"))


# ----------------------------------------------------------------------------------------------------------------------
# What is done in another way
# ----------------------------------------------------------------------------------------------------------------------


def replace_compiler(include: tuple[str, ...], pretend: Path) -> None:
    """Have g++ compile what CuPy gives to NVRTC. CuPy keeps the results in its own cache of kernels."""
    from cupy.cuda import compiler as cupy_compiler

    def compile_(
        source: str, options: tuple[str, ...] = (), arch: Any = None, filename: str = "kern.cu",
        name_expressions: Any = None, *_: Any,
    ) -> tuple[bytes, dict[str, str] | None]:
        own = [option for option in options if option.startswith(("-D", "-I")) and option not in include]
        translated, mapping = compiler.translate(source, tuple(name_expressions or ()))
        try:
            return compiler.compile_kernel(translated, own, pretend), mapping or None
        except ValueError as error:
            raise cupy_compiler.CompileException(str(error), source, filename, options, "g++") from None

    cupy_compiler._compile_using_nvrtc_no_warning = compile_


def replace_thrust(libcuda: ctypes.CDLL) -> None:
    """Sort on the host. CuPy does all but the sorting proper in its own code."""
    from cupy.cuda import thrust

    libcuda.pretend_on_device.restype = ctypes.c_bool

    def view(address: int, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        if size == 0:
            return np.empty(shape, dtype)
        assert libcuda.pretend_on_device(ctypes.c_void_p(address), ctypes.c_size_t(size))
        return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)

    def count(what: str, shape: tuple[int, ...]) -> None:
        libcuda.pretend_event(KINDS.index("launch"), f"thrust {what}".encode(), ctypes.c_longlong(int(np.prod(shape))))

    def sort(dtype: Any, data: int, _: int, shape: tuple[int, ...]) -> None:
        view(data, dtype, shape).sort(axis=-1, kind="stable")
        count("sort", shape)

    def argsort(dtype: Any, indices: int, data: int, _: int, shape: tuple[int, ...]) -> None:
        view(indices, np.intp, shape)[...] = np.argsort(view(data, dtype, shape), axis=-1, kind="stable")
        count("argsort", shape)

    def lexsort(dtype: Any, indices: int, keys: int, k: int, n: int) -> None:
        view(indices, np.intp, (n,))[...] = np.lexsort(view(keys, dtype, (k, n)))
        count("lexsort", (k, n))

    for function in (sort, argsort, lexsort):
        setattr(thrust, function.__name__, function)


def poison() -> None:
    """Fill what CuPy's memory pool hands out again, as cuda.cpp fills what is new: nothing may count on zeros.

    CuPy's hooks belong to a thread: in others, only new memory is filled.
    """
    from cupy.cuda import MemoryHook

    class Poison(MemoryHook):
        name = "pretend GPU"

        def malloc_postprocess(self, **block: Any) -> None:
            if block["mem_ptr"]:  # 0 if there was no memory left
                ctypes.memset(block["mem_ptr"], 0xCD, block["mem_size"])

    Poison().__enter__()
