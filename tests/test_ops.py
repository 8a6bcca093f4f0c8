"""The operations: every row of the table against NumPy, then what a table cannot say: kinks, errors, extreme values."""

import ast
import importlib
import inspect
import math
import re
from pathlib import Path

import numpy as np
import pytest
from checks import check_mixed_dtypes, checks_of, host_only, not_strict, run

import tinygrad_mnist
from tinygrad_mnist import Tensor, losses, mse, numpy_api, ops, softmax_cross_entropy
from tinygrad_mnist.arrays import NUMPY, AxisError, place
from tinygrad_mnist.core import F
from tinygrad_mnist.testing import OPS

FLOATS = (np.float64, np.float32, np.float16)


def tracked(backend, values, dtype=np.float64):
    return Tensor(backend.array(np.array(values, dtype)), requires_grad=True)


def gradient(backend, f, *values, dtype=np.float64):
    """The gradients of `f(*tensors).sum()` on the host."""
    tensors = [tracked(backend, v, dtype) for v in values]
    F.sum(f(*tensors)).backward()
    grads = [backend.host(t.grad) for t in tensors]
    return grads[0] if len(grads) == 1 else grads


# ---- where CuPy differs, as its documentation says ----------------------------------------------------------------

# What it refuses: the call, its error, and what the message says. Cases that need NumPy's way are marked `differs`.
REFUSED_BY_CUPY = {
    "sum(a, 0) of no axes": (lambda t: np.sum(t[0, 0], 0), AxisError, "axis 0 is out of bounds"),
    "softmax(a) of no axes": (lambda t: F.softmax(t[0, 0]), AxisError, "axis -1 is out of bounds"),
    "all(a, where=)": (lambda t: np.all(t, where=t > 0), TypeError, "unexpected keyword argument 'where'"),
    "matmul(a, 2.0)": (lambda t: np.matmul(t, 2.0), TypeError, "matmul: cannot compute it on float64"),
}


def differs(name):
    assert name in REFUSED_BY_CUPY
    return host_only


@pytest.mark.parametrize("name", REFUSED_BY_CUPY)
def test_what_cupy_refuses_is_an_error_on_devices(device, name):
    call, error, message = REFUSED_BY_CUPY[name]
    with pytest.raises(error, match=message):
        call(Tensor(np.ones((2, 2)), device=device))


@differs("sum(a, 0) of no axes")
@pytest.mark.parametrize("f", [np.sum, np.prod, np.max, np.min])
def test_an_array_without_axes_is_reduced_along_axis_0_or_the_last(backend, f):
    assert gradient(backend, lambda t: 2 * f(t, 0) + f(t, -1), 5.0) == 3


@differs("softmax(a) of no axes")
def test_softmax_of_an_array_without_axes(backend):
    for f in F.softmax, F.log_softmax:
        assert gradient(backend, f, 5.0) == 0


# ---- the table ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "op"),
    [pytest.param(check, op, id=f"{check.__name__[6:]}-{op.name}") for op in OPS for check in checks_of(op)],
)
def test_operation(backend, check, op):
    check(backend, op)


@pytest.mark.parametrize("op", [op for op in OPS if len(op.cases()[0]) > 1], ids=lambda op: op.name)
def test_mixed_dtypes(backend, op):
    check_mixed_dtypes(backend, op)


def words(text):
    return text.split()


NAMES = words("""
    add subtract multiply divide negative power reciprocal square sqrt cbrt abs sign exp exp2 expm1 log log2 log10 log1p
    sin cos tan arcsin arccos arctan arctan2 sinh cosh tanh arcsinh arccosh arctanh maximum minimum fmax fmin logaddexp
    hypot
    mod floor_divide clip where matmul dot inner outer tensordot einsum kron vdot sum mean prod max min var std cumsum
    logsumexp norm reshape ravel transpose swapaxes moveaxis squeeze expand_dims atleast_1d atleast_2d atleast_3d
    broadcast_to tile repeat roll flip fliplr flipud rot90 concatenate stack vstack hstack dstack column_stack split
    array_split vsplit hsplit pad diag diagonal trace triu tril take sort select nan_to_num relu sigmoid softplus
    leaky_relu gelu silu softmax log_softmax softmax_cross_entropy mse
""")


def in_table(name):
    return any(re.search(rf"\b{name}\(", op.name) for op in OPS)


METHODS = words("""
    sum mean prod max min var std reshape transpose swapaxes squeeze ravel clip dot exp log sqrt relu sigmoid tanh
    softmax log_softmax logsumexp
""")


def test_every_promised_method_has_a_row():
    assert [name for name in METHODS if not any(op.name.startswith(f"a.{name}(") for op in OPS)] == []


def test_every_promised_operation_has_a_row():
    assert [name for name in NAMES if not in_table(name)] == []
    assert any(op.name.startswith("a[") for op in OPS)


def test_every_differentiable_function_has_a_row():
    primitives = {name: getattr(f, "prim", None) for name, f in vars(F).items()}
    constant = {name for name, prim in primitives.items() if prim is not None and not prim.differentiable}
    inside = {"bincount", "identity", "scatter_add", "getitem", "around", "to"}
    public = {name for name in vars(F) if not name.startswith(("_", "planted"))} - constant - inside
    assert sorted(name for name in public if not in_table(name)) == []


def test_names_of_rows_are_unique():
    assert len({op.name for op in OPS}) == len(OPS)


@pytest.mark.parametrize("op", [op for op in OPS if op.domains], ids=lambda op: op.name)
def test_elementwise_samples_have_every_kind_of_operand(op):
    cases = op.cases()
    shapes = {tuple(a.shape for a in case) for case in cases}
    arrays = [a for case in cases for a in case]
    assert all(() in column for column in zip(*shapes, strict=True)), "0-d"
    assert any(a.size == 0 for a in arrays), "zero-size"
    assert any(not a.flags.c_contiguous and not a.flags.f_contiguous for a in arrays), "strided"
    assert any(a.flags.f_contiguous and not a.flags.c_contiguous for a in arrays), "transposed"
    assert any(stride < 0 for a in arrays for stride in a.strides), "reversed"
    if len(op.domains) > 1:
        for i in range(len(op.domains)):
            assert any(row[i] != np.broadcast_shapes(*row) for row in shapes), f"operand {i} broadcast"
    for case in cases:
        for a, (low, high) in zip(case, op.domains, strict=True):
            assert a.dtype == np.float64
            assert np.all((low < a) & (a < high))


