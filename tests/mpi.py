"""Programs as the ranks of an MPI job, as `mpiexec` starts them."""

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
OPEN_MPI = {  # as root it asks for the first two; of version 4 and of version 5, it wants no more ranks than cores
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def command(n, *arguments):
    """The command line that starts a Python program or module on n ranks. Skips where no MPI can start."""
    if problem := _missing():
        pytest.skip(problem)
    return [_mpiexec(), "-n", str(n), sys.executable, *map(str, arguments)]


def environment(**more):
    """That of a job: its programs find the modules of the tests, and its BLAS has one thread."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | OPEN_MPI | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"} | more


def run(n, *arguments, timeout=120, **env):
    """Run a Python program or module on n ranks to its end."""
    return subprocess.run(
        command(n, *arguments), env=environment(**env), capture_output=True, text=True, timeout=timeout, check=False
    )


def _mpiexec():
    beside = Path(sys.executable).parent / "mpiexec"  # of the wheel, in a virtual environment that is not active
    return str(beside) if beside.exists() else shutil.which("mpiexec")


@functools.cache
def _missing():
    """Why no MPI can start here, or None."""
    if importlib.util.find_spec("mpi4py") is None:
        return "mpi4py is not installed"
    if _mpiexec() is None:
        return "there is no mpiexec"
    program = "from mpi4py.MPI import COMM_WORLD; print(COMM_WORLD.Get_size())"
    try:
        tried = subprocess.run(
            [_mpiexec(), "-n", "2", sys.executable, "-c", program], env=environment(), capture_output=True, text=True,
            timeout=60, check=False,
        )
    except subprocess.TimeoutExpired:
        return "mpiexec starts no job within a minute"
    return None if tried.stdout.split() == ["2", "2"] else f"mpiexec starts no job: {tried.stdout}{tried.stderr}"[:300]
