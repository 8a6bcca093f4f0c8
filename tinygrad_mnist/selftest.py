"""Whether a device computes what NumPy computes: every operation and its derivatives, optimizers, training, files.

    report = selftest.run("gpu")
    print(report)                          # ends in a block to paste into a bug report

Results of kernels are never compared by ==: a GPU fuses products with sums, flushes subnormal numbers and adds in
another order. The right result is NumPy's in float64, on operands that were rounded to the dtype of the test. Allowed
is an error of `ROUNDINGS` roundings of the largest magnitude in it, and `NEARNESS` times the error that NumPy itself
makes in that dtype, on these operands and on operands moved by one rounding: so an operation that is badly conditioned,
or cancels, may be as wrong as that makes it. As a mistake of ours would be on both sides, results in float64 are also
held to NumPy's own functions, and gradients to differences of these.
"""

from __future__ import annotations

import math
import os
import platform
import shlex
import tempfile
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import arrays, data, gpu, losses, nn, optim, progress, serialize
from .core import F, Tensor
from .functional import vjp
from .inference import versions
from .recipe import Recipe
from .testing import OPS, Backend, DeviceBackend, Op, strict
from .train import Monitor, Training

Array = np.ndarray[Any, Any]
Inputs = tuple[Array, ...]
Outputs = dict[tuple[str, str], Array]  # (group, what it is) -> values on the host
Function = Callable[[Backend, Inputs], Outputs]
Progress = Callable[[int, int, str], None]  # called before each check: how many are done, of how many, and its name

DTYPES = ("float64", "float32", "float16")
CASES = 4  # of a row, in each dtype; the seed decides which
SECOND_ORDER = {"float64": 2, "float32": 1, "float16": 1}  # how many of these go through the second order too
ROUNDINGS, NEARNESS = 32, 16  # many times what is met in practice: a mistake is larger by orders of magnitude
NEIGHBOURS = 3  # how many times the operands are moved: errors may cancel, but not each time
FLOOR = 0.1  # a result that is smaller counts as this large: operands and cotangents are about 1, and sums may cancel
STEP, BY_DIFFERENCES = 1e-3, 1e-7  # the step of differences, and the relative error that they allow
SLACK = {"test accuracy": 0.01}  # allowed beside the rest: single images lie between two classes
SHOWN = 20  # failures that are printed; JSON has all

NUMPY = Backend()

# ---- what is found ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """One comparison. Errors are relative to the largest magnitude of the right result."""

    group: str
    name: str
    what: str = ""
    dtype: str = ""  # "" where numbers are not what is compared
    error: float = 0.0
    allowed: float = 0.0
    problem: str = ""  # what is wrong beside the error: a shape, an exception
    unmodelled: bool = False  # the problem is one of the emulator

    @property
    def ok(self) -> bool:
        return not self.problem and self.error <= self.allowed  # not so for NaN

    @property
    def ratio(self) -> float:
        """The error as a multiple of what is allowed; infinite for NaN."""
        ratio = self.error / self.allowed if self.allowed else 0.0
        return math.inf if math.isnan(ratio) else ratio

    def __str__(self) -> str:
        where = " ".join(filter(None, (self.dtype, self.what)))
        told = self.problem or f"error {self.error:.1e}, allowed {self.allowed:.1e}"
        return ": ".join(filter(None, (self.name, where, told)))

    def to_json(self) -> dict[str, Any]:
        """For JSON, which has no number that is not finite: an error that is not is None."""
        error = self.error if math.isfinite(self.error) else None
        return {
            "group": self.group, "name": self.name, "what": self.what, "dtype": self.dtype,
            "error": error, "allowed": self.allowed, "problem": self.problem,
        }  # fmt: skip


