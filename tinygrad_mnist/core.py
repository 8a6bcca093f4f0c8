"""The core: primitives and their rules, the graph that Tensors record, and the walk that turns it into gradients.

A primitive has one rule for each operand, `rule(xp, g, y, *operands, **params)`: the gradient of that operand, given
the cotangent `g` of the result `y`. The rule is NumPy code with the namespace `xp` as a parameter, so the same line
serves plain arrays (the walk of `backward`), Tensors (then it records itself, and gradients have gradients) and
whatever other array type comes with a namespace of its own.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from inspect import CO_VARARGS
from typing import Any

from . import arrays, guards
from .arrays import Array, Dtype
from .leaf import Leaf
from .modes import NORMAL, current, lifted

Function = Callable[..., Any]
Rule = Function
_new = object.__new__
_WEAK = frozenset({int, float, bool})  # Python numbers: they take the dtype of what they meet
_PLAIN = arrays.PLAIN

# ---- primitives ---------------------------------------------------------------------------------------------------


class Aval:
    """All that a rule sees of an operand that it did not ask to keep."""

    __slots__ = ("dtype", "shape")

    def __init__(self, a: Array) -> None:
        self.shape: tuple[int, ...] = a.shape
        self.dtype: Dtype = a.dtype


class _PerOperand:
    """The rules of a primitive with any number of operands: one function that is told which operand it is for."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def __getitem__(self, i: int) -> Rule:
        return lambda xp, g, y, *operands, **params: self.rule(xp, g, y, i, *operands, **params)


_UNSEEN, _SEEN, _KEPT = range(3)  # what a rule asks of the result or an operand: nothing, shape and dtype, the array


class Primitive:
    """An operation that the graph records.

    `rules[i]` gives the gradient of operand i; `None` where there is none to give (an integer index, a condition). A
    primitive without rules has a derivative of zero wherever it has one: its result is a plain array, not recorded.
    What a node keeps for backward is read from the rules' own parameter names: `a` is kept; of `_a` the rule sees only
    shape and dtype; what `*_` takes is not seen at all.
    """

    def __init__(
        self, name: str, rules: Sequence[Rule | None], kernel: Function | None = None, variadic: bool = False
    ) -> None:
        self.name = name.lstrip("_")  # `_sum` is the primitive under the function `sum` that has NumPy's signature
        self._kernel = kernel  # None: the library's function of that name
        self.variadic = variadic
        self.rules: Any = _PerOperand(rules[0]) if variadic and rules[0] is not None else tuple(rules)
        self.differentiable = any(rule is not None for rule in rules)
        self._asks = [_asks(rule, len(rules), variadic) for rule in rules]
        self.kernels: dict[type, Function] = {}
        self.plans: dict[int, tuple[tuple[int, int], ...] | None] = {}

    def __repr__(self) -> str:
        return f"<primitive {self.name}>"

    def kernel(self, cls: type) -> Function:
        """The forward function for arrays of one class."""
        kernel = self.kernels[cls] = arrays.namespace(cls).bind(self.name, self._kernel)
        return kernel

    def plan(self, tracked: int, operands: int) -> tuple[tuple[int, int], ...] | None:
        """What to drop of (result, operand 0, operand 1, ...) if the operands in the bit mask are tracked: the places,
        and whether a rule wants to see their shape; None where everything may go."""
        if self.variadic:
            result, rest = self._asks[0]
            asks = [result, *[rest] * operands]
        else:
            rows = [self._asks[i] for i in range(operands) if tracked >> i & 1]
            asks = [max(column) for column in zip(*rows, strict=True)]
        plan = tuple((j, ask) for j, ask in enumerate(asks) if ask != _KEPT) if any(asks) else None
        if not self.variadic:
            self.plans[tracked] = plan
        return plan


def _asks(rule: Rule | None, operands: int, variadic: bool) -> list[int]:
    if rule is None:
        return [_UNSEEN] * (operands + 1)
    code = rule.__code__  # inspect.signature would take 5 ms of every import
    rest = code.co_argcount + code.co_kwonlyargcount
    names = code.co_varnames[: code.co_argcount] + code.co_varnames[rest : rest + bool(code.co_flags & CO_VARARGS)]
    names = (names[2], names[-1]) if variadic else names[2:]  # xp, g, y, i, *operands  or  xp, g, y, a, b, ...
    asks = [_UNSEEN if name == "_" else _SEEN if name.startswith("_") else _KEPT for name in names]
    return asks if variadic else asks + [_UNSEEN] * (operands + 1 - len(asks))


