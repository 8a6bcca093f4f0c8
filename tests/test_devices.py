"""The same model elsewhere: moving, mixing, waiting, uploading, random numbers, memory, on every device but NumPy.

What a single operation gives there is held to NumPy by the operation table, in test_ops.
"""

import copy
import gc
import pickle
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pretend_gpu
import pytest
from pretend_gpu import nvrtc
from small import DISTORTED, RECIPE, dataset, without_times

import tinygrad_mnist.numpy as cp
from tinygrad_mnist import (
    Tensor,
    arrays,
    concatenate,
    data,
    detect_anomaly,
    grad,
    hessian,
    jacobian,
    jvp,
    load,
    losses,
    mse,
    nn,
    no_grad,
    optim,
    save,
    softmax_cross_entropy,
    stack,
    value_and_grad,
    vjp,
    where,
)
from tinygrad_mnist.functional import hvp
from tinygrad_mnist.inference import evaluate, predict
from tinygrad_mnist.selftest import OPTIMIZERS
from tinygrad_mnist.testing import strict
from tinygrad_mnist.train import Monitor, Score, Training, train

RNG = np.random.default_rng


def on(device, values, dtype="float64", **options):
    return Tensor(np.array(values, dtype), device=device, **options)


def close(actual, expected, rtol=1e-12):
    np.testing.assert_allclose(arrays.to_host(actual), expected, rtol=rtol, atol=rtol)


# ---- moving -------------------------------------------------------------------------------------------------------


def test_a_tensor_says_where_it_is(device):
    t = Tensor([1.0, 2.0], device=device)
    assert (t.device, t.to("cpu").device, t.to(device) is t) == (device, "cpu", True)
    assert (t + 1).device == t.exp().device == np.sum(t).device == t[0].device == device
    assert t.numpy().tolist() == t.tolist() == [1, 2]
    assert type(t.numpy()) is np.ndarray
    assert (t.sum().item(), float(t[1]), int(t[1]), bool(t[1] > 0), f"{t.sum():.1f}") == (3, 2, 2, True, "3.0")
    assert range(Tensor(3, device=device)) == range(3)


def test_moving_copies(device):
    host = np.ones(3)
    there = Tensor(host, device=device)
    back = there.numpy()
    host[0], back[1] = 7, 7
    assert there.tolist() == [1, 1, 1]


def test_an_array_of_a_device_stays_where_it_is(device):
    array = on(device, [1, 2]).data
    assert Tensor(array).data is array
    assert Tensor(array, device="cpu").device == "cpu"
    assert Tensor(array, dtype="float32").dtype == np.float32
    assert relu_of(array).device == device


def relu_of(array):
    from tinygrad_mnist import relu

    return relu(array)


def test_a_move_is_recorded(device):
    x = on("cpu", [[1, 2], [3, 4]], requires_grad=True)
    y = (x.to(device) ** 2).to("cpu") * x
    y.sum().backward()
    close(x.grad, 3 * x.data**2)
    assert type(x.grad) is np.ndarray
    g = grad(lambda x: grad(lambda x: (x.to(device) ** 3).to("cpu").sum())(x).sum())(x.data)
    close(g, 6 * x.data)


@pytest.mark.parametrize("name", ["cuda", "GPU", "gpu:x", "", "gpu:-1"])
def test_an_unknown_device_is_named(name):
    with pytest.raises(ValueError, match=re.escape(f"device must be 'cpu', 'gpu' or 'gpu:N', not {name!r}")):
        Tensor([1.0], device=name)


def test_assigning_host_values_uploads_them(device):
    t = on(device, [1, 2, 3])
    t.data = np.array([4.0, 5, 6])
    with no_grad():
        t[0] = np.float64(1)
        t[1:] = np.array([7.0, 8])
    assert t.tolist() == [1, 7, 8]


def test_a_model_moves_with_its_gradients_and_buffers(device):
    model = nn.MLP((3, 4, 2), rng=0)
    expected = {name: p.data.copy() for name, p in model.named_parameters()}
    model(np.ones((2, 3), "float32")).sum().backward()
    params, grads = model.parameters(), [p.grad.copy() for p in model.parameters()]
    assert model.to(device) is model
    assert all(p is q for p, q in zip(params, model.parameters(), strict=True))
    assert {p.device for p in params} == {device}
    for (name, p), g in zip(model.named_parameters(), grads, strict=True):
        close(p.data, expected[name], 0)
        close(p.grad, g, 0)
    first = model.layers[0].weight
    first.data = np.zeros((3, 4))
    assert arrays.to_host(model.flat)[:12].tolist() == [0] * 12, "the parameters are views of the flat buffer"
    assert type(model.to("cpu").flat) is np.ndarray
    assert type(first.grad) is np.ndarray


def test_copies_and_pickles_stay_on_the_device(device):
    model = nn.MLP((3, 4, 2), rng=0).to(device)
    for other in copy.deepcopy(model), pickle.loads(pickle.dumps(model)):
        assert {p.device for p in other.parameters()} == {device}
        close(other.flat, arrays.to_host(model.flat), 0)
        other.flat[:] = 0
    assert arrays.to_host(model.flat).any()