@pytest.mark.parametrize("op", [op for op in OPS if op.domains], ids=lambda op: op.name)
def test_operands_whose_elements_share_memory(backend, op):
    """Broadcast views, with strides of 0, count as the arrays that they look like."""
    views = tuple(np.broadcast_to(a[:1], a.shape) for a in op.cases()[0])
    value, g, gradients = run(backend, op, views)
    other, _, others = run(backend, op, tuple(a.copy() for a in views), g)
    assert value.tobytes() == other.tobytes()
    assert [a.tobytes() for a in gradients.values()] == [a.tobytes() for a in others.values()]


def test_samples_are_the_same_at_every_call():
    for op in OPS[::20]:
        for first, second in zip(op.cases(), op.cases(), strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


# ---- closure: what rules may use ----------------------------------------------------------------------------------


def names_of_xp(module):
    """(in rules, in kernels): each `xp.name` in the source. A kernel annotates its `xp`, a rule does not."""
    rules, kernels = set(), set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Lambda, ast.FunctionDef)) and node.args.args and node.args.args[0].arg == "xp":
            annotation = node.args.args[0].annotation
            is_kernel = isinstance(annotation, ast.Name) and annotation.id == "Namespace"
            for inner in ast.walk(node):
                if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id == "xp":
                    (kernels if is_kernel else rules).add(inner.attr)
    return rules, kernels


@pytest.mark.parametrize("module", [ops, losses], ids=lambda module: module.__name__)
def test_rules_use_only_functions_that_arrays_and_tensors_have(module):
    rules, kernels = names_of_xp(module)
    assert kernels
    assert sorted(name for name in rules | kernels if not hasattr(NUMPY, name)) == []
    assert sorted(name for name in rules if not hasattr(F, name)) == []


def test_rules_build_no_arrays_of_a_fixed_dtype():
    assert (names_of_xp(ops)[0] | names_of_xp(losses)[0]) & {"array", "zeros", "ones", "full", "arange", "eye"} == set()


# ---- kinks and ties, as documented --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "at", "expected"),
    [
        (F.relu, [-1, 0, 1], [0, 0, 1]),
        (F.leaky_relu, [-1, 0, 1], [0.01, 0.01, 1]),
        (np.absolute, [-2, 0, 2], [-1, 0, 1]),
        (np.sign, [-2, 0, 2], [0, 0, 0]),
        (lambda t: np.maximum(0, t), [-1, 0, 1], [0, 0, 1]),
        (lambda t: np.maximum(t, 0.0), [-1, 0, 1], [0, 0, 1]),
        (lambda t: np.maximum(t, np.zeros_like(t)), [-1, 0, 1], [0, 0, 1]),
        (lambda t: np.minimum(t, 0), [-1, 0, 1], [1, 0, 0]),
        (lambda t: np.fmax(0, t), [-1, 0, 1], [0, 0, 1]),
        (lambda t: np.fmin(t, 0), [-1, 0, 1], [1, 0, 0]),
        (lambda t: np.fmax(t, 1), [np.nan, 2, 0], [0, 1, 0]),
        (lambda t: np.maximum(t, t), [-1, 0, 1], [1, 1, 1]),
        (lambda t: np.clip(t, -1, 1), [-2, -1, 0, 1, 2], [0, 0, 1, 0, 0]),
        (np.max, [1, 3, 3], [0, 0.5, 0.5]),
        (np.min, [1, 1, 1, 3], [1 / 3, 1 / 3, 1 / 3, 0]),
        (lambda t: np.max(t, axis=1), [[1, 1], [2, 3]], [[0.5, 0.5], [0, 1]]),
        (np.max, [1, np.nan], [0, 0]),
        (np.std, [2, 2, 2], [0, 0, 0]),
        (lambda t: np.linalg.norm(t, 3), [0, 0], [0, 0]),
        (lambda t: np.linalg.norm(t, 1.5, axis=1), [[0, 0], [0, 4]], [[0, 0], [0, 1]]),
        (lambda t: np.linalg.norm(t, 0.5), [0, 4], [0, 1]),
        (np.linalg.norm, [0, 0], [0, 0]),
        (lambda t: np.linalg.norm(t, axis=1), [[0, 0], [3, 4]], [[0, 0], [0.6, 0.8]]),
        (lambda t: np.hypot(t, 0.0), [0, 2], [0, 1]),
        (np.prod, [0, 2, 3], [6, 0, 0]),
        (np.prod, [0, 0, 3], [0, 0, 0]),
        (lambda t: t**0, [-1, 0, 2], [0, 0, 0]),
        (lambda t: t**1, [-1, 0, 2], [1, 1, 1]),
        (lambda t: t**2, [-1, 0, 2], [-2, 0, 4]),
        (lambda t: t**3, [-1, 0, 2], [3, 0, 12]),
        (lambda t: np.zeros_like(t) ** t, [1, 2], [0, 0]),
        (lambda t: np.nan_to_num(t), [np.nan, np.inf, -np.inf, 1], [0, 0, 0, 1]),
        (np.nansum, [np.nan, 1], [0, 1]),
        (np.sort, [2, 1, 2, 1], [1, 1, 1, 1]),
        (lambda t: np.where(t > 0, t, 0), [-1, 0, 1], [0, 0, 1]),
        (lambda t: np.mod(t, 2), [-2, 0, 4], [1, 1, 1]),
        (lambda t: np.floor_divide(t, 2), [-2, 0, 4], [0, 0, 0]),
    ],
)
def test_kinks_and_ties(backend, f, at, expected):
    np.testing.assert_allclose(gradient(backend, f, at), np.array(expected, np.float64), rtol=1e-15, atol=0)


