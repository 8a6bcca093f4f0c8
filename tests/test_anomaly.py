"""detect_anomaly: the op, the shapes and the user's line of the first NaN or infinity; raw writes; nothing outside."""

import re
import sys
import threading

import numpy as np
import pytest

from tinygrad_mnist import Tensor, detect_anomaly, functional, grad, nn, no_grad, ops, optim, softmax_cross_entropy
from tinygrad_mnist import numpy as cp
from tinygrad_mnist.modes import current


@pytest.fixture(autouse=True)
def quiet():
    """NumPy's own warnings off: what is tested is ours."""
    with np.errstate(all="ignore"):
        yield
    assert not current.get().anomaly


def leaf(values):
    return Tensor(np.array(values, np.float64), requires_grad=True)


def here(offset=0):
    """`file:line` of the caller's line, `offset` lines further."""
    frame = sys._getframe(1)
    return f"{frame.f_code.co_filename}:{frame.f_lineno + offset}"


# ---- forward ------------------------------------------------------------------------------------------------------


def test_forward_names_op_shapes_and_line():
    x = leaf([[1.0, -1.0, 0.0]])
    with pytest.raises(FloatingPointError) as caught, detect_anomaly():
        h = x * 2
        line = here(+1)
        h = np.log(h)
        h.sum()
    message = str(caught.value)
    assert message.startswith("log: NaN or infinity in the forward pass: ")
    assert "result float64 (1, 3)" in message
    assert "operands float64 (1, 3)" in message
    assert message.endswith(f"at {line}")


@pytest.mark.parametrize(
    ("name", "f"),
    [
        ("divide", lambda x: x / 0),
        ("divide", lambda x: 1 / x),
        ("exp", lambda x: np.exp(x + 1000)),
        ("power", lambda x: x**-3),
        ("sqrt", lambda x: (x - 1).sqrt()),
        ("sum", lambda x: np.sum(np.full(4, 1e308) * (x + 1))),
        ("log", lambda x: cp.log(x)),
        ("matmul", lambda x: np.array([np.inf, 1, 1, 1]) @ x),
        ("log", lambda x: np.mean(np.log(x))),
        ("reciprocal", lambda x: np.reciprocal(x)),
    ],
)
def test_forward_finds_the_line_through_every_way_to_call(name, f):
    """By an operator, a method, NumPy's function, the drop-in namespace: the line is the lambda's, not ours."""
    with pytest.raises(FloatingPointError, match=f"^{name}: ") as caught, detect_anomaly():
        f(leaf(np.zeros(4)))
    code = f.__code__
    assert str(caught.value).endswith(f"at {code.co_filename}:{code.co_firstlineno}")


def test_forward_checks_untracked_tensors_too():
    with pytest.raises(FloatingPointError, match="^log: "), detect_anomaly():
        np.log(Tensor([0.0]))
    with pytest.raises(FloatingPointError, match="^log: "), detect_anomaly(), no_grad():
        np.log(leaf([0.0]))


def test_forward_names_each_operand():
    with pytest.raises(FloatingPointError, match=r"operands float64 \(2, 3\) and float32 \(3,\)"), detect_anomaly():
        leaf(np.ones((2, 3))) / np.zeros(3, np.float32)
    with pytest.raises(FloatingPointError, match=r"operands float64 \(2, 3\) and 0"), detect_anomaly():
        leaf(np.ones((2, 3))) / 0


def test_forward_inside_the_library_gives_the_line_that_called_it():
    x = np.full((2, 3), np.nan)
    model = nn.MLP((3, 4, 2), rng=0, dtype="float64")
    with pytest.raises(FloatingPointError, match="^matmul: ") as caught, detect_anomaly():
        line = here(+1)
        model(x)
    assert str(caught.value).endswith(f"at {line}")
    with pytest.raises(FloatingPointError) as caught, detect_anomaly():
        line = here(+1)
        softmax_cross_entropy(leaf(np.full((1, 2), np.inf)), [0])
    assert str(caught.value).endswith(f"at {line}")


