"""Training: the loop, and what goes with it: random numbers, history, checkpoints, results.

    training = train(Recipe(epochs=2))                      # in memory: training.model, training.history
    training = train(recipe, run=Run.create(recipe))        # the same, and all results in the folder of the run
    training = train(recipe, ranks=distributed.world())     # on every process of an MPI job
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import arrays, compiled, gpu, losses, nn, ops, optim, plots
from .arrays import Array
from .core import Tensor
from .data import Dataset, Distortion, Preprocess, batches, load, mnist
from .distributed import AgreedError, Ranks
from .inference import Evaluation, evaluate, save_model
from .recipe import MNIST, Recipe
from .runs import CONFUSION, CURVES, MISTAKES, MODEL, REPORT, Row, Run, fingerprint

# ---- random numbers -----------------------------------------------------------------------------------------------


class Stream(IntEnum):
    """The uses of random numbers in a run. Each has a stream of its own, so that a change of one leaves the others."""

    SPLIT = 0
    INIT = 1
    SHUFFLE = 2
    DROPOUT = 3
    DISTORT = 4


def generator(seed: int, stream: Stream, epoch: int = 0) -> np.random.Generator:
    """The random numbers of one use in one epoch. As every epoch has its own, a checkpoint has no generator to keep."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, epoch)))


KEPT = {"gelu": 14, "silu": 4, "softplus": 4, "leaky_relu": 4}
"""Arrays of the size of its layer that an activation keeps or needs at once; others need 2 at most."""

CHUNK = 4e9
"""Operations on floats between two looks at Ctrl-C and at the progress bar: a tenth of a second, or less."""

# ---- one step -----------------------------------------------------------------------------------------------------

Step = Callable[[Array, Array], tuple[Tensor, Array]]


def _step(
    recipe: Recipe, preprocess: Preprocess, model: nn.MLP, optimizer: optim.Optimizer, ranks: Ranks | None
) -> Step:
    """One step of a training on uint8 images and their labels, as a function that runs as it is, compiled, and on a GPU
    alike. (It knows no Training: a cycle would keep the memory of one that is no longer used.)"""

    def step(images: Array, labels: Array) -> tuple[Tensor, Array]:
        """Update the parameters once; the loss before that, without the penalty, and the number of right answers: where
        there are ranks, over the batch of all of them, and the share of right answers instead of their number."""
        logits = model(preprocess(images, recipe.dtype))
        loss = total = _loss(recipe, logits, labels)
        if recipe.l2:
            squares = [ops.square(layer.weight).sum() for layer in model.layers]
            total = loss + recipe.l2 / 2 * sum(squares)
        optimizer.zero_grad()
        total.backward()
        if ranks is not None:
            right = (logits.data.argmax(axis=1) == labels).astype(recipe.dtype)
            means = ranks.average(optimizer.params, loss.data, right.mean())
        if recipe.clip:
            optim.clip_grad_norm(optimizer.params, recipe.clip)
        optimizer.step()
        if ranks is not None:
            return Tensor(means[0]), means[1]
        return loss, (logits.data.argmax(axis=1) == labels).sum()

    return step


def _loss(recipe: Recipe, logits: Tensor, labels: Array) -> Tensor:
    if recipe.loss == "cross_entropy":
        return losses.softmax_cross_entropy(logits, labels)
    return losses.mse(ops.softmax(logits), arrays.one_hot(labels, logits.data, 1).astype(logits.dtype))


# ---- the loop -----------------------------------------------------------------------------------------------------


class Monitor:
    """Is told how a training goes, and may show it. This one is silent."""

    def start(self, training: Training) -> None:
        """Before the first step. Epochs that a checkpoint brought are in `training.history`."""

    def runs(self, backend: str, reason: str) -> None:
        """Once, after the first steps: what they are run by, and why."""

    def batch(self, images: int, score: Score) -> None:
        """After one or more steps, with the number of their images. `score.read()` gives loss and accuracy of the epoch
        so far."""

    def epoch(self, row: Row) -> None:
        """After an epoch, with its row of the history; its checkpoint is written."""

    def stop(self) -> None:
        """After the last step, however it ended."""


