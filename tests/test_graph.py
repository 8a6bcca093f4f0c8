"""The graph: how deep and wide it may be, what it keeps and for how long, threads, aliasing, changes in place."""

import asyncio
import gc
import sys
import threading
import tracemalloc
import weakref

import numpy as np
import pytest

from tinygrad_mnist import (
    Tensor,
    enable_grad,
    grad,
    hvp,
    nn,
    no_grad,
    ops,
    optim,
    relu,
    show,
    softmax,
    softmax_cross_entropy,
    vjp,
)
from tinygrad_mnist.core import Node
from tinygrad_mnist.leaf import Leaf


def leaf(values, dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True)


def nodes_below(t):
    """Every node of the graph behind `t`, leaves left out."""
    found, todo = set(), [t._node]
    while todo:
        node = todo.pop()
        if node is not None and type(node) is not Leaf and node not in found:
            found.add(node)
            todo += node.parents
    return found


@pytest.fixture
def no_collector():
    """The cyclic garbage collector off: what goes now, goes because nobody refers to it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# ---- depth and width ----------------------------------------------------------------------------------------------


def test_a_chain_of_100_000_operations_is_recorded_walked_and_freed():
    x = leaf(1.0)
    y = x
    for _ in range(50_000):
        y = y * 0.5 + 1.0
    node = weakref.ref(y._node)
    y.backward()
    assert y.item() == 2
    assert x.grad == 0.5**50_000
    del y
    assert node() is None


def test_a_chain_of_100_000_operations_is_freed_without_being_walked():
    x = leaf([1.0])
    y = x
    for _ in range(100_000):
        y = -y
    node = weakref.ref(y._node)
    del y
    assert node() is None


def test_a_deep_graph_is_differentiated_by_functions_too():
    def f(x):
        for _ in range(20_000):
            x = x + x * 1e-5
        return x

    slope = 1.00001**20_000
    assert np.isclose(grad(f)(np.array(2.0)), slope)
    assert np.isclose(grad(f)(Tensor(2.0, dtype=float)).item(), slope)
    assert hvp(lambda x: f(x) * x, np.array(1.0), np.array(1.0)).shape == ()


def test_a_diamond_of_40_levels_is_walked_once_a_node():
    x = leaf(1.0)
    y = x
    for _ in range(40):
        y = y + y
    assert len(nodes_below(y)) == 40
    y.backward()
    assert x.grad == 2.0**40
    y = x
    for _ in range(40):
        y = y * 0.5 + np.sin(y) * 0.5
    x.zero_grad()
    y.backward()
    assert 0 < x.grad < 1


def test_a_wide_graph():
    x = leaf(np.ones(3))
    y = sum(x * float(i) for i in range(5_000))
    y.sum().backward()
    assert (x.grad == 5_000 * 4_999 / 2).all()


def test_the_order_respects_long_and_short_ways_to_one_node():
    """A node waits for all its users, however far away: the short way must not be walked before the long one is."""
    x = leaf(2.0)
    h = x * 3
    long = h
    for _ in range(100):
        long = long + 0
    (long * h).backward()
    assert x.grad == 36


# ---- what is kept -------------------------------------------------------------------------------------------------


def saved_arrays(t):
    return [a for a in t._node.saved if isinstance(a, np.ndarray)]


def test_a_product_keeps_only_what_the_tracked_operands_rule_reads():
    x, W = np.ones((2, 3)), leaf(np.ones((3, 4)))
    y = x @ W
    assert len(saved_arrays(y)) == 1
    assert saved_arrays(y)[0] is x
    y = leaf(x) @ W.detach()
    assert len(saved_arrays(y)) == 1
    assert saved_arrays(y)[0] is W.data
    for f, kept in [
        (lambda a, b: a + b, []),
        (lambda a, b: a + b.detach(), []),
        (lambda a, b: a * b, [1, 2]),
        (lambda a, b: a * b.detach(), [2]),
        (lambda a, b: a / b, [0, 2]),
        (lambda a, b: a / b.detach(), [2]),
        (lambda a, b: np.tanh(a), [0]),
        (lambda a, b: np.sin(a), [1]),
        (lambda a, b: np.sum(a), []),
        (lambda a, b: np.reshape(a, -1), []),
        (lambda a, b: relu(a), [0]),
        (lambda a, b: a[0], []),
        (lambda a, b: np.concatenate([a, b]), []),
        (lambda a, b: np.concatenate([a, b.detach()]), []),
    ]:
        y = f(leaf(np.ones((2, 2))), leaf(np.ones((2, 2))))
        assert [i for i, a in enumerate(y._node.saved) if isinstance(a, np.ndarray)] == kept


def test_what_is_not_kept_is_freed_at_once(no_collector):
    x = leaf(np.ones(100))
    h = x + 1
    memory = weakref.ref(h.data)
    y = h + 1
    del h
    assert memory() is None
    assert y.requires_grad


def test_saved_arrays_are_dropped_during_the_walk(no_collector):
    """When the walk comes to the first layer, what the last one kept is gone: the peak is at its start."""
    alive = []

    def watch(xp, g, _y, _a):
        alive.append(last() is not None)
        return g

    @ops.primitive(watch)
    def _graph_probe(xp, a):
        return a + 0

    y = _graph_probe(_graph_probe(leaf(np.ones(3))) * 2)
    y = np.exp(y * 3)
    last = weakref.ref(y.data)
    y = y.sum()
    y.backward(retain_graph=True)
    assert alive == [True, True]
    alive.clear()
    y.backward()
    assert alive == [False, False]
    assert all(node.saved is None for node in nodes_below(y))


def test_the_loss_alone_keeps_no_arrays_after_backward(no_collector):
    x, W = np.ones((50, 30)), leaf(np.ones((30, 20)))
    h = np.tanh(x @ W)
    hidden = weakref.ref(h.data)
    loss = np.mean(h * h)
    del h
    assert hidden() is not None
    assert show.memory(loss) >= 50 * 20 * 8
    loss.backward()
    assert hidden() is None
    assert show.memory(loss) == 0


def test_untracked_work_keeps_nothing(no_collector):
    W = leaf(np.ones(10))
    with no_grad():
        h = W * 2
        memory = weakref.ref(h.data)
        y = h * h
        del h
    assert memory() is None
    assert not y.requires_grad
    x = Tensor(np.ones(10))
    h = x * 2
    memory = weakref.ref(h.data)
    y = h * h
    del h
    assert memory() is None


def test_gradients_are_arrays_without_a_graph(no_collector):
    W = leaf(np.ones(10))
    y = np.sum(np.tanh(W) * W)
    refs = [weakref.ref(node) for node in nodes_below(y)]
    y.backward()
    del y
    assert [r() for r in refs] == [None] * len(refs)
    assert type(W.grad) is np.ndarray


# ---- no cycles ----------------------------------------------------------------------------------------------------


def network_loss():
    rng = np.random.default_rng(0)
    model = nn.MLP((5, 4, 3), rng=0, dropout=0.1)
    return model, softmax_cross_entropy(model(rng.normal(size=(6, 5)).astype("float32")), rng.integers(0, 3, 6))


@pytest.mark.parametrize("walked", [False, True])
def test_graphs_are_freed_without_the_cyclic_collector(no_collector, walked):
    model, loss = network_loss()
    refs = [weakref.ref(node) for node in nodes_below(loss)]
    assert len(refs) > 6
    if walked:
        loss.backward()
    del loss
    assert [r() for r in refs] == [None] * len(refs)
    assert model.parameters()[0].requires_grad


def test_leaves_and_their_gradients_are_freed_without_the_cyclic_collector(no_collector):
    W = leaf(np.ones(3))
    (W * W).sum().backward()
    refs = [weakref.ref(a) for a in (W, W.data, W.grad)]
    del W
    assert [r() for r in refs] == [None] * 3


def test_functional_derivatives_leave_no_garbage(no_collector):
    created = []

    def f(x):
        y = np.sum(np.tanh(x) * x)
        created.append(weakref.ref(y._node))
        return y

    x = np.ones(3)
    grad(f)(x)
    grad(lambda x: np.sum(grad(f)(x)))(x)
    hvp(f, x, x)
    y, pull = vjp(f, x)
    pull(1.0)
    del y, pull
    assert [r() for r in created] == [None] * len(created)


def test_a_training_step_leaves_nothing_to_the_collector(no_collector):
    model, loss = network_loss()
    optimizer = optim.Adam(model.parameters())
    loss.backward()
    optimizer.step()
    del model, loss, optimizer
    assert gc.collect() == 0


def test_memory_of_changed_arrays_is_forgotten_with_them(no_collector):
    """The record of in-place changes does not grow with every array that was ever updated."""
    from tinygrad_mnist.guards import changes

    before = len(changes._ranges)
    for _ in range(100):
        W = leaf(np.ones(3))
        W.data = np.zeros(3)
    del W
    assert len(changes._ranges) == before


def growth(count):
    """How many bytes more are in use after `count` small training steps than before."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(4, 3)), np.array([0, 1, 1, 0])
    W, b = leaf(rng.normal(size=(3, 2))), leaf(np.zeros(2))
    optimizer = optim.SGD([W, b], lr=0.1, momentum=0.9)

    def steps(count):
        total = 0.0
        for _ in range(count):
            optimizer.zero_grad()
            loss = softmax_cross_entropy(np.tanh(x @ W) + b, labels)
            loss.backward()
            optimizer.step()
            with no_grad():
                W.data = W.data * 0.999
            total += float(loss)
        return total

    def in_use():  # without the one large block: Python's table of interned strings, which it replaces now and then
        return sum(trace.size for trace in tracemalloc.take_snapshot().traces if trace.size < 2**20)

    tracemalloc.start()
    try:
        steps(1_500)  # until NumPy's and Python's caches of small blocks are full
        start = in_use()
        steps(count)
        return in_use() - start
    finally:
        tracemalloc.stop()


