"""The real car process, heard by the agent's own sources over UDP multicast."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.clock import SystemClock
from agent.core.events import EventType, SignalsSeen, SignalValue, SourceChanged, SourceHeard
from agent.core.signals import BRAKE, CABLE, DOOR_HANDLE, GEAR, LEAVES, LOW_VOLTAGE_STATE, SEAT, SPEED
from agent.telemetry.jetson import JetsonSysfs
from agent.vehicle.binding import bind_buses
from agent.vehicle.profile import load_profile
from agent.vehicle.source import BusConfig, build_sources

GROUP = "239.74.163.2"
WAIT_S = 20
"""How long anything may take on a machine that is busy with everything else."""


class Ears:
    """What the agent's sources have heard so far."""

    def __init__(self) -> None:
        self.leaves: dict[str, SignalValue | None] = {}
        self.sources: dict[str, bool] = {}
        self._news = asyncio.Event()

    def emit(self, event: EventType) -> None:
        match event:
            case SignalsSeen():
                self.leaves |= {sample.path: sample.value for sample in event.samples}
            case SourceChanged():
                self.sources[event.source] = event.alive
            case SourceHeard():
                pass
            case _:
                pytest.fail(f"a vehicle source emitted {event}")
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def has(self, **expected: SignalValue) -> Callable[[], bool]:
        return lambda: all(self.leaves.get(PATHS[name]) == value for name, value in expected.items())


PATHS = {
    "gear": GEAR,
    "speed": SPEED,
    "brake": BRAKE,
    "seat": SEAT,
    "power": LOW_VOLTAGE_STATE,
    "cable": CABLE,
    "handle": DOOR_HANDLE,
    "door": "Vehicle.Cabin.Door.Row1.DriverSide.IsOpen",
}

Ask = Callable[..., Awaitable[Any]]
Scenario = Callable[[Ears, Ask, Path], Awaitable[None]]


def run_car(folder: Path, scenario: Scenario, *arguments: str) -> None:
    """Start the car and the agent's three sources, play the scenario, end both."""
    asyncio.run(_run_car(folder, scenario, arguments))


async def _run_car(folder: Path, scenario: Scenario, arguments: tuple[str, ...]) -> None:
    first_port = random.SystemRandom().randrange(20_000, 60_000)
    buses = [
        BusConfig(name=name, interface="udp_multicast", channel=GROUP, port=first_port + index)
        for index, name in enumerate(("party", "vehicle", "energy"))
    ]
    places = [part for bus in buses for part in ("--bus", f"{bus.name}={bus.interface}:{bus.channel}:{bus.port}")]
    command = [sys.executable, "-m", "hil.car", "--dir", str(folder), *places, *arguments]
    car = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert car.stdout is not None
    ears = Ears()
    profiles = [load_profile("tesla-model3"), load_profile("driveway-energy")]
    sources = build_sources(buses, profiles, SystemClock(), folder, bind_buses)
    try:
        ready = json.loads(await asyncio.wait_for(car.stdout.readline(), WAIT_S))
        async with asyncio.TaskGroup() as group:
            listening = [group.create_task(source.run(ears.emit)) for source in sources]
            reader, writer = await asyncio.open_unix_connection(ready["control"])

            async def ask(**request: object) -> Any:
                writer.write(json.dumps(request).encode() + b"\n")
                return json.loads(await asyncio.wait_for(reader.readline(), WAIT_S))

            await scenario(ears, ask, Path(ready["sysfs"]))
            writer.close()
            await writer.wait_closed()
            for task in listening:
                task.cancel()
    finally:
        if car.returncode is None:
            car.terminate()
        assert await asyncio.wait_for(car.wait(), WAIT_S) == 0
    assert not (folder / "control.sock").exists()


async def driver_leaves_and_returns(ears: Ears, ask: Ask, sysfs: Path) -> None:
    needed = {path for path, leaf in LEAVES.items() if leaf.needed}
    await ears.until(lambda: needed <= set(ears.leaves))
    assert ears.has(gear=127.0, power="ON", seat="OCCUPIED", cable=False)()
    assert ears.leaves[SPEED] == pytest.approx(50, abs=0.1)
    assert ears.sources == {"party": True, "vehicle": True, "energy": True}

    left = await ask(do="driver_leaves", pause_ms=1)
    assert left["ok"]
    await ears.until(ears.has(gear=126.0, speed=0.0, brake=0.0, power="LOCK", seat="EMPTY", cable=True, door=False))
    state = (await ask(do="state"))["state"]
    assert (state["plugged_in"], state["charging"], state["power_state"]) == (True, True, "CONDITIONING")
    assert state["pack_power_w"] > 9_000
    reader = JetsonSysfs(sysfs)
    compute = reader.read(SystemClock().boot_ms())
    reader.close()
    assert compute.sensor == "simulated"
    assert compute.power_w == pytest.approx(8.0, abs=0.1)

    before_ms = SystemClock().boot_ms()
    pulled = await ask(do="pull_handle")
    assert before_ms <= pulled["at_boot_ms"] <= SystemClock().boot_ms()
    await ears.until(ears.has(handle=True))
    returned = await ask(do="driver_returns", pause_ms=1)
    assert [step["do"] for step in returned["steps"]] == ["pull_handle", "open_door", "sit", "close_door", "brake"]
    assert returned["steps"][0]["at_boot_ms"] is None, "the handle was already pulled: no frame showed a change"
    assert returned["at_boot_ms"] == returned["steps"][1]["at_boot_ms"]
    await ears.until(ears.has(power="ON", seat="OCCUPIED", brake=100.0, handle=False))


def test_a_driver_leaves_and_returns_and_the_agent_hears_all_of_it(tmp_path: Path) -> None:
    run_car(tmp_path, driver_leaves_and_returns, "--start", "driving")


async def answers_what_is_wrong(ears: Ears, ask: Ask, sysfs: Path) -> None:
    unknown = await ask(do="fly")
    assert not unknown["ok"]
    assert "fly" in unknown["error"]
    assert "driver_returns" in unknown["error"]
    assert "wings" in (await ask(do="sit", wings=2))["error"]
    assert not (await ask(do="shift", gear="D"))["ok"]
    assert (await ask(do="state"))["state"]["gear"] == "P"
    await ears.until(ears.has(gear=126.0, cable=True))


def test_the_control_socket_answers_what_is_wrong_and_lives_on(tmp_path: Path) -> None:
    run_car(tmp_path, answers_what_is_wrong)


def test_a_bus_that_makes_no_sense_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hil.car.__main__ import main  # noqa: PLC0415 - the only test that runs it in this process

    assert main(["--dir", str(tmp_path), "--bus", "party"]) == 1
    assert "NAME=INTERFACE:CHANNEL" in capsys.readouterr().err
