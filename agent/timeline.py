"""What a live view needs besides the status: the gate's last hours, the coming hours' prices, vacates, and limits.

The gate's changes and the vacates come out of the bounded tables of the store, so they outlive the daemon. All of it
changes slowly: `driveway watch` asks for it when it begins and once a minute, never with every redraw.
"""

from __future__ import annotations

import itertools

import msgspec

from agent.core.events import SignalValue
from agent.core.state import State
from agent.limits import LimitsView, limits
from agent.rows import LogRow
from agent.stamp import stamp
from agent.store import Store

GATE_CHANGED = "gate_changed"
CHANGES_MAX = 500
AHEAD_MS = 24 * 3_600_000
BUCKETS_MS = (10, 20, 50, 100, 200, 500, 1000)
"""Upper ends of the histogram's buckets; the last has none."""


class ChangeView(msgspec.Struct, frozen=True):
    """The gate from a moment on (RFC 3339, UTC): open, hold or closed, with the reason that was the first."""

    at: str
    state: str
    code: str = ""
    signal: str = ""


class BucketView(msgspec.Struct, frozen=True):
    """How many vacates took at most so long; `up_to_ms` is None for the rest."""

    up_to_ms: int | None
    count: int


class SlotView(msgspec.Struct, frozen=True):
    """A time of one price for energy at the plug (RFC 3339, UTC); `chosen`: work is wanted then."""

    start: str
    end: str
    price: float
    chosen: bool


class TimelineView(msgspec.Struct, frozen=True):
    """Gate changes, oldest first, from the one in force when the hours began; all vacates that are remembered.

    `prices` are the slots of the coming day or until the departure, none while the clock is not believed.
    """

    since: str
    changes: list[ChangeView]
    vacates: list[BucketView]
    prices: list[SlotView]
    price_unit: str
    limits: LimitsView


class _Changed(msgspec.Struct, frozen=True):
    """The fields of the log event, as `agent.core.machine` writes them; what is not there is not known."""

    state: str = ""
    code: str = ""
    signal: str = ""
    value: SignalValue | None = None


class Past(msgspec.Struct, frozen=True):
    """What the store remembers of it."""

    changes: list[ChangeView]
    vacates: list[BucketView]


def past(store: Store, since_wall_ms: int) -> Past:
    """The gate since that moment, and the vacates; on the store's thread."""
    rows = store.log_of(GATE_CHANGED, since_wall_ms, CHANGES_MAX)
    changes = [one for row in rows if (one := _change(row)) is not None]
    return Past(changes, buckets(store.vacate_times_ms()))


def timeline(state: State, of: Past, since_wall_ms: int) -> TimelineView:
    """All of it, as it is in this state."""
    return TimelineView(
        stamp(since_wall_ms),
        of.changes,
        of.vacates,
        prices(state),
        f"{state.policy.currency}/kWh",
        limits(state.policy),
    )


def prices(state: State) -> list[SlotView]:
    """The stay's pieces of one price from now on, cut where work begins or ends to be wanted."""
    if state.wall.problem:
        return []
    now_ms, stay = state.wall.wall_ms(state.now_ms), state.stay
    found = list[SlotView]()
    for piece in stay.priced:
        edges = {piece.start_wall_ms, piece.end_wall_ms}
        for slot in stay.chosen:
            edges |= {
                at for at in (slot.start_wall_ms, slot.end_wall_ms) if piece.start_wall_ms < at < piece.end_wall_ms
            }
        for start_ms, end_ms in itertools.pairwise(sorted(edges)):
            if end_ms > now_ms and start_ms < now_ms + AHEAD_MS:
                chosen, price = stay.slot_at(start_ms) is not None, piece.price_micro_per_kwh / 1e6
                _add(found, SlotView(stamp(start_ms), stamp(end_ms), price, chosen))
    return found


def _add(found: list[SlotView], slot: SlotView) -> None:
    """One more, joined to the last where only the clock tells them apart."""
    last = found[-1] if found else None
    if last is not None and (last.end, last.price, last.chosen) == (slot.start, slot.price, slot.chosen):
        found[-1] = msgspec.structs.replace(last, end=slot.end)
    else:
        found.append(slot)


def buckets(times_ms: list[int]) -> list[BucketView]:
    """The histogram of these times."""
    counts, low = [], -1
    for high in BUCKETS_MS:
        counts.append(BucketView(high, sum(low < time_ms <= high for time_ms in times_ms)))
        low = high
    return [*counts, BucketView(None, sum(time_ms > low for time_ms in times_ms))]


def _change(row: LogRow) -> ChangeView | None:
    try:
        said = msgspec.json.decode(row.fields, type=_Changed)
    except msgspec.MsgspecError:
        return None
    return ChangeView(stamp(row.at_wall_ms), said.state, said.code, said.signal) if said.state else None
