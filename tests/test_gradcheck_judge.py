"""The checker before the judge: no false alarm, no miss, and the reason right. The judge was there first."""

import numpy as np
import pytest
from judge import CASES, score

from tinygrad_mnist.gradcheck import check_vjp

QUICK, SEEDS = range(1), range(20)
BIG, FEW = "100 000", range(3)  # a family whose cases take seconds each: 20 seeds of it are ten minutes


def checker(f, vjp, arrays, wrt, seed):
    """(verdict, reason, place of the first element that fails): how the judge asks."""
    report = check_vjp(f, vjp, arrays, wrt, seed=seed)
    places = [i for i, a in enumerate(arrays) if a.dtype.kind == "f"] if wrt is None else list(wrt)
    failing = [item for item in report.items if item.verdict == "fail" and item.index is not None]
    where = (places.index(failing[0].input), failing[0].index) if failing else None
    return report.verdict, " | ".join(item.reason for item in report.items), where


def held(result):
    assert [*map(str, result.false_alarms)] == []
    assert [*map(str, result.misses)] == []
    assert len(result.imprecise) <= 0.01 * len(result.trials), [*map(str, result.imprecise)]


@pytest.mark.filterwarnings("ignore:Casting complex values to real")  # of a case whose rule is complex by mistake
def test_no_false_alarm_and_no_miss():
    held(score(checker, QUICK, [case for case in CASES.values() if case.family != BIG]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Casting complex values to real")
@pytest.mark.parametrize("family", sorted({case.family for case in CASES.values()}))
def test_no_false_alarm_and_no_miss_in_twenty_seeds(family):
    result = score(checker, FEW if family == BIG else SEEDS, [case for case in CASES.values() if case.family == family])
    assert [*map(str, result.false_alarms)] == []
    assert [*map(str, result.misses)] == []


@pytest.mark.parametrize("name", [case.name for case in CASES.values() if not case.correct and case.family != BIG])
def test_every_failing_report_says_where_and_how_to_see_it_again(name):
    p = CASES[name].problem(0)
    report = check_vjp(p.f, p.vjp, p.arrays, p.wrt, seed=3)
    if report.verdict == "ill":
        return
    text = str(report)
    assert "seed=3" in text
    broken = [name for name, state in report.structure.items() if state not in ("pass", "not run")]
    if broken:
        assert all(name in text for name in broken)
        return
    item = next(item for item in report.items if item.verdict == "fail")
    assert f"input {item.input}" in text
    assert str(item.index) in text
    assert item.reason
    assert item.reason in text
    if np.isfinite(item.analytic):
        assert "analytic" in text
    assert item.numeric is None or "numeric" in text
    assert item.error is None or "+-" in text
