"""The operation table: every operation with sample operands and NumPy's answer. To test an operation, add a row.

A row is an expression in `xp` and its operands `a`, `b`, `c`, written once and run three ways: with `xp` the functions
on Tensors, with NumPy on Tensors (NumPy dispatches), and with NumPy on arrays, which is the reference wherever NumPy
has the function. The expression is the row's name too.

Samples are float64 and lie inside the domain, away from kinks and ties and from each other, so that differences can be
taken with a step of 1e-3. They include 0-d, one-element, zero-size, broadcast and non-contiguous operands. Operands
that are not floats (conditions, indices, labels) take part as plain arrays.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import arrays

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
Interval = tuple[float, float]
Sample = tuple[Array, ...]
Samples = Callable[[np.random.Generator], list[Sample]]


class Backend:
    """Where the operands live. This one is NumPy; another array library overrides the three methods."""

    name = "numpy"
    device = "cpu"

    def array(self, a: Array) -> Any:
        """A host array as an array of this backend, in the same layout where the backend has layouts."""
        return a

    def host(self, a: Any) -> Array:
        """An array of this backend as a host array."""
        return np.asarray(a)

    def freeze(self, a: Any) -> None:
        """Make an array read-only, where the backend can."""
        a.flags.writeable = False


class DeviceBackend(Backend):
    """The arrays of a device: "gpu", or a double of it that is registered under another name."""

    def __init__(self, name: str, device: str) -> None:
        self.name = name
        self.device = device

    def array(self, a: Array) -> Any:
        if a.flags.c_contiguous:
            return arrays.move(a, self.device)
        if 0 in a.strides:  # stretched by broadcasting
            once = self.array(a[tuple(slice(None if stride else 1) for stride in a.strides)])
            return arrays.namespace(type(once)).broadcast_to(once, a.shape)
        order = sorted(range(a.ndim), key=lambda k: -abs(a.strides[k]))
        flips = tuple(slice(None, None, -1 if a.strides[k] < 0 else None) for k in order)
        plain = a.transpose(order)[flips]
        gap = max(plain.strides[-1] // a.itemsize, 1)
        moved = arrays.move(np.array(plain.repeat(gap, -1) if gap > 1 else plain, order="C"), self.device)
        moved = moved[(..., slice(None, None, gap))][flips]
        return moved.transpose(sorted(range(a.ndim), key=order.__getitem__))

    def host(self, a: Any) -> Array:
        return arrays.to_host(a)

    def freeze(self, a: Any) -> None:
        """Device arrays cannot be made read-only."""


@dataclass(frozen=True)
class Op:
    """One operation with one choice of its parameters."""

    name: str  # as a user would write it: "sum(a, axis=0)"
    call: Callable[..., Any]  # call(xp, *operands)
    samples: Samples  # samples(rng) -> tuples of float64 operands
    reference: Callable[..., Any] | None = None  # on NumPy arrays, where NumPy has no such function
    domains: tuple[Interval, ...] = ()  # of an elementwise function: its operands may have any shapes that broadcast
    smooth: bool = True  # False: has kinks or jumps; the samples avoid them
    analytic: bool = False  # the reference takes complex arrays and is complex differentiable

    @property
    def function(self) -> str:
        """The name of the function alone: "sum"."""
        return self.name.partition("(")[0]

    def expected(self, *operands: Any) -> Any:
        """What the operation gives on NumPy arrays."""
        return self.call(np, *operands) if self.reference is None else self.reference(*operands)

    def cases(self) -> list[Sample]:
        """The samples, the same at every call."""
        return self.samples(np.random.default_rng(zlib.crc32(self.name.encode())))


OPS: list[Op] = []

# ---- samples ------------------------------------------------------------------------------------------------------

REAL: Interval = (-2.0, 2.0)
POSITIVE: Interval = (0.3, 3.0)


def draw(
    rng: np.random.Generator, shapes: Sequence[Shape], domains: Sequence[Interval] = (REAL,), away: Sequence[float] = ()
) -> Sample:
    """Operands with values inside their domains, no two alike among all, none near 0 or a number in `away`."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    cells = sum(sizes) + sum(sizes) % 2  # an even number: the middle of a domain, 0 in `REAL`, lies between two cells
    places = (rng.permutation(cells) + rng.uniform(0.3, 0.7, cells)) / max(cells, 1)
    out = []
    for shape, size, (low, high) in zip(shapes, sizes, [*domains] * len(shapes), strict=False):
        values, places = low + (high - low) * places[:size], places[size:]
        for kink in away:
            values = np.where(np.abs(values - kink) < 0.02, values + 0.05, values)
        out.append(values.reshape(shape))
    return tuple(out)


def _transposed(a: Array) -> Array:
    return np.ascontiguousarray(a.T).T


def _strided(a: Array) -> Array:
    wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1]))
    wide[..., ::2] = a
    return wide[..., ::2]


def _reversed(a: Array) -> Array:
    return np.ascontiguousarray(a[::-1])[::-1]


def shaped(*shapes: Any, domains: Sequence[Interval] = (REAL,), away: Sequence[float] = ()) -> Samples:
    """Samples with these operand shapes (one shape, or one for each operand), the first of them in all layouts too."""

    def samples(rng: np.random.Generator) -> list[Sample]:
        rows: list[Any] = [shape if shape and isinstance(shape[0], tuple) else (shape,) for shape in shapes]
        out = [draw(rng, row, domains, away) for row in rows]
        for layout in (_transposed, _strided, _reversed):
            out.append(tuple(layout(a) if a.ndim else a for a in draw(rng, rows[0], domains, away)))
        return out

    return samples


