"""The strict double of CuPy: alone, and expression by expression against the real wheel on the pretend device."""

import ast
import collections
import contextlib
import copy
import datetime
import decimal
import enum
import fractions
import gc
import inspect
import json
import math
import operator
import pickle
import re
import subprocess
import sys
import types
import warnings
import weakref
from pathlib import Path

import numpy as np
import pretend_gpu
import pytest

from tinygrad_mnist.testing import cupy_api, strict

xp = strict.xp
API = json.loads(cupy_api.SNAPSHOT.read_text(encoding="utf-8"))
PROBES = Path(__file__).with_name("strict_probes.txt")  # one expression a line, in sections


# ---- what the expressions are made of


class Told(tuple):
    """What a foreign class was told: it is the outcome."""


def class_of(value, xp):
    return "device" if isinstance(value, xp.ndarray) else type(value).__name__


def foreign(xp):
    """Objects of other classes, by what they have for NumPy, for Python's operators, and for CuPy."""

    def tell(name):
        return lambda self, *args: Told((name, *(class_of(arg, xp) for arg in args)))

    def named(name, **attributes):
        return type(name, (), attributes)

    def ufunc(self, function, method, *args, **kwargs):
        return Told((function.__name__, method, *(class_of(arg, xp) for arg in args), *sorted(kwargs)))

    def function(self, f, classes, args, kwargs):
        return Told((f.__name__, *(class_of(arg, xp) for arg in args), *sorted(kwargs)))

    def kernel(self, kernel, *args, **kwargs):
        return Told((kernel.name, *(class_of(arg, xp) for arg in args), *sorted(kwargs)))

    operators = {name: tell(name) for name in ("__radd__", "__rsub__", "__rmul__", "__rmatmul__", "__mul__", "__lt__")}
    methods = {name: lambda self, *args, **kwargs: Told((args, *sorted(kwargs))) for name in ("sum", "max", "reshape")}
    x = xp.asarray(np.array([[0.5, 1.5, -2.0], [3.0, -1.0, 0.25]], "f4"))
    return {
        "T": named("T", __array_priority__=1000, __array_ufunc__=ufunc, __array_function__=function)(),  # as our Tensor
        "P": named("P", __array_priority__=1000, **operators)(),
        "L": named("L", __array_priority__=10, **operators)(),
        "N": named("N", __array_ufunc__=None, **operators)(),
        "U": named("U", __array_ufunc__=lambda self, *args, **kwargs: NotImplemented, **operators)(),
        "R": named("R", **operators)(),
        "E": named("E")(),
        "Q": named("Q", __eq__=tell("__eq__"), __hash__=None)(),
        "S": named("S", **methods)(),
        "W": named("W", __array__=lambda self, dtype=None, copy=None: np.ones(3, "f4"))(),
        "O": named("O", __cupy_override_elementwise_kernel__=kernel)(),
        "G": named("G", __cupy_get_ndarray__=lambda self: x, shape=x.shape, dtype=x.dtype)(),
        "D": x.view(type("D", (xp.ndarray,), {})),
        "Z": np.ones((2, 3), "f4").view(type("Z", (np.ndarray,), {})),
        "M": np.ma.masked_array(np.ones(3), [1, 0, 0]),
        "IE": enum.IntEnum("IE", ["one"]).one,
        "FS": type("FS", (float,), {})(2),
        "FR": fractions.Fraction(1, 2),
        "DE": decimal.Decimal(2),
        "DT": datetime.date(2020, 1, 1),
    }


def assert_(condition):
    assert condition


