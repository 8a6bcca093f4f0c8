"""What recording does at present: `no_grad`, `enable_grad`, `detect_anomaly`. Each thread and task has its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ContextDecorator
from contextvars import ContextVar, Token
from typing import Any, NamedTuple, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


class Mode(NamedTuple):
    """What `apply` does beside computing; one context variable, so that a call reads it once."""

    grad: bool = True
    anomaly: bool = False
    recorder: Any = None  # of `capture`, while a function is captured


NORMAL = Mode()
current: ContextVar[Mode] = ContextVar("tinygrad_mnist.mode", default=NORMAL)


class _Switch(ContextDecorator):
    """A change of mode as a context manager and a decorator; every entry is undone on exit, whatever happens."""

    def __init__(self, **change: Any) -> None:
        self._change = change
        self._tokens: list[Token[Mode]] = []

    def __call__(self, f: Function) -> Function:
        if inspect.isgeneratorfunction(f) or inspect.iscoroutinefunction(f):
            raise TypeError(f"{f.__name__} would run outside its decorator: write a with block inside it instead")
        return super().__call__(f)

    def _recreate_cm(self) -> _Switch:  # one for each call: threads may share a function
        return _Switch(**self._change)

    def __enter__(self) -> None:
        before = current.get()
        if before.recorder is not None and self._change.get("anomaly"):
            before.recorder.refuse("detect_anomaly() was entered", "put it around the call, which then runs uncompiled")
        mode = before._replace(**self._change)
        self._tokens.append(current.set(NORMAL if mode == NORMAL else mode))

    def __exit__(self, *exc: object) -> None:
        current.reset(self._tokens.pop())


def no_grad() -> _Switch:
    """Record nothing inside: `with no_grad(): W -= eta * W.grad`, or `@no_grad()` on a function."""
    return _Switch(grad=False)


def enable_grad() -> _Switch:
    """Record again inside a `no_grad` block."""
    return _Switch(grad=True)


def recording(recorder: Any) -> _Switch:
    """Let a recorder take down what is computed inside: what `compile` does to capture a function."""
    return _Switch(recorder=recorder)


def reads(what: Any, *names: str) -> None:
    """Tell a capture, if there is one, that attributes of an object decide what is computed."""
    recorder = current.get().recorder
    if recorder is not None:
        for name in names:
            recorder.reads(what, name, getattr(what, name))


def lifted(a: Any) -> Any:
    """An array that lasts, as what is computed now may use and change it: in a capture, its symbol."""
    recorder = current.get().recorder
    return a if recorder is None else recorder.lift(a)


def detect_anomaly() -> _Switch:
    """Find where the first NaN or infinity comes from, and raw writes into arrays that backward needs.

    Inside, every op checks its result, forward and backward; the first value that is not finite raises
    `FloatingPointError` with the op's name, the shapes and the source line that called it. Arrays saved for backward
    are guarded by a checksum. Slow: for finding a mistake, not for training.
    """
    return _Switch(anomaly=True)
