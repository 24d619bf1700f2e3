"""Starting the worker's process: what it is told on its command line and in its environment, and nothing else of ours.

The child has no descriptor but its socket, its own session, `/` as its directory, isolated Python. It must be started
on the thread that lives as long as the daemon, because the kernel kills it when that thread ends.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.errors import WorkerError
from agent.inference.enclosure import Enclosure
from agent.wire import ACCELERATOR_LIBRARIES_MB, Confinement, Measure

ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "CUDA_CACHE_DISABLE": "1",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "CUDA_MODULE_LOADING": "LAZY",
}
"""NumPy's own thread pool stays small: the engine's threads are set by Load. One heap for all threads can be
overwritten when a lease is over (`agent.worker.scrub`). CUDA has nowhere to write a cache."""


class Cell(msgspec.Struct, frozen=True):
    """What a worker is started with, and what it can reach; none of it can be widened once it runs."""

    python: str = sys.executable
    readable: tuple[Path, ...] = ()
    """The directories that it can read besides the interpreter's and the system's: its package."""
    accelerator: bool = False
    """Whether it can use one."""
    library_path: str = ""
    """Where the engine's libraries lie, where the linker does not look by itself; colons between directories."""
    memory_mb: int | None = None
    """What it may take for a package; None: nobody said."""
    required: tuple[Measure, ...] = ()
    """Without these measures of its cage it does nothing."""

    @property
    def group_mb(self) -> int | None:
        """What its control group is bounded to, where it has one: the accelerator's libraries come on top."""
        if self.memory_mb is None:
            return None
        return self.memory_mb + (ACCELERATOR_LIBRARIES_MB if self.accelerator else 0)

    def command(self, descriptor: int) -> list[str]:
        """The command line of a worker whose socket is this descriptor."""
        readable = [option for path in (*self.readable, *self._libraries()) for option in ("--read", str(path))]
        accelerator = ["--accelerator"] if self.accelerator else []
        required = [option for measure in self.required for option in ("--require", measure)]
        options = [*readable, *accelerator, *required, "--fd", str(descriptor)]
        return [self.python, "-I", "-B", "-m", "agent.worker", *options]

    def environment(self) -> dict[str, str]:
        """Its whole environment."""
        libraries = self._libraries()
        return {**ENVIRONMENT, "LD_LIBRARY_PATH": ":".join(libraries)} if libraries else ENVIRONMENT

    def _libraries(self) -> list[str]:
        return [one for one in self.library_path.split(":") if one]


class Child:
    """A worker that is the daemon's own process (`agent.inference.body.Body`)."""

    def __init__(self, process: subprocess.Popen[bytes], memory_mb: int | None) -> None:
        """Watch it, and begin to make its control group; raises OSError or RuntimeError where that cannot be."""
        assert process.stderr is not None
        self._process, self._stderr = process, process.stderr
        self.pid, self.words = process.pid, process.stderr.fileno()
        self.pidfd = os.pidfd_open(process.pid)
        try:
            os.set_blocking(self.words, False)
            self._enclosure = Enclosure(process.pid, memory_mb)
        except (OSError, RuntimeError):
            os.close(self.pidfd)
            raise

    @property
    def confinement(self) -> tuple[Confinement, ...]:
        """What its control group adds."""
        return self._enclosure.confinement

    def kill_rest(self) -> None:
        """End every process in its group, as soon as that is made."""
        self._enclosure.kill()

    def status(self) -> int | None:
        """As `subprocess` gives it; the process is still to be reaped."""
        try:
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:  # this process was started to ignore its children's ends
            return 0
        assert ended is not None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def leave(self, then: Callable[[], None]) -> None:
        """Have it reaped, and what it left behind killed."""
        self._enclosure.leave(self._process.wait, then)

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self.pidfd)
        self._stderr.close()


def start_child(cell: Cell) -> tuple[Child, socket.socket]:
    """A worker's process and our end of its socket; raises WorkerError when it cannot be started, or not watched."""
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise WorkerError(f"no socket for a worker: {error.strerror}") from error
    with theirs:
        try:
            process = subprocess.Popen(
                cell.command(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=(theirs.fileno(),),
                env=cell.environment(),
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise WorkerError(f"{cell.python} cannot be started: {error.strerror}") from error
    try:
        return Child(process, cell.group_mb), ours
    except (OSError, RuntimeError) as error:
        ours.close()
        process.kill()
        process.communicate()
        why = (isinstance(error, OSError) and error.strerror) or str(error)
        raise WorkerError(f"the worker cannot be watched: {why}") from error
