"""How long the gate is known to stay open, and leases that do not fit into that."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core import signals
from agent.core.effects import HandIn, OpenLease, RunSlice, SendHandIn, SendRequest
from agent.core.events import DemandSeen, GrantSeen, HostSeen, OwnerMode, OwnerSaid, SignalValue, SliceStored
from agent.core.model import Outlook, SliceOutcome, YieldReason
from agent.core.outlook import edge, outlook
from agent.core.policy import Departure, Policy, TariffZone, Window
from agent.core.speeds import PACKAGES_MAX, SHORTS_MAX, Speeds
from agent.core.walltime import DAY_MS
from tests.core.full_car import FullCar
from tests.core.stories import ready, until
from tests.core.world import Shell, grant

HOUR_MS = 3_600_000
EVENING = Window(start="18:00", end="20:50")
CHEAP = TariffZone(start="18:00", end="19:20", price_micro_per_kwh=100_000)
LEAVES = Departure(at="20:10", target_percent=60)


def open_for_s(policy: Policy, changes: dict[str, SignalValue] | None = None) -> int:
    """What a car that is parked and charging at six in the evening tells (and it is not quite six any more)."""
    car = FullCar(msgspec.structs.replace(policy, parked_for_s=1.0), changes=changes)
    car.advance(10)
    return outlook(car.state).open_for_s


@pytest.mark.parametrize(
    ("policy", "quarters"),
    [
        (Policy(), 0),
        (Policy(schedule=(EVENING,)), 11),
        (Policy(departures=(LEAVES,)), 8),
        (Policy(schedule=(EVENING,), departures=(LEAVES,)), 8),
        (Policy(tariff_zones=(CHEAP,), work_hours_per_stay=24), 95),
        (Policy(tariff_zones=(CHEAP,), work_hours_per_stay=1), 3),
        (Policy(tariff_zones=(CHEAP,), payout_micro_per_kwh=200_000), 5),
        (Policy(departures=(LEAVES,), tariff_zones=(CHEAP,), payout_micro_per_kwh=200_000), 5),
    ],
    ids=["nobody knows", "schedule", "departure", "the earlier", "all day", "an hour", "what pays", "what pays first"],
)
def test_the_first_known_end_is_told_in_quarter_hours(policy: Policy, quarters: int) -> None:
    assert open_for_s(policy) == quarters * 900


def test_nobody_knows_while_the_clock_cannot_be_trusted() -> None:
    car = FullCar(Policy(parked_for_s=1, departures=(LEAVES,)))
    car.advance(10)
    assert outlook(car.state).open_for_s > 0
    car.tell(HostSeen(at_ms=car.now_ms, wall_ms=0, wall_error_ms=None))
    assert outlook(car.state).open_for_s == 0


def test_the_cars_own_timer_is_a_departure() -> None:
    timer: dict[str, SignalValue] = {
        signals.TIMER_TIME: "2026-06-01T19:00:30",
        signals.TIMER_MODE: "END_TIME",
        signals.CHARGE: 80.0,
        signals.CHARGE_DISPLAYED: 79.0,
    }
    assert open_for_s(Policy(), timer) == 3 * 900, "VSS tells it to the minute"


def test_what_shuts_the_gate_now_leaves_no_time() -> None:
    for event in (
        DemandSeen(at_ms=10_000, stop_for_ms=60_000),
        OwnerSaid(at_ms=10_000, mode=OwnerMode.PAUSED),
        OwnerSaid(at_ms=10_000, mode=OwnerMode.FINISH),
    ):
        car = FullCar(Policy(parked_for_s=1, departures=(LEAVES,)))
        car.advance(10)
        car.tell(event)
        assert outlook(car.state).open_for_s == 0
        known = edge(car.state)
        assert known is not None
        assert known.at_ms == car.now_ms


def test_a_car_that_lives_off_its_battery_tells_what_is_left() -> None:
    car = FullCar(Policy(parked_for_s=1, plug_required=False))
    car.says(signals.CABLE, False)
    car.says(signals.CHARGING, False)
    car.says(signals.PACK_POWER, -500.0)
    car.says(signals.CHARGE, 56.0)
    car.says(signals.CHARGE_DISPLAYED, 55.0)
    car.advance(600)
    told = outlook(car.state)
    assert told.budget_wh == 3_000, "4 % of 75 kWh down to the reserve and its margin"
    assert told.open_for_s == 21 * 900, "3000 Wh at 500 W and the 67 W that the computer will draw besides"


def test_the_low_voltage_battery_and_the_days_wakefulness_are_budgets_too() -> None:
    car = FullCar(Policy(parked_for_s=1, low_voltage_budget_wh=30, plug_required=False))
    car.says(signals.LOW_VOLTAGE, 13.5)
    car.says(signals.LOW_VOLTAGE_CURRENT, -2.0)
    car.advance(5)
    assert outlook(car.state).budget_wh == 30
    known = edge(car.state)
    assert known is not None
    assert known.what == "the low-voltage battery's budget"
    assert known.at_ms - car.now_ms == pytest.approx(30 / 27 * 3_600_000, rel=0.01)
    awake = FullCar(Policy(parked_for_s=1, keep_awake=True, keep_awake_budget_minutes=40))
    awake.says(signals.CHARGING, False)
    awake.advance(5)
    known = edge(awake.state)
    assert known is not None
    assert known.what == "the day's budget of being awake"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1439), st.integers(0, 1439), st.floats(0.25, 24), st.integers(0, 3_600))
def test_what_is_told_is_never_more_than_what_is_known(start: int, end: int, hours: float, after_s: int) -> None:
    policy = Policy(
        parked_for_s=1,
        departures=(Departure(at=f"{end // 60:02d}:{end % 60:02d}", target_percent=55),),
        tariff_zones=(TariffZone(start=f"{start // 60:02d}:{start % 60:02d}", end="18:00", price_micro_per_kwh=1),),
        work_hours_per_stay=hours,
    )
    car = FullCar(policy)
    car.advance(after_s, step_ms=60_000)
    told, known = outlook(car.state), edge(car.state)
    assert told.open_for_s % 900 == 0
    assert 0 <= told.open_for_s <= 86_400
    if known is not None:
        assert told.open_for_s * 1000 <= max(0, known.at_ms - car.now_ms)


def test_a_request_and_a_hand_in_that_asks_tell_the_outlook() -> None:
    shell = ready()
    (request,) = (effect for effect in shell.effects if isinstance(effect, SendRequest))
    assert request.outlook == Outlook(budget_bytes=50_000_000)
    sent = until(shell, SendHandIn)
    assert isinstance(sent, SendHandIn)
    assert (sent.credit, sent.outlook) == (1, Outlook(budget_bytes=50_000_000))


# --- leases that do not fit ---------------------------------------------------------------------------------------


def answer(shell: Shell, **changes: object) -> HandIn | None:
    """Grant a lease with these changes; how it was given back at once, if it was."""
    request = next(effect for effect in shell.waiting if isinstance(effect, SendRequest))
    shell.waiting.clear()
    number = shell.granted = shell.granted + 1
    one = msgspec.structs.replace(grant(number), **changes)
    effects = shell.tell(GrantSeen(at_ms=shell.now_ms, rid=request.rid, grant=one, retry_ms=0))
    return next((effect for effect in effects if isinstance(effect, HandIn)), None)


def test_what_cannot_be_finished_in_its_own_time_is_given_back_unopened() -> None:
    shell = ready()
    given_back = answer(shell, ttl_ms=60_000, expected_ms=90_000)
    assert given_back is not None
    assert given_back.why is YieldReason.SHORT
    assert given_back.detail == "it takes about 90 s, and the lease ends in 59 s"
    assert not any(isinstance(effect, OpenLease) for effect in shell.effects)


@pytest.mark.parametrize("changes", [{}, {"expected_ms": 59_000}, {"expected_ms": 90_000, "renew_ms": 20_000}])
def test_what_fits_or_can_be_renewed_or_is_not_known_is_begun(changes: dict[str, object]) -> None:
    shell = ready()
    assert answer(shell, ttl_ms=60_000, **changes) is None
    assert isinstance(shell.waiting[-1], OpenLease)


def test_what_was_learned_of_a_package_counts_before_what_the_dispatcher_thinks() -> None:
    shell = ready()
    run = until(shell, RunSlice)
    assert isinstance(run, RunSlice)
    shell.waiting.clear()
    shell.advance(8_000)
    outcome = SliceOutcome(run.index, 4, 0, "c" * 64, "d" * 64, 8_000)
    shell.tell(SliceStored(at_ms=shell.now_ms, key=run.key, outcome=outcome, output_bytes=10))
    assert shell.state.speeds.item_ms("a" * 64, shell.now_ms) == pytest.approx(2_000)
    shell.settle_down(4)
    while not any(isinstance(effect, SendRequest) for effect in shell.waiting):
        shell.settle_down(1)
        shell.tell(
            GrantSeen(at_ms=shell.now_ms, rid=shell.state.asking.rid, grant=None, retry_ms=0)
        ) if shell.state.asking else None
        shell.advance(200)
    given_back = answer(shell, ttl_ms=3_000, expected_ms=1)
    assert given_back is not None
    assert given_back.why is YieldReason.SHORT


def slept_in_a_slice(shell: Shell, slept_ms: int, compute_ms: int) -> None:
    """The computer is suspended while it is at a slice, and the slice done soon after."""
    run = until(shell, RunSlice)
    assert isinstance(run, RunSlice)
    shell.waiting.clear()
    shell.now_ms += slept_ms
    outcome = SliceOutcome(run.index, 4, 0, "c" * 64, "d" * 64, compute_ms)
    shell.tell(SliceStored(at_ms=shell.now_ms, key=run.key, outcome=outcome, output_bytes=10))


@pytest.mark.parametrize("slept_ms", [30_000, 59_000])
def test_a_suspend_is_no_part_of_the_time_that_a_slice_took(slept_ms: int) -> None:
    shell = ready()
    slept_in_a_slice(shell, slept_ms, compute_ms=80)
    assert shell.state.speeds.item_ms("a" * 64, shell.now_ms) == pytest.approx(20)


def test_what_a_worker_claims_is_not_believed_beyond_the_time_there_was() -> None:
    shell = ready()
    slept_in_a_slice(shell, 2_000, compute_ms=10**12)
    assert shell.state.speeds.item_ms("a" * 64, shell.now_ms) == pytest.approx(500)


def test_no_slice_is_taken_to_last_longer_than_one_may() -> None:
    """The thermal gate looks as far ahead as the last slice took."""
    shell = ready()
    slept_in_a_slice(shell, 8 * HOUR_MS, compute_ms=10**12)
    assert shell.state.slice_ms == shell.state.policy.slice_timeout_ms


def test_a_memory_that_refuses_every_lease_is_given_up_after_a_few() -> None:
    shell = ready()
    wrong = shell.state.speeds.learned("a" * 64, 1, 10**7, shell.now_ms).learned("f" * 64, 1, 5.0, shell.now_ms)
    shell.state = msgspec.structs.replace(shell.state, speeds=wrong)
    for _ in range(SHORTS_MAX):
        given_back = answer(shell)
        assert given_back is not None
        assert given_back.why is YieldReason.SHORT
        shell.waiting = [given_back]
        shell.settle_down()
        while not any(isinstance(effect, SendRequest) for effect in shell.waiting):
            shell.advance(1_000)
    assert answer(shell) is None
    assert [one.package_sha256 for one in shell.state.speeds.known] == ["f" * 64], "another package's is kept"


def test_a_slice_that_is_done_ends_the_count_of_those_that_were_too_long() -> None:
    speeds = Speeds().learned("a" * 64, 1, 10.0, 0)
    for _ in range(3 * SHORTS_MAX):
        for _ in range(SHORTS_MAX - 1):
            speeds = speeds.too_short("a" * 64)
        speeds = speeds.learned("a" * 64, 1, 10.0, 0)
    assert speeds.item_ms("a" * 64, 0) == 10.0


def test_heat_makes_a_lease_longer() -> None:
    shell = ready()
    shell.die_c = 86.0
    shell.advance(5_000)
    assert 8.0 < shell.state.heat.cap_w < 60.0
    given_back = answer(shell, ttl_ms=60_000, expected_ms=50_000)
    assert given_back is not None
    assert given_back.why is YieldReason.SHORT


def test_the_departure_is_an_edge_to_the_second() -> None:
    car = FullCar(Policy(parked_for_s=1, departures=(Departure(at="18:20", target_percent=60),)))
    car.advance(600)
    for takes_s, fits in ((500, True), (700, False)):
        shell = Shell(state=car.state, now_ms=car.now_ms)
        shell.tell(OwnerSaid(at_ms=car.now_ms, mode=OwnerMode.AUTO))
        assert shell.state.asking is not None
        one = msgspec.structs.replace(grant(1, ttl_ms=900_000), expected_ms=takes_s * 1000)
        shell.tell(GrantSeen(at_ms=car.now_ms, rid=shell.state.asking.rid, grant=one, retry_ms=0))
        assert any(isinstance(effect, OpenLease) for effect in shell.effects) is fits


def test_a_dispatcher_that_never_grants_what_fits_is_asked_less_and_less() -> None:
    shell = ready()
    asked_ms: list[int] = []
    for _ in range(1_200):
        if any(isinstance(effect, SendRequest) for effect in shell.waiting):
            asked_ms.append(shell.now_ms)
            assert answer(shell, expected_ms=10**7) is not None
            shell.waiting = [[effect for effect in shell.effects if isinstance(effect, HandIn)][-1]]
        shell.settle_down()
        shell.advance(500)
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked_ms)]
    assert 4 <= len(gaps) <= 9, "ten minutes"
    assert min(gaps) >= 7_000


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(-1, 200), st.floats(-5, 1e7).map(lambda ms: round(ms, 3))),
        max_size=80,
    )
)
def test_the_memory_of_speeds_is_bounded_and_forgets_after_a_day(seen: list[tuple[int, int, float]]) -> None:
    speeds = Speeds()
    for at_ms, (package, items, took_ms) in enumerate(seen):
        speeds = speeds.learned(f"{package:064x}", items, took_ms, at_ms)
        assert len(speeds.known) <= PACKAGES_MAX
        assert len({one.package_sha256 for one in speeds.known}) == len(speeds.known)
    for one in speeds.known:
        assert one.item_ms > 0
        assert speeds.item_ms(one.package_sha256, one.at_ms + DAY_MS) is None
