"""What the notebooks' trainings share: data, the loop, the report line by line, and times taken in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import arrays, compile, data, gpu, metrics, no_grad, optim, plots
from ..bench import measure, report
from ..bench.works import Work
from ..core import Tensor
from ..runs import Row

Array = NDArray[Any]
Weights = Mapping[str, Array]
FEW = 32
"""Images are enough to audit a gradient on."""
ROUNDS = 5
"""Samples of each time; of a quick run 1."""
TICKS = 20
"""A training is evaluated and shown so many times."""

# ---- data ---------------------------------------------------------------------------------------------------------


class Images(NamedTuple):
    """Images as rows of pixels from 0 to 1, one-hot labels, and labels; and those to test on."""

    x: Array
    y: Array
    labels: Array
    x_test: Array
    labels_test: Array


def mnist(count: int = 60_000, tests: int = 10_000, dtype: str = "float64") -> Images:
    """The first images of MNIST."""
    x, labels, x_test, labels_test = data.mnist()
    x, labels, x_test, labels_test = x[:count], labels[:count], x_test[:tests], labels_test[:tests]
    scale = data.Preprocess()
    return Images(scale(x, dtype), np.eye(10, dtype=dtype)[labels], labels, scale(x_test, dtype), labels_test)


def accuracy(scores: Array, labels: Array, axis: int = 0) -> float:
    """The share of samples whose label has the highest score; classes lie along `axis`."""
    return float(np.mean(np.argmax(scores, axis=axis) == labels))


# ---- the loop -----------------------------------------------------------------------------------------------------


class Loop:
    """A training: named weights, and a step that is compiled.

    `samples`: arrays with a sample in each row; with `columns`, a step gets them transposed. `by_hand`: the notebook's
    own `backward`, whose result takes the place of the derived gradient. `watch`: what else is to be known of a step, a
    function like `loss`.
    """

    def __init__(
        self, loss: Callable[..., Any], weights: Weights, samples: Sequence[Array], rate: float, *,
        by_hand: Callable[..., Mapping[str, Any]] | None = None, optimizer: Callable[..., optim.Optimizer] = optim.SGD,
        watch: Callable[..., Any] | None = None, columns: bool = False, device: str = "cpu",
    ) -> None:
        self.samples = [arrays.move(a, device) for a in samples]
        self.seconds = 0.0
        self._weights = {
            name: Tensor(np.array(W), requires_grad=True, name=name, device=device) for name, W in weights.items()
        }
        self._device = device
        tensors = list(self._weights.values())
        descent = optimizer(tensors, rate)

        def step(*batch: Any) -> Any:
            batch = tuple(a.T for a in batch) if columns else batch
            value = loss(*tensors, *batch)
            descent.zero_grad()
            if by_hand is None:
                value.backward()
            else:
                with no_grad():
                    gradients = by_hand(*tensors, *batch)
                    for name, W in self._weights.items():
                        W.grad = gradients[name]
            with no_grad():
                seen = watch(*tensors, *batch) if watch else None
            descent.step()
            return (value, seen) if watch else value

        self.step = step
        self.compiled = compile(step)

    def run(self, order: Array) -> Any:
        """A step for each row of `order`, as one compiled scan; the losses before them, and what `watch` saw."""
        start = time.perf_counter()
        with arrays.computing_on(self._device), np.errstate(all="ignore"):
            found = self.compiled.scan(self.samples, order)
            values = [arrays.to_host(a.data) for a in (found if isinstance(found, tuple) else [found])]
        self.seconds += time.perf_counter() - start
        return values if isinstance(found, tuple) else values[0]

    def eager(self, order: Array) -> None:
        """The same, without a program: every operation is recorded."""
        with arrays.computing_on(self._device):
            for rows in order:
                self.step(*(a[rows] for a in self.samples))

    @property
    def weights(self) -> dict[str, Array]:
        """As they are now, on the host."""
        return {name: W.numpy() for name, W in self._weights.items()}


def own_loop(
    backward: Callable[..., Mapping[str, Array]], weights: Weights, samples: Sequence[Array], rate: float, *,
    columns: bool = True,
) -> Callable[[Array], Weights]:
    """The notebook's own training: plain NumPy, and the gradient that it derived by hand. A function that does a step
    for each row of an order, as `Loop.run`, and returns the weights."""
    current = dict(weights)

    def run(order: Array) -> Weights:
        for rows in order:
            batch = [a[rows] for a in samples]
            gradients = backward(*current.values(), *(a.T for a in batch) if columns else batch)
            for name in current:
                current[name] = current[name] - rate * gradients[name]
        return current

    return run


# ---- times --------------------------------------------------------------------------------------------------------


def sample(run: Callable[[Array], Any], order: Array) -> Callable[[], float]:
    """A function that takes the time of one step."""

    def seconds() -> float:
        start = time.perf_counter()
        run(order)
        return (time.perf_counter() - start) / len(order)

    return seconds


def spread(values: Sequence[float]) -> str:
    return f"{min(values):.5g} to {max(values):.5g} for {len(values)} seed{'s' * (len(values) > 1)}"


def _sampled(worker: measure.Worker) -> float:
    seconds: float = worker.ask("sample")["seconds"]
    return seconds


# ---- the report ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A figure that the notebook reported, beside ours."""

    what: str
    reported: str
    ours: str
    ratio: str
    note: str = ""


