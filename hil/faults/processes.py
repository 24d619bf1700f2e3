"""One child process that may be killed, frozen and started again, and is kept alive like a service.

A process that ends by itself is started again after `RESTART_S`, as systemd would with `Restart=always`, and the end is
counted: an agent or a dispatcher that gives up under faults is a finding, not an accident. Children die with us,
however we end, stopped ones included.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from agent.errors import DrivewayError

RESTART_S = 1.0
POLL_S = 0.05
STOP_TIMEOUT_S = 15.0
PR_SET_PDEATHSIG = 1
LAST_WORDS_BYTES = 600


class Ended(msgspec.Struct, frozen=True):
    """A process that ended although nobody ended it: its exit status, and the last it said."""

    name: str
    status: int
    said: str


class Child:
    """One supervised process; start it from the main thread's event loop."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, *, environment: dict[str, str] | None = None
    ) -> None:
        self.name, self.log = name, log
        self._command, self._environment = list(command), environment
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._wanted = False
        self.ended: list[Ended] = []
        self.before_kill: Callable[[], object] = lambda: None
        """Called just before the process is killed: the last chance to ask it something."""

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The process that was started last."""
        return self._process

    @property
    def pid(self) -> int | None:
        """The process, None while there is none."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def start(self) -> None:
        """Start it, and again whenever it ends by itself."""
        self._wanted = True
        self._spawn()
        if self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._keep_alive())

    def kill(self) -> None:
        """Crash it; it stays down until `start`."""
        self._wanted = False
        if self.pid is not None:
            with contextlib.suppress(Exception):  # it may be in any state, and is to die anyway
                self.before_kill()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            _close(self._process)

    def freeze(self) -> None:
        """SIGSTOP: it is there and does nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    async def stop(self) -> None:
        """End it politely, else kill it."""
        self._wanted = False
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        self.thaw()
        self._signal(signal.SIGTERM)
        for _ in range(round(STOP_TIMEOUT_S / POLL_S)):
            if self.pid is None:
                break
            await asyncio.sleep(POLL_S)
        self.kill()

    async def until(self, ready: Callable[[], bool], within_s: float) -> None:
        """Wait until it is ready; raises DrivewayError with its last words when it is not in time."""
        for _ in range(round(within_s / POLL_S)):
            if ready():
                return
            if self.pid is None:
                break
            await asyncio.sleep(POLL_S)
        raise DrivewayError(f"{self.name} did not come up in {within_s:.0f} s: {self.last_words()}")

    def last_words(self) -> str:
        """The end of its log."""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LAST_WORDS_BYTES))
            return log.read().decode("utf-8", "replace").strip()
        return "it said nothing"

    def _spawn(self) -> None:
        if self._process is not None:
            _close(self._process)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - called from the main thread, and does one system call
            )

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            process = self._process
            if self._wanted and process is not None and process.poll() is not None:
                self.ended.append(Ended(self.name, process.returncode, self.last_words()))
                await asyncio.sleep(RESTART_S)
                if self._wanted and self._process is process:
                    self._spawn()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


def _close(process: subprocess.Popen[bytes]) -> None:
    """Let go of our end of its standard input."""
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


_LIBC = ctypes.CDLL(None)


def _die_with_parent() -> None:
    """In the child: be killed when the run's process ends."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
