"""What the CUDA executor needs of an engine: shapes bound once, addresses attached once, work put on a stream.

TensorRT stands behind it on a vehicle. It is small on purpose: everything about memory, slots, graphs and kernels is
the executor's, so that it is the same whatever the engine is, and can be tested without TensorRT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from agent.worker.executor import ModelTensor
from kernels.operation import Shape, TensorSpec


class EngineContext(Protocol):
    """The engine with fixed shapes. One use at a time; each slot has its own."""

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """The outputs for these shapes, with the batch."""
        ...

    @property
    def scratch_bytes(self) -> int:
        """Device memory for activations, which the executor gives: contexts that never run together share it."""
        ...

    def attach(self, addresses: Mapping[str, int], scratch: int) -> None:
        """Fix the device address of every input and output, and of the scratch memory. Raises ExecutorError."""
        ...

    def enqueue(self, stream: int) -> None:
        """Put one run on a CUDA stream (its handle) and return; capturable. Raises ExecutorError."""
        ...

    def close(self) -> None:
        """Free the context. May be called twice."""
        ...


class DeviceEngine(Protocol):
    """A loaded engine in the current CUDA context."""

    @property
    def name(self) -> str:
        """`tensorrt` or `tensorrt_rtx`."""
        ...

    @property
    def inputs(self) -> Mapping[str, ModelTensor]:
        """Inputs by name, in the engine's order."""
        ...

    @property
    def outputs(self) -> Mapping[str, ModelTensor]:
        """Outputs by name, in the engine's order."""
        ...

    def bind(self, shapes: Mapping[str, Shape]) -> EngineContext:
        """A context for these input shapes (with the batch); raises ExecutorError when the plan has none for them."""
        ...

    def close(self) -> None:
        """Free the engine. May be called twice."""
        ...
