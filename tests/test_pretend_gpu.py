"""The pretend GPU itself: it computes, counts and refuses as it says it does. (tests/pretend_gpu/README.md)"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pretend_gpu
import pytest
from pretend_gpu import build, compiler

TESTS = Path(__file__).parent
BUILD = TESTS / "pretend_gpu" / "build.py"


@pytest.fixture(scope="module")
def built():
    try:
        return pretend_gpu.folder()
    except pretend_gpu.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def cupy(built):
    try:
        return pretend_gpu.load()
    except pretend_gpu.Unavailable as reason:
        pytest.skip(str(reason))


def in_process(code, **environment):
    """What a program prints, as JSON, in a fresh process that has the pretend GPU."""
    program = f"import json, pretend_gpu\ncupy = pretend_gpu.load()\n{code}"
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=os.environ | {"PYTHONPATH": str(TESTS)} | environment, capture_output=True, text=True, check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def numbers(*shape, dtype="float32"):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


# ----------------------------------------------------------------------------------------------------------------------
# Numbers
# ----------------------------------------------------------------------------------------------------------------------

CLOSE = {"float16": 2e-3, "float32": 1e-6, "float64": 1e-14, "complex64": 1e-6, "complex128": 1e-14}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["exp", "log1p", "tanh", "sqrt", "sign", "square", "arctan", "floor"])
def test_elementwise_functions_agree_with_numpy(cupy, name, dtype):
    x = np.abs(numbers(3, 5, dtype=dtype))
    for host in (x, x.T, x[::2, 1:], x[:, :0], x[0, 0]):
        result = getattr(cupy, name)(cupy.asarray(host))
        expected = getattr(np, name)(host)
        assert result.dtype == expected.dtype
        np.testing.assert_allclose(result.get(), expected, rtol=CLOSE[dtype], strict=True)


@pytest.mark.parametrize("axis", [None, 0, 1, (0, 2)])
@pytest.mark.parametrize("name", ["sum", "max", "mean", "argmin", "prod", "var"])
def test_reductions_agree_with_numpy(cupy, name, axis):
    if name == "argmin" and isinstance(axis, tuple):
        axis = 2
    host = numbers(7, 40, 33, dtype="float64")
    result = getattr(cupy, name)(cupy.asarray(host), axis=axis)
    np.testing.assert_allclose(result.get(), getattr(np, name)(host, axis=axis), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", CLOSE)
def test_products_agree_with_numpy(cupy, dtype):
    a, b = numbers(6, 4, dtype=dtype), numbers(4, 5, dtype=dtype)
    if np.iscomplexobj(a):
        a, b = a + 1j * a[::-1], b - 2j * b
    device_a, device_b = cupy.asarray(a), cupy.asarray(b)
    products = {
        "a @ b": (device_a @ device_b, a @ b),
        "transposed": (device_b.T @ device_a.T, b.T @ a.T),
        "conjugated": (cupy.dot(device_a.conj(), device_b), a.conj() @ b),
        "parts": (device_a[::2, 1:] @ device_b[1:, :3], a[::2, 1:] @ b[1:, :3]),
        "vector": (device_a[0] @ device_b, a[0] @ b),
        "no inner axis": (device_a[:, :0] @ device_b[:0], a[:, :0] @ b[:0]),
    }
    if dtype != "float16":  # CuPy itself has no batches of these
        products["batch"] = (cupy.stack([device_a, -device_a]) @ device_b, np.stack([a, -a]) @ b)
    for case, (result, expected) in products.items():
        assert result.dtype == dtype, case
        np.testing.assert_allclose(result.get(), expected, rtol=0, atol=20 * CLOSE[dtype], err_msg=case)


@pytest.mark.parametrize("dtype", ["float32", "int64", "float16"])
def test_sorting_agrees_with_numpy(cupy, dtype):
    host = (numbers(5, 9) * 4).astype(dtype)
    if host.dtype.kind == "f":
        host[1, 3] = np.nan
    device = cupy.asarray(host)
    for axis in (0, 1):
        np.testing.assert_array_equal(cupy.sort(device, axis=axis).get(), np.sort(host, axis=axis))
        np.testing.assert_array_equal(cupy.argsort(device, axis=axis).get(), np.argsort(host, axis=axis, kind="stable"))
    for empty in (device[:0], device[:, :0]):
        assert cupy.sort(empty).shape == cupy.argsort(empty).shape == empty.shape
    host = np.nan_to_num(host)
    device = cupy.asarray(host)
    np.testing.assert_array_equal(cupy.unique(device).get(), np.unique(host))
    np.testing.assert_array_equal(cupy.lexsort(device).get(), np.lexsort(host))
    np.testing.assert_array_equal(cupy.median(device).get(), np.median(host))


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int32"])
def test_scatter_add_counts_each_duplicate(cupy, dtype):
    target, index = np.zeros((4, 3), dtype), np.array([1, 1, 3, 1])
    values = np.arange(12).reshape(4, 3).astype(dtype)
    result = cupy.asarray(target)
    cupy.add.at(result, cupy.asarray(index), cupy.asarray(values))
    np.add.at(target, index, values)
    np.testing.assert_array_equal(result.get(), target)


THREADS = r"""
extern "C" __global__ void reverse(float* x, int n) {       // shared memory whose size the launch tells
  extern __shared__ float shared[];
  int i = threadIdx.x + blockDim.x * threadIdx.y;
  shared[i] = x[blockIdx.x * n + i];
  __syncthreads();
  x[blockIdx.x * n + i] = shared[n - 1 - i];
}
extern "C" __global__ void warp_sums(float* x) {            // the first lane of each warp gets the sum
  float sum = x[threadIdx.x];
  for (int d = 16; d; d >>= 1) sum += __shfl_down_sync(~0u, sum, d);
  x[threadIdx.x] = threadIdx.x % 32 ? 0 : sum;
}
extern "C" __global__ void uneven(int* x) {                 // threads that end early do not hold up the others
  if (threadIdx.x % 3 == 0) return;
  x[threadIdx.x] = __popc(__ballot_sync(~0u, threadIdx.x % 2));
}
template <class T> __global__ void twice(T* x) { x[threadIdx.x] *= 2; }
"""


def test_threads_of_a_block_wait_for_each_other(cupy):
    module = cupy.RawModule(code=THREADS, name_expressions=["twice<float>", "twice<long long>"])
    x = cupy.arange(3 * 48, dtype="float32")
    module.get_function("reverse")((3,), (16, 3), (x, np.int32(48)), shared_mem=4 * 48)
    np.testing.assert_array_equal(x.get(), np.arange(3 * 48).reshape(3, 48)[:, ::-1].ravel())

    x = cupy.arange(64, dtype="float32")
    module.get_function("warp_sums")((1,), (64,), (x,))
    assert (x[0].item(), x[32].item()) == (sum(range(32)), sum(range(32, 64)))

    x = cupy.zeros(32, "int32")
    module.get_function("uneven")((1,), (32,), (x,))
    assert x.tolist() == [sum(i % 2 for i in range(32) if i % 3) if i % 3 else 0 for i in range(32)]

    x = cupy.arange(5, dtype="int64")
    module.get_function("twice<long long>")((1,), (5,), (x,))
    assert x.tolist() == [0, 2, 4, 6, 8]


def test_an_own_kernel_runs(cupy):
    kernel = cupy.ElementwiseKernel("T x, T rate", "T y", "y -= rate * x", "descend")
    x, y = cupy.asarray(numbers(3, 4)), cupy.ones((3, 4), "float32")
    kernel(x, np.float32(0.5), y)
    np.testing.assert_allclose(y.get(), 1 - 0.5 * numbers(3, 4), rtol=1e-6)
    norm = cupy.ReductionKernel("T x", "T y", "x * x", "a + b", "y = sqrt(a)", "0", "norm")
    np.testing.assert_allclose(norm(x, axis=1).get(), np.linalg.norm(numbers(3, 4), axis=1), rtol=1e-6)


# ----------------------------------------------------------------------------------------------------------------------
# Events
# ----------------------------------------------------------------------------------------------------------------------

EVENTS = {
    "x + x": {"launch": 1},
    "x * 2 + 1": {"launch": 2},
    "x @ x.T": {"launch": 1},
    "x.sum()": {"launch": 1},
    "float(x.sum())": {"launch": 1, "d2h": 1, "sync": 1},
    "x.get()": {"d2h": 1, "sync": 1},
    "if (x > 0).any(): pass": {"launch": 2, "d2h": 1, "sync": 1},
    "x[x > 0]": {"launch": 3, "d2h": 1, "sync": 1},
    "cupy.asarray(host)": {"h2d": 1},
    "x.copy()": {"launch": 1},
    "x[1:]; x.T; x.ravel(); cupy.broadcast_to(x, (2, 3, 4))": {},  # views
    "x.T.ravel()": {"launch": 1},
    "x[:2].data.copy_from_device_async(x[2:].data, 16)": {"d2d": 1},
    "cupy.zeros(3)": {"memset": 1},
    "cupy.empty(3)": {},
    "cupy.sort(x)": {"launch": 2},  # a copy, and the sorting
    "cupy.cuda.Device().synchronize()": {"sync": 1},
    "e = cupy.cuda.Event(); e.record(); e.synchronize()": {"event_sync": 1},
}


@pytest.mark.parametrize("code", EVENTS)
def test_events_are_those_of_the_code(cupy, code):
    names = {"cupy": cupy, "host": numbers(3, 4), "x": cupy.asarray(numbers(3, 4))}
    exec(code, names)  # what the pool has to ask the device for, it has afterwards
    before = pretend_gpu.counts()
    with pretend_gpu.record() as events:
        exec(code, names)
    recorded = pretend_gpu.counts(events)
    assert recorded == Counter(EVENTS[code])
    assert pretend_gpu.counts() - before == recorded
    exec(code, names)
    assert pretend_gpu.counts(events) == recorded  # the list ends with the block


def test_an_event_tells_what_it_was(cupy):
    x = cupy.asarray(numbers(3, 4))
    with pretend_gpu.record() as outer:
        cupy.tanh(x)
        with pretend_gpu.record() as inner:
            x.get()
    (launch, *rest) = outer
    assert (launch.kind, launch.what) == ("launch", "cupy_tanh__float32_float32")
    assert rest == inner
    assert (inner[0].kind, inner[0].size) == ("d2h", 48)


# ----------------------------------------------------------------------------------------------------------------------
# Memory
# ----------------------------------------------------------------------------------------------------------------------


def test_new_memory_holds_no_zeros_not_even_when_it_is_used_again(cupy):
    for _ in range(2):
        x = cupy.empty(1000, "uint8")
        assert (x == 0xCD).all()
        x[:] = 0
        del x


def test_the_memory_ends(cupy, monkeypatch):
    cupy.get_default_memory_pool().free_all_blocks()
    used = cupy.cuda.runtime.memGetInfo()
    monkeypatch.setenv("PRETEND_GPU_MEMORY", str(used[1] - used[0] + (1 << 20)))
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError, match="Out of memory allocating 4,194,304 bytes"):
        cupy.empty(1 << 20, "float32")
    assert cupy.empty(1 << 17, "float32").nbytes == 1 << 19
    assert cupy.cuda.Device().mem_info[1] == used[1] - used[0] + (1 << 20)


def test_memory_of_the_host_is_refused_where_the_device_needs_its_own(cupy):
    host, device = numbers(4, 4), cupy.asarray(numbers(4, 4))
    runtime, cublas = cupy.cuda.runtime, cupy.cuda.cublas
    for to, source, size, kind in [
        (host.ctypes.data, host.ctypes.data, 8, runtime.memcpyHostToDevice),
        (host.ctypes.data, host.ctypes.data, 8, runtime.memcpyDeviceToHost),
        (device.data.ptr, host.ctypes.data, 8, runtime.memcpyDeviceToDevice),
        (device.data.ptr, device.data.ptr, 8, runtime.memcpyHostToDevice),
        (host.ctypes.data, device.data.ptr, 1 << 30, runtime.memcpyDeviceToHost),  # beyond the end of a block
    ]:
        with pytest.raises(runtime.CUDARuntimeError, match="cudaErrorInvalidValue"):
            runtime.memcpy(to, source, size, kind)
    with pytest.raises(runtime.CUDARuntimeError, match="cudaErrorInvalidValue"):
        runtime.memset(host.ctypes.data, 0, 8)
    one = np.ones(1, "float32").ctypes.data
    product = (cupy.cuda.device.get_cublas_handle(), 0, 0, 4, 4, 4, one)
    cublas.gemmEx(*product, device.data.ptr, 0, 4, device.data.ptr, 0, 4, one, device.data.ptr, 0, 4, 68, -1)
    with pytest.raises(cublas.CUBLASError, match="EXECUTION_FAILED"):
        cublas.gemmEx(*product, host.ctypes.data, 0, 4, device.data.ptr, 0, 4, one, device.data.ptr, 0, 4, 68, -1)
    with pytest.raises(TypeError, match="Unsupported type"):
        device + host


# ----------------------------------------------------------------------------------------------------------------------
# Devices
# ----------------------------------------------------------------------------------------------------------------------


def test_the_device_says_that_it_is_none(cupy):
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    assert properties["name"].decode() == pretend_gpu.DEVICE_NAME
    assert "pretend" in pretend_gpu.DEVICE_NAME


def test_loading_again_gives_the_same_module(cupy):
    assert pretend_gpu.load() is cupy


def test_two_devices_do_not_share_memory(built):
    answer = in_process(
        """
