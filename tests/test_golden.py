"""Values and gradients at points that no difference can reach, against 30 digits: see golden/generate.py."""

import csv
import json
import math
import re
from decimal import Decimal
from itertools import groupby

import numpy as np
import pytest
from golden import generate

from tinygrad_mnist import Tensor, grad, hvp, primitive
from tinygrad_mnist.core import F

with generate.TABLE.open(encoding="utf-8", newline="") as _file:
    ROWS = list(csv.DictReader(_file, delimiter="\t"))

# What adds, multiplies by a constant, chooses or moves is exact, or as exact as NumPy: no tails.
WITHOUT_TAILS = {
    *("add", "subtract", "negative", "absolute", "sign", "mod", "floor_divide", "where", "relu", "leaky_relu"),
    *("maximum", "minimum", "fmax", "fmin", "max", "min", "sum", "mean", "cumsum", "matmul", "einsum"),
    *("identity", "astype", "to", "broadcast_to", "concatenate", "flip", "getitem", "pad", "reshape", "roll"),
    *("scatter_add", "transpose", "tril", "triu"),
}


def bound(row):
    """How far from `exact` a result may be."""
    ulps, of = re.fullmatch(r"(\d+) ulp(?: of (.+))?", row["within"]).groups()
    return Decimal(ulps) * Decimal(math.ulp(float(of or row["exact"])))  # the ulp of a subnormal number is 2^-1074


def accepted(row, result):
    return math.isfinite(result) and abs(Decimal(result) - Decimal(row["exact"])) <= bound(row)


def results(call, operands, xp=F):
    """{"value": f, "d/da": ...} as this package computes them."""
    leaves = {
        name: Tensor(np.array(a, np.float64), requires_grad=True)
        for name, a in zip("ab", json.loads(f"[{operands}]"), strict=False)
    }
    y = generate.evaluate(call, xp, leaves.values())
    y.backward()
    found = {"value": float(y)}
    for name, leaf in leaves.items():
        found |= {f"d/d{name}" + "".join(f"[{j}]" for j in k): float(g) for k, g in np.ndenumerate(leaf.grad)}
    return found


def refused(rows, xp=F):
    """The rows that the package does not fulfil, as lines to read."""
    wrong = []
    for (call, operands), group in groupby(rows, key=lambda row: (row["call"], row["operands"])):
        found = results(call, operands, xp)
        wrong += [
            f"{call} at {operands}: {row['of']} is {found[row['of']]!r}, exactly {row['exact']}, within {row['within']}"
            for row in group
            if not accepted(row, found[row["of"]])
        ]
    return wrong


@pytest.mark.filterwarnings("ignore:underflow")
@pytest.mark.parametrize("call", dict.fromkeys(row["call"] for row in ROWS))
def test_values_and_gradients_are_right_in_every_digit(call):
    assert refused(row for row in ROWS if row["call"] == call) == []


def test_the_table_is_what_the_generator_writes():
    assert generate.TABLE.read_text(encoding="utf-8") == generate.table()


def test_every_operation_that_may_have_tails_is_in_the_table():
    named = {name for row in ROWS for name in re.findall(r"xp\.(?:softmax_)?(\w+)", row["call"])}
    ours = {
        f.prim.name
        for f in vars(F).values()
        if hasattr(f, "prim") and f.prim.differentiable and f.__module__.startswith("tinygrad_mnist.")
    }
    assert len(ours) > 60
    assert sorted(ours - named - WITHOUT_TAILS) == []


def test_a_looser_bound_says_why():
    assert [row for row in ROWS if (row["within"] != "4 ulp") != bool(row["why"])] == []


# ---- beside the table -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("offset", [1000, -1000])
@pytest.mark.parametrize("f", [F.logsumexp, lambda a: F.logaddexp(a[0], a[1])], ids=["logsumexp", "logaddexp"])
def test_shares_are_right_beside_a_large_offset(f, offset, dtype):
    a = Tensor(np.array([offset, offset + 1], dtype), requires_grad=True)
    f(a).backward()
    expected = np.array([1 / (1 + math.e), 1 / (1 + 1 / math.e)])
    np.testing.assert_allclose(a.grad, expected, rtol=2 * np.finfo(dtype).eps)


def test_a_row_of_masked_logits_gets_no_gradient_of_any_order():
    a = np.array([[-np.inf, -np.inf], [0.0, 0.0]])
    with np.errstate(all="raise"):
        assert grad(lambda a: F.logsumexp(a, axis=1).sum())(a).tolist() == [[0, 0], [0.5, 0.5]]
        second = hvp(lambda a: F.logsumexp(a, axis=1).sum(), a, np.array([[1.0, 2.0], [1.0, 2.0]]))
    np.testing.assert_allclose(second, [[0, 0], [-0.25, 0.25]])


# The checks above, checked.


def row_of(call, operands, of):
    return next(row for row in ROWS if (row["call"], row["operands"], row["of"]) == (call, operands, of))


@pytest.mark.parametrize("at", ["-700.0", "-40.0", "0.7", "40.0"])
def test_the_fifth_ulp_is_refused(at):
    row = row_of("xp.softplus(a)", at, "d/da")
    right = float(row["exact"])
    ulp = math.ulp(right)
    assert all(accepted(row, right + k * ulp) for k in (-3, 0, 3))
    assert not any(accepted(row, right + k * ulp) for k in (-5, 5, math.nan, math.inf))


def test_ulps_of_a_subnormal_number_are_counted_and_those_below_are_zero():
    row = row_of("xp.exp(a)", "-745.0", "d/da")
    assert accepted(row, 4 * 5e-324)
    assert not accepted(row, 5 * 5e-324)
    assert accepted(row_of("xp.gelu(a)", "-40.0", "d/da"), 0.0)


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        ("xp.softplus(a)", lambda xp, g, y, a: g * (1 - 1 / (1 + xp.exp(a)))),  # cancels at -40
        ("xp.log1p(a)", lambda xp, g, y, a: g / xp.exp(y)),
        ("xp.exp(a)", lambda xp, g, y, a: g * y * (1 + 2e-15)),
        ("xp.sinh(a)", lambda xp, g, y, a: g * xp.sqrt(1 + y * y)),  # overflows at 700
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_a_planted_rule_that_loses_digits_is_refused(monkeypatch, call, rule):
    name = re.findall(r"xp\.(\w+)", call)[0]
    monkeypatch.setattr(F, "__dict__", dict(vars(F)))  # what is registered goes with it

    def planted(xp, a):
        return getattr(xp, name)(a)

    planted.__name__ = f"{name}_planted"
    rows = [{**row, "call": f"xp.{name}_planted(a)"} for row in ROWS if row["call"] == call]
    primitive(rule)(planted)
    wrong = refused(rows)
    assert wrong
    assert all("d/da" in line for line in wrong)
