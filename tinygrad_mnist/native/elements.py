"""One elementwise instruction as an expression on one element, with NumPy's rules for NaN and for types."""

from __future__ import annotations

from ..program import Instruction, Value
from .batch import BINARY, CALLS, COMPARE, LOGICAL, Unsupported, gathers
from .places import Places, number, type_of

FLOATS = ("f32", "f64")


def expression(i: Instruction, variables: list[str], env: dict[Value, str], places: Places) -> tuple[str, str]:
    """(text, type) of an instruction on the element that `variables` name. `env`: what is in variables already."""
    op, out = i.op, type_of(i.out.dtype)
    if gathers(i):
        return places.read(places.layout(i.args[0]).name, places.gathered(i, variables), i.out.dtype), out
    loaded = [places.load(a, variables, env) for a in i.args]
    if op in COMPARE:
        common = _common([kind for _, kind in loaded])
        a, b = (number(text, kind, common) for text, kind in loaded)
        return f"{a} {COMPARE[op]} {b}", "b1"
    if op in LOGICAL or op == "logical_not":
        return _logical(i, loaded), "b1"
    if op == "where":
        (c, _), (a, ka), (b, kb) = loaded
        return f"{number(a, ka, out)} if {c} else {number(b, kb, out)}", out
    if op in ("astype", "copy", "assign"):
        return _converted(i, *loaded[0]), out
    if out not in FLOATS and (i.out.dtype.str[1:] != "i8" or op not in ("add", "subtract", "multiply")):
        raise Unsupported(f"{op} of {i.out.dtype} at {i.site.line}")
    terms = [number(text, kind, out) for text, kind in loaded]
    if op == "exp":
        return f"exp{out[1:]}({terms[0]})", out
    return _arithmetic(op, terms, out), out


def _common(kinds: list[str]) -> str:
    """The type in which NumPy compares: a Python number takes that of the other."""
    floats = [kind for kind in kinds if kind in FLOATS]
    if floats and "i64" in kinds:
        return "f64"
    return max(floats) if floats else "i64" if "i64" in kinds or "number" in kinds else "b1"


def _logical(i: Instruction, loaded: list[tuple[str, str]]) -> str:
    if i.op.startswith("bitwise") and any(kind != "b1" for _, kind in loaded):
        raise Unsupported(f"{i.op} of integers at {i.site.line}")
    terms = [text if kind == "b1" else f"({text} != 0)" for text, kind in loaded]
    return f"not {terms[0]}" if i.op == "logical_not" else f"{terms[0]} {LOGICAL[i.op]} {terms[1]}"


def _converted(i: Instruction, text: str, kind: str) -> str:
    source, out = i.args[0], type_of(i.out.dtype)
    if out == "b1" != kind:
        return f"{text} != 0"
    if out == kind == "i64" and isinstance(source, Value) and i.out.dtype.itemsize < source.dtype.itemsize:
        raise Unsupported(f"{i.out.dtype} of wider integers at {i.site.line}")
    return number(text, kind, out)


def _arithmetic(op: str, terms: list[str], out: str) -> str:
    a = terms[0]
    if op in BINARY:
        return f"{a} {BINARY[op]} {terms[1]}"
    if op in CALLS:
        return f"{out}({CALLS[op]}({a}))"
    if op in ("maximum", "minimum"):
        b, better = terms[1], ">" if op == "maximum" else "<"
        return f"{a} if {a} {better} {b} or {a} != {a} else {b}"
    zero, one = f"{out}(0)", f"{out}(1)"
    return {
        "negative": f"-{a}",
        "square": f"{a} * {a}",
        "reciprocal": f"{one} / {a}",
        "relu": f"{zero} if {a} < {zero} else {a}",
        "sign": f"{zero} if {a} == {zero} else {one} if {a} > {zero} else -{one} if {a} < {zero} else {a}",
    }[op]
