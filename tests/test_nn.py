"""Layers: shapes, initialisers, dropout, and the one flat buffer that parameters stay views of."""

import copy
import math
import pickle

import numpy as np
import pytest

from tinygrad_mnist import Tensor, dropout, nn, no_grad, optim

SIZES = (784, 128, 64, 10)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


REFERENCE = {
    "relu": lambda z: np.maximum(z, 0),
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
    "softplus": lambda z: np.log1p(np.exp(z)),
    "gelu": lambda z: z * sigmoid(math.sqrt(8 / math.pi) * (z + 0.044715 * z**3)),
    "silu": lambda z: z * sigmoid(z),
    "linear": lambda z: z,
}


def arrays(model):
    return [p.data for p in model.parameters()]


def assert_views_of_flat(model):
    """Every parameter, in order, is the next part of `flat`."""
    start = model.flat.__array_interface__["data"][0]
    for p in model.parameters():
        assert p.data.__array_interface__["data"][0] == start
        assert p.data.flags.c_contiguous
        start += p.data.nbytes
    assert start == model.flat.__array_interface__["data"][0] + model.flat.nbytes
    for module in model.modules():
        assert np.shares_memory(module.flat, model.flat)
        assert module.flat.size == sum(p.size for p in module.parameters())
        assert module.flat.tobytes() == b"".join(p.data.tobytes() for p in module.parameters())


# ---- Linear and MLP -----------------------------------------------------------------------------------------------


def test_linear_is_x_times_weight_plus_bias():
    x = np.random.default_rng(0).normal(size=(5, 3))
    layer = nn.Linear(3, 2, rng=1, dtype="float64")
    layer.bias.data = [0.5, -1.0]
    assert layer.weight.shape == (3, 2)
    assert layer.bias.shape == (2,)
    np.testing.assert_array_equal(layer(x).data, x @ layer.weight.data + layer.bias.data)
    np.testing.assert_array_equal(layer(Tensor(x)).data, layer(x).data)
    assert layer(x[0]).shape == (2,)


def test_linear_without_bias():
    layer = nn.Linear(3, 2, bias=False, rng=1)
    assert layer.bias is None
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    np.testing.assert_array_equal(layer(np.eye(3, dtype="float32")).data, layer.weight.data)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_bias_starts_at_plus_zero_whatever_the_weights_are(dtype):
    for init in ("glorot_uniform", lambda rng, shape: np.full(shape, np.inf)):
        bias = nn.Linear(3, 4, init=init, rng=0, dtype=dtype).bias.data
        assert bias.dtype == dtype
        assert bias.tobytes() == bytes(bias.nbytes)  # -0.0 and NaN have other bits


def test_mlp_has_the_parameters_that_its_sizes_say():
    model = nn.MLP(SIZES, rng=0)
    names = [name for name, _ in model.named_parameters()]
    assert names == [f"layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")]
    assert [p.shape for p in model.parameters()] == [(784, 128), (128,), (128, 64), (64,), (64, 10), (10,)]
    assert [p.name for p in model.parameters()] == ["W1", "b1", "W2", "b2", "W3", "b3"]
    assert sum(p.size for p in model.parameters()) == model.flat.size == 109_386
    assert all(p.dtype == np.float32 and p.requires_grad and p.is_leaf for p in model.parameters())
    assert model(np.zeros((7, 784), "float32")).shape == (7, 10)
    without = nn.MLP(SIZES, bias=False, rng=0)
    assert without.flat.size == 109_386 - 128 - 64 - 10


def test_mlp_without_hidden_layer_is_linear():
    model = nn.MLP((4, 3), rng=0, dtype="float64")
    x = np.random.default_rng(1).normal(size=(2, 4))
    np.testing.assert_array_equal(model(x).data, x @ model.layers[0].weight.data)


