"""What passes between host and device, recorded: transfers, waits, and NumPy's functions on device arrays."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from types import FrameType
from typing import NamedTuple

import numpy as np


class HostSync(RuntimeError):
    """The host would wait for the device inside `no_sync()`."""


class Event(NamedTuple):
    """A transfer (h2d, d2h), a wait (sync), or a NumPy function on a device array (numpy_dispatch).

    A download makes the host wait too, unless it was asked not to block. CuPy accepts NumPy's functions silently.
    """

    kind: str
    what: str
    nbytes: int
    where: str  # "file:line" of the caller

    def __str__(self) -> str:
        return f"{self.where}: {self.what} ({self.kind}, {self.nbytes} bytes)"


class Recorder:
    """The events so far."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.watchers: list[list[Event]] = [self.events]
        self.forbidden = 0  # how many `no_sync` are open

    def clear(self) -> None:
        """Forget the events."""
        self.events.clear()

    def count(self, *kinds: str) -> int:
        """How many events there are, of these kinds or of all."""
        return sum(not kinds or event.kind in kinds for event in self.events)

    def add(self, kind: str, what: str, nbytes: int = 0, waits: bool | None = None) -> None:
        """Record an event. `waits`: whether the host waits for the device; by default it does, for d2h and sync."""
        frame = _caller()
        where = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
        if self.forbidden and (kind in ("d2h", "sync") if waits is None else waits):
            raise HostSync(f"{where}: {what} makes the host wait for the device; keep the value there or read it later")
        event = Event(kind, what, nbytes, where)
        for events in self.watchers:
            events.append(event)

    def wait(self, what: str, times: int = 1) -> None:
        """Record that the host reads single values, such as a size, on which what it does next depends."""
        for _ in range(times):
            self.add("d2h", what, 8)


recorder = Recorder()
_HERE = os.path.dirname(__file__) + os.sep
_SKIPPED = (_HERE, os.path.dirname(np.__file__) + os.sep)


def _caller() -> FrameType:
    """The innermost frame that is neither of the double nor of NumPy."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_SKIPPED):
        frame = frame.f_back
    return frame


def note_dispatch(function: str) -> None:
    """Record that NumPy handed a call over to the method that calls this, unless the double itself asked NumPy."""
    if not sys._getframe(2).f_code.co_filename.startswith(_HERE):
        recorder.add("numpy_dispatch", f"np.{function}")


@contextlib.contextmanager
def no_sync() -> Iterator[None]:
    """A context in which the host must not wait for the device: HostSync for what would make it wait."""
    recorder.forbidden += 1
    try:
        yield
    finally:
        recorder.forbidden -= 1


@contextlib.contextmanager
def recording() -> Iterator[list[Event]]:
    """A context that gives the list of the events inside it."""
    events: list[Event] = []
    recorder.watchers.append(events)
    try:
        yield events
    finally:
        recorder.watchers = [watcher for watcher in recorder.watchers if watcher is not events]
