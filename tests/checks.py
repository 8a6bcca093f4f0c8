"""What is checked of an operation of the table. `test_ops` runs these on right rules, `test_planted` on wrong ones.

Cotangents are random and of both signs: with ones, a rule that ignores g or takes |g| would pass.
"""

import zlib

import numpy as np
import pytest

from tinygrad_mnist import Tensor, functional
from tinygrad_mnist.core import F
from tinygrad_mnist.testing import Backend

HOST = Backend()  # where references are computed, whatever the backend
# NumPy's arrays or lists as operands are what the test, or the case of it, is about; beside the Tensor of a device they
# are an error, which test_devices holds.
host_only = pytest.mark.only_on("numpy")
not_strict = pytest.mark.only_on("numpy", "cupy-pretend")  # the strict double does not model the function

STEP = 1e-3  # of differences: the samples keep further than two steps from kinks and from the ends of the domain


def generator(name):
    return np.random.default_rng(zlib.crc32(name.encode()) + 1)


def is_float(a):
    return a.dtype.kind == "f"


def as_dtype(case, dtype):
    return tuple(a.astype(dtype) if is_float(a) else a for a in case)


def enter(backend, case, *, only=None, plain=lambda array: array):
    """The operands on the backend: floats as leaves (only operand `only`, where given), the others `plain`."""
    operands = []
    for i, a in enumerate(case):
        array = backend.array(a)
        operands.append(Tensor(array, requires_grad=True) if is_float(a) and only in (None, i) else plain(array))
    return operands


def run(backend, op, case, cotangent=None, *, xp=F, **which):
    """(result, cotangent, {i: gradient of operand i}) on host arrays."""
    operands = enter(backend, case, **which)
    y = op.call(xp, *operands)
    assert isinstance(y, Tensor), f"{op.name}: {type(y).__name__} instead of a Tensor"
    value = backend.host(y.data)
    if cotangent is None:
        cotangent = np.asarray(2 * generator(op.name).normal(size=y.shape)).astype(y.dtype)
    y.backward(backend.array(cotangent))
    leaves = {i: t for i, t in enumerate(operands) if isinstance(t, Tensor) and t.requires_grad}
    return value, cotangent, {i: None if t.grad is None else backend.host(t.grad) for i, t in leaves.items()}


def close(actual, expected, tolerance, what, floor=1e-3):
    """Equal shapes, and values within `tolerance` of the largest magnitude in either, or of `floor`."""
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    if expected.size:
        actual, expected = (np.asarray(a, np.float64) for a in (actual, expected))
        scale = max(floor, np.abs(expected).max(), np.abs(actual).max())
        worst = np.unravel_index(np.argmax(np.abs(actual - expected)), expected.shape)
        error = np.abs(actual - expected)[worst]
        assert error <= tolerance * scale, (
            f"{what} at {tuple(map(int, worst))}: {actual[worst]!r}, expected {expected[worst]!r}, "
            f"off by {error / scale:.1e} of {scale:.1e}, allowed {tolerance:.0e}"
        )


def difference(f):
    """f'(0) of a function of a number, by central differences of fourth order."""
    return (8 * (f(STEP) - f(-STEP)) - (f(2 * STEP) - f(-2 * STEP))) / (12 * STEP)


def numeric(f, case, i):
    """The gradient by operand i of the scalar function `f(*case)`, element by element."""
    gradient = np.zeros(case[i].shape)
    for place in np.ndindex(case[i].shape):

        def along(h, place=place):
            moved = case[i].copy(order="K")
            moved[place] += h
            return f(*case[:i], moved, *case[i + 1 :])

        gradient[place] = difference(along)
    return gradient


def label(op, case):
    return f"{op.name} on {', '.join(str(a.shape) for a in case)}"


# ---- the checks: each takes (backend, op) and raises AssertionError ------------------------------------------------


def check_values(backend, op):
    """The same values, shape and dtype as NumPy, in every float dtype."""
    for case in op.cases():
        for dtype in np.float64, np.float32, np.float16:
            operands = as_dtype(case, dtype)
            y = op.call(F, *enter(backend, operands))
            expected = np.asarray(op.expected(*operands))
            assert y.dtype == expected.dtype, f"{label(op, case)}: {y.dtype}, but NumPy {expected.dtype}"
            close(backend.host(y.data), expected, 8 * np.finfo(dtype).eps, label(op, case), floor=1.0)


def check_gradient(backend, op):
    """The gradient of every operand against central differences of NumPy's answer."""
    for case in op.cases():
        _, g, gradients = run(backend, op, case)
        for i, gradient in gradients.items():
            assert gradient is not None, f"{label(op, case)}: operand {i} got no gradient"
            expected = numeric(lambda *a, g=g: np.sum(g * op.expected(*a)), case, i)
            close(gradient, expected, 1e-8, f"{label(op, case)}: gradient of operand {i}")


