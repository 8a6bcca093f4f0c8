"""Random programs, and every operation of the table: compiled, planned and not, the same bits as eager."""

import contextlib
import warnings

import numpy as np
import pytest
from checks import as_dtype
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_mnist
from tinygrad_mnist import Tensor, functional, nn, no_grad
from tinygrad_mnist.core import F
from tinygrad_mnist.testing import OPS

UNARY = {
    "tanh": F.tanh,
    "relu": F.relu,
    "square": lambda a: a * a,
    "negative": lambda a: -a,
    "exp": lambda a: F.exp(F.tanh(a)),
    "root": lambda a: F.sqrt(F.absolute(a) + 0.5),
    "sign": lambda a: Tensor(F.sign(a).data),
    "softmax": F.softmax,
    "logsumexp": lambda a: F.logsumexp(a, axis=-1, keepdims=True),
    "cumsum": lambda a: F.cumsum(a, axis=0),
    "scaled": lambda a: 0.5 * a - 1,
    "power": lambda a: (F.absolute(a) + 1) ** 1.5,
    "std": lambda a: F.std(a, axis=0),
    "detach": lambda a: a.detach() * 1,
}
VIEWS = {
    "T": lambda a: a.T,
    "flip": lambda a: a[::-1],
    "rest": lambda a: a[1:],
    "first": lambda a: a[0],
    "corner": lambda a: a[0, -1],
    "steps": lambda a: a[..., ::2],
    "newaxis": lambda a: a[:, None],
    "flat": lambda a: a.reshape(-1),
    "column": lambda a: a.reshape(-1, 1),
    "stretched": lambda a: F.broadcast_to(a, (2, *a.shape)),
    "none": lambda a: a[:0],
}
MOVES = {
    "gather": lambda a: a[np.array([0, -1, 0])],
    "mask": lambda a: a[np.arange(len(a)) % 2 == 0],
    "twice": lambda a: F.concatenate([a, a * 2], axis=0),
    "stack": lambda a: F.stack([a, -a], axis=-1),
    "copy": F.copy,
    "half": lambda a: a.astype(np.float16),
    "single": lambda a: a.astype(np.float32),
    "int": lambda a: Tensor((a * 4).astype(np.int8).data) * 1.0,
    "pad": lambda a: F.pad(a, 1),
    "sort": lambda a: F.sort(a, axis=-1),
}
REDUCTIONS = {
    f"{name}{axis}{keepdims}": lambda a, name=name, axis=axis, keepdims=keepdims: getattr(F, name)(
        a, axis=axis, keepdims=keepdims
    )
    for name in ("sum", "mean", "max")
    for axis in (None, 0, -1)
    for keepdims in (False, True)
}
BINARY = {
    "add": F.add,
    "subtract": F.subtract,
    "multiply": F.multiply,
    "divide": lambda a, b: a / (1 + b * b),
    "maximum": F.maximum,
    "where": lambda a, b: F.where(a > b, a, b),
    "masked": lambda a, b: F.where(b > 0, a, 0),
    "matmul": F.matmul,
    "gram": lambda a, b: a.T @ b,
    "outer": lambda a, b: a @ b.T,
    "einsum": lambda a, b: F.einsum("ij,kj->ik", a, b),
}
WRITES = ("set", "add", "row", "raw", "result", "view", "zeros")
NAMES = [*UNARY, *VIEWS, *MOVES, *REDUCTIONS, *BINARY, *WRITES, "dropout"]
BROKEN = (ValueError, IndexError, TypeError)


def write(name, memory, a, values):
    """A change in place, of memory that lasts, of a result or of a part of one."""
    with no_grad():
        if name == "set":
            memory[...] = a
        elif name == "add":
            memory += a
        elif name == "row":
            memory[0] = memory[-1] * 0.5
        elif name == "raw":
            memory.data *= 0.5
            memory.data[..., 1:] += 1
        elif name == "result":
            y = a * 2
            y += 1
            y *= a
            values.append(y)
        elif name == "view":
            y = a * 2
            part = y.T[:1]
            part -= 1
            values += [y, part]
        elif name == "zeros":
            y = F.zeros_like(a)
            y += a.data
            y[0] = 1
            y = Tensor(y)
            values.append(y)


def run(program, w, memory, rng):
    """The function that a drawn program describes: (what it computed, the gradient that it found)."""

    def f(x, v, rows):
        w.zero_grad()
        values = [w, x, Tensor(v), memory, x[rows]]
        for name, i, j in program:
            a, b = values[i % len(values)], values[j % len(values)]
            with contextlib.suppress(*BROKEN):
                if name in WRITES:
                    write(name, memory, a, values)
                    continue
                function = (UNARY | VIEWS | MOVES | REDUCTIONS).get(name)
                if name == "dropout":
                    y = nn.dropout(a, 0.5, rng)
                else:
                    y = BINARY[name](a, b) if function is None else function(a)
                if y.size < 3000:
                    values.append(y)
        loss = sum(F.mean(y * (k + 1)) for k, y in enumerate(values) if y.size and y.dtype.kind == "f")
        loss.backward()
        with no_grad():
            u = w
            u -= 0.1 * w.grad
        return values[4:][-6:], loss, w.grad, memory.data[0]

    return f


