"""Properties over drawn shapes, indices, subscripts and expression graphs, against differences and the complex step."""

import numpy as np
import pytest
from checks import close, difference, numeric, run
from hypothesis import assume, given, settings
from hypothesis import example as explicit
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinygrad_mnist import Tensor, functional
from tinygrad_mnist.core import F
from tinygrad_mnist.testing import OPS, Op, draw

FEWER = {"numpy": 1, "strict": 4, "cupy-pretend": 10}  # of the examples that are drawn: a kernel takes its time
SEEDS = st.integers(0, 2**32 - 1)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
BINARY = {op.function: op for op in OPS if len(op.domains) == 2}
TERNARY = {"where": lambda xp, a, b, c: xp.where(a > 0, b, c), "clip": lambda xp, a, b, c: xp.clip(a, b - 1.1, c + 1.1)}


def holds(*strategies, examples=()):
    """Make `f(backend, *drawn)` a test: a property that holds on every backend."""

    def decorate(f):
        def test(backend):
            @settings(max_examples=max(settings().max_examples // FEWER[backend.name], 1))
            @given(st.tuples(*strategies))
            def held(drawn):
                f(backend, *drawn)

            for one in examples:
                held = explicit(one)(held)
            held()

        test.__name__, test.__doc__ = f.__name__, f.__doc__
        return test

    return decorate


def verify(backend, op, case):
    """Value, shape and dtype of `op` as NumPy's, and its gradients by differences."""
    value, g, gradients = run(backend, op, case)
    expected = np.asarray(op.expected(*case))
    assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
    close(value, expected, 1e-14, op.name, floor=1.0)
    for i, gradient in gradients.items():
        gradient = np.zeros(case[i].shape) if gradient is None else gradient  # None: nothing depends on it smoothly
        expected = numeric(lambda *a: np.sum(g * op.expected(*a)), case, i)
        close(gradient, expected, 1e-7, f"{op.name}: gradient of operand {i}")


def shapes_of(count):
    return hnp.mutually_broadcastable_shapes(num_shapes=count, max_dims=3, min_side=0, max_side=3).map(
        lambda drawn: drawn.input_shapes
    )


@holds(
    st.sampled_from(sorted(BINARY)), shapes_of(2), SEEDS,
    examples=[("maximum", ((), (0,)), 0), ("divide", ((0, 1), (1, 3)), 0), ("power", ((1,), (1, 1, 1)), 0)],
)
def test_binary_operations_over_broadcast_shapes(backend, name, shapes, seed):
    verify(backend, BINARY[name], draw(np.random.default_rng(seed), shapes, BINARY[name].domains))


@holds(st.sampled_from(sorted(TERNARY)), shapes_of(3), SEEDS)
def test_ternary_operations_over_broadcast_shapes(backend, name, shapes, seed):
    case = draw(np.random.default_rng(seed), shapes, [(-1.0, 1.0)])
    verify(backend, Op(name, TERNARY[name], lambda rng: []), case)


@st.composite
def reductions(draw_):
    shape = draw_(hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=3))
    axis = draw_(st.none() | st.integers(-len(shape), len(shape) - 1) | hnp.valid_tuple_axes(len(shape)))
    return shape, axis, draw_(st.booleans())


@holds(st.sampled_from(["sum", "mean", "prod", "max", "min", "var", "std", "logsumexp"]), reductions(), SEEDS)
def test_reductions(backend, name, reduction, seed):
    shape, axis, keepdims = reduction
    keywords = {"axis": axis, "keepdims": keepdims}
    case = draw(np.random.default_rng(seed), [shape])
    if name in ("var", "std"):
        reduced = np.mean(case[0], axis=axis, keepdims=True)
        assume(np.abs(case[0] - reduced).sum(axis=axis).min() > 0.1)  # std has a kink at 0
        keywords["ddof"] = 0.5
    reference = None
    if name == "logsumexp":

        def reference(a):
            return np.log(np.sum(np.exp(a), **keywords))

    verify(backend, Op(name, lambda xp, a: getattr(xp, name)(a, **keywords), lambda rng: [], reference=reference), case)


@st.composite
def indexings(draw_):
    shape = draw_(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
    basic = hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True)
    integers = hnp.integer_array_indices(shape[:1], result_shape=hnp.array_shapes(max_dims=2, max_side=3))
    masks = hnp.arrays(bool, st.sampled_from([shape, shape[:1]]))
    mixed = hnp.integer_array_indices(shape[-1:], result_shape=hnp.array_shapes(max_dims=1, max_side=3)).map(
        lambda index: (Ellipsis, *index)
    )
    return shape, draw_(basic | integers | masks | mixed)


@holds(indexings(), SEEDS)
def test_index_expressions(backend, indexing, seed):
    shape, index = indexing
    verify(backend, Op("getitem", lambda xp, a: a[index], lambda rng: []), draw(np.random.default_rng(seed), [shape]))


@st.composite
def contractions(draw_):
    """(subscripts, shapes): up to three terms over four letters, which may repeat; sizes of 1 may stand for any."""
    sizes = {c: draw_(st.integers(1, 3)) for c in "ijkl"}
    terms = draw_(st.lists(st.text("ijkl", max_size=3), min_size=1, max_size=3))
    letters = sorted(set("".join(terms)))
    output = draw_(st.lists(st.sampled_from(letters), unique=True) if letters else st.just([]))
    shapes = []
    for term in terms:
        shrunk = {c: draw_(st.booleans()) and draw_(st.booleans()) for c in term}
        shapes.append(tuple(1 if shrunk[c] else sizes[c] for c in term))
    arrow = draw_(st.booleans())
    return ",".join(terms) + ("->" + "".join(output) if arrow else ""), tuple(shapes)


@holds(
    contractions(), SEEDS,
    examples=[(("i,ij->j", ((1,), (3, 2))), 0), (("ii,i->", ((2, 2), (1,))), 0)],
)
def test_einsum(backend, contraction, seed):
    subscripts, shapes = contraction
    case = draw(np.random.default_rng(seed), shapes)
    verify(backend, Op(f"einsum {subscripts}", lambda xp, *a: xp.einsum(subscripts, *a), lambda rng: []), case)


@holds(st.data(), SEEDS)
def test_matmul_over_batches(backend, data, seed):
    shapes = hnp.mutually_broadcastable_shapes(signature=np.matmul.signature, max_dims=2, min_side=0, max_side=3)
    case = draw(np.random.default_rng(seed), data.draw(shapes).input_shapes)
    verify(backend, Op("matmul", lambda xp, a, b: xp.matmul(a, b), lambda rng: []), case)


@holds(SHAPES, st.data(), SEEDS)
def test_shapes_there_and_back(backend, shape, data, seed):
    """Shape operations move elements and lose none: the gradient of <g, f(a)> has the elements of g."""
    axes = data.draw(st.permutations(range(len(shape))))
    (a,) = draw(np.random.default_rng(seed), [shape])
    t = Tensor(backend.array(a), requires_grad=True)
    y = np.ravel(np.transpose(t, axes))
    g = np.random.default_rng(seed).normal(size=y.shape)
    y.backward(backend.array(g))
    np.testing.assert_array_equal(np.ravel(np.transpose(backend.host(t.grad), axes)), g)


# ---- expression graphs --------------------------------------------------------------------------------------------
# A program is a list of instructions (function of arrays, places of its operands); each may use any earlier value, so
# values fan out. The functions are analytic and bounded, so the complex step gives the exact gradient of the whole.

ELEMENTWISE = {
    "sin": np.sin,
    "tanh": np.tanh,
    "exp(tanh)": lambda a: np.exp(np.tanh(a)),
    "square": np.square,
    "log": lambda a: np.log(2.5 + np.sin(a)),
    "reciprocal": lambda a: 1 / (2 + np.cos(a)),
    "power": lambda a: (3 + np.sin(a)) ** 1.5,
    "negative": lambda a: -a,
    "scaled": lambda a: 0.5 * a - 1,
}
COMBINING = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": lambda a, b: a / (2 + np.sin(b)),
    "where": lambda a, b: np.where(np.cumsum(np.ones_like(a, int), -1) % 2 == 1 if a.shape else True, a, b),
}
RESHAPING = {
    "transpose": np.transpose,
    "ravel": np.ravel,
    "flip": np.flip,
    "sum": lambda a: np.sum(a, axis=-1) if a.ndim else a,
    "mean": lambda a: np.mean(a, axis=0, keepdims=True) if a.ndim else a,
    "first": lambda a: a[0] if a.ndim else a,
    "gather": lambda a: a[np.array([0, -1, 0])] if a.ndim else a,
    "newaxis": lambda a: a[..., None],
    "gram": lambda a: np.tanh(a @ a.T) if a.ndim == 2 else a,
    "twice": lambda a: np.concatenate([a, 2 * a], axis=0) if a.ndim else a,
    "cumsum": lambda a: np.cumsum(a, axis=0) if a.ndim else a,
    "outer": lambda a: np.einsum("i,j->ij", a, a) if a.ndim == 1 else a,
}
FUNCTIONS = ELEMENTWISE | COMBINING | RESHAPING


