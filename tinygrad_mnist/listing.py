"""The text that `explain` prints: names, sections and expressions for a program that was tidied.

What has a name has a line: what the user named, the values between layers, gradients of either, and what is used twice.
Everything else goes into the expression of its only user, as long as the line stays short.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import json
import keyword
import re
import textwrap
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, groupby
from typing import Any, NamedTuple

import numpy as np

from . import arrays
from .core import Tensor
from .program import REDUCTIONS, Instruction, Program, Ref, Slot, Value, literal
from .tidy import COMPARISONS, keeps_rank, tidy

WIDTH = 88
"""Columns of a line of code; what would be longer is computed in two."""
COMMENT = 52
"""The column at which shapes begin."""
INLINE, EMBEDDED = 32, 4096
"""Elements of an array that is printed as numbers: in an expression, and before the function."""


# ---- what a text is made of ---------------------------------------------------------------------------------------


class Mark(NamedTuple):
    """A line of the user's function begins."""

    instruction: int
    node: int
    line: int


@dataclass
class Run:
    """A captured run of a function and its gradients. The outputs of the program: the value, then the gradients."""

    f: Callable[..., Any]
    inputs: Sequence[Any]
    program: Program = field(default_factory=lambda: Program([], [], []))
    parameters: list[str] = field(default_factory=list)
    leaves: list[Value] = field(default_factory=list)  # what the gradients are by
    born: dict[Value, int] = field(default_factory=dict)  # the number of the instruction that makes a value
    start: int = 0  # the number of the first instruction of the backward
    marks: list[Mark] = field(default_factory=list)
    names: dict[Value, str] = field(default_factory=dict)  # the user's, of results
    minor: dict[Value, str] = field(default_factory=dict)  # from functions that f calls, and from lists
    given: dict[Any, str] = field(default_factory=dict)  # the user's, of memory, by its place
    made: set[Any] = field(default_factory=set)  # memory that the function itself made
    adjoints: list[tuple[Value, Value]] = field(default_factory=list)
    code: Any = None  # of the user's function
    sizes: Mapping[int, str] = field(default_factory=dict)  # sizes that are printed by name
    titles: Mapping[str, str] = field(default_factory=dict)
    keep: list[Any] = field(default_factory=list)  # arrays whose addresses are in `given`


def place_of(a: Any) -> tuple[Any, ...]:
    """Where an array lies, and as what: equal for two views that are one."""
    return arrays.extent(a)[0] if a.size else id(a), a.shape, a.strides, a.dtype.str


def paths(tree: Any, name: str, access: str = "") -> Iterator[tuple[str, str, Any]]:
    """(name, how to get at it, leaf) of an argument: of a list `x_0`, `x_1`, of a dict its keys."""
    access = access or name
    if isinstance(tree, dict):
        for key, part in tree.items():
            named = key if isinstance(key, str) and key.isidentifier() else f"{name}_{key}"
            yield from paths(part, named, f"{access}[{key!r}]")
    elif isinstance(tree, (list, tuple)):
        for k, part in enumerate(tree):
            yield from paths(part, f"{name}_{k}", f"{access}[{k}]")
    else:
        yield name, access, tree


# ---- the text -----------------------------------------------------------------------------------------------------

COMPARE, OR, XOR, AND, SUM, PRODUCT, SIGN, POWER, ATOM = range(9)  # what binds closer is larger
BINARY = {
    "add": ("+", SUM), "subtract": ("-", SUM), "multiply": ("*", PRODUCT), "divide": ("/", PRODUCT),
    "floor_divide": ("//", PRODUCT), "mod": ("%", PRODUCT), "remainder": ("%", PRODUCT), "matmul": ("@", PRODUCT),
    "power": ("**", POWER), "greater": (">", COMPARE), "greater_equal": (">=", COMPARE), "less": ("<", COMPARE),
    "less_equal": ("<=", COMPARE), "equal": ("==", COMPARE), "not_equal": ("!=", COMPARE),
}  # fmt: skip
LOGIC = {"logical_and": ("&", AND), "logical_or": ("|", OR), "logical_xor": ("^", XOR)}  # of booleans
METHODS = REDUCTIONS | {"cumsum"}
LINES = frozenset({"scatter_add", "random"})  # what takes lines of its own
WORDS = {
    "exp": "exp", "log": "log", "sum": "total", "max": "top", "min": "bottom", "mean": "mean", "matmul": "z",
    "add": "sum", "subtract": "difference", "multiply": "product", "divide": "quotient", "square": "square",
    "sqrt": "root", "where": "chosen", "getitem": "part", "concatenate": "joined", "negative": "minus",
    "absolute": "size", "reshape": "flat", "transpose": "turned", "random": "drawn", "scatter_add": "added",
}  # fmt: skip


class _Group(NamedTuple):
    """Instructions that are shown together: those of a line of the user's, or of a layer."""

    instruction: int  # the first of its forward
    node: int
    forward: str  # the headings
    backward: str


