"""Each outcome of the detection of a GPU, and what `info` and `--device` make of it.

Three worlds, none of which needs a GPU: a stand-in for the module cupy, in this process; the real CuPy on a driver that
is only a name (stub_driver.c); the real CuPy on the pretend device.
"""

import ctypes.util
import importlib.machinery
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pretend_gpu
import pytest

from tinygrad_mnist import cli, gpu

CODES = (
    "missing", "broken-import", "no-driver", "driver-too-old", "no-device", "cuda-error", "no-such-device",
    "library-missing", "wrong-result", "unusable", "ok",
)

GPU12 = "pip uninstall cupy-cuda13x, then pip install 'tinygrad-mnist[gpu12]'"
GPU13 = "pip install 'tinygrad-mnist[gpu13]'"
EITHER = f"{GPU13}, or [gpu12] where the driver is for CUDA 12"
INSTALLED = "pip uninstall cupy-cuda13x, then " + EITHER
GPU = "NVIDIA A100-SXM4-40GB"
GIB = 2**30


# ---- the stand-in -------------------------------------------------------------------------------------------------


class CUDARuntimeError(RuntimeError):
    """As CuPy's own: `status` is the number of the error."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class ErrorOfTheLibraries(Exception):
    pass


def raising(error):
    def function(*args, **kwargs):
        raise error

    return function


def stand_in(*, driver=13000, count=1, failure=None, arange=np.arange, names=(GPU, "NVIDIA L4"), version="14.2.0"):
    """A module cupy: NumPy computes. `failure` is what the driver raises when it is asked for its devices."""
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec("cupy", None))
    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        runtimeGetVersion=lambda: 13020,
        driverGetVersion=lambda: driver,
        getDeviceCount=raising(failure) if failure else lambda: count,
        getDeviceProperties=lambda i: {"name": names[i].encode(), "major": 8, "minor": 0, "totalGlobalMem": 40 * GIB},
        memGetInfo=lambda: (39 * GIB, 40 * GIB),
    )
    module.__version__ = version
    module.cuda = SimpleNamespace(runtime=runtime, Device=Context)
    module.arange = arange
    return module


class Context:
    """Stands for cupy.cuda.Device."""

    def __init__(self, device):
        self.device = device

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None


def off_by_one(n, dtype):
    return np.arange(n, dtype=dtype) + 1


INSUFFICIENT = CUDARuntimeError(35, "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime")
NO_DEVICE = CUDARuntimeError(100, "cudaErrorNoDevice: no CUDA-capable device is detected")
STUB = CUDARuntimeError(34, "cudaErrorStubLibrary: CUDA driver is a stub library")
UNKNOWN = CUDARuntimeError(999, "cudaErrorUnknown: unknown error")
NO_NVRTC = RuntimeError('Failure finding "libnvrtc.so.13 or libnvrtc.so.12": No such file: libnvrtc.so.13\n  list("/")')
NO_CUBLAS = ImportError('Failure finding "libcublasLt.so.13 or libcublasLt.so.12": No such file: libcublasLt.so.13\n')
NO_LINK = ImportError("libcublas.so.13: cannot open shared object file: No such file or directory")
NO_HEADERS = RuntimeError("Failed to find CUDA headers. Please install CUDA toolkit headers (e.g., pip install ...)")
NO_BUILTINS = ErrorOfTheLibraries("nvrtc: error: failed to open libnvrtc-builtins.so.13.5.\n  Make sure that ...")
OLD_GPU = ErrorOfTheLibraries("nvrtc: error: invalid value for --gpu-architecture (-arch)\n")
FULL = MemoryError("Out of memory allocating 512 bytes (allocated so far: 0 bytes).")

OUTCOMES = [
    ("no-driver", {"failure": INSUFFICIENT, "driver": 0},
     "there is no NVIDIA driver: install it, or let the container see it (docker run --gpus all)"),
    ("driver-too-old", {"failure": INSUFFICIENT, "driver": 12080},
     f"the NVIDIA driver is for CUDA 12.8, this CuPy needs CUDA 13: update the driver, or {GPU12}"),
    ("driver-too-old", {"failure": INSUFFICIENT, "driver": 11120},
     "the NVIDIA driver is for CUDA 11.12, this CuPy needs CUDA 13: update the driver"),
    ("no-device", {"failure": NO_DEVICE},
     "the NVIDIA driver sees no GPU: is there a GPU, and may the container see it (docker run --gpus all)?"),
    ("cuda-error", {"failure": UNKNOWN},
     "CUDA does not start (cudaErrorUnknown: unknown error): "
     "see what nvidia-smi says; after an update of the driver, restart the machine"),
    ("cuda-error", {"failure": STUB},
     "CUDA does not start (cudaErrorStubLibrary: CUDA driver is a stub library): "
     "take the folder of stub libraries off LD_LIBRARY_PATH"),
    ("library-missing", {"arange": raising(NO_NVRTC)}, f"CuPy does not find libnvrtc.so.13: {GPU13}"),
    ("library-missing", {"arange": raising(NO_CUBLAS)}, f"CuPy does not find libcublasLt.so.13: {GPU13}"),
    ("library-missing", {"arange": raising(NO_LINK)}, f"CuPy does not find libcublas.so.13: {GPU13}"),
    ("library-missing", {"arange": raising(NO_HEADERS)}, f"CuPy does not find CUDA headers: {GPU13}"),
    ("library-missing", {"arange": raising(NO_BUILTINS)}, f"CuPy does not find libnvrtc-builtins.so.13.5: {GPU13}"),
    ("wrong-result", {"arange": off_by_one},
     "gpu:0 computes 155 where 83 is right: "
     "empty CuPy's cache of kernels (~/.cupy/kernel_cache); else the driver or the GPU is at fault"),
    ("wrong-result", {"arange": lambda n, dtype: np.full(n, np.nan, dtype)},
     "gpu:0 computes nan where 83 is right: "
     "empty CuPy's cache of kernels (~/.cupy/kernel_cache); else the driver or the GPU is at fault"),
    ("unusable", {"arange": raising(OLD_GPU)},
     f"CUDA 13.2 compiles nothing for compute capability 8.0, {GPU}: {GPU12}"),
    ("unusable", {"arange": raising(FULL)},
     "MemoryError: Out of memory allocating 512 bytes (allocated so far: 0 bytes)."),
    ("unusable", {"failure": AttributeError("\nno such function\nat all")}, "AttributeError: no such function"),
    ("unusable", {"version": "13.6.0"}, f"CuPy 13.6.0 is too old, 14 is needed: {INSTALLED}"),
    ("ok", {},
     f"{GPU}, compute capability 8.0, 39.0 of 40.0 GiB free; CuPy 14.2.0 for CUDA 13.2, driver for CUDA 13.0"),
]


@pytest.fixture
def world(monkeypatch):
    """Puts a stand-in in the place of CuPy: `world()` a sound one, `world(None)` none at all."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu, "_installed", lambda: ["cupy-cuda13x"])

    def put(module=..., **facts):
        monkeypatch.setitem(sys.modules, "cupy", stand_in(**facts) if module is ... else module)

    return put


