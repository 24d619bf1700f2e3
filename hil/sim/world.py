"""A random world for one car, from a seed: who owns it, where it stands, what the weather does, and what goes wrong.

A night is 12 hours: the car comes home in the evening (or stands at work in the sun, or at an airport), is plugged in
or forgotten, stands, is visited, and leaves in the morning; what happens between two nights is left out, but for the
charge it took. Some nights are those on which the clocks change. After the last night everything is put right, and the
computer must be at work within half an hour: every reason clears.

`Focus` narrows a world down, so that one kind of trouble is met often in little time.
"""

from __future__ import annotations

import datetime as dt
import math
import random
import zoneinfo
from collections.abc import Callable

import msgspec

from agent.core import signals
from agent.core.events import (
    ConsentSeen,
    DemandSeen,
    OwnerMode,
    OwnerSaid,
    OwnerSet,
    PaceSeen,
    PriceSlot,
    PricesSeen,
    SelfTested,
)
from agent.core.model import Pace
from agent.core.policy import EVERY_DAY, Departure, Policy, TariffZone, Window
from agent.zones import zone_named
from hil.car.body import DRIVING, Action, Body
from hil.car.plant import PlantParameters
from hil.car.power_state import PowerState
from hil.sim import people
from hil.sim.bus import GROUPS, MODELS
from hil.sim.car import Car
from hil.sim.chassis import Traits
from hil.sim.faults import CHANNELS, LONGEST_MS

HOUR_MS = 3_600_000
NIGHT_MS = 12 * HOUR_MS
DAY_MS = 24 * HOUR_MS
ASLEEP_MS = 120_000
"""Before the next night begins the car is asleep for so long, whatever it did over the day."""
SETTLE_MS = 900_000
GOOD_MS = 2_400_000
"""After the last night: time to cool and to believe the clock again, and time in which it must be at work."""
PLUG_AGAIN_MS = 500_000
EPILOGUE_MS = SETTLE_MS + GOOD_MS
EVENINGS = (
    ("Europe/Berlin", "2026-03-28"),
    ("Europe/Berlin", "2026-10-24"),
    ("America/New_York", "2026-03-07"),
    ("America/New_York", "2026-10-31"),
    ("Europe/London", "2026-10-24"),
    ("Australia/Sydney", "2026-04-04"),
)
"""The evenings before the clocks change."""
ZONES = ("Europe/Berlin", "America/Los_Angeles", "UTC", "Asia/Kolkata")


class Focus(msgspec.Struct, frozen=True, kw_only=True):
    """What is met in this world, and how often."""

    name: str = "night"
    night_ms: int = NIGHT_MS
    channels: tuple[str, ...] = tuple(CHANNELS)
    kinds: tuple[str, ...] = ()
    """Only these faults of the channels; empty: all."""
    longest_ms: int = 6_000_000
    faults_per_night: float = 4.0
    visits_per_night: float = 1.0
    shape: Callable[[Traits, random.Random], Traits] | None = None
    air_c: float | None = None
    parked: bool = False
    """The car stands plugged in from the beginning, and nobody drives it."""


NIGHT = Focus()


class Weather(msgspec.Struct, frozen=True):
    """The air over a day: mean and swing outside, and what the sun adds where the computer is."""

    mean_c: float
    swing_c: float
    sun_c: float
    start_hour: float

    def air_c(self, since_ms: int) -> tuple[float, float]:
        """(outside, at the computer) so long after the start."""
        hour = (self.start_hour + since_ms / HOUR_MS) % 24
        outside_c = self.mean_c - self.swing_c * math.cos(2 * math.pi * (hour - 3) / 24)
        sun = max(0.0, math.sin(math.pi * (hour - 7) / 13)) if 7 < hour < 20 else 0.0
        return outside_c, outside_c + 3.0 + self.sun_c * sun


def build(seed: int, number: int, nights: int, focus: Focus = NIGHT, *, keep: bool = True, dense: bool = False) -> Car:
    """Car `number` of the world with this seed, everything that will happen to it on its agenda."""
    name = f"{seed}/{number}/{focus.name}"
    traits, weather = _traits(f"car-{seed}-{number}", random.Random(f"{name}/car"), focus)
    car = Car(traits, random.Random(f"{name}/life"), keep=keep, dense=dense)
    chance = random.Random(f"{name}/nights")
    start_ms = traits.start_ms
    car.clock.at(start_ms, lambda: _move_in(car, weather))
    for night in range(nights):
        _night(car, chance, focus, start_ms + night * DAY_MS)
    end_ms = start_ms + (nights - 1) * DAY_MS + focus.night_ms
    car.clock.at(end_ms, lambda: _put_right(car))
    car.clock.at(end_ms + SETTLE_MS, lambda: car.be_well(well=car.traits.policy.work_hours_per_stay >= 168))
    return car


