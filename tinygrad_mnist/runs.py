"""The folder of a training run. Whatever ends the process at whatever moment, what lies in the folder is whole.

    config.toml              the recipe: reproduces the run
    checkpoint.safetensors   parameters, optimizer state and history after the last whole epoch
    metrics.csv, .jsonl      the history again, one row for each epoch
    model.safetensors        weights, architecture, preprocessing, versions        (this and the rest: at the end)
    report.json              loss, accuracy, precision, recall and F1 of each class, confusion matrix
    curves.png, confusion.png, mistakes.png
"""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count, pairwise
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from . import serialize
from .recipe import CONFIG as CONFIG
from .recipe import LARGEST, Recipe

Row = dict[str, Any]  # numbers, by name; None for the times of an emulated device
"""What is known of one epoch: {"epoch": 1, "train_loss": 0.4, ...}; every row of a run has the same keys."""

COLUMNS = ("epoch", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
"""What a row has at least."""

CHECKPOINT = "checkpoint.safetensors"
MODEL = "model.safetensors"
REPORT = "report.json"
CURVES, CONFUSION, MISTAKES = "curves.png", "confusion.png", "mistakes.png"


class Run:
    """A run folder: `Run.create` makes a new one, `Run.open` finds one again. While a Run lives, no other process can
    have the folder."""

    def __init__(self, path: Path, recipe: Recipe, lock: _Lock | None = None) -> None:
        self.path = path
        self.recipe = recipe
        self._lock = lock

    @classmethod
    def create(cls, recipe: Recipe, path: str | os.PathLike[str] | None = None) -> Run:
        """A new folder at `path`, by default `runs/<date>-<time>`. It appears with the config in it, or not at all.

        Raises OSError, in one line, if it cannot be made, is not empty, or the disk has no room for the run.
        """
        if path is not None:
            if not os.fspath(path):
                raise ValueError("the folder of a run needs a name, not ''")
            return cls._made(recipe, Path(path))
        names = unused(Path("runs"))
        while True:
            with suppress(FileExistsError):  # a run that started in the same second was faster
                return cls._made(recipe, next(names))

    @classmethod
    def _made(cls, recipe: Recipe, target: Path) -> Run:
        there = os.path.lexists(target)
        if there:
            _check_empty(target)
        above = target if there else next(parent for parent in target.parents if os.path.lexists(parent))
        if not above.is_dir():
            raise NotADirectoryError(f"{target} cannot be made: {above} is not a folder")
        needed, free = _bytes_needed(recipe), shutil.disk_usage(above).free
        if free < needed:  # rounded apart, so that the numbers differ
            raise OSError(f"{target}: the run needs about {-(-needed >> 20)} MB, and {free >> 20} MB are free")
        config = recipe.to_toml().encode()
        if there:  # it may be a link, or the current folder: it stays
            lock = _lock(target)
            _check_empty(target)
            serialize.write(target / CONFIG, config)
            return cls(target, recipe, lock)
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.parent / f".{secrets.token_hex(8)}.part"
        draft.mkdir()
        try:
            serialize.write(draft / CONFIG, config)
            lock = _lock(draft)
            try:
                draft.rename(target)
            except OSError:
                if target.exists():  # since the check
                    _check_empty(target)
                raise
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return cls(target, recipe, lock)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """The run in the folder `path`. BlockingIOError if another process has it."""
        path = Path(path)
        if not (path / CONFIG).is_file():
            raise FileNotFoundError(f"{path} is no run folder: it has no {CONFIG}")
        lock = _lock(path)
        for part in path.glob(".*.part"):  # of writes that were killed
            with suppress(OSError):
                part.unlink()
        return cls(path, Recipe.read(path / CONFIG), lock)

    def write(self, name: str, content: bytes) -> None:
        """Write one file, whole or not at all."""
        serialize.write(self.path / name, content)

    def save_checkpoint(self, state: Mapping[str, Any], history: Sequence[Row], data: str = "") -> None:
        """Record the arrays and the history after an epoch in one file, then the history in readable form. `data` is
        the `fingerprint` of the data set."""
        notes = {"recipe": self.recipe.to_toml(), "history": json.dumps(history), "data": data}
        serialize.save(self.path / CHECKPOINT, state, metadata=notes)
        self.save_history(history)

    def load_checkpoint(self, data: str = "") -> tuple[dict[str, Any], list[Row]] | None:
        """(arrays, history) of the last whole epoch, or None if there was none yet. ValueError, in one line, if the
        file is damaged, or the recipe or the data, by its `fingerprint`, was changed since."""
        path = self.path / CHECKPOINT
        if not os.path.lexists(path):
            return None
        notes = serialize.metadata(path)
        try:
            recipe, history = Recipe.from_toml(notes["recipe"]), json.loads(notes["history"])
        except KeyError as error:
            raise ValueError(f"{path}: not a checkpoint: it has no {error.args[0]}") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: a damaged checkpoint: {error!s:.300}") from None
        if recipe != self.recipe:
            raise ValueError(
                f"{self.path / CONFIG} was changed since {CHECKPOINT} was written, so the run cannot go on: "
                "undo the change, or start a new run with --config"
            )
        if data and notes.get("data") and data != notes["data"]:
            raise ValueError(
                f"{self.recipe.data} was changed since {path} was written, so the run cannot go on: "
                "undo the change, or start a new run with --config"
            )
        state = serialize.load(path)
        if problem := _problem(recipe, state, history):
            raise ValueError(f"{path}: a damaged checkpoint: {problem}")
        return state, history

    def save_history(self, history: Sequence[Row]) -> None:
        """Write metrics.csv and metrics.jsonl anew, so that they hold what the checkpoint holds."""
        table = io.StringIO()
        writer = csv.DictWriter(table, history[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        self.write("metrics.csv", table.getvalue().encode())
        self.write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history).encode())


def fingerprint(dataset: Iterable[NDArray[Any]]) -> str:
    """By which a run knows its data set again: of all its bytes, in some 20 ms for MNIST. No protection from intent."""
    return " ".join(f"{array.shape}{zlib.crc32(np.ascontiguousarray(array).data):08x}" for array in dataset)


def unused(folder: Path) -> Iterator[Path]:
    """Names for a run that starts now."""
    name = time.strftime("%Y%m%d-%H%M%S")
    names = (name if i == 1 else f"{name}-{i}" for i in count(1))
    return (folder / name for name in names if not os.path.lexists(folder / name))


def _check_empty(folder: Path) -> None:
    if not folder.is_dir() or any(folder.iterdir()):
        raise FileExistsError(f"{folder} exists: choose another folder, or go on with the run in it by --resume")


class _Lock:
    """Keeps other processes from a folder while it lives, and no longer than this process does."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone when Python ends
        close(self._descriptor)


_locks: WeakValueDictionary[tuple[int, int], _Lock] = WeakValueDictionary()
"""Of this process, by device and number of the folder: in one process, several Runs may share it."""


def _lock(folder: Path) -> _Lock | None:
    """The lock of a folder, or None on a system that has no such thing. BlockingIOError if another process holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    about = folder.stat()
    key = about.st_dev, about.st_ino
    if (lock := _locks.get(key)) is None:
        lock = _Lock(os.open(folder, os.O_RDONLY))
        try:
            fcntl.flock(lock._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{folder}: another process is at work on this run") from None
        except OSError:  # a file system without locks
            return None
        _locks[key] = lock
    return lock


def _problem(recipe: Recipe, state: Any, history: Any) -> str | None:
    """What keeps a run from going on from this state and history, or None."""
    if not isinstance(history, list) or not 1 <= len(history) <= recipe.epochs:
        return f"its history is no list of 1 to {recipe.epochs} epochs"
    for epoch, row in enumerate(history, 1):
        if not isinstance(row, dict) or row.get("epoch") != epoch or row.keys() != history[0].keys():
            return f"row {epoch} of its history is no record of epoch {epoch}"
        if missing := [name for name in COLUMNS if name not in row]:
            return f"row {epoch} of its history has no {missing[0]}"
        if not all(type(value) in (int, float) and abs(value) <= LARGEST for value in row.values()):
            return f"row {epoch} of its history holds what is no finite number"
    if not isinstance(state, dict):
        return "it holds a model"
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (n_in, n_out) in enumerate(pairwise(recipe.layers)):
        shapes |= {f"model.layers.{i}.weight": (n_in, n_out), f"model.layers.{i}.bias": (n_out,)}
    parameters = sum(n_in * n_out + n_out for n_in, n_out in pairwise(recipe.layers))
    moments = ("m", "v") if recipe.optimizer != "sgd" else ("velocity",) if recipe.momentum else ()
    shapes |= {f"optimizer.{name}": (parameters,) for name in moments}
    kinds = dict.fromkeys(shapes, recipe.dtype) | {"optimizer.steps": "int64", "optimizer.lr": "float64"}
    for name, kind in kinds.items():
        shape, array = shapes.get(name, ()), state.get(name)
        if array is None:
            return f"{name} is missing"
        if array.shape != shape or array.dtype != kind:
            return f"{name} is {array.dtype} {array.shape}, not {kind} {shape}"
    if unknown := sorted(state.keys() - kinds.keys()):
        return f"it holds {unknown[0]!r:.80}, which is no part of this run"
    if not state["optimizer.steps"] >= 1:
        return f"optimizer.steps is {state['optimizer.steps']}"
    if not 0 <= state["optimizer.lr"] < float("inf"):
        return f"optimizer.lr is {state['optimizer.lr']}"
    return None


def _bytes_needed(recipe: Recipe) -> int:
    """Model and two checkpoints (the old one goes when the new one is whole), each with weights and up to two moments,
    and 4 MB for all else."""
    parameters = sum((n_in + 1) * n_out for n_in, n_out in pairwise(recipe.layers))
    return 7 * parameters * int(recipe.dtype.removeprefix("float")) // 8 + (4 << 20)
