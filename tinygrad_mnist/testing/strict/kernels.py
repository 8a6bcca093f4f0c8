"""`ElementwiseKernel`: a kernel written in C, run by NumPy statement by statement, in C's types."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .array import NUMBERS, Dtype, broadcast, check_race, ndarray, np, operand, owner, wide
from .device import CompileException, Host, Unmodelled


class Scope:
    """What the names in a kernel stand for."""

    def __init__(self, types: Mapping[str, Dtype], dtypes: Mapping[str, Dtype], values: Mapping[str, Host]) -> None:
        self.types = {**_C_TYPES, **types}
        self.dtypes = {**dtypes}  # of parameters and variables
        self.values = {**values}  # of all elements at once


_C_TYPES: dict[str, Dtype] = {
    **{np.dtype(c).name: np.dtype(c) for c in NUMBERS},
    **{name: np.dtype(c) for name, c in [("char", "b"), ("short", "h"), ("int", "i"), ("long", "l")]},
    **{name: np.dtype(c) for name, c in [("float", "f"), ("double", "d")]},
}
_Code = Callable[[Scope], Host]  # an expression
_Statement = Callable[[Scope], None]


# ---- C's arithmetic -----------------------------------------------------------------------------------------------


def _promoted(a: Host) -> Host:
    """An operand alone: small integers become int, float16 becomes float."""
    if a.dtype.kind == "f":
        return a.astype(wide(a.dtype), copy=False)
    return a.astype(np.int32) if a.dtype.kind == "b" or a.dtype.itemsize < 4 else a


def _common(a: Host, b: Host) -> tuple[Host, Host]:
    """Two operands: the wider float, else the wider integer. (NumPy would make float64 of int32 and float32.)"""
    a, b = _promoted(a), _promoted(b)
    dtypes = [t for t in (a.dtype, b.dtype) if t.kind == "f"] or [a.dtype, b.dtype]
    dtype = max(dtypes, key=lambda t: (t.itemsize, t.kind))  # of two that are equally wide, the unsigned one
    return a.astype(dtype, copy=False), b.astype(dtype, copy=False)


def _divide(a: Host, b: Host) -> Host:
    if a.dtype.kind == "f":
        return a / b
    quotient = np.abs(a) // np.abs(np.where(b == 0, 1, b))
    return np.where(b == 0, 0, np.sign(a) * np.sign(b) * quotient).astype(a.dtype)  # rounded towards zero


def _remainder(a: Host, b: Host) -> Host:
    if a.dtype.kind == "f":
        raise CompileException("% needs integers: write fmod(a, b)")
    return np.fmod(a, np.where(b == 0, 1, b))


_BINARY: dict[str, Callable[[Host, Host], Any]] = {
    "||": np.logical_or,
    "&&": np.logical_and,
    "==": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    ">": np.greater,
    "<=": np.less_equal,
    ">=": np.greater_equal,
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": _divide,
    "%": _remainder,
}
_LEVELS = (("||",), ("&&",), ("==", "!="), ("<", ">", "<=", ">="), ("+", "-"), ("*", "/", "%"))
_UNARY = {"-": np.negative, "+": np.positive, "!": np.logical_not}
_OF_FLOATS = """
    sqrt cbrt exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh
    hypot floor ceil trunc rint fabs fmin fmax fmod