UNARY: tuple[Any, ...] = ((2, 3), (), (1,), (3,), (0,), (2, 0, 2))
BINARY: tuple[Any, ...] = (
    ((2, 3), (2, 3)),
    ((), ()),
    ((), (2, 3)),
    ((3,), ()),
    ((1,), (2, 3)),
    ((2, 3), (1,)),
    ((3,), (2, 3)),
    ((2, 1), (1, 3)),
    ((2, 1, 3), (2, 1)),
    ((1,), ()),
    ((0,), ()),
    ((1,), (0,)),
    ((2, 0), (2, 1)),
)
TERNARY: tuple[Any, ...] = (
    ((2, 3), (2, 3), (2, 3)),
    ((), (), ()),
    ((2, 3), (), (3,)),
    ((1,), (2, 1), (3,)),
    ((), (2, 3), (1, 1)),
    ((0,), (1,), ()),
)


def _quotients(rng: np.random.Generator) -> list[Sample]:
    """Operands of mod: a / b is no integer, and both signs occur."""
    out: list[Sample] = []
    for shape_a, shape_b in (*BINARY, ((5,), (5,))):
        b = np.asarray(draw(rng, [shape_b], [POSITIVE])[0] * rng.choice([-1, 1], shape_b))
        if shape_a == np.broadcast_shapes(shape_a, shape_b):
            out.append((np.asarray((rng.integers(-2, 3, shape_a) + rng.uniform(0.2, 0.8, shape_a)) * b), b))
        else:
            out.append((np.asarray(rng.uniform(0.2, 0.28, shape_a)), b))  # 0 < |a / b| < 1
    return out


def _chosen(rng: np.random.Generator) -> list[Sample]:
    """A condition and two choices."""
    return [(np.asarray(rng.random(shapes[0]) < 0.5), *draw(rng, shapes[1:])) for shapes in TERNARY]


def _limited(rng: np.random.Generator) -> list[Sample]:
    """Operands of clip: inside the limits and outside on both sides, never near one."""
    limits = shaped(*TERNARY, domains=[REAL, (-1.0, -0.6), (0.6, 1.0)])(rng)
    return [(np.asarray(np.where(abs(a) < 0.8, 0.6 * a, a + np.sign(a) * 0.3)), low, high) for a, low, high in limits]


def _labelled(*shapes: Shape, axis: int = -1) -> Samples:
    """Logits and labels."""

    def samples(rng: np.random.Generator) -> list[Sample]:
        out: list[Sample] = []
        for (z,) in shaped(*shapes)(rng):
            out.append((z, rng.integers(0, z.shape[axis], np.delete(z.shape, axis)).astype(np.uint8)))
        return out

    return samples


def _indexed(rng: np.random.Generator) -> list[Sample]:
    """Operands with an array that indexes their first axis: integers with duplicates, of several shapes and dtypes."""
    indices = np.array([2, 0, 2, -1]), np.array([[1], [1]], np.uint8), np.array(1), np.zeros((0, 2), np.int32)
    return [(*draw(rng, [shape]), index) for index in indices for shape in ((3,), (3, 2))]


def _masked(rng: np.random.Generator) -> list[Sample]:
    """Operands with a mask of their shape."""
    operands = [a for shape in ((3,), (2, 3), (0,), ()) for a in draw(rng, [shape])]
    return [(a, mask) for a in operands for mask in (np.asarray(a > 0), np.zeros(a.shape, bool))]


def _lined_up(rng: np.random.Generator) -> list[Sample]:
    """Operands with indices along axis 1."""
    out: list[Sample] = [(a, np.argsort(rng.random(a.shape), 1)) for (a,) in shaped((2, 3), (2, 3, 2), (0, 3))(rng)]
    return out + [(*draw(rng, [shape]), np.array([[2, 0, 2]])) for shape in ((2, 3), (1, 3))]  # the indices broadcast


# ---- rows ---------------------------------------------------------------------------------------------------------


def _sigmoid(a: Any) -> Any:
    return 1 / (1 + np.exp(-a))


def _logsumexp(a: Any, **keywords: Any) -> Any:
    return np.log(np.sum(np.exp(a), **keywords))


def _log_softmax(a: Any, axis: int = -1) -> Any:
    return a - _logsumexp(a, axis=axis, keepdims=True)


def _cross_entropy(a: Any, labels: Array, axis: int = -1) -> Any:
    hot = np.moveaxis(np.eye(a.shape[axis], dtype=bool)[labels], -1, axis)
    return -np.sum(hot * _log_softmax(a, axis), axis=axis)


def _norm(xp: Any, *args: Any, **keywords: Any) -> Any:
    return getattr(xp, "linalg", xp).norm(*args, **keywords)


_SCOPE: dict[str, Any] = {
    "np": np,
    "sigmoid": _sigmoid,
    "logsumexp": _logsumexp,
    "log_softmax": _log_softmax,
    "cross_entropy": _cross_entropy,
    "norm": _norm,
}


def row(
    text: str,
    *shapes: Any,
    within: Sequence[Interval] = (REAL,),
    away: Sequence[float] = (),
    samples: Samples | None = None,
    reference: str | None = None,
    **properties: Any,
) -> None:
    """Add the row of an expression, for operands of these shapes or these samples; `reference` is one too."""
    operands = ", ".join("abc"[: "abc".index(max(re.findall(r"\b[abc]\b", text))) + 1])
    OPS.append(
        Op(
            text.replace("xp.", "").replace("xp, ", ""),
            eval(f"lambda xp, {operands}: {text}", _SCOPE),
            samples or shaped(*shapes, domains=within, away=away),
            reference=eval(f"lambda {operands}: {reference}", _SCOPE) if reference else None,
            **properties,
        )
    )