def spans(nights: int, focus: Focus, start_ms: int) -> list[tuple[int, int]]:
    """From when to when each night lasts; the last has the time in which every reason must clear."""
    first = [(start_ms + n * DAY_MS, start_ms + n * DAY_MS + focus.night_ms) for n in range(nights)]
    first[-1] = (first[-1][0], first[-1][1] + EPILOGUE_MS)
    return first


# --- the car and its owner --------------------------------------------------------------------------------------


def _traits(name: str, chance: random.Random, focus: Focus) -> tuple[Traits, Weather]:
    zone, evening = _evening(chance)
    shift = not focus.parked and chance.random() < 0.15
    if shift:
        evening -= dt.timedelta(hours=10)
    wall_ms = round(evening.replace(tzinfo=zoneinfo.ZoneInfo(zone)).timestamp() * 1000)
    start_ms = 1_000_000
    lithium = chance.random() < 0.3
    heat = chance.random()
    mean_c = 33.0 if heat < 0.03 else chance.gauss(12, 7)
    if focus.air_c is not None:
        weather = Weather(focus.air_c, 0.0, 0.0, evening.hour)
    else:
        weather = Weather(mean_c, chance.uniform(2, 7), chance.choice((0.0, 0.0, 0.0, 25.0)), evening.hour)
    limit = chance.choice((80.0, 90.0, 100.0))
    plant = PlantParameters(
        capacity_wh=chance.choice((52_000.0, 75_000.0, 95_000.0)),
        charge_limit_percent=limit,
        awake_w=chance.uniform(120, 250),
        die_to_sink_k_per_w=chance.uniform(0.19, 0.31),
        sink_j_per_k=chance.uniform(330, 600),
        sink_to_air_k_per_w=chance.choices((0.10, 0.20, 0.30, 0.60), (8, 8, 8, 1))[0],
        low_voltage_wh=chance.choice((540.0, 540.0, 200.0)),
    )
    traits = Traits(
        name=name,
        policy=_policy(chance, plant, lithium=lithium),
        zone=zone_named(zone),
        model=chance.choices(MODELS, (6, 2, 2))[0],
        plant=plant,
        charge_percent=chance.uniform(20, limit),
        charger_w=chance.choice((1_400.0, 2_300.0, 3_700.0, 7_400.0, 11_000.0)),
        lithium=lithium,
        stays_awake=chance.random() < 0.5,
        slice_ms=chance.choice((30_000, 60_000, 60_000, 60_000)),
        reading_ms=chance.choice((1_000, 2_000, 2_000, 2_000)),
        wall_offset_ms=wall_ms - start_ms,
        start_ms=start_ms,
    )
    return (traits if focus.shape is None else focus.shape(traits, chance)), weather


def _evening(chance: random.Random) -> tuple[str, dt.datetime]:
    """A time zone, and an evening there at seven (without its zone)."""
    if chance.random() < 0.25:
        zone, day = chance.choice(EVENINGS)
        return zone, dt.datetime.fromisoformat(f"{day}T19:00")
    first = dt.datetime.fromisoformat("2026-01-01T19:00")
    return chance.choice(ZONES), first + dt.timedelta(days=chance.randrange(360))


def _policy(chance: random.Random, plant: PlantParameters, *, lithium: bool) -> Policy:
    limit, maybe = plant.charge_limit_percent, chance.random
    departures: tuple[Departure, ...] = ()
    if maybe() < 0.6:
        at = f"{chance.randint(4, 6):02d}:{chance.choice((0, 15, 30, 45)):02d}"
        departures = (Departure(at=at, target_percent=round(limit - chance.uniform(3, 25))),)
    cheap = TariffZone(start="23:00", end="06:00", price_micro_per_kwh=90_000)
    dear = TariffZone(start="17:00", end="21:00", price_micro_per_kwh=520_000)
    return Policy(
        parked_for_s=chance.choice((30.0, 60.0, 120.0)),
        lock_required=maybe() < 0.1,
        plug_required=maybe() < 0.8,
        reserve_percent=float(chance.choice((20, 40, 50, 60))),
        departures=departures,
        battery_wh=plant.capacity_wh,
        charger_w=chance.choice((0.0, 2_000.0)),
        low_voltage_chemistry="lithium" if lithium else "lead",
        time_zone="UTC",
        schedule=(Window(start="20:00", end="06:30"),) if maybe() < 0.2 else (),
        tariff_zones=chance.choice(((), (cheap,), (cheap, dear))),
        work_hours_per_stay=chance.choice((168.0, 168.0, 168.0, 6.0)),
        payout_micro_per_kwh=chance.choice((0, 500_000, 1_500_000)),
        consent_required_version=chance.choice((0, 1)),
        workload_classes=("ocr",) if maybe() < 0.1 else (),
        metered_allowed=maybe() < 0.3,
        keep_awake=maybe() < 0.01,
        keep_awake_budget_minutes=chance.choice((15, 30)),
    )


