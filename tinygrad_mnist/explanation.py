"""`explain`: the forward and the derived backward of a function as NumPy source that a person would have written.

A function is run once on symbols (`capture`), with a tracer beside it that learns what the user calls things and which
line computes what. The program is tidied (`tidy`), its values are named, and what nobody names goes into the expression
of its only user. The text needs nothing but NumPy, or CuPy.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import CellType, FunctionType
from typing import Any

import numpy as np

from . import arrays, core, losses, nn, ops
from .capture import CaptureError, Recorder, Symbol, data_of, record
from .core import Tensor
from .functional import tree_leaves, tree_map
from .leaf import Leaf
from .listing import Listing, Mark, Run, paths, place_of
from .modes import current, enable_grad
from .program import Value
from .watching import is_foreign, tracing


def explain(f: Callable[..., Any], *inputs: Any, xp: str = "numpy", wrt: Any = None) -> str:
    """The source of a function that computes `f` and its gradients with NumPy alone, for arguments like `inputs`.

    It takes the arguments of `f`, then by name the parameters and arrays that `f` has from elsewhere, and returns
    (value, gradients): a tuple with the gradient by every Tensor that requires one, arguments first; where there is
    none, by all float arrays among the arguments that the value depends on. `wrt` names other arguments, by name or
    position, one or several. `xp="cupy"` writes CuPy. `f` returns a Tensor of one element.

    The text holds for the shapes, the dtypes and the Python numbers of this call.
    """
    if xp not in ("numpy", "cupy"):
        raise ValueError(f"explain: xp must be 'numpy' or 'cupy', not {xp!r}")
    chosen = _chosen(f, inputs, wrt)
    run = _run(f, inputs, chosen if chosen is not None else set())
    if chosen is None and not run.leaves:
        floats = {k for k, a in enumerate(inputs) if any(map(_is_float, tree_leaves([a])))}
        run = _run(f, inputs, floats)
    if not run.leaves:
        raise ValueError("explain: the value depends on no Tensor that requires a gradient, and on no float array")
    return Listing(run, "np" if xp == "numpy" else "cp").text()


PRIMES = 10007, 10009
"""Numbers of images that are no size of a layer: where they appear in a text, it is the number of images."""


def explain_network(
    layers: Sequence[int], activation: str = "relu", loss: str = "cross_entropy", *, dtype: str = "float32",
    dropout: float = 0.0, batch: int | None = None, xp: str = "numpy", training: bool = True,
) -> str:
    """The source of `loss_and_gradients(x, y, W1, b1, ...)` of an `nn.MLP`, for `batch` images or for any number `n`.

    With dropout it has an argument `rng` more. `training=False`: that of `logits(x, W1, b1, ...)`, without gradients.
    """
    model = nn.MLP(layers, activation, dropout=dropout, rng=0, dtype=dtype).train(training)

    def of_images(x: Any, y: Any) -> Any:
        if loss == "cross_entropy":
            return losses.softmax_cross_entropy(model(x), y)
        z = model(x)
        return losses.mse(ops.softmax(z), arrays.one_hot(y, z.data, 1).astype(z.dtype))

    last = f"z{len(layers) - 1}"
    title = "cross-entropy of softmax" if loss == "cross_entropy" else "mean squared error of softmax"
    texts = []
    for n in PRIMES if batch is None else (batch,):
        if max(layers) >= PRIMES[0]:
            raise ValueError(f"explain: layers must be smaller than {PRIMES[0]} units, unless a batch is given")
        inputs: tuple[Any, ...] = np.zeros((n, layers[0]), dtype), np.zeros(n, np.uint8)
        if training:
            run = _captured(of_images, inputs, set(), lift=False)
        else:
            run = _captured(model, inputs[:1], set(), lift=False, gradients=False)
        run.program.name = "loss" if training else "logits"
        run.titles = {"loss": f"loss: {title}({last})", "activation": activation}
        run.sizes = {n: "n"} if batch is None else {}
        texts.append(Listing(run, "np" if xp == "numpy" else "cp").text())
    if len(set(texts)) > 1:
        raise ValueError("explain: a number in the text depends on the number of images: give a batch")
    return texts[0]


def _chosen(f: Callable[..., Any], inputs: Sequence[Any], wrt: Any) -> set[int] | None:
    """The places of the arguments that `wrt` names."""
    if wrt is None:
        return None
    names = _parameters(f, len(inputs))
    found = set()
    for one in wrt if isinstance(wrt, (tuple, list, set)) else [wrt]:
        if isinstance(one, str) and one in names:
            one = names.index(one)
        if not isinstance(one, int) or not -len(inputs) <= one < len(inputs):
            raise ValueError(f"explain: wrt={one!r} is none of the arguments {', '.join(names)}")
        found.add(one % len(inputs))
    return found


def _is_float(a: Any) -> bool:
    return (isinstance(a, Tensor) or arrays.is_array(a)) and a.dtype.kind == "f"


# ---- one run, and what is learnt of it ----------------------------------------------------------------------------


def _run(f: Callable[..., Any], inputs: Sequence[Any], chosen: set[int]) -> Run:
    """Capture `f` and the gradients by the chosen arguments, or by the leaves that it reaches."""
    if inspect.isfunction(f):
        try:
            return _captured(f, inputs, chosen, lift=True)
        except (CaptureError, TypeError, IndexError):  # NumPy would need the numbers of an array
            pass
    return _captured(f, inputs, chosen, lift=False)


def _lifted(f: Any, run: Run, recorder: Recorder) -> Callable[..., Any]:
    """`f` with symbols for the arrays that it has from elsewhere: what it computes of these alone is captured too."""

    def symbol(name: str, a: Any) -> Any:
        run.keep.append(a)
        run.given.setdefault(place_of(a), name)
        return recorder.lift(a, name)

    globals_ = dict(f.__globals__)
    for name in f.__code__.co_names:
        if type(globals_.get(name)) is np.ndarray:
            globals_[name] = symbol(name, globals_[name])
    cells = []
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
        array = getattr(cell, "cell_contents", None) if cell != CellType() else None
        cells.append(CellType(symbol(name, array)) if type(array) is np.ndarray else cell)
    made = FunctionType(f.__code__, globals_, f.__name__, f.__defaults__, tuple(cells))
    made.__kwdefaults__ = f.__kwdefaults__
    return made


def _captured(
    f: Callable[..., Any], inputs: Sequence[Any], chosen: set[int], *, lift: bool, gradients: bool = True
) -> Run:
    run = Run(f, inputs, parameters=_parameters(f, len(inputs)))
    mine: list[Tensor] = []
    for name, tree in zip(run.parameters, inputs, strict=True):
        for path, _, a in paths(tree, name):
            if isinstance(a, Tensor):
                run.given[place_of(a._data)] = path

    def differentiable(a: Any) -> Any:
        if isinstance(a, Tensor) and a.requires_grad:
            mine.append(a)
            return a
        if not (isinstance(a, (Tensor, Symbol)) or arrays.is_array(a)):
            return a
        t = core._wrap(data_of(a), None)
        t.requires_grad = True
        mine.append(t)
        return t

    def both(*args: Any) -> Any:
        recorder: Recorder = current.get().recorder
        args = tuple(tree_map(differentiable, a) if k in chosen else a for k, a in enumerate(args))
        with enable_grad():
            # a network has no lines of a user; what else may run meanwhile, such as finalizers, is not to be watched
            with _watching(run, recorder) if lift else nullcontext():
                y = (_lifted(f, run, recorder) if lift else f)(*args)
            if not isinstance(y, (Tensor, Symbol)) or (y.size != 1 and gradients):
                what = f"one of shape {y.shape}" if isinstance(y, (Tensor, Symbol)) else type(y).__name__
                raise ValueError(f"explain: the function must return a Tensor of one element, not {what}")
            run.start = len(recorder.instructions)
            for t, a in recorder.tensors.values():
                if t.name and isinstance(t._node, Leaf):
                    run.given.setdefault(place_of(a), t.name)
            leaves = {} if not gradients or isinstance(y, Symbol) else _walked(y, recorder, mine)
            chosen_leaves = [t for t in dict.fromkeys(mine) if t in leaves] if mine else list(leaves)
            mine.clear()  # no symbol outlives the run
            run.leaves = [recorder.lift(t._data).value for t in chosen_leaves]
            run.adjoints = list(recorder.adjoints)
        return y, *(leaves[t] for t in chosen_leaves)

    both.__name__ = getattr(f, "__name__", type(f).__name__)
    both.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in run.parameters]
    )
    captured, _ = record(both, inputs, {}, keep=False)
    run.program = captured.program
    for k, i in enumerate(run.program.instructions):
        run.born.update(dict.fromkeys(i.outs, k))
        if i.op in ("advance", "call"):
            raise ValueError("explain: the function updates parameters or clips gradients; it should return a loss")
    order = {v: k for k, v in enumerate(run.program.values())}
    places = sorted(range(len(run.leaves)), key=lambda k: order.get(run.leaves[k], -1))
    run.leaves = [run.leaves[k] for k in places]
    value, *slopes = run.program.outputs
    run.program.outputs = [value, *(slopes[k] for k in places)]
    return run


def _walked(y: Tensor, recorder: Recorder, mine: Sequence[Tensor]) -> dict[Tensor, Any]:
    """The gradients of `y` by the leaves that it was computed from."""
    if y._node is None:
        return {}
    try:
        found = core.walk(y._node, arrays.ones_like(y._data), retain_graph=True)
    except RuntimeError as error:  # the graph is freed
        raise ValueError(f"explain: {error}; leave backward() to explain") from error
    tensors = {t._node: t for t in (*(t for t, _ in recorder.tensors.values()), *mine)}
    return {tensors[leaf]: g for leaf, g, _ in found}


def _parameters(f: Callable[..., Any], count: int) -> list[str]:
    """Names for the first arguments of `f`: its own, as far as it has some."""
    try:
        kinds = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        kinds = ()  # type: ignore[assignment]
    names = [p.name for p in kinds if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:count]
    return names + [f"x{k + 1}" for k in range(len(names), count)]


@contextmanager
def _watching(run: Run, recorder: Recorder) -> Iterator[None]:
    """Learn, while `f` runs, the user's names and which of its lines computes what."""
    inside = False  # what appears now was made by the function

    def note(name: str, value: Any, names: dict[Value, str], depth: int = 0) -> None:
        if isinstance(value, (list, tuple)) and depth < 2 and len(value) <= 64:
            for k, part in enumerate(value):
                note(f"{name}{k}", part, run.minor, depth + 1)
        elif isinstance(value, dict) and depth < 2:
            for key, part in value.items():
                note(key if isinstance(key, str) and key.isidentifier() else name, part, run.minor, depth + 1)
        elif depth < 2 and isinstance(getattr(value, "__dict__", None), dict) and _has_tensors(value):
            for key, part in vars(value).items():
                note(key, part, run.minor, depth + 1)
        data = data_of(value)
        if isinstance(data, Symbol):
            if data.recorder is recorder and data.value.kind == "result":
                names.setdefault(data.value, name)
        elif arrays.is_array(data):
            run.keep.append(data)
            if place_of(data) not in run.given:
                run.given[place_of(data)] = name
                if inside:
                    run.made.add(place_of(data))

    def scan(frame: Any, skip: Sequence[str] = ()) -> None:
        main = frame.f_code is run.code
        for name, value in list(frame.f_locals.items()):
            if name not in skip and name.isidentifier():
                note(name, value, run.names if main else run.minor)

    def local(frame: Any, event: str, arg: Any) -> Any:
        nonlocal inside
        inside = True
        scan(frame, () if frame.f_code is run.code else _arguments(frame.f_code))
        if event == "line" and frame.f_code is run.code:
            run.marks.append(Mark(len(recorder.instructions), len(recorder.nodes), frame.f_lineno))
        return local

    def called(frame: Any, event: str, arg: Any) -> Any:
        if is_foreign(frame):
            return None
        nonlocal inside
        run.code, inside = run.code or frame.f_code, False
        for name in frame.f_code.co_names:
            if name in frame.f_globals:
                note(name, frame.f_globals[name], run.minor)
        if frame.f_code is run.code:
            scan(frame)
        return local

    run.code = getattr(run.f, "__code__", None)
    with tracing(called):
        yield
    names = set(run.names.values())
    for value, name in run.minor.items():
        if value not in run.names and name not in names:
            run.names[value] = name


def _arguments(code: Any) -> tuple[str, ...]:
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _has_tensors(value: Any) -> bool:
    return not isinstance(value, (Tensor, type)) and any(isinstance(part, Tensor) for part in vars(value).values())
