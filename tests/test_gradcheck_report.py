"""Reports of the gradient checker: verdicts, text, JSON, the Taylor test, and the hints, each planted."""

import itertools
import json
import math
import pickle

import numpy as np
import pytest

from tinygrad_mnist.gradcheck.hints import hints, shape_hint
from tinygrad_mnist.gradcheck.remainder import taylor_vjp
from tinygrad_mnist.gradcheck.report import (
    STRUCTURE,
    VERDICTS,
    DotReport,
    GradCheckError,
    GradReport,
    Item,
    TaylorReport,
    merged,
)

WRONG = TaylorReport((0.5, 0.25), (0.2, 0.1), (1.0,), 1.0, "fail")


def report(*items, **changes):
    facts = {
        "items": list(items), "structure": dict.fromkeys(STRUCTURE, "pass"), "counts": {"pass": 12 - len(items)},
        "kinks": [], "resolution": 1e-7, "miss_probability": 4e-13, "noise": 0.0, "evals": 31, "backwards": 9,
        "seed": 3, "mode": "elements", "dtypes": ("float64", "float32"), "shapes": ((), (4, 3)), "names": ("a", "b"),
        **changes,
    }  # fmt: skip
    for item in items:
        if item.index is not None:
            facts["counts"][item.verdict] = facts["counts"].get(item.verdict, 0) + 1
    return GradReport(**facts)


def item(verdict="fail", place=1, index=(2, 0), analytic=-1.20317, numeric=-0.741826, reason="slopes agree"):
    return Item(place, index, analytic, numeric, 3e-8, verdict, reason)


# ---- verdicts


@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_verdict_is_that_of_the_worst_item(verdict):
    below = [v for v in VERDICTS if VERDICTS.index(v) <= VERDICTS.index(verdict)]
    found = report(*(item(v) for v in below if v != "pass"))
    assert found.verdict == verdict
    assert found.ok == (verdict in ("pass", "kink"))


@pytest.mark.parametrize("name", STRUCTURE)
def test_a_broken_structure_is_a_failure_and_a_broken_determinism_its_own_verdict(name):
    broken = report(structure={**dict.fromkeys(STRUCTURE, "pass"), name: "what broke"})
    assert broken.verdict == ("nondet" if name == "determinism" else "fail")
    assert f"{name} broken" in broken.summary
    assert report(structure=dict.fromkeys(STRUCTURE, "not run")).verdict == "pass"


def test_an_element_at_a_kink_makes_the_verdict_kink():
    found = report(kinks=[(0, ())])
    assert (found.verdict, found.ok) == ("kink", True)


@pytest.mark.parametrize("one", [report(), DotReport(1.0, 1.0, None, 1e-12, False, "pass")])
def test_a_report_is_no_truth_value(one):
    with pytest.raises(TypeError, match=r"use report\.ok"):
        assert one


# ---- text


def test_a_failure_names_input_index_values_error_reason_slope_hint_and_how_to_reproduce():
    text = str(report(item(), hints=["the transpose would fit"], reproduce="check(f, a, b, seed=3)", taylor=WRONG))
    assert text.splitlines()[0] == "gradient check: FAIL: 1 fail, 11 of 12 elements pass"
    assert text.splitlines()[2].split() == ["12", "11", "0", "0", "0", "1", "1e-07", "4e-13", "31", "9"]
    for part in (
        "FAIL  input 1 (b)  index (2, 0)   analytic -1.20317e+00   numeric -7.41826e-01 +- 3e-08", "slopes agree",
        "Taylor slope 1.00 (a right gradient has 2.00)", "hint: the transpose would fit",
        "reproduce: check(f, a, b, seed=3)",
    ):  # fmt: skip
        assert part in text


def test_every_failing_element_is_shown_and_a_repeated_reason_once():
    text = str(report(*(item(index=(i, j)) for i in range(4) for j in range(3))))
    assert all(f"index ({i}, {j})" in text for i in range(4) for j in range(3))
    assert text.count("slopes agree") == 1


