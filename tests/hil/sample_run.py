"""A hand-made run, as a rig would leave it: a parked car reads text, and its driver comes back in the middle."""

from __future__ import annotations

import math

import msgspec

from hil.record import LeaseSpan, Limit, Moment, Outcome, RunRecord, Sample


def outcome(**changes: object) -> Outcome:
    whole = Outcome(
        images=96,
        accuracy=0.98437,
        slices_done=12,
        slices_lost=0,
        vacate_ms=23.4,
        attestations=3,
        attestations_verified=3,
        energy_wh=0.2214,
        gross=0.0192,
        energy_cost=0.0000664,
        net=0.0191336,
        currency="EUR",
    )
    return msgspec.structs.replace(whole, **changes)


def sample(t_s: float, **changes: object) -> Sample:
    blank = Sample(
        t_s=t_s,
        state="blocked",
        gate="closed",
        reason="door_open",
        die_c=40.0,
        power_w=5.0,
        power_cap_w=0.0,
        charge_percent=71.0,
        pack_power_w=-150.0,
        lease="",
        slices_kept=0,
        images_settled=0,
    )
    return msgspec.structs.replace(blank, **changes)


def at_night(t_s: float) -> Sample:
    """A parked car, closed until 8 s, the driver there from 22.1 to 31 s, and 1.5 s in which nothing is known."""
    work_s = max(0.0, min(t_s, 22.25) - 9.0) + max(0.0, t_s - 34.0)
    running = 9.0 <= t_s < 22.25 or t_s >= 34.0
    blind = 12.0 <= t_s < 13.5
    closed = t_s < 8.0 or 22.25 <= t_s < 33.0
    return sample(
        t_s,
        state="running" if running else "yielding" if 22.25 <= t_s < 22.75 else "blocked" if closed else "ready",
        gate="closed" if closed else "hold" if 17.0 <= t_s < 17.75 else "open",
        reason=(
            "parked_not_long_enough"
            if t_s < 8.0 or 31.0 <= t_s < 33.0
            else "door_open"
            if closed
            else "tariff_peak"
            if 17.0 <= t_s < 17.75
            else ""
        ),
        die_c=None
        if blind
        else 41 + 33 * (1 - math.exp(-work_s / 8)) - (0 if running else 4) + 0.4 * math.sin(9 * t_s),
        power_w=None if blind else (31 + 2.5 * math.sin(7 * t_s) if running else 6.0),
        power_cap_w=0.0 if closed else 40.0 if work_s < 18 else 36.0,
        charge_percent=71.2 + (0.0004 * t_s if t_s < 22.25 else 0.0089),
        pack_power_w=10_150.0 if t_s < 30 else -180.0,
        lease="scan-0007/1" if running else "",
        slices_kept=min(12, int(work_s / 1.9)),
        images_settled=sum(
            images for settled_s, images in ((16.8, 32), (23.2, 24), (36.9, 8), (44.9, 32)) if t_s >= settled_s
        ),
    )


def a_night() -> RunRecord:
    """A realistic run: the driver comes back in the middle and leaves again."""
    return RunRecord(
        title="Demo: a parked car reads text, and its driver comes back",
        started_at="2026-03-14 21:07:32 +01:00",
        samples=[at_night(i / 4) for i in range(181)],
        moments=[
            Moment(t_s=0.0, who="driver", what="parks and walks away"),
            Moment(t_s=8.0, who="agent", what="opens the gate"),
            Moment(t_s=22.1, who="driver", what="pulls the door handle"),
            Moment(t_s=22.124, who="agent", what="vacated the accelerator"),
            Moment(t_s=22.6, who="driver", what="opens the door"),
            Moment(t_s=22.9, who="agent", what="handed in 3 slices of scan-0008/1"),
            Moment(t_s=24.0, who="driver", what="sits down"),
            Moment(t_s=30.0, who="driver", what="unplugs, leaves and locks the car behind"),
            Moment(t_s=33.0, who="agent", what="opens the gate"),
            Moment(t_s=44.6, who="agent", what="stops at the end of the demo"),
        ],
        leases=[
            LeaseSpan(
                job="scan-0007",
                epoch=1,
                start_s=8.4,
                end_s=16.3,
                outcome="finished",
                slices_done=4,
                slices_wanted=4,
                energy_wh=0.0682,
                net=0.0063795,
            ),
            LeaseSpan(
                job="scan-0008",
                epoch=1,
                start_s=16.4,
                end_s=22.13,
                outcome="driver",
                slices_done=3,
                slices_wanted=4,
                energy_wh=0.0489,
                net=0.0047853,
            ),
            LeaseSpan(
                job="scan-0008",
                epoch=2,
                start_s=33.3,
                end_s=36.4,
                outcome="finished",
                slices_done=1,
                slices_wanted=1,
                energy_wh=0.0203,
                net=0.0015939,
            ),
            LeaseSpan(
                job="scan-0009",
                epoch=1,
                start_s=36.5,
                end_s=44.6,
                outcome="finished",
                slices_done=4,
                slices_wanted=4,
                energy_wh=0.084,
                net=0.0063748,
            ),
        ],
        outcome=outcome(),
        limits=[
            Limit(name="time to vacate", value="23.4 ms", limit="≤ 100 ms", held=True),
            Limit(name="die temperature", value="74.3 °C", limit="≤ 95 °C", held=True),
            Limit(name="slices lost", value="0", limit="≤ 1", held=True),
            Limit(name="attestations verified", value="3 of 3", limit="all", held=True),
            Limit(name="characters read correctly", value="98.4 %", limit="≥ 95 %", held=True),
        ],
        versions={"driveway": "0.1.0", "onnxruntime": "1.27.0", "package": "ocr-lines 1", "python": "3.11.2"},
        die_limit_c=95.0,
        die_target_c=85.0,
        examples=[
            ("17 Harbour Street, 5003 Bergen", "17 Harbour Street, 5003 Bergen"),
            ("P/N KE-40117-82 Rev. 8", "P/N KE-40117-82 Rev. B"),
            ("Region-based segmentation", ""),
            ("مرحبا 12", "مرحبا 12"),
        ],
    )
