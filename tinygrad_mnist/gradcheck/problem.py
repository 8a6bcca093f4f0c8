"""f and its rule as functions of arrays and of flat vectors, each call on fresh copies and counted."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, SupportsIndex

import numpy as np

Array = np.ndarray[Any, Any]
Function = Callable[..., Any]


def is_float(a: Array) -> bool:
    return a.dtype.kind == "f"


class Problem:
    """What `check_vjp` is given, at one point.

    Outputs travel as one flat float64 vector, all float outputs one after the other; others (labels, masks) are left
    out, and get cotangents of zeros.
    """

    def __init__(self, f: Function, vjp: Function, arrays: Sequence[Array], wrt: Sequence[int]) -> None:
        self.f, self.vjp = f, vjp
        self.given = list(arrays)
        self.arrays = [np.array(a, order="K") for a in arrays]
        self.wrt = tuple(wrt)
        self.evals = self.backwards = 0
        self.damage = ""  # which argument a call wrote to, once seen
        outputs = self._call(self.copies())
        self.single = not isinstance(outputs, tuple | list)
        self.outputs = self._listed(outputs)
        """The outputs at the point; copies, since f may return one buffer every time."""
        self.unit = max([2.0**-53, *(float(np.finfo(y.dtype).eps) / 2 for y in self.outputs if is_float(y))])
        """The unit roundoff of the coarsest output."""
        self.finite: Array | None = None
        base = self.flat(outputs)
        self.finite = None if (finite := np.isfinite(base)).all() else finite
        self.base = base if self.finite is None else base[finite]
        """f at the point, without what is not finite there: nothing can be differentiated about it."""

    def copies(self, arrays: Sequence[Array] | None = None) -> list[Array]:
        """Of the point, or of other arrays; memory order is kept."""
        return [a.copy(order="K") for a in (self.arrays if arrays is None else arrays)]

    def _call(self, arrays: list[Array]) -> Any:
        self.evals += 1
        return self.f(*arrays)

    @staticmethod
    def _listed(outputs: Any) -> list[Array]:
        return [np.array(y) for y in (outputs if isinstance(outputs, tuple | list) else (outputs,))]

    def flat(self, outputs: Any) -> Array:
        """The float outputs as one vector, a copy."""
        if self.single and isinstance(outputs, np.ndarray | np.generic):
            y = np.array(outputs, np.float64).ravel() if outputs.dtype.kind == "f" else np.zeros(0)
        else:
            floats = [y.astype(np.float64).ravel() for y in self._listed(outputs) if is_float(y)]
            y = np.concatenate(floats) if floats else np.zeros(0)
        return y if self.finite is None or y.size != self.finite.size else y[self.finite]

    def value(self) -> Array:
        """f at the point. Notes damage to the inputs."""
        arrays = self.copies()
        y = self.flat(self._call(arrays))
        self._look(arrays, "f wrote to input")
        return y

    def at(self, arrays: list[Array]) -> Array:
        """f elsewhere. The arrays are given away."""
        return self.flat(self._call(arrays))

    def moved(self, k: int, x: Array) -> Array:
        """f with input k replaced."""
        return self.at([x if i == k else a.copy(order="K") for i, a in enumerate(self.arrays)])

    def cotangent(self, g: Array) -> list[Array]:
        """The flat vector g in the shapes and dtypes of the outputs."""
        if self.finite is not None:
            g, given = np.zeros(self.finite.size), g
            g[self.finite] = given
        out, start = [], 0
        for y in self.outputs:
            n = y.size if is_float(y) else 0
            out.append(g[start : start + n].reshape(y.shape).astype(y.dtype) if n else np.zeros(y.shape, y.dtype))
            start += n
        return out

    def pull(self, g: Array) -> Any:
        """What the rule answers at the point to the flat cotangent g; arrays are copied, damage is noted."""
        cotangents = self.cotangent(g)
        kept = [c.copy() for c in cotangents]
        arrays = self.copies()
        gradients = self._pull(cotangents, arrays)
        self._look(arrays, "the rule wrote to input")
        if any(not same(c, k) for c, k in zip(cotangents, kept, strict=True)):
            self.damage = self.damage or "the rule wrote to its cotangent"
        return gradients

    def _pull(self, cotangents: list[Array], arrays: list[Array]) -> Any:
        self.backwards += 1
        gradients = self.vjp(cotangents[0] if self.single else tuple(cotangents), *arrays)
        if isinstance(gradients, tuple | list):
            return tuple(np.array(a) if isinstance(a, np.ndarray | np.generic) else a for a in gradients)
        return gradients

    def pull_from(self, g: Array, arrays: Sequence[Array]) -> Any:
        """f and then the rule, since a layer may keep what its backward pass needs, on these very arrays."""
        self._call(list(arrays))
        return self._pull(self.cotangent(g), list(arrays))

    def gradient(self, g: Array, arrays: Sequence[Array] | None = None) -> list[Array]:
        """The rule's answer as float64 arrays, once its structure is known to be sound, at the point or elsewhere."""
        self._call(self.copies(arrays))
        gradients = self._pull(self.cotangent(g), self.copies(arrays))
        return [np.real(np.asarray(a)).astype(np.float64) for a in gradients]

    def _look(self, arrays: list[Array], what: str) -> None:
        for i, (a, b) in enumerate(zip(arrays, self.arrays, strict=True)):
            if not self.damage and not same(a, b):
                self.damage = f"{what} {i}"


