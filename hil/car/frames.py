"""The car's state as real CAN frames, encoded with cantools from the DBCs of the car.

Each bus carries the messages that the agent's profiles read and some that nobody asked for, so that filters matter.
Messages have the periods they have on a car, or slower where a rig gains nothing from more. Counters and checksums
are filled in where the DBC has them (Tesla's checksum: id bytes and data bytes, summed).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import can
import msgspec
from cantools.database.can import Database, Message, Signal
from cantools.database.namedsignalvalue import NamedSignalValue

from agent.vehicle.dbc import load_dbc
from agent.vehicle.profile import dbc_path, load_profile
from hil.car.body import Body, Door
from hil.car.plant import PlantParameters, PlantState, low_voltage_a, low_voltage_v, soc_percent
from hil.car.power_state import PowerState

PROFILES = ("tesla-model3", "driveway-energy")


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a frame may tell."""

    body: Body
    plant: PlantState
    parameters: PlantParameters
    ambient_c: float


Values = dict[str, float | int | str | NamedSignalValue]
"""Physical values and choice names by signal, as cantools takes them."""
NO_LIES: Mapping[str, float | int | str] = MappingProxyType({})


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """One message: how often it is sent, whether a change is sent at once, and what is in it (the rest is raw zero).

    `page` is the multiplexer's value, where the message has one.
    """

    message: str
    page: int | None = None
    period_ms: int
    at_once: bool = False
    values: Callable[[View], Values] = lambda _view: {}


def _latch(view: View, door: Door) -> str:
    return "LATCH_OPENED" if door in view.body.open_doors else "LATCH_CLOSED"


def _gear(view: View) -> Values:
    return {
        "DI_systemState": "DI_SYS_ENABLE" if view.body.power_state is PowerState.DRIVE else "DI_SYS_STANDBY",
        "DI_brakePedalState": "ON" if view.body.brake_pressed else "OFF",
        "DI_gear": f"DI_GEAR_{view.body.gear}",
        "DI_immobilizerState": "DI_IMM_STATE_IDLE",
    }


def _speed(view: View) -> Values:
    speed_kmh = view.body.speed_kmh
    return {"DI_vehicleSpeed": speed_kmh, "DI_uiSpeed": round(speed_kmh), "DI_uiSpeedUnits": "DI_SPEED_KPH"}


def _brake(view: View) -> Values:
    pressed = view.body.brake_pressed
    return {
        "ESP_stabilityControlSts2": "ON",
        "ESP_brakeLamp": "ON" if pressed else "OFF",
        "ESP_driverBrakeApply": "Driver_applying_brakes" if pressed else "Not_Applied",
        "ESP_brakeApply": "ACTIVE" if pressed else "INACTIVE",
    }


def _power_state(view: View) -> Values:
    return {"VCFRONT_vehiclePowerState": f"VEHICLE_POWER_STATE_{view.body.power_state}"}


def _left_doors(view: View) -> Values:
    return {
        "VCLEFT_frontLatchStatus": _latch(view, Door.ROW1_DRIVER),
        "VCLEFT_rearLatchStatus": _latch(view, Door.ROW2_DRIVER),
        "VCLEFT_frontHandlePulled": int(view.body.handle_pulled),
    }


def _right_doors(view: View) -> Values:
    return {
        "VCRIGHT_frontLatchStatus": _latch(view, Door.ROW1_PASSENGER),
        "VCRIGHT_rearLatchStatus": _latch(view, Door.ROW2_PASSENGER),
        "VCRIGHT_trunkLatchStatus": _latch(view, Door.TRUNK),
    }


def _seat(view: View) -> Values:
    return {
        "VCLEFT_driverPresent": int(view.body.seat_occupied),
        "VCLEFT_frontOccupancySwitch": "SWITCH_ON" if view.body.seat_occupied else "SWITCH_OFF",
        "VCLEFT_frontBuckleSwitch": "SWITCH_ON" if view.body.speed_kmh > 0 else "SWITCH_OFF",
        "VCLEFT_brakePressed": int(view.body.brake_pressed),
    }


def _battery(view: View) -> Values:
    return {
        "DW_stateOfCharge": soc_percent(view.plant, view.parameters),
        "DW_packPower": view.plant.pack_w,
        "DW_packTemperature": view.plant.pack_c,
    }


def _charge(view: View) -> Values:
    contactor = "CLOSED" if view.plant.awake else "OPEN"
    return {
        "DW_cableState": "CONNECTED" if view.body.plugged_in else "NOT_CONNECTED",
        "DW_chargingState": "CHARGING" if view.plant.charging else "NOT_CHARGING",
        "DW_contactorPositive": contactor,
        "DW_contactorNegative": contactor,
        "DW_chargeLimit": view.parameters.charge_limit_percent,
    }


def _low_voltage(view: View) -> Values:
    return {
        "DW_lowVoltage": low_voltage_v(view.plant, view.parameters),
        "DW_lowVoltageCurrent": low_voltage_a(view.plant, view.parameters),
    }


