"""What may happen to a car in a scenario without anything being wrong: people, weather, money, the owner, the operator.

A tagged union of frozen values, `Stimulus`; the tag is `do`, as a scenario's file writes it. A rig carries out what it
can and says of the rest why not (`hil.rigs.interface.Rig.cannot`). Values carry their unit in their name.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from agent.core.model import PaceState
from hil.car.body import Door, Gear

Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Celsius = Annotated[float, msgspec.Meta(ge=-60, le=80)]
Watts = Annotated[float, msgspec.Meta(ge=0, le=50_000)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=2_000_000)]
User = Literal["update", "sentry", "preconditioning", "camp"]


class _Stimulus(msgspec.Struct, frozen=True, kw_only=True, tag_field="do", forbid_unknown_fields=True):
    """Something that happens at one moment."""


# --- people -----------------------------------------------------------------------------------------------------


class PullHandle(_Stimulus, frozen=True, tag="pull_handle"):
    """Somebody pulls the driver's door handle."""


class OpenDoor(_Stimulus, frozen=True, tag="open_door"):
    """A door or lid is opened."""

    door: Door = Door.ROW1_DRIVER


class CloseDoor(_Stimulus, frozen=True, tag="close_door"):
    """A door or lid is closed."""

    door: Door = Door.ROW1_DRIVER


class Sit(_Stimulus, frozen=True, tag="sit"):
    """Somebody sits down in the driver's seat."""


class Leave(_Stimulus, frozen=True, tag="leave"):
    """The driver's seat is left."""


class Brake(_Stimulus, frozen=True, tag="brake"):
    """The brake is pressed, or released."""

    pressed: bool = True


class Shift(_Stimulus, frozen=True, tag="shift"):
    """The selector is moved; a car that stands on its cable, or whose brake is not pressed, refuses."""

    gear: Gear


class Drive(_Stimulus, frozen=True, tag="drive"):
    """The car drives at this speed; 0: it stands, the brake pressed, in gear."""

    speed_kmh: Annotated[float, msgspec.Meta(ge=0, le=250)]


class Park(_Stimulus, frozen=True, tag="park"):
    """It stands, in P."""


class Plug(_Stimulus, frozen=True, tag="plug"):
    """The charging cable is plugged in, or pulled out."""

    connected: bool = True


class Lock(_Stimulus, frozen=True, tag="lock"):
    """The car is locked, or unlocked."""

    locked: bool = True


class DriverLeaves(_Stimulus, frozen=True, tag="driver_leaves"):
    """The car arrives, the driver gets out, plugs in (or not), locks and goes away: half a minute."""

    plug: bool = True


class DriverReturns(_Stimulus, frozen=True, tag="driver_returns"):
    """The driver unlocks, pulls the handle, opens, gets in and closes: a few seconds, and then sits there."""


class DriverDrivesAway(_Stimulus, frozen=True, tag="driver_drives_away"):
    """The driver unplugs, gets in, shifts to D and is gone: some ten seconds; it comes home `used_percent` emptier."""

    used_percent: Percent = 0.0


class CarSleeps(_Stimulus, frozen=True, tag="car_sleeps"):
    """The car falls asleep: its buses go silent, and its computer is suspended soon after."""


class CarWakes(_Stimulus, frozen=True, tag="car_wakes"):
    """A car that slept wakes by itself, as to charge."""


# --- energy and weather -----------------------------------------------------------------------------------------


class Charger(_Stimulus, frozen=True, tag="charger"):
    """What the charger gives from now on, while the cable is in."""

    power_w: Watts


class ChargeLimit(_Stimulus, frozen=True, tag="charge_limit"):
    """The owner sets up to where the car charges."""

    percent: Percent


class StateOfCharge(_Stimulus, frozen=True, tag="state_of_charge"):
    """The traction battery is this full from now on, whatever made it so."""

    percent: Percent


class LowVoltage(_Stimulus, frozen=True, tag="low_voltage"):
    """The low-voltage battery is this full from now on."""

    percent: Percent


class PackTemperature(_Stimulus, frozen=True, tag="pack_temperature"):
    """The traction battery is this warm from now on."""

    celsius: Celsius


