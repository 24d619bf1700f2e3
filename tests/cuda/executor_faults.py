"""Scenarios: what the CUDA executor makes of failures, and that it leaves nothing behind (run by test_executor.py)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from agent.worker.cuda import opening
from agent.worker.cuda.driver import LOST
from agent.worker.cuda.engine import DeviceEngine
from agent.worker.executor import ExecutorError, LostError, OutOfMemoryError, UnavailableError
from kernels.fatbin import default_folder
from kernels.operation import OperationError
from tests.cuda import executor_rig as rig

OUT_OF_MEMORY, NOT_PERMITTED, LAUNCH_FAILED, INVALIDATED = 2, 800, 719, 901
DEVICE_BYTES = 8 * 1024 * rig.MIB
"""What the stand-in has, unless it is told otherwise."""


def no_memory_at_every_allocation() -> None:
    """Whichever allocation fails: a typed error that names what it was for, and nothing of the bucket stays."""
    texts = set()
    counts = {call: _bind_calls(call) for call in ("cuMemAlloc_v2", "cuMemHostAlloc")}
    with rig.columns_executor() as (executor, engine):
        before = rig.used_bytes()
        for call, count in counts.items():
            for number in range(1, count + 1):
                rig.control(f"fail={call}@{number}+:{OUT_OF_MEMORY}\n")
                text = _fails(OutOfMemoryError, "out of memory", lambda: executor.bind(rig.line_binding()))
                assert "cannot be had" in text, text
                texts.add(text.partition(":")[0])
                assert (rig.used_bytes(), executor.memory_bytes) == (before, 0), (call, number)
        rig.control()
        assert all(context.closed for context in engine.contexts)
        executor.bind(rig.line_binding())  # and then it works
    for place in ("images", "input", "results", "output 'y'", "output 'unread'", "scratch"):
        for slot in (0, 1):
            assert f"bucket of 4, 64 wide, slot {slot}, {place}" in texts, texts


def any_call_may_fail() -> None:
    """Each libcuda call of a bind, a submit and a wait fails once: a typed error, and the next try works."""
    with rig.columns_executor() as (executor, engine):
        before = rig.used_bytes()
        for call in ("cuEventCreate", "cuMemsetD8_v2", "cuModuleGetFunction", "cuStreamSynchronize", "cuLaunchKernel",
                     "cuCtxSynchronize"):  # fmt: skip
            for number in (1, 2):
                rig.control(f"fail={call}@{number}:{NOT_PERMITTED}\n")
                error = _raised(lambda: executor.bind(rig.line_binding()))
                assert type(error) is ExecutorError, (call, number, error)
                assert (rig.used_bytes(), executor.memory_bytes) == (before, 0), (call, number)
        rig.control()
        binding = rig.line_binding()
        slot = executor.bind(binding).slots[0]
        images = rig.images(1, 4)
        wanted = rig.expected(engine, binding, dict(enumerate(images)))
        copies = () if rig.integrated() else ("cuMemcpyHtoDAsync_v2",)
        for call in ("cuEventRecord", *copies, "cuGraphLaunch", "cuEventSynchronize", "cuEventElapsedTime_v2"):
            rig.control(f"fail={call}@1:{NOT_PERMITTED}\n")
            error = _raised(lambda: rig.compute(slot, images))
            assert type(error) is ExecutorError, (call, error)
            rig.control()
            for row, results in enumerate(rig.compute(slot, images)):
                rig.assert_close(results, wanted[row])


def no_graph_wherever_capture_fails() -> None:
    """Each step on the way to a graph is refused: the same answers without, and a note that says why."""
    images = rig.images(1, 4)
    for call, code in (("cuStreamBeginCapture_v2", NOT_PERMITTED), ("cuStreamEndCapture", INVALIDATED),
                       ("cuGraphInstantiateWithFlags", OUT_OF_MEMORY)):  # fmt: skip
        with rig.columns_executor() as (executor, engine):
            binding = rig.line_binding()
            wanted = rig.expected(engine, binding, dict(enumerate(images)))
            rig.control(f"fail={call}@1:{code}\n")
            slots = executor.bind(binding).slots
            (note,) = executor.notes
            assert note.startswith("bucket of 4, 64 wide: no CUDA graph ("), note
            assert call in note, note
            launched = rig.calls("cuGraphLaunch")
            for slot in slots:
                for row, results in enumerate(rig.compute(slot, images)):
                    rig.assert_close(results, wanted[row])
            assert rig.calls("cuGraphLaunch") == launched + 1  # the other slot has its graph
            rig.control()


def a_failed_kernel_loses_the_context() -> None:
    """Nothing can be done with it any more; whoever asks is told so, and the process ends by itself."""
    with rig.columns_executor() as (executor, _):
        slots = executor.bind(rig.line_binding()).slots
        rig.control(f"kernel_fails=resize_normalize_pad@1:{LAUNCH_FAILED}\n")
        error = _raised(lambda: rig.compute(slots[0], rig.images(0, 1)))
        assert isinstance(error, LostError), error
        assert "CUDA_ERROR_LAUNCH_FAILED" in str(error), error
        assert slots[0].poll()
        for use in (lambda: slots[1].submit(1), lambda: slots[0].submit(1), executor.drain, executor.wipe,
                    lambda: executor.bind(rig.line_binding(items=1))):  # fmt: skip
            assert isinstance(_raised(use), LostError)


def a_kernel_that_fails_in_warm_up() -> None:
    """Binding loses the context: the error is the same."""
    with rig.columns_executor() as (executor, _):
        rig.control(f"kernel_fails=standin_columns_float32@1:{LAUNCH_FAILED}\n")
        assert isinstance(_raised(lambda: executor.bind(rig.line_binding())), LostError)


def an_engine_that_says_it_in_its_own_words() -> None:
    """The engine is the first to see that a kernel failed, and reports no more than that: the context is lost still."""
    with rig.columns_executor() as (executor, engine):
        engine.temper.uncapturable = True
        slot = executor.bind(rig.line_binding()).slots[0]
        rig.control(f"kernel_fails=standin_columns_float32@1:{LAUNCH_FAILED}\n")
        error = _raised(lambda: rig.compute(slot, rig.images(0, 1)))
        assert isinstance(error, LostError), error
        assert type(error.__cause__) is ExecutorError, error.__cause__


def an_engine_that_says_so_while_it_is_bound() -> None:
    """The same in the warm-up."""
    with rig.columns_executor() as (executor, engine):
        engine.temper.uncapturable = True
        rig.control(f"kernel_fails=standin_columns_float32@1:{LAUNCH_FAILED}\n")
        error = _raised(lambda: executor.bind(rig.line_binding()))
        assert isinstance(error, LostError), error
        assert type(error.__cause__) is ExecutorError, error.__cause__


def every_lost_result_is_lost() -> None:
    """For each result that stays: wherever it shows first, it is LostError with the result's name; others are not."""
    with rig.columns_executor() as (executor, _):
        slots = executor.bind(rig.line_binding()).slots
        for code in (*LOST, OUT_OF_MEMORY, 1, 701, 800, 801):
            for use in (
                lambda: slots[0].submit(1),
                executor.drain,
                executor.wipe,
                lambda: executor.bind(rig.line_binding()),
            ):
                rig.control(f"lost={code}\n")
                error = _raised(use)
                rig.control()
                assert isinstance(error, LostError) == (code in LOST), (code, error)
                assert isinstance(error, ExecutorError), (code, error)
                assert code not in LOST or ("CUDA_ERROR_" in str(error) and LOST[code] in str(error)), error
            slots[1].submit(1)
            rig.control(f"lost={code}\n")
            error = _raised(slots[1].wait)
            assert isinstance(error, LostError) == (code in LOST), (code, error)
            rig.control()
            rig.compute(slots[1], rig.images(0, 1))