@pytest.mark.parametrize("name", nn.ACTIVATIONS)
def test_every_activation_is_its_formula(name):
    z = np.linspace(-4, 4, 40)
    np.testing.assert_allclose(np.asarray(nn.ACTIVATIONS[name](Tensor(z)).data), REFERENCE[name](z), rtol=1e-13)


def test_each_hidden_layer_has_its_own_activation_and_the_last_has_none():
    model = nn.MLP((4, 6, 5, 3), ["tanh", "relu"], rng=0, dtype="float64")
    x = np.random.default_rng(1).normal(size=(8, 4))
    w1, b1, w2, b2, w3, b3 = arrays(model)
    expected = np.maximum(np.tanh(x @ w1 + b1) @ w2 + b2, 0) @ w3 + b3
    np.testing.assert_allclose(model(x).data, expected, rtol=1e-14)
    assert (expected < 0).any()


def test_same_seed_gives_same_weights_and_a_generator_goes_on():
    one, same, other = (nn.MLP(SIZES, rng=seed).flat for seed in (1, 1, 2))
    assert one.tobytes() == same.tobytes() != other.tobytes()
    rng = np.random.default_rng(1)
    first, second = (nn.MLP(SIZES, rng=rng).flat for _ in range(2))
    assert first.tobytes() == one.tobytes() != second.tobytes()
    assert nn.MLP((3, 3)).flat.tobytes() != nn.MLP((3, 3)).flat.tobytes()  # no seed: fresh entropy


def test_weights_of_all_dtypes_come_from_the_same_draw():
    wide = nn.MLP((20, 10, 5), rng=0, dtype="float64").flat
    for dtype in "float32", "float16":
        assert nn.MLP((20, 10, 5), rng=0, dtype=dtype).flat.tobytes() == wide.astype(dtype).tobytes()


def test_gradients_of_an_mlp_are_those_derived_by_hand():
    model = nn.MLP((4, 5, 3), "sigmoid", rng=0, dtype="float64")
    rng = np.random.default_rng(1)
    x, g = rng.normal(size=(6, 4)), rng.normal(size=(6, 3))
    w1, b1, w2, _ = arrays(model)
    h = sigmoid(x @ w1 + b1)
    dz = g @ w2.T * h * (1 - h)
    model(x).backward(g)
    expected = [x.T @ dz, dz.sum(0), h.T @ g, g.sum(0)]
    for p, e in zip(model.parameters(), expected, strict=True):
        np.testing.assert_allclose(p.grad, e, rtol=1e-12)
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_config_rebuilds_the_architecture():
    model = nn.MLP((4, 6, 5, 3), ["tanh", "relu"], bias=False, dropout=0.25, rng=0, dtype="float64")
    again = nn.MLP(**model.config(), rng=0)
    assert again.config() == model.config()
    assert again.flat.tobytes() == model.flat.tobytes()


# ---- initialisers -------------------------------------------------------------------------------------------------

N_IN, N_OUT = 300, 200


def weights(init):
    values = nn.Linear(N_IN, N_OUT, init=init, rng=0, dtype="float64").weight.data
    assert abs(values.mean()) < 5 * values.std() / math.sqrt(values.size)
    return values


@pytest.mark.parametrize(
    ("init", "limit"),
    [
        ("glorot_uniform", math.sqrt(6 / (N_IN + N_OUT))),
        ("xavier_uniform", math.sqrt(6 / (N_IN + N_OUT))),
        ("he_uniform", math.sqrt(6 / N_IN)),
    ],
)
def test_uniform_initialisers(init, limit):
    values = weights(init)
    assert 0.999 * limit < np.abs(values).max() <= limit
    counts, _ = np.histogram(values, 20, (-limit, limit))
    expected = values.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi squared, 19 degrees of freedom: 1 in 1000


