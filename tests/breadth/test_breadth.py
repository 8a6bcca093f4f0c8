"""The checker on HIPS autograd's rules: right ones pass, and none of 15 generic mistakes does.

Plain `pytest` tries every function at every scale once, and a sample of the mistakes; `pytest -m slow` all of it.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest

pytest.importorskip("autograd", reason="autograd is not installed")

from tinygrad_mnist.gradcheck import check_vjp

from . import functions, mutants
from .functions import FUNCTIONS


@dataclass
class Tally:
    """Verdicts, and the trials that are not as they should be."""

    verdicts: Counter = field(default_factory=Counter)
    bad: list = field(default_factory=list)
    ill: list = field(default_factory=list)

    @property
    def total(self):
        return sum(self.verdicts.values())

    def add(self, verdict, wanted, what):
        self.verdicts[verdict] += 1
        if verdict == "ill":
            self.ill.append(what)
        elif verdict not in wanted:
            self.bad.append(f"{verdict}: {what}")

    def __str__(self):
        return "\n".join([f"{self.total} checks: {dict(self.verdicts)}", *self.bad[:40], "ill:", *self.ill[:40]])


def verdict_of(point, vjp, checker):
    report = checker(point.f, vjp, [a.copy() for a in point.arrays], point.wrt, seed=point.seed)
    return report if isinstance(report, str) else report.verdict


def try_right(seeds, checker=check_vjp):
    tally = Tally()
    for function in FUNCTIONS.values():
        wanted = {"pass", "kink"} if function.kinked else {"pass"}
        for seed in seeds:
            for point in function.points(seed):
                tally.add(verdict_of(point, point.vjp, checker), wanted, str(point))
    return tally


def try_mutants(seeds, checker=check_vjp, share=1.0):
    """Every kind at every point, or a share of them, those that make no difference left out.

    Not at kinks: there a mutant may be another valid choice of subgradient. The judge has the wrong ones.
    """
    tally = Tally()
    for seed in seeds:
        draw = np.random.default_rng(seed)
        for function in FUNCTIONS.values():
            for point in [] if function.kinked else function.points(seed):
                for kind in mutants.KINDS:
                    if draw.random() >= share:
                        continue
                    rng = np.random.default_rng(seed)
                    vjp = mutants.spoil(point, kind, rng)
                    if mutants.counts(point, kind, vjp, rng):
                        tally.add(verdict_of(point, vjp, checker), {"fail", "nondet"}, f"{kind}: {point}")
    return tally


def test_right_rules_raise_no_alarm():
    tally = try_right([0])
    assert tally.total > 1300
    assert not tally.bad, tally
    assert len(tally.ill) <= 0.01 * tally.total, tally


def test_wrong_rules_never_pass():
    tally = try_mutants([0], share=0.01)
    assert tally.total > 150
    assert not tally.bad, tally
    assert not tally.ill, tally


@pytest.mark.slow
def test_at_least_10000_right_rules_raise_at_most_two_alarms_in_10000():
    tally = try_right(range(1, 9))
    assert tally.total >= 10_000
    assert len(tally.bad) <= 0.0002 * tally.total, tally
    assert len(tally.ill) <= 0.01 * tally.total, tally


@pytest.mark.slow
def test_two_thousand_wrong_rules_never_pass():
    tally = try_mutants([100], share=0.1)
    assert tally.total >= 1_800
    assert not tally.bad, tally
    assert len(tally.ill) <= 0.001 * tally.total, tally


# ---- the trial itself ------------------------------------------------------------------------------------------------


def planted(fn, *arrays):
    function = functions.Function("planted", fn, lambda rng, scale: arrays, (1.0,), None, False)
    return next(function.points(0))


def makes_a_difference(kind, fn, *arrays):
    point = planted(fn, *arrays)
    rng = np.random.default_rng(0)
    return mutants.counts(point, kind, mutants.spoil(point, kind, rng), rng)


anp = functions.anp


@pytest.mark.parametrize("kind", mutants.KINDS)
def test_every_kind_makes_a_difference_to_a_matrix_product(kind):
    assert makes_a_difference(kind, anp.dot, np.arange(1.0, 7).reshape(2, 3), np.arange(2.0, 14).reshape(3, 4))


@pytest.mark.parametrize(("kind", "fn", "arrays"), [
    ("two swapped", anp.sum, [np.ones(3)]),
    ("rolled", anp.sum, [np.ones(3)]),
    ("transposed", anp.sin, [np.ones(3)]),
    ("mean(g)", anp.sum, [np.ones(3)]),
    ("one element x 2", lambda x: anp.where(x > 5, x, 0.0), [np.ones(3)]),
    ("all negated", anp.tanh, [np.array([30.0])]),
    ("all x (1 + 1e-5)", lambda x: 1e9 + anp.sin(x), [np.ones(3)]),
])
def test_a_mistake_that_cannot_be_seen_does_not_count(kind, fn, arrays):
    assert not makes_a_difference(kind, fn, *arrays)


def test_a_checker_that_says_pass_to_all_or_fail_to_all_is_found_out():
    def passes(*args, **kwargs):
        return "pass"

    def fails(*args, **kwargs):
        return "fail"

    missed, alarmed = try_mutants([0], passes, share=0.01), try_right([0], fails)
    assert len(missed.bad) == missed.total > 100
    assert len(alarmed.bad) == alarmed.total > 1300


def test_points_are_drawn_from_the_seed_alone():
    first, again, other = ([p.arrays for p in FUNCTIONS["matmul"].points(seed)] for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))
    assert not all(a.shape == b.shape and np.array_equal(a, b)
                   for x, y in zip(first, other, strict=True) for a, b in zip(x, y, strict=True))
