"""What energy costs when, and when the work is to be done: the cheapest slots that fit before the car leaves.

The price at a moment is the signed curve's where it has one and has not expired, else the calendar's (`tariff_zones`,
`energy_price_micro_per_kwh`) in local time. It is a function of the moment alone, so nothing changes when a curve runs
out. Nobody knows the moment while the wall clock is wrong: then it is the dearest price there is.

A `Stay` is the time until the next departure (or a day). It is laid out once, and again only when something it was laid
out from has changed, so the gate does not flap with every reading: slots of at most a quarter of an hour, one price
each, inside the owner's schedule and profitable; of these the cheapest, as many as `work_hours_per_stay` lets in, with
negative prices first of all. Among equally dear ones those next to a slot already chosen win, since each pause costs a
start of the worker; then those of the shortest run that is long enough, then the earliest. Work hours that have passed
in a stay stay spent when it is laid out again.

Profitable (where the owner told what a kWh earns) means: payout > price / charge_efficiency + wear when unplugged +
what the owner wants to keep.
"""

from __future__ import annotations

import bisect
import itertools

import msgspec

from agent.core.departures import Leaving, coming, timer_ends_ms
from agent.core.events import PriceSlot, PricesSeen
from agent.core.policy import Policy
from agent.core.walltime import DAY_MS, MINUTE_MS, WallClock, Zone, contains, edges, within

SLOT_MS = 15 * MINUTE_MS
HOUR_MS = 60 * MINUTE_MS
LONGEST_STAY_MS = 7 * DAY_MS
AHEAD_MS = DAY_MS
"""A curve that claims to be issued later than this from now comes from a wrong clock."""
UNKNOWN_TIME = WallClock()


class Prices(msgspec.Struct, frozen=True):
    """The newest price curve, its slots in order of time."""

    issued_wall_ms: int = 0
    expires_wall_ms: int = 0
    slots: tuple[PriceSlot, ...] = ()

    def seen(self, event: PricesSeen, wall: WallClock = UNKNOWN_TIME) -> Prices:
        """The newer of the two: a curve from before the one at hand is a message that came late, or came again.

        While the clock is believed, a curve that was issued in the future is none, so that a dispatcher whose clock was
        wrong once does not lock out all that it says later; nor does a curve that has expired.
        """
        stands = True
        if not wall.problem:
            wall_ms = wall.wall_ms(event.at_ms)
            latest_ms = wall_ms + (wall.error_ms or 0) + AHEAD_MS
            if event.issued_wall_ms > latest_ms:
                return self
            expired = self.expires_wall_ms <= wall_ms < event.expires_wall_ms
            stands = self.issued_wall_ms <= latest_ms and not expired
        if stands and event.issued_wall_ms < self.issued_wall_ms:
            return self
        return Prices(event.issued_wall_ms, event.expires_wall_ms, _apart(event.slots))

    def at(self, wall_ms: int) -> int | None:
        """The curve's price (micro per kWh) at a moment; None in its gaps and after its expiry."""
        if wall_ms >= self.expires_wall_ms:
            return None
        slot = _slot_at(self.slots, wall_ms)
        return None if slot is None else slot.price_micro_per_kwh


def price_at(policy: Policy, zone: Zone, prices: Prices, wall_ms: int) -> int:
    """What a kWh costs at the plug at a moment, in millionths of the currency."""
    told = prices.at(wall_ms)
    if told is not None:
        return told
    local = zone.local(wall_ms) if policy.tariff_zones else None
    for part in policy.tariff_zones:
        if local is not None and contains(part, local):
            return part.price_micro_per_kwh
    return policy.energy_price_micro_per_kwh


def dearest(policy: Policy, prices: Prices) -> int:
    """The highest price that could be the present one, for when nobody knows the time."""
    calendar = (part.price_micro_per_kwh for part in policy.tariff_zones)
    curve = (slot.price_micro_per_kwh for slot in prices.slots)
    return max((policy.energy_price_micro_per_kwh, *calendar, *curve))


def price_now(policy: Policy, zone: Zone, prices: Prices, wall: WallClock, now_ms: int) -> int:
    """The price at this boot time; the dearest while the wall clock is not believed."""
    if wall.problem:
        return dearest(policy, prices)
    return price_at(policy, zone, prices, wall.wall_ms(now_ms))


def selective(policy: Policy, prices: Prices) -> bool:
    """Whether the work depends on the hour: the owner wants only part of the day, and it does not all cost the same."""
    if policy.work_hours_per_stay * HOUR_MS >= LONGEST_STAY_MS:
        return False
    everything = {policy.energy_price_micro_per_kwh, *(part.price_micro_per_kwh for part in policy.tariff_zones)}
    return len(everything | {slot.price_micro_per_kwh for slot in prices.slots}) > 1


