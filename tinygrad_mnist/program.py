"""A captured computation as data: values, instructions, the passes over them, and the text that replays them.

    capture -> Program -> eliminate (constants, common subexpressions, dead code) -> replay text with planned buffers

Nothing here knows Tensors or runs a rule. An instruction names a function of the array library (`add`, `matmul`,
`sum`), and every value but memory is assigned once. *Memory* is what lasts from call to call: parameters, the state of
an optimizer, arrays of a closure. Whatever changes memory is an instruction with `writes`, and is never dropped, merged
or moved across a use of that memory.
"""

from __future__ import annotations

import itertools
import keyword
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from . import arrays

Array = Any
Ref = Any  # an operand: a Value, a Python or NumPy number, or a tuple of these


class Site(NamedTuple):
    """Where an instruction comes from."""

    line: str = ""  # "file:line" of the user's code; of a gradient: of the forward line that it belongs to
    phase: str = "forward"  # "forward", "backward" or "update"
    node: int = -1  # the same number for a recorded operation and for all that its gradient rules do
    op: str = ""  # the name of that operation: softmax, where the instruction is one of those that compute it


class Value:
    """An array (or a number) of a program, known by its identity.

    kind: "input" (argument number `place`), "memory" (`array`, which lasts), "grad" (what `.grad` of the leaf `place`
    holds at the call), "constant" (`array`, which never changes), "number" (a Python float, new at every call) or
    "result" (whose `array` is what the capture found, where that depends on constants alone). `root` is the value whose
    memory this one is a view of; itself where it has memory of its own.
    """

    __slots__ = ("array", "device", "dtype", "kind", "name", "place", "root", "shape", "strides")

    def __init__(
        self, kind: str, example: Array = None, *, array: Array = None, place: Any = None, root: Value | None = None,
        name: str | None = None,
    ) -> None:
        self.kind = kind
        self.shape: tuple[int, ...] = () if example is None else example.shape
        self.dtype: Any = None if example is None else example.dtype  # None: a Python number
        self.strides: tuple[int, ...] = () if example is None else example.strides
        self.device = "cpu" if example is None else arrays.device_of(example)
        self.array = array
        self.place = place
        self.root = self if root is None else root
        self.name = name

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return 8 if self.dtype is None else self.size * self.dtype.itemsize

    @property
    def is_view(self) -> bool:
        """True where the memory belongs to another value."""
        return self.root is not self

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name or ''} {self.dtype} {self.shape}>"


class Slot(NamedTuple):
    """In the index of an instruction: the place of an index array among its operands."""

    operand: int


@dataclass(eq=False, slots=True)
class Instruction:
    """One call. `outs` are the values that it makes, `writes` the memory that it changes in place.

    op: the name of a NumPy function, or one of
      relu               maximum(a, 0)
      reshape, transpose (axes), broadcast_to, getitem (index)     views where `outs[0].is_view`, copies otherwise
      setitem            args[0][index] = args[1]
      scatter_add        zeros(shape), to which args[0] is added at `index`
      fill               args[0], a number, everywhere
      astype, copy, assign (of args[0] to `writes[0]`)
      random             numbers from [0, 1), by the generator `rng`
      upload             args[0], an array of the host, on the device
      check_labels       raise IndexError for a label outside 0 ... classes - 1
      check_mask         `call(mask)` raises unless as many elements are true as in the capture; or, of integers of the
                         host, unless they are in the range of an axis of an array on a device
      advance            `call()` counts a step and returns the numbers `outs`; `call` also has the method `peek`
      call               `call(*args)`, which may change its operands in place (then they are in `writes`), and may
                         return a number
    A function of NumPy with `writes` computes into that memory: multiply(m, b1, out=m).
    """

    op: str
    args: tuple[Ref, ...]
    params: dict[str, Any] = field(default_factory=dict)
    outs: tuple[Value, ...] = ()
    writes: tuple[Value, ...] = ()
    site: Site = field(default_factory=Site)

    @property
    def out(self) -> Value:
        """The only result, or the memory that is written."""
        return (self.outs or self.writes)[0]

    def operands(self) -> Iterator[Value]:
        """The values that it reads."""
        return _values(self.args)

    @property
    def flops(self) -> int:
        """Floating-point operations, counting a function of one element as one."""
        if self.op == "matmul":
            a = self.args[0]
            return 2 * self.out.size * (a.shape[-1] if a.shape else 1)
        if self.op in ELEMENTWISE:
            return self.out.size
        return max((a.size for a in self.operands()), default=0) if self.op in REDUCTIONS else 0

    @property
    def nbytes(self) -> int:
        """Bytes read and written; none by a view."""
        if self.op in VIEWS and self.outs and self.out.is_view:
            return 0
        return sum(v.nbytes for v in (*self.operands(), *self.outs, *self.writes))


def _values(refs: Iterable[Ref]) -> Iterator[Value]:
    for ref in refs:
        if isinstance(ref, Value):
            yield ref
        elif isinstance(ref, tuple):
            yield from _values(ref)


_PRODUCTS = {"matmul", "vecdot", "matvec", "vecmat"}
_PAIRS = {"divmod", "modf", "frexp"}
UFUNCS = frozenset(name for name in dir(np) if isinstance(getattr(np, name), np.ufunc)) - _PRODUCTS - _PAIRS
ELEMENTWISE = UFUNCS | {"relu", "where", "astype", "copy", "assign"}
VIEWS = frozenset({"reshape", "transpose", "broadcast_to", "getitem"})
REDUCTIONS = frozenset({"sum", "mean", "max", "min", "prod", "argmax", "argmin", "var", "std", "any", "all"})
EFFECTS = frozenset({"random", "check_labels", "check_mask", "advance", "call"})  # not dropped or merged, in order


