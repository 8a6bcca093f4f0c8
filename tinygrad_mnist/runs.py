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
import shutil
import time
from collections.abc import Mapping, Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from . import serialize
from .recipe import Recipe

Row = dict[str, float]
"""What is known of one epoch: {"epoch": 1, "train_loss": 0.4, ...}; every row of a run has the same keys."""

CONFIG = "config.toml"
CHECKPOINT = "checkpoint.safetensors"
MODEL = "model.safetensors"
REPORT = "report.json"
CURVES, CONFUSION, MISTAKES = "curves.png", "confusion.png", "mistakes.png"


class Run:
    """A run folder: `Run.create` makes a new one, `Run.open` finds one again."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path = path
        self.recipe = recipe

    @classmethod
    def create(cls, recipe: Recipe, path: str | os.PathLike[str] | None = None) -> Run:
        """A new folder at `path`, by default `runs/<date>-<time>`. It appears with the config in it, or not at all.

        Raises OSError, in one line, if it cannot be made, is not empty, or the disk has no room for the run.
        """
        target = _unused(Path("runs")) if path is None else Path(path)
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise FileExistsError(f"{target} exists: choose another folder, or go on with the run in it by --resume")
        target.parent.mkdir(parents=True, exist_ok=True)
        needed, free = _bytes_needed(recipe), shutil.disk_usage(target.parent).free
        if free < needed:
            raise OSError(f"{target}: the run needs about {needed >> 20} MB, and {free >> 20} MB are free")
        draft = target.with_name(f".{target.name}.{os.getpid()}.part")
        draft.mkdir()
        try:
            serialize.write(draft / CONFIG, recipe.to_toml().encode())
            if target.exists():
                target.rmdir()  # empty; Windows does not replace it
            draft.rename(target)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return cls(target, recipe)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """The run in the folder `path`."""
        path = Path(path)
        if not (path / CONFIG).is_file():
            raise FileNotFoundError(f"{path} is no run folder: it has no {CONFIG}")
        return cls(path, Recipe.read(path / CONFIG))

    def write(self, name: str, content: bytes) -> None:
        """Write one file, whole or not at all."""
        serialize.write(self.path / name, content)

    def save_checkpoint(self, state: Mapping[str, Any], history: Sequence[Row]) -> None:
        """Record the arrays and the history after an epoch in one file, then the history in readable form."""
        notes = {"recipe": self.recipe.to_toml(), "history": json.dumps(history)}
        serialize.save(self.path / CHECKPOINT, state, metadata=notes)
        self.save_history(history)

    def load_checkpoint(self) -> tuple[dict[str, Any], list[Row]] | None:
        """(arrays, history) of the last whole epoch, or None if there was none yet."""
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        notes = serialize.metadata(path)
        if Recipe.from_toml(notes["recipe"]) != self.recipe:
            raise ValueError(
                f"{self.path / CONFIG} was changed since {CHECKPOINT} was written, so the run cannot go on: "
                "undo the change, or start a new run with --config"
            )
        return serialize.load(path), json.loads(notes["history"])

    def save_history(self, history: Sequence[Row]) -> None:
        """Write metrics.csv and metrics.jsonl anew, so that they hold what the checkpoint holds."""
        table = io.StringIO()
        writer = csv.DictWriter(table, history[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        self.write("metrics.csv", table.getvalue().encode())
        self.write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history).encode())


def _unused(folder: Path) -> Path:
    """A name for a run that starts now."""
    name = time.strftime("%Y%m%d-%H%M%S")
    names = (name if i == 1 else f"{name}-{i}" for i in count(1))
    return next(folder / name for name in names if not (folder / name).exists())


def _bytes_needed(recipe: Recipe) -> int:
    """Model and two checkpoints (the old one goes when the new one is whole), each with weights and up to two moments,
    and 4 MB for all else."""
    parameters = sum((n_in + 1) * n_out for n_in, n_out in pairwise(recipe.layers))
    return 7 * parameters * int(recipe.dtype.removeprefix("float")) // 8 + (4 << 20)
