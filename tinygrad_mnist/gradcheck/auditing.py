"""`audit`: is what was derived by hand the gradient of the loss, and where does it leave it?

The forward pass runs on Tensors, and its local variables are watched: a quantity that the author named is a node of the
graph, and its adjoint is what the walk carries there. Walked from one named node to the next, with the hand-derived
adjoint in the place of the true one, the same graph says what each hand-derived quantity should be, given those that it
was computed from: a mistake is blamed on the line that made it, and not on those that follow.

The derived gradient is itself held against differences of the loss, along random directions in each parameter. They
decide what is equal: a hand-derived array may be off by what they cannot see, and by rounding.
"""

from __future__ import annotations

import inspect
import linecache
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

import numpy as np

from .. import arrays
from ..core import Tensor, walk
from ..functional import tree_leaves, tree_map
from ..modes import enable_grad
from ..watching import call_with_locals, is_foreign
from .engine import check_vjp
from .hints import hints
from .problem import argument_names, scales
from .report import AuditReport, Claim, GradReport
from .statements import Source, Statement

Array = np.ndarray[Any, Any]
Function = Callable[..., Any]
Adjoints = dict[str, Array]  # by name, on the host

DIRECTIONS = 2  # in each parameter along which the derived gradient is held against differences
SHORT = 1e-3  # of the loss: its change over a step of 1 along a direction; the checker's are 1e-5 and more
FAINT = 1e-10  # of the largest element: below, 1 - a of a saturated a has no digits left
JUMP = 1e-6  # of the largest element: what changes by more when the inputs are rounded is at a kink
RANGE = 4  # samples of one data set do not differ by this factor in their largest magnitude


@np.errstate(all="ignore")
def audit(
    forward: Function, backward: Function, *inputs: Any, seed: int = 0, tested_on: Mapping[str, Any] | None = None
) -> AuditReport:
    """Whether the arrays that `backward` derives by hand are gradients of the loss that `forward` returns.

    `forward(*inputs)` is run on Tensors and returns the loss. `backward(*inputs)` gets arrays and returns a dict: by
    the name of an argument of `forward`, or of a local variable in it, what the author holds for the gradient of the
    loss by that quantity, in the order in which it was derived. Inputs are arrays, Tensors, numbers, or lists and dicts
    of them; what has a float dtype is differentiated, in float64. An input that is named is a parameter, and its array
    must be the gradient; other quantities may all have one factor, and rows for columns.

    `tested_on`: other values of some arguments, by name, on which the network was evaluated. `forward` is run on them
    too, and their range compared, but for parameters. `seed` decides the directions of the differences.
    """
    for f in forward, backward:
        if not callable(f):
            raise TypeError(f"audit needs two functions, then inputs: audit(forward, backward, W1, ...), not {f!r:.40}")
    given = _entered(argument_names(forward, len(inputs)), inputs)
    problem = _Problem(forward, backward, [tree_map(_wide, x) for x in given], seed)
    return _judged(problem, _pitfalls(forward, backward, given, tested_on or {}, problem.hand))


# ---- inputs -------------------------------------------------------------------------------------------------------


def _entered(names: Sequence[str], inputs: Sequence[Any]) -> list[Any]:
    """The inputs as the hand-derived pass gets them: floats as arrays, everything else as it is."""

    def array(a: Any) -> Any:
        a = a.data if isinstance(a, Tensor) else a
        return np.asarray(a) if isinstance(a, float | complex | np.inexact) else a

    given = [tree_map(array, x) for x in inputs]
    for name, x in zip(names, given, strict=True):
        for a in tree_leaves(x):
            if arrays.is_array(a) and a.dtype.kind == "c":
                raise TypeError(f"audit: the input {name} is {a.dtype}; only real floats can be differentiated")
    return given


def _is_float(a: Any) -> bool:
    return arrays.is_array(a) and a.dtype.kind == "f"


def _wide(a: Any) -> Any:
    return a.astype(np.float64) if _is_float(a) else a


def _copied(a: Any) -> Any:
    return arrays.replica(a) if arrays.is_array(a) else a


