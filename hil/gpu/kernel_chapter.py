"""Every kernel on the device: whether its result is the reference's, and how fast it moves what it must.

Right: the cases that kernels get wrong (`hard_cases`) and large ones, over result buffers full of rubbish, many times
over, since a race need not show the first time.

Fast: the rate is held against a plain copy on the same device in the same run, with as many bytes read and written in
all, so both pay for the same memory. A kernel's own bytes are its input once and its results once; scratch memory is
its own affair. Everything runs many times between two events; the median of several such series counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pycuda.driver as cuda

from agent.worker.cuda.kernels import KernelLibrary
from hil.gpu.figures import Bandwidth, Check
from hil.gpu.hard_cases import Case, ImageCase, equal, reference, staged, tolerance
from kernels.operation import IMAGES, INPUT, OUTPUT, PIXELS, SCRATCH, Array, Launch, TensorSpec

SERIES = 7
_RUBBISH = 0xA5
_MB, _GB = 1e6, 1e9


@dataclass(frozen=True)
class Trial:
    """A case with the words for the report; `timed`: large enough that its speed means something."""

    name: str
    words: str
    case: Case
    timed: bool = False


def run_kernels(
    library: KernelLibrary, trials: Iterable[Trial], *, runs: int, repeats: int
) -> Iterator[Check | Bandwidth]:
    """Every trial checked, `repeats` times; those that are large enough also timed, `runs` times in each series."""
    bench = _Bench(library, runs)
    for trial in trials:
        yield bench.check(trial, repeats)
        if trial.timed:
            yield bench.bandwidth(trial)


class _Bench:
    """Buffers, launches and times in the current context."""

    def __init__(self, library: KernelLibrary, runs: int) -> None:
        self._library, self._runs = library, runs
        self._stream = cuda.Stream(1)

    def check(self, trial: Trial, repeats: int) -> Check:
        """Run the kernel over and over, and hold its results against the reference and against each other."""
        with _Buffers() as buffers:
            launches, names, expected = _prepared(trial.case, buffers)
            calls = [self._library.bound(launch, buffers.addresses, self._stream) for launch in launches]
            found: list[list[Array]] = []
            for _ in range(repeats):
                for name, values in zip(names, expected, strict=True):
                    cuda.memset_d8_async(buffers.addresses[name], _RUBBISH, values.nbytes, self._stream)
                for call in calls:
                    call()
                self._stream.synchronize()
                found.append([buffers.download(name, like) for name, like in zip(names, expected, strict=True)])
        steady = all(
            one.tobytes() == first.tobytes() for some in found for one, first in zip(some, found[0], strict=True)
        )
        return _compared(trial, found[0], expected, "" if steady else f"results differ within {repeats} runs")

    def bandwidth(self, trial: Trial) -> Bandwidth:
        """Time the kernel, and a copy that moves as much."""
        with _Buffers() as buffers:
            launches, _, expected = _prepared(trial.case, buffers)
            calls = [self._library.bound(launch, buffers.addresses, self._stream) for launch in launches]
            kernel_us = self._median_us(lambda: [call() for call in calls])
        moved = _moved_bytes(trial.case, expected)
        copy_us = self._copy_us(moved)
        return Bandwidth(
            kernel=trial.name,
            case=trial.words,
            moved_mb=moved / _MB,
            kernel_us=kernel_us,
            kernel_gb_s=moved / kernel_us * 1e6 / _GB,
            copy_gb_s=moved / copy_us * 1e6 / _GB,
            of_copy=copy_us / kernel_us,
        )

    def _copy_us(self, moved: int) -> float:
        """A copy that reads and writes `moved` bytes in all."""
        half = max(moved // 2, 256)
        with _Buffers() as buffers:
            buffers.allocate("from", half)
            buffers.allocate("to", half)
            source, target = buffers.addresses["from"], buffers.addresses["to"]
            return self._median_us(lambda: cuda.memcpy_dtod_async(target, source, half, self._stream))

    def _median_us(self, run: Callable[[], object]) -> float:
        """Microseconds of one run, on the device."""
        begin, end = cuda.Event(), cuda.Event()
        series = []
        for _ in range(SERIES + 1):
            begin.record(self._stream)
            for _ in range(self._runs):
                run()
            end.record(self._stream)
            end.synchronize()
            series.append(end.time_since(begin) * 1000 / self._runs)
        return float(max(statistics.median(series[1:]), 1e-3))


class _Buffers:
    """Device memory by name, freed at the end."""

    def __init__(self) -> None:
        self._held: dict[str, cuda.DeviceAllocation] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for held in self._held.values():
            held.free()

    @property
    def addresses(self) -> Mapping[str, int]:
        return {name: int(held) for name, held in self._held.items()}

    def allocate(self, name: str, nbytes: int) -> None:
        self._held[name] = cuda.mem_alloc(max(nbytes, 1))

    def upload(self, name: str, body: bytes) -> None:
        self.allocate(name, len(body))
        if body:
            cuda.memcpy_htod(self._held[name], body)

    def download(self, name: str, like: Array) -> Array:
        values = np.empty_like(like)
        cuda.memcpy_dtoh(values, self._held[name])
        return values


def _prepared(case: Case, buffers: _Buffers) -> tuple[Sequence[Launch], list[str], Sequence[Array]]:
    """The launches over filled buffers, the buffers they fill, and what has to be in them."""
    expected = reference(case)
    if isinstance(case, ImageCase):
        table, pixels = staged(case.images)
        buffers.upload(PIXELS, pixels)
        buffers.upload(IMAGES, table.tobytes())
        names = [INPUT]
        launches: Sequence[Launch] = [
            case.operation.launch(len(case.images), case.operation.spec(case.height, case.width))
        ]
    else:
        items, spec = len(case.output), TensorSpec(case.output.dtype.name, case.output.shape[1:])
        buffers.upload(OUTPUT, case.output.tobytes())
        buffers.allocate(SCRATCH, case.operation.scratch_bytes(items, spec))
        names = [f"result{place}" for place in range(len(expected))]
        launches = case.operation.launches(items, spec)
    for name, values in zip(names, expected, strict=True):
        buffers.allocate(name, values.nbytes)
    return launches, names, expected


def _compared(trial: Trial, found: Sequence[Array], expected: Sequence[Array], fault: str) -> Check:
    """Equal, or within the tolerance that the operation states."""
    same = values = 0
    largest, right = 0.0, not fault
    for at, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        values += theirs.size
        same += int(np.count_nonzero(equal(theirs, mine, 0.0)))
        right &= bool(equal(theirs, mine, tolerance(trial.case, at)).all())
        with np.errstate(invalid="ignore"):
            errors = np.abs(mine.astype(np.float64) - theirs.astype(np.float64))
        largest = max(largest, float(np.nanmax(errors, initial=0.0)))
    return Check(
        name=trial.name,
        case=trial.words,
        values=values,
        equal_permille=1000 * same // max(values, 1),
        largest_error=largest,
        right=right,
        detail=fault,
    )


def _moved_bytes(case: Case, expected: Sequence[Array]) -> int:
    written = sum(values.nbytes for values in expected)
    if isinstance(case, ImageCase):
        return written + sum(image.nbytes for image in case.images if image is not None)
    return written + case.output.nbytes
