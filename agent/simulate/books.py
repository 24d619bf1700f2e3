"""The lease side of the promises: one worker, nothing settled twice, nothing durable forgotten, no work after expiry.

A second set of books, kept from events and effects: what is on disk, what is owed and what is still missing of it, and
when each lease ends if its time runs from when it, or the last of its renewals to be answered, was asked for.
"""

from __future__ import annotations

from collections import Counter

from agent.core.effects import (
    EffectType,
    HandIn,
    OpenLease,
    RunSlice,
    SendHandIn,
    SendRenewal,
    SendRequest,
    SettleHandIn,
    StartBuild,
    StartWorker,
)
from agent.core.events import (
    EventType,
    GrantSeen,
    HandInFailed,
    HandInSettled,
    HandInStored,
    LeaseOpened,
    LeaseRefused,
    SliceStored,
    SliceUploaded,
    StoreFailed,
    TransferFailed,
    Unwritten,
    VerdictSeen,
    WorkerGone,
)
from agent.core.model import Grant, JobKey
from agent.core.state import State
from agent.simulate.truth import Broken, Promise
from agent.simulate.work import Work

STOP_MS = 100
"""A slice whose lease has just ended may still be draining for this long."""
NOT_TAKEN = 3
"""After so many failed uploads in a row a hand-in may be sent as it is, to learn whether it is still wanted."""