@dataclass
class Report:
    """What a run found. `str(report)` is for people, `to_json()` for machines."""

    device: str
    ops: tuple[str, ...]  # the texts that names had to have; none: everything ran
    seed: int
    facts: dict[str, str]
    note: str  # what must be known to read it rightly: that the device is emulated, or is NumPy itself
    emulated: bool
    planned: int
    done: int = 0
    interrupted: bool = False
    seconds: float | None = None  # None on an emulated device: its time is not that of a GPU
    cannot: dict[str, str] = field(default_factory=dict)  # what an emulated device cannot run, and why
    results: dict[tuple[str, str, str], Result] = field(default_factory=dict)
    """By group, name and dtype, of which the worst is kept; or by what it is, where it has no dtype."""

    @property
    def ok(self) -> bool:
        return not self.failures and not self.interrupted

    @property
    def failures(self) -> list[Result]:
        """The results that are not what they should be."""
        return [result for result in self.results.values() if not result.ok]

    @property
    def operations(self) -> list[Result]:
        """The worst result of each name, the worst first."""
        worst: dict[str, Result] = {}
        for result in self.results.values():
            if result.allowed and not (result.name in worst and worst[result.name].ratio >= result.ratio):
                worst[result.name] = result
        return sorted(worst.values(), key=lambda result: -result.ratio)

    def add(self, result: Result) -> None:
        """Count a result."""
        if result.unmodelled and self.emulated:
            self.cannot[result.name] = result.problem
            return
        key = result.group, result.name, result.dtype or result.what
        known = self.results.get(key)
        if known is None or (known.ok and not result.ok) or (known.ok == result.ok and result.ratio > known.ratio):
            self.results[key] = result

    def groups(self) -> list[dict[str, Any]]:
        """For each group: how many names it has, the worst error by dtype as a multiple of the allowed one, and how
        many names failed."""
        found = []
        for group in dict.fromkeys(result.group for result in self.results.values()):
            results = [result for result in self.results.values() if result.group == group]
            worst = {
                dtype: max(result.ratio for result in results if result.dtype == dtype)
                for dtype in DTYPES
                if any(result.dtype == dtype for result in results)
            }
            failed = len({result.name for result in results if not result.ok})
            rows = len({result.name for result in results})
            found.append({"group": group, "rows": rows, "worst": worst, "failed": failed})
        return found

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        groups = self.groups()
        for group in groups:
            group["worst"] = {dtype: x if math.isfinite(x) else None for dtype, x in group["worst"].items()}
        return {
            "ok": self.ok,
            "device": self.device,
            "emulated": self.emulated,
            "note": self.note,
            "ops": list(self.ops),
            "seed": self.seed,
            "planned": self.planned,
            "done": self.done,
            "interrupted": self.interrupted,
            "seconds": self.seconds,
            "facts": self.facts,
            "groups": groups,
            "failures": [result.to_json() for result in self.failures],
            "cannot": self.cannot,
            "operations": [result.to_json() for result in self.operations],
        }

    def __str__(self) -> str:
        lines = [self.note, ""] if self.note else []
        failures = self.failures
        if failures:
            lines += [f"FAILED ({len(failures)}); errors are relative to the largest magnitude of the right result:"]
            lines += [f"  {result}" for result in failures[:SHOWN]]
            if len(failures) > SHOWN:
                lines.append(f"  and {len(failures) - SHOWN} more, which --json lists")
            lines.append("")
        if self.cannot:
            lines += [f"cannot run here ({len(self.cannot)}):"]
            lines += [f"  {name}: {reason}" for name, reason in self.cannot.items()] + [""]
        lines += [*self._table(), "", "For a bug report, from here to the end:", "", "```text", *self._block(), "```"]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        dtypes = "".join(f"{dtype:>9}" for dtype in DTYPES)
        lines = [f"{'worst error / allowed error':28}{'rows':>6}{dtypes}{'failed':>8}"]
        for group in self.groups():
            numbers = "".join(f"{group['worst'][d]:9.2g}" if d in group["worst"] else f"{'-':>9}" for d in DTYPES)
            lines.append(f"{group['group']:28}{group['rows']:6}{numbers}{group['failed']:8}")
        return lines

    def _block(self) -> list[str]:
        failures = self.failures
        verdict = "FAILED" if failures else "interrupted" if self.interrupted else "all that ran agrees with NumPy"
        facts = {
            "selftest": shlex.join([*self.ops, "--device", self.device, "--seed", str(self.seed)]),
            "result": verdict,
            "checks": f"{self.done} of {self.planned}; {len(failures)} failures, {len(self.cannot)} cannot run here",
            **self.facts,
            "time": "not reported, emulated" if self.seconds is None else f"{self.seconds:.1f} s",
        }
        lines = [self.note] if self.note else []
        lines += [f"{f'{name}:':20}{fact}" for name, fact in facts.items()]
        lines += [f"failed: {result}" for result in failures[:SHOWN]]
        lines += ["worst errors, as multiples of what is allowed:"]
        lines += [f"  {result.ratio:.2g}  {result}" for result in self.operations[:10]]
        return lines