@pytest.mark.parametrize(
    ("init", "sd"),
    [
        ("glorot_normal", math.sqrt(2 / (N_IN + N_OUT))),
        ("xavier_normal", math.sqrt(2 / (N_IN + N_OUT))),
        ("he_normal", math.sqrt(2 / N_IN)),
        ("normal", 1.0),
        ("normal(0.01)", 0.01),
        ("normal(1e-2)", 0.01),
        ("normal(.5)", 0.5),
        ("normal(2)", 2.0),
    ],
)
def test_normal_initialisers(init, sd):
    values = weights(init) / sd
    assert values.std() == pytest.approx(1, abs=5 / math.sqrt(2 * values.size))
    assert np.mean(values**4) == pytest.approx(3, abs=5 * math.sqrt(96 / values.size))  # not uniform: 1.8
    assert 3.5 < np.abs(values).max() < 6


def test_zeros_and_a_function_of_ones_own():
    assert not nn.MLP((3, 2), init="zeros", rng=0).flat.any()
    seen = []

    def ramp(rng, shape):
        seen.append((type(rng), shape))
        return np.arange(np.prod(shape)).reshape(shape)

    model = nn.MLP((3, 2, 1), init=ramp, rng=0)
    assert seen == [(np.random.Generator, (3, 2)), (np.random.Generator, (2, 1))]
    np.testing.assert_array_equal(model.layers[0].weight.data, [[0, 1], [2, 3], [4, 5]])


@pytest.mark.parametrize("init", ["he", "normal()", "normal(e)", "normal(-1)", "normal(1", "normal(1)x", "normal(nan)"])
def test_unknown_initialiser(init):
    with pytest.raises(ValueError, match=r"init must be one of glorot_uniform, .*'normal\(s\)' or a function; got"):
        nn.MLP((3, 2), init=init)


# ---- dropout ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_zeroes_a_share_and_keeps_the_mean(p):
    x = np.full((500, 400), 3.0)
    y = dropout(x, p, 0).data
    np.testing.assert_allclose(np.unique(y), [0, 3 / (1 - p)], rtol=1e-15)
    share = np.mean(y == 0)
    spread = math.sqrt(p * (1 - p) / y.size)
    assert share == pytest.approx(p, abs=4 * spread)
    assert y.mean() == pytest.approx(3, abs=4 * 3 / (1 - p) * spread)


def test_dropout_backward_uses_the_same_mask():
    x = Tensor(np.ones((20, 20)), requires_grad=True)
    y = dropout(x, 0.3, np.random.default_rng(0))
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, y.data)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dropout_keeps_the_dtype_and_a_seed_gives_one_mask(dtype):
    x = Tensor(np.ones(1000, dtype), requires_grad=True)
    y = dropout(x, 0.5, 7)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.data != 0, dropout(np.ones(1000), 0.5, 7).data != 0)
    assert (dropout(x, 0.0, 0).data == 1).all()


def test_dropout_is_active_in_training_only_and_after_hidden_layers_only():
    model = nn.MLP((10, 200, 200, 3), dropout=0.5, rng=0, dtype="float64")
    x = np.random.default_rng(1).normal(size=(1, 10))
    assert model.training
    assert len({model(x).data.tobytes() for _ in range(5)}) == 5
    model.eval()
    assert not any(module.training for module in model.modules())
    w1, b1, w2, b2, w3, b3 = arrays(model)
    plain = np.maximum(np.maximum(x @ w1 + b1, 0) @ w2 + b2, 0) @ w3 + b3
    np.testing.assert_allclose(model(x).data, plain, rtol=1e-12)
    assert model.train() is model
    assert all(module.training for module in model.modules())
    single = nn.MLP((10, 3), dropout=0.9, rng=0)
    assert single(x).data.all()  # the last layer has none


def test_dropout_of_the_hidden_layer_keeps_the_mean_of_the_logits():
    model = nn.MLP((4, 50, 2), dropout=0.3, rng=0, dtype="float64")
    x = np.random.default_rng(1).normal(size=(1, 4))
    with no_grad():
        draws = model(np.repeat(x, 20_000, 0)).data
        plain = model.eval()(x).data[0]
    assert np.all(np.abs(draws.mean(0) - plain) < 5 * draws.std(0) / math.sqrt(len(draws)))


