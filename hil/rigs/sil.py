"""The rig with real processes on this machine: `driveway run`, a broker, a dispatcher, and a car on CAN over UDP.

`hil.rig` is its machine room. The daemon under test is what a vehicle runs, and works on real images with ONNX Runtime;
time is real, so a scenario is minutes long. What the rig says and hears goes through the doors that anybody has: the
control sockets of daemon and car, the dispatcher's operator API, signals to processes, a proxy in front of the broker.
"""

from __future__ import annotations

import contextlib
import io
import platform
import resource
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import msgspec

from agent.clock import SystemClock
from agent.errors import DrivewayError
from agent.notary import CHECKPOINT_LEAVES
from agent.simulate.recording import read, replay
from hil.broker import free_port
from hil.demo.evidence import keep_evidence
from hil.dispatcher.view import View
from hil.images import drawn_lines
from hil.rig import Rig as MachineRoom
from hil.rigs.faults import Fault
from hil.rigs.interface import Reached, Rig
from hil.rigs.observation import Evidence, LeaseSeen, Measurement, Observation
from hil.rigs.sil_faults import CANNOT, strike
from hil.rigs.sil_frames import FrameLog
from hil.rigs.sil_link import LinkThread
from hil.rigs.sil_stimuli import do
from hil.rigs.status_view import StatusView, lease_spans
from hil.rigs.stimuli import Stimulus
from hil.scenario.model import RigName, Scenario

POLL_MS = 40
SETTLED_EVERY_MS = 500
LINES, SLICE_ITEMS, PRICE_MICRO, SEED = 80, 8, 25, 2026
VERSIONS = ("driveway-agent", "onnxruntime", "paho-mqtt", "iotcore", "cryptography", "python-can")
LOGS = ("daemon", "dispatcher", "car")


