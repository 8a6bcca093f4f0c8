"""A recorded graph for people: as indented text, as a Mermaid diagram, and how much memory it keeps."""

from __future__ import annotations

from typing import Any

from . import arrays
from .core import Tensor
from .leaf import Leaf


def text(t: Tensor, *, depth: int | None = None) -> str:
    """The graph behind `t` as indented text: each operation above what it was computed from.

    One line an operation: name, op, dtype and shape. What is used twice is printed once and then named by its number.
    `depth` limits the levels.
    """
    numbers = _numbers(_root(t))
    lines = []
    printed: set[Any] = set()
    todo = [(_root(t), 0)]
    while todo:  # a stack, so that no graph is too deep
        node, level = todo.pop()
        again = node in printed and bool(_parents(node))
        cut = depth is not None and level >= depth and bool(_parents(node)) and not again
        note = " (above)" if again else " ..." if cut else ""
        lines.append(f"{'  ' * level}#{numbers[node]} {_label(node)}{note}")
        if not again and not cut:
            printed.add(node)
            todo.extend((parent, level + 1) for parent in reversed(_parents(node)))
    return "\n".join(lines)


def mermaid(t: Tensor) -> str:
    """The graph behind `t` as a Mermaid flowchart, data flowing downwards; paste it where Markdown is rendered."""
    numbers = _numbers(_root(t))
    lines = ["flowchart TD"]
    for node, i in numbers.items():
        left, right = ("([", "])") if type(node) is Leaf else ("[", "]")
        label = _label(node).replace("#", "#35;").replace('"', "#quot;").replace("<", "#lt;")
        lines.append(f'    n{i}{left}"{label}"{right}')
        lines.extend(f"    n{numbers[parent]} --> n{i}" for parent in _parents(node))
    return "\n".join(lines)


def memory(t: Tensor) -> int:
    """How many bytes of arrays the graph behind `t` keeps alive for backward; memory that several share counts once."""
    owners = {}
    for node in _numbers(_root(t)):
        for a in () if type(node) is Leaf else node.saved or ():
            if arrays.is_array(a):
                owner = arrays.owner(a)
                owners[id(owner)] = owner.nbytes
    return sum(owners.values())


def _root(t: Tensor) -> Any:
    if getattr(t, "_node", None) is None:
        raise TypeError("show needs a tracked Tensor: a leaf with requires_grad=True, or a result computed from one")
    return t._node


def _parents(node: Any) -> list[Any]:
    return [parent for parent in node.parents if parent is not None]


def _numbers(root: Any) -> dict[Any, int]:
    """Every node below `root` with a number: the root is 1, and a node comes before its parents."""
    numbers = {root: 1}
    order = [root]
    for node in order:
        for parent in _parents(node):
            if parent not in numbers:
                numbers[parent] = len(numbers) + 1
                order.append(parent)
    return numbers


def _label(node: Any) -> str:
    op = "leaf" if type(node) is Leaf else node.prim.name
    shape = "x".join(map(str, node.shape)) or "scalar"
    name = f"{' '.join(node.name.split())} = " if node.name else ""
    return f"{name}{op} {node.dtype} {shape}"
