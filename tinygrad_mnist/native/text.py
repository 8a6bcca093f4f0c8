"""The text of a native loop: a Program as one function of plain Python loops, for Numba to compile.

    def loop(steps, n, order, numbers, consts, draws, a0, a1, m2, out3, t0, t1): ...

runs the program `steps` times, each time for the next `n` numbers of `order`, which name the rows of the arrays `a0`,
`a1`. All arrays are pointers to flat memory, also the buffers `t0`, `t1`: the function allocates nothing.
Elementwise chains and the sums over them are one nest of loops; products of matrices are calls of the BLAS.

There are two forms. With a batch of one, shapes are those of the program, and products are loops, which skip zero
inputs and never store the outer products that only update a weight. A zero that is skipped counts as zero even where
the weight is infinite or NaN. With more rows, they are taken in blocks that stay in the cache: see `batch` for when
that is possible. The text is then the same for every batch of at most a block, and for every larger one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..program import Instruction, Program, Value
from . import units as unit_rules
from .batch import ROWS, VIEWS, Batch, Unsupported, axes_of, gathers, without_copies
from .columns import straightened
from .elements import expression
from .places import Layout, Places, c_strides, cast, nested, plus, times, type_of, view
from .products import Products
from .units import Nest, Plan, Ride, Unit, reads


@dataclass
class _Nest:
    """The lines of a nest that is being written, by where they stand."""

    variables: list[str]
    axes: list[int]  # over which loops go
    env: dict[Value, str] = field(default_factory=dict)
    ahead: list[str] = field(default_factory=list)  # of all loops
    start: list[str] = field(default_factory=list)  # before the innermost loop
    inner: list[str] = field(default_factory=list)
    end: list[str] = field(default_factory=list)  # after the innermost loop
    behind: list[str] = field(default_factory=list)  # all loops


class Text:
    """Writes the loop of a program for a batch: `text`, and the `arguments` of the function.

    `gather`: rows of the arguments are named by `order`; else these are the batch. `grads`: gradients are outputs, too.
    """

    def __init__(self, program: Program, batch: int, *, gather: bool, grads: bool) -> None:
        program = without_copies(program)
        self.program = program = program if batch == 1 else straightened(program, batch)
        self.batch = Batch(program, batch)
        self.outputs = [*program.outputs, *(v for _, v in program.grads if grads)]
        self.plan = Plan(program, self.outputs, self.batch)
        self.places = Places(self.plan, self.batch, gather=gather)
        self.products = Products(self.plan, self.batch, self.places)
        self._emit = self.places.emit
        self._fresh = 0
        self._zeros: list[str] = []  # totals that are one number start from zero at every step
        self._means: list[str] = []  # what divides totals when they are complete
        self.text = self._write()

    @property
    def types(self) -> list[str]:
        """The types of what the function takes, in its order, as C names them."""
        arguments = [a.value.dtype for a in self.places.arguments]
        arrays = ["int64", "float64", "float64", "float32", *arguments, *(b.dtype for b in self.places.buffers)]
        return ["int64", "int64", *(f"{t}*".replace("bool", "uint8") for t in arrays)]

    @property
    def exp(self) -> set[str]:
        """The types of which the text needs exponentials."""
        return {kind for kind in ("f32", "f64") if f"exp{kind[1:]}(" in self.text}

    # -- the whole

    def _write(self) -> str:
        before, rowwise, after = self.plan.phases()
        units = [*before, *rowwise, *after]
        self._last = self.plan.last_uses(units)
        self._join(units)
        self._number = 0
        top = self._phase(before)
        rows = [*self._gathered([*rowwise, *after]), *self._phase(rowwise)]
        rows += self._written([v for v in self.outputs if self.batch.by_row(v)])
        rest = self._phase(after) + self._written([v for v in self.outputs if not self.batch.by_row(v)])
        return self._assemble(top, rows, rest)

    def _phase(self, units: list[Unit]) -> list[str]:
        self.places.lines = []
        for unit in units:
            self._unit(unit)
            if not self.batch.single:
                self.places.release(unit, self._number, self._last)
            self._number += 1
        return self.places.lines

    def _written(self, outputs: list[Value]) -> list[str]:
        self.places.lines = []
        for v in dict.fromkeys(outputs):
            self._output(v)
        return self.places.lines

    def _assemble(self, before: list[str], rows: list[str], after: list[str]) -> str:
        places, single = self.places, self.batch.single
        names = [*places.argument_names(), *(b.name for b in places.buffers)]
        head = [f"def loop(steps, n, order, numbers, consts, draws, {', '.join(names)}):"]
        head += [f"    {places.name(v)} = {type_of(v.dtype)}(consts[{q}])" for q, v in enumerate(places.constants)]
        head += [f"    {line}" for line in self.products.copies(into=True)]
        head.append("    for k in range(steps):")
        count = len(places.numbers)
        step = [f"{places.name(v)} = numbers[k * {count} + {q}]" for q, v in enumerate(places.numbers)]
        width = sum(map(places.width, places.draws))
        at = 0
        for q, v in enumerate(places.draws):
            step.append(f"draw{q} = (k * {width} + {at}) * n")
            at += places.width(v)
        if single:
            step += ["row = order[k]" if places.gather else "row = 0", *before, *rows]
        else:
            block = unit_rules.BLOCK
            step += [*before, *self._zeros, f"for r0 in range(0, n, {block}):", f"    nb = min({block}, n - r0)"]
            step += ["    beta = min(r0, 1)", *(f"    {line}" for line in rows)]
        step += self._means + after
        tail = [f"    {line}" for line in self.products.copies(into=False)]
        return "\n".join([*head, *(f"        {line}" for line in step), *tail, ""])

    def _unit(self, unit: Unit) -> None:
        if isinstance(unit, Nest):
            self._nest(unit)
        elif isinstance(unit, Ride):
            self.products.ride(unit)
        elif unit.op == "matmul":
            self.products.matmul(unit)
        elif unit.op == "concatenate":
            self._concatenate(unit)
        elif unit.op == "scatter_add":
            self._scatter(unit)
        elif unit.op in VIEWS:
            if not unit.out.is_view:  # a view is found when it is used
                self._copy(unit)
        else:
            raise Unsupported(f"{unit.op} at {unit.site.line} has no native loop")

    # -- nests

    def _nest(self, unit: Nest) -> None:
        places = self.places
        variables, axes = places.loops(unit.shape, unit.by_row)
        operands = [v for i in (*unit.body, *unit.reductions) for v in i.operands()]
        if not self.batch.single:  # results may take the memory of what dies here, element by element
            alike = {v for v in operands if v.shape == unit.shape and not v.is_view}
            odd = {v.root for v in operands if v not in alike}
            gathered = {v.root for i in unit.body if gathers(i) for v in i.operands()}
            places.release(unit, self._number, self._last, alike - odd - gathered)
        for v in (*unit.makes, *(i.out for i in unit.reductions)):
            if v.kind == "result":
                places.make(v)
        nest = _Nest(variables, axes)
        for i in unit.body:
            text, kind = expression(i, variables, nest.env, places)
            scalar = i.out in places.scalars
            name = places.name(i.out) + ("_" if (scalar and axes) or i.writes else "")
            nest.inner.append(f"{name} = {cast(text, kind, type_of(i.out.dtype))}")
            nest.env[i.out] = name
        for v in unit.makes:
            if v not in places.scalars:
                nest.inner.append(f"{places.layout(v).name}[{places.index(v, variables)}] = {nest.env[v]}")
            elif nest.env[v] != places.name(v):
                nest.inner.append(f"{places.name(v)} = {nest.env[v]}")
        for i in unit.reductions:
            self._reduce(i, unit, nest)
        heads = places.heads(unit.shape, variables, axes, any(map(places.indirect, operands)))
        self._emit(*nest.ahead, *nested(heads, nest.start, nest.inner, nest.end), *nest.behind)

    def _reduce(self, i: Instruction, unit: Nest, nest: _Nest) -> None:
        """Add the lines of a reduction to those of the nest that makes (or reads) its operand."""
        places, axes, a, out = self.places, nest.axes, i.args[0], i.out
        removed = axes_of(i)
        gone = [d for d in removed if d in axes]
        x, kind = places.load(a, nest.variables, nest.env)
        total = unit.by_row and 0 in removed
        target = type_of(out.dtype)
        divided = f" / {target}({self._count(a, removed, unit.by_row)})" if i.op == "mean" else ""
        if set(gone) == set(axes):  # to one number
            first, more, result = self._accumulator(i, x, kind, axes)
            nest.ahead += first
            nest.inner += more
            self._finish(places.target(out), result, target, divided, total, nest)
            return
        kept = [variable for d, variable in enumerate(nest.variables) if d not in removed]
        place = f"{places.layout(out).name}[{places.index(out, kept)}]"
        if gone == axes[-1:]:  # along the innermost loop
            first, more, result = self._accumulator(i, x, kind, axes)
            nest.start += first
            nest.inner += more
            nest.end.append(f"{place} = {result}{divided}")
        elif not gone:  # over axes of size 1
            known = {"argmax": "i64(0)", "count_nonzero": f"{target}(1) if {x} else {target}(0)"}
            nest.inner.append(f"{place} = {known.get(i.op) or cast(x, kind, target)}")
        elif i.op in ("sum", "mean", "count_nonzero"):
            loops = [[f"for {nest.variables[d]} in range({a.shape[d]}):"] for d in axes if d not in gone]
            if unit.by_row and not total:
                loops[0] = ["for i in range(nb):"]
            zero = nested(loops, [], [f"{place} = {target}(0)"], [])
            nest.ahead += ["if r0 == 0:", *(f"    {line}" for line in zero)] if total else zero
            term = f"({target}(1) if {x} else {target}(0))" if i.op == "count_nonzero" else cast(x, kind, target)
            nest.inner.append(f"{place} += {term}")
            if divided:
                (self._means if total else nest.behind).extend(nested(loops, [], [f"{place} = {place}{divided}"], []))
        else:
            raise Unsupported(f"{i.op} at {i.site.line} over these axes")

    @staticmethod
    def _count(a: Value, removed: tuple[int, ...], by_row: bool) -> str:
        """How many elements a mean is of. The length of the batch is a variable."""
        count = 1
        for d in removed:
            count *= 1 if by_row and d == 0 else a.shape[d]
        over_rows = by_row and 0 in removed
        return str(count) if not over_rows else "n" if count == 1 else f"n * {count}"

    def _accumulator(self, i: Instruction, x: str, kind: str, axes: list[int]) -> tuple[list[str], list[str], str]:
        """(lines before the loop, lines in it, result) of a reduction into a variable."""
        self._fresh += 1
        acc, target = f"s{self._fresh}", type_of(i.out.dtype)
        if i.op in ("max", "min"):
            if target not in ("f32", "f64"):
                raise Unsupported(f"{i.op} of {i.out.dtype} at {i.site.line}")
            low, better = ("-", ">") if i.op == "max" else ("", "<")
            more = [f"{acc} = {x} if {x} {better} {acc} or {x} != {x} else {acc}"]
            return [f"{acc} = {target}({low}np.inf)"], more, acc
        if i.op == "argmax":
            place = self._place_along(i, axes)
            if kind not in ("f32", "f64"):
                raise Unsupported(f"argmax of {i.args[0].dtype} at {i.site.line}")
            more = [f"if {x} > {acc} or ({x} != {x} and {acc} == {acc}):"]
            more += [f"    {acc} = {x}", f"    {acc}_ = i64({place})"]
            return [f"{acc} = {kind}(-np.inf)", f"{acc}_ = i64(0)"], more, f"{acc}_"
        if i.op == "count_nonzero":
            return [f"{acc} = i64(0)"], [f"{acc} += i64(1) if {x} else i64(0)"], cast(acc, "i64", target)
        wide = "f64" if target == "f32" and len(axes_of(i)) > 1 and len(axes) > 1 else target
        return [f"{acc} = {wide}(0)"], [f"{acc} += {cast(x, kind, wide)}"], cast(acc, wide, target)

    def _place_along(self, i: Instruction, axes: list[int]) -> str:
        """The index variable of the only axis that an argmax removes."""
        a = i.args[0]
        long = [d for d in axes_of(i) if d in axes]
        if long != axes[-1:] and long:
            raise Unsupported(f"argmax at {i.site.line} over another axis than the last")
        return self.places.loops(a.shape, False)[0][long[0]] if long else "0"

    def _finish(self, name: str, result: str, target: str, divided: str, total: bool, nest: _Nest) -> None:
        """Store a number that a nest has reduced to; a total of blocks adds up."""
        if not total:
            nest.behind.append(f"{name} = {result}{divided}")
            return
        self._zeros.append(f"{name} = {target}(0)")
        nest.behind.append(f"{name} += {result}")
        if divided:
            self._means.append(f"{name} = {name}{divided}")

    # -- what moves elements

    def _scatter(self, i: Instruction) -> None:
        """Zeros, to which elements are added at places that integer arrays or slices name."""
        places, g, out = self.places, i.args[0], i.out
        places.make(out)
        by_row = self.batch.by_row(out)
        variables, axes = places.loops(out.shape, by_row)
        name, kind = places.layout(out).name, type_of(out.dtype)
        line = f"{name}[{places.index(out, variables)}] = {kind}(0)"
        zero = nested(places.heads(out.shape, variables, axes, False), [], [line], [])
        each_row = any(map(self.batch.by_row, i.operands()))
        self._emit(*(["if r0 == 0:", *(f"    {line}" for line in zero)] if each_row and not by_row else zero))
        variables, axes = places.loops(g.shape, each_row)
        x, source = places.load(g, variables, {})
        if gathers(i):
            into = places.gathered(i, variables)
        else:
            into = places.place(view(places.layout(out), out, i), g.shape, variables)
        heads = places.heads(g.shape, variables, axes, any(map(places.indirect, i.operands())))
        self._emit(*nested(heads, [], [f"{name}[{into}] += {cast(x, source, kind)}"], []))

    def _join(self, units: list[Unit]) -> None:
        """The operands of a concatenate are made where they belong in its result, where that is possible."""
        for unit in units:
            if not isinstance(unit, Instruction) or unit.op != "concatenate":
                continue
            pieces, places = unit.args[0], self.places
            if any(len(v.shape) != 1 or self.batch.by_row(v) for v in pieces):
                raise Unsupported(f"concatenate at {unit.site.line}")
            places.make(unit.out)
            whole = places.layout(unit.out)
            at = 0
            for piece in pieces:
                root, maker = piece.root, self.plan.made_by.get(piece)
                plain = piece is root or (maker is not None and maker.op == "reshape" and maker.args[0] is root)
                own = root.kind == "result" and root.size == piece.size and piece.dtype == unit.out.dtype
                if own and plain and root not in places.layouts:
                    places.layouts[root] = whole._replace(start=str(at), strides=c_strides(root.shape))
                    places.joined.add(root)
                at += piece.size

    def _concatenate(self, i: Instruction) -> None:
        places = self.places
        whole, kind = places.layout(i.out), type_of(i.out.dtype)
        at = 0
        for piece in i.args[0]:
            there = piece.root in places.joined and places.layout(piece) == whole._replace(start=str(at))
            if not there:
                x, source = places.load(piece, ["j"], {})
                self._emit(f"for j in range({piece.size}):",
                           f"    {whole.name}[{plus(str(at), 'j')}] = {cast(x, source, kind)}")  # fmt: skip
            at += piece.size

    def _copy(self, i: Instruction) -> None:
        """What would be a view if its memory did not change, or were contiguous."""
        places, a, out = self.places, i.args[0], i.out
        by_row = self.batch.by_row(out)
        places.make(out)
        shape = a.shape if i.op == "reshape" else out.shape
        variables, axes = places.loops(shape, by_row)
        if i.op == "reshape":
            source, _ = places.load(a, variables, {})
            index = plus(places.layout(out).start, _flat(variables, axes, shape))
        else:
            part = view(places.layout(a), a, i)
            source = places.read(part.name, places.place(part, shape, variables), a.dtype)
            index = places.index(out, variables)
        target = places.name(out) if out in places.scalars else f"{places.layout(out).name}[{index}]"
        heads = places.heads(shape, variables, axes, places.indirect(a))
        self._emit(*nested(heads, [], [f"{target} = {source}"], []))

    # -- what enters and leaves

    def _gathered(self, units: list[Unit]) -> list[str]:
        """The rows of arguments that products read, side by side."""
        places = self.places
        places.lines = []
        if self.batch.single or not places.gather:
            return []
        for unit in units:
            product = isinstance(unit, Ride) or (isinstance(unit, Instruction) and unit.op == "matmul")
            for root in dict.fromkeys(v.root for v in reads(unit) if product and places.indirect(v.root)):
                width, source = places.width(root), places.layouts[root].name
                name = places.buffer(width, type_of(root.dtype), rows=True)
                for v in [v for v in places.layouts if v.root is root]:
                    del places.layouts[v]
                places.layouts[root] = Layout(name, "0", c_strides(root.shape))
                row = f"order[k * n + r0 + i] * {width}"
                copy = f"{name}[i * {width} + j] = {source}[row + j]"
                nest = nested([["for i in range(nb):", f"row = {row}"], [f"for j in range({width}):"]], [], [copy], [])
                if self.products.gathers_few(root, units):
                    listed = self.products.list_columns(root, source, row)
                    nest = [f"if not few{listed}:", *(f"    {line}" for line in nest)]
                self._emit(*nest)
        return places.lines

    def _output(self, v: Value) -> None:
        places, by_row = self.places, self.batch.by_row(v)
        if by_row and self.batch[v] != ROWS:
            raise Unsupported("the transpose of a batch is returned")
        name = places.argument("output", v)
        variables, axes = places.loops(v.shape, by_row)
        x, _ = places.load(v, variables, {})
        start = times("(k * n + r0)", places.width(v)) if by_row else times("k", v.size)
        index = plus(start, _flat(variables, axes, v.shape)) if axes else start
        heads = places.heads(v.shape, variables, axes, places.indirect(v))
        self._emit(*nested(heads, [], [f"{name}[{index}] = {x}"], []))


def _flat(variables: list[str], axes: list[int], shape: tuple[int, ...]) -> str:
    """The index of an element of a contiguous array."""
    strides = c_strides(shape)
    return " + ".join(times(variables[d], strides[d]) for d in axes) or "0"