@dataclass(eq=False)
class Program:
    """The instructions of one call, in order, and what goes in and out."""

    inputs: list[Value]
    instructions: list[Instruction]
    outputs: list[Value]
    grads: list[tuple[Any, Value]] = field(default_factory=list)  # (leaf, what its .grad is after the call)
    name: str = "step"

    def values(self) -> list[Value]:
        """All values that occur, in order of first use."""
        found = dict.fromkeys(self.inputs)
        for i in self.instructions:
            found |= dict.fromkeys((*i.operands(), *i.outs, *i.writes))
        return list(found | dict.fromkeys(self.outputs) | dict.fromkeys(v for _, v in self.grads))

    @property
    def device(self) -> str:
        """Where it computes: on the host, or on the device that any of its arrays lies on."""
        return next((v.device for v in self.values() if v.device != "cpu"), "cpu")

    def written(self) -> set[Value]:
        """The roots of all memory that some instruction changes in place."""
        return {v.root for i in self.instructions for v in i.writes}

    def last_use(self, steps: Sequence[Instruction | Group] | None = None) -> dict[Value, int]:
        """For each root the number of the last instruction that touches its memory; one past the end for outputs.
        `steps`: the instructions in another order."""
        steps = self.instructions if steps is None else steps
        last: dict[Value, int] = {}
        for k, i in enumerate(steps):
            last |= dict.fromkeys((v.root for v in (*i.operands(), *i.outs, *i.writes)), k)
        ends = len(steps)
        return last | dict.fromkeys((v.root for v in (*self.outputs, *(v for _, v in self.grads))), ends)

    def __str__(self) -> str:
        """A table: result, instruction, shape, dtype, bytes moved, floating-point operations."""
        names = naming(self)
        head = ("result", "instruction", "shape", "dtype", "bytes", "flops")
        rows: list[tuple[str, ...]] = [head]
        for i in self.instructions:
            made = ", ".join(names[v] for v in (*i.outs, *i.writes))
            shape = "x".join(map(str, i.out.shape)) or "scalar" if i.outs or i.writes else ""
            dtype = str(i.out.dtype or "float") if i.outs or i.writes else ""
            call = f"{i.op}({', '.join(_plain(a, names) for a in i.args)})"
            rows.append((made, call, shape, dtype, f"{i.nbytes:,}", f"{i.flops:,}"))
        total = ("", "", "", "", *(f"{sum(getattr(i, n) for i in self.instructions):,}" for n in ("nbytes", "flops")))
        rows.append(total)
        widths = [max(len(row[c]) for row in rows) for c in range(len(head))]
        lines = []
        for row in rows:
            padded = enumerate(zip(row, widths, strict=True))
            lines.append("  ".join(cell.rjust(w) if c > 3 else cell.ljust(w) for c, (cell, w) in padded).rstrip())
        return "\n".join(lines)


def _plain(ref: Ref, names: dict[Value, str]) -> str:
    if isinstance(ref, tuple):
        return "[" + ", ".join(_plain(a, names) for a in ref) + "]"
    return names[ref] if isinstance(ref, Value) else literal(ref)


# ---- passes -------------------------------------------------------------------------------------------------------


def eliminate(program: Program) -> Program:
    """With constants folded, without common subexpressions and dead code, bit for bit the same.

    A product of an array with its own transpose takes another path through the BLAS than a product of equal arrays that
    are two. Where merging would make one of these of the other, it is not done.
    """
    program = fold(program)
    apart: set[Value] = set()
    roots = {v: v.root for v in program.values()}
    while True:
        merged, same = _merge(program, roots, apart)
        clash = {
            roots[v]
            for i in program.instructions
            if i.op in ("matmul", "einsum")
            for v in i.operands()
            for w in i.operands()
            if roots[v] is not roots[w] and same.get(v, v).root is same.get(w, w).root
        }
        if not clash - apart:
            return _alive(merged)
        apart |= clash


def fold(program: Program) -> Program:
    """What depends on constants alone, and is not written to, becomes a constant: the array that the capture found."""
    written = program.written()
    kept = []
    for i in program.instructions:
        found = i.outs and all(v.array is not None and v.root not in written for v in i.outs)
        if found and i.op not in EFFECTS and all(v.kind == "constant" for v in i.operands()):
            for v in i.outs:
                v.kind, v.root = "constant", v
        else:
            kept.append(i)
    return Program(program.inputs, kept, program.outputs, program.grads, program.name)


def _merge(program: Program, roots: dict[Value, Value], apart: set[Value]) -> tuple[Program, dict[Value, Value]]:
    """Common subexpressions computed once; copies of what nobody changes not made. `apart` keep their own memory.
    `roots` are those of `program`; those of the result may be others.

    A value read before a write of its memory is another than the one read after it. Arguments may lie in any memory: of
    these, every write of what lasts makes others.
    """
    same: dict[Value, Value] = {}
    written = program.written()
    handed = {v for _, v in program.grads}  # gradients are read after the call: no view of what the user may change
    version: dict[Value, int] = {}
    lasting = given = 0  # how many writes there were of memory that lasts, and of arguments
    known: dict[Any, Value] = {}
    kept: list[Instruction] = []

    def now(ref: Ref) -> Ref:
        if isinstance(ref, tuple):
            return tuple(map(now, ref))
        return same.get(ref, ref) if isinstance(ref, Value) else ref

    def key_of(ref: Ref) -> Any:
        if isinstance(ref, tuple):
            return tuple(map(key_of, ref))
        if not isinstance(ref, Value):
            return type(ref), repr(ref)
        foreign = {"input": lasting, "grad": lasting, "memory": given}.get(ref.root.kind, 0)
        return id(ref), version.get(ref.root, 0), foreign

    for i in program.instructions:
        args = now(i.args)
        i = Instruction(i.op, args, i.params, i.outs, now(i.writes), i.site)
        for v in i.outs:
            v.root = _final(roots[v], same)  # a view is one of the memory that now stands for its root
        if i.op in EFFECTS or i.writes:
            for v in i.writes:
                version[v.root] = version.get(v.root, 0) + 1
                lasting += v.root.kind != "result"
                given += v.root.kind in ("input", "grad")
            kept.append(i)
            continue
        out = i.out
        a: Any = args[0] if args else None
        view = out.root is not out  # two equal views of memory are one, whatever is written to it
        if (view or out.root not in written) and out.root not in apart:
            own = out not in handed or a.root.kind == "result"
            if i.op == "copy" and a.kind == "result" and own and a.root not in written and a.strides == out.strides:
                same[out] = a
                continue
            key = i.op, key_of(args), repr(sorted(i.params.items()))
            if key in known:
                same[out] = known[key]
                continue
            known[key] = out
        kept.append(i)
    grads = [(leaf, now(v)) for leaf, v in program.grads]
    return Program(program.inputs, kept, [now(v) for v in program.outputs], grads, program.name), same