@pytest.mark.parametrize("f", [np.maximum, np.minimum, np.fmax, np.fmin])
def test_a_tie_between_two_tracked_operands_is_shared(backend, f):
    a, b = gradient(backend, f, [1.0, 2.0], [1.0, 3.0])
    assert a[0] == b[0] == 0.5
    assert {a[1], b[1]} == {0, 1}


def test_indices_that_come_twice_get_both_gradients(backend):
    np.testing.assert_array_equal(gradient(backend, lambda t: t[[0, 2, 0, 0]], [1, 2, 3]), [3, 0, 1])
    np.testing.assert_array_equal(gradient(backend, lambda t: np.take(t, [[1, 1]]), [1, 2, 3]), [0, 2, 0])
    np.testing.assert_array_equal(gradient(backend, lambda t: np.repeat(t, [2, 0, 1]), [1, 2, 3]), [2, 0, 1])


# ---- results without a gradient -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        *(np.floor, np.ceil, np.trunc, np.rint, np.round, np.argmax, np.argmin, np.argsort, np.any, np.all),
        *(np.isnan, np.isinf, np.isfinite, np.signbit, np.count_nonzero, np.nonzero, np.logical_not),
        *(np.zeros_like, np.ones_like, np.shape, np.ndim, np.size, np.argwhere, np.flatnonzero),
        lambda t: np.round(t, 1),
        lambda t: np.around(t, decimals=1),
        lambda t: np.argmax(t, 1),
        lambda t: np.argmax(t, axis=0, keepdims=True),
        lambda t: np.argmin(t, axis=-1),
        lambda t: np.argsort(t, axis=0, kind="stable"),
        lambda t: np.argmax(t, None),
        lambda t: np.argsort(t, None, "stable"),
        lambda t: np.round(t, np.int64(1)),
        lambda t: np.zeros_like(t, np.int32),
        lambda t: np.ones_like(t, shape=(2, 2)),
        lambda t: np.any(t, (0, 1)),
        lambda t: np.any(t, None, None, True),
        pytest.param(lambda t: np.all(t, where=t > 0), marks=differs("all(a, where=)")),
        lambda t: np.count_nonzero(t, 0),
        lambda t: np.greater(t, 0.5, dtype=bool),
        lambda t: np.floor(t, dtype=np.float64),
        lambda t: np.bincount(t[0] > 0),
        lambda t: np.bincount(t[0] > 0, minlength=3),
        pytest.param(lambda t: np.bincount([1, 1], minlength=3) + 0 * np.argmax(t), marks=host_only),
        lambda t: np.argpartition(t, 1, axis=1)[:, 1],
        lambda t: np.any(t, axis=0),
        lambda t: np.all(t, 1),
        lambda t: t.argmax(),
        lambda t: t.argmax(axis=1),
        lambda t: t == t,
        lambda t: t != 0.5,
        lambda t: t < 0,
        lambda t: 0 <= t,  # noqa: SIM300  (the reflected operator)
        lambda t: t > np.zeros_like(t[0]),
        lambda t: np.ones_like(t) >= t,
        pytest.param(lambda t: np.ones((2, 3)) >= t, marks=host_only),
        lambda t: np.equal(t, t),
        lambda t: np.greater(0, t),
        lambda t: np.logical_and(t > 0, t < 1),
        lambda t: np.logical_or(t, 0),
        lambda t: np.logical_xor(t, t),
        lambda t: np.allclose(t, t),
        lambda t: np.array_equal(t, t + 1),
        lambda t: np.isclose(t, 0.5),
        lambda t: np.searchsorted(np.ones_like(t[0]), t),
        pytest.param(lambda t: np.searchsorted([0, 1], t), marks=host_only),
        lambda t: np.full_like(t, 2.5),
        lambda t: np.result_type(t, np.float32),
        lambda t: len(t),
    ],
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_constant_derivative_gives_what_numpy_gives(backend, call, dtype):
    values = np.array([[-1.25, 0.5, 0.56], [2.0, 0.0, -0.5]], dtype)
    actual, expected = call(tracked(backend, values, dtype)), call(values)
    assert not isinstance(actual, Tensor)
    if call is np.nonzero:
        np.testing.assert_array_equal([backend.host(a) for a in actual], expected)
    elif isinstance(expected, (np.ndarray, np.generic)):
        np.testing.assert_array_equal(backend.host(actual), expected, strict=isinstance(expected, np.ndarray))
    else:
        assert actual == expected


@pytest.mark.parametrize("f", [np.floor, np.argmax, np.isnan, lambda t: t > 0])
def test_constant_derivative_of_0d(backend, f):
    assert backend.host(f(tracked(backend, 1.5))) == f(np.float64(1.5))


# ---- nothing drops silently ---------------------------------------------------------------------------------------

NO_RULE = words("""
    cumprod median percentile quantile interp diff gradient cross convolve correlate trapezoid ptp average nanmean
    polyval meshgrid partition modf frexp heaviside deg2rad sinc i0 nextafter divmod spacing linspace geomspace logspace
    copyto put place putmask apply_along_axis piecewise insert delete append resize ediff1d unwrap cov corrcoef
""")


@pytest.mark.parametrize("name", NO_RULE)
def test_a_function_without_a_rule_raises_and_is_named(backend, name):
    t = tracked(backend, [[1.0, 2.0], [3.0, 4.5]])
    calls = [(t,), (t, t), (t, 1), (t, 0, t), (t, [True], [t]), (lambda a: a, 0, t)]
    messages = []
    for args in calls:
        try:
            getattr(np, name)(*args)
        except (TypeError, ValueError) as error:
            messages.append(str(error))
    assert any(f"np.{name} has no gradient rule" in message for message in messages), messages


@pytest.mark.parametrize("name", words("inv solve det svd eigh qr cholesky pinv matrix_power slogdet"))
def test_linear_algebra_without_a_rule_raises_and_is_named(backend, name):
    t = tracked(backend, [[2.0, 0.0], [0.0, 3.0]])
    with pytest.raises(TypeError, match=rf"\b{name} has no gradient rule"):
        getattr(np.linalg, name)(*((t, t) if name == "solve" else (t, 2) if name == "matrix_power" else (t,)))


