"""Compiled functions on devices: the same results as uncompiled, in fewer kernels, without waiting or uploading.

What a program is, and how it is replayed on the host, is in test_compile.
"""

import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pretend_gpu
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pretend_gpu import nvrtc

import tinygrad_mnist
from tinygrad_mnist import Tensor, arrays, mse, nn, optim, program, softmax_cross_entropy, where
from tinygrad_mnist.capture import CaptureError, record
from tinygrad_mnist.core import F
from tinygrad_mnist.nn import ACTIVATIONS
from tinygrad_mnist.program import Group, Instruction, Value, eliminate, fuse, in_kernel, in_place, kernel_text
from tinygrad_mnist.selftest import OPTIMIZERS
from tinygrad_mnist.testing import strict

RNG = np.random.default_rng
IMAGES, LABELS = RNG(0).random((16, 6), "float32"), RNG(1).integers(0, 4, 16, "uint8")


def compile(f, **options):
    return tinygrad_mnist.compile(f, backend="numpy", **options)


def close(actual, expected, rtol=1e-5):
    np.testing.assert_allclose(arrays.to_host(actual), arrays.to_host(expected), rtol=rtol, atol=rtol)


def training(device, optimizer=optim.Adam, sizes=(6, 8, 5, 4), clip=None, **options):
    """(a model, a step of its training)."""
    model = nn.MLP(sizes, rng=0, **options).to(device)
    model.train()
    optimizer = optimizer(model.parameters())

    def step(x, y):
        loss = softmax_cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            optim.clip_grad_norm(model.parameters(), clip)
        optimizer.step()
        return loss

    return model, step


def same_training(device, data=None, steps=5, **options):
    """Train twice, uncompiled and compiled; the compiled step."""
    x, y = data or (arrays.move(IMAGES, device), arrays.move(LABELS, device))
    (eager, step), (model, other) = training(device, **options), training(device, **options)
    compiled = compile(other)
    for _ in range(steps):
        close(compiled(x, y).data, step(x, y).data)
    close(model.flat, eager.flat)
    for p, q in zip(model.parameters(), eager.parameters(), strict=True):
        close(p.grad, q.grad)
    assert compiled.backend == "cupy"
    return compiled


# ---- the same results ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains_as_it_does_uncompiled(device, name, dropout):
    same_training(device, optimizer=OPTIMIZERS[name], dropout=dropout)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_trains_as_it_does_uncompiled(device, activation):
    same_training(device, activation=activation)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_dtypes_train_as_they_do_uncompiled(device, dtype):
    data = arrays.move(IMAGES.astype(dtype), device), arrays.move(LABELS, device)
    (eager, step), (model, other) = training(device, dtype=dtype), training(device, dtype=dtype)
    other = compile(other)
    for _ in range(5):
        close(other(*data).data, step(*data).data, 1e-3 if dtype == "float16" else 1e-12)
    close(model.flat, eager.flat, 2e-3 if dtype == "float16" else 1e-12)


@pytest.mark.parametrize("clip", [1e-2, 1e3])
def test_clipping_stays_on_the_device(device, clip):
    same_training(device, clip=clip, optimizer=OPTIMIZERS["SGD"])


def test_a_schedule_is_asked_at_every_step(device):
    same_training(device, optimizer=lambda params: optim.AdamW(params, optim.one_cycle(0.1, 7), weight_decay=0.1))


def test_uncompiled_steps_in_between_go_on_with_the_same_state(device):
    x, y = arrays.move(IMAGES, device), arrays.move(LABELS, device)
    (eager, step), (model, other) = training(device), training(device)
    compiled = compile(other)
    for k in range(8):
        close((other if k % 3 == 2 else compiled)(x, y).data, step(x, y).data)
    close(model.flat, eager.flat)


def test_a_gradient_stays_what_it_was_when_it_was_read(device):
    x, y = arrays.move(IMAGES, device), arrays.move(LABELS, device)
    model, step = training(device)
    step = compile(step)
    for _ in range(3):
        step(x, y)
    grad = model.parameters()[0].grad
    before = arrays.to_host(grad)
    step(x, y)
    assert arrays.device_of(grad) == device
    close(grad, before, 0)
    assert (arrays.to_host(model.parameters()[0].grad) != before).any()


