"""Data-parallel training on MPI: some processes, the ranks, take each step together.

Every rank has the whole model and all the data, and computes the gradient of its own rows of a batch. One sum over the
ranks makes of these the gradient of the batch, and every rank takes the same step with it. In a training loop of one's
own, started as `mpiexec -n 2 python loop.py`:

    ranks = distributed.world()
    for images, labels in data.batches(x, y, 256, np.random.default_rng(0)):    # one seed: the same batches everywhere
        mine = ranks.begin(len(labels))
        loss = softmax_cross_entropy(model(images[mine]), labels[mine])
        optimizer.zero_grad()
        loss.backward()
        loss, = ranks.average(optimizer.params, loss.data)
        optimizer.step()
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import numpy as np

from . import arrays
from .arrays import Array
from .core import Tensor
from .modes import current
from .native import blas

INSTALL = "pip install 'tinygrad-mnist[mpi]'"
PATIENCE = 120
"""Seconds that a rank waits for the others to end as it does."""
FORWARDED = 0.5
"""Seconds in which `mpiexec` passes on what a rank has said; of a job that was aborted it drops the rest."""

LAUNCHERS = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Of MPICH and its relatives, of PMIx, of Open MPI, of MVAPICH: the variable that tells a process its rank."""
SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Of MPICH and its relatives, of Open MPI, of MVAPICH: the number of ranks."""

T = TypeVar("T")


class AgreedError(ValueError):
    """An error that every rank raises, so that the job ends without one waiting for another."""


class Ranks:
    """The processes of a job, seen from one of them: its `rank`, from 0, of `size`. Rank 0 reports and writes.

    `comm`: a communicator of mpi4py. `direct`: give MPI the memory of a GPU; by default sums go through the host's,
    which every MPI can read.
    """

    def __init__(self, comm: Any, *, direct: bool = False) -> None:
        self._comm = comm
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self.direct = direct
        self._buffers: dict[tuple[Any, ...], Array] = {}
        self.begin(self.size)

    # -- a step

    def begin(self, batch: int) -> slice:
        """Before steps with batches of so many rows: which of these are this rank's.

        Where the ranks do not divide them, some have one more than others. AgreedError where one would have none.
        """
        if batch < self.size:
            raise AgreedError(f"{batch} rows are too few for {self.size} ranks: each needs at least one")
        start, stop = (batch * r // self.size for r in (self.rank, self.rank + 1))
        self.batch, self.mine = batch, slice(start, stop)
        return self.mine

    def average(self, params: Iterable[Tensor], *means: Any) -> tuple[Array, ...]:
        """Make the gradients of `params`, in place, those of the mean over the batch: before, each is that of the mean
        over this rank's rows. `means`: what is such a mean too, a loss say, as arrays or Tensors without axes; returned
        are those over the batch.

        All have one dtype, for they travel as one buffer. In a captured function, this is a call on the host at every
        replay. TypeError for several dtypes, ValueError for a parameter that has no gradient.
        """
        parts = []
        for i, p in enumerate(params):
            if p.grad is None:  # and maybe on this rank alone: the buffers would not fit together
                raise ValueError(f"average: {p.name or f'parameter {i}'} has no gradient: give those that have one")
            parts.append(p.grad)
        if means:
            found = [m.data if isinstance(m, Tensor) else m for m in means]
            parts.append(arrays.namespace(type(found[0])).stack(found))
        if len(dtypes := {str(a.dtype) for a in parts}) > 1:
            raise TypeError(f"average: all must have one dtype, not {' and '.join(sorted(dtypes))}")
        recorder = current.get().recorder
        if recorder is None:
            self._average(*parts)
        else:
            recorder.host_call(self._average, parts, result=False)
        return tuple(parts[-1][i] for i in range(len(means)))

    def _average(self, *parts: Array) -> None:
        with arrays.on_device_of(parts[0]):
            flat = self._buffer("flat", parts, arrays.namespace(type(parts[0])).empty)
            pieces = _pieces(flat, parts)
            weight = (self.mine.stop - self.mine.start) / self.batch
            for part, piece in zip(parts, pieces, strict=True):
                piece[...] = part
            flat *= weight
            self._sum(flat)
            for part, piece in zip(parts, pieces, strict=True):
                part[...] = piece

    def _sum(self, flat: Array) -> None:
        """The sum over all ranks, in place."""
        if arrays.device_of(flat) == "cpu":
            self._allreduce(flat)
        elif self.direct:
            arrays.synchronize(flat)  # MPI reads the memory at once, whatever is still queued
            self._allreduce(flat)
        else:
            library = arrays.library(arrays.device_of(flat))
            host = self._buffer("pinned", [flat], lambda n, dtype: arrays.pinned(library, flat))
            flat.get(out=host)
            self._allreduce(host)
            flat.set(host)

    def _allreduce(self, buffer: Any) -> None:
        from mpi4py import MPI

        self._comm.Allreduce(MPI.IN_PLACE, buffer)

    def _buffer(self, use: str, parts: Sequence[Array], make: Callable[..., Array]) -> Array:
        key = use, sum(a.size for a in parts), str(parts[0].dtype), arrays.device_of(parts[0])
        if key not in self._buffers:
            self._buffers[key] = make(key[1], parts[0].dtype)
        return self._buffers[key]

    def generator(self, rng: np.random.Generator) -> np.random.Generator:
        """A generator whose `random`, of an array with a row for each of this rank's, gives it its rows of what `rng`
        would give for the whole batch. All else it draws as `rng` does, the same on every rank."""
        return _Shared(rng, self)

    # -- agreement

    def agree(self, f: Callable[[], T]) -> T:
        """`f()`, which every rank calls; where it fails on one, AgreedError on all, which says on which and why."""
        found, problem = _tried(f)
        problems = self._comm.allgather(problem)
        for rank, text in enumerate(problems):
            if text is not None:
                raise AgreedError(text if problems.count(text) == self.size else f"rank {rank}: {text}")
        return found  # type: ignore[return-value]

    def first(self, f: Callable[[], T]) -> T:
        """What `f()` is on rank 0, broadcast to all; where it fails there, AgreedError on all."""
        found, problem = self._comm.bcast(_tried(f) if self.rank == 0 else None)
        if problem is not None:
            raise AgreedError(problem)
        return found

    def check_same(self, what: str, value: Any) -> None:
        """AgreedError where `value` is not on all ranks what it is on rank 0. `what` it is, in the plural."""
        found = self._comm.allgather(value)
        if odd := [str(rank) for rank, v in enumerate(found) if v != found[0]]:
            raise AgreedError(f"{what} of rank{'s' * (len(odd) > 1)} {', '.join(odd)} differ from those of rank 0")

    def joined(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The rows that all ranks have, one rank's after the other's, on every rank."""
        return np.concatenate(self._comm.allgather(rows))

    # -- the job

    def processes(self) -> list[str]:
        """Of each rank which process it is: with this, what MPI says of one that died names its rank."""
        return self._comm.allgather(f"process {os.getpid()} on {platform.node()}")

    def alike(self, what: Hashable) -> tuple[int, int]:
        """(which of the ranks on this machine with an equal `what` it is, how many there are)."""
        there = self._comm.allgather((platform.node(), what))
        return there[: self.rank].count(there[self.rank]), there.count(there[self.rank])

    def leave(self, code: int) -> None:
        """Before this rank ends with an exit code, as all should: the job ends if the others do not come here too."""
        everybody = self._comm.Ibarrier()
        deadline = time.monotonic() + PATIENCE
        while not everybody.Test():
            if time.monotonic() > deadline:
                print(f"rank {self.rank} has waited for the others for {PATIENCE} s", file=sys.stderr)
                self.abort(code)
            time.sleep(0.01)

    def abort(self, code: int) -> None:
        """End the job at once: the others would wait for this rank for ever."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # a full disk, a closed stream, none
                stream.flush()
        time.sleep(FORWARDED)
        self._comm.Abort(code)


def _tried(f: Callable[[], T]) -> tuple[T | None, str | None]:
    """(result, what is wrong)."""
    try:
        return f(), None
    except (OSError, ValueError, MemoryError) as error:
        return None, explained(error)


def explained(error: BaseException) -> str:
    """What an error says; where it is about a file, which one, and without the number of the system's error."""
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)


