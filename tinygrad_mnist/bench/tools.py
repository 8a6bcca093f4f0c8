"""The tools: who computes a work. Each is a function from a problem to a Runner, called in a process of its own.

All do the same arithmetic from the same weights in the same order. Each gathers the rows of a step from resident arrays
itself, and reads the loss back after every step, `scan`s at their end. Peers are written as their documentation has it,
with what it says makes them fast: fused optimizers, donated buffers, no memory guards.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import tinygrad_mnist as tg

from .. import arrays, gpu, nn, optim
from .works import Problem, Work

Array = Any
Loss = Any  # a number of any tool's type
B1, B2, EPS = 0.9, 0.999, 1e-8
INSTALL = "pip install 'tinygrad-mnist[bench]'"
NO_GPU = "no GPU: `tinygrad-mnist bench` on a machine with one fills this row; nothing of it has run on hardware"


class Unavailable(Exception):
    """This tool cannot run here: one line that says why, and what to do."""


def wall(call: Callable[[], Any]) -> tuple[Any, float]:
    """What the call returns, and the seconds that it took."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


class Runner(NamedTuple):
    """`run(order)` does one step for each row of `order`, from where it stopped before, and returns the losses."""

    run: Callable[[Array], Sequence[Loss]]
    clock: Callable[[Callable[[], Any]], tuple[Any, float]] = wall
    facts: dict[str, Any] = {}  # noqa: RUF012  (never changed) what else was measured, for the report


class Tool(NamedTuple):
    """`loss`: False for what computes no loss that could be checked. `threads`: False where only one core is used."""

    make: Callable[[Problem], Runner]
    loss: bool = True
    threads: bool = True
    ours: bool = False
    slow_start: bool = False  # left out by --quick