def an_engine_that_refuses() -> None:
    """It says no without losing the context: ExecutorError in its words, while binding or later."""
    with rig.columns_executor() as (executor, engine):
        used = rig.used_bytes()
        engine.temper.refuses = True
        _fails(ExecutorError, "refused to run", lambda: executor.bind(rig.line_binding()))
        assert rig.used_bytes() == used
        engine.temper.refuses, engine.temper.uncapturable = False, True
        slot = executor.bind(rig.line_binding()).slots[0]
        engine.temper.refuses = True
        _fails(ExecutorError, "refused to run", lambda: rig.compute(slot, rig.images(0, 2)))
        rig.control("lost=700\n")
        assert isinstance(_raised(lambda: slot.submit(1)), LostError)
        rig.control()
        engine.temper.refuses = False
        rig.compute(slot, rig.images(0, 2))


def no_such_kernel_or_buffer() -> None:
    """An operation that does not fit the kernels or the output is refused, and nothing stays."""
    with rig.columns_executor() as (executor, _):
        used = rig.used_bytes()
        for operation, kind, word in (
            (rig.Odd(kernel="no_such_kernel"), ExecutorError, "no_such_kernel"),
            (rig.Odd(buffer="result7"), ExecutorError, "result7"),
            (rig.Odd(launched=False), ExecutorError, "no kernels"),
            (rig.Odd(refuses=True), OperationError, "not this output"),
        ):
            binding = rig.line_binding(results=[operation])
            _fails(kind, word, partial(executor.bind, binding))
            assert rig.used_bytes() == used


def too_little_budget() -> None:
    """The package's limit is kept before the device is asked; the text says what needed how much."""
    with rig.columns_executor(memory_bytes=20 * rig.MIB) as (executor, _):
        used = rig.used_bytes()
        _fails(
            ExecutorError, "of the package's 20.0 MiB", lambda: executor.bind(rig.line_binding(items=64, width=1024))
        )
        assert (rig.used_bytes(), executor.memory_bytes) == (used, 0)


