"""The device: its memory, counted and limited, and what `cupy.cuda` has to speak to it. All work is done at once."""

from __future__ import annotations

import contextlib
import gc
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

from .record import recorder

Host = np.ndarray[Any, Any]  # an array in host memory


class Unmodelled(RuntimeError):
    """CuPy can do this, the double cannot."""


# ---- memory

UNIT = 512  # bytes: CuPy's pool hands out multiples of it


class OutOfMemoryError(MemoryError):
    """An allocation beyond the limit."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        super().__init__(
            f"Out of memory allocating {size:,} bytes "
            f"(allocated so far: {total:,} bytes, limit set to: {limit:,} bytes)."
        )


class MemoryPool:
    """What the device arrays occupy. Freed memory is free at once: nothing is kept for later."""

    device_memory = 16 << 30  # what the device says it has

    def __init__(self) -> None:
        self.used = 0
        self._limit = 0

    def take(self, nbytes: int) -> int:
        """Count an allocation; gives its size. OutOfMemoryError if it goes beyond the limit."""
        size = -(-nbytes // UNIT) * UNIT
        limit = self._limit or self.device_memory
        if size and self.used + size > limit:
            gc.collect()  # as CuPy does
        if size and self.used + size > limit:
            raise OutOfMemoryError(size, self.used, limit)
        self.used += size
        return size

    def used_bytes(self) -> int:
        return self.used

    def total_bytes(self) -> int:
        return self.used

    def free_bytes(self) -> int:
        return 0

    def n_free_blocks(self) -> int:
        return 0

    def free_all_blocks(self, stream: Any = None) -> None:
        pass

    def get_limit(self) -> int:
        return self._limit

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        self._limit = size or int((fraction or 0) * self.device_memory)


pool = MemoryPool()


@contextlib.contextmanager
def memory_limit(nbytes: int) -> Iterator[MemoryPool]:
    """A context in which device arrays may occupy `nbytes`, those from before included; more is OutOfMemoryError."""
    before = pool.get_limit()
    pool.set_limit(nbytes)
    try:
        yield pool
    finally:
        pool.set_limit(before)


class Memory:
    """The memory of an array and of its views: `ptr` is its address, `size` what it occupies until it is collected."""

    __slots__ = ("__weakref__", "_pool", "ptr", "size")

    def __init__(self, host: Host) -> None:
        self.size = 0  # until there is something to give back
        self._pool = pool
        self.ptr: int = host.__array_interface__["data"][0]
        self.size = pool.take(host.nbytes)

    def __del__(self) -> None:
        self._pool.used -= self.size


class MemoryPointer:
    """An address in device memory."""

    device_id = 0

    def __init__(self, mem: Memory, ptr: int) -> None:
        self.mem = mem
        self.ptr = ptr
        self.device = Device(0)

    def __int__(self) -> int:
        return self.ptr

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self.ptr + offset)


# ---- cupy.cuda


class CUDARuntimeError(RuntimeError):
    """An error of the CUDA runtime."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Device:
    """The one device, number 0."""

    compute_capability = "90"

    def __init__(self, device: Any = None) -> None:
        self.id = 0 if device is None else int(device)

    def use(self) -> Device:
        if self.id != 0:
            raise CUDARuntimeError(101, "cudaErrorInvalidDevice: invalid device ordinal")
        return self

    def synchronize(self) -> None:
        recorder.add("sync", "Device.synchronize()")

    @property
    def mem_info(self) -> tuple[int, int]:
        """Bytes free and in all."""
        return pool.device_memory - pool.used, pool.device_memory

    def __enter__(self) -> Device:
        return self.use()

    def __exit__(self, *exception: Any) -> None:
        pass

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"


class Stream:
    """A queue of work."""

    null: Stream
    current: Stream
    done = True
    ptr = 0

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int | None = None
    ) -> None:
        self._before: list[Stream] = []

    def synchronize(self) -> None:
        recorder.add("sync", "Stream.synchronize()")

    def record(self, event: StreamEvent | None = None) -> StreamEvent:
        return event or StreamEvent()

    def wait_event(self, event: StreamEvent) -> None:
        """The device waits, not the host."""

    def use(self) -> Stream:
        Stream.current = self
        return self

    def __enter__(self) -> Stream:
        self._before.append(Stream.current)
        return self.use()

    def __exit__(self, *exception: Any) -> None:
        self._before.pop().use()


Stream.null = Stream.current = Stream()


class StreamEvent:
    """`cupy.cuda.Event`: a mark in a queue of work, which is reached at once."""

    done = True

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        pass

    def record(self, stream: Stream | None = None) -> None:
        pass

    def synchronize(self) -> None:
        recorder.add("sync", "Event.synchronize()")


class CompileException(Exception):
    """The text of a kernel is not C, or names something that is not there."""


def _elapsed_time(start: StreamEvent, end: StreamEvent) -> float:
    raise Unmodelled("cupy.cuda.get_elapsed_time: the double has no times of a GPU")


def _set_device(device: int) -> None:
    Device(device).use()


runtime = types.SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError,
    getDeviceCount=lambda: 1,
    getDevice=lambda: 0,
    setDevice=_set_device,
    deviceSynchronize=lambda: recorder.add("sync", "deviceSynchronize()"),
    memGetInfo=lambda: Device(0).mem_info,
    driverGetVersion=lambda: 13000,
    runtimeGetVersion=lambda: 13000,
    getDeviceProperties=lambda device: {"name": b"strict double (NumPy)", "totalGlobalMem": pool.device_memory},
)
cuda = types.SimpleNamespace(
    Device=Device,
    Event=StreamEvent,
    MemoryPointer=MemoryPointer,
    MemoryPool=MemoryPool,
    Stream=Stream,
    alloc_pinned_memory=lambda size: memoryview(bytearray(size)),
    compiler=types.SimpleNamespace(CompileException=CompileException),
    get_current_stream=lambda: Stream.current,
    get_device_id=lambda: 0,
    get_elapsed_time=_elapsed_time,
    is_available=lambda: True,
    memory=types.SimpleNamespace(MemoryPool=MemoryPool, OutOfMemoryError=OutOfMemoryError),
    runtime=runtime,
)
cupyx = types.SimpleNamespace(
    empty_pinned=lambda shape, dtype=float, order="C": np.empty(shape, dtype, order),
    zeros_pinned=lambda shape, dtype=float, order="C": np.zeros(shape, dtype, order),
    scatter_add=lambda a, slices, value: a.scatter_add(slices, value),
)
