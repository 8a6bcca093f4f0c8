"""show: a recorded graph as text and as a Mermaid diagram, and the memory that it keeps."""

import re

import numpy as np
import pytest

from tinygrad_mnist import Tensor, nn, no_grad, show, softmax_cross_entropy


def leaf(values, dtype=np.float64, **kwargs):
    return Tensor(np.array(values, dtype), requires_grad=True, **kwargs)


def test_text_of_a_small_graph():
    W = leaf(np.ones((3, 2)), np.float32, name="W")
    b = leaf(np.ones(2), np.float32, name="b")
    h = np.tanh(np.ones((4, 3), np.float32) @ W + b)
    h.name = "h"
    assert show.text(np.sum(h * h)) == "\n".join(
        [
            "#1 sum float32 scalar",
            "  #2 multiply float32 4x2",
            "    #3 h = tanh float32 4x2",
            "      #4 add float32 4x2",
            "        #5 matmul float32 4x2",
            "          #7 W = leaf float32 3x2",
            "        #6 b = leaf float32 2",
            "    #3 h = tanh float32 4x2 (above)",
        ]
    )


def test_text_of_a_leaf():
    assert show.text(leaf(1.0, name="x")) == "#1 x = leaf float64 scalar"
    assert show.text(leaf(np.zeros((0, 2)))) == "#1 leaf float64 0x2"


def test_text_with_a_limit():
    y = leaf([1.0])
    for _ in range(5):
        y = y * 2
    assert show.text(y, depth=2).splitlines() == [
        "#1 multiply float64 1",
        "  #2 multiply float64 1",
        "    #3 multiply float64 1 ...",
    ]
    assert len(show.text(y).splitlines()) == 6
    assert "..." not in show.text(y, depth=5)


def test_a_limit_hides_nothing_that_is_reached_by_a_shorter_way():
    """What was cut off at the limit is not called `above` when it comes again higher up."""
    h = np.sin(leaf([1.0], name="x"))
    assert show.text(np.exp(h) * h, depth=2).splitlines() == [
        "#1 multiply float64 1",
        "  #2 exp float64 1",
        "    #3 sin float64 1 ...",
        "  #3 sin float64 1",
        "    #4 x = leaf float64 1",
    ]


def test_text_of_deep_and_shared_graphs():
    x = leaf(1.0)
    y = x
    for _ in range(40):
        y = y + y
    assert len(show.text(y).splitlines()) == 40 * 2 + 1
    y = x
    for _ in range(3000):
        y = -y
    assert len(show.text(y, depth=3).splitlines()) == 4
    assert len(show.text(y).splitlines()) == 3001


def test_mermaid_of_a_small_graph():
    W = leaf(np.ones((3, 2)), name="W")
    h = np.ones((4, 3)) @ W
    assert show.mermaid(np.sum(h * h)) == "\n".join(
        [
            "flowchart TD",
            '    n1["sum float64 scalar"]',
            "    n2 --> n1",
            '    n2["multiply float64 4x2"]',
            "    n3 --> n2",
            "    n3 --> n2",
            '    n3["matmul float64 4x2"]',
            "    n4 --> n3",
            '    n4(["W = leaf float64 3x2"])',
        ]
    )


def test_mermaid_names_every_node_once_and_points_only_at_these():
    model = nn.MLP((4, 5, 3), rng=0)
    text = show.mermaid(softmax_cross_entropy(model(np.ones((2, 4), np.float32)), [0, 1]))
    declared = re.findall(r"^    (n\d+)[(\[]", text, re.M)
    assert len(declared) == len(set(declared))
    assert {n for pair in re.findall(r"(n\d+) --> (n\d+)", text) for n in pair} == set(declared)
    for name in ("W1", "b1", "W2", "b2"):
        assert f'(["{name} = leaf' in text


def test_mermaid_escapes_names():
    """A quotation mark in a name would end the label."""
    text = show.mermaid(leaf([1.0], name='the "best" [W] <b>\nline'))
    assert text == 'flowchart TD\n    n1(["the #quot;best#quot; [W] #lt;b> line = leaf float64 1"])'


def test_memory_counts_what_backward_keeps():
    x, W = np.ones((100, 50)), leaf(np.ones((50, 20)))
    y = x @ W
    assert show.memory(y) == x.nbytes
    assert show.memory(np.tanh(y)) == x.nbytes + y.data.nbytes
    assert show.memory(np.sum(y)) == x.nbytes
    assert show.memory(W) == 0
    assert show.memory(W + 1) == 0


def test_memory_that_several_nodes_share_counts_once():
    x = leaf(np.ones(1000))
    y = np.tanh(x)
    z = y * y.detach() + y.detach()[:10].sum() * y
    assert show.memory(z) <= y.data.nbytes + 100
    loss = (y[:500] * y.detach()[500:]).sum()
    assert show.memory(loss) == y.data.nbytes


def test_memory_after_backward_is_zero():
    W = leaf(np.ones((5, 5)))
    loss = np.sum(np.tanh(W @ W))
    loss.backward(retain_graph=True)
    assert show.memory(loss) == 2 * W.data.nbytes
    loss.backward()
    assert show.memory(loss) == 0
    assert show.text(loss).startswith("#1 sum")


@pytest.mark.parametrize("f", [show.text, show.mermaid, show.memory])
def test_an_untracked_tensor_has_no_graph(f):
    with no_grad():
        untracked = leaf([1.0]) * 2
    for t in (Tensor([1.0]), untracked, np.ones(3), 1.0, None):
        with pytest.raises(TypeError, match="show needs a tracked Tensor"):
            f(t)
