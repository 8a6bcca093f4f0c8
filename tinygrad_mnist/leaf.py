"""Leaves: where the graph ends at a Tensor with `requires_grad`, and where its gradient is kept."""

from __future__ import annotations

from typing import Any

from . import arrays
from .arrays import Array
from .modes import current


class Leaf:
    """Where the graph ends at a Tensor with `requires_grad`; holds the gradient. It does not refer to the Tensor."""

    __slots__ = ("_grad", "dtype", "name", "shape")
    rank = 0
    parents: tuple[()] = ()

    def __init__(self, data: Array, name: str | None = None) -> None:
        self._grad: Any = None  # an array, None, or a Pending
        self.name = name
        self.shape, self.dtype = data.shape, data.dtype

    @property
    def grad(self) -> Array | None:
        found = self._grad
        if type(found) is Pending:
            found = self._grad = arrays.replica(found.buffer)
        recorder = current.get().recorder
        return found if recorder is None else recorder.grad_of(self, found)

    @grad.setter
    def grad(self, value: Array | None) -> None:
        recorder = current.get().recorder
        if recorder is not None:
            recorder.sets_grad(self, self._grad)
        self._grad = value

    def set_quietly(self, value: Any) -> None:
        """What a replay does: no capture is told."""
        self._grad = value


class Pending:
    """A gradient that a replay left in its buffer: copied when somebody asks for it, before the next replay."""

    __slots__ = ("buffer",)

    def __init__(self, buffer: Array) -> None:
        self.buffer = buffer
