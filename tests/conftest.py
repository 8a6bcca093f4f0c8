"""How much the tests try, and what every test's process must find in its environment."""

import functools
import os
from pathlib import Path

import pretend_gpu
import pytest
from hypothesis import HealthCheck, settings

from tinygrad_mnist import arrays, testing
from tinygrad_mnist.core import F

# Forced, and in the environment, so that the commands that tests start have it too: no test may open a window.
os.environ["MPLBACKEND"] = "Agg"

# Compiled loops stay from one run of the tests to the next, apart from the user's.
os.environ.setdefault("TINYGRAD_MNIST_CACHE", str(Path(__file__).parents[1] / ".pytest_cache" / "native"))

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers use all cores: more BLAS threads would wait for each other
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Time is no criterion on a shared machine: neither a deadline nor Hypothesis's complaint about slow draws.
_untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("default", _untimed, derandomize=True, max_examples=100)
settings.register_profile("nightly", _untimed, max_examples=2000, print_blob=True)

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "default")
settings.load_profile(PROFILE)


@pytest.fixture(scope="session")
def effort() -> int:
    """The factor for tests that loop on their own, as `max_examples` is for Hypothesis: 1, by night 20."""
    return 20 if PROFILE == "nightly" else 1


@pytest.fixture
def forget_what_tests_register():
    """The functions on Tensors are what they were, whatever a test registers as a primitive."""
    before = dict(vars(F))
    yield
    vars(F).clear()
    vars(F).update(before)


@pytest.fixture
def no_numba(monkeypatch):
    """Compiled functions run as NumPy programs, as where numba is missing: bit for bit what they are uncompiled."""
    monkeypatch.setattr("tinygrad_mnist.native.missing", lambda: "Numba is not installed: ...")


# ---- backends: NumPy, the strict double of CuPy, and CuPy itself on the pretend GPU


def _strict():
    from tinygrad_mnist.testing import strict

    arrays.register("strict", strict.xp)
    return testing.DeviceBackend("strict", "strict")


def _pretend():
    pretend_gpu.load()
    return testing.DeviceBackend("cupy-pretend", "gpu")


BACKENDS = {"numpy": testing.Backend, "strict": _strict, "cupy-pretend": _pretend}


@functools.cache
def _backend(name):
    """The backend, or the reason why there is none."""
    try:
        return BACKENDS[name]()
    except pretend_gpu.Unavailable as reason:
        return str(reason)


def _found(name):
    found = _backend(name)
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(params=BACKENDS, scope="module")
def backend(request):
    """Each of the array libraries in turn."""
    return _found(request.param)


@pytest.fixture(params=["strict", "cupy-pretend"], scope="module")
def device(request):
    """Each of the devices in turn: a name that `to` takes."""
    return _found(request.param).device


def pytest_configure(config):
    config.addinivalue_line("markers", "only_on(*backends): a test, or a case of one, that says nothing about others")


def pytest_collection_modifyitems(config, items):
    """Leave out what is marked `only_on` other backends."""
    kept, left_out = [], []
    for item in items:
        mark = item.get_closest_marker("only_on")
        (kept if mark is None or item.callspec.params["backend"] in mark.args else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept
