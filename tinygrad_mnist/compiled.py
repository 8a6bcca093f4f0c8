"""compile: a function of Tensors becomes a program at its first calls, and runs as one from then on."""

from __future__ import annotations

import functools
import threading
import types
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import arrays, core, guards, native
from .arrays import Array
from .capture import Captured, OnHost, data_of, parameter_names, record
from .core import Node, Tensor
from .functional import tree_leaves, tree_map
from .leaf import Pending
from .modes import current
from .program import Program, Replay, Value, eliminate

LIMIT = 16
"""So many programs of one function; after that, calls that would need another one run as they are."""


class _Variant:
    """What `Compiled` knows of calls of one kind: the last capture, and how to run it once a second one has agreed."""

    def __init__(self, captured: Captured) -> None:
        values = captured.program.values()
        self.captured = captured
        self.grad_inputs = [v.place for v in values if v.kind == "grad"]
        writes = dict.fromkeys(v for i in captured.program.instructions for v in i.writes if v.root.kind == "memory")
        self.spans = guards.spans([(v if v.kind == "memory" else v.root).array for v in writes])
        self.replay: Replay | None = None
        self.loop: native.Loop | None = None  # native code for many steps, and for one call
        self.call: native.Loop | None = None

    @functools.cached_property
    def problem(self) -> str | None:
        """Why there is no native loop for the program, or None."""
        return native.unsupported(self.captured.program)

    def bind(self, plan: bool) -> Replay:
        return self.replay or Replay(self.captured.program, self.captured.library, plan=plan)

    def run(self, inputs: Sequence[Array], reuse: bool) -> Any:
        """Replay the call, with all its effects."""
        replay = self.replay
        assert replay is not None
        try:
            outputs = replay(*inputs, *(leaf.grad for leaf in self.grad_inputs))
        finally:
            guards.changes.note(self.spans)
        return self._done(outputs, replay.grads, reuse)

    def prepare(self, parts: Sequence[Array], *, loop: bool) -> str | None:
        """Compile the native code for many steps, or for one call; why it cannot run with these arguments, or None."""
        found = self.loop if loop else self.call
        if found is None:
            try:
                found = native.Loop(self.captured.program, grads=not loop)
            except native.Unsupported as reason:
                self.problem = str(reason)
                return self.problem
            if loop:
                self.loop = found
            else:
                self.call = found
        return found.hindrance(parts)

    def run_native(self, inputs: Sequence[Array], reuse: bool) -> Any:
        """The same as `run` by the native code."""
        assert self.call is not None
        outputs, grads = self.call(inputs)
        guards.changes.note(self.spans)
        return self._done(outputs, grads, reuse)

    def scan_native(self, parts: Sequence[Array], order: Array) -> Any:
        """Many steps by the native code."""
        assert self.loop is not None
        outputs = self.loop.scan(parts, order)
        guards.changes.note(self.spans)
        for leaf in self.captured.leaves():
            leaf.set_quietly(None)
        return self.captured.result(outputs)

    def _done(self, outputs: Sequence[Array], grads: Sequence[Array], reuse: bool) -> Any:
        captured = self.captured
        for (leaf, _), gradient in zip(captured.program.grads, grads, strict=False):
            leaf.set_quietly(Pending(gradient))
        for leaf in captured.cleared:
            leaf.set_quietly(None)
        return captured.result(outputs if reuse else [arrays.replica(a) for a in outputs])