# ---- the run ------------------------------------------------------------------------------------------------------


class Check(NamedTuple):
    """Something that can be held to NumPy, by a name of its own."""

    group: str
    name: str
    run: Callable[[Backend, np.random.Generator], Iterable[Result]]


def checks() -> list[Check]:
    """All of them, in order."""
    return [
        *(Check("values", op.name, partial(_operation, op)) for op in OPS),
        *(Check("optimizers", name, partial(_optimizer, name)) for name in OPTIMIZERS),
        Check("optimizers", "clip_grad_norm", _clipping),
        *(Check("training", name, partial(_training, name)) for name in RECIPES),
        Check("random numbers", "weights, masks and batches of a seed", _random_numbers),
        Check("files", "save and load", _files),
        Check("indices", "an index out of range raises", _indices),
    ]


def run(
    device: str = "auto", ops: str | Sequence[str] | None = None, seed: int = 0, progress: Progress | None = None
) -> Report:
    """Hold a device to NumPy: "gpu", "gpu:N", "cpu", "auto", or "strict", the double of CuPy in which NumPy computes.

    `ops`: run only checks that have this text, or one of these texts, in their names. `seed` decides which cases of an
    operation run, cotangents and directions. What raises is a failure, not the end; Ctrl-C ends the run, and the report
    has what was found so far. Raises GpuUnavailable where there is no such device, ValueError where no check is meant.
    """
    start = time.perf_counter()
    texts = (ops,) if isinstance(ops, str) else tuple(ops or ())
    chosen = [check for check in checks() if not texts or any(text in check.name for text in texts)]
    if not chosen:
        raise ValueError(f"no check has {' or '.join(map(repr, texts))} in its name, such as 'matmul' or 'Adam'")
    report = _report(device, texts, seed, len(chosen))
    backend = Backend() if report.device == "cpu" else DeviceBackend(report.device, report.device)
    try:
        with arrays.computing_on(report.device), np.errstate(all="ignore"):
            for check in chosen:
                if progress:
                    progress(report.done, len(chosen), check.name)
                try:
                    for result in check.run(backend, np.random.default_rng([zlib.crc32(check.name.encode()), seed])):
                        report.add(result)
                except Exception as error:
                    report.add(_raised(check.group, check.name, "", "", error))
                report.done += 1
    except KeyboardInterrupt:
        report.interrupted = True
    if not report.emulated:
        report.seconds = time.perf_counter() - start
    return report


SETTINGS = ("CUPY_ACCELERATORS", "CUPY_TF32", "NVIDIA_TF32_OVERRIDE")  # they decide how a GPU computes
EMULATED = "EMULATED: {}. No GPU has computed this, and no time is that of a GPU."


def _report(device: str, ops: tuple[str, ...], seed: int, planned: int) -> Report:
    """An empty report on this device. Raises where there is none."""
    facts = {**versions(), "platform": platform.platform()}
    if device == "strict":
        arrays.register("strict", strict.xp)
        note = EMULATED.format("a double of CuPy, in which NumPy computes under CuPy's rules")
        return Report(device, ops, seed, {**facts, "device": "strict double of CuPy"}, note, True, planned)
    chosen, reason = gpu.choose(device)
    if chosen == "cpu":
        note = "On the CPU this holds NumPy to itself: what can differ are results from NumPy's own functions, and "
        note += "gradients from differences." + ("" if device == "cpu" else f" There is {reason}.")
        return Report(chosen, ops, seed, {**facts, "device": "cpu"}, note, False, planned)
    found = gpu.probe(int(chosen.partition(":")[2] or 0))
    there = found.devices[found.device]
    facts |= {
        "cupy": f"{found.cupy}, for CUDA {found.runtime}",
        "driver": f"for CUDA {found.driver}",
        "device": there.name,
        "compute capability": there.compute_capability,
        "memory": f"{(there.memory_free or 0) / 2**30:.1f} of {there.memory_total / 2**30:.1f} GiB free",
        **{name: os.environ[name] for name in SETTINGS if name in os.environ},
    }
    note = EMULATED.format("CuPy on a pretend device, whose kernels run on the CPU") if found.emulated else ""
    return Report(chosen, ops, seed, facts, note, found.emulated, planned)