@pytest.mark.parametrize("method", ["reduce", "accumulate", "outer", "reduceat", "at"])
def test_ufunc_methods_raise_and_are_named(backend, method):
    t = tracked(backend, [1.0, 2.0])
    args = {"outer": (t, t), "reduceat": (t, [0]), "at": (t, [0], 1.0)}.get(method, (t,))
    with pytest.raises(TypeError, match=rf"np\.add\.{method} has no gradient rule"):
        getattr(np.add, method)(*args)


PLAIN_RESULTS = {
    *(name for name, f in vars(F).items() if getattr(getattr(f, "prim", None), "differentiable", True) is False),
    *words("around round shape size ndim allclose isclose array_equal array_equiv result_type can_cast empty_like"),
    *words("full_like argpartition argwhere nonzero flatnonzero isin array_repr array_str"),
    *words("array2string iscomplexobj isrealobj searchsorted digitize shares_memory may_share_memory"),
}


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("unique", np.unique),
        pytest.param("unique", lambda t: np.unique(ar=t, return_counts=True), marks=not_strict),
        ("histogram", np.histogram),
        pytest.param("histogram", lambda t: np.histogram(t.data, weights=t), marks=not_strict),
        pytest.param("histogram", lambda t: np.histogram(t.data, bins=[0, 3], weights=t), marks=not_strict),
        pytest.param("histogram", lambda t: np.histogram(t.data, [0, t[0], 3], weights=t), marks=host_only),
        pytest.param("histogram", lambda t: np.histogram([1.0, 2.0], weights=t), marks=host_only),
    ],
)
def test_floats_made_of_a_tracked_tensor_do_not_come_back_plain(backend, name, call):
    t = tracked(backend, [1.0, 2.0])
    with pytest.raises(TypeError, match=f"np.{name} has no gradient rule"):
        call(t)
    call(t.detach())


@host_only
@pytest.mark.parametrize("f", [lambda t: np.full_like(t, [t[0], 1.0]), lambda t: np.bincount(t > 0, [t[0], 1.0])])
def test_a_tracked_tensor_in_a_list_does_not_drop_either(backend, f):
    with pytest.raises(TypeError, match="untracked array"):
        f(tracked(backend, [1.0, 2.0]))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("integers", "least"), [([1, 0, 1], 0), (np.array([3, 0, 3], np.uint8), 6), ([], 2), ([], 0)])
def test_bincount_with_weights(backend, integers, least, dtype):
    """No row of the table: NumPy gives float64 for every dtype of the weights."""
    values = np.arange(1, 1 + len(integers)).astype(dtype)
    w = tracked(backend, values, dtype)
    for given in integers, Tensor(backend.array(np.array(integers, int))):
        w.grad = None
        y = np.bincount(given, weights=w, minlength=least)
        np.testing.assert_array_equal(backend.host(y.data), np.bincount(integers, weights=values, minlength=least))
        assert y.dtype == np.float64
        scale = np.arange(1.0, 1 + y.size)
        (y * y * backend.array(scale)).sum().backward()
        places = np.array(integers, int)
        np.testing.assert_array_equal(backend.host(w.grad), (2 * backend.host(y.data) * scale)[places].astype(dtype))
        assert w.grad.dtype == dtype


@pytest.mark.parametrize("module", [np, np.linalg, np.fft], ids=lambda module: module.__name__)
def test_no_numpy_function_drops_a_tracked_tensor_silently(backend, module):
    """Whatever NumPy is called with: a Tensor comes back, or an exception, or one of the results without gradient."""
    dropped = []
    for name in dir(module):
        f = getattr(module, name)
        if name.startswith("_") or inspect.isclass(f) or not (isinstance(f, np.ufunc) or hasattr(f, "_implementation")):
            continue
        t = tracked(backend, [[1.5, 0.5], [0.25, 0.75]])
        for args in (t,), (t, t), (t, 1), ([t, t],), ([t], [t]), (t, t, t):
            try:
                result = f(*args)
            except Exception:
                continue
            parts = result if isinstance(result, (tuple, list)) else [result]
            kept = all(isinstance(part, Tensor) for part in parts) and any(part.requires_grad for part in parts)
            if not kept and name not in PLAIN_RESULTS:
                dropped.append((name, len(args), type(parts[0]).__name__))
    assert dropped == []


@pytest.mark.parametrize(
    "convert",
    [
        np.asarray,
        np.array,
        np.asanyarray,
        np.ascontiguousarray,
        lambda t: np.array([t, t]),
        lambda t: np.asarray([t[0], t[1]]),
        lambda t: np.sum([t, t]),
        lambda t: np.mean([t[0], t[1]]),
        lambda t: np.add([t, t], 1),
        lambda t: np.full(2, t[0]),
        lambda t: np.ones(2).dot(t),
        lambda t: np.ones((2, 2)).__setitem__(0, t),
        lambda t: np.ones(2).__setitem__(slice(None), [t[0], t[1]]),
        lambda t: np.arange(t[0]),
        lambda t: np.r_[t, t],
        lambda t: np.vectorize(lambda x: x)(t),
    ],
)
def test_a_tracked_tensor_does_not_become_an_array(backend, convert):
    with pytest.raises(TypeError, match=r"untracked array.*\.numpy\(\).*\.detach\(\)"):
        convert(tracked(backend, [1.0, 2.0]))


@host_only  # to the host no Tensor comes silently: test_devices
def test_an_untracked_tensor_becomes_an_array(backend):
    t = Tensor(backend.array(np.array([1.0, 2.0])))
    assert backend.host(np.asarray(t)).tolist() == [1, 2]
    assert backend.host(np.asarray(tracked(backend, [1.0]).detach())).tolist() == [1]


