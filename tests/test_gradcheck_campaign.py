"""`check_op` and the campaign: shipped rules pass, planted wrong ones are found, and a report says where."""

import json

import numpy as np
import pytest
from hypothesis import find, settings
from hypothesis import strategies as st

from tinygrad_mnist import arrays
from tinygrad_mnist.arrays import Namespace
from tinygrad_mnist.core import F
from tinygrad_mnist.gradcheck import strategies as gs
from tinygrad_mnist.gradcheck.campaign import campaign, check_op, head, sampler
from tinygrad_mnist.gradcheck.tensors import check
from tinygrad_mnist.ops import primitive

LINEAR = ["add", "sum", "getitem", "transpose", "einsum", "where"]
OTHERS = ["multiply", "maximum", "relu", "prod", "softmax", "power", "matmul", "cross_entropy", "std", "log"]


@pytest.fixture
def planted():
    """Registers a kernel with rules as a user would; takes it out again."""
    names = []

    def plant(kernel, *rules, variadic=False):
        names.append(kernel.__name__)
        return primitive(*rules, variadic=variadic)(kernel)

    yield plant
    for name in names:
        delattr(F, name)
        del Namespace.kernels[name]


def tripled(xp, a):
    return 3 * a


# ---- shipped rules


@pytest.mark.parametrize("name", [*LINEAR, *OTHERS])
def test_a_shipped_rule_passes(name):
    report = check_op(name, examples=25)
    assert report.ok, str(report)
    assert report.checks == 25
    assert sum(report.counts.values()) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("name", gs.op_names())
def test_every_shipped_rule_passes_in_float64(name):
    report = check_op(name)
    assert report.counts["fail"] == report.counts["nondet"] == 0, str(report)
    assert report.counts["ill"] <= 0.05 * sum(report.counts.values()), str(report)


def test_the_campaign_yields_a_row_for_each_operation_dtype_and_device():
    places = [("float64", "cpu"), ("float32", "cpu"), ("float64", "strict")]
    rows = campaign(["sin", "matmul"], examples=8, places=places)
    first = next(rows)
    assert (first.op, first.dtype, first.device, first.checks, first.verdict) == ("sin", "float64", "cpu", 8, "pass")
    rest = list(rows)
    assert [(row.op, row.dtype, row.device) for row in rest[-3:]] == [("matmul", *place) for place in places]
    assert all(row.ok for row in rest)
    titles = head().split()
    assert titles[:6] == ["op", "dtype", "device", "checks", "elements", "pass"]
    assert {len(row.row) for row in rest} <= {len(head())}


def test_an_unknown_operation_is_an_error_before_the_first_row():
    rows = campaign(["sin", "sine"], examples=1)
    with pytest.raises(ValueError, match="no operation 'sine'"):
        next(rows)


def test_composed_functions_can_be_checked_too():
    assert check_op("gelu", examples=10).ok


# ---- wrong rules


def test_a_wrong_rule_of_a_user_is_found_and_named_with_all_that_a_reader_needs(planted):
    planted(tripled, lambda xp, g, *_: 3.001 * g)
    report = check_op("tripled", examples=20)
    assert report.verdict == "fail"
    assert not report.ok
    text = str(report)
    case = report.worst.case
    assert case.text == "tripled(a)"
    assert case.arrays[0].size == 1  # the smallest that fails
    for part in ("FAIL  tripled(a)", "a = ", "float64", "analytic", "numeric", "+-", "reproduce:"):
        assert part in text, text
    assert f"gradcheck tripled --dtype float64 --seed 0 --case {report.worst.number}" in text
    with pytest.raises(TypeError, match="report.ok"):
        bool(report)


@pytest.mark.parametrize(
    ("name", "operand", "rule"),
    [
        ("multiply", 1, lambda xp, g, _y, _a, b: g * b),
        ("relu", 0, lambda xp, g, y, *_: g * (y > 0) + 2 * g * (y == 0) * (y + 1 == 1)),
        ("maximum", 0, lambda xp, g, y, a, b, tie: g * (a == y) * (1 + (a == b))),
        ("sum", 0, lambda xp, g, _y, _a, axis, keepdims: xp.broadcast_to(xp.mean(g), _a.shape)),
        ("softmax", 0, lambda xp, g, y, *_, axis: y * (g - xp.sum(g * y, axis=-1, keepdims=True))),
        ("power", 1, lambda xp, g, y, a, _b: g * y * xp.log(a)),
        ("prod", 0, lambda xp, g, y, a, axis, keepdims: np.sum(g) * np.prod(a) / np.where(a == 0, 1, a)),
        ("transpose", 0, lambda xp, g, *_, axes: xp.transpose(g, axes)),
        ("concatenate", 0, lambda xp, g, _y, i, *_operands, axis: g[tuple(map(slice, _operands[i].shape))]),
    ],
)
def test_a_wrong_rule_in_the_place_of_a_shipped_one_is_found(monkeypatch, name, operand, rule):
    function = vars(F).get(f"_{name}") or getattr(F, name)
    prim = function.prim
    if prim.variadic:
        monkeypatch.setattr(prim.rules, "rule", rule)
    else:
        monkeypatch.setattr(prim, "rules", tuple(rule if i == operand else r for i, r in enumerate(prim.rules)))
    with np.errstate(all="ignore"):
        assert check_op(name, examples=25).verdict in ("fail", "nondet")


