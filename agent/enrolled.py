"""What is kept of being enrolled: the dispatcher's answer, a succession that it has not answered, and keys to remove.

    enrolled.json      the dispatcher's last answer (`agent.fleet.messages.Enrolled`): which key of this unit it knows
    succession.json    the envelope in which the unit's key hands over, from before it is sent until it counts
    retired-keys.json  the keys that handed over and are still where they were (`agent.retiring`)

A power cut may come at any moment (`agent.rotation`). Which key is the unit's is then told by these two and by what is
remembered of the key (`unit-key.json`), without asking anybody (`settle`): the next one, if the answer names it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from agent.errors import TrustError
from agent.fleet.enrolment_messages import Enrolled
from agent.fleet.messages import MessageError, decode, encode
from agent.log import logger
from agent.trust import dsse
from agent.trust.dsse import MAX_BYTES
from agent.trust.hardware import KnownKey
from agent.trust.keyring import remember, successor, write_whole
from agent.trust.records import Sha256, read, spell
from agent.trust.succession import parse_succession

ENROLLED = "enrolled.json"
PENDING = "succession.json"
RETIRED = "retired-keys.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetiredKey:
    """A key of the unit that handed over. `ends_wall_ms` is when its overlap ends, by this computer's wall clock."""

    epoch: int
    keyid: Sha256
    ends_wall_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Retired:
    keys: tuple[RetiredKey, ...]


def kept(folder: Path) -> Enrolled | None:
    """The dispatcher's last answer, None before the first; raises TrustError when it cannot be read."""
    path = folder / ENROLLED
    try:
        return decode(path.read_bytes(), Enrolled)
    except FileNotFoundError:
        return None
    except (OSError, MessageError) as error:
        raise TrustError(f"{path} is damaged: {error}", hint="remove it to enrol again") from error


def keep(folder: Path, enrolled: Enrolled) -> None:
    """Write the dispatcher's answer down; raises TrustError."""
    write_whole(folder / ENROLLED, encode(enrolled))


def pending(folder: Path) -> bytes | None:
    """The succession that the dispatcher has not answered yet; raises TrustError when it cannot be read."""
    try:
        with (folder / PENDING).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrustError(f"{folder / PENDING} cannot be read: {error.strerror}") from error


def forget_pending(folder: Path) -> None:
    """It counts now, or never will; raises TrustError."""
    try:
        (folder / PENDING).unlink(missing_ok=True)
    except OSError as error:
        raise TrustError(f"{folder / PENDING} cannot be removed: {error.strerror}") from error


def retired(folder: Path) -> tuple[RetiredKey, ...]:
    """The keys that handed over and are not known to be removed; raises TrustError when that cannot be read."""
    path = folder / RETIRED
    try:
        with path.open("rb") as file:
            return read(_Retired, file.read(MAX_BYTES + 1), RETIRED).keys
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise TrustError(f"{path} cannot be read: {error.strerror}") from error


def write_retired(folder: Path, keys: tuple[RetiredKey, ...]) -> None:
    """Write them down, whole or not at all; raises TrustError."""
    write_whole(folder / RETIRED, spell(_Retired(keys=keys)))


def settle(folder: Path, known: KnownKey, *, unit: str, wall_ms: int | None = None) -> KnownKey:
    """Which key is the unit's: the known one or, where the dispatcher has taken its successor, that; raises TrustError.

    What was left half done is finished: the successor is remembered, the key before it is to be removed when the
    overlap ends (counted from `wall_ms`, default: now), and a succession that is over is forgotten.
    """
    envelope, enrolled = pending(folder), kept(folder)
    if envelope is None:
        return known
    try:
        following = successor(known, envelope, unit=unit)
    except TrustError as error:
        if enrolled is None or enrolled.keyid != known.keyid:
            raise
        logger().info("succession_is_over", epoch=known.epoch, detail=error.what)
        forget_pending(folder)
        return known
    if enrolled is None or enrolled.keyid != following.keyid:
        return known
    _retire(folder, known, envelope, int(time.time() * 1000) if wall_ms is None else wall_ms)
    remember(folder, following)
    forget_pending(folder)
    return following


def _retire(folder: Path, known: KnownKey, envelope: bytes, wall_ms: int) -> None:
    """Note that a key handed over, unless that is noted; from before its successor counts, so nothing forgets it."""
    before = retired(folder)
    if all(one.epoch != known.epoch for one in before):
        ends_ms = wall_ms + 1000 * parse_succession(dsse.parse(envelope).payload).overlap_s
        write_retired(folder, (*before, RetiredKey(epoch=known.epoch, keyid=known.keyid, ends_wall_ms=ends_ms)))
