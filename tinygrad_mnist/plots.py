"""The pictures of a run, each a function from arrays to a PNG: training curves, confusion matrix, the worst mistakes;
and the picture of a sweep.

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
FAILED = "#a50f15"
ROWS = 60
"""Of a sweep without a single number to go by, so many settings are shown, the best ones."""
WIDE = 30
"""Where the largest value of an option is more than so many times the smallest, its axis is logarithmic."""
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


def settings(points: Sequence[Mapping[str, Any]], x: str | None) -> bytes:
    """Accuracies of settings, the best of which comes first: a dot for each run, and a line at their mean.

    A point has the "label" of a setting, the accuracies of its runs, "validation" and "test", and how many have
    "failed". They are drawn over the option `x`, of which each has the value "x"; or one below the other.
    """
    shown = points[:ROWS]
    figure = new_figure(8, 5) if x else new_figure(9.6, 1.3 + 0.3 * len(shown))
    axes = figure.subplots()
    parts = [part for part in ("validation", "test") if any(point[part] for point in shown)]
    for part in parts:
        # Beside each other, where one is below the other: the dots of both are often at the same place
        shift = 0 if x or len(parts) == 1 else -0.15 if part == "validation" else 0.15
        places = [point["x"] if x else row + shift for row, point in enumerate(shown)]
        there = [(place, point[part]) for place, point in zip(places, shown, strict=True) if point[part]]
        dots = [(place, 100 * accuracy) for place, accuracies in there for accuracy in accuracies]
        means = sorted((place, 100 * float(np.mean(accuracies))) for place, accuracies in there)
        style = {"color": COLOURS[part], "linestyle": "none"}
        _draw(axes, x, dots, **style, marker="o", markersize=5, alpha=0.6, markeredgewidth=0, label=f"{part}, one run")
        if x:
            _draw(axes, x, means, color=COLOURS[part], linewidth=1, label=f"{part}, mean")
        else:
            _draw(axes, x, means, **style, marker="|", markersize=10, markeredgewidth=2, label=f"{part}, mean")
    if failed := [point["x"] if x else row for row, point in enumerate(shown) if point["failed"]]:
        edge = axes.get_xaxis_transform() if x else axes.get_yaxis_transform()
        _draw(axes, x, [(place, 0.015) for place in failed], color=FAILED, linestyle="none", marker="x", transform=edge,
              label="a run failed")
    if x:
        values = [point["x"] for point in shown]
        if min(values) > 0 and max(values) > WIDE * min(values):
            axes.set_xscale("log")
        axes.set(xlabel=x, ylabel="accuracy in %")
    else:
        axes.set(xlabel="accuracy in %", ylim=(len(shown) - 0.5, -0.5))
        axes.set_yticks(range(len(shown)), [_short(point["label"]) for point in shown])
        axes.tick_params(axis="y", length=0)
        if len(shown) < len(points):
            axes.set_title(f"the best {len(shown)} of {len(points)} settings", color=INK)
    axes.grid(color="#e5e5e5")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    return to_png(figure)


def _draw(axes: Any, x: str | None, points: Sequence[tuple[float, float]], **style: Any) -> None:
    """Plot (place, accuracy): upright over the option x, else from left to right."""
    across, up = zip(*points, strict=True) if points else ((), ())
    axes.plot(*((across, up) if x else (up, across)), **style)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


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
