"""What only whole processes show: giving the accelerator back, starting, and coming back from a lost context.

`hil.gpu.load`, in the worker's cage, is the process; here it is started, told to stop or killed, and watched. Its
memory is seen from outside, in this process's own context: what the device has free before it starts, while it works,
and after. Times are those of the monotonic clock here, from the moment before the order is written or the signal sent.
"""

from __future__ import annotations

import os
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pycuda.driver as cuda

from hil.bench.peers import percentile
from hil.gpu.figures import SLACK_MB, Omitted, Recovery, Start, Vacate

PATIENCE_S = 30.0
_POLL_S = 0.001
_MB = 1024**2


@dataclass(frozen=True)
class Load:
    """The compiled stand-in engine, and how many float32 an item has."""

    image: Path
    values: int


@dataclass(frozen=True)
class Gave:
    """One time the accelerator was given back: the micro-batch, ms to idle and to free, and MiB held and left."""

    batch_ms: float
    idle_ms: float
    freed_ms: float
    held_mb: int
    left_mb: int


class LoadError(Exception):
    """The process did not do what it was asked; the text has its own last words."""


def run_processes(load: Load, *, times: int) -> Iterator[Vacate | Start | Recovery | Omitted]:
    """Every measurement that needs processes; `load` is what the processes compute."""
    yield from _starts(load)
    yield from _uncaged(load)
    for batch_ms in (2.0, 10.0, 20.0):
        yield _vacated(
            f"told to stop, {batch_ms:g} ms meant", [give_back(load, batch_ms, kill=False) for _ in range(times)]
        )
    yield _vacated("killed in the middle", [give_back(load, 10.0, kill=True) for _ in range(times)])
    yield _vacated(
        "told to stop, 1 GiB held", [give_back(load, 10.0, kill=False, ballast_mb=1024) for _ in range(times)]
    )
    for how in ("stray", "reset"):
        yield recover(load, how)


def give_back(load: Load, batch_ms: float, *, kill: bool, ballast_mb: int = 0) -> Gave:
    """Have a process work, end it, and watch."""
    before = free_mb()
    with loading(load, "hold", batch_ms, ballast_mb) as process:
        batch_ms = float(process.hear("ready ").removeprefix("ready "))
        held = before - free_mb()
        began_s = time.monotonic()
        if kill:
            process.child.kill()
        else:
            process.say("stop")
            process.hear("idle")
        idle_s = time.monotonic() - began_s
        process.child.wait(PATIENCE_S)
        if kill:
            idle_s = time.monotonic() - began_s
        while (left := before - free_mb()) > SLACK_MB and time.monotonic() - began_s < PATIENCE_S:
            time.sleep(_POLL_S)
        return Gave(batch_ms, idle_s * 1000, (time.monotonic() - began_s) * 1000, held, max(left, 0))


def recover(load: Load, how: str) -> Recovery:
    """Lose a context on purpose, and see whether that was noticed, and whether another process is right again."""
    words = {"stray": "a kernel that touches foreign memory", "reset": "the context taken away, as by a suspend"}
    with loading(load, how, 1.0) as process:
        process.hear("ready")
        try:
            reported = process.hear("lost ").removeprefix("lost ")
        except LoadError as error:
            reported = str(error)
        process.child.wait(PATIENCE_S)
    began_s = time.monotonic()
    with loading(load, "start", 1.0) as process:
        process.hear("ready")
    again_ms = (time.monotonic() - began_s) * 1000
    return Recovery(how=words[how], reported=reported, right_again=reported.startswith("LostError"), again_ms=again_ms)


def _starts(load: Load) -> Iterator[Start]:
    """From starting the process to its first result, over and over."""
    taken = []
    for _ in range(5):
        began_s = time.monotonic()
        with loading(load, "start", 1.0) as process:
            process.hear("ready")
            taken.append((time.monotonic() - began_s) * 1000)
    yield Start(how="process to first result, the first time", start_ms=taken[0])
    yield Start(how="process to first result, later", start_ms=statistics.median(taken[1:]))


def _uncaged(load: Load) -> Iterator[Omitted]:
    """What of the worker's cage does not stand here, so that all of this was measured without it."""
    with loading(load, "start", 1.0) as process:
        process.hear("ready")
    if process.uncaged:
        yield Omitted(chapter="cage of the processes", why=process.uncaged, failed=False)


def _vacated(how: str, gave: list[Gave]) -> Vacate:
    idle = sorted(one.idle_ms for one in gave)
    freed = sorted(one.freed_ms for one in gave)
    return Vacate(
        how=how,
        times=len(gave),
        micro_batch_ms=statistics.median(one.batch_ms for one in gave),
        idle_p50_ms=percentile(idle, 50),
        idle_p99_ms=percentile(idle, 99),
        freed_p50_ms=percentile(freed, 50),
        freed_p99_ms=percentile(freed, 99),
        memory_mb=max(one.held_mb for one in gave),
        left_mb=max(one.left_mb for one in gave),
    )


@dataclass(frozen=True)
class Process:
    """A running load, the file with what it complains about, and what of its cage does not stand (empty: nothing)."""

    child: subprocess.Popen[bytes]
    complaints: Path
    uncaged: str = ""

    def hear(self, word: str) -> str:
        """Its next line, which begins with `word`; raises LoadError when it does not, or says nothing for long."""
        assert self.child.stdout is not None
        line, deadline_s = b"", time.monotonic() + PATIENCE_S
        while not line.endswith(b"\n"):
            left_s = max(0.0, deadline_s - time.monotonic())
            if not select.select([self.child.stdout], [], [], left_s)[0]:
                break
            taken = os.read(self.child.stdout.fileno(), 1)
            if not taken:
                break
            line += taken
        said = line.decode("utf-8", "replace").strip()
        if not said.startswith(word):
            self.child.kill()
            last = self.complaints.read_text("utf-8", "replace").strip().splitlines()[-1:]
            raise LoadError(f"the process said {said!r}, not {word!r}: {''.join(last) or 'no more'}")
        return said

    def say(self, word: str) -> None:
        """A line to it."""
        assert self.child.stdin is not None
        self.child.stdin.write(f"{word}\n".encode())
        self.child.stdin.flush()


@contextmanager
def loading(load: Load, how: str, batch_ms: float, ballast_mb: int = 0) -> Iterator[Process]:
    """A `hil.gpu.load` process in its cage; it is gone afterwards. Raises LoadError when it does not get so far."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "hil.gpu.caged_load", "--fd", str(theirs.fileno()), how]
    with (
        ours,
        theirs,
        tempfile.NamedTemporaryFile(prefix="driveway-load-") as complaints,
        subprocess.Popen(
            [
                *(*command, "--image", str(load.image), "--values", str(load.values)),
                *("--batch-ms", str(batch_ms), "--ballast-mb", str(ballast_mb)),
            ],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        ) as child,
    ):
        try:
            process = Process(child, Path(complaints.name))
            yield replace(process, uncaged=process.hear("caged").removeprefix("caged").strip())
        finally:
            child.kill()


def free_mb() -> int:
    """MiB that the device has left, as this process sees it."""
    free, _ = cuda.mem_get_info()
    return int(free // _MB)
