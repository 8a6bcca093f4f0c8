"""Nobody imports upward: a module may import the modules of its row, and a row may name only modules of earlier rows.

Imports inside functions and under TYPE_CHECKING count too: they are arrows like any other.
"""

import ast
import io
import tokenize
from pathlib import Path

import pytest

import tinygrad_mnist

PACKAGE = Path(tinygrad_mnist.__file__).parent

# Module or subpackage: what it may import of this package. A module without a row is an error.
MAY_IMPORT = {
    "arrays": "",
    "gpu": "arrays",
    "modes": "",
    "watching": "",
    "leaf": "arrays modes",
    "program": "arrays",
    "guards": "arrays",
    "core": "arrays modes leaf guards",
    "ops": "arrays core",
    "numpy_api": "arrays core ops",
    "numpy": "arrays core ops numpy_api",  # the drop-in namespace
    "losses": "arrays modes core ops",
    "functional": "arrays modes core",
    "optim": "arrays modes leaf guards core",
    "nn": "arrays modes leaf core ops numpy_api",
    "capture": "arrays modes leaf guards core functional program",
    "tidy": "arrays program",
    "listing": "arrays core program tidy",
    "explanation": "arrays modes leaf core ops losses functional nn capture program listing watching",
    "native": "arrays program",
    "compiled": "arrays modes leaf guards core functional program capture native",
    "distributed": "arrays modes core native",
    "pool": "native distributed",
    "show": "arrays leaf core ops",
    "testing": "arrays core ops numpy_api losses",
    "data": "arrays",  # knows no Tensor
    "serialize": "arrays core nn",
    "recipe": "nn",
    "runs": "recipe serialize",
    "metrics": "",
    "plots": "",
    "inference": "arrays modes core ops losses nn data serialize metrics runs distributed",
    "train": "arrays gpu core ops losses nn optim compiled data recipe runs plots distributed inference",
    "progress": "runs train",
    "sweep": "arrays gpu data serialize recipe runs plots train",
    "selftest": "arrays core functional losses nn optim testing data serialize recipe inference train progress gpu",
    "__init__": "arrays modes core ops numpy_api numpy losses functional optim nn show testing data serialize compiled "
    "explanation distributed",
    "gradcheck": "arrays modes watching core ops numpy_api losses functional testing",
    "export": "data recipe explanation",
    "webpage": "",
    "bench": "__init__ arrays gpu nn optim data plots progress webpage",
    "notebooks": "__init__ arrays numpy core optim gpu data serialize metrics plots runs progress explanation "
    "gradcheck webpage bench",
    "explain_cli": "nn recipe explanation gradcheck notebooks",
    "cli": "arrays ops gpu testing gradcheck selftest distributed pool data serialize recipe runs inference train "
    "progress sweep bench notebooks explain_cli export",
    "__main__": "cli",
}

ARRAY_LIBRARIES = {"numpy", "np", "cupy", "cp"}

# What computes, and what of NumPy it may name. CuPy's arrays accept many of NumPy's functions without a word: a stray
# `np.` is no error on a GPU, it costs a dispatch or hides a copy. What differs between the libraries is in `arrays`.
COMPUTES = {
    **dict.fromkeys(["modes", "guards", "core", "ops", "losses", "functional", "optim", "nn", "show"], ""),
    # the functions that Tensors answer for, shapes and places, which are computed on the host, and dtypes
    "numpy_api": "shape ndim size integer asarray arange ogrid repeat pad broadcast_to bincount full_like exceptions "
    "float64 finfo dtype can_cast result_type linalg unique histogram",
    # images, labels and logits on the host; random numbers; how NumPy warns
    "inference": "uint8 int64 float64 mean isfinite errstate __version__",
    "train": "uint8 arange asarray random errstate",
}
BUDGET = 900  # lines of code in core.py and ops.py together


def unit(path: Path) -> str:
    """The row of a file: its module, or the subpackage that it lies in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(source: str, package: str) -> list[tuple[int, str]]:
    """(line, absolute dotted name) of all that a module of `package` imports. `from a import b` gives `a.b`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                found.append((node.lineno, str(node.args[0].value)))
    return found


def upward(source: str, package: str, row: str) -> list[str]:
    """The imports of this package in `source` that `row` of the table does not allow, as 'line N: name'."""
    offences = []
    for line, name in imports(source, package):
        first, *rest = name.split(".")
        if first == PACKAGE.name:
            target = rest[0] if rest and rest[0] in MAY_IMPORT else "__init__"
            if target != row and target not in MAY_IMPORT[row].split():
                offences.append(f"line {line}: {row} imports {target} ({name})")
    return offences


