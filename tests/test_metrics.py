import numpy as np
import pytest

from tinygrad_mnist import metrics

LABELS = np.array([0, 0, 0, 1, 1, 2], np.uint8)
PREDICTED = np.array([0, 0, 1, 1, 0, 1])
COUNTS = [[2, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_confusion_counts_labels_by_row_and_predictions_by_column():
    assert metrics.confusion(LABELS, PREDICTED, 4).tolist() == COUNTS


def test_confusion_of_many_classes_does_not_wrap_around_in_uint8():
    labels = np.arange(200, dtype=np.uint8)
    assert np.array_equal(metrics.confusion(labels, labels, 200), np.eye(200))


def test_report():
    report = metrics.report(np.array(COUNTS))
    assert report["images"] == 6
    assert report["accuracy"] == 3 / 6
    assert report["confusion"] == COUNTS
    first, second, never_predicted, absent = report["classes"]
    assert first == {"class": 0, "precision": 2 / 3, "recall": 2 / 3, "f1": pytest.approx(2 / 3), "images": 3}
    assert second == {"class": 1, "precision": 1 / 3, "recall": 1 / 2, "f1": pytest.approx(0.4), "images": 2}
    assert never_predicted == {"class": 2, "precision": 0, "recall": 0, "f1": 0, "images": 1}
    assert absent == {"class": 3, "precision": 0, "recall": 0, "f1": 0, "images": 0}
