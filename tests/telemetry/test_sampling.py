"""Work at a pace, sensors that show only this moment's power, and what is left of the work: on a simulated plant."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Iterator

import msgspec
import pytest

from agent.core.events import ComputeSeen
from agent.core.policy import Policy
from agent.core.thermal import Heat, duty_permille
from agent.telemetry.sampling import SAMPLE_S, PowerMean, moments_s
from hil.car.box import Box, BoxParameters

READ_S = 0.5
STEP_S = 0.002
MICRO_BATCH_MS = 20.0
IDLE_W, FULL_W = 8.0, 60.0
POLICY = Policy()


class Spent(msgspec.Struct, frozen=True):
    """What became of a run: the share of time at work, the hottest die, and what the watchdog found."""

    work: float
    die_max_c: float
    problems: frozenset[str]


class Pace:
    """A worker that computes a micro-batch and rests, so that it computes for its share of the time."""

    def __init__(self) -> None:
        self.duty, self._at_s = 0.0, 0.0

    def after(self, span_s: float) -> float:
        """The power (W) that is drawn from now on."""
        if self.duty in (0.0, 1.0):
            return FULL_W if self.duty else IDLE_W
        period_s = MICRO_BATCH_MS / 1000 / self.duty
        self._at_s = (self._at_s + span_s) % period_s
        return FULL_W if self._at_s < MICRO_BATCH_MS / 1000 else IDLE_W


def looks_s(*, sampled: bool) -> Iterator[float]:
    """When the power is looked at between two readings."""
    return itertools.takewhile(lambda moment_s: moment_s < READ_S, moments_s()) if sampled else iter(())


def spend(air_c: float, *, sampled: bool, minutes: float = 12, seed: int = 1) -> Spent:
    """The law on a box whose power is really either full or idle, and is read in an instant."""
    chance, box, heat, pace, mean = random.Random(seed), Box(BoxParameters(), air_c), Heat(), Pace(), PowerMean()
    work_s, die_max_c, problems, now_s, power_w = 0.0, -math.inf, set(), 0.0, IDLE_W
    while now_s < minutes * 60:
        reading = ComputeSeen(
            at_ms=round(now_s * 1000),
            die_c=box.die_c,
            power_w=mean.take(power_w),
            sensor="ina3221",
            die_error_c=3.0,
            power_error_share=0.021,
        )
        heat = heat.seen(reading, POLICY, working=pace.duty > 0)
        problems.add(heat.problem)
        pace.duty = 0.0 if heat.problem else duty_permille(heat.cap_w, POLICY, MICRO_BATCH_MS, measured=True) / 1000
        looks, ends_s = looks_s(sampled=sampled), now_s + READ_S + chance.uniform(0, 0.02)
        look_s = now_s + next(looks, math.inf)
        while now_s < ends_s:
            power_w = pace.after(STEP_S)
            if now_s >= look_s:
                mean.add(power_w)
                look_s = ends_s - READ_S + next(looks, math.inf)
            die_max_c = max(die_max_c, box.advance(power_w, air_c, STEP_S))
            work_s += STEP_S if power_w > IDLE_W else 0.0
            now_s += STEP_S
    return Spent(work_s / now_s, die_max_c, frozenset(problems - {""}))


def ideal(air_c: float) -> float:
    """The share of time at work that holds this box at the target in the long run."""
    box = BoxParameters()
    power_w = (POLICY.die_target_c - air_c) / (box.die_to_sink_k_per_w + box.sink_to_air_k_per_w)
    return min(1.0, (power_w - IDLE_W) / (FULL_W - IDLE_W))


@pytest.mark.parametrize("air_c", [45.0, 52.0, 60.0])
def test_work_at_a_pace_is_done_although_the_sensor_shows_only_the_moment(air_c: float) -> None:
    spent = spend(air_c, sampled=True)
    assert spent.problems == frozenset()
    assert spent.work > 0.9 * ideal(air_c)
    assert spent.die_max_c < POLICY.die_limit_c


def test_without_samples_the_guard_counts_on_the_lower_of_two_moments() -> None:
    """Why all this is needed, and that the plant above can tell."""
    assert spend(60.0, sampled=False, minutes=25).work < 0.7 * ideal(60.0)


def test_each_sample_is_somewhere_in_its_own_hundredth_of_a_second() -> None:
    moments = list(itertools.islice(moments_s(), 1_000))
    assert [math.floor(moment_s / SAMPLE_S + 1e-9) for moment_s in moments] == list(range(1_000))
    parts = sorted(moment_s / SAMPLE_S % 1.0 for moment_s in moments)
    assert max(later - earlier for earlier, later in itertools.pairwise(parts)) < 0.003, "and nowhere more often"


@pytest.mark.parametrize("period_s", [0.01, 0.02, 0.03, 0.05, 0.1, 0.25])
@pytest.mark.parametrize("duty", [0.1, 0.5, 0.7])
def test_no_pace_falls_into_step_with_the_samples(period_s: float, duty: float) -> None:
    """The mean of many readings is right, and one is off by no more than the text says."""
    off_w = []
    for shift in range(50):
        mean = PowerMean()
        for moment_s in looks_s(sampled=True):
            on = (moment_s + shift / 50 * period_s) % period_s < duty * period_s
            mean.add(FULL_W if on else IDLE_W)
        mean_w = mean.take(FULL_W if (READ_S + shift / 50 * period_s) % period_s < duty * period_s else IDLE_W)
        assert mean_w is not None
        off_w.append(mean_w - (IDLE_W + duty * (FULL_W - IDLE_W)))
    assert abs(statistics.fmean(off_w)) < 1.0
    assert statistics.pstdev(off_w) < 2.5


def test_a_mean_leaves_out_what_could_not_be_read_and_needs_a_last_sample() -> None:
    mean = PowerMean()
    for power_w in (10.0, None, 20.0):
        mean.add(power_w)
    assert mean.take(60.0) == 30.0
    assert mean.take(8.0) == 8.0, "begun anew"
    mean.add(10.0)
    assert mean.take(None) is None
    assert mean.take(8.0) == 8.0
