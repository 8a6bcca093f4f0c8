"""Mutants of the rules: that they are made as they should be, put in place and taken out, and judged honestly; and that
the cases that are shipped kill all of them but those that are listed."""

import dis
import functools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import strategies as st

from tinygrad_mnist import arrays, core
from tinygrad_mnist.arrays import Namespace
from tinygrad_mnist.core import F, Tensor
from tinygrad_mnist.functional import vjp
from tinygrad_mnist.gradcheck import mutants, sources
from tinygrad_mnist.gradcheck.mutants import Known, Mutant, Outcome, RuleResult, Trial, examine
from tinygrad_mnist.gradcheck.strategies import OpCase
from tinygrad_mnist.ops import primitive
from tinygrad_mnist.testing import strict


def double(a):
    return a * 2


def twice(xp, a, *, times: int = 2):
    """A docstring is no place for mutants."""
    out = a
    while times > 1:
        out = out + double(a)
        times -= 1
    return out


RULES = {"sine": lambda xp, g, *_: g, "tangent": lambda xp, g, y, *_: g * (1 + y * y)}
MASKS = [lambda xp, g, y, *_, axis: xp.where(y > 0, xp.sum(g, axis=axis, keepdims=True), 0)]


def texts(function, operands=1):
    tree = sources.name_all(sources.source(function), operands)
    return [text for text, _ in sources.source_mutants(tree, rule=True)]


# ---- made ---------------------------------------------------------------------------------------------------------


def test_the_mutants_of_a_formula():
    assert texts(RULES["tangent"]) == [
        "g * (1 + y * y) -> g",
        "g * (1 + y * y) -> 1 + y * y",
        "g * (1 + y * y) -> g / (1 + y * y)",
        "1 + y * y -> 1",
        "1 + y * y -> y * y",
        "1 + y * y -> 1 - y * y",
        "1 + y * y -> 1.0001 + y * y",
        "1 + y * y -> 0 + y * y",
        "1 + y * y -> 2 + y * y",
        "y * y -> y",
        "y * y -> y / y",
        "y * y -> a * y",
        "y * y -> y * a",
        "y -> _y",
    ]


def test_the_mutants_of_calls_masks_and_keywords():
    sum_of_g = "xp.sum(g, axis=axis, keepdims=True)"
    assert texts(MASKS[0]) == [
        f"xp.where(y > 0, {sum_of_g}, 0) -> xp.where(y > 0, {sum_of_g})",
        f"xp.where(y > 0, {sum_of_g}, 0) -> y > 0",
        f"xp.where(y > 0, {sum_of_g}, 0) -> xp.where({sum_of_g}, y > 0, 0)",
        f"xp.where(y > 0, {sum_of_g}, 0) -> xp.where(y > 0, 0, {sum_of_g})",
        "y > 0 -> y >= 0",
        "y > 0 -> y <= 0",
        f"{sum_of_g} -> xp.sum(g, keepdims=True)",
        f"{sum_of_g} -> xp.sum(g, axis=axis - 1, keepdims=True)",
        f"{sum_of_g} -> xp.sum(g, axis=axis)",
        f"{sum_of_g} -> xp.mean(g, axis=axis, keepdims=True)",
        f"{sum_of_g} -> g",
        f"xp.where(y > 0, {sum_of_g}, 0) -> xp.where(y > 0, {sum_of_g}, -1)",
        f"xp.where(y > 0, {sum_of_g}, 0) -> xp.where(y > 0, {sum_of_g}, 1)",
        "y > 0 -> a > 0",
        "y > 0 -> y > -1",
        "y > 0 -> y > 1",
        "keepdims=True -> keepdims=False",
        "y -> _y",
        "return g",
    ]


def test_a_lambda_is_found_among_others_on_its_line_and_a_function_under_its_decorator():
    first, second = (lambda xp, g, *_: -g), (lambda xp, g, *_: (-g) * 2)
    assert texts(first) == ["-g -> g"]
    assert "-g * 2 -> -g * 3" in texts(second)
    assert "out + double(a) -> out" in texts(twice)
    assert not [text for text in texts(twice) if "docstring" in text]