def _final(v: Value, same: dict[Value, Value]) -> Value:
    while v in same:
        v = same[v].root
    return v


def _alive(program: Program) -> Program:
    """Without the instructions whose results nobody reads."""
    needed = {*program.outputs, *(v for _, v in program.grads)}
    kept = []
    for i in reversed(program.instructions):
        if i.writes or i.op in EFFECTS or any(v in needed for v in i.outs):
            kept.append(i)
            needed.update(i.operands())
            needed.update(i.writes)
    return Program(program.inputs, kept[::-1], program.outputs, program.grads, program.name)


class Group(NamedTuple):
    """Elementwise instructions over one shape that one loop (or kernel) can compute."""

    shape: tuple[int, ...]
    body: list[Instruction]
    reads: list[Value]  # from outside, each once
    makes: list[Value]  # results that are used outside, and memory that is written

    def operands(self) -> list[Value]:
        """As of an instruction: the values that it reads."""
        return self.reads

    @property
    def writes(self) -> list[Value]:
        """As of an instruction: the memory that it changes in place."""
        return [v for i in self.body for v in i.writes]

    @property
    def outs(self) -> list[Value]:
        """As of an instruction: the values that it makes. What is not used outside has no memory."""
        made = {v for i in self.body for v in i.outs}
        return [v for v in self.makes if v in made]


WINDOW = 64
"""How many instructions back `fuse` looks for more of a group: a chain of a thousand layers is not quadratic."""


def fuse(
    program: Program, fusible: Callable[[Instruction], bool], kind: Callable[[Value], Any] = lambda v: v.shape,
    largest: int | None = None,
) -> list[Instruction | Group]:
    """The instructions with those that are `fusible`, and whose results are of one `kind`, joined where the order of
    uses allows it. A group stands where its last member stood: what is needed late is not computed early.
    `largest`: the number of values that a group may have."""
    todo = list(program.instructions)
    done: list[Instruction | Group] = []
    uses = Counter(v for i in todo for v in i.operands())
    uses.update([*program.outputs, *(v for _, v in program.grads)])
    while todo:
        last = todo.pop()
        if not fusible(last):
            done.append(last)
            continue
        body, passed = [last], list[Instruction]()
        for i in reversed(todo[-WINDOW:]):
            joins = fusible(i) and kind(i.out) == kind(last.out) and not any(_unaligned(i, j) for j in body)
            if joins and largest is not None:
                joins = len({v for j in (i, *body) for v in (*j.operands(), *j.outs, *j.writes)}) <= largest
            if joins and not any(_ordered(i, j) for j in passed):
                body.append(i)
            else:
                passed.append(i)
        todo[-WINDOW:] = reversed(passed)
        body.reverse()
        inside = Counter(v for i in body for v in i.operands())
        made = {v for i in body for v in i.outs}
        reads = list(dict.fromkeys(v for i in body for v in i.operands() if v not in made))
        makes = [v for i in body for v in (*i.writes, *(v for v in i.outs if uses[v] > inside[v]))]
        done.append(Group(last.out.shape, body, reads, list(dict.fromkeys(makes))))
    return done[::-1]


def _ordered(first: Instruction, then: Instruction) -> bool:
    """True where `then` may not come before `first`: it reads what that one makes, or one writes what the other
    touches."""
    if first.op in EFFECTS and then.op in EFFECTS:
        return True
    made = {v.root for v in (*first.outs, *first.writes)}
    if any(v.root in made for v in (*then.operands(), *then.writes)):
        return True
    written = {v.root for v in then.writes}
    return any(v.root in written for v in first.operands())


def _unaligned(first: Instruction, then: Instruction) -> bool:
    """True where one loop over the elements would not do: `then` reads elements of memory other than its own that
    `first` writes, or the other way round, through another view."""
    return any(
        w.root is v.root and w is not v
        for one, other in ((first, then), (then, first))
        for w in one.writes
        for v in (*other.operands(), *other.writes)
    )


# ---- names and literals -------------------------------------------------------------------------------------------


_MADE = re.compile(r"(arena|scratch|kernel)\d+")  # what a `_Writer` calls its own


def naming(program: Program) -> dict[Value, str]:
    """A name for each value, all different: the user's where there is one that no other part of the text has."""
    taken: set[str] = {"np", "cp", "make", "step", "grads", "slice", "float", *keyword.kwlist}
    names: dict[Value, str] = {}
    counts: dict[str, Iterator[int]] = {}
    letter = {"input": "x", "memory": "m", "grad": "grad", "constant": "c", "number": "n", "result": "t"}
    for v in program.values():
        name = v.name if v.name and v.name.isidentifier() and v.name.isascii() else None
        if name and (name.startswith("_") or _MADE.fullmatch(name)):
            name = None
        stem = name or letter[v.kind]
        if name is None or name in taken:
            numbers = counts.setdefault(stem, itertools.count(2 if name else 1))
            stem = f"{stem}_" if name else stem
            name = next(found for n in numbers if (found := f"{stem}{n}") not in taken)
        taken.add(name)
        names[v] = name
    return names