def test_memory_is_flat_over_5_000_steps():
    assert growth(5_000) < 5_000 * 8  # no object, and no entry of a list, is smaller


@pytest.mark.slow
def test_memory_is_flat_over_100_000_steps():
    assert growth(100_000) < 100_000 * 2


# ---- threads, exceptions, contexts --------------------------------------------------------------------------------


def train(seed, steps=60):
    """Final weights and losses of a small run."""
    rng = np.random.default_rng(seed)
    model = nn.MLP((6, 8, 3), activation="tanh", rng=rng, dropout=0.1)
    optimizer = optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        x, labels = rng.normal(size=(16, 6)).astype("float32"), rng.integers(0, 3, 16)
        optimizer.zero_grad()
        loss = softmax_cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        with no_grad():
            losses.append(float(softmax_cross_entropy(model(x), labels)))
            model.layers[0].weight *= 0.99
    return model.flat.tobytes(), losses


def in_threads(*functions):
    """The results of the functions, run at once."""
    results = [None] * len(functions)
    errors = []
    barrier = threading.Barrier(len(functions))

    def work(i, f):
        try:
            barrier.wait()
            results[i] = f()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(functions)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # change threads as often as can be
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    if errors:
        raise errors[0]
    return results


def test_two_threads_train_at_once_as_they_would_one_after_the_other():
    sequential = [train(1), train(2), train(1)]
    assert sequential[0] == sequential[2]
    assert sequential[0] != sequential[1]
    for _ in range(3):
        assert in_threads(lambda: train(1), lambda: train(2)) == sequential[:2]