def _hand_derived(backward: Function, inputs: Sequence[Any]) -> dict[str, Any]:
    """What `backward` returns, on the host."""
    found = backward(*tree_map(_copied, list(inputs)))
    if not isinstance(found, dict):
        raise TypeError(
            f"audit: backward must return a dict, such as {{'z1': delta1, 'W1': dW1}}, not {type(found).__name__}"
        )
    if not found:
        raise ValueError("audit: backward returns an empty dict: name what it derived, as in {'W1': dW1}")
    return {name: _hosted(name, a) for name, a in found.items()}


def _hosted(name: Any, a: Any) -> Array:
    if not isinstance(name, str):
        raise TypeError(f"audit: the keys of backward's dict are names of quantities in forward, not {name!r}")
    a = a.data if isinstance(a, Tensor) else a
    try:
        host = arrays.to_host(a) if arrays.is_array(a) else np.asarray(a)
    except ValueError:  # lists of different lengths
        host = np.asarray(None)
    if host.dtype.kind not in "fiub":
        what = host.dtype if host.dtype.kind == "c" else type(a).__name__
        raise TypeError(f"audit: backward gives {what} for {name!r}: it must be an array of real numbers")
    return host


# ---- the forward pass, and adjoints in it ---------------------------------------------------------------------------


class _Graph:
    """One run of forward: the loss, the Tensors that were named, and those of all float inputs."""

    def __init__(self, loss: Tensor, tensors: dict[str, Tensor], leaves: list[Tensor], known: Collection[str]) -> None:
        self.loss, self.tensors, self.leaves, self.known = loss, tensors, leaves, known
        self.node: dict[str, Any] = {name: t._node for name, t in tensors.items()}
        named, ends = {*self.node.values()}, {t._node for t in leaves}
        self.targets: set[Any] = named if named & ends else named | ends
        self.sources: dict[Any, set[Any]] = {}  # by node: those that its adjoint is computed from

    def walked(self, given: Mapping[str, Array], seed: float = 1.0) -> dict[Any, Any]:
        """By node, the adjoint that follows from those of the named nodes above it: from the `given` ones, where there
        are some, else from what was found; `seed` is that of the loss."""
        put = {self.node[name]: arrays.from_host(a, self.tensors[name].data) for name, a in given.items()}
        root: Any = self.loss._node
        found = {root: seed * arrays.ones_like(self.loss.data)}
        for node in sorted({root, *self.targets}, key=attrgetter("rank"), reverse=True):
            g = put.get(node, found.get(node))
            if g is None or not node.parents:
                continue
            for target, part, _ in walk(node, g, targets=self.targets - {node}, retain_graph=True):
                found[target] = arrays.plus(found[target], part) if target in found else part
                self.sources.setdefault(target, set()).add(node)
        return found

    def adjoints(self, given: Mapping[str, Array], seed: float = 1.0) -> Adjoints:
        found = self.walked(given, seed)
        return {name: arrays.to_host(found[node]).astype(np.float64) for name, node in self.node.items()}

    def above(self, node: Any) -> set[Any]:
        """The nodes that the adjoint of this one is computed from, directly or by way of others."""
        found = [*self.sources.get(node, ())]
        for source in found:  # grows on the way
            found += self.sources.get(source, set()).difference(found)
        return set(found)

    def feeders(self, name: str) -> list[str]:
        """The named quantities that this one's adjoint is computed from directly."""
        direct = self.sources.get(self.node[name], set())
        return [other for other, node in self.node.items() if node in direct]


def _moved(a: Any, change: Any) -> Any:
    """The array, on its device, plus a change that the host computed."""
    return arrays.plus(a, arrays.move(np.asarray(change), arrays.device_of(a)))


