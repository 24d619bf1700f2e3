"""From items' bytes to answers: read, choose a bucket, fill a slot, compute, answer, digest; two micro-batches at once.

The engine is only ever run with the static shapes that the package lists (buckets). An item goes to the smallest that
it fits, and `calibrate` picks how many items a micro-batch of each size has on this computer: as many as a drain has
time for. What is left at the end goes in the smallest bucket that holds it, the rest of which is zeros. So an answer
may depend on its company only as far as the engine's rounding does.

At full pace one slot computes and another waits for it, while this thread answers the last and reads the next items. At
any lower pace there is one micro-batch at a time with nothing beside it, so that a rest is a rest.

An item that cannot be read is an answer too (`{"error": …}`); only a failing engine fails a slice.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic

import numpy as np

from agent.errors import PackageError
from agent.package import Package
from agent.worker.answers import Answer, RawForm, no_answer
from agent.worker.executor import Binding, BoundBucket, Executor, ExecutorError, LostError, Slot, SlotFullError
from agent.worker.images import ImageError, decode_image
from agent.worker.program import Answering, bucket_words, compile_program
from kernels.npy_tensor import NpyError, npy_tensor, sizes
from kernels.operation import Array, OperationError, TensorSpec

DRAIN_MS = 60
"""How long a drain may take where nobody says."""
_MICRO_BATCH_MS = 20.0
_DRAIN_SHARE = 0.5
"""Of the time for a drain: the rest is for what a busy computer adds to the measured time."""
_TIMED_RUNS = 3
_HOPELESS = 4.0
"""A bucket so many times beyond the budget is not timed further, the first run being slower or not."""
_BLANK = np.zeros((8, 8, 3), dtype=np.uint8)
_IN_FLIGHT = 2
_STEP_S = 0.01
_WAITING_BYTES = 64 * 1024**2
"""So much of decoded items may wait for their micro-batch to be full; beyond it they go as they are."""


@dataclass(frozen=True)
class Step:
    """What came of a step: answers by the items' places, and the seconds that the engine worked for them."""

    answers: Sequence[tuple[int, Answer]]
    engine_s: float = 0.0


@dataclass(frozen=True)
class _Read:
    """An item on its way to the engine: its place among the items, its lane, and its image or tensors."""

    place: int
    lane: int
    arrays: list[Array]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


@dataclass(frozen=True)
class _Bound:
    """A bucket that can be computed, and how its results become answers."""

    bucket: BoundBucket
    answering: Answering
    form: RawForm


@dataclass(frozen=True)
class _Flight:
    """A submitted micro-batch."""

    slot: Slot
    bound: _Bound
    places: list[int]


@dataclass
class _Waiting:
    """Items of one lane that wait for their micro-batch to be full."""

    items: list[_Read] = field(default_factory=list)
    nbytes: int = 0

    def take(self) -> list[_Read]:
        taken, self.items, self.nbytes = self.items, [], 0
        return taken


