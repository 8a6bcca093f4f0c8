"""Compiled loops, kept on disk from one process to the next.

Numba compiles a source to LLVM's language, and llvmlite makes an object file of that, which lies in a folder of the
user's cache under a name that is a hash of the source, the processor and the compiler. A process that finds it there
needs no Numba: llvmlite alone loads it in milliseconds. `TINYGRAD_MNIST_CACHE` names another folder. What cannot be
written goes to a temporary folder; what is damaged is made anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import blas

KEEP = 256
"""Object files that stay: with more, the oldest go."""
NAME = "tinygrad_mnist_loop"
"""Of the function in an object file."""
LIBRARY = ("cos", "exp", "expm1", "log", "log10", "log1p", "log2", "pow", "sin", "sqrt", "tan", "tanh")
"""Functions of C that compiled code may call. What else it might call is Numba's own, which is not there without it."""

Array = np.ndarray[Any, Any]


@functools.cache
def function(source: str) -> Callable[..., None]:
    """The compiled loop of a source. It takes integers and arrays, and releases the interpreter's lock."""
    import llvmlite
    from llvmlite import binding

    gemm = blas.find()
    assert gemm is not None
    for kind, address in gemm.addresses.items():
        binding.add_symbol(blas.NAMES[f"{kind}gemm"], address)
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    key = "\0".join([source, llvmlite.__version__, *_host()])
    name = f"loop_{hashlib.sha256(key.encode()).hexdigest()[:32]}.o"
    return _loaded(_kept(name) or _keep(name, _compiled(source)))


def _host() -> tuple[str, str, str]:
    """What a target of LLVM is: system, processor, and what this processor can do."""
    from llvmlite import binding

    return binding.get_process_triple(), binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()


def _machine() -> Any:
    from llvmlite import binding

    triple, cpu, features = _host()
    relocation = "static" if triple.startswith(("x86", "i386")) else "default"  # as Numba has it
    options = {"cpu": cpu, "features": features, "opt": 3, "reloc": relocation, "codemodel": "jitdefault", "jit": True}
    return binding.Target.from_triple(triple).create_target_machine(**options)


def _compiled(source: str) -> bytes:
    """The object file of a source."""
    from llvmlite import binding

    names: dict[str, Any] = {}
    exec(source, names)
    (text,) = names["loop"].inspect_llvm().values()
    module = binding.parse_assembly(text)
    declared = [f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")]
    known = {*blas.NAMES.values(), *LIBRARY, *(f"{name}f" for name in LIBRARY)}
    if other := set(declared) - known:
        raise NotImplementedError(f"compiled code calls {', '.join(sorted(other))}")
    (loop,) = (f for f in module.functions if not f.is_declaration and str(f.linkage) == str(binding.Linkage.external))
    loop.name = NAME
    return bytes(_machine().emit_object(module))


def _loaded(code: bytes) -> Callable[..., None]:
    from llvmlite import binding

    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), _machine())
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    call = ctypes.CFUNCTYPE(ctypes.c_int32)(engine.get_function_address(NAME))

    def loop(*arguments: int | Array) -> None:
        # Numba's functions return a status, and begin with where a result and an exception are put.
        result, problem = ctypes.c_void_p(), ctypes.c_void_p()
        rest = [
            ctypes.c_int64(a) if isinstance(a, int) else ctypes.c_void_p(a.__array_interface__["data"][0])
            for a in arguments
        ]
        status = call(ctypes.byref(result), ctypes.byref(problem), *rest)
        assert status == 0, f"a native loop ended with status {status}"

    loop.engine = engine  # type: ignore[attr-defined]  # the code lives as long as it does
    return loop


# -- files


def _folder() -> Path:
    named = os.environ.get("TINYGRAD_MNIST_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinygrad_mnist"
    base.mkdir(parents=True, exist_ok=True)
    return base


@functools.cache
def _temporary() -> Path:
    """A folder of this process alone."""
    return Path(tempfile.mkdtemp(prefix="tinygrad_mnist_"))


def _kept(name: str) -> bytes | None:
    """An object file from the disk, unless it is damaged: LLVM would end the process."""
    try:
        content = (_folder() / name).read_bytes()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if digest == hashlib.sha256(code).digest() else None


def _keep(name: str, code: bytes) -> bytes:
    """Write an object file, with a digest before it, where that is possible."""
    for folder in (_folder, _temporary):
        with contextlib.suppress(OSError):
            path = folder() / name
            _prune(path.parent)
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_bytes(hashlib.sha256(code).digest() + code)
            part.replace(path)
            break
    return code


def _prune(folder: Path) -> None:
    """Make room for one more file."""
    found = sorted(folder.glob("loop_*.o"), key=_time)
    for path in found[: max(len(found) + 1 - KEEP, 0)]:
        path.unlink(missing_ok=True)


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another process was faster
        return 0.0
