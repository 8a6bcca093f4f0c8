"""What a loop computes together, and when: a program as `Nest`s, `Ride`s and single instructions, in three phases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..program import Group, Instruction, Program, Ref, Value, fuse
from .batch import ELEMENTS, HOST, REDUCTIONS, ROWS, TOTAL, TURNED, Batch, Unsupported, gathers

BLOCK = 1024
"""Rows of a block: with fewer, two threads of the BLAS wait for each other too often; with more, caches overflow."""


class Nest(NamedTuple):
    """Elementwise instructions over one shape, and the reductions of values of that shape."""

    shape: tuple[int, ...]
    by_row: bool
    body: list[Instruction]
    makes: list[Value]
    reductions: list[Instruction]


class Ride(NamedTuple):
    """A step of plain gradient descent, p -= rate * gradient, for one parameter (a part of a flat one)."""

    target: Value
    start: int  # of the part in `target`
    rate: Ref
    gradient: Value
    product: tuple[Value, Value] | None  # the gradient is left @ right, and was not computed


Unit = Nest | Ride | Instruction


def touched(unit: Unit) -> list[Value]:
    """The values that a unit reads, makes or changes."""
    if isinstance(unit, Instruction):
        return [*unit.operands(), *unit.outs, *unit.writes]
    if isinstance(unit, Ride):
        read = reads(unit)
        return [*read, *(v.root for v in read if v.root.kind == "result")]
    return [*reads(unit), *unit.makes, *(i.out for i in unit.reductions)]


def reads(unit: Unit) -> list[Value]:
    """The values from outside that a unit reads."""
    if isinstance(unit, Instruction):
        return list(unit.operands())
    if isinstance(unit, Ride):
        rate = [unit.rate] if isinstance(unit.rate, Value) else []
        return [unit.target, *(unit.product or (unit.gradient,)), *rate]
    made = {v for i in unit.body for v in i.outs}
    return [v for i in (*unit.body, *unit.reductions) for v in i.operands() if v not in made]


def writes(unit: Unit) -> set[Value]:
    """The roots of the memory that a unit changes."""
    if isinstance(unit, Ride):
        return {unit.target.root}
    return {v.root for i in (unit.body if isinstance(unit, Nest) else [unit]) for v in i.writes}


@dataclass
class Plan:
    """A program cut into units. `outputs`: what is wanted of it; `made_by`: the instruction that makes a value."""

    program: Program
    outputs: list[Value]
    batch: Batch

    def __post_init__(self) -> None:
        self.made_by = {v: i for i in self.program.instructions for v in i.outs}
        self.written = self.program.written()
        if any(v.kind == "result" for v in self.written):
            raise Unsupported("a result is changed in place")
        self._late = self._late_values()
        self.units = self._with_rides(self._joined())
        self._store_only_what_is_read()

    # -- nests

    def _joined(self) -> list[Unit]:
        """Elementwise instructions joined, and reductions with what makes their operands."""
        p = self.program
        wanted = Program(p.inputs, p.instructions, self.outputs)
        units: list[Unit] = []
        for unit in fuse(wanted, lambda i: i.op in ELEMENTS, self._kind):
            if isinstance(unit, Group):
                units.append(Nest(unit.shape, self._by_row(unit.body[0].out), unit.body, list(unit.makes), []))
            elif unit.op in REDUCTIONS:
                self._attach(units, unit)
            elif unit.op == "getitem" and gathers(unit):  # not joined: it reads elements that another row may make
                units.append(Nest(unit.out.shape, self._by_row(unit.out), [unit], [unit.out], []))
            elif unit.op not in HOST:
                units.append(unit)
        return units

    def _kind(self, v: Value) -> Any:
        """Values of one kind can share loops."""
        return v.shape, TOTAL if v in self._late else self.batch[v]

    def _late_values(self) -> set[Value]:
        """What is computed after the rows of a batch though it is no total: changes of memory, and what reads that
        memory then."""
        late: set[Value] = set()
        changed: set[Value] = set()
        for i in () if self.batch.single else self.program.instructions:
            if any(v in late or v.root in changed or self.batch[v] == TOTAL for v in i.operands()) or i.writes:
                late.update((*i.outs, *i.writes))
            changed.update(v.root for v in i.writes)
        return {v for v in late if v.kind == "memory" or self.batch[v] != ROWS}

    def _by_row(self, v: Value) -> bool:
        return not self.batch.single and self.batch[v] == ROWS

    def _attach(self, units: list[Unit], i: Instruction) -> None:
        """Let a reduction share the loops that make its operand; else it has its own."""
        a = i.args[0]
        for unit in reversed(units):
            if isinstance(unit, Nest) and unit.shape == a.shape and any(a in j.outs for j in unit.body):
                unit.reductions.append(i)
                return
        units.append(Nest(a.shape, self._by_row(a), [], [], [i]))

    def _store_only_what_is_read(self) -> None:
        """A value that only its own nest uses needs no memory."""
        for unit in self.units:
            if isinstance(unit, Nest):
                others = {v for u in self.units if u is not unit for v in touched(u)} | set(self.outputs)
                unit.makes[:] = [v for v in unit.makes if v in others or v.kind == "memory"]

    # -- updates

    def _with_rides(self, units: list[Unit]) -> list[Unit]:
        """Plain steps of gradient descent as `Ride`s; products that only they read are left to them."""
        found: list[Unit] = []
        for unit in units:
            found += self._rides(unit) if isinstance(unit, Nest) else [unit]
        found = self._without_unread_joins(found)
        uses = Counter(v for unit in found for v in set(reads(unit)))
        uses.update(self.outputs)
        gone: set[Value] = set()
        for k, unit in enumerate(found):
            if not isinstance(unit, Ride):
                continue
            chain = self._product_behind(unit)
            if chain and all(uses[link] == 1 for link in chain):
                found[k] = self._with_product(unit, chain)
                gone.update(chain)
        return [u for u in found if not (isinstance(u, Instruction) and any(v in gone for v in u.outs))]

    def _rides(self, unit: Nest) -> list[Unit]:
        """The updates in place of a nest that is nothing but p -= rate * gradient; else the nest."""
        if len(unit.body) != 2 or unit.reductions:
            return [unit]
        scale, change = unit.body
        if (scale.op, change.op) != ("multiply", "subtract") or not change.writes or scale.writes:
            return [unit]
        gradient, rate = scale.args
        target = change.writes[0]
        number = isinstance(rate, (int, float)) or (isinstance(rate, Value) and rate.kind == "number")
        if change.args != (target, scale.out) or target.kind != "memory" or not number or len(target.shape) != 1:
            return [unit]
        if not isinstance(gradient, Value) or gradient.shape != target.shape:
            return [unit]
        maker = self.made_by.get(gradient)
        pieces = maker.args[0] if maker is not None and maker.op == "concatenate" else (gradient,)
        if any(piece.root.kind != "result" for piece in pieces):  # memory: an earlier piece may change it
            return [unit]
        found: list[Unit] = []
        start = 0
        for piece in pieces:
            found.append(Ride(target, start, rate, piece, None))
            start += piece.size
        return found

    def _without_unread_joins(self, units: list[Unit]) -> list[Unit]:
        needed = {v for u in units for v in reads(u)} | set(self.outputs)
        return [u for u in units if not (isinstance(u, Instruction) and u.op == "concatenate" and u.out not in needed)]

    def _product_behind(self, ride: Ride) -> list[Value]:
        """The values from the gradient of a ride back to the product that it is, transposed or reshaped; empty where it
        is none, or none that can wait for the update."""
        chain = [ride.gradient]
        maker = self.made_by.get(ride.gradient)
        while maker is not None and maker.op in ("reshape", "transpose") and len(chain[-1].shape) <= 2:
            chain.append(maker.args[0])
            maker = self.made_by.get(maker.args[0])
        waits = self.batch.single or self.batch.size <= BLOCK  # with several blocks, a product is a sum over them
        if maker is None or maker.op != "matmul" or len(chain[-1].shape) != 2 or not waits:
            return []
        changed = any(v.root in self.written for v in maker.operands())
        return [] if changed or any(len(v.shape) != 2 for v in maker.operands()) else chain

    def _with_product(self, ride: Ride, chain: list[Value]) -> Ride:
        a, b = self.made_by[chain[-1]].args
        turns = sum(self.made_by[v].op == "transpose" for v in chain[:-1])
        return ride._replace(product=(self._turned(b), self._turned(a)) if turns % 2 else (a, b))

    def _turned(self, v: Value) -> Value:
        """The transpose of a matrix: the value that it is a transpose of, or a new view."""
        maker = self.made_by.get(v)
        if maker is not None and maker.op == "transpose":
            return maker.args[0]
        turned = Value("result", np.empty(v.shape, v.dtype).T, root=v.root)
        self.made_by[turned] = Instruction("transpose", (v,), {"axes": (1, 0)}, (turned,))
        self.batch.turn(v, turned)
        return turned

    # -- phases

    def phases(self) -> tuple[list[Unit], list[Unit], list[Unit]]:
        """What is done before the rows of a batch, for each block of rows, and after them."""
        if self.batch.single:
            return [], self.units, []
        before: list[Unit] = []
        rowwise: list[Unit] = []
        after: list[Unit] = []
        late: set[Value] = set()  # what is made or changed after the rows
        for unit in self.units:
            kinds = {self.batch[v] for v in touched(unit)}
            waits = not late.isdisjoint(v.root for v in touched(unit))
            if kinds & {ROWS, TURNED} and not isinstance(unit, Ride):
                if waits:
                    raise Unsupported("rows need what is complete after the batch, as parameters after their update")
                rowwise.append(unit)
            elif TOTAL in kinds or waits or writes(unit):
                after.append(unit)
                late |= writes(unit) | {v.root for v in made(unit) if v.root.kind == "result"}
            else:
                before.append(unit)
        return before, rowwise, after

    def last_uses(self, units: list[Unit]) -> dict[Value, int]:
        """For each root the number of the last unit that touches it; one past the end for outputs."""
        last: dict[Value, int] = {}
        for k, unit in enumerate(units):
            last |= dict.fromkeys((v.root for v in touched(unit)), k)
        return last | dict.fromkeys((v.root for v in self.outputs), len(units))


def made(unit: Unit) -> Iterator[Value]:
    """The values that a unit makes."""
    if isinstance(unit, Nest):
        yield from unit.makes
        yield from (i.out for i in unit.reductions)
    elif isinstance(unit, Instruction):
        yield from unit.outs
