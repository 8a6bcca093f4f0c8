"""Which GPU can be used, and where there is none, what exactly is missing and what to do about it.

That CuPy imports says nothing: it does so without a GPU, without a driver and without CUDA's libraries. So `probe` runs
a kernel and a matrix product, and looks at the number.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import warnings
from dataclasses import asdict, dataclass
from typing import Any

from . import arrays

PRETEND = "pretend device (host memory)"
"""The name of the device with which the tests run CuPy where there is no GPU."""

PACKAGES = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")  # all of them install the same files
INSTALL = "pip install 'tinygrad-mnist[gpu13]', or [gpu12] where the driver is for CUDA 12"

# How CuPy, NVRTC and the loader name the file that they do not find.
_LACKING = re.compile(
    r'Failure finding "(\S+)|failed to open (\S+\d)|Failed to find (CUDA headers)|(\S+): cannot open shared object file'
)


class GpuUnavailable(ValueError):
    """A GPU was asked for that cannot be used: one line that says why, and what to do."""


@dataclass
class Device:
    """A GPU as its driver describes it. Memory in bytes; `memory_free` is known of the device that was probed."""

    name: str
    compute_capability: str
    memory_total: int
    memory_free: int | None = None


@dataclass
class Probe:
    """What `probe` found: an outcome, and as much of versions and devices as could be learnt on the way to it."""

    code: str = "ok"
    problem: str = ""
    advice: str = ""
    cupy: str | None = None
    runtime: str | None = None
    driver: str | None = None
    device: int = 0
    devices: tuple[Device, ...] = ()

    @property
    def ok(self) -> bool:
        return self.code == "ok"

    @property
    def emulated(self) -> bool:
        """True on the pretend device of the tests: its results count, its times do not."""
        return self.device < len(self.devices) and self.devices[self.device].name == PRETEND

    @property
    def message(self) -> str:
        """One line: the GPU, or what is missing and what to do."""
        if not self.ok:
            return ": ".join(filter(None, (self.problem, self.advice)))
        gpu = self.devices[self.device]
        free, total = (gpu.memory_free or 0) / 2**30, gpu.memory_total / 2**30
        return (
            f"{gpu.name}, compute capability {gpu.compute_capability}, {free:.1f} of {total:.1f} GiB free; "
            f"CuPy {self.cupy} for CUDA {self.runtime}, driver for CUDA {self.driver}"
        )

    def report(self) -> dict[str, Any]:
        """All of it, for JSON."""
        facts = asdict(self)
        del facts["problem"], facts["advice"]
        return {"code": facts.pop("code"), "message": self.message, "emulated": self.emulated, **facts}


class _Outcome(Exception):
    """Ends the checks: code, problem, advice."""


def probe(device: int = 0) -> Probe:
    """Find out whether GPU number `device` computes, by letting it. Never raises; one of these outcomes:

    `missing`: CuPy is not installed. `broken-import`: it does not import, or two packages of it are installed.
    `no-driver`. `driver-too-old` for this CuPy. `no-device`: the driver sees none. `cuda-error`: the driver fails.
    `no-such-device`: there are fewer. `library-missing`: a part of CUDA that CuPy needs. `wrong-result`: it computes,
    but not what it should. `unusable`: anything else. `ok`.
    """
    found = Probe(device=device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CuPy's, on what is about to be found and said in one line
            _examine(found)
    except _Outcome as outcome:
        found.code, found.problem, found.advice = outcome.args
    except Exception as error:
        found.code, found.problem = "unusable", _first_line(error)
    return found


def emulated(device: str) -> bool:
    """True on what only stands for a GPU: its results count, its times do not."""
    number = arrays.gpu_number(device)
    if number is None:
        return device != "cpu"
    properties = arrays.cupy().cuda.runtime.getDeviceProperties(number)
    return bool(properties["name"].decode() == PRETEND)


def choose(device: str) -> tuple[str, str]:
    """The device to compute on for a `--device` of the command line, and the reason in one line.

    `cpu` and `gpu` (`gpu:1` is the second one) are taken at their word: a GPU that cannot be used raises
    GpuUnavailable. `auto` takes a GPU if there is one, but not the pretend one. Anything else raises ValueError.
    """
    if device == "cpu":
        return "cpu", "as asked for"
    if device == "auto":
        found = probe()
        if found.ok and not found.emulated:
            return "gpu", found.message
        return "cpu", f"no GPU: {found.problem or found.devices[0].name}"
    number = arrays.gpu_number(device)
    if number is None:
        raise ValueError(f"--device must be cpu, gpu, gpu:N or auto, got {device!r}")
    found = probe(number)
    if not found.ok:
        raise GpuUnavailable(f"--device {device}: {found.message}")
    note = "emulated, its times are not those of a GPU: " if found.emulated else ""
    return arrays.canonical(device), note + found.message


# ---- the checks, in their order


def _examine(found: Probe) -> None:
    """Fill in `found`; raise _Outcome at the first check that fails."""
    cupy = _import(found)
    runtime = cupy.cuda.runtime
    cuda, driver = runtime.runtimeGetVersion(), runtime.driverGetVersion()
    found.runtime = _version(cuda)
    found.driver = _version(driver) if driver else None
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        raise _no_device(error, error.status, cuda, driver) from error
    properties = [runtime.getDeviceProperties(i) for i in range(count)]
    found.devices = tuple(
        Device(p["name"].decode(), f"{p['major']}.{p['minor']}", p["totalGlobalMem"]) for p in properties
    )
    if found.device >= count:
        present = "1 GPU" if count == 1 else f"{count} GPUs"
        advice = f"this machine has {present}, and the first is gpu:0"
        raise _Outcome("no-such-device", f"there is no gpu:{found.device}", advice)
    gpu = found.devices[found.device]
    try:
        with cupy.cuda.Device(found.device):
            a = cupy.arange(6, dtype="float32").reshape(2, 3)  # a kernel: NVRTC and CUDA's headers
            total = float((a @ a.T).sum())  # a matrix product: cuBLAS
            gpu.memory_free = runtime.memGetInfo()[0]
    except Exception as error:
        raise _not_computing(error, cuda, gpu) from error
    if total != 83:  # 5 + 14 + 14 + 50
        advice = "empty CuPy's cache of kernels (~/.cupy/kernel_cache); else the driver or the GPU is at fault"
        raise _Outcome("wrong-result", f"gpu:{found.device} computes {total:g} where 83 is right", advice)


def _import(found: Probe) -> Any:
    """The module cupy, if there is one that can be used."""
    if importlib.util.find_spec("cupy") is None:
        missing = "CuPy is not installed"
        if platform.system() == "Darwin":
            raise _Outcome("missing", missing, "there is none for macOS")
        raise _Outcome("missing", missing, INSTALL)
    packages = _installed()
    if len(packages) > 1:
        raise _Outcome("broken-import", f"{' and '.join(packages)} overwrite each other's files", _reinstall())
    try:
        cupy = arrays.cupy()
        found.cupy = cupy.__version__
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # CuPy wraps the cause in a page of text
            cause = cause.__cause__
        advice = _reinstall()
        if isinstance(cause, OSError) and cause.filename:  # while it makes the folder of its kernels
            advice = "set CUPY_CACHE_DIR to a folder that can be written"
        raise _Outcome("broken-import", f"CuPy does not import ({_first_line(cause)})", advice) from error
    if int(cupy.__version__.partition(".")[0]) < 14:  # before, float32 with a NumPy float64 was float32
        raise _Outcome("unusable", f"CuPy {cupy.__version__} is too old, 14 is needed", _reinstall())
    return cupy


def _no_device(error: Exception, status: int, cuda: int, driver: int) -> _Outcome:
    """Why CUDA counts no devices: by the status of its error, and the versions of runtime and driver."""
    if status == 35 and not driver:
        advice = "install it, or let the container see it (docker run --gpus all)"
        return _Outcome("no-driver", "there is no NVIDIA driver", advice)
    if status == 35:
        problem = f"the NVIDIA driver is for CUDA {_version(driver)}, this CuPy needs CUDA {cuda // 1000}"
        other = f", or {_reinstall(driver // 1000)}" if driver >= 12000 else ""
        return _Outcome("driver-too-old", problem, f"update the driver{other}")
    if status == 100:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        advice = "is there a GPU, and may the container see it (docker run --gpus all)?"
        if visible is not None:
            advice = f"CUDA_VISIBLE_DEVICES={visible!r} may hide it"
        return _Outcome("no-device", "the NVIDIA driver sees no GPU", advice)
    advice = "see what nvidia-smi says; after an update of the driver, restart the machine"
    if status == 34:
        advice = "take the folder of stub libraries off LD_LIBRARY_PATH"
    return _Outcome("cuda-error", f"CUDA does not start ({error})", advice)


def _not_computing(error: Exception, cuda: int, gpu: Device) -> _Outcome:
    """Why a device that is there could not run the kernel or the product."""
    lacking = _LACKING.search(str(error))
    if lacking is not None:
        name = lacking[lacking.lastindex or 0]
        return _Outcome("library-missing", f"CuPy does not find {name}", _install(cuda // 1000))
    if "--gpu-architecture" in str(error):
        problem = f"CUDA {_version(cuda)} compiles nothing for compute capability {gpu.compute_capability}, {gpu.name}"
        return _Outcome("unusable", problem, _reinstall(12) if cuda >= 13000 else "")
    return _Outcome("unusable", _first_line(error), "")


# ---- words


def _version(number: int) -> str:
    """12080 is CUDA 12.8."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _first_line(error: BaseException) -> str:
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line}"


def _installed() -> list[str]:
    """The packages of CuPy in this environment."""
    names = []
    for name in PACKAGES:
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        names.append(name)
    return names


def _install(major: int | None = None) -> str:
    """How to install CuPy with its libraries for a major version of CUDA."""
    return f"pip install 'tinygrad-mnist[gpu{major}]'" if major in (12, 13) else INSTALL


def _reinstall(major: int | None = None) -> str:
    """How to put that CuPy in the place of what is installed."""
    packages = _installed()  # none where it came from elsewhere, as from a folder on PYTHONPATH
    return f"pip uninstall {' '.join(packages)}, then {_install(major)}" if packages else _install(major)
