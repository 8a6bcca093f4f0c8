"""The strategies: each yields what it says, for every primitive, and shrinks to what a reader wants to see."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st

from tinygrad_mnist import Tensor, losses, numpy_api, ops
from tinygrad_mnist.arrays import Namespace
from tinygrad_mnist.core import F
from tinygrad_mnist.gradcheck import strategies as gs
from tinygrad_mnist.gradcheck.campaign import sampler

SHAPES = gs.shapes(0, 3, max_side=3)
FEW = settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])


def registered():
    """The names of the differentiable primitives of the package, found without the help of `op_names`."""
    everything = [*vars(ops).values(), *vars(losses).values(), *vars(numpy_api).values(), *vars(F).values()]
    prims = (getattr(function, "prim", None) for function in everything)
    return sorted({prim.name for prim in prims if prim is not None and prim.differentiable})


def primitives_in(t):
    """The names of the primitives in the graph below a Tensor."""
    todo, seen, names = [t._node], set(), set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += node.parents
            names.add(getattr(getattr(node, "prim", None), "name", None))
    return names


def backward(case):
    """(result, gradients) of a case."""
    operands = [
        Tensor(a.copy(), requires_grad=i in case.wrt) if a.dtype.kind == "f" else a for i, a in enumerate(case.arrays)
    ]
    y = case.fn(*operands)
    if y.requires_grad:
        y.backward(np.full(y.shape, 0.5, y.dtype))
    return y, [operands[i].grad for i in case.wrt]


def first(strategy, n=25):
    sample = sampler(strategy)
    return [sample(0, k) for k in range(n)]


def simplest(strategy, holds=lambda example: True):
    return find(strategy, holds, settings=settings(max_examples=3000, database=None))


# ---- every primitive


def test_op_names_are_the_registered_differentiable_primitives():
    assert gs.op_names() == registered()
    assert len(gs.op_names()) > 70


@pytest.mark.parametrize("name", registered())
def test_every_primitive_has_cases_of_its_own_which_use_it(name):
    assert name in gs._CASES
    used = set()
    for case in first(gs.op_cases(name), 20):
        assert case.op == name
        assert all(a.dtype == np.float64 for i, a in enumerate(case.arrays) if i in case.wrt)
        y, gradients = backward(case)
        used |= primitives_in(y)
        assert np.isfinite(y.data).all(), case
        assert all(g is None or np.isfinite(g).all() for g in gradients), case
    assert name in used


@pytest.mark.parametrize("name", registered())
def test_float16_holds_the_values_of_float16_cases_and_their_gradients(name):
    for case in first(gs.op_cases(name, np.float16), 10):
        assert {a.dtype for a in case.arrays if a.dtype.kind == "f"} == {np.dtype(np.float16)}
        y, gradients = backward(case)
        assert np.isfinite(y.data).all(), case
        assert all(g is None or np.isfinite(g).all() for g in gradients), case


@pytest.mark.parametrize("name", ["gelu", "sort", "tensordot", "clip"])
def test_composed_functions_have_the_cases_of_their_rows_in_the_table(name):
    for case in first(gs.op_cases(name)):
        assert case.text.startswith(name)
        assert np.isfinite(backward(case)[0].data).all()


def test_an_unknown_name_is_an_error_that_names_the_nearest():
    with pytest.raises(ValueError, match="no operation 'multipy': did you mean 'multiply'"):
        gs.op_cases("multipy")
    with pytest.raises(ValueError, match="op_names"):
        gs.op_cases("?")


SEEN = {  # what a rule may get wrong: some case must show it
    "multiply": [
        lambda c: c.arrays[0].shape == () != c.arrays[1].shape,
        lambda c: c.arrays[1].shape == () != c.arrays[0].shape,
        lambda c: 0 in c.arrays[0].shape,
        lambda c: c.arrays[0].ndim == 2 and c.arrays[0].shape[:1] == (1,) < c.arrays[1].shape[:1],
        lambda c: c.wrt == (1,),
        lambda c: any(a.size > 1 and 0 in a.strides for a in c.arrays),
        lambda c: any(s < 0 for a in c.arrays for s in a.strides),
        lambda c: np.any(abs(c.arrays[0]) > 1e4),
        lambda c: np.any((c.arrays[1] != 0) & (abs(c.arrays[1]) < 1e-4)),
    ],
    "relu": [lambda c: np.any(c.arrays[0] == 0), lambda c: np.any((c.arrays[0] != 0) & (abs(c.arrays[0]) < 1e-8))],
    "max": [
        lambda c: c.arrays[0].size > 1 and len(np.unique(c.arrays[0])) == 1,
        lambda c: "axis=()" in c.text,
        lambda c: "keepdims=True" in c.text and "axis=-1" in c.text,
        lambda c: "axis=(1, 0)" in c.text,
    ],
    "maximum": [lambda c: c.wrt == (0, 1) and np.any(c.arrays[0] == c.arrays[1]) and c.arrays[0].shape != ()],
    "prod": [
        lambda c: np.sum(c.arrays[0] == 0) == 1 < c.arrays[0].size,
        lambda c: np.sum(c.arrays[0] == 0) == 2 < c.arrays[0].size,
    ],
    "power": [
        lambda c: np.any(c.arrays[0] < 0) and c.wrt == (0,),
        lambda c: np.any((c.arrays[0] == 0) & (c.arrays[1] == 0)),
        lambda c: np.any(c.arrays[0] == 0) and c.wrt == (1,),
        lambda c: c.wrt == (0, 1),
    ],
    "log": [lambda c: np.any(c.arrays[0] < 1e-200), lambda c: np.any(c.arrays[0] > 1e200)],
    "std": [
        lambda c: "ddof=1" in c.text,
        lambda c: c.arrays[0].size > 1 and np.ptp(c.arrays[0]) == 0 and "axis=None" in c.text,
    ],
    "sigmoid": [lambda c: np.any(c.arrays[0] >= 10), lambda c: np.any(c.arrays[0] <= -10)],
    "arcsin": [lambda c: np.any(abs(c.arrays[0]) > 1 - 2e-9)],
    "matmul": [
        lambda c: c.arrays[0].ndim == 1 < c.arrays[1].ndim,
        lambda c: c.arrays[1].ndim == 1 < c.arrays[0].ndim,
        lambda c: c.arrays[0].ndim == 1 == c.arrays[1].ndim,
        lambda c: c.arrays[0].ndim == 3 and c.arrays[1].ndim == 2,
        lambda c: c.arrays[0].shape[-1] == 0,
    ],
    "cross_entropy": [lambda c: "reduction='none'" in c.text and "axis=0" in c.text, lambda c: c.arrays[0].ndim == 1],
    "where": [lambda c: c.arrays[0].any() and not c.arrays[0].all(), lambda c: c.arrays[0].size > c.arrays[1].size],
    "einsum": [lambda c: "ii" in c.text, lambda c: c.text.count(",") == 5, lambda c: "->" not in c.text],
    "concatenate": [lambda c: len(c.arrays) == 3 and "axis=-" in c.text, lambda c: len(c.arrays) == 1],
    "roll": [lambda c: "shift=(" in c.text, lambda c: "shift=-" in c.text],
    "getitem": [lambda c: "None" in c.text, lambda c: "..." in c.text, lambda c: "False" in c.text],
    "tril": [lambda c: "k=-" in c.text, lambda c: c.arrays[0].ndim == 3],
}


@pytest.mark.parametrize("name", SEEN)
def test_the_cases_show_what_a_rule_may_get_wrong(name):
    cases = first(gs.op_cases(name), 200)
    missing = [k for k, seen in enumerate(SEEN[name]) if not any(seen(case) for case in cases)]
    assert not missing


# ---- the parts: each yields what it says, and only that


@pytest.mark.parametrize(
    ("strategy", "what"),
    [
        (gs.shapes(), lambda s: s == ()),
        (gs.shapes(), lambda s: 0 in s and len(s) == 3),
        (gs.broadcasting(2), lambda s: s[0][:1] == (1,) < s[1][:1] and s[0][1:2] > (1,) == s[1][1:2]),
        (gs.broadcasting(3), lambda s: s[0] == () and s[1] != () and 0 in s[2]),
        (gs.reductions((2, 3, 2)), lambda r: r["axis"] is None and r["keepdims"]),
        (gs.reductions((2, 3, 2)), lambda r: r["axis"] == -2),
        (gs.reductions((2, 3, 2)), lambda r: r["axis"] == ()),
        (gs.reductions((2, 3, 2)), lambda r: np.size(r["axis"]) == 2 and min(r["axis"]) < 0),
        (gs.permutations(3), lambda p: p == (1, 2, 0)),
        (gs.permutations(3), lambda p: min(p) < 0),
        (gs.reshapes((2, 3)), lambda s: len(s) == 3 and -1 in s),
        (gs.reshapes((0, 3)), lambda s: s == (2, 0)),
        (gs.indices((3, 2)), lambda i: any(isinstance(p, slice) and p.step == -1 for p in i)),
        (gs.indices((3, 2)), lambda i: any(np.ndim(p) and np.size(p) == 0 for p in i)),
        (gs.indices((3, 2)), lambda i: any(np.ndim(p) and 1 < len(np.unique(p)) < np.size(p) for p in i)),
        (gs.indices((3, 2)), lambda i: len(i) == 2 and all(np.ndim(p) == 1 for p in i)),
        (gs.indices((3, 2)), lambda i: any("bool" in str(getattr(p, "dtype", "")) for p in i)),
        (gs.indices((3, 2)), lambda i: i == ()),
        (gs.einsum_specs(), lambda e: e[0].count(",") == 2),
        (gs.einsum_specs(), lambda e: "ii" in e[0] and e[0].endswith("->")),
        (gs.values((3,)), lambda a: a[1] == 0),
        (gs.values((3,)), lambda a: 0 < abs(a[1]) < 1e-14 and abs(a[0]) > 0.1),
        (gs.values((3,)), lambda a: a[0] == a[1] != a[2]),
        (gs.values((3,)), lambda a: 0 < abs(a[0] - a[1]) < 2e-9 * abs(a[1])),
        (gs.values((3,)), lambda a: abs(a[0]) > 50 * abs(a[1]) > 0),
        (gs.values((3,)), lambda a: min(abs(a)) > 1e5),
        (gs.values((2,), domain=(0.0, math.inf), scale=gs.decades(-300, 0)), lambda a: max(a) < 1e-290),
        (gs.values((2,), domain=(-1.0, 1.0), near=()), lambda a: a[0] > 1 - 2e-9),
        (gs.layouts(np.ones((2, 3))), lambda a: a.flags.f_contiguous),
        (gs.layouts(np.ones((2, 3))), lambda a: a.strides[0] < 0),
        (gs.layouts(np.ones((2, 3))), lambda a: a.strides[1] == 16),
        (gs.layouts(np.ones((2, 3))), lambda a: a.strides[0] == 0 and not a.flags.writeable),
        (gs.upstream((4,)), lambda g: g[0] == 0 != g[1] and g[3] != 0),
        (gs.upstream((4,)), lambda g: max(g) < -0.1),
        (gs.upstream((4,)), lambda g: max(abs(g)) > 1000),
        (gs.upstream((4,)), lambda g: sorted(g) == [0, 0, 0, 1]),
        (gs.graphs(), lambda c: "multiply(b, b)" in c.text and c.text.count(";") >= 2),
    ],
)  # fmt: skip
def test_a_strategy_yields_what_it_says(strategy, what):
    assert what(simplest(strategy, what))


@FEW
@given(st.data(), SHAPES)
def test_arguments_fit_the_shape(data, shape):
    a = np.ones(shape)
    np.sum(a, **data.draw(gs.reductions(shape)))
    assert sorted(k % max(len(shape), 1) for k in data.draw(gs.permutations(len(shape)))) == list(range(len(shape)))
    assert a.reshape(data.draw(gs.reshapes(shape))).size == a.size
    a[data.draw(gs.indices(shape))]
    laid_out = data.draw(gs.layouts(a))
    assert (laid_out.shape, laid_out.dtype) == (shape, a.dtype)
    assert data.draw(gs.upstream(shape, np.float32)).dtype == np.float32


@FEW
@given(gs.broadcasting(3), gs.einsum_specs())
def test_shapes_broadcast_and_subscripts_fit(shapes, spec):
    np.broadcast_shapes(*shapes)
    subscripts, of_operands = spec
    F.einsum(subscripts, *map(np.ones, of_operands))  # NumPy's own does not stretch the size 1 everywhere


@FEW
@given(
    st.data(), SHAPES, st.sampled_from([np.float64, np.float32, np.float16]),
    st.sampled_from([gs.REAL, (0.0, math.inf), (-math.inf, -2.0), (-1.0, 1.0), (3.0, 5.0)]),
)
def test_values_lie_inside_the_open_domain(data, shape, dtype, domain):
    a = data.draw(gs.values(shape, dtype, domain=domain, scale=gs.decades(-1, 1), near=(0.0, 1.0)))
    assert (a.shape, a.dtype) == (shape, dtype)
    assert np.all((domain[0] < a) & (a < domain[1]))


# ---- shrinking


def test_the_simplest_case_is_one_short_number():
    case = simplest(gs.op_cases("multiply"))
    assert (case.text, case.arrays, case.wrt) == ("multiply(a, b)", (np.array(0.47), np.array(0.47)), (0, 1))
    case = simplest(gs.op_cases("sum"), lambda case: case.arrays[0].ndim == 2)
    assert (case.text, case.arrays[0].tolist()) == ("sum(a, axis=None, keepdims=False)", [[0.47]])


@pytest.mark.parametrize(
    ("name", "wrong", "text", "operands"),
    [
        # a rule that is wrong at the kink alone
        ("relu", lambda a: np.any(a == 0), "relu(a)", [0.0]),
        # one that forgets that the second operand was stretched
        ("add", lambda a, b: b.size < a.size, "add(a, b)", [[0.47, -1.06], 0.47]),
        # one that mixes up two axes
        ("transpose", lambda a: a.ndim == 3 and a.shape[0] != a.shape[2], "transpose(a, axes=(0, 1, 2))",
         [[[[0.47, -1.06]]]]),
        # one that divides by elements
        ("prod", lambda a: np.any(a == 0), "prod(a, axis=None, keepdims=False)", [0.0]),
        # one that gives both of two equal maxima all of the gradient
        ("max", lambda a: np.sum(a == np.max(a)) > 1, "max(a, axis=None, keepdims=False)", [[0.47, 0.47]]),
    ],
)  # fmt: skip
def test_what_makes_a_rule_fail_is_all_that_is_left(name, wrong, text, operands):
    case = simplest(gs.op_cases(name), lambda case: wrong(*case.arrays))
    assert (case.text, [a.tolist() for a in case.arrays]) == (text, operands)


def test_an_index_that_comes_twice_is_all_that_is_left():
    """Of a rule that forgets to add."""

    def repeats(case):
        a = case.arrays[0]
        places = case.fn(Tensor(np.arange(a.size, dtype=float).reshape(a.shape))).numpy()
        return len(np.unique(places)) < places.size

    case = simplest(gs.op_cases("getitem"), repeats)
    assert (case.text, case.arrays[0].tolist()) == ("a[np.array([0, 0], np.int64)]", [0.47])


# ---- the page


def test_the_examples_of_the_page_run_and_print_what_it_says(capsys):
    page = (Path(__file__).parent.parent / "docs" / "strategies.md").read_text("utf-8")
    space = {"__name__": "page"}
    try:
        for block in re.findall(r"```python\n(.*?)```(?:\n\n```output\n(.*?)```)?", page, re.DOTALL):
            exec(block[0], space)
            assert capsys.readouterr().out == block[1]
    finally:
        for name in ("scaled", "length"):
            vars(F).pop(name, None)
            Namespace.kernels.pop(name, None)


def test_the_page_names_every_public_strategy():
    page = (Path(__file__).parent.parent / "docs" / "strategies.md").read_text("utf-8")
    own = {name: value for name, value in vars(gs).items() if getattr(value, "__module__", "") == gs.__name__}
    functions = {name for name, value in own.items() if name[0] != "_" and not isinstance(value, type)}
    assert {name for name in functions if f"`{name}(" not in page and f"gs.{name}(" not in page} == {
        "call", "written", "op_names",
    }  # fmt: skip