def test_modules_inside_one_that_is_not_flattened_keep_their_buffers(device):
    class Net(nn.Module):
        def __init__(self):
            self.body, self.heads = nn.MLP((3, 4, 2), rng=0), [nn.Linear(2, 2, rng=1)]

    net = Net().to(device)
    for part in net.body, net.body.layers[0], net.heads[0]:
        assert arrays.device_of(part.flat) == device
        part.flat[:] = 7
        assert all((arrays.to_host(p.data) == 7).all() for p in part.parameters())


def test_a_gradient_must_lie_beside_its_parameter(device):
    w = on(device, [1, 2], requires_grad=True)
    with pytest.raises(ValueError, match=f"grad must be on {device}, as .data is, not on cpu"):
        w.grad = np.ones(2)


def test_gradients_share_no_memory(device):
    x = on(device, [1, 2, 3], requires_grad=True)
    (x.sum() + (x * x).sum()).backward()
    assert x.grad.tolist() == [3, 5, 7]
    x.sum().backward()
    assert x.grad.tolist() == [4, 6, 8]
    y = on(device, [1, 2, 3], requires_grad=True)
    (np.broadcast_to(y.sum(), (2, 2)).sum() + y[0]).backward()
    assert y.grad.tolist() == [5, 4, 4]


def test_an_element_is_a_copy_as_it_is_in_numpy(device):
    w = on(device, [1, 2])
    first = w[0]
    with no_grad():
        w += 1
    assert (first.tolist(), w.tolist()) == (1, [2, 3])


def test_what_broadcasting_stretched_is_read_only(device):
    w = on(device, [1, 2])
    b = np.broadcast_to(w, (3, 2))
    with no_grad():
        with pytest.raises(ValueError, match="read-only"):
            b -= 1
        with pytest.raises(ValueError, match="read-only"):
            b[0] = 5
    assert w.tolist() == [1, 2]


def test_every_operator_in_place(device):
    for name in "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul":
        here, there = Tensor(np.array([[3.0, 2], [1, 4]])), on(device, [[3, 2], [1, 4]])
        other = np.array([[2.0, 1], [1, 2]])
        memory = there.data
        with no_grad():
            getattr(here, f"__{name}__")(other)
            getattr(there, f"__{name}__")(arrays.move(other, device))
        close(there.data, here.data)
        assert there.data is memory


def test_comparisons_with_arrays_of_the_device(device):
    a, t = on(device, [1, 2, 3]).data, on(device, [1, 5, 3])
    for answer in a == t, t == a:
        assert arrays.to_host(answer).tolist() == [True, False, True]
    with pytest.raises(TypeError, match="Unsupported type"):
        a += t


def test_a_file_knows_no_device(device, tmp_path):
    model = nn.MLP((3, 4, 2), rng=0)
    save(tmp_path / "cpu", model)
    save(tmp_path / "device", model.to(device))
    assert (tmp_path / "cpu").read_bytes() == (tmp_path / "device").read_bytes()
    assert load(tmp_path / "device").parameters()[0].device == "cpu"
    save(tmp_path / "arrays", {"a": model.flat, "b": model.layers[0].weight})
    close(load(tmp_path / "arrays")["b"], model.layers[0].weight.numpy(), 0)


def test_a_state_dict_goes_anywhere(device):
    here, there = nn.MLP((3, 4, 2), rng=0), nn.MLP((3, 4, 2), rng=1).to(device)
    there.load_state_dict(here.state_dict())
    close(there.flat, here.flat, 0)
    here.load_state_dict(there.state_dict())


# ---- mixing -------------------------------------------------------------------------------------------------------

MIXTURES = {
    "t + c": lambda t, c: t + c,
    "c * t": lambda t, c: c * t,
    "t @ c.T": lambda t, c: t @ c.T,
    "np.maximum(c, t)": lambda t, c: np.maximum(c, t),
    "where(c > 0, t, 0)": lambda t, c: where((c > 0), t, 0),
    "where(t > 0, t, c)": lambda t, c: where(t > 0, t, c),
    "concatenate": lambda t, c: concatenate([t, c]),
    "stack": lambda t, c: stack([c, t]),
    "einsum": lambda t, c: np.einsum("ij,ij->i", t, c),
    "einsum, other order": lambda t, c: np.einsum("ij,ij->i", c, t),
    "t * [1.0, 2.0]": lambda t, c: t * [1.0, 2.0],
    "mse": lambda t, c: mse(t, c),
    "labels there, logits here": lambda t, c: softmax_cross_entropy(c, t.data.argmax(axis=1)),
    "probabilities": lambda t, c: softmax_cross_entropy(t, c),
    "a query": lambda t, c: np.isclose(t, c),
    "batches": lambda t, c: data.batches(t.data, np.asarray(c), 1, None),
    "an index": lambda t, c: Tensor(np.asarray(c))[t.data.argmax(axis=1)],
    "in place": lambda t, c: no_grad()(t.__isub__)(c),
    "in place, the other way": lambda t, c: no_grad()(Tensor(np.asarray(c)).__isub__)(t),
}


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize("host", [Tensor, np.asarray], ids=["Tensor", "array"])
def test_mixing_devices_is_one_clear_error(device, mixture, host):
    t, c = on(device, [[1, 2], [3, 4]]), host(np.ones((2, 2)))
    with pytest.raises(ValueError, match="on different devices") as caught:
        mixture(t, c)
    text = str(caught.value)
    assert f" on {device}" in text
    assert " on cpu" in text
    assert text.endswith("; move one with .to(device)")
    assert "\n" not in text