class Listing:
    """Writes the source of one run."""

    def __init__(self, run: Run, xp: str) -> None:
        self.run, self.xp = run, xp
        self.backward = {v for v, k in run.born.items() if k >= run.start}
        named = {g for w, g in run.adjoints if w in run.names}
        self.program, alias = tidy(run.program, self.backward, named)
        self.adjoints = [(_followed(w, alias), _followed(g, alias)) for w, g in run.adjoints]
        self.pure = not self.program.written()
        self.made = {v: i for i in self.program.instructions for v in i.outs}
        self.position = {v: k for k, v in enumerate(self.made)}
        self.value, *self.gradients = self.program.outputs
        self.names: dict[Value, str] = {}
        self.taken = {xp, "rng", *keyword.kwlist, *dir(builtins)}
        self.embedded: dict[str, Value] = {}  # arrays that the function made, before the function
        self.head, self.notes, self.first_lines = self.parameters()
        self.known = dict(self.names)
        self.groups = self.split(self.lines_of_user())
        self.wanted = self.wishes()  # results that have a name already, and that name
        self.counts = self.occurrences()
        self.sums_of: dict[Value, Value] = {}
        self.terms = self.chains()
        inside = {v for terms in self.terms.values() for v in terms if self.op(v) == "scatter_add"} - {*self.terms}
        self.own = {v for v in self.made if v in self.terms or (self.needs_line(v) and v not in inside)}

    def text(self) -> str:
        while True:
            self.name_all()
            cut = self.too_long()
            if cut is None:
                break
            line, part = cut
            self.own.add(part)
            if self.op(line) == self.op(part) == "add" and part in self.made[line].args:
                self.sums_of[part] = line  # a sum that is computed term by term keeps its name
        module = "numpy" if self.xp == "np" else "cupy"
        body = [*self.first_lines, *self.sections(), *self.last_lines()]
        code = "\n".join(line.partition("  #")[0] for line in body if not line.startswith("#"))
        used = [name for name in self.run.sizes.values() if re.search(rf"\b{name}\b", code)]
        lines = [*self.docstring(), *(f"{name} = len({self.head[0]})" for name in used), *body]
        arrays_made = [line for name, v in self.embedded.items() for line in self.array_lines(name, v)]
        call = f"{self.function_name()}({', '.join(self.head)})"
        title = [f"import {module} as {self.xp}", *arrays_made, "", "", f"def {call}:"]
        return "\n".join([*title, *(f"    {line}".rstrip() for line in lines), ""])

    def array_lines(self, name: str, v: Value) -> list[str]:
        """A large array as source."""
        dtype = literal(v.dtype, self.xp)
        numbers = f"{self.xp}.array({arrays.to_host(v.array).tolist()!r}, {dtype})"
        return ["", *textwrap.wrap(f"{name} = {numbers}", WIDTH, subsequent_indent="    ")]

    def docstring(self) -> list[str]:
        """What the function returns, and what its arguments are."""
        by = [self.names.get(w, "a constant") for w in self.run.leaves] or [""]
        listed = ", ".join(by[:-1]) + f" and {by[-1]}" if len(by) > 1 else by[0]
        value = self.names.get(self.value, "value")
        gradients = f"({value}, its gradient{'s' * (len(by) > 1)} by {listed})"
        first = textwrap.wrap(gradients if self.gradients else self.run.program.name, WIDTH - 6)
        notes = textwrap.wrap("; ".join(note.replace(" ", "\0") for note in self.notes) + ".", WIDTH)
        return [f'"""{first[0]}', *first[1:], "", *(line.replace("\0", " ") for line in notes), '"""']

    def function_name(self) -> str:
        name = self.run.program.name
        if not self.gradients:
            return name
        return f"{name}_and_gradients" if name.isidentifier() and name != "f" else "value_and_gradients"

    # -- names

    def take(self, stem: str, several: bool = False) -> str:
        """A name that nothing has yet: the stem, or where several want it with a number."""
        stem = f"{stem}_" if not stem.isidentifier() or hasattr(builtins, stem) else stem
        if not several and stem not in self.taken:
            name = stem
        elif stem[-1].isdigit():
            name = next(n for k in count(1) if (n := f"{stem}_{k}") not in self.taken)
        else:
            name = next(n for k in count(1) if (n := f"{stem}{k}") not in self.taken)
        self.taken.add(name)
        return name

    def parameters(self) -> tuple[list[str], list[str], list[str]]:
        """(the parameters of the function, what each is, lines that unpack lists and dicts)."""
        run = self.run
        notes, unpacking = [], []
        values = iter(run.program.inputs)
        places: dict[Any, str] = {}
        head = list(run.parameters)
        self.taken.update(head)
        for parameter, tree in zip(run.parameters, run.inputs, strict=True):
            for path, access, a in paths(tree, parameter):
                if not (isinstance(a, Tensor) or arrays.is_array(a)):
                    notes.append(f"{access}: {getattr(a, '__name__', repr(a)):.60}, which is fixed in this text")
                    continue
                name = path if path == access else self.take(path)
                if path != access:
                    unpacking.append(f"{name} = {access}")
                if isinstance(a, Tensor) and a.requires_grad:
                    places[place_of(a._data)] = name
                else:
                    self.names[next(values)] = name
                notes.append(f"{access}: {self.kind(a._data if isinstance(a, Tensor) else a)}")
        written = self.program.written()
        for v in self.program.values():
            if v.kind not in ("memory", "grad", "constant"):
                continue
            place = place_of(v.array)
            known = places.get(place) or self.given(v)
            if known is None and self.constant(v):
                if v.root in written:
                    self.names[v] = self.take(run.given.get(place) or v.name or "memory")
                    unpacking.append(f"{self.names[v]} = {self.constant(v)}")
                continue
            if known is None and v.size <= EMBEDDED:
                name = self.take("INDEX" if v.dtype.kind in "iub" else "ARRAY")
                self.embedded[name] = v
            elif known is not None and (known in head or place in places):
                name = known
            else:
                name = self.take(known or run.given.get(place) or v.name or "array")
                head.append(name)
                notes.append(f"{name}: {self.kind(v)}")
            self.names[v] = name
        if any(i.op == "random" for i in self.program.instructions):
            head.append("rng")
            notes.append("rng: a NumPy generator")
        return head, notes, unpacking

    def given(self, v: Value) -> str | None:
        """What the user calls an array that is none of the arguments; None where the function made it."""
        place = place_of(v.array)
        if place in self.run.given and place not in self.run.made:
            return self.run.given[place]
        host = arrays.to_host(v.array)
        for a in self.run.keep:  # an index is copied before it enters the graph
            alike = a.shape == v.shape and a.dtype == v.dtype and v.size > 1 and place_of(a) not in self.run.made
            if alike and np.array_equal(arrays.to_host(a), host):
                return self.run.given[place_of(a)]
        return None

    def kind(self, a: Any) -> str:
        """Shape and dtype, for a comment."""
        return f"{self.shape(a)} {a.dtype}"

    def shape(self, a: Any) -> str:
        sizes = [self.integer(n) for n in a.shape]
        return f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"

    def wishes(self) -> dict[Value, str]:
        """The names of forward results: the user's; of layers z1, h1, z2, ...; p of a softmax."""
        names = {v: name for v, name in self.run.names.items() if v in self.made}
        for v, i in self.made.items():
            if i.op == "divide" and self.op(i.args[0]) == "exp" and self.sums(i.args[1], i.args[0]):
                names.setdefault(v, "p")
        for v, name in self.layer_names.items():
            names.setdefault(v, name)
        if self.value in self.made:
            name = self.run.program.name
            names.setdefault(self.value, next((word for word in ("loss", "cost") if word in name), "value"))
        return names

    def sums(self, v: Ref, of: Ref) -> bool:
        """True for a sum of `of`, whatever axes it keeps."""
        if self.op(v) == "reshape":
            v = self.made[v].args[0]
        return self.op(v) == "sum" and self.made[v].args[0] is of

    def op(self, v: Ref) -> str:
        return self.made[v].op if isinstance(v, Value) and v in self.made else ""

    def name_all(self) -> None:
        """Names for all results that have a line of their own."""
        self.names = dict(self.known)
        self.taken = {self.xp, "rng", *keyword.kwlist, *self.head, *self.names.values(), *self.run.sizes.values()}
        own = [v for v in self.made if v in self.own and v not in self.sums_of]
        targets = {self.adjoint_of[v] for v in own if v in self.adjoint_of}
        plain = [v for v in self.made if v in {*own, *targets} and v not in self.adjoint_of]
        self.called = dict(self.names)
        for mine in (True, False):  # the user's names before others
            stems = {v: self.stem(v) for v in plain if (v in self.wanted) is mine}
            often = Counter(stems.values())
            for v, stem in stems.items():
                self.called[v] = self.take(stem, several=often[stem] > 1)
        for v in own:
            if v in self.adjoint_of:
                w = self.adjoint_of[v]
                name = self.called.get(w) or self.stem(w)
                options = (f"d{name}", f"d_{name}", f"grad_{name}")
                self.called[v] = self.take(next((n for n in options if n not in self.taken), options[0]))
            self.names[v] = self.called[v]
        for v, line in self.sums_of.items():
            self.names[v] = self.names[line]

    def stem(self, v: Value) -> str:
        """The word for a result: its own name, or one for what makes it, with the number of what it is for."""
        if v in self.wanted:
            return self.wanted[v]
        i = self.made.get(v)
        if i is None:
            return self.names.get(v, "t")
        stem = WORDS.get(i.op, i.op)
        if v in self.divisors:
            stem = "denominator"
        elif i.op == "add" and "matmul" in map(self.op, i.args):
            stem = "z"
        elif i.op == "astype":
            stem = "keep" if any(self.op(a) == "random" for a in self.sources(v)) else self.stem(i.args[0])
        elif i.op in COMPARISONS:
            stem = "onehot" if i.op == "equal" and any(self.is_range(a) for a in i.args) else "mask"
        elif i.op == "subtract" and self.op(i.args[1]) == "max":
            stem = "shifted"
        owner = self.wanted.get(self.owner.get(v, v), "")
        digits = owner[len(owner.rstrip("0123456789")) :]
        return stem + digits

    def sources(self, v: Value) -> Iterator[Value]:
        """What a result was computed from by elementwise steps from a single operand each."""
        while v in self.made and len(operands := list(self.made[v].operands())) == 1:
            v = operands[0]
            yield v

    def is_range(self, a: Ref) -> bool:
        text = self.constant(a) if isinstance(a, Value) and a.kind == "constant" else None
        return text is not None and text.startswith(f"{self.xp}.arange")

    # -- which results have a line

    def occurrences(self) -> Counter[Value]:
        """How often each value is written, where what is inlined is written by its users."""
        self.adjoint_of: dict[Value, Value] = {}
        for w, g in self.adjoints:
            better = w in self.wanted and self.adjoint_of.get(g) not in self.wanted
            if g in self.made and w in self.made and (better or g not in self.adjoint_of):
                self.adjoint_of[g] = w
        for w, g in zip(self.run.leaves, self.gradients, strict=True):
            if g in self.made and (g not in self.adjoint_of or self.adjoint_of[g] not in self.wanted):
                self.adjoint_of[g] = w
        self.divisors = {
            i.args[1]
            for i in self.made.values()
            if i.op == "divide" and isinstance(i.args[1], Value) and i.out not in self.backward
        }
        counts = Counter(self.program.outputs)
        self.owner: dict[Value, Value] = {}
        for v in reversed(self.made):
            i = self.made[v]
            times = max(counts[v], 1) if self.cheap(i) else 1
            for a in i.operands():
                counts[a] += times
                if v not in self.backward:
                    self.owner[a] = v if v in self.wanted else self.owner.get(v, v)
        for i in self.program.instructions:
            if not i.outs:
                counts.update(i.operands())
        return counts

    def cheap(self, i: Instruction) -> bool:
        """True for a view that is written wherever it is used: W.T, x[:, None]."""
        if i.out in self.wanted or not self.pure or i.out in self.program.outputs:
            return False
        return i.op == "transpose" or (i.op == "reshape" and keeps_rank(i.args[0], i.out) is not None)

    def needs_line(self, v: Value) -> bool:
        i = self.made[v]
        if not self.pure or v in self.program.outputs or i.op in LINES:
            return True
        w = self.adjoint_of.get(v)
        if v in self.wanted or w in self.wanted or self.op(w) == "matmul":
            return True
        return self.counts[v] > 1 and not self.cheap(i)

    def chains(self) -> dict[Value, list[Value]]:
        """For each sum to which parts of an array are added, its terms. Such a sum has a line for each part."""
        found: dict[Value, list[Value]] = {}
        done: set[Value] = set()
        for v in reversed(self.made):
            terms = self.flattened(v) if v not in done else []
            if self.pure and any(self.op(t) == "scatter_add" and (t is v or self.counts[t] == 1) for t in terms):
                found[v] = terms
                done.update(t for t in terms if self.counts[t] == 1)
                done.update(a for a in self.inside(v, terms))
        return found

    def flattened(self, v: Value) -> list[Value]:
        """The terms of a sum of arrays of one shape."""
        if self.op(v) != "add":
            return [v]
        terms: list[Value] = []
        for a in self.made[v].args:
            if not isinstance(a, Value) or (a.shape, a.dtype) != (v.shape, v.dtype):
                return [v]
            single = self.op(a) == "add" and self.counts[a] == 1 and not self.has_name(a)
            terms += self.flattened(a) if single else [a]
        return terms

    def inside(self, v: Value, terms: list[Value]) -> Iterator[Value]:
        """The partial sums between a sum and its terms."""
        for a in self.made[v].operands() if self.op(v) == "add" else ():
            if a not in terms:
                yield a
                yield from self.inside(a, terms)

    def has_name(self, v: Value) -> bool:
        return v in self.wanted or self.adjoint_of.get(v) in self.wanted or v in self.program.outputs

    def too_long(self) -> tuple[Value, Value] | None:
        """(the result of a line that is too long, what to take out of it)."""
        self.forms: dict[Value, tuple[str, int]] = {}
        for v in self.made:
            longest = max(map(len, self.code(v))) if v in self.own and self.pure else 0
            if longest > WIDTH:
                whole = {*self.inside(v, self.terms[v]), *self.terms[v]} if v in self.terms else set()
                parts = [a for a in self.inlined(v) if a not in whole and not self.cheap(self.made[a])]
                if parts:
                    half = longest / 2
                    return v, min(parts, key=lambda a: abs(len(self.form(a)[0]) - half))
        return None

    def inlined(self, v: Value) -> Iterator[Value]:
        for a in self.made[v].operands():
            if a in self.made and a not in self.own:
                yield a
                yield from self.inlined(a)

    # -- sections

    def lines_of_user(self) -> list[_Group]:
        """A group for each line of the user's function that was run, as often as it was."""
        groups: list[_Group] = []
        last = None
        for mark in self.run.marks:
            lines, text = self.statement(mark.line)
            if lines != last:
                groups.append(_Group(mark.instruction, mark.node, text, text))
            last = lines
        return groups or [_Group(0, 0, "", "")]

    def statement(self, line: int) -> tuple[tuple[int, int], str]:
        """(first and last line, text) of the statement of the user's that is on this line."""
        lines, start = self.source
        for first, last, text in self.statements:
            if first <= line <= last:
                return (first, last), f"line {first}: {text}"
        text = lines[line - start].strip() if 0 <= line - start < len(lines) else ""
        return (line, line), f"line {line}: {text}" if text else ""

    @cached_property
    def source(self) -> tuple[list[str], int]:
        try:
            return inspect.getsourcelines(self.run.code)
        except (OSError, TypeError):
            return [], 0

    @cached_property
    def statements(self) -> list[tuple[int, int, str]]:
        """(first line, last line, text) of the simple statements of the user's function."""
        lines, start = self.source
        source = textwrap.dedent("".join(lines))
        try:
            tree = ast.parse(source)
        except SyntaxError:
            return []
        found = []
        lambdas = [n for n in ast.walk(tree) if isinstance(n, ast.Lambda)]
        if self.run.code.co_name == "<lambda>":
            bodies: list[Any] = [n.body for n in lambdas] if len(lambdas) == 1 else []
        else:
            bodies = [n for n in ast.walk(tree) if isinstance(n, ast.stmt) and not hasattr(n, "body")]
        for n in bodies:
            text = " ".join((ast.get_source_segment(source, n) or "").split())
            text = text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."
            found.append((n.lineno + max(start, 1) - 1, n.end_lineno + max(start, 1) - 1, text))
        return found

    def split(self, groups: list[_Group]) -> list[_Group]:
        """The groups, one that holds several layers of a network divided into these and the loss."""
        self.layer_names: dict[Value, str] = {}
        found = []
        for k, group in enumerate(groups):
            end = groups[k + 1].instruction if k + 1 < len(groups) else self.run.start
            inside = [i for i in self.program.instructions if i.outs and group.instruction <= self.born(i.out) < end]
            inside = [i for i in inside if i.out not in self.backward]
            heads = [i for i in inside if i.op == "matmul" and _is_weight(i.args[1])]
            if len(heads) < 2 and (group.forward or not heads):
                found.append(group)
                continue
            found += self.layers(group, heads, inside)
        return found

    def born(self, v: Value) -> int:
        return self.run.born.get(v, -1)

    def layers(self, group: _Group, heads: list[Instruction], inside: list[Instruction]) -> list[_Group]:
        found = []
        for k, head in enumerate(heads, 1):
            start, end = self.born(head.out), self.born(heads[k].out) if k < len(heads) else self.run.start
            mine = [i for i in inside if start <= self.born(i.out) < end]
            biased = [i.out for i in mine if i.op == "add" and i.args[0] is head.out and _is_weight(i.args[1])]
            z = biased[0] if biased else head.out
            self.layer_names[z] = f"z{k}"
            rest = [i for i in mine if self.born(i.out) > self.born(z)]
            first = group if k == 1 else _Group(start, head.site.node, "", "")
            if k == len(heads):
                found.append(first._replace(forward=f"layer {k}: linear", backward=f"layer {k}: <z{k}> = {{z{k}}}"))
                if rest:
                    title = group.forward or self.run.titles.get("loss", "loss")
                    node = self.made[z].site.node + 1
                    found.append(_Group(self.born(rest[0].out), node, title, title))
                continue
            self.layer_names.setdefault(heads[k].args[0], f"h{k}")
            drops = any(i.op == "random" for i in rest)
            kinds = list(dict.fromkeys(i.site.op for i in rest))
            what = self.run.titles.get("activation", kinds[0] if len(kinds) == 1 else "")
            title = f"layer {k}: {what}{', dropout' * drops}" if what else f"layer {k}"
            formula = f"{what}({{z{k}}})" if what else f"{{z{k}}}"
            formula = f"<{'h' if what else 'z'}{k}> = {f'dropout({formula})' if drops else formula}"
            found.append(first._replace(forward=title, backward=f"layer {k}: {formula}"))
        return found

    def group_of(self, v: Value) -> int:
        """The group of a line: of a gradient that is summed up, that of its last term."""
        if v not in self.backward:
            return max(bisect_right([g.instruction for g in self.groups], self.born(v)) - 1, 0)
        nodes = [self.made[a].site.node for a in (v, *self.inlined(v)) if self.op(a) != "transpose"]
        node = min((n for n in nodes if n >= 0), default=self.groups[-1].node)
        return max(bisect_right([g.node for g in self.groups], node) - 1, 0)

    def sections(self) -> list[str]:
        """All lines between the parameters and the return."""
        forward = [v for v in self.made if v in self.own and v not in self.backward]
        backward = [v for v in self.made if v in self.own and v in self.backward]
        if not self.pure:
            return ["", *self.plain_lines()]
        forward = self.scheduled(forward, self.group_of)
        order = {g: k for k, g in enumerate(self.gradients)}
        backward = self.scheduled(backward, lambda v: (-self.group_of(v), order.get(v, len(order))))
        lines = [*(["", "# ---- forward"] if self.gradients else []), *self.part(forward, "forward")]
        if backward:
            title = f"# ---- backward: dv is the derivative of {self.form(self.value)[0]} by v"
            lines += ["", title, *self.part(backward, "backward")]
        return lines

    def scheduled(self, values: list[Value], key: Callable[[Value], Any]) -> list[Value]:
        """Lines sorted by group, each after those that it reads."""
        done: dict[Value, None] = {}
        mine = set(values)

        def emit(v: Value) -> None:
            if v in done:
                return
            for a in sorted(self.reads(v) & mine, key=self.position.__getitem__):
                emit(a)
            done[v] = None

        for v in sorted(values, key=key):
            emit(v)
        return list(done)

    def reads(self, v: Value) -> set[Value]:
        """The results with lines of their own that the line of `v` reads."""
        found: set[Value] = set()
        for a in self.made[v].operands():
            if a in self.own:
                found.add(a)
            elif a in self.made:
                found |= self.reads(a)
        return found

    def part(self, values: list[Value], phase: str) -> list[str]:
        lines: list[str] = []
        for k, members in groupby(values, self.group_of):
            group = list(members)
            title = self.title(k, phase)
            assigned = f": {self.names[group[0]]} = " in title  # the user's line itself
            if title and not (phase == "forward" and len(group) == 1 and assigned):
                lines.append(f"# {title}")
            for v in group:
                *before, code = self.code(v)
                lines += [*before, self.commented(code, v)]
        return lines

    def title(self, k: int, phase: str) -> str:
        title: str = getattr(self.groups[k], phase)
        for v, name in self.layer_names.items():
            if f"{{{name}}}" in title:
                title = title.replace(f"{{{name}}}", self.expression(v)[0])
            title = title.replace(f"<{name}>", self.names.get(v, name))
        return title

    def commented(self, code: str, v: Value) -> str:
        note = self.shape(v) if v.shape else "scalar"
        w = self.adjoint_of.get(v)
        if w is not None and w in self.made and w not in self.own:
            form = self.form(w)[0]
            note += f", by {form}" if len(form) <= 40 else ""
        return f"{code:<{COMMENT - 6}}  # {note}"

    def plain_lines(self) -> list[str]:
        """Every instruction in a line, in order: of a function that changes memory."""
        lines = []
        for i in self.program.instructions:
            if i.outs and not i.writes:
                *before, code = self.code(i.out)
                lines += [*before, self.commented(code, i.out)]
            elif i.op == "setitem":
                lines.append(f"{self.atom(i.args[0])}[{self.index(i)}] = {self.form(i.args[1])[0]}")
            elif i.op == "assign":
                lines.append(f"{self.atom(i.out)}[...] = {self.form(i.args[0])[0]}")
            elif i.op in BINARY and i.args[0] is i.out:
                lines.append(f"{self.atom(i.out)} {BINARY[i.op][0]}= {self.form(i.args[1])[0]}")
            elif i.op != "check_labels":
                args = ", ".join(self.form(a)[0] for a in i.args)
                lines.append(f"{self.xp}.{i.op}({args}, out={self.atom(i.out)})")
        return lines

    def last_lines(self) -> list[str]:
        """The return. Gradients are arrays of their own."""
        value = self.form(self.value)[0]
        if not self.gradients:
            return [f"return {value}"]
        lines, parts = [], []
        for k, (w, g) in enumerate(zip(self.run.leaves, self.gradients, strict=True)):
            copied = self.shared(g) or g in self.gradients[:k]
            text = f"{self.atom(g)}.copy()" if copied else self.form(g)[0]
            name = f"d{self.names.get(w, '')}"
            if text.isidentifier() and (text == name or name in self.taken):
                parts.append(text)
            else:  # one array is the gradient by several, as of a sum
                parts.append(self.take(name))
                lines.append(f"{parts[-1]} = {text}")
        return [*lines, f"return {value}, ({', '.join(parts)}{',' * (len(parts) == 1)})"]

    def shared(self, g: Value) -> bool:
        """True for a gradient in memory that something else has too."""
        if g.kind == "constant":
            return False
        while self.op(g) in ("transpose", "reshape", "getitem", "same"):
            g = self.made[g].args[0]
            if g in self.gradients or g is self.value:
                return True
        return g not in self.made or (g not in self.backward and g not in self.gradients)

    # -- expressions

    def form(self, ref: Ref) -> tuple[str, int]:
        """(text, how closely it binds) of an operand."""
        if isinstance(ref, tuple):
            return f"({', '.join(self.form(a)[0] for a in ref)}{',' * (len(ref) == 1)})", ATOM
        if not isinstance(ref, Value):
            text = self.number(ref)
            return text, SIGN if text.startswith("-") else ATOM
        if ref in self.names:
            return self.names[ref], ATOM
        if ref in self.made:
            if ref not in self.forms:
                self.forms[ref] = self.expression(ref)
            return self.forms[ref]
        constant = self.constant(ref)
        assert constant is not None
        return constant, ATOM

    def atom(self, ref: Ref) -> str:
        text, level = self.form(ref)
        return text if level == ATOM else f"({text})"

    def at(self, ref: Ref, level: int) -> str:
        """The text in a place that takes what binds at least as closely as `level`."""
        text, own = self.form(ref)
        return text if own >= level else f"({text})"

    def code(self, v: Value) -> list[str]:
        """The lines that compute a result under its name; the last is the one to comment."""
        i, name = self.made[v], self.names[v]
        if v in self.terms:
            return self.added(v, name)
        text = self.expression(v)[0]
        return [f"{name} = {text}{'.copy()' if v in self.gradients and i.op == 'broadcast_to' else ''}"]

    def added(self, v: Value, name: str) -> list[str]:
        """A sum of arrays and of parts, which are added in place."""
        parts = [a for a in self.terms[v] if self.op(a) == "scatter_add" and a not in self.own - {v}]
        dense = [a for a in self.terms[v] if a not in parts]
        if dense:
            text = " + ".join(self.at(a, SUM) for a in dense)
            lines = [f"{name} = {text}{'.copy()' if text.isidentifier() or text.endswith(('.T', ']')) else ''}"]
        else:
            w = self.adjoint_of.get(v)
            like = self.names.get(w) if w is not None and (w.shape, w.dtype) == (v.shape, v.dtype) else None
            kind = "" if v.dtype == np.float64 else f", {literal(v.dtype, self.xp)}"
            zeros = f"zeros_like({like})" if like else f"zeros({self.shape(v)}{kind})"
            lines = [f"{name} = {self.xp}.{zeros}"]
        for a in parts:
            i = self.made[a]
            g = self.form(i.args[0])[0]
            twice = any(isinstance(p, Slot) and i.args[p.operand].dtype != bool for p in i.params["index"])
            at = f"{self.xp}.add.at({name}, {self.tuple_index(i)}, {g})"
            lines.append(at if twice else f"{name}[{self.index(i)}] {'+' if dense or len(parts) > 1 else ''}= {g}")
        return lines

    def expression(self, v: Value) -> tuple[str, int]:
        i = self.made[v]
        special = getattr(self, f"write_{i.op}", None)
        if special is not None:
            return special(i)
        if i.op in BINARY and len(i.args) == 2:
            return self.binary(i)
        if i.op in LOGIC and all(isinstance(a, Value) and a.dtype == bool for a in i.args):
            sign, level = LOGIC[i.op]
            return f"{self.at(i.args[0], level)} {sign} {self.at(i.args[1], level + 1)}", level
        params = ", ".join(f"{k}={self.literal(p)}" for k, p in i.params.items() if not (k == "axis" and p is None))
        if i.op in METHODS and self.form(i.args[0])[1] == ATOM and self.form(i.args[0])[0].isidentifier():
            return f"{self.form(i.args[0])[0]}.{i.op}({params})", ATOM
        args = [self.form(a)[0] for a in i.args]
        name = {"absolute": "abs"}.get(i.op, i.op)
        return f"{self.xp}.{name}({', '.join(filter(None, [*args, params]))})", ATOM

    def binary(self, i: Instruction) -> tuple[str, int]:
        sign, level = BINARY[i.op]
        a, b = i.args
        if level == POWER:
            return f"{self.at(a, ATOM)}**{self.at(b, SIGN)}", level
        if i.op in ("add", "subtract") and isinstance(b, (int, float)) and not isinstance(b, np.generic) and b < 0:
            sign, b = "-" if i.op == "add" else "+", -b
        joins = i.op in ("add", "multiply") and self.joins(b, i.op)  # a + (b + c) is a + b + c, but for its rounding
        left = self.at(a, level + (level == COMPARE))
        return f"{left} {sign} {self.at(b, level if joins else level + 1)}", level

    def joins(self, b: Ref, op: str) -> bool:
        """True for an operand that is a chain of the same operation, or a number after it."""
        return isinstance(b, Value) and b not in self.names and self.op(b) == op

    def write_negative(self, i: Instruction) -> tuple[str, int]:
        a = i.args[0]
        text, level = self.form(a)
        if level == PRODUCT and self.op(a) in ("multiply", "divide") and not text.startswith("-"):
            return f"-{text}", PRODUCT  # -(a * b) is -a * b
        return f"-{self.at(a, POWER)}", SIGN

    def write_same(self, i: Instruction) -> tuple[str, int]:
        return self.form(i.args[0])

    def write_square(self, i: Instruction) -> tuple[str, int]:
        return f"{self.atom(i.args[0])}**2", POWER

    def write_reciprocal(self, i: Instruction) -> tuple[str, int]:
        return f"1 / {self.at(i.args[0], SIGN)}", PRODUCT

    def write_relu(self, i: Instruction) -> tuple[str, int]:
        return f"{self.xp}.maximum({self.form(i.args[0])[0]}, 0)", ATOM

    def write_logical_not(self, i: Instruction) -> tuple[str, int]:
        if i.args[0].dtype == bool:
            return f"~{self.at(i.args[0], SIGN)}", SIGN
        return f"{self.xp}.logical_not({self.form(i.args[0])[0]})", ATOM

    def write_transpose(self, i: Instruction) -> tuple[str, int]:
        axes = i.params["axes"]
        rank = len(axes)
        if axes == tuple(range(rank))[::-1]:
            return f"{self.atom(i.args[0])}.T", ATOM
        if axes == (*range(rank - 2), rank - 1, rank - 2):
            return f"{self.atom(i.args[0])}.swapaxes(-1, -2)", ATOM
        return f"{self.atom(i.args[0])}.transpose{self.literal(axes)}", ATOM

    def write_reshape(self, i: Instruction) -> tuple[str, int]:
        a, shape = i.args[0], i.out.shape
        added, dropped = keeps_rank(a, i.out), keeps_rank(i.out, a)
        if added is not None and len(added) <= 2:
            parts = ["None" if k in added else ":" for k in range(len(shape))]
        elif dropped is not None and len(dropped) <= 2:
            parts = ["0" if k in dropped else ":" for k in range(len(a.shape))]
        else:
            flat = len(shape) == 1 and len(a.shape) > 1
            sizes = "-1" if flat and a.size else self.literal(shape)[1:-1].rstrip(",") or "()"
            return f"{self.atom(a)}.reshape({sizes})", ATOM
        while len(parts) > 1 and parts[-1] == ":":
            parts.pop()
        return f"{self.atom(a)}[{', '.join(parts)}]", ATOM

    def write_broadcast_to(self, i: Instruction) -> tuple[str, int]:
        return f"{self.xp}.broadcast_to({self.form(i.args[0])[0]}, {self.shape(i.out)})", ATOM

    def write_getitem(self, i: Instruction) -> tuple[str, int]:
        return f"{self.atom(i.args[0])}[{self.index(i)}]", ATOM

    def write_astype(self, i: Instruction) -> tuple[str, int]:
        return f"{self.atom(i.args[0])}.astype({literal(i.out.dtype, self.xp)})", ATOM

    def write_copy(self, i: Instruction) -> tuple[str, int]:
        return f"{self.atom(i.args[0])}.copy()", ATOM

    def write_random(self, i: Instruction) -> tuple[str, int]:
        drawn = f"rng.random({self.shape(i.out)}, {literal(i.out.dtype, self.xp)})"
        return (drawn if self.xp == "np" else f"cp.asarray({drawn})"), ATOM

    def write_concatenate(self, i: Instruction) -> tuple[str, int]:
        axis = i.params["axis"]
        return f"{self.xp}.concatenate({self.form(i.args[0])[0]}{f', axis={axis}' if axis else ''})", ATOM

    def write_einsum(self, i: Instruction) -> tuple[str, int]:
        subscripts, *operands = i.args
        return f'{self.xp}.einsum("{subscripts}", {", ".join(self.form(a)[0] for a in operands)})', ATOM

    def index(self, i: Instruction) -> str:
        """The inside of the brackets."""
        index = i.params["index"]
        parts = [
            self.form(i.args[p.operand])[0] if isinstance(p, Slot) else self.literal(p, slices=True) for p in index
        ]
        if index and index[0] is Ellipsis and len(index) > 1 and not any(isinstance(p, Slot) for p in index):
            inside = len(i.args[0].shape if i.op == "getitem" else i.out.shape) - sum(p is not None for p in index[1:])
            parts = [":"] * inside + parts[1:] if inside <= 1 else parts
        while len(parts) > 1 and parts[-1] == ":" and "..." not in parts:
            parts.pop()
        return ", ".join(parts) or "()"

    def tuple_index(self, i: Instruction) -> str:
        """The index as an argument."""
        index = i.params["index"]
        parts = [self.form(i.args[p.operand])[0] if isinstance(p, Slot) else self.literal(p) for p in index]
        return parts[0] if len(parts) == 1 else f"({', '.join(parts)})"

    # -- literals

    def number(self, value: Any) -> str:
        if isinstance(value, bool) or value is None:
            return repr(value)
        if isinstance(value, int) and not isinstance(value, np.generic):
            return self.integer(value)
        if isinstance(value, float) and not isinstance(value, np.generic):
            if value != value or value in (float("inf"), float("-inf")):
                return f"{'-' if value < 0 else ''}{self.xp}.{'nan' if value != value else 'inf'}"
            whole = self.run.sizes and value.is_integer() and abs(value) >= 2
            return self.integer(int(value)) if whole else repr(value)
        return self.literal(value)

    def integer(self, n: int) -> str:
        """A size by its name where it has one."""
        for size, name in self.run.sizes.items():
            if n and n % size == 0:
                return name if n == size else f"({n // size} * {name})"
        return repr(n)

    def literal(self, value: Any, slices: bool = False) -> str:
        if isinstance(value, slice) and slices:
            parts = ["" if p is None else repr(p) for p in (value.start, value.stop)]
            return ":".join(parts) + (f":{value.step}" if value.step not in (None, 1) else "")
        if isinstance(value, tuple):
            return f"({', '.join(map(self.literal, value))}{',' * (len(value) == 1)})"
        if isinstance(value, str):
            return json.dumps(value)
        if isinstance(value, int) and not isinstance(value, (bool, np.generic)):
            return self.integer(value)
        return literal(value, self.xp)

    def constant(self, v: Value) -> str | None:
        """An array as an expression; None where it would be too long."""
        host = arrays.to_host(v.array)
        dtype = literal(v.dtype, self.xp)
        c = host.flat[0].item() if v.size and (host == host.flat[0]).all() else None if v.size else 0
        if c is not None and v.shape:
            value = self.number(float(c) if v.dtype.kind == "f" else c)
            what = {"0.0": "zeros({}", "1.0": "ones({}"}.get(value, f"full({{}}, {value}")
            kind = "" if v.dtype == np.float64 else f", {dtype}"
            return f"{self.xp}.{what.format(self.shape(v))}{kind})"
        if not v.shape:
            return repr(host.item()) if v.dtype == bool else f"{dtype}({host.item()!r})"
        flat = host.reshape(-1)
        axes = [k for k, n in enumerate(v.shape) if n != 1]
        if host.dtype.kind in "iu" and len(axes) <= 1 and np.array_equal(flat, np.arange(flat.size)):
            index = ", ".join(":" if k in axes else "None" for k in range(host.ndim))
            kind = "" if v.dtype == np.int64 else f", dtype={dtype}"
            return f"{self.xp}.arange({self.integer(flat.size)}{kind}){f'[{index}]' if host.ndim > 1 else ''}"
        if host.size <= INLINE and (host.dtype.kind != "f" or np.isfinite(host).all()):
            kind = "" if v.dtype in (np.float64, np.int64, bool) else f", {dtype}"
            return f"{self.xp}.array({host.tolist()!r}{kind})"
        return None


def _followed(v: Value, alias: Mapping[Value, Ref]) -> Any:
    found: Ref = v
    while isinstance(found, Value) and found in alias:
        found = alias[found]
    return found


def _is_weight(a: Ref) -> bool:
    return isinstance(a, Value) and a.kind in ("memory", "input")
