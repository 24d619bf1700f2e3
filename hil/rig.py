"""A rig on one machine: broker, dispatcher, simulated car and the real daemon, each a process of its own.

`Rig` makes the folder (keys, package, configuration, jobs), starts the processes in order, and ends all of them however
the run ends. What each process said is in `<folder>/<name>.log`. The daemon under test is exactly `driveway run`.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import msgspec

from agent.cli.client import ask
from agent.clock import SystemClock
from agent.errors import ConfigError, DrivewayError
from agent.fleet.messages import PackageRef
from agent.package import Package, open_package
from agent.trust.keys import FileSigner
from hil.broker import BrokerProcess, EmbeddedBroker, free_port
from hil.dispatcher.book import Book
from hil.dispatcher.objects import Objects
from hil.dispatcher.submit import add_job
from hil.packages.ocr import build_ocr_package
from hil.packages.signing import sign_package
from hil.secret import write_secret

UNIT = "car-0001"
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.05
PR_SET_PDEATHSIG = 1
MARK = ".driveway-rig"

CONFIG = """\
# Written by the rig. Times are shortened for a demonstration: on a vehicle, parked_for_s is 60.
state_dir = "state"
control_socket = "{control_socket}"

[unit]
id = "{unit}"
device_class = "rig-laptop"

[vehicle]
profiles = ["tesla-model3", "driveway-energy"]
{buses}
[computer]
reader = "jetson"
sysfs_root = "car/sysfs"
interval_ms = 200

[fleet]
brokers = ["127.0.0.1:{broker_port}"]
dispatcher_key = "dispatcher/dispatcher.pub"
enrol_url = "{enrol_url}"
enrol_code = "{enrol_code}"
allow_loopback_http = true

[inference]
packages_dir = "packages"
publisher_key = "publisher.pub"
threads = 2