def library(name: str) -> Any:
    """A peer's module, which may be missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name.partition('.')[0]} is not installed: {INSTALL}") from error


def _each(step: Callable[[Array, Array], Loss], p: Problem) -> Callable[[Array], list[float]]:
    """Call `step` with the rows of each step, and read each loss back."""
    x, y = p.x, p.y  # p itself holds the initial weights too, which should not count as memory of the tool
    if p.work.order == "whole":
        return lambda order: [float(step(x, y)) for _ in order]
    return lambda order: [float(step(x[rows], y[rows])) for rows in order]


# ---- this package -------------------------------------------------------------------------------------------------


def _our_step(p: Problem, device: str = "cpu") -> Callable[[Array, Array], tg.Tensor]:
    work = p.work
    model = nn.MLP(work.sizes, work.activation, bias=work.bias, dtype=work.dtype, init="zeros")
    for layer, (weight, bias) in zip(model.layers, p.weights, strict=True):
        layer.weight.data = weight
        if layer.bias is not None:
            layer.bias.data = bias
    model.to(device)
    if work.loss == "mean":

        def forward(x: Array, _y: Array) -> tg.Tensor:
            with tg.no_grad():
                return tg.mean(model(x))

        return forward
    optimizer = (optim.Adam if work.optimizer == "adam" else optim.SGD)(model.parameters(), lr=work.lr)

    def step(x: Array, y: Array) -> tg.Tensor:
        out = model(x)
        if work.loss == "squares":
            loss = 0.5 * tg.mse(tg.sigmoid(out), y, reduction="sum")
        else:
            loss = tg.softmax_cross_entropy(out, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def compiled(step: Callable[..., Any], backend: str) -> Any:
    """The step as a program, where its backend is installed."""
    try:
        return tg.compile(step, backend=backend)
    except (AttributeError, ImportError) as error:
        raise Unavailable(f"tinygrad_mnist.compile(backend={backend!r}) is not available ({error})") from error


def _eager(p: Problem) -> Runner:
    return Runner(_each(_our_step(p), p))


def _program(p: Problem) -> Runner:
    return Runner(_each(compiled(_our_step(p), "numpy"), p))


def _loop(p: Problem) -> Runner:
    program = compiled(_our_step(p), "numba")
    each = _each(program, p)

    def run(order: Array) -> Sequence[Loss]:
        losses = each(order) if p.work.order == "whole" else program.scan((p.x, p.y), order)
        while program.backend == "eager":  # a single call is captured, as the next one will be
            each(order[:1])
        if program.backend != "numba":
            raise Unavailable(f"no native loop: {program.reason}")
        return losses.numpy() if isinstance(losses, tg.Tensor) else losses

    return Runner(run)


def gpu_refusal(device: str = "gpu") -> str:
    """Why no time can be taken on this device, or "". A device that only stands for a GPU has no times."""
    if arrays.gpu_number(device) is not None and not gpu.probe().ok:
        return NO_GPU
    if gpu.emulated(device):
        return f"{device} is emulated here: its times are not those of a GPU"
    return ""


def _on_gpu(p: Problem, program: bool) -> Runner:
    """Device events around the steps; the transfer of images, labels and weights is timed apart."""
    if reason := gpu_refusal():
        raise Unavailable(reason)
    cp = arrays.cupy()

    def clock(call: Callable[[], Any]) -> tuple[Any, float]:
        start, stop = cp.cuda.Event(), cp.cuda.Event()
        start.record()
        result = call()
        stop.record()
        stop.synchronize()
        return result, cp.cuda.get_elapsed_time(start, stop) / 1e3

    cp.asarray(p.x[:1]).sum().item()  # the context and the first kernel are neither transfer nor step
    (x, y, order), seconds = clock(lambda: [cp.asarray(a) for a in (p.x, p.y, p.order)])
    moved = x.nbytes + y.nbytes + order.nbytes
    step = _our_step(p, "gpu")
    run = _each(compiled(step, "auto") if program else step, p._replace(x=x, y=y))
    facts = {"transfer_seconds": seconds, "transfer_bytes": moved}
    # The order that is asked for is always the beginning of the one that lies on the GPU.
    return Runner(lambda rows: run(order[: len(rows)]), clock, facts)


# ---- the bare matrix products -------------------------------------------------------------------------------------


def _bare(p: Problem) -> Runner:
    """Gathering and the matrix products of the step alone, into memory that is there: what no NumPy code can undercut.

    An outer product, of batch 1, is a broadcast multiplication, which is faster there than NumPy's `matmul`.
    """
    work, weights = p.work, [weight for weight, _ in p.weights]
    whole, forward_only = work.order == "whole", work.loss == "mean"
    z = [np.empty((work.batch, n), work.dtype) for n in work.sizes[1:]]
    h = [p.x if whole else np.empty((work.batch, work.sizes[0]), work.dtype), *z[:-1]]
    dz = [np.full_like(a, 0.1) for a in z] if not forward_only else []
    dw = [np.empty_like(w) for w in weights] if not forward_only else []
    outer: Any = np.multiply if work.batch == 1 else np.matmul

    def step(rows: Array) -> None:
        if not whole:
            np.take(p.x, rows, axis=0, out=h[0], mode="clip")  # "raise" would gather into a temporary first
        for i, w in enumerate(weights):
            np.matmul(h[i], w, out=z[i])
        for i in reversed(range(len(dw))):
            outer(h[i].T, dz[i], out=dw[i])
            if i:
                np.matmul(dz[i], weights[i].T, out=dz[i - 1])

    def run(order: Array) -> list[float]:
        for rows in order:
            step(rows)
        return [0.0]

    return Runner(run)


# ---- peers --------------------------------------------------------------------------------------------------------


def _pytorch(p: Problem, compile_it: bool) -> Runner:
    torch = library("torch")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    work, functional = p.work, torch.nn.functional
    layers: list[Any] = []
    for weight, bias in p.weights:
        layer = torch.nn.Linear(*weight.shape, bias=bias is not None, dtype=getattr(torch, work.dtype))
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight.T))
            if bias is not None:
                layer.bias.copy_(torch.from_numpy(bias))
        layers += [layer, torch.nn.Sigmoid() if work.activation == "sigmoid" else torch.nn.ReLU()]
    model = torch.nn.Sequential(*(layers if work.activation == "sigmoid" else layers[:-1]))

    def loss_of(x: Any, y: Any) -> Any:
        out = model(x)
        if work.loss == "mean":
            return out.mean()
        return functional.cross_entropy(out, y) if work.loss == "cross-entropy" else 0.5 * ((out - y) ** 2).sum()

    if compile_it:
        loss_of = torch.compile(loss_of)
    x, y = torch.from_numpy(p.x), torch.from_numpy(p.y)
    if work.loss == "mean":

        def step(x: Any, y: Any) -> Any:
            with torch.no_grad():
                return loss_of(x, y)
    else:
        kind = torch.optim.Adam if work.optimizer == "adam" else torch.optim.SGD
        optimizer = kind(model.parameters(), lr=work.lr, fused=True)

        def step(x: Any, y: Any) -> Any:
            loss = loss_of(x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

    each = _each(step, p._replace(x=x, y=y))
    return Runner(lambda order: each(torch.from_numpy(np.array(order))))


def _flat(p: Problem) -> list[Array]:
    return [a for pair in p.weights for a in pair if a is not None]


def _loss(work: Work, relu: Any, sigmoid: Any, cross_entropy: Any, total: Any) -> Callable[..., Loss]:
    """The loss of (parameters, x, y), for tools whose arrays have NumPy's operators."""

    def loss(params: Iterable[Array], x: Array, y: Array) -> Loss:
        rest = iter(params)
        for i in range(layers := len(work.sizes) - 1):
            x = x @ next(rest)
            if work.bias:
                x = x + next(rest)
            if work.activation == "sigmoid":
                x = sigmoid(x)
            elif i + 1 < layers:
                x = relu(x)
        if work.loss == "mean":
            return total(x) / (x.shape[0] * x.shape[1])
        return cross_entropy(x, y) if work.loss == "cross-entropy" else 0.5 * total((x - y) ** 2)

    return loss


