"""Losses: what they take, and what they refuse. Values and derivatives are rows of the operation table."""

import math

import numpy as np
import pytest

from tinygrad_mnist import Tensor, mse, softmax_cross_entropy

SQUARE = np.random.default_rng(0).normal(size=(3, 3))


@pytest.mark.parametrize("axis", [2, -3, 5, -5])
@pytest.mark.parametrize("target", [[0, 1, 2], np.full((3, 3), 1 / 3)], ids=["labels", "probabilities"])
def test_an_axis_that_is_not_there_is_refused(axis, target):
    with pytest.raises(
        np.exceptions.AxisError,
        match=rf"^softmax_cross_entropy: axis {axis} is out of range for logits of shape \(3, 3\)$",
    ):
        softmax_cross_entropy(Tensor(SQUARE), target, axis=axis)


def test_logits_without_axes_are_refused():
    for logits in Tensor(1.0), 1.0, np.float32(1):
        with pytest.raises(np.exceptions.AxisError, match=r"axis -1 is out of range for logits of shape \(\)$"):
            softmax_cross_entropy(logits, 0)


@pytest.mark.parametrize("label", [1, np.int64(1), np.array(1, "u1"), Tensor(1)])
def test_logits_of_one_row_take_one_label(label):
    logits = Tensor([1.0, 2.0, 3.0], requires_grad=True, dtype="float64")
    exponentials = np.exp([1.0, 2.0, 3.0])
    for reduction in "mean", "sum", "none":
        loss = softmax_cross_entropy(logits, label, reduction=reduction)
        assert float(loss) == pytest.approx(math.log(exponentials.sum()) - 2)
        logits.zero_grad()
        loss.backward()
        np.testing.assert_allclose(logits.grad, exponentials / exponentials.sum() - [0, 1, 0])


@pytest.mark.parametrize(
    ("shape", "target", "where"),
    [((3,), 12, ""), ((2, 3), [0, 12], " in row 1"), ((2, 1, 3), [[0], [12]], " in row 1, 0")],
)
def test_a_label_out_of_range_is_named_with_its_row(shape, target, where):
    with pytest.raises(IndexError, match=rf"^label 12{where} is out of range: there are 3 classes, 0 to 2$"):
        softmax_cross_entropy(Tensor(np.zeros(shape)), target)


def test_lists_are_logits_too():
    loss = softmax_cross_entropy([[1.0, 2.0], [3.0, 4.0]], [0, 1])
    assert float(loss) == float(softmax_cross_entropy(Tensor([[1.0, 2.0], [3.0, 4.0]]), [0, 1]))


@pytest.mark.parametrize("dtype", ["u1", "i8", "?"])
def test_logits_must_be_floats(dtype):
    for logits in np.ones((2, 3), dtype), Tensor(np.ones((2, 3), dtype)):
        for target in [0, 1], np.full((2, 3), 1 / 3):
            with pytest.raises(
                TypeError, match=r"^softmax_cross_entropy: logits must be floats, not .*: use \.astype\('float32'\)$"
            ):
                softmax_cross_entropy(logits, target)


@pytest.mark.parametrize(("one", "other"), [((4, 1), (4,)), ((4,), (4, 1)), ((2, 3), (3,)), ((1,), (4,)), ((4,), (5,))])
def test_mse_of_shapes_that_only_broadcast_is_refused(one, other):
    """(4, 1) against (4,) is 16 differences: a loss that falls, to the wrong place."""
    message = rf"^mse: prediction of shape {one} and target of shape {other} must have the same shape$"
    for target in np.zeros(other), Tensor(np.zeros(other)), np.zeros(other).tolist():
        with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
            mse(Tensor(np.zeros(one), requires_grad=True), target)


@pytest.mark.parametrize("number", [2, 2.0, np.float64(2), np.array(2.0), Tensor(2.0)])
def test_mse_against_a_number(number):
    values = Tensor([[1.0], [4.0]], requires_grad=True)
    assert float(mse(values, number)) == float(mse(number, values)) == 2.5
    assert float(mse([[1.0], [4.0]], [[2.0], [2.0]])) == 2.5