def test_in_place_operators_on_arrays_raise(backend):
    t = tracked(backend, [1.0, 2.0])
    # CuPy does not ask a foreign operand
    message = r"in-place operator.*write a new name" if backend.name == "numpy" else "Unsupported type .*Tensor"
    for operator in "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__", "__imod__":
        array = backend.array(np.ones(2))
        with pytest.raises(TypeError, match=message):
            getattr(array, operator)(t)
        assert backend.host(array).tolist() == [1, 1]


@pytest.mark.parametrize(
    "call",
    [
        lambda t, out: np.add(t, t, out=out),
        lambda t, out: np.exp(t, out=out),
        lambda t, out: np.exp(t, out),
        lambda t, out: np.exp(np.ones(2), out=t),
        lambda t, out: np.sum(t, axis=0, out=out),
        lambda t, out: np.max(t, axis=0, out=out),
        lambda t, out: np.clip(t, 0, 1, out=out),
        lambda t, out: np.dot(t, t, out=out),
        lambda t, out: np.concatenate([t, t], out=out),
        lambda t, out: np.stack([t, t], out=out),
        lambda t, out: np.take(t, [0, 1], out=out),
        lambda t, out: np.take(t, [0, 1], axis=0, out=out),
        lambda t, out: np.argmax(t, axis=0, out=out),
        lambda t, out: np.argmin(t, 0, out),
        lambda t, out: np.round(t, 1, out),
        lambda t, out: np.around(t, out=out),
        lambda t, out: np.any(t, axis=0, out=out),
        lambda t, out: np.matmul(t, t, out=out),
        lambda t, out: np.einsum("i,i", t, t, out=out),
        lambda t, out: t.sum(out=out),
    ],
)
def test_out_raises_and_says_what_to_write(backend, call):
    out = backend.array(np.full(2, 7.0))
    with pytest.raises(TypeError, match="out="):
        call(tracked(backend, [1.0, 2.0]), out)
    assert backend.host(out).tolist() == [7, 7]


@pytest.mark.parametrize("f", [np.exp, np.add])
def test_where_of_a_ufunc_raises_and_names_where(backend, f):
    t = tracked(backend, [1.0, 2.0])
    with pytest.raises(TypeError, match=r"where\(mask"):
        f(*[t] * f.nin, where=np.array([True, False]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: np.sum(t, where=t > 1), r"np.sum: where= is not supported on Tensors; .*t\[mask\].*np.where"),
        (lambda t: np.mean(t, where=[True, False]), "np.mean: where= is not supported"),
        (lambda t: np.max(t, initial=3.0), "np.max: initial= is not supported on Tensors; .*np.maximum"),
        (lambda t: np.matmul(t, t, axes=[0, 0, 0]), "np.matmul: axes= is not supported on Tensors$"),
        (lambda t: np.multiply(t, 2.5, dtype=int), "np.multiply: dtype=int64 .*astype"),
    ],
)
def test_an_argument_that_tensors_do_not_take_is_named(backend, call, message):
    with pytest.raises(TypeError, match=message):
        call(tracked(backend, [1.0, 2.0]))


def test_item_assignment_raises_and_says_what_to_write(backend):
    with pytest.raises(TypeError, match=r"where.*concatenate"):
        tracked(backend, [1.0, 2.0])[0] = 5.0


# ---- spellings ----------------------------------------------------------------------------------------------------


def test_split_gives_a_list_of_tensors_that_share_one_parent(backend):
    t = tracked(backend, np.arange(6.0))
    parts = np.split(t, 3)
    assert isinstance(parts, list)
    assert [p.shape for p in parts] == [(2,)] * 3
    (parts[0].sum() + 10 * parts[2].sum()).backward()
    assert backend.host(t.grad).tolist() == [1, 1, 0, 0, 10, 10]
    assert [p.shape for p in np.array_split(t, 4)] == [p.shape for p in np.array_split(np.arange(6.0), 4)]


def test_atleast_of_several_gives_all(backend):
    a, b = np.atleast_2d(tracked(backend, 1.0), tracked(backend, [1.0, 2.0]))
    assert (a.shape, b.shape) == ((1, 1), (1, 2))


def test_python_sum_and_iteration(backend):
    t = tracked(backend, [[1.0, 2.0], [3.0, 4.0]])
    (sum(t) * backend.array(np.array([1.0, 10.0]))).sum().backward()
    assert backend.host(t.grad).tolist() == [[1, 10], [1, 10]]


@pytest.mark.parametrize(
    "call",
    [
        lambda t: np.where(True, t, 0),
        lambda t: np.maximum(2, t),
        lambda t: np.clip(t, 2, 5),
        lambda t: np.select([t > 2], [t], 3),
        lambda t: np.take(t, (0, 1)),
    ],
)
def test_numbers_are_operands_as_in_numpy(backend, call):
    equals_numpy(backend, call)


HOST_OPERANDS = [  # lists, arrays, and numbers where they become arrays
    lambda t: np.stack([t[0], 1.0]),
    lambda t: np.hstack([t, 2.0, t[0]]),
    lambda t: np.vstack([t, [3.0, 4.0]]),
    lambda t: np.concatenate([t, [3.0, 4.0], (5.0,), np.ones(1)]),
    lambda t: np.column_stack([t, [1, 2]]),
    lambda t: np.outer(t, [1, 2]),
    lambda t: np.outer(t, 2),
    lambda t: np.kron(2, t),
    lambda t: np.kron([1, 2], t),
    lambda t: np.dot([1, 2], t),
    lambda t: np.inner(t, (1, 2)),
    lambda t: np.matmul([[1, 2], [3, 4]], t),
    lambda t: np.tensordot([[1, 2], [3, 4]], t, 1),
    lambda t: np.einsum("i,i", [1, 2], t),
    lambda t: np.where([True, False], t, [1, 2]),
    lambda t: np.select([[True, False]], [t], 3),
    lambda t: np.maximum([0, 9], t),
    lambda t: np.clip(t, [0, 2], 5),
    lambda t: np.subtract([1, 2], t, dtype=np.float64),
    lambda t: t + [1, 2],  # noqa: RUF005
    lambda t: [1, 2] * t,
    lambda t: (1, 2) - t,
    lambda t: t @ [1, 2],
    lambda t: [[1, 2], [3, 4]] @ t,
]


