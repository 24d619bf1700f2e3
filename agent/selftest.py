"""The agent's test of what it needs, at start: until it passed, the gate is shut, and while it fails, `why` says what.

Cheap, and each step on the real thing: the unit's key certifies a session, and its signature holds; the ledger's leaves
lead to the head that was committed with the last of them; the disk takes a write; boot time advances; the computer is
read; a worker could be started (whether it finds its engine and its accelerator is for a survey to say:
`agent.inference.accelerator`). A failure says what to do about it, and is tried again every minute. After the first
pass the test is over: what fails later has its own gate (storage, temperature) or ends a lease.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.core.events import ComputeSeen, SelfTested
from agent.errors import DrivewayError, LedgerDamagedError, WorkerError
from agent.ports import Clock, Emit
from agent.store import Store, StoreThread

NOT_YET = "it has not run yet"
"""The problem until the first test is over."""
RETRY_S = 60.0
CLOCK_S = 0.05
READING_S = 5.0
READING_POLL_S = 0.05
LEAVES_AT_ONCE = 500
"""So many leaves are hashed between two turns of the store: slices are not kept waiting by a long ledger."""


class SelfTest:
    """A source (`agent.ports.Source`) of SelfTested. `reading` is the last reading of the computer, if there is one."""

    def __init__(
        self,
        *,
        clock: Clock,
        store: StoreThread,
        begin_session: Callable[[], Awaitable[None]],
        reading: Callable[[], ComputeSeen | None],
        python: str = sys.executable,
        socket_unit: Path | None = None,
    ) -> None:
        self._clock, self._store, self._begin_session = clock, store, begin_session
        self._reading, self._python, self._socket_unit = reading, python, socket_unit

    async def run(self, emit: Emit) -> None:
        """Test until it has passed once."""
        while problem := await self.test():
            emit(SelfTested(at_ms=self._clock.boot_ms(), problem=problem))
            await asyncio.sleep(RETRY_S)
        emit(SelfTested(at_ms=self._clock.boot_ms(), problem=""))

    async def test(self) -> str:
        """Every step once: what is wrong and what to do about it, empty when all is well."""
        steps: tuple[Callable[[], Awaitable[None]], ...] = (
            self._disk_writes,
            self.ledger_holds,
            self._clock_advances,
            self._worker_could_start,
            self._computer_is_read,
            self._key_certifies,
        )
        problems = list[str]()
        sound = True
        for step in steps:
            if step is steps[-1] and not sound:
                break  # a session's certificate would become a leaf of a ledger that does not hold
            try:
                await step()
            except Exception as error:  # noqa: BLE001 - a bug in a step, or in a key's driver, is a failed test too
                known = isinstance(error, DrivewayError)
                problems.append(str(error) if known else f"the step {step.__name__.strip('_')} broke off: {error!r}")
                sound = sound and step not in steps[:2]
        return ". Also: ".join(problems)

    async def again(self) -> dict[str, str]:
        """Every step but the session's, which has begun: its name, and what is wrong ("": nothing). For `doctor`."""
        found = {}
        steps = (self._disk_writes, self.ledger_holds, self._clock_advances, self._worker_could_start)
        for step in (*steps, self._computer_is_read):
            try:
                await step()
                problem = ""
            except Exception as error:  # noqa: BLE001 - as in `test`
                problem = str(error) if isinstance(error, DrivewayError) else f"it broke off: {error!r}"
            found[step.__name__.strip("_")] = problem
        return found

    async def _key_certifies(self) -> None:
        await self._begin_session()

    async def _disk_writes(self) -> None:
        await self._store.call(Store.probe)

    async def ledger_holds(self) -> None:
        """From the leaves' own bytes to the root that was committed with the last of them."""
        head, held = await self._store.call(lambda store: (store.stored_head(), store.ledger_head()))
        wrong = None if head == held else held.size
        for first in range(0, held.size, LEAVES_AT_ONCE):
            found = await self._store.call(Store.wrong_leaf, first, LEAVES_AT_ONCE)
            wrong = wrong if found is None else found
            if found is not None:
                break
        if wrong is not None:
            raise LedgerDamagedError(f"its entries to {wrong} do not lead to the root that was written with them")

    async def _clock_advances(self) -> None:
        before_ms = self._clock.boot_ms()
        await asyncio.sleep(CLOCK_S)
        passed_ms = self._clock.boot_ms() - before_ms
        if passed_ms <= 0:
            raise DrivewayError(
                f"boot time does not advance ({passed_ms} ms in {CLOCK_S * 1000:.0f} ms)", hint="restart the computer"
            )

    async def _worker_could_start(self) -> None:
        if self._socket_unit is not None:
            if not self._socket_unit.is_socket() or not os.access(self._socket_unit, os.R_OK | os.W_OK):
                hint = "systemctl enable --now driveway-worker.socket"
                raise WorkerError(f"no workers are to be had on {self._socket_unit}", hint=hint)
        elif not os.access(self._python, os.X_OK):
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