def _raised(group: str, name: str, what: str, dtype: str, error: Exception) -> Result:
    """The result where something raised."""
    first = (str(error).strip().splitlines() or [""])[0]
    told = "; ".join([f"{type(error).__name__}: {first:.300}", *getattr(error, "__notes__", [])])
    emulators = isinstance(error, strict.Unmodelled) or "the pretend GPU: " in first
    return Result(group, name, what, dtype, problem=told, unmodelled=emulators)


@contextmanager
def shown() -> Iterator[Progress]:
    """Shows on stderr how far a run is: a bar on a terminal, or else a line for each tenth."""
    stderr = progress.stderr()
    if stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False)
        with Bar(*columns, console=Console(file=stderr), auto_refresh=False, transient=True) as bar:
            task = bar.add_task("", total=None)
            yield lambda done, total, name: bar.update(
                task, completed=done, total=total, description=name, refresh=True
            )
    else:

        def line(done: int, total: int, name: str) -> None:
            if done and done * 10 // total > (done - 1) * 10 // total:
                print(f"selftest: {done} of {total} checks", file=stderr, flush=True)

        yield line


# ---- comparing ----------------------------------------------------------------------------------------------------


def _rounded(inputs: Iterable[Array], dtype: str) -> Inputs:
    """The inputs with all floats in this dtype, in the layouts that they have."""
    return tuple(a.astype(dtype, copy=False) if a.dtype.kind == "f" else a for a in inputs)


def _moved(inputs: Inputs, rng: np.random.Generator) -> Inputs:
    """The inputs with each float larger or smaller by one rounding."""

    def moved(a: Array) -> Array:
        return np.asarray(a * (1 + np.finfo(a.dtype).eps * rng.choice([-1, 1], a.shape)), a.dtype)

    return tuple(moved(a) if a.dtype.kind == "f" else a for a in inputs)


def _held(
    check: tuple[str, str], function: Function, inputs: Inputs, dtype: str, backend: Backend,
    rng: np.random.Generator, *, on: str = "",
) -> Generator[Result, None, Outputs]:
    """Compare all that `function` computes on the device with what it computes on NumPy; returns the former.

    `check` is the group and the name, and `on` says what the inputs were.
    """
    inputs = _rounded(inputs, dtype)
    try:
        found = function(backend, inputs)
    except Exception as error:
        yield _raised(*check, on, dtype, error)
        return {}
    right = function(NUMPY, _rounded(inputs, "float64"))
    near = [function(NUMPY, version) for version in (inputs, *(_moved(inputs, rng) for _ in range(NEIGHBOURS)))]
    for (group, what), expected in right.items():
        own, actual = near[0][group, what], found[group, what]
        result = Result(group, check[1], f"{what} {on}".strip(), dtype)
        if (actual.dtype, actual.shape) != (own.dtype, own.shape):
            wrong = f"{actual.dtype} {actual.shape}, expected {own.dtype} {own.shape}"
            yield replace(result, problem=wrong)
        else:
            scale = max(FLOOR, _largest(expected), _largest(own))
            spread = max(_largest(_off(other[group, what], expected)) for other in near)
            allowed = ROUNDINGS * float(np.finfo(dtype).eps) + NEARNESS * spread / scale + SLACK.get(what, 0.0)
            yield replace(result, error=_largest(_off(actual, expected)) / scale, allowed=allowed)
    return found


def _largest(a: Array) -> float:
    return float(np.abs(a).max(initial=0))


def _off(actual: Array, expected: Array) -> Array:
    """How far the elements are off, in float64; equal ones by nothing, infinite ones too."""
    actual, expected = (np.asarray(a, np.float64) for a in (actual, expected))
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    return np.where(same, 0, actual - expected)


def _same(check: tuple[str, str], what: str, actual: Any, expected: Any) -> Result:
    """What NumPy's generators drew, or what was only copied, has to be the same to the bit."""
    actual, expected = (np.asarray(a) for a in (actual, expected))
    if (actual.dtype, actual.shape) != (expected.dtype, expected.shape):
        return Result(*check, what, problem=f"{actual.dtype} {actual.shape}, not {expected.dtype} {expected.shape}")
    if actual.tobytes() == expected.tobytes():
        return Result(*check, what)
    return Result(*check, what, problem=f"{np.count_nonzero(actual != expected)} of {actual.size} elements differ")


