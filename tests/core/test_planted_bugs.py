"""The invariants bite: each bug planted here is found by the checks that the property tests rely on."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from agent.core import owed, plan, signals
from agent.core.effects import StartWorker
from agent.core.events import HandInStored, SignalsSeen
from agent.core.findings import GateState
from agent.core.signals import Vehicle
from agent.core.state import State, WorkerPhase
from tests.core.stories import DOOR, check, until
from tests.core.world import Shell, car


def working() -> Shell:
    """The gate is open and a worker is starting."""
    shell = Shell()
    shell.open_the_gate()
    until(shell, StartWorker)
    return shell


def the_driver_comes(shell: Shell) -> None:
    shell.tell(car(shell.now_ms + 1, {DOOR: True}))
    check(shell)


def a_lease_is_handed_in(shell: Shell) -> None:
    for _ in range(20):
        shell.carry_out()
        check(shell)


def the_bus_falls_silent(shell: Shell) -> None:
    shell.advance(200)
    shell.speaking = False
    shell.advance(1_000)
    assert shell.gate() is GateState.CLOSED
    check(shell)


def forget_to_vacate(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plan, "RULES", tuple(rule for rule in plan.RULES if rule is not plan.vacate))


def forget_the_hand_in(patch: pytest.MonkeyPatch) -> None:
    def forgetful(state: State, event: HandInStored) -> State:
        return msgspec.structs.replace(state, lease=None) if state.lease and state.lease.key == event.key else state

    patch.setattr(owed, "hand_in_stored", forgetful)


def count_slices_before_they_are_stored(patch: pytest.MonkeyPatch) -> None:
    def hasty(state: State) -> plan.Step:
        state, effects = plan.run_slice(state)
        if effects and state.lease is not None and state.lease.in_flight is not None:
            state = msgspec.structs.replace(state, lease=state.lease.stored(state.lease.in_flight, 1))
        return state, effects

    patch.setattr(plan, "RULES", tuple(hasty if rule is plan.run_slice else rule for rule in plan.RULES))


def believe_old_signals(patch: pytest.MonkeyPatch) -> None:
    slowest = signals.Staleness.AMBIENT
    forever = {path: msgspec.structs.replace(leaf, staleness=slowest) for path, leaf in signals.LEAVES.items()}
    patch.setattr(signals, "LEAVES", forever)


def ignore_what_contradicts(patch: pytest.MonkeyPatch) -> None:
    first = Vehicle.seen

    def deaf(self: Vehicle, event: SignalsSeen) -> Vehicle:
        kept = tuple(sample for sample in event.samples if sample.value is not True)
        return first(self, msgspec.structs.replace(event, samples=kept))

    patch.setattr(Vehicle, "seen", deaf)


def the_driver_is_seen(shell: Shell) -> None:
    the_driver_comes(shell)
    assert shell.gate() is GateState.CLOSED


def start_a_second_worker(patch: pytest.MonkeyPatch) -> None:
    def eager(state: State) -> plan.Step:
        if state.worker.phase is WorkerPhase.READY and state.lease is not None:
            return state, (StartWorker(grant=state.lease.grant),)
        return plan.start_worker(state)

    patch.setattr(plan, "RULES", tuple(eager if rule is plan.start_worker else rule for rule in plan.RULES))


Plant = Callable[[pytest.MonkeyPatch], None]
Story = Callable[[Shell], None]
BUGS: list[tuple[Plant, Story]] = [
    (forget_to_vacate, the_driver_comes),
    (forget_the_hand_in, a_lease_is_handed_in),
    (count_slices_before_they_are_stored, a_lease_is_handed_in),
    (start_a_second_worker, a_lease_is_handed_in),
    (believe_old_signals, the_bus_falls_silent),
    (ignore_what_contradicts, the_driver_is_seen),
]


@pytest.mark.parametrize(("plant", "story"), BUGS)
def test_each_planted_bug_is_found(plant: Plant, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    story(working())
    shell = working()
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        story(shell)
