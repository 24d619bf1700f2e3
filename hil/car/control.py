"""The car's control socket: one JSON object per line in, one per line out.

    {"do": "open_door", "door": "row1_driver"}   ->  {"ok": true, "at_boot_ms": 123456}
    {"do": "shift", "gear": "P"}                 ->  {"ok": false, "error": "..."}
    {"do": "state"}                              ->  {"ok": true, "state": {...}}
    {"do": "driver_returns", "pause_ms": 300}    ->  {"ok": true, "at_boot_ms": ..., "steps": [...]}
    {"do": "change", "change": {"ambient_c": 40}}
    {"do": "trouble", "trouble": {"kind": "lie", "signal": "Vehicle.…", "value": true}}

`at_boot_ms` is the CLOCK_BOOTTIME at which the first frame that shows the action was sent (null when none did). A
script answers when it is done; its `at_boot_ms` is that of its first frame.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec

from agent.errors import DrivewayError
from hil.car.body import Action, Door, Gear
from hil.car.car import Car, CarReport
from hil.car.changes import Change, Trouble

STEP_PAUSE_MS = 300

Step = tuple[Action, Gear]
SCRIPTS: dict[str, tuple[Step, ...]] = {
    "driver_leaves": (
        (Action.ARRIVE, Gear.DRIVE),
        (Action.SHIFT, Gear.PARK),
        (Action.RELEASE_BRAKE, Gear.PARK),
        (Action.OPEN_DOOR, Gear.PARK),
        (Action.LEAVE, Gear.PARK),
        (Action.CLOSE_DOOR, Gear.PARK),
        (Action.PLUG, Gear.PARK),
    ),
    "driver_returns": (
        (Action.PULL_HANDLE, Gear.PARK),
        (Action.OPEN_DOOR, Gear.PARK),
        (Action.SIT, Gear.PARK),
        (Action.CLOSE_DOOR, Gear.PARK),
        (Action.BRAKE, Gear.PARK),
    ),
}
"""What a driver does, always at the driver's door, with the gear where a step shifts."""


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line in: `do` is `state`, `change`, `trouble`, the name of a script, or an action."""

    do: str
    door: Door = Door.ROW1_DRIVER
    gear: Gear = Gear.DRIVE
    pause_ms: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = STEP_PAUSE_MS
    change: Change | None = None
    trouble: Trouble | None = None


class StepDone(msgspec.Struct, frozen=True):
    """One step of a script, and when its first frame was sent."""

    do: Action
    at_boot_ms: int | None


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line out."""

    ok: bool = msgspec.field()
    at_boot_ms: int | None = msgspec.field()
    error: str = ""
    state: CarReport | None = None
    steps: list[StepDone] = []


class ControlSocket:
    """Serves one car."""

    def __init__(self, car: Car) -> None:
        self._car = car
        self._decoder = msgspec.json.Decoder(Request)

    async def serve(self, path: Path) -> asyncio.Server:
        """Listen on `path`. A socket that an earlier car left behind is replaced."""
        return await asyncio.start_unix_server(self._talk, path)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(msgspec.json.encode(await self._answer(line)) + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError, asyncio.CancelledError):
            # The line is too long, the other side has gone, or this car is ending (asyncio logs cancelled handlers).
            pass
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> Reply:
        try:
            request = self._decoder.decode(line)
            if request.do == "state":
                return Reply(ok=True, at_boot_ms=None, state=self._car.report())
            if script := SCRIPTS.get(request.do):
                return await self._play(script, request.pause_ms)
            if request.do == "change" and request.change is not None:
                return Reply(ok=True, at_boot_ms=self._car.change(request.change))
            if request.do == "trouble" and request.trouble is not None:
                return Reply(ok=True, at_boot_ms=self._car.trouble(request.trouble))
            at_boot_ms = self._car.do(_action(request.do), door=request.door, gear=request.gear)
            return Reply(ok=True, at_boot_ms=at_boot_ms)
        except (msgspec.DecodeError, DrivewayError) as error:
            return Reply(ok=False, at_boot_ms=None, error=str(error))

    async def _play(self, script: tuple[Step, ...], pause_ms: int) -> Reply:
        steps: list[StepDone] = []
        for action, gear in script:
            if steps:
                await asyncio.sleep(pause_ms / 1000)
            steps.append(StepDone(action, self._car.do(action, gear=gear)))
        first_ms = next((step.at_boot_ms for step in steps if step.at_boot_ms is not None), None)
        return Reply(ok=True, at_boot_ms=first_ms, steps=steps)


def _action(name: str) -> Action:
    try:
        return Action(name)
    except ValueError:
        known = ("state", *SCRIPTS, *Action)
        raise DrivewayError(f"a car cannot do {name!r}", hint=f"known: {', '.join(known)}") from None
