"""The kernels on the device: one module, and launches of it with every address fixed.

An operation (`kernels.operation`) says which kernel is launched with which buffers by name; here the names become
addresses, once, and the launch becomes something that is called without arguments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Union

import pycuda.driver as cuda

from agent.worker.cuda.driver import Driver
from agent.worker.executor import ExecutorError
from kernels.operation import Argument, Buffer, Float32, Int32, Launch

_Value = Union[int, float]  # noqa: UP007 - Python 3.10 evaluates this line


class KernelLibrary:
    """A loaded fatbin, in the current context."""

    def __init__(self, driver: Driver, image: bytes) -> None:
        """Load the module; raises ExecutorError when the bytes are no module for this device."""
        self.driver = driver
        self.sha256 = hashlib.sha256(image).hexdigest()
        try:
            self._module = cuda.module_from_buffer(image)
        except cuda.Error as error:
            raise driver.failure_of(error) from error

    def bound(self, launch: Launch, addresses: Mapping[str, int], stream: cuda.Stream) -> Callable[[], None]:
        """A call that puts the launch on the stream; it raises pycuda's errors.

        Raises ExecutorError when there is no such kernel or buffer.
        """
        try:
            function = self._module.get_function(launch.kernel)
        except cuda.Error as error:
            raise self.driver.failure_of(error, f"kernel {launch.kernel}") from error
        typed = [_typed(launch, argument, addresses) for argument in launch.arguments]
        function.prepare("".join(code for code, _ in typed))
        values = [value for _, value in typed]
        enqueue = function.prepared_async_call
        return partial(enqueue, launch.grid, launch.block, stream, *values, shared_size=launch.shared_bytes)


def _typed(launch: Launch, argument: Argument, addresses: Mapping[str, int]) -> tuple[str, _Value]:
    """An argument's code in the format of `struct`, and its value."""
    if isinstance(argument, Buffer):
        if argument.name not in addresses:
            raise ExecutorError(f"kernel {launch.kernel} asks for the buffer {argument.name}, which there is not")
        return "P", addresses[argument.name]
    if isinstance(argument, Int32):
        return "i", argument.value
    if isinstance(argument, Float32):
        return "f", argument.value
    raise AssertionError(argument)