def test_threads_may_walk_graphs_over_the_same_leaves_of_arrays():
    x = np.random.default_rng(0).normal(size=(20, 20))

    def work():
        return [grad(lambda x: np.sum(np.tanh(x @ x)))(x).tobytes() for _ in range(20)]

    first, second, third = in_threads(work, work, work)
    assert first == second == third
    assert len(set(first)) == 1


def test_no_grad_in_one_thread_does_not_leak_into_another():
    inside, checked = threading.Event(), threading.Event()

    def without():
        with no_grad():
            inside.set()
            assert checked.wait(10)
            return (leaf(1.0) * 2).requires_grad

    def within():
        assert inside.wait(10)
        try:
            return (leaf(1.0) * 2).requires_grad
        finally:
            checked.set()

    assert in_threads(without, within) == [False, True]


def test_one_decorated_function_in_many_threads():
    @no_grad()
    def f(depth=3):
        assert not (W * 2).requires_grad
        return f(depth - 1) if depth else True

    W = leaf(1.0)

    def work():
        return all(f() and (W * 2).requires_grad for _ in range(50))

    assert in_threads(work, work, work) == [True] * 3


def test_threads_may_leave_one_decorated_function_in_any_order():
    """The first to enter leaves first: what each restores is its own."""
    W = leaf(1.0)
    inside = [threading.Event(), threading.Event()]
    left = threading.Event()

    @no_grad()
    def f(i):
        inside[i].set()
        assert (left if i else inside[1]).wait(10)
        return (W * 2).requires_grad

    def first():
        try:
            return f(0), (W * 2).requires_grad
        finally:
            left.set()

    def second():
        assert inside[0].wait(10)
        return f(1), (W * 2).requires_grad

    assert in_threads(first, second) == [(False, True)] * 2


