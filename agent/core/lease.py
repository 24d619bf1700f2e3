"""One lease's life as the car sees it, and the hand-ins that wait for a verdict.

    granted --LeaseOpened--> running --all slices stored--> ending --HandInStored--> (outbox) --verdict--> forgotten
       |                        |
       +-- gate shut, refused, --+-- gate shut, expired, cancelled, worker lost too often --> ending (yield)
           cannot be finished

The lease ends, for the car, at `expires_ms`: its ttl counted from when the request was *sent*, so always before the
dispatcher gives the job to another. A long lease is renewed, and then its time counts from when that renewal was sent.
A finished slice is on disk before it counts; what was in flight when the driver came is computed again by somebody.
"""

from __future__ import annotations

import enum

import msgspec

from agent.core.effects import SettleHandIn
from agent.core.model import Grant, HandInKind, JobKey, Pace, Spent, YieldReason
from agent.core.waiting import about_ms, bound_ms, stretched_ms

RESEND_FIRST_MS = 2_000
RESEND_MAX_MS = 300_000
HAND_IN_BYTES = 15_300
"""A lease is handed in early rather than outgrow one message of 16 KiB: what follows is a generous estimate."""
HAND_IN_BASE_BYTES = 4_300
HAND_IN_SLICE_BYTES = 560
"""A slice's share of the statement (in base64) and its place in the message, with its answers' digest or without."""
HAVE_WITH_CREDIT_MAX = 8
"""A hand-in has room to name so many leases and hand-ins; who holds more asks with a request, which names them all."""
DRIFT_SHARE = 2_000
"""Two crystals of 200 ppm differ by up to 1/2500: a lease ends earlier by a little more than that."""


RECHECK_FIRST_MS = 30_000
RECHECK_MAX_MS = 600_000
ASK_AFTER_FAILURES = 3
"""Uploads of a hand-in that failed in a row, after which the dispatcher is asked whether it is still wanted."""


class Phase(enum.StrEnum):
    """Where a lease is in its life."""

    GRANTED = "granted"
    OPENING = "opening"
    RUNNING = "running"
    HANDING_IN = "handing_in"