def check_complex_step(backend, op):
    """The gradient against the complex step, which has no truncation and no cancellation, to the last digits."""
    for case in op.cases():
        _, g, gradients = run(backend, op, case)
        for i, gradient in gradients.items():
            expected = np.zeros(case[i].shape)
            for place in np.ndindex(case[i].shape):
                moved = case[i].astype(complex)
                moved[place] += 1e-30j
                expected[place] = np.sum(g * op.expected(*case[:i], moved, *case[i + 1 :])).imag / 1e-30
            close(gradient, expected, 1e-13, f"{label(op, case)}: complex step {i}", floor=0.1)


def check_dtypes(backend, op):
    """Each gradient has its operand's dtype, and is as near to the float64 one as its operands' rounding allows."""
    rng = generator(op.name)
    for case in op.cases():
        for dtype in np.float32, np.float16:
            u = np.finfo(dtype).eps / 2
            low = as_dtype(case, dtype)
            _, g, gradients = run(backend, op, low)
            exact = as_dtype(low, np.float64)
            references = [run(HOST, op, exact, g.astype(np.float64))[2]]
            for _ in range(2):
                nudged = tuple(a * (1 + u * rng.choice([-1, 1], a.shape)) if is_float(a) else a for a in exact)
                references.append(run(HOST, op, nudged, g.astype(np.float64))[2])
            for i, gradient in gradients.items():
                what = f"{label(op, case)}: {dtype.__name__} gradient of operand {i}"
                assert gradient.dtype == dtype, f"{what} is {gradient.dtype}"
                if gradient.size:
                    middle, *around = (r[i] for r in references)
                    spread = max(np.abs(r - middle).max() / max(1e-3, np.abs(middle).max()) for r in around)
                    close(gradient, middle, 64 * u + 32 * spread, what)


def check_second_order(backend, op):
    """The gradient's own derivative, by the operands and by the cotangent, against differences; and its symmetry."""
    rng = generator(op.name)
    for case in op.cases()[:4]:
        value, g, first = run(backend, op, case)
        wrt = list(first)
        u, w, dx = ({i: rng.normal(size=case[i].shape) for i in wrt} for _ in range(3))
        dg = np.asarray(rng.normal(size=value.shape))

        def call(*xs, case=case, wrt=wrt):
            operands = [backend.array(a) for a in case]
            for i, x in zip(wrt, xs, strict=True):
                operands[i] = x
            return op.call(F, *operands)

        def curvature(direction, case=case, wrt=wrt, g=g, first=first, call=call):
            """The derivatives of <gradient, direction> by the operands and by the cotangent."""
            xs = [Tensor(backend.array(case[i]), requires_grad=True) for i in wrt]
            seed = Tensor(backend.array(g), requires_grad=True)
            gradients = functional.vjp(call, *xs)[1](seed)
            for i, gradient in zip(wrt, gradients, strict=True):
                close(backend.host(gradient.data), first[i], 1e-12, f"{label(op, case)}: rule {i} on Tensors")
            slope = sum(F.sum(v * backend.array(direction[i])) for i, v in zip(wrt, gradients, strict=True))
            if slope.requires_grad:
                slope.backward()
            return [np.zeros(t.shape) if t.grad is None else backend.host(t.grad) for t in (*xs, seed)]

        def slope_along(h, case=case, wrt=wrt, g=g, u=u, dx=dx, dg=dg):
            moved = [a + h * dx[i] if i in wrt else a for i, a in enumerate(case)]
            gradients = run(HOST, op, tuple(map(np.asarray, moved)), np.asarray(g + h * dg))[2]
            return sum(np.sum(u[i] * gradients[i]) for i in wrt)

        scale = max([1.0, *(np.abs(a).max() for a in first.values() if a.size)])
        *by_x, by_g = curvature(u)
        actual = sum(np.sum(v * dx[i]) for i, v in zip(wrt, by_x, strict=True)) + np.sum(by_g * dg)
        expected = difference(slope_along)
        close(np.asarray(actual / scale), np.asarray(expected / scale), 1e-7, f"{label(op, case)}: second order")
        *by_w, _ = curvature(w)
        left = sum(np.sum(v * w[i]) for i, v in zip(wrt, by_x, strict=True))
        right = sum(np.sum(v * u[i]) for i, v in zip(wrt, by_w, strict=True))
        close(np.asarray(left / scale), np.asarray(right / scale), 1e-11, f"{label(op, case)}: symmetry")