def test_no_grad_in_one_task_does_not_leak_into_another():
    async def without(inside, checked):
        with no_grad():
            inside.set()
            await checked.wait()
            return (leaf(1.0) * 2).requires_grad

    async def within(inside, checked):
        await inside.wait()
        checked.set()
        return (leaf(1.0) * 2).requires_grad

    async def both():
        events = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(without(*events), within(*events))

    assert asyncio.run(both()) == [False, True]


def test_contexts_are_left_after_exceptions():
    W = leaf(1.0)

    @no_grad()
    def fails():
        assert not (W * 2).requires_grad
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fails()
        assert (W * 2).requires_grad
    with pytest.raises(ZeroDivisionError), no_grad():
        with enable_grad():
            assert (W * 2).requires_grad
        assert not (W * 2).requires_grad
        raise ZeroDivisionError
    assert (W * 2).requires_grad
    with pytest.raises(ValueError, match="add"), no_grad():
        W + np.ones(3) + np.ones(2)
    assert (W * 2).requires_grad


def test_no_grad_as_decorator_keeps_the_function():
    @no_grad()
    def evaluate(x, *, scale):
        """Doc."""
        return x * scale

    assert (evaluate.__name__, evaluate.__doc__) == ("evaluate", "Doc.")
    assert not evaluate(leaf(1.0), scale=2).requires_grad


# ---- who owns a gradient ------------------------------------------------------------------------------------------

UNARY = [
    lambda a: -a, lambda a: +a, lambda a: a * 1.0, lambda a: np.tanh(a), lambda a: a.T.T, lambda a: a[:],
    lambda a: a[::-1], lambda a: np.reshape(np.ravel(a), (2, 2)), lambda a: np.copy(a), lambda a: np.flip(a, 0),
    lambda a: a.astype(a.dtype), lambda a: np.swapaxes(a, 0, 1), lambda a: np.broadcast_to(np.sum(a, 0), (2, 2)),
    lambda a: np.sum(a) + a, lambda a: np.squeeze(a[None], 0), lambda a: relu(a), lambda a: np.where(a > 0, a, 0.5),
    lambda a: softmax(a),
]
BINARY = [
    lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, lambda a, b: a @ b, lambda a, b: np.maximum(a, b),
    lambda a, b: np.concatenate([a, b])[:2], lambda a, b: np.stack([a, b]).mean(0), lambda a, b: a + b[0],
    lambda a, b: np.where(np.eye(2) > 0, a, b),
]


def random_graph(rng, leaves):
    """A result of shape (2, 2) of up to ten operations on the leaves, some used often, some not at all."""
    pool = list(leaves)
    for _ in range(rng.integers(1, 11)):
        a, b = (pool[rng.integers(len(pool))] for _ in range(2))
        if rng.random() < 0.5:
            pool.append(UNARY[rng.integers(len(UNARY))](a))
        else:
            pool.append(BINARY[rng.integers(len(BINARY))](a, b))
    return pool[-1]