def operands(xp, cupyx):
    """The names in the expressions, fresh."""

    def array(values, dtype):
        return xp.asarray(np.array(values, dtype))

    return {
        "x": array([[0.5, 1.5, -2.0], [3.0, -1.0, 0.25]], "f4"),
        "p": array([[0.5, 1.5, 2.0], [3.0, 1.0, 0.25]], "f4"),
        "q": array(np.arange(9).reshape(3, 3) - 2.5, "f4"),
        "w": array(np.arange(12).reshape(3, 4) / 4, "f4"),
        "v": array([0.5, -1, 2], "f4"),
        "s": array(0.5, "f4"),
        "e": array(np.zeros((0, 3)), "f4"),
        "d": array([0.5, -1, 2], "f8"),
        "h": array([0.5, 1, -2], "f2"),
        "c": array([1 + 2j, 0, -1j], "c8"),
        "i": array([1, 0, 1], "i8"),
        "k": array([3, 1, 2], "i4"),
        "b": array([1, 0, 255], "u1"),
        "m": array([[1, 0, 1], [0, 1, 0]], "?"),
        "n": np.array([[1, 2, 3], [4, 5, 6]], "f4"),
        "K": xp.ElementwiseKernel,
        **foreign(xp),
        **{module.__name__: module for module in (copy, json, math, operator, pickle, weakref)},
        "xp": xp,
        "cupyx": cupyx,
        "np": np,
        "assert_": assert_,
    }


# ---- what comes out of them


class Outcome(collections.namedtuple("Outcome", "kind value h2d d2h sync")):
    """`kind`: "raises" with the name of the exception, or "gives"; and what passed between host and device."""

    def __str__(self):
        return f"{self.kind} {self.value}; h2d {self.h2d}, d2h {self.d2h}, sync {self.sync}"


def plain(value, xp):
    """A value without its library: arrays and scalars as (where, dtype, array), others by their class and value."""
    if isinstance(value, xp.ndarray):
        where = "device" if type(value) is xp.ndarray else type(value).__name__
        return where, value.dtype.str, value.get()
    if isinstance(value, (np.ndarray, np.generic)):
        return type(value).__name__, value.dtype.str, np.array(value)
    if isinstance(value, Told):
        return "told", *value
    if isinstance(value, dict):
        return {key: plain(part, xp) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value).__name__, *(plain(part, xp) for part in value)
    if isinstance(value, type):
        return "class", value.__name__
    if isinstance(value, np.dtype):
        return "dtype", value.str
    simple = (bool, int, float, complex, str, bytes, type(None))
    return type(value).__name__, value if isinstance(value, simple) else None