# ---- the graph ----------------------------------------------------------------------------------------------------


class Node:
    """One recorded operation: primitive, parents, and what its rules need. It never refers to the Tensor it produced,
    and a parent never knows its children: there are no cycles, and memory goes when the last user goes."""

    __slots__ = ("__weakref__", "clock", "dtype", "name", "params", "parents", "prim", "rank", "saved", "shape",
                 "trace")
    prim: Primitive
    params: dict[str, Any]
    parents: list[Any]  # Node | Leaf | None, one for each operand
    saved: list[Any] | None  # (y, *operands) as `Primitive.plan` says, or nothing where no rule reads; None: freed
    rank: int  # 1 + the largest rank among the parents: sorting by rank is a topological order
    shape: tuple[int, ...]
    dtype: Dtype
    clock: int  # the time of recording, to compare with the times of in-place changes
    name: str | None  # of the Tensor it produced, where the user gave it one
    trace: tuple[str, dict[int, bytes]]  # under detect_anomaly: source line, checksums of what is saved


_changes = guards.changes
_rank = operator.attrgetter("rank")


def note_change(array: Array) -> None:
    """Tell the graph that `array` was changed in place; whoever changes a Tensor's memory calls this."""
    _changes.note(guards.spans([array]))


def _in_place(symbol: str, method: Function) -> Callable[[Tensor, Any], Tensor]:
    def operator(self: Tensor, other: Any) -> Tensor:
        if not current.get().grad:
            other = other._data if isinstance(other, Tensor) else arrays.operand(other)
            data = lifted(self._data)
            try:
                arrays.check_writable(data)
                with arrays.on_device_of(data):
                    changed = method(data, other)
                    if changed is not data:  # CuPy has no @= of its own
                        data[...] = changed
            except (ValueError, TypeError) as error:
                raise guards.kernel_error(symbol, [self._data, other], error) from error
            note_change(self._data)
            return self
        if type(self._node) is Leaf:
            raise RuntimeError(f"{symbol} on a leaf outside no_grad() would break its graph.\n{guards.IDIOMS}")
        return NotImplemented  # Python then computes self + other and rebinds the name

    return operator


