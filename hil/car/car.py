"""The car: its body, its plant and its buses, moved by time and by what people do to it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import can
import msgspec

from agent.ports import Clock
from hil.car.body import Action, Body, Door, Gear, act
from hil.car.changes import CarOptions, Change, Trouble, changed
from hil.car.frames import View, encoders
from hil.car.plant import PlantInputs, initial_state, low_voltage_a, low_voltage_v
from hil.car.plant import soc_percent as soc_of
from hil.car.plant import step as step_plant
from hil.car.power_state import PowerState, after_quiet
from hil.car.sysfs import SensorTree
from hil.car.transmitter import Transmitter
from hil.car.utilisation import Meter

TICK_S = 0.010
PLANT_INTERVAL_MS = 100
UTILISATION_INTERVAL_MS = 500
"""CPU times come in steps of 10 ms: half a second of two cores resolves one percent."""
FALL_SILENT_AFTER_MS = 2_000
"""A sleeping car's buses are silent; they say OFF for this long before."""


class CarReport(msgspec.Struct, frozen=True, kw_only=True):
    """The car's true state, for whoever drives the rig."""

    gear: Gear
    speed_kmh: float
    brake_pressed: bool
    power_state: PowerState
    open_doors: list[Door]
    handle_pulled: bool
    seat_occupied: bool
    plugged_in: bool
    charging: bool
    contactors_closed: bool
    soc_percent: float
    pack_power_w: float
    pack_temperature_c: float
    low_voltage_v: float
    low_voltage_a: float
    ambient_c: float
    die_c: float
    sink_c: float
    computer_power_w: float
    utilisation: float
    computer_energy_wh: float
    grid_energy_wh: float
    at_boot_ms: int


__all__ = ["Car", "CarOptions", "CarReport"]


class Car:
    """One simulated car. Everything happens on one event loop."""

    def __init__(
        self,
        *,
        body: Body,
        options: CarOptions,
        buses: Mapping[str, can.BusABC],
        sensors: SensorTree,
        meter: Meter,
        clock: Clock,
    ) -> None:
        self._options = options
        self._clock = clock
        self._sensors = sensors
        self._meter = meter
        self._transmitter = Transmitter(buses, encoders(), clock)
        self._body = body
        self._plant = initial_state(options.parameters, options.soc_percent, options.ambient_c)
        self._utilisation = 0.0
        self._sensors_shown = True
        now_ms = clock.boot_ms()
        self._touched_ms = self._stepped_ms = self._measured_ms = now_ms
        self._advance_plant(0.0)
        self._show_sensors()

    async def run(self) -> None:
        """Live until cancelled."""
        while True:
            self._tick(self._clock.boot_ms())
            await asyncio.sleep(TICK_S)

    def do(self, action: Action, *, door: Door = Door.ROW1_DRIVER, gear: Gear = Gear.DRIVE) -> int | None:
        """One action. Returns when the first frame that shows it was sent (None when it shows in no frame).

        Raises DrivewayError when the car refuses.
        """
        self._body = act(self._body, action, door=door, gear=gear)
        self._touched_ms = self._clock.boot_ms()
        self._advance_plant(0.0)
        return self._transmitter.send_changes(self._view())

    def change(self, change: Change) -> int | None:
        """Change what no person does: the weather, the grid, a sensor. Returns as `do`; raises DrivewayError."""
        self._options, self._plant = changed(self._options, self._plant, change)
        if change.sensors is not None:
            self._sensors_shown = change.sensors
        self._advance_plant(0.0)
        return self._transmitter.send_changes(self._view())

    def trouble(self, trouble: Trouble) -> int | None:
        """Lay a fault over a signal, or take it away. Returns as `do`; raises DrivewayError."""
        overlay = self._transmitter.overlay
        match trouble.kind:
            case "lie":
                overlay.lie(trouble.signal, trouble.value)
            case "stick":
                self._transmitter.stick(trouble.signal, self._view())
            case "honest":
                overlay.honest(trouble.signal)
            case "hush" | "speak":
                overlay.hush(trouble.signal, silent=trouble.kind == "hush")
            case how:
                overlay.take_away(trouble.signal, how)
        return self._transmitter.send_changes(self._view())

    def report(self) -> CarReport:
        """The car as it is now."""
        body, plant, parameters = self._body, self._plant, self._options.parameters
        return CarReport(
            gear=body.gear,
            speed_kmh=body.speed_kmh,
            brake_pressed=body.brake_pressed,
            power_state=body.power_state,
            open_doors=sorted(body.open_doors),
            handle_pulled=body.handle_pulled,
            seat_occupied=body.seat_occupied,
            plugged_in=body.plugged_in,
            charging=plant.charging,
            contactors_closed=plant.awake,
            soc_percent=soc_of(plant, parameters),
            pack_power_w=plant.pack_w,
            pack_temperature_c=plant.pack_c,
            low_voltage_v=low_voltage_v(plant, parameters),
            low_voltage_a=low_voltage_a(plant, parameters),
            ambient_c=self._options.ambient_c,
            die_c=plant.die_c,
            sink_c=plant.sink_c,
            computer_power_w=plant.computer_w,
            utilisation=self._utilisation,
            computer_energy_wh=plant.computer_energy_wh,
            grid_energy_wh=plant.grid_energy_wh,
            at_boot_ms=self._clock.boot_ms(),
        )

    def _tick(self, now_ms: int) -> None:
        if now_ms - self._measured_ms >= UTILISATION_INTERVAL_MS:
            self._utilisation = self._meter.measure()
            self._measured_ms = now_ms
        if now_ms - self._stepped_ms >= PLANT_INTERVAL_MS:
            self._settle_power_state(now_ms)
            self._advance_plant((now_ms - self._stepped_ms) / 1000)
            self._stepped_ms = now_ms
            self._show_sensors()
            self._transmitter.send_changes(self._view())
        if self._body.power_state is not PowerState.OFF or now_ms - self._touched_ms < FALL_SILENT_AFTER_MS:
            self._transmitter.send_due(self._view())

    def _settle_power_state(self, now_ms: int) -> None:
        state, quiet_s = self._body.power_state, (now_ms - self._touched_ms) / 1000
        settled = after_quiet(state, self._body.cabin(), quiet_s, charging=self._plant.charging)
        if settled is not state:
            self._body = msgspec.structs.replace(self._body, power_state=settled)
            self._touched_ms = now_ms

    def _advance_plant(self, dt_s: float) -> None:
        inputs = PlantInputs(
            ambient_c=self._options.ambient_c,
            charger_w=self._options.charger_w if self._body.plugged_in else 0.0,
            utilisation=self._utilisation,
            awake=self._body.power_state is not PowerState.OFF,
            speed_kmh=self._body.speed_kmh,
        )
        self._plant = step_plant(self._plant, inputs, dt_s, self._options.parameters)

    def _show_sensors(self) -> None:
        if not self._sensors_shown:
            self._sensors.take_away()
            return
        self._sensors.write(self._plant.die_c, self._plant.sink_c, self._plant.computer_w)

    def _view(self) -> View:
        return View(
            body=self._body, plant=self._plant, parameters=self._options.parameters, ambient_c=self._options.ambient_c
        )
