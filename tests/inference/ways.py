"""The two ways in which a worker is started: as a child, and by systemd on a connection to its socket.

systemd is stood in for by its own `systemd-socket-activate --accept`, which does for a connection what a socket unit
does, without the unit's sandbox: a process that is not our child gets it as descriptor 3. Where that is not installed a
small program does the same (`STAND_IN`), and a test holds the two against each other.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

from agent.clock import SystemClock
from agent.inference.launcher import OnGone, OnMessage, WorkerProcess, launch

ACTIVATE = shutil.which("systemd-socket-activate")
STAND_IN = """
import os, signal, socket, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
path, *command = sys.argv[1:]
listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
listening.bind(path)
listening.listen()
while True:
    connection, _ = listening.accept()
    if os.fork() == 0:
        os.dup2(connection.fileno(), 3)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
        os.execvp(command[0], command)
    connection.close()
"""
PATIENCE_S = 30.0
Name = Literal["child", "unit", "stand-in"]


class Way:
    """One of them. `close` it: a socket is listened on for every worker that was started by systemd."""

    def __init__(self, name: Name, folder: Path) -> None:
        self.name, self._folder = name, folder
        self._listening: list[subprocess.Popen[bytes]] = []

    @property
    def is_unit(self) -> bool:
        """Whether it is not our child."""
        return self.name != "child"

    def launch(self, on_message: OnMessage, on_gone: OnGone, **options: Any) -> WorkerProcess:
        """As `agent.inference.launcher.launch`, on the system's clock."""
        if not self.is_unit:
            return launch(SystemClock(), on_message, on_gone, **options)
        required = options.pop("required", ())
        return launch(SystemClock(), on_message, on_gone, required=required, socket_unit=self.listen(**options))

    def listen(
        self, python: str = sys.executable, readable: list[Path] | tuple[Path, ...] = (), *, accelerator: bool = False
    ) -> Path:
        """A socket on which a worker answers every connection."""
        path = self._folder / f"worker-{len(self._listening)}.sock"
        reads = [option for one in readable for option in ("--read", str(one))]
        options = [*reads, *(["--accelerator"] if accelerator else []), "--fd", "3"]
        command = [python, "-I", "-B", "-m", "agent.worker", *options]
        if self.name == "unit" and ACTIVATE is not None:
            program = [ACTIVATE, "--accept", "--listen", str(path), *command]
        else:
            program = [sys.executable, "-c", STAND_IN, str(path), *command]
        environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with (self._folder / "activate.log").open("ab") as log:
            process = subprocess.Popen(program, stdout=log, stderr=log, env=environment, start_new_session=True)
        self._listening.append(process)
        end_s = time.monotonic() + PATIENCE_S
        while not _is_listened_on(path):
            assert process.poll() is None, self.journal
            assert time.monotonic() < end_s
            time.sleep(0.005)
        return path

    @property
    def journal(self) -> str:
        """What workers say before they have said Hello, as it would be in the journal."""
        return (self._folder / "activate.log").read_text()

    def exited(self, status: int) -> str:
        """How an end is told that an impostor comes to by itself: it does not say its status, as a worker would."""
        return "ended by a signal that was not ours" if self.is_unit else f"exited with status {status}"

    def close(self) -> None:
        """Listen no more; whatever a test left is killed."""
        for process in self._listening:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _is_listened_on(path: Path) -> bool:
    """By what the kernel says (__SO_ACCEPTCON), since to try it would start a worker."""
    rows = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return any(row[-1] == str(path) and row[3] == "00010000" for row in rows)