def test_a_rule_that_raises_is_a_failure_with_its_words(planted):
    def rule(xp, g, y, a):
        raise KeyError("no such thing")

    planted(tripled, rule)
    report = check_op("tripled", examples=5)
    assert report.verdict == "fail"
    assert "no such thing" in str(report)
    assert "--case" in str(report)


def test_a_float32_rule_that_leaves_float32_is_found(planted):
    def rounded(xp, g, *_):
        return 3 * g * (1 + 1e-4 * (g.dtype == np.float32))

    planted(tripled, rounded)
    assert check_op("tripled", examples=10).ok
    assert check_op("tripled", examples=10, dtype=np.float32).verdict == "fail"


# ---- reports


def test_the_case_that_failed_can_be_checked_alone(planted):
    planted(tripled, lambda xp, g, *_, **__: 3 * g * (1 + (g.ndim == 2)))
    report = check_op("tripled", examples=40, seed=3)
    again = check_op("tripled", seed=3, case=report.worst.number)
    assert (again.checks, again.verdict) == (1, "fail")
    assert again.worst.case == report.worst.case or np.array_equal(again.worst.case.arrays, report.worst.case.arrays)
    assert again.worst.report.items == report.worst.report.items
    assert again.worst.case.arrays[0].ndim == 2


def test_everything_but_the_time_comes_from_the_seed():
    rows = [check_op("hypot", examples=12, seed=seed) for seed in (1, 1, 2)]
    for row in rows:
        row.ms = 0.0
    assert rows[0].row == rows[1].row != rows[2].row


def test_an_example_is_the_same_whenever_it_is_asked_for():
    one, other = sampler(gs.op_cases("getitem")), sampler(gs.op_cases("getitem"))
    texts = [one(5, k).text for k in range(20)]
    assert [other(5, k).text for k in reversed(range(20))] == texts[::-1]
    assert len(set(texts)) > 10


def test_a_report_as_json(planted):
    found = json.loads(check_op("sin", examples=4).to_json())
    assert [found[key] for key in ("op", "verdict", "ok", "checks", "worst")] == ["sin", "pass", True, 4, None]
    planted(tripled, lambda xp, g, *_: g)
    found = json.loads(check_op("tripled", examples=4).to_json())
    assert (found["verdict"], found["worst"]["text"]) == ("fail", "tripled(a)")
    assert found["worst"]["report"]["verdict"] == "fail"


# ---- strategies of a user's own


def test_a_strategy_may_draw_tuples_of_operands(planted):
    def sixth_root(xp, a, b):
        return a ** (1 / 6) * b

    planted(sixth_root, lambda xp, g, y, a, b: g * y / (6 * a), lambda xp, g, _y, a, _b: g * a ** (1 / 6))
    positive = gs.values((3,), domain=(0.0, np.inf), scale=gs.decades(-2, 2), near=())
    operands = st.tuples(positive, gs.values((2, 3), scale=gs.decades(0, 0), near=()))
    report = check_op("sixth_root", operands, examples=20)
    assert report.ok, str(report)
    assert report.counts["pass"] == 20 * 9
    assert check_op("sixth_root", st.tuples(positive, positive), examples=10, dtype="float32").dtype == "float32"


def test_operands_without_a_rule_and_any_number_of_operands_need_no_strategy(planted):
    def signed_like(xp, a, b):
        return a * xp.sign(b)

    def total(xp, *operands):
        return sum(operands)

    planted(signed_like, lambda xp, g, _y, _a, b: g * xp.sign(b), None)
    assert check_op("signed_like", examples=20).ok
    planted(total, lambda xp, g, _y, i, *_: g, variadic=True)
    assert check_op("total", examples=20).ok


def test_a_strategy_may_draw_cases():
    report = check_op("graph", gs.graphs(), examples=20)
    assert report.ok, str(report)
    assert report.command == "check_op('graph', strategy, dtype='float64', seed=0, device='cpu')"


def test_a_strategy_for_a_function_that_is_not_registered_is_an_error():
    with pytest.raises(ValueError, match="no function 'nowhere'.*@primitive"):
        check_op("nowhere", gs.values((3,)), examples=1)


def test_a_strategy_that_rejects_everything_is_an_error():
    with pytest.raises(ValueError, match="reject"):
        check_op("sin", gs.values((3,)).filter(lambda a: False), examples=1)


# ---- graphs


def test_a_mistake_in_adding_up_gradients_shrinks_to_the_two_operations_that_show_it(monkeypatch):
    """The third gradient that arrives at a Tensor replaces the sum of the first two: no operation alone shows it."""
    right = arrays.plus
    monkeypatch.setattr(arrays, "plus", lambda old, new, in_place=False: new if in_place else right(old, new))
    names = ("add", "negative")
    for name in names:
        assert check_op(name, examples=20).ok
    case = find(
        gs.graphs(names, depth=3),
        lambda case: check(case.fn, *case.arrays, wrt=case.wrt).verdict == "fail",
        settings=settings(max_examples=500, database=None),
    )
    assert case.text == "b = add(a, a); c = add(b, a)"
    assert [a.tolist() for a in case.arrays] == [0.47]


def test_a_graph_of_an_operation_that_fits_in_none_is_an_error():
    with pytest.raises(ValueError, match="'cross_entropy' is not one of the operations that graphs are made of"):
        sampler(gs.graphs(("cross_entropy",)))(0, 0)
