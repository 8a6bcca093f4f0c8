"""compile: invisible but for speed. Values equal those of the function itself bit for bit, whatever it does."""

import copy
import gc
import pickle
import threading
import tracemalloc
import weakref

import numpy as np
import pytest
import small

import tinygrad_mnist
from tinygrad_mnist import Tensor, detect_anomaly, functional, losses, nn, no_grad, optim
from tinygrad_mnist.capture import CaptureError
from tinygrad_mnist.compiled import LIMIT
from tinygrad_mnist.core import F

RNG = np.random.default_rng(0)


def compile(f, **options):
    return tinygrad_mnist.compile(f, backend="numpy", **options)


def flat(found):
    """All arrays and numbers in a result, as (dtype, shape, bytes)."""
    if isinstance(found, (list, tuple)):
        return [part for item in found for part in flat(item)]
    if isinstance(found, dict):
        return [part for key, item in found.items() for part in [key, *flat(item)]]
    if isinstance(found, Tensor):
        return ["Tensor", *flat(found._data)]
    a = np.asarray(found)
    return [(a.dtype, a.shape, a.tobytes())]


def agree(make, *calls, captures=2, replays=True):
    """`make()` returns (a function, the parameters and whatever else it changes); run eager, planned and unplanned on
    the same calls it gives the same results, parameters and gradients, bit for bit, after every call."""
    found = []
    for wrap in (lambda f: f, compile, lambda f: compile(f, plan=False)):
        f, state = make()
        f = wrap(f)
        trace, ran = [], []
        for call in calls:
            result = f(*call)
            grads = [t.grad if t.grad is None else t.grad.copy() for t in state if isinstance(t, Tensor)]
            trace.append(flat([result, [t._data if isinstance(t, Tensor) else t for t in state]]))
            trace.append([None if g is None else flat(g) for g in grads])
            ran.append(getattr(f, "backend", None))
        found.append(trace)
        if ran[0]:
            assert ran.count("eager") == captures, ran
            assert not replays or ran[-1] == "numpy"
    eager, planned, unplanned = found
    assert planned == eager
    assert unplanned == eager


def batches(count=5, n=6, features=4, classes=3, dtype="float32"):
    rng = np.random.default_rng(1)
    return [
        (rng.normal(size=(n, features)).astype(dtype), rng.integers(0, classes, n).astype(np.uint8))
        for _ in range(count)
    ]


def mlp(dtype="float32", dropout=0.0, **options):
    return nn.MLP((4, 5, 3), rng=np.random.default_rng(2), dropout=dropout, dtype=dtype, **options)


# ---- losses and derivatives


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_a_loss(dtype):
    def make():
        model = mlp(dtype)
        return (lambda x, labels: losses.softmax_cross_entropy(model(x), labels)), model.parameters()

    agree(make, *batches(dtype=dtype))


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh", "leaky_relu", "softplus", "gelu", "silu"])
def test_gradients_of_a_model(activation):
    def make():
        model = mlp(activation=activation)

        def f(x, labels):
            model.zero_grad()
            loss = losses.softmax_cross_entropy(model(x), labels)
            loss.backward()
            return loss, [p.grad for p in model.parameters()]

        return f, model.parameters()

    agree(make, *batches())


def energy(w, x):
    return (F.tanh(x @ w) ** 2).sum() + 0.1 * (w * w).sum() + F.exp(w * 0.1).mean()


@pytest.mark.parametrize("wrap", [np.asarray, Tensor], ids=["arrays", "Tensors"])
@pytest.mark.parametrize(
    "derivative",
    [
        functional.value_and_grad(energy),
        functional.grad(energy, (0, 1)),
        functional.grad(lambda w, x: (functional.grad(energy)(w, x) ** 2).sum()),
        lambda w, x: functional.hvp(lambda w: energy(w, x), w, w * 2),
        lambda w, x: functional.jvp(lambda w: F.tanh(x @ w), (w,), (w + 1,)),
        lambda w, x: functional.jacobian(lambda w: F.tanh(x @ w))(w),
        lambda w, x: functional.hessian(lambda w: energy(w, x))(w),
    ],
    ids=["value_and_grad", "both", "grad_of_grad", "hvp", "jvp", "jacobian", "hessian"],
)
def test_derivatives_as_functions(derivative, wrap):
    calls = [(wrap(RNG.normal(size=3)), wrap(RNG.normal(size=(4, 3)))) for _ in range(4)]
    if wrap is np.asarray:  # grad of grad: what the inner one returns must be a Tensor
        calls = [tuple(a.astype(np.float64) for a in call) for call in calls]
    agree(lambda: (derivative, []), *calls)


def test_derivative_of_a_compiled_function():
    square = compile(lambda x: (x * x).sum())
    x = np.array([1.0, 2.0])
    for _ in range(4):
        square(x)
        np.testing.assert_array_equal(functional.grad(square)(x), 2 * x)
        np.testing.assert_array_equal(functional.hessian(square)(x), 2 * np.eye(2))


# ---- whole steps

OPTIMIZERS = {
    **small.OPTIMIZERS,
    "schedule": lambda p: optim.SGD(p, optim.one_cycle(0.1, 6)),
    "adam_schedule": lambda p: optim.Adam(p, optim.one_cycle(0.01, 6)),
}


