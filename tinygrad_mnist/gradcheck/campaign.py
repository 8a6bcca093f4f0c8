"""Operations checked over the cases that their strategy draws: `check_op` one of them, `campaign` all, row by row.

Case K of seed S is always the same, however many are asked for; the check's own random numbers come from S + K. What
is drawn depends on the version of Hypothesis too.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from .. import arrays
from ..core import F
from ..testing import DeviceBackend
from .report import VERDICTS, GradReport, plain
from .strategies import OpCase, call, op_cases, op_names, written
from .tensors import check

EXAMPLES = 100
PLACES = (("float64", "cpu"), ("float32", "cpu"), ("float16", "cpu"), ("float64", "strict"))
"""(dtype, device) of the rows that `campaign` has for each operation: "strict" is a double of CuPy that needs no
GPU."""

Spread = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]

_ATTEMPTS = 200  # to draw one example that the filters of a strategy let pass
_BYTES = 8192  # of randomness for one example: more than Hypothesis allows it to use
_WIDTHS = {
    "op": -13, "dtype": -8, "device": -7, "checks": 6, "elements": 8, "pass": 7, "kink": 6, "ill": 4, "nondet": 6,
    "fail": 5, "resolution": 10, "P(miss)": 7, "f calls": 8, "ms": 7, "seed": 4,
}


def sampler(strategy: st.SearchStrategy[Any]) -> Callable[[int, int], Any]:
    """A function of (seed, number) that gives one example of a strategy, the same whenever it is asked.

    The examples are independent of each other. In a test Hypothesis would make most of them from earlier ones, to come
    upon failures in the neighbourhood; what it does with bytes from elsewhere, as fuzzers use it, leaves that out.
    """
    found: list[Any] = []

    @settings(database=None)
    @given(strategy)
    def collect(example: Any) -> None:
        found.append(example)

    run = collect.hypothesis.fuzz_one_input  # type: ignore[attr-defined]

    def sample(seed: int, number: int) -> Any:
        for attempt in range(_ATTEMPTS):
            found.clear()
            if run(random.Random(f"{seed} {number} {attempt}").randbytes(_BYTES)) is not None:
                return found[0]
        raise ValueError(f"the strategy's filters or assumptions reject {_ATTEMPTS} of {_ATTEMPTS} examples")

    return sample


@dataclass(frozen=True)
class Failure:
    """The case with the worst verdict; among equals the one with the fewest elements."""

    number: int
    case: OpCase
    verdict: str
    report: GradReport | None
    error: str = ""  # what the operation or its rule raised instead

    @property
    def severity(self) -> tuple[int, int]:
        """To compare by."""
        return VERDICTS.index(self.verdict), -sum(a.size for a in self.case.arrays)


@dataclass(kw_only=True)
class OpReport:
    """What the checks of one operation in one dtype on one device found: a row of the table of the campaign.

    `checks`: cases; `counts`: their elements per verdict, and for a whole case that broke in another way one more of
    "fail" or "nondet". `resolution`, `miss_probability`: the largest of a case. `evals`, `backwards`: calls of the
    operation and of its rule. `worst`: None where every case is "pass" or "kink". `order`: 2 if second derivatives are
    checked too. `shipped`: False where the strategy is the caller's.
    """

    op: str
    dtype: str
    device: str
    seed: int
    order: int = 1
    shipped: bool = True
    checks: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VERDICTS, 0))
    resolution: float = 0.0
    miss_probability: float = 0.0
    evals: int = 0
    backwards: int = 0
    ms: float = 0.0
    worst: Failure | None = None

    @property
    def verdict(self) -> str:
        """The worst of all."""
        return max((v for v, n in self.counts.items() if n), key=VERDICTS.index, default="pass")

    @property
    def ok(self) -> bool:
        """True for "pass" and "kink"."""
        return self.verdict in ("pass", "kink")

    def __bool__(self) -> bool:
        raise TypeError("a report is neither true nor false: use report.ok or report.verdict")

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled. A case that can be drawn again is left out: its function may not pickle, and the strides of
        its operands would be lost."""
        state = dict(vars(self))
        if self.worst is not None and self.shipped:
            state["worst"] = {**vars(self.worst), "case": None}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(worst := state["worst"], dict):
            worst["case"] = sampler(op_cases(state["op"], np.dtype(state["dtype"])))(state["seed"], worst["number"])
            state["worst"] = Failure(**worst)
        vars(self).update(state)

    def cells(self) -> dict[str, str]:
        """The columns of the row."""
        return {
            "op": self.op,
            "dtype": self.dtype,
            "device": self.device,
            "checks": f"{self.checks:,}",
            "elements": f"{sum(self.counts.values()):,}",
            **{verdict: f"{self.counts[verdict]:,}" for verdict in VERDICTS},
            "resolution": f"{self.resolution:.0e}",
            "P(miss)": f"{self.miss_probability:.0e}",
            "f calls": f"{self.evals:,}",
            "ms": f"{self.ms:,.0f}",
            "seed": str(self.seed),
        }

    @property
    def row(self) -> str:
        """The line of the table; `head()` is the one above."""
        return _line(self.cells())

    @property
    def details(self) -> str:
        """What a reader needs to see of the worst case: the call, its operands, the report, how to run it again."""
        if self.worst is None:
            return ""
        case, report = self.worst.case, self.worst.report
        by = ", ".join(_names(case, case.wrt))
        lines = [f"{self.worst.verdict.upper()}  {case.text}, differentiated by {by}, where"]
        for name, a in zip(_names(case), case.arrays, strict=True):
            values = np.array2string(a, separator=", ", precision=17, threshold=64, prefix=" " * 7)
            lines.append(f"   {name} = {values}  {a.dtype} {a.shape}{_layout(a)}")
        lines.append(f"{self.worst.error}\nreproduce: {self._again()}" if report is None else str(report))
        return "\n".join(lines)

    def __str__(self) -> str:
        return "\n".join([head(), self.row, *([self.details] if self.worst else [])])

    def to_json(self) -> str:
        """The row as one JSON object; "worst" is null or {"case", "text", "shapes", "error", "report"}."""
        worst = self.worst and {
            "case": self.worst.number,
            "text": self.worst.case.text,
            "shapes": [a.shape for a in self.worst.case.arrays],
            "error": self.worst.error,
            "report": json.loads(self.worst.report.to_json()) if self.worst.report is not None else None,
        }
        names = ("op", "dtype", "device", "seed", "checks", "counts", "resolution", "miss_probability", "evals",
                 "backwards", "ms")
        content = {"verdict": self.verdict, "ok": self.ok, **{n: getattr(self, n) for n in names}}
        return json.dumps(plain(content | {"worst": worst, "reproduce": self._again()}), allow_nan=False)

    @property
    def command(self) -> str:
        """What runs it again: a command line, or a call where the strategy is the caller's."""
        if not self.shipped:
            order = "" if self.order == 1 else f", order={self.order}"
            where = f"dtype={self.dtype!r}, seed={self.seed}, device={self.device!r}"
            return f"check_op({self.op!r}, strategy, {where}{order})"
        options = f" --device {self.device}" * (self.device != "cpu") + f" --order {self.order}" * (self.order != 1)
        return f"tinygrad-mnist gradcheck {self.op} --dtype {self.dtype}{options} --seed {self.seed}"

    def _again(self) -> str:
        """What runs the worst case again."""
        if self.worst is None:
            return self.command
        case = self.worst.number
        return f"{self.command} --case {case}" if self.shipped else f"{self.command[:-1]}, case={case})"

    def add(self, number: int, case: OpCase, device: str) -> None:
        """Check one case and take it in."""
        start = time.perf_counter()
        report, verdict, error = None, "fail", ""
        try:
            report = _check(case, self.seed + number, device, self.order)
            verdict = report.verdict
        except Exception as problem:  # a wrong rule may raise anything
            error = f"{type(problem).__name__}: {problem}"
        self.ms += 1000 * (time.perf_counter() - start)
        self.checks += 1
        if report is not None:
            for name, n in report.counts.items():
                self.counts[name] += n
            self.resolution = max(self.resolution, report.resolution)
            self.miss_probability = max(self.miss_probability, report.miss_probability)
            self.evals += report.evals
            self.backwards += report.backwards
        if report is None or (verdict != "pass" and not report.counts.get(verdict)):
            self.counts[verdict] += 1  # the case as a whole
        found = Failure(number, case, verdict, report, error)
        if verdict not in ("pass", "kink") and (self.worst is None or found.severity > self.worst.severity):
            self.worst = found
            if report is not None:
                report.reproduce = self._again()