def ends_ms(sent_ms: int, ttl_ms: int) -> int:
    """When a lease asked for at `sent_ms` ends by this car's clock, however slow that runs against the dispatcher's."""
    return sent_ms + ttl_ms - -(-ttl_ms // DRIFT_SHARE)


class Asking(msgspec.Struct, frozen=True):
    """A question to the dispatcher whose answer is awaited. `sent_ms` is when the time that it is given begins.

    At `again_ms` it is asked again.
    """

    rid: str
    sent_ms: int
    again_ms: int = 0


class Retry(msgspec.Struct, frozen=True):
    """How often something failed in a row, and before when it is not tried again."""

    tries: int = 0
    not_before_ms: int = 0


class Lease(msgspec.Struct, frozen=True):
    """The one lease the car works on.

    `sizes` are the bytes of the answers of `done`, in its order; `uploaded` are the slices whose answers are where the
    grant said. `renew_at_ms` is when the next renewal is due, None where the lease needs none; `renewals` are those
    sent since the last that was answered. `cancel_ms`: by then the dispatcher wants it back.
    """

    grant: Grant
    expires_ms: int
    phase: Phase = Phase.GRANTED
    done: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    uploaded: tuple[int, ...] = ()
    upload: Retry = Retry()
    in_flight: int | None = None
    in_flight_since_ms: int = 0
    gate_state: str = "open"
    started_ms: int | None = None
    energy_start_micro_wh: float = 0.0
    cost_start_micro: float = 0.0
    failures: int = 0
    bereft: bool = False
    """A worker of its lost the accelerator before."""
    renew_at_ms: int | None = None
    renewals: tuple[Asking, ...] = ()
    cancel_ms: int | None = None
    cancel_why: str = ""
    ending: YieldReason | None = None
    ending_detail: str = ""

    @property
    def key(self) -> JobKey:
        """The fencing token."""
        return self.grant.key

    @property
    def at_work(self) -> bool:
        """It is being opened or worked on, and nothing has ended it yet."""
        return self.ending is None and self.phase is not Phase.HANDING_IN and not self.complete

    @property
    def remaining(self) -> tuple[int, ...]:
        """Slices still to compute, in order, without the one in flight."""
        return tuple(index for index in self.grant.slices if index not in self.done and index != self.in_flight)

    @property
    def largest_output_bytes(self) -> int:
        """The longest answers of a slice so far."""
        return max(self.sizes, default=0)

    @property
    def bulky(self) -> bool:
        """One more slice as large as the largest so far might not fit into the hand-in's message."""
        inline = sum(size for index, size in zip(self.done, self.sizes, strict=True) if index not in self.uploaded)
        return self._message_bytes(inline + self.largest_output_bytes) > HAND_IN_BYTES

    @property
    def full(self) -> bool:
        """No further slice is taken on: its answers, or where they cannot go elsewhere its place, might not fit."""
        return self._message_bytes(0) > HAND_IN_BYTES if self.grant.upload_url else self.bulky

    def _message_bytes(self, answers_bytes: int) -> int:
        return HAND_IN_BASE_BYTES + (len(self.done) + 1) * HAND_IN_SLICE_BYTES + 4 * answers_bytes // 3

    @property
    def to_upload(self) -> int | None:
        """The slice whose answers are to be brought away next, so that others have room; None while all fit."""
        if not (self.grant.upload_url and self.bulky):
            return None
        return next((index for index in self.done if index not in self.uploaded), None)

    @property
    def complete(self) -> bool:
        """Every wanted slice is on disk."""
        return len(self.done) == len(self.grant.slices)

    def end(self, why: YieldReason, detail: str = "") -> Lease:
        """The lease, to be given back; the first reason stands."""
        if self.ending is not None:
            return self
        return msgspec.structs.replace(self, ending=why, ending_detail=detail)

    def cancelled(self, by_ms: int, why: str) -> Lease:
        """The lease, wanted back by then; of two orders the earlier stands."""
        if self.cancel_ms is not None and self.cancel_ms <= by_ms:
            return self
        return msgspec.structs.replace(self, cancel_ms=by_ms, cancel_why=why)

    def renewed(self, answered: Asking, grant: Grant) -> Lease:
        """The lease with the time that the answer to this renewal gives it, counted from when that was sent.

        The last renewal to be sent that has been answered counts, even where it gives less than there was: the
        dispatcher's row says the same. Answers to earlier ones, which may be late, change nothing any more. Where
        answers go is taken from it too, since tokens age; what is to be computed, and under which ticket, is not.
        """
        later = tuple(one for one in self.renewals if one.sent_ms > answered.sent_ms)
        told = msgspec.structs.replace(
            self.grant,
            ttl_ms=grant.ttl_ms,
            renew_ms=grant.renew_ms,
            upload_url=grant.upload_url or self.grant.upload_url,
            upload_token=grant.upload_token or self.grant.upload_token,
        )
        return msgspec.structs.replace(
            self, grant=told, expires_ms=ends_ms(answered.sent_ms, grant.ttl_ms), renewals=later
        )

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
            sizes=(*self.sizes, output_bytes),
            in_flight=None if self.in_flight == index else self.in_flight,
        )

    def failed(self) -> Lease:
        """The lease after its worker or a slice failed: what was in flight is to be done again."""
        return msgspec.structs.replace(self, in_flight=None, failures=self.failures + 1)

    def accelerator_lost(self) -> Lease:
        """The lease after its worker lost the accelerator: once that is nobody's fault, from then on it is a failure.

        A computer that slept loses it, but so does a kernel that reads where it must not, every time.
        """
        return self.failed() if self.bereft else msgspec.structs.replace(self, in_flight=None, bereft=True)


def left_over(grant: Grant, done: tuple[int, ...], spent: Spent, now_ms: int) -> Lease:
    """A lease that was open when the daemon ended: what it finished is handed in, the rest is given back."""
    return Lease(
        grant=grant,
        expires_ms=now_ms,
        phase=Phase.RUNNING,
        done=done,
        sizes=(0,) * len(done),
        started_ms=now_ms,
        energy_start_micro_wh=-spent.energy_micro_wh,
        cost_start_micro=-spent.cost_micro,
        ending=YieldReason.FAULT,
        ending_detail="the agent was restarted",
    )