def fingerprint(code):
    symbols = "BINARY_OP", "COMPARE_OP", "UNARY_NEGATIVE"
    operators = [i.argrepr or i.opname for i in dis.get_instructions(code) if i.opname in symbols]
    constants = [fingerprint(c) if hasattr(c, "co_code") else c for c in code.co_consts if c is not None]
    return code.co_varnames, code.co_names, operators, constants


def test_what_is_found_of_every_registered_lambda_is_that_lambda():
    for prim in mutants.primitives().values():
        for rule in filter(None, [prim.rules.rule] if prim.variadic else prim.rules):
            if rule.__name__ == "<lambda>":
                assert fingerprint(sources.compiled(sources.source(rule))) == fingerprint(rule.__code__), prim


def test_a_rule_without_source_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^no source of <lambda> in <string>: .*$"):
        sources.source(eval("lambda xp, g, *_: g"))


def test_helpers_are_changed_for_the_rule_alone():
    assert set(sources.helpers(twice)) == {"double"}
    tree = dict(sources.source_mutants(sources.source(double)))["a * 2 -> a * 3"]
    changed = sources.rebuilt(twice, double, sources.compiled(tree))
    assert (changed(np, 1), twice(np, 1), double(1)) == (4, 3, 2)


def test_a_mutant_does_not_run_for_ever():
    tree = sources.source(twice)
    endless = dict(sources.source_mutants(tree))["out + double(a) -> out"]
    assert sources.rebuilt(twice, twice, sources.compiled(endless))(np, 1) == 1
    endless.body[1].body.pop()
    with pytest.raises(RuntimeError, match="endless"):
        sources.rebuilt(twice, twice, sources.compiled(endless))(np, 1)


def test_a_mutant_keeps_what_it_uses():
    names = dict(sources.source_mutants(sources.name_all(sources.source(RULES["tangent"]), 2), rule=True))
    assert [arg.arg for arg in names["y * y -> b * y"].args.args] == ["xp", "g", "y", "_a", "b"]
    assert [arg.arg for arg in names["y -> _y"].args.args] == ["xp", "g", "_y", "_a", "_b"]


def test_the_output_mutants():
    g = np.array([[3.0, -1.0, 0.5], [2.0, 4.0, -6.0]])
    got = {text: changed(np, g.copy(), None) for text, changed in mutants.output_mutants(RULES["sine"])}
    assert {text: a.tolist() for text, a in got.items() if text not in ("g written to", "all x (1 + 1e-5)")} == {
        "one element x 1.001": [[3.0, -1.0, 0.5], [2.0 * 1.001, 4.0, -6.0]],
        "one element x 2": [[3.0, -1.0, 0.5], [4.0, 4.0, -6.0]],
        "one element negated": [[3.0, -1.0, 0.5], [-2.0, 4.0, -6.0]],
        "all x (1 + 1e-3)": (g * (1 + 1e-3)).tolist(),
        "all negated": (-g).tolist(),
        "the smallest element lost": [[3.0, -1.0, 0.0], [2.0, 4.0, -6.0]],
        "two elements swapped": [[-1.0, 3.0, 0.5], [2.0, 4.0, -6.0]],
        "rolled": [[-6.0, 3.0, -1.0], [0.5, 2.0, 4.0]],
        "transposed": [[3.0, 2.0, -1.0], [4.0, 0.5, -6.0]],
        "all lost": [[0.0] * 3] * 2,
        "|g|": [[3.0, 1.0, 0.5], [2.0, 4.0, 6.0]],
        "g clipped to [-1, 1]": [[1.0, -1.0, 0.5], [1.0, 1.0, -1.0]],
        "mean of g": [[2.5 / 6] * 3] * 2,
        "g^3": [[27.0, -1.0, 0.125], [8.0, 64.0, -216.0]],
    }
    assert np.allclose(got["all x (1 + 1e-5)"], g * (1 + 1e-5), rtol=1e-12)


