"""A captured program as a person would have written it: what NumPy's broadcasting does is not spelled out, `keepdims`
is in the reduction, constants are numbers, signs and factors are collected.

`tidy` changes nothing but roundings. What is derived (`backward`) is rewritten further than what the user wrote.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np

from . import arrays
from .program import EFFECTS, ELEMENTWISE, REDUCTIONS, Instruction, Program, Ref, Value, eliminate

COMPARISONS = frozenset({"greater", "greater_equal", "less", "less_equal", "equal", "not_equal"})
LARGEST_FACTOR = 100
"""A constant c is written as k / n, for the n elements of a mean, where k is a whole number up to this."""


def tidy(program: Program, backward: set[Value], named: Collection[Value]) -> tuple[Program, dict[Value, Ref]]:
    """(the program in fewer and plainer instructions, what stands for values that it has no longer).

    One that writes into memory stays as it is. New values of the backward are added to `backward`. Of it, those that
    are `named` stay values of their own.
    """
    program = eliminate(program)
    alias: dict[Value, Ref] = {}
    before: list[str] = []
    while (ops := [i.op for i in program.instructions]) != before and not program.written():
        before = ops
        step = _Tidy(program, backward, named)
        program = eliminate(step.program())
        alias |= step.alias
    return program, alias


def number(a: Ref) -> int | float | bool | None:
    """A Python number as it is; the number that all elements of a constant are; else None."""
    if isinstance(a, (bool, int, float)) and not isinstance(a, np.generic):
        return a
    if isinstance(a, np.generic):
        found = a.item()
    elif isinstance(a, Value) and a.kind == "constant" and a.size and a.dtype.kind in "fiub":
        host = arrays.to_host(a.array)
        found = host.flat[0].item() if (host == host.flat[0]).all() else None
    else:
        return None
    return int(found) if isinstance(found, float) and found.is_integer() and abs(found) < 2**53 else found


def keeps_rank(a: Value, out: Value) -> tuple[int, ...] | None:
    """The axes of size 1 that `out`, a reshape of `a`, has more; None where it is no such reshape."""
    axes, k = [], 0
    for axis, n in enumerate(out.shape):
        if k < len(a.shape) and a.shape[k] == n and not (n == 1 and len(out.shape) - axis > len(a.shape) - k):
            k += 1
        elif n == 1:
            axes.append(axis)
        else:
            return None
    return tuple(axes) if k == len(a.shape) and axes else None


class _Tidy:
    def __init__(self, old: Program, backward: set[Value], named: Collection[Value]) -> None:
        self.old, self.backward, self.named = old, backward, named
        self.made: dict[Value, Instruction] = {}
        self.alias: dict[Value, Ref] = {}
        self.factors: dict[Value, tuple[Value, float]] = {}  # v = base * factor
        self.kept: list[Instruction] = []
        self.outputs = set(old.outputs)
        self.uses = Counter(v for i in old.instructions for v in i.operands()) + Counter(old.outputs)
        means = (i for i in old.instructions if i.op == "mean" and i.out not in backward and i.out.size)
        self.counts = sorted({i.args[0].size // i.out.size for i in means})

    def program(self) -> Program:
        for old in self.old.instructions:
            i = Instruction(old.op, self.now(old.args), dict(old.params), old.outs, old.writes, old.site)
            if i.op in EFFECTS:
                self.kept.append(i)
                continue
            if i.op in ELEMENTWISE:
                i.args = self.plain(i)
            if i.op in REDUCTIONS and not i.args[0].shape:
                i.params["axis"] = None
            rule = getattr(self, f"do_{i.op}", None)
            self.replace(i, rule(i) if rule is not None else None)
        outputs = [self.now(v) for v in self.old.outputs]
        needed, kept = set(outputs), []
        for i in reversed(self.kept):  # first of all: what is dead may not stand for what is equal to it and has a name
            if i.op in EFFECTS or needed.intersection(i.outs):
                kept.append(i)
                needed.update(i.operands())
        return Program(self.old.inputs, kept[::-1], outputs, [], self.old.name)

    def replace(self, i: Instruction, found: Ref | None) -> None:
        """Keep the instruction, or let the value that was found stand for its result."""
        out = i.out
        if isinstance(found, Value) and (found.shape, found.dtype) == (out.shape, out.dtype):
            if out in self.named and out in self.backward and found not in self.backward:
                self.keep(Instruction("same", (found,), {}, i.outs, (), i.site))
                return
            self.alias[out] = found
            self.uses[found] += self.uses[out] - 1
        elif found is not None and not isinstance(found, Value) and out not in self.outputs:
            self.alias[out] = found
        else:
            self.keep(i)

    def keep(self, i: Instruction) -> None:
        self.kept.append(i)
        self.made[i.out] = i

    def now(self, ref: Ref) -> Ref:
        if isinstance(ref, tuple):
            return tuple(map(self.now, ref))
        while isinstance(ref, Value) and ref in self.alias:
            ref = self.alias[ref]
        return ref

    def new(self, like: Instruction, op: str, *args: Ref, out: Value | None = None, **params: Any) -> Value:
        """The result of another instruction, of the shape and the dtype of `out`."""
        out = out or like.out
        value = Value("result", np.broadcast_to(np.empty((), out.dtype), out.shape))
        if like.out in self.backward:
            self.backward.add(value)
        self.uses[value] = 1
        self.keep(Instruction(op, args, params, (value,), (), like.site))
        return value

    def op(self, ref: Ref) -> str:
        """What made a value."""
        return self.made[ref].op if isinstance(ref, Value) and ref in self.made else ""

    def once(self, ref: Ref) -> bool:
        return isinstance(ref, Value) and self.uses[ref] == 1

    # -- operands

    def plain(self, i: Instruction) -> tuple[Ref, ...]:
        """The operands without what broadcasting does by itself, and with numbers for constants."""
        args = list(i.args)
        for k, a in enumerate(args):
            if self.op(a) == "broadcast_to" or (self.op(a) == "reshape" and self.leading(a)):
                inner = self.made[a].args[0]
                if _joint([*args[:k], inner, *args[k + 1 :]]) == i.out.shape:
                    args[k] = a = inner
            c = number(a)
            rest = [*args[:k], *args[k + 1 :]]
            if i.op in COMPARISONS and isinstance(a, Value) and a.kind == "constant" and a.dtype.kind in "iu":
                wide = arrays.to_host(a.array).astype(np.int64)  # labels may have any integer type
                args[k] = a if a.dtype == np.int64 else Value("constant", wide, array=wide)
            if c is None or (isinstance(a, Value) and _joint(rest) != i.out.shape):
                continue
            others = rest[-1:] if i.op == "where" else rest
            for weak in (c, float(c)):
                if i.op in COMPARISONS or _promoted([*others, weak]) == i.out.dtype:
                    args[k] = weak
                    break
        return tuple(args)

    def leading(self, v: Value) -> bool:
        """True for a reshape that puts axes of size 1 in front."""
        axes = keeps_rank(self.made[v].args[0], v)
        return axes is not None and axes == tuple(range(len(axes)))

    # -- signs and factors: of what is derived

    def factor(self, ref: Ref) -> tuple[Ref, float]:
        """(base, c): `ref` is base * c, and nobody else needs it."""
        absorbed = self.once(ref) and ref in self.factors and ref not in self.named
        return self.factors[ref] if absorbed else (ref, 1)

    def scaled(self, i: Instruction, base: Ref, c: float) -> Ref | None:
        """Make the instruction compute base * c."""
        if not isinstance(base, Value) or (base.shape, base.dtype) != (i.out.shape, i.out.dtype):
            return None
        if c == 1:
            return base
        self.factors[i.out] = base, c
        k, n = self.ratio(abs(c), i.out.dtype)
        steps: list[tuple[str, tuple[Ref, ...]]] = []
        if k != 1:
            steps.append(("multiply", (k, base)))
        if n != 1:
            steps.append(("divide", (base, n)))
        if c < 0:
            steps.append(("negative", (base,)))
        for op, args in steps[:-1]:
            base = self.new(i, op, *(base if isinstance(a, Value) else a for a in args))
            self.uses[base] = 1
        op, args = steps[-1]
        i.op, i.args, i.params = op, tuple(base if isinstance(a, Value) else a for a in args), {}
        return None

    def ratio(self, c: float, dtype: Any) -> tuple[float, float]:
        """(k, n) with c = k / n to the precision of the dtype, n the size of a mean; or n = 1 and a number."""
        c = float(c)
        near = 2 * float(np.finfo(dtype).eps) if dtype.kind == "f" else 0.0
        if not c or not math.isfinite(c):
            return c, 1
        short = c.is_integer() or len(repr(c)) <= 5
        for n in self.counts:
            k = round(c * n)
            simple = k == 1 or (k == 2 and c < 0.5) or not short
            if n > 1 and 1 <= k <= LARGEST_FACTOR and abs(c - k / n) <= near * c and simple:
                return k, n
        inverse = round(1 / c)
        if inverse > 1 and abs(c * inverse - 1) <= near and not short:
            return 1, inverse
        c = float(str(np.asarray(c, dtype))) if dtype.kind == "f" else c  # the shortest text of a float32
        return int(c) if c.is_integer() else c, 1

    def product(self, i: Instruction) -> Ref | None:
        """A product or a quotient in the backward, with sign and factors in front."""
        a, b = i.args
        (a, ca), (b, cb) = self.factor(a), self.factor(b)
        divides = i.op == "divide"
        for k, ref in enumerate((a, b)):
            c = number(ref)
            other = (b, a)[k]
            if c is not None and isinstance(other, Value) and not isinstance(ref, Value) and not (divides and k == 0):
                if divides and not c:
                    return None
                return self.scaled(i, other, ca * cb * c if not divides else ca / cb / c)
        if ca == cb == 1:
            return None
        args = a, b
        if divides and number(a) is not None and not isinstance(a, Value):
            args = ca * a / cb, b
            i.args = args
            return None
        base = self.new(i, i.op, *args)
        found = self.scaled(i, base, ca / cb if divides else ca * cb)
        return found

    # -- rules, by instruction: None, or what the result is

    def do_multiply(self, i: Instruction) -> Ref | None:
        a, b = i.args
        for one, other in ((a, b), (b, a)):
            if number(one) == 1 and isinstance(other, Value):
                if other.shape == i.out.shape:
                    return other
                if other.dtype == i.out.dtype:
                    i.op, i.args, i.params = "broadcast_to", (other,), {"shape": i.out.shape}
                    return None
        if a is b and isinstance(a, Value):
            i.op, i.args = "square", (a,)
            return None
        return self.product(i) if i.out in self.backward else None

    def do_divide(self, i: Instruction) -> Ref | None:
        if number(i.args[1]) == 1:
            return i.args[0]
        return self.product(i) if i.out in self.backward else None

    def do_negative(self, i: Instruction) -> Ref | None:
        if i.out not in self.backward:
            return None
        base, c = self.factor(i.args[0])
        return self.scaled(i, base, -c)

    def do_add(self, i: Instruction) -> Ref | None:
        a, b = i.args
        for one, other in ((a, b), (b, a)):
            if number(one) == 0 and not isinstance(one, Value):
                return other
        if i.out in self.backward:
            if a is b:
                twice = self.uses[a] == 2 and a in self.factors and a not in self.named
                base, c = self.factors[a] if twice else (a, 1)
                return self.scaled(i, base, 2 * c)
            if self.op(a) == "add" and self.once(a) and b in self.made[a].args and a not in self.named:
                (rest,) = [r for r in self.made[a].args if r is not b] or [b]
                i.args = rest, self.new(i, "multiply", 2, b, out=b)
                return None
            for one, other in ((a, b), (b, a)):
                if self.op(other) == "negative" and self.once(other):
                    i.op, i.args = "subtract", (one, self.made[other].args[0])
                    return None
        return None

    def do_subtract(self, i: Instruction) -> Ref | None:
        a, b = i.args
        if number(b) == 0 and not isinstance(b, Value):
            return a
        if i.out in self.backward and self.op(b) == "negative" and self.once(b):
            i.op, i.args = "add", (a, self.made[b].args[0])
        return None

    def do_power(self, i: Instruction) -> Ref | None:
        a, b = i.args
        if number(b) == 1:
            return a
        if number(b) == 2 and not isinstance(b, Value):
            i.op, i.args = "square", (a,)
        return None

    def do_logical_and(self, i: Instruction) -> Ref | None:
        for one, other in (i.args, i.args[::-1]):
            c = number(one)
            if c is not None and not isinstance(one, Value):
                return other if c else False
        return None

    def do_maximum(self, i: Instruction) -> Ref | None:
        z, side = i.args  # of sigmoid: maximum(exp(-|a|), a >= 0)
        if self.op(side) == "greater_equal" and self.op(z) == "exp" and side.dtype == bool:
            i.op, i.args = "where", (side, 1, z)
        return None

    def do_where(self, i: Instruction) -> Ref | None:
        c, g, zero = i.args
        if i.out not in self.backward:
            return None
        if i.site.op in ("relu", "leaky_relu") and number(zero) == 0 and _full(g, i.out):
            i.op, i.args = "multiply", (g, c)
            return self.do_multiply(i)
        return self.choice(i) if i.site.op in ("maximum", "minimum") else None

    def choice(self, i: Instruction) -> Ref | None:
        """The rule of maximum: where(a == b, tie, where(y == a, g, 0)). The inner one is g * (a > b)."""
        c, tie, inner = i.args
        if self.op(c) != "equal" or self.op(inner) != "where" or not self.once(inner):
            return None
        mine, other = self.made[c].args
        chosen, g, zero = self.made[inner].args
        if self.op(chosen) != "equal" or number(zero) != 0 or not _full(g, i.out):
            return None
        y = self.made[chosen].args[0]
        greater = "greater" if i.site.op == "maximum" else "less"
        simple = number(other) is not None and number(tie) == 0
        mask = self.new(i, greater, y if simple else mine, other, out=self.made[chosen].out)
        if number(tie) == 0:
            i.op, i.args = "multiply", (g, mask)
        else:
            i.args = c, tie, self.new(i, "multiply", g, mask)
        return None

    def do_astype(self, i: Instruction) -> Ref | None:
        return i.args[0] if i.args[0].dtype == i.out.dtype else None

    def do_copy(self, i: Instruction) -> Ref | None:
        return i.args[0]

    do_asarray = do_copy

    def do_reshape(self, i: Instruction) -> Ref | None:
        a = i.args[0]
        if self.op(a) == "reshape":
            i.args = (self.made[a].args[0],)
            return i.args[0] if i.args[0].shape == i.out.shape else self.do_reshape(i)
        reduction = self.made.get(a)
        if reduction is not None and reduction.op in REDUCTIONS and self.once(a):
            axis = reduction.params["axis"]
            before = reduction.args[0].shape
            gone = range(len(before)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
            if i.out.shape == tuple(1 if k in gone else n for k, n in enumerate(before)):
                i.op, i.args, i.params = reduction.op, reduction.args, {**reduction.params, "keepdims": True}
                i.site = reduction.site
        return None

    def do_broadcast_to(self, i: Instruction) -> Ref | None:
        a = i.args[0]
        if self.op(a) == "broadcast_to":
            i.args = self.made[a].args
        return i.args[0] if i.args[0].shape == i.out.shape else None

    def do_transpose(self, i: Instruction) -> Ref | None:
        a = i.args[0]
        if self.op(a) == "matmul" and self.once(a) and len(a.shape) == 2 and a not in self.named:
            left, right = self.made[a].args
            if len(left.shape) == len(right.shape) == 2:  # (A @ B).T is B.T @ A.T
                turned = [self.new(i, "transpose", v, out=_turned(v), axes=(1, 0)) for v in (right, left)]
                i.op, i.args, i.params = "matmul", tuple(turned), {}
                i.site = self.made[a].site if a in self.backward else i.site
            return None
        if self.op(a) != "transpose":
            return None
        first, axes = self.made[a].params["axes"], i.params["axes"]
        i.args, i.params = self.made[a].args, {"axes": tuple(first[k] for k in axes)}
        return i.args[0] if i.params["axes"] == tuple(range(len(axes))) else None

    def do_getitem(self, i: Instruction) -> Ref | None:
        """(A @ v[:, None])[..., 0] is A @ v."""
        a = i.args[0]
        if i.params["index"] != (Ellipsis, 0) or self.op(a) != "matmul" or not self.once(a):
            return None
        left, right = self.made[a].args
        vector = self.made[right].args[0] if self.op(right) == "reshape" else None
        if isinstance(vector, Value) and len(vector.shape) == 1 and len(left.shape) == 2 and right.shape[1:] == (1,):
            i.op, i.args, i.params = "matmul", (left, vector), {}
        return None

    def do_pad(self, i: Instruction) -> Ref | None:
        return i.args[0] if i.args[0].shape == i.out.shape else None

    def do_scatter_add(self, i: Instruction) -> Ref | None:
        c = number(i.args[0])
        if c is not None and i.out.dtype.kind == "f":
            i.args = (float(c), *i.args[1:])
        return None

    def do_sum(self, i: Instruction) -> Ref | None:
        axis = i.params.get("axis")
        if isinstance(axis, tuple) and len(axis) == 1:
            i.params["axis"] = axis[0]
        if isinstance(axis, tuple) and len(axis) == len(i.args[0].shape):
            i.params["axis"] = None
        return None


def _joint(args: list[Ref]) -> tuple[int, ...]:
    """The shape that broadcasting gives operands."""
    return np.broadcast_shapes(*(a.shape for a in args if isinstance(a, Value)))


def _promoted(args: list[Ref]) -> Any:
    """The dtype of a sum of operands."""
    return np.result_type(*(a.dtype if isinstance(a, Value) else a for a in args))


def _turned(v: Value) -> Value:
    return Value("result", np.broadcast_to(np.empty((), v.dtype), v.shape[::-1]))


def _full(g: Ref, out: Value) -> bool:
    """True where a product with `g` has the shape and the dtype of `out`."""
    return isinstance(g, Value) and g.shape == out.shape and g.dtype == out.dtype


