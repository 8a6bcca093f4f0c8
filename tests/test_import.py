"""`import tinygrad_mnist` is cheap because of what it leaves out. (benchmarks/import_time.py measures the time.)"""

import json
import subprocess
import sys

OPTIONAL = ("cupy", "hypothesis", "typer", "rich", "matplotlib", "safetensors", "PIL", "scipy", "numba", "pytest")

# The standard modules that the package itself may import at import time. What they import in turn is theirs to decide.
STANDARD = (
    "__future__", "collections.abc", "contextlib", "contextvars", "dataclasses", "functools", "gzip", "hashlib",
    "inspect", "io", "itertools", "math", "operator", "os", "pathlib", "re", "struct", "threading", "types", "typing",
    "warnings", "weakref", "zlib",
)

PROGRAM = f"""
import json, sys, {", ".join(STANDARD)}, numpy
before = set(sys.modules)
import tinygrad_mnist
print(json.dumps(sorted(set(sys.modules) - before)))
print(json.dumps(sorted(sys.modules)))
"""


def top_level(modules: list[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_importing_the_package_brings_in_itself_and_nothing_else():
    answer = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    new, present = map(json.loads, answer.stdout.splitlines())
    assert top_level(new) - {"numpy"} == {"tinygrad_mnist"}  # NumPy loads some of its own parts at their first use
    assert not top_level(present) & set(OPTIONAL)
