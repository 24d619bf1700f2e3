"""The fleet of a fault run: a broker, dispatcher replicas, agents and their cars, each a process, a proxy in between.

Everything is exactly what a rig or a vehicle runs: `driveway run`, `python -m hil.dispatcher`, Mosquitto as it is
guarded for a fleet (or the embedded broker, plain, since it checks none); `settings.py` says what is shortened. An
agent is watched through its control socket alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
import psutil

from agent.errors import ConfigError
from agent.fleet.messages import PackageRef
from agent.fleet.tls import TlsFiles
from agent.package import Package, open_package
from agent.trust.keys import FileSigner
from hil.acl.guarded import GuardedMosquitto, Member, cell_of, dynamic_security
from hil.broker import EmbeddedBroker, free_port
from hil.certificates import Authority
from hil.dispatcher.book import Book
from hil.dispatcher.objects import Objects
from hil.dispatcher.submit import add_job
from hil.faults.books import AgentBook, DispatcherBook, Ordered, read_agent, read_dispatcher
from hil.faults.database import Database, PostgresDatabase, SqliteFile
from hil.faults.disk import SmallDisk
from hil.faults.processes import Child, Ended
from hil.faults.proxy import FaultyLink
from hil.faults.recordings import recorded_apart
from hil.faults.settings import (
    AGENT_CONFIG,
    BUS,
    DISPATCHER_ARGUMENTS,
    ITEMS_PER_JOB,
    LEASE_TTL_S,
    MOSQUITTO_MORE,
    PRICE_MICRO,
    SHARE_GROUP,
    SLICE_ITEMS,
    TLS,
)
from hil.packages.nothing import build_nothing_package, nothing_item
from hil.packages.signing import sign_package
from hil.postgres import PostgresServer
from hil.rig import MARK
from hil.secret import write_secret

BrokerKind = Literal["mosquitto", "embedded"]
DatabaseKind = Literal["sqlite", "postgresql"]
START_TIMEOUT_S = 60.0
ASK_TIMEOUT_S = 0.3
RECORD_TIMEOUT_S = 10.0
WORKER_MARK = "agent.worker"


class Dispatcher:
    """One replica and its way to the broker."""

    def __init__(self, name: str, child: Child, link: FaultyLink) -> None:
        self.name, self.child, self.link = name, child, link


class Agent:
    """One car's daemon with all that is its own; `executions` are the slices that it was seen to begin."""

    def __init__(self, number: int, child: Child, link: FaultyLink, disk: SmallDisk, control: Path) -> None:
        self.number, self.unit = number, unit_of(number)
        self.child, self.link, self.disk, self._control = child, link, disk, control
        self._of_life: dict[int, int] = {}
        child.before_kill = self.look

    @property
    def executions(self) -> int:
        """Slices begun, over all lives of the daemon."""
        return sum(self._of_life.values())

    def pending(self) -> int:
        """Hand-ins without a verdict, as it says; 1 while it says nothing."""
        status = self.status()
        return 1 if status is None else int(status["outbox"]["pending"]) + (status["lease"] is not None)

    def look(self) -> None:
        """Note how many slices it has begun in this life."""
        status, pid = self.status(), self.child.pid
        if status is not None and pid is not None:
            self._of_life[pid] = max(self._of_life.get(pid, 0), int(status["slices"]["started"]))

    def status(self) -> dict[str, Any] | None:
        """`driveway status --json`, None when there is no answer at once (it may be frozen)."""
        return self._ask("status", ASK_TIMEOUT_S)

    def record(self) -> bool:
        """`driveway record`: whether it wrote down what it saw since it was started."""
        return self._ask("record", RECORD_TIMEOUT_S) is not None

    def _ask(self, verb: str, timeout_s: float) -> dict[str, Any] | None:
        with contextlib.suppress(OSError, ValueError, KeyError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(self._control))
            connection.sendall(msgspec.json.encode({"verb": verb}) + b"\n")
            with connection.makefile("rb") as answers:
                data: dict[str, Any] = json.loads(answers.readline())["data"]
                return data
        return None

    def worker_pid(self) -> int | None:
        """The inference worker, while there is one."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.child.pid).children():
                if WORKER_MARK in child.cmdline():
                    return int(child.pid)
        return None

    def book(self) -> AgentBook:
        """What it has written down; it has ended."""
        return read_agent(self.unit, self.disk.folder / "driveway.db")


class Ground:
    """Use as an async context manager: it makes the folder, and ends every process however the run ends."""

    def __init__(
        self,
        folder: Path,
        *,
        cars: int,
        dispatchers: int,
        broker: BrokerKind,
        database: DatabaseKind,
        seed: int,
        mounting: bool,
    ) -> None:
        self.folder, self.broker_kind, self._seed, self._mounting = folder.absolute(), broker, seed, mounting
        self._cars, self._replicas = cars, dispatchers
        self._closing = contextlib.AsyncExitStack()
        self.agents: list[Agent] = []
        self.dispatchers: list[Dispatcher] = []
        self.ordered: list[Ordered] = []
        self._database_kind = database
        self._enrol_codes = [secrets.token_hex(8) for _ in range(cars)]
        self._broker_port = free_port()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self._closing.aclose)
            self._prepare()
            undo.pop_all()
        self._closing.push_async_callback(self.stop)
        return self

    def _prepare(self) -> None:
        """The folder, the database and the command lines; nothing but a PostgreSQL runs yet."""
        _take_folder(self.folder)
        # Unix socket paths are short, and the folder's may be long.
        short = self._closing.enter_context(tempfile.TemporaryDirectory(prefix="driveway-"))
        self.sockets = Path(short)
        if self._database_kind == "sqlite":
            self.database: Database = SqliteFile(self.folder / "dispatcher")
        else:
            self.database = PostgresDatabase(self._closing.enter_context(PostgresServer()))
        self.authority = Authority(self.folder / "certificates") if self.broker_kind == "mosquitto" else None
        self.broker = Child("broker", self._broker_command(), self.folder / "broker.log")
        self.cars = self._child("cars", "hil.faults.cars", "--dir", short, "--cars", str(self._cars))

    async def __aexit__(self, *_: object) -> None:
        await self._closing.aclose()

    # --- before anything runs -----------------------------------------------------------------------------------

    def build_package(self) -> Package:
        """The package that does nothing, signed."""
        publisher = FileSigner.open_or_create(self.folder / "publisher.key")
        (self.folder / "publisher.pub").write_text(publisher.public_key_pem(), "ascii")
        package = build_nothing_package(self.folder / "packages" / "nothing")
        sign_package(package.path, publisher)
        return open_package(package.path)

    def order(self, package: Package, jobs: int) -> None:
        """Put so many jobs more into the dispatcher's book: no two have an input, and so an answer, in common.

        Blocks, and raises StoreError while the database cannot be had; what was put in until then is in `ordered`.
        """
        book, objects = Book(self.database.open()), Objects(self.folder / "dispatcher" / "objects")
        try:
            for _ in range(jobs):
                first = len(self.ordered) * ITEMS_PER_JOB
                job = add_job(
                    book,
                    objects,
                    package=PackageRef(name=package.manifest.name, sha256=package.package_sha256),
                    items=[nothing_item(first + item) for item in range(ITEMS_PER_JOB)],
                    slice_items=SLICE_ITEMS,
                    customer="acme",
                    price_micro_per_item=PRICE_MICRO,
                    currency="USD",
                    ttl_s=LEASE_TTL_S,
                )
                self.ordered.append(Ordered(job, ITEMS_PER_JOB, SLICE_ITEMS, PRICE_MICRO, first))
        finally:
            book.close()

    # --- processes ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything, each once the one before can be talked to; returns when every agent has its link."""
        self.broker.start()
        await self.broker.until(lambda: _accepts(self._broker_port), START_TIMEOUT_S)
        self.cars.start()
        await self.cars.until(lambda: "ready" in self.cars.last_words(), START_TIMEOUT_S)
        for number in range(self._replicas):
            await self._start_dispatcher(number)
        for number in range(self._cars):
            await self._start_agent(number)
        for agent in self.agents:
            await agent.child.until(partial(_connected, agent), START_TIMEOUT_S)

    async def stop_agents(self) -> None:
        """End the agents politely: what they have written down is complete, their recordings too."""
        for agent in self.agents:
            agent.look()
            await asyncio.to_thread(agent.record)
        await asyncio.gather(*(agent.child.stop() for agent in self.agents))
        for agent in self.agents:
            agent.disk.keep()

    async def stop(self) -> None:
        """End everything."""
        await self.stop_agents()
        for children in ([dispatcher.child for dispatcher in self.dispatchers], [self.cars, self.broker]):
            await asyncio.gather(*(child.stop() for child in children))

    def tell_car(self, number: int, do: str) -> None:
        """Somebody does this to a car."""
        process = self.cars.process
        if process is not None and process.stdin is not None:
            process.stdin.write(msgspec.json.encode({"car": number, "do": do}) + b"\n")
            process.stdin.flush()

    def tls(self, name: str) -> TlsFiles | None:
        """A certificate for this client, where the broker asks for one."""
        return None if self.authority is None else self.authority.issue(name)

    @property
    def links(self) -> list[FaultyLink]:
        """Every way to the broker."""
        return [agent.link for agent in self.agents] + [dispatcher.link for dispatcher in self.dispatchers]

    @property
    def ended(self) -> list[Ended]:
        """Every process that gave up by itself."""
        replicas, agents = [one.child for one in self.dispatchers], [one.child for one in self.agents]
        return [end for child in (self.broker, self.cars, *replicas, *agents) for end in child.ended]

    def book(self) -> DispatcherBook:
        """The dispatcher's rows as they are now."""
        with self.database.query() as query:
            return read_dispatcher(query)

    def jobs_done(self) -> int:
        """How many jobs the dispatcher calls done."""
        with self.database.query() as query:
            return int(query("SELECT count(*) FROM jobs WHERE state = 'done'")[0][0])

    async def _link(self, name: str) -> FaultyLink:
        return await self._closing.enter_async_context(FaultyLink(name, self._broker_port, seed=self._seed))

    def _child(self, name: str, module: str, *arguments: str) -> Child:
        return Child(name, [sys.executable, "-m", module, *arguments], self.folder / f"{name}.log")

    async def _start_dispatcher(self, number: int) -> None:
        name, folder = f"dispatcher-{number}", self.folder / "dispatcher"
        link, tls = await self._link(name), self.tls(name)
        arguments = ["--dir", str(folder), "--replica", name, "--broker", f"127.0.0.1:{link.port}"]
        arguments += ["--http-port", str(free_port()), *DISPATCHER_ARGUMENTS, *self.database.arguments]
        codes = write_secret(self.folder / "enrol.codes", "\n".join(self._enrol_codes))
        arguments += ["--enrol-code-file", str(codes)]
        if tls is not None:
            arguments += ["--tls-ca", tls.ca, "--tls-certificate", tls.certificate, "--tls-key", tls.key]
        child = self._child(name, "hil.dispatcher", *arguments)
        self.dispatchers.append(Dispatcher(name, child, link))
        child.start()
        ready = folder / "replicas" / name / "ready"
        await child.until(lambda: _ready_pid(ready) == child.pid, START_TIMEOUT_S)

    async def _start_agent(self, number: int) -> None:
        unit = unit_of(number)
        folder, link, tls = self.folder / unit, await self._link(unit), self.tls(unit)
        disk, control = SmallDisk(folder / "state", mounting=self._mounting), self.sockets / f"{unit}.sock"
        recorded_apart(folder, disk.folder)
        ready = json.loads((self.folder / "dispatcher/replicas/dispatcher-0/ready").read_text("ascii"))
        config = AGENT_CONFIG.format(
            control_socket=control,
            unit=unit,
            buses="".join(
                BUS.format(name=name, cars=self.sockets, number=number) for name in ("party", "vehicle", "energy")
            ),
            cars=self.sockets,
            port=link.port,
            enrol_url=f"{ready['http_url']}/enrol",
            enrol_code=self._enrol_codes[number],
            tls="" if tls is None else TLS.format(ca=tls.ca, certificate=tls.certificate, key=tls.key),
        )
        (folder / "agent.toml").write_text(config, "utf-8")
        child = self._child(unit, "agent", "run", "--config", str(folder / "agent.toml"))
        agent = Agent(number, child, link, disk, control)
        self.agents.append(agent)
        child.start()
        await child.until(lambda: agent.status() is not None, START_TIMEOUT_S)

    def _broker_command(self) -> list[str]:
        folder = self.folder / "broker"
        folder.mkdir()
        if self.authority is None:
            return EmbeddedBroker(folder, self._broker_port).command()
        units = map(unit_of, range(self._cars))
        names = [f"dispatcher-{number}" for number in range(self._replicas)]
        security = dynamic_security([Member(unit, cell_of(unit)) for unit in units], names, SHARE_GROUP)
        guarded = GuardedMosquitto(
            folder, self._broker_port, tls=self.authority.issue("broker"), security=security, more=MOSQUITTO_MORE
        )
        return guarded.command()


def unit_of(number: int) -> str:
    """The name of a car."""
    return f"car-{number:04d}"


def executions(agents: Iterable[Agent]) -> int:
    """Slices begun by all of them."""
    return sum(agent.executions for agent in agents)


def _take_folder(folder: Path) -> None:
    """Make the folder anew; it must be one of ours, or not there yet."""
    if folder.exists() and not (folder / MARK).exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} exists and was not made by a rig", hint="give another folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).touch()


def _connected(agent: Agent) -> bool:
    status = agent.status()
    return status is not None and bool(status["link"]["connected"])


def _ready_pid(ready: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(json.loads(ready.read_bytes())["pid"])
    return None


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.2):
        return True
    return False
