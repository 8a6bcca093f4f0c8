"""The cases are what they claim to be: shown without any checker, so that nobody need believe a label."""

from collections import Counter

import numpy as np
import pytest

from . import truth
from .case import CASES
from .score import SEEDS

CORRECT = [c for c in CASES.values() if c.correct]
WRONG = [c for c in CASES.values() if not c.correct]
FLOOR = 1e-6
"""A right element is judged relative to this part of its array's largest at least: a rule may round as its sums do."""
NATIVE = {"float32": 1e-3, "float16": 0.1}
"""How well a right rule does in its own dtype, relative to the largest of the array: a sanity check, no more."""
FEW = range(4)
"""Seeds where the point makes no difference, and for points that are large."""


def each(cases):
    return pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in cases])


def seeds(case):
    return SEEDS if sum(a.size for a in case.problem(0).arrays) < 10_000 else FEW


def judged(case, seed, floor):
    """(problem, g, gradients in float64, the right intervals, errors relative to these)."""
    problem, rng = case.problem(seed), np.random.default_rng(seed)
    arrays = truth.upcast(problem.arrays)
    g = truth.cotangent(truth.forward(problem, arrays), rng)
    gradients = truth.backward(problem, g, arrays)
    right = list(truth.intervals(problem, g, rng))
    return problem, g, gradients, right, truth.errors(gradients, right, floor)


def native_errors(problem, rng):
    """The same errors where the rule runs in its own dtypes, relative to the largest of each array."""
    g = truth.cotangent(truth.forward(problem, problem.arrays), rng)
    gradients = truth.backward(problem, g, problem.arrays)
    return truth.errors(gradients, list(truth.intervals(problem, g, rng)), floor=1.0)


def kinked(right):
    return any((low != high).any() for _, low, high in right)


def largest(errors):
    return max((e.max(initial=0) for e in errors), default=0)


@each(CORRECT)
def test_a_correct_rule_gives_the_derivative(case):
    for seed in seeds(case):
        problem, g, gradients, right, errors = judged(case, seed, FLOOR)
        assert largest(errors) <= case.error, f"seed {seed}: {errors}"
        if case.curvature:
            assert truth.joint_error(problem, g, gradients, np.random.default_rng(seed)) <= 1e-12
        if case.exact == {"kink"}:
            assert kinked(right), "no kink at this point"
        if not case.accept & {"kink"}:
            assert not kinked(right), "a kink that the verdicts do not allow for"
        for dtype, allowed in NATIVE.items():
            if all(a.dtype == dtype for a in problem.arrays):
                assert largest(native_errors(problem, np.random.default_rng(seed))) <= allowed


@each(CORRECT)
def test_a_correct_rule_keeps_every_structural_promise(case):
    for seed in FEW:
        assert truth.broken(case.problem(seed), np.random.default_rng(seed)) == set()


@each([c for c in WRONG if c.reason])
def test_a_rule_that_is_wrong_in_structure_breaks_a_promise_that_is_named(case):
    for seed in SEEDS:
        assert truth.broken(case.problem(seed), np.random.default_rng(seed)) & case.reason


@each([c for c in WRONG if not c.reason])
def test_a_rule_that_is_wrong_in_numbers_differs_by_the_stated_error(case):
    for seed in seeds(case):
        problem, g, gradients, right, errors = judged(case, seed, 0.0)
        if all(a.dtype.name in NATIVE for a in problem.arrays):
            errors += native_errors(problem, np.random.default_rng(seed))
        worst = largest(errors)
        if worst <= 1e-12 and case.curvature:
            worst = truth.joint_error(problem, g, gradients, np.random.default_rng(seed))
        assert worst > case.error, f"seed {seed}: an error of {worst:.1e}"
        if problem.where:
            others = [np.delete(e, positions == truth.position(problem, k))
                      for k, (e, (positions, *_)) in enumerate(zip(errors, right, strict=False))]
            assert largest(others) <= 1e-9, "other elements are wrong as well"


@each([c for c in WRONG if not c.reason])
def test_a_rule_that_is_wrong_in_numbers_keeps_every_structural_promise(case):
    for seed in FEW:
        assert truth.broken(case.problem(seed), np.random.default_rng(seed)) == set()


@each(c for c in CASES.values() if c.problem(0).twin and "determinism" not in c.reason)
def test_a_twin_is_the_same_function(case):
    """Where the function has a value: the twin of one that is not deterministic is what it scatters about."""
    problem = case.problem(1)
    arrays = truth.upcast(problem.arrays)
    assert np.allclose(truth.flat(problem.f(*truth.copies(arrays))), truth.flat(problem.twin(*arrays)), rtol=1e-6)


@each(CASES.values())
def test_a_problem_is_the_same_at_every_build_and_another_for_another_seed(case):
    first, again, other = (case.problem(seed).arrays for seed in (3, 3, 4))
    assert all(map(np.array_equal, first, again))
    fixed = all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert not fixed or sum(a.size for a in first) <= 12, "a case whose point does not depend on the seed"


def test_the_table_is_large_and_balanced():
    assert len(CORRECT) >= 65
    assert len(WRONG) >= 65
    families = Counter(c.family for c in CORRECT), Counter(c.family for c in WRONG)
    assert all(c.why for c in CASES.values())
    assert not set(families[0]) ^ set(families[1]), "a family needs both right and wrong rules"
