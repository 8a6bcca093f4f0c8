"""Every step of the gradient checker is needed: without it, a case of the judge is answered wrongly.

A step is taken out by replacing the function or constant that it consists of. The cases beside it are what the whole
judge lost that way; here each of them is answered right with the step, and one of them wrongly without it.
"""

import math

import numpy as np
import pytest
from judge import CASES, score

from tinygrad_mnist.gradcheck import difference, engine, problem, structure
from tinygrad_mnist.gradcheck.engine import Check, Finding, check_vjp

pytestmark = pytest.mark.slow


def checker(f, vjp, arrays, wrt, seed):
    report = check_vjp(f, vjp, arrays, wrt, seed=seed)
    if not report.items:
        return report.verdict
    worst = next((item for item in report.items if item.verdict == report.verdict), report.items[0])
    places = [i for i, a in enumerate(arrays) if a.dtype.kind == "f"] if wrt is None else list(wrt)
    where = None if worst.index is None else (places.index(worst.input), worst.index)
    return report.verdict, worst.reason, where


def fine(*_):
    return "", -1


def without(claim, linear=structure._linear):
    """Linearity without the test of this claim."""
    return lambda p, said, *rest: None if claim in said else linear(p, said, *rest)


def unexcused(check, line, row, finding):
    return finding


def failed(check, line, g, a, c):
    return Finding("fail", math.nan, math.inf, "no ladder", cotangent=c)


def undecided(check, line, factor, g, a, c):
    return Finding("ill", math.nan, math.inf, "one scale alone", cotangent=c)


def no_rounding(unit, g, size):
    return 0.0


def ones(x):
    return np.ones(x.shape)


def unweighted(p):
    return np.ones(p.base.size)


def insensitive(check, g, exact, *_):
    return [0 * a for a in exact]


