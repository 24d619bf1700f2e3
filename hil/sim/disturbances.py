"""What goes wrong around a simulated car: network and clock, other users, owner and grid. See `hil.sim.faults`."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from agent.core import signals
from agent.core.events import (
    ConsentSeen,
    DemandSeen,
    OwnerMode,
    OwnerSaid,
    PaceSeen,
    PlansMissing,
    PriceSlot,
    PricesSeen,
    SelfTested,
)
from agent.core.model import Pace, PaceState
from hil.sim.car import Car

JUMPED_MS = 540_000
"""A clock that is wrong and says that it is right for longer than the ten minutes of distrust cannot be told from one
that was put right."""


# --- network and clock ------------------------------------------------------------------------------------------


def no_network(car: Car, _chance: random.Random) -> Callable[[], None]:
    """The broker is gone."""
    car.shells.link(connected=False)
    return lambda: car.shells.link(connected=not car.suspended)


def bad_network(car: Car, chance: random.Random) -> Callable[[], None]:
    """Messages are lost, late, come twice, and are refused."""
    troubles = car.shells.troubles
    troubles.lose, troubles.late, troubles.duplicate = chance.uniform(0, 0.4), chance.uniform(0, 0.3), 0.3
    troubles.undelivered = 0.05

    def mend() -> None:
        troubles.lose = troubles.late = troubles.duplicate = troubles.undelivered = 0.0

    return mend


def slow_fleet(car: Car, chance: random.Random) -> Callable[[], None]:
    """The operator closes the cell, stops it, or makes everybody wait."""
    state = chance.choice((PaceState.CLOSED, PaceState.STOP, PaceState.OPEN))
    pace = Pace(state, 900_000, chance.choice((1_000, 4_000)))
    car.tell(PaceSeen(at_ms=car.clock.now_ms, pace=pace))
    return lambda: car.tell(PaceSeen(at_ms=car.clock.now_ms, pace=Pace(PaceState.OPEN, 60_000)))


def metered(car: Car, _chance: random.Random) -> Callable[[], None]:
    """The network is a metered one."""
    car.host = msgspec.structs.replace(car.host, metered=True)
    car.tell_host()

    def mend() -> None:
        car.host = msgspec.structs.replace(car.host, metered=False)
        car.tell_host()

    return mend


def clock_jump(car: Car, chance: random.Random) -> Callable[[], None]:
    """The wall clock jumps, and back again before it would be believed: it says that it is right all the time."""
    right_ms = car.wall_offset_ms
    car.wall_offset_ms += round(chance.choice((-1, 1)) * chance.choice((3_000, 600_000, 7_200_000, 30_000_000)))
    car.tell_host()

    def mend() -> None:
        if car.wall_offset_ms != right_ms:
            car.wall_offset_ms = right_ms
            car.tell_host()

    car.clock.after(JUMPED_MS, mend)
    return mend


def clock_lost(car: Car, chance: random.Random) -> Callable[[], None]:
    """Nobody keeps the clock; at worst it starts at 1970."""
    right_ms = car.wall_offset_ms
    car.wall_error_ms = None
    if chance.random() < 0.5:
        car.wall_offset_ms = 0
    car.tell_host()

    def mend() -> None:
        car.wall_offset_ms, car.wall_error_ms = right_ms, 20
        car.tell_host()

    return mend


# --- engine plans -----------------------------------------------------------------------------------------------


def plans_stale(car: Car, chance: random.Random) -> Callable[[], None]:
    """The engine was updated, and its plans are good for nothing; what was not built by the end is taken away."""
    packages = tuple(f"{number:064x}" for number in range(chance.randint(1, 4)))
    car.tell(PlansMissing(at_ms=car.clock.now_ms, packages=packages))
    return lambda: car.tell(PlansMissing(at_ms=car.clock.now_ms, packages=()))


# --- others -----------------------------------------------------------------------------------------------------


def other_user(car: Car, chance: random.Random) -> Callable[[], None]:
    """Somebody else uses the computer, or the maker saves power."""
    if chance.random() < 0.3:
        car.say(signals.POWER_OPTIMIZE, 8.0)
        return lambda: car.say(signals.POWER_OPTIMIZE, 0.0)
    path = chance.choice(signals.OTHER_USERS)
    car.say(path, value=True)
    return lambda: car.say(path, value=False)


def ill_agent(car: Car, chance: random.Random) -> Callable[[], None]:
    """The agent's own test fails, or an update waits."""
    if chance.random() < 0.5:
        car.tell(SelfTested(at_ms=car.clock.now_ms, problem="the ledger's root is wrong"))
        return lambda: car.tell(SelfTested(at_ms=car.clock.now_ms, problem=""))
    car.host = msgspec.structs.replace(car.host, update_pending=True)
    car.tell_host()

    def mend() -> None:
        car.host = msgspec.structs.replace(car.host, update_pending=False)
        car.tell_host()

    return mend


