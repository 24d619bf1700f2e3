"""What a leased pipeline is compared with, in a process of its own.

    python -m hil.bench.pipeline_peer PACKAGE INPUT --threads N

PACKAGE has one bucket and a model with one input; INPUT holds items as a job's input does. Words come on standard
input, each is answered with a line of JSON: `bare COUNT` runs the engine so often on micro-batches that lie ready, with
the leased worker's settings and nothing around it; `naive COUNT` does the whole work for as many micro-batches, one
step after the other, as a script would.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort

from agent.package import Package, open_package
from agent.wire import decode_input
from agent.worker.executor import ModelTensor
from agent.worker.images import decode_image
from agent.worker.onnxruntime_cpu import session_options
from agent.worker.program import Answering, Program, compile_program
from kernels.npy_tensor import npy_tensor, sizes
from kernels.operation import Array, TensorSpec

NICENESS = 10
"""A worker's, so that neither has the better half of a busy computer."""


class Took(msgspec.Struct, frozen=True):
    """What some micro-batches took: seconds of wall clock, and of processor."""

    wall_s: float
    cpu_s: float


class Loops:
    """A package's model, run in the plainest ways."""

    def __init__(self, package: Package, items: Sequence[bytes], threads: int) -> None:
        model = package.read(package.manifest.model)
        self._session = ort.InferenceSession(model, session_options(threads), providers=["CPUExecutionProvider"])
        (given,) = self._session.get_inputs()
        inputs = {
            given.name: ModelTensor("float32", tuple(one if isinstance(one, int) else None for one in given.shape))
        }
        outputs = {one.name: ModelTensor("float32", ()) for one in self._session.get_outputs()}
        self._program: Program = compile_program(package, inputs, outputs)
        ((self._binding,),) = (lane.bindings for lane in self._program.lanes)
        self._name, self._items = given.name, items
        self.batch_items = self._binding.bucket.items
        self._batches = [self._filled(place) for place in range(max(1, len(items) // self.batch_items))]
        first = self._session.run(None, self._batches[0])
        self._answering = Answering(
            self._program, package, [TensorSpec(one.dtype.name, one.shape[1:]) for one in first]
        )

    def bare(self, count: int) -> None:
        """Run so many micro-batches that were made before."""
        session, batches = self._session, self._batches
        for place in range(count):
            session.run(None, batches[place % len(batches)])

    def naive(self, count: int) -> bytes:
        """Read, pre-process, run and post-process so many micro-batches; the answers as JSON."""
        bodies: list[dict[str, Any]] = []
        for place in range(count):
            outputs = self._session.run(None, self._filled(place))
            results = [one.reference(output) for one, output in zip(self._program.results, outputs, strict=True)]
            rows = range(self.batch_items)
            bodies += [self._answering([tuple(one[row] for one in result) for result in results]) for row in rows]
        return msgspec.json.encode(bodies)

    def _filled(self, place: int) -> dict[str, Array]:
        """One micro-batch's input."""
        spec = self._binding.inputs[self._name]
        batch: Array = np.zeros((self.batch_items, *spec.shape), spec.dtype)
        for row in range(self.batch_items):
            item = self._items[(place * self.batch_items + row) % len(self._items)]
            if self._program.image is not None:
                self._program.image.reference(decode_image(item), batch[row])
            else:
                (one,) = self._program.tensors
                batch[row] = npy_tensor(item, 0, one.dtype, sizes(one.shape))[0]
        return {self._name: batch}


def timed(run: Callable[[int], object], count: int) -> Took:
    """How long it takes."""
    began_s, cpu_s = time.perf_counter(), time.process_time()
    run(count)
    return Took(time.perf_counter() - began_s, time.process_time() - cpu_s)


def main() -> int:
    """Answer until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m hil.bench.pipeline_peer", description=__doc__)
    parser.add_argument("package", type=Path)
    parser.add_argument("input", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    loops = Loops(open_package(options.package), decode_input(options.input.read_bytes()), options.threads)
    ways = {"bare": loops.bare, "naive": loops.naive}
    for line in sys.stdin:
        way, count = line.split()
        print(msgspec.json.encode(timed(ways[way], int(count))).decode(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
