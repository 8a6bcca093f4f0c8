"""CuPy's ufuncs: its loops, keywords and casting rules. NumPy computes each loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .array import (
    API,
    NUMBERS,
    Dtype,
    Scalar,
    broadcast,
    convert,
    library,
    ndarray,
    np,
    operand,
    owner,
)
from .device import Host, Unmodelled

_RANKS: dict[Any, int] = {int: 1, float: 2, complex: 2, "b": 0, "i": 1, "u": 1, "f": 2, "c": 2}


class ufunc:
    """A function on each element. `loops`, such as "bb->b ff->f", in CuPy's order of trial; `compute` is given arrays
    of a loop's input dtypes; `scatter`: whether it has `at`."""

    def __init__(self, name: str, loops: str, compute: Callable[..., Any], scatter: bool = False) -> None:
        self.name = self.__name__ = f"cupy_{name}"
        self.types = loops.split()
        self.nin, self.nout = map(len, self.types[0].split("->"))
        self.nargs = self.nin + self.nout
        self._loops = [tuple([np.dtype(c) for c in side] for side in loop.split("->")) for loop in self.types]
        self._found: dict[Any, Any] = {}
        self._compute = compute
        self._scatter = scatter

    def __repr__(self) -> str:
        return f"<ufunc {self.name!r}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for arg in args:
            if hasattr(arg, "__cupy_override_elementwise_kernel__"):
                return arg.__cupy_override_elementwise_kernel__(self, *args, **kwargs)
        out, dtype = kwargs.pop("out", None), kwargs.pop("dtype", None)
        casting = kwargs.pop("casting", "same_kind")
        if kwargs:
            raise TypeError(f"Wrong arguments {kwargs}")
        if not self.nin <= len(args) <= self.nargs:
            raise TypeError(
                f"Wrong number of arguments for {self.name!r}. It must be either {self.nin} or {self.nargs} "
                f"(with outputs), but given {len(args)}."
            )
        inputs = [operand(arg) for arg in args[: self.nin]]
        given = [None if arg is None else operand(arg) for arg in self._given(args[self.nin :], out)]
        shape = broadcast([*inputs, *(a for a in given if a is not None)])
        ins, results = self._loop(inputs, None if dtype is None else np.dtype(dtype))
        cls = next((type(a) for a in inputs if isinstance(a, ndarray) and type(a) is not ndarray), ndarray)
        given += [None] * (self.nout - len(given))
        outs = [output(a, shape, t, casting, cls) for a, t in zip(given, results, strict=True)]
        if 0 not in shape:
            self._run(inputs, ins, outs)
        return outs[0] if self.nout == 1 else tuple(outs)

    def _given(self, positional: tuple[Any, ...], out: Any) -> tuple[Any, ...]:
        if out is None:
            return positional
        if positional:
            raise ValueError("Cannot specify 'out' as both a positional and keyword argument")
        outs: tuple[Any, ...] = out if isinstance(out, tuple) else (out,)
        if len(outs) != self.nout:
            raise ValueError(f"'out' must be a tuple of {self.nout} arrays")
        return outs

    def _loop(self, inputs: Sequence[Any], dtype: Dtype | None) -> Any:
        """The dtypes of inputs and outputs: of the first loop to which the inputs can be cast safely, or whose results
        are of the dtype that is asked for."""
        weak = tuple(a.weak if isinstance(a, Scalar) else None for a in inputs)
        dtypes = tuple(a.dtype for a in inputs)
        key = dtype or (dtypes, weak)
        if key not in self._found:
            self._found[key] = self._search(dtypes, weak) if dtype is None else self._giving(dtype)
        if self._found[key] is None:
            raise TypeError(f"Wrong type ({dtype or dtypes}) of arguments for {self.name}")
        return self._found[key]

    def _search(self, dtypes: Sequence[Dtype], weak: Sequence[Any]) -> Any:
        ranks = [_RANKS.get(w or t.kind, 3) for t, w in zip(dtypes, weak, strict=True)]
        scalars = [rank for rank, w in zip(ranks, weak, strict=True) if w]
        arrays = [rank for rank, w in zip(ranks, weak, strict=True) if not w]
        gives_way = bool(scalars and arrays) and max(arrays) >= max(scalars)

        def fits(dtype: Dtype, w: Any, to: Dtype) -> bool:
            return np.can_cast(dtype, to) or bool(gives_way and w and np.result_type(w(0), to) == to)

        return next((loop for loop in self._loops if all(map(fits, dtypes, weak, loop[0]))), None)

    def _giving(self, dtype: Dtype) -> Any:
        # division has loops of integers with a float result, which do not count here
        loops = [loop for loop in self._loops if "divide" not in self.name or loop[0][0] == loop[1][0]]
        return next((loop for loop in loops if all(t == dtype for t in loop[1])), None)

    def _run(self, inputs: Sequence[Any], ins: Sequence[Dtype], outs: Sequence[ndarray]) -> None:
        hosts = [
            a._host.astype(t, copy=False) if isinstance(a, ndarray) else np.array(a.value, t)
            for a, t in zip(inputs, ins, strict=True)
        ]
        with np.errstate(all="ignore"):
            try:
                values = self._compute(*hosts)
            except TypeError as error:  # of a class of NumPy's own: booleans have no `-`
                raise TypeError(str(error)) from None
            for out, value in zip(outs, values if self.nout > 1 else (values,), strict=True):
                out._host[...] = value

    def at(self, a: Any, indices: Any, b: Any = None) -> None:
        """`a[indices] op= b`, where an element that is named twice gets both."""
        if not self._scatter:
            raise NotImplementedError(f"`{self.name}.at` is not supported yet")
        a._scatter_op(indices, b, self)

    def outer(self, a: Any, b: Any, **kwargs: Any) -> Any:
        a, b = convert(a), convert(b)
        return self(a.reshape(a.shape + (1,) * b.ndim), b, **kwargs)

    def reduce(self, array: Any, axis: Any = 0, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return getattr(array, self._method("reduce", "sum", "prod"))(axis, dtype, out, keepdims)

    def accumulate(self, array: Any, axis: Any = 0, dtype: Any = None, out: Any = None) -> Any:
        return getattr(array, self._method("accumulate", "cumsum", "cumprod"))(axis, dtype, out)

    def reduceat(self, array: Any, indices: Any, axis: Any = 0, dtype: Any = None, out: Any = None) -> Any:
        self._method("reduceat", "_")
        raise Unmodelled("cupy.add.reduceat")

    def _method(self, what: str, *methods: str) -> str:
        """The method of arrays that does the same: CuPy has it for sums and products only."""
        method = dict(zip(("cupy_add", "cupy_multiply"), methods, strict=False)).get(self.name)
        if method is None:
            raise NotImplementedError(f"`{self.name}.{what}` is not supported yet")
        return method


def output(out: Any, shape: tuple[int, ...], dtype: Dtype, casting: str, cls: type[ndarray] = ndarray) -> ndarray:
    """An array for a result: a new one, or the given one if it fits."""
    if out is None:
        return owner(np.empty(shape, dtype), cls)
    if not isinstance(out, ndarray):
        raise TypeError("Output arguments type must be cupy.ndarray")
    if out.shape != shape:
        raise ValueError("Out shape is mismatched")
    if not np.can_cast(dtype, out.dtype, casting):
        raise TypeError(
            f"Cannot cast output operand from {dtype!r} to {out.dtype!r} according to the rule {casting!r}"
        )
    return out


def _power(a: Host, b: Host) -> Host:
    if a.dtype.kind not in "iu" or b.dtype.kind != "i":
        return np.power(a, b)
    inverse = np.where(a == -1, np.where(b % 2, -1, 1), a == 1)  # NumPy raises for an integer to a power below 0
    return np.where(b < 0, inverse, np.power(a, np.maximum(b, 0))).astype(a.dtype)


def _reciprocal(a: Host) -> Host:
    if a.dtype.kind in "fc":
        return np.reciprocal(a)
    return np.where(a == 0, 0, np.reciprocal(a + (a == 0))).astype(a.dtype)


def _clip(a: Host, low: Host, high: Host) -> Host:
    return np.where(low > high, high, np.where(a < low, low, np.where(a > high, high, a)))


_computes = {"power": _power, "pow": _power, "reciprocal": _reciprocal}
library.update(
    {
        name: ufunc(name, loops, _computes.get(name, getattr(np, name)), name in API["scatter"])
        for name, loops in API["ufuncs"].items()
    },
    # not in the namespace, but under functions and methods
    _where=ufunc("where", " ".join(f"?{c}{c}->{c}" for c in NUMBERS), np.where),
    _clip=ufunc("clip", " ".join(f"{c}{c}{c}->{c}" for c in NUMBERS if c not in "FD"), _clip),
    _round=ufunc(
        "round",
        "?q->e " + " ".join(f"{c}q->{c}" for c in NUMBERS[1:]),
        lambda a, decimals: np.round(a, int(decimals)),
    ),
)
