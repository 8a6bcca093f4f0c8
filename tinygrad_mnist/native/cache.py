"""Compiled loops, kept on disk from one process to the next.

A source lies in a folder of the user's cache under a name that is a hash of it, and Numba keeps the compiled code
beside it, under a key that names the processor, too. `TINYGRAD_MNIST_CACHE` names another folder. What cannot be
written goes to a temporary folder; what is damaged is made anew.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from . import blas

KEEP = 256
"""Sources that stay: with more, the oldest go, and their compiled code with them."""


@functools.cache
def function(source: str) -> Callable[..., None]:
    """The compiled loop of a source."""
    from llvmlite import binding

    gemm = blas.find()
    assert gemm is not None
    for kind, address in gemm.addresses.items():
        binding.add_symbol(f"tinygrad_mnist_{kind}gemm", address)
    name = f"loop_{hashlib.sha256(source.encode()).hexdigest()[:24]}"
    for folder in (_folder, _temporary):
        try:
            return _loaded(name, _written(folder(), name, source))
        except OSError:
            problem = True  # nothing can be written there
    assert problem
    raise OSError(f"no folder for the compiled code: {tempfile.gettempdir()} cannot be written to")


def _folder() -> Path:
    named = os.environ.get("TINYGRAD_MNIST_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinygrad_mnist"
    base.mkdir(parents=True, exist_ok=True)
    return base


@functools.cache
def _temporary() -> Path:
    """A folder of this process alone."""
    return Path(tempfile.mkdtemp(prefix="tinygrad_mnist_"))


def _written(folder: Path, name: str, source: str) -> Path:
    path = folder / f"{name}.py"
    try:
        if path.read_text() == source:  # then it stays as it is: Numba's cache looks at its time
            return path
    except (OSError, ValueError):
        pass
    _prune(folder)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(source)
    part.replace(path)
    return path


def _prune(folder: Path) -> None:
    """Make room for one more source."""
    found = sorted(folder.glob("loop_*.py"), key=_time)
    for path in found[: max(len(found) + 1 - KEEP, 0)]:
        _forget(path, with_source=True)


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another process was faster
        return 0.0


def _forget(path: Path, *, with_source: bool = False) -> None:
    """Delete what Numba has kept of a source."""
    for file in [*path.parent.glob(f"__pycache__/{path.stem}.*"), *([path] if with_source else [])]:
        file.unlink(missing_ok=True)


def _loaded(name: str, path: Path) -> Callable[..., None]:
    try:
        return _imported(name, path)
    except (OSError, ImportError):
        raise
    except Exception:  # a damaged cache raises whatever unpickling it raises; if it was something else, so does this
        _forget(path)
        return _imported(name, path)


def _imported(name: str, path: Path) -> Callable[..., None]:
    spec = importlib.util.spec_from_file_location(f"tinygrad_mnist_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Numba's cache asks for it
    spec.loader.exec_module(module)
    loop: Callable[..., None] = module.loop
    return loop
