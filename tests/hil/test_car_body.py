from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import DrivewayError
from hil.car.body import DRIVING, PARKED, Action, Body, Door, Gear, act
from hil.car.power_state import LEAVE_ACCESSORY_AFTER_S, SLEEP_AFTER_S, PowerState, after_quiet

OFF, CONDITIONING, ACCESSORY, DRIVE = PowerState


def states(body: Body, *actions: Action, gear: Gear = Gear.PARK) -> list[PowerState]:
    result = []
    for action in actions:
        body = act(body, action, gear=gear)
        result.append(body.power_state)
    return result


def after(body: Body, *actions: Action) -> Body:
    for action in actions:
        body = act(body, action, gear=Gear.PARK)
    return body


def test_the_sequence_that_was_observed_on_a_real_car() -> None:
    asleep = Body(power_state=OFF)
    getting_in = (Action.OPEN_DOOR, Action.SIT, Action.CLOSE_DOOR, Action.BRAKE, Action.RELEASE_BRAKE)
    assert states(asleep, *getting_in) == [ACCESSORY, ACCESSORY, ACCESSORY, DRIVE, DRIVE]
    leaving = (Action.ARRIVE, Action.SHIFT, Action.RELEASE_BRAKE, Action.OPEN_DOOR, Action.LEAVE, Action.CLOSE_DOOR)
    assert states(DRIVING, *leaving) == [DRIVE, DRIVE, DRIVE, DRIVE, CONDITIONING, CONDITIONING]


def test_the_brake_without_anybody_in_the_seat_starts_nothing() -> None:
    assert states(PARKED, Action.BRAKE) == [CONDITIONING]


def test_leaving_with_the_doors_shut_is_a_seat_sensor_and_not_a_driver_who_left() -> None:
    assert states(DRIVING, Action.PARK, Action.LEAVE) == [DRIVE, DRIVE]


def test_a_car_falls_asleep_minutes_after_it_was_left_and_never_while_it_charges() -> None:
    cabin = PARKED.cabin()
    assert after_quiet(CONDITIONING, cabin, SLEEP_AFTER_S - 1, charging=False) is CONDITIONING
    assert after_quiet(CONDITIONING, cabin, SLEEP_AFTER_S, charging=False) is OFF
    assert after_quiet(CONDITIONING, cabin, 10 * SLEEP_AFTER_S, charging=True) is CONDITIONING
    assert after_quiet(OFF, cabin, 0, charging=True) is CONDITIONING
    assert after_quiet(ACCESSORY, cabin, LEAVE_ACCESSORY_AFTER_S, charging=False) is CONDITIONING
    assert after_quiet(DRIVE, DRIVING.cabin(), 10 * SLEEP_AFTER_S, charging=False) is DRIVE


def test_plugging_in_wakes_a_sleeping_car() -> None:
    assert states(Body(power_state=OFF), Action.PLUG) == [CONDITIONING]


def test_a_car_refuses_what_a_car_refuses() -> None:
    with pytest.raises(DrivewayError, match="unplug"):
        act(after(PARKED, Action.OPEN_DOOR, Action.SIT, Action.BRAKE), Action.SHIFT, gear=Gear.DRIVE)
    unplugged = after(PARKED, Action.UNPLUG)
    with pytest.raises(DrivewayError, match="brake"):
        act(unplugged, Action.SHIFT, gear=Gear.DRIVE)
    ready = after(unplugged, Action.OPEN_DOOR, Action.SIT, Action.CLOSE_DOOR, Action.BRAKE)
    assert act(ready, Action.SHIFT, gear=Gear.REVERSE).gear is Gear.REVERSE
    with pytest.raises(DrivewayError, match="shift to P"):
        act(DRIVING, Action.PLUG)


def test_opening_the_drivers_door_lets_the_handle_go() -> None:
    pulled = act(PARKED, Action.PULL_HANDLE)
    assert pulled.handle_pulled
    assert act(pulled, Action.OPEN_DOOR, door=Door.ROW2_DRIVER).handle_pulled
    assert not act(pulled, Action.OPEN_DOOR).handle_pulled


@given(steps=st.lists(st.tuples(st.sampled_from(Action), st.sampled_from(Door), st.sampled_from(Gear)), max_size=30))
def test_whatever_people_do_the_car_is_consistent(steps: list[tuple[Action, Door, Gear]]) -> None:
    body = PARKED
    for action, door, gear in steps:
        before = body
        try:
            body = act(body, action, door=door, gear=gear)
        except DrivewayError:
            assert action in {Action.SHIFT, Action.PLUG}
        cabin_opened = action is Action.OPEN_DOOR and body.cabin().doors_open - before.cabin().doors_open
        assert not (cabin_opened and body.power_state in {OFF, CONDITIONING}), "an opened door always shows"
        assert body.speed_kmh == 0
        if body.power_state is DRIVE and before.power_state is not DRIVE:
            assert body.brake_pressed
            assert body.seat_occupied