def test_gradients_alias_nothing(effort):
    """Over random graphs: write into one gradient, and no other array that anyone can see has changed."""
    rng = np.random.default_rng(3)
    for _ in range(300 * effort):
        leaves = [leaf(rng.normal(size=(2, 2))) for _ in range(3)]
        y = random_graph(rng, leaves)
        seed = rng.normal(size=(2, 2))
        twice = rng.random() < 0.3
        for _ in range(1 + twice):
            y.backward(seed, retain_graph=True)
        others = [seed] + [t.data for t in leaves]
        others += [a for node in nodes_below(y) for a in node.saved if isinstance(a, np.ndarray)]
        grads = [t.grad for t in leaves if t.grad is not None]
        for i, g in enumerate(grads):
            rest = others + grads[:i] + grads[i + 1 :]
            assert not any(np.shares_memory(g, a) for a in rest)
            before = [a.copy() for a in rest]
            g[...] = 1e6  # raises if it is a read-only view
            assert all(np.array_equal(a, b) for a, b in zip(rest, before, strict=True))


def test_a_second_backward_adds_exactly_what_the_first_gave():
    """Nothing that the walk hands out or keeps was written to on the way."""
    rng = np.random.default_rng(4)
    for _ in range(100):
        leaves = [leaf(rng.normal(size=(2, 2))) for _ in range(3)]
        y = random_graph(rng, leaves)
        seed = rng.normal(size=(2, 2))
        bits = seed.tobytes()
        y.backward(seed, retain_graph=True)
        first = [None if t.grad is None else t.grad.copy() for t in leaves]
        y.backward(seed)
        assert seed.tobytes() == bits
        for t, g in zip(leaves, first, strict=True):
            assert (t.grad is None) == (g is None)
            assert g is None or np.array_equal(t.grad, g + g)


def test_a_seed_reaches_a_leaf_as_a_copy():
    for f in (lambda w: w, lambda w: w + 0.0, lambda w: np.reshape(w, (2,)), lambda w: w[:]):
        w, seed = leaf([1.0, 2.0]), np.array([3.0, 4.0])
        y = f(w)
        y.backward(seed)
        assert not np.shares_memory(w.grad, seed)
        w.grad += 1
        assert seed.tolist() == [3, 4]


def test_a_saved_array_that_is_a_gradient_is_copied():
    """d(w x)/dw with a seed of one is x itself, if a rule is written so."""

    @ops.primitive(lambda xp, g, _y, _a, b: b, lambda xp, g, _y, a, _b: a)
    def _graph_product(xp, a, b):
        return a * b

    x = np.array([3.0, 4.0])
    w = leaf([1.0, 2.0])
    _graph_product(w, x).backward(np.ones(2))
    assert not np.shares_memory(w.grad, x)


def test_a_read_only_seed_will_do():
    w = leaf([1.0, 2.0])
    seed = np.broadcast_to(np.float64(2), (2,))
    y = w + w
    y.backward(seed, retain_graph=True)
    y.backward(seed)
    w.grad *= 2
    assert w.grad.tolist() == [16, 16]


# ---- changes in place ---------------------------------------------------------------------------------------------


def update(change, W, optimizer=None):
    if change == "t.data =":
        W.data = W.data - 1.0
    elif change == "-=":
        with no_grad():
            W -= 1.0
    else:
        optim.SGD([W], lr=1.0).step()


CHANGES = ["t.data =", "-=", "optimizer"]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("name", "f"),
    [
        ("multiply", lambda x, W: x * W),
        ("matmul", lambda x, W: x @ W),
        ("matmul", lambda x, W: x @ W.T),
        ("matmul", lambda x, W: W[0] @ x),
        ("sin", lambda x, W: np.sin(W) + x),
        ("multiply", lambda x, W: x * W.detach()),
        ("multiply", lambda x, W: x * W.detach().T),
        ("multiply", lambda x, W: x * W.data),
        ("multiply", lambda x, W: x * np.reshape(W, -1)[:2]),
        ("multiply", lambda x, W: x * np.asarray(W.detach())[1]),
        ("divide", lambda x, W: x / Tensor(W.data[::-1])),
    ],
)
def test_a_sanctioned_change_of_what_backward_needs_raises_and_names_the_op(change, name, f):
    x, W = leaf([[1.0, 2.0], [3.0, 4.0]]), leaf([[5.0, 6.0], [7.0, 8.0]])
    W.grad = np.ones((2, 2))
    y = np.sum(f(x, W))
    update(change, W)
    with pytest.raises(RuntimeError, match=f"^{name}: operand [01] .* was changed in place") as caught:
        y.backward()
    assert "call backward() before the update" in str(caught.value)
    assert "float64" in str(caught.value)
    assert x.grad is None


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "f",
    [
        lambda x, W: x + W,
        lambda x, W: (x + W).T[::-1],
        lambda x, W: np.tanh(W) * x,  # keeps its result, not W
        lambda x, W: x * np.copy(W),
        lambda x, W: x * (W + 0),
        lambda x, W: x.detach() * W,  # W's rule reads x alone
        lambda x, W: np.sum(W, axis=0) + np.concatenate([W, W])[1],
    ],
)
def test_a_change_of_what_backward_does_not_need_is_free(change, f):
    x, W = leaf([[1.0, 2.0], [3.0, 4.0]]), leaf([[5.0, 6.0], [7.0, 8.0]])
    W.grad = np.ones((2, 2))
    y = f(x, W)
    expected = leaf(W.data.copy())
    f(x, expected).sum().backward()
    update(change, W)
    W.zero_grad()
    y.sum().backward()
    assert np.array_equal(W.grad, expected.grad)