class Pending(msgspec.Struct, frozen=True):
    """A hand-in in the outbox. It is sent again until a signed verdict comes, also after a reboot.

    The verdict stays with it until it is on disk, `settling` while that is being done. Before `not_before_ms` it is not
    sent even after a reconnect: the dispatcher or the broker does not want it now. `told`: what went wrong with it is
    in the log.
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
    referenced: tuple[int, ...] = ()
    """Slices whose answers the message only names, so that the dispatcher looks for them where they were uploaded."""
    in_doubt: tuple[int, ...] = ()
    """Those of them that the server may have lost: looked after, while the message is sent all the same."""
    recheck: Retry = Retry()
    """How often all of them came into doubt, and before when they do not again."""
    upload_url: str = ""
    """Where to, as its grant said; empty after a restart: as the stored grant says."""
    upload_token: str = ""
    upload: Retry = Retry()
    refused: int = 0
    """How often in a row the broker did not take it."""
    not_before_ms: int = 0
    told: bool = False

    @property
    def ready(self) -> bool:
        """It can be sent: nobody has judged it yet, and nothing is missing.

        Or what is missing is not taken where it should go, again and again: its lease may be over, and only the
        dispatcher's verdict ends it then.
        """
        return self.verdict is None and (not self.missing or self.upload.tries >= ASK_AFTER_FAILURES)

    def sent(self, now_ms: int, share: float, pace: Pace) -> Pending:
        """After one more try: the next is due twice as far off, spread by `share` in [0, 1)."""
        wait_ms = stretched_ms(about_ms(bound_ms(RESEND_FIRST_MS, RESEND_MAX_MS, self.tries), share), pace)
        return msgspec.structs.replace(self, next_ms=now_ms + wait_ms, tries=min(self.tries + 1, 30))

    @property
    def to_upload(self) -> int | None:
        """The slice whose answers are to be brought away next, or looked after."""
        return next(iter((*self.missing, *self.in_doubt)), None)

    def uploaded(self, index: int, now_ms: int) -> Pending:
        """After one slice's answers are there; what lacks no more is sent."""
        missing = tuple(one for one in self.missing if one != index)
        in_doubt = tuple(one for one in self.in_doubt if one != index)
        next_ms = self.next_ms if missing or in_doubt else max(now_ms, self.not_before_ms)
        return msgspec.structs.replace(self, missing=missing, in_doubt=in_doubt, next_ms=next_ms, upload=Retry())

    def not_sent(self, next_ms: int) -> Pending:
        """After a try that the link did not take: it was none."""
        next_ms = max(next_ms, self.not_before_ms)
        return msgspec.structs.replace(self, next_ms=next_ms, tries=max(0, self.tries - 1))

    def doubted(self, now_ms: int, pace: Pace) -> Pending:
        """The dispatcher did not take it: is what it names still there? Asked at once, and later each time in a row.

        What is there costs a question (`agent.fleet.uploads`); what got lost over there goes up again. The message does
        not wait for that: it may have been put off for another reason, and the gate may be shut for long.
        """
        if not self.referenced or now_ms < self.recheck.not_before_ms:
            return self
        tries = self.recheck.tries
        again_ms = now_ms + stretched_ms(bound_ms(RECHECK_FIRST_MS, RECHECK_MAX_MS, tries), pace)
        return msgspec.structs.replace(self, in_doubt=self.referenced, recheck=Retry(tries + 1, again_ms))

    def put_off(self, until_ms: int) -> Pending:
        """Not sent before then, whatever happens."""
        return msgspec.structs.replace(self, next_ms=until_ms, not_before_ms=until_ms)

    def left_behind(self) -> Pending:
        """As a new run finds it: whether it was sent before nobody knows, so it never asks for the next grant."""
        return msgspec.structs.replace(self, tries=max(1, self.tries))