def bits(found):
    if isinstance(found, (list, tuple)):
        return [bits(item) for item in found]
    if found is None:
        return None
    a = np.asarray(found._data if isinstance(found, Tensor) else found)
    return a.dtype, a.shape, a.tobytes()


INSTRUCTIONS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=12
)


@given(INSTRUCTIONS, st.sampled_from([1, 2, 5]), st.sampled_from([1, 3, 17]), st.integers(0, 99))
def test_random_programs(program, n, k, seed):
    rng = np.random.default_rng(seed)
    dtype = rng.choice(["float32", "float64"])
    calls = [
        (Tensor(rng.normal(size=(n, k)).astype(dtype)), rng.normal(size=k).astype(dtype), rng.integers(0, n, n))
        for _ in range(4)
    ]
    weights, held = rng.normal(size=(n, k)).astype(dtype), rng.normal(size=(n, k)).astype(dtype)
    traces = []
    for options in (None, {"plan": True}, {"plan": False}):
        w, memory = Tensor(weights.copy(), requires_grad=True), Tensor(held.copy())
        draws = np.random.default_rng(seed)
        f = run(program, w, memory, draws)
        if options is not None:
            f = tinygrad_mnist.compile(f, backend="numpy", **options)
        trace = []
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)
            for call in calls:
                try:
                    result = bits(f(*call))
                except RuntimeError as error:
                    if "was changed in place" not in str(error):
                        raise
                    break  # memory was changed that backward needs
                trace.append((result, bits([w, memory, w.grad]), draws.bit_generator.state))
        if options is not None and len(trace) == len(calls):
            assert f.backend == "numpy"
        traces.append(trace)
    assert traces[1] == traces[0]
    assert traces[2] == traces[0]


# ---- the table of operations


def all_cases(op, dtype):
    """A function that computes every case of a row, with its gradients; and the operands."""
    cases = [as_dtype(case, dtype) for case in op.cases()]

    def f(cases):
        found = []
        for case in cases:
            floats = [i for i, a in enumerate(case) if a.dtype.kind == "f"]

            def call(*xs, case=case, floats=floats):
                operands = list(case)
                for i, x in zip(floats, xs, strict=True):
                    operands[i] = x
                return op.call(F, *operands)

            y, pull = functional.vjp(call, *[case[i] for i in floats])
            found.append((y, pull(y * 2 + 0.5 if y.dtype.kind == "f" else y)))
        return found

    return f, cases


def check(op, dtype, plan=True):
    f, cases = all_cases(op, dtype)
    compiled = tinygrad_mnist.compile(f, backend="numpy", plan=plan)
    for _ in range(3):
        found = compiled(cases)
    assert compiled.backend == "numpy", compiled.reason
    assert bits(found) == bits(f(cases)), op.name


@pytest.mark.parametrize("part", range(6))
def test_every_operation(part):
    for op in OPS[part::6]:
        check(op, np.float32)


def test_numpys_functions_on_arrays():
    """Arrays that are no Tensors: what NumPy computes of them, not what ours would."""
    for op in OPS:
        if op.reference is not None:
            continue  # NumPy has no such function
        cases = [as_dtype(case, np.float32) for case in op.cases()]

        def f(cases, op=op):
            return [op.call(np, *case) for case in cases]

        try:
            eager = bits(f(cases))
        except (*BROKEN, AttributeError):
            continue  # a spelling that Tensors alone have
        compiled = tinygrad_mnist.compile(f, backend="numpy")
        for _ in range(3):
            found = compiled(cases)
        assert bits(found) == eager, op.name


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_every_operation_in_all_dtypes(dtype):
    for op in OPS:
        check(op, dtype, plan=False)
        check(op, dtype)


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_computing_into_an_operand(size, dtype):
    """NumPy's loops give the same bits where the result takes the place of an operand."""
    names = [
        "exp", "log", "sqrt", "tanh", "sin", "cos", "square", "reciprocal", "negative", "absolute", "expm1", "log1p",
        "exp2", "cbrt", "arctan", "rint", "add", "subtract", "multiply", "divide", "maximum", "minimum", "power",
        "hypot", "arctan2",
    ]  # fmt: skip
    a, b = np.random.default_rng(size).uniform(0.5, 2, (2, size)).astype(dtype)
    for name in names:
        ufunc = getattr(np, name)
        operands = (a, b)[: ufunc.nin]
        expected = ufunc(*operands)
        for k in range(ufunc.nin):
            mine = [x.copy() for x in operands]
            ufunc(*mine, out=mine[k])
            assert mine[k].tobytes() == expected.tobytes(), name
