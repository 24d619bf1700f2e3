"""The simulated car without its agent: its body, its plant, and what it says on its bus.

People, weather and faults act through its methods; every one of them ends in what the car says. What the computer
draws is for the agent's side to tell (`hil.sim.car.Car`).
"""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from agent.core import signals
from agent.core.events import SignalValue
from agent.core.policy import Policy
from agent.core.walltime import Zone
from agent.errors import DrivewayError
from hil.car.body import Action, Body, Door, Gear, act
from hil.car.plant import PlantParameters
from hil.car.power_state import PowerState
from hil.sim.bus import Bus, Model, body_values
from hil.sim.clockwork import Clockwork
from hil.sim.physics import Physics, Surroundings


class Traits(msgspec.Struct, frozen=True, kw_only=True):
    """What this car is, and what its owner wants."""

    name: str
    policy: Policy
    zone: Zone
    model: Model
    plant: PlantParameters
    charge_percent: float = 70.0
    charger_w: float = 7_400.0
    lithium: bool = False
    stays_awake: bool = True
    slice_ms: int = 45_000
    reading_ms: int = 1_000
    """How often the computer is read."""
    wall_offset_ms: int = 1_790_000_000_000
    start_ms: int = 1_000_000


class Chassis:
    """One car. What happens to it comes through its methods, at times that `clock` keeps."""

    def __init__(self, traits: Traits, chance: random.Random) -> None:
        self.traits, self.chance = traits, chance
        self.clock = Clockwork(traits.start_ms)
        self.bus = Bus(traits.model)
        self.body = Body(power_state=PowerState.CONDITIONING)
        self.physics = Physics(traits.plant, traits.charge_percent, 15.0, lithium=traits.lithium)
        self.person = False
        """Somebody is in or at it."""
        self.unlocked = False
        self.air_c, self.charger_w = 15.0, 0.0
        self.fan = self.feeds = True
        self.weather: Callable[[], tuple[float, float]] = lambda: (15.0, 15.0)
        """The air outside, and around the computer."""
        for user in (*signals.OTHER_USERS, signals.PAUSE_REQUESTED):
            self.bus.put(user, value=False)
        self.bus.put(signals.POWER_OPTIMIZE, 0.0)
        self.bus.put(signals.AMBIENT, 15.0)
        self.show_body()

    @property
    def awake(self) -> bool:
        """Whether the car is awake, and so its high-voltage battery connected."""
        return self.body.power_state is not PowerState.OFF

    def computer_w(self) -> float:
        """What the computer draws."""
        return self.traits.plant.computer_idle_w

    # --- what changes the plant --------------------------------------------------------------------------------

    def moved(self) -> None:
        """Something about the powers has changed."""
        self.physics.settle(
            Surroundings(
                air_c=self.air_c,
                charger_w=self.charger_w if self.body.plugged_in else 0.0,
                computer_w=self.computer_w() if self.awake else 0.0,
                awake=self.awake,
                feeds=self.feeds,
                fan=self.fan,
                speed_kmh=self.body.speed_kmh,
            )
        )

    def set_air(self, outside_c: float, air_c: float) -> None:
        """The air outside, and the air around the computer."""
        self.air_c = air_c
        self.bus.put(signals.AMBIENT, float(round(outside_c)))
        self.moved()

    def set_charger(self, charger_w: float) -> None:
        """What the charger gives from now on, while the cable is in."""
        self.charger_w = charger_w
        self.moved()
        self.show_slow()

    def set_charge(self, percent: float) -> None:
        """The charge after a day of which nobody tells the details."""
        physics = self.physics
        physics.energy_wh = physics.without_us_wh = physics.parameters.capacity_wh * percent / 100
        self.moved()
        self.show_slow()

    def set_fan(self, *, turns: bool) -> None:
        """The fan stops, or turns again."""
        self.fan = turns
        self.moved()

    def set_feeds(self, *, feeds: bool) -> None:
        """The DC-DC stops, or feeds again."""
        self.feeds = feeds
        self.moved()
        self.show_slow()

    def begin_stay(self) -> None:
        """From now on it counts what the computer takes."""
        self.physics.without_us_wh = self.physics.energy_wh
        self.physics.charging_without_us = self.physics.charging

    # --- what a person does ------------------------------------------------------------------------------------

    def do(self, action: Action, door: Door = Door.ROW1_DRIVER, gear: Gear = Gear.DRIVE) -> None:
        """One thing a person does to the car; what the car refuses does not happen."""
        try:
            self.body = act(self.body, action, door=door, gear=gear)
        except DrivewayError:
            return
        self.touched()

    def set_speed(self, speed_kmh: float) -> None:
        """Drive."""
        self.body = msgspec.structs.replace(self.body, speed_kmh=speed_kmh)
        self.touched()

    def lock(self, *, unlocked: bool) -> None:
        """Lock or unlock."""
        self.unlocked = unlocked
        self.touched()

    def comes(self, *, there: bool) -> None:
        """Somebody comes to the car, or goes away from it."""
        self.person = there

    def release_handle(self) -> None:
        """The handle springs back."""
        self.body = msgspec.structs.replace(self.body, handle_pulled=False)
        self.touched()

    def wake(self) -> None:
        """The car wakes by itself, to charge or to precondition."""
        if self.body.power_state is PowerState.OFF:
            self.body = msgspec.structs.replace(self.body, power_state=PowerState.CONDITIONING)
            self.touched()

    def appear(self, body: Body) -> None:
        """The car is as nobody saw it become: back on the road after a day."""
        self.body = body
        self.touched()

    def touched(self) -> None:
        """Something about the body has changed."""
        self.show_body()
        self.moved()
        self.show_slow()

    # --- what is seen ------------------------------------------------------------------------------------------

    def show_body(self) -> None:
        """Doors, seats, pedal, gear, cable and contactors."""
        for path, value in body_values(self.body, unlocked=self.unlocked).items():
            self.bus.put(path, value)
        self.bus.put(signals.CABLE, self.body.plugged_in)
        for contactor in signals.CONTACTORS:
            self.bus.put(contactor, self.awake)

    def show_slow(self) -> None:
        """The charge, the temperatures and the voltages, as coarse as a car tells them."""
        physics, put = self.physics, self.bus.put
        put(signals.CHARGE, round(physics.charge_percent * 5) / 5)
        put(signals.CHARGE_DISPLAYED, float(round(physics.charge_percent)))
        put(signals.CHARGING, physics.charging)
        put(signals.CHARGE_LIMIT, physics.limit_percent)
        put(signals.CAPACITY, round(physics.parameters.capacity_wh / 1000))
        put(signals.PACK_POWER, float(round(physics.pack_w / 50) * 50))
        put(signals.PACK_TEMPERATURE, float(round(physics.pack_c)))
        put(signals.LOW_VOLTAGE, round(physics.low_voltage_v * 20) / 20)
        put(signals.LOW_VOLTAGE_CURRENT, float(round(physics.low_voltage_a)))

    def say(self, path: str, value: SignalValue) -> None:
        """A leaf that only the world knows: who else uses the computer, the owner's switch."""
        self.bus.put(path, value)