# --- what happens -----------------------------------------------------------------------------------------------


def _move_in(car: Car, weather: Weather) -> None:
    """The first moment: the link, the clock, consent, and the weather from now on."""
    start_ms = car.clock.now_ms
    car.weather = lambda: weather.air_c(car.clock.now_ms - start_ms)
    outside_c, air_c = car.weather()
    car.set_air(outside_c, air_c)
    car.physics.sink_c = car.physics.die_c = car.physics.pack_c = air_c
    car.tell_host()
    car.tell(SelfTested(at_ms=start_ms, problem=""))
    car.tell(ConsentSeen(at_ms=start_ms, version=car.traits.policy.consent_required_version))
    car.shells.link(connected=True)


def _night(car: Car, chance: random.Random, focus: Focus, start_ms: int) -> None:
    night_ms, clock = focus.night_ms, car.clock
    stays = focus.parked or chance.random() < 0.2
    at_ms = start_ms
    if focus.parked:
        clock.at(start_ms, lambda: _stand_plugged(car))
    elif stays:
        clock.at(start_ms, lambda: _stand(car, plugged=chance.random() < 0.7))
    else:
        at_ms += round(chance.uniform(0, 0.15) * night_ms)
        used = chance.uniform(3, 30)
        clock.at(start_ms, lambda: _on_the_road(car, used))
        at_ms = _play(car, people.come_home(chance, plug=chance.random() < 0.85), at_ms)
    clock.at(at_ms, lambda: _begin_stay(car, chance))
    away_ms = start_ms + night_ms if stays else start_ms + round(chance.uniform(0.85, 0.98) * night_ms)
    for _ in range(_count(chance, focus.visits_per_night)):
        _play(car, people.visit(chance), round(chance.uniform(at_ms, away_ms - 120_000)))
    _faults(car, chance, focus, at_ms, away_ms)
    expect_departures(car, at_ms, away_ms)
    if not stays:
        _play(car, people.drive_away(chance), away_ms)
    if not focus.parked:
        clock.at(start_ms + night_ms, car.sleep)
        clock.at(start_ms + DAY_MS - ASLEEP_MS, car.sleep)


def _count(chance: random.Random, mean: float) -> int:
    """How often something of this mean frequency happens (Poisson, by Knuth)."""
    limit, product, count = math.exp(-mean), chance.random(), 0
    while product > limit:
        product *= chance.random()
        count += 1
    return count


def _play(car: Car, sequence: people.Sequence, at_ms: int) -> int:
    """Put a sequence on the agenda; when it is over."""
    for wait_s, deed in sequence:
        at_ms += round(wait_s * 1000)
        car.clock.at(at_ms, lambda deed=deed: deed(car))  # type: ignore[misc]
    return at_ms


def _on_the_road(car: Car, used_percent: float) -> None:
    car.set_charge(max(8.0, car.physics.charge_percent - used_percent))
    car.comes(there=True)
    car.appear(DRIVING)


def _stand(car: Car, *, plugged: bool) -> None:
    """Nobody has come for it: it stands as it stood."""
    car.appear(Body(plugged_in=plugged, power_state=PowerState.CONDITIONING))


def _stand_plugged(car: Car) -> None:
    _stand(car, plugged=True)
    car.set_charger(car.traits.charger_w)


def _begin_stay(car: Car, chance: random.Random) -> None:
    """The cable may be in; charging begins at once or when the owner's timer says."""
    car.begin_stay()
    if chance.random() < 0.7 or car.charger_w:
        car.set_charger(car.traits.charger_w)
        return
    car.set_charger(0.0)

    def begin() -> None:
        car.wake()
        car.set_charger(car.traits.charger_w)

    car.clock.after(chance.uniform(1, 7) * HOUR_MS, begin)