class Compiled:
    """A function that `compile` made: called, it runs the program that it captured of `f`."""

    def __init__(self, f: Callable[..., Any], backend: str, plan: bool, reuse_outputs: bool) -> None:
        if backend not in ("auto", "numpy", "numba"):
            raise ValueError(f"compile: backend must be 'auto', 'numpy' or 'numba', not {backend!r}")
        functools.update_wrapper(self, f, updated=())
        self.f = f
        self.plan, self.reuse_outputs = plan, reuse_outputs
        self._asked = backend
        self._variants: dict[Any, list[_Variant]] = {}
        self._last: _Variant | None = None
        self._reasons: list[str] = []
        self._lock = threading.RLock()
        self._ran = "", "there was no call yet"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    # -- what can be asked of it

    @property
    def backend(self) -> str:
        """What ran the last call: "numpy", "cupy", "numba", or "eager" while it was captured."""
        return self._ran[0]

    @property
    def reason(self) -> str:
        """Why that was chosen, in words."""
        return self._ran[1]

    @property
    def program(self) -> Program:
        """The program of the last call: its instructions, with shapes, bytes and FLOPs; `str` makes a table of it."""
        return self._used().captured.program

    def source(self) -> str:
        """The text that the last call ran: NumPy (or CuPy) alone."""
        variant = self._used()
        return variant.bind(self.plan).text

    def _used(self) -> _Variant:
        if self._last is None:
            raise RuntimeError("there is no program before the first call")
        return self._last

    # -- calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mode = current.get()
        parts = tree_leaves([list(args), kwargs])
        inside = any(isinstance(a, Tensor) and type(a._node) is Node for a in parts)
        if mode.recorder is not None or mode.anomaly or inside:
            return self.f(*args, **kwargs)  # in another capture, or in a derivative: part of that
        with self._lock:
            inputs = [data_of(a) for a in parts if _is_input(a)]
            batch = max((a.shape[0] for a in inputs if a.ndim > 1), default=1)
            large = batch >= native.ROWS and self._loops(inputs)
            variant = (self._learned(args, kwargs) if large else None) or self._ready(args, kwargs)
            if isinstance(variant, _Result):
                return variant.value
            self._choose(variant, inputs, batch, loop=False)
            if self.backend == "numba":
                return variant.run_native(inputs, self.reuse_outputs)
            return variant.run(inputs, self.reuse_outputs)

    def scan(self, arrays_: Sequence[Any], order: Any) -> Any:
        """Many steps in one call: `f(*[a[rows] for a in arrays_])` for each row of `order`, one after the other.

        `arrays_`: arrays with the same number n of rows. `order`: integers (steps, batch) from 0 to n - 1, such as
        `rng.permutation(n)[: steps * batch].reshape(steps, batch)`. Returns what `f` returns, with each array of it
        stacked over the steps. Parameters, optimizers, schedules and generators go on as in a loop of calls; only
        `.grad` is None afterwards: a native loop does not keep gradients.

        IndexError for rows that are not there, ValueError for arrays of different length.
        """
        arrays_, order = tuple(arrays_), _checked_order(arrays_, order)
        parts = [data_of(a) for a in arrays_]

        there = arrays.place(order, parts[0])  # at once: on a GPU, each copy would hold up its step

        def rows(k: int) -> list[Any]:
            at = there[k]
            return [core._wrap(a._data[at], None) if isinstance(a, Tensor) else a[at] for a in arrays_]

        with self._lock, arrays.on_device_of(parts[0]):
            loops = self._loops(parts)
            variant = self._learned(rows(0), {}) if loops else None
            if variant is not None:
                self._choose(variant, parts, order.shape[1], loop=True)
                if self.backend == "numba":
                    found = variant.scan_native(parts, order)
                    return tree_map(lambda r: _stacked([r] * len(order)) if type(r) is float else r, found)
            ran = self._ran
            results = [self(*rows(k)) for k in range(len(order))]
            if loops:
                self._ran = ran  # not why a single call runs as it does, but why there was no loop
            for leaf in () if self._last is None else self._last.captured.leaves():
                leaf.set_quietly(None)
            return tree_map(lambda *steps: _stacked(steps), *results)

    def _loops(self, parts: Sequence[Array]) -> bool:
        """Whether native loops come into question for these arrays."""
        return self._asked != "numpy" and native.missing() is None and all(isinstance(a, np.ndarray) for a in parts)

    def _choose(self, variant: _Variant, parts: Sequence[Array], batch: int, *, loop: bool) -> None:
        """Choose what runs a call, or the steps of a loop, and say why."""
        library = variant.captured.library.__name__.partition(".")[0]
        problem = native.missing() if library == "numpy" else f"the arrays are {library}'s"
        if self._asked == "numpy" or library != "numpy":
            self._ran = library, "asked for" if self._asked == "numpy" else problem or ""
            return
        wanted = self._asked == "numba" or loop or batch >= native.ROWS
        problem = problem or variant.problem or (variant.prepare(parts, loop=loop) if wanted else None)
        if problem is not None:
            if self._asked == "numba":
                native.warn_once(problem)
            self._ran = "numpy", problem
        elif self._asked == "numba":
            self._ran = "numba", "asked for"
        elif loop:
            self._ran = "numba", f"batch {batch}: a native loop over the steps"
        elif batch >= native.ROWS:
            self._ran = "numba", f"batch {batch}: blocks of rows that stay in the cache"
        else:
            self._ran = "numpy", f"batch {batch} in a single call: the BLAS does most of it"

    def _learned(self, args: Sequence[Any], kwargs: dict[str, Any]) -> _Variant | None:
        """The variant that holds for a call that may run natively: what it takes to find it is undone, and holds no
        large results. None where none can: what is called on the host could not be undone."""
        try:
            while not isinstance(variant := self._ready(args, kwargs, keep=False), _Variant):
                if len(self._reasons) >= LIMIT:
                    return None
            return variant
        except OnHost as reason:
            self._ran = "numpy", str(reason)
            return None

    def _ready(self, args: Sequence[Any], kwargs: dict[str, Any], *, keep: bool = True) -> _Variant | _Result:
        """The variant that holds for this call; the result of the call where it is not known well enough, and the
        function was run instead: by the first two calls of a kind, which must agree, or past the limit."""
        key = _key(args, kwargs)
        variants = self._variants.get(key, [])
        stale = None
        variant = None
        for known in variants:
            stale = known.captured.stale()
            if stale is None:
                variant = known
                break
        if variant is not None and variant.replay is not None:
            self._last = variant
            return variant
        if len(self._reasons) >= LIMIT:
            self._ran = "eager", "captured too often"
            return _Result(self.f(*args, **kwargs) if keep else None)
        self._ran = "eager", "captured in this call"
        seen = [] if variant is None else _digests(variant.captured.program)
        captured, result = record(self.f, args, kwargs, keep=keep, calls=keep)
        captured = captured._replace(program=eliminate(captured.program))
        if variant is None:
            if self._variants.keys() - {key} or variants:
                self._note(stale or self._news(key))
            variants = [v for v in variants if not v.captured.moved()]
            self._variants[key] = [*variants, _Variant(captured)]
            self._last = self._variants[key][-1]
            return _Result(result)
        why = _changed_by_itself(seen) or difference(variant.captured, captured)
        self._last = new = _Variant(captured)
        variants[variants.index(variant)] = new
        if why is not None:
            self._note(f"{why} is new at every call")
            return _Result(result)
        new.replay = new.bind(self.plan)
        return _Result(result) if keep else new

    # -- kinds of calls

    def _note(self, reason: str) -> None:
        self._reasons.append(reason)
        if len(self._reasons) == LIMIT:
            reasons = "".join(f"\n  {text} ({n} times)" for text, n in Counter(self._reasons).most_common(8))
            warnings.warn(
                f"compile: {self.program.name} was captured {LIMIT} times more than once, and runs uncompiled where it "
                f"would be again, because of:{reasons}",
                stacklevel=5,
            )

    def _news(self, key: Any) -> str:
        """What in the arguments of a call is new, beside the nearest call that is known."""
        known = [k for k in self._variants if k is not key and len(k) == len(key)]
        if not known:
            return "another number of arguments"
        nearest = max(known[:-1] or known, key=lambda k: sum(a == b for a, b in zip(k, key, strict=True)))
        names = parameter_names(self.f, len(key) - 1)
        news = [
            f"argument {name or i}: {_shown(new)}, before {_shown(old)}"
            for i, (name, old, new) in enumerate(zip(names, nearest[1:], key[1:], strict=True))
            if old != new
        ]
        return "; ".join(news) or "no_grad() or not"