def elementwise(names: str, *domains: Interval, **properties: Any) -> None:
    """Add the rows of functions of NumPy with these domains of their operands."""
    for name in names.split():
        if len(domains) == 1:
            row(f"xp.{name}(a)", *UNARY, within=domains, domains=domains, **properties)
        else:
            row(f"xp.{name}(a, b)", *BINARY, within=domains, domains=domains, **properties)


def linear(text: str, *shapes: Any) -> None:
    """Add the row of an expression that takes, moves, repeats or adds elements of its operands."""
    row(text, *shapes, analytic=True)


# ---- arithmetic and elementary functions

elementwise("add subtract multiply", REAL, REAL, analytic=True)
elementwise("divide", REAL, POSITIVE, analytic=True)
elementwise("power", POSITIVE, REAL, analytic=True)
elementwise("negative positive square exp exp2 expm1 sin cos sinh cosh tanh arctan arcsinh", REAL, analytic=True)
elementwise("reciprocal sqrt log log2 log10 log1p", POSITIVE, analytic=True)
elementwise("tan", (-1.2, 1.2), analytic=True)
elementwise("arcsin arccos arctanh", (-0.9, 0.9), analytic=True)
elementwise("arccosh", (1.2, 3.0), analytic=True)
elementwise("cbrt", POSITIVE)
elementwise("absolute abs fabs sign", REAL, smooth=False)
elementwise("logaddexp hypot arctan2", REAL, REAL)
elementwise("maximum minimum fmax fmin", REAL, REAL, smooth=False)

for _text in "a + b", "a - b", "a * b":
    row(_text, *BINARY, analytic=True)
row("a / b", *BINARY, within=[REAL, POSITIVE], analytic=True)
row("a ** b", *BINARY, within=[POSITIVE, REAL], analytic=True)
for _text in "-a", "+a", "3 + a", "a - 0.5", "0.5 - a", "2 * a", "a / 4", "a * a", "a ** 1", "a ** 2", "a ** 3":
    row(_text, *UNARY, analytic=True)
for _text in "2 / a", "2 ** a", "a ** a", "a ** 0.5", "a ** -1", "a ** 1.5", "xp.power(a, 2)", "xp.pow(a, 3)":
    row(_text, *UNARY, within=[POSITIVE], analytic=True)
row("a ** 0", *UNARY, analytic=True)
row("abs(+a)", *UNARY, smooth=False)
for _text in "xp.mod(a, b)", "xp.remainder(a, b)", "a % b", "xp.floor_divide(a, b)", "a // b":
    row(_text, samples=_quotients, smooth=False)
for _text in "a % 0.9", "a // 0.9":
    row(_text, *UNARY, away=(-1.8, -0.9, 0.9, 1.8), smooth=False)
row("5 % a", *UNARY, within=[(1.7, 2.4)], smooth=False)
row("5 // a", *UNARY, within=[(1.7, 2.4)], smooth=False)
for _name in "exp", "log", "sqrt", "tanh":
    row(f"a.{_name}()", *UNARY, within=[POSITIVE], reference=f"np.{_name}(a)", analytic=True)

# ---- choices

row("xp.where(a, b, c)", samples=_chosen, analytic=True)
row("xp.where(a, b, 0) + xp.where(a, 2.5, c)", samples=_chosen, analytic=True)
row("xp.where(a > 0, a * a, -a)", *UNARY, smooth=False)
for _text in (
    "xp.clip(a, -0.5, 0.7)",
    "xp.clip(a, a_min=-0.5, a_max=0.7)",
    "xp.clip(a, min=-0.5, max=0.7)",
    "xp.clip(a, -0.5, None)",
    "xp.clip(a, max=0.7)",
    "a.clip(-0.5, 0.7)",
):
    row(_text, *UNARY, away=(-0.5, 0.7), smooth=False)
row("xp.clip(a, b, c)", samples=_limited, smooth=False)
row(
    "xp.select([a > 1, a > -1], [a * a, b], default=-1.0)",
    *(((2, 3), (2, 3)), ((2, 3), ()), ((3,), (1,)), ((0,), (0,))),
    away=(-1, 1),
    smooth=False,
)
row("xp.nan_to_num(a)", *UNARY, smooth=False)
row("xp.nan_to_num(a, nan=1.0, posinf=2.0, neginf=-2.0)", *UNARY, smooth=False)

# ---- activations and losses: NumPy does not have them

for _text in "xp.relu(a)", "a.relu()":
    row(_text, *UNARY, reference="np.maximum(a, 0)", smooth=False)
row("xp.leaky_relu(a)", *UNARY, reference="np.where(a > 0, a, 0.01 * a)", smooth=False)
row("xp.leaky_relu(a, slope=0.2)", *UNARY, reference="np.where(a > 0, a, 0.2 * a)", smooth=False)
for _text in "xp.sigmoid(a)", "a.sigmoid()":
    row(_text, *UNARY, reference="sigmoid(a)", analytic=True)
row("xp.softplus(a)", *UNARY, reference="np.log1p(np.exp(a))", analytic=True)
row("xp.silu(a)", *UNARY, reference="a * sigmoid(a)", analytic=True)
row(
    "xp.gelu(a)",
    *UNARY,
    reference="0.5 * a * (1 + np.tanh((2 / np.pi) ** 0.5 * (a + 0.044715 * a * a * a)))",
    analytic=True,
)
for _axis, _shapes in (-1, [(2, 3), (3,), (2, 1), (0, 3), (2, 2, 3)]), (0, [(2, 3), (3, 1), (2, 0)]), (1, [(2, 3, 2)]):
    _softmax = f"np.exp(log_softmax(a, {_axis}))"
    row(f"xp.softmax(a, axis={_axis})", *_shapes, reference=_softmax, analytic=True)
    row(f"xp.log_softmax(a, axis={_axis})", *_shapes, reference=f"log_softmax(a, {_axis})", analytic=True)