[policy]
{policy}
"""
BUS = """
[[vehicle.bus]]
name = "{name}"
interface = "udp_multicast"
channel = "{group}"
port = {port}
"""
BUS_NAMES = ("party", "vehicle", "energy")


class Rig:
    """Everything a car and a fleet need, on this machine. Use as a context manager.

    `parked_for_s`: how long every sign must say 'parked and empty' before the daemon works. `broker` makes the broker
    that car and dispatcher talk over, given its folder and port. `dispatcher_options` and `car_options` are more of
    their command lines; `policy` is more of the daemon's policy.
    """

    def __init__(
        self,
        folder: Path,
        *,
        parked_for_s: float = 3.0,
        broker: Callable[[Path, int], BrokerProcess] = EmbeddedBroker,
        dispatcher_options: Sequence[str] = (),
        car_options: Sequence[str] = ("--start", "driving"),
        policy: Mapping[str, object] | None = None,
    ) -> None:
        self.folder = folder
        self._dispatcher_options, self._car_options = tuple(dispatcher_options), tuple(car_options)
        self._policy = {"parked_for_s": parked_for_s, "reserve_percent": 40} | dict(policy or {})
        self.config = folder / "agent.toml"
        self._broker_port = free_port()
        self.agent_broker_port = self._broker_port
        """Where the daemon dials the broker; a rig may put something in between before it is started."""
        self.broker = broker(folder / "broker", self._broker_port)
        # A group of its own, so that two rigs on one machine never hear each other's car.
        self._group = f"239.74.{secrets.randbelow(256)}.{1 + secrets.randbelow(254)}"
        self._bus_ports = [free_port() for _ in BUS_NAMES]
        self._enrol_code = os.urandom(8).hex()
        self._closing = ExitStack()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._sockets = Path()

    def __enter__(self) -> Self:
        try:
            self._take_folder()
        except OSError as error:
            raise ConfigError(f"cannot use the folder {self.folder}: {error.strerror}", hint="give another") from error
        # Unix socket paths are short, and the folder's may be long.
        self._sockets = Path(self._closing.enter_context(tempfile.TemporaryDirectory(prefix="driveway-")))
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _take_folder(self) -> None:
        """Make the folder anew. It must be one of ours, or not there yet, and no other rig may be running in it."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = self._closing.enter_context((self.folder.parent / f".{self.folder.name}.lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"a rig is running in {self.folder}", hint="end it, or use another folder") from None
        if self.folder.exists() and not (self.folder / MARK).exists() and any(self.folder.iterdir()):
            raise ConfigError(f"{self.folder} exists and was not made by a rig", hint="give another folder")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        (self.folder / MARK).touch()

    # --- before anything runs -----------------------------------------------------------------------------------

    def build_package(self) -> Package:
        """Build the OCR package and sign it with the publisher's key."""
        return self.publish("ocr", build_ocr_package)

    def publish(self, name: str, build: Callable[[Path], Package]) -> Package:
        """Have a package built into a folder of this name, and sign it with the publisher's key."""
        publisher = FileSigner.open_or_create(self.folder / "publisher.key")
        (self.folder / "publisher.pub").write_text(publisher.public_key_pem(), "ascii")
        package = build(self.folder / "packages" / name)
        sign_package(package.path, publisher)
        return open_package(package.path)

    def submit(self, package: Package, items: Sequence[bytes], *, slice_items: int, price_micro_per_item: int) -> str:
        """Put one job up, whether the dispatcher runs or not."""
        folder = self.folder / "dispatcher"
        folder.mkdir(exist_ok=True)
        book = Book.open(folder, SystemClock().wall_ms)
        try:
            return add_job(
                book,
                Objects(folder / "objects"),
                package=PackageRef(name=package.manifest.name, sha256=package.package_sha256),
                items=items,
                slice_items=slice_items,
                customer="acme",
                price_micro_per_item=price_micro_per_item,
                currency="USD",
                ttl_s=600,
            )
        finally:
            book.close()

    # --- processes ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start broker, dispatcher, car and daemon, each once the one before can be talked to."""
        self.start_broker()
        self.start_dispatcher()
        self.start_car()
        self.start_daemon()

    def start_broker(self) -> None:
        """Start the broker, until the rig is left."""
        self._closing.enter_context(self.broker)

    def start_dispatcher(self) -> None:
        """Start the dispatcher, and wait until it hears its topics."""
        broker = f"127.0.0.1:{self._broker_port}"
        folder = str(self.folder / "dispatcher")
        (self.folder / "dispatcher" / "ready").unlink(missing_ok=True)
        self._spawn(
            "dispatcher",
            "hil.dispatcher",
            *("--dir", folder, "--broker", broker, "--retry-s", "2", "--enrol-code-file", str(self.enrol_codes())),
            *self._dispatcher_options,
        )
        self._wait_for("dispatcher", (self.folder / "dispatcher" / "ready").exists)

    def enrol_codes(self) -> Path:
        """The file with the car's enrolment code, which is nobody else's to read."""
        return write_secret(self.folder / "enrol.codes", self._enrol_code)

    def start_car(self) -> None:
        """Start the car; driving, unless its options say otherwise."""
        buses = [
            f"--bus={name}=udp_multicast:{self._group}:{port}"
            for name, port in zip(BUS_NAMES, self._bus_ports, strict=True)
        ]
        self._spawn(
            "car",
            "hil.car",
            *("--dir", str(self.folder / "car"), *self._car_options),
            *("--computer-pid-file", str(self.folder / "daemon.pid"), *buses),
        )
        self._wait_for("car", (self.folder / "car" / "control.sock").exists)

    @property
    def policy_text(self) -> str:
        """The policy's part of the daemon's configuration."""
        return "\n".join(f"{key} = {toml_value(value)}" for key, value in self._policy.items())

    def start_daemon(self) -> None:
        """Start `driveway run`, and wait until its control socket answers."""
        ready = json.loads((self.folder / "dispatcher" / "ready").read_text("ascii"))
        self.config.write_text(
            CONFIG.format(
                control_socket=self._sockets / "control.sock",
                unit=UNIT,
                buses="".join(
                    BUS.format(name=name, group=self._group, port=port)
                    for name, port in zip(BUS_NAMES, self._bus_ports, strict=True)
                ),
                broker_port=self.agent_broker_port,
                enrol_url=f"{ready['http_url']}/enrol",
                enrol_code=self._enrol_code,
                policy=self.policy_text,
            ),
            "utf-8",
        )
        process = self._spawn("daemon", "agent", "run", "--config", str(self.config))
        (self.folder / "daemon.pid").write_text(f"{process.pid}\n", "ascii")
        self._wait_for("daemon", lambda: self.status() is not None)

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End one process with a signal, and kill it when it does not end by itself."""
        process = self._processes.pop(name, None)
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def pid(self, name: str) -> int | None:
        """The process of this name, None while it does not run."""
        process = self._processes.get(name)
        return None if process is None else process.pid

    def alive(self) -> None:
        """Raise DrivewayError, with its last words, when a process of the rig has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise DrivewayError(f"{name} ended with status {process.returncode}: {self._last_words(name)}")

    def _spawn(self, name: str, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", module, *arguments]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - called from the main thread, before any other starts
            )
        self._processes[name] = process
        self._closing.callback(self.stop, name)
        return process

    def _wait_for(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            self.alive()
            if time.monotonic() > deadline:
                raise DrivewayError(f"{name} did not come up in {START_TIMEOUT_S:.0f} s: {self._last_words(name)}")
            time.sleep(POLL_S)

    def _last_words(self, name: str) -> str:
        """What a process that ended said of the reason: its own complaint if it made one, else its last line."""
        lines = (self.folder / f"{name}.log").read_text("utf-8", "replace").splitlines()
        complaints = [line for line in lines if line.startswith((f"hil.{name}: ", f"{name}: ", "driveway: "))]
        return (complaints or lines or ["it said nothing"])[-1]

    @property
    def bus_places(self) -> dict[str, tuple[str, int]]:
        """Every CAN bus by its name: the multicast group and the port that it is on."""
        return {name: (self._group, port) for name, port in zip(BUS_NAMES, self._bus_ports, strict=True)}

    # --- asking -------------------------------------------------------------------------------------------------

    def ask(self, verb: str, **arguments: object) -> Any:
        """One question to the daemon's control socket."""
        return ask(self._sockets / "control.sock", verb, **arguments)

    def status(self) -> dict[str, Any] | None:
        """`driveway status --json`, or None while nobody answers."""
        try:
            answer: dict[str, Any] = self.ask("status")
        except DrivewayError:
            return None
        return answer

    def car(self, do: str, /, **arguments: object) -> dict[str, Any]:
        """One order to the car; raises DrivewayError when it refuses."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(START_TIMEOUT_S)
            connection.connect(str(self.folder / "car" / "control.sock"))
            connection.sendall(msgspec.json.encode({"do": do, **arguments}) + b"\n")
            with connection.makefile("rb") as answers:
                answer: dict[str, Any] = msgspec.json.decode(answers.readline())
        if not answer["ok"]:
            raise DrivewayError(f"the car would not {do}: {answer.get('error', '')}")
        return answer


def toml_value(value: object) -> str:
    """A value of a configuration as TOML writes it, tables inline. JSON's strings and numbers are TOML's too."""
    match value:
        case dict():
            return "{ " + ", ".join(f"{key} = {toml_value(one)}" for key, one in value.items()) + " }"
        case list() | tuple():
            return "[" + ", ".join(map(toml_value, value)) + "]"
        case _:
            return json.dumps(value)


def _die_with_parent() -> None:
    """In the child: end when the rig's process ends, however it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