def test_integers_and_booleans_are_finite():
    with detect_anomaly():
        y = np.argmax(leaf([1.0, 2.0])) + Tensor([1, 2]) + np.sum(leaf([1.0, 2.0]) > 1)
    assert y.dtype.kind == "i"


# ---- backward -----------------------------------------------------------------------------------------------------


def test_backward_names_op_shape_operand_and_the_line_of_the_forward():
    x = leaf([[0.0, 1.0, 4.0]])
    with detect_anomaly():
        line = here(+1)
        y = np.sqrt(x)
        loss = y.sum()
        with pytest.raises(FloatingPointError) as caught:
            loss.backward()
    message = str(caught.value)
    assert message.startswith("sqrt: NaN or infinity in the backward pass: ")
    assert "gradient float64 (1, 3) of operand 0" in message
    assert message.endswith(f"recorded at {line}")
    assert x.grad is None


def test_backward_names_the_operand_whose_gradient_it_is():
    a, b = leaf([0.0, 1.0]), leaf([0.5, 0.5])
    with detect_anomaly():
        line = here(+1)
        y = a**b
        with pytest.raises(FloatingPointError, match=r"^power: .* gradient float64 \(2,\) of operand 0, ") as caught:
            np.sum(y).backward()
    assert str(caught.value).endswith(f"recorded at {line}")


def test_backward_of_a_seed_that_is_not_finite():
    x = leaf([1.0, 2.0])
    with detect_anomaly():
        y = x * 2
        with pytest.raises(FloatingPointError, match="^multiply: .* backward"):
            y.backward([np.nan, 1.0])


def test_backward_of_a_graph_recorded_outside_says_how_to_see_the_line():
    y = np.sum(np.sqrt(leaf([0.0, 1.0])))
    with detect_anomaly(), pytest.raises(FloatingPointError, match="^sqrt: ") as caught:
        y.backward()
    ending = "recorded outside detect_anomaly(); run the forward pass inside it to see the line"
    assert str(caught.value).endswith(ending)


def test_derivatives_of_higher_order_are_checked_too():
    def f(x):
        return np.sum(np.cbrt(x) ** 2 * x)

    for g in (grad(f), grad(grad(f)), functional.hessian(f)):
        with pytest.raises(FloatingPointError), detect_anomaly():
            g(np.array(0.0))
        with pytest.raises(FloatingPointError), detect_anomaly():
            g(Tensor(np.array(0.0)))


def test_a_rule_of_ones_own_is_caught():
    @ops.primitive(lambda xp, g, _y, a: g / a)
    def _anomalous_square(xp, a):
        return a * a / 2

    with detect_anomaly():
        y = _anomalous_square(leaf([0.0, 1.0]))
        with pytest.raises(FloatingPointError, match=r"^anomalous_square: .*float64 \(2,\)"):
            np.sum(y).backward()


# ---- raw writes ---------------------------------------------------------------------------------------------------


def test_a_raw_write_into_an_operand_is_caught():
    x, w = Tensor(np.array([1.0, 2.0])), leaf([3.0, 4.0])
    with detect_anomaly():
        line = here(+1)
        y = (x * w).sum()
        x.data[0] = 5
        with pytest.raises(RuntimeError, match="changed in place") as caught:
            y.backward()
    message = str(caught.value)
    assert message.startswith("multiply: operand 0 (float64 (2,)) was changed")
    assert message.endswith(f"(recorded at {line})")
    assert w.grad is None


def test_a_raw_write_into_a_result_is_caught():
    with detect_anomaly():
        y = np.tanh(leaf([3.0, 4.0]))
        y.data[1] = 5
        with pytest.raises(RuntimeError, match=r"^tanh: its result \(float64 \(2,\)\) was changed in place"):
            y.sum().backward()