def training(optimizer, dtype="float32", clip=None, l2=0.0, zero="before", **options):
    """A step, and what it changes."""

    def make():
        model = mlp(dtype, **options)
        opt = OPTIMIZERS[optimizer](model.parameters())

        def step(x, labels):
            if zero == "before":
                opt.zero_grad()
            loss = losses.softmax_cross_entropy(model(x), labels)
            if l2:
                loss = loss + l2 * sum((p * p).sum() for p in model.parameters() if p.ndim == 2)
            loss.backward()
            norm = optim.clip_grad_norm(model.parameters(), clip) if clip else 0.0
            opt.step()
            if zero == "after":
                opt.zero_grad()
            return {"loss": loss, "norm": norm}

        return step, [*model.parameters(), *opt.state.values()]

    return make


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_steps(optimizer):
    agree(training(optimizer), *batches(6))


@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
def test_training_steps_in_other_dtypes(optimizer, dtype):
    agree(training(optimizer, dtype), *batches(6, dtype=dtype))


@pytest.mark.parametrize(
    "options",
    [{"clip": 0.1}, {"clip": 1e9}, {"clip": np.inf}, {"l2": 0.01}, {"dropout": 0.5}, {"zero": "after"},
     {"bias": False}],
    ids=str,
)
def test_training_steps_with(options):
    agree(training("momentum", **options), *batches(6))


def test_gradients_that_are_not_cleared_add_up():
    # the first call finds no gradient, the others do: two programs
    agree(training("sgd", zero="never"), *batches(6), captures=3)


def test_uint8_images_and_scaling():
    rng = np.random.default_rng(3)
    calls = [(rng.integers(0, 256, (6, 4)).astype(np.uint8), rng.integers(0, 3, 6)) for _ in range(5)]

    def make():
        model = mlp()
        opt = optim.Adam(model.parameters())

        def step(x, labels):
            loss = losses.softmax_cross_entropy(model(x.astype(np.float32) / 255), labels)
            loss.backward()
            opt.step()
            opt.zero_grad()
            return loss, (x / 255).mean(), x & 3, ~x, x ^ 1, x | 7, x >> 2

        return step, model.parameters()

    agree(make, *calls)


def test_step_counts_rates_and_generators_go_on():
    runs = []
    for wrap in (lambda f: f, compile):
        model = mlp(dropout=0.3)
        opt = optim.Adam(model.parameters(), optim.one_cycle(0.01, 20))

        def step(x, labels, model=model, opt=opt):
            opt.zero_grad()
            losses.softmax_cross_entropy(model(x), labels).backward()
            opt.step()

        step = wrap(step)
        trace = []
        for x, labels in batches(6):
            assert step(x, labels) is None
            trace.append((opt.steps, opt.lr, model.rng.bit_generator.state))
        opt.lr = 0.5  # ends the schedule
        step(x, labels)
        opt.lr = 0.25
        step(x, labels)
        trace.append((opt.steps, opt.lr, model.rng.bit_generator.state, flat([p._data for p in model.parameters()])))
        runs.append(trace)
    assert runs[0] == runs[1]


def test_the_learning_rate_set_between_calls():
    runs = []
    for wrap in (lambda f: f, compile):
        w = Tensor([1.0, 2.0], requires_grad=True)
        opt = optim.SGD([w], 0.1)

        def step(x, w=w, opt=opt):
            opt.zero_grad()
            (w * x).sum().backward()
            opt.step()

        step = wrap(step)
        for k in range(6):
            opt.lr = 0.1 / (k + 1)
            step(np.array([1.0, k], np.float32))
        runs.append(w._data.tobytes())
    assert runs[0] == runs[1]


def test_weight_decay_switched_on_between_calls():
    runs = []
    for wrap in (lambda f: f, compile):
        w = Tensor([1.0, 2.0], requires_grad=True)
        opt = optim.SGD([w], 0.1, momentum=0.5)

        def step(w=w, opt=opt):
            opt.zero_grad()
            (w * w).sum().backward()
            opt.step()

        step = wrap(step)
        for k in range(8):
            opt.weight_decay, opt.momentum = 0.1 * (k > 3), 0.5 + 0.01 * k
            step()
        runs.append(w._data.tobytes())
        if wrap is compile:
            assert step.backend == "numpy"
    assert runs[0] == runs[1]


def test_updates_by_hand():
    def make():
        w = Tensor(np.arange(6.0).reshape(3, 2), requires_grad=True, name="w")
        b = Tensor(np.ones(2), requires_grad=True)
        shift = Tensor(np.zeros(2))

        def step(x):
            w.zero_grad()
            b.grad = None
            loss = ((x @ w + b - shift) ** 2).mean()
            loss.backward()
            with no_grad():
                W, B = w, b
                W -= 0.1 * w.grad
                B *= 0.5
                B[0] = w[1, 1]
                B **= 2
                shift[...] = shift * 0.9 + 0.1 * b
            w.data -= 0.01 * w.data
            b.data[1:] += 1
            shift.data = shift.data * 2
            return loss, w.data.sum(), w.data

        return step, [w, b, shift]

    agree(make, *[(RNG.normal(size=(5, 3)),) for _ in range(5)])


def test_the_same_memory_read_before_and_after_an_update():
    def make():
        w = Tensor([1.0, 2.0], requires_grad=True)

        def step(x):
            before = w * x
            with no_grad():
                v = w
                v -= 0.5
            after = w * x
            return before, after, w.detach().reshape(2, 1), (w * x).sum()

        return step, [w]

    agree(make, *[(RNG.normal(size=2).astype(np.float32),) for _ in range(4)])


def test_arguments_that_lie_in_the_memory_of_a_parameter():
    runs = []
    for wrap in (lambda f: f, compile):
        w = Tensor([1.0, 2.0], requires_grad=True)

        def step(x, w=w):
            before = x * 2
            with no_grad():
                v = w
                v -= 0.5
            return before, x * 2

        step = wrap(lambda x, step=step: step(x))
        runs.append([flat(step(w._data)) for _ in range(4)])
    assert runs[0] == runs[1]


