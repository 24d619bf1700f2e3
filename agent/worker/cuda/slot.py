"""One slot: memory for a micro-batch at fixed addresses, and the work on it, recorded once as a graph.

What a submit does, in order, on the stream of the slot's lane:

1. copy what was staged to the device. Its length differs from batch to batch (images do), and a graph's copies have
   fixed lengths, so this one copy stands before the graph;
2. launch the graph: image kernel, engine, result kernels, copy of the results. Where the engine cannot be captured the
   same steps are launched one by one;
3. record the event that `wait` sleeps on.

Where the device shares the computer's memory both copies are left out. Nothing is allocated after the slot is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pycuda.driver as cuda
from numpy.typing import NDArray

from agent.worker.cuda.context import raise_if_lost
from agent.worker.cuda.engine import EngineContext
from agent.worker.cuda.graph import Graph, capture
from agent.worker.cuda.kernels import KernelLibrary
from agent.worker.cuda.lane import Lane
from agent.worker.cuda.memory import StagedBuffer
from agent.worker.cuda.staging import ImageStaging, TensorStaging
from agent.worker.executor import ExecutorError, LostError
from kernels.operation import SCRATCH, Array, Launch


@dataclass(frozen=True)
class Step:
    """A launch with the addresses of its buffers, but for SCRATCH, which belongs to the lane."""

    launch: Launch
    addresses: Mapping[str, int]


@dataclass(frozen=True)
class SlotWork:
    """Everything that a slot is made of."""

    items: int
    staging: ImageStaging | TensorStaging
    before: Sequence[Step]
    engine: EngineContext
    addresses: Mapping[str, int]
    """Of the engine's inputs and outputs, by name."""
    after: Sequence[Step]
    results: StagedBuffer
    views: Sequence[tuple[Array, ...]]
    """Into `results`: for each operation its results, with the items along a first axis."""


