"""Capture on the stand-in driver: what a real one forbids while a stream captures spoils the capture, and is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda.conftest import RunOnDevice
from tests.cuda.driver_programs import PRELUDE

SETTING = """
memory = cuda.mem_alloc(1000)
page, pageable = pinned(1000, np.uint8), np.zeros(1000, np.uint8)
stream, other = cuda.Stream(NON_BLOCKING), cuda.Stream(NON_BLOCKING)
event = cuda.Event()
event.record(other)
assert begin(stream, int(sys.argv[2])) == 0
assert begin(stream) == 401, "it captures already"
cuda.memcpy_htod_async(memory, page, stream)
"""


def outcome(run: RunOnDevice, mode: str, what: str) -> list[str]:
    """What a call says during a capture, and then the capture's end."""
    program = f"{PRELUDE}{SETTING}\nprint(failed(lambda: {what}))\ncode, graph = end(stream)\nprint(code, graph.value)"
    done = run(program, {"global": "0", "thread": "1", "relaxed": "2"}[mode])
    assert (done.returncode, done.stderr) == (0, "")
    said, ended = done.stdout.splitlines()
    return [said.partition(" failed: ")[2], ended]


NOT_PERMITTED = "operation not permitted when stream is capturing"
SPOILT = "901 None"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("cuda.mem_alloc(100)", NOT_PERMITTED),
        ("pinned(100, np.uint8)", NOT_PERMITTED),
        ("stream.synchronize()", NOT_PERMITTED),
        ("other.synchronize()", NOT_PERMITTED),
        ("cuda.Context.synchronize()", NOT_PERMITTED),
        ("event.query()", NOT_PERMITTED),
        ("event.synchronize()", NOT_PERMITTED),
        ("cuda.memcpy_htod_async(memory, pageable, stream)", NOT_PERMITTED),
        ("stream.wait_for_event(event)", "dependency created on uncaptured work in another stream"),
    ],
)
def test_what_spoils_a_capture(run_on_device: RunOnDevice, what: str, said: str) -> None:
    assert outcome(run_on_device, "thread", what) == [said, SPOILT]


@pytest.mark.parametrize("what", ["cuda.mem_alloc(100)", "other.synchronize()"])
def test_what_a_relaxed_capture_allows(run_on_device: RunOnDevice, what: str) -> None:
    said, ended = outcome(run_on_device, "relaxed", what)
    assert said == ""
    assert ended.startswith("0 ")


def test_another_thread_spoils_only_a_global_capture(run_on_device: RunOnDevice) -> None:
    elsewhere = (
        "(t := threading.Thread(target=lambda: (context.push(), failed(other.synchronize), cuda.Context.pop())), "
    )
    what = elsewhere + "t.start(), t.join())"
    assert outcome(run_on_device, "global", what)[1] == SPOILT
    assert outcome(run_on_device, "thread", what)[1].startswith("0 ")


def test_the_rest_of_what_a_capture_refuses(run_on_device: RunOnDevice) -> None:
    program = """
stream, blocking = cuda.Stream(NON_BLOCKING), cuda.Stream(0)
memory, page = cuda.mem_alloc(1000), pinned(1000, np.uint8)
event = cuda.Event()
graph, codes = P(), []

assert end(stream)[0] == 401, "no capture"
assert begin(stream) == 0
thread = threading.Thread(target=lambda: (context.push(), codes.append(end(stream)[0]), cuda.Context.pop()))
thread.start(); thread.join()
assert codes == [908], "the end from another thread"
event.record(stream)
assert "not permitted on an event" in failed(event.synchronize)
stream.wait_for_event(event)
cuda.memcpy_htod_async(memory, page, stream)
code, graph = end(stream)
assert code == 0
event.record(stream)
event.synchronize()

assert begin(blocking) == 0
assert "legacy stream" in failed(cuda.memcpy_htod, memory, page)
assert "previous error during capture" in failed(cuda.memcpy_htod_async, memory, page, blocking)
assert end(blocking)[0] == 901
cuda.memcpy_htod(memory, page)

page[:] = 5
executable = instantiate(graph)
page[:] = 6
assert replay(executable, stream) == 0
stream.synchronize()
back = np.zeros(1000, np.uint8)
cuda.memcpy_dtoh(back, memory)
assert (back == 6).all(), "a graph copies what is there when it runs"
assert libcuda.cuStreamBeginCapture_v2(None, THREAD_LOCAL) == 900, "the default stream"
"""
    done = run_on_device(PRELUDE + program)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_capture_that_the_driver_refuses(run_on_device: RunOnDevice, tmp_path: Path) -> None:
    program = """
stream = cuda.Stream(NON_BLOCKING)
assert begin(stream) == 0
assert [end(stream)[0], end(stream)[0]] == [900, 0], "once"
assert begin(stream) == 900
"""
    done = run_on_device(PRELUDE + program, fail="cuStreamEndCapture@1:900,cuStreamBeginCapture_v2@2+:900")
    assert (done.returncode, done.stderr) == (0, "")
