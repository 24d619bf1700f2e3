"""A PostgreSQL server of a rig's own, from a local installation: made, started and gone again with its folder.

It listens on a Unix socket in that folder and nowhere else. PostgreSQL refuses to run as root, so a rig that does runs
it as the user `postgres` that its package makes. Nothing about its durability is relaxed: what it commits is on disk.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from agent.errors import FleetError

INSTALLATIONS = Path("/usr/lib/postgresql")
OPERATING_SYSTEM_USER = "postgres"
"""Under which it runs where this program is root."""
DATABASE = "postgres"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
POLL_S = 0.05


class PostgresServer:
    """Use as a context manager; `url` is for `--database`. Raises FleetError where PostgreSQL is not installed."""

    def __init__(self, *, max_connections: int = 50) -> None:
        self._max_connections = max_connections
        self._folder = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = contextlib.ExitStack()

    @staticmethod
    def programs() -> Path | None:
        """The folder of the newest installation's programs, None where there is none."""
        found = sorted(INSTALLATIONS.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3].partition(".")[0]))
        on_path = shutil.which("initdb")
        if found:
            return found[-1].parent
        return None if on_path is None else Path(on_path).resolve().parent

    @property
    def pid(self) -> int | None:
        """Its first process, of which all others are children; None while it is down."""
        return None if self._process is None else self._process.pid

    @property
    def url(self) -> str:
        """Where it is."""
        return f"postgresql:///{DATABASE}?host={self._folder}&user={_user()}"

    def __enter__(self) -> Self:
        programs = self.programs()
        if programs is None:
            raise FleetError("PostgreSQL is not installed", hint="apt-get install postgresql, or use SQLite")
        with contextlib.ExitStack() as undo:
            undo.callback(self._closing.close)
            self._folder = Path(self._closing.enter_context(tempfile.TemporaryDirectory(prefix="driveway-postgres-")))
            if os.geteuid() == 0:
                shutil.chown(self._folder, OPERATING_SYSTEM_USER, OPERATING_SYSTEM_USER)
            data = self._folder / "data"
            self._run(
                *(str(programs / "initdb"), "--pgdata", str(data), "--username", _user(), "--auth", "trust"),
                *("--encoding", "UTF8", "--no-instructions"),
            )
            self._start(programs / "postgres", data)
            self._closing.callback(self._stop)
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _start(self, program: Path, data: Path) -> None:
        log = self._folder / "postgres.log"
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [
                    *(str(program), "-D", str(data), "-k", str(self._folder), "-h", ""),
                    *("-c", f"max_connections={self._max_connections}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                user=OPERATING_SYSTEM_USER if os.geteuid() == 0 else None,
                group=OPERATING_SYSTEM_USER if os.geteuid() == 0 else None,
                extra_groups=[] if os.geteuid() == 0 else None,
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while b"ready to accept connections" not in log.read_bytes():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self._stop()
                raise FleetError(f"PostgreSQL did not start: {log.read_text('utf-8', 'replace')[-500:].strip()}")
            time.sleep(POLL_S)

    def _stop(self) -> None:
        """SIGINT is PostgreSQL's fast shutdown: it disconnects everybody and ends."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=self._folder,
            user=OPERATING_SYSTEM_USER if os.geteuid() == 0 else None,
            group=OPERATING_SYSTEM_USER if os.geteuid() == 0 else None,
            extra_groups=[] if os.geteuid() == 0 else None,
        )
        if done.returncode:
            raise FleetError(f"{Path(command[0]).name} failed: {done.stderr.decode('utf-8', 'replace')[-500:].strip()}")


def _user() -> str:
    """The database's user: whoever runs it."""
    return OPERATING_SYSTEM_USER if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
