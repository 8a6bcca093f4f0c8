"""The judge proper: a checker against every case, several seeds each."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .case import CASES, Case

SEEDS = range(20)


@dataclass(frozen=True)
class Trial:
    """One answer of a checker."""

    case: Case
    seed: int
    verdict: str
    reason: str = ""
    where: tuple | None = None
    """What `Problem.where` says of the element that is wrong, or None where the checker names none."""
    expected: tuple | None = None

    @property
    def outcome(self):
        """"right", "imprecise" (acceptable, but not the precise verdict or reason), "false alarm" or "miss"."""
        if self.verdict not in self.case.accept:
            return "false alarm" if self.case.correct else "miss"
        precise = self.verdict in self.case.exact
        if self.case.reason and self.reason:
            precise &= any(word in self.reason for word in self.case.reason)
        if self.expected is not None and self.where is not None:
            precise &= self.where == self.expected
        return "right" if precise else "imprecise"

    def __str__(self):
        return f"{self.case.family}: {self.case.name}, seed {self.seed}: {self.verdict} {self.reason} ({self.outcome})"


@dataclass(frozen=True)
class Score:
    trials: list[Trial]

    def of(self, outcome):
        return [t for t in self.trials if t.outcome == outcome]

    @property
    def false_alarms(self):
        return self.of("false alarm")

    @property
    def misses(self):
        return self.of("miss")

    @property
    def imprecise(self):
        return self.of("imprecise")

    @property
    def correct(self):
        """The trials of correct rules; all others are of wrong ones."""
        return [t for t in self.trials if t.case.correct]

    def __str__(self):
        """A row per family and one for all."""
        families = defaultdict(list)
        for t in self.trials:
            families[t.case.family].append(t)
        rows = [row(name, trials) for name, trials in families.items()]
        head = f"{'family':16} {'correct':>8} {'alarms':>7} {'wrong':>8} {'misses':>7} {'imprecise':>10}"
        return "\n".join([head, *rows, row("all", self.trials)])


def row(name, trials):
    correct = sum(t.case.correct for t in trials)
    n = Counter(t.outcome for t in trials)
    return (f"{name:16} {correct:8} {n['false alarm']:7} {len(trials) - correct:8} {n['miss']:7} "
            f"{n['imprecise']:10}")


def score(checker: Callable, seeds: int | Iterable[int] = SEEDS, cases: Iterable[Case] | None = None) -> Score:
    """What `checker(f, vjp, arrays, wrt, seed)` makes of the cases (all), with every seed (20, or as given).

    It answers with a verdict, or (verdict, reason), or (verdict, reason, where): `reason` is text that contains the
    word of the structural test that failed, `where` is (place in wrt, index) of the worst element. A checker that
    raises has given the verdict "raised".
    """
    seeds = range(seeds) if isinstance(seeds, int) else seeds
    return Score([trial(checker, case, seed) for case in (cases or CASES.values()) for seed in seeds])


def trial(checker, case, seed):
    problem = case.problem(seed)
    try:
        answer = checker(problem.f, problem.vjp, list(problem.arrays), problem.wrt, seed)
    except Exception as error:
        answer = "raised", repr(error)
    answer = (answer,) if isinstance(answer, str) else answer
    return Trial(case, seed, *answer, expected=problem.where)
