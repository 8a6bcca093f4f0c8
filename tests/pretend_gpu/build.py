"""Build the pretend GPU from the package registry and the sources beside this file.

    python tests/pretend_gpu/build.py [DIR]

Needs pip, g++ 12 or newer and Python's headers, on Linux x86-64; half a minute and 370 MB. DIR is by default a folder
under `$XDG_CACHE_HOME` or `~/.cache`, whose name changes with the sources, the versions and the Python. Any environment
of this version of Python can use what lies there; NumPy comes from the environment:

    wheels/   CuPy and what it needs, as published: without a driver, as on any machine
    pretend/  what goes before it on the path: CuPy's wrapper of the CUDA runtime, linked anew; libcuda; libcublas;
              the header with which g++ compiles kernels
    kernels/  compiled kernels, as they come up

A finished build is left as it is. Ends with one line and 2 if something is missing on this machine, 1 if the sources do
not build.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parent

CUPY = "14.2.0"
NUMPY = ((2, 0), (2, 6))  # what that CuPy declares: from the first, below the second

WHEELS = (
    f"cupy-cuda13x=={CUPY}",
    "cuda-pathfinder==1.9.0",
    "nvidia-cuda-nvrtc==13.5.37",
    "nvidia-cuda-runtime==13.5.37",
    "nvidia-cuda-crt==13.5.37",
    "nvidia-cuda-profiler-api==13.5.25",
)
TOOLS = ("cython==3.2.4", "setuptools==84.2.1")  # to build one module of CuPy's source; thrown away

# The flags with which CuPy's own build translates its runtime module.
CYTHON = (
    "-3", "--cplus", "-X", "c_api_binop_methods=True", "-X", "binding=False", "-X", "embedsignature=True",
    "-X", "freethreading_compatible=True",
    "-E", "CUPY_CUDA_VERSION=13020,CUPY_HIP_VERSION=0,CUPY_USE_CUDA_PYTHON=False,CUPY_CUFFT_STATIC=False",
)

# The flags of a kernel. The precompiled header is only taken by a compilation with the same ones.
# `-fwhole-program` drops what a kernel does not use of the header before any time is spent on it.
# `-ffp-contract=off`: a*b + c rounds twice, as NumPy does, whatever the processor could do.
KERNEL_FLAGS = (
    "-std=c++17", "-O1", "-w", "-fPIC", "-fwhole-program", "-ffp-contract=off",
    "-fno-exceptions", "-fno-threadsafe-statics",
)
# Seen from `pretend`. Not CUDA's own headers, whose definitions kernel.h replaces.
CUPY_INCLUDE = "../wheels/cupy/_core/include"
KERNEL_INCLUDES = ("-I", "overlay", "-I", CUPY_INCLUDE, "-I", f"{CUPY_INCLUDE}/cupy/_cccl/libcudacxx")

STAMP = "built.json"


class Failure(Exception):
    """Why there is no pretend GPU, in one line."""


class Missing(Failure):
    """This machine, or its network, does not allow one: nothing is wrong with the sources."""


# ----------------------------------------------------------------------------------------------------------------------
# Where it lies, and whether it is there
# ----------------------------------------------------------------------------------------------------------------------


def key() -> str:
    """What a build depends on, as a short hash: the sources, the versions, the Python, the machine."""
    digest = hashlib.sha256(f"{sys.implementation.cache_tag} {platform.machine()}".encode())
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix in {".cpp", ".h"} or path.name in {"build.py", "compiler.py"}:
            digest.update(f"\n{path.relative_to(SOURCES).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def default_folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "tinygrad-mnist" / f"pretend-gpu-{key()}"


def built_key(folder: Path) -> str | None:
    """The key of the finished build in a folder; None if there is none."""
    try:
        return json.loads((folder / STAMP).read_text())["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


# ----------------------------------------------------------------------------------------------------------------------
# Steps
# ----------------------------------------------------------------------------------------------------------------------


def run(
    what: str, *command: str | Path, cwd: Path | None = None, kind: type[Failure] = Failure, **environment: str
) -> str:
    """The output of a command; its last word of error as a `Failure`."""
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines or [f"exit code {done.returncode}"]
        raise kind(f"{what}: {errors[-1]}")
    return done.stdout


def pip(*arguments: str | Path, **environment: str) -> None:
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
    run("pip failed (no network?)", sys.executable, "-m", "pip", *arguments, *quiet, kind=Missing, **environment)


def check_machine() -> None:
    """Raise `Missing` unless this machine can build it."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or sys.implementation.name != "cpython":
        raise Missing(
            f"only CPython on Linux x86-64 is supported, not {sys.implementation.name} on {sys.platform} "
            f"{platform.machine()}"
        )
    if shutil.which("g++") is None:
        raise Missing("no C++ compiler: install g++ 12 or newer")
    version = run("g++ does not run", "g++", "-dumpversion", kind=Missing).strip()
    if int(version.split(".")[0]) < 12:
        raise Missing(f"g++ is version {version}: install g++ 12 or newer")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise Missing("no Python.h: install the headers of this Python (python3-dev, or python3-devel)")


def runtime_source(work: Path) -> Path:
    """CuPy's wrapper of the CUDA runtime as C++, from the source package; `work` also keeps its headers."""
    tools = {"PYTHONPATH": str(work / "tools")}
    pip("install", "--no-deps", "--target", work / "tools", *TOOLS)
    pip("download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", work, f"cupy=={CUPY}",
        CUPY_INSTALL_USE_STUB="1", **tools)
    with tarfile.open(work / f"cupy-{CUPY}.tar.gz") as archive:
        archive.extractall(work, filter="data")
    output = work / "runtime.cpp"
    run("cython failed", sys.executable, "-m", "cython", *CYTHON, "cupy_backends/cuda/api/runtime.pyx", "-o", output,
        cwd=work / f"cupy-{CUPY}", **tools)
    return output