# ---- the flat buffer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_views_of_one_flat_buffer(bias):
    model = nn.MLP((5, 4, 3), bias=bias, rng=0)
    assert_views_of_flat(model)
    before = model(np.ones((1, 5), "float32")).data
    model.flat *= 2  # what an optimizer over the whole buffer would do
    assert (model(np.ones((1, 5), "float32")).data != before).all()


def test_parameters_stay_views_after_all_that_sets_them():
    model, other = nn.MLP((5, 4, 3), rng=0), nn.MLP((5, 4, 3), rng=1)
    flat = model.flat
    model.load_state_dict(other.state_dict())
    assert model.flat is flat
    assert flat.tobytes() == other.flat.tobytes()
    assert_views_of_flat(model)
    model(np.ones((2, 5), "float32")).sum().backward()
    optim.Adam(model.parameters()).step()
    assert model.flat is flat
    assert_views_of_flat(model)
    with no_grad():
        for p in model.parameters():
            p -= 0.5 * p.grad
    assert_views_of_flat(model)


def test_assigning_data_copies_in():
    model = nn.MLP((2, 2), bias=False, rng=0)
    (weight,) = model.parameters()
    values = np.arange(4.0).reshape(2, 2)
    weight.data = values
    values[:] = -1
    assert model.flat.tolist() == [0, 1, 2, 3]
    weight.data = 7
    assert model.flat.tolist() == [7, 7, 7, 7]
    with pytest.raises(ValueError, match="broadcast"):
        weight.data = np.zeros(3)
    with pytest.raises(AttributeError):
        weight.flat = values


def pickled(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, pickled])
def test_copies_are_whole_and_independent(twin):
    model = nn.MLP((5, 4, 3), ["tanh"], dropout=0.5, rng=0).eval()
    model(np.ones((2, 5), "float32")).sum().backward()
    other = twin(model)
    assert other.config() == model.config()
    assert not other.training
    assert_views_of_flat(other)
    assert_views_of_flat(model)
    assert other.flat.tobytes() == model.flat.tobytes()
    assert not np.shares_memory(other.flat, model.flat)
    assert [p.name for p in other.parameters()] == ["W1", "b1", "W2", "b2"]
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        np.testing.assert_array_equal(p.grad, q.grad)
        assert q.grad is not p.grad
    x = np.ones((3, 5), "float32")
    assert other.train()(x).data.tobytes() == model.train()(x).data.tobytes()  # the generator of the masks too
    other.flat[:] = 0
    assert model.flat.any()


def test_pickle_holds_the_parameters_once():
    model = nn.MLP((100, 100), rng=0)
    assert len(pickle.dumps(model)) < 1.1 * model.flat.nbytes


class Block(nn.Module):
    """A module of the user's own: attributes, lists and modules with parameters, and what is no parameter."""

    def __init__(self):
        self.scale = Tensor([2.0, 3.0], requires_grad=True)
        self.fixed = Tensor([9.0])
        self.layers = [nn.Linear(2, 2, rng=0), nn.Linear(2, 2, rng=1)]
        self.inner = nn.MLP((2, 3, 2), rng=2)
        self.shifts = [Tensor([1.0, 1.0], requires_grad=True), 5]
        self.flatten()

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.inner(x) * self.scale + self.shifts[0]