def test_the_same_step_runs_on_the_host_and_on_a_device(device):
    here, there = training("cpu"), training(device)
    for _ in range(5):
        a = here[1](IMAGES, LABELS)
        b = there[1](arrays.move(IMAGES, device), arrays.move(LABELS, device))
    close(a.data, b.data)
    close(here[0].flat, there[0].flat)


# ---- what comes from the host -------------------------------------------------------------------------------------


def test_labels_of_the_host_are_checked_and_uploaded_at_every_call(device):
    x = arrays.move(IMAGES, device)
    compiled = same_training(device, (x, LABELS))
    wrong = LABELS.copy()
    wrong[3] = 4
    with pytest.raises(IndexError, match="label 4 in row 3 is out of range"):
        compiled(x, wrong)
    compiled(x, arrays.move(wrong, device))  # there nobody looks


def test_a_batch_of_the_host_is_uploaded_where_the_function_says_so(device):
    model = nn.MLP((6, 4), rng=0).to(device)
    functions = [
        lambda x: model(Tensor(x, device=device)),
        lambda x: model(Tensor(x).to(device) / 2),
        lambda x: model((Tensor(x) * 2).to(device)),
    ]
    for f in functions:
        g = compile(f)
        for k in range(4):
            close(g(IMAGES + k).data, f(IMAGES + k).data)
        assert "import numpy as np" in g.source()


def test_mixing_devices_is_the_same_error(device):
    f = compile(lambda x, y: Tensor(x) + y)
    with pytest.raises(ValueError, match=f"on different devices: float32 .* on {device} and float32 .* on cpu"):
        f(arrays.move(IMAGES, device), IMAGES)


def test_reading_a_value_is_no_program(device):
    for f in (lambda x: float(Tensor(x).sum()), lambda x: Tensor(x).to("cpu"), lambda x: Tensor(x).numpy()):
        with pytest.raises(CaptureError):
            compile(f)(arrays.move(IMAGES, device))


def test_an_index_of_the_host_is_checked_at_every_call(device):
    x = arrays.move(IMAGES, device)
    f = compile(lambda x, rows, columns: Tensor(x)[rows, columns])
    for _ in range(4):
        close(f(x, np.array([0, -1, 3]), np.array([1, 1, 5])).data, IMAGES[[0, -1, 3], [1, 1, 5]], 0)
    with pytest.raises(IndexError, match="index 6 is out of bounds for axis 1 with size 6"):
        f(x, np.array([0, -1, 3]), np.array([1, 1, 6]))
    with pytest.raises(IndexError, match="index -17 is out of bounds for axis 0 with size 16"):
        f(x, np.array([0, -17, 3]), np.array([1, 1, 5]))


def test_a_condition_may_be_a_number(device):
    x = arrays.move(IMAGES, device)
    f = compile(lambda x: where(True, Tensor(x), 2 * x) + where(False, Tensor(x), 2 * x))
    for _ in range(4):
        close(f(x).data, 3 * IMAGES)


# ---- launches, waits and transfers --------------------------------------------------------------------------------

LARGE = (784, 128, 64, 10)
BUDGET = 30  # kernels of one compiled training step of 784-128-64-10 with Adam


@pytest.mark.parametrize("backend", ["cupy-pretend"], indirect=True)
def test_a_step_launches_few_kernels(backend):
    x, y = (arrays.move(a, "gpu") for a in (RNG(0).random((128, 784), "float32"), RNG(1).integers(0, 10, 128, "uint8")))
    _, step = training("gpu", sizes=LARGE)
    step = compile(step)
    for _ in range(3):
        step(x, y)
    with pretend_gpu.record() as events:
        step(x, y)
    launches = [event for event in events if event.kind == "launch"]
    assert len(launches) <= BUDGET, launches
    assert {event.kind for event in events} <= {"launch", "malloc"}, events
    (update,) = (event for event in launches if "sqrt" in event.what)
    count = sum(p.size for p in nn.MLP(LARGE, rng=0).parameters())
    assert count <= update.size < count + 1024, "one kernel updates all parameters"


@pytest.fixture(params=["cpu", "strict"])
def home(request):
    if request.param == "strict":
        arrays.register("strict", strict.xp)
    return request.param


@pytest.fixture
def recorder():
    strict.recorder.clear()
    yield strict.recorder
    strict.recorder.clear()


