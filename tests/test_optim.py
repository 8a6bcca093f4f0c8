"""Optimizers against their formulas, step by step in float64, on every backend, and against PyTorch's; schedules;
clipping."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest

from tinygrad_mnist import Tensor, nn, no_grad, optim, softmax_cross_entropy
from tinygrad_mnist.arrays import NUMPY
from tinygrad_mnist.testing import Backend

HOST = Backend()
STEPS = 12
SHAPES = ((3, 4), (4,), ())
KINDS = {
    "sgd": (optim.SGD, {}),
    "momentum": (optim.SGD, {"momentum": 0.9}),
    "nesterov": (optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "sgd+decay": (optim.SGD, {"weight_decay": 0.1}),
    "momentum+decay": (optim.SGD, {"momentum": 0.8, "weight_decay": 0.1}),
    "nesterov+decay": (optim.SGD, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    "adam": (optim.Adam, {}),
    "adam, own betas": (optim.Adam, {"betas": (0.5, 0.7), "eps": 1e-2}),
    "adam, betas 0": (optim.Adam, {"betas": (0.0, 0.0)}),
    "adam+l2": (optim.Adam, {"weight_decay": 0.1}),
    "adamw": (optim.AdamW, {}),
    "adamw+decay": (optim.AdamW, {"weight_decay": 0.2}),
}
EVERY = pytest.mark.parametrize("kind", KINDS)


def make(kind, params, lr=0.05):
    cls, options = KINDS[kind]
    return cls(params, lr, **options)


def sgd(p, g, state, t, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
    g = g + weight_decay * p
    if momentum:
        state["v"] = momentum * state.get("v", 0.0) + g
        g = g + momentum * state["v"] if nesterov else state["v"]
    return p - lr * g


def adam(p, g, state, t, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    g = g + weight_decay * p
    state["m"] = betas[0] * state.get("m", 0.0) + (1 - betas[0]) * g
    state["v"] = betas[1] * state.get("v", 0.0) + (1 - betas[1]) * g**2
    m, v = state["m"] / (1 - betas[0] ** t), state["v"] / (1 - betas[1] ** t)
    return p - lr * m / (np.sqrt(v) + eps)


def adamw(p, g, state, t, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    return adam(p * (1 - lr * weight_decay), g, state, t, lr, betas, eps)


BY_HAND = {optim.SGD: sgd, optim.Adam: adam, optim.AdamW: adamw}


def leaf(values, backend=HOST):
    return Tensor(backend.array(values), requires_grad=True)


def draw(dtype="float64", backend=HOST):
    """Parameters, and one gradient on the host for each of them at each step, of very different sizes."""
    rng = np.random.default_rng(0)
    params = [leaf(np.array(rng.normal(size=shape), dtype), backend) for shape in SHAPES]
    grads = [
        [np.array(rng.normal(size=shape) * 10 ** rng.uniform(-3, 1), dtype) for shape in SHAPES] for _ in range(STEPS)
    ]
    return params, grads


def give(params, grads, backend=HOST):
    for p, g in zip(params, grads, strict=True):
        p.grad = None if g is None else backend.array(g.copy())


# ---- the formulas -------------------------------------------------------------------------------------------------


@EVERY
def test_optimizer_is_its_formula(backend, kind):
    params, grads = draw(backend=backend)
    cls, options = KINDS[kind]
    optimizer = make(kind, params)
    expected, states = [p.numpy() for p in params], [{} for _ in params]
    for t, now in enumerate(grads, 1):
        optimizer.lr = 0.05 / t  # read anew at every step
        give(params, now, backend)
        optimizer.step()
        assert optimizer.steps == t
        for i, (p, g) in enumerate(zip(params, now, strict=True)):
            expected[i] = BY_HAND[cls](expected[i], g, states[i], t, 0.05 / t, **options)
            np.testing.assert_allclose(p.numpy(), expected[i], rtol=1e-12, err_msg=f"step {t}, parameter {i}")
            np.testing.assert_array_equal(backend.host(p.grad), g, err_msg="a step leaves the gradient alone")


@EVERY
def test_optimizer_is_pytorchs(kind):
    torch = pytest.importorskip("torch")
    params, grads = draw()
    cls, options = KINDS[kind]
    theirs = [torch.tensor(p.data, requires_grad=True) for p in params]
    other = getattr(torch.optim, cls.__name__)(theirs, lr=0.05, **options)
    optimizer = make(kind, params)
    for now in grads:
        give(params, now)
        optimizer.step()
        for q, g in zip(theirs, now, strict=True):
            q.grad = torch.tensor(g)
        other.step()
    for p, q in zip(params, theirs, strict=True):
        np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=1e-11)


@EVERY
def test_training_a_network_lowers_the_loss(backend, kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8)).astype("float32")
    labels = (x[:, 0] * x[:, 1] > 0).astype(int)
    model = nn.MLP((8, 16, 2), "tanh", rng=0).to(backend.device)
    optimizer = make(kind, model.parameters())
    losses = []
    for _ in range(60):
        loss = softmax_cross_entropy(model(backend.array(x)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


# ---- dtypes and memory --------------------------------------------------------------------------------------------


@EVERY
def test_float32_stays_float32(backend, kind):
    params, grads = draw("float32", backend)
    optimizer = make(kind, params)
    wide, _ = draw()
    reference = make(kind, wide)
    for now in grads:
        give(params, now, backend)
        optimizer.step()
        give(wide, [g.astype("float64") for g in now])
        reference.step()
    assert all(p.dtype == np.float32 for p in params)
    assert all(s.dtype == np.float32 for s in optimizer.state.values())
    for p, q in zip(params, wide, strict=True):
        np.testing.assert_allclose(p.numpy(), q.data, rtol=1e-4, atol=1e-6)


@EVERY
def test_float16_parameters_have_float32_state(backend, kind):
    params, grads = draw("float16", backend)
    optimizer = make(kind, params)
    assert all(s.dtype == np.float32 for s in optimizer.state.values())
    for now in grads:
        copies = [Tensor(p.data.astype("float32"), requires_grad=True) for p in params]
        reference = make(kind, copies)
        reference.load_state_dict(optimizer.state_dict())
        give(params, now, backend)
        give(copies, [g.astype("float32") for g in now], backend)
        optimizer.step()
        reference.step()
        for p, q in zip(params, copies, strict=True):
            assert p.dtype == np.float16
            assert p.data.tobytes() == q.data.astype("float16").tobytes()


def test_adam_moves_float16_parameters_with_tiny_gradients(backend):
    p = leaf(np.ones(3, "float16"), backend)
    optimizer = optim.Adam([p], lr=0.01)
    p.grad = backend.array(np.full(3, 1e-6, "float16"))  # its square, and eps, are 0 in float16
    optimizer.step()
    np.testing.assert_allclose(p.numpy(), 0.99, rtol=1e-3)


def test_parameters_of_mixed_dtypes_keep_theirs(backend):
    params = [leaf(np.ones(2, dtype), backend) for dtype in ("float16", "float32", "float64")]
    optimizer = optim.Adam(params, lr=0.1)
    for p in params:
        p.grad = backend.array(np.ones(2, p.dtype))
    optimizer.step()
    assert [p.dtype for p in params] == ["float16", "float32", "float64"]
    for p in params:
        np.testing.assert_allclose(p.numpy(), 0.9, rtol=1e-3)


@pytest.mark.parametrize("layout", ["transposed", "strided", "reversed", "gradient"])
@EVERY
def test_memory_layout_does_not_matter(backend, kind, layout):
    rng = np.random.default_rng(0)
    start = rng.normal(size=(3, 4))
    if layout == "transposed":
        held = np.asfortranarray(start)
    elif layout == "strided":
        held = np.zeros((6, 8))[::2, ::2]
        held[...] = start
    elif layout == "reversed":
        held = start[::-1].copy()[::-1]
    else:
        held = start.copy()
    held = backend.array(held)
    odd, even = (Tensor(array, requires_grad=True) for array in (held, backend.array(start.copy())))
    optimizers = make(kind, [odd]), make(kind, [even])
    for _ in range(4):
        g = rng.normal(size=(3, 4))
        even.grad = backend.array(g.copy())
        odd.grad = backend.array(np.asfortranarray(g))
        for optimizer in optimizers:
            optimizer.step()
    assert odd.data is held
    np.testing.assert_array_equal(odd.numpy(), even.numpy())


def test_a_step_writes_into_the_parameters_memory(backend):
    model = nn.MLP((3, 2), rng=0).to(backend.device)
    flat, before = model.flat, model.flat.copy()
    optimizer = optim.SGD(model.parameters(), 0.1)
    model(backend.array(np.ones((1, 3), "float32"))).sum().backward()
    optimizer.step()
    assert model.flat is flat
    assert (flat != before).all()


@EVERY
def test_parameters_that_moved_since_the_optimizer_was_made(backend, kind):
    models = [nn.MLP((3, 4, 2), rng=0).to(backend.device) for _ in range(2)]
    optimizers = [make(kind, model.parameters()) for model in models]
    for step in range(4):
        if step == 2:
            models[0].flatten()
        for model, optimizer in zip(models, optimizers, strict=True):
            model.zero_grad()
            model(backend.array(np.ones((1, 3), "float32"))).sum().backward()
            optimizer.step()
    assert models[0].flat.tobytes() == models[1].flat.tobytes()


@EVERY
def test_a_deep_copy_of_model_and_optimizer_goes_on_alone(backend, kind):
    model = nn.MLP((3, 4, 2), rng=0).to(backend.device)
    pair = model, make(kind, model.parameters())
    x = backend.array(np.ones((1, 3), "float32"))
    twins = []
    for step in range(4):
        if step == 2:
            twins = copy.deepcopy(pair)
        for network, optimizer in (pair, twins) if twins else (pair,):
            network.zero_grad()
            network(x).sum().backward()
            optimizer.step()
    assert twins[0].flat.tobytes() == model.flat.tobytes()
    twins[0].flat[...] = 7
    assert (model.flat != 7).all()


@pytest.mark.parametrize("others", [0, 1])
def test_a_step_before_backward_is_noticed(backend, others):
    w, *rest = (leaf(np.ones(3), backend) for _ in range(1 + others))
    optimizer = optim.SGD([w, *rest], 0.1)
    loss = (w * w).sum()
    w.grad = backend.array(np.ones(3))
    optimizer.step()
    with pytest.raises(RuntimeError, match="changed in place after it was recorded"):
        loss.backward()


def test_a_step_changes_nothing_that_has_no_gradient(backend):
    w, frozen = (leaf(np.ones(3), backend) for _ in range(2))
    optimizer = optim.SGD([w, frozen], 0.1)
    loss = (frozen * frozen).sum()
    w.grad = backend.array(np.ones(3))
    optimizer.step()
    loss.backward()  # what it saved is as it was
    assert frozen.grad.tolist() == [2, 2, 2]


@EVERY
def test_parameters_without_gradient_are_skipped(backend, kind):
    params, grads = draw(backend=backend)
    alone, _ = draw(backend=backend)
    optimizer, reference = make(kind, params), make(kind, [alone[1]])
    before = [p.data.copy() for p in params]
    for now in grads:
        give(params, [None, now[1], None], backend)
        give([alone[1]], [now[1]], backend)
        optimizer.step()
        reference.step()
    assert params[0].data.tobytes() == before[0].tobytes()
    assert params[2].data.tobytes() == before[2].tobytes()
    np.testing.assert_array_equal(params[1].numpy(), alone[1].numpy())
    assert all(s[:12].tolist() == [0] * 12 and s[16] == 0 for s in optimizer.state.values())


@EVERY
def test_a_step_without_any_gradient_is_no_step(backend, kind):
    params, grads = draw(backend=backend)
    same, _ = draw(backend=backend)
    optimizer, reference = make(kind, params), make(kind, same)
    loss = (params[0] * params[0]).sum()
    optimizer.step()
    assert optimizer.steps == 0
    loss.backward()  # nothing has changed
    for now in grads[:2]:
        give(params, now, backend)
        give(same, now, backend)
        optimizer.step()
        reference.step()
        optimizer.zero_grad()
        optimizer.step()
    assert optimizer.steps == 2
    assert all(p.data.tobytes() == q.data.tobytes() for p, q in zip(params, same, strict=True))


@pytest.mark.parametrize("fails", [0, 1])
def test_a_step_that_fails_midway_counts_as_a_change(fails):
    params = [Tensor(np.ones((2, 2)).T[:, :1], requires_grad=True) for _ in range(2)]  # two runs: not contiguous
    optimizer = optim.SGD(params, 0.1)
    loss = sum((p * p).sum() for p in params)
    for p in params:
        p.grad = np.ones((2, 1))
    formula, calls = optimizer._formula(NUMPY, *optimizer._numbers()), []

    def failing(*arrays):
        calls.append(arrays)
        if len(calls) > fails:
            raise KeyboardInterrupt
        formula(*arrays)

    optimizer._formula = lambda xp, *numbers: failing
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert [(p.data == 1).all() for p in params] == [fails == 0, True]
    with pytest.raises(RuntimeError, match="changed in place after it was recorded"):
        loss.backward()


def test_memory_that_was_made_with_another_dtype():
    buffers = [np.zeros(32, "u1"), np.zeros(8, "f4"), np.zeros(9, "f4").view("u1")[2:34]]
    for buffer in buffers:
        halves = buffer.view("u1")[:16].view("f4"), buffer.view("u1")[16:32].view("f4")
        for held in [halves[:1], halves]:
            params = [Tensor(a, requires_grad=True) for a in held]
            optimizer = optim.SGD(params, 0.5)
            for i, p in enumerate(params):
                p.grad = np.arange(4, dtype="f4") + i
            before = [p.data.copy() for p in params]
            optimizer.step()
            for i, (p, b) in enumerate(zip(params, before, strict=True)):
                np.testing.assert_array_equal(p.data, b - 0.5 * (np.arange(4) + i))
                assert p.data is held[i]


def test_zero_grad_forgets(backend):
    params, grads = draw(backend=backend)
    optimizer = optim.SGD(params, 0.1)
    give(params, grads[0], backend)
    optimizer.zero_grad()
    assert [p.grad for p in params] == [None] * 3


def test_an_empty_parameter_is_no_trouble(backend):
    p = leaf(np.zeros((0, 3)), backend)
    for optimizer in optim.Adam([p]), optim.SGD([p], 0.1):
        p.grad = backend.array(np.zeros((0, 3)))
        optimizer.step()
    assert p.shape == (0, 3)


# ---- state --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@EVERY
def test_going_on_from_a_state_dict_is_bit_identical(backend, kind, dtype):
    params, grads = draw(dtype, backend)
    optimizer = make(kind, params)
    for now in grads[:5]:
        give(params, now, backend)
        optimizer.step()
    state, values = optimizer.state_dict(), [p.data.copy() for p in params]
    for now in grads[5:]:
        give(params, now, backend)
        optimizer.step()

    again = [Tensor(v, requires_grad=True) for v in values]
    resumed = make(kind, again, lr=1.0)  # the rate is in the state
    resumed.load_state_dict({name: np.asarray(value) for name, value in state.items()})  # as a file returns it
    assert (resumed.steps, resumed.lr) == (5, 0.05)
    for now in grads[5:]:
        give(again, now, backend)
        resumed.step()
    for p, q in zip(params, again, strict=True):
        assert p.data.tobytes() == q.data.tobytes()
    for name, s in optimizer.state.items():
        assert s.tobytes() == resumed.state[name].tobytes()


def test_state_dict_is_a_copy_and_names_what_there_is(backend):
    params, grads = draw(backend=backend)
    optimizer = optim.Adam(params)
    give(params, grads[0], backend)
    optimizer.step()
    state = optimizer.state_dict()
    assert state.keys() == {"steps", "lr", "m", "v"}
    assert type(state["m"]) is type(state["v"]) is np.ndarray
    state["m"][:] = 7
    assert (optimizer.state["m"] != 7).all()
    assert optim.SGD(params, 0.1).state_dict() == {"steps": 0, "lr": 0.1}
    assert optim.SGD(params, 0.1, momentum=0.5).state_dict().keys() == {"steps", "lr", "velocity"}


def test_a_state_that_does_not_fit_changes_nothing(backend):
    params, _ = draw(backend=backend)
    optimizer = optim.Adam(params)
    good = {**optimizer.state_dict(), "steps": 3, "lr": 1.0}
    with pytest.raises(ValueError, match=r"expected the entries \['lr', 'm', 'steps', 'v'\], got \['lr', 'steps'\]"):
        optimizer.load_state_dict({"steps": 3, "lr": 1.0})
    with pytest.raises(ValueError, match=r"^load_state_dict: v has shape \(2,\), not \(17,\)$"):
        optimizer.load_state_dict({**good, "m": np.ones(17), "v": np.ones(2)})
    assert (optimizer.steps, optimizer.lr, optimizer.state["m"].any()) == (0, 1e-3, False)


# ---- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (optim.SGD, {"lr": -0.1}, "lr must be finite and at least 0, not -0.1"),
        (optim.SGD, {"lr": math.nan}, "lr must be finite and at least 0, not nan"),
        (optim.SGD, {"lr": math.inf}, "lr must be finite and at least 0, not inf"),
        (optim.SGD, {"lr": 0.1, "momentum": 1.0}, "momentum must be at least 0 and less than 1, not 1.0"),
        (optim.SGD, {"lr": 0.1, "weight_decay": -1}, "weight_decay must be finite and at least 0, not -1"),
        (optim.SGD, {"lr": 0.1, "nesterov": True}, "nesterov=True needs a momentum larger than 0"),
        (optim.Adam, {"betas": (1.0, 0.9)}, "beta1 must be at least 0 and less than 1, not 1.0"),
        (optim.Adam, {"betas": (0.9, -0.1)}, "beta2 must be at least 0 and less than 1, not -0.1"),
        (optim.Adam, {"eps": -1e-8}, "eps must be finite and at least 0, not -1e-08"),
        (optim.AdamW, {"weight_decay": -0.1}, "weight_decay must be finite and at least 0, not -0.1"),
    ],
)
def test_options_out_of_range(cls, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        cls(draw()[0], **options)


def test_parameters_must_be_leaves_and_each_given_once():
    w = Tensor([1.0], requires_grad=True)
    for bad in (np.ones(2), Tensor([1.0]), w * 2, None):
        with pytest.raises(TypeError, match=r"^parameters must be leaf Tensors with requires_grad=True, not "):
            optim.SGD([w, bad], 0.1)
    with pytest.raises(ValueError, match=r"^a parameter was given twice$"):
        optim.SGD([w, w], 0.1)
    with pytest.raises(ValueError, match=r"^an optimizer needs at least one parameter$"):
        optim.SGD(iter([]), 0.1)


def test_the_base_class_has_no_formula():
    w = Tensor([1.0], requires_grad=True)
    w.grad = np.ones(1, "float32")
    with pytest.raises(NotImplementedError):
        optim.Optimizer([w], 0.1).step()


# ---- clipping -----------------------------------------------------------------------------------------------------


def test_clip_grad_norm_scales_all_gradients_by_one_factor(backend):
    params, grads = draw(backend=backend)
    give(params, grads[0], backend)
    norm = math.sqrt(sum((g**2).sum() for g in grads[0]))
    assert float(optim.clip_grad_norm(iter(params), norm / 3)) == pytest.approx(norm, rel=1e-14)
    for p, g in zip(params, grads[0], strict=True):
        np.testing.assert_allclose(backend.host(p.grad), g / 3, rtol=1e-14)
    assert float(optim.clip_grad_norm(params, 1e9)) == pytest.approx(norm / 3)  # within bounds: untouched
    for p, g in zip(params, grads[0], strict=True):
        np.testing.assert_allclose(backend.host(p.grad), g / 3, rtol=1e-14)


def test_clip_grad_norm_skips_none_and_keeps_the_array_and_dtype(backend):
    params = [leaf(np.ones(3, dtype), backend) for dtype in ("float16", "float32", "float64")]
    params[0].grad, params[1].grad = (backend.array(np.full(3, n, t)) for n, t in ((300, "float16"), (400, "float32")))
    held = params[0].grad
    assert float(optim.clip_grad_norm(params, 5)) == pytest.approx(500 * math.sqrt(3))  # 300^2 is infinite in float16
    assert params[0].grad is held
    assert [p.grad is None or p.grad.dtype for p in params] == ["float16", "float32", True]
    np.testing.assert_allclose(backend.host(held), 3 / math.sqrt(3), rtol=1e-3)


def test_clip_grad_norm_of_no_gradients_and_to_zero(backend):
    params, grads = draw(backend=backend)
    assert optim.clip_grad_norm(params, 1.0) == 0
    give(params, grads[0], backend)
    optim.clip_grad_norm(params, 0.0)
    assert not any(p.grad.any() for p in params)
    assert optim.clip_grad_norm(params, 0.0) == 0
    with pytest.raises(ValueError, match=r"^max_norm must be at least 0, not -1$"):
        optim.clip_grad_norm(params, -1)


def test_clip_grad_norm_after_backward(backend):
    w = leaf(np.zeros((2, 2)), backend)
    w.sum().backward()
    assert optim.clip_grad_norm([w], 1.0) == 2
    np.testing.assert_allclose(backend.host(w.grad), 0.5)
    with no_grad():
        w -= w.grad
    np.testing.assert_allclose(w.numpy(), -0.5)


@pytest.mark.parametrize(
    ("dtype", "size"), [("float32", 1e20), ("float32", 1e-25), ("float64", 1e200), ("float16", 6e4)]
)
def test_clip_grad_norm_of_gradients_whose_squares_overflow_or_vanish(dtype, size):
    shape = 1000, 1000
    params = [Tensor(np.ones(shape, dtype), requires_grad=True) for _ in range(2)]
    params[0].grad = np.full(shape, size, dtype)
    params[1].grad = np.full(shape, -size, dtype)[:, ::-1]
    size = float(params[0].grad[0, 0])
    norm = size * math.sqrt(2e6)
    assert optim.clip_grad_norm(params, math.inf) == pytest.approx(norm, rel=1e-4)
    assert (params[0].grad == size).all()
    # in float16 the factor is 0, the product is not
    assert optim.clip_grad_norm(params, norm * 1e-9) == pytest.approx(norm, rel=1e-4)
    for p, sign in zip(params, (1, -1), strict=True):
        assert p.grad.dtype == dtype
        np.testing.assert_allclose(p.grad, np.array(sign * size * 1e-9, dtype), rtol=1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_clip_grad_norm_of_gradients_that_are_not_finite_changes_nothing(value):
    params = [Tensor(np.ones(2), requires_grad=True, name=name) for name in ("W1", None)]
    for bad, name in enumerate(["W1", "parameter 1"]):
        for p in params:
            p.grad = np.ones(2)
        params[bad].grad[1] = value
        before = [p.grad.copy() for p in params]
        with pytest.raises(FloatingPointError, match=rf"^clip_grad_norm: .* is {abs(value)}, because of {name}$"):
            optim.clip_grad_norm(params, 1.0)
        np.testing.assert_equal(optim.clip_grad_norm(params, math.inf), abs(value))  # only measured
        for p, b in zip(params, before, strict=True):
            np.testing.assert_array_equal(p.grad, b)


def test_clip_grad_norm_of_a_norm_beyond_all_numbers():
    p = Tensor(np.ones(4), requires_grad=True)
    p.grad = np.full(4, 1.5e308)
    with pytest.raises(FloatingPointError, match=r"^clip_grad_norm: the norm of the gradients is inf, because of all"):
        optim.clip_grad_norm([p], 1.0)
    assert (p.grad == 1.5e308).all()
    with pytest.raises(ValueError, match=r"^max_norm must be at least 0, not nan$"):
        optim.clip_grad_norm([p], math.nan)


# ---- schedules ----------------------------------------------------------------------------------------------------


def test_constant():
    assert {optim.constant(0.3)(step) for step in (0, 1, 10**9)} == {0.3}


def test_cosine_at_its_key_points():
    rate = optim.cosine(0.8, 101)
    half = 0.4 * math.sqrt(0.5)
    assert [rate(s) for s in (0, 25, 50, 75, 100)] == pytest.approx([0.8, 0.4 + half, 0.4, 0.4 - half, 0])
    assert all(a > b for a, b in pairwise(map(rate, range(101))))
    assert rate(1000) == rate(100) == 0  # it ends there

    rate = optim.cosine(0.8, 14, warmup=4, final=0.2)
    assert [rate(s) for s in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert rate(13) == pytest.approx(0.2)
    assert optim.cosine(0.8, 1)(0) == 0.8


def test_one_cycle_at_its_key_points():
    rate = optim.one_cycle(1.0, 101, warmup=0.3, start_div=25, final_div=1e4)
    assert rate(0) == pytest.approx(1 / 25)
    assert rate(15) == pytest.approx((1 + 1 / 25) / 2)
    assert rate(30) == 1
    assert rate(65) == pytest.approx((1 + 4e-6) / 2)
    assert rate(100) == pytest.approx(4e-6, abs=1e-15)
    assert rate(1000) == rate(100)
    rates = [rate(s) for s in range(101)]
    assert all(a < b for a, b in pairwise(rates[:31]))
    assert all(a > b for a, b in pairwise(rates[30:]))
    assert optim.one_cycle(1.0, 10, warmup=0)(0) == 1
    assert optim.one_cycle(1.0, 1)(0) == 1


def test_one_cycle_has_pytorchs_form():
    torch = pytest.importorskip("torch")
    # PyTorch's peak lies at step pct * total - 1, ours at warmup * (steps - 1): the same for this choice
    steps, peak_at = 50, 14
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.7, total_steps=steps, pct_start=(peak_at + 1) / steps)
    rate = optim.one_cycle(0.7, steps, warmup=peak_at / (steps - 1))
    for step in range(steps):
        assert rate(step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-12), step
        optimizer.step()
        if step < steps - 1:
            theirs.step()


@pytest.mark.parametrize(
    ("make_one", "message"),
    [
        (lambda: optim.cosine(1.0, 0), "a schedule needs 0 <= warmup < steps, not warmup=0, steps=0"),
        (lambda: optim.cosine(1.0, 5, warmup=5), "a schedule needs 0 <= warmup < steps, not warmup=5, steps=5"),
        (lambda: optim.cosine(1.0, 5, warmup=-1), "a schedule needs 0 <= warmup < steps, not warmup=-1, steps=5"),
        (lambda: optim.one_cycle(1.0, 0), "a schedule needs 0 <= warmup < steps, not warmup=0, steps=0"),
        (lambda: optim.one_cycle(1.0, 9, warmup=1.0), "warmup must be at least 0 and less than 1, not 1.0"),
    ],
)
def test_schedules_out_of_range(make_one, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make_one()
