"""The gradient checker on functions of Tensors: what users write, and what they are told."""

import numpy as np
import pytest

import tinygrad_mnist as tg
from tinygrad_mnist import Tensor, arrays, primitive
from tinygrad_mnist.gradcheck.engine import check_vjp
from tinygrad_mnist.gradcheck.report import STRUCTURE, GradCheckError
from tinygrad_mnist.gradcheck.tensors import assert_grad, check, check_second, compare, dot_test, taylor

pytestmark = pytest.mark.usefixtures("forget_what_tests_register")

RNG = np.random.default_rng(1)
X, W = RNG.normal(size=(3, 4)), RNG.normal(size=(4, 2))


def wrong_sine(factor=1.001):
    @primitive(lambda xp, g, y, a: factor * g * xp.cos(a))
    def sine(xp, a):
        return xp.sin(a)

    return sine


def passes(*arguments, **options):
    report = check(*arguments, **options)
    assert report.verdict == "pass", str(report)
    return report


# ---- what users write


def test_a_right_gradient_passes_and_the_report_says_what_was_done():
    report = passes(lambda x, w: np.tanh(x @ w), X, W, seed=5)
    assert (report.counts["pass"], report.seed, report.names) == (20, 5, ("x", "w"))
    assert set(STRUCTURE) <= set(report.structure)
    assert report.shapes[:2] == ((3, 4), (4, 2))


def in_place(x):
    x += 1.0
    x *= x
    return x


def view_then_in_place(x):
    row = x[0]
    row *= 2.0
    return row * x


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.sum(),
        lambda x: x,
        lambda x: (x.sum(), x @ W, x),
        lambda x: [x, x * x],
        lambda x: Tensor(3.0),
        lambda x: (Tensor(3.0), np.sin(x)),
        lambda x: x @ Tensor(W, requires_grad=True),
        lambda x: x * 0.0,
        lambda x: np.exp(x)[1:1],
        lambda x: tg.grad(lambda w: np.sum(np.sin(w) * x))(x),
        in_place,
        view_then_in_place,
        tg.nn.Linear(4, 2, rng=0),
    ],
)
def test_functions_that_users_write_pass(fn):
    passes(fn, X)


@pytest.mark.parametrize(
    "x", [2.0, [1.0, 2.0], [[0.5], [1.5]], np.float64(2), np.zeros((0, 3)), Tensor(X), Tensor(X, requires_grad=True),
          Tensor(X, requires_grad=True) * 2, X[::-1, 1:], np.broadcast_to(X[0], (3, 4))]
)  # fmt: skip
def test_inputs_may_be_numbers_lists_arrays_and_tensors_and_are_left_alone(x):
    before = np.array(x.data if isinstance(x, Tensor) else x)
    passes(lambda x: np.sin(x), x)
    assert np.array_equal(before, x.data if isinstance(x, Tensor) else x)
    assert not isinstance(x, Tensor) or not x.is_leaf or x.grad is None


def test_integers_are_not_differentiated_and_arrive_as_what_they_are():
    seen = []

    def f(x, axis, index, mask):
        seen.append((type(axis), type(index), mask.dtype))
        return x.sum(axis=axis)[index] * mask

    report = passes(f, X, 0, np.array([0, 0, 3]), np.array([True, False, True]))
    assert set(seen) == {(int, np.ndarray, np.dtype(bool))}
    assert report.counts["pass"] == X.size


def test_wrt_chooses_among_the_inputs():
    @primitive(lambda xp, g, y, a, b: g * b, lambda xp, g, y, a, b: 2 * g * a)
    def times(xp, a, b):
        return a * b

    for wrt, verdict in ((0, "pass"), ([0], "pass"), (1, "fail"), (-1, "fail"), ((0, 1), "fail"), (None, "fail")):
        assert check(times, X, X + 1, wrt=wrt).verdict == verdict
    assert {item.input for item in check(times, X, X + 1).items if item.index is not None} == {1}


def test_the_names_are_those_of_the_function():
    assert check(lambda weight, *rest: weight * rest[1], X, X, X).names == ("weight", "rest[0]", "rest[1]")
    assert check(np.exp, X).names == ("x",) or check(np.exp, X).names == ("x0",)
    assert check(tg.nn.Linear(4, 2, rng=0), X).names == ("x",)


def test_inputs_are_cast_to_a_dtype():
    seen = set()

    def f(x):
        seen.add(x.dtype)
        return np.exp(x)

    report = check(f, X, dtype=np.float32)
    assert report.ok, str(report)
    assert np.dtype(np.float32) in seen