def test_numbers_and_scalars_of_numpy_mix(device):
    t = on(device, [1, 2], "float32")
    for number in 2, 2.0, True, np.float32(2):
        assert (t * number).dtype == (number * t).dtype == np.float32
        close((number * t + number).data, number * t.numpy() + number)
    assert (t * np.float64(2)).dtype == np.float64


def test_arrays_of_the_device_mix(device):
    t = on(device, [[1, 2], [3, 4]], requires_grad=True)
    array = on(device, [[2, 2], [2, 2]]).data
    for y in (array * t, t * array, array @ t, np.dot(array, t), np.maximum(array, t), np.concatenate([array, t])):
        assert isinstance(y, Tensor)
        assert y.requires_grad


def test_nothing_reaches_the_host_silently(device):
    for t in on(device, [1, 2]), on(device, [1, 2], requires_grad=True):
        with pytest.raises(TypeError, match="numpy\\(\\)"):
            np.asarray(t)
    assert cp.asnumpy(on(device, [1, 2])).tolist() == cp.asnumpy(on(device, [1, 2]).data).tolist() == [1, 2]


# ---- places and labels --------------------------------------------------------------------------------------------

PLACES = {
    "a list": [0, 2, 0],
    "an array": np.array([0, 2, 0]),
    "two axes": ([0, 1], [2, 2]),
    "a mask": np.array([True, False, True]),
    "a mask of both axes": np.arange(9).reshape(3, 3) % 2 == 0,
    "a slice and a list": (slice(None), [0, 0, 2]),
    "no place": [],
}


@pytest.mark.parametrize("index", PLACES.values(), ids=PLACES)
def test_an_index_of_the_host_picks_the_same_places_there(device, index):
    values = np.arange(9.0).reshape(3, 3)
    here, there = Tensor(values, requires_grad=True), on(device, values, requires_grad=True)
    (here[index] ** 2).sum().backward()
    y = there[index]
    (y**2).sum().backward()
    close(y.data, values[index], 0)
    close(there.grad, here.grad, 0)


@pytest.mark.parametrize("index", [[0, 2], np.array([-3]), ([0, 1], [0, 3])], ids=str)
def test_an_index_of_the_host_out_of_range_raises(device, index):
    t = on(device, np.ones((2, 3)))
    with pytest.raises(IndexError, match="out of bounds"):
        t[index]
    with pytest.raises(IndexError, match="out of bounds"):
        np.take(t, [5], axis=1)


def test_the_parts_of_an_index_that_are_of_the_host_are_checked(device):
    t = on(device, np.arange(12.0).reshape(3, 4))
    rows = on(device, [0, 1], "int64").data
    assert t[rows, [0, 3]].tolist() == [0, 7]
    with pytest.raises(IndexError, match="out of bounds for axis 1"):
        t[rows, [0, 7]]


def test_a_later_write_to_an_index_does_not_reach_backward(device):
    t = on(device, [1, 2, 3], requires_grad=True)
    index = on(device, [0, 0], "int64").data
    y = t[index]
    index[:] = 2
    y.sum().backward()
    assert t.grad.tolist() == [2, 0, 0]


def test_labels_of_the_host_are_checked_there(device):
    z = on(device, np.zeros((2, 3)))
    close(softmax_cross_entropy(z, np.array([0, 2])).data, np.log(3))
    with pytest.raises(IndexError, match="label 3 in row 1 is out of range: there are 3 classes, 0 to 2"):
        softmax_cross_entropy(z, np.array([0, 3]))


def test_labels_of_the_device_are_checked_by_detect_anomaly(device):
    z, labels = on(device, np.zeros((2, 3))), on(device, [0, 3], "uint8").data
    softmax_cross_entropy(z, labels)
    with detect_anomaly(), pytest.raises(IndexError, match="label 3 in row 1"):
        softmax_cross_entropy(z, labels)


def test_the_anomaly_check_looks_at_devices(device):
    x = on(device, [0.0, 1.0], requires_grad=True)
    with detect_anomaly():
        with pytest.raises(FloatingPointError, match="log: NaN or infinity in the forward pass"):
            np.log(x)
        y = np.exp(x)
        y.data[0] = 5
        with pytest.raises(RuntimeError, match="was changed in place"):
            y.sum().backward()


def test_changes_in_place_are_noticed(device):
    w = on(device, [1.0, 2.0], requires_grad=True)
    y = (w.T * w).sum()
    with no_grad():
        w -= 0.5
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()
    model = nn.MLP((2, 3, 1), rng=0).to(device)
    out = model(on(device, np.ones((1, 2)), "float32")).sum()
    with no_grad():
        model.layers[0].bias += 1  # backward of the second layer needs its weight, not this
        out.backward()