def literal(value: Any, xp: str = "np") -> str:
    """A number, or a parameter such as a shape, an axis, a slice or a dtype, as source text."""
    if isinstance(value, np.dtype):
        return f"{xp}.{'bool_' if value.kind == 'b' else value.name}"
    if isinstance(value, type):
        return literal(np.dtype(value), xp)
    if isinstance(value, np.generic):
        return f"{xp}.{value.dtype.name}({literal(value.item(), xp)})"
    if isinstance(value, tuple):
        return f"({', '.join(literal(v, xp) for v in value)}{',' * (len(value) == 1)})"
    if isinstance(value, list):
        return f"[{', '.join(literal(v, xp) for v in value)}]"
    if isinstance(value, slice):
        return f"slice({', '.join(literal(v, xp) for v in (value.start, value.stop, value.step))})"
    if value is Ellipsis:
        return "..."
    if isinstance(value, float):  # or a class of the user's that is one
        return float.__repr__(value) if math.isfinite(value) else f'float("{float.__repr__(value)}")'
    return int.__repr__(value) if isinstance(value, int) and type(value) is not bool else repr(value)


def constant_text(array: Array, xp: str) -> str | None:
    """A constant array as an expression; None where it is too large to print, or lies in memory in an unusual way."""
    dtype = literal(array.dtype, xp)
    host = array if isinstance(array, np.ndarray) else array.get()
    if not host.size:
        return f"{xp}.empty({literal(host.shape)}, {dtype})"
    if not host.flags.c_contiguous:
        return None
    bits = host.reshape(-1).view(f"V{host.itemsize}")  # 0.0 and -0.0 are two numbers
    if host.ndim and host.flat[0] == host.flat[0] and (bits == bits[0]).all():
        return f"{xp}.full({literal(host.shape)}, {literal(host.flat[0].item(), xp)}, {dtype})"
    if host.ndim == 1 and host.dtype.kind in "iu" and np.array_equal(host, np.arange(host.size)):
        return f"{xp}.arange({host.size}, dtype={dtype})"
    if host.size <= 32 and not (host.dtype.kind == "f" and not np.isfinite(host).all()):
        return f"{xp}.array({host.tolist()!r}, {dtype})"
    return None


# ---- the replay ---------------------------------------------------------------------------------------------------


def in_place(program: Program, steps: Sequence[Instruction | Group]) -> dict[Value, tuple[Value, int]]:
    """Operands of concatenations that can be made where they are wanted: {value: (concatenation, offset in bytes)}.

    Such are the gradients that an optimizer joins. It holds for a result that nobody writes to once it was joined, and
    not for one that is still read when the whole has changed.
    """
    found: dict[Value, tuple[Value, int]] = {}
    last, written = program.last_use(steps), {v.root: k for k, i in enumerate(steps) for v in i.writes}
    wholes: set[Value] = set()
    for k, i in enumerate(steps):
        if isinstance(i, Group) or i.op != "concatenate" or i.params["axis"] != 0:
            continue
        whole, offset = i.out, 0
        for part in i.args[0]:
            own = part.root
            if (
                own.kind == "result" and own not in wholes
                and part.dtype == whole.dtype and part.size == own.size and _c_contiguous(part)
                and written.get(own, -1) < k and (whole not in written or last[own] <= k)
            ):  # fmt: skip
                found[own] = whole, offset
                wholes.add(whole)
            offset += part.nbytes
    return found


class Arena(NamedTuple):
    """Memory in which results lie one after the other in time."""

    size: int  # bytes
    device: str


def assign_buffers(
    program: Program, steps: Sequence[Instruction | Group], reuse: bool
) -> tuple[dict[Value, int], list[Arena], dict[Value, tuple[Value, int]]]:
    """An arena for each result with memory of its own, the arenas, and what lies inside a concatenation.

    With `reuse`, an arena serves again when its value and all views of it are dead, a ufunc computes into an operand
    that dies in it, and what is concatenated is made where it will be. The arena of a whole serves from its first part
    on. A gradient of a leaf has one to itself.
    """
    inside = in_place(program, steps) if reuse else {}
    last = program.last_use(steps)
    for v, (whole, _) in inside.items():
        last[whole] = max(last[whole], last[v])
    lasting = {v.root for _, v in program.grads}  # what a call that fails early leaves as it was
    lasting |= {whole for v, (whole, _) in inside.items() if v in lasting}
    arena: dict[Value, int] = {}
    arenas: list[Arena] = []
    free: list[int] = []
    kept = program.written() | inside.keys()
    for k, i in enumerate(steps):
        for v in i.outs:
            if v.kind != "result" or v.is_view:
                continue
            owner, _ = inside.get(v, (v, 0))
            if owner in arena:
                arena[v] = arena[owner]
                continue
            taken = _dying_operand(i, v, k, last, kept) if reuse and v not in inside and v not in lasting else None
            if taken is not None:
                arena[v] = arena[taken]
                last[taken] = -1  # it lives on under another name
                continue
            able = [(arenas[a].size, a) for a in free if arenas[a].device == v.device and owner not in lasting]
            fits = sorted(pair for pair in able if pair[0] >= owner.nbytes)
            if fits and fits[0][0] <= 2 * max(owner.nbytes, 64):
                number = fits[0][1]
            elif able:
                number = max(able)[1]
                arenas[number] = Arena(max(arenas[number].size, owner.nbytes), v.device)
            else:
                number = len(arenas)
                arenas.append(Arena(owner.nbytes, v.device))
            if number in free:
                free.remove(number)
            arena[owner] = arena[v] = number
        if reuse:
            touched = {v.root for v in (*i.operands(), *i.outs)}
            touched = {inside[v][0] if v in inside else v for v in touched}
            free += [arena[v] for v in touched if v in arena and last[v] == k]
    return arena, arenas, inside


def _dying_operand(
    i: Instruction | Group, out: Value, k: int, last: dict[Value, int], kept: set[Value]
) -> Value | None:
    if isinstance(i, Group) or (i.op not in UFUNCS and i.op != "relu"):
        return None
    for a in i.operands():
        if a.kind != "result" or a.is_view or a in kept or last.get(a) != k:
            continue
        layout = (a.shape, a.dtype, a.strides) == (out.shape, out.dtype, out.strides)
        if layout and not any(b.root is a and b is not a for b in i.operands()):
            return a
    return None