def _updated(work: Work, xp: Any, params: Any, grads: Any, state: Any, t: Any) -> tuple[list[Array], list[Any]]:
    """Parameters and optimizer state after step t = 1, 2, ...; gradients None are those of a forward pass."""
    if work.optimizer == "none":
        return params, state
    if work.optimizer == "sgd":
        return [p - work.lr * g for p, g in zip(params, grads, strict=True)], state
    moments = [(B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g) for (m, v), g in zip(state, grads, strict=True)]
    first, second = 1 - B1**t, 1 - B2**t
    new = [
        p - work.lr * (m / first) / (xp.sqrt(v / second) + EPS) for p, (m, v) in zip(params, moments, strict=True)
    ]
    return new, moments


def _jax(p: Problem, scan: bool) -> Runner:
    jax = library("jax")
    jax.config.update("jax_enable_x64", p.work.dtype == "float64")
    np_, work, whole = jax.numpy, p.work, p.work.order == "whole"

    def cross_entropy(z: Any, y: Any) -> Any:  # by one-hot: XLA's scatter, of the gradient of an index, is slower
        return -np_.sum(jax.nn.log_softmax(z) * jax.nn.one_hot(y, z.shape[1], dtype=z.dtype)) / len(z)

    loss = _loss(work, jax.nn.relu, jax.nn.sigmoid, cross_entropy, np_.sum)
    derive = (lambda *a: (loss(*a), None)) if work.loss == "mean" else jax.value_and_grad(loss)

    def step(carry: Any, x: Any, y: Any, rows: Any) -> Any:
        params, state, t = carry
        if not whole:
            x, y = (a.at[rows].get(mode="promise_in_bounds") for a in (x, y))
        value, grads = derive(params, x, y)
        return (*_updated(work, np_, params, grads, state, t), t + 1), value

    params = [np_.array(a) for a in _flat(p)]
    state = [(np_.zeros_like(a), np_.zeros_like(a)) for a in params] if work.optimizer == "adam" else []
    carry = (params, state, np_.array(1))
    x, y = np_.asarray(p.x), np_.asarray(p.y)
    one = jax.jit(step, donate_argnums=0)
    epoch = jax.jit(
        lambda carry, x, y, order: jax.lax.scan(lambda c, rows: step(c, x, y, rows), carry, order), donate_argnums=0
    )

    def run(order: Array) -> Sequence[Loss]:
        nonlocal carry
        if scan:
            carry, losses = epoch(carry, x, y, order.astype(np.int32))
            return list(np.asarray(losses))
        values = []
        for rows in order.astype(np.int32):
            carry, value = one(carry, x, y, rows)
            values.append(float(value))
        return values

    return Runner(run)