def same(a: Array, b: Array) -> bool:
    """Equal, NaN to NaN."""
    return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))


def norm(v: Array) -> float:
    """The 2-norm, without overflow and underflow of the squares."""
    v = v.ravel()
    plain = math.sqrt(v @ v)
    if 1e-140 < plain < 1e140 or not v.size:
        return plain
    top = float(np.abs(v).max())
    if top == 0 or not np.isfinite(top):
        return top
    w = v / top
    return top * math.sqrt(w @ w)


def scales(x: Array) -> Array:
    """max(|x_i|, 1e-3 max|x|), or 1 where all are 0: what a step is a fraction of."""
    size = np.abs(x.astype(np.float64))
    top = float(np.where(np.isfinite(size), size, 0).max(initial=0))
    return np.maximum(size, 1e-3 * top) if top else np.ones(x.shape)


# ---- arguments ------------------------------------------------------------------------------------------------------


def differentiated(wrt: Sequence[int] | int | None, hosts: Sequence[Array]) -> tuple[int, ...]:
    """The inputs to differentiate by, as numbers from 0."""
    floats = tuple(i for i, a in enumerate(hosts) if is_float(a))
    if wrt is None:
        if not floats:
            kinds = ", ".join(f"{a.dtype} {a.shape}" for a in hosts) or "none"
            raise TypeError(f"no input has a float dtype (inputs: {kinds}): write 1.0 for 1, or use .astype(float)")
        return floats
    given = [operator.index(i) for i in ([wrt] if isinstance(wrt, SupportsIndex) else wrt)]
    for i in given:
        if not -len(hosts) <= i < len(hosts):
            raise ValueError(f"wrt={wrt!r} does not fit {len(hosts)} inputs")
        if i % len(hosts) not in floats:
            raise TypeError(f"wrt={wrt!r}: input {i} is {hosts[i].dtype}; only float inputs have gradients")
    found = tuple(i % len(hosts) for i in given)
    if len(set(found)) < len(found) or not found:
        raise ValueError(f"wrt={wrt!r} must name at least one input, and none twice")
    return found


def argument_names(f: Function, n: int) -> tuple[str, ...]:
    """What the function calls its positional arguments."""
    found: list[str] = []
    try:
        parameters: Iterator[inspect.Parameter] = iter(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):  # a function in C tells nothing
        parameters = iter(())
    for p in parameters:
        if p.kind is p.VAR_POSITIONAL:
            found += [f"{p.name}[{k}]" for k in range(n - len(found))]
        elif p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            found.append(p.name)
    return tuple([*found, *(f"x{k}" for k in range(len(found), n))][:n])
