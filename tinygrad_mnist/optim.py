"""Optimizers and learning-rate schedules.

Each optimizer is a formula over flat arrays: parameter, gradient, state, and scratch memory, so that its arithmetic
allocates nothing. What a step does allocate: the joined gradients of small neighbours, and wide copies of parameters
that are float16 or not contiguous. What changes from step to step, such as the rate, enters as Python numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from . import arrays, guards
from .arrays import Array
from .core import Tensor
from .leaf import Leaf
from .modes import current, lifted, reads

Formula = Callable[..., None]  # (p, g, *state, a, b): changes p and the state in place; a and b are scratch
Schedule = Callable[[int], float]  # step (0, 1, ...) -> learning rate
Rate = float | Schedule


FLUSH = 512
"""Steps between two looks for numbers of the state that have decayed below the normal ones."""


class _Run(NamedTuple):
    params: list[Tensor]  # one, or small ones that are neighbours in memory
    flat: Array | None  # their memory as one axis, where the formula can work on it directly
    rest: list[Array]  # their part of the state, and scratch


class Optimizer:
    """What optimizers share: the parameters, one flat array for each kind of state, and the loop over parameters.

    `lr`: a number, or a schedule, which each step asks for its rate: `lr=one_cycle(1e-2, steps)`. The attribute `lr` is
    the rate of the last step; setting it changes that of the next ones.
    """

    states: tuple[str, ...] = ()  # the names of the arrays of state
    rates: tuple[str, ...] = ()  # the names of the numbers that `_numbers` returns

    def __init__(self, params: Iterable[Tensor], lr: Rate) -> None:
        self.params = list(params)
        if not self.params:
            raise ValueError("an optimizer needs at least one parameter")
        for p in self.params:
            if type(getattr(p, "_node", None)) is not Leaf:
                raise TypeError(f"parameters must be leaf Tensors with requires_grad=True, not {p!r:.60}")
        if len({id(p) for p in self.params}) < len(self.params):
            raise ValueError("a parameter was given twice")
        self.steps = 0
        self._schedule = lr if callable(lr) else None
        rate = lr(0) if callable(lr) else lr
        _check(lr=(rate, 0, math.inf))
        self._lr = rate
        # float16 cannot hold Adam's 1e-8, and loses most of a small update: its state and arithmetic are float32
        self._dtype = arrays.result_type("float32", *(p.dtype for p in self.params))
        devices = sorted({p.device for p in self.params})
        if len(devices) > 1:
            raise ValueError(f"the parameters lie on {' and '.join(devices)}: move them to one device with .to(device)")
        sizes = [p.size for p in self.params]
        longest = max(*sizes, sum(n for n in sizes if self._xp.worth_joining(n)))
        with arrays.on_device_of(self.params[0]._data):
            self.state = {name: self._xp.zeros(sum(sizes), self._dtype) for name in self.states}
            self._scratch = [self._xp.scratch(longest, self._dtype) for _ in range(2)]
        self._live: list[Array] = []  # what the last step changed: while it stays the same, so do runs and spans
        self._joins = False  # whether a capture made the runs
        self._runs: list[_Run] = []
        self._spans: list[guards.Span] = []

    @property
    def lr(self) -> float:
        """The learning rate of the last step, or that of the next one where it was set since."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        recorder = current.get().recorder
        if recorder is not None:
            recorder.refuse(
                "the learning rate was set",
                "give the optimizer the schedule, optim.SGD(params, lr=schedule), or set lr outside",
            )
        self._lr, self._schedule = value, None

    @property
    def _xp(self) -> arrays.Namespace:  # not an attribute: an optimizer can be copied and pickled, a namespace cannot
        return arrays.namespace(type(lifted(self.params[0]._data)))

    @property
    def _terms(self) -> tuple[bool, ...]:
        """Which terms the formula has: what may be switched on or off between steps."""
        return ()

    def _numbers(self) -> tuple[float, ...]:
        """What the formula needs of this step, one number for each name in `rates`."""
        raise NotImplementedError

    def _formula(self, xp: Any, *numbers: float) -> Formula:
        """The update. It is a sequence of calls `xp.f(..., out=array)`, of which a GPU makes one kernel; each uses what
        the one before returned, for a captured formula has no scratch."""
        raise NotImplementedError

    def _advance(self) -> tuple[float, ...]:
        """Count a step; its numbers."""
        if self._schedule is not None:
            self._lr = self._schedule(self.steps)
        self.steps += 1
        return self._numbers()

    def _cut(self, live: list[Tensor]) -> list[_Run]:
        """The parameters that have a gradient, as runs that the formula takes at once."""
        runs: list[_Run] = []
        ends = dict(zip(map(id, self.params), accumulate(p.size for p in self.params), strict=True))
        for p in live:
            end = ends[id(p)]
            params, start = [p], end - p.size
            flat = arrays.joint_view([p._data]) if p.dtype == self._dtype else None
            before = runs[-1].params if runs and runs[-1].flat is not None else []
            if before and self._xp.worth_joining(max(p.size, before[-1].size)):
                joint = arrays.joint_view([q._data for q in (*before, p)])
                if joint is not None and ends[id(before[-1])] == start:
                    params, flat, start = [*before, p], joint, start - runs.pop().flat.size  # type: ignore[union-attr]
            rest = [*(s[start:end] for s in self.state.values()), *(a[: end - start] for a in self._scratch)]
            runs.append(_Run(params, flat, rest))
        return runs

    def step(self) -> None:
        """Update every parameter that has a gradient, in place. Where none has one, this is no step and not counted."""
        live = [p for p in self.params if p.grad is not None]
        if not live:
            return
        joins = self._xp.records  # in a capture other runs are best
        known = self._joins == joins and len(live) == len(self._live)
        if not known or any(p._data is not a for p, a in zip(live, self._live, strict=True)):
            self._check_devices(live)
            self._live, self._joins = [p._data for p in live], joins
            self._runs, self._spans = self._cut(live), guards.spans(self._live)
        recorder = current.get().recorder
        reads(self, "_terms")
        with arrays.on_device_of(self._live[0]):
            if recorder is None:
                self._update(self._advance())
                self._settle(*self.state.values())
            else:
                self._update(recorder.advance(self, self._advance))
                if self.states and arrays.device_of(self._live[0]) == "cpu":
                    recorder.host_call(self._settle, [*self.state.values()], result=False, due=self._due)

    def _settle(self, *states: Array) -> None:
        if self._due() == FLUSH:
            for state in states:
                arrays.flush_subnormal(state)

    def _due(self) -> int:
        """How many steps may go by before `_settle` has something to do."""
        return FLUSH - self.steps % FLUSH

    def _check_devices(self, live: list[Tensor]) -> None:
        own = arrays.device_of(self._scratch[0])
        for p in live:
            if p.device != own:
                raise RuntimeError(
                    f"a parameter has moved to {p.device}, but the state of this optimizer lies on {own}: make the "
                    "optimizer after model.to(device)"
                )

    def _update(self, numbers: tuple[float, ...]) -> None:
        xp = self._xp
        formula = xp.fused(self._formula, self.states, numbers)
        try:
            for params, flat, rest in self._runs:
                grads = [p._node.grad.reshape(-1) for p in params]  # type: ignore[union-attr]
                g = grads[0] if len(grads) == 1 else xp.concatenate(grads)
                if flat is not None:
                    formula(flat, g, *rest)
                else:
                    data = lifted(params[0]._data)
                    wide = data.astype(self._dtype).reshape(-1)
                    formula(wide, g.astype(self._dtype), *rest)
                    data[...] = wide.reshape(data.shape)
        finally:  # after the writes, as everywhere; and of a step that fails midway, the first parameters have changed
            guards.changes.note(self._spans)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for p in self.params:
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to go on as if it had not stopped: step count, rate, and copies of the state on the host."""
        return {"steps": self.steps, "lr": self.lr, **{name: arrays.to_host(s) for name, s in self.state.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()` of an optimizer of the same kind and parameters; nothing is changed if it does
        not fit."""
        expected = {"steps", "lr", *self.states}
        if state.keys() != expected:
            raise ValueError(f"load_state_dict: expected the entries {sorted(expected)}, got {sorted(state)}")
        for name in self.states:
            if state[name].shape != self.state[name].shape:
                raise ValueError(f"load_state_dict: {name} has shape {state[name].shape}, not {self.state[name].shape}")
        self.steps, self._lr = int(state["steps"]), float(state["lr"])
        for name in self.states:
            arrays.put(self.state[name], ..., state[name])