TRANSFERS = {
    "Adam": ({}, []),
    "AdamW and clip": ({"optimizer": OPTIMIZERS["AdamW"], "clip": 0.1}, []),
    "SGD": ({"optimizer": OPTIMIZERS["SGD, Nesterov"]}, []),
    "dropout": ({"dropout": 0.5}, ["h2d", "h2d"]),  # a mask for each hidden layer
}


@pytest.mark.parametrize("backend", ["strict"], indirect=True)
@pytest.mark.parametrize("labels", ["device", "host"])
@pytest.mark.parametrize("name", TRANSFERS)
def test_a_step_neither_waits_nor_uploads(backend, recorder, name, labels):
    options, expected = TRANSFERS[name]
    x, y = arrays.move(IMAGES, "strict"), arrays.move(LABELS, "strict") if labels == "device" else LABELS
    _, step = training("strict", **options)
    step = compile(step)
    for _ in range(3):
        step(x, y)
    recorder.clear()
    with strict.no_sync():
        step(x, y)
    assert [kind for kind, *_ in recorder.events] == expected + ["h2d"] * (labels == "host")


# ---- the text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cupy-pretend"], indirect=True)
def test_the_text_stands_alone(backend):
    x, y = arrays.move(IMAGES, "gpu"), arrays.move(LABELS, "gpu")
    step = same_training("gpu", (x, y))
    text = step.source()
    assert text.startswith("import cupy as cp\n")
    assert "import numpy" not in text
    space = {}
    exec(text, space)
    assert callable(space["make"])


def test_equal_chains_are_one_kernel(device):
    f = compile(lambda x: (F.relu(Tensor(x) + 1).sum(), F.relu(Tensor(x.T) + 1).sum()))
    x = arrays.move(np.ones((3, 4), "float32"), device)
    for _ in range(3):
        f(x)
    assert f.source().count("cp.ElementwiseKernel(") == 1


# ---- kernels ------------------------------------------------------------------------------------------------------

SPECIAL = {
    "f": [0.0, -0.0, 1, -1, 0.5, -2.5, 3.5, np.inf, -np.inf, np.nan, 1e-3, 60000],
    "i": [0, 1, -1, 2, 3, -7, 100, 127, -128],
    "u": [0, 1, 2, 3, 7, 100, 255, 254],
    "b": [False, True],
}
DTYPES = ["float16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool"]
OTHER = {"where", "relu", "astype", "copy", "assign"}
NAMES = [*program.C, *program.C_FLOAT]


def array_of(dtype):
    return np.array(SPECIAL[np.dtype(dtype).kind], dtype)


def value(like, device, kind="input"):
    found = Value(kind, like)
    found.device = device
    return found


def instruction(name, operands, device, results):
    """A call of a function, and what NumPy makes of it; None where no kernel holds it."""
    arrays_ = [results.get(a, a) for a in operands]
    with np.errstate(all="ignore"):
        try:
            if name == "relu":
                y = np.maximum(arrays_[0], 0)
            elif name in ("copy", "assign"):
                y = arrays_[0].copy()
            else:
                y = getattr(np, name)(*arrays_)
        except (TypeError, ValueError, OverflowError):  # - of bool, integers to the power of -1
            return None
    out = value(y, device, "result")
    if y.dtype.char not in program.C_TYPES:
        return None
    i = Instruction(name, tuple(operands), {}, (out,))
    results[out] = y
    return i if in_kernel(i) else None


def table(dtype, device):
    """Every function of the table on all pairs of special numbers: (instructions, arrays)."""
    special = array_of(dtype)
    a, b = value(special[:, None], device), value(special, device)
    c = value(special > 0, device)
    results = {a: special[:, None], b: special, c: special > 0}
    body = []
    for name in NAMES:
        if name == "astype":
            continue
        count = getattr(np, name).nin if name not in OTHER else 3 if name == "where" else 1
        found = instruction(name, {1: (a,), 2: (a, b), 3: (c, a, b)}[count], device, results)
        body += [] if found is None else [found]
    for target in DTYPES:
        if target != dtype and (np.dtype(dtype).kind != "f" or target.startswith(("float", "bool"))):
            out = value(np.empty(special.shape, target), device, "result")
            with np.errstate(all="ignore"):
                results[out] = special.astype(target)
            body.append(Instruction("astype", (b,), {"dtype": np.dtype(target)}, (out,)))
    for number in 2, 0.5, -1.5, 300, np.inf, np.nan, True:
        for name in "multiply", "subtract", "greater":
            found = instruction(name, (a, number), device, results)
            body += [] if found is None else [found]
    return body, results