@host_only
@pytest.mark.parametrize("call", HOST_OPERANDS)
def test_host_operands_give_what_numpy_gives(backend, call):
    equals_numpy(backend, call)


@pytest.mark.parametrize("call", HOST_OPERANDS)
def test_host_operands_beside_a_tensor_of_a_device_are_one_clear_error(device, call):
    t = Tensor(np.array([1.5, 2.5], np.float32), device=device)
    with pytest.raises(ValueError, match=r"^\w+: operands on different devices: .*; move one with \.to\(device\)$"):
        call(t)


def equals_numpy(backend, call):
    values = np.array([1.5, 2.5], np.float32)
    t = tracked(backend, values, np.float32)
    y, expected = call(t), call(values)
    assert (y.dtype, y.shape) == (expected.dtype, expected.shape)
    np.testing.assert_allclose(backend.host(y.data), expected)
    y.backward(backend.array(np.ones(y.shape)))
    assert t.grad.dtype == np.float32


def test_nan_to_num_of_integers(backend):
    assert backend.host(np.nan_to_num(Tensor(backend.array(np.arange(3)))).data).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "call",
    [
        lambda xp, a: xp.sum(a, dtype=np.float64),
        lambda xp, a: xp.mean(a, 0, np.float64),
        lambda xp, a: xp.prod(a, axis=0, dtype=np.float16),
        lambda xp, a: xp.var(a, dtype=np.float64),
        lambda xp, a: xp.cumsum(a, 0, np.float64),
        lambda xp, a: xp.trace(a, dtype=np.float64),
        lambda xp, a: xp.concatenate([a, a], dtype=np.float64),
        lambda xp, a: xp.stack([a, a], dtype=np.float16),
        lambda xp, a: xp.vstack([a, a], dtype=np.float64),
        lambda xp, a: xp.add(a, a, dtype=np.float64),
        lambda xp, a: xp.multiply(a, 2, dtype=np.float64),
        lambda xp, a: xp.power(a, 2, dtype=np.float16),
        lambda xp, a: xp.full_like(a, xp.sum(a), np.float64),
        lambda xp, a: xp.bincount([1, 0], a[0]),
        lambda xp, a: a.sum(dtype=np.float64),
        lambda xp, a: a.astype(np.float64),
        lambda xp, a: a.astype("float16"),
    ],
)
def test_dtype_argument(backend, call):
    values = np.array([[1.5, 0.25], [2.0, 3.0]], np.float32)
    t = tracked(backend, values, np.float32)
    y, expected = call(np, t), call(np, values)
    assert (y.dtype, y.shape) == (expected.dtype, expected.shape)
    np.testing.assert_allclose(backend.host(y.data), expected)
    y.backward(backend.array(np.ones(y.shape)))
    assert t.grad.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    "f",
    [
        lambda t: t + 1,
        lambda t: 2.5 * t,
        lambda t: t / 3,
        lambda t: 1 / (1 + np.exp(-t)),
        lambda t: t**2 + t**0.5,
        lambda t: np.maximum(0, t),
        lambda t: np.where(t > 1, t, 0.0),
        lambda t: t * (t > 1),
        lambda t: np.mean(t) - np.sum(t) / t.size,
        lambda t: t.reshape(-1)[0] * 2,
        lambda t: math.pi * t,
        lambda t: True * t,
    ],
)
def test_python_numbers_and_masks_do_not_widen(backend, dtype, f):
    t = tracked(backend, [1.0, 2.0], dtype)
    y = f(t)
    assert y.dtype == dtype
    y.backward(backend.array(np.ones(y.shape, dtype)))
    assert t.grad.dtype == dtype


@pytest.mark.parametrize(
    "other", [np.float64(2), np.int64(2), np.arange(1, 3), np.ones(2), np.ones(2, bool), np.float16(2), 2]
)
def test_numpy_scalars_and_arrays_promote_as_in_numpy(backend, other):
    values = np.array([1.0, 2.0], np.float32)
    there = backend.array(other) if isinstance(other, np.ndarray) else other
    for f in np.multiply, np.add, np.true_divide, np.maximum, lambda a, b: b * a:
        t = tracked(backend, values, np.float32)
        y, expected = f(t, there), f(values, other)
        assert y.dtype == expected.dtype
        np.testing.assert_array_equal(backend.host(y.data), expected)
        y.sum().backward()
        assert t.grad.dtype == np.float32


