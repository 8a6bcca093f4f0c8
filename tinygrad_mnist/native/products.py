"""Products of matrices: calls of the BLAS; for a batch of one, loops that skip zeros, over padded rows of weights."""

from __future__ import annotations

import math

from ..program import Instruction, Value
from .batch import ROWS, TOTAL, Batch, Unsupported
from .places import Layout, Places, cast, nested, number, plus, type_of, up
from .units import Plan, Ride, Unit, made, reads, touched

UNROLL = 4
"""Rows of a weight that one pass over the result adds."""
WIDE, NARROW, TALL = 256, 256, 64
"""Inputs that are zero in all rows of a batch are looked for where there are so many inputs, at most so many results,
and so many rows: else the copies take longer than the products."""
FEW = 0.8
"""Up to this share of inputs that are not, a product with them alone is worth the copies that it takes."""


class Products:
    """Writes products, and updates by them, into the lines of `places`."""

    def __init__(self, plan: Plan, batch: Batch, places: Places) -> None:
        self.plan, self.batch, self.places = plan, batch, places
        self.padded: dict[Value, tuple[str, Layout]] = {}  # weights: their buffer, and where they come from
        self._lists: dict[Layout, str] = {}  # vectors of which the non-zero elements are listed
        self._columns: dict[Layout, str] = {}  # batches of which the columns that are not zero are listed
        self._along: dict[int, Ride] = {}  # updates that share the loop of a product, by the id of that
        if batch.single:
            self._pad_weights()
            self._along = {id(u): ride for k, u in enumerate(plan.units) if (ride := self._update_along(k))}

    def matmul(self, i: Instruction) -> None:
        a, b = i.args
        if len(a.shape) > 2 or len(b.shape) > 2:
            raise Unsupported(f"matmul at {i.site.line} of {len(a.shape)} and {len(b.shape)} axes")
        if not self.batch.by_row(a) and not self.batch.by_row(b) and self._vector_product(i):
            return
        self.places.make(i.out)
        place = self.places.layout(i.out)
        over_rows = self.batch[i.out] == TOTAL and self.batch.by_row(b)
        beta = "beta" if over_rows else "0"
        self._blas(a, b, place, "1", beta)

    def ride(self, ride: Ride) -> None:
        """The update of a parameter by its gradient, or by the product that is its gradient."""
        if any(ride is done for done in self._along.values()):
            return
        name, start = self._updated(ride)
        kind = type_of(ride.target.dtype)
        rate = number(*self.places.load(ride.rate, [], {}), kind)
        if ride.product is None:
            x, source = self.places.load(ride.gradient, ["j"], {})
            self.places.emit(f"for j in range({ride.gradient.size}):")
            self.places.emit(f"    {name}[{plus(start, 'j')}] -= {rate} * {cast(x, source, kind)}")
        elif self.batch.single and ride.product[0].shape[1] == 1:
            self._rank_one(ride.product[0], ride.product[1], Layout(name, start, ()), rate)
        else:
            self._blas(*ride.product, Layout(name, start, ()), f"-{rate}", "1")

    # -- the BLAS

    def _blas(self, a: Value, b: Value, place: Layout, alpha: str, beta: str) -> None:
        """c = alpha a @ b + beta c, where `c` is the contiguous matrix at a place."""
        kind = type_of(a.dtype)
        if a.dtype != b.dtype or kind not in ("f32", "f64"):
            raise Unsupported("a product of other numbers than float32 or float64")
        left, pa, lda = self.places.matrix(a)
        right, pb, ldb = self.places.matrix(b)
        if len(a.shape) == 1:  # a row
            left, (m, inner) = "TURN", (1, a.shape[0])
        else:
            m, inner = a.shape
        columns = b.shape[1] if len(b.shape) == 2 else 1
        over_rows = self.batch.by_row(b)
        rows = "nb" if self.batch.by_row(a) and not over_rows else m
        gemm, depth = "sgemm" if kind == "f32" else "dgemm", "nb" if over_rows else inner
        call = (
            f"{gemm}(ROW, {left}, {right}, {rows}, {columns}, {depth}, {kind}({alpha}), {pa}, {lda}, {pb}, {ldb}, "
            f"{kind}({beta}), ptr({place.name}, {place.start}), {columns})"
        )
        x = self._behind(a)
        if self._may_have_empty_columns(x, b):
            name = self._listed_columns(x)
            few = self._product_of_few(name, gemm, x, b, place, alpha, beta, over_rows)
            self.places.emit(f"if few{name}:", *(f"    {line}" for line in few), "else:")
            call = f"    {call}"
        self.places.emit(call)

    # -- columns of a batch that are zero: pixels at the rim of all its images

    def _may_have_empty_columns(self, x: Value, b: Value) -> bool:
        """True where the columns of the batch `x` are looked at before a product of it, or its transpose, with `b`."""
        if self.batch.single or self.batch[x] != ROWS or len(x.shape) != 2 or len(b.shape) != 2:
            return False
        whole = b.root is b if b.array is None else b.array.flags.c_contiguous
        return x.shape[1] >= WIDE and b.shape[1] <= NARROW and whole and self._sparse(x, relu=False)

    def gathers_few(self, root: Value, units: list[Unit]) -> bool:
        """True where an argument is used in such products alone: its other columns need not be gathered."""
        for u in units:
            if not any(v.root is root for v in reads(u)) or (isinstance(u, Instruction) and u.op == "transpose"):
                continue
            product = u.product if isinstance(u, Ride) else None
            if isinstance(u, Instruction) and u.op == "matmul":
                product = u.args[0], u.args[1]
            if product is None or product[1].root is root:
                return False
            if not self._may_have_empty_columns(self._behind(product[0]), product[1]):
                return False
        return True

    def list_columns(self, x: Value, source: str, row: str) -> str:
        """Write the list of the columns of a batch that are not zero, and the batch with these alone; their name.

        Element j of row i is `source[row + j]`.
        """
        width, kind = x.shape[1], type_of(x.dtype)
        name = self._columns[self.places.layout(x)] = str(len(self._columns))
        self.places.buffer(width, "i32", f"seen{name}")
        self.places.buffer(width, "i64", f"col{name}")
        self.places.buffer(width, kind, f"xc{name}", rows=True)
        self.places.emit(
            f"for j in range({width}):", f"    seen{name}[j] = 0",
            "for i in range(nb):", f"    row = {row}", f"    for j in range({width}):",
            f"        seen{name}[j] |= np.int32({source}[row + j] != 0)",
            f"few{name}_ = 0", f"for j in range({width}):", f"    col{name}[few{name}_] = j",
            f"    few{name}_ += seen{name}[j]",
            f"few{name}_ = max(few{name}_, 1)",  # gemm takes no empty matrix
            f"few{name} = few{name}_ <= {int(FEW * width)} and nb >= {TALL}",
            f"if few{name}:", "    for i in range(nb):",
            f"        row, o0 = {row}, i * few{name}_", f"        for j in range(few{name}_):",
            f"            xc{name}[o0 + j] = {source}[row + col{name}[j]]",
        )  # fmt: skip
        return name

    def _listed_columns(self, x: Value) -> str:
        layout = self.places.layout(x)
        found = self._columns.get(layout)
        return found or self.list_columns(x, layout.name, plus(layout.start, f"i * {x.shape[1]}"))

    def _product_of_few(
        self, name: str, gemm: str, x: Value, b: Value, place: Layout, alpha: str, beta: str, over_rows: bool
    ) -> list[str]:
        """c = alpha a @ b + beta c, where `a` is x or its transpose, with the columns of x that are not zero."""
        kind, columns = type_of(x.dtype), b.shape[1]
        layout = self.places.layout(b)
        part = self.places.buffer(x.shape[1] * columns, kind)
        count = f"few{name}_"
        each = [f"for p in range({count}):", f"    o0 = col{name}[p] * {columns}"]
        each.append(f"    for j in range({columns}):")
        if not over_rows:
            source = f"{layout.name}[{plus(layout.start, 'o0 + j')}]"
            return [
                *each, f"        {part}[p * {columns} + j] = {source}",
                f"{gemm}(ROW, KEEP, KEEP, nb, {columns}, {count}, {kind}({alpha}), ptr(xc{name}, 0), {count}, "
                f"ptr({part}, 0), {columns}, {kind}({beta}), ptr({place.name}, {place.start}), {columns})",
            ]  # fmt: skip
        into = f"{place.name}[{plus(place.start, 'o0 + j')}]"
        added = [*each, f"        {into} += {part}[p * {columns} + j]"]
        spread = [
            "p = 0", f"for q in range({x.shape[1]}):", f"    o0 = q * {columns}", f"    if seen{name}[q] != 0:",
            f"        for j in range({columns}):", f"            {into} = {part}[p * {columns} + j]", "        p += 1",
            "    else:", f"        for j in range({columns}):", f"            {into} = {kind}(0)",
        ]  # fmt: skip
        if beta != "1":  # the first block writes, the others add
            added = ["if r0 == 0:", *(f"    {line}" for line in spread), "else:", *(f"    {line}" for line in added)]
        return [
            f"{gemm}(ROW, TURN, KEEP, {count}, {columns}, nb, {kind}({alpha}), ptr(xc{name}, 0), {count}, "
            f"ptr({layout.name}, {layout.start or 0}), {columns}, {kind}(0), ptr({part}, 0), {columns})",
            *added,
        ]

    # -- loops, for one row

    def _vector_product(self, i: Instruction) -> bool:
        """A product in which one operand has one row or column, as loops; False where it is none."""
        a, b, out = *i.args, i.out
        inner, rows = a.shape[-1], math.prod(a.shape[:-1])
        columns = b.shape[1] if len(b.shape) == 2 else 1
        if rows > 1 and columns > 1:
            if inner == 1:
                self._outer(a, b, out)
            return inner == 1
        vector, matrix = (a, b) if rows == 1 else (b, a)
        layout = self.places.layout(matrix)
        strides = layout.strides if len(matrix.shape) == 2 else (layout.strides[0], 0)
        along, across = strides if rows == 1 else strides[::-1]
        self.places.make(out)
        if across == 1 and out.size > 1:
            self._rows_added(vector, matrix, out, along)
        else:
            self._dots(vector, matrix, out, along, across, self._along.get(id(i)))
        return True

    def _rows_added(self, vector: Value, matrix: Value, out: Value, step: int) -> None:
        """vector @ matrix, of which each row is contiguous."""
        emit, kind = self.places.emit, type_of(out.dtype)
        z, m = self.places.layout(out), self.places.layout(matrix)
        width = up(out.size) if self._behind(matrix) in self.padded and self._whole(out) else out.size
        into = f"{z.name}[{plus(z.start, 'j')}]"
        emit(f"for j in range({width}):", f"    {into} = {kind}(0)")
        n = vector.size
        sparse = self._sparse(vector)
        unroll = UNROLL if sparse else max(u for u in range(1, UNROLL + 1) if n % u == 0)
        bound = str(n)
        if sparse:
            count, place, value = self._listed(vector)
            bound = f"{count} // {unroll} * {unroll}"

        def lines(at: str, u: int) -> list[str]:
            x, row = (f"{value}[{at}]", f"{place}[{at}]") if sparse else (self.places.element(vector, at), at)
            return [f"    x{u} = {x}", f"    o{u} = ({row}) * {step}"]

        def term(u: int) -> str:
            return f"x{u} * {m.name}[{plus(m.start, f'o{u} + j')}]"

        emit(f"for p in range(0, {bound}, {unroll}):")
        for u in range(unroll):
            emit(*lines(f"p + {u}" if u else "p", u))
        emit(f"    for j in range({width}):", f"        {into} += {' + '.join(map(term, range(unroll)))}")
        if sparse:
            emit(f"for p in range({bound}, {count}):", *lines("p", 0),
                 f"    for j in range({width}):", f"        {into} += {term(0)}")  # fmt: skip

    def _dots(
        self, vector: Value, matrix: Value, out: Value, along: int, across: int, update: Ride | None = None
    ) -> None:
        """A dot product of the vector with each row (or column) of the matrix; then the update of that row."""
        m, z = self.places.layout(matrix), self.places.layout(out)
        padded = along == 1 and self._behind(matrix) in self.padded and self._whole(vector)
        width = up(vector.size) if padded else vector.size
        index = plus(m.start, "o0 + j" if along == 1 else f"o0 + j * {along}")
        target = self.places.target(out) if out.size == 1 else f"{z.name}[{plus(z.start, 'p')}]"
        self.places.emit(
            f"for p in range({out.size}):", f"    s = {type_of(out.dtype)}(0)", f"    o0 = p * {across}",
            f"    for j in range({width}):", f"        s += {m.name}[{index}] * {self.places.element(vector, 'j')}",
            f"    {target} = s",
        )  # fmt: skip
        if update is not None and update.product is not None:
            x = self.places.element(update.product[0], "p")
            rate = number(*self.places.load(update.rate, [], {}), type_of(out.dtype))
            self.places.emit(
                f"    x0 = {x} * {rate}", f"    for j in range({width}):",
                f"        {m.name}[{index}] -= x0 * {self.places.element(vector, 'j')}",
            )  # fmt: skip

    def _update_along(self, k: int) -> Ride | None:
        """The update of a weight by an outer product with the vector that unit `k` multiplies with its rows: each row
        is then read once for both. None where there is none, or where it must wait."""
        i = self.plan.units[k]
        if not isinstance(i, Instruction) or i.op != "matmul" or any(len(v.shape) != 2 for v in i.args):
            return None
        vector, matrix = i.args if i.args[0].shape[0] == 1 else i.args[::-1]
        w = self._behind(matrix)
        if w not in self.padded or self.places.layout(matrix).strides[matrix is i.args[1]] == 1 or 1 in matrix.shape:
            return None
        later: set[Value] = set()
        for unit in self.plan.units[k:]:
            if isinstance(unit, Ride) and unit.product and self._updated(unit) == self.padded[w][1][:2]:
                column, row = unit.product
                same = row.root is vector.root and row.size == vector.size == row.root.size
                # where half of a column is zero, it is faster to update the other rows alone, later
                return unit if same and column.root not in later and not self._sparse(column) else None
            view = isinstance(unit, Instruction) and unit.op == "transpose"
            if unit is not i and not view and any(self._behind(v) is w for v in reads(unit)):
                return None
            later.update(made(unit))
        return None

    def _updated(self, ride: Ride) -> tuple[str, str]:
        """The memory that an update changes, and where in it."""
        layout = self.places.layout(ride.target)
        return layout.name, str(int(layout.start) + ride.start)

    def _outer(self, a: Value, b: Value, out: Value) -> None:
        self.places.make(out)
        z, element = self.places.layout(out), self.places.element
        rows, columns = out.shape
        self.places.emit(
            f"for p in range({rows}):", f"    x0 = {element(a, 'p')}", f"    for j in range({columns}):",
            f"        {z.name}[{plus(z.start, f'p * {columns} + j')}] = x0 * {element(b, 'j')}",
        )  # fmt: skip

    def _rank_one(self, a: Value, b: Value, target: Layout, rate: str) -> None:
        """target -= rate * a @ b, of a column and a row. Rows of the target for which `a` is zero stay as they are."""
        emit, (m, n) = self.places.emit, (a.shape[0], b.shape[1])
        step = width = n
        for padded, original in self.padded.values():
            if (original.name, original.start) == (target.name, target.start):
                target, step, width = Layout(padded, "0", ()), up(n), up(n) if self._whole(b) else n
        if self._sparse(a):
            count, place, value = self._listed(a)
            row, x = f"{place}[p]", f"{value}[p]"
        else:
            count, row, x = str(m), "p", self.places.element(a, "p")
        start = plus(target.start, f"{row} * {step}")
        emit(f"for p in range({count}):", f"    o0 = {start}", f"    x0 = {x} * {rate}")
        emit(f"    for j in range({width}):", f"        {target.name}[o0 + j] -= x0 * {self.places.element(b, 'j')}")

    # -- zeros

    def _sparse(self, v: Value, *, relu: bool = True) -> bool:
        """True where many elements may be zero: of an input, or of what relu leaves."""
        if v.kind == "input":
            return True
        i = self.plan.made_by.get(v)
        if i is None:
            return False
        if i.op in ("astype", "multiply", "divide", "reshape", "transpose", "getitem"):
            first = i.args[0]
            return isinstance(first, Value) and self._sparse(first, relu=relu)
        return relu and i.op == "relu"

    def _listed(self, v: Value) -> tuple[str, str, str]:
        """Names of the count, the places and the values of the non-zero elements of a vector."""
        layout = self.places.layout(v)
        step = max(zip(v.shape, layout.strides, strict=True))[1]
        key = Layout(layout.name, layout.start, (v.size, step))
        name = self._lists.get(key)
        if name is None:
            name = self._lists[key] = str(len(self._lists))
            self.places.buffer(v.size, "i64", f"at{name}")
            self.places.buffer(v.size, type_of(v.dtype), f"of{name}")
            self.places.emit(
                f"c{name}_ = 0", f"for j in range({v.size}):", f"    x0 = {self.places.element(v, 'j')}",
                f"    at{name}[c{name}_] = j", f"    of{name}[c{name}_] = x0", f"    c{name}_ += x0 != 0",
            )  # fmt: skip
        return f"c{name}_", f"at{name}", f"of{name}"

    # -- weights that only products use, with rows of whole vectors

    def _pad_weights(self) -> None:
        units = self.plan.units
        used = [v for u in units if isinstance(u, Instruction) and u.op == "matmul" for v in map(self._behind, u.args)]
        for w in dict.fromkeys(used):
            plain = w.kind == "memory" and len(w.shape) == 2 and w.array.flags.c_contiguous and min(w.shape) > 1
            if not plain or any(v.root is w.root for v in self.plan.outputs):
                continue
            original = self.places.layouts[w]
            span = range(int(original.start), int(original.start) + w.size)
            if all(self._leaves_whole(u, w, span) for u in units):
                name = f"w{len(self.padded)}"
                self.padded[w] = name, original
                self.places.buffer(w.shape[0] * up(w.shape[1]), type_of(w.dtype), name, zeros=True)
                self.places.layouts[w] = Layout(name, "0", (up(w.shape[1]), 1))

    def _leaves_whole(self, unit: Unit, w: Value, span: range) -> bool:
        """True where a unit uses the weight `w`, which lies in this span of its memory, in products alone."""
        if isinstance(unit, Ride) and unit.target.root is w.root:
            first = int(self.places.layouts[unit.target].start) + unit.start
            part = range(first, first + unit.gradient.size)
            by_product = part == span and unit.product is not None and unit.product[0].shape[1] == 1
            return by_product or part.stop <= span.start or part.start >= span.stop
        for v in touched(unit):
            behind = self._behind(v)
            if v.root is not w.root or (
                behind is w and isinstance(unit, Instruction) and unit.op in ("matmul", "transpose")
            ):
                continue
            if behind.kind != "memory" or not behind.array.flags.c_contiguous:
                return False
            first = int(self.places.layouts[behind].start)
            if first < span.stop and first + v.size > span.start:
                return False
        return True

    def _behind(self, v: Value) -> Value:
        """What a matrix is a transpose of."""
        maker = self.plan.made_by.get(v)
        return self._behind(maker.args[0]) if maker is not None and maker.op == "transpose" else v

    def copies(self, *, into: bool) -> list[str]:
        """Lines that copy all padded weights from their memory, or back."""
        lines = []
        for w, (name, there) in self.padded.items():
            m, n = w.shape
            a, b = f"{name}[i * {up(n)} + j]", f"{there.name}[{plus(there.start, f'i * {n} + j')}]"
            heads = [[f"for i in range({m}):"], [f"for j in range({n}):"]]
            lines += nested(heads, [], [f"{a} = {b}" if into else f"{b} = {a}"], [])
        return lines

    def _whole(self, v: Value) -> bool:
        """True for a vector in a buffer of its own, which is padded with zeros."""
        layout = self.places.layout(v)
        own = layout.name.startswith("t") and layout.start == "0" and v.root not in self.places.joined
        return self.batch.single and own and v.root.size == v.size