class Labelled(NamedTuple):
    """The images of one part of a data set."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


class Score:
    """Loss and accuracy of an epoch so far, summed where the model computes, so that a GPU need not be waited for."""

    def __init__(self, like: Array, batch: int) -> None:
        self._here = arrays.device_of(like) == "cpu"
        with arrays.on_device_of(like):
            self._sums = arrays.namespace(type(like)).zeros(2, "float64")
        self._loss, self._right = self._sums[:1], self._sums[1:]
        self._batch = batch
        self.images = 0

    def add(self, images: int, losses: Array, right: Array) -> None:
        """Count a step with this many images, or several such steps: then both are arrays."""
        self.images += images * losses.size
        losses = losses * (images / self._batch)  # at most 1: a large loss stays finite in its own dtype
        # One after the other, so that the sum is the same bits however many steps come at once.
        for loss in losses.reshape(-1).tolist() if self._here else [losses.sum(dtype="float64")]:
            self._loss += loss
        self._right += right.sum()

    def read(self) -> tuple[float, float]:
        """Mean loss and accuracy. It waits for the device."""
        loss, right = arrays.to_host(self._sums).tolist()
        return loss * self._batch / self.images, right / self.images


class Training:
    """A training in progress: model, optimizer, and the history of the epochs that are done."""

    def __init__(
        self, recipe: Recipe, dataset: Dataset, device: str = "cpu", *, compile: bool = True,
        ranks: Ranks | None = None,
    ) -> None:
        if ranks is not None:
            check_ranks(recipe, dataset, ranks)
        check_data(recipe, dataset)
        self.recipe = recipe
        self.ranks = ranks
        self.device = device
        self.emulated = gpu.emulated(device)
        self.preprocess = Preprocess()
        self.distortion = _distortion(recipe)
        self.train_set, self.validation_set = _split(recipe, Labelled(*dataset[:2]))
        self.test_set = Labelled(*dataset[2:])
        self.model = nn.MLP(
            recipe.layers,
            recipe.activation,
            init=recipe.init,
            dropout=recipe.dropout,
            rng=generator(recipe.seed, Stream.INIT),
            dtype=recipe.dtype,
        ).to(device)
        parts = {"train": self.train_set, "validation": self.validation_set, "test": self.test_set}
        self._resident = self._placed({name: part for name, part in parts.items() if part})
        steps = recipe.epochs * math.ceil(len(self.train_set.images) / recipe.batch)
        self.optimizer = _optimizer(recipe, self.model.parameters(), _schedule(recipe, steps))
        self.step = _step(recipe, self.preprocess, self.model, self.optimizer, ranks)
        # With ranks, every step has a call on the host: no loop of steps can be native
        self._compiled = compiled.compile(self.step, backend="numpy" if ranks else "auto") if compile else None
        self._told = False
        self._mine = slice(None)  # of a batch, the rows that are for this process
        self.history: list[Row] = []
        self.tested: Evaluation | None = None  # on the test images, after the last epoch that ran here
        self.fingerprint = fingerprint(dataset)  # a resumed run must see the same data
        if ranks is not None:
            self.model.rng = ranks.generator(self.model.rng)

    def run_epoch(self, monitor: Monitor) -> None:
        """See every training image once, evaluate, and add a row to the history."""
        with arrays.computing_on(self.device):
            self._run_epoch(monitor)

    def _run_epoch(self, monitor: Monitor) -> None:
        recipe, epoch = self.recipe, len(self.history)
        shuffle = generator(recipe.seed, Stream.SHUFFLE, epoch)
        # Not another generator: a compiled step draws from the one that it has seen.
        self.model.rng.bit_generator.state = generator(recipe.seed, Stream.DROPOUT, epoch).bit_generator.state
        self.model.train()
        start = time.perf_counter()
        score = Score(self.model.flat, recipe.batch)
        room = self._room()
        try:
            for images, loss, right in self._steps(shuffle):
                score.add(images, loss, right)
                if self.device == "cpu":  # a GPU would be waited for: there, the sum of the epoch shows it too
                    for value in loss.reshape(-1).tolist():
                        self._check(value, "loss")
                self._tell(monitor)
                monitor.batch(images * right.size, score)
        except MemoryError as error:
            raise self._too_large(error, room) from None
        self._tell(monitor, last=epoch + 1 == recipe.epochs)
        train_loss, train_accuracy = score.read()
        seconds = time.perf_counter() - start
        self._check(train_loss, "loss")
        self.model.eval()  # between epochs, and for whoever has the trained model
        if self.ranks is not None:  # before they are looked at: all ranks see the same in them, and do the same
            self.ranks.check_same("the weights", arrays.checksum(self.model.flat))
        if not arrays.all_finite(self.model.flat):  # the last step: no loss has seen what it did
            raise self._diverged("a parameter became inf or nan")

        row: Row = {"epoch": epoch + 1, "lr": self.optimizer.lr}
        row |= {"train_loss": train_loss, "train_accuracy": train_accuracy}
        for name, part in (("validation", self.validation_set), ("test", self.test_set)):
            if part:
                try:
                    found = evaluate(self.model, self.preprocess, self._images(name, part), part.labels, self.ranks)
                except FloatingPointError as error:
                    raise self._diverged(str(error)) from None
                loss_there = float(_loss(recipe, Tensor(found.logits), found.labels))
                self._check(loss_there, f"{name} loss")
                row[f"{name}_loss"] = loss_there
                row[f"{name}_accuracy"] = found.accuracy
                self.tested = found  # the test images come last
        rate = {"seconds": seconds, "images_per_second": score.images / seconds}
        row |= dict.fromkeys(rate) if self.emulated else rate
        self.history.append(row)

    def _steps(self, rng: np.random.Generator) -> Iterator[tuple[int, Array, Array]]:
        """Do the steps of an epoch, some at a time: for these, the images of each, the losses, and the numbers of right
        answers."""
        run, distort = self._compiled, self._distort()
        try:
            if run and "train" in self._resident:
                part = self._resident["train"]
                for rows in self._chunks(rng.permutation(len(part.images))):  # the order that `batches` draws
                    batch = rows.shape[1]
                    mine = self._begin(batch)
                    loss, right = run.scan(*self._drawn(rows, distort) if distort else (part, rows[:, mine]))
                    yield batch, loss.data, self._counted(right)
            else:
                for images, labels in self._batches(rng):
                    mine = self._begin(len(labels))
                    loss, right = (run or self.step)(distort(images) if distort else images[mine], labels[mine])
                    yield len(labels), loss.data, self._counted(right)
        except FloatingPointError as error:  # of clip: the gradient is not finite
            raise self._diverged(str(error)) from None

    def _begin(self, batch: int) -> slice:
        """Before steps with this batch: which rows of it are for this process."""
        if self.ranks is not None:
            self._mine = self.ranks.begin(batch)
        return self._mine

    def _counted(self, right: Array) -> Array:
        """The number of right answers, of what a step says of them."""
        if self.ranks is None:
            return right
        with arrays.on_device_of(right):
            return arrays.namespace(type(right)).rint(right * self.ranks.batch)

    def _chunks(self, order: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """The rows of an epoch in batches, as many together as take some 0.1 s; the last batch may be short."""
        batch = self.recipe.batch
        steps, rest = divmod(len(order), batch)
        whole = order[: steps * batch].reshape(steps, batch)
        at_once = max(1, int(CHUNK / (6 * batch * self.model.flat.size)))  # a parameter takes 6 for each image
        yield from (whole[i : i + at_once] for i in range(0, steps, at_once))
        if rest:
            yield order[None, -rest:]

    def _distort(self) -> Callable[[Array], Array] | None:
        """What distorts this process's images of a batch in this epoch, if anything does: batch after batch, so that it
        makes no difference how many steps come at once."""
        distortion = self.distortion
        if distortion is None:
            return None
        rng = generator(self.recipe.seed, Stream.DISTORT, len(self.history))
        return lambda images: distortion(images, rng, self._mine)

    def _drawn(self, rows: NDArray[Any], distort: Callable[[Array], Array]) -> tuple[Labelled, NDArray[Any]]:
        """This process's images of some batches, distorted, with their labels, and the rows in which they lie now."""
        part, mine = self._resident["train"], self._mine
        images, labels = arrays.take(part, arrays.place(rows, part.images))
        for batch in images:
            batch[mine] = distort(batch)
        drawn = Labelled(images[:, mine].reshape(-1, *images.shape[2:]), labels[:, mine].reshape(-1))
        return drawn, np.arange(len(drawn.labels)).reshape(len(rows), -1)

    def _tell(self, monitor: Monitor, last: bool = False) -> None:
        """Tell the monitor what runs the steps, once that is known: the first ones run as they are, to be compiled."""
        run = self._compiled
        if self._told or (run and run.backend == "eager" and not last):
            return
        if run is None:
            backend, reason = "eager", "not compiled"
        elif run.backend == "eager":
            backend, reason = "eager", "too few to compile"
        else:
            backend = run.backend
            reason = run.reason if self.ranks is None else "each has a sum over the ranks"
        monitor.runs(backend, reason)
        self._told = True

    def _room(self) -> int:
        """Bytes for what one step allocates."""
        return 0 if self.device == "cpu" else arrays.available(self.device)

    def _too_large(self, error: MemoryError, room: int) -> MemoryError:
        """The error that says which batch size would have fitted, in an epoch that began with this much room."""
        if self.device == "cpu":
            return error
        # Of each pixel, at most: the byte, the number, and as much again that CuPy's pool loses to rounding; to distort
        # it, its place, the four around that and what they hold. Of each other unit: what its activation keeps (below),
        # product, sum with the bias, two cotangents; for dropout the mask, what it is made of, and the product. Of each
        # parameter: two gradients.
        first, *rest = self.recipe.layers
        unit = 4 + KEPT.get(self.recipe.activation, 2) + 3 * bool(self.recipe.dropout)
        pixel = 2 + 14 * self.recipe.distorts
        image = self.model.flat.itemsize * (pixel * first + unit * sum(rest))
        fits = (room - 2 * self.model.flat.nbytes) // image * (1 if self.ranks is None else self.ranks.size)
        remedy = f"a batch of {2 ** (fits.bit_length() - 1)}" if fits > 0 else "not even a batch of 1"
        if self._compiled:  # while a step is captured, it keeps all that it has computed
            remedy = f"uncompiled, {remedy}"
        asked = arrays.requested(error)
        what = str(error) if asked is None else f"out of memory on {self.device}: {arrays.size(asked)} asked for"
        return MemoryError(
            f"{what}; a step with batch {self.recipe.batch} had {arrays.size(room)} at hand: {remedy} would fit"
        )

    def _placed(self, parts: dict[str, Labelled]) -> dict[str, Labelled]:
        """The parts on the device of the model, where they take no more than half of its memory."""
        size = sum(array.nbytes for part in parts.values() for array in part)
        if self.device != "cpu" and size > arrays.available(self.device) / 2:
            return {}
        return {name: Labelled(*(arrays.move(a, self.device) for a in part)) for name, part in parts.items()}

    def _batches(self, rng: np.random.Generator) -> Iterator[tuple[Array, ...]]:
        """The training images on the device of the model, in the order that `rng` draws."""
        if "train" in self._resident:
            return batches(*self._resident["train"], self.recipe.batch, rng)
        return arrays.uploads(batches(*self.train_set, self.recipe.batch, rng), self.model.flat)

    def _images(self, name: str, part: Labelled) -> Array:
        return self._resident.get(name, part).images

    def _check(self, loss: float, what: str) -> None:
        if not math.isfinite(loss):
            raise self._diverged(f"the {what} became {loss:.4g}")

    def _diverged(self, what: str) -> FloatingPointError:
        """The error that says what is no longer finite, and which options of the recipe may be why."""
        causes = " or ".join(["lr", *(name for name in ("l2", "weight_decay") if getattr(self.recipe, name))])
        remedy = f"lower {causes}" if self.recipe.clip else f"lower {causes}, or set clip"
        return FloatingPointError(f"{what} in epoch {len(self.history) + 1}: {remedy}")

    def state(self) -> dict[str, NDArray[Any]]:
        """The arrays from which `restore` goes on bit for bit."""
        return {
            f"{part}.{name}": np.asarray(value)
            for part in ("model", "optimizer")
            for name, value in getattr(self, part).state_dict().items()
        }

    def restore(self, state: dict[str, NDArray[Any]], history: list[Row]) -> None:
        """Go on from the `state()` and the history that were after some epoch."""
        for part in ("model", "optimizer"):
            prefix = f"{part}."
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            getattr(self, part).load_state_dict(own)
        self.history = history


