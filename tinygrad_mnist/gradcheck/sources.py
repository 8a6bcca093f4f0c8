"""Functions changed in their source: the syntax tree of a rule, every change of one node of it, and the changed
function, compiled, with the helpers that it calls.

The changes are the usual mutation operators (King, Offutt 1991, A Fortran language system for mutation-based software
testing), as far as rules have something for them to change.
"""

from __future__ import annotations

import ast
import copy
import dis
import functools
import linecache
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType

# ---- the source of a rule -----------------------------------------------------------------------------------------


@functools.cache
def _tree(filename: str) -> ast.Module:
    return ast.parse("".join(linecache.getlines(filename)))


def source(function: FunctionType) -> ast.FunctionDef:
    """The syntax tree of a function or lambda as a bare `def`, found by the places of its bytecode in the file.

    Several lambdas may share a line. Raises ValueError where there is no source, as for code from `exec`.
    """
    code = function.__code__
    places = [(a, c, b, d) for a, b, c, d in code.co_positions() if a and b and c is not None and d]
    found = []
    for node in ast.walk(_tree(code.co_filename)):
        if isinstance(node, ast.FunctionDef) and code.co_name == node.name:
            if code.co_firstlineno == min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]):
                statements = node.body if ast.get_docstring(node) is None else node.body[1:]
                found.append((0, _bare(node.name, node.args, statements)))
        elif isinstance(node, ast.Lambda) and code.co_name == "<lambda>" and code.co_firstlineno == node.lineno:
            body = node.body
            start, end = (body.lineno, body.col_offset), (body.end_lineno or 0, body.end_col_offset or 0)
            if places and all(start <= (a, c) and (b, d) <= end for a, c, b, d in places):
                found.append((len(ast.unparse(body)), _bare("rule", node.args, [ast.Return(body)])))
    if not found:
        raise ValueError(f"no source of {function.__qualname__} in {code.co_filename}: mutants are made of the source")
    return min(found, key=lambda pair: pair[0])[1]  # of nested lambdas the inner one