def owner_pauses(car: Car, chance: random.Random) -> Callable[[], None]:
    """The owner pauses for a while, until a wall time, or without end; or lets it finish."""
    now_ms = car.clock.now_ms
    kind = chance.choice(("for", "until", "endless", "finish"))
    for_ms = round(chance.uniform(10_000, 3_600_000))
    match kind:
        case "for":
            said = OwnerSaid(at_ms=now_ms, mode=OwnerMode.PAUSED, until_ms=now_ms + for_ms)
        case "until":
            wall_ms = now_ms + car.wall_offset_ms + for_ms
            said = OwnerSaid(at_ms=now_ms, mode=OwnerMode.PAUSED, until_wall_ms=wall_ms)
        case "endless":
            said = OwnerSaid(at_ms=now_ms, mode=OwnerMode.PAUSED)
        case _:
            said = OwnerSaid(at_ms=now_ms, mode=OwnerMode.FINISH)
    car.tell(said)
    return lambda: car.tell(OwnerSaid(at_ms=car.clock.now_ms, mode=OwnerMode.AUTO))


def owner_withdraws(car: Car, chance: random.Random) -> Callable[[], None]:
    """Consent is withdrawn, or the car's own switch is pressed."""
    if chance.random() < 0.5:
        car.say(signals.PAUSE_REQUESTED, value=True)
        return lambda: car.say(signals.PAUSE_REQUESTED, value=False)
    car.tell(ConsentSeen(at_ms=car.clock.now_ms, version=0))
    required = car.traits.policy.consent_required_version
    return lambda: car.tell(ConsentSeen(at_ms=car.clock.now_ms, version=required))


def demand(car: Car, chance: random.Random) -> Callable[[], None]:
    """The grid asks for relief, and sometimes takes it back early."""
    for_ms = round(chance.uniform(60_000, 3_600_000))
    car.tell(DemandSeen(at_ms=car.clock.now_ms, stop_for_ms=for_ms, detail="peak"))
    return lambda: car.tell(DemandSeen(at_ms=car.clock.now_ms, stop_for_ms=0))


def price_curve(car: Car, chance: random.Random) -> Callable[[], None]:
    """A curve of quarter hours: cheap, dear, below zero; it expires some hours on, and nobody sends the next."""
    now_ms = car.clock.now_ms
    wall_ms = now_ms + car.traits.wall_offset_ms
    quarter_ms = 900_000
    first_ms = wall_ms - wall_ms % quarter_ms
    base = chance.choice((50_000, 250_000, 600_000))
    slots = tuple(
        PriceSlot(first_ms + n * quarter_ms, first_ms + (n + 1) * quarter_ms, base + round(chance.gauss(0, 150_000)))
        for n in range(chance.choice((8, 40, 96)))
    )
    expires_ms = wall_ms + round(chance.choice((3_600_000, 86_400_000)))
    car.tell(PricesSeen(at_ms=now_ms, issued_wall_ms=wall_ms, expires_wall_ms=expires_ms, slots=slots))
    return lambda: None
