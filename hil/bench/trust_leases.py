"""What trust takes of a lease: processor time beside its work, and the waits for the disk.

A real store on this disk, behind its thread as in the daemon. A lease has slices of about a second, for which this
process sleeps, as the daemon does while its worker computes; so caches are as cold as they would be. Processor time is
this process's own, all of its threads, from the opened lease to its closed books:

* `hashing`: raw results and answers of each slice, in the worker, and the answers once more in the daemon; the making
  of the answers' JSON is in it;
* `signing`: the hand-in as `agent.handin` builds it, from slices read back to statement, envelope and message;
* `checkpoint`: one with every lease, signed by a key in a file; a car signs one after 64 leaves or ten minutes;
* `verifying`: the signed verdict, which carries the next grant;
* `committing`: everything of the store: SQLite, the ledger's nodes and roots, without what is signed in between.

What the kernel's own threads spend on the disk is nobody's, and is not in it.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import msgspec

from agent.core.model import Spent, Verdict
from agent.rows import HandInRow, StoredSlice
from agent.store import Store, StoreThread
from agent.trust import bundle, dsse
from hil.bench.trust_work import WALL_MS, Latency, Spread, Work, latency, spread

SLICES = 20
SLICE_S = 1.0
HASHING, SIGNING, CHECKPOINT, VERIFYING, COMMITTING = "hashing", "signing", "checkpoint", "verifying", "committing"
PARTS = (HASHING, SIGNING, CHECKPOINT, VERIFYING, COMMITTING)

T = TypeVar("T")


class LeaseCpu(msgspec.Struct, frozen=True, kw_only=True):
    """Processor time of a lease by part, and all of it in percent of one core over the seconds that its slices compute.

    Not over what the lease lasted: that is longer on a busy machine, and would make the share look smaller.
    """

    share_percent: Spread
    parts_ms: dict[str, Spread]


class Books:
    """One lease after the other into a store, with what each step took."""

    def __init__(self, work: Work, store: StoreThread) -> None:
        self._work, self._store = work, store
        self._number = 0
        self.cpu_ms: dict[str, float] = defaultdict(float)
        self.wall_ms: dict[str, list[float]] = defaultdict(list)

    async def begin(self) -> None:
        """The session's certificate is the log's first leaf."""
        number = await self._store.call(Store.next_session, 1)
        await self._store.call(Store.add_session, number, self._work.session.certificate)

    async def lease(self, slices: int, slice_s: float) -> None:
        """One lease from its grant to its verdict, with a pause of `slice_s` for each slice's computing."""
        self._number += 1
        grant = self._work.grant(self._number, slices)
        await self._committed("open_lease", self._store.call(Store.open_lease, grant, WALL_MS))
        for index in range(slices):
            await asyncio.sleep(slice_s)
            began_s = time.process_time()
            stored = self._work.take(self._work.compute(self._number, index))
            self._count(HASHING, began_s)
            spent = Spent((index + 1) * 8_000, 0)
            await self._committed("add_slice", self._store.call(Store.add_slice, grant.key, stored, spent))
        signing_before_ms = self.cpu_ms[SIGNING]

        def build(counter: int, log_index: int, kept: list[StoredSlice]) -> HandInRow:
            began_s = time.process_time()
            row = self._work.hand_in(grant, counter, log_index, kept)
            self._count(SIGNING, began_s)
            return row

        spent = Spent(slices * 8_000, 0)
        call = self._store.call(Store.hand_in, grant, why=None, spent=spent, wall_ms=WALL_MS, build=build)
        handed_in = await self._committed("hand_in", call)
        self.cpu_ms[COMMITTING] -= self.cpu_ms[SIGNING] - signing_before_ms
        envelope = await asyncio.to_thread(self._work.verdict, grant, handed_in.statement_sha256)
        began_s = time.process_time()
        dsse.verify(envelope, bundle.VERDICT_TYPE, self._work.witness_keys)
        self._count(VERIFYING, began_s)
        call_settle = self._store.call(
            Store.settle, grant.key, verdict=Verdict.SETTLED, reason="", paid_micro=1, envelope=envelope
        )
        await self._committed("settle", call_settle)

    async def checkpoint(self) -> None:
        """Sign one over the log as it is, and keep it."""
        head = await self._store.call(Store.ledger_head)
        began_s = time.process_time()
        said, envelope = self._work.checkpoint(head.size, head.root)
        self._count(CHECKPOINT, began_s)
        await self._committed("add_checkpoint", self._store.call(Store.add_checkpoint, said, envelope, WALL_MS))

    async def _committed(self, step: str, call: Awaitable[T]) -> T:
        began_s, cpu_s = time.perf_counter(), time.process_time()
        result = await call
        self._count(COMMITTING, cpu_s)
        self.wall_ms[step].append((time.perf_counter() - began_s) * 1000)
        return result

    def _count(self, part: str, began_s: float) -> None:
        self.cpu_ms[part] += (time.process_time() - began_s) * 1000


async def measure_cpu(
    work: Work, folder: Path, rounds: int, slices: int = SLICES, slice_s: float = SLICE_S
) -> LeaseCpu:
    """A lease a round, at the pace of its slices, into one store."""
    parts, shares = defaultdict[str, list[float]](list), []
    store = StoreThread(folder / "cpu" / "driveway.db")
    await store.open()
    try:
        books = Books(work, store)
        await books.begin()
        await books.lease(1, 0.0)  # what is imported and allocated once
        for _ in range(rounds):
            books.cpu_ms.clear()
            await books.lease(slices, slice_s)
            await books.checkpoint()
            for part in PARTS:
                parts[part].append(books.cpu_ms[part])
            shares.append(100 * sum(books.cpu_ms.values()) / (slices * slice_s * 1000))
    finally:
        await store.close()
    return LeaseCpu(share_percent=spread(shares), parts_ms={part: spread(took) for part, took in parts.items()})


async def measure_commits(work: Work, folder: Path, rounds: int, leases: int) -> dict[str, Latency]:
    """Waits for each commit, as the event loop sees them, by step; so many leases of two slices a round, unpaced."""
    took: dict[str, list[list[float]]] = defaultdict(list)
    store = StoreThread(folder / "commits" / "driveway.db")
    await store.open()
    try:
        books = Books(work, store)
        await books.begin()
        for _ in range(rounds):
            books.wall_ms = defaultdict(list)
            for _ in range(leases):
                await books.lease(2, 0.0)
            for step, waits in books.wall_ms.items():
                took[step].append(waits)
    finally:
        await store.close()
    return {step: latency(all_rounds) for step, all_rounds in took.items()}


def disk_of(folder: Path) -> str:
    """The kind of file system that the store was on, which decides what a commit costs; "?" where it is not told."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text("utf-8").splitlines()]
    over = [(len(one[1]), one[2]) for one in mounts if folder.resolve().is_relative_to(one[1])]
    return max(over, default=(0, "?"))[1]
