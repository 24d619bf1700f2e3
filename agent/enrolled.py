"""What is kept of being enrolled: the dispatcher's answer, and a succession that it has not answered yet.

    enrolled.json     the dispatcher's last answer (`agent.fleet.messages.Enrolled`): which key of this unit it knows
    succession.json   the envelope in which the unit's key hands over, from before it is sent until it counts

A power cut may come at any moment (`agent.rotation`). Which key is the unit's is then told by these two and by what is
remembered of the key (`unit-key.json`), without asking anybody (`settle`): the next one, if the answer names it.
"""

from __future__ import annotations

from pathlib import Path

from agent.errors import TrustError
from agent.fleet.messages import Enrolled, MessageError, decode, encode
from agent.log import logger
from agent.trust.dsse import MAX_BYTES
from agent.trust.hardware import KnownKey
from agent.trust.keyring import remember, successor, write_whole

ENROLLED = "enrolled.json"
PENDING = "succession.json"


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


def settle(folder: Path, known: KnownKey, *, unit: str) -> KnownKey:
    """Which key is the unit's: the known one or, where the dispatcher has taken its successor, that; raises TrustError.

    What was left half done is finished: the successor is remembered, and a succession that is over is removed.
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
    remember(folder, following)
    forget_pending(folder)
    return following
