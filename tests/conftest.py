"""How much the tests try, and what every test's process must find in its environment."""

import os

import pytest
from hypothesis import HealthCheck, settings

# Forced, and in the environment, so that the commands that tests start have it too: no test may open a window.
os.environ["MPLBACKEND"] = "Agg"

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