def train(
    recipe: Recipe, dataset: Dataset | None = None, *, run: Run | None = None, monitor: Monitor | None = None,
    device: str = "cpu", compile: bool = True, ranks: Ranks | None = None,
) -> Training:
    """Train as `recipe` says. With a `run`, go on from its checkpoint, if it has one, and leave the results in it.

    With `ranks`, every process of a job calls this: each takes its rows of every batch, of which `batch` is still the
    size, and rank 0 alone has a `run` or a `monitor`. The weights are those that one process gets, up to rounding.

    `compile=False` runs each step as it is written. Without numba, that gives the same bits as a compiled one.

    On a GPU (`device="gpu"` or `"gpu:1"`) the data set lies there as a whole if it takes at most half of the memory
    that is free, else its batches are copied there while the GPU computes. Random numbers are those of the CPU.

    Ctrl-C drops the epoch that it interrupts, saves the results of the epochs before it, and goes on its way. So does
    the FloatingPointError that is raised when a loss or a parameter is no longer finite.
    """
    if run and run.recipe != recipe:
        raise ValueError(f"the recipe is not that of the run in {run.path}: give train(run.recipe, run=run)")
    dataset = dataset or load_data(recipe.data)
    try:
        training = _restored(recipe, dataset, run, device, compile, ranks)
        _run_epochs(training, run, monitor or Monitor())
    except KeyboardInterrupt:
        _save_whole_epochs(run, recipe, dataset)
        raise
    except FloatingPointError as error:
        done = _save_whole_epochs(run, recipe, dataset)
        if not done:
            raise
        before = "epoch 1 are" if done == 1 else f"epochs 1 to {done} are"
        raise FloatingPointError(f"{error}; the results of {before} saved") from None
    if run:
        save_results(run, training)
    return training


