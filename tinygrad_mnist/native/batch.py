"""How the values of a program depend on the rows of a batch: what decides in which order a loop may compute them.

With one row nothing does. With more, a value is one of

    ROWS     the first axis is the batch, and each row depends on the same row of others
    TURNED   the transpose of such a matrix: rows are columns
    TOTAL    a sum over the batch, or what depends on one: complete after the last row
    FIXED    neither: the same for all rows

and a program that mixes rows in another way has no native loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..program import Instruction, Program, Slot, Value

FIXED, ROWS, TURNED, TOTAL = "fixed", "rows", "turned", "total"

BINARY = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "true_divide": "/", "power": "**"}
COMPARE = {
    "greater": ">", "greater_equal": ">=", "less": "<", "less_equal": "<=", "equal": "==", "not_equal": "!=",
}  # fmt: skip
CALLS = {
    "sqrt": "math.sqrt", "log": "math.log", "log1p": "math.log1p", "expm1": "math.expm1", "absolute": "abs",
    "tanh": "math.tanh", "sinh": "math.sinh", "cosh": "math.cosh", "sin": "math.sin", "cos": "math.cos",
    "arctan": "math.atan",
}  # fmt: skip
LOGICAL = {"logical_and": "and", "logical_or": "or", "bitwise_and": "and", "bitwise_or": "or"}
ELEMENTS = {
    *BINARY, *COMPARE, *CALLS, *LOGICAL, "logical_not", "negative", "square", "reciprocal", "exp", "maximum",
    "minimum", "where", "relu", "astype", "copy", "assign", "sign",
}  # fmt: skip
"""Instructions on one element after the other."""
REDUCTIONS = {"sum", "mean", "max", "min", "argmax", "count_nonzero"}
VIEWS = {"reshape", "transpose", "broadcast_to", "getitem"}
HOST = {"check_labels", "advance", "call", "random"}
"""What is done before or after the steps."""


COUNTS, ALIKE = "0, 1, 2, ...", "equal rows"
"""What may be known of the values of an array."""


class Unsupported(Exception):
    """Why a program has no native loop, in words."""


def axes_of(i: Instruction) -> tuple[int, ...]:
    """The axes that a reduction removes."""
    ndim = len(i.args[0].shape)
    axis = i.params.get("axis", i.args[1] if len(i.args) > 1 else None)
    axes = tuple(range(ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return tuple(k % ndim for k in axes)


def gathers(i: Instruction) -> bool:
    """True for an instruction with integer arrays as index."""
    return i.op in ("getitem", "scatter_add") and any(isinstance(p, Slot) for p in i.params["index"])


def indices(i: Instruction) -> list[Value]:
    """The integer arrays of such an index; Unsupported where there is something else in it."""
    index = i.params["index"]
    if not all(isinstance(p, Slot) and i.args[p.operand].dtype.kind in "iu" for p in index):
        raise Unsupported(f"the index at {i.site.line} has more than arrays of integers")
    return [i.args[p.operand] for p in index]


def without_copies(program: Program) -> Program:
    """The program with values in place of their copies, where nobody writes to either: a loop hands out nothing but
    copies."""
    written = program.written()
    viewed = {v.root for v in program.values() if v.is_view}
    same: dict[Value, Value] = {}

    def now(ref: Any) -> Any:
        if isinstance(ref, tuple):
            return tuple(map(now, ref))
        return same.get(ref, ref) if isinstance(ref, Value) else ref

    kept = []
    for i in program.instructions:
        i = Instruction(i.op, now(i.args), i.params, i.outs, now(i.writes), i.site)
        a = i.args[0] if i.args else None
        copied = i.op == "copy" or (i.op == "astype" and isinstance(a, Value) and a.dtype == i.out.dtype)
        if copied and isinstance(a, Value) and i.out not in viewed and not {a.root, i.out.root} & written:
            same[i.out] = a
        else:
            kept.append(i)
    grads = [(leaf, now(v)) for leaf, v in program.grads]
    return Program(program.inputs, kept, [now(v) for v in program.outputs], grads, program.name)


class Batch:
    """The roles of the values of a program: `batch[v]`."""

    def __init__(self, program: Program, size: int) -> None:
        self.size = size
        self.single = size == 1
        self.assumed: dict[Value, str] = {}  # memory, and what of its values the text takes for granted
        self._written = program.written()
        self._roles: dict[Value, str] = {}
        for v in program.values():
            if not v.size:
                raise Unsupported("an array without elements")
            if self.single:
                self._roles[v] = FIXED
            elif v.kind != "result":
                self._roles[v] = ROWS if v.kind == "input" and v.shape and v.shape[0] == size else FIXED
        for i in () if self.single else program.instructions:
            for v in i.outs:
                self._roles[v] = self._role(i, v)
            self._check_writes(i)

    def __getitem__(self, v: Value) -> str:
        return self._roles[v]

    def turn(self, v: Value, turned: Value) -> None:
        """`turned` is the transpose of `v`."""
        self._roles[turned] = {ROWS: TURNED, TURNED: ROWS}.get(self._roles[v], self._roles[v])

    def by_row(self, v: Value) -> bool:
        """True where a block of rows has only a part of `v`."""
        return not self.single and self._roles[v] in (ROWS, TURNED)

    # -- values that are known beforehand

    def steady(self, v: Value) -> bool:
        """True for an array that no step changes."""
        return v.kind == "constant" or (v.kind == "memory" and v.root not in self._written)

    def counts(self, v: Value) -> bool:
        """True for 0, 1, 2, ... along its only long axis: the loop's own index."""
        return self._known(v, COUNTS)

    def alike(self, v: Value) -> bool:
        """True where all rows hold the same."""
        return bool(v.shape) and self._known(v, ALIKE)

    def _known(self, v: Value, what: str) -> bool:
        found = self.steady(v) and v.dtype is not None and holds(v.array, what)
        if found and v.kind == "memory":
            self.assumed[v] = what
        return found

    # -- rules

    def _check_writes(self, i: Instruction) -> None:
        if not i.writes or i.op in HOST:
            return
        if any(self._roles[v] in (ROWS, TURNED) for v in (*i.writes, *i.operands())):
            raise Unsupported(f"{i.op} at {i.site.line} changes memory row by row")

    def _role(self, i: Instruction, out: Value) -> str:
        kinds = {self._roles[v] for v in i.operands()}
        tall = bool(out.shape) and out.shape[0] == self.size
        if i.op == "random":
            if not tall:
                raise Unsupported(f"random numbers at {i.site.line} that are not one set for each row")
            return ROWS
        if not kinds & {ROWS, TURNED}:
            stretched = i.op == "broadcast_to" and tall and out.strides[0] == 0
            return TOTAL if TOTAL in kinds else ROWS if stretched else FIXED
        if i.op == "matmul":
            return self._role_of_product(i)
        if gathers(i):
            return self._role_of_gather(i)
        if i.op == "transpose":
            return self._role_of_transpose(i)
        if TURNED in kinds:
            raise self._mixes(i)
        if i.op == "scatter_add":
            return self._role_of_spread(i)
        if i.op in VIEWS:
            return self._role_of_view(i, out, tall)
        if i.op in REDUCTIONS:
            return self._role_of_reduction(i)
        if i.op in ELEMENTS:
            if not all(self._fits(v, out) for v in i.operands()):
                raise self._mixes(i)
            return ROWS
        raise Unsupported(f"{i.op} at {i.site.line} has no native loop")

    @staticmethod
    def _mixes(i: Instruction) -> Unsupported:
        return Unsupported(f"{i.op} at {i.site.line} mixes the rows of a batch")

    def _role_of_product(self, i: Instruction) -> str:
        a, b = i.args
        if self[a] == ROWS and self[b] == FIXED and len(b.shape) <= 2 == len(a.shape):
            return ROWS
        by_columns = self[a] == TURNED or (self[a] == ROWS and len(a.shape) == 1)
        if by_columns and self[b] == ROWS and 2 < len(a.shape) + len(b.shape) <= 4:
            return TOTAL
        raise self._mixes(i)

    def _role_of_gather(self, i: Instruction) -> str:
        a, (first, *rest) = i.args[0], indices(i)
        own_row = self.counts(first) and first.shape == (self.size,)  # as in z[np.arange(n), labels]
        if not all(map(self._aligned, rest if own_row else (first, *rest))):
            raise self._mixes(i)
        if i.op == "getitem":
            if self[a] == (ROWS if own_row else FIXED):
                return ROWS
        elif self._aligned(a):
            return ROWS if own_row and i.params["shape"][0] == self.size else TOTAL
        raise self._mixes(i)

    def _aligned(self, v: Value) -> bool:
        """Whether each row has its own part of `v`, or all have the same."""
        return self[v] == ROWS or (self[v] == FIXED and (v.shape[0] != self.size or self.alike(v)))

    def _role_of_spread(self, i: Instruction) -> str:
        """What adds to a part that slices name."""
        index, shape = i.params["index"], i.params["shape"]
        if index[:1] != (slice(None),) or shape[0] != self.size:
            raise self._mixes(i)
        return ROWS

    def _role_of_transpose(self, i: Instruction) -> str:
        role, axes = self[i.args[0]], i.params["axes"]
        if axes[0] == 0:
            return role
        if axes != (1, 0):
            raise self._mixes(i)
        return TURNED if role == ROWS else ROWS

    def _role_of_view(self, i: Instruction, out: Value, tall: bool) -> str:
        first = i.args[0]
        same_steps = tall and (first.strides[0] == out.strides[0] or first.shape[0] == 1)
        if not (same_steps if out.is_view else tall):
            raise self._mixes(i)
        return ROWS

    def _role_of_reduction(self, i: Instruction) -> str:
        if 0 not in axes_of(i):
            return ROWS
        if i.op not in ("sum", "mean", "count_nonzero"):
            raise self._mixes(i)
        return TOTAL

    def _fits(self, v: Value, out: Value) -> bool:
        """Whether an operand of an elementwise instruction has in each row what that row needs."""
        aligned = len(v.shape) == len(out.shape) and v.shape[0] == self.size
        if self[v] == ROWS:
            return aligned
        if self[v] == TOTAL:
            return False
        return not aligned or v.strides[0] == 0 or self.counts(v) or self.alike(v)


def holds(array: Any, what: str) -> bool:
    """Whether what is assumed of an array is so."""
    if what == ALIKE:
        return bool((array == array[:1]).all())
    long = array.dtype.kind in "iu" and array.size == max(array.shape, default=0) > 1
    return long and bool((array.reshape(-1) == np.arange(array.size)).all())