def _check(case: OpCase, seed: int, device: str, order: int) -> GradReport:
    operands = list(case.arrays)
    if device != "cpu":
        operands = [DeviceBackend(device, device).array(a) for a in operands]
    report = check(case.fn, *operands, wrt=case.wrt, seed=seed, order=order)
    return replace(report, names=_names(case)) if order == 1 else report


def _names(case: OpCase, places: Sequence[int] | None = None) -> tuple[str, ...]:
    places = range(len(case.arrays)) if places is None else places
    return tuple("abcdefghijklmnopqrstuvwxyz"[i] for i in places)


def _layout(a: np.ndarray[Any, Any]) -> str:
    if a.flags.c_contiguous:
        return ""
    return f", strides {a.strides}"


def _line(cells: dict[str, str]) -> str:
    return "  ".join(cells[name].ljust(-n) if n < 0 else cells[name].rjust(n) for name, n in _WIDTHS.items()).rstrip()


def head() -> str:
    """The line above the rows of the table."""
    return _line({name: name for name in _WIDTHS})


def check_op(
    name: str, strategy: st.SearchStrategy[Any] | None = None, *, examples: int = EXAMPLES, seed: int = 0,
    dtype: Any = None, device: str | None = None, order: int = 1, case: int | None = None,
) -> OpReport:
    """Whether the rules of an operation are right, over `examples` cases that its strategy draws.

    `strategy`: of `OpCase`s, or of tuples of arrays, the operands of the function that is registered as `name`;
    without one, `op_cases(name)`. `dtype`: float64 unless given; the operands of a strategy of your own are cast to
    it. `device`: "cpu", a GPU, or "strict", the double of CuPy. `order`: 2 checks the
    second derivatives too. `case`: check that one alone, as reports say.
    """
    dtype = np.dtype(np.float64 if dtype is None else dtype)
    if dtype.kind != "f":
        raise TypeError(f"check_op: dtype must be a float dtype, not {dtype}")
    device = device or "cpu"
    if device == "strict":
        from ..testing import strict  # what no other device needs

        arrays.register("strict", strict.xp)
    out = OpReport(op=name, dtype=dtype.name, device=device, seed=seed, order=order, shipped=strategy is None)
    sample = sampler(op_cases(name, dtype) if strategy is None else strategy)
    for number in range(examples) if case is None else [case]:
        example = sample(seed, number)
        out.add(number, example if strategy is None else _case(name, example, dtype), device)
    return out