class SGD(Optimizer):
    """p -= lr u, with g' = g + weight_decay p and u = g'; with momentum v = momentum v + g' and u = v, or in Nesterov's
    form u = g' + momentum v. (Sutskever, Martens, Dahl and Hinton 2013.)"""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: Rate,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        _check(momentum=(momentum, 0, 1), weight_decay=(weight_decay, 0, math.inf))
        if nesterov and not momentum:
            raise ValueError("nesterov=True needs a momentum larger than 0")
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov, weight_decay
        self.states = ("velocity",) if momentum else ()
        super().__init__(params, lr)

    rates = "lr", "momentum", "weight_decay"

    @property
    def _terms(self) -> tuple[bool, ...]:
        return bool(self.weight_decay), self.nesterov

    def _numbers(self) -> tuple[float, ...]:
        return self._lr, self.momentum, self.weight_decay

    def _formula(self, xp: Any, lr: float, momentum: float, decay: float) -> Formula:  # type: ignore[override]
        def plain(p: Array, g: Array, a: Array, _b: Array) -> None:
            if self.weight_decay:
                g = xp.add(xp.multiply(p, decay, out=a), g, out=a)
            xp.subtract(p, xp.multiply(g, lr, out=a), out=p)

        def with_momentum(p: Array, g: Array, v: Array, a: Array, b: Array) -> None:
            if self.weight_decay:
                g = xp.add(xp.multiply(p, decay, out=a), g, out=a)
            xp.add(xp.multiply(v, momentum, out=v), g, out=v)
            u = xp.add(xp.multiply(v, momentum, out=b), g, out=b) if self.nesterov else v
            xp.subtract(p, xp.multiply(u, lr, out=b), out=p)

        return with_momentum if self.momentum else plain


