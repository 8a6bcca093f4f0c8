"""`explain`: the printed text, run where this package cannot be imported, gives the value and the gradients of the
function; and it reads as it should."""

import builtins
import inspect
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import small
import typer
from typer.testing import CliRunner

import tinygrad_mnist as tg
from tinygrad_mnist import Tensor, core, grad, losses, nn, no_grad, ops, value_and_grad
from tinygrad_mnist.explain_cli import explain as command
from tinygrad_mnist.explanation import explain, explain_network
from tinygrad_mnist.testing import strict
from tinygrad_mnist.testing.optable import OPS

GOLDEN = Path(__file__).parent / "golden_explain"


def load(text, module=None):
    """The function that the text defines, in a world without this package."""

    def importing(name, *args, **kwargs):
        if name.partition(".")[0] == "tinygrad_mnist":
            raise ImportError(f"the text imports {name}")
        return module if name == "cupy" else builtins.__import__(name, *args, **kwargs)

    space = {"__builtins__": {**vars(builtins), "__import__": importing}}
    exec(compile(text, "<explained>", "exec"), space)
    (function,) = [v for name, v in space.items() if inspect.isfunction(v) and name.endswith("_and_gradients")]
    return function


def close(actual, expected, rtol=1e-12):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    scale = np.abs(expected).max(initial=0)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * (scale if np.isfinite(scale) else 0) + 1e-300)


def agrees(f, *inputs, wrt=None, rtol=1e-12, **closure):
    """The text for `f`, after a comparison with `value_and_grad`."""
    places = tuple(k for k, a in enumerate(inputs) if np.asarray(a).dtype.kind == "f") if wrt is None else wrt
    text = explain(f, *inputs, wrt=wrt)
    function = load(text)
    extra = {name: closure[name] for name in list(inspect.signature(function).parameters)[len(inputs) :]}
    with np.errstate(all="ignore"):
        value, gradients = function(*inputs, **extra)
        expected, slopes = value_and_grad(f, places)(*inputs)
    close(value, expected, rtol)
    by = re.search(r"its gradients? by ([\w, \n]+)\)", function.__doc__)[1]
    names = list(inspect.signature(function).parameters)
    used = [names.index(name) for name in re.split(r",\s+|\s+and\s+", by.strip())]  # the others do not matter
    slopes = [slopes[places.index(k)] for k in used]
    for actual, slope in zip(gradients, slopes, strict=True):
        close(actual, slope, rtol)
        assert actual.flags.writeable or not actual.shape
    return text


# ---- it is right, for every operation ------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_operation(op):
    for case in op.cases():
        floats = tuple(k for k, a in enumerate(case) if a.dtype.kind == "f")
        y = op.call(core.F, *(Tensor(a, requires_grad=k in floats) for k, a in enumerate(case))) if floats else None
        if not isinstance(y, Tensor) or not y.requires_grad:
            continue
        weights = np.random.default_rng(1).normal(size=y.shape)

        def f(*operands, weights=weights):
            return np.sum(op.call(core.F, *operands) * weights)

        agrees(f, *case, wrt=floats, rtol=1e-11, weights=weights)


# ---- for random expressions