class Books:
    """What the car owes and holds, by its own account."""

    def __init__(self, state: State) -> None:
        self._asked: dict[str, int] = {}
        self._expires: dict[JobKey, int] = {}
        self._renewals: dict[str, tuple[JobKey, int]] = {}
        self._renewed: dict[JobKey, int] = {}
        """When the last renewal to be answered was sent."""
        self._missing: dict[JobKey, set[int]] = {one.key: set(one.missing) for one in state.outbox}
        self._uploaded: set[tuple[JobKey, int]] = set()
        self._not_taken: Counter[JobKey] = Counter()
        """Uploads that failed in a row."""
        self._open: dict[JobKey, set[int]] = {lease.key: set(lease.done) for lease in state.left_over}
        self._outbox: set[JobKey] = {one.key for one in state.outbox}
        self._settling: set[JobKey] = set()
        self._settled: set[JobKey] = set()
        self._workers = 0
        self._late: JobKey | None = None

    def saw(  # noqa: C901, PLR0912 - one arm an answer of the world, two lines each
        self, event: EventType, after: State, effects: tuple[EffectType, ...], work: Work, broken: list[Broken]
    ) -> None:
        """Take note of one step, the worker's news already noted in `work`; what is broken is added to `broken`."""
        match event:
            case GrantSeen(rid=rid, grant=grant) if grant is not None and rid in self._renewals:
                self._more_time(rid, grant)
            case GrantSeen(rid=rid, grant=grant) if grant is not None:
                self._granted(rid, grant)
            case VerdictSeen(key=key, next_grant=grant) if grant is not None:
                self._granted(str(key), grant)
            case LeaseOpened(key=key):
                self._open.setdefault(key, set())
            case LeaseRefused(key=key, replayed=True) | HandInFailed(key=key):
                self._open.pop(key, None)
            case SliceStored(key=key, outcome=outcome) if key in self._open:
                self._open[key].add(outcome.index)
            case SliceUploaded(key=key, index=index):
                self._uploaded.add((key, index))
                self._not_taken[key] = 0
                self._missing.get(key, set()).discard(index)
            case TransferFailed(key=key, paused=False):
                self._not_taken[key] += 1
            case HandInStored(key=key, missing=missing):
                self._open.pop(key, None)
                self._outbox.add(key)
                self._missing[key] = {index for index in missing if (key, index) not in self._uploaded}
            case HandInSettled(key=key):
                self._outbox.discard(key)
                self._settled.add(key)
            case StoreFailed(key=key, step=Unwritten.VERDICT) if key is not None:
                self._settling.discard(key)
            case WorkerGone():
                self._workers = 0
            case _:
                pass
        for effect in effects:
            self._ordered(effect, event.at_ms, work, broken)
        self._check_expiry(event.at_ms, work, broken)
        held = {one.key for one in after.outbox}
        if self._outbox - held:
            broken.append(Broken(Promise.REMEMBERED, event.at_ms, f"owed and forgotten: {min(self._outbox - held)}"))
            self._outbox &= held
        self._check_leases(event.at_ms, after, broken)

    def _granted(self, rid: str, grant: Grant) -> None:
        """Its time runs from the asking; of an answer to nothing that was asked, nobody knows when it ends."""
        if rid in self._asked and grant.key not in self._expires:
            self._expires[grant.key] = self._asked[rid] + grant.ttl_ms

    def _more_time(self, rid: str, grant: Grant) -> None:
        """A renewal is answered: the time runs from when it was sent, if no later one has been answered before."""
        key, sent_ms = self._renewals[rid]
        if grant.key == key and sent_ms > self._renewed.get(key, -1):
            self._renewed[key] = sent_ms
            self._expires[key] = sent_ms + grant.ttl_ms

    def _ordered(  # noqa: C901, PLR0912 - one arm an order
        self, effect: EffectType, now_ms: int, work: Work, broken: list[Broken]
    ) -> None:
        match effect:
            case SendRequest(rid=rid):
                self._asked[rid] = now_ms
            case SendRenewal(rid=rid, key=key):
                self._renewals[rid] = (key, now_ms)
                if now_ms >= self._expires.get(key, now_ms + 1):
                    broken.append(Broken(Promise.EXPIRY, now_ms, f"{key} is renewed after its end"))
            case SendHandIn(key=key, credit=credit):
                if credit:
                    self._asked[str(key)] = now_ms
                if self._missing.get(key) and self._not_taken[key] < NOT_TAKEN:
                    lacks = f"{key} is handed in without the answers of slices {sorted(self._missing[key])}"
                    broken.append(Broken(Promise.REMEMBERED, now_ms, lacks))
            case StartWorker() | StartBuild():
                self._workers += 1
                if self._workers > 1:
                    broken.append(Broken(Promise.ONE_WORKER, now_ms, "a worker is started while another lives"))
            case RunSlice(key=key, index=index):
                self._slice_begins(key, index, now_ms, work, broken)
            case OpenLease(grant=grant):
                if grant.key in self._settled | self._outbox:
                    broken.append(Broken(Promise.SETTLED_ONCE, now_ms, f"{grant.key} is opened again"))
            case HandIn(grant=grant):
                if grant.key in self._settled | self._outbox:
                    broken.append(Broken(Promise.SETTLED_ONCE, now_ms, f"{grant.key} is handed in again"))
            case SettleHandIn(key=key):
                if key in self._settling or key in self._settled:
                    broken.append(Broken(Promise.SETTLED_ONCE, now_ms, f"{key} is settled twice"))
                self._settling.add(key)
            case _:
                pass

    def _slice_begins(self, key: JobKey, index: int, now_ms: int, work: Work, broken: list[Broken]) -> None:
        if not work.ready or work.stopped_ms is not None:
            broken.append(Broken(Promise.ONE_WORKER, now_ms, f"slice {index} of {key} without a worker that is ready"))
        if index in self._open.get(key, ()):
            broken.append(Broken(Promise.SETTLED_ONCE, now_ms, f"slice {index} of {key} is computed again"))
        expires_ms = self._expires.get(key)
        if expires_ms is not None and now_ms >= expires_ms:
            broken.append(Broken(Promise.EXPIRY, now_ms, f"slice {index} of {key} begins after its end"))

    def _check_expiry(self, now_ms: int, work: Work, broken: list[Broken]) -> None:
        if work.slice is None or not work.computing or work.slice[0] == self._late:
            return
        expires_ms = self._expires.get(work.slice[0])
        if expires_ms is None or now_ms < expires_ms:
            return
        if work.running or now_ms > expires_ms + STOP_MS + work.budget_ms:
            self._late = work.slice[0]
            broken.append(
                Broken(Promise.EXPIRY, now_ms, f"still at {self._late} {now_ms - expires_ms} ms past its end")
            )

    def _check_leases(self, now_ms: int, after: State, broken: list[Broken]) -> None:
        """A lease with slices on disk is the one at work, left over, or in the outbox."""
        for key, slices in tuple(self._open.items()):
            lease = after.lease
            if lease is not None and lease.key == key:
                if set(lease.done) - slices:
                    lost = f"{key}: slices {sorted(set(lease.done) - slices)} count and are not on disk"
                    broken.append(Broken(Promise.REMEMBERED, now_ms, lost))
                continue
            if all(one.key != key for one in after.left_over):
                del self._open[key]
                broken.append(Broken(Promise.REMEMBERED, now_ms, f"{key} is open on disk and forgotten"))
