"""Where the values of a loop lie: in arguments, in buffers, in variables; and how an element of one is written."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..program import Instruction, Ref, Value
from .batch import ALIKE, COUNTS, FIXED, ROWS, TURNED, VIEWS, Batch, Unsupported, gathers, indices
from .units import Plan, Unit, touched

DTYPES = {"f32": "float32", "f64": "float64", "i32": "int32", "i64": "int64", "b1": "bool"}
LINE = 64
"""Bytes of a line of the cache."""
PAD = 16
"""Rows of weights are padded to a multiple of this many elements where only products use them: whole vectors."""


def type_of(dtype: Any) -> str:
    """The name of a dtype in the text. All integers are one."""
    if dtype.isnative:
        if dtype.kind == "f" and dtype.itemsize in (4, 8):
            return f"f{8 * dtype.itemsize}"
        if dtype.kind == "b":
            return "b1"
        if dtype.kind in "iu":
            return "i64"
    raise Unsupported(f"{dtype} has no native loop")


def cast(text: str, source: str, target: str) -> str:
    return text if source == target else f"{target}({text})"


def number(text: str, kind: str, target: str) -> str:
    """An operand as a number of a type; Python numbers take the type of what they meet."""
    if kind == target or (target == "i64" and kind == "number"):
        return text
    return f"{target}({text})" if target != "b1" else f"({text} != 0)"


def plus(start: str, index: str) -> str:
    return index if start in ("", "0") else f"{start} + {index}"


def times(variable: str, step: int) -> str:
    return variable if step == 1 else f"{variable} * {step}"


def up(n: int) -> int:
    """The next multiple of PAD."""
    return -(-n // PAD) * PAD


def c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous array."""
    return tuple(math.prod(shape[d + 1 :]) for d in range(len(shape)))


class Layout(NamedTuple):
    """Where an array lies: element (i, j, ...) is `name[start + i * strides[0] + j * strides[1] + ...]`."""

    name: str
    start: str
    strides: tuple[int, ...]


def view(base: Layout, a: Value, i: Instruction) -> Layout:
    """The layout of what a view instruction makes of an array."""
    if i.op == "reshape":
        return base._replace(strides=_reshaped(a.shape, base.strides, i))
    dummy = np.lib.stride_tricks.as_strided(np.empty(1, np.uint8), a.shape, base.strides, writeable=False)
    if "index" in i.params:
        part = dummy[i.params["index"]]
    elif i.op == "transpose":
        part = dummy.transpose(i.params["axes"])
    else:
        part = np.broadcast_to(dummy, i.params["shape"])
    shift = part.__array_interface__["data"][0] - dummy.__array_interface__["data"][0]
    start = base.start if not shift else f"{base.start} + {shift}" if base.start else f"{shift}"
    return Layout(base.name, start, tuple(0 if n == 1 else s for n, s in zip(part.shape, part.strides, strict=True)))


def _reshaped(shape: tuple[int, ...], strides: tuple[int, ...], i: Instruction) -> tuple[int, ...]:
    """Strides of the same elements under another shape: runs of axes that are one contiguous axis are cut anew."""
    runs: list[tuple[int, int]] = []  # (length, stride of its last axis)
    for n, s in zip(shape, strides, strict=True):
        if n != 1 and runs and runs[-1][1] == n * s:
            runs[-1] = runs[-1][0] * n, s
        elif n != 1:
            runs.append((n, s))
    found: list[int] = []
    left, step = 1, 0  # what the present run still has, and the stride of its last axis
    for n in i.params["shape"]:
        if n != 1 and left == 1:
            left, step = runs.pop(0)
        if left % n:
            raise Unsupported(f"reshape at {i.site.line} of an array that is not contiguous")
        left //= n
        found.append(0 if n == 1 else left * step)
    return tuple(found)


class Argument(NamedTuple):
    """An array that the function takes, flat: what it is, and which."""

    kind: str  # "input", "memory", "constant" or "output"
    value: Value
    array: Any = None  # what is handed over where no call chooses it

    @property
    def letter(self) -> str:
        return {"input": "a", "memory": "m", "constant": "c", "output": "out"}[self.kind]


