"""The simulated car of `hil.sim`, told what a scenario says instead of what chance does, and watched step by step."""

from __future__ import annotations

import datetime as dt
import random
import zoneinfo
from collections.abc import Callable

import msgspec

from agent.core.events import ConsentSeen, EventType, SelfTested
from agent.errors import ConfigError
from agent.zones import zone_named
from hil.car.body import DRIVING, Action, Body, Door, Gear
from hil.car.plant import PlantParameters
from hil.car.power_state import PowerState
from hil.rigs.core_view import CarValues, CoreView
from hil.rigs.observation import Observation
from hil.scenario.model import Scenario, Setup
from hil.sim.bus import MODELS
from hil.sim.car import Car
from hil.sim.chassis import Traits
from hil.sim.world import expect_departures

Deed = Callable[["ScenarioCar"], None]
START_MS = 1_000_000
READING_MS = 2_000


class ScenarioCar(Car):
    """One car and its core; every observation is handed to `seen`."""

    def __init__(self, scenario: Scenario, seen: Callable[[Observation], None]) -> None:
        self._seen = seen
        self._view = CoreView(START_MS)
        super().__init__(traits_of(scenario), random.Random(f"{scenario.name}/{scenario.setup.seed}"))
        self._begin(scenario)

    @property
    def view(self) -> CoreView:
        """Leases and vacates."""
        return self._view

    def _begin(self, scenario: Scenario) -> None:
        setup, now_ms = scenario.setup, self.clock.now_ms
        self.weather = lambda: (setup.ambient_c, setup.ambient_c + 3.0)
        self.shells.troubles.cancel = 0.0
        outside_c, air_c = self.weather()
        self.set_air(outside_c, air_c)
        self.physics.sink_c = self.physics.die_c = air_c + 2.0
        self.physics.pack_c = outside_c
        match setup.start:
            case "parked":
                self.appear(Body(plugged_in=True, power_state=PowerState.CONDITIONING))
            case "unplugged":
                self.appear(Body(power_state=PowerState.CONDITIONING))
            case "driving":
                self.comes(there=True)
                self.appear(DRIVING)
        self.set_charger(setup.charger_w)
        self.begin_stay()
        self.tell_host()
        self.tell(SelfTested(at_ms=now_ms, problem=""))
        self.tell(ConsentSeen(at_ms=now_ms, version=self.traits.policy.consent_required_version))
        self.shells.link(connected=True)
        expect_departures(self, now_ms, now_ms + scenario.length_ms)
        self._tell_news()

    # --- watching -----------------------------------------------------------------------------------------------

    def _step(self, event: EventType) -> None:
        super()._step(event)
        self.look(event)

    def look(self, event: EventType) -> None:
        """Tell of what is seen after this event, where it is news."""
        if observation := self._view.saw(event, self.witness.state, self._values()):
            self._seen(observation)

    def _values(self) -> CarValues:
        physics = self.physics
        return CarValues(
            computing=self.shells.load > 0,
            power_w=self.computer_w() if self.awake else 0.0,
            die_c=physics.die_c,
            charge_percent=physics.charge_percent,
            pack_power_w=physics.pack_w,
            low_voltage_v=physics.low_voltage_v,
            ambient_c=self.weather()[0],
            work_s=self.work_ms / 1000,
        )

    # --- time ---------------------------------------------------------------------------------------------------

    def run_until(self, until_ms: int, reached: Callable[[], bool]) -> bool:
        """Live until then, until what is waited for is so, or until a promise is broken; whether it was reached."""
        while not reached():
            if self.clock.now_ms >= until_ms or self.witness.broken:
                return False
            agenda_ms = self.clock.next_ms
            next_ms = min(self._wake_ms(), until_ms if agenda_ms is None else agenda_ms)
            self.run(min(until_ms, max(next_ms, self.clock.now_ms) + 1))
        return True

    def act(self, deed: Callable[[], object]) -> None:
        """Do something to the car now, and let its bus tell of it."""
        self._advance(self.clock.now_ms)
        deed()
        self._tell_news()

    def later(self, after_s: float, deed: Callable[[], None]) -> None:
        """Do something so much later."""
        self.clock.after(after_s * 1000, deed)

    # --- what people do -----------------------------------------------------------------------------------------

    def play(self, steps: tuple[tuple[float, Deed], ...]) -> None:
        """A sequence: seconds to wait, then what to do."""
        at_s = 0.0
        for wait_s, deed in steps:
            at_s += wait_s
            if at_s == 0:
                deed(self)
            else:
                self.later(at_s, lambda deed=deed: deed(self))  # type: ignore[misc]

    def drives(self, speed_kmh: float) -> None:
        """On the road at this speed; a car that stood before goes there without its driver's steps."""
        self.comes(there=True)
        body = msgspec.structs.replace(DRIVING, speed_kmh=speed_kmh, brake_pressed=speed_kmh == 0)
        self.appear(body)

    def burns(self, percent: float) -> None:
        """The charge that a trip takes."""
        if percent:
            self.set_charge(max(5.0, self.physics.charge_percent - percent))