class _Problem:
    """Both passes at one point, as functions of the float arrays among the inputs."""

    def __init__(self, forward: Function, backward: Function, inputs: list[Any], seed: int) -> None:
        self.forward, self.backward, self.inputs, self.seed = forward, backward, inputs, seed
        self.floats = [a for a in tree_leaves(inputs) if _is_float(a)]
        self.hand = self.by_hand(self.floats)
        self.graph = self.run(self.floats)

    def at(self, floats: Sequence[Any]) -> list[Any]:
        left = iter(floats)
        return [tree_map(lambda a: next(left) if _is_float(a) else a, x) for x in self.inputs]

    def by_hand(self, floats: Sequence[Any]) -> Adjoints:
        return _hand_derived(self.backward, self.at(floats))

    def run(self, floats: Sequence[Any]) -> _Graph:
        leaves = [Tensor(a, requires_grad=True) for a in floats]
        args = self.at(leaves)
        with enable_grad():
            loss, found = call_with_locals(self.forward, *args)
        if not isinstance(loss, Tensor) or loss.size != 1:
            what = f"a Tensor of shape {loss.shape}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"audit: forward must return the loss, a Tensor of one element, not {what}")
        if loss._node is None:
            raise ValueError("audit: the loss depends on no float input: write 0.0 instead of 0, or use .astype(float)")
        found |= dict(zip(argument_names(self.forward, len(args)), args, strict=True))
        graph = _Graph(loss, {name: self._named(name, found) for name in self.hand}, leaves, found)
        reached = graph.walked({})
        for name, node in graph.node.items():
            if node not in reached:
                raise ValueError(f"audit: the loss does not depend on {name!r}: leave it out of backward's dict")
        return graph

    def _named(self, name: str, found: Mapping[str, Any]) -> Tensor:
        if name not in found:
            known = [other for other, value in found.items() if isinstance(value, Tensor)]
            raise ValueError(
                f"audit: backward names {name!r}, which is neither an argument nor a local variable of forward; "
                f"these are: {', '.join(known)}"
            )
        value = found[name]
        if not isinstance(value, Tensor) or value._node is None:
            what = f"{value.dtype} {value.shape}" if hasattr(value, "shape") else type(value).__name__
            raise TypeError(
                f"audit: {name!r} is {what} in forward, and depends on no float input: name a quantity between the "
                "parameters and the loss; integers become floats by .astype(float)"
            )
        return value

    def checked(self, gradients: Callable[[Sequence[Any]], Sequence[Array]], which: Sequence[int]) -> GradReport:
        """Gradients by some of the float inputs, held against differences of the loss along random directions: a
        function of the coordinates along these has few elements, however large the inputs are.

        The directions are short, so that steps along them move the loss by little more than they must: a large network
        of relus has kinks everywhere."""
        rng = np.random.default_rng(self.seed)
        ways, size = [], abs(self.graph.loss.item())
        for k, gradient in zip(which, gradients(self.floats), strict=True):
            way = rng.standard_normal((DIRECTIONS, gradient.size)) * scales(arrays.to_host(self.floats[k])).ravel()
            way = np.copysign(way, gradient.ravel())  # or the slope would be lost among the kinks
            slopes = (way @ gradient.ravel())[:, None]
            way *= np.divide(SHORT * size, slopes, out=np.ones_like(slopes), where=slopes > SHORT * size)
            ways.append(way.reshape(DIRECTIONS, *gradient.shape))

        def moved(steps: Sequence[Array]) -> list[Any]:
            floats = list(self.floats)
            for k, t, way in zip(which, steps, ways, strict=True):
                floats[k] = _moved(floats[k], np.tensordot(t, way, 1))
            return floats

        def f(*steps: Array) -> Array:
            with enable_grad():
                return arrays.to_host(self.forward(*self.at([Tensor(a) for a in moved(steps)])).data).reshape(())

        def vjp(g: Array, *steps: Array) -> tuple[Array, ...]:
            found = gradients(moved(steps))
            rows = [way.reshape(DIRECTIONS, -1) for way in ways]
            return tuple(float(g) * (row @ a.ravel()) for row, a in zip(rows, found, strict=True))

        return check_vjp(f, vjp, [np.zeros(DIRECTIONS) for _ in which], seed=self.seed)

    def neighbours(self, eps: float) -> Iterator[list[Any]]:
        """Points that are off by one rounding, to both sides: there, rounding shows, and at a kink the other side."""
        rng = np.random.default_rng(self.seed)
        for _ in range(2):
            ways = [eps * rng.uniform(-1, 1, a.shape) * scales(arrays.to_host(a)) for a in self.floats]
            for sign in (1, -1):
                yield [_moved(a, sign * way) for a, way in zip(self.floats, ways, strict=True)]


# ---- the judgement ------------------------------------------------------------------------------------------------


