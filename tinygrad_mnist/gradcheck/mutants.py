"""Mutation testing of the rules: does the checker, on the cases that the strategies draw, notice every change?

Two kinds of mutants, for every rule of every primitive:

- *output mutants* change what the rule returns or is given: an element off by 0.1 %, a sign, a transpose, |g| for g;
- *source mutants* change one node of the rule's syntax tree, or of a helper function that it calls: a factor dropped,
  `*` for `/`, `>` for `>=`, one operand for another, a keyword left out.

A mutant is *killed* if a case of the shipped strategy, at the shipped number of examples, gets the verdict "fail" or
"nondet", or if the mutant raises. Those that live are compared with the rule on 500 further cases, and must be listed,
with a reason, in `equivalents.toml`:

- under `same` if no case shows a difference beyond 1e-13: the changed rule computes the same;
- under `choice` if all differences lie at kinks, where the report is "kink": another element of the subdifferential;
- under `beyond` if it differs, but where no strategy goes (65504 elements of float16): a test of this package has the
  point at which it is killed.

Any other survivor is a hole in the strategies or in the checker, and a listed mutant that is killed, or that no longer
exists, is stale. The walk's own un-broadcasting and accumulation are mutated too, as the rules of "walk".

(DeMillo, Lipton, Sayward 1978, Hints on test data selection: help for the practicing programmer.)
"""

from __future__ import annotations

import ast
import functools
import re
import tomllib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np

from .. import core, ops
from ..core import F, Primitive, Rule, Tensor
from ..functional import vjp
from . import strategies
from .campaign import EXAMPLES, sampler
from .engine import check_vjp
from .report import GradReport
from .sources import compiled, helpers, name_all, rebuilt, source, source_mutants
from .strategies import OpCase
from .tensors import check

Array = np.ndarray[Any, Any]
COMPARED = 500  # further cases on which a mutant that lives is compared with the rule
KILLS = ("fail", "nondet")
COLUMNS = ("mutants", "killed", "same", "choice", "survivors")
LISTED = Path(__file__).with_name("equivalents.toml")

# ---- output mutants -----------------------------------------------------------------------------------------------


def _one_element(factor: float) -> Callable[[Any], Any]:
    """The middle element times `factor`."""

    def change(a: Any) -> Any:
        a = np.array(a)
        if a.size:
            a.flat[a.size // 2] *= factor
        return a

    return change


def _smallest_lost(a: Any) -> Any:
    a = np.array(a)
    if a.any():
        a.flat[np.argmin(np.where(a == 0, np.inf, np.absolute(a)))] = 0
    return a


def _two_swapped(a: Any) -> Any:
    a = np.array(a)
    a.flat[:2] = a.flat[:2][::-1]
    return a


def _transposed(a: Any) -> Any:
    return np.reshape(np.transpose(a), np.shape(a))


OUTPUTS: dict[str, Callable[[Any], Any]] = {
    "one element x 1.001": _one_element(1.001),
    "one element x 2": _one_element(2.0),
    "one element negated": _one_element(-1.0),
    "all x (1 + 1e-3)": lambda a: a * (1 + 1e-3),
    "all x (1 + 1e-5)": lambda a: a * (1 + 1e-5),
    "all negated": lambda a: -a,
    "the smallest element lost": _smallest_lost,
    "two elements swapped": _two_swapped,
    "rolled": lambda a: np.roll(a, 1),
    "transposed": _transposed,
    "all lost": np.zeros_like,
}
INPUTS: dict[str, Callable[[Any], Any]] = {
    "|g|": np.absolute,
    "g clipped to [-1, 1]": lambda g: np.clip(g, -1.0, 1.0),
    "mean of g": lambda g: np.full_like(g, np.mean(g) if np.size(g) else 0.0),
    "g^3": lambda g: g**3,
}


def _changed_output(rule: Rule, change: Callable[[Any], Any]) -> Rule:
    return lambda xp, g, *rest, **params: change(rule(xp, g, *rest, **params))


def _changed_input(rule: Rule, change: Callable[[Any], Any]) -> Rule:
    return lambda xp, g, *rest, **params: rule(xp, change(g), *rest, **params)


def _written_into_g(rule: Rule) -> Rule:
    def written(xp: Any, g: Any, *rest: Any, **params: Any) -> Any:
        out = rule(xp, g, *rest, **params)
        if isinstance(g, np.ndarray):
            g *= 1.5
        return out

    return written


def output_mutants(rule: Rule) -> Iterator[tuple[str, Rule]]:
    """(what is changed, the changed rule), the same for every rule."""
    for text, change in OUTPUTS.items():
        yield text, _changed_output(rule, change)
    for text, change in INPUTS.items():
        yield text, _changed_input(rule, change)
    yield "g written to", _written_into_g(rule)


# ---- mutants of a primitive, put in place -------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """One change, and the context manager that puts it in place and takes it out again."""

    rule: str
    """The rule that is changed: "matmul[0]", operand 0 of matmul; "sum[0]/_kept" in a helper of it."""
    text: str
    planted: Callable[[], AbstractContextManager[None]] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.rule}: {self.text}"

    @property
    def helper(self) -> str:
        """The name without the rule that calls the helper: "_kept: 1 -> 2"; "" where it is no helper's."""
        return f"{self.rule.partition('/')[2]}: {self.text}" if "/" in self.rule else ""