def test_module_of_ones_own():
    block = Block()
    names = [name for name, _ in block.named_parameters()]
    inner = [f"inner.layers.{i}.{kind}" for i in range(2) for kind in ("weight", "bias")]
    linear = [f"layers.{i}.{kind}" for i in range(2) for kind in ("weight", "bias")]
    assert names == ["scale", *linear, *inner, "shifts.0"]
    kinds = [type(module).__name__ for module in block.modules()]
    assert kinds == ["Block", "Linear", "Linear", "MLP", "Linear", "Linear"]
    assert block.scale.data.tolist() == [2, 3]
    assert_views_of_flat(block)
    assert_views_of_flat(copy.deepcopy(block))
    assert not block.eval().inner.layers[0].training
    block(np.ones((1, 2), "float32")).sum().backward()
    assert all(p.grad is not None for p in block.parameters())


class Nested(nn.Module):
    """Parameters at any depth of lists, tuples and dicts, some of them shared, and a way back up."""

    def __init__(self):
        first = nn.Linear(2, 3, rng=0)
        self.pair = (first, [nn.Linear(3, 2, rng=1), "no parameter"])
        self.blocks = {"key": nn.Linear(2, 2, rng=2), "deep": {1: (Tensor([1.0, 2.0], requires_grad=True),)}}
        self.again = first
        self.tied = nn.Linear(2, 3, bias=False, rng=3)
        self.tied.weight = first.weight
        self.tied.owner = self
        self.last = Tensor([3.0], requires_grad=True)
        self.flatten()


def test_module_with_parameters_in_tuples_dicts_and_nested_lists():
    module = Nested()
    names = ["pair.0.weight", "pair.0.bias", "pair.1.0.weight", "pair.1.0.bias"]
    names += ["blocks.key.weight", "blocks.key.bias", "blocks.deep.1.0", "last"]
    assert [name for name, _ in module.named_parameters()] == names
    assert [name for name, _ in module.named_parameters("net.")] == [f"net.{name}" for name in names]
    assert list(module.state_dict()) == names
    assert [type(m).__name__ for m in module.modules()] == ["Nested"] + ["Linear"] * 4
    assert not any(m.training for m in module.eval().modules())


@pytest.mark.parametrize("twin", [lambda module: module, copy.deepcopy, pickled])
def test_shared_parameters_are_there_once(twin):
    module = twin(Nested())
    params = module.parameters()
    assert len({id(p) for p in params}) == len(params) == 8
    assert module.flat.tobytes() == b"".join(p.data.tobytes() for p in params)
    assert all(np.shares_memory(p.data, module.flat) for p in params)
    assert module.tied.weight is module.again.weight is module.pair[0].weight
    assert np.shares_memory(module.pair[1][0].flat, module.flat)
    for p in params:
        p.grad = np.ones_like(p.data)
    before = module.flat.copy()
    optim.SGD(params, 0.5).step()
    np.testing.assert_array_equal(module.flat, before - 0.5)


class Mixed(nn.Module):
    def __init__(self):
        self.a, self.b = nn.Linear(2, 2, rng=0), nn.Linear(2, 2, rng=0, dtype="float64")


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, pickled])
def test_parameters_of_several_dtypes_do_not_fit_one_buffer(twin):
    module = Mixed()
    with pytest.raises(
        ValueError, match=r"^flatten: one buffer has one dtype, but a.weight is float32 and b.weight is float64$"
    ):
        module.flatten()
    for m in module, twin(module):  # without a buffer they do
        assert [p.dtype for p in m.parameters()] == ["float32", "float32", "float64", "float64"]
        assert not hasattr(m, "flat")
        assert_views_of_flat(m.a)
        assert_views_of_flat(m.b)


def test_a_result_of_the_graph_is_no_parameter():
    model = nn.MLP((3, 2), rng=0)
    model.seen = model(np.ones((1, 3), "float32"))
    assert len(model.parameters()) == len(model.state_dict()) == 2
    seen = model.seen.data
    model.flatten()
    assert model.seen.data is seen


def test_module_without_parameters_and_without_call():
    empty = nn.Module()
    empty.flatten()
    assert empty.parameters() == []
    assert empty.state_dict() == {}
    with pytest.raises(NotImplementedError):
        empty(1)


