"""Fetching bulk data by URL and digest: nothing is used that is not, to the byte, what the signed grant named.

    partial file, if there is one --Range: bytes=n-  -->  206: goes on there
                                                     -->  200: the server knows no ranges; what is here is skipped
                                                     -->  416, another range: from the beginning
    5xx, 429, connection lost --back-off-->  again from where it broke off
    whole --> digest: right: handed on / wrong: dropped; told, or fetched anew if a part was from an earlier time

The length is known from the grant and read no further; the digest is checked before the bytes are handed on. The name
of an object is its digest, so there is nothing to be compared (ETag) before a part is resumed. What has arrived stays
(`agent.fleet.partials`) when the transfer is cut off (`Cut`), fails, or the computer goes.

The bytes go from the socket into sealed memory piece by piece, on the transfer's thread, and it is this memory that is
handed on: the event loop never waits for a copy of them.
"""

from __future__ import annotations

import asyncio
import http
import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

from agent.errors import FleetError
from agent.fleet.channel import Channel, Cut, PausedError, TransientError
from agent.fleet.https import CHUNK_BYTES, Answer, Connection
from agent.fleet.partials import Opening, Partial, Partials
from agent.fleet.retry import Patience, Retry
from agent.sealed import InputMemory
from agent.trust.sealing import CHUNK_BYTES as OPENED_BYTES
from agent.trust.sealing import SEALED_CHUNK_BYTES, SealedObject, SealError

MAX_OBJECT_BYTES = 64 * 1024 * 1024
MAX_SEALED_BYTES = MAX_OBJECT_BYTES // OPENED_BYTES * SEALED_CHUNK_BYTES
CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15}|\*)")
LINGER_S = 1.0
"""A thread that waits for a name to be resolved cannot be cut; it is left to itself after so long."""

Result = TypeVar("Result")


class ObjectWanted(msgspec.Struct, frozen=True):
    """What a grant named: where it is, what it must hash to, and how long it is.

    With `opening` it comes sealed: `length` is that of the sealed bytes, `name` theirs, `sha256` of what is in them.
    """

    url: str
    sha256: str
    length: int
    name: str = ""
    opening: Opening | None = None

    @classmethod
    def sealed(cls, url: str, what: SealedObject, opening: Opening) -> ObjectWanted:
        """One that comes sealed."""
        return cls(url, what.sha256, what.sealed_bytes, what.name, opening)

    @property
    def shown(self) -> str:
        """Where it is, for people: without the query, which may hold a secret."""
        return self.url.partition("?")[0]


async def fetch(channel: Channel, partials: Partials, wanted: ObjectWanted, patience: Patience) -> InputMemory:
    """The object, sealed; the caller closes it.

    Raises FleetError that names the URL and what was wrong (never what the server said), of which PausedError is a cut,
    also one from before; SealError for what does not open; and WorkerError when there is no memory for it.
    """
    most = MAX_OBJECT_BYTES if wanted.opening is None else MAX_SEALED_BYTES
    if wanted.length > most:
        raise FleetError(f"the object {wanted.shown} is {wanted.length} bytes, more than the {most} that are fetched")
    return await on_thread(channel.cut, lambda: _download(channel, partials, wanted, patience))


async def on_thread(cut: Cut, work: Callable[[], Result]) -> Result:
    """Run what blocks on a thread; it is cut when the caller is cancelled, and not waited for long once it is cut.

    Raises PausedError, also when it was cut before.
    """
    cut.check()
    job = asyncio.ensure_future(asyncio.to_thread(work))
    job.add_done_callback(lambda done: done.cancelled() or done.exception())  # looked at, also when nobody waits
    try:
        while not job.done():
            was_cut = cut.done
            await asyncio.wait({job}, timeout=LINGER_S)
            if was_cut and not job.done():
                raise PausedError("the transfer was paused")
        return job.result()
    except asyncio.CancelledError:
        cut.now()
        raise


def _download(channel: Channel, partials: Partials, wanted: ObjectWanted, patience: Patience) -> InputMemory:
    retry = Retry(patience, channel.cut)
    with partials.open(wanted.name or wanted.sha256, wanted.length, channel.cut, wanted.opening) as partial:
        retry.reached(partial.received)
        while True:
            try:
                if not partial.received or partial.received < wanted.length:
                    _attempt(channel, wanted, partial)
            except TransientError as error:
                retry.reached(partial.received)
                retry.wait(error)
                continue
            except SealError:
                if not partial.resumed:
                    partial.drop()
                    raise
                partial.restart()  # a power cut may have spoiled what was here before
                continue
            found = partial.sha256
            if found == wanted.sha256:
                return partial.whole()
            if not partial.resumed:
                partial.drop()
                raise FleetError(
                    f"the object {wanted.shown} has SHA-256 {found[:16]}…, {wanted.sha256[:16]}… was promised"
                )
            partial.restart()  # a power cut may have spoiled what was here before


def _attempt(channel: Channel, wanted: ObjectWanted, partial: Partial) -> None:
    """Fetch what is missing; raises TransientError where the next attempt may bring more."""
    with Connection(channel, wanted.url) as connection:
        here = partial.received
        answer = connection.exchange("GET", {"Range": f"bytes={here}-"} if here else {})
        first = _first(answer, wanted, partial)
        if answer.length is not None and answer.length != wanted.length - first:
            raise _another_length(wanted)
        skip = partial.received - first
        most = wanted.length - first
        while chunk := answer.read(min(CHUNK_BYTES, most + 1)):
            most -= len(chunk)
            if most < 0:
                raise _another_length(wanted)
            partial.add(chunk[skip:])
            skip = max(0, skip - len(chunk))
    if partial.received < wanted.length:
        raise TransientError(str(_another_length(wanted)))


def _first(answer: Answer, wanted: ObjectWanted, partial: Partial) -> int:
    """Which byte of the object the answer's body begins with; raises FleetError when that is of no use."""
    here = partial.received
    if answer.status == http.HTTPStatus.OK:
        return 0
    if here and answer.status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        partial.restart()
        raise TransientError(str(answer.refused()))
    if not here or answer.status != http.HTTPStatus.PARTIAL_CONTENT:
        raise answer.refused()
    given = CONTENT_RANGE.fullmatch(answer.header("Content-Range"))
    if given is None or int(given[1]) != here or int(given[2]) != wanted.length - 1:
        partial.restart()
        raise TransientError(f"GET {wanted.shown} was answered with another range than was asked for")
    if given[3] not in {"*", str(wanted.length)}:
        raise _another_length(wanted)
    return here


def _another_length(wanted: ObjectWanted) -> FleetError:
    return FleetError(f"the object {wanted.shown} is not the {wanted.length} bytes long that were promised")
