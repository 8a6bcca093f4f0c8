"""Losses, in forms that do not overflow."""

from __future__ import annotations

import math
from typing import Any

from . import arrays, ops
from .arrays import Array, Namespace
from .core import F, Tensor
from .modes import current


def _per_row(xp: Any, g: Any, shape: tuple[int, ...], axis: int, reduction: str) -> Any:
    """What of the cotangent of the reduced loss belongs to each row."""
    if reduction == "none":
        return xp.expand_dims(g, axis)
    return g if reduction == "sum" else ops.divided(g, math.prod(shape) // shape[axis])


@ops.primitive(
    lambda xp, g, _y, z, hot, *, axis, reduction: (
        (xp.softmax(z, axis=axis) - hot) * _per_row(xp, g, z.shape, axis, reduction)
    ),
    None,
)
def _cross_entropy(xp: Namespace, z: Array, hot: Array, *, axis: int, reduction: str) -> Array:
    """ln(sum(e^z)) - z[label] along `axis`, where `hot` is true at the label; then the mean or the sum of the rows."""
    z = z - xp.max(z, axis=axis, keepdims=True)
    rows = xp.log(xp.sum(xp.exp(z), axis=axis)) - xp.sum(xp.where(hot, z, 0), axis=axis)
    return rows if reduction == "none" else xp.sum(rows) if reduction == "sum" else xp.mean(rows)


def softmax_cross_entropy(logits: Any, target: Any, *, axis: int = -1, reduction: str = "mean") -> Tensor:
    """The cross-entropy -sum(p log softmax(z)) along `axis` of predictions given as logits z.

    `target`: integer labels of the shape of `logits` without `axis`, or probabilities of the shape of `logits`.
    Logits of shape (classes,) take one label, such as 3. `reduction`: "mean" or "sum" over the rows, or "none". Raises
    IndexError for a label outside 0 ... classes - 1, if the labels are on the host (they may be, whatever the device of
    the logits). Labels on a GPU are checked under `detect_anomaly` only, for that waits for the GPU: check them once,
    before they go there.
    (Goodfellow, Bengio, Courville, Deep Learning, 2016, section 6.2.2.3.)
    """
    _check(reduction)
    if not isinstance(logits, Tensor):
        logits = Tensor(logits)
    shape = logits._data.shape
    if logits._data.dtype.kind != "f":  # unsigned ones would wrap around below their largest
        raise TypeError(f"softmax_cross_entropy: logits must be floats, not {logits.dtype}: use .astype('float32')")
    if not -len(shape) <= axis < len(shape):
        raise arrays.AxisError(f"softmax_cross_entropy: axis {axis} is out of range for logits of shape {shape}")
    labels = target._data if isinstance(target, Tensor) else arrays.operand(target)
    if type(labels) is int:
        labels = arrays.asarray(labels)
    if getattr(labels, "dtype", None) is None or labels.dtype.kind not in "iu":
        if getattr(labels, "shape", None) != shape:
            raise ValueError(
                f"softmax_cross_entropy: probabilities must have the shape of the logits {shape}, not "
                f"{getattr(labels, 'shape', ())}; labels must be integers"
            )
        rows = F.sum(ops.multiply(ops.negative(F.log_softmax(logits, axis=axis)), target), axis)
        return _reduce(rows, reduction)
    axis %= len(shape)
    if labels.shape != shape[:axis] + shape[axis + 1 :]:
        raise ValueError(
            f"softmax_cross_entropy: labels of shape {labels.shape} do not fit logits of shape {shape}: "
            f"expected {shape[:axis] + shape[axis + 1 :]}"
        )
    if current.get().anomaly:
        arrays.check_labels(labels, shape[axis])
    return _cross_entropy(logits, arrays.one_hot(labels, logits._data, axis), axis=axis, reduction=reduction)


def mse(prediction: Any, target: Any, *, reduction: str = "mean") -> Tensor:
    """(prediction - target)^2 of equal shapes, or with one of them a number. `reduction`: "mean" or "sum" over all
    elements, or "none"."""
    prediction, target = (a if isinstance(a, Tensor) else arrays.operand(a) for a in (prediction, target))
    shape, other = getattr(prediction, "shape", ()), getattr(target, "shape", ())
    if shape != other and shape and other:  # (n, 1) and (n,) would give n x n differences, and a wrong loss that falls
        raise ValueError(f"mse: prediction of shape {shape} and target of shape {other} must have the same shape")
    return _reduce(ops.square(ops.subtract(prediction, target)), reduction)


def _reduce(values: Tensor, reduction: str) -> Tensor:
    _check(reduction)
    return values if reduction == "none" else ops._sum(values) if reduction == "sum" else ops._mean(values)


def _check(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', not {reduction!r}")


F.softmax_cross_entropy = softmax_cross_entropy  # type: ignore[attr-defined]
F.mse = mse  # type: ignore[attr-defined]
