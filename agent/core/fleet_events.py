"""What the core is told by the fleet, and of the way to it: the link, signed words, and what became of what was sent.

A part of `agent.core.events.EventType`. Signatures, sizes and versions have been checked before (`agent.fleet.desk`).
"""

from __future__ import annotations

from agent.core.event import Event
from agent.core.model import Grant, JobKey, Pace, Verdict


class LinkChanged(Event, frozen=True, tag=True):
    """The MQTT link came up or went down."""

    connected: bool
    broker: str
    detail: str = ""


class GrantSeen(Event, frozen=True, tag=True):
    """A grant whose signature holds and which names this unit; `grant` is None when there is no work now."""

    rid: str
    grant: Grant | None
    retry_ms: int


class VerdictSeen(Event, frozen=True, tag=True):
    """The dispatcher's signed word on a hand-in, with the next grant if it had one."""

    key: JobKey
    verdict: Verdict
    reason: str
    paid_micro: int
    statement_sha256: str
    retry_ms: int
    envelope: bytes
    next_grant: Grant | None = None


class CancelSeen(Event, frozen=True, tag=True):
    """The dispatcher's signed word that it wants a lease back within `grace_ms`; what is finished still counts."""

    key: JobKey
    grace_ms: int
    why: str


class PaceSeen(Event, frozen=True, tag=True):
    """The operator's signed word on how fast this cell may go; it replaces an older one."""

    pace: Pace
    detail: str = ""


class HandInUndelivered(Event, frozen=True, tag=True):
    """The broker refused a hand-in, or (`poison`) hung up each time it was in flight: it waits long before the next."""

    key: JobKey
    detail: str
    poison: bool = False


class HandInNotSent(Event, frozen=True, tag=True):
    """The link did not take a hand-in (it is going down, or has too much to send): nobody has been told anything."""

    key: JobKey


class SliceUploaded(Event, frozen=True, tag=True):
    """A slice's answers are where the grant said, whole."""

    key: JobKey
    index: int


class TransferFailed(Event, frozen=True, tag=True):
    """A slice's answers could not be brought there, or were `paused` on the way; what arrived stays there."""

    key: JobKey
    index: int
    detail: str
    paused: bool = False


class BytesMoved(Event, frozen=True, tag=True):
    """So many bytes went over the network since the last of these events, messages and bulk data together."""

    sent: int
    received: int


FleetEvent = (
    LinkChanged
    | GrantSeen
    | VerdictSeen
    | CancelSeen
    | PaceSeen
    | HandInUndelivered
    | HandInNotSent
    | SliceUploaded
    | TransferFailed
    | BytesMoved
)