class SilRig(Rig):
    """One daemon, its car and its fleet."""

    name: ClassVar[RigName] = "sil"
    about: ClassVar[str] = "the real daemon, broker and dispatcher, and a simulated car, on this machine"
    resolution_ms: ClassVar[int] = 60
    longest_s: ClassVar[float | None] = 300.0

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        super().__init__(scenario, folder)
        self._closing = ExitStack()
        self._clock = SystemClock()
        self._zero_ms = self._ended_ms = 0
        self._rows: tuple[LeaseSeen, ...] = ()
        self._attestations: list[Measurement] = []
        self._settled, self._settled_at_ms = 0, -SETTLED_EVERY_MS

    @classmethod
    def cannot(cls, what: Stimulus | Fault) -> str | None:
        """See `hil.rigs.sil_faults.CANNOT`."""
        return CANNOT.get(type(what))

    @property
    def now_ms(self) -> int:
        """Real."""
        return self._ended_ms or self._clock.boot_ms() - self._zero_ms

    # --- states -------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """The package is built and signed, the jobs are put up."""
        setup = self.scenario.setup
        self.observations.clear()
        self._ended_ms, self._settled, self._settled_at_ms = 0, 0, -SETTLED_EVERY_MS
        self._view, self._attestations = StatusView(), []
        options = ["--start", "driving" if setup.start == "driving" else "parked"]
        options += ["--soc", str(setup.charge_percent), "--charge-limit", str(setup.charge_limit_percent)]
        options += ["--ambient", str(setup.ambient_c)]
        self.room = MachineRoom(
            self.folder / "rig",
            dispatcher_options=("--listen", f"127.0.0.1:{free_port()}"),
            car_options=options,
            policy=self.scenario.policy_changes,
        )
        self._closing.enter_context(self.room)
        self._package = self.room.build_package()
        self._items = [image.png for image in drawn_lines(LINES, SEED)]
        self.submit(setup.jobs)

    def submit(self, jobs: int) -> None:
        """Put up so many jobs more."""
        for _ in range(jobs):
            self.room.submit(self._package, self._items, slice_items=SLICE_ITEMS, price_micro_per_item=PRICE_MICRO)

    def begin(self) -> None:
        """Broker, network, dispatcher, car and daemon, in this order; then the car is as the scenario wants it."""
        room = self.room
        room.start_broker()
        self.link = self._closing.enter_context(LinkThread(room.broker.port, seed=self.scenario.setup.seed))
        room.agent_broker_port = self.link.port
        room.start_dispatcher()
        self._frames = self._closing.enter_context(FrameLog(self.folder, room.bus_places))
        room.start_car()
        setup = self.scenario.setup
        room.car("change", change={"charger_w": setup.charger_w})
        if setup.start == "unplugged":
            room.car("unplug")
        room.start_daemon()
        self._zero_ms = self._clock.boot_ms()
        self._look()

    def end(self) -> None:
        """The evidence is asked for while the daemon lives; then it ends in good order."""
        self._ended_ms = self._clock.boot_ms() - self._zero_ms
        room = self.room
        if room.status() is not None:
            self._rows = lease_spans(room.ask("earnings", limit=1000)["leases"], self.observations)
            self._attest()
            room.ask("record")
        room.stop("daemon")
        room.stop("car")
        room.stop("dispatcher")

    def remove(self) -> None:
        """Every process ends."""
        with contextlib.suppress(DrivewayError, OSError, RuntimeError):
            self._closing.close()
        self._closing = ExitStack()

    # --- while it runs ------------------------------------------------------------------------------------------

    def do(self, stimulus: Stimulus) -> int:
        """Through the doors that anybody has."""
        with contextlib.redirect_stdout(io.StringIO()):
            shown_ms = do(self, stimulus)
        return self.now_ms if shown_ms is None else shown_ms - self._zero_ms

    def strike(self, fault: Fault) -> Callable[[], None]:
        """See `hil.rigs.sil_faults`."""
        return strike(self, fault)

    def advance(self, until_ms: int, reached: Reached | None) -> bool:
        """Look again and again until then."""
        while True:
            look = self._look()
            if reached is not None and reached(look):
                return True
            left_ms = until_ms - self.now_ms
            if left_ms <= 0:
                return False
            time.sleep(min(POLL_MS, left_ms) / 1000)

    def _look(self) -> Observation:
        began_ms = self.now_ms
        status = self.room.status()
        if status is None:
            self.room.alive()
            look = self._view.silent(began_ms)
        else:
            if began_ms - self._settled_at_ms >= SETTLED_EVERY_MS:
                self._settled_at_ms = began_ms
                self._settled = sum(row["lease"]["verdict"] is not None for row in self.room.ask("leases", limit=1000))
            look = self._view.look(self.now_ms, status, self.room.car("state")["state"], self._settled)
            look = msgspec.structs.replace(look, agent_memory_mb=self._agent_memory_mb())
        self.observations.append(look)
        return look

    def _agent_memory_mb(self) -> float | None:
        pid = self.room.pid("daemon")
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
        except (OSError, IndexError):
            return None
        return pages * resource.getpagesize() / 1e6

    # --- afterwards ---------------------------------------------------------------------------------------------

    def _attest(self) -> None:
        """What was signed, verified by `driveway verify` in a process of its own."""
        with View(self.room.folder / "dispatcher") as view:
            found = keep_evidence(self.folder / "attestations", view, self.room)
        settled = min(self._settled, 1)
        # The newest leaves are witnessed by and by, so what a short run proves may be nothing yet.
        is_proof_due = self.room.ask("ledger")["ledger"]["size"] >= 2 * CHECKPOINT_LEAVES
        for what, count, verified, needed in (
            ("results", found.results, found.results_verified, settled),
            ("ledger proofs", found.proofs, found.proofs_verified, settled if is_proof_due else 0),
        ):
            self._attestations.append(
                Measurement(
                    name=f"{what} that `driveway verify` accepts",
                    value=float(verified),
                    unit="",
                    at_least=float(max(count, needed)),
                    held=verified == count >= needed,
                    detail="" if count >= needed else f"{self._settled} leases were settled, and nothing shows it",
                )
            )

    def evidence(self) -> Evidence:
        """The promises, checked on the daemon's own recording; its logs; the attestations."""
        files = {"frames (can-utils)": self._frames.candump, "frames (ASC)": self._frames.asc}
        for name in LOGS:
            kept = self.folder / f"{name}.log"
            shutil.copyfile(self.room.folder / f"{name}.log", kept)
            files[f"{name} log"] = kept
        promises: list[Measurement] = []
        recordings = sorted((self.room.folder / "state" / "recordings").glob("*"))
        for number, path in enumerate(recordings, 1):
            kept = self.folder / f"recording-{number}.jsonl.gz"
            shutil.copyfile(path, kept)
            files[f"recording {number}"] = kept
            promises += _promises(kept)
        versions = {name: metadata.version(name) for name in VERSIONS} | {"python": platform.python_version()}
        return Evidence(
            measurements=(*promises, *self._attestations),
            leases=self._rows,
            versions=versions,
            files=files,
            notes=("times of what the gate did are as seen from outside, every 40 ms",),
        )


def _promises(path: Path) -> list[Measurement]:
    """The recording, played again: it comes to the same effects, and no promise is broken in it."""
    outcome = replay(read(path))
    broken = outcome.broken
    return [
        Measurement(
            name=f"promises broken in {path.name}",
            value=float(len(broken)),
            unit="",
            at_most=0.0,
            held=not broken,
            detail="; ".join(f"{one.name}: {one.detail}" for one in broken[:3]),
        ),
        Measurement(
            name=f"steps of {path.name} that replay otherwise",
            value=float(len(outcome.differs)),
            unit="",
            at_most=0.0,
            held=not outcome.differs,
        ),
    ]