def too_little_for_the_engine() -> None:
    """What the engine takes for itself counts as the package's, before anything else does."""
    with rig.columns_executor() as (_, engine):
        nbytes = engine.weights.nbytes + engine.bias.nbytes
    for limit_bytes in (nbytes - 1, nbytes // 2):
        text = _fails(ExecutorError, "of the package's", lambda: rig.open_columns(memory_bytes=limit_bytes))  # noqa: B023 - called here
        assert text.startswith("the engine itself (its weights): 0.2 MiB needed"), text
        assert rig.used_bytes() == (0, 0)
    with rig.columns_executor() as (executor, _):
        executor.bind(rig.line_binding())
        taken_bytes = executor.memory_bytes
    with rig.columns_executor(memory_bytes=taken_bytes + nbytes) as (executor, _):
        executor.bind(rig.line_binding())
    with rig.columns_executor(memory_bytes=taken_bytes + nbytes - 1) as (executor, _):
        _fails(ExecutorError, "of the package's", lambda: executor.bind(rig.line_binding()))


def more_than_the_whole_device() -> None:
    """A package that may take more than there is has itself to blame for a lack of memory, not the moment."""
    for memory_bytes, kind in ((DEVICE_BYTES, OutOfMemoryError), (DEVICE_BYTES + 1, ExecutorError)):
        rig.control(f"fail=cuModuleLoadDataEx@1:{OUT_OF_MEMORY}\n")
        _fails(kind, "out of memory", partial(rig.open_columns, memory_bytes=memory_bytes))
        rig.control()
        with rig.columns_executor(memory_bytes=memory_bytes) as (executor, _):
            rig.control(f"fail=cuMemAlloc_v2@1+:{OUT_OF_MEMORY}\n")
            _fails(kind, "out of memory", partial(executor.bind, rig.line_binding()))
            rig.control()


def no_device() -> None:
    """Opening without a device, or on one that is lost: the executor is unavailable, and nothing is lost."""
    for settings in ("devices=0\n", "lost=999\n", "fail=cuDevicePrimaryCtxRetain@1:2\n"):
        rig.control(settings)
        _fails(UnavailableError, "the accelerator cannot be used", rig.open_columns)
        rig.control()
    for call in ("cuModuleLoadDataEx", "cuModuleLoadData", "cuStreamCreate"):
        rig.control(f"fail={call}@1:{OUT_OF_MEMORY}\n")
        error = _raised(rig.open_columns)
        # The stand-in engine loads its kernels with the second, and says in words of its own that it cannot.
        assert type(error) is (ExecutorError if call == "cuModuleLoadData" else OutOfMemoryError), error
        rig.control()
        assert rig.used_bytes() == (0, 0)
    with rig.columns_executor() as (executor, _):
        executor.bind(rig.line_binding())


def no_kernels() -> None:
    """Compiled kernels that are not there are an error that says where they should be, and nothing stays open."""
    opening.default_folder = lambda: Path("/nowhere")  # type: ignore[attr-defined]  # as imported there
    try:
        _fails(ExecutorError, "/nowhere/manifest.json", lambda: opening.open_executor(_no_engine, memory_bytes=1))
    finally:
        opening.default_folder = default_folder  # type: ignore[attr-defined]  # as above
    assert rig.used_bytes() == (0, 0)


def ends_with_an_exception() -> None:
    """Nobody closes the executor: the process still ends with Python's status, not with SIGABRT."""
    executor, _ = rig.open_columns()
    slot = executor.bind(rig.line_binding()).slots[0]
    slot.submit(1)
    raise SystemExit(7)


def ends_after_loss() -> None:
    """The same, in a context that was lost."""
    executor, _ = rig.open_columns()
    slot = executor.bind(rig.line_binding()).slots[0]
    rig.control(f"kernel_fails=@1:{LAUNCH_FAILED}\n")
    assert isinstance(_raised(lambda: rig.compute(slot, rig.images(0, 1))), LostError)
    sys.exit(5)


def ends_when_the_context_cannot_be_popped() -> None:
    """Even then pycuda's stack is empty at the end."""
    with rig.columns_executor() as (executor, _):
        executor.bind(rig.line_binding())
        rig.control("fail=cuCtxPopCurrent_v2@1+:201\n")


def _no_engine() -> DeviceEngine:
    raise AssertionError("an engine was asked for")


def _bind_calls(call: str) -> int:
    """How often one bind calls libcuda's entry point."""
    with rig.columns_executor() as (executor, _):
        before = rig.calls(call)
        executor.bind(rig.line_binding())
        return rig.calls(call) - before


def _fails(kind: type[Exception], word: str, use: Callable[[], object]) -> str:
    """The text of the error of exactly this kind, with the word in it."""
    error = _raised(use)
    assert type(error) is kind, error
    assert word in str(error), error
    return str(error)


def _raised(use: Callable[[], object]) -> Exception | None:
    try:
        use()
    except (ExecutorError, OperationError) as error:
        return error.with_traceback(None)
    return None


if __name__ == "__main__":
    rig.play(globals())