def test_a_gradient_cut_off_fails():
    report = check(lambda x: Tensor(np.sin(x.detach().data)) + 0 * x, X)
    assert report.verdict == "fail"


def test_the_mode_of_the_caller_does_not_matter():
    with tg.no_grad():
        passes(in_place, X)


# ---- what users are told


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: check(lambda x: float(x.sum()), X), TypeError, "the function returns float, not a Tensor"),
        (lambda: check(lambda x: x.data, X), TypeError, "returns float64 array, not a Tensor"),
        (lambda: check(lambda x: x > 0, X), TypeError, "comparisons leave the graph"),
        (lambda: check(lambda x: (x, 1.0), X), TypeError, "return only what to differentiate"),
        (lambda: check(lambda x: None, X), TypeError, "returns NoneType"),
        (lambda: check(lambda x: {"loss": x}, X), TypeError, "a dict: return a Tensor or a tuple"),
        (lambda: check(lambda x: (), X), TypeError, "an empty tuple"),
        (lambda: check(lambda x: x.astype(int), X), TypeError, "returns int64, which has no gradient"),
        (lambda: check(lambda n: n, [1, 2]), TypeError, "no input has a float dtype (inputs: int64 (2,)): write 1.0"),
        (lambda: check(lambda: Tensor(1.0)), TypeError, "(inputs: none)"),
        (lambda: check(lambda x, s: x, X, "rows"), TypeError, "input 1: expected a Tensor, an array or a number"),
        (lambda: check(lambda x: x, [[1.0], [2.0, 3.0]]), TypeError, "input 0: setting an array element"),
        (lambda: check(lambda x: x, [Tensor(1.0)]), TypeError, "a list of Tensors: give each as an input of its own"),
        (lambda: check(lambda x: x, X + 1j), TypeError, "input 0 is complex128"),
        (lambda: check(X, lambda x: x), TypeError, "a function first, then its inputs"),
        (lambda: check(lambda x: x, X, wrt=1), ValueError, "wrt=1 does not fit 1 inputs"),
        (lambda: check(lambda x, n: x, X, 1, wrt=1), TypeError, "input 1 is int64; only float inputs have gradients"),
        (lambda: check(lambda x: x, X, wrt=(0, -1)), ValueError, "none twice"),
        (lambda: check(lambda x: x, X, order=3), ValueError, "order must be 1 or 2, not 3"),
        (lambda: assert_grad(lambda x: x, X, allow=("kinks",)), ValueError, "names 'kinks'; verdicts are pass, kink"),
        (lambda: compare(lambda x: x, X, devices=("cpu",)), ValueError, "needs two devices"),
        (lambda: compare(lambda x: x, X, devices=("cpu", "tpu")), ValueError, "not 'tpu'"),
        (lambda: bool(check(lambda x: x, X)), TypeError, "use report.ok"),
    ],
)
def test_a_misuse_is_one_line_that_says_what_to_do(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_primitive_is_caught_with_a_message_that_reads_well():
    with pytest.raises(GradCheckError) as caught:
        assert_grad(wrong_sine(), X, seed=3)
    text = str(caught.value)
    assert caught.value.report.verdict == "fail"
    assert "gradient check: FAIL" in text
    assert "seed=3" in text
    assert all(f"index ({i}, {j})" in text for i in range(3) for j in range(4))
    assert "a: float64 (3, 4)" in text


def test_assert_grad_lets_pass_what_is_right_and_what_is_allowed():
    assert assert_grad(lambda x: np.sin(x), X) is None
    assert_grad(wrong_sine(), X, allow=("fail",))
    at_kink = np.array([0.0, 1.0, -2.0])
    assert_grad(lambda x: tg.relu(x), at_kink)
    with pytest.raises(GradCheckError):
        assert_grad(lambda x: tg.relu(x), at_kink, allow=())


# ---- second order


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: np.sin(x),
        lambda x: x.sum(),
        lambda x: (np.exp(x), x * x[0]),
        lambda x: tg.softmax(x @ W, axis=-1),
        lambda x: Tensor(2.0),
    ],
)
def test_right_second_derivatives_pass(fn):
    report = check_second(fn, X)
    assert report.verdict == "pass", str(report)
    assert report.structure["symmetry"] == "pass"


