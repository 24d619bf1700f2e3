"""A lease's bulk data, from the core's order to the event that answers it: its input comes, its answers go.

Begun when the core asks for it, in its stack: what the core pauses afterwards is paused, whatever is waited for first.
Every order is answered, so that the core waits for no transfer that nobody does. The input of the lease at work is kept
here, sealed (`agent.sealed`), until its lease is handed in, another takes its place, or the daemon ends.
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass

from agent.core.effects import UploadSlice
from agent.core.events import LeaseOpened, LeaseRefused, SliceUploaded, TransferFailed
from agent.core.model import Grant, JobKey
from agent.errors import DrivewayError, FleetError, WorkerError
from agent.fleet.channel import Channel, PausedError, TransientError
from agent.inference.shelf import Shelf
from agent.ports import Clock, Emit
from agent.sealed import InputMemory
from agent.store import Store, StoreThread
from agent.transfers import Transfers

PASSING = (PausedError, TransientError, WorkerError)
"""Nothing is wrong with the input then: the link, or this computer's memory, has no room for it now."""


@dataclass(frozen=True)
class LeaseInput:
    """The input of the lease at work."""

    key: JobKey
    memory: InputMemory
    items: int


class Bulk:
    """Use from the event loop's thread."""

    def __init__(self, *, emit: Emit, clock: Clock, store: StoreThread, shelf: Shelf, transfers: Transfers) -> None:
        self._emit, self._clock, self._store, self._shelf, self._transfers = emit, clock, store, shelf, transfers
        self._input: LeaseInput | None = None
        self._opening: JobKey | None = None

    def pause(self) -> None:
        """End everything that was asked for until now."""
        self._transfers.pause()

    # --- inputs ---------------------------------------------------------------------------------------------------

    def input_of(self, key: JobKey) -> LeaseInput | None:
        """What this lease computes on, while it is at work."""
        return self._input if self._input is not None and self._input.key == key else None

    def forget(self, key: JobKey) -> None:
        """This lease is over: its input is not needed, and should it still come, not kept."""
        if self._opening == key:
            self._opening = None
        if self.input_of(key) is not None:
            self._take(None)

    def close(self) -> None:
        """Give back what is here."""
        self._opening = None
        self._take(None)

    def open_lease(self, grant: Grant) -> Coroutine[None, None, None]:
        """Make a lease durable and have its input here; answered by LeaseOpened or LeaseRefused. Raises StoreError."""
        self._opening = grant.key
        return self._open_lease(grant, self._transfers.channel())

    def refuse(self, key: JobKey, detail: str, *, transient: bool) -> None:
        """Say that a lease cannot be opened."""
        self._emit(LeaseRefused(at_ms=self._clock.boot_ms(), key=key, detail=detail, transient=transient))

    async def _open_lease(self, grant: Grant, channel: Channel) -> None:
        key = grant.key
        if not await self._store.call(Store.open_lease, grant, self._clock.wall_ms()):
            detail = "its nonce was used before: a replayed grant"
            self._emit(LeaseRefused(at_ms=self._clock.boot_ms(), key=key, detail=detail, replayed=True))
            return
        try:
            self._shelf.find(grant.package_sha256)
            memory = await self._transfers.input_of(channel, grant)
        except DrivewayError as error:
            self.refuse(key, str(error), transient=isinstance(error, PASSING))
            return
        if self._opening == key:
            self._opening = None
            self._take(LeaseInput(key, memory, grant.items))
        else:
            memory.close()  # the lease ended meanwhile, or another is being opened
        self._emit(LeaseOpened(at_ms=self._clock.boot_ms(), key=key))

    def _take(self, new: LeaseInput | None) -> None:
        """This is the input now; the one before is given back."""
        before, self._input = self._input, new
        if before is not None:
            before.memory.close()

    # --- answers --------------------------------------------------------------------------------------------------

    def upload(self, effect: UploadSlice) -> Coroutine[None, None, None]:
        """Have a slice's answers where they belong; answered by SliceUploaded or TransferFailed, whatever happens."""
        return self._upload(effect, self._transfers.channel())

    async def _upload(self, effect: UploadSlice, channel: Channel) -> None:
        try:
            stored = await self._store.call(Store.to_upload, effect.key, effect.index)
            if stored is None:  # settled meanwhile
                self._upload_failed(effect, "the slice's answers are gone")
                return
            url, token = (effect.url, effect.token) if effect.url else (stored.url, stored.token)
            await self._transfers.bring(channel, url, token, stored.output)
        except FleetError as error:
            self._upload_failed(effect, str(error), paused=isinstance(error, PausedError))
        except Exception as error:
            self._upload_failed(effect, repr(error))
            raise
        else:
            self._emit(SliceUploaded(at_ms=self._clock.boot_ms(), key=effect.key, index=effect.index))

    def _upload_failed(self, effect: UploadSlice, detail: str, *, paused: bool = False) -> None:
        now_ms = self._clock.boot_ms()
        self._emit(TransferFailed(at_ms=now_ms, key=effect.key, index=effect.index, detail=detail, paused=paused))