class Ambient(_Stimulus, frozen=True, tag="ambient"):
    """The air outside; `at_computer_c` is the air around the computer, where that is another (the sun)."""

    celsius: Celsius
    at_computer_c: Celsius | None = None


class DayWeather(_Stimulus, frozen=True, tag="weather"):
    """The air over the hours of the day from now on: coolest at three, the sun on the car from seven to twenty."""

    mean_c: Celsius
    swing_c: Annotated[float, msgspec.Meta(ge=0, le=25)]
    sun_c: Annotated[float, msgspec.Meta(ge=0, le=40)] = 0.0


class Prices(_Stimulus, frozen=True, tag="prices"):
    """A signed price curve: one price (millionths of the currency per kWh) for each slot from the present one on."""

    micro_per_kwh: tuple[int, ...]
    slot_min: Literal[15, 30, 60] = 60
    valid_for_s: Seconds = 86_400.0


class DemandOrder(_Stimulus, frozen=True, tag="demand"):
    """The grid's signed order to stop for so long; 0 takes it back."""

    stop_for_s: Seconds


# --- who else uses the computer, the owner, the operator ------------------------------------------------------


class OtherUser(_Stimulus, frozen=True, tag="other_user"):
    """Somebody else begins, or ends, to use the computer."""

    user: User
    active: bool = True


class PowerSaving(_Stimulus, frozen=True, tag="power_saving"):
    """The maker's power saving (VSS `PowerOptimizeLevel`)."""

    level: Annotated[int, msgspec.Meta(ge=0, le=10)]


class OwnerPauses(_Stimulus, frozen=True, tag="owner_pauses"):
    """`driveway pause`, for so long; without: until resumed."""

    pause_s: Seconds | None = None


class OwnerResumes(_Stimulus, frozen=True, tag="owner_resumes"):
    """`driveway resume`."""


class OwnerFinishes(_Stimulus, frozen=True, tag="owner_finishes"):
    """`driveway finish`: the lease at work is ended, nothing new is begun."""


class CarSwitch(_Stimulus, frozen=True, tag="car_switch"):
    """The owner's switch in the car's own screen."""

    paused: bool = True


class Consent(_Stimulus, frozen=True, tag="consent"):
    """The owner agrees to this version of the terms; 0: withdraws."""

    version: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class PaceOrder(_Stimulus, frozen=True, tag="pace"):
    """The operator's word to a whole cell: `open`, `closed` (no new work) or `stop` (give everything back)."""

    state: PaceState


class Work(_Stimulus, frozen=True, tag="work"):
    """So many jobs more are put up; 0: there is none from now on. In virtual time there is always work otherwise."""

    jobs: Annotated[int, msgspec.Meta(ge=0, le=10_000)]


class Metered(_Stimulus, frozen=True, tag="metered"):
    """The network comes to be a metered one, or is none any more."""

    metered: bool = True


class UpdatePending(_Stimulus, frozen=True, tag="update_pending"):
    """An update of the agent waits, or no longer does."""

    pending: bool = True


class SelfTest(_Stimulus, frozen=True, tag="self_test"):
    """The agent's own test ends with this problem; empty: all is well."""

    problem: str


class StopAgent(_Stimulus, frozen=True, tag="stop_agent"):
    """The agent is told to end, in good order (SIGTERM)."""


class StartAgent(_Stimulus, frozen=True, tag="start_agent"):
    """The agent is started again."""


Stimulus = (
    PullHandle
    | OpenDoor
    | CloseDoor
    | Sit
    | Leave
    | Brake
    | Shift
    | Drive
    | Park
    | Plug
    | Lock
    | DriverLeaves
    | DriverReturns
    | DriverDrivesAway
    | CarSleeps
    | CarWakes
    | Charger
    | ChargeLimit
    | StateOfCharge
    | LowVoltage
    | PackTemperature
    | Ambient
    | DayWeather
    | Prices
    | DemandOrder
    | OtherUser
    | PowerSaving
    | OwnerPauses
    | OwnerResumes
    | OwnerFinishes
    | CarSwitch
    | Consent
    | PaceOrder
    | Work
    | Metered
    | UpdatePending
    | SelfTest
    | StopAgent
    | StartAgent
)
