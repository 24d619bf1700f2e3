"""The object store in virtual time: inputs are fetched from it, answers that fit no message are brought to it.

What takes uploads is the dispatchers' own code, on files in memory; what is not there is HTTP. An upload goes in two
pieces, so it can be cut off in the middle, and goes on from what has arrived. A connection fails with a chance, or is
not there at all; patience is the transfer's own.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable

from agent.core.model import Grant
from agent.errors import FleetError
from agent.fleet.channel import PausedError
from agent.sealed import InputMemory
from agent.transfers import UPLOAD_PATIENCE, input_patience
from hil.dispatcher.ranges import Span
from hil.dispatcher.uploads import UploadRefusedError, Uploads

LATENCY_MS = (20.0, 250.0)
BYTES_PER_MS = 2_000.0
RETRY_MS = (1_000.0, 15_000.0)


class ObjectStore:
    """Inputs, by digest, and what takes the answers."""

    def __init__(self, uploads: Uploads) -> None:
        self.inputs: dict[str, bytes] = {}
        self.uploads = uploads

    def put(self, body: bytes) -> str:
        """Have an input there; its digest."""
        sha256 = hashlib.sha256(body).hexdigest()
        self.inputs[sha256] = body
        return sha256


class SimulatedTransfers:
    """See `agent.transfers.Transfers`; a channel is the number of pauses so far. `fails`: the chance of a connection.

    `inline` has the small inputs that came with their grants.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        inline: Callable[[str], bytes | None],
        chance: random.Random,
        wait: Callable[[float], Awaitable[None]],
        now_ms: Callable[[], float],
        fails: Callable[[], float],
    ) -> None:
        self._store, self._inline, self._chance, self._wait = store, inline, chance, wait
        self._now_ms, self._fails = now_ms, fails
        self._pauses = 0
        self._uploading = asyncio.Lock()

    def channel(self) -> int:
        """What is asked for now belongs to it."""
        return self._pauses

    def pause(self) -> None:
        """End what was asked for until now."""
        self._pauses += 1

    async def input_of(self, channel: int, grant: Grant) -> InputMemory:
        """The input of a lease; raises FleetError."""
        here = self._inline(grant.input_sha256)
        if here is not None:
            return InputMemory.holding(here)
        ends_ms = self._now_ms() + 1000 * input_patience(grant).for_s
        while True:
            await self._step(channel, grant.input_bytes)
            if self._chance.random() >= self._fails():
                body = self._store.inputs.get(grant.input_sha256)
                if body is None or len(body) != grant.input_bytes:
                    raise FleetError(f"GET {grant.input_url} was answered 404")
                return InputMemory.holding(body)
            await self._again(channel, ends_ms)

    async def bring(self, channel: int, _url: str, token: str, answers: bytes) -> None:
        """Have a slice's answers there; raises FleetError."""
        ends_ms = self._now_ms() + 1000 * UPLOAD_PATIENCE.for_s
        async with self._uploading:
            while True:
                await self._step(channel, 0)
                if self._chance.random() < self._fails():
                    await self._again(channel, ends_ms)
                elif await self._piece(channel, token, answers):
                    return

    async def _piece(self, channel: int, token: str, answers: bytes) -> bool:
        """Ask how much is there, and send half of the whole, or what is left; whether all of it is there then."""
        sha256, length = hashlib.sha256(answers).hexdigest(), len(answers)
        try:
            offset = self._store.uploads.offset(token, sha256)
            if offset == length:
                return True
            last = min(length, offset + (length + 1) // 2) - 1
            await self._step(channel, last - offset)
            piece = iter((answers[offset : last + 1],))
            span = Span(first=offset, last=last, length=length)
            return self._store.uploads.receive(token, sha256, span, lambda _most: next(piece, b"")) == length
        except UploadRefusedError as error:
            raise FleetError(f"the upload was answered {error.status}: {error.what}") from error

    async def _step(self, channel: int, size: int) -> None:
        await self._wait(self._chance.uniform(*LATENCY_MS) + size / BYTES_PER_MS)
        if channel != self._pauses:
            raise PausedError("the transfer was paused")

    async def _again(self, channel: int, ends_ms: float) -> None:
        await self._wait(self._chance.uniform(*RETRY_MS))
        if channel != self._pauses:
            raise PausedError("the transfer was paused")
        if self._now_ms() >= ends_ms:
            raise FleetError("the server cannot be reached")
