"""Capture: a function of Tensors runs once on symbols, and what the array library computed becomes a Program.

A `Symbol` is a third kind of array, below Tensor: it carries an example (the real array of this run) and stands for a
value of the program. Its namespace records each call and computes it on the examples, so forward, backward, optimizer
and second order are captured by no code of their own, and a capture is an ordinary run whose results are right.
Recording is decided by context: while it is on, every array that enters an operation is lifted to a symbol.
"""

from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from operator import index as as_int
from typing import Any, NamedTuple, NoReturn

import numpy as np

from . import arrays, core, guards, program
from .arrays import Array, Namespace
from .core import F, Node, Tensor
from .functional import tree_leaves, tree_map
from .leaf import Leaf
from .modes import current, recording
from .program import Instruction, Program, Site, Slot, Value

LARGE = 1 << 25
"""Bytes from which on zeros come from the system, and take no memory before they are written."""


class CaptureError(RuntimeError):
    """A function did what cannot be captured: it read a value, or a symbol outlived it."""


class OnHost(BaseException):
    """Every step of the function has a call on the host. (No Exception: the function itself may catch those.)"""


class _Misled(Exception):
    """Zeros stood for large results where numbers were needed, or may have been: the function is to run with all."""


def _read(what: str) -> Callable[..., Any]:
    def read(self: Symbol, *_: Any, **__: Any) -> Any:
        raise CaptureError(
            f"{what} of a value while it is captured, at {guards.source_line()}: the program would keep the value of "
            "this call for ever. Return the Tensor and read it outside; for a choice by value use where(mask, a, b)"
        )

    return read


class Symbol:
    """An array while it is captured: an example, and the value of the program that it stands for."""

    __slots__ = ("__weakref__", "example", "line", "recorder", "value")

    def __init__(self, recorder: Recorder, value: Value, example: Array) -> None:
        self.recorder, self.value, self.example, self.line = recorder, value, example, guards.source_line()
        recorder.born.append(weakref.ref(self))

    shape = property(lambda self: self.example.shape)
    ndim = property(lambda self: self.example.ndim)
    size = property(lambda self: self.example.size)
    dtype = property(lambda self: self.example.dtype)
    strides = property(lambda self: self.example.strides)
    nbytes = property(lambda self: self.example.nbytes)
    itemsize = property(lambda self: self.example.itemsize)
    base = None

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.pop("out", (None,))[0]
        if out is not None:  # array += symbol
            if method != "__call__" or kwargs:
                _active().refuse(f"np.{ufunc.__name__}.{method} was given out=", "write its result with array[...] =")
            getattr(SPACE, ufunc.__name__)(*inputs, out=_active(self).lift(out))
            return out
        return _unwrapped(F._dispatch_ufunc(ufunc, method, inputs, kwargs), inputs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        name = f"{func.__module__}.{func.__name__}".removeprefix("numpy.")
        if name in _OWN and not any(isinstance(a, Tensor) for a in _flat((*args, *kwargs.values()))):
            if name == "linalg.norm":
                args, kwargs = args[:1], dict(zip(("ord", "axis", "keepdims"), args[1:], strict=False)) | kwargs
            return _active(self).function(name, args, kwargs)
        return _unwrapped(F._dispatch_function(func, args, kwargs), args)

    def __getitem__(self, key: Any) -> Symbol:
        return _active(self).getitem(self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, Tensor):
            guards.check_conversion(value)
        _active(self).setitem(self, key, value)

    def __len__(self) -> int:
        return len(self.example)

    def __iter__(self) -> Iterator[Symbol]:
        return (self[i] for i in range(len(self)))

    @property
    def T(self) -> Symbol:
        return SPACE.transpose(self, tuple(range(self.ndim))[::-1])

    def astype(self, dtype: Any, copy: bool = True) -> Symbol:
        same = not copy and self.dtype == dtype
        return self if same else SPACE.astype(self, dtype=dtype)

    def copy(self, order: str = "C") -> Symbol:
        return SPACE.copy(self, order=order)

    def reshape(self, *shape: Any) -> Symbol:
        return SPACE.reshape(self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes: Any) -> Symbol:
        axes = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes
        return SPACE.transpose(self, tuple(axes)) if axes else self.T

    def dot(self, other: Any) -> Symbol:
        if isinstance(other, Tensor):
            guards.check_conversion(other)
        return SPACE.dot(self, other)

    def flatten(self) -> Symbol:
        return self.copy().reshape(-1)

    def fill(self, value: Any) -> None:
        self[...] = value

    def __pos__(self) -> Symbol:
        return self.copy()

    def __invert__(self) -> Symbol:
        return SPACE.invert(self)

    def __imatmul__(self, other: Any) -> Symbol:
        self[...] = self @ other
        return self

    __bool__ = __float__ = __int__ = __index__ = _read("the truth or the number")
    __array__ = _read("the array")
    item = tolist = get = tobytes = _read("the numbers")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"an array has no .{name} while it is captured, at {guards.source_line()}: use the function of that name, "
            "or call it outside"
        )

    def __repr__(self) -> str:
        return f"<captured {self.dtype} {self.shape}>"

    __hash__ = object.__hash__


