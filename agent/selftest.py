"""The agent's test of what it needs, at start: until it passed, the gate is shut, and while it fails, `why` says what.

Cheap, and each step on the real thing: the key signs and its signature holds; the ledger's leaves lead to the head that
was committed with the last of them; the disk takes a write; boot time advances; the computer is read; a worker could be
started (whether it finds its engine and its accelerator is for a survey to say: `agent.inference.accelerator`). A
failure says what to do about it, and is tried again every minute. After the first pass the test is over: what fails
later has its own gate (storage, temperature) or ends a lease.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable

from agent.core.events import ComputeSeen, SelfTested
from agent.errors import DrivewayError, StoreError, TrustError, WorkerError
from agent.ports import Clock, Emit, Signer
from agent.rows import LedgerHead
from agent.store import Store, StoreThread
from agent.trust import dsse
from agent.trust.keys import load_public_key
from agent.trust.merkle import Tree

NOT_YET = "it has not run yet"
"""The problem until the first test is over."""
RETRY_S = 60.0
CLOCK_S = 0.05
READING_S = 5.0
READING_POLL_S = 0.05
LEAVES_AT_ONCE = 500
"""So many leaves are hashed between two turns of the store: slices are not kept waiting by a long ledger."""
PROBE_TYPE = "application/vnd.driveway.self-test"
"""A payload type of its own, so that what is signed here can pass for nothing else."""
PROBE = b"driveway self test"


class SelfTest:
    """A source (`agent.ports.Source`) of SelfTested. `reading` is the last reading of the computer, if there is one."""

    def __init__(
        self,
        *,
        clock: Clock,
        store: StoreThread,
        signer: Signer,
        reading: Callable[[], ComputeSeen | None],
        python: str = sys.executable,
    ) -> None:
        self._clock, self._store, self._signer = clock, store, signer
        self._reading, self._python = reading, python

    async def run(self, emit: Emit) -> None:
        """Test until it has passed once."""
        while problem := await self.test():
            emit(SelfTested(at_ms=self._clock.boot_ms(), problem=problem))
            await asyncio.sleep(RETRY_S)
        emit(SelfTested(at_ms=self._clock.boot_ms(), problem=""))

    async def test(self) -> str:
        """Every step once: what is wrong and what to do about it, empty when all is well."""
        steps: tuple[Callable[[], Awaitable[None]], ...] = (
            self._key_signs,
            self._disk_writes,
            self._ledger_holds,
            self._clock_advances,
            self._worker_could_start,
            self._computer_is_read,
        )
        problems = []
        for step in steps:
            try:
                await step()
            except DrivewayError as error:
                problems.append(str(error))
            except Exception as error:  # noqa: BLE001 - a bug in a step, or in a key's driver, is a failed test too
                problems.append(f"the step {step.__name__.strip('_')} broke off: {error!r}")
        return ". Also: ".join(problems)

    async def _key_signs(self) -> None:
        """Not on the loop's thread: a hardware key takes a while."""
        try:
            await asyncio.to_thread(self._sign_and_verify)
        except Exception as error:
            raise TrustError(
                f"the signing key ({self._signer.protection}) does not work: {error}",
                hint="restore the key, or enrol this unit with a new one",
            ) from error

    def _sign_and_verify(self) -> None:
        envelope = dsse.sign(PROBE_TYPE, PROBE, self._signer)
        key = load_public_key(self._signer.public_key_pem())
        dsse.verify(envelope, PROBE_TYPE, {self._signer.keyid: key})

    async def _disk_writes(self) -> None:
        await self._store.call(Store.probe)

    async def _ledger_holds(self) -> None:
        """From the leaves' own bytes to the root that was committed with the last of them."""
        head, held = await self._store.call(lambda store: (store.stored_head(), store.ledger_head()))
        tree = Tree()
        while head is not None and tree.size < head.size:
            hashes = await self._store.call(Store.leaf_hashes, tree.size, min(LEAVES_AT_ONCE, head.size - tree.size))
            if not hashes:
                break
            for digest in hashes:
                tree.append(digest)
        if head != held or LedgerHead(tree.size, tree.root().hex()) != head:
            raise StoreError(
                f"the ledger was changed: its {tree.size} leaves do not lead to the root that was written with them",
                hint="restore driveway.db from a copy, or ask the fleet operator to enrol this unit anew",
            )

    async def _clock_advances(self) -> None:
        before_ms = self._clock.boot_ms()
        await asyncio.sleep(CLOCK_S)
        passed_ms = self._clock.boot_ms() - before_ms
        if passed_ms <= 0:
            raise DrivewayError(
                f"boot time does not advance ({passed_ms} ms in {CLOCK_S * 1000:.0f} ms)", hint="restart the computer"
            )

    async def _worker_could_start(self) -> None:
        if not os.access(self._python, os.X_OK):
            raise WorkerError(f"the interpreter {self._python} cannot be executed", hint="install driveway-agent again")
        try:
            os.close(os.pidfd_open(os.getpid()))
            os.close(os.memfd_create("self-test"))
        except OSError as error:
            raise WorkerError(
                f"a worker cannot be watched or fed: {error.strerror}", hint="the kernel must allow pidfd and memfd"
            ) from error

    async def _computer_is_read(self) -> None:
        """The reader speaks, if only to say that there is no reading; that is the temperature gate's to judge."""
        for _ in range(round(READING_S / READING_POLL_S)):
            if self._reading() is not None:
                return
            await asyncio.sleep(READING_POLL_S)
        raise DrivewayError(
            f"the computer's reader said nothing in {READING_S:.0f} s", hint="check [computer] in the configuration"
        )
