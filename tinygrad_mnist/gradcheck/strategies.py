"""Hypothesis strategies for tests of gradients: shapes, values, indices, layouts, and whole cases of an operation.

    from hypothesis import given
    from tinygrad_mnist.gradcheck import assert_grad
    from tinygrad_mnist.gradcheck.strategies import op_cases

    @given(op_cases("multiply"))
    def test_multiply(case):
        assert_grad(case.fn, *case.arrays, wrt=case.wrt)

`op_cases(name)` draws what the project's own tests use. The other strategies are its parts, for operations of your own.

Structure is drawn piece by piece, so that it shrinks: few axes, short sides, few special elements, C order. The bulk
of the values comes from one small seed, because a draw for each element would take longer than the check; seed 0, to
which everything shrinks, gives a fixed row of short numbers, and what makes an example fail is drawn on top of it as
single elements: a kink, a tie, an end of the domain.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from .. import arrays, ops
from ..core import F, Tensor
from ..testing import OPS
from ..testing.optable import Interval

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
Draw = st.DrawFn

fast = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
deep = settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Profiles for `@given`: `@fast` for every run of a test, `@deep` for the night."""

_integers = functools.cache(st.integers)


def _int(draw: Draw, low: int, high: int) -> int:
    return draw(_integers(low, high)) if low < high else low


def _one(draw: Draw, options: Sequence[Any]) -> Any:
    return options[_int(draw, 0, len(options) - 1)]


def _rarely(draw: Draw, n: int) -> bool:
    """True once in n times; shrinks to False."""
    return _int(draw, 0, n - 1) == n - 1


def _generator(draw: Draw) -> np.random.Generator | None:
    """Where the bulk of the values comes from; None, the simplest, for a fixed row of numbers."""
    seed = _int(draw, 0, 2**16 - 1)
    return np.random.default_rng(seed) if seed else None


# ---- shapes -------------------------------------------------------------------------------------------------------


def _shape(
    draw: Draw, min_dims: int = 0, max_dims: int = 3, *, max_side: int = 3, allow_zero: bool = True
) -> Shape:
    """A shape; now and then with a side of 0."""
    sides = draw(_sides(min_dims, max_dims, max_side))[:max_dims]
    if allow_zero and sides and _rarely(draw, 16):
        sides[_int(draw, 0, len(sides) - 1)] = 0
    return tuple(sides)


@functools.cache
def _sides(least: int, most: int, largest: int) -> st.SearchStrategy[list[int]]:
    return st.lists(_integers(1, largest), min_size=least, max_size=2 * most)  # to be cut: else most would be short


def _stretchable(draw: Draw, shape: Shape) -> Shape:
    """A shape that broadcasts to `shape`: leading axes left out, others of size 1."""
    if not shape or not _rarely(draw, 2):
        return shape
    dropped, ones = _int(draw, 0, 3), _int(draw, 0, 7)  # fixed ranges: they mean the same while `shape` shrinks
    return tuple(1 if ones >> len(shape) - 1 - k & 1 else n for k, n in enumerate(shape) if k >= dropped)


def _broadcasting(
    draw: Draw, n: int, *, max_dims: int = 3, max_side: int = 3, allow_zero: bool = True
) -> tuple[Shape, ...]:
    """n shapes that broadcast together: stretched on any side, 0-d, with sides of 1 and of 0."""
    shape = _shape(draw, 0, max_dims, max_side=max_side, allow_zero=allow_zero)
    return tuple(_stretchable(draw, shape) for _ in range(n))


def _axis(draw: Draw, ndim: int, none: bool = True) -> Any:
    """None, an axis counted from either end, or a tuple of them, which may be empty."""
    kind = _int(draw, 0 if none else 1, 3)
    if kind == 0:
        return None
    if kind < 3 and ndim:
        return _int(draw, -ndim, ndim - 1)
    axes = [k for k in range(ndim) if _int(draw, 0, 1)]
    axes = [k - ndim if _rarely(draw, 3) else k for k in axes]
    return tuple(reversed(axes) if _rarely(draw, 3) else axes)


def _reduction(draw: Draw, shape: Shape) -> dict[str, Any]:
    """The arguments of a reduction: {"axis": None, int or tuple of ints, "keepdims": bool}."""
    return {"axis": _axis(draw, len(shape)), "keepdims": bool(_int(draw, 0, 1))}


def _permutation(draw: Draw, ndim: int) -> tuple[int, ...]:
    """An order of the axes, some counted from the end."""
    axes = draw(st.permutations(range(ndim)))
    return tuple(k - ndim if _rarely(draw, 4) else k for k in axes)


def _reshape(draw: Draw, shape: Shape) -> Shape:
    """Another shape for as many elements; one side may be -1."""
    n = math.prod(shape)
    new = list(_one(draw, _factors(n)))
    if n and new and _rarely(draw, 3):
        new[_int(draw, 0, len(new) - 1)] = -1
    return tuple(new)