def _wheels(view: View) -> Values:
    standing = view.body.speed_kmh == 0
    return {
        "ESP_vehicleStandstillSts": "STANDSTILL" if standing else "NOT_STANDSTILL",
        "ESP_vehicleSpeed": view.body.speed_kmh,
        "ESP_wheelSpeedsQF": "ALL_WSS_VALID",
    }


def _warnings(view: View) -> Values:
    return {"anyDoorOpen": "OPEN" if view.body.open_doors else "CLOSED"}


RECIPES: dict[str, tuple[Recipe, ...]] = {
    "party": (
        Recipe(message="DI_systemStatus", period_ms=20, at_once=True, values=_gear),
        Recipe(message="DI_speed", period_ms=20, at_once=True, values=_speed),
        Recipe(message="ESP_status", period_ms=20, at_once=True, values=_brake),
        Recipe(message="VCFRONT_LVPowerState", page=0, period_ms=100, at_once=True, values=_power_state),
        Recipe(message="VCFRONT_LVPowerState", page=1, period_ms=100, values=_power_state),
        Recipe(message="ESP_B", period_ms=20, at_once=True, values=_wheels),
        # What nobody asked for:
        Recipe(message="DI_torque", period_ms=20),
        Recipe(message="UI_warning", period_ms=100, values=_warnings),
    ),
    "vehicle": (
        Recipe(message="VCLEFT_doorStatus", period_ms=100, at_once=True, values=_left_doors),
        Recipe(message="VCRIGHT_doorStatus", period_ms=100, at_once=True, values=_right_doors),
        Recipe(message="VCLEFT_switchStatus", page=0, period_ms=100, at_once=True, values=_seat),
        Recipe(message="VCLEFT_switchStatus", page=1, period_ms=100),
        # What nobody asked for:
        Recipe(message="DI_systemStatus", period_ms=100, values=_gear),
        Recipe(message="VCRIGHT_status", period_ms=100),
        Recipe(message="ID3F5VCFRONT_lighting", period_ms=100),
    ),
    "energy": (
        Recipe(message="DW_batteryStatus", period_ms=100, values=_battery),
        Recipe(message="DW_chargeStatus", period_ms=100, at_once=True, values=_charge),
        Recipe(message="DW_lowVoltageStatus", period_ms=250, values=_low_voltage),
        Recipe(
            message="DW_ambientStatus", period_ms=1000, values=lambda view: {"DW_ambientTemperature": view.ambient_c}
        ),
    ),
}


class Encoder:
    """Encodes one recipe. The payload without counter and checksum tells whether anything changed."""

    def __init__(self, recipe: Recipe, database: Database) -> None:
        self.recipe = recipe
        self._message: Message = database.get_message_by_name(recipe.message)
        self._blank = _blank(self._message, recipe.page)
        self._counter = _find(self._message, "Counter")
        self._checksum = _find(self._message, "Checksum")

    def payload(self, view: View, lies: Mapping[str, float | int | str] = NO_LIES) -> bytes:
        """The message for this state, its counter and checksum zero; `lies` are said instead of the truth."""
        told = {name: value for name, value in lies.items() if name in self._blank}
        return self._message.encode({**self.values(view), **told}, strict=False)

    def values(self, view: View) -> Values:
        """What it honestly says of this state."""
        return {**self._blank, **self.recipe.values(view)}

    def frame(self, payload: bytes, count: int) -> can.Message:
        """The frame to send, as the `count`th of its message."""
        data = bytearray(payload)
        if self._counter is not None:
            number = int.from_bytes(payload, "little") | (count % 2**self._counter.length) << self._counter.start
            data[:] = number.to_bytes(len(payload), "little")
        can_id = self._message.frame_id
        if self._checksum is not None:
            data[self._checksum.start // 8] = ((can_id & 0xFF) + (can_id >> 8) + sum(data)) & 0xFF
        return can.Message(arbitration_id=can_id, is_extended_id=self._message.is_extended_frame, data=data)


def encoders() -> dict[str, tuple[Encoder, ...]]:
    """The encoders of every bus, in the order of the recipes; the DBCs are those of the agent's profiles."""
    result: dict[str, tuple[Encoder, ...]] = {}
    for profile in map(load_profile, PROFILES):
        for bus, mapping in profile.buses.items():
            database = load_dbc(dbc_path(profile, mapping.dbc))
            result[bus] = tuple(Encoder(recipe, database) for recipe in RECIPES[bus])
    return result


def _blank(message: Message, page: int | None) -> Values:
    """Every signal of the message (of one page, if it is multiplexed) at raw zero."""
    wanted = (signal for signal in message.signals if not signal.multiplexer_ids or page in signal.multiplexer_ids)
    blank: Values = {signal.name: signal.conversion.raw_to_scaled(0, decode_choices=False) for signal in wanted}
    selectors = {signal.name: page for signal in message.signals if signal.is_multiplexer and page is not None}
    return {**blank, **selectors}


def _find(message: Message, ending: str) -> Signal | None:
    return next((signal for signal in message.signals if signal.name.endswith(ending)), None)
