"""Writes `derivatives.tsv`: values and derivatives to 30 digits, at points that no difference of floats can reach.

    python tests/golden/generate.py

No rule of calculus is used. An operation is written in numbers of 700 digits, and its derivative is the central
difference with a step of 1e-40 of the operand, at the very float64 that the table names. What is wrong after the 30th
digit shows when step and precision are others: every entry is computed twice.

A row of the table:

- `call`: an expression in `xp` and the operands `a` and `b`, with a number as its result
- `operands`: JSON, each number in the shortest digits that give its float64 back
- `of`: the value, or the derivative by which operand
- `within`: how far from `exact` float64 may be, in ulps of `exact` or of the number that is named
- `why`: the reason where that is not 4 ulp
- `exact`: 30 digits
"""

import json
import math
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import mpmath

TABLE = Path(__file__).with_name("derivatives.tsv")
COLUMNS = ("call", "operands", "of", "within", "why", "exact")
DIGITS = 30

# ---- the operations, by definition ----------------------------------------------------------------------------------


class Exact:
    """The functions of the expressions on numbers of many digits; an array is a list of them."""

    def __init__(self, digits):
        m = self.m = mpmath.MPContext()
        m.dps = digits
        self.exp, self.expm1, self.log, self.log1p, self.sqrt = m.exp, m.expm1, m.log, m.log1p, m.sqrt
        self.sin, self.cos, self.tan, self.sinh, self.cosh, self.tanh = m.sin, m.cos, m.tan, m.sinh, m.cosh, m.tanh
        self.arcsin, self.arccos, self.arctan, self.arctan2 = m.asin, m.acos, m.atan, m.atan2
        self.arcsinh, self.arccosh, self.arctanh = m.asinh, m.acosh, m.atanh
        self.prod = m.fprod

    def log2(self, a):
        return self.m.log(a) / self.m.log(2)

    def log10(self, a):
        return self.m.log(a) / self.m.log(10)

    def exp2(self, a):
        return self.m.mpf(2) ** a

    def cbrt(self, a):
        return self.m.sign(a) * abs(a) ** (self.m.mpf(1) / 3)

    def square(self, a):
        return a * a

    def reciprocal(self, a):
        return 1 / a

    def multiply(self, a, b):
        return a * b

    def divide(self, a, b):
        return a / b

    def power(self, a, b):
        return a**b

    def hypot(self, a, b):
        return self.m.sqrt(a * a + b * b)

    def sigmoid(self, a):
        return 1 / (1 + self.m.exp(-a))

    def softplus(self, a):
        return self.m.log1p(self.m.exp(a))

    def silu(self, a):
        return a * self.sigmoid(a)

    def gelu(self, a):
        """a/2 (1 + tanh u) is a / (1 + e^-2u), which needs no digits beyond those of e^-2u."""
        u = self.m.sqrt(2 / self.m.pi) * (a + self.m.mpf("0.044715") * a**3)
        return a * self.sigmoid(2 * u)

    def logaddexp(self, a, b):
        return self.logsumexp([a, b])

    def logsumexp(self, a):
        return self.m.log(self.m.fsum(map(self.m.exp, a)))

    def softmax(self, a):
        total = self.m.fsum(map(self.m.exp, a))
        return [self.m.exp(x) / total for x in a]

    def log_softmax(self, a):
        return [x - self.logsumexp(a) for x in a]

    def softmax_cross_entropy(self, a, label):
        return self.logsumexp(a) - a[label]

    def norm(self, a):
        return self.m.sqrt(self.m.fsum(x * x for x in a))

    def mean(self, a):
        return self.m.fsum(a) / len(a)

    def var(self, a):
        return self.mean([(x - self.mean(a)) ** 2 for x in a])

    def std(self, a):
        return self.m.sqrt(self.var(a))


