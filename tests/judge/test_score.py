"""The score itself: checkers whose mistakes are known, and one as it is usually written."""

import numpy as np
import pytest

from . import truth
from .case import CASES, Problem
from .score import SEEDS, Trial, score

QUICK = range(2)


def always(*answer):
    return lambda f, vjp, arrays, wrt, seed: answer


def usual(f, vjp, arrays, wrt, seed):
    """Shapes, and central differences with step 1e-6, atol 1e-5 and rtol 1e-3, with one random cotangent.

    Above 2000 elements along one random direction, as so many evaluations of f would take minutes.
    """
    rng = np.random.default_rng(seed)
    problem = Problem(f, vjp, arrays, wrt)
    g = truth.cotangent(truth.forward(problem, arrays), rng)
    gradients = truth.backward(problem, g, arrays)
    if [np.shape(a) for a in gradients] != [arrays[i].shape for i in problem.inputs]:
        return "fail"

    def along(i, d):
        moved = ((arrays[i] + h * d).astype(arrays[i].dtype) for h in (1e-6, -1e-6))
        ahead, behind = (truth.flat(truth.forward(problem, [*arrays[:i], a, *arrays[i + 1 :]])) for a in moved)
        return np.sum(truth.flat(g) * (ahead - behind)) / 2e-6

    with np.errstate(all="ignore"):
        for i, gradient in zip(problem.inputs, gradients, strict=True):
            shape, size = arrays[i].shape, arrays[i].size
            units = (np.eye(1, size, k).reshape(shape) for k in range(size))
            for d in units if size <= 2000 else [rng.normal(size=shape)]:
                if not np.isclose(np.sum(gradient * d), along(i, d), rtol=1e-3, atol=1e-5):
                    return "fail"
    return "pass"


def test_a_checker_that_always_passes_misses_every_wrong_rule():
    result = score(always("pass"), QUICK)
    assert not result.false_alarms
    assert len(result.misses) == len(result.trials) - len(result.correct)


def test_a_checker_that_always_fails_raises_a_false_alarm_on_every_right_rule():
    result = score(always("fail"), QUICK)
    assert len(result.false_alarms) == len(result.correct)
    assert not result.misses


@pytest.mark.parametrize("verdict", ["ill", "kink", "nondet"])
def test_no_single_verdict_is_a_way_out(verdict):
    result = score(always(verdict), QUICK)
    assert len(result.misses) > 0.8 * (len(result.trials) - len(result.correct))
    assert len(result.imprecise) + len(result.false_alarms) > 0.8 * len(result.correct)


def test_a_checker_that_raises_is_charged_with_it():
    def broken(f, vjp, arrays, wrt, seed):
        raise ZeroDivisionError("no step")

    result = score(broken, 1)
    assert len(result.false_alarms) + len(result.misses) == len(result.trials) == len(CASES)
    assert "no step" in str(result.misses[0])


def test_a_checker_that_knows_the_answers_is_charged_with_nothing():
    for case in CASES.values():
        answer = min(case.exact), " ".join(case.reason), case.problem(0).where
        result = score(always(*answer), 1, [case])
        assert not result.false_alarms + result.misses + result.imprecise


@pytest.mark.parametrize(("answer", "outcome"), [
    (("fail", "linearity in g"), "right"),
    (("fail",), "right"),
    (("fail", "values differ"), "imprecise"),
    (("pass",), "miss"),
    (("ill",), "miss"),
])
def test_a_reason_counts_where_one_is_expected(answer, outcome):
    assert Trial(CASES["g_absolute"], 0, *answer).outcome == outcome


@pytest.mark.parametrize(("where", "outcome"), [((0, (3,)), "right"), ((0, (4,)), "imprecise"), (None, "right")])
def test_an_index_counts_where_one_element_is_wrong(where, outcome):
    assert Trial(CASES["k1_one_off"], 0, "fail", where=where, expected=(0, (3,))).outcome == outcome


def test_the_usual_checker_does_badly():
    """Sanity: if it did well, the cases would be too easy to tell checkers apart."""
    result = score(usual, 1)
    print(result)
    assert len(result.false_alarms) > 0.15 * len(result.correct)
    assert len(result.misses) > 0.15 * (len(result.trials) - len(result.correct))


def test_the_table_of_a_score_has_a_row_per_family_and_one_for_all():
    text = str(score(always("pass"), 1))
    assert {line.split("  ")[0] for line in text.splitlines()[1:-1]} == {c.family for c in CASES.values()}
    assert text.splitlines()[-1].startswith("all ")


def test_there_are_twenty_seeds():
    assert len(SEEDS) == 20
