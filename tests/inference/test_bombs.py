"""A worker that was taken over forks, or takes memory, for as long as it can: it ends, and the daemon's side goes on.

The worker is the real one, started, shut in and limited as always; a bomb stands in place of its first slice. A bomb
stops by itself at `MOST`, far above what the cage leaves it, so that a cage with a hole costs a test and no computer.
"""

from __future__ import annotations

import asyncio
import stat
import sys
import time
from pathlib import Path

import pytest

from agent import wire
from agent.inference.cgroup import HEADROOM_MB
from agent.inference.launcher import WorkerProcess
from agent.worker.sandbox.process import MAX_THREADS
from tests.inference.caged import NOBODY
from tests.inference.desk import PATIENCE_S, Desk
from tests.inference.test_hostile_models import put_model
from tests.inference.whole_cage import need
from tests.onnx.writing import GOOD

MEMORY_MB = 512
"""What `put_model`'s package may take."""
MOST_MB = 768
"""Less than `HEADROOM_MB` above it: where the group is bounded as well, the bomb is seen to come off all the same."""
MOST_FORKS = MAX_THREADS + 100

BOMBER = """\
#!{python} -I
import argparse, ctypes, errno, locale, mmap, os, shutil, signal, sys
import agent.worker.__main__ as worker
import agent.worker.ending, agent.worker.executor, agent.worker.session as session
from agent.worker.sandbox import seccomp
from agent.wire import SliceError

def fork():
    done = 0
    while done < {most_forks}:
        try:
            child = os.fork()
        except OSError as error:
            return f"{{done}} {{errno.errorcode[error.errno]}}"
        if child == 0:
            while True:
                signal.pause()
        done += 1
    return f"{{done}} came off"

def take(block_of):
    held, size = [], 64 << 20
    while size >= 1 << 20:
        try:
            block = block_of(size)
            for place in range(0, size, 4096):
                block[place] = 1
            held.append(block)
        except (MemoryError, OSError):
            size //= 2
        if sum(map(len, held)) >= {most_mb} << 20:
            return held, f"{{sum(map(len, held)) >> 20}} came off"
    return held, f"{{sum(map(len, held)) >> 20}} refused"

def memory():
    return take(bytearray)

def shared():
    return take(lambda size: mmap.mmap(-1, size))

def zero():
    descriptor = os.open("/dev/zero", os.O_RDWR)
    return take(lambda size: mmap.mmap(descriptor, size))

def explode(self, order):
    try:
        said = {bomb}()
    except OSError as error:
        said = f"0 {{errno.errorcode[error.errno]}}"
    self._channel.send(SliceError(index=order.index, detail=said if isinstance(said, str) else said[1]))
    while True:
        signal.pause()

def lacking(_kernel, **_options):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

session.Session._run = explode
{besides}
sys.argv = ["worker", *sys.argv[sys.argv.index("agent.worker") + 1:]]
sys.exit(worker.main())
"""
WITHOUT_FILTER = "seccomp.refuse_calls = lacking"
WITHOUT_LIMIT = "session.limit_memory = lambda _mb: None"
AS_NOBODY = f"""
if os.getuid() == 0:  # root's processes are not counted
    os.setgroups([])
    os.setresgid(*[{NOBODY}] * 3)
    os.setresuid(*[{NOBODY}] * 3)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # as a program of that user's, which may look at itself
"""


