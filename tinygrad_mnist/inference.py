"""A trained model in use: what it says to images, what that is worth, and its file, which keeps the preprocessing."""

from __future__ import annotations

import json
import os
import platform
import shlex
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import arrays, losses, metrics, nn, ops, serialize
from .core import Tensor
from .data import Preprocess
from .distributed import Ranks
from .modes import no_grad
from .runs import CONFIG, MODEL

BATCH = 1000
"""Images at once, where no gradient is needed: enough to keep the BLAS busy."""


@dataclass(frozen=True)
class Evaluation:
    """What a model says to labelled images, and what that is worth."""

    labels: NDArray[Any]
    logits: NDArray[Any]

    @property
    def accuracy(self) -> float:
        """The share of images whose label has the highest logit."""
        return float(np.mean(self.logits.argmax(axis=1) == self.labels))

    @property
    def probabilities(self) -> NDArray[Any]:
        """One row for each image, one column for each class."""
        return probabilities(self.logits)

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Counts: row = label, column = predicted class."""
        return metrics.confusion(self.labels, self.logits.argmax(axis=1), self.logits.shape[1])

    def report(self) -> dict[str, Any]:
        """Cross-entropy, accuracy, precision, recall and F1 of each class, confusion matrix: as JSON can hold them."""
        # In float64: a sum over all images of large float32 losses, each of them finite, may overflow.
        cross_entropy = losses.softmax_cross_entropy(Tensor(self.logits.astype(np.float64)), self.labels)
        return {"cross_entropy": float(cross_entropy), **metrics.report(self.confusion)}


def probabilities(logits: NDArray[Any]) -> NDArray[Any]:
    """The softmax of each row."""
    with np.errstate(over="ignore"):  # logits may lie so far apart that their difference is inf: then one has all
        return ops.softmax(Tensor(logits)).numpy()


@no_grad()
def predict(
    model: nn.MLP, preprocess: Preprocess, images: NDArray[np.uint8], ranks: Ranks | None = None
) -> NDArray[Any]:
    """Logits `(n, classes)` on the host for uint8 images `(n, height, width)`, on the host or the device of the model.
    Without dropout. `ranks`: each computes its part, and all get all of it.

    FloatingPointError if one is inf or nan: there is no class to read from that.
    """
    _, height, width = images.shape
    if height * width != model.sizes[0]:
        raise ValueError(f"the model takes images of {model.sizes[0]} pixels, not of {height} x {width}")
    if ranks is not None:
        images = images[ranks.begin(len(images))]
    weight, training = model.layers[0].weight, model.training
    parts = (arrays.place(images[i : i + BATCH], weight.data) for i in range(0, len(images), BATCH))
    model.eval()
    try:
        with np.errstate(all="ignore"), arrays.on_device_of(weight.data):  # the check below says what is wrong better
            rows = [model(preprocess(part, weight.dtype)).data for part in parts]
            logits = arrays.to_host(arrays.namespace(type(weight.data)).concatenate(rows))
    finally:
        model.train(training)
    if ranks is not None:
        logits = ranks.joined(logits)
    if not np.isfinite(logits).all():
        raise FloatingPointError("the output of the model became inf or nan")
    return logits


def evaluate(
    model: nn.MLP, preprocess: Preprocess, images: NDArray[np.uint8], labels: NDArray[Any], ranks: Ranks | None = None
) -> Evaluation:
    """What `model` says to `images`, beside their labels. `ranks`: as in `predict`."""
    if labels.max() >= model.sizes[-1]:
        raise ValueError(f"the model knows the classes 0 to {model.sizes[-1] - 1}, not the label {labels.max()}")
    return Evaluation(arrays.to_host(labels), predict(model, preprocess, images, ranks))


def save_model(path: str | os.PathLike[str], model: nn.MLP, preprocess: Preprocess) -> None:
    """A model file with all that inference needs: weights, architecture, and the preprocessing of training."""
    notes = {"preprocess": json.dumps(preprocess.to_dict()), "versions": json.dumps(versions())}
    serialize.save(path, model, metadata=notes)


def load_model(path: str | os.PathLike[str]) -> tuple[nn.MLP, Preprocess]:
    """The model in a file that `save_model` wrote, or in a run folder."""
    path = Path(path)
    if path.is_dir():
        if (path / CONFIG).is_file() and not (path / MODEL).exists():
            resume = f"tinygrad-mnist train --resume {shlex.quote(str(path))}"
            raise FileNotFoundError(f"{path / MODEL}: no such model file: the run is unfinished: {resume}")
        path /= MODEL
    notes = serialize.metadata(path)
    if "preprocess" not in notes:
        raise ValueError(f"{path} does not say how images were preprocessed: it is no file of save_model or train")
    try:
        preprocess = Preprocess.from_dict(json.loads(notes["preprocess"]))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its record of the preprocessing is damaged: {error}") from None
    model = serialize.load(path)
    if not isinstance(model, nn.MLP):
        raise ValueError(f"{path}: holds arrays, not a model")
    return model, preprocess


def versions() -> dict[str, str]:
    """Of what decides the bits of a result."""
    try:
        package = version("tinygrad-mnist")
    except PackageNotFoundError:  # a checkout that was never installed
        package = "unknown"
    return {"tinygrad-mnist": package, "numpy": np.__version__, "python": platform.python_version()}
