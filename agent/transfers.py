"""Bulk data in both directions, as the leases need it: a lease's input comes, answers that fit no message go.

One upload at a time; a pause ends everything at once, and what is asked for later goes on from where it was. A transfer
belongs to the moment at which it was asked for (`channel`): a pause ends it too where it has not even begun. The time
for an input is what the lease can spare: its own, less what the work takes.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.core.model import Grant, SealedInput
from agent.errors import DrivewayError, FleetError
from agent.fleet.channel import Channel, Cut, Moved, Web
from agent.fleet.desk import sealed_object
from agent.fleet.messages import UploadRef
from agent.fleet.objects import ObjectWanted, fetch
from agent.fleet.partials import Opening, Partials
from agent.fleet.retry import Patience
from agent.fleet.uploads import put
from agent.sealed import InputMemory
from agent.trust.sealing import Opener, SealError, SealFault
from agent.trust.sealing_key import SealingKeys

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
    """A small input that came with its grant, by its digest or, sealed, its name."""
    sealing: SealingKeys | None = None
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
        """The input of a lease, which the caller closes.

        Raises FleetError, SealError for one that does not open, and WorkerError when there is no memory.
        """
        if grant.input_sealed is None:
            here = self.inline(grant.input_sha256)
            if here is not None:
                return InputMemory.holding(here)  # a few KiB
            wanted = ObjectWanted(grant.input_url, grant.input_sha256, grant.input_bytes)
        else:
            opening = self._opening(grant, grant.input_sealed)
            here = self.inline(sealed_object(grant).name)
            if here is not None:
                return _opened(here, opening, grant.input_sha256)
            wanted = ObjectWanted.sealed(grant.input_url, sealed_object(grant), opening)
        try:
            return await fetch(channel, self.partials, wanted, self.input_patience(grant))
        finally:
            self.on_end()

    def _opening(self, grant: Grant, sealed: SealedInput) -> Opening:
        """Opens the lease's input, which is sealed to this unit; raises SealError."""
        if self.sealing is None:
            raise SealError(SealFault.UNSUPPORTED, f"the input of {grant.key} is sealed, and this unit opens none")
        what = sealed_object(grant)
        content_key = self.sealing.content_key(sealed.wrapped_key, sealed.keyid, what)
        return lambda take: Opener(content_key, what, take)

    async def bring(self, channel: Channel, url: str, token: str, answers: bytes) -> None:
        """Have a slice's answers where the grant said; raises FleetError."""
        async with self._uploading:
            try:
                await put(channel, UploadRef(url=url, token=token), answers, self.upload_patience)
            finally:
                self.on_end()


def _opened(body: bytes, opening: Opening, sha256: str) -> InputMemory:
    """A small sealed input, opened; raises SealError, FleetError, and WorkerError when there is no memory."""
    memory, digest = InputMemory(), hashlib.sha256()

    def take(plain: memoryview) -> None:
        memory.add(plain)
        digest.update(plain)

    opener = opening(take)
    try:
        opener.add(body)
        opener.finish()
        if digest.hexdigest() != sha256:
            raise FleetError(f"a sealed input has another SHA-256 than the {sha256[:16]}… that was promised")
        memory.seal()
    except DrivewayError:
        memory.close()
        raise
    finally:
        opener.close()
    return memory
