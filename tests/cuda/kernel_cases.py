"""One operation on one input: the kernel's results on this computer's processor against the reference's.

The inputs are those that kernels get wrong (`hil.gpu.hard_cases`). They are run under several thread orders, in a
sanitised process, and against planted bugs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hil.gpu.hard_cases import Case, ImageCase, equal, reference, staged, tolerance
from kernels.operation import IMAGES, INPUT, OUTPUT, PIXELS, SCRATCH, Array, Launch, TensorSpec
from tests.cuda.host_kernels import Guarded, HostKernels

ORDERS = (0, 1, 2, 3, 4)
"""Ascending, descending, and three shuffles."""


def difference(case: Case, kernels: HostKernels, order: int) -> str | None:
    """In what the kernels' results differ from the reference's under a thread order; None: in nothing.

    Raises LaunchError when the launch itself is at fault.
    """
    expected, found = reference(case), launched(case, kernels, order)
    for at, (want, have) in enumerate(zip(expected, found, strict=True)):
        if (want.dtype, want.shape) != (have.dtype, have.shape):
            return f"result{at}: {have.dtype} {have.shape}, not {want.dtype} {want.shape}"
        same = equal(want, have, tolerance(case, at))
        if not same.all():
            place = tuple(int(index) for index in np.argwhere(~same)[0])
            return f"result{at}{list(place)}: {have[place]}, not {want[place]} ({np.count_nonzero(~same)} differ)"
    return None


def launched(case: Case, kernels: HostKernels, order: int) -> tuple[Array, ...]:
    """What the kernels give."""
    if isinstance(case, ImageCase):
        spec = case.operation.spec(case.height, case.width)
        launch = case.operation.launch(len(case.images), spec)
        buffers = _staged(case.images)
        return _run(kernels, order, (launch,), buffers, _Results(len(case.images), {INPUT: spec}))
    items = len(case.output)
    output = TensorSpec(case.output.dtype.name, case.output.shape[1:])
    results = {f"result{at}": spec for at, spec in enumerate(case.operation.results(output))}
    inputs = {OUTPUT: Guarded(case.output.nbytes, case.output.tobytes())}
    scratch_bytes = case.operation.scratch_bytes(items, output)
    if scratch_bytes:
        inputs[SCRATCH] = Guarded(scratch_bytes)
    return _run(kernels, order, case.operation.launches(items, output), inputs, _Results(items, results))


@dataclass(frozen=True)
class _Results:
    """How many items, and what one item's results are by the name of their buffer."""

    items: int
    specs: Mapping[str, TensorSpec]


def _run(
    kernels: HostKernels,
    order: int,
    launches: Sequence[Launch],
    inputs: Mapping[str, Guarded],
    results: _Results,
) -> tuple[Array, ...]:
    items, specs = results.items, results.specs
    buffers = {**inputs, **{name: Guarded(items * spec.nbytes) for name, spec in specs.items()}}
    before = {name: buffer.bytes.copy() for name, buffer in inputs.items() if name != SCRATCH}
    for launch in launches:
        kernels.launch(launch, {name: buffer.bytes for name, buffer in buffers.items()}, order)
    for name, buffer in buffers.items():
        buffer.release(name)
    for name, body in before.items():
        assert (inputs[name].bytes == body).all(), f"{name} was changed"
    return tuple(
        buffers[name].bytes.view(spec.dtype).reshape(items, *spec.shape).copy() for name, spec in specs.items()
    )


def _staged(images: Sequence[NDArray[np.uint8] | None]) -> dict[str, Guarded]:
    table, body = staged(images)
    return {PIXELS: Guarded(len(body), body), IMAGES: Guarded(table.nbytes, table.tobytes())}
