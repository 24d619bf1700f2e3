"""One lease's life as the car sees it, and the hand-ins that wait for a verdict.

    granted --LeaseOpened--> running --all slices stored--> ending --HandInStored--> (outbox) --verdict--> forgotten
       |                        |
       +-- gate shut, refused --+-- gate shut, expired, worker lost too often --> ending (yield)

The lease ends, for the car, at `expires_ms`: its ttl counted from when the request was *sent*, so always before the
dispatcher gives the job to another. A finished slice is on disk before it counts; what was in flight when the driver
came is computed again by somebody.
"""

from __future__ import annotations

import enum

import msgspec

from agent.core.effects import SettleHandIn
from agent.core.model import Grant, HandInKind, JobKey, Spent, YieldReason

RESEND_FIRST_MS = 2_000
RESEND_MAX_MS = 300_000
HAND_IN_BYTES = 15_300
"""A lease is handed in early rather than outgrow one message of 16 KiB: what follows is a generous estimate."""
HAND_IN_BASE_BYTES = 3_000
HAND_IN_SLICE_BYTES = 500
"""A slice's share of the statement (in base64) and its place in the message."""


class Phase(enum.StrEnum):
    """Where a lease is in its life."""

    GRANTED = "granted"
    OPENING = "opening"
    RUNNING = "running"
    HANDING_IN = "handing_in"


class Lease(msgspec.Struct, frozen=True):
    """The one lease the car works on."""

    grant: Grant
    expires_ms: int
    phase: Phase = Phase.GRANTED
    done: tuple[int, ...] = ()
    in_flight: int | None = None
    in_flight_since_ms: int = 0
    output_bytes: int = 0
    largest_output_bytes: int = 0
    gate_state: str = "open"
    started_ms: int | None = None
    energy_start_micro_wh: float = 0.0
    cost_start_micro: float = 0.0
    failures: int = 0
    ending: YieldReason | None = None
    ending_detail: str = ""

    @property
    def key(self) -> JobKey:
        """The fencing token."""
        return self.grant.key

    @property
    def remaining(self) -> tuple[int, ...]:
        """Slices still to compute, in order, without the one in flight."""
        return tuple(index for index in self.grant.slices if index not in self.done and index != self.in_flight)

    @property
    def full(self) -> bool:
        """One more slice as large as the largest so far might not fit into the hand-in's message."""
        slices = len(self.done) + 1
        answers = 4 * (self.output_bytes + self.largest_output_bytes) // 3
        return HAND_IN_BASE_BYTES + slices * HAND_IN_SLICE_BYTES + answers > HAND_IN_BYTES

    @property
    def complete(self) -> bool:
        """Every wanted slice is on disk."""
        return len(self.done) == len(self.grant.slices)

    def end(self, why: YieldReason, detail: str = "") -> Lease:
        """The lease, to be given back; the first reason stands."""
        if self.ending is not None:
            return self
        return msgspec.structs.replace(self, ending=why, ending_detail=detail)

    def began(self, index: int, now_ms: int, gate_state: str) -> Lease:
        """The lease with a slice in flight."""
        return msgspec.structs.replace(self, in_flight=index, in_flight_since_ms=now_ms, gate_state=gate_state)

    def stored(self, index: int, output_bytes: int) -> Lease:
        """The lease with one more slice on disk; a slice that is not wanted or not new changes nothing."""
        if index in self.done or index not in self.grant.slices:
            return self
        return msgspec.structs.replace(
            self,
            done=(*self.done, index),
            in_flight=None if self.in_flight == index else self.in_flight,
            output_bytes=self.output_bytes + output_bytes,
            largest_output_bytes=max(self.largest_output_bytes, output_bytes),
        )

    def failed(self) -> Lease:
        """The lease after its worker or a slice failed: what was in flight is to be done again."""
        return msgspec.structs.replace(self, in_flight=None, failures=self.failures + 1)


def left_over(grant: Grant, done: tuple[int, ...], spent: Spent, now_ms: int) -> Lease:
    """A lease that was open when the daemon ended: what it finished is handed in, the rest is given back."""
    return Lease(
        grant=grant,
        expires_ms=now_ms,
        phase=Phase.RUNNING,
        done=done,
        started_ms=now_ms,
        energy_start_micro_wh=-spent.energy_micro_wh,
        cost_start_micro=-spent.cost_micro,
        ending=YieldReason.FAULT,
        ending_detail="the agent was restarted",
    )


class Pending(msgspec.Struct, frozen=True):
    """A hand-in in the outbox. It is sent again until a signed verdict comes, also after a reboot.

    The verdict stays with it until it is on disk, `settling` while that is being done.
    """

    key: JobKey
    kind: HandInKind
    statement_sha256: str
    next_ms: int
    tries: int = 0
    verdict: SettleHandIn | None = None
    settling: bool = False
    missing: tuple[int, ...] = ()
    """Slices whose answers have to be uploaded before this can be sent."""

    def sent(self, now_ms: int, jitter: float) -> Pending:
        """After one more try: the next is due twice as far off, spread by `jitter` in [0, 1)."""
        delay_ms = min(RESEND_MAX_MS, RESEND_FIRST_MS * 2**self.tries) * (0.75 + 0.5 * jitter)
        return msgspec.structs.replace(self, next_ms=now_ms + round(delay_ms), tries=min(self.tries + 1, 30))