# ---- operations ---------------------------------------------------------------------------------------------------


def _operation(op: Op, backend: Backend, rng: np.random.Generator) -> Iterator[Result]:
    """A row of the operation table: values and gradients, second order, and differences, in every dtype."""
    cases = op.cases()
    for dtype in DTYPES:
        for k, i in enumerate(rng.permutation(len(cases))[:CASES]):
            operands = cases[i]
            cotangent = np.asarray(rng.normal(size=np.shape(op.expected(*operands))))
            directions = [np.asarray(rng.uniform(-1, 1, a.shape)) for a in operands if a.dtype.kind == "f"]
            inputs = (*operands, cotangent, *directions)
            first, second = (partial(order, op, len(operands)) for order in (_first_order, _second_order))
            on = _on(operands)
            found = yield from _held(("values", op.name), first, inputs, dtype, backend, rng, on=on)
            if k < SECOND_ORDER[dtype]:
                yield from _held(("second order", op.name), second, inputs, dtype, backend, rng, on=on)
            if dtype == "float64" and found:
                yield from _by_numpy(op, operands, cotangent, directions, found)


def _on(operands: Inputs) -> str:
    return "on " + ", ".join(str(a.shape) for a in operands)


def _entered(backend: Backend, operands: Inputs) -> list[Any]:
    """The operands on the device: floats as leaves, the others as plain arrays."""
    placed = [backend.array(a) for a in operands]
    return [Tensor(a, requires_grad=True) if a.dtype.kind == "f" else a for a in placed]


def _gradient(backend: Backend, leaf: Tensor) -> Array:
    return np.zeros(leaf.shape, leaf.dtype) if leaf.grad is None else backend.host(leaf.grad)


def _first_order(op: Op, count: int, backend: Backend, inputs: Inputs) -> Outputs:
    operands, cotangent = _entered(backend, inputs[:count]), inputs[count]
    y = op.call(F, *operands)
    found = {("values", "result"): backend.host(y.data if isinstance(y, Tensor) else y)}
    if isinstance(y, Tensor) and y.requires_grad:
        y.backward(backend.array(cotangent))
        for i, t in enumerate(operands):
            if isinstance(t, Tensor):
                found["gradients", f"gradient of operand {i}"] = _gradient(backend, t)
    return found


def _second_order(op: Op, count: int, backend: Backend, inputs: Inputs) -> Outputs:
    """The gradient of <gradient, direction> by the operands and by the cotangent."""
    operands, directions = _entered(backend, inputs[:count]), inputs[count + 1 :]
    leaves = {i: t for i, t in enumerate(operands) if isinstance(t, Tensor)}
    cotangent = Tensor(backend.array(inputs[count]), requires_grad=True)

    def call(*xs: Tensor) -> Any:
        tracked = dict(zip(leaves, xs, strict=True))
        return op.call(F, *(tracked.get(i, a) for i, a in enumerate(operands)))

    if not getattr(call(*leaves.values()), "requires_grad", False):
        return {}
    gradients = vjp(call, *leaves.values())[1](cotangent)
    slopes = [F.sum(g * backend.array(u)) for g, u in zip(gradients, directions, strict=True)]
    slope = sum(slopes[1:], slopes[0])
    if slope.requires_grad:
        slope.backward()
    found = {("second order", f"second order by operand {i}"): _gradient(backend, t) for i, t in leaves.items()}
    return found | {("second order", "second order by the cotangent"): _gradient(backend, cotangent)}