def _case(name: str, example: Any, dtype: Any) -> OpCase:
    """What a strategy of a user's own has drawn, as a case in this dtype."""
    if isinstance(example, OpCase):
        operands = example.arrays
    else:
        operands = tuple(np.asarray(a) for a in (example if isinstance(example, (tuple, list)) else (example,)))
    operands = tuple(a.astype(dtype) if a.dtype.kind == "f" else a for a in operands)
    if isinstance(example, OpCase):
        return replace(example, arrays=operands)
    if not hasattr(F, name):
        raise ValueError(
            f"check_op: no function {name!r} on Tensors: register it with @primitive, or let the strategy draw OpCases"
        )
    text = written(name, "abcdefgh"[: len(operands)], {})
    wrt = tuple(i for i, a in enumerate(operands) if a.dtype.kind == "f")
    return OpCase(name, text, functools.partial(call, name, {}), operands, wrt)


def campaign(
    names: Sequence[str] | None = None, *, examples: int = EXAMPLES, seed: int = 0, seeds: int = 1, order: int = 1,
    places: Sequence[tuple[str, str]] = PLACES, spread: Spread = map,
) -> Iterator[OpReport]:
    """`check_op` for these operations, or for every registered one, in each dtype and on each device of `places`, with
    each of as many `seeds`, from `seed` on: a row as soon as it is done. `spread`: what does the rows, as `map` does.
    Raises ValueError for a name that is unknown, before the first row."""
    names = op_names() if names is None else list(names)
    for name in names:
        op_cases(name)
    rows = itertools.product(names, places, range(seed, seed + seeds))
    yield from spread(functools.partial(_row, examples=examples, order=order), rows)


def _row(row: tuple[str, tuple[str, str], int], *, examples: int, order: int) -> OpReport:
    name, (dtype, device), seed = row
    return check_op(name, examples=examples, seed=seed, dtype=dtype, device=device, order=order)
