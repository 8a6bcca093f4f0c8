"""Gradients, checked: those of the package, one's own, another framework's. There is no tolerance to choose.

>>> report = check(fn, *inputs)              # a function of Tensors
>>> report = check_vjp(f, vjp, arrays)       # any function of arrays with a gradient rule, no Tensor anywhere
>>> assert_grad(fn, *inputs)                 # in a test
>>> report = audit(forward, backward, *inputs)   # a whole backward pass derived by hand: which line is wrong?

`strategies` (Hypothesis, extra `check`) draws inputs; `check_op` checks a registered operation with them.
"""

from typing import Any

from .auditing import audit
from .difference import derivative
from .engine import check_vjp
from .report import AuditReport, Claim, Derivative, DotReport, GradCheckError, GradReport, Item, TaylorReport
from .tensors import assert_grad, check, check_second, compare, dot_test, taylor

__all__ = [
    "AuditReport",
    "Claim",
    "Derivative",
    "DotReport",
    "GradCheckError",
    "GradReport",
    "Item",
    "TaylorReport",
    "assert_grad",
    "audit",
    "check",
    "check_op",
    "check_second",
    "check_vjp",
    "compare",
    "derivative",
    "dot_test",
    "taylor",
]


def __getattr__(name: str) -> Any:
    if name == "check_op":  # imports Hypothesis, which is an extra
        from .campaign import check_op

        return check_op
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
