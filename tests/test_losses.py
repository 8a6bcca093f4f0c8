"""Losses: what they take, and what they refuse. Values and derivatives are rows of the operation table.

Labels may be on the host wherever the logits are; other targets are where the predictions are.
"""

import math

import numpy as np
import pytest
from checks import host_only

from tinygrad_mnist import Tensor, mse, softmax_cross_entropy

SQUARE = np.random.default_rng(0).normal(size=(3, 3))


@pytest.mark.parametrize("axis", [2, -3, 5, -5])
@pytest.mark.parametrize("target", [np.array([0, 1, 2]), np.full((3, 3), 1 / 3)], ids=["labels", "probabilities"])
def test_an_axis_that_is_not_there_is_refused(backend, axis, target):
    with pytest.raises(
        np.exceptions.AxisError,
        match=rf"^softmax_cross_entropy: axis {axis} is out of range for logits of shape \(3, 3\)$",
    ):
        softmax_cross_entropy(Tensor(backend.array(SQUARE)), backend.array(target), axis=axis)


def test_logits_without_axes_are_refused(backend):
    for logits in Tensor(backend.array(np.array(1.0))), backend.array(np.array(1.0)), 1.0, np.float32(1):
        with pytest.raises(np.exceptions.AxisError, match=r"axis -1 is out of range for logits of shape \(\)$"):
            softmax_cross_entropy(logits, 0)


@pytest.mark.parametrize(
    "label",
    [
        *(lambda backend, label=label: label for label in (1, np.int64(1), np.array(1, "u1"), Tensor(1))),
        lambda backend: backend.array(np.array(1, "u1")),
        lambda backend: Tensor(backend.array(np.array(1))),
    ],
)
def test_logits_of_one_row_take_one_label(backend, label):
    logits, label = Tensor(backend.array(np.array([1.0, 2.0, 3.0])), requires_grad=True), label(backend)
    exponentials = np.exp([1.0, 2.0, 3.0])
    for reduction in "mean", "sum", "none":
        loss = softmax_cross_entropy(logits, label, reduction=reduction)
        assert float(loss) == pytest.approx(math.log(exponentials.sum()) - 2)
        logits.zero_grad()
        loss.backward()
        np.testing.assert_allclose(backend.host(logits.grad), exponentials / exponentials.sum() - [0, 1, 0])


@pytest.mark.parametrize(
    ("shape", "target", "where"),
    [
        *(((3,), label, "") for label in (12, np.int64(12), np.array(12, "u1"))),
        ((2, 3), [0, 12], " in row 1"),
        ((2, 1, 3), [[0], [12]], " in row 1, 0"),
    ],
)
def test_a_label_out_of_range_is_named_with_its_row(backend, shape, target, where):
    with pytest.raises(IndexError, match=rf"^label 12{where} is out of range: there are 3 classes, 0 to 2$"):
        softmax_cross_entropy(Tensor(backend.array(np.zeros(shape))), target)


def test_a_row_of_any_layout_and_labels_of_both_sides(backend):
    """Logits that are views, labels of the host and of the device: the same loss and gradient."""
    expected = None
    for logits in SQUARE, np.asfortranarray(SQUARE), SQUARE[::-1].copy()[::-1], np.repeat(SQUARE, 2, 1)[:, ::2]:
        for labels in [2, 0, 1], np.array([2, 0, 1], "u1"), backend.array(np.array([2, 0, 1])):
            t = Tensor(backend.array(logits), requires_grad=True)
            loss = softmax_cross_entropy(t, labels)
            loss.backward()
            found = np.append(backend.host(t.grad), float(loss))
            expected = found if expected is None else expected
            np.testing.assert_allclose(found, expected, rtol=1e-14)


@host_only
def test_lists_are_logits_too(backend):
    loss = softmax_cross_entropy([[1.0, 2.0], [3.0, 4.0]], [0, 1])
    assert float(loss) == float(softmax_cross_entropy(Tensor([[1.0, 2.0], [3.0, 4.0]]), [0, 1]))


@pytest.mark.parametrize("dtype", ["u1", "i8", "?"])
def test_logits_must_be_floats(backend, dtype):
    array = backend.array(np.ones((2, 3), dtype))
    for logits in array, Tensor(array):
        for target in [0, 1], backend.array(np.full((2, 3), 1 / 3)):
            with pytest.raises(
                TypeError, match=r"^softmax_cross_entropy: logits must be floats, not .*: use \.astype\('float32'\)$"
            ):
                softmax_cross_entropy(logits, target)


@pytest.mark.parametrize(("one", "other"), [((4, 1), (4,)), ((4,), (4, 1)), ((2, 3), (3,)), ((1,), (4,)), ((4,), (5,))])
def test_mse_of_shapes_that_only_broadcast_is_refused(backend, one, other):
    """(4, 1) against (4,) is 16 differences: a loss that falls, to the wrong place."""
    message = rf"^mse: prediction of shape {one} and target of shape {other} must have the same shape$"
    array = backend.array(np.zeros(other))
    for target in array, Tensor(array), array.tolist():
        with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
            mse(Tensor(backend.array(np.zeros(one)), requires_grad=True), target)


@pytest.mark.parametrize(
    "number",
    [
        *(lambda backend, number=number: number for number in (2, 2.0, np.float64(2))),
        lambda backend: backend.array(np.array(2.0)),
        lambda backend: Tensor(backend.array(np.array(2.0))),
    ],
)
def test_mse_against_a_number(backend, number):
    values, number = Tensor(backend.array(np.array([[1.0], [4.0]])), requires_grad=True), number(backend)
    assert float(mse(values, number)) == float(mse(number, values)) == 2.5


@host_only
def test_mse_of_lists(backend):
    assert float(mse([[1.0], [4.0]], [[2.0], [2.0]])) == 2.5
