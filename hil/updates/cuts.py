"""Every way to lose power during an update, and what the vehicle does afterwards.

The program is killed after each of its operations on the vehicle's folder, with the daemon; that is one state of the
disk. What was not synced by then may be missing, which makes others (`hil.powercut.disk`; each folder by itself, which
asks for more than the one ordered journal of ext4). A state that was seen is not judged again.

Each is judged twice. As it lies: `current` leads to one of two versions, and the journal says nothing that the links
deny. Then the vehicle boots, the program runs to its end, and is to come where it would have without the cut: a working
daemon, the version that ought to run, both links on it, nothing lost of what was acknowledged.
"""

from __future__ import annotations

import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from agent.errors import DrivewayError
from agent.update.model import Phase, Result
from hil.powercut import recorder
from hil.powercut.disk import Disk, Image
from hil.powercut.recorder import Operation
from hil.updates.vehicle import NEW, OLD, Vehicle

HOME, KEPT = "opt/driveway", "var/lib/driveway-update"
FOLDERS = (HOME, KEPT)
"""What outlives a power cut of all that the program writes; its status in /run does not."""
VARIES = re.compile(rb'"(at_wall_s|lease)": ?("[^"]*"|[0-9]+)')
"""Of a journal, from run to run."""
SAMPLES = 8
SHOWN = 5
EARNED_S = 10.0
ENDS = {"good": Result.COMMITTED, "damaged": Result.REFUSED, "older": Result.REFUSED}
"""What becomes of a kind of release; of the others: rolled back."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one kind of release; `failures` shows some of what did not hold."""

    kind: str
    ends: str
    operations: int
    cuts: int
    """Runs: one without a cut, and one for each state of the disk; `working` of them ended with a working daemon."""
    working: int
    lost: int
    wrong: int
    """States in which the journal or the links lied, or the end was another than without a cut."""
    results: int
    """Acknowledged by daemons in all the runs together."""
    failures: tuple[str, ...]
    seconds: float

    @property
    def held(self) -> bool:
        """Whether every state held, and there were any."""
        return self.cuts > 0 and self.working == self.cuts and not self.lost and not self.wrong and not self.failures


def outcome(kind: str, *, plant: str = "", every: int = 1, since: int = 1, first: bool = False) -> Outcome:
    """Update to a release of this kind, cut after every `every`-th operation from `since` on.

    `first`: stop at the first failure.

    Raises DrivewayError where the recorder missed something.
    """
    began_s, found, seen = time.monotonic(), Counter[str](cuts=1), set[bytes]()
    failures = list[str]()
    with TemporaryDirectory(prefix="driveway-updates-") as made:
        folder = Path(made)
        whole = _run(folder / "whole", kind, plant)
        operations = recorder.operations(whole.log, whole.root)
        _check_log(whole, operations)
        failures += [f"without a cut: {one}" for one in _end(whole, kind, found)]
        whole.off()
        for cut in range(since, len(operations), every):
            if first and failures:
                break
            stopped = _run(folder / f"cut-{cut}", kind, plant, stop_after=cut)
            stopped.off()
            for image in _images(recorder.operations(stopped.log, stopped.root), cut):
                key = _key(image)
                if key not in seen:
                    seen.add(key)
                    failures += [f"cut after operation {cut}: {one}" for one in _judge(stopped, image, kind, found)]
            shutil.rmtree(stopped.folder)
    return Outcome(
        kind=kind,
        ends=ENDS.get(kind, Result.ROLLED_BACK).value,
        operations=len(operations),
        cuts=found["cuts"],
        working=found["working"],
        lost=found["lost"],
        wrong=found["wrong"],
        results=found["results"],
        failures=tuple(failures[:SHOWN]),
        seconds=round(time.monotonic() - began_s, 1),
    )


def _run(folder: Path, kind: str, plant: str, *, stop_after: int = 0) -> Vehicle:
    """A vehicle that has earned something, with a release staged, on which the program ran, to its end or a cut."""
    vehicle = Vehicle.made(folder)
    vehicle.systemctl("start")
    until_s = time.monotonic() + EARNED_S
    while not vehicle.acknowledged():
        if time.monotonic() > until_s:
            vehicle.off()
            raise DrivewayError("the daemon of an update's rehearsal earns nothing")
        time.sleep(0.01)
    vehicle.stage(kind)
    vehicle.update(stop_after=stop_after, plant=plant)
    return vehicle


def _judge(stopped: Vehicle, image: Image, kind: str, found: Counter[str]) -> list[str]:
    found["cuts"] += 1
    with TemporaryDirectory(prefix="driveway-updates-") as made:
        vehicle = stopped.copy(Path(made))
        _lay(vehicle, image)
        said = _as_it_lies(vehicle)
        found["wrong"] += len(said)
        try:
            vehicle.boot()
            ran = vehicle.update()
            if ran.status:
                said.append(f"the program ended with {ran.status}: {ran.said[-200:]}")
            said += _end(vehicle, kind, found)
        finally:
            vehicle.off()
    return said