class Adam(Optimizer):
    """m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).

    Kingma and Ba 2015. `weight_decay` adds weight_decay p to the gradient (an L2 penalty); see AdamW.
    """

    states = ("m", "v")
    rates = "beta1", "beta2", "rate", "eps", "weight_decay", "shrink"
    decoupled = False

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        _check(beta1=(betas[0], 0, 1), beta2=(betas[1], 0, 1), weight_decay=(weight_decay, 0, math.inf))
        _check(eps=(eps, 0, math.inf))
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        super().__init__(params, lr)

    @property
    def _terms(self) -> tuple[bool, ...]:
        return (bool(self.weight_decay),)

    def _numbers(self) -> tuple[float, ...]:
        b1, b2 = self.betas
        # The state holds m / (1 - b1) and v / (1 - b2): what is left outside the quotient is one number, two passes
        # fewer
        root = math.sqrt((1 - b2**self.steps) / (1 - b2))
        rate = self._lr * root * (1 - b1) / (1 - b1**self.steps)
        return b1, b2, rate, self.eps * root, self.weight_decay, 1 - self._lr * self.weight_decay

    def _formula(  # type: ignore[override]
        self, xp: Any, b1: float, b2: float, rate: float, eps: float, decay: float, shrink: float
    ) -> Formula:
        def formula(p: Array, g: Array, m: Array, v: Array, a: Array, b: Array) -> None:
            if self.weight_decay and self.decoupled:
                xp.multiply(p, shrink, out=p)
            elif self.weight_decay:
                g = xp.add(xp.multiply(p, decay, out=b), g, out=b)
            xp.add(xp.multiply(m, b1, out=m), g, out=m)
            xp.add(xp.multiply(v, b2, out=v), xp.multiply(g, g, out=a), out=v)
            root = xp.add(xp.sqrt(v, out=a), eps, out=a)
            xp.subtract(p, xp.multiply(xp.divide(m, root, out=a), rate, out=a), out=p)

        return formula


class AdamW(Adam):
    """Adam whose weight decay acts on the parameters themselves: p -= lr weight_decay p. Loshchilov and Hutter 2019."""

    decoupled = True

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)


def clip_grad_norm(params: Iterable[Tensor], max_norm: float) -> Any:
    """Scale all gradients, in place, so that their joint Euclidean norm is at most `max_norm`; the norm before that.

    `max_norm=math.inf` only measures. Raises FloatingPointError where a gradient that would be scaled is NaN or
    infinite; gradients and parameters are then as they were, and a training loop may skip the step. On a GPU nothing
    waits for the norm: it is an array there, and instead of an error all gradients become NaN.
    """
    if not max_norm >= 0:
        raise ValueError(f"max_norm must be at least 0, not {max_norm!r}")
    names, grads = [], []
    for i, p in enumerate(params):
        if p.grad is not None:
            names.append(p.name or f"parameter {i}")
            grads.append(p.grad)
    if any(arrays.device_of(g) != "cpu" for g in grads):
        return _clip_on_device(grads, max_norm)
    recorder = current.get().recorder
    if recorder is not None:
        return recorder.host_call(lambda *grads: _clip(names, grads, max_norm), grads, result=True)
    return _clip(names, grads, max_norm)


