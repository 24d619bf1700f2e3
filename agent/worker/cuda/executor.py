"""Any engine on an NVIDIA device, as the pipeline sees it (`agent.worker.executor.Executor`).

An engine is bound once for each bucket and lane: two lanes, so two micro-batches are in flight at most, and while one
computes the other is filled. All memory is the executor's: it counts it against the package's limit, knows every
address, and clears it between leases. `CudaExecutor` owns the context, the engine and the kernels it is given, and
frees them in `close` in the reverse order, also when the context is lost.

Not cleared is what the engine's library holds for itself. Of that the weights are counted, by what was free on the
device before and after; what a context keeps is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pycuda.driver as cuda

from agent.worker.cuda.context import DeviceContext, raise_if_lost, refusing_what_never_fits
from agent.worker.cuda.driver import Driver
from agent.worker.cuda.engine import DeviceEngine
from agent.worker.cuda.kernels import KernelLibrary
from agent.worker.cuda.lane import Lane
from agent.worker.cuda.layout import bucket_words, engine_shapes, readings, scratch_bytes, slot_work
from agent.worker.cuda.memory import Arena, Budget
from agent.worker.cuda.slot import CudaSlot
from agent.worker.executor import Binding, ExecutorError, LostError, ModelTensor
from kernels.operation import TensorSpec

_LANES = 2


@dataclass(frozen=True, eq=False)
class CudaBucket:
    """See `agent.worker.executor.BoundBucket`."""

    words: str
    slots: Sequence[CudaSlot]
    outputs: Sequence[TensorSpec]
    arena: Arena
    release: Callable[[CudaBucket], None]

    def close(self) -> None:
        """Wait for what is in flight on the device, and free the bucket's memory, cleared. May be called twice."""
        self.release(self)