def _judged(problem: _Problem, pitfalls: list[str]) -> AuditReport:
    graph, names = problem.graph, list(problem.hand)
    places = {name: k for name in names for k, leaf in enumerate(graph.leaves) if graph.tensors[name] is leaf}
    which = [*places.values()] or list(range(len(graph.leaves)))

    def derived(floats: Sequence[Any]) -> list[Array]:
        run = problem.run(floats)
        found = run.walked({})
        leaves = [run.leaves[k] for k in which]
        return [arrays.to_host(found[t._node]) if t._node in found else np.zeros(t.shape) for t in leaves]

    held = problem.checked(derived, which)
    held = replace(held, names=tuple(places) or tuple(f"float input {k}" for k in which), reproduce="")
    judge = _Judge(problem, held, which, places)
    source = Source(problem.backward)
    claims = judge.claims(source.makers(graph.known))
    pitfalls += filter(None, (_widened(name, problem.hand[name].shape, graph.tensors[name].shape) for name in places))
    return AuditReport(claims=claims, sentences=judge.sentences, hints=judge.hints, pitfalls=pitfalls, numeric=held)


class _Judge:
    """What each hand-derived array is, beside the true adjoint and beside what follows from those before it."""

    def __init__(self, problem: _Problem, held: GradReport, which: list[int], places: dict[str, int]) -> None:
        self.problem, self.graph, self.held, self.which, self.places = problem, problem.graph, held, which, places
        kinds = [a.dtype for a in problem.hand.values() if a.dtype.kind == "f"]
        self.eps = max([float(np.finfo(kind).eps) for kind in kinds], default=2.0**-52)
        self.true = self._adjoints({}, 1.0)
        self.mine = self._aligned(problem.hand)
        around = [self._aligned(problem.by_hand(floats)) for floats in problem.neighbours(self.eps)]
        self.noise = _spread(self.mine, around)
        self.steady = _same(problem.hand, problem.by_hand(problem.floats))
        self.factor, certain = self._factor()
        self.usable = {name: a for name, a in self.mine.items() if a is not None and np.isfinite(a).all()}
        self.due = self._adjoints(self.usable, self.factor)
        self.share = self._share(certain)
        self.verdicts = {name: self._verdict(name) for name in self.mine}
        self.steps = {name: self._step(name) for name in self.mine}
        self.sentences: list[str] = []
        self.hints: list[str] = []

    # ---- what is equal ----

    def _aligned(self, hand: Adjoints) -> dict[str, Array | None]:
        return {name: _aligned(a, self.true[name][0], name in self.places) for name, a in hand.items()}

    def _adjoints(self, given: Mapping[str, Array], seed: float) -> dict[str, tuple[Array, Array]]:
        """By name: the adjoint, and how uncertain each element is by rounding, or at a kink."""
        values = self.graph.adjoints(given, seed)
        around = map(self.problem.run, self.problem.neighbours(self.eps))  # one after the other: they are large
        doubts = _spread(values, [run.adjoints(given, seed) for run in around])
        return {name: (a, doubts[name]) for name, a in values.items()}

    def _equal(self, name: str, adjoint: tuple[Array, Array], factor: float = 1.0) -> bool:
        """Whether what was derived by hand is `factor` times the adjoint, as far as differences and rounding tell."""
        a, b = self.mine[name], adjoint[0] * factor
        if a is None:
            return False
        size, doubt = np.abs(b), adjoint[1] * abs(factor)
        top = size.max(initial=0.0)
        rounding = np.minimum(np.maximum(doubt, self.noise[name]), JUMP * top)  # the rest is a kink's other side
        allowed = self.held.resolution * size + doubt + 32 * rounding + max(64 * self.eps, FAINT) * top
        return bool((np.abs(a - b) <= allowed).all())

    def _ratio(self, name: str, adjoint: tuple[Array, Array]) -> float | None:
        """The one factor by which it is a multiple of the adjoint; None if it is none."""
        a, top = self.mine[name], float(np.abs(adjoint[0]).max(initial=0.0))
        if a is None or not top:
            return None
        b = adjoint[0] / top
        k = float((a * b).sum() / (b * b).sum()) / top
        if not k or not self._equal(name, adjoint, k):
            return None
        return 1.0 if self._equal(name, adjoint) else k

    def _factor(self) -> tuple[float, bool]:
        """The factor of the chain, which is that of the first quantity on it, and whether it can be known."""
        for name in self.mine:
            if name not in self.places:
                k = self._ratio(name, self.true[name])
                return (1.0, False) if k is None else (k, True)
        return 1.0, True

    def _share(self, certain: bool) -> float:
        """What the parameters' lines do about the factor of the chain: undo it, or nothing; where the chain is wrong
        from its beginning, what most of them do."""
        ratios = [self._ratio(name, self.due[name]) for name in self.places]
        options = [1 / self.factor, 1.0, *(k for k in ratios if k and not certain)]
        return max(options, key=lambda k: sum(self._equal(name, self.due[name], k) for name in self.places))

    # ---- verdicts ----

    def _verdict(self, name: str) -> str:
        known = self._known(name)
        if self.held.verdict == "nondet" or not self.steady:
            return "nondet"
        if self.mine[name] is None:
            return "shape"
        if known == "ill":
            return "ill"
        if known == "kink" and (there := self._at_kink(name)) != "fail":
            return there
        if known == "pass" and self._equal(name, self.true[name], 1.0 if name in self.places else self.factor):
            return "pass"
        k = self._ratio(name, self.true[name])
        return "factor" if name in self.places and k not in (None, 1.0) and k > 0 else "fail"

    def _known(self, name: str) -> str:
        """"pass" or "kink" where differences confirm the derived gradient, else "ill". An adjoint is confirmed by the
        parameters whose gradients are computed from it."""
        if name in self.places:
            return self._held(self.which.index(self.places[name]))
        leaves = [self.graph.leaves[k]._node for j, k in enumerate(self.which) if self._held(j) != "ill"]
        return "pass" if any(self.graph.node[name] in self.graph.above(leaf) for leaf in leaves) else "ill"

    def _held(self, j: int) -> str:
        found = {item.verdict for item in self.held.items if item.input in (j, -1)}
        if found & {"ill", "fail", "nondet"} or not self.held.elements:  # none: the loss is not finite
            return "ill"
        return "kink" if any(k == j for k, _ in self.held.kinks) else "pass"

    def _at_kink(self, name: str) -> str:
        """The verdict of differences on the hand-derived gradient itself: at a kink there are several right ones."""
        shape = self.true[name][0].shape

        def gradient(floats: Sequence[Any]) -> list[Array]:
            a = _aligned(self.problem.by_hand(floats)[name], np.zeros(shape), True)
            return [np.zeros(shape) if a is None else a]

        return self.problem.checked(gradient, [self.places[name]]).verdict

    def _step(self, name: str) -> bool | None:
        """Whether it follows from what was derived before it; None where that cannot be carried on."""
        nodes = self.graph.above(self.graph.node[name])
        above = [other for other, node in self.graph.node.items() if node in nodes]
        if any(other not in self.usable for other in above):
            return None
        right = all(self.verdicts[other] == "pass" for other in above)
        if right and self.verdicts[name] == "fail" and self._known(name) == "kink":
            return False  # each element may be a slope of a side; together they are none
        return self._equal(name, self.due[name], self.share if name in self.places else 1.0)

    # ---- words ----

    def claims(self, makers: Mapping[str, Statement]) -> list[Claim]:
        made = [self._claim(name, makers.get(name)) for name in self.mine]
        self._say(made)
        return made

    def _claim(self, name: str, maker: Statement | None) -> Claim:
        a, true, is_parameter = self.mine[name], self.true[name][0], name in self.places
        k = self._ratio(name, self.true[name])
        scale = 1.0 if is_parameter else self.factor
        error, cosine = (math.nan, math.nan) if a is None else _distance(a / scale, true)
        return Claim(
            name=name, kind="parameter" if is_parameter else "intermediate", verdict=self.verdicts[name], error=error,
            cosine=cosine, factor=k, follows=self.steps[name], line=maker.line if maker else None,
            source=str(maker or ""),
        )  # fmt: skip

    def _say(self, made: Sequence[Claim]) -> None:
        """One sentence for each wrong line, then one for those that follow from the same ones."""
        by_name = {claim.name: claim for claim in made}
        groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for claim in made:
            above = self.graph.above(self.graph.node[claim.name])
            before = [by_name[other] for other, node in self.graph.node.items() if node in above]
            if claim.verdict in ("ill", "nondet"):
                groups.setdefault((claim.verdict, ()), []).append(claim.name)
            elif claim.wrong:
                self._blame(claim, [by_name[other] for other in self.graph.feeders(claim.name)])
            elif not claim.ok:
                kind = "open" if claim.follows is None else "follows"
                causes = [c.name for c in before if c.wrong and (kind == "follows" or c.name not in self.usable)]
                groups.setdefault((kind, tuple(causes)), []).append(claim.name)
        first = next((claim for claim in made if claim.kind == "intermediate"), None)
        self.sentences += [self._of_group(kind, causes, names, first) for (kind, causes), names in groups.items()]

    def _blame(self, claim: Claim, feeders: Sequence[Claim]) -> None:
        name, a = claim.name, self.mine[claim.name]
        what = claim.where
        if a is None:
            given, wanted = self.problem.hand[name].shape, self.true[name][0].shape
            self.sentences.append(f"{what} has shape {given}; {name} has {wanted}, and so has the gradient by it")
            self.hints += [f"{name}: {hint}" for hint in hints(self.problem.hand[name], self.true[name][0])]
            return
        if name not in self.usable:
            self.sentences.append(f"{what} holds NaN or infinity; the gradient by {name} does not")
            return
        due = self.due[name][0] * (self.share if name in self.places else 1.0)
        error, cosine = _distance(a, due)
        k = self._ratio(name, (due, self.due[name][1]))
        off = f"it is {k:.4g} times that" if k is not None else f"relative error {error:.2g}, cosine {cosine:.2f}"
        wrong, right = ([c.name for c in feeders if c.ok == ok] for ok in (False, True))
        if wrong:
            text = f"{what} is wrong too: it is not what follows from {_listed(wrong)}; {off}"
        else:
            text = f"{what} is not the gradient by {name}: {off}"
            text += f"; {_listed(right)} before it {_be(right)} right" if right else ""
        self.sentences.append(text)
        self.hints += [f"{name}: {hint}" for hint in hints(a, due, shapes=self._shapes())]

    def _shapes(self) -> list[tuple[int, ...]]:
        return [a.shape for a in self.problem.floats] + [a.shape for a, _ in self.true.values()]

    def _of_group(self, kind: str, causes: Sequence[str], names: list[str], first: Claim | None) -> str:
        text = _listed(names)
        if kind == "nondet":
            what = "forward" if self.steady else "backward"
            return f"{what} gives another answer when it is asked again: seed its random numbers; nothing is judged"
        if kind == "ill":
            reasons = [item.reason for item in self.held.items if item.reason] + self.held.notes
            why = f" ({reasons[0]})" if reasons else ""
            return f"{text}: differences do not confirm the derived gradient{why}: nothing is judged"
        if kind == "open":
            return f"{text}: whether their own lines are right is open, for {_listed(causes)} cannot be carried on"
        if causes or first is None:
            lines = "its own line is right" if len(names) == 1 else "their own lines are right"
            return f"{text} {_be(names)} wrong because {_listed(causes)} {_be(causes)}: {lines}"
        return (
            f"{text} {_be(names)} {self.factor:.4g} times the gradient: the factor comes in with {first.where}, "
            "and is not taken out again"
        )