def random_function(rng):
    """A function of three arrays made of random steps, each on what there is already."""
    unary = [
        np.tanh, np.sin, np.exp, np.square, ops.relu, ops.sigmoid, ops.softplus, lambda a: np.abs(a) + 0.1,
        lambda a: -a, lambda a: 1 / (1 + a * a),
        lambda a: a.T, lambda a: np.sqrt(a * a + 1), lambda a: a**3, lambda a: 2.0**a,
        lambda a: np.where(a > 0.1, a, 0.5 * a), lambda a: a.reshape(-1), lambda a: np.sort(a, axis=-1),
        lambda a: tg.softmax(a), lambda a: tg.logsumexp(a, axis=-1, keepdims=True), lambda a: a[::-1],
        lambda a: a.mean(axis=-1, keepdims=True), lambda a: a.max(axis=0), lambda a: a.sum(), lambda a: a[[0, -1, 0]],
        lambda a: np.cumsum(a, axis=0), lambda a: a.astype("float64"), lambda a: a[None], lambda a: a[..., None],
        lambda a: np.std(a, axis=0), lambda a: np.maximum(a, 0.2), lambda a: np.minimum(a, a.mean()),
    ]  # fmt: skip
    binary = [
        np.add, np.subtract, np.multiply, lambda a, b: a / (2 + np.tanh(b)), np.maximum, np.minimum, np.hypot,
        np.logaddexp, np.arctan2, np.matmul, lambda a, b: np.concatenate([a, b]), lambda a, b: np.where(b > 0, a, b),
        lambda a, b: np.einsum("...i,...j->...ij", a, b), lambda a, b: (a * a + 0.5) ** b, lambda a, b: np.outer(a, b),
    ]  # fmt: skip
    plan = [(rng.integers(0, 2), rng.integers(0, 99), rng.integers(0, 99, 2)) for _ in range(rng.integers(2, 9))]

    def f(a, b, c):
        pool = [a, b, c]
        for two, which, operands in plan:
            x, y = (pool[k % len(pool)] for k in operands)
            try:
                made = binary[which % len(binary)](x, y) if two else unary[which % len(unary)](x)
            except (ValueError, IndexError, TypeError):
                continue
            if made.size <= 200:
                pool.append(made)
        return sum(np.sum(np.cos(x)) for x in pool[-3:])

    return f


SHAPES = [[(3, 4), (4,), (3, 1)], [(2, 2), (2, 2), ()], [(4, 3, 2), (3, 2), (1, 2)], [(3,), (3,), (1,)]]


@pytest.mark.parametrize("seed", range(60))
def test_random_expressions(seed, effort):
    for k in range(effort):
        rng = np.random.default_rng([seed, k])
        agrees(random_function(rng), *(rng.normal(size=n) for n in SHAPES[seed % len(SHAPES)]), rtol=1e-10)


# ---- for functions as people write them -----------------------------------------------------------------------------

RNG = np.random.default_rng(3)
X, Y, W, V = (RNG.normal(size=n) for n in ((8, 4), (8, 2), (4, 5), (5, 2)))
LABELS = RNG.integers(0, 2, 8)


def two_layers(X, Y, W, V):
    hidden = np.maximum(0, X @ W)
    out = np.tanh(np.dot(hidden, V))
    error = out - Y
    return 0.5 * np.mean(np.sum(error**2, axis=1))


def recurrent(X, W):
    state = X[0, :4]
    for k in range(3):
        state = np.tanh(state @ W[:, :4] + X[k])
    return np.sum(state * state)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def helpers(X, W, V):
    return np.mean(sigmoid(sigmoid(X @ W) @ V))


def branches(X, W, V, deep=True):
    a = X @ W
    if deep:
        b = a @ V
        a = np.concatenate([a, b], axis=1)
    return np.mean(a * a) + np.sum(a)


def with_labels(X, W):
    logits = X @ W[:, :2]
    top = logits.max(axis=1, keepdims=True)
    log_p = logits - top - np.log(np.sum(np.exp(logits - top), axis=1, keepdims=True))
    return -np.mean(log_p[np.arange(len(LABELS)), LABELS])


def penalised(X, W):
    slope = grad(lambda x: np.sum(np.tanh(x @ W) ** 2))(X)
    return np.sum(slope**2) + np.sum(X @ W)


def trees(params, X):
    h = np.tanh(X @ params["W"] + params["layers"][0])
    return np.sum((h @ params["layers"][1]) ** 2)