def alike(a, b):
    """Whether two plain values are the same, floats up to their last bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray):
        if a.dtype.kind not in "fc" or a.dtype != b.dtype or a.shape != b.shape:
            return a.dtype == b.dtype and np.array_equal(a, b)
        tolerance = (2 if a.dtype.char == "e" else 16) * float(np.finfo(a.dtype).eps)
        return np.allclose(a.astype("c16"), b.astype("c16"), tolerance, tolerance, equal_nan=True)
    if isinstance(a, (float, complex)):
        return alike(np.asarray(a), np.asarray(b))
    return a == b


def run(code, xp, cupyx, watch):
    """The outcome of an expression, or of statements and a last expression. A warning is an error, as everywhere."""
    tree = ast.parse(code)
    last = tree.body.pop().value if isinstance(tree.body[-1], ast.Expr) else ast.Constant(None, lineno=1, col_offset=0)
    names = operands(xp, cupyx)
    with warnings.catch_warnings(), watch() as count:
        warnings.simplefilter("error")
        try:
            exec(compile(tree, "probe", "exec"), names)
            value = eval(compile(ast.Expression(last), "probe", "eval"), names)
        except Exception as error:
            return Outcome("raises", type(error).__name__, *count())
        passed = count()
    return Outcome("gives", plain(value, xp), *passed)


@contextlib.contextmanager
def watch_the_double():
    with strict.recording() as events:

        def count():
            kinds = collections.Counter(event.kind for event in events)
            unblocked = sum(event.what == "get(blocking=False)" for event in events)
            return kinds["h2d"], kinds["d2h"], kinds["d2h"] - unblocked + kinds["sync"]

        yield count


@contextlib.contextmanager
def watch_the_pretend_gpu():
    with pretend_gpu.record() as events:

        def count():
            kinds = pretend_gpu.counts(events)
            return kinds["h2d"], kinds["d2h"], kinds["sync"] + kinds["event_sync"]

        yield count


# ---- comparison with CuPy


def sections():
    """The expressions in the table, by section."""
    found = {}
    for line in PROBES.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            name = line[2:]
        elif line:
            found.setdefault(name, []).append(line)
    return found


SECTIONS = sections()

RACE = "reads what it writes: the order of a GPU's threads would decide"
STRICTER = "silently wrong in CuPy: the double raises"
EXCEPTIONS = {  # where the double does otherwise than CuPy, and why
    "xp.add.at(v, i, v); v": RACE,
    "xp.add.at(x, (slice(None), i), x); x": RACE,
    "xp.add.at(i, i, 1.5); i": RACE,
    "K('T g', 'T p', 'p += g')(x.T, x.reshape(3, 2)); x": RACE,
    "K('T x', 'T y', 'y += x')(x, x[::-1])": RACE,
    "xp.pad(n, 1)": "refused both times: a host array is a TypeError in the double",
    **dict.fromkeys(SECTIONS["where CuPy is silently wrong"], STRICTER),
}
UNCOMPARED = {  # what the pretend device cannot run: g++ does not compile these kernels of CuPy's
    "xp.round(i, -1)",
    "xp.sinc(x)",
    "xp.i0(v)",
}


@pytest.fixture(scope="module")
def cupy():
    try:
        return pretend_gpu.load()
    except pretend_gpu.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("section", SECTIONS)
def test_the_double_does_what_cupy_does(cupy, section):
    import cupyx

    differences = []
    for code in [code for code in SECTIONS[section] if code not in UNCOMPARED]:
        theirs = run(code, cupy, cupyx, watch_the_pretend_gpu)
        ours = run(code, xp, strict.cupyx, watch_the_double)
        if alike(theirs, ours) == (code in EXCEPTIONS):
            differences.append(f"{code}\n    CuPy:   {theirs}\n    double: {ours}")
    assert not differences, "\n".join(differences)


def test_the_table_is_large_and_its_exceptions_are_few():
    probes = [code for codes in SECTIONS.values() for code in codes]
    assert len(probes) == len({*probes}) >= 2400
    assert len(SECTIONS["foreign"]) >= 300
    assert len({*EXCEPTIONS} & {*probes}) == len(EXCEPTIONS) <= 15
    assert len(UNCOMPARED & {*probes}) == 3


def test_every_function_and_method_of_the_double_is_in_the_table():
    text = PROBES.read_text(encoding="utf-8")
    modelled = [f"xp.{name}" for name in [*API["functions"], *API["ufuncs"]] if name not in strict.UNMODELLED]
    modelled += [f".{name}" for name in API["attributes"] if name in vars(strict.ndarray)]
    assert [name for name in modelled if not re.search(rf"{re.escape(name)}\b", text)] == []


@pytest.mark.parametrize(
    ("code", "broken"),
    [
        ("xp.exp(x)", lambda a: xp.exp2(a)),  # values
        ("xp.exp(x)", lambda a: xp.exp(a) * (1 + 1e-5)),  # in the last digits
        ("xp.exp(x)", lambda a: xp.exp(a.astype("f8"))),  # dtype
        ("xp.exp(x)", lambda a: xp.exp(a)[None]),  # shape
        ("xp.exp(x)", lambda a: xp.exp(a).get()),  # on the host
        ("xp.exp(x)", lambda a: (xp.exp(a), bool(a[0, 0]))[0]),  # a wait
        ("xp.exp(x)", lambda a: xp.exp(xp.asarray(a.get()))),  # transfers
        ("xp.exp(x)", lambda a: xp.exp(a, where=True)),  # an error
        ("xp.exp(n)", lambda a: xp.exp(xp.asarray(a))),  # no error
        ("xp.exp(n)", lambda a: a.foo),  # another error
        ("xp.exp(T)", lambda a: Told(["exp"])),  # another answer to a foreign object
    ],
)
def test_a_planted_difference_is_noticed(code, broken):
    other = types.SimpleNamespace(**{**vars(xp), "exp": broken})
    ours = run(code, xp, strict.cupyx, watch_the_double)
    assert alike(ours, run(code, xp, strict.cupyx, watch_the_double))
    assert not alike(ours, run(code, other, strict.cupyx, watch_the_double))


# ---- the double alone: mistakes that a GPU would punish, and how they are caught


def evaluate(code):
    """The value of an expression on the double."""
    return eval(code, operands(xp, strict.cupyx))


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        # names and keywords that NumPy has and CuPy has not
        ("xp.block([x])", AttributeError, "'cupy' has no attribute 'block' \\(CuPy 14"),
        ("xp.errstate()", AttributeError, "errstate"),
        ("xp.insert(v, 0, 1)", AttributeError, "insert"),
        ("xp.linalg.vector_norm(x)", AttributeError, "'cupy.linalg' has no attribute 'vector_norm'"),
        ("x.resize(6)", AttributeError, "'cupy.ndarray' object has no attribute 'resize'"),
        ("x.ctypes", AttributeError, "ctypes"),
        ("x.sum(where=m)", TypeError, "unexpected keyword argument 'where'"),
        ("xp.sum(x, initial=0)", TypeError, "unexpected keyword argument 'initial'"),
        ("xp.exp(x, where=m)", TypeError, "Wrong arguments"),
        ("xp.exp(x, order='C')", TypeError, "Wrong arguments"),
        ("xp.einsum('ij->i', x, out=v)", TypeError, "did not understand the following kwargs: \\['out'\\]"),
        ("xp.take(x, i, mode='clip')", TypeError, "unexpected keyword argument 'mode'"),
        ("x.std(correction=1)", TypeError, "unexpected keyword argument 'correction'"),
        ("x.astype('f8', casting='safe')", TypeError, "casting is not supported"),
        ("xp.reshape(x, shape=6)", TypeError, "unexpected keyword argument 'shape'"),
        ("xp.maximum.reduce(x)", NotImplementedError, "maximum.reduce"),
        ("xp.multiply.at(v, i, 2)", NotImplementedError, "multiply.at"),
        ("xp.add.at(b, i, 1)", TypeError, "cupy.add.at does not support uint8"),
        # host arrays among device arrays
        ("x + n", TypeError, "Unsupported type <class 'numpy.ndarray'>"),
        ("n + x", TypeError, "Unsupported type <class 'numpy.ndarray'>"),
        ("x * np.array(1.0)", TypeError, "Unsupported type"),
        ("x @ n.T", TypeError, "expected cupy.ndarray, got ndarray"),
        ("x * [1, 2, 3]", TypeError, "NotImplemented"),
        ("xp.maximum(x, n)", TypeError, "Unsupported type"),
        ("xp.where(m, x, n)", TypeError, "Unsupported type"),
        ("xp.concatenate([x, n])", TypeError, "Unsupported type"),
        ("xp.add(x, 1, out=n)", TypeError, "Unsupported type"),
        ("x.__setitem__(slice(None), n)", ValueError, "non-scalar numpy.ndarray"),
        ("xp.flip(n)", TypeError, "Unsupported type"),
        ("x.sum(axis=0, out=n[0])", TypeError, "expected cupy.ndarray"),
        # the way to the host is explicit
        ("np.asarray(x)", TypeError, "Implicit conversion"),
        ("np.float32(s)", TypeError, "Implicit conversion"),
        ("np.testing.assert_allclose(x, x)", TypeError, "Implicit conversion"),
        ("range(i[0])", TypeError, "cannot be interpreted as an integer"),
        ("round(s, 2)", TypeError, "__round__"),
        ("json.dumps(s)", TypeError, "not JSON serializable"),
        ("{x: 1}", TypeError, "unhashable"),
        # other rules
        ("xp.where(True, x, 0)", AttributeError, "astype"),
        ("xp.dot(x, w, out=xp.empty((2, 4), 'f8'))", ValueError, "dtype"),
        ("xp.dot(x, w, out=xp.empty((4, 2), 'f4').T)", ValueError, "C-contiguous"),
        ("xp.asarray([None])", ValueError, "Unsupported dtype object"),
        ("xp.zeros(3, 'g')", ValueError, "Unsupported dtype"),
        ("i.__iadd__(0.5)", TypeError, "Cannot cast"),
        ("k + 2**40", OverflowError, "out of bounds for int32"),
        ("m - m", TypeError, "boolean subtract"),
        ("xp.exp(T)", TypeError, "Unsupported type"),
        # silently wrong in CuPy
        ("x[xp.asarray([7])]", IndexError, "out of bounds"),
        ("xp.take(x, [9])", IndexError, "out of bounds"),
        ("xp.broadcast_to(v, (4, 3)).__iadd__(1)", ValueError, "read-only"),
        ("xp.broadcast_to(v, (4, 3)).fill(0)", ValueError, "read-only"),
        ("xp.add.at(v, i, v)", ValueError, "the value overlaps what is written"),
        ("K('T x', 'T y', 'y += x')(x[:, 1:], x[:, :-1])", ValueError, "'x' overlaps what is written"),
        # in CuPy, but not here
        ("xp.random.rand(3)", strict.Unmodelled, "cupy.random.rand exists, but its numbers are not NumPy's"),
        ("xp.fft.fft(x)", strict.Unmodelled, "cupy.fft.fft exists, but the strict double does not model it"),
        ("xp.save('a', x)", strict.Unmodelled, "cupy.save exists"),
        ("xp.save(x)", TypeError, "missing 1 required positional argument: 'arr'"),
        ("x.partition(1)", strict.Unmodelled, "cupy.ndarray.partition exists"),
        ("x.cstruct", AttributeError, "in the strict double"),
        ("xp.polynomial", AttributeError, "in the strict double"),
        ("xp.ndarray((2,), 'f4', memptr=x.data)", strict.Unmodelled, "memptr"),
        ("K('raw T x', 'T y', 'y = x[0]')", strict.Unmodelled, "raw parameters"),
        ("K('T x', 'T y', 'if (x > 0) y = x;')(x)", strict.Unmodelled, "declarations and assignments"),
        ("K('T x', 'T y', 'y = x[0]')(x)", strict.Unmodelled, "cannot read"),
        ("K('T x', 'T y', 'long double a = x; y = a')(x)", strict.Unmodelled, "the type long double"),
        ("K('T x', 'T y', 'unsigned a = x; y = a')(x)", strict.Unmodelled, "'unsigned'"),
        ("K('T x', 'T y', 'y = erf(x)')(x)", strict.Unmodelled, "'erf'"),
        ("K('T x', 'T y', 'T a; y = a')(x)", strict.CompileException, "'a' is read before it is set"),
        ("K('T x', 'T y', 'y = z')(x)", strict.CompileException, "'z' is undefined"),
        ("K('T x', 'T y', 'x = y')(x)", strict.CompileException, "'x' is constant"),
        ("K('T x', 'T y', 'y = (x')(x)", strict.CompileException, "expected '\\)'"),
    ],
)  # fmt: skip
def test_a_planted_mistake_is_caught(code, error, message):
    with pytest.raises(error, match=f"(?i){message}"):
        evaluate(code)


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("float(s)", "float()"),
        ("int(i[0])", "int()"),
        ("s.item()", "item()"),
        ("x.get()", "get()"),
        ("xp.asnumpy(x)", "asnumpy()"),
        ("x.tolist()", "tolist()"),
        ("1 if s > 0 else 0", "bool()"),
        ("s and 1", "bool()"),
        ("0 < s < 1", "bool()"),
        ("1 in v", "bool()"),
        ("max(v)", "bool()"),
        ("f'{s:.3f}'", "format()"),
        ("str(s)", "str()"),
        ("repr(x)", "repr()"),
        ("pickle.dumps(x)", "pickle"),
        ("x[m]", "mask"),
        ("x.__setitem__(m, 0)", "mask"),
        ("xp.nonzero(x)", "nonzero()"),
        ("xp.where(m)", "nonzero()"),
        ("xp.bincount(i)", "bincount()"),
        ("xp.unique(i)", "unique()"),
        ("xp.cuda.Device().synchronize()", "Device.synchronize()"),
        ("xp.cuda.get_current_stream().synchronize()", "Stream.synchronize()"),
        ("xp.cuda.Event().synchronize()", "Event.synchronize()"),
        ("xp.cuda.runtime.deviceSynchronize()", "deviceSynchronize()"),
    ],
)
def test_what_waits_is_forbidden_inside_no_sync(code, what):
    names = operands(xp, strict.cupyx)
    with strict.no_sync(), pytest.raises(strict.HostSync, match=re.escape(what)):
        eval(code, names)
    eval(code, names)  # and allowed outside


def test_a_step_on_the_device_needs_no_wait_and_no_transfer():
    names = operands(xp, strict.cupyx)
    x, w, i = names["x"], names["w"], names["i"][:2]
    with strict.no_sync(), strict.recording() as events:
        h = xp.maximum(x @ w, 0)
        z = h - xp.max(h, axis=1, keepdims=True)
        y = xp.exp(z) / xp.sum(xp.exp(z), axis=1, keepdims=True)
        loss = -xp.mean(xp.log(y[xp.arange(2), i]))
        y[xp.arange(2), i] -= 1
        w -= 0.1 * (x.T @ xp.where(h > 0, y, 0))
    assert events == []
    assert (type(loss), loss.shape, loss.dtype) == (xp.ndarray, (), np.float32)


def test_events_name_kind_operation_bytes_and_line():
    x = xp.asarray(np.ones((2, 3), np.float32))
    with strict.recording() as events:
        line = inspect.currentframe().f_lineno
        xp.asarray(np.ones(3))
        x.get()
        float(x[0, 0])
        np.exp(x)
        xp.cuda.Device().synchronize()
    assert events == [
        ("h2d", "asarray()", 24, f"test_strict.py:{line + 1}"),
        ("d2h", "get()", 24, f"test_strict.py:{line + 2}"),
        ("d2h", "float()", 4, f"test_strict.py:{line + 3}"),
        ("numpy_dispatch", "np.exp", 0, f"test_strict.py:{line + 4}"),
        ("sync", "Device.synchronize()", 0, f"test_strict.py:{line + 5}"),
    ]
    assert str(events[1]) == f"test_strict.py:{line + 2}: get() (d2h, 24 bytes)"


def test_a_host_sync_names_its_line():
    x = xp.zeros(())
    with strict.no_sync(), pytest.raises(strict.HostSync) as caught:
        line = inspect.currentframe().f_lineno + 1
        bool(x)
    assert str(caught.value).startswith(f"test_strict.py:{line}: bool()")


def test_the_recorder_counts_and_forgets():
    strict.recorder.clear()
    x = xp.asarray([1.0, 2.0])
    x.sum().item()
    assert (strict.recorder.count(), strict.recorder.count("h2d"), strict.recorder.count("d2h", "sync")) == (2, 1, 1)
    with strict.recording() as outer, strict.recording() as inner:
        x.get()
    assert len(outer) == len(inner) == 1
    strict.recorder.clear()
    assert strict.recorder.events == []


def test_an_operator_is_no_dispatch_through_numpy():
    x = xp.ones(3)
    with strict.recording() as events:
        2 * x + x / 3 - np.float64(1)
    assert events == []


def test_an_unblocked_download_does_not_wait():
    x = xp.ones(3)
    pinned = strict.cupyx.empty_pinned(3)
    with strict.no_sync(), strict.recording() as events:
        x.get(out=pinned, blocking=False)
        x.set(pinned)
    assert [event.kind for event in events] == ["d2h", "h2d"]


def test_pinned_memory_is_a_buffer_for_numpy():
    pinned = np.frombuffer(xp.cuda.alloc_pinned_memory(12), np.float32, 3)
    pinned[:] = 7
    x = xp.empty(3, np.float32)
    x.set(pinned)
    assert x.tolist() == [7, 7, 7]


def test_what_was_never_written_is_nan():
    assert np.isnan(xp.empty((2, 3), np.float32).get()).all()
    assert np.isnan(xp.empty_like(xp.ones(3, np.float16)).get()).all()


def test_full_reductions_and_single_elements_are_writable_0d_arrays():
    x = xp.ones((2, 3))
    total = other = x.sum()
    other += 1
    assert float(total) == 7
    element = x[0, 0]
    x[0, 0] = 5
    assert float(element) == 5


def test_views_know_their_base_and_address():
    x = xp.zeros((2, 3), np.float32)
    for view, offset in [(x[1], 12), (x[:, 1:], 4), (x.T, 0), (x.reshape(-1)[2:], 8), (x[1][1:], 16)]:
        assert view.base is x
        assert view.data.ptr - x.data.ptr == offset
        assert xp.may_share_memory(view, x)
    assert x.base is x.copy().base is (x + 1).base is x[[0, 1]].base is None
    assert x.data.mem.size == 512


def test_arrays_can_be_referred_to_weakly_and_free_their_memory():
    gc.collect()
    pool = xp.get_default_memory_pool()
    before = pool.used_bytes()
    x = xp.zeros(1000, np.float32)
    assert pool.used_bytes() - before == 4096  # in units of 512
    view, reference = x[10:], weakref.ref(x)
    del x
    assert reference() is view.base
    del view
    assert reference() is None
    assert pool.used_bytes() == before


def test_a_memory_limit_is_kept():
    gc.collect()
    x = xp.zeros(1000, np.float32)
    pool = xp.get_default_memory_pool()
    used = pool.used_bytes()
    with strict.memory_limit(used + 4096):
        y = x + 1
        numbers = f"(allocated so far: {used + 4096:,} bytes, limit set to: {used + 4096:,} bytes)."
        with pytest.raises(MemoryError, match=re.escape(f"Out of memory allocating 4,096 bytes {numbers}")):
            y * 2
        y *= 2  # in place: nothing is allocated
        del y
        x * 2
        assert pool.get_limit() == used + 4096
    assert pool.get_limit() == 0
    assert xp.cuda.runtime.memGetInfo() == (pool.device_memory - pool.used_bytes(), pool.device_memory)


def test_cupy_says_the_same_when_out_of_memory(cupy):
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    pool.set_limit(pool.total_bytes() + 512)
    try:
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError) as caught:
            cupy.zeros(1 << 20, np.float32)
    finally:
        pool.set_limit(0)
    with strict.memory_limit(1), pytest.raises(strict.OutOfMemoryError) as ours:
        xp.zeros(1 << 20, np.float32)
    assert re.sub(r"(far|to): [\d,]+", "", str(caught.value)) == re.sub(r"(far|to): [\d,]+", "", str(ours.value))


def test_a_tensor_of_the_framework_is_asked_by_numpy_not_by_cupy():
    x, tensor = xp.ones(3), foreign(xp)["T"]
    assert x * tensor == ("multiply", "__call__", "device", "T")
    assert np.maximum(0, x).shape == (3,)
    assert np.dot(x, tensor) == ("dot", "device", "T")
    with pytest.raises(TypeError, match="Unsupported type"):
        xp.maximum(x, tensor)
    with pytest.raises(TypeError, match="Unsupported type"):
        x *= tensor


# ---- names and signatures


def shape_of(function):
    return [(p.name, p.kind, p.default is p.empty) for p in inspect.signature(function).parameters.values()]


def stub(signature):
    namespace = {}
    exec(f"def function{signature}: ...", namespace)
    return namespace["function"]


def test_the_double_has_cupys_names_and_no_others():
    sections = ("functions", "ufuncs", "types", "constants")
    names = {name for section in sections for name in API[section]}
    assert [len(API[section]) for section in sections] == [282, 103, 68, 15]
    public = {name for name in vars(xp) if not name.startswith("_")}
    assert names <= public <= names | {*API["others"]}
    for module in ("linalg", "fft", "random"):
        assert {name for name in vars(getattr(xp, module)) if not name.startswith("_")} == {*API[module]}
    methods = {name for name in vars(strict.ndarray) if not name.startswith("_")}
    assert methods < {*API["attributes"]}
    assert len(API["attributes"]) == 74


def test_functions_and_methods_have_cupys_signatures():
    for name, signature in API["functions"].items():
        if signature != "(*args, **kwargs)":
            assert shape_of(getattr(xp, name)) == shape_of(stub(signature)), name
    for name, signature in API["methods"].items():
        if name in vars(strict.ndarray):
            assert shape_of(vars(strict.ndarray)[name])[1:] == shape_of(stub(signature)), name


def test_the_snapshot_is_of_cupy_14_and_one_entry_a_line():
    assert API["version"] == "14.2.0"
    text = cupy_api.SNAPSHOT.read_text(encoding="utf-8")
    assert cupy_api.render(API) == text
    assert max(map(len, text.splitlines())) < 200


def test_the_snapshot_is_what_its_script_makes():
    try:
        environment = pretend_gpu.published()
    except pretend_gpu.Unavailable as reason:
        pytest.skip(str(reason))
    program = "from tinygrad_mnist.testing import cupy_api; print(cupy_api.render(cupy_api.snapshot()), end='')"
    folder = Path(cupy_api.__file__).parents[2]
    made = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=folder, capture_output=True, text=True, check=True
    )
    assert made.stdout == cupy_api.SNAPSHOT.read_text(encoding="utf-8")