# ---- derivatives, losses, optimizers ------------------------------------------------------------------------------


def test_every_derivative_is_that_of_the_host(device):
    x, v = RNG(0).normal(size=(2, 3)), RNG(1).normal(size=(2, 3))
    a, b = arrays.move(x, device), arrays.move(v, device)
    f, h = (lambda x: np.sum(np.tanh(x) ** 3)), (lambda x: np.tanh(x) @ x.T)
    close(grad(f)(a), grad(f)(x))
    close(hvp(f, a, b), hvp(f, x, v))
    close(hessian(f)(a), hessian(f)(x))
    close(jacobian(h)(a), jacobian(h)(x))
    for theirs, ours in zip(jvp(h, (a,), (b,)), jvp(h, (x,), (v,)), strict=True):
        close(theirs, ours)
    seed = RNG(2).normal(size=(2, 2))
    close(vjp(h, a)[1](arrays.move(seed, device))[0], vjp(h, x)[1](seed)[0])
    close(vjp(h, a)[1](seed)[0], vjp(h, x)[1](seed)[0])
    value, (da, db) = value_and_grad(lambda a, b: (a * b).sum(), (0, 1))(a, b)
    assert (arrays.device_of(value), arrays.device_of(da), arrays.device_of(db)) == (device,) * 3


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_losses_are_those_of_the_host(device, reduction, dtype):
    rng = RNG(0)
    z, p = rng.normal(size=(4, 3)).astype(dtype), rng.dirichlet(np.ones(3), 4).astype(dtype)
    labels = rng.integers(0, 3, 4).astype("uint8")
    for loss, target in (losses.mse, p), (softmax_cross_entropy, p), (softmax_cross_entropy, labels):
        here, there = Tensor(z, requires_grad=True), on(device, z, dtype, requires_grad=True)
        expected = loss(here, target, reduction=reduction)
        y = loss(there, arrays.move(target, device), reduction=reduction)
        assert (y.dtype, y.device) == (expected.dtype, device)
        for t in expected, y:
            t.sum().backward()
        close(y.data, expected.data, 8 * np.finfo(dtype).eps)
        close(there.grad, here.grad, 8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float32", 1e-5), ("float16", 2e-3)])
def test_every_optimizer_steps_as_on_the_host(device, make, dtype, rtol):
    rng = RNG(0)
    models = [nn.MLP((3, 4, 2), rng=0, dtype=dtype), nn.MLP((3, 4, 2), rng=0, dtype=dtype).to(device)]
    optimizers = [make(model.parameters()) for model in models]
    for step in range(1, 6):
        grads = [rng.normal(size=p.shape).astype(dtype) for p in models[0].parameters()]
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.lr = 0.1 / step
            for p, g in zip(model.parameters(), grads, strict=True):
                p.grad = arrays.place(g.copy(), p.data)
            if step == 3:
                model.parameters()[1].grad = None
            optimizer.step()
        np.testing.assert_allclose(arrays.to_host(models[1].flat), models[0].flat, rtol=rtol, atol=rtol)
    states = [optimizer.state_dict() for optimizer in optimizers]
    for name, value in states[0].items():
        np.testing.assert_allclose(states[1][name], value, rtol=1e-5, atol=1e-5)
    optimizers[0].load_state_dict(states[1])
    optimizers[1].load_state_dict(states[0])


def test_an_optimizer_says_that_its_parameters_have_moved(device):
    model = nn.MLP((3, 4, 2), rng=0)
    optimizer = optim.Adam(model.parameters())
    model.to(device)
    model(on(device, np.ones((1, 3)), "float32")).sum().backward()
    with pytest.raises(RuntimeError, match=f"moved to {device}.*lies on cpu: make the optimizer after"):
        optimizer.step()
    assert optimizer.steps == 0
    with pytest.raises(ValueError, match="move them to one device"):
        optim.Adam([*model.parameters(), Tensor([1.0], requires_grad=True)])


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e30, 1e-30])
def test_clipping_is_that_of_the_host(device, scale):
    grads = [scale * RNG(i).normal(size=n).astype("float32") for i, n in enumerate((3, 5))]
    here, there = ([Tensor(np.zeros(g.size, "float32"), requires_grad=True) for g in grads] for _ in range(2))
    there = [Tensor(p.data, device=device, requires_grad=True) for p in there]
    for p, q, g in zip(here, there, grads, strict=True):
        p.grad, q.grad = g.copy(), arrays.move(g, device)
    norm = optim.clip_grad_norm(here, 1.0)
    close(optim.clip_grad_norm(there, 1.0), norm, 1e-6 * max(norm, 1))
    for p, q in zip(here, there, strict=True):
        np.testing.assert_allclose(arrays.to_host(q.grad), p.grad, rtol=1e-5)


def test_clipping_float16_keeps_a_small_scale(device):
    norms = []
    for where_at in "cpu", device:
        p = Tensor(np.zeros(4000, "float16"), device=where_at, requires_grad=True)
        p.grad = arrays.move(np.full(4000, 60000, "float16"), where_at)
        optim.clip_grad_norm([p], 1e-3)
        norms.append(np.linalg.norm(arrays.to_host(p.grad).astype("float64")))
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    assert norms[1] > 0


