"""What goes wrong in a scenario: a tagged union of frozen values, `Fault`; the tag is `fault`, as a file writes it.

A fault begins at one moment and is mended at another (`for_s` of its step, or never). Faults that are over as soon as
they have struck (a kill) say in their text what mending them means. A rig makes those it can and says of the rest why
not. Signals are named by their VSS path, or by what follows `Vehicle.`.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=60_000)]


class _Fault(msgspec.Struct, frozen=True, kw_only=True, tag_field="fault", forbid_unknown_fields=True):
    """Something that is wrong from one moment to another."""


# --- the way to the fleet, and its processes ------------------------------------------------------------------


class BrokerKilled(_Fault, frozen=True, tag="broker_killed"):
    """The broker dies with everything it remembers; mended: started again."""


class Partition(_Fault, frozen=True, tag="partition"):
    """The car and the broker do not reach each other; nobody is told."""


class BadNetwork(_Fault, frozen=True, tag="bad_network"):
    """The network delays, and loses, repeats and refuses what it can (over TCP: it is narrow, late and cut)."""

    lost_share: Share = 0.2
    duplicate_share: Share = 0.2
    delay_ms: Milliseconds = 400


class DispatcherKilled(_Fault, frozen=True, tag="dispatcher_killed"):
    """SIGKILL to the dispatcher; mended: started again."""


class AgentKilled(_Fault, frozen=True, tag="agent_killed"):
    """SIGKILL to the daemon; mended: started again."""


class AgentHangs(_Fault, frozen=True, tag="agent_hangs"):
    """The daemon stands still (SIGSTOP); its watchdog, where it has one, ends it. Mended: it goes on."""


class WorkerKilled(_Fault, frozen=True, tag="worker_killed"):
    """SIGKILL to the inference worker, if there is one."""


class WorkerHangs(_Fault, frozen=True, tag="worker_hangs"):
    """The worker does not come to an end with what it computes, and does not drain."""


class PackageRefused(_Fault, frozen=True, tag="package_refused"):
    """The worker refuses what it is given: its golden vector does not come out right."""


# --- the disk -----------------------------------------------------------------------------------------------------


class DiskFull(_Fault, frozen=True, tag="disk_full"):
    """The disk of the agent's state takes no more bytes."""


class DiskError(_Fault, frozen=True, tag="disk_error"):
    """Writes to the disk of the agent's state fail with an I/O error."""


# --- the car's signals --------------------------------------------------------------------------------------------


class SensorStuck(_Fault, frozen=True, tag="sensor_stuck"):
    """A signal stays at what it says now."""

    signal: str


class SensorLies(_Fault, frozen=True, tag="sensor_lies"):
    """A signal says this, whatever is so."""

    signal: str
    value: float | bool | str


class SensorGone(_Fault, frozen=True, tag="sensor_gone"):
    """A signal says that it does not know."""

    signal: str
    how: Literal["unknown", "not_available", "fault", "not_a_number", "out_of_range"] = "unknown"


class BusSilent(_Fault, frozen=True, tag="bus_silent"):
    """One bus, or one control unit (a group of signals), sends nothing more."""

    group: str


class BusOff(_Fault, frozen=True, tag="bus_off"):
    """The vehicle's source as a whole is gone: the controller is bus-off, or the databroker has ended."""


# --- the computer -------------------------------------------------------------------------------------------------


class DieUnread(_Fault, frozen=True, tag="die_unread"):
    """No reading of the computer comes any more."""


class DieBiased(_Fault, frozen=True, tag="die_biased"):
    """The die is read too warm or too cool, by less than the sensor's stated error (1 K)."""

    error_c: Annotated[float, msgspec.Meta(ge=-1, le=1)]


class PowerUnread(_Fault, frozen=True, tag="power_unread"):
    """The computer's power is not read."""


class PowerDisobeys(_Fault, frozen=True, tag="power_disobeys"):
    """The computer draws this much more than its pace allows."""

    share: Share = 0.5


class FanDead(_Fault, frozen=True, tag="fan_dead"):
    """The fan of the computer stops."""


class AcceleratorLost(_Fault, frozen=True, tag="accelerator_lost"):
    """The accelerator falls off its bus: the worker loses its context, surveys find nothing. Mended: it is back."""


class PlansStale(_Fault, frozen=True, tag="plans_stale"):
    """An update leaves so many engine plans to be built anew."""

    packages: Annotated[int, msgspec.Meta(ge=1, le=8)] = 2


class Suspend(_Fault, frozen=True, tag="suspend"):
    """The computer is suspended to RAM in the middle of whatever it does. Mended: it wakes."""


class KeyAbsent(_Fault, frozen=True, tag="key_absent"):
    """The TPM does not answer."""


class KeySlow(_Fault, frozen=True, tag="key_slow"):
    """Every signature of the TPM takes so long."""

    each_ms: Milliseconds


# --- time and power -----------------------------------------------------------------------------------------------


class ClockJump(_Fault, frozen=True, tag="clock_jump"):
    """The wall clock is wrong by so much, and says that it is right. Mended: it jumps back."""

    by_s: Annotated[float, msgspec.Meta(ge=-1_000_000, le=1_000_000)]


class ClockLost(_Fault, frozen=True, tag="clock_lost"):
    """Nobody keeps the clock any more; `reset`: it begins at 1970."""

    reset: bool = False


class ConverterDead(_Fault, frozen=True, tag="converter_dead"):
    """The DC-DC stops feeding: the low-voltage battery carries everything."""


class PowerCut(_Fault, frozen=True, tag="power_cut"):
    """The computer's power is cut, this instant. Mended: it boots."""


Fault = (
    BrokerKilled
    | Partition
    | BadNetwork
    | DispatcherKilled
    | AgentKilled
    | AgentHangs
    | WorkerKilled
    | WorkerHangs
    | PackageRefused
    | DiskFull
    | DiskError
    | SensorStuck
    | SensorLies
    | SensorGone
    | BusSilent
    | BusOff
    | DieUnread
    | DieBiased
    | PowerUnread
    | PowerDisobeys
    | FanDead
    | AcceleratorLost
    | PlansStale
    | Suspend
    | KeyAbsent
    | KeySlow
    | ClockJump
    | ClockLost
    | ConverterDead
    | PowerCut
)

FAULTS: dict[str, type[Fault]] = {kind.__struct_config__.tag: kind for kind in get_args(Fault)}
"""Every kind of fault, as scenarios name it."""