# ---- closures


def test_an_array_of_a_closure_changed_in_place_is_seen():
    def make():
        data = np.arange(3.0)
        t = Tensor(data)

        def f(x):
            return t * x + data, t.data @ x

        return f, [data]

    runs = []
    for wrap in (lambda f: f, compile):
        f, (data,) = make()
        f = wrap(f)
        trace = []
        for k in range(5):
            data[k % 3] += k
            trace.append(flat(f(np.array([1.0, 2.0, k]))))
        runs.append(trace)
    assert runs[0] == runs[1]


def with_limit(f, calls):
    """The results of calls, which must warn once that they are captured too often."""
    with pytest.warns(UserWarning, match=f"captured {LIMIT} times more than once") as caught:
        found = [flat(f(*call)) for call in calls]
    assert [w.filename for w in caught] == [__file__]
    assert f.backend == "eager"
    return found, str(caught[0].message)


def changing_slice():
    X, i = np.zeros((400, 2)), iter(range(100))
    X[200:] = 1  # at first all rows are alike

    def f(x):
        k = next(i)
        return x * Tensor(X[k * 10 : k * 10 + 10])

    return f


def counter():
    i = iter(range(100))
    return lambda x: x * next(i)


def python_result():
    i = iter(range(100))
    return lambda x: (x * 2, next(i))


def baked_draw():
    rng = np.random.default_rng(0)
    return lambda x: x * rng.normal(size=2)


def drawn_into_a_buffer():
    rng, noise = np.random.default_rng(0), np.zeros(2)

    def f(x):
        rng.standard_normal(out=noise)
        return x * Tensor(noise)

    return f


def seeded_dropout():
    return lambda x: nn.dropout(x, 0.5, rng=7)


def accumulating_in_new_memory():
    def f(x):
        total = Tensor(np.zeros(2))
        with no_grad():
            total += x
        return total

    return f


def turns():
    i = iter(range(100))
    return lambda x: (x + 1, x * 2)[:: 1 - 2 * (next(i) % 2)]


def gradients_in_turns():
    w, v, i = Tensor(np.ones(2), requires_grad=True), Tensor(np.ones(2), requires_grad=True), iter(range(100))

    def f(x):
        a, b = x * 2, x * 3
        w.grad, v.grad = (a, b) if next(i) % 2 else (b, a)

    return f