@st.composite
def programs(draw_):
    """(instructions, inputs). Shapes are known by running it: what does not broadcast or grows large is not drawn."""
    rng = np.random.default_rng(draw_(SEEDS))
    shapes = draw_(st.sampled_from([[()], [(3,)], [(2, 3)], [(2, 3), (3,)], [(2, 1), (1, 2)], [(2, 2), ()]]))
    inputs = list(draw(rng, shapes))
    values, program = list(inputs), []
    for _ in range(draw_(st.integers(1, 8))):
        name = draw_(st.sampled_from(sorted(FUNCTIONS)))
        places = [draw_(st.integers(0, len(values) - 1)) for _ in range(2 if name in COMBINING else 1)]
        operands = [values[k] for k in places]
        if name in COMBINING:
            try:
                np.broadcast_shapes(*(a.shape for a in operands))
            except ValueError:
                continue
        value = np.asarray(FUNCTIONS[name](*operands))
        if value.size > 24 or value.ndim > 4:
            continue
        values.append(value)
        program.append((name, places))
        if np.abs(value).max() > 3:  # keep the derivatives' size in bounds, so that rounding stays small
            values.append(np.sin(value))
            program.append(("sin", [len(values) - 2]))
    return program, inputs


def evaluate(program, inputs):
    """The sum of all values that nobody uses and of the last: a scalar on which every instruction has a bearing."""
    values = list(inputs)
    for name, places in program:
        values.append(FUNCTIONS[name](*(values[k] for k in places)))
    used = {k for _, places in program for k in places}
    total = 0.0
    for k, value in enumerate(values):
        if k not in used:
            total = total + np.sum(np.sin(value) * (1 + 0.5 * k))
    return total