def _save_whole_epochs(run: Run | None, recipe: Recipe, dataset: Dataset) -> int:
    """Save the results of the epochs in the run's checkpoint; how many these are."""
    if not run:
        return 0
    training = _restored(recipe, dataset, run)
    if training.history:
        save_results(run, training)
    return len(training.history)


def _run_epochs(training: Training, run: Run | None, monitor: Monitor) -> None:
    monitor.start(training)
    try:
        while len(training.history) < training.recipe.epochs:
            with np.errstate(all="ignore"):  # the checks of what is finite say it better
                training.run_epoch(monitor)
            if run:
                run.save_checkpoint(training.state(), training.history, training.fingerprint)
            monitor.epoch(training.history[-1])
    finally:
        monitor.stop()


def _restored(
    recipe: Recipe, dataset: Dataset, run: Run | None, device: str = "cpu", compile: bool = True,
    ranks: Ranks | None = None,
) -> Training:
    """A training as the run's checkpoint has it, or else at its beginning."""
    training = Training(recipe, dataset, device, compile=compile, ranks=ranks)

    def checkpoint() -> tuple[dict[str, NDArray[Any]], list[Row]] | None:
        return run.load_checkpoint(training.fingerprint) if run else None

    if found := checkpoint() if ranks is None else ranks.first(checkpoint):
        training.restore(*found)
        if run:
            run.save_history(training.history)
    return training