for _text in "xp.softmax(a)", "a.softmax()":
    row(_text, (2, 3), reference="np.exp(log_softmax(a))", analytic=True)
for _text in "xp.log_softmax(a)", "a.log_softmax()":
    row(_text, (2, 3), reference="log_softmax(a)", analytic=True)
for _text in "axis=0", "axis=-1, keepdims=True", "axis=(0, -1)", "axis=None, keepdims=True", "axis=()":
    row(f"xp.logsumexp(a, {_text})", (2, 3), (1, 2), (2, 3, 2), reference=f"logsumexp(a, {_text})", analytic=True)
row("xp.logsumexp(a)", (2, 3), (), (1,), reference="logsumexp(a)", analytic=True)
row("xp.logsumexp(a, axis=1)", (0, 2), (2, 3), reference="logsumexp(a, axis=1)", analytic=True)
row("a.logsumexp(axis=0)", (2, 3), reference="logsumexp(a, axis=0)", analytic=True)

_LOGITS = _labelled((2, 3), (3,), (2, 1), (2, 2, 3))
_SHARES: Any = {"within": [REAL, (0.1, 0.9)], "analytic": True}
row("xp.softmax_cross_entropy(a, b)", samples=_LOGITS, reference="np.mean(cross_entropy(a, b))", analytic=True)
row("xp.mse(a, b)", *BINARY[:4], reference="np.mean((a - b) ** 2)", analytic=True)
for _reduction, _numpy in ("mean", "np.mean"), ("sum", "np.sum"), ("none", ""):
    _text = f"reduction='{_reduction}'"
    row(f"xp.mse(a, b, {_text})", *BINARY[:4], reference=f"{_numpy}((a - b) ** 2)", analytic=True)
    row(
        f"xp.softmax_cross_entropy(a, b, {_text})",
        samples=_LOGITS,
        reference=f"{_numpy}(cross_entropy(a, b))",
        analytic=True,
    )
    row(
        f"xp.softmax_cross_entropy(a, b / 2, {_text})",  # shares of the classes
        *(((2, 3), (2, 3)), ((3,), (3,)), ((2, 2, 3), (2, 2, 3))),
        reference=f"{_numpy}(-np.sum(b / 2 * log_softmax(a), axis=-1))",
        **_SHARES,
    )
for _axis in 0, 1:
    row(
        f"xp.softmax_cross_entropy(a, b, axis={_axis}, reduction='none')",
        samples=_labelled((2, 3), (3, 2, 2), axis=_axis),
        reference=f"cross_entropy(a, b, {_axis})",
        analytic=True,
    )
row(
    "xp.softmax_cross_entropy(a, b, axis=0)",
    *(((2, 3), (2, 3)), ((3,), (3,))),
    reference="np.mean(-np.sum(b * log_softmax(a, 0), axis=0))",
    **_SHARES,
)
row(
    "xp.softmax_cross_entropy(a, b, axis=-1, reduction='sum')",
    samples=_labelled((0, 3)),
    reference="np.sum(cross_entropy(a, b))",
)

# ---- products

_MATMUL: tuple[Any, ...] = (
    ((2, 3), (3, 4)),
    ((3,), (3,)),
    ((3,), (3, 2)),
    ((2, 3), (3,)),
    ((2, 2, 3), (3, 2)),
    ((3,), (2, 3, 2)),
    ((2, 2, 3), (3,)),
    ((2, 3), (2, 3, 2)),
    ((2, 1, 2, 3), (2, 3, 2)),
    ((1, 2, 3), (2, 3, 1)),
    ((2, 1), (1, 3)),
    ((1, 1), (1, 1)),
    ((1,), (1, 2)),
    ((2, 0), (0, 3)),
    ((0,), (0,)),
    ((0, 3), (3, 2)),
    ((0, 2, 3), (3, 2)),
)
_SCALED: tuple[Any, ...] = (((), ()), ((), (3,)), ((2, 3), ()), ((0,), ()))
_DOT: tuple[Any, ...] = (*(pair for pair in _MATMUL if len(pair[1]) <= 2), *_SCALED)
linear("xp.matmul(a, b)", *_MATMUL)
linear("a @ b", *_MATMUL)
linear("xp.dot(a, b)", *_DOT, ((3,), (2, 3, 2)), ((2, 3), (2, 3, 2)), ((2, 1, 3), (2, 3, 1)))
linear("a.dot(b)", *_DOT)
linear("xp.inner(a, b)", ((2, 3), (4, 3)), ((3,), (3,)), ((3,), (2, 3)), ((2, 3), (2, 1, 3)), ((2, 0), (3, 0)))
linear("xp.inner(a, b) * 2", *_SCALED)
linear("xp.outer(a, b)", ((2,), (3,)), ((2, 2), (3,)), ((), (3,)), ((), ()), ((0,), (2,)))
row("xp.vdot(a, b)", ((3,), (3,)), ((2, 3), (2, 3)), ((2, 3), (6,)), ((), ()), ((0,), (0,)))  # conjugates: not analytic
row("xp.vecdot(a, b)", ((3,), (3,)), ((2, 3), (3,)), ((2, 1, 3), (2, 3)), ((2, 0), (0,)))  # conjugates too
linear("xp.kron(a, b)", ((2, 3), (2, 2)), ((2,), (3,)), ((3,), (2, 2)), ((2, 1, 2), (2, 2)), ((0,), (2,)), *_SCALED)
linear("xp.tensordot(a, b)", ((2, 2, 3), (2, 3, 2)))
linear("xp.tensordot(a, b, 0)", ((2, 3), (2,)), ((), (2,)), ((), ()))
linear("xp.tensordot(a, b, axes=1)", ((2, 3), (3, 2)), ((3,), (3, 2)), ((2, 0), (0, 2)))
linear("xp.tensordot(a, b, axes=2)", ((2, 2, 3), (2, 3, 2)), ((2, 3), (2, 3)))
linear("xp.tensordot(a, b, axes=(0, 1))", ((3, 2), (2, 3)))
linear("xp.tensordot(a, b, (-1, 0))", ((2, 3), (3, 2)))
linear("xp.tensordot(a, b, ((0, 1), (1, 0)))", ((2, 3), (3, 2)), ((2, 3, 2), (3, 2)))
linear("xp.tensordot(a, b, [[1, -1], [0, 2]])", ((2, 3, 2), (3, 1, 2)))
linear("xp.tensordot(a, b, axes=((), ()))", ((2,), (3,)))
linear("xp.tensordot(a, b, np.int64(1))", ((2, 3), (3, 2)))
linear("xp.tensordot(a, b, (np.int64(0), np.array([1])))", ((3, 2), (2, 3)))


