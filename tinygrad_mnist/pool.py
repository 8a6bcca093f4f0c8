"""One function over many items: in this process, on several of this machine, or on the ranks of an MPI job."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, as_completed
from typing import Any, TypeVar, cast

from .distributed import under_mpiexec, world
from .native import blas

Item = TypeVar("Item")
Result = TypeVar("Result")


class Pool:
    """Where the work is done: by an `executor`, or else here, when the result is asked for. What an executor is given
    must pickle: the function, the items and the results. An exception of the function ends the iteration."""

    def __init__(self, executor: Executor | None = None) -> None:
        self._executor = executor
        self._futures: list[Future[Any]] = []

    def map(self, f: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`f(item)` of each, in the order of the items."""
        if self._executor is None:
            yield from map(f, items)
        else:
            yield from map(_result, self._submitted(f, items))

    def as_done(self, f: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """`(item, f(item))` of each, as they are done."""
        if self._executor is None:
            yield from ((item, f(item)) for item in items)
        else:
            items = list(items)
            of = dict(zip(self._submitted(f, items), items, strict=True))
            for future in as_completed(of):
                yield of[future], _result(future)

    def _submitted(self, f: Callable[[Item], Result], items: Iterable[Item]) -> list[Future[Result]]:
        assert self._executor is not None
        futures = [self._executor.submit(f, item) for item in items]
        self._futures += futures
        return futures

    @property
    def busy(self) -> bool:
        """Whether there is work that was given and is not done."""
        return not all(future.done() for future in self._futures)


def run(work: Callable[[Pool], int], workers: int | None = None) -> int:
    """`work(pool)`, the exit code of a command. It may end while the pool is busy: what is not done then is dropped.

    Where mpiexec started several ranks, they are the pool, but for rank 0, which does the work that is no item's; on
    the others this returns 0 when it is done. There, `work` reports errors and does not raise them: the ranks that are
    busy are ended with the whole job. Otherwise the pool is as many processes as there are to be `workers`, or with 1,
    or none given, this process.
    """
    ranks = world() if under_mpiexec() else None
    if ranks is not None and ranks.size > 1:
        if workers is not None:
            if ranks.rank > 0:
                return 2
            raise ValueError(f"--workers is for one process: the {ranks.size} of mpiexec share the work without it")
        from mpi4py.futures import MPICommExecutor

        with MPICommExecutor() as executor:
            if executor is None:
                return 0
            pool = Pool(cast(Executor, executor))  # it is one, but for its stubs
            code = work(pool)
            if pool.busy:
                ranks.abort(code)
            return code
    if workers is None or workers == 1:
        return work(Pool())
    others = multiprocessing.active_children()
    spawn = multiprocessing.get_context("spawn")  # a fork would take threads of BLAS and GPU with it, in no good state
    with ProcessPoolExecutor(workers, spawn, _begin, (workers,)) as executor:
        pool = Pool(executor)
        try:
            return work(pool)
        finally:
            if pool.busy:
                for process in multiprocessing.active_children():
                    if process not in others:
                        process.terminate()


def _result(future: Future[Result]) -> Result:
    try:
        return future.result()
    except BrokenExecutor:
        raise OSError("a worker process was killed, as happens where memory runs out: use fewer") from None


def _begin(workers: int) -> None:
    """In each of so many processes, before its work: Ctrl-C is for the first process to deal with; where that one was
    killed, this one ends too; and they share the cores, unless a variable says how many threads the BLAS has."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    blas.share_cores(workers)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
