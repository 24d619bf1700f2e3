"""Real pycuda on the stand-in driver: what it does when nothing goes wrong."""

from __future__ import annotations

from pathlib import Path

from tests.cuda.conftest import RunOnDevice
from tests.cuda.driver_programs import PRELUDE
from tests.cuda.standin import Report, read_report


def report_of(run: RunOnDevice, program: str, report: Path, **settings: object) -> Report:
    """Run a program to its end, without a word on standard error, and read what it left."""
    done = run(PRELUDE + program, report=report, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    return read_report(report)


def test_a_kernel_by_launch_and_by_graph_gives_what_numpy_gives(run_on_device: RunOnDevice, tmp_path: Path) -> None:
    program = """
x, best, probability = pinned((2, 5, CLASSES), np.float32), pinned((2, 5), np.int32), pinned((2, 5), np.float32)
on_device = [cuda.mem_alloc(a.nbytes) for a in (x, best, probability)]
stream = cuda.Stream(NON_BLOCKING)
def work():
    cuda.memcpy_htod_async(on_device[0], x, stream)
    launch(stream, *on_device)
    cuda.memcpy_dtoh_async(best, on_device[1], stream)
    cuda.memcpy_dtoh_async(probability, on_device[2], stream)
def check():
    assert (best == x.argmax(-1)).all() and (probability == x.max(-1)).all()
    best[:] = probability[:] = -1
random = np.random.default_rng(1)
x[:] = random.random(x.shape)
work()
stream.synchronize()
check()
assert begin(stream) == 0
work()
code, graph = end(stream)
assert code == 0 and (best == -1).all(), "nothing runs while a stream captures"
executable = instantiate(graph)
nodes = ctypes.c_size_t()
assert libcuda.cuGraphGetNodes(graph, None, ctypes.byref(nodes)) == 0 and nodes.value == 4
assert libcuda.cuGraphDestroy(graph) == 0
first, second = cuda.Event(), cuda.Event()
for _ in range(3):
    x[:] = random.random(x.shape)
    first.record(stream)
    assert replay(executable, stream) == 0
    second.record(stream)
    second.synchronize()
    check()
assert 0 < second.time_since(first) < 60_000
assert libcuda.standin_calls(b"cuGraphLaunch") == 3 and libcuda.standin_calls(b"cuLaunchKernel") == 2
assert libcuda.cuGraphExecDestroy(executable) == 0
assert replay(executable, stream) == 400, "a handle that was destroyed"
for allocation in on_device:
    allocation.free()
"""
    report = report_of(run_on_device, program, tmp_path / "report")
    assert report.calls["cuMemAlloc_v2"] == 3
    assert (report.used_bytes, report.peak_bytes) == (0, 4000 + 40 + 40)
    assert (report.violations, report.unsupported) == ((), ())


def test_what_a_stream_was_given_is_not_done_when_the_call_returns(run_on_device: RunOnDevice, tmp_path: Path) -> None:
    """So a missing wait shows: the results are still the poison that was there before."""
    program = """
x, best, probability = pinned((2, 5, CLASSES), np.float32), pinned((2, 5), np.int32), pinned((2, 5), np.float32)
x[:] = np.random.default_rng(2).random(x.shape)
best[:] = -1
on_device = [cuda.mem_alloc(a.nbytes) for a in (x, best, probability)]
cuda.memcpy_htod(on_device[0], x)
stream = cuda.Stream(NON_BLOCKING)
event = cuda.Event(cuda.event_flags.BLOCKING_SYNC | cuda.event_flags.DISABLE_TIMING)
control(kernels_held=1)
launch(stream, *on_device)
cuda.memcpy_dtoh_async(best, on_device[1], stream)
event.record(stream)
assert not event.query() and not stream.is_done() and (best == -1).all()
control()
event.synchronize()
assert event.query() and (best == x.argmax(-1)).all()
other = cuda.Stream(NON_BLOCKING)
best[:] = -1
launch(stream, *on_device)
event.record(stream)
other.wait_for_event(event)
cuda.memcpy_dtoh_async(best, on_device[1], other)
other.synchronize()
assert (best == x.argmax(-1)).all()
assert "invalid resource handle" in failed(event.time_since, event)
"""
    report_of(run_on_device, program, tmp_path / "report", control=tmp_path / "control")


def test_the_default_stream_takes_turns_only_with_streams_that_block(
    run_on_device: RunOnDevice, tmp_path: Path
) -> None:
    program = """
x, best, probability = np.zeros((2, 5, CLASSES), np.float32), np.zeros((2, 5), np.int32), np.zeros((2, 5), np.float32)
x[..., 7] = 1
on_device = [cuda.mem_alloc(a.nbytes) for a in (x, best, probability)]
cuda.memcpy_htod(on_device[0], x)
for flags in (NON_BLOCKING, 0):
    stream = cuda.Stream(flags)
    cuda.memset_d8(on_device[1], 0, best.nbytes)
    cuda.Context.synchronize()
    control(kernels_held=1)
    launch(stream, *on_device)
    if flags == NON_BLOCKING:
        cuda.memcpy_dtoh(best, on_device[1])  # on the default stream
        assert (best == 0).all()
        control()
    else:
        threading.Timer(0.1, control).start()
        cuda.memcpy_dtoh(best, on_device[1])
        assert (best == 7).all()
    cuda.Context.synchronize()
    cuda.memcpy_dtoh(best, on_device[1])
    assert (best == 7).all()
"""
    report_of(run_on_device, program, tmp_path / "report", control=tmp_path / "control")


def test_new_memory_is_poisoned_and_counted_and_what_is_left_is_named(
    run_on_device: RunOnDevice, tmp_path: Path
) -> None:
    program = """
one, two = cuda.mem_alloc(1000), cuda.mem_alloc(24)
host = np.zeros(1000, np.uint8)
cuda.memcpy_dtoh(host, one)
assert (host == 0xCD).all()
free, total = cuda.mem_get_info()
assert (total - free, total) == (1024, 1 << 20)
assert "out of memory" in failed(cuda.mem_alloc, (1 << 20) - 1023)
assert "invalid argument" in failed(cuda.memcpy_htod, two, host), "a copy past the end"
assert "invalid argument" in failed(cuda.memcpy_dtoh, host, int(two) + 8), "a copy from past the end"
page = pinned(100, np.uint8)
assert "invalid argument" in failed(page.base.get_device_pointer), "not mapped"
mapped = cuda.pagelocked_empty(100, np.uint8, mem_flags=cuda.host_alloc_flags.DEVICEMAP)
assert mapped.base.get_device_pointer() == mapped.ctypes.data
assert libcuda.standin_used_bytes() == 1024 and libcuda.standin_pinned_bytes() == 200
one.free()
assert failed(cuda.mem_alloc, 0)
cuda.memset_d32(two, 0x01020304, 6)
cuda.memcpy_dtoh(host[:24], two)
assert host[:24].tolist() == [4, 3, 2, 1] * 6
"""
    report = report_of(run_on_device, program, tmp_path / "report", memory_bytes=1 << 20)
    assert report.peak_bytes == 1024
    assert sorted(report.left_behind) == [24, 100, 100]


def test_the_device_is_what_the_settings_say(run_on_device: RunOnDevice, tmp_path: Path) -> None:
    program = """
assert device.name() == "Thor" and device.compute_capability() == (11, 0) and cuda.get_driver_version() == 13020
assert device.total_memory() == 1 << 30
assert device.get_attribute(cuda.device_attribute.INTEGRATED) == 0
least, greatest = ctypes.c_int(), ctypes.c_int()
assert libcuda.cuCtxGetStreamPriorityRange(ctypes.byref(least), ctypes.byref(greatest)) == 0
assert least.value > greatest.value
assert libcuda.cuDevicePrimaryCtxSetFlags_v2(0, 4) == 0
flags, active = ctypes.c_uint(), ctypes.c_int()
assert libcuda.cuDevicePrimaryCtxGetState(0, ctypes.byref(flags), ctypes.byref(active)) == 0
assert (flags.value, active.value) == (4, 1)
assert libcuda.cuMemPoolCreate(None, None) == 801
"""
    report = report_of(
        run_on_device,
        program,
        tmp_path / "report",
        device_name="Thor",
        capability="11.0",
        driver_version=13020,
        memory_bytes=1 << 30,
        integrated=False,
    )
    assert report.unsupported == ("cuMemPoolCreate",)


def test_a_context_that_is_released_takes_everything_with_it(run_on_device: RunOnDevice, tmp_path: Path) -> None:
    program = """
allocation = cuda.mem_alloc(5000)
assert libcuda.cuDevicePrimaryCtxRetain(ctypes.byref(P()), 0) == 0
assert libcuda.cuDevicePrimaryCtxRelease_v2(0) == 0
assert failed(cuda.mem_get_info) == "", "it was retained twice"
atexit.unregister(finish)
finish()
size = ctypes.c_size_t()
assert libcuda.cuMemGetInfo_v2(ctypes.byref(size), ctypes.byref(size)) == 201
"""
    report = report_of(run_on_device, program, tmp_path / "report")
    assert (report.used_bytes, report.left_behind) == (0, (5000,))
