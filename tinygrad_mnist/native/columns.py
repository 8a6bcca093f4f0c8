"""Samples as columns: a batch along the second axis, as in `np.dot(W.T, x.T)`, is computed with it along the first.

Each value of shape (k, batch) that comes from the transpose of an argument is replaced by its own transpose, with a row
for each sample, and what is computed of it by what that does to rows: A @ x becomes x.T @ A.T, a sum over the first
axis one over the second. A program in which that does not work out stays as it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..program import Instruction, Program, Value
from .batch import ELEMENTS, REDUCTIONS, VIEWS, axes_of, gathers


class _Odd(Exception):
    """There is something that this module does not know."""


def straightened(program: Program, size: int) -> Program:
    """The program with samples as rows."""
    try:
        return _Columns(program, size).program
    except _Odd:
        return program


class _Columns:
    def __init__(self, program: Program, size: int) -> None:
        self.size = size
        self.rows = {v for v in program.inputs if v.shape and v.shape[0] == size}  # samples along the first axis
        self.straight: dict[Value, Value] = {}  # values with samples along the second axis, and their transposes
        self.same: dict[Value, Value] = {}  # transposes of the latter, and what stands for them
        self.made: list[Instruction] = []
        for i in program.instructions:
            self._instruction(i)
        wanted = [*program.outputs, *(v for _, v in program.grads)]
        if any(v in self.straight for v in wanted):
            raise _Odd
        outputs = [self._now(v) for v in program.outputs]
        grads = [(leaf, self._now(v)) for leaf, v in program.grads]
        kept = self._used({*outputs, *(v for _, v in grads)})
        self.program = Program(program.inputs, kept, outputs, grads, program.name) if self.straight else program

    def _used(self, needed: set[Value]) -> list[Instruction]:
        """The instructions whose results are read."""
        kept = []
        for i in reversed(self.made):
            if i.writes or not i.outs or i.op in ("random", "advance", "call") or not needed.isdisjoint(i.outs):
                kept.append(i)
                needed.update(i.operands())
        return kept[::-1]

    def _now(self, ref: Any) -> Any:
        if isinstance(ref, tuple):
            return tuple(map(self._now, ref))
        return self.same.get(ref, ref) if isinstance(ref, Value) else ref

    def _make(
        self, op: str, args: tuple[Any, ...], shape: tuple[int, ...], like: Instruction, /, **params: Any
    ) -> Value:
        """The result of a new instruction in place of `like`."""
        example = np.empty(args[0].shape if op == "broadcast_to" else shape, like.out.dtype)
        root = args[0].root if op in VIEWS else None
        out = Value("result", np.broadcast_to(example, shape), root=root)
        self.made.append(Instruction(op, args, params, (out,), (), like.site))
        return out

    def _instruction(self, i: Instruction) -> None:
        args = self._now(i.args)
        if any(v in self.straight for v in Instruction(i.op, args).operands()):
            if i.writes or len(i.outs) != 1:
                raise _Odd
            self._of_columns(i, args)
            return
        if i.op in VIEWS and args[0] in self.rows:
            if i.op == "transpose" and i.params["axes"] == (1, 0):
                self.straight[i.out] = args[0]
                return
            if i.op == "reshape" and i.out.shape == (1, self.size) and args[0].shape == (self.size,):
                self._column(i.out, self._make("reshape", args, (self.size, 1), i, shape=(self.size, 1)))
                return
        self.made.append(Instruction(i.op, args, i.params, i.outs, self._now(i.writes), i.site))
        if any(v in self.rows for v in self.made[-1].operands()) and self._is_of_rows(self.made[-1]):
            self.rows.update(i.outs)

    def _is_of_rows(self, i: Instruction) -> bool:
        known = i.op in ELEMENTS or (i.op in VIEWS and i.op != "transpose") or gathers(i)
        kept = i.op in REDUCTIONS and 0 not in axes_of(i)
        return bool(i.outs) and i.out.shape[:1] == (self.size,) and (known or kept or i.op == "matmul")

    def _column(self, v: Value, straight: Value) -> None:
        self.straight[v] = straight
        self.rows.add(straight)

    def _of_columns(self, i: Instruction, args: tuple[Any, ...]) -> None:
        """What an instruction does whose operands have samples as columns."""
        a, out = args[0], i.out
        if i.op == "transpose" and i.params["axes"] == (1, 0):
            self.same[out] = self.straight[a]
        elif i.op in ELEMENTS and len(out.shape) == 2:
            turned = tuple(self._operand(v, i) for v in args)
            self._column(out, self._make(i.op, turned, out.shape[::-1], i, **i.params))
        elif i.op == "matmul":
            self._product(i, *args)
        elif i.op in REDUCTIONS:
            self._reduction(i, a)
        elif i.op == "broadcast_to" and out.shape[1:] == a.shape[1:]:
            shape = out.shape[::-1]
            self._column(out, self._make("broadcast_to", (self.straight[a],), shape, i, shape=shape))
        elif i.op == "reshape" and a.shape == (1, self.size) and out.shape == (self.size,):
            self.same[out] = self._make("reshape", (self.straight[a],), out.shape, i, shape=out.shape)
            self.rows.add(self.same[out])
        else:
            raise _Odd

    def _operand(self, v: Any, i: Instruction) -> Any:
        """The transpose of an operand of an elementwise instruction."""
        if not isinstance(v, Value) or v.dtype is None or v.shape in ((), (1,), (1, 1)):
            return v
        if v in self.straight:
            return self.straight[v]
        if v in self.rows and v.shape == (self.size,):
            return self._make("reshape", (v,), (self.size, 1), i, shape=(self.size, 1))
        if v.kind == "constant" and len(v.shape) == 2:
            return Value("constant", v.array.T, array=v.array.T)
        if len(v.shape) == 2 and v.shape[1] == 1:
            return self._turned(v, i)
        raise _Odd

    def _turned(self, v: Value, i: Instruction) -> Value:
        out = Value("result", np.empty(v.shape, v.dtype).T, root=v.root)
        self.made.append(Instruction("transpose", (v,), {"axes": (1, 0)}, (out,), (), i.site))
        return out

    def _product(self, i: Instruction, a: Value, b: Value) -> None:
        if b in self.straight and a not in self.straight and a not in self.rows:
            if len(a.shape) == 1:
                self.same[i.out] = self._make("matmul", (self.straight[b], a), i.out.shape, i)
                self.rows.add(self.same[i.out])
            elif len(a.shape) == 2:
                args = self.straight[b], self._turned(a, i)
                self._column(i.out, self._make("matmul", args, i.out.shape[::-1], i))
        elif a in self.straight and b in self.rows:
            self.made.append(Instruction("matmul", (self._turned(self.straight[a], i), b), {}, i.outs, (), i.site))
        else:
            raise _Odd

    def _reduction(self, i: Instruction, a: Value) -> None:
        """A reduction over the other axes; one to a number is as before."""
        axes = axes_of(i)
        params = {**i.params, "axis": tuple(1 - k for k in axes) if len(axes) > 1 else 1 - axes[0]}
        i = Instruction(i.op, (self.straight[a], *i.args[1:]), params, i.outs, (), i.site)
        self.made.append(i)
        if axes == (0,):
            self.rows.update(i.outs)