class Pipeline:
    """A package's pipeline on one executor, which stays the caller's."""

    def __init__(self, package: Package, executor: Executor, *, drain_ms: float = DRAIN_MS) -> None:
        """Compile the pipeline for the model; raises PackageError where it does not fit together."""
        self._package, self._executor = package, executor
        self._program = compile_program(package, executor.inputs, executor.outputs)
        self._tensors = [(one, sizes(one.shape)) for one in self._program.tensors]
        self._max_item_bytes = package.manifest.limits.max_item_bytes
        self._budget_ms = min(_MICRO_BATCH_MS, drain_ms * _DRAIN_SHARE)
        self._items = [lane.bindings[0].bucket.items for lane in self._program.lanes]
        self._bound: dict[int, _Bound] = {}
        self._flying: deque[_Flight] = deque()
        self.micro_batch_ms = 0.0
        """What a vacate waits for, once calibrated: the longest micro-batch, as often as a drain may meet it."""

    @property
    def idle(self) -> bool:
        """Whether nothing is submitted."""
        return not self._flying

    @property
    def batch(self) -> tuple[int, ...]:
        """How many items a full micro-batch has in each lane, narrowest first; what is left goes in smaller ones."""
        return tuple(self._items)

    def calibrate(self) -> Iterator[None]:
        """Bind and time the buckets, and choose how many items a micro-batch has; yields after each call of the engine.

        Of buckets that differ in their items alone the largest is taken whose median of three runs, as often as the
        executor may have it in flight, keeps the budget; the smallest where none does. None larger than the first that
        does not is tried. Raises PackageError when the engine fails, or gives what the operations cannot read.
        """
        for number, lane in enumerate(self._program.lanes):
            chosen_ms = 0.0
            for binding in lane.bindings:
                timings_s: list[float] = []
                for engine_s in self._time(binding):
                    timings_s.append(engine_s)
                    yield
                    if chosen_ms and engine_s * 1000 * self._executor.depth > _HOPELESS * self._budget_ms:
                        break
                latency_ms = statistics.median(timings_s[1:] or timings_s) * 1000 * self._executor.depth
                if chosen_ms and latency_ms > self._budget_ms:
                    self._bound.pop(id(binding)).bucket.close()
                    break
                self._items[number], chosen_ms = binding.bucket.items, latency_ms
            self.micro_batch_ms = max(self.micro_batch_ms, chosen_ms)

    def steps(self, items: Sequence[bytes], overlap: Callable[[], bool] = lambda: True) -> Generator[Step]:
        """Work through `items` in steps of at most one micro-batch and a few read items.

        Between two steps the caller may pause or give up (by closing the iterator, which drains). While `overlap` says
        so, two micro-batches are in flight. Raises ExecutorError, or OperationError for results that are no answer.
        """
        try:
            yield from self._work(items, overlap)
        except LostError:
            self._flying.clear()  # nothing answers any more
            raise
        finally:
            if self._flying:
                self._flying.clear()
                self._executor.drain()

    def compute(self, items: Sequence[bytes]) -> list[Answer]:
        """The answers to `items`, in their order; raises as `steps`."""
        given = dict(pair for step in self.steps(items) for pair in step.answers)
        return [given[place] for place in range(len(items))]

    def wipe(self) -> None:
        """Overwrite every buffer that held an item; between two slices only."""
        self._executor.wipe()

    def _work(self, items: Sequence[bytes], overlap: Callable[[], bool]) -> Iterator[Step]:
        waiting = [_Waiting() for _ in self._program.lanes]
        unread: list[tuple[int, Answer]] = []
        stepped_s = monotonic()
        for place, item in enumerate(items):
            read = self._read(place, item)
            if isinstance(read, Answer):
                unread.append((place, read))
            else:
                lane = waiting[read.lane]
                lane.items.append(read)
                lane.nbytes += read.nbytes
                if len(lane.items) == self._items[read.lane] or lane.nbytes > _WAITING_BYTES // len(waiting):
                    yield from self._submit(lane.take(), overlap)
            if monotonic() - stepped_s >= _STEP_S:
                yield Step(unread)
                yield from self._settle(overlap)
                unread, stepped_s = [], monotonic()
        for lane in waiting:
            if lane.items:
                yield from self._submit(lane.take(), overlap)
        while self._flying:
            yield self._collect()
        yield Step(unread)

    def _read(self, place: int, item: bytes) -> _Read | Answer:
        """Read one item; one that is no good is answered at once."""
        if len(item) > self._max_item_bytes:
            return no_answer(f"the item has {len(item)} bytes, more than {self._max_item_bytes}")
        if self._program.image is None:
            return self._read_tensors(place, item)
        try:
            image = decode_image(item)
        except ImageError as error:
            return no_answer(str(error))
        return _Read(place, self._program.lane(image.shape[0], image.shape[1]), [image])

    def _read_tensors(self, place: int, item: bytes) -> _Read | Answer:
        tensors: list[Array] = []
        offset = 0
        for spec, shape in self._tensors:
            try:
                tensor, offset = npy_tensor(item, offset, spec.dtype, shape)
            except NpyError as error:
                return no_answer(f"input {spec.input}: {error}")
            tensors.append(tensor)
        if offset != len(item):
            return no_answer(f"{len(item) - offset} bytes more than its tensors")
        return _Read(place, 0, tensors)

    def _submit(self, batch: Sequence[_Read], overlap: Callable[[], bool]) -> Iterator[Step]:
        """Fill a slot of the smallest bucket that holds the batch, and submit it; steps are what had to end before."""
        bindings = self._program.lanes[batch[0].lane].bindings
        bound = self._bind(next(one for one in bindings if one.bucket.items >= len(batch)))
        while (slot := self._free_slot(bound)) is None:
            yield self._collect()
        staged = self._stage(slot, batch)
        while len(self._flying) >= _IN_FLIGHT:
            yield self._collect()
        slot.submit(staged)
        self._flying.append(_Flight(slot, bound, [read.place for read in batch[:staged]]))
        yield from self._settle(overlap)
        if staged < len(batch):
            yield from self._submit(batch[staged:], overlap)

    def _settle(self, overlap: Callable[[], bool]) -> Iterator[Step]:
        """Where nothing may overlap, wait for what is in flight."""
        while self._flying and not overlap():
            yield self._collect()

    def _collect(self) -> Step:
        """Wait for the oldest micro-batch, and answer its items."""
        flight = self._flying.popleft()
        engine_s = flight.slot.wait()
        answering, form = flight.bound.answering, flight.bound.form
        answers = []
        for row, place in enumerate(flight.places):
            results = flight.slot.results(row)
            answers.append((place, form.answer(answering(results), results)))
        return Step(answers, engine_s)

    def _free_slot(self, bound: _Bound) -> Slot | None:
        return next((slot for slot in bound.bucket.slots if all(slot is not one.slot for one in self._flying)), None)

    def _stage(self, slot: Slot, batch: Sequence[_Read]) -> int:
        """Fill a slot; how many items it took, which are fewer than given where large images have no room together."""
        for row, read in enumerate(batch):
            try:
                if self._program.image is None:
                    slot.stage_tensors(row, read.arrays)
                else:
                    slot.stage_image(row, read.arrays[0])  # type: ignore[arg-type]  # decoded, so uint8
            except SlotFullError:
                return row
        return len(batch)

    def _bind(self, binding: Binding) -> _Bound:
        """The bucket with its slots, bound when it is needed first; raises PackageError where it cannot be."""
        bound = self._bound.get(id(binding))
        if bound is None:
            try:
                bucket = self._executor.bind(binding)
            except LostError:
                raise
            except (ExecutorError, OperationError) as error:
                raise PackageError(f"{self._where(binding)}: {error}") from error
            answering = Answering(self._program, self._package, bucket.outputs)
            bound = self._bound[id(binding)] = _Bound(bucket, answering, RawForm(answering.raw))
        return bound

    def _time(self, binding: Binding) -> Iterator[float]:
        """The seconds of a few runs of blank items; the first is slower than the others."""
        bound = self._bind(binding)
        slot = bound.bucket.slots[0]
        zeros: list[Array] = [np.zeros(one.shape, one.dtype) for one in binding.inputs.values()]
        blank = _Read(0, 0, zeros if binding.image is None else [_BLANK])
        for _ in range(1 + _TIMED_RUNS):
            try:
                self._stage(slot, [blank] * binding.bucket.items)
                slot.submit(binding.bucket.items)
                engine_s = slot.wait()
                given = [TensorSpec(one.dtype.name, one.shape) for some in slot.results(0) for one in some]
            except LostError:
                raise
            except (ExecutorError, OperationError) as error:
                raise PackageError(f"{self._where(binding)}: {error}") from error
            if tuple(given) != bound.form.specs:
                raise PackageError(f"{self._where(binding)}: results {given}, and {list(bound.form.specs)} was to come")
            yield engine_s

    def _where(self, binding: Binding) -> str:
        return f"{self._program.where}: {bucket_words(binding.bucket)}"