def second_wrong(factor):
    """Its gradient is right, and the derivative of that is not: the rule takes cos from a primitive that is wrong."""

    @primitive(lambda xp, g, y, a: -factor * g * xp.sin(a))
    def cosine(xp, a):
        return xp.cos(a)

    @primitive(lambda xp, g, y, a: g * xp.cosine(a))
    def sine(xp, a):
        return xp.sin(a)

    return sine


def test_a_wrong_second_derivative_is_caught_where_the_first_is_right():
    fn = second_wrong(1.001)
    passes(fn, X)
    report = check_second(fn, X)
    assert report.verdict == "fail"
    assert {item.input for item in report.items if item.index is not None} == {0}
    both = check(fn, X, order=2)
    assert both.verdict == "fail"
    assert "second order" in str(both)
    assert "order=2" in str(both)
    assert both.names == ("a", "g")


def test_both_orders_in_one_report():
    report = passes(lambda x, w: np.tanh(x @ w), X, W, order=2)
    assert report.counts["pass"] == 20 + 20 + 6
    assert check(wrong_sine(), X, order=2).verdict == "fail"


def test_a_hessian_that_is_not_symmetric_is_reported():
    @primitive(lambda xp, g, y, a: g * a[0] * xp.stack([a[1], a[0]]))  # of no function
    def curl(xp, a):
        return a[0] * a[1]

    report = check_second(curl, X[0, :2])
    assert report.structure["symmetry"] != "pass"
    assert any(item.reason.startswith("symmetry: u'Hw = ") for item in report.items)
    assert report.verdict == "fail"


# ---- dot test, Taylor


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("fn", "linear"),
    [
        (lambda x: x @ W, True),
        (lambda x: 3 * x.sum(0) + 1, True),
        (lambda x: (x.T, np.cumsum(x, axis=1)), True),
        (lambda x: np.where(X > 0, x, 2 * x), True),
        (lambda x: np.tanh(x), False),
        (lambda x: abs(x), False),
        (lambda x: (x, x * x), False),
        (lambda x: Tensor(np.ones(2)), True),
    ],
)
def test_the_dot_test_passes_and_knows_what_is_linear(fn, linear, dtype):
    report = dot_test(fn, X, dtype=dtype)
    assert report.ok, str(report)
    assert report.linear == linear
    assert (report.direct is not None) == linear
    assert report.tolerance < (1e-10 if dtype is np.float64 else 1e-2)


def test_the_dot_test_of_a_linear_function_needs_no_step():
    @primitive(lambda xp, g, y, a: (1 + 1e-9) * g)  # one part in 10^9, which no difference quotient sees
    def same(xp, a):
        return a * 1.0

    report = dot_test(same, X)
    assert report.verdict == "fail"
    assert "dot test: FAIL" in str(report)
    assert "linear" in str(report)


def test_the_dot_test_sees_rules_that_contradict_each_other():
    @primitive(lambda xp, g, y, a: 2.0 * g)
    def twice_as_steep(xp, a):
        return a * 1.0

    @primitive(lambda xp, g, y, a: xp.twice_as_steep(g) * xp.cos(a))
    def sine(xp, a):
        return xp.sin(a)

    assert dot_test(sine, X).verdict == "fail"


def test_taylor_of_tensors():
    assert 1.9 < taylor(lambda x: (np.sin(x), x @ W), X).slope < 2.1
    assert 0.9 < taylor(wrong_sine(1.1), X).slope < 1.1
    assert taylor(lambda x, n: x**n, abs(X) + 1, 3).verdict == "pass"


# ---- devices


def test_inputs_of_a_device_are_checked_there(device):
    there = arrays.move(X, device)
    seen = set()

    def f(x, n):
        seen.add((x.device, arrays.device_of(n)))
        return np.tanh(x)[n], x.sum()

    for x in there, Tensor(there):
        report = check(f, x, arrays.move(np.array([0, 2, 2]), device), order=2)
        assert report.verdict == "pass", str(report)
    assert seen == {(device, device)}
    assert dot_test(lambda x: x @ arrays.move(W, device), there).ok
    assert taylor(np.sin, there).verdict == "pass"
    assert check(wrong_sine(), there).verdict == "fail"


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_two_devices_agree(device, dtype):
    def f(x, w):
        return tg.softmax(x @ w, axis=-1), np.exp(x).sum(0)

    report = compare(f, X, W, devices=("cpu", device), dtype=dtype)
    assert report.verdict == "pass", str(report)
    assert report.counts["pass"] == 6 + 4 + 12 + 8