def einsum(subscripts: str, *shapes: Any) -> None:
    """Add a row of einsum."""
    operands = ", ".join("abc"[: subscripts.count(",") + 1])
    linear(f"xp.einsum('{subscripts}', {operands})", *shapes)


einsum("ij,jk->ik", ((2, 3), (3, 2)), ((2, 0), (0, 2)), ((2, 1), (3, 2)), ((2, 3), (1, 2)))
einsum("ij,jk", ((2, 3), (3, 2)))
einsum("ij , jk -> ik", ((2, 3), (3, 2)))
einsum("ij,kj->ik", ((2, 3), (2, 3)))
einsum("i,i->", ((3,), (3,)), ((1,), (3,)), ((0,), (0,)), ((0,), (1,)), ((1,), (0,)))
einsum("i,i->i", ((3,), (3,)), ((1,), (3,)), ((3,), (1,)))
einsum("i,j", ((2,), (3,)))
einsum("i,j->ji", ((2,), (3,)))
einsum("i,j->", ((2,), (3,)))
einsum("i,ij,j->", ((2,), (2, 3), (3,)), ((1,), (2, 3), (1,)))
einsum("ij,jk,kl->il", ((2, 3), (3, 2), (2, 2)))
einsum("ij,j,j->i", ((2, 3), (3,), (1,)))
linear("xp.einsum('ij,jk,kl->il', a, b, c, optimize=False)", ((2, 3), (3, 2), (2, 2)), ((2, 3), (1, 2), (2, 2)))
linear("xp.einsum('ij,jk->ik', a, b, optimize=True)", ((2, 3), (3, 2)), ((2, 1), (3, 2)), ((2, 0), (0, 2)))
linear("xp.einsum('i,j,k->jk', a, b, c, optimize=['einsum_path', (0, 2), (0, 1)])", ((2,), (3,), (2,)))
einsum("bij,bjk->bik", ((2, 2, 3), (2, 3, 2)), ((1, 2, 3), (2, 3, 2)))
einsum("...ij,...jk->...ik", ((2, 2, 3), (2, 3, 2)), ((2, 3), (2, 3, 2)), ((2, 1, 2, 3), (3, 3, 2)), ((2, 3), (3, 2)))
einsum("...i,i", ((2, 3), (3,)), ((3,), (3,)))
einsum("i...,i...", ((2, 3), (2, 3)), ((2, 3, 2), (2, 2)))
einsum("ij...,jk->ik...", ((2, 3, 2), (3, 2)))
einsum("...,...->...", ((2, 3), (3,)), ((), ()), ((2, 1), (1, 3)))
einsum(",i->i", ((), (3,)))
einsum(",", ((), ()))
einsum("ij,ij->i", ((2, 3), (2, 3)), ((1, 3), (2, 3)), ((2, 1), (1, 3)))
einsum("iij,jk->ik", ((2, 2, 3), (3, 2)))
einsum("ij,ijj->", ((2, 3), (2, 3, 3)))
einsum("aab,bcc->ac", ((2, 2, 3), (3, 2, 2)))
einsum("ijk,k->ji", ((2, 3, 2), (2,)))
einsum("ij->ji", (2, 3), (0, 2))
einsum("ba", (2, 3))
einsum("ij->", (2, 3), (0, 3))
einsum("ij->j", (2, 3), (2, 0))
einsum("ii->i", (3, 3), (1, 1), (0, 0))
einsum("ii", (3, 3))
einsum("ii->", (2, 2))
einsum("iji->j", (2, 3, 2))
einsum("iji->ij", (2, 3, 2))
einsum("iii->i", (2, 2, 2))
einsum("iijj->ij", (2, 2, 3, 3))
einsum("...i->...", (2, 3), (3,))
einsum("...ij->...ji", (2, 3), (2, 2, 3))
einsum("i...->...", (2, 3))
einsum("ii...->i...", (2, 2, 3), (2, 2))
einsum("->", ())
einsum("...", (2, 3), ())

# ---- reductions


def reduction(name: str, text: str, *shapes: Any, **properties: Any) -> None:
    """Add the row of the function with these arguments, and of the method where there is one."""
    row(f"xp.{name}(a, {text})" if text else f"xp.{name}(a)", *shapes, **properties)
    if name in ("sum", "mean", "prod", "max", "min", "var", "std"):
        row(f"a.{name}({text})", *shapes, **properties)


