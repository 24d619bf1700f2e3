"""The parent's side against workers that misbehave: small programs in the worker's place."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent import wire
from agent.errors import WorkerError
from agent.inference.child import ENVIRONMENT
from agent.inference.launcher import WorkerProcess
from tests.inference.desk import Desk
from tests.inference.ways import Way

PRELUDE = """#!{python}
import hashlib, os, socket, sys, time
from agent import wire
channel = socket.socket(fileno=int(sys.argv[-1]))
def hello(version=wire.VERSION):
    frame = wire.encode(wire.Hello(pid=os.getpid(), version=version))
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or hello.said:
        channel.sendall(frame)
        return
    from agent.worker.sandbox.activation import Ties
    ties, hello.said = Ties(), True
    socket.send_fds(channel, [frame], ties.riding)
    for one in ties.riding:
        os.close(one)
    ties.words_to_the_daemon()
hello.said = False
def say(message):
    channel.sendall(wire.encode(message))
def slice_done(digest):
    channel.sendall(wire.encode(wire.SliceDone(
        index=0, items=1, failed_items=0, output=b"[]", output_sha256=digest, raw_sha256="0" * 64,
        raw_dtype="float32", raw_shape=(1,), compute_ms=1)))
"""


def impostor(directory: Path, story: str) -> str:
    """An executable that stands in for the interpreter and tells `story` on the worker's socket."""
    path = directory / "impostor"
    path.write_text(PRELUDE.format(python=sys.executable) + story)
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("story", "complaint"),
    [
        ("channel.sendall(b'\\xff' * 8); time.sleep(60)", "broke the protocol: a frame of 4294967295 bytes"),
        ("channel.sendall(b'\\0\\0\\0\\1\\xc1'); time.sleep(60)", "broke the protocol: a frame that is not a message"),
        (
            "hello(wire.VERSION + 1); time.sleep(60)",
            f"broke the protocol: the worker speaks wire version {wire.VERSION + 1}, not {wire.VERSION}",
        ),
        ("hello(); slice_done('0' * 64); time.sleep(60)", "slice 0 does not have the digest it came with"),
        ("slice_done('0' * 64); time.sleep(60)", "broke the protocol: it says SliceDone, which nobody asked for"),
        ("hello(); hello(); time.sleep(60)", "broke the protocol: it says Hello, which nobody asked for"),
        ("hello(); say(wire.Idle()); time.sleep(60)", "broke the protocol: it says Idle, which nobody asked for"),
    ],
)
def test_a_worker_that_breaks_the_protocol_is_killed(tmp_path: Path, way: Way, story: str, complaint: str) -> None:
    async def watch() -> None:
        desk = Desk(way)
        process = desk.launch(python=impostor(tmp_path, story))
        process.run(0, 0, 1)
        expected, detail = await desk.end()
        assert not expected
        assert complaint in detail
        met = story.startswith("hello()") or not way.is_unit  # before Hello nobody knows a unit's process
        assert ("was killed by SIGKILL" if met else "was given up before it said Hello") in detail
        with pytest.raises(WorkerError, match="the worker has ended"):
            process.run(0, 0, 1)

    asyncio.run(watch())


@pytest.mark.parametrize(
    ("story", "how"),
    [
        ("hello(); sys.exit('no accelerator')", "exited with status 1"),
        ("hello(); sys.exit('no accelerator')", "; no accelerator"),
        ("hello(); os.abort()", "was killed by SIGABRT"),
        ("hello(); os.kill(os.getpid(), 11)", "was killed by SIGSEGV"),
        ("hello(); sys.stderr.write('x' * 100_000 + 'the end')", "xxx" + "the end"),
        ("hello(); channel.close(); time.sleep(60)", "was killed by SIGKILL"),
    ],
)
def test_an_end_that_nobody_asked_for_is_told_in_words(tmp_path: Path, way: Way, story: str, how: str) -> None:
    async def watch() -> None:
        desk = Desk(way)
        desk.launch(python=impostor(tmp_path, story))
        await desk.wait_for(wire.Hello)
        expected, detail = await desk.end()
        assert not expected
        by_itself = way.is_unit and how != "was killed by SIGKILL" and how.startswith(("was", "exited"))
        assert ("ended by a signal that was not ours" if by_itself else how) in detail
        assert len(detail) < 5000

    asyncio.run(watch())


