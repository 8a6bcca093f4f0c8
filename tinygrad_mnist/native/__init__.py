"""Native loops: a program as one compiled function, which runs many steps without Python between them.

    Program -> columns (samples as rows) -> Batch (roles) -> Plan (units, phases) -> Text -> cache -> Loop

`Text` writes the function, with `elements`, `products` and the `places` of values; `cache` has Numba compile it, and a
`Loop` runs it. The products of large matrices are those of NumPy's own BLAS (`blas`).
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..program import Instruction, Program, Value
from . import blas, cache, preamble, units
from .batch import Unsupported, gathers, holds, indices
from .text import Text

__all__ = ["ROWS", "Loop", "Unsupported", "missing", "unsupported", "warn_once"]

Array = Any

ROWS = 2048
"""From this batch on, a single call is worth native code: blocks of rows stay in the cache."""
LONGEST = 250
"""Instructions of a program that Numba compiles in seconds; one of a hundred layers would take it minutes."""
DRAWS = 1 << 22
"""Random numbers that are drawn at once: 16 MB."""


@functools.cache
def missing() -> str | None:
    """Why there are no native loops here, or None."""
    if importlib.util.find_spec("numba") is None:
        return "Numba is not installed: pip install 'tinygrad-mnist[fast]'"
    if blas.find() is None:
        return "NumPy's BLAS has no cblas_sgemm that could be called"
    return None


@functools.cache
def warn_once(problem: str) -> None:
    """Say that native loops were asked for and why there are none."""
    warnings.warn(f"compile: backend='numba' is not possible, NumPy runs instead: {problem}", stacklevel=4)


def unsupported(program: Program) -> str | None:
    """Why a program has no native loop, or None."""
    if len(program.instructions) > LONGEST:
        return f"{len(program.instructions)} instructions would take long to compile"
    for i in program.instructions:
        if i.op == "call" and "due" not in i.params:
            return f"{i.site.op or 'a call'} at {i.site.line} runs on the host at every step"
    try:
        _checks(Text(program, _batch(program), gather=True, grads=False).program)
    except Unsupported as reason:
        return str(reason)
    except Exception as error:  # a mistake of this package, which must not stop a program that NumPy can run
        return f"the text cannot be written: {type(error).__name__}: {error}"
    return None


def _batch(program: Program) -> int:
    return next((v.shape[0] for v in program.inputs if v.shape), 1)


class _Check:
    """Of an index, or of labels: that all of it is in range, which the steps take for granted."""

    def __init__(self, i: Instruction, v: Value, source: Value, size: int, axis: int) -> None:
        self.i, self.source, self.size, self.axis, self.negative = i, source, size, axis, i.op != "check_labels"

    def __call__(self, parts: Sequence[Array], order: Array | None) -> None:
        """Raise IndexError. All rows are looked at first, those of `order` where that finds something."""
        given = self.source.kind == "input"
        array = parts[self.source.place] if given else self.source.array
        low = -self.size if self.negative else 0
        if low <= array.min() and array.max() < self.size:
            return
        if given and order is not None:
            array = array[order]
        if not self.negative:
            self.i.params["call"](array, self.size)
            return
        bad = array[(array < low) | (array >= self.size)]
        if bad.size:
            where = f"axis {self.axis} with size {self.size}, at {self.i.site.line}"
            raise IndexError(f"index {bad[0]} is out of bounds for {where}")


def _checks(program: Program) -> list[_Check]:
    made_by = {v: i for i in program.instructions for v in i.outs}
    written = program.written()
    found = []
    for i in program.instructions:
        if i.op == "check_labels":
            found.append(_Check(i, i.args[0], _source(i, i.args[0], made_by, written), i.params["classes"], 0))
        elif gathers(i):
            shape = i.args[0].shape if i.op == "getitem" else i.params["shape"]
            for axis, v in enumerate(indices(i)):
                found.append(_Check(i, v, _source(i, v, made_by, written), shape[axis], axis))
    return found


def _source(i: Instruction, v: Value, made_by: dict[Value, Instruction], written: set[Value]) -> Value:
    """The argument, or the array that stays the same, whose elements are those of `v`."""
    while (maker := made_by.get(v)) is not None:
        a = maker.args[0] if maker.args else None
        if maker.op not in ("reshape", "copy", "astype") or not isinstance(a, Value) or a.dtype.kind not in "iu":
            break
        v = a
    if v.kind == "input" or v.kind == "constant" or (v.kind == "memory" and v.root not in written):
        return v
    raise Unsupported(f"the labels or the index at {i.site.line} are computed")


class Loop:
    """A program as native code: `loop(inputs)` runs it once, `loop.scan(parts, order)` once for each row of `order`.

    Unsupported where there is none after all, because Numba does not work, or refuses the text.
    """

    def __init__(self, program: Program, *, grads: bool) -> None:
        self.program = program
        self.batch = _batch(program)
        text = self.text = Text(program, self.batch, gather=not grads, grads=grads)
        gemm = blas.find()
        assert gemm is not None
        self.source = preamble.source(text.text, text.types, text.exp, gemm.integer)
        try:
            self._run = cache.function(self.source)
        except Exception as error:  # Numba has many, and an installation may be broken in as many ways
            raise Unsupported(f"Numba failed: {type(error).__name__}: {error!s:.200}") from error
        self._constants = np.array([float(v.array.flat[0]) for v in text.places.constants], np.float64)
        self._given = [None if a.array is None else _flat(a.array) for a in text.places.arguments]
        self._checks = _checks(text.program)
        self._calls = [i for i in program.instructions if i.op == "call"]
        self._advances = [i for i in program.instructions if i.op == "advance"]
        self._random = [i for i in program.instructions if i.op == "random"]
        self._memory = [v.root.array for v in text.plan.written if v.kind == "memory"]

    def hindrance(self, parts: Sequence[Array]) -> str | None:
        """Why the loop cannot run with these arguments now, or None."""
        for v, what in self.text.batch.assumed.items():
            if not holds(v.array, what):
                return f"an array of shape {v.shape} does not hold {what} any more"
        if any(np.may_share_memory(a, m) for a in parts for m in self._memory):
            return "an argument lies in memory that the steps change"
        return None

    def __call__(self, inputs: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """(outputs, gradients) of one call."""
        outputs = self._pieces(inputs, np.empty((1, self.batch), np.int64), None)
        first = [a[0] for a in outputs]
        count = len(self.program.outputs)
        return first[:count], first[count:]

    def scan(self, parts: Sequence[Array], order: Array) -> list[Array]:
        """The outputs of many steps, stacked."""
        order = np.ascontiguousarray(order, np.int64)
        return self._pieces(parts, order, order)

    def _pieces(self, parts: Sequence[Array], order: Array, rows: Array | None) -> list[Array]:
        """As many steps at a time as may go by before the host has something to do."""
        for check in self._checks:
            check(parts, rows)
        parts = [_flat(a) for a in parts]
        width = sum(map(self.text.places.width, self.text.places.draws)) * order.shape[1]
        largest = max(DRAWS // width, 1) if width else len(order)
        pieces = []
        start = 0
        while start < len(order):
            stop = min(start + min([largest, *(i.params["due"]() for i in self._calls)]), len(order))
            pieces.append(self._steps(parts, order[start:stop], width))
            for i in self._calls:
                i.params["call"](*(v.array for v in i.args))
            start = stop
        return [np.concatenate(found) if len(found) > 1 else found[0] for found in zip(*pieces, strict=True)]

    def _steps(self, parts: Sequence[Array], order: Array, width: int) -> list[Array]:
        steps, n = order.shape
        outputs: dict[Value, Array] = {}
        arguments: list[Array] = []
        for (kind, v, _), given in zip(self.text.places.arguments, self._given, strict=True):
            if kind == "output":
                shape = (n, *v.shape[1:]) if self.text.batch.by_row(v) else v.shape
                outputs[v] = np.empty((steps, *shape), v.dtype)
            arguments.append(parts[v.place] if kind == "input" else outputs[v].reshape(-1) if given is None else given)
        rows = [[x for i in self._advances for x in i.params["call"]()] for _ in range(steps)]
        numbers = np.array(rows, np.float64) if self.text.places.numbers else np.empty((steps, 1))
        draws = np.empty(1, np.float32)
        if width:
            draws = self._random[0].params["rng"].random(steps * width, np.float32)
        buffers = [b.make(min(n, units.BLOCK)) for b in self.text.places.buffers]
        self._run(steps, n, order, numbers, self._constants, draws, *arguments, *buffers)
        return [outputs[v] for v in self.text.outputs]


def _flat(array: Array) -> Array:
    """An array as a loop takes it."""
    return np.require(array, requirements=["C", "A"]).reshape(-1)