class Tensor:
    """An array that records the operations applied to it, so that `backward` can derive every gradient.

    `Tensor(data, *, requires_grad=False, dtype=None, device=None, name=None)`. Shares memory with an array that it is
    given, as `np.asarray` does. Arrays keep their dtype; Python floats become float32, integers int64. NumPy's
    operators, methods and functions (`np.dot(x, w.T)`, `np.where(...)`) work on it and are recorded where an operand
    requires a gradient.
    """

    __slots__ = ("__weakref__", "_data", "_name", "_node")
    _data: Array
    _node: Node | Leaf | None
    _name: str | None

    def __init__(
        self, data: Any, *, requires_grad: bool = False, dtype: Any = None,
        device: str | None = None, name: str | None = None,
    ) -> None:
        if isinstance(data, Tensor):
            if data._node is not None:
                raise TypeError("Tensor(t) of a tracked Tensor would cut the graph silently; t.detach() cuts it")
            data = data._data
        self._data = arrays.asarray(data, dtype, device)
        self._node = None
        self._name = name
        if requires_grad:
            self.requires_grad = True

    # -- what it is

    @property
    def data(self) -> Array:
        """The array itself. Assigning copies the new values into it: `t.data = values`."""
        return lifted(self._data)

    @data.setter
    def data(self, value: Any) -> None:
        arrays.put(lifted(self._data), ..., value._data if isinstance(value, Tensor) else arrays.operand(value))
        note_change(self._data)

    @property
    def name(self) -> str | None:
        """What to call this Tensor in `show` and in messages; the graph remembers it."""
        return self._name

    @name.setter
    def name(self, value: str | None) -> None:
        self._name = value
        if self._node is not None:
            self._node.name = value

    shape = property(lambda self: self._data.shape, doc="The sizes of the axes.")
    ndim = property(lambda self: self._data.ndim, doc="The number of axes.")
    size = property(lambda self: self._data.size, doc="The number of elements.")
    dtype = property(lambda self: self._data.dtype, doc="The type of the elements.")
    device = property(lambda self: arrays.device_of(self._data), doc='"cpu", "gpu" or "gpu:N".')
    is_leaf = property(lambda self: type(self._node) is not Node, doc="True where no recorded operation produced it.")

    @property
    def requires_grad(self) -> bool:
        """True where a gradient flows through this Tensor: a leaf that asked for it, or a result computed from one."""
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if self._node is not None and type(self._node) is not Leaf:
            raise RuntimeError("requires_grad can be set on leaves only; .detach() cuts a result out of the graph")
        if not value:
            self._node = None
        elif self._data.dtype.kind != "f":
            raise TypeError(
                f"requires_grad needs a float dtype, not {self._data.dtype}: write 0.0 for 0, or use .astype('float32')"
            )
        elif self._node is None:
            self._node = Leaf(self._data, self._name)

    @property
    def grad(self) -> Array | None:
        """The gradient that `backward` added up: an array like `.data`, or None before the first `backward`."""
        if type(self._node) is Leaf:
            return self._node.grad
        if self._node is not None:
            guards.warn_nonleaf_grad(self._node)
        return None

    @grad.setter
    def grad(self, value: Array | None) -> None:
        node = self._node
        if type(node) is Leaf:
            if value is not None:
                value = value._data if isinstance(value, Tensor) else value
                if getattr(value, "shape", None) != node.shape or value.dtype != node.dtype:
                    raise ValueError(f"grad must be like .data, {guards.like(node)}; got {guards.like(value)}")
                if arrays.device_of(value) != self.device:
                    raise ValueError(f"grad must be on {self.device}, as .data is, not on {arrays.device_of(value)}")
            node.grad = value
        elif value is not None:
            raise RuntimeError(".grad can be set on leaves only (Tensors made with requires_grad=True)")

    def zero_grad(self) -> None:
        """Forget the gradient: `.grad` becomes None."""
        self.grad = None

    # -- in and out

    def numpy(self) -> Array:
        """A copy of the values in host memory."""
        return arrays.to_host(lifted(self._data))

    def item(self) -> float | int | bool:
        """The value of a Tensor of one element as a Python number."""
        return lifted(self._data).item()

    def tolist(self) -> Any:
        """The values as nested Python lists."""
        return lifted(self._data).tolist()

    def detach(self) -> Tensor:
        """The same memory as a Tensor outside the graph."""
        return _wrap(self._data, None)

    def to(self, device: str) -> Tensor:
        """This Tensor on another device ("cpu", "gpu" or "gpu:N"), recorded; itself where it is there already."""
        device = arrays.canonical(device)
        return self if device == self.device else F.to(self, device=device, back=self.device)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        guards.check_conversion(self)
        host = self.numpy() if copy or current.get().recorder is not None else self._data
        return host if dtype is None else host.astype(dtype, copy=False)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return F._dispatch_ufunc(ufunc, method, inputs, kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return F._dispatch_function(func, args, kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        if type(self._node) is Node:
            raise TypeError("only leaves can be pickled or deep-copied, not results of the graph: use .detach() first")
        state = getattr(self, "__dict__", None)
        return _rebuild, (type(self), arrays.copy(self._data), self._node is not None, self.name, self.grad), state

    def __repr__(self) -> str:
        notes = [f"dtype={self.dtype}"]
        if type(self._node) is Node:
            notes.append(f"op={self._node.prim.name}")
        elif self._node is not None:
            notes.append("requires_grad=True")
        if self.name:
            notes.append(f"name={self.name!r}")
        body = self.numpy().__repr__().removeprefix("array(").rsplit(")", 1)[0].split(", dtype=")[0]
        return f"Tensor({body}, {', '.join(notes)})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of a 0-d Tensor")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __round__(self, ndigits: int | None = None) -> float | int:
        return round(self.item(), ndigits)

    def __index__(self) -> int:
        return self.numpy().__index__()

    def __bool__(self) -> bool:
        return bool(lifted(self._data))

    __hash__ = object.__hash__  # by identity: == compares elements

    def __setitem__(self, index: Any, value: Any) -> None:
        if current.get().grad:
            raise TypeError(
                "t[index] = value would change values that the graph may need: write where(mask, value, t) or "
                "concatenate([...]) instead; to change a parameter in place, do it under no_grad()"
            )
        value = value._data if isinstance(value, Tensor) else arrays.operand(value)
        arrays.put(lifted(self._data), _index(index, self._data), value)
        note_change(self._data)

    # -- gradients

    def backward(self, gradient: Any = None, *, retain_graph: bool = False) -> None:
        """Add d(self)/d(leaf), times `gradient`, to `.grad` of every leaf that this Tensor was computed from.

        `gradient`: the cotangent, like `.data`; ones for a scalar when left out. The graph is freed on the way unless
        `retain_graph`. Nothing is added to any leaf if the walk raises.
        """
        given = gradient._data if isinstance(gradient, Tensor) else gradient
        guards.check_seed(self, given)
        g = arrays.ones_like(self._data) if given is None else arrays.from_host(given, self._data)
        for leaf, found, owned in walk(self._node, g, retain_graph=retain_graph):  # type: ignore[arg-type]
            if leaf.grad is not None:
                found = arrays.plus(leaf.grad, found)
            elif not owned:
                found = arrays.copy(found)
            leaf.grad = arrays.box(found)

    # -- operators and methods: each is the function of the same name

    def __add__(self, other: Any) -> Tensor:
        return F.add(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return F.add(other, self)

    def __sub__(self, other: Any) -> Tensor:
        return F.subtract(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return F.subtract(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return F.multiply(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return F.multiply(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return F.divide(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return F.divide(other, self)

    def __floordiv__(self, other: Any) -> Tensor:
        return F.floor_divide(self, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return F.floor_divide(other, self)

    def __mod__(self, other: Any) -> Tensor:
        return F.mod(self, other)

    def __rmod__(self, other: Any) -> Tensor:
        return F.mod(other, self)

    def __pow__(self, other: Any) -> Tensor:
        return F.pow(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return F.power(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return F.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return F.matmul(other, self)

    def __neg__(self) -> Tensor:
        return F.negative(self)

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return F.absolute(self)

    def __getitem__(self, index: Any) -> Tensor:
        return F.getitem(self, index=_index(index, self._data))

    def __eq__(self, other: object) -> Any:
        return NotImplemented if other is None else F.equal(self, other)

    def __ne__(self, other: object) -> Any:
        return NotImplemented if other is None else F.not_equal(self, other)

    def __lt__(self, other: Any) -> Array:
        return F.less(self, other)

    def __le__(self, other: Any) -> Array:
        return F.less_equal(self, other)

    def __gt__(self, other: Any) -> Array:
        return F.greater(self, other)

    def __ge__(self, other: Any) -> Array:
        return F.greater_equal(self, other)

    __iadd__ = _in_place("+=", operator.iadd)
    __isub__ = _in_place("-=", operator.isub)
    __imul__ = _in_place("*=", operator.imul)
    __itruediv__ = _in_place("/=", operator.itruediv)
    __ifloordiv__ = _in_place("//=", operator.ifloordiv)
    __imod__ = _in_place("%=", operator.imod)
    __ipow__ = _in_place("**=", operator.ipow)
    __imatmul__ = _in_place("@=", operator.imatmul)

    @property
    def T(self) -> Tensor:
        return F.transpose(self)

    def astype(self, dtype: Any) -> Tensor:
        return F.astype(self, dtype=dtype)

    def sum(self, axis: Any = None, dtype: Any = None, out: None = None, keepdims: bool = False) -> Tensor:
        return F.sum(self, axis, dtype, out, keepdims)

    def mean(self, axis: Any = None, dtype: Any = None, out: None = None, keepdims: bool = False) -> Tensor:
        return F.mean(self, axis, dtype, out, keepdims)

    def prod(self, axis: Any = None, dtype: Any = None, out: None = None, keepdims: bool = False) -> Tensor:
        return F.prod(self, axis, dtype, out, keepdims)

    def max(self, axis: Any = None, out: None = None, keepdims: bool = False) -> Tensor:
        return F.max(self, axis, out, keepdims)

    def min(self, axis: Any = None, out: None = None, keepdims: bool = False) -> Tensor:
        return F.min(self, axis, out, keepdims)

    def var(self, axis: Any = None, dtype: Any = None, out: None = None, ddof: int = 0, keepdims: bool = False) -> Any:
        return F.var(self, axis, dtype, out, ddof, keepdims)

    def std(self, axis: Any = None, dtype: Any = None, out: None = None, ddof: int = 0, keepdims: bool = False) -> Any:
        return F.std(self, axis, dtype, out, ddof, keepdims)

    def cumsum(self, axis: Any = None) -> Tensor:
        return F.cumsum(self, axis)

    def copy(self) -> Tensor:
        return F.copy(self)

    def argmax(self, axis: Any = None) -> Array:
        return F.argmax(self, axis=axis)

    def reshape(self, *shape: Any) -> Tensor:
        return F.reshape(self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes: Any) -> Tensor:
        return F.transpose(self, (axes[0] if len(axes) == 1 else axes) if axes else None)

    def swapaxes(self, axis1: int, axis2: int) -> Tensor:
        return F.swapaxes(self, axis1, axis2)

    def squeeze(self, axis: Any = None) -> Tensor:
        return F.squeeze(self, axis)

    def ravel(self) -> Tensor:
        return F.ravel(self)

    def clip(self, min: Any = None, max: Any = None) -> Tensor:
        return F.clip(self, min, max)

    def dot(self, other: Any) -> Tensor:
        return F.dot(self, other)

    def exp(self) -> Tensor:
        return F.exp(self)

    def log(self) -> Tensor:
        return F.log(self)

    def sqrt(self) -> Tensor:
        return F.sqrt(self)

    def relu(self) -> Tensor:
        return F.relu(self)

    def sigmoid(self) -> Tensor:
        return F.sigmoid(self)

    def tanh(self) -> Tensor:
        return F.tanh(self)

    def softmax(self, axis: int = -1) -> Tensor:
        return F.softmax(self, axis=axis)

    def log_softmax(self, axis: int = -1) -> Tensor:
        return F.log_softmax(self, axis=axis)

    def logsumexp(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        return F.logsumexp(self, axis=axis, keepdims=keepdims)


class Functions:
    """The namespace of functions on Tensors: `xp` of a rule that runs on Tensors. Filled by `ops` and `numpy_api`."""

    several = False  # a Tensor's operators see to its device

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no function {name!r} on Tensors: register it with @primitive or @function")


F = Functions()


def _wrap(data: Array, node: Node | Leaf | None) -> Tensor:
    t = _new(Tensor)
    t._data, t._node, t._name = data, node, None
    return t


def _rebuild(cls: type[Tensor], data: Array, requires_grad: bool, name: str | None, grad: Array | None) -> Tensor:
    t = _new(cls)
    t._data, t._name, t._node = data, name, Leaf(data, name) if requires_grad else None
    if grad is not None:
        t.grad = arrays.copy(grad)  # copy.copy hands over the array itself
    return t


def _index(index: Any, a: Array) -> tuple[Any, ...]:
    parts = index if isinstance(index, tuple) else (index,)
    return arrays.index(tuple(part._data if isinstance(part, Tensor) else part for part in parts), lifted(a))


def is_tracked(value: Any) -> bool:
    """True for a Tensor through which a gradient flows."""
    return isinstance(value, Tensor) and value._node is not None


# ---- recording ----------------------------------------------------------------------------------------------------


def apply(prim: Primitive, operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """Compute a primitive, and record it where an operand is tracked. The one place where the graph grows."""
    datas: list[Any] = []
    parents: list[Any] = []
    cls: type | None = None
    rank = 0  # of the new node; stays 0 where no operand is tracked
    tracked = 0  # bit i: operand i is tracked
    bit = 1
    for a in operands:
        node = None
        if isinstance(a, Tensor):
            node = a._node
            a = a._data
            if cls is None:
                cls = type(a)
            if node is not None:
                tracked |= bit
                if node.rank >= rank:
                    rank = node.rank + 1
        elif type(a) not in _PLAIN:
            a = arrays.operand(a)
        bit += bit
        datas.append(a)
        parents.append(node)
    if cls is None:  # no Tensor among them; numbers alone are what they would be as Tensors
        datas = datas if any(map(arrays.is_array, datas)) else [arrays.asarray(a) for a in datas]
        cls = arrays.class_of(datas)
    mode = current.get()
    recorder = mode.recorder
    if recorder is not None:
        datas, cls = recorder.enter(prim, operands, datas)
    try:
        kernel = prim.kernels.get(cls) or prim.kernel(cls)
        y = kernel(*datas, **params) if params else kernel(*datas)
    except (ValueError, IndexError, TypeError) as error:
        raise guards.kernel_error(prim.name, datas, error) from error
    except MemoryError as error:
        raise arrays.out_of_memory(f"{prim.name} on {guards.operands(datas)}", error, cls) from None
    if type(y) is not cls:
        y = arrays.box(y)
    if mode is not NORMAL:
        if mode.anomaly:
            guards.check_forward(prim, datas, y)
        if not mode.grad:
            rank = 0
    if not prim.differentiable:
        return y
    dtype = y.dtype
    if dtype.kind != "f":
        if dtype.kind not in "iub":
            raise guards.not_real(prim, y)
        rank = 0  # a conversion to integers
    t = _new(Tensor)
    t._data, t._name = y, None
    if not rank:
        t._node = None
        return t
    n = t._node = _new(Node)
    n.prim, n.params, n.parents = prim, params, parents
    n.rank, n.shape, n.dtype = rank, y.shape, dtype
    n.clock, n.name = _changes.now, None
    plan = prim.plans[tracked] if tracked in prim.plans else prim.plan(tracked, len(datas))
    if plan is None:
        n.saved = []
    else:
        saved = n.saved = [y, *datas]
        for j, ask in plan:
            if not j or not ask:
                saved[j] = None
            elif parents[j - 1] is not None:
                saved[j] = parents[j - 1]
            elif type(saved[j]) not in _WEAK:
                saved[j] = Aval(saved[j])
    if mode is not NORMAL:
        guards.recorded(n, y, mode)
    return t


def through(prim: Primitive, value: Tensor) -> tuple[Tensor, Node]:
    """`value` behind a node of its own, which a walk can name as its target even where `value` is used elsewhere
    too."""
    n = _new(Node)
    n.prim, n.params, n.parents, n.saved = prim, {}, [value._node], []
    n.rank = 1 + (value._node.rank if value._node is not None else 0)
    n.shape, n.dtype, n.clock, n.name = value.shape, value.dtype, _changes.now, value._name
    return _wrap(value._data, n), n


# ---- the walk -----------------------------------------------------------------------------------------------------


def walk(
    root: Node | Leaf, g: Any, *, targets: Collection[Any] | None = None, create_graph: bool = False,
    retain_graph: bool = False,
) -> list[tuple[Any, Any, bool]]:
    """Carry the cotangent `g` of `root` back through the graph: [(leaf or target, gradient, is its memory ours?)].

    With `targets`, only paths that lead to those nodes are walked, and the walk stops there; without, it collects at
    the leaves. With `create_graph`, `g` is a Tensor and the rules run on Tensors: the results can be differentiated
    again.
    """
    order, useful = _topological(root, targets)
    _, anomaly, recorder = current.get()
    xp: Any
    grads: dict[Any, Any] = {root: g}
    ours: set[Any] = set()  # nodes whose gradient was allocated here and is seen by nobody else: may be added into
    found = []
    for node in order:
        g = grads.pop(node, None)
        if g is None:
            continue  # no gradient flows this way
        if type(node) is Leaf or (targets is not None and node in targets):
            found.append((node, g, node in ours))
            continue
        prim, saved = node.prim, node.saved
        if saved is None:
            raise RuntimeError(
                f"{prim.name}: the graph was freed by an earlier backward(): call that one with retain_graph=True, "
                "or run the forward pass again if it stopped with an error"
            )
        if node.clock != _changes.now:
            _changes.check(node)
        if anomaly:
            guards.check_saved(node)
        if recorder is not None:
            recorder.at(node, g)
        if create_graph:
            xp, saved = F, _as_tensors(node, saved)
        else:
            xp = arrays.namespace(type(g))
        rules = prim.rules
        i = -1
        for parent in node.parents:
            i += 1
            if parent is None or rules[i] is None or (useful is not None and parent not in useful):
                continue
            try:
                rule = arrays.beside(g, rules[i]) if xp.several else rules[i]
                gi = rule(xp, g, *saved, **node.params)
            except Exception as error:
                error.add_note(f"in the rule of {prim.name} for operand {i}, {guards.recorded_at(node)}")
                raise
            if create_graph and arrays.is_array(gi):
                gi = _wrap(gi, None)  # a constant, such as the zeros of `sign`
            try:
                if gi.shape != parent.shape:
                    gi = sum_to(xp, gi, parent.shape)
                if gi.dtype is not parent.dtype:
                    gi = _cast(xp, gi, node, parent, i)
            except (AttributeError, ValueError) as error:
                raise guards.rule_error(node, parent, i, gi, error) from None
            if anomaly:
                guards.check_backward(node, i, gi._data if create_graph else gi)
            old = grads.get(parent)
            if old is None:
                grads[parent] = gi
                ends = type(parent) is Leaf if targets is None else parent in targets
                if ends and gi is not g and not create_graph and _is_fresh(gi, node, saved):
                    ours.add(parent)
            else:
                grads[parent] = arrays.plus(old, gi, in_place=parent in ours)
                if not create_graph:
                    ours.add(parent)
        if not (retain_graph or create_graph):
            node.saved = None
    if recorder is not None:
        recorder.at(None)
    return found


def _topological(root: Any, targets: Collection[Any] | None) -> tuple[list[Any], set[Any] | None]:
    """The nodes below `root`, each before its parents; with targets, only those on a way to one, and that set."""
    order = [root]
    seen = {root}
    for node in order:  # grows on the way: no recursion, so no depth is too deep
        if targets is not None and node in targets:
            continue
        for parent in node.parents:
            if parent is not None and parent not in seen:
                seen.add(parent)
                order.append(parent)
    order.sort(key=_rank, reverse=True)
    if targets is None:
        return order, None
    useful = set(targets)
    for node in reversed(order):
        if not useful.isdisjoint(node.parents):
            useful.add(node)
    return [node for node in order if node in useful], useful


def _is_fresh(gi: Array, node: Node, saved: list[Any]) -> bool:
    for a in (*saved, *node.params.values()):
        if a is gi:
            return False
    return arrays.owns_memory(gi)


def _as_tensors(node: Node, saved: list[Any]) -> list[Any]:
    """What was saved, as Tensors tied to the graph again, for rules that run on Tensors."""
    ties = [node, *node.parents]
    return [_wrap(a, ties[j]) if arrays.is_array(a) else a for j, a in enumerate(saved)]


def sum_to(xp: Any, g: Any, shape: tuple[int, ...]) -> Any:
    """Undo broadcasting: the sum of `g` over the axes along which `shape` was stretched. Nothing else does it."""
    lead = len(g.shape) - len(shape)
    axes = tuple(range(lead))
    if g.shape[lead:] != shape:
        if lead < 0 or any(n not in (1, m) for n, m in zip(shape, g.shape[lead:], strict=True)):
            raise ValueError("does not broadcast back")
        axes += tuple(axis for axis, n in enumerate(shape, lead) if n != g.shape[axis])
    if g.size != math.prod(shape):
        g = xp.sum(g, axis=axes)
    return g if g.shape == shape else xp.reshape(g, shape)


def _cast(xp: Any, gi: Any, node: Node, parent: Any, i: int) -> Any:
    if gi.dtype == parent.dtype:
        return gi
    if node.dtype == parent.dtype:
        raise AssertionError(
            f"{node.prim.name}: the rule for operand {i} returned {gi.dtype}, not {parent.dtype} as operand and "
            "result; use Python numbers as constants in rules, not NumPy scalars or arrays"
        )
    return xp.astype(gi, dtype=parent.dtype)
