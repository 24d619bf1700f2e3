"""A region on this machine: the broker, the database and the dispatchers, which may be killed and started again."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import psutil

from agent.errors import FleetError
from agent.fleet.tls import TlsFiles
from hil.broker import HOST, free_port
from hil.dispatcher.book import Book
from hil.dispatcher.postgres import PostgresDatabase
from hil.fleet.broker import SysTopics, broker, make_authority
from hil.fleet.plan import FleetPlan
from hil.fleet.processes import START_TIMEOUT_S, Usage, tail, usage
from hil.postgres import PostgresServer

RETRY_S = 30
"""When a car asks again that got nothing."""
POLL_S = 0.05


class Region:
    """Use as a context manager: entered, there is a database; `start` begins the rest. `folder` is new and empty."""

    def __init__(self, folder: Path, plan: FleetPlan) -> None:
        self._folder, self._plan = folder, plan
        self.port = free_port()
        self.car_port = free_port() if plan.tls else self.port
        self.car_tls: TlsFiles | None = None
        broker_tls: TlsFiles | None = None
        if plan.tls:
            broker_tls, self.car_tls = make_authority(folder / "tls")
        self.broker = broker(plan.broker, folder / "broker", self.port, tls_port=self.car_port, tls=broker_tls)
        self.ramp_per_s = 0.0
        """What the dispatchers were started with last."""
        self._dispatchers: list[subprocess.Popen[bytes]] = []
        self._postgres: PostgresServer | None = None
        self._closing = ExitStack()
        self.sys: SysTopics | None = None

    @property
    def dispatcher_folder(self) -> Path:
        """Where the dispatchers keep their key, and with SQLite their book."""
        return self._folder / "dispatcher"

    def __enter__(self) -> Self:
        self.dispatcher_folder.mkdir()
        if self._plan.database == "postgresql":
            self._postgres = self._closing.enter_context(PostgresServer())
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def open_book(self, now_ms: Callable[[], int]) -> Book:
        """The dispatchers' book, for this process beside theirs; the caller closes it."""
        if self._postgres is None:
            return Book.open(self.dispatcher_folder, now_ms)
        return Book(PostgresDatabase(self._postgres.url))

    def start(self) -> None:
        """Start the broker and the dispatchers; raises FleetError."""
        self._closing.enter_context(self.broker)
        self._closing.callback(self.kill_dispatchers)
        self.start_dispatchers()
        if self._plan.broker == "mosquitto":
            self.sys = SysTopics(self.port)
            self._closing.callback(self.sys.close)

    def start_dispatchers(self, *, ramp_per_s: float = 0.0) -> None:
        """Start all of them, and wait until each hears its topics; raises FleetError."""
        self.ramp_per_s = ramp_per_s
        for number in range(self._plan.dispatchers):
            ready = self._ready(number)
            with self._log(number).open("ab") as stream:
                process = subprocess.Popen(
                    [sys.executable, "-m", "hil.dispatcher", *self._arguments(number)],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                )
            self._dispatchers.append(process)
            self._wait_for(ready, number, process)

    def _arguments(self, number: int) -> list[str]:
        database = [] if self._postgres is None else ["--database", self._postgres.url]
        return [
            *("--dir", str(self.dispatcher_folder), "--replica", f"r{number}"),
            *("--broker", f"{HOST}:{self.port}", "--retry-s", str(RETRY_S), "--ramp-per-s", str(self.ramp_per_s)),
            *("--unwitnessed-leaves", "0"),  # these cars keep no ledger
            *database,
        ]

    def _ready(self, number: int) -> Path:
        return self.dispatcher_folder / "replicas" / f"r{number}" / "ready"

    def _wait_for(self, ready: Path, number: int, process: subprocess.Popen[bytes]) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not ready.exists():
            if time.monotonic() > deadline_s or process.poll() is not None:
                raise FleetError(f"a dispatcher did not start: {tail(self._log(number))}")
            time.sleep(POLL_S)

    def _log(self, number: int) -> Path:
        return self._folder / f"dispatcher-{number}.log"

    def check_alive(self) -> None:
        """Raises FleetError when a dispatcher or the broker has ended by itself."""
        for number, process in enumerate(self._dispatchers):
            if process.poll() is not None:
                raise FleetError(f"a dispatcher died: {tail(self._log(number))}")
        if self.broker.pid is None or not psutil.pid_exists(self.broker.pid):
            raise FleetError(f"the broker died: {tail(self._folder / 'broker' / 'broker.log')}")

    def kill_dispatchers(self) -> None:
        """Crash all of them."""
        for process in self._dispatchers:
            process.kill()
        for process in self._dispatchers:
            process.wait()
        self._dispatchers.clear()
        for number in range(self._plan.dispatchers):
            self._ready(number).unlink(missing_ok=True)

    def broker_usage(self) -> Usage:
        """Of the broker."""
        return usage([] if self.broker.pid is None else [self.broker.pid])

    def dispatcher_usage(self) -> Usage:
        """Of all dispatchers."""
        return usage(process.pid for process in self._dispatchers)

    def database_usage(self) -> Usage:
        """Of PostgreSQL; SQLite's work is the dispatchers' own."""
        return usage([] if self._postgres is None or self._postgres.pid is None else [self._postgres.pid])