def _by_numpy(op: Op, operands: Inputs, cotangent: Array, directions: list[Array], found: Outputs) -> Iterator[Result]:
    """The result that was found against NumPy's own function, and the gradients along a direction against differences
    of it, which are of fourth order."""
    result = found["values", "result"]
    gradients = [a for (group, _), a in found.items() if group == "gradients"]
    floats = [i for i, a in enumerate(operands) if a.dtype.kind == "f"]

    def value(h: float) -> Any:
        moved = list(operands)
        for i, u in zip(floats, directions, strict=True):
            moved[i] = np.asarray(operands[i] + h * u)
        return op.expected(*moved)

    group, now = "NumPy's functions", np.asarray(value(0))
    what = f"result {_on(operands)}, by NumPy's function"
    if now.shape != result.shape:
        yield Result(group, op.name, what, "float64", problem=f"{result.shape}, expected {now.shape}")
        return
    error = _largest(_off(result, now)) / max(FLOOR, _largest(now))
    yield Result(group, op.name, what, "float64", error, BY_DIFFERENCES)
    if gradients:
        change = 8 * (value(STEP) - value(-STEP)) - (value(2 * STEP) - value(-2 * STEP))
        slope = float(np.sum(cotangent * change)) / (12 * STEP)
        terms = [g * u for g, u in zip(gradients, directions, strict=True)]
        scale = max(FLOOR, sum(float(np.sum(np.abs(a))) for a in (*terms, cotangent * now)))
        error = abs(sum(float(np.sum(a)) for a in terms) - slope) / scale
        what = f"gradient along a direction {_on(operands)}, by differences"
        yield Result(group, op.name, what, "float64", error, BY_DIFFERENCES)


# ---- optimizers ---------------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[list[Tensor]], optim.Optimizer]] = {
    "SGD": lambda params: optim.SGD(params, 0.1),
    "SGD, weight decay": lambda params: optim.SGD(params, 0.1, weight_decay=0.1),
    "SGD, momentum": lambda params: optim.SGD(params, 0.1, momentum=0.9, weight_decay=0.1),
    "SGD, Nesterov": lambda params: optim.SGD(params, 0.1, momentum=0.9, nesterov=True),
    "Adam": lambda params: optim.Adam(params, 0.1),
    "Adam, weight decay": lambda params: optim.Adam(params, 0.1, weight_decay=0.1),
    "AdamW": lambda params: optim.AdamW(params, 0.1, weight_decay=0.1),
}
SHAPES, STEPS = ((3, 4), (5,)), 4


def _optimizer(name: str, backend: Backend, rng: np.random.Generator) -> Iterator[Result]:
    """Some steps of an optimizer with random gradients: on a GPU, its fused kernel."""
    for dtype in DTYPES:
        inputs = tuple(rng.normal(size=shape) for _ in range(1 + STEPS) for shape in SHAPES)
        yield from _held(("optimizers", name), partial(_steps, name), inputs, dtype, backend, rng)


def _steps(name: str, backend: Backend, inputs: Inputs) -> Outputs:
    params = [Tensor(backend.array(a.copy()), requires_grad=True) for a in inputs[: len(SHAPES)]]
    optimizer = OPTIMIZERS[name](params)
    for step in range(1, 1 + STEPS):
        optimizer.lr = 0.1 / step
        for i, p in enumerate(params):
            p.grad = backend.array(inputs[step * len(SHAPES) + i])
        optimizer.step()
    found = {("optimizers", f"parameter {i}"): backend.host(p.data) for i, p in enumerate(params)}
    return found | {("optimizers", f"state {kind}"): backend.host(a) for kind, a in optimizer.state.items()}


def _clipping(backend: Backend, rng: np.random.Generator) -> Iterator[Result]:
    for dtype in DTYPES:
        inputs = tuple(rng.normal(size=shape) for shape in SHAPES)
        yield from _held(("optimizers", "clip_grad_norm"), _clipped, inputs, dtype, backend, rng)


def _clipped(backend: Backend, inputs: Inputs) -> Outputs:
    params = [Tensor(backend.array(a.copy()), requires_grad=True) for a in inputs]
    for p, g in zip(params, inputs, strict=True):
        p.grad = backend.array(g.copy())
    norm = optim.clip_grad_norm(params, 1.0)
    found = {("optimizers", f"gradient {i}"): backend.host(p.grad) for i, p in enumerate(params)}
    return found | {("optimizers", "norm"): np.asarray(float(norm))}


# ---- training -----------------------------------------------------------------------------------------------------

_SHORT = Recipe(layers=(784, 64, 32, 10), batch=64, epochs=1, dropout=0.1)
RECIPES = {
    "training: Adam, one cycle, dropout": _SHORT,
    "training: SGD with momentum in float64": replace(
        _SHORT, optimizer="sgd", lr=0.1, momentum=0.9, schedule="constant", dtype="float64"
    ),
}
IMAGES = 2000, 500  # of MNIST, to train and to test


@cache
def _images() -> data.Dataset:
    x_train, y_train, x_test, y_test = data.mnist()
    train, test = IMAGES
    return x_train[:train].copy(), y_train[:train].copy(), x_test[:test].copy(), y_test[:test].copy()