class _Shared(np.random.Generator):
    """A generator that draws for a whole batch, and gives the rows of this rank: one process and many see the same
    numbers."""

    def __init__(self, rng: np.random.Generator, ranks: Ranks) -> None:
        super().__init__(rng.bit_generator)
        self._ranks = ranks

    def random(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        """As that of a Generator, of an array with this rank's rows of a batch."""
        shape = out.shape if size is None and out is not None else size if isinstance(size, tuple) else (size,)
        mine = self._ranks.mine
        if shape[:1] != (mine.stop - mine.start,):
            those = f"{mine.stop - mine.start} rows of the batch of {self._ranks.batch}"
            raise ValueError(f"random: this rank has {those}, not {shape}: call begin(batch) before")
        rows = super().random((self._ranks.batch, *shape[1:]), dtype)[mine]
        if out is None:
            return rows
        out[...] = rows
        return out


def _pieces(flat: Array, parts: Sequence[Array]) -> list[Array]:
    """Views of a flat buffer in the shapes of `parts`, one after the other."""
    stops = np.cumsum([a.size for a in parts]).tolist()
    return [flat[stop - a.size : stop].reshape(a.shape) for a, stop in zip(parts, stops, strict=True)]


def under_mpiexec() -> bool:
    """Whether mpiexec, or what does its work in a cluster, started this process. To see that takes no MPI."""
    return any(name in os.environ for name in LAUNCHERS)


def world(*, direct: bool = False) -> Ranks:
    """All ranks of the job that `mpiexec` started; one, where nothing did. ValueError where there is no MPI, or another
    than that of `mpiexec`.

    The ranks of a machine share its cores: each one's BLAS gets its part of them, unless OPENBLAS_NUM_THREADS or
    OMP_NUM_THREADS says otherwise. Ctrl-C is for rank 0 to deal with. An exception that nobody catches ends the job, on
    whichever rank. To leave otherwise on one rank alone, call `abort(code)`: `sys.exit` waits for the others.
    """
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise ValueError(f"MPI cannot be used: {error}: {INSTALL}") from None
    except RuntimeError as error:  # of mpi4py, where it finds no MPI library
        raise ValueError(f"mpi4py finds no MPI: {error}: {INSTALL}, or install the system's") from None
    ranks = Ranks(MPI.COMM_WORLD, direct=direct)
    started = max((int(os.environ[name]) for name in SIZES if os.environ.get(name, "").isdigit()), default=1)
    if ranks.size == 1 < started:
        ours = MPI.Get_library_version().split("\n")[0].strip("\0 ")
        raise ValueError(f"mpiexec started {started} ranks, but mpi4py has another MPI, {ours}, which sees one")
    _, sharing = ranks.alike(tuple(blas.cores()))  # a launcher may have given each rank cores of its own
    blas.share_cores(sharing)
    if ranks.rank > 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if ranks.size > 1:
        sys.excepthook = partial(_uncaught, ranks)
    return ranks


def _uncaught(ranks: Ranks, kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Python's `excepthook` on a rank: it ends the job."""
    try:
        sys.__excepthook__(kind, error, trace)
        print(f"rank {ranks.rank} of {ranks.size} ended: {kind.__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        ranks.abort(1)
