"""What goes wrong on the stand-in driver, when told to or when the caller is at fault, and what a caller sees of it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cuda import standin
from tests.cuda.conftest import RunOnDevice
from tests.cuda.driver_programs import PRELUDE

WORK = """
x, best, probability = (cuda.mem_alloc(n) for n in (4000, 40, 40))
cuda.memset_d8(x, 0, 4000)
stream = cuda.Stream(NON_BLOCKING)
"""


def test_the_allocation_that_fails_and_those_after_it(run_on_device: RunOnDevice) -> None:
    program = """
assert [failed(cuda.mem_alloc, 10) != "" for _ in range(4)] == [False, True, False, False]
assert [failed(pinned, 10, np.uint8) != "" for _ in range(3)] == [False, True, True]
"""
    # pycuda collects garbage and tries once more when memory is short, so the second allocation is the calls 2 and 3.
    done = run_on_device(PRELUDE + program, fail="cuMemAlloc_v2@2:2,cuMemAlloc_v2@3:2,cuMemHostAlloc@2+:2")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_kernel_that_fails_loses_the_context(run_on_device: RunOnDevice, tmp_path: Path) -> None:
    """Seen by whoever waits, then by every call; what waits does not hang, and what was queued behind is not done."""
    program = (
        WORK
        + """
event, page = cuda.Event(), pinned(40, np.uint8)
page[:] = 7
launch(stream, x, best, probability)
stream.synchronize()
control(kernels_held=1, kernel_fails="ctc_greedy_decode_float32@1:719")
launch(stream, x, best, probability)
cuda.memcpy_dtoh_async(page, best, stream)
event.record(stream)
control(kernel_fails="ctc_greedy_decode_float32@1:719")
assert "unspecified launch failure" in failed(event.synchronize)
assert (page == 7).all()
for call in (stream.synchronize, lambda: cuda.mem_alloc(10), lambda: launch(stream, x, best, probability)):
    assert "unspecified launch failure" in failed(call)
"""
    )
    done = run_on_device(PRELUDE + program, control=tmp_path / "control")
    assert done.returncode == 0, done.stderr


def test_a_kernel_that_fails_within_a_graph(run_on_device: RunOnDevice) -> None:
    program = (
        WORK
        + """
assert begin(stream) == 0
launch(stream, x, best, probability)
executable = instantiate(end(stream)[1])
for _ in range(3):
    assert replay(executable, stream) == 0
assert "illegal memory access" in failed(stream.synchronize)
assert replay(executable, stream) == 700
"""
    )
    done = run_on_device(PRELUDE + program, kernel_fails="@3:700")
    assert done.returncode == 0, done.stderr


def test_a_launch_that_is_refused_is_no_loss(run_on_device: RunOnDevice) -> None:
    program = (
        WORK
        + """
assert "too many resources" in failed(launch, stream, x, best, probability)
launch(stream, x, best, probability)
stream.synchronize()
for wrong in (dict(block=(2048, 1, 1)), dict(grid=(0, 1)), dict(shared=49 << 10)):
    how = {"grid": (5, 2), "block": (256, 1, 1), "stream": stream, **wrong}
    assert "invalid argument" in failed(lambda: decode(x, best, probability, np.int32(CLASSES), **how)), wrong
"""
    )
    done = run_on_device(PRELUDE + program, fail="cuLaunchKernel@1:701")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_context_that_is_lost_while_the_process_runs(run_on_device: RunOnDevice, tmp_path: Path) -> None:
    """As after a suspend: every call fails, until the control file says otherwise."""
    program = (
        WORK
        + """
launch(stream, x, best, probability)
control(lost=999)
for call in (stream.synchronize, lambda: cuda.mem_alloc(10), lambda: cuda.Device(0), cuda.mem_get_info):
    assert "unknown error" in failed(call)
assert libcuda.cuInit(0) == 999
control()
stream.synchronize()
"""
    )
    done = run_on_device(PRELUDE + program, control=tmp_path / "control")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_kernel_that_never_ends(pycuda: Path, host_kernels: Path) -> None:
    """The device is busy for good, and only the end of the process helps: which does not wait for it."""
    program = (
        WORK
        + """
launch(stream, x, best, probability)
time.sleep(0.05)
assert not stream.is_done()
print("hangs", flush=True)
stream.synchronize()
"""
    )
    variables = standin.environment(kernel_hangs="@1:1")
    command = [sys.executable, "-c", PRELUDE + program, str(host_kernels)]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hangs\n"
        time.sleep(0.1)
        assert process.poll() is None
        process.kill()
        assert process.wait(10) < 0


@pytest.mark.parametrize(
    ("bytes_short", "words"), [(4, "wrote behind an allocation of 36 bytes"), (0, "")], ids=["one short", "enough"]
)
def test_a_kernel_that_writes_past_its_memory(
    run_on_device: RunOnDevice, tmp_path: Path, bytes_short: int, words: str
) -> None:
    program = f"""
x, best, probability = (cuda.mem_alloc(n) for n in (4000, 40 - {bytes_short}, 40))
cuda.memset_d8(x, 0, 4000)
stream = cuda.Stream(NON_BLOCKING)
launch(stream, x, best, probability)
print(failed(stream.synchronize))
"""
    done = run_on_device(PRELUDE + program, report=tmp_path / "report")
    violations = standin.read_report(tmp_path / "report").violations
    if words:
        assert "illegal memory access" in done.stdout
        assert violations == (f"ctc_greedy_decode_float32 {words}",)
    else:
        assert (done.stdout, violations) == ("\n", ())


def test_a_kernel_that_writes_into_freed_memory(run_on_device: RunOnDevice, tmp_path: Path) -> None:
    program = (
        WORK
        + """
assert begin(stream) == 0
launch(stream, x, best, probability)
executable = instantiate(end(stream)[1])
best.free()
assert replay(executable, stream) == 0
assert "illegal memory access" in failed(stream.synchronize)
"""
    )
    done = run_on_device(PRELUDE + program, report=tmp_path / "report")
    assert done.returncode == 0
    assert standin.read_report(tmp_path / "report").violations == (
        "ctc_greedy_decode_float32 wrote into freed memory of 40 bytes",
    )


def test_no_device_no_driver(run_on_device: RunOnDevice) -> None:
    probe = "import pycuda.driver as cuda\ntry:\n    cuda.init()\nexcept cuda.Error as error:\n    print(error)"
    assert "no CUDA-capable device" in run_on_device(probe, devices=0).stdout
    assert "unknown error" in run_on_device(probe, fail="cuInit@1:999").stdout


def test_every_result_has_a_name_and_a_sentence_of_its_own(run_on_device: RunOnDevice) -> None:
    program = """
text, sentences = ctypes.c_char_p(), set()
for code in range(1000):
    named = libcuda.cuGetErrorName(code, ctypes.byref(text)) == 0
    name = text.value
    assert (libcuda.cuGetErrorString(code, ctypes.byref(text)) == 0) == named, (code, name)
    if named:
        assert name.startswith(b"CUDA_") and text.value not in sentences, name
        sentences.add(text.value)
assert len(sentences) > 80
"""
    done = run_on_device(PRELUDE + program)
    assert (done.returncode, done.stderr) == (0, "")