def _bare(name: str, args: ast.arguments, body: list[ast.stmt]) -> ast.FunctionDef:
    """A `def` without annotations and defaults: those are set when it is compiled."""
    function = ast.parse(f"def {name}(): pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    args = function.args = copy.deepcopy(args)
    for arg in ast.walk(args):
        if isinstance(arg, ast.arg):
            arg.annotation = None
    args.defaults, args.kw_defaults = [], [None] * len(args.kwonlyargs)
    function.body = body
    return function


def name_all(function: ast.FunctionDef, operands: int) -> ast.FunctionDef:
    """The rule with names for the result and the operands that `*_` takes: mutants may use them."""
    args = function.args
    if args.vararg is None or args.vararg.arg != "_":
        return function
    function = copy.deepcopy(function)
    used = {arg.arg.lstrip("_") for arg in args.args}
    names = ["_y"] * (len(args.args) < 3) + [f"_{letter}" for letter in "abcdefgh" if letter not in used]
    function.args.args += [ast.arg(name) for name in names[: 3 + operands - len(args.args)]]
    function.args.vararg = None
    return function


class _Bounded(ast.NodeTransformer):
    """`while` loops that give up: a mutant must not run for ever."""

    def visit_While(self, node: ast.While) -> ast.For:
        leave = ast.If(ast.UnaryOp(ast.Not(), node.test), [ast.Break()], [])
        turns = ast.Call(ast.Name("range", ast.Load()), [ast.Constant(64)], [])
        endless = ast.Raise(ast.Call(ast.Name("RuntimeError", ast.Load()), [ast.Constant("endless loop")], []), None)
        return ast.For(ast.Name("_turn", ast.Store()), turns, [leave, *node.body], [endless])


def compiled(tree: ast.FunctionDef) -> CodeType:
    """Its bytecode, in which no `while` loop runs for ever."""
    module = ast.Module([_Bounded().visit(copy.deepcopy(tree))], [])
    code = compile(ast.fix_missing_locations(module), "<mutant>", "exec")
    return next(const for const in code.co_consts if isinstance(const, CodeType))


def helpers(function: FunctionType) -> dict[str, FunctionType]:
    """The functions of the same module that this one calls, and those that they call."""
    found: dict[str, FunctionType] = {}
    todo = [function.__code__]
    while todo:
        code = todo.pop()
        todo += [const for const in code.co_consts if isinstance(const, CodeType)]
        for name in [i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")]:
            value = function.__globals__.get(name)
            if isinstance(value, FunctionType) and value.__globals__ is function.__globals__ and name not in found:
                found[name] = value
                todo.append(value.__code__)
    return found


def rebuilt(rule: FunctionType, changed: FunctionType, code: CodeType) -> FunctionType:
    """The rule with other code in `changed`, which is the rule or a helper; nobody else sees the change."""
    space = dict(rule.__globals__)

    def build(function: FunctionType) -> FunctionType:
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        if function is changed:
            space.update({name: cell.cell_contents for name, cell in cells.items()})
            new = FunctionType(code, space, function.__name__, function.__defaults__)
        else:
            new = FunctionType(
                function.__code__, space, function.__name__, function.__defaults__, function.__closure__
            )
        new.__kwdefaults__ = function.__kwdefaults__
        return new

    for name, helper in helpers(rule).items():
        space[name] = build(helper)
    return build(rule)


# ---- source mutants -----------------------------------------------------------------------------------------------

_OPERATORS: dict[type, type] = {
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Add: ast.Sub, ast.Sub: ast.Add, ast.FloorDiv: ast.Mod,
    ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift,
}
_COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt), ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_FUNCTIONS = {
    "sum": "mean", "mean": "sum", "sin": "cos", "cos": "sin", "sinh": "cosh", "cosh": "sinh", "exp": "expm1",
    "log": "log1p", "tril": "triu", "triu": "tril", "ones_like": "zeros_like", "zeros_like": "ones_like",
    "floor_divide": "divide", "sign": "absolute", "sigmoid": "tanh", "softmax": "log_softmax", "hypot": "multiply",
}
_SYMMETRIC = ("hypot", "multiply", "add", "maximum", "minimum", "fmax", "fmin", "logaddexp")
_NO_ARRAYS = ("xp", "g", "i", "shape", "axis")  # parameters that are not exchanged for one another


def source_mutants(
    function: ast.FunctionDef, within: ast.AST | None = None, rule: bool = False
) -> Iterator[tuple[str, ast.FunctionDef]]:
    """(text "old -> new", the changed function) for every change of one node; of a part of it, if `within` is given.

    Of a `rule`, the parameter names are changed too: `_y` for `y`, which is then not kept.
    """
    seen = {ast.unparse(function)}
    texts: dict[str, int] = {}

    def fresh(text: str, tree: ast.FunctionDef) -> Iterator[tuple[str, ast.FunctionDef]]:
        key = ast.unparse(ast.fix_missing_locations(tree))
        if key not in seen:
            seen.add(key)
            n = texts[text] = texts.get(text, 0) + 1
            yield text if n == 1 else f"{text} (no. {n})", tree

    names = [arg.arg for arg in function.args.args]
    arrays = [name for name in names if name.lstrip("_") not in _NO_ARRAYS]
    parents = {id(child): node for node in ast.walk(function) for child in ast.iter_child_nodes(node)}
    skipped = {id(part) for loop in ast.walk(function) if isinstance(loop, ast.While) for part in ast.walk(loop.test)}
    for node in ast.walk(within or ast.Module(function.body, [])):
        if id(node) in skipped:
            continue  # a change there gives an endless loop, or none
        for new in _variants(node, arrays):
            tree = copy.deepcopy(function, {id(node): new})
            if isinstance(new, ast.Name) and new.id.startswith("_") and new.id in arrays:
                tree = _renamed(tree, new.id, new.id.lstrip("_"))  # what is used must be kept
                new = ast.Name(new.id.lstrip("_"))
            whole = node
            while _is_bare(whole) and isinstance(parents.get(id(whole)), (ast.expr, ast.keyword)):
                whole = parents[id(whole)]
            yield from fresh(f"{_shown(whole)} -> {_shown(copy.deepcopy(whole, {id(node): new}))}", tree)
    for name in arrays if rule else ():
        if not name.startswith("_"):
            yield from fresh(f"{name} -> _{name}", _renamed(function, name, f"_{name}"))
    if within is None and "g" in names:
        skipping = copy.deepcopy(function)
        skipping.body = [ast.Return(ast.Name("g", ast.Load()))]
        yield from fresh("return g", skipping)


def _is_bare(node: ast.AST) -> bool:
    """A name or number, which says nothing without what is around it."""
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.operand, ast.Constant)
    return isinstance(node, (ast.Name, ast.Constant, ast.Tuple, ast.Slice))


def _shown(node: ast.AST) -> str:
    if isinstance(node, ast.If):
        return f"if {ast.unparse(node.test)}"
    return " ".join(ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split())


