"""The calls of libcuda that pycuda has no name for, by ctypes: context flags, stream capture and graphs.

They mix with pycuda's objects, which give their handles as integers. Each call is checked. What went wrong becomes one
of three errors: LostError where the context cannot be used any more, so that the process has to be ended (`LOST` says
why for each), OutOfMemoryError where memory cannot be had now, and ExecutorError for everything else, as a capture that
is refused.
pycuda's own exceptions carry no number, only libcuda's sentence; `failure_of` finds the number by that sentence.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping

from agent.worker.executor import ExecutorError, LostError, OutOfMemoryError

LIBRARY = "libcuda.so.1"
_BLOCKING_SYNC = 0x04
"""CU_CTX_SCHED_BLOCKING_SYNC: a thread that waits for the device sleeps, where it would spin by default."""
_CAPTURE_THREAD_LOCAL = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: calls of other threads cannot spoil the capture."""

LOST: Mapping[int, str] = {
    3: "the driver was not initialised, or is no more",
    4: "the driver is shutting down",
    46: "the device is not available to this process any more",
    100: "the device has gone",
    101: "the device has gone",
    201: "the context is no more, as after a suspend",
    214: "an uncorrectable memory (ECC) error",
    220: "an uncorrectable NVLink error",
    226: "a fault on the device ended every process's work there",
    304: "the operating system refused the driver, as after a suspend",
    700: "a kernel touched memory that is not its own",
    702: "a kernel ran longer than the system allows",
    709: "the context was destroyed",
    710: "an assertion in a kernel failed",
    714: "a kernel's stack was damaged, or overflowed",
    715: "a kernel came to an illegal instruction",
    716: "a kernel used a misaligned address",
    717: "a kernel used an address of the wrong memory space",
    718: "a kernel's program counter went astray",
    719: "a kernel failed",
    721: "a kernel left tensor memory behind",
    802: "the system is not ready, as after a suspend",
    807: "the multi-process service is not ready",
    810: "the multi-process service ended this client",
    911: "an asynchronous error of another device",
    999: "an unknown error, as after a suspend",
}
"""Results of the CUDA driver API (cuda.h, CUresult) that stay: every later call in this process fails as well."""

_OUT_OF_MEMORY = 2
"""CUDA_ERROR_OUT_OF_MEMORY: of the device as well as of pinned memory."""
_HANDLE = ctypes.c_void_p
_SIGNATURES: Mapping[str, tuple[object, ...]] = {
    "cuDevicePrimaryCtxSetFlags_v2": (ctypes.c_int, ctypes.c_uint),
    "cuCtxPopCurrent_v2": (ctypes.POINTER(_HANDLE),),
    "cuStreamBeginCapture_v2": (_HANDLE, ctypes.c_int),
    "cuStreamEndCapture": (_HANDLE, ctypes.POINTER(_HANDLE)),
    "cuGraphInstantiateWithFlags": (ctypes.POINTER(_HANDLE), _HANDLE, ctypes.c_ulonglong),
    "cuGraphLaunch": (_HANDLE, _HANDLE),
    "cuGraphDestroy": (_HANDLE,),
    "cuGraphExecDestroy": (_HANDLE,),
    "cuGetErrorName": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
    "cuGetErrorString": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
}