def bomber(folder: Path, bomb: str, *besides: str) -> str:
    """The interpreter that starts the real worker with a bomb in it."""
    program = folder / "python"
    text = BOMBER.format(
        python=sys.executable, bomb=bomb, besides="\n".join(besides), most_mb=MOST_MB, most_forks=MOST_FORKS
    )
    program.write_text(text, "utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


async def exploded(desk: Desk, process: WorkerProcess) -> tuple[int, str]:
    """How far the bomb in the first slice came, and what ended it."""
    process.run(0, 0, 1)
    said = await desk.wait_for(wire.SliceError)
    far, _, why = said.detail.partition(" ")
    return int(far), why


def processes_of(session_id: int) -> list[int]:
    """Every process that still runs in the worker's session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text("utf-8", "replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session_id and fields[0] not in "ZX":
            found.append(int(path.parent.name))
    return found


def wait_until_none_is_left(session_id: int) -> None:
    """The kernel is told to end them all at once, and takes a moment for it."""
    until_s = time.monotonic() + PATIENCE_S
    while left := processes_of(session_id):
        assert time.monotonic() < until_s, f"{len(left)} are left"
        time.sleep(0.01)


def peak_mb(pid: int) -> int:
    """The most resident memory that a process ever had."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) // 1024


async def is_killed_whole(desk: Desk, process: WorkerProcess) -> None:
    """The driver comes back: nothing of it is left, and the next worker starts and serves as if nothing had been."""
    process.stop(0)
    expected, how = await desk.end()
    assert expected
    assert "was killed by SIGKILL" in how
    await asyncio.to_thread(wait_until_none_is_left, process.pid)
    after = Desk()
    following = after.launch()
    assert await after.wait_for(wire.Hello)
    following.stop(1000)
    assert (await after.end())[0]


def test_a_fork_bomb_makes_no_process(tmp_path: Path) -> None:
    async def watch() -> None:
        desk = Desk()
        process = desk.launch(python=bomber(tmp_path, "fork"))
        hello = await desk.wait_for(wire.Hello)
        need({one.name: one.state for one in hello.confinement}, "system_calls")
        assert await exploded(desk, process) == (0, "EPERM")
        assert processes_of(process.pid) == [process.pid]
        await is_killed_whole(desk, process)

    asyncio.run(watch())


def test_a_fork_bomb_that_no_filter_stops_is_bounded_and_killed_whole(tmp_path: Path) -> None:
    """It forks until the limit of its namespace, or of its group, refuses; then all of it is killed at once."""

    async def watch() -> None:
        desk = Desk()
        process = desk.launch(python=bomber(tmp_path, "fork", WITHOUT_FILTER, AS_NOBODY))
        hello = await desk.wait_for(wire.Hello)
        told = {one.name: one.state for one in hello.confinement}
        assert told["system_calls"].startswith("absent")
        need(told, "own_network", "threads")
        forks, why = await exploded(desk, process)
        need({one.name: one.state for one in process.confinement}, "cgroup_kill")
        assert why == "EAGAIN"
        assert 50 < forks <= MAX_THREADS
        assert len(processes_of(process.pid)) == 1 + forks
        await is_killed_whole(desk, process)

    asyncio.run(watch())


async def memory_taken(
    tmp_path: Path, bomb: str, *besides: str, told: dict[str, str] | None = None
) -> tuple[int, str, int]:
    """(MiB that the bomb held when it ended, what ended it, the worker's highest resident memory in MiB)."""
    package = put_model(tmp_path, "good", GOOD)
    desk = Desk()
    process = desk.launch(python=bomber(tmp_path, bomb, *besides), readable=[package], memory_mb=MEMORY_MB)
    hello = await desk.wait_for(wire.Hello)
    if told is not None:
        told.update((one.name, one.state) for one in hello.confinement)
    process.load(package, executor="onnxruntime", threads=1, memory_mb=MEMORY_MB, drain_ms=1000)
    await desk.wait_for(wire.Loaded)
    held_mb, why = await exploded(desk, process)
    resident_mb = peak_mb(process.pid)
    await is_killed_whole(desk, process)
    return held_mb, why, resident_mb


def test_a_memory_bomb_is_refused_at_the_packages_limit(tmp_path: Path) -> None:
    held_mb, why, resident_mb = asyncio.run(memory_taken(tmp_path, "memory"))
    assert why == "refused"
    assert MEMORY_MB // 2 < held_mb <= MEMORY_MB
    assert resident_mb <= MEMORY_MB + HEADROOM_MB


@pytest.mark.parametrize(
    ("bomb", "measure", "said"), [("shared", "system_calls", "refused"), ("zero", "landlock_files", "EACCES")]
)
def test_memory_that_counts_towards_no_limit_of_a_process_is_refused(
    tmp_path: Path, bomb: str, measure: str, said: str
) -> None:
    """Shared memory of no file, and that of /dev/zero, which is the same by another name."""
    told: dict[str, str] = {}
    held_mb, why, _ = asyncio.run(memory_taken(tmp_path, bomb, told=told))
    need(told, measure)
    assert (held_mb, why) == (0, said)


def test_without_the_filter_shared_memory_comes_off(tmp_path: Path) -> None:
    """So that the refusal above is the filter's doing; a group's limit would stop it too, where there is one."""
    told: dict[str, str] = {}
    held_mb, why, _ = asyncio.run(memory_taken(tmp_path, "shared", WITHOUT_FILTER, told=told))
    assert (held_mb, why) == (MOST_MB, "came off")


def test_without_the_limit_it_comes_off(tmp_path: Path) -> None:
    """So that the refusal above is the cage's doing."""
    held_mb, why, _ = asyncio.run(memory_taken(tmp_path, "memory", WITHOUT_LIMIT))
    assert (held_mb, why) == (MOST_MB, "came off")