def groups(body):
    """Kernels that store all the results of some instructions of one shape."""
    shapes = {}
    for i in body:
        shapes.setdefault(i.out.shape, []).append(i)
    for shape, alike in shapes.items():
        for k in range(0, len(alike), 40):
            part = alike[k : k + 40]
            yield Group(shape, part, list(dict.fromkeys(v for i in part for v in i.operands())), [i.out for i in part])


def library_of(device):
    return arrays.library(device)


def run_group(group, results, device):
    """What a kernel makes of it."""
    text, reads = kernel_text(group)
    kernel = eval(text, {"cp": library_of(device)})
    outs = [arrays.move(np.zeros(v.shape, v.dtype), device) for v in group.makes]
    kernel(*(arrays.move(np.ascontiguousarray(results[v]), device) for v in reads), *outs)
    return dict(zip(group.makes, map(arrays.to_host, outs), strict=True))


ULPS = {"float16": 2e-3, "float32": 2e-6, "float64": 1e-14}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_function_in_a_kernel_is_that_of_numpy(device, dtype):
    body, results = table(dtype, device)
    names = set()
    for group in groups(body):
        found = run_group(group, results, device)
        for i in group.body:
            expected, actual = results[i.out], found[i.out]
            tolerance = ULPS.get(expected.dtype.name, 0)
            message = f"{i.op} of {dtype}"
            np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=0, err_msg=message)
            names.add(i.op)
    if dtype.startswith("float"):
        assert names == {*NAMES}
    else:
        assert {"maximum", "where", "greater"} <= names


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_no_comparison_loses_nan(device, dtype):
    x = value(np.array([np.nan, 1, 2], dtype), device)
    results = {x: np.array([np.nan, 1, 2], dtype)}
    body = [instruction(name, (x, 1.5), device, results) for name in ("maximum", "minimum")]
    body += [instruction(name, (1.5, x), device, results) for name in ("maximum", "minimum")]
    body.append(instruction("relu", (x,), device, results))
    found = run_group(next(groups(body)), results, device)
    assert all(np.isnan(a[0]) and not np.isnan(a[1:]).any() for a in found.values())


def compiles(group, architecture):
    """NVRTC makes code of a kernel, called as the group would call it."""
    text, reads = kernel_text(group)
    kernel = eval(text, {"cp": arrays.cupy()})
    operands = [
        np.broadcast_to(np.empty(v.shape, v.dtype), group.shape) if v.dtype else np.float32(1)
        for v in (*reads, *group.makes)
    ]
    assert nvrtc.compile_for(nvrtc.elementwise_source(kernel, *operands), architecture)[:4] == b"\x7fELF"


@pytest.mark.parametrize("backend", ["cupy-pretend"], indirect=True)
@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
def test_kernels_compile_for_every_gpu(backend, architecture):
    other = dict(zip(nvrtc.ARCHITECTURES, ("float16", "float64", "uint8", "float16"), strict=True))
    for dtype in "float32", other[architecture]:
        for group in groups(table(dtype, "gpu")[0]):
            compiles(group, architecture)


@pytest.mark.parametrize("backend", ["cupy-pretend"], indirect=True)
@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
def test_kernels_of_a_step_compile_for_every_gpu(backend, architecture):
    seen = set()
    for name in "Adam, weight decay", "SGD, Nesterov":
        for activation in "relu", "gelu", "softplus":
            _, step = training("gpu", OPTIMIZERS[name], activation=activation, dropout=0.5)
            captured, _ = record(step, (arrays.move(IMAGES, "gpu"), arrays.move(LABELS, "gpu")), {})
            for group in fuse(eliminate(captured.program), in_kernel):
                if isinstance(group, Group) and (text := kernel_text(group)[0]) not in seen:
                    seen.add(text)
                    compiles(group, architecture)
    assert len(seen) > 12


# Functions that are rounded in one way only, so that a chain of them is the same to the bit.
EXACT = {
    1: ["negative", "sign", "square", "relu", "isnan", "isfinite", "logical_not", "absolute", "sqrt", "floor", "copy"],
    2: ["add", "subtract", "multiply", "divide", "maximum", "minimum", "greater", "less_equal", "equal", "not_equal",
        "logical_and", "logical_or"],
}  # fmt: skip


