"""Writes `cupy_api.json`: the names and signatures of the installed CuPy, which the strict double obeys.

    python -m tinygrad_mnist.testing.cupy_api

needs CuPy 14 (no GPU, no driver): what is read here is what CuPy says of itself. Nothing else reads CuPy, so that the
double is the same on every machine.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SNAPSHOT = Path(__file__).with_name("cupy_api.json")
_DTYPES = "?bhilqBHILQefdFD"  # others need a further package, such as bfloat16


def snapshot() -> dict[str, Any]:
    """Sections of names: those that can be called with their signature, ufuncs with their loops (`ff->f`)."""
    import cupy

    found: dict[str, Any] = {
        "version": cupy.__version__,
        "attributes": [name for name in dir(cupy.ndarray) if not name.startswith("_")],
        "methods": {},
        "ufuncs": {},
        "scatter": [],
        "functions": {},
        "types": {},
        "constants": {},
        "others": [],
        "linalg": _signatures(cupy.linalg),
        "fft": _signatures(cupy.fft),
        "random": _signatures(cupy.random),
    }
    for name in found["attributes"]:
        method = getattr(cupy.ndarray, name)
        if callable(method):
            found["methods"][name] = _signature(method)
    for name, value in _public(cupy):
        if isinstance(value, cupy.ufunc):
            found["ufuncs"][name] = " ".join(loop for loop in value.types if {*loop} <= {*_DTYPES, "-", ">"})
            if value._scatter_op is not None:
                found["scatter"].append(name)
        elif isinstance(value, type):
            found["types"][name] = value.__name__ if value.__module__.partition(".")[0] == "numpy" else ""
        elif callable(value):
            found["functions"][name] = _signature(value)
        elif isinstance(value, float) or value is None:
            found["constants"][name] = repr(value)
        else:
            found["others"].append(name)  # modules, and objects such as `r_`
    return found


def render(found: dict[str, Any]) -> str:
    """The text of the snapshot: sorted, one entry a line, so that two versions of CuPy can be compared."""
    return json.dumps(found, indent=1, sort_keys=True) + "\n"


def _public(module: Any) -> Iterator[tuple[str, Any]]:
    return ((name, getattr(module, name)) for name in dir(module) if not name.startswith("_"))


def _signatures(module: Any) -> dict[str, str]:
    return {name: _signature(value) for name, value in _public(module) if callable(value)}


class _Text:
    """A default as `inspect` is to print it."""

    def __init__(self, default: Any) -> None:
        plain = default is None or isinstance(default, (bool, int, float, str, tuple))
        self.text = repr(default) if plain else {float: "float", int: "int"}.get(default, "...")

    def __repr__(self) -> str:
        return self.text


def _signature(function: Any) -> str:
    """`(a, axis=None, *, out=None)`: without `self`, without types, other defaults than constants as `...`."""
    if (getattr(function, "__module__", None) or "").startswith("numpy"):
        return "(*args, **kwargs)"  # NumPy's own: differs between its versions
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # compiled by Cython, which writes `sum(self, int axis=0) -> ndarray` as first line
        line = (function.__doc__ or "").partition("\n")[0]
        if "(" not in line:
            return "(*args, **kwargs)"
        arguments = re.sub(r"(^|, )(?:[a-zA-Z_]+ )+", r"\1", line[line.index("(") + 1 : line.rindex(")")])
        namespace: dict[str, Any] = {}
        exec(f"def function({arguments}): ...", namespace)
        signature = inspect.signature(namespace["function"])
    empty = inspect.Parameter.empty
    return str(
        inspect.Signature(
            [
                p.replace(annotation=empty, default=empty if p.default is empty else _Text(p.default))
                for p in signature.parameters.values()
                if p.name != "self"
            ]
        )
    )


if __name__ == "__main__":
    SNAPSHOT.write_text(render(snapshot()), encoding="utf-8")
