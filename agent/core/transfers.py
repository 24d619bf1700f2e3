"""Bulk data on its way: answers that do not fit into a message go up slice by slice, and stop with the driver's sign.

One slice at a time, in parts that stay where they arrived, so whatever interrupts an upload costs little. While a lease
is at work its slices go up once they would not all fit beside each other; what a hand-in still lacks, or what the
server may have lost of it, goes up afterwards, the one that may be tried soonest first, each holder with waits of its
own, so that answers nobody wants keep nobody else's. When the gate closes, what is under way (an upload, or the input
of a lease that is being opened) is paused once; hold does not matter, since moving bytes needs no accelerator. Over a
metered network nothing is begun once the day's cap is used up (`agent.core.traffic`).
"""

from __future__ import annotations

import msgspec

from agent.core.effects import EffectType, PauseTransfers, Report, UploadSlice
from agent.core.events import SliceUploaded, TransferFailed
from agent.core.findings import GateState
from agent.core.lease import Lease, Pending, Phase, Retry
from agent.core.model import JobKey
from agent.core.owed import find, replaced
from agent.core.state import State
from agent.core.traffic import spent
from agent.core.waiting import LEAST_MS, bound_ms, full_jitter_ms, stretched_ms

Step = tuple[State, tuple[EffectType, ...]]

REPLACE = msgspec.structs.replace
RETRY_FIRST_MS = 5_000
RETRY_MAX_MS = 600_000


# --- the rules ----------------------------------------------------------------------------------------------------


def pause_transfers(state: State) -> Step:
    """A closed gate stops what is under way, and so does the end of a lease whose input is still coming. Once."""
    lease = state.lease
    fetching = lease is not None and lease.phase is Phase.OPENING
    unwanted = fetching and lease is not None and lease.ending is not None
    closed = state.gates.state is GateState.CLOSED and (fetching or state.uploading is not None)
    if not (closed or unwanted):
        return (REPLACE(state, transfers_paused=False) if state.transfers_paused else state), ()
    if state.transfers_paused:
        return state, ()
    return REPLACE(state, transfers_paused=True), (PauseTransfers(),)


def upload(state: State) -> Step:
    """The next slice whose answers have to go up goes up, when nothing else does."""
    if not _may_upload(state):
        return state, ()
    now_ms = state.now_ms
    waiting = [one for one in _holders(state) if one.upload.not_before_ms <= now_ms]
    if not waiting:
        return state, ()
    holder = min(waiting, key=lambda one: one.upload.not_before_ms)
    index = holder.to_upload
    if index is None:
        return state, ()
    url, token = _place(holder)
    effect = UploadSlice(key=holder.key, index=index, url=url, token=token)
    return REPLACE(state, uploading=(holder.key, index)), (effect,)


def due_ms(state: State) -> list[int]:
    """When a rule here has something to do, if nothing happens until then."""
    if state.uploading is not None or not state.connected or state.gates.state is GateState.CLOSED:
        return []
    soonest_ms = state.upload_not_before_ms
    if spent(state.traffic, state.policy, state.now_ms, metered=state.metered):
        soonest_ms = state.traffic.day_ends_ms(state.now_ms)
    return [max(one.upload.not_before_ms, soonest_ms) for one in _holders(state)]


def _may_upload(state: State) -> bool:
    return (
        state.uploading is None
        and state.now_ms >= state.upload_not_before_ms
        and state.connected
        and state.gates.state is not GateState.CLOSED
        and not state.store_problem
        and not spent(state.traffic, state.policy, state.now_ms, metered=state.metered)
    )


def _holders(state: State) -> list[Lease | Pending]:
    """Who has answers to bring away: the lease at work first, then the hand-ins, oldest first."""
    holders: list[Lease | Pending] = []
    lease = state.lease
    if lease is not None and lease.phase is Phase.RUNNING and lease.at_work and lease.to_upload is not None:
        holders.append(lease)
    return holders + [one for one in state.outbox if one.to_upload is not None and one.verdict is None]


def _place(holder: Lease | Pending) -> tuple[str, str]:
    if isinstance(holder, Lease):
        return holder.grant.upload_place
    return holder.upload_url, holder.upload_token


# --- answers ------------------------------------------------------------------------------------------------------


def slice_uploaded(state: State, event: SliceUploaded) -> Step:
    """One slice's answers are there; a hand-in that lacks no more is sent."""
    state = _over(state, event.key, event.index)
    lease, pending = state.lease, find(state, event.key)
    if lease is not None and lease.key == event.key and event.index in lease.done:
        uploaded = lease.uploaded if event.index in lease.uploaded else (*lease.uploaded, event.index)
        return REPLACE(state, lease=REPLACE(lease, uploaded=uploaded, upload=Retry())), _mended(lease)
    if pending is None or event.index not in (*pending.missing, *pending.in_doubt):
        return state, ()
    return replaced(state, pending.uploaded(event.index, state.now_ms)), _mended(pending)


def transfer_failed(state: State, event: TransferFailed) -> Step:
    """It goes on from where it was, later: soon when it was paused, later with every failure in a row."""
    state = REPLACE(_over(state, event.key, event.index), upload_not_before_ms=state.now_ms + LEAST_MS)
    lease, pending = state.lease, find(state, event.key)
    holder = lease if lease is not None and lease.key == event.key else pending
    if holder is None:
        return state, ()
    retry = holder.upload
    news: tuple[Report, ...] = ()
    if event.paused:
        retry = REPLACE(retry, not_before_ms=state.now_ms + LEAST_MS)
    else:
        bound = stretched_ms(bound_ms(RETRY_FIRST_MS, RETRY_MAX_MS, retry.tries), state.pace)
        wait_ms = full_jitter_ms(bound, state.jitter(f"{event.key} {event.index} upload {retry.tries}"))
        news = () if retry.tries else (_report("transfer_failed", event.key, event.detail),)
        retry = Retry(retry.tries + 1, state.now_ms + wait_ms)
    if isinstance(holder, Lease):
        return REPLACE(state, lease=REPLACE(holder, upload=retry)), news
    return replaced(state, REPLACE(holder, upload=retry)), news


def _over(state: State, key: JobKey, index: int) -> State:
    """Nothing is under way any more, if this was."""
    return REPLACE(state, uploading=None) if state.uploading == (key, index) else state


def _mended(holder: Lease | Pending) -> tuple[Report, ...]:
    """What failed before goes on, which is told as its failure was."""
    return (_report("transfer_recovered", holder.key, ""),) if holder.upload.tries else ()


def _report(name: str, key: JobKey, detail: str) -> Report:
    return Report(name=name, fields={"lease": str(key), "detail": detail})