x = cupy.ones(3)
with cupy.cuda.Device(1):
    y = cupy.ones(3)
    try:
        x + y
    except ValueError as error:
        refused = str(error)
    copy = cupy.asarray(x)
devices = [cupy.cuda.runtime.getDeviceCount(), x.device.id, y.device.id, copy.device.id]
print(json.dumps([devices, copy.tolist(), refused]))
""",
        PRETEND_GPU_DEVICES="2",
    )
    assert answer[:2] == [[2, 0, 1, 1], [1, 1, 1]]
    assert "Peer access is unavailable" in answer[2]


def test_without_a_device_cupy_says_so(built):
    code = """
try:
    cupy.zeros(3)
except cupy.cuda.runtime.CUDARuntimeError as error:
    print(json.dumps([error.status, cupy.is_available()]))
"""
    assert in_process(code, PRETEND_GPU_DEVICES="0") == [100, False]


@pytest.mark.parametrize("capability", [75, 80, 90, 120])
def test_mode_null_compiles_for_a_real_architecture_and_computes_nothing(built, capability):
    answer = in_process(
        """
x = cupy.ones((3, 4), "float32")
with pretend_gpu.record() as events:
    y = cupy.tanh(x @ x.T + 1).sum(axis=0)
try:
    cupy.RawKernel('extern "C" __global__ void wrong(float* x) { x[0] = nothing; }', "wrong")((1,), (1,), (x,))
