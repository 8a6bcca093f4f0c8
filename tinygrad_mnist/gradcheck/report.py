"""What a check found: each element that is not a plain pass, the verdict of the whole, and how a reader sees it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

VERDICTS = ("pass", "kink", "ill", "nondet", "fail")
"""From mild to bad. pass: the rule gives the derivative. kink: there is none, and the rule's answer lies between the
one-sided slopes. ill: no difference can decide. nondet: asked again, the answer is another. fail: the rule is wrong."""

AUDITED = (*VERDICTS[:-1], "factor", "shape", "fail")
"""Verdicts of an audit, from mild to bad. factor: a multiple of the gradient. shape: it cannot be the gradient."""

STRUCTURE = ("shape", "dtype", "determinism", "hygiene", "zero", "linearity")
"""The tests that need no difference, in the order in which they run."""

FINE = ("pass", "not run")
_SHOWN = 8  # items of a kind that is no failure: kinks, ill


@dataclass(frozen=True)
class Derivative:
    """A derivative by differences: `value` +- `error`, which covers truncation, rounding and `noise`, the uncertainty
    of one evaluation of the function; `steps` that were taken; the slopes on the `left` and the `right`."""

    value: float
    error: float
    steps: tuple[float, ...]
    noise: float
    left: float
    right: float


@dataclass(frozen=True)
class TaylorReport:
    """How fast |f(x + h d) - f(x) - h <gradient, d>| falls with h: as h^2 for the right gradient, as h for a wrong one.

    `slopes[i]` belongs to the steps i and i + 1; `slope` is that of the straightest stretch of the log-log curve above
    rounding, NaN where nothing is above it (a linear function). `verdict`: "pass" (slope 2 or more, or no remainder at
    all), "fail" (slope 1), "ill" (anything else: a jump, a kink, noise). An explanation rather than a test: it sees no
    relative error below about 1e-5 along d.
    """

    steps: tuple[float, ...]
    remainders: tuple[float, ...]
    slopes: tuple[float, ...]
    slope: float
    verdict: str

    @property
    def summary(self) -> str:
        """One line, the scale of the slope with it."""
        if math.isnan(self.slope):
            what = "no remainder above rounding: linear" if self.verdict == "pass" else "no straight stretch"
            return f"Taylor test: {what}"
        return f"Taylor slope {self.slope:.2f} (a right gradient has 2.00)"

    def __str__(self) -> str:
        rows = [f"{h:8.1e}  {r:9.2e}" for h, r in zip(self.steps, self.remainders, strict=True)]
        ends = ["", *(f"  {s:5.2f}" for s in self.slopes)]
        lines = [row + end for row, end in zip(rows, ends, strict=True)]
        return "\n".join([f"{'h':>8}  {'remainder':>9}  slope", *lines, f"{self.verdict}: {self.summary}"])


@dataclass(frozen=True)
class DotReport:
    """<J u, v> and <u, J^T v>, which are equal to within `tolerance`, the rounding of the two.

    `forward` is <J u, v> with J u derived from the rules, `backward` is <u, J^T v>, and `direct` is <J u, v> with J u
    from values of the function alone: None unless it is `linear`. `verdict`: "pass" or "fail".
    """

    forward: float
    backward: float
    direct: float | None
    tolerance: float
    linear: bool
    verdict: str

    @property
    def ok(self) -> bool:
        """True for "pass"."""
        return self.verdict == "pass"

    def __bool__(self) -> bool:
        raise TypeError("a report is neither true nor false: use report.ok or report.verdict")

    def __str__(self) -> str:
        if self.direct is None:
            values = "the function is not linear, so its values play no part (check has them)"
        else:
            values = f"by values of the function, which is linear, by {abs(self.direct - self.backward):.0e}"
        return (
            f"dot test: {self.verdict.upper()}: <u, J'v> = {self.backward:.6g}; <J u, v> by the rules differs by "
            f"{abs(self.forward - self.backward):.0e}; {values}; rounding {self.tolerance:.0e}"
        )


@dataclass(frozen=True)
class Item:
    """One element of a gradient, or (`index` None) an input, or (`input` -1) the function as a whole.

    `numeric` is uncertain by `error`. `reason` is in short words; that of a structural failure begins with the name of
    the test: "linearity: ...".
    """

    input: int
    index: tuple[int, ...] | None
    analytic: float | None
    numeric: float | None
    error: float | None
    verdict: str
    reason: str


@dataclass(kw_only=True)
class GradReport:
    """The result of a check. Not a truth value: ask `.ok` (pass or kink) or `.verdict`. `str()` is for people,
    `to_json()` for machines.

    `items`: every element that is not a plain pass, worst first. `structure`: for each test that needs no difference,
    "pass", "not run", or what broke. `counts`: elements per verdict. `kinks`: (input, index) of the elements at kinks.
    `resolution`: the largest relative error that could have stayed hidden in what passed, and `miss_probability` a
    bound on the probability that a larger one did. `noise`: relative noise of f between equal calls. `evals` and
    `backwards`: calls of f and of the rule. `numeric` and `analytic`: for each input of which every element was
    measured, both gradients. `notes`: what a reader should know. `reproduce`: how to run the same check again.
    """

    items: list[Item]
    structure: dict[str, str]
    counts: dict[str, int]
    kinks: list[tuple[int, tuple[int, ...]]]
    resolution: float
    miss_probability: float
    noise: float
    evals: int
    backwards: int
    seed: int
    mode: str
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    numeric: dict[int, np.ndarray[Any, Any]] = field(default_factory=dict)
    analytic: dict[int, np.ndarray[Any, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    taylor: TaylorReport | None = None
    hints: list[str] = field(default_factory=list)
    reproduce: str = ""

    @property
    def verdict(self) -> str:
        """The worst of all."""
        found = [item.verdict for item in self.items] + [v for v, n in self.counts.items() if n]
        found += ["kink"] if self.kinks else []
        found += ["nondet" if name == "determinism" else "fail" for name in self._broken()]
        return max(found, key=VERDICTS.index, default="pass")

    @property
    def ok(self) -> bool:
        """True for "pass" and "kink"."""
        return self.verdict in ("pass", "kink")

    def __bool__(self) -> bool:
        raise TypeError("a report is neither true nor false: use report.ok, report.verdict, or assert_grad(fn, ...)")

    def _broken(self) -> list[str]:
        return [name for name, state in self.structure.items() if state not in FINE]

    @property
    def elements(self) -> int:
        """Elements that were judged."""
        return sum(self.counts.values())

    @property
    def summary(self) -> str:
        """One line: the verdict, and how many elements are not a plain pass."""
        parts = [f"{name} broken" for name in self._broken()]
        parts += [f"{self.counts[v]:,} {v}" for v in reversed(VERDICTS[1:]) if self.counts.get(v)]
        if total := self.elements:
            parts.append(f"{self.counts.get('pass', 0):,} of {total:,} element{'s' * (total != 1)} pass")
        return f"gradient check: {self.verdict.upper()}: {', '.join(parts) or 'nothing to check'}"

    def __str__(self) -> str:
        return "\n".join([self.summary, *self._table(), *self._details()])

    def _table(self) -> list[str]:
        cells = {"elements": f"{self.elements:,}", **{v: f"{self.counts.get(v, 0):,}" for v in VERDICTS}}
        cells |= {"resolution": f"{self.resolution:.0e}", "P(miss)": f"{self.miss_probability:.0e}"}
        cells |= {"f calls": f"{self.evals:,}", "vjp calls": f"{self.backwards:,}"}
        return row_and_head([cells])

    def _details(self) -> list[str]:
        lines: list[str] = []
        for verdict in ("fail", "nondet", "ill"):
            chosen = [item for item in self.items if item.verdict == verdict]
            shown = chosen if verdict != "ill" else chosen[:_SHOWN]
            last = None
            for item in shown:
                lines.append(f"{verdict.upper()}  {self.describe(item)}")
                if (item.input, item.reason) != last and item.reason:
                    lines.append(f"      {item.reason}")  # once for equal neighbours
                last = item.input, item.reason
            if len(chosen) > len(shown):
                lines.append(f"      and {len(chosen) - len(shown)} more")
        if self.kinks:
            places = ", ".join(f"{self._input(i)} {_index(index)}" for i, index in self.kinks[:_SHOWN])
            more = f" and {len(self.kinks) - _SHOWN} more" if len(self.kinks) > _SHOWN else ""
            lines.append(f"at kinks, the gradient between the one-sided slopes: {places}{more}")
        failed = self.verdict in ("fail", "nondet")
        if failed and self.taylor:
            unseen = ": one direction does not show this error" if self.taylor.verdict == "pass" else ""
            lines.append(self.taylor.summary + unseen)
        lines += [f"hint: {hint}" for hint in self.hints]
        lines += [f"note: {note}" for note in self.notes]
        if not self.ok and self.reproduce:
            lines.append(f"reproduce: {self.reproduce}")
        return lines

    def describe(self, item: Item) -> str:
        """One line: where, and both values, with as many digits as show the difference."""
        where = self._input(item.input)
        if item.index is not None:
            where += f"  index {_index(item.index)}"
        if item.analytic is None and item.numeric is None:
            return where
        digits = _digits(item.analytic, item.numeric)
        values = {"analytic": item.analytic, "numeric": item.numeric}
        parts = [where, *(f"{name} {value:.{digits}e}" for name, value in values.items() if value is not None)]
        return "   ".join(parts) + (f" +- {item.error:.0e}" if item.error is not None else "")

    def _input(self, i: int) -> str:
        if i < 0:
            return "the function"
        return f"input {i} ({name})" if (name := self._name(i)) else f"input {i}"

    def _name(self, i: int) -> str:
        return self.names[i] if 0 <= i < len(self.names) else ""

    def to_json(self) -> str:
        """The report as one JSON object; numbers that JSON has not are the strings "nan", "inf", "-inf".

        Fields: "verdict", "ok", "summary", and those of the class except the arrays `numeric` and `analytic`. Each
        item is {"input", "name", "index", "analytic", "numeric", "error", "verdict", "reason"}; a kink is
        {"input", "index"}; "taylor" is null or {"steps", "remainders", "slopes", "slope", "verdict"}.
        """
        content = {
            "verdict": self.verdict,
            "ok": self.ok,
            "summary": self.summary,
            "items": [{"name": self._name(item.input), **asdict(item)} for item in self.items],
            "structure": self.structure,
            "counts": self.counts,
            "kinks": [{"input": i, "index": index} for i, index in self.kinks],
            "resolution": self.resolution,
            "miss_probability": self.miss_probability,
            "noise": self.noise,
            "evals": self.evals,
            "backwards": self.backwards,
            "seed": self.seed,
            "mode": self.mode,
            "dtypes": self.dtypes,
            "shapes": self.shapes,
            "names": self.names,
            "notes": self.notes,
            "taylor": asdict(self.taylor) if self.taylor else None,
            "hints": self.hints,
            "reproduce": self.reproduce,
        }
        return json.dumps(plain(content), allow_nan=False)


class GradCheckError(AssertionError):
    """A gradient that fails its check. `.report` has the details, `str()` shows them."""

    def __init__(self, report: GradReport) -> None:
        super().__init__(report)
        self.report = report


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What an audit found about one hand-derived array. `kind` is "parameter" or "intermediate".

    `error` is |hand - true| / |true|, after the factor of the chain was taken from an intermediate; `cosine` the angle
    between the two; `factor` the number that the hand-derived array is the true one times, None where it is no
    multiple. `follows`: whether it is what follows from those that were derived before it, right or wrong; None where
    this cannot be said. `line` and `source`: where it was made, and by which statement; None and "" where there is no
    source.
    """

    name: str
    kind: str
    verdict: str
    error: float
    cosine: float
    factor: float | None
    follows: bool | None
    line: int | None
    source: str

    @property
    def ok(self) -> bool:
        """True for "pass" and "kink"."""
        return self.verdict in ("pass", "kink")

    @property
    def wrong(self) -> bool:
        """Whether the mistake is in its own line."""
        return self.verdict in ("factor", "shape", "fail") and self.follows is False

    @property
    def where(self) -> str:
        """The statement that made it, or the name where there is no source."""
        return self.source or f"the array for {self.name}"

    @property
    def row(self) -> dict[str, str]:
        """The cells of a table, by their heads."""
        return {
            "gradient by": self.name, "kind": self.kind, "verdict": self.verdict, "error": f"{self.error:.1e}",
            "cosine": f"{self.cosine:.4f}", "factor": "-" if self.factor is None else f"{self.factor:.4g}",
            "follows": {True: "yes", False: "no", None: "-"}[self.follows], "line": str(self.line or "-"),
        }  # fmt: skip