def primitives() -> dict[str, Primitive]:
    """Every registered primitive that has a rule, by its name."""
    functions = [*vars(F).values(), *vars(ops).values()]  # `F.where` has NumPy's signature, and is not the row itself
    prims = (getattr(function, "prim", None) for function in functions)
    return {prim.name: prim for prim in prims if prim is not None and prim.differentiable}


@contextmanager
def planted(prim: Primitive, place: int, rule: Rule, asks: list[int] | None = None) -> Iterator[None]:
    """`rule` instead of the rule of one operand, until the end of the block. `asks`: what a node keeps for it, if that
    is not to be read from the rule's own parameters."""
    rules = [prim.rules.rule] if prim.variadic else [*prim.rules]
    before = prim.rules, prim._asks
    asks = core._asks(rule, len(rules), prim.variadic) if asks is None else asks
    rules[place] = rule
    prim.rules = core._PerOperand(rule) if prim.variadic else tuple(rules)
    prim._asks = [*prim._asks[:place], asks, *prim._asks[place + 1 :]]
    prim.plans.clear()
    try:
        yield
    finally:
        prim.rules, prim._asks = before
        prim.plans.clear()


@contextmanager
def recoded(function: FunctionType, code: CodeType) -> Iterator[None]:
    """Other code in a function, whoever holds it, until the end of the block."""
    before = function.__code__
    function.__code__ = code
    try:
        yield
    finally:
        function.__code__ = before


def mutants(prim: Primitive) -> Iterator[tuple[str, list[Mutant]]]:
    """(rule, its mutants), rule by rule."""
    rules = [prim.rules.rule] if prim.variadic else prim.rules
    for place, rule in enumerate(rules):
        if rule is None:
            continue
        name = f"{prim.name}[{place}]"
        put = functools.partial(planted, prim, place)
        found = [
            Mutant(name, text, functools.partial(put, changed, prim._asks[place]))
            for text, changed in output_mutants(rule)
        ]
        found += [
            Mutant(name, f"the rule of operand {other}", functools.partial(put, rules[other]))
            for other in range(len(rules))
            if rules[other] is not None and rules[other].__code__.co_code != rule.__code__.co_code
        ]
        tree = source(rule) if prim.variadic else name_all(source(rule), len(rules))
        for label, function, its_tree in [
            (name, rule, tree),
            *((f"{name}/{key}", helper, source(helper)) for key, helper in helpers(rule).items()),
        ]:
            for text, changed_tree in source_mutants(its_tree, rule=function is rule):
                changed = rebuilt(rule, function, compiled(changed_tree))
                found.append(Mutant(label, text, functools.partial(put, changed)))
        yield name, found


WALK: dict[Any, str] = {core.sum_to: "", core._is_fresh: "", core.walk: "old is None"}
"""What of the walk is mutated: whole functions, and of `walk` the statement that adds gradients up."""


def walk_mutants() -> Iterator[tuple[str, list[Mutant]]]:
    """(function, its mutants) for what the walk itself contributes to gradients: un-broadcasting, accumulation."""
    for function, condition in WALK.items():
        tree, name = source(function), f"walk/{function.__name__}"
        within = next((n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == condition), None)
        yield name, [
            Mutant(name, text, functools.partial(recoded, function, compiled(changed)))
            for text, changed in source_mutants(tree, within)
        ]


# ---- cases --------------------------------------------------------------------------------------------------------


Place = tuple[int, tuple[int, ...]]  # (operand, index)


