"""The device's primary context, for as long as this process needs it, and what there is to know about the device.

The primary one, because an engine's library uses it as well. Threads that wait for the device sleep. pycuda ends the
process with SIGABRT when a context is still current at exit, so it is given up in every way out: by `close`, and where
nobody came to that, at exit. Use it from the thread that opened it.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

import pycuda.driver as cuda

from agent.worker.cuda.driver import Driver
from agent.worker.executor import ExecutorError, LostError, OutOfMemoryError


@dataclass(frozen=True)
class DeviceFacts:
    """A device as its driver describes it."""

    name: str
    compute_capability: tuple[int, int]
    cuda_version: tuple[int, int]
    """The newest that the installed driver serves."""
    memory_bytes: int
    integrated: bool
    """Whether it shares the computer's memory and can use pinned memory where it lies, so that nothing is copied."""
    copies_in_vain: bool = False
    """It shares the computer's memory and cannot use pinned memory where it lies, so that all the same it is copied."""


class DeviceContext:
    """The primary context of one device, current in this thread until `close`."""

    def __init__(self, ordinal: int = 0) -> None:
        """Retain the context and make it current; raises ExecutorError when there is no device that can be used."""
        self.driver = Driver()
        try:
            cuda.init()
            device = cuda.Device(ordinal)
            self.driver.sleep_while_waiting(ordinal)
            self.facts = _facts(device)
            self._context = device.retain_primary_context()
            self._context.push()
        except (cuda.Error, ExecutorError) as error:
            # Not LostError, whatever the driver says: nothing was there yet that could be lost.
            raise ExecutorError(f"the accelerator cannot be used: {error}") from error
        self._open = True
        atexit.register(self.close)

    def free_bytes(self) -> int:
        """What nobody uses of the device's memory (of the computer's, where they share it); raises ExecutorError."""
        try:
            free, _ = cuda.mem_get_info()
        except cuda.Error as error:
            raise self.driver.failure_of(error) from error
        return int(free)

    def close(self) -> None:
        """Give the context up; what was allocated in it has to be freed before. May be called twice; raises nothing."""
        if not self._open:
            return
        self._open = False
        atexit.unregister(self.close)
        # While it is current: pycuda then empties its own stack even if libcuda fails. It leaves libcuda's as it is.
        self._context.detach()
        self.driver.pop_context()

    def __enter__(self) -> DeviceContext:  # noqa: PYI034 - Python 3.10 has no Self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def raise_if_lost(driver: Driver, error: Exception) -> None:
    """Wait until nothing runs any more, and raise LostError when the context is lost.

    For what failed with `error`, which may say so in words of its own: engines do.
    """
    try:
        cuda.Context.synchronize()
    except cuda.Error as later:
        failure = driver.failure_of(later)
        if isinstance(failure, LostError):
            raise failure from error


@contextmanager
def refusing_what_never_fits(facts: DeviceFacts, memory_bytes: int) -> Iterator[None]:
    """Memory that is short is short for now, but for a package that may take more than the device has at all."""
    try:
        yield
    except OutOfMemoryError as error:
        if memory_bytes <= facts.memory_bytes:
            raise
        declared, whole = memory_bytes // 1024**2, facts.memory_bytes // 1024**2
        raise ExecutorError(
            f"the package may take {declared} MiB, and {facts.name} has {whole} MiB in all: {error}"
        ) from error


def _facts(device: cuda.Device) -> DeviceFacts:
    attribute = cuda.device_attribute
    shares = bool(device.get_attribute(attribute.INTEGRATED))
    maps = bool(device.get_attribute(attribute.CAN_MAP_HOST_MEMORY))
    version = cuda.get_driver_version()
    return DeviceFacts(
        name=device.name(),
        compute_capability=device.compute_capability(),
        cuda_version=(version // 1000, version % 1000 // 10),
        memory_bytes=device.total_memory(),
        integrated=shares and maps,
        copies_in_vain=shares and not maps,
    )
