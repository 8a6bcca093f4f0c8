"""The table of primitives: each with its rules, and nothing else. To add an operation, add a row.

A rule reads `(xp, g, y, *operands, **params)`: the namespace, the cotangent of the result, the result, the operands.
What a name stands for is kept for backward; of a name that starts with `_` only shape and dtype are, and of what `*_`
takes nothing. Rules are out of place, do not undo broadcasting (the walk does) and use only Python numbers as
constants, so that float32 stays float32.

Where a function has a kink, a constant wins the tie: relu'(0) = 0, and maximum(0, z) gives z no gradient at 0. Between
two tracked operands, or among the equal maxima of `max`, the gradient is shared evenly.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from operator import index
from typing import Any

from .arrays import Array, Namespace, mixed, move
from .core import F, Function, Primitive, Rule, Tensor, apply, is_tracked


def primitive(*rules: Rule | None, variadic: bool = False) -> Callable[[Callable[..., Array]], Function]:
    """Register an operation of your own: a kernel `f(xp, *operands, *, params)` and one rule for each operand.

    >>> @primitive(lambda xp, g, y, *_: g * y)
    ... def my_exp(xp, a):
    ...     return xp.exp(a)

    A rule is `rule(xp, g, y, *operands, **params)` and returns the gradient of its operand; `None` where there is
    none. With
    `variadic=True` the kernel takes any number of operands, the function a list of them, and the one rule
    `rule(xp, g, y, i, *operands, **params)` is told which operand i it is for.
    """

    def register(kernel: Callable[..., Array]) -> Function:
        name = kernel.__name__
        known = vars(F).get(name)
        if known is not None and known.__module__.startswith(__name__.partition(".")[0]):
            raise ValueError(f"{name!r} is a function of this package: choose another name")
        Namespace.kernels[name] = kernel
        _xp, *parameters = inspect.signature(kernel).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        operands = len(parameters) - len(defaults)
        if len(rules) != (1 if variadic else operands):
            raise TypeError(f"{name!r} has {operands} operands but {len(rules)} rules; None stands for no rule")
        function = _function(Primitive(name, rules, kernel, variadic), operands, defaults)
        function.__module__, function.__doc__ = kernel.__module__, kernel.__doc__
        function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        setattr(F, name, function)
        return function

    return register


def elementwise(name: str, doc: str, *rules: Rule | None) -> Function:
    """A row for a function that the array library has under the same name. Without rules: not differentiable."""
    function = _function(Primitive(name, rules), len(rules), {})
    function.__doc__ = doc
    setattr(F, name, function)
    return function


def _function(prim: Primitive, operands: int, defaults: dict[str, Any]) -> Function:
    """The function that users call; a direct one for the hot shapes, because every layer of calls costs 0.1 us."""

    def unary(a: Any, /) -> Any:
        return apply(prim, (a,), defaults)

    def binary(a: Any, b: Any, /) -> Any:
        return apply(prim, (a, b), defaults)

    def general(*operands: Any, **params: Any) -> Any:
        return apply(prim, operands, {**defaults, **params})

    def of_list(operands: Sequence[Any], **params: Any) -> Any:
        return apply(prim, operands, {**defaults, **params})

    function: Any = of_list if prim.variadic else general
    if not defaults and not prim.variadic and operands in (1, 2):
        function = (unary, binary)[operands - 1]
    function.__name__ = function.__qualname__ = prim.name
    function.prim = prim
    return function


# ---- arithmetic ---------------------------------------------------------------------------------------------------

add = elementwise("add", "a + b", lambda xp, g, *_: g, lambda xp, g, *_: g)
subtract = elementwise("subtract", "a - b", lambda xp, g, *_: g, lambda xp, g, *_: -g)
multiply = elementwise("multiply", "a b", lambda xp, g, _y, _a, b: g * b, lambda xp, g, _y, a, _b: g * a)
divide = elementwise("divide", "a / b", lambda xp, g, _y, _a, b: g / b, lambda xp, g, y, _a, b: -g * y / b)
negative = elementwise("negative", "-a", lambda xp, g, *_: -g)
power = elementwise(
    "power",
    "a^b; its derivative by a is 0 at b = 0, by b it is 0 at a = 0",
    lambda xp, g, _y, a, b: g * b * xp.power(a + ((a == 0) & (b == 0)), b - 1),
    lambda xp, g, y, a, _b: g * y * xp.log(xp.ones_like(y) * (a + (a == 0))),
)
reciprocal = elementwise("reciprocal", "1 / a", lambda xp, g, y, *_: -g * y * y)
square = elementwise("square", "a^2", lambda xp, g, _y, a: 2 * g * a)
sqrt = elementwise("sqrt", "a^(1/2)", lambda xp, g, y, *_: 0.5 * g / y)
cbrt = elementwise("cbrt", "a^(1/3)", lambda xp, g, y, *_: g / (3 * y * y))
absolute = elementwise("absolute", "|a|, with derivative 0 at 0", lambda xp, g, _y, a: g * xp.sign(a))
sign = elementwise("sign", "-1, 0 or 1", lambda xp, g, *_: xp.zeros_like(g))
mod = elementwise("mod", "a - b floor(a/b)", lambda xp, g, *_: g, lambda xp, g, _y, a, b: -g * xp.floor_divide(a, b))
floor_divide = elementwise("floor_divide", "floor(a / b)", *[lambda xp, g, *_: xp.zeros_like(g)] * 2)


def pow(a: Any, b: Any) -> Tensor:
    """`a ** b` as NumPy computes it: by a shorter way for the exponents 2, 0.5 and -1."""
    short = {2: square, 0.5: sqrt, -1: reciprocal}.get(b) if type(b) in (int, float) else None
    return power(a, b) if short is None or a.dtype.kind != "f" else short(a)


F.pow = pow  # type: ignore[attr-defined]

# ---- exponentials, logarithms, trigonometry -----------------------------------------------------------------------

exp = elementwise("exp", "e^a", lambda xp, g, y, *_: g * y)
exp2 = elementwise("exp2", "2^a", lambda xp, g, y, *_: g * y * math.log(2))
expm1 = elementwise("expm1", "e^a - 1", lambda xp, g, _y, a: g * xp.exp(a))
log = elementwise("log", "ln a", lambda xp, g, _y, a: g / a)
log2 = elementwise("log2", "ln a / ln 2", lambda xp, g, _y, a: g / a / math.log(2))
log10 = elementwise("log10", "ln a / ln 10", lambda xp, g, _y, a: g / a / math.log(10))
log1p = elementwise("log1p", "ln(1 + a)", lambda xp, g, _y, a: g / (1 + a))
logaddexp = elementwise(
    "logaddexp",
    "ln(e^a + e^b)",
    lambda xp, g, _y, a, b: g * xp.sigmoid(a - b),  # exp(a - y) would have the rounding error of a large y
    lambda xp, g, _y, a, b: g * xp.sigmoid(b - a),
)
sin = elementwise("sin", "sin a, a in radians", lambda xp, g, _y, a: g * xp.cos(a))
cos = elementwise("cos", "cos a, a in radians", lambda xp, g, _y, a: -g * xp.sin(a))
tan = elementwise("tan", "tan a, a in radians", lambda xp, g, y, *_: g * (1 + y * y))
arcsin = elementwise("arcsin", "the angle in radians", lambda xp, g, _y, a: g / xp.sqrt((1 - a) * (1 + a)))
arccos = elementwise("arccos", "the angle in radians", lambda xp, g, _y, a: -g / xp.sqrt((1 - a) * (1 + a)))
arctan = elementwise("arctan", "the angle in radians", lambda xp, g, _y, a: g / (1 + a * a))
arctan2 = elementwise(
    "arctan2",
    "the angle in radians of the point (b, a)",
    lambda xp, g, _y, a, b: g * (b / xp.hypot(a, b)) / xp.hypot(a, b),
    lambda xp, g, _y, a, b: -g * (a / xp.hypot(a, b)) / xp.hypot(a, b),
)
sinh = elementwise("sinh", "(e^a - e^-a) / 2", lambda xp, g, _y, a: g * xp.cosh(a))
cosh = elementwise("cosh", "(e^a + e^-a) / 2", lambda xp, g, _y, a: g * xp.sinh(a))
tanh = elementwise("tanh", "sinh a / cosh a", lambda xp, g, y, *_: g * (1 - y * y))
arcsinh = elementwise("arcsinh", "the inverse of sinh", lambda xp, g, _y, a: g / xp.hypot(a, 1))
arccosh = elementwise("arccosh", "the inverse of cosh", lambda xp, g, _y, a: g / (xp.sqrt(a - 1) * xp.sqrt(a + 1)))
arctanh = elementwise("arctanh", "the inverse of tanh", lambda xp, g, _y, a: g / ((1 - a) * (1 + a)))
hypot = elementwise(
    "hypot",
    "(a^2 + b^2)^(1/2), with derivative 0 at the origin",
    lambda xp, g, y, a, _b: g * (a / (y + (y == 0))),
    lambda xp, g, y, _a, b: g * (b / (y + (y == 0))),
)

# ---- choices ------------------------------------------------------------------------------------------------------


def _choice(xp: Any, g: Any, y: Any, mine: Any, other: Any, tie: float) -> Any:
    """The gradient of one operand of maximum and its kin: all of g where it was chosen, `tie` of it where equal."""
    return xp.where(mine == other, tie * g if tie else 0, xp.where(y == mine, g, 0))


def _chooser(name: str, doc: str) -> Function:
    choose = primitive(
        lambda xp, g, y, a, b, *, tie: _choice(xp, g, y, a, b, tie),
        lambda xp, g, y, a, b, *, tie: _choice(xp, g, y, b, a, tie),
    )

    def kernel(xp: Namespace, a: Array, b: Array, *, tie: float) -> Array:
        return getattr(xp, name)(a, b)

    kernel.__name__ = f"_{name}"
    prim = choose(kernel)

    def function(a: Any, b: Any, /) -> Tensor:
        return prim(a, b, tie=0.5 if is_tracked(a) and is_tracked(b) else 0.0)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc + " A tie gives each tracked operand half of the gradient, and nothing beside a constant."
    setattr(F, name, function)
    return function


maximum = _chooser("maximum", "The larger of a and b; NaN where either is.")
minimum = _chooser("minimum", "The smaller of a and b; NaN where either is.")
fmax = _chooser("fmax", "The larger of a and b, or the one that is not NaN.")
fmin = _chooser("fmin", "The smaller of a and b, or the one that is not NaN.")
where = elementwise(
    "where",
    "a where the condition holds, else b",
    None,
    lambda xp, g, _y, c, *_: xp.where(c, g, 0),
    lambda xp, g, _y, c, *_: xp.where(c, 0, g),
)

# ---- activations --------------------------------------------------------------------------------------------------


@primitive(lambda xp, g, y, *_: xp.where(y > 0, g, 0))
def relu(xp: Namespace, a: Array) -> Array:
    """max(a, 0); the derivative at 0 is 0."""
    return xp.maximum(a, 0)


@primitive(lambda xp, g, _y, a, *, slope: xp.where(a > 0, g, slope * g))
def leaky_relu(xp: Namespace, a: Array, *, slope: float = 0.01) -> Array:
    """a where a > 0, else slope * a; the derivative at 0 is `slope`."""
    return xp.where(a > 0, a, slope * a)


def _real(a: Array) -> Array:
    return a if a.dtype.kind == "f" else a * 1.0  # -a of an unsigned integer would wrap


@primitive(lambda xp, g, y, *_: g * y * (1 - y))
def sigmoid(xp: Namespace, a: Array) -> Array:
    """1 / (1 + e^-a), in a form that does not overflow."""
    a = _real(a)
    z = xp.exp(-xp.absolute(a))
    return xp.maximum(z, a >= 0) / (1 + z)  # z <= 1: as where(a >= 0, 1, z), which takes far longer


@primitive(lambda xp, g, _y, a: g * xp.sigmoid(a))
def softplus(xp: Namespace, a: Array) -> Array:
    """ln(1 + e^a), in a form that does not overflow."""
    a = _real(a)
    return xp.maximum(a, 0) + xp.log1p(xp.exp(-xp.absolute(a)))


@primitive(lambda xp, g, y, *_, axis: y * (g - xp.sum(g * y, axis=axis, keepdims=True)))
def softmax(xp: Namespace, a: Array, *, axis: int = -1) -> Array:
    """e^a / sum(e^a) along `axis`, shifted by the maximum so that it does not overflow."""
    a = _real(a)
    z = xp.exp(a - xp.max(a, axis=axis, keepdims=True))
    return z / xp.sum(z, axis=axis, keepdims=True)


@primitive(lambda xp, g, y, *_, axis: g - xp.exp(y) * xp.sum(g, axis=axis, keepdims=True))
def log_softmax(xp: Namespace, a: Array, *, axis: int = -1) -> Array:
    """a - ln(sum(e^a)) along `axis`."""
    z = _real(a) - xp.max(a, axis=axis, keepdims=True)
    return z - xp.log(xp.sum(xp.exp(z), axis=axis, keepdims=True))


# ---- matrix products ----------------------------------------------------------------------------------------------


def _matmul_left(xp: Any, g: Any, _y: Any, _a: Any, b: Any) -> Any:
    if b.ndim == 1:
        return xp.expand_dims(g, -1) * b
    if len(_a.shape) == 1:
        return xp.matmul(b, xp.expand_dims(g, -1))[..., 0]
    return xp.matmul(g, xp.swapaxes(b, -1, -2))


def _matmul_right(xp: Any, g: Any, _y: Any, a: Any, _b: Any) -> Any:
    if a.ndim == 1:
        return a * g if len(_b.shape) == 1 else xp.expand_dims(a, -1) * xp.expand_dims(g, -2)
    if len(_b.shape) == 1:
        return xp.matmul(xp.swapaxes(a, -1, -2), xp.expand_dims(g, -1))[..., 0]
    return xp.matmul(xp.swapaxes(a, -1, -2), g)


matmul = elementwise("matmul", "The matrix product a @ b, batched over leading axes.", _matmul_left, _matmul_right)


def _einsum_rule(xp: Any, g: Any, _y: Any, i: int, *operands: Any, subscripts: str, optimize: Any) -> Any:
    """The einsum that has the subscripts of the result and of operand i exchanged."""
    inputs, output = subscripts.split("->")
    terms = inputs.split(",")
    target, mine = terms[i], operands[i].shape
    terms[i] = output
    gi = xp.einsum(",".join(terms) + "->" + target, *operands[:i], g, *operands[i + 1 :], optimize=optimize)
    return xp.broadcast_to(gi, tuple(n if m == 1 else m for m, n in zip(gi.shape, mine, strict=True)))


@primitive(_einsum_rule, variadic=True)
def _einsum(xp: Namespace, *operands: Array, subscripts: str, optimize: Any) -> Array:
    """einsum with explicit output, no ellipsis, no letter twice in a term or in one term alone; `einsum` sees to
    that."""
    if problem := mixed(operands):  # CuPy would move them without a word
        raise ValueError(problem)
    return xp.einsum(subscripts, *operands, optimize=optimize)


# ---- reductions ---------------------------------------------------------------------------------------------------


def _reduced(shape: tuple[int, ...], axis: Any) -> tuple[int, ...]:
    """The axes that a reduction with this `axis` argument removes, counted from the front."""
    if axis is None:
        return tuple(range(len(shape)))
    return tuple(index(k) % len(shape) for k in (axis if isinstance(axis, tuple) else (axis,))) if shape else ()


def _count(shape: tuple[int, ...], axis: Any) -> int:
    return math.prod(shape) if axis is None else math.prod(shape[k] for k in _reduced(shape, axis))


def divided(v: Any, n: int) -> Any:
    """v / n, also where float16 cannot hold n."""
    return v / n if n < 65504 else v * (1 / n)  # the largest float16, in which a larger n would be infinite


def _kept(xp: Any, v: Any, shape: tuple[int, ...], axis: Any) -> Any:
    """`v`, a reduction of something of `shape`, with the reduced axes as size 1: it broadcasts against the operand."""
    axes = _reduced(shape, axis)
    return xp.reshape(v, tuple(1 if k in axes else n for k, n in enumerate(shape)))


def _spread(xp: Any, g: Any, shape: tuple[int, ...], axis: Any) -> Any:
    return xp.broadcast_to(g if axis is None and not g.shape else _kept(xp, g, shape, axis), shape)


@primitive(lambda xp, g, _y, _a, *, axis, keepdims: _spread(xp, g, _a.shape, axis))
def _sum(xp: Namespace, a: Array, *, axis: Any = None, keepdims: bool = False) -> Array:
    """The sum over `axis`."""
    return xp.sum(a, axis=axis, keepdims=keepdims)


@primitive(lambda xp, g, _y, _a, *, axis, keepdims: _spread(xp, divided(g, _count(_a.shape, axis)), _a.shape, axis))
def _mean(xp: Namespace, a: Array, *, axis: Any = None, keepdims: bool = False) -> Array:
    """The mean over `axis`."""
    return xp.mean(a, axis=axis, keepdims=keepdims)


def _others(xp: Any, a: Any, axis: Any) -> Any:
    """For each element the product of the others that are reduced with it, without a division: zeros are no trouble.

    Products over a binary tree, up and then down (the scan of Blelloch 1990, Prefix Sums and Their Applications).
    """
    axes = _reduced(a.shape, axis)
    order = [k for k in range(a.ndim) if k not in axes] + list(axes)
    moved = xp.transpose(a, order)
    n = _count(a.shape, axis)
    rows = xp.reshape(moved, (-1, n) if n else (0, 0))
    fill = (1 << max(n - 1, 0).bit_length()) - n
    levels = [xp.pad(rows, ((0, 0), (0, fill)), constant_values=1)]
    while levels[-1].shape[-1] > 1:
        levels.append(levels[-1][:, ::2] * levels[-1][:, 1::2])
    out = xp.ones_like(levels[-1])
    for level in reversed(levels[:-1]):
        siblings = xp.flip(xp.reshape(level, (*out.shape, 2)), axis=-1)
        out = xp.reshape(xp.expand_dims(out, -1) * siblings, level.shape)
    return xp.transpose(xp.reshape(out[:, :n], moved.shape), sorted(range(a.ndim), key=order.__getitem__))


@primitive(lambda xp, g, _y, a, *, axis, keepdims: _kept(xp, g, a.shape, axis) * _others(xp, a, axis))
def _prod(xp: Namespace, a: Array, *, axis: Any = None, keepdims: bool = False) -> Array:
    """The product over `axis`."""
    return xp.prod(a, axis=axis, keepdims=keepdims)


def _extreme_rule(xp: Any, g: Any, y: Any, a: Any, *, axis: Any, keepdims: bool) -> Any:
    chosen = a == _kept(xp, y, a.shape, axis)
    share = xp.sum(chosen, axis=_reduced(a.shape, axis), dtype=a.dtype, keepdims=True)
    return xp.where(chosen, _kept(xp, g, a.shape, axis) / (share + (share == 0)), 0)  # NaN is equal to none


@primitive(_extreme_rule)
def _max(xp: Namespace, a: Array, *, axis: Any = None, keepdims: bool = False) -> Array:
    """The maximum over `axis`; equal maxima share the gradient evenly."""
    return xp.max(a, axis=axis, keepdims=keepdims)


@primitive(_extreme_rule)
def _min(xp: Namespace, a: Array, *, axis: Any = None, keepdims: bool = False) -> Array:
    """The minimum over `axis`; equal minima share the gradient evenly."""
    return xp.min(a, axis=axis, keepdims=keepdims)


def _centred(xp: Any, a: Any, axis: Any, ddof: int) -> Any:
    """d std^2 / da / 2 = (a - mean) / (n - ddof)."""
    return divided(a - xp.mean(a, axis=axis, keepdims=True), _count(a.shape, axis) - ddof)


@primitive(
    lambda xp, g, _y, a, *, axis, ddof, keepdims: 2 * _kept(xp, g, a.shape, axis) * _centred(xp, a, axis, ddof)
)
def _var(xp: Namespace, a: Array, *, axis: Any = None, ddof: int = 0, keepdims: bool = False) -> Array:
    """sum((a - mean)^2) / (n - ddof) over `axis`."""
    return xp.var(a, axis=axis, ddof=ddof, keepdims=keepdims)


@primitive(
    lambda xp, g, y, a, *, axis, ddof, keepdims: (
        _kept(xp, g / (y + (y == 0)), a.shape, axis) * _centred(xp, a, axis, ddof)
    )
)
def _std(xp: Namespace, a: Array, *, axis: Any = None, ddof: int = 0, keepdims: bool = False) -> Array:
    """The square root of `var`; the derivative is 0 where it is 0."""
    return xp.std(a, axis=axis, ddof=ddof, keepdims=keepdims)


@primitive(lambda xp, g, *_, axis: xp.flip(xp.cumsum(xp.flip(g, axis=axis), axis=axis), axis=axis))
def _cumsum(xp: Namespace, a: Array, *, axis: int) -> Array:
    """The running sum along `axis`."""
    return xp.cumsum(a, axis=axis)


def _shares(xp: Any, g: Any, y: Any, a: Any, *, axis: Any, keepdims: bool) -> Any:
    """g softmax(a); the quotient cancels the rounding error of a large y. A row of -inf gives zeros."""
    z = xp.exp(a - _kept(xp, xp.where(y == -math.inf, 0, y), a.shape, axis))
    total = xp.sum(z, axis=axis, keepdims=True)
    return z * (_kept(xp, g, a.shape, axis) / (total + (total == 0)))


@primitive(_shares)
def logsumexp(xp: Namespace, a: Array, *, axis: Any = None, keepdims: bool = False) -> Array:
    """ln(sum(e^a)) over `axis`, shifted by the maximum so that it does not overflow."""
    top = xp.max(_real(a), axis=axis, keepdims=True)
    total = xp.sum(xp.exp(a - xp.where(xp.isfinite(top), top, 0)), axis=axis, keepdims=True)
    y = xp.log(total + (total == 0)) + top  # a row of -inf gives -inf, without NaN or a warning on the way
    return y if keepdims else xp.squeeze(y, _reduced(a.shape, axis))


@primitive(lambda xp, g, y, a, *, axis, keepdims: a * _kept(xp, g / (y + (y == 0)), a.shape, axis))
def _norm(xp: Namespace, a: Array, *, axis: Any = None, keepdims: bool = False) -> Array:
    """sum(a^2)^(1/2) over `axis`; the derivative is 0 at 0."""
    return xp.sqrt(xp.sum(a * a, axis=axis, keepdims=keepdims))


# ---- shapes and places --------------------------------------------------------------------------------------------


@primitive(lambda xp, g, *_: g)
def identity(xp: Namespace, a: Array) -> Array:
    """a, in memory of its own."""
    return xp.copy(a)


@primitive(lambda xp, g, *_, device, back: xp.to(g, device=back, back=device))
def to(xp: Namespace, a: Array, *, device: str, back: str) -> Array:
    """a on another device; `back` names the one where it is."""
    return move(a, device)


@primitive(lambda xp, g, *_, dtype: g)  # the walk casts
def astype(xp: Namespace, a: Array, *, dtype: Any) -> Array:
    """a with another dtype."""
    return a.astype(dtype)


@primitive(lambda xp, g, _y, _a, *, shape: xp.reshape(g, _a.shape))
def _reshape(xp: Namespace, a: Array, *, shape: Any) -> Array:
    """The elements of a in another shape."""
    return xp.reshape(a, shape)


@primitive(lambda xp, g, *_, axes: xp.transpose(g, sorted(range(len(axes)), key=axes.__getitem__)))
def _transpose(xp: Namespace, a: Array, *, axes: tuple[int, ...]) -> Array:
    """The axes of a in another order."""
    return xp.transpose(a, axes)


@primitive(lambda xp, g, *_, shape: g)  # the walk sums
def _broadcast_to(xp: Namespace, a: Array, *, shape: tuple[int, ...]) -> Array:
    """a, stretched to a shape."""
    return xp.broadcast_to(a, shape)


@primitive(lambda xp, g, *_, axis: xp.flip(g, axis=axis))
def _flip(xp: Namespace, a: Array, *, axis: Any = None) -> Array:
    """The elements in reverse order along `axis`."""
    return xp.flip(a, axis=axis)


@primitive(
    lambda xp, g, *_, shift, axis: xp.roll(g, -shift if isinstance(shift, int) else [-k for k in shift], axis)
)
def _roll(xp: Namespace, a: Array, *, shift: Any, axis: Any = None) -> Array:
    """The elements shifted along `axis`, those that fall off coming in again."""
    return xp.roll(a, shift, axis)


@primitive(lambda xp, g, *_, k: xp.tril(g, k))
def _tril(xp: Namespace, a: Array, *, k: int = 0) -> Array:
    """The elements on and below diagonal k, zero above."""
    return xp.tril(a, k)


@primitive(lambda xp, g, *_, k: xp.triu(g, k))
def _triu(xp: Namespace, a: Array, *, k: int = 0) -> Array:
    """The elements on and above diagonal k, zero below."""
    return xp.triu(a, k)


@primitive(lambda xp, g, _y, _a, *, index: xp.scatter_add(g, index=index, shape=_a.shape))
def getitem(xp: Namespace, a: Array, *, index: Any) -> Array:
    """a[index]"""
    return a[index]


@primitive(lambda xp, g, *_, index, shape: g[index])
def _scatter_add(xp: Namespace, a: Array, *, index: Any, shape: tuple[int, ...]) -> Array:
    """Zeros of `shape` to which a is added at `index`; an element named twice gets both."""
    return xp.scatter_add(a, index=index, shape=shape)


F.scatter_add = _scatter_add  # type: ignore[attr-defined]  # the namespaces of arrays have it under this name


def _part(xp: Any, g: Any, _y: Any, i: int, *_operands: Any, axis: int) -> Any:
    start = sum(a.shape[axis] for a in _operands[:i])
    return g[(*[slice(None)] * axis, slice(start, start + _operands[i].shape[axis]))]


@primitive(_part, variadic=True)
def _concatenate(xp: Namespace, *operands: Array, axis: int) -> Array:
    """The operands one after the other along `axis`."""
    return xp.concatenate(operands, axis=axis)


def _inside(xp: Any, g: Any, _y: Any, _a: Any, *, width: tuple[tuple[int, int], ...], value: float) -> Any:
    return g[tuple(slice(lo, lo + n) for n, (lo, _hi) in zip(_a.shape, width, strict=True))]


@primitive(_inside)
def _pad(xp: Namespace, a: Array, *, width: tuple[tuple[int, int], ...], value: float = 0.0) -> Array:
    """a with `width[k] = (before, after)` elements of `value` around it along axis k."""
    return xp.pad(a, width, constant_values=value)


# ---- zero derivative, wherever there is one: plain results, not recorded ------------------------------------------

for _name in [
    "equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "logical_and", "logical_or",
    "logical_not", "logical_xor", "isnan", "isinf", "isfinite", "signbit", "floor", "ceil", "trunc", "rint",
    "round", "argmax", "argmin", "argsort", "any", "all", "count_nonzero", "zeros_like", "ones_like",
]:
    elementwise(_name, "As NumPy; has no gradient.")