# ---- put in place, taken out, judged ------------------------------------------------------------------------------


@pytest.fixture
def ramp():
    """A user's operation with two operands, taken out of the namespaces afterwards."""

    @primitive(lambda xp, g, y, *_: xp.where(y > 0, g, 0), lambda xp, g, _y, _a, b: 2 * g * b)
    def ramp(xp, a, b):
        return xp.maximum(a + b * b, 0)

    yield ramp
    del F.ramp, Namespace.kernels["ramp"]


def bench(function, *cases, verdict="fail", kinks=()):
    """Cases of operands `(a, b)`, and a checker that gives one verdict to whatever differs."""

    def check(trial):
        if verdict == "raise":
            raise KeyError("the checker")
        return SimpleNamespace(verdict=verdict, kinks=kinks)

    trials = []
    for operands in cases:
        arrays = tuple(np.asarray(a, float) for a in operands)
        trials.append(Trial(OpCase("ramp", f"ramp{operands}", function, arrays, (0, 1)), len(trials)))
        trials[-1].check = functools.partial(check, trials[-1])
    return SimpleNamespace(shipped=trials, narrow=[], compared=[])


def named(prim, name):
    return next(m for _, found in mutants.mutants(prim) for m in found if m.name == name)


def test_a_mutant_is_taken_out_again_even_when_it_raises(ramp):
    x = Tensor([1.0, -3.0], requires_grad=True)
    before = ramp.prim.rules, ramp.prim._asks
    with pytest.raises(RuntimeError, match="inside"), named(ramp.prim, "ramp[0]: y > 0 -> y <= 0").planted():
        assert ramp.prim.rules != before[0]
        ramp(x, 1.0).sum().backward()
        assert x.grad.tolist() == [0.0, 1.0]
        raise RuntimeError("inside")
    assert (ramp.prim.rules, ramp.prim._asks) == before
    assert not ramp.prim.plans
    x.grad = None
    ramp(x, 1.0).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0]


def test_the_walk_is_taken_back_even_when_its_mutant_raises():
    code = core.sum_to.__code__
    mutant = next(m for _, found in mutants.walk_mutants() for m in found if m.name.startswith("walk/sum_to: "))
    with pytest.raises(RuntimeError, match="inside"), mutant.planted():
        assert core.sum_to.__code__ is not code
        raise RuntimeError("inside")
    assert core.sum_to.__code__ is code


def test_what_a_mutant_asks_to_keep_is_kept_for_it_alone(ramp):
    kept = named(ramp.prim, "ramp[1]: b -> _b")
    with kept.planted():
        assert ramp.prim.plan(2, 2) == ((0, 1), (1, 1), (2, 1))
        with pytest.raises(TypeError):
            ramp(1.0, Tensor([1.0], requires_grad=True)).backward()
    assert ramp.prim.plan(2, 2) == ((0, 1), (1, 1))


def test_a_mutant_is_killed_compared_or_survives(ramp):
    """On cases without kinks `>=` for `>` cannot be told, and a factor of 1.00001 only by a verdict of the checker."""
    smooth = bench(ramp, ([1.0, 2.0], [0.5, 1.5]), (3.0, 2.0))
    greater, scaled = (named(ramp.prim, f"ramp[0]: {text}") for text in ("y > 0 -> y >= 0", "all x (1 + 1e-5)"))
    assert examine(greater, smooth) == Outcome(greater, "same", "")
    assert examine(scaled, smooth) == Outcome(scaled, "killed", "fail in ramp([1.0, 2.0], [0.5, 1.5])")
    for verdict, fate in ("nondet", "killed"), ("ill", "different"), ("pass", "different"):
        outcome = examine(scaled, bench(ramp, (1.0, 2.0), verdict=verdict))
        assert outcome == Outcome(scaled, fate, f"{verdict} in ramp(1.0, 2.0)")