class Replay:
    """A program bound to its memory: `replay(*inputs, *grads)` runs it; what it returns are buffers of its own.

    `text` is what runs. It stands alone: `make(...)`, called with the arrays named there, returns the function, and the
    gradients that it leaves. `library` is that of the arrays that are not on the host.
    """

    def __init__(self, program: Program, library: Any = np, *, plan: bool = True) -> None:
        self.program = program
        self._there = arrays.computing_on(program.device)  # where there are several GPUs: on that of the program
        writer = _Writer(program, plan)
        code = writer.code()
        self.text = "\n".join((*(f"import {module} as {xp}" for xp, module in writer.imports().items()), "", "", code))
        space: dict[str, Any] = {"np": np, "cp": library}
        exec(compile(code, f"<compiled {program.name}>", "exec"), space)
        with self._there:
            self._step, self.grads = space["make"](*writer.given)

    def __call__(self, *inputs: Any) -> Any:
        with self._there:
            return self._step(*inputs)


class _Writer:
    """Writes the text of a replay."""

    def __init__(self, program: Program, plan: bool) -> None:
        self.program = program
        self.names = naming(program)
        able = {i for i in program.instructions if in_kernel(i)}  # on a GPU, a chain of these is one kernel
        self.steps = fuse(program, able.__contains__, largest=LARGEST) if able else list(program.instructions)
        self.arena, self.arenas, self.inside = assign_buffers(program, self.steps, plan)
        self.xp = "np"  # the library of what is being written
        self.given: list[Any] = []  # arguments of make
        self.parameters: list[str] = []
        self.head: list[str] = []  # constants, buffers, views made once
        self.body: list[str] = []
        self.kernels: dict[str, str] = {}  # text -> name
        self.extra = 0
        self.fixed: set[Value] = set()  # values that are the same arrays at every call

    def imports(self) -> dict[str, str]:
        """The libraries that the text uses: {name: module}."""
        devices = {v.device == "cpu" for v in self.program.values() if v.dtype is not None} or {True}
        return {("np" if host else "cp"): ("numpy" if host else "cupy") for host in sorted(devices)}

    # -- pieces

    def ref(self, ref: Ref) -> str:
        if isinstance(ref, tuple):
            return "[" + ", ".join(map(self.ref, ref)) + "]"
        return self.names[ref] if isinstance(ref, Value) else literal(ref, self.xp)

    def give(self, value: Any, stem: str) -> str:
        """A parameter of `make`."""
        name = stem
        while name in self.parameters or name in self.names.values():
            self.extra += 1
            name = f"{stem}{self.extra}"
        self.parameters.append(name)
        self.given.append(value)
        return name

    def scratch(self, shape: tuple[int, ...], dtype: Any, fill: str = "empty") -> str:
        """The name of an array made once."""
        self.extra += 1
        name = f"scratch{self.extra}"
        self.head.append(f"{name} = {self.xp}.{fill}({literal(shape)}, {literal(dtype, self.xp)})")
        return name

    def index(self, i: Instruction) -> str:
        parts = [self.ref(i.args[p.operand]) if isinstance(p, Slot) else literal(p) for p in i.params["index"]]
        text = ", ".join(parts)
        return f"({text}{',' * (len(parts) == 1)})" if parts else "()"

    # -- the whole

    def code(self) -> str:
        program = self.program
        for v in program.values():
            self.xp = _library(v)
            if v.kind == "memory" or (v.kind == "constant" and constant_text(v.array, self.xp) is None):
                self.fixed.add(v)
                self.parameters.append(self.names[v])
                self.given.append(v.array)
            elif v.kind == "constant":
                self.fixed.add(v)
                self.head.append(f"{self.names[v]} = {constant_text(v.array, self.xp)}")
        for k, (size, device) in enumerate(self.arenas):
            xp = "np" if device == "cpu" else "cp"
            self.head.append(f"arena{k} = {xp}.empty({max(size, 1)}, {xp}.uint8)")
        for i in self.steps:
            if isinstance(i, Group):
                self.kernel(i)
            else:
                self.instruction(i)
        inputs = [self.names[v] for v in program.inputs]
        inputs += [self.names[v] for v in program.values() if v.kind == "grad"]
        outputs = ", ".join(self.names[v] for v in program.outputs)
        grads = ", ".join(self.names[v] for _, v in program.grads)
        lines = [f"def make({', '.join(self.parameters)}):"]
        lines += [f"    {line}" for line in self.head]
        lines += ["", f"    def step({', '.join(inputs)}):"]
        lines += [f"        {line}" for line in self.body]
        changing = [v for _, v in program.grads if v not in self.fixed]
        if changing:  # a gradient that is no buffer: a view of an argument
            lines += [f"        grads[:] = [{grads}]"]
        lines += [f"        return {outputs}{',' if outputs else '()'}"]
        lines += ["", f"    grads = [{'' if changing else grads}]", "    return step, grads", ""]
        return "\n".join(lines)

    def declare(self, v: Value) -> None:
        """A result of a fixed place gets its array, once."""
        if v.kind == "result" and not v.is_view and v in self.arena and v not in self.fixed:
            self.fixed.add(v)
            name = self.names[v]
            dtype = literal(v.dtype, self.xp)
            order = _memory_order(v)
            shape = literal(tuple(v.shape[k] for k in order))
            back = tuple(order.index(k) for k in range(len(order)))
            turned = "" if back == tuple(range(len(back))) else f".transpose({literal(back)})"
            start = self.inside[v][1] if v in self.inside else 0
            view = f"arena{self.arena[v]}[{start or ''}:{start + v.nbytes}].view({dtype}).reshape({shape}){turned}"
            self.head.append(f"{name} = {view}")

    def instruction(self, i: Instruction) -> None:
        self.xp = _library(i.out) if i.outs or i.writes else "np"
        if i.op in VIEWS and i.out.is_view:
            line = f"{self.names[i.out]} = {self.view(i)}"
            if all(v in self.fixed for v in i.operands()):
                self.fixed.add(i.out)
                self.head.append(line)
            else:
                self.body.append(line)
            return
        for v in i.outs:
            self.declare(v)
        if hasattr(self, f"do_{i.op}"):
            self.body += getattr(self, f"do_{i.op}")(i)
        elif i.op in UFUNCS:
            self.body.append(f"{self.xp}.{i.op}({', '.join(map(self.ref, i.args))}, out={self.names[i.out]})")
        else:
            self.body.append(f"{self.names[i.out]}[...] = {self.xp}.{i.op}({self.arguments(i)})")

    def arguments(self, i: Instruction) -> str:
        parts = [self.ref(a) for a in i.args]
        return ", ".join([*parts, *(f"{k}={literal(v, self.xp)}" for k, v in i.params.items())])

    def view(self, i: Instruction) -> str:
        a = self.ref(i.args[0])
        if i.op == "reshape":
            return f"{a}.reshape({literal(i.params['shape'])})"
        if i.op == "transpose":
            axes = i.params["axes"]
            return f"{a}.T" if axes == tuple(range(len(axes)))[::-1] else f"{a}.transpose({literal(axes)})"
        if i.op == "broadcast_to":
            return f"{self.xp}.broadcast_to({a}, {literal(i.params['shape'])})"
        return f"{a}[{self.index(i)}]"

    # -- what is no ufunc: a list of lines each, `o` standing for the result

    def do_reshape(self, i: Instruction) -> list[str]:
        o, shape = self.names[i.out], literal(i.args[0].shape)
        return [f"{o}.reshape({shape})[...] = {self.ref(i.args[0])}"]  # what reshape would copy, without a temporary

    def do_transpose(self, i: Instruction) -> list[str]:
        return [f"{self.names[i.out]}[...] = {self.view(i)}"]

    do_broadcast_to = do_transpose

    def do_getitem(self, i: Instruction) -> list[str]:
        o, index = self.names[i.out], i.params["index"]
        rows = self.xp == "np" and len(index) == 1 and isinstance(index[0], Slot)
        if rows and i.args[1].dtype.kind in "iu" and np.can_cast(i.args[1].dtype, np.intp):
            # raise: with other modes NumPy writes to `out` directly, but an index that is out of range must raise
            return [f"{self.ref(i.args[0])}.take({self.ref(i.args[1])}, 0, {o})"]
        return [f"{o}[...] = {self.ref(i.args[0])}[{self.index(i)}]"]

    def do_setitem(self, i: Instruction) -> list[str]:
        return [f"{self.ref(i.args[0])}[{self.index(i)}] = {self.ref(i.args[1])}"]

    def do_scatter_add(self, i: Instruction) -> list[str]:
        o, at = self.names[i.out], self.index(i)
        g = self.ref(i.args[0])
        twice = any(isinstance(p, Slot) and i.args[p.operand].dtype != bool for p in i.params["index"])
        return [f"{o}.fill(0)", f"{self.xp}.add.at({o}, {at}, {g})" if twice else f"{o}[{at}] = {g}"]

    def do_assign(self, i: Instruction) -> list[str]:
        return [f"{self.names[i.out]}[...] = {self.ref(i.args[0])}"]

    do_copy = do_astype = do_assign

    def do_fill(self, i: Instruction) -> list[str]:
        return [f"{self.names[i.out]}.fill({self.ref(i.args[0])})"]

    def do_relu(self, i: Instruction) -> list[str]:
        v, a = i.out, self.ref(i.args[0])
        if self.xp == "np":  # NumPy's loop for two arrays takes a third of that for an array and a scalar
            shape = v.shape if v.size < 65536 else v.shape[-1:]
            return [f"np.maximum({a}, {self.scratch(shape, v.dtype, 'zeros')}, out={self.names[v]})"]
        return [f"cp.maximum({a}, 0, out={self.names[v]})"]

    def do_where(self, i: Instruction) -> list[str]:
        c, a, b = i.args
        o, v = self.names[i.out], i.out
        bits = {2: "int16", 4: "int32", 8: "int64"}.get(v.dtype.itemsize)
        alike = isinstance(a, Value) and (a.shape, a.strides, a.dtype) == (v.shape, v.strides, v.dtype)
        masked = alike and c.shape == v.shape and c.dtype == bool and type(b) is int and not b
        if self.xp == "np" and masked and v.dtype.kind == "f" and _c_contiguous(v) and bits:
            # the bits times 0 or 1: a third of the time, and as exact for NaN and infinity
            return [f"np.multiply({self.ref(a)}.view(np.{bits}), {self.ref(c)}, out={o}.view(np.{bits}))"]
        if self.xp == "cp":
            return [f"{o}[...] = cp.where({self.ref(c)}, {self.ref(a)}, {self.ref(b)})"]
        return [f"np.copyto({o}, {self.ref(b)}, 'unsafe')", f"np.copyto({o}, {self.ref(a)}, 'unsafe', {self.ref(c)})"]

    def do_sum(self, i: Instruction) -> list[str]:
        dtype = i.params.get("dtype")
        extra = f", dtype={literal(np.dtype(dtype), self.xp)}" if dtype is not None else ""
        call = "np.add.reduce" if self.xp == "np" else "cp.sum"
        return [f"{call}({self.ref(i.args[0])}, {literal(i.params['axis'])}{extra}, out={self.names[i.out]})"]

    def _extreme(self, i: Instruction, ufunc: str) -> list[str]:
        a, axis, o = i.args[0], i.params["axis"], self.names[i.out]
        if self.xp == "cp":
            return [f"cp.{i.op}({self.ref(a)}, {literal(axis)}, out={o})"]
        if len(a.shape) == 2 and axis in (1, -1, (1,)) and 1 < a.shape[1] < 32 < a.shape[0]:
            turned = self.scratch(a.shape[::-1], a.dtype)  # short rows: along columns it is SIMD
            return [f"{turned}[...] = {self.ref(a)}.T", f"np.{ufunc}.reduce({turned}, 0, out={o})"]
        return [f"np.{ufunc}.reduce({self.ref(a)}, {literal(axis)}, out={o})"]

    def do_max(self, i: Instruction) -> list[str]:
        return self._extreme(i, "maximum")

    def do_min(self, i: Instruction) -> list[str]:
        return self._extreme(i, "minimum")

    def do_mean(self, i: Instruction) -> list[str]:
        a, o, axis = i.args[0], self.names[i.out], literal(i.params["axis"])
        if self.xp == "np" and a.dtype.kind == "f" and a.dtype.itemsize >= 4 and a.size:
            n = a.size // i.out.size
            return [f"np.add.reduce({self.ref(a)}, {axis}, out={o})", f"np.divide({o}, {n}, out={o})"]
        if self.xp == "cp":
            return [f"cp.mean({self.ref(a)}, {axis}, out={o})"]
        return [f"{o}[...] = np.mean({self.ref(a)}, {axis})"]

    def do_matmul(self, i: Instruction) -> list[str]:
        a, b = i.args
        outer = self.xp == "np" and len(a.shape) == len(b.shape) == 2 and a.shape[1] == 1 == b.shape[0]
        call = "multiply" if outer else "matmul"  # BLAS takes four times as long with inner dimension 1
        return [f"{self.xp}.{call}({self.ref(a)}, {self.ref(b)}, out={self.names[i.out]})"]

    def do_concatenate(self, i: Instruction) -> list[str]:
        o, whole = self.names[i.out], i.out
        if all(owner is not whole for owner, _ in self.inside.values()):
            return [f"{self.xp}.concatenate({self.ref(i.args[0])}, {i.params['axis']}, out={o})"]
        lines, start, offset = [], 0, 0
        for part in i.args[0]:
            if self.inside.get(part.root) != (whole, offset):  # else it was made there
                lines.append(f"{o}[{start}:{start + part.shape[0]}] = {self.ref(part)}")
            start, offset = start + part.shape[0], offset + part.nbytes
        return lines

    def do_random(self, i: Instruction) -> list[str]:
        rng = self.give(i.params["rng"], "rng")
        if self.xp == "np":
            return [f"{rng}.random(dtype=np.{i.out.dtype.name}, out={self.names[i.out]})"]
        return [f"{self.names[i.out]}.set({rng}.random({literal(i.out.shape)}, '{i.out.dtype.name}'))"]

    def do_upload(self, i: Instruction) -> list[str]:
        return [f"{self.names[i.out]}.set({self.ref(i.args[0])})"]

    def do_check_labels(self, i: Instruction) -> list[str]:
        check = self.give(i.params["call"], "check_labels")
        return [f"{check}({self.ref(i.args[0])}, {i.params['classes']})"]

    def do_check_mask(self, i: Instruction) -> list[str]:
        return [f"{self.give(i.params['call'], 'check_mask')}({self.ref(i.args[0])})"]

    def do_advance(self, i: Instruction) -> list[str]:
        names = ", ".join(self.names[v] for v in i.outs)
        call = f"{self.give(i.params['call'], 'advance')}()"
        return [f"{names}{',' * (len(i.outs) == 1)} = {call}" if names else call]

    def do_call(self, i: Instruction) -> list[str]:
        call = f"{self.give(i.params['call'], 'call')}({', '.join(map(self.ref, i.args))})"
        return [f"{self.names[i.outs[0]]}[...] = {call}" if i.outs else call]

    # -- kernels of a GPU

    def kernel(self, group: Group) -> None:
        if len(group.body) == 1 and group.body[0].op != "where":  # CuPy has that kernel; its `where` takes no `out`
            self.instruction(group.body[0])
            return
        self.xp = "cp"
        for v in group.outs:
            self.declare(v)
        text, reads = kernel_text(group)
        name = self.kernels.get(text)
        if name is None:
            name = self.kernels[text] = f"kernel{len(self.kernels) + 1}"
            self.head += f"{name} = {text}".split("\n")
        self.body.append(f"{name}({', '.join(self.names[v] for v in (*reads, *group.makes))})")