def _numpy_like(p: Problem, value_and_grad: Callable[..., tuple[Loss, Any]]) -> Runner:
    """Of a tool that derives, with the update in NumPy."""
    params = _flat(p)
    state: list[Any] = [(0.0, 0.0) for _ in params]
    t = 0

    def step(x: Array, y: Array) -> Loss:
        nonlocal params, state, t
        t += 1
        value, grads = value_and_grad(params, x, y)
        params, state = _updated(p.work, np, params, grads, state, t)
        return value

    return Runner(_each(step, p))


def _autograd(p: Problem) -> Runner:
    autograd = library("autograd")
    np_ = library("autograd.numpy")

    def cross_entropy(z: Any, y: Any) -> Any:
        z = z - np_.max(z, axis=1, keepdims=True)
        return np_.mean(np_.log(np_.sum(np_.exp(z), axis=1)) - z[np.arange(len(y)), y])

    loss = _loss(p.work, lambda z: np_.maximum(z, 0), lambda z: 1 / (1 + np_.exp(-z)), cross_entropy, np_.sum)
    return _numpy_like(p, (lambda *a: (loss(*a), None)) if p.work.loss == "mean" else autograd.value_and_grad(loss))


def _mygrad(p: Problem) -> Runner:
    mg = library("mygrad")
    mg.turn_memory_guarding_off()
    of, losses = library("mygrad.nnet.activations"), library("mygrad.nnet.losses")
    loss = _loss(p.work, of.relu, of.sigmoid, losses.softmax_crossentropy, mg.sum)

    def value_and_grad(params: Any, x: Array, y: Array) -> tuple[Loss, Any]:
        if p.work.loss == "mean":
            with mg.no_autodiff:
                return loss(map(mg.astensor, params), mg.astensor(x), y), None
        tensors = [mg.tensor(a, copy=False) for a in params]
        value = loss(tensors, x, y)
        value.backward()
        return value, [t.grad for t in tensors]

    return _numpy_like(p, value_and_grad)


def _tinygrad(p: Problem) -> Runner:
    """Batches are gathered by NumPy: its own gather, a comparison with every row, takes longer."""
    work = p.work
    os.environ.update(TRAINING="1", DEFAULT_FLOAT=work.dtype, OPTIM_DTYPE=work.dtype)
    tiny = library("tinygrad")
    tensor, optimizers = tiny.Tensor, library("tinygrad.nn.optim")
    params = [tensor(a).realize().is_param_() for a in _flat(p)]
    loss_of = _loss(work, tensor.relu, tensor.sigmoid, tensor.sparse_categorical_crossentropy, tensor.sum)
    if work.loss == "mean":
        step = tiny.TinyJit(lambda x, y: loss_of(params, x, y).realize())
    else:
        optimizer = (optimizers.Adam if work.optimizer == "adam" else optimizers.SGD)(params, lr=work.lr)
        if work.optimizer == "adam":  # which keeps b^t as float32, too coarse for the check in float64
            ones = (tensor.ones(1, dtype=params[0].dtype).contiguous().is_param_(False) for _ in range(2))
            optimizer.b1_t, optimizer.b2_t = ones

        def train(x: Any, y: Any) -> Any:
            optimizer.zero_grad()
            loss = loss_of(params, x, y).backward()
            return loss.realize(*optimizer.schedule_step())

        step = tiny.TinyJit(train)
    return Runner(_each(lambda x, y: step(tensor(x).realize(), tensor(y).realize()).item(), p))


# ---- all of them --------------------------------------------------------------------------------------------------

REFERENCE = "numpy eager"
TOOLS = {
    REFERENCE: Tool(_eager, ours=True),
    "numpy program": Tool(_program, ours=True),
    "numba loop": Tool(_loop, ours=True),
    "cupy eager": Tool(partial(_on_gpu, program=False), threads=False),
    "cupy program": Tool(partial(_on_gpu, program=True), threads=False),
    "bare products": Tool(_bare, loss=False),
    "torch eager": Tool(partial(_pytorch, compile_it=False)),
    "torch compile": Tool(partial(_pytorch, compile_it=True), slow_start=True),
    "jax jit": Tool(partial(_jax, scan=False)),
    "jax scan": Tool(partial(_jax, scan=True)),
    "autograd": Tool(_autograd),
    "mygrad": Tool(_mygrad),
    "tinygrad": Tool(_tinygrad, slow_start=True),
}
