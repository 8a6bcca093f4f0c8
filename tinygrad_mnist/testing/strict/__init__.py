"""A strict double of CuPy for tests: NumPy computes, but every call obeys CuPy's rules, and every transfer is recorded.

`strict.xp` stands in for the module `cupy`. It has exactly the names of CuPy 14 and refuses what CuPy refuses, with the
same class of exception: other keywords, host arrays among device arrays, implicit conversion (`np.asarray(x)`). Results
have CuPy's dtypes; full reductions and `x[0, 0]` are 0-d device arrays that can be written to. Objects of other classes
meet device arrays as they do in CuPy: `x * t` asks `t.__array_ufunc__`, `cupy.maximum(x, t)` raises.

    strict.recorder.clear()
    with strict.no_sync():                     # HostSync names the operation and the line that made the host wait
        loss = step(parameters, x, y)
    assert strict.recorder.count("h2d") == 0   # events: (kind, what, bytes, "file:line")

Where CuPy is silently wrong the double raises: for an index that is out of range (CuPy wraps it), a write into an array
that was stretched by broadcasting, a kernel that reads what another of its threads writes. What was never written, as
by `xp.empty`, is NaN. What CuPy has and the double has not raises `Unmodelled` when it is called; so does `xp.random`,
whose numbers are not NumPy's.

The names and signatures come from `../cupy_api.json`, which `../cupy_api.py` writes from an installed CuPy.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np

from . import functions
from .array import API, UNMODELLED, library, ndarray, unmodelled
from .device import CompileException, OutOfMemoryError, Unmodelled, cuda, cupyx, memory_limit
from .kernels import ElementwiseKernel
from .record import Event, HostSync, Recorder, no_sync, recorder, recording
from .ufuncs import ufunc

__all__ = [
    "UNMODELLED", "CompileException", "Event", "HostSync", "OutOfMemoryError", "Recorder", "Unmodelled", "cupyx",
    "memory_limit", "ndarray", "no_sync", "recorder", "recording", "xp",
]  # fmt: skip


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        known = " in the strict double" if name in API["others"] else f" (CuPy {API['version']})"
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}{known}")


def _module(name: str, members: dict[str, Any]) -> Any:
    module = _Module(name)
    vars(module).update(members)
    return module


def _submodule(name: str, own: dict[str, Any], **reason: str) -> Any:
    signatures = API[name].items()
    return _module(
        f"cupy.{name}", {f: own.get(f) or unmodelled(f"{name}.{f}", signature, **reason) for f, signature in signatures}
    )


def _namespace() -> Any:
    library.update({name: float(value) for name, value in API["constants"].items() if value != "None"})
    library.update(
        newaxis=None,
        ndarray=ndarray,
        ufunc=ufunc,
        ElementwiseKernel=ElementwiseKernel,
        cuda=cuda,
        exceptions=np.exceptions,
        linalg=_submodule("linalg", functions.linalg),
        fft=_submodule("fft", {}),
        random=_submodule("random", {}, reason="its numbers are not NumPy's: draw on the host and upload"),
    )
    for name, of_numpy in API["types"].items():
        found = library.get(name) or getattr(np, of_numpy, None) or getattr(np.exceptions, of_numpy, None)
        library[name] = found or unmodelled(name, "(*args, **kwargs)")
    module = _module("cupy", {name: value for name, value in library.items() if not name.startswith("_")})
    library["module"] = module
    return module


xp: Any = _namespace()