def _method(name: str, *, swap: bool = False) -> Callable[..., Any]:
    """A method or an operator that is a function on Tensors."""

    def method(self: Symbol, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], Tensor):
            return NotImplemented  # the Tensor's own operator records
        operands = (args[0], self) if swap else (self, *args)
        return _unwrapped(getattr(F, name)(*operands, **kwargs), operands)

    return method


def _operator(name: str, *, swap: bool = False) -> Callable[..., Any]:
    """An operator that arrays have and Tensors have not."""

    def operator(self: Symbol, *others: Any) -> Any:
        if any(isinstance(a, Tensor) for a in others):
            return NotImplemented
        return getattr(SPACE, name)(*((*others, self) if swap else (self, *others)))

    return operator


_OWN = {"dot", "inner", "einsum", "linalg.norm", "full_like"}
"""Functions of NumPy that ours compute on Tensors in another order: of arrays they are recorded as what they are."""

_SHORT = {2: "square", 0.5: "sqrt", -1: "reciprocal"}  # as NumPy computes `a **= 2`


def _in_place(name: str) -> Callable[..., Any]:
    def method(self: Symbol, other: Any) -> Symbol:
        if isinstance(other, Tensor):  # raises, as beside an array of NumPy
            F._dispatch_ufunc(getattr(np, name), "__call__", (self, other), {"out": (self,)})
        powers = name == "power" and type(other) in (int, float) and self.dtype.kind == "f"
        short = _SHORT.get(other) if powers else None
        function = getattr(SPACE, short or name)
        operands = (self,) if short else (self, other)
        if self.value.kind == "result" and self.value not in self.recorder.viewed:
            new = function(*operands)
            if (new.shape, new.dtype) == (self.shape, self.dtype):
                self.value, self.example = new.value, new.example  # nobody else sees the memory: a value of its own
                return self
        function(*operands, out=self)
        return self

    return method


_ARITHMETIC = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide", "mod": "mod",
    "pow": "pow", "matmul": "matmul",
}  # fmt: skip
_COMPARISONS = {
    "neg": "negative", "abs": "absolute", "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal",
    "gt": "greater", "ge": "greater_equal",
}  # fmt: skip
_BITS = {
    "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "lshift": "left_shift", "rshift": "right_shift",
}  # fmt: skip
_METHODS = [
    "sum", "mean", "prod", "max", "min", "var", "std", "argmax", "argmin", "all", "any", "ravel", "squeeze", "swapaxes",
    "clip", "cumsum", "round", "take", "repeat", "argsort", "diagonal", "trace",
]  # fmt: skip
for _symbol, _name in _ARITHMETIC.items():
    setattr(Symbol, f"__{_symbol}__", _method(_name))
    setattr(Symbol, f"__r{_symbol}__", _method("power" if _name == "pow" else _name, swap=True))
for _symbol, _name in _COMPARISONS.items():
    setattr(Symbol, f"__{_symbol}__", _method(_name))
for _symbol, _name in _BITS.items():
    setattr(Symbol, f"__{_symbol}__", _operator(_name))
    setattr(Symbol, f"__r{_symbol}__", _operator(_name, swap=True))
for _symbol, _name in (_ARITHMETIC | _BITS).items():
    if _symbol != "matmul":
        setattr(Symbol, f"__i{_symbol}__", _in_place("power" if _name == "pow" else _name))
for _name in _METHODS:
    setattr(Symbol, _name, _method(_name))


def _unwrapped(result: Any, operands: Any) -> Any:
    """What NumPy would have returned: an array where no Tensor was among the operands."""
    tensors = isinstance(result, Tensor) and not any(isinstance(a, Tensor) for a in _flat(operands))
    return result._data if tensors else result


def _flat(values: Any) -> Iterator[Any]:
    for v in values:
        if isinstance(v, (list, tuple)):
            yield from _flat(v)
        else:
            yield v


class Number(float):
    """A number that is new at every call, such as the rate of a schedule: it holds its value in the program."""

    value: Value


# ---- the namespace of symbols -------------------------------------------------------------------------------------


def _active(symbol: Symbol | None = None) -> Recorder:
    recorder: Recorder | None = current.get().recorder
    if symbol is not None and symbol.recorder is not recorder:
        raise CaptureError(
            f"a Tensor of a captured function, made at {symbol.line}, was used after the function had ended: it "
            "has no value there. Return it from the function instead"
        )
    assert recorder is not None
    return recorder