except cupy.cuda.compiler.CompileException as error:
    refused = str(error)
print(json.dumps([cupy.cuda.Device().compute_capability, pretend_gpu.counts(events), y.tobytes().hex(), refused]))
""",
        PRETEND_GPU_MODE="null", PRETEND_GPU_CC=str(capability),
    )
    assert answer[0] == str(capability)
    assert answer[1]["launch"] == 4
    assert not set(answer[1]) & {"h2d", "d2h", "sync"}
    assert answer[2] == "cd" * 12
    assert 'identifier "nothing" is undefined' in answer[3]  # NVRTC's words


def test_a_mode_that_does_not_exist_is_refused(built):
    with pytest.raises(AssertionError, match="PRETEND_GPU_MODE is 'fast': it must be 'cpu' or 'null'"):
        in_process("", PRETEND_GPU_MODE="fast")


def test_it_is_not_loaded_into_a_process_that_it_does_not_fit(monkeypatch, tmp_path):
    other = types.ModuleType("cupy")
    other.__file__ = "elsewhere/cupy/__init__.py"
    with monkeypatch.context() as patch, pytest.raises(pretend_gpu.Unavailable, match="does not fit NumPy 2.6.1"):
        patch.setattr(np, "__version__", "2.6.1")
        pretend_gpu.check_process()
    with monkeypatch.context() as patch, pytest.raises(pretend_gpu.Unavailable, match="imported before: elsewhere"):
        patch.setitem(sys.modules, "cupy", other)
        pretend_gpu.check_process()
    with monkeypatch.context() as patch, pytest.raises(pretend_gpu.Unavailable, match="install g\\+\\+ 12 or newer"):
        patch.delitem(sys.modules, "cupy", raising=False)
        patch.setenv("PATH", str(tmp_path))
        pretend_gpu.check_process()


def test_a_script_or_a_module_runs_on_it(built, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys, cupy\nprint(__name__, *sys.argv[1:], cupy.arange(3).sum(), sys.path[0])\n")
    for how, where in ([script], tmp_path), (["-m", "script"], tmp_path):
        answer = subprocess.run(
            [sys.executable, TESTS / "pretend_gpu", *how, "--flag", "1"], cwd=tmp_path, capture_output=True, text=True,
            check=False,
        )
        assert answer.stdout == f"__main__ --flag 1 3 {where}\n", answer.stderr


# ----------------------------------------------------------------------------------------------------------------------
# What it cannot do
# ----------------------------------------------------------------------------------------------------------------------

REFUSED = {  # what uses it, and what the error says
    "cupy.random": (["random.default_rng(0)", "random.RandomState(0)", "random.rand(3)"], "cuRAND is not emulated"),
    "cupy.fft": (["fft.fft(x)"], "cuFFT is not emulated"),
    "cupy.linalg": (
        [f"linalg.{name}(x)" for name in ("svd", "qr", "cholesky", "eigh", "inv", "det")], "cuSOLVER is not emulated"
    ),
    "cupyx.scipy.sparse": (["cupyx.scipy.sparse.csr_matrix(x)"], "cuSPARSE is not emulated"),
    "cupy.i0": (["i0(x)"], "'cyl_bessel_i0' was not declared"),
    "cupy.ndarray.byteswap": (["x.byteswap()"], "unresolved overloaded function"),
    "cupy.cuda.Stream.begin_capture": (["cuda.Stream(non_blocking=True).begin_capture()"], "cudaErrorNotSupported"),
    "cupy.cuda.malloc_managed": (["cuda.malloc_managed(8)"], "cudaErrorNotSupported"),
    "cupy.cuda.malloc_async": (["cuda.malloc_async(8)"], "does not support malloc_async"),
    "cupy.cuda.cub": (["cuda.cub.cub_scan(x, 1)", "cuda.cub.device_scan(x, 1)"], "CUB is not emulated"),
}


@pytest.mark.parametrize("name", pretend_gpu.CANNOT)
def test_what_it_cannot_do_raises(cupy, name):
    import cupyx.scipy.sparse

    names = vars(cupy) | {"cupyx": cupyx, "x": cupy.eye(3, dtype="float32"), "random": cupy.random, "fft": cupy.fft}
    codes, message = REFUSED[name]
    for code in codes:
        with pytest.raises((ImportError, RuntimeError, cupy.cuda.compiler.CompileException)) as caught:
            eval(code, names)
        assert message in str(caught.value)


def test_the_readme_lists_what_it_cannot_do():
    text = (TESTS / "pretend_gpu" / "README.md").read_text()
    assert [name for name in pretend_gpu.CANNOT if f"`{name}`" not in text] == []


# ----------------------------------------------------------------------------------------------------------------------
# NVRTC without a device
# ----------------------------------------------------------------------------------------------------------------------

WITHOUT_DEVICE = f"""
import json, sys
import cupy, numpy as np
sys.path.append({str(TESTS)!r})
from pretend_gpu import nvrtc