"""
_OF_ALL = {"abs": np.abs, "min": np.fmin, "max": np.fmax}  # CUDA's min and max prefer the number to NaN
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(np, name) for name in _OF_FLOATS.split()},
    **_OF_ALL,
    "pow": np.power,
    "rsqrt": lambda a: 1 / np.sqrt(a),
}


def _binary(symbol: str, left: _Code, right: _Code) -> _Code:
    return lambda scope: np.asarray(_BINARY[symbol](*_common(left(scope), right(scope))))


def _choice(condition: _Code, yes: _Code, no: _Code) -> _Code:
    return lambda scope: np.where(condition(scope) != 0, *_common(yes(scope), no(scope)))


def _cast(name: str, value: _Code) -> _Code:
    return lambda scope: value(scope).astype(scope.types[name])


def _call(name: str, arguments: Sequence[_Code]) -> _Code:
    def call(scope: Scope) -> Host:
        values = [_promoted(argument(scope)) for argument in arguments]
        if name not in _OF_ALL:
            values = [a if a.dtype.kind == "f" else a.astype(float) for a in values]
        return np.asarray(_FUNCTIONS[name](*(_common(*values) if len(values) == 2 else values)))

    return call


def _variable(name: str) -> _Code:
    def read(scope: Scope) -> Host:
        if name not in scope.values:
            raise CompileException(f"{name!r} is read before it is set")
        return scope.values[name]

    return read


def _number(token: str) -> _Code:
    digits = token.rstrip("fFuUlL")
    if set(digits) & set(".eE"):
        value = np.array(float(digits), np.float32 if token[-1] in "fF" else np.float64)
    else:
        value = np.array(int(digits), np.int32 if token == digits and int(digits) < 2**31 else np.int64)
    return lambda scope: value


# ---- reading C ----------------------------------------------------------------------------------------------------

_LONGER = {
    "unsigned long long": "uint64", "long long": "int64", "unsigned int": "uint32", "unsigned short": "uint16",
    "unsigned char": "uint8", "signed char": "int8",
}  # fmt: skip
"""Types of several words."""
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_TOKEN = re.compile(
    r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?[fFuUlL]*|[A-Za-z_]\w*|&&|\|\||[-+*/<>=!]=|[-+*/%<>=!?:;,()]"
)


def _tokens(text: str) -> Iterator[str]:
    text = _COMMENT.sub(" ", text).strip()
    for words, name in _LONGER.items():
        text = re.sub(rf"\b{words}\b", name, text)
    while text:
        match = _TOKEN.match(text)
        if match is None:
            raise Unmodelled(f"the strict double cannot read {text[:20]!r} in a kernel")
        yield match[0]
        text = text[match.end() :].lstrip()


class _Reader:
    """Reads declarations and assignments, and in them numbers, names, operators, `?:`, calls and casts.

    CompileException for what is no C, Unmodelled for what is, but is not read here.
    """

    def __init__(self, text: str, types: set[str], constants: set[str], variables: set[str]) -> None:
        self._tokens = [*_tokens(text), "", ""]
        self._at = 0
        self._types = types | {*_C_TYPES}
        self._constants = {*constants}
        self._variables = {*variables}
        self._outs = {*variables}

    def statements(self) -> Iterator[_Statement]:
        while self._token:
            if self._accept(";"):
                continue
            const = bool(self._accept("const"))
            if self._token in self._types and self._after.isidentifier():
                yield from self._declarations(const)
            elif self._after in ("=", "+=", "-=", "*=", "/="):
                yield self._assignment()
            else:
                raise Unmodelled(f"the strict double reads only declarations and assignments, not {self._token!r}")
            if self._token:
                self._expect(";")

    @property
    def _token(self) -> str:
        return self._tokens[self._at]

    @property
    def _after(self) -> str:
        return self._tokens[self._at + 1]

    def _take(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1]

    def _accept(self, *tokens: str) -> str:
        return self._take() if self._token and self._token in tokens else ""

    def _expect(self, token: str) -> None:
        if not self._accept(token):
            raise CompileException(f"expected {token!r} before {self._token or 'the end'!r}")

    def _name(self) -> str:
        if not self._token.isidentifier():
            raise CompileException(f"expected a name before {self._token or 'the end'!r}")
        return self._take()

    def _declarations(self, const: bool) -> Iterator[_Statement]:
        kind = self._take()
        yield self._declaration(kind, const)
        while self._accept(","):
            yield self._declaration(kind, const)

    def _declaration(self, kind: str, const: bool) -> _Statement:
        name = self._name()
        if name in self._types:
            raise Unmodelled(f"the strict double does not know the type {kind} {name}")
        if name in self._constants | self._variables:
            raise CompileException(f"{name!r} is declared twice")
        value = self._expression() if self._accept("=") else None
        (self._constants if const else self._variables).add(name)

        def declare(scope: Scope) -> None:
            scope.dtypes[name] = scope.types[kind]
            if value is not None:
                scope.values[name] = value(scope).astype(scope.types[kind])

        return declare

    def _assignment(self) -> _Statement:
        name = self._name()
        if name not in self._variables:
            raise CompileException(f"{name!r} is {'constant' if name in self._constants else 'undefined'}")
        symbol = self._take().rstrip("=")
        value = self._expression()
        if symbol:
            value = _binary(symbol, _variable(name), value)
        in_place = name in self._outs

        def assign(scope: Scope) -> None:
            if in_place:
                scope.values[name][...] = value(scope)
            else:
                scope.values[name] = value(scope).astype(scope.dtypes[name])

        return assign

    def _expression(self) -> _Code:
        condition = self._operation(0)
        if not self._accept("?"):
            return condition
        yes = self._expression()
        self._expect(":")
        return _choice(condition, yes, self._expression())

    def _operation(self, level: int) -> _Code:
        if level == len(_LEVELS):
            return self._unary()
        left = self._operation(level + 1)
        while symbol := self._accept(*_LEVELS[level]):
            left = _binary(symbol, left, self._operation(level + 1))
        return left

    def _unary(self) -> _Code:
        if symbol := self._accept(*_UNARY):
            value = self._unary()
            return lambda scope: _UNARY[symbol](_promoted(value(scope)))
        if self._token == "(" and self._after in self._types:  # (T)x
            self._take()
            kind = self._take()
            self._expect(")")
            return _cast(kind, self._unary())
        return self._primary()

    def _primary(self) -> _Code:
        if self._accept("("):
            value = self._expression()
            self._expect(")")
            return value
        if self._token[:1].isdigit() or self._token[:1] == ".":
            return _number(self._take())
        name = self._name()
        if name == "static_cast":
            self._expect("<")
            name = self._name()
            self._expect(">")
        if not self._accept("("):
            if name not in self._constants | self._variables:
                raise CompileException(f"identifier {name!r} is undefined")
            return _variable(name)
        arguments = [self._expression()]
        while self._accept(","):
            arguments.append(self._expression())
        self._expect(")")
        if name in self._types:
            return _cast(name, arguments[0])
        if name not in _FUNCTIONS:
            raise Unmodelled(f"the strict double does not know the function {name!r} of a kernel")
        return _call(name, arguments)


# ---- the kernel ---------------------------------------------------------------------------------------------------


class Parameter(NamedTuple):
    name: str
    kind: str  # a letter, whose type a call decides on, or the name of a type
    dtype: Any  # None for a letter


def _parameters(text: str) -> tuple[Parameter, ...]:
    """The parameters in "T x, float32 y"."""
    found = []
    for part in text.strip().split(",") if text else ():
        words = part.split()
        if len(words) < 2:
            raise Exception(f"Syntax error: {part}")
        *options, kind, name = words
        found.append(Parameter(name, kind, None if len(kind) == 1 else np.dtype(kind)))
        if options == ["raw"]:
            raise Unmodelled(f"raw parameters of kernels ({part.strip()!r})")
        if options:
            raise Exception(f'Unknown keyword "{options[0]}"')
    return tuple(found)


class ElementwiseKernel:
    """Parameters and their checks are CuPy's; arrays that are passed for outputs may be read too."""

    def __init__(
        self,
        in_params: str,
        out_params: str,
        operation: str,
        name: str = "kernel",
        reduce_dims: bool = True,
        preamble: str = "",
        no_return: bool = False,
        return_tuple: bool = False,
        **kwargs: Any,
    ) -> None:
        if not name.isidentifier():
            raise ValueError(f'Invalid kernel name: "{name}"')
        if preamble or {*kwargs} - {"options"}:
            raise Unmodelled("kernels with a preamble, loop_prep or after_loop")
        self.in_params = _parameters(in_params)
        self.out_params = _parameters(out_params)
        self.nin, self.nout = len(self.in_params), len(self.out_params)
        self.nargs = self.nin + self.nout
        self.operation = operation
        self.name = self.__name__ = name
        self.no_return = no_return
        self.return_tuple = return_tuple
        if "i" in [p.name for p in self.in_params + self.out_params]:
            raise ValueError("Can not use 'i' as a parameter name")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        size, block_size = kwargs.pop("size", -1), kwargs.pop("block_size", 128)
        kwargs.pop("stream", None)
        if kwargs:
            raise TypeError(f"Wrong arguments {kwargs}")
        if block_size <= 0:
            raise ValueError("block_size must be greater than zero")
        if len(args) not in (self.nin, self.nargs):
            raise TypeError(
                f"Wrong number of arguments for {self.name!r}. It must be either {self.nin} or {self.nargs} "
                f"(with outputs), but given {len(args)}."
            )
        for arg in args:
            if hasattr(arg, "__cupy_override_elementwise_kernel__"):
                return arg.__cupy_override_elementwise_kernel__(self, *args, **kwargs)
        operands = [operand(arg) for arg in args]
        arrays = [a for a in operands if isinstance(a, ndarray)]
        if arrays and size != -1:
            raise ValueError("Specified 'size' can be used only if all of the ndarray are 'raw'.")
        if not arrays and size == -1:
            raise ValueError("Loop size is undecided.")
        shape = broadcast(arrays) if arrays else (size,)
        ins, outs = operands[: self.nin], operands[self.nin :]
        types = self._types(ins, outs)
        dtypes = {p.name: p.dtype or types[p.kind] for p in self.in_params + self.out_params}
        if not outs:
            outs = [owner(np.empty(shape, dtypes[p.name])) for p in self.out_params]
        for out in outs:
            if out.shape != shape:
                raise ValueError("Out shape is mismatched")
        if 0 not in shape:
            self._run(ins, outs, shape, types, dtypes)
        if self.no_return:
            return None
        return outs[0] if self.nout == 1 and not self.return_tuple else tuple(outs)

    def _types(self, ins: Sequence[Any], outs: Sequence[Any]) -> dict[str, Dtype]:
        """What each letter stands for: the dtype of the arrays there; numbers have no say."""
        found: dict[str, Dtype] = {}
        for p, a in [*zip(self.out_params, outs, strict=False), *zip(self.in_params, ins, strict=True)]:
            if isinstance(a, ndarray):
                dtype = p.dtype or found.setdefault(p.kind, a.dtype)
                if dtype != a.dtype:
                    raise TypeError(f"Type is mismatched. {p.name} {a.dtype} {dtype} {p.kind}")
            elif any(a is out for out in outs):
                raise TypeError("Output arguments must be cupy.ndarray")
        return found

    @functools.cached_property
    def _statements(self) -> list[_Statement]:
        types = {p.kind for p in self.in_params + self.out_params if p.dtype is None}
        ins, outs = ({p.name for p in params} for params in (self.in_params, self.out_params))
        return [*_Reader(self.operation, types, ins, outs).statements()]

    def _run(
        self,
        ins: Sequence[Any],
        outs: Sequence[Any],
        shape: tuple[int, ...],
        types: Mapping[str, Dtype],
        dtypes: Mapping[str, Dtype],
    ) -> None:
        values = {p.name: out._host for p, out in zip(self.out_params, outs, strict=True)}
        for p, a in zip(self.in_params, ins, strict=True):
            if isinstance(a, ndarray):
                values[p.name] = np.broadcast_to(a._host, shape)
                for out in outs:
                    check_race(repr(p.name), values[p.name], out._host, elementwise=True)
            else:
                values[p.name] = np.array(a.value, dtypes[p.name])
        scope = Scope(types, dtypes, values)
        with np.errstate(all="ignore"):
            for statement in self._statements:
                statement(scope)