def break_even(policy: Policy, *, plugged: bool) -> float | None:
    """The price (micro per kWh at the plug) from which on the work does not pay; None where no payout is known."""
    if policy.payout_micro_per_kwh == 0:
        return None
    wear = 0 if plugged else policy.wear_micro_per_kwh
    return (policy.payout_micro_per_kwh - policy.price_floor_micro_per_kwh - wear) * policy.charge_efficiency


# --- the stay -----------------------------------------------------------------------------------------------------


class Basis(msgspec.Struct, frozen=True):
    """What a stay is laid out from. `timer` is the car's own departure as it tells it, '' where it tells none."""

    policy: Policy
    zone: Zone
    prices: Prices
    timer: str
    plugged_since_ms: int | None

    def same(self, other: Basis) -> bool:
        """Asked at every step, so identity is asked first: the larger parts are replaced only when they change."""
        return (
            (self.policy is other.policy or self.policy == other.policy)
            and (self.prices is other.prices or self.prices == other.prices)
            and (self.zone is other.zone or self.zone == other.zone)
            and self.timer == other.timer
            and self.plugged_since_ms == other.plugged_since_ms
        )


class Stay(msgspec.Struct, frozen=True):
    """The time until the next departure, in wall milliseconds, and the slots chosen in it, in order of time.

    `priced` is all of it, in pieces of one price; `departures` are those of the coming nine days; `used_ms` is the work
    time that had passed when it was laid out. One that an earlier run began goes on until `resumed_until_ms`:
    whether the cable was out meanwhile nobody knows.
    """

    begins_ms: int = 0
    ends_ms: int = 0
    chosen: tuple[PriceSlot, ...] = ()
    priced: tuple[PriceSlot, ...] = ()
    departures: tuple[Leaving, ...] = ()
    used_ms: int = 0
    basis: Basis | None = None
    resumed_until_ms: int = 0

    def holds(self, basis: Basis, wall_ms: int) -> bool:
        """Whether it was laid out from this, for a time that is not over."""
        return self.basis is not None and self.begins_ms <= wall_ms < self.ends_ms and self.basis.same(basis)

    def slot_at(self, wall_ms: int) -> PriceSlot | None:
        """The chosen slot that is on at this moment."""
        return _slot_at(self.chosen, wall_ms)

    def price_at(self, wall_ms: int) -> PriceSlot | None:
        """The piece of one price at this moment."""
        return _slot_at(self.priced, wall_ms)

    def next_slot(self, wall_ms: int) -> PriceSlot | None:
        """The next chosen slot that begins after this moment."""
        return next((slot for slot in self.chosen if slot.start_wall_ms > wall_ms), None)

    def spent_ms(self, wall_ms: int) -> int:
        """The work hours that have passed in this stay until then."""
        passed = sum(max(0, min(slot.end_wall_ms, wall_ms) - slot.start_wall_ms) for slot in self.chosen)
        return self.used_ms + passed


def lay_out(stay: Stay, basis: Basis, wall_ms: int) -> Stay:
    """The stay from this moment on; `stay` is the one before, which may be going on."""
    policy, plugged = basis.policy, basis.plugged_since_ms is not None
    same_stay = stay.basis is not None and stay.basis.plugged_since_ms == basis.plugged_since_ms
    same_stay = same_stay or wall_ms < stay.resumed_until_ms
    used_ms = stay.spent_ms(wall_ms) if same_stay and stay.begins_ms <= wall_ms < stay.ends_ms else 0
    departures = coming(policy.departures, basis.zone, wall_ms)
    own_ms = timer_ends_ms(basis.timer, basis.zone) if basis.timer else None
    if own_ms is not None and own_ms > wall_ms:
        departures = tuple(sorted((*departures, Leaving(own_ms, None)), key=lambda leaving: leaving.wall_ms))
    ends_ms = min(departures[0].wall_ms, wall_ms + LONGEST_STAY_MS) if departures else wall_ms + DAY_MS
    limit = break_even(policy, plugged=plugged)
    slots = _slots(policy, basis.zone, basis.prices, wall_ms, ends_ms)
    wanted = [
        slot
        for slot in slots
        if (limit is None or slot.price_micro_per_kwh < limit)
        and (not policy.schedule or within(policy.schedule, basis.zone, slot.start_wall_ms))
    ]
    chosen = _cheapest(wanted, round(policy.work_hours_per_stay * HOUR_MS) - used_ms)
    resumed_until_ms = 0 if plugged else min(stay.resumed_until_ms, ends_ms)
    return Stay(wall_ms, ends_ms, chosen, _joined(slots), departures, used_ms, basis, resumed_until_ms)