def _as_it_lies(vehicle: Vehicle) -> list[str]:
    """What the journal says that the links deny; before anything is mended."""
    disk = vehicle.disk()
    if disk.current not in {OLD, NEW} or disk.good not in {OLD, NEW}:
        return [f"the links lead to {disk.current!r} and {disk.good!r}"]
    try:
        journal = vehicle.journal()
    except DrivewayError as error:
        return [str(error)]
    decided = journal.decided(NEW)
    ought = {
        Phase.IDLE: {(OLD, OLD), (NEW, NEW)},
        Phase.WAITING: {(OLD, OLD)},
        Phase.SWITCHING: {(OLD, OLD), (NEW, OLD)},
        Phase.TRIAL: {(NEW, OLD), (NEW, NEW)},
        Phase.ROLLING_BACK: {(OLD, OLD), (NEW, OLD)},
    }[journal.phase]
    if journal.phase is Phase.IDLE and decided is not None:
        ought = {(NEW, NEW)} if decided.result is Result.COMMITTED else {(OLD, OLD)}
    links = (disk.current, disk.good)
    return [] if links in ought else [f"the journal says {journal.phase.value}, and the links lead to {links}"]


def _end(vehicle: Vehicle, kind: str, found: Counter[str]) -> list[str]:
    """What is not as it ought to be when the program has come to its end."""
    said = list[str]()
    if vehicle.works():
        found["working"] += 1
    else:
        said.append("no working daemon")
    if lost := vehicle.lost():
        found["lost"] += lost
        said.append(f"{lost} acknowledged results are lost")
    found["results"] += len(vehicle.acknowledged())
    ought, version = ENDS.get(kind, Result.ROLLED_BACK), "0.9.0" if kind == "older" else NEW
    disk, journal = vehicle.disk(), vehicle.journal()
    decided = journal.decided(version)
    runs = NEW if ought is Result.COMMITTED else OLD
    if decided is None or decided.result is not ought or journal.phase is not Phase.IDLE:
        said.append(f"it ought to be {ought.value}, and is {decided and decided.result.value}, {journal.phase.value}")
        found["wrong"] += 1
    if (disk.current, disk.good) != (runs, runs):
        said.append(f"{runs} ought to run, and the links lead to {disk.current!r} and {disk.good!r}")
        found["wrong"] += 1
    return said


# --- states of the disk -----------------------------------------------------------------------------------------------


def _disks(operations: list[Operation]) -> dict[str, Disk]:
    """Each folder by itself, as it is after these operations; all was durable before."""
    disks = {folder: Disk() for folder in FOLDERS}
    names = [Operation("L", name, 0, OLD.encode()) for name in ("current", "good")]
    for one in (*names, *(Operation("C", version, 0, b"") for version in ("0.9.0", OLD, NEW)), _SYNC):
        disks[HOME].apply(one)
    for one in operations:
        folder = next((folder for folder in FOLDERS if f"{one.name}/".startswith(f"{folder}/")), None)
        if folder is None:
            continue
        within = one.name.removeprefix(folder).removeprefix("/")
        data = one.data.decode().removeprefix(f"{folder}/").encode() if one.kind == "R" else one.data
        disks[folder].apply(Operation(one.kind, within, one.offset, data))
    return disks


_SYNC = Operation("S", "", 0, b"")


def _images(operations: list[Operation], seed: int) -> Iterator[Image]:
    """What may be on the disk, by names below the vehicle's root."""
    chance, disks = random.Random(seed), _disks(operations)
    for home in disks[HOME].images(chance, SAMPLES):
        for kept in disks[KEPT].images(chance, SAMPLES):
            yield {f"{HOME}/{name}": data for name, data in home.items()} | {
                f"{KEPT}/{name}": data for name, data in kept.items()
            }


def _key(image: Image) -> bytes:
    return b"\0".join(name.encode() + b"=" + VARIES.sub(b"", image[name]) for name in sorted(image))


def _lay(vehicle: Vehicle, image: Image) -> None:
    """Have the vehicle's folders hold what the image says: the links, the journal, and which versions are there."""
    shutil.rmtree(vehicle.root / KEPT)
    (vehicle.root / KEPT).mkdir()
    home = vehicle.root / HOME
    for path in home.iterdir():
        if path.is_symlink():
            path.unlink()
        elif f"{HOME}/{path.name}" not in image:  # its removal had begun, or it was not in this rehearsal
            was = path.with_name(path.name.removesuffix(".gone"))
            path.rename(was) if f"{HOME}/{was.name}" in image and not was.exists() else shutil.rmtree(path)
    for name, data in image.items():
        path = vehicle.root / name
        if name.startswith(KEPT):
            path.write_bytes(data)
        elif path.name.split(".")[0] in {"current", "good"}:
            path.symlink_to(data.decode())


def _check_log(vehicle: Vehicle, operations: list[Operation]) -> None:
    """That the log leads to what is there; raises DrivewayError."""
    disks = _disks(operations)
    links = {name: data for name, data in disks[HOME].now().items() if data}
    there = {path.name: str(path.readlink()).encode() for path in vehicle.places.home.iterdir() if path.is_symlink()}
    files = {path.name: path.read_bytes() for path in vehicle.places.journal.parent.iterdir()}
    if links != there or disks[KEPT].now() != files:
        raise DrivewayError("the recorder missed operations: its log does not lead to the files that are there")
