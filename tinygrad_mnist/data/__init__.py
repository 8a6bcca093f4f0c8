"""Images of digits: the embedded MNIST, files of the user's own, batches, and what happens to pixels before training.

A data set is the tuple `(x_train, y_train, x_test, y_test)`: uint8 images `(n, height, width)`, uint8 labels `(n,)`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import arrays
from . import idx, npz
from .distortions import Distortion
from .files import DataError, Part, dims, open_file
from .images import digit
from .preprocess import Preprocess

__all__ = ["DataError", "Dataset", "Distortion", "Preprocess", "batches", "digit", "load", "mnist"]

Dataset: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]

MNIST_SHA256 = "ee068f36682cba7f38bafdedc77b0f873ebbcf877036f7ebde566966146ac146"
"""Of the file `mnist.npz` beside this module; `tools/make_mnist.py` prints it."""


def mnist() -> Dataset:
    """The embedded MNIST: 60 000 training and 10 000 test images of 28 x 28. The arrays are the caller's own.

    Raises DataError if the file's checksum is wrong.
    """
    import hashlib  # with zipfile in npz.py, what `import tinygrad_mnist.data` should not pay for

    path = Path(__file__).with_name("mnist.npz")
    with open_file(path) as file:
        content = file.read()
    checksum = hashlib.sha256(content).hexdigest()
    if checksum != MNIST_SHA256:
        raise DataError(path, f"sha256 {MNIST_SHA256}", f"{checksum}: install the package again")
    return _assemble(npz.read(io.BytesIO(content), path))


def load(path: str | os.PathLike[str]) -> Dataset:
    """A data set in MNIST's format: a folder of IDX files, or a Keras-style `.npz`. Nothing is unpickled.

    The folder holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    `t10k-labels-idx1-ubyte`, each plain or `.gz` (a plain file is preferred). `train-images.idx3-ubyte` and EMNIST's
    `emnist-digits-train-images-idx3-ubyte` are understood too. Images are returned as they are stored: EMNIST's are
    transposed. The `.npz` holds arrays x_train, y_train, x_test, y_test; its labels may be of any integer type.

    Raises DataError, with one line that names the file, what was expected and what was found, for anything else.
    """
    path = Path(path)
    if path.is_dir():
        return _assemble(idx.read_folder(path))
    with open_file(path) as file:
        if not file.peek(2).startswith(b"PK"):
            raise DataError(path, "a folder of IDX files or an .npz file", "a file that is not an .npz")
        return _assemble(npz.read(file, path))


def batches(
    x: NDArray[Any], y: NDArray[Any], batch_size: int, rng: np.random.Generator | None, *, drop_last: bool = False
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Iterate once over `(x[rows], y[rows])`, `batch_size` rows at a time, in an order that `rng` draws now.

    With `rng=None` the rows come in order, as views. The last batch holds what is left over; `drop_last` leaves it out.
    `x` and `y` may lie on a GPU; the order, which `rng` draws on the host, then goes there once.
    """
    if len(x) != len(y):
        raise ValueError(f"batches: x has {len(x)} rows and y has {len(y)}")
    if problem := arrays.mixed((x, y)):
        raise ValueError(f"batches: {problem}; move one with .to(device)")
    if batch_size < 1:
        raise ValueError(f"batches: batch_size must be at least 1, got {batch_size!r}")
    if rng is not None and not isinstance(rng, np.random.Generator):
        raise TypeError(f"batches: rng must be np.random.default_rng(seed) or None, got {rng!r}")
    stop = len(x) - len(x) % batch_size if drop_last else len(x)
    if stop == 0:
        raise ValueError(f"batches: {len(x)} rows give no batch of {batch_size} with drop_last={drop_last}")
    order = None if rng is None else arrays.place(rng.permutation(len(x)), x)
    slices = (slice(start, start + batch_size) for start in range(0, stop, batch_size))
    rows = slices if order is None else (order[part] for part in slices)
    return (arrays.take((x, y), part) for part in rows)


def _assemble(parts: list[Part]) -> Dataset:
    """The four arrays, after the checks that concern more than one file or the labels' values."""
    x_train, y_train, x_test, y_test = parts
    for x, y in ((x_train, y_train), (x_test, y_test)):
        if len(x.array) != len(y.array):
            raise DataError(y.name, f"{len(x.array)} labels, one for each image of {x.name}", len(y.array))
    size = x_train.array.shape[1:]
    if x_test.array.shape[1:] != size:
        raise DataError(x_test.name, f"images of {dims(size)} as in {x_train.name}", dims(x_test.array.shape[1:]))
    return x_train.array, _labels(y_train), x_test.array, _labels(y_test)


def _labels(part: Part) -> NDArray[np.uint8]:
    for extreme in (part.array.min(), part.array.max()):
        if not 0 <= extreme <= 255:
            raise DataError(part.name, "labels from 0 to 255", extreme)
    return part.array.astype(np.uint8, copy=False)