_FULL: Any = ((3,), (2, 3), ())
_PARTIAL: Any = ((2, 3), (1, 3), (2, 3, 2))
_REDUCTIONS: list[tuple[str, Any, Any]] = [  # arguments, shapes, shapes that sum and prod take too
    ("", _FULL, [(0,)]),
    ("axis=None, keepdims=True", _FULL, [(0, 2)]),
    ("axis=0", _PARTIAL, [(0, 3), (3, 0)]),
    ("axis=1, keepdims=True", _PARTIAL, [(0, 3), (3, 0)]),
    ("axis=-1", _PARTIAL, [(0, 3)]),
    ("axis=(0, 1)", _PARTIAL, [(0, 3), (3, 0)]),
    ("axis=(-1, 0), keepdims=True", _PARTIAL, [(3, 0)]),
    ("axis=()", _PARTIAL, [(3, 0)]),
]
for _text, _shapes, _empty in _REDUCTIONS:
    reduction("sum", _text, *_shapes, *_empty, analytic=True)
    reduction("prod", _text, *_shapes, *_empty, analytic=True)
    reduction("mean", _text, *_shapes, analytic=True)
    reduction("max", _text, *_shapes, smooth=False)
    reduction("min", _text, *_shapes, smooth=False)
    if _text != "axis=()":  # of one element the variance is constant, and std has a kink
        _spread = [shape for shape in _shapes if shape not in ((), (1, 3))]
        _more = ", ddof=1" if _text else "ddof=1"
        for _name in "var", "std":
            reduction(_name, _text, *_spread)
            reduction(_name, _text + _more, *_spread)
reduction("var", "axis=0, ddof=0.5", (3,), (3, 2))
reduction("max", "axis=1", (0, 3), (2, 3), smooth=False)
reduction("amax", "axis=0", (2, 3), smooth=False)
reduction("amin", "-1", (2, 3), smooth=False)
reduction("nansum", "axis=0", (2, 3), (3,), smooth=False)
for _name in "sum", "mean", "prod":
    reduction(_name, "0, None, None, True", (2, 3), analytic=True)
for _name in "var", "std":
    reduction(_name, "0, None, None, 1, True", (2, 3))
for _name in "max", "min":
    reduction(_name, "0, None, True", (2, 3), smooth=False)
linear("xp.sum(a, ())", ())
reduction("cumsum", "", (3,), (2, 3), (), (0,), analytic=True)
reduction("cumsum", "axis=None", (2, 3), analytic=True)
reduction("cumsum", "axis=0", (2, 3), (0, 2), (3,), analytic=True)
reduction("cumsum", "-1", (2, 3), (2, 3, 2), analytic=True)

row("norm(xp, a)", (2, 3), (3,), (2, 2, 3))
row("norm(xp, a, axis=0)", (2, 3), (3,), (2, 0))
row("norm(xp, a, axis=-1, keepdims=True)", (2, 3))
row("norm(xp, a, axis=(0, 1))", (2, 3), (2, 2, 3))
row("norm(xp, a, keepdims=True)", (2, 3))
row("norm(xp, a, 2)", (3,))
row("norm(xp, a, ord=2, axis=1)", (2, 3))
row("norm(xp, a, 'fro')", (2, 3))
row("norm(xp, a, ord='fro', axis=(-2, -1))", (2, 2, 3))
row("norm(xp, a, 3)", (3,))
row("norm(xp, a, ord=1.5, axis=0)", (3, 2))
for _text in "1", "np.inf", "-np.inf":
    row(f"norm(xp, a, {_text})", (3,), (1,), smooth=False)
    row(f"norm(xp, a, {_text}, 1, True)", (2, 3), smooth=False)

# ---- shapes and places

