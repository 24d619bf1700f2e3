"""Every way to lose power during a run of the work: it is recorded once, and each image of the disk is judged.

Every operation is a point at which the power may go. Images that are the same, with the same acknowledged before, are
judged once. The last image of all, with nothing lost, must be the folder itself to the byte: else the recorder missed
something, and there is no result.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from agent.errors import DrivewayError
from agent.store_file import wal_of
from hil.powercut import recorder
from hil.powercut.books import Finding, judge
from hil.powercut.disk import Disk, Image
from hil.powercut.recorder import Operation
from hil.powercut.work import DATABASE, Done, Told, Wish

MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of its own is made there
SAMPLES = 2
SAMPLES_AT_A_SYNC = 8
"""Images at a point where a sync comes next: there the most is at stake."""
SHOWN = 5


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one run; `failures` shows some of the images that did not hold."""

    name: str
    transactions: int
    operations: int
    syncs: int
    refusals: int
    first_refusal: str
    states: int
    ok: int
    lost: int
    torn: int
    twice: int
    failures: tuple[str, ...]
    seconds: float

    @property
    def held(self) -> bool:
        """Whether every image held."""
        return self.states == self.ok > 0


def scratch() -> TemporaryDirectory[str]:
    """A folder that is gone with its use; in memory where there is such a place: the disk here is the model's."""
    return TemporaryDirectory(prefix="driveway-powercut-", dir=MEMORY if MEMORY.is_dir() else None)


def outcome(name: str, wish: Wish, *, samples: int = SAMPLES, every: int = 1) -> Outcome:
    """Record a run and judge its images, `samples` at each point, or at every `every`-th (those before a sync always).

    `wish.folder` is not used. Raises DrivewayError.
    """
    began_s = time.monotonic()
    with scratch() as made:
        folder, told, operations = _record(wish, Path(made))
        counts, failures = asyncio.run(_judge_all(operations, folder, Path(made), (wish.seed, samples, every)))
    return Outcome(
        name=name,
        transactions=told.transactions,
        operations=sum(one.kind != "N" for one in operations),
        syncs=sum(one.kind in "SD" for one in operations),
        refusals=told.refusals,
        first_refusal=told.first,
        states=counts.total(),
        ok=counts[Finding.OK],
        lost=counts[Finding.LOST],
        torn=counts[Finding.TORN],
        twice=counts[Finding.TWICE],
        failures=tuple(failures[:SHOWN]),
        seconds=round(time.monotonic() - began_s, 1),
    )


def recorded(wish: Wish) -> list[Operation]:
    """What this work does to the files; raises DrivewayError."""
    with scratch() as made:
        return _record(wish, Path(made))[2]


def syncs_after_a_log_line(operations: list[Operation]) -> list[int]:
    """Which syncs, counted from 1, are those of the first commit after a log line, which has no sync of its own.

    One that fails there lets go of what a commit that is told of as good stands on.
    """
    found, is_logged, checkpoints = list[int](), False, syncs_before_a_checkpoint(operations)
    count = 0
    for one in operations:
        if one.kind in "SD":
            count += 1
            if is_logged and count not in checkpoints:
                found.append(count)
            is_logged = False
        elif one.kind == "N":
            is_logged |= msgspec.json.decode(one.data, type=Done).what in {"hand_in", "settle"}
    return found


def syncs_before_a_checkpoint(operations: list[Operation]) -> list[int]:
    """Which syncs, counted from 1, a checkpoint begins with because there are frames that no commit has synced."""
    wal, found, count = wal_of(Path(DATABASE)).name, list[int](), 0
    for before, one, after in zip(operations, operations[1:], operations[2:], strict=False):
        if one.kind in "SD":
            count += 1
            if (before.kind, before.name, after.kind, after.name) == ("W", wal, "W", DATABASE):
                found.append(count)
    return found


def together(name: str, runs: list[Outcome]) -> Outcome:
    """Several runs as one."""
    return Outcome(
        name=name,
        transactions=sum(run.transactions for run in runs),
        operations=sum(run.operations for run in runs),
        syncs=sum(run.syncs for run in runs),
        refusals=sum(run.refusals for run in runs),
        first_refusal=next((run.first_refusal for run in runs if run.first_refusal), ""),
        states=sum(run.states for run in runs),
        ok=sum(run.ok for run in runs),
        lost=sum(run.lost for run in runs),
        torn=sum(run.torn for run in runs),
        twice=sum(run.twice for run in runs),
        failures=tuple(failure for run in runs for failure in run.failures)[:SHOWN],
        seconds=round(sum(run.seconds for run in runs), 1),
    )


def _record(wish: Wish, near: Path) -> tuple[Path, Told, list[Operation]]:
    folder, log = near / "store", near / "log"
    folder.mkdir()
    asked = msgspec.structs.replace(wish, folder=str(folder))
    told = msgspec.json.decode(recorder.run("hil.powercut.work", asked, folder, log), type=Told)
    return folder, told, recorder.operations(log, folder)


async def _judge_all(
    operations: list[Operation], folder: Path, near: Path, how: tuple[int, int, int]
) -> tuple[Counter[Finding], list[str]]:
    counts, failures = Counter[Finding](), list[str]()
    for cut, image, acknowledged in _images(operations, folder, how):
        room = near / "image"
        room.mkdir()
        for name, content in image.items():
            (room / name).write_bytes(content)
        said = await judge(room, acknowledged)
        shutil.rmtree(room)
        counts[said.finding] += 1
        if said.finding is not Finding.OK:
            failures.append(f"after operation {cut}: {said.finding.value}: {said.detail}")
    return counts, failures


def _images(
    operations: list[Operation], folder: Path, how: tuple[int, int, int]
) -> Iterator[tuple[int, Image, list[Done]]]:
    """Each image once, with what had been acknowledged before it."""
    seed, samples, every = how
    disk, chance, acknowledged, seen = Disk(), random.Random(seed), list[Done](), set[bytes]()
    for cut, operation in enumerate(operations, 1):
        disk.apply(operation)
        if operation.kind == "N":
            acknowledged.append(msgspec.json.decode(operation.data, type=Done))
        sync_is_next = cut < len(operations) and operations[cut].kind in "SDF"
        if cut % every and not sync_is_next:
            continue
        for image in disk.images(chance, SAMPLES_AT_A_SYNC if sync_is_next else samples):
            digest = hashlib.blake2b(str(len(acknowledged)).encode(), digest_size=16)
            for name in sorted(image):
                digest.update(f"\0{name}\0{len(image[name])}\0".encode() + image[name])
            if digest.digest() not in seen:
                seen.add(digest.digest())
                yield cut, image, acknowledged
    there = {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith("-shm")}
    if disk.now() != there:
        raise DrivewayError("the recorder missed operations: its log does not lead to the files that are there")