def _clip(names: list[str], grads: Sequence[Array], max_norm: float) -> float:
    wide = [g.astype(arrays.result_type("float32", g.dtype), copy=False) for g in grads]  # float16 ends at 65504
    norm = _norm(wide)
    if max_norm == math.inf or norm <= max_norm:
        return norm
    if not math.isfinite(norm):
        bad = next((name for name, g in zip(names, grads, strict=True) if not arrays.all_finite(g)), "all together")
        raise FloatingPointError(f"clip_grad_norm: the norm of the gradients is {norm}, because of {bad}")
    for g, w in zip(grads, wide, strict=True):
        arrays.namespace(type(g)).multiply(w, max_norm / norm, out=g, casting="same_kind")
    return norm


def _clip_on_device(grads: list[Array], max_norm: float) -> Array:
    xp = arrays.namespace(type(grads[0]))
    if problem := arrays.mixed(grads):
        raise ValueError(f"clip_grad_norm: {problem}; move one with .to(device)")
    with arrays.on_device_of(grads[0]):
        wide = (g.reshape(-1).astype("float64", copy=False) for g in grads)  # float32's squares do not overflow there
        norm = xp.sqrt(sum(xp.vdot(g, g) for g in wide))
        if max_norm < math.inf:
            scale = xp.where(norm <= max_norm, 1.0, xp.where(xp.isfinite(norm), max_norm / norm, math.nan))
            for g in grads:
                dtype = arrays.result_type("float32", g.dtype)  # float16 cannot hold a small scale
                xp.multiply(g, scale.astype(dtype), out=g, casting="same_kind")
    return norm


def _norm(grads: list[Array]) -> float:
    """The joint Euclidean norm, which does not overflow before a Python number does."""
    flat = [(arrays.namespace(type(g)), g.reshape(-1)) for g in grads if g.size]
    total = sum(float(xp.vdot(g, g)) for xp, g in flat)  # vdot: unlike @, it overflows without a warning
    if 1e-30 < total < math.inf:
        return math.sqrt(total)
    # Squares overflowed, or vanished: once more, with the largest element as the unit
    tops = [float(xp.max(xp.absolute(g))) for xp, g in flat]
    top = math.nan if any(map(math.isnan, tops)) else max(tops, default=0.0)
    if not 0 < top < math.inf:
        return top
    return top * math.sqrt(sum(float(xp.vdot(g / top, g / top)) for xp, g in flat))


def _check(**named: tuple[float, float, float]) -> None:
    for name, (value, low, high) in named.items():
        if not low <= value < high:
            bound = "finite and at least 0" if high == math.inf else f"at least {low} and less than {high}"
            raise ValueError(f"{name} must be {bound}, not {value!r}")


# ---- schedules -----------------------------------------------------------------

def constant(lr: float) -> Schedule:
    """The same rate at every step."""
    return lambda step: lr


def cosine(lr: float, steps: int, *, warmup: int = 0, final: float = 0.0) -> Schedule:
    """A linear rise over `warmup` steps, then half a cosine from `lr` to `final` at the last of `steps`
    (Loshchilov and Hutter 2017)."""
    _check_steps(steps, warmup)

    def schedule(step: int) -> float:
        if step < warmup:
            return lr * (step + 1) / warmup
        return _anneal(lr, final, (step - warmup) / max(steps - 1 - warmup, 1))

    return schedule


def one_cycle(
    peak: float, steps: int, *, warmup: float = 0.3, start_div: float = 25.0, final_div: float = 1e4
) -> Schedule:
    """Half a cosine up from peak / start_div to `peak` over the fraction `warmup` of the steps, then half a cosine
    down to peak / start_div / final_div (Smith and Topin 2019)."""
    _check(warmup=(warmup, 0, 1))
    top = warmup * (steps - 1)
    _check_steps(steps, int(top))

    def schedule(step: int) -> float:
        if step < top:
            return _anneal(peak / start_div, peak, step / top)
        return _anneal(peak, peak / start_div / final_div, (step - top) / max(steps - 1 - top, 1))

    return schedule


def _anneal(start: float, end: float, part: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(part, 1.0))) / 2


def _check_steps(steps: int, warmup: int) -> None:
    if not 0 <= warmup < steps:
        raise ValueError(f"a schedule needs 0 <= warmup < steps, not warmup={warmup}, steps={steps}")
