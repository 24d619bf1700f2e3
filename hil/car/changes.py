"""What may change around a simulated car while it lives, besides what people do: weather, charger, charge, a fan.

Pure: the options and the plant as they are, a change, and what they are after it. Faults of its signals are named here
(`Trouble`), and laid over its frames by `hil.car.overlay`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from hil.car.plant import PlantParameters, PlantState

FAN_DEAD_FACTOR = 1.6 / 0.6
"""Heatsink to air without the fan, against with it."""
Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Celsius = Annotated[float, msgspec.Meta(ge=-60, le=80)]


class CarOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How this car is set up."""

    soc_percent: float
    ambient_c: float
    charger_w: float
    parameters: PlantParameters
    fan: bool = True


class Change(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is different from now on; None: as it was. `sensors`: whether the computer's can be read."""

    ambient_c: Celsius | None = None
    charger_w: Annotated[float, msgspec.Meta(ge=0, le=50_000)] | None = None
    charge_percent: Percent | None = None
    charge_limit_percent: Percent | None = None
    pack_c: Celsius | None = None
    low_voltage_percent: Percent | None = None
    fan: bool | None = None
    sensors: bool | None = None


class Trouble(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fault of one signal (a VSS path): a `lie`, `stick` at what it says, say nothing, or `hush` its whole message.

    `honest` and `speak` mend it.
    """

    kind: Literal["lie", "stick", "unknown", "not_available", "fault", "out_of_range", "honest", "hush", "speak"]
    signal: str
    value: float | bool | str = 0.0


def changed(options: CarOptions, plant: PlantState, change: Change) -> tuple[CarOptions, PlantState]:
    """Both after the change."""
    replace, parameters = msgspec.structs.replace, options.parameters
    if change.charge_limit_percent is not None:
        parameters = replace(parameters, charge_limit_percent=change.charge_limit_percent)
    if change.fan is not None and change.fan is not options.fan:
        factor = 1 / FAN_DEAD_FACTOR if change.fan else FAN_DEAD_FACTOR
        parameters = replace(parameters, sink_to_air_k_per_w=parameters.sink_to_air_k_per_w * factor)
    if change.charge_percent is not None:
        plant = replace(plant, energy_wh=parameters.capacity_wh * change.charge_percent / 100)
    if change.pack_c is not None:
        plant = replace(plant, pack_c=change.pack_c)
    if change.low_voltage_percent is not None:
        plant = replace(plant, low_voltage_energy_wh=parameters.low_voltage_wh * change.low_voltage_percent / 100)
    options = replace(
        options,
        parameters=parameters,
        ambient_c=options.ambient_c if change.ambient_c is None else change.ambient_c,
        charger_w=options.charger_w if change.charger_w is None else change.charger_w,
        fan=options.fan if change.fan is None else change.fan,
    )
    return options, plant