def test_a_raw_write_through_any_view_or_into_any_layout_is_caught():
    a = np.arange(12.0).reshape(3, 4)
    for x, write in (
        (a.T, lambda: a.__setitem__((0, 0), 7)),
        (a[:, ::2], lambda: a.reshape(-1).__setitem__(2, -1)),
        (a[::-1], lambda: a.__setitem__((2, 3), 0)),
        (np.array(3.0), None),
        (np.float32([1, 2]), None),
        (np.float16([[1, 2]]), None),
    ):
        w = leaf(np.ones(x.shape))
        with detect_anomaly():
            y = (w * x).sum()
            if write is None:
                x[...] = 9
            else:
                write()
            with pytest.raises(RuntimeError, match="^multiply: operand 1"):
                y.backward()


def test_a_write_of_the_same_values_or_into_what_backward_does_not_need_is_no_mistake():
    x, w = Tensor(np.array([1.0, 2.0])), leaf([3.0, 4.0])
    with detect_anomaly():
        y = (x * w + 1).sum()
        x.data[0] = 1.0
        w.data[0] = 9.0  # x is untracked: nobody needs w
        y.backward()
    assert w.grad.tolist() == [1, 2]


# ---- where it holds -----------------------------------------------------------------------------------------------


def test_nothing_happens_outside():
    x = leaf([0.0, 1.0])
    y = np.sum(np.sqrt(x) + np.log(x))
    assert not hasattr(y._node, "trace")
    y.backward()
    assert x.grad[0] == np.inf
    w, c = leaf([1.0, 2.0]), Tensor(np.array([1.0, 2.0]))
    y = (w * c).sum()
    c.data[0] = 5
    y.backward()
    assert w.grad.tolist() == [5, 2]


def test_a_graph_recorded_inside_may_be_walked_outside():
    x = leaf([0.0, 1.0])
    with detect_anomaly():
        y = np.sum(np.sqrt(x))
    y.backward()
    assert x.grad[0] == np.inf


def test_as_a_decorator():
    @detect_anomaly()
    def step(x):
        """A step."""
        return np.log(x)

    assert step.__name__ == "step"
    assert step(leaf([1.0])).item() == 0
    for _ in range(2):
        with pytest.raises(FloatingPointError):
            step(leaf([0.0]))
        assert not current.get().anomaly
    assert np.log(leaf([0.0])).item() == -np.inf


def test_reset_after_exceptions_and_nesting():
    with pytest.raises(ZeroDivisionError), detect_anomaly():
        raise ZeroDivisionError
    assert not current.get().anomaly
    context = detect_anomaly()
    with context:
        with context, no_grad():
            assert current.get()[:2] == (False, True)
        assert current.get()[:2] == (True, True)
        with detect_anomaly():
            pass
        assert current.get().anomaly
    assert current.get()[:2] == (True, False)


def test_another_thread_is_not_affected():
    results = []
    with detect_anomaly():
        def work():
            with np.errstate(all="ignore"):
                results.append(np.log(leaf([0.0])).item())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert results[-1] == -np.inf


def test_a_whole_training_step_passes():
    rng = np.random.default_rng(0)
    model = nn.MLP((4, 5, 3), rng=0)
    optimizer = optim.Adam(model.parameters())
    x, labels = rng.normal(size=(8, 4)).astype("float32"), rng.integers(0, 3, 8)
    with detect_anomaly():
        for _ in range(3):
            optimizer.zero_grad()
            softmax_cross_entropy(model(x), labels).backward()
            optimizer.step()


def test_a_sanctioned_change_is_reported_as_outside():
    w = leaf([1.0, 2.0])
    with detect_anomaly():
        y = (w * w).sum()
        with no_grad():
            w -= 1
        with pytest.raises(RuntimeError, match="^multiply: operand [01] .*changed in place") as caught:
            y.backward()
    assert re.search(r"call backward\(\) before the update", str(caught.value))