def test_a_formula_that_no_kernel_can_be_made_of_names_the_function(device):
    class Sign(optim.SGD):
        def _formula(self, xp, *numbers):
            return lambda p, g, a, b: xp.subtract(p, xp.sign(g, out=a), out=p)

    p = on(device, [1, 2], requires_grad=True)
    p.grad = on(device, [1, 2]).data
    with pytest.raises(TypeError, match="cannot call sign: it can add"):
        Sign([p], 0.1).step()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_clipping_what_is_not_finite_makes_all_of_it_nan(device, bad):
    params = [Tensor(np.zeros(2), device=device, requires_grad=True) for _ in range(2)]
    for p, value in zip(params, (1.0, bad), strict=True):
        p.grad = arrays.move(np.full(2, value), device)
    assert not np.isfinite(arrays.to_host(optim.clip_grad_norm(params, np.inf)))
    assert params[0].grad.tolist() == [1, 1], "an infinite limit only measures"
    optim.clip_grad_norm(params, 1.0)
    assert np.isnan(arrays.to_host(params[0].grad)).all()


# ---- training -----------------------------------------------------------------------------------------------------

RECIPES = {
    "Adam, one cycle, dropout": RECIPE,
    "SGD": replace(RECIPE, optimizer="sgd", lr=0.1, momentum=0.9, nesterov=True, clip=0.5, l2=1e-3, schedule="cosine"),
    "distorted": DISTORTED,
    "MSE": replace(RECIPE, optimizer="adamw", weight_decay=0.1, loss="mse", activation="tanh", dtype="float64"),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_run_is_that_of_the_host(device, recipe):
    recipe = replace(recipe, epochs=2)
    here, there = train(recipe, dataset()), train(recipe, dataset(), device=device)
    assert there.model.parameters()[0].device == device
    for expected, row in zip(without_times(here.history), without_times(there.history), strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=0.011)
    np.testing.assert_allclose(arrays.to_host(there.model.flat), here.model.flat, rtol=1e-3, atol=1e-4)


def test_a_run_goes_on_elsewhere(device):
    recipe = replace(RECIPE, epochs=2)
    whole = train(recipe, dataset())
    first = Training(recipe, dataset(), device)
    first.run_epoch(Monitor())
    second = Training(recipe, dataset())
    second.restore(first.state(), first.history)
    second.run_epoch(Monitor())
    np.testing.assert_allclose(second.model.flat, whole.model.flat, rtol=1e-3, atol=1e-4)


def test_random_numbers_are_those_of_the_host(device):
    here, there = nn.MLP((3, 9, 2), dropout=0.5, rng=0), nn.MLP((3, 9, 2), dropout=0.5, rng=0).to(device)
    close(there.flat, here.flat, 0)
    x = np.ones((4, 3), "float32")
    masks = [nn.dropout(Tensor(np.ones((5, 5)), device=d), 0.5, RNG(3)).numpy() for d in ("cpu", device)]
    assert masks[0].tobytes() == masks[1].tobytes()
    close(there(arrays.move(x, device)).data, here(x).data, 1e-6)
    images, labels = (arrays.move(a, device) for a in dataset()[:2])
    for theirs, ours in zip(
        data.batches(images, labels, 64, RNG(5)), data.batches(*dataset()[:2], 64, RNG(5)), strict=True
    ):
        close(theirs[0], ours[0], 0)
        close(theirs[1], ours[1], 0)


def test_evaluate_and_predict_take_images_of_either_side(device):
    training = train(replace(RECIPE, epochs=1), dataset())
    images, labels = dataset()[2:]
    expected = evaluate(training.model, training.preprocess, images, labels)
    training.model.to(device)
    for there in images, arrays.move(images, device):
        found = evaluate(training.model, training.preprocess, there, labels)
        assert type(found.logits) is np.ndarray
        assert found.accuracy == expected.accuracy
        np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert predict(training.model, training.preprocess, images[:1]).shape == (1, 10)


@pytest.mark.parametrize("recipe", [RECIPE, DISTORTED], ids=["plain", "distorted"])
def test_a_data_set_larger_than_the_device_is_streamed(device, monkeypatch, recipe):
    recipe = replace(recipe, epochs=1)
    expected = train(recipe, dataset(), device=device)
    monkeypatch.setattr(arrays, "available", lambda like: 1000)
    training = Training(recipe, dataset(), device)
    assert training._resident == {}
    training.run_epoch(Monitor())
    assert without_times(training.history) == without_times(expected.history)
    close(training.model.flat, arrays.to_host(expected.model.flat), 0)


class LateCopies:
    """A device that copies out of host memory as late as it may: when an event behind the copy is waited for."""

    def __init__(self, pending):
        self.pending, self.copies = pending, []

    def record(self):
        self.copies, self.pending[:] = [*self.pending], []

    def synchronize(self):
        for there, here in self.copies:
            there._host[...] = here
        self.copies = []


@pytest.mark.parametrize("backend", ["strict"], indirect=True)
def test_a_buffer_is_not_filled_again_before_it_was_copied(backend, monkeypatch):
    pending, events = [], []
    monkeypatch.setattr(strict.xp.cuda, "Event", lambda: events.append(LateCopies(pending)) or events[-1])
    monkeypatch.setattr(strict.ndarray, "set", lambda there, here: pending.append((there, here)))
    like = on("strict", [0])
    expected = [(np.full((3, 2), i), np.full(3, -i)) for i in range(7)]
    found = list(arrays.uploads(expected, like.data))
    for event in events:
        event.synchronize()
    for ours, theirs in zip(found, expected, strict=True):
        close(ours[0], theirs[0], 0)
        close(ours[1], theirs[1], 0)
    assert len(events) == 2


def test_a_step_between_forward_and_backward_is_noticed(device):
    model = nn.MLP((2, 3, 1), rng=0).to(device)
    optimizer = optim.SGD(model.parameters(), 0.1)
    x = on(device, np.ones((1, 2)), "float32")
    model(x).sum().backward()
    late = model(x).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="was changed in place"):
        late.backward()