# ---- results ------------------------------------------------------------------------------------------------------


def save_results(run: Run, training: Training) -> None:
    """The model, its report on the test images, and the pictures."""
    save_model(run.path / MODEL, training.model, training.preprocess)
    found = training.tested or evaluate(training.model, training.preprocess, *training.test_set)
    report = {"epochs": len(training.history), **found.report()}
    run.write(REPORT, json.dumps(report, indent=1, allow_nan=False).encode())
    run.write(CURVES, plots.curves(training.history))
    run.write(CONFUSION, plots.confusion(found.confusion))
    run.write(MISTAKES, plots.mistakes(training.test_set.images, found.labels, found.probabilities))


# ---- from a recipe ------------------------------------------------------------------------------------------------


def load_data(name: str) -> Dataset:
    """The data set that a recipe's option `data` names."""
    return mnist() if name == MNIST else load(name)


def check_data(recipe: Recipe, dataset: Dataset) -> None:
    """Raise ValueError, in one line, if `recipe` does not fit the data."""
    _, height, width = dataset[0].shape
    if recipe.layers[0] != height * width:
        raise ValueError(
            f"layers must begin with {height * width}, for images of {height} x {width}; got {recipe.layers[0]}"
        )
    classes = 1 + max(int(labels.max()) for labels in dataset[1::2])
    if recipe.layers[-1] < classes:
        raise ValueError(
            f"layers must end with {classes} or more, for labels up to {classes - 1}; got {recipe.layers[-1]}"
        )
    if recipe.validation and not 0 < _held_out(recipe, dataset[0]) < len(dataset[0]):
        raise ValueError(f"validation = {recipe.validation} of {len(dataset[0])} images leaves one side empty")