@holds(programs())
def test_expression_graphs_against_the_complex_step(backend, drawn):
    program, inputs = drawn
    tensors = [Tensor(backend.array(a.copy()), requires_grad=True) for a in inputs]
    y = evaluate(program, tensors)
    assert float(y) == pytest.approx(float(evaluate(program, inputs)), rel=1e-12, abs=1e-12)
    y.backward()
    for i, t in enumerate(tensors):
        expected = np.zeros(t.shape)
        for place in np.ndindex(t.shape):
            moved = [a.astype(complex) for a in inputs]
            moved[i][place] += 1e-30j
            expected[place] = evaluate(program, moved).imag / 1e-30
        close(backend.host(t.grad), expected, 1e-9, f"input {i} of {program}", floor=1.0)


@holds(programs(), SEEDS)
def test_second_derivatives_of_expression_graphs(backend, drawn, seed):
    """H v by the walk over Tensors equals the difference of gradients along v, and u'Hv = v'Hu."""
    program, inputs = drawn
    rng = np.random.default_rng(seed)
    u, v = ([rng.normal(size=a.shape) for a in inputs] for _ in range(2))

    def f(xs):
        return evaluate(program, xs)

    def there(arrays):
        return [backend.array(np.asarray(a)) for a in arrays]

    def slope(h):
        gradient = functional.grad(f)(there(a + h * d for a, d in zip(inputs, v, strict=True)))
        return sum(np.sum(d * backend.host(g)) for d, g in zip(u, gradient, strict=True))

    hv, hu = ([backend.host(a) for a in functional.hvp(f, there(inputs), there(d))] for d in (v, u))
    forwards = sum(np.sum(a * b) for a, b in zip(u, hv, strict=True))
    backwards = sum(np.sum(a * b) for a, b in zip(v, hu, strict=True))
    scale = max(1.0, *(np.abs(a).max() for a in (*hv, *hu)))
    assert abs(forwards - backwards) <= 1e-9 * scale
    coarse = difference(slope)
    fine = (slope(1e-5) - slope(-1e-5)) / 2e-5  # where the program wiggles within the coarse step, the fine one holds
    assert min(abs(forwards - coarse), abs(forwards - fine)) <= 1e-5 * scale


@holds(programs())
def test_graphs_in_float32_stay_in_float32(backend, drawn):
    program, inputs = drawn
    tensors = [Tensor(backend.array(a.astype(np.float32)), requires_grad=True) for a in inputs]
    y = evaluate(program, tensors)
    y.backward()
    assert {y.dtype, *(t.grad.dtype for t in tensors)} == {np.dtype(np.float32)}


def test_zero_size_through_a_whole_program(backend):
    t = Tensor(backend.array(np.zeros((0, 3))), requires_grad=True)
    F.sum(np.tanh(t @ backend.array(np.ones((3, 2)))) + backend.array(np.ones(2))).backward()
    assert t.grad.shape == (0, 3)