def test_times_of_what_is_emulated_are_not_reported(device):
    training = train(replace(RECIPE, epochs=1), dataset(), device=device)
    assert training.emulated
    assert (training.history[0]["seconds"], training.history[0]["images_per_second"]) == (None, None)


def test_divergence_is_noticed(device):
    recipe = replace(RECIPE, optimizer="sgd", lr=1e30, epochs=1)
    with pytest.raises(FloatingPointError, match="became (inf|nan) in epoch 1: lower lr"):
        train(recipe, dataset(), device=device)


# ---- waiting and uploading: recorded by the double ----------------------------------------------------------------


def resident(recipe=RECIPE, dropout=0.0, compiled=False):
    """A training, what does one step of it, and the images and labels of a batch."""
    training = Training(replace(recipe, dropout=dropout), dataset(), "strict", compile=compiled)
    training.model.train()
    return training, training._compiled or training.step, next(iter(training._batches(RNG(0))))


@pytest.fixture
def recorder():
    strict.recorder.clear()
    yield strict.recorder
    strict.recorder.clear()


STEPS = {
    "Adam": RECIPE,
    "SGD": replace(RECIPE, optimizer="sgd", lr=0.1, momentum=0.9),
    "AdamW and clip": replace(RECIPE, optimizer="adamw", clip=1.0, l2=1e-3),
    "MSE": replace(RECIPE, loss="mse"),
}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("backend", ["strict"], indirect=True)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("recipe", STEPS.values(), ids=STEPS)
def test_a_step_neither_waits_nor_uploads(recipe, compiled, recorder):
    training, step, batch = resident(recipe, compiled=compiled)
    score = Score(training.model.flat, recipe.batch)
    for _ in range(3):  # of a compiled one, the first two are captured
        step(*batch)
    recorder.clear()
    with strict.no_sync():
        loss, right = step(*batch)
        score.add(len(batch[1]), loss.data, right)
    assert recorder.events == []


@pytest.mark.parametrize("backend", ["strict"], indirect=True)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_dropout_uploads_its_masks_once_a_step(backend, compiled, recorder):
    _, step, batch = resident(dropout=0.5, compiled=compiled)
    for _ in range(3):
        step(*batch)
    recorder.clear()
    with strict.no_sync():
        step(*batch)
    assert [kind for kind, *_ in recorder.events] == ["h2d"]


@pytest.mark.parametrize("backend", ["strict"], indirect=True)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_an_epoch_uploads_its_order_and_waits_only_to_report(backend, compiled, recorder):
    training, *_ = resident(compiled=compiled)
    for _ in range(2):
        training.run_epoch(Monitor())
    recorder.clear()
    training.run_epoch(Monitor())
    found = {}
    for kind, what, _, place in recorder.events:
        found.setdefault(kind, []).append(f"{what} at {place}")
    # the order of the images, compiled in two chunks; loss and accuracy; whether the weights are finite; the logits of
    # two parts
    assert {kind: len(places) for kind, places in found.items()} == {"h2d": 1 + compiled, "d2h": 4}, found


@pytest.mark.parametrize("backend", ["strict"], indirect=True)
def test_a_planted_wait_is_found_with_file_and_line(backend, recorder):
    _, step, batch = resident()
    with strict.no_sync(), pytest.raises(strict.HostSync, match=r"test_devices\.py:\d+: bool"):
        if step(*batch)[0] > 0:
            pass


# ---- launches: counted on the pretend GPU -------------------------------------------------------------------------

BUDGET = 60  # kernels of one eager training step of 784-128-64-10 with Adam


@pytest.mark.parametrize("backend", ["cupy-pretend"], indirect=True)
def test_a_step_launches_few_kernels(backend):
    model = nn.MLP((784, 128, 64, 10), rng=0).to("gpu")
    optimizer = optim.Adam(model.parameters())
    x, y = (arrays.move(a, "gpu") for a in (RNG(0).random((128, 784), "float32"), RNG(1).integers(0, 10, 128, "uint8")))

    def step():
        loss = softmax_cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    with pretend_gpu.record() as events:
        step()
    launches = [event for event in events if event.kind == "launch"]
    assert len(launches) <= BUDGET, launches
    assert {event.kind for event in events} <= {"launch", "malloc"}, events
    assert sum("tinygrad_mnist_step" in event.what for event in launches) == len(model.parameters())


