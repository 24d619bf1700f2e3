"""The other side of a vehicle in a VM, on the rig's machine: a broker with mutual TLS, a dispatcher, and jobs.

The vehicle reaches both at 10.0.2.100, through the machine's forwards, and nothing else. So the certificates name that
address, and every connection is checked as on the road: the broker knows the unit by its certificate, the dispatcher's
door is TLS 1.3, and the unit enrols with a one-time code. Broker and dispatcher may be killed and started again.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from agent.clock import SystemClock
from agent.errors import DrivewayError
from agent.fleet.messages import PackageRef
from agent.fleet.tls import TlsFiles
from agent.package import Package, open_package
from agent.trust.keys import FileSigner
from hil.acl.guarded import GuardedMosquitto, Member, cell_of, dynamic_security
from hil.broker import HOST, free_port
from hil.certificates import Authority
from hil.dispatcher.book import Book
from hil.dispatcher.objects import Objects
from hil.dispatcher.submit import add_job
from hil.faults.accounts import Finding, audit
from hil.faults.books import AgentBook, DispatcherBook, Ordered, read_dispatcher
from hil.faults.database import SqliteFile
from hil.packages.nothing import build_nothing_package, nothing_item
from hil.packages.signing import sign_package
from hil.secret import write_secret
from hil.vm.machine import FLEET_ADDRESS

UNIT, DISPATCHER, SHARE_GROUP = "car-0001", "dispatcher", "vm"
BROKER_PORT, DOOR_PORT = 8883, 8443
"""As the vehicle dials them."""
START_S, STOP_S, POLL_S = 30.0, 10.0, 0.05
PRICE_MICRO = 7
LEASE_TTL_S = 900
"""A lease of the slow guest must outlast the start of its worker, which takes it the better part of a minute."""


class HostFleet:
    """A context manager: everything ends with it. `folder` keeps databases, keys and logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._broker_port, self._door_port = free_port(), free_port()
        self._enrol_code = secrets.token_hex(8)
        self._closing = ExitStack()
        self._dispatcher: subprocess.Popen[bytes] | None = None
        self.ordered: list[Ordered] = []
        """Every job that was put up."""
        folder.mkdir(parents=True, exist_ok=True)
        self._authority = Authority(folder / "certificates")
        security = dynamic_security([Member(UNIT, cell_of(UNIT))], [DISPATCHER], SHARE_GROUP)
        served = self._authority.issue("broker", hosts=(HOST, FLEET_ADDRESS))
        self.broker = GuardedMosquitto(
            folder / "broker", self._broker_port, tls=served, security=security, more="user root\n"
        )

    @property
    def forwards(self) -> dict[int, int]:
        """For `Options.forwards`: the vehicle's way to the broker and to the dispatcher's door."""
        return {BROKER_PORT: self._broker_port, DOOR_PORT: self._door_port}

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.enter_context(self.broker)
            undo.callback(self.stop_dispatcher)
            self.start_dispatcher()
            self._closing = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    # --- what a vehicle is given --------------------------------------------------------------------------------

    @property
    def unit_tls(self) -> TlsFiles:
        """The unit's certificate and key, made once."""
        return self._authority.issue(UNIT)

    @property
    def dispatcher_key_pem(self) -> str:
        """The key whose grants and verdicts count."""
        return (self.folder / "dispatcher" / "dispatcher.pub").read_text("ascii")

    @property
    def enrol_code(self) -> str:
        """Good for one unit."""
        return self._enrol_code

    def package(self) -> Package:
        """The package that does nothing but goes all the way, signed by the publisher; built once."""
        home = self.folder / "packages" / "nothing"
        publisher = FileSigner.open_or_create(self.folder / "publisher.key")
        (self.folder / "publisher.pub").write_text(publisher.public_key_pem(), "ascii")
        if not home.exists():
            sign_package(build_nothing_package(home).path, publisher)
        return open_package(home)

    # --- work ---------------------------------------------------------------------------------------------------

    def order(self, items: int, *, slice_items: int = 4) -> str:
        """Put up one job of so many numbers, each of which is its own answer, none asked before; the job's name."""
        package, first_number = self.package(), sum(one.items for one in self.ordered)
        book = Book.open(self.folder / "dispatcher", SystemClock().wall_ms)
        try:
            job = add_job(
                book,
                Objects(self.folder / "dispatcher" / "objects"),
                package=PackageRef(name=package.manifest.name, sha256=package.package_sha256),
                items=[nothing_item(first_number + item) for item in range(items)],
                slice_items=slice_items,
                customer="acme",
                price_micro_per_item=PRICE_MICRO,
                currency="USD",
                ttl_s=LEASE_TTL_S,
            )
        finally:
            book.close()
        self.ordered.append(Ordered(job, items, slice_items, PRICE_MICRO, first_number))
        return job

    def audit(self, unit: AgentBook) -> list[Finding]:
        """What was lost or paid twice, by this unit's books, the dispatcher's, and what was ordered."""
        return audit(self.ordered, self.book(), [unit], self.dispatcher_key_pem)

    def book(self) -> DispatcherBook:
        """What the dispatcher has written down."""
        with SqliteFile(self.folder / "dispatcher").query() as query:
            return read_dispatcher(query)

    def done(self, job: str) -> bool:
        """Whether this job is settled."""
        return any(row.job == job and row.state == "done" for row in self.book().jobs)

    # --- processes ----------------------------------------------------------------------------------------------

    def start_dispatcher(self) -> None:
        """Start it, and wait until it hears its topics; raises DrivewayError with its last words."""
        assert self._dispatcher is None, "it runs"
        folder = self.folder / "dispatcher"
        folder.mkdir(exist_ok=True)
        ready, tls = folder / "ready", self._authority.issue(DISPATCHER)
        ready.unlink(missing_ok=True)
        door = self._authority.issue("door", hosts=(HOST, FLEET_ADDRESS))
        codes = write_secret(self.folder / "enrol.codes", self._enrol_code)
        command = [sys.executable, "-m", "hil.dispatcher", "--dir", str(folder), "--retry-s", "2"]
        command += ["--broker", f"{HOST}:{self._broker_port}", "--share-group", SHARE_GROUP]
        command += ["--keepalive-s", "10", "--reconnect-max-s", "5", "--enrol-code-file", str(codes)]
        command += ["--tls-ca", tls.ca, "--tls-certificate", tls.certificate, "--tls-key", tls.key]
        command += ["--listen", f"{HOST}:{self._door_port}", "--public-url", f"https://{FLEET_ADDRESS}:{DOOR_PORT}"]
        command += ["--listen-certificate", door.certificate, "--listen-key", door.key]
        log = self.folder / "dispatcher.log"
        with log.open("ab") as stream:
            self._dispatcher = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        deadline_s = time.monotonic() + START_S
        while not ready.exists():
            if self._dispatcher.poll() is not None or time.monotonic() > deadline_s:
                self.stop_dispatcher(signal.SIGKILL)
                raise DrivewayError(f"the dispatcher did not start: {log.read_text('utf-8', 'replace')[-500:]}")
            time.sleep(POLL_S)

    def kill_dispatcher(self) -> None:
        """Crash it."""
        self.stop_dispatcher(signal.SIGKILL)

    def stop_dispatcher(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it with this signal; what it has written down is there at the next start."""
        process, self._dispatcher = self._dispatcher, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(what: str, reached: Callable[[], Any], timeout_s: float, *, poll_s: float = 0.25) -> Any:
    """The first true answer; raises DrivewayError, with the last one, when there is none in time.

    What raises DrivewayError on the way (nobody answers yet) is asked again.
    """
    deadline_s, said = time.monotonic() + timeout_s, "nothing"
    while time.monotonic() < deadline_s:
        with contextlib.suppress(json.JSONDecodeError):
            try:
                if answer := reached():
                    return answer
                said = repr(answer)
            except DrivewayError as error:
                said = str(error)
        time.sleep(poll_s)
    raise DrivewayError(f"waited {timeout_s:.0f} s in vain until {what}: {said[:500]}")