@functools.cache
def _factors(n: int) -> list[Shape]:
    """Shapes of up to three axes that hold n elements, simplest first."""
    if not n:
        return [(0,), (0, 3), (2, 0)]
    pairs = [(k, n // k) for k in range(1, n + 1) if n % k == 0]
    triples = [(j, k, m // k) for j, m in pairs for k in range(1, m + 1) if m % k == 0]
    return [*([()] if n == 1 else []), (n,), *pairs, *triples]


shapes = st.composite(_shape)
broadcasting = st.composite(_broadcasting)
reductions = st.composite(_reduction)
permutations = st.composite(_permutation)
reshapes = st.composite(_reshape)

# ---- indices and subscripts ---------------------------------------------------------------------------------------


def _index(draw: Draw, shape: Shape) -> Any:
    """What may stand in `a[...]`: integers, slices with steps of either sign, `...`, None; arrays of integers with
    repeated, negative and no entries; masks of an axis or of all."""
    if _rarely(draw, 10):
        return (np.asarray(_mask(draw, shape)),)
    parts: list[Any] = []
    pointed = _one(draw, [(), (2,), (3,), (0,), (2, 1), (2, 2)])  # the shape of arrays of integers
    masked = False
    for n in shape[: _int(draw, 0, len(shape))]:
        kind = _int(draw, 0, 5)
        if kind == 0 and n:
            parts.append(_int(draw, -n, n - 1))
        elif kind in (1, 2) and n and not masked:
            entries = [_int(draw, -n, n - 1) for _ in range(math.prod(pointed))]
            parts.append(np.array(entries, _one(draw, [np.int64, np.int8])).reshape(pointed))
        elif kind == 3 and pointed == () and not masked:
            parts.append(_mask(draw, (n,)))
            masked = True
        else:
            start, stop = (_int(draw, -n - 1, n + 1) if _rarely(draw, 2) else None for _ in range(2))
            parts.append(slice(start, stop, _one(draw, [None, -1, 2, -2])))
        if _rarely(draw, 8):
            parts.append(None)
    if masked:  # a mask beside arrays of integers must have as many entries as they have: keep it alone
        parts = [slice(None) if isinstance(p, np.ndarray) and p.dtype != bool else p for p in parts]
    if _rarely(draw, 4):
        parts.append(Ellipsis)
    return tuple(parts)


def _mask(draw: Draw, shape: Shape) -> Array:
    bits = _int(draw, 0, 99)
    return np.array([bits >> (k % 7) & 1 for k in range(math.prod(shape))], bool).reshape(shape)


def _einsum_spec(draw: Draw, max_operands: int = 3) -> tuple[str, tuple[Shape, ...]]:
    """(subscripts, shapes of the operands): letters repeated within a term, summed or kept, sides of 1 that stretch,
    implicit and explicit output."""
    sizes = [_int(draw, 1, 3) for _ in "ijk"]
    terms = ["".join(_one(draw, "ijk") for _ in range(_int(draw, 0, 3))) for _ in range(_int(draw, 1, max_operands))]
    letters = sorted(set("".join(terms)))
    output = "".join(c for c in letters if _int(draw, 0, 1))
    output = output[::-1] if _rarely(draw, 3) else output
    stretch = [_one(draw, letters) if letters and _rarely(draw, 4) else "" for _ in terms]
    shapes = tuple(
        tuple(1 if c == one else sizes["ijk".index(c)] for c in term) for term, one in zip(terms, stretch, strict=True)
    )
    return ",".join(terms) + ("" if _rarely(draw, 4) else "->" + output), shapes


indices = st.composite(_index)
einsum_specs = st.composite(_einsum_spec)

# ---- values -------------------------------------------------------------------------------------------------------

REAL: Interval = (-math.inf, math.inf)
POSITIVE: Interval = (0.0, math.inf)


@functools.cache
def decades(low: int, high: int) -> st.SearchStrategy[float]:
    """Powers of ten from 10^low to 10^high; shrinks to 1."""
    return _integers(low, high).map(lambda k: 10.0**k)


_SIX_DECADES = decades(-6, 6)


def _ordinary(domain: Interval) -> Interval:
    """Where in an open domain most values lie: well inside."""
    low, high = domain
    if math.isinf(low) and math.isinf(high):
        return -2.0, 2.0
    if math.isinf(high):
        return low + 0.3, low + 3.0
    if math.isinf(low):
        return high - 3.0, high - 0.3
    margin = 0.05 * (high - low)
    return low + margin, high - margin


def _close(dtype: Any) -> float:
    """What counts as near: 1e-9 in float64."""
    return math.sqrt(float(np.finfo(dtype).eps)) / 16


@functools.cache
def _specials(
    domain: Interval, near: tuple[float, ...], beside: bool, large: float, ties: bool, dtype: Any
) -> list[Any]:
    """What a single element may be replaced by: numbers, or functions of (array, place). Simplest first."""
    low, high = domain
    eps = float(np.finfo(dtype).eps)
    close = _close(dtype)
    found: list[Any] = [*near] * 3
    if ties:
        found.append(lambda a, i: a[i - 1])
    if ties and beside:
        found.append(lambda a, i: a[i - 1] * (1 + close))
    if beside:
        found += [x + d * max(abs(x), 1.0) for x in near for d in (eps, -eps, close, -close)]
    inside = close if eps < 1e-4 else 0.05  # float16 cannot hold what functions are nearer to their poles
    found += [end + d for end, d in ((low, inside), (high, -inside)) if end and math.isfinite(end)]
    if large:
        found += [large, -large]
    elif math.isinf(high) and low in (0.0, -math.inf):
        ratio = 100.0 if dtype == np.float64 else 8.0
        found += [lambda a, i: a[i] * ratio, lambda a, i: a[i] / ratio]
    return found


def _fill(
    draw: Draw, rng: np.random.Generator | None, shape: Shape, dtype: Any, domain: Interval,
    scale: st.SearchStrategy[float], near: tuple[float, ...], beside: bool = True, ties: bool = True,
    large: float = 0.0,
) -> Array:
    low, high = _ordinary(domain)
    n = math.prod(shape)
    where = rng.random(n) if rng is not None else (np.arange(1, n + 1) * 0.6180339887498949) % 1
    a = low + (high - low) * where
    if rng is None:
        a = np.round(a, 2)
    factor = draw(scale)
    anchor, factor = (
        ((domain[0] + domain[1]) / 2, min(factor, 1.0)) if math.isfinite(sum(domain))
        else (next(filter(math.isfinite, domain), 0.0), factor)
    )
    a = (anchor + (a - anchor) * factor).astype(dtype)
    if n > 1 and ties and _rarely(draw, 16):  # all alike, and such that their mean is exact
        power = math.copysign(2.0 ** math.floor(math.log2(abs(float(a[0])) or 1.0)), float(a[0]))
        a[:] = power if domain[0] < power < domain[1] else a[0]
    options = _specials(domain, near, beside, large, ties, dtype)
    plain = a.copy()
    for _ in range(_int(draw, 0, 3) if n and options else 0):
        place, new = n - 1 - _int(draw, 0, n - 1), _one(draw, options)
        value = dtype.type(new(plain, place) if callable(new) else new)
        if domain[0] < value < domain[1]:
            a[place] = value
    return a.reshape(shape)


@st.composite
def values(
    draw: Draw, shape: Shape, dtype: Any = np.float64, *, domain: Interval = REAL,
    scale: st.SearchStrategy[float] = _SIX_DECADES, near: Sequence[float] = (0.0,), ties: bool = True,
) -> Array:
    """Arrays of values inside the open interval `domain`: most of them ordinary numbers times a power of ten from
    `scale`, and up to three special elements: exactly at a number in `near` (kinks, zeros), or one rounding or about
    1e-9 beside it; equal to another element, or nearly so (`ties`); close to a finite end of the domain; 100 times
    as large or as small as the rest."""
    return _fill(draw, _generator(draw), shape, np.dtype(dtype), domain, scale, tuple(near), ties=ties)


def _reversed(a: Array) -> Array:
    return np.ascontiguousarray(a[::-1])[::-1]


def _every_second(a: Array) -> Array:
    wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def _transposed(a: Array) -> Array:
    return np.ascontiguousarray(a.T).T


def _stretched(a: Array) -> Array:
    return np.broadcast_to(a[:1], a.shape)


_LAYOUTS: list[Callable[[Array], Array]] = [_transposed, _reversed, _every_second, _stretched]


def _laid_out(draw: Draw, a: Array) -> Array:
    """`a` in C order, in Fortran order, with a negative stride, with gaps, or (its first row instead of all) as a
    read-only view with a stride of 0."""
    if not a.ndim or not _rarely(draw, 2):
        return a
    return _one(draw, _LAYOUTS)(a)


def _cotangent(draw: Draw, shape: Shape, dtype: Any = np.float64) -> Array:
    """What comes from above: normal numbers; some of them zero, all negative, of size 1000 or 1/1000, or a single 1."""
    rng = _generator(draw)
    n = math.prod(shape)
    g = np.ones(n) if rng is None else 2 * rng.normal(size=n)
    kind = _int(draw, 0, 5)
    if kind == 1:
        g[::2] = 0
    elif kind == 2:
        g = -abs(g)
    elif kind in (3, 4):
        g *= 1e3 if kind == 3 else 1e-3
    elif kind == 5 and n:
        g[:] = 0
        g[_int(draw, 0, n - 1)] = 1
    return g.reshape(shape).astype(dtype)


layouts = st.composite(_laid_out)
upstream = st.composite(_cotangent)

# ---- cases of an operation ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpCase:
    """One call of an operation: `fn(*arrays)` in Tensors, written as `text`; `wrt`: the operands to differentiate by.
    Operands that are no floats (conditions, labels) are operands of `fn` too, as plain arrays."""

    op: str
    text: str
    fn: Callable[..., Any] = field(repr=False, compare=False)
    arrays: tuple[Array, ...]
    wrt: tuple[int, ...]


class Values(NamedTuple):
    """What the values of an operand are like: see `values`. `beside`: some lie a rounding or 1e-9 beside a number in
    `near` or another element; a function without a kink may be so flat there that no difference sees its slope.
    `large`: a size that saturates the function, or is the largest that does not overflow. `signed`: of both signs,
    although the domain that is given is positive."""

    decades: tuple[int, int] = (-6, 6)
    near: tuple[float, ...] = (0.0,)
    beside: bool = False
    large: float = 0.0
    signed: bool = False
    domain: Interval | None = None


_ANY = Values()
_MILD = Values((-2, 2))  # of operands that are added: beside a number 10^16 times as large one cannot be seen


class Source:
    """Draws the operands of one case, in one dtype."""

    def __init__(self, draw: Draw, dtype: Any) -> None:
        self.draw, self.dtype = draw, np.dtype(dtype)
        self.rng = _generator(draw)

    def array(self, shape: Shape, like: Values = _ANY, domain: Interval = REAL) -> Array:
        # narrow dtypes hold fewer powers of ten, results must fit too; and 1 - p of a saturated p has no digits left
        ends = [_narrowed(d, self.dtype.itemsize) for d in like.decades]
        large = like.large / 4 if self.dtype.itemsize == 2 else like.large
        domain = like.domain or domain
        a = _fill(self.draw, self.rng, shape, self.dtype, domain, decades(*ends), like.near, like.beside, large=large)
        if like.signed:
            flips = _int(self.draw, 0, 3)  # none, all, or every second or third
            if flips:
                a.reshape(-1)[::flips] *= -1
        return _laid_out(self.draw, a)

    def case(
        self, op: str, operands: Sequence[Array], params: dict[str, Any] | None = None, *,
        wrt: Sequence[int] | None = None, text: str | None = None, fn: Callable[..., Any] | None = None,
    ) -> OpCase:
        params = params or {}
        if wrt is None:
            wrt = [i for i, a in enumerate(operands) if a.dtype.kind == "f"]
            if len(wrt) > 1 and _rarely(self.draw, 5):
                wrt = [_one(self.draw, wrt)]
        text = text or written(op, "abcdefgh"[: len(operands)], params)
        return OpCase(op, text, fn or functools.partial(call, op, params), tuple(operands), tuple(wrt))


def _narrowed(decades: int, itemsize: int) -> int:
    bound = {2: abs(decades) // 64, 4: max(abs(decades) // 8, 2)}.get(itemsize, abs(decades))
    return int(math.copysign(min(abs(decades), bound), decades))


def call(op: str, params: dict[str, Any], *operands: Any) -> Any:
    """The operation as users call it."""
    if op == "getitem":
        return operands[0][params["index"]]
    if op in ("einsum", "concatenate"):
        return F.einsum(params["subscripts"], *operands) if op == "einsum" else F.concatenate(operands, **params)
    return getattr(F, op)(*operands, **params)


def written(op: str, names: Sequence[str], params: dict[str, Any]) -> str:
    """The operation as users write it."""
    if op == "getitem":
        parts = [_part(p) for p in params["index"]]
        return f"{names[0]}[{', '.join(parts) or '()'}]"
    operands = f"[{', '.join(names)}]" if op == "concatenate" else ", ".join(names)
    if op == "einsum":
        return f"einsum({params['subscripts']!r}, {operands})"
    keywords = "".join(f", {name}={value!r}" for name, value in params.items())
    return f"{op}({operands}{keywords})"


def _part(part: Any) -> str:
    if isinstance(part, slice):
        ends = ["" if end is None else str(end) for end in (part.start, part.stop, part.step)]
        return ":".join(ends[:2] if part.step is None else ends)
    if isinstance(part, np.ndarray):
        return f"np.array({part.tolist()}, np.{part.dtype})" if part.dtype != bool else f"np.array({part.tolist()})"
    return "..." if part is Ellipsis else repr(part)


# ---- elementwise operations: the domains are those of the operation table

_OPEN: dict[Interval, Interval] = {  # where the table keeps a distance from the ends, which matter here
    (-2.0, 2.0): REAL,
    (0.3, 3.0): POSITIVE,
    (-0.9, 0.9): (-1.0, 1.0),
    (1.2, 3.0): (1.0, math.inf),
    (-1.2, 1.2): (-math.pi / 2, math.pi / 2),
}
_TABLE = {op.function: tuple(_OPEN[domain] for domain in op.domains) for op in OPS if op.domains}
_TABLE["positive"] = _TABLE["identity"] = (REAL,)

_ELEMENTWISE: dict[str, tuple[Values, ...]] = {
    "add": (_MILD, _MILD),
    "subtract": (_MILD, _MILD),
    "divide": (Values(), Values(near=(1.0,), signed=True)),
    "reciprocal": (Values((-60, 60), near=(1.0,), signed=True),),
    "square": (Values((-100, 100)),),
    "sqrt": (Values((-250, 250)),),
    "cbrt": (Values((-250, 250), signed=True),),
    "sign": (Values(near=()),),  # jumps at 0
    "exp": (Values((-6, 0), large=20.0),),
    "exp2": (Values((-6, 0), large=20.0),),
    "expm1": (Values((-6, 0), large=20.0),),
    "log": (Values((-250, 250), near=(1.0,)),),
    "log2": (Values((-250, 250), near=(1.0,)),),
    "log10": (Values((-250, 250), near=(1.0,)),),
    "log1p": (Values(domain=(-1.0, math.inf)),),
    "logaddexp": (Values((-2, 0), large=6.0), Values((-2, 0), large=6.0)),
    "sin": (Values((-6, 3)),),
    "cos": (Values((-1, 3)),),
    "tan": (Values((-6, 0)),),
    "arctan": (Values((-6, 4)),),
    "sinh": (Values((-6, 0), large=20.0),),
    "cosh": (Values((-1, 0), large=20.0),),
    "tanh": (Values((-6, 0), large=6.0),),
    "hypot": (Values((-1, 1), large=20.0), Values((-1, 1), large=20.0)),
    "relu": (Values(beside=True),),
    "absolute": (Values(beside=True),),
    "sigmoid": (Values((-6, 0), large=10.0),),
    "softplus": (Values((-6, 0), large=10.0),),
}
_ELEMENTWISE |= {name: (Values(),) * len(domains) for name, domains in _TABLE.items() if name not in _ELEMENTWISE}


def _domains(op: str) -> tuple[Interval, ...]:
    return _TABLE.get(op, (REAL,) * len(_ELEMENTWISE[op]))


def _elementwise(source: Source, op: str) -> OpCase:
    likes, domains = _ELEMENTWISE[op], _domains(op)
    drawn = _broadcasting(source.draw, len(likes))
    operands = [source.array(s, like, domain) for s, like, domain in zip(drawn, likes, domains, strict=True)]
    return source.case(op, operands)


def _choice(source: Source, op: str) -> OpCase:
    """Two operands, of which some elements are equal, or nearly so."""
    draw = source.draw
    a, b = (source.array(shape, Values((-2, 2), near=())) for shape in _broadcasting(draw, 2))
    shape = np.broadcast_shapes(a.shape, b.shape)
    if math.prod(shape) and _rarely(draw, 2):
        b = b.copy()
        place = np.unravel_index(_int(draw, 0, math.prod(shape) - 1), shape)
        in_b = tuple(0 if n == 1 else k for k, n in zip(place[len(shape) - b.ndim :], b.shape, strict=True))
        b[in_b] = np.broadcast_to(a, shape)[place] * (1 + _one(draw, [0.0, 0.0, 1.0]) * _close(source.dtype))
    return source.case(op, [a, b])


def _power(source: Source, op: str) -> OpCase:
    """Positive bases and real exponents; or bases of any sign, zero too, and exponents that are integers; or
    positive exponents and a base of zero, where the function has no derivative by the base on the left."""
    first, second = _broadcasting(source.draw, 2)
    kind = _int(source.draw, 0, 3)
    if kind < 2:
        bases = source.array(first, Values((-3, 3), near=(), large=3.0), POSITIVE)
        return source.case(op, [bases, source.array(second, Values((-1, 0), large=2.5))])
    if kind == 2:
        a, b = source.array(first, Values((0, 0), large=4.0)), np.round(source.array(second, Values((0, 0), large=4.0)))
        if b.size and b.min() < 0:
            a = np.where(abs(a) < 0.01, 1, a).astype(a.dtype)
        return source.case(op, [a, b], wrt=[0])
    a = source.array(first, Values((0, 0), near=(1.0,), large=3.0), POSITIVE).copy()
    if a.size:
        a.reshape(-1)[_int(source.draw, 0, a.size - 1)] = 0
    return source.case(op, [a, source.array(second, Values((0, 0)), (0.5, 3.0))], wrt=[1])


def _quotient(source: Source, op: str) -> OpCase:
    """a and b of either sign, with a / b so far from the integers, where the function jumps, that it stays between the
    same two when one of them changes by a quarter: a difference that sees a jump proves nothing."""
    first, second = _broadcasting(source.draw, 2)
    b = source.array(second, Values((0, 0), near=(), signed=True), (1.0, 3.0))
    part = source.array(first, Values((0, 0), near=()), (0.35, 0.48))
    if first == np.broadcast_shapes(first, second):
        whole = np.resize([_int(source.draw, -1, 1), _int(source.draw, -1, 1)], first)
        return source.case(op, [((whole + part) * b).astype(part.dtype), b])
    return source.case(op, [part, b])  # |a / b| < 0.48


def _angle(source: Source, op: str) -> OpCase:
    """Points away from the origin and from the negative half of the second axis, where the function jumps."""
    first, second = _broadcasting(source.draw, 2)
    like = Values((-1, 1), near=(), large=20.0, signed=True)
    return source.case(op, [source.array(first, like, POSITIVE), source.array(second, like, POSITIVE)])


def _where(source: Source, op: str) -> OpCase:
    first, *others = _broadcasting(source.draw, 3)
    return source.case(op, [_mask(source.draw, first), *(source.array(shape) for shape in others)])


# ---- operations of one operand with parameters: params(draw, shape of the operand)


def _none(draw: Draw, shape: Shape) -> dict[str, Any]:
    return {}


def _with_ddof(draw: Draw, shape: Shape) -> dict[str, Any]:
    found = _reduction(draw, shape)
    count = math.prod(shape) if found["axis"] is None else math.prod(np.array(shape, int)[[*np.atleast_1d(
        np.array(found["axis"], int))]])
    return found | {"ddof": _int(draw, 0, min(2, int(count) - 1)) if count > 1 else 0}


def _one_axis(draw: Draw, shape: Shape) -> dict[str, Any]:
    return {"axis": _int(draw, -len(shape), len(shape) - 1)}


def _running(draw: Draw, shape: Shape) -> dict[str, Any]:
    return {"axis": _int(draw, -len(shape), len(shape) - 1) if shape and _rarely(draw, 2) else None}


def _turns(draw: Draw, shape: Shape) -> dict[str, Any]:
    axis = _axis(draw, len(shape))
    if isinstance(axis, tuple) and axis:
        return {"shift": tuple(_int(draw, -4, 4) for _ in axis), "axis": axis}
    return {"shift": _int(draw, -7, 7), "axis": None if axis == () else axis}


def _borders(draw: Draw, shape: Shape) -> dict[str, Any]:
    width = tuple((_int(draw, 0, 2), _int(draw, 0, 2)) for _ in shape)
    return {"pad_width": width, "constant_values": _one(draw, [0.0, 2.5])}


class Shaped(NamedTuple):
    """An operation of one operand: its parameters, given the operand's shape, and what the operand is like."""

    params: Callable[[Draw, Shape], dict[str, Any]]
    like: Values = Values()
    min_dims: int = 0
    empty: bool = True  # takes arrays without elements


_LOGITS = Values((-3, 0), large=8.0)
_SHAPED: dict[str, Shaped] = {
    "sum": Shaped(_reduction, _MILD),
    "mean": Shaped(_reduction, _MILD, empty=False),
    "prod": Shaped(_reduction, Values((-1, 1))),
    "max": Shaped(_reduction, Values((-2, 2), near=(), beside=True), empty=False),
    "min": Shaped(_reduction, Values((-2, 2), near=(), beside=True), empty=False),
    "var": Shaped(_with_ddof, _MILD, empty=False),
    "std": Shaped(_with_ddof, _MILD, empty=False),
    "logsumexp": Shaped(_reduction, _LOGITS, empty=False),
    "norm": Shaped(_reduction, _MILD),
    "cumsum": Shaped(_running, _MILD),
    "softmax": Shaped(_one_axis, _LOGITS, min_dims=1, empty=False),
    "log_softmax": Shaped(_one_axis, _LOGITS, min_dims=1, empty=False),
    "leaky_relu": Shaped(lambda draw, shape: {"slope": _one(draw, [0.01, 0.5, 0.0, -0.5])}, Values(beside=True)),
    "identity": Shaped(_none),
    "reshape": Shaped(lambda draw, shape: {"shape": _reshape(draw, shape)}),
    "transpose": Shaped(lambda draw, shape: {"axes": _permutation(draw, len(shape))}),
    "flip": Shaped(lambda draw, shape: {"axis": _axis(draw, len(shape))}),
    "roll": Shaped(_turns),
    "tril": Shaped(lambda draw, shape: {"k": _int(draw, -3, 3)}, min_dims=1),
    "triu": Shaped(lambda draw, shape: {"k": _int(draw, -3, 3)}, min_dims=1),
    "pad": Shaped(_borders, min_dims=1),
    "getitem": Shaped(lambda draw, shape: {"index": _index(draw, shape)}),
}


def _with_params(source: Source, op: str) -> OpCase:
    spec = _SHAPED[op]
    shape = _shape(source.draw, spec.min_dims, allow_zero=spec.empty)
    a = source.array(shape, spec.like)
    if op in ("var", "std") and 0 in a.strides:  # equal numbers whose mean is exact, as that of powers of two is
        a = np.broadcast_to(np.sign(a[:1]) * np.exp2(np.round(np.log2(abs(a[:1]) + (a[:1] == 0)))), shape)
    return source.case(op, [a], spec.params(source.draw, shape))


# ---- the others


def _broadcast_to(source: Source, op: str) -> OpCase:
    shape = _shape(source.draw)
    return source.case(op, [source.array(_stretchable(source.draw, shape))], {"shape": shape})


def _scatter_add(source: Source, op: str) -> OpCase:
    shape = _shape(source.draw, 1)
    index = _index(source.draw, shape)

    def scatter(a: Tensor) -> Any:
        on_device = tuple(arrays.place(p, a.data) if isinstance(p, np.ndarray) else p for p in index)
        return F.scatter_add(a, index=on_device, shape=shape)

    a = source.array(np.zeros(shape)[index].shape)
    where = ", ".join(map(_part, index))
    return source.case(op, [a], text=f"scatter_add(a, index=({where}), shape={shape})", fn=scatter)


def _astype(source: Source, op: str) -> OpCase:
    """To float64. A narrower dtype makes a staircase of a function, whose slope is no derivative: the rule is the same
    for all of them, and the cast of the gradient that comes back is seen in the narrower rows."""
    return source.case(op, [source.array(_shape(source.draw))], {"dtype": "float64"})


def _to(source: Source, op: str) -> OpCase:
    def to_host(a: Tensor) -> Any:
        return F.to(a, device="cpu", back=a.device)

    return source.case(op, [source.array(_shape(source.draw))], text="a.to('cpu')", fn=to_host)


def _concatenate(source: Source, op: str) -> OpCase:
    shape = list(_shape(source.draw, 1))
    axis = _int(source.draw, -len(shape), len(shape) - 1)
    parts = []
    for _ in range(_int(source.draw, 1, 3)):
        shape[axis] = _int(source.draw, 0, 3)
        parts.append(source.array(tuple(shape)))
    return source.case(op, parts, {"axis": axis})


def _einsum(source: Source, op: str) -> OpCase:
    subscripts, drawn = _einsum_spec(source.draw)
    return source.case(op, [source.array(shape, _MILD) for shape in drawn], {"subscripts": subscripts})


def _matmul(source: Source, op: str) -> OpCase:
    """Matrices, stacks of them that broadcast, and vectors on either side."""
    draw = source.draw
    m, k, n = (_int(draw, 1, 3) for _ in range(3))
    if _rarely(draw, 16):
        m, k, n = _one(draw, [(0, k, n), (m, 0, n), (m, k, 0)])
    left, right = _broadcasting(draw, 2, max_dims=2, max_side=2)
    first, second = (*left, m, k), (*right, k, n)
    vectors = _int(draw, 0, 5)
    if vectors in (3, 5):
        first = (k,)
    if vectors in (4, 5):
        second = (k,)
    return source.case(op, [source.array(first, _MILD), source.array(second, _MILD)])


def _cross_entropy(source: Source, op: str) -> OpCase:
    draw = source.draw
    shape = _shape(draw, 1, allow_zero=False)
    axis = _int(draw, -len(shape), len(shape) - 1)
    classes = shape[axis]
    rows = shape[: axis % len(shape)] + shape[axis % len(shape) + 1 :]
    labels = np.resize(np.array([_int(draw, 0, classes - 1) for _ in range(3)], np.uint8), rows)
    params = {"axis": axis, "reduction": _one(draw, ["mean", "sum", "none"])}
    fn = functools.partial(call, "softmax_cross_entropy", params)
    text = written("softmax_cross_entropy", "ab", params)
    return source.case(op, [source.array(shape, _LOGITS), labels], text=text, fn=fn)


def _from_table(source: Source, op: str) -> OpCase:
    """A row of the operation table of a function that is composed of primitives."""
    row = _one(source.draw, [row for row in OPS if row.function == op])
    rng = np.random.default_rng(_int(source.draw, 0, 99))
    sample = _one(source.draw, row.samples(rng))
    operands = [a.astype(source.dtype) if a.dtype.kind == "f" else a for a in sample]
    return source.case(op, operands, text=row.name, fn=functools.partial(row.call, F))


def _registered(source: Source, op: str) -> OpCase:
    """A primitive of a user: taken for elementwise, with its parameters as they are by default."""
    function, like = getattr(F, op), Values((-1, 0), large=3.0)  # it may be an exponential
    if function.prim.variadic:
        shape = _shape(source.draw)
        operands = [source.array(shape, like) for _ in range(_int(source.draw, 1, 3))]
        return source.case(op, operands, fn=lambda *operands: function(operands))
    rules = function.prim.rules
    operands = [source.array(shape, like) for shape in _broadcasting(source.draw, len(rules))]
    return source.case(op, operands, wrt=[i for i, rule in enumerate(rules) if rule is not None])


_CASES: dict[str, Callable[[Source, str], OpCase]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_SHAPED, _with_params),
    **dict.fromkeys(["maximum", "minimum", "fmax", "fmin"], _choice),
    **dict.fromkeys(["mod", "floor_divide"], _quotient),
    "power": _power,
    "arctan2": _angle,
    "where": _where,
    "broadcast_to": _broadcast_to,
    "scatter_add": _scatter_add,
    "astype": _astype,
    "to": _to,
    "concatenate": _concatenate,
    "einsum": _einsum,
    "matmul": _matmul,
    "cross_entropy": _cross_entropy,
}


def op_names() -> list[str]:
    """Every registered differentiable primitive, those of users included."""
    functions = [*vars(F).values(), *vars(ops).values()]  # F.where has NumPy's signature, and is not the row itself
    prims = (getattr(function, "prim", None) for function in functions)
    return sorted({prim.name for prim in prims if prim is not None and prim.differentiable})


@st.composite
def _drawn(draw: Draw, make: Callable[[Source, str], OpCase], op: str, dtype: Any) -> OpCase:
    return make(Source(draw, dtype), op)


def op_cases(name: str, dtype: Any = np.float64) -> st.SearchStrategy[OpCase]:
    """Calls of an operation, with all of its parameters: operands that broadcast on either side, 0-d and zero-size ones
    and all layouts; values at kinks and ties and beside them, badly scaled ones, those near the ends of the domain.

    `name`: a primitive (`op_names()`), a function that is composed of primitives and has a row in the operation table
    ("gelu", "sort"), or a primitive that you registered; this is taken for elementwise, on numbers of either sign.
    `dtype`: of the operands; a narrower one has a narrower range of values.
    """
    make = _CASES.get(name)
    if make is None and any(row.function == name for row in OPS):
        make = _from_table
    if make is None and name in op_names():
        make = _registered
    if make is None:
        known = [*op_names(), *(row.function for row in OPS)]
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else "op_names() lists those there are"
        raise ValueError(f"op_cases: no operation {name!r}: {hint}")
    return _drawn(make, name, dtype)


# ---- graphs -------------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """One operation of a graph: the places of its operands among the inputs and the results so far."""

    op: str
    places: tuple[int, ...]
    params: dict[str, Any]


GRAPH_OPS: tuple[str, ...] = (
    "multiply", "add", "subtract", "maximum", "matmul", "concatenate", "negative", "sin", "tanh", "square", "exp",
    "sigmoid", "identity", "transpose", "reshape", "getitem", "flip", "sum", "mean", "cumsum", "broadcast_to",
)
"""What graphs are made of unless the caller names others."""


@functools.cache
def _plans(names: tuple[str, ...], depth: int) -> st.SearchStrategy[list[tuple[str, int, bool]]]:
    """Lists of (operation, how far back its second operand lies, are they exchanged?), of which any may be left out."""
    return st.lists(st.tuples(st.sampled_from(names), _integers(0, depth), st.booleans()), min_size=1, max_size=depth)


def _step(draw: Draw, op: str, back: int, exchanged: bool, seen: list[Any]) -> Step | None:
    """A call of `op` on the last value and, for a second operand, on any; None where their shapes do not fit."""
    last = len(seen) - 1
    a = seen[last]
    if op in _SHAPED:
        spec = _SHAPED[op]
        fits = a.ndim >= spec.min_dims and (a.size or spec.empty)
        return Step(op, (last,), spec.params(draw, a.shape)) if fits else None
    if op == "broadcast_to":
        return Step(op, (last,), {"shape": (2, *a.shape)})
    if len(_ELEMENTWISE.get(op, "ab")) == 1:
        return Step(op, (last,), {})
    places = (last, max(last - back, 0))
    if exchanged:
        places = places[::-1]
    a, b = (seen[k] for k in places)
    if op == "concatenate":
        fits = a.ndim == b.ndim > 0 and a.shape[1:] == b.shape[1:]
    elif op == "matmul":
        fits = 0 < a.ndim < 3 and 0 < b.ndim < 3 and a.shape[-1] == b.shape[0]
    else:
        sides = zip(reversed(a.shape), reversed(b.shape), strict=False)
        fits = all(m == n or 1 in (m, n) for m, n in sides)
    return Step(op, places, {"axis": 0} if op == "concatenate" else {}) if fits else None


def _run(steps: Sequence[Step], inputs: Sequence[Any]) -> Any:
    seen = list(inputs)
    for op, places, params in steps:
        seen.append(call(op, params, *(seen[k] for k in places)))
    return seen[-1]


@st.composite
def graphs(
    draw: Draw, names: Sequence[str] = GRAPH_OPS, depth: int = 6, dtype: Any = np.float64
) -> OpCase:
    """Small expressions of up to `depth` operations, each applied to the result of the one before and, where it takes
    two operands, to any earlier value or to the same one: fan-out, one Tensor in both places, views. It is for mistakes
    that no operation shows alone, such as gradients that are added up wrongly, and shrinks to the fewest operations
    that show it."""
    if unknown := set(names) - {*_ELEMENTWISE, *_SHAPED, *GRAPH_OPS}:
        raise ValueError(
            f"graphs: {min(unknown)!r} is not one of the operations that graphs are made of: "
            f"{', '.join(sorted({*_ELEMENTWISE, *_SHAPED, *GRAPH_OPS}))}"
        )
    source = Source(draw, dtype)
    first = _shape(draw, allow_zero=False)
    like = Values((0, 0), near=(), large=2.5)  # ordinary: what is looked for lies in the structure
    inputs = [source.array(_stretchable(draw, first), like) for _ in range(_int(draw, 0, 1))]
    inputs.append(source.array(first, like))
    seen: list[Any] = [Tensor(a) for a in inputs]
    steps: list[Step] = []
    for op, back, exchanged in draw(_plans(tuple(names), depth)):
        step = _step(draw, op, back, exchanged, seen)
        if step is None:
            continue
        with np.errstate(all="ignore"):
            y = call(step.op, step.params, *(seen[k] for k in step.places))
        if y.size > 24 or y.ndim > 4 or not (np.isfinite(y.data).all() and (abs(y.data) < 50).all()):
            continue  # too large to check, or outside the domain
        steps.append(step)
        seen.append(y)
    letters = "abcdefghijklmnopqrstuvwxyz"
    lines = [
        f"{letters[len(inputs) + k]} = {written(op, [letters[i] for i in places], params)}"
        for k, (op, places, params) in enumerate(steps)
    ]
    text = "; ".join(lines) or letters[len(inputs) - 1]
    used = {i for step in steps for i in step.places}
    wrt = tuple(i for i in range(len(inputs)) if i in used) or (len(inputs) - 1,)
    return OpCase("graph", text, functools.partial(_graph, steps), tuple(inputs), wrt)


def _graph(steps: Sequence[Step], *inputs: Any) -> Any:
    return _run(steps, inputs) if steps else F.identity(inputs[-1])