def own_kernels(dtype):
    """{name: (kernel, arguments that have the types of a call)} of every optimizer."""
    found = {}
    for name, make in OPTIMIZERS.items():
        optimizer = make([Tensor(np.ones(3, dtype), requires_grad=True)])
        optimizer.steps = 1
        numbers = optimizer._numbers()
        lines, state = arrays.fused_source(optimizer._formula, optimizer.states, len(numbers))
        kernel = arrays._compiled(arrays.cupy(), lines, len(numbers), state)
        array = np.ones(3, dtype)
        found[name] = kernel, (array, *(array.dtype.type(n) for n in numbers), *(array for _ in state))
    return found


@pytest.mark.parametrize("backend", ["cupy-pretend"], indirect=True)
@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_own_kernels_compile_for_every_gpu(backend, architecture, dtype):
    for name, (kernel, arguments) in own_kernels(dtype).items():
        image = nvrtc.compile_for(nvrtc.elementwise_source(kernel, *arguments), architecture)
        assert image[:4] == b"\x7fELF", name


@pytest.mark.parametrize("backend", ["cupy-pretend"], indirect=True)
def test_a_kernel_with_a_mistake_does_not_compile(backend):
    kernel = arrays._compiled(arrays.cupy(), ("p = q * c0;",), 1, ("p",))
    array = np.ones(3, "float32")
    with pytest.raises(arrays.cupy().cuda.compiler.CompileException, match='"q" is undefined'):
        nvrtc.compile_for(nvrtc.elementwise_source(kernel, array, np.float32(1), array), 80)


def test_the_kernel_of_adam_is_its_formula():
    optimizer = optim.Adam([Tensor(np.ones(3), requires_grad=True)])
    optimizer.steps = 1
    numbers = optimizer._numbers()
    lines, state = arrays.fused_source(optimizer._formula, optimizer.states, len(numbers))
    assert (lines, state) == (
        (
            "m = m * c0;", "m = m + g;", "v = v * c1;", "a = g * g;", "v = v + a;", "a = sqrt(v);", "a = a + c3;",
            "a = m / a;", "a = a * c2;", "p = p - a;",
        ),
        ("p", "m", "v"),
    )
    assert dict(zip(optimizer.rates, numbers, strict=True)) == pytest.approx(
        {"beta1": 0.9, "beta2": 0.999, "rate": 1e-3, "eps": 1e-8, "weight_decay": 0, "shrink": 1}
    )


# ---- memory -------------------------------------------------------------------------------------------------------


def step(recipe, parts):
    """The first step of a training."""
    training = Training(recipe, parts, "gpu")
    training.model.train()
    training.step(*next(iter(training._batches(RNG(0)))))


@pytest.mark.parametrize("backend", ["cupy-pretend"], indirect=True)
@pytest.mark.parametrize(
    "options",
    [
        {"layers": (784, 128, 64, 10)},
        {"layers": (784, 2000, 10), "optimizer": "sgd", "clip": 1.0},
        {"layers": (784, 1000, 1000, 10), "activation": "gelu", "dropout": 0.5},
        {"layers": (784, 500, 10), "activation": "softplus", "dtype": "float64", "loss": "mse"},
    ],
    ids=lambda options: options.get("activation", "relu") + str(options["layers"][1]),
)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_out_of_memory_names_a_batch_that_fits(backend, options, compiled):
    pool = arrays.cupy().get_default_memory_pool()
    images = np.zeros((20000, 28, 28), "uint8")
    labels = (np.arange(20000) % 10).astype("uint8")
    recipe = replace(RECIPE, **{"dropout": 0.0, "validation": 0.0, "epochs": 1, "batch": 20000, **options})
    pool.free_all_blocks()
    pool.set_limit(size=pool.used_bytes() + 120 * 2**20)
    try:
        with pytest.raises(MemoryError) as caught:
            train(recipe, (images, labels, images[:100], labels[:100]), device="gpu", compile=compiled)
        text = str(caught.value)
        found = re.fullmatch(
            r"(?:\w+ on .*: )?out of memory on gpu: [\d.]+ MiB asked for.*; a step with batch 20000 had [\d.]+ MiB at "
            r"hand: %sa batch of (\d+) would fit" % ("uncompiled, " * compiled), text)
        assert found, text
        del caught
        step(replace(recipe, batch=int(found[1])), (images, labels, images[:100], labels[:100]))
        pool.free_all_blocks()
        with pytest.raises(MemoryError):  # nor is it far too small
            step(replace(recipe, batch=min(20000, 8 * int(found[1]))), (images, labels, images[:100], labels[:100]))
    finally:
        pool.set_limit(size=0)


