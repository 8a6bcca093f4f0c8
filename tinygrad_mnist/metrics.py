"""What predictions for labelled images are worth: confusion matrix, accuracy, precision and recall of each class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def confusion(labels: NDArray[Any], predicted: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """Counts `(classes, classes)`: row = label, column = predicted class."""
    pairs = labels.astype(np.int64) * classes + predicted
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def report(counts: NDArray[np.int64]) -> dict[str, Any]:
    """A confusion matrix in numbers, as JSON can hold them.

    Precision is the share of right ones among the images predicted as a class, recall that among the images of the
    class, F1 their harmonic mean. A share of no images at all is 0.
    """
    right = counts.diagonal()
    predicted, images = counts.sum(axis=0), counts.sum(axis=1)
    columns = {
        "precision": _share(right, predicted),
        "recall": _share(right, images),
        "f1": _share(2 * right, predicted + images),
        "images": images,
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return {
        "images": int(counts.sum()),
        "accuracy": float(right.sum() / counts.sum()),
        "classes": [{"class": i, **dict(zip(columns, row, strict=True))} for i, row in enumerate(rows)],
        "confusion": counts.tolist(),
    }


def _share(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