class CudaSlot:
    """See `agent.worker.executor.Slot`."""

    def __init__(self, work: SlotWork, lane: Lane, kernels: KernelLibrary, flights: list[CudaSlot]) -> None:
        """Make the slot's events; `warm_up` and `record` make it ready. `flights`: the executor's slots in flight."""
        self.note: str | None = None
        """Why there is no graph, if there is none."""
        self._work = work
        self._lane = lane
        self._kernels = kernels
        self._driver = kernels.driver
        self._flights = flights
        self._steps: list[Callable[[], None]] = []
        self._graph: Graph | None = None
        self._stream: cuda.Stream = lane.stream
        self._stream_handle: int = lane.stream.handle
        self._begin = cuda.Event()
        self._end = cuda.Event(cuda.event_flags.BLOCKING_SYNC)
        self._shared_ms = 0.0
        self._staging = False
        self._in_flight = False

    # --- making it ready, and taking it apart --------------------------------------------------------------------

    def warm_up(self) -> None:
        """Attach the engine and do the work once, on zeros: engines set themselves up, which cannot be captured."""
        self._attach()
        self._run()
        self._stream.synchronize()

    def record(self) -> None:
        """Record the work as a graph; where it cannot be, `note` says why and it is done step by step."""
        self._drop_graph()
        self.note = None
        try:
            self._graph = capture(self._driver, self._stream_handle, self._run)
        except LostError:
            raise
        except ExecutorError as error:
            self.note = str(error)
        except cuda.Error as error:
            self.note = self._refusal(error)

    def move_scratch(self) -> None:
        """Use the lane's scratch memory where it lies now. Nothing of the lane may be in flight.

        The work is done once for real before it is recorded again: an engine may set itself up for its new addresses.
        """
        self.warm_up()
        self.record()

    def forget(self) -> None:
        """Forget what was staged; the memory itself is cleared by its owner."""
        self._staging = False
        self._work.staging.begin()

    def land(self) -> None:
        """What was submitted has ended: the slot may be used again."""
        if self._in_flight:
            self._in_flight = False
            self._flights.remove(self)

    def close(self) -> None:
        """Free the graph and the engine's context. May be called twice."""
        self._drop_graph()
        self._steps.clear()
        self._work.engine.close()

    def _attach(self) -> None:
        work, scratch = self._work, self._lane.scratch_address
        work.engine.attach(work.addresses, scratch)
        self._steps = [
            *(self._bound(step, scratch) for step in work.before),
            lambda: work.engine.enqueue(self._stream_handle),
            *(self._bound(step, scratch) for step in work.after),
            lambda: work.results.download(self._stream),
        ]

    def _bound(self, step: Step, scratch: int) -> Callable[[], None]:
        return self._kernels.bound(step.launch, {**step.addresses, SCRATCH: scratch}, self._stream)

    def _run(self) -> None:
        for step in self._steps:
            step()

    def _refusal(self, error: cuda.Error) -> str:
        """Why libcuda refused something; raises LostError where that was no refusal."""
        failure = self._driver.failure_of(error)
        if isinstance(failure, LostError):
            raise failure from error
        return str(failure)

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    # --- use -----------------------------------------------------------------------------------------------------

    def stage_image(self, row: int, image: NDArray[np.uint8]) -> None:
        """Put an image into a row; raises SlotFullError, or ExecutorError for what does not belong here."""
        staging = self._work.staging
        if not isinstance(staging, ImageStaging):
            raise ExecutorError("this bucket takes tensors, not images")
        self._begin_staging(row)
        staging.put(row, image)

    def stage_tensors(self, row: int, tensors: Sequence[Array]) -> None:
        """Put one item's tensors into a row; raises ExecutorError for what does not belong here."""
        staging = self._work.staging
        if not isinstance(staging, TensorStaging):
            raise ExecutorError("this bucket takes images, not tensors")
        self._begin_staging(row)
        staging.put(row, tensors)

    def submit(self, items: int) -> None:
        """Begin to compute the first `items` rows; returns at once. Raises ExecutorError or LostError."""
        self._refuse_in_flight()
        if not 1 <= items <= self._work.items:
            raise ExecutorError(f"{items} items in a slot for 1 to {self._work.items}")
        staged_bytes = self._work.staging.seal(items)
        self._staging = False
        try:
            self._begin.record(self._stream)
            self._work.staging.buffer.upload(staged_bytes, self._stream)
            if self._graph is not None:
                self._graph.launch(self._stream_handle)
            else:
                self._run()
            self._end.record(self._stream)
        except cuda.Error as error:
            raise_if_lost(self._driver, error)
            raise self._driver.failure_of(error) from error
        except ExecutorError as error:
            raise_if_lost(self._driver, error)
            raise
        self._in_flight = True
        self._shared_ms = 0.0
        self._flights.append(self)

    def poll(self) -> bool:
        """Whether what was submitted has ended, well or not."""
        try:
            return not self._in_flight or bool(self._end.query())
        except cuda.Error:
            return True

    def wait(self) -> float:
        """Sleep until it has ended; the seconds the device worked on it, copies included.

        Two slots may share the device. Time that both were on it counts for the one waited for first, so that the
        seconds of all slots together are the seconds that the device worked. Raises ExecutorError or LostError.
        """
        if not self._in_flight:
            raise ExecutorError("nothing was submitted")
        self.land()
        try:
            self._end.synchronize()
            elapsed_ms = float(self._end.time_since(self._begin))
            for other in self._flights:
                other.share(elapsed_ms, self._end)
        except cuda.Error as error:
            raise_if_lost(self._driver, error)
            raise self._driver.failure_of(error) from error
        return max(0.0, elapsed_ms - self._shared_ms) / 1000

    def share(self, elapsed_ms: float, end: cuda.Event) -> None:
        """Another slot was on the device for so long until `end`: do not count what of it was since this one began."""
        if self._begin.query():
            self._shared_ms += max(0.0, min(elapsed_ms, end.time_since(self._begin)))

    def results(self, row: int) -> list[tuple[Array, ...]]:
        """One item's results, read-only views of pinned memory: valid until the slot is submitted again."""
        return [tuple(result[row, ...] for result in results) for results in self._work.views]

    def _begin_staging(self, row: int) -> None:
        self._refuse_in_flight()
        if not 0 <= row < self._work.items:
            raise ExecutorError(f"row {row} in a slot for {self._work.items} items")
        if not self._staging:
            self._staging = True
            self._work.staging.begin()

    def _refuse_in_flight(self) -> None:
        if self._in_flight:
            raise ExecutorError("the slot is in flight")