@pytest.mark.parametrize("backend", ["cupy-pretend"], indirect=True)
def test_out_of_memory_in_an_operation_names_it_and_the_sizes(backend):
    pool = arrays.cupy().get_default_memory_pool()
    t = on("gpu", np.ones((4000, 1)))
    gc.collect()
    pool.free_all_blocks()
    pool.set_limit(size=pool.used_bytes() + 2**20)
    try:
        with pytest.raises(MemoryError, match=r"^add on float64 \(4000, 1\) and float64 \(1, 4000\): out of memory "
                                              r"on gpu: 122.1 MiB asked for, \d.*[Bs] available$"):
            t + t.T
    finally:
        pool.set_limit(size=0)


# ---- several GPUs -------------------------------------------------------------------------------------------------

TWO = """
import numpy as np, pretend_gpu
pretend_gpu.load()
from tinygrad_mnist import Tensor, nn, optim, softmax_cross_entropy, arrays
a, b = (Tensor(np.ones((2, 3), "float32"), device=d, requires_grad=True) for d in ("gpu:0", "gpu:1"))
assert (a.device, b.device, (a * 2).device, (b * 2).device) == ("gpu", "gpu:1", "gpu", "gpu:1")
try:
    a + b
except ValueError as error:
    assert "on different devices: float32 (2, 3) on gpu and float32 (2, 3) on gpu:1" in str(error), error
else:
    raise AssertionError("mixed")
y = (a.to("gpu:1") * b * b).to("gpu").sum()
y.backward()
assert (arrays.device_of(a.grad), arrays.device_of(b.grad)) == ("gpu", "gpu:1")
assert arrays.cupy().cuda.Device().id == 0, "the current device is the caller's"
assert a.grad.tolist() == [[1, 1, 1]] * 2 and b.grad.tolist() == [[2, 2, 2]] * 2
losses = []
for device in "cpu", "gpu", "gpu:1":
    model = nn.MLP((3, 4, 2), rng=0).to(device)
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    for _ in range(3):
        loss = softmax_cross_entropy(model(Tensor(np.ones((2, 3), "float32"), device=device)), np.array([0, 1]))
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    losses.append(float(loss))
assert np.allclose(losses, losses[0], rtol=1e-6), losses
import small
from dataclasses import replace
from tinygrad_mnist.train import train
from tinygrad_mnist.inference import evaluate
runs = [train(replace(small.RECIPE, epochs=1), small.dataset(), device=device) for device in ("gpu", "gpu:1")]
assert {p.device for p in runs[1].model.parameters()} == {"gpu:1"}
assert small.without_times(runs[0].history) == small.without_times(runs[1].history)
assert evaluate(runs[1].model, runs[1].preprocess, *small.dataset()[2:]).accuracy == runs[0].history[0]["test_accuracy"]
import copy, pickle
from tinygrad_mnist import data, detect_anomaly, grad, no_grad
current = lambda: arrays.cupy().cuda.Device().id
one = lambda values, **options: Tensor(np.array(values, "float32"), device="gpu:1", **options)
x = one([1, 2], requires_grad=True)
((x.to("gpu") * 2).sum() + (x.to("gpu") * 3).sum()).backward()
assert x.grad.tolist() == [5, 5] and current() == 0
x = one([1, 2], requires_grad=True)
((x * x).to("gpu").sum() + x.sum().to("gpu")).backward()
assert x.grad.tolist() == [3, 5] and current() == 0
x = one([1, 2], requires_grad=True)
(x * 2).to("cpu").sum().backward()
assert x.grad.tolist() == [2, 2] and current() == 0
assert arrays.device_of(grad(lambda x: (x * x).to("cpu").sum())(x.data)) == "gpu:1" and current() == 0
model = nn.MLP((3, 4, 2), rng=0).to("gpu:1")
assert {p.device for p in copy.deepcopy(model).parameters()} == {"gpu:1"}
assert {p.device for p in pickle.loads(pickle.dumps(model)).parameters()} == {"gpu"}  # CuPy's: the current one
assert copy.copy(x).device == copy.deepcopy(x).device == "gpu:1"
assert x.detach()[one([1, 0]).astype("int64")].tolist() == [2, 1]
assert Tensor(x.data, dtype="float64").device == "gpu:1"
with detect_anomaly():
    (x * 2).sum().backward()
for images, labels in data.batches(one([[1], [2], [3]]).data, one([1, 2, 3]).data, 2, np.random.default_rng(0)):
    assert images.device.id == labels.device.id == 1
with no_grad():
    x -= 1
    x[0] = np.float32(7)
    try:
        x[1] = Tensor(np.float32(1), device="gpu")
    except ValueError as error:
        assert "on different devices" in str(error)
    else:
        raise AssertionError("mixed by assignment")
assert x.tolist()[0] == 7 and current() == 0
for name in "gpu:2", "gpu:7":
    try:
        Tensor([1.0], device=name)
    except ValueError as error:
        assert "the last one is 'gpu:1'" in str(error)
    else:
        raise AssertionError(name)
print("ok")
"""


@pytest.mark.parametrize("backend", ["cupy-pretend"], indirect=True)
def test_two_gpus_each_compute_their_own(backend):
    import os

    environment = os.environ | {"PRETEND_GPU_DEVICES": "2", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", TWO], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