class _Same(NamedTuple):
    """In the key of a call: an argument that counts as the same only where it is the same object."""

    kind: str
    thing: Any

    def __hash__(self) -> int:
        return id(self.thing)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.thing is self.thing


def _key(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What calls must have in common to run one program."""
    return current.get().grad, *map(_kind, args), *((k, _kind(a)) for k, a in kwargs.items())


def _kind(a: Any) -> Any:
    if isinstance(a, Tensor):
        return _Same("parameter", a) if a._node is not None else ("Tensor", *_layout(a._data))
    if arrays.is_array(a):
        return "array", *_layout(a)
    if isinstance(a, (list, tuple)):
        return type(a).__name__, *map(_kind, a)
    if isinstance(a, dict):
        return "dict", *((k, _kind(v)) for k, v in a.items())
    if isinstance(a, (int, float, slice, np.generic)):
        return type(a).__name__, repr(a)  # 0.0 and -0.0 are two, NaN is one
    try:
        hash(a)
    except TypeError:
        return _Same(type(a).__name__, a)
    return type(a).__name__, a


def _digests(program: Program) -> list[tuple[Value, bytes]]:
    """Of the memory that a program reads and does not write, what it holds now."""
    written = program.written()
    reads = (v for v in program.values() if v.kind == "memory" and v.root not in written)
    return [(v, arrays.checksum(v.array)) for v in reads]


def _changed_by_itself(before: list[tuple[Value, bytes]]) -> str | None:
    """What the function has changed unseen, by a function of NumPy on an array that is no Tensor."""
    changed = (v for v, digest in before if arrays.checksum(v.array) != digest)
    return next((f"what {v.name or 'an array'} of shape {v.shape} holds" for v in changed), None)


def difference(old: Captured, new: Captured) -> str | None:
    """What two captures of one call do differently, or None: a value that was baked in shows here."""
    pairs: dict[Value, Value] = {}
    written = old.program.written()

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, tuple) and isinstance(b, tuple):
            return len(a) == len(b) and all(map(equal, a, b))
        if not (isinstance(a, Value) and isinstance(b, Value)):
            return type(a) is type(b) and (a is b or repr(a) == repr(b))
        if a not in pairs:
            pairs[a] = b
            if a.kind != b.kind or (a.shape, a.dtype, a.strides) != (b.shape, b.dtype, b.strides):
                return False
            if a.array is not None and a.kind != "result" and a.array is not b.array:
                return _same_memory(a, b) or (a.root not in written and _equal_by_chance(a, b))
            return a.place is b.place or a.place == b.place
        return pairs[a] is b

    for i, j in zip(old.program.instructions, new.program.instructions, strict=False):
        alike = i.op == j.op and equal((i.args, i.outs, i.writes), (j.args, j.outs, j.writes))
        if not alike or not _same_params(i.params, j.params):
            return f"{j.op} at {j.site.line}"
    if len(old.program.instructions) != len(new.program.instructions):
        return "the number of operations"
    if not equal(tuple(old.program.outputs), tuple(new.program.outputs)) or not _same_result(old.shape, new.shape):
        return "the result"
    leaves = [[leaf for leaf, _ in c.program.grads] for c in (old, new)]
    gradients = [tuple(v for _, v in c.program.grads) for c in (old, new)]
    if leaves[0] != leaves[1] or old.cleared != new.cleared or not equal(*gradients):
        return "which parameters have a gradient"
    return None


def _same_memory(a: Value, b: Value) -> bool:
    return arrays.owner(a.array) is arrays.owner(b.array) and arrays.extent(a.array) == arrays.extent(b.array)


def _equal_by_chance(a: Value, b: Value) -> bool:
    """True for the same values in memory that is new: an array that the function writes out, as `np.array([1, 2])`. Two
    parts of one array are two, whatever they hold."""
    apart = arrays.owner(a.array) is not arrays.owner(b.array)
    return apart and arrays.to_host(a.array).tobytes() == arrays.to_host(b.array).tobytes()


def _same_params(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Functions are made anew by each run."""
    names = a.keys() - {"call", "due"}
    return a.keys() == b.keys() and all(a[k] is b[k] or repr(a[k]) == repr(b[k]) for k in names)


def _same_result(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same_result, a, b))
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(_same_result(a[k], b[k]) for k in a)
    return a is b or (type(a) is type(b) and repr(a) == repr(b))


