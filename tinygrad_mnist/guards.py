"""The safety net under the graph: when memory was changed in place, where NaN came from, and what the errors say.

Nothing here computes; `core` asks it at the points where something can go wrong.
"""

from __future__ import annotations

import sys
import threading
import warnings
import weakref
from collections.abc import Iterable
from typing import Any

from . import arrays
from .arrays import Array

IDIOMS = """Three ways to update parameters:
  loss, (dW, db) = value_and_grad(f, (0, 1))(W, b); W = W - eta * dW    # arrays stay arrays
  with no_grad(): W -= eta * W.grad                                     # in place, W stays a leaf
  optimizer = optim.SGD([W, b], lr=eta); optimizer.step()               # an optimizer"""

# ---- in-place changes ---------------------------------------------------------------------------------------------


Span = tuple[Array, tuple[int, int]]  # the owner of some memory, and the range of bytes in it


def spans(changed: Iterable[Array]) -> list[Span]:
    """The memory of some arrays, neighbours joined: the parameters of a model in one flat buffer are one span."""
    found: list[Span] = []
    for array in map(arrays.concrete, changed):
        owner, (start, end) = arrays.owner(array), arrays.extent(array)
        if found and found[-1][0] is owner and found[-1][1][1] == start:
            start = found.pop()[1][0]
        found.append((owner, (start, end)))
    return found


class Changes:
    """When which memory was last changed in place, by the sanctioned ways: optimizers, `t.data = ...`, `W -= ...`.

    A clock that only these tick. A node notes the time when it is recorded; while the clock stands still, nothing that
    any node saved can have changed, and backward need not look. Otherwise it compares byte ranges, so that views
    (`.T`, `.detach()`, the parameters in one flat buffer) are told apart or together by the memory that they share.
    """

    def __init__(self) -> None:
        self.now = 0
        self._lock = threading.Lock()
        self._ranges: dict[int, dict[tuple[int, int], int]] = {}  # id(owner of the memory) -> {byte range: time}

    def note(self, spans: Iterable[Span]) -> None:
        with self._lock:
            self.now += 1
            for owner, extent in spans:
                key = id(owner)
                if key not in self._ranges:
                    weakref.finalize(owner, self._ranges.pop, key, None).atexit = False
                    self._ranges[key] = {}
                self._ranges[key][extent] = self.now

    def check(self, node: Any) -> None:
        """Raise if an array that `node` saved has changed since it was recorded."""
        for i, array in enumerate(node.saved):
            if not arrays.is_array(array) or not array.size:
                continue
            array = arrays.concrete(array)
            low, high = arrays.extent(array)
            for (start, end), time in list(self._ranges.get(id(arrays.owner(array)), {}).items()):
                if time > node.clock and start < high and low < end:
                    raise RuntimeError(changed_message(node, i))


changes = Changes()


# ---- messages -----------------------------------------------------------------------------------------------------


def like(value: Any) -> str:
    return f"{value.dtype} {value.shape}" if hasattr(value, "shape") else type(value).__name__


def operands(values: Iterable[Any]) -> str:
    return " and ".join(like(v) if hasattr(v, "shape") else repr(v) for v in values)


def kernel_error(name: str, datas: list[Any], error: Exception) -> Exception:
    mixed = arrays.mixed(datas)
    if mixed:
        return ValueError(f"{name}: {mixed}; move one with .to(device)")
    kind = next(kind for kind in (arrays.AxisError, IndexError, ValueError, TypeError) if isinstance(error, kind))
    return kind(f"{name}: cannot compute it on {operands(datas)}: {error}")


def check_conversion(t: Any) -> None:
    """Raise where NumPy asks for the array of a Tensor and the graph, or the device, would be lost silently."""
    if t.requires_grad:
        raise TypeError(
            "a tracked Tensor would become an untracked array here: for x.dot(w) write x @ w, for a list of "
            "Tensors np.stack([...]); .numpy() copies the values, .detach() cuts the graph"
        )
    if t.device != "cpu":
        raise TypeError(f"a Tensor on {t.device} is not copied to the host silently: .numpy() does it")