@pytest.mark.parametrize(
    ("f", "inputs"),
    [
        (two_layers, (X, Y, W, V)), (recurrent, (X, W)), (helpers, (X, W, V)), (branches, (X, W, V)),
        (with_labels, (X, W)), (penalised, (X, W)), (lambda x: np.sum(x * 3), (X,)), (lambda x: x.sum(), (X,)),
        (lambda a, b: np.sum(a + b), (X, X)), (lambda a: np.sum(a[1:] * a[:-1]), (X,)), (lambda x: x, (np.array(2.0),)),
    ],
)  # fmt: skip
def test_functions_of_users(f, inputs):
    agrees(f, *inputs, LABELS=LABELS)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_dtype_stays(dtype):
    inputs = [a.astype(dtype) for a in (X, Y, W, V)]
    agrees(two_layers, *inputs, rtol=1e-5 if dtype == "float32" else 1e-2)
    agrees(helpers, *inputs[::2], inputs[3], rtol=1e-5 if dtype == "float32" else 1e-2)


def test_trees_of_arguments():
    W_, b_, V_ = (Tensor(a, requires_grad=True) for a in (W, np.ones(5), V))
    params = {"W": W_, "layers": [b_, V_]}
    function = load(explain(trees, params, X))
    trees(params, X).backward()
    _, gradients = function({"W": W, "layers": [np.ones(5), V]}, X)
    for actual, t in zip(gradients, (params["W"], *params["layers"]), strict=True):
        close(actual, t.grad)


# ---- the forward passes of the five notebooks


@pytest.mark.parametrize("letter", small.NOTEBOOKS)
@pytest.mark.parametrize("xp", ["numpy", "cupy"])
def test_notebooks(letter, xp):
    """CuPy's text runs on the strict double of CuPy."""
    found, weights, samples = small.notebook(letter)
    inputs, wrt = [*weights.values(), *samples.values()], tuple(range(len(weights)))
    function = load(explain(found.forward, *inputs, wrt=wrt, xp=xp), strict.xp)
    place, host = (np.asarray, np.asarray) if xp == "numpy" else (strict.xp.asarray, strict.xp.asnumpy)
    value, gradients = function(*map(place, inputs))
    expected, slopes = value_and_grad(found.forward, wrt)(*inputs)
    close(host(value), expected)
    for gradient, slope in zip(gradients, slopes, strict=True):
        close(host(gradient), slope)


def test_what_a_function_finds_outside_is_found_by_name():
    W1, b1, W2 = (Tensor(RNG.normal(size=n), requires_grad=True) for n in ((4, 5), (5,), (5, 2)))
    x, y = X, Y

    def forward():
        H = 1 / (1 + np.exp(-(np.dot(x, W1) + b1)))
        return np.mean((np.dot(H, W2) - y) ** 2)

    function = load(explain(forward))
    assert set(inspect.signature(function).parameters) == {"x", "y", "W1", "b1", "W2"}
    loss = forward()
    loss.backward()
    value, gradients = function(x=x, y=y, W1=W1.data, b1=b1.data, W2=W2.data)
    close(value, loss.data)
    names = [name for name in inspect.signature(function).parameters if name not in "xy"]
    for name, gradient in zip(names, gradients, strict=True):
        close(gradient, {"W1": W1, "b1": b1, "W2": W2}[name].grad)


# ---- what else a function may do, and what it may not


def test_a_function_that_writes_in_place():
    def f(x):
        total = x * 1.0
        with no_grad():
            state = Tensor(np.zeros((8, 4)))
            state[1:] = x[1:] * 2
            state += 1.0
        return np.sum(total * state)

    text = explain(f, X)
    assert "state[1:] = " in text
    state = np.zeros((8, 4))
    state[1:] = X[1:] * 2
    value, (gradient,) = load(text)(X)
    close(value, np.sum(X * (state + 1)))
    close(gradient, state + 1)


def test_the_functions_own_memory_and_gradients_are_left_alone():
    model = nn.MLP((4, 3, 2), rng=0)
    before = model.flat.copy()
    explain(lambda x: losses.softmax_cross_entropy(model(x), LABELS), X.astype("float32"))
    assert np.array_equal(before, model.flat)
    assert all(p.grad is None for p in model.parameters())


