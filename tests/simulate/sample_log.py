"""Makes the sample log `data/tesla-evening.log`: a Tesla that comes home, earns, and is asked for, in two minutes.

    python -m tests.simulate.sample_log > tests/simulate/data/tesla-evening.log

Made with the rig's own car and encoders. Only what the profiles read is sent, and slower than on a car: to keep it
short.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator

import msgspec

from agent.vehicle.profile import load_profile
from hil.car.body import DRIVING, Action, Body, act
from hil.car.frames import PROFILES, Encoder, View, encoders
from hil.car.plant import PlantInputs, PlantParameters, initial_state, step

START_S = 1_774_726_200
"""2026-03-28 19:30:00 UTC."""
INTERFACES = {"party": "can0", "vehicle": "can1", "energy": "can2"}
PERIOD_MS = 200
AMBIENT_C = 11.0
PARAMETERS = PlantParameters()
STORY: tuple[tuple[int, tuple[Action, ...]], ...] = (
    (0, ()),
    (1_500, (Action.ARRIVE,)),
    (2_100, (Action.PARK,)),
    (3_000, (Action.OPEN_DOOR,)),
    (3_900, (Action.LEAVE,)),
    (4_600, (Action.CLOSE_DOOR,)),
    (6_000, (Action.PLUG,)),
    (24_330, (Action.PULL_HANDLE,)),
    (24_810, (Action.OPEN_DOOR,)),
    (26_500, (Action.CLOSE_DOOR,)),
)
SLEEPS_MS, WAKES_MS, END_MS = 29_000, 117_000, 119_000
"""The bus falls silent, as it does when the car sleeps; then the driver is back."""


def lines() -> Iterator[str]:
    """The log, line by line."""
    read = {
        (bus, message.message)
        for profile in map(load_profile, PROFILES)
        for bus, mapping in profile.buses.items()
        for message in mapping.messages
    }
    wanted = [
        (bus, encoder)
        for bus, those in encoders().items()
        for encoder in those
        if (bus, encoder.recipe.message) in read
    ]
    counts: Counter[tuple[str, str]] = Counter()
    sent: dict[int, bytes] = {}
    story = list(STORY)
    body = DRIVING
    for now_ms in range(0, END_MS, 10):
        while story and story[0][0] <= now_ms:
            for action in story.pop(0)[1]:
                body = act(body, action)
        if now_ms == WAKES_MS:
            body = act(act(body, Action.PULL_HANDLE), Action.OPEN_DOOR)
        if SLEEPS_MS <= now_ms < WAKES_MS:
            continue
        view = _view(body, now_ms)
        for number, (bus, encoder) in enumerate(wanted):
            payload = encoder.payload(view)
            is_news = encoder.recipe.at_once and sent.get(number) != payload
            if is_news or now_ms % PERIOD_MS == number * 10 % PERIOD_MS:
                sent[number] = payload
                yield _line(now_ms * 1000 + 37 * number, bus, encoder, payload, counts)


def _view(body: Body, now_ms: int) -> View:
    """The car after the battery has been charged, or not, for so long."""
    plant = initial_state(PARAMETERS, soc_percent=63.0, ambient_c=AMBIENT_C)
    inputs = PlantInputs(
        ambient_c=AMBIENT_C,
        charger_w=11_000.0 if body.plugged_in else 0.0,
        utilisation=0.0,
        awake=True,
        speed_kmh=body.speed_kmh,
    )
    plant = msgspec.structs.replace(step(plant, inputs, 0.0, PARAMETERS), energy_wh=plant.energy_wh + now_ms / 400)
    return View(body=body, plant=plant, parameters=PARAMETERS, ambient_c=AMBIENT_C)


def _line(at_us: int, bus: str, encoder: Encoder, payload: bytes, counts: Counter[tuple[str, str]]) -> str:
    message = (bus, encoder.recipe.message)
    frame = encoder.frame(payload, counts[message])
    counts[message] += 1
    seconds, rest_us = divmod(at_us, 1_000_000)
    data = frame.data.hex().upper()
    return f"({START_S + seconds}.{rest_us:06d}) {INTERFACES[bus]} {frame.arbitration_id:03X}#{data}"


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in lines())