def check_seed(t: Any, gradient: Any) -> None:
    """Raise where no backward pass can begin at `t` with this cotangent (None: ones)."""
    if not t.requires_grad:
        raise RuntimeError(
            "backward() on an untracked Tensor: nothing that it was computed from has requires_grad=True, "
            "or it was computed under no_grad()"
        )
    if gradient is None and t.size != 1:
        raise RuntimeError(
            f"backward() without a gradient needs a scalar, not shape {t.shape}: "
            "reduce it first (.sum() or .mean()), or pass gradient= of that shape"
        )
    shape = t.shape if gradient is None else getattr(arrays.operand(gradient), "shape", ())
    if shape != t.shape:
        raise ValueError(f"backward: gradient has shape {shape}, the Tensor {t.shape}")


def not_real(prim: Any, y: Array) -> TypeError:
    return TypeError(f"{prim.name}: the result would be {y.dtype}; Tensors hold real floats, integers and booleans")


def rule_error(node: Any, parent: Any, i: int, gi: Any, error: Exception) -> Exception:
    return TypeError(
        f"{node.prim.name}: the rule for operand {i} returned {like(gi)}, which {error}; "
        f"it must return an array that broadcasting turns back into {like(parent)}"
    )


def changed_message(node: Any, i: int) -> str:
    what = "its result" if i == 0 else f"operand {i - 1}"
    return (
        f"{node.prim.name}: {what} ({like(node.saved[i])}) was changed in place after it was recorded, and backward "
        "needs its old value: call backward() before the update, or change a copy"
    )


def warn_nonleaf_grad(node: Any) -> None:
    warnings.warn(
        f".grad of a result (op {node.prim.name}) is never filled: gradients are kept for leaves, Tensors made with "
        f"requires_grad=True. If this was a parameter, an update outside no_grad() has replaced it.\n{IDIOMS}",
        stacklevel=3,
    )


# ---- detect_anomaly -----------------------------------------------------------------------------------------------


def source_line() -> str:
    """`file:line` of the innermost frame outside this package: the user's line."""
    package = __name__.partition(".")[0]
    frame: Any = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def check_forward(prim: Any, datas: list[Any], y: Array) -> None:
    if not arrays.all_finite(y):
        raise FloatingPointError(
            f"{prim.name}: NaN or infinity in the forward pass: result {like(y)}, operands {operands(datas)}, "
            f"at {source_line()}"
        )


def check_backward(node: Any, i: int, gi: Any) -> None:
    if not arrays.all_finite(gi):
        raise FloatingPointError(
            f"{node.prim.name}: NaN or infinity in the backward pass: gradient {like(gi)} of operand {i}, "
            f"{recorded_at(node)}"
        )


def recorded(node: Any, y: Array, mode: Any) -> None:
    """Note of a new node what `detect_anomaly` and a capture will ask."""
    if mode.anomaly:
        node.trace = trace(node.saved)
    if mode.recorder is not None:
        mode.recorder.recorded(node, y)


def trace(saved: list[Any]) -> tuple[str, dict[int, bytes]]:
    """What a node keeps for `detect_anomaly`: the source line, and a checksum of each saved array."""
    return source_line(), {i: arrays.checksum(a) for i, a in enumerate(saved) if arrays.is_array(a)}


def check_saved(node: Any) -> None:
    """Raise if an array that `node` saved has other values than when it was recorded."""
    if hasattr(node, "trace"):
        for i, digest in node.trace[1].items():
            if arrays.checksum(node.saved[i]) != digest:
                raise RuntimeError(f"{changed_message(node, i)} ({recorded_at(node)})")


def recorded_at(node: Any) -> str:
    if hasattr(node, "trace"):
        return f"recorded at {node.trace[0]}"
    return "recorded outside detect_anomaly(); run the forward pass inside it to see the line"