@dataclass
class Session:
    """A run of a notebook: what it is asked for, and what it has found so far."""

    quick: bool
    device: str
    seed: int
    say: Callable[[str], None] = lambda text: None
    show: Callable[[Line | str], None] = lambda line: None
    lines: list[Line] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    history: dict[str, list[Row]] = field(default_factory=dict)
    tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)

    def length(self, full: int, quick: int) -> int:
        """How long something is to be."""
        return quick if self.quick else full

    def epochs(self, count: int, title: str) -> Iterator[tuple[int, bool]]:
        """(epoch, whether to look at it) for the epochs 1 to `count`, shown as they begin."""
        for epoch in range(1, count + 1):
            look = epoch * TICKS // count > (epoch - 1) * TICKS // count
            if look:
                self.say(f"{title}: {epoch} of {count}")
            yield epoch, look

    def row(self, title: str, epoch: int, **figures: float) -> None:
        """What is known of an epoch of one training."""
        self.history.setdefault(title, []).append(
            {"epoch": epoch, **{name: float(value) for name, value in figures.items()}}
        )

    def figure(self, what: str, reported: float | str | None, ours: float | str, note: str = "") -> None:
        """A line. Numbers are compared by their ratio, texts by whether they are the same."""
        ratio = ""
        if isinstance(reported, str):
            ratio = "same" if reported == ours else "differs"
        elif reported is not None and not isinstance(ours, str):
            ratio = f"{ours / reported:.3g}"
        self._line(Line(what, "-" if reported is None else _text(reported), _text(ours), ratio, note))

    def remark(self, text: str) -> None:
        """A sentence on what the figures say."""
        self.remarks.append(text)
        self.show(text)

    def seconds(self, what: str, reported: float | None, ours: float) -> None:
        """A duration against the reported one; none where no time counts."""
        if self.timed:
            ratio = "" if reported is None else f"{reported / ours:.3g} x"
            self._line(Line(what, "-" if reported is None else report.seconds(reported), report.seconds(ours), ratio))

    def faster(self, what: str, theirs: float, ours: float, aim: float | None = None) -> None:
        """Two times that were taken in turns in this run."""
        note = "" if aim is None else f"asked for: {aim:g}"
        self._line(Line(what, report.seconds(theirs), report.seconds(ours), f"{theirs / ours:.3g} x", note))

    @property
    def timed(self) -> bool:
        """Whether times say something here."""
        return not gpu.emulated(self.device)

    def in_turns(self, ours: Mapping[str, Callable[[], float]], work: Work | None = None) -> dict[str, float]:
        """Medians of times that are taken in turns, after two calls that do not count: there, programs are compiled.
        Among them are those of PyTorch at the same `work`, where that is given."""
        with self.pytorch(work) as peers:
            samples = {**ours, **peers}
            self.say("times")
            for take in samples.values():
                take()
                take()
            taken: dict[str, list[float]] = {name: [] for name in samples}
            for _ in range(self.length(ROUNDS, 1)):
                for name, take in samples.items():
                    time.sleep(self.length(1, 0) * measure.PAUSE)
                    taken[name].append(take())
        self.remark("Times, taken in turns in this run: theirs, ours, and how many times faster ours is.")
        return {name: statistics.median(values) for name, values in taken.items()}

    def compare(self, title: str, labels: Array, scores: Array, axis: int = 0) -> None:
        """Precision and recall of each class on the test images, and the confusion matrix, of one training."""
        counts = metrics.confusion(labels, np.argmax(scores, axis=axis), 10)
        self.tests[title] = metrics.report(counts)
        self.pictures[picture("confusion", title)] = plots.confusion(counts)

    @contextmanager
    def pytorch(self, work: Work | None) -> Iterator[dict[str, Callable[[], float]]]:
        """Samples of PyTorch eager at the same work, for each number of threads, each in a process of its own; none
        without a work, in a quick run, or where it is not installed."""
        found: dict[str, Callable[[], float]] = {}
        if work is None or self.quick or not self.timed:
            yield found
            return
        with ExitStack() as stack:
            for threads in measure.THREADS:
                worker = stack.enter_context(measure.Worker("torch eager", threads))
                try:
                    worker.ask("make", work=asdict(work), budget=1.0)
                except measure.ToolError as error:
                    self.remark(f"No comparison with PyTorch: {error}")
                    break
                found[f"PyTorch eager, {threads} threads"] = partial(_sampled, worker)
            yield found

    def against_pytorch(self, what: str, times: Mapping[str, float], ours: float, aim: float) -> None:
        """The line for the better of the numbers of threads, where PyTorch was timed."""
        theirs = {name: seconds for name, seconds in times.items() if name.startswith("PyTorch")}
        if theirs:
            best = min(theirs, key=lambda name: theirs[name])
            self.faster(f"{what}: {best}", theirs[best], ours, aim)

    def draw(self) -> None:
        """The curves of each training, among the pictures."""
        for title, rows in self.history.items():
            self.pictures[picture("curves", title)] = plots.curves(rows)

    def result(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "lines": [asdict(line) for line in self.lines],
            "remarks": self.remarks,
            "history": self.history,
            "tests": self.tests,
        }

    def _line(self, line: Line) -> None:
        self.lines.append(line)
        self.show(line)


def picture(kind: str, title: str) -> str:
    """The name of the file for a training."""
    return f"{'-'.join([kind, *title.replace(',', '').split()])}.png"


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