adam = cupy.ElementwiseKernel(
    "T g, float32 rate, float32 b1, float32 b2, float32 eps, float32 c1, float32 c2", "T p, T m, T v",
    "m += (1 - b1) * (g - m); v += (1 - b2) * (g * g - v); p -= rate * (m / c1) / (sqrt(v / c2) + eps);", "adam")
array, scalar = np.zeros(5, "float32"), np.float32(1)
source = nvrtc.elementwise_source(adam, array, *[scalar] * 6, array, array, array)
images = [nvrtc.compile_for(source, architecture) for architecture in nvrtc.ARCHITECTURES]
try:
    nvrtc.compile_for(source.replace("sqrt(v", "sqrrt(v"), 90)
except cupy.cuda.compiler.CompileException as error:
    refused = str(error)
strided = nvrtc.elementwise_source(adam, np.zeros((4, 4), "f8").T[::2], *[scalar] * 6, *[np.zeros((2, 4), "f8")] * 3)
try:
    nvrtc.elementwise_source(adam, array)
except TypeError as error:
    few = str(error)
print(json.dumps([cupy.is_available(), source, len(set(images)), [image[:4].hex() for image in images], refused,
                  strided, few]))
"""


def test_own_kernels_compile_for_real_architectures_without_a_device(built):
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_DEVICE], env=pretend_gpu.published(), capture_output=True,
        text=True, check=False,
    )
    assert answer.returncode == 0, answer.stderr
    available, source, different, magic, refused, strided, few = json.loads(answer.stdout)
    assert not available
    assert "m += (1 - b1) * (g - m)" in source
    assert (different, magic) == (4, ["7f454c46"] * 4)
    assert 'identifier "sqrrt" is undefined' in refused
    assert "CArray<double, 2, 0, 1>" in strided
    assert few == "adam has 10 parameters, 1 arguments are given"


# ----------------------------------------------------------------------------------------------------------------------
# The build, as far as it can be tested without building
# ----------------------------------------------------------------------------------------------------------------------


def run_build(*arguments, **environment):
    return subprocess.run(
        [sys.executable, BUILD, *arguments], env=os.environ | environment, capture_output=True, text=True, check=False
    )


def one_line(answer):
    assert (answer.returncode, answer.stderr.count("\n")) == (2, 1), answer.stderr
    return answer.stderr


def test_a_finished_build_is_left_alone(built):
    answer = run_build(built)
    assert (answer.returncode, answer.stdout) == (0, f"the pretend GPU lies in {built}\n")


def test_without_a_compiler_the_build_says_so(tmp_path):
    assert "install g++ 12 or newer" in one_line(run_build(tmp_path / "new", PATH=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("g++") is None, reason="without a compiler it does not come so far")
def test_without_a_network_the_build_says_so_and_leaves_nothing(tmp_path):
    nowhere = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0",
               "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": "", "PIP_NO_CACHE_DIR": "1"}
    assert "pip failed (no network?): ERROR:" in one_line(run_build(tmp_path / "new", **nowhere))
    assert list(tmp_path.iterdir()) == []


def test_the_build_does_not_touch_a_folder_that_is_not_its_own(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    assert "is not empty and holds no pretend GPU" in one_line(run_build(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_platform_that_was_never_tried_is_refused(monkeypatch):
    monkeypatch.setattr(build.platform, "machine", lambda: "aarch64")
    with pytest.raises(build.Failure, match="only CPython on Linux x86-64 is supported, not cpython on linux aarch64"):
        build.check_machine()


def test_an_old_compiler_is_refused(tmp_path):
    old = tmp_path / "g++"
    old.write_text("#!/bin/sh\necho 11\n")
    old.chmod(0o755)
    answer = run_build(tmp_path / "new", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert "g++ is version 11: install g++ 12 or newer" in one_line(answer)


@pytest.mark.skipif(shutil.which("g++") is None, reason="without a compiler it does not come so far")
def test_a_python_without_its_headers_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(build.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(build.Failure, match="no Python.h: install the headers of this Python"):
        build.check_machine()


def test_the_key_changes_with_the_sources(tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(build.SOURCES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    specification = importlib.util.spec_from_file_location("copied_build", copy / "build.py")
    copied = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(copied)
    assert copied.key() == build.key()
    (copy / "README.md").write_text("what does not matter")
    assert copied.key() == build.key()
    for source in ("kernel.h", "cuda.cpp", "compiler.py", "overlay/cupy/complex/namespace.h"):
        before = copied.key()
        (copy / source).write_text((copy / source).read_text() + "\n")
        assert copied.key() != before, source
    monkeypatch.setattr(build.sys.implementation, "cache_tag", "cpython-399")
    assert build.key() != copied.key()


def test_what_was_interrupted_is_not_taken_for_finished(tmp_path, monkeypatch):
    monkeypatch.setenv("PRETEND_GPU_DIR", str(tmp_path))
    (tmp_path / "wheels").mkdir()
    assert pretend_gpu.find() is None
    (tmp_path / build.STAMP).write_text('{"key": ')
    assert pretend_gpu.find() is None
    (tmp_path / build.STAMP).write_text('{"key": "of other sources"}')
    assert pretend_gpu.find() is None
    with pytest.raises(pretend_gpu.Unavailable, match=f"not built: python tests/pretend_gpu/build.py {tmp_path}"):
        pretend_gpu.wheels()
    (tmp_path / build.STAMP).write_text(json.dumps({"key": build.key()}))
    assert pretend_gpu.find() == tmp_path


def test_of_two_builds_at_the_same_time_one_stays(tmp_path):
    folder = tmp_path / "device"

    def draft(name, key):
        path = tmp_path / name
        path.mkdir()
        (path / "name").write_text(name)
        (path / build.STAMP).write_text(json.dumps({"key": key}))
        return path

    draft("device", "of older sources")
    build.put_in_place(draft("first", build.key()), folder)
    build.put_in_place(draft("second", build.key()), folder)
    assert (folder / "name").read_text() == "first"
    assert sorted(path.name for path in folder.iterdir()) == [build.STAMP, "name"]


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ('extern "C" __global__ void f(float* x) {}', ["f"]),
        ('extern "C"\n__global__ void __launch_bounds__(256) f(int n) {}', ["f"]),
        ('extern "C" { __device__ int g() { return 1; } __global__ void f() {} __global__ void h() {} }', ["f", "h"]),
        ("template <class T> __global__ void f(T* x) {}", []),
        ("__global__ void f() {}", []),  # no C linkage: CUDA does not find it under this name either
    ],
)
def test_a_program_offers_the_kernels_with_c_linkage(source, names):
    assert compiler.kernels(source) == names