STEPS = {  # step: what replaces it, judge cases that are lost without it
    # ---- structure
    "shapes": ([(structure, "shapes", fine), (engine, "shapes", fine)], "keepdims_left flattened"),
    "dtypes": ([(structure, "dtypes", fine), (engine, "dtypes", fine)], "f32_gets_float64 complex_for_real"),
    "determinism": ([(structure, "_determinism", fine)], "every_second_call_doubled forward_drifts"),
    "hygiene": ([(problem, "same", lambda a, b: True)], "gradient_in_g input_overwritten"),
    "zero": ([(structure, "_zero", fine)], "nan_where_g_is_zero"),
    "homogeneity": ([(structure, "_linear", without("-8 vjp"))], "g_sign_of_sum"),
    "additivity": ([(structure, "_linear", without("2.5 vjp"))], "g_through_float16"),
    "homogeneity far out": ([(structure, "_linear", without("1024 vjp"))], "g_norm_clipped"),
    "rounding of a rule that cancels": ([(structure, "CANCELLATION", 0.0)], "softmax_row_dominated"),
    "outputs of one size": ([(structure, "_weights", unweighted)], "small_output_doubled"),
    "the arrays as given": (
        [(structure, "as_given", lambda *_: ""), (engine, "as_given", lambda *_: "")], "labels_read_without_stride"
    ),
    # ---- differences
    "the ladder": ([(Check, "_climb", failed)], "sqrt_near_zero arcsin_near_one"),
    "contradiction by smaller steps": ([(difference, "FAR", math.inf)], "steps_of_whole_periods staircase"),
    "small steps": ([(difference, "LEVELS", 10)], "fast_oscillation"),
    "large steps": ([(difference, "TOP", 1e-4)], "offset_1e12_doubled"),
    "rounding": ([(difference, "rounding", no_rounding), (engine, "rounding", no_rounding)], "logsumexp_dominated"),
    "scatter of small steps": ([(difference, "scatter", lambda rho: 0.0)], "solver_noise_off"),
    "outputs that stand still": ([(difference, "BURIED", 0.0)], "small_leaf_dropped"),
    "roughness": ([(difference, "roughness", lambda line, g, step: 0.0)], "staircase_zero"),
    "kinks told from roughness": ([(difference, "leaps", lambda *_: True)], "among_many_kinks"),
    "slopes that fall to 0": ([(difference, "falls", lambda r, noise: False)], "squared_hinge_at_corner"),
    "scales": ([(engine, "scales", ones), (Check, "_other", undecided)], "inputs_1e150th"),
    "the rule's own rounding": ([(Check, "_spread", lambda check, line, g: 0.0)], "std_at_1e6"),
    "outputs that are rounded away": ([(Check, "_buried", lambda *_: False)], "softmax_rounded_to_one"),
    "a bound on what is decided": ([(engine, "DECIDED", math.inf)], "sigmoid_saturated_doubled"),
    # ---- kinks
    "one-sided slopes": ([(engine, "one_sided", lambda line, g: None)], "difference_of_convex clip_at_bounds_twice"),
    "both sides of a passing element": ([(Check, "_bends", lambda check, pair: False)], "relu_one_ulp_from_zero"),
    "excuses": ([(Check, "_excuse", unexcused)], "relu_at_zero"),
    "several kinks at once": ([(Check, "_limit", lambda *_: None)], "relu_layer_of_zero_row"),
    "ties": ([(Check, "_ties", lambda check: None)], "maximum_of_equals_both"),
    "each output alone": ([(Check, "_inside", lambda *_: True)], "abs_at_zero_beyond_in_many_outputs"),
    # ---- many elements
    "blocks by size": ([(engine, "BLOCKS", 1)], "k1_smallest_doubled"),
    "bisection": ([(Check, "_bisect", lambda *_: None)], "k100_one_off"),
    "masks of kinks": ([(Check, "_masked", lambda check, place, g, _: (0 * g, 0 * g))], "k100_one_kink_beyond"),
    "kinks by the thousand": ([(Check, "_kinks", lambda *_: None)], "k100_one_kink_beyond"),
    "ties by the thousand": ([(Check, "_joint", lambda check: None)], "k1_max_pool_all k1_maximum_of_equals_both"),
    # ---- narrow dtypes
    "the native gradient": ([(Check, "_precision", lambda check: None)], "f32_through_float16"),
    "sensitivity to half an ulp": ([(Check, "_spreads", insensitive)], "f32_variance_at_1e3"),
}


def remove(monkeypatch, step):
    for target, name, replacement in STEPS[step][0]:
        monkeypatch.setattr(target, name, replacement)


def lost(names):
    trials = score(checker, seeds=3, cases=[CASES[name] for name in names]).trials
    return [str(trial) for trial in trials if trial.outcome != "right"]


@pytest.mark.parametrize("step", STEPS)
def test_without_this_step_a_case_is_lost(monkeypatch, step):
    names = STEPS[step][1].split()
    assert lost(names) == []
    remove(monkeypatch, step)
    assert lost(names)


def quadratic(x):
    return np.sum(x * x)


@pytest.mark.parametrize("shortcut", ["_near", "_large"])
def test_the_steps_before_the_ladder_save_calls_of_f(monkeypatch, shortcut):
    """They decide nothing that the ladder would not: it takes 44 calls for what they settle in 2, or in 6 where a large
    f hides the change of a small step."""
    x = np.random.default_rng(0).standard_normal(64) * (1 if shortcut == "_near" else np.geomspace(1, 1e-3, 64))
    calls = check_vjp(quadratic, lambda g, x: (2 * g * x,), [x]).evals
    everything = {"_near": lambda check, line, rows, *_: ([*range(len(rows))], 0.0),
                  "_large": lambda check, line, rows, todo: (todo, 0.0)}
    monkeypatch.setattr(Check, shortcut, everything[shortcut])
    report = check_vjp(quadratic, lambda g, x: (2 * g * x,), [x])
    assert report.verdict == "pass"
    assert report.evals > 2 * calls