class Driver:
    """libcuda of this process. Handles of streams, graphs and contexts are integers."""

    def __init__(self) -> None:
        """Find the library and the calls in it; raises ExecutorError where there is none, or one that is too old."""
        try:
            library = ctypes.CDLL(LIBRARY)
            self._calls = {name: _function(library, name, arguments) for name, arguments in _SIGNATURES.items()}
        except (OSError, AttributeError) as error:
            raise ExecutorError(f"the CUDA driver cannot be used: {error}") from error
        self._launch = self._calls["cuGraphLaunch"]
        self._sentences = {self._sentence(code): code for code in (*LOST, _OUT_OF_MEMORY)}

    def sleep_while_waiting(self, device: int) -> None:
        """Let threads sleep while they wait for the primary context of a device; before it is retained."""
        self._check("cuDevicePrimaryCtxSetFlags_v2", device, _BLOCKING_SYNC)

    def pop_context(self) -> None:
        """Take the context off the top of this thread's stack, if there is one."""
        self._calls["cuCtxPopCurrent_v2"](ctypes.byref(_HANDLE()))

    def begin_capture(self, stream: int) -> None:
        """From now on what this thread puts on the stream is recorded, not done."""
        self._check("cuStreamBeginCapture_v2", stream, _CAPTURE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """What was recorded, as a graph; raises ExecutorError when something in it cannot be captured."""
        graph = _HANDLE()
        self._check("cuStreamEndCapture", stream, ctypes.byref(graph))
        return graph.value or 0

    def abandon_capture(self, stream: int) -> None:
        """End a capture that failed, if it has not ended, whatever it says: the stream does its work again."""
        graph = _HANDLE()
        self._calls["cuStreamEndCapture"](stream, ctypes.byref(graph))
        if graph.value:
            self.destroy_graph(graph.value)

    def instantiate(self, graph: int) -> int:
        """A graph as something that can be launched."""
        executable = _HANDLE()
        self._check("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, 0)
        return executable.value or 0

    def launch_graph(self, executable: int, stream: int) -> None:
        """Put one run of a graph on a stream."""
        code = self._launch(executable, stream)
        if code:
            raise self._failure("cuGraphLaunch", code)

    def destroy_graph(self, graph: int) -> None:
        """Free a graph; that fails only in a context that is lost, which other calls will say."""
        self._calls["cuGraphDestroy"](graph)

    def destroy_executable(self, executable: int) -> None:
        """Free what `instantiate` gave; as `destroy_graph`."""
        self._calls["cuGraphExecDestroy"](executable)

    def failure_of(self, error: Exception, what: str = "") -> ExecutorError:
        """A pycuda exception as ours; `what` failed, in words that go before it.

        Its text is `cuName failed: sentence`, and after ` - ` there may be more.
        """
        text = f"{what}: CUDA: {error}" if what else f"CUDA: {error}"
        sentence = str(error).partition(" failed: ")[2].partition(" - ")[0]
        code = self._sentences.get(sentence)
        return ExecutorError(text) if code is None else _failure(code, f"{text} ({self._name(code)}")

    def _check(self, call: str, *arguments: object) -> None:
        code = self._calls[call](*arguments)
        if code:
            raise self._failure(call, code)

    def _failure(self, call: str, code: int) -> ExecutorError:
        return _failure(code, f"CUDA: {call} failed: {self._sentence(code)} ({self._name(code)}")

    def _name(self, code: int) -> str:
        """The name of a result: `CUDA_ERROR_OUT_OF_MEMORY`."""
        return self._text("cuGetErrorName", code)

    def _sentence(self, code: int) -> str:
        """The driver's own sentence for a result: `out of memory`."""
        return self._text("cuGetErrorString", code)

    def _text(self, call: str, code: int) -> str:
        text = ctypes.c_char_p()
        failed = self._calls[call](code, ctypes.byref(text))
        return f"result {code}" if failed or text.value is None else text.value.decode("utf-8", "replace")


def _failure(code: int, text: str) -> ExecutorError:
    """The error for a result; `text` ends in a bracket that is still open."""
    if code in LOST:
        return LostError(f"{text}: {LOST[code]})")
    return OutOfMemoryError(f"{text})") if code == _OUT_OF_MEMORY else ExecutorError(f"{text})")


def _function(library: ctypes.CDLL, name: str, arguments: tuple[object, ...]) -> Callable[..., int]:
    """One call of the library, with its arguments' types: ctypes would cut a handle to 32 bits."""
    function = getattr(library, name)
    function.argtypes = arguments
    function.restype = ctypes.c_int
    call: Callable[..., int] = function
    return call