linear("xp.reshape(a, (3, 2))", (2, 3), (6,), (1, 6))
linear("xp.reshape(a, (-1, 2))", (2, 3), (0,), (2, 0))
linear("xp.reshape(a, 6)", (2, 3))
linear("xp.reshape(a, -1)", (2, 3), (), (0, 2))
linear("xp.reshape(a, [3, 2])", (2, 3))
linear("xp.reshape(a, shape=(3, 2))", (2, 3))
linear("xp.reshape(a, ())", (1,), (), (1, 1))
linear("a.reshape(3, 2)", (2, 3))
linear("a.reshape((3, -1))", (2, 3))
linear("a.reshape(-1)", (2, 3), ())
linear("xp.ravel(a)", (2, 3), (), (0, 2))
linear("a.ravel()", (2, 3))
linear("xp.transpose(a)", (2, 3), (3,), (), (2, 0, 3))
linear("xp.transpose(a, (1, 2, 0))", (2, 3, 2), (0, 2, 1))
linear("xp.transpose(a, axes=(2, 0, 1))", (2, 3, 2))
linear("xp.transpose(a, [-1, 0, 1])", (2, 3, 2))
linear("xp.matrix_transpose(a)", (2, 3), (2, 3, 2), (0, 2))
linear("a.T", (2, 3), (3,), ())
linear("a.transpose()", (2, 3))
linear("a.transpose(1, 0)", (2, 3))
linear("a.transpose((1, 0))", (2, 3))
linear("a.transpose(None)", (2, 3))
linear("xp.swapaxes(a, 0, -1)", (2, 3), (2, 3, 2), (3,))
linear("a.swapaxes(0, 1)", (2, 3))
linear("xp.moveaxis(a, 0, -1)", (2, 3, 2), (3,))
linear("xp.moveaxis(a, [0, 1], [-1, 0])", (2, 3, 2), (0, 1, 2))
linear("xp.moveaxis(a, source=-1, destination=0)", (2, 3))
linear("xp.squeeze(a)", (1, 3, 1), (1,), (), (2, 3), (1, 0))
linear("xp.squeeze(a, axis=0)", (1, 3), (1,))
linear("xp.squeeze(a, (0, -1))", (1, 3, 1))
linear("a.squeeze()", (1, 3))
linear("a.squeeze(1)", (2, 1))
linear("xp.expand_dims(a, 0)", (2, 3), (), (0,))
linear("xp.expand_dims(a, axis=-1)", (2, 3), ())
linear("xp.expand_dims(a, (0, 2))", (2, 3), (3,))
linear("xp.expand_dims(a, (-1, 0))", (3,))
linear("xp.atleast_1d(a)", (), (3,), (2, 3))
linear("xp.atleast_2d(a)", (), (3,), (2, 3), (0,))
linear("xp.atleast_3d(a)", (), (3,), (2, 3), (2, 1, 2), (0,))
linear("xp.concatenate(xp.atleast_2d(a, 2 * a))", (), (3,))
linear("xp.broadcast_to(a, (2, 3))", (3,), (), (1,), (2, 1), (2, 3))
linear("xp.broadcast_to(a, shape=[2, 2, 1])", (2, 1), ())
linear("xp.broadcast_to(a, 3)", (), (1,))
linear("xp.broadcast_to(a, (0, 3))", (1, 3), (), (0, 3))
linear("xp.full_like(a, xp.sum(a))", (2, 3), (), (0,))
linear("xp.full_like(a, a[0], shape=(2, 3))", (3,), (1, 3))
linear("xp.tile(a, 2)", (2, 3), (3,), (), (0,))
linear("xp.tile(a, (2, 1))", (2, 3), (3,), ())
linear("xp.tile(a, reps=(2, 1, 2))", (2, 3), (3,))
linear("xp.tile(a, [2])", (2, 2, 1))
linear("xp.tile(a, np.array([2, 2]))", (2, 3), (3,))
linear("xp.tile(a, 0)", (3,))
linear("xp.tile(a, ())", (3,))
linear("xp.repeat(a, 2)", (2, 3), (3,), (), (0,))
linear("xp.repeat(a, 2, axis=0)", (2, 3), (3,), (0, 2))
linear("xp.repeat(a, [1, 0, 2], axis=-1)", (2, 3), (3,))
linear("xp.repeat(a, repeats=0, axis=1)", (2, 3))
linear("xp.roll(a, 1)", (2, 3), (3,), (), (0,))
linear("xp.roll(a, -4)", (3,), (2, 3))
linear("xp.roll(a, shift=1, axis=0)", (2, 3), (0, 2))
linear("xp.roll(a, (1, -1), axis=(0, 1))", (2, 3))
linear("xp.roll(a, (1, 1), (0, 0))", (3, 2))
linear("xp.roll(a, 2, (0, 1))", (3, 2))
linear("xp.roll(a, np.int64(2), -1)", (3, 2))
linear("xp.flip(a)", (2, 3), (3,), (), (0, 2))
linear("xp.flip(a, 0)", (2, 3), (3,))
linear("xp.flip(a, axis=(0, -1))", (2, 3, 2))
linear("xp.fliplr(a)", (2, 3))
linear("xp.flipud(a)", (2, 3), (3,))
for _k in range(-2, 6):
    linear(f"xp.rot90(a, {_k})", (2, 3), (2, 3, 2))