def names_of_array_libraries(source: str) -> list[str]:
    """Where `source` imports or names an array library, as 'line N: name'. The method `t.numpy()` is none."""
    found = imports(source, PACKAGE.name)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            found.append((node.lineno, node.id))
        elif isinstance(node, ast.Attribute) and node.attr != "numpy":
            found.append((node.lineno, node.attr))
    return [f"line {line}: {name}" for line, name in found if ARRAY_LIBRARIES & {*name.split(".")}]


def stray(source: str, allowed: str) -> list[str]:
    """Where `source` names a part of NumPy that is not allowed, as 'line N: name'."""
    found = [
        (node.lineno, node.attr)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ARRAY_LIBRARIES
    ]
    found += [
        (node.lineno, alias.name)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module in ARRAY_LIBRARIES
        for alias in node.names
    ]
    return [f"line {line}: {name}" for line, name in found if name not in allowed.split()]


def lines_of_code(source: str) -> int:
    """Lines that hold anything but a comment, a docstring or a string that stands alone as one."""
    texts = [
        (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    empty = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in empty and not any(text[:2] <= token.start and token.end <= text[2:] for text in texts):
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines)


FILES = sorted(PACKAGE.rglob("*.py"))


def test_a_row_names_only_earlier_rows():
    earlier: set[str] = set()
    for row, allowed in MAY_IMPORT.items():
        assert set(allowed.split()) <= earlier, row
        earlier.add(row)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_imports_upward(path):
    assert unit(path) in MAY_IMPORT, f"give {unit(path)} a row in MAY_IMPORT"
    package = ".".join([PACKAGE.name, *path.relative_to(PACKAGE).parts[:-1]])
    assert upward(path.read_text(encoding="utf-8"), package, unit(path)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_arrays_imports_cupy(path):
    found = imports(path.read_text(encoding="utf-8"), PACKAGE.name)
    where_from = [name for _, name in found if name.split(".")[0] == "cupy"]
    assert where_from == [] or path.relative_to(PACKAGE).as_posix() in ("arrays.py", "testing/cupy_api.py")


@pytest.mark.parametrize("name", COMPUTES)
def test_what_computes_names_no_array_library(name):
    source = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
    assert stray(source, COMPUTES[name]) == []
    assert COMPUTES[name] or names_of_array_libraries(source) == []


@pytest.mark.parametrize("name", COMPUTES)
def test_nothing_is_allowed_that_is_not_used(name):
    used = stray((PACKAGE / f"{name}.py").read_text(encoding="utf-8"), "")
    assert {text.split()[-1] for text in used} == {*COMPUTES[name].split()}


def test_core_and_rules_stay_readable_in_one_sitting():
    counts = {name: lines_of_code((PACKAGE / name).read_text(encoding="utf-8")) for name in ("core.py", "ops.py")}
    assert sum(counts.values()) < BUDGET, counts


# The checks above, checked.


@pytest.mark.parametrize(
    ("source", "package", "row"),
    [
        ("from .ops import add", "tinygrad_mnist", "core"),
        ("from . import ops", "tinygrad_mnist", "core"),
        ("import tinygrad_mnist.cli", "tinygrad_mnist", "train"),
        ("from tinygrad_mnist import Tensor", "tinygrad_mnist", "data"),
        ("def f():\n    from .. import core", "tinygrad_mnist.data", "data"),
        ("import importlib\nimportlib.import_module('tinygrad_mnist.progress')", "tinygrad_mnist", "train"),
    ],
)
def test_a_planted_upward_import_is_caught(source, package, row):
    assert len(upward(source, package, row)) == 1


@pytest.mark.parametrize(
    ("source", "package", "row"),
    [
        ("import numpy\nfrom numpy import exp", "tinygrad_mnist", "core"),
        ("from . import arrays\nfrom .arrays import sum_to", "tinygrad_mnist", "core"),
        ("from .idx import read\nfrom . import idx", "tinygrad_mnist.data", "data"),
        ("from ..core import Tensor", "tinygrad_mnist.testing", "testing"),
    ],
)
def test_imports_downward_sideways_and_of_others_pass(source, package, row):
    assert upward(source, package, row) == []


@pytest.mark.parametrize("source", ["np.exp(x)", "x = 1\ny = np.linalg.norm(x)", "from numpy import exp", "cupy.exp"])
def test_a_planted_stray_function_is_caught(source):
    assert len(stray(source, "shape asarray")) == 1


@pytest.mark.parametrize("source", ["import numpy", "from numpy import e", "from .arrays import np", "arrays.np", "cp"])
def test_a_planted_array_library_is_caught(source):
    assert len(names_of_array_libraries(source)) == 1


def test_lines_of_code_leaves_out_docstrings_comments_and_blanks():
    docs = '"""Module\n\ndocs."""\n\n# comment\nclass A:\n    """Docs."""\n'
    code = 'x = 1  # comment\ndef f(a,\n      b): "docs"\ny = """two\nlines"""\n'
    assert lines_of_code(docs + code) == 1 + 5
