"""The whole daemon of a car that has a databroker and no bus of its own to read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from agent.config import load
from agent.core.effects import KeepAwake
from agent.core.findings import GateState
from agent.daemon import Daemon
from agent.identity import establish
from agent.trust.keys import FileSigner
from hil.bench.databroker import PARKED
from tests.vehicle.databroker import DOOR, LIMIT_S, AwkwardBroker

CONFIG = """
state_dir = "state"
control_socket = "control.sock"
[unit]
id = "unit-1"
[fleet]
brokers = ["127.0.0.1:1"]
dispatcher_key = "key.pem"
[inference]
packages_dir = "packages"
publisher_key = "key.pem"
[computer]
reader = "hwmon"
[policy]
parked_for_s = 0.2
keep_awake = true
[vehicle.databroker]
address = "ADDRESS"
heartbeat_silent_ms = 2000
keep_awake = true
"""


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the daemon's state tells nobody that it changed
        await asyncio.sleep(0.01)


def test_a_car_is_read_through_its_databroker_alone(
    play: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path
) -> None:
    signer = FileSigner.open_or_create(tmp_path / "key")
    (tmp_path / "key.pem").write_text(signer.public_key_pem())
    (tmp_path / "packages").mkdir()

    async def story() -> None:
        broker = AwkwardBroker()
        await broker.start()
        broker.provide()
        path = tmp_path / "agent.toml"
        path.write_text(CONFIG.replace("ADDRESS", broker.address))
        config = load(path)
        daemon = Daemon(config, await establish(config))
        running = asyncio.create_task(daemon.run())

        def gates() -> set[GateState]:
            return {one.state for one in daemon.state.gates.gates if one.name in {"parked", "occupied", "reserve"}}

        try:
            async with asyncio.timeout(LIMIT_S):
                await until(lambda: gates() == {GateState.OPEN})
                assert set(PARKED) <= daemon.state.vehicle.offered
                broker.publish({DOOR: True})
                await until(lambda: gates() != {GateState.OPEN})
                daemon.parts.hands.perform(KeepAwake(for_ms=60_000))
                await until(lambda: bool(broker.actuated))
        finally:
            daemon.stop()
            await running
            broker.lose_provider()
            await broker.stop()
        assert len(broker.actuated) == 2, "asked for, and let go of at the end"

    play(story())