class _Recording(Namespace):
    """`xp` on symbols: each function records itself."""

    records = True

    def __init__(self) -> None:
        super().__init__(np, {})

    def home(self, a: Symbol) -> str:
        return arrays.device_of(a.example)

    def bind(self, name: str, kernel: Callable[..., Array] | None) -> Callable[..., Array]:
        if kernel is None or name in ("relu", "scatter_add", "astype"):
            return lambda *operands, **params: _recorder_of(operands).call(name, operands, params)
        return lambda *operands, **params: _recorder_of(operands).within(kernel, operands, params)

    def fused(self, make: Callable[..., Callable[..., None]], state: Sequence[str], numbers: Any) -> Any:
        formula, lift = make(self, *numbers), _active().lift
        return lambda p, g, *rest: formula(lift(p), g, *map(lift, rest[: len(state)]), None, None)

    def worth_joining(self, size: int) -> bool:
        return True  # it costs nothing: the gradients are made where they are wanted

    def lifted(self, a: Any) -> Symbol:
        return _active().lift(a)

    def uploaded(self, a: Any, device: str) -> Symbol:
        return _active().upload(a, device)

    def check_labels(self, labels: Symbol, classes: int) -> None:
        recorder = _active(labels)
        arrays.check_labels(labels.example, classes)
        params = {"call": arrays.check_labels, "classes": classes}
        recorder.emit(Instruction("check_labels", (labels.value,), params, site=recorder.site))


def _recorder_of(operands: Sequence[Any]) -> Recorder:
    return _active(next((a for a in _flat(operands) if isinstance(a, Symbol)), None))


SPACE = _Recording()
arrays.register_symbols(Symbol, SPACE)

_FILLS = {"zeros_like": 0, "ones_like": 1, "empty_like": 0, "full_like": 0}
_REDUCES = {"sum", "mean", "max", "min", "prod", "var", "std", "any", "all"}