class Buffer(NamedTuple):
    """Memory that the function takes to work in, flat, too."""

    name: str
    kind: str
    size: int
    rows: bool  # the size is that of one row of a block
    zeros: bool

    @property
    def dtype(self) -> Any:
        return np.dtype(DTYPES[self.kind])

    def make(self, rows: int) -> Any:
        """The memory, for blocks of so many rows. It begins where a line of the cache does: with the vectors of other
        places, loops take up to twice as long."""
        size, spare = self.size * (rows if self.rows else 1), LINE // self.dtype.itemsize
        memory = (np.zeros if self.zeros else np.empty)(size + spare, self.dtype)
        start = -(memory.__array_interface__["data"][0] // self.dtype.itemsize) % spare
        return memory[start : start + size]


class Places:
    """The places of all values, and the lines of the text that is being written."""

    def __init__(self, plan: Plan, batch: Batch, *, gather: bool) -> None:
        self.plan, self.batch, self.gather = plan, batch, gather
        self.made_by = plan.made_by
        self.layouts: dict[Value, Layout] = {}
        self.arguments: list[Argument] = []
        self.constants: list[Value] = []  # those that are one number
        self.numbers: list[Value] = []
        self.draws: list[Value] = []
        self.buffers: list[Buffer] = []
        self.scalars: set[Value] = set()  # values that are a variable
        self._counters: set[Value] = set()  # constants that are an index variable
        self.joined: set[Value] = set()  # values that are made inside a concatenation
        self.lines: list[str] = []
        self._names: dict[Value, str] = {}
        self._free: dict[Any, list[str]] = {}
        self._arrays = {v.root for i in plan.program.instructions for v in _by_address(i, batch)}
        for v in plan.program.values():
            self._enter(v)
        for i in plan.program.instructions:
            if i.op == "random":
                self._enter_random(i)

    def emit(self, *lines: str) -> None:
        self.lines += lines

    def name(self, v: Value) -> str:
        """The variable of a value."""
        return self._names.setdefault(v, f"v{len(self._names)}")

    # -- what enters

    def argument(self, kind: str, v: Value, array: Any = None) -> str:
        """The name of an argument."""
        k = next((k for k, a in enumerate(self.arguments) if a.kind == kind and a.value is v), len(self.arguments))
        if k == len(self.arguments):
            self.arguments.append(Argument(kind, v, array))
        return f"{self.arguments[k].letter}{k}"

    def argument_names(self) -> list[str]:
        return [f"{a.letter}{k}" for k, a in enumerate(self.arguments)]

    def _enter(self, v: Value) -> None:
        if v.kind == "memory":
            self._enter_memory(v)
        elif v.kind == "input":
            self._enter_input(v)
        elif v.kind == "constant":
            self._enter_constant(v)
        elif v.kind == "number":
            self.numbers.append(v)
            self.scalars.add(v)
        elif v.kind == "grad":
            raise Unsupported("gradients that add up over the calls")

    def _enter_memory(self, v: Value) -> None:
        owner = v.root.array
        whole = isinstance(owner, np.ndarray) and owner.flags.c_contiguous and owner.flags.aligned
        if not whole or owner.dtype != v.dtype:
            raise Unsupported("memory that is not contiguous")
        start = (v.array.__array_interface__["data"][0] - owner.__array_interface__["data"][0]) // owner.itemsize
        strides = tuple(s // owner.itemsize for s in v.array.strides)
        if self.batch.assumed.get(v) == ALIKE:
            strides = (0, *strides[1:])
        self.layouts[v] = Layout(self.argument("memory", v.root, owner), str(start), strides)

    def _enter_input(self, v: Value) -> None:
        if self.batch[v] != ROWS and not self.batch.single:
            raise Unsupported("an argument has another length than the batch")
        strides = c_strides(v.shape)
        start = f"row * {v.size}"
        if not self.batch.single:
            start = "" if self.gather else f"r0 * {strides[0]}"  # "": rows are named by `order`, see `index`
        self.layouts[v] = Layout(self.argument("input", v), start, strides)

    def _enter_constant(self, v: Value) -> None:
        array = v.array
        bits = np.ascontiguousarray(array).reshape(-1).view(f"V{array.itemsize}")  # 0.0 and -0.0 are two numbers
        if (bits == bits[0]).all() and v not in self._arrays:
            self.constants.append(v)
            self.scalars.add(v)
        elif self.batch.counts(v) and v not in self._arrays:
            self._counters.add(v)
        else:
            strides = c_strides(v.shape)
            if not self.batch.single and array.shape and array.shape[0] == self.batch.size and self.batch.alike(v):
                array, strides = array[:1], (0, *strides[1:])  # so that the text is the same for another batch
            self.layouts[v] = Layout(self.argument("constant", v, array), "0", strides)

    def _enter_random(self, i: Instruction) -> None:
        v = i.out
        generators = {id(j.params["rng"]) for j in self.plan.program.instructions if j.op == "random"}
        if v.dtype != np.float32 or len(generators) > 1:
            raise Unsupported("random numbers of several generators")
        q = len(self.draws)
        self.draws.append(v)
        start = f"draw{q}" if self.batch.single else f"draw{q} + r0 * {self.width(v)}"
        self.layouts[v] = Layout("draws", start, c_strides(v.shape))

    def width(self, v: Value) -> int:
        """The elements of a value that belong to a row."""
        return v.size // self.batch.size if self.batch.single or self.batch[v] == ROWS else v.size

    # -- where a value lies

    def layout(self, v: Value) -> Layout:
        """Where a value lies; of a view, by what it is a view of."""
        found = self.layouts.get(v)
        if found is None:
            i = self.made_by[v]
            if i.op not in VIEWS or not v.is_view:
                raise Unsupported(f"{i.op} at {i.site.line} has no native loop")
            a = i.args[0]
            found = self.layouts[v] = view(self.layout(a), a, i)
            if a in self.scalars:
                self.scalars.add(v)
        return found

    def indirect(self, v: Value) -> bool:
        """True where the rows of a value are those of an input that `order` names."""
        return self.gather and not self.batch.single and v.root.kind == "input" and self.layout(v).name.startswith("a")

    def index(self, v: Value, variables: list[str]) -> str:
        """The index of an element of `v`, which broadcasts to the shape over which `variables` run."""
        own = variables[len(variables) - len(v.shape) :] if v.shape else []
        return self.place(self.layout(v), v.shape, ["row", *own[1:]] if self.indirect(v) else own)

    @staticmethod
    def place(layout: Layout, shape: tuple[int, ...], variables: list[str]) -> str:
        """The index of an element of an array of a layout."""
        terms = [layout.start] if layout.start and layout.start != "0" else []
        for x, n, s in zip(variables, shape, layout.strides, strict=True):
            if n != 1 and s and x != "0":
                terms.append(times(x if s == 1 or x.isidentifier() else f"({x})", s))
        return " + ".join(terms) or "0"

    def load(self, ref: Ref, variables: list[str], env: dict[Value, str]) -> tuple[str, str]:
        """(text, type) of an operand. `env`: variables of what was just computed."""
        if not isinstance(ref, Value):
            return _literal(ref)
        if ref in env:
            return env[ref], type_of(ref.dtype)
        if ref.kind == "number":
            return self.name(ref), "number"
        if self.batch.assumed.get(ref) == COUNTS or ref in self._counters:
            return self._counter(ref, variables), "i64"
        if ref not in self.scalars:
            self.layout(ref)
        if ref in self.scalars:
            return self.name(ref if ref.root is ref or ref.kind == "constant" else ref.root), type_of(ref.dtype)
        return self.read(self.layout(ref).name, self.index(ref, variables), ref.dtype), type_of(ref.dtype)

    @staticmethod
    def read(name: str, index: str, dtype: Any) -> str:
        """An element; booleans are bytes in memory."""
        return f"({name}[{index}] != 0)" if type_of(dtype) == "b1" else f"{name}[{index}]"

    def _counter(self, v: Value, variables: list[str]) -> str:
        """An element of 0, 1, 2, ...: the index variable of its long axis."""
        long = max(range(len(v.shape)), key=lambda d: v.shape[d])
        variable = variables[len(variables) - len(v.shape) + long]
        return "(r0 + i)" if variable == "i" else variable

    def element(self, v: Value, j: str) -> str:
        """Element j of a value that has at most one axis longer than 1."""
        layout = self.layout(v)
        stride = max(((n, s) for n, s in zip(v.shape, layout.strides, strict=True)), default=(1, 1))[1]
        return f"{layout.name}[{plus(layout.start, j if stride == 1 else f'({j}) * {stride}')}]"

    def gathered(self, i: Instruction, variables: list[str]) -> str:
        """The index of the element that a gather reads (or a scatter adds to), by integer arrays."""
        a = i.args[0] if i.op == "getitem" else i.out
        arrays = indices(i)
        ndim = max(len(v.shape) for v in arrays)
        rest = variables[ndim:]
        parts = []
        for d, v in enumerate(arrays):
            if d == 0 and self.batch.by_row(a) and self.batch[a] == ROWS:
                parts.append("i")
                continue
            text = f"i64({self.load(v, variables[:ndim], {})[0]})"
            parts.append(f"({text} + ({a.shape[d]} if {text} < 0 else 0))")
        return self.index(a, [*parts, *rest])

    # -- buffers

    def buffer(self, size: int, kind: str, name: str = "", *, rows: bool = False, zeros: bool = False) -> str:
        """The name of a new buffer."""
        self.buffers.append(Buffer(name or f"t{len(self.buffers)}", kind, size, rows, zeros))
        return self.buffers[-1].name

    def make(self, v: Value) -> None:
        """Give a result its place: a variable where it is one number, else a buffer."""
        if v in self.layouts or v in self.scalars:
            return
        by_row = self.batch.by_row(v)
        if v.size == 1 and not by_row and v.root not in self._arrays:
            self.scalars.add(v)
            self.layouts[v] = Layout(self.name(v), "0", (0,) * len(v.shape))
            return
        pool = self._free.get(self._size(v), [])
        if pool and by_row:
            name = pool.pop()
        elif by_row:
            name = self.buffer(self.width(v), type_of(v.dtype), rows=True, zeros=True)
        else:
            name = self.buffer(up(v.size) if self.batch.single else v.size, type_of(v.dtype), zeros=True)
        self.layouts[v] = Layout(name, "0", c_strides(v.shape))

    def _size(self, v: Value) -> tuple[int, str]:
        return self.width(v), type_of(v.dtype)

    def target(self, v: Value) -> str:
        """Where a result of one element is written: its variable, or its element of an array."""
        return self.name(v) if v in self.scalars else f"{self.layout(v).name}[{self.layout(v).start}]"

    def release(self, unit: Unit, k: int, last: dict[Value, int], only: set[Value] | None = None) -> None:
        """Let the buffers of rows that no later unit touches serve again."""
        for v in dict.fromkeys(v.root for v in touched(unit)):
            own = v.kind == "result" and v in self.layouts and v not in self.draws and v not in self.scalars
            if own and last.get(v) == k and self.batch.by_row(v) and (only is None or v in only):
                self._free.setdefault(self._size(v), []).append(self.layouts[v].name)
                last[v] = -1

    # -- loops

    def loops(self, shape: tuple[int, ...], by_row: bool) -> tuple[list[str], list[int]]:
        """The index variables over a shape, and the axes over which loops go."""
        variables = ["i" if by_row and d == 0 else "0" if n == 1 else f"j{d}" for d, n in enumerate(shape)]
        return variables, [d for d, x in enumerate(variables) if x != "0"]

    def heads(self, shape: tuple[int, ...], variables: list[str], axes: list[int], indirect: bool) -> list[list[str]]:
        """The first lines of these loops."""
        found: list[list[str]] = []
        for d in axes:
            if variables[d] == "i":
                found.append(["for i in range(nb):", *["row = order[k * n + r0 + i]"] * indirect])
            else:
                found.append([f"for {variables[d]} in range({shape[d]}):"])
        return found

    def matrix(self, v: Value) -> tuple[str, str, int]:
        """(transposed or not, pointer, leading dimension) of an operand of the BLAS; a vector is a column."""
        layout = self.layout(v)
        role = FIXED if self.batch.single else self.batch[v]
        found = _blas_form(v, layout, role) or _blas_form(v, layout := self._packed(v, role), role)
        assert found is not None
        return found[0], f"ptr({layout.name}, {layout.start or 0})", found[1]

    def _packed(self, v: Value, role: str) -> Layout:
        """A copy of a matrix whose rows and columns are both apart; rows of a batch are rows of the copy."""
        variables, sizes = ["i", "j"][: len(v.shape)], [str(n) for n in v.shape]
        inner = v.shape[0] if role == TURNED else math.prod(v.shape[1:])
        if role == TURNED:
            variables, sizes = ["j", "i"], [sizes[0], "nb"]
        elif role == ROWS:
            sizes[0] = "nb"
        by_row = role in (ROWS, TURNED)
        name = self.buffer(inner if by_row else v.size, type_of(v.dtype), rows=by_row)
        source = f"{self.layout(v).name}[{self.index(v, variables)}]"
        heads = [[f"for {x} in range({n}):"] for x, n in sorted(zip(variables, sizes, strict=True))]
        place = plus(times("i", inner), "j") if len(v.shape) == 2 else "i"
        self.emit(*nested(heads, [], [f"{name}[{place}] = {source}"], []))
        return Layout(name, "0", (1, inner) if role == TURNED else c_strides(v.shape))


def _blas_form(v: Value, layout: Layout, role: str) -> tuple[str, int] | None:
    """(transposed or not, leading dimension) of a matrix that the BLAS can take; None for another."""
    (n0, n1), (s0, s1) = (v.shape, layout.strides) if len(v.shape) == 2 else ((*v.shape, 1), (*layout.strides, 1))
    forms = [("KEEP", n0, n1, s0, s1), ("TURN", n1, n0, s1, s0)]
    for turned, rows, columns, step, along in reversed(forms) if role == TURNED else forms:
        if (along == 1 or columns == 1) and (rows == 1 or step >= columns):
            return turned, max(step, columns)
    return None


def _by_address(i: Instruction, batch: Batch) -> list[Value]:
    """What must not be a variable for this instruction, not even if it is one number."""
    if i.op == "matmul":
        return [*i.operands(), *([] if batch.single else i.outs)]
    if i.op in ("concatenate", "scatter_add"):
        return [*i.operands(), *i.outs]
    return list(i.operands()) if gathers(i) else []


def nested(heads: list[list[str]], start: list[str], inner: list[str], end: list[str]) -> list[str]:
    """Loops around lines; `start` and `end` stand before and after the innermost loop."""
    lines: list[str] = []
    for depth, (first, *rest) in enumerate(heads):
        if depth == len(heads) - 1:
            lines += [f"{'    ' * depth}{line}" for line in start]
        lines += [f"{'    ' * depth}{first}", *(f"{'    ' * (depth + 1)}{line}" for line in rest)]
    lines += [f"{'    ' * len(heads)}{line}" for line in inner]
    lines += [f"{'    ' * (len(heads) - 1)}{line}" for line in end]
    return lines


def _literal(ref: Any) -> tuple[str, str]:
    """(text, type) of a number of the program. A Python number has no type of its own."""
    kind = type_of(ref.dtype) if isinstance(ref, np.generic) else "b1" if isinstance(ref, bool) else "number"
    value = ref.item() if isinstance(ref, np.generic) else ref
    if isinstance(value, float) and not math.isfinite(value):
        text = {"inf": "np.inf", "-inf": "-np.inf", "nan": "np.nan"}[str(float(value))]
    else:
        text = float.__repr__(value) if isinstance(value, float) else repr(value)
    return (f"{kind}({text})" if isinstance(ref, np.generic) and kind != "b1" else text), kind