@pytest.mark.parametrize(("code", "facts", "message"), OUTCOMES, ids=[code for code, _, _ in OUTCOMES])
def test_each_outcome_says_in_one_line_what_is_missing_and_what_to_do(world, code, facts, message):
    world(**facts)
    found = gpu.probe()
    assert (found.code, found.message, found.ok) == (code, message, code == "ok")


def test_no_cupy(world, monkeypatch):
    world(None)
    assert gpu.probe() == gpu.Probe("missing", "CuPy is not installed", EITHER)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert gpu.probe().message == "CuPy is not installed: there is none for macOS"


@pytest.mark.parametrize("visible", ["", "-1"])
def test_a_hidden_gpu_is_told_from_none(world, monkeypatch, visible):
    world(failure=NO_DEVICE)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu.probe().message == f"the NVIDIA driver sees no GPU: CUDA_VISIBLE_DEVICES={visible!r} may hide it"


@pytest.mark.parametrize(("count", "present"), [(1, "1 GPU"), (2, "2 GPUs")])
def test_no_such_device(world, count, present):
    world(count=count)
    for device in (count, 7):
        found = gpu.probe(device)
        assert found.code == "no-such-device"
        assert found.message == f"there is no gpu:{device}: this machine has {present}, and the first is gpu:0"