def _faults(car: Car, chance: random.Random, focus: Focus, from_ms: int, to_ms: int) -> None:
    """In each channel one after the other, never two at a time."""
    busy_until = dict.fromkeys(focus.channels, from_ms)
    for _ in range(_count(chance, focus.faults_per_night)):
        channel = chance.choice(focus.channels)
        begin = chance.choice([one for one in CHANNELS[channel] if not focus.kinds or one.__name__ in focus.kinds])
        lasts_ms = round(chance.choice((3_000, 60_000, 600_000, 3_600_000)) * chance.uniform(0.5, 1.5))
        lasts_ms = min(lasts_ms, focus.longest_ms, LONGEST_MS.get(channel, lasts_ms))
        at_ms = max(busy_until[channel], round(chance.uniform(from_ms, to_ms)))
        if at_ms >= to_ms:
            continue
        busy_until[channel] = at_ms + lasts_ms + 1

        def strike(begin: people.Deed = begin, lasts_ms: int = lasts_ms) -> None:  # type: ignore[assignment]
            mend = begin(car, chance)  # type: ignore[call-arg,func-returns-value]
            car.clock.after(lasts_ms, mend)  # type: ignore[arg-type]

        car.clock.at(at_ms, strike)


def expect_departures(car: Car, from_ms: int, to_ms: int) -> None:
    """At each moment at which the owner wanted a charge, as the owner means it, it is noted what there is."""
    traits = car.traits
    info = zoneinfo.ZoneInfo(traits.zone.name)
    for departure in traits.policy.departures:
        day = dt.datetime.fromtimestamp((from_ms + traits.wall_offset_ms) / 1000, info).date()
        for number in range((to_ms - from_ms) // DAY_MS + 2):
            local = dt.datetime.combine(day + dt.timedelta(days=number), dt.time.fromisoformat(departure.at), info)
            at_ms = round(local.timestamp() * 1000) - traits.wall_offset_ms
            if from_ms < at_ms < to_ms and EVERY_DAY[local.weekday()] in departure.days:
                car.clock.at(at_ms, lambda target=departure.target_percent: car.departs(target))  # type: ignore[misc]


def _put_right(car: Car) -> None:
    """Everything is mended, parked, plugged in, cool and cheap, and the owner wants it."""
    policy, now_ms = car.traits.policy, car.clock.now_ms
    for path in list(car.bus.lies):
        car.bus.lie(path, None)
    car.feeds = car.fan = True
    car.stays_awake = True
    car.weather = lambda: (12.0, 15.0)
    car.set_air(12.0, 15.0)
    car.physics.pack_c, car.physics.low_voltage_wh = 20.0, 0.9 * car.traits.plant.low_voltage_wh
    car.physics.limit_percent = 100.0
    target = max((one.target_percent for one in policy.departures), default=0.0)
    car.set_charge(max(90.0, min(97.0, target + 3)))
    car.lock(unlocked=False)
    car.comes(there=False)
    car.appear(Body(power_state=PowerState.CONDITIONING))
    car.set_charger(7_400.0)
    car.clock.after(PLUG_AGAIN_MS, lambda: car.do(Action.PLUG))
    for user in (*signals.OTHER_USERS, signals.PAUSE_REQUESTED):
        car.say(user, value=False)
    car.say(signals.POWER_OPTIMIZE, 0.0)
    car.source(alive=True)
    for group in GROUPS:
        car.bus.resume(group)
    car.mend_computer()
    car.tell(SelfTested(at_ms=now_ms, problem=""))
    car.tell(DemandSeen(at_ms=now_ms, stop_for_ms=0))
    car.tell(ConsentSeen(at_ms=now_ms, version=policy.consent_required_version))
    car.tell(OwnerSaid(at_ms=now_ms, mode=OwnerMode.AUTO))
    car.tell(OwnerSet(at_ms=now_ms, schedule=(), price_floor_micro_per_kwh=-10_000_000, workload_classes=()))
    wall_ms = now_ms + car.wall_offset_ms
    free = (PriceSlot(wall_ms - HOUR_MS, wall_ms + DAY_MS, 0),)
    car.tell(PricesSeen(at_ms=now_ms, issued_wall_ms=wall_ms, expires_wall_ms=wall_ms + DAY_MS, slots=free))
    car.tell(PaceSeen(at_ms=now_ms, pace=Pace()))
    car.shells.link(connected=True)