def _library(v: Value) -> str:
    return "np" if v.device == "cpu" else "cp"


def _memory_order(v: Value) -> list[int]:
    """The axes from the one with the widest steps to that with the narrowest: how the array lies in memory."""
    if _c_contiguous(v):
        return list(range(len(v.shape)))
    return sorted(range(len(v.shape)), key=lambda k: (-abs(v.strides[k]), k))


def _c_contiguous(v: Value) -> bool:
    step = v.dtype.itemsize
    for n, stride in zip(reversed(v.shape), reversed(v.strides), strict=True):
        if n != 1 and stride != step:
            return False
        step *= n
    return True


# ---- one kernel for a chain, in CUDA C ----------------------------------------------------------------------------

LARGEST = 40
"""Values of a kernel: its arguments may take 4 KB, and an array of two axes takes 48 bytes, one of five 96."""
C = {
    "add": "{} + {}", "subtract": "{} - {}", "multiply": "{} * {}", "square": "{0} * {0}", "negative": "-{}",
    "positive": "{}", "sign": "{0} > 0 ? 1 : {0} < 0 ? -1 : {0}",
    # CUDA's own max and min prefer a number to NaN
    "maximum": "{0} > {1} || {0} != {0} ? {0} : {1}", "minimum": "{0} < {1} || {0} != {0} ? {0} : {1}",
    "relu": "{0} > 0 || {0} != {0} ? {0} : 0",
    "greater": "{} > {}", "greater_equal": "{} >= {}", "less": "{} < {}", "less_equal": "{} <= {}",
    "equal": "{} == {}", "not_equal": "{} != {}", "isnan": "{0} != {0}", "isfinite": "{0} - {0} == 0",
    "isinf": "{0} == {0} && {0} - {0} != 0",
    "logical_and": "{} && {}", "logical_or": "{} || {}", "logical_not": "!{}", "logical_xor": "!{} != !{}",
    "where": "{} ? {} : {}", "astype": "{}", "copy": "{}", "assign": "{}",
}  # fmt: skip
"""Functions of one element, in terms of operands that have one type."""

