"""How long the agent's programs take to begin, and how large its package is.

Each start is a process of its own; figures are medians, with the least and the most beside them. `cpu_ms` is the
processor time that the process took, which other programs on the machine do not lengthen much; `ms` is the wall's.

* `status`: `driveway status` against a daemon that answers: what a technician waits for.
* `import_daemon`, `import_status`: the interpreter with all that the daemon, and `driveway status`, import.
* `interpreter`: Python alone, which is in all of them.
* `import_update`: likewise of the update program, which a timer starts four times an hour to find nothing staged.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import msgspec

from agent.errors import DrivewayError

TIMES = 10
WAIT_S = 60.0
PACKAGES = Path(__file__).parent.parent.parent / "dist"
IMPORT_DAEMON = "import agent.cli.main, agent.cli.run, agent.daemon"
IMPORT_STATUS = "import agent.cli.main, agent.cli.status"
IMPORT_UPDATE = "import agent.update.__main__"


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """So many starts of one program."""

    n: int
    ms: float
    min_ms: float
    max_ms: float
    cpu_ms: float


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """The newest `.deb` of this machine's architecture: as it is sent, and as it lies on the disk."""

    name: str
    mb: float
    installed_mb: float


def programs(config: Path) -> dict[str, Spread]:
    """Every start above; `config` is that of a running daemon. Raises DrivewayError where a program fails."""
    commands = {
        "interpreter": ("-c", "pass"),
        "import_status": ("-c", IMPORT_STATUS),
        "import_daemon": ("-c", IMPORT_DAEMON),
        "import_update": ("-I", "-B", "-c", IMPORT_UPDATE),
        "status": ("-m", "agent", "status", "--config", str(config)),
    }
    return {name: repeated(partial(started, (sys.executable, *words))) for name, words in commands.items()}


def started(command: Sequence[str]) -> tuple[float, float]:
    """(wall, processor) milliseconds of one run to its end; raises DrivewayError with its last words when it fails."""
    with tempfile.TemporaryFile() as said:
        began_s = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        took_s = time.monotonic() - began_s
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            words = said.read().decode("utf-8", "replace").strip()[-500:]
            raise DrivewayError(f"{' '.join(command)} ended with {process.returncode}: {words}")
    return took_s * 1000, (used.ru_utime + used.ru_stime) * 1000


def repeated(one: Callable[[], tuple[float, float]], times: int = TIMES) -> Spread:
    """The spread of so many runs after one that does not count: it reads the files into the page cache."""
    one()
    return spread([one() for _ in range(times)])


def spread(took: Sequence[tuple[float, float]]) -> Spread:
    """Of (wall, processor) milliseconds."""
    walls = [wall_ms for wall_ms, _ in took]
    return Spread(
        n=len(took),
        ms=round(statistics.median(walls), 1),
        min_ms=round(min(walls), 1),
        max_ms=round(max(walls), 1),
        cpu_ms=round(statistics.median(cpu_ms for _, cpu_ms in took), 1),
    )


class ReadyHeard:
    """A service manager's ear: when a process that this one started said READY=1. For one thread."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._thread = threading.Thread(target=self._hear, name="ready", daemon=True)
        self._heard = threading.Condition()
        self._at_s: float | None = None

    def __enter__(self) -> Self:
        self._socket.bind(f"\0driveway-footprint-{os.getpid()}")
        os.environ["NOTIFY_SOCKET"] = f"@driveway-footprint-{os.getpid()}"
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        del os.environ["NOTIFY_SOCKET"]
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(WAIT_S)
        self._socket.close()

    def at_s(self, pid: int) -> float:
        """When the one that was started last said so; raises DrivewayError when it does not."""
        with self._heard:
            if not self._heard.wait_for(lambda: self._at_s is not None, WAIT_S):
                raise DrivewayError(f"process {pid} did not say READY in {WAIT_S:.0f} s")
            at_s, self._at_s = self._at_s, None
        assert at_s is not None
        return at_s

    def _hear(self) -> None:
        while said := self._socket.recv(4096):
            if b"READY=1" in said.splitlines():
                with self._heard:
                    self._at_s = time.monotonic()
                    self._heard.notify_all()


def package(folder: Path = PACKAGES) -> Package | None:
    """The newest package; None where none was made, or dpkg is not there to look into it. Raises DrivewayError."""
    found = max(folder.glob("driveway_*.deb"), key=lambda path: path.stat().st_mtime, default=None)
    dpkg_deb = shutil.which("dpkg-deb")
    if found is None or dpkg_deb is None:
        return None
    try:
        done = subprocess.run(
            [dpkg_deb, "--field", str(found), "Installed-Size"], capture_output=True, text=True, check=True
        )
    except subprocess.CalledProcessError as error:
        raise DrivewayError(f"{found} is not a package: {error.stderr.strip()}") from error
    installed_kib = int(done.stdout or 0)
    size_bytes = found.stat().st_size
    return Package(name=found.name, mb=round(size_bytes / 1e6, 1), installed_mb=round(installed_kib * 1024 / 1e6, 1))