def test_dropout_takes_a_generator():
    function = load(explain_network((4, 5, 2), dropout=0.5, dtype="float64"))
    model = nn.MLP((4, 5, 2), dropout=0.5, dtype="float64", rng=np.random.default_rng(1))
    model.rng = np.random.default_rng(7)
    loss = losses.softmax_cross_entropy(model(X), LABELS.astype("uint8"))
    loss.backward()
    params = [p.data for p in model.parameters()]
    value, gradients = function(X, LABELS, *params, rng=np.random.default_rng(7))
    close(value, loss.data)
    for actual, p in zip(gradients, model.parameters(), strict=True):
        close(actual, p.grad)


@pytest.mark.parametrize("activation", nn.ACTIVATIONS)
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_networks_for_any_number_of_images(activation, loss):
    function = load(explain_network((4, 5, 6, 2), activation, loss, dtype="float64"))
    model = nn.MLP((4, 5, 6, 2), activation, dtype="float64", rng=0)
    for n in (1, 8):
        x, y = X[:n], LABELS[:n].astype("uint8")
        z = model(x)
        cross = loss == "cross_entropy"
        value = losses.softmax_cross_entropy(z, y) if cross else losses.mse(ops.softmax(z), np.eye(2)[y])
        model.zero_grad()
        value.backward()
        actual, gradients = function(x, y, *(p.data for p in model.parameters()))
        close(actual, value.data)
        for gradient, p in zip(gradients, model.parameters(), strict=True):
            close(gradient, p.grad)


class Net(nn.Module):
    """A network as a user writes one."""

    def __init__(self):
        self.W = Tensor(W.copy(), requires_grad=True)
        self.last = nn.Linear(5, 2, dtype="float64", rng=0)

    def __call__(self, x):
        hidden = np.tanh(x @ self.W)
        return self.last(hidden)


def test_a_network_of_a_user():
    """Parameters have the names of attributes, or their own; values those of the method."""
    net = Net()
    text = explain(lambda X: losses.mse(net(X), Y), X)
    assert "# layer 1: hidden = tanh(X @ W)" in text
    assert "dhidden = dz2 @ weight.T" in text
    function = load(text)
    loss = losses.mse(net(X), Y)
    loss.backward()
    values = {"X": X, "Y": Y, "W": net.W.data, "weight": net.last.weight.data, "bias": net.last.bias.data}
    value, gradients = function(**values)
    close(value, loss.data)
    for actual, p in zip(gradients, net.parameters(), strict=True):
        close(actual, p.grad)


def test_the_tracer_of_others_stays():
    def trace(frame, event, arg):
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        explain(two_layers, X, Y, W, V)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)


@pytest.mark.parametrize(("activation", "loss"), [("relu", "cross_entropy"), ("gelu", "mse")])
def test_networks_on_the_strict_double_of_cupy(activation, loss):
    model = nn.MLP((4, 5, 2), activation, rng=0)
    arguments = [X.astype("float32"), LABELS.astype("uint8"), *(p.data for p in model.parameters())]
    host = load(explain_network((4, 5, 2), activation, loss))
    there = load(explain_network((4, 5, 2), activation, loss, xp="cupy"), strict.xp)
    value, gradients = there(*map(strict.xp.asarray, arguments))
    expected, slopes = host(*arguments)
    for actual, right in zip((value, *gradients), (expected, *slopes), strict=True):
        close(strict.xp.asnumpy(actual), right, rtol=1e-6)


def test_wrt_names_arguments():
    by_name, by_place = explain(two_layers, X, Y, W, V, wrt="V"), explain(two_layers, X, Y, W, V, wrt=-1)
    assert by_name == by_place
    assert "its gradient by V)" in by_name
    assert "dX" not in by_name