@pytest.mark.parametrize(
    "make",
    [
        changing_slice, counter, python_result, baked_draw, drawn_into_a_buffer, seeded_dropout,
        accumulating_in_new_memory, turns, gradients_in_turns,
    ],
)  # fmt: skip
def test_what_is_baked_in_is_noticed(make):
    calls = [(np.array([1.0, k // 4]),) for k in range(40)]
    f = make()
    eager = [flat(f(*call)) for call in calls]
    found, message = with_limit(compile(make()), calls)
    assert found == eager
    assert "new at every call (16 times)" in message


def test_new_kinds_of_arguments_are_told():
    f = compile(lambda x, k=1: x * k)
    found, message = with_limit(f, [(np.zeros(2), k) for k in range(30)])
    assert "argument k: 1, before 0 (1 times)" in message
    assert found == [flat(np.zeros(2) * k) for k in range(30)]
    g = compile(lambda x: x * 2)
    message = with_limit(g, [(np.zeros(n),) for n in range(30)])[1]
    assert "argument x: float64 (1,), before float64 (0,)" in message


def test_past_the_limit_nothing_is_kept():
    f = compile(lambda x, k: x * k)
    with_limit(f, [(np.zeros(2), k) for k in range(30)])
    size = len(f._variants)
    for k in range(50, 60):
        f(np.zeros(2), k)
    assert len(f._variants) == size


def test_known_kinds_run_past_the_limit():
    f = compile(lambda x, k: x * k)
    for _ in range(3):
        f(np.ones(2), -1)
    with_limit(f, [(np.zeros(2), k) for k in range(30)])
    f(np.ones(2), -1)
    assert f.backend == "numpy"


# ---- kinds of calls


def captures(f, *calls):
    """For each call whether it was a replay."""
    ran = []
    for args in calls:
        f(*args)
        ran.append(f.backend == "numpy")
    return ran


def test_another_shape_dtype_layout_or_python_argument_is_another_program():
    f = compile(lambda x, k=0: x * 2 + k)
    a = np.zeros((2, 3))
    kinds = [(a,), (a[:1],), (a.astype(np.float32),), (np.asfortranarray(a),), (a, 1), (a, 1.0), (a, True), (a, 0.0),
             (a, -0.0), (a, np.float32(1)), (a, np.float64(1)), (Tensor(a),)]  # fmt: skip
    assert captures(f, *kinds, *kinds, *kinds) == [False] * 2 * len(kinds) + [True] * len(kinds)


def test_values_that_are_equal_are_one_argument():
    f = compile(lambda x, *rest: x * 2)
    x = np.zeros(2)
    for make in (lambda: float("nan"), lambda: np.float32(2), lambda: slice(1, 2), lambda: (1, "a"), lambda: range(3)):
        assert captures(f, *[(x, make()) for _ in range(3)]) == [False, False, True]


def test_sign_of_a_zero_argument():
    f = compile(lambda x, k: x * k)
    for k in (0.0, -0.0) * 3:
        assert np.signbit(f(np.ones(1), k))[0] == np.signbit(k)


def test_train_and_eval():
    def make():
        model = mlp(dropout=0.5)
        return (lambda x, labels: model(x)), [], model

    runs = []
    for wrap in (lambda f: f, compile):
        f, _, model = make()
        f = wrap(f)
        trace = []
        for mode in (True, False) * 4:
            model.train(mode)
            for call in batches(2):
                trace.append(flat(f(*call)))
        model.dropout = 0.25
        model.train()
        trace += [flat(f(*call)) for call in batches(4)]
        runs.append(trace)
    assert runs[0] == runs[1]
    assert f.backend == "numpy"


def test_no_grad_outside():
    w = Tensor([1.0, 2.0], requires_grad=True)
    f = compile(lambda x: (w * x).requires_grad)
    for _ in range(3):
        assert f(np.ones(2)) is True
        with no_grad():
            assert f(np.ones(2)) is False


def test_arguments_and_results_in_containers():
    def f(pair, named, *rest, scale=1.0):
        a, b = pair
        return {"sum": a + b, "more": [named["x"] * scale, (rest[0], "text", None)], "n": 3, "same": a}

    calls = []
    for _ in range(4):
        a, b, x, y = (RNG.normal(size=2) for _ in range(4))
        calls.append(((Tensor(a), b), {"x": x}, Tensor(y)))
    agree(lambda: (f, []), *calls)
    compiled = compile(f)
    for call in calls:
        found = compiled(*call, scale=2.0)
    assert found["more"][1][1:] == ("text", None)
    assert found["n"] == 3
    assert isinstance(found["same"], Tensor)
    assert isinstance(found["more"][0], np.ndarray)


def test_a_function_without_arrays():
    f = compile(lambda k: k + 1)
    assert [f(1) for _ in range(4)] == [2] * 4


def test_methods():
    class Trainer:
        def __init__(self):
            self.w = Tensor(np.ones(2), requires_grad=True)

        def loss(self, x):
            return (self.w * x).sum()

        compiled = compile(loss)

    one, two = Trainer(), Trainer()
    two.w.data = np.full(2, 5.0)
    for _ in range(4):
        assert one.compiled(np.ones(2)).item() == 2
        assert two.compiled(np.ones(2)).item() == 10
    assert one.compiled.backend == "numpy"


def test_results_are_the_callers_own():
    w, data = Tensor(np.ones(2), requires_grad=True), np.ones(2)
    f = compile(lambda x: (x, w.data, w.detach(), x * 2, x[:1], data, w.data[1:], np.arange(2.0)))
    x = np.ones(2)
    kept = []
    for _ in range(4):
        found = f(x)
        kept.append(found)
        for a in found:
            a = a._data if isinstance(a, Tensor) else a
            a += 5
        assert x.tolist() == w._data.tolist() == data.tolist() == [1, 1]
    assert [flat(f) for f in kept] == [flat(kept[0])] * 4


def test_a_parameter_is_returned_as_itself():
    w = Tensor(np.ones(2), requires_grad=True)
    f = compile(lambda x: (w, w * x))
    for _ in range(3):
        assert f(np.ones(2))[0] is w


def test_reused_outputs():
    f = compile(lambda x: x * 2, reuse_outputs=True)
    found = [f(np.array([1.0, k])) for k in range(5)]
    assert found[2] is found[3] is found[4] or np.shares_memory(found[3], found[4])
    assert found[4].tolist() == found[3].tolist() == [2, 8]
    assert found[1].tolist() == [2, 2]


# ---- shapes


@pytest.mark.parametrize(
    "f",
    [
        lambda x, w: (x @ w, w @ w, x @ x.T, x.T @ x, w @ x.T),
        lambda x, w: ((x * 2).T @ (x * 2), (x * 2).T @ (x + x), x.T @ x.copy()),
        lambda x, w: (x.sum(), x.mean(), x.max(), x[0, 0], x[0, 0] + x.sum(), x.sum(axis=0, keepdims=True)),
        lambda x, w: (x[:0] @ w, x[:0].sum(), x[:0].sum(0), F.concatenate([x[:0], x]), x[:0] * 2, x.T[:, :0] + 1),
        lambda x, w: (x + w, x * w[0], w[:, None] + w, x[..., None] * w, F.broadcast_to(w, x.shape), x - x.mean(0)),
        lambda x, w: (x[[2, 0, 2]], x[:, [1, 1]], x[::-1, ::2], x[1], x[-1, None], x[[True, False, True, True]]),
        lambda x, w: (x.T, x.T.reshape(-1), x.T * 1, x.reshape(2, -1), x.T.copy(), F.transpose(x).sum(0)),
        lambda x, w: F.where(x > 0, x, 0).astype(np.float32) + F.where(x > w, w, 1.5).astype(np.int8),
        lambda x, w: (F.argmax(x, axis=1), F.sort(x), F.argsort(x, axis=0), F.cumsum(x, 0), F.round(x), x > 0),
        lambda x, w: (F.zeros_like(x) + 1, F.ones_like(x) * -0.0, np.array([0.0, -0.0, 1.0]) * w, F.sign(x)),
    ],
)
def test_shapes(f):
    agree(lambda: (f, []), *[(Tensor(RNG.normal(size=(4, 3))), Tensor(RNG.normal(size=3))) for _ in range(3)])


@pytest.mark.parametrize(
    "f",
    [
        lambda x: (np.dot(x, x.T), np.where(x > 0, x, 0), np.stack([x, x], -1), np.clip(x, -1, 1), np.argmax(x, 1)),
        lambda x: (np.linalg.norm(x), np.outer(x[0], x[1]), np.flip(x, 0), np.sort(x), np.cumsum(x, 1), np.mean(x)),
        lambda x: (x.round(1), x.take([0, 1]), x.repeat(2), x.diagonal(), x.trace(), x.T.flatten(), x.T.ravel()),
        lambda x: (x.transpose(1, 0), x.transpose(), x.argsort(), x.var(), x.std(0), x.prod(), x.clip(0, 1), +x),
        lambda x: ((x > 0) & (x < 1), ~(x > 0), (x > 0).sum(), (x > 0) | (x < -1), x // 2, x % 3, 5 - x, 2 / (x + 9)),
        lambda x: [row * 2 for row in x],
        lambda x: (x * np.float32(2), x * np.float64(2), x.astype("f4") * np.float64(2), x * 2**40),
    ],
)
def test_functions_and_methods_of_arrays(f):
    agree(lambda: (f, []), *[(RNG.normal(size=(3, 3)),) for _ in range(3)])


def test_layout_of_results():
    f = compile(lambda x: (x.T, x.T * 2, x[::-1], x.T.copy(), F.copy(x.T)))
    x = RNG.normal(size=(3, 4))
    strides = [[np.asarray(a).strides for a in f(x)] for _ in range(3)]
    assert strides[0] == strides[1] == strides[2]


def test_products_of_equal_arrays_that_are_two():
    rng = np.random.default_rng(4)
    calls = [tuple(rng.normal(size=(50, 40)).astype(np.float32) for _ in range(2)) for _ in range(3)]

    def f(x, y):
        t = Tensor(x)
        a, b = t * 2, t * 2
        c = (y * 3).T
        same = a.T @ a, b.T @ b, F.tanh(t).T @ F.tanh(t), x.T @ x
        return same, a.T @ b, b.T @ a, c @ (y * 3), x.T @ y, x.T @ x.copy()

    agree(lambda: (f, []), *calls, *[(x, x) for x, _ in calls])


def test_indices_of_all_dtypes():
    for dtype in ("int8", "uint8", "int64", "uint64", "int32", bool):
        index = np.array([1, 0, 1]).astype(dtype)
        agree(lambda: (lambda x, i: (x[i], (x * 2)[i], x[:, i]), []), *[(RNG.normal(size=(3, 3)), index)] * 4)


def test_an_index_out_of_range_raises_in_a_replay():
    f = compile(lambda x, i: Tensor(x)[i])
    for _ in range(3):
        f(np.zeros((3, 2)), np.array([0, 2]))
    with pytest.raises(IndexError):
        f(np.zeros((3, 2)), np.array([0, 3]))


def test_a_mask_with_another_count():
    def f(x, mask):
        return x[mask] * 2

    compiled = compile(f)
    x = np.arange(4.0)
    for mask in ([1, 0, 0, 1], [1, 1, 0, 0], [0, 1, 1, 0]):
        assert compiled(x, np.array(mask, bool)).tolist() == f(x, np.array(mask, bool)).tolist()
    with pytest.raises(CaptureError, match=rf"{__file__}:{f.__code__.co_firstlineno + 1}.*3 places.*where\(mask"):
        compiled(x, np.array([1, 1, 1, 0], bool))


def test_constants_that_are_written_to():
    def f(x):
        z = F.zeros_like(x)
        before = z + x
        part = z[1:]
        z[0] = 5
        part += x[1:]
        total = np.zeros_like(x)
        total += x
        total += x
        ones = np.ones_like(x)
        ones *= x
        return before, z + x, part, total, ones, z

    agree(lambda: (f, []), *[(RNG.normal(size=3),) for _ in range(4)])


def test_in_place_on_arguments_and_results():
    def f(x):
        y = x * 2
        view = y[1:]
        y += 1
        view -= x[1:]
        y[0] = view[0]
        y **= 2
        z = y.reshape(-1)
        z /= 3
        s = x[0]
        s += 100  # a number in NumPy: x keeps its own
        w = x + 0
        w **= 0.5
        w @= np.eye(3)
        x *= 0.5
        return y, view, z, s, x, w

    runs = []
    for wrap in (lambda f: f, compile, lambda f: compile(f, plan=False)):
        g = wrap(f)
        trace = []
        for k in range(4):
            x = np.arange(3.0) + k
            trace.append([flat(g(x)), flat(x)])
        runs.append(trace)
    assert runs[0] == runs[1] == runs[2]


# ---- models


def test_several_functions_over_one_model():
    runs = []
    for wrap in (lambda f: f, compile):
        model = mlp()
        opt = optim.Adam(model.parameters(), 0.01)

        def loss(x, labels, model=model):
            return losses.softmax_cross_entropy(model(x), labels)

        loss = wrap(loss)

        def gradient(x, labels, model=model, loss=loss):
            model.zero_grad()
            loss(x, labels).backward()  # compiled in compiled

        def update(opt=opt):
            opt.step()

        gradient, update = wrap(gradient), wrap(update)
        trace = []
        for call in batches(6):
            gradient(*call)
            update()
            trace.append(flat([loss(*call), [(p.grad, p._data) for p in model.parameters()]]))
        runs.append(trace)
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.flatten(),
        lambda model: model.to("cpu"),
        lambda model: model.load_state_dict({k: v * 2 for k, v in model.state_dict().items()}),
        lambda model: nn.Module.flatten(model.layers[0]),
    ],
    ids=["flatten", "to", "load_state_dict", "layer"],
)
def test_a_model_that_changes(change):
    runs = []
    for wrap in (lambda f: f, compile):
        step, _ = training("adam")()
        model = next(c.cell_contents for c in step.__closure__ if isinstance(c.cell_contents, nn.MLP))
        step = wrap(step)
        trace = []
        for k, call in enumerate(batches(8)):
            if k == 4:
                change(model)
            trace.append(flat([step(*call), [p._data for p in model.parameters()]]))
        runs.append(trace)
    assert runs[0] == runs[1]
    assert step.backend == "numpy"


def test_a_layer_that_is_exchanged():
    runs = []
    for wrap in (lambda f: f, compile):
        model = mlp()

        def f(x, labels, model=model):
            return model(x)

        f = wrap(f)
        trace = [flat(f(*call)) for call in batches(3)]
        model.layers[0].weight = Tensor(np.ones((4, 5), np.float32), requires_grad=True)
        trace += [flat(f(*call)) for call in batches(3)]
        model.activation = ["tanh"]
        trace += [flat(f(*call)) for call in batches(3)]
        runs.append(trace)
    assert runs[0] == runs[1]


def test_pickles_of_a_model_that_was_trained():
    step, state = training("sgd")()
    compiled = compile(step)
    for call in batches(4):
        compiled(*call)
    other = pickle.loads(pickle.dumps(state))
    twin = copy.deepcopy(state)
    for a, b, c in zip(state, other, twin, strict=True):
        assert flat([a._data, a.grad]) == flat([b._data, b.grad]) == flat([c._data, c.grad])
        assert not np.shares_memory(a._data, b._data)


def test_memory_goes():
    step, state = training("adam")()
    compiled = compile(step)
    for call in batches(4):
        compiled(*call)
    dead = [weakref.ref(compiled), weakref.ref(state[0]), weakref.ref(compiled._last.replay)]
    del step, compiled, state
    gc.collect()
    assert [ref() for ref in dead] == [None] * 3


def test_programs_of_memory_that_moved_are_let_go():
    model = mlp()
    f = compile(lambda x, labels: model(x))
    for _ in range(4):
        for call in batches(3):
            f(*call)
        model.flatten()
    assert sum(map(len, f._variants.values())) == 1


# ---- gradients of leaves


def test_gradients_that_were_read_stay():
    w = Tensor(np.ones(2), requires_grad=True)

    def f(x):
        w.zero_grad()
        (w * x).sum().backward()

    compiled = compile(f)
    kept = []
    for k in range(5):
        x = np.array([1.0, k])
        compiled(x)
        x += 100  # the gradient is no view of the caller's array
        kept.append(w.grad)
    assert [g.tolist() for g in kept] == [[1, k] for k in range(5)]
    kept[-1] += 7
    assert w.grad is kept[-1]


def test_gradients_cleared_or_set_between_calls():
    runs = []
    for wrap in (lambda f: f, compile):
        w = Tensor(np.ones(2), requires_grad=True)
        trace = []

        def adds(x, w=w):
            (w * x).sum().backward()

        def clears(x, w=w):
            w.zero_grad()
            return (w * x).sum()

        adds, clears = wrap(adds), wrap(clears)
        for k in range(12):
            if k % 3 == 0:
                w.zero_grad()
            adds(np.array([1.0, k]))
            trace.append(w.grad.tolist())
        for _ in range(4):
            w.grad = np.ones(2)
            clears(np.ones(2))
            trace.append(w.grad)
        runs.append(trace)
    assert runs[0] == runs[1]
    assert adds.backend == clears.backend == "numpy"


def test_an_update_by_a_replay_is_a_change_in_place():
    w, v = (Tensor(np.ones(2), requires_grad=True) for _ in range(2))

    def f():
        with no_grad():
            u = w
            u -= 1

    compiled = compile(f)
    for _ in range(4):
        loss, other = (w * w).sum(), (v * v).sum()
        compiled()
        other.backward()
        with pytest.raises(RuntimeError, match="changed in place"):
            loss.backward()


def test_gradients_set_by_hand():
    def make():
        w, v = (Tensor(np.ones(2), requires_grad=True) for _ in range(2))
        zeros = np.zeros(2)

        def f(x):
            w.grad = x * 2
            v.grad = zeros
            u = Tensor(x * 1, requires_grad=True)  # a leaf of its own
            (u * u * w).sum().backward()
            return u.grad

        return f, [w, v]

    agree(make, *[(RNG.normal(size=2),) for _ in range(4)])


def test_a_gradient_read_and_changed():
    def make():
        w = Tensor(np.ones(2), requires_grad=True)

        def f(x):
            w.zero_grad()
            (w * x).sum().backward()
            w.grad *= 2
            w.grad[0] = 0
            return w.grad.sum()

        return f, [w]

    agree(make, *[(RNG.normal(size=2),) for _ in range(4)])


# ---- exceptions


def snapshot(state, opt, model):
    grads = [None if p.grad is None else p.grad.tobytes() for p in model.parameters()]
    return (
        [p._data.tobytes() for p in model.parameters()],
        [s.tobytes() for s in opt.state.values()],
        opt.steps,
        opt.lr,
        model.rng.bit_generator.state,
        grads,
    )


def failing():
    model = mlp(dropout=0.5)
    opt = optim.Adam(model.parameters(), optim.one_cycle(0.01, 20))
    fail = []

    def step(x, labels):
        opt.zero_grad()
        losses.softmax_cross_entropy(model(x), labels).backward()
        opt.step()
        if fail:
            raise fail[0]

    return step, model, opt, fail


@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_exception_while_capturing_changes_nothing(before, error):
    step, model, opt, fail = failing()
    compiled = compile(step)
    calls = batches(6)
    for call in calls[:before]:
        compiled(*call)
    if before == 3:
        compiled = compile(step)
    there = snapshot(None, opt, model)
    fail.append(error())
    with pytest.raises(error):
        compiled(*calls[4])
    assert snapshot(None, opt, model) == there
    fail.clear()
    for call in calls:
        compiled(*call)
    assert compiled.backend == "numpy"


def test_a_bad_label_in_a_replay_changes_no_parameter():
    step, model, opt, _ = failing()
    compiled = compile(step)
    calls = batches(5)
    for call in calls:
        compiled(*call)
    there = snapshot(None, opt, model)
    step, model, opt, _ = failing()
    compiled = compile(step)
    for call in calls:
        compiled(*call)  # the gradients of the last call were never read
    with pytest.raises(IndexError, match="label 7 in row 2 is out of range"):
        compiled(calls[0][0], np.array([0, 1, 7, 0, 0, 0], np.uint8))
    found = snapshot(None, opt, model)
    assert [found[k] for k in (0, 1, 2, 3, 5)] == [there[k] for k in (0, 1, 2, 3, 5)]


def test_infinite_gradients_raise_in_a_replay_as_in_eager():
    w = Tensor(np.ones(2), requires_grad=True)

    def f(x):
        w.zero_grad()
        (w * x).sum().backward()
        return optim.clip_grad_norm([w], 1.0)

    compiled = compile(f)
    for _ in range(3):
        assert type(compiled(np.ones(2))) is type(f(np.ones(2))) is float
    with pytest.raises(FloatingPointError, match="because of"):
        compiled(np.array([1.0, np.inf]))


# ---- what cannot be captured

READS = {
    "float": lambda t: float(t),
    "int": lambda t: int(t),
    "bool": lambda t: bool(t > 1),
    "comparison": lambda t: 1 if t < 3 else 2,
    "item": lambda t: t.item(),
    "tolist": lambda t: t.tolist(),
    "numpy": lambda t: t.numpy(),
    "repr": lambda t: repr(t),
    "format": lambda t: f"{t:.3f}",
    "str": lambda t: f"{t}",
    "asarray": lambda t: np.asarray(t),
    "index": lambda t: [1, 2, 3][t.astype(int)],
    "range": lambda t: range(t.astype(int)),
    "round": lambda t: round(t, 2),
    "array": lambda t: np.asarray(t.data),
    "number": lambda t: float(t.data),
    "reduction": lambda t: int(t.data.sum()),
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("where", ["result", "parameter", "closure"])
def test_reading_a_value_raises_with_the_line(name, where):
    leaf, plain = Tensor(2.0, requires_grad=True), Tensor(2.0)
    if where == "parameter" and name in ("asarray", "index", "range"):
        leaf = plain  # a tracked Tensor raises for another reason

    def f(x):
        READS[name]({"result": x * 2, "parameter": leaf, "closure": plain}[where])

    compiled = compile(f)
    line = READS[name].__code__.co_firstlineno
    for _ in range(3):
        with pytest.raises(CaptureError, match=rf"while it is captured, at {__file__}:{line}: .*where\(mask, a, b\)"):
            compiled(Tensor(np.array(2.0)))


def test_setting_the_rate_inside_raises_with_the_line():
    opt = optim.SGD([Tensor([1.0], requires_grad=True)], 0.1)

    def f(x):
        opt.lr = 0.5

    with pytest.raises(CaptureError, match=rf"{__file__}:{f.__code__.co_firstlineno + 1}: .*lr=schedule"):
        compile(f)(np.ones(2))
    assert opt.lr == 0.1


def test_detect_anomaly_inside_and_outside():
    def f(x):
        with detect_anomaly():
            return F.log(x)

    with pytest.raises(CaptureError, match=rf"{__file__}:{f.__code__.co_firstlineno + 1}: put it around the call"):
        compile(f)(np.ones(2))
    g = compile(lambda x: F.log(x))
    for _ in range(3):
        g(np.ones(2))
    with detect_anomaly(), np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="log"):
        g(-np.ones(2))


def test_how_numpy_warns_is_decided_outside():
    def f(x):
        with np.errstate(all="ignore"):
            return F.log(x)

    with pytest.raises(CaptureError, match=rf"{__file__}:{f.__code__.co_firstlineno + 2}: put it around the call"):
        compile(f)(np.ones(2))
    g = compile(lambda x: F.log(x))
    for _ in range(3):
        g(np.ones(2))
    with np.errstate(all="ignore"):
        assert g(np.zeros(2)).tolist() == [-np.inf] * 2
    with pytest.warns(RuntimeWarning, match="divide by zero"):
        g(np.zeros(2))


def test_calculating_with_the_norm_raises_with_the_line():
    w = Tensor(np.ones(2), requires_grad=True)

    def f(x):
        w.zero_grad()
        (w * x).sum().backward()
        norm = optim.clip_grad_norm([w], 1.0)
        return norm * 2

    with pytest.raises(CaptureError, match=rf"{__file__}:{f.__code__.co_firstlineno + 4}: return it"):
        compile(f)(np.ones(2))


KEPT = []


def keeps_in_a_list(x):
    KEPT.append(x * 2)


def keeps_a_view(x):
    KEPT.append((x * 2)[:1])


def keeps_its_graph(x):
    KEPT.append(((Tensor(x, requires_grad=True) * 2) ** 3)._node)


def keeps_an_argument(x):
    KEPT.append(x)


def keeps_a_closure(x):
    y = x * 2
    KEPT.append(lambda: y)


def keeps_a_generator(x):
    y = x * 2

    def numbers():
        yield y
        yield y

    g = numbers()
    next(g)
    KEPT.append(g)


def keeps_a_traceback(x):
    y = x * 2  # noqa: F841
    try:
        raise ZeroDivisionError
    except ZeroDivisionError as error:
        KEPT.append(error)


def returns_a_generator(x):
    return (y for y in [x * 2])


@pytest.mark.parametrize(
    ("f", "line"),
    [(keeps_in_a_list, 1), (keeps_a_view, 1), (keeps_its_graph, 1), (keeps_an_argument, None), (keeps_a_closure, 1),
     (keeps_a_generator, 1), (keeps_a_traceback, 1), (returns_a_generator, 1)],
)  # fmt: skip
def test_what_outlives_the_function_raises_with_the_line(f, line):
    line = "" if line is None else f.__code__.co_firstlineno + line
    try:
        with pytest.raises(CaptureError, match=rf"made at {__file__}:{line}.*outlives.*return it") as caught:
            compile(f)(np.ones(2))
        if KEPT and isinstance(KEPT[0], Tensor):
            with pytest.raises(CaptureError, match="used after the function had ended"):
                KEPT[0] * 2
        del caught
    finally:
        KEPT.clear()


def test_changing_a_list_that_was_given_raises():
    def f(x, history):
        history.append(x * 2)

    with pytest.raises(CaptureError, match="f changed a list or a dict that it was given"):
        compile(f)(np.ones(2), [])


def test_reference_cycles_of_the_function_are_no_use():
    def f(x):
        y = [x * 2]
        y.append(y)
        return y[0] * 3

    agree(lambda: (f, []), *[(np.ones(2),)] * 4)


def test_options():
    with pytest.raises(ValueError, match="backend must be"):
        tinygrad_mnist.compile(abs, backend="cuda")
    f = compile(lambda x: x * 2)
    for ask in (lambda: f.program, f.source):
        with pytest.raises(RuntimeError, match="before the first call"):
            ask()
    assert f.backend == ""
    assert "no call" in f.reason


# ---- threads


def test_two_threads_share_a_compiled_function():
    f = compile(lambda x: F.tanh(x) @ x.T + x.sum())
    found, expected = {}, {}

    def work(k):
        x = np.full((3, 3), k / 10)
        found[k] = [f(x) for _ in range(60)]
        expected[k] = np.tanh(x) @ x.T + x.sum()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for k in found:
        assert {flat(a)[-1] for a in found[k]} == {flat(expected[k])[-1]}


def test_a_capture_is_of_one_thread():
    w = Tensor(np.ones(2), requires_grad=True)
    inside, go = threading.Event(), threading.Event()

    def f(x):
        inside.set()
        go.wait(5)
        return w * x

    compiled = compile(f)
    thread = threading.Thread(target=lambda: compiled(np.ones(2)))
    thread.start()
    inside.wait(5)
    assert float((w * 3).sum()) == 6.0  # not captured
    go.set()
    thread.join()


# ---- memory


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_replay_allocates_nothing_but_its_outputs(optimizer):
    model = nn.MLP((64, 128, 10), rng=0)
    opt = OPTIMIZERS[optimizer](model.parameters())

    def step(x, labels):
        opt.zero_grad()
        loss = losses.softmax_cross_entropy(model(x), labels)
        loss.backward()
        opt.step()
        return loss

    compiled = compile(step)
    (x, labels), *_ = batches(1, 256, 64, 10)
    for _ in range(4):
        compiled(x, labels)
    tracemalloc.start()
    try:
        compiled(x, labels)
        tracemalloc.reset_peak()
        start = tracemalloc.get_traced_memory()[0]
        compiled(x, labels)
        peak = tracemalloc.get_traced_memory()[1] - start
    finally:
        tracemalloc.stop()
    assert compiled.backend == "numpy"
    assert peak < 40_000 < 256 * 128 * 4, peak  # NumPy's own buffer for casts has 8192 elements


# ---- scan


def test_scan_is_a_loop_of_calls():
    rng = np.random.default_rng(5)
    x, labels = rng.normal(size=(20, 4)).astype(np.float32), rng.integers(0, 3, 20)
    order = rng.permutation(20)[:18].reshape(6, 3)
    for wrap in (lambda a: a, Tensor):
        runs = []
        for scans in (False, True):
            step, state = training("adam", dropout=0.5, clip=1.0)()
            compiled = compile(step)
            if scans:
                found = compiled.scan((wrap(x), wrap(labels)), order)
                rest = compiled.scan((wrap(x), wrap(labels)), order[:2, :2])  # an uneven rest
                assert [p.grad for p in state if isinstance(p, Tensor)] == [None] * 4
            else:
                found = [step(x[rows], labels[rows]) for rows in order]
                rest = [step(x[rows], labels[rows]) for rows in order[:2, :2]]
                found, rest = (
                    {"loss": Tensor(np.stack([s["loss"]._data for s in steps])), "norm": [s["norm"] for s in steps]}
                    for steps in (found, rest)
                )
            runs.append([flat([found["loss"], rest["loss"]]), [*found["norm"], *rest["norm"]]])
            runs[-1] += flat([p._data if isinstance(p, Tensor) else p for p in state])
        assert runs[0] == runs[1]


def test_errors_of_scan():
    f = compile(lambda x: x * 2)
    for arrays, order, error, message in [
        ((np.zeros(3),), [[0, 3]], IndexError, "row 3 of arrays with 3 rows"),
        ((np.zeros(3),), [[-1]], IndexError, "row -1"),
        ((np.zeros(3), np.zeros(4)), [[0]], ValueError, "one length"),
        ((), [[0]], ValueError, "one length"),
        ((np.zeros(3),), [0, 1], ValueError, r"\(steps, batch\)"),
        ((np.zeros(3),), [[0.5]], ValueError, "integers"),
        ((np.zeros(3),), np.zeros((0, 2), int), ValueError, "at least one"),
    ]:
        with pytest.raises(error, match=message):
            f.scan(arrays, order)