@st.composite
def chains(draw):
    """(dtypes of the arguments, steps): a step is a name and numbers of earlier values, or a Python number."""
    dtypes = draw(st.lists(st.sampled_from(["float32", "float32", "float16", "float64", "bool", "int32", "uint8"]),
                           min_size=2, max_size=3))
    steps, count = [], len(dtypes)
    for _ in range(draw(st.integers(2, 8))):
        name = draw(st.sampled_from(EXACT[1] + EXACT[2] + ["where", "float16", "float32", "float64"]))
        arity = 3 if name == "where" else 2 if name in EXACT[2] else 1
        operands = [draw(st.integers(0, count - 1)) for _ in range(arity)]
        if arity == 2 and draw(st.booleans()):
            operands[1] = draw(st.sampled_from([0.5, 2, 0, -1.5, float("inf")]))
        else:
            operands = [(k,) for k in operands]
        steps.append((name, [k if isinstance(k, tuple) else ((k,) if n == 0 and arity == 2 else k)
                             for n, k in enumerate(operands)]))
        count += 1
    return dtypes, steps


def run_chain(xp, steps, values):
    values = [*values]
    for name, refs in steps:
        operands = [values[ref[0]] if isinstance(ref, tuple) else ref for ref in refs]
        try:
            if name == "relu":
                y = xp.relu(operands[0]) if hasattr(xp, "relu") else np.maximum(operands[0], 0)
            elif name.startswith("float"):
                y = operands[0].astype(name)
            elif name == "where":
                y = xp.where(operands[0] != 0, *operands[1:])
            else:
                y = getattr(xp, name)(*operands)
        except (TypeError, OverflowError):  # - of bool, -1.5 beside uint8
            y = values[-1]
        values.append(y)
    return values[-3:]


def check_chain(device, dtypes, steps):
    shapes = [(4, 6), (6,), (4, 1)]
    host = []
    for k, (dtype, shape) in enumerate(zip(dtypes, shapes, strict=False)):
        special = array_of(dtype)
        host.append(np.resize(special[np.abs(special.astype(float)) != 60000][k:], shape))
    inputs = [arrays.move(a, device) for a in host]

    def f(*values):
        return run_chain(F, steps, [Tensor(a) for a in values])

    with np.errstate(all="ignore"):
        expected = f(*inputs)
        compiled = compile(f)
        for _ in range(3):
            found = compiled(*inputs)
    for a, b in zip(found, expected, strict=True):
        a, b = (t.data if isinstance(t, Tensor) else t for t in (a, b))
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(arrays.to_host(a), arrays.to_host(b))


@pytest.mark.parametrize("backend", ["strict"], indirect=True)
@given(chain=chains())
def test_a_chain_is_the_same_to_the_bit_compiled(backend, chain):
    check_chain("strict", *chain)


@pytest.mark.parametrize("backend", ["cupy-pretend"], indirect=True)
@settings(max_examples=15)  # each is a few kernels for g++
@given(chain=chains())
def test_a_chain_is_the_same_to_the_bit_on_a_gpu(backend, chain):
    check_chain("gpu", *chain)


def test_memory_that_is_written_is_read_before(device):
    w = Tensor(np.arange(4, dtype="float32"), device=device, requires_grad=True)

    @compile
    def f(x):
        nonlocal w
        with tinygrad_mnist.no_grad():
            old = w * 2
            w += x
            w *= old
        return w + old

    expected = np.arange(4, dtype="float32")
    for _ in range(4):
        found = f(arrays.move(np.ones(4, "float32"), device))
        old = expected * 2
        expected = (expected + 1) * old
        close(w.data, expected)
        close(found.data, expected + old)


def test_a_view_is_not_changed_while_another_one_is_read(device):
    w = Tensor(np.arange(6, dtype="float32"), device=device, requires_grad=True)

    @compile
    def f(x):
        with tinygrad_mnist.no_grad():
            part = w.data[1:]
            part += w.data[:-1]
        return Tensor(x) + 1  # of the same shape: one kernel could compute both

    expected = np.arange(6, dtype="float32")
    for _ in range(4):
        f(arrays.move(np.ones(5, "float32"), device))
        expected[1:] = expected[1:] + expected[:-1]
        close(w.data, expected)


def test_a_wide_float_becomes_a_narrow_one_inside_a_kernel(device):
    x = arrays.move(IMAGES.astype("float64"), device)
    f = compile(lambda x: F.square(Tensor(x).astype("float16")))
    for _ in range(3):
        found = f(x).data
    assert "float16 t0" in f.source()
    close(found, np.square(IMAGES.astype("float16")), 0)