def ones(t, n):
    return np.ones_like(t, shape=n)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda t: np.sum(t, axis=2), IndexError),
        (lambda t: np.max(t, axis=-3), IndexError),
        (lambda t: np.mean(t, axis=(0, 0)), ValueError),
        (lambda t: np.cumsum(t, axis=2), IndexError),
        (lambda t: np.flip(t, axis=5), IndexError),
        (lambda t: np.roll(t, 1, axis=5), IndexError),
        (lambda t: np.swapaxes(t, 0, 2), IndexError),
        (lambda t: np.moveaxis(t, 0, 2), IndexError),
        (lambda t: np.moveaxis(t, [0, 0], [0, 1]), ValueError),
        (lambda t: np.moveaxis(t, [0, 1], [0]), ValueError),
        (lambda t: np.transpose(t, (0, 0)), ValueError),
        (lambda t: np.transpose(t, (0,)), ValueError),
        (lambda t: np.expand_dims(t, (0, 0)), ValueError),
        (lambda t: np.expand_dims(t, 4), IndexError),
        (lambda t: np.squeeze(t, axis=0), ValueError),
        (lambda t: np.reshape(t, (4, 2)), ValueError),
        (lambda t: np.reshape(t, (-1, -1)), ValueError),
        (lambda t: np.reshape(t, 2.5), TypeError),
        (lambda t: np.broadcast_to(t, (2, 4)), ValueError),
        (lambda t: np.broadcast_to(t, (-1, 2, 3)), ValueError),
        (lambda t: np.concatenate([]), ValueError),
        (lambda t: np.concatenate([t, t[0]]), ValueError),
        (lambda t: np.concatenate([t, t[:, :2]]), ValueError),
        (lambda t: np.concatenate([t, t], axis=2), IndexError),
        (lambda t: np.stack([t, t[0]]), ValueError),
        (lambda t: np.stack([t, t], axis=4), IndexError),
        (lambda t: np.split(t, 3), ValueError),
        (lambda t: np.split(t, 2, axis=2), IndexError),
        (lambda t: np.repeat(t, [1, 2, 3], axis=0), ValueError),
        (lambda t: np.tile(t, -1), ValueError),
        (lambda t: np.pad(t, -1), ValueError),
        (lambda t: np.pad(t, (1, 2, 3)), ValueError),
        (lambda t: np.diag(t[0, 0]), ValueError),
        (lambda t: np.diagonal(t[0]), ValueError),
        (lambda t: np.take(t, 6), IndexError),
        (lambda t: np.take(t, 2, axis=0), IndexError),
        (lambda t: t[2], IndexError),
        (lambda t: t[0, 0, 0], IndexError),
        (lambda t: t[[0, 2]], IndexError),
        (lambda t: t[1.0], IndexError),
        (lambda t: t["a"], IndexError),
        (lambda t: np.add(t, ones(t, 2)), ValueError),
        (lambda t: np.matmul(t, t), ValueError),
        pytest.param(lambda t: np.matmul(t, 2.0), ValueError, marks=differs("matmul(a, 2.0)")),
        (lambda t: np.dot(t, ones(t, 2)), ValueError),
        (lambda t: np.inner(t, ones(t, 2)), ValueError),
        (lambda t: np.tensordot(t, t, 1), ValueError),
        (lambda t: np.vdot(t, ones(t, 2)), ValueError),
        (lambda t: np.einsum("ij,jk", t, t), ValueError),
        (lambda t: np.einsum("ii", t), ValueError),
        (lambda t: np.einsum("i", t), ValueError),
        (lambda t: np.einsum("ij->k", t), ValueError),
        (lambda t: np.einsum("ij->iij", t), ValueError),
        (lambda t: np.einsum("...i->i", t), ValueError),
        (lambda t: np.einsum("...i,i", t, ones(t, 2)), ValueError),
        (lambda t: np.vecdot(t, ones(t, 1)), ValueError),
        pytest.param(lambda t: np.vecdot(t, 2.0), ValueError, marks=host_only),
        (lambda t: np.matrix_transpose(t[0]), ValueError),
        (lambda t: np.take_along_axis(t, np.array([1]), 1), ValueError),
        (lambda t: np.take_along_axis(t, np.array([[1]]), None), ValueError),
        (lambda t: np.take_along_axis(t, np.array([[3]]), 1), IndexError),
        (lambda t: np.broadcast_to(t[:1, :1], (3,)), ValueError),
        (lambda t: np.full_like(t[0], t[0, :2]), ValueError),
        (lambda t: np.bincount([0, 1], weights=t[0]), ValueError),
        (lambda t: np.bincount([-1, 1, 1], weights=t[0]), ValueError),
        (lambda t: np.bincount(t[0], weights=t[0]), TypeError),
        (lambda t: np.pad(t, 1.5), TypeError),
        (lambda t: np.argmax(t, 0, None, 1), TypeError),
        (lambda t: np.einsum("ij,ij", t), ValueError),
        (lambda t: np.max(t[:0]), ValueError),
        (lambda t: np.linalg.norm(t[None], 2), ValueError),
        (lambda t: np.rot90(t[0]), ValueError),
        (lambda t: np.rot90(t, axes=(0, 5)), ValueError),
        (lambda t: np.rot90(t, axes=(0, 0)), ValueError),
        (lambda t: np.select([t > 0], []), ValueError),
        (lambda t: np.fliplr(t[0]), (ValueError, IndexError)),
        (lambda t: np.array_split(t, 0), ValueError),
        (lambda t: np.clip(t, ones(t, 2), 3), ValueError),
        (lambda t: np.where(ones(t, 2) > 0, t, 0), ValueError),
    ],
)
def test_what_numpy_refuses_is_refused(backend, call, error):
    with pytest.raises(error):
        call(np.arange(1.0, 7.0).reshape(2, 3))
    with pytest.raises(error) as caught:
        call(tracked(backend, np.arange(1.0, 7.0).reshape(2, 3)))
    assert "on different devices" not in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda t: np.reshape(t, -1, order="F"),
        lambda t: np.take(t, [0], mode="clip"),
        lambda t: np.pad(t, 1, mode="linear_ramp"),
        lambda t: np.pad(t, 1, mode="reflect", reflect_type="odd"),
        lambda t: np.pad(t, 1, constant_values=t[0, 0]),
        lambda t: np.linalg.norm(t, "nuc"),
        lambda t: np.linalg.norm(t[0], 0),
        lambda t: np.einsum(t, [0, 1]),
        lambda t: np.where(t),
        lambda t: np.nan_to_num(t, copy=False),
        lambda t: np.sum(t, where=t > 0),
        lambda t: np.sum(t, initial=3.0),
        lambda t: np.exp(t, casting="no"),
        lambda t: t + "a",
        lambda t: t * None,
        lambda t: t @ {"a": 1},
    ],
)
def test_what_has_no_rule_raises_a_type_error(backend, call):
    with pytest.raises(TypeError):
        call(tracked(backend, np.ones((2, 3))))


# ---- the limits of floats -----------------------------------------------------------------------------------------

_LABELS = np.array([0, 2, 1])