linear("xp.rot90(a)", (2, 3))
linear("xp.rot90(a, k=1, axes=(1, 0))", (2, 3))
linear("xp.rot90(a, axes=(-1, 0))", (2, 2, 3))
linear("xp.rot90(a, 3, axes=(0, 2))", (2, 2, 3))
linear("xp.concatenate([a])", (2, 3), (0,))
linear("xp.concatenate([a, a, a])", (2, 3))
linear("xp.stack([a, 2 * a])", (2, 3), (), (0,))
linear("xp.concatenate([xp.ravel((k + 1) * p) for k, p in enumerate(xp.split(a, 3))])", (3,), (6, 2), (0,))
linear("xp.concatenate([xp.ravel((k + 1) * p) for k, p in enumerate(xp.split(a, [1, 3]))])", (4,), (4, 2))
linear("xp.concatenate([xp.ravel((k + 1) * p) for k, p in enumerate(xp.split(a, [3, 1, -1, 9]))])", (5,))
linear("xp.split(a, indices_or_sections=2, axis=-1)[1]", (3, 4), (2, 2, 4))
linear("xp.split(a, (1,), 1)[0]", (3, 4))
linear("xp.array_split(a, 3)[1]", (4,), (5, 2), (2,))
linear("xp.array_split(a, 3, axis=1)[0]", (2, 4))
linear("xp.array_split(a, [1])[1]", (3,))
linear("xp.vsplit(a, 2)[1]", (4, 2))
linear("xp.hsplit(a, 2)[1]", (4,), (2, 4))
linear("xp.hsplit(a, [1, 2])[2]", (2, 4))
linear("xp.pad(a, 1)", (2, 3), (3,), (0,))
linear("xp.pad(a, (1, 2))", (2, 3), (3,))
linear("xp.pad(a, ((0, 1), (2, 0)))", (2, 3), (0, 2))
linear("xp.pad(a, ((1, 2),))", (2, 3))
linear("xp.pad(a, pad_width=1, mode='constant', constant_values=2.5)", (2, 3))
linear("xp.pad(a, 1, constant_values=np.float32(2))", (2, 3))
linear("xp.pad(a, 0)", (2, 3))
linear("xp.pad(a, 1, 'edge')", (2, 3), (3,))
linear("xp.pad(a, (2, 1), mode='reflect')", (3,), (3, 4))
linear("xp.pad(a, 2, 'symmetric')", (3,), (2, 3))
linear("xp.pad(a, ((1, 2), (0, 4)), 'wrap')", (2, 3))
linear("xp.diag(a)", (3,), (2, 3), (3, 3), (0,))
linear("xp.diag(a, 1)", (2,), (2, 3), (3, 2))
linear("xp.diag(a, k=-1)", (2,), (2, 3), (3, 2))
linear("xp.diag(a, -5)", (2, 3))
linear("xp.diagonal(a)", (2, 3), (2, 3, 2), (0, 2))
linear("xp.diagonal(a, 1)", (2, 3), (3, 3))
linear("xp.diagonal(a, offset=-1, axis1=-1, axis2=0)", (2, 3, 3))
linear("xp.trace(a)", (3, 3), (2, 3), (2, 2, 3))
linear("xp.trace(a, offset=1)", (3, 3))
linear("xp.trace(a, 0, 1, 2)", (2, 2, 3))
linear("xp.triu(a)", (3, 3), (2, 3), (2, 2, 2), (3,))
linear("xp.triu(a, 1)", (3, 3), (2, 3))
linear("xp.tril(a)", (3, 3), (2, 3), (2, 2, 2), (3,), (0, 2))
linear("xp.tril(a, k=-1)", (3, 3), (2, 3))
linear("xp.take(a, [2, 0, 2])", (3,), (2, 3))
linear("xp.take(a, 1)", (3,), (2, 3))
linear("xp.take(a, -1, axis=0)", (3,), (2, 3))
linear("xp.take(a, [[0, 1], [1, -1]], axis=1)", (2, 3), (2, 2, 2))
linear("xp.take(a, indices=[], axis=-1)", (2, 3))
linear("xp.copy(a)", (2, 3), ())
linear("a.astype(a.dtype)", (2, 3), ())
linear("xp.concatenate((a, b))", ((2, 3), (1, 3)), ((3,), (0,)), ((2,), (2,)))
linear("xp.concatenate([a, b], axis=1)", ((2, 3), (2, 1)), ((2, 0), (2, 1)), ((2, 1, 2), (2, 2, 2)))
linear("xp.concatenate([a, b, a], -1)", ((2, 3), (2, 1)))
linear("xp.concatenate([a, b], axis=None)", ((2, 3), (2,)), ((), (1,)))
linear("xp.stack([a, b])", ((2, 3), (2, 3)), ((), ()), ((0,), (0,)))
linear("xp.stack([a, b], axis=1)", ((2, 3), (2, 3)), ((3,), (3,)))
linear("xp.stack((a, b), axis=-1)", ((2, 3), (2, 3)), ((), ()))
linear("xp.vstack([a, b])", ((2, 3), (1, 3)), ((3,), (3,)), ((3,), (2, 3)), ((), ()))
linear("xp.hstack([a, b])", ((2, 3), (2, 1)), ((3,), (2,)), ((), ()), ((), (2,)))
linear("xp.dstack([a, b])", ((2, 3), (2, 3)), ((3,), (3,)), ((), ()), ((2, 3, 1), (2, 3)))
linear("xp.column_stack([a, b])", ((3,), (3,)), ((3,), (3, 2)), ((2, 1), (2, 3)), ((), ()))

linear("a[0]", (3,), (2, 3), (1, 0))
linear("a[-1]", (3,), (2, 3))
linear("a[1, 2]", (2, 3))
linear("a[1:]", (3,), (2, 3), (0,), (1,))
linear("a[::2]", (3,), (5, 2))
linear("a[::-1]", (3,), (2, 3))
linear("a[:, 1]", (2, 3))
linear("a[:, 1:2]", (2, 3), (0, 3))
linear("a[-1:0:-1, ::2]", (3, 3))
linear("a[5:]", (3,))
linear("a[...]", (2, 3), ())
linear("a[()]", (2, 3), ())
linear("a[..., 0]", (2, 3), (3,))
linear("a[0, ..., 1]", (2, 3, 2), (2, 3))
linear("a[None]", (3,), ())
linear("a[:, None]", (3,), (2, 3))
linear("a[..., None, 0]", (2, 3))
linear("a[None, ..., 1:, None]", (2, 3))
linear("a[[0, 2, 0]]", (3,), (3, 2))
linear("a[[]]", (3,))
linear("a[[-1, 0]]", (3, 2))
linear("a[[[0, 1], [1, 1]]]", (3,), (2, 3))
linear("a[[0, 1, 0], [2, 2, 2]]", (2, 3))
linear("a[[[0], [1]], [0, 2]]", (2, 3))
linear("a[[1, 1, 0], 1:]", (2, 3))
linear("a[:, [0, 0, 2]]", (2, 3))
linear("a[0, [1, 1]]", (2, 3))
linear("a[[0, 0], :, [1, 1]]", (2, 3, 2))
linear("a[[0, 0], None, 1]", (2, 3))
linear("a[[True, False, True]]", (3,), (3, 2))
linear("a[:, [False, False, True]]", (2, 3))
linear("a[[True, False], [1, 1]]", (2, 3))
linear("a[True]", (2, 3), ())
linear("a[False]", (2, 3))
linear("a[np.int64(1)]", (3,), (2, 3))
for _name, _samples in ("[b]", _indexed), ("[b, ...]", _masked):
    row(f"a{_name}", samples=_samples, analytic=True)
row("xp.take(a, b, axis=0)", samples=_indexed, analytic=True)
row("xp.take_along_axis(a, b, axis=1)", samples=_lined_up, analytic=True)
row("xp.sort(a)", (3,), (2, 3), (0,), (2, 0), smooth=False)
row("xp.sort(a, axis=0)", (3, 2), (3, 2, 2), smooth=False)
row("xp.sort(a, None)", (2, 3), (), smooth=False)
row("xp.sort(a, kind='stable')", (2, 3), smooth=False)
