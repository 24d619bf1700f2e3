"""The step test finds bounds that contain the truth and are worth having, or says what was wrong with the test."""

from __future__ import annotations

import random

import pytest

from agent.core.commissioning import Bounds, StepSample, StepTestError, fit
from agent.core.policy import Policy
from hil.car.box import Box, BoxParameters

BOXES = 200


def record(
    box: BoxParameters,
    seed: int,
    *,
    idle_s: float = 120,
    step_s: float = 300,
    after_s: float = 120,
    full_w: float = 60.0,
    sag_w: float = 0.0,
    sink_c: float | None = None,
    spacing_s: float = 1.0,
    air_c: float = 20.0,
) -> list[StepSample]:
    """A test on a box: 0.5 K of noise in steps of 0.5 K, power within 2 %, readings that come a little late."""
    chance = random.Random(seed)
    plant = Box(box, air_c, sink_c)
    samples, now_s, read_s, energy_j = [], 0.0, 0.0, 0.0
    while now_s < idle_s + step_s + after_s:
        span_s = spacing_s * chance.choice([1.0, 1.0, 1.1])
        working = idle_s <= now_s < idle_s + step_s
        power_w = full_w - sag_w * (now_s > idle_s + step_s / 2) if working else box.idle_w
        plant.advance(power_w, air_c, span_s)
        now_s, energy_j = now_s + span_s, energy_j + power_w * span_s
        die_c = round((plant.die_c + chance.gauss(0, 0.5)) * 2) / 2
        mean_w = energy_j / (now_s - read_s) * (1 + chance.gauss(0, 0.02))
        samples.append(StepSample(at_ms=round(now_s * 1000), die_c=die_c, power_w=mean_w))
        read_s, energy_j = now_s, 0.0
    return samples


def contains(bounds: Bounds, box: BoxParameters) -> bool:
    return (
        bounds.die_to_sink_min_k_per_w <= box.die_to_sink_k_per_w <= bounds.die_to_sink_max_k_per_w
        and bounds.sink_min_j_per_k <= box.sink_j_per_k
        and bounds.die_min_j_per_k <= box.die_j_per_k <= bounds.die_max_j_per_k
    )


@pytest.mark.parametrize(("step_s", "spacing_s"), [(300, 1.0), (600, 1.0), (300, 0.5), (300, 2.0)])
def test_the_bounds_contain_the_truth_and_are_no_wider_than_they_need_be(step_s: float, spacing_s: float) -> None:
    for seed in range(BOXES // 4):
        box = BoxParameters().scattered(random.Random(seed))
        bounds = fit(record(box, seed, step_s=step_s, spacing_s=spacing_s))
        assert contains(bounds, box), f"box {seed}"
        assert bounds.die_to_sink_max_k_per_w < 1.25 * box.die_to_sink_k_per_w
        assert bounds.die_to_sink_min_k_per_w > 0.75 * box.die_to_sink_k_per_w
        assert bounds.sink_min_j_per_k > 0.75 * box.sink_j_per_k
        assert bounds.die_max_j_per_k < 1.6 * box.die_j_per_k
        assert bounds.residual_k < 0.7


def test_a_bigger_computer_is_found_as_well() -> None:
    """A liquid-cooled box of 350 W."""
    box = BoxParameters(
        die_j_per_k=150, die_to_sink_k_per_w=0.06, sink_j_per_k=3_000, sink_to_air_k_per_w=0.1, idle_w=60
    )
    assert contains(fit(record(box, 1, step_s=400, full_w=350.0)), box)


def test_what_it_prints_goes_into_the_policy() -> None:
    lines = fit(record(BoxParameters(), 1)).policy_lines()
    keys = [line.partition(" = ")[0] for line in lines]
    assert set(keys) <= set(Policy.__struct_fields__)
    assert all(float(line.partition(" = ")[2]) > 0 for line in lines)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([], "hardly any"),
        (record(BoxParameters(), 1, idle_s=30), "the idle before the step took"),
        (record(BoxParameters(), 1, step_s=100), "the step took"),
        (record(BoxParameters(), 1, after_s=20), "the idle after it took"),
        (record(BoxParameters(), 1, full_w=16.0), "power step is too small"),
        (record(BoxParameters(), 1, sag_w=20.0), "throttled"),
        (record(BoxParameters(), 1, sink_c=60.0), "had not settled"),
        (record(BoxParameters(), 1, spacing_s=4.0), "follow each other"),
        ([StepSample(at_ms=n, die_c=float("nan"), power_w=8.0) for n in range(9)], "without a value"),
        ([StepSample(at_ms=0, die_c=30.0, power_w=8.0)] * 9, "follow each other"),
        (list(reversed(record(BoxParameters(), 1))), "follow each other"),
    ],
)
def test_a_test_that_was_none_is_refused_with_the_reason(samples: list[StepSample], said: str) -> None:
    with pytest.raises(StepTestError, match=said):
        fit(samples)


def test_a_computer_that_something_else_warms_is_refused() -> None:
    samples = record(BoxParameters(), 1)
    warmed = [
        StepSample(at_ms=one.at_ms, die_c=one.die_c + (12 if 250 < place < 330 else 0), power_w=one.power_w)
        for place, one in enumerate(samples)
    ]
    with pytest.raises(StepTestError, match="apart"):
        fit(warmed)


def test_constant_power_is_no_step() -> None:
    flat = [StepSample(at_ms=second * 1000, die_c=40.0, power_w=8.0) for second in range(600)]
    with pytest.raises(StepTestError):
        fit(flat)