@dataclass(kw_only=True)
class AuditReport:
    """The result of an audit. Not a truth value: ask `.ok` (all claims pass, or lie at kinks) or `.verdict`.

    `claims`: in the order in which they were derived. `sentences`: which lines are wrong, and what follows from them.
    `hints`: what a wrong array has in common with the right one. `pitfalls`: what is no gradient, but was seen.
    `numeric`: the derived gradient itself, held against differences along random directions.
    """

    claims: list[Claim]
    sentences: list[str]
    hints: list[str]
    pitfalls: list[str]
    numeric: GradReport

    @property
    def verdict(self) -> str:
        """The worst of all."""
        return max((claim.verdict for claim in self.claims), key=AUDITED.index, default="pass")

    @property
    def ok(self) -> bool:
        """True for "pass" and "kink"."""
        return self.verdict in ("pass", "kink")

    def __bool__(self) -> bool:
        raise TypeError("a report is neither true nor false: use report.ok or report.verdict")

    def __getitem__(self, name: str) -> Claim:
        """The claim about a quantity."""
        return {claim.name: claim for claim in self.claims}[name]

    @property
    def first(self) -> str | None:
        """Where the hand-derived arrays leave the true ones; None if they do not."""
        return next((claim.name for claim in self.claims if claim.verdict in ("factor", "shape", "fail")), None)

    @property
    def wrong(self) -> list[str]:
        """The quantities whose own lines are wrong."""
        return [claim.name for claim in self.claims if claim.wrong]

    @property
    def summary(self) -> str:
        """One line: the verdict, and how many claims hold."""
        total = len(self.claims)
        text = f"audit: {self.verdict.upper()}: {sum(claim.ok for claim in self.claims)} of {total} "
        text += f"hand-derived array{'s are gradients' if total != 1 else ' is the gradient'}"
        return text + (f"; wrong from {self.first} on" if self.first else "")

    def __str__(self) -> str:
        table = row_and_head([claim.row for claim in self.claims], ("gradient by", "kind", "verdict"))
        return "\n".join([self.summary, *table, *self.remarks])

    @property
    def remarks(self) -> list[str]:
        """What there is to say below the table."""
        lines = [*self.sentences, *(f"hint: {hint}" for hint in self.hints)]
        lines += [f"pitfall: {pitfall}" for pitfall in self.pitfalls]
        held = self.numeric
        return [*lines, f"derived gradient against differences: {held.verdict}, resolution {held.resolution:.0e}"]

    def to_json(self) -> str:
        """The report as one JSON object; numbers that JSON has not are the strings "nan", "inf", "-inf".

        Fields: "verdict", "ok", "summary", "first", "wrong", those of the class, with "numeric" as an object like that
        of `GradReport.to_json`, and each claim as {"name", "kind", "verdict", "error", "cosine", "factor", "follows",
        "line", "source"}.
        """
        content = {
            "verdict": self.verdict,
            "ok": self.ok,
            "summary": self.summary,
            "first": self.first,
            "wrong": self.wrong,
            "claims": [asdict(claim) for claim in self.claims],
            "sentences": self.sentences,
            "hints": self.hints,
            "pitfalls": self.pitfalls,
            "numeric": json.loads(self.numeric.to_json()),
        }
        return json.dumps(plain(content), allow_nan=False)


