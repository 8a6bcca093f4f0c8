"""g++ in the place of NVRTC: what CuPy hands over as CUDA C++ becomes a shared object that cuda.cpp runs."""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from .build import KERNEL_FLAGS, KERNEL_INCLUDES

BOUNDS = r"(?:__launch_bounds__\([^)]*\)\s*)?"
KERNEL = re.compile(rf"__global__\s+{BOUNDS}void\s+{BOUNDS}(\w+)\s*\(")
C_LINKAGE = re.compile(r'extern\s+"C"\s*$')
SHARED_SIZE = 48 << 10  # bytes, as cuda.cpp reports


def kernels(source: str) -> list[str]:
    """The names under which a program can be asked for its kernels: of those with C linkage."""
    block = re.search(r'extern\s+"C"\s*{', source)
    names = []
    for match in KERNEL.finditer(source):
        own = C_LINKAGE.search(source, 0, match.start())
        if own or (block and block.start() < match.start()):
            names.append(match[1])
    return names


def translate(source: str, name_expressions: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """C++ for kernel.h, and the name of the entry of each expression such as `kernel<float>`."""
    # Shared memory whose size the launch tells: as much as there is.
    source = re.sub(
        r"extern\s+__shared__\s+([\w ]+?)\s+(\w+)\s*\[\s*\]", rf"static \1 \2[{SHARED_SIZE} / sizeof(\1)]", source
    )
    mapping = {expression: f"expression{i}" for i, expression in enumerate(name_expressions)}
    entries = [(name, name) for name in kernels(source)] + [(entry, name) for name, entry in mapping.items()]
    lines = [source, *(f"PRETEND_ENTRY({entry}__entry, ({name}))" for entry, name in entries), ""]
    return "\n".join(lines), mapping


def compile_kernel(source: str, options: Iterable[str], folder: Path) -> bytes:
    """The shared object for translated source. `folder` holds kernel.h. ValueError with what g++ says."""
    with tempfile.NamedTemporaryFile(suffix=".so") as output:
        done = subprocess.run(
            [
                "g++", *KERNEL_FLAGS, "-include", "kernel.h", *KERNEL_INCLUDES, *options,
                # The C++ library is not named: its absence saves half of the linker's time, and what kernels need of
                # it is already in the process, with libcuda.so.1.
                "-pipe", "-shared", "-nostdlib", "-o", output.name, "-x", "c++", "-", "-x", "none", "-lgcc",
            ],
            input=source, capture_output=True, text=True, cwd=folder, env=os.environ | {"LC_ALL": "C"},
        )
        if done.returncode:
            raise ValueError(done.stderr)
        return Path(output.name).read_bytes()