def _training(name: str, backend: Backend, rng: np.random.Generator) -> Iterator[Result]:
    """An epoch from the same weights, with the same batches and masks."""
    recipe, check = RECIPES[name], ("training", name)
    here, there = (Training(recipe, _images(), device).model.flat for device in ("cpu", backend.device))
    yield _same(check, "initial weights", backend.host(there), here)
    yield from _held(check, partial(_epoch, recipe), (here,), recipe.dtype, backend, rng)


def _epoch(recipe: Recipe, backend: Backend, inputs: Inputs) -> Outputs:
    (weights,) = inputs
    training = Training(replace(recipe, dtype=str(weights.dtype)), _images(), backend.device)
    arrays.put(training.model.flat, ..., weights)
    training.run_epoch(Monitor())
    row = training.history[-1]
    found = {("training", "weights"): backend.host(training.model.flat)}
    for what in ("train loss", "test loss", "test accuracy"):
        found["training", what] = np.asarray(row[what.replace(" ", "_")])
    return found


# ---- random numbers, files, indices -------------------------------------------------------------------------------


def _random_numbers(backend: Backend, rng: np.random.Generator) -> Iterator[Result]:
    """All are drawn on the host: the same seed gives the same numbers on every device."""
    check, seed = ("random numbers", "weights, masks and batches of a seed"), int(rng.integers(2**32))
    for init in ("glorot_uniform", "he_normal"):
        here, there = (nn.MLP((30, 20, 10), init=init, rng=seed).to(device) for device in ("cpu", backend.device))
        yield _same(check, f"weights of {init}", backend.host(there.flat), here.flat)
    for dtype in DTYPES:
        ones = np.ones((50, 20), dtype)
        masks = [
            there.host(nn.dropout(Tensor(there.array(ones)), 0.3, np.random.default_rng(seed)).data) != 0
            for there in (NUMPY, backend)
        ]
        yield _same(check, f"masks of dropout, {dtype}", masks[1], masks[0])
    images, labels = _images()[2:]
    pairs = zip(
        data.batches(backend.array(images), backend.array(labels), 128, np.random.default_rng(seed)),
        data.batches(images, labels, 128, np.random.default_rng(seed)),
        strict=True,
    )
    for i, (theirs, ours) in enumerate(pairs):
        for what, a, b in zip(("images", "labels"), theirs, ours, strict=True):
            yield _same(check, f"{what} of batch {i}", backend.host(a), b)


def _files(backend: Backend, rng: np.random.Generator) -> Iterator[Result]:
    """A model file is the same wherever the model was, and goes anywhere."""
    check = "files", "save and load"
    here = nn.MLP((30, 20, 10), rng=rng)
    expected = here.flat.copy()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("here", "there")]
        serialize.save(paths[0], here)
        serialize.save(paths[1], here.to(backend.device))
        contents = [np.frombuffer(path.read_bytes(), np.uint8) for path in paths]
        yield _same(check, "bytes of the file", contents[1], contents[0])
        loaded = serialize.load(paths[1])
        yield _same(check, "weights of the model that is loaded", loaded.flat, expected)
        yield _same(check, "weights on the device again", backend.host(loaded.to(backend.device).flat), expected)


def _indices(backend: Backend, rng: np.random.Generator) -> Iterator[Result]:
    """CuPy wraps an index that is out of range, and says nothing: those that come from the host are checked there."""
    check = "indices", "an index out of range raises"
    t = Tensor(backend.array(rng.normal(size=(3, 4))))
    uses: dict[str, Callable[[], Any]] = {
        "t[[0, 3]]": lambda: t[[0, 3]],
        "t[array([-4])]": lambda: t[np.array([-4])],
        "t[:, [4]]": lambda: t[:, [4]],
        "take(t, [12])": lambda: F.take(t, [12]),
        "take(t, [3], axis=0)": lambda: F.take(t, [3], axis=0),
        "take_along_axis(t, [[4]], 1)": lambda: F.take_along_axis(t, np.full((3, 1), 4), 1),
        "a label": lambda: losses.softmax_cross_entropy(t, np.array([0, 4, 1])),
    }
    for what, use in uses.items():
        try:
            use()
        except IndexError:
            yield Result(*check, what)
        else:
            yield Result(*check, what, problem="no IndexError")
