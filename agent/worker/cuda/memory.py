"""Memory of the device and pinned memory of the computer, within a budget, and cleared before anyone else gets it.

Two kinds of buffers. A `DeviceBuffer` is seen by kernels only. A `StagedBuffer` is where both sides meet: pinned memory
and its twin on the device with copies between them; or, on a device that shares the computer's memory, the one pinned
buffer under both addresses, and no copies.

An arena is what belongs together and is freed together. All its memory is zero from the first: what another process
left there is never seen. It holds customers' data, so it is zeroed when a lease ends (`clear`), and before it is freed.
Little memory is pinned: a process that is killed gives back pinned memory slowly.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import pycuda.driver as cuda
from numpy.typing import NDArray

from agent.worker.cuda.driver import Driver
from agent.worker.executor import ExecutorError

ALIGNMENT_BYTES = 256
"""What engines ask of the addresses they are given, and what `cuMemAlloc` gives."""


def aligned(nbytes: int) -> int:
    """The next multiple of the alignment."""
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class Budget:
    """How much memory a package may take, on the device and pinned, and how much of that it has."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    def take(self, what: str, nbytes: int) -> None:
        """Count memory before it is allocated; raises ExecutorError, which names what needed how much."""
        if self.used_bytes + nbytes > self.limit_bytes:
            raise ExecutorError(
                f"{what}: {_mib(nbytes)} needed, and of the package's {_mib(self.limit_bytes)} "
                f"{_mib(self.limit_bytes - self.used_bytes)} are left"
            )
        self.used_bytes += nbytes

    def give_back(self, nbytes: int) -> None:
        """Count memory that was freed, or could not be allocated."""
        self.used_bytes -= nbytes


class DeviceBuffer:
    """Memory of the device at a fixed address."""

    def __init__(self, nbytes: int) -> None:
        """Allocate it; raises pycuda's errors."""
        self.nbytes = nbytes
        self._allocation = cuda.mem_alloc(nbytes)
        self.address = int(self._allocation)

    @property
    def taken_bytes(self) -> int:
        """What it takes of the budget."""
        return self.nbytes

    def clear(self) -> None:
        """Begin to zero it; done when the context has been synchronised."""
        cuda.memset_d8(self.address, 0, self.nbytes)

    def free(self) -> None:
        """Give it back. Its address must not be used any more."""
        self._allocation.free()


class StagedBuffer:
    """Pinned memory (`host`, bytes) and the address under which the device finds the same, after a copy or without."""

    def __init__(self, nbytes: int, *, mapped: bool) -> None:
        """Allocate it; raises pycuda's errors."""
        self.nbytes = nbytes
        self.mapped = mapped
        flags = cuda.host_alloc_flags.DEVICEMAP if mapped else 0
        self.host: NDArray[np.uint8] = cuda.pagelocked_empty(nbytes, np.uint8, mem_flags=flags)
        self.host.fill(0)
        self._twin: DeviceBuffer | None = None
        try:
            if not mapped:
                self._twin = DeviceBuffer(nbytes)
            self.address: int = self._twin.address if self._twin else _pinned(self.host).get_device_pointer()
        except cuda.Error:
            _pinned(self.host).free()
            raise

    @property
    def taken_bytes(self) -> int:
        """What it takes of the budget."""
        return self.nbytes if self.mapped else 2 * self.nbytes

    def upload(self, nbytes: int, stream: cuda.Stream) -> None:
        """Put the copy of the first bytes to the device on a stream, where one is needed."""
        if not self.mapped:
            cuda.memcpy_htod_async(self.address, self.host[:nbytes], stream)

    def download(self, stream: cuda.Stream) -> None:
        """Put the copy of all of it from the device on a stream, where one is needed."""
        if not self.mapped:
            cuda.memcpy_dtoh_async(self.host, self.address, stream)

    def clear(self) -> None:
        """Zero both; the device's part is done when the context has been synchronised."""
        self.host.fill(0)
        if self._twin is not None:
            self._twin.clear()

    def free(self) -> None:
        """Give it back. Views of it must not be used any more: the memory under them is gone."""
        _pinned(self.host).free()
        if self._twin is not None:
            self._twin.free()


def _pinned(host: NDArray[np.uint8]) -> Any:
    """The allocation under an array, which NumPy keeps as its base."""
    return host.base


_Buffer = TypeVar("_Buffer", DeviceBuffer, StagedBuffer)


class Arena:
    """Buffers that are cleared and freed together."""

    def __init__(self, driver: Driver, budget: Budget, *, mapped: bool) -> None:
        self._driver = driver
        self._budget = budget
        self._mapped = mapped
        self._buffers: list[DeviceBuffer | StagedBuffer] = []

    def device(self, what: str, nbytes: int) -> DeviceBuffer:
        """Zeroed memory of the device; raises ExecutorError, which says what it was for."""
        size = max(nbytes, 1)
        return self._allocated(what, size, lambda: DeviceBuffer(size))

    def staged(self, what: str, nbytes: int) -> StagedBuffer:
        """Zeroed memory that both sides see; raises ExecutorError, which says what it was for."""
        size = max(nbytes, 1)
        return self._allocated(
            what, size if self._mapped else 2 * size, lambda: StagedBuffer(size, mapped=self._mapped)
        )

    def clear(self) -> None:
        """Zero all of it, and return when that is done; raises ExecutorError. Nothing may use it meanwhile."""
        try:
            for buffer in self._buffers:
                buffer.clear()
            cuda.Context.synchronize()
        except cuda.Error as error:
            raise self._driver.failure_of(error) from error

    def clear_pinned(self) -> None:
        """Zero what this process can reach: all that is left to do in a context that is lost."""
        for buffer in self._buffers:
            if isinstance(buffer, StagedBuffer):
                buffer.host.fill(0)

    def free(self) -> None:
        """Zero all of it and give it back. May be called twice; raises nothing."""
        with suppress(ExecutorError):  # what cannot be zeroed cannot be used either, by anyone
            self.clear()
        while self._buffers:
            buffer = self._buffers.pop()
            buffer.free()
            self._budget.give_back(buffer.taken_bytes)

    def _allocated(self, what: str, taken_bytes: int, allocate: Callable[[], _Buffer]) -> _Buffer:
        self._budget.take(what, taken_bytes)
        try:
            buffer = allocate()
        except cuda.Error as error:
            self._budget.give_back(taken_bytes)
            raise self._driver.failure_of(error, f"{what}: {_mib(taken_bytes)} cannot be had") from error
        self._buffers.append(buffer)
        try:
            buffer.clear()
            cuda.Context.synchronize()
        except cuda.Error as error:
            raise self._driver.failure_of(error) from error
        return buffer


def _mib(nbytes: int) -> str:
    return f"{nbytes / 1024**2:.1f} MiB"