def shares(t):
    return place(np.array([[0.2, 0.3, 0.5]] * 3, t.dtype), t.data)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "f",
    [
        *(F.sigmoid, F.tanh, F.softplus, F.relu, F.silu, F.gelu, F.softmax, F.log_softmax, F.logsumexp),
        lambda t: F.logsumexp(t, axis=1),
        lambda t: np.logaddexp(t, -t),
        lambda t: F.leaky_relu(t),
        lambda t: softmax_cross_entropy(t, _LABELS),
        lambda t: softmax_cross_entropy(t, _LABELS, axis=0),
        lambda t: softmax_cross_entropy(t, shares(t)),
        lambda t: mse(t / 1e4, t / 1e4 + 1),
    ],
)
def test_stable_at_the_ends(backend, f, dtype):
    values = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [1e4, 1e4, -1e4]], dtype)
    t = tracked(backend, values, dtype)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        y = f(t)
        y.backward(backend.array(np.full(y.shape, -1.5, dtype)))
    assert y.dtype == t.grad.dtype == dtype
    assert np.isfinite(backend.host(y.data)).all()
    assert np.isfinite(backend.host(t.grad)).all()


def test_tails_keep_their_relative_accuracy(backend):
    """Where the derivative is tiny it is still right to the last digits, not merely near zero."""
    for f, x, expected in [
        (F.sigmoid, -700.0, math.exp(-700)),
        (F.softplus, -700.0, math.exp(-700)),
        (lambda t: np.logaddexp(t, 0.0), -700.0, math.exp(-700)),
        (F.log_softmax, [-50.0], 0.0),
        (np.log1p, 1e-18, 1.0),
        (np.expm1, 1e-18, 1.0),
        (np.sqrt, 1e-300, 0.5e150),
        (np.log, 1e-300, 1e300),
        (np.arcsinh, 1e300, 1e-300),
        (np.arctanh, 1 - 2**-50, 1 / (2**-50 * (2 - 2**-50))),
        (np.arcsin, 1 - 2**-50, 1 / math.sqrt(2**-50 * (2 - 2**-50))),
        (lambda t: np.hypot(t, 1e300), 1e300, math.sqrt(0.5)),
        (lambda t: np.arctan2(t, 1e300), 1e300, 0.5e-300),
    ]:
        np.testing.assert_allclose(gradient(backend, f, x), expected, rtol=1e-14)


def test_cross_entropy_of_masked_classes(backend):
    """Logits of -inf are classes that cannot be: no NaN, and no gradient."""
    t = tracked(backend, [[0.0, -np.inf, 0.0]])
    loss = softmax_cross_entropy(t, np.array([0]))
    loss.backward()
    assert float(loss) == pytest.approx(math.log(2))
    np.testing.assert_allclose(backend.host(t.grad), [[-0.5, 0, 0.5]])


# ---- losses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["u1", "i4", "i8", "u8"])
def test_labels_of_any_integer_dtype(backend, kind):
    t = tracked(backend, [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    labels = np.array([2, 0], kind)
    for given in backend.array(labels), Tensor(backend.array(labels)), labels.tolist():
        loss = (math.log(1 + math.exp(-1) + math.exp(-2)) + math.log(3)) / 2
        assert float(softmax_cross_entropy(t, given)) == pytest.approx(loss)


@pytest.mark.parametrize(
    ("labels", "words"),
    [([0, 3], ["label 3", "row 1", "3 classes"]), ([-1, 0], ["label -1", "row 0", "3 classes"])],
)
def test_a_label_out_of_range_is_named(backend, labels, words):
    t = tracked(backend, np.zeros((2, 3)))
    with pytest.raises(IndexError) as caught:
        softmax_cross_entropy(t, np.array(labels))
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    "target",
    [np.array([0]), np.array([[0], [1]]), np.zeros((2, 4)), np.zeros(2), 1, 0.5],
)
def test_a_target_of_the_wrong_shape_is_refused(backend, target):
    with pytest.raises(ValueError, match=r"(do not fit|must have the shape of the) logits.* \(2, 3\)"):
        softmax_cross_entropy(tracked(backend, np.zeros((2, 3))), target)


def test_an_unknown_reduction_is_refused(backend):
    for loss in mse, softmax_cross_entropy:
        with pytest.raises(ValueError, match="'mean', 'sum' or 'none'"):
            loss(tracked(backend, np.zeros((1, 2))), backend.array(np.full((1, 2), 0.5)), reduction="avg")


# ---- the namespaces agree -----------------------------------------------------------------------------------------


def test_every_function_that_numpy_has_dispatches_to_ours():
    for name, f in vars(F).items():
        if not name.startswith("_") and callable(getattr(np, name, None)) and name not in ("identity", "power"):
            assert numpy_api.TABLE[getattr(np, name)] is f or getattr(np, name) is getattr(np, f.__name__), name


def positions(f):
    """The names of the parameters that may be given by position or by name."""
    kinds = [(p.name, p.kind) for p in inspect.signature(f).parameters.values()]
    return [name for name, kind in kinds if kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]


def readable(name):
    f = getattr(np, name, None)
    return f is not None and not isinstance(f, np.ufunc) and name not in ("where", "nan_to_num") and bool(positions(f))


@pytest.mark.parametrize("name", [name for name in NAMES if readable(name)])
def test_signatures_are_numpys(name):
    """The parameters have NumPy's names and places, but for those that have no meaning in a graph."""
    without = {"initial", "where", "like", "subok", "sorted", "newshape", "order", "copy", "mean", "correction"}
    theirs, mine = ([p for p in positions(f) if p not in without] for f in (getattr(np, name), getattr(F, name)))
    assert mine[: len(theirs)] == theirs[-len(mine) :] if name == "reshape" else mine[: len(theirs)] == theirs


def test_the_drop_in_namespace_computes_on_tensors(backend):
    cp = importlib.import_module("tinygrad_mnist.numpy")
    w = tracked(backend, [[1.0, 2.0], [3.0, 4.0]])
    loss = cp.mean(cp.maximum(0, cp.dot(w, backend.array(np.array([1.0, -1.0]))) + 2))
    loss.backward()
    assert backend.host(w.grad).tolist() == [[0.5, -0.5], [0.5, -0.5]]
    assert backend.host(cp.zeros(2)).tolist() == [0, 0]


def test_the_package_has_the_functions_it_promises():
    for name in words("softmax_cross_entropy mse grad value_and_grad vjp jvp jacobian hessian hvp primitive no_grad"):
        assert callable(getattr(tinygrad_mnist, name))
