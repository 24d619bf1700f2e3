"""What runs a model: one small protocol, so that the pipeline is the same on every accelerator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class ExecutorError(Exception):
    """The engine could not be built, or a run of it failed; the text is the engine's own."""


class Executor(Protocol):
    """An engine with one input and one output, both float32."""

    @property
    def name(self) -> str:
        """The kind of engine, as reported and attested: `onnxruntime_cpu`."""
        ...

    @property
    def device(self) -> str:
        """The device it runs on, in its maker's words."""
        ...

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """N x C x H x W in, N x … out; raises ExecutorError."""
        ...


class TensorExecutor(Protocol):
    """An engine with any inputs and outputs, by the names that the model gives them."""

    def run_tensors(
        self, inputs: Mapping[str, NDArray[np.generic]], outputs: Sequence[str]
    ) -> list[NDArray[np.generic]]:
        """The named outputs for these inputs; raises ExecutorError."""
        ...