def check_unchanged(backend, op):
    """Neither operands nor cotangent are written to, and they may be read-only; the gradients are the caller's own."""
    for case in op.cases():
        for frozen in False, True:
            arrays = [backend.array(a.copy(order="K")) for a in case]
            operands = [Tensor(a, requires_grad=True) if is_float(b) else a for a, b in zip(arrays, case, strict=True)]
            y = op.call(F, *operands)
            seed = np.asarray(generator(op.name).normal(size=y.shape)).astype(y.dtype)
            g = backend.array(seed.copy())
            if frozen:
                for a in (*arrays, g):
                    backend.freeze(a)
            try:
                y.backward(g)
            except ValueError as error:
                raise AssertionError(f"{label(op, case)}: writes to a read-only array: {error}") from error
            for before, after in zip((*case, seed), (*arrays, g), strict=True):
                assert backend.host(after).tobytes() == before.tobytes(), f"{label(op, case)}: changed its operand or g"
            for t in operands:
                if isinstance(t, Tensor) and not frozen:
                    t.grad[...] = 7  # owned by the leaf: nobody else may see this
            for before, after in zip((*case, seed), (*arrays, g), strict=True):
                assert backend.host(after).tobytes() == before.tobytes(), f"{label(op, case)}: a gradient shares memory"


def check_each_alone(backend, op):
    """With one operand tracked and the others not, the gradient is the same: what it needs was saved."""
    which = {"plain": Tensor} if op.name.startswith("a.") else {}  # array.dot(t) is NumPy's: it raises
    for case in op.cases():
        _, g, together = run(backend, op, case)
        for i in together:
            alone = run(backend, op, case, g, only=i, **which)[2]
            assert list(alone) == [i]
            close(alone[i], together[i], 1e-14, f"{label(op, case)}: operand {i} alone")


def check_same_operand_twice(backend, op):
    """One Tensor in two places gets the sum of what the places get."""
    for case in op.cases():
        floats = [i for i, a in enumerate(case) if is_float(a)]
        if len(floats) < 2 or len({case[i].shape for i in floats}) > 1:
            continue
        shared = abs(case[floats[-1]])  # positive: inside both domains
        merged = tuple(shared if i in floats else a for i, a in enumerate(case))
        _, g, gradients = run(backend, op, merged)
        t = Tensor(backend.array(shared), requires_grad=True)
        op.call(F, *(t if i in floats else backend.array(a) for i, a in enumerate(case))).backward(backend.array(g))
        close(backend.host(t.grad), sum(gradients.values()), 1e-14, f"{label(op, case)}: one Tensor in all places")


def check_numpy_spelling(backend, op):
    """NumPy's function on Tensors is ours, bit for bit, forward and backward."""
    for case in op.cases():
        value, g, gradients = run(backend, op, case)
        other, _, others = run(backend, op, case, g, xp=np)
        assert value.tobytes() == other.tobytes(), label(op, case)
        for i, gradient in gradients.items():
            assert gradient.tobytes() == others[i].tobytes(), label(op, case)


def check_mixed_dtypes(backend, op):
    """Operands of different dtypes: the result as NumPy promotes it, each gradient in its own operand's dtype."""
    for case in op.cases():
        floats = [i for i, a in enumerate(case) if is_float(a)]
        for narrow, wide in (np.float32, np.float64), (np.float16, np.float32):
            for i in floats:
                mixed = tuple(a.astype(narrow if k == i else wide) if is_float(a) else a for k, a in enumerate(case))
                value, _, gradients = run(backend, op, mixed)
                assert value.dtype == np.asarray(op.expected(*mixed)).dtype, label(op, mixed)
                dtypes = {k: g.dtype for k, g in gradients.items()}
                assert dtypes == {k: mixed[k].dtype for k in gradients}, label(op, mixed)


def check_float32_closure(backend, op):
    """A float32 program and its gradient's program compute in float32 alone: no node and no saved array is wider."""
    for case in op.cases()[:4]:
        low = as_dtype(case, np.float32)
        wrt = [i for i, a in enumerate(low) if is_float(a)]
        xs = [Tensor(backend.array(low[i]), requires_grad=True) for i in wrt]

        def call(*xs, low=low, wrt=wrt):
            operands = [backend.array(a) for a in low]
            for i, x in zip(wrt, xs, strict=True):
                operands[i] = x
            return op.call(F, *operands)

        y, pull = functional.vjp(call, *xs)
        seed = Tensor(backend.array(np.ones(y.shape, np.float32)), requires_grad=True)
        stack = [t._node for t in (y, *pull(seed))]
        seen = set()
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            stack += node.parents
            for a in (node, *(getattr(node, "saved", None) or ())):
                dtype = getattr(a, "dtype", None)
                fits = dtype is None or dtype.kind != "f" or dtype == np.float32
                assert fits, f"{label(op, case)}: {dtype} in {node.prim}"


EVERY = (
    check_values,
    check_gradient,
    check_dtypes,
    check_unchanged,
    check_each_alone,
    check_same_operand_twice,
    check_float32_closure,
    check_second_order,
)


def checks_of(op):
    """The checks that apply to a row."""
    found = list(EVERY)
    if op.analytic:
        found.append(check_complex_step)
    if op.reference is None:
        found.append(check_numpy_spelling)
    return found


def check(backend, op):
    """All of them."""
    for one in checks_of(op):
        one(backend, op)