def test_a_cupy_that_pip_does_not_know_is_not_uninstalled(world, monkeypatch):
    world(failure=INSUFFICIENT, driver=12080)
    monkeypatch.setattr(gpu, "_installed", list)
    assert gpu.probe().advice == "update the driver, or pip install 'tinygrad-mnist[gpu12]'"


def test_the_device_that_was_asked_for_is_the_one_that_computes(world):
    entered = []

    class Recorded(Context):
        def __init__(self, device):
            entered.append(device)

    module = stand_in(count=2)
    module.cuda.Device = Recorded
    world(module)
    assert gpu.probe(1).message.startswith("NVIDIA L4, ")
    assert entered == [1]


def test_warnings_of_cupy_do_not_reach_the_user(world, capfd):
    def warn(n, dtype):
        warnings.warn("cannot determine the version of NVRTC", RuntimeWarning, stacklevel=1)
        return np.arange(n, dtype=dtype)

    world(arange=warn)
    assert gpu.probe().ok
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("source", "problem", "advice"),
    [
        ("raise ImportError('libstdc++.so.6: GLIBCXX_3.4.30 not found')",
         "ImportError: libstdc++.so.6: GLIBCXX_3.4.30 not found", INSTALLED),
        # as CuPy does it: a page of text, and the cause beneath
        ("try: raise ImportError('numpy is too new')\n"
         "except ImportError as e: raise ImportError('\\n=====\\nFailed to import CuPy.\\n\\n...') from e",
         "ImportError: numpy is too new", INSTALLED),
        ("import os; os.mkdir('/dev/null/k')", "NotADirectoryError: [Errno 20] Not a directory: '/dev/null/k'",
         "set CUPY_CACHE_DIR to a folder that can be written"),
        ("", "AttributeError: module 'cupy' has no attribute '__version__'", INSTALLED),
    ],
)
def test_a_cupy_that_does_not_import(world, monkeypatch, tmp_path, source, problem, advice):
    world()
    monkeypatch.delitem(sys.modules, "cupy")
    (tmp_path / "cupy").mkdir()
    (tmp_path / "cupy" / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    found = gpu.probe()
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    assert found.code == "broken-import"
    assert found.problem.startswith(f"CuPy does not import ({problem}")
    assert found.advice == advice


def test_two_packages_of_cupy_are_not_even_imported(monkeypatch, tmp_path):
    for name in ("cupy_cuda12x", "cupy_cuda13x"):
        (tmp_path / f"{name}-14.2.0.dist-info").mkdir()
        (tmp_path / f"{name}-14.2.0.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 14.2.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "cupy", stand_in())
    monkeypatch.setattr(gpu.arrays, "cupy", raising(AssertionError("imported")))
    found = gpu.probe()
    assert found.code == "broken-import"
    assert found.message == (
        "cupy-cuda12x and cupy-cuda13x overwrite each other's files: "
        f"pip uninstall cupy-cuda12x cupy-cuda13x, then {EITHER}"
    )


def test_what_was_learnt_before_a_failure_is_reported(world):
    world(arange=raising(NO_NVRTC))
    report = gpu.probe().report()
    assert report == {
        "code": "library-missing",
        "message": f"CuPy does not find libnvrtc.so.13: {GPU13}",
        "emulated": False,
        "cupy": "14.2.0",
        "runtime": "13.2",
        "driver": "13.0",
        "device": 0,
        "devices": ({"name": GPU, "compute_capability": "8.0", "memory_total": 40 * GIB, "memory_free": None},),
    }


def test_the_outcomes_are_those_that_are_documented():
    documented = gpu.probe.__doc__.split("these outcomes:")[1]
    assert all(f"`{code}`" in documented for code in CODES)
    assert {code for code, _, _ in OUTCOMES} | {"missing", "broken-import", "no-such-device"} == set(CODES)


# ---- --device -----------------------------------------------------------------------------------------------------


def test_choosing_what_can_be_used(world):
    world(count=2)
    assert gpu.choose("cpu") == ("cpu", "as asked for")
    assert gpu.choose("gpu") == gpu.choose("gpu:0") == gpu.choose("auto") == ("gpu", gpu.probe().message)
    assert gpu.choose("gpu:1") == ("gpu:1", gpu.probe(1).message)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "--device gpu: the NVIDIA driver sees no GPU: is there "),
        ("gpu:2", "--device gpu:2: the NVIDIA driver sees no GPU: is there "),
    ],
)
def test_a_gpu_that_was_asked_for_and_cannot_be_used_is_an_error_of_one_line(world, device, message):
    world(failure=NO_DEVICE)
    with pytest.raises(gpu.GpuUnavailable, match=message) as error:
        gpu.choose(device)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, ValueError)  # exit code 2 in the command line


