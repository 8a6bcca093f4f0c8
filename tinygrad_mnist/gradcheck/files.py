"""`tinygrad-mnist gradcheck FILE.py:FUNCTION`: a function of the user's, at the inputs that its file declares.

The file declares `FUNCTION_inputs`, or `inputs` for all its functions: a tuple or list of inputs, a dict of them by the
names of the function's arguments, or a function of a NumPy generator (or of nothing) that returns one of these. A
function `FUNCTION_vjp(g, *inputs)`, if there is one, is the gradient to be checked, and FUNCTION is then one of arrays;
otherwise FUNCTION takes Tensors.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import arrays
from ..core import Tensor
from .engine import check_vjp
from .report import GradReport
from .tensors import check


@dataclass(frozen=True)
class Declared:
    """What a file says of one of its functions."""

    path: Path
    name: str
    fn: Callable[..., Any]
    rule: Callable[..., Any] | None
    inputs: Any

    @property
    def drawn(self) -> bool:
        """True where the inputs are a function of a generator: each case has others."""
        return callable(self.inputs) and bool(inspect.signature(self.inputs).parameters)

    def arguments(self, seed: int, case: int) -> list[Any]:
        """The positional arguments of one case."""
        given = self.inputs
        if self.drawn:
            given = given(np.random.default_rng([seed, case]))
        elif callable(given):
            given = given()
        if isinstance(given, dict):
            return list(inspect.signature(self.fn).bind(**given).args)
        return list(given) if isinstance(given, (tuple, list)) else [given]

    def check(self, case: int, *, seed: int, dtype: str | None, device: str | None, order: int) -> GradReport:
        """The report of one case, with random numbers of its own."""
        with self._blamed():
            values = self.arguments(seed, case)
            if self.rule is None:
                if device is not None:
                    values = [_there(value, device) for value in values]
                return check(self.fn, *values, seed=seed + case, order=order, dtype=dtype)
            if order != 1 or device is not None:
                raise ValueError(f"--order and --device are for functions of Tensors, but {self.name}_vjp takes arrays")
            hosts = [np.asarray(value) for value in values]
            return check_vjp(self.fn, self.rule, hosts, seed=seed + case, dtype=dtype)

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """Say of an error where in the user's file it happened."""
        try:
            yield
        except (Exception, SystemExit) as error:
            raise ValueError(_located(self.path, error) or f"{self.path}:{self.name}: {error}") from error


def is_file(target: str) -> bool:
    """True for FILE.py:FUNCTION, and for what was meant as one."""
    return target.endswith(".py") or ".py:" in target


def load(target: str) -> Declared:
    """Run the file of "FILE.py:FUNCTION" and look up what it declares; every problem is a ValueError of one line."""
    text, _, name = target.rpartition(":") if not target.endswith(".py") else (target, "", "")
    path = Path(text)
    members = _run(path)
    functions = [n for n, f in members.items() if inspect.isfunction(f) and f.__module__ == members["__name__"]]
    candidates = [n for n in functions if not n.endswith(("_inputs", "_vjp")) and n != "inputs"]
    if not name or not callable(members.get(name)):
        what = f"there is no function {name}" if name else "name a function"
        raise ValueError(f"{text}: {what}, as in {text}:FUNCTION; it has {', '.join(candidates) or 'none'}")
    inputs = members.get(f"{name}_inputs", members.get("inputs"))
    if inputs is None:
        raise ValueError(f"{text}: declare the inputs of {name}: {name}_inputs = (x, ...), or def {name}_inputs(rng)")
    return Declared(path, name, members[name], members.get(f"{name}_vjp"), inputs)


def _run(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    spec = importlib.util.spec_from_file_location(f"gradcheck:{path.stem}", path)  # no module of that name can exist
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # as for a script: it may import its neighbours
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(_located(path, error) or f"{path}: {error}") from error
    return vars(module)


def _located(path: Path, error: BaseException) -> str:
    """"file:line: error" for an error that a line of the user's file led to; "" for any other."""
    here = path.resolve()
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).resolve() == here:
        return f"{path}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == here]
    return f"{path}:{lines[-1]}: {type(error).__name__}: {error}" if lines else ""


def _there(value: Any, device: str) -> Any:
    """An input on a device."""
    value = value.data if isinstance(value, Tensor) else value
    return arrays.move(value if arrays.is_array(value) else np.asarray(value), device)