def _slots(policy: Policy, zone: Zone, prices: Prices, from_ms: int, to_ms: int) -> list[PriceSlot]:
    """The whole time in pieces of at most a quarter of an hour, each of one price and in or out of the schedule."""
    cuts = {from_ms, to_ms, prices.expires_wall_ms, *range(from_ms - from_ms % SLOT_MS, to_ms, SLOT_MS)}
    cuts.update(edges((*policy.tariff_zones, *policy.schedule), zone, from_ms, to_ms))
    cuts.update(moment for slot in prices.slots for moment in (slot.start_wall_ms, slot.end_wall_ms))
    moments = sorted(moment for moment in cuts if from_ms <= moment <= to_ms)
    return [
        PriceSlot(start_ms, end_ms, price_at(policy, zone, prices, start_ms))
        for start_ms, end_ms in itertools.pairwise(moments)
    ]


def _cheapest(slots: list[PriceSlot], wanted_ms: int) -> tuple[PriceSlot, ...]:
    """The cheapest slots that together are as long as wanted, in order of time; equals that touch are joined."""
    chosen: list[PriceSlot] = []
    for _, group in itertools.groupby(sorted(slots, key=_price), key=_price):
        equals = sorted(group, key=_start)
        if (all_ms := sum(map(_length_ms, equals))) <= wanted_ms:
            chosen += equals
            wanted_ms -= all_ms
            continue
        while equals and wanted_ms > 0:
            slot = _best(equals, chosen, wanted_ms)
            equals.remove(slot)
            taken = _at_most(slot, chosen, wanted_ms)
            chosen.append(taken)
            wanted_ms -= taken.end_wall_ms - taken.start_wall_ms
        if wanted_ms <= 0:
            break
    return _joined(sorted(chosen, key=_start))


def _best(equals: list[PriceSlot], chosen: list[PriceSlot], wanted_ms: int) -> PriceSlot:
    """Of equally dear slots (in order of time) the one to take next."""
    starts, ends = {slot.start_wall_ms for slot in chosen}, {slot.end_wall_ms for slot in chosen}
    for slot in equals:
        if slot.start_wall_ms in ends or slot.end_wall_ms in starts:
            return slot
    runs = _joined(equals)
    enough = [run for run in runs if _length_ms(run) >= wanted_ms]
    best = min(enough, key=_length_ms) if enough else max(runs, key=_length_ms)
    return next(slot for slot in equals if slot.start_wall_ms == best.start_wall_ms)


def _at_most(slot: PriceSlot, chosen: list[PriceSlot], wanted_ms: int) -> PriceSlot:
    """The slot cut to what is still wanted, at the end that does not touch what is chosen already."""
    if _length_ms(slot) <= wanted_ms:
        return slot
    before_a_chosen = any(slot.end_wall_ms == other.start_wall_ms for other in chosen)
    if before_a_chosen:
        return PriceSlot(slot.end_wall_ms - wanted_ms, slot.end_wall_ms, slot.price_micro_per_kwh)
    return PriceSlot(slot.start_wall_ms, slot.start_wall_ms + wanted_ms, slot.price_micro_per_kwh)


def _joined(slots: list[PriceSlot]) -> tuple[PriceSlot, ...]:
    """Slots in order of time, those that touch and cost the same made one."""
    joined: list[PriceSlot] = []
    for slot in slots:
        last = joined[-1] if joined else None
        if last is not None and last.end_wall_ms == slot.start_wall_ms and _price(last) == _price(slot):
            joined[-1] = PriceSlot(last.start_wall_ms, slot.end_wall_ms, slot.price_micro_per_kwh)
        else:
            joined.append(slot)
    return tuple(joined)


def _apart(slots: tuple[PriceSlot, ...]) -> tuple[PriceSlot, ...]:
    """The slots in order of time, none over another: where two were, the dearer price counts."""
    ordered = sorted((slot for slot in slots if _length_ms(slot) > 0), key=_start)
    if all(one.end_wall_ms <= other.start_wall_ms for one, other in itertools.pairwise(ordered)):
        return tuple(ordered)
    moments = sorted({moment for slot in ordered for moment in (slot.start_wall_ms, slot.end_wall_ms)})
    pieces = []
    for start_ms, end_ms in itertools.pairwise(moments):
        on = [_price(slot) for slot in ordered if slot.start_wall_ms <= start_ms < slot.end_wall_ms]
        if on:
            pieces.append(PriceSlot(start_ms, end_ms, max(on)))
    return _joined(pieces)


def _slot_at(slots: tuple[PriceSlot, ...], wall_ms: int) -> PriceSlot | None:
    """The one of the slots (in order of time, none over another) that is on at this moment."""
    index = bisect.bisect_right(slots, wall_ms, key=_start) - 1
    return slots[index] if index >= 0 and wall_ms < slots[index].end_wall_ms else None


def _price(slot: PriceSlot) -> int:
    return slot.price_micro_per_kwh


def _start(slot: PriceSlot) -> int:
    return slot.start_wall_ms


def _length_ms(slot: PriceSlot) -> int:
    return slot.end_wall_ms - slot.start_wall_ms