@pytest.mark.parametrize("home", ["strict"], indirect=True)
def test_what_c_would_compute_otherwise_is_left_to_cupy(home):
    results = {}
    signed, unsigned = value(np.array([-1, 5]), "strict"), value(np.array([1, 5], "uint64"), "strict")
    small = value(np.array([1, 5], "uint8"), "strict")
    results |= {signed: np.array([-1, 5]), unsigned: np.array([1, 5], "uint64"), small: np.array([1, 5], "uint8")}
    assert instruction("less", (signed, signed), "strict", results) is not None
    for name, operands in [
        ("less", (signed, unsigned)), ("less", (small, 300)), ("floor", (signed,)), ("power", (small, small)),
    ]:  # fmt: skip
        assert instruction(name, operands, "strict", results) is None


def test_a_kernel_takes_as_many_arrays_as_fit(device):
    many = [arrays.move(np.full(5, k, "float32"), device) for k in range(100)]
    f = compile(lambda *many: [Tensor(a) * b for a, b in pairwise(many)])
    for _ in range(3):
        found = f(*many)
    for k, t in enumerate(found):
        close(t.data, np.full(5, k * (k + 1)))
    sizes = [len(g.reads) + len(g.makes) for g in fuse(f.program, in_kernel, largest=program.LARGEST)]
    assert program.LARGEST // 2 < max(sizes) <= program.LARGEST
    assert f.source().count("kernel1(") + f.source().count("kernel2(") == len(sizes)


def test_elements_of_another_place_are_read_in_their_order(device):
    w = Tensor(np.arange(6, dtype="float32"), device=device, requires_grad=True)

    @compile
    def f(x):
        with tinygrad_mnist.no_grad():
            w.data[1:] += w.data[:-1] * x
        return w * 1

    expected = np.arange(6, dtype="float32")
    for _ in range(4):
        found = f(arrays.move(np.ones(5, "float32"), device))
        expected[1:] = expected[1:] + expected[:-1]
        close(found.data, expected)


# ---- concatenations made in place ---------------------------------------------------------------------------------


def placed(f, *values):
    """How many results of a function are made inside a concatenation; it computes what it does uncompiled."""
    compiled = compile(f)
    for _ in range(4):
        found, expected = compiled(*values), f(*values)
        for a, b in zip(found, expected, strict=True):
            close(a.data, b.data, 0)
    return len(in_place(compiled.program, compiled.program.instructions))


def test_gradients_are_made_where_the_optimizer_reads_them(home):
    x, y = arrays.move(IMAGES, home), arrays.move(LABELS, home)
    model, step = training(home)
    step = compile(step)
    for _ in range(3):
        step(x, y)
    assert len(in_place(step.program, step.program.instructions)) == len(model.parameters())
    assert "concatenate" not in step.source()


def test_an_operand_of_a_concatenation_is_made_inside(home):
    a, b = (arrays.move(v, home) for v in (IMAGES, IMAGES[:3]))
    assert placed(lambda a, b: [F.concatenate([Tensor(a) * 2, Tensor(b) + 1])], a, b) == 2
    assert placed(lambda a, b: [F.concatenate([Tensor(a).reshape(-1), (Tensor(b) + 1).reshape(-1)])], a, b) == 1
    twice = Tensor(a) * 2
    assert placed(lambda a: [F.concatenate([twice_of(a), twice_of(a)])], a) == 1  # one value, which can be in one place
    assert twice.shape == a.shape


def twice_of(a):
    return Tensor(a) * 2


def test_what_does_not_lie_as_it_should_is_copied(home):
    a = arrays.move(IMAGES, home)
    assert placed(lambda a: [F.concatenate([(Tensor(a) * 2)[:3], Tensor(a) + 1])], a) == 1
    assert placed(lambda a: [F.concatenate([(Tensor(a) * 2).T, (Tensor(a) + 1).T])], a) == 0
    assert placed(lambda a: [F.concatenate([Tensor(a) * 2, Tensor(a) + 1], axis=1)], a) == 0