def _door(*, opened: bool) -> Deed:
    action = Action.OPEN_DOOR if opened else Action.CLOSE_DOOR
    return lambda car: car.do(action, door=Door.ROW1_DRIVER)


def _comes(car: ScenarioCar) -> None:
    car.comes(there=True)
    car.lock(unlocked=True)


def _goes(car: ScenarioCar) -> None:
    car.lock(unlocked=False)
    car.comes(there=False)
    car.begin_stay()


def leaves(*, plug: bool) -> tuple[tuple[float, Deed], ...]:
    """The car arrives, and the driver leaves it."""
    steps: list[tuple[float, Deed]] = [
        (0.0, lambda car: car.do(Action.ARRIVE)),
        (1.5, lambda car: car.do(Action.PARK)),
        (4.0, _door(opened=True)),
        (2.0, lambda car: car.do(Action.LEAVE)),
        (1.5, _door(opened=False)),
    ]
    if plug:
        steps.append((10.0, lambda car: car.do(Action.PLUG)))
    return (*steps, (6.0, _goes))


RETURNS: tuple[tuple[float, Deed], ...] = (
    (0.0, _comes),
    (1.0, lambda car: car.do(Action.PULL_HANDLE)),
    (0.4, _door(opened=True)),
    (0.2, lambda car: car.release_handle()),
    (1.5, lambda car: car.do(Action.SIT)),
    (1.5, _door(opened=False)),
)


def drives_away(used_percent: float) -> tuple[tuple[float, Deed], ...]:
    """The driver unplugs, gets in and is gone."""
    return (
        (0.0, _comes),
        (3.0, lambda car: car.do(Action.UNPLUG)),
        *((max(wait_s, 0.3), deed) for wait_s, deed in RETURNS[1:]),
        (2.0, lambda car: car.do(Action.BRAKE)),
        (1.0, lambda car: car.do(Action.SHIFT, gear=Gear.DRIVE)),
        (0.7, lambda car: car.do(Action.RELEASE_BRAKE)),
        (0.5, lambda car: car.set_speed(1.0)),
        (1.0, lambda car: car.burns(used_percent)),
    )


# --- the car as the scenario says -------------------------------------------------------------------------------


def traits_of(scenario: Scenario) -> Traits:
    """Raises ConfigError for a time zone that does not exist."""
    setup = scenario.setup
    return Traits(
        name=scenario.name,
        policy=scenario.policy,
        zone=zone_named(scenario.policy.time_zone),
        model=MODELS[0],
        plant=PlantParameters(capacity_wh=setup.battery_wh, charge_limit_percent=setup.charge_limit_percent),
        charge_percent=setup.charge_percent,
        charger_w=setup.charger_w,
        lithium=scenario.policy.low_voltage_chemistry == "lithium",
        stays_awake=not setup.falls_asleep,
        slice_ms=round(setup.slice_s * 1000),
        reading_ms=READING_MS,
        wall_offset_ms=begins_wall_ms(setup) - START_MS,
        start_ms=START_MS,
    )


def begins_wall_ms(setup: Setup) -> int:
    """When the scenario begins, in milliseconds since 1970. Raises ConfigError."""
    try:
        local = dt.datetime.fromisoformat(setup.begins)
    except ValueError:
        raise ConfigError(f"car.begins is {setup.begins!r}", hint="write local time: 2026-03-28T19:00") from None
    if local.tzinfo is not None:
        raise ConfigError(f"car.begins is {setup.begins!r}", hint="leave the offset out: time_zone says it")
    return round(local.replace(tzinfo=zoneinfo.ZoneInfo(setup.time_zone)).timestamp() * 1000)