def test_kinks_and_undecided_elements_are_counted_in_the_first_line():
    found = report(item("ill"), item("ill", index=(0, 0)), item("kink"), kinks=[(1, (2, 0))])
    assert str(found).splitlines()[0] == "gradient check: ILL: 2 ill, 1 kink, 9 of 12 elements pass"
    assert "input 1 (b) (2, 0)" in str(found)
    many = report(*(item("ill", index=(i, 0)) for i in range(12)))
    assert "and 4 more" in str(many)


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9, 1e-12])
def test_a_small_difference_shows_in_the_digits(gap):
    line = report().describe(item(analytic=1.0 + gap, numeric=1.0))
    analytic, numeric = line.split("analytic ")[1].split("   numeric ")
    assert float(analytic) != float(numeric.split()[0])


def test_what_fails_as_a_whole_has_no_index():
    text = str(report(item(place=-1, index=None, analytic=None, numeric=None, reason="linearity: vjp(-8 g)")))
    assert "FAIL  the function\n      linearity: vjp(-8 g)" in text
    assert "input 7 " in str(report(item(place=7)))  # a report without names


def test_a_taylor_test_that_sees_nothing_does_not_contradict_a_failure():
    text = str(report(item(), taylor=TaylorReport((0.5, 0.25), (0.4, 0.1), (2.0,), 2.0, "pass")))
    assert "one direction does not show this error" in text


def test_the_error_is_an_assertion_with_the_report_as_its_text_and_travels_between_processes():
    found = report(item())
    error = GradCheckError(found)
    assert isinstance(error, AssertionError)
    assert str(error) == str(found)
    assert str(pickle.loads(pickle.dumps(error)).report) == str(found)


# ---- JSON


def test_json_is_strict_and_complete():
    found = report(item(numeric=math.nan, analytic=math.inf), item("kink", index=(0, 1)), kinks=[(1, (0, 1))],
                   noise=-math.inf, taylor=WRONG, notes=["n"], resolution=np.float32(0.5))  # fmt: skip
    back = json.loads(found.to_json(), parse_constant=lambda name: pytest.fail(f"not JSON: {name}"))
    assert back["items"][0] == {"name": "b", "input": 1, "index": [2, 0], "analytic": "inf", "numeric": "nan",
                                "error": 3e-8, "verdict": "fail", "reason": "slopes agree"}  # fmt: skip
    assert (back["verdict"], back["ok"], back["noise"], back["resolution"]) == ("fail", False, "-inf", 0.5)
    assert back["kinks"] == [{"input": 1, "index": [0, 1]}]
    assert back["taylor"]["slope"] == 1
    assert {"verdict", "ok", "summary"} | set(vars(found)) - {"numeric", "analytic"} == set(back)


# ---- two orders


def test_merged_reports_add_up_and_say_which_order_failed():
    second = report(item(place=2, index=(0,)), names=("a", "b", "g"), shapes=((), (4, 3), (4,)),
                    structure={**dict.fromkeys(STRUCTURE, "pass"), "zero": "not 0", "symmetry": "pass"})  # fmt: skip
    both = merged(report(item("kink", reason="one-sided")), second)
    assert both.items[0].reason == "second order: slopes agree"
    assert "input 2 (g)  index (0,)" in str(both)
    assert (both.counts["pass"], both.counts["fail"], both.evals) == (22, 1, 62)
    assert (both.structure["zero"], both.structure["symmetry"]) == ("second order: not 0", "pass")
    assert merged(report(), report()).verdict == "pass"


# ---- the Taylor test

X = np.linspace(0.3, 2, 5)


