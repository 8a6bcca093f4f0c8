"""`check_vjp`: is a rule the derivative of its function? Structure first, then elements or blocks, then precision."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from .difference import Line, Pair, Slopes, ladder, one_sided, rounding
from .hints import hints
from .problem import Array, Problem, argument_names, differentiated, is_float, norm, scales
from .remainder import taylor_vjp
from .report import VERDICTS, GradReport, Item
from .structure import as_given, dtypes, examine, shapes

MANY = 128  # elements of an input: above, blocks of random directions
BLOCKS, REPEATS = 8, 8  # of an input; directions of a block, at most
NEAR = 8e-6  # the first step, as a fraction of the scale
ACCEPT = 1e-7  # agreement to seven digits does not happen by chance
CLEAR = 1e-6  # ... where rounding leaves that many digits
DECIDED = 1e-4  # an error bar above this share of the derivative decides nothing
FAILURES, NAMED, FEW = 64, 8, 3  # of an input: elements examined before "and more", and named; of a block, before
# an error that has not shrunk by half is called spread out
STATED = 0.01  # the error of one element that `miss_probability` speaks of
HALVINGS = 1000  # of a block with kinks
SMALL = 1e-7  # the step of one-sided slopes, where many are taken
NEARBY, SMOOTH, NEARBY_SIZE = 128, 16, 20_000  # points around; first ones; elements of inputs, at most
OUTPUTS, DIRECTIONS, DRAWS = 16, 64, 16  # for kinks: outputs examined one by one, directions of the joint test


def check_vjp(
    f: Callable[..., Any],
    vjp: Callable[..., Any],
    arrays: Sequence[Any],
    wrt: Sequence[int] | int | None = None,
    *,
    seed: int = 0,
    mode: str = "auto",
    confidence: float = 1e-6,
    order: int = 1,
    dtype: Any = None,
) -> GradReport:
    """Whether `vjp` is the gradient of `f` at `arrays`; a mismatch is reported, not raised.

    `f(*arrays)` returns an array, or a tuple of arrays. `vjp(g, *arrays)` returns a tuple: for each input in `wrt`, by
    default every one with a float dtype, J^T g = d sum(g f) / dx in the shape and dtype of x; g is built like f's
    output. Both may call any framework, as long as NumPy arrays go in and come out. Each call gets copies.

    `seed` decides cotangents and directions. `mode`: "elements", "project" (blocks of elements along random
    directions), or "auto": "project" above 128 elements of an input. `confidence`: the allowed probability of missing
    an error of 1 % in one element of a block. `dtype`: float inputs are cast to it first; below float64 the rule is
    judged in float64, and what it gives in its own dtype is held to that.

    Raises TypeError or ValueError for a `wrt`, `mode` or `order` that does not fit, and what f or vjp raise at the
    point. Away from it f may raise: a step that does is not used.
    """
    chosen = [np.asarray(a) for a in arrays]
    if dtype is not None:
        chosen = [a.astype(dtype) if is_float(a) else a for a in chosen]
    if order != 1:
        raise ValueError(f"order={order}: a rule on arrays has no derivative of its own; check(fn, ..., order=2) has")
    with np.errstate(all="ignore"):
        return Check(f, vjp, chosen, list(differentiated(wrt, chosen)), seed, mode, confidence).run()


Row = tuple[Array, Array]
"""A cotangent g, and the rule's answer a to it for the input at hand; both flat."""


@dataclass
class Finding:
    """The answer for one line: an element, or a direction over a block."""

    verdict: str
    residual: float  # of <g, J d>
    error: float
    reason: str = ""
    step: float = NEAR
    cotangent: int = 0
    hidden: float = 0.0  # the relative error that could stay hidden
    line: Line | None = None  # of a block, where it is not the one that was asked about: d shortened to |x_i|
    bends: bool = False  # f may have a kink here, though the rule agrees with the middle of its slopes