@pytest.mark.parametrize(
    ("f", "inputs", "options", "message"),
    [
        (lambda x: x * 2, (X,), {}, "must return a Tensor of one element, not one of shape (8, 4)"),
        (lambda x: 1.0, (X,), {}, "must return a Tensor of one element, not float"),
        (lambda n: Tensor(1.0), (3,), {}, "depends on no Tensor that requires a gradient"),
        (lambda x: Tensor(1.0), (X,), {"wrt": 0}, "depends on no Tensor that requires a gradient"),
        (lambda x: np.sum(x), (X,), {"wrt": "y"}, "wrt='y' is none of the arguments x"),
        (lambda x: np.sum(x), (X,), {"xp": "torch"}, "xp must be 'numpy' or 'cupy'"),
    ],
)
def test_what_cannot_be_explained(f, inputs, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        explain(f, *inputs, **options)


def test_a_function_that_calls_backward_is_told():
    def f(x):
        loss = np.sum(x * x)
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="leave backward"):
        explain(f, X, wrt=0)


# ---- it reads as it should


def golden(name, text):
    path = GOLDEN / f"{name}.txt"
    assert text == path.read_text(encoding="utf-8"), f"if the new text is better, write it to {path}"


def test_golden_network():
    golden("network", explain_network((784, 128, 64, 10), batch=128))


def test_golden_function_of_a_user():
    golden("two_layers", re.sub(r"line \d+", "line N", explain(two_layers, X, Y, W, V, wrt=("W", "V"))))


def test_golden_cupy_sigmoid_mse():
    golden("sigmoid_mse", explain_network((784, 32, 10), "sigmoid", "mse", xp="cupy"))


@pytest.mark.parametrize("letter", small.NOTEBOOKS)
def test_lines_are_short_and_none_is_dead(letter):
    found, weights, samples = small.notebook(letter)
    text = explain(found.forward, *weights.values(), *samples.values(), wrt=tuple(weights))
    body = text.partition("# ---- forward")[2]
    code = [line.partition("  #")[0].strip() for line in body.splitlines() if not line.strip().startswith("#")]
    assert max(map(len, code)) <= 100
    for line in code:
        name, equals, _ = line.partition(" = ")
        if equals and name.isidentifier():
            assert len(re.findall(rf"\b{name}\b", "\n".join(code))) > 1, line


def test_notebooks_are_a_users_code():
    found, weights, samples = small.notebook("B")
    text = explain(found.forward, *weights.values(), *samples.values(), wrt=tuple(weights))
    assert all(f"    d{name} = " in text for name in ("P", "Z2", "H", "Z1"))
    assert re.search(r"# line \d+: Z1 = np.dot\(X, W1.T\) \+ b1\n", text)


def test_a_function_among_the_arguments_is_shown_by_its_name():
    text = explain(lambda x, f: np.sum(f(x)), X, np.tanh, wrt="x")
    assert "f: tanh, which is fixed in this text" in text


def test_layers_without_an_activation_between_them_keep_their_titles():
    def output(W1, b1, W2, b2):
        return np.dot(np.dot(X, W1) + b1, W2) + b2

    def loss(W1, b1, W2, b2):
        return np.mean(output(W1, b1, W2, b2) ** 2)

    text = explain(loss, W, np.zeros(W.shape[1]), V, np.zeros(V.shape[1]))
    assert "# layer 1: z1 = X @ W1 + b1" in text
    assert "{" not in text


# ---- the command


def run(*arguments):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [*arguments])


def test_command_on_a_network():
    result = run("--model", "4-3-2", "--loss", "mse", "--activation", "tanh", "--batch", "8", "--dtype", "float64")
    assert result.exit_code == 0
    function = load(result.stdout)
    assert list(inspect.signature(function).parameters) == ["x", "y", "W1", "b1", "W2", "b2"]


def test_command_on_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import numpy as np\nf_inputs = (np.ones((2, 3)),)\ndef f(x):\n    return np.sum(np.tanh(x))\n")
    result = run(f"{path}:f")
    assert result.exit_code == 0
    value, (gradient,) = load(result.stdout)(np.ones((2, 3)))
    close(value, 6 * np.tanh(1.0))
    close(gradient, np.full((2, 3), 1 - np.tanh(1.0) ** 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss", "hinge"], "--loss must be"),
        (["--model", "a-b"], "--model must be"),
        (["--activation", "x"], "activation must be"),
    ],
)
def test_command_says_what_is_wrong(arguments, message):
    assert message in str(run(*arguments).exception)
