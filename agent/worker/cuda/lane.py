"""A lane: one stream, and the scratch memory of everything on it.

The first slot of every bucket is on the first lane, the second on the second. What is on one stream never runs
together, so it shares one piece of scratch memory, as large as the largest of them needs: for the engine's activations,
and between the kernels of an operation. It grows when a bucket that needs more is bound; the others then move to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pycuda.driver as cuda

from agent.worker.cuda.driver import Driver
from agent.worker.cuda.memory import Arena, Budget, DeviceBuffer

if TYPE_CHECKING:
    from agent.worker.cuda.slot import CudaSlot

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: does not wait for what libraries do on the default stream."""


class Lane:
    """One of the streams of an executor."""

    def __init__(self, driver: Driver, budget: Budget) -> None:
        """Make the stream; raises pycuda's errors."""
        self.stream: cuda.Stream = cuda.Stream(_NON_BLOCKING)
        self.slots: list[CudaSlot] = []
        self._driver = driver
        self._budget = budget
        self._arenas: list[Arena] = []
        """The last holds the scratch memory; others are there only while slots move out of them."""
        self._scratch: DeviceBuffer | None = None

    @property
    def scratch_address(self) -> int:
        """Where the scratch memory lies; 0 before anything asked for some."""
        return self._scratch.address if self._scratch else 0

    def reserve(self, what: str, nbytes: int) -> None:
        """Have scratch memory of at least this size; where that moves it, waits for what is in flight on the lane.

        Raises ExecutorError or pycuda's errors. A slot that could not move keeps what it had.
        """
        if nbytes <= (self._scratch.nbytes if self._scratch else 0):
            return
        arena = Arena(self._driver, self._budget, mapped=False)
        try:
            larger = arena.device(f"{what}, scratch", nbytes)
            self.stream.synchronize()
        except BaseException:
            arena.free()
            raise
        self._arenas.append(arena)
        self._scratch = larger
        for slot in self.slots:
            slot.move_scratch()
        for old in self._arenas[:-1]:
            old.free()
        self._arenas = [arena]

    def trim(self) -> None:
        """Free the scratch memory if nothing is on the lane."""
        if not self.slots:
            self.free()

    def clear(self) -> None:
        """Zero the scratch memory. Nothing may be in flight; raises ExecutorError."""
        for arena in self._arenas:
            arena.clear()

    def free(self) -> None:
        """Zero and free the scratch memory."""
        self._scratch = None
        while self._arenas:
            self._arenas.pop().free()