def test_last_words_come_before_the_end(tmp_path: Path, way: Way) -> None:
    async def watch() -> None:
        desk = Desk(way)
        story = "hello(); slice_done(hashlib.sha256(b'[]').hexdigest())"
        desk.launch(python=impostor(tmp_path, story)).run(0, 0, 1)
        expected, detail = await desk.end()
        assert not expected
        assert detail.startswith(way.exited(0))
        assert [type(message) for message in desk.messages] == [wire.Hello, wire.SliceDone]

    asyncio.run(watch())


def send_without_end(process: WorkerProcess) -> None:
    for index in range(100_000):
        process.run(index, 0, 1)


def test_a_worker_that_does_not_read_is_found_out_and_killed_at_once(tmp_path: Path, way: Way) -> None:
    async def watch() -> None:
        desk = Desk(way)
        process = desk.launch(python=impostor(tmp_path, "hello(); time.sleep(60)"))
        await desk.wait_for(wire.Hello)
        with pytest.raises(WorkerError, match=r"does not (take|read)"):
            send_without_end(process)
        process.stop(60_000)  # Stop cannot be written, so the budget is not waited for
        expected, detail = await desk.end()
        assert expected
        assert "was killed by SIGKILL" in detail

    asyncio.run(watch())


def test_a_tighter_stop_wins_and_a_looser_one_does_not(tmp_path: Path, way: Way) -> None:
    async def watch() -> None:
        desk = Desk(way)
        process = desk.launch(python=impostor(tmp_path, "hello(); time.sleep(60)"))
        process.stop(60_000)
        process.stop(50)
        process.stop(60_000)
        assert (await desk.end())[0]

    asyncio.run(watch())


def test_stop_is_written_before_it_returns(tmp_path: Path, way: Way) -> None:
    story = "hello(); assert channel.recv(100) == wire.encode(wire.Stop()); channel.sendall(wire.encode(wire.Idle()))"

    async def watch() -> None:
        desk = Desk(way)
        process = desk.launch(python=impostor(tmp_path, story))
        await desk.wait_for(wire.Hello)
        process.stop(60_000)
        await desk.wait_for(wire.Idle)
        expected, detail = await desk.end()
        assert expected
        assert detail.startswith(way.exited(0))
        assert detail.endswith("ms after it was told to stop")

    asyncio.run(watch())


def test_the_child_inherits_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIVEWAY_SECRET", "key")
    story = (
        "sys.stderr.write(f'{sorted(os.environ)} {os.getcwd()} {os.getsid(0) == os.getpid()} '"
        " f'{sorted(map(int, os.listdir(\"/proc/self/fd\")))} {channel.fileno()}')"
    )

    async def watch() -> None:
        desk = Desk()
        with (tmp_path / "open").open("w") as inheritable:
            os.set_inheritable(inheritable.fileno(), True)
            desk.launch(python=impostor(tmp_path, story))
            _, detail = await desk.end()
        assert f"{sorted(ENVIRONMENT)} / True" in detail
        assert "DRIVEWAY_SECRET" not in ENVIRONMENT
        *_, descriptors, channel = detail.replace("[", "]").rsplit("]", 2)
        extra = {int(number) for number in descriptors.split(",")} - {0, 1, 2, int(channel)}
        assert len(extra) == 1  # the directory that was being listed

    asyncio.run(watch())


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    async def watch() -> None:
        with pytest.raises(WorkerError, match="nowhere cannot be started: No such file"):
            Desk().launch(python=str(tmp_path / "nowhere"))

    asyncio.run(watch())


def test_the_parents_side_never_loads_an_engine() -> None:
    code = (
        "import sys, agent.inference.launcher; "
        "print(sorted({'numpy', 'onnxruntime', 'PIL', 'kernels', 'agent.worker'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "[]\n"


def test_the_worker_never_loads_the_daemon() -> None:
    code = (
        "import sys, agent.worker.session; "
        "print(sorted(name for name in sys.modules if name.startswith(('agent', 'hil', 'asyncio', 'cryptography'))))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    allowed = ("agent", "agent.errors", "agent.onnx", "agent.package", "agent.wire", "agent.worker")
    loaded = {name for name in eval(ended.stdout) if not name.startswith(("agent.worker.", "agent.onnx."))}
    assert loaded <= set(allowed)