_FUNCTIONS = ("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "cbrt", "floor", "ceil", "trunc", "rint")
_ANGLES = ("sin", "cos", "tan", "sinh", "cosh", "tanh")
C_FLOAT = {
    "divide": "{} / {}", "reciprocal": "1 / {}", "absolute": "fabs({})", "fabs": "fabs({})", "power": "pow({}, {})",
    "hypot": "hypot({}, {})", "arctan2": "atan2({}, {})", "fmax": "fmax({}, {})", "fmin": "fmin({}, {})",
    **{name: f"{name}({{}})" for name in _FUNCTIONS + _ANGLES}, **{f"arc{name}": f"a{name}({{}})" for name in _ANGLES},
}  # fmt: skip
"""The same of floats alone: for integers CuPy's own kernels know better, as division and powers round otherwise."""

C_TYPES = {
    "?": "bool", "b": "signed char", "B": "unsigned char", "h": "short", "H": "unsigned short", "i": "int",
    "I": "unsigned int", "l": "long long", "L": "unsigned long long", "q": "long long", "Q": "unsigned long long",
    "e": "float16", "f": "float", "d": "double",
}  # fmt: skip


def in_kernel(i: Instruction) -> bool:
    """True for an instruction that a fused kernel can hold."""
    if i.op not in C and i.op not in C_FLOAT:
        return False
    arrays_of = [v for v in (*i.operands(), *i.outs, *i.writes) if v.dtype is not None]
    if any(v.device == "cpu" or v.dtype.char not in C_TYPES for v in arrays_of) or _unaligned(i, i):
        return False
    return (not i.params or i.op == "astype") and _loop(i) is not None


def _loop(i: Instruction) -> list[np.dtype[Any]] | None:
    """The dtypes in which an instruction takes its operands; None where a kernel cannot do as the library does."""
    operands = [_dtype_of(a) or (float if isinstance(a, Value) else type(a)) for a in i.args]
    if i.op in ("astype", "copy", "assign"):
        return [np.dtype(operands[0])]
    if i.op == "relu":
        return [i.out.dtype]
    if i.op == "where":
        return [np.dtype(operands[0]), i.out.dtype, i.out.dtype]
    try:
        *loop, _ = getattr(np, i.op).resolve_dtypes((*operands, None))
    except TypeError:
        return None
    numbers = [a for a in i.args if type(a) is int]
    fits = loop[0].kind == "f" or all(abs(n) < 2 ** (8 * loop[0].itemsize - 1) for n in numbers)
    return loop if len({*loop}) == 1 and fits and (i.op in C or loop[0].kind == "f") else None


def _dtype_of(a: Ref) -> Any:
    """The dtype of an operand; None for a Python number, which takes that of the others."""
    return np.dtype(bool) if isinstance(a, bool) else getattr(a, "dtype", None)


def kernel_text(group: Group) -> tuple[str, list[Value]]:
    """The text of an ElementwiseKernel, and the values that it takes before those that the group makes."""
    reads = [v for v in group.reads if v not in group.makes and _number(v) is None]
    takes = {v: v.dtype or _number_dtype(group, v) for v in reads}
    names = {v: f"a{k}" for k, v in enumerate(reads)} | {v: f"o{k}" for k, v in enumerate(group.makes)}
    lines = []
    for i in group.body:
        operands = []
        for a, dtype in zip(i.args, _loop(i) or (), strict=True):
            number = _number(a)
            if number is not None:
                operands.append(_c_number(number, dtype))
            else:
                given = takes.get(a, a.dtype)
                operands.append(names[a] if given == dtype != np.float16 else f"({_arithmetic(dtype)}){names[a]}")
        value = ({**C, **C_FLOAT})[i.op].format(*operands)
        if i.out in names:  # memory: CuPy passes it by reference, so that it holds the old value until then
            lines.append(f"{names[i.out]} = {value};")
        else:
            names[i.out] = f"t{len(lines)}"
            lines.append(f"{C_TYPES[i.out.dtype.char]} {names[i.out]} = {value};")
    parameters = [", ".join(f"{t.name} {names[v]}" for v, t in takes.items())]
    parameters.append(", ".join(f"{v.dtype.name} {names[v]}" for v in group.makes))
    name = "_".join(dict.fromkeys(i.op for i in group.body))[:60]
    lines = [f"    {line}" for line in ('"""', *lines, '""",')]
    head = [f'    "{text}",' for text in parameters]
    return "\n".join(("cp.ElementwiseKernel(", *head, *lines, f'    "{name}",', ")")), reads


def _number(a: Ref) -> Any:
    """The number that an operand is at every call; None for what is none."""
    if not isinstance(a, Value):
        return a
    return arrays.to_host(a.array).item() if a.kind == "constant" and a.size == 1 else None


def _number_dtype(group: Group, number: Value) -> np.dtype[Any]:
    """In which dtype a kernel takes a Python number: that in which it is used, if there is only one."""
    used = {t for i in group.body for a, t in zip(i.args, _loop(i) or (), strict=True) if a is number}
    return used.pop() if len(used) == 1 else np.dtype(float)


def _arithmetic(dtype: np.dtype[Any]) -> str:
    """The type in which C computes: float16 is float for that."""
    return "float" if dtype == np.float16 else C_TYPES[dtype.char]


def _c_number(value: Any, dtype: np.dtype[Any]) -> str:
    """A number of a dtype as a constant in C."""
    if dtype.kind != "f":
        text = str(int(dtype.type(value)))
        text += "ll" if dtype.itemsize == 8 else ""
    elif math.isfinite(rounded := float(dtype.type(value))):
        text = str(np.float32(rounded)) if dtype.itemsize < 8 else repr(rounded)
        text = (text if set(text) & {".", "e"} else f"{text}.0") + "f" * (dtype.itemsize < 8)
    else:  # C has no name for these without a header
        zero = "0.0" if dtype.itemsize == 8 else "0.0f"
        return f"({zero} / {zero})" if math.isnan(rounded) else f"({'-' * (rounded < 0)}1 / {zero})"
    return f"({text})" if text[0] == "-" else text
