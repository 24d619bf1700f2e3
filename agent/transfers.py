"""Bulk data in both directions, as the leases need it: a lease's input comes, answers that fit no message go.

One upload at a time; a pause ends everything at once, and what is asked for later goes on from where it was. A transfer
belongs to the moment at which it was asked for (`channel`): a pause ends it too where it has not even begun. The time
for an input is what the lease can spare: its own, less what the work takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.core.model import Grant
from agent.fleet.channel import Channel, Cut, Moved, Web
from agent.fleet.messages import UploadRef
from agent.fleet.objects import ObjectWanted, fetch
from agent.fleet.partials import Partials
from agent.fleet.retry import Patience
from agent.fleet.uploads import put
from agent.sealed import InputMemory

UPLOAD_PATIENCE = Patience(for_s=300.0)


def input_patience(grant: Grant) -> Patience:
    """Half of the lease where nobody said how long the work takes; else what the work leaves."""
    work_ms = grant.expected_ms or grant.ttl_ms // 2
    return Patience(for_s=max(0, grant.ttl_ms - work_ms) / 1000)


@dataclass
class Transfers:
    """Use from the event loop's thread. `on_end` is called after each transfer, whatever came of it."""

    web: Web
    partials: Partials
    moved: Moved = field(default_factory=Moved)
    on_end: Callable[[], None] = lambda: None
    inline: Callable[[str], bytes | None] = lambda _sha256: None
    """A small input that came with its grant, by its digest."""
    input_patience: Callable[[Grant], Patience] = input_patience
    upload_patience: Patience = UPLOAD_PATIENCE

    def __post_init__(self) -> None:
        self._cut = Cut()
        self._uploading = asyncio.Lock()

    def channel(self) -> Channel:
        """How a transfer goes that is asked for now: take it before anything is waited for, lest a pause miss it."""
        return Channel(self.web, self._cut, self.moved)

    def pause(self) -> None:
        """End what was asked for until now: it raises PausedError."""
        asked_for, self._cut = self._cut, Cut()
        asked_for.now()

    async def input_of(self, channel: Channel, grant: Grant) -> InputMemory:
        """The input of a lease, which the caller closes; raises FleetError, and WorkerError when there is no memory."""
        here = self.inline(grant.input_sha256)
        if here is not None:
            return InputMemory.holding(here)  # a few KiB
        wanted = ObjectWanted(grant.input_url, grant.input_sha256, grant.input_bytes)
        try:
            return await fetch(channel, self.partials, wanted, self.input_patience(grant))
        finally:
            self.on_end()

    async def bring(self, channel: Channel, url: str, token: str, answers: bytes) -> None:
        """Have a slice's answers where the grant said; raises FleetError."""
        async with self._uploading:
            try:
                await put(channel, UploadRef(url=url, token=token), answers, self.upload_patience)
            finally:
                self.on_end()