def differing(where, factor):
    """A primitive that is wrong on one device: in its value, or in its gradient."""

    def off(xp, what):
        return factor if xp.device != "cpu" and what == where else 1.0

    @primitive(lambda xp, g, y, a: off(xp, "gradient") * g * xp.cos(a))
    def sine(xp, a):
        return off(xp, "value") * xp.sin(a)

    return sine


@pytest.mark.parametrize(("dtype", "factor"), [(np.float64, 1 + 1e-12), (np.float32, 1.001), (np.float16, 1.3)])
@pytest.mark.parametrize("where", ["value", "gradient"])
def test_a_device_that_differs_is_reported(where, dtype, factor):
    report = compare(differing(where, factor), X, dtype=dtype)
    assert report.verdict == "fail"
    assert {item.input for item in report.items} == {-1 if where == "value" else 0}
    assert where in report.items[0].reason
    assert "analytic is on strict, numeric on cpu" in str(report)
    assert "devices=('cpu', 'strict')" in str(report)


def test_what_is_badly_conditioned_may_differ_by_as_much_as_that_makes():
    def cancelling(x):
        return (x + 1e4) - 1e4 * (1 + 1e-7 * x)

    assert compare(cancelling, X, dtype=np.float32).ok
    nan = compare(lambda x: np.log(x), np.array([-1.0, 0.0, 1.0]))
    assert nan.verdict == "pass", str(nan)


# ---- functions of others, by `check_vjp`


def test_a_function_of_pytorch_is_checked():
    torch = pytest.importorskip("torch")

    def f(x, w):
        return torch.tanh(torch.from_numpy(x) @ torch.from_numpy(w)).numpy()

    def rule(g, x, w, factor=1.0):
        x, w = torch.from_numpy(x).requires_grad_(), torch.from_numpy(w).requires_grad_()
        torch.tanh(x @ w).backward(torch.from_numpy(g))
        return x.grad.numpy(), factor * w.grad.numpy()

    assert check_vjp(f, rule, [X, W]).verdict == "pass"
    wrong = check_vjp(f, lambda *a: rule(*a, factor=1.0001), [X, W])
    assert wrong.verdict == "fail"
    assert {item.input for item in wrong.items} == {1}


def test_a_backward_pass_of_a_notebook_is_checked():
    labels = np.array([1, 0, 1])

    def predict(x, w):
        p = np.exp(x @ w)
        return p / p.sum(axis=1, keepdims=True)

    def loss(x, w):
        return -np.mean(np.log(predict(x, w)[np.arange(3), labels]))

    def backward(g, x, w, count=3):
        delta = predict(x, w)
        delta[np.arange(3), labels] -= 1
        delta *= g / count
        return delta @ w.T, x.T @ delta

    assert check_vjp(loss, backward, [X, W]).verdict == "pass"
    wrong = check_vjp(loss, lambda *a: backward(*a, count=1), [X, W])
    assert wrong.verdict == "fail"
    assert "analytic = 3.000 x numeric: a sum for a mean? (3 = size of axis 0" in str(wrong)


def test_a_function_of_cupy_is_checked(device):
    cp = arrays.namespace(type(arrays.move(X, device)))._module

    def f(x):
        return cp.asnumpy(cp.tanh(cp.asarray(x)))

    def rule(g, x, factor=1.0):
        y = cp.tanh(cp.asarray(x))
        return (factor * cp.asnumpy(cp.asarray(g) * (1 - y * y)),)

    assert check_vjp(f, rule, [X]).verdict == "pass"
    assert check_vjp(f, lambda *a: rule(*a, factor=1.0001), [X]).verdict == "fail"


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"mode": "element"}, ValueError, "'auto', 'elements' or 'project', not 'element'"),
        ({"wrt": (1,)}, TypeError, "input 1 is int64; only float inputs have gradients"),
        ({"wrt": (2,)}, ValueError, "does not fit 2 inputs"),
        ({"wrt": ()}, ValueError, "at least one input"),
        ({"order": 2}, ValueError, "check(fn, ..., order=2)"),
    ],
)
def test_wrong_arguments_of_a_check_of_arrays_say_what_is_wrong(options, error, text):
    with pytest.raises(error) as caught:
        check_vjp(lambda x, n: np.sin(x), lambda g, x, n: (g * np.cos(x),), [np.ones(3), np.arange(3)], **options)
    assert text in str(caught.value)