class Trial:
    """A drawn case, a cotangent, and the gradients of the right rule.

    `leaves`: by `backward()`, which collects at leaves and adds up in place, instead of `vjp`.
    """

    def __init__(self, case: OpCase, number: int, leaves: bool = False) -> None:
        self.case, self.number, self.leaves = case, number, leaves
        y = self.f(*case.arrays)
        self.g = np.asarray(2.0 * np.random.default_rng(0).standard_normal(y.shape), y.dtype)
        self.right = self.vjp(self.g.copy(), *case.arrays)

    def f(self, *operands: Array) -> Array:
        return np.asarray(self.case.fn(*map(_operand, operands)).data)

    def vjp(self, g: Array, *operands: Array) -> tuple[Array, ...]:
        values, wrt = list(map(_operand, operands)), self.case.wrt

        def f(*chosen: Any) -> Any:
            for i, x in zip(wrt, chosen, strict=True):
                values[i] = x
            return self.case.fn(*values)

        if not self.leaves:
            return vjp(f, *[operands[i] for i in wrt])[1](g)
        xs = [Tensor(operands[i], requires_grad=True) for i in wrt]
        f(*xs).backward(g)
        return tuple(np.zeros_like(x.data) if x.grad is None else x.grad for x in xs)

    def differences(self) -> list[Place]:
        """The elements in which what is planted gives other gradients; operand -1: it differs as a whole."""
        g = self.g.copy()
        found = self.vjp(g, *self.case.arrays)
        if not _same(g, self.g).all() or any(
            a.shape != b.shape or a.dtype != b.dtype for a, b in zip(found, self.right, strict=True)
        ):
            return [(-1, ())]
        pairs = zip(self.case.wrt, found, self.right, strict=True)
        return [(i, tuple(map(int, index))) for i, a, b in pairs for index in np.argwhere(~_same(a, b))]

    def check(self) -> GradReport:
        """As `check_op` does it."""
        case = self.case
        if self.leaves:
            return check_vjp(self.f, self.vjp, case.arrays, case.wrt, seed=self.number)
        return check(case.fn, *case.arrays, wrt=case.wrt, seed=self.number)


def _operand(a: Array) -> Any:
    """As `check` hands it to the function."""
    return Tensor(a) if a.dtype.kind == "f" else a if a.ndim else a.item()


def _same(a: Array, b: Array) -> Array:
    return (a == b) | (np.isnan(a) & np.isnan(b)) | (np.absolute(a - b) <= 1e-13 * np.absolute(b))