def test_a_mutant_that_differs_at_kinks_alone_is_a_choice(ramp):
    scaled = named(ramp.prim, "ramp[0]: all x (1 + 1e-5)")
    both = bench(ramp, ([1.0, 2.0], 3.0), verdict="ill", kinks=[(0, (0,)), (0, (1,))])
    one = bench(ramp, ([1.0, 2.0], 3.0), verdict="kink", kinks=[(0, (1,)), (1, ())])
    assert examine(scaled, both).fate == "choice"
    assert examine(scaled, one) == Outcome(scaled, "different", "pass in ramp([1.0, 2.0], 3.0)")
    both.compared = one.shipped
    assert examine(scaled, both).fate == "different"


def test_a_mutant_that_raises_is_killed_and_a_checker_that_raises_is_an_error(ramp):
    broken = bench(ramp, (1.0, 2.0), verdict="raise")
    assert examine(named(ramp.prim, "ramp[1]: b -> _b"), broken).fate == "killed"
    with pytest.raises(KeyError, match="the checker"):
        examine(named(ramp.prim, "ramp[1]: 2 * g -> 3 * g"), broken)


def test_a_mutant_is_compared_with_the_rule_wherever_its_cases_are_drawn(monkeypatch, ramp):
    """The gradients of the rule are computed while the rule is in place, also of cases that are drawn late."""
    monkeypatch.setattr(mutants.strategies, "op_cases", lambda name, dtype: st.just(drawn))
    drawn = OpCase("ramp", "ramp", ramp, (np.array(1.0), np.array(2.0)), (0, 1))
    late = mutants.Bench("ramp", 0)
    assert examine(named(ramp.prim, "ramp[1]: 2 * g -> 3 * g"), late).fate == "different"
    assert examine(named(ramp.prim, "ramp[0]: y > 0 -> y >= 0"), late).fate == "same"


def test_a_survivor_is_reported_unless_it_is_listed_as_what_it_is(ramp):
    smooth = bench(ramp, (1.0, 2.0))
    greater = named(ramp.prim, "ramp[0]: y > 0 -> y >= 0")
    outcomes = [examine(greater, smooth), examine(named(ramp.prim, "ramp[1]: 2 * g -> 3 * g"), smooth)]
    result = RuleResult("ramp[0]", outcomes, Known())
    assert [o.mutant for o in result.survivors] == [greater]
    assert str(result) == "ramp[0]: 2 mutants, 1 killed\n  SURVIVED ramp[0]: y > 0 -> y >= 0 (same)"
    assert mutants.summary([result]) == [
        {"op": "ramp", "mutants": 2, "killed": 1, "same": 1, "choice": 0, "survivors": 1}
    ]
    assert RuleResult("ramp[0]", outcomes, Known(choice={greater.name: "a kink"})).survivors
    assert not RuleResult("ramp[0]", outcomes, Known(same={greater.name: "a reason"})).survivors


def test_an_entry_that_stands_for_no_living_mutant_is_stale(ramp):
    smooth = bench(ramp, (1.0, 2.0))
    greater, scaled = named(ramp.prim, "ramp[0]: y > 0 -> y >= 0"), named(ramp.prim, "ramp[1]: 2 * g -> 3 * g")
    known = Known(
        same={greater.name: "lives", scaled.name: "was killed", "ramp[0]: gone -> away": "no longer made"},
        choice={"other[0]: 1 -> 2": "not run", "ramp[1]: 1 -> 2": "no longer made"},
    )
    results = [RuleResult("ramp[0]", [examine(m, smooth) for m in (greater, scaled)], known)]
    assert mutants.stale(results) == [scaled.name, "ramp[0]: gone -> away", "ramp[1]: 1 -> 2"]


def test_an_entry_for_a_helper_speaks_of_all_rules_that_call_it():
    def outcome(rule, fate):
        return Outcome(Mutant(rule, "1 -> 2", None), fate, "")

    known = Known(same={"_kept: 1 -> 2": "a reason"})
    alive = RuleResult("sum[0]", [outcome("sum[0]/_kept", "same")], known)
    dead = RuleResult("max[0]", [outcome("max[0]/_kept", "killed")], known)
    assert not alive.survivors
    assert not mutants.stale([alive])
    assert mutants.stale([alive, dead]) == ["_kept: 1 -> 2"]