class Recorder:
    """Takes down one run of a function."""

    def __init__(self, name: str = "step", *, hollow: bool = False, calls: bool = True) -> None:
        self.name = name  # of the function
        self.calls = calls  # whether what runs on the host at every step may do so now
        self.hollow = hollow  # nobody wants the numbers: zeros stand for large results
        self.emptied = False  # there were some
        self.errors = np.geterr()
        self.site = Site()
        self.inside = False  # in a kernel or a rule: what these do belongs to the operation that asked for it
        self.instructions: list[Instruction] = []
        self.born: list[weakref.ref[Symbol]] = []
        self.lifted: dict[Any, Symbol] = {}  # memory that entered
        self.roots: dict[int, Value] = {}  # id of the owner of memory -> its value
        self.nodes: dict[Any, tuple[Site, Value]] = {}  # recorded operations: where each comes from, and its result
        self.adjoints: list[tuple[Value, Value]] = []  # results of recorded operations, and the cotangents of these
        self.grads: dict[Leaf, Array | None] = {}  # leaves whose .grad was set, and what it was before
        self.own: set[Leaf] = set()  # leaves that the function made of what it computed: they end with it
        self.grad_inputs: dict[Leaf, Symbol | None] = {}  # leaves whose .grad was read before it was set
        self.tensors: dict[int, tuple[Any, Array]] = {}  # Tensors that entered, and the arrays that they had
        self.attributes: list[tuple[Any, str, Any]] = []  # what was read of modules: (object, name, value)
        self.numbers: set[Value] = set()  # results that are Python numbers where nothing is captured
        self.undo: list[Callable[[], None]] = []
        self.viewed: set[Value] = set()  # values of which there are views, and these

    # -- what enters

    def enter(self, prim: Any, operands: Sequence[Any], datas: list[Any]) -> tuple[list[Any], type]:
        """The operands of an operation, as symbols."""
        if np.geterr() != self.errors:
            self.refuse("np.errstate was entered", "put it around the call")
        if not self.inside:
            self.site = Site(guards.source_line(), self.site.phase, len(self.nodes), prim.name)
        for t, a in zip(operands, datas, strict=True):
            if not isinstance(t, Tensor):
                continue
            if not isinstance(a, Symbol):
                self.tensors.setdefault(id(t), (t, a))
                self.lift(a, t.name)
            elif type(t._node) is Leaf:
                self.own.add(t._node)
        return [self.lift(a) if arrays.is_array(a) else a for a in datas], Symbol

    def refuse(self, what: str, remedy: str) -> NoReturn:
        """Raise for what the program could not do again."""
        raise CaptureError(f"{what} while it is captured, at {guards.source_line()}: {remedy}")

    def lift(self, a: Any, name: str | None = None) -> Symbol:
        """The symbol of memory that outlives the call, or of a constant."""
        if isinstance(a, Symbol):
            _active(a)
            if a.value in self.numbers:
                self.refuse("the norm of the gradients was used", "return it from the function; it is a number there")
            return a
        a = a if arrays.is_array(a) else np.asarray(a)
        key = (arrays.extent(a)[0] if a.size else id(a), a.shape, a.strides, a.dtype)
        symbol = self.lifted.get(key)
        if symbol is None:
            frozen = isinstance(a, np.ndarray) and not a.flags.writeable and a.base is None
            if frozen:
                value = Value("constant", a, array=a, name=name)
            else:
                owner = arrays.owner(a)
                root = self.roots.get(id(owner))
                if root is None:
                    root = self.roots[id(owner)] = Value("memory", owner, array=owner)
                value = root if owner is a else Value("memory", a, array=a, root=root)
                value.name = name
            symbol = self.lifted[key] = Symbol(self, value, a)
        if name and not symbol.value.name:
            symbol.value.name = name
        return symbol

    def input(self, a: Array, place: int, name: str | None) -> Symbol:
        return Symbol(self, Value("input", a, place=place, name=name), a)

    def within(self, kernel: Callable[..., Array], operands: Sequence[Any], params: dict[str, Any]) -> Array:
        """What the kernel of a primitive computes."""
        before, self.inside = self.inside, True
        try:
            return kernel(SPACE, *operands, **params)
        finally:
            self.inside = before

    def recorded(self, node: Node, y: Symbol) -> None:
        """The operation that is being recorded has this node in the graph, and this result."""
        self.nodes[node] = self.site, y.value

    def at(self, node: Node | None, g: Any = None) -> None:
        """The walk is at this node, with this cotangent: what follows is its backward step."""
        self.inside = node is not None
        known = self.nodes.get(node)
        self.site = Site()
        if node is not None and known is not None:
            there, value = known
            self.site = there._replace(phase="backward", op=node.prim.name)
            g = data_of(g)
            if isinstance(g, Symbol):
                self.adjoints.append((value, g.value))
        elif node is not None:
            self.site = Site(phase="backward", op=node.prim.name)

    def forget(self) -> None:
        """Let go of all symbols, so that those that are left are the user's."""
        self.lifted.clear()
        self.nodes.clear()
        self.grad_inputs.clear()
        self.own.clear()

    def reads(self, what: Any, name: str, value: Any) -> None:
        """An attribute was read whose change asks for another program."""
        value = list(value) if isinstance(value, list) else value
        if not any(o is what and n == name for o, n, _ in self.attributes):
            self.attributes.append((what, name, value))

    # -- gradients of leaves

    def grad_of(self, leaf: Leaf, found: Array | None) -> Array | None:
        """What `.grad` is, for the captured function."""
        if isinstance(found, Symbol) or leaf in self.grads:
            return found
        if leaf not in self.grad_inputs:
            value = None if found is None else Symbol(self, Value("grad", found, place=leaf), found)
            self.grad_inputs[leaf] = value
        return self.grad_inputs[leaf]

    def sets_grad(self, leaf: Leaf, before: Array | None) -> None:
        self.grads.setdefault(leaf, before)

    # -- effects

    def advance(self, optimizer: Any, call: Callable[[], tuple[float, ...]]) -> tuple[Number, ...]:
        """An optimizer counts a step: the numbers of this one, as symbols that are new at every call."""
        self.site = Site(guards.source_line(), "update", len(self.nodes), type(optimizer).__name__)
        steps, lr = optimizer.steps, optimizer.lr

        def back() -> None:
            optimizer.steps, optimizer._lr = steps, lr

        self.undo.append(back)
        numbers = []
        for name, x in zip(optimizer.rates, call(), strict=True):
            number = Number(x)
            number.value = Value("number", name=name)
            numbers.append(number)
        params = {"call": call, "optimizer": optimizer}
        self.emit(Instruction("advance", (), params, tuple(n.value for n in numbers), site=self.site))
        return tuple(numbers)

    def host_call(self, call: Callable[..., Any], operands: Sequence[Array], *, result: bool, **params: Any) -> Any:
        """Call a function on the host now and at every replay; it may change its operands in place."""
        site = self.site if self.site.line else Site(guards.source_line(), "update", len(self.nodes))
        if not self.calls and "due" not in params:
            raise OnHost(f"{site.op or 'a call'} at {site.line} runs on the host at every step")
        symbols = [self.lift(a) for a in operands]
        self.save(symbols)
        found = call(*(s.example for s in symbols))
        values = tuple(s.value for s in symbols)
        out = self.result(np.asarray(found)) if result else None
        outs = () if out is None else (out.value,)
        self.numbers.update(outs)
        self.emit(Instruction("call", values, {"call": call, **params}, outs, values, site))
        return out

    def random(self, rng: np.random.Generator, shape: tuple[int, ...], dtype: str, like: Any) -> Symbol:
        """Numbers from [0, 1), drawn on the host now and at every replay."""
        state = rng.bit_generator.state
        self.undo.append(lambda: setattr(rng.bit_generator, "state", state))
        drawn = rng.random(shape, dtype=dtype)  # type: ignore[call-overload]
        example = arrays.place(drawn, like.example if isinstance(like, Symbol) else like)
        out = self.result(example)
        self.emit(Instruction("random", (), {"rng": rng}, (out.value,), site=self.site))
        return out

    def upload(self, a: Any, device: str) -> Symbol:
        """An array of the host on a device, now and at every replay."""
        a = self.lift(a)
        if device == "cpu":
            return a
        return self.make("upload", (a.value,), arrays.move(a.example, device))

    def save(self, symbols: Sequence[Symbol]) -> None:
        """Remember what is about to be overwritten, for an abort."""
        for s in symbols:
            if s.value.root.kind != "result":
                self.undo.append(partial(arrays.put, s.example, ..., s.example.copy()))

    def roll_back(self) -> None:
        """Make undone what the run changed."""
        for step in reversed(self.undo):
            step()
        for leaf, before in self.grads.items():
            leaf.set_quietly(before)

    # -- instructions

    def emit(self, i: Instruction) -> None:
        self.instructions.append(i)

    def result(self, example: Array, root: Value | None = None) -> Symbol:
        example = arrays.box(example)
        return Symbol(self, Value("result", example, root=root), example)

    def make(
        self, op: str, refs: tuple[Any, ...], y: Array, params: dict[str, Any] | None = None, root: Value | None = None
    ) -> Symbol:
        """Record the call that made `y`, a view of `root` where that is given."""
        y = arrays.box(y)
        constant = all(v.array is not None and v.kind != "memory" for v in program._values(refs))
        if self.hollow and not constant and _can_be_emptied(y):
            y = np.zeros(y.shape, y.dtype)
            self.emptied = True
        found = self.result(y, root)
        if constant:
            found.value.array = y
        self.emit(Instruction(op, refs, params or {}, (found.value,), (), self.site))
        return found

    def _operand(self, a: Any) -> tuple[Any, Any]:
        """(reference in the program, example) of an operand."""
        if isinstance(a, (list, tuple)):
            pairs = [self._operand(part) for part in a]
            return tuple(ref for ref, _ in pairs), [example for _, example in pairs]
        if isinstance(a, Tensor):
            a = a._data
        if isinstance(a, Number):
            return a.value, float(a)
        if arrays.is_array(a):
            s = self.lift(a)
            return s.value, s.example
        return a, a

    def call(self, name: str, operands: Sequence[Any], params: dict[str, Any]) -> Symbol:
        """Record a function of the array library under its NumPy name."""
        special = getattr(self, f"_{name}", None)
        if special is not None:
            return special(*operands, **params)
        if name in _REDUCES:
            return self._reduction(name, *operands, **params)
        return self.function(name, operands, params)

    def function(self, name: str, operands: Sequence[Any], params: dict[str, Any]) -> Symbol:
        params = dict(params)
        out = params.pop("out", None)
        refs, examples = self._operand(tuple(operands))
        space = self._space(examples)
        compute = getattr(space, name) if "." not in name else attrgetter(name)(space._module)
        if out is not None:
            target = self.lift(out)
            self.save([target])
            if name in program.UFUNCS:
                compute(*examples, out=target.example)
                self.emit(Instruction(name, refs, params, (), (target.value,), self.site))
                return target
            self.refuse(f"{name} was given out=", "write its result with array[...] =")
        y = arrays.box(compute(*examples, **params))
        if name in _FILLS and not any(map(arrays.is_array, examples[1:])):
            return self.make("fill", (_FILLS[name] if len(examples) == 1 else examples[1],), y)
        if any(arrays.is_array(e) and arrays.owner(y) is arrays.owner(e) for e in _flat(examples)):
            y = y.copy()  # a function that may return a view of its operand
        return self.make(name, refs, y, params)

    @staticmethod
    def _space(examples: Any) -> Namespace:
        return arrays.namespace(arrays.class_of(_flat(examples)))

    def _reduction(self, name: str, a: Any, axis: Any = None, keepdims: bool = False, **params: Any) -> Symbol:
        """Without `keepdims`, which is a view of the result: so that both forms are one subexpression."""
        a = self.lift(a)
        if axis is not None:
            axis = tuple(as_int(k) % a.ndim for k in axis) if isinstance(axis, tuple) else as_int(axis) % max(a.ndim, 1)
        if params.get("dtype", 0) is None:
            del params["dtype"]
        y = self.function(name, (a,), {"axis": axis, **params})
        if not keepdims:
            return y
        gone = range(a.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
        return self._reshape(y, tuple(1 if k in gone else n for k, n in enumerate(a.shape)))

    def _view(self, op: str, a: Symbol, y: Array, params: dict[str, Any]) -> Symbol:
        """Record what is a view of `a` wherever the library made one."""
        shares = y.size > 0 and arrays.owner(y) is arrays.owner(a.example)
        found = self.make(op, (a.value,), y, params, a.value.root if shares else None)
        if shares:
            self.viewed |= {a.value, a.value.root, found.value}
        return found

    def _reshape(self, a: Any, shape: Any) -> Symbol:
        a = self.lift(a)
        y = a.example.reshape(shape)
        return a if y.shape == a.shape else self._view("reshape", a, y, {"shape": y.shape})

    def _transpose(self, a: Any, axes: Any = None) -> Symbol:
        a = self.lift(a)
        axes = tuple(range(a.ndim))[::-1] if axes is None else tuple(as_int(k) % a.ndim for k in axes)
        if axes == tuple(range(a.ndim)):
            return a
        return self._view("transpose", a, a.example.transpose(axes), {"axes": axes})

    def _swapaxes(self, a: Any, axis1: int, axis2: int) -> Symbol:
        order = list(range(a.ndim))
        order[axis1], order[axis2] = order[axis2], order[axis1]
        return self._transpose(a, order)

    def _expand_dims(self, a: Any, axis: Any) -> Symbol:
        return self._reshape(a, np.expand_dims(np.broadcast_to(0, a.shape), axis).shape)

    def _squeeze(self, a: Any, axis: Any = None) -> Symbol:
        return self._reshape(a, np.squeeze(np.broadcast_to(0, a.shape), axis).shape)

    def _ravel(self, a: Any) -> Symbol:
        return self._reshape(a, -1)

    def _broadcast_to(self, a: Any, shape: tuple[int, ...]) -> Symbol:
        a = self.lift(a)
        y = self._space([a.example]).broadcast_to(a.example, shape)
        return a if y.shape == a.shape else self._view("broadcast_to", a, y, {"shape": tuple(shape)})

    def _flip(self, a: Any, axis: Any = None) -> Symbol:
        axes = range(a.ndim) if axis is None else [k % a.ndim for k in (axis if isinstance(axis, tuple) else (axis,))]
        return self.getitem(a, tuple(slice(None, None, -1) if k in axes else slice(None) for k in range(a.ndim)))

    def _astype(self, a: Any, dtype: Any) -> Symbol:
        return self._unary("astype", a, lambda e: e.astype(dtype), {"dtype": np.dtype(dtype)})

    def _copy(self, a: Any, order: str = "K") -> Symbol:
        return self._unary("copy", a, lambda e: e.copy(order=order), {})

    def _relu(self, a: Any) -> Symbol:
        return self._unary("relu", a, lambda e: self._space([e]).relu(e), {})

    def _unary(self, op: str, a: Any, f: Callable[[Array], Array], params: dict[str, Any]) -> Symbol:
        a = self.lift(a)
        return self.make(op, (a.value,), f(a.example), params)

    def _concatenate(self, parts: Sequence[Any], axis: int = 0, dtype: Any = None) -> Symbol:
        refs, examples = self._operand(tuple(parts))
        y = self._space(examples).concatenate(examples, axis=axis)
        if dtype is not None and y.dtype != dtype:
            self.refuse("arrays of several dtypes were joined", "make them one dtype with astype")
        return self.make("concatenate", (refs,), y, {"axis": axis})

    def _stack(self, parts: Sequence[Any], axis: int = 0) -> Symbol:
        return self._concatenate([self._expand_dims(self.lift(p), axis) for p in parts], axis)

    def _einsum(self, subscripts: str, *operands: Any, optimize: Any = False) -> Symbol:
        refs, examples = self._operand(tuple(operands))
        y = arrays.box(self._space(examples).einsum(subscripts, *examples, optimize=optimize))
        if any(arrays.owner(y) is arrays.owner(e) for e in examples):
            y = y.copy()
        return self.make("einsum", (subscripts, *refs), y, {"optimize": optimize})

    def _index(self, key: Any, first: int) -> tuple[tuple[Any, ...], list[Any], list[Any]]:
        """(index with slots, references of index arrays, index on examples); `first`: the place of the first array."""
        key = key if isinstance(key, tuple) else (key,)
        template: list[Any] = []
        refs: list[Any] = []
        examples: list[Any] = []
        for part in key:
            if isinstance(part, (list, Tensor)) or arrays.is_array(part):
                if isinstance(part, list):
                    part = np.asarray(part, None if np.size(part) else int)
                    part.flags.writeable = False
                ref, example = self._operand(part)
                template.append(Slot(first + len(refs)))
                refs.append(ref)
                examples.append(example)
            else:
                part = as_int(part) if isinstance(part, np.integer) else part
                template.append(part)
                examples.append(part)
        return tuple(template), refs, examples

    def beside(self, a: Symbol, index: Any) -> Any:
        """An index whose arrays lie where `a` does. A GPU wraps what is out of range: the host checks, every time."""
        parts = index if isinstance(index, tuple) else (index,)
        home = arrays.device_of(a)
        found = [*parts]
        for k, part in enumerate(parts):
            if home == "cpu" or not isinstance(part, Symbol) or arrays.device_of(part) == home:
                continue
            if part.dtype != bool:
                check = _range_check(parts, k, a.example)
                check(part.example)
                self.emit(Instruction("check_mask", (part.value,), {"call": check}, site=self.site))
            found[k] = self.upload(part, home)
        return tuple(found)

    def getitem(self, a: Any, index: Any) -> Symbol:
        a = self.lift(a)
        index = self.beside(a, index)
        template, refs, examples = self._index(index, 1)
        y = a.example[tuple(examples)]
        for ref, example in zip(refs, filter(arrays.is_array, examples), strict=True):
            if example.dtype == bool and ref.array is None:
                if self.emptied:
                    raise _Misled  # the mask may be of zeros
                check = _mask_check(int(example.sum()), guards.source_line())
                self.emit(Instruction("check_mask", (ref,), {"call": check}, site=self.site))
        if refs or not getattr(y, "ndim", 0):  # a scalar is a copy in NumPy; as a view it would see later writes
            y = y if refs else arrays.box(y).copy()
            return self.make("getitem", (a.value, *refs), y, {"index": template})
        return self._view("getitem", a, y, {"index": template})

    def setitem(self, a: Symbol, index: Any, value: Any) -> None:
        index = self.beside(a, index)
        template, refs, examples = self._index(index, 2)
        ref, example = self._operand(value)
        self.save([a])
        arrays.put(a.example, tuple(examples), example)
        self.emit(Instruction("setitem", (a.value, ref, *refs), {"index": template}, (), (a.value,), self.site))

    def _scatter_add(self, g: Any, *, index: Any, shape: tuple[int, ...]) -> Symbol:
        g = self.lift(g)
        template, refs, examples = self._index(index, 1)
        y = self._space([g.example]).scatter_add(g.example, index=tuple(examples), shape=shape)
        return self.make("scatter_add", (g.value, *refs), y, {"index": template, "shape": tuple(shape)})


def _can_be_emptied(y: Array) -> bool:
    own = isinstance(y, np.ndarray) and y.base is None and y.flags.c_contiguous
    return own and y.nbytes >= LARGE and y.dtype.kind == "f"


def _range_check(parts: tuple[Any, ...], k: int, a: Array) -> Callable[[Array], None]:
    """A check of part `k` of an index of `a` alone."""
    others = [np.zeros(part.shape, int) if isinstance(part, Symbol) else part for part in parts]
    like = np.broadcast_to(np.empty((), a.dtype), a.shape)
    return lambda places: arrays.check_places((*others[:k], places, *others[k + 1 :]), like)


def _mask_check(count: int, line: str) -> Callable[[Array], None]:
    def check(mask: Array) -> None:
        found = int(mask.sum())
        if found != count:
            raise CaptureError(
                f"the mask of an index, at {line}, is true in {found} places, in the capture it was in {count}: the "
                "program has memory for so many. Use where(mask, a, 0)"
            )

    return check


# ---- capturing a call ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Output:
    """In the result of a captured function: the place of an array among the outputs of the program."""

    place: int
    kind: str  # "Tensor", "array" or "number"


class Captured(NamedTuple):
    """A call that was captured: its program, what it depends on, and the shape of its result."""

    program: Program
    library: Any  # the array library that computed
    shape: Any  # the result, with an `_Output` in place of each array
    cleared: list[Leaf]  # whose .grad is None after the call
    tensors: list[tuple[Tensor, Array]]
    attributes: list[tuple[Any, str, Any]]
    had_grad: dict[Leaf, bool]

    def leaves(self) -> list[Leaf]:
        """Those whose .grad the call sets."""
        return [*(leaf for leaf, _ in self.program.grads), *self.cleared]

    def moved(self) -> str | None:
        """What has other memory than the program knows, or None."""
        return next((f"{t.name or 'a Tensor'} has other memory" for t, a in self.tensors if t._data is not a), None)

    def stale(self) -> str | None:
        """Why the program does not hold for a call now, or None."""
        for t, a in self.tensors:  # as `moved`, at every call
            if t._data is not a:
                return self.moved()
        for what, name, value in self.attributes:
            found = getattr(what, name)
            if found is not value and (isinstance(found, Tensor) or found != value):
                return f"{type(what).__name__}.{name.lstrip('_')} is {found!r:.40}, it was {value!r:.40}"
        for leaf, had in self.had_grad.items():
            if (leaf._grad is not None) != had:
                return f".grad of {leaf.name or 'a parameter'} is {'None' if had else 'there'}, it was not"
        return None

    def result(self, arrays: Sequence[Array]) -> Any:
        """What the function returns, of the arrays that the program returned."""

        def build(part: Any) -> Any:
            if type(part) is not _Output:
                return part
            a = arrays[part.place]
            if part.kind == "number" and not a.ndim:  # else one of each step
                return a.item()
            return core._wrap(a, None) if part.kind == "Tensor" else a

        return tree_map(build, self.shape)


def record(
    f: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], *, keep: bool = True, calls: bool = True,
    watch: Callable[[Recorder], Any] = lambda recorder: nullcontext(),
) -> tuple[Captured, Any]:
    """Run `f` once on symbols: (the captured call, the result of this run).

    An exception undoes whatever the run has changed. So does `keep=False`: then there is no result, and large ones on
    the way to it are not kept either. `calls=False`: OnHost instead of a call on the host that every step has; what
    other processes take part in cannot be undone. `watch(recorder)` is a context in which `f` runs.
    """
    if not keep:
        with suppress(_Misled), np.errstate(all="ignore"):
            return _recorded(f, args, kwargs, keep, calls, watch, hollow=True)
    return _recorded(f, args, kwargs, keep, calls, watch, hollow=False)


