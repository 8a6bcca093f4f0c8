"""Watching a user's function while it runs: which frames are the user's, and what their variables hold in the end."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

FOREIGN = {__name__.partition(".")[0], "numpy", *sys.stdlib_module_names} - {"__main__"}
"""Modules that are not the user's; the standard library's come with imports and finalizers, at any time."""
NOTEBOOKS = f"{__name__.partition('.')[0]}.notebooks."
"""What their authors wrote is a user's, although it lies in this package."""


def is_foreign(frame: Any) -> bool:
    name = frame.f_globals.get("__name__", "")
    return name.partition(".")[0] in FOREIGN and not name.startswith(NOTEBOOKS)


@contextmanager
def tracing(called: Callable[[Any, str, Any], Any]) -> Iterator[None]:
    """`called` is the trace function (see `sys.settrace`) inside; a debugger's comes back afterwards."""
    before = sys.gettrace()
    sys.settrace(called)
    try:
        yield
    finally:
        sys.settrace(before)


def call_with_locals(f: Callable[..., Any], *args: Any) -> tuple[Any, dict[str, Any]]:
    """(f(*args), what the local variables of f held when it returned)."""
    code = getattr(inspect.unwrap(f), "__code__", None)
    found: dict[str, Any] = {}

    def local(frame: Any, event: str, arg: Any) -> Any:
        if event == "return":
            found.update(frame.f_locals)
        return local

    def called(frame: Any, event: str, arg: Any) -> Any:
        nonlocal code
        code = code or frame.f_code  # of a partial function, or of an object: what it calls first
        if frame.f_code is not code:
            return None
        frame.f_trace_lines = False
        return local

    with tracing(called):
        value = f(*args)
    return value, found