# ---- state --------------------------------------------------------------------------------------------------------


def test_state_dict_is_a_copy():
    model = nn.MLP((3, 2), rng=0)
    state = model.state_dict()
    assert list(state) == ["layers.0.weight", "layers.0.bias"]
    assert all(type(a) is np.ndarray for a in state.values())
    state["layers.0.weight"][:] = 0
    assert model.flat.any()


def test_load_state_dict_takes_all_or_nothing():
    model = nn.MLP((3, 2), rng=0)
    before = model.flat.copy()
    good = {"layers.0.weight": np.ones((3, 2)), "layers.0.bias": np.ones(2)}
    for bad, message in [
        ({"layers.0.weight": np.ones((3, 2))}, r"missing \['layers.0.bias'\], unexpected \[\]"),
        ({**good, "layers.1.bias": np.ones(2)}, r"missing \[\], unexpected \['layers.1.bias'\]"),
        ({**good, "layers.0.bias": np.ones(3)}, r"layers.0.bias has shape \(3,\), the parameter \(2,\)"),
    ]:
        with pytest.raises(ValueError, match=f"^load_state_dict: {message}$"):
            model.load_state_dict(bad)
        assert model.flat.tobytes() == before.tobytes()
    model.load_state_dict(good)
    assert model.flat.dtype == np.float32
    assert (model.flat == 1).all()


def test_state_dict_holds_frozen_parameters_and_other_tensors():
    block, other = Block(), Block()
    block.scale.requires_grad = False
    block.scale.data, block.fixed.data = 5, 6
    state = block.state_dict()
    assert "scale" not in dict(block.named_parameters())
    assert list(state)[:2] == ["scale", "fixed"]
    other.load_state_dict(state)
    assert other.scale.data.tolist() == [5, 5]
    assert other.fixed.data.tolist() == [6]
    block.load_state_dict(Block().state_dict())
    assert block.scale.data.tolist() == [2, 3]


def test_loading_before_backward_is_noticed():
    model = nn.MLP((3, 2, 2), rng=0)
    loss = model(np.ones((1, 3), "float32")).sum()
    model.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="changed in place after it was recorded"):
        loss.backward()


# ---- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sizes": (5,)}, r"MLP: sizes must name input and output at least, each 1 or more; got \(5,\)"),
        ({"sizes": (5, 0, 2)}, r"MLP: sizes must .*; got \(5, 0, 2\)"),
        ({"activation": "elu"}, r"MLP: activation must be one of relu, .*, or a list .* 2 hidden layers; got 'elu'"),
        ({"activation": ["relu"]}, r"MLP: activation must be .* got \['relu'\]"),
        ({"activation": ["relu", "elu"]}, r"MLP: activation must be .* got \['relu', 'elu'\]"),
        ({"dropout": 1.0}, r"MLP: dropout must be at least 0 and less than 1, not 1.0"),
        ({"dropout": -0.1}, r"MLP: dropout must be at least 0 and less than 1, not -0.1"),
    ],
)
def test_errors_of_mlp(kwargs, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        nn.MLP(**{"sizes": (5, 4, 3, 2), "rng": 0, **kwargs})


def test_other_errors():
    with pytest.raises(ValueError, match=r"^dropout: p must be at least 0 and less than 1, not 1$"):
        dropout(np.ones(3), 1, 0)
    for x in Tensor([1, 2]), np.ones(3, bool), [1, 2]:
        with pytest.raises(TypeError, match=r"^dropout: x must have a float dtype, not .*: use \.astype\('float32'\)$"):
            dropout(x, 0.5, 0)
    with pytest.raises(TypeError, match="requires_grad needs a float dtype, not int64"):
        nn.Linear(2, 2, dtype="int64")
    with pytest.raises(ValueError, match=r"matmul.*\(2, 3\).*\(4, 2\)"):
        nn.MLP((4, 2), rng=0)(np.ones((2, 3), "float32"))