def test_auto_takes_the_cpu_where_no_gpu_can_be_used_and_says_why(world):
    world(failure=INSUFFICIENT, driver=12080)
    assert gpu.choose("auto") == ("cpu", "no GPU: the NVIDIA driver is for CUDA 12.8, this CuPy needs CUDA 13")
    world(None)
    assert gpu.choose("auto") == ("cpu", "no GPU: CuPy is not installed")


def test_auto_does_not_take_the_pretend_device(world):
    world(count=2, names=(gpu.PRETEND, GPU))
    assert (gpu.probe(0).emulated, gpu.probe(1).emulated) == (True, False)
    assert gpu.choose("auto") == ("cpu", f"no GPU: {gpu.PRETEND}")
    assert gpu.choose("gpu")[0] == "gpu"


@pytest.mark.parametrize("device", ["", "GPU", "cuda", "gpu:", "gpu:-1", "gpu:x", "gpu:0x1", "gpu:1 ", "gpu:\u0661"])
def test_any_other_device_is_an_error_that_names_the_choices(device):
    with pytest.raises(ValueError, match="--device must be cpu, gpu, gpu:N or auto, got ") as error:
        gpu.choose(device)
    assert type(error.value) is ValueError


# ---- info ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "facts", "message"), OUTCOMES, ids=[code for code, _, _ in OUTCOMES])
def test_info_reports_the_outcome_and_is_done(world, capsys, code, facts, message):
    world(**facts)
    assert cli.run(["info", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["gpu"]
    assert (report["code"], report["message"]) == (code, message)
    assert cli.run(["info"]) == 0
    assert f"\ngpu             {message}\n" in capsys.readouterr().out


def test_info_names_every_gpu(world, capsys):
    world(count=2)
    assert cli.run(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["devices"] == f"cpu, gpu:0 ({GPU}), gpu:1 (NVIDIA L4)"
    assert [device["memory_free"] for device in facts["gpu"]["devices"]] == [39 * GIB, None]


# ---- the real CuPy, in processes of its own -------------------------------------------------------------------------

PACKAGE = Path(gpu.__file__).parents[1]
PROBE = "import json; from tinygrad_mnist import gpu; print(json.dumps(gpu.probe().report()))"


def has(*libraries):
    return any(ctypes.util.find_library(name) for name in libraries)


@pytest.fixture(scope="module")
def wheels():
    """The folder of CuPy as its makers ship it."""
    try:
        return pretend_gpu.wheels()
    except pretend_gpu.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def run(tmp_path):
    """What a program prints in a process with these folders on its path and these variables, as JSON."""

    def run(program, *path, **variables):
        hidden = {"CUDA_VISIBLE_DEVICES", "CUDA_PATH", "CUDA_HOME", "CONDA_PREFIX", "LD_LIBRARY_PATH"}
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment["PYTHONPATH"] = os.pathsep.join(map(str, [PACKAGE, *path]))
        environment["CUPY_CACHE_DIR"] = str(tmp_path / "kernels")
        environment |= {name: str(value) for name, value in variables.items()}
        command = [sys.executable, "-W", "error", "-c", program]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (answer.returncode, answer.stderr) == (0, "")
        return json.loads(answer.stdout)

    return run


@pytest.fixture(scope="module")
def stub_driver(tmp_path_factory):
    """The folder of a libcuda.so.1 that is little more than a name."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("stub_driver.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libcuda.so.1", source], check=True)
    return folder


@pytest.mark.skipif(has("cuda"), reason="this machine has an NVIDIA driver")
def test_cupy_without_a_driver(run, wheels):
    report = run(PROBE, wheels)
    assert (report["code"], report["driver"], report["runtime"]) == ("no-driver", None, "13.2")


@pytest.mark.parametrize(
    ("version", "status", "code", "message"),
    [
        (12080, 0, "driver-too-old", "the NVIDIA driver is for CUDA 12.8, this CuPy needs CUDA 13: update the driver"),
        (11080, 0, "driver-too-old", "the NVIDIA driver is for CUDA 11.8, this CuPy needs CUDA 13: update the driver"),
        (13020, 100, "no-device", "the NVIDIA driver sees no GPU: "),
        (13020, 999, "cuda-error", "CUDA does not start (cudaErrorUnknown: unknown error): "),
        (13020, 34, "cuda-error", "CUDA does not start (cudaErrorStubLibrary: CUDA driver is a stub library): take"),
        (13000, 803, "cuda-error", "CUDA does not start (cudaErrorSystemDriverMismatch: system has unsupported "),
    ],
)
def test_cupy_on_a_driver_that_does_not_do(run, wheels, stub_driver, version, status, code, message):
    variables = {"LD_LIBRARY_PATH": stub_driver, "STUB_DRIVER_VERSION": version, "STUB_DRIVER_STATUS": status}
    report = run(PROBE, wheels, **variables)
    assert (report["code"], report["message"][: len(message)]) == (code, message)
    assert report["driver"] == f"{version // 1000}.{version % 1000 // 10}"


def test_cupy_that_cannot_write_its_cache(run, wheels):
    report = run(PROBE, wheels, CUPY_CACHE_DIR="/dev/null/kernels")
    assert report["code"] == "broken-import"
    assert report["message"].endswith("set CUPY_CACHE_DIR to a folder that can be written")


@pytest.mark.skipif(
    has("nvrtc", "cublasLt") or Path(sysconfig.get_path("purelib"), "nvidia").exists(),
    reason="this machine has libraries of CUDA that CuPy would find",
)
@pytest.mark.parametrize(
    ("code", "message", "variables"),
    [
        ("library-missing", f"CuPy does not find libnvrtc.so.13: {GPU13}", {}),
        ("library-missing", f"CuPy does not find libcublasLt.so.13: {GPU13}", {"CUDA_PATH": "wheels/nvidia/cu13"}),
        # NVRTC compiles for a real GPU: the pretend device takes the kernel and leaves the memory as it is
        ("wrong-result", "gpu:0 computes ", {"CUDA_PATH": "wheels/nvidia/cu13", "LD_LIBRARY_PATH": "pretend"}),
        (
            "unusable",
            f"CUDA 13.2 compiles nothing for compute capability 6.1, {gpu.PRETEND}: {GPU12}",
            {"CUDA_PATH": "wheels/nvidia/cu13", "PRETEND_GPU_CC": "61"},
        ),
        ("unusable", "OutOfMemoryError: Out of memory allocating 512 bytes", {"PRETEND_GPU_MEMORY": "100"}),
    ],
)
def test_cupy_with_a_device_and_without_what_it_needs(run, wheels, code, message, variables):
    folder = wheels.parent
    places = {name: folder / value for name, value in variables.items() if "PATH" in name}
    report = run(PROBE, folder / "pretend", wheels, **{**variables, **places})
    assert (report["code"], report["message"][: len(message)]) == (code, message)
    assert report["emulated"]


ON_THE_PRETEND_DEVICE = """
import pretend_gpu
pretend_gpu.load()
from tinygrad_mnist import cli, gpu
try:
    gpu.choose("gpu:2")
except gpu.GpuUnavailable as error:
    refusal = str(error)
import json
print(json.dumps([gpu.choose("auto"), gpu.choose("gpu:1"), refusal, gpu.probe().report()]))
"""


def test_the_pretend_device_passes_and_says_what_it_is(run, wheels):
    auto, second, refusal, report = run(ON_THE_PRETEND_DEVICE, Path(__file__).parent, PRETEND_GPU_DEVICES=2)
    memory, versions = "8.0 of 8.0 GiB free", "CuPy 14.2.0 for CUDA 13.2, driver for CUDA 13.2"
    words = f"{gpu.PRETEND}, compute capability 8.0, {memory}; {versions}"
    assert auto == ["cpu", f"no GPU: {gpu.PRETEND}"]
    assert second == ["gpu:1", f"emulated, its times are not those of a GPU: {words}"]
    assert refusal == "--device gpu:2: there is no gpu:2: this machine has 2 GPUs, and the first is gpu:0"
    assert (report["code"], report["message"], report["emulated"]) == ("ok", words, True)