def test_a_part_lives_as_long_as_it_is_used(home):
    def late(a):
        one = Tensor(a) * 2
        total = F.concatenate([one, Tensor(a) + 1]).sum()
        other = F.concatenate([Tensor(a), Tensor(a)]) * total  # of the size of the whole, which is dead now
        return F.concatenate([other, other]).sum(), one + other[:16]

    def early(a):
        one = Tensor(a) * 2
        whole = F.concatenate([one, Tensor(a) + 1])
        return F.exp(one), whole  # not into the memory of `one`, though nobody needs that any more

    assert placed(late, arrays.move(IMAGES, home)) >= 2
    assert placed(early, arrays.move(IMAGES, home)) == 2


def test_a_gradient_has_memory_to_itself(home):
    x, y = arrays.move(IMAGES, home), arrays.move(LABELS, home)
    _, step = training(home)
    captured, _ = record(step, (x, y), {})
    whole = eliminate(captured.program)
    arena, _, inside = program.assign_buffers(whole, whole.instructions, True)
    grads = {v.root for _, v in whole.grads}
    homes = {arena[v] for v in grads}
    assert {v for v in arena if arena[v] in homes} == grads | {owner for owner, _ in inside.values()}


def test_the_memory_of_a_concatenation_serves_again(home):
    def f(a):
        for _ in range(4):
            one = Tensor(a) * 2
            a = (F.concatenate([one, Tensor(a) + 1])[16:] + one).data
        return [Tensor(a)]

    a = arrays.move(IMAGES, home)
    assert placed(f, a) == 8
    captured, _ = record(f, (a,), {})
    _, arenas, _ = program.assign_buffers(captured.program, captured.program.instructions, True)
    assert sum(arena.size for arena in arenas) <= 6 * IMAGES.nbytes


def test_what_is_joined_twice_is_inside_once(home):
    def f(a):
        one, two = Tensor(a) * 2, Tensor(a) + 1
        whole = F.concatenate([one, two])
        return whole, F.concatenate([two, whole, one]), one

    assert placed(f, arrays.move(IMAGES, home)) == 2


def test_a_part_that_changes_later_is_copied(home):
    def f(a):
        one = Tensor(a) * 2
        view = one[0]
        whole = F.concatenate([one, Tensor(a) + 1])
        with tinygrad_mnist.no_grad():
            one += 1
        return whole, one, view

    assert placed(f, arrays.move(IMAGES, home)) <= 1


def test_a_part_that_is_read_after_the_whole_has_changed_is_copied(home):
    def f(a):
        one = Tensor(a) * 2
        whole = F.concatenate([one, Tensor(a) + 1])
        view = whole[1:]
        with tinygrad_mnist.no_grad():
            whole += 1
        return whole, one, view

    assert placed(f, arrays.move(IMAGES, home)) <= 1


# ---- several GPUs -------------------------------------------------------------------------------------------------

TWO = """
import numpy as np, pretend_gpu
pretend_gpu.load()
from tinygrad_mnist import Tensor, arrays, compile
from test_compile_devices import CaptureError, IMAGES, LABELS, close, training
current = lambda: arrays.cupy().cuda.Device().id
for labels in "gpu:1", "cpu":
    x, y = arrays.move(IMAGES, "gpu:1"), arrays.move(LABELS, labels)
    (eager, step), (model, other) = training("gpu:1", dropout=0.5), training("gpu:1", dropout=0.5)
    other = compile(other)
    for _ in range(5):
        loss = other(x, y)
        assert loss.device == "gpu:1" and current() == 0
        close(loss.data, step(x, y).data)
    close(model.flat, eager.flat)
    assert arrays.device_of(model.parameters()[0].grad) == "gpu:1"
try:
    compile(lambda a, b: (Tensor(a) * 2, Tensor(b) * 2))(x, arrays.move(IMAGES, "gpu"))
except CaptureError as error:
    assert "one GPU" in str(error), error
else:
    raise AssertionError("two")
print("ok")
"""


@pytest.mark.parametrize("backend", ["cupy-pretend"], indirect=True)
def test_a_program_runs_on_the_gpu_of_its_arrays(backend):
    environment = os.environ | {"PRETEND_GPU_DEVICES": "2", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", TWO], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_a_loss_over_two_models_is_one_program(device):
    one, two = (nn.MLP((6, 3), rng=k).to(device) for k in range(2))

    @compile
    def f(x):
        loss = mse(one(x), two(x))
        loss.backward()
        return loss

    x = arrays.move(IMAGES, device)
    for _ in range(4):
        found = f(x)
    close(found.data, mse(one(x), two(x)).data)