class Bench:
    """The cases of one operation: those that are to kill, and those that mutants are compared on."""

    def __init__(self, name: str, examples: int = EXAMPLES) -> None:
        self.name, self.examples = name, examples

    def _drawn(self, dtype: str, start: int, stop: int) -> list[Trial]:
        like, walk = np.dtype(dtype), self.name == "walk"
        if walk:
            samples = [sampler(strategies.graphs(dtype=like)), sampler(strategies.op_cases("add", like))]
        else:
            samples = [sampler(strategies.op_cases(self.name, like))]
        trials = [Trial(sample(0, k), k, walk and k % 2 > 0) for sample in samples for k in range(start, stop)]
        return sorted(trials, key=lambda trial: trial.g.size)  # the cheapest first

    @functools.cached_property
    def shipped(self) -> list[Trial]:
        """What `check_op` checks in float64."""
        return self._drawn("float64", 0, self.examples)

    @functools.cached_property
    def narrow(self) -> list[Trial]:
        """What it checks in other dtypes. Results differ there by rounding: they may kill, but show no difference."""
        return self._drawn("float32", 0, self.examples) + self._drawn("float16", 0, self.examples)

    @functools.cached_property
    def compared(self) -> list[Trial]:
        return self._drawn("float64", self.examples, self.examples + COMPARED)


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant."""

    mutant: Mutant
    fate: str
    """"killed"; "same": no case shows a difference; "choice": they differ at kinks alone; "different": a survivor."""
    why: str
    """The verdict or exception that killed it, or a case on which it differs."""


def examine(mutant: Mutant, bench: Bench) -> Outcome:
    """Kill the mutant if the shipped cases can, else compare it with the rule on others."""
    verdicts: dict[str, OpCase] = {}  # and the first case that got it
    for verdict, case in _verdicts(mutant, bench.shipped):
        if verdict in KILLS:
            return Outcome(mutant, "killed", f"{verdict} in {case.text}")
        verdicts.setdefault(verdict, case)
    for verdict, case in _verdicts(mutant, bench.narrow):
        if verdict in KILLS:
            return Outcome(mutant, "killed", f"{verdict} in {case.text}, {case.arrays[0].dtype}")
    if not verdicts.keys() - {"kink"}:
        for verdict, case in _verdicts(mutant, bench.compared):
            verdicts.setdefault(verdict, case)
            if verdict != "kink":
                break
    fate = "same" if not verdicts else "choice" if verdicts.keys() == {"kink"} else "different"
    return Outcome(mutant, fate, ", ".join(f"{verdict} in {case.text}" for verdict, case in verdicts.items()))


def _verdicts(mutant: Mutant, trials: Sequence[Trial]) -> Iterator[tuple[str, OpCase]]:
    """(verdict, case) for the cases in which the mutant differs from the rule. "kink": all differences are at kinks,
    whatever else the report says. To raise is as good as to fail."""
    for trial in trials:
        with mutant.planted(), np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                places = trial.differences()
            except Exception:  # a mutant may raise anything
                yield "fail", trial.case
                continue
            if not places:
                continue
            report = trial.check()
        verdict = report.verdict
        if verdict not in KILLS and set(places) <= set(report.kinks):
            verdict = "kink"
        elif verdict == "kink":
            verdict = "pass"  # the kinks are elsewhere
        yield verdict, trial.case


# ---- the campaign -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """The reviewed list: {name of a mutant that lives: reason}, by what it is."""

    same: dict[str, str] = field(default_factory=dict)
    choice: dict[str, str] = field(default_factory=dict)
    beyond: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path = LISTED) -> Known:
        """Raises ValueError where a mutant is listed twice or a reason is missing."""
        parts: dict[str, dict[str, str]] = {"same": {}, "choice": {}, "beyond": {}}
        for kind, groups in tomllib.loads(path.read_text("utf-8")).items():
            for group in groups:
                for name in group["mutants"]:
                    if any(name in part for part in parts.values()) or not group["reason"].strip():
                        raise ValueError(f"{path.name}: {name!r} is listed twice, or without a reason")
                    parts[kind][name] = group["reason"]
        return cls(**parts)

    def entry(self, outcome: Outcome) -> str | None:
        """The entry that a living mutant has under what it is: its own, or one for its helper wherever it is used."""
        entries = {"same": self.same | self.beyond, "choice": self.choice}.get(outcome.fate, {})
        return next((name for name in (outcome.mutant.name, outcome.mutant.helper) if name in entries), None)


@dataclass(frozen=True)
class RuleResult:
    """The mutants of one rule, and what the reviewed list says of those that live."""

    rule: str
    outcomes: list[Outcome]
    known: Known

    @property
    def op(self) -> str:
        """The primitive: "matmul"."""
        return _op(self.rule)

    def of(self, fate: str) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.fate == fate]

    @property
    def survivors(self) -> list[Outcome]:
        """Alive, and not listed under what they are."""
        return [o for o in self.outcomes if o.fate != "killed" and self.known.entry(o) is None]

    @property
    def used(self) -> set[str]:
        """The entries of the list that a living mutant has."""
        return {entry for o in self.outcomes if (entry := self.known.entry(o))}

    def __str__(self) -> str:
        lines = [f"{self.rule}: {len(self.outcomes)} mutants, {len(self.of('killed'))} killed"]
        lines += [f"  SURVIVED {o.mutant.name} ({o.fate}{f': {o.why}' if o.why else ''})" for o in self.survivors]
        return "\n".join(lines)


def mutate(
    names: Sequence[str] | None = None, examples: int = EXAMPLES, known: Known | None = None
) -> Iterator[RuleResult]:
    """Mutate the rules of these primitives ("walk" too), or of all, and yield what became of it, rule by rule."""
    known = Known.read() if known is None else known
    prims = primitives()
    for name in [*strategies.op_names(), "walk"] if names is None else names:
        if name != "walk" and name not in prims:
            raise ValueError(f"no primitive {name!r} with a rule: there are {', '.join(sorted(prims))} and walk")
        bench = Bench(name, examples)
        for rule, found in walk_mutants() if name == "walk" else mutants(prims[name]):
            yield RuleResult(rule, [examine(mutant, bench) for mutant in found], known)


def stale(results: Sequence[RuleResult]) -> list[str]:
    """Entries of the list for these primitives that stand for no living mutant: it was killed, or is no longer made.
    An entry for a helper speaks of all rules that call it: it is stale as soon as one of them has it killed."""
    if not results:
        return []
    known, ops = results[0].known, {result.op for result in results}
    used = set().union(*(result.used for result in results))
    killed = {outcome.mutant.helper for result in results for outcome in result.of("killed")}
    all_done = ops.issuperset([*primitives(), "walk"])
    return [
        name
        for name in [*known.same, *known.choice, *known.beyond]
        if name in killed or (name not in used and (all_done or _op(name) in ops))
    ]


def _op(name: str) -> str:
    """The primitive that a rule or a mutant is named after: "sum" of "sum[0]/_kept: 1 -> 2"; "" for a helper's own."""
    rule = name.partition(":")[0]
    return re.split(r"[\[/]", rule)[0] if re.search(r"[\[/]", rule) else ""


def summary(results: Iterable[RuleResult]) -> list[dict[str, str | int]]:
    """A row for each primitive: mutants, killed, equivalent ("same", "choice"), survivors."""
    rows: dict[str, dict[str, str | int]] = {}
    for result in results:
        row = rows.setdefault(result.op, {"op": result.op, **dict.fromkeys(COLUMNS, 0)})
        counts = len(result.outcomes), *(len(result.of(fate)) for fate in COLUMNS[1:-1]), len(result.survivors)
        for column, count in zip(COLUMNS, counts, strict=True):
            row[column] = int(row[column]) + count
    return list(rows.values())