class Check:
    """One run. `items`, `counts`, `notes` and so on become the report."""

    def __init__(
        self, f: Callable[..., Any], vjp: Callable[..., Any], arrays: list[Array], wrt: list[int], seed: int,
        mode: str, confidence: float,
    ) -> None:
        if mode not in ("auto", "elements", "project"):
            raise ValueError(f"mode must be 'auto', 'elements' or 'project', not {mode!r}")
        self.f, self.vjp, self.given, self.wrt, self.seed, self.mode = f, vjp, arrays, wrt, seed, mode
        self.confidence = confidence
        self.rng = np.random.default_rng(seed)
        self.items: list[Item] = []
        self.counts = dict.fromkeys(VERDICTS, 0)
        self.kinks: list[tuple[int, tuple[int, ...]]] = []
        self.notes: list[str] = []
        self.resolution = self.miss = 0.0
        self.numeric: dict[int, Array] = {}
        self.single: dict[int, list[Array]] = {}
        self.together = False  # whether kinks were judged in blocks
        self.nearby: tuple[Array, list[tuple[list[Array], list[Array]]]] | None = None  # of the last cotangent
        self.spread: tuple[Array, list[Array]] | None = None  # of the last cotangent
        self.named = 0
        self.bent: list[tuple[int, tuple[int, ...], str]] = []  # elements that may be at kinks, with their verdicts

    def run(self) -> GradReport:
        exact = [a.astype(np.float64) if is_float(a) and a.dtype.itemsize < 8 else a for a in self.given]
        low = any(a is not b for a, b in zip(exact, self.given, strict=True))
        try:
            self.problem = Problem(self.f, self.vjp, exact, self.wrt)
        except Exception:
            if not low:
                raise
            self.notes.append("f refuses float64: differences are taken in its own dtype")
            low, self.problem = False, Problem(self.f, self.vjp, self.given, self.wrt)
        self.found = examine(self.problem, self.rng)
        for test, place in self.found.where.items():
            verdict = "nondet" if test == "determinism" else "fail"
            self._item(place, None, None, None, None, verdict, f"{test}: {self.found.results[test]}")
        if self.problem.finite is not None:
            self.notes.append(f"{int((~self.problem.finite).sum())} outputs are not finite at the point: left out")
        if self.found.sound:
            for place, k in enumerate(self.wrt):
                self._input(place, k)
            self._ties()
            if self.together:
                self._joint()
        if low:
            self._precision()
        return self._report()

    # ---- what every line goes through ------------------------------------------------------------------------------

    def _examine(self, line: Line, rows: Sequence[Row]) -> Finding:
        """Is <g, J d> = <a, d> for each row (g, a)? The first that is not settled at once goes up the ladder."""
        rows = [(g, a[line.places]) for g, a in rows]
        pair = line.pair(NEAR)
        unsettled, hidden = self._near(line, rows, pair)
        if not unsettled:
            return Finding("pass", 0.0, 0.0, hidden=hidden, bends=self._bends(pair))
        worst = Finding("pass", 0.0, 0.0)
        for c in unsettled:
            found = self._climb(line, *rows[c], c)
            hidden = max(hidden, found.hidden)
            worst = max(worst, found, key=lambda x: VERDICTS.index(x.verdict))
            if worst.verdict == "fail" or (worst.verdict == "ill" and line.d.size > 1):
                break
        worst.hidden, worst.bends = hidden, pair is not None and self._bends(pair)
        return worst

    def _bends(self, pair: Pair | None) -> bool:
        """Whether the two sides differ by as much as f changes: a kink, or a flat point."""
        if pair is None:
            return False
        base = self.problem.base
        moves = pair.moves
        if not moves.size:  # nothing, or both sides equally
            moves = np.flatnonzero(pair.plus != base)
        base = base[moves]
        up, down = pair.plus[moves] - base, pair.minus[moves] - base
        rise = np.abs(up + down)
        return bool((rise > 0.01 * np.maximum(np.abs(up), np.abs(down)) + 1e3 * self.problem.unit * np.abs(base)).any())

    def _near(self, line: Line, rows: Sequence[Row], pair: Pair | None) -> tuple[list[int], float]:
        """Stage 0, one small step, and stage 1, an extrapolation from two large ones where a large f hides the change:
        the rows that neither settles, and the relative error that may hide in the others."""
        todo, hidden = [], 0.0
        if pair is None:
            return list(range(len(rows))), 0.0
        moves = pair.moves
        if not moves.size and not any(a.any() for _, a in rows):
            far = line.pair(0.25)
            return ([] if far is not None and not (far.plus != far.minus).any() else list(range(len(rows)))), 0.0
        delta, size = pair.delta[moves], pair.size(moves)
        for c, (g, a) in enumerate(rows):
            g = g[moves]
            r = (float(g @ delta) - float(a @ pair.moved)) / pair.width
            doubt = 8 * rounding(self.problem.unit, g, size) / abs(pair.width)
            scale = norm(a * line.d)
            if settled(r, doubt, scale):
                hidden = max(hidden, ACCEPT + doubt / scale)
            else:
                todo.append(c)
        if todo:
            todo, more = self._large(line, rows, todo)
            hidden = max(hidden, more)
        return todo, hidden

    def _large(self, line: Line, rows: Sequence[Row], todo: list[int]) -> tuple[list[int], float]:
        pairs = [line.pair(h) for h in (2e-3, 1e-3)]
        if pairs[0] is None or pairs[1] is None:
            return todo, 0.0
        left, hidden = [], 0.0
        for c in todo:
            g, a = rows[c]
            twice, once = ((float(g @ p.delta) - float(a @ p.moved)) / p.width for p in pairs if p is not None)
            moves = pairs[1].moves
            noise = rounding(self.problem.unit, g[moves], pairs[1].size(moves))
            doubt, scale = 16 * noise / abs(pairs[1].width), norm(a * line.d)
            if settled((4 * once - twice) / 3, doubt, scale):
                hidden = max(hidden, ACCEPT + doubt / scale)
            else:
                left.append(c)
        return left, hidden

    def _climb(self, line: Line, g: Array, a: Array, c: int) -> Finding:
        """The whole ladder; also at the scale of the elements themselves, where they are far below their neighbours,
        and at 1, where f hardly moves over a step as small as x."""
        finite = bool(np.isfinite(a).all())
        claimed = a if finite else np.zeros_like(a)
        finding = self._up(line, g, claimed, c)
        own = np.abs(line.at)
        if finding.verdict != "pass" and ((own > 0) & (own < np.abs(line.d))).any():
            closer = self._other(line, np.where(own > 0, np.minimum(1, own / np.abs(line.d)), 1), g, claimed, c)
            across = line.d.size == 1 and finding.step * np.abs(line.d[0]) > own[0]  # on the far side of 0
            finding = finding if closer.verdict == "ill" and not across else closer
        if line.d.size == 1 and abs(line.d[0]) < 1:
            unseen = abs(finding.residual) <= 16 * rounding(self.problem.unit, g, self.problem.base)
            if finding.verdict == "ill" or (finding.verdict == "fail" and unseen):
                farther = self._other(line, 1 / np.abs(line.d), g, claimed, c)
                finding = farther if farther.verdict == "pass" else finding
        if finite:
            return finding
        if finding.verdict == "ill" and not math.isfinite(finding.error):
            return Finding("ill", np.nan, np.inf, "the gradient is not finite, and no difference is", cotangent=c)
        finding.verdict, finding.reason = "fail", "the gradient is not finite; the difference is"
        return finding

    def _other(self, line: Line, factor: Array, g: Array, a: Array, c: int) -> Finding:
        """The ladder at another scale; of an element in the units of the line."""
        if not np.all((factor > 0) & (factor < np.inf)):  # x so small that the ratio is beyond the range
            return Finding("ill", np.nan, np.inf, "no step gives a difference to be trusted", cotangent=c)
        other = Line(self.problem, line.k, line.places, line.d * factor)
        finding = self._up(other, g, a, c)
        if line.d.size > 1:
            finding.line = other
            return finding
        by = float(factor[0])
        finding.residual, finding.error, finding.step = finding.residual / by, finding.error / by, finding.step * by
        return finding

    def _up(self, line: Line, g: Array, a: Array, c: int) -> Finding:
        e = ladder(line, a, g)
        if not e.known:
            return Finding("ill", np.nan, np.inf, "no step gives a difference to be trusted", cotangent=c)
        scale = norm(a * line.d)
        numeric = float(a @ line.d) + e.value
        reference = max(scale, abs(numeric))
        doubt = 10 * max(e.error, 1e-8 * reference)
        hidden = doubt / reference if reference else 0.0
        made = Finding("pass", e.value, e.error, "", e.step, c, hidden)
        if abs(e.value) > doubt and reference <= 8 * e.capacity:
            made.verdict, made.reason = "ill", "the change of f that the gradient predicts is below its rounding"
        elif abs(e.value) > doubt:
            made.verdict, made.reason = "fail", "the slopes agree on both sides"
        elif scale == 0 and e.error > 0 and not e.falls:
            made.verdict, made.reason = "ill", "the gradient is 0, and the change of f is within its noise"
        elif scale and doubt > DECIDED * reference:
            made.verdict = "ill"
            made.reason = f"f is too noisy or too flat: differences decide no more than {hidden:.0e} of the gradient"
        return made

    # ---- one input --------------------------------------------------------------------------------------------------

    def _input(self, place: int, k: int) -> None:
        x = self.problem.arrays[k]
        if not x.size or not self.problem.base.size:
            return
        rows = [(g, a[place]) for g, a in zip(self.found.cotangents, self.found.gradients, strict=True)]
        scale = scales(x).ravel()
        if self.mode == "elements" or (self.mode == "auto" and x.size <= MANY):
            self._elements(k, rows, scale)
        else:
            self._blocks(place, k, rows, scale)

    def _elements(self, k: int, rows: list[Row], scale: Array) -> None:
        numeric = np.where(np.isfinite(rows[0][1]), rows[0][1], 0.0)
        failures = 0
        for i in range(scale.size):
            finding = self._single(k, i, rows, scale)
            failures += finding.verdict == "fail"
            if finding.cotangent == 0 and np.isfinite(finding.residual):
                numeric[i] += finding.residual / scale[i]
            if failures >= FAILURES and i + 1 < scale.size:
                left = scale.size - i - 1
                self.notes.append(f"input {k}: {left} elements were not examined, after {FAILURES} failures")
                return
        self.numeric[k] = numeric.reshape(self.problem.arrays[k].shape)

    def _single(self, k: int, i: int, rows: list[Row], scale: Array) -> Finding:
        """Examine one element and write down what is found."""
        line = Line(self.problem, k, np.array([i]), scale[i : i + 1])
        finding = self._examine(line, rows)
        if finding.verdict == "fail" or (finding.verdict == "ill" and finding.bends):
            finding = self._excuse(line, rows[finding.cotangent], finding)
        elif finding.bends:
            slopes = one_sided(line, rows[0][0])
            finding.bends = slopes is not None and bool(slopes.kinked.any())
        index = _index(i, self.problem.arrays[k].shape)
        self._element(k, index, float(rows[finding.cotangent][1][i]), finding, float(scale[i]))
        return finding

    def _element(self, k: int, index: tuple[int, ...], analytic: float, finding: Finding, scale: float) -> None:
        self.counts[finding.verdict] += 1
        if finding.verdict in ("pass", "kink"):
            self.resolution = max(self.resolution, finding.hidden)
        if finding.bends or finding.verdict == "kink":
            self.bent.append((k, index, finding.verdict))
        if finding.verdict == "pass":
            self.miss = max(self.miss, self._missed(finding.hidden) ** 2)
            return
        if finding.verdict == "kink":
            self.kinks.append((k, index))
        known = np.isfinite(finding.error)
        numeric = (analytic if np.isfinite(analytic) else 0.0) + finding.residual / scale if known else None
        error = finding.error / scale if known else None
        self._item(k, index, analytic, numeric, error, finding.verdict, finding.reason)

    @staticmethod
    def _missed(hidden: float) -> float:
        """The probability that one Gaussian number hides an error of `STATED` below `hidden`: sqrt(2 / pi) t / |e|."""
        return min(1.0, math.sqrt(2 / math.pi) * hidden / STATED)

    def _item(self, k: int, index: Any, analytic: Any, numeric: Any, error: Any, verdict: str, reason: str) -> None:
        analytic, numeric, error = (None if v is None else float(v) for v in (analytic, numeric, error))
        self.items.append(Item(k, index, analytic, numeric, error, verdict, reason))

    # ---- excuses: what may stand between a right rule and the differences -------------------------------------------

    def _excuse(self, line: Line, row: Row, finding: Finding) -> Finding:
        """A failing element once more: rounding, the rule's own conditioning, a kink. None of them excuses an answer
        that lies outside what they explain."""
        g, a = row[0], row[1][line.places]
        finite = bool(np.isfinite(a).all())
        slopes = one_sided(line, g)
        bends = slopes is not None and bool(slopes.kinked.any())
        here = finding.step > 1e-4  # else smaller steps saw that no kink is here
        if slopes is not None and bends:
            here = self._kink(line, row, slopes, finding)
        if finding.verdict != "fail" or not finite:
            return finding
        if self._buried(line, row, finding):
            finding.verdict, finding.reason = "ill", "some outputs move by less than their rounding, says the gradient"
        elif not bends and abs(finding.residual) <= 10 * self._spread(line, g):
            finding.verdict, finding.reason = "ill", "the rule's own rounding here is as large as the difference"
        elif here and self._limit(line, row, bends):
            finding.verdict, finding.reason = "kink", "kinks meet here: a limit of gradients at points nearby"
        elif not bends:
            self._second_opinion(line, g, a, finding)
        return finding

    def _kink(self, line: Line, row: Row, slopes: Slopes, finding: Finding) -> bool:
        """An element with two slopes: between them lies what a rule may answer. False if smaller steps see one slope:
        the kink is near, not here."""
        g, a = row[0], row[1][line.places]
        finite = bool(np.isfinite(a).all())
        said = float(a @ line.d) if finite else 0.0
        left, right = (float(g @ s) for s in slopes.slopes)
        if slopes.jumps.any():
            if finding.verdict == "fail":
                near = finite and min(abs(left - said), abs(right - said)) <= 1e-6 * abs(said)
                finding.verdict = "ill" if near else "fail"
                finding.reason = "f jumps here" + ("" if near else ", and the gradient is the slope of neither side")
            return False
        low, high = slopes.interval(g)
        if abs(said + finding.residual - (left + right) / 2) > 0.01 * abs(right - left) + 10 * finding.error:
            return False
        sides = f"left slope {left / line.d[0]:.6g}, right slope {right / line.d[0]:.6g}"
        if finite and low <= said <= high and self._inside(line, slopes, np.flatnonzero(slopes.kinked)):
            finding.verdict, finding.reason = "kink", f"a kink: {sides}"
        elif finding.verdict == "fail":
            finding.reason = f"outside the one-sided slopes of a kink: {sides}"
        return True

    def _buried(self, line: Line, row: Row, finding: Finding) -> bool:
        """Whether the rule is right about the outputs that move, and says of the others that they move by less than
        their rounding, as the largest of a saturated softmax does."""
        pair = line.pair(finding.step)
        if pair is None or not (still := pair.plus == pair.minus).any() or still.all():
            return False
        place = self.wrt.index(line.k)
        g, hidden = self._masked(place, row[0], still)
        said = abs(float(hidden[line.places] @ line.d)) * 2 * finding.step
        if said > 8 * rounding(self.problem.unit, g[still], self.problem.base[still]):
            return False
        return self._examine(line, [self._masked(place, row[0], ~still)]).verdict != "fail"

    def _limit(self, line: Line, row: Row, bends: bool) -> bool:
        """Whether the answer lies between gradients at points nearby, which differ and are right there: an element of
        Clarke's generalised gradient (1983), where several kinks meet. A unit whose inputs are all 0 is such a point, a
        median of equal numbers another; one-sided slopes along single elements say little there. Where two gradients
        meet and the element bends, they say all."""
        place, i = self.wrt.index(line.k), int(line.places[0])
        if sum(a.size for a in self.problem.arrays) > NEARBY_SIZE:
            return False
        if self.nearby is None or self.nearby[0] is not row[0]:
            self.nearby = row[0], list(self._around(row[0]))
        if not (points := self.nearby[1]):
            return False
        values = np.array([gradients[place].ravel()[i] for _, gradients in points])
        low, high = int(values.argmin()), int(values.argmax())
        meet = 1 + np.count_nonzero(np.diff(np.sort(values)) > 1e-3 * float(np.abs(values).max()))
        if bends and meet <= 2:
            return False
        size, width = float(np.abs(values).max()), float(values[high] - values[low])
        if width <= 1e-3 * size or not values[low] - CLEAR * size <= row[1][i] <= values[high] + CLEAR * size:
            return False
        return all(self._right_at(points[j], line, row[0], 1e-3 * width * float(line.d[0])) for j in (low, high))

    def _around(self, g: Array) -> Iterator[tuple[list[Array], list[Array]]]:
        """Points within about 1e-6 of the scale, with the rule's answers there. Every other one lies about the point
        whose gradient was nearest to the answer here: that leads to the piece of f that the rule chose."""
        best, least = [np.zeros(self.problem.arrays[k].shape) for k in self.wrt], math.inf
        answer = np.concatenate([a.ravel() for a in self.problem.gradient(g)])
        low = high = answer
        for n in range(NEARBY):
            if n == SMOOTH and norm(high - low) <= 1e-3 * norm(high):
                return  # one gradient all around: no kink is here
            ways = [n % 2 * b + self.rng.standard_normal(b.shape) for b in best]
            arrays = self._off(ways)
            with suppress(Exception):  # outside its domain
                gradients = self.problem.gradient(g, arrays)
                there = np.concatenate([a.ravel() for a in gradients])
                if not np.isfinite(there).all():
                    continue
                yield arrays, gradients
                low, high = (np.minimum(low, there), np.maximum(high, there)) if n else (there, there)
                if (away := norm(there - answer)) < least:
                    best, least = _bounded(ways), away

    def _off(self, ways: list[Array]) -> list[Array]:
        """The inputs moved by 1e-6 of their scale along `ways`, one for each in wrt."""
        arrays = self.problem.copies()
        for k, way in zip(self.wrt, ways, strict=True):
            arrays[k] += 1e-6 * scales(arrays[k]) * way
        return arrays

    def _right_at(self, point: tuple[list[Array], list[Array]], line: Line, g: Array, clear: float) -> bool:
        """Whether a difference confirms the rule for this element at another point, to within `clear`."""
        arrays, gradients = point
        there = Problem(self.f, self.vjp, arrays, self.wrt)
        if there.base.size != g.size:  # other outputs are finite there
            return False
        a = gradients[self.wrt.index(line.k)].ravel()[line.places]
        pair = Line(there, line.k, line.places, line.d).pair(1e-9)  # far below the distance of the kinks
        self.problem.evals += there.evals
        if pair is None:
            return False
        noise = 16 * rounding(there.unit, g[pair.moves], pair.size(pair.moves)) / abs(pair.width)
        off = abs(float(g @ pair.delta) - float(a @ pair.moved)) / abs(pair.width)
        return noise <= 100 * clear and off <= noise + clear

    def _second_opinion(self, line: Line, g: Array, a: Array, finding: Finding) -> None:
        """The complex step Im <g, f(x + i h d)> / h, exact to the last digit where f is analytic as NumPy computes it
        (Squire and Trapp 1998). Where it confirms the differences it sharpens the number that is shown; it never
        decides, since abs, norm, std and others are silently wrong on complex arrays."""
        arrays: list[Array] = self.problem.copies()
        x = arrays[line.k].astype(complex)
        x.flat[line.places] += 1e-30j * line.d
        arrays[line.k] = x
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outputs = self.f(*arrays)
                parts = [np.asarray(y).ravel() for y in (outputs if isinstance(outputs, tuple | list) else (outputs,))]
                step = float(g @ np.concatenate(parts).imag) / 1e-30
        except Exception:  # not made for complex numbers
            return
        opinion = step - float(a @ line.d)
        if abs(opinion - finding.residual) <= 10 * finding.error + 1e-8 * abs(step):
            finding.residual, finding.error = opinion, min(finding.error, 1e-15 * abs(step))
        elif np.isfinite(opinion) and any(np.iscomplexobj(p) for p in parts):
            self._note("f is not analytic as NumPy computes it: the complex step disagrees with the differences")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _spread(self, line: Line, g: Array) -> float:
        """How far <a, d> moves when the inputs move by half an ulp: what f itself cannot tell apart."""
        if self.spread is None or self.spread[0] is not g:
            self.spread = g, self._spreads(g, self.problem.gradient(g), 2.0**-53)
        return norm(self.spread[1][self.wrt.index(line.k)].ravel()[line.places] * line.d)

    def _inside(self, line: Line, slopes: Slopes, bent: Array) -> bool:
        """Whether the rule's answer lies between the slopes for every kinked output alone: their sum may hide a choice
        outside by another inside."""
        for j in bent[:OUTPUTS]:
            p = self._pulled(int(j))[self.wrt.index(line.k)].ravel()[line.places]
            low, high = np.sort(slopes.slopes[:, j])
            doubt = 10 * float(slopes.errors[:, j].max()) + ACCEPT * max(abs(low), abs(high))
            if not low - doubt <= float(p @ line.d) <= high + doubt:
                return False
        return True

    def _pulled(self, j: int) -> list[Array]:
        """The rule's answer to a cotangent of 1 for output j alone."""
        if j not in self.single:
            e = np.zeros(self.problem.base.size)
            e[j] = 1
            self.single[j] = self.problem.gradient(e)
        return self.single[j]

    # ---- many elements: blocks of directions, bisection -------------------------------------------------------------

    def _blocks(self, place: int, k: int, rows: list[Row], scale: Array) -> None:
        """Blocks of elements of similar |a_i| scale_i, so that no large gradient hides a small one, each along Gaussian
        directions: positive ones would cancel nothing and miss errors of sum zero, +-1 hides equal pairs."""
        finite = np.all([np.isfinite(a) for _, a in rows], axis=0)
        self.named = 0
        for i in np.flatnonzero(~finite)[:FAILURES]:
            self._single(k, int(i), rows, scale)
        known = np.flatnonzero(finite)
        order = known[np.argsort(np.abs(rows[0][1][known]) * scale[known], kind="stable")]
        for block in np.array_split(order, min(BLOCKS, order.size)) if order.size else []:
            if self.named >= NAMED:
                self.notes.append(f"input {k}: more elements are wrong than the {NAMED} that are named")
                break
            places = np.sort(block)
            missed = 1.0
            for _ in range(REPEATS):
                line = Line(self.problem, k, places, scale[places] * self.rng.standard_normal(places.size))
                finding = self._examine(line, rows)
                if finding.verdict != "pass":
                    self._resolve(place, k, line, rows, finding, scale)
                    break
                self.resolution = max(self.resolution, finding.hidden)
                missed *= self._missed(finding.hidden * math.sqrt(places.size))
                if missed <= self.confidence:
                    break
            if finding.verdict == "pass":
                self.miss = max(self.miss, missed)
                self.counts["pass"] += places.size

    def _resolve(self, place: int, k: int, line: Line, rows: list[Row], finding: Finding, scale: Array) -> None:
        """A block that does not pass: mask kinked outputs out of g, then find the elements."""
        n = line.places.size
        if finding.verdict == "ill":
            self.counts["ill"] += n
            self._item(k, None, None, None, None, "ill", f"a block of {n} elements: {finding.reason}")
            return
        self.counts["pass"] += n  # those that are found are taken off again
        line = finding.line or line
        row = rows[finding.cotangent]
        slopes = one_sided(line, row[0])
        bent = np.zeros(row[0].size, bool) if slopes is None else slopes.kinked
        if not bent.any():
            self._bisect(k, line, row, finding, scale)
            return
        if not bent.all():
            smooth = self._masked(place, row[0], ~bent)
            rest = self._examine(line, [smooth])
            if rest.verdict == "fail":
                self._bisect(k, rest.line or line, smooth, rest, scale)
        self._kinks(k, line, self._masked(place, row[0], bent), scale, int(bent.sum()))

    def _masked(self, place: int, g: Array, keep: Array) -> Row:
        g = np.where(keep, g, 0)
        return g, self.problem.gradient(g)[place].ravel()

    def _bisect(self, k: int, line: Line, row: Row, finding: Finding, scale: Array) -> None:
        """Name the elements that make a block fail: residuals add up, so the half with the larger one is followed."""
        g, a = row
        known: dict[int, float] = {}  # what named elements contribute to the residual along the line

        def residual(part: Line, h: float) -> float:
            pair = part.pair(h)
            if pair is None:
                return math.nan
            named = sum(r for i, r in known.items() if i in part.places)
            return (float(g @ pair.delta) - float(a[part.places] @ pair.moved)) / pair.width - named

        def missed(h: float) -> float:
            return float(np.nan_to_num(abs(residual(line, h) - whole), nan=np.inf))

        whole = finding.residual
        step = min(finding.step, NEAR, key=missed)  # that of an extrapolation may be so large that curvature hides all
        while self.named < NAMED:
            part, r = line, whole
            while part.places.size > 1:
                half = part.places.size // 2
                left, right = part.part(slice(None, half)), part.part(slice(half, None))
                r_left = residual(left, step)
                part, r = (left, r_left) if abs(r_left) >= abs(r - r_left) else (right, r - r_left)
            i = int(part.places[0])
            single = self._single(k, i, [row], scale) if i not in known else None
            if single is None or single.verdict != "fail":
                if known:
                    self.notes.append(f"input {k}: more elements may be wrong than those that are named")
                    return
                n = line.places.size
                self.counts["ill"] += n
                self.counts["pass"] -= n
                off = abs(whole) / (norm(a[line.places] * line.d) or 1)
                reason = f"a block of {n} elements is off by {off:.1e} of its size, but no element that was found is"
                self._item(k, None, None, None, None, "ill", reason)
                return
            self.counts["pass"] -= 1
            self.named += 1
            known[i] = single.residual / scale[i] * float(part.d[0])
            whole -= known[i]
            if len(known) >= FEW and abs(whole) > 0.5 * abs(finding.residual):
                self.notes.append(f"input {k}: the error is spread over many of {line.places.size} elements")
                return
            if abs(whole) <= 100 * finding.error + 1e-6 * norm(a[line.places] * line.d) + 1e-5 * abs(known[i]):
                return

    def _kinks(self, k: int, line: Line, row: Row, scale: Array, outputs: int) -> None:
        """Elements at kinks, by the thousand. A rule that takes the left slope everywhere agrees exactly with the
        one-sided difference to the left along positive directions; whatever does not agree with the left, the right or
        the middle is halved, down to elements."""
        stack, looked, agreed, halvings = [line.part(slice(None), positive=True)], 0, 0, 0
        self.together = True
        while stack:
            part = stack.pop()
            halvings += 1
            agrees, kink = self._agrees(part, row)
            if agrees:
                agreed += kink * part.places.size
            elif part.places.size > 1 and halvings < HALVINGS:
                half = part.places.size // 2
                stack += [part.part(slice(half, None)), part.part(slice(None, half))]
            elif part.places.size == 1 and looked < FAILURES:
                looked += 1
                self.counts["pass"] -= 1
                self._single(k, int(part.places[0]), [row], scale)
            else:
                left = part.places.size + sum(p.places.size for p in stack)
                reason = f"{left} elements about kinks were not examined, after {looked}"
                self._item(k, None, None, None, None, "ill", reason)
                self.counts["ill"] += left
                self.counts["pass"] -= left
                return
        kinked = min(agreed, outputs)
        self.counts["kink"] += kinked
        self.counts["pass"] -= kinked
        if kinked:
            self.notes.append(f"input {k}: {outputs} outputs at kinks agree with one side, in blocks of elements")

    def _agrees(self, line: Line, row: Row) -> tuple[bool, bool]:
        """(the rule agrees with the slope of the left, of the right, or with their middle; the slopes differ)"""
        g, a = row
        h, base = SMALL, self.problem.base
        (plus, right), (minus, left) = line.value(h), line.value(-h)
        if plus is None or minus is None:
            return False, False
        mine = a[line.places]
        rises = np.array([float(g @ (base - minus)), float(g @ (plus - base))]) / h
        moved = np.array([float(mine @ (line.at - left)), float(mine @ (right - line.at))]) / h
        changed = (plus != base) | (minus != base)
        doubt = 16 * rounding(self.problem.unit, g[changed], np.abs(base[changed]) + np.abs(plus - base)[changed]) / h
        doubt += CLEAR * max(norm(mine * line.d), float(np.abs(rises).max()))
        r = rises - moved
        return bool(min(abs(r[0]), abs(r[1]), abs(r.mean())) <= doubt), bool(abs(r[1] - r[0]) > doubt)

    # ---- ties ------------------------------------------------------------------------------------------------------

    def _ties(self) -> None:
        """Elements at kinks together, those too that agree with the middle of their slopes.

        An output that bends upwards along every direction must lie above the plane of the rule's answer, one that bends
        downwards below it. Two tied maxima that both get 1 are each between their slopes; their sum is not. Where an
        output bends both ways, the inequality says nothing: skipped.
        """
        tied = [row for row in self.bent if row[2] in ("pass", "kink")][:FAILURES]
        if len(tied) < 2:
            return
        sizes = {k: scales(self.problem.arrays[k]).ravel() for k, _, _ in tied}
        flat = [(k, int(np.ravel_multi_index(index, self.problem.arrays[k].shape))) for k, index, _ in tied]
        reach = np.array([sizes[k][i] for k, i in flat])
        ones = np.ones(len(flat))
        draws = [*self.rng.standard_normal((DIRECTIONS // 2 - 1, len(flat))), ones]  # the first shows what bends
        chosen: Array | None = None
        slopes, errors = [], []
        for d in draws:
            sides = [self._slope(flat, sign * reach * d) for sign in (1, -1)]
            if any(s is None for s in sides):
                return
            (up, up_error), (down, down_error) = sides  # type: ignore[misc]
            if chosen is None:
                bend = np.abs(up + down) - 10 * (up_error + down_error)
                chosen = np.argsort(-bend)[:OUTPUTS]
                chosen = chosen[bend[chosen] > 0]
            slopes.append((up[chosen], down[chosen]))
            errors.append((up_error[chosen], down_error[chosen]))
        assert chosen is not None
        f, e = np.array(slopes), np.array(errors)  # direction, side, output
        bend, doubt = f.sum(axis=1), 10 * e.sum(axis=1)
        skipped = 0
        for column, j in enumerate(chosen):
            sign = 1 if (bend[:, column] >= -doubt[:, column]).all() else -1
            if sign < 0 and not (bend[:, column] <= doubt[:, column]).all():
                skipped += 1
                continue
            answer = self._pulled(int(j))
            p = np.array([answer[self.wrt.index(k)].ravel()[i] for k, i in flat]) * reach
            said = np.array(draws) @ p
            gap = sign * (f[:, :, column] - np.stack([said, -said], axis=1))
            allowed = 10 * e[:, :, column] + CLEAR * (np.abs(f[:, :, column]) + np.abs(said)[:, None])
            if (gap < -allowed).any():
                worst = np.unravel_index(np.argmin(gap + allowed), gap.shape)
                along = (1, -1)[worst[1]] * draws[worst[0]] * reach
                if not self._hulled(int(j), flat, along, sign, f[(*worst, column)], allowed[worst]):
                    skipped += 1
                    continue
                k, index, verdict = tied[int(np.argmax(np.abs(p)))]
                slope, claim = f[(*worst, column)], said[worst[0]] * (1, -1)[worst[1]]
                self.counts[verdict] -= 1
                self.counts["fail"] += 1
                self._item(
                    k, index, float(claim), float(slope), float(e[(*worst, column)]), "fail",
                    f"tied kinks: each gradient lies between its slopes, but the {len(tied)} together are no "
                    f"subgradient of output {int(j)}, which has slope {slope:.6g} where the rule says {claim:.6g}",
                )
                return
        if skipped:
            self.notes.append(f"{skipped} outputs bend both ways at the kinks: not judged jointly")

    def _hulled(self, j: int, flat: list[tuple[int, int]], d: Array, sign: int, slope: float, doubt: float) -> bool:
        """Whether the slope of output j along d is the largest (smallest) among those at points nearby, as it is where
        f bends upwards (downwards) and not merely along the lines that were tried."""
        h, best, most = 1e-9, [np.zeros(self.problem.arrays[k].shape) for k in self.wrt], -math.inf
        noise = 4 * self.problem.unit * abs(float(self.problem.base[j])) / h
        for n in range(NEARBY):
            ways = [n % 2 * b + self.rng.standard_normal(b.shape) for b in best]  # half of them about the best so far
            values = []
            for side in (h, -h):
                arrays = self._off(ways)
                for (k, i), step in zip(flat, d, strict=True):
                    arrays[k].flat[i] += side * step
                with suppress(Exception):  # outside its domain
                    values.append(self.problem.at(arrays))
            if len(values) < 2 or any(v.size != self.problem.base.size for v in values):
                continue
            there = float(values[0][j] - values[1][j]) / (2 * h)
            if sign * (there - slope) > doubt + noise + 1e-4 * abs(there):
                return False
            if sign * there > most:
                best, most = _bounded(ways), sign * there
        return True

    def _joint(self) -> None:
        """The same for kinks that were judged in blocks, all at once: with a cotangent that makes every bent output
        bend upwards, the rule's answer must lie between the slopes of both sides, along ones and along positive random
        numbers, over all inputs together. Violations by many outputs add up."""
        reach = max(float(scales(self.problem.arrays[k]).max(initial=0)) for k in self.wrt)
        sizes = [self.problem.arrays[k].size for k in self.wrt]
        places = [(k, slice(None)) for k in self.wrt]

        def slopes(d: Array) -> tuple[Array, Array] | None:
            parts = np.split(reach * d, np.cumsum(sizes)[:-1])
            sides = [self._slope(places, [sign * p for p in parts]) for sign in (1, -1)]
            if sides[0] is None or sides[1] is None:
                return None
            return np.stack([-sides[1][0], sides[0][0]]), sides[0][1] + sides[1][1]

        up = down = np.ones(self.problem.base.size, bool)  # bends upwards along every direction, downwards
        for _ in range(DRAWS):
            if (found := slopes(self.rng.standard_normal(sum(sizes)))) is None:
                return
            bend, doubt = found[0][1] - found[0][0], 10 * found[1]
            up, down = up & (bend >= -doubt), down & (bend <= doubt)
        sign = 1.0 * up - down
        for d in np.ones(sum(sizes)), np.abs(self.rng.standard_normal(sum(sizes))):
            if (found := slopes(d)) is None or not sign.any():
                return
            g = sign * np.abs(self.found.cotangents[0])
            answer = np.concatenate([a.ravel() for a in self.problem.gradient(g)])
            said, (left, right) = float(answer @ (reach * d)), found[0] @ g
            doubt = 10 * float(np.abs(g) @ found[1]) + CLEAR * (abs(left) + abs(right))
            if not left - doubt <= said <= right + doubt:
                n = int(np.argmax(np.abs(answer)))  # one of them
                place = int(np.searchsorted(np.cumsum(sizes), n, side="right"))
                k, i = self.wrt[place], n - sum(sizes[:place])
                self.counts["fail"] += 1
                self._item(
                    k, _index(i, self.problem.arrays[k].shape), said, left if said < left else right, doubt, "fail",
                    "tied kinks: elements at kinks are together no subgradient: along one direction the slopes of the "
                    f"outputs that bend are {left:.6g} and {right:.6g}, the rule says {said:.6g}",
                )
                return

    def _slope(self, places: Sequence[tuple[int, Any]], d: Sequence[Any] | Array) -> tuple[Array, Array] | None:
        """The one-sided slope of every output along d, given for flat places of inputs, and its error."""
        values = []
        for h in (4 * SMALL, SMALL):
            arrays = self.problem.copies()
            for (k, i), step in zip(places, d, strict=True):
                arrays[k].flat[i] += h * step
            try:
                y = self.problem.at(arrays)
            except Exception:  # outside its domain
                return None
            if y.size != self.problem.base.size or not np.isfinite(y).all():
                return None
            values.append(y)
        coarse, fine = (values[0] - self.problem.base) / (4 * SMALL), (values[1] - self.problem.base) / SMALL
        slope = (4 * fine - coarse) / 3
        noise = self.problem.unit * np.abs(self.problem.base) * (values[0] != self.problem.base)
        return slope, np.abs(slope - fine) + 4 * noise / SMALL

    # ---- float32 and float16 ----------------------------------------------------------------------------------------

    def _precision(self) -> None:
        """The gradient in the dtype of the inputs against the float64 one of the same rule. It may be off by what half
        an ulp of the inputs does to it, 32 times over, and by some rounding of its own."""
        native = Problem(self.f, self.vjp, self.given, self.wrt)
        g = self.found.cotangents[0] if self.found.cotangents else 2 * self.rng.standard_normal(native.base.size)
        g = np.sign(g) * (1 + np.abs(g))  # none so small that products with it leave the range of float16
        g = np.concatenate([c.astype(np.float64).ravel() for c in native.cotangent(g) if is_float(c)] or [g])
        answer = native.pull(g)
        for test, check in {"shape": shapes, "dtype": dtypes}.items():
            problem, where = check(native, answer)
            if problem:
                self.found.record(test, problem, where)
                self._item(where, None, None, None, None, "fail", f"{test}: {problem}")
                return
        if not self.found.sound:
            return
        rows = [np.asarray(a, np.float64).ravel() for a in answer]
        if problem := as_given(native, g, rows, [0.0] * len(rows)):
            self.found.record("hygiene", problem)
            self._item(-1, None, None, None, None, "fail", f"hygiene: {problem}")
        exact = self.problem.gradient(g)
        unit = max(float(np.finfo(a.dtype).eps) / 2 for a in self.given if is_float(a))
        ulp = unit * float(np.abs(g * self.problem.base).max(initial=0))  # of <g, f>
        spread = [
            64 * near + 4 * far
            for near, far in zip(self._spreads(g, exact, unit), self._spreads(g, exact, unit, ulp), strict=True)
        ]
        for place, k in enumerate(self.wrt):
            dtype = self.given[k].dtype
            info = np.finfo(dtype)
            mine, right = np.asarray(answer[place], np.float64), exact[place]
            size = np.abs(right)
            allowed = spread[place] + 64 * unit * (size + size.max(initial=0) / 4)
            allowed += 4 * float(info.smallest_subnormal)
            wrong = ~(np.abs(mine - right) <= allowed) & np.isfinite(right) & (size < 0.5 * float(info.max))
            for i in np.flatnonzero(wrong)[:NAMED]:
                index = _index(int(i), right.shape)
                self._item(k, index, float(mine.flat[i]), float(right.flat[i]), float(allowed.flat[i]), "fail",
                           f"{dtype}: the same rule in float64 gives another gradient than in {dtype}")
            if wrong.any():
                self.counts["fail"] += int(wrong.sum())
                self.counts["pass"] = max(0, self.counts["pass"] - int(wrong.sum()))

    def _spreads(self, g: Array, exact: list[Array], unit: float, ulp: float = 0.0) -> list[Array]:
        """For each gradient the largest change under four random perturbations of the inputs: by `unit`, or by as much
        as moves <g, f> by `ulp`, which f cannot tell apart (at most 1 %)."""
        spread = [np.zeros(a.shape) for a in exact]
        for _ in range(4):
            near = self.problem.copies()  # which keep their layout
            for k, a in enumerate(near):
                if not is_float(a) or not a.size:
                    continue
                amount: Any = unit * np.abs(a)
                if ulp and k in self.wrt:
                    slope = np.abs(exact[self.wrt.index(k)])
                    blurred = ulp / np.where(slope > 0, slope, np.inf)
                    amount = np.clip(blurred, amount, np.maximum(0.01 * np.abs(a), amount))
                equal = np.unique(a, return_inverse=True)[1].reshape(a.shape)  # ties stay ties
                a += np.where(a == 0, 0, amount) * self.rng.choice([-1, 1], a.size)[equal]
            try:
                answers = self.problem.gradient(g, near)
            except Exception:  # outside its domain
                continue
            spread = [np.fmax(s, np.abs(b - a)) for s, a, b in zip(spread, exact, answers, strict=True)]
        return spread

    # ---- the report ------------------------------------------------------------------------------------------------

    def _report(self) -> GradReport:
        structural = {id(item) for item in self.items[: len(self.found.where)]}
        self.items.sort(
            key=lambda x: (id(x) not in structural, -VERDICTS.index(x.verdict), x.index is None, -round(_excess(x), 6))
        )
        failed = [item for item in self.items if item.verdict == "fail"]
        analytic = {
            k: a.reshape(self.problem.arrays[k].shape)
            for k, a in zip(self.wrt, self.found.gradients[0] if self.found.gradients else [], strict=False)
            if k in self.numeric
        }
        suggestions: list[str] = []
        taylor = None
        if failed and self.found.sound:
            sizes = [a.shape for a in self.problem.arrays] + [y.shape for y in self.problem.outputs]
            for k in sorted({item.input for item in failed if item.input in self.numeric}):
                others = {i: n for i, n in self.numeric.items() if i != k}
                found = hints(analytic[k], self.numeric[k], others=others, shapes=sizes)
                suggestions += [f"input {k}: {hint}" for hint in found]
            with suppress(Exception):  # it does not mind where f is defined
                taylor = taylor_vjp(self.f, self.vjp, self.problem.arrays, self.wrt, self.seed)
        return GradReport(
            items=self.items,
            structure=self.found.results,
            counts=self.counts,
            kinks=self.kinks,
            resolution=self.resolution,
            miss_probability=self.miss,
            noise=norm(self.found.noise) / (norm(self.problem.base) or 1.0),
            evals=self.problem.evals,
            backwards=self.problem.backwards,
            seed=self.seed,
            mode=self.mode,
            dtypes=tuple(str(a.dtype) for a in self.given),
            shapes=tuple(a.shape for a in self.given),
            names=argument_names(self.f, len(self.given)),
            numeric=self.numeric,
            analytic=analytic,
            notes=self.notes,
            taylor=taylor,
            hints=suggestions,
            reproduce=f"check_vjp(f, vjp, arrays, wrt={self.wrt}, seed={self.seed}, mode={self.mode!r})",
        )


def settled(residual: float, doubt: float, scale: float) -> bool:
    """Whether a residual agrees with 0 to seven digits of the gradient, and its rounding leaves six."""
    return 0 < scale < math.inf and abs(residual) <= ACCEPT * scale + doubt and doubt <= CLEAR * scale


def _bounded(ways: list[Array]) -> list[Array]:
    """The same directions, none longer than a random one."""
    return [w / max(1.0, norm(w) / max(w.size, 1) ** 0.5) for w in ways]


def _index(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(n) for n in np.unravel_index(flat, shape))


def _excess(item: Item) -> float:
    """How wrong, relative to what the numbers allow."""
    if item.analytic is None or item.numeric is None or not math.isfinite(item.analytic):
        return math.inf
    size = max(abs(item.analytic), abs(item.numeric))
    return abs(item.analytic - item.numeric) / size if size else 0.0
