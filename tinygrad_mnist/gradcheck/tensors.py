"""The checks for functions of Tensors: `check` and its relatives.

All of them take `fn(*tensors) -> Tensor`, or a tuple of Tensors, and `inputs`: arrays, Tensors of any device, numbers
or lists. Inputs with a float dtype are differentiated (`wrt` chooses among them) and reach `fn` as Tensors; all others
reach it as arrays, or without axes as Python numbers. Lists of floats and Python floats are float64 here. Everything
random comes from `seed`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .. import arrays, functional
from ..core import F, Tensor
from ..modes import enable_grad
from .engine import check_vjp
from .problem import argument_names, differentiated
from .remainder import taylor_vjp
from .report import VERDICTS, DotReport, GradCheckError, GradReport, Item, TaylorReport, merged

Array = np.ndarray[Any, Any]
Function = Callable[..., Any]

_ROUNDINGS = 100  # of the terms of an inner product: no difference quotient is behind it
_NEIGHBOURS = 4  # how many times `compare` moves the inputs by a rounding


def check(
    fn: Function,
    *inputs: Any,
    wrt: Sequence[int] | int | None = None,
    seed: int = 0,
    mode: str = "auto",
    confidence: float = 1e-6,
    order: int = 1,
    dtype: Any = None,
) -> GradReport:
    """Whether the gradients of `fn` at `inputs` are right; a mismatch is reported, not raised.

    `mode`: "elements", "project" (blocks of elements along random directions), or "auto": by size. `confidence`: the
    allowed probability of missing an error larger than the `resolution` that the report states. `order=2` checks the
    second derivatives too. `dtype`: float inputs are cast to it first.
    """
    problem = _Problem(fn, inputs, wrt, dtype)
    if order not in (1, 2):
        raise ValueError(f"check: order must be 1 or 2, not {order!r}")
    first = problem.check(seed=seed, mode=mode, confidence=confidence)
    if order == 1:
        return first
    both = merged(first, check_second(fn, *inputs, wrt=wrt, seed=seed, mode=mode, confidence=confidence, dtype=dtype))
    both.reproduce = problem.call("check", seed, ", order=2")
    return both


def assert_grad(fn: Function, *inputs: Any, allow: Collection[str] = ("kink",), **options: Any) -> None:
    """Raise GradCheckError, with the report as its text, unless the verdict of `check` is "pass" or in `allow`."""
    if unknown := set(allow) - set(VERDICTS):
        raise ValueError(f"assert_grad: allow={allow!r} names {min(unknown)!r}; verdicts are {', '.join(VERDICTS)}")
    report = check(fn, *inputs, **options)
    if report.verdict != "pass" and report.verdict not in allow:
        raise GradCheckError(report)


@np.errstate(all="ignore")
def check_second(
    fn: Function,
    *inputs: Any,
    wrt: Sequence[int] | int | None = None,
    seed: int = 0,
    mode: str = "auto",
    confidence: float = 1e-6,
    dtype: Any = None,
) -> GradReport:
    """Whether the second derivatives are right: `check` of h(x, g) = g^T J(x), by x and by the cotangent g, which
    covers both mixed terms; and u'Hw = w'Hu of the Hessian of <g, fn>."""
    problem = _Problem(fn, inputs, wrt, dtype)
    rng = np.random.default_rng(seed)
    cotangents = [_away_from_zero(rng, y.shape, y.dtype) for y in problem.outputs()]
    n = len(inputs)

    def gradients(*values: Any) -> tuple[Any, ...]:
        return problem.pull(values[:n], values[n:])[1]

    given = [*problem.values, *(arrays.move(g, problem.device) for g in cotangents)]
    again = _Problem(gradients, given, (*problem.wrt, *range(n, n + len(cotangents))), None)
    again.names = (*problem.names, *(["g"] if len(cotangents) == 1 else [f"g{k}" for k in range(len(cotangents))]))
    again.title = f"gradient of {problem.title}"
    report = again.check(seed=seed, mode=mode, confidence=confidence)
    report.reproduce = problem.call("check_second", seed)
    state = _symmetry(problem, cotangents, rng)
    report.structure["symmetry"] = state
    if state != "pass":
        report.items.append(Item(-1, None, None, None, None, "fail", f"symmetry: {state}"))
    return report


@np.errstate(all="ignore")
def dot_test(
    fn: Function, *inputs: Any, wrt: Sequence[int] | int | None = None, seed: int = 0, dtype: Any = None
) -> DotReport:
    """<J u, v> = <u, J^T v> for random u and v, to rounding: no step, so no truncation.

    J u is the gradient of <J^T v, u> by v (`jvp`): that holds the rules to their own second-order rules. Where `fn` is
    linear or affine, J u is also fn(x + u) - fn(x), which holds them to `fn` itself. It counts as affine if second
    differences of it vanish to rounding along two random directions, at steps as large as the inputs and at 1000 times
    that. Where it is not, this test cannot see a rule that is wrong in a consistent way: `check` can.
    """
    problem = _Problem(fn, inputs, wrt, dtype)
    rng = np.random.default_rng(seed)
    outputs = problem.outputs()
    v = [_away_from_zero(rng, y.shape, y.dtype) for y in outputs]
    u = [_away_from_zero(rng, problem.hosts[i].shape, problem.hosts[i].dtype) for i in problem.wrt]
    back = problem.vjp(v, *problem.hosts)
    forward = problem.jvp(u, v)
    eps = max(float(np.finfo(a.dtype).eps) for a in (*outputs, *u))
    right, terms = _dot(u, back)
    left, others = _dot(forward, v)
    tolerance = _ROUNDINGS * eps * (terms + others)
    direct = None
    if linear := _is_affine(problem, rng, eps):
        after, before = (_tuple(problem.f(*problem.moved(u, t))) for t in (1.0, -1.0))
        direct, size = _dot([(a.astype(float) - b) / 2 for a, b in zip(after, before, strict=True)], v)
        tolerance = max(tolerance, _ROUNDINGS * eps * (size + _dot(after, v)[1] + _dot(before, v)[1]))
    gaps = [abs(left - right)] + ([abs(direct - right)] if direct is not None else [])
    verdict = "pass" if all(gap <= tolerance for gap in gaps) else "fail"
    return DotReport(left, right, direct, tolerance, linear, verdict)


@np.errstate(all="ignore")
def taylor(
    fn: Function, *inputs: Any, wrt: Sequence[int] | int | None = None, seed: int = 0, dtype: Any = None
) -> TaylorReport:
    """The remainders |fn(x + h d) - fn(x) - h <gradient, d>| of a random functional of `fn` along a random direction,
    and the slope of their log-log curve: 2 of a right gradient, 1 of a wrong one."""
    problem = _Problem(fn, inputs, wrt, dtype)
    return taylor_vjp(problem.f, problem.vjp, problem.hosts, problem.wrt, seed)


@np.errstate(all="ignore")
def compare(
    fn: Function,
    *inputs: Any,
    devices: tuple[str, str] = ("cpu", "strict"),
    wrt: Sequence[int] | int | None = None,
    seed: int = 0,
    dtype: Any = None,
) -> GradReport:
    """Whether `fn` and its gradients are the same on two devices; "strict" is a double of CuPy that needs no GPU.

    No differences: in the report `numeric` is what the first device computes and `analytic` what the second does. They
    may differ by 32 times the spread of the float64 result under relative changes of the inputs by one rounding of
    their dtype, and 64 roundings of |a| + max|a| / 4. Values come as items of the function as a whole.
    """
    if len(devices) != 2:
        raise ValueError(f"compare needs two devices, as in devices=('cpu', 'gpu'), not {devices!r}")
    problem = _Problem(fn, inputs, wrt, dtype)
    rng = np.random.default_rng(seed)
    g = [_away_from_zero(rng, y.shape, y.dtype) for y in problem.outputs()]
    first, second = (problem.on(device) for device in devices)
    wide = _Problem(fn, problem.hosts, problem.wrt, np.float64).on(devices[0])

    def run(p: _Problem, hosts: Sequence[Array]) -> list[tuple[int, Array]]:
        values = [(-1, y) for y in _tuple(p.f(*hosts))]
        return [*values, *zip(p.wrt, p.vjp(g, *hosts), strict=True)]

    here, there = run(first, first.hosts), run(second, second.hosts)
    exact = [a.astype(float) for _, a in run(wide, wide.hosts)]
    spread = [np.zeros(a.shape) for a in exact]
    for _ in range(_NEIGHBOURS):
        moved = [_nudged(rng, w, h.dtype) for w, h in zip(wide.hosts, problem.hosts, strict=True)]
        for s, a, (_, b) in zip(spread, exact, run(wide, moved), strict=True):
            with np.errstate(invalid="ignore"):
                np.fmax(s, np.abs(a - b), out=s)
    items: list[Item] = []
    counts = dict.fromkeys(VERDICTS, 0)
    resolution = 0.0
    for (i, a), (_, b), s in zip(here, there, spread, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            text = f"{a.dtype} {a.shape} on {devices[0]}, {b.dtype} {b.shape} on {devices[1]}"
            items.append(Item(i, None, None, None, None, "fail", f"shape or dtype: {text}"))
            continue
        size = np.abs(np.nan_to_num(a.astype(float)))
        eps = float(np.finfo(a.dtype).eps)
        allowed = 32 * s + 64 * eps * (size + size.max(initial=0.0) / 4) + float(np.finfo(a.dtype).tiny)
        with np.errstate(invalid="ignore"):
            near = (np.abs(a.astype(float) - b) <= allowed) | (a == b) | (np.isnan(a) & np.isnan(b))
        resolution = max(resolution, float((allowed[size > 0] / size[size > 0]).max(initial=0.0)))
        counts["pass"] += int(near.sum())
        counts["fail"] += int((~near).sum())
        what = "value of the function" if i < 0 else "gradient"
        for place in map(tuple, np.argwhere(~near).tolist()):
            reason = f"{what}: analytic is on {devices[1]}, numeric on {devices[0]}"
            items.append(Item(i, place, float(b[place]), float(a[place]), float(allowed[place]), "fail", reason))
    calls = 2 * len(devices) + 1 + _NEIGHBOURS
    items.sort(key=lambda item: -_excess(item))
    return GradReport(
        items=items,
        structure={},
        counts=counts,
        kinks=[],
        resolution=resolution,
        miss_probability=0.0,
        noise=0.0,
        evals=calls,
        backwards=calls,
        seed=seed,
        mode="compare",
        dtypes=tuple(str(a.dtype) for a in problem.hosts),
        shapes=tuple(a.shape for a in problem.hosts),
        names=problem.names,
        reproduce=problem.call("compare", seed, f", devices={tuple(devices)!r}"),
    )


# ---- a function of Tensors as one of NumPy arrays -----------------------------------------------------------------


class _Problem:
    """`fn` at `inputs`, as `f` and `vjp` of host arrays. Each input is put on the device that it came from."""

    def __init__(self, fn: Function, inputs: Sequence[Any], wrt: Sequence[int] | int | None, dtype: Any) -> None:
        if not callable(fn):
            raise TypeError(f"a check needs a function first, then its inputs: check(fn, x, ...), not {fn!r:.40}")
        self.fn = fn
        self.title = getattr(fn, "__name__", type(fn).__name__)
        self.values = [_value(i, x, dtype) for i, x in enumerate(inputs)]
        self.devices = [arrays.device_of(a) for a in self.values]
        self.hosts = [arrays.to_host(a) for a in self.values]
        self.wrt = differentiated(wrt, self.hosts)
        self.names = argument_names(fn, len(inputs))

    @property
    def device(self) -> str:
        """Where the function computes: that of its inputs."""
        return next((device for device in self.devices if device != "cpu"), "cpu")

    def on(self, device: str) -> _Problem:
        """The same problem with every input on one device."""
        if device == "strict":
            from ..testing import strict  # what no other device needs

            arrays.register("strict", strict.xp)
        return _Problem.__new__(_Problem)._like(self, [device] * len(self.values))

    def _like(self, other: _Problem, devices: list[str]) -> _Problem:
        self.__dict__.update(other.__dict__)
        self.devices = devices
        return self

    def _tensors(self, hosts: Sequence[Array]) -> list[Any]:
        there = hosts
        if self.device != "cpu":
            there = [arrays.move(a, device) for a, device in zip(hosts, self.devices, strict=True)]
        return [Tensor(a) if a.dtype.kind == "f" else a if a.ndim else a.item() for a in there]

    def f(self, *hosts: Array) -> Any:
        """The value on the host, or a tuple of them."""
        with enable_grad():  # in-place operators mean something else where nothing records
            y = self.fn(*self._tensors(hosts))
        parts = [part.data for part in _outputs(y)]
        values = parts if self.device == "cpu" else [arrays.to_host(part) for part in parts]
        return tuple(values) if isinstance(y, (tuple, list)) else values[0]

    def vjp(self, cotangent: Any, *hosts: Array) -> tuple[Array, ...]:
        """The gradients on the host, one for each input in `wrt`."""
        found = self.pull(self._tensors(hosts), _tuple(cotangent), detach=True)[1]
        return tuple(arrays.to_host(g.data if isinstance(g, Tensor) else g) for g in found)

    def pull(
        self, values: Sequence[Any], cotangents: Sequence[Any], detach: bool = False
    ) -> tuple[Any, tuple[Any, ...]]:
        """(fn, its pullback of the cotangents): of Tensors Tensors, which can be differentiated again, or `detach`."""
        several = False

        def chosen(*xs: Any) -> Any:
            nonlocal several
            full = list(values)
            for i, x in zip(self.wrt, xs, strict=True):
                full[i] = x
            y = self.fn(*full)
            parts = _outputs(y)
            several = isinstance(y, (tuple, list))
            return parts[0] if not several else _weighted(parts, cotangents)

        xs = [values[i] for i in self.wrt]
        value, back = functional.vjp(chosen, *([x.data for x in xs] if detach else xs))
        if several:
            return value, back(np.ones((), value.dtype))
        return value, back(cotangents[0])

    def outputs(self) -> list[Array]:
        """The values at the inputs."""
        return list(_tuple(self.f(*self.hosts)))

    def jvp(self, u: Sequence[Array], v: Sequence[Array]) -> list[Array]:
        """J u: the gradient of <J^T v, u> by v, at any v, for it is linear."""
        tensors = self._tensors(self.hosts)

        def product(*g: Any) -> Any:
            gradients = self.pull(tensors, g)[1]
            return sum(F.sum(a * arrays.from_host(d, a.data)) for a, d in zip(gradients, u, strict=True))

        cotangents = [Tensor(arrays.move(part, self.device)) for part in v]
        return [arrays.to_host(g.data) for g in functional.vjp(product, *cotangents)[1](1.0)]

    def moved(self, u: Sequence[Array], t: float) -> list[Array]:
        """The inputs + t u."""
        hosts = list(self.hosts)
        for i, d in zip(self.wrt, u, strict=True):
            hosts[i] = (hosts[i] + t * d).astype(hosts[i].dtype)
        return hosts

    def check(self, **options: Any) -> GradReport:
        report = check_vjp(self.f, self.vjp, self.hosts, self.wrt, **options)
        return replace(report, names=self.names, reproduce=self.call("check", options["seed"]))

    def call(self, name: str, seed: int, more: str = "") -> str:
        """The call that does the same again."""
        like = [f"{n}: {a.dtype} {a.shape}" for n, a in zip(self.names, self.hosts, strict=True)]
        return f"{name}({self.title}, {', '.join(self.names)}, seed={seed}{more})  # {', '.join(like)}"


def _value(i: int, x: Any, dtype: Any) -> Any:
    """An input as an array of its device."""
    if isinstance(x, (list, tuple)) and any(isinstance(part, Tensor) for part in x):
        raise TypeError(f"input {i} is a {type(x).__name__} of Tensors: give each as an input of its own")
    try:
        x = x.data if isinstance(x, Tensor) else arrays.operand(x)
        x = x if arrays.is_array(x) else np.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"input {i}: {error}; let the function close over it: lambda x: fn(x, ...)") from None
    if x.dtype.kind not in "fiub":
        raise TypeError(f"input {i} is {x.dtype}: only floats, integers and booleans can be inputs")
    return x.astype(dtype) if dtype is not None and x.dtype.kind == "f" else x


def _outputs(y: Any) -> tuple[Tensor, ...]:
    """The Tensors that a function returned."""
    parts = tuple(y) if isinstance(y, (tuple, list)) else (y,)
    for part in parts:
        if isinstance(part, dict):
            raise TypeError("the function returns a dict: return a Tensor or a tuple of Tensors")
        if not isinstance(part, Tensor):
            what = f"{part.dtype} array" if arrays.is_array(part) else type(part).__name__
            raise TypeError(
                f"the function returns {what}, not a Tensor, so it has no gradient: compute with Tensors to the end "
                "(.data, .item(), float() and comparisons leave the graph) and return only what to differentiate"
            )
        if part.dtype.kind != "f":
            raise TypeError(f"the function returns {part.dtype}, which has no gradient: return only float Tensors")
    if not parts:
        raise TypeError("the function returns an empty tuple: return a Tensor or a tuple of Tensors")
    return parts


def _weighted(parts: Sequence[Tensor], cotangents: Sequence[Any]) -> Any:
    """<cotangents, parts>: its gradient is the sum of the pullbacks. In the graph for Tensors as cotangents."""
    terms = []
    for y, g in zip(parts, cotangents, strict=True):
        g = g if isinstance(g, Tensor) else arrays.from_host(g, y.data)
        terms.append(F.sum(y * g))
    return sum(terms)


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


# ---- numbers ------------------------------------------------------------------------------------------------------


def _away_from_zero(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    """Normal, but no element near zero: it would hide what it is multiplied by."""
    x = rng.standard_normal(shape)
    return np.asarray(np.copysign(np.maximum(np.abs(x), 0.1), x), dtype=dtype)


def _dot(a: Sequence[Array], b: Sequence[Array]) -> tuple[float, float]:
    """(the inner product, the sum of the magnitudes of its terms), in float64."""
    products = [x.astype(float) * y.astype(float) for x, y in zip(a, b, strict=True)]
    return float(sum(p.sum() for p in products)), float(sum(np.abs(p).sum() for p in products))


def _is_affine(problem: _Problem, rng: np.random.Generator, eps: float) -> bool:
    """Second differences vanish to rounding."""
    for t in (1.0, 1000.0):
        u = [_away_from_zero(rng, problem.hosts[i].shape, problem.hosts[i].dtype) for i in problem.wrt]
        u = [d * (1 + np.abs(problem.hosts[i])).astype(d.dtype) for d, i in zip(u, problem.wrt, strict=True)]
        with np.errstate(all="ignore"):
            before, at, after = (_tuple(problem.f(*problem.moved(u, s))) for s in (-t, 0.0, t))
            for low, mid, high in zip(before, at, after, strict=True):
                size = np.abs(low.astype(float)) + np.abs(mid) + np.abs(high)
                bend = np.abs(low.astype(float) - 2 * mid.astype(float) + high)
                if not (bend <= 64 * eps * size.max(initial=0.0)).all():
                    return False
    return True


def _symmetry(problem: _Problem, cotangents: Sequence[Array], rng: np.random.Generator) -> str:
    """"pass", or by how much u'Hw is not w'Hu."""
    u, w = ([_away_from_zero(rng, problem.hosts[i].shape, problem.hosts[i].dtype) for i in problem.wrt] for _ in "uw")
    tensors = problem._tensors(problem.hosts)

    def times(direction: Sequence[Array]) -> list[Array]:
        def slope(*xs: Any) -> Any:
            full = list(tensors)
            for i, x in zip(problem.wrt, xs, strict=True):
                full[i] = x
            gradients = problem.pull(full, [arrays.move(g, problem.device) for g in cotangents])[1]
            return sum(F.sum(a * arrays.from_host(d, a.data)) for a, d in zip(gradients, direction, strict=True))

        found = functional.vjp(slope, *(tensors[i] for i in problem.wrt))[1](1.0)
        return [arrays.to_host(g.data) for g in found]

    (left, size), (right, other) = _dot(u, times(w)), _dot(w, times(u))
    eps = max(float(np.finfo(a.dtype).eps) for a in (*cotangents, *u))
    if abs(left - right) <= 1e5 * eps * (size + other):
        return "pass"
    return f"u'Hw = {left:.9g}, but w'Hu = {right:.9g}"


def _nudged(rng: np.random.Generator, wide: Array, dtype: np.dtype[Any]) -> Array:
    """Float inputs moved by up to one rounding of their own dtype."""
    if dtype.kind != "f":
        return wide
    return wide * (1 + float(np.finfo(dtype).eps) * rng.uniform(-1, 1, wide.shape))


def _excess(item: Item) -> float:
    if item.analytic is None or item.numeric is None or not item.error:
        return np.inf
    excess = abs(item.analytic - item.numeric) / item.error
    return np.inf if np.isnan(excess) else excess