@pytest.mark.parametrize("change", CHANGES)
def test_neighbours_in_one_buffer_are_told_apart(change):
    flat = np.arange(1.0, 9.0)
    W, V = Tensor(flat[:4].reshape(2, 2), requires_grad=True), Tensor(flat[4:].reshape(2, 2), requires_grad=True)
    overlap = Tensor(flat[3:5])
    V.grad = np.ones((2, 2))
    y, z = np.sum(W * W), np.sum(leaf([1.0, 2.0]) * overlap)
    update(change, V)
    y.backward()
    assert W.grad.tolist() == [[2, 4], [6, 8]]
    with pytest.raises(RuntimeError, match="changed in place"):
        z.backward()


def test_layers_of_one_model_are_told_apart():
    model = nn.MLP((2, 2, 2), activation="tanh", rng=0)
    first, second = model.layers
    x = Tensor(np.ones((1, 2), np.float32), requires_grad=True)
    y = first(x).sum()
    second.weight.data = np.zeros((2, 2))
    y.backward()
    y = second(first(x)).sum()
    second.bias.data = np.zeros(2)
    y.backward()
    y = second(first(x)).sum()
    second.weight.data = np.ones((2, 2))
    with pytest.raises(RuntimeError, match="^matmul: operand 1"):
        y.backward()


def test_a_step_between_two_walks_of_one_graph_raises():
    model = nn.MLP((3, 4, 2), rng=0)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    loss = softmax_cross_entropy(model(np.ones((2, 3), np.float32)), [0, 1])
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="^matmul: operand 1"):
        loss.backward()


def test_load_state_dict_counts_as_a_change():
    model = nn.MLP((3, 4, 2), rng=0)
    loss = softmax_cross_entropy(model(np.ones((2, 3), np.float32)), [0, 1])
    model.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="^matmul: operand 1"):
        loss.backward()


def test_a_pullback_notices_too():
    x = Tensor(np.array([1.0, 2.0]))
    _, pull = vjp(lambda x: x * x, x)
    pull(np.ones(2))
    x.data = np.zeros(2)
    with pytest.raises(RuntimeError, match="^multiply: operand 0"):
        pull(np.ones(2))


def test_changes_before_recording_and_after_backward_are_free():
    W = leaf([1.0, 2.0])
    for change in CHANGES * 2:
        W.grad = np.ones(2)
        update(change, W)
        y = np.sum(W * W)
        y.backward()
        update(change, W)


def test_memory_that_came_from_a_dead_array_has_no_history():
    for _ in range(200):
        a = leaf(np.ones(1000))
        a.data = np.zeros(1000)
        del a
        b = leaf(np.ones(1000))  # often the memory, and the id, of the last
        y = np.sum(b * b)
        c = leaf(np.ones(1000))
        c.data = np.zeros(1000)
        y.backward()


def test_a_leafs_node_knows_no_tensor():
    W = leaf([1.0])
    y = W * 2
    assert type(y._node) is Node
    assert not any(isinstance(r, Tensor) for node in (y._node, W._node) for r in gc.get_referents(node))