def _renamed(function: ast.FunctionDef, old: str, new: str) -> ast.FunctionDef:
    function = copy.deepcopy(function)
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id == old:
            node.id = new
        elif isinstance(node, ast.arg) and node.arg == old:
            node.arg = new
    return function


def _variants(node: ast.AST, arrays: Sequence[str]) -> Iterator[ast.AST]:
    """What may stand in place of a node."""
    match node:
        case ast.BinOp(left, op, right):
            yield left
            yield right
            if other := _OPERATORS.get(type(op)):
                yield ast.BinOp(left, other(), right)
            if not isinstance(op, (ast.Add, ast.Mult, ast.BitAnd, ast.BitOr)):
                yield ast.BinOp(right, op, left)
            if isinstance(op, (ast.Add, ast.Sub, ast.Mult, ast.Div)):
                for side in (left, right):
                    if isinstance(side, ast.Constant) and isinstance(side.value, (int, float)) and side.value:
                        scaled = ast.Constant(side.value * (1 + 1e-4))
                        yield ast.BinOp(*((scaled, op, right) if side is left else (left, op, scaled)))
        case ast.UnaryOp(ast.USub() | ast.Not() | ast.Invert(), operand):
            yield operand
        case ast.Compare(left, [op], [right]):
            for other in _COMPARISONS[type(op)]:
                yield ast.Compare(left, [other()], [right])
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.And() if isinstance(op, ast.Or) else ast.Or(), values)
            for k in range(len(values)):
                rest = values[:k] + values[k + 1 :]
                yield ast.BoolOp(op, rest) if len(rest) > 1 else rest[0]
        case ast.IfExp(test, body, orelse):
            yield body
            yield orelse
            if not isinstance(test, ast.Compare):
                yield ast.IfExp(test, orelse, body)
        case ast.If(test, body, orelse) if not isinstance(test, ast.Compare):
            yield ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value)):
            yield ast.Constant(value - 1)
            yield ast.Constant(value + 1)
        case ast.Constant(float(value)):
            yield ast.Constant(value * (1 + 1e-4))
        case ast.Call():
            yield from _call_variants(node)
        case ast.Subscript(value, _, ast.Load()):
            yield value
        case ast.Attribute(value, "T"):
            yield value
        case ast.Name(name, ast.Load()) if name in arrays:
            yield from (ast.Name(other, ast.Load()) for other in arrays if other != name)
        case ast.Assign([ast.Subscript()]) | ast.Expr():
            yield ast.Pass()
        case ast.AugAssign(target, op, value):
            yield ast.Assign([target], value)


def _call_variants(node: ast.Call) -> Iterator[ast.AST]:
    """Another function, its first argument alone, a keyword or the last argument left out, two arguments exchanged."""

    def call(args: list[ast.expr], keywords: list[ast.keyword]) -> ast.Call:
        return ast.Call(node.func, args, keywords)

    args, keywords = node.args, node.keywords
    for k, keyword in enumerate(keywords):
        yield call(args, keywords[:k] + keywords[k + 1 :])
        if keyword.arg == "axis" and isinstance(keyword.value, ast.Name):
            before = ast.keyword("axis", ast.BinOp(keyword.value, ast.Sub(), ast.Constant(1)))
            yield call(args, [*keywords[:k], before, *keywords[k + 1 :]])
    match node.func:
        case ast.Attribute(ast.Name("xp" | "math") as owner, name):
            start = 0
            if name in _FUNCTIONS:
                yield ast.Call(ast.Attribute(owner, _FUNCTIONS[name], ast.Load()), args, keywords)
            if len(args) > 1:
                yield call(args[:-1], keywords)
            for argument in args:
                if name == "log" and isinstance(argument, ast.Constant) and isinstance(argument.value, (int, float)):
                    yield call([ast.Constant(argument.value * (1 + 1e-4))], keywords)
        case ast.Name() if args and isinstance(args[0], ast.Name) and args[0].id == "xp":
            start = 1
        case _:
            return
    if len(args) > start:
        yield args[start]
    if isinstance(node.func, ast.Attribute) and node.func.attr in _SYMMETRIC:
        return
    for k in range(start, len(args) - 1):
        if _takes_values(args[k]) and _takes_values(args[k + 1]):
            yield call([*args[:k], args[k + 1], args[k], *args[k + 2 :]], keywords)


def _takes_values(argument: ast.expr) -> bool:
    """False for arguments that are no operands: shapes, axes, keys, what is unpacked."""
    match argument:
        case ast.Attribute(_, "shape") | ast.Starred() | ast.UnaryOp(_, ast.Constant()):
            return False
        case ast.Name(name):
            return name not in ("shape", "axis", "axes", "k")
    return True