class _Result(NamedTuple):
    value: Any


def _checked_order(arrays_: Sequence[Any], order: Any) -> Array:
    if not arrays_ or any(len(a) != len(arrays_[0]) for a in arrays_):
        raise ValueError(f"scan: arrays of one length are needed, not {[len(a) for a in arrays_]}")
    order = np.asarray(order)
    if order.ndim != 2 or order.dtype.kind not in "iu" or not order.size:
        raise ValueError(f"scan: order must be integers (steps, batch), at least one; got {order.dtype} {order.shape}")
    low, high = order.min(), order.max()
    if low < 0 or high >= len(arrays_[0]):
        raise IndexError(f"scan: order names row {low if low < 0 else high} of arrays with {len(arrays_[0])} rows")
    return order


def _stacked(steps: Sequence[Any]) -> Any:
    first = steps[0]
    if type(first) is float:
        return np.array(steps)
    if isinstance(first, Tensor):
        return core._wrap(_stacked([t._data for t in steps]), None)
    return arrays.namespace(type(first)).stack(steps) if arrays.is_array(first) else first


def _is_input(a: Any) -> bool:
    return a._node is None if isinstance(a, Tensor) else arrays.is_array(a)


def _layout(a: Array) -> tuple[Any, ...]:
    return a.dtype.str, a.shape, a.strides, arrays.device_of(a)


def _shown(kind: Any) -> str:
    if kind[0] in ("array", "Tensor"):
        return f"{np.dtype(kind[1])} {kind[2]}"
    return f"another {kind.kind}" if isinstance(kind, _Same) else f"{' '.join(map(str, kind[1:])):.60}"


def compile(
    f: Callable[..., Any], *, backend: str = "auto", plan: bool = True, reuse_outputs: bool = False
) -> Compiled:
    """`f`, captured as a program by its first two calls and replayed by the others.

    `f` is a function of Tensors, arrays and whatever else: a loss, a gradient, a whole training step with its
    optimizer. A replay calls the array library alone, into memory that was allocated once; on NumPy its results are
    those of `f`, bit for bit. New shapes, dtypes, Python arguments or a switch between `train()` and `eval()` make it
    capture again. Results are untracked: call `backward()` inside `f`.

    `backend`: "numpy" (CuPy, where the arrays lie there), "numba" (native loops, which round otherwise than NumPy), or
    "auto", which chooses by the batch. `plan=False`: no memory is used twice in a replay. `reuse_outputs=True`: the
    results are the program's own memory, which the next call overwrites; else they are the caller's.

    CaptureError if `f` reads a value (`float(loss)`, `if loss < x`), or keeps a Tensor that it made.
    """
    return Compiled(f, backend, plan, reuse_outputs)