def compile_cpp(source: Path, output: Path, *flags: str | Path) -> None:
    run(f"g++ failed on {source.name}", "g++", "-w", "-O2", "-fPIC", "-std=c++17", *flags, "-c", source, "-o", output)


def symbols(path: Path, pattern: str, *flags: str) -> set[str]:
    return set(re.findall(pattern, run("nm failed", "nm", *flags, path)))


def stubs(names: set[str], status: int, work: Path) -> Path:
    """An object in which every function answers with a status."""
    source = work / f"stubs{status}.cpp"
    source.write_text("".join(f'extern "C" int {name}() {{ return {status}; }}\n' for name in sorted(names)))
    output = source.with_suffix(".o")
    compile_cpp(source, output)
    return output


def link(output: Path, *inputs: str | Path) -> None:
    run(f"g++ failed to link {output.name}", "g++", "-shared", "-o", output, *inputs)


def build(folder: Path) -> None:
    """Fill a folder, all but the stamp."""
    wheels, pretend, work = folder / "wheels", folder / "pretend", folder / "work"
    work.mkdir()
    pip("install", "--no-deps", "--only-binary", ":all:", "--target", wheels, *WHEELS)

    # The wheel's other modules stay as they are; but a package lies in one folder.
    shutil.copytree(wheels / "cupy_backends", pretend / "cupy_backends")
    runtime = pretend / "cupy_backends/cuda/api" / f"runtime{sysconfig.get_config_var('EXT_SUFFIX')}"
    cublas = next((wheels / "cupy_backends/cuda/libs").glob("cublas.*.so"))
    libcuda = pretend / "libcuda.so.1"
    runtime.unlink()

    source = runtime_source(work)
    cuda = ("-I", wheels / "nvidia/cu13/include")
    backends = work / f"cupy-{CUPY}/cupy_backends"
    python = ("-I", sysconfig.get_path("include"))
    compile_cpp(source, work / "runtime.o", "-O1", *cuda, "-I", backends / "cuda/api", "-I", backends, *python)
    compile_cpp(SOURCES / "cuda.cpp", work / "cuda.o", *cuda)
    compile_cpp(SOURCES / "cublas.cpp", work / "cublas.o", "-O3", "-ffp-contract=off")

    called = symbols(work / "runtime.o", r"\bU (cuda[A-Z]\w+)")
    missing = stubs(called - symbols(work / "cuda.o", r"\bT (cuda\w+)"), 801, work)  # cudaErrorNotSupported
    link(libcuda, "-Wl,-soname,libcuda.so.1", work / "cuda.o", missing, "-ldl", "-lm")
    here = ("-L", pretend, "-l:libcuda.so.1")
    link(runtime, work / "runtime.o", *here, "-Wl,-rpath,$ORIGIN/../../..")

    called = symbols(cublas, r"\bU (cublas\w+)@", "-D")
    missing = stubs(called - symbols(work / "cublas.o", r"\bT (cublas\w+)"), 15, work)  # CUBLAS_STATUS_NOT_SUPPORTED
    versions = work / "cublas.map"
    versions.write_text("libcublas.so.13 { global: *; };\n")
    link(pretend / "libcublas.so.13", "-Wl,-soname,libcublas.so.13", f"-Wl,--version-script,{versions}",
         work / "cublas.o", missing, *here, "-Wl,-rpath,$ORIGIN")
    link(pretend / "libcublasLt.so.13", "-Wl,-soname,libcublasLt.so.13", stubs(set(), 0, work))

    shutil.copytree(SOURCES / "overlay", pretend / "overlay")
    shutil.copy(SOURCES / "kernel.h", pretend)
    run("g++ failed on kernel.h", "g++", *KERNEL_FLAGS, *KERNEL_INCLUDES, "-x", "c++-header", "kernel.h", cwd=pretend)
    shutil.rmtree(work)


def put_in_place(draft: Path, folder: Path) -> None:
    """Make a finished draft the build in a folder, unless another process has put one there meanwhile."""
    if built_key(folder) == key():
        return
    try:
        if folder.exists():
            folder.rename(draft / "replaced")
        draft.rename(folder)
    except OSError:
        if built_key(folder) != key():
            raise
    shutil.rmtree(folder / "replaced", ignore_errors=True)


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0]).resolve() if arguments else default_folder()
    if built_key(folder) == key():
        print(f"the pretend GPU lies in {folder}")
        return
    if folder.exists() and built_key(folder) is None and any(folder.iterdir()):
        raise Missing(f"{folder} is not empty and holds no pretend GPU: name another folder")
    check_machine()
    print(f"building the pretend GPU in {folder} (half a minute)", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, and renamed at the end: what was interrupted is never taken for finished.
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        build(draft)
        (draft / STAMP).write_text(json.dumps({"key": key()}) + "\n")
        put_in_place(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    print(f"the pretend GPU lies in {folder}")
    others = [path for path in folder.parent.glob("pretend-gpu-*") if path != folder]
    if others and not arguments:
        print(f"{len(others)} others beside it can be deleted when nothing uses them")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (Failure, OSError) as failure:
        print(f"build.py: {failure}", file=sys.stderr)
        sys.exit(1 if type(failure) is Failure else 2)
