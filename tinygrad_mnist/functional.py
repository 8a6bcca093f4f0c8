"""Derivatives as functions of functions: grad, value_and_grad, vjp, jvp, jacobian, hessian, hvp.

Arrays in, arrays out; Tensors in, Tensors out, recorded, so that they nest: `grad(grad(f))`. Arguments may be nested
lists, tuples and dicts of arrays. Two arguments are two even where the caller passes one array twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from operator import index
from typing import Any, SupportsIndex

from . import arrays
from .core import F, Tensor, is_tracked, through, walk
from .modes import current, enable_grad

Tree = Any  # an array or Tensor, or a list, tuple or dict of trees
Argnums = SupportsIndex | Sequence[SupportsIndex]
_outer: ContextVar[frozenset[Any]] = ContextVar("tinygrad_mnist.outer", default=frozenset())
"""The nodes of the arguments of the derivatives whose functions are running."""


def grad(f: Callable[..., Any], argnums: Argnums = 0) -> Callable[..., Tree]:
    """The function that returns the gradient of the scalar function `f` by its argument `argnums`, or arguments.

    `grad(f)(x)` is like `x`; `grad(f, (0, 1))(x, y)` is a tuple. `f` returns a Tensor of one element.
    """
    both = value_and_grad(f, argnums)

    def gradient(*args: Any, **kwargs: Any) -> Tree:
        return both(*args, **kwargs)[1]

    return gradient


def value_and_grad(f: Callable[..., Any], argnums: Argnums = 0) -> Callable[..., tuple[Any, Tree]]:
    """As `grad`, but the function returns (value, gradient)."""

    def value_and_gradient(*args: Any, **kwargs: Any) -> tuple[Any, Tree]:
        chosen, rest = _choose(f, argnums, args, kwargs)
        pull = _Pullback(rest, chosen)
        if pull.y.size != 1:
            raise TypeError(f"grad needs a scalar result, but its shape is {pull.y.shape}: use jacobian or vjp")
        grads = pull(F.ones_like(pull.y))
        return pull.value, grads[0] if isinstance(argnums, SupportsIndex) else grads

    return value_and_gradient


def vjp(f: Callable[..., Any], *xs: Tree) -> tuple[Any, Callable[[Any], tuple[Tree, ...]]]:
    """(f(*xs), pullback): `pullback(g)` is the tuple of the products g^T J, one for each x. It may be called again."""
    pull = _Pullback(f, xs)
    return pull.value, pull


def jvp(f: Callable[..., Any], xs: Sequence[Tree], vs: Sequence[Tree]) -> tuple[Any, Any]:
    """(f(*xs), J v): the derivative along v. The pullback is linear in its cotangent; J v is the gradient of
    <pullback(u), v> by u (Townsend 2017, A new trick for calculating Jacobian vector products)."""
    if not (isinstance(xs, (tuple, list)) and isinstance(vs, (tuple, list))):
        raise TypeError("jvp needs a tuple of arguments and one of directions, even of one: jvp(f, (x,), (v,))")
    pull = _Pullback(f, xs, record=True)
    u = _Pullback(lambda u: _product(pull(u), vs), [Tensor(F.ones_like(pull.y))])
    pushed = u(F.ones_like(u.y))[0]
    tied = pull.open or any(map(is_tracked, tree_leaves(list(vs))))
    if not pull.tensors and not tied:
        return pull.value, pushed._data
    return pull.value, pushed if tied else pushed.detach()


def hvp(f: Callable[..., Any], x: Tree, v: Tree) -> Tree:
    """The Hessian of the scalar function `f` at `x`, times `v`, without the Hessian: the gradient of <grad f(x), v>."""

    def slope(x: Tree) -> Tensor:
        return _product([grad(f)(x)], [v])

    tensors = any(isinstance(leaf, Tensor) for leaf in tree_leaves([x, v]))
    return grad(slope)(tree_map(_as_tensor, x) if tensors else x)


def jacobian(f: Callable[..., Any], argnums: Argnums = 0) -> Callable[..., Tree]:
    """The function that returns the Jacobian of `f` by its argument(s): shape `f(x).shape + x.shape`, row by row."""

    def jacobian_of(*args: Any, **kwargs: Any) -> Tree:
        chosen, rest = _choose(f, argnums, args, kwargs)
        pull = _Pullback(rest, chosen)
        rows = []
        for i in range(pull.y.size):
            one = F.zeros_like(pull.y.ravel())
            arrays.put(one, i, 1)
            rows.append(pull(one.reshape(pull.y.shape)))

        def stacked(*parts: Any) -> Any:
            joined = F.stack(parts) if pull.tensors else arrays.namespace(type(parts[0])).stack(parts)
            return joined.reshape(pull.y.shape + parts[0].shape)

        if rows:
            out = tree_map(stacked, *rows)
        else:
            out = tree_map(lambda g: g.reshape(-1)[:0].reshape(pull.y.shape + g.shape), pull(F.zeros_like(pull.y)))
        return out[0] if isinstance(argnums, SupportsIndex) else out

    return jacobian_of


def hessian(f: Callable[..., Any], argnum: int = 0) -> Callable[..., Any]:
    """The function that returns the Hessian of the scalar function `f` by one array argument: `x.shape + x.shape`."""
    return jacobian(grad(f, argnum), argnum)


class _Pullback:
    """The result of a function of some arguments, and the map from a cotangent of it to cotangents of the arguments."""

    def __init__(self, f: Callable[..., Any], xs: Sequence[Tree], record: bool = False) -> None:
        self.tensors = any(isinstance(x, Tensor) for x in tree_leaves(list(xs)))
        self.record = record or self.tensors  # run the rules on Tensors: what comes out can be differentiated again
        self.nodes: list[Any] = []
        with enable_grad():
            self.inputs = [tree_map(self._enter, x) for x in xs]
            outer = _outer.get()
            token = _outer.set(outer.union(self.nodes))
            try:
                y = f(*[tree_map(lambda t: t, x) for x in self.inputs])  # containers of its own: it may change them
            finally:
                _outer.reset(token)
        if isinstance(y, (tuple, list, dict)):
            raise TypeError(f"derivatives need a function that returns one Tensor, not a {type(y).__name__}")
        self.y: Tensor = y if isinstance(y, Tensor) else Tensor(y)
        # Tensors stay tied to what lies beyond this call: leaves, an outer derivative. Where nothing does, the graph is
        # of no use to anyone, and a loop of x = x - eta * grad(f)(x) would drag all of it along
        beyond = _ends(self.y._node, outer).difference(self.nodes) if self.tensors or outer else frozenset()
        if not outer.isdisjoint(beyond):
            self.tensors = self.record = True  # f uses a variable of an outer derivative, which goes through this one
        self.open = self.tensors and current.get().grad and bool(beyond)
        self.value = self.y if self.open else self.y.detach() if self.tensors else self.y._data

    def _enter(self, x: Any) -> Tensor:
        t, node = through(F.identity.prim, x if isinstance(x, Tensor) else Tensor(x))
        if t.dtype.kind != "f":
            raise TypeError(f"derivatives need float arguments, not {t.dtype}: write 0.0 instead of 0, or use .astype")
        self.nodes.append(node)
        return t

    def __call__(self, g: Any) -> tuple[Tree, ...]:
        found: dict[Any, Any] = {}
        record = self.record or is_tracked(g)
        tied = current.get().grad and (self.open or is_tracked(g))
        if self.y._node is not None:
            g = g.astype(self.y.dtype) if isinstance(g, Tensor) else Tensor(arrays.from_host(g, self.y.data))
            if g.shape != self.y.shape:
                raise ValueError(f"the cotangent has shape {g.shape}, the result {self.y.shape}")
            with enable_grad():
                reached = walk(
                    self.y._node,
                    g if record else g._data,
                    targets=set(self.nodes),
                    create_graph=record,
                    retain_graph=True,
                )
                found = {node: g if ours else F.copy(g) if record else arrays.copy(g) for node, g, ours in reached}
        nodes = iter(self.nodes)

        def result(x: Tensor) -> Any:
            g = found.get(next(nodes))
            if g is None:  # the result does not depend on it
                g = F.zeros_like(x)
            if record:
                return Tensor(g) if not isinstance(g, Tensor) else g if tied else g.detach()
            return arrays.box(g)

        return tuple(tree_map(result, x) for x in self.inputs)


def _ends(root: Any, outer: frozenset[Any]) -> set[Any]:
    """The nodes below `root` at which the graph ends or passes one of `outer`."""
    todo, seen, found = [] if root is None else [root], {root}, set()
    while todo:
        node = todo.pop()
        parents = [parent for parent in node.parents if parent is not None]
        if not parents or node in outer:
            found.add(node)
        todo.extend(parent for parent in parents if parent not in seen)
        seen.update(parents)
    return found


def _as_tensor(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else Tensor(x)


def _choose(
    f: Callable[..., Any], argnums: Argnums, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Any], Callable[..., Any]]:
    """The arguments to differentiate by, and `f` as a function of these alone."""
    places = [index(i) for i in ([argnums] if isinstance(argnums, SupportsIndex) else argnums)]
    for i in places:
        if not -len(args) <= i < len(args):
            raise TypeError(f"argnums={argnums!r} does not fit a call with {len(args)} positional arguments")
    if len({i % len(args) for i in places}) < len(places):
        raise TypeError(f"argnums={argnums!r} names an argument twice")

    def of_chosen(*chosen: Any) -> Any:
        full = list(args)
        for i, value in zip(places, chosen, strict=True):
            full[i] = value
        return f(*full, **kwargs)

    return [args[i] for i in places], of_chosen


def _product(a: Any, b: Any) -> Tensor:
    """The inner product of two equal trees."""
    terms: list[Any] = []

    def term(x: Any, v: Any) -> None:
        v = v if isinstance(v, Tensor) else Tensor(v, dtype=x.dtype)
        if v.shape != x.shape:
            raise ValueError(f"the direction has shape {v.shape} where the argument has {x.shape}")
        terms.append(F.sum(F.multiply(x, v)))

    tree_map(term, list(a), list(b))
    return sum(terms) if terms else Tensor(0.0)


def tree_map(f: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    if isinstance(tree, dict):
        return {key: tree_map(f, value, *(other[key] for other in others)) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        mapped = [tree_map(f, *parts) for parts in zip(tree, *others, strict=True)]
        return type(tree)(*mapped) if hasattr(tree, "_fields") else type(tree)(mapped)  # a named tuple, or a plain one
    return f(tree, *others)


def tree_leaves(tree: Tree) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in tree_leaves(value)]
    if isinstance(tree, (list, tuple)):
        return [leaf for value in tree for leaf in tree_leaves(value)]
    return [tree]