def _aligned(a: Array, true: Array, is_parameter: bool) -> Array | None:
    """`a` in the shape of the true adjoint, which may have rows for columns; None if no transposition has it. A square
    one of a parameter stays as it is, for the update would not transpose it."""
    flat = a.astype(np.float64).squeeze()
    wanted = tuple(n for n in true.shape if n != 1)
    found = [turned.reshape(true.shape) for turned in (flat, flat.T) if turned.shape == wanted]
    if not found or is_parameter:
        return found[0] if found else None
    return max(found, key=lambda turned: np.nan_to_num(abs(_distance(turned, true)[1])))


def _spread(values: Mapping[str, Array | None], others: Sequence[Mapping[str, Array | None]]) -> Adjoints:
    """By how much each element differs elsewhere; by nothing where it cannot be compared."""
    found = {name: np.zeros(()) if a is None else np.zeros(a.shape) for name, a in values.items()}
    for name, a in values.items():
        for b in (other[name] for other in others):
            if a is not None and b is not None:
                found[name] = np.fmax(found[name], np.abs(a - b))
    return found


def _same(hand: Adjoints, again: Adjoints) -> bool:
    return all(name in again and np.array_equal(a, again[name], equal_nan=True) for name, a in hand.items())


def _distance(a: Array, b: Array) -> tuple[float, float]:
    """The relative error and the cosine of `a` beside `b`; NaN where they have none."""
    with np.errstate(all="ignore"):
        long, size = np.linalg.norm(a), np.linalg.norm(b)
        return float(np.linalg.norm(a - b) / size), float((a * b).sum() / (long * size))


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _be(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


# ---- pitfalls that are no gradients ---------------------------------------------------------------------------------


def _pitfalls(
    forward: Function, backward: Function, inputs: list[Any], tested_on: Mapping[str, Any], parameters: Collection[str]
) -> list[str]:
    names = argument_names(forward, len(inputs))
    if unknown := sorted(set(tested_on) - set(names)):
        raise ValueError(f"audit: tested_on names {unknown[0]!r}; forward's arguments are {', '.join(names)}")
    files = {f.__code__.co_filename for f in map(inspect.unwrap, (forward, backward)) if hasattr(f, "__code__")}

    def tensors(values: Sequence[Any]) -> list[Any]:
        return [tree_map(lambda a: Tensor(a) if _is_float(a) else a, x) for x in values]

    found = _complaints(lambda: forward(*tensors(inputs)), files, "")
    found += _complaints(lambda: backward(*tree_map(_copied, inputs)), files, "")
    if tested_on:
        other = _entered(names, [tested_on.get(name, a) for name, a in zip(names, inputs, strict=True)])
        found += _complaints(lambda: forward(*tensors(other)), files, ", on what it was tested on")
        ranges = {name: _range(name, a, b) for name, a, b in zip(names, inputs, other, strict=True)}
        found += [text for name, text in ranges.items() if text and name not in parameters]
    for f in forward, backward:
        found += [f"{s} is never run: what it checks is switched off" for s in Source(f).never_run()]
    return list(dict.fromkeys(found))


def _complaints(run: Callable[[], Any], files: Collection[str], when: str) -> list[str]:
    """Where in the user's source NumPy complained about overflow and the like."""
    found: dict[str, None] = {}

    def note(kind: str, _flag: int) -> None:
        frame: Any = sys._getframe(1)
        while is_foreign(frame) and frame.f_code.co_filename not in files:
            frame = frame.f_back
        file, line = frame.f_code.co_filename, frame.f_lineno
        where = Statement(line, linecache.getline(file, line).strip())
        found[f"{kind} in {frame.f_code.co_name}, {where}{when}"] = None

    with np.errstate(call=note, over="call", divide="call", invalid="call"):
        run()
    return list(found)


def _widened(name: str, gradient: tuple[int, ...], parameter: tuple[int, ...]) -> str:
    """What an update would do to the shape of a parameter, if it can be made and is not nothing."""
    try:
        shape = np.broadcast_shapes(gradient, parameter)
    except ValueError:
        return ""
    if shape == parameter:
        return ""
    return f"{name} has shape {parameter}, its gradient {gradient}: their difference would have shape {shape}"


def _range(name: str, trained: Any, tested: Any) -> str:
    """What is wrong with the range of an input, if it is not the same in training and in testing."""
    a, b = (arrays.to_host(x) if arrays.is_array(x) else np.asarray(x) for x in (trained, tested))
    if not (a.size and b.size and a.dtype.kind in "fiu" and b.dtype.kind in "fiu"):
        return ""
    tops = sorted(float(np.abs(x.astype(np.float64)).max()) for x in (a, b))
    if tops[1] <= RANGE * tops[0]:
        return ""
    return f"{name}: trained on {a.min():.4g}..{a.max():.4g}, tested on {b.min():.4g}..{b.max():.4g}"