@pytest.mark.parametrize(
    ("f", "slope", "low", "high"),
    [
        (np.sin, np.cos, 1.9, 2.1),
        (np.log, np.reciprocal, 1.9, 2.1),
        (np.sin, lambda x: 1.001 * np.cos(x), 0.9, 1.1),
        (np.sin, lambda x: (1 + 1e-5) * np.cos(x), 0.9, 1.2),
        (lambda x: 3 * x, lambda x: np.full(x.shape, 3.01), 0.9, 1.1),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_the_taylor_slope_is_two_of_a_right_gradient_and_one_of_a_wrong_one(f, slope, low, high, seed):
    found = taylor_vjp(f, lambda g, x: (g * slope(x),), [X], seed=seed)
    assert low < found.slope < high
    assert found.verdict == ("pass" if low > 1.5 else "fail")
    assert len(str(found).splitlines()) == len(found.steps) + 2


def test_a_linear_function_leaves_no_remainder():
    found = taylor_vjp(lambda x: 3 * x, lambda g, x: (3 * g,), [X])
    assert math.isnan(found.slope)
    assert found.verdict == "pass"
    assert "linear" in found.summary


def test_a_jump_is_neither_right_nor_wrong():
    found = taylor_vjp(lambda x: np.floor(1e9 * x), lambda g, x: (1e9 * g,), [X])
    assert found.verdict == "ill"


def test_the_taylor_test_takes_tuples_integers_and_a_choice_of_inputs():
    def f(x, n, y):
        return x**n * y, np.exp(x)

    def rule(g, x, n, y):
        return (g[0] * n * x ** (n - 1) * y + g[1] * np.exp(x),)

    assert taylor_vjp(f, rule, [X, np.array(3), X + 1], wrt=(0,)).verdict == "pass"
    assert taylor_vjp(f, lambda *a: (1.1 * rule(*a)[0],), [X, np.array(3), X + 1], wrt=(0,)).verdict == "fail"


# ---- hints

RNG = np.random.default_rng(5)
RIGHT = RNG.normal(size=(4, 4))
CUBE = RNG.normal(size=(3, 3, 3))


def changed(a, places, change):
    a = a.copy()
    for place in places:
        a[place] = change(a[place])
    return a


def swapped(a, first, second):
    a = a.copy()
    a[first], a[second] = a[second], a[first]
    return a


PLANTED = [
    (2 * RIGHT, RIGHT, {}, "analytic = 2.000 x numeric"),
    (1.001 * RIGHT, RIGHT, {}, "analytic = 1.00100 x numeric"),
    (RIGHT * (1 + 1e-5), RIGHT, {}, "analytic = 1.0000100 x numeric"),
    (np.array(2.0), np.array(1.0), {}, "analytic = 2.000 x numeric"),
    (1e-9 * RIGHT, RIGHT, {}, "analytic = 1.000e-09 x numeric"),
    (-RIGHT, RIGHT, {}, "analytic = -1 x numeric: a sign"),
    (RIGHT / 5, RIGHT, {"shapes": [(5, 7)]}, "a mean for a sum? (5 = size of axis 0 of an array (5, 7))"),
    (RIGHT / 35, RIGHT, {"shapes": [(5, 7)]}, "a mean for a sum? (35 = size of all elements of an array (5, 7))"),
    (7 * RIGHT, RIGHT, {"shapes": [(5, 7)]}, "a sum for a mean? (7 = size of axis 1"),
    (7 / 6 * RIGHT, RIGHT, {"shapes": [(7,)]}, "n - 1 for n? (7 = size of all elements"),
    (0 * RIGHT, RIGHT, {}, "analytic is zero everywhere"),
    (RIGHT.T, RIGHT, {}, "the transpose would fit"),
    (CUBE.transpose(2, 0, 1), CUBE, {}, "gradient.transpose(1, 2, 0) would fit"),
    (np.roll(RIGHT, 1, 0), RIGHT, {}, "np.roll(gradient, -1, axis=0) would fit"),
    (np.roll(RIGHT[0], 2), RIGHT[0], {}, "would fit"),
    (RIGHT[:, ::-1], RIGHT, {}, "flipped along axis 1"),
    (CUBE[:, :, ::-1], CUBE, {}, "flipped along axis 2"),
    (RIGHT - 0.7133, RIGHT, {}, "numeric = analytic + 0.7133 everywhere: a term is missing"),
    (RIGHT - RIGHT.mean(1, keepdims=True), RIGHT, {}, "constant along axis 1: a term summed over it is missing"),
    (RIGHT + 1, RIGHT, {"others": {1: RIGHT + 1}}, "analytic is the gradient of input 1: exchanged operands"),
    (changed(RIGHT, [(2, j) for j in range(4)], lambda a: a + RNG.normal()), RIGHT, {},
     "errors in 4 of 16 elements, all in row 2"),
    (changed(RIGHT, [(0, 1), (3, 1), (2, 1)], lambda a: 2 * a), RIGHT, {},
     "errors in 3 of 16 elements, all in column 1, where analytic = 2.000 x numeric"),
    (changed(CUBE, [(0, 1, 2), (1, 1, 2)], lambda a: 0.0), CUBE, {},
     "all in slice of axis 1, index 1, all in slice of axis 2, index 2, where analytic is zero"),
    (changed(RIGHT, [(1, 1)], lambda a: 3.5 * a), RIGHT, {}, "an error in one of 16 elements"),
    (swapped(RIGHT, (0, 1), (3, 2)), RIGHT, {}, "the elements (0, 1) and (3, 2) are exchanged"),
    (np.stack([RIGHT, CUBE.ravel()[:16].reshape(4, 4)]), RIGHT + CUBE.ravel()[:16].reshape(4, 4), {},
     "un-broadcast axis 0 missing: the sum would fit"),
    (RIGHT, RIGHT.sum((0, 1)), {}, "un-broadcast axes (0, 1) missing"),
    (RIGHT, RIGHT.sum(0, keepdims=True), {}, "un-broadcast axis 0 missing"),
    (CUBE[:, :, 0:2].transpose(2, 0, 1), CUBE[:, :, 0:2], {}, "gradient.transpose(1, 2, 0) would fit"),
    (RIGHT.reshape(16), RIGHT, {}, "gradient.reshape((4, 4)) would fit"),
    (RIGHT[0], np.broadcast_to(RIGHT[0], (3, 4)), {}, "np.broadcast_to(gradient, (3, 4)) would fit"),
]  # fmt: skip


@pytest.mark.parametrize(("analytic", "numeric", "more", "text"), PLANTED, ids=[row[3][:60] for row in PLANTED])
def test_a_planted_pattern_is_named(analytic, numeric, more, text):
    found = hints(np.asarray(analytic), np.asarray(numeric), **more)
    assert found
    assert text in found[0]
    noise = 1e-9 * np.random.default_rng(1).normal(size=numeric.shape)  # of the numeric gradient
    assert text in hints(np.asarray(analytic), numeric * (1 + noise), **more)[0]


def test_nothing_is_seen_in_random_arrays():
    rng = np.random.default_rng(0)
    shapes = [(3,), (7,), (2, 2), (3, 3), (1, 5), (4, 2), (2, 3, 2), (3, 1, 3), (200,)]
    for shape, _ in itertools.product(shapes, range(300)):
        analytic, numeric, other = rng.normal(size=(3, *shape))
        assert hints(analytic, numeric, others={1: other}, shapes=[(2, 3), (5,)]) == []
    for given, wanted in itertools.product(shapes, repeat=2):
        if given != wanted:
            assert hints(rng.normal(size=given), rng.normal(size=wanted)) == []


def test_single_elements_and_what_is_not_finite_give_no_hint():
    assert hints(np.array(1.37), np.array(1.0)) == []
    assert hints(np.array([np.nan, 1.0]), np.ones(2)) == []
    assert hints(np.zeros((0, 3)), np.zeros((0, 3))) == []
    assert hints(RIGHT, RIGHT) == []


def test_a_large_element_does_not_hide_that_the_others_do_not_fit():
    assert hints(np.array([2e6, 1.0, 5.0]), np.array([1e6, 2.0, 3.0])) == []


@pytest.mark.parametrize(
    ("given", "wanted", "text"),
    [
        ((5, 3), (3,), "un-broadcast axis 0 missing"),
        ((5, 3), (5, 1), "un-broadcast axis 1 missing"),
        ((5, 3), (), "un-broadcast axes (0, 1) missing"),
        ((5, 3), (3, 5), "the transpose would fit"),
        ((1,), (), "un-broadcast axis 0 missing"),
        ((15,), (3, 5), "gradient.reshape((3, 5)) would fit"),
        ((), (3,), "np.broadcast_to(gradient, (3,)) would fit"),
        ((4,), (3,), ""),
    ],
)
def test_a_shape_alone_says_what_would_mend_it(given, wanted, text):
    found = shape_hint(given, wanted)
    assert text in found
    assert bool(text) == bool(found)


def test_that_nearly_everything_is_wrong_is_no_hint():
    right = np.random.default_rng(0).normal(size=(4, 5))
    wrong = np.exp(right)
    wrong[0, 0] = right[0, 0]
    assert hints(wrong, right) == []