def merged(first: GradReport, second: GradReport) -> GradReport:
    """One report of two checks: that of a function, and `second` of its gradient as a function of the same inputs and
    of the cotangent."""
    later = [replace(item, reason=f"second order: {item.reason}") for item in second.items]
    structure = {**second.structure, **first.structure}
    for name, state in second.structure.items():
        if state not in FINE and structure[name] in FINE:
            structure[name] = f"second order: {state}"
    ranked = sorted([*first.items, *later], key=lambda item: -VERDICTS.index(item.verdict))
    return replace(
        first,
        items=ranked,
        structure=structure,
        counts={v: first.counts.get(v, 0) + second.counts.get(v, 0) for v in VERDICTS},
        kinks=[*first.kinks, *second.kinks],
        resolution=max(first.resolution, second.resolution),
        miss_probability=min(1.0, first.miss_probability + second.miss_probability),
        noise=max(first.noise, second.noise),
        evals=first.evals + second.evals,
        backwards=first.backwards + second.backwards,
        dtypes=second.dtypes,
        shapes=second.shapes,
        names=second.names,
        notes=[*first.notes, *(f"second order: {note}" for note in second.notes)],
        taylor=first.taylor or second.taylor,
        hints=[*first.hints, *(f"second order: {hint}" for hint in second.hints)],
    )


def row_and_head(rows: Sequence[dict[str, str]], left: Sequence[str] = ()) -> list[str]:
    """Lines of a table with the keys as its head; columns in `left` are aligned there, the others right."""
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}

    def line(row: dict[str, str]) -> str:
        cells = (f"{row[name]:{'<' if name in left else '>'}{width}}" for name, width in widths.items())
        return "  ".join(cells).rstrip()

    return [line({name: name for name in widths}), *map(line, rows)]


def _index(index: tuple[int, ...]) -> str:
    return str(tuple(int(i) for i in index))


def _digits(analytic: float | None, numeric: float | None) -> int:
    """Digits after the first: five, or as many as it takes until the two differ."""
    if analytic is None or numeric is None or not math.isfinite(analytic) or not math.isfinite(numeric):
        return 5
    size = max(abs(analytic), abs(numeric))
    gap = abs(analytic - numeric) / size if size else 0.0
    return min(16, max(5, 2 - math.floor(math.log10(gap)))) if gap else 5


def plain(value: Any) -> Any:
    """The value with only what JSON has: numbers that are not finite become strings."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