# ---- the points -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """An operation at some points: each the one operand, or a tuple of them.

    `bounds`: (within, why) of "value", of one derivative ("d/da[1]") or of all ("d/d"), where they are not 4 ulp.
    """

    call: str
    points: list
    bounds: dict = field(default_factory=dict)


BELOW = 1 - 2.0**-53
"""The largest float64 below 1."""

NONZERO = [-2.5, -1.0, -0.3, 0.7, 1.3, 3.0]
ORDINARY = [0.0, *NONZERO]
POSITIVE = [0.1, 0.7, 1.3, 3.0, 42.0]
SMALL = [1e-300, 1e-18, 1e-8]
BELOW_ONE = [-0.9, 0.0, 0.5, *SMALL, 1 - 1e-12, -1 + 1e-12, BELOW, -BELOW]
ABOVE_ZERO = [*POSITIVE, *SMALL, 1 - 1e-12, 1 + 1e-12, 1e8, 1e300]
ANGLES = [*NONZERO, *SMALL, math.pi / 2 - 1e-12, math.pi / 2, math.pi, 1e8, 1e22]

LOGITS = [[0.7, 1.3, -0.3], [1e-18, 0.0], [1000.0, 1001.0, 999.5], [0.7, -math.inf, 1.3]]
DOMINATED = [[0.0, 40.0], [0.0, 700.0, -3.0]]  # by the entry 1
UNEVEN = [[0.1, 40.3, 13.7]]

SATURATED = "4 ulp of 1", "the rule reads the result alone, which is rounded to 1: the derivative is what is left to 1"
LEFT_TO_ONE = "4 ulp of 1", "what is left of 1 beside a probability near 1: the difference of two numbers near 1"
LOST = "4 ulp of 1", "the sum of the exponentials, one of which is 1, is rounded to 1"
ROOT = "4 ulp of 1", "near a root: the difference of two numbers near 1"
SHIFTED = "40 ulp", "the difference of operands 40 apart is rounded: an ulp of it is 40 ulps of its exponential"
SHIFTED_EXPONENT = "256 ulp", "b - 1 is rounded where |b| < 0.5: an ulp of it is |ln a| ulps of the power"
CENTRED = "4 ulp of 1e8", "the mean is rounded: an ulp of it is 1e8 ulps of 1"
DEEP = "64 ulp", "e^-u with u up to 88: an ulp of u is u ulps of the result"
DEEPER = "600 ulp", "e^-u with u up to 603: an ulp of u is u ulps of the result"

ROWS = [
    Rows("xp.exp(a)", [*ORDINARY, *SMALL, -745.0, -700.0, -40.0, 40.0, 700.0, 709.7]),
    Rows("xp.exp2(a)", [*ORDINARY, *SMALL, -1074.0, -1000.5, 40.5, 1000.5, 1023.9]),
    Rows("xp.expm1(a)", [*ORDINARY, *SMALL, -1e-12, -700.0, -40.0, 40.0, 700.0, 709.7]),
    Rows("xp.log(a)", ABOVE_ZERO),
    Rows("xp.log2(a)", [*ABOVE_ZERO, 1.7e308]),
    Rows("xp.log10(a)", [*ABOVE_ZERO, 1.7e308]),
    Rows("xp.log1p(a)", [*POSITIVE, *SMALL, 0.0, -1e-18, -0.5, -1 + 1e-12, -BELOW, 1e8, 1e300]),
    Rows("xp.sin(a)", [0.0, *ANGLES]),
    Rows("xp.cos(a)", ANGLES),
    Rows("xp.tan(a)", [0.0, *ANGLES]),
    Rows("xp.arcsin(a)", BELOW_ONE),
    Rows("xp.arccos(a)", BELOW_ONE),
    Rows("xp.arctan(a)", [*ORDINARY, *SMALL, 1e8, -1e8, 1e150]),
    Rows("xp.arctan2(a, b)", [
        *[(3.0, 4.1), (-0.3, 0.7), (0.3, -0.7), (1e200, 3e200), (1e-200, 3e-200), (1e-8, 1.0), (1.0, 1e-8)],
        *[(1e-18, -1.0), (1e150, 1e-150), (1e-150, 1e150), (1e300, 1e290)],
    ]),
    Rows("xp.sinh(a)", [*ORDINARY, *SMALL, -40.0, 40.0, 700.0, 710.0]),
    Rows("xp.cosh(a)", [*NONZERO, *SMALL, -40.0, 40.0, 700.0, 710.0]),
    Rows("xp.tanh(a)", [-1.0, -0.3, 0.0, 0.7, 1.3, *SMALL]),
    Rows("xp.tanh(a)", [-40.0, -2.5, 3.0, 20.0, 30.0, 300.0], {"d/d": SATURATED}),
    Rows("xp.arcsinh(a)", [*ORDINARY, *SMALL, 1e8, -1e8, 1e300]),
    Rows("xp.arccosh(a)", [1.3, 3.0, 42.0, 1 + 2.0**-52, 1 + 1e-12, 1 + 1e-8, 1e8, 1e300]),
    Rows("xp.arctanh(a)", BELOW_ONE),
    Rows("xp.square(a)", [*NONZERO, *SMALL, 1e8, 1e150]),
    Rows("xp.sqrt(a)", [*POSITIVE, *SMALL, 5e-324, 1e8, 1e300]),
    Rows("xp.cbrt(a)", [*POSITIVE, *SMALL, 5e-324, 1e8, 1e300, -8.5, -1e-300]),
    Rows("xp.reciprocal(a)", [*POSITIVE, -0.3, 1e-150, 1e-18, 1e8, 1e150]),
    Rows("1 / a", [*POSITIVE, -0.3, 1e-150, 1e-18, 1e8, 1e150]),
    Rows("a ** 0.5", [*POSITIVE, *SMALL, 1e8, 1e300]),
    Rows("a ** 3", [*POSITIVE, -0.3, 1e-100, 1e-18, 1e8, 1e100]),
    Rows("a ** -2", [*POSITIVE, -0.3, 1e-100, 1e-18, 1e8, 1e100]),
    Rows("xp.multiply(a, b)", [(0.7, 1.3), (1e200, 1e-300), (-1e-18, 1e8)]),
    Rows("xp.divide(a, b)", [
        *[(0.7, 1.3), (-3.0, 42.0), (1e-300, 1e-8), (1e300, 1e8), (1e-8, 1e-150), (1e8, 1e300), (3.0, 1e18)],
    ]),
    Rows("xp.power(a, b)", [
        *[(0.7, 1.3), (3.0, -2.5), (42.0, 0.5), (1e8, 1e-18), (1e-18, 3.7), (1e-300, 0.5), (1e-300, 1.01)],
        *[(1e300, 1.01), (1e300, -0.5), (1 - 1e-12, 1e8), (1 + 1e-12, -1e12), (2.5, 700.0), (10.0, 0.1), (1e-3, -0.3)],
    ]),
    Rows("xp.power(a, b)", [(1e300, 0.1), (1e-300, 0.1), (1e-8, 1e-8)], {"d/da": SHIFTED_EXPONENT}),
    Rows("xp.hypot(a, b)", [
        *[(3.0, 4.1), (-0.3, 0.7), (1e200, 3e200), (1e-200, 3e-200), (1e-300, 2e-300), (1e-8, 1.0), (1e300, 1e300)],
        *[(1.0, 1e-18), (1e8, -1e-8), (1e-310, 1e-309)],
    ]),
    Rows("xp.sigmoid(a)", [-700.0, -40.0, -10.0, -2.5, -1.0, -0.3, 0.0, 0.7, 1.3, *SMALL]),
    Rows("xp.sigmoid(a)", [3.0, 10.0, 40.0, 700.0], {"d/d": SATURATED}),
    Rows("xp.softplus(a)", [*ORDINARY, *SMALL, -700.0, -40.0, 40.0, 700.0, 1e300]),
    Rows("xp.silu(a)", [*ORDINARY, *SMALL, -700.0, -40.0, -10.0, 10.0, 40.0, 700.0]),
    Rows("xp.silu(a)", [-1.278], {"d/d": ROOT}),
    Rows("xp.gelu(a)", [-4.0, -2.5, -1.0, -0.3, 0.0, 0.7, 1.3, 3.0, *SMALL, -1e4, -40.0, 6.0, 10.0, 30.0, 1e4]),
    Rows("xp.gelu(a)", [-0.752], {"d/d": ROOT}),
    Rows("xp.gelu(a)", [-5.0, -6.0, -10.0], {"value": DEEP, "d/d": DEEP}),
    Rows("xp.gelu(a)", [-15.0, -20.0], {"value": DEEPER, "d/d": DEEPER}),
    Rows("xp.logaddexp(a, b)", [
        *[(0.7, 1.3), (-2.5, 3.0), (0.0, -40.0), (-700.0, 0.0), (700.0, 699.0), (1000.3, 1000.0), (1e8, 1e8)],
        *[(-1e-18, 1e-18), (-1000.0, -1002.5), (-math.inf, 0.7)],
    ]),
    Rows("xp.logaddexp(a, b)", [(0.1, 40.3)], {"d/d": SHIFTED}),
    Rows("xp.logsumexp(a)", [*LOGITS, *DOMINATED, [-1000.0, -1002.5], [1e8, 1e8 + 1.5], [5.0]]),
    Rows("xp.logsumexp(a)", [[-700.0, 0.0]], {"value": LOST}),
    Rows("xp.logsumexp(a)", UNEVEN, {"d/d": SHIFTED}),
    Rows("xp.softmax(a)[0]", [*LOGITS, *DOMINATED]),
    Rows("xp.softmax(a)[0]", UNEVEN, {"value": SHIFTED, "d/d": SHIFTED}),
    Rows("xp.softmax(a)[1]", LOGITS),
    Rows("xp.softmax(a)[1]", DOMINATED, {"d/da[1]": LEFT_TO_ONE}),
    Rows("xp.softmax(a)[1]", UNEVEN, {"d/d": SHIFTED, "d/da[1]": LEFT_TO_ONE}),
    Rows("xp.log_softmax(a)[0]", [*LOGITS, *DOMINATED]),
    Rows("xp.log_softmax(a)[0]", UNEVEN, {"d/d": SHIFTED}),
    Rows("xp.log_softmax(a)[1]", LOGITS[:-1]),
    Rows("xp.log_softmax(a)[1]", DOMINATED, {"value": LOST, "d/da[1]": LEFT_TO_ONE}),
    Rows("xp.log_softmax(a)[1]", UNEVEN, {"value": LOST, "d/d": SHIFTED, "d/da[1]": LEFT_TO_ONE}),
    Rows("xp.softmax_cross_entropy(a, 0)", [*LOGITS, *DOMINATED]),
    Rows("xp.softmax_cross_entropy(a, 0)", UNEVEN, {"d/d": SHIFTED}),
    Rows("xp.softmax_cross_entropy(a, 1)", LOGITS[:-1]),
    Rows("xp.softmax_cross_entropy(a, 1)", DOMINATED, {"value": LOST, "d/da[1]": LEFT_TO_ONE}),
    Rows("xp.softmax_cross_entropy(a, 1)", UNEVEN, {"value": LOST, "d/d": SHIFTED, "d/da[1]": LEFT_TO_ONE}),
    Rows("xp.norm(a)", [[3.0, 4.1, -0.3], [1e-8, 1.0], [1e150, 3e150], [1e-150, 3e-150], [1e-18, 1.0, 1e8]]),
    Rows("xp.var(a)", [[0.7, 1.3, -0.3, 2.2], [1e-8, 3e-8, 7e-8], [1e150, 3e150]]),
    Rows("xp.var(a)", [[1e8, 1e8 + 1, 1e8 + 2.5]], {"d/d": CENTRED}),
    Rows("xp.std(a)", [[0.7, 1.3, -0.3, 2.2], [1e-8, 3e-8, 7e-8], [1e150, 3e150]]),
    Rows("xp.std(a)", [[1e8, 1e8 + 1, 1e8 + 2.5]], {"d/d": CENTRED}),
    Rows("xp.prod(a)", [[0.7, 1.3, -0.3], [0.0, 3.0, 2.5], [0.0, 0.0, 2.5], [1e200, 1e-200, 3.0], [1e-300, 1e8, 1e8]]),
]

# ---- the table ------------------------------------------------------------------------------------------------------


@cache
def exact(digits):
    return Exact(digits)


def evaluate(call, xp, operands):
    return eval(call, {"xp": xp, **dict(zip("ab", operands, strict=False))})


def compute(call, operands, of, digits, step):
    """The value, or the central difference by one operand or by one element of it."""
    xp = exact(digits)
    numbers = [[xp.m.mpf(x) for x in a] if isinstance(a, list) else xp.m.mpf(a) for a in operands]
    if of == "value":
        return evaluate(call, xp, numbers)
    place = of.removeprefix("d/d")  # "a", "b", or "a[1]"
    x = eval(place, dict(zip("ab", numbers, strict=False)))
    h = xp.m.mpf(step) * (min(abs(x), 1) or 1)

    def at(x):
        moved = {name: list(a) if isinstance(a, list) else a for name, a in zip("ab", numbers, strict=False)}
        exec(f"{place} = x", {"x": x}, moved)
        return evaluate(call, xp, moved.values())

    ahead, behind = at(x + h), at(x - h)
    kept = abs(ahead - behind) >= xp.m.mpf(10) ** (DIGITS + 5 - digits) * abs(ahead)
    assert kept or not xp.m.isfinite(x), f"{call} at {operands}: {digits} digits are too few for {of}"
    return (ahead - behind) / (2 * h)


def digits_of(*entry):
    """30 digits that two steps and two precisions agree on."""
    once, again = (
        mpmath.nstr(compute(*entry, digits, step), DIGITS, strip_zeros=False, min_fixed=0, max_fixed=0)
        for digits, step in ((700, "1e-40"), (750, "3e-45"))
    )
    assert once == again, f"{entry}: {once} and {again}"
    return once


def entries():
    """The rows of the table. A derivative beyond the largest float64 is left out."""
    for rows in ROWS:
        for point in rows.points:
            operands = point if isinstance(point, tuple) else (point,)
            names = [
                f"d/d{name}{k}" for name, a in zip("ab", operands, strict=False)
                for k in ([f"[{j}]" for j in range(len(a))] if isinstance(a, list) else [""])
            ]
            for of in ("value", *names):
                number = digits_of(rows.call, operands, of)
                if abs(mpmath.mpf(number)) <= sys.float_info.max:
                    bound = rows.bounds.get(of, rows.bounds.get(of[:3], ("4 ulp", "")))
                    yield rows.call, json.dumps(operands)[1:-1], of, *bound, number


def table():
    return "".join("\t".join(row) + "\n" for row in (COLUMNS, *entries()))


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
