"""The pictures: that they are PNGs of the promised size, show what they are to show, and bear odd cases."""

import io

import numpy as np
import pytest
from PIL import Image

from tinygrad_mnist import plots

HISTORY = [
    {"epoch": i, "train_loss": 1 / i, "train_accuracy": 1 - 1 / i, "test_loss": 0.9 / i, "test_accuracy": 1 - 0.8 / i}
    for i in (1, 2, 3)
]


def pixels(png):
    picture = Image.open(io.BytesIO(png))
    assert picture.format == "PNG"
    return np.asarray(picture.convert("RGB"))


def contains(picture, colour, least=20):
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.count_nonzero((picture == rgb).all(axis=-1)) >= least


def test_curves_show_the_parts_that_there_are():
    picture = pixels(plots.curves(HISTORY))
    assert picture.shape == (400, 960, 3)
    assert contains(picture, plots.COLOURS["train"])
    assert contains(picture, plots.COLOURS["test"])
    assert not contains(picture, plots.COLOURS["validation"])
    split = [{**row, "validation_loss": 0.5, "validation_accuracy": 0.5} for row in HISTORY]
    assert contains(pixels(plots.curves(split)), plots.COLOURS["validation"])


def test_the_legend_of_accuracies_says_percent(monkeypatch):
    from matplotlib.axes import Axes

    labels = []
    draw = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda *args, **kw: labels.append(kw["label"]) or draw(*args, **kw))
    plots.curves(HISTORY)
    assert labels[1::2] == ["test (0.3 in the end)", "test (73.33% in the end)"]


def test_curves_of_one_epoch_are_points():
    assert contains(pixels(plots.curves(HISTORY[:1])), plots.COLOURS["test"])


def test_confusion_colours_errors_by_their_share_of_the_row():
    counts = np.diag([1000] * 10)
    clean = pixels(plots.confusion(counts))
    assert not contains(clean, "#a50f15", 1000)
    counts[3, 5] = 2  # two of a thousand: invisible if colours went by count
    assert contains(pixels(plots.confusion(counts)), "#a50f15", 1000)


@pytest.mark.parametrize("classes", [2, 20, 47])
def test_confusion_of_other_numbers_of_classes(classes):
    counts = np.random.default_rng(classes).integers(0, 100, (classes, classes))
    counts[0] = 0  # a class without images
    assert pixels(plots.confusion(counts)).shape == (640, 740, 3)


@pytest.mark.parametrize(("wrong", "side"), [(0, 28), (1, 28), (28, 28), (100, 28), (100, 8)])
def test_mistakes(wrong, side):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (120, side, side), dtype=np.uint8)
    labels = np.zeros(120, np.uint8)
    probabilities = np.tile([0.9, 0.1], (120, 1))
    probabilities[:wrong] = [0.2, 0.8]
    picture = pixels(plots.mistakes(images, labels, probabilities))
    assert picture.shape == (600, 960, 3)
    assert (picture[60:] < 200).mean() > 0  # without mistakes, a line that says so


def test_captions_of_mistakes_between_classes_of_two_digits_do_not_overlap(monkeypatch):
    from matplotlib.axes import Axes

    texts = []
    draw = Axes.text
    monkeypatch.setattr(Axes, "text", lambda *args, **kwargs: texts.append(draw(*args, **kwargs)) or texts[-1])
    plots.mistakes(np.zeros((28, 28, 28), np.uint8), np.full(28, 35, np.uint8), np.eye(47)[np.full(28, 46)])
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) == 28
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def test_mistakes_are_ordered_by_probability_and_drawn_as_ink_on_paper():
    images = np.zeros((3, 28, 28), np.uint8)
    images[1] = 255  # the most confident mistake: a black square in the first place
    probabilities = np.array([[0.4, 0.6], [0.1, 0.9], [0.8, 0.2]])
    picture = pixels(plots.mistakes(images, np.zeros(3, np.uint8), probabilities))
    rows, columns = np.nonzero((picture < 10).all(axis=-1))
    assert len(rows) > 3000
    assert rows.max() < 200
    assert columns.max() < 200


def test_a_gallery_grows_with_its_images():
    images = np.zeros((7, 28, 28), np.uint8)
    images[6] = 255
    picture = pixels(plots.gallery(images, [*"0123456"], columns=3))
    assert picture.shape == (420, 360, 3)
    rows, columns = np.nonzero((picture < 10).all(axis=-1))  # the last image alone, in the third row
    assert rows.min() > 280
    assert columns.max() < 120


def test_the_same_picture_is_the_same_bytes():
    assert plots.curves(HISTORY) == plots.curves(HISTORY)
