"""What the source of a user's function says: which statements made a quantity that it returns, and what never runs.

A function without source (typed into an interpreter, made by exec) says nothing; everything here is then empty.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

WIDTH = 100  # of a statement that is quoted


@dataclass(frozen=True)
class Statement:
    """The statement that makes a variable: its line in its file, its text, and what it uses: the statements that make
    variables for its sake."""

    line: int
    text: str
    uses: str = ""

    def __str__(self) -> str:
        return f"line {self.line}: `{self.text}`" + (f" with `{self.uses}`" if self.uses else "")


class Source:
    """The parsed source of a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.text, self.before = "", 0
        try:
            lines, first = inspect.getsourcelines(function)
            self.text, self.before = textwrap.dedent("".join(lines)), first - 1
            tree: ast.AST = ast.parse(self.text)
        except (OSError, TypeError, SyntaxError):  # no source, no Python function, a lambda in the middle of a line
            tree = ast.Module([], [])
        self.nodes: list[Any] = sorted(ast.walk(tree), key=lambda node: getattr(node, "lineno", 0))
        function = inspect.unwrap(function)
        self.globals = getattr(function, "__globals__", {})
        code = getattr(function, "__code__", None)
        self.parameters = code.co_varnames[: code.co_argcount] if code else ()

    def makers(self, known: Collection[str] = ()) -> dict[str, Statement]:
        """For each key of the dicts that the function makes, itself or by `return other(...)`: the statement that made
        its value. It uses what is neither `known` nor the value of another key."""
        entries = [*self._made_by_others(), *((key, self, value) for key, value in self._entries())]
        known = {*known, *(value.id for _, _, value in entries if isinstance(value, ast.Name))}
        return {key: source._maker(value, known) for key, source, value in entries}

    def _made_by_others(self) -> Iterator[tuple[str, Source, ast.expr]]:
        """The entries of dicts that functions make whose results are returned as they are: (key, where the value is
        made, the value). What such a function is given is made here."""
        for node in self.nodes:
            call = node.value if isinstance(node, ast.Return) else None
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in self.globals):
                continue
            other = Source(self.globals[call.func.id])
            plain = takewhile(lambda a: not isinstance(a, ast.Starred), call.args)
            given = dict(zip(other.parameters, plain, strict=False))
            given |= {word.arg: word.value for word in call.keywords if word.arg}
            for key, value in other._entries():
                if isinstance(value, ast.Name) and value.id in given and not other._made(value):
                    yield key, self, given[value.id]
                else:
                    yield key, other, value

    def never_run(self) -> list[Statement]:
        """The heads of the blocks under `if False:` and the like."""
        heads = [node for node in self.nodes if isinstance(node, ast.If | ast.While)]
        off = [node for node in heads if isinstance(node.test, ast.Constant) and not node.test.value]
        words = {ast.If: "if", ast.While: "while"}
        return [Statement(self.before + n.lineno, f"{words[type(n)]} {ast.unparse(n.test)}:") for n in off]

    def _entries(self) -> Iterator[tuple[str, ast.expr]]:
        """`{"key": value}`, `dict(key=value)` and `d["key"] = value`, in the order of the source."""
        for node in self.nodes:
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant):
                        yield str(key.value), value
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
                yield from ((word.arg, word.value) for word in node.keywords if word.arg)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
                        yield str(target.slice.value), node.value

    def _maker(self, value: ast.expr, known: Collection[str]) -> Statement:
        made = self._made(value) if isinstance(value, ast.Name) else [value]
        if not made:  # an argument
            made = [value]
        names = [n for node in made for n in ast.walk(node) if isinstance(n, ast.Name) and n.id not in known]
        used = {id(node): node for name in names for node in self._made(name) if _computes(node)}
        line = self.before + made[0].lineno
        return Statement(line, self._quoted(made), self._quoted([*used.values()]))

    def _made(self, variable: ast.Name) -> list[Any]:
        """The last assignment to a variable before it is used here, and the changes to it after that."""
        found: list[Any] = []
        for node in self.nodes:
            for target in _targets(node):
                name = target
                while isinstance(name, ast.Subscript):
                    name = name.value
                if isinstance(name, ast.Name) and name.id == variable.id and node.lineno < variable.lineno:
                    before = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}  # that are read
                    anew = name is target and isinstance(node, ast.Assign) and variable.id not in before
                    found = [node] if anew else [*found, node]
        return found

    def _quoted(self, nodes: list[Any]) -> str:
        parts = [" ".join((ast.get_source_segment(self.text, node) or "").split()) for node in nodes]
        return textwrap.shorten("; ".join(parts), WIDTH, placeholder=" ...")


def _computes(node: Any) -> bool:
    """Whether a statement computes one variable, and does not merely name something."""
    return len([*_targets(node)]) == 1 and isinstance(node.value, ast.BinOp | ast.Call)


def _targets(node: ast.AST) -> Iterator[ast.expr]:
    """What an assignment assigns to."""
    todo: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        todo = [*node.targets]
    elif isinstance(node, ast.AugAssign):
        todo = [node.target]
    for target in todo:
        if isinstance(target, ast.Tuple | ast.List):
            todo.extend(target.elts)  # grows on the way
        else:
            yield target
