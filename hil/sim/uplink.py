"""The car's way to the fleet in virtual time: messages that are lost, late, twice or refused, and bulk data on its way.

It keeps the link's contract: what is handed over proves nothing, an answer comes or does not, and whatever becomes of a
transfer is told. A pause ends what is under way at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from agent.core.effects import SendHandIn, SendRenewal, SendRequest, UploadSlice
from agent.core.events import (
    BytesMoved,
    CancelSeen,
    EventType,
    GrantSeen,
    HandInUndelivered,
    LeaseRefused,
    LinkChanged,
    SliceUploaded,
    TransferFailed,
    VerdictSeen,
)
from agent.core.model import Grant, HandInKind, JobKey, Verdict
from hil.sim.clockwork import Clockwork
from hil.sim.dispatcher import Dispatcher

BULKY_BYTES = 2_500
MESSAGE_BYTES = 3_000
Tell = Callable[[EventType], None]


class Troubles(msgspec.Struct):
    """What may go wrong with the computer's side, as chances per occasion, and what is wrong now."""

    crash: float = 0.0
    hang: float = 0.0
    slow_start: float = 0.0
    refuse: float = 0.0
    slice_fails: float = 0.0
    lose: float = 0.0
    duplicate: float = 0.0
    late: float = 0.0
    undelivered: float = 0.0
    cancel: float = 0.02
    """The chance that the dispatcher wants a lease back: it happens in good nights too."""
    disk_full: bool = False
    drain_hangs: bool = False
    disobeys: float = 0.0
    """The share of its pace by which the computer draws more than it was told."""


class Uplink:
    """One car's connection. `outbox` is what the disk holds of hand-ins: their kind and their statement's digest."""

    def __init__(
        self,
        clockwork: Clockwork,
        chance: random.Random,
        tell: Tell,
        troubles: Callable[[], Troubles],
        slice_ms: int,
    ) -> None:
        self._clock, self._chance, self._tell, self._troubles = clockwork, chance, tell, troubles
        self.dispatcher = Dispatcher(chance, slice_ms)
        self.connected = False
        self.outbox: dict[JobKey, tuple[HandInKind, str]] = {}
        self.fetching: Grant | None = None
        """The lease whose input is on its way."""
        self._uploading: UploadSlice | None = None

    def send(self, effect: SendRequest | SendRenewal | SendHandIn | UploadSlice) -> None:
        """Begin what the core wants to reach the fleet."""
        match effect:
            case SendRequest():
                self._request(effect)
            case SendRenewal():
                self._renew(effect)
            case SendHandIn():
                self._send(effect)
            case UploadSlice():
                self._uploading = effect
                self._clock.after(self._chance.uniform(1_000, 40_000), lambda: self._uploaded(effect))

    def link(self, *, connected: bool) -> None:
        """The network comes or goes."""
        if connected is not self.connected:
            self.connected = connected
            detail = "" if connected else "the network is gone"
            self._tell(LinkChanged(at_ms=self._clock.now_ms, connected=connected, broker="b:1", detail=detail))

    def _request(self, effect: SendRequest) -> None:
        if self._lost():
            return
        grant, retry_ms = self.dispatcher.grant(self._clock.now_ms, effect.have)
        self._deliver(lambda: GrantSeen(at_ms=self._clock.now_ms, rid=effect.rid, grant=grant, retry_ms=retry_ms))

        if grant is not None and self._chance.random() < self._troubles().cancel:
            self._cancel(grant.key)

    def _renew(self, effect: SendRenewal) -> None:
        if self._lost():
            return
        grant = self.dispatcher.renew(effect.key, self._clock.now_ms)
        if grant is None:
            self._cancel(effect.key)
            return
        self._deliver(lambda: GrantSeen(at_ms=self._clock.now_ms, rid=effect.rid, grant=grant, retry_ms=0))

    def _cancel(self, key: JobKey) -> None:
        """The dispatcher wants it back, some time from now."""
        grace_ms = self._chance.choice((0, 5_000, 60_000))
        wanted = lambda: CancelSeen(at_ms=self._clock.now_ms, key=key, grace_ms=grace_ms, why="wanted elsewhere")  # noqa: E731
        self._clock.after(self._chance.uniform(0, 300_000), lambda: self._deliver(wanted))

    def _send(self, effect: SendHandIn) -> None:
        if self._lost() or effect.key not in self.outbox:
            return
        if self._chance.random() < self._troubles().undelivered:
            poison = self._chance.random() < 0.2
            self._tell_soon(
                lambda: HandInUndelivered(at_ms=self._clock.now_ms, key=effect.key, detail="0x87", poison=poison)
            )
            return
        kind, sha256 = self.outbox[effect.key]
        verdict = self.dispatcher.judge(effect.key, kind, self._clock.now_ms)
        following: Grant | None = None
        retry_ms = 0
        if effect.credit:
            following, retry_ms = self.dispatcher.grant(self._clock.now_ms, effect.have)
        self._deliver(
            lambda: VerdictSeen(
                at_ms=self._clock.now_ms,
                key=effect.key,
                verdict=verdict,
                reason="",
                paid_micro=100 if verdict is Verdict.SETTLED else 0,
                statement_sha256=sha256,
                retry_ms=retry_ms,
                envelope=b"",
                next_grant=following,
            )
        )

    def _tell_soon(self, event: Callable[[], EventType]) -> None:
        self._clock.after(self._chance.uniform(20, 300), lambda: self._tell(event()))

    def _lost(self) -> bool:
        if self.connected:
            self._tell_soon(lambda: BytesMoved(at_ms=self._clock.now_ms, sent=MESSAGE_BYTES, received=MESSAGE_BYTES))
        return not self.connected or self._chance.random() < self._troubles().lose

    def _deliver(self, event: Callable[[], EventType]) -> None:
        """After the network's time; now and then late or twice, and not at all where the link is gone by then."""

        def arrive() -> None:
            if self.connected:
                self._tell(event())

        chance, troubles = self._chance, self._troubles()
        delay_ms = chance.uniform(20, 300)
        if chance.random() < troubles.late:
            delay_ms = chance.uniform(2_000, 1_200_000)
        self._clock.after(delay_ms, arrive)
        if chance.random() < troubles.duplicate:
            self._clock.after(delay_ms + chance.uniform(1, 60_000), arrive)

    # --- bulk data ---------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Nothing moves any more: a fetch and an upload fail as paused."""
        grant, upload = self.fetching, self._uploading
        self.fetching = self._uploading = None
        if grant is not None:
            self._tell_soon(lambda: LeaseRefused(at_ms=self._clock.now_ms, key=grant.key, detail="paused"))
        if upload is not None:
            key, index = upload.key, upload.index
            self._tell_soon(
                lambda: TransferFailed(at_ms=self._clock.now_ms, key=key, index=index, detail="paused", paused=True)
            )

    def _uploaded(self, effect: UploadSlice) -> None:
        if self._uploading is not effect:
            return  # it was paused
        self._uploading = None
        now_ms, key, index = self._clock.now_ms, effect.key, effect.index
        if not self.connected or self._chance.random() < self._troubles().lose:
            self._tell(TransferFailed(at_ms=now_ms, key=key, index=index, detail="502"))
            return
        self._tell(BytesMoved(at_ms=now_ms, sent=BULKY_BYTES, received=0))
        self._tell(SliceUploaded(at_ms=now_ms, key=key, index=index))
