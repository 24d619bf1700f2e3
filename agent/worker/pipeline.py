"""From an image's bytes to its answer: decode, pre-process, choose a bucket, run the engine, post-process, digest.

The engine is only ever run with the static shapes that the package lists (buckets): a short batch is filled up with
zeros, whose answers are dropped. An item goes to the smallest width that holds its line, and `calibrate` picks how
many items a batch of each width has: as many as finish within the micro-batch budget on this computer. So an answer
may depend on its company only as far as the engine's rounding does.

An item that cannot be decoded is an answer too (`{"error": …}`); only a failing engine fails a slice.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from agent.errors import PackageError
from agent.package import OpCall, Package
from agent.worker.answers import Answer, answer, no_answer
from agent.worker.executor import Executor, ExecutorError
from agent.worker.images import ImageError, decode_image
from kernels import OperationError, operation
from kernels.ctc_greedy_decode import CtcGreedyDecode, ctc_greedy_decode
from kernels.resize_normalize_pad import ResizeNormalizePad, resize_normalize_pad, resized_width

MICRO_BATCH_BUDGET_MS = 20.0
_TIMED_RUNS = 3

_Op = TypeVar("_Op", ResizeNormalizePad, CtcGreedyDecode)


@dataclass(frozen=True)
class Line:
    """A decoded item on its way to the engine: its place among the items, and the bucket width it goes to."""

    place: int
    image: NDArray[np.uint8]
    width: int


class Pipeline:
    """A package's pipeline on one executor."""

    def __init__(self, package: Package, executor: Executor) -> None:
        """Bind operations and files; raises PackageError for a pipeline that does not fit together."""
        manifest = package.manifest
        self._where = f"package {package.path}"
        self._executor = executor
        self._limits = manifest.limits
        self._buckets = manifest.buckets
        self._widths = self._listed_widths()
        self._batch_items = {width: min(self._sizes(width)) for width in self._widths}
        self._resize = self._only(manifest.pipeline.pre, ResizeNormalizePad, "pre")
        decode = self._only(manifest.pipeline.post, CtcGreedyDecode, "post")
        try:
            self._characters = package.read(decode.characters).decode("utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise PackageError(f"{self._where}: {decode.characters} is not UTF-8 text") from error

    def calibrate(self) -> Iterator[float]:
        """Time the buckets and choose the batch size of each width; yields the latency in ms of each choice so far.

        A generator, so that the caller can attend to other things in between. Each bucket is run once to warm up,
        then the median of three runs counts. Of a width's buckets the largest that keeps the budget is chosen, the
        smallest where none does. Raises PackageError when the engine fails or does not fit the character list.
        """
        for width in self._widths:
            chosen_ms = 0.0
            for items in self._sizes(width):
                latency_ms = self._time(items, width)
                if chosen_ms and latency_ms > MICRO_BATCH_BUDGET_MS:
                    break
                self._batch_items[width], chosen_ms = items, latency_ms
            yield chosen_ms

    def _prepare(self, place: int, item: bytes) -> Line | Answer:
        """Decode one item; an item that is no good is answered at once."""
        try:
            if len(item) > self._limits.max_item_bytes:
                raise ImageError(f"the item has {len(item)} bytes, more than {self._limits.max_item_bytes}")  # noqa: TRY301
            image = decode_image(item)
        except ImageError as error:
            return no_answer(str(error))
        wanted = resized_width(image.shape[0], image.shape[1], self._resize.height)
        return Line(place, image, next((width for width in self._widths if width >= wanted), self._widths[-1]))

    def steps(self, items: Sequence[bytes]) -> Iterator[list[tuple[int, Answer]]]:
        """Work through `items`; yields after each decoded item or micro-batch the (place, answer)s that it gave.

        Between two steps the caller may pause or give up (by closing the iterator); a step is at most one decoded
        item and one micro-batch long. Raises ExecutorError.
        """
        waiting: dict[int, list[Line]] = {width: [] for width in self._widths}
        for place, item in enumerate(items):
            prepared = self._prepare(place, item)
            if isinstance(prepared, Answer):
                yield [(place, prepared)]
                continue
            lines = waiting[prepared.width]
            lines.append(prepared)
            if len(lines) < self._batch_items[prepared.width]:
                yield []
                continue
            waiting[prepared.width] = []
            yield self._run(lines)
        for lines in waiting.values():
            if lines:
                yield self._run(lines)

    def _run(self, lines: Sequence[Line]) -> list[tuple[int, Answer]]:
        """One micro-batch of lines of one width, in the smallest bucket that holds them."""
        width = lines[0].width
        items = min(size for size in self._sizes(width) if size >= len(lines))
        batch = np.zeros((items, 3, self._resize.height, width), dtype=np.float32)
        for row, line in zip(batch, lines):  # noqa: B905 - shorter on purpose: the rest of the batch stays zero
            row[:] = resize_normalize_pad(line.image, self._resize.height, width)
        output = self._executor.run(batch)
        return [(line.place, self._answer(row)) for line, row in zip(lines, output)]  # noqa: B905 - without the fill

    def _answer(self, raw: NDArray[np.float32]) -> Answer:
        """Post-process one item's engine output."""
        if raw.ndim != 2 or raw.shape[1] != len(self._characters) + 1:
            raise ExecutorError(f"engine output {raw.shape} for a list of {len(self._characters)} characters")
        decoded = ctc_greedy_decode(raw)
        if not math.isfinite(decoded.confidence):
            raise ExecutorError("engine output that is not a number")
        body: dict[str, str | int] = {
            "text": "".join(self._characters[index - 1] for index in decoded.classes),
            "confidence_permille": min(max(math.floor(decoded.confidence * 1000 + 0.5), 0), 1000),
        }
        return answer(body, [raw])

    def _time(self, items: int, width: int) -> float:
        """The latency of one bucket's engine run, in ms."""
        batch = np.zeros((items, 3, self._resize.height, width), dtype=np.float32)
        timings_ms = []
        try:
            self._answer(self._executor.run(batch)[0])
            for _ in range(_TIMED_RUNS):
                start = time.perf_counter()
                self._executor.run(batch)
                timings_ms.append((time.perf_counter() - start) * 1000)
        except ExecutorError as error:
            raise PackageError(f"{self._where}: bucket {items} x {width}: {error}") from error
        return statistics.median(timings_ms)

    def _listed_widths(self) -> list[int]:
        """The widths of the package's buckets, narrowest first; each bucket of an image package has one."""
        widths = {bucket.width for bucket in self._buckets}
        if None in widths:
            raise PackageError(f"{self._where}: a bucket without a width, which images need")
        return sorted(width for width in widths if width is not None)

    def _sizes(self, width: int) -> list[int]:
        """The batch sizes that the package lists for a width, smallest first."""
        return sorted(bucket.items for bucket in self._buckets if bucket.width == width)

    def _only(self, calls: Sequence[OpCall], kind: type[_Op], stage: str) -> _Op:
        """The one operation that leads from what the stage gets to what it must give."""
        try:
            bound = [operation(call.op, call.params) for call in calls]
        except OperationError as error:
            raise PackageError(f"{self._where}: pipeline.{stage}: {error}") from error
        match bound:
            case [only] if isinstance(only, kind):
                return only
            case _:
                names = " -> ".join(call.op for call in calls)
                raise PackageError(f"{self._where}: pipeline.{stage} {names} does not lead from images to text")
