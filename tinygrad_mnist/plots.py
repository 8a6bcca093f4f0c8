"""The pictures of a run, each a function from arrays to a PNG: training curves, confusion matrix, the worst mistakes.

matplotlib is imported inside the functions: that takes 0.3 s, which other commands should not pay. (Importing it in a
thread while training takes longer: the two compete for the interpreter.)
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100
INK = "#333333"
COLOURS = {"train": "#888888", "validation": "#d95f02", "test": "#1f77b4"}
GRID = (4, 7)
"""Rows and columns of the picture of mistakes."""
LABELLED = 20
"""Up to so many classes, the counts fit into the cells of the confusion matrix."""


def curves(history: Sequence[Mapping[str, float]]) -> bytes:
    """Loss and accuracy over the epochs, on the training, validation and test images."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(9.6, 4)
    epochs = [row["epoch"] for row in history]
    for axes, quantity, unit in zip(figure.subplots(1, 2), ("loss", "accuracy"), (1, 100), strict=True):
        for part, colour in COLOURS.items():
            if f"{part}_{quantity}" in history[0]:
                values = [unit * row[f"{part}_{quantity}"] for row in history]
                # Training images are counted while the weights still change, the others after the epoch.
                last = f"{values[-1]:.4g}" if unit == 1 else f"{values[-1]:.4g}%"
                label = "train (mean over the epoch)" if part == "train" else f"{part} ({last} in the end)"
                axes.plot(epochs, values, color=colour, marker="o", markersize=4, label=label)
        axes.set(xlabel="epoch", ylabel="loss" if unit == 1 else "accuracy in %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color="#e5e5e5")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return to_png(figure)


def confusion(counts: NDArray[np.int64]) -> bytes:
    """A confusion matrix, rows for labels, columns for predictions; errors are coloured by their share of the row."""
    from matplotlib.colors import LinearSegmentedColormap

    classes = len(counts)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    errors = np.ma.masked_where(np.eye(classes, dtype=bool), share)
    top = max(float(errors.max() or 0), 0.1)
    figure = new_figure(7.4, 6.4)
    axes = figure.subplots()
    reds = LinearSegmentedColormap.from_list("errors", ["#ffffff", "#f6a27c", "#a50f15"])
    image = axes.imshow(errors, reds.with_extremes(bad="#e3ecf4"), vmin=0, vmax=top)
    figure.colorbar(image, label="errors, in % of the images with this label", shrink=0.85)
    axes.set(xlabel="predicted", ylabel="label")
    axes.set_title(f"{counts.trace()} of {counts.sum()} images right ({counts.trace() / counts.sum():.2%})", color=INK)
    if classes <= LABELLED:
        axes.set(xticks=range(classes), yticks=range(classes))
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if row != column and share[row, column] > 0.6 * top else INK
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=9, in_layout=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return to_png(figure)


def mistakes(images: NDArray[np.uint8], labels: NDArray[Any], probabilities: NDArray[Any]) -> bytes:
    """The images that the network got wrong with the highest probability, the worst first."""
    predicted = probabilities.argmax(axis=1)
    certainty = probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    rows, columns = GRID
    worst = wrong[np.argsort(-certainty[wrong], kind="stable")][: rows * columns]
    figure = new_figure(9.6, 6)
    axes = figure.subplots()
    axes.set_axis_off()
    if not len(wrong):
        axes.text(0.5, 0.5, f"All {len(labels)} images are right: there is no mistake to show.", ha="center", color=INK)
        return to_png(figure)
    axes.set_title(f"{len(wrong)} of {len(labels)} images are wrong; the most confident mistakes:", color=INK)
    # In one line, long numbers would overlap
    captions = [f"{labels[n]} read as {predicted[n]}\n{certainty[n]:.1%}" for n in worst]
    _tiles(axes, images[worst], captions, rows, columns)
    return to_png(figure)


def gallery(images: NDArray[np.uint8], captions: Sequence[str], columns: int) -> bytes:
    """Images, `columns` in a row, each with a line above it."""
    rows = -(-len(images) // columns)
    figure = new_figure(1.2 * columns, 1.4 * rows)
    axes = figure.subplots()
    axes.set_axis_off()
    _tiles(axes, images, captions, rows, columns)
    return to_png(figure)


def _tiles(axes: Any, images: NDArray[np.uint8], captions: Sequence[str], rows: int, columns: int) -> None:
    """Draw images as ink on paper, with a caption of one or two lines above each."""
    h, w = images.shape[1:]
    tile_h, tile_w = h + (h + 2) // 3, w + w // 7  # the image, room for two lines above it, a gap beside it
    paper = np.zeros((rows * tile_h, columns * tile_w), np.uint8)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        y, x = i // columns * tile_h, i % columns * tile_w
        paper[y + tile_h - h : y + tile_h, x : x + w] = image
        axes.text(
            x + w / 2, y + tile_h - h - 1, caption, ha="center", va="bottom", fontsize=8, color=INK, in_layout=False
        )
    axes.imshow(paper, "gray_r", vmin=0, vmax=255)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that needs no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def to_png(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    file = io.BytesIO()
    # Not savefig, which draws twice. Without a version in it, the same picture is the same bytes.
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return file.getvalue()