class CudaExecutor:
    """One engine on one device. Use it from the thread that made it."""

    depth = _LANES

    def __init__(
        self,
        context: DeviceContext,
        engine: DeviceEngine,
        kernels: KernelLibrary,
        *,
        memory_bytes: int,
        engine_bytes: int = 0,
    ) -> None:
        """Take over a context with an engine and kernels in it; raises ExecutorError, and closes nothing then.

        `memory_bytes` limits everything that is allocated here, on the device and pinned, together with the
        `engine_bytes` that the engine took when it was made.
        """
        self._context = context
        self._driver: Driver = context.driver
        self._engine = engine
        self._kernels: KernelLibrary | None = kernels
        self._kernels_sha256 = kernels.sha256
        self._budget = Budget(memory_bytes)
        self._budget.take("the engine itself (its weights)", engine_bytes)
        self._engine_bytes = engine_bytes
        self._arenas: list[Arena] = []
        """Of buckets, also of such as could not be bound because the context was lost."""
        self._buckets: list[CudaBucket] = []
        self._flights: list[CudaSlot] = []
        with _translated(self._driver):
            self._lanes = [Lane(self._driver, self._budget) for _ in range(_LANES)]

    @property
    def name(self) -> str:
        """The engine's."""
        return self._engine.name

    @property
    def device(self) -> str:
        """The device's name."""
        return self._context.facts.name

    @property
    def inputs(self) -> Mapping[str, ModelTensor]:
        """The engine's."""
        return self._engine.inputs

    @property
    def outputs(self) -> Mapping[str, ModelTensor]:
        """The engine's."""
        return self._engine.outputs

    @property
    def notes(self) -> Sequence[str]:
        """What works less well than it should, a sentence each: copies that should not be, buckets without a graph."""
        slots = [(bucket.words, slot) for bucket in self._buckets for slot in bucket.slots]
        notes = [f"{words}: no CUDA graph ({slot.note})" for words, slot in slots if slot.note is not None]
        if self._context.facts.copies_in_vain:
            notes.insert(0, "the device shares the computer's memory and cannot map it, so everything is copied")
        return notes

    @property
    def kernels_sha256(self) -> str:
        """SHA-256 of the compiled kernels that run, hex."""
        return self._kernels_sha256

    @property
    def memory_bytes(self) -> int:
        """What is allocated here now, without the engine's own."""
        return self._budget.used_bytes - self._engine_bytes

    def bind(self, binding: Binding) -> CudaBucket:
        """A bucket with its two slots, warmed up and recorded. Nothing is allocated for it afterwards.

        Raises ExecutorError (OutOfMemoryError where memory is short now), or OperationError where an operation does
        not take the engine's tensors; the executor is as before then.
        """
        kernels = self._kernels
        if kernels is None:
            raise ExecutorError("the executor is closed")
        with ExitStack() as undo:
            try:
                with refusing_what_never_fits(self._context.facts, self._budget.limit_bytes), _translated(self._driver):
                    bucket = self._bound(binding, kernels, undo)
            except LostError:
                undo.pop_all()  # nothing can be given back any more
                raise
            undo.pop_all()
        self._buckets.append(bucket)
        for lane, slot in zip(self._lanes, bucket.slots, strict=True):
            lane.slots.append(slot)
        return bucket

    def drain(self) -> None:
        """Wait for everything that was submitted; its results are nobody's. Raises ExecutorError or LostError."""
        with _translated(self._driver):
            for lane in self._lanes:
                lane.stream.synchronize()
        for slot in list(self._flights):
            slot.land()

    def wipe(self) -> None:
        """Zero every buffer, pinned and on the device; raises ExecutorError when something is in flight."""
        if self._flights:
            raise ExecutorError("memory cannot be wiped while a slot is in flight")
        for bucket in self._buckets:
            for slot in bucket.slots:
                slot.forget()
        for arena in self._arenas:
            arena.clear()
        for lane in self._lanes:
            lane.clear()

    def close(self) -> None:
        """Wait for what is in flight; free everything, cleared, and give the context up. Raises nothing."""
        if self._kernels is None:
            return
        lost = self._is_lost()
        for bucket in self._buckets:
            for slot in bucket.slots:
                slot.close()
        if lost:
            for arena in self._arenas:
                arena.clear_pinned()
        else:
            for lane in self._lanes:
                lane.free()
            for arena in self._arenas:
                arena.free()
        self._engine.close()
        if lost:
            self._context.close()  # before pycuda's objects go: it would say of each that it cannot be freed
        self._buckets.clear()
        self._flights.clear()
        self._lanes.clear()
        self._kernels = None
        self._context.close()

    def _release(self, bucket: CudaBucket) -> None:
        """Free one bucket. Where the context is lost that is left to `close`."""
        if bucket not in self._buckets:
            return
        try:
            cuda.Context.synchronize()
        except cuda.Error:
            return
        for slot, lane in zip(bucket.slots, self._lanes, strict=True):
            slot.land()
            slot.close()
            lane.slots.remove(slot)
        bucket.arena.free()
        self._arenas.remove(bucket.arena)
        self._buckets.remove(bucket)
        self._trim()

    def _is_lost(self) -> bool:
        """Wait for what is in flight; whether the context was lost.

        SIGTERM may come in the middle of a capture, in which nothing can be waited for or cleared: it is given up.
        """
        for lane in self._lanes:
            self._driver.abandon_capture(lane.stream.handle)
        try:
            self.drain()
        except LostError:
            return True
        except ExecutorError:
            pass  # whatever it was, memory can still be cleared: what fails of that is left out
        return False

    def _bound(self, binding: Binding, kernels: KernelLibrary, undo: ExitStack) -> CudaBucket:
        """The bucket; `undo` is given what has to be done when something on the way fails."""
        undo.callback(self._trim)
        arena = Arena(self._driver, self._budget, mapped=self._context.facts.integrated)
        self._arenas.append(arena)
        undo.callback(self._arenas.remove, arena)
        undo.callback(arena.free)
        words = bucket_words(binding.bucket)
        shapes = engine_shapes(binding, self.inputs)
        slots: list[CudaSlot] = []
        outputs: list[TensorSpec] = []
        for number, lane in enumerate(self._lanes):
            what = f"{words}, slot {number}"
            engine = self._engine.bind(shapes)
            undo.callback(engine.close)
            reads = readings(binding, engine.outputs)
            outputs = [read.output for read in reads]
            work = slot_work(binding, reads, engine, arena, what)
            lane.reserve(what, scratch_bytes(reads, engine))
            slot = CudaSlot(work, lane, kernels, self._flights)
            undo.callback(slot.close)
            slot.warm_up()
            slot.record()
            slots.append(slot)
        return CudaBucket(words, slots, outputs, arena, self._release)

    def _trim(self) -> None:
        for lane in self._lanes:
            lane.trim()


@contextmanager
def _translated(driver: Driver) -> Iterator[None]:
    """Turn pycuda's errors into ours, and every error into LostError where the context is lost."""
    try:
        yield
    except LostError:
        raise
    except ExecutorError as error:
        raise_if_lost(driver, error)
        raise
    except cuda.Error as error:
        raise driver.failure_of(error) from error
