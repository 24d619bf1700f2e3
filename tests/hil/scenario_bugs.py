"""Bugs planted in the core, and the scenario that must fail because of each: scenarios are not decoration."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import pytest

from agent.core import gates
from agent.core.findings import Finding
from agent.core.looks import driver, owner
from agent.core.looks import energy as energy_looks
from agent.core.world import Sight
from tests.hil import sim_bugs_car as car
from tests.hil import sim_bugs_rest as rest

Patch = pytest.MonkeyPatch


class ScenarioBug(msgspec.Struct, frozen=True):
    """A planted bug, and the scenario that finds it."""

    plant: Callable[[Patch], None]
    scenario: str

    @property
    def name(self) -> str:
        """For the test's report."""
        return f"{self.plant.__name__}-{self.scenario}"


def _without(gate: str, look: gates.Look, keep: Callable[[Finding], bool]) -> Callable[[Patch], None]:
    """A gate that overlooks some of its findings."""

    def blind(sight: Sight, was_open: bool) -> Iterator[Finding]:
        return (finding for finding in look(sight, was_open) if keep(finding))

    def plant(patch: Patch) -> None:
        patch.setitem(gates.RULES, gate, msgspec.structs.replace(gates.RULES[gate], look=blind))

    return plant


def _named(name: str, plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
    plant.__name__ = name
    return plant


BUGS: tuple[ScenarioBug, ...] = (
    ScenarioBug(car.the_trunk_is_forgotten, "trunk_opens"),
    ScenarioBug(car.the_handle_is_forgotten, "handle_pulled"),
    ScenarioBug(car.unlocking_is_no_sign, "car_unlocked"),
    ScenarioBug(car.unknown_means_as_before, "door_sensor_gone"),
    ScenarioBug(car.staleness_ignored_for_the_drivers_leaves, "gear_silent"),
    ScenarioBug(car.the_worker_is_not_stopped, "door_opens"),
    ScenarioBug(car.a_budget_of_seconds, "worker_hangs"),
    ScenarioBug(car.reserve_margin_has_the_wrong_sign, "charge_at_reserve"),
    ScenarioBug(car.the_low_voltage_battery_is_not_looked_at, "converter_dead"),
    ScenarioBug(car.no_reading_means_go_on, "die_unread"),
    ScenarioBug(
        _named("no_departure_is_kept", _without("ready_by", energy_looks.ready_by, lambda _one: False)),
        "ready_by_weak_charger",
    ),
    ScenarioBug(rest.consent_is_asked_for_once, "consent_withdrawn"),
    ScenarioBug(rest.a_pause_waits_for_the_lease, "owner_pauses"),
    ScenarioBug(rest.the_grid_waits_for_the_slice, "demand_response"),
    ScenarioBug(rest.a_full_disk_loses_the_lease, "disk_full"),
    ScenarioBug(rest.a_jump_of_the_clock_is_never_forgiven, "clock_jumps"),
    ScenarioBug(
        _named("the_car_is_nobody_elses", _without("shared", driver.shared, lambda one: one.code != "computer_in_use")),
        "used_by_camp",
    ),
    ScenarioBug(
        _named(
            "the_cable_is_not_looked_at",
            _without("plugged", energy_looks.plugged, lambda one: one.code != "not_plugged_in"),
        ),
        "unplugged",
    ),
    ScenarioBug(
        _named("a_cold_pack_is_fine", _without("pack", energy_looks.pack, lambda one: one.code != "pack_cold")),
        "pack_cold",
    ),
    ScenarioBug(
        _named("the_switch_is_not_looked_at", _without("owner", owner.owner, lambda one: not one.signal)), "car_switch"
    ),
)