def check_ranks(recipe: Recipe, dataset: Dataset, ranks: Ranks) -> None:
    """Raise AgreedError, in one line, where ranks do not have the same to do, or cannot share it."""
    ranks.check_same("the recipes", recipe.to_toml())
    ranks.check_same("the data", fingerprint(dataset))
    if recipe.batch % ranks.size:
        below = recipe.batch // ranks.size * ranks.size
        near = " or ".join(str(n) for n in (below, below + ranks.size) if n)
        raise AgreedError(f"batch {recipe.batch} cannot be shared evenly by {ranks.size} ranks: take {near}")
    held = _held_out(recipe, dataset[0])
    images = len(dataset[0]) - held
    if 0 < (last := images % recipe.batch) < ranks.size:
        raise AgreedError(
            f"of {images} images in batches of {recipe.batch}, the last has {last}, fewer than {ranks.size} ranks: "
            "take another batch"
        )
    for name, n in (("validation", held), ("test", len(dataset[2]))):
        if 0 < n < ranks.size:
            raise AgreedError(f"{n} {name} images are fewer than {ranks.size} ranks: start fewer")


def _held_out(recipe: Recipe, images: NDArray[np.uint8]) -> int:
    return round(recipe.validation * len(images))


def _split(recipe: Recipe, data: Labelled) -> tuple[Labelled, Labelled | None]:
    """The images to train on, and those held out for validation."""
    if not recipe.validation:
        return data, None
    held = _held_out(recipe, data.images)
    order = generator(recipe.seed, Stream.SPLIT).permutation(len(data.images))
    first, rest = (Labelled(*(array[rows] for array in data)) for rows in (order[:held], order[held:]))
    return rest, first


def _distortion(recipe: Recipe) -> Distortion | None:
    """The distortions of a recipe, or None where it asks for none."""
    if not recipe.distorts:
        return None
    return Distortion(**{option.name: getattr(recipe, option.name) for option in fields(Distortion)})


def _optimizer(recipe: Recipe, params: list[Tensor], lr: optim.Schedule) -> optim.Optimizer:
    if recipe.optimizer == "sgd":
        return optim.SGD(params, lr, recipe.momentum, recipe.nesterov, recipe.weight_decay)
    kind = {"adam": optim.Adam, "adamw": optim.AdamW}[recipe.optimizer]
    return kind(params, lr, weight_decay=recipe.weight_decay)


def _schedule(recipe: Recipe, steps: int) -> optim.Schedule:
    if recipe.schedule == "constant":
        return optim.constant(recipe.lr)
    if recipe.schedule == "cosine":
        return optim.cosine(recipe.lr, steps)
    return optim.one_cycle(recipe.lr, steps)