def test_the_list_gives_a_reason_for_every_entry_and_names_none_twice(tmp_path):
    path = tmp_path / "list.toml"
    path.write_text('[[same]]\nreason = "so"\nmutants = ["a[0]: 1 -> 2", "a[0]: 1 -> 0"]\n')
    assert Known.read(path) == Known(same={"a[0]: 1 -> 2": "so", "a[0]: 1 -> 0": "so"})
    path.write_text('[[choice]]\nreason = " "\nmutants = ["a[0]: 1 -> 2"]\n')
    with pytest.raises(ValueError, match="without a reason"):
        Known.read(path)
    path.write_text('[[choice]]\nreason = "so"\nmutants = ["a", "a"]\n')
    with pytest.raises(ValueError, match="listed twice"):
        Known.read(path)


def test_an_unknown_primitive_is_named_in_one_line():
    with pytest.raises(ValueError, match="^no primitive 'mul' with a rule: there are .* and walk$"):
        next(mutants.mutate(["mul"]))


# ---- the rules of this package ------------------------------------------------------------------------------------


def living(names):
    results = list(mutants.mutate(names))
    return [str(result) for result in results if result.survivors], mutants.stale(results)


def test_the_shipped_cases_kill_every_mutant_of_some_rules_but_those_that_are_listed():
    assert living(["relu", "softmax"]) == ([], [])


@pytest.mark.slow
def test_the_shipped_cases_kill_every_mutant_of_every_rule_but_those_that_are_listed():
    assert living(None) == ([], [])


MANY = np.resize([0.5, -0.5], 70_000)
HALF = MANY.astype(np.float16)
ONE = np.array(1.5)
POINTS = [  # (operation, keywords, operand, gradient for a cotangent of 1)
    *(("mean", {}, a, np.full(70_000, 1 / 70_000)) for a in (MANY, HALF)),
    *(("var", {}, a, MANY * (2 / 70_000)) for a in (MANY, HALF)),
    *(("std", {}, a, MANY * (2 / 70_000)) for a in (MANY, HALF)),
    ("logsumexp", {}, np.array([1000.0, 1000.0]), [0.5, 0.5]),
    ("logsumexp", {"axis": 1}, np.array([[-np.inf, -np.inf], [1.0, 1.0]]), [[0.0, 0.0], [0.5, 0.5]]),
    *((name, {"axis": 0}, ONE, 1.0) for name in ("sum", "mean", "prod", "max", "min", "logsumexp", "norm")),
    ("to", {}, np.array(1.0), 1.0),
]


def right_at(point):
    """Whether the gradient is right, to some roundings."""
    name, keywords, operand, right = point
    if name == "to":
        arrays.register("strict", strict.xp)
        operand = arrays.move(operand, "strict")
        found = vjp(lambda a: a.to("cpu"), operand)[1](np.array(1.0))[0]
        return type(found) is type(operand) and arrays.to_host(found) == right
    y, pull = vjp(functools.partial(getattr(F, name), **keywords), operand)
    g = 1000 if operand is HALF else 1  # so that its share of many elements is no subnormal number
    found = pull(np.full(np.shape(y), g, operand.dtype))[0] / g
    return np.allclose(found, right, rtol=0.02 if operand is HALF else 1e-12, atol=0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_mutants_that_no_case_reaches_are_killed_by_a_point():
    assert all(map(right_at, POINTS))
    prims, beyond = mutants.primitives(), Known.read().beyond
    left = set(beyond)
    for op in dict.fromkeys(name for name, *_ in POINTS):
        points = [point for point in POINTS if point[0] == op]
        for mutant in (m for _, found in mutants.mutants(prims[op]) for m in found):
            if names := {mutant.name, mutant.helper} & beyond.keys():
                assert not all(survives(mutant, point) for point in points), mutant.name
                left -= names
    assert not left


def survives(mutant, point):
    with mutant.planted():
        try:
            return right_at(point)
        except Exception:  # a mutant may raise anything
            return False