def _recorded(
    f: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], keep: bool, calls: bool,
    watch: Callable[[Recorder], Any], *, hollow: bool,
) -> tuple[Captured, Any]:
    recorder = Recorder(getattr(f, "__name__", "step"), hollow=hollow, calls=calls)
    try:
        with recording(recorder), watch(recorder):
            captured, results = _run(recorder, f, args, kwargs)
        for leaf in recorder.grads:
            if isinstance(leaf._grad, Symbol):
                leaf.set_quietly(arrays.replica(leaf._grad.example))
    except BaseException as error:
        recorder.roll_back()
        if recorder.emptied and isinstance(error, Exception):
            raise _Misled from None
        raise
    if not keep:
        recorder.roll_back()
        results = None
    recorder.forget()
    if escaped := _escaped(recorder.born):
        if keep:
            recorder.roll_back()
        raise CaptureError(
            f"a Tensor made at {escaped} outlives the captured function, which will not make it again: return it from "
            "the function instead of keeping it elsewhere"
        )
    return captured, results


def _run(
    recorder: Recorder, f: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Captured, Any]:
    inputs: list[Value] = []

    def enter(a: Any, name: str) -> Any:
        if isinstance(a, Tensor):
            # a leaf keeps its memory, and gets its gradient
            return a if a._node is not None else core._wrap(enter(a._data, a.name or name), None)
        if not arrays.is_array(a):
            return a
        symbol = recorder.input(a, len(inputs), name)
        inputs.append(symbol.value)
        return symbol

    named = zip(args, parameter_names(f, len(args)), strict=True)
    entered = [tree_map(lambda a, name=name: enter(a, name), tree) for tree, name in named]
    keywords = {k: tree_map(lambda a, name=k: enter(a, name), tree) for k, tree in kwargs.items()}
    before = tree_leaves([entered, keywords])
    found = f(*entered, **keywords)
    after = tree_leaves([entered, keywords])
    if len(after) != len(before) or any(a is not b for a, b in zip(after, before, strict=True)):
        raise CaptureError(
            f"{recorder.name} changed a list or a dict that it was given, which the program will not do again: return "
            "what it put there"
        )
    outputs: list[Symbol] = []

    def leave(r: Any) -> Any:
        a = data_of(r)
        if not arrays.is_array(a) or (a is not r and r._node is not None and not isinstance(a, Symbol)):
            return r  # a parameter is returned as itself
        outputs.append(a if isinstance(a, Symbol) else recorder.lift(a))
        number = outputs[-1].value in recorder.numbers
        return _Output(len(outputs) - 1, "number" if number else "array" if a is r else "Tensor")

    shape = tree_map(leave, found)
    recorder.grads = {leaf: before for leaf, before in recorder.grads.items() if leaf not in recorder.own}
    grads = [(leaf, recorder.lift(leaf._grad)) for leaf in recorder.grads if leaf._grad is not None]
    program = Program(
        inputs,
        recorder.instructions,
        [s.value for s in outputs],
        [(leaf, g.value) for leaf, g in grads],
        recorder.name,
    )
    cleared = [leaf for leaf in recorder.grads if leaf._grad is None]
    had_grad = {leaf: a is not None for leaf, a in recorder.grad_inputs.items() if leaf not in recorder.own}
    tensors = list(recorder.tensors.values())
    devices = {v.device for v in program.values()} - {"cpu"}
    if len(devices) > 1:
        raise CaptureError(f"a captured function can use one GPU, not {' and '.join(sorted(devices))}")
    library = arrays.library(program.device)
    captured = Captured(program, library, shape, cleared, tensors, recorder.attributes, had_grad)
    return captured, captured.result([arrays.replica(s.example) for s in outputs])


def data_of(a: Any) -> Any:
    return a._data if isinstance(a, Tensor) else a


def parameter_names(f: Callable[..., Any], count: int) -> list[str]:
    """The names that `f` gives to its first arguments."""
    try:
        names = list(inspect.signature(f).parameters)
    except (TypeError, ValueError):
        names = []
    return (names + [""] * count)[:count]


def _escaped(born: list[weakref.ref[Symbol]]) -> str | None:
    """Where a symbol was made that is still in use, though the function has ended."""
    if any(ref() is not None for ref in born):
        gc.collect()  # a cycle of the user's own may only look like a use
    found = [symbol for ref in born if (symbol := ref()) is not None]
    found.sort(key=lambda symbol: symbol.value.kind != "result")  # what was made here says more than an argument
    return found[0].line if found else None
